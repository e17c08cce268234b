"""Inputs and outputs of the stages of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Proposals", "Refinement", "TextFeatures", "select_categories"]


def select_categories(values: Tensor, positions: Tensor) -> Tensor:
    """Return the values (B, M, ...) at positions (B, M) of values (B, K, ...)."""
    # `take_along_dim` would fix the batch size of an exported program.
    index = positions.unflatten(1, (-1, *[1] * (values.dim() - 2)))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


@dataclass
class TextFeatures:
    """Text features of a vocabulary.

    Attributes:
        embeddings: (N, D), normalised. There is one row for each category or for each synonym.
        category_rows: (C, S) int64, row numbers of the synonyms of each category. A category with
            fewer than S synonyms repeats its first row.
    """

    embeddings: Tensor
    category_rows: Tensor

    @property
    def num_categories(self) -> int:
        return len(self.category_rows)


@dataclass
class Proposals:
    """Output of stage 1 and input of the decoders: the K proposed categories of each image.

    Attributes:
        ids: (B, K) int64, category ids; valid ids of an image are unique and in ascending order.
        scores: (B, K) float; a higher score means that the category is more likely in the image.
        valid: (B, K) bool, False for padding of images with fewer categories.
        text_features: (B, K, D), normalised text feature of each category. A category with synonyms
            has the feature of the synonym that fits this image best, or the mean feature.
        learned: whether the scores have learned parameters and a loss.
        presence: (B, K), probability by stage 5 that each category is in the image; None without
            stage 5.
        candidates: the proposals from which these were selected; None if these are all.
    """

    ids: Tensor
    scores: Tensor
    valid: Tensor
    text_features: Tensor
    learned: bool = False
    presence: Tensor | None = None
    candidates: Proposals | None = None

    @classmethod
    def all_categories(cls, logits: Tensor, pixel_valid: Tensor | None = None) -> Proposals:
        """Create proposals of all C categories, for a model without a proposal stage.

        The score of a category is its maximum logit. The text features are empty, (B, C, 0).

        Args:
            logits: (B, C, h, w).
            pixel_valid: (B, h, w) bool, False for padding; None if there is no padding.
        """
        b, c = logits.shape[:2]
        ids = torch.arange(c, device=logits.device).expand(b, c)
        if pixel_valid is not None:
            logits = logits.masked_fill(~pixel_valid[:, None], float("-inf"))
        scores = logits.flatten(2).amax(2)
        return cls(ids, scores, torch.ones_like(ids, dtype=torch.bool), logits.new_zeros(b, c, 0))

    def of_image(self, image: int) -> dict[str, Tensor]:
        """Return "ids" (K,), "scores" (K,) and, if known, "presence" (K,) of one image."""
        values = {"ids": self.ids, "scores": self.scores, "presence": self.presence}
        keep = self.valid[image]
        return {name: value[image][keep] for name, value in values.items() if value is not None}

    def select(self, positions: Tensor) -> Proposals:
        """Return the M proposals at positions (B, M) among the K proposals."""
        return Proposals(
            self.ids.gather(1, positions),
            self.scores.gather(1, positions),
            self.valid.gather(1, positions),
            select_categories(self.text_features, positions),
            self.learned,
            candidates=self,
        )

    def gather(self, values: Tensor) -> Tensor:
        """Gather (B, C) values of all categories to (B, K); padding becomes 0 or False."""
        return values.gather(1, self.ids).masked_fill(~self.valid, 0)


@dataclass
class Refinement:
    """Output of stage 5.

    Attributes:
        class_logits: (B, K), logits of the presence of each category in the image. `apply` adds
            their log-sigmoid to the logits of the pixels.
        mask_logits: (B, K, K), classification logits of each mask (row) over the proposed
            categories (columns). Their loss trains the pooled features.
        reassignment: (B, K, K), probability that the area of a mask (row) belongs to each category
            (columns); None if every mask keeps its category.
    """

    class_logits: Tensor
    mask_logits: Tensor
    reassignment: Tensor | None = None

    def apply(self, fine: Tensor, proposal_valid: Tensor) -> Tensor:
        """Compute the final logits from the fine logits.

        The fine logits are reassigned between categories. Then the log-probability of each
        category's presence is added.

        Args:
            fine: (B, K, H/4, W/4) logits of stage 4.
            proposal_valid: (B, K) bool, False for padding.

        Returns:
            (B, K, H/4, W/4) logits.
        """
        presence = F.logsigmoid(self.class_logits)[..., None, None]
        if self.reassignment is None:
            return fine + presence
        # Sums of probabilities need float32.
        with torch.autocast(fine.device.type, enabled=False):
            fine = fine.float().masked_fill(~proposal_valid[..., None, None], float("-inf"))
            masks = fine.softmax(1)
            reassigned = torch.bmm(self.reassignment.mT, masks.flatten(2)).view_as(masks)
            return reassigned.clamp(min=1e-6).log() + presence.float()
