"""Golden cases: the questions that fit a model, what storage keeps of them, and when they are made anew."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from warren.data.golden_cases import CASES_FILE, GOLDEN_FOLDER, GoldenCases
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK
from warren.errors import ReleaseError
from warren.inference.testing import save_random_model
from warren.release import Lineage, fetch_release, publish, read_release, release_folder
from warren.storage import FileEntry, Location, StoredFiles, digest_file
from warren.train.golden_maker import make_cases

NUM_CASES = 8


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("golden-model")
    save_random_model(folder)
    return folder


@pytest.fixture(scope="module")
def golden(model_folder: Path) -> GoldenCases:
    return make_cases(model_folder, "digest")


def copy(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a model and change its inputs."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    inputs = json.loads((target / "warren_inputs.json").read_text())
    change(inputs)
    (target / "warren_inputs.json").write_text(json.dumps(inputs))
    return target


def test_the_cases_ask_about_everything_that_can_go_wrong(model_folder: Path, golden: GoldenCases) -> None:
    by_name = {case.name: case for case in golden.cases}
    assert len(by_name) == NUM_CASES
    assert {len(case.images) for case in golden.cases} == {0, 1, 2}
    assert max(len(case.turns) for case in golden.cases) == 3
    assert not by_name["other scripts"].turns[0].text.isascii()
    tokenizer = tokenizer_from_json((model_folder / "tokenizer.json").read_text())
    last = max(tokenizer.get_vocab(with_added_tokens=False).values())
    assert max(by_name["end of the vocabulary"].prompt_ids) > last - 30
    for case in golden.cases:
        assert list(case.prompt_ids).count(2) == 16 * len(case.images), "16 image tokens of id 2 for an image"
        assert len(case.steps) == 8
    assert (golden.dtype, golden.eos_token_id, golden.vocab_size) == ("float32", 0, tokenizer.get_vocab_size())
    assert len({case.steps for case in golden.cases}) == NUM_CASES


CHAT = (
    "{% for turn in messages %}[{{ turn.role }}] {{ turn.content }}"
    "{% if turn.role == 'assistant' %}<|endoftext|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"  # with a space, which " yes" takes up
)


@pytest.mark.parametrize("template", ["brief", "bunny", "native"])
def test_a_prompt_made_as_training_makes_it_is_what_serving_encodes(
    tmp_path: Path, template: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_random_model(tmp_path / "model", texts=["say yes to all", "no. yes"] * 9)
    folder = copy(
        tmp_path / "model", tmp_path / template, lambda inputs: inputs.update(template=template, chat_template=CHAT)
    )
    inputs = Inputs.load(folder)
    tokenizer = tokenizer_from_json((folder / "tokenizer.json").read_text())
    cases = make_cases(folder, "digest").cases
    assert len(cases) == NUM_CASES
    for case in cases:
        assert inputs.encode_prompt(case.turns, tokenizer, len(case.images)).tolist() == list(case.prompt_ids)
    assert ("is a part of the answer" in caplog.text) == (template == "native")


def test_a_template_without_questions_is_asked_about_single_images(model_folder: Path, tmp_path: Path) -> None:
    plain = copy(model_folder, tmp_path / "plain", lambda inputs: inputs.update(template="plain"))
    cases = make_cases(plain, "digest").cases
    assert [case.name for case in cases] == ["wide image", "tall image", "grey image"]
    assert {case.prompt_ids for case in cases} == {(2,) * 16}


def test_a_chat_template_that_knows_one_turn_leaves_the_others_out(model_folder: Path, tmp_path: Path) -> None:
    """It drops earlier turns, which training refuses."""
    source = (
        "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}Q: {{ asked[-1].content }} A:"
        "{% if messages[-1].role == 'assistant' %} {{ messages[-1].content }}<|endoftext|>{% endif %}"
    )
    native = copy(
        model_folder, tmp_path / "native", lambda inputs: inputs.update(template="native", chat_template=source)
    )
    names = [case.name for case in make_cases(native, "digest").cases]
    assert len(names) == NUM_CASES - 1
    assert "several turns" not in names


def test_questions_that_do_not_fit_the_model_are_left_out(tmp_path: Path) -> None:
    save_random_model(tmp_path / "short", max_position_embeddings=50)
    names = [case.name for case in make_cases(tmp_path / "short", "digest").cases]
    assert names == ["wide image", "grey image", "no image", "end of the vocabulary"]
    save_random_model(tmp_path / "shorter", max_position_embeddings=16)
    with pytest.raises(ReleaseError, match="no golden case fits the model's context"):
        make_cases(tmp_path / "shorter", "digest")


def test_the_type_of_the_weights_is_kept_and_the_cases_are_computed_in_float32(
    model_folder: Path, golden: GoldenCases, tmp_path: Path
) -> None:
    half = copy(model_folder, tmp_path / "half", lambda _: None)
    weights = {name: weight.bfloat16() for name, weight in load_file(half / "model.safetensors").items()}
    save_file(weights, half / "model.safetensors", {"format": "pt"})
    cases = make_cases(half, "digest")
    assert (cases.dtype, golden.rounding) == ("bfloat16", 0.0)
    assert 1e-3 < cases.rounding < 2.0
    rounded, exact = (each.cases[0].steps[0].logprobs[0] for each in (cases, golden))
    assert rounded != exact
    assert torch.tensor(rounded).bfloat16().item() != rounded, "computed in more bits than the weights have"


def test_a_folder_that_does_not_load_has_no_cases(model_folder: Path, tmp_path: Path) -> None:
    broken = copy(model_folder, tmp_path / "broken", lambda _: None)
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ReleaseError, match="does not load"):
        make_cases(broken, "digest")


def test_a_release_carries_its_cases(
    model_folder: Path, golden: GoldenCases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARREN_CACHE", str(tmp_path / "cache"))
    root = Location.parse(str(tmp_path / "store"))
    folder = release_folder(root, "tiny", "v1")
    files = tuple(FileEntry(path.name, *digest_file(path)) for path in sorted(model_folder.iterdir()))
    model = StoredFiles(Location.parse(str(model_folder)), files)
    made = []

    def write(_: StoredFiles, target: Location) -> tuple[FileEntry, ...]:
        made.append(target)
        return golden.store(target)

    publish(root, "tiny", "v1", model, Lineage(), {}, write)
    for golden_writer in (write, None):  # again, also by a job that makes no cases: nothing changes
        publish(root, "tiny", "v1", model, Lineage(), {}, golden_writer)
    assert made == [folder]
    assert sorted(e.path for e in read_release(folder).files if e.path.startswith(GOLDEN_FOLDER)) == sorted(
        golden.files()
    )
    for weights in (True, False):
        local = tmp_path / f"local-{weights}"
        fetch_release(folder.uri, local, weights=weights)
        fetched = GoldenCases.load(local)
        assert fetched is not None
        assert fetched.files() == golden.files()


def test_of_two_jobs_that_publish_the_same_the_first_one_s_cases_stay(golden: GoldenCases, tmp_path: Path) -> None:
    folder = Location.parse(str(tmp_path / "v1"))
    first = golden.store(folder)
    other_machine = replace(golden, cases=golden.cases[:-1])
    assert set(other_machine.store(folder)) == set(first)
    local = GoldenCases.load(tmp_path / "v1")
    assert local is not None
    assert len(local.cases) == NUM_CASES


@pytest.mark.parametrize("left", [b"half a fi", None])
def test_cases_that_a_dead_attempt_left_are_replaced(golden: GoldenCases, tmp_path: Path, left: bytes | None) -> None:
    """Of another model, or not whole."""
    folder = Location.parse(str(tmp_path / "v1"))
    if left is None:
        replace(golden, model="another").store(folder)
    else:
        (folder / CASES_FILE).put_bytes(left)
    entries = golden.store(folder)
    assert {entry.path for entry in entries} == set(golden.files())
    assert (folder / CASES_FILE).read_bytes() == golden.files()[CASES_FILE]
    assert IMAGE_MARK in golden.files()[CASES_FILE].decode()
