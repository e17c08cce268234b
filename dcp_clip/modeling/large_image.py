"""Segment an image of any size that need not be in memory, region by region."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dcp_clip.modeling.sliding_window import SlidingWindow
from dcp_clip.structures import SemSegLabels
from dcp_clip.vocabulary import Vocabulary

__all__ = [
    "LARGE_IMAGE_PIXELS",
    "LargeImage",
    "gives_logits",
    "require_logits",
    "segment_large_image",
    "window_of",
]

# Image files with more pixels are segmented in windows at their full resolution.
LARGE_IMAGE_PIXELS = 16_000_000

# Windows of models whose config has none: size and stride in pixels.
_SIZE, _STRIDE = 640, 320


def window_of(model: nn.Module) -> SlidingWindow:
    """Return the windows of a model; 640 pixels, one every 320, if its config sets none."""
    return getattr(model, "window", None) or SlidingWindow(_SIZE, _STRIDE)


def gives_logits(model: nn.Module) -> bool:
    """Whether the model gives logits, which can be averaged over windows, and not only labels."""
    return getattr(model, "gives_logits", True)


def require_logits(model: nn.Module, consequence: str) -> None:
    """Raise a ValueError if the model gives only labels.

    Args:
        model: a segmentor.
        consequence: what is impossible without logits, such as "it cannot segment windows".
    """
    if not gives_logits(model):
        raise ValueError(
            f"A model of MODEL.META_ARCHITECTURE '{type(model).__name__}' gives labels without "
            f"logits, so {consequence}: choose another config."
        )


class LargeImage:
    """An image that is segmented in windows at its full resolution.

    Stage 1 chooses the K categories of all windows on the reduced image. The logits of overlapping
    windows are averaged with the weights of `SlidingWindow`. Each region has the labels that the
    whole image would have there.

    Attributes:
        size: (H, W) in pixels.
        proposals: "ids" (K,) and "scores" (K,) of the categories.
    """

    def __init__(
        self,
        model: nn.Module,
        vocabulary: Vocabulary,
        size: tuple[int, int],
        overview: Tensor,
        read: Callable[[int, int, int, int], Tensor | None],
        confidence: bool = True,
    ):
        """
        Args:
            model: an `OpenVocabularySegmentor` in eval mode.
            vocabulary: C categories.
            size: (H, W).
            overview: (3, h, w) uint8 RGB, the image reduced to at most the size of a window.
            read: maps (top, left, height, width) to the pixels (3, height, width) uint8 RGB of a
                window, or to None if the window has no pixels with data.
            confidence: whether the labels of a region have a confidence, which takes time.

        Raises:
            ValueError: if the model gives no logits.
        """
        require_logits(model, "it cannot segment an image in windows")
        self.size = size
        self._model, self._vocabulary, self._read = model, vocabulary, read
        self._window = window_of(model)
        output = self._segment(overview)
        self.proposals = output["proposals"]
        self._ids = output["sem_seg"].category_ids
        self._temperature = output["sem_seg"].temperature if confidence else None

    def segment(self, region: tuple[int, int, int, int]) -> SemSegLabels:
        """Segment the (top, left, height, width) of a region, see `SlidingWindow.segment_region`.

        Raises:
            NonFiniteError: if the model computes NaN or infinite logits.
        """
        count = len(self._vocabulary)
        return self._window.segment_region(
            self.size, region, self._ids, count, self._logits, self._temperature
        )

    def _logits(self, *place: int) -> tuple[Tensor, tuple[float, float]] | None:
        image = self._read(*place)
        if image is None:
            return None
        sem_seg = self._segment(image, category_ids=self._ids)["sem_seg"]
        return sem_seg.maps, sem_seg.extent

    @torch.no_grad()
    def _segment(self, image: Tensor, **inputs: Tensor) -> dict:
        height, width = image.shape[-2:]
        inputs |= {"image": image, "height": height, "width": width}
        return self._model([{**inputs, "vocabulary": self._vocabulary}])[0]


def segment_large_image(
    model: nn.Module, vocabulary: Vocabulary, image: Tensor, confidence: bool = True
) -> dict[str, SemSegLabels | dict[str, Tensor]]:
    """Segment an image (3, H, W) in memory, in windows at its full resolution.

    Args:
        model, vocabulary, image, confidence: see `LargeImage`.

    Returns:
        "sem_seg" and "proposals", as the model does for one image.
    """

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        return image[:, top : top + height, left : left + width]

    size = image.shape[1], image.shape[2]
    overview = window_of(model).reduce(image)
    large = LargeImage(model, vocabulary, size, overview, read, confidence)
    return {"sem_seg": large.segment((0, 0, *size)), "proposals": large.proposals}
