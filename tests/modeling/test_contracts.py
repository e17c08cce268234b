"""Contracts 2 to 5 and 7 to 9 of the whole model, with random weights instead of zeros."""

import random

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary

# Shrinking a counterexample would run the model a hundred times.
FEW = settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])
# One convolutional and one transformer tower.
CLIPS = ["test-convnext", "test-vit-14-quickgelu"]
SIZES = st.sampled_from([(33, 47), (64, 64), (1, 1), (5, 200), (97, 20)])
SYNONYM_POOLING = "MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING"
K = "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS"
AUGMENTED = {"TEST.AUG.ENABLED": True, "TEST.AUG.SCALES": (0.5, 1.5)}


@pytest.fixture(scope="module")
def models(make_model):
    """``models(clip, opts)``: every model is built once."""
    built = {}

    def get(clip="test-convnext", opts=None):
        key = (clip, str(opts))
        if key not in built:
            built[key] = make_model(clip, opts)
        return built[key]

    return get


def test_the_models_are_not_constant(models, make_image, twelve_categories, run):
    """The properties below would hold for a constant output."""
    for clip in CLIPS:
        model = models(clip)
        first, scores, sem_seg = run(model, make_image(64, 80), twelve_categories)
        other, *_ = run(model, make_image(64, 80, seed=1), twelve_categories)
        assert sem_seg.logits.flatten(1).std(1).min() > 1e-2
        assert torch.stack(list(scores.values())).std() > 1e-4
        shared = first.keys() & other.keys()
        assert all((first[n] - other[n]).abs().max() > 1e-2 for n in shared)
        assert len(sem_seg.argmax().unique()) > 1


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("synonyms", ["mean", "max"])
@FEW
@given(data=st.data())
def test_2_shuffled_names_shuffle_the_result(
    models, make_image, clip, synonyms, data, twelve_categories, run, assert_same
):
    model = models(clip, {SYNONYM_POOLING: synonyms})
    names = twelve_categories[: data.draw(st.integers(2, len(twelve_categories)))]
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    shuffled = data.draw(st.permutations(names))
    assert_same(run(model, image, names), run(model, image, shuffled))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("synonyms", ["mean", "max"])
@settings(FEW, max_examples=10)
@given(data=st.data())
def test_3_names_that_are_not_proposed_change_no_bit(
    models, make_image, clip, synonyms, data, twelve_categories, run, assert_same
):
    model = models(clip, {SYNONYM_POOLING: synonyms})
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    everything = twelve_categories + [
        [f"thing {i}"] for i in range(data.draw(st.sampled_from([0, 1, 30])))
    ]
    maps, scores, grown = run(model, image, everything)
    proposed = [name for name in everything if name[0] in maps]
    others = [name for name in everything if name[0] not in maps]
    assert len(proposed) == 4
    # Any vocabulary between the proposed names alone and all of them, in the order of the full one.
    kept = proposed + data.draw(st.lists(st.sampled_from(others), unique_by=tuple))
    fewer = run(model, image, [name for name in everything if name in kept])
    assert_same(fewer, (maps, scores), exact=True)
    assert [everything[i][0] for i in grown.argmax().unique()] == [
        sorted(kept, key=everything.index)[i][0] for i in fewer[2].argmax().unique()
    ]


@FEW
@given(seed=st.integers(0, 99))
def test_3_new_names_at_any_place(models, make_image, seed, twelve_categories, run, assert_same):
    """New names in front change every id, but the logits of a name stay the same up to rounding."""
    model, image = models(), make_image(40, 56, seed=seed)
    maps, scores, _ = run(model, image, twelve_categories)
    others = [name for name in twelve_categories if name[0] not in maps]
    proposed = [name for name in twelve_categories if name[0] in maps]
    mixed = random.Random(seed).sample(others + proposed, len(twelve_categories))
    assert_same(run(model, image, mixed), (maps, scores))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(("surplus", "opts"), [(0, {}), (1, {}), (30, {}), (1, AUGMENTED)])
def test_4_enough_proposals_are_the_same_as_no_proposal_stage(
    models, make_image, clip, surplus, opts, twelve_categories, run, assert_same
):
    limited = models(clip, {K: len(twelve_categories) + surplus} | opts)
    unlimited = models(clip, {"MODEL.DCP_CLIP.PROPOSAL.NAME": "AllCategories"} | opts)
    image = make_image(45, 70)
    with_stage, without = (
        run(limited, image, twelve_categories),
        run(unlimited, image, twelve_categories),
    )
    assert len(without[0]) == len(twelve_categories)
    assert_same(with_stage, without, exact=True)
    assert torch.equal(with_stage[2].category_ids, without[2].category_ids)


