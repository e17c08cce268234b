"""Cosine similarities of names at the pixels of an image, averaged over overlapping windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.clip.encoder_windows import window_starts

__all__ = ["PADDINGS", "EncoderWindows"]

PADDINGS = {
    "none": "the encoder does not see pixels beyond the last whole patch (SCLIP, NACLIP)",
    "end": "zeros below and on the right fill the last patch (MaskCLIP)",
    "center": "zeros on all sides fill whole patches, and are cut off the map (ClearCLIP)",
}
# Number of windows that are encoded at once.
_WINDOWS_PER_CHUNK = 8


@dataclass(frozen=True)
class EncoderWindows:
    """The overlapping windows in which an image is encoded.

    Windows begin every `stride` pixels; the last one of a row or column ends with the image.

    Attributes:
        patch: stride of the encoder in pixels.
        window: height and width of a window in pixels; 0 for the whole image.
        stride: pixels from one window to the next.
        padding: a key of :data:`PADDINGS`: what happens where a window is not a multiple of
            `patch`. With "none" and "end" the map is stretched over the window.
    """

    patch: int
    window: int
    stride: int
    padding: str

    def encode(self, encode: Callable[[Tensor], Tensor], image: Tensor) -> Iterator[Tensor]:
        """Encode the windows of an image (3, H, W), which is normalised.

        Args:
            encode: from pixels (B, 3, h, w), multiples of `patch`, to dense features (B, D, h /
                patch, w / patch).
            image: the image.

        Yields:
            (B, D, h / patch, w / patch) dense features of unit length of up to 8 windows.
        """
        size, margins, chunks = self._layout(image.shape[-2:])
        for places in chunks:
            crops = torch.stack([image[:, y : y + size[0], x : x + size[1]] for y, x in places])
            yield F.normalize(encode(F.pad(crops, (*margins[1], *margins[0]))).float(), dim=1)

    def similarity(
        self, features: Iterable[Tensor], text_features: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Compute the similarity of every name at every pixel.

        The similarities of a window are upsampled to its pixels. A pixel has the mean over the
        windows that contain it.

        Args:
            features: the result of :meth:`encode` for the image.
            text_features: (N, D) of unit length.
            size: height H and width W of the image.

        Returns:
            (N, H, W) float32.
        """
        total = text_features.new_zeros(len(text_features), *size)
        count = text_features.new_zeros(size)
        window, margins, chunks = self._layout(size)
        for places, chunk in zip(chunks, features, strict=True):
            for (y, x), dense in zip(places, chunk, strict=True):
                maps = torch.einsum("nd,dhw->nhw", text_features, dense)
                place = (..., slice(y, y + window[0]), slice(x, x + window[1]))
                total[place] += _upsample(maps, window, margins, self.padding)
                count[place] += 1
        return total / count

    def _layout(self, size: tuple[int, int]) -> tuple[tuple[int, int], list, list]:
        """The size of a window, its margins, and the places of the windows in chunks."""
        height, width = (min(self.window or side, side) for side in size)
        places = [
            (y, x)
            for y in window_starts(size[0], height, self.stride)
            for x in window_starts(size[1], width, self.stride)
        ]
        margins = [_margins(side, self.patch, self.padding) for side in (height, width)]
        firsts = range(0, len(places), _WINDOWS_PER_CHUNK)
        chunks = [places[first : first + _WINDOWS_PER_CHUNK] for first in firsts]
        return (height, width), margins, chunks


def _margins(side: int, patch: int, padding: str) -> tuple[int, int]:
    """Pixels to add before and after a side; negative pixels are removed."""
    rest = side % patch
    missing = patch - rest if rest else 0
    if padding == "center":
        return missing // 2, missing - missing // 2
    if padding == "none" and side > patch:
        return 0, -rest
    return 0, missing


def _upsample(
    maps: Tensor, size: tuple[int, int], margins: list[tuple[int, int]], padding: str
) -> Tensor:
    """(N, h, w) on the grid to (N, *size) pixels of a window."""
    if padding != "center":
        return F.interpolate(maps[None], size, mode="bilinear")[0]
    padded = [side + sum(margin) for side, margin in zip(size, margins)]
    (top, _), (left, _) = margins
    maps = F.interpolate(maps[None], padded, mode="bilinear")[0]
    return maps[:, top : top + size[0], left : left + size[1]]
