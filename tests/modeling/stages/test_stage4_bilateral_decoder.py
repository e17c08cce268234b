"""BilateralDecoder: weighted means of the coarse cells, with edges where the picture has them."""

import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcp_clip.modeling.stages.stage4_bilateral_decoder import (
    BilateralDecoder,
    joint_bilateral_upsample,
)

NAME = "MODEL.DCP_CLIP.FINE_DECODER.NAME"


def enlarge(maps, guide, reach=0.75, contrast=0.5):
    return joint_bilateral_upsample(maps, guide, reach, contrast)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(
    cells=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    batch=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_a_weighted_mean_at_any_size(cells, extra, batch, seed):
    size = [a + b for a, b in zip(cells, extra, strict=True)]
    maps, guide = 5 * noise(batch, 3, *cells, seed=seed), noise(batch, 3, *size, seed=seed + 1)
    out = enlarge(maps, guide)
    assert out.shape == (batch, 3, *size)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    assert (out >= low - 1e-4).all() and (out <= high + 1e-4).all()
    constant = torch.full_like(maps, 3.0)
    torch.testing.assert_close(enlarge(constant, guide), torch.full_like(out, 3.0))
    # Every map by itself, every image by itself, to the last bit; and linear in the maps.
    assert torch.equal(enlarge(maps[:, [2, 0]], guide), out[:, [2, 0]])
    torch.testing.assert_close(enlarge(maps[-1:], guide[-1:]), out[-1:])
    torch.testing.assert_close(enlarge(2 * maps - 1, guide), 2 * out - 1, rtol=1e-4, atol=1e-4)


def test_every_weight_is_its_definition():
    """Written out for one pixel: all cells but those further than two."""
    maps, guide = noise(1, 1, 4, 5), noise(1, 3, 16, 20, seed=1)
    out = enlarge(maps, guide, 0.6, 0.9)
    y, x = 6, 18  # at cell (1.125, 4.125)
    total = weights = 0.0
    for i in range(4):
        for j in range(2, 5):
            colour = guide[0, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((1, 2))
            contrast = (guide[0, :, y, x] - colour).square().mean()
            space = (i - 1.125) ** 2 + (j - 4.125) ** 2
            weight = torch.exp(-space / (2 * 0.6**2) - contrast / (2 * 0.9**2))
            total, weights = total + weight * maps[0, 0, i, j], weights + weight
    torch.testing.assert_close(out[0, 0, y, x], total / weights)


def test_an_edge_through_the_middle_of_cells_is_found():
    """Left dark, right bright, the edge at pixel 13 of 24; cells of 8 pixels straddle it."""
    guide = torch.ones(1, 3, 8, 24)
    guide[..., :13] = -1
    labels = (guide[:, :1] > 0).float()
    coarse = F.adaptive_avg_pool2d(labels, (1, 3))
    right = labels > 0
    assert ((enlarge(coarse, guide, contrast=0.25) > 0.5) == right).all()
    bilinear = F.interpolate(coarse, (8, 24), mode="bilinear")
    assert ((bilinear > 0.5) != right).any()


def test_a_flat_picture_gives_a_blur_and_contrast_decides():
    maps, flat = noise(1, 2, 4, 4), torch.zeros(1, 3, 16, 16)
    busy = noise(1, 3, 16, 16)
    torch.testing.assert_close(
        enlarge(maps, flat), enlarge(maps, busy, contrast=1e4), rtol=1e-4, atol=1e-4
    )
    assert (enlarge(maps, flat) - enlarge(maps, busy)).abs().max() > 0.1


def scene(seed, size=(192, 256), categories=4):
    """Labels (H, W) of ellipses and boxes, and an image (1, 3, H, W) with noise and shading."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(size, dtype=torch.long)
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    for k in range(1, categories):
        cy, cx, ry, rx = torch.rand(4, generator=generator).tolist()
        down = (y / size[0] - cy).abs() / (0.12 + 0.2 * ry)
        across = (x / size[1] - cx).abs() / (0.12 + 0.2 * rx)
        inside = down.maximum(across) < 1 if k % 2 else down**2 + across**2 < 1
        labels[inside] = k
    colours = torch.randn(categories, 3, generator=generator)
    shading = F.interpolate(torch.randn(1, 1, 3, 4, generator=generator), size, mode="bilinear")
    image = colours[labels].permute(2, 0, 1) + 0.2 * torch.randn(3, *size, generator=generator)
    return labels, image[None] + 0.2 * shading


def boundary_iou(prediction, labels, categories=4, width=6):
    """Mean IoU within `width` pixels of the borders of the labels (after arXiv 2103.16562)."""
    hot = F.one_hot(labels, categories).permute(2, 0, 1)[None].float()
    side = 2 * width + 1
    border = F.max_pool2d(hot, side, 1, width) != -F.max_pool2d(-hot, side, 1, width)
    border = border.any(1)[0]
    ious = []
    for k in range(categories):
        a, b = (prediction == k) & border, (labels == k) & border
        if b.any():
            ious.append(((a & b).sum() / (a | b).sum()).item())
    return sum(ious) / len(ious)


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-16", "test-vit-14-quickgelu"])
def test_borders_are_better_than_bilinear(make_cfg, clip):
    """Coarse maps that know each cell's share of each category, with noise, at strides 14 to 32."""
    scores = {}
    for name in ("BilinearDecoder", "BilateralDecoder"):
        backbone_opts = {NAME: name, "MODEL.CLIP.RESAMPLE": True}
        model = build_model(make_cfg(clip, backbone_opts))
        stride = model.backbone.output_shape()["dense"].stride
        for seed in range(4):
            labels, image = scene(seed)
            hot = F.one_hot(labels, 4).permute(2, 0, 1)[None].float()
            grid = [-(-side // stride) for side in labels.shape]
            coarse = F.adaptive_avg_pool2d(hot, grid)
            coarse = 10 * (coarse + 0.2 * noise(*coarse.shape, seed=seed))
            features = {"image": image, "res2": image.new_zeros(1, 1, 48, 64)}
            fine = model.fine_decoder(coarse, None, None, features, torch.ones(1, 4).bool())
            assert fine.shape == (1, 4, 48, 64)
            fine = F.interpolate(fine, labels.shape, mode="bilinear")
            score = boundary_iou(fine[0].argmax(0), labels)
            scores.setdefault(name, []).append(score)
    pairs = list(zip(scores["BilateralDecoder"], scores["BilinearDecoder"], strict=True))
    assert all(guided > bilinear for guided, bilinear in pairs), pairs
    assert sum(guided - bilinear for guided, bilinear in pairs) / len(pairs) > 0.1, pairs


@pytest.mark.parametrize("key", ["REACH", "CONTRAST"])
def test_nothing_to_look_at_is_refused(make_cfg, key):
    with pytest.raises(ValueError, match=f"GUIDE_{key} is 0.0"):
        build_model(make_cfg(opts={NAME: "BilateralDecoder", f"{NAME[:-4]}GUIDE_{key}": 0.0}))


def test_the_reach_ends_with_the_window(make_cfg):
    """Two standard deviations: beyond, cells that should count would be left out."""
    key = f"{NAME[:-4]}GUIDE_REACH"
    with pytest.raises(ValueError, match="GUIDE_REACH is 1.5; .* not be above 1,"):
        build_model(make_cfg(opts={NAME: "BilateralDecoder", key: 1.5}))
    decoder = build_model(make_cfg(opts={NAME: "BilateralDecoder", key: 1.0})).fine_decoder
    maps, guide = noise(1, 1, 9, 9), noise(1, 3, 36, 36, seed=1)
    wider = joint_bilateral_upsample(maps, guide, decoder.reach, 0.5, radius=4)
    assert (wider - enlarge(maps, guide, decoder.reach)).abs().max() < 0.1 * maps.std()


def test_nothing_is_learned(make_cfg):
    decoder = build_model(make_cfg(opts={NAME: "BilateralDecoder"})).fine_decoder
    assert isinstance(decoder, BilateralDecoder) and not decoder.state_dict()
