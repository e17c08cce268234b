"""BilateralDecoder: weighted means of coarse cells, with edges where the image has them."""

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


def upsample(maps, guide, reach=0.75, contrast=0.5):
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
def test_the_result_is_a_weighted_mean_at_any_size(cells, extra, batch, seed):
    size = [a + b for a, b in zip(cells, extra, strict=True)]
    maps, guide = 5 * noise(batch, 3, *cells, seed=seed), noise(batch, 3, *size, seed=seed + 1)
    out = upsample(maps, guide)
    assert out.shape == (batch, 3, *size)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    assert (out >= low - 1e-4).all() and (out <= high + 1e-4).all()
    constant = torch.full_like(maps, 3.0)
    torch.testing.assert_close(upsample(constant, guide), torch.full_like(out, 3.0))
    # Maps and images do not influence each other, and the result is linear in the maps.
    assert torch.equal(upsample(maps[:, [2, 0]], guide), out[:, [2, 0]])
    torch.testing.assert_close(upsample(maps[-1:], guide[-1:]), out[-1:])
    torch.testing.assert_close(upsample(2 * maps - 1, guide), 2 * out - 1, rtol=1e-4, atol=1e-4)


def test_the_weights_agree_with_their_definition():
    """For one pixel, from all cells that are at most two cells away."""
    maps, guide = noise(1, 1, 4, 5), noise(1, 3, 16, 20, seed=1)
    out = upsample(maps, guide, 0.6, 0.9)
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


def test_an_edge_in_the_middle_of_a_cell_is_recovered():
    """The edge is at pixel 13 of 24, inside of a cell of 8 pixels."""
    guide = torch.ones(1, 3, 8, 24)
    guide[..., :13] = -1
    labels = (guide[:, :1] > 0).float()
    coarse = F.adaptive_avg_pool2d(labels, (1, 3))
    right = labels > 0
    assert ((upsample(coarse, guide, contrast=0.25) > 0.5) == right).all()
    bilinear = F.interpolate(coarse, (8, 24), mode="bilinear")
    assert ((bilinear > 0.5) != right).any()


def test_an_image_without_edges_is_the_same_as_a_very_large_contrast():
    maps, flat = noise(1, 2, 4, 4), torch.zeros(1, 3, 16, 16)
    busy = noise(1, 3, 16, 16)
    torch.testing.assert_close(
        upsample(maps, flat), upsample(maps, busy, contrast=1e4), rtol=1e-4, atol=1e-4
    )
    assert (upsample(maps, flat) - upsample(maps, busy)).abs().max() > 0.1


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-16", "test-vit-14-quickgelu"])
def test_borders_are_better_than_bilinear(make_cfg, make_scene, boundary_iou, clip):
    """The coarse maps are the noisy fractions of the categories in each cell, strides 14 to 32."""
    scores = {}
    for name in ("BilinearDecoder", "BilateralDecoder"):
        model = build_model(make_cfg(clip, {NAME: name}))
        shapes = model.backbone.output_shape()
        height, width = (192, 256) if 192 % shapes["dense"].stride == 0 else (196, 252)
        for seed in range(4):
            labels, image = make_scene(seed, (height, width))
            hot = F.one_hot(labels, 4).permute(2, 0, 1)[None].float()
            grids = [
                (height // stride, width // stride)
                for stride in (shapes["dense"].stride, shapes["res2"].stride)
            ]
            coarse = F.adaptive_avg_pool2d(hot, grids[0])
            coarse = 10 * (coarse + 0.2 * noise(*coarse.shape, seed=seed))
            features = {"image": image, "res2": image.new_zeros(1, 1, *grids[1])}
            fine = model.fine_decoder(coarse, None, None, features, None, torch.ones(1, 4).bool())
            assert fine.shape == (1, 4, height // 4, width // 4)
            fine = F.interpolate(fine, labels.shape, mode="bilinear")
            score = boundary_iou(fine[0].argmax(0), labels)
            scores.setdefault(name, []).append(score)
    pairs = list(zip(scores["BilateralDecoder"], scores["BilinearDecoder"], strict=True))
    assert all(guided > bilinear for guided, bilinear in pairs), pairs
    assert sum(guided - bilinear for guided, bilinear in pairs) / len(pairs) > 0.1, pairs


@pytest.mark.parametrize("key", ["REACH", "CONTRAST"])
def test_zero_reach_and_zero_contrast_are_refused(make_cfg, key):
    with pytest.raises(ValueError, match=f"GUIDE_{key} is 0.0"):
        build_model(make_cfg(opts={NAME: "BilateralDecoder", f"{NAME[:-4]}GUIDE_{key}": 0.0}))


def test_a_reach_larger_than_the_window_is_refused(make_cfg):
    """The window covers two standard deviations at the largest reach."""
    key = f"{NAME[:-4]}GUIDE_REACH"
    with pytest.raises(ValueError, match="GUIDE_REACH is 1.5; .* not be above 1,"):
        build_model(make_cfg(opts={NAME: "BilateralDecoder", key: 1.5}))
    decoder = build_model(make_cfg(opts={NAME: "BilateralDecoder", key: 1.0})).fine_decoder
    maps, guide = noise(1, 1, 9, 9), noise(1, 3, 36, 36, seed=1)
    wider = joint_bilateral_upsample(maps, guide, decoder.reach, 0.5, radius=4)
    assert (wider - upsample(maps, guide, decoder.reach)).abs().max() < 0.1 * maps.std()


def test_it_has_no_weights(make_cfg):
    decoder = build_model(make_cfg(opts={NAME: "BilateralDecoder"})).fine_decoder
    assert isinstance(decoder, BilateralDecoder) and not decoder.state_dict()
