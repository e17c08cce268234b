"""Cost aggregation over all categories: the idea of CAT-Seg (arXiv 2303.11797)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.baselines.base import (
    BaselineSegmentor,
    conv_norm_relu,
    cosine_similarity,
    resize_to_stride,
)
from dcp_clip.modeling.layers import MLP, resize_to
from dcp_clip.structures import TextFeatures

__all__ = ["CostAggregationHead", "CostAggregationSegmentor"]

# Levels that guide the upsampling, and their strides.
_GUIDES = {"res3": 8, "res2": 4}
_CATEGORIES_PER_CHUNK = 64


class _SpatialAggregation(nn.Module):
    """A residual block of convolutions, for the map of each category separately."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, dim)
        self.mix = nn.Conv2d(dim, dim, 3, padding=1)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        """From maps (B, C, E, h, w) and image features (B, E, h, w) to maps (B, C, E, h, w)."""
        x = self.mix(self.norm(maps.flatten(0, 1))).unflatten(0, maps.shape[:2])
        x = self.out(F.gelu(x + image[:, None]).flatten(0, 1))
        return maps + x.unflatten(0, maps.shape[:2])


class _ClassAggregation(nn.Module):
    """At each position the categories attend to each other.

    With linear attention (arXiv 2006.16236) time and memory grow linearly with C.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query_key = nn.Linear(dim, 2 * dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = MLP(dim)

    def forward(self, maps: Tensor, text_features: Tensor) -> Tensor:
        """From maps (B, C, E, h, w) and text features (C, E) to maps (B, C, E, h, w)."""
        x = maps.flatten(3).permute(0, 3, 1, 2)  # (B, N, C, E)
        normed = self.norm(x)
        query, key = self.query_key(normed + text_features).chunk(2, dim=-1)
        qkv = (query, key, self.value(normed))
        qkv = (y.float().unflatten(-1, (self.num_heads, -1)) for y in qkv)
        with torch.autocast(x.device.type, enabled=False):  # sums over C need full precision
            mixed = _linear_attention(*qkv)
        x = x + self.out(mixed.flatten(3))
        return (x + self.mlp(x)).permute(0, 2, 3, 1).unflatten(3, maps.shape[-2:])


def _linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention among C categories; all tensors are (B, N, C, heads, e)."""
    query, key = 1 + F.elu(query), 1 + F.elu(key)
    # Means over the categories, because sums would be large with a large vocabulary.
    context = torch.einsum("bnchd,bnche->bnhde", key, value) / key.shape[2]
    total = torch.einsum("bnchd,bnhd->bnch", query, key.mean(2))
    return torch.einsum("bnchd,bnhde->bnche", query, context) / total[..., None]


class _Upsampling(nn.Module):
    """Upsamples the map of each category separately, guided by finer image features."""

    def __init__(self, in_channels: int, out_channels: int, guide_channels: int, last: bool):
        """
        Args:
            in_channels, out_channels: channels of each category's map.
            guide_channels: channels of the image features.
            last: no normalisation and no second convolution. At stride 4, for C categories, they
                would cost as much as everything else.
        """
        super().__init__()
        self.mix = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.guide = nn.Sequential(
            conv_norm_relu(guide_channels, 2 * out_channels),
            nn.Conv2d(2 * out_channels, out_channels, 3, padding=1),
        )
        self.refine = nn.ReLU()
        if not last:
            self.refine = nn.Sequential(
                nn.GroupNorm(4, out_channels),
                nn.ReLU(),
                conv_norm_relu(out_channels, out_channels),
            )

    def forward(self, maps: Tensor, guide: Tensor) -> Tensor:
        """From maps (B, C, E, h, w) and the output of `guide` (B, E', H, W) to (B, C, E', H, W)."""
        x = resize_to(self.mix(maps.flatten(0, 1)), guide.shape[-2:])
        x = x.unflatten(0, maps.shape[:2]) + guide[:, None]
        return self.refine(x.flatten(0, 1)).unflatten(0, maps.shape[:2])


