"""The report of an evaluation: table, conventions, missing data sets, environment and files."""

import functools
import json
import math
from operator import getitem

import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from dcp_clip.config import get_cfg
from dcp_clip.evaluation import EvaluationReport, environment
from dcp_clip.evaluation.environment import source_commit, weights_fingerprint
from dcp_clip.modeling.head_segmentor import HeadSegmentor
from dcp_clip.utils.model_settings import model_settings


def results(present=3, seen=4, total=5, **sem_seg):
    scores = {"mIoU": 20.0, "fwIoU": 30.5, "pACC": 40.25, "IoU-a|b": math.nan, **sem_seg}
    counts = {
        "present": present,
        "present_or_predicted": seen,
        "all": total,
        "mIoU_present_or_predicted": 15.0,
        "mIoU_all": 12.0,
    }
    speed = {"images": 5104, "images_per_second": 2.5, "model_images_per_second": np.float64(3)}
    proposals = {"recall": 91.0, "per_image": 32.0}
    return {"sem_seg": scores, "classes": counts, "proposals": proposals, "speed": speed}


def rows(markdown):
    """First cell of each table line to the others."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_table():
    report = EvaluationReport(["a", "b"], {"torch": "2.14.1", "CPU": "x | y"})
    report.add("a", results())
    report.add("b", results(5, 5, 5, mIoU=math.nan))
    table = rows(report.to_markdown())
    headings = ["classes present", "mIoU", "fwIoU", "pixel accuracy", "recall at K", "K"]
    headings += ["images", "images/s", "images/s, model only"]
    assert table["data set"] == headings
    assert table["a"] == ["3/5", "20.00", "30.50", "40.25", "91.00", "32", "5,104", "2.5", "3"]
    assert table["b"][:2] == ["5/5", "–"]
    assert table["torch"] == ["2.14.1"]
    assert "Not evaluated" not in report.to_markdown()


def test_conventions_are_listed_if_classes_are_missing():
    report = EvaluationReport(["a", "b"], {})
    report.add("a", results())
    report.add("b", results(5, 5, 5))
    markdown = report.to_markdown()
    table = rows(markdown)
    assert "**a: 3/5 classes present.**" in markdown and "**b:" not in markdown
    assert table["IoU sum over the 3 classes present in the ground truth"][-1] == "20.00"
    assert table["IoU sum over the 4 classes present or predicted"][-1] == "15.00"
    assert "v0.6" in table["IoU sum over the 4 classes present or predicted"][0]
    assert table["IoU sum over the 5 classes of the whole list"][-1] == "12.00"


def test_columns_of_groups():
    report = EvaluationReport(["a", "b"], {})
    report.add("a", results())
    assert "things" not in report.to_markdown()
    told = results(mIoU_things=31.0, mIoU_stuff=math.nan, mIoU_base=40.0, mIoU_unseen=22.0)
    told["proposals"]["recall_things"] = 70.5
    report.add("b", told)
    table = rows(report.to_markdown())
    headings = ["mIoU things", "mIoU stuff", "recall things", "mIoU base", "mIoU unseen"]
    columns = [table["data set"].index(heading) for heading in headings]
    assert [table["a"][i] for i in columns] == ["–"] * 5
    assert [table["b"][i] for i in columns] == ["31.00", "–", "70.50", "40.00", "22.00"]
    assert "The mIoU and recall of things, of stuff, and of base" in report.to_markdown()


def test_missing_data_sets_are_listed():
    report = EvaluationReport(["a", "b", "c"], {})
    report.add("b", results())
    assert "Not evaluated (yet): a, c." in report.to_markdown()


def test_results_of_other_evaluators():
    report = EvaluationReport(["a"], {})
    report.add("a", {"speed": {"images": 3}})
    assert rows(report.to_markdown())["a"] == ["–", "3"]


def test_files(tmp_path):
    report = EvaluationReport(["a"], {"torch": "2"})
    report.add("a", results())
    report.write(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert (folder / "results.md").read_text() == report.to_markdown()
    content = json.loads((folder / "results.json").read_text())
    assert content["datasets"] == ["a"] and content["environment"] == {"torch": "2"}
    assert content["results"]["a"]["sem_seg"]["mIoU"] == 20
    assert content["results"]["a"]["sem_seg"]["IoU-a|b"] is None  # JSON has no NaN
    assert sorted(p.name for p in folder.iterdir()) == ["results.json", "results.md"]


@pytest.fixture(scope="module")
def small_model(make_model):
    return make_model("test-vit-16")


def test_environment_of_a_model(make_cfg, small_model):
    cfg = make_cfg("test-vit-16")
    found = environment.evaluation_environment(cfg, small_model)
    assert found["torch"] == torch.__version__
    assert found["CLIP"] == "test-vit-16, weights: none"
    assert found["device"] == "cpu, processes: 1"
    assert {"detectron2", "Pillow", "numpy", "open_clip", "CPU", "GPU"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


@pytest.mark.parametrize(
    ("key", "value", "row"),
    [
        ("MODEL.CLIP.DENSE", "naclip", "dense features"),
        ("MODEL.CLIP.DENSE_RESIDUAL", True, "dense features"),
        ("MODEL.CLIP.NACLIP_STD", 3.0, "dense features"),
        ("MODEL.CLIP.ENCODER_WINDOW", 64, "dense features"),
        ("MODEL.CLIP.ENCODER_WINDOW_STRIDE", 48, "dense features"),
        ("MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE", 512, "input"),
        ("MODEL.DCP_CLIP.BF16", True, "precision"),
        ("MODEL.DCP_CLIP.VOCABULARY.TEMPLATES", "vild14", "prompts"),
        ("MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING", "max", "prompts"),
        ("MODEL.DCP_CLIP.SIMILARITY_SCALE", 40.0, "all stages"),
        ("MODEL.DCP_CLIP.PROPOSAL.NAME", "PooledProposal", "stages"),
        ("MODEL.DCP_CLIP.TEXT_GUIDANCE.NAME", "StaticGuidance", "stages"),
        ("MODEL.DCP_CLIP.COARSE_DECODER.NAME", "CosineDecoder", "stages"),
        ("MODEL.DCP_CLIP.FINE_DECODER.NAME", "BilateralDecoder", "stages"),
        ("MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME", "NoRefinement", "stages"),
        ("MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS", 7, "proposals"),
        ("MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS", 5, "coarse decoder"),
        ("MODEL.DCP_CLIP.FINE_DECODER.GUIDE_REACH", 1.5, "fine decoder"),
        ("MODEL.DCP_CLIP.CLASS_REFINEMENT.WEIGHT", 0.5, "class refinement"),
        ("MODEL.CLIP.POSITION_OFFSET", 0.1, "other settings"),
        ("MODEL.CLIP.PROXY.NAME", "test_vit", "other settings"),
        ("INPUT.RESIZE_TEST", "opencv", "other settings"),
    ],
)
def test_environment_contains_every_setting(make_cfg, small_model, key, value, row):
    before = environment.evaluation_environment(make_cfg("test-vit-16"), small_model)
    changed = make_cfg("test-vit-16", {key: value})
    after = environment.evaluation_environment(changed, small_model)
    assert {name for name in after if before.get(name) != after[name]} == {row}
    assert str(value) in after[row] or row == "precision"


def test_environment_contains_test_time_augmentation(make_cfg, small_model):
    changed = make_cfg("test-vit-16", {"TEST.AUG.ENABLED": True, "TEST.AUG.SCALES": (0.7,)})
    found = environment.evaluation_environment(changed, small_model)
    assert found["test-time augmentation"] == "FLIP True, SCALES (0.7,)"
    default = environment.evaluation_environment(make_cfg("test-vit-16"), small_model)
    assert "test-time augmentation" not in default


# An evaluation does not depend on them, or only together with another key.
WITHOUT_EFFECT = {
    "MODEL.CLIP.TRAIN_IMAGE",
    "MODEL.CLIP.TRAIN_TEXT",
    "MODEL.DCP_CLIP.CHANNELS_LAST",
    "MODEL.DCP_CLIP.SLIDING_WINDOW.STRIDE",
    "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR",
    *(key for key in model_settings(get_cfg()) if key.startswith("MODEL.DCP_CLIP.LOSS.")),
}


@pytest.mark.parametrize("key", model_settings(get_cfg()))
def test_environment_contains_every_key_of_a_model(make_cfg, small_model, key):
    readers = {"BASELINES": "FPNSegmentor", "TRAINING_FREE": "SimilaritySegmentor"}
    opts = {"MODEL.META_ARCHITECTURE": readers.get(key.split(".")[1], "DCPCLIP")}
    cfg, changed = make_cfg("test-vit-16", opts), make_cfg("test-vit-16", opts)
    *nodes, last = key.split(".")
    node = functools.reduce(getitem, nodes, changed)
    value = node[last]
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    text = "SimilaritySegmentor" if last == "META_ARCHITECTURE" else "x"
    node[last] = value + 1 if numeric else {bool: not value, tuple: ("x",)}.get(type(value), text)
    before = environment.evaluation_environment(cfg, small_model)
    after = environment.evaluation_environment(changed, small_model)
    assert (before == after) == (key in WITHOUT_EFFECT)


def test_environment_of_a_model_without_stages(make_cfg):
    opts = {"MODEL.META_ARCHITECTURE": "FPNSegmentor", "MODEL.BASELINES.DIM": 32}
    found = environment.evaluation_environment(make_cfg(opts=opts), nn.Linear(1, 1))
    assert "input" in found and not {"stages", "proposals", "prompts"} & set(found)
    assert "MODEL.BASELINES.DIM 32" in found["other settings"]
    assert "MODEL.BASELINES.MASK_QUERIES.NUM_QUERIES 24" in found["other settings"]


@pytest.mark.parametrize("base", ["HeadSegmentor", "MaskQuerySegmentor"])
def test_environment_of_a_model_of_ones_own(make_cfg, monkeypatch, base):
    """It has the keys of the baselines if it inherits from one."""
    parent = HeadSegmentor if base == "HeadSegmentor" else META_ARCH_REGISTRY.get(base)
    own = type("OwnSegmentor", (parent,), {"__module__": "my_heads"})
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "OwnSegmentor", own)
    cfg = make_cfg(opts={"MODEL.META_ARCHITECTURE": "OwnSegmentor"})
    found = environment.evaluation_environment(cfg, nn.Linear(1, 1))["other settings"]
    assert ("MODEL.BASELINES." in found) == (base == "MaskQuerySegmentor")


def test_fingerprint_depends_on_the_weights_only():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = weights_fingerprint(model)
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert weights_fingerprint(other) != before
    other.load_state_dict(model.state_dict())
    assert weights_fingerprint(other) == before
    other[1].num_batches_tracked += 1
    assert weights_fingerprint(other) != before
    assert weights_fingerprint(model.to(torch.bfloat16)) != before


@pytest.mark.parametrize("folder", [None, ".git"])
def test_commit_where_there_is_none(tmp_path, monkeypatch, folder):
    if folder:
        (tmp_path / folder).mkdir()  # not a repository that git can read
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert source_commit() == ("commit unknown" if folder else "not in git")
