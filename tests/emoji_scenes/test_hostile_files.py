"""Damaged and hostile files in the folder of the data set: refused by name, never run."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.program import prepare_dataset
from dcp_clip.emoji_scenes.art import SEEN_ART, read_art
from dcp_clip.emoji_scenes.sprites import describe_sprites, save_sprites


class Touch:
    """Creates the file `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_sprites(path, **changed):
    """Sprites of two names, with some of their arrays replaced."""
    content = {"names": np.array(["a", "b"]), "images": np.zeros((2, 8, 8, 4), np.uint8)}
    with open(path, "wb") as file:
        np.savez_compressed(file, **{**content, "licence": "mine", **changed})


def flip(path):
    write_sprites(path, images=np.random.default_rng(0).integers(0, 256, (2, 8, 8, 4), np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


SPRITES = {
    "empty": Path.touch,
    "text": lambda path: path.write_text("sky\n" * 99),
    "truncated": lambda path: (write_sprites(path), os.truncate(path, path.stat().st_size - 99)),
    "flipped": flip,
    "pickle": lambda path: np.array([Touch(path.with_name("marker"))], object).dump(path),
    "objects": lambda path: write_sprites(path, names=np.array([Touch(path.parent / "marker"), 1])),
    "one array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "no images": lambda path: np.savez(path, names=np.array(["a"])),
    "other shape": lambda path: write_sprites(path, images=np.zeros((2, 8, 4), np.uint8)),
    "other count": lambda path: write_sprites(path, images=np.zeros((3, 8, 8, 4), np.uint8)),
    "other type": lambda path: write_sprites(path, images=np.full((2, 8, 8, 4), np.nan)),
    "numbers as names": lambda path: write_sprites(path, names=np.arange(2)),
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", SPRITES)
def test_sprites(tmp_path, kind):
    path = tmp_path / "style.npz"
    SPRITES[kind](path)
    with pytest.raises(DatasetError, match="style.npz cannot be read") as raised:
        describe_sprites(path)
    assert "\n" not in str(raised.value) and not (tmp_path / "marker").exists()


def test_sprites_are_read(tmp_path):
    """The test above would also pass if nothing could be read."""
    save_sprites(tmp_path / "a.npz", ["a"], [np.zeros((8, 8, 4), np.uint8)], "mine")
    assert describe_sprites(tmp_path / "a.npz") == (8, "mine")


def test_art(tmp_path):
    """Archives are not extracted, so their paths and links do not matter; contents are JSON."""
    package = SEEN_ART[-1]
    path = tmp_path / package.archive
    for icons in (b"", b"[1", b"[]", b'{"icons": 3}', b'{"icons": {"a": 1}}', b"[" * 99_999):
        with tarfile.open(path, "w:gz") as archive:
            for name in ("icons", "info", "chars"):
                entry = tarfile.TarInfo(f"package/{name}.json")
                entry.size = len(icons)
                archive.addfile(entry, io.BytesIO(icons))
            link = tarfile.TarInfo("../outside")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        with pytest.raises(DatasetError, match=f"{path.name} cannot be read") as raised:
            read_art([package], tmp_path)
        assert "\n" not in str(raised.value)
        assert not (tmp_path.parent / "outside").is_symlink()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 99_999, '{"size": 1}', "\0"])
def test_settings(settings, tmp_path, text):
    """Of this data set, and of those of datasets/README.md that have choices."""
    (settings.folder / "settings.json").write_text(text)
    with pytest.raises(DatasetError, match="settings.json is damaged|was made with") as raised:
        settings.check()
    assert "\n" not in str(raised.value)
    (tmp_path / "prepared.json").write_text(text)
    with pytest.raises(DatasetError, match="prepared.json is damaged|was prepared with") as raised:
        prepare_dataset(tmp_path, {}, None, settings={"size": "2"})
    assert "\n" not in str(raised.value)
