"""Contracts 2 to 5 and 7 to 9 of the design, on the whole model, with nothing left at zero."""

import random

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary

# A counterexample is small as it is; shrinking it would run the model a hundred times.
FEW = settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])
# One convolutional and one transformer tower stand for their kinds.
CLIPS = ["test-convnext", "test-vit-14-quickgelu"]
POOL = [
    ["sky"],
    ["tall tree"],
    ["car", "automobile", "motor car"],
    ["road"],
    ["brick wall"],
    ["cat"],
    ["bicycle", "bike"],
    ["traffic light"],
    ["dog"],
    ["river"],
    ["sand"],
    ["window"],
]
SIZES = st.sampled_from([(33, 47), (64, 64), (1, 1), (5, 200), (97, 20)])
SYNONYM_POOLING = "MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING"
K = "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS"


@pytest.fixture(scope="module")
def models(make_model):
    """``models(clip, opts)``: each is built once."""
    built = {}

    def get(clip="test-convnext", opts=None):
        key = (clip, str(opts))
        if key not in built:
            built[key] = make_model(clip, opts)
        return built[key]

    return get


@torch.no_grad()
def run(model, image, names, **inputs):
    vocabulary = names if isinstance(names, Vocabulary) else Vocabulary(names)
    (output,) = model([{"image": image, "vocabulary": vocabulary, **inputs}])
    ids, scores = output["proposals"]["ids"], output["proposals"]["scores"]
    sem_seg = output["sem_seg"]
    assert sem_seg.num_categories == len(vocabulary)
    assert torch.equal(sem_seg.category_ids, ids)
    assert sem_seg.logits.isfinite().all()
    names = [vocabulary.display_names[i] for i in ids]
    maps = dict(zip(names, sem_seg.logits, strict=True))
    return maps, dict(zip(names, scores, strict=True)), sem_seg


def assert_same(a, b, exact=False):
    """The same maps and scores under the same names, whatever the order."""
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-4}
    for left, right in zip(a[:2], b[:2], strict=True):
        assert left.keys() == right.keys()
        torch.testing.assert_close(left, right, **tolerance)


def test_these_models_see_what_they_are_shown(models, make_image):
    """Or else every property below would hold for a constant."""
    for clip in CLIPS:
        model = models(clip)
        first, scores, sem_seg = run(model, make_image(64, 80), POOL)
        other, *_ = run(model, make_image(64, 80, seed=1), POOL)
        assert sem_seg.logits.flatten(1).std(1).min() > 1e-2
        assert torch.stack(list(scores.values())).std() > 1e-4
        shared = first.keys() & other.keys()
        assert all((first[n] - other[n]).abs().max() > 1e-2 for n in shared)
        assert len(sem_seg.argmax().unique()) > 1


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("synonyms", ["mean", "max"])
@FEW
@given(data=st.data())
def test_2_shuffled_names_shuffle_the_answer(models, make_image, clip, synonyms, data):
    model = models(clip, {SYNONYM_POOLING: synonyms})
    names = POOL[: data.draw(st.integers(2, len(POOL)))]
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    shuffled = data.draw(st.permutations(names))
    assert_same(run(model, image, names), run(model, image, shuffled))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("synonyms", ["mean", "max"])
@settings(FEW, max_examples=10)
@given(data=st.data())
def test_3_names_that_are_not_proposed_change_no_bit(models, make_image, clip, synonyms, data):
    model = models(clip, {SYNONYM_POOLING: synonyms})
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    everything = POOL + [[f"thing {i}"] for i in range(data.draw(st.sampled_from([0, 1, 30])))]
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
def test_3_wherever_the_new_names_are_put(models, make_image, seed):
    """New names in front move every id; the answer stays, to rounding, that of its name."""
    model, image = models(), make_image(40, 56, seed=seed)
    maps, scores, _ = run(model, image, POOL)
    others = [name for name in POOL if name[0] not in maps]
    proposed = [name for name in POOL if name[0] in maps]
    mixed = random.Random(seed).sample(others + proposed, len(POOL))
    assert_same(run(model, image, mixed), (maps, scores))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("surplus", [0, 1, 30])
def test_4_as_many_proposals_as_names_is_no_proposal_stage(models, make_image, clip, surplus):
    limited = models(clip, {K: len(POOL) + surplus})
    unlimited = models(clip, {"MODEL.DCP_CLIP.PROPOSAL.NAME": "AllCategories"})
    image = make_image(45, 70)
    with_stage, without = run(limited, image, POOL), run(unlimited, image, POOL)
    assert len(without[0]) == len(POOL)
    assert_same(with_stage, without, exact=True)
    assert torch.equal(with_stage[2].category_ids, without[2].category_ids)


