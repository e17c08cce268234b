"""Opening image files: errors, limits, and files that are made to do harm."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from dcp_clip.utils.images.reading import ImageReadError, read_image, read_image_and_size


def _photo(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth image that JPEG changes little: red increases to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, 0 * x + 90], axis=-1).astype(np.uint8)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = 6) -> bool:
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < tolerance


@pytest.mark.parametrize("kind", ["one", "compressed", "international", "many", "profile"])
def test_long_texts_in_a_png_do_not_matter(tmp_path, kind):
    """Pillow refuses more than 1 MiB in a chunk, also in a file of a few kB."""
    path, options = tmp_path / "a.png", {}
    text, long = PngImagePlugin.PngInfo(), "x" * (3 << 20)
    if kind == "international":
        text.add_itxt("Comment", long, zip=True)
    elif kind == "profile":
        options["icc_profile"] = bytes(3 << 20)
    else:
        for _ in range(80 if kind == "many" else 1):
            text.add_text("Comment", long[: 1 << 20] if kind == "many" else long, kind != "one")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(_photo()).save(path, pnginfo=text, exif=exif, **options)
    np.testing.assert_array_equal(read_image(path), np.rot90(_photo(), 2))


def test_a_bomb_is_refused_soon_and_in_little_memory(tmp_path):
    """50,000 x 50,000 pixels in a few kB."""
    path = tmp_path / "bomb.png"

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    compressor, rows = zlib.compressobj(9), bytes(6251 * 500)
    pixels = b"".join(compressor.compress(rows) for _ in range(100)) + compressor.flush()
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert path.stat().st_size < 400_000
    tracemalloc.start()
    with pytest.raises(ImageReadError, match="bomb.png: 50000 x 50000 .* limit of 300 megapixels"):
        read_image(path, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def _seeds() -> dict[str, bytes]:
    photo, seeds = Image.fromarray(_photo(8, 12)), {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000"):
        stream = io.BytesIO()
        options = {"exif": exif} if format in ("PNG", "JPEG", "TIFF", "WEBP") else {}
        photo.save(stream, format=format, **options)
        seeds[format] = stream.getvalue()
    for name, values in (("I;16", np.uint16), ("F", np.float32)):
        stream = io.BytesIO()
        grey = ImageOps.grayscale(photo)
        Image.fromarray(np.asarray(grey).astype(values)).save(stream, format="TIFF")
        seeds[name] = stream.getvalue()
    return seeds


@pytest.mark.filterwarnings("ignore")
@given(data=st.data(), seed=st.sampled_from(sorted(_seeds())))
def test_damaged_files_raise_only_the_documented_error(tmp_path_factory, data, seed):
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    content = bytearray(_seeds()[seed])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        image, _ = read_image_and_size(path, max_pixels=data.draw(st.sampled_from([None, 20])))
    except ImageReadError as e:
        assert str(path) in str(e) and "\n" not in str(e)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_image(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "arbitrary"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match="arbitrary"):
        read_image(path)


def test_too_large_image_is_rejected_before_decoding(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"bomb\.png: 30000 x 30000 pixels .* 300 megapixels"):
        read_image(path)


def _bad_files(folder: Path) -> dict[str, Path]:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        folder / "good.png"
    )
    Image.open(folder / "good.png").save(folder / "good.jpg")
    png, jpg = (folder / "good.png").read_bytes(), (folder / "good.jpg").read_bytes()
    contents = {
        "empty.jpg": b"",
        "text.jpg": b"not an image at all\n" * 20,
        "zeros.png": bytes(1000),
        "truncated.jpg": jpg[: len(jpg) // 2],
        "truncated.png": png[: len(png) // 2],
        "header only.png": png[:20],
        "corrupt.png": png[:200] + bytes(50) + png[250:],
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    return {name: folder / name for name in [*contents, "folder.jpg", "absent.jpg"]}


BAD_NAMES = (
    "empty.jpg text.jpg zeros.png truncated.jpg truncated.png corrupt.png eps.png "
    "folder.jpg absent.jpg"
).split()


@pytest.mark.parametrize("name", [*BAD_NAMES, "header only.png"])
def test_error_of_a_bad_file_is_one_sentence_with_its_path(tmp_path, name):
    path = _bad_files(tmp_path)[name]
    with pytest.raises(ImageReadError) as error:
        read_image(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 120


def test_damaged_exif_does_not_matter(tmp_path):
    Image.fromarray(_photo()).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"
    )
    assert _close(read_image(tmp_path / "a.jpg"), _photo())


@pytest.mark.parametrize("suffix", [".heic", ".HEIF"])
def test_heic_is_not_supported(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64))
    with pytest.raises(ImageReadError, match=f"photo{suffix}: the HEIC .* convert it to JPEG"):
        read_image(path)
