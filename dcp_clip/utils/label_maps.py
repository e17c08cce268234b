"""Figures of label maps; this module does not import PyTorch."""

import numpy as np

__all__ = ["UNKNOWN_NAME", "category_shares"]

UNKNOWN_NAME = "unknown"  # display name of pixels without a category


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
