"""The losses against formulas written out by hand, and the mapping from labels to proposals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcp_clip.modeling.losses import (
    SegmentationCriterion,
    labels_to_proposals,
    present_categories,
)
from dcp_clip.modeling.stages.stage5_class_refinement import MaskPooledRefinement
from dcp_clip.structures import Proposals, Refinement

LOSS = "MODEL.DCP_CLIP.LOSS."
WEIGHTS = {
    "CE_WEIGHT": 1.0,
    "DICE_WEIGHT": 1.0,
    "PRESENCE_WEIGHT": 1.0,
    "MASK_CLASS_WEIGHT": 1.0,
    "COARSE_WEIGHT": 1.0,
    "FINAL_WEIGHT": 1.0,
    "PROPOSAL_WEIGHT": 1.0,
}


@pytest.fixture
def criterion(make_cfg):
    def make(**options):
        weights = {LOSS + key: value for key, value in {**WEIGHTS, **options}.items()}
        return SegmentationCriterion(make_cfg(opts=weights))

    return make


def proposals(ids, valid=None):
    ids = torch.tensor(ids)
    valid = torch.ones_like(ids).bool() if valid is None else torch.tensor(valid)
    return Proposals(ids, torch.zeros(ids.shape), valid, torch.zeros(*ids.shape, 4), learned=True)


# ---- ids


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 255]), min_size=6, max_size=6),
    ids=st.permutations(range(5)),
    k=st.integers(1, 5),
    padded=st.integers(0, 2),
)
def test_labels_become_indices_of_the_proposals(labels, ids, k, padded):
    chosen = ids[:k]
    valid = [True] * max(k - padded, 1) + [False] * min(padded, k - 1)
    maps = labels_to_proposals(
        torch.tensor(labels).view(1, 2, 3), proposals([chosen], [valid]), num_categories=5
    )
    real = [c for c, v in zip(chosen, valid, strict=True) if v]
    expected = [real.index(x) if x in real else -1 for x in labels]
    assert maps.flatten().tolist() == expected
    present = present_categories(torch.tensor(labels).view(1, 2, 3), 5)
    assert {*present[0].nonzero()[:, 0].tolist()} == {x for x in labels if 0 <= x < 5}


def test_each_image_has_its_own_proposals():
    labels = torch.tensor([[[3, 1]], [[3, 1]]])
    mapped = labels_to_proposals(labels, proposals([[1, 3], [3, 0]]), 4)
    assert mapped.tolist() == [[[1, 0]], [[0, -1]]]


# ---- cross-entropy and dice


def test_cross_entropy_by_hand(criterion):
    # Two pixels count (categories 2 and 0, which are the proposals 1 and 0), one is void,
    # one is of a category that is not proposed.
    logits = torch.tensor([[[1.0, 0.0, 9.0, 9.0]], [[0.0, 2.0, -9.0, 5.0]]])[None]
    labels = torch.tensor([[[2, 0, 255, 1]]])
    losses = criterion()({"fine": logits}, None, proposals([[0, 2]]), labels, 3)
    expected = (math.log(1 + math.e) + math.log(1 + math.e**2)) / 2
    assert float(losses["loss_fine_ce"]) == pytest.approx(expected, rel=1e-5)
    assert set(losses) == {"loss_fine_ce", "loss_fine_dice", "loss_proposal"}


def test_dice_by_hand(criterion):
    p = 0.75  # of the first map, at every pixel
    logits = torch.tensor([math.log(p / (1 - p)), 0.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    labels = torch.tensor([[[0, 0, 1, 255]]])
    loss = criterion()({"fine": logits}, None, proposals([[0, 1]]), labels, 2)["loss_fine_dice"]
    first = 1 - (2 * 2 * p + 1) / (3 * p + 2 + 1)
    second = 1 - (2 * (1 - p) + 1) / (3 * (1 - p) + 1 + 1)
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-5)


def test_dice_is_averaged_over_the_categories_present(criterion):
    """A proposal without pixels has no dice loss; the cross-entropy handles it."""
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, 4, 4).long()
    loss = criterion()({"fine": logits}, None, proposals([[0, 1, 2]]), labels, 3)
    probability = logits.softmax(1)[0, 0].sum()
    expected = 1 - (2 * probability + 1) / (probability + 16 + 1)
    assert float(loss["loss_fine_dice"]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("balance", [0.0, 0.3])
def test_losses_and_gradients_are_those_of_the_plain_formulas(criterion, balance):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 7, generator=generator).requires_grad_()
    labels = torch.randint(-1, 6, (2, 6, 7), generator=generator)
    valid = [[True] * 4, [True, True, True, False]]
    chosen = proposals([[0, 1, 3, 4], [1, 2, 5, 0]], valid)
    losses = criterion(CLASS_BALANCE=balance)({"fine": logits}, None, chosen, labels, 6)
    target = labels_to_proposals(labels, chosen, 6)
    known = target >= 0
    frequency = torch.bincount(labels[known], minlength=6) / known.sum()
    weight = (frequency[labels.clamp(min=0)] ** -balance).where(known, torch.tensor(0.0))
    masked = logits.masked_fill(~chosen.valid[..., None, None], -1e4)
    ce = F.cross_entropy(masked, target, ignore_index=-1, reduction="none")
    ce = (ce * weight).sum() / weight.sum()
    p = masked.softmax(1) * known[:, None]
    truth = F.one_hot(target.clamp(min=0), 4).permute(0, 3, 1, 2) * known[:, None]
    dice = 1 - (2 * (p * truth).sum((2, 3)) + 1) / ((p + truth).sum((2, 3)) + 1)
    plain = ce, dice[truth.flatten(2).any(2)].mean()
    for name, expected in zip(("ce", "dice"), plain, strict=True):
        torch.testing.assert_close(losses[f"loss_fine_{name}"], expected)
        got = torch.autograd.grad(losses[f"loss_fine_{name}"], logits, retain_graph=True)[0]
        torch.testing.assert_close(got, torch.autograd.grad(expected, logits, retain_graph=True)[0])
        assert not got.masked_select(~known[:, None]).any()


def test_perfect_logits_have_no_loss(criterion):
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = 50.0 * F.one_hot(labels, 3).permute(0, 3, 1, 2)
    losses = criterion()({"coarse": logits}, None, proposals([[0, 1, 2]] * 2), labels, 3)
    assert all(float(v) == pytest.approx(0, abs=1e-6) for v in losses.values())


def test_padded_proposals_have_no_effect(criterion):
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (1, 4, 4))
    logits = torch.randn(1, 2, 4, 4)
    expected = criterion()({"fine": logits}, None, proposals([[0, 1]]), labels, 5)
    logits = torch.cat([logits, torch.full((1, 1, 4, 4), 30.0)], 1)
    padded = proposals([[0, 1, 4]], [[True, True, False]])
    for name, value in criterion()({"fine": logits}, None, padded, labels, 5).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_logits_and_labels_are_compared_at_the_stride_of_the_logits(criterion, stride):
    """Labels are sampled in the middle of each stride."""
    labels = torch.full((1, 2 * stride, 2 * stride), 255)
    middle = stride // 2
    labels[:, middle::stride, middle::stride] = torch.tensor([[0, 1], [1, 0]])
    logits = 50.0 * F.one_hot(torch.tensor([[[0, 1], [1, 0]]]), 2).permute(0, 3, 1, 2)
    coarse = torch.zeros(1, 2, 1, 1)
    maps = {"coarse": coarse, "fine": logits}
    losses = criterion()(maps, None, proposals([[0, 1]]), labels, 2)
    assert float(losses["loss_fine_ce"]) == pytest.approx(0, abs=1e-6)


def test_coarser_logits_are_resized_to_stride_4(criterion):
    labels = torch.full((1, 16, 16), 255)
    labels[:, 2::4, 2::4] = torch.arange(4) // 2
    logits = torch.tensor([[[[-30.0, 30.0]] * 2, [[30.0, -30.0]] * 2]])
    maps = {"fine": -logits}
    losses = criterion()(maps, None, proposals([[0, 1]]), labels, 2)
    resized = F.interpolate(-logits, (4, 4), mode="bilinear").log_softmax(1)
    expected = -resized.gather(1, (torch.arange(4) // 2).expand(1, 1, 4, 4)).mean()
    torch.testing.assert_close(losses["loss_fine_ce"], expected)


def test_each_loss_is_multiplied_by_its_weights(criterion):
    torch.manual_seed(0)
    maps = {name: torch.randn(1, 2, 4, 4) for name in ("coarse", "fine", "final")}
    refinement = Refinement(torch.randn(1, 2), torch.randn(1, 2, 2))
    labels = torch.randint(0, 2, (1, 4, 4))
    arguments = (maps, refinement, proposals([[0, 1]]), labels, 2)
    base = criterion()(*arguments)
    weighted = criterion(
        CE_WEIGHT=2.0,
        DICE_WEIGHT=3.0,
        PRESENCE_WEIGHT=5.0,
        MASK_CLASS_WEIGHT=7.0,
        COARSE_WEIGHT=0.5,
        FINAL_WEIGHT=0.25,
        PROPOSAL_WEIGHT=2.0,
    )(*arguments)
    factors = {
        "loss_proposal": 2.0,
        "loss_coarse_ce": 1.0,
        "loss_coarse_dice": 1.5,
        "loss_fine_ce": 2.0,
        "loss_fine_dice": 3.0,
        "loss_final_ce": 0.5,
        "loss_final_dice": 0.75,
        "loss_presence": 5.0,
        "loss_mask_class": 7.0,
    }
    assert base.keys() == weighted.keys() == factors.keys()
    for name, factor in factors.items():
        torch.testing.assert_close(weighted[name], factor * base[name])


def test_the_ranking_loss_by_hand(criterion):
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.9], [0.5, 0.4, 0.3, 0.2]], requires_grad=True)
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]])
    valid = torch.tensor([[True, True, True, False], [True, True, True, True]])
    ranked = Proposals(ids, scores, valid, torch.zeros(2, 4, 4), learned=True)
    # The first image has the categories 0 and 2 and one padded proposal; the second has no labels.
    labels = torch.tensor([[[0, 2]], [[255, 255]]])
    make = criterion()
    maps = {"fine": torch.zeros(2, 4, 1, 2)}
    loss = make(maps, None, ranked, labels, 5)["loss_proposal"]
    wins = [math.log1p(math.exp(make.scale * (0.1 - own))) for own in (0.3, 0.2)]
    assert float(loss.detach()) == pytest.approx(sum(wins) / 2, rel=1e-5)
    loss.backward()
    assert scores.grad[0, 0] < 0 and scores.grad[0, 2] < 0 < scores.grad[0, 1]
    assert scores.grad[0, 3] == 0 and (scores.grad[1] == 0).all()


@pytest.mark.parametrize("balance", [0.3, 1.0])
def test_class_balance_is_a_weighted_mean(criterion, balance):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4)
    labels = torch.tensor([0] * 24 + [2] * 6 + [255] * 2).view(2, 4, 4)
    maps, chosen = {"fine": logits}, proposals([[0, 1, 2]] * 2)
    loss = criterion(CLASS_BALANCE=balance)(maps, None, chosen, labels, 3)["loss_fine_ce"]
    class_weight = torch.tensor([0.8**-balance, 1.0, 0.2**-balance])
    expected = F.cross_entropy(logits, labels, class_weight, ignore_index=255)
    torch.testing.assert_close(loss, expected)
    plain = criterion(CLASS_BALANCE=0.0)(maps, None, chosen, labels, 3)["loss_fine_ce"]
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels, ignore_index=255))


# ---- stage 5's losses


def test_presence_and_mask_classification_by_hand(criterion):
    class_logits = torch.tensor([[2.0, -1.0, 0.5, 7.0]])
    mask_logits = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    mask_logits[..., 3] = float("-inf")
    labels = torch.tensor([[[4, 2, 255, 4]]])
    chosen = proposals([[2, 3, 4, 0]], [[True, True, True, False]])
    losses = criterion()(
        {"fine": torch.randn(1, 4, 1, 4)}, Refinement(class_logits, mask_logits), chosen, labels, 5
    )
    target = torch.tensor([1.0, 0.0, 1.0])  # the categories 2, 3 and 4
    expected = F.binary_cross_entropy_with_logits(class_logits[0, :3], target)
    torch.testing.assert_close(losses["loss_presence"], expected)
    expected = F.cross_entropy(mask_logits[0, [0, 2]], torch.tensor([0, 2]))
    torch.testing.assert_close(losses["loss_mask_class"], expected)


@pytest.mark.parametrize("learned", [False, True])
def test_padded_proposals_give_finite_losses_of_stage_5(criterion, make_cfg, learned):
    cfg = make_cfg(opts={"MODEL.DCP_CLIP.CLASS_REFINEMENT.LEARNED": learned})
    torch.manual_seed(0)
    stage = MaskPooledRefinement(cfg, {})
    fine, dense = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(1, 6, 2, 2)
    text = F.normalize(torch.randn(1, 3, 6), dim=2)
    valid = torch.tensor([[True, True, False]])
    out = stage(fine, dense, text, torch.zeros(1, 3), torch.ones(1, 2, 2).bool(), valid)
    chosen = proposals([[1, 0, 2]], valid.tolist())
    labels = torch.randint(0, 2, (1, 8, 8))
    losses = criterion()({"fine": fine}, out, chosen, labels, 3)
    assert all(v.isfinite() for v in losses.values()), losses
    sum(losses.values()).backward()
    assert fine.grad.isfinite().all() and (fine.grad[:, 2] == 0).all()


def test_masks_that_fit_their_category_are_present(make_cfg):
    """The dense features of the two halves of an image are the text features of two categories."""
    cfg = make_cfg(opts={"MODEL.DCP_CLIP.CLASS_REFINEMENT.LEARNED": False})
    text = torch.eye(4)[None, :3]
    dense = torch.zeros(1, 4, 4, 4)
    dense[:, 0, :, :2], dense[:, 1, :, 2:] = 1, 1
    fine = torch.full((1, 3, 16, 16), -9.0)
    fine[:, 0, :, :8], fine[:, 1, :, 8:] = 9, 9
    arguments = (torch.zeros(1, 3), torch.ones(1, 4, 4).bool(), torch.ones(1, 3).bool())
    out = MaskPooledRefinement(cfg, {})(fine, dense, text, *arguments)
    present = out.class_logits.sigmoid()[0]
    assert present[:2].min() > 0.45 and present[2] < 0.01
    assert out.mask_logits[0].argmax(1)[:2].tolist() == [0, 1]
    swapped = MaskPooledRefinement(cfg, {})(fine, dense, text[:, [1, 0, 2]], *arguments)
    assert swapped.class_logits[0, :2].max() < -10
