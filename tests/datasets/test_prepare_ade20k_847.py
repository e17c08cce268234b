"""A-847: shrinking, the tree of scenes, the default split."""

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.pairing import DatasetError


def read(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def case(make_case):
    return make_case("ade20k_847", shape=(9, 13))


@pytest.mark.parametrize(
    ("limit", "size"), [(6, (6, 9)), (8, (8, 12)), (9, (9, 13)), (50, (9, 13))]
)
def test_shrinking(case, tmp_path, limit, size, contents):
    case.run(tmp_path / "out", original_size=False, max_short_side=limit)
    output = tmp_path / "out" / "ade20k_847"
    for stem in case.stems["val"]:
        image = read(output / f"images/val/{stem}.jpg")
        labels = read(output / f"labels/val/{stem}.tif")
        assert image.shape == (*size, 3) and labels.shape == size and labels.dtype == np.uint16
        # OpenCV's nearest pixel, which rounds down and which published figures are based on.
        rows = np.arange(size[0]) * 9 // size[0]
        columns = np.arange(size[1]) * 13 // size[1]
        expected = case.expected["ade20k_847"][stem]
        np.testing.assert_array_equal(labels, expected[rows[:, None], columns])
    before = contents(output)
    (output / "labels/val/v0.tif").unlink()
    case.run(tmp_path / "out", original_size=False, max_short_side=limit)
    assert contents(output) == before


def test_shrunk_image_has_the_same_content(case, tmp_path):
    smooth = np.add.outer(np.arange(90) * 2, np.arange(60))[..., None].repeat(3, axis=2)
    Image.fromarray(smooth.astype(np.uint8)).save(case.images["v0"], quality=95)
    Image.fromarray(np.zeros((90, 60, 3), np.uint8)).save(case.label_files["v0"])
    Image.fromarray(np.full((9, 13), 90, np.uint8)).save(case.images["v1"])  # greyscale
    case.run(tmp_path / "out", original_size=False, max_short_side=20)
    image = read(tmp_path / "out/ade20k_847/images/val/v0.jpg").astype(int)
    assert image.shape == (30, 20, 3)
    np.testing.assert_allclose(image, smooth[1::3, 1::3], atol=12)
    assert np.abs(read(tmp_path / "out/ade20k_847/images/val/v1.jpg").astype(int) - 90).max() <= 1


def test_sizes_are_never_mixed(case, tmp_path, contents):
    case.run(tmp_path / "out", original_size=False)
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetError, match="short side <= 512, not with size = original"):
        case.run(tmp_path / "out", original_size=True)
    assert contents(tmp_path / "out") == before


def test_program_makes_val_only_and_shrinks_by_default(case, tmp_path, main_of):
    argv = ["--input", str(case.source), "--root", str(tmp_path / "out"), "--workers", "1"]
    assert main_of(case)(argv) == 0
    output = tmp_path / "out" / "ade20k_847"
    assert [p.name for p in (output / "labels").iterdir()] == ["val"]
    assert "512" in (output / "prepared.json").read_text()
    assert main_of(case)([*argv, "--original-size"]) == 1
    assert main_of(case)([*argv, "--splits", "train"]) == 0
    assert len(list((output / "labels" / "train").iterdir())) == 3


def test_training_count_is_not_enforced(case):
    assert case.prepare.__kwdefaults__["image_counts"] == {"train": None, "val": 2000}


def test_label_map_without_image(case, tmp_path):
    path = case.label_files["t1"]
    path.rename(path.with_name("stray_seg.png"))
    with pytest.raises(DatasetError, match="t1.jpg has no label map beside it"):
        case.run(tmp_path / "out")
    case.images["t1"].unlink()
    with pytest.raises(DatasetError, match="stray_seg.png has no image beside it"):
        case.run(tmp_path / "out")


def test_two_images_of_one_name(case, tmp_path):
    for path in (case.images["v0"], case.label_files["v0"]):
        (path.parents[1] / "place2").mkdir(exist_ok=True)
        (path.parents[1] / "place2" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DatasetError, match="place/v0.jpg and .*place2/v0.jpg have the same stem"):
        case.run(tmp_path / "out")


def test_label_map_without_colours(case, tmp_path):
    Image.new("L", (13, 9)).save(case.label_files["v0"])
    with pytest.raises(DatasetError, match="v0_seg.png is no label map: its pixels are L"):
        case.run(tmp_path / "out")
