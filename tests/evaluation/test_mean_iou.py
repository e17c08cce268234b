"""Mean IoU of label maps on disk, compared with counting by hand, scikit-learn and Detectron2."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from sklearn.metrics import jaccard_score

from dcp_clip.data.pairing import DatasetError
from dcp_clip.evaluation import (
    BackgroundMeanIoUEvaluator,
    CalibrationEvaluator,
    MeanIoUEvaluator,
    ProposalRecallEvaluator,
)

NAME = "test_mean_iou_sem_seg"


def test_by_hand(register, evaluate):
    records = register(NAME, [[[0, 0, 1, 1]], [[1, 255, 255, 1]]], 3)
    predictions = [[[0, 1, 1, 1]], [[1, 0, 2, 0]]]
    results = evaluate(MeanIoUEvaluator(NAME), records, predictions, 3)
    result = results["sem_seg"]
    # class0: 1 of {2 true + 1 false}; class1: 3 of {4 true + 1 false}; class2: only where ignored.
    assert result["IoU-class0"] == pytest.approx(100 * 1 / 3)
    assert result["IoU-class1"] == pytest.approx(100 * 3 / 5)
    assert np.isnan(result["IoU-class2"])
    assert result["mIoU"] == pytest.approx(100 * (1 / 3 + 3 / 5) / 2)
    assert result["pACC"] == pytest.approx(100 * 4 / 6)
    assert result["mACC"] == pytest.approx(100 * (1 / 2 + 3 / 4) / 2)
    assert result["fwIoU"] == pytest.approx(100 * (1 / 3 * 2 / 6 + 3 / 5 * 4 / 6))
    assert results["classes"]["present"] == results["classes"]["present_or_predicted"] == 2


def test_registration_without_labels_or_without_their_ignored_value(register):
    """Detectron2's own functions to register a data set ask for neither."""
    records = register(NAME, [[[0]]], 2)
    metadata = MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).set(stuff_classes=["a", "b"])
    for kind in (MeanIoUEvaluator, ProposalRecallEvaluator, CalibrationEvaluator):
        with pytest.raises(ValueError, match=f"'{NAME}' has no ignore_label: set it to"):
            kind(NAME)
    MetadataCatalog.get(NAME).set(ignore_label=metadata.ignore_label)
    del records[0]["sem_seg_file_name"]
    with pytest.raises(ValueError, match=f"'{NAME}' has images without label maps"):
        MeanIoUEvaluator(NAME)


@pytest.mark.parametrize(("suffix", "ignore", "c"), [(".png", 255, 6), (".tif", 65535, 700)])
def test_files_against_scikit_learn(register, evaluate, suffix, ignore, c):
    """8-bit and 16-bit label maps. The last two categories are not present; one is predicted."""
    rng = np.random.default_rng(0)
    used = np.array([0, 1, c - 4, c - 3])
    labels = rng.choice(used, (4, 20, 30))
    guesses = np.where(rng.random(labels.shape) < 0.6, labels, rng.choice(used, labels.shape))
    guesses[:, :2] = c - 2
    labels[rng.random(labels.shape) < 0.1] = ignore
    records = register(NAME, labels, c, suffix=suffix, ignore=ignore)
    results = evaluate(MeanIoUEvaluator(NAME), records, guesses, c)
    known = labels != ignore
    true, guessed = labels[known], guesses[known]
    per_class = jaccard_score(true, guessed, labels=used, average=None)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * per_class.mean())
    for i, value in zip(used, per_class, strict=True):
        assert results["sem_seg"][f"IoU-class{i}"] == pytest.approx(100 * value)
    weighted = jaccard_score(true, guessed, average="weighted")
    assert results["sem_seg"]["fwIoU"] == pytest.approx(100 * weighted)
    assert results["classes"] == pytest.approx(
        {
            "present": 4,
            "present_or_predicted": 5,
            "all": c,
            "mIoU_present_or_predicted": 100 * per_class.sum() / 5,
            "mIoU_all": 100 * per_class.sum() / c,
        }
    )


