"""The demo: each image gets two pictures and one line in results.jsonl."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcp_clip.folder_run import pipeline
from dcp_clip.folder_run.output_folder import RunFolder
from dcp_clip.predictor import Predictor

ROOT = Path(__file__).parents[2]


def test_every_image_gets_two_pictures_and_a_line(
    demo, fake_model, capsys, save, read_results, files_in
):
    save("photos/1.jpg", "blue")
    save("photos/sub folder/straße 图.png", "red")
    assert demo.main(["--input", "photos", "--output", "out", "--vocabulary", "r; g; b"]) == 0
    stems = ["1", "sub folder/straße 图"]
    pictures = {f"{stem}_{end}" for stem in stems for end in ("overlay.jpg", "labels.png")}
    assert files_in("out") == pictures | {"results.jsonl"}
    first, second = read_results("out")
    assert first["file"] == str(Path("photos", "1.jpg"))
    assert (first["width"], first["height"]) == (30, 20)
    assert first["milliseconds"] > 0
    assert first["categories"] == [
        {"id": 2, "name": "b", "share": 1.0, "score": pytest.approx(0.2)}
    ]
    with Image.open(Path("out", second["labels"])) as labels:
        assert labels.size == (30, 20)
        assert not np.asarray(labels).any()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Vocabulary: 3 categories: r, g, b"
    assert "2 of 2 images" in printed[-1]


def test_bad_files_are_reported_and_skipped(demo, fake_model, capsys, save, read_results, files_in):
    save("in/good.png")
    save("in/zgood.jpg")
    content = Path("in/zgood.jpg").read_bytes()
    Path("in/empty.jpg").touch()
    Path("in/not an image.jpg").write_text("hello")
    Path("in/truncated.jpg").write_bytes(content[: len(content) - 100])
    assert demo.main(["--input", "in", "--output", "out"]) == 1
    assert [Path(line["file"]).name for line in read_results("out")] == ["good.png", "zgood.jpg"]
    assert len(files_in("out")) == 6
    captured = capsys.readouterr()
    for name in ("empty.jpg", "not an image.jpg", "truncated.jpg"):
        assert sum(name in line for line in captured.err.splitlines()) == 1
    assert "Traceback" not in captured.err
    assert "2 of 5 images" in captured.out and "3 failed" in captured.out


def test_a_name_that_is_too_long_for_its_results_is_one_failure(
    demo, fake_model, save, read_results, files_in
):
    for name in ("a", "m" * 245, "z"):
        save(f"in/{name}.jpg")
    assert demo.main(["--input", "in", "--output", "out"]) == 1
    assert [Path(line["file"]).stem for line in read_results("out")] == ["a", "z"]
    (failure,) = Path("out/failures.jsonl").read_text().splitlines()
    assert "mmm.jpg: OSError: " in json.loads(failure)["error"]
    assert len(files_in("out")) == 6


def test_all_formats_of_images(demo, fake_model, save, read_results):
    exif = Image.Exif()
    exif[0x0112] = 6
    save("in/rotated.jpg", exif=exif)
    save("in/tiny.png", size=(1, 1))
    save("in/strip.png", size=(3000, 1))
    for mode in ("L", "P", "RGBA", "LA", "1"):
        Image.new("RGB", (30, 20), "red").convert(mode).save(f"in/{mode}.png")
    Image.new("RGB", (30, 20), "red").convert("CMYK").save("in/cmyk.jpg")
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save("in/deep.png")
    assert demo.main(["--input", "in", "--output", "out"]) == 0
    sizes = {Path(r["file"]).stem: (r["width"], r["height"]) for r in read_results("out")}
    assert sizes.pop("rotated") == (20, 30)
    assert sizes.pop("tiny") == (1, 1)
    assert sizes.pop("strip") == (3000, 1)
    assert set(sizes.values()) == {(30, 20)} and len(sizes) == 7


def test_label_map_of_a_large_image_has_its_size(demo, fake_model, save, read_results):
    save("huge.jpg", size=(5000, 4000))  # larger than max_input_pixels
    assert demo.main(["--input", "huge.jpg", "--output", "out"]) == 0
    (line,) = read_results("out")
    assert (line["width"], line["height"]) == (5000, 4000)
    with Image.open("out/huge_labels.png") as labels:
        assert labels.size == (5000, 4000)
    with Image.open("out/huge_overlay.jpg") as overlay:
        assert max(overlay.size) <= 3000


@pytest.mark.parametrize("status", [130, 143])  # 143: SIGTERM, which Slurm and docker send
@pytest.mark.parametrize("writing_takes", [0.0, 0.3])  # with 0.3 s, images wait in the queue
def test_ctrl_c_keeps_finished_images(
    demo, fake_model, capsys, monkeypatch, writing_takes, status, save, read_results, files_in
):
    write_pictures = pipeline._write_pictures

    def write_slowly(*args):
        time.sleep(writing_takes)
        return write_pictures(*args)

    monkeypatch.setattr(pipeline, "_write_pictures", write_slowly)
    fake_model.interrupt_with = status - 128
    for i in range(6):
        save(f"in/{i}.png")
    fake_model.interrupt_at = 4
    assert demo.main(["--input", "in", "--output", "out"]) == status
    lines = read_results("out")
    assert [Path(line["file"]).stem for line in lines] == ["0", "1", "2"][: len(lines)]
    assert len(lines) > 0
    written = {file for line in lines for file in (line["overlay"], line["labels"])}
    assert files_in("out") == written | {"results.jsonl"}
    for file in written:
        Image.open(Path("out", file)).load()
    assert "interrupted" in capsys.readouterr().out


def test_error_in_the_model_skips_one_image(
    demo, fake_model, monkeypatch, capsys, save, read_results
):
    for i in range(3):
        save(f"in/{i}.png")
    forward = fake_model.forward

    def fail_once(inputs):
        if fake_model.calls == 1:
            fake_model.calls += 1
            raise RuntimeError("out of\nmemory")
        return forward(inputs)

    monkeypatch.setattr(fake_model, "forward", fail_once)
    assert demo.main(["--input", "in", "--output", "out"]) == 1
    assert len(read_results("out")) == 2
    assert f"{Path('in', '1.png')}: RuntimeError: out of memory" in capsys.readouterr().err


def test_the_same_command_continues(demo, fake_model, capsys, save, read_results, files_in):
    for name in ("b.png", "c.png"):
        save(f"in/{name}")
    Path("in/bad.png").touch()
    command = ["--input", "in", "--output", "out"]
    assert demo.main(command) == 1
    (failure,) = [json.loads(line) for line in Path("out/failures.jsonl").open()]
    assert failure == {
        "file": str(Path("in/bad.png")),
        "error": f"cannot read {Path('in/bad.png')}: the file is empty",
    }
    save("in/bad.png")  # repaired
    save("in/c.jpg")  # new; in the order of names it comes before c.png
    capsys.readouterr()
    assert demo.main(command) == 0
    assert fake_model.calls == 4
    assert "Skipping 2 of 4 images, which have results in out." in capsys.readouterr().out
    lines = read_results("out")
    names = ["b.png", "c.png", "bad.png", "c.jpg"]
    assert [Path(line["file"]).name for line in lines] == names
    assert [line["labels"].removesuffix("_labels.png") for line in lines] == [
        "b",
        "c",
        "bad",
        "c-2",
    ]
    pictures = {line[key] for line in lines for key in ("overlay", "labels")}
    assert files_in("out") == pictures | {"results.jsonl"}
    save("in/b.png", "blue")  # another photograph
    assert demo.main(command) == 0
    assert fake_model.calls == 5
    assert read_results("out")[-1]["categories"][0]["name"] == "blue"
    assert "Removed 1 result in out, because" in capsys.readouterr().out


def test_other_settings(demo, fake_model, save, read_results, files_in):
    save("in/a.png")
    save("other/b.png")
    command = ["--input", "in", "--output", "out"]
    assert demo.main(command) == 0
    for change in (["--vocabulary", "a; b; c"], ["--opts", "INPUT.MIN_SIZE_TEST", "33"]):
        with pytest.raises(SystemExit, match="error: out holds results of .* --overwrite"):
            demo.main([*command, *change])
    # Other images with the same settings are added.
    assert demo.main(["--input", "other", "--output", "out"]) == 0
    assert [line["file"] for line in read_results("out")] == ["in/a.png", "other/b.png"]
    assert demo.main([*command, "--overwrite", "--vocabulary", "a; b; c"]) == 0
    assert [line["categories"][0]["name"] for line in read_results("out")] == ["a"]
    assert files_in("out") == {"a_overlay.jpg", "a_labels.png", "results.jsonl"}


def test_output_folder_that_is_in_use(demo, fake_model, save):
    save("in/a.png")
    with RunFolder(Path("out")), pytest.raises(SystemExit, match="another run is writing to out"):
        demo.main(["--input", "in", "--output", "out"])


def test_results_of_an_earlier_run_are_not_segmented(demo, fake_model, save, read_results):
    save("in/x.jpg")
    for _ in range(2):
        assert demo.main(["--input", "in", "--output", "in/out"]) == 0
        assert len(read_results("in/out")) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to any folder")
def test_read_only_output_folder(demo, fake_model, capsys, save):
    save("in/x.jpg")
    Path("out").mkdir(mode=0o555)
    with pytest.raises(SystemExit, match="out"):
        demo.main(["--input", "in", "--output", "out"])


def test_end_to_end_with_the_tiny_model(tmp_path, save, read_results):
    config, opts = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml", ["MODEL.DEVICE", "cpu"]
    opts += ["INPUT.MIN_SIZE_TEST", "64", "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""]
    model = Predictor.from_config_file(config, "", opts, allow_random_weights=True).model
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    save(str(tmp_path / "in" / "x.jpg"), size=(120, 80))
    run = subprocess.run(
        [sys.executable, ROOT / "demo" / "demo.py", "--input", tmp_path / "in"]
        + ["--output", tmp_path / "out", "--vocabulary", "sky; tree; car, automobile"]
        + ["--weights", tmp_path / "model.pth", "--opts", *opts],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (line,) = read_results(tmp_path / "out")
    assert sum(category["share"] for category in line["categories"]) == pytest.approx(1)
    assert {c["name"] for c in line["categories"]} <= {"sky", "tree", "car"}
    assert "Vocabulary: 3 categories: sky, tree, car" in run.stdout
