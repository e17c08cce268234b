"""What passes between the proposal stage, the model's output and Detectron2's evaluators."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .label_map import resized_bands

__all__ = ["Proposals", "SemSegLabels", "SemSegProposals", "output_size"]


@dataclass
class Proposals:
    """The K categories of the vocabulary that go further for each image.

    Attributes:
        ids: (B, K) int64, category ids in the vocabulary, distinct and in ascending order where
            `valid`.
        scores: (B, K) float, the evidence that the category is in the image; higher is likelier.
        valid: (B, K) bool, False where a row is padded because its image has fewer categories.
        text: (B, K, D) the unit-length text feature that stands for each category in this image
            (with synonyms: the best of them, or their mean).
        learned: whether the stage that scored them learns from a loss on the scores.
    """

    ids: Tensor
    scores: Tensor
    valid: Tensor
    text: Tensor
    learned: bool = False

    @classmethod
    def of_all(cls, logits: Tensor, valid: Tensor | None = None) -> Proposals:
        """Every category, its score the maximum of its map, without text features: what a model
        without a proposal stage proposes.

        Args:
            logits: (B, C, h, w).
            valid: (B, h, w) bool, False at padding; None where all counts.
        """
        b, c = logits.shape[:2]
        ids = torch.arange(c, device=logits.device).expand(b, c)
        if valid is None:
            scores = logits.flatten(2).amax(2)
        else:
            scores = logits.masked_fill(~valid[:, None], float("-inf")).flatten(2).amax(2)
        return cls(ids, scores, torch.ones_like(ids, dtype=torch.bool), logits.new_zeros(b, c, 0))

    def to_category(self, present: Tensor) -> Tensor:
        """Gather a (B, C) per-category tensor to (B, K), False or 0 where the row is padded."""
        return present.gather(1, self.ids).masked_fill(~self.valid, 0)


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
