"""The tokenizer of a Bunny checkpoint, with the `<image>` token that Bunny keeps outside its vocabulary."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from warren.data.sample import IMAGE_MARK
from warren.errors import ModelError
from warren.models.bunny.families import Family
from warren.models.tokenizer import TrainedTokenizer

_NO_STRIP: dict[str, Any] = {"special": True, "normalized": False}


def read_tokenizer(folder: Path, family: Family) -> tuple[TrainedTokenizer, int]:
    """Read a tokenizer and append `<image>` where it has none.

    Returns:
        The tokenizer with its image token, and how many tokens it had before: Bunny cuts embeddings to that.

    Raises:
        ModelError: There is no tokenizer, or it lacks the family's end of answer.
    """
    settings = _settings(folder)
    tokenizer = _load(folder)
    for _, token in sorted(settings.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        if tokenizer.token_to_id(token["content"]) is None:
            tokenizer.add_tokens([AddedToken(**token)])
    if tokenizer.token_to_id(family.end_of_answer) is None:
        raise ModelError(f"the tokenizer in {folder} has no {family.end_of_answer!r}, which ends this family's answers")
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    tokenizer.add_special_tokens([AddedToken(IMAGE_MARK, **_NO_STRIP)])  # takes the next id, or its own if it has one
    # Bunny's own test for "starts with BOS": what an empty text becomes.
    prefix = tokenizer.encode("", add_special_tokens=True).ids
    pad_id = _pad_id(folder, tokenizer, settings, family)
    return (
        TrainedTokenizer(
            json=tokenizer.to_str(pretty=True),
            vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
            image_token_id=int(tokenizer.token_to_id(IMAGE_MARK) or 0),
            pad_token_id=pad_id,
            eos_token=family.end_of_answer,
            bos_token_id=prefix[0] if prefix else None,
        ),
        size,
    )


def _pad_id(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], family: Family) -> int:
    pad = next((t for t in (settings.get("pad_token"), settings.get("unk_token")) if t), family.end_of_answer)
    pad_id: int | None = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise ModelError(f"the tokenizer in {folder} names {pad!r} for padding, but has no such token")
    return pad_id


def without_image_token(tokenizer_json: str) -> str:
    """Return the tokenizer as Bunny keeps it: `<image>` is dropped where it is the last token."""
    tree = json.loads(tokenizer_json)
    last = Tokenizer.from_str(tokenizer_json).get_vocab_size(with_added_tokens=True) - 1
    tree["added_tokens"] = [t for t in tree["added_tokens"] if (t["content"], t["id"]) != (IMAGE_MARK, last)]
    return json.dumps(tree, indent=2, ensure_ascii=False)


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a tokenizer of its own."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _load(folder: Path) -> Tokenizer:
    if not has_tokenizer(folder):
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    try:
        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        from transformers import AutoTokenizer  # converts SentencePiece and vocab.json + merges.txt

        converted: Tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
        return converted
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ModelError(f"the tokenizer in {folder} cannot be read: {error}") from None


def _settings(folder: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            merged |= {k: v for k, v in json.loads((folder / name).read_text()).items() if v is not None}
    for key in ("pad_token", "unk_token"):
        if isinstance(merged.get(key), dict):
            merged[key] = merged[key]["content"]
    return merged
