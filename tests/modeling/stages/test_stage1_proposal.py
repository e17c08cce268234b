"""Stage 1: which names go further."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_clip.modeling.stages.registry import CATEGORY_PROPOSAL_REGISTRY
from dcp_clip.modeling.stages.stage1_proposal import CategoryProposal, DenseProposal, PooledProposal

NODE = "MODEL.DCP_CLIP."
SHAPE = {"dense": ShapeSpec(channels=16)}


@settings(max_examples=10, deadline=None)
@given(
    k=st.integers(1, 6),
    present=st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=3),
    ratio=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_ground_truth_is_always_proposed(make_cfg, k, present, ratio, seed):
    opts = {NODE + "PROPOSAL.NUM_PROPOSALS": k, NODE + "PROPOSAL.RANDOM_RATIO": ratio}
    proposal = CategoryProposal(make_cfg(opts=opts), SHAPE)
    torch.manual_seed(seed)
    b = len(present)
    truth = torch.zeros(b, 8, dtype=torch.bool)
    for row, categories in zip(truth, present, strict=True):
        row[list(categories)] = True
    text = torch.nn.functional.normalize(torch.randn(10, 16), dim=1)
    rows = torch.tensor([[0, 1], [2, 3], *([i, i] for i in range(4, 10))])
    dense, pooled = torch.randn(b, 16, 3, 4), torch.randn(b, 16)
    valid = torch.ones(b, 3, 4, dtype=torch.bool)
    out = proposal(dense, pooled, text, rows, valid, truth)
    assert out.ids.shape == out.scores.shape == out.valid.shape == out.text.shape[:2]
    assert min(8, k) <= out.ids.shape[1] <= max(k, max(map(len, present)))
    for i, categories in enumerate(present):
        ids = out.ids[i].tolist()
        assert len(set(ids)) == len(ids)
        assert out.valid[i].all() and categories <= set(ids)
        for j, category in enumerate(ids):  # the text is one of the category's own
            assert any(torch.equal(out.text[i, j], text[r]) for r in rows[category])


def test_scores_are_the_weighted_evidence(make_cfg):
    opts = {
        NODE + "PROPOSAL.NUM_PROPOSALS": 3,
        NODE + "PROPOSAL.POOLED_WEIGHT": 0.5,
        NODE + "PROPOSAL.DENSE_WEIGHT": 2.0,
        NODE + "PROPOSAL.LSE_SHARPNESS": 0.0,
    }
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    text, rows = unit(torch.randn(7, 16), dim=1), torch.arange(7)[:, None]
    dense, pooled = torch.randn(2, 16, 3, 4), torch.randn(2, 16)
    valid = torch.rand(2, 3, 4) < 0.7
    image_level = unit(pooled, dim=1) @ text.T
    local = torch.einsum("bdhw,nd->bnhw", unit(dense, dim=1), text)
    local = local.masked_fill(~valid[:, None], -9).flatten(2).amax(2)
    for kind, expected in (
        (CategoryProposal, 0.5 * image_level + 2 * local),
        (PooledProposal, 0.5 * image_level),
        (DenseProposal, 2 * local),
    ):
        out = kind(make_cfg(opts=opts), SHAPE)(dense, pooled, text, rows, valid)
        best = expected.topk(3, dim=1)
        assert {*map(tuple, out.ids.sort(1).values.tolist())} == {
            *map(tuple, best.indices.sort(1).values.tolist())
        }
        torch.testing.assert_close(out.scores, expected.gather(1, out.ids))


def test_the_best_synonym_speaks(make_cfg):
    text = torch.nn.functional.normalize(torch.randn(4, 16), dim=1)
    rows = torch.tensor([[0, 1, 2], [3, 3, 3]])
    dense = text[2].view(1, 16, 1, 1).expand(1, 16, 2, 2)
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    out = CategoryProposal(make_cfg(), SHAPE)(dense, text[2][None], text, rows, valid)
    assert torch.equal(out.text[0, 0], text[2])
    torch.testing.assert_close(out.scores[0, 0], torch.tensor(2.0))


def test_many_names_are_ranked_in_chunks(make_cfg):
    torch.manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(5000, 16), dim=1)
    dense, pooled = torch.randn(1, 16, 2, 2), torch.randn(1, 16)
    proposal = CategoryProposal(make_cfg(), SHAPE)
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    out = proposal(dense, pooled, text, torch.arange(5000)[:, None], valid)
    unit = torch.nn.functional.normalize
    score = unit(pooled, dim=1) @ text.T
    score += torch.einsum("bdhw,nd->bnhw", unit(dense, dim=1), text).flatten(2).amax(2)
    assert set(out.ids[0].tolist()) == set(score[0].topk(4).indices.tolist())


def test_no_proposals_is_an_error(make_cfg):
    with pytest.raises(ValueError, match="NUM_PROPOSALS is 0"):
        build_model(make_cfg(opts={NODE + "PROPOSAL.NUM_PROPOSALS": 0}))


@pytest.mark.parametrize("name", ["CategoryProposal", "PooledProposal", "DenseProposal"])
def test_a_ranking_without_evidence_is_refused(make_cfg, name):
    """All scores would be 0, and the first names of the vocabulary proposed whatever the image."""
    opts = {NODE + "PROPOSAL." + key: 0.0 for key in ("POOLED_WEIGHT", "DENSE_WEIGHT")}
    with pytest.raises(ValueError, match=f"{name} has no evidence .*POOLED_WEIGHT"):
        CATEGORY_PROPOSAL_REGISTRY.get(name)(make_cfg(opts=opts), SHAPE)
    for free in ("AllCategories", "OracleProposal"):
        CATEGORY_PROPOSAL_REGISTRY.get(free)(make_cfg(opts=opts), SHAPE)


@pytest.mark.parametrize(("key", "value"), [("SHARPNESS", -1.0), ("NUM_POSITIONS", -1)])
def test_values_that_make_no_sense_are_refused(make_cfg, key, value):
    with pytest.raises(ValueError, match=f"PROPOSAL.{key} is {value}"):
        CategoryProposal(make_cfg(opts={f"{NODE}PROPOSAL.{key}": value}), SHAPE)
