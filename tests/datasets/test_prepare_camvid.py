"""CamVid's preparation, on miniatures of its two layouts."""

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.camvid import LAYOUTS, prepare_camvid

COUNTS = {"train": 3, "val": 2, "test": 1}


def make_input(folder, layout="images/labels", splits=("train", "val")):
    """Write a CamVid of a few 8 x 6 images; every label map holds all values 0 ... 11."""
    image_part, label_part = LAYOUTS[layout]
    suffix = ".jpg" if layout == "images/labels" else ".png"
    labels = (np.arange(48) % 12).astype(np.uint8).reshape(6, 8)
    for split in splits:
        for part in (image_part, label_part):
            (folder / part.format(split)).mkdir(parents=True)
        for i in range(COUNTS[split]):
            image = np.full((6, 8, 3), 40 * i, np.uint8)
            Image.fromarray(image).save(folder / image_part.format(split) / f"s{i}{suffix}")
            Image.fromarray(labels).save(folder / label_part.format(split) / f"s{i}.png")
    return folder


def prepare(source, root, **kwargs):
    prepare_camvid(source, root, image_counts=COUNTS, **kwargs)
    return root / "camvid"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_layouts(tmp_path, layout, workers):
    source = make_input(tmp_path / "in", layout, splits=COUNTS)
    output = prepare(source, tmp_path / "out", workers=workers)
    assert len(contents(output)) == 2 * sum(COUNTS.values())
    label = Image.open(output / "labels" / "val" / "s1.png")
    raw = (np.arange(48) % 12).reshape(6, 8)
    assert label.mode == "L"
    np.testing.assert_array_equal(np.array(label), np.where(raw == 11, 255, raw))
    for image in (output / "images" / "train").iterdir():
        original = source / LAYOUTS[layout][0].format("train") / image.name
        assert image.read_bytes() == original.read_bytes()


def test_absent_split_is_skipped_with_a_notice(tmp_path, caplog):
    caplog.set_level("INFO")
    output = prepare(make_input(tmp_path / "in"), tmp_path / "out")
    assert not (output / "labels" / "test").exists()
    assert "test: not in" in caplog.text


def test_only_missing_files_are_written(tmp_path):
    source = make_input(tmp_path / "in")
    output = prepare(source, tmp_path / "out")
    before = contents(output)
    kept, lost = output / "labels/train/s0.png", output / "labels/train/s1.png"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    (output / "images/val/s0.jpg").unlink()
    (output / f"labels/train/.{'12' * 16}.part").write_bytes(b"unfinished")
    assert contents(prepare(source, tmp_path / "out")) == before
    assert kept.stat().st_mtime_ns == stamp


def test_the_input_is_never_changed(tmp_path):
    source = make_input(tmp_path / "in")
    before = contents(source)
    output = prepare(source, tmp_path / "out")
    (output / "images/val/s0.jpg").unlink()
    prepare(source, tmp_path / "out")
    assert contents(source) == before


def break_missing_labels(source):
    for path in (source / "labels/val").iterdir():
        path.unlink()
    (source / "labels/val").rmdir()


def break_missing_label(source):
    (source / "labels/train/s1.png").unlink()


def break_count(source):
    (source / "images/val/s1.jpg").unlink()
    (source / "labels/val/s1.png").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_missing_labels, "labels/val does not exist.*SegNet"),
        (break_missing_label, "s1.jpg has no label map.*SegNet"),
        (break_count, "images/val holds 1 images, not 2.*SegNet"),
    ],
)
def test_incomplete_input_writes_nothing(tmp_path, damage, message):
    source = make_input(tmp_path / "in")
    damage(source)
    with pytest.raises(DatasetError, match=message):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damage_value(source):
    Image.fromarray(np.full((6, 8), 12, np.uint8)).save(source / "labels/train/s1.png")


def damage_size(source):
    Image.fromarray(np.zeros((6, 7), np.uint8)).save(source / "labels/train/s1.png")


def damage_mode(source):
    Image.new("RGB", (8, 6)).save(source / "labels/train/s1.png")


def damage_label_file(source):
    path = source / "labels/train/s1.png"
    path.write_bytes(path.read_bytes()[:40])


def damage_image_file(source):
    path = source / "images/train/s1.jpg"
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_value, "labels/train/s1.png holds the label 12"),
        (damage_size, "s1.jpg is 8 x 6 pixels.*s1.png is 7 x 6"),
        (damage_mode, "labels/train/s1.png is no label map.*RGB"),
        (damage_label_file, "labels/train/s1.png cannot be read"),
        (damage_image_file, "images/train/s1.jpg cannot be read"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_file_is_named_and_not_written(tmp_path, damage, message, workers):
    source = make_input(tmp_path / "in")
    damage(source)
    with pytest.raises(DatasetError, match=message):
        prepare(source, tmp_path / "out", workers=workers)
    written = {path.name for path in contents(tmp_path / "out" / "camvid" / "labels")}
    assert written == {"s0.png", "s2.png"}


def test_files_of_another_input_are_an_error(tmp_path):
    prepare(make_input(tmp_path / "one"), tmp_path / "out")
    with pytest.raises(DatasetError, match="s0.jpg is not made from this input"):
        prepare(make_input(tmp_path / "two", "SegNet"), tmp_path / "out")


def test_wrong_folders(tmp_path):
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    text = "holds neither images/train and labels/train nor train and trainannot"
    with pytest.raises(DatasetError, match=text):
        prepare(tmp_path / "empty", tmp_path / "out")
    both = make_input(make_input(tmp_path / "both"), "SegNet")
    with pytest.raises(DatasetError, match="two layouts"):
        prepare(both, tmp_path / "out")
    output = prepare(make_input(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(DatasetError, match="output folder"):
        prepare(output, tmp_path / "out")


def test_program_ends_with_one_line_on_an_error(tmp_path, caplog, load_program):
    argv = ["--input", str(make_input(tmp_path / "in")), "--root", str(tmp_path)]
    assert load_program("datasets/prepare_camvid.py").main(argv) == 1
    assert "3 images, not 367" in caplog.text and "Traceback" not in caplog.text
