"""A run that was disturbed and started again gives the same files as an undisturbed run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcp_clip.folder_run.output_folder import RunFolder
from dcp_clip.predictor import Predictor

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
OPTIONS = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64"]
OPTIONS += ["MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""]
BAD = "b bad.jpg"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 5 small images, two of them with the same stem, and a damaged one."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "c/d.png", "e.png", "f.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(folder / name)
    (folder / BAD).write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = Predictor.from_config_file(CONFIG, "", OPTIONS, allow_random_weights=True).model
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def start(fork_program, photos, weights):
    """``start(output, action, at)``: run the demo, see the fixture `fork_program`."""
    program = fork_program("demo/demo.py", "dcp_clip.folder_run.pipeline", "dcp_clip.predictor")

    def run(output, action="none", at=0):
        arguments = ["--input", photos, "--output", output, "--vocabulary", "sky; tree; car"]
        arguments += ["--config-file", CONFIG, "--weights", weights, "--opts", *OPTIONS]
        return program(arguments, output, action, at)

    return run


def contents(output: Path) -> dict[str, object]:
    """Return everything in the folder of a run, without the time of each image."""
    files = {}
    for path in output.rglob("*"):
        name = path.relative_to(output).as_posix()
        if path.name == "results.jsonl":
            files[name] = [json.loads(line) for line in path.read_text().splitlines()]
            for line in files[name]:
                assert line.pop("milliseconds") > 0
        elif path.is_file() and name != ".lock":
            files[name] = path.read_bytes()
        elif path.is_dir():
            files[name] = "folder"
    return files


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """The contents of the folder of an undisturbed run, and the number of its moments."""
    output = tmp_path_factory.mktemp("undisturbed")
    answer = start(output)
    assert answer["status"] == 1, answer["err"]  # a damaged image
    files = contents(output)
    assert [Path(line["file"]).name for line in files["results.jsonl"]] == [
        "a.jpg",
        "a.png",
        "d.png",
        "e.png",
        "f.png",
    ]
    assert BAD in json.loads(files["failures.jsonl"])["file"]
    assert len(files) == 10 + 3 + 1
    assert answer["moments"] > 40
    return files, answer["moments"]


def check_whole(output: Path) -> None:
    """The pictures in a folder are those that the lines name, and none is incomplete."""
    files = contents(output)
    lines = files.get("results.jsonl", [])
    named = {line[key] for line in lines for key in ("overlay", "labels")}
    assert named == {name for name in files if name.endswith((".jpg", ".png"))}
    assert ".unfinished" not in files
    for name in named:
        Image.open(output / name).load()


def test_kill_9_and_start_again(start, undisturbed, random_moments, tmp_path):
    files, count = undisturbed
    for at in random_moments(count, seed=0):
        output = tmp_path / str(at)
        assert start(output, "kill", at)["status"] == -9
        if at % 2:
            start(output, "kill", at // 3 + 1)  # the start that continues is killed, too
        assert start(output)["status"] == 1
        assert contents(output) == files, at
    again = start(output)
    assert "Skipping 5 of 6 images" in again["out"] and "0 of 1 images in " in again["out"]
    assert contents(output) == files


def test_sigterm_and_start_again(start, undisturbed, random_moments, tmp_path):
    files, count = undisturbed
    for at in random_moments(count, seed=1, number=5):
        output = tmp_path / str(at)
        # Before the first image there is nothing to save, so the signal ends the process itself.
        assert start(output, "term", at)["status"] in (143, -15)
        if (output / "run.json").exists():
            check_whole(output)
        assert start(output)["status"] == 1
        assert contents(output) == files, at


@pytest.mark.parametrize("action", ["enospc", "eacces"])
def test_disk_that_takes_no_more(start, undisturbed, random_moments, tmp_path, action):
    files, count = undisturbed
    reason = {"enospc": "No space left on device", "eacces": "Permission denied"}[action]
    for at in random_moments(count, seed=2, number=4):
        output = tmp_path / str(at)
        answer = start(output, action, at)
        last = answer["err"].splitlines()[-1]
        if last.startswith("error: "):  # else only the empty folder of a finished run stayed
            assert answer["status"] == 1 and reason in last and str(output) in last
            assert answer["err"].count(reason) == 1  # the other images were not tried
        assert start(output)["status"] == 1
        assert contents(output) == files, at


def test_file_that_cannot_grow(start, undisturbed, tmp_path):
    """A real error of the operating system while a picture is written, not an injected one."""
    files, _ = undisturbed
    pictures = [name for name in files if name.endswith((".jpg", ".png"))]
    largest = max(len(files[name]) for name in pictures)
    answer = start(tmp_path, "size", largest - 1)
    last = answer["err"].splitlines()[-1]
    assert answer["status"] == 1 and last.startswith(f"error: cannot write {tmp_path}")
    check_whole(tmp_path)
    assert start(tmp_path)["status"] == 1
    assert contents(tmp_path) == files


def test_second_run_into_the_folder_is_refused(start, undisturbed, tmp_path):
    files, _ = undisturbed
    with RunFolder(tmp_path):
        answer = start(tmp_path)
    assert answer["status"] == 1 and not (tmp_path / "results.jsonl").exists()
    assert f"error: another run is writing to {tmp_path}" in answer["err"]
    assert start(tmp_path)["status"] == 1
    assert contents(tmp_path) == files
