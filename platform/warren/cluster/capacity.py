"""What a job waits for, in words: a cluster that is too small, or busy, shows in nothing else."""

import ray

from warren.compat.ray_core import job_placement_states


def size_of(number: int | tuple[int, int], kind: str, cpus: float, gpus: float) -> str:
    """Say how many processes of what size a job asks for.

    Args:
        number: A number, or the smallest and the largest one.
        kind: What they are called, in the plural.
        cpus: Of each; so are `gpus`.
    """
    numbers = number if isinstance(number, tuple) else (number,)
    size = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
    return f"{' to '.join(map(str, dict.fromkeys(numbers)))} {kind} of {size}"


def lacks(cpus: float, gpus: float) -> bool:
    """Tell whether less than that is free in the whole cluster."""
    free = ray.available_resources()
    return bool(free.get("CPU", 0.0) < cpus or free.get("GPU", 0.0) < gpus)


def fitting(most: int, cpus: float, gpus: float, spare_cpus: float = 0.0) -> int:
    """Return how many processes of a size there is room for in the whole cluster, at most so many.

    Args:
        most: The largest number returned.
        cpus: Of each; so are `gpus`.
        spare_cpus: CPUs that must be left free beside them.
    """
    free = ray.available_resources()
    numbers = [int((free.get("CPU", 0.0) - spare_cpus) / cpus)]
    if gpus:
        numbers.append(int(free.get("GPU", 0.0) / gpus))
    return max(0, min(most, *numbers))


def has_room(cpus: float, gpus: float) -> bool:
    """Tell whether the cluster has set aside what this job asked for, or can: then its processes are starting.

    A job asks for its place some seconds after it began. Before that, the free resources decide.

    Args:
        cpus: Of the fewest processes that the job can do with; so are `gpus`.
    """
    states = job_placement_states()
    return "CREATED" in states if states else not lacks(cpus, gpus)


def waiting(for_what: str) -> str:
    """Say what is waited for, and what the cluster has of it."""
    there, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if there.get(kind)]
    capacity = " and ".join(f"{there[kind]:g} {kind}s ({free.get(kind, 0.0):g} of them free)" for kind in kinds)
    return f"waiting for {for_what}; the cluster has {capacity or 'no node'}"
