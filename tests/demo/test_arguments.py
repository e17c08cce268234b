"""The arguments of the demo: the kind of the input, and errors of the user."""

import subprocess
import sys
from pathlib import Path

import pytest

from dcp_clip_cli import segment

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "absent.jpg"], "absent.jpg"),
        (["--input", "empty"], "empty"),
        (["--input", "in/*.tif"], "*.tif"),
        (["--input", "in", "--output", "in/x.jpg"], "in/x.jpg"),
        (["--input", "in", "--output", "/proc/out"], "/proc/out"),
        (["--input", "in", "--vocabulary", " ; "], "name"),
        (["--input", "in", "--vocabulary", "absent.txt"], "absent.txt"),
        (["--input", "in", "--opts", "MODEL.WIEGHTS", "x"], "MODEL.WIEGHTS"),
        (["--input", "in", "--range", "0", "1"], "--range has no effect on images"),
        (["--input", "in", "--every", "2"], "--every has no effect on images"),
        (["--input", "in", "--smoothing", "0.5"], "--smoothing has no effect on images"),
        (["--input", "x.mp4", "--range", "0", "1"], "--range has no effect on videos"),
        (["--input", "x.png", "--bands", "1", "--every", "2"], "--every has no effect on rasters"),
        (["--input", "x.png", "--bands", "1", "--max-pixels", "9"], "--max-pixels has no effect"),
        (["--input", "x.mp4", "--bands", "1"], "--bands has no effect on videos, only on rasters"),
        (["--input", "in", "x.mp4"], "separate runs: in/x.jpg is an image and x.mp4 is a video."),
        (["--input", "clips"], "such as 'clips/*.mp4'"),
    ],
)
def test_error_of_the_user_is_one_sentence(demo, fake_model, capsys, arguments, message, save):
    for name in ("in/x.jpg", "x.png"):
        save(name)
    Path("x.mp4").touch()
    Path("clips").mkdir()
    Path("clips/a.mp4").touch()
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as exit:
        demo.main([*arguments])
    assert exit.value.code.startswith("error: ") and message in exit.value.code
    assert "\n" not in exit.value.code
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max-pixels", "0"], "--max-pixels: invalid positive value: '0'"),
        (["--max-pixels", "-5"], "--max-pixels: invalid positive value: '-5'"),
        (["--backend", "onnx", "--weights", "x", "--config-file", "a.yaml"], "no --config-file"),
    ],
)
def test_wrong_arguments(demo, capsys, arguments, message):
    with pytest.raises(SystemExit):
        demo.main(["--input", "in", *arguments])
    assert message in capsys.readouterr().err


def test_the_files_that_are_found_decide_the_kind(demo, fake_model, monkeypatch, save):
    found = []
    monkeypatch.setattr(segment, "_run_other", lambda _, kind, images: found.append((kind, images)))
    for name in ("in/a.TIF", "in/s/b.tiff"):
        save(name, format="TIFF", tiffinfo={33550: (0.5, 0.5, 0.0)})  # pixel scale
    save("out/a_labels.tif", tiffinfo={33550: (0.5, 0.5, 0.0)})  # of an earlier run
    Path("in/c.mp4").touch()
    save("frames.mp4/x.png")
    save("frames.mp4/y.tif")
    rasters = {Path("in/a.TIF"): Path("a"), Path("in/s/b.tiff"): Path("s/b")}
    for given in ("in", "in/**/*.[tT]*"):
        demo.main(["--input", given, "--output", "out"])
        assert found.pop() == ("raster", rasters)
    demo.main(["--input", "in/*.mp4", "--output", "out"])
    assert found.pop()[0] == "video"
    assert demo.main(["--input", "frames.mp4", "--output", "x"]) == 0 and not found
    for given in (["in", "frames.mp4"], ["[fi]*"]):
        with pytest.raises(SystemExit, match="separate runs: .*x.png is an image and .*a.TIF is a"):
            demo.main(["--input", *given, "--output", "all"])


def test_input_is_required(demo, capsys):
    with pytest.raises(SystemExit):
        demo.main([])
    assert "give --input or --samples" in capsys.readouterr().err


def test_help_does_not_import_torch():
    # None in sys.modules makes the import fail.
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv[:1] = []; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, ROOT / "demo" / "demo.py", "--help"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and "--vocabulary" in run.stdout


@pytest.mark.parametrize("program", ["demo", "app"])
def test_ctrl_c_before_the_first_image_prints_nothing(program):
    code = "import runpy, sys\nfrom dcp_clip_cli import segment, app\n"
    code += "def interrupt(): raise KeyboardInterrupt\n"
    code += "segment.main = app.main = interrupt\nrunpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, ROOT / "demo" / f"{program}.py"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")


def test_samples(demo, fake_model, read_results, monkeypatch):
    pytest.importorskip("sklearn")
    assert demo.main(["--samples", "--output", "out"]) == 0
    assert {Path(line["file"]).name for line in read_results("out")} == {"china.jpg"}
    Path("x.mp4").touch()
    for arguments, message in (
        (["--input", "x.mp4"], "separate runs: .*x.mp4 is a video"),
        (["--bands", "1"], "--bands has no effect on images, only on rasters"),
    ):
        with pytest.raises(SystemExit, match=message):
            demo.main(["--samples", "--output", "out", *arguments])
    monkeypatch.setattr("dcp_clip.utils.images.samples.find_photographs", list)
    with pytest.raises(SystemExit, match="no sample photograph: install it with pip"):
        demo.main(["--samples", "--output", "out"])
