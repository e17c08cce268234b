"""Import packages that are optional."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_optional"]


def import_optional(module: str, need: str, package: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: its name.
        need: the beginning of the error, such as "Rasters need".
        package: what pip installs; default: the name of the module.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:  # another ImportError says why an installed one fails
        package = package or module
        raise ImportError(f"{need} the package {package}: pip install {package}") from error
