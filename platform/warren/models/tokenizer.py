"""Tokenizers: a pretrained model's own, and one trained on a dataset's text for models with random weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from warren.data.model_inputs import END_OF_TEXT, TrainedTokenizer
from warren.data.sample import IMAGE_MARK
from warren.errors import ModelError

PAD = "<|pad|>"
_NO_STRIP: dict[str, Any] = {"special": True, "normalized": False}
_BOS_BY_SETTING = ("LlamaTokenizer", "GemmaTokenizer")  # classes that build their post-processor themselves
_SPECIAL = [END_OF_TEXT, PAD, IMAGE_MARK]  # the trainer gives them the first ids, in this order


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TrainedTokenizer:
    """Train a byte-level BPE tokenizer. The same texts give the same tokenizer.

    Args:
        texts: What the model will read and write, image marks removed.
        vocab_size: At most this many ids; small texts give fewer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TrainedTokenizer(
        json=tokenizer.to_str(),
        vocab_size=tokenizer.get_vocab_size(),
        image_token_id=_SPECIAL.index(IMAGE_MARK),
        pad_token_id=_SPECIAL.index(PAD),
    )


def read_tokenizer(
    folder: Path, eos_token: str | None = None, pad_token: str | None = None, bos_token: str | None = None
) -> tuple[TrainedTokenizer, int]:
    """Read a model's tokenizer and append `<image>` where it has none.

    Args:
        folder: Has `tokenizer.json`, `tokenizer.model` or `vocab.json`.
        eos_token: What ends an answer; None takes the tokenizer's own.
        pad_token: None takes the tokenizer's own, else its unk, else the eos, as Bunny does.
        bos_token: What goes in front of every text; None leaves that to the tokenizer.

    Returns:
        The tokenizer with its image token, and how many tokens it had before: Bunny cuts embeddings to that.

    Raises:
        ModelError: There is no tokenizer, it lacks eos or pad, or it adds more than a BOS to a text.
    """
    settings = _settings(folder)
    tokenizer = _load(folder)
    for _, token in sorted(settings.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        if tokenizer.token_to_id(token["content"]) is None:
            tokenizer.add_tokens([AddedToken(**token)])
    if bos_token is None:
        _apply_bos_setting(tokenizer, settings)
    else:
        _token_id(folder, tokenizer, "bos", bos_token)
        _put_in_front(tokenizer, bos_token)
    eos = eos_token or settings.get("eos_token")
    if eos is None:
        raise ModelError(f"the tokenizer in {folder} names no eos_token: give one as language_model.eos_token")
    pad = pad_token or settings.get("pad_token") or settings.get("unk_token") or eos
    _token_id(folder, tokenizer, "eos", eos)
    pad_id = _token_id(folder, tokenizer, "pad", pad)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    tokenizer.add_special_tokens([AddedToken(IMAGE_MARK, **_NO_STRIP)])  # takes the next id, or its own if it has one
    return (
        TrainedTokenizer(
            json=tokenizer.to_str(pretty=True),
            vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
            image_token_id=_token_id(folder, tokenizer, "image", IMAGE_MARK),
            pad_token_id=pad_id,
            eos_token=eos,
            bos_token_id=_bos_id(folder, tokenizer),
            chat_template=_chat_template(folder, settings),
        ),
        size,
    )


def check_named(folder: Path, pad: bool) -> None:
    """Refuse a tokenizer that names no eos token or no pad token.

    Args:
        folder: As for `read_tokenizer`.
        pad: Whether it must name a pad token, or an unk that Bunny would pad with.

    Raises:
        ModelError: It names none.
    """
    settings = _settings(folder)
    for keys in (("eos_token",), ("pad_token", "unk_token")) if pad else (("eos_token",),):
        if not any(settings.get(key) for key in keys):
            values = ", ".join(f"{key} is {settings.get(key)!r}" for key in keys)
            raise ModelError(f"the tokenizer in {folder} lacks {keys[0]} ({values}): name it in tokenizer_config.json")


def _bos_id(folder: Path, tokenizer: Tokenizer) -> int | None:
    """Return the id that a tokenizer puts before a text. It is found by encoding one: Phi-3's revisions differ."""
    probe = tokenizer.encode("a", add_special_tokens=False).ids
    added = tokenizer.encode("a").ids
    if added == probe:
        return None
    if added[1:] == probe:
        return int(added[0])
    raise ModelError(
        f"the tokenizer in {folder} makes {added} of a text with the ids {probe}: only a BOS in front is understood"
    )


def _apply_bos_setting(tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    """Put the BOS in front or not, as `add_bos_token` says.

    transformers' Llama and Gemma tokenizers obey it and ignore what tokenizer.json says; Phi-3's update of June 2024
    changed nothing else.
    """
    bos = settings.get("bos_token")
    if settings.get("tokenizer_class", "").removesuffix("Fast") not in _BOS_BY_SETTING or bos is None:
        return
    if tokenizer.token_to_id(bos) is None or settings.get("add_eos_token"):
        return
    _put_in_front(tokenizer, bos if settings.get("add_bos_token", True) else None)


def _put_in_front(tokenizer: Tokenizer, bos: str | None) -> None:
    prefix, named = (f"{bos} ", [(bos, tokenizer.token_to_id(bos))]) if bos else ("", [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{prefix}$A", pair=f"{prefix}$A {prefix}$B:1", special_tokens=named
    )


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the tokenizer's chat template: a file of its own, or a setting; of several the one called default."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text()
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template


def _token_id(folder: Path, tokenizer: Tokenizer, role: str, text: str) -> int:
    token_id: int | None = tokenizer.token_to_id(text)
    if token_id is None:
        raise ModelError(f"the tokenizer in {folder} has no token {text!r}, which is to be its {role}")
    return token_id


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
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if isinstance(merged.get(key), dict):
            merged[key] = merged[key]["content"]
    return merged
