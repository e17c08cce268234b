"""The output folder of a run: settings, lines, lock and repairs."""

import errno
import itertools
import json
import os
from pathlib import Path

import pytest

from dcp_clip.folder_run import line_file
from dcp_clip.folder_run.line_file import LineFile
from dcp_clip.folder_run.output_folder import RunFolder, RunFolderError
from dcp_clip.folder_run.result_files import SUFFIXES

SETTINGS = {"weights fingerprint": "1f", "config": {"INPUT.MIN_SIZE_TEST": "32"}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def finish(folder: RunFolder, name: str) -> None:
    """Write the results of an image as a run does."""
    record = {"file": name, **line_file.file_state(name)}
    for kind in ("overlay", "labels"):
        record[kind] = Path(name).stem + SUFFIXES[kind]
        (folder.folder / record[kind]).write_text(kind)
    folder.results.write(json.dumps(record) + "\n")


def run(images: list[str], settings=SETTINGS, overwrite=False) -> dict[str, Path]:
    """Run over images that are not finished; returns those that were finished before."""
    with RunFolder(Path("out")) as folder:
        folder.open(settings, overwrite)
        finished = {os.path.relpath(path): stem for path, stem in folder.finished.items()}
        folder.begin([])
        for name in images:
            if not Path(name).exists():
                Path(name).touch()
            if name not in finished:
                finish(folder, name)
    return finished


def lines() -> list[str]:
    return [json.loads(line)["file"] for line in Path("out/results.jsonl").open()]


def test_finished_images_are_known():
    assert run(["a.jpg", "b.jpg"]) == {}
    assert run(["a.jpg", "b.jpg", "c.jpg"]) == {"a.jpg": Path("a"), "b.jpg": Path("b")}
    assert lines() == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("rest", [*range(0, 150, 7)])
def test_truncated_last_line_is_removed(rest):
    run(["a.jpg", "b.jpg"])
    path = Path("out/results.jsonl")
    first, second = path.read_bytes().splitlines(keepends=True)
    whole = first + second
    path.write_bytes(first + second[:rest])
    known = run(["a.jpg", "b.jpg"])
    assert list(known) == (["a.jpg", "b.jpg"] if rest >= len(second) else ["a.jpg"])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", ["[]", "{}", "null", "\udcff", "{", '{"file": "a.jpg", "overlay": 1, "labels": 2}', ""]
)
def test_damaged_lines_are_removed(line):
    run(["a.jpg"])
    path = Path("out/results.jsonl")
    good = path.read_bytes()
    path.write_bytes(line.encode("utf-8", "surrogateescape") + b"\n" + good)
    assert list(run(["a.jpg"])) == ["a.jpg"]
    assert path.read_bytes() == good


def test_image_without_a_picture_or_that_has_changed_is_repeated():
    run(["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    Path("out/a_labels.png").unlink()
    Path("b.jpg").write_text("another photograph")
    Path("d.jpg").unlink()  # keeps its results
    with RunFolder(Path("out")) as folder:
        folder.open(SETTINGS)
        assert [Path(path).name for path in folder.finished] == ["c.jpg", "d.jpg"]
        assert folder.repeated == 2
    run(["a.jpg", "b.jpg", "c.jpg"])
    assert lines() == ["c.jpg", "d.jpg", "a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "settings, difference",
    [
        (SETTINGS | {"weights fingerprint": "2e"}, "weights fingerprint was 1f and is 2e"),
        (SETTINGS | {"config": {"INPUT.MIN_SIZE_TEST": "64"}}, "TEST was 32 and is 64"),
        (SETTINGS | {"config": {}}, "INPUT.MIN_SIZE_TEST was 32 and is None"),
        (SETTINGS | {"weights fingerprint": "3" * 50}, "fingerprint was 1f and is 3{39}…"),
        (SETTINGS | dict.fromkeys("abcde", 1), "a was None and is 1, .* and 2 more"),
    ],
)
def test_results_of_other_settings_are_kept_unless_overwritten(settings, difference):
    run(["a.jpg", "b.jpg"])
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    with pytest.raises(RunFolderError, match=f"{difference}.*--overwrite") as error:
        run(["a.jpg"], settings)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    assert run(["a.jpg"], settings, overwrite=True) == {}
    assert lines() == ["a.jpg"] and not Path("out/b_labels.png").exists()
    # The same command continues; it does not begin anew.
    assert list(run(["a.jpg"], settings, overwrite=True)) == ["a.jpg"]


def test_results_of_an_earlier_version_are_kept_unless_overwritten():
    run(["a.jpg"])
    Path("out/run.json").unlink()
    with pytest.raises(RunFolderError, match="run.json is missing"):
        run(["a.jpg"])
    run(["b.jpg"], overwrite=True)
    assert lines() == ["b.jpg"] and not Path("out/a_labels.png").exists()


@pytest.mark.parametrize("content", ["", "{", "\0"])
def test_manifest_that_cannot_be_read(content):
    run(["a.jpg"])
    Path("out/run.json").write_text(content)
    with pytest.raises(RunFolderError, match="cannot read out/run.json"):
        run(["a.jpg"], overwrite=True)


@pytest.mark.parametrize("overlay", ["../mine_overlay.jpg", "sub/mine_overlay.jpg", "/mine.png"])
def test_overwriting_removes_no_file_outside_the_folder(tmp_path, overlay):
    run(["a.jpg"])
    Path("elsewhere").mkdir()
    os.symlink("../elsewhere", "out/sub")
    mine = [Path("mine_overlay.jpg"), Path("elsewhere/mine_overlay.jpg")]
    for path in mine:
        path.touch()
    record = {"file": "x.jpg", "overlay": overlay, "labels": "x_labels.png"}
    with open("out/results.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    run(["b.jpg"], {}, overwrite=True)
    assert all(path.exists() for path in mine)


def test_files_of_others_are_not_overwritten():
    Path("out").mkdir()
    picture = Path("out/a_overlay.jpg")
    picture.write_text("mine")
    for _ in range(2):
        with RunFolder(Path("out")) as folder:
            folder.open(SETTINGS)
            with pytest.raises(RunFolderError, match="out/a_overlay.jpg exists"):
                folder.begin([picture])
    assert picture.read_text() == "mine" and not Path("out/run.json").exists()
    with RunFolder(Path("out")) as folder:
        folder.open(SETTINGS, overwrite=True)
        folder.begin([picture])


def test_second_run_into_the_folder():
    with RunFolder(Path("out")):
        with pytest.raises(RunFolderError, match="another run is writing to out"):
            RunFolder(Path("out")).__enter__()
    with RunFolder(Path("out")):
        pass


def test_leftovers_are_removed():
    run(["a.jpg"])
    for name in ("1.part", "run.json", "sub/x"):
        path = Path("out/.unfinished", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    run(["a.jpg"])
    assert not Path("out/.unfinished").exists()


@pytest.mark.parametrize("output", ["file", "file/out", "/proc/out", "x" * 300])
def test_folder_that_cannot_be_used(output):
    Path("file").touch()
    with pytest.raises(RunFolderError, match=f"cannot use {output} .* choose another one"):
        RunFolder(Path(output)).__enter__()


def test_full_disk_leaves_whole_lines(monkeypatch, tmp_path):
    """The operating system takes a part of the line, then the disk is full."""
    file = LineFile(tmp_path / "lines")
    file.write("first\n")
    parts, write = [3, 2], os.write

    def write_part(fd, data):
        if not parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: parts.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(line_file.os, "write", write_part)
        with pytest.raises(OSError, match="No space"):
            file.write("second\n")
    assert file.path.read_text() == "first\n"
    file.write("third\n")
    file.close()
    assert file.path.read_text() == "first\nthird\n"


def test_results_of_an_earlier_version_are_kept_and_overwritten():
    """Overlays were PNG files."""
    run(["a.jpg", "b.jpg"])
    path = Path("out/results.jsonl")
    path.write_text(path.read_text().replace("_overlay.jpg", "_overlay.png"))
    for name in "ab":
        Path(f"out/{name}_overlay.jpg").rename(f"out/{name}_overlay.png")
    assert run(["a.jpg"]) == {"a.jpg": Path("a"), "b.jpg": Path("b")}
    run(["c.jpg"], {}, overwrite=True)
    assert {p.name for p in Path("out").glob("*_*")} == {"c_overlay.jpg", "c_labels.png"}


def test_files_of_a_removed_line_are_removed():
    """No line names them any more, so --overwrite could not remove them."""
    run(["a.jpg", "b.jpg"])
    path = Path("out/results.jsonl")
    path.write_text(2 * path.read_text())  # the second line of an image counts
    Path("b.jpg").write_text("another photograph")
    run(["a.jpg"])
    assert lines() == ["a.jpg"]
    assert {p.name for p in Path("out").glob("*_*")} == {"a_overlay.jpg", "a_labels.png"}


KINDS = {"images": {}, "rasters": {"bands": None, "range": None}, "videos": {"every": 1}}


@pytest.mark.parametrize("before, now", [*itertools.permutations(KINDS, 2)])
def test_results_of_another_kind_of_input_are_kept_unless_overwritten(before, now):
    """The other settings are equal."""
    run(["a.jpg"], SETTINGS | KINDS[before])
    Path("out/.blocks").mkdir()
    mine = Path("out/mine_labels.png")
    mine.touch()
    record = {"file": "s.tif", "overlay": "s_overlay.jpg", "labels": "s_labels.tif"}
    record |= {"confidence": "s_confidence.tif", "polygons": "s_polygons.gpkg"}
    with open("out/results.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    for kind in ("overlay", "labels", "confidence", "polygons"):
        Path("out", record[kind]).touch()
    with pytest.raises(RunFolderError, match=f"the input was {before} and is {now}"):
        run(["b.jpg"], SETTINGS | KINDS[now])
    run(["b.jpg"], SETTINGS | KINDS[now], overwrite=True)
    assert {p.name for p in Path("out").glob("*_*")} == {"b_overlay.jpg", "b_labels.png", mine.name}
    assert not Path("out/.blocks").exists()


def test_only_videos_of_the_run_are_overwritten(tmp_path):
    (tmp_path / "x_overlay.mp4").touch()
    with RunFolder(Path("out")) as folder:
        folder.open(SETTINGS)
        folder.begin([])
        folder.record_video(Path("out/a_overlay.mp4"))
    run([])  # keeps the record
    for name in ("a_overlay.mp4", "b_overlay.mp4"):
        Path("out", name).touch()
    path = Path("out/run.json")
    settings = json.loads(path.read_text())
    settings["videos"] += ["../x_overlay.mp4", str(tmp_path / "x_overlay.mp4"), "run.json", 3]
    path.write_text(json.dumps(settings))
    run([], {}, overwrite=True)
    assert not Path("out/a_overlay.mp4").exists() and Path("out/b_overlay.mp4").exists()
    assert (tmp_path / "x_overlay.mp4").exists()
    assert "videos" not in json.loads(path.read_text())


def test_a_run_without_results_does_not_block_another():
    with RunFolder(Path("out")) as folder:
        folder.open({"bands": None})
        folder.begin([])
        folder.failures.write("{}\n")
    assert run(["a.jpg"]) == {}
    assert json.loads(Path("out/run.json").read_text()) == SETTINGS and lines() == ["a.jpg"]
    with pytest.raises(RunFolderError, match="other settings"):
        run([], {"bands": None})
