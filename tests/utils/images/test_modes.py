"""Every mode and depth of an image becomes 8-bit RGB, with a notice where a range is guessed."""

import re
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from dcp_clip.utils.images import modes
from dcp_clip.utils.images.reading import ImageReadError, read_image, read_image_and_size


def _photo(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth image that JPEG changes little: red increases to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, 0 * x + 90], axis=-1).astype(np.uint8)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = 6) -> bool:
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < tolerance


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "I;16", "I;16B", "I", "F"])
def test_modes_are_converted_to_rgb(tmp_path, mode):
    photo = Image.fromarray(_photo())
    grey = np.asarray(photo.convert("L"))
    if mode in ("I;16", "I;16B", "I"):
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
        photo = Image.fromarray((grey.astype(np.int32) * 257).astype(kind))
        assert photo.mode == mode
    elif mode == "F":
        photo = Image.fromarray(grey.astype(np.float32) / 100 - 1)
        low, high = grey.min(), grey.max()
        grey = (grey - float(low)) * 255 / (high - low)
    else:
        photo = photo.convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.tif")
    photo.save(path)
    image = read_image(path)
    if mode in ("P", "CMYK", "YCbCr"):
        expected = _photo()
    else:
        expected = np.repeat(grey[..., None], 3, axis=-1)
    assert _close(image, expected, tolerance={"1": 130, "P": 30}.get(mode, 12))


def test_16_bit_colour(tmp_path):
    deep = _photo().astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), _photo())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path, mode):
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], np.uint8))
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.save(tmp_path / "a.png", transparency=0)
        second = [10, 20, 30]
    else:
        image = Image.fromarray(np.array([[[9, 9, 9, 0], [10, 20, 30, 255]]], np.uint8), "RGBA")
        image.convert(mode).save(tmp_path / "a.png")
        second = [10, 20, 30] if mode == "RGBA" else [19, 19, 19]
    pixels = read_image(tmp_path / "a.png")[0]
    assert pixels[0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(pixels[1], second, atol=1)


@pytest.fixture
def notices(caplog, monkeypatch):
    """The messages of the notices in a test, as if no other file had been read before."""
    monkeypatch.setattr(modes, "_notices", modes.Counter())
    monkeypatch.setattr(modes, "_noticed", set())
    return lambda: [record.getMessage() for record in caplog.records]


def test_first_frame_of_an_animation(tmp_path, notices):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]
    message = f"{tmp_path}/a.gif: it has several frames or pages; only the first is used."
    assert notices() == [message]
    read_image(tmp_path / "a.gif")
    assert notices() == [message]  # once for each file
    for name in ("a.png", "a.tif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert _close(read_image(tmp_path / name), np.asarray(frames[0]))
        assert name in notices()[-1] and "only the first is used" in notices()[-1]


def test_notices_are_limited(tmp_path, notices):
    deep = np.full((2, 2), 4095, np.uint16)
    for i in range(30):
        Image.fromarray(deep).save(tmp_path / f"{i:02}.png")
        read_image(tmp_path / f"{i:02}.png")
    assert len(notices()) == 11
    assert "More images need the same kind of notice as" in notices()[-1]


def _grey(*values: int) -> list:
    return [[[value] * 3 for value in values]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_twelve_bits_in_sixteen(tmp_path, notices, suffix):
    values = np.array([[0, 16, 2048, 4095]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    assert read_image(tmp_path / f"a{suffix}").tolist() == _grey(0, 1, 128, 255)
    assert "no value above 4095, so it is read as an image of 12 bits" in notices()[0]
    # Reduced, the largest value of the whole image counts.
    image, _ = read_image_and_size(tmp_path / f"a{suffix}", max_pixels=1)
    assert 90 < image[0, 0, 0] < 102


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_twelve_bits_in_sixteen_with_colours(tmp_path, notices, suffix, channels):
    """Pillow keeps the upper 8 of the 16 bits, which are almost black."""
    path = tmp_path / f"a{suffix}"
    values = np.array([[[4095, 16, 0], [32, 2048, 4080]]], np.uint16)
    opacity = np.array([[[65535], [0]]], np.uint16)
    stored = values[..., ::-1]
    if channels == 4:
        stored = np.concatenate([stored, opacity], axis=2)
    cv2.imwrite(str(path), stored)
    second = [2, 128, 255] if channels == 3 else [255, 255, 255]
    assert read_image(path).tolist() == [[[255, 1, 0], second]]
    assert "12 bits" in notices()[0]
    # The bytes of the file, without the file.
    content = path.read_bytes()
    path.unlink()
    image, _ = read_image_and_size(path, content=content)
    assert image.tolist() == [[[255, 1, 0], second]]


def test_a_black_image_of_sixteen_bits_needs_no_notice(tmp_path, notices):
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((2, 2, 3), np.uint16))
    for name in ("a.png", "b.png"):
        assert not read_image(tmp_path / name).any()
    assert not notices()


@pytest.mark.parametrize(
    ("values", "expected", "message"),
    [
        (np.float32([[0, 0.5, 1]]), (0, 128, 255), "from 0 to 1, .*1 becomes white"),
        (np.float32([[0, 100, 200]]), (0, 100, 200), "255 becomes white"),
        (np.float32([[-1, 0, 1]]), (0, 128, 255), "-1 becomes black and 1 becomes white"),
        (np.float32([[np.nan, 0, 1]]), (0, 0, 255), "1 becomes white"),
        (np.float32([[np.inf, 0, 1]]), (0, 0, 255), "1 becomes white"),
        (np.float32([[-3e38, 0, 3e38]]), (0, 128, 255), "3e[+]38 becomes white"),
        (np.int32([[0, 16, 4095]]), (0, 1, 255), "read as values of 12 bits"),
        (np.int32([[0, 256, 65535]]), (0, 1, 255), "read as values of 16 bits"),
        (np.int32([[-10, 0, 10]]), (0, 128, 255), "-10 becomes black and 10 becomes white"),
        (np.int32([[-(2**31), 0, 2**31 - 1]]), (0, 128, 255), "becomes white"),
    ],
)
def test_ranges_that_are_guessed(tmp_path, notices, values, expected, message):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").tolist() == _grey(*expected)
    (notice,) = notices()
    assert re.search(f"a.tif: .*{message}", notice)


def test_integers_without_a_sign(tmp_path):
    """Pillow reads them with a sign."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.int32([[0, -1]])).save(path)
    signed, unsigned = (struct.pack("<HHIH", 339, 3, 1, kind) for kind in (2, 1))
    assert path.read_bytes().count(signed) == 1
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    assert read_image(path).tolist() == _grey(0, 255)


def test_an_image_without_a_finite_value(tmp_path):
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageReadError, match="a.tif: it has no finite value"):
        read_image(tmp_path / "a.tif")


def test_a_tiff_in_which_zero_is_white(tmp_path):
    values = np.uint16([[0, 255 * 256]])
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert read_image(tmp_path / "a.tif").tolist() == _grey(255, 0)


def test_a_transparent_grey_of_sixteen_bits(tmp_path):
    Image.fromarray(np.uint16([[0, 256, 65535]])).save(tmp_path / "a.png", transparency=256)
    assert read_image(tmp_path / "a.png").tolist() == _grey(0, 255, 255)
