"""Every command of the documentation is run by a test or marked as not run; its options and keys exist either way."""

import json
import re
import runpy
import shlex
import signal
import sys
from pathlib import Path

import click
import pytest
import yaml
from ray.dashboard.modules.job.cli import submit

from bunny_oracle import checkpoint
from documented_commands import (
    REPOSITORY,
    AsItIs,
    Command,
    Elsewhere,
    commands_of,
    documented_commands,
    documents,
    fate,
)
from warren.cli.convert import convert_parser
from warren.cli.job import config_folders, job_parser, load_job
from warren.cli.score import compare_parser, score_parser
from warren.config import Recipe, Resources, load_config
from warren.evaluate.yaml_benchmark import BenchmarkFile
from warren_serve.endpoint_file import EndpointFile

COMMANDS = documented_commands()
JOBS = [command for command in COMMANDS if command.job is not None]
_INLINE = re.compile(r"`((?:python |ray job submit|jobs/\w+\.py|make )[^`]*)`")
_YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def shown(command: Command) -> str:
    return f"{command.document}: {command.text[:80]}"


def test_commands_are_cut_as_a_shell_reads_them() -> None:
    block = """
export A=1      # a comment
python x.py --set 'a={b: 1}' \\
    --run y
curl z -d '{
  "a": "b # no comment"}'

for name in a b; do
  python x.py $name   # each
done
"""
    assert commands_of(block) == [
        "export A=1",
        "python x.py --set 'a={b: 1}' --run y",
        'curl z -d \'{\n  "a": "b # no comment"}\'',
        "for name in a b; do\n  python x.py $name\ndone",
    ]


def test_there_are_commands_and_each_has_a_fate() -> None:
    assert len(COMMANDS) > 50
    assert [shown(command) for command in COMMANDS if fate(command) is None] == []


def test_what_runs_a_command_exists() -> None:
    named = {found.where for command in COMMANDS if isinstance(found := fate(command), Elsewhere)}
    assert [where for where in named if not (REPOSITORY / where).is_file()] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    inline = [Command(str(path), text) for path in documents() for text in _INLINE.findall(path.read_text())]
    named = {command.words[1] for command in [*COMMANDS, *inline] if command.words[0] == "make"}
    assert named - targets == set()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has the files which the documents tell their readers to write."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "jobs"))
    own = next(text for text in _YAML.findall((REPOSITORY / "docs" / "own-data.md").read_text()))
    (tmp_path / "birds.yaml").write_text(own)
    blocks = _YAML.findall((REPOSITORY / "docs" / "datasets.md").read_text())
    (tmp_path / "my-recipe.yaml").write_text(next(text for text in blocks if "curate:" in text))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_job(name: str, arguments: list[str]) -> None:
    """Parse a job's command line with its own parser, and its recipe and overrides with the real types."""
    module = runpy.run_path(str(REPOSITORY / "jobs" / f"{name}.py"), run_name="job")
    if name == "convert":
        convert_parser("").parse_args(arguments)
        return
    if arguments[:1] in (["score"], ["--list"]):  # of evaluate.py; neither has a recipe
        score_parser().parse_args(arguments[1:] or ["--benchmark=b", "--answers=a", "--reference=r", "--out=o"])
        return
    if arguments[:1] == ["compare"]:
        compare_parser().parse_args(arguments[1:])
        return
    if "parser" in module:
        module["parser"]().parse_args(arguments)
        return
    options = job_parser("", module.get("options"), "preview" in module).parse_args(arguments)
    load_job(options)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("command", JOBS, ids=shown)
def test_the_options_and_keys_of_a_job_exist(command: Command) -> None:
    assert command.job is not None
    name, arguments = command.job
    arguments = [word.replace("$name", "questions") for word in arguments if word not in ("...", "done", "$@")]
    if '"$@"' in command.text:  # as `set --` in the same document says
        arguments = ["--recipe", "smollm2-dinov2", *arguments]
    check_job(name, arguments)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[:3] == ["ray", "job", "submit"]], ids=shown)
def test_ray_takes_the_options_of_a_submission(command: Command) -> None:
    context = submit.make_context("submit", command.words[3:])
    assert context.params["entrypoint"][0] == "python"


@pytest.mark.usefixtures("written")
def test_jobs_that_the_text_names_exist() -> None:
    for document in documents():
        for text in _INLINE.findall(document.read_text()):
            job = Command(document.name, text).job
            if job is None:
                continue
            name, arguments = job
            assert (REPOSITORY / "jobs" / f"{name}.py").is_file(), text
            if arguments and not {"SRC", "DST", "…"} & set(arguments) and name != "convert":
                check_job(name, arguments)


def test_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(SystemExit):
        check_job("pretrain", ["--recipes", "demo"])
    with pytest.raises(click.exceptions.UsageError):
        submit.make_context("submit", ["--working-folder", ".", "--", "python"])


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_the_recipes_and_resources_of_a_document_are_valid(document: Path, tmp_path: Path) -> None:
    for number, text in enumerate(_YAML.findall(document.read_text())):
        file = tmp_path / f"own-{number}.yaml"
        file.write_text(text)
        keys = yaml.safe_load(text)
        if "settings" in keys:
            load_config(EndpointFile, str(file), config_folders("endpoints"))
            continue
        schema = Resources if "num_workers" in keys else BenchmarkFile if "questions" in keys else Recipe
        load_config(schema, str(file), config_folders("recipes"))


def test_the_commands_that_need_no_cluster_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is typed in a folder where its names are real, small things."""
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    (tmp_path / "benchmarks").symlink_to(REPOSITORY / "benchmarks")
    rows = [{"image": f"{n}.png", "caption": f"thing {n}", "source": "a"} for n in range(20)]
    (tmp_path / "PAIRS").mkdir()
    (tmp_path / "PAIRS" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {
        "Bunny-v1_0-3B": "bunny-qwen2",
        "siglip-so400m-patch14-384": "towers/siglip-tiny",
        "adapter": "bunny-lora-qwen2",
        "base": "base-llm-qwen2",
    }
    for name, oracle in names.items():
        (tmp_path / name).symlink_to(checkpoint(oracle))
    for name in ("recipe-1", "recipe-2"):
        (tmp_path / name).symlink_to("converted")  # by the first of them
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPOSITORY / "jobs"))
    texts = dict.fromkeys(command.text for command in COMMANDS if isinstance(fate(command), AsItIs))
    assert len(texts) >= 6
    for text in texts:
        type_python(shlex.split(text), monkeypatch)
    for name in ("converted", "as-bunny", "merged", "averaged"):
        assert (tmp_path / name / "config.json").is_file()


def type_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `python FILE …` or `python -m MODULE …` in this process, which has imported the large libraries."""
    assert words[0] == "python"
    as_module = words[1] == "-m"
    monkeypatch.setattr(sys, "argv", words[2:] if as_module else words[1:])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if as_module:
            monkeypatch.delitem(sys.modules, words[2], raising=False)  # another test may have imported it
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[1], run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, words  # noqa: PT017 - a script need not exit
    finally:
        signal.signal(signal.SIGTERM, handler)
