"""Stage 2: rewrite the text features of the K names for this image."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from .build import TEXT_GUIDANCE_REGISTRY
from .layers import MLP, CrossAttention, masked_max

__all__ = ["ImageConditionedGuidance", "StaticGuidance"]


@TEXT_GUIDANCE_REGISTRY.register()
class ImageConditionedGuidance(nn.Module):
    """Each name looks at the image by cross-attention, through a gate.

    A name enters as its text feature and as three numbers that say how CLIP sees it in this image
    (best, mean and total similarity); the numbers mean the same for every name, seen in training or
    not.
    The gate starts closed: an untrained stage is the text as it is.
    """

    @configurable
    def __init__(self, *, embed_dim: int, dim: int, num_heads: int, scale: float):
        """
        Args:
            embed_dim: D, CLIP's joint embedding width.
            dim: d, decoder width.
            num_heads: attention heads.
            scale: the factor that brings cosines to the size of logits.
        """
        super().__init__()
        self.scale = scale
        self.text = nn.Linear(embed_dim, dim)
        self.evidence = nn.Linear(3, dim)
        self.image = nn.Linear(embed_dim, dim)
        self.attention = CrossAttention(dim, num_heads)
        self.mlp = MLP(dim)
        self.gate = nn.Parameter(torch.zeros(2))
        self.out_channels = dim

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            "embed_dim": input_shape["dense"].channels,
            "dim": cfg.MODEL.DCP_CLIP.DIM,
            "num_heads": cfg.MODEL.DCP_CLIP.NUM_HEADS,
            "scale": cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        }

    def forward(self, text: Tensor, dense: Tensor, similarity: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            text: (B, K, D) unit-length text features of the proposals.
            dense: (B, D, h, w).
            similarity: (B, K, h, w) cosine of dense and text.
            valid: (B, h, w) bool, False at padding.

        Returns:
            (B, K, d).
        """
        valid = valid.flatten(1)
        bias = self.scale * similarity.flatten(2)
        count = valid.sum(1).view(-1, 1)
        inside = bias.masked_fill(~valid[:, None], 0.0)
        spread = bias.masked_fill(~valid[:, None], float("-inf")).logsumexp(2)
        evidence = torch.stack(
            [masked_max(bias, valid[:, None]), inside.sum(2) / count, spread - count.log()], dim=2
        )
        # Unit-length rows times sqrt(D): entries of unit size, as linear layers like them.
        size = text.shape[-1] ** 0.5
        name = self.text(text * size) + self.evidence(evidence)
        positions = F.normalize(dense, dim=1).flatten(2).transpose(1, 2) * size
        positions = self.image(positions)
        gate = self.gate.tanh()
        name = name + gate[0] * self.attention(name, positions, bias, valid)
        return name + gate[1] * self.mlp(name)


@TEXT_GUIDANCE_REGISTRY.register()
class StaticGuidance(nn.Module):
    """The text as it is: the same features for every image, nothing learned."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        self.out_channels = input_shape["dense"].channels

    def forward(self, text: Tensor, dense: Tensor, similarity: Tensor, valid: Tensor) -> Tensor:
        """(B, K, D) in, the same (B, K, D) out."""
        return text
