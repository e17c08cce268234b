"""Stage 5: the presence of categories from mask-pooled features, and their reassignment."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.modeling.stages.stage5_class_refinement import (
    MaskPooledRefinement,
    ReassignmentRefinement,
)
from dcp_clip.structures import Refinement


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def refine(fine, dense, text, **options):
    options = {"scale": 100.0, "hidden_dim": 4, "learned": False} | options
    stage = MaskPooledRefinement(**options)
    b, k = fine.shape[:2]
    valid = torch.ones(b, *dense.shape[-2:]).bool()
    return stage(fine, dense, text, torch.zeros(b, k), valid, torch.ones(b, k).bool())


@pytest.mark.parametrize("weight", [0.5, 1.0, 4.0])
def test_presence_is_the_probability_of_the_mask(weight):
    fine, text = unit(1, 3, 8, 8) * 40, unit(1, 3, 6, seed=1)
    dense = unit(1, 6, 8, 8, seed=2)
    out = refine(fine, dense, text, scale=5.0, weight=weight)
    shares = fine.softmax(1)[0].flatten(1)
    vectors = F.normalize(dense, dim=1)[0].flatten(1).T
    for k in range(3):
        pooled = F.normalize((shares[k][:, None] * vectors).sum(0), dim=0)
        log_p = (5 * text[0] @ pooled).log_softmax(0)[k]
        torch.testing.assert_close(
            F.logsigmoid(out.class_logits[0, k]), weight * log_p, rtol=1e-4, atol=1e-5
        )


def test_a_single_category_is_certainly_present():
    out = refine(unit(1, 1, 8, 8), unit(1, 6, 4, 4), unit(1, 1, 6))
    assert out.class_logits.isfinite().all()
    assert F.logsigmoid(out.class_logits).abs().max() < 1e-5


def test_a_category_without_pixels_has_finite_logits():
    """With scale 100 the softmax of the masks underflows to zero."""
    fine = torch.tensor([0.0, -300.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    out = refine(fine, unit(1, 6, 4, 4), unit(1, 2, 6))
    assert out.class_logits.isfinite().all()


def test_soft_masks_reject_categories_that_only_noise_supports():
    """Two categories are present; 30 others win single positions because of noise.

    Hard masks confirm any category. Softer masks include the true categories around them.
    """
    text = F.normalize(0.7 * unit(1, 32, 64) + unit(64, seed=1), dim=2)
    labels = torch.zeros(16, 16, dtype=torch.long)
    labels[:, 8:] = 1
    dense = text[0, labels].permute(2, 0, 1)[None] + 1.2 * unit(1, 16, 16, 64).permute(0, 3, 1, 2)
    fine = 100 * torch.einsum("bkd,bdhw->bkhw", text, F.normalize(dense, dim=1))
    errors = {None: (fine[0].argmax(0) != labels).float().mean()}
    absent = {}
    for temperature in (1.0, 10.0):
        out = refine(fine, dense, text, temperature=temperature)
        presence = F.logsigmoid(out.class_logits)
        assert presence[0, :2].min() > -1
        absent[temperature] = presence[0, 2:].mean()
        wrong = (fine + presence[..., None, None])[0].argmax(0) != labels
        errors[temperature] = wrong.float().mean()
    assert errors[None] > 0.1, errors
    assert errors[10.0] < 0.9 * errors[None] and errors[1.0] <= errors[None], errors
    assert absent[10.0] < absent[1.0] - 1, absent


def test_zero_weight_and_zero_temperature_are_refused():
    with pytest.raises(ValueError, match="WEIGHT is 0.*NoRefinement"):
        refine(None, None, None, weight=0.0)
    with pytest.raises(ValueError, match="MASK_TEMPERATURE is 0"):
        refine(None, None, None, temperature=0.0)


def test_autocast_does_not_change_the_result():
    """The features outside of a mask that fills the image are a sum of tiny values."""
    text, dense = unit(1, 4, 64), unit(1, 5, 6, 64).permute(0, 3, 1, 2)
    fine = torch.zeros(1, 4, 20, 24)
    fine[:, 0] = 12
    exact = refine(fine, dense, text, learned=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = refine(fine, dense, text, learned=True)
    assert torch.equal(exact.class_logits, half.class_logits)
    assert torch.equal(exact.mask_logits, half.mask_logits)


def reassign(fine, dense, text, mask=None, scale=20.0):
    torch.manual_seed(0)
    stage = ReassignmentRefinement(scale=scale, hidden_dim=4, learned=True)
    b, k = fine.shape[:2]
    mask = torch.ones(b, k).bool() if mask is None else mask
    valid = torch.ones(b, *dense.shape[-2:]).bool()
    refinement = stage(fine, dense, text, torch.zeros(b, k), valid, mask)
    return stage, refinement, refinement.apply(fine, mask)


def test_the_pieces_of_an_object_get_the_same_category():
    """A part of the object's pixels look like another category, but the pooled CLIP features of
    both pieces are those of the object's category."""
    text = torch.eye(4)[None, :3]
    dense = torch.zeros(1, 4, 4, 4)
    dense[:, 2] = 1  # background
    dense[:, :, 1:3, 1:3] = torch.tensor([1.0, 0.3, 0.0, 0.0])[:, None, None]
    labels = torch.full((16, 16), 2)
    labels[4:12, 4:12] = 0
    looks = labels.clone()
    looks[4:12, 9:12] = 1  # what the pixels look like
    fine = 4.0 * F.one_hot(looks, 3).permute(2, 0, 1)[None].float()
    stage, refinement, final = reassign(fine, dense, text)
    assert (fine[0].argmax(0) != labels).any() and (final[0].argmax(0) == labels).all()
    torch.testing.assert_close(refinement.reassignment.sum(2), torch.ones(1, 3))
    # With a very large bonus every mask keeps its own category.
    with torch.no_grad():
        stage.classifier[2].bias[1] = 1e4
    arguments = (torch.zeros(1, 3), torch.ones(1, 4, 4).bool(), torch.ones(1, 3).bool())
    kept = stage(fine, dense, text, *arguments).apply(fine, arguments[2])
    assert torch.equal(kept[0].argmax(0), looks)


