"""The formats of a folder run: one valid COCO file, resumable, and no drawing for labels alone."""

import json
import os
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dcp_clip import prediction
from dcp_clip.folder_run.result_files import DEFAULT_FORMATS, SUFFIXES

NAMES = ["--vocabulary", "red; green; blue"]


def stripes(path: str, *colors: str) -> None:
    """An image of vertical stripes, 20 pixels wide."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (20 * len(colors), 30))
    for i, color in enumerate(colors):
        image.paste(color, (20 * i, 0, 20 * i + 20, 30))
    image.save(path)


def labels_of(record: dict) -> np.ndarray:
    with Image.open(Path("out", record["labels"])) as image:
        return np.asarray(image)


def check_coco(records: list[dict]) -> None:
    """coco.json describes the label maps of all finished images."""
    coco = COCO("out/coco.json")
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == [record["file"] for record in records]
    for image, record in zip(images, records, strict=True):
        labels = labels_of(record)
        decoded = np.full(labels.shape, 255)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
            decoded[coco.annToMask(annotation) == 1] = annotation["category_id"]
        np.testing.assert_array_equal(decoded, labels)
    assert len({a["id"] for a in coco.dataset["annotations"]}) == len(coco.dataset["annotations"])


def test_the_demo_knows_all_formats(demo):
    assert tuple(SUFFIXES) == demo.FORMATS and tuple(demo.FORMATS[:2]) == DEFAULT_FORMATS


def test_a_format_that_is_given_twice_counts_once(demo, fake_model, capsys):
    stripes("in/a.png", "#ff0000")
    args = ["--input", "in", "--output", "out", *NAMES, "--format"]
    assert demo.main([*args, "coco", "labels"]) == 0
    assert demo.main([*args, "labels", "coco", "labels"]) == 0
    assert "Skipping 1 of 1 images" in capsys.readouterr().out


def test_all_formats(demo, fake_model, read_results, files_in, capsys):
    stripes("in/a.png", "#ff0000", "#0000ff")
    stripes("in/sub/b.png", "#00ff00")
    args = ["--input", "in", "--output", "out", *NAMES, "--format", *reversed(demo.FORMATS)]
    assert demo.main(args) == 0
    expected = {f"{stem}{suffix}" for stem in ("a", "sub/b") for suffix in SUFFIXES.values()}
    assert files_in("out") == expected | {"results.jsonl", "coco.json"}
    records = read_results("out")
    check_coco(records)
    first = records[0]
    assert list(first)[-len(SUFFIXES) :] == list(SUFFIXES)
    assert set(np.unique(labels_of(first))) == {0, 2}
    with Image.open(Path("out", first["confidence"])) as confidence:
        assert confidence.mode == "L" and confidence.size == (40, 30)
        assert np.asarray(confidence)[:, [2, -2]].min() == 255
    polygons = json.loads(Path("out", first["polygons"]).read_text())
    assert [entry["name"] for entry in polygons] == ["red", "blue"]
    labelme = Path("out", records[1]["labelme"])
    content = json.loads(labelme.read_text())
    assert (labelme.parent / content["imagePath"]).resolve() == Path("in/sub/b.png").resolve()
    (task,) = json.loads(Path("out", records[1]["label_studio"]).read_text())
    assert task["data"]["image"] == f"/data/local-files/?d={quote(os.getcwd())}/in/sub/b.png"


@pytest.mark.parametrize("name", ["a #1 & b+c?.png", "100%41 ü.png", os.fsdecode(b"\xff.png")])
def test_the_address_for_label_studio_names_the_file(demo, fake_model, read_results, name):
    stripes(f"in/{name}", "#ff0000")
    args = ["--input", "in", "--output", "out", *NAMES, "--only", "label_studio"]
    assert demo.main(args) == 0
    (record,) = read_results("out")
    (task,) = json.loads(Path("out", record["label_studio"]).read_text())
    address = urlsplit(task["data"]["image"])
    assert address.path == "/data/local-files/"
    assert parse_qs(address.query, errors="surrogateescape") == {"d": [f"{os.getcwd()}/in/{name}"]}


def test_the_image_of_labelme_if_the_output_is_a_link(demo, fake_model, read_results):
    stripes("in/a.png", "#ff0000")
    os.makedirs("disk/results")
    os.symlink("disk/results", "out")
    args = ["--input", "in", "--output", "out", *NAMES, "--only", "labelme"]
    assert demo.main(args) == 0
    labelme = Path("out", read_results("out")[0]["labelme"])
    assert (labelme.parent / json.loads(labelme.read_text())["imagePath"]).samefile("in/a.png")


def test_a_run_with_coco_is_resumed(demo, fake_model, read_results, capsys):
    args = ["--input", "in", "--output", "out", *NAMES, "--format", "coco", "labels"]
    for i in range(4):
        stripes(f"in/{i}.png", "#ff0000", "#00ff00")
    fake_model.interrupt_at = 3
    assert demo.main(args) == 130
    finished = read_results("out")
    assert 0 < len(finished) < 4
    check_coco(finished)
    fake_model.interrupt_at = None
    os.unlink(Path("out", finished[0]["coco"]))  # a missing file is made again
    assert demo.main(args) == 0
    records = read_results("out")
    assert len(records) == 4 and fake_model.calls == 3 + 4 - len(finished) + 1
    check_coco(records)
    capsys.readouterr()
    assert demo.main(args) == 0
    assert "0/0" not in capsys.readouterr().err  # no progress bar without images
    Path("out", finished[0]["coco"]).write_text("{")
    assert f"{finished[0]['coco']} is damaged: delete it" in run_error(demo, args)
    # Other formats are other settings, and --overwrite removes all files of the run.
    assert "formats" in run_error(demo, args[:-3])
    assert demo.main([*args[:-3], "--overwrite"]) == 0
    names = {path.name for path in Path("out").iterdir()}
    assert not any("coco" in name for name in names) and "0_overlay.jpg" in names


def run_error(demo, args: list[str]) -> str:
    with pytest.raises(SystemExit) as error:
        demo.main(args)
    return str(error.value)


def test_a_users_coco_file_is_not_replaced(demo, fake_model):
    stripes("in/a.png", "#ff0000")
    Path("out").mkdir()
    Path("out/coco.json").write_text("mine")
    args = ["--input", "in", "--output", "out", *NAMES, "--only", "coco"]
    assert "coco.json exists" in run_error(demo, args)
    assert Path("out/coco.json").read_text() == "mine"


def test_labels_alone_draw_nothing(demo, fake_model, monkeypatch, files_in):
    def draw(*args, **options):
        raise AssertionError("it draws")

    monkeypatch.setattr(prediction, "draw_overlay", draw)
    monkeypatch.setattr(prediction.Prediction, "confidence", property(draw))
    stripes("in/a.png", "#ff0000")
    args = ["--input", "in", "--output", "out", *NAMES, "--only", "labels"]
    assert demo.main(args) == 0
    assert files_in("out") == {"a_labels.png", "results.jsonl"}
    assert demo.main(args) == 0  # resumed


def test_unknown_pixels(demo, fake_model, read_results, capsys):
    stripes("in/a.png", "#ff0000", "#808080")  # grey: all categories are equally likely
    args = ["--input", "in", "--output", "out", *NAMES]
    assert demo.main([*args, "--unknown-below", "0.5"]) == 0
    (record,) = read_results("out")
    assert set(np.unique(labels_of(record))) == {0, 255}
    unknown = next(c for c in record["categories"] if c["name"] == "unknown")
    assert unknown["id"] == 255 and unknown["score"] is None
    assert "unknown_below was 0.5" in run_error(demo, args)
    assert "from 0 to 1" in run_error(demo, [*args, "--unknown-below", "40"])
    settings = json.loads(Path("out/run.json").read_text())
    assert settings["temperature"] == 1.0 and "TEST.UNKNOWN_BELOW" not in settings["config"]


def test_negative_names(demo, fake_model, read_results):
    stripes("in/a.png", "#ff0000", "#0000ff")
    args = ["--input", "in", "--output", "out", "--vocabulary", "red; green; !blue"]
    assert demo.main(args) == 0
    (record,) = read_results("out")
    assert set(np.unique(labels_of(record))) == {0, 255}
