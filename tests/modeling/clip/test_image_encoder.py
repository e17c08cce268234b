"""CLIPBackbone: agreement with open_clip, the shapes of its outputs, and frozen towers."""

import open_clip
import pytest
import torch
from detectron2.modeling import build_backbone
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.loading import clip_pixel_stats, load_clip

CLIPS = [
    "test-convnext",
    "test-convnext-mlp",
    "dcp-tiny-cnn",
    "test-vit-16",
    "test-vit-14-quickgelu",
]
FEW = settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])


@torch.no_grad()
@pytest.mark.parametrize("clip", CLIPS)
def test_pooled_is_encode_image(make_cfg, randomize, native_images, clip):
    model = randomize(load_clip(make_cfg(clip)))
    mean, std = clip_pixel_stats(model)
    backbone = CLIPBackbone(visual=model.visual, pixel_mean=mean, pixel_std=std).eval()
    images = native_images(backbone)
    expected = model.encode_image(images)
    assert expected.std() > 1e-2  # the comparison would be useless for a constant
    torch.testing.assert_close(backbone(images)["pooled"], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pixel_statistics_are_those_of_open_clip(make_cfg):
    mean, std = clip_pixel_stats(load_clip(make_cfg("test-vit-16")))
    assert mean == pytest.approx([255 * x for x in open_clip.OPENAI_DATASET_MEAN])
    assert std == pytest.approx([255 * x for x in open_clip.OPENAI_DATASET_STD])


@pytest.mark.parametrize("clip", CLIPS)
@FEW
@given(data=st.data())
def test_output_shape_agrees_with_the_tensors(make_backbone, clip, data):
    backbone = make_backbone(clip)
    cells = st.integers(1, 5)
    height, width = (data.draw(cells) * backbone.size_divisibility for _ in range(2))
    with torch.no_grad():
        out = backbone(torch.randn(1, 3, height, width))
    shapes = backbone.output_shape()
    assert set(shapes) == set(out)
    assert {"res2", "res3", "res4", "dense", "pooled"} <= set(shapes)
    assert out["pooled"].shape == (1, shapes["pooled"].channels) == (1, backbone.embed_dim)
    for key, shape in shapes.items():
        if key != "pooled":
            size = (height // shape.stride, width // shape.stride)
            assert out[key].shape == (1, shape.channels, *size), key


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-14-quickgelu"])
def test_sizes_that_are_not_divisible_are_refused(make_backbone, clip):
    with pytest.raises(ValueError, match="45 x 70 pixels"):
        make_backbone(clip)(torch.zeros(1, 3, 45, 70))


def test_unknown_attentions_are_refused(make_cfg):
    with pytest.raises(ValueError, match="MODEL.CLIP.DENSE is 'keys'"):
        build_backbone(make_cfg("test-vit-16", {"MODEL.CLIP.DENSE": "keys"}))


@torch.no_grad()
@pytest.mark.parametrize("clip", CLIPS)
def test_a_frozen_tower_is_the_same_in_training(make_model, native_images, clip):
    """It has no stochastic depth, and its batch statistics do not change."""
    model = make_model(clip)
    images = native_images(model.backbone, batch=3)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    expected = model.backbone(images)
    model.train()
    torch.manual_seed(3)
    for key, value in model.backbone(images).items():
        # Attention has a faster path in evaluation mode, with other last bits.
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=f"{clip}: {key}")
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed in training"
