"""What the command lines of several programs share."""

import sys
from pathlib import Path

__all__ = ["positive", "require_folders", "format_error"]


def positive(text: str) -> int:
    """A number from 1 on, for argparse's ``type``.

    Raises:
        ValueError: for anything else.
    """
    if (number := int(text)) < 1:
        raise ValueError
    return number


def format_error(error: BaseException) -> str:
    """What an error says, for the one line that a program ends with: a KeyError as it was raised,
    where ``str`` would put it into quotation marks."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def require_folders(files: dict[str, str | Path | None]) -> None:
    """End the program with one sentence if a file could not be written for want of its folder,
    before hours are spent on what shall be in it.

    Args:
        files: option to the file that it names, None for none.
    """
    for option, path in files.items():
        if path and not Path(path).parent.is_dir():
            sys.exit(f"{option}: the folder {Path(path).parent} does not exist.")
