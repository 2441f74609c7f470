"""Work in pieces, each with a result in storage: what has a result is not done again, in whatever attempt."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from warren.curate.arrays import ArrayFile, Arrays, pack
from warren.storage import Location


@dataclass(frozen=True)
class Workspace:
    """A folder of results, each under a name; a result is there as a whole or not at all."""

    folder: Location

    def __truediv__(self, name: str) -> "Workspace":
        return Workspace(self.folder / name)

    def put(self, name: str, arrays: Arrays) -> None:
        """Write a result."""
        (self.folder / name).put_bytes(pack(arrays))

    def file(self, name: str) -> ArrayFile:
        """Return a result for reading."""
        return ArrayFile(self.folder / name)

    def present(self) -> set[str]:
        """Return the names of the results that are there."""
        return {result.uri.removeprefix(f"{self.folder.uri}/") for result in self.folder.list()}


class Task(Protocol):
    """A pure function of stored things. It pickles, and can be killed and started again anywhere."""

    @property
    def name(self) -> str:
        """The name of its result."""

    def compute(self) -> Arrays:
        """Return the result."""


Runner = Callable[[Workspace, Sequence[Task]], None]
"""Runs tasks in any order, on any machine, and writes their results; returns when all are written."""


def finish(run: Runner, work: Workspace, tasks: Iterable[Task]) -> list[ArrayFile]:
    """Make sure that every task has its result, and return the results in order."""
    every = list(tasks)
    present = work.present()
    missing = [task for task in every if task.name not in present]
    if missing:
        run(work, missing)
    return [work.file(task.name) for task in every]


def run_here(work: Workspace, tasks: Sequence[Task]) -> None:
    """Run tasks in this process, one after the other."""
    for task in tasks:
        work.put(task.name, task.compute())
