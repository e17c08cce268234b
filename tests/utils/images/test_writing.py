"""Writing PNG files."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dcp_clip.utils.images.reading import read_image
from dcp_clip.utils.images.writing import write_png


def test_write_png(tmp_path):
    colours = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
    labels = np.array([[0, 1], [2, 1]], np.uint8)
    write_png(tmp_path / "labels.png", labels, palette=colours)
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(colours)[labels])
    deep = np.array([[0, 300], [65535, 1]], np.uint16)
    write_png(tmp_path / "deep.png", deep)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "deep.png"), -1), deep)
    photo = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    write_png(tmp_path / "rgb.png", photo)
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), photo)
    with pytest.raises(ValueError, match="bad.png"):
        write_png(tmp_path / "bad.png", labels.astype(np.float32))
    with pytest.raises(ValueError, match="256 colours"):
        write_png(tmp_path / "bad.png", deep, palette=colours)


def test_quick_png_stores_all_pixels(tmp_path):
    rng = np.random.default_rng(2)
    colour = rng.integers(0, 256, (30, 40, 3), np.uint8)
    grey = rng.integers(0, 65536, (30, 40), np.uint16)
    for array, mode in ((colour, "RGB"), (grey, "I;16")):
        path = tmp_path / f"ü {array.ndim}.png"
        write_png(path, array, quick=True)
        with Image.open(path) as image:
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), array)
    with pytest.raises(ValueError, match="palette"):
        write_png(tmp_path / "bad.png", colour[:, :, 0], palette=[(0, 0, 0)] * 256, quick=True)
