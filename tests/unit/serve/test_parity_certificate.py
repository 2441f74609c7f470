"""The parity certificate: an engine that differs from the training side in anything is refused before it answers."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bunny_oracle import checkpoint
from warren.data import images as image_module
from warren.data.golden_cases import CASES_FILE, GoldenCases
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.errors import ReleaseError, UnsafePathError
from warren.inference import EngineOptions, GenerationRequest, TokenDelta
from warren.inference.parity import FLOAT32_BOUND, GPU_FLOAT32_BOUND, ROUNDINGS, cases_within, logprob_bound
from warren.inference.testing import ScriptedEngine, save_random_model
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import import_bunny, load_bundle
from warren.release import Lineage, Release
from warren.train.golden_maker import make_cases
from warren_serve.backend import LocalBackend
from warren_serve.image_decoder import ImageDecoder
from warren_serve.parity import check_engine, read_cases
from warren_serve.service import load_backend, open_service
from warren_serve.settings import ServeSettings

RELEASE = Release("tiny", "v1", 1_700_000_000, Lineage(), {}, ())
SETTINGS = ServeSettings.parse({"release": "s3://b/releases/tiny/v1", "num_slots": 2})
NUM_CASES = 8
LAYER = "model.layers.1"
Change = Callable[[Path], None]


class DecoderHere(ImageDecoder):
    """Decodes in this process, where a test can change the code."""

    def __init__(self) -> None:
        super().__init__(0, 10_000, 5.0)

    def pixels(self, inputs: Inputs, images: Sequence[bytes], params: Sequence[str]) -> np.ndarray:
        return inputs.pixels(tuple(images))


def edit(folder: Path, file: str, change: Callable[[Any], None]) -> None:
    value = json.loads((folder / file).read_text())
    change(value)
    (folder / file).write_text(json.dumps(value))


def write_cases(folder: Path) -> GoldenCases:
    golden = make_cases(folder, "digest")
    for path, data in golden.files().items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    return golden


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose channels have different means, whose images are padded, and that has a BOS; with its cases."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("certified")
    save_random_model(folder)

    def tell_apart(inputs: Any) -> None:
        inputs["image"] |= {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "padding": True}
        inputs["tokens"]["bos_token_id"] = inputs["tokens"]["pad_token_id"]

    edit(folder, "warren_inputs.json", tell_apart)
    write_cases(folder)
    return folder


def check(folder: Path, max_context_tokens: int = 256) -> float:
    """Check the cases of a folder on the real scheduler in this process, and return the largest difference."""
    model, inputs, tokenizer_json = load_bundle(folder)
    tokenizer = tokenizer_from_json(tokenizer_json)
    scheduler = Scheduler(model, inputs, tokenizer, EngineOptions(num_slots=2, prefill_budget_tokens=40))

    def generate(request: GenerationRequest) -> list[TokenDelta]:
        scheduler.add(0, request)
        events = []
        while scheduler.has_work:
            events += [event for _, event in scheduler.step()]
        return events  # type: ignore[return-value]

    engine = ScriptedEngine(generate, inputs, tokenizer, max_context_tokens=max_context_tokens)
    backend = LocalBackend(engine, "v1", SETTINGS, DecoderHere())
    golden = GoldenCases.load(folder)
    assert golden is not None
    try:
        report = check_engine(golden, backend, SETTINGS)
    finally:
        backend.close()
    assert (report.num_cases, report.num_left_out) == (NUM_CASES, 0)
    return report.largest_difference


def inputs_with(part: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        edit(folder, "warren_inputs.json", lambda inputs: inputs[part].update(values))

    return change


def other_template(folder: Path) -> None:
    edit(folder, "warren_inputs.json", lambda inputs: inputs.update(template="bunny"))


def config_with(**values: Any) -> Change:
    return lambda folder: edit(folder, "config.json", lambda config: config.update(values))


def other_rotary_base(folder: Path) -> None:
    edit(folder, "config.json", lambda config: config["text_config"]["rope_parameters"].update(rope_theta=500.0))


def weights_with(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Change the matrices whose names contain `part`."""

    def write(folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = load_file(file)
        chosen = [name for name, weight in weights.items() if part in name and weight.ndim > 1]
        assert chosen, f"no weights named {part}"
        save_file(weights | {name: change(weights[name]).contiguous() for name in chosen}, file, {"format": "pt"})

    return write


def steps_later(weight: torch.Tensor) -> torch.Tensor:
    """Move a weight as a few optimizer steps do."""
    return weight + 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def without_adapter(weight: torch.Tensor) -> torch.Tensor:
    """Take a matrix of rank 1 away, as if LoRA's had not been merged."""
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(size, generator=generator) for size in weight.shape)
    return weight - 1e-3 * torch.outer(down, up)


def forget_last_rows(weight: torch.Tensor) -> torch.Tensor:
    return torch.cat([weight[:-8], torch.zeros_like(weight[-8:])])