@pytest.mark.parametrize("clip", [*CLIPS, "dcp-tiny-cnn"])
@FEW
@given(sizes=st.lists(SIZES, min_size=1, max_size=4), seed=st.integers(0, 9))
def test_5_images_of_a_batch_do_not_influence_each_other(
    models, make_image, clip, sizes, seed, twelve_categories
):
    model, vocabulary = models(clip), Vocabulary(twelve_categories)
    images = [make_image(*size, seed=seed + i) for i, size in enumerate(sizes)]
    inputs = [{"image": image, "vocabulary": vocabulary} for image in images]
    inputs[0] |= {"height": 31, "width": 17}
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["proposals"]["ids"], b["proposals"]["ids"])
        torch.testing.assert_close(a["proposals"], b["proposals"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a["sem_seg"].logits, b["sem_seg"].logits, rtol=1e-3, atol=1e-3)
    assert together[0]["sem_seg"].image_size == (31, 17)
    assert [x["sem_seg"].image_size for x in together[1:]] == sizes[1:]


# ---- variants: stage 1 ranks on few merged tokens, stage 5 reassigns, or CLIP sees several views

VARIANTS = ("merged", "reassigned", "augmented")


@pytest.fixture(scope="module", params=[(clip, kind) for clip in CLIPS for kind in VARIANTS])
def variant(make_model, request):
    clip, kind = request.param
    if kind == "reassigned":
        opts = {"MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME": "ReassignmentRefinement"}
        return make_model(clip, opts)
    if kind == "augmented":
        return make_model(clip, AUGMENTED)
    model = make_model(clip)
    model.proposal.num_tokens = 3
    return model


@FEW
@given(data=st.data())
def test_2_and_3_variants(variant, make_image, data, twelve_categories, run, assert_same):
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    maps, scores, _ = run(variant, image, twelve_categories)
    assert_same(run(variant, image, data.draw(st.permutations(twelve_categories))), (maps, scores))
    kept = [name for name in twelve_categories if name[0] in maps]
    others = [name for name in twelve_categories if name[0] not in maps]
    kept += data.draw(st.lists(st.sampled_from(others), unique_by=tuple))
    fewer = run(variant, image, [name for name in twelve_categories if name in kept])
    assert_same(fewer, (maps, scores), exact=True)


@FEW
@given(sizes=st.lists(SIZES, min_size=2, max_size=4), seed=st.integers(0, 9))
def test_5_variants(variant, make_image, sizes, seed, twelve_categories):
    images = [make_image(*size, seed=seed + i) for i, size in enumerate(sizes)]
    inputs = [{"image": image, "vocabulary": Vocabulary(twelve_categories)} for image in images]
    with torch.no_grad():
        together = variant(inputs)
        alone = [variant([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["proposals"]["ids"], b["proposals"]["ids"])
        torch.testing.assert_close(a["proposals"], b["proposals"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a["sem_seg"].logits, b["sem_seg"].logits, rtol=1e-3, atol=1e-3)


# ---- contract 7: any size


@pytest.mark.parametrize("clip", [*CLIPS, "test-convnext-mlp", "dcp-tiny-cnn"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (33, 47), (31, 32)])
def test_7_any_image_size(models, make_image, clip, size, twelve_categories, run):
    maps, _, sem_seg = run(models(clip), make_image(*size), twelve_categories)
    assert sem_seg.image_size == size and len(maps) == 4
    assert run(models(clip), make_image(*size), twelve_categories, height=7, width=3)[
        2
    ].image_size == (7, 3)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 1000])
def test_7_any_vocabulary_size(models, make_image, clip, count, run):
    names = [f"thing {i}" for i in range(count)]
    maps, _, sem_seg = run(models(clip), make_image(20, 30), names)
    assert len(maps) == min(count, 4)
    assert sem_seg.argmax().max() < count


# ---- contracts 8 and 9


def test_8_training_evaluation_and_predictor_use_the_same_text_features(
    make_model, make_cfg, make_image, monkeypatch, twelve_categories, run
):
    """The stages get the same tensors in all three."""
    model = make_model(opts={"MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "vild14"})
    seen = []
    model.proposal.register_forward_pre_hook(lambda _, args: seen.append(args[2:4]))
    image, vocabulary = make_image(32, 32), Vocabulary(twelve_categories)
    model.train()
    model([{"image": image, "sem_seg": torch.zeros(32, 32).long(), "vocabulary": vocabulary}])
    model.eval()
    run(model, image, vocabulary)
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 32})
    Predictor(cfg, "; ".join(", ".join(n) for n in twelve_categories), model=model)(
        np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    )
    assert len(seen) == 3
    for text, rows in seen[1:]:
        assert torch.equal(text, seen[0][0]) and torch.equal(rows, seen[0][1])


def test_9_colours_and_display_names_do_not_change_the_logits(
    models, make_image, twelve_categories, run
):
    """The logits depend on the names and synonyms only."""
    plain = Vocabulary(twelve_categories)
    dressed = Vocabulary(
        twelve_categories,
        display_names=[f"no {i}" for i in range(12)],
        colors=[(i, 0, 0) for i in range(12)],
    )
    image = make_image(32, 48)
    a, b = (run(models(), image, v)[2] for v in (plain, dressed))
    assert torch.equal(a.logits, b.logits) and torch.equal(a.category_ids, b.category_ids)


def test_9_a_batch_has_one_vocabulary(models, make_image, twelve_categories):
    model, image = models(), make_image(32, 32)
    same = [{"image": image, "vocabulary": Vocabulary(twelve_categories)} for _ in range(2)]
    with torch.no_grad():
        assert len(model(same)) == 2
        same[1]["vocabulary"] = Vocabulary(twelve_categories[::-1])
        with pytest.raises(ValueError, match="share a vocabulary"):
            model(same)


def test_an_input_without_vocabulary_uses_the_models(models, make_model, make_image):
    model, image = make_model(), make_image(32, 32)
    model.set_vocabulary(Vocabulary(["sky", "cat"]))
    with torch.no_grad():
        assert model([{"image": image}])[0]["sem_seg"].num_categories == 2
        model.set_vocabulary(None)
        with pytest.raises(ValueError, match="set_vocabulary"):
            model([{"image": image}])


def test_training_needs_labels(make_model, make_image):
    model = make_model().train()
    with pytest.raises(ValueError, match="'sem_seg' labels"):
        model([{"image": make_image(32, 32)}])
