"""The installer of Detectron2 keeps an existing Detectron2 and records what it installs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"


def run_with(folder: Path) -> subprocess.CompletedProcess:
    """Run the program in a process that finds the packages in ``folder`` first."""
    return subprocess.run(
        [sys.executable, PROGRAM],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_detectron2_that_can_be_imported_is_kept(tmp_path):
    (tmp_path / "detectron2" / "engine").mkdir(parents=True)
    (tmp_path / "detectron2" / "__init__.py").touch()
    (tmp_path / "detectron2" / "engine" / "__init__.py").touch()
    run = run_with(tmp_path)
    assert run.returncode == 0, run.stderr
    assert f"{tmp_path / 'detectron2'} works and is kept" in run.stdout


def test_broken_detectron2_is_named_and_not_replaced(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("import no_such_package_anywhere")
    run = run_with(tmp_path)
    assert run.returncode == 1
    assert str(tmp_path) in run.stderr
    assert "no_such_package_anywhere" in run.stderr
    assert "pip uninstall" in run.stderr


def test_record_lists_only_what_is_installed(tmp_path, load_program):
    program = load_program("tools/install_detectron2.py")
    record = tmp_path / "RECORD"
    kept = "detectron2/__init__.py,,\nsal_detectron2-0.7.2.dist-info/METADATA,,\n"
    record.write_text(kept + "detectron2/_C.cpython-310-x86_64-linux-gnu.so,,\ntools/a.py,,\n")
    program.keep_lines(record, program.is_installed)
    assert record.read_text() == kept


def test_installed_detectron2_has_the_lines_for_numpy_2(load_program):
    program = load_program("tools/install_detectron2.py")
    folder = Path(importlib.util.find_spec("detectron2").origin).parent
    if not any(folder.parent.glob("sal_detectron2-*.dist-info")):
        pytest.skip("another Detectron2 is installed")
    for name, (old, new) in program.NUMPY_2.items():
        text = (folder / name).read_text()
        assert old in text or new in text, name  # an older installation has the old line
