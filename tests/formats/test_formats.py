"""Round trips: every format gives the label map back."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from dcp_clip import formats
from dcp_clip.formats.label_studio import encode_brush
from dcp_clip.vocabulary import Vocabulary

NAMES = Vocabulary(["sky", "tree", "car, red", "road"])
UNKNOWN = 255


@st.composite
def label_maps(draw) -> np.ndarray:
    """Blocks of ids, with unknown pixels, holes and diagonal neighbours."""
    height, width, scale = (draw(st.integers(1, n)) for n in (9, 9, 4))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    ids = rng.choice([0, 1, 2, 3, UNKNOWN], (height, width)).astype(np.uint8)
    return np.ascontiguousarray(np.kron(ids, np.ones((scale, 1), np.uint8)))


@pytest.fixture(scope="module")
def disc():
    """A large label map: a disc of "tree" with a hole of "car", in "sky", and unknown pixels."""
    y, x = np.mgrid[:120, :160]
    distance = np.hypot(y - 60, x - 80)
    label_map = np.where(distance < 50, 1, 0)
    label_map[distance < 20] = 2
    label_map[100:, :30] = UNKNOWN
    return label_map.astype(np.uint8)


def without_unknown(label_map: np.ndarray) -> np.ndarray:
    return np.where(label_map == UNKNOWN, -1, label_map.astype(int))


def inside(rings: list, size: tuple[int, int]) -> np.ndarray:
    """The (H, W) pixels whose centre is inside an odd number of rings."""
    y, x = np.mgrid[: size[0], : size[1]]
    centres = np.column_stack([x.ravel() + 0.5, y.ravel() + 0.5])
    result = np.zeros(size[0] * size[1], bool)
    for ring in rings:
        result ^= odd_crossings(np.asarray(ring, float), centres)
    return result.reshape(size)


def odd_crossings(ring: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether a ray from each point to the right crosses the closed ring an odd number of times."""
    odd = np.zeros(len(points), bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0)):
        between = (y1 > points[:, 1]) != (y2 > points[:, 1])
        if between.any():
            odd[between] ^= points[between, 0] < x1 + (points[between, 1] - y1) / (y2 - y1) * (
                x2 - x1
            )
    return odd


def from_polygons(entries: list[dict], size: tuple[int, int]) -> np.ndarray:
    label_map = np.full(size, -1)
    for entry in entries:
        for polygon in entry["polygons"]:
            label_map[inside([polygon["exterior"], *polygon["holes"]], size)] = entry["id"]
    return label_map


@settings(max_examples=40)
@given(label_maps())
def test_exact_round_trips(label_map):
    size, expected = label_map.shape, without_unknown(label_map)
    decoded = np.full(size, -1)
    content = formats.to_coco(label_map, NAMES)
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        decoded[mask] = annotation["category_id"]
        assert annotation["area"] == mask.sum() and "score" not in annotation
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
    np.testing.assert_array_equal(decoded, expected)
    polygons = formats.to_polygons(label_map, NAMES, tolerance=0)
    np.testing.assert_array_equal(from_polygons(polygons, size), expected)
    decoded = np.full(size, -1)
    for shape in formats.to_labelme(label_map, NAMES, tolerance=0)["shapes"]:
        decoded[inside([shape["points"]], size)] = NAMES.display_names.index(shape["label"])
    np.testing.assert_array_equal(decoded, expected)
    decoded = np.full(size, -1)
    for result in formats.to_label_studio(label_map, NAMES)["predictions"][0]["result"]:
        rgba = decode_brush(result["value"]["rle"]).reshape(*size, 4)
        (name,) = result["value"]["brushlabels"]
        decoded[rgba[..., 3] > 0] = NAMES.index(name)
    np.testing.assert_array_equal(decoded, expected)
    decoded = np.full(size, -1)
    for entry in formats.to_huggingface(label_map, NAMES):
        assert entry["mask"].mode == "L" and entry["score"] is None
        decoded[np.asarray(entry["mask"]) == 255] = NAMES.index(entry["label"])
    np.testing.assert_array_equal(decoded, expected)
    fiftyone = formats.to_fiftyone(label_map, NAMES)
    np.testing.assert_array_equal(fiftyone["mask"].astype(int) - 1, expected)
    assert fiftyone["mask_targets"] == {1: "sky", 2: "tree", 3: "car, red", 4: "road"}


def decode_brush(data: list[int]) -> np.ndarray:
    """Decode Label Studio's brush as label_studio_sdk.converter.brush.decode_rle does."""
    bits, position = np.unpackbits(np.array(data, np.uint8)), 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int("".join(map(str, bits[position - count : position])), 2)

    total, value_bits = read(32), read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        count = read(length_bits[read(2)]) + 1
        values += (
            [read(value_bits)] * count if repeated else [read(value_bits) for _ in range(count)]
        )
    assert len(values) == total and len(bits) - position < 8
    return np.array(values, np.uint8)