class CostAggregationHead(nn.Module):
    """Aggregates the cosine similarity maps (the cost) of all categories.

    The map of each category is embedded, aggregated alternately over positions and over categories,
    and upsampled with the guidance of finer image features. All weights are shared over the
    categories.

    This head is smaller than CAT-Seg and less accurate: the authors' aggregator reaches 5.3 points
    more of things mIoU on base names (docs/emoji_scenes_results.md). There are four differences.
    Spatial aggregation uses convolutions, as in SED (arXiv 2311.15537), instead of windowed
    attention. The guidance is added. The maps of the upsampling have fewer channels, a quarter and
    an eighth of `dim`, where CAT-Seg has 64 and 32. The output of the network is added to the
    cosine similarity and starts at zero, so an untrained head gives CLIP's answer.
    """

    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        dim: int,
        num_heads: int,
        num_layers: int,
        scale: float,
        chunk_size: int = _CATEGORIES_PER_CHUNK,
    ):
        """
        Args:
            input_shape: output shape of the backbone; dense, res3 and res2 are used.
            dim: E, channels of the embedded map of a category; it has a quarter of them at stride
                8, and an eighth at stride 4.
            num_heads: heads of the attention between categories.
            num_layers: number of aggregation layers.
            scale: initial factor from cosine similarities to logits.
            chunk_size: categories upsampled at once in evaluation, which bounds memory. The
                aggregation needs all categories at once.

        Raises:
            ValueError: if `dim` is not a multiple of 16 and of `num_heads`.
        """
        super().__init__()
        if dim % 16 or dim % num_heads:  # group norm divides a quarter of them into four groups
            raise ValueError(
                f"MODEL.BASELINES.COST_AGGREGATION: DIM ({dim}) must be a multiple of 16 and of "
                f"NUM_HEADS ({num_heads})."
            )
        self.chunk_size, embed_dim = chunk_size, input_shape["dense"].channels
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.embed = nn.Conv2d(1, dim, 7, padding=3)
        self.image = nn.Conv2d(embed_dim, dim, 1)
        self.text = nn.Linear(embed_dim, dim)
        self.spatial = nn.ModuleList([_SpatialAggregation(dim) for _ in range(num_layers)])
        self.between = nn.ModuleList([_ClassAggregation(dim, num_heads) for _ in range(num_layers)])
        middle, fine = (input_shape[key].channels for key in _GUIDES)
        self.steps = nn.ModuleDict(
            {
                "res3": _Upsampling(dim, dim // 4, middle, last=False),
                "res2": _Upsampling(dim // 4, dim // 8, fine, last=True),
            }
        )
        self.out = nn.Linear(dim // 8, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, features: dict[str, Tensor], text: TextFeatures, labels: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, C, H/4, W/4), see :class:`BaselineSegmentor`; labels are not used."""
        dense = F.normalize(features["dense"].float(), dim=1)
        size = dense.shape[1] ** 0.5  # unit-length vectors times sqrt(D) have entries of unit size
        cost = self.scale * cosine_similarity(dense, text)
        image = self.image(dense * size)
        # The mean over the synonyms of each category.
        text_features = F.normalize(text.embeddings[text.category_rows].mean(1), dim=1)
        text_features = self.text(text_features * size)
        maps = self.embed(cost.flatten(0, 1)[:, None]).unflatten(0, cost.shape[:2])
        for spatial, between in zip(self.spatial, self.between):
            maps = between(spatial(maps, image), text_features)
        guides = {
            key: self.steps[key].guide(resize_to_stride(features[key], features["image"], stride))
            for key, stride in _GUIDES.items()
        }
        chunk = cost.shape[1] if self.training else self.chunk_size
        parts = zip(maps.split(chunk, dim=1), cost.split(chunk, dim=1))
        return torch.cat([self._upsample(*part, guides) for part in parts], dim=1)

    def _upsample(self, maps: Tensor, cost: Tensor, guides: dict[str, Tensor]) -> Tensor:
        """From maps (B, n, E, h, w) and costs (B, n, h, w) of n categories to their logits."""
        for key, guide in guides.items():
            maps = self.steps[key](maps, guide)
        correction = self.out(maps.movedim(2, -1)).squeeze(-1)
        return resize_to(cost, correction.shape[-2:]) + correction


@META_ARCH_REGISTRY.register()
class CostAggregationSegmentor(BaselineSegmentor):
    """CLIP's two towers and :class:`CostAggregationHead`."""

    @configurable
    def __init__(self, **kwargs):
        """See :class:`BaselineSegmentor`."""
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        towers, node = cls.clip_config(cfg), cfg.MODEL.BASELINES.COST_AGGREGATION
        head = CostAggregationHead(
            input_shape=towers["backbone"].output_shape(),
            dim=node.DIM,
            num_heads=node.NUM_HEADS,
            num_layers=node.NUM_LAYERS,
            scale=cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        )
        return {"head": head, **towers}
