"""Check the installation and print a report of the environment.

    dcp-clip check

In a clone of the repository, `python tools/check_env.py` is the same program.

The first part lists the packages that are missing or outside the ranges of pyproject.toml, and the
command that installs them. The second part is Detectron2's report of versions and devices. It may
say that detectron2._C is missing: DCP-CLIP does not need it. The exit status is 1 if a package is
missing or Detectron2 cannot be imported.
"""

import argparse
import importlib.metadata as metadata
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = """
import torch
from detectron2.utils.collect_env import collect_env_info
print(collect_env_info())
print("DCP-CLIP does not need detectron2._C: ignore the line above if it is not built.")
if hasattr(torch.cpu, "get_capabilities"):
    cpu = torch.cpu.get_capabilities()
    is_native = any(cpu.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    print("bfloat16 on this CPU:", "native" if is_native else "emulated, slower than float32")
"""


def find_problems(requirements: Sequence[str]) -> tuple[list[str], list[str]]:
    """Compare the installed packages with requirements such as "torch>=2.6,<3".

    Returns:
        One sentence for each missing package, and one for each package outside its range.
    """
    from packaging.requirements import Requirement

    missing, outside = [], []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an optional group
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{requirement.name} is missing.")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            outside.append(f"{requirement.name} {version} is not in {requirement.specifier}.")
    return missing, outside


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Print the report, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    if (ROOT / "Makefile").is_file():
        repair = f"make -C {shlex.quote(str(ROOT))} install PY={shlex.quote(sys.executable)}"
    else:
        repair = "install the wheel and Detectron2 again (docs/install.md)"
    try:
        missing, outside = find_problems(metadata.requires("dcp_clip") or [])
    except metadata.PackageNotFoundError:
        missing, outside = ["dcp_clip is not installed."], []
    except ImportError:
        missing, outside = ["packaging is missing."], []
    for problem in (*missing, *outside):
        print(problem)
    # In another process, because a damaged package can end this one.
    report = subprocess.run([sys.executable, "-W", "ignore", "-c", REPORT], capture_output=True)
    if report.returncode:
        lines = report.stderr.decode(errors="replace").strip().splitlines()
        print(f"Detectron2 cannot be imported: {lines[-1] if lines else 'the process crashed'}.")
    if missing or outside or report.returncode:
        print(f"To repair this: {repair}\n")
    else:
        print("All required packages are installed in supported versions.\n")
    print(report.stdout.decode(errors="replace"), end="")
    return int(bool(missing or report.returncode))