def test_padded_proposals_take_no_part_in_the_reassignment():
    """They do not change the other logits, and no area is assigned to them."""
    fine, text, dense = unit(1, 4, 8, 8) * 40, unit(1, 4, 6), unit(1, 6, 4, 4, seed=2)
    mask = torch.tensor([[True, True, True, False]])
    _, padded, final = reassign(fine, dense, text, mask)
    _, _, alone = reassign(fine[:, :3], dense, text[:, :3])
    torch.testing.assert_close(final[:, :3], alone)
    assert padded.reassignment[:, :3, 3].max() == 0


def test_reassignment_has_gradients():
    fine = (unit(1, 3, 8, 8) * 10).requires_grad_()
    stage, refinement, final = reassign(fine, unit(1, 6, 4, 4, seed=2), unit(1, 3, 6))
    final.log_softmax(1)[:, 0].mean().backward()
    assert fine.grad.isfinite().all() and fine.grad.abs().max() > 0
    assert stage.classifier[2].bias.grad[1] != 0 and stage.scale.grad != 0


def test_reassignment_without_learning_is_refused():
    with pytest.raises(ValueError, match="LEARNED is False.*MaskPooledRefinement"):
        ReassignmentRefinement(scale=1.0, hidden_dim=4, learned=False)


def test_without_reassignment_only_the_presence_is_applied():
    fine, logits = unit(1, 2, 4, 4), torch.tensor([[3.0, -2.0]])
    final = Refinement(logits, torch.zeros(1, 2, 2)).apply(fine, torch.ones(1, 2).bool())
    torch.testing.assert_close(final, fine + F.logsigmoid(logits)[..., None, None])
