"""transformers' attention, caches, LLaVA and checkpoint names, where Warren needs more than they offer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import WeightRenaming, register_checkpoint_conversion_mapping
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

_AttentionFunction = Callable[..., tuple[Tensor, None]]


def register_attention(name: str, attend: _AttentionFunction) -> None:
    """Make an attention function known to transformers, for all models of this process; a later one replaces it.

    Why: Attention over slots, and attention by sample, are Warren's. Everything else of a decoder is transformers'.
        Masks are made as for SDPA: without a mask function transformers passes none, and attention is not causal.
    Upstream: `AttentionInterface` (https://github.com/huggingface/transformers/pull/36889) and
        `AttentionMaskInterface` (https://github.com/huggingface/transformers/pull/37866); the need for both is in
        https://github.com/huggingface/transformers/pull/45811; `sdpa_mask` is in `transformers/masking_utils.py`.
    If it breaks: Compare with the example in transformers' guide to its attention interface.

    Args:
        name: For `set_attn_implementation`.
        attend: Takes the layer, query, key, value and mask, then keyword arguments, as `plain_attention` does.
    """
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as transformers does with SDPA.

    Why: Warren's attention functions fall back on it, for example inside `generate`.
    Upstream: `sdpa_attention_forward` in `transformers/integrations/sdpa_attention.py` of transformers 5.23.
    If it breaks: Take the function that `AttentionInterface` holds as `sdpa`.
    """
    result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return result


def repeat_heads(states: Tensor, times: int) -> Tensor:
    """Repeat each key/value head for the query heads that share it: [B, H, T, D] to [B, H × times, T, D].

    Why: The same view as transformers takes, so that the products are bit-equal to its own.
    Upstream: `repeat_kv` in `transformers/integrations/sdpa_attention.py` of transformers 5.23.
    If it breaks: Use `torch.repeat_interleave(states, times, dim=1)`.
    """
    repeated: Tensor = repeat_kv(states, times)
    return repeated


def attention_of(config: Any) -> str:
    """Return the name of the attention implementation that a model's configuration has chosen.

    Why: What the samples must look like depends on it, and no public attribute holds it.
    Upstream: `PreTrainedConfig._attn_implementation` in `transformers/configuration_utils.py` of transformers 5.23.
    If it breaks: Look where `set_attn_implementation` keeps its choice.
    """
    return str(config._attn_implementation)


def has_flash_attention() -> bool:
    """Tell whether transformers would run FlashAttention 2 here.

    Why: Its name is chosen only where its package is installed and fits.
    Upstream: `is_flash_attn_2_available` in `transformers/utils/import_utils.py` of transformers 5.23.
    If it breaks: Return False: GPUs then use SDPA with a mask.
    """
    return bool(is_flash_attn_2_available())


def handed_to_layers(values: Tensor) -> Tensor:
    """Return a vector as an attention mask that transformers hands to every layer as it is: [1, 1, 1, values].

    Why: Attention by sample needs the samples' lengths in each layer, and some models hand no other argument on. The
        slots' attention needs no mask at all, and passes one so that none is built.
    Upstream: `_preprocess_mask_arguments` in `transformers/masking_utils.py` of transformers 5.23 returns a mask of
        four dimensions unchanged, whatever its type and sizes; documented for real masks in
        https://github.com/huggingface/transformers/pull/46507.
    If it breaks: Carry the values in a `ContextVar` that the attention function reads, as the slots' spans are.
    """
    return values[None, None, None]


class DecoderCache(Protocol):
    """What a decoder of transformers asks of `past_key_values` when it is given positions and a mask.

    Why: The keys and values of running requests lie in slots, which none of transformers' caches has. A subclass of
        its `Cache` would promise layers, cropping and reordering that slots do not have.
    Upstream: The attention layers in `transformers/models/*/modeling_*.py` of transformers 5.23 call `update` only;
        https://github.com/huggingface/transformers/pull/38060 documents that as the basic interface of a cache.
    If it breaks: Add the method that the decoder's forward asks for.
    """

    def update(self, keys: Tensor, values: Tensor, layer_index: int, /, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values [1, H, T, D]; return all that the layer is to attend to."""
        ...


class LlavaWith(LlavaForConditionalGeneration):
    """LLaVA's head, loss and generation around a model of another class, `inner_class`.

    Why: LLaVA builds its own model, and a vision tower of random weights in it, in its constructor. A subclass that
        ran it would build both twice.
    Upstream: `LlavaForConditionalGeneration.__init__` in `transformers/models/llava/modeling_llava.py` of transformers
        5.23; this constructor repeats it, with the other class.
    If it breaks: Compare the two constructors, and repeat what was added.
    """

    inner_class: type[nn.Module]

    def __init__(self, config: LlavaConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = self.inner_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


def image_features(llava: Any, pixels: Tensor) -> Sequence[Tensor]:
    """Return what the language model sees of images [B, 3, S, S]: for each [tokens per image, D].

    Why: Images are encoded apart from the prompt, so that their features can be kept and packed.
    Upstream: `LlavaModel.get_image_features` in `transformers/models/llava/modeling_llava.py` of transformers 5.23,
        whose output holds them as `pooler_output`, a list.
    If it breaks: Look at how `LlavaModel.forward` gets them from its own method.
    """
    features: Sequence[Tensor] = llava.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    return features


LLAVA_DISK_NAMES = (
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
"""How the parts of LLaVA begin in memory and in published checkpoints.

Why: vLLM and SGLang read the published names, and transformers 5 writes others by `save_pretrained`.
Upstream: The mapping `llava` in `transformers/conversion_mapping.py` of transformers 5.23 reads them.
If it breaks: Released folders do not load. Write the names of another published LLaVA checkpoint.
"""

TOWERS_WITHOUT_VISION_MODEL = ("dinov2",)
"""Vision towers that plain LLaVA reads without `vision_model` in their names.

Why: transformers takes `vision_model` off the names of SigLIP and CLIP only.
Upstream: `clip_vision_model` and `siglip_vision_model` in `transformers/conversion_mapping.py` of transformers 5.23.
If it breaks: Models with a DINOv2 tower do not load; see which name transformers misses.
"""


def read_under_names(model_type: str, names: Mapping[str, str]) -> None:
    """Have transformers load checkpoints of a model type of Warren's by other names than the model has in memory.

    Why: What Warren adds to LLaVA is stored as LLaVA's checkpoints are.
    Upstream: `register_checkpoint_conversion_mapping` and `WeightRenaming` in `transformers/conversion_mapping.py` of
        transformers 5.23 (https://github.com/huggingface/transformers/pull/42254 separated renaming from converting).
    If it breaks: Load the tensors by name, as `warren.models.tensors` reads them, into an empty model.

    Args:
        model_type: As in config.json.
        names: Regular expression of a name on disk, to the name in memory.
    """
    register_checkpoint_conversion_mapping(
        model_type,
        [WeightRenaming(source_patterns=disk, target_patterns=memory) for disk, memory in names.items()],
    )


def keep_attention_uncompiled(name: str, attend: _AttentionFunction) -> None:
    """Have `torch.compile` leave an attention function of Warren's as it is, for all models of this process.

    Why: It splits its arguments by lengths that change with every batch; each mix would be compiled anew.
    Upstream: `AttentionInterface.register` replaces what was registered; see `register_attention`.
    If it breaks: Decorate the function itself with `torch.compiler.disable`.
    """
    AttentionInterface.register(name, torch.compiler.disable(attend))  # type: ignore[no-untyped-call]
