"""CLIPBackbone: parity with open_clip, shapes, and what a frozen tower must not do."""

import open_clip
import pytest
import torch
from detectron2.modeling import build_backbone
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcp_clip.config import setup_cfg
from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.loading import clip_pixel_stats, load_clip

CNNS = ["test-convnext", "test-convnext-mlp", "dcp-tiny-cnn"]
VITS = ["test-vit-16", "test-vit-14-quickgelu"]
FEW = settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])


@pytest.fixture(scope="session")
def make_backbone(make_cfg, randomize):
    def make(clip, opts=None):
        torch.manual_seed(0)
        return randomize(build_backbone(make_cfg(clip, opts))).eval()

    return make


def native_images(backbone, batch=2):
    size = backbone.visual.image_size
    size = size if isinstance(size, tuple) else (size, size)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("clip", CNNS + VITS)
def test_pooled_is_encode_image(make_cfg, randomize, clip):
    model = randomize(load_clip(make_cfg(clip)))
    mean, std = clip_pixel_stats(model)
    backbone = CLIPBackbone(visual=model.visual, pixel_mean=mean, pixel_std=std).eval()
    images = native_images(backbone)
    expected = model.encode_image(images)
    assert expected.std() > 1e-2  # or else the comparison says nothing
    torch.testing.assert_close(backbone(images)["pooled"], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("clip", VITS)
@pytest.mark.parametrize("dense", ["value", "tokens"])
def test_vit_pooled_at_other_sizes_is_that_of_a_resized_vit(make_backbone, clip, dense):
    """A ViT whose position table was resized by open_clip itself gives the same embedding."""
    backbone = make_backbone(clip, {"MODEL.CLIP.DENSE": dense})
    patch = backbone.size_divisibility
    images = torch.randn(2, 3, 3 * patch, 6 * patch)
    out = backbone(images)
    vit = backbone.visual
    table, native = vit.positional_embedding, vit.grid_size
    grid = table[1:].reshape(1, *native, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (3, 6), mode="bicubic", align_corners=False)
    vit.positional_embedding = torch.nn.Parameter(
        torch.cat([table[:1], grid.permute(0, 2, 3, 1).reshape(18, -1)])
    )
    torch.testing.assert_close(out["pooled"], vit(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pixel_statistics_are_those_of_open_clip(make_cfg):
    mean, std = clip_pixel_stats(load_clip(make_cfg("test-vit-16")))
    assert mean == pytest.approx([255 * x for x in open_clip.OPENAI_DATASET_MEAN])
    assert std == pytest.approx([255 * x for x in open_clip.OPENAI_DATASET_STD])


@torch.no_grad()
def test_average_of_dense_is_pooled_where_all_is_linear(make_backbone):
    backbone = make_backbone("dcp-tiny-cnn")
    out = backbone(torch.randn(2, 3, 96, 64))
    torch.testing.assert_close(out["dense"].mean((2, 3)), out["pooled"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("clip", CNNS)
def test_dense_of_a_one_position_grid_is_pooled(make_backbone, clip):
    backbone = make_backbone(clip)
    out = backbone(torch.randn(2, 3, 32, 32))
    assert out["dense"].shape[-2:] == (1, 1)
    torch.testing.assert_close(out["dense"][:, :, 0, 0], out["pooled"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("clip", VITS)
def test_value_path_is_attention_that_looks_at_itself_only(make_backbone, clip):
    """MaskCLIP's reading: the last attention with the identity as its attention matrix."""
    backbone = make_backbone(clip)
    patch, vit = backbone.size_divisibility, backbone.visual
    images = torch.randn(1, 3, 2 * patch, 3 * patch)
    captured = []
    block = vit.transformer.resblocks[-1]
    handle = block.register_forward_pre_hook(lambda _, x: captured.append(x[0]))
    dense = backbone(images)["dense"]
    handle.remove()
    x = block.ln_1(captured[0])
    only_itself = torch.full((x.shape[1], x.shape[1]), float("-inf")).fill_diagonal_(0)
    attended = block.attn(x, x, x, attn_mask=only_itself, need_weights=False)[0]
    expected = (vit.ln_post(attended) @ vit.proj)[:, 1:].mT.unflatten(2, (2, 3))
    torch.testing.assert_close(dense, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", CNNS + VITS)
@FEW
@given(data=st.data())
def test_output_shape_agrees_with_the_tensors(make_backbone, clip, data):
    options = {"MODEL.CLIP.RESAMPLE": data.draw(st.booleans())} if clip in VITS else {}
    backbone = make_backbone(clip, options)
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
            size = (-(-height // shape.stride), -(-width // shape.stride))
            assert out[key].shape == (1, shape.channels, *size), key


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-14-quickgelu"])
def test_sizes_that_do_not_divide_are_refused(make_backbone, clip):
    with pytest.raises(ValueError, match="45 x 70 pixels"):
        make_backbone(clip)(torch.zeros(1, 3, 45, 70))


def test_unknown_reading_is_refused(make_cfg):
    with pytest.raises(ValueError, match="MODEL.CLIP.DENSE is 'keys'"):
        build_backbone(make_cfg("test-vit-16", {"MODEL.CLIP.DENSE": "keys"}))


def test_other_towers_are_refused(make_cfg):
    with pytest.raises(ValueError, match="MODEL.CLIP.NAME|class token|averages"):
        CLIPBackbone(visual=torch.nn.Identity(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)


@torch.no_grad()
@pytest.mark.parametrize("clip", CNNS + VITS)
def test_a_frozen_tower_is_the_same_in_training(make_model, clip):
    """Neither stochastic depth nor batch statistics may touch what does not train."""
    model = make_model(clip)
    images = native_images(model.backbone, batch=3)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    expected = model.backbone(images)
    model.train()
    torch.manual_seed(3)
    for key, value in model.backbone(images).items():
        # Attention has a faster path in eval mode, with other last bits.
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=f"{clip}: {key}")
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed in training"


def test_resampling_and_projecting_commute(make_model, make_image, segment):
    """MODEL.CLIP.RESAMPLE is about cost, not about the answer."""
    image = make_image(48, 80)
    plain, resampled = (
        segment(make_model("test-vit-16", {"MODEL.CLIP.RESAMPLE": flag}), image)["sem_seg"].logits
        for flag in (False, True)
    )
    torch.testing.assert_close(plain, resampled, rtol=1e-4, atol=1e-4)


def test_a_tower_that_ends_at_stride_16():
    """The small tower's last two stages share a grid; the levels are still named by stride."""
    cfg = setup_cfg(opts=["MODEL.CLIP.NAME", "dcp-tiny-cnn-s16"])
    backbone = CLIPBackbone(cfg, None).eval()
    assert {
        key: shape.stride for key, shape in backbone.output_shape().items() if shape.stride
    } == {
        "res2": 4,
        "res3": 8,
        "res4": 16,
        "dense": 16,
        "image": 1,
    }
    with torch.no_grad():
        out = backbone(torch.randn(1, 3, 64, 96))
    for key, shape in backbone.output_shape().items():
        assert out[key].shape[1] == shape.channels
        if shape.stride:
            assert out[key].shape[-2:] == (64 // shape.stride, 96 // shape.stride)
    torch.testing.assert_close(out["dense"].mean((2, 3)), out["pooled"], atol=1e-5, rtol=1e-4)
