"""Write files that are complete or absent, also after a crash."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["atomic_write"]


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
        OSError: if the folder does not exist or cannot be written to.
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
    except BaseException:  # also after KeyboardInterrupt
        part.unlink(missing_ok=True)
        raise
