"""From raw labels to train ids."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image

from dcp_clip.data.label_maps import IGNORE_LABEL_16
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.vocabulary.categories import load_names


def categories(*raw_ids):
    template = load_names("camvid_11")[0]
    return [
        replace(template, name=f"c{i}", train_id=i, raw_id=raw_id)
        for i, raw_id in enumerate(raw_ids)
    ]


def unchanged(array):
    return array


def test_palette_and_greyscale_are_read_alike(tmp_path):
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(raw)
    image.save(tmp_path / "grey.png")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_indices(tmp_path / "grey.png"), raw)
    np.testing.assert_array_equal(read_indices(tmp_path / "palette.png"), raw)


@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7)))
def test_labels_without_category_are_ignored(raw):
    encoding = label_encoding(categories(700, 3), unchanged, ignore_label=IGNORE_LABEL_16)
    labels = encoding.train_ids(raw)
    assert labels.dtype == np.uint16 and encoding.suffix == ".tif"
    np.testing.assert_array_equal(labels == 0, raw == 700)
    np.testing.assert_array_equal(labels == 1, raw == 3)
    assert set(np.unique(labels)) <= {0, 1, 65535}


def test_labels_that_must_not_occur():
    encoding = label_encoding(categories(1, 2, 5), unchanged, ignored_raw=[0, 255])
    assert encoding.suffix == ".png"
    assert encoding.train_ids(np.array([[1, 2, 5, 0, 255]])).tolist() == [[0, 1, 2, 255, 255]]
    with pytest.raises(DatasetError, match="holds the label 4, which is not among 0-2, 5, 255:"):
        encoding.train_ids(np.array([[1, 4]]))


@pytest.mark.parametrize("raw_ids", [(1, 1), (1, None), range(256)])
def test_categories_that_cannot_be_encoded(raw_ids):
    with pytest.raises(ValueError, match="cannot be encoded"):
        label_encoding(categories(*raw_ids), unchanged)
