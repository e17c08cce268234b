"""Every benchmark's preparation, on a miniature in its official format."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from PIL import Image

import dcp_clip.data.preparation.convert
from dcp_clip.data.catalog import load_sem_seg
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.program import run_program

PROGRAMS = sorted((Path(__file__).parents[2] / "datasets").glob("prepare_*.py"))


def move_folder(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def assert_prepared(case, root):
    """Every pixel of every label map is right, as Detectron2 reads it."""
    for folder, by_stem in case.expected.items():
        for split, stems in case.stems_of(folder).items():
            records = load_sem_seg(
                root / folder / "images" / split,
                root / folder / "labels" / split,
                label_ext=case.suffix,
                expected_count=len(stems),
            )
            assert [record["image_id"] for record in records] == sorted(stems)
            for record in records:
                path, expected = record["sem_seg_file_name"], by_stem[record["image_id"]]
                with Image.open(path) as label:
                    assert label.mode == {".png": "L", ".tif": "I;16"}[case.suffix]
                np.testing.assert_array_equal(load_image_into_numpy_array(path), expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_pixel(case, tmp_path, workers, contents):
    before = contents(case.source)
    case.run(tmp_path / "out", workers=workers)
    assert_prepared(case, tmp_path / "out")
    assert contents(case.source) == before
    for folder in case.expected:
        for split, stems in case.stems_of(folder).items():
            for stem in stems:
                image = tmp_path / "out" / folder / "images" / split / f"{stem}.jpg"
                assert image.read_bytes() == case.images[stem].read_bytes()


def test_interrupted_and_repeated_runs(case, tmp_path, contents, monkeypatch):
    case.run(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    read, calls = dcp_clip.data.preparation.convert.read_photograph, []

    def stop_at_second(path, label_size):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(path, label_size)

    monkeypatch.setattr(dcp_clip.data.preparation.convert, "read_photograph", stop_at_second)
    assert run_program(case.run, root=tmp_path / "out", workers=1) == 130
    stopped = {p: (tmp_path / "out" / p).stat().st_mtime_ns for p in contents(tmp_path / "out")}
    assert {p for p in stopped if p.suffix == case.suffix} and len(stopped) < len(whole)
    case.run(tmp_path / "out")
    assert contents(tmp_path / "out") == whole
    total = sum(len(labels) for labels in case.expected.values())
    assert len(calls) == total + 1  # The interrupted image was read again.
    assert all((tmp_path / "out" / p).stat().st_mtime_ns == t for p, t in stopped.items())
    case.run(tmp_path / "out")
    assert len(calls) == total + 1


def test_report_lists_shares_and_present_categories(case, tmp_path, caplog):
    caplog.set_level("INFO")
    case.run(tmp_path / "out")
    report = " ".join(caplog.text.split())
    assert "val: 2 images in" in report and "(2 written, 0 existed)" in report
    folder, labels = next(iter(case.expected.items()))
    ignored = 65535 if case.suffix == ".tif" else 255
    maps = np.stack([labels[stem] for stem in case.stems["val"]])
    assert f"(ignored) {100 * (maps == ignored).mean():.2f}" in report
    assert f"val: {len(np.unique(maps[maps != ignored]))} of" in report


def test_missing_input_folder_names_the_download(case, tmp_path):
    case.source = tmp_path / "nowhere"
    with pytest.raises(DatasetError, match="nowhere does not exist.*see datasets/README.md"):
        case.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", [0, 1], ids=["image", "label map"])
def test_missing_file_names_the_archive_and_writes_nothing(case, tmp_path, what):
    path = (case.images, case.label_files)[what]["v1"]
    path.unlink()
    with pytest.raises(DatasetError, match="does not exist|has no (image|label map)") as error:
        case.run(tmp_path / "out")
    assert "v1" in str(error.value) or path.name in str(error.value)
    assert case.archives[what] in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", [0, 1], ids=["images", "label maps"])
def test_missing_folder_names_the_archive_and_writes_nothing(case, tmp_path, what):
    if case.name in ("ade20k_847", "pascal_context_59") and what == 1:
        pytest.skip("its label maps have no folder of their own")
    path = (case.images, case.label_files)[what]["v1"]
    move_folder(path.parents[2 if case.name == "ade20k_847" else 0], tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="does not exist|holds neither") as error:
        case.run(tmp_path / "out")
    assert case.archives[what] in str(error.value)
    assert not (tmp_path / "out").exists()


def test_wrong_count_writes_nothing(case, tmp_path):
    for key, value in case.kwargs.items():
        if key == "image_count":
            case.kwargs[key] = 1449
        elif key == "image_counts":
            case.kwargs[key] = value | {"val": 1449}
    with pytest.raises(DatasetError, match="2 images, not 1449"):
        case.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_files_are_named_and_the_rest_is_written(case, tmp_path, contents, workers):
    if case.name == "pascal_context_59":
        pytest.skip("its label maps are in one file")
    path = case.label_files["v1"]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DatasetError, match=f"{path} cannot be read"):
        case.run(tmp_path / "out", workers=workers)
    # Later splits are not prepared, nor is the second benchmark of a program that makes two.
    written = {p.stem for p in contents(tmp_path / "out") if p.suffix == case.suffix}
    assert written == {stem for stems in case.stems.values() for stem in stems} - {"v1"}


def test_truncated_photograph(case, tmp_path):
    path = case.images["v0"]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=f"{path} cannot be read"):
        case.run(tmp_path / "out")


def test_photograph_of_another_size(case, tmp_path):
    Image.new("RGB", (30, 50)).save(case.images["v0"])
    with pytest.raises(DatasetError, match="v0.jpg is 30 x 50 pixels, but its label map"):
        case.run(tmp_path / "out")


def test_program_with_its_default_input(case, tmp_path, main_of, contents):
    case.run(tmp_path / "out")
    root = tmp_path / "root"
    move_folder(case.source, root / case.conventional)
    options = ["--splits", "train", "val", "--original-size"] if case.name == "ade20k_847" else []
    assert main_of(case)(["--root", str(root), "--workers", "1", *options]) == 0
    for folder in case.expected:
        assert contents(root / folder) == contents(tmp_path / "out" / folder)


def test_program_ends_with_one_line_on_an_error(case, tmp_path, caplog, load_program):
    argv = ["--input", str(case.source), "--root", str(tmp_path / "out"), "--workers", "1"]
    assert load_program(case.program).main(argv) == 1  # The official counts differ.
    assert "not " in caplog.text or "missing" in caplog.text
    assert len(caplog.records[-1].getMessage().splitlines()) == 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_help_needs_no_torch(path):
    code = "import runpy, sys; sys.modules.update(torch=None, dcp_clip=None, detectron2=None); "
    code += f"sys.argv = ['prepare', '--help']; runpy.run_path({str(path)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--workers" in result.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
@pytest.mark.parametrize("option", ["--workers=0", "--workers=-3", "--root="])
def test_invalid_arguments(program, option, load_program, capsys):
    with pytest.raises(SystemExit) as raised:
        load_program(f"datasets/{program.name}").main([option])
    assert raised.value.code == 2 and option.split("=")[0] in capsys.readouterr().err
