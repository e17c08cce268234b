"""Which images the demo takes, and what their results are called."""

import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "demo"))

import demo_inputs


def draw(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(path)


def stems(inputs: list[str], output: str = "out") -> list[str]:
    return [job.stem.as_posix() for job in demo_inputs.plan_jobs(inputs, Path(output))]


def test_results_never_overwrite_each_other_or_the_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["a/x.jpg", "a/x.png", "a/s/x.jpg", "b/x.jpg", "b/X.png", "c/y.jpg"]:
        draw(name)
    assert stems(["a"]) == ["s/x", "x", "x-2"]
    assert stems(["a/x.jpg", "b/x.jpg", "./a/x.jpg"]) == ["x", "x-2"]
    assert stems(["a", "b"]) == ["a/s/x", "a/x", "a/x-2", "b/x", "b/X-2"]
    assert stems(["a/**/*.jpg"]) == ["s/x", "x"]
    draw("c/y_overlay.png")
    assert stems(["c/y.jpg", "c/y_overlay.png"], output="c") == ["y-2", "y_overlay"]


def test_samples_are_photographs():
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")
    samples = demo_inputs.find_samples()
    assert len(samples) == len(demo_inputs.SAMPLES)
    assert len(set(stems(samples))) == len(samples)
