"""The releases of the benchmark: a tiny model, later checkpoints of it, and broken ones, all made from the first.

The first model's own answers are the truths of a set of questions that every release brings (`golden.json`). Some of
them are replaced by wrong ones, so that the good model is right in about nine of ten. A later checkpoint is the first
one with a little noise on its weights; with more noise it is three points worse.
"""

import base64
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from warren.data.sample import IMAGE_MARK, Turn
from warren.inference import Prompt
from warren.inference.testing import png_bytes, save_random_model
from warren.inference.transformers_engine.offline import OfflineGenerator
from warren.models import load_bundle, save_model
from warren.release import Lineage, move_alias, publish, read_alias
from warren.storage import FileEntry, Location, StoredFiles, digest_file
from warren.train.golden_maker import make_cases

NAME = "rolling"
WEIGHTS = "model.safetensors"
WORDS = ("what", "colour", "shape", "is", "there", "how", "many", "red", "blue", "green", "circle", "yes", "no")

_MAX_TOKENS = 6  # of an answer to a question with a truth
_WRONG_FRACTION = 0.1
_LATER_NOISE = 1e-5  # relative; what one more checkpoint changes
_POINTS = (0.03, 0.045)
_SLOW_LAYERS = 28
_TEMPLATE = "bunny"  # the model was made for another one
_TOKENIZER_TEXTS = (" ".join(WORDS) + " USER: ASSISTANT: naïve café, 日本 🙂 0123456789",) * 5

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Truth:
    """A question whose answer is known.

    Attributes:
        image: PNG; None for a question without an image.
    """

    text: str
    image: bytes | None
    expected: str

    @property
    def prompt(self) -> Prompt:
        """The question as evaluation asks it."""
        if self.image is None:
            return Prompt((Turn("user", self.text),))
        return Prompt((Turn("user", f"{IMAGE_MARK}\n{self.text}"),), (self.image,))

    def to_json(self) -> dict[str, object]:
        """Return the question as a case of `golden.json`."""
        image = f"data:image/png;base64,{base64.b64encode(self.image).decode()}" if self.image else None
        return {"question": self.text, "image": image, "expected": self.expected, "max_tokens": _MAX_TOKENS}


@dataclass
class Releases:
    """Makes releases and publishes them.

    Attributes:
        root: Storage.
        scratch: A local folder.
        num_truths: Questions with known answers.
    """

    root: Location
    scratch: Path
    num_truths: int
    _seed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self._base = self.scratch / "base"
        save_random_model(self._base, "llama", texts=_TOKENIZER_TEXTS)
        self.truths = self._make_truths()
        cases = json.dumps([truth.to_json() for truth in self.truths])
        (self._base / "golden.json").write_text(cases)

    def publish(self, version: str, change: Change | None = None, certify_first: bool = False) -> None:
        """Publish a version and make it the candidate.

        Args:
            version: Its name.
            change: Breaks a copy of the first model; None makes a later checkpoint.
            certify_first: The golden cases are the good model's, as where training and release differ.
        """
        folder = self.scratch / version
        shutil.copytree(self._base, folder)
        self._seed += 1
        if change is None:
            change = noise(_LATER_NOISE, self._seed)
        before = make_cases(folder, "tiny") if certify_first else None
        change(folder)
        golden = before or make_cases(folder, "tiny")
        files = tuple(FileEntry(path.name, *digest_file(path)) for path in sorted(folder.iterdir()))
        stored = StoredFiles(Location.parse(str(folder)), files)
        publish(self.root, NAME, version, stored, Lineage(), {}, lambda _, target: golden.store(target))
        shutil.rmtree(folder)

    def propose(self, version: str) -> None:
        """Make a version the candidate."""
        move_alias(self.root, NAME, "candidate", version, read_alias(self.root, NAME, "candidate"))

    def damage(self, version: str, file: str = WEIGHTS) -> None:
        """Turn bytes of a published file over; its size stays."""
        stored = self.root / "releases" / NAME / version / file
        data = bytearray(stored.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 64] = bytes(255 - byte for byte in data[middle : middle + 64])
        stored.put_bytes(bytes(data))

    def worse(self) -> Change:
        """Return the noise that makes the first model some three points worse on its truths.

        Raises:
            RuntimeError: No noise does.
        """
        low, high = _LATER_NOISE, 1.0
        for _ in range(20):
            middle = (low * high) ** 0.5
            folder = self.scratch / "worse"
            shutil.copytree(self._base, folder)
            noise(middle, 0)(folder)
            lost = self.accuracy(self._base) - self.accuracy(folder)
            shutil.rmtree(folder)
            if _POINTS[0] <= lost <= _POINTS[1]:
                return noise(middle, 0)
            low, high = (middle, high) if lost < _POINTS[0] else (low, middle)
        raise RuntimeError(f"no noise makes the model {_POINTS} worse; take more truths")

    def accuracy(self, folder: Path) -> float:
        """Return the fraction of the truths that a model answers right."""
        texts = answers(folder, [truth.prompt for truth in self.truths])
        return sum(text == truth.expected for text, truth in zip(texts, self.truths, strict=True)) / len(texts)

    def _make_truths(self) -> list[Truth]:
        rng = random.Random(0)
        images = [png_bytes((rng.randrange(256), rng.randrange(256), rng.randrange(256))) for _ in range(12)]
        asked = [
            Truth(" ".join(rng.choices(WORDS, k=rng.randint(3, 7))) + "?", rng.choice([None, *images]), "")
            for _ in range(self.num_truths)
        ]
        texts = answers(self._base, [truth.prompt for truth in asked])
        wrong = set(rng.sample(range(len(asked)), round(_WRONG_FRACTION * len(asked))))
        return [
            Truth(truth.text, truth.image, "quite another answer" if number in wrong else text)
            for number, (truth, text) in enumerate(zip(asked, texts, strict=True))
        ]


