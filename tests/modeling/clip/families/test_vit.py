"""ViT towers at any image size, and the attention of MaskCLIP."""

import pytest
import torch

from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.loading import load_clip

CLIPS = ["test-vit-16", "test-vit-14-quickgelu"]


@torch.no_grad()
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("dense", ["maskclip", "clip"])
def test_pooled_at_other_sizes_is_that_of_a_resized_vit(make_backbone, clip, dense):
    """open_clip resizes the position table of a ViT in the same way."""
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
@pytest.mark.parametrize("clip", CLIPS)
def test_maskclip_is_attention_of_each_patch_to_itself(make_backbone, clip):
    """The last attention with the identity as its attention matrix."""
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


def test_vits_with_another_pooling_are_refused(make_cfg):
    visual = load_clip(make_cfg("test-vit-16")).visual
    visual.pool_type = "none"
    with pytest.raises(ValueError, match="class token"):
        CLIPBackbone(visual=visual, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
