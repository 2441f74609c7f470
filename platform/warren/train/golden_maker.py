"""Makes the golden cases of a model: what the training side's code makes of a few questions.

A question becomes ids and pixels as a training sample does. The answer comes from transformers' own `generate`, in
float32. Nothing of the serving engine is used, so that an engine which agrees has understood the model by itself.
"""

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from warren.data.golden_cases import GoldenCase, GoldenCases, GoldenStep
from warren.data.model_inputs import EncodedSample, Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.template import IGNORED, Template
from warren.errors import BadSampleError, ConfigError, ReleaseError
from warren.models import load_bundle
from warren.models.image_normalizer import ImageNormalizer
from warren.storage import digest_bytes

logger = logging.getLogger(__name__)

_NUM_STEPS = 8
_NUM_LIKELIEST = 5
_NUM_LAST_WORDS = 6
_LAST_IDS = 400  # ids from the vocabulary's end among which words are looked for
_ANSWER = "yes"  # stands behind every question, because training encodes no question without an answer


@dataclass(frozen=True)
class _Question:
    name: str
    turns: tuple[Turn, ...]
    images: tuple[bytes, ...] = ()


def make_cases(folder: Path, model_digest: str) -> GoldenCases:
    """Make the golden cases of a model, on the GPU if there is one.

    Args:
        folder: A model folder that Warren wrote.
        model_digest: Identifies the model's files.

    Raises:
        ReleaseError: The folder does not load, or no question fits the model.
    """
    model, inputs, tokenizer_json = load_bundle(folder)
    tokenizer = tokenizer_from_json(tokenizer_json)
    maker = _Maker(model.to("cuda") if torch.cuda.is_available() else model, inputs, tokenizer)
    for question in _questions(inputs, tokenizer):
        try:
            encoded = _encode(question, inputs, tokenizer)
        except (BadSampleError, ConfigError) as error:  # a chat template that knows one turn only, for example
            logger.warning("golden case %r is left out, the model cannot be asked so: %s", question.name, error)
            continue
        maker.add(question, encoded, _prompt_ids(question, encoded, inputs, tokenizer))
    if not maker.cases:
        raise ReleaseError(f"{folder}: no golden case fits the model's context: make max_position_embeddings larger")
    return GoldenCases(
        model=model_digest,
        dtype=str(maker.dtype).removeprefix("torch."),
        rounding=maker.rounding(),
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
        eos_token_id=maker.eos_token_id,
        cases=tuple(maker.cases),
    )


class _Maker:
    """Asks a model, in float32.

    Args:
        model: Its weights become float32.
        inputs: The model's.
        tokenizer: The model's.
    """

    def __init__(self, model: LlavaForConditionalGeneration, inputs: Inputs, tokenizer: Tokenizer) -> None:
        self.dtype = model.dtype
        self.eos_token_id: int | None = tokenizer.token_to_id(inputs.tokens.eos_token)
        self.cases: list[GoldenCase] = []
        self._model: Any = model.float()
        self._inputs = inputs

    def add(self, question: _Question, encoded: EncodedSample, prompt_ids: np.ndarray) -> None:
        """Make the case of a question, unless it is too long for the model."""
        if len(prompt_ids) + _NUM_STEPS > self._model.config.text_config.max_position_embeddings:
            return
        normalised = self._normalised(encoded.pixels)
        means = [(float(red), float(green), float(blue)) for red, green, blue in normalised.mean(dim=(2, 3))]
        case = GoldenCase(
            name=question.name,
            turns=question.turns,
            images=question.images,
            pixel_digests=tuple(digest_bytes(image.tobytes()) for image in encoded.pixels),
            channel_means=tuple(means),
            prompt_ids=tuple(prompt_ids.tolist()),
            steps=self._answer(prompt_ids, normalised),
        )
        self.cases.append(case)

    @torch.inference_mode()
    def rounding(self) -> float:
        """Return how far the cases' log-probabilities move in the weights' own type; call it last."""
        if self.dtype == torch.float32:
            return 0.0
        self._model.to(self.dtype)  # what was widened is narrowed without a loss
        return max(self._rounding_of(case) for case in self.cases)

    def _rounding_of(self, case: GoldenCase) -> float:
        answer = [step.token_id for step in case.steps]
        ids = torch.tensor([[*case.prompt_ids, *answer[:-1]]], device=self._model.device)
        pixels = self._normalised(self._inputs.pixels(case.images)).to(self.dtype)
        logits = self._model(**self._arguments(ids, pixels)).logits[0, -len(answer) :].float()
        logits[:, self._model.generation_config.suppress_tokens or []] = -torch.inf
        differences = [
            (row.log_softmax(-1)[list(step.token_ids)].cpu() - torch.tensor(step.logprobs)).abs().max()
            for row, step in zip(logits, case.steps, strict=True)
        ]
        return float(max(differences))

    @torch.inference_mode()
    @torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 would round the images' features
    def _answer(self, prompt_ids: np.ndarray, pixels: torch.Tensor) -> tuple[GoldenStep, ...]:
        """Return the first steps of the greedy answer to a prompt and its normalised images."""
        ids = torch.from_numpy(prompt_ids.astype(np.int64))[None].to(self._model.device)
        output = self._model.generate(
            **self._arguments(ids, pixels),
            max_new_tokens=_NUM_STEPS,
            do_sample=False,
            eos_token_id=self.eos_token_id,
            pad_token_id=self._inputs.tokens.pad_token_id,
            return_dict_in_generate=True,
            output_scores=True,
        )
        steps = []
        for scores in output.scores:  # after `suppress_tokens`, which the folder's generation_config.json lists
            likeliest = scores[0].log_softmax(-1).topk(_NUM_LIKELIEST)
            steps.append(GoldenStep(tuple(likeliest.indices.tolist()), tuple(likeliest.values.tolist())))
        return tuple(steps)

    def _arguments(self, ids: torch.Tensor, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        images = {"pixel_values": pixels.to(self._model.device)} if len(pixels) else {}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}

    def _normalised(self, pixels: np.ndarray) -> torch.Tensor:
        """Return pixels as the model sees them, float32 (num_images, 3, size_px, size_px)."""
        normalised: torch.Tensor = ImageNormalizer(self._inputs.image)(torch.from_numpy(pixels), torch.float32)
        return normalised


