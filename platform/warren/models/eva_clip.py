"""The EVA-02-CLIP vision tower (arXiv 2303.15389): rotary positions, SwiGLU and norms inside the sub-layers.

transformers has no class for these weights. Parameter names are those of the published checkpoints below `visual.`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

_EPSILON = 1e-6


class EvaClipVisionConfig(PretrainedConfig):
    """Shape of the tower; the defaults are EVA02-CLIP-L-14-336's.

    `pretrained_grid` is the side of the patch grid its rotary positions were first trained on, `projection_dim` the
    width of CLIP's shared space, which only a head has that this class leaves out.
    """

    model_type = "eva_clip_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    intermediate_size: int = 2730
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    pretrained_grid: int = 16
    projection_dim: int = 768
    initializer_range: float = 0.02


class EvaClipVisionModel(PreTrainedModel):
    """The tower up to its last block; `hidden_states[-2]` is what Bunny reads, class token first."""

    config_class = EvaClipVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = False

    def __init__(self, config: EvaClipVisionConfig) -> None:
        super().__init__(config)
        width, side = config.hidden_size, config.image_size // config.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, width))
        self.blocks = nn.ModuleList(EvaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Encode [B, 3, S, S]; all hidden states are returned, [B, 1 + N, C] each."""
        patches = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        rotation = rotary(self.config, hidden.device, hidden.dtype)
        states = [hidden]
        for block in self.blocks:
            hidden = block(hidden, rotation)
            states.append(hidden)
        last = self.norm(hidden)
        return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=last[:, 0], hidden_states=tuple(states))


class EvaBlock(nn.Module):
    """Attention and SwiGLU, each with a norm in front and one inside."""

    def __init__(self, config: EvaClipVisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=_EPSILON)
        self.attn = EvaAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=_EPSILON)
        self.mlp = SwiGlu(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Map [B, 1 + N, C] to the same shape."""
        hidden = hidden + self.attn(self.norm1(hidden), rotation)
        mixed: Tensor = hidden + self.mlp(self.norm2(hidden))
        return mixed


class EvaAttention(nn.Module):
    """Self-attention; patches are rotated by their place, the class token is not. Keys have no bias."""

    def __init__(self, config: EvaClipVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=_EPSILON)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Map [B, 1 + N, C] to the same shape."""
        query = self._heads(self.q_proj(hidden) + self.q_bias)
        key = self._heads(self.k_proj(hidden))
        value = self._heads(self.v_proj(hidden) + self.v_bias)
        mixed = functional.scaled_dot_product_attention(_rotated(query, rotation), _rotated(key, rotation), value)
        out: Tensor = self.proj(self.inner_attn_ln(mixed.transpose(1, 2).reshape(hidden.shape)))
        return out

    def _heads(self, states: Tensor) -> Tensor:
        batch, length, _ = states.shape
        return states.view(batch, length, self.num_heads, -1).transpose(1, 2)


class SwiGlu(nn.Module):
    """The gated feed-forward layer, with a norm before its last projection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner)
        self.w2 = nn.Linear(width, inner)
        self.ffn_ln = nn.LayerNorm(inner, eps=_EPSILON)
        self.w3 = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, 1 + N, C] to the same shape."""
        out: Tensor = self.w3(self.ffn_ln(functional.silu(self.w1(hidden)) * self.w2(hidden)))
        return out


def rotary(config: EvaClipVisionConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each patch's angles, [N, head width]: first half by row, second half by column.

    Positions are scaled to the grid of the first training, so a larger image keeps its angles.
    """
    side = config.image_size // config.patch_size
    half = config.hidden_size // config.num_attention_heads // 2
    frequencies = 10000.0 ** -(torch.arange(0, half, 2, device=device).float() / half)
    places = torch.arange(side, device=device).float() / side * config.pretrained_grid
    angles = (places[:, None] * frequencies).repeat_interleave(2, dim=-1)
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return both.cos().to(dtype), both.sin().to(dtype)


def _rotated(states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cosine, sine = rotation
    class_token, patches = states[:, :, :1], states[:, :, 1:]
    turned = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([class_token, patches * cosine + turned * sine], dim=2)


AutoConfig.register(EvaClipVisionConfig.model_type, EvaClipVisionConfig)
AutoModel.register(EvaClipVisionConfig, EvaClipVisionModel)
