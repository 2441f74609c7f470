"""`jobs/ingest.py --dry-run`: samples as they would be trained on, counts and reasons, without cluster or storage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import raw_pairs
from warren.config import Recipe, load_config
from warren.errors import ConfigError
from warren.storage import Location
from warren.train.sample_preview import preview_samples


def recipe(repository: Path, config: object, *overrides: str) -> Recipe:
    values = json.loads(config.model_dump_json(exclude_none=True))  # type: ignore[attr-defined]
    base = load_config(Recipe, "demo", [repository / "jobs/recipes"], overrides)
    return base.model_copy(update={"ingest": type(config)(**values)})


def test_it_counts_what_ingest_would_do_and_shows_what_is_learnt(repository: Path, tmp_path: Path) -> None:
    config = raw_pairs.write_bunny_json(tmp_path / "raw", 11)
    text = preview_samples(recipe(repository, config), 500, Location(str(tmp_path / "page")))
    assert text.startswith("pairs@v1: 23 samples read, 12 of them quarantined\n")
    assert "  1 × the image is empty (… bytes)" in text
    assert "  pairs.json#junk junk.jpg: 8 bytes that are no known image format\n" in text
    assert text.endswith(f"samples are shown in {tmp_path}/page/index.html")
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("<article>") == 10
    assert page.count('src="data:image/png;base64,') == 10
    assert 'USER: <span class="image">64 image tokens</span>\nwhich colour? 0 ASSISTANT:<mark> it is red ü' in page
    assert "<h3>Quarantined (12 of 12 shown)</h3>" in page
    assert "&lt;image&gt;" not in page.split("<h3>")[0]


def test_it_reads_no_more_than_the_limit_and_says_what_training_would_cut(repository: Path, tmp_path: Path) -> None:
    config = raw_pairs.write_webdataset(tmp_path / "raw", 30)
    (tmp_path / "raw/00000.tar").write_bytes(b"junk" * 1000)
    short = recipe(repository, config, "finetune.max_length_tokens=85", "pretrain.max_length_tokens=85")
    text = preview_samples(short, 7, Location(str(tmp_path / "page")))
    assert text.startswith("pairs@v1: 7 samples read, 2 of them quarantined\n")
    assert "  in training 5 are cut to 85 tokens, 0 cannot be used\n" in text, text
    assert "  note: " in text
    assert "00000.tar is damaged" in text


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(repository: Path, tmp_path: Path, limit: int) -> None:
    config = raw_pairs.write_csv(tmp_path / "raw", 3)
    with pytest.raises(ConfigError, match="at least 1 sample"):
        preview_samples(recipe(repository, config), limit, Location(str(tmp_path)))


def test_the_job_looks_without_storage_and_ingests_only_whole_sources(repository: Path, tmp_path: Path) -> None:
    raw_pairs.write_csv(tmp_path / "raw", 3)
    columns = "columns: {image: url, caption: text}"
    values = f"ingest={{source: table, name: x, path: {tmp_path}/raw, images: {tmp_path}/raw/images, {columns}}}"
    job = [sys.executable, "jobs/ingest.py", "--set", values, "--limit", "2"]
    environment = {"PATH": "", "WARREN_STORAGE": "relative"}
    look = subprocess.run(
        [*job, "--dry-run", "--report", str(tmp_path / "page")],
        cwd=repository, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert look.stdout.startswith("x@v1: 2 samples read, 0 of them quarantined")
    assert (tmp_path / "page/index.html").is_file()


def test_ten_samples_come_from_all_of_those_read(repository: Path, tmp_path: Path) -> None:
    config = raw_pairs.write_bunny_json(tmp_path / "raw", 40)
    preview_samples(recipe(repository, config), 500, Location(str(tmp_path / "page")))
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("<article>") == 10
    assert "which colour? 36 " in page
