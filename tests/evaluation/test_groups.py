"""Separate figures of things and stuff, and of base and unseen categories."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcp_clip.emoji_scenes.register import PREFIX
from dcp_clip.evaluation import (
    BackgroundMeanIoUEvaluator,
    MeanIoUEvaluator,
    ProposalRecallEvaluator,
)
from dcp_clip.evaluation.confusion import score
from dcp_clip.evaluation.groups import category_groups

NAME = "test_groups_sem_seg"
THINGS = [True, True, False, False, True]
BASE = [True, False, True, False, False]


def proposals(*ids):
    return {"proposals": {"ids": torch.tensor(ids)}}


def test_mean_iou_by_hand(register, evaluate):
    """Category 4, an unseen thing, is not present but predicted, which lowers the IoU of others."""
    records = register(NAME, [[[0, 0, 1, 1, 2, 2, 3, 255]]], 5, is_thing=THINGS, is_base=BASE)
    guesses = [[[0, 4, 1, 2, 2, 2, 1, 0]]]
    result = evaluate(MeanIoUEvaluator(NAME), records, guesses, 5)["sem_seg"]
    iou = np.array([1 / 2, 1 / 3, 2 / 3, 0])
    assert result["mIoU"] == pytest.approx(100 * iou.mean())
    assert result["mIoU_things"] == pytest.approx(100 * iou[[0, 1]].mean())
    assert result["mIoU_stuff"] == pytest.approx(100 * iou[[2, 3]].mean())
    assert result["mIoU_base"] == pytest.approx(100 * iou[[0, 2]].mean())
    assert result["mIoU_unseen"] == pytest.approx(100 * iou[[1, 3]].mean())


def test_recall_by_hand(register):
    labels = [[[0, 1, 2, 255]], [[1, 3, 3, 3]]]
    records = register(NAME, labels, 5, is_thing=THINGS)
    evaluator = ProposalRecallEvaluator(NAME)
    evaluator.process(records[:1], [proposals(0, 2, 3)])
    evaluator.process(records[1:], [proposals(3, 4)])
    result = evaluator.evaluate()["proposals"]
    assert result["recall"] == pytest.approx(100 * 3 / 5)
    assert result["recall_things"] == pytest.approx(100 * 1 / 3)
    assert result["recall_stuff"] == pytest.approx(100 * 2 / 2)
    evaluator.reset()
    evaluator.process(records[:1], [proposals(0, 1)])
    assert evaluator.evaluate()["proposals"]["recall_things"] == 100


@pytest.mark.parametrize("metadata", [{}, {"is_thing": THINGS}, {"is_base": BASE}])
def test_result_keys_follow_the_metadata(register, evaluate, metadata):
    records = register(NAME, [[[0, 1, 2, 3]]], 5, **metadata)
    result = evaluate(MeanIoUEvaluator(NAME), records, [[[0, 1, 2, 3]]], 5)["sem_seg"]
    evaluator = ProposalRecallEvaluator(NAME)
    evaluator.process(records, [proposals(0)])
    keys = {key for key in result if key.startswith("mIoU_")}
    keys |= {key for key in evaluator.evaluate()["proposals"] if key.startswith("recall_")}
    expected = set()
    if "is_thing" in metadata:
        expected |= {"mIoU_things", "mIoU_stuff", "recall_things", "recall_stuff"}
    if "is_base" in metadata:
        expected |= {"mIoU_base", "mIoU_unseen"}
    assert keys == expected


def test_group_that_is_not_present_is_nan(register, evaluate):
    """The keys do not depend on the images."""
    records = register(NAME, [[[0, 1, 1, 255]]], 5, is_thing=THINGS)
    result = evaluate(MeanIoUEvaluator(NAME), records, [[[0, 2, 1, 2]]], 5)["sem_seg"]
    assert result["mIoU_things"] == result["mIoU"] == 75
    assert np.isnan(result["mIoU_stuff"])
    evaluator = ProposalRecallEvaluator(NAME)
    evaluator.process(records, [proposals(0, 2)])
    found = evaluator.evaluate()["proposals"]
    assert found["recall_things"] == 50 and np.isnan(found["recall_stuff"])


def test_group_without_a_category_has_no_key(register, evaluate):
    records = register(NAME, [[[0, 1]]], 2, is_thing=[True, True], is_base=[False, False])
    result = evaluate(MeanIoUEvaluator(NAME), records, [[[0, 1]]], 2)["sem_seg"]
    assert {"mIoU_things", "mIoU_unseen"} <= set(result)
    assert not {"mIoU_stuff", "mIoU_base"} & set(result)


def test_background_belongs_to_no_group(register, evaluate):
    """Two foreground names of five; 2 is background."""
    options = {"num_foreground": 2, "is_thing": [True, False, True, True, True]}
    records = register(NAME, [[[0, 0, 1, 2]]], 5, **options)
    result = evaluate(BackgroundMeanIoUEvaluator(NAME), records, [[[0, 4, 1, 3]]], 5)["sem_seg"]
    assert (result["mIoU_things"], result["mIoU_stuff"]) == (50, 100)
    assert result["IoU-background"] == 50
    evaluator = ProposalRecallEvaluator(NAME)
    evaluator.process(records, [proposals(1)])
    found = evaluator.evaluate()["proposals"]
    assert (found["recall_things"], found["recall_stuff"]) == (0, 100)


@pytest.mark.parametrize("key", ["is_thing", "is_base"])
def test_metadata_of_another_length(register, key):
    register(NAME, [[[0]]], 5, **{key: [True, False]})
    for kind in (MeanIoUEvaluator, ProposalRecallEvaluator):
        with pytest.raises(ValueError, match=f"'{NAME}' has 2 values of {key} .* 5 categories"):
            kind(NAME)


@given(
    st.integers(2, 6).flatmap(
        lambda c: st.tuples(
            st.lists(st.integers(0, 9), min_size=c * c, max_size=c * c),
            st.lists(st.booleans(), min_size=c, max_size=c),
        )
    )
)
def test_groups_average_to_the_whole(drawn):
    """Weighted by the number of categories present."""
    counts, member = drawn
    member, c = np.array(member), len(member)
    matrix = np.zeros((c + 1, c + 1), np.int64)
    matrix[:-1, :-1] = np.reshape(counts, (c, c))
    scores = score(matrix)
    parts = [(scores.group_mean_iou(m), scores.present[m].sum()) for m in (member, ~member)]
    assert all(np.isnan(value) == (count == 0) for value, count in parts)
    total = sum(value * count for value, count in parts if count)
    assert total == pytest.approx(np.nansum(scores.iou))


@pytest.mark.parametrize(
    ("subset", "counts"),
    [
        ("base_test", {"things": 150, "stuff": 24, "base": 166, "unseen": 8}),
        ("unseen_test", {"things": 150, "stuff": 24, "base": 16, "unseen": 158}),
        ("all_test", {"things": 587, "stuff": 24, "base": 166, "unseen": 445}),
        ("base_train", {"things": 150, "stuff": 16, "base": 166}),
    ],
)
def test_groups_of_emoji_scenes(subset, counts):
    assert {g: m.sum() for g, m in category_groups(PREFIX + subset).items()} == counts
