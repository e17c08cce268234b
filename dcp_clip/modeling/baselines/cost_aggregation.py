"""Cost aggregation over all names: the idea of CAT-Seg (arXiv 2303.11797)."""

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

_GUIDES = {"res3": 8, "res2": 4}


class _SpatialAggregation(nn.Module):
    """Each category's map by itself, beside the image: a residual block of convolutions."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, dim)
        self.mix = nn.Conv2d(dim, dim, 3, padding=1)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        """maps (B, C, E, h, w) and image (B, E, h, w) to (B, C, E, h, w)."""
        x = self.mix(self.norm(maps.flatten(0, 1))).unflatten(0, maps.shape[:2])
        x = self.out(F.gelu(x + image[:, None]).flatten(0, 1))
        return maps + x.unflatten(0, maps.shape[:2])


class _ClassAggregation(nn.Module):
    """At each position the categories attend to each other, by linear attention (arXiv 2006.16236):
    time and memory grow with C and not with its square."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.query_key = nn.Linear(dim, 2 * dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = MLP(dim)

    def forward(self, maps: Tensor, words: Tensor) -> Tensor:
        """maps (B, C, E, h, w) and words (C, E) to (B, C, E, h, w)."""
        x = maps.flatten(3).permute(0, 3, 1, 2)  # (B, N, C, E)
        normed = self.norm(x)
        query, key = self.query_key(normed + words).chunk(2, dim=-1)
        qkv = (query, key, self.value(normed))
        qkv = (y.float().unflatten(-1, (self.num_heads, -1)) for y in qkv)
        with torch.autocast(x.device.type, enabled=False):  # sums over C in full precision
            mixed = _linear_attention(*qkv)
        x = x + self.out(mixed.flatten(3))
        return (x + self.mlp(x)).permute(0, 2, 3, 1).unflatten(3, maps.shape[-2:])


def _linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, N, C, heads, e) each: what each of C reads from all C."""
    query, key = 1 + F.elu(query), 1 + F.elu(key)
    # Means over the categories, not sums: no large numbers with a large vocabulary.
    read = torch.einsum("bnchd,bnche->bnhde", key, value) / key.shape[2]
    total = torch.einsum("bnchd,bnhd->bnch", query, key.mean(2))
    return torch.einsum("bnchd,bnhde->bnche", query, read) / total[..., None]


class _Upsampling(nn.Module):
    """Each category's map by itself to a finer grid, guided by the image's features there."""

    def __init__(self, in_channels: int, out_channels: int, guide_channels: int, last: bool):
        """`last` leaves out normalisation and the second convolution: C times at full size, they
        would cost as much as all the rest."""
        super().__init__()
        self.mix = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.guide = nn.Sequential(
            conv_norm_relu(guide_channels, 2 * out_channels),
            nn.Conv2d(2 * out_channels, out_channels, 3, padding=1),
        )
        self.refine = nn.ReLU()
        if not last:
            norm, again = nn.GroupNorm(4, out_channels), conv_norm_relu(out_channels, out_channels)
            self.refine = nn.Sequential(norm, nn.ReLU(), again)

    def forward(self, maps: Tensor, guide: Tensor) -> Tensor:
        """maps (B, C, E, h, w) and :attr:`guide`'s answer (B, E', H, W) to (B, C, E', H, W)."""
        x = resize_to(self.mix(maps.flatten(0, 1)), guide.shape[-2:])
        x = x.unflatten(0, maps.shape[:2]) + guide[:, None]
        return self.refine(x.flatten(0, 1)).unflatten(0, maps.shape[:2])


class CostAggregationHead(nn.Module):
    """The cosine map of every name, embedded, aggregated over positions and over categories by
    turns, and upsampled under guidance; all weights shared over the categories.

    Departures from CAT-Seg: spatial aggregation by convolution (as SED has it, arXiv 2311.15537) in
    the place of windowed attention; guidance enters by addition; and what the network says is added
    to the cosine map itself and starts at zero, so an untrained head answers as CLIP would.
    """

    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        dim: int,
        num_heads: int,
        num_layers: int,
        chunk_size: int,
        scale: float,
    ):
        """
        Args:
            input_shape: of the backbone; dense, res3 and res2 are read.
            dim: E, channels of a category's embedded map; a quarter of them at stride 8, an eighth
                at stride 4.
            num_heads: of the attention between categories.
            num_layers: rounds of aggregation.
            chunk_size: categories upsampled at once in evaluation; aggregation needs all of them.
            scale: initial factor from cosine similarities to logits.

        Raises:
            ValueError: when `dim` is no multiple of 16 and of the heads, or `chunk_size` below 1.
        """
        super().__init__()
        if dim % 16 or dim % num_heads or chunk_size < 1:  # a quarter is in four groups
            raise ValueError(
                f"MODEL.BASELINES.COST_AGGREGATION: DIM ({dim}) must be a multiple of 16 and of "
                f"NUM_HEADS ({num_heads}), and CHUNK_SIZE ({chunk_size}) 1 or more."
            )
        self.chunk_size, embed_dim = chunk_size, input_shape["dense"].channels
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.embed = nn.Conv2d(1, dim, 7, padding=3)
        self.image = nn.Conv2d(embed_dim, dim, 1)
        self.words = nn.Linear(embed_dim, dim)
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

    def forward(self, features: dict[str, Tensor], text: TextFeatures) -> Tensor:
        """What the backbone returned and C categories to logits (B, C, H/4, W/4)."""
        dense = F.normalize(features["dense"].float(), dim=1)
        size = dense.shape[1] ** 0.5  # unit-length columns times sqrt(D): entries of unit size
        cost = self.scale * cosine_similarity(dense, text)
        image = self.image(dense * size)
        words = F.normalize(
            text.embeddings[text.category_rows].mean(1), dim=1
        )  # synonyms have one voice
        words = self.words(words * size)
        maps = self.embed(cost.flatten(0, 1)[:, None]).unflatten(0, cost.shape[:2])
        for spatial, between in zip(self.spatial, self.between):
            maps = between(spatial(maps, image), words)
        guides = {
            key: self.steps[key].guide(resize_to_stride(features[key], features["image"], stride))
            for key, stride in _GUIDES.items()
        }
        chunk = cost.shape[1] if self.training else self.chunk_size
        parts = zip(maps.split(chunk, dim=1), cost.split(chunk, dim=1))
        return torch.cat([self._upsample(*part, guides) for part in parts], dim=1)

    def _upsample(self, maps: Tensor, cost: Tensor, guides: dict[str, Tensor]) -> Tensor:
        """Embedded maps (B, n, E, h, w) and costs (B, n, h, w) of n categories to their logits."""
        for key, guide in guides.items():
            maps = self.steps[key](maps, guide)
        correction = self.out(maps.movedim(2, -1)).squeeze(-1)
        return resize_to(cost, correction.shape[-2:]) + correction


@META_ARCH_REGISTRY.register()
class CostAggregationSegmentor(BaselineSegmentor):
    """Cosine maps of every name, aggregated: see :class:`CostAggregationHead`."""

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
            chunk_size=node.CHUNK_SIZE,
            scale=cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        )
        return {"head": head, **towers}
