"""The values of rasters: what counts as data, and the ranges that become bytes."""

import numpy as np
import pytest

from dcp_clip.geo.raster import Raster

rasterio = pytest.importorskip("rasterio")
from helpers.rasters import write  # noqa: E402


@pytest.mark.parametrize("kind", ["u2", "f4"])
def test_scattered_pixels_without_data_do_not_count(tmp_path, monkeypatch, kind):
    """Every cell of the reduced raster has a pixel without data."""
    monkeypatch.setattr("dcp_clip.geo.raster._OVERVIEW", 16)
    values = np.full((1, 64, 64), 500, kind)
    values[0, :, 32:] = 900
    values[0, ::2, ::2] = 0  # no data
    with Raster(write(tmp_path / "a.tif", values, nodata=0)) as raster:
        assert raster.ranges == [(500.0, 900.0)] * 3
        image, valid = raster.overview()
    assert valid.all() and (image[0, :, :8] == 0).all() and (image[0, :, 8:] == 255).all()


def test_a_colour_with_a_zero_is_no_missing_data(tmp_path):
    """As in GDAL, a pixel has no data only if no band has."""
    values = np.full((3, 64, 64), 100, np.uint8)
    values[0, :, 32:] = 0
    values[:, :8] = 0
    path = write(tmp_path / "a.tif", values, nodata=0)
    with Raster(path) as raster, rasterio.open(path) as dataset:
        _, valid = raster.read((0, 0, 64, 64))
        assert (valid == (dataset.dataset_mask() > 0)).all() and valid[8:].all()


@pytest.mark.parametrize("kind", ["i4", "f8"])
def test_small_differences_of_large_values(tmp_path, kind):
    values = (10**9 + np.arange(64) % 11 * np.ones((1, 64, 1))).astype(kind)
    with Raster(write(tmp_path / "a.tif", values)) as raster:
        image, _ = raster.read((0, 0, 64, 64))
    assert len(np.unique(image)) > 8 and image.min() == 0 and image.max() == 255


@pytest.mark.parametrize("nodata", [-9999, 20_000])
def test_missing_data_in_one_band_is_no_value(tmp_path, nodata):
    """For example, the bands come from files that cover different areas."""
    ramp = np.linspace(100, 2500, 64).astype(np.int16)
    values = np.tile(ramp, (3, 64, 1))
    values[0, :20] = nodata
    with Raster(write(tmp_path / "a.tif", values, nodata=nodata)) as raster:
        assert raster.ranges[0] == pytest.approx(raster.ranges[1], abs=40)
        image, valid = raster.read((0, 0, 64, 64))
        overview, seen = raster.overview()
    assert valid.all() and seen.all()  # the other bands have data
    assert (image == overview).all()
    assert (image[0, :20] == 0).all() and (image[0, 20:] == image[1, 20:]).all()


def test_a_band_without_any_data(tmp_path):
    values = np.full((3, 32, 32), 500, np.int16)
    values[1] = -9999
    with Raster(write(tmp_path / "a.tif", values, nodata=-9999)) as raster:
        image, valid = raster.read((0, 0, 32, 32))
    assert valid.all() and (image[1] == 0).all()


def test_the_largest_byte_is_a_colour(tmp_path):
    values = np.full((3, 32, 32), 100, np.uint8)
    values[0, :, ::2] = 255
    with Raster(write(tmp_path / "a.tif", values, nodata=255)) as raster:
        image, valid = raster.read((0, 0, 32, 32))
    assert valid.all() and (image[0, :, ::2] == 255).all()
