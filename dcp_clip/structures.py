"""The data structures that pass between the parts of the model, and its output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.utils.label_map import resized_bands

__all__ = [
    "Proposals",
    "Refinement",
    "SemSegLabels",
    "SemSegProposals",
    "TextFeatures",
    "output_size",
]


@dataclass
class TextFeatures:
    """Text features of a vocabulary.

    Attributes:
        embeddings: (N, D), unit length; one row for each category, or one for each synonym.
        category_rows: (C, S) int64, the rows of each category; a category with fewer synonyms
            repeats its first row.
    """

    embeddings: Tensor
    category_rows: Tensor

    @property
    def num_categories(self) -> int:
        return len(self.category_rows)


@dataclass
class Proposals:
    """Output of stage 1: the K categories of each image that the decoders see.

    Attributes:
        ids: (B, K) int64, category ids in the vocabulary, distinct and in ascending order where
            `valid`.
        scores: (B, K) float, evidence that the category is in the image; higher is more likely.
        valid: (B, K) bool, False for padding of images with fewer categories.
        text_features: (B, K, D) the unit-length text feature of each category in this image (with
            synonyms: the best of them, or their mean).
        learned: whether the stage learns from a loss on the scores.
    """

    ids: Tensor
    scores: Tensor
    valid: Tensor
    text_features: Tensor
    learned: bool = False

    @classmethod
    def all_categories(cls, logits: Tensor, pixel_valid: Tensor | None = None) -> Proposals:
        """The proposals of a model without a proposal stage: every category.

        The score of a category is the maximum of its logits. There are no text features.

        Args:
            logits: (B, C, h, w).
            pixel_valid: (B, h, w) bool, False at padding; None if there is no padding.
        """
        b, c = logits.shape[:2]
        ids = torch.arange(c, device=logits.device).expand(b, c)
        if pixel_valid is not None:
            logits = logits.masked_fill(~pixel_valid[:, None], float("-inf"))
        scores = logits.flatten(2).amax(2)
        return cls(ids, scores, torch.ones_like(ids, dtype=torch.bool), logits.new_zeros(b, c, 0))

    def gather(self, values: Tensor) -> Tensor:
        """Gather (B, C) values of all categories to (B, K); False or 0 at padding."""
        return values.gather(1, self.ids).masked_fill(~self.valid, 0)


@dataclass
class Refinement:
    """Output of stage 5.

    Attributes:
        class_logits: (B, K), logit that the category is present in the image; its log-sigmoid is
            added to the logits of the category.
        mask_logits: (B, K, K), how well each mask (row) fits each proposed category (column); their
            loss trains the pooled features to tell the categories apart.
        reassignment: (B, K, K), probability that the area of a mask (row) belongs to a category
            (column); None if every mask keeps its own category.
    """

    class_logits: Tensor
    mask_logits: Tensor
    reassignment: Tensor | None = None

    def apply(self, fine: Tensor, proposal_valid: Tensor) -> Tensor:
        """Final logits: fine logits reassigned between categories, plus the log-probability that
        each category is present.

        Args:
            fine: (B, K, H/4, W/4) logits.
            proposal_valid: (B, K) bool, False for padded proposals.
        """
        presence = F.logsigmoid(self.class_logits)[..., None, None]
        if self.reassignment is None:
            return fine + presence
        # Probabilities are mixed here, so never in half precision.
        with torch.autocast(fine.device.type, enabled=False):
            fine = fine.float().masked_fill(~proposal_valid[..., None, None], float("-inf"))
            masks = fine.softmax(1)
            reassigned = torch.bmm(self.reassignment.mT, masks.flatten(2)).view_as(masks)
            return reassigned.clamp(min=1e-6).log() + presence.float()


class SemSegProposals:
    """Semantic segmentation logits over the proposed categories of one image.

    Compact stand-in for a (C, H, W) score tensor, in the manner of
    :class:`detectron2.structures.Instances`: only the K proposed maps exist, every other category
    is minus infinity, and they stay on the model's grid until somebody asks for pixels. It answers
    ``argmax(dim=0)`` and ``to(device)``, which is all that
    :class:`detectron2.evaluation.SemSegEvaluator` asks of a prediction; the answer is made a band
    of rows at a time, so that no K x H x W tensor exists either.

    Attributes:
        maps: (K, h, w) float, logits on the model's grid.
        category_ids: (K,) int64, the category of each map; distinct.
        num_categories: C, the size of the vocabulary.
        image_size: (H, W) in pixels.
        extent: (rows, columns) of the grid that the image covers, in cells, possibly fractional;
            what lies beyond is padding.
    """

    def __init__(
        self,
        maps: Tensor,
        category_ids: Tensor,
        num_categories: int,
        image_size: tuple[int, int] | None = None,
        extent: tuple[float, float] | None = None,
    ):
        """
        Args:
            maps: (K, h, w), K >= 1.
            category_ids: (K,) ids below `num_categories`.
            num_categories: C.
            image_size: (H, W); default: (h, w).
            extent: default: the whole grid.

        Raises:
            ValueError: when the shapes do not agree.
        """
        if maps.dim() != 3 or category_ids.shape != maps.shape[:1] or not len(maps):
            raise ValueError(
                "SemSegProposals needs logits (K, h, w) and category_ids (K,) with K >= 1, "
                f"got {tuple(maps.shape)} and {tuple(category_ids.shape)}."
            )
        self.maps = maps
        self.category_ids = category_ids
        self.num_categories = num_categories
        self.image_size = tuple(image_size or maps.shape[1:])
        self.extent = tuple(extent or maps.shape[1:])
        self._label_map: np.ndarray | None = None

    @property
    def logits(self) -> Tensor:
        """(K, H, W) logits of every pixel; made anew each time."""
        return torch.cat([band for _, band in self._bands()], dim=1)

    @property
    def device(self) -> torch.device:
        return self.maps.device

    def __len__(self) -> int:
        return len(self.category_ids)

    def __repr__(self) -> str:
        h, w = self.image_size
        return f"SemSegProposals(K={len(self)}, H={h}, W={w}, num_categories={self.num_categories})"

    def to(self, *args, **kwargs) -> SemSegProposals:
        """Move to a device or dtype; the ids stay integers."""
        maps = self.maps.to(*args, **kwargs)
        ids = self.category_ids.to(maps.device)
        return SemSegProposals(maps, ids, self.num_categories, self.image_size, self.extent)

    def argmax(self, dim: int = 0) -> Tensor:
        """The winning category id of every pixel, (H, W) int64, on the maps' device.

        Raises:
            ValueError: for any other dimension than the categories'.
        """
        if dim != 0:
            raise ValueError(f"SemSegProposals.argmax knows dim=0 (the categories), got {dim}.")
        return torch.from_numpy(self.label_map().astype(np.int64)).to(self.device)

    def label_map(self) -> np.ndarray:
        """(H, W) winning category ids in the smallest unsigned type that holds C ids: an eighth of
        the memory of :meth:`argmax`. Decided once and kept, so not to be written to."""
        if self._label_map is None:
            kind = np.min_scalar_type(self.num_categories - 1)
            ids = self.category_ids.cpu().numpy().astype(kind)
            label_map = np.empty(self.image_size, kind)
            for start, band in self._bands():
                winners = band.argmax(dim=0).cpu().numpy()
                label_map[start : start + len(winners)] = ids[winners]
            self._label_map = label_map
        return self._label_map

    def to_dense(self, fill: float = float("-inf")) -> Tensor:
        """The (C, H, W) tensor this object stands for; for small vocabularies and tests."""
        logits = self.logits
        dense = logits.new_full((self.num_categories, *self.image_size), fill)
        dense[self.category_ids] = logits
        return dense

    def _bands(self) -> Iterator[tuple[int, Tensor]]:
        return resized_bands(self.maps, self.image_size, self.extent)


class SemSegLabels:
    """Semantic segmentation of one image that was decided part by part: labels without logits.

    Answers what :class:`SemSegProposals` answers, as far as labels allow.

    Attributes:
        category_ids: (K,) int64, the categories that were proposed.
        num_categories: C, the size of the vocabulary.
    """

    def __init__(self, label_map: np.ndarray, category_ids: Tensor, num_categories: int):
        """
        Args:
            label_map: (H, W) category ids, of any integer type.
            category_ids: (K,).
            num_categories: C.
        """
        self._label_map = label_map
        self.category_ids = category_ids.cpu()
        self.num_categories = num_categories

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self._label_map.shape

    @property
    def device(self) -> torch.device:
        return self.category_ids.device

    def __len__(self) -> int:
        return len(self.category_ids)

    def __repr__(self) -> str:
        h, w = self.image_size
        return f"SemSegLabels(K={len(self)}, H={h}, W={w}, num_categories={self.num_categories})"

    def to(self, *args, **kwargs) -> SemSegLabels:
        """Labels are always on the CPU."""
        return self

    def argmax(self, dim: int = 0) -> Tensor:
        """The category id of every pixel, (H, W) int64.

        Raises:
            ValueError: for any other dimension than the categories'.
        """
        if dim != 0:
            raise ValueError(f"SemSegLabels.argmax knows dim=0 (the categories), got {dim}.")
        return torch.from_numpy(self._label_map.astype(np.int64))

    def label_map(self) -> np.ndarray:
        """(H, W) category ids in the smallest unsigned type that holds C ids."""
        return self._label_map


def output_size(inputs: dict) -> tuple[int, int]:
    """(height, width) that an input asks for: its own keys', else its image's."""
    height, width = inputs["image"].shape[-2:]
    return inputs.get("height", height), inputs.get("width", width)
