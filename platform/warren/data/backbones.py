"""The special tokens each of Bunny's language models was trained with, by name."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from warren.data.template import TokenSpec, get_template
from warren.errors import ConfigError


@dataclass(frozen=True)
class Backbone:
    """Template, end and padding of one published family.

    Attributes:
        template: Bunny's `--version`, and its conv-mode.
        eos_token: Ends every answer. Llama 3's tokenizer names another one; Bunny overrides it.
        pad_token: The tokenizer's own where it has one, else its unk, else the eos.
    """

    template: str
    eos_token: str
    pad_token: str


BACKBONES = {
    "phi-1.5": Backbone("bunny", "<|endoftext|>", "<|endoftext|>"),
    "phi-2": Backbone("bunny", "<|endoftext|>", "<|endoftext|>"),
    "stablelm-2": Backbone("bunny", "<|endoftext|>", "<|endoftext|>"),
    "qwen1.5-1.8b": Backbone("bunny", "<|endoftext|>", "<|endoftext|>"),
    "minicpm": Backbone("minicpm", "</s>", "<unk>"),
    "phi-3": Backbone("phi3", "<|endoftext|>", "<|endoftext|>"),
    "llama3-8b": Backbone("llama", "<|end_of_text|>", "<|end_of_text|>"),
}
"""By Bunny's `--model_type`."""


def token_spec(name: str, tokenizer: Tokenizer, image_token_id: int, tokens_per_image: int) -> TokenSpec:
    """Return what a conversation for one of Bunny's language models is tokenised with.

    Args:
        name: A key of `BACKBONES`.
        tokenizer: The model's own; whether it starts with a BOS is asked of it (Phi-3's revisions differ).
        image_token_id: The id that stands for visual features; none of Bunny's vocabularies has one.
        tokens_per_image: Visual features of one picture.

    Raises:
        ConfigError: The name is unknown, or the tokenizer is not that model's: it lacks eos or pad, or adds more than a
            BOS in front of a text.
    """
    if name not in BACKBONES:
        raise ConfigError(f"no backbone named {name!r}; valid: {', '.join(sorted(BACKBONES))}")
    backbone = BACKBONES[name]
    get_template(backbone.template).check_eos(backbone.eos_token)
    _token_id(name, tokenizer, "eos", backbone.eos_token)
    return TokenSpec(
        image_token_id=image_token_id,
        tokens_per_image=tokens_per_image,
        eos_token=backbone.eos_token,
        pad_token_id=_token_id(name, tokenizer, "pad", backbone.pad_token),
        bos_token_id=find_bos(tokenizer),
    )


def find_bos(tokenizer: Tokenizer) -> int | None:
    """Return the id a tokenizer puts in front of every text, None if it puts none.

    Raises:
        ConfigError: It adds several ids, or adds something behind the text.
    """
    probe = tokenizer.encode("a", add_special_tokens=False).ids
    added = tokenizer.encode("a").ids
    if added == probe:
        return None
    if added[1:] == probe:
        return added[0]
    raise ConfigError(f"the tokenizer makes {added} of a text with the ids {probe}: only a BOS in front is understood")


def _token_id(name: str, tokenizer: Tokenizer, role: str, text: str) -> int:
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        raise ConfigError(f"backbone {name!r} needs {text!r} as {role}, which the tokenizer does not have")
    return token_id
