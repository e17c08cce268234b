"""Helpers for the arguments and errors of programs."""

import pytest

from dcp_clip.utils.arguments import format_error, require_folders


def test_folders_of_output_files_must_exist(tmp_path):
    require_folders({"--json": None, "--plot": tmp_path / "plot.png"})
    with pytest.raises(SystemExit, match=f"--plot: the folder {tmp_path / 'absent'} does not"):
        require_folders({"--json": str(tmp_path / "a.json"), "--plot": tmp_path / "absent" / "b"})


def test_messages_of_errors(tmp_path):
    assert format_error(KeyError("no key 'A'.")) == "no key 'A'."
    assert format_error(ValueError("no.")) == "no."
    with pytest.raises(OSError) as error:  # the first argument of an OSError is a number
        (tmp_path / "absent").open()
    assert "No such file or directory" in format_error(error.value)
    assert str(tmp_path / "absent") in format_error(error.value)
