"""The meta-architecture: CLIP's encoders and the five stages, in their one direction of flow."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from ..structures import Proposals
from ..vocabulary import Vocabulary
from .build import (
    CATEGORY_PROPOSAL_REGISTRY,
    CLASS_REFINEMENT_REGISTRY,
    COARSE_DECODER_REGISTRY,
    FINE_DECODER_REGISTRY,
    TEXT_GUIDANCE_REGISTRY,
    build_stage,
)
from .class_refinement import Refinement
from .layers import valid_positions
from .losses import present_categories
from .segmentor import OpenVocabularySegmentor
from .text_encoder import TextEncoder
from .towers import build_towers

__all__ = ["DCPCLIP"]


@META_ARCH_REGISTRY.register()
class DCPCLIP(OpenVocabularySegmentor):
    """Open-vocabulary semantic segmentation, coarse to fine, with dual interaction.

    An independent implementation of the method that the abstract of arXiv 2603.13951 describes. The
    docstrings of the stages say what is theirs and what is ours.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        text_encoder: TextEncoder,
        proposal: nn.Module,
        guidance: nn.Module,
        coarse_decoder: nn.Module,
        fine_decoder: nn.Module,
        refinement: nn.Module,
        channels_last: bool = False,
        **common,
    ):
        """
        Args:
            backbone: a :class:`CLIPBackbone`.
            text_encoder: the text tower of the same CLIP.
            proposal, guidance, coarse_decoder, fine_decoder, refinement: stages 1 to 5.
            channels_last: keep convolutions in channels-last memory format.
            common: see :class:`OpenVocabularySegmentor`.
        """
        super().__init__(backbone=backbone, **common)
        self.text_encoder = text_encoder
        self.proposal = proposal
        self.guidance = guidance
        self.coarse_decoder = coarse_decoder
        self.fine_decoder = fine_decoder
        self.refinement = refinement
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone, text_encoder = build_towers(cfg)
        shape = backbone.output_shape()
        guidance = build_stage(TEXT_GUIDANCE_REGISTRY, "TEXT_GUIDANCE", cfg, shape)
        coarse = build_stage(
            COARSE_DECODER_REGISTRY, "COARSE_DECODER", cfg, shape, guidance.out_channels
        )
        widths = (coarse.visual_channels, coarse.text_channels)
        return {
            "backbone": backbone,
            "text_encoder": text_encoder,
            "proposal": build_stage(CATEGORY_PROPOSAL_REGISTRY, "PROPOSAL", cfg, shape),
            "guidance": guidance,
            "coarse_decoder": coarse,
            "fine_decoder": build_stage(FINE_DECODER_REGISTRY, "FINE_DECODER", cfg, shape, *widths),
            "refinement": build_stage(CLASS_REFINEMENT_REGISTRY, "CLASS_REFINEMENT", cfg, shape),
            "channels_last": cfg.MODEL.DCP_CLIP.CHANNELS_LAST,
            **cls.common_config(cfg),
        }

    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None,
        ids: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, Refinement | None]:
        """The five stages; see :meth:`OpenVocabularySegmentor.segment`."""
        features = self.backbone(images)
        dense, pooled = features["dense"], features["pooled"]
        valid = valid_positions(image_sizes, images.shape[-2:], dense.shape[-2:], images.device)
        text = self.text_encoder.encode_vocabulary(vocabulary)
        present = None
        if labels is not None and (self.training or getattr(self.proposal, "needs_labels", False)):
            present = present_categories(labels, len(vocabulary))

        # Cosines decide between names: never in half precision.
        with torch.autocast(self.device.type, enabled=False):
            unit = F.normalize(dense.float(), dim=1)
            proposals = self.proposal(
                unit, pooled.float(), text.embeddings.float(), text.rows, valid, present, ids
            )
            similarity = torch.einsum("bkd,bdhw->bkhw", proposals.text, unit)
        guidance = self.guidance(proposals.text, dense, similarity, valid)
        coarse, visual, words = self.coarse_decoder(
            dense, guidance, similarity, valid, proposals.valid
        )
        fine = self.fine_decoder(coarse, visual, words, features, proposals.valid)
        refinement = self.refinement(
            fine, dense, proposals.text, proposals.scores, valid, proposals.valid
        )
        maps = {"coarse": coarse, "fine": fine}
        if refinement is not None:
            maps["final"] = refinement.apply(fine, proposals.valid)
        return maps, proposals, refinement
