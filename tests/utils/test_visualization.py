"""Overlays with a legend."""

import numpy as np
import pytest

from dcp_clip.utils.images.reading import reduced_size
from dcp_clip.utils.label_maps import UNKNOWN_COLOR
from dcp_clip.utils.visualization import MAX_SIDE, MIN_SIDE, draw_overlay
from dcp_clip.vocabulary import Vocabulary

COLORS = [(200, 0, 0), (0, 160, 0), (0, 0, 220)]
VOCABULARY = Vocabulary(["sky", "tree", "car"], colors=COLORS)


def _has(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(axis=-1).any())


def _halves(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    return np.full((height, width, 3), 100, np.uint8), labels


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (500, 500)])
def test_legend_is_below_the_picture_and_lists_found_categories(size):
    image, labels = _halves(*size)
    overlay = draw_overlay(image, labels, VOCABULARY, alpha=1.0)
    assert overlay.dtype == np.uint8
    assert overlay.shape[0] > size[0] and overlay.shape[1] == size[1]
    picture = overlay[: size[0], : size[1]]
    assert (picture[:, 10] == COLORS[0]).all()
    assert (picture[:, -10] == COLORS[1]).all()
    assert [_has(overlay[size[0] :], color) for color in COLORS] == [True, True, False]


def test_unlabelled_pixels_are_not_changed():
    image = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    overlay = draw_overlay(image, np.full((500, 500), 255), VOCABULARY)
    np.testing.assert_array_equal(overlay[:500, :500], image)


def test_regions_show_the_image_and_a_boundary():
    image, labels = _halves(480, 640)
    image[:, :100] = 200
    picture = draw_overlay(image, labels, VOCABULARY)[:480, :640].astype(int)
    assert (picture[:, 50] > picture[:, 150]).all()
    assert (picture[:, 320] > 200).all()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_blending_formula(alpha, dtype):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (480, 640, 3), np.uint8)
    labels = np.repeat(np.repeat(rng.integers(0, 4, (8, 8)), 60, 0), 80, 1).astype(dtype)
    labelled = labels < 3  # 3 is not a category
    grey = image @ np.array([0.299, 0.587, 0.114])
    colours = np.array([*COLORS, (0, 0, 0)])[labels]
    expected = (1 - alpha) * (0.5 * image + 0.5 * grey[..., None]) + alpha * colours
    expected = np.where(labelled[..., None], expected, image)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    expected[edge] = 0.15 * expected[edge] + 0.85 * 255
    picture = draw_overlay(image, labels, VOCABULARY, alpha=alpha)[:480, :640]
    assert np.abs(picture - expected).max() <= 1.5


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (30, 40), (2500, 3000)])
def test_any_size(size):
    image, labels = _halves(*size)
    overlay = draw_overlay(image, labels, VOCABULARY)
    assert min(overlay.shape[:2]) >= 30
    assert MIN_SIDE <= max(overlay.shape[:2]) <= 1.6 * MAX_SIDE


def test_label_map_larger_than_the_image():
    image, labels = _halves(2000, 4000)
    small = np.ascontiguousarray(image[::4, ::4])
    overlay = draw_overlay(small, labels, VOCABULARY, alpha=1.0)
    assert overlay.shape[1] == 1000
    assert (overlay[:500, 490] == COLORS[0]).all()
    assert (overlay[:500, 510] == COLORS[1]).all()


def test_many_categories_and_unusual_names():
    names = [f"category {i}" for i in range(200)]
    names[:4] = ["ü" * 1000, "дерево", "木", "<b>&amp;</b>"]
    vocabulary = Vocabulary(names)
    labels = np.arange(480 * 640).reshape(480, 640) % 200
    overlay = draw_overlay(np.zeros((480, 640, 3), np.uint8), labels, vocabulary)
    assert overlay.shape[1] == 640
    assert 480 < overlay.shape[0] < 1000  # the legend combines most categories as "other"


def test_small_categories_are_combined():
    labels = np.zeros((480, 640), int)
    labels[0, :20], labels[0, 20:40] = 1, 2
    image = np.zeros((480, 640, 3), np.uint8)
    combined = draw_overlay(image, labels, VOCABULARY, min_share=0.01)[480:]
    assert not _has(combined, COLORS[1]) and not _has(combined, COLORS[2])
    every = draw_overlay(image, labels, VOCABULARY, min_share=0.0)[480:]
    assert _has(every, COLORS[1]) and _has(every, COLORS[2])


def test_unknown_has_stripes_in_the_legend_too():
    image, labels = _halves(480, 640)
    labels[labels == 1] = 255
    vocabulary = Vocabulary(["sky", "tree"], colors=[UNKNOWN_COLOR, (0, 160, 0)])
    legend = draw_overlay(image, labels, vocabulary, unknown_share=0.5)[480:]
    assert _has(legend, UNKNOWN_COLOR) and _has(legend, (225, 225, 225))
    assert not _has(draw_overlay(image, labels, vocabulary)[480:], (225, 225, 225))


def test_an_image_that_was_not_segmented_is_an_error():
    image, labels = _halves(480, 640)
    with pytest.raises(ValueError, match="640 x 100 pixels, but the label map has 640 x 480"):
        draw_overlay(image[:100], labels, VOCABULARY)
    with pytest.raises(ValueError, match="got str"):
        draw_overlay("street.jpg", labels, VOCABULARY)


@pytest.mark.parametrize("size", [(3, 3000), (3000, 7), (1, 1), (1001, 667)])
@pytest.mark.parametrize("limit", [1_000_000, 5_000, 300])
def test_images_that_were_reduced_while_reading(size, limit):
    height, width = reduced_size(size, limit)
    draw_overlay(np.zeros((height, width, 3), np.uint8), np.zeros(size, np.uint8), VOCABULARY)
