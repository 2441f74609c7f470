"""The language model's head: which tokens it can predict, and the form in which its own checkpoint trained it.

On disk the head is a separate matrix that includes every factor, as transformers' LLaVA and vLLM expect it. A
checkpoint that ties its head to its embeddings, or divides its logits (MiniCPM, Granite), has to train in that form,
because Adam's steps do not scale with the weights. So a stage unfolds the head before it trains, and folds it again
when it saves the model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from warren.data.model_inputs import TrainedTokenizer

_KEY = "warren_head"
_HEAD, _EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"


@dataclass(frozen=True)
class Head:
    """What a model's config.json says of its head.

    Attributes:
        unpredicted_ids: Tokens added to the language model that no text contains (`<image>`). The softmax of every loss
            leaves them out.
        tied: Whether head and embeddings are one matrix in training.
        divisor: Divides the logits in training; on disk the head is divided by it instead.
    """

    unpredicted_ids: tuple[int, ...] = ()
    tied: bool = False
    divisor: float = 1.0

    @classmethod
    def of(cls, config: Any) -> "Head":
        """Read it from a `LlavaConfig`; a model that says nothing has a plain head."""
        fields = dict(getattr(config, _KEY, None) or {})
        fields["unpredicted_ids"] = tuple(fields.get("unpredicted_ids", ()))
        return cls(**fields)

    def fields(self) -> dict[str, Any]:
        """Return it as a `LlavaConfig`'s arguments; a plain head adds none."""
        return {} if self == Head() else {_KEY: {**asdict(self), "unpredicted_ids": list(self.unpredicted_ids)}}

    @property
    def is_folded(self) -> bool:
        """Whether the head on disk differs from the one in training."""
        return self.tied or self.divisor != 1.0


def appended_ids(tokenizer: TrainedTokenizer, num_rows: int) -> tuple[int, ...]:
    """Return the ids added to a language model with `num_rows` embeddings that are never predicted.

    Those are the image token, a pad and a BOS. Other added tokens can be learnt, such as the end of an answer.
    """
    special = (tokenizer.image_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    appended = sorted({token for token in special if token is not None and token >= num_rows})
    if appended in ([], [tokenizer.image_token_id]):
        return tuple(appended)
    end = Tokenizer.from_str(tokenizer.json).token_to_id(tokenizer.eos_token)
    return tuple(token for token in appended if token != end)


def unsampled_ids(tokenizer: Tokenizer, num_rows: int, image_token_id: int) -> list[int]:
    """Return the ids that no answer contains: the image token's, and rows of the head without a token.

    Language models have spare rows for speed; Bunny cuts them off when it loads a checkpoint.
    """
    known = set(tokenizer.get_vocab(with_added_tokens=True).values()) - {image_token_id}
    return [token for token in range(num_rows) if token not in known]


def unfold_head(model: Any) -> None:
    """Give a model the head its checkpoint trained with, in place. `Objective` divides the logits.

    Args:
        model: As it was built or loaded, in float32.
    """
    head = Head.of(model.config)
    if head.tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    elif head.divisor != 1.0:
        with torch.no_grad():
            model.lm_head.weight.mul_(head.divisor)


def folded_state(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Return the state of a model in training with its head as it is on disk."""
    head, folded = Head.of(config), dict(state)
    if head.is_folded:
        weight = state[_EMBEDDINGS if head.tied else _HEAD].detach()
        folded[_HEAD] = (weight.float() / head.divisor).to(weight.dtype)
    return folded


def excluded(model: nn.Module) -> Tensor | None:
    """Return what is added to a model's logits, [vocabulary]: -inf for tokens outside the softmax; None: all are in."""
    config: Any = model.config
    ids = Head.of(config).unpredicted_ids
    if not ids:
        return None
    added = torch.zeros(config.text_config.vocab_size)
    added[list(ids)] = -torch.inf
    return added
