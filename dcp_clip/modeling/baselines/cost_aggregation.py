"""Cost aggregation: the idea of CAT-Seg (arXiv 2303.11797)."""

from __future__ import annotations

import sys

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.baselines.cost_aggregation_layers import (
    ClassAggregation,
    GuidedUpsampling,
    SpatialAggregation,
    conv_relu,
)
from dcp_clip.modeling.head_segmentor import HeadSegmentor, resize_to_stride
from dcp_clip.modeling.layers import best_synonym_similarity, resize_to, valid_positions
from dcp_clip.modeling.losses import LABEL_STRIDE, labels_to_proposals, present_categories
from dcp_clip.modeling.stages.stage1_proposal import CategoryProposal
from dcp_clip.structures import Proposals
from dcp_clip.vocabulary import Vocabulary

__all__ = ["CostAggregationHead", "CostAggregationSegmentor", "SigmoidCriterion"]

_NODE = "MODEL.BASELINES.COST_AGGREGATION"
_LOSSES = ("softmax", "sigmoid")
# The levels that guide the upsampling: their strides, and the channels of the maps and of the
# guidance.
_LEVELS = {"res3": (8, 64, 32), "res2": (4, 32, 16)}
_WINDOW = 12
# Names processed at once in evaluation, which bounds memory. Only the attention between names needs
# all of them.
_NAMES_PER_CHUNK = 64


class CostAggregationHead(nn.Module):
    """Aggregates the maps of cosine similarity (the cost) of K names.

    The map of each name is embedded with a 7x7 convolution, aggregated alternately over positions
    and over names, and upsampled twice with the guidance of finer image features. All weights are
    shared over the names. Widths, layers and guidance are those of the paper.

    There are two differences from CAT-Seg. The output of the network is added to the cosine
    similarity and starts at zero, so an untrained head gives CLIP's answer. The products with
    concatenated guidance are computed as sums, which is the same function at a lower cost.
    """

    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        dim: int,
        num_heads: int,
        num_layers: int,
        scale: float,
        sigmoid: bool = False,
    ):
        """
        Args:
            input_shape: output shape of the backbone; dense, res3 and res2 are used.
            dim: E, channels of the embedded map of a name.
            num_heads: heads of the attention over positions and over names.
            num_layers: number of aggregation layers.
            scale: initial factor from cosine similarities to logits.
            sigmoid: start from the log-odds of CLIP's softmax instead of its logits.

        Raises:
            ValueError: if `dim` is not a multiple of `num_heads`, or not larger than the guidance.
        """
        super().__init__()
        least = _LEVELS["res3"][2]
        if dim % num_heads or dim <= least:
            raise ValueError(
                f"{_NODE}: DIM ({dim}) must be above {least} and a multiple of NUM_HEADS "
                f"({num_heads})."
            )
        self.sigmoid, self.chunk_size = sigmoid, _NAMES_PER_CHUNK
        embed_dim = input_shape["dense"].channels
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.embed = nn.Conv2d(1, dim, 7, padding=3)
        self.image = conv_relu(embed_dim, dim)
        self.text = nn.Sequential(nn.Linear(embed_dim, dim), nn.ReLU())
        self.spatial = nn.ModuleList(
            [SpatialAggregation(dim, num_heads, _WINDOW) for _ in range(num_layers)]
        )
        self.between = nn.ModuleList([ClassAggregation(dim, num_heads) for _ in range(num_layers)])
        self.steps = nn.ModuleDict()
        width = dim
        for key, (_, out_channels, guide_dim) in _LEVELS.items():
            channels = input_shape[key].channels
            self.steps[key] = GuidedUpsampling(width, out_channels, channels, guide_dim)
            width = out_channels
        self.out = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, features: dict[str, Tensor], similarity: Tensor, text_features: Tensor
    ) -> Tensor:
        """
        Args:
            features: output of the backbone.
            similarity: (B, K, h, w) cosine similarity of the dense features and K names.
            text_features: (B, K, D) text features of unit length.

        Returns:
            logits (B, K, H/4, W/4).
        """
        dense = F.normalize(features["dense"].float(), dim=1)
        size = dense.shape[1] ** 0.5  # unit-length vectors times sqrt(D) have entries of unit size
        cost = self.scale * similarity
        image = self.image(dense * size).permute(0, 2, 3, 1)
        text = self.text(text_features * size)
        maps = self.embed(cost.flatten(0, 1)[:, None]).permute(0, 2, 3, 1)
        maps = maps.unflatten(0, cost.shape[:2])  # (B, K, h, w, E)
        chunk = cost.shape[1] if self.training else self.chunk_size
        for spatial, between in zip(self.spatial, self.between):
            maps = torch.cat([spatial(part, image) for part in maps.split(chunk, dim=1)], dim=1)
            maps = between(maps, text)
        maps = maps.movedim(-1, 2)
        start = torch.logit(cost.softmax(1), eps=1e-6) if self.sigmoid else cost
        guides = {
            key: self.steps[key].guide(resize_to_stride(features[key], features["image"], stride))
            for key, (stride, _, _) in _LEVELS.items()
        }
        parts = zip(maps.split(chunk, dim=1), start.split(chunk, dim=1))
        return torch.cat([self._upsample(*part, guides) for part in parts], dim=1)

    def _upsample(self, maps: Tensor, start: Tensor, guides: dict[str, Tensor]) -> Tensor:
        """From maps (B, n, E, h, w) and logits (B, n, h, w) of n names to their final logits."""
        for key, guide in guides.items():
            maps = self.steps[key](maps, guide)
        correction = self.out(maps.flatten(0, 1)).view(*maps.shape[:2], *maps.shape[-2:])
        return resize_to(start, correction.shape[-2:]) + correction


