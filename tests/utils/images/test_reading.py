"""Reading images of many formats."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dcp_clip.utils.images.reading import read_image, read_image_and_size


def _photo(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth image that JPEG changes little: red increases to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, 0 * x + 90], axis=-1).astype(np.uint8)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = 6) -> bool:
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < tolerance


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.bmp", "a.tif", "a.webp", "a.ppm", "ü 图.png"]
)
def test_formats_and_unicode_names(tmp_path, name):
    Image.fromarray(_photo()).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8
    assert _close(image, _photo())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("max_pixels", [None, 600])
def test_exif_orientation(tmp_path, suffix, orientation, max_pixels):
    upright = Image.fromarray(_photo())
    # A camera stores the image with the inverse transformation of the tag.
    turns = {2: 0, 3: 1 + 2, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a{suffix}", exif=exif)
    image, size = read_image_and_size(tmp_path / f"a{suffix}", max_pixels)
    assert size == (40, 60)
    if max_pixels is None:
        assert _close(image, _photo())
    else:
        assert image.shape == (20, 30, 3)
        assert _close(image, _photo(20, 30), tolerance=8)


def test_a_large_grey_image_of_sixteen_bits_is_reduced(tmp_path):
    y, x = np.mgrid[:1200, :1600]
    Image.fromarray((x * 40).astype(np.uint16)).save(tmp_path / "a.png", compress_level=1)
    image, size = read_image_and_size(tmp_path / "a.png", max_pixels=3000)
    assert size == (1200, 1600) and image.shape == (47, 63, 3)
    assert _close(image[..., 0], np.linspace(2, 248, 63)[None].repeat(47, 0), tolerance=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_tiny_and_narrow_images(tmp_path, size):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)
    image, full = read_image_and_size(tmp_path / "a.png", max_pixels=100)
    assert full == (size[1], size[0])
    assert 1 <= image.shape[0] * image.shape[1] <= 100


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "I;16", "1", "CMYK"])
def test_reduction_keeps_aspect_and_content(tmp_path, mode):
    photo = Image.fromarray(_photo(400, 600))
    if mode == "I;16":
        photo = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    else:
        photo = photo.convert(mode)
    photo.save(tmp_path / "a.tif")
    whole = read_image(tmp_path / "a.tif")
    image, size = read_image_and_size(tmp_path / "a.tif", max_pixels=24_000)
    assert size == (400, 600)
    assert image.shape == (126, 189, 3)
    expected = cv2.resize(whole, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert _close(image, expected, tolerance=15 if mode == "1" else 6)


def test_large_image_is_read_in_bounded_memory(tmp_path):
    # 12,000 x 9,000 pixels, more than Pillow's own limit.
    path = tmp_path / "large.jpg"
    Image.new("RGB", (12000, 9000), (200, 30, 40)).save(path, quality=30)
    limit = Image.MAX_IMAGE_PIXELS
    image, size = read_image_and_size(path, max_pixels=1_000_000)
    assert size == (9000, 12000)
    assert 900_000 < image.shape[0] * image.shape[1] <= 1_000_000
    assert Image.MAX_IMAGE_PIXELS == limit
