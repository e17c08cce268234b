"""The interface between ``CLIPBackbone`` and a family of image towers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.dense_attention import DenseAttention

__all__ = ["ImageTower"]


class ImageTower(ABC):
    """Computes pyramid, dense and pooled features with the towers of one family.

    It holds no weights; `CLIPBackbone` owns the tower.

    Every tower pools a grid of features into one vector. The dense features follow one principle:
    each is what the tower's own pooling says about one position alone.

    * Average pooling: the norm and the projection of the tower at each position.
    * Attention pooling: attention to one position returns its value. The dense features are the
      value path of the pooling at each position.
    * Class token: the last block is the pooling. The dense features are its value path at each
      patch, or one of the other attentions in :mod:`dcp_clip.modeling.clip.dense_attention`.

    Attributes:
        visual: the tower.
        shapes: channels and stride of each output of :meth:`encode`.
        size_divisibility: H and W must be multiples of this many pixels.
        pooling: "average", "attention" or "class token".
        dense_attentions: values of MODEL.CLIP.DENSE that the tower has. "maskclip" is the principle
            above.
    """

    visual: nn.Module
    shapes: dict[str, ShapeSpec]
    size_divisibility: int
    pooling: str
    dense_attentions: tuple[str, ...] = ("maskclip",)

    @abstractmethod
    def __init__(self, visual: nn.Module, dense_attention: DenseAttention):
        """
        Args:
            visual: a tower for which :meth:`matches` is true.
            dense_attention: how they are computed; its name is in :attr:`dense_attentions`.

        Raises:
            ValueError: if this tower is not supported.
        """

    @staticmethod
    @abstractmethod
    def matches(visual: nn.Module) -> bool:
        """Return whether a tower belongs to this family."""

    @abstractmethod
    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) to ``res2`` ..., ``dense`` (B, D, h, w), ``pooled`` (B, D)."""

    def encode_mixed(self, images: Tensor, attention: Tensor) -> dict[str, Tensor]:
        """As :meth:`encode`, with means of dense features over the positions.

        A tower with a class token averages the values of its last block, as ProxyCLIP (arXiv
        2408.04883) does. Another tower averages its dense features, as unit vectors.

        Args:
            images: (B, 3, H, W).
            attention: (B, h*w, h*w), the weights of the positions in each position.
        """
        if self.pooling == "class token":
            return self.encode(images, attention)
        out = self.encode(images)
        unit = F.normalize(out["dense"].float(), dim=1)
        out["dense"] = (unit.flatten(2) @ attention.mT).view_as(unit)
        return out

    @abstractmethod
    def pooled(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to the output of ``encode_image``, (B, D)."""
