"""The meta-architecture: CLIP's encoders and the five stages, in their order."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.build import build_clip
from dcp_clip.modeling.layers import best_synonym_similarity, to_channels_last, valid_positions
from dcp_clip.modeling.losses import present_categories
from dcp_clip.modeling.segmentor import OpenVocabularySegmentor
from dcp_clip.modeling.stages.registry import (
    CATEGORY_PROPOSAL_REGISTRY,
    CLASS_REFINEMENT_REGISTRY,
    COARSE_DECODER_REGISTRY,
    FINE_DECODER_REGISTRY,
    TEXT_GUIDANCE_REGISTRY,
    build_stage,
)
from dcp_clip.modeling.stages.stage3_coarse_decoder import most_probable
from dcp_clip.structures import Proposals, Refinement, select_categories
from dcp_clip.vocabulary import Vocabulary

__all__ = ["DCPCLIP"]


@META_ARCH_REGISTRY.register()
class DCPCLIP(OpenVocabularySegmentor):
    """Open-vocabulary semantic segmentation, coarse to fine, with dual interaction.

    An independent implementation of the method that the abstract of arXiv 2603.13951 describes.
    docs/method.md says what is from the abstract and what is this project's own choice.
    """

    @configurable
    def __init__(
        self,
        *,
        proposal: nn.Module,
        guidance: nn.Module,
        coarse_decoder: nn.Module,
        fine_decoder: nn.Module,
        refinement: nn.Module,
        num_fine_categories: int = 0,
        channels_last: bool = False,
        **common,
    ):
        """
        Args:
            proposal, guidance, coarse_decoder, fine_decoder, refinement: stages 1 to 5.
            num_fine_categories: M, the number of categories of an image that stages 4 and 5 get,
                2 M if large images are segmented in windows; 0 for all K proposals.
            channels_last: keep convolutions in channels-last memory format.
            common: see :class:`OpenVocabularySegmentor`.
        """
        super().__init__(**common)
        self.proposal = proposal
        self.guidance = guidance
        self.coarse_decoder = coarse_decoder
        self.fine_decoder = fine_decoder
        self.refinement = refinement
        self.num_fine_categories = num_fine_categories
        if channels_last:
            to_channels_last(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        clip = build_clip(cfg)
        shape = clip["backbone"].output_shape()
        guidance = build_stage(TEXT_GUIDANCE_REGISTRY, "TEXT_GUIDANCE", cfg, shape)
        coarse = build_stage(
            COARSE_DECODER_REGISTRY, "COARSE_DECODER", cfg, shape, guidance.out_channels
        )
        widths = (coarse.visual_channels, coarse.text_channels)
        return {
            "proposal": build_stage(CATEGORY_PROPOSAL_REGISTRY, "PROPOSAL", cfg, shape),
            "guidance": guidance,
            "coarse_decoder": coarse,
            "fine_decoder": build_stage(FINE_DECODER_REGISTRY, "FINE_DECODER", cfg, shape, *widths),
            "refinement": build_stage(CLASS_REFINEMENT_REGISTRY, "CLASS_REFINEMENT", cfg, shape),
            "num_fine_categories": cfg.MODEL.DCP_CLIP.FINE_DECODER.NUM_CATEGORIES,
            "channels_last": cfg.MODEL.DCP_CLIP.CHANNELS_LAST,
            **clip,
            **cls.common_config(cfg),
        }

    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, Refinement | None]:
        """Run the five stages; see :meth:`OpenVocabularySegmentor.segment`."""
        features = features or self.backbone(images)
        dense, pooled = features["dense"], features["pooled"]
        pixel_valid = valid_positions(
            image_sizes, images.shape[-2:], dense.shape[-2:], images.device
        )
        text = self.text_encoder.encode_vocabulary(vocabulary)
        present = None
        if labels is not None and (self.training or getattr(self.proposal, "needs_labels", False)):
            present = present_categories(labels, len(vocabulary))

        # Small differences of cosine similarity decide between categories, so use float32.
        with torch.autocast(self.device.type, enabled=False):
            unit = F.normalize(dense.float(), dim=1)
            embeddings = text.embeddings.float()
            proposals = self.proposal(
                unit,
                pooled.float(),
                embeddings,
                text.category_rows,
                pixel_valid,
                present,
                ids,
            )
            rows = text.category_rows[proposals.ids]
            similarity = best_synonym_similarity(unit, embeddings, rows)
        guidance = self.guidance(proposals.text_features, dense, similarity, pixel_valid)
        coarse, visual, text_features = self.coarse_decoder(
            dense, guidance, similarity, pixel_valid, proposals.valid
        )
        # Given categories are used as they are: the windows of a large image share them. A large
        # image shows more of them than a window, so it gets twice as many.
        if self.num_fine_categories and ids is None:
            in_windows = self.window is not None and not self.training
            chosen = most_probable(
                coarse,
                pixel_valid,
                proposals.valid,
                self.num_fine_categories * (2 if in_windows else 1),
                None if present is None else proposals.gather(present),
            )
            proposals = proposals.select(chosen)
            coarse = select_categories(coarse, chosen)
            text_features = select_categories(text_features, chosen)
        fine = self.fine_decoder(
            coarse, visual, text_features, features, pixel_valid, proposals.valid
        )
        refinement = self.refinement(
            fine, dense, proposals.text_features, proposals.scores, pixel_valid, proposals.valid
        )
        logits = {"coarse": coarse, "fine": fine}
        if refinement is not None:
            logits["final"] = refinement.apply(fine, proposals.valid)
        return logits, proposals, refinement
