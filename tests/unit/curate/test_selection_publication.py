"""The last files of a selection: a kill between them is harmless, and a job that comes second writes none of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories import text_sample, write_dataset
from selecting import files, numbers_of, select
from warren.curate import pipeline, publication
from warren.curate.tasks import Task, Workspace, run_here
from warren.data.manifest import dataset_folder, read_manifest, write_about
from warren.errors import DataError, NotFoundError
from warren.storage import Location

SAMPLE: list[dict[str, Any]] = [{"step": "sample", "samples": 60, "seed": 2}]


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("before", ["write_manifest", "write_about", "write_card", "_tidy"])
def test_killed_before_any_of_the_last_files_it_ends_in_the_same(
    root: Location, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    whole = select(root, None, SAMPLE, name="whole")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline if before == "write_manifest" else publication, before, die)
        with pytest.raises(Killed):
            select(root, None, SAMPLE, name="killed")
    if before == "write_manifest":
        with pytest.raises(NotFoundError):
            read_manifest(root, "killed@v1")
    else:
        assert replace(read_manifest(root, "killed@v1"), name="whole") == whole
        assert len(numbers_of(root, "killed@v1")) == 60
    select(root, None, SAMPLE, name="killed")
    made, expected = (files(Path(root.uri) / f"datasets/{name}/v1") for name in ("killed", "whole"))
    assert {path: data.replace(b"killed", b"whole") for path, data in made.items()} == expected
    assert "about.json" in made


def test_a_job_that_comes_second_leaves_licence_and_origin_alone(root: Location) -> None:
    texts = write_dataset(root, "texts", [text_sample(n) for n in range(30)])
    write_about(dataset_folder(root, "texts@v1"), replace(texts, licence="another licence"))
    done: list[bool] = []

    def meanwhile(work: Workspace, tasks: Sequence[Task]) -> None:
        if not done:
            done.append(True)
            select(root, None, SAMPLE)
        run_here(work, tasks)

    with pytest.raises(DataError, match="exists with 60 samples"):
        select(root, None, [{"step": "sample", "samples": 9}], meanwhile, datasets=["texts@v1"])
    assert done
    about = (dataset_folder(root, "chosen@v1") / "about.json").read_json()
    assert about["licence"] == read_manifest(root, "pairs@v1").licence != "another licence"


def test_embeddings_of_other_lengths_in_another_file_are_counted(root: Location, tmp_path: Path) -> None:
    keys = [f"pair-{n:04d}" for n in range(300)]
    (tmp_path / "mixed").mkdir()
    for name, part, width in (("a", slice(0, 200), 16), ("b", slice(200, 300), 12)):
        vectors = list(np.ones((len(keys[part]), width), np.float32))
        columns = {"key": keys[part], "image_embedding": vectors, "text_embedding": vectors}
        pq.write_table(pa.table(columns), tmp_path / f"mixed/{name}.parquet")
    with pytest.raises(DataError, match="embeddings of unequal length: 12, 16 numbers"):
        select(root, tmp_path / "mixed", [{"step": "cluster", "num_clusters": 2}])
    assert not (Path(root.uri) / "datasets/chosen/v1/manifest.json").exists()


def test_clusters_that_embeddings_cannot_fill_are_named(root: Location, tmp_path: Path) -> None:
    keys = [f"pair-{n:04d}" for n in range(300)]
    vectors = list(np.eye(3, 16, dtype=np.float32)[np.arange(300) % 3])
    (tmp_path / "few").mkdir()
    columns = {"key": keys, "image_embedding": vectors, "text_embedding": vectors}
    pq.write_table(pa.table(columns), tmp_path / "few/a.parquet")
    with pytest.raises(
        DataError, match="5 clusters are asked for, but there are 3 different embeddings in 300 samples"
    ):
        select(root, tmp_path / "few", [{"step": "cluster", "num_clusters": 5}])
