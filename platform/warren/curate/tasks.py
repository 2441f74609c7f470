"""Tasks with stored results: a task that has its result is never run again, whichever attempt ran it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from warren.curate.array_files import ArrayFile, Arrays, pack
from warren.storage import Location


@dataclass(frozen=True)
class Workspace:
    """A folder of named results; a result is complete or does not exist."""

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
        """Return the names of all results."""
        return {result.uri.removeprefix(f"{self.folder.uri}/") for result in self.folder.list()}


class Task(Protocol):
    """A pure function of stored data. It pickles, and a killed task may start again on any machine."""

    @property
    def name(self) -> str:
        """The name of its result."""

    def compute(self) -> Arrays:
        """Return the result."""


@dataclass(frozen=True)
class NumberedTask:
    """A task whose result is named by its number."""

    number: int

    @property
    def name(self) -> str:
        """The name of its result."""
        return f"{self.number:06d}"


Runner = Callable[[Workspace, Sequence[Task]], None]
"""Runs tasks in any order, on any machine, and writes their results; returns when all are written."""


def finish(run: Runner, work: Workspace, tasks: Iterable[Task]) -> list[ArrayFile]:
    """Run the tasks that have no result yet, and return all results in order."""
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