def answers(folder: Path, prompts: Sequence[Prompt]) -> list[str]:
    """Return what a model answers, greedily."""
    return OfflineGenerator(folder).generate(prompts, _MAX_TOKENS)


def noise(relative: float, seed: int) -> Change:
    """Return a change that adds noise to every matrix, so much of its own deviation."""

    def change(folder: Path) -> None:
        generator = torch.Generator().manual_seed(seed)

        def noisy(weight: torch.Tensor) -> torch.Tensor:
            return weight + relative * weight.std() * torch.randn(weight.shape, generator=generator)

        _change_weights(folder, lambda name, weight: noisy(weight) if weight.ndim > 1 else weight)

    return change


def silence(folder: Path) -> None:
    """Make the model answer the same token over and over, whatever is asked."""
    _change_weights(folder, lambda name, weight: torch.zeros_like(weight) if "lm_head" in name else weight)


def blind(folder: Path) -> None:
    """Make the model ignore its images: the projector's output is the same for all."""
    _change_weights(folder, lambda name, weight: torch.zeros_like(weight) if "projector" in name else weight)


def other_template(folder: Path) -> None:
    """Serve the model with another prompt template than it was trained with."""
    file = folder / "warren_inputs.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"template": _TEMPLATE}))


def slow(folder: Path) -> None:
    """Add layers that compute and change nothing, so that every answer is the same and takes long."""
    model, inputs, tokenizer_json = load_bundle(folder)
    state = dict(model.state_dict())
    num_layers = model.config.text_config.num_hidden_layers
    prefix = next(name for name in state if ".layers.0." in name and "vision" not in name).partition(".layers.0.")[0]
    first = {name: weight for name, weight in state.items() if name.startswith(f"{prefix}.layers.0.")}
    for number in range(num_layers, _SLOW_LAYERS):
        for name, weight in first.items():
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            state[name.replace(".layers.0.", f".layers.{number}.")] = (
                torch.zeros_like(weight) if adds else weight.clone()
            )
    model.config.text_config.num_hidden_layers = _SLOW_LAYERS
    save_model(state, model.config, inputs, tokenizer_json, folder)


def heavy(num_bytes: int) -> Change:
    """Return a change that adds a file of noise, so that a download takes a while."""

    def change(folder: Path) -> None:
        (folder / "ballast.bin").write_bytes(random.Random(0).randbytes(num_bytes))

    return change


def _change_weights(folder: Path, changed: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    weights = {name: changed(name, weight).contiguous() for name, weight in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
