"""Files are complete or absent."""

import os

import pytest

from dcp_clip.utils.atomic_files import WriteError, atomic_folder, atomic_write


def test_atomic_write_keeps_the_old_file_when_interrupted(tmp_path):
    path = tmp_path / ("ü" * 120 + ".txt")  # 244 of at most 255 bytes
    with atomic_write(path, "w") as f:
        f.write("älter")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as f:
        f.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text("utf-8") == "älter"
    assert os.listdir(tmp_path) == [path.name]


def test_atomic_folder_follows_a_link_and_is_not_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with atomic_folder(tmp_path / "link") as part:
        (part / "a").touch()
    assert (tmp_path / "disk" / "a").exists() and (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(WriteError, match="it is the working folder"), atomic_folder("."):
        pytest.fail("the work began")
    assert sorted(os.listdir(tmp_path)) == ["disk", "here", "link"]
