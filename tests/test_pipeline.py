"""Images and paths of results of a run; tests/demo/test_demo.py runs the whole pipeline."""

from pathlib import Path

import pytest
from PIL import Image

from dcp_clip.pipeline import plan_jobs
from dcp_clip.utils.image_io import ImageReadError


def save(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(path)


def stems(inputs: list[str], output: str = "out") -> list[str]:
    return [job.stem.as_posix() for job in plan_jobs(inputs, Path(output))]


def test_results_overwrite_neither_each_other_nor_the_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["a/x.jpg", "a/x.png", "a/s/x.jpg", "b/x.jpg", "b/X.png", "c/y.jpg"]:
        save(name)
    assert stems(["a"]) == ["s/x", "x", "x-2"]
    assert stems(["a/x.jpg", "b/x.jpg", "./a/x.jpg"]) == ["x", "x-2"]
    assert stems(["a", "b"]) == ["a/s/x", "a/x", "a/x-2", "b/x", "b/X-2"]
    assert stems(["a/**/*.jpg"]) == ["s/x", "x"]
    save("c/y_overlay.png")
    assert stems(["c/y.jpg", "c/y_overlay.png"], output="c") == ["y-2", "y_overlay"]


@pytest.mark.parametrize("output", ["in", "."])
def test_input_in_the_output_folder(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    save("in/x.jpg")
    with pytest.raises(ImageReadError, match="choose another --output"):
        plan_jobs(["in"], Path(output))
