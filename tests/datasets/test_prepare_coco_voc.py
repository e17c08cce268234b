"""COCO-Stuff, A-150 and PASCAL VOC: layouts, splits, labels that must not occur."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.coco_stuff import default_input


def move_folder(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def overwrite(path, value):
    """Put a label into one pixel of a label map."""
    with Image.open(path) as label:
        array = np.array(label)
    array[2, 3] = value
    Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coco_stuff", 11),  # an unused number of COCO-Stuff
        ("coco_stuff", 90),
        ("coco_stuff", 182),
        ("ade20k_150", 151),
        ("ade20k_150", 255),  # converted already
        ("pascal_voc", 21),
    ],
)
def test_label_of_another_data_set(make_case, tmp_path, name, value):
    case = make_case(name)
    overwrite(case.label_files["v1"], value)
    with pytest.raises(DatasetError, match=rf"v1.png holds the label {value}, .* among 0-\d+"):
        case.run(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*/labels/val/v1*"))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("{}2017", "annotations/{}2017"),
        ("images/{}2017", "annotations/{}2017"),
        ("images/{}2017", "stuffthingmaps_trainval2017/{}2017"),
    ],
)
def test_layouts_of_coco(make_case, tmp_path, contents, images, labels):
    case = make_case("coco_stuff")
    case.run(tmp_path / "out")
    for split in case.stems:
        for old, new in (("{}2017", images), ("stuffthingmaps/{}2017", labels)):
            if old != new:
                move_folder(case.source / old.format(split), case.source / new.format(split))
    case.run(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_coco_in_two_layouts(make_case, tmp_path):
    case = make_case("coco_stuff")
    (case.source / "images" / "val2017").mkdir(parents=True)
    with pytest.raises(DatasetError, match="both .*val2017 and .*images/val2017: keep one"):
        case.run(tmp_path / "out")


def test_default_input_of_coco_is_the_folder_with_label_maps(make_case, tmp_path):
    make_case("coco_stuff", folder="root")
    root = tmp_path / "root"
    assert default_input(root) == root / "coco"
    move_folder(root / "coco", root / "coco-stuff")
    assert default_input(root) == root / "coco-stuff"
    (root / "coco").mkdir()  # for example with annotations for detection
    assert default_input(root) == root / "coco-stuff"
    assert default_input(tmp_path / "nowhere") == tmp_path / "nowhere" / "coco"


@pytest.mark.parametrize("name", ["coco_stuff", "ade20k_150"])
def test_one_split(make_case, tmp_path, caplog, name):
    caplog.set_level("INFO")
    case = make_case(name)
    case.run(tmp_path / "val", splits=["val"])
    assert [p.name for p in (tmp_path / "val" / name / "labels").iterdir()] == ["val"]
    for files in (case.images, case.label_files):
        move_folder(files["t0"].parent, tmp_path / f"elsewhere{files['t0'].suffix}")
    case.run(tmp_path / "out")
    assert "train: not in" in caplog.text
    assert not (tmp_path / "out" / name / "labels" / "train").exists()
    with pytest.raises(DatasetError, match=f"train.* does not exist.*{case.archives[0]}"):
        case.run(tmp_path / "out", splits=["train", "val"])


@pytest.mark.parametrize("name", ["coco_stuff", "ade20k_150"])
def test_empty_folder(make_case, tmp_path, name):
    case = make_case(name)
    case.source = tmp_path / "empty"
    case.source.mkdir()
    with pytest.raises(DatasetError, match=f"holds no data set.*{case.archives[0]}"):
        case.run(tmp_path / "out")


def test_voc_labels_are_never_mixed(make_case, tmp_path, caplog, contents):
    caplog.set_level("INFO")
    augmented = make_case("pascal_voc")
    augmented.run(tmp_path / "out")
    assert f"label maps are in {augmented.source / 'SegmentationClassAug'}" in caplog.text
    original = make_case("pascal_voc", folder="other", labels="SegmentationClass")
    original.run(tmp_path / "other_out")
    # Palette and greyscale files give the same result; only prepared.json differs.
    for folder in augmented.expected:
        for part in ("labels", "images"):
            ours = contents(tmp_path / "out" / folder / part)
            assert ours and ours == contents(tmp_path / "other_out" / folder / part)
    before = contents(tmp_path / "out")
    message = "labels = SegmentationClassAug, not with labels = SegmentationClass: give another"
    with pytest.raises(DatasetError, match=message):
        original.run(tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_voc_with_both_kinds_of_labels(make_case, tmp_path, load_program):
    case = make_case("pascal_voc")
    make_case("pascal_voc", labels="SegmentationClass")
    overwrite(case.source / "SegmentationClass" / "v0.png", 77)  # an error if it is used
    case.run(tmp_path / "out")
    argv = ["--input", str(case.source), "--root", str(tmp_path / "other")]
    with pytest.raises(DatasetError, match="SegmentationClass/v0.png holds the label 77"):
        case.run(tmp_path / "other", labels="SegmentationClass")
    with pytest.raises(SystemExit):
        load_program(case.program).main([*argv, "--labels", "SegmentationObject"])


def test_voc_of_unknown_labels(make_case, tmp_path):
    case = make_case("pascal_voc")
    case.run(tmp_path / "out")
    (tmp_path / "out/pascal_voc_20b/prepared.json").unlink()
    with pytest.raises(DatasetError, match="pascal_voc_20b holds files, but no prepared.json"):
        case.run(tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v0\n", "val.txt names 1 images, not 2"),
        ("v0\nv0\nv1\n", "val.txt names 1 images more than once"),
        (None, "val.txt does not exist.*VOCtrainval_11-May-2012.tar"),
    ],
)
def test_split_file_of_voc(make_case, tmp_path, text, message):
    case = make_case("pascal_voc")
    path = case.source / "ImageSets/Segmentation/val.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        case.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
