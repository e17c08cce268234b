"""Runs over a raster and a video that are killed and started again equal undisturbed ones.

python -m pytest tests/demo/test_killed_rasters_and_videos.py --kills 20
"""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from dcp_clip.predictor import Predictor

rasterio = pytest.importorskip("rasterio")
av = pytest.importorskip("av")
CONFIG = Path(__file__).parents[2] / "configs" / "camvid" / "dcp_clip_tiny.yaml"
OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""]
OPTIONS += ["INPUT.MIN_SIZE_TEST", "32", "MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE", "64"]
TIMES = ("milliseconds", "finish_seconds")
ARGUMENTS = {
    "scene.tif": ["--format", "overlay", "labels", "confidence", "polygons"],
    "clip.mp4": ["--format", "overlay", "labels", "coco", "--smoothing", "0.3"],
}


def write_raster(path: Path) -> None:
    """Write a raster of 4 blocks, which has data in a few places only."""
    image = np.zeros((3, 8, 12300), np.uint8)
    for left in (0, 4080, 9000, 12280):
        image[:, :, left : left + 20] = np.random.default_rng(left).integers(1, 256, (3, 8, 20))
    grid = rasterio.transform.from_origin(500_000, 5_200_000, 0.5, 0.5)
    profile = {"count": 3, "height": 8, "width": 12300, "dtype": "uint8", "nodata": 0}
    with rasterio.open(path, "w", crs="EPSG:32633", transform=grid, **profile) as dataset:
        dataset.write(image)


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for i in range(5):
            frame = np.full((32, 48, 3), 50 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def program(fork_program, tmp_path_factory):
    """``program(name, output, action, at)``: segment one of the files with random weights."""
    folder = tmp_path_factory.mktemp("files")
    write_raster(folder / "scene.tif")
    write_video(folder / "clip.mp4")
    torch.manual_seed(0)
    model = Predictor.from_config_file(CONFIG, "", OPTIONS, allow_random_weights=True).model
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    modules = ["dcp_clip_cli.segment_raster", "dcp_clip_cli.segment_video"]
    start = fork_program("demo/demo.py", *modules)

    def run(name, output, action="none", at=0):
        arguments = ["--input", folder / name, "--output", output, *ARGUMENTS[name]]
        arguments += ["--vocabulary", "sky; tree; car", "--unknown-below", "0.34"]
        arguments += ["--config-file", CONFIG, "--weights", folder / "model.pth", "--opts"]
        return start([*arguments, *OPTIONS], output, action, at)

    return run


def contents(output: Path) -> dict[str, object]:
    """Return everything that a run leaves, except times."""
    found: dict[str, object] = {}
    for path in output.rglob("*"):
        name = path.relative_to(output).as_posix()
        if path.name == "results.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        elif path.suffix == ".gpkg":  # a database that contains the time of its changes
            with sqlite3.connect(path) as database:
                found[name] = database.execute("SELECT * FROM polygons").fetchall()
        elif name != ".lock":
            found[name] = path.read_bytes() if path.is_file() else "folder"
    return found


@pytest.mark.parametrize(
    "name, files, moments", [("scene.tif", 6, 20), ("clip.mp4", 15, 40)], ids=["raster", "video"]
)
def test_kill_9_and_start_again(program, random_moments, tmp_path, name, files, moments):
    answer = program(name, tmp_path / "whole")
    assert answer["status"] == 0, answer["err"]
    expected = contents(tmp_path / "whole")
    assert len(expected) == files and answer["moments"] >= moments, answer["moments"]
    for at in random_moments(answer["moments"], seed=1, number=1):
        output = tmp_path / str(at)
        assert program(name, output, "kill", at)["status"] == -9
        if at % 2:
            program(name, output, "kill", at // 3 + 1)  # the start that continues, too
        answer = program(name, output)
        assert answer["status"] == 0, answer["err"]
        assert contents(output) == expected, f"killed at {at}"
