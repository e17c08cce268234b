"""Decoders of label maps and the lookup from raw labels to train ids."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from dcp_clip.data.label_maps import (
    IGNORE_LABEL_16,
    RleLabelMap,
    decode_rle,
    label_encoding,
    read_ade_objects,
    read_indices,
)
from dcp_clip.data.pairing import DatasetError
from dcp_clip.vocabulary.categories import load_names

_maps = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7))


def categories(*raw_ids):
    template = load_names("camvid_11")[0]
    return [
        replace(template, name=f"c{i}", train_id=i, raw_id=raw_id)
        for i, raw_id in enumerate(raw_ids)
    ]


def as_it_is(array):
    return array


@given(
    hnp.arrays(np.uint16, (4, 5), elements=st.integers(0, 25 * 256 + 255)),
    hnp.arrays(np.uint8, (4, 5, 2), elements=st.integers(0, 5)),
)
def test_ade_objects_do_not_depend_on_the_rest_of_the_colour(tmp_path_factory, ids, noise):
    path = tmp_path_factory.getbasetemp() / "ade_seg.png"
    rgb = np.stack([ids // 256 * 10 + noise[..., 0], ids % 256, noise[..., 1]], -1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    np.testing.assert_array_equal(read_ade_objects(path), ids)


def test_palette_and_greyscale_are_read_alike(tmp_path):
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(raw)
    image.save(tmp_path / "grey.png")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_indices(tmp_path / "grey.png"), raw)
    np.testing.assert_array_equal(read_indices(tmp_path / "palette.png"), raw)


@given(_maps)
def test_masks_of_a_partition_give_it_back(raw):
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


@given(_maps)
def test_all_others_are_ignored(raw):
    encoding = label_encoding(categories(700, 3), as_it_is, ignore_label=IGNORE_LABEL_16)
    labels = encoding.train_ids(raw)
    assert labels.dtype == np.uint16 and encoding.suffix == ".tif"
    np.testing.assert_array_equal(labels == 0, raw == 700)
    np.testing.assert_array_equal(labels == 1, raw == 3)
    assert set(np.unique(labels)) <= {0, 1, 65535}


def test_labels_that_must_not_be():
    encoding = label_encoding(categories(1, 2, 5), as_it_is, ignored_raw=[0, 255])
    assert encoding.suffix == ".png"
    assert encoding.train_ids(np.array([[1, 2, 5, 0, 255]])).tolist() == [[0, 1, 2, 255, 255]]
    with pytest.raises(DatasetError, match="holds the label 4, which is not among 0-2, 5, 255:"):
        encoding.train_ids(np.array([[1, 4]]))


@pytest.mark.parametrize("raw_ids", [(1, 1), (1, None), range(256)])
def test_categories_that_cannot_be_encoded(raw_ids):
    with pytest.raises(ValueError, match="cannot be encoded"):
        label_encoding(categories(*raw_ids), as_it_is)
