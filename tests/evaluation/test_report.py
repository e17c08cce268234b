"""The table, what it says of conventions and of data sets that are missing, and its files."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from dcp_clip.evaluation import EvaluationReport, environment
from dcp_clip.evaluation.environment import source_commit, weights_fingerprint


def results(present=3, seen=4, total=5, **sem_seg):
    scores = {"mIoU": 20.0, "fwIoU": 30.5, "pACC": 40.25, "IoU-a|b": math.nan, **sem_seg}
    counts = {"present": present, "seen": seen, "all": total, "mIoU_seen": 15.0, "mIoU_all": 12.0}
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


def test_conventions_are_named_where_classes_are_absent():
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


def test_boundary_iou_has_a_column_where_it_was_computed():
    report = EvaluationReport(["a", "b"], {})
    report.add("a", results())
    assert "boundary IoU" not in report.to_markdown()
    report.add("b", results(mBoundaryIoU=11.0))
    table = rows(report.to_markdown())
    column = table["data set"].index("boundary IoU")
    assert (table["a"][column], table["b"][column]) == ("–", "11.00")


def test_what_is_missing_is_said():
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


def test_environment_of_a_model(make_cfg, make_model):
    cfg = make_cfg("test-vit-16")
    found = environment.evaluation_environment(cfg, make_model("test-vit-16"))
    assert found["torch"] == torch.__version__.split("+")[0]
    assert found["CLIP"] == "test-vit-16, weights: none"
    assert found["device"] == "cpu, processes: 1"
    assert found["detectron2's own mIoU is over the"] == "classes present in the ground truth"
    assert {"detectron2", "Pillow", "numpy", "open_clip_torch", "CPU", "GPU"} <= set(found)
    assert all(isinstance(value, str) and value for value in found.values())


def test_fingerprint_is_that_of_the_weights():
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
        (tmp_path / folder).mkdir()  # no repository that git could read
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert source_commit() == ("commit unknown" if folder else "not in git")
