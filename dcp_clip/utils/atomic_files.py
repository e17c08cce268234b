"""Write files that are complete or absent, also after a crash."""

import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["WriteError", "atomic_folder", "atomic_write", "remove_unfinished"]

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.part")


class WriteError(OSError):
    """A file cannot be written. A file that had this name before is unchanged.

    `errno`, `strerror` and `filename` are those of any OSError; the message is one sentence.
    """

    def __str__(self) -> str:
        return f"'{self.filename}' cannot be written: {self.strerror}."


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a file for writing that gets its name only when it is complete.

    The content is written to a hidden file in the same folder. If the block ends without an error,
    the hidden file is synced and replaces `path`; otherwise it is deleted and `path` is unchanged.

    Args:
        path: the file to write; its folder must exist.
        mode: "wb", or "w" for UTF-8 text.

    Yields:
        the open file.

    Raises:
        WriteError: if the file cannot be written. Errors of reading another file in the block,
            which name that file, stay as they are.
    """
    path = Path(path)
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_write: the mode must be 'wb' or 'w', got {mode!r}")
    # The name is not derived from `path`, which may already have the maximum length.
    part = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        with open(part, mode, encoding=None if mode == "wb" else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException as error:  # also after KeyboardInterrupt
        with suppress(OSError):  # the folder may be read-only by now
            part.unlink(missing_ok=True)
        # An error while a file is written has no file name.
        if isinstance(error, OSError) and error.filename in (None, str(part), part):
            reason = error.strerror or str(error)
            raise WriteError(error.errno, reason, str(path)) from error
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that gets its name only when it is complete.

    Args:
        folder: a folder that does not exist or is empty, or a link to one; not the working folder.
            Its parents are created.

    Yields:
        the folder to write to, beside `folder`. If the block ends without an error, it gets the
        name; otherwise it is removed.

    Raises:
        WriteError: naming `folder`, if it is not empty or cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    if folder == Path.cwd():
        raise WriteError(16, "it is the working folder; choose another name", folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WriteError(17, "it exists and is not an empty folder; choose another name", folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise WriteError(error.errno, error.strerror, folder) from error
    try:
        yield part
        part.chmod(0o755)
        part.replace(folder)
    except OSError as error:
        raise WriteError(error.errno or 5, error.strerror or str(error), folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_unfinished(folder: Path, seconds: float = 0.0) -> None:
    """Remove what `atomic_write` left in a folder when its process was killed.

    Args:
        folder: the folder; it need not exist.
        seconds: keep files that were changed later than this before now, because another process
            may be writing them.
    """
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if _UNFINISHED.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # another process has removed it
                    modified = entry.stat(follow_symlinks=False).st_mtime
                    if not seconds or time.time() - modified > seconds:
                        os.unlink(entry.path)
