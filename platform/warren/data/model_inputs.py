"""What a model expects at its inputs, as one value that is saved with every checkpoint and release."""

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from warren.data.images import MAX_PIXELS, ImageSpec, decode_image, to_square, write_pixels
from warren.data.jinja_chat_template import NATIVE, NativeTemplate
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.data.template import Segment, Template, TokenSpec, encode, get_template, num_supervised, truncate
from warren.errors import BadSampleError, ConfigError, ReleaseError

INPUTS_FILE = "warren_inputs.json"
TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer with the special tokens Warren relies on.

    Attributes:
        json: The text of its `tokenizer.json`.
        vocab_size: Ids are below it; it sizes the model's embeddings.
    """

    json: str
    vocab_size: int
    image_token_id: int
    pad_token_id: int
    eos_token: str = END_OF_TEXT
    bos_token_id: int | None = None
    chat_template: str | None = None


@dataclass(frozen=True)
class EncodedSample:
    """A sample as token ids and images, ready to be laid out in a batch.

    Attributes:
        input_ids: int32 (length,), image tokens expanded.
        labels: int32 (length,), -100 where no loss is taken.
        images: RGB, resized; their pixels are written once, where the batch has its place for them.
        size_px: Of the images, also if there are none.
        num_cut_tokens: Supervised tokens that lay beyond `max_length_tokens`.
    """

    key: str
    input_ids: np.ndarray
    labels: np.ndarray
    images: tuple[Image.Image, ...]
    size_px: int
    num_cut_tokens: int = 0

    @property
    def num_supervised_tokens(self) -> int:
        """Tokens that a loss is taken on."""
        return num_supervised(self.labels)

    @property
    def pixels(self) -> np.ndarray:
        """A copy of the images as uint8 (num_images, 3, size_px, size_px)."""
        return _pixels(self.images, self.size_px)


@dataclass(frozen=True)
class Inputs:
    """Prompt template, special tokens, image token count and image preprocessing of one model.

    Training, evaluation and serving use the same value, so that they cannot disagree.

    Raises:
        ConfigError: The template is unknown, or made for another eos than the tokens'.
    """

    template: str
    tokens: TokenSpec
    image: ImageSpec
    chat_template: str | None = None  # the tokenizer's own, for the template `native`

    def __post_init__(self) -> None:
        self.prompts.check_eos(self.tokens.eos_token)

    @property
    def prompts(self) -> Template | NativeTemplate:
        """What turns a conversation into text.

        Raises:
            ConfigError: There is no template of that name, or the tokenizer has no chat template.
        """
        if self.template != NATIVE:
            return get_template(self.template)
        if self.chat_template is None:
            raise ConfigError("template 'native': the model's tokenizer has no chat template; choose another template")
        return NativeTemplate(self.chat_template)

    def with_template(self, template: str, image_padding: bool | None = None) -> "Inputs":
        """Return the same inputs for a stage with its own template and padding; None keeps the padding."""
        padding = self.image.padding if image_padding is None else image_padding
        return replace(self, template=template, image=replace(self.image, padding=padding))

    def encode_sample(self, sample: Sample, tokenizer: Tokenizer, max_length_tokens: int) -> EncodedSample:
        """Turn a sample into ids, labels and pixels.

        Raises:
            BadSampleError: The conversation or an image is unusable.
        """
        sample.check(allow_empty_answers=True)  # ingest refuses them; of a stored one only the eos trains
        segments = self.prompts.training(sample.turns, self.tokens.eos_token, sample.system)
        ids, labels = encode(segments, tokenizer, self.tokens)
        kept_ids, kept_labels = truncate(ids, labels, self.tokens, max_length_tokens)
        num_cut = num_supervised(labels) - num_supervised(kept_labels)
        images = self._images(sample.images, max_pixels=None)
        return EncodedSample(sample.key, kept_ids, kept_labels, images, self.image.size_px, num_cut)

    def encode_prompt(
        self, turns: tuple[Turn, ...], tokenizer: Tokenizer, num_images: int, system: str | None = None
    ) -> np.ndarray:
        """Turn a conversation that ends with the user into the ids the model continues, int32 (length,).

        Raises:
            BadSampleError: The image marks in the text are not `num_images`.
        """
        marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
        if marks != num_images:
            raise BadSampleError(f"{marks} image marks in the text, but {num_images} images")
        segments = self.prompts.generation(turns, self.tokens.eos_token, system)
        return encode(segments, tokenizer, self.tokens)[0]

    def encode_text(self, text: str, tokenizer: Tokenizer) -> np.ndarray:
        """Turn plain text into ids, int32 (length,): no template, only the BOS where the model has one."""
        return encode([Segment(text, False)], tokenizer, self.tokens)[0]

    def pixels(
        self,
        images: tuple[bytes, ...],
        max_pixels: int | None = MAX_PIXELS,
        formats: tuple[str, ...] | None = None,
    ) -> np.ndarray:
        """Decode and resize images to uint8 (num_images, 3, size_px, size_px).

        Args:
            images: Encoded.
            max_pixels: None for images whose size was checked where they came in: at ingest, or by the endpoint.
            formats: Formats that they may have, in Pillow's names; None for all.
        """
        return _pixels(self._images(images, max_pixels, formats), self.image.size_px)

    def _images(
        self, images: tuple[bytes, ...], max_pixels: int | None, formats: tuple[str, ...] | None = None
    ) -> tuple[Image.Image, ...]:
        return tuple(to_square(decode_image(data, max_pixels, formats), self.image) for data in images)

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        value = {"template": self.template, "tokens": asdict(self.tokens), "image": self.image.to_json()}
        return value if self.chat_template is None else {**value, "chat_template": self.chat_template}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Inputs":
        """Rebuild what `to_json` returned."""
        image = ImageSpec.from_json(value["image"])
        return cls(value["template"], TokenSpec(**value["tokens"]), image, value.get("chat_template"))

    def save(self, folder: Path) -> None:
        """Write the inputs into a model folder."""
        (folder / INPUTS_FILE).write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Inputs":
        """Read the inputs of a saved model.

        Raises:
            ReleaseError: The folder has none, or they are not readable.
        """
        try:
            return cls.from_json(json.loads((folder / INPUTS_FILE).read_text()))
        except FileNotFoundError:
            raise ReleaseError(f"{folder} has no {INPUTS_FILE}: it was not written by Warren") from None
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise ReleaseError(f"{folder / INPUTS_FILE} cannot be read: {error!r}") from None


def _pixels(images: tuple[Image.Image, ...], size_px: int) -> np.ndarray:
    pixels = np.empty((len(images), 3, size_px, size_px), dtype=np.uint8)
    write_pixels(images, pixels)
    return pixels


@lru_cache(maxsize=8)
def tokenizer_from_json(text: str) -> Tokenizer:
    """Build a tokenizer from the text of its `tokenizer.json`, once per process.

    Truncation and padding that the file configures are switched off, because Warren does both itself.
    """
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


__all__ = ["INPUTS_FILE", "BadSampleError", "EncodedSample", "Inputs", "tokenizer_from_json"]
