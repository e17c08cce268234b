"""Read the label maps of prepared benchmarks and of users' own data."""

from pathlib import Path

import numpy as np
from PIL import Image

from dcp_clip.data.pairing import DatasetError

# The value of ignored pixels in 16-bit label maps.
IGNORE_LABEL_16 = 65535


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map with one channel of 8, 16 or 32 bits.

    The values of a palette image are its indices, not its colours.

    Returns:
        (H, W) integers.

    Raises:
        DatasetError: naming the file, if it cannot be read or holds colours.
    """
    kind = "a single channel of 8 or 16 bits that holds label numbers (see docs/custom_data.md)"
    return read_pixels(path, ("L", "P", "I", "I;16", "I;16B"), kind)


def read_pixels(path: str | Path, modes: tuple[str, ...], kind: str) -> np.ndarray:
    """Read the pixels of a label map in one of some Pillow modes, without conversion.

    Args:
        path: the file.
        modes: the accepted modes.
        kind: a description of the accepted modes, for the error.

    Returns:
        (H, W) or (H, W, 3), as stored.

    Raises:
        DatasetError: naming the file, if it cannot be read or has another mode.
    """
    try:
        with Image.open(path) as label:
            if label.mode in modes:
                return np.array(label)
            mode = label.mode
    except Exception as e:  # Pillow's decoders raise many types of exceptions.
        raise DatasetError(f"The label map {path} cannot be read: {e}.") from e
    raise DatasetError(f"{path} is no label map: its pixels are {mode}, not {kind}.")
