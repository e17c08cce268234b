"""Stage 3: the interaction of image and text features."""

import pytest
import torch
from torch.nn.functional import normalize

from dcp_clip.modeling.stages.stage3_coarse_decoder import DualInteractionDecoder, most_probable

DIRECTIONS = [(True, True), (True, False), (False, True)]


def make_decoder(image_to_text=True, text_to_image=True):
    torch.manual_seed(0)
    return DualInteractionDecoder(
        embed_dim=16,
        guidance_dim=12,
        dim=8,
        num_heads=2,
        num_layers=2,
        scale=20.0,
        image_to_text=image_to_text,
        text_to_image=text_to_image,
    )


def arguments():
    torch.manual_seed(1)
    dense, guidance = torch.randn(2, 16, 4, 5), torch.randn(2, 3, 12)
    text_features = normalize(torch.randn(2, 3, 16), dim=2)
    similarity = torch.einsum("bkd,bdhw->bkhw", text_features, normalize(dense, dim=1))
    pixel_valid, proposal_valid = torch.ones(2, 4, 5).bool(), torch.ones(2, 3).bool()
    pixel_valid[1, 2:], proposal_valid[1, 2:] = False, False
    return dense, guidance, similarity, pixel_valid, proposal_valid


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_an_untrained_decoder_gives_the_scaled_similarity(directions):
    dense, guidance, similarity, *valid = arguments()
    coarse, visual, text_features = make_decoder(*directions)(dense, guidance, similarity, *valid)
    torch.testing.assert_close(coarse, 20 * similarity)
    assert visual.shape == (2, 8, 4, 5) and text_features.shape == (2, 3, 8)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_padding_does_not_reach_other_positions_and_proposals(randomize, directions):
    decoder = randomize(make_decoder(*directions), std=0.5)
    dense, guidance, similarity, pixel_valid, proposal_valid = arguments()
    coarse, *_ = decoder(dense, guidance, similarity, pixel_valid, proposal_valid)
    dense = torch.randn_like(dense).where(~pixel_valid[:, None], dense)
    guidance = torch.randn_like(guidance).where(~proposal_valid[..., None], guidance)
    valid = pixel_valid[:, None] & proposal_valid[..., None, None]
    similarity = torch.randn_like(similarity).where(~valid, similarity)
    changed, *_ = decoder(dense, guidance, similarity, pixel_valid, proposal_valid)
    torch.testing.assert_close(changed[valid], coarse[valid], rtol=1e-4, atol=1e-4)


def test_without_a_direction_the_features_of_one_side_do_not_see_the_other():
    without_text_to_image = make_decoder(text_to_image=False)
    without_image_to_text = make_decoder(image_to_text=False)
    dense, guidance, *rest = arguments()
    _, visual, _ = without_text_to_image(dense, guidance, *rest)
    assert torch.equal(without_text_to_image(dense, guidance.flip(1), *rest)[1], visual)
    _, _, text_features = without_image_to_text(dense, guidance, *rest)
    assert torch.equal(without_image_to_text(dense.flip(1), guidance, *rest)[2], text_features)


# ---- the categories for the fine decoder


def coarse_logits():
    """One image of 1 x 3 positions: categories 1, 3 and 0 are the most probable of a position."""
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 9.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 5.0]]])
    return logits[:, :, None], torch.ones(1, 1, 3).bool(), torch.ones(1, 4).bool()


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (2, [1, 3]), (3, [0, 1, 3])])
def test_the_most_probable_categories_are_kept_in_order(count, expected):
    assert most_probable(*coarse_logits(), count).tolist() == [expected]


@pytest.mark.parametrize("count", [4, 5, 1000])
def test_a_large_number_keeps_every_category(count):
    assert most_probable(*coarse_logits(), count).tolist() == [[0, 1, 2, 3]]


def test_padding_chooses_no_category():
    logits, pixel_valid, proposal_valid = coarse_logits()
    pixel_valid[..., 1] = False
    assert most_probable(logits, pixel_valid, proposal_valid, 2).tolist() == [[0, 3]]
    proposal_valid[:, 3] = False
    logits[:, 3] = float("nan")
    assert most_probable(logits, pixel_valid, proposal_valid, 2).tolist() == [[0, 2]]


def test_a_large_logit_is_no_reason_if_others_are_larger_there():
    """A category needs a high probability; the level of a position does not matter."""
    logits, *valid = coarse_logits()
    shifted = logits + torch.tensor([0.0, 0.0, 50.0])
    assert torch.equal(most_probable(shifted, *valid, 2), most_probable(logits, *valid, 2))


def test_required_categories_are_chosen():
    required = torch.tensor([[False, False, True, False]])
    assert most_probable(*coarse_logits(), 2, required).tolist() == [[1, 2]]
    assert most_probable(*coarse_logits(), 1, ~required).tolist() == [[0, 1, 3]]
