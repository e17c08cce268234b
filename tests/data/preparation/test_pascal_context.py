"""Label maps as run-length masks."""

import numpy as np
from hypothesis import given
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from dcp_clip.data.preparation.pascal_context import RleLabelMap, decode_rle


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)))
def test_masks_of_a_label_map_give_it_back(raw):
    masks = [
        (int(v), coco_mask.encode(np.asfortranarray(raw == v, dtype=np.uint8)))
        for v in np.unique(raw)
    ]
    np.testing.assert_array_equal(decode_rle(RleLabelMap("x", *raw.shape, tuple(masks))), raw)


def test_pixels_without_mask_and_overlaps():
    first = np.array([[1, 1, 0]], dtype=np.uint8)
    second = np.array([[0, 1, 0]], dtype=np.uint8)
    masks = tuple((i, coco_mask.encode(np.asfortranarray(m))) for i, m in ((7, first), (5, second)))
    assert decode_rle(RleLabelMap("x", 1, 3, masks)).tolist() == [[7, 5, 0]]
