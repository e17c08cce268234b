"""Boundary IoU against distances computed pixel by pixel."""

import sys

import numpy as np
import pytest

from dcp_clip.evaluation import MeanIoUEvaluator
from dcp_clip.evaluation.boundary import boundary_of

NAME = "test_boundary_sem_seg"


def boundary_by_hand(labels, distance):
    """True where some pixel within `distance` (rows and columns) differs or is outside."""
    h, w = labels.shape
    result = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            inside = distance <= y < h - distance and distance <= x < w - distance
            y0, x0 = max(y - distance, 0), max(x - distance, 0)
            patch = labels[y0 : y + distance + 1, x0 : x + distance + 1]
            result[y, x] = not inside or (patch != labels[y, x]).any()
    return result


@pytest.mark.parametrize(("size", "distance"), [((24, 30), 1), ((60, 80), 2)])
def test_boundary_by_hand(size, distance):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 300, (6, 5)), np.ones((size[0] // 6, size[1] // 5), int))
    expected = np.where(boundary_by_hand(labels, distance), labels, 300)
    assert (boundary_of(labels, 300) == expected).all()
    assert (expected == 300).any()


def test_on_request_only(register, evaluate):
    labels = np.kron([[0, 1], [2, 1]], np.ones((12, 12), int))
    records = register(NAME, [labels], 3)
    plain = evaluate(MeanIoUEvaluator(NAME), records, [labels], 3)["sem_seg"]
    assert not [key for key in plain if "Boundary" in key]
    asked = evaluate(MeanIoUEvaluator(NAME, boundary_iou=True), records, [labels], 3)["sem_seg"]
    assert asked["mBoundaryIoU"] == asked["BoundaryIoU-class1"] == 100
    assert {key: asked[key] for key in plain} == plain


def test_several_hundred_categories_and_a_shifted_border(register, evaluate):
    """24 x 24 pixels: boundaries are one pixel wide. Void is a border that both maps have."""
    labels, guess = np.full((2, 24, 24), 400)
    labels[:, 12:], guess[:, 14:] = 401, 401
    labels[:4] = 65535
    records = register(NAME, [labels], 500, suffix=".tif", ignore=65535)
    result = evaluate(MeanIoUEvaluator(NAME, boundary_iou=True), records, [guess], 500)["sem_seg"]
    # Of the 20 known rows, 18 are inside; a frame of 12 x 20 has 2 * 12 + 2 * 18 pixels.
    true, guessed = 2 * 12 + 2 * 18, 2 * 14 + 2 * 18
    shared = 2 * 12 + 18  # top, bottom and the left side
    assert result["BoundaryIoU-class400"] == pytest.approx(100 * shared / (true + guessed - shared))
    assert result["BoundaryIoU-class401"] < 100 and np.isnan(result["BoundaryIoU-class0"])


def test_without_opencv(register, monkeypatch):
    register(NAME, [[[0]]], 1)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="TEST.BOUNDARY_IOU needs OpenCV"):
        MeanIoUEvaluator(NAME, boundary_iou=True)
    MeanIoUEvaluator(NAME)
