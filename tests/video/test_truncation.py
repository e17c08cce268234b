"""A video file whose end is missing."""

import json

import pytest

from dcp_clip.video.frames import VideoReader

av = pytest.importorskip("av")
FILES = [
    ("clip.mkv", "libx264", {}),
    ("clip.webm", "libvpx", {}),
    ("clip.mp4", "libx264", {"movflags": "faststart"}),
]


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@pytest.mark.parametrize("times", [range(40), [i * i for i in range(40)]])
@pytest.mark.parametrize("name, codec, container", FILES)
def test_only_a_file_without_its_end_is_truncated(
    write_clip, tmp_path, name, codec, container, times
):
    options = {"codec": codec, "times": times, "container": container, "g": "5"}
    path = write_clip(tmp_path / name, **options)
    with VideoReader(path) as reader:
        assert not reader.is_truncated and reader.count == len(times)
    with open(path, "ab") as file:
        file.write(b"\0\0\x7f\0SEFDwhat a camera appends")
    with VideoReader(path) as reader:
        assert not reader.is_truncated
    path = write_clip(tmp_path / name, **options)
    cut(path)
    with VideoReader(path) as reader:
        assert reader.is_truncated


@pytest.mark.parametrize("name, container", [("a.mkv", {"live": "1"}), ("a.ts", {}), ("a.flv", {})])
def test_a_file_that_states_no_size_is_not_truncated(write_clip, tmp_path, name, container):
    codec = "flv" if name == "a.flv" else "libx264"
    path = write_clip(tmp_path / name, codec=codec, times=range(40), container=container)
    with VideoReader(path) as reader:
        assert not reader.is_truncated


def test_a_truncated_video_is_a_failure_and_its_other_frames_have_results(
    run, write_clip, tmp_path, capsys
):
    path = write_clip(tmp_path / "cut.mkv", times=range(40))
    cut(path)
    with VideoReader(path) as reader:
        count = reader.count
    assert 0 < count < 40
    out = tmp_path / "out"
    for calls in (count, 0):  # also if all frames have results
        assert run("--input", str(path)) == (1, calls)
        (failure,) = map(json.loads, (out / "failures.jsonl").read_text().splitlines())
        assert failure["file"] == str(path) and "cut.mkv is truncated" in failure["error"]
        assert failure["error"] in capsys.readouterr().err
    assert len((out / "results.jsonl").read_text().splitlines()) == count
    assert (out / "cut_overlay.mp4").exists()
