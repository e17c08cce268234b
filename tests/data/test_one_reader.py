"""Training, evaluation and `Predictor` read the same pixels from every kind of file."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image, features

from dcp_clip.config import get_cfg
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.predictor import Predictor
from dcp_clip.structures import SemSegProposals
from dcp_clip.utils.images.reading import read_image

HEIGHT, WIDTH = 6, 9
# A camera stores the image with the inverse transformation of the tag.
STORE = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}
EXIF_FORMATS = {
    ".png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "12 bits"],
    ".tif": [
        *("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "I;16", "I;16B"),
        *("12 bits", "F", "F [0, 1]"),
    ],
    ".deflate.tif": ["L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"],
    ".jpg": ["L", "RGB", "CMYK"],
    ".webp": ["L", "RGB", "RGBA"],
    ".avif": ["RGB", "RGBA"] if features.check("avif") else [],
}
OTHER_FORMATS = {
    ".bmp": ["1", "L", "P", "RGB"],
    ".gif": ["L", "P", "RGB", "RGBA"],
    ".ppm": ["L", "RGB", "I;16"],
    ".jp2": ["L", "RGB", "RGBA", "I;16"] if features.check("jpg_2000") else [],
}
TABLE = [
    (suffix, mode, orientations)
    for formats, orientations in ((EXIF_FORMATS, range(1, 9)), (OTHER_FORMATS, [1]))
    for suffix, modes in formats.items()
    for mode in modes
]


class EchoModel(torch.nn.Module):
    """Keeps the image that it is given."""

    def set_vocabulary(self, vocabulary) -> None:
        pass

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        (x,) = batched_inputs
        self.image = x["image"]
        ids = torch.arange(2)
        sem_seg = SemSegProposals(torch.zeros(2, x["height"], x["width"]), ids, 2)
        return [{"sem_seg": sem_seg, "proposals": {"ids": ids, "scores": ids / 2}}]


@pytest.fixture(scope="module")
def readers():
    """The image (H, W, 3) that each place gives to a model."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TEST = ("camvid_sem_seg_val",)
    options = {"augmentations": [], "num_labels": 2}
    training = SemSegDatasetMapper(True, **options, ignored_labels=[255])
    evaluation = SemSegDatasetMapper(cfg, is_train=False, with_labels=False)
    predictor = Predictor(cfg, "sky; tree", model=EchoModel())

    def predict(path):
        predictor(path)
        return predictor.model.image

    def pixels(read, path):
        return read(path).permute(1, 2, 0).numpy()

    return {
        "training": functools.partial(pixels, lambda p: training({"file_name": str(p)})["image"]),
        "evaluation": functools.partial(
            pixels, lambda p: evaluation({"file_name": str(p)})["image"]
        ),
        "predictor": functools.partial(pixels, predict),
    }


def picture(mode: str) -> np.ndarray | Image.Image:
    """A picture in which every orientation looks different, in one mode."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grey = (28 * x + 4 * y).astype(np.uint8)
    deep = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
    if mode in deep:
        return (grey.astype(np.int64) * 257).astype(deep[mode])
    if mode == "12 bits":
        return grey.astype(np.uint16) * 16
    if mode.startswith("F"):
        return grey.astype(np.float32) / (255 if mode == "F [0, 1]" else 1)
    rgb = np.stack([grey, (40 * y).astype(np.uint8), 255 - grey], axis=-1)
    image = Image.fromarray(rgb)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray((255 - 30 * y - x).astype(np.uint8)))
    if mode == "LAB":
        return Image.frombytes("LAB", (WIDTH, HEIGHT), rgb.tobytes())
    return image.convert(mode)


def save(path, mode: str, orientation: int) -> None:
    content = picture(mode)
    if isinstance(content, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(STORE[orientation](content)))
    else:
        array = np.asarray(content)
        stored = np.ascontiguousarray(STORE[orientation](array))
        image = Image.frombytes(content.mode, stored.shape[1::-1], _raw(stored, content.mode))
        if mode == "P":
            image.putpalette(content.getpalette())
    options = {".webp": {"lossless": True, "exact": True}, ".jpg": {"quality": 95}}
    options = options.get(path.suffix, {})
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if path.suffixes[-2:] == [".deflate", ".tif"]:
        options["compression"] = "tiff_adobe_deflate"
    image.save(path, **options)


def _raw(array: np.ndarray, mode: str) -> bytes:
    return np.packbits(array, axis=1).tobytes() if mode == "1" else array.tobytes()


@pytest.mark.parametrize(("suffix", "mode", "orientations"), TABLE)
def test_table_of_formats_modes_and_orientations(tmp_path, readers, suffix, mode, orientations):
    for orientation in orientations:
        path = tmp_path / f"{orientation}{suffix}"
        save(path, mode, orientation)
        expected = read_image(path)
        assert expected.shape == (HEIGHT, WIDTH, 3) and expected.dtype == np.uint8
        for place, read in readers.items():
            np.testing.assert_array_equal(read(path), expected, err_msg=f"{place} {orientation}")
        if orientation == 1:
            upright = expected
            continue
        # Lossy formats compress a rotated picture to slightly different pixels.
        tolerance = 12 if suffix in (".jpg", ".avif") else 0
        difference = np.abs(expected.astype(int) - upright)
        assert difference.mean() <= tolerance, orientation


@pytest.mark.parametrize(
    ("suffix", "mode"), [(s, m) for s, m, _ in TABLE if s not in (".jpg", ".avif", ".jp2")]
)
def test_values_of_the_table(tmp_path, suffix, mode):
    """The pixels follow the rules of docs/image_formats.md, not only those of another place."""
    if (suffix, mode) in ((".gif", "RGB"), (".gif", "RGBA")):
        return  # reduced to 256 colours
    content = picture(mode)
    if isinstance(content, np.ndarray):
        expected = np.asarray(picture("RGB"))[..., :1].repeat(3, axis=-1)
    elif mode in ("LA", "RGBA"):
        alpha = np.asarray(content)[..., -1:] / 255
        colour = np.asarray(content.convert("RGB"))
        expected = np.rint(colour * alpha + 255 * (1 - alpha))
    else:
        expected = np.asarray(content.convert("RGB"))
    save(tmp_path / f"a{suffix}", mode, 1)
    difference = np.abs(read_image(tmp_path / f"a{suffix}").astype(int) - expected)
    assert difference.max() <= (mode in ("LA", "RGBA"))


def test_a_photograph_with_transparency_in_training_and_evaluation_is_blended(tmp_path, readers):
    """Hidden colours of transparent pixels are no part of the picture."""
    image = Image.new("RGBA", (4, 3), (200, 0, 0, 0))
    image.save(tmp_path / "a.png")
    for read in readers.values():
        assert (read(tmp_path / "a.png") == 255).all()


@pytest.mark.parametrize("place", ["training", "evaluation", "predictor"])
def test_another_format_under_a_photographs_name_starts_no_program(
    tmp_path, readers, place, monkeypatch
):
    """Pillow would run Ghostscript, which is called gs, on an EPS file of any name."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    path = tmp_path / "photo.jpg"
    path.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        "%%Page: 1 1\n0 0 moveto showpage\n%%EOF\n"
    )
    with pytest.raises((ValueError, RuntimeError), match=r"photo\.jpg.*not an image"):
        readers[place](path)
    assert not (tmp_path / "started").exists()
