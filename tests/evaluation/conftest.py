"""Data sets made of label maps, and model outputs with a known prediction."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.structures import SemSegProposals


@pytest.fixture
def register(tmp_path):
    """``register(name, label maps, C)``: registers a data set for one test, returns its records."""
    names = []

    def make(name, labels, num_classes, *, suffix=".png", ignore=255, **metadata):
        folder, records = tmp_path / name, []
        folder.mkdir()
        for i, label in enumerate(labels):
            path = folder / f"{i}{suffix}"
            kind = np.uint8 if suffix == ".png" else np.uint16
            Image.fromarray(np.asarray(label, kind)).save(path)
            records.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(name, lambda: records)
        metadata = {"evaluator_type": "sem_seg", **metadata}
        classes = [f"class{i}" for i in range(num_classes)]
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=ignore, **metadata)
        names.append(name)
        return records

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.fixture(scope="session")
def predict():
    """``predict(label map, C)``: the model's output whose argmax is that map."""

    def make(label, num_classes):
        ids = torch.as_tensor(np.unique(label).astype(np.int64)).flip(0)
        logits = (torch.as_tensor(np.asarray(label))[None] == ids[:, None, None]).float()
        return {"sem_seg": SemSegProposals(logits, ids, num_classes)}

    return make


@pytest.fixture(scope="session")
def evaluate(predict):
    """``evaluate(evaluator, records, predicted label maps, C)``: the results of the evaluator."""

    def run(evaluator, records, predictions, num_classes):
        evaluator.reset()
        for record, prediction in zip(records, predictions, strict=True):
            evaluator.process([record], [predict(prediction, num_classes)])
        return evaluator.evaluate()

    return run
