"""Label maps: the numbers that a file stores, and the files that are ambiguous."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcp_clip.data.label_maps import label_size, read_labels, read_palette
from dcp_clip.data.pairing import DatasetError

LABELS = np.array([[0, 1, 3], [2, 1, 0]], np.uint8)


def png(path, rows: np.ndarray, bits: int, *, palette=None):
    """Write a grey or palette PNG with few bits. Pillow cannot write grey ones."""
    packed = b""
    for row in rows:
        text = "".join(f"{value:0{bits}b}" for value in row.tolist())
        text += "0" * (-len(text) % 8)
        packed += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    color_type = 0 if palette is None else 3
    header = struct.pack(">IIBBBBB", *rows.shape[::-1], bits, color_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header)]
    if palette is not None:
        parts.append(chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes()))
    parts += [chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def optimise(path, *, order):
    """Renumber a palette PNG as programs that shrink PNG files do: the picture is the same."""
    with Image.open(path) as image:
        indices, palette = np.array(image), np.array(image.getpalette()).reshape(-1, 3)
    new = np.empty(256, np.uint8)
    new[list(order)] = range(len(order))
    image = Image.fromarray(new[indices])
    image.putpalette(palette[list(order)].astype(np.uint8).tobytes())
    image.save(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_stored_numbers(tmp_path, suffix, dtype):
    labels = LABELS.astype(dtype) * (300 if dtype == np.uint16 else 1)
    Image.fromarray(labels).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_labels(tmp_path / f"a{suffix}"), labels)
    assert label_size(tmp_path / f"a{suffix}") == (2, 3)
    assert len(read_palette(tmp_path / f"a{suffix}")) == 0


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_indices_of_a_palette_of_few_bits(tmp_path, bits):
    colors = [[9, 9, 9], [0, 200, 0], [0, 0, 7], [1, 2, 3]]
    path = png(tmp_path / "a.png", LABELS, bits, palette=sum(colors, []))
    np.testing.assert_array_equal(read_labels(path), LABELS)
    assert read_palette(path).tolist() == colors


def test_palette_of_a_tiff(tmp_path):
    image = Image.fromarray(LABELS)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif"), LABELS)
    assert read_palette(tmp_path / "a.tif")[1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("bits, label, grey", [(1, 1, 255), (2, 3, 255), (4, 8, 136)])
def test_a_grey_map_of_few_bits_is_ambiguous(tmp_path, bits, label, grey):
    """Pillow scales 8 to 136. A program that shrinks PNG files stores 255 as 1."""
    path = png(tmp_path / "a.png", np.array([[0, label]]), bits)
    with pytest.raises(DatasetError, match=rf"a.png is a grey .* {bits} bits.*label {label}") as e:
        read_labels(path)
    assert f"grey level {grey}" in str(e.value)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_zero_is_zero_in_any_depth(tmp_path, bits):
    labels = read_labels(png(tmp_path / "a.png", np.zeros((3, 5), int), bits))
    assert labels.dtype == np.uint8 and labels.shape == (3, 5) and not labels.any()


def test_a_palette_of_greys_is_ambiguous_unless_it_changes_nothing(tmp_path):
    greys = np.arange(4).repeat(3)
    path = png(tmp_path / "a.png", LABELS, 8, palette=greys)
    np.testing.assert_array_equal(read_labels(path), LABELS)
    # What optipng makes of a grey map with the labels 0, 7, 11 and 255.
    png(tmp_path / "a.png", LABELS, 2, palette=np.array([0, 7, 11, 255]).repeat(3))
    with pytest.raises(DatasetError, match="a.png has a palette of greys .*index 1 is the grey.*7"):
        read_labels(path)


def save_tiff(path, array, **tags):
    Image.fromarray(array).save(path, tiffinfo={int(k[1:]): v for k, v in tags.items()})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: save_tiff(p, LABELS, _274=6), "has an EXIF rotation"),
        (lambda p: save_tiff(p, LABELS, _274=3), "has an EXIF rotation"),
        (lambda p: Image.fromarray(LABELS).save(p, format="JPEG"), "neither PNG nor TIFF"),
        (lambda p: Image.fromarray(LABELS).save(p, compression="jpeg"), "the compression jpeg"),
        (lambda p: save_tiff(p, LABELS, _262=0), "stores white as 0"),
        (
            lambda p: Image.fromarray(LABELS).save(
                p, save_all=True, append_images=[Image.fromarray(LABELS)]
            ),
            "has several pages",
        ),
        (lambda p: Image.fromarray(LABELS).convert("RGB").save(p), "is no label map: .* RGB"),
        (lambda p: Image.fromarray(LABELS).convert("LA").save(p), "is no label map: .* LA"),
        (lambda p: Image.fromarray(LABELS / 1).save(p), "is no label map: .* F"),
        (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "neither PNG nor TIFF"),
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.mkdir(), "it is a folder"),
        (lambda p: None, "No such file"),
    ],
)
def test_files_that_are_refused(tmp_path, write, message):
    path = tmp_path / "a.tif"
    write(path)
    with pytest.raises(DatasetError, match=f"a.tif .*{message}") as error:
        read_labels(path)
    assert "\n" not in str(error.value)


def test_an_exif_rotation_of_a_png_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(LABELS).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(DatasetError, match="a.png has an EXIF rotation"):
        read_labels(tmp_path / "a.png")


@given(data=st.data(), kind=st.sampled_from(["grey", "palette", "deep", "bits", "tiff"]))
def test_damaged_files_raise_only_the_documented_error(tmp_path_factory, data, kind):
    path = tmp_path_factory.getbasetemp() / "fuzzed_label"
    if kind == "bits":
        png(path, LABELS, 4)
    else:
        image = Image.fromarray(LABELS.astype(np.uint16) if kind == "deep" else LABELS)
        if kind == "palette":
            image.putpalette(range(12))
        image.save(path, format="TIFF" if kind == "tiff" else "PNG")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (read_labels, read_palette, label_size):
        try:
            read(path)
        except DatasetError as e:
            assert "fuzzed_label" in str(e)
