"""Stage 2: adapt the text features of the K proposals to this image."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import MLP, CrossAttention, masked_max
from dcp_clip.modeling.stages.registry import TEXT_GUIDANCE_REGISTRY

__all__ = ["ImageConditionedGuidance", "StaticGuidance"]


@TEXT_GUIDANCE_REGISTRY.register()
class ImageConditionedGuidance(nn.Module):
    """Each text feature attends to the image by gated cross-attention.

    The input of a category is its text feature and three statistics of its similarity map: maximum,
    mean and log-sum-exp. They have the same meaning for every category, also for categories that
    were not in training. The gate starts closed, so an untrained stage does not attend to the
    image.
    """

    @configurable
    def __init__(self, *, embed_dim: int, dim: int, num_heads: int, scale: float):
        """
        Args:
            embed_dim: D, width of CLIP's embeddings.
            dim: d, decoder width.
            num_heads: attention heads; must divide `dim`.
            scale: factor from cosine similarities to logits.

        Raises:
            ValueError: if `num_heads` does not divide `dim`.
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

    def forward(
        self, text_features: Tensor, dense: Tensor, similarity: Tensor, pixel_valid: Tensor
    ) -> Tensor:
        """
        Args:
            text_features: (B, K, D) unit-length text features of the proposals.
            dense: (B, D, h, w).
            similarity: (B, K, h, w) cosine similarity of dense and text features.
            pixel_valid: (B, h, w) bool, False at padding.

        Returns:
            guidance (B, K, d).
        """
        pixel_valid = pixel_valid.flatten(1)
        bias = self.scale * similarity.flatten(2)
        count = pixel_valid.sum(1).view(-1, 1)
        inside = bias.masked_fill(~pixel_valid[:, None], 0.0)
        log_sum_exp = bias.masked_fill(~pixel_valid[:, None], float("-inf")).logsumexp(2)
        evidence = torch.stack(
            [
                masked_max(bias, pixel_valid[:, None]),
                inside.sum(2) / count,
                log_sum_exp - count.log(),
            ],
            dim=2,
        )
        # Unit-length vectors times sqrt(D) have entries of unit size, which suits linear layers.
        size = text_features.shape[-1] ** 0.5
        guidance = self.text(text_features * size) + self.evidence(evidence)
        image = F.normalize(dense, dim=1).flatten(2).transpose(1, 2) * size
        image = self.image(image)
        gate = self.gate.tanh()
        guidance = guidance + gate[0] * self.attention(guidance, image, bias, pixel_valid)
        return guidance + gate[1] * self.mlp(guidance)


@TEXT_GUIDANCE_REGISTRY.register()
class StaticGuidance(nn.Module):
    """Returns the text features unchanged. It has no learned weights."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        self.out_channels = input_shape["dense"].channels

    def forward(
        self, text_features: Tensor, dense: Tensor, similarity: Tensor, pixel_valid: Tensor
    ) -> Tensor:
        """Return `text_features` (B, K, D)."""
        return text_features
