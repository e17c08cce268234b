"""PC-59 (run-length codes in a JSON file) and PC-459 (.mat files)."""

import json

import numpy as np
import pytest
from scipy.io import savemat

from dcp_clip.data.label_maps import read_labels
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.file_lists import read_ids


@pytest.fixture
def pc59(make_case):
    return make_case("pascal_context_59")


def edit(case, function):
    """Change the JSON file's content in place."""
    path = case.label_files["v0"]
    content = json.loads(path.read_text())
    function(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("number", [59, 459])
def test_shipped_list_of_validation_images(number, load_program):
    program = load_program(f"datasets/prepare_pascal_context_{number}.py")
    ids = read_ids(program.VAL_IDS, expected_count=5104)
    assert ids[0] == "2008_000002" and ids == sorted(ids)


def test_uncompressed_run_lengths(pc59, tmp_path):
    def change(content):
        annotations = content["annos_segmentation"]
        annotations[:] = [a for a in annotations if a["image_id"] != 0]
        # By columns of 17 pixels: one column without the category, two with it, the rest without.
        rle = {"size": [17, 31], "counts": [17, 34, 17 * 31 - 51]}
        annotations.append({"image_id": 0, "category_id": 9, "segmentation": rle})

    edit(pc59, change)
    pc59.expected["pascal_context_59"]["v0"] = np.full((17, 31), 255)
    pc59.expected["pascal_context_59"]["v0"][:, 1:3] = 1
    pc59.run(tmp_path / "out")
    labels = read_labels(tmp_path / "out/pascal_context_59/labels/val/v0.png")
    np.testing.assert_array_equal(labels, pc59.expected["pascal_context_59"]["v0"])


def drop_masks(content):
    content["annos_segmentation"] = [a for a in content["annos_segmentation"] if a["image_id"]]


def drop_image(content):
    content["images"] = [i for i in content["images"] if i["image_id"]]


def drop_key(content):
    del content["annos_segmentation"]


def rename_phase(content):
    for image in content["images"]:
        del image["phase"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_masks, r"trainval_merged.json \(v0.jpg\) has no mask \(1 such images\)"),
        (drop_image, "trainval_merged.json has 1 validation images, not 2"),
        (drop_key, "not PASCAL in Detail's annotation.*annos_segmentation"),
        (rename_phase, "not PASCAL in Detail's annotation.*phase"),
    ],
)
def test_another_json(pc59, tmp_path, change, message):
    edit(pc59, change)
    with pytest.raises(DatasetError, match=f"{message}.*sites.google.com/view/pasd"):
        pc59.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_json(pc59, tmp_path):
    path = pc59.label_files["v0"]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DatasetError, match="trainval_merged.json is not PASCAL.*or is damaged"):
        pc59.run(tmp_path / "out")


def mask_of_another_size(content):
    content["annos_segmentation"][0]["segmentation"]["size"] = [17, 30]


def mask_without_counts(content):
    del content["annos_segmentation"][0]["segmentation"]["counts"]


def mask_of_another_kind(content):
    content["annos_segmentation"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (mask_of_another_size, r"mask of \[17, 30\] pixels \(height, width\), not \[17, 31\]"),
        (mask_without_counts, "mask that cannot be read: KeyError"),
        (mask_of_another_kind, "mask that cannot be read: TypeError"),
    ],
)
def test_damaged_mask(pc59, tmp_path, change, message):
    edit(pc59, change)
    with pytest.raises(DatasetError, match=rf"\(v0.jpg\) has a {message}"):
        pc59.run(tmp_path / "out")
    labels = tmp_path / "out/pascal_context_59/labels/val"
    assert [path.name for path in labels.iterdir()] == ["v1.png"]


def test_validation_split_that_is_not_the_listed_one(pc59, tmp_path, caplog):
    pc59.kwargs["val_ids"].write_text("v0\nw1\n")
    pc59.run(tmp_path / "out")
    assert "lacks 1 images (w1, ...) and has as many others (v1, ...)" in caplog.text
    labels = tmp_path / "out/pascal_context_59/labels/val"
    assert {path.name for path in labels.iterdir()} == {"v0.png", "v1.png"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Other": np.ones((17, 31))}, "no matrix LabelMap"),
        ({"LabelMap": "words"}, "no matrix LabelMap"),
        ({"LabelMap": np.full((17, 31), 1.5)}, "does not hold whole numbers"),
        ({"LabelMap": np.full((17, 31), -1, np.int16)}, "does not hold whole numbers"),
        ({"LabelMap": np.full((17, 31), 70000.0)}, "does not hold whole numbers"),
        (None, "cannot be read"),
    ],
)
def test_mat_file_of_something_else(make_case, tmp_path, content, message):
    case = make_case("pascal_context_459")
    path = case.label_files["v1"]
    path.write_text("no mat file at all") if content is None else savemat(path, content)
    with pytest.raises(DatasetError, match=f"v1.mat.* {message}"):
        case.run(tmp_path / "out")


def test_mat_file_of_doubles(make_case, tmp_path):
    case = make_case("pascal_context_459")
    raw = np.full((17, 31), 459.0)
    savemat(case.label_files["v1"], {"LabelMap": raw})
    case.run(tmp_path / "out")
    labels = read_labels(tmp_path / "out/pascal_context_459/labels/val/v1.tif")
    assert labels.dtype == np.uint16 and (labels == 458).all()
