"""The dense features of convolutional towers are the projection of each position."""

import pytest
import torch

from dcp_clip.config import setup_cfg
from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.loading import load_clip


@torch.no_grad()
def test_the_average_of_dense_is_pooled_if_the_projection_is_linear(make_backbone):
    backbone = make_backbone("dcp-tiny-cnn")
    out = backbone(torch.randn(2, 3, 96, 64))
    torch.testing.assert_close(out["dense"].mean((2, 3)), out["pooled"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("clip", ["test-convnext", "test-convnext-mlp", "dcp-tiny-cnn"])
def test_dense_on_a_grid_of_one_position_is_pooled(make_backbone, clip):
    out = make_backbone(clip)(torch.randn(2, 3, 32, 32))
    assert out["dense"].shape[-2:] == (1, 1)
    torch.testing.assert_close(out["dense"][:, :, 0, 0], out["pooled"], rtol=1e-5, atol=1e-5)


def test_a_tower_that_ends_at_stride_16():
    """The last two stages of the small tower have the same grid; levels are named by stride."""
    backbone = CLIPBackbone(setup_cfg(opts=["MODEL.CLIP.NAME", "dcp-tiny-cnn-s16"]), None).eval()
    shapes = backbone.output_shape()
    assert {key: shape.stride for key, shape in shapes.items() if shape.stride} == {
        "res2": 4,
        "res3": 8,
        "res4": 16,
        "dense": 16,
        "image": 1,
    }
    with torch.no_grad():
        out = backbone(torch.randn(1, 3, 64, 96))
    for key, shape in shapes.items():
        assert out[key].shape[1] == shape.channels
        if shape.stride:
            assert out[key].shape[-2:] == (64 // shape.stride, 96 // shape.stride)
    torch.testing.assert_close(out["dense"].mean((2, 3)), out["pooled"], atol=1e-5, rtol=1e-4)


def test_towers_with_another_pooling_are_refused(make_cfg):
    visual = load_clip(make_cfg("test-convnext")).visual
    visual.trunk.head.global_pool = None
    with pytest.raises(ValueError, match="averages its last"):
        CLIPBackbone(visual=visual, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
