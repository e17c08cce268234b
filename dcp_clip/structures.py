"""Data structures that the stages exchange, and the output of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.utils.upsampling import resized_bands

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
    """

    ids: Tensor
    scores: Tensor
    valid: Tensor
    text_features: Tensor
    learned: bool = False

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


class SemSegProposals:
    """Logits of the proposed categories of one image, a compact form of a (C, H, W) tensor.

    Only the K maps of the proposed categories are stored, at the resolution of the model. The
    logits of all other categories are minus infinity. ``argmax`` upsamples the maps in bands of
    rows, so no tensor of C x H x W or K x H x W is created. Detectron2's ``SemSegEvaluator`` uses
    only ``argmax(dim=0)`` and ``to(device)``.

    Attributes:
        maps: (K, h, w) float, logits on the model's grid.
        category_ids: (K,) int64, the category of each map; unique.
        num_categories: C, the size of the vocabulary.
        image_size: (H, W) in pixels.
        extent: (rows, columns) of the grid that the image covers, possibly fractional. The rest of
            the grid is padding.
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
            category_ids: (K,) ids from 0 to C-1.
            num_categories: C.
            image_size: (H, W); default: (h, w).
            extent: default: the whole grid.

        Raises:
            ValueError: if `maps` and `category_ids` have invalid or different shapes.
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
        """(K, H, W) logits of all pixels; every access computes them again."""
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
        """Convert the maps to a device or dtype. The ids move to the device and stay integers."""
        maps = self.maps.to(*args, **kwargs)
        ids = self.category_ids.to(maps.device)
        return SemSegProposals(maps, ids, self.num_categories, self.image_size, self.extent)

    def argmax(self, dim: int = 0) -> Tensor:
        """Return for each pixel the id of the category with the highest logit.

        Returns:
            (H, W) int64, on the device of the maps.

        Raises:
            ValueError: if `dim` is not 0, the dimension of the categories.
        """
        if dim != 0:
            raise ValueError(f"SemSegProposals.argmax supports only dim=0 (categories), got {dim}.")
        return torch.from_numpy(self.label_map().astype(np.int64)).to(self.device)

    def label_map(self) -> np.ndarray:
        """Return the category ids of :meth:`argmax` as small unsigned integers.

        The result is cached, so callers must not modify it. It takes at most an eighth of the
        memory of :meth:`argmax` for up to 256 categories.

        Returns:
            (H, W) array of the smallest unsigned integer type that can store C ids.
        """
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
        """Return the (C, H, W) tensor of all logits, for small vocabularies and tests.

        Args:
            fill: logit of the categories that were not proposed.
        """
        logits = self.logits
        dense = logits.new_full((self.num_categories, *self.image_size), fill)
        dense[self.category_ids] = logits
        return dense

    def _bands(self) -> Iterator[tuple[int, Tensor]]:
        return resized_bands(self.maps, self.image_size, self.extent)


class SemSegLabels:
    """The label map of one image that was segmented in sliding windows.

    It has no logits, but it has the methods of :class:`SemSegProposals` that do not need them.

    Attributes:
        category_ids: (K,) int64, the proposed categories.
        num_categories: C, the size of the vocabulary.
    """

    def __init__(self, label_map: np.ndarray, category_ids: Tensor, num_categories: int):
        """
        Args:
            label_map: (H, W) category ids of any integer type.
            category_ids: (K,) the proposed categories.
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
        """Return this object, because labels are always on the CPU."""
        return self

    def argmax(self, dim: int = 0) -> Tensor:
        """Return the category id of each pixel, (H, W) int64.

        Raises:
            ValueError: if `dim` is not 0.
        """
        if dim != 0:
            raise ValueError(f"SemSegLabels.argmax supports only dim=0 (categories), got {dim}.")
        return torch.from_numpy(self._label_map.astype(np.int64))

    def label_map(self) -> np.ndarray:
        """Return the (H, W) array that the constructor got."""
        return self._label_map


def output_size(inputs: dict) -> tuple[int, int]:
    """Return the "height" and "width" of an input; default: the size of its image."""
    height, width = inputs["image"].shape[-2:]
    return inputs.get("height", height), inputs.get("width", width)