class SigmoidCriterion(nn.Module):
    """CAT-Seg's loss: the binary cross-entropy of every name at every pixel.

    Unlike there, ignored pixels have no loss.
    """

    def __init__(self, stride: int = LABEL_STRIDE):
        """
        Args:
            stride: pixels between the positions at which logits and labels are compared.
        """
        super().__init__()
        self.stride = stride

    def forward(
        self,
        logits: dict[str, Tensor],
        own: dict[str, Tensor] | None,
        proposals: Proposals,
        labels: Tensor,
        num_categories: int,
    ) -> dict[str, Tensor]:
        """Compute the loss; the interface is that of :class:`SegmentationCriterion`."""
        start = self.stride // 2
        labels = labels[:, start :: self.stride, start :: self.stride]
        target = labels_to_proposals(labels, proposals, num_categories)
        known = target >= 0
        maps = resize_to(logits["fine"].float(), target.shape[-2:])
        names = torch.arange(maps.shape[1], device=maps.device)[:, None, None]
        hit = (target[:, None] == names).to(maps)
        loss = F.binary_cross_entropy_with_logits(maps, hit, reduction="none").mean(1)
        return {"loss_bce": (loss * known).sum() / known.sum().clamp(min=1)}


@META_ARCH_REGISTRY.register()
class CostAggregationSegmentor(HeadSegmentor):
    """CLIP's two towers, the K names with the highest cosine similarity at any position, and
    :class:`CostAggregationHead`. In training, the names of the ground truth are among the K."""

    @configurable
    def __init__(self, *, num_names: int, **kwargs):
        """
        Args:
            num_names: K; 0 for all names.
            kwargs: see :class:`HeadSegmentor`.
        """
        super().__init__(**kwargs)
        self.proposal = CategoryProposal(
            num_proposals=num_names or sys.maxsize,
            pooled_weight=0.0,
            dense_weight=1.0,
            num_tokens=0,
            random_ratio=0.0,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        towers, node = cls.clip_config(cfg), cfg.MODEL.BASELINES.COST_AGGREGATION
        if node.LOSS not in _LOSSES:
            raise ValueError(f"{_NODE}.LOSS is '{node.LOSS}'; it must be {' or '.join(_LOSSES)}.")
        if node.NUM_NAMES < 0:
            raise ValueError(f"{_NODE}.NUM_NAMES is {node.NUM_NAMES}; it must be 0 or more.")
        sigmoid = node.LOSS == "sigmoid"
        head = CostAggregationHead(
            input_shape=towers["backbone"].output_shape(),
            dim=node.DIM,
            num_heads=node.NUM_HEADS,
            num_layers=node.NUM_LAYERS,
            scale=cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
            sigmoid=sigmoid,
        )
        criterion = {"criterion": SigmoidCriterion()} if sigmoid else {}
        return {**towers, **criterion, "head": head, "num_names": node.NUM_NAMES}

    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, None]:
        """See :meth:`OpenVocabularySegmentor.segment`. The logits "fine" are those of K names."""
        features = features or self.backbone(images)
        dense = features["dense"]
        pixel_valid = valid_positions(
            image_sizes, images.shape[-2:], dense.shape[-2:], images.device
        )
        text = self.text_encoder.encode_vocabulary(vocabulary)
        present = None
        if self.training:
            present = present_categories(labels, len(vocabulary))
        # Small differences of cosine similarity decide between categories, so use float32.
        with torch.autocast(self.device.type, enabled=False):
            unit, embeddings = F.normalize(dense.float(), dim=1), text.embeddings.float()
            proposals = self.proposal(
                unit,
                features["pooled"].float(),
                embeddings,
                text.category_rows,
                pixel_valid,
                present,
                ids,
            )
            rows = text.category_rows[proposals.ids]
            similarity = best_synonym_similarity(unit, embeddings, rows)
        logits = self.head(features, similarity, proposals.text_features)
        return {"fine": logits}, proposals, None
