"""Images in memory, and their sizes."""

import operator
from typing import Any

import numpy as np

__all__ = ["check_max_pixels", "check_rgb", "check_size"]


def check_rgb(image: np.ndarray) -> None:
    """Check that an image is an (H, W, 3) uint8 array with at least one pixel.

    Raises:
        ValueError: if it is not.
    """
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if image.size:
            return
    got = f"{image.shape} {image.dtype}" if is_array else type(image).__name__
    advice = ""
    if not is_array and hasattr(image, "convert"):
        advice = " For an image of Pillow give numpy.asarray(image.convert('RGB'))."
    raise ValueError(f"An image must be a path or an (H, W, 3) uint8 RGB array, got {got}.{advice}")


def check_max_pixels(number: Any) -> int | None:
    """Return a limit of pixels as an integer; None is no limit.

    Raises:
        ValueError: if it is neither None nor a whole number from 1 on.
    """
    if number is None:
        return None
    try:
        limit = operator.index(number)
    except TypeError:
        limit = 0
    if limit < 1:
        raise ValueError(f"max_input_pixels must be a whole number from 1 on, got {number!r}.")
    return limit


def check_size(size: Any) -> tuple[int, int]:
    """Return a (height, width) as a tuple of integers.

    Raises:
        ValueError: if it is not a pair of whole numbers from 1 on.
    """
    try:
        height, width = map(operator.index, size)
    except (TypeError, ValueError):  # not a pair, or not of whole numbers
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"size must be (height, width), two whole numbers from 1 on, got {size!r}")
    return height, width
