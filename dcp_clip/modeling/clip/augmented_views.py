"""Test-time augmentation of CLIP's features: averages over mirrored and resized views."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.layers import resize_to

__all__ = ["AugmentedViews"]

_NODE = "TEST.AUG"
_MAX_SCALE = 4.0


@dataclass(frozen=True)
class AugmentedViews:
    """The views of an image whose CLIP features are averaged.

    Usual test-time augmentation runs the whole model on every view and averages the predictions.
    Here only the encoder runs on every view, and the decoders run once on the averaged features.

    Attributes:
        scales: sizes of further views, relative to the image. Sizes are rounded to whole cells of
            the encoder, so a small image can have the same size, or its own, at several scales.
        flip: also use the mirror image of each view.

    Raises:
        ValueError: if there is no view besides the image, or a scale is 1, not above 0 or above 4.
    """

    scales: tuple[float, ...] = ()
    flip: bool = True

    def __post_init__(self) -> None:
        for scale in self.scales:
            if not isinstance(scale, int | float) or scale == 1 or not 0 < scale <= _MAX_SCALE:
                raise ValueError(
                    f"{_NODE}.SCALES contains {scale!r}; a scale must be a number above 0 and "
                    f"at most {_MAX_SCALE:g}, but not 1, as the image itself is always a view."
                )
        if not (self.flip or self.scales):
            raise ValueError(
                f"{_NODE}.ENABLED is True, but {_NODE}.FLIP is False and {_NODE}.SCALES is empty: "
                "set one of them, or set ENABLED to False."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> AugmentedViews | None:
        """Build them from the config; None if TEST.AUG.ENABLED is False.

        Raises:
            ValueError: see the class; or if TEST.AUG.MIN_SIZES or TEST.AUG.MAX_SIZE is changed,
                which have no effect.
        """
        node, default = cfg.TEST.AUG, detectron2_cfg().TEST.AUG
        if not node.ENABLED:
            return None
        for key in ("MIN_SIZES", "MAX_SIZE"):
            if node[key] != default[key]:
                raise ValueError(
                    f"{_NODE}.{key} has no effect: leave it out, and set {_NODE}.SCALES to sizes "
                    "relative to the image, such as (0.9, 1.1)."
                )
        return cls(tuple(node.SCALES), node.FLIP)

    def encode(
        self, encode: Callable[[Tensor], dict[str, Tensor]], images: Tensor, divisor: int
    ) -> dict[str, Tensor]:
        """Encode the views of a batch, and average ``dense`` and ``pooled``.

        The other features are those of the images themselves.

        Args:
            encode: maps images (B, 3, H, W) to their features, with ``dense`` (B, D, h, w) and
                ``pooled`` (B, D).
            images: (B, 3, H, W), padded.
            divisor: `encode` needs sides that are multiples of this many pixels.

        Returns:
            The features of the images, with averages in float32.
        """
        features = encode(images)
        grid = features["dense"].shape[-2:]
        views = {key: [features[key].float()] for key in ("dense", "pooled")}
        for size, mirrored in self._others(images.shape[-2:], divisor):
            view = images
            if size != images.shape[-2:]:
                # Sharper than bilinear, which loses a fifth of the gain.
                view = F.interpolate(images, size, mode="bicubic", antialias=True)
            found = encode(view.flip(-1) if mirrored else view)
            dense = found["dense"].float()
            views["dense"].append(resize_to(dense.flip(-1) if mirrored else dense, grid))
            views["pooled"].append(found["pooled"].float())
        return features | {key: _average(vectors) for key, vectors in views.items()}

    def _others(self, size: tuple[int, int], divisor: int) -> Iterator[tuple[tuple, bool]]:
        """Yield the (height, width) of each view except the image, and whether it is mirrored."""
        sizes = [tuple(size)]
        for scale in self.scales:
            other = tuple(max(1, round(side * scale / divisor)) * divisor for side in size)
            if other not in sizes:  # small images have the same size at several scales
                sizes.append(other)
        views = itertools.product(sizes, (False, True) if self.flip else (False,))
        next(views)  # the image
        yield from views


def _average(vectors: list[Tensor]) -> Tensor:
    """Average the directions and the lengths of vectors (B, D, ...).

    A view whose vectors are longer does not count more.
    """
    direction = F.normalize(sum(F.normalize(x, dim=1) for x in vectors), dim=1)
    return direction * (sum(x.norm(dim=1, keepdim=True) for x in vectors) / len(vectors))
