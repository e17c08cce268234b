"""The wheel is complete, and the oldest supported versions are declared once."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def versions(requirements):
    """Return {name: lowest version} of requirements such as "numpy>=1.26,<3" and "ruff==0.17.6"."""
    found = {}
    for requirement in map(Requirement, requirements):
        (bound,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
        found[requirement.name.lower()] = bound
    return found


def test_constraints_are_the_lower_bounds():
    lines = (ROOT / "tests" / "oldest-constraints.txt").read_text().splitlines()
    pinned = versions(line for line in lines if line and not line.startswith("#"))
    groups = (PROJECT["dependencies"], *(EXTRAS[name] for name in ("demo", "emoji", "dev")))
    bounds = {name: bound for group in groups for name, bound in versions(group).items()}
    del bounds["ruff"]  # one version only
    assert set(pinned) == set(bounds)
    for name, bound in bounds.items():
        assert f"{pinned[name]}.".startswith(f"{bound}."), name


def test_wheel(tmp_path):
    """Every data file of the package, and every config, is in the wheel."""
    command = [sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}"]
    command += ["build", f"--build-base={tmp_path / 'build'}"]
    command += ["bdist_wheel", f"--dist-dir={tmp_path}", f"--bdist-dir={tmp_path / 'bdist'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(Path("dcp_clip", folder, path.relative_to(source)))
        for folder, source in (("", ROOT / "dcp_clip"), ("configs", ROOT / "configs"))
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in packed if ".dist-info/" not in name} == expected
