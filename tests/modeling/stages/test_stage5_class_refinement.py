"""Stage 5: a mask's probability by CLIP, in log space, finite in every case; and renaming."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.modeling.stages.stage5_class_refinement import (
    MaskPooledRefinement,
    ReassignmentRefinement,
    Refinement,
)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def refine(fine, dense, text, **options):
    options = {"scale": 100.0, "hidden_dim": 4, "learned": False} | options
    stage = MaskPooledRefinement(**options)
    b, k = fine.shape[:2]
    valid = torch.ones(b, *dense.shape[-2:]).bool()
    return stage(fine, dense, text, torch.zeros(b, k), valid, torch.ones(b, k).bool())


@pytest.mark.parametrize("weight", [0.5, 1.0, 4.0])
def test_presence_is_the_masks_probability(weight):
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


def test_a_lone_name_is_certain_and_finite():
    out = refine(unit(1, 1, 8, 8), unit(1, 6, 4, 4), unit(1, 1, 6))
    assert out.class_logits.isfinite().all()
    assert F.logsigmoid(out.class_logits).abs().max() < 1e-5


def test_a_name_that_no_pixel_has_stays_finite():
    """Cosines at scale 100 make shares underflow to nothing."""
    fine = torch.tensor([0.0, -300.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    out = refine(fine, unit(1, 6, 4, 4), unit(1, 2, 6))
    assert out.class_logits.isfinite().all()


def test_soft_masks_vote_out_what_only_noise_proposed():
    """Two names are there, 30 others win positions here and there, by noise on the features.

    Hard masks confirm whatever made them; softer ones see the true names around the intruders.
    """
    text = F.normalize(0.7 * unit(1, 32, 64) + unit(64, seed=1), dim=2)
    labels = torch.zeros(16, 16, dtype=torch.long)
    labels[:, 8:] = 1
    dense = text[0, labels].permute(2, 0, 1)[None] + 1.2 * unit(1, 16, 16, 64).permute(0, 3, 1, 2)
    fine = 100 * torch.einsum("bkd,bdhw->bkhw", text, F.normalize(dense, dim=1))
    errors = {None: (fine[0].argmax(0) != labels).float().mean()}
    intruders = {}
    for temperature in (1.0, 10.0):
        out = refine(fine, dense, text, temperature=temperature)
        presence = F.logsigmoid(out.class_logits)
        assert presence[0, :2].min() > -1
        intruders[temperature] = presence[0, 2:].mean()
        wrong = (fine + presence[..., None, None])[0].argmax(0) != labels
        errors[temperature] = wrong.float().mean()
    assert errors[None] > 0.1, errors
    assert errors[10.0] < 0.9 * errors[None] and errors[1.0] <= errors[None], errors
    assert intruders[10.0] < intruders[1.0] - 1, intruders


def test_a_weight_or_temperature_of_nothing_is_refused():
    with pytest.raises(ValueError, match="WEIGHT is 0.*NoRefinement"):
        refine(None, None, None, weight=0.0)
    with pytest.raises(ValueError, match="MASK_TEMPERATURE is 0"):
        refine(None, None, None, temperature=0.0)


def test_half_precision_around_it_changes_nothing():
    """The outside of a mask that fills the image is a difference of nearly equal sums."""
    text, dense = unit(1, 4, 64), unit(1, 5, 6, 64).permute(0, 3, 1, 2)
    fine = torch.zeros(1, 4, 20, 24)
    fine[:, 0] = 12
    exact = refine(fine, dense, text, learned=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = refine(fine, dense, text, learned=True)
    assert torch.equal(exact.class_logits, half.class_logits)
    assert torch.equal(exact.mask_logits, half.mask_logits)


def rename(fine, dense, text, mask=None, scale=20.0):
    torch.manual_seed(0)
    stage = ReassignmentRefinement(scale=scale, hidden_dim=4, learned=True)
    b, k = fine.shape[:2]
    mask = torch.ones(b, k).bool() if mask is None else mask
    valid = torch.ones(b, *dense.shape[-2:]).bool()
    refinement = stage(fine, dense, text, torch.zeros(b, k), valid, mask)
    return stage, refinement, refinement.apply(fine, mask)


def test_the_pieces_of_a_thing_agree_on_a_name():
    """A third of a thing's pixels look like another name; CLIP's features under both pieces, on
    its coarse grid, say what it is."""
    text = torch.eye(4)[None, :3]
    dense = torch.zeros(1, 4, 4, 4)
    dense[:, 2] = 1  # background
    dense[:, :, 1:3, 1:3] = torch.tensor([1.0, 0.3, 0.0, 0.0])[:, None, None]
    labels = torch.full((16, 16), 2)
    labels[4:12, 4:12] = 0
    looks = labels.clone()
    looks[4:12, 9:12] = 1  # what the pixels look like
    fine = 4.0 * F.one_hot(looks, 3).permute(2, 0, 1)[None].float()
    stage, refinement, final = rename(fine, dense, text)
    assert (fine[0].argmax(0) != labels).any() and (final[0].argmax(0) == labels).all()
    torch.testing.assert_close(refinement.names.sum(2), torch.ones(1, 3))
    # With a head start that nothing catches up with, every mask keeps its name.
    with torch.no_grad():
        stage.judge[2].bias[1] = 1e4
    arguments = (torch.zeros(1, 3), torch.ones(1, 4, 4).bool(), torch.ones(1, 3).bool())
    kept = stage(fine, dense, text, *arguments).apply(fine, arguments[2])
    assert torch.equal(kept[0].argmax(0), looks)


def test_renaming_leaves_padded_proposals_out():
    """They change nothing, and no mask takes their name."""
    fine, text, dense = unit(1, 4, 8, 8) * 40, unit(1, 4, 6), unit(1, 6, 4, 4, seed=2)
    mask = torch.tensor([[True, True, True, False]])
    _, padded, final = rename(fine, dense, text, mask)
    _, _, alone = rename(fine[:, :3], dense, text[:, :3])
    torch.testing.assert_close(final[:, :3], alone)
    assert padded.names[:, :3, 3].max() == 0


def test_renaming_trains_what_it_reads():
    fine = (unit(1, 3, 8, 8) * 10).requires_grad_()
    stage, refinement, final = rename(fine, unit(1, 6, 4, 4, seed=2), unit(1, 3, 6))
    final.log_softmax(1)[:, 0].mean().backward()
    assert fine.grad.isfinite().all() and fine.grad.abs().max() > 0
    assert stage.judge[2].bias.grad[1] != 0 and stage.scale.grad != 0


def test_renaming_with_nothing_learned_is_refused():
    with pytest.raises(ValueError, match="LEARNED is False.*MaskPooledRefinement"):
        ReassignmentRefinement(scale=1.0, hidden_dim=4, learned=False)


def test_without_names_presence_alone_is_applied():
    fine, logits = unit(1, 2, 4, 4), torch.tensor([[3.0, -2.0]])
    final = Refinement(logits, torch.zeros(1, 2, 2)).apply(fine, torch.ones(1, 2).bool())
    torch.testing.assert_close(final, fine + F.logsigmoid(logits)[..., None, None])
