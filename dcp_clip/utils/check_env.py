"""Say what this environment holds, what is wrong with it, and the command that mends it.

``python -m dcp_clip.utils.check_env`` ends with status 1 if something required is missing or cannot be
imported, else with 0; a version outside the tested range is reported but is no failure.

Nothing beyond the standard library is imported at the top, so that the report can also be had where
PyTorch or Detectron2 is missing. The tested ranges are those of requirements.txt.
"""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import importlib.util
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dcp_clip.utils.hardware import hardware_summary

if TYPE_CHECKING:
    from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
TESTED_PYTHON = "3.11"

# Modules that are not called like the distribution that brings them.
MODULES = {"open_clip_torch": "open_clip", "opencv-python-headless": "cv2", "Pillow": "PIL"}

MISSING = "missing"

# How a problem is mended: by (re-)running the installation, or by replacing a damaged package.
INSTALL, REPLACE = "install", "replace"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: distribution, as requirements.txt spells it.
        found: installed version, or ``"missing"``.
        tested: range of versions that is tested; empty if there is none.
        problem: what is wrong; empty if nothing is.
        fatal: True if DCP-CLIP cannot run because of the problem.
        repair: ``"install"``, ``"replace"`` or empty.
        distribution: what to hand to pip in order to replace the package.
    """

    name: str
    found: str
    tested: str = ""
    problem: str = ""
    fatal: bool = False
    repair: str = ""
    distribution: str = ""


def read_requirements(path: Path = ROOT / "requirements.txt") -> list[Requirement]:
    """Parse a requirements file.

    Raises:
        FileNotFoundError: the package is not being used from a clone of the repository.
    """
    from packaging.requirements import Requirement

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; install the package from a clone with: pip install -e ."
        )
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def check_requirement(requirement: Requirement) -> Check:
    """Compare one requirement with what is installed, and try to import it."""
    module = MODULES.get(requirement.name, requirement.name.replace("-", "_"))
    # Lower bound first, as in requirements.txt.
    tested = ",".join(sorted(map(str, requirement.specifier), reverse=True))
    owner, version = installed_version(requirement.name, module)
    common = {"name": requirement.name, "tested": tested, "distribution": str(requirement)}
    if not version:
        return Check(found=MISSING, problem="not installed", fatal=True, repair=INSTALL, **common)
    found = version if owner == requirement.name else f"{version} ({owner})"
    problem, repair = import_problem(module)
    if problem:
        return Check(found=found, problem=problem, fatal=True, repair=repair, **common)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(found=found, problem="outside the tested range", repair=INSTALL, **common)
    return Check(found=found, **common)


def check_detectron2() -> Check:
    """Find Detectron2 and tell how it was built."""
    name = "detectron2"
    owner, version = installed_version(name, name)
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return Check(name, MISSING, problem="not installed", fatal=True, repair=INSTALL)
    problem, repair = import_problem("detectron2.engine")
    if problem:
        return Check(
            name, version or "?", "", problem, fatal=True, repair=repair, distribution=owner or name
        )
    version = importlib.import_module(name).__version__ + (f" ({owner} {version})" if owner else "")
    if importlib.util.find_spec("detectron2._C") is None:
        return Check(name, f"{version}, pure Python")
    extension_problem, _ = import_problem("detectron2._C")
    if extension_problem:
        problem = f"its compiled part {extension_problem}; DCP-CLIP runs without it"
        return Check(name, f"{version}, compiled", problem=problem)
    return Check(name, f"{version}, compiled")


def check_python() -> Check:
    """Compare the running Python with the tested one."""
    tested = platform.python_version().startswith(f"{TESTED_PYTHON}.")
    problem = "" if tested else "not the tested version; if anything fails, try that one"
    return Check("Python", platform.python_version(), f"=={TESTED_PYTHON}.*", problem)


def installed_version(name: str, module: str) -> tuple[str, str]:
    """Return (distribution, version) of what brings ``module``, ("", "") if nothing does.

    The distribution ``name`` is preferred; another may bring the same module, as opencv-python and
    opencv-python-headless both bring cv2.
    """
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        pass  # the search below reads what every installed package brings: a second or more
    for candidate in metadata.packages_distributions().get(module, []):
        try:
            return candidate, metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
    return "", ""


def import_problem(module: str) -> tuple[str, str]:
    """Import ``module``; return (problem, repair), two empty strings if it can be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        needed = (error.name or "").partition(".")[0]
        if needed and needed != module.partition(".")[0]:
            return f"needs {needed}, which is missing", INSTALL
        return f"cannot be imported: {error}", REPLACE
    except Exception as error:  # a damaged package can raise anything
        lines = str(error).strip().splitlines()
        message = f": {lines[0]}" if lines else ""
        return f"cannot be imported: {type(error).__name__}{message}", REPLACE
    return "", ""


