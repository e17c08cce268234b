"""A small transformer decoder of mask queries (MaskFormer, arXiv 2107.06278)."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.baselines.mask_losses import MaskPredictions
from dcp_clip.modeling.head_segmentor import Pyramid, cosine_similarity
from dcp_clip.modeling.layers import resize_to, valid_positions
from dcp_clip.structures import TextFeatures

__all__ = ["MaskQueryHead", "mask_pool"]


class MaskQueryHead(nn.Module):
    """N learned queries, which attend to a feature pyramid.

    Each query predicts a mask and an embedding in CLIP's joint space. The embedding gives a
    distribution over the categories and "no object".

    Each layer attends to one level, in turn from coarse to fine, and only inside of the mask that
    the query has predicted so far (Mask2Former, arXiv 2112.01527). The embedding depends on the
    query and on the finest level pooled under its mask, as in FC-CLIP. One difference makes short
    schedules possible (thousands of iterations instead of hundreds of thousands): the embedding is
    a correction of CLIP's dense features pooled under the mask. It starts at zero, so an untrained
    query classifies its mask as CLIP would.
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
            input_shape: output shape of the backbone.
            dim: channels of the pyramid and of the queries.
            num_queries: N.
            num_heads, num_layers: heads and layers of the transformer decoder.
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
        self.embedding = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, embed_dim))
        nn.init.zeros_(self.embedding[-1].weight)
        nn.init.zeros_(self.embedding[-1].bias)
        self.no_object_embedding = nn.Parameter(torch.randn(1, embed_dim))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(
        self,
        features: dict[str, Tensor],
        text: TextFeatures,
        image_sizes: list[tuple[int, int]],
    ) -> MaskPredictions:
        """
        Args:
            features: output of the backbone.
            text: the C categories.
            image_sizes: (height, width) of each image without padding.

        Returns:
            the predictions before the first and after each layer.
        """
        pyramid = self.pyramid(features)
        padded, device = features["image"].shape[-2:], features["image"].device
        finest, dense = pyramid["res2"], F.normalize(features["dense"].float(), dim=1)
        inside = valid_positions(image_sizes, padded, finest.shape[-2:], device)
        keys = list(dict.fromkeys(self.levels))
        memory = {
            key: (pyramid[key] + _sine_positions(pyramid[key])).flatten(2).mT + embedding
            for key, embedding in zip(keys, self.level_embedding)
        }
        # A copy, because PyTorch's FLOP counter fails for a view of a parameter under no_grad.
        query = self.query_embedding.repeat(len(finest), 1, 1)
        out = MaskPredictions([], [])
        self._predict(query, finest, dense, inside, text, out)
        for layer, key in zip(self.layers, self.levels):
            grid = pyramid[key].shape[-2:]
            pixel_valid = valid_positions(image_sizes, padded, grid, device)
            blocked = self._attention_mask(out.mask_logits[-1], pixel_valid)
            query = layer(query, memory[key], memory_mask=blocked)
            self._predict(query, finest, dense, inside, text, out)
        return out

    def _predict(self, query, finest, dense, inside, text, out: MaskPredictions) -> None:
        """Append the predictions of the queries (B, N, d) to `out`."""
        query = self.norm(query)
        masks = torch.einsum("bnd,bdhw->bnhw", self.mask(query), finest) * query.shape[-1] ** -0.5
        weights = masks.detach().float().sigmoid() * inside[:, None]
        clip_embedding = mask_pool(F.adaptive_avg_pool2d(weights, dense.shape[-2:]), dense)
        correction = self.embedding(query + self.pooled(mask_pool(weights, finest)))
        unit = F.normalize(clip_embedding + correction.float(), dim=2).mT
        with torch.autocast(unit.device.type, enabled=False):
            no_object = F.normalize(self.no_object_embedding, dim=1) @ unit  # (B, 1, N)
        logits = self.scale * torch.cat([cosine_similarity(unit, text), no_object], dim=1)
        out.class_logits.append(logits.mT)
        out.mask_logits.append(masks)

    def _attention_mask(self, masks: Tensor, pixel_valid: Tensor) -> Tensor:
        """(B * heads, N, h*w) bool, True at positions that a query does not attend to."""
        inside = resize_to(masks.detach().float(), pixel_valid.shape[-2:]) > 0
        inside = (inside & pixel_valid[:, None]).flatten(2)
        # A query with an empty mask attends to the whole image.
        inside = inside.where(inside.any(2, keepdim=True), pixel_valid.flatten(1)[:, None])
        return ~inside.repeat_interleave(self.num_heads, dim=0)


def mask_pool(weights: Tensor, features: Tensor) -> Tensor:
    """(B, N, d) averages of features (B, d, h, w) with the weights (B, N, h, w)."""
    total = weights.sum((2, 3))[..., None].clamp(min=1e-6)
    # Sums over all positions overflow float16.
    with torch.autocast(weights.device.type, enabled=False):
        return torch.einsum("bnhw,bdhw->bnd", weights, features.float()) / total


def _sine_positions(features: Tensor) -> Tensor:
    """(d, h, w) sine position embedding of row and column (arXiv 1706.03762); d % 4 == 0."""
    dim, height, width = features.shape[1:]
    rates = 100.0 ** -torch.linspace(0, 1, dim // 4, device=features.device)[:, None]
    rows, columns = (torch.arange(n, device=features.device) * rates for n in (height, width))
    rows, columns = rows[..., None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()])
