"""What passes between the proposal stage, the model's output and Detectron2's evaluators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Proposals", "SemSegProposals"]


@dataclass
class Proposals:
    """The K categories of the vocabulary that go further for each image.

    Attributes:
        ids: (B, K) int64, category ids in the vocabulary; distinct within a valid row.
        scores: (B, K) float, the evidence that the category is in the image; higher is likelier.
        valid: (B, K) bool, False where a row is padded because its image has fewer categories.
        text: (B, K, D) the unit-length text feature that stands for each category in this image
            (with synonyms: the best of them, or their mean).
    """

    ids: Tensor
    scores: Tensor
    valid: Tensor
    text: Tensor

    def to_category(self, present: Tensor) -> Tensor:
        """Gather a (B, C) per-category tensor to (B, K), False or 0 where the row is padded."""
        return present.gather(1, self.ids).masked_fill(~self.valid, 0)


class SemSegProposals:
    """Semantic segmentation logits over the proposed categories of one image.

    Compact stand-in for a (C, H, W) score tensor, in the manner of
    :class:`detectron2.structures.Instances`: only the K proposed maps exist, every other category
    is minus infinity. It answers ``argmax(dim=0)`` and ``to(device)``, which is all that
    :class:`detectron2.evaluation.SemSegEvaluator` asks of a prediction.

    Attributes:
        logits: (K, H, W) float.
        category_ids: (K,) int64, the category of each map; distinct.
        num_categories: C, the size of the vocabulary.
    """

    def __init__(self, logits: Tensor, category_ids: Tensor, num_categories: int):
        """
        Args:
            logits: (K, H, W), K >= 1.
            category_ids: (K,) ids below `num_categories`.
            num_categories: C.

        Raises:
            ValueError: when the shapes do not agree.
        """
        if logits.dim() != 3 or category_ids.shape != logits.shape[:1] or not len(logits):
            raise ValueError(
                "SemSegProposals needs logits (K, H, W) and category_ids (K,) with K >= 1, "
                f"got {tuple(logits.shape)} and {tuple(category_ids.shape)}."
            )
        self.logits = logits
        self.category_ids = category_ids
        self.num_categories = num_categories

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.logits.shape[1], self.logits.shape[2]

    @property
    def device(self) -> torch.device:
        return self.logits.device

    def __len__(self) -> int:
        return len(self.category_ids)

    def __repr__(self) -> str:
        h, w = self.image_size
        return f"SemSegProposals(K={len(self)}, H={h}, W={w}, num_categories={self.num_categories})"

    def to(self, *args, **kwargs) -> SemSegProposals:
        """Move to a device or dtype; the ids stay integers."""
        logits = self.logits.to(*args, **kwargs)
        return SemSegProposals(logits, self.category_ids.to(logits.device), self.num_categories)

    def argmax(self, dim: int = 0) -> Tensor:
        """The winning category id of every pixel, (H, W) int64.

        Raises:
            ValueError: for any other dimension than the categories'.
        """
        if dim != 0:
            raise ValueError(f"SemSegProposals.argmax knows dim=0 (the categories), got {dim}.")
        return self.category_ids[self.logits.argmax(dim=0)]

    def to_dense(self, fill: float = float("-inf")) -> Tensor:
        """The (C, H, W) tensor this object stands for; for small vocabularies and tests."""
        dense = self.logits.new_full((self.num_categories, *self.image_size), fill)
        dense[self.category_ids] = self.logits
        return dense
