"""The preparation refuses label maps that stand for other labels than they should."""

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.pairing import DatasetError


def renumber(path):
    """Reverse the palette of a label map, as a program that shrinks files could do."""
    with Image.open(path) as image:
        indices, palette = np.array(image), np.array(image.getpalette()).reshape(-1, 3)
    image = Image.fromarray(len(palette) - 1 - indices)
    image.putpalette(palette[::-1].astype(np.uint8).tobytes())
    image.save(path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_renumbered_palette(make_case, tmp_path, workers):
    case = make_case("pascal_voc", labels="SegmentationClass")
    renumber(case.label_files["v1"])
    with pytest.raises(DatasetError, match=r"v1\.png gives the index \d+ the colour .*v0\.png"):
        case.run(tmp_path / "out", workers=workers)
    assert not list((tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("value", "message"), [(255, "val: all pixels have the ignored label"), (0, "val: .*masks")]
)
def test_useless_label_maps_end_the_preparation(make_case, tmp_path, value, message):
    case = make_case("coco_stuff")
    for stem in case.stems["val"]:
        labels = np.full((12, 15), value, np.uint8)
        labels[0] = 255
        Image.fromarray(labels).save(case.label_files[stem])
    with pytest.raises(DatasetError, match=message):
        case.run(tmp_path / "out")


def test_categories_without_pixels_are_a_warning(make_case, tmp_path, caplog):
    case = make_case("ade20k_150")
    for stem in case.stems["train"]:
        Image.fromarray(np.full((12, 13), 7, np.uint8)).save(case.label_files[stem])
    case.run(tmp_path / "out")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "WARNING: train: 149 of 150 categories have no pixel" in warning
    assert "and 129 more" in warning