def test_equals_detectron2_where_every_category_is_present(register, evaluate):
    rng = np.random.default_rng(1)
    labels, guesses = rng.integers(0, 4, (2, 3, 10, 10))
    labels[:, 0] = 255
    records = register(NAME, labels, 4)
    ours = evaluate(MeanIoUEvaluator(NAME), records, guesses, 4)["sem_seg"]
    theirs = evaluate(SemSegEvaluator(NAME), records, guesses, 4)["sem_seg"]
    assert set(ours) == {key for key in theirs if "oundary" not in key and "min(" not in key}
    assert ours == {key: theirs[key] for key in ours}


@pytest.fixture
def v06(monkeypatch):
    """Give Detectron2 the mIoU formula of v0.6; it logs and writes the result as usual."""
    upstream = SemSegEvaluator.evaluate

    def evaluate(self):
        results = upstream(self)
        known = self._conf_matrix[:-1, :-1]
        seen = ((known.sum(0) + known.sum(1)) > 0).sum()
        present = (known.sum(0) > 0).sum()
        results["sem_seg"]["mIoU"] *= present / seen
        self._logger.info("upstream's mIoU is %s", results["sem_seg"]["mIoU"])
        if self._output_dir:
            torch.save(results["sem_seg"], Path(self._output_dir) / "sem_seg_evaluation.pth")
        return results

    monkeypatch.setattr(SemSegEvaluator, "evaluate", evaluate)


def test_does_not_depend_on_the_installed_detectron2(register, evaluate, v06):
    """mIoU is always the mean over the categories that are present."""
    records = register(NAME, [[[0, 0, 1, 1]]], 4)
    guesses = [[[0, 0, 1, 2]]]
    assert evaluate(SemSegEvaluator(NAME), records, guesses, 4)["sem_seg"]["mIoU"] == 50
    results = evaluate(MeanIoUEvaluator(NAME), records, guesses, 4)
    assert results["sem_seg"]["mIoU"] == 75
    assert (
        results["classes"]["mIoU_present_or_predicted"] == 50
        and results["classes"]["mIoU_all"] == 37.5
    )


def test_one_figure_is_logged_and_written(register, evaluate, v06, tmp_path, caplog):
    caplog.set_level("INFO")
    records = register(NAME, [[[0, 0, 1, 1]]], 4)
    evaluator = MeanIoUEvaluator(NAME, output_dir=str(tmp_path / "out"))
    evaluate(evaluator, records, [[[0, 0, 1, 2]]], 4)
    text = caplog.text
    assert "float64" not in text
    assert "upstream's" not in text and len(re.findall(r"'mIoU': [^,]*75\.0", text)) == 1
    written = torch.load(tmp_path / "out" / "sem_seg_evaluation.pth")
    assert written["mIoU"] == 75
    evaluate(SemSegEvaluator(NAME), records, [[[0, 0, 1, 2]]], 4)
    assert "upstream's" in caplog.text  # the log is disabled only temporarily


def test_works_without_a_loader_in_detectron2(register, evaluate):
    """Early builds have no attribute sem_seg_loading_fn."""
    records = register(NAME, [[[0, 0, 1, 1]]], 2)
    evaluator = MeanIoUEvaluator(NAME)
    del evaluator.sem_seg_loading_fn
    assert evaluate(evaluator, records, [[[0, 0, 1, 1]]], 2)["sem_seg"]["mIoU"] == 100


def test_all_pixels_are_ignored(register, evaluate):
    records = register(NAME, [[[255, 255]]], 2)
    results = evaluate(MeanIoUEvaluator(NAME), records, [[[0, 1]]], 2)
    assert np.isnan(results["sem_seg"]["mIoU"]) and results["classes"]["present"] == 0
    assert np.isnan(results["sem_seg"]["fwIoU"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [1, 0], [0, 0]], r"0\.png has shape \(3, 2\).*0\.jpg has \(2, 3\)"),
        ([[0, 1, 1], [1, 7, 255]], r"0\.png contains the value 7, .*0 to 2 and ignores 255"),
    ],
)
def test_label_maps_that_do_not_fit(register, evaluate, labels, message):
    records = register(NAME, [labels], 3)
    with pytest.raises(ValueError, match=message):
        evaluate(MeanIoUEvaluator(NAME), records, [[[0, 1, 1], [1, 2, 0]]], 3)


