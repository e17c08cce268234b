"""A small transformer decoder of mask queries (MaskFormer, arXiv 2107.06278)."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.baselines.base import Pyramid, cosine_similarity
from dcp_clip.modeling.baselines.mask_losses import MaskPredictions
from dcp_clip.modeling.layers import resize_to, valid_positions
from dcp_clip.structures import TextFeatures

__all__ = ["MaskQueryHead", "mask_pool"]


class MaskQueryHead(nn.Module):
    """N learned queries read a pyramid of CLIP's features; each gives a mask and, by an embedding
    in CLIP's space, a distribution over the names and "no object".

    A layer attends to one level, from coarse to fine by turns, and only where the query's mask so
    far holds (Mask2Former, arXiv 2112.01527). The embedding reads the query and the finest level
    averaged under its mask, as FC-CLIP's does. A departure from it, for schedules of thousands of
    iterations and not of hundreds of thousands: what is read moves CLIP's dense features averaged
    under the mask, and starts at zero, so an untrained query names its mask as CLIP would.
    """

    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        dim: int,
        num_queries: int,
        num_heads: int,
        num_layers: int,
        scale: float,
    ):
        """
        Args:
            input_shape: of the backbone.
            dim: channels of the pyramid and of the queries.
            num_queries: N.
            num_heads, num_layers: of the transformer decoder.
            scale: initial factor from cosine similarities to logits.
        """
        super().__init__()
        embed_dim = input_shape["dense"].channels
        self.num_heads = num_heads
        self.pyramid = Pyramid(input_shape, dim)
        levels = [key for key in self.pyramid.strides if key != "res2"]
        self.levels = [levels[i % len(levels)] for i in range(num_layers)]
        self.level_embedding = nn.Parameter(torch.zeros(len(levels), dim))
        self.query_embedding = nn.Parameter(torch.randn(num_queries, dim))
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim, num_heads, 2 * dim, 0.0, F.gelu, batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.mask = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.pooled = nn.Linear(dim, dim)
        self.name = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, embed_dim))
        nn.init.zeros_(self.name[-1].weight)
        nn.init.zeros_(self.name[-1].bias)
        self.no_object_embedding = nn.Parameter(torch.randn(1, embed_dim))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(
        self,
        features: dict[str, Tensor],
        text: TextFeatures,
        image_sizes: list[tuple[int, int]],
    ) -> MaskPredictions:
        """What the backbone returned, C categories and (height, width) of each image without
        padding to what the queries say before and after each layer."""
        pyramid = self.pyramid(features)
        padded, device = features["image"].shape[-2:], features["image"].device
        finest, dense = pyramid["res2"], F.normalize(features["dense"].float(), dim=1)
        inside = valid_positions(image_sizes, padded, finest.shape[-2:], device)
        keys = list(dict.fromkeys(self.levels))
        memory = {
            key: (pyramid[key] + _sine_positions(pyramid[key])).flatten(2).mT + embedding
            for key, embedding in zip(keys, self.level_embedding)
        }
        # A copy: a view of a parameter is said to require a gradient even where there are none, and
        # PyTorch's FLOP counter fails at that.
        query = self.query_embedding.repeat(len(finest), 1, 1)
        out = MaskPredictions([], [])
        self._predict(query, finest, dense, inside, text, out)
        for layer, key in zip(self.layers, self.levels):
            grid = pyramid[key].shape[-2:]
            pixel_valid = valid_positions(image_sizes, padded, grid, device)
            hidden = self._hidden_from(out.mask_logits[-1], pixel_valid)
            query = layer(query, memory[key], memory_mask=hidden)
            self._predict(query, finest, dense, inside, text, out)
        return out

    def _predict(self, query, finest, dense, inside, text, out: MaskPredictions) -> None:
        """Append what the queries (B, N, d) say."""
        query = self.norm(query)
        masks = torch.einsum("bnd,bdhw->bnhw", self.mask(query), finest) * query.shape[-1] ** -0.5
        shares = masks.detach().float().sigmoid() * inside[:, None]
        by_clip = mask_pool(F.adaptive_avg_pool2d(shares, dense.shape[-2:]), dense)
        moved = self.name(query + self.pooled(mask_pool(shares, finest)))
        unit = F.normalize(by_clip + moved.float(), dim=2).mT
        with torch.autocast(unit.device.type, enabled=False):
            no_object = F.normalize(self.no_object_embedding, dim=1) @ unit  # (B, 1, N)
        logits = self.scale * torch.cat([cosine_similarity(unit, text), no_object], dim=1)
        out.class_logits.append(logits.mT)
        out.mask_logits.append(masks)

    def _hidden_from(self, masks: Tensor, pixel_valid: Tensor) -> Tensor:
        """(B * heads, N, h*w) bool: the positions that a query may not read."""
        holds = resize_to(masks.detach().float(), pixel_valid.shape[-2:]) > 0
        holds = (holds & pixel_valid[:, None]).flatten(2)
        # A query whose mask is empty reads the whole image.
        holds = holds.where(holds.any(2, keepdim=True), pixel_valid.flatten(1)[:, None])
        return ~holds.repeat_interleave(self.num_heads, dim=0)


def mask_pool(shares: Tensor, features: Tensor) -> Tensor:
    """(B, N, d) averages of features (B, d, h, w) under masks (B, N, h, w)."""
    total = shares.sum((2, 3))[..., None].clamp(min=1e-6)
    return torch.einsum("bnhw,bdhw->bnd", shares, features.float()) / total


def _sine_positions(features: Tensor) -> Tensor:
    """(d, h, w) sines and cosines of row and column (arXiv 1706.03762), d a multiple of 4."""
    dim, height, width = features.shape[1:]
    rates = 100.0 ** -torch.linspace(0, 1, dim // 4, device=features.device)[:, None]
    rows, columns = (torch.arange(n, device=features.device) * rates for n in (height, width))
    rows, columns = rows[..., None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()])
