"""Calibration and unknown detection of known answers."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from scipy.special import softmax

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.engine.checkpoints.calibration import (
    calibration_file,
    read_temperature,
    write_temperature,
)
from dcp_clip.engine.checkpoints.loading import WeightsError, load_weights
from dcp_clip.evaluation.calibration import (
    CalibrationEvaluator,
    PixelSamples,
    fit_temperature,
    label_confidence,
    reliability,
)
from dcp_clip.evaluation.unknown_detection import (
    detection_scores,
    removed_names,
    unknown_signals,
)
from dcp_clip.structures import SemSegProposals


def test_error_of_known_answers():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    error, bins = reliability(confidence, right, bins=10)
    assert error == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.05)
    np.testing.assert_allclose(bins, [(2 / 6, 0.55, 0.5), (4 / 6, 0.95, 0.75)])
    assert reliability(np.ones(3), np.ones(3, bool))[0] == 0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_sharpened_logits_is_found(temperature):
    """Labels drawn from the softmax of the logits; the model's logits are `temperature` times."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 5))
    probability = softmax(logits, axis=1)
    labels = (probability.cumsum(1) > rng.random((len(logits), 1))).argmax(1)
    model = np.pad(temperature * logits, ((0, 0), (0, 3)), constant_values=-np.inf)
    right = model.argmax(1) == labels
    fitted = fit_temperature(model, right)
    assert fitted == pytest.approx(temperature, rel=0.05)
    assert reliability(label_confidence(model, fitted), right)[0] < 0.01
    np.testing.assert_allclose(label_confidence(model, temperature), probability.max(1))


def test_signals_find_pixels_of_removed_names():
    rng = np.random.default_rng(0)
    removed = rng.random(4000) < 0.2
    logits = rng.normal(size=(4000, 6)) * np.where(removed, 1, 4)[:, None]
    none = np.full(4000, np.nan)
    labels, images = np.zeros(4000, int), np.arange(4000) // 10
    scores = rng.normal(size=4000) - removed
    samples = PixelSamples(logits, logits.argmax(1), labels, images, scores, none)
    signals = unknown_signals(samples, removed, 1.0)
    assert "presence of stage 5" not in signals
    results = {name: detection_scores(signal, removed) for name, signal in signals.items()}
    single = [results[name]["AUROC"] for name in list(results)[:-1]]
    assert min(single) > 60 and results["all four, logistic regression"]["AUROC"] > max(single)
    perfect = detection_scores(removed.astype(float), removed)
    assert perfect == {"AUROC": 100, "AUPR": 100, "FPR95": 0}


def test_draws_remove_different_names():
    draws = [removed_names(174, i) for i in range(3)]
    assert [len(draw) for draw in draws] == [17] * 3 and len(set(np.concatenate(draws))) == 51
    assert len(removed_names(11, 2)) == 3 and len(removed_names(11, 3)) < 3


def test_the_calibration_belongs_to_the_weights(make_model, tmp_path):
    model, path = make_model(), tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    assert read_temperature(str(path), model) == 1.0
    file = write_temperature(str(path), model, 1.75, ["a_val"])
    assert file == calibration_file(str(path)) == tmp_path / "model.calibration.json"
    assert json.loads(file.read_text())["fitted on"] == ["a_val"]
    load_weights(model, str(path))
    assert model.temperature == 1.75
    load_weights(model, str(path), calibrated=False)
    assert model.temperature == 1.0
    other = make_model(seed=1)
    with pytest.raises(WeightsError, match="belongs to other weights.*calibrate.py, or delete it"):
        read_temperature(str(path), other)
    for text in ("{", "[]", '{"temperature": 0}', '{"temperature": NaN, "weights fingerprint": 1}'):
        file.write_text(text)
        with pytest.raises(WeightsError, match="model.calibration.json cannot be read"):
            load_weights(model, str(path))


@pytest.fixture
def street(tmp_path, write_stripes):
    """Three images of 40 x 48 pixels with three categories."""
    write_stripes(tmp_path, 3)
    name = "test_calibration_sem_seg"
    register_sem_seg(name, tmp_path / "images", tmp_path / "labels", ["sky", "tree", "car"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


def _process(name, size):
    record = DatasetCatalog.get(name)[0]
    sem_seg = SemSegProposals(torch.randn(3, *size), torch.arange(3), 3)
    proposals = {"ids": torch.arange(3), "scores": torch.ones(3)}
    evaluator = CalibrationEvaluator(name)
    evaluator.process([record], [{"sem_seg": sem_seg, "proposals": proposals}])
    return evaluator.evaluate()


def test_label_maps_of_another_size_are_refused(street):
    assert _process(street, (40, 48))["calibration"]["ECE"] >= 0
    with pytest.raises(ValueError, match="has shape .40, 48., but the prediction .* .48, 40."):
        _process(street, (48, 40))


def test_several_names_of_the_background_are_refused(street):
    MetadataCatalog.get(street).num_foreground = 2
    with pytest.raises(ValueError, match=f"'{street}' has several names for its background"):
        CalibrationEvaluator(street)
