"""The tokenizer of a Bunny checkpoint: `<image>` is outside its vocabulary, and tokenizers 0.19 reads its file."""

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from warren.data.sample import IMAGE_MARK
from warren.errors import ModelError

_NEWER = (("normalizer", "ByteLevel"), ("pre_tokenizer", "FixedLength"))  # kinds that tokenizers 0.19 does not know


def without_image_token(tokenizer_json: str) -> str:
    """Return the tokenizer as Bunny keeps it: `<image>` is dropped where it is the last token."""
    tree = json.loads(tokenizer_json)
    last = Tokenizer.from_str(tokenizer_json).get_vocab_size(with_added_tokens=True) - 1
    tree["added_tokens"] = [t for t in tree["added_tokens"] if (t["content"], t["id"]) != (IMAGE_MARK, last)]
    return json.dumps(tree, indent=2, ensure_ascii=False)


def in_old_format(tokenizer_json: str) -> str:
    """Return a tokenizer as tokenizers 0.19 reads it, the version of Bunny's transformers (4.41).

    A merge was a string then, its two parts divided by a space; since 0.20 it is a pair.

    Raises:
        ModelError: That version cannot read it.
    """
    tree = json.loads(tokenizer_json)
    for part, kind in _NEWER:
        if kind in _kinds(tree.get(part)):
            raise ModelError(
                f"Bunny's tokenizers (0.19) has no {part} of type {kind}, which this model's tokenizer uses"
            )
    if "merges" in tree["model"]:
        tree["model"]["merges"] = [_joined(merge) for merge in tree["model"]["merges"]]
    return json.dumps(tree, indent=2, ensure_ascii=False)


def _joined(merge: str | list[str]) -> str:
    if isinstance(merge, str):
        return merge
    if any(" " in part for part in merge):
        raise ModelError(f"Bunny's tokenizers (0.19) cannot read the merge {merge}: a part of it holds a space")
    return " ".join(merge)


def _kinds(part: Any) -> Iterator[str]:
    """Yield the types of a part of the tokenizer and of all parts inside it."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part["type"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from _kinds(inner)
