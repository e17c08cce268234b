"""The last blocks of open_clip's and timm's transformers, split into their parts."""

from __future__ import annotations

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.block_parts import LastBlock
from dcp_clip.modeling.clip.dense_attention import DENSE_ATTENTIONS

__all__ = ["OpenClipBlock", "TimmBlock", "block_attentions"]


def block_attentions(block: LastBlock | None) -> tuple[str, ...]:
    """Values of MODEL.CLIP.DENSE of a tower with a class token; None: its block cannot be split."""
    return ("clip",) if block is None else tuple(DENSE_ATTENTIONS)


class OpenClipBlock:
    """open_clip's ``ResidualAttentionBlock``, see :class:`LastBlock`."""

    def __init__(self, block: ResidualAttentionBlock):
        self._block = block

    @staticmethod
    def of(block: nn.Module) -> OpenClipBlock | None:
        """None for a block with another attention than ``nn.MultiheadAttention``."""
        plain = isinstance(getattr(block, "attn", None), nn.MultiheadAttention)
        return OpenClipBlock(block) if plain else None

    def _project(self, tokens: Tensor, first: int) -> Tensor:
        """Queries, keys and values from the `first` of the three on, side by side."""
        block, attn = self._block, self._block.attn
        # The three projections are stacked in one matrix.
        rows = slice(first * attn.embed_dim, None)
        return F.linear(block.ln_1(tokens), attn.in_proj_weight[rows], attn.in_proj_bias[rows])

    def value(self, tokens: Tensor) -> Tensor:
        return self._project(tokens, 2)

    def query_key_value(
        self, tokens: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = self._block.attn.num_heads
        qkv = self._project(tokens, 0).unflatten(2, (3, heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def output(self, mixed: Tensor) -> Tensor:
        return self._block.ls_1(self._block.attn.out_proj(mixed))

    def feed_forward(self, tokens: Tensor) -> Tensor:
        block = self._block
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


class TimmBlock:
    """A block of timm's ViT or Eva, with the norm before or after each part.

    `rope` computes the rotary positions of a grid; None for a tower without them. See
    :class:`LastBlock`.
    """

    def __init__(self, block: nn.Module, rope: nn.Module | None):
        self._block, self._rope = block, rope
        # EVA02-E normalises what each part adds, not what it sees.
        self._post_norm = type(block).__name__ == "EvaBlockPostNorm"

    @staticmethod
    def of(block: nn.Module, rope: nn.Module | None) -> TimmBlock | None:
        """None for a block whose attention has other parts than those that are read here."""
        attn = getattr(block, "attn", None)
        known = type(block).__name__ in ("Block", "EvaBlock", "EvaBlockPostNorm")
        known &= type(attn).__name__ in ("Attention", "EvaAttention", "AttentionRope")
        if not known or getattr(attn, "gate", None) is not None:
            return None
        if getattr(attn, "num_kv_heads", attn.num_heads) != attn.num_heads:
            return None
        return TimmBlock(block, rope)

    def _project(self, tokens: Tensor, first: int) -> Tensor:
        """Queries, keys and values from the `first` of the three on, side by side."""
        attn = self._block.attn
        x = tokens if self._post_norm else self._block.norm1(tokens)
        if getattr(attn, "qkv", None) is None:
            parts = (attn.q_proj, attn.k_proj, attn.v_proj)
            return torch.cat([part(x) for part in parts[first:]], dim=-1)
        bias = attn.qkv.bias
        if getattr(attn, "q_bias", None) is not None:
            bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        rows = slice(first * (len(attn.qkv.weight) // 3), None)
        return F.linear(x, attn.qkv.weight[rows], None if bias is None else bias[rows])

    def value(self, tokens: Tensor) -> Tensor:
        return self._project(tokens, 2)

    def query_key_value(
        self, tokens: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        attn = self._block.attn
        qkv = self._project(tokens, 0).unflatten(2, (3, attn.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = attn.q_norm(query), attn.k_norm(key)
        if self._rope is not None:
            rotary = self._rope.get_embed(shape=grid)
            half = {"half": True} if getattr(attn, "rotate_half", False) else {}
            prefix = tokens.shape[1] - grid[0] * grid[1]
            query, key = (
                torch.cat(
                    [x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rotary, **half)], dim=2
                ).type_as(value)
                for x in (query, key)
            )
        return query, key, value

    def output(self, mixed: Tensor) -> Tensor:
        attn = self._block.attn
        out = attn.proj(getattr(attn, "norm", nn.Identity())(mixed))
        return self._block.norm1(out) if self._post_norm else self._scaled(out, 1)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        block = self._block
        if self._post_norm:
            return tokens + block.norm2(block.mlp(tokens))
        return tokens + self._scaled(block.mlp(block.norm2(tokens)), 2)

    def _scaled(self, x: Tensor, part: int) -> Tensor:
        """Apply the layer scale of the attention (1) or of the feed-forward part (2)."""
        if hasattr(self._block, f"ls{part}"):
            return getattr(self._block, f"ls{part}")(x)
        gamma = getattr(self._block, f"gamma_{part}")
        return x if gamma is None else gamma * x
