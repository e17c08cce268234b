"""Mean IoU against a hand-made example and scikit-learn's confusion matrix."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.evaluation import MeanIoUEvaluator
from dcp_clip.structures import SemSegProposals

NAME = "test_mean_iou_sem_seg"


@pytest.fixture
def dataset(tmp_path):
    """``dataset(labels, classes)``: register label maps; the records."""

    def register(labels, num_classes):
        records = []
        for i, label in enumerate(labels):
            path = tmp_path / f"{i}.png"
            Image.fromarray(np.asarray(label, np.uint8)).save(path)
            records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(NAME, lambda: records)
        classes = [f"class{i}" for i in range(num_classes)]
        MetadataCatalog.get(NAME).set(stuff_classes=classes, ignore_label=255)
        return records

    yield register
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def predict(label, num_classes):
    """The model's output whose argmax is `label`."""
    ids = torch.arange(num_classes).flip(0)
    logits = (torch.as_tensor(label)[None] == ids[:, None, None]).float()
    return {"sem_seg": SemSegProposals(logits, ids, num_classes)}


def evaluate(records, predictions, **options):
    evaluator = MeanIoUEvaluator(NAME, distributed=False, **options)
    evaluator.reset()
    for record, prediction in zip(records, predictions, strict=True):
        evaluator.process([record], [prediction])
    return evaluator.evaluate()["sem_seg"]


def test_by_hand(dataset):
    records = dataset([[[0, 0, 1, 1]], [[1, 255, 255, 1]]], 3)
    predictions = [predict(np.array([[0, 1, 1, 1]]), 3), predict(np.array([[1, 0, 2, 0]]), 3)]
    result = evaluate(records, predictions)
    # class0: 1 of {2 true + 1 false}; class1: 3 of {4 true + 1 false}; class2: only under void.
    assert result["IoU-class0"] == pytest.approx(100 * 1 / 3)
    assert result["IoU-class1"] == pytest.approx(100 * 3 / 5)
    assert np.isnan(result["IoU-class2"])
    assert result["mIoU"] == pytest.approx(100 * (1 / 3 + 3 / 5) / 2)
    assert result["pACC"] == pytest.approx(100 * 4 / 6)
    assert result["mACC"] == pytest.approx(100 * (1 / 2 + 3 / 4) / 2)


def test_against_scikit_learn(dataset):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (4, 20, 30))
    guesses = np.where(rng.random(labels.shape) < 0.6, labels, rng.integers(0, 5, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    result = evaluate(dataset(labels, 5), [predict(g, 5) for g in guesses])
    known = labels != 255
    matrix = metrics.confusion_matrix(labels[known], guesses[known])
    iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
    assert result["mIoU"] == pytest.approx(100 * iou.mean())
    for i in range(5):
        assert result[f"IoU-class{i}"] == pytest.approx(100 * iou[i])
    jaccard = metrics.jaccard_score(labels[known], guesses[known], average="macro")
    assert result["mIoU"] == pytest.approx(100 * jaccard)


def test_boundary_iou_on_request_only(dataset):
    records = dataset([np.eye(8)], 2)
    predictions = [predict(np.eye(8, dtype=int), 2)]
    assert not [key for key in evaluate(records, predictions) if "Boundary" in key]
    assert "BoundaryIoU-class0" in evaluate(records, predictions, boundary_iou=True)


def test_predictions_are_written(dataset, tmp_path):
    records = dataset([[[0, 1]]], 2)
    evaluate(records, [predict(np.array([[0, 1]]), 2)], output_dir=str(tmp_path / "out"))
    assert (tmp_path / "out" / "sem_seg_predictions.json").is_file()