def test_a_missing_output_is_an_error(register, predict):
    records = register(NAME, [[[0]], [[1]]], 2)
    evaluator = MeanIoUEvaluator(NAME)
    evaluator.reset()
    with pytest.raises(ValueError):
        evaluator.process(records, [predict([[0]], 2)])


def test_predictions_are_written_and_encoded_on_request_only(
    register, evaluate, tmp_path, monkeypatch
):
    records = register(NAME, [[[0, 1]]], 2)
    out = tmp_path / "out"
    evaluate(MeanIoUEvaluator(NAME, output_dir=str(out)), records, [[[0, 1]]], 2)
    written = json.loads((out / "sem_seg_predictions.json").read_text())
    assert [x["category_id"] for x in written] == [0, 1]

    def encode(*_):
        raise AssertionError("encoded")

    monkeypatch.setattr(MeanIoUEvaluator, "encode_json_sem_seg", encode)
    evaluate(MeanIoUEvaluator(NAME), records, [[[0, 1]]], 2)


def test_oracle_masks_are_assigned_per_image(register, evaluate):
    """In the first image most pixels of each category are right; in the second, 1 becomes 2."""
    records = register(NAME, [[[0, 0, 0, 1, 1, 255]], [[0, 0, 1, 1, 1, 1]]], 3)
    predictions = [[[0, 0, 1, 1, 1, 1]], [[0, 0, 0, 2, 2, 1]]]
    results = evaluate(MeanIoUEvaluator(NAME, oracle_masks=True), records, predictions, 3)
    result = results["sem_seg"]
    assert result["IoU-class0"] == 100
    assert result["IoU-class1"] == pytest.approx(100 * 2 / 6)
    assert results["classes"]["present_or_predicted"] == 3


def test_oracle_masks_cannot_be_saved_as_predictions(register):
    register(NAME, [[[0]]], 3)
    with pytest.raises(ValueError, match="TEST.ORACLE_MASKS .* TEST.SAVE_PREDICTIONS to False"):
        MeanIoUEvaluator(NAME, output_dir="predictions", oracle_masks=True)


def test_background(register, evaluate):
    """Three foreground categories in a vocabulary of five; label 3 is background."""
    labels = [[[0, 0, 1, 3, 3, 255]]]
    records = register(NAME, labels, 5, num_foreground=3)
    guesses = [[[0, 4, 1, 3, 4, 2]]]  # 3 and 4 both mean background
    results = evaluate(BackgroundMeanIoUEvaluator(NAME), records, guesses, 5)
    result = results["sem_seg"]
    assert result["IoU-class0"] == pytest.approx(100 * 1 / 2)
    assert result["IoU-class1"] == 100 and np.isnan(result["IoU-class2"])
    assert result["IoU-background"] == pytest.approx(100 * 2 / 3)
    assert "IoU-class3" not in result and "IoU-class4" not in result
    assert result["mIoU"] == pytest.approx(100 * (1 / 2 + 1 + 2 / 3) / 3)
    assert (results["classes"]["present"], results["classes"]["all"]) == (3, 4)


def test_background_is_one_label_only(register, evaluate):
    records = register(NAME, [[[0, 4]]], 5, num_foreground=3)
    with pytest.raises(ValueError, match="contains the value 4, .*0 to 3 and"):
        evaluate(BackgroundMeanIoUEvaluator(NAME), records, [[[0, 4]]], 5)


@pytest.mark.parametrize("foreground", [None, 0, 6, "3"])
def test_background_needs_to_know_the_foreground(register, foreground):
    metadata = {} if foreground is None else {"num_foreground": foreground}
    register(NAME, [[[0]]], 5, **metadata)
    with pytest.raises(ValueError, match=f"'{NAME}' needs num_foreground"):
        BackgroundMeanIoUEvaluator(NAME)


@pytest.mark.parametrize("evaluator", [MeanIoUEvaluator, ProposalRecallEvaluator])
def test_a_damaged_label_map_is_named(register, evaluate, evaluator):
    labels = np.random.default_rng(0).integers(0, 3, (1, 64, 64))
    records = register(NAME, labels, 3)
    path = Path(records[0]["sem_seg_file_name"])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=f"{path.name} cannot be read"):
        evaluate(evaluator(NAME), records, labels, 3)
