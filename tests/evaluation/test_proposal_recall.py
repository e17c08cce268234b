"""Recall of the proposals, counted by hand."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.evaluation import ProposalRecallEvaluator

NAME = "test_proposal_recall_sem_seg"


@pytest.fixture
def records(tmp_path):
    """Three label maps with the categories {0, 3}, {1, 2, 4}, and only ignored pixels."""
    maps = [[[0, 0, 3, 255]], [[1, 2, 4, 4]], [[255, 255, 255, 255]]]
    records = []
    for i, label in enumerate(maps):
        Image.fromarray(np.array(label, np.uint8)).save(tmp_path / f"{i}.png")
        records.append({"file_name": f"{i}", "sem_seg_file_name": str(tmp_path / f"{i}.png")})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(stuff_classes=list("abcde"), ignore_label=255)
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def output(*ids):
    ids = torch.tensor(ids)
    return {"proposals": {"ids": ids, "scores": ids / 10}}


def test_by_hand(records):
    evaluator = ProposalRecallEvaluator(NAME)
    evaluator.reset()
    evaluator.process(records[:1], [output(3, 1)])  # 1 of 2
    evaluator.process(records[1:], [output(1, 2, 0), output(4)])  # 2 of 3; no labels
    result = evaluator.evaluate()["proposals"]
    assert result["recall"] == pytest.approx(100 * 3 / 5)
    assert result["per_image"] == pytest.approx(6 / 3)


def test_reset_forgets(records):
    evaluator = ProposalRecallEvaluator(NAME)
    evaluator.process(records[:1], [output(1)])
    evaluator.reset()
    evaluator.process(records[:1], [output(0, 3)])
    assert evaluator.evaluate()["proposals"] == {"recall": 100, "per_image": 2}


def test_recall_without_labels_is_nan(records):
    evaluator = ProposalRecallEvaluator(NAME)
    assert evaluator.evaluate()["proposals"] == pytest.approx(
        {"recall": float("nan"), "per_image": 0}, nan_ok=True
    )
    evaluator.process(records[2:], [output(0)])
    assert math.isnan(evaluator.evaluate()["proposals"]["recall"])


def test_background_is_not_a_category_to_propose(records):
    MetadataCatalog.get(NAME).set(num_foreground=3)
    evaluator = ProposalRecallEvaluator(NAME)
    evaluator.process(records[:2], [output(3), output(1, 4)])
    assert evaluator.evaluate()["proposals"]["recall"] == pytest.approx(100 * 1 / 3)


def test_missing_output_is_an_error(records):
    with pytest.raises(ValueError):
        ProposalRecallEvaluator(NAME).process(records, [output(0)])
