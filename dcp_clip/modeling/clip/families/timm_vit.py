"""timm's vision transformers: SigLIP, Perception Encoder, EVA, ViTamin and MobileCLIP-B."""

from __future__ import annotations

from inspect import signature

import torch
from detectron2.layers import ShapeSpec
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent, Format, nchw_to
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vitamin import MbConvStages
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.dense_attention import DenseAttention, dense_tokens
from dcp_clip.modeling.clip.families.base import ImageTower
from dcp_clip.modeling.clip.families.last_block import TimmBlock, block_attentions

__all__ = ["TimmViTTower", "allow_any_size"]

_POOLINGS = {"token": "class token", "avg": "average", "map": "attention"}


class TimmViTTower(ImageTower):
    """A ViT of timm that pools by its class token, by the average of its patches, or by attention.

    The dense features are what the pooling says about one patch.

    * Class token (EVA-CLIP, arXiv 2303.15389; MobileCLIP-B, arXiv 2311.17049): the patch tokens,
      read through the last block with another attention: see
      :mod:`dcp_clip.modeling.clip.dense_attention`.
    * Average (ViTamin, arXiv 2404.02132): the norms and the projection of each patch token.
    * Attention (SigLIP, arXiv 2303.15343; SigLIP 2, arXiv 2502.14786; Perception Encoder, arXiv
      2504.13181): the norm, the value path of the pooling with its feed-forward part, and the
      projection, for each patch token.

    ``res2`` to ``res4`` are the outputs of earlier blocks, all on the patch grid, as for a ViT of
    open_clip. ViTamin and MobileCLIP-B start with convolutions: their strides 4 and 8 are ``res2``
    and ``res3``. For other sizes than that of training, timm resizes the table of positions
    bicubically and computes rotary positions for the grid.
    """

    def __init__(self, visual: TimmModel, dense_attention: DenseAttention):
        trunk = visual.trunk
        self.pooling = _POOLINGS.get(trunk.global_pool)
        if self.pooling is None:
            raise ValueError(
                f"CLIPBackbone reads a ViT of timm that pools by {', '.join(_POOLINGS)}, not "
                f"'{trunk.global_pool}' (timm_pool of the model config)."
            )
        self.visual, self._dense_attention = visual, dense_attention
        allow_any_size(trunk)
        if self.pooling == "class token":
            self._block = TimmBlock.of(trunk.blocks[-1], getattr(trunk, "rope", None))
            self.dense_attentions = block_attentions(self._block)
        patch, width, depth = trunk.patch_embed.feat_ratio(), trunk.embed_dim, len(trunk.blocks)
        self._stem = _stem_steps(trunk.patch_embed)
        device = next(visual.parameters()).device
        levels = [(_output_channels(step), 4 << i) for i, step in enumerate(self._stem[:-1])]
        # Evenly spaced earlier blocks; the last quarter serves the dense features.
        self._indices = [max(depth * q // 4 - 1, 0) for q in (1, 2, 3)][len(levels) :]
        levels += [(width, patch)] * len(self._indices)
        embed_dim = self._project(torch.zeros(1, width, device=device)).shape[1]
        self.shapes = {
            f"res{i + 2}": ShapeSpec(channels=channels, stride=stride)
            for i, (channels, stride) in enumerate(levels)
        }
        self.shapes["dense"] = ShapeSpec(channels=embed_dim, stride=patch)
        self.shapes["pooled"] = ShapeSpec(channels=embed_dim)
        self.size_divisibility = patch

    @staticmethod
    def matches(visual: nn.Module) -> bool:
        return isinstance(visual, TimmModel) and isinstance(visual.trunk, (Eva, VisionTransformer))

    def encode(self, images: Tensor, attention: Tensor | None = None) -> dict[str, Tensor]:
        trunk, dense_attention = self.visual.trunk, self._dense_attention
        needed, earlier = dense_attention.earlier_blocks(len(trunk.blocks)), []
        grid = trunk.patch_embed.dynamic_feat_size(images.shape[-2:])
        levels, x = [], images
        for step in self._stem:
            x = step(x)
            levels.append(x)
        levels = levels[:-1]
        x = nchw_to(x, Format.NHWC) if self._stem else trunk.patch_embed(images)
        x = trunk._pos_embed(x)
        x, rope = x if isinstance(x, tuple) else (x, None)
        x = trunk.norm_pre(x)
        prefix, before_last = trunk.num_prefix_tokens, x
        for i, block in enumerate(trunk.blocks):
            before_last = x
            x = block(x) if rope is None else block(x, rope=rope)
            levels += [_as_map(x[:, prefix:], grid)] * self._indices.count(i)
            earlier += [x] * (i in needed)
        out = {f"res{i + 2}": level for i, level in enumerate(levels)}
        final = tokens = trunk.norm(x)
        if self.pooling == "class token" and dense_attention.name != "clip":
            args = before_last, grid, dense_attention, earlier, attention
            tokens = trunk.norm(dense_tokens(self._block, *args))
        dense = tokens[:, prefix:]
        if self.pooling == "attention":
            dense = attend_to_itself(trunk.attn_pool, dense)
        out["dense"] = _as_map(self._project(dense), grid)
        out["pooled"] = self.visual.head(trunk.forward_head(final))
        return out

    def pooled(self, images: Tensor) -> Tensor:
        return self.visual(images)

    def _project(self, tokens: Tensor) -> Tensor:
        """From pooled features (..., C) to the joint embedding space (..., D)."""
        trunk = self.visual.trunk
        return self.visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(tokens))))


def attend_to_itself(pool: AttentionPoolLatent, tokens: Tensor) -> Tensor:
    """(B, N, C) to (B, N, C): the output of the pooling for each token as its only input."""
    weight, bias = pool.kv.weight.chunk(2)[1], pool.kv.bias
    value = F.linear(tokens, weight, None if bias is None else bias.chunk(2)[1])
    x = pool.proj_drop(pool.proj(value))
    return x if pool.mlp is None else x + pool.mlp(pool.norm(x))


def _stem_steps(embed: nn.Module) -> list[nn.Module]:
    """The convolutions of a hybrid tower, one step for each of its strides 4, 8 and 16."""
    backbone = getattr(embed, "backbone", None)
    if isinstance(backbone, ConvStem):  # MobileCLIP-B
        return [*backbone]
    if isinstance(backbone, MbConvStages):  # ViTamin
        first, *others = backbone.stages
        return [nn.Sequential(backbone.stem, first), *others, backbone.pool]
    return []


def _output_channels(step: nn.Module) -> int:
    return [m for m in step.modules() if isinstance(m, nn.Conv2d)][-1].out_channels


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches (B, h*w, C) to (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def allow_any_size(trunk: nn.Module) -> None:
    """Let a tower resize its positions for every image, as timm's ``dynamic_img_size`` does.

    open_clip builds the towers without this option.
    """
    if trunk.dynamic_img_size:
        return
    trunk.dynamic_img_size = True
    embed = trunk.patch_embed
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    rope = getattr(trunk, "rope", None)
    if rope is not None:
        # With feat_shape, rotary positions are computed once, for one grid.
        names = signature(type(rope)).parameters
        options = {name: getattr(rope, name) for name in names if hasattr(rope, name)}
        with next(trunk.parameters()).device:
            trunk.rope = type(rope)(**{**options, "feat_shape": None})
