"""Videos: every frame once, the overlay video, and resuming."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dcp_clip.folder_run.plan import Job
from dcp_clip.predictor import Predictor
from dcp_clip.utils.images.files import ImageReadError
from dcp_clip.video.frames import VideoReader, is_video
from dcp_clip.video.overlay import changed_fraction
from dcp_clip_cli import segment

av = pytest.importorskip("av")
COUNT = 7


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_every_frame_is_read_once_in_order(clip, tmp_path):
    assert is_video(clip) and not is_video("a.png")
    (tmp_path / "frames.mp4").mkdir()
    assert not is_video(tmp_path / "frames.mp4")
    with VideoReader(clip) as reader:
        assert (reader.count, reader.rate) == (COUNT, 5)
        for number in (1, 2, 5):
            image, size, state = reader.read(Job(clip, clip, number))
            assert size == (48, 64) and state["frame"] == number
            assert state["seconds"] == pytest.approx(number / 5)
            assert abs(int(image[20, 10, 0]) - 30 * number) < 8
        with pytest.raises(ImageReadError, match="ends before"):
            reader.read(Job(clip, clip, 9))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\n" + str(clip) + "\n")
    for name in ("broken.mp4", "list.mp4", "missing.mp4"):
        with pytest.raises(ImageReadError, match=name):
            VideoReader(tmp_path / name)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("3g2", "mpeg4"), ("3gp", "mpeg4"), ("asf", "wmv2"), ("ogg", "libvpx"), ("ogv", "libvpx")],
)
def test_formats_of_phones_and_free_formats(suffix, codec, tmp_path):
    path = tmp_path / f"clip.{suffix.upper()}"
    with av.open(str(path), "w", format=suffix) as container:
        stream = container.add_stream(codec, rate=5)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    assert is_video(path)
    with VideoReader(path) as reader:
        assert reader.count == 1
        assert abs(int(reader.read(Job(path, path, 0))[0][20, 10, 0]) - 90) < 8


def test_a_file_with_sound_only_is_one_sentence(tmp_path):
    path = tmp_path / "song.ogg"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), "s16", "mono")
        sound.sample_rate = 48000
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(SystemExit, match="song.ogg: the file has no video stream, only sound"):
        segment.main(["--input", str(path), "--output", str(tmp_path / "out")])


def test_a_video_gives_lines_label_maps_and_an_overlay_and_can_be_resumed(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--every", "2", "--format", "overlay", "labels", "coco") == (0, 4)
    assert [line["frame"] for line in lines(out)] == [0, 2, 4, 6]
    with av.open(str(out / "clip_overlay.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape[1] >= 480
    coco = json.loads((out / "coco.json").read_text())
    assert [image["file_name"].rpartition("#")[2] for image in coco["images"]] == list("0246")
    assert "change their label" in capsys.readouterr().out
    before = [path.read_bytes() for path in sorted((out / "clip").iterdir())]
    text = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(text[:2]) + text[2][:9])  # as after kill -9
    assert run("--every", "2", "--format", "overlay", "labels", "coco") == (0, 2)
    assert [line["frame"] for line in lines(out)] == [0, 2, 4, 6]
    assert [path.read_bytes() for path in sorted((out / "clip").iterdir())] == before
    with pytest.raises(SystemExit, match="every was 2 and is 3"):
        run("--every", "3", "--format", "overlay", "labels", "coco")


@pytest.mark.parametrize("option", [(), ("--smoothing", "0.3")])
def test_frames_are_reduced_like_image_files(run, tmp_path, monkeypatch, option):
    given, call = [], Predictor.__call__

    def record(self, image, size=None, **options):
        given.append(image.shape[:2])
        return call(self, image, size, **options)

    monkeypatch.setattr(Predictor, "__call__", record)
    assert run("--every", "6", "--only", "labels", "--max-pixels", "300", *option) == (0, 2)
    assert given == [(15, 20)] * 2
    with Image.open(tmp_path / "out" / "clip" / "000006_labels.png") as labels:
        assert labels.size == (64, 48)


def test_overwriting_removes_the_files_of_the_run(run, tmp_path):
    out = tmp_path / "out"
    assert run("--every", "3") == (0, 3)
    mine = out / "mine_overlay.mp4"
    mine.touch()
    assert (out / "clip_overlay.mp4").exists() and run("--every", "3") == (0, 0)
    assert run("--every", "5", "--only", "labels", "--overwrite") == (0, 2)
    names = {"000000_labels.png", "000005_labels.png", "mine_overlay.mp4"}
    assert {path.name for path in out.rglob("*_*")} == names
    # An overlay that was not made by a run with these settings stays.
    (out / "clip_overlay.mp4").touch()
    assert run("--every", "6", "--only", "labels", "--overwrite") == (0, 2)
    assert (out / "clip_overlay.mp4").exists()


def test_an_overlay_replaces_no_input(clip, tmp_path):
    given = [str(clip), str(clip.rename(tmp_path / "clip_overlay.mp4"))]
    clip.touch()
    with pytest.raises(SystemExit, match="clip_overlay.mp4 is an input and would be replaced"):
        segment.main(["--input", *given, "--output", str(tmp_path), "--overwrite"])


def test_videos_with_the_same_name_have_their_own_results(run, write_clip, clip, tmp_path):
    other = write_clip(tmp_path / "b" / "clip.mp4", size=(80, 96))
    third = write_clip(tmp_path / "c" / "Clip.mkv", size=(32, 32))
    out = tmp_path / "out"
    assert run("--every", "3") == (0, 3)
    # In a later run alone, and together: a video keeps its folder.
    for given, calls in (([other], 3), ([third, clip, other], 3), ([clip, other, third], 0)):
        given = ["--input", *map(str, given)]
        assert run("--every", "3", *given) == (0, calls)
    sizes = {"clip": (64, 48), "clip-2": (96, 80), "Clip-3": (32, 32)}
    for name, size in sizes.items():
        assert Image.open(out / name / "000003_labels.png").size == size
    assert len(lines(out)) == len({line["labels"] for line in lines(out)}) == 9
    overlays = {path.name for path in out.glob("*.mp4")}
    assert overlays == {f"{name}_overlay.mp4" for name in sizes}


def test_a_video_that_cannot_be_read_does_not_stop_the_others(run, clip, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    broken = str(tmp_path / "a.mp4")
    assert run("--input", broken, str(clip), "--format", "labels") == (1, COUNT)
    (failure,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert json.loads(failure)["file"] == broken and "a.mp4" in json.loads(failure)["error"]
    assert "cannot read" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"cannot read .*a\.mp4"):
        run("--input", broken)


def test_a_name_that_is_too_long_for_its_overlay_is_one_failure(run, write_clip, clip, tmp_path):
    long = write_clip(tmp_path / f"{'m' * 249}.mp4")
    assert run("--input", str(long), str(clip)) == (1, COUNT)
    (failure,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert failure["file"] == str(long) and "m_overlay.mp4', is not allowed" in failure["error"]
    assert (tmp_path / "out" / "clip_overlay.mp4").exists()
    assert run("--input", str(long), str(clip), "--format", "labels") == (0, COUNT)


def test_a_video_without_any_result_does_not_stop_the_others(
    run, write_clip, clip, tmp_path, monkeypatch, capsys
):
    """Its frames are in failures.jsonl, and there is no overlay video."""
    bad, read = write_clip(tmp_path / "bad.mp4"), VideoReader.read

    def fail(reader, job):
        if job.image == bad:
            raise ImageReadError(f"cannot read frame {job.frame} of {bad}")
        return read(reader, job)

    monkeypatch.setattr(VideoReader, "read", fail)
    out = tmp_path / "out"
    assert run("--input", str(bad), str(clip), "--format", "overlay", "coco") == (1, COUNT)
    assert len((out / "failures.jsonl").read_text().splitlines()) == COUNT
    assert not (out / "bad_overlay.mp4").exists()
    assert (out / "clip_overlay.mp4").exists() and (out / "coco.json").exists()
    assert "bad.mp4: 0.0 %" not in capsys.readouterr().out


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_damaged_part_does_not_end_a_video(run, write_clip, tmp_path, codec):
    path = write_clip(tmp_path / "damaged.mp4", (48, 64), codec, range(20), g="5", bf="0")
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    assert content.count(packets[7]) == 1
    path.write_bytes(content.replace(packets[7], b"\xff" * len(packets[7])))
    status, calls = run("--input", str(path))
    out = tmp_path / "out"
    assert (status, calls) == (1, 19) or (status, calls) == (0, 20)  # FFmpeg may conceal it
    assert [line["frame"] for line in lines(out)] == list(range(calls))
    assert (out / "damaged_overlay.mp4").exists()
    if status:
        (failure,) = (out / "failures.jsonl").read_text().splitlines()
        assert "cannot read frame 19" in failure and "packets that were skipped: 1)" in failure


def test_a_clip_cut_without_encoding_is_complete(run, write_clip, tmp_path):
    source = write_clip(tmp_path / "source.mp4", times=range(20), g="10", bf="0")
    path = tmp_path / "cut.mp4"
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(source)) as before, av.open(str(path), "w", options=options) as after:
        stream = before.streams.video[0]
        copy = after.add_stream_from_template(stream)
        for packet in before.demux(stream):
            if packet.size:
                seconds = int(1 / packet.time_base)
                packet.pts, packet.dts = packet.pts - seconds, packet.dts - seconds
                packet.stream = copy
                after.mux(packet)
    with VideoReader(path) as reader:
        assert reader.count == 15
    assert run("--input", str(path), "--format", "labels") == (0, 15)


def test_the_overlay_has_the_times_of_the_video(run, write_clip, tmp_path):
    times = [0, 1, 2, 9, 10, 14]
    path = write_clip(tmp_path / "phone.mp4", times=times)
    assert run("--input", str(path))[0] == 0
    with av.open(str(tmp_path / "out" / "phone_overlay.mp4")) as container:
        found = [frame.time for frame in container.decode(video=0)]
    assert found == pytest.approx([time / 5 for time in times], abs=1e-3)


def test_the_overlay_has_the_pixel_aspect_of_the_video(run, write_clip, tmp_path):
    path = write_clip(tmp_path / "wide.mp4", aspect=Fraction(16, 11))
    assert run("--input", str(path))[0] == 0
    with av.open(str(tmp_path / "out" / "wide_overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_a_killed_run_leaves_no_outdated_overlay(run, write_clip, clip, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run() == (0, COUNT)
    write_clip(clip, size=(80, 96))

    def kill(*_):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("dcp_clip_cli.segment_video._write_overlay", kill)
        with pytest.raises(SystemExit):
            run()
    assert run() == (0, 0)
    with av.open(str(out / "clip_overlay.mp4")) as container:
        frame = next(container.decode(video=0))
    assert len(lines(out)) == COUNT and frame.height > frame.width * 80 / 96


def test_the_changed_fraction_counts_pixels(tmp_path):
    maps = np.zeros((3, 2, 4), np.uint8)
    maps[1, 0] = 1  # half of the pixels change, and a quarter of them change back
    maps[2, 0, :2] = 1
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, labels in zip(paths, maps):
        Image.fromarray(labels).save(path)
    assert changed_fraction(paths) == pytest.approx((0.5 + 0.25) / 2)
    assert changed_fraction(paths[:1]) == 0
