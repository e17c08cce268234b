"""tools/check_env.py: what it finds, what it prints, and its exit status."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from dcp_clip_cli import check

PROGRAM = Path(__file__).parents[2] / "tools" / "check_env.py"


@pytest.fixture(scope="module")
def program():
    return check


def test_find_problems(program):
    version = metadata.version("torch").split("+")[0]
    assert program.find_problems([f"torch>={version}"]) == ([], [])  # a local version counts
    missing, outside = program.find_problems(["torch<1.0", "no-such-package>=2,<3", "numpy"])
    assert missing == ["no-such-package is missing."]
    assert len(outside) == 1 and outside[0].startswith(f"torch {version}")
    assert outside[0].endswith("is not in <1.0.")


def test_optional_packages_are_not_checked(program):
    assert program.find_problems(['no-such-package>=2; extra == "demo"']) == ([], [])


@pytest.mark.parametrize(
    "requirements, status",
    [(["torch>=2"], 0), (["torch<1.0"], 0), (["no-such-package"], 1)],
)
def test_report(program, monkeypatch, capsys, requirements, status):
    """A version outside its range is reported, but only a missing package is a failure."""
    monkeypatch.setattr(program.metadata, "requires", lambda name: requirements)
    assert program.main([]) == status
    output = capsys.readouterr().out
    assert ("make -C" in output) == (requirements != ["torch>=2"])
    for name in ("PyTorch", "detectron2", "Pillow", "GPU available"):
        assert name in output


def test_detectron2_cannot_be_imported(program, monkeypatch, capsys):
    monkeypatch.setattr(program, "REPORT", "raise ImportError('libxyz.so is missing')")
    assert program.main([]) == 1
    output = capsys.readouterr().out
    assert "Detectron2 cannot be imported: ImportError: libxyz.so is missing." in output
    assert output.count("make -C") == 1


def test_without_any_package():
    """The options -S and -I leave only the standard library."""
    run = subprocess.run(
        [sys.executable, "-S", "-I", str(PROGRAM)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "dcp_clip is not installed." in run.stdout and "make -C" in run.stdout
