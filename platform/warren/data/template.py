"""Prompt templates: one conversation → text with its supervised parts marked → token ids and labels.

Text is tokenised in whole pieces between images, as Bunny does, and labels come from the tokenizer's own character
offsets. So ids and labels cannot drift apart, whatever the tokenizer merges. One rule holds for every conversation:
each answer, with the space in front of it, and the eos behind it are supervised; nothing else is. Bunny's labels follow
it too, except where an answer is empty or contains ` ASSISTANT: ` or the eos text: there Bunny drops the eos or ignores
part of the sample, or all of it.

Special tokens written in a message are taken for those tokens, as Bunny takes them; only the image token is refused,
because no image would stand behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import BadSampleError, ConfigError, SampleTooLongError

IGNORED = -100
"""Label of a position that no loss is taken on (PyTorch's cross-entropy default)."""

_BUNNY_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class Segment:
    """A run of text, and whether the model learns to produce it."""

    text: str
    supervised: bool


@dataclass(frozen=True)
class Template:
    """How turns become text.

    Attributes:
        system: Text in front of the first turn; the endpoint's `system` message replaces it.
        captions_only: Stage 1's plain template: the image, then the caption and a newline; user text is dropped and
            there is no eos.
        eos_token: What must end an answer; None takes whatever the model's tokenizer has.
    """

    name: str
    system: str = ""
    captions_only: bool = False
    eos_token: str | None = None

    def check_eos(self, eos: str) -> None:
        """Refuse a model whose answers end otherwise than the template's.

        Raises:
            ConfigError: `eos` is not the template's own.
        """
        if self.eos_token not in (None, eos):
            raise ConfigError(
                f"template {self.name!r} ends answers with {self.eos_token!r}, the model's tokens say {eos!r}: "
                "choose the template the model was trained on"
            )

    def training(self, turns: Sequence[Turn], eos: str, system: str | None = None) -> list[Segment]:
        """Render a whole conversation; every answer and its end is supervised.

        Args:
            turns: The conversation.
            eos: Ends every answer.
            system: Replaces the template's own system text; None keeps it.
        """
        system = self.system if system is None else system
        if self.captions_only:
            return [
                Segment(_marks(turn), False) if turn.role == "user" else Segment(f"{turn.text}\n", True)
                for turn in turns
            ]
        segments = [Segment(f"{system} " if system else "", False)]
        for turn in turns:
            if turn.role == "user":
                segments.append(Segment(f"USER: {turn.text} ASSISTANT:", False))
            else:
                segments.append(Segment(f" {turn.text}{eos}", True))
        return segments

    def generation(self, turns: Sequence[Turn], eos: str, system: str | None = None) -> list[Segment]:
        """Render a conversation that the assistant is to continue."""
        return self.training(turns, eos, system)


def _marks(turn: Turn) -> str:
    return IMAGE_MARK * turn.text.count(IMAGE_MARK)


# Bunny's `--version`s. They differ in nothing but the eos text. `bunny` takes the tokenizer's, which is <|endoftext|>
# for every model published with it, so it fits any other language model as well.
_TEMPLATES = {
    template.name: template
    for template in (
        Template("bunny", _BUNNY_SYSTEM),
        Template("phi3", _BUNNY_SYSTEM, eos_token="<|endoftext|>"),
        Template("minicpm", _BUNNY_SYSTEM, eos_token="</s>"),
        Template("llama", _BUNNY_SYSTEM, eos_token="<|end_of_text|>"),
        Template("plain", captions_only=True),
        Template("brief"),  # the turns of `bunny` without its system text: short prompts for tiny models
    )
}
_TEMPLATES["default"] = _TEMPLATES["bunny"]


def get_template(name: str) -> Template:
    """Return a template by name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in _TEMPLATES:
        raise ConfigError(f"no template named {name!r}; valid: {', '.join(sorted(_TEMPLATES))}")
    return _TEMPLATES[name]


@dataclass(frozen=True)
class TokenSpec:
    """The special tokens a tokenised conversation needs, and how many image tokens stand for one image."""

    image_token_id: int
    tokens_per_image: int
    eos_token: str
    pad_token_id: int
    bos_token_id: int | None = None


def encode(
    segments: Sequence[Segment], tokenizer: Tokenizer, spec: TokenSpec, max_length_tokens: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise rendered segments.

    The BOS, if the model has one, stands once at the start. Tokenizers that put a dummy prefix in front of their input
    do so for every piece, as they do in Bunny.

    Truncation: the first `max_length_tokens` ids are kept, BOS and expanded image tokens counted, and the labels are
    cut with them. An image is never cut, nor dropped together with the turn that shows it: such a sample is refused,
    and so is one that keeps no supervised token. Bunny cuts through images and trains on what is left, or on nothing.

    Returns:
        Token ids and labels, both int32 (length,). Image tokens are expanded to one id per visual feature.

    Raises:
        BadSampleError: Longer than `max_length_tokens` and not to be cut, or the text contains the image token.
    """
    ids: list[int] = [] if spec.bos_token_id is None else [spec.bos_token_id]
    labels: list[int] = [IGNORED] * len(ids)
    for number, piece in enumerate(_split_at_images(segments)):
        if number:
            ids += [spec.image_token_id] * spec.tokens_per_image
            labels += [IGNORED] * spec.tokens_per_image
        _encode_piece(piece, tokenizer, spec, ids, labels)
    whole = np.asarray(ids, dtype=np.int32), np.asarray(labels, dtype=np.int32)
    return whole if max_length_tokens is None else truncate(*whole, spec, max_length_tokens)


def truncate(
    ids: np.ndarray, labels: np.ndarray, spec: TokenSpec, max_length_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first `max_length_tokens` of a sample's ids and labels.

    Raises:
        SampleTooLongError: An image would be cut, or no supervised token is left.
    """
    if len(ids) <= max_length_tokens:
        return ids, labels
    kept = labels[:max_length_tokens]
    if spec.image_token_id in ids[max_length_tokens:]:
        reason = f"{len(ids)} tokens; the limit of {max_length_tokens} would cut an image in two"
    elif (kept == IGNORED).all():
        reason = f"nothing is left to learn within {max_length_tokens} tokens of {len(ids)}"
    else:
        return ids[:max_length_tokens], kept
    error = SampleTooLongError(f"{reason}; raise max_length_tokens")
    error.num_cut_tokens = num_supervised(labels)
    raise error


def num_supervised(labels: np.ndarray) -> int:
    """Count the tokens of a sample that a loss is taken on; the first has no predecessor, so it is never predicted."""
    return int((labels[1:] != IGNORED).sum())


def _split_at_images(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Cut the segments at every image mark: n marks give n + 1 pieces."""
    pieces: list[list[Segment]] = [[]]
    for segment in segments:
        first, *rest = segment.text.split(IMAGE_MARK)
        pieces[-1].append(Segment(first, segment.supervised))
        pieces.extend([Segment(text, segment.supervised)] for text in rest)
    return pieces


def _encode_piece(
    piece: Sequence[Segment], tokenizer: Tokenizer, spec: TokenSpec, ids: list[int], labels: list[int]
) -> None:
    text = "".join(segment.text for segment in piece)
    if not text:
        return
    supervised = np.zeros(len(text), dtype=bool)
    start = 0
    for segment in piece:
        supervised[start : start + len(segment.text)] = segment.supervised
        start += len(segment.text)
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if spec.image_token_id in encoding.ids:
        raise BadSampleError(f"the text contains the image token itself (id {spec.image_token_id}); write {IMAGE_MARK}")
    for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        ids.append(token)
        # A token's last character decides: a piece that merges the space before an answer belongs to the answer.
        labels.append(token if supervised[max(begin, end - 1)] else IGNORED)
