"""Augmentations of training images, and the sizes of test images."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from dcp_clip.data.augmentation import ResizeForTest, build_sem_seg_augmentations


def test_switches():
    cfg = get_cfg()
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_AUG_SSD = True

    def kinds():
        return [type(augmentation) for augmentation in build_sem_seg_augmentations(cfg)]

    assert kinds()[:2] == [T.ResizeShortestEdge, T.RandomCrop_CategoryAreaConstraint]
    assert len(kinds()) == 4
    cfg.INPUT.CROP.ENABLED = False
    cfg.INPUT.COLOR_AUG_SSD = False
    assert kinds() == [T.ResizeShortestEdge, T.RandomFlip]
    cfg.INPUT.RANDOM_FLIP = "none"
    assert kinds() == [T.ResizeShortestEdge]


@pytest.mark.parametrize(
    "size, expected", [((1, 20_000), (1, 4000)), ((30, 60), (32, 64)), ((3, 1), (96, 32))]
)
def test_test_images_of_any_shape(size, expected):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 32, 4000
    image = np.zeros((*size, 3), np.uint8)
    assert ResizeForTest(cfg).get_transform(image).apply_image(image).shape[:2] == expected
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert ResizeForTest(cfg).get_transform(image).apply_image(image).shape[:2] == size


@pytest.mark.parametrize("size", [(48, 70), (9, 13), (1, 1)])
def test_resizing_as_opencv(size):
    """Between the four pixels around (i + 0.5) * scale - 0.5, without averaging over others."""
    cfg = get_cfg()
    cfg.INPUT.RESIZE_TEST = "opencv"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 4000
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    resize = ResizeForTest(cfg).get_transform(image)
    found, expected = resize.apply_image(image), image.astype(float)
    assert found.dtype == np.uint8 and min(found.shape[:2]) == 20
    for axis in (0, 1):
        new, old = found.shape[axis], size[axis]
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        before = place.astype(int)
        after = np.minimum(before + 1, old - 1)
        share = (place - before).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = (expected.take(i, axis) for i in (before, after))
        expected = first + share * (second - first)
    assert np.abs(found - expected).max() < 1.1  # OpenCV computes in fixed point
    labels = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
    assert set(np.unique(resize.apply_segmentation(labels))) <= set(np.unique(labels))
    cfg.INPUT.RESIZE_TEST = "skimage"
    with pytest.raises(ValueError, match="RESIZE_TEST is 'skimage'; known are pillow and opencv"):
        ResizeForTest(cfg)
