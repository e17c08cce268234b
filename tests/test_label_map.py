"""Label maps made and measured in bands."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dcp_clip.label_map import category_shares, label_map_in_tiles


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 24), (37, 100), (100, 37), (300, 2)])
@pytest.mark.parametrize("tile_rows", [1, 5, None])
@pytest.mark.parametrize("grid", [(1, 1), (7, 9), (16, 24)])
def test_bands_give_the_answer_of_the_whole(size, tile_rows, grid):
    logits = torch.randn(5, *grid, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    expected = whole.argmax(dim=0).numpy()
    label_map = label_map_in_tiles(logits, size, tile_rows)
    # The order of rounding may differ by an ulp: only where two categories tie can that be seen.
    best, second = whole.topk(2, dim=0).values
    np.testing.assert_array_equal(
        np.where(best - second > 1e-5, label_map, 0), np.where(best - second > 1e-5, expected, 0)
    )
    assert (best - second > 1e-5).float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(dtype):
    logits = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    np.testing.assert_array_equal(
        label_map_in_tiles(logits, (9, 9)), label_map_in_tiles(logits.float(), (9, 9))
    )


@pytest.mark.parametrize(
    "num_categories, dtype", [(1, "uint8"), (256, "uint8"), (257, "uint16"), (70000, "uint32")]
)
def test_ids_and_type(num_categories, dtype):
    logits = torch.zeros(2, 3, 3)
    logits[1, 0] = 1
    ids = torch.tensor([0, num_categories - 1])
    label_map = label_map_in_tiles(logits, (3, 3), category_ids=ids, num_categories=num_categories)
    assert label_map.dtype == dtype
    assert (label_map[0] == num_categories - 1).all()
    assert (label_map[1:] == 0).all()


def test_shares_leave_unlabelled_pixels_out():
    shares = category_shares(np.array([[0, 0, 2, 255], [2, 2, 0, -1]], np.int16), 3)
    np.testing.assert_allclose(shares, [3 / 8, 0, 3 / 8])
    assert shares.sum() < 1
