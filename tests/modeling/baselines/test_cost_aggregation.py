"""Cost aggregation: chunks of categories, and the attention between categories."""

import pytest
import torch

from dcp_clip.vocabulary import Vocabulary

KIND = "CostAggregationSegmentor"
NODE = "MODEL.BASELINES.COST_AGGREGATION"


@torch.no_grad()
def maps_of(model, image, names):
    return model([{"image": image, "vocabulary": Vocabulary(names)}])[0]["sem_seg"].maps


def test_chunks_do_not_change_the_logits(make_head, make_image):
    names, image = [f"thing {i}" for i in range(11)], make_image(64, 80)
    model = make_head(KIND)
    whole = maps_of(model, image, names)
    for model.head.chunk_size in (1, 4, 11):
        torch.testing.assert_close(maps_of(model, image, names), whole, rtol=1e-4, atol=1e-4)


def test_chunks_limit_the_categories_upsampled_at_once(make_head, make_image):
    model = make_head(KIND)
    model.head.chunk_size = 4
    seen = []
    for step in model.head.steps.values():
        step.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    maps_of(model, make_image(32, 32), [f"thing {i}" for i in range(10)])
    assert sorted(seen) == [2, 2, 4, 4, 4, 4]


def test_categories_attend_to_each_other(make_head, make_image):
    """Another category in the vocabulary changes the logits of the others."""
    model, image = make_head(KIND), make_image(64, 64)
    fewer = maps_of(model, image, ["sky", "car"])
    more = maps_of(model, image, ["sky", "car", "cat"])[:2]
    assert not torch.allclose(fewer, more, atol=1e-3)


@pytest.mark.parametrize("key, value", [("DIM", 24), ("NUM_HEADS", 3)])
def test_wrong_values_are_refused(make_head, key, value):
    with pytest.raises(ValueError, match=rf"COST_AGGREGATION.*{key} \({value}\)"):
        make_head(KIND, opts={f"{NODE}.{key}": value})
