"""Scores of confusion matrices against counting by hand, scikit-learn and Detectron2."""

import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix

from dcp_clip.evaluation import confusion
from dcp_clip.evaluation.confusion import (
    assign_majority_labels,
    count_pairs,
    probe_detectron2,
    score,
)


@st.composite
def label_pairs(draw):
    """Prediction and labels over C categories; few are used, so that some are absent from the
    labels, the prediction or both. The value C in the labels is void."""
    c = draw(st.integers(1, 8))
    size = draw(st.integers(1, 40))
    used = st.sampled_from(draw(st.lists(st.integers(0, c - 1), min_size=1, max_size=3)))
    true = st.one_of(used, st.just(c))
    guessed = st.one_of(used, st.integers(0, c - 1))
    pixels = {"min_size": size, "max_size": size}
    return np.array(draw(st.lists(guessed, **pixels))), np.array(draw(st.lists(true, **pixels))), c


@given(label_pairs())
def test_against_sets_of_pixels(pair):
    """IoU as its definition says, pixel by pixel."""
    prediction, labels, c = pair
    scores = score(count_pairs(prediction, labels, c))
    known = {i for i, label in enumerate(labels) if label != c}
    ious, seen = {}, set()
    for k in range(c):
        guessed = {i for i in known if prediction[i] == k}
        true = {i for i in known if labels[i] == k}
        if true:
            ious[k] = len(guessed & true) / len(guessed | true)
        if guessed | true:
            seen.add(k)
    for k in range(c):
        assert (scores.iou[k] == pytest.approx(ious[k])) if k in ious else np.isnan(scores.iou[k])
    for convention, count in (("present", len(ious)), ("seen", len(seen)), ("all", c)):
        assert scores.num_categories(convention) == count
        expected = sum(ious.values()) / count if count else math.nan
        assert scores.mean_iou(convention) == pytest.approx(expected, nan_ok=True)


@given(label_pairs())
def test_against_scikit_learn(pair):
    prediction, labels, c = pair
    known = labels != c
    if not known.any():
        return
    counts = count_pairs(prediction, labels, c)
    guessed, true = prediction[known], labels[known]
    matrix = confusion_matrix(true, guessed, labels=range(c))
    assert (counts[:-1, :-1] == matrix.T).all()
    scores = score(counts)
    present = matrix.sum(1) > 0
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    iou = matrix.diagonal()[present] / union[present]
    assert scores.mean_iou() == pytest.approx(iou.mean())
    weights = matrix.sum(1)[present] / matrix.sum()
    assert scores.frequency_weighted_iou == pytest.approx((iou * weights).sum())
    assert scores.pixel_accuracy == pytest.approx((true == guessed).mean())
    recall = matrix.diagonal()[present] / matrix.sum(1)[present]
    assert scores.mean_accuracy == pytest.approx(recall.mean())


@given(label_pairs())
def test_a_true_mask_has_the_name_of_most_of_its_pixels(pair):
    prediction, labels, c = pair
    named = prediction.copy()
    for label in set(labels):
        mask = labels == label
        named[mask] = np.bincount(prediction[mask]).argmax()
    counts = assign_majority_labels(count_pairs(prediction, labels, c))
    assert (counts == count_pairs(named, labels, c)).all()


def test_counts_of_several_images_add_up():
    rng = np.random.default_rng(0)
    prediction, labels = rng.integers(0, 4, (2, 6, 5, 7))
    labels[rng.random(labels.shape) < 0.2] = 4
    whole = count_pairs(prediction, labels, 4)
    assert (sum(count_pairs(p, t, 4) for p, t in zip(prediction, labels)) == whole).all()
    assert whole.sum() == prediction.size and whole.dtype == np.int64


def test_small_integers_do_not_overflow():
    ids = np.full((2, 2), 200, np.uint8)
    assert count_pairs(ids, ids, 201)[200, 200] == 4


def test_nothing_labelled_has_no_score():
    scores = score(count_pairs(np.array([0, 1]), np.array([3, 3]), 3))
    values = [scores.mean_iou(), scores.pixel_accuracy, scores.frequency_weighted_iou]
    assert np.isnan([*values, scores.mean_accuracy, scores.mean_iou("seen")]).all()


def test_probe_restores_the_catalogs():
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    assert probe_detectron2() == "present"  # the tested Detectron2 is later than July 2022
    assert before == (set(DatasetCatalog.list()), set(MetadataCatalog.list()))


@pytest.mark.parametrize(("divisor", "expected"), [(3, "seen"), (4, "all"), (7, None)])
def test_probe_of_other_detectron2(monkeypatch, divisor, expected):
    """One that divides the IoU of the four pixels, 1 + 1/2, by another number."""

    class Other(SemSegEvaluator):
        def evaluate(self):
            return {"sem_seg": {"mIoU": 100 * 1.5 / divisor}}

    monkeypatch.setattr(confusion, "SemSegEvaluator", Other)
    assert probe_detectron2() == expected


class _Early(SemSegEvaluator):
    """As in builds whose constructor takes no loader: the label map is opened in process()."""

    def __init__(self, dataset_name, distributed=True, output_dir=None):
        super().__init__(dataset_name, distributed, output_dir)
        del self.sem_seg_loading_fn

    def process(self, inputs, outputs):
        for x, output in zip(inputs, outputs):
            with Image.open(self.input_file_to_gt_file[x["file_name"]]) as file:
                labels = np.array(file, dtype=int)
            ids = output["sem_seg"].argmax(dim=0).numpy()
            self._conf_matrix += count_pairs(ids, labels, self._num_classes)

    def evaluate(self):
        return {"sem_seg": {"mIoU": 100 * score(self._conf_matrix).mean_iou("seen")}}


def test_probe_of_a_detectron2_without_a_loader(monkeypatch):
    monkeypatch.setattr(confusion, "SemSegEvaluator", _Early)
    assert probe_detectron2() == "seen"


@pytest.mark.parametrize("error", [TypeError, AttributeError])
def test_probe_of_a_detectron2_that_is_used_otherwise(monkeypatch, error):
    class Other(SemSegEvaluator):
        def process(self, inputs, outputs):
            raise error("another interface")

    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    monkeypatch.setattr(confusion, "SemSegEvaluator", Other)
    assert probe_detectron2() is None
    assert before == (set(DatasetCatalog.list()), set(MetadataCatalog.list()))