def fewer_tokens(folder: Path) -> None:
    def shorten(tokenizer: Any) -> None:
        model = tokenizer["model"]
        model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1])[:-8])
        model["merges"] = model["merges"][:-8]

    edit(folder, "tokenizer.json", shorten)


def other_merges(folder: Path) -> None:
    """As many tokens as before, but the last merges are not applied."""
    edit(
        folder, "tokenizer.json", lambda tokenizer: tokenizer["model"].update(merges=tokenizer["model"]["merges"][:-8])
    )


def added_tokens_turned_around(folder: Path) -> None:
    def turn_around(tokenizer: Any) -> None:
        first, second = tokenizer["added_tokens"][:2]
        first["content"], second["content"] = second["content"], first["content"]
        vocabulary = tokenizer["model"]["vocab"]
        a, b = first["content"], second["content"]
        if a in vocabulary and b in vocabulary:
            vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    edit(folder, "tokenizer.json", turn_around)


FAULTS: dict[str, tuple[Change, str]] = {
    "another template": (other_template, "prompt id 1"),
    "no BOS": (inputs_with("tokens", bos_token_id=None), "prompt id 0"),
    "another BOS": (inputs_with("tokens", bos_token_id=65), "prompt id 0"),
    "another end of answers": (inputs_with("tokens", eos_token="<|pad|>"), "the token that ends an answer"),
    "added tokens in another order": (added_tokens_turned_around, "the token that ends an answer"),
    "a truncated vocabulary": (fewer_tokens, "number of tokens in the vocabulary"),
    "fewer merges": (other_merges, "prompt id"),
    "swapped means, padded": (inputs_with("image", mean=[0.41, 0.46, 0.48]), "'wide image': SHA-256 of image 0"),
    "another deviation": (inputs_with("image", std=[0.28, 0.26, 0.27]), "means of image 0's normalised channels"),
    "crop for pad": (inputs_with("image", padding=False, resize="crop"), "SHA-256 of image 0's pixels"),
    "stretch for pad": (inputs_with("image", padding=False), "SHA-256 of image 0's pixels"),
    "one layer of another step": (weights_with(f"{LAYER}.mlp", steps_later), "log-probability"),
    "a projector of zeros": (weights_with("multi_modal_projector", torch.zeros_like), "'wide image': log-probability"),
    "LoRA not merged": (weights_with("q_proj", without_adapter), "log-probability"),
    "weights rounded": (weights_with("mlp", lambda weight: weight.bfloat16().float()), "log-probability"),
    "last embeddings lost": (weights_with("embed_tokens", forget_last_rows), "'[a-z ]*': log-probability"),
    "another vision feature layer": (config_with(vision_feature_layer=-1), "'wide image': log-probability"),
    "another rotary base": (other_rotary_base, "log-probability"),
}


def test_the_engine_agrees_with_the_training_side(certified: Path) -> None:
    assert check(certified) <= FLOAT32_BOUND


@pytest.mark.parametrize("name", ["bunny-llama", "bunny-phi", "bunny-qwen2"])
def test_the_engine_agrees_on_bunnys_models(name: str, tmp_path: Path) -> None:
    """With the tokenizers, the templates and the padding that Bunny publishes."""
    import_bunny(checkpoint(name), tmp_path / "model")
    write_cases(tmp_path / "model")
    assert check(tmp_path / "model", max_context_tokens=2048) <= FLOAT32_BOUND


@pytest.mark.parametrize("fault", FAULTS)
def test_a_release_with_a_fault_is_refused(certified: Path, tmp_path: Path, fault: str) -> None:
    change, expected = FAULTS[fault]
    folder = shutil.copytree(certified, tmp_path / "release")
    change(folder)
    with pytest.raises(ReleaseError, match=expected) as refused:
        check(folder)
    message = str(refused.value)
    assert message.startswith(("golden case '", "all golden cases: "))
    assert " here and " in message
    assert "\n" not in message


def bilinear(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR)


def blue_first(squares: Sequence[Image.Image], target: np.ndarray) -> None:
    for square, place in zip(squares, target, strict=True):
        place[:] = np.asarray(square).transpose(2, 0, 1)[::-1]


@pytest.mark.parametrize(("name", "code"), [("_scale", bilinear), ("write_pixels", blue_first)])
def test_code_that_makes_other_pixels_is_refused(
    certified: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: Any
) -> None:
    monkeypatch.setattr(image_module, name, code)
    monkeypatch.setattr(f"warren.data.model_inputs.{name}", code, raising=False)
    with pytest.raises(ReleaseError, match="golden case 'wide image': SHA-256 of image 0's pixels is"):
        check(certified)


