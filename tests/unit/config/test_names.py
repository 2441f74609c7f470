"""Every name that becomes a part of a path is a name, at every entry."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from warren.cli.job import job_parser, load_job
from warren.config import Recipe, check_name, load_config, split_dataset
from warren.data.manifest import dataset_folder
from warren.errors import ConfigError
from warren.release import move_alias, read_alias, release_folder
from warren.storage import Location
from warren.train.run import Run

FOLDERS = [Path(__file__).parents[3] / "jobs" / "recipes"]
ROOT = Location("/nowhere")
ESCAPES = [
    "../../escape",
    "my run/../../x",
    "a/b",
    "/abs",
    "..",
    ".",
    ".hidden",
    "-x",
    "a\\b",
    "a b",
    "a\n",
    "é",
    "x\0",
    "x" * 101,
]
NAMES = ["a", "v1", "2024-01-01", "1.0", "Bunny_695K", "easy-vqa-train", "x" * 100]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert check_name(name) == name
    assert split_dataset(f"{name}@{name}") == (name, name)


FIELDS = [
    "name={}",
    "ingest.name={}",
    "ingest.version={}",
    "release.name={}",
    "pretrain.dataset={}@v1",
    "pretrain.dataset=a@{}",
    "finetune.datasets=[{{name: {}}}]",
    "finetune.validation={{dataset: {}}}",
    "evaluate.dataset={}@v1",
    "average={{first: {}, second: b, first_weight: 0.5}}",
    "average={{first: a, second: {}, first_weight: 0.5}}",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_what_is_no_name_is_refused_at_every_entry(name: str) -> None:
    quoted = '"' + name.replace("\\", "\\\\").replace("\n", "\\n").replace("\0", "\\0") + '"'
    for field in FIELDS:
        value = field.format(quoted)
        if field.count("@"):  # the quotes go around the whole reference
            value = field.format(quoted.strip('"')).replace("=", '="', 1) + '"'
        with pytest.raises(ConfigError, match=r"is not a name|expected name@version"):
            load_config(Recipe, "demo", FOLDERS, [value])
    calls: list[Any] = [
        lambda: Run.of(ROOT, name),
        lambda: dataset_folder(ROOT, f"{name}@v1"),
        lambda: dataset_folder(ROOT, f"a@{name}"),
        lambda: release_folder(ROOT, name, "v1"),
        lambda: release_folder(ROOT, "a", name),
        lambda: read_alias(ROOT, name, "stable"),
        lambda: read_alias(ROOT, "a", name),  # type: ignore[arg-type]
        lambda: move_alias(ROOT, "a", "stable", name, None),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match="is not a name"):
            call()


@pytest.mark.parametrize("option", ["--run", "--from-run", "--first", "--second"])
def test_options_that_name_runs_are_checked_before_anything_starts(option: str) -> None:
    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(option)

    parser = job_parser("", extend)
    with pytest.raises(ConfigError, match=rf"{option} '\.\./x' is not a name"):
        load_job(parser.parse_args([f"{option}=../x"]))
