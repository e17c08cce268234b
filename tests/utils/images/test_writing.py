"""Writing PNG files."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dcp_clip.utils.images.reading import read_image
from dcp_clip.utils.images.writing import write_jpeg, write_png


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


def test_jpeg_keeps_thin_coloured_lines(tmp_path):
    array = np.full((30, 40, 3), 128, np.uint8)
    array[:, 20] = (255, 0, 0)
    write_jpeg(tmp_path / "ü.jpg", array)
    with Image.open(tmp_path / "ü.jpg") as image:
        assert image.format == "JPEG" and image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - array).max() < 40
