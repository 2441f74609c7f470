"""Tokenizers: one trained on a dataset's own text, for models that start from nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from warren.data.sample import IMAGE_MARK

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
_SPECIAL = [END_OF_TEXT, PAD, IMAGE_MARK]  # the trainer gives them the first ids, in this order


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
