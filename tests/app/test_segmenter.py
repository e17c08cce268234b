"""What the page does without Gradio: keep images, draw views, write files."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dcp_clip import model_zoo
from dcp_clip.app.downloads import FORMATS, write_file
from dcp_clip.app.models import Models
from dcp_clip.app.samples import find_samples, samples_html
from dcp_clip.app.segmenter import MAX_CHARACTERS, KeptImages, Request, Segmenter
from dcp_clip.app.view import describe_regions, make_view
from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import VocabularyError

STREETS, DRAWINGS = "Streets (CamVid)", "Drawings (EmojiScenes)"


@pytest.fixture(scope="module")
def segmenter(models):
    return Segmenter(models)


@pytest.fixture(scope="module")
def answer(segmenter, fox):
    """The kept image and its segmentation, with unknown pixels."""
    return segmenter(Request(str(fox), "fox; volcano; wallpaper; table; !thread", DRAWINGS, 0.6))


@pytest.fixture
def encoded(monkeypatch):
    """A list that grows by one entry for each image that is encoded."""
    calls, original = [], Predictor.set_image
    monkeypatch.setattr(
        Predictor, "set_image", lambda self, path: calls.append(path) or original(self, path)
    )
    return calls


def test_models(models):
    assert models.titles == [STREETS, DRAWINGS]
    assert models.title_of("emoji_scenes/dcp_clip_tiny.yaml") == DRAWINGS
    assert models.title_of("other.yaml") is None
    with pytest.raises(ValueError, match="There is no model 'x'; choose one of 'Streets"):
        models.get("x")


def test_own_model_comes_first():
    config = model_zoo.get_config_file("camvid/dcp_clip_tiny.yaml")
    models = Models.at_hand((config, None, ["INPUT.MIN_SIZE_TEST", "96"]))
    assert models.titles == ["dcp_clip_tiny", STREETS, DRAWINGS]
    assert models.get("dcp_clip_tiny").cfg.INPUT.MIN_SIZE_TEST == 96


def test_an_image_is_encoded_once(models, fox, tmp_path, encoded):
    segmenter = Segmenter(models)
    copy = tmp_path / "other.jpg"
    shutil.copy(fox, copy)
    predictions = [
        segmenter(Request(str(path), names, DRAWINGS))[1]
        for path, names in ((fox, "fox; dog"), (fox, "wall; cat"), (copy, "fox; dog"))
    ]
    assert len(encoded) == 1
    np.testing.assert_array_equal(predictions[0].label_map, predictions[2].label_map)
    expected = models.get(DRAWINGS)(fox, vocabulary="wall; cat").label_map
    np.testing.assert_array_equal(predictions[1].label_map, expected)
    segmenter(Request(str(fox), "fox; dog", STREETS))
    assert len(encoded) == 2 and len(segmenter.kept) == 2
    assert models.get(DRAWINGS).image is None


@pytest.mark.parametrize("limits", [{"max_images": 2}, {"max_bytes": 2_000_000}])
def test_kept_images_are_bounded(models, tmp_path, encoded, limits):
    kept = KeptImages(**limits)
    predictor = models.get(DRAWINGS)
    for i in range(6):
        Image.new("RGB", (300, 300), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        image = kept.get(DRAWINGS, str(tmp_path / f"{i}.png"), predictor)
        assert kept.get(DRAWINGS, str(tmp_path / f"{i}.png"), predictor) is image
    assert len(encoded) == 6 and 1 <= len(kept) <= 2


def test_names_are_never_files(segmenter, fox, tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("password")
    for names in (str(tmp_path / "secret.txt"), "secret.txt", "../secret"):
        with pytest.raises(VocabularyError, match="looks like a"):
            segmenter(Request(str(fox), names, DRAWINGS))
    (tmp_path / "table").mkdir()
    monkeypatch.chdir(tmp_path)
    assert segmenter(Request(str(fox), "table", DRAWINGS))[1].found[0].name == "table"
    for names in ("", " \n"):
        with pytest.raises(VocabularyError, match="Type one or more names"):
            segmenter(Request(str(fox), names, DRAWINGS))
    with pytest.raises(VocabularyError, match="write at most 1,000,000"):
        segmenter(Request(str(fox), "a" * (MAX_CHARACTERS + 1), DRAWINGS))


def test_errors_name_the_file_without_its_folder(segmenter, bad_files, tmp_path):
    for path in (*bad_files, tmp_path / "absent.png"):
        with pytest.raises(ValueError, match=path.name) as raised:
            segmenter(Request(str(path), "sky", DRAWINGS))
        assert str(path.parent) not in str(raised.value)


def test_view(answer):
    image, prediction = answer
    view = make_view(image, prediction)
    photo, coded = (
        np.array(Image.open(io.BytesIO(base64.b64decode(view[key].split(",")[1]))))
        for key in ("photo", "labels")
    )
    assert photo.shape == coded.shape == (512, 512, 3)
    coded = coded.astype(int)
    regions = view["regions"]
    ids = np.array([region["id"] for region in regions])
    np.testing.assert_array_equal(ids[coded[..., 0] + 256 * coded[..., 1]], prediction.label_map)
    np.testing.assert_allclose(coded[..., 2] / 100, prediction.confidence, atol=0.0051)
    assert view["names"] == 5
    assert sum(region["share"] for region in regions) == pytest.approx(1, abs=1e-3)
    (unknown,) = (region for region in regions if region["unknown"])
    assert unknown["id"] == 255 and unknown["name"] == "unknown"
    for region in describe_regions(prediction):
        mask = prediction.label_map == region["id"]
        assert region["share"] == pytest.approx(mask.mean(), abs=1e-5)
        mean = prediction.confidence[mask].mean(dtype=float)
        assert region["confidence"] == pytest.approx(mean, abs=1e-4)


def test_view_of_a_large_image_is_small(models, tmp_path):
    Image.new("RGB", (3000, 1500), "blue").save(tmp_path / "large.png")
    view = make_view(*Segmenter(models)(Request(str(tmp_path / "large.png"), "sky", DRAWINGS)))
    picture = Image.open(io.BytesIO(base64.b64decode(view["labels"].split(",")[1])))
    assert picture.width * picture.height <= 1_000_000
    assert picture.width == pytest.approx(2 * picture.height, abs=2)


def test_files(answer, tmp_path):
    image, prediction = answer
    paths = {kind: write_file(tmp_path, "a b.jpg", kind, image, prediction) for kind in FORMATS}
    assert [path.name for path in paths.values()] == [
        *("a b_labels.png", "a b_overlay.jpg", "a b_coco.json", "a b_polygons.json")
    ]
    labels = np.array(Image.open(paths["labels"]))
    np.testing.assert_array_equal(labels, prediction.label_map)
    assert Image.open(paths["overlay"]).width == 512
    coco = json.loads(paths["coco"].read_text(encoding="utf-8"))
    assert coco["images"][0]["file_name"] == "a b.jpg"
    for annotation in coco["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        np.testing.assert_array_equal(mask, labels == annotation["category_id"])
    names = {entry["name"] for entry in json.loads(paths["polygons"].read_text(encoding="utf-8"))}
    assert names == {c.name for c in prediction.found} - {"unknown"}
    with pytest.raises(ValueError, match="There is no format 'x'; choose one of labels"):
        write_file(tmp_path, "a.jpg", "x", image, prediction)


def test_samples():
    samples = find_samples()
    assert len(samples) >= 3 and all(sample.path.is_file() for sample in samples)
    page = samples_html(samples)
    assert page.count("<button") == len(samples) and "http" not in page
    assert "jack-o&#x27;-lantern" in page  # names are escaped
