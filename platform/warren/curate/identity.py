"""The identity of a selection: a digest of everything that can change its samples."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from warren.config import CurateConfig
from warren.config.curate import ClusterStep, DecontaminateStep, KeysStep
from warren.curate.sample_pieces import Parent
from warren.data.importers.fingerprints import file_fingerprint
from warren.errors import NotFoundError
from warren.storage import Location, digest_bytes

CURATE_FORMAT = 1
"""Increased when the code selects other samples from the same datasets, embeddings and options."""

_THREADS = 16


def identify(config: CurateConfig, parents: list[Parent], evaluations: list[Parent]) -> str:
    """Return a digest of the datasets, the embeddings' files, the options and the format of the code.

    Args:
        evaluations: The evaluation sets of all `decontaminate` steps.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(_fingerprint, _files(config)))
    facts = {
        "format": CURATE_FORMAT,
        "options": config.content_options,
        "parents": [[parent.reference, parent.manifest.digest] for parent in parents],
        "files": files,
        "evaluations": [[each.reference, each.manifest.digest] for each in evaluations],
    }
    return digest_bytes(json.dumps(facts, sort_keys=True).encode())


def _files(config: CurateConfig) -> list[str]:
    """Return the files that a configuration reads besides its datasets; of a folder, all files in it."""
    named: list[str | None] = [config.embeddings.path if config.embeddings else None]
    if config.embeddings and config.embeddings.model and Path(config.embeddings.model).is_dir():
        named.append(config.embeddings.model)
    for step in config.steps:
        if isinstance(step, KeysStep):
            named += [step.allow, step.deny]
        elif isinstance(step, ClusterStep):
            named.append(step.centroids)
        elif isinstance(step, DecontaminateStep):
            named.append(step.evaluation_embeddings)
    files: list[str] = []
    for path in filter(None, named):
        # Of a pattern, all files of the folder count: too many only make a new identity where the old one would do.
        location = Location.parse(path.partition("*")[0].rpartition("/")[0] if "*" in path else path)
        files += [file.uri for file in location.list()] or [location.uri]
    return files


def _fingerprint(uri: str) -> list[str]:
    try:
        return [uri, file_fingerprint(uri)]
    except NotFoundError:
        return [uri, ""]  # the step that reads it reports that it is missing
