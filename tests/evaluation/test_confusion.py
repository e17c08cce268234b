"""Scores of confusion matrices, compared with counting by hand and with scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from dcp_clip.evaluation.confusion import (
    assign_majority_labels,
    count_pairs,
    score,
)


@st.composite
def label_pairs(draw):
    """Prediction and labels with C categories; the label C is ignored.

    Only a few categories occur, so that some are missing in the labels, the prediction or both.
    """
    c = draw(st.integers(1, 8))
    size = draw(st.integers(1, 40))
    used = st.sampled_from(draw(st.lists(st.integers(0, c - 1), min_size=1, max_size=3)))
    true = st.one_of(used, st.just(c))
    guessed = st.one_of(used, st.integers(0, c - 1))
    pixels = {"min_size": size, "max_size": size}
    return np.array(draw(st.lists(guessed, **pixels))), np.array(draw(st.lists(true, **pixels))), c


@given(label_pairs())
def test_against_sets_of_pixels(pair):
    """IoU by its definition, with sets of pixels."""
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
    for convention, count in (
        ("present", len(ious)),
        ("present_or_predicted", len(seen)),
        ("all", c),
    ):
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


@given(label_pairs())
def test_majority_labels_of_true_masks(pair):
    prediction, labels, c = pair
    majority = prediction.copy()
    for label in set(labels):
        mask = labels == label
        majority[mask] = np.bincount(prediction[mask]).argmax()
    counts = assign_majority_labels(count_pairs(prediction, labels, c))
    assert (counts == count_pairs(majority, labels, c)).all()


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


def test_the_mean_without_labels_is_nan():
    scores = score(count_pairs(np.array([0, 1]), np.array([3, 3]), 3))
    assert math.isnan(scores.mean_iou()) and math.isnan(scores.mean_iou("present_or_predicted"))
