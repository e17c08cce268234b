"""Upsampling in bands, and areas of categories."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.utils.upsampling import RowResizer, resized_bands


def joined(*args):
    return torch.cat([band for _, band in resized_bands(*args)], dim=1)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 24), (37, 100), (100, 37), (300, 2)])
@pytest.mark.parametrize("band_rows", [1, 5, None])
@pytest.mark.parametrize("grid", [(1, 1), (7, 9), (16, 24)])
def test_bands_equal_interpolate(size, band_rows, grid):
    logits = torch.randn(5, *grid, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(joined(logits, size, None, band_rows), whole, rtol=1e-5, atol=1e-5)
    starts = [start for start, _ in resized_bands(logits, size, None, band_rows)]
    assert starts == list(range(0, size[0], band_rows or size[0]))


@pytest.mark.parametrize("size", [(12, 20), (48, 80), (5, 33)])
def test_extent_smaller_than_the_grid(size):
    """The image covers 3 x 5 of 4 x 8 cells; the result is a crop of the whole grid."""
    logits = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    scale = size[0] / 3, size[1] / 5
    columns = ((torch.arange(size[1]) + 0.5) / scale[1] - 0.5) * 2 / 7 - 1
    rows = ((torch.arange(size[0]) + 0.5) / scale[0] - 0.5) * 2 / 3 - 1
    where = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1)
    expected = F.grid_sample(
        logits[None], where[None].float(), padding_mode="border", align_corners=True
    )[0]
    torch.testing.assert_close(joined(logits, size, (3, 5)), expected, rtol=1e-4, atol=1e-4)


def test_rows_that_depend_on_the_first_rows_of_the_grid():
    maps = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    resize = RowResizer((25, 10), (6, 5), (6, 5), maps.device)
    whole = joined(maps, (25, 10))
    assert resize.rows_within(1) == 0
    for grid_rows in range(2, 7):
        end = resize.rows_within(grid_rows)
        assert torch.equal(resize(maps[:, :grid_rows], 0, end), whole[:, :end])
        if grid_rows < 6:  # the next row of the image needs one more row of the grid
            with pytest.raises(IndexError):
                resize(maps[:, :grid_rows], 0, end + 1)
    assert resize.rows_within(6) == 25
    assert torch.equal(resize(maps[:, 3:], 20, 25, first_row=3), whole[:, 20:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(dtype):
    logits = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(joined(logits, (9, 9)), joined(logits.float(), (9, 9)))
