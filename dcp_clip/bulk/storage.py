"""Files on this machine or on any file system that fsspec knows, such as s3:// and gs://."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from dcp_clip.utils.atomic_files import WriteError, atomic_write

__all__ = ["Folder", "StorageError", "locate", "read_bytes"]


class StorageError(OSError):
    """A location cannot be used. The message is one sentence that names it."""


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path there, absolute on this machine.

    Raises:
        StorageError: if no installed package knows the protocol.
    """
    try:
        if "://" in url:
            fs, path = fsspec.core.url_to_fs(url)
        else:  # fsspec would take the "::" of a name for a chain of URLs
            fs, path = fsspec.filesystem("file"), os.path.expanduser(url)
    except (ImportError, ValueError) as error:  # ValueError: an unknown protocol
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"cannot use {url}: {reason}") from error
    return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path


def read_bytes(url: str, offset: int = 0, size: int | None = None) -> bytes:
    """Read a file, or a part of it.

    Args:
        url: path or URL.
        offset: first byte.
        size: number of bytes; None: to the end.
    """
    fs, path = locate(url)
    return fs.cat_file(path, start=offset or None, end=None if size is None else offset + size)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text or type(error).__name__


class Folder:
    """A folder of files that are complete or absent.

    On this machine a file gets its name when it is complete (`atomic_write`). Object stores show an
    object when its upload is complete. For other file systems, fsspec moves a complete file.

    Args:
        url: path or URL of the folder.
    """

    def __init__(self, url: str) -> None:
        self.fs, self.path = locate(url)
        self.url = self.path if self.is_local else url.rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    @contextmanager
    def _using(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has its own types of errors
            raise StorageError(f"cannot use the folder {self.url}: {_reason(error)}") from error

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except WriteError:
            raise
        except Exception as error:
            number = getattr(error, "errno", None) or 5
            raise WriteError(number, _reason(error), f"{self.url}/{name}") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file; its sub-folder is created.

        Raises:
            WriteError: if the file cannot be written.
        """
        with self._writing(name):
            if not self.is_local:
                self._upload(self._at(name), content)
                return
            path = Path(self._at(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(content)

    def _upload(self, path: str, content: bytes) -> None:
        # An object store ignores the transaction: its objects are complete or absent. Other file
        # systems write a temporary file, and move it at the end of the transaction.
        if not isinstance(self.fs, AsyncFileSystem):
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self.fs.transaction:
            self.fs.pipe_file(path, content)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none.

        Raises:
            StorageError: if the folder cannot be used.
        """
        try:
            with self._using():
                return self.fs.cat_file(self._at(name))
        except FileNotFoundError:
            return None

    def open(self, name: str) -> io.IOBase:
        """Open a file for reading."""
        return self.fs.open(self._at(name), "rb")

    def names(self) -> list[str]:
        """Return the sorted names of the files in the folder; empty if it does not exist.

        Raises:
            StorageError: if the folder cannot be used.
        """
        self.fs.invalidate_cache()
        try:
            with self._using():
                found = self.fs.ls(self.path, False)
            return sorted(str(path).rpartition("/")[2] for path in found)
        except FileNotFoundError:
            return []
