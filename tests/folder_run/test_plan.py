"""The images of a run and the paths of their results."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcp_clip.folder_run.plan import find_images, plan_jobs
from dcp_clip.utils.images.reading import ImageReadError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(path: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(path)


def stems(inputs: list[str], output: str = "out") -> list[str]:
    images = find_images(inputs, Path(output))
    return [job.stem.as_posix() for job in plan_jobs(images, Path(output))]


def test_results_overwrite_neither_each_other_nor_the_input():
    for name in ["a/x.jpg", "a/x.png", "a/s/x.jpg", "b/x.jpg", "b/X.png", "c/y.jpg"]:
        save(name)
    assert stems(["a"]) == ["s/x", "x", "x-2"]
    assert stems(["a/x.jpg", "b/x.jpg", "./a/x.jpg"]) == ["x", "x-2"]
    assert stems(["a", "b"]) == ["a/s/x", "a/x", "a/x-2", "b/x", "b/X-2"]
    assert stems(["a/**/*.jpg"]) == ["s/x", "x"]
    save("c/y_overlay.jpg")
    assert stems(["c/y.jpg", "c/y_overlay.jpg"], output="c") == ["y-2", "y_overlay"]


def test_the_suffixes_of_the_run_decide_what_is_overwritten():
    images = {Path(name): Path(name).with_suffix("") for name in ("y.tif", "y_labels.tif")}
    jobs = plan_jobs(images, Path(), suffixes=["_labels.tif", "_overlay.jpg"])
    assert [job.stem.name for job in jobs] == ["y-2", "y_labels"]
    jobs = plan_jobs(images, Path(), suffixes=["_overlay.jpg"])
    assert [job.stem.name for job in jobs] == ["y", "y_labels"]


@pytest.mark.parametrize("output", ["in", "."])
def test_input_in_the_output_folder(output):
    save("in/x.jpg")
    with pytest.raises(ImageReadError, match="choose another --output"):
        find_images(["in"], Path(output))


@pytest.mark.parametrize(
    "pattern", ["*/../../x", "*/../../x/*.jpg", "../x", "../*", "../**/*.jpg", "s/../../x"]
)
def test_results_stay_in_the_output_folder(tmp_path, monkeypatch, pattern):
    save("work/s/y.jpg")
    save("x/1.jpg")
    monkeypatch.chdir("work")
    names = stems([pattern])
    assert any(Path(name).name == "1" for name in names)
    assert not any(".." in Path(name).parts or Path(name).is_absolute() for name in names)


def test_results_of_another_run_are_skipped(caplog):
    for name in ["in/x.jpg", "in/results/x_overlay.jpg", "in/results/s/y.png", "in/other/z.jpg"]:
        save(name)
    Path("in/other/run.json").touch()  # another program's
    for name in ("run.json", "results.jsonl"):
        Path("in/results", name).touch()
    for pattern in ("in", "in/**/*.*g"):
        assert stems([pattern]) == ["other/z", "x"]
    assert caplog.messages == 2 * ["Skipped the results of an earlier run in in/results."]
    assert stems(["in/results/x_overlay.jpg"]) == ["x_overlay"]
    assert stems(["in/results"]) == ["s/y", "x_overlay"]


def test_link_that_leads_out_of_the_output_folder():
    save("in/sub/x.jpg")
    Path("out").mkdir()
    Path("elsewhere").mkdir()
    os.symlink("../elsewhere", "out/sub")
    with pytest.raises(ImageReadError, match="out/sub leads out of the output folder"):
        stems(["in"])


NAMES = ["x.jpg", "x.png", "X.png", "x-2.jpg", "x-2.png", "x-2-2.jpg"]


@given(st.lists(st.sampled_from(NAMES), unique=True), st.sets(st.sampled_from(NAMES)))
def test_a_continued_run_chooses_the_same_paths(names, finished):
    """Whatever images are finished, for example because another one failed."""
    images = {Path(name): Path(name).with_suffix("") for name in names}
    whole = plan_jobs(images, Path("out"))
    done = {os.path.abspath(job.image): job.stem for job in whole if job.image.name in finished}
    rest = plan_jobs(images, Path("out"), done)
    assert rest == [job for job in whole if os.path.abspath(job.image) not in done]
