"""Helpers for the arguments and errors of programs."""

import sys
from pathlib import Path

__all__ = ["format_error", "require_folders"]


def format_error(error: BaseException) -> str:
    """Return the message of an error, also of a KeyError, which ``str`` puts in quotation marks."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def require_folders(files: dict[str, str | Path | None]) -> None:
    """Exit with an error message if the folder of an output file does not exist.

    A program calls this before a long computation, so that its results are not lost.

    Args:
        files: the file of each option, or None.
    """
    for option, path in files.items():
        if path and not Path(path).parent.is_dir():
            sys.exit(f"{option}: the folder {Path(path).parent} does not exist.")
