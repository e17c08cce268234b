"""Mask queries with mask-pooled CLIP features: the idea of FC-CLIP (arXiv 2308.02487)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.baselines.base import BaselineSegmentor, cosine_similarity
from dcp_clip.modeling.baselines.mask_losses import MaskPredictions, MaskQueryCriterion
from dcp_clip.modeling.baselines.mask_query_head import MaskQueryHead, mask_pool
from dcp_clip.modeling.layers import valid_positions
from dcp_clip.structures import Proposals, TextFeatures
from dcp_clip.vocabulary import Vocabulary

__all__ = ["MaskQuerySegmentor"]


@META_ARCH_REGISTRY.register()
class MaskQuerySegmentor(BaselineSegmentor):
    """Mask queries, named twice: by their own embedding and by frozen CLIP's dense features under
    their mask. The two distributions are ensembled geometrically, as in FC-CLIP: a name that had
    masks in training trusts the first more, another the second.

    A pixel's score for a name is the sum over the queries of p(name) times the mask's probability;
    its logarithm is the map.
    """

    @configurable
    def __init__(
        self, *, seen_exponent: float, unseen_exponent: float, clip_scale: float, **kwargs
    ):
        """
        Args:
            seen_exponent, unseen_exponent: of CLIP's probability, beside 1 less that for the
                query's, for names in the vocabulary of training and for others.
            clip_scale: factor from CLIP's cosine similarities to logits.
            kwargs: see :class:`BaselineSegmentor`.
        """
        super().__init__(**kwargs)
        self.exponents = (seen_exponent, unseen_exponent)
        self.clip_scale = clip_scale
        trained = self.vocabulary.synonyms if self.vocabulary else ()
        self._trained = frozenset(name for names in trained for name in names)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        towers, node = cls.clip_config(cfg), cfg.MODEL.BASELINES.MASK_QUERIES
        head = MaskQueryHead(
            input_shape=towers["backbone"].output_shape(),
            dim=cfg.MODEL.BASELINES.DIM,
            num_queries=node.NUM_QUERIES,
            num_heads=node.NUM_HEADS,
            num_layers=node.NUM_LAYERS,
            scale=cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        )
        return {
            **towers,
            "head": head,
            "criterion": MaskQueryCriterion(cfg),
            "seen_exponent": node.SEEN_EXPONENT,
            "unseen_exponent": node.UNSEEN_EXPONENT,
            "clip_scale": node.CLIP_SCALE,
        }

    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, MaskPredictions]:
        """See :meth:`BaselineSegmentor.segment`; the third is what the criterion reads, and all
        that there is in training."""
        features = self.backbone(images)
        text = self.text_encoder.encode_vocabulary(vocabulary)
        predictions = self.head(features, text, image_sizes)
        masks = predictions.mask_logits[-1].float().sigmoid()
        pixel_valid = valid_positions(
            image_sizes, images.shape[-2:], masks.shape[-2:], images.device
        )
        if self.training:
            return {}, Proposals.all_categories(masks[:, :0], pixel_valid), predictions
        seen = [not self._trained.isdisjoint(names) for names in vocabulary.synonyms]
        exponent = torch.where(torch.tensor(seen, device=masks.device), *self.exponents)
        logits, dense = predictions.class_logits[-1].float(), features["dense"].float()
        with torch.autocast(self.device.type, enabled=False):
            names = self._name(logits, masks * pixel_valid[:, None], dense, text, exponent)
            scores = torch.einsum("bnc,bnhw->bchw", names, masks).clamp(min=1e-12).log()
        return {"fine": scores}, Proposals.all_categories(scores, pixel_valid), predictions

    def _name(
        self, logits: Tensor, masks: Tensor, dense: Tensor, text: TextFeatures, exponent: Tensor
    ) -> Tensor:
        """(B, N, C) probability of each name, from the queries' logits (B, N, C + 1), their masks
        (B, N, h, w) and the exponents (C,) of CLIP's opinion."""
        shares = F.adaptive_avg_pool2d(masks, dense.shape[-2:])
        unit = F.normalize(mask_pool(shares, dense), dim=2).mT
        by_clip = (self.clip_scale * cosine_similarity(unit, text)).mT.log_softmax(2)
        by_query = logits[..., :-1].log_softmax(2)
        names = ((1 - exponent) * by_query + exponent * by_clip).softmax(2)
        return names * (1 - logits.softmax(2)[..., -1:])
