"""The properties of a tensor (C, H, W) that segmentations in another form share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["TensorLike"]


class TensorLike:
    """A segmentation that is used like a tensor (C, H, W) but does not store one.

    Attributes:
        category_ids: (K,) int64, the proposed categories.
        num_categories: C, the size of the vocabulary.
        image_size: (H, W) in pixels.
    """

    _instead: str  # end of the message about a method of tensors that is missing
    num_categories: int
    category_ids: Tensor
    image_size: tuple[int, int]

    @property
    def shape(self) -> torch.Size:
        """(C, H, W)."""
        return torch.Size((self.num_categories, *self.image_size))

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return (C, H, W), or one of these numbers."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return 3, the number of dimensions of (C, H, W)."""
        return 3

    def cpu(self) -> TensorLike:
        """Return this segmentation on the CPU."""
        return self.to("cpu")

    def argmax(self, dim: int = 0) -> Tensor:
        """Return for each pixel the id of the category with the highest logit.

        Returns:
            (H, W) int64, on the device of the maps.

        Raises:
            ValueError: if `dim` is not 0, the dimension of the categories.
        """
        if dim not in (0, -3):
            name = type(self).__name__
            raise ValueError(f"{name}.argmax supports only dim=0 (categories), got {dim}.")
        return torch.from_numpy(self.label_map().astype(np.int64)).to(self.device)

    def __len__(self) -> int:
        """Return K, the number of proposed categories."""
        return len(self.category_ids)

    def __repr__(self) -> str:
        h, w = self.image_size
        name = type(self).__name__
        return f"{name}(K={len(self)}, H={h}, W={w}, num_categories={self.num_categories})"

    def label_map(self) -> np.ndarray:
        """Return the (H, W) category ids."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> None:
        if hasattr(Tensor, name) and not name.startswith("_"):
            kind = type(self).__name__
            raise AttributeError(f"{kind} has no '{name}'; {self._instead}.")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
