"""Photographs and label maps that are made to do harm, in every place that reads them.

Each file has the name of a harmless one. The only result may be the documented error, which names
the file.
"""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.data.label_maps import label_size, read_labels, read_palette
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.ade20k import read_ade_objects
from dcp_clip.data.preparation.convert import prepare_split
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.utils.images.reading import ImageReadError, read_image, read_image_and_orientation
from dcp_clip.utils.montage import MontageError, read_results
from dcp_clip.vocabulary.categories import Category

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"%%Page: 1 1\n0 0 moveto showpage\n%%EOF\n"
)
# A script for Ghostscript behind a preview, which is another beginning of an EPS file.
EPS_WITH_PREVIEW = b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_bomb(bits: int, color_type: int) -> bytes:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, bits, color_type, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9)
    palette = chunk(b"PLTE", bytes(6)) if color_type == 3 else b""
    parts = [chunk(b"IHDR", header), palette, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_bomb() -> bytes:
    """A TIFF that claims 100,000 x 100,000 pixels."""
    tags = [(256, 100_000), (257, 100_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


CONTENTS = {
    "eps": EPS,
    "eps_with_preview": EPS_WITH_PREVIEW,
    "grey_bomb": png_bomb(1, 0),
    "palette_bomb": png_bomb(1, 3),
    "colour_bomb": png_bomb(16, 6),
    "tiff_bomb": tiff_bomb(),
    "pickle": b"\x80\x04cos\nsystem\n(S'touch started'\ntR.",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    "html": b"<html>404 Not Found</html>",
    "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "empty": b"",
    "zeros": bytes(100),
}


@pytest.fixture(autouse=True)
def started(tmp_path, monkeypatch):
    """A file that exists if a program was started: every program that Pillow knows is a trap."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("gs", "gswin32c", "djpeg", "netpbm", "xv", "display"):
        (tools / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    yield tmp_path / "started"
    assert not (tmp_path / "started").exists()


@pytest.fixture(params=CONTENTS)
def content(request) -> bytes:
    return CONTENTS[request.param]


def map_record(image: Path, labels: Path):
    options = {"augmentations": []}
    mapper = SemSegDatasetMapper(True, **options, num_labels=2, ignored_labels=[255])
    return mapper({"file_name": str(image), "sem_seg_file_name": str(labels)})


def prepare(image: Path, labels: Path):
    categories = [Category(name, (), i, i, None, name) for i, name in enumerate(["sky", "tree"])]
    out = image.parent / "out"
    prepare_split(
        [(image, labels)], out / "images", out / "labels", label_encoding(categories, read_indices)
    )


@pytest.mark.parametrize("read", [read_image, read_image_and_orientation])
def test_a_photograph(tmp_path, content, read):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"photo\.jpg") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("use", [map_record, prepare])
@pytest.mark.parametrize("name", ["photo.jpg", "labels.png"])
def test_a_file_of_a_data_set(tmp_path, content, use, name):
    Image.new("RGB", (4, 3)).save(tmp_path / "photo.jpg")
    Image.new("L", (4, 3)).save(tmp_path / "labels.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=name) as error:
        use(tmp_path / "photo.jpg", tmp_path / "labels.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_labels, read_palette, label_size, read_ade_objects])
def test_a_label_map(tmp_path, content, read):
    path = tmp_path / "labels.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"labels\.png") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_a_label_map_of_the_demos_results(tmp_path, content):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "overlay.png")
    (tmp_path / "labels.png").write_bytes(content)
    line = {"file": str(tmp_path / "overlay.png"), "width": 4, "height": 4}
    line |= {"overlay": "overlay.png", "labels": "labels.png"}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    settings = {"working folder": None, "max_input_pixels": None}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    with pytest.raises(MontageError, match=r"labels\.png"):
        read_results(tmp_path)
