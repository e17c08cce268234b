"""Encoder windows cover the image and are averaged where they overlap."""

import pytest
import torch
from detectron2.modeling import build_backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcp_clip.modeling.clip.encoder_windows import encode_in_windows, window_starts

CLIPS = ["test-convnext", "test-vit-16", "test-vit-14-quickgelu"]


@pytest.fixture
def make_backbone(make_cfg, randomize):
    def make(clip, window=0, stride=0, **options):
        torch.manual_seed(0)
        options |= {"ENCODER_WINDOW": window, "ENCODER_WINDOW_STRIDE": stride}
        opts = {f"MODEL.CLIP.{key}": value for key, value in options.items()}
        return randomize(build_backbone(make_cfg(clip, opts))).eval()

    return make


def some_images(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@given(length=st.integers(1, 60), window=st.integers(1, 40), data=st.data())
def test_windows_cover_every_position(length, window, data):
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    size = min(window, length)
    covered = {position for start in starts for position in range(start, start + size)}
    assert covered == set(range(length))
    assert starts == sorted(set(starts))  # no duplicates
    assert all(b - a <= stride for a, b in zip(starts, starts[1:], strict=False))


@settings(deadline=None, max_examples=30)
@given(
    cells=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.integers(1, 5),
    batch=st.integers(1, 3),
    data=st.data(),
)
def test_windows_do_not_change_an_encoder_without_context(cells, window, batch, data):
    """Maps of two strides; each value depends on its own pixels only."""
    stride = data.draw(st.integers(1, window))
    images = some_images(8 * cells[0], 8 * cells[1], batch)
    seen = []

    def encode(crops):
        seen.append(len(crops))
        return {
            "dense": F.avg_pool2d(crops, 8),
            "res2": F.max_pool2d(crops, 4),
            "pooled": crops.mean((2, 3)),
        }

    out, whole = encode_in_windows(encode, images, 8 * window, 8 * stride), encode(images)
    assert set(out) == {"dense", "res2"}
    torch.testing.assert_close(out["res2"], whole["res2"])
    torch.testing.assert_close(out["dense"], F.normalize(whole["dense"], dim=1))
    assert max(seen) <= 8


def test_overlaps_are_averaged():
    """The maps have the position of the window's left edge; three windows of 4 cells cover 6."""

    def encode(crops):
        level = crops[:, :1, :, :1].expand(-1, 1, -1, crops.shape[3])
        return {"res2": level, "dense": torch.cat([torch.ones_like(level), level], 1)}

    images = torch.arange(6.0).expand(1, 1, 2, 6)
    out = encode_in_windows(encode, images, 4, 1)
    expected = torch.tensor([0, 0.5, 1, 1, 1.5, 2]).expand(1, 1, 2, 6)
    torch.testing.assert_close(out["res2"], expected)
    # Unit-length vectors are averaged: the result is the mean cosine with the second axis.
    cosine = torch.tensor([0, 1 / 2**0.5, 2 / 5**0.5])
    torch.testing.assert_close(out["dense"][0, 1, 0, 2], cosine.mean())


@torch.no_grad()
@pytest.mark.parametrize("clip", CLIPS)
def test_an_image_of_one_window_is_encoded_as_a_whole(make_backbone, clip):
    plain = make_backbone(clip)
    unit = plain.size_divisibility
    windowed = make_backbone(clip, 3 * unit, unit)
    for grid in ((3, 3), (1, 2), (3, 1)):
        images = some_images(grid[0] * unit, grid[1] * unit)
        a, b = plain(images), windowed(images)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@torch.no_grad()
@pytest.mark.parametrize("clip", CLIPS)
def test_larger_images_are_averages_of_their_windows(make_backbone, clip):
    plain = make_backbone(clip)
    unit = plain.size_divisibility
    windowed = make_backbone(clip, 2 * unit, unit)
    images = some_images(2 * unit, 5 * unit)
    whole, out = plain(images), windowed(images)
    torch.testing.assert_close(out["pooled"], whole["pooled"], rtol=1e-5, atol=1e-5)
    assert {k: v.shape for k, v in out.items()} == {k: v.shape for k, v in whole.items()}
    crops = [plain(images[..., i * unit : (i + 2) * unit]) for i in range(4)]
    unit_length = [F.normalize(crop["dense"], dim=1) for crop in crops]
    # One window covers the first column, two cover the second.
    options = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(out["dense"][..., 0], unit_length[0][..., 0], **options)
    second = (unit_length[0][..., 1] + unit_length[1][..., 0]) / 2
    torch.testing.assert_close(out["dense"][..., 1], second, **options)
    width = out["res3"].shape[-1] // 5
    torch.testing.assert_close(out["res3"][..., :width], crops[0]["res3"][..., :width], **options)
    assert (out["dense"] - F.normalize(whole["dense"], dim=1)).abs().max() > 1e-3


@pytest.mark.parametrize("window, stride", [(30, 16), (32, 10), (32, 0), (32, 48), (-32, 16)])
def test_windows_that_do_not_fit_are_refused(make_backbone, window, stride):
    with pytest.raises(
        ValueError, match=f"WINDOW is {window} and ENCODER_WINDOW_STRIDE {stride}.* 16 "
    ):
        make_backbone("test-vit-16", window, stride)
