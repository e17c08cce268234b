"""Contracts 2 to 5 if stages 4 and 5 get fewer categories than stage 1 proposes."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcp_clip.vocabulary import Vocabulary

# Shrinking a counterexample would run the model a hundred times.
FEW = settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])
CLIPS = ["test-convnext", "test-vit-14-quickgelu"]
SIZES = st.sampled_from([(33, 47), (64, 64), (1, 1), (5, 200), (97, 20)])
K = "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS"
M = "MODEL.DCP_CLIP.FINE_DECODER.NUM_CATEGORIES"


@pytest.mark.parametrize("clip", CLIPS)
@FEW
@given(data=st.data())
def test_2_and_3_names_that_are_not_proposed_change_no_bit(
    make_model, make_image, clip, data, twelve_categories, run, assert_same
):
    model = make_model(clip, {K: 6, M: 3})
    proposed = []
    handle = model.proposal.register_forward_hook(lambda *args: proposed.append(args[2].ids[0]))
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    maps, scores, sem_seg = run(model, image, twelve_categories)
    handle.remove()
    assert len(proposed[0]) == 6 and len(maps) == 3
    assert set(sem_seg.category_ids.tolist()) < set(proposed[0].tolist())
    assert_same(run(model, image, data.draw(st.permutations(twelve_categories))), (maps, scores))
    kept = [twelve_categories[i] for i in proposed[0].tolist()]
    others = [name for name in twelve_categories if name not in kept]
    kept += data.draw(st.lists(st.sampled_from(others), unique_by=tuple))
    fewer = run(model, image, [name for name in twelve_categories if name in kept])
    assert_same(fewer, (maps, scores), exact=True)


@pytest.mark.parametrize("clip", CLIPS)
def test_4_enough_proposals_are_the_same_as_no_proposal_stage(
    make_model, make_image, clip, twelve_categories, run, assert_same
):
    limited = make_model(clip, {K: 12, M: 5})
    unlimited = make_model(clip, {"MODEL.DCP_CLIP.PROPOSAL.NAME": "AllCategories", M: 5})
    image = make_image(45, 70)
    results = [run(model, image, twelve_categories) for model in (limited, unlimited)]
    assert len(results[0][0]) == 5
    assert_same(*results, exact=True)


@pytest.mark.parametrize("clip", CLIPS)
@FEW
@given(sizes=st.lists(SIZES, min_size=2, max_size=4), seed=st.integers(0, 9))
def test_5_images_of_a_batch_do_not_influence_each_other(
    make_model, make_image, clip, sizes, seed, twelve_categories
):
    model = make_model(clip, {K: 6, M: 3})
    images = [make_image(*size, seed=seed + i) for i, size in enumerate(sizes)]
    inputs = [{"image": image, "vocabulary": Vocabulary(twelve_categories)} for image in images]
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["proposals"]["ids"], b["proposals"]["ids"])
        torch.testing.assert_close(a["proposals"], b["proposals"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a["sem_seg"].logits, b["sem_seg"].logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_windows_of_a_large_image_share_twice_as_many_categories(
    make_model, make_image, twelve_categories
):
    model = make_model(opts={K: 9, M: 3, "MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64})
    for size in ((60, 64), (60, 150)):
        inputs = {"image": make_image(*size), "vocabulary": Vocabulary(twelve_categories)}
        (output,) = model([inputs])
        assert len(output["proposals"]["ids"]) == len(output["sem_seg"].category_ids) == 6