def _encode(question: _Question, inputs: Inputs, tokenizer: Tokenizer) -> EncodedSample:
    """Encode a question as training encodes samples, with an answer behind it."""
    turns = (*question.turns, Turn("assistant", _ANSWER))
    sample = Sample(question.name, question.images, turns, "golden cases")
    return inputs.encode_sample(sample, tokenizer, max_length_tokens=1 << 30)


def _prompt_ids(question: _Question, encoded: EncodedSample, inputs: Inputs, tokenizer: Tokenizer) -> np.ndarray:
    """Return what precedes the answer in training.

    A chat template may end with a space that training merges into the answer's first token. That is the template's
    fault and no difference between two machines, so the case then has the prompt that evaluation asked.
    """
    trained = encoded.input_ids[: _start_of_answer(encoded.labels)]
    asked = inputs.encode_prompt(question.turns, tokenizer, len(question.images))
    if len(asked) == len(trained) + 1 and np.array_equal(asked[:-1], trained):
        logger.warning(
            "golden case %r: in training the prompt's last token %r is a part of the answer: templates that end with "
            "white space are trained otherwise than they are asked",
            question.name,
            tokenizer.id_to_token(int(asked[-1])),
        )
        return asked
    return trained


def _start_of_answer(labels: np.ndarray) -> int:
    """Return where the last run of supervised tokens begins: what precedes it is the prompt."""
    supervised = np.flatnonzero(labels != IGNORED)
    gaps = np.flatnonzero(np.diff(supervised) > 1)
    return int(supervised[gaps[-1] + 1] if len(gaps) else supervised[0])


def _questions(inputs: Inputs, tokenizer: Tokenizer) -> Iterator[_Question]:
    wide, tall, grey = _png(_gradient(44, 20)), _png(_checks(19, 41)), _png(_grey(26, 23))

    def ask(name: str, text: str, *images: bytes) -> _Question:
        return _Question(name, (Turn("user", f"{IMAGE_MARK}\n" * len(images) + text),), images)

    yield ask("wide image", "What is in the image?", wide)
    yield ask("tall image", "Which colours are there, and how many?", tall)
    yield ask("grey image", "Is it dark?", grey)
    if isinstance(inputs.prompts, Template) and inputs.prompts.captions_only:
        return  # such a template drops the texts, so a question without an image would be empty
    yield ask("two images", "Are they equal?", tall, wide)
    yield ask("no image", "Is the sky blue?")
    yield ask("other scripts", "naïve café, 日本 🙂 Ωμέγα: что это?", wide)
    first = (Turn("user", f"{IMAGE_MARK}\nWhat is it?"), Turn("assistant", "a square"))
    yield _Question("several turns", (*first, Turn("user", "What colour is it?")), (grey,))
    if words := _last_words(tokenizer):
        yield ask("end of the vocabulary", words)


def _last_words(tokenizer: Tokenizer) -> str:
    """Return a text of the vocabulary's last tokens: one that was cut short writes it otherwise."""
    added = tokenizer.get_added_tokens_decoder()
    ids = sorted(set(tokenizer.get_vocab(with_added_tokens=False).values()) - set(added), reverse=True)
    texts = (tokenizer.decode([token_id]) for token_id in ids[:_LAST_IDS])
    words = [text for text in texts if text.strip() and text.isprintable() and "\ufffd" not in text]
    return "".join(words[:_NUM_LAST_WORDS]).strip()


def _gradient(width: int, height: int) -> Image.Image:
    """Every channel differs from the others, and no half of it is like the other: cuts and turns show."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, 200 - 0.6 * down, 30 + across * down / 500], axis=-1).astype(np.uint8))


def _checks(width: int, height: int) -> Image.Image:
    """Fine detail: every filter of a resize gives other pixels."""
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    dark = (column // 2 + row // 3) % 2 == 0
    colours = np.array([[240, 180, 20], [20, 60, 190]], dtype=np.uint8)
    return Image.fromarray(colours[dark.astype(int)])


def _grey(width: int, height: int) -> Image.Image:
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(((column * 7 + row * 3) % 256).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