def check_all() -> list[Check]:
    """Check Python, every line of requirements.txt, and Detectron2."""
    packages = [check_requirement(requirement) for requirement in read_requirements()]
    return [check_python(), *packages, check_detectron2()]


def repair_command(checks: Sequence[Check]) -> str:
    """Return the one shell command that mends everything in ``checks``, empty if nothing can be."""
    python = shlex.quote(sys.executable)
    damaged = [check for check in checks if check.repair == REPLACE]
    packages = [check for check in damaged if check.name != "detectron2"]
    steps = []
    if packages:
        names = " ".join(shlex.quote(check.distribution) for check in packages)
        steps.append(f"{python} -m pip install --force-reinstall --no-deps {names}")
    if len(damaged) > len(packages):
        owner = next(check.distribution for check in damaged if check.name == "detectron2")
        steps.append(f"{python} -m pip uninstall --yes {owner}")
    if len(damaged) > len(packages) or any(check.repair == INSTALL for check in checks):
        steps.append(install_command())
    return " && ".join(steps)


def install_command() -> str:
    """Return the command that installs what is missing, into this environment if it is a virtual
    one (a system's own Python is not to be touched), else into the project's .venv."""
    make = f"make -C {shlex.quote(str(ROOT))}"
    if sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ:
        return f"{make} install PY={shlex.quote(sys.executable)}"
    return f"{make} setup"


def environment_summary() -> dict[str, str]:
    """Return versions and hardware as text by name, to be printed beside a measurement.

    What is missing is listed as ``"missing"``; nothing is raised.
    """
    summary = {"Python": platform.python_version(), "system": platform.platform()}
    for name in ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "Pillow", "fvcore"):
        summary[name] = installed_version(name, MODULES.get(name, name))[1] or MISSING
    summary["pycocotools"] = installed_version("pycocotools", "pycocotools")[1] or MISSING
    summary["OpenCV"] = installed_version("opencv-python-headless", "cv2")[1] or MISSING
    return summary | {"detectron2": check_detectron2().found} | hardware_summary()


def format_report(checks: Sequence[Check], hardware: dict[str, str]) -> str:
    """Lay out the report as text: packages, hardware, and the command that mends what is wrong."""
    rows = [(c.name, c.found, c.tested, c.problem or "ok") for c in checks]
    rows = [("package", "found", "tested", "state"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]])
        for row in rows
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    label_width = max(len(name) for name in hardware)
    lines += ["", *(f"{name.ljust(label_width)}  {text}" for name, text in hardware.items()), ""]
    if command := repair_command(checks):
        lines += ["To mend this:", f"  {command}"]
    elif not any(check.problem for check in checks):
        lines.append("All that is required is here, in tested versions.")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the report to standard output and return the exit status."""
    if importlib.util.find_spec("packaging") is None:
        sys.stdout.write(f"packaging is not installed. To mend this:\n  {install_command()}\n")
        return 1
    checks = check_all()
    sys.stdout.write(format_report(checks, hardware_summary()))
    return int(any(check.fatal for check in checks))


if __name__ == "__main__":
    sys.exit(main())