def test_brushes_with_long_runs():
    mask = np.zeros((300, 400), bool)
    mask[250:] = True
    decoded = decode_brush(encode_brush(mask)).reshape(300, 400, 4)
    assert set(np.unique(decoded)) == {0, 255}
    np.testing.assert_array_equal(decoded[..., 0] == 255, mask)


def test_simplified_polygons_are_near_the_region(disc):
    exact = formats.to_polygons(disc, NAMES, tolerance=0)
    for tolerance in (1.0, 3.0):
        simple = formats.to_polygons(disc, NAMES, tolerance=tolerance)
        points = [sum(len(p["exterior"]) for p in e["polygons"]) for e in (exact[1], simple[1])]
        assert 3 <= points[1] < points[0] / 3
        (tree,) = simple[1]["polygons"]
        assert len(tree["holes"]) == 1
        wrong = from_polygons(simple, disc.shape) != without_unknown(disc)
        # The boundaries have about 580 pixels, and a pixel on each side of them may be wrong.
        assert wrong.sum() < 2 * 580 * tolerance
    with pytest.raises(ValueError, match="tolerance of polygons is -1"):
        formats.to_polygons(disc, NAMES, tolerance=-1)


def test_scores_are_the_mean_confidence(disc):
    confidence = np.where(disc == 1, 0.75, 0.5).astype(np.float16)
    for entries in (
        formats.to_coco(disc, NAMES, confidence)["annotations"],
        formats.to_polygons(disc, NAMES, confidence),
        formats.to_huggingface(disc, NAMES, confidence),
        formats.to_label_studio(disc, NAMES, confidence)["predictions"][0]["result"],
    ):
        assert [entry["score"] for entry in entries] == [0.5, 0.75, 0.5]
    shapes = formats.to_labelme(disc, NAMES, confidence)["shapes"]
    assert [shape["description"] for shape in shapes] == [f"confidence 0.{n}" for n in (50, 75, 50)]


def test_coco_reads_the_file(disc, tmp_path, capsys):
    content = formats.to_coco(disc, NAMES, file_name="a.jpg", image_id=7)
    (tmp_path / "a.json").write_text(json.dumps(content))
    coco = COCO(tmp_path / "a.json")
    assert coco.loadImgs([7])[0]["file_name"] == "a.jpg"
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(NAMES.display_names)
    (annotation,) = coco.loadAnns(coco.getAnnIds(imgIds=[7], catIds=[1]))
    np.testing.assert_array_equal(coco.annToMask(annotation), disc == 1)


def test_labelme_and_label_studio_describe_the_image(disc):
    content = json.loads(json.dumps(formats.to_labelme(disc, NAMES, image_path="../a.jpg")))
    assert content["imagePath"] == "../a.jpg" and content["imageData"] is None
    assert (content["imageHeight"], content["imageWidth"]) == (120, 160)
    task = json.loads(json.dumps(formats.to_label_studio(disc, NAMES, image="/data/a.jpg")))
    assert task["data"] == {"image": "/data/a.jpg"}
    result = task["predictions"][0]["result"][0]
    assert (result["original_width"], result["original_height"]) == (160, 120)


def test_unknown_pixels_alone():
    label_map = np.full((4, 5), UNKNOWN, np.uint8)
    assert formats.to_coco(label_map, NAMES)["annotations"] == []
    assert formats.to_polygons(label_map, NAMES) == []
    assert not formats.to_fiftyone(label_map, NAMES)["mask"].any()


@pytest.mark.parametrize("count", [254, 255, 256, 300])
def test_fiftyone_with_many_names(count):
    names = Vocabulary([f"name {i}" for i in range(count)])
    label_map = np.array([[0, count - 1, names.unknown_id]], np.min_scalar_type(names.unknown_id))
    mask = formats.to_fiftyone(label_map, names)["mask"]
    assert mask.tolist() == [[1, count, 0]]


def test_supervision(disc, monkeypatch):
    """Without the package, which needs another OpenCV, the arguments of its class are checked."""
    if importlib.util.find_spec("supervision") is None:
        fake = types.SimpleNamespace(Detections=lambda **values: types.SimpleNamespace(**values))
        monkeypatch.setitem(sys.modules, "supervision", fake)
    detections = formats.to_supervision(disc, NAMES, np.ones(disc.shape, np.float16))
    assert detections.class_id.tolist() == [0, 1, 2] and detections.confidence.tolist() == [1, 1, 1]
    assert detections.data["class_name"].tolist() == ["sky", "tree", "car, red"]
    np.testing.assert_array_equal(detections.mask[1], disc == 1)
    assert detections.xyxy[1].tolist() == [31, 11, 130, 110]
    nothing = formats.to_supervision(np.full((4, 5), UNKNOWN, np.uint8), NAMES)
    assert nothing.mask.shape == (0, 4, 5) and nothing.xyxy.shape == (0, 4)


def test_supervision_is_optional(disc, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        formats.to_supervision(disc, NAMES)
