"""Files are complete or absent."""

import os

import pytest

from dcp_clip.utils.atomic_files import atomic_write


def test_atomic_write_keeps_the_old_file_when_interrupted(tmp_path):
    path = tmp_path / ("ü" * 120 + ".txt")  # 244 of at most 255 bytes
    with atomic_write(path, "w") as f:
        f.write("älter")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as f:
        f.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text("utf-8") == "älter"
    assert os.listdir(tmp_path) == [path.name]
