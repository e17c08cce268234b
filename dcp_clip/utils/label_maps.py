"""Areas in label maps, and their files; this module does not import PyTorch."""

import os

import numpy as np

from dcp_clip.utils.images.writing import write_png
from dcp_clip.vocabulary import Vocabulary

__all__ = ["UNKNOWN_COLOR", "UNKNOWN_NAME", "category_shares", "save_label_map"]

# Display name and colour of pixels without a category. In overlays they have stripes.
UNKNOWN_NAME = "unknown"
UNKNOWN_COLOR = (120, 120, 120)
# A palette PNG has 256 values. The last one, 255, is the ignore label of most data sets.
MAX_PALETTE_CATEGORIES = 255
MAX_PNG_CATEGORIES = 65536  # with 16 bits


def category_shares(label_map: np.ndarray, num_categories: int) -> np.ndarray:
    """Compute the fraction of the area that each category covers.

    Args:
        label_map: (H, W) category ids of any integer type; other values are unlabelled pixels.
        num_categories: C, the size of the vocabulary.

    Returns:
        np.ndarray: (C,) float64, 0 to 1; the sum is 1 if there are no unlabelled pixels.
    """
    counts = np.zeros(num_categories, np.int64)
    rows = max(1, 4_000_000 // max(1, label_map.shape[1]))
    # Bands save memory, because bincount copies its input to int64.
    for start in range(0, len(label_map), rows):
        band = label_map[start : start + rows].ravel()
        if band.dtype.kind != "u":
            band = band[band >= 0]
        counts += np.bincount(band, minlength=num_categories)[:num_categories]
    return counts / max(1, label_map.size)


def save_label_map(path: str | os.PathLike, label_map: np.ndarray, vocabulary: Vocabulary) -> None:
    """Write category ids as a PNG of the label map's size, atomically.

    With up to 255 categories the file is an 8-bit palette PNG, which image viewers show in the
    vocabulary's colours. With more categories it is a 16-bit greyscale PNG. In both, the pixel
    values are category ids, and Detectron2 can read the file as `sem_seg_file_name`.

    Args:
        path: the file to write.
        label_map: (H, W) category ids, 0 to C-1, or `Vocabulary.unknown_id`.
        vocabulary: C categories.

    Raises:
        ValueError: if the vocabulary has more than 65,536 categories, or the name of the file does
            not end with ".png".
        OSError: if the file cannot be written.
    """
    if not os.fspath(path).lower().endswith(".png"):
        raise ValueError(f"{path}: a label map is written as a PNG: end the name with .png.")
    if len(vocabulary) > MAX_PNG_CATEGORIES:
        raise ValueError(
            f"{path}: a PNG can store ids of at most {MAX_PNG_CATEGORIES} categories, but the "
            f"vocabulary has {len(vocabulary)}. Save the label map as an array (numpy.save)."
        )
    if len(vocabulary) > MAX_PALETTE_CATEGORIES:
        write_png(path, label_map.astype(np.uint16, copy=False))
    else:
        colors = list(vocabulary.colors)
        if label_map.max() >= len(colors):  # 255 for unknown pixels
            colors += [UNKNOWN_COLOR] * (256 - len(colors))
        write_png(path, label_map.astype(np.uint8, copy=False), palette=colors)
