"""Similarities in windows, against the formula written with loops."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.modeling.training_free.windows import PADDINGS, EncoderWindows

PATCH = 4


def bilinear(length, cells):
    """(length, cells) weights: pixel p lies at (p + 0.5) * cells / length - 0.5."""
    matrix = torch.zeros(length, cells)
    for p in range(length):
        place = min(max((p + 0.5) * cells / length - 0.5, 0), cells - 1)
        before = int(place)
        matrix[p, before] += 1 - (place - before)
        matrix[p, min(before + 1, cells - 1)] += place - before
    return matrix


def starts(length, window, stride):
    """Windows every `stride` pixels, the last one moved back to end with the image."""
    count = max(length - window + stride - 1, 0) // stride + 1
    ends = [min(i * stride + window, length) for i in range(count)]
    return [max(end - window, 0) for end in ends]


def margins(side, padding):
    missing = -side % PATCH
    if padding == "center":
        return missing // 2, missing - missing // 2
    if padding == "end" or side < PATCH:
        return 0, missing
    return 0, -(side % PATCH)


def window_maps(encode, crop, text, padding):
    """Cosines on the grid of one window (3, h, w), upsampled to its pixels."""
    h, w = crop.shape[-2:]
    (top, bottom), (left, right) = margins(h, padding), margins(w, padding)
    dense = encode(F.pad(crop, (left, right, top, bottom))[None])[0]
    cosine = torch.einsum("nd,dhw->nhw", text, dense / dense.norm(dim=0))
    size = (h, w) if padding != "center" else (h + top + bottom, w + left + right)
    rows, columns = bilinear(size[0], dense.shape[1]), bilinear(size[1], dense.shape[2])
    maps = rows @ cosine @ columns.T
    return maps if padding != "center" else maps[:, top : top + h, left : left + w]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((16, 24), 8, 4), ((21, 30), 12, 8), ((9, 7), 12, 4), ((3, 2), 8, 4), ((18, 23), 0, 0)],
)
def test_pixels_have_the_mean_over_their_windows(padding, size, window, stride):
    torch.manual_seed(0)
    kernel, text = torch.randn(6, 3, PATCH, PATCH), F.normalize(torch.randn(5, 6), dim=1)
    image = torch.randn(3, *size)
    assert_multiple = []

    def encode(pixels):
        assert_multiple.extend(side % PATCH for side in pixels.shape[-2:])
        return F.conv2d(pixels, kernel, stride=PATCH)

    total, count = torch.zeros(5, *size), torch.zeros(size)
    height, width = (min(window or side, side) for side in size)
    for y in starts(size[0], height, stride or 1):
        for x in starts(size[1], width, stride or 1):
            crop = image[:, y : y + height, x : x + width]
            total[:, y : y + height, x : x + width] += window_maps(encode, crop, text, padding)
            count[y : y + height, x : x + width] += 1
    windows = EncoderWindows(PATCH, window, stride, padding)
    found = windows.similarity(windows.encode(encode, image), text, size)
    torch.testing.assert_close(found, total / count, rtol=1e-5, atol=1e-6)
    assert not any(assert_multiple)
