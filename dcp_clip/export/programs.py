"""The programs that are exported: image to label map, names to text features, logits to labels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.export.stage1 import ExportableProposal
from dcp_clip.modeling.clip.text_tower import encode_tokens
from dcp_clip.modeling.meta_arch import DCPCLIP
from dcp_clip.structures import TextFeatures

__all__ = ["ImageProgram", "LabelProgram", "TextProgram"]

# The size of an image without padding, for any size. Padding to multiples of the stride is smaller
# than a cell of the encoder's last grid, so every cell contains a part of the image.
_NO_PADDING = (2**31, 2**31)


class _GivenText(nn.Module):
    """Replaces the text encoder: the "vocabulary" is the text features themselves."""

    def encode_vocabulary(self, features: TextFeatures) -> TextFeatures:
        return features


class ImageProgram(nn.Module):
    """The whole model for a batch of images of one size, with the text features as inputs."""

    name = "image"
    inputs = ("image", "text_features", "category_rows")
    results = ("label_map", "ids", "scores", "confidence", "presence", "logits")
    # Without those that have the size of the image.
    unlabelled = ("ids", "scores", "presence", "logits")

    def __init__(self, model: DCPCLIP):
        """
        Args:
            model: a trained or training-free model; it is set to evaluation mode.
        """
        super().__init__()
        self.model = copy.copy(model).eval()
        self.model._modules = {
            **model._modules,
            "proposal": ExportableProposal.of(model.proposal),
            "text_encoder": _GivenText(),
        }
        # Without the image itself, which the rest of the model gets as an input.
        self.features = tuple(key for key in model.backbone.output_shape() if key != "image")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return self.results + self.features

    def forward(
        self, image: Tensor, text_features: Tensor, category_rows: Tensor
    ) -> tuple[Tensor, ...]:
        """
        Args:
            image: (B, 3, H, W) uint8 RGB, of any size.
            text_features: (N, D), of unit length.
            category_rows: (C, S) int64, the rows of the synonyms of each category. A category with
                fewer than S synonyms repeats its first row.

        Returns:
            label map (B, H, W) int64 category ids; ids (B, K) int64, ascending; scores (B, K) of
            stage 1; confidence (B, H, W), 0 to 1; presence (B, K), the probability by stage 5 that
            the category is in the image, 1 without stage 5; logits (B, K, h, w). The logits cover
            the image after padding at the right and the bottom to multiples of the encoder's
            stride. Then the output of the image encoder, in the order of `features`.
        """
        model = self.model
        height, width = image.shape[-2:]
        pixels = (image.float() - model.pixel_mean) / model.pixel_std
        divisor = model.backbone.size_divisibility
        padded = [(side + divisor - 1) // divisor * divisor for side in (height, width)]
        pixels = F.pad(pixels, (0, padded[1] - width, 0, padded[0] - height))
        text = TextFeatures(text_features, category_rows)
        features = model.backbone(pixels)
        stages, proposals, refinement = model.segment(
            pixels, [_NO_PADDING], text, features=features
        )
        logits = stages[list(stages)[-1] if model.output == "last" else model.output].float()
        full = F.interpolate(logits, padded, mode="bilinear")[..., :height, :width]
        best, position = full.max(1)
        label_map = proposals.ids.gather(1, position.flatten(1)).unflatten(1, (height, width))
        total = ((full - best[:, None]) / model.temperature).exp().sum(1)
        presence = torch.ones_like(proposals.scores)
        if refinement is not None:
            presence = refinement.class_logits.float().sigmoid()
        results = (label_map, proposals.ids, proposals.scores, total.reciprocal(), presence, logits)
        return (*results, *(features[key] for key in self.features))


class TextProgram(nn.Module):
    """CLIP's text tower."""

    name = "text"
    inputs = ("tokens",)
    outputs = ("features",)

    def __init__(self, text: nn.Module):
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (P, L) int64 to features (P, D) of unit length."""
        return F.normalize(encode_tokens(self.text, tokens).float(), dim=-1)


class LabelProgram(nn.Module):
    """Upsamples logits bilinearly to rows of pixels, and labels them.

    It computes what :class:`dcp_clip.utils.upsampling.RowResizer` and ``winners`` compute. The
    caller gives the neighbours, so one program serves every image size and every band of rows.
    """

    name = "labels"
    inputs = ("logits", "above", "below", "down", "left", "right", "across", "temperature")
    outputs = ("positions", "confidence")

    def forward(
        self,
        logits: Tensor,
        above: Tensor,
        below: Tensor,
        down: Tensor,
        left: Tensor,
        right: Tensor,
        across: Tensor,
        temperature: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            logits: (K, h, w).
            above, below: (R,) int64, the rows of cells before and after each row of pixels.
            down: (R,) the weight of `below`, 0 to 1.
            left, right, across: the same for the W columns.
            temperature: () of the confidence.

        Returns:
            (R, W) int64 positions in the K categories; (R, W) confidence, 0 to 1.
        """
        start = logits[..., left]
        columns = start + (logits[..., right] - start) * across
        start = columns[:, above]
        pixels = start + (columns[:, below] - start) * down[:, None]
        best, positions = pixels.max(0)
        total = ((pixels - best) / temperature).exp().sum(0)
        return positions, total.reciprocal()
