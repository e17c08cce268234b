"""The overlay video: how long its frames are shown."""

import pytest

av = pytest.importorskip("av")


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4")]
)
@pytest.mark.parametrize(
    "every, times", [("100", [0]), ("4", [0, 4]), ("3", [0, 3, 6]), ("1", None)]
)
def test_no_frame_is_shown_past_the_end_of_the_video(
    run, write_clip, tmp_path, capsys, name, codec, every, times
):
    path = write_clip(tmp_path / name, codec=codec)
    assert run("--input", str(path), "--every", every)[0] == 0
    with av.open(str(tmp_path / "out" / "a_overlay.mp4")) as container:
        length = container.duration / av.time_base
        found = [frame.time for frame in container.decode(video=0)]
    assert length == pytest.approx(7 / 5, abs=1e-3)
    assert found == pytest.approx([time / 5 for time in times or range(7)], abs=1e-3)
    # One frame has no frame before.
    assert ("change their label" in capsys.readouterr().out) == (len(found) > 1)


def test_the_last_frame_is_shown_as_long_as_in_a_video_with_a_varying_rate(
    run, write_clip, tmp_path
):
    path = write_clip(tmp_path / "phone.mkv", times=[0, 1, 2, 9, 10, 14])
    assert run("--input", str(path), "--every", "2")[0] == 0
    with av.open(str(tmp_path / "out" / "phone_overlay.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(3, abs=2e-3)
