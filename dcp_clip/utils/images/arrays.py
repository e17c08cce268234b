"""Images in memory."""

import numpy as np

__all__ = ["check_rgb"]


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
    raise ValueError(f"An image must be a path or an (H, W, 3) uint8 RGB array, got {got}.")
