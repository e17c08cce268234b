"""Import packages that are optional."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["import_optional"]


def import_optional(module: str, need: str, package: str | None = None) -> Any:
    """Import a module of an optional package, whose name pip knows.

    Args:
        module: its name.
        need: the beginning of the error, such as "Rasters need".
        package: the usual name of the package; default: that of the module.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{need} the package {package or module}: pip install {module}"
        ) from error
