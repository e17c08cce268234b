"""Read the photographs of data sets with the same rotation as their label maps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dcp_clip.data.pairing import DatasetError
from dcp_clip.utils.images.reading import ImageReadError, as_stored, read_image_and_orientation


def read_photograph(
    path: str | Path, label_size: Callable[[], tuple[int, int]] | None = None
) -> np.ndarray:
    """Read a photograph as :func:`dcp_clip.utils.images.reading.read_image` does.

    If it has an EXIF rotation by 90 degrees, and its label map has the size of the stored and not
    of the upright image, then the image is returned as it is stored.

    Args:
        path: the photograph.
        label_size: returns the (height, width) of its label map; None if there is none. It is
            called only if the size matters.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DatasetError: naming the file, if it cannot be read.
    """
    try:
        image, orientation = read_image_and_orientation(path)
    except ImageReadError as e:
        reason = str(e).removeprefix(f"cannot read {path}: ")
        raise DatasetError(f"The photograph {path} cannot be read: {reason}.") from e
    height, width = image.shape[:2]
    if label_size is not None and orientation >= 5 and height != width:
        if label_size() == (width, height):
            return as_stored(image, orientation)
    return image
