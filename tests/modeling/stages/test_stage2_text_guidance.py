"""Stage 2: how the text features of the proposals are adapted to an image."""

import torch
from detectron2.layers import ShapeSpec
from torch.nn.functional import normalize

from dcp_clip.modeling.stages.stage2_text_guidance import ImageConditionedGuidance, StaticGuidance


def arguments():
    torch.manual_seed(0)
    text_features, dense = normalize(torch.randn(2, 3, 16), dim=2), torch.randn(2, 16, 4, 5)
    similarity = torch.einsum("bkd,bdhw->bkhw", text_features, normalize(dense, dim=1))
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[1, 2:] = False
    return text_features, dense, similarity, valid


def test_static_guidance_returns_the_text_features(make_cfg):
    stage = StaticGuidance(make_cfg(), {"dense": ShapeSpec(channels=16)})
    text_features, *rest = arguments()
    assert stage(text_features, *rest) is text_features and stage.out_channels == 16


def test_guidance_ignores_padding(randomize):
    stage = ImageConditionedGuidance(embed_dim=16, dim=8, num_heads=2, scale=20.0)
    randomize(stage, std=0.5)
    text_features, dense, similarity, valid = arguments()
    out = stage(text_features, dense, similarity, valid)
    assert out.shape == (2, 3, stage.out_channels)
    noise = torch.randn_like(dense).where(~valid[:, None], dense)
    other = torch.randn_like(similarity).where(~valid[:, None], similarity)
    torch.testing.assert_close(stage(text_features, noise, other, valid), out)
    changed = stage(text_features, dense.roll(1, dims=1), similarity, valid)
    assert (changed - out).abs().max() > 1e-3


def test_an_untrained_stage_uses_the_similarity_but_not_the_image():
    stage = ImageConditionedGuidance(embed_dim=16, dim=8, num_heads=2, scale=20.0)
    text_features, dense, similarity, valid = arguments()
    out = stage(text_features, dense, similarity, valid)
    assert torch.equal(stage(text_features, dense.flip(1), similarity, valid), out)
    assert not torch.allclose(stage(text_features, dense, -similarity, valid), out)
