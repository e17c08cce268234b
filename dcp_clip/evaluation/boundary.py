"""Boundary IoU of label maps (Cheng et al., arXiv 2103.16562).

Detectron2's own subtracts the eroded label map from the label map: right for one mask, but with
several categories a boundary pixel gets the difference of two ids, and whatever lies inside counts
as category 0. So it is computed here, for any number of categories.
"""

from __future__ import annotations

import numpy as np

from .confusion import count_pairs

__all__ = ["boundary_iou", "boundary_of", "count_boundary_pairs", "require_opencv"]

# Width of a boundary relative to the image's diagonal, the paper's for photographs of any size.
_DILATION_RATIO = 0.02


def require_opencv() -> None:
    """Raises ImportError, saying what to do, where OpenCV is missing."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "TEST.BOUNDARY_IOU needs OpenCV: pip install opencv-python-headless, or set it False."
        ) from error


def boundary_of(labels: np.ndarray, void: int) -> np.ndarray:
    """Keep of each category the pixels near another category, near void or near the image's edge.

    Args:
        labels: (H, W) ids.
        void: id of what belongs to no category.

    Returns:
        (H, W) uint16, `void` where a pixel is not part of its category's boundary.
    """
    import cv2

    height, width = labels.shape
    distance = max(1, round(_DILATION_RATIO * float(np.hypot(height, width))))
    labels = labels.astype(np.uint16)
    padded = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=void)
    kernel = np.ones((3, 3), np.uint8)
    lowest = cv2.erode(padded, kernel, iterations=distance)[1:-1, 1:-1]
    highest = cv2.dilate(padded, kernel, iterations=distance)[1:-1, 1:-1]
    return np.where(lowest != highest, labels, np.uint16(void))


def count_boundary_pairs(
    prediction: np.ndarray, labels: np.ndarray, num_categories: int
) -> np.ndarray:
    """The confusion matrix of the two boundaries.

    Args:
        prediction, labels: (H, W), see :func:`count_pairs`; what is void in the labels is void in
            the prediction too, so that both have the same borders with it.
        num_categories: C.

    Returns:
        (C + 1, C + 1) int64; the last row and column are what is no boundary.
    """
    prediction = np.where(labels == num_categories, num_categories, prediction)
    return count_pairs(
        boundary_of(prediction, num_categories),
        boundary_of(labels, num_categories),
        num_categories,
    )


def boundary_iou(matrix: np.ndarray) -> np.ndarray:
    """(C,) IoU of the boundaries, NaN where the ground truth has none.

    Args:
        matrix: (C + 1, C + 1) of :func:`count_boundary_pairs`, summed over the images.
    """
    hit = matrix.diagonal()[:-1].astype(float)
    labelled, predicted = matrix.sum(0)[:-1], matrix.sum(1)[:-1]
    result = np.full(len(hit), np.nan)
    present = labelled > 0
    result[present] = hit[present] / (labelled + predicted - hit)[present]
    return result
