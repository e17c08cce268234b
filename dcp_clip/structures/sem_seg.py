"""The segmentation of one image: logits of the proposed categories, or labels alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dcp_clip.structures.tensor_like import TensorLike
from dcp_clip.utils.upsampling import resized_bands, winners

__all__ = ["SemSegLabels", "SemSegProposals", "output_size"]


class SemSegProposals(TensorLike):
    """Logits of the proposed categories of one image, a compact form of a (C, H, W) tensor.

    Only the K maps of the proposed categories are stored, at the resolution of the model. The
    logits of all other categories are minus infinity. ``argmax`` upsamples the maps in bands of
    rows, so no tensor of C x H x W or K x H x W is created. Detectron2's ``SemSegEvaluator`` uses
    only ``argmax(dim=0)`` and ``to(device)``. ``shape``, ``softmax(dim=0)``, ``numpy()`` and the
    logits of one category, ``sem_seg[id]``, also work as on a tensor. For anything else call
    :meth:`to_dense`.

    Attributes:
        maps: (K, h, w) float, logits on the model's grid.
        category_ids: (K,) int64, the category of each map; unique.
        num_categories: C, the size of the vocabulary.
        image_size: (H, W) in pixels.
        extent: (rows, columns) of the grid that the image covers, possibly fractional. The rest of
            the grid is padding.
        temperature: that of :meth:`confidence`.
    """

    _instead = "call to_dense() first, which gives a tensor (C, H, W)"

    def __init__(
        self,
        maps: Tensor,
        category_ids: Tensor,
        num_categories: int,
        image_size: tuple[int, int] | None = None,
        extent: tuple[float, float] | None = None,
        temperature: float = 1.0,
    ):
        """
        Args:
            maps: (K, h, w), K >= 1.
            category_ids: (K,) ids from 0 to C-1.
            num_categories: C.
            image_size: (H, W); default: (h, w).
            extent: default: the whole grid.
            temperature: see :func:`winners`.

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
        self.temperature = temperature
        self._label_map: np.ndarray | None = None
        self._confidence: np.ndarray | None = None

    @property
    def logits(self) -> Tensor:
        """(K, H, W) logits of all pixels; every access computes them again."""
        return torch.cat([band for _, band in self.bands()], dim=1)

    @property
    def device(self) -> torch.device:
        return self.maps.device

    @property
    def dtype(self) -> torch.dtype:
        return self.maps.dtype

    def to(self, *args, **kwargs) -> SemSegProposals:
        """Convert the maps to a device or dtype. The ids move to the device and stay integers."""
        maps = self.maps.to(*args, **kwargs)
        ids = self.category_ids.to(maps.device)
        sizes = self.num_categories, self.image_size, self.extent
        return SemSegProposals(maps, ids, *sizes, self.temperature)

    def label_map(self) -> np.ndarray:
        """Return the category ids of :meth:`argmax` as small unsigned integers.

        The result is cached, so callers must not modify it. It takes at most an eighth of the
        memory of :meth:`argmax` for up to 256 categories.

        Returns:
            (H, W) array of the smallest unsigned integer type that can store C ids.
        """
        if self._label_map is None:
            self._compute(None)
        return self._label_map

    def confidence(self) -> np.ndarray:
        """Return the probability that the label of each pixel is right, see :func:`winners`.

        The result is cached, so callers must not modify it. It is computed in bands of rows.

        Returns:
            (H, W) float16, 0 to 1.
        """
        if self._confidence is None:
            self._compute(self.temperature)
        return self._confidence

    def _compute(self, temperature: float | None) -> None:
        kind = np.min_scalar_type(self.num_categories - 1)
        ids = self.category_ids.cpu().numpy().astype(kind)
        label_map = np.empty(self.image_size, kind)
        confidence = None if temperature is None else np.empty(self.image_size, np.float16)
        for start, band in self.bands():
            rows = slice(start, start + band.shape[1])
            positions, probability = winners(band, temperature)
            label_map[rows] = ids[positions]
            if confidence is not None:
                confidence[rows] = probability
        self._label_map, self._confidence = label_map, confidence

    def to_dense(self, fill: float = float("-inf")) -> Tensor:
        """Return the (C, H, W) tensor of all logits, for small vocabularies and tests.

        Args:
            fill: logit of the categories that were not proposed.
        """
        logits = self.logits
        dense = logits.new_full((self.num_categories, *self.image_size), fill)
        dense[self.category_ids] = logits
        return dense

    def softmax(self, dim: int = 0) -> Tensor:
        """Return (C, H, W) probabilities; those of categories that were not proposed are 0.

        The temperature of :meth:`confidence` is not applied.

        Raises:
            ValueError: if `dim` is not 0, the dimension of the categories.
        """
        if dim not in (0, -3):
            raise ValueError(f"SemSegProposals.softmax supports only dim=0 (categories), got {dim}")
        return self.to_dense().softmax(dim=0)

    def numpy(self) -> np.ndarray:
        """Return the (C, H, W) array of all logits."""
        return self.to_dense().cpu().numpy()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.numpy().astype(dtype or np.float32, copy=False)

    def __getitem__(self, category: int) -> Tensor:
        """Return the (H, W) logits of one category; minus infinity if it was not proposed.

        Raises:
            IndexError: if there is no category with this id.
            TypeError: for other indices than one id.
        """
        if isinstance(category, bool) or not isinstance(category, int | np.integer):
            raise TypeError(
                f"SemSegProposals takes one category id as index, got {type(category).__name__}; "
                f"{self._instead}."
            )
        if not -self.num_categories <= category < self.num_categories:
            raise IndexError(f"There is no category {category} among {self.num_categories}.")
        found = (self.category_ids == category % self.num_categories).nonzero().flatten()
        if not len(found):
            return self.maps.new_full(self.image_size, float("-inf"))
        maps = self.maps[found]
        bands = resized_bands(maps, self.image_size, self.extent)
        return torch.cat([band for _, band in bands], dim=1)[0]

    def bands(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row of each band of rows, and its logits (K, rows, W)."""
        return resized_bands(self.maps, self.image_size, self.extent)


class SemSegLabels(TensorLike):
    """The label map of one image without logits.

    It is the result of an image that was segmented in sliding windows, of masks with one label
    each, and of a model that gives only labels. It has the methods of :class:`SemSegProposals` that
    need no logits.

    Attributes:
        category_ids: (K,) int64, the proposed categories.
        num_categories: C, the size of the vocabulary.
    """

    _instead = (
        "this result has labels but no logits (the image was segmented in windows, or the model "
        "gives only labels): call argmax(dim=0), label_map() or confidence()"
    )

    def __init__(
        self,
        label_map: np.ndarray,
        category_ids: Tensor,
        num_categories: int,
        confidence: np.ndarray | None = None,
    ):
        """
        Args:
            label_map: (H, W) category ids of any integer type.
            category_ids: (K,) the proposed categories.
            num_categories: C.
            confidence: (H, W) float16; None if it is not known.
        """
        self._label_map = label_map
        self.category_ids = category_ids.cpu()
        self.num_categories = num_categories
        self._confidence = confidence

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self._label_map.shape

    @property
    def device(self) -> torch.device:
        return self.category_ids.device

    def to(self, *args, **kwargs) -> SemSegLabels:
        """Return this object, because labels are always on the CPU."""
        return self

    @property
    def has_confidence(self) -> bool:
        """Whether the constructor got the confidence."""
        return self._confidence is not None

    def label_map(self) -> np.ndarray:
        """Return the (H, W) array that the constructor got."""
        return self._label_map

    def confidence(self) -> np.ndarray:
        """Return the (H, W) array that the constructor got.

        Raises:
            ValueError: if there is none.
        """
        if self._confidence is None:
            raise ValueError(
                "These labels have no confidence; segment the image with confidence=True, or give "
                "it to the constructor."
            )
        return self._confidence

    def __getitem__(self, index) -> None:
        raise TypeError(f"SemSegLabels cannot be indexed; {self._instead}.")


def output_size(inputs: dict) -> tuple[int, int]:
    """Return the "height" and "width" of an input; default: the size of its image."""
    height, width = inputs["image"].shape[-2:]
    return inputs.get("height", height), inputs.get("width", width)
