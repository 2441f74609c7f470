"""Golden cases of a new release: made by one Ray task, because the job's own machine may have neither torch nor GPU."""

import sys

import ray

from warren.cluster.capacity import lacks, size_of, waiting
from warren.config import Resources
from warren.errors import ReleaseError, root_cause
from warren.storage import FileEntry, Location, StoredFiles
from warren.storage.file_cache import local_copy


def write_golden(resources: Resources, model: StoredFiles, folder: Location) -> tuple[FileEntry, ...]:
    """Make a model's golden cases and write them into the folder of its release; return their entries.

    Args:
        resources: Of a replica; the task takes as much.
        model: The model files of a checkpoint.
        folder: Where the release is going to be.

    Raises:
        ReleaseError: The model does not load.
    """
    cpus, gpus = resources.cpus_per_replica, resources.gpus_per_replica
    if lacks(cpus, gpus):
        print(f"release: {waiting(size_of(1, 'tasks for the golden cases', cpus, gpus))}", file=sys.stderr)
    task = ray.remote(_write).options(num_cpus=cpus, num_gpus=gpus)
    try:
        entries: tuple[FileEntry, ...] = ray.get(task.remote(model, folder))
    except ray.exceptions.RayTaskError as error:
        known = root_cause(error)
        if isinstance(known, ReleaseError):
            raise ReleaseError(f"no golden cases can be made of {model.folder}: {known}") from None
        raise known from None
    return entries


def _write(model: StoredFiles, folder: Location) -> tuple[FileEntry, ...]:
    from warren.train.golden_maker import make_cases  # in the task alone: it imports torch

    with local_copy(model) as local:
        golden = make_cases(local, model.digest)
    return golden.store(folder)
