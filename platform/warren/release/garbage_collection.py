"""Garbage collection: removing the releases that nothing needs.

A version is kept if an alias names it or named it within the history window, if it is pinned, if an endpoint says that
it runs it, if it is young, or if a release that is kept was made from it. Everything else is removed, children before
their parents, `release.json` first: a removal that is interrupted leaves files that no reader takes for a release.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from warren.release.aliases import ALIASES, user_name
from warren.release.records import read_record
from warren.release.registry import Registry
from warren.release.release import MANIFEST, Release, release_folder
from warren.release.removal_marks import mark_for_removal, removals_folder, unmark

HISTORY_WINDOW = 10
"""Moves of each alias whose versions are kept, so that a rollback finds them."""

MIN_AGE_S = 24 * 3600.0
"""Younger releases are kept: the job that made one may be about to move an alias to it."""

_ABANDONED_S = 3600  # a removal that was marked so long ago was interrupted


@dataclass(frozen=True)
class RemovalPlan:
    """What a garbage collection removes.

    Attributes:
        removed: Versions in the order in which they go, children before their parents.
        kept: Why each of the others stays.
        interrupted: Versions whose removal an earlier collection did not finish.
        num_bytes: What the files of `removed` take.
    """

    removed: tuple[str, ...]
    kept: Mapping[str, tuple[str, ...]]
    interrupted: tuple[str, ...]
    num_bytes: int


def plan_gc(registry: Registry, window: int = HISTORY_WINDOW, min_age_s: float = MIN_AGE_S) -> RemovalPlan:
    """Return what `gc` would remove, and why it keeps the rest.

    Args:
        window: Moves of each alias whose versions are kept.
        min_age_s: Releases younger than that are kept; also those that a clock puts into the future.
    """
    releases = {release.version: release for release in registry.releases()}
    children = _children(registry, releases)
    reasons = {version: list(needs) for version, needs in _needed(registry, window).items() if version in releases}
    if not registry.aliases():  # nothing says yet which releases matter
        reasons |= {version: ["no alias is set"] for version in releases}
    for version, release in releases.items():
        # A clock that is ahead makes the difference negative, which keeps the release.
        if time.time() - release.created < min_age_s:
            reasons.setdefault(version, []).append("young")
    _keep_parents(reasons, children)
    removed = [version for version in releases if version not in reasons]
    graph = {version: [child for child in children[version] if child in removed] for version in removed}
    return RemovalPlan(
        removed=tuple(TopologicalSorter(graph).static_order()),
        kept={version: tuple(reasons[version]) for version in releases if version in reasons},
        interrupted=tuple(_interrupted(registry)),
        num_bytes=sum(entry.bytes for version in removed for entry in releases[version].files),
    )


def gc(registry: Registry, plan: RemovalPlan, window: int = HISTORY_WINDOW, who: str | None = None) -> list[str]:
    """Remove what a plan says, and finish removals that were interrupted; return what was removed.

    What something began to need since the plan was made is kept.

    Args:
        plan: What `plan_gc` returned.
        window: As for `plan_gc`.
        who: Who removes; None takes the name of this process's user.
    """
    marked, children = [*plan.interrupted], _children(registry, {each.version: each for each in registry.releases()})
    done: list[str] = []
    for version in [*plan.interrupted, *plan.removed]:
        if version not in marked and not mark_for_removal(registry.root, registry.name, version, who or user_name()):
            continue  # another collection removes it
        is_needed = version in _needed(registry, window) or set(children.get(version, ())) - set(done)
        if is_needed and _is_complete(registry, version):
            unmark(registry.root, registry.name, version)
            continue
        _delete_files(registry, version)
        done.append(version)
    return done


def _needed(registry: Registry, window: int) -> dict[str, list[str]]:
    """Return what needs a version: aliases and their history window, pins, and endpoints that run."""
    reasons: dict[str, list[str]] = {}
    for alias in ALIASES:
        current = registry.alias(alias)  # type: ignore[arg-type]
        if current:
            reasons.setdefault(current, []).append(alias)
        moves = registry.history(alias)[-window:] if window else []  # type: ignore[arg-type]
        recent = {version for move in moves for version in (move.before, move.after) if version}
        for version in recent - {current}:
            reasons.setdefault(version, []).append(f"was {alias}")
    for version in registry.pins():
        reasons.setdefault(version, []).append("pinned")
    for endpoint, versions in registry.deployments().items():
        for version in versions:
            reasons.setdefault(version, []).append(f"runs in {endpoint}")
    return reasons


def _children(registry: Registry, releases: Mapping[str, Release]) -> dict[str, list[str]]:
    """Return the releases made from each version; those of other names as `NAME/VERSION`."""
    children: dict[str, list[str]] = {version: [] for version in releases}
    by_run = {(each.lineage.run, each.lineage.step): version for version, each in releases.items()}
    others = [Registry(registry.root, name) for name in Registry.names(registry.root) if name != registry.name]
    made = dict(releases)
    made |= {f"{other.name}/{release.version}": release for other in others for release in other.releases()}
    for shown, release in made.items():
        for parent in release.lineage.parents:
            name, version = parent.release or (registry.name, by_run.get((parent.run, parent.step)))
            if name == registry.name and version in children and version != shown:
                children[version].append(shown)
    return children


def _keep_parents(reasons: dict[str, list[str]], children: Mapping[str, list[str]]) -> None:
    """Add what kept releases, and all releases of other names, were made from."""
    grown = True
    while grown:
        grown = False
        for version, made in children.items():
            kept = [child for child in made if child in reasons or child not in children]
            if kept and version not in reasons:
                reasons[version], grown = [f"parent of {kept[0]}"], True


def _is_complete(registry: Registry, version: str) -> bool:
    folder = release_folder(registry.root, registry.name, version)
    return (folder / MANIFEST) in folder.list()


def _interrupted(registry: Registry) -> Iterator[str]:
    for mark in removals_folder(registry.root, registry.name).list():
        began = read_record(mark, lambda value: float(value["when"]))
        if abs(time.time() - began) > _ABANDONED_S:  # also of a clock that has been put back
            yield mark.name.removesuffix(".json")


def _delete_files(registry: Registry, version: str) -> None:
    """Delete a marked version: the file that makes it complete, the others, then the mark."""
    folder = release_folder(registry.root, registry.name, version)
    files = sorted(folder.list(), key=lambda each: each.name != MANIFEST)
    for each in files:
        each.store.delete(each.key)
    unmark(registry.root, registry.name, version)
