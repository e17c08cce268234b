"""Stage 5 without learning: a mask's probability by CLIP, in log space, finite in every case."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.modeling.class_refinement import MaskPooledRefinement


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
