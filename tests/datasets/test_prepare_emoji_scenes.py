"""datasets/prepare_emoji_scenes.py from art to data set, with art that the test writes."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dcp_clip.emoji_scenes import prepare
from dcp_clip.emoji_scenes.art import ART, PRETRAINING_ART
from dcp_clip.emoji_scenes.names import load_name_list
from dcp_clip.emoji_scenes.subsets import SCENE_COUNTS, SPLITS

SHAPES = (
    '<circle cx="6" cy="6" r="5" fill="{}"/>',
    '<rect y="3" width="12" height="6" fill="{}"/>',
)
COLORS = ("red", "lime", "blue", "yellow", "cyan", "magenta", "black", "white")


def drawn_files(package, number):
    """The files of a set, in which a dozen names of every part are drawn."""
    names = load_name_list()
    ids = [i for part in ("base", "unseen", "rest") for i in names.thing_ids(part)[:12]]
    icons, chars, images = {}, {}, {}
    for k, thing in enumerate(names.things[i] for i in ids):
        icon = thing.icons.get(package.style, (f"icon-{k}",))[0]
        icons[icon] = {"body": SHAPES[k % 2].format(COLORS[(k + number) % 8])}
        chars[thing.code_points[0]] = icon
        Image.new("RGB", (12, 8), COLORS[k % 8]).save(image := io.BytesIO(), "WEBP")
        images[f"assets/{thing.code_points[0]}.webp"] = image.getvalue()
    if package.images:
        info = {"author": "A. Nother", "license": "CC0-1.0", "description": "Emoji."}
        return images | {"package.json": json.dumps(info).encode()}
    files = {
        "icons.json": {"width": 12, "height": 12, "icons": icons},
        "info.json": {"author": {"name": "A. Nother"}, "license": {"spdx": "CC0-1.0"}},
        "chars.json": chars,
    }
    return {name: json.dumps(content).encode() for name, content in files.items()}


def write_art(folder, sets):
    """Archives of some sets; return the packages with their checksums."""
    packages = []
    folder.mkdir(exist_ok=True)
    for number, package in enumerate(sets):
        path = folder / package.archive
        with tarfile.open(path, "w:gz") as archive:
            for name, data in drawn_files(package, number).items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        packages.append(replace(package, sha256=digest))
    return tuple(packages)


@pytest.fixture
def program(load_program):
    return load_program("datasets/prepare_emoji_scenes.py")


@pytest.fixture
def run(tmp_path, monkeypatch, program):
    """Run the program on small scenes of the test's art."""
    packages = write_art(tmp_path / "art", ART)
    more = write_art(tmp_path / "art", PRETRAINING_ART)
    monkeypatch.setattr(prepare.Settings, "__init__", _with(prepare.Settings, packages, more))

    def run(*args):
        common = ["--root", str(tmp_path), "--art", str(tmp_path / "art"), "--size", "32"]
        return program.main([*common, "--workers", "1", *args])

    return run


def _with(settings, packages, more):
    original = settings.__init__

    def init(self, *args, pretraining_art=(), **kwargs):
        art = more if pretraining_art else ()
        original(self, *args, **kwargs, packages=packages, pretraining_art=art)

    return init


def test_choices_are_those_of_the_package(program):
    assert program.SOURCES == tuple(prepare.SOURCES)
    assert program.SUBSETS == tuple(SCENE_COUNTS)
    assert program.SPLITS == SPLITS


def test_from_art_to_scenes(tmp_path, run):
    pytest.importorskip("resvg_py")
    assert run("--subsets", "base_train", "all_test", "--scenes", "4") == 0
    folder = tmp_path / "emoji_scenes"
    assert len(list((folder / "sprites").iterdir())) == 8
    scenes = json.loads((folder / "scenes/all_test.json").read_text())["scenes"]
    labels = np.array(Image.open(folder / "labels/all_test/000000.png"))
    assert labels.shape == (32, 32) and len(scenes) == 4
    for subset in ("base_train", "all_test"):
        assert len(list((folder / "images" / subset).iterdir())) == 4
    assert (folder / "LICENCES").read_text().count("CC0-1.0") == 8
    assert run("--subsets", "base_train", "--split", "1", "--scenes", "2") == 0
    assert len(list((folder / "labels/split1_base_train").iterdir())) == 2


def test_art_that_only_the_pretraining_uses(tmp_path, run, program, capsys):
    pytest.importorskip("resvg_py")
    folder = tmp_path / "emoji_scenes"
    assert run("--subsets", "base_train", "--scenes", "2") == 0
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert run("--subsets", "base_train", "--scenes", "2", "--pretraining-art") == 0
    # The scenes, their settings and their licences stay.
    assert all(path.read_bytes() == content for path, content in before.items())
    new = {path.stem for path in folder.rglob("*.npz")} - {path.stem for path in before}
    assert new == {art.style for art in PRETRAINING_ART} == {"fluent-emoji-3d", "streamline-emojis"}
    for style in new:
        with np.load(folder / f"sprites/{style}.npz") as sprites:
            assert "CC0-1.0" in str(sprites["licence"]) and "A. Nother" in str(sprites["licence"])
            assert sprites["images"].std() > 10 and len(set(sprites["names"])) > 3
    with pytest.raises(SystemExit):
        program.main(["--pretraining-art", "--source", "pip", "--root", str(tmp_path)])
    assert "needs --source npm" in capsys.readouterr().err


def test_contact_sheet(tmp_path, run):
    pytest.importorskip("resvg_py")
    sheet = tmp_path / "sheet.png"
    assert run("--contact-sheet", str(sheet), "--subsets", "base_test", "unseen_test") == 0
    with Image.open(sheet) as image:
        assert image.width > 2 * 3 * 32 and np.array(image).std() > 10
    assert not (tmp_path / "emoji_scenes/images").exists()


def test_styles_need_a_root_of_their_own(tmp_path, run, program, capsys, monkeypatch):
    pytest.importorskip("resvg_py")
    assert run("--styles", "noto,twemoji", "--subsets", "all_test", "--scenes", "1") == 0
    sprites = tmp_path / "emoji_scenes/sprites"
    assert {path.stem for path in sprites.iterdir()} == {"noto", "twemoji"}
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "others"))
    monkeypatch.chdir(tmp_path)
    for root in ([], ["--root", "others"], ["--root", str(tmp_path / "others")]):
        with pytest.raises(SystemExit):
            program.main(["--styles", "noto", *root])
        assert "give them a --root too" in capsys.readouterr().err
    assert not (tmp_path / "others").exists()


def test_errors_end_in_one_line(tmp_path, run, caplog, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    assert run("--scenes", "1") == 1
    assert caplog.text.count("resvg-py, which renders") == 1 and "more files" not in caplog.text
    assert "Traceback" not in caplog.text
    assert not list((tmp_path / "emoji_scenes").rglob("*.npz"))  # nothing half-written
    with pytest.raises(SystemExit):
        run("--scenes", "0")
    with pytest.raises(SystemExit):
        run("--seed", "-1")
    with pytest.raises(SystemExit):
        run("--subsets", "nonsense")