@pytest.mark.parametrize("clip", [*CLIPS, "dcp-tiny-cnn"])
@FEW
@given(sizes=st.lists(SIZES, min_size=1, max_size=4), seed=st.integers(0, 9))
def test_5_an_image_does_not_see_its_neighbours(models, make_image, clip, sizes, seed):
    model, vocabulary = models(clip), Vocabulary(POOL)
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


# ---- the same where stage 1 ranks on few vectors, into which it merges the positions, and where
# stage 5 renames

OTHERWISE = {
    "merged": {"MODEL.DCP_CLIP.PROPOSAL.NUM_POSITIONS": 3},
    "renaming": {"MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME": "ReassignmentRefinement"},
}


@pytest.fixture(scope="module", params=[(clip, kind) for clip in CLIPS for kind in OTHERWISE])
def otherwise(models, request):
    clip, kind = request.param
    return models(clip, OTHERWISE[kind])


@FEW
@given(data=st.data())
def test_2_and_3_otherwise(otherwise, make_image, data):
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    maps, scores, _ = run(otherwise, image, POOL)
    assert_same(run(otherwise, image, data.draw(st.permutations(POOL))), (maps, scores))
    kept = [name for name in POOL if name[0] in maps]
    others = [name for name in POOL if name[0] not in maps]
    kept += data.draw(st.lists(st.sampled_from(others), unique_by=tuple))
    fewer = run(otherwise, image, [name for name in POOL if name in kept])
    assert_same(fewer, (maps, scores), exact=True)


@FEW
@given(sizes=st.lists(SIZES, min_size=2, max_size=4), seed=st.integers(0, 9))
def test_5_otherwise(otherwise, make_image, sizes, seed):
    images = [make_image(*size, seed=seed + i) for i, size in enumerate(sizes)]
    inputs = [{"image": image, "vocabulary": Vocabulary(POOL)} for image in images]
    with torch.no_grad():
        together = otherwise(inputs)
        alone = [otherwise([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["proposals"]["ids"], b["proposals"]["ids"])


# ---- contract 7: any size


@pytest.mark.parametrize("clip", [*CLIPS, "test-convnext-mlp", "dcp-tiny-cnn"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (33, 47), (31, 32)])
def test_7_any_image_size(models, make_image, clip, size):
    maps, _, sem_seg = run(models(clip), make_image(*size), POOL)
    assert sem_seg.image_size == size and len(maps) == 4
    assert run(models(clip), make_image(*size), POOL, height=7, width=3)[2].image_size == (7, 3)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 1000])
def test_7_any_vocabulary_size(models, make_image, clip, count):
    names = [f"thing {i}" for i in range(count)]
    maps, _, sem_seg = run(models(clip), make_image(20, 30), names)
    assert len(maps) == min(count, 4)
    assert sem_seg.argmax().max() < count


# ---- contracts 8 and 9


def test_8_one_prompt_path(make_model, make_cfg, make_image, monkeypatch):
    """Training, evaluation and Predictor hand the very same text features to the stages."""
    model = make_model(opts={"MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "vild14"})
    seen = []
    model.proposal.register_forward_pre_hook(lambda _, args: seen.append(args[2:4]))
    image, vocabulary = make_image(32, 32), Vocabulary(POOL)
    model.train()
    model([{"image": image, "sem_seg": torch.zeros(32, 32).long(), "vocabulary": vocabulary}])
    model.eval()
    run(model, image, vocabulary)
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 32})
    Predictor(cfg, "; ".join(", ".join(n) for n in POOL), model=model)(
        np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    )
    assert len(seen) == 3
    for text, rows in seen[1:]:
        assert torch.equal(text, seen[0][0]) and torch.equal(rows, seen[0][1])


def test_9_colours_and_display_names_do_not_reach_the_model(models, make_image):
    """What a vocabulary shows is its own matter: maps follow the names that are read."""
    plain = Vocabulary(POOL)
    dressed = Vocabulary(
        POOL, display_names=[f"no {i}" for i in range(12)], colors=[(i, 0, 0) for i in range(12)]
    )
    image = make_image(32, 48)
    a, b = (run(models(), image, v)[2] for v in (plain, dressed))
    assert torch.equal(a.logits, b.logits) and torch.equal(a.category_ids, b.category_ids)


def test_9_a_batch_has_one_vocabulary(models, make_image):
    model, image = models(), make_image(32, 32)
    same = [{"image": image, "vocabulary": Vocabulary(POOL)} for _ in range(2)]
    with torch.no_grad():
        assert len(model(same)) == 2
        same[1]["vocabulary"] = Vocabulary(POOL[::-1])
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
