"""The Bunny families: one entry each. Another backbone of transformers is one more entry.

Sources: the published configurations, and `bunny/conversation.py` at BAAI-DCAI/Bunny 08273ac.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from warren.errors import ModelError
from warren.models.minicpm import TIED


@dataclass(frozen=True)
class Family:
    """How one Bunny backbone maps to transformers.

    Attributes:
        model_type: transformers' own name of the decoder.
        template: Warren's prompt template.
        end_of_answer: Text that ends every answer.
        renamed: Configuration fields that Bunny spells differently, to transformers' spelling.
        tied: Whether head and embeddings are one matrix if config.json does not say: it omits its class's default.
        pad_is_eos: Whether the pad token is the eos token, whatever the tokenizer says.
        unused: Tensors of the published language model that Bunny's class does not have.
        window_slack: How many tokens more than config.json's `sliding_window` a position attends to.
        scaled: Whether the decoder scales embeddings, residuals and logits (MiniCPM).
    """

    model_type: str
    template: str = "bunny"
    end_of_answer: str = "<|endoftext|>"
    renamed: Mapping[str, str] = field(default_factory=dict)
    tied: bool = False
    pad_is_eos: bool = False
    unused: tuple[str, ...] = ()
    window_slack: int = 0
    scaled: bool = False


FAMILIES: dict[str, Family] = {
    "bunny-phi": Family("phi", unused=("lm_head.bias",)),
    "bunny-phi3": Family("phi3", window_slack=1),  # transformers 4.41 masks what lies more than a window behind
    "bunny-llama": Family("llama", end_of_answer="<|end_of_text|>", pad_is_eos=True),
    "bunny-qwen2": Family("qwen2"),
    "bunny-qwen": Family("qwen2"),
    "bunny-stablelm": Family("stablelm", renamed={"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"}),
    "bunny-minicpm": Family("granite", end_of_answer="</s>", tied=TIED, scaled=True),
}


PROMPT_KEY = "warren_prompt"
"""Key of config.json under which Warren's export stores the template and the end of answer of a model."""


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a Bunny config.json.

    Raises:
        ModelError: Its `model_type` is none of Bunny's, or what Warren's export added is damaged.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise ModelError(f"config.json: model_type is {model_type!r}; known are {', '.join(sorted(FAMILIES))}")
    try:
        return replace(FAMILIES[model_type], **config.get(PROMPT_KEY, {}))
    except TypeError as error:
        raise ModelError(
            f"config.json: {PROMPT_KEY} is {config[PROMPT_KEY]!r}, which is not understood: {error}"
        ) from None
