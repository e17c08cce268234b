"""Read the photographs of data sets with the same rotation as their label maps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dcp_clip.data import label_maps
from dcp_clip.data.pairing import DatasetError
from dcp_clip.utils.images.files import open_image, orientation_of
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
    with _dataset_errors(path):
        image, orientation = read_image_and_orientation(path)
    height, width = image.shape[:2]
    if label_size is not None and orientation >= 5 and height != width:
        if label_size() == (width, height):
            return as_stored(image, orientation)
    return image


def check_size(path: str | Path, label_file: str | Path) -> None:
    """Check that a label map has the size of its photograph, without reading their pixels.

    If the photograph has an EXIF rotation, its size can be that of the stored or of the upright
    image, see :func:`read_photograph`.

    Raises:
        DatasetError: naming both files, if the sizes differ; or if a file cannot be read.
    """
    labels = label_maps.label_size(label_file)
    with _dataset_errors(path), open_image(path) as image:
        size = image.height, image.width
        # The orientation of some files is known only after their pixels.
        fits = labels == size or (labels == size[::-1] and orientation_of(image) >= 5)
    if not fits:
        raise DatasetError(
            f"The label map {label_file} has the shape {labels}, but its photograph {path} has the "
            f"height and width {size}."
        )


@contextmanager
def _dataset_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except ImageReadError as e:
        reason = str(e).removeprefix(f"cannot read {path}: ")
        raise DatasetError(f"The photograph {path} cannot be read: {reason}.") from e
