"""Probabilities and thresholds, against loops over the pixels."""

import math

import numpy as np
import pytest
import torch

from dcp_clip.modeling.training_free.labels import Thresholds, label_pixels

COUNTS = [3, 1, 2, 1]  # names of each category
ROWS = torch.tensor([[0, 1, 2], [3, 3, 3], [4, 5, 4], [6, 6, 6]])


def by_loops(maps, scale, probability, area):
    _, height, width = maps.shape
    probabilities = np.zeros((len(COUNTS), height, width))
    for y in range(height):
        for x in range(width):
            exponentials = [math.exp(scale * value) for value in maps[:, y, x].tolist()]
            first = 0
            for category, count in enumerate(COUNTS):
                best = max(exponentials[first : first + count])
                probabilities[category, y, x] = best / sum(exponentials)
                first += count
    best = probabilities.argmax(0)
    foreground = (best > 0).sum()
    for category in range(1, len(COUNTS)):
        if area and (best == category).sum() <= area * foreground:
            probabilities[category] = 0
    return np.where(probabilities.max(0) < probability, 0, probabilities.argmax(0))


@pytest.mark.parametrize(("probability", "area"), [(0, 0), (0.3, 0), (0, 0.3), (0.35, 0.33)])
def test_thresholds(probability, area):
    maps = torch.rand(7, 24, 30, generator=torch.Generator().manual_seed(0)) / 4
    maps[6] -= 0.02  # a rare category
    expected = by_loops(maps, 40, probability, area)
    bands = [(0, maps[:, :11]), (11, maps[:, 11:])]
    thresholds = Thresholds(probability, area)
    found, confidence = label_pixels(lambda: iter(bands), (24, 30), ROWS, 40, thresholds)
    assert confidence.dtype == np.float16 and confidence.shape == found.shape
    assert (confidence[found > 0] >= np.float16(probability)).all()
    assert 0 < confidence.min() and confidence.max() <= 1
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    plain = by_loops(maps, 40, 0, 0)
    assert (plain != expected).any() == bool(probability or area)


def test_only_background_is_left_if_no_category_is_large_enough():
    maps = torch.zeros(7, 6, 6)
    maps[3, :3], maps[6, 3:] = 1, 1
    found, _ = label_pixels(lambda: [(0, maps)], (6, 6), ROWS, 40, Thresholds(area=0.5))
    assert not found.any()


@pytest.mark.parametrize(
    ("options", "key"), [({"probability": 1.0}, "PROB"), ({"area": -1}, "AREA")]
)
def test_impossible_thresholds_are_refused(options, key):
    with pytest.raises(ValueError, match=f"TRAINING_FREE.{key}.*at least 0 and below 1"):
        Thresholds(**options)
