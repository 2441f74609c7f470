"""Several attempts at one selection, and several jobs on one version: kills, repeats, and two at a time."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selecting import STEPS, files, select
from warren.curate.tasks import Runner, Task, Workspace, run_here
from warren.data.manifest import Manifest
from warren.errors import DataError
from warren.storage import Location


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def test_killed_at_any_moment_it_ends_in_the_same_bytes(root: Location, embeddings: Path, tmp_path: Path) -> None:
    def options(name: str) -> dict[str, Any]:
        return {"rewrite_below": 0.4, "datasets": ["pairs@v1"], "name": name}

    steps = [*STEPS[:3], {"step": "duplicates", "of": "pixels"}, *STEPS[3:]]
    done: list[str] = []

    def counting(work: Workspace, tasks: Sequence[Task]) -> None:
        for task in tasks:
            run_here(work, [task])
            done.append(f"{work.folder}/{task.name}")

    select(root, embeddings, steps, counting, **options("whole"))
    whole = files(Path(root.uri) / "datasets/whole/v1")
    assert "manifest.json" in whole
    total, draw = len(done), random.Random(7)
    assert total > 20
    for attempt in range(3):
        name, moments = f"killed-{attempt}", sorted(draw.sample(range(total), 3))
        done.clear()
        for moment in moments:

            def dying(work: Workspace, tasks: Sequence[Task], moment: int = moment) -> None:
                for task in tasks:
                    if len(done) >= moment:
                        raise Killed
                    counting(work, [task])

            with pytest.raises(Killed):
                select(root, embeddings, steps, dying, **options(name))
            assert not (Path(root.uri) / f"datasets/{name}/v1/manifest.json").exists()
        select(root, embeddings, steps, counting, **options(name))
        assert len(done) == len(set(done)) == total  # nothing is done twice
        found = files(Path(root.uri) / f"datasets/{name}/v1")
        assert found.keys() == whole.keys()
        for path, data in whole.items():
            assert found[path].replace(name.encode(), b"whole") == data, path


def test_a_finished_version_is_kept_and_another_selection_is_refused(root: Location, embeddings: Path) -> None:
    manifest = select(root, embeddings, STEPS)

    def refuse(work: Workspace, tasks: Sequence[Task]) -> None:
        raise AssertionError("nothing is to be done")

    assert select(root, embeddings, STEPS, refuse) == manifest
    with pytest.raises(DataError, match=r"exists with 60 samples .* give the new selection another version"):
        select(root, embeddings, STEPS[:-1])


@pytest.mark.parametrize("moment", [0, 15])
def test_of_two_jobs_on_one_version_the_first_to_end_wins(root: Location, embeddings: Path, moment: int) -> None:
    other = [*STEPS[:-1], {"step": "sample", "samples": 50}]
    whole: dict[str, Manifest] = {}
    number = 0

    def meanwhile(steps: list[dict[str, Any]], name: str) -> Runner:
        def run(work: Workspace, tasks: Sequence[Task]) -> None:
            nonlocal number
            for task in tasks:
                if number == moment:
                    whole[name] = select(root, embeddings, steps, name=name)
                number += 1
                run_here(work, [task])

        return run

    assert select(root, embeddings, STEPS, meanwhile(STEPS, "same"), name="same") == whole["same"]
    number = 0
    with pytest.raises(DataError, match=r"other@v1|other/v1 exists with 50 samples .* another version"):
        select(root, embeddings, STEPS, meanwhile(other, "other"), name="other")
    alone = select(root, embeddings, other, name="alone")
    assert replace(whole["other"], name="alone") == alone
    of_other, of_alone = (files(Path(root.uri) / f"datasets/{name}/v1") for name in ("other", "alone"))
    assert {path: data.replace(b"other@", b"alone@") for path, data in of_other.items() if path != "manifest.json"} == {
        path: data for path, data in of_alone.items() if path != "manifest.json"
    }
