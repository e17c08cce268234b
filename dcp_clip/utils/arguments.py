"""Helpers for the arguments and errors of programs."""

import os
import sys
from pathlib import Path

from dcp_clip.vocabulary.category import shortened

__all__ = ["escape_unprintable_output", "format_error", "in_one_line", "require_folders"]


def format_error(error: BaseException) -> str:
    """Return the message of an error, also of a KeyError, which ``str`` puts in quotation marks."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def in_one_line(error: BaseException, length: int = 300) -> str:
    """Return class and message of an error in one line of at most `length` characters."""
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), length)


def require_folders(files: dict[str, str | Path | None]) -> None:
    """Exit with an error message if an output file cannot be written.

    A program calls this before a long computation, so that its results are not lost.

    Args:
        files: the file of each option, or None.
    """
    for option, path in files.items():
        if not path:
            continue
        folder = Path(path).parent
        if not folder.is_dir():
            sys.exit(f"{option}: the folder {folder} does not exist.")
        if Path(path).is_dir():
            sys.exit(f"{option}: {path} is a folder; give the path of a file.")
        if not os.access(folder, os.W_OK):
            sys.exit(f"{option}: the folder {folder} cannot be written to; choose another one.")


def escape_unprintable_output() -> None:
    """Let standard output and error escape characters that the terminal's encoding does not have.

    Python does so for standard error only. Without UTF-8, a name such as "天空" would end a program
    with a UnicodeEncodeError; it is printed as the numbers of its characters instead.
    """
    for stream in (sys.stdout, sys.stderr):
        # Notebooks and tests replace the streams by objects that have no encoding.
        errors = getattr(stream, "errors", None)
        # In the C locale, Python writes bytes of file names as they are, but no other characters.
        is_c_locale = errors == "surrogateescape" and stream.encoding.lower() != "utf-8"
        if (errors == "strict" or is_c_locale) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
