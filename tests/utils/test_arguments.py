"""Helpers for the arguments and errors of programs."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcp_clip.utils.arguments import escape_unprintable_output, format_error, require_folders

ROOT = Path(__file__).parents[2]
# A terminal without UTF-8.
ASCII = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def test_folders_of_output_files_must_exist(tmp_path, monkeypatch):
    require_folders({"--json": None, "--plot": tmp_path / "plot.png"})
    with pytest.raises(SystemExit, match=f"--plot: the folder {tmp_path / 'absent'} does not"):
        require_folders({"--json": str(tmp_path / "a.json"), "--plot": tmp_path / "absent" / "b"})
    with pytest.raises(SystemExit, match=f"--json: {tmp_path} is a folder; give the path of"):
        require_folders({"--json": tmp_path})
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(SystemExit, match=f"--json: the folder {tmp_path} cannot be written to"):
        require_folders({"--json": tmp_path / "a.json"})


def test_messages_of_errors(tmp_path):
    assert format_error(KeyError("no key 'A'.")) == "no key 'A'."
    assert format_error(ValueError("no.")) == "no."
    with pytest.raises(OSError) as error:  # the first argument of an OSError is a number
        (tmp_path / "absent").open()
    assert "No such file or directory" in format_error(error.value)
    assert str(tmp_path / "absent") in format_error(error.value)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_name_can_be_printed(monkeypatch, encoding):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=encoding))
    escape_unprintable_output()
    sys.stdout.write("Straße, 天空\n")
    sys.stdout.flush()
    escaped = "Straße, 天空".encode(encoding, "backslashreplace")
    assert content.getvalue().strip() == escaped


def test_streams_without_an_encoding_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)  # as in programs without a console
    escape_unprintable_output()
    sys.stdout.write("天空\n")
    assert sys.stdout.getvalue() == "天空\n"


C_LOCALE = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
C_LOCALE.pop("PYTHONIOENCODING", None)


@pytest.mark.parametrize("environment", [ASCII, C_LOCALE], ids=["terminal", "locale"])
def test_every_process_that_imports_the_package_can_print_any_name(environment):
    code = (
        "import dcp_clip; print('\\u5929\\u7a7a'); print(dcp_clip.Vocabulary(['\\u5929\\u7a7a']))"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\\u5929\\u7a7a") == 2


PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("demo", "tools", "datasets", ".")
    for path in (ROOT / folder).glob("*.py")
    if path.name != "setup.py"
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_can_be_printed(program):
    """Each program starts, also in a locale without UTF-8."""
    command = [sys.executable, ROOT / program, "--help"]
    run = subprocess.run(command, env=ASCII, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
