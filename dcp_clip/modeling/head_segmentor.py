"""A segmentor with one head: CLIP's two towers, all C categories, and a feature pyramid."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.build import build_clip
from dcp_clip.modeling.layers import (
    best_synonym_similarity,
    resize_to,
    to_channels_last,
    valid_positions,
)
from dcp_clip.modeling.segmentor import OpenVocabularySegmentor
from dcp_clip.structures import Proposals, TextFeatures
from dcp_clip.vocabulary import Vocabulary

__all__ = [
    "HeadSegmentor",
    "Pyramid",
    "conv_norm_relu",
    "cosine_similarity",
    "resize_to_stride",
]

# The stride that each level is resized to; res5 keeps its own. All levels of a ViT have the same
# grid, and those of a small tower can have smaller strides than usual.
_STRIDES = {"res4": 16, "res3": 8, "res2": 4}


class HeadSegmentor(OpenVocabularySegmentor):
    """CLIP's image and text towers, and one head that computes the logits of all C categories."""

    outputs = ("last", "fine")  # there are no coarse logits

    def __init__(self, *, head: nn.Module, channels_last: bool = False, **common):
        """
        Args:
            head: ``forward(features, text, labels)`` returns logits (B, C, H/4, W/4). `features` is
                the output of the backbone, `text` the :class:`TextFeatures` of C categories.
                `labels` is None in evaluation; in training it has the category ids (B, H, W) of the
                padded images, -1 where ignored. In training the head can also return a tuple:
                logits, and losses by name that are added to those of the criterion. If the logits
                in the tuple are None, the head's own losses are the only ones.
            channels_last: keep convolutions in channels-last memory format.
            common: see :class:`OpenVocabularySegmentor`.
        """
        super().__init__(**common)
        self.head = head
        if channels_last:
            to_channels_last(self)

    @classmethod
    def clip_config(cls, cfg: CfgNode) -> dict:
        """The arguments above that do not depend on the head."""
        return {
            "channels_last": cfg.MODEL.DCP_CLIP.CHANNELS_LAST,
            **build_clip(cfg),
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
    ) -> tuple[dict[str, Tensor], Proposals, dict[str, Tensor] | None]:
        """See :meth:`OpenVocabularySegmentor.segment`. The logits "fine" are those of all
        categories; `ids` has no effect. The third output is the head's own losses, or None."""
        features = features or self.backbone(images)
        text = self.text_encoder.encode_vocabulary(vocabulary)
        output = self.head(features, text, labels if self.training else None)
        logits, losses = output if isinstance(output, tuple) else (output, None)
        if logits is None:
            return {}, Proposals.all_categories(features["dense"][:, :0]), losses
        pixel_valid = valid_positions(
            image_sizes, images.shape[-2:], logits.shape[-2:], images.device
        )
        return {"fine": logits}, Proposals.all_categories(logits, pixel_valid), losses


def cosine_similarity(unit: Tensor, text: TextFeatures) -> Tensor:
    """Compute the cosine similarity (B, C, ...) of unit features (B, D, ...) and all categories.

    The similarity of a category is that of its best synonym. Small differences decide between
    categories, so it is computed in float32.
    """
    with torch.autocast(unit.device.type, enabled=False):
        rows = text.category_rows.expand(len(unit), -1, -1)
        return best_synonym_similarity(unit.float(), text.embeddings.float(), rows)


def conv_norm_relu(in_channels: int, out_channels: int) -> Conv2d:
    """A 3x3 convolution, group norm with four groups, and ReLU."""
    norm = nn.GroupNorm(4, out_channels)
    return Conv2d(in_channels, out_channels, 3, padding=1, bias=False, norm=norm, activation=F.relu)


def resize_to_stride(feature: Tensor, image: Tensor, stride: int) -> Tensor:
    """Resize the features of an image (B, 3, H, W) to the grid of a stride."""
    height, width = image.shape[-2:]
    return resize_to(feature, (-(-height // stride), -(-width // stride)))


class Pyramid(nn.Module):
    """Top-down pathway (FPN, arXiv 1612.03144) from CLIP's dense features to stride 4."""

    def __init__(self, input_shape: dict[str, ShapeSpec], dim: int):
        """
        Args:
            input_shape: output shape of the backbone; dense, res2 to res4 and, if there is one,
                res5 are used.
            dim: channels of each level; a multiple of 4.
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
        """From the output of the backbone to levels (B, dim, h, w) by name, the coarsest first."""
        dense = features["dense"]
        # Unit-length vectors times sqrt(D) have entries of unit size.
        x = self.top(F.normalize(dense, dim=1) * dense.shape[1] ** 0.5)
        levels = {}
        for key, stride in self.strides.items():
            # Projection and resizing commute; the projected features are cheaper to resize.
            lateral = self.laterals[key](features[key])
            lateral = resize_to_stride(lateral, features["image"], stride)
            x = levels[key] = self.merges[key](resize_to(x, lateral.shape[-2:]) + lateral)
        return levels
