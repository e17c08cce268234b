"""The interface between ``CLIPBackbone`` and a family of image towers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from dcp_clip.modeling.clip.readings import DenseReading

__all__ = ["ImageTower"]


class ImageTower(ABC):
    """Computes pyramid, dense and pooled features with the towers of one family.

    It holds no weights; `CLIPBackbone` owns the tower.

    Attributes:
        visual: the tower.
        shapes: channels and stride of each output of :meth:`encode`.
        size_divisibility: H and W must be multiples of this many pixels.
    """

    visual: nn.Module
    shapes: dict[str, ShapeSpec]
    size_divisibility: int

    @abstractmethod
    def __init__(self, visual: nn.Module, reading: DenseReading):
        """
        Args:
            visual: a tower for which :meth:`matches` is true.
            reading: how to compute the dense features, if the family has a choice.

        Raises:
            ValueError: if this tower, or this reading with it, is not supported.
        """

    @staticmethod
    @abstractmethod
    def matches(visual: nn.Module) -> bool:
        """Return whether a tower belongs to this family."""

    @abstractmethod
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to ``res2`` ..., ``dense`` (B, D, h, w), ``pooled`` (B, D)."""

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the output of ``encode_image``, (B, D)."""
