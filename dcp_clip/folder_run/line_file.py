"""Append whole lines to files, and detect changes of files."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["LineFile", "concerns_one_file", "file_state"]

# Errors of a single path. Other errors, such as a full disk, would occur for every image.
_ERRORS_OF_ONE_FILE = {
    errno.ENAMETOOLONG,
    errno.EINVAL,  # a character that the file system does not allow
    errno.EILSEQ,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EEXIST,
}


def concerns_one_file(error: OSError) -> bool:
    """Return whether a write error concerns only one path, so that others may be writable."""
    return error.errno in _ERRORS_OF_ONE_FILE


def file_state(path: str | os.PathLike) -> dict[str, Any]:
    """Return the size and the modification time of a file; both are None if it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return {"bytes": None, "modified": None}
    return {"bytes": status.st_size, "modified": status.st_mtime}


class LineFile:
    """A text file to which whole lines are appended, each with one system call.

    Args:
        path: the file; the first `write` creates it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def write(self, line: str) -> None:
        """Append a line.

        Raises:
            OSError: if the line cannot be written. A part that was written is removed.
        """
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._file = os.open(self.path, flags, 0o666)
        size, rest = os.fstat(self._file).st_size, line.encode()
        try:
            while rest:  # a disk that is nearly full may accept only a part
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):  # the next start removes an incomplete line
                os.ftruncate(self._file, size)
            raise

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
