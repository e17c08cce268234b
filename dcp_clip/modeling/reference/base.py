"""What the reference heads share: CLIP's two towers, all C names, and a feature pyramid."""

from __future__ import annotations

from functools import reduce

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from ...structures import Proposals
from ...vocabulary import Vocabulary
from ..class_refinement import Refinement
from ..layers import resize_to, valid_positions
from ..segmentor import OpenVocabularySegmentor
from ..text_encoder import TextEncoder
from ..text_features import TextFeatures
from ..towers import build_towers

__all__ = [
    "Pyramid",
    "ReferenceSegmentor",
    "conv_norm_relu",
    "cosines",
    "on_stride",
]

# The grid that each level is brought to; res5 stays on its own. A ViT's come on one grid, and those
# of a small tower may be finer than their names say.
_STRIDES = {"res4": 16, "res3": 8, "res2": 4}


class ReferenceSegmentor(OpenVocabularySegmentor):
    """CLIP's image and text towers and one head, which maps every name of the vocabulary: K = C."""

    def __init__(
        self,
        *,
        backbone: nn.Module,
        text_encoder: TextEncoder,
        head: nn.Module,
        channels_last: bool = False,
        **common,
    ):
        """
        Args:
            backbone: a :class:`CLIPBackbone`.
            text_encoder: the text tower of the same CLIP.
            head: ``forward(features, text)``, of what the backbone returned and a
                :class:`TextFeatures`, returns logits (B, C, H/4, W/4).
            channels_last: keep convolutions in channels-last memory format.
            common: see :class:`OpenVocabularySegmentor`.
        """
        super().__init__(backbone=backbone, **common)
        self.text_encoder = text_encoder
        self.head = head
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def towers_config(cls, cfg: CfgNode) -> dict:
        """The arguments above that do not depend on the head."""
        backbone, text_encoder = build_towers(cfg)
        return {
            "backbone": backbone,
            "text_encoder": text_encoder,
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
        """See :meth:`OpenVocabularySegmentor.segment`; one map, "fine", over all categories,
        whatever `ids` says."""
        features = self.backbone(images)
        logits = self.head(features, self.text_encoder.encode_vocabulary(vocabulary))
        valid = valid_positions(image_sizes, images.shape[-2:], logits.shape[-2:], images.device)
        return {"fine": logits}, Proposals.of_all(logits, valid), None


def cosines(unit: Tensor, text: TextFeatures) -> Tensor:
    """(B, C, ...) cosines of unit-length features (B, D, ...) and all categories; of several
    synonyms the best counts. Never in half precision: they decide between names."""
    with torch.autocast(unit.device.type, enabled=False):
        synonyms = text.embeddings.float()[text.rows].unbind(1)
        parts = (torch.einsum("bd...,cd->bc...", unit.float(), names) for names in synonyms)
        return reduce(torch.maximum, parts)


def conv_norm_relu(in_channels: int, out_channels: int) -> Conv2d:
    """3x3 convolution, group norm over four groups, ReLU."""
    norm = nn.GroupNorm(4, out_channels)
    return Conv2d(in_channels, out_channels, 3, padding=1, bias=False, norm=norm, activation=F.relu)


def on_stride(feature: Tensor, image: Tensor, stride: int) -> Tensor:
    """Resize features of an image (B, 3, H, W) to the grid of a stride."""
    height, width = image.shape[-2:]
    return resize_to(feature, (-(-height // stride), -(-width // stride)))


class Pyramid(nn.Module):
    """Top-down pathway (FPN, arXiv 1612.03144) from CLIP's dense map to stride 4."""

    def __init__(self, input_shape: dict[str, ShapeSpec], dim: int):
        """
        Args:
            input_shape: of the backbone; dense, res2 to res4 and, if there, res5 are read.
            dim: channels of every level; a multiple of 4.
        """
        super().__init__()
        self.strides = {"res5": input_shape["res5"].stride} if "res5" in input_shape else {}
        self.strides |= _STRIDES
        self.top = nn.Conv2d(input_shape["dense"].channels, dim, 1)
        self.laterals = nn.ModuleDict(
            {key: nn.Conv2d(input_shape[key].channels, dim, 1) for key in self.strides}
        )
        self.merges = nn.ModuleDict({key: conv_norm_relu(dim, dim) for key in self.strides})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the backbone returned to levels (B, dim, h, w) by their key, the coarsest first."""
        dense = features["dense"]
        # Unit-length columns times sqrt(D): entries of unit size.
        x = self.top(F.normalize(dense, dim=1) * dense.shape[1] ** 0.5)
        levels = {}
        for key, stride in self.strides.items():
            # Project, then resize: the two commute, and the projection is narrow.
            lateral = on_stride(self.laterals[key](features[key]), features["image"], stride)
            x = levels[key] = self.merges[key](resize_to(x, lateral.shape[-2:]) + lateral)
        return levels
