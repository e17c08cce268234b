"""Install Detectron2's Python part from the package index: no compiler and no GPU needed.

Detectron2 has no release of its own on the package index. ``sal-detectron2`` is a wheel of
upstream's code of April 2024, tagged for CPython 3.10 because of a compiled extension that DCP-CLIP
does not use. This program takes the Python part out of that wheel. A Detectron2 that can be
imported already, built from source for instance, is left as it is.

Its dependencies are in requirements.txt; install those first.
"""

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGE = "sal-detectron2==0.7.2"
# Folders of the wheel that are installed. It also holds a top-level "tools" package, which would
# hide the "tools" folder of any project that is run from its own root.
WANTED = ("detectron2", "sal_detectron2-0.7.2.dist-info")


def import_error() -> str | None:
    """Return why Detectron2 cannot be imported, or None if it can."""
    try:
        importlib.import_module("detectron2.engine")
    except Exception as error:  # a half-installed dependency can raise anything
        return f"{type(error).__name__}: {error}"
    return None


def install(site_packages: Path) -> None:
    """Install the Python part of the wheel into ``site_packages``.

    Args:
        site_packages: folder of the environment's packages; nothing that is in it is replaced
            except the remains of an earlier, interrupted installation.

    Raises:
        subprocess.CalledProcessError: pip could not fetch or unpack the wheel.
    """
    with tempfile.TemporaryDirectory(dir=site_packages, prefix="detectron2-unpacked-") as name:
        unpacked = Path(name)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        # Accept the wheel's tag whatever Python this is; pip demands --target along with it.
        command += ["--only-binary=:all:", "--python-version=3.10", "--implementation=cp"]
        subprocess.run([*command, f"--target={unpacked}", PACKAGE], check=True)

        for extension in unpacked.glob("detectron2/_C.*"):
            extension.unlink()
        package, dist_info = (unpacked / folder for folder in WANTED)
        drop_absent_files(dist_info / "RECORD")
        shutil.rmtree(site_packages / dist_info.name, ignore_errors=True)
        dist_info.rename(site_packages / dist_info.name)
        package.rename(site_packages / package.name)  # last: only a whole package is importable


def drop_absent_files(record: Path) -> None:
    """Remove from pip's list of installed files those that are not installed here."""
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.split("/")[0] in WANTED and "/_C." not in line]
    record.write_text("".join(kept), encoding="utf-8")


def main() -> None:
    """Install Detectron2 unless it is there; end with a message if a broken one is in the way."""
    reason = import_error()
    spec = importlib.util.find_spec("detectron2")
    if reason is None:
        print(f"Detectron2 in {Path(spec.origin).parent} is left as it is.")
        return
    if spec is not None:
        owners = importlib.metadata.packages_distributions().get("detectron2", ["detectron2"])
        sys.exit(
            f"Detectron2 in {spec.origin or list(spec.submodule_search_locations)} cannot be "
            f"imported ({reason}). Install requirements.txt; if that does not help, remove it with "
            f"{sys.executable} -m pip uninstall {owners[0]} and run this program again."
        )
    install(Path(sysconfig.get_path("purelib")))
    print(f"Installed the Python part of {PACKAGE}.")


if __name__ == "__main__":
    main()
