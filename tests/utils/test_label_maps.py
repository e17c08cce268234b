"""Areas in label maps, and their files."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dcp_clip.utils.label_maps import UNKNOWN_COLOR, category_shares, save_label_map
from dcp_clip.vocabulary import Vocabulary


def test_shares_exclude_unlabelled_pixels():
    shares = category_shares(np.array([[0, 0, 2, 255], [2, 2, 0, -1]], np.int16), 3)
    np.testing.assert_allclose(shares, [3 / 8, 0, 3 / 8])
    assert shares.sum() < 1


@pytest.mark.parametrize("num_categories", [1, 2, 255, 256, 1000])
def test_file_contains_the_category_ids(tmp_path, num_categories):
    vocabulary = Vocabulary([f"category {i}" for i in range(num_categories)])
    labels = np.arange(1000).reshape(20, 50) % num_categories
    path = tmp_path / "ü labels.png"
    save_label_map(path, labels, vocabulary)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
        assert image.mode == ("P" if num_categories <= 255 else "I;16")
        if image.mode == "P":
            colors = np.asarray(vocabulary.colors)[labels]
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colors)
        else:
            np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), labels)


def test_too_many_categories_for_a_png(tmp_path):
    class Huge(Vocabulary):
        def __len__(self) -> int:
            return 70_000

    with pytest.raises(ValueError, match="labels.png.*65536.*70000"):
        save_label_map(tmp_path / "labels.png", np.zeros((2, 2), int), Huge(["a"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_categories", [1, 2, 4, 16, 17, 254, 255, 256])
def test_file_with_unknown_pixels(tmp_path, num_categories):
    """A PNG with few colours could use fewer than 8 bits, which cannot store 255."""
    vocabulary = Vocabulary([f"category {i}" for i in range(num_categories)])
    labels = np.arange(60).reshape(6, 10) % num_categories
    labels[2:4] = vocabulary.unknown_id
    save_label_map(tmp_path / "labels.png", labels, vocabulary)
    with Image.open(tmp_path / "labels.png") as image:
        np.testing.assert_array_equal(np.asarray(image), labels)
        if image.mode == "P":
            assert (np.asarray(image.convert("RGB"))[2:4] == UNKNOWN_COLOR).all()
