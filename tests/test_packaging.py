"""The wheel is complete, and the oldest supported versions are declared once."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

import dcp_clip

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


def test_citation():
    """CITATION.cff has what the format requires (cffconvert --validate), and this version."""
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    required = {"cff-version", "message", "title", "authors"}
    known = {"type", "version", "license", "abstract", "keywords", "identifiers"}
    assert required <= set(content) <= required | known
    assert content["cff-version"] == "1.2.0" and content["type"] == "software"
    assert all(set(author) == {"name"} for author in content["authors"])
    for identifier in content["identifiers"]:
        assert set(identifier) == {"type", "value", "description"}
    assert content["version"] == dcp_clip.__version__
    assert content["license"] == PROJECT["license"]
    assert content["title"].endswith(PROJECT["description"].split(" ", 1)[1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the built wheel."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "-q", "egg_info", f"--egg-base={tmp_path}"]
    command += ["build", f"--build-base={tmp_path / 'build'}"]
    command += ["bdist_wheel", f"--dist-dir={tmp_path}", f"--bdist-dir={tmp_path / 'bdist'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("*.whl")
    return path


def test_wheel(wheel):
    """Every data file of the package, and every config, is in the wheel."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    folders = {
        "dcp_clip": "dcp_clip",
        "dcp_clip_cli": "dcp_clip_cli",
        "configs": "dcp_clip/configs",
    }
    expected = {
        str(Path(folder, path.relative_to(source)))
        for source, folder in ((ROOT / source, folder) for source, folder in folders.items())
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in packed if ".dist-info/" not in name} == expected


def test_command_of_the_wheel(wheel, tmp_path):
    """The command dcp-clip runs outside of the repository, with the shipped config and weights."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    (folder,) = (tmp_path / "site").glob("*.dist-info")
    (command,) = importlib.metadata.Distribution.at(folder).entry_points
    assert (command.name, command.value) == ("dcp-clip", "dcp_clip_cli.main:main")
    Image.new("RGB", (40, 30), "skyblue").save(tmp_path / "photo.png")
    code = "import sys, dcp_clip_cli.main as m; status = m.main(); import dcp_clip; "
    code += "print(dcp_clip.__file__); sys.exit(status)"
    run = subprocess.run(
        [sys.executable, "-c", code, "segment", "--input", "photo.png", "--output", "out"]
        + ["--opts", "MODEL.DEVICE", "cpu", "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(tmp_path / "site" / "dcp_clip" / "__init__.py")
    assert (tmp_path / "out" / "photo_labels.png").is_file()
