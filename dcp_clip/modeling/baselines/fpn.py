"""A closed-vocabulary FPN with the same encoder and losses."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor

from dcp_clip.modeling.clip.freezing import freeze_tower
from dcp_clip.modeling.inputs import train_vocabularies
from dcp_clip.modeling.layers import to_channels_last, valid_positions
from dcp_clip.modeling.segmentor import OpenVocabularySegmentor
from dcp_clip.structures import Proposals
from dcp_clip.vocabulary import Vocabulary

__all__ = ["FPNSegmentor"]

# A tower whose last stage keeps the stride 16 has no res5.
_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


@META_ARCH_REGISTRY.register()
class FPNSegmentor(OpenVocabularySegmentor):
    """CLIPBackbone, and Detectron2's FPN and semantic segmentation head (Panoptic FPN, arXiv
    1901.02446).

    It has one output channel for each category of DATASETS.TRAIN, in their order, and cannot
    segment other categories. It shows how accurate a plain network with the same encoder, data,
    augmentation, losses and training time is on a closed vocabulary.
    """

    needs_train_names = True
    outputs = ("last", "fine")  # there are no coarse logits

    @configurable
    def __init__(self, *, fpn: FPN, head: SemSegFPNHead, channels_last: bool = False, **common):
        """
        Args:
            fpn: a feature pyramid on a convolutional CLIPBackbone.
            head: Detectron2's head; its loss is not used.
            channels_last: keep convolutions in channels-last memory format.
            common: see :class:`OpenVocabularySegmentor`.
        """
        super().__init__(backbone=fpn, **common)
        self._train_vocabulary = self.vocabulary
        self.head = head
        if channels_last:
            to_channels_last(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        common = cls.common_config(cfg)
        if common["vocabulary"] is None:
            raise ValueError("FPNSegmentor has one channel for each category: set DATASETS.TRAIN.")
        if len({vocabulary.fingerprint() for vocabulary in train_vocabularies(cfg)}) > 1:
            raise ValueError(
                "FPNSegmentor has one channel for each category, so it cannot learn from data sets "
                f"with different categories, as in DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}: "
                "leave only data sets with the same categories."
            )
        bottom_up, dim = build_backbone(cfg), cfg.MODEL.BASELINES.DIM
        if bottom_up.views is not None:
            raise ValueError(
                "TEST.AUG.ENABLED is True, but it averages CLIP's dense features, which "
                "FPNSegmentor does not use: set it to False."
            )
        shapes = bottom_up.output_shape()
        levels = [level for level in _STRIDES if level in shapes]
        if len(levels) < 3 or any(shapes[level].stride != _STRIDES[level] for level in levels):
            strides = ", ".join(str(shapes[level].stride) for level in levels)
            raise ValueError(
                f"MODEL.CLIP.NAME is '{cfg.MODEL.CLIP.NAME}', whose image tower has the strides "
                f"{strides}; FPNSegmentor needs a tower with strides 4, 8, 16 and, optionally, 32."
            )
        freeze_tower(cfg, "TRAIN_IMAGE", bottom_up)
        fpn = FPN(bottom_up, levels, dim, norm="BN")
        fpn.pixel_mean, fpn.pixel_std = bottom_up.pixel_mean, bottom_up.pixel_std
        # Detectron2's is the largest stride of the pyramid; the tower can need more.
        fpn._size_divisibility = bottom_up.size_divisibility
        shape = {
            level.replace("res", "p"): ShapeSpec(channels=dim, stride=_STRIDES[level])
            for level in levels
        }
        head = SemSegFPNHead(
            shape,
            num_classes=len(common["vocabulary"]),
            conv_dims=dim,
            common_stride=4,
            norm="BN",
        )
        # The projection to CLIP's joint embedding space is not used.
        visual = bottom_up.visual
        visual.get_submodule("head" if hasattr(visual, "head") else "attnpool").requires_grad_(
            False
        )
        return {
            "fpn": fpn,
            "head": head,
            "channels_last": cfg.MODEL.DCP_CLIP.CHANNELS_LAST,
            **common,
        }

    def set_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        """See :meth:`OpenVocabularySegmentor.set_vocabulary`.

        Raises:
            ValueError: for another vocabulary than that of DATASETS.TRAIN.
        """
        if vocabulary is not None:
            self._check(vocabulary)
        super().set_vocabulary(vocabulary)

    def _check(self, vocabulary: Vocabulary) -> None:
        # Colours and display names may differ.
        if vocabulary.fingerprint() != self._train_vocabulary.fingerprint():
            raise ValueError("FPNSegmentor can segment the categories of DATASETS.TRAIN only.")

    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, None]:
        """See :meth:`OpenVocabularySegmentor.segment`. The logits "fine" are those of all
        categories.

        Raises:
            ValueError: for another vocabulary than that of DATASETS.TRAIN.
        """
        self._check(vocabulary)
        logits = self.head.layers(features or self.backbone(images))
        size = logits.shape[-2:]
        pixel_valid = valid_positions(image_sizes, images.shape[-2:], size, images.device)
        return {"fine": logits}, Proposals.all_categories(logits, pixel_valid), None