def test_an_answer_that_does_not_end_is_refused(certified: Path, tmp_path: Path) -> None:
    """The cases of a model that answers briefly, and an engine that stops at another token."""
    before = GoldenCases.load(certified)
    assert before is not None
    tokenizer = tokenizer_from_json((certified / "tokenizer.json").read_text())
    asked = "".join(turn.text for case in before.cases for turn in case.turns)
    generated = [str(tokenizer.id_to_token(step.token_id)) for step in before.cases[0].steps[1:]]
    end = next(text for text in generated if text not in asked)  # clients may not write it
    brief = shutil.copytree(certified, tmp_path / "brief")
    inputs_with("tokens", eos_token=end)(brief)
    golden = write_cases(brief)
    assert len(golden.cases[0].steps) == 1 + generated.index(end) + 1
    assert check(brief) <= FLOAT32_BOUND

    endless = replace(golden, cases=(before.cases[0], *golden.cases[1:]))
    (brief / CASES_FILE).write_bytes(endless.files()[CASES_FILE])
    with pytest.raises(ReleaseError, match=r"number of the answer's tokens is \d here and 8 in training"):
        check(brief)


def fetch_of(folder: Path) -> Callable[[str, Path], Release]:
    def fetch(uri: str, target: Path, weights: bool = True) -> Release:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        return RELEASE

    return fetch


def test_a_replica_with_a_fault_does_not_start(certified: Path, tmp_path: Path) -> None:
    """The engine and the decoder in processes of their own; the fixture `endpoint` starts a replica without a fault."""
    wrong = shutil.copytree(certified, tmp_path / "wrong")
    weights_with("multi_modal_projector", torch.zeros_like)(wrong)
    with pytest.raises(ReleaseError, match="golden case 'wide image': log-probability of token"):
        load_backend(SETTINGS, 1, fetch_of(wrong))


def test_a_replica_has_answered_every_case_before_it_serves(endpoint: Any) -> None:
    assert endpoint.service.backend.engine.stats().num_finished >= NUM_CASES


def test_the_ingress_refuses_a_release_that_it_reads_otherwise(
    certified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = None  # never asked: the ingress compares prompts, and needs no engine for that
    monkeypatch.setattr("warren_serve.service.fetch_release", fetch_of(certified))
    service = open_service(SETTINGS, backend)
    assert service.release == RELEASE
    for change, message in ((other_template, "'wide image': prompt id 1"), (fewer_tokens, "number of tokens in the")):
        folder = shutil.copytree(certified, tmp_path / change.__name__)
        change(folder)
        monkeypatch.setattr("warren_serve.service.fetch_release", fetch_of(folder))
        with pytest.raises(ReleaseError, match=message):
            open_service(SETTINGS, backend)


def test_a_release_without_cases_serves_with_a_warning_unless_cases_are_required(
    certified: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strict = SETTINGS.model_copy(update={"require_parity": True})
    assert read_cases(certified, strict) is not None
    assert read_cases(tmp_path, SETTINGS) is None
    [warning] = caplog.messages
    assert warning.endswith("tiny/v1 is served unchecked: it was published without golden cases")
    with pytest.raises(ReleaseError, match="it was published without golden cases, and require_parity is true"):
        read_cases(tmp_path, strict)


def test_cases_that_do_not_fit_the_context_are_left_out(certified: Path) -> None:
    golden = GoldenCases.load(certified)
    assert golden is not None
    assert [len(cases_within(golden, size)) for size in (256, 50, 2)] == [NUM_CASES, 4, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has format version 2, this Warren reads 1: serve it with the Warren that published it"),
        ({"cases": None}, "cannot be read: TypeError"),
        ({"cases": [{"images": ["../outside.png"]}]}, "'../outside.png' is refused"),
    ],
)
def test_cases_that_cannot_be_read_are_refused(
    certified: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(certified, tmp_path / "release")
    edit(folder, CASES_FILE, lambda value: value.update(change))
    with pytest.raises((ReleaseError, UnsafePathError), match=message):
        GoldenCases.load(folder)


def test_the_bound_is_wider_where_less_is_computed_exactly(certified: Path) -> None:
    golden = GoldenCases.load(certified)
    assert golden is not None
    assert golden.rounding == 0.0
    bfloat16 = replace(golden, dtype="bfloat16", rounding=0.1)
    bounds = [
        logprob_bound(golden, "transformers", on_gpu=False),
        logprob_bound(golden, "transformers", on_gpu=True),
        logprob_bound(golden, "vllm", on_gpu=False),
        logprob_bound(bfloat16, "transformers", on_gpu=False),
    ]
    assert bounds == [FLOAT32_BOUND, GPU_FLOAT32_BOUND, GPU_FLOAT32_BOUND, ROUNDINGS * 0.1]


def test_a_model_in_bfloat16_is_judged_by_what_that_costs(certified: Path, tmp_path: Path) -> None:
    """Rounding is forgiven, another model is not."""
    folder = shutil.copytree(certified, tmp_path / "half")
    halved = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(halved, folder / "model.safetensors", {"format": "pt"})
    golden = write_cases(folder)
    assert (golden.dtype, golden.rounding > FLOAT32_BOUND) == ("bfloat16", True)
    assert check(folder) > FLOAT32_BOUND
    weights_with("multi_modal_projector", torch.zeros_like)(folder)
    with pytest.raises(ReleaseError, match="log-probability"):
        check(folder)
