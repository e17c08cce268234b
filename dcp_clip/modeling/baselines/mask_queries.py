"""Mask queries with mask-pooled CLIP features: the idea of FC-CLIP (arXiv 2308.02487)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.baselines.mask_losses import MaskPredictions, MaskQueryCriterion
from dcp_clip.modeling.baselines.mask_query_head import MaskQueryHead, mask_pool
from dcp_clip.modeling.head_segmentor import HeadSegmentor, cosine_similarity
from dcp_clip.modeling.inputs import train_vocabularies
from dcp_clip.modeling.layers import valid_positions
from dcp_clip.structures import Proposals, TextFeatures
from dcp_clip.vocabulary import Vocabulary

__all__ = ["MaskQuerySegmentor"]


@META_ARCH_REGISTRY.register()
class MaskQuerySegmentor(HeadSegmentor):
    """Classifies each mask query in two ways: by its own embedding, and by frozen CLIP's dense
    features pooled under its mask.

    The final distribution is the geometric ensemble of the two, as in FC-CLIP. The first has the
    larger exponent for categories of the training vocabulary, the second for all others.

    The probability of a category at a pixel is the sum over the queries of p(category) times the
    mask's probability. The logits are its logarithm.
    """

    needs_train_names = True

    @configurable
    def __init__(
        self,
        *,
        seen_exponent: float,
        unseen_exponent: float,
        clip_scale: float,
        seen: Iterable[Vocabulary] = (),
        **kwargs,
    ):
        """
        Args:
            seen_exponent, unseen_exponent: exponent of the probability from pooled CLIP features,
                for categories of the training vocabularies and for others. The exponent of the
                query's own probability is 1 minus this.
            clip_scale: factor from CLIP's cosine similarities to logits.
            seen: the vocabularies of the training.
            kwargs: see :class:`HeadSegmentor`.
        """
        super().__init__(**kwargs)
        self.exponents = (seen_exponent, unseen_exponent)
        self.clip_scale = clip_scale
        self._seen_names = frozenset(
            name.lower() for vocabulary in seen for names in vocabulary.synonyms for name in names
        )

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
            "seen": train_vocabularies(cfg),
        }

    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, MaskPredictions]:
        """See :meth:`HeadSegmentor.segment`. The third output is the input of the criterion;
        in training there are no logits."""
        features = features or self.backbone(images)
        text = self.text_encoder.encode_vocabulary(vocabulary)
        predictions = self.head(features, text, image_sizes)
        masks = predictions.mask_logits[-1].float().sigmoid()
        pixel_valid = valid_positions(
            image_sizes, images.shape[-2:], masks.shape[-2:], images.device
        )
        if self.training:
            return {}, Proposals.all_categories(masks[:, :0], pixel_valid), predictions
        # CLIP's tokenizers ignore case.
        names = ([name.lower() for name in names] for names in vocabulary.synonyms)
        seen = [not self._seen_names.isdisjoint(synonyms) for synonyms in names]
        exponent = torch.where(torch.tensor(seen, device=masks.device), *self.exponents)
        logits, dense = predictions.class_logits[-1].float(), features["dense"].float()
        with torch.autocast(self.device.type, enabled=False):
            probability = self._classify(
                logits, masks * pixel_valid[:, None], dense, text, exponent
            )
            scores = torch.einsum("bnc,bnhw->bchw", probability, masks).clamp(min=1e-12).log()
        return {"fine": scores}, Proposals.all_categories(scores, pixel_valid), predictions

    def _classify(
        self, logits: Tensor, masks: Tensor, dense: Tensor, text: TextFeatures, exponent: Tensor
    ) -> Tensor:
        """Compute the probability (B, N, C) of each category for each query.

        Args:
            logits: (B, N, C + 1) class logits of the queries.
            masks: (B, N, h, w) probability of each mask, 0 at padding.
            dense: (B, D, h', w') CLIP features.
            text: the C categories.
            exponent: (C,) exponent of the probability from pooled CLIP features.
        """
        weights = F.adaptive_avg_pool2d(masks, dense.shape[-2:])
        unit = F.normalize(mask_pool(weights, dense), dim=2).mT
        clip_log_p = (self.clip_scale * cosine_similarity(unit, text)).mT.log_softmax(2)
        query_log_p = logits[..., :-1].log_softmax(2)
        probability = ((1 - exponent) * query_log_p + exponent * clip_log_p).softmax(2)
        return probability * (1 - logits.softmax(2)[..., -1:])
