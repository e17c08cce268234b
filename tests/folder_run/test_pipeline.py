"""The settings that results depend on; tests/demo/ runs the whole pipeline."""

import json
import os
from pathlib import Path

import pytest

from dcp_clip.folder_run.pipeline import run_settings
from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def settings(make_cfg, make_model):
    """``settings(opts, vocabulary, seed, images)``: the settings of a run with a small model."""
    model = make_model()

    def get(opts=None, vocabulary="sky; tree", seed=0, images=("a.jpg",), **options):
        used = make_model(seed=seed) if seed else model
        predictor = Predictor(make_cfg(opts=opts), vocabulary, model=used, **options)
        return run_settings(predictor, map(Path, images), "1.0")

    return get


def test_equal_runs_have_equal_settings(settings, tmp_path):
    base = settings()
    assert json.loads(json.dumps(base)) == base == settings()
    assert base["vocabulary"] == ["sky", "tree"]
    # These change nothing in the results.
    opts = {"OUTPUT_DIR": "x", "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": str(tmp_path)}
    assert settings(opts | {"MODEL.WEIGHTS": "same content.pth"}) == base


@pytest.mark.parametrize(
    "change, key",
    [
        ({"opts": {"INPUT.MIN_SIZE_TEST": 32}}, "config"),
        ({"opts": {"MODEL.DEVICE": "cuda"}}, "config"),
        ({"seed": 1}, "weights fingerprint"),
        ({"vocabulary": "tree; sky"}, "vocabulary"),
        ({"vocabulary": "sky; tree, bush"}, "vocabulary fingerprint"),
        ({"vocabulary": Vocabulary(["sky", "tree"], colors=[(1, 2, 3)] * 2)}, "vocabulary finger"),
        ({"vocabulary": Vocabulary(["sky", "tree"], display_names=["a", "b"])}, "vocabulary"),
        ({"max_input_pixels": 1000}, "max_input_pixels"),
        ({"images": ["/absolute.jpg"]}, "working folder"),
    ],
)
def test_what_changes_the_results_changes_the_settings(settings, change, key):
    base, other = settings(), settings(**change)
    different = [name for name in base if base[name] != other[name]]
    assert any(name.startswith(key) for name in different)


def test_relative_images_belong_to_the_working_folder(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings()["working folder"] == os.getcwd()
    assert settings(images=["/x/a.jpg"])["working folder"] is None
