"""Rasters: no seams, georeference, areas, scaling, nodata and resuming."""

import json
import sqlite3

import numpy as np
import pytest
import torch
from PIL import Image

from dcp_clip.folder_run.result_files import ALL_SUFFIXES
from dcp_clip.geo import polygons
from dcp_clip.geo import run as raster_run
from dcp_clip.geo.polygons import write_polygons
from dcp_clip.geo.raster import Raster, is_geotiff
from dcp_clip.modeling.large_image import segment_large_image
from dcp_clip.predictor import Predictor
from dcp_clip.utils.images.files import ImageReadError
from dcp_clip.vocabulary import Vocabulary
from dcp_clip_cli import segment

rasterio = pytest.importorskip("rasterio")
from helpers.rasters import GRID, UTM, write  # noqa: E402
from rasterio.features import shapes  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402

OPTIONS = {"MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64, "INPUT.MIN_SIZE_TEST": 32}
DEGREES = "EPSG:4326"


@pytest.fixture
def predictor(make_cfg, make_model):
    return Predictor(make_cfg(opts=OPTIONS), "sky; tree; car; road", model=make_model(opts=OPTIONS))


@pytest.fixture
def run(predictor, monkeypatch, tmp_path):
    """``run(path, *arguments)``: segment a raster in blocks of 96 pixels; the exit status."""
    monkeypatch.setattr(Predictor, "from_config_file", lambda *args, **options: predictor)
    monkeypatch.setattr(raster_run, "BLOCK", 96)

    def start(path, *arguments):
        return segment.main(["--input", str(path), "--output", str(tmp_path / "out"), *arguments])

    return start


def test_a_raster_has_the_labels_of_the_whole_image(run, predictor, make_image, tmp_path):
    image = make_image(150, 210).numpy()
    path = write(tmp_path / "scene.tif", image)
    assert is_geotiff(path)
    formats = ("labels", "confidence", "polygons", "overlay")
    assert run(path, "--format", *formats) == 0
    vocabulary = predictor.vocabulary
    with torch.no_grad():
        whole = segment_large_image(predictor.model, vocabulary, torch.from_numpy(image))["sem_seg"]
    with rasterio.open(tmp_path / "out" / "scene_labels.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), whole.label_map())
        assert dataset.crs == UTM and dataset.nodata == 254 and dataset.is_tiled
        assert dataset.transform == GRID
        assert dataset.colormap(1)[2] == (*vocabulary.colors[2], 255)
        assert dataset.tags(1)["CATEGORY_2"] == "car"
    with rasterio.open(tmp_path / "out" / "scene_confidence.tif") as dataset:
        expected = np.rint(255 * whole.confidence())
        np.testing.assert_allclose(dataset.read(1), expected, atol=1)
    (line,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert line["scaling"] == "none" and line["bands"] == [1, 2, 3]
    counts = np.bincount(whole.label_map().ravel(), minlength=4)
    for category in line["categories"]:
        assert category["share"] == pytest.approx(counts[category["id"]] / image[0].size)
        # A pixel of UTM has 0.25 square metres, and at its meridian 1 / 0.9996 ** 2 of it.
        area = 0.25 * counts[category["id"]] / 0.9996**2
        assert category["area_m2"] == pytest.approx(area, rel=1e-4)
    if (tmp_path / "out" / line["polygons"]).suffix == ".gpkg":
        with sqlite3.connect(tmp_path / "out" / line["polygons"]) as database:
            ((total, names),) = database.execute(
                "SELECT SUM(area_m2), COUNT(DISTINCT name) FROM polygons"
            )
        assert names == len(line["categories"])
        assert total == pytest.approx(sum(c["area_m2"] for c in line["categories"]))
    assert not list((tmp_path / "out").glob(".blocks/*"))


def test_a_stopped_run_is_resumed(run, predictor, make_image, tmp_path, monkeypatch):
    path = write(tmp_path / "scene.tif", make_image(150, 210).numpy())
    segment_block = raster_run.RasterRun._segment_block
    blocks = []

    def stop_at_the_third(self, region, margin):
        blocks.append(region)
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return segment_block(self, region, margin)

    monkeypatch.setattr(raster_run.RasterRun, "_segment_block", stop_at_the_third)
    assert run(path, "--only", "labels") == 130
    assert not (tmp_path / "out" / "scene_labels.tif").exists()
    assert run(path, "--only", "labels") == 0
    assert len(blocks) == 3 + 4 and len(set(blocks)) == 6
    with rasterio.open(tmp_path / "out" / "scene_labels.tif") as dataset:
        assert dataset.read(1).max() < 4
    assert run(path, "--only", "labels") == 0 and len(blocks) == 7
    with pytest.raises(SystemExit, match="bands"):
        run(path, "--only", "labels", "--bands", "3,2,1")


def test_pixels_without_data_are_nodata_and_not_segmented(run, make_image, tmp_path):
    image = make_image(150, 210).numpy().astype(np.uint16) * 40 + 1
    image[:, :100, :110] = 0
    path = write(tmp_path / "scene.tif", image[[2, 1, 0, 0]], nodata=0)
    assert run(path, "--only", "labels", "--bands", "3,2,1", "--unknown-below", "0") == 0
    with rasterio.open(tmp_path / "out" / "scene_labels.tif") as dataset:
        labels = dataset.read(1)
    assert (labels[:100, :110] == 254).all()
    assert (labels[100:] < 4).all() and (labels[:, 110:] < 4).all()
    (line,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert sum(category["share"] for category in line["categories"]) == pytest.approx(1)


def test_values_are_scaled_to_bytes(tmp_path):
    values = np.arange(10_000, dtype=np.uint16).reshape(1, 100, 100)
    path = write(tmp_path / "grey.tif", values)
    with Raster(path) as raster:
        assert raster.scaling == "percentiles 2 to 98" and raster.bands == (1, 1, 1)
        low, high = raster.ranges[0]
        assert (low, high) == pytest.approx((200, 9800), abs=2)
        image, valid = raster.read((0, 0, 100, 100))
    assert valid.all() and image.min() == 0 and image.max() == 255
    with Raster(path, value_range=(0, 5000)) as raster:
        image, _ = raster.read((25, 0, 1, 100))
        expected = np.rint(values[:, 25] * (255 / 5000))
        np.testing.assert_allclose(image[:, 0], expected.repeat(3, 0), atol=1)
        assert raster.settings()["scaling"] == "given"
    for value_range in ((2, 2), (3, 2), (0, np.inf), (np.nan, 2)):
        with pytest.raises(ValueError, match="--range"):
            Raster(path, value_range=value_range)


def test_overwriting_removes_the_results_of_images_and_rasters(run, make_image, tmp_path):
    """Also if all other settings are equal."""
    out = tmp_path / "out"
    image = make_image(20, 30).numpy()
    Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "photo.png")
    raster = write(tmp_path / "scene.tif", image)
    assert run(tmp_path / "photo.png") == 0
    with pytest.raises(SystemExit, match="the input was images and is rasters"):
        run(raster)
    assert run(raster, "--overwrite") == 0
    assert {p.name for p in out.glob("*_*")} == {"scene_overlay.jpg", "scene_labels.tif"}
    with pytest.raises(SystemExit, match="--range"):
        run(raster, "--overwrite", "--range", "5", "2")
    formats = ("confidence", "polygons", "labels")
    assert run(raster, "--overwrite", "--format", *formats) == 0
    assert len(list(out.glob("*_*"))) == 3
    assert run(tmp_path / "photo.png", "--overwrite", "--only", "labels") == 0
    assert {p.name for p in out.glob("*_*")} == {"photo_labels.png"}


def test_all_suffixes_of_rasters_are_known(monkeypatch):
    """--overwrite removes only files with known suffixes."""
    for spec in (None, "pyogrio"):
        monkeypatch.setattr(polygons.importlib.util, "find_spec", lambda name, spec=spec: spec)
        for name, suffix in raster_run.raster_suffixes().items():
            assert suffix in ALL_SUFFIXES[name]


def test_the_area_of_degrees_is_exact(tmp_path):
    """One degree from 60 to 61 north, from the formula of the ellipsoid."""
    labels = np.zeros((1, 2, 4), np.uint8)
    labels[0, :, 3] = 1
    path = write(tmp_path / "a.tif", labels, DEGREES, from_origin(10, 61, 0.25, 0.5))
    target = tmp_path / "a.geojson"
    areas = write_polygons(path, target, Vocabulary(["sea", "land"]))

    def zone(latitude):
        """The area from the equator, on WGS84, for one degree of longitude."""
        b, e, sine = 6356752.314245, 0.0818191908426, np.sin(np.radians(latitude))
        inner = sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e
        return np.radians(1) * b**2 / 2 * inner

    expected = zone(61) - zone(60)
    assert areas == pytest.approx({0: 0.75 * expected, 1: 0.25 * expected}, rel=1e-7)
    sea, land = sorted(json.loads(target.read_text())["features"], key=str)[::-1]
    found = {f["properties"]["name"]: f["geometry"]["coordinates"] for f in (sea, land)}
    assert [10.75, 60.0] in found["land"][0] and [10.0, 61.0] in found["sea"][0]


def _areas(tmp_path, crs, origin, pixel, labels):
    path = write(tmp_path / "a.tif", labels[None], crs, from_origin(*origin, pixel, pixel))
    areas = write_polygons(path, tmp_path / "a.geojson", Vocabulary(["sea", "land"]))
    return [areas[0], areas[1]], json.loads((tmp_path / "a.geojson").read_text())


def _square():
    labels = np.zeros((100, 100), np.uint8)
    labels[40:60, 40:60] = 1
    return labels


@pytest.mark.parametrize(
    ("crs", "origin", "pixel"),
    [
        ("EPSG:3035", (2_500_000, 5_500_000), 30_000),  # equal-area: Europe
        ("EPSG:5070", (-1_000_000, 2_500_000), 20_000),  # equal-area: North America
        ("EPSG:6931", (-500_000, 500_000), 10_000),  # equal-area, round the North Pole
        ("EPSG:6932", (-500_000, 500_000), 10_000),  # equal-area, round the South Pole
        ("EPSG:6932", (-500_000, 400_000), 10_000),  # the pole is at a corner of a pixel
    ],
)
def test_the_area_of_large_polygons_is_right(tmp_path, crs, origin, pixel):
    (sea, land), _ = _areas(tmp_path, crs, origin, pixel, _square())
    assert sea == pytest.approx(9600 * pixel**2, rel=5e-5)
    assert land == pytest.approx(400 * pixel**2, rel=5e-5)


def test_the_area_across_the_meridian_of_180_degrees_is_right(tmp_path):
    origin, pixel = (780_000, 8_100_000), 1000  # UTM zone 60, near Fiji
    (sea, land), collection = _areas(tmp_path, "EPSG:32760", origin, pixel, _square())
    assert sea == pytest.approx(9600e6, rel=5e-3)  # UTM changes areas by a few thousandths
    assert land == pytest.approx(400e6, rel=5e-3)
    for feature in collection["features"]:
        geometry = feature["geometry"]
        parts = geometry["coordinates"]
        for rings in parts if geometry["type"] == "MultiPolygon" else [parts]:
            longitudes = [x for ring in rings for x, _ in ring]
            assert max(longitudes) - min(longitudes) < 180


def test_a_local_coordinate_system_has_no_areas(tmp_path):
    site = 'LOCAL_CS["site grid",UNIT["metre",1]]'
    with pytest.raises(ValueError, match="without a place on the Earth"):
        _areas(tmp_path, site, (0, 100), 1, _square())


@pytest.mark.parametrize("kind, strip", [("u1", 17), ("u2", 17 * 4), ("u1", 17 * 30)])
def test_polygons_of_strips_are_those_of_the_whole_raster(
    tmp_path, tmp_path_factory, monkeypatch, kind, strip
):
    """To the last bit, with parts and holes that reach over several strips."""
    labels = np.random.default_rng(0).integers(0, 3, (1, 30, 17)).astype(kind)
    labels[0, 3:27, 4], labels[0, 3, 4:9], labels[0, 20, 4:9] = 1, 1, 1
    path = write(tmp_path / "a.tif", labels, transform=from_origin(1 / 3, 7e6 / 11, 0.1, 0.3))
    with rasterio.open(path) as dataset:
        expected = [s for s in shapes(rasterio.band(dataset, 1), connectivity=4) if s[1] < 2]
        monkeypatch.setattr(polygons, "_STRIP", strip)
        found = list(polygons._polygons(dataset, 2, tmp_path_factory.mktemp("parts")))
    assert len(expected) > 50
    assert sorted(found, key=str) == sorted(expected, key=str)
    write_polygons(path, tmp_path / "a.geojson", Vocabulary(["sea", "land"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.geojson", "a.tif"]


@pytest.mark.parametrize(
    "bands, options, message",
    [
        (5, {}, "it has 5 bands; choose three"),
        (2, {}, "it has 2 bands; choose one: --bands 1"),
        (3, {"bands": [1, 2, 4]}, "from 1 to 3"),
    ],
)
def test_bands_that_are_missing_are_an_error(tmp_path, bands, options, message):
    path = write(tmp_path / "a.tif", np.ones((bands, 4, 4), np.uint8))
    with pytest.raises(ImageReadError, match=message):
        Raster(path, **options)


def test_files_of_other_formats_are_refused(run, tmp_path, capsys):
    (tmp_path / "a.tif").write_text('<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
    with pytest.raises(ImageReadError, match="a.tif"):
        Raster(tmp_path / "a.tif")
    path = write(tmp_path / "b.tif", np.ones((3, 8, 8), np.uint8), crs=None)
    assert run(path, "--format", "polygons") == 1
    assert "no coordinate system" in capsys.readouterr().err


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"tiled": True}])
def test_a_truncated_raster_is_one_sentence(run, make_image, tmp_path, capsys, options):
    path = write(tmp_path / "cut.tif", make_image(300, 300).numpy(), **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert run(path) == 1
    (failure,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert "cut.tif: it is truncated or damaged (TIFF" in failure["error"]
    assert "See previous exception" not in capsys.readouterr().err


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
def test_a_picture_without_georeference_gives_no_warning(run, make_image, tmp_path):
    Image.fromarray(make_image(50, 60).numpy().transpose(1, 2, 0)).save(tmp_path / "odd.png")
    formats = ("labels", "confidence", "overlay")
    assert run(tmp_path / "odd.png", "--bands", "3,2,1", "--format", *formats) == 0
    assert (tmp_path / "out" / "odd_confidence.tif").exists()


def test_a_name_that_is_too_long_for_its_results_is_one_failure(run, make_image, tmp_path):
    for name in ("a", "m" * 245, "z"):
        write(tmp_path / f"{name}.tif", make_image(40, 50).numpy())
    assert run(tmp_path / "*.tif") == 1
    (failure,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert "mm.tif: the name of its result, " in failure and "rename the file" in failure
    assert (tmp_path / "out" / "z_labels.tif").exists()
