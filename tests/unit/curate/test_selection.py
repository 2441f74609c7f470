"""Selections: what is kept of the parents' shards, selections of selections, kills, and bad input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from factories import text_sample, write_dataset
from selecting import (
    ROWS,
    STEPS,
    config_of,
    numbers_of,
    pair,
    samples_of,
    select,
    vectors,
    write_embeddings,
)
from warren.config import CurateConfig
from warren.config.curate import EmbeddingsConfig
from warren.curate.embedding_model import EmbeddingModel
from warren.curate.sample_pieces import Parent, read_row, sample_pieces, stored_shards
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.mixture import samples_per_epoch
from warren.data.stream import BatchReader, DatasetSource, StreamSpec, read_group
from warren.errors import ConfigError, DataError, EmptyDatasetError, ModelError
from warren.storage import Location


def keys_step(tmp_path: Path, numbers: Sequence[int], name: str = "keys.txt") -> dict[str, Any]:
    (tmp_path / name).write_text("\n".join(f"pair-{n:04d}" for n in numbers))
    return {"step": "keys", "allow": str(tmp_path / name)}


@pytest.mark.parametrize("rewrite_below", [0.0, 0.5, 1.0])
def test_a_selection_holds_its_samples_and_copies_what_it_must(
    root: Location, tmp_path: Path, rewrite_below: float
) -> None:
    wanted = [n for n in range(ROWS) if n % 70 < 20 or n % 9 == 0]
    manifest = select(root, None, [keys_step(tmp_path, wanted)], rewrite_below=rewrite_below)
    assert sorted(samples_of(root, "chosen@v1"), key=lambda sample: sample.key) == [pair(n) for n in wanted]
    own = [shard for shard in manifest.shards if not shard.dataset]
    assert bool(own) == (rewrite_below > 0)
    assert all(set(shard.masks) == {""} for shard in manifest.shards if shard.dataset) == (rewrite_below == 1.0)
    assert read_manifest(root, "chosen@v1") == manifest
    assert manifest.selection["parents"] == {"pairs@v1": read_manifest(root, "pairs@v1").digest}
    assert manifest.selection["counts"] == [{"step": "keys", "before": ROWS, "after": len(wanted)}]


def test_selections_compose_over_several_datasets(root: Location, tmp_path: Path) -> None:
    write_dataset(root, "texts", [text_sample(n) for n in range(30)])
    first = [n for n in range(ROWS) if n % 4]
    select(root, None, [keys_step(tmp_path, first)], rewrite_below=0.8)
    second = [*range(1, ROWS, 2), *range(0, ROWS, 5)]
    select(root, None, [keys_step(tmp_path, second, "b")], name="again", datasets=["chosen@v1"], rewrite_below=0.3)
    assert sorted(numbers_of(root, "again@v1")) == sorted(set(first) & set(second))
    shards = read_manifest(root, "again@v1").shards
    assert {shard.dataset for shard in shards} <= {"", "pairs@v1", "chosen@v1"}
    for shard in shards:  # a selection of a selection reads the shards themselves
        assert all(group.mask == "" or group.dataset for group in map(shard.group, range(len(shard.row_groups))))
    together = select(root, None, [{"step": "sample", "samples": 100}], name="mix", datasets=["again@v1", "texts@v1"])
    kinds = {sample.key.split("-")[0] for sample in samples_of(root, "mix@v1")}
    assert (together.rows, kinds) == (100, {"pair", "text"})


def test_training_reads_every_sample_of_a_selection_once(root: Location, tmp_path: Path, tiny_inputs: Any) -> None:
    from warren.data.stream import Encoding

    wanted = [n for n in range(ROWS) if n % 5 not in (0, 3)]
    manifest = select(root, None, [keys_step(tmp_path, wanted)], rewrite_below=0.55)
    inputs, tokenizer = tiny_inputs
    source = DatasetSource(
        dataset_folder(root, "chosen@v1"), manifest, samples_per_epoch([_component()], [manifest.rows])[0]
    )
    spec = StreamSpec((source,), Encoding(inputs, tokenizer, 64), 8, 1, 64, epochs=1)
    reader = BatchReader([source.folder], spec.encoding, 8, None)  # type: ignore[arg-type]
    read = []
    for each in spec.reads():
        for rows in each.task.batches(8):
            for row in rows:
                group, first = each.groups[row.slice], each.task.slices[row.slice].first_row
                table = read_group(source.folder, group, row.row, 1, ["key"])
                read.append(table["key"][0].as_py())
                assert row.row >= first
        assert all(not bad for _, bad in reader.encode(type(each).from_row(each.to_row())))
    assert sorted(read) == [f"pair-{n:04d}" for n in wanted]


def _component() -> Any:
    from warren.config import MixtureComponent

    return MixtureComponent(name="chosen@v1")


@pytest.mark.parametrize("rows_per_piece", [1, 20, 75, 1000])
def test_pieces_are_cut_between_row_groups_and_hold_every_row_once(root: Location, rows_per_piece: int) -> None:
    shards = stored_shards([Parent("pairs@v1", dataset_folder(root, "pairs@v1"), read_manifest(root, "pairs@v1"))])
    pieces = sample_pieces(shards, rows_per_piece)
    rows = [[row for row, _ in piece.records(["key"])] for piece in pieces]
    assert [row for each in rows for row in each] == list(range(ROWS))
    assert [(piece.first, piece.stop) for piece in pieces] == [(each[0], each[-1] + 1) for each in rows]
    assert all(rows_per_piece <= len(each) < rows_per_piece + 8 for each in rows[:-1])
    assert read_row(pieces, 71, ["key"]) == {"key": "pair-0071"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"nan": 3}, DataError, r"of 300 embeddings 3 hold NaN or infinity and 0 are zero"),
        ({"zero": 2}, DataError, r"of 300 embeddings 0 hold NaN or infinity and 2 are zero"),
        ({"short": 4}, DataError, r"\d of \d+ embeddings of 'image_embedding' do not have 16 numbers"),
        ({"repeat": 1}, DataError, r"1 keys of the embeddings repeat \(such as 'pair-0000'\), 1 samples have no embed"),
        (
            {"unknown": 2},
            DataError,
            r"2 samples have no embedding \(such as 'pair-\d+'\), 2 embeddings are of no sample",
        ),
        ({"missing": 1}, DataError, r"1 of \d+ values of 'key' are missing"),
        ({"text": 8}, DataError, r"image embeddings have 16 numbers and text embeddings 8"),
        ({"integers": 1}, DataError, r"expected a list of float16 or float32 a row"),
    ],
)
def test_unusable_embeddings_are_counted(
    root: Location, tmp_path: Path, changes: dict[str, int], error: type[Exception], message: str
) -> None:
    image, text = vectors()
    keys: list[str | None] = [f"pair-{n:04d}" for n in range(ROWS)]
    ((kind, count),) = changes.items()
    lists = [list(map(float, row)) for row in image]
    for n in range(count):
        lists[n] = {"nan": [float("nan")] * 16, "zero": [0.0] * 16, "short": lists[n][:9]}.get(kind, lists[n])
        if kind in ("repeat", "unknown", "missing"):
            keys[n + 1] = {"repeat": "pair-0000", "unknown": f"who-{n}"}.get(kind)
    columns: dict[str, Any] = {"key": keys, "image_embedding": pa.array(lists, pa.list_(pa.float32()))}
    if kind == "text":
        columns["text_embedding"] = list(text[:, :8])
    if kind == "integers":
        columns["image_embedding"] = pa.array([[1, 2]] * ROWS, pa.list_(pa.int64()))
    with pytest.raises(error, match=message):
        select(root, write_embeddings(tmp_path / "bad", **columns), STEPS)
    assert not (Path(root.uri) / "datasets/chosen/v1/manifest.json").exists()


def test_a_step_that_keeps_nothing_is_named(root: Location, embeddings: Path) -> None:
    with pytest.raises(EmptyDatasetError, match=r"curate.steps.1 \(caption\) keeps none of 300 samples"):
        select(root, None, [{"step": "sample", "samples": 1000}, {"step": "caption", "min_words": 99}])
    band = {"step": "rank_band", "by": "clip_score", "band": [0.5, 0.501]}
    with pytest.raises(EmptyDatasetError, match=r"curate.steps.0 \(rank_band\) keeps none of 300"):
        select(root, embeddings, [band])


def test_unmatched_samples_can_be_left_out(root: Location, tmp_path: Path) -> None:
    keys = [f"pair-{n:04d}" if n >= 20 else f"other-{n}" for n in range(ROWS)]
    folder = write_embeddings(tmp_path / "some", key=keys)
    options: dict[str, Any] = {"embeddings": {"path": str(folder), "unmatched": "drop"}}
    manifest = select(root, None, [{"step": "rank_band", "by": "clip_score", "band": [0.0, 1.0]}], **options)
    assert manifest.rows == ROWS - 20


def test_clip_retrievals_folders_give_what_parquet_gives(root: Location, embeddings: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    image, text = vectors()
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "retrieval" / name).mkdir(parents=True)
    for number, part in enumerate((slice(0, 100), slice(100, 300))):
        np.save(tmp_path / f"retrieval/img_emb/img_emb_{number}.npy", image[part])
        np.save(tmp_path / f"retrieval/text_emb/text_emb_{number}.npy", text[part])
        keys = [f"pair-{n:04d}" for n in range(ROWS)][part]
        pq.write_table(pa.table({"key": keys}), tmp_path / f"retrieval/metadata/metadata_{number}.parquet")
    band = [{"step": "rank_band", "by": "clip_score", "band": [0.25, 0.75]}]
    select(root, embeddings, band)
    select(root, tmp_path / "retrieval", band, name="other")
    assert numbers_of(root, "other@v1") == numbers_of(root, "chosen@v1")
    np.save(tmp_path / "retrieval/text_emb/text_emb_1.npy", text[100:299])
    with pytest.raises(
        DataError, match=r"unequal length \(metadata_1.parquet: 200, img_emb_1.npy: 200, text_emb_1.npy"
    ):
        select(root, tmp_path / "retrieval", band, name="third")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"step": "near_duplicates"}], "put a 'cluster' step before it"),
        ([{"step": "rank_band", "by": "clip_score", "band": [0.6, 0.4]}], "keeps nothing"),
        ([{"step": "cluster", "assigned": True}], "needs 'embeddings.cluster_column'"),
        ([{"step": "duplicates", "max_distance": 2}], "'max_distance' is for 'of: pixels'"),
        ([{"step": "keys"}], "give exactly one of 'allow' and 'deny'"),
    ],
)
def test_recipes_that_cannot_be_done_are_refused(tmp_path: Path, steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, steps)
    with pytest.raises(ValueError, match="needs embeddings"):
        config_of(None, [{"step": "cluster"}])


def test_what_only_costs_does_not_change_what_a_selection_is(tmp_path: Path) -> None:
    assert isinstance(config_of(tmp_path, STEPS), CurateConfig)
    plain, other = config_of(tmp_path, STEPS), config_of(tmp_path, STEPS, task_memory_mib=7, name="b")
    assert plain.content_options == other.content_options


def test_a_function_that_is_not_there_is_named(root: Location) -> None:
    with pytest.raises(ConfigError, match=r"function 'nowhere:takes' cannot be loaded"):
        select(root, None, [{"step": "function", "call": "nowhere:takes"}])


def test_a_model_without_a_text_side_is_named(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=16, **size)).save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(CLIPVisionModel\) has no text side .* set embeddings.text_column to null"):
        EmbeddingModel(EmbeddingsConfig(model=str(tmp_path)))
    with pytest.raises(ModelError, match="cannot be loaded"):
        EmbeddingModel(EmbeddingsConfig(model=str(tmp_path / "nowhere")))
    EmbeddingModel(EmbeddingsConfig(model=str(tmp_path), text_column=None))
