"""Sample photographs in installed packages."""

import importlib.util
from pathlib import Path

__all__ = ["find_photographs"]

# Package and file. The default weights were trained on streets by day.
_PHOTOGRAPHS = (("sklearn", "datasets/images/china.jpg"),)


def find_photographs() -> list[Path]:
    """Return the paths of the sample photographs, without importing their packages.

    The list is empty if scikit-learn is not installed.
    """
    found = []
    for package, file in _PHOTOGRAPHS:
        spec = importlib.util.find_spec(package)
        if spec and (path := Path(next(iter(spec.submodule_search_locations)), file)).is_file():
            found.append(path)
    return found
