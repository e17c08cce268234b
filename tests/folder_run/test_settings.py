"""Messages about the settings of two runs."""

from pathlib import Path

import pytest

from dcp_clip.folder_run.onnx_predictor import RunOnnxPredictor
from dcp_clip.folder_run.settings import describe_difference
from dcp_clip.runtime.folder import ModelFolder


@pytest.mark.parametrize("before, now", [("/home/me", None), (None, "/home/me")])
def test_relative_and_absolute_paths_have_a_sentence(before, now):
    text = describe_difference({"working folder": before}, {"working folder": now})
    assert text == "one run has relative paths of images, and the other absolute paths"


def test_equal_settings_have_no_difference():
    assert describe_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert describe_difference({"working folder": None}, {"working folder": None}) == ""
    assert describe_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "b was 1 and is 2"
    folders = describe_difference({"working folder": "/a"}, {"working folder": "/b"})
    assert folders == "working folder was /a and is /b"


NAMES = [f"category {i}" for i in range(9)]


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (NAMES, [*NAMES, "sky"], "now has 'sky'"),
        (
            NAMES,
            [*NAMES[3:], "x" * 50],
            f"now has '{'x' * 39}…' and lacks 'category 0', 'category 1' and 1 more",
        ),
        (NAMES, NAMES[::-1], "now has another order"),
        (["a"], ["b"], "was ['a'] and is ['b']"),
        ("x" * 50, "y", f"was {'x' * 39}… and is y"),
        ("x" * 50, "x" * 51, "differs"),
        (None, NAMES, "was None and is ['category 0', 'category 1', "),
    ],
)
def test_long_values_are_shortened(before, now, text):
    difference = describe_difference({"vocabulary": before}, {"vocabulary": now})
    assert difference.startswith(f"vocabulary {text}") and len(difference) < 150


def test_the_default_formats_have_names():
    formats = ["coco", "confidence", "labels", "overlay"]
    text = "formats now has 'coco', 'confidence'"
    assert describe_difference({}, {"formats": formats}) == text
    assert describe_difference({"formats": formats}, {}) == text.replace("has", "lacks")


def test_backends_do_not_mix_their_results():
    found = {}
    for backend in ("onnxruntime", "openvino"):
        predictor = RunOnnxPredictor.__new__(RunOnnxPredictor)
        predictor.folder, predictor.backend = ModelFolder(Path(), {"format": 2}, None), backend
        found[backend] = {"config": predictor.cfg}
    text = "backend was onnxruntime and is openvino"
    assert describe_difference(found["onnxruntime"], found["openvino"]) == text
    # A run of an earlier version, which did not record the backend.
    assert describe_difference({"config": {"format": 2}}, found["onnxruntime"]) == ""
