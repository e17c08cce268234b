"""Install the Python part of Detectron2 from the package index, without a compiler or a GPU.

    python tools/install_detectron2.py

Detectron2 has no release of its own on the package index. ``sal-detectron2`` is a wheel of
upstream's code of April 2024. It is tagged for CPython 3.10 because of a compiled extension, which
DCP-CLIP does not use. This program installs the Python part of that wheel and adapts two lines to
NumPy 2. The result works with Python 3.10 to 3.13, NumPy 1 and 2, and Pillow 11 to 13.

A Detectron2 that can be imported, for example one built from source, is kept.

Install DCP-CLIP first: its dependencies include those of Detectron2.
"""

import argparse
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

PACKAGE = "sal-detectron2==0.7.2"
# The folders of the wheel to install. Its top-level package "tools" would hide the folder "tools"
# of any project that runs from its own root.
WANTED = ("detectron2", "sal_detectron2-0.7.2.dist-info")
# With copy=False, NumPy 2 raises an error if a copy is necessary; NumPy 1 makes the copy.
NUMPY_2 = {
    "evaluation/sem_seg_evaluation.py": (
        "np.array(Image.open(f), copy=copy, dtype=dtype)",
        "np.array(Image.open(f), dtype=dtype)",
    ),
    "layers/mask_ops.py": ("np.array(mask, copy=False)", "np.asarray(mask)"),
}


def import_error() -> str | None:
    """Return why Detectron2 cannot be imported, or None if it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("detectron2.engine")
    except Exception as error:  # a half-installed dependency can raise anything
        return f"{type(error).__name__}: {error}"
    return None


def install(site_packages: Path) -> None:
    """Install the Python part of the wheel into ``site_packages``.

    Args:
        site_packages: folder of the environment's packages. Only the remains of an interrupted
            installation are replaced.

    Raises:
        subprocess.CalledProcessError: if pip cannot download or unpack the wheel.
    """
    with tempfile.TemporaryDirectory(dir=site_packages, prefix="detectron2-unpacked-") as name:
        unpacked = Path(name)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        # These accept the wheel's tag with any Python; pip requires --target with them.
        command += ["--only-binary=:all:", "--python-version=3.10", "--implementation=cp"]
        subprocess.run([*command, f"--target={unpacked}", PACKAGE], check=True)

        for extension in unpacked.glob("detectron2/_C.*"):
            extension.unlink()
        package, dist_info = (unpacked / folder for folder in WANTED)
        for name, (old, new) in NUMPY_2.items():
            text = (package / name).read_text(encoding="utf-8")
            (package / name).write_text(text.replace(old, new), encoding="utf-8")
        keep_lines(dist_info / "RECORD", is_installed)
        # The requirements are those of 2024, such as "numpy<2". pip would report them as conflicts.
        keep_lines(dist_info / "METADATA", lambda line: not line.startswith("Requires-Dist:"))
        wheel = dist_info / "WHEEL"
        wheel.write_text(re.sub(r"(?m)^Tag: .*", "Tag: py3-none-any", wheel.read_text()))
        shutil.rmtree(site_packages / dist_info.name, ignore_errors=True)
        dist_info.rename(site_packages / dist_info.name)
        package.rename(site_packages / package.name)  # last: only a whole package is importable


def is_installed(line: str) -> bool:
    """Whether a line of the wheel's RECORD names a file that :func:`install` keeps."""
    return line.split("/")[0] in WANTED and "/_C." not in line


def keep_lines(file: Path, keep: Callable[[str], bool]) -> None:
    """Remove the other lines from a text file."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if keep(line)), encoding="utf-8")


def main() -> None:
    """Install Detectron2 unless it exists; end with a message if a broken one exists."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    reason = import_error()
    spec = importlib.util.find_spec("detectron2")
    if reason is None:
        print(f"Detectron2 in {Path(spec.origin).parent} works and is kept.")
        return
    if spec is not None:
        owners = importlib.metadata.packages_distributions().get("detectron2", ["detectron2"])
        sys.exit(
            f"Detectron2 in {spec.origin or list(spec.submodule_search_locations)} cannot be "
            f"imported ({reason}). Install DCP-CLIP first: pip install -e . If that does not help, "
            f"remove Detectron2 with {sys.executable} -m pip uninstall {owners[0]} and run this "
            "program again."
        )
    try:
        install(Path(sysconfig.get_path("purelib")))
    except subprocess.CalledProcessError:  # pip printed the reason
        sys.exit(f"{PACKAGE} could not be installed: see the message of pip above.")
    except OSError as error:
        sys.exit(f"{PACKAGE} could not be installed: {error}. Run this program again.")
    print(f"Installed the Python part of {PACKAGE}.")


if __name__ == "__main__":
    main()
