"""Stage 1: which categories are proposed, and with which scores."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dcp_clip.modeling.stages.registry import CATEGORY_PROPOSAL_REGISTRY
from dcp_clip.modeling.stages.stage1_proposal import (
    CategoryProposal,
    DenseProposal,
    PooledProposal,
    _Evidence,
)
from dcp_clip.modeling.stages.stage1_ranking import rank_names

NODE = "MODEL.DCP_CLIP.PROPOSAL."
SHAPE = {"dense": ShapeSpec(channels=16)}


@settings(max_examples=10, deadline=None)
@given(
    k=st.integers(1, 6),
    present=st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=3),
    ratio=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_categories_of_the_ground_truth_are_always_proposed(make_cfg, k, present, ratio, seed):
    proposal = CategoryProposal(make_cfg(opts={NODE + "NUM_PROPOSALS": k}), SHAPE)
    proposal.random_ratio = ratio
    torch.manual_seed(seed)
    b = len(present)
    truth = torch.zeros(b, 8, dtype=torch.bool)
    for row, categories in zip(truth, present, strict=True):
        row[list(categories)] = True
    text_features = normalize(torch.randn(10, 16), dim=1)
    rows = torch.tensor([[0, 1], [2, 3], *([i, i] for i in range(4, 10))])
    dense, pooled = torch.randn(b, 16, 3, 4), torch.randn(b, 16)
    valid = torch.ones(b, 3, 4, dtype=torch.bool)
    out = proposal(dense, pooled, text_features, rows, valid, truth)
    assert out.ids.shape == out.scores.shape == out.valid.shape == out.text_features.shape[:2]
    assert min(8, k) <= out.ids.shape[1] <= max(k, max(map(len, present)))
    for i, categories in enumerate(present):
        ids = out.ids[i].tolist()
        assert len(set(ids)) == len(ids)
        assert out.valid[i].all() and categories <= set(ids)
        for j, category in enumerate(ids):  # the text feature is one of the category's own
            own = text_features[rows[category]]
            assert any(torch.equal(out.text_features[i, j], feature) for feature in own)


def test_scores_are_the_weighted_evidence(make_cfg):
    opts = {
        NODE + "NUM_PROPOSALS": 3,
        NODE + "POOLED_WEIGHT": 0.5,
        NODE + "DENSE_WEIGHT": 2.0,
        NODE + "LSE_SHARPNESS": 0.0,
    }
    torch.manual_seed(0)
    text_features, rows = normalize(torch.randn(7, 16), dim=1), torch.arange(7)[:, None]
    dense, pooled = torch.randn(2, 16, 3, 4), torch.randn(2, 16)
    valid = torch.rand(2, 3, 4) < 0.7
    image_level = normalize(pooled, dim=1) @ text_features.T
    local = torch.einsum("bdhw,nd->bnhw", normalize(dense, dim=1), text_features)
    local = local.masked_fill(~valid[:, None], -9).flatten(2).amax(2)
    for kind, expected in (
        (CategoryProposal, 0.5 * image_level + 2 * local),
        (PooledProposal, 0.5 * image_level),
        (DenseProposal, 2 * local),
    ):
        out = kind(make_cfg(opts=opts), SHAPE)(dense, pooled, text_features, rows, valid)
        best = expected.topk(3, dim=1)
        assert torch.equal(out.ids, best.indices.sort(1).values)
        torch.testing.assert_close(out.scores, expected.gather(1, out.ids))


def test_the_score_is_that_of_the_best_synonym(make_cfg):
    text_features = normalize(torch.randn(4, 16), dim=1)
    rows = torch.tensor([[0, 1, 2], [3, 3, 3]])
    dense = text_features[2].view(1, 16, 1, 1).expand(1, 16, 2, 2)
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    proposal = CategoryProposal(make_cfg(), SHAPE)
    out = proposal(dense, text_features[2][None], text_features, rows, valid)
    assert torch.equal(out.text_features[0, 0], text_features[2])
    torch.testing.assert_close(out.scores[0, 0], torch.tensor(2.0))


def test_many_categories_are_ranked_in_chunks(make_cfg):
    torch.manual_seed(0)
    text_features = normalize(torch.randn(5000, 16), dim=1)
    dense, pooled = torch.randn(1, 16, 2, 2), torch.randn(1, 16)
    proposal = CategoryProposal(make_cfg(), SHAPE)
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    out = proposal(dense, pooled, text_features, torch.arange(5000)[:, None], valid)
    score = normalize(pooled, dim=1) @ text_features.T
    local = torch.einsum("bdhw,nd->bnhw", normalize(dense, dim=1), text_features)
    score += local.flatten(2).amax(2)
    assert set(out.ids[0].tolist()) == set(score[0].topk(4).indices.tolist())


@pytest.mark.parametrize("sharpness", [0.0, 20.0, 80.0, 200.0])
@pytest.mark.parametrize("weights", [(0.5, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_the_ranking_has_the_scores_of_the_proposals(sharpness, weights):
    """The ranking of many names computes the same scores in another way."""
    generator = torch.Generator().manual_seed(0)

    def unit(*shape, dim):
        return normalize(torch.randn(*shape, generator=generator), dim=dim)

    tokens, pooled, text = unit(2, 16, 7, dim=1), unit(2, 16, dim=1), unit(2100, 16, dim=1)
    tokens[0, :, 1] = text[5]  # a match that is padding
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0, :2] = valid[1, 6] = False
    scores = rank_names(tokens, valid, pooled, text, weights, sharpness)
    proposal = CategoryProposal(
        num_proposals=4,
        pooled_weight=weights[0],
        dense_weight=weights[1],
        lse_sharpness=sharpness,
    )
    expected = proposal._score(_Evidence(tokens, valid, pooled), text.expand(2, -1, -1))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_zero_proposals_are_refused(make_cfg):
    with pytest.raises(ValueError, match="NUM_PROPOSALS is 0"):
        build_model(make_cfg(opts={NODE + "NUM_PROPOSALS": 0}))


@pytest.mark.parametrize("name", ["CategoryProposal", "PooledProposal", "DenseProposal"])
def test_a_ranking_without_evidence_is_refused(make_cfg, name):
    """All scores would be 0, and the first categories would be proposed for any image."""
    opts = {NODE + key: 0.0 for key in ("POOLED_WEIGHT", "DENSE_WEIGHT")}
    with pytest.raises(ValueError, match=f"{name} has no evidence .*POOLED_WEIGHT"):
        CATEGORY_PROPOSAL_REGISTRY.get(name)(make_cfg(opts=opts), SHAPE)
    for without_ranking in ("AllCategories", "OracleProposal"):
        CATEGORY_PROPOSAL_REGISTRY.get(without_ranking)(make_cfg(opts=opts), SHAPE)


def test_a_negative_sharpness_is_refused(make_cfg):
    with pytest.raises(ValueError, match="PROPOSAL.LSE_SHARPNESS is -1.0"):
        CategoryProposal(make_cfg(opts={NODE + "LSE_SHARPNESS": -1.0}), SHAPE)


# ---- the oracle


def test_the_oracle_proposes_the_categories_of_the_labels(
    make_model, make_image, make_input, evaluate, eight_categories
):
    model = make_model(opts={NODE + "NAME": "OracleProposal"})
    labels = [torch.full((40, 52), i) for i in (6, 2)] + [torch.full((40, 52), 255)]
    labels[0][:10, :5] = 1
    labels[0][20:, 9:] = 255
    batch = [{**make_input(seed=i), "sem_seg": x} for i, x in enumerate(labels)]
    outputs = evaluate(model, batch)
    assert [set(o["proposals"]["ids"].tolist()) for o in outputs[:2]] == [{1, 6}, {2}]
    assert len(outputs[2]["proposals"]["ids"]) == 1
    with pytest.raises(ValueError, match="OracleProposal.*ground truth"):
        evaluate(model, [{"image": make_image(32, 32), "vocabulary": eight_categories}])


def test_the_oracle_uses_labels_of_the_size_of_the_file(make_model, make_input, evaluate):
    """Images of one size can come from files of different sizes."""
    model = make_model(opts={NODE + "NAME": "OracleProposal"})
    batch = [make_input(seed=i) for i in range(2)]
    for x, side in zip(batch, (300, 200)):
        x["sem_seg"] = torch.full((side, side), 1)
        x["sem_seg"][7, 9] = 3
    outputs = evaluate(model, batch)
    assert [set(o["proposals"]["ids"].tolist()) for o in outputs] == [{1, 3}, {1, 3}]


def test_labels_in_evaluation_are_used_by_the_oracle_only(make_model, make_input, evaluate):
    model = make_model()
    x = make_input()
    with_labels = evaluate(model, [x])[0]
    x.pop("sem_seg")
    assert torch.equal(with_labels["sem_seg"].logits, evaluate(model, [x])[0]["sem_seg"].logits)


@pytest.mark.parametrize("learned", [False, True])
def test_padded_proposals_give_finite_losses_and_gradients(
    make_model, make_input, train_one_step, evaluate, learned
):
    """The oracle pads images with fewer categories; padding must not become NaN in stage 5."""
    opts = {NODE + "NAME": "OracleProposal", "MODEL.DCP_CLIP.CLASS_REFINEMENT.LEARNED": learned}
    batch = [make_input(), make_input(seed=1, categories=1)]
    model = make_model(opts=opts)
    train_one_step(model, batch)
    outputs = evaluate(model, batch)
    assert [len(o["proposals"]["ids"]) for o in outputs] == [5, 1]
