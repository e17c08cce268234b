"""Read and write files of tensors: weights and checkpoints.

Reading never unpickles Python objects, so a file cannot run code. Writing is atomic.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch

from dcp_clip.utils.atomic_files import WriteError, atomic_write

__all__ = [
    "TensorFileError",
    "damage",
    "explain",
    "read_tensors",
    "refuse_pickle",
    "require_tensors",
    "write_tensors",
]

_PICKLES = (".pkl", ".pickle", ".p", ".joblib")
_LFS_HEADER = b"version https://git-lfs.github.com/spec/"
_GIVE = "give a .pth or .safetensors file"


class TensorFileError(ValueError):
    """A file cannot be read as tensors; the message is one sentence that names the file."""

    def __init__(self, path: str | Path, reason: str) -> None:
        """
        Args:
            path: the file.
            reason: what is wrong with it and what to do, to be read after the name of the file.
        """
        super().__init__(f"'{path}' {reason}.")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple:  # other processes of a training get the error
        return type(self), (self.path, self.reason)


def refuse_pickle(path: str | Path) -> None:
    """Raise `TensorFileError` for a path or URL whose suffix is that of a pickle.

    The suffix counts with and without a query ("?...").
    """
    for name in (str(path), re.split(r"[?#]", str(path))[0]):
        if name.lower().endswith(_PICKLES):
            raise TensorFileError(path, f"is a pickle, which can run code when it is read: {_GIVE}")


def require_tensors(path: str | Path) -> None:
    """Raise `TensorFileError` for a file that is obviously not a file of tensors."""
    refuse_pickle(path)
    if reason := _visible_problem(Path(path)):
        raise TensorFileError(path, reason)


def read_tensors(path: str | Path, mmap: bool = False) -> Any:
    """Read a file of ``torch.save``, or a .safetensors file, into the main memory.

    Args:
        path: the file. It may contain tensors and plain Python values in lists, tuples and dicts.
        mmap: read the values of tensors only when they are used.

    Raises:
        TensorFileError: if the file does not exist, is damaged, contains other Python objects, or
            is no such file.
    """
    path = Path(path)
    require_tensors(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        mmap = mmap and zipfile.is_zipfile(path)  # files of an early format cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file can raise many errors
        raise TensorFileError(path, explain(path, error)) from error


def damage(path: Path) -> str:
    """Return why a file of ``torch.save`` is not complete, such as "is empty"; "" if it is."""
    if not path.is_file():
        return "does not exist"
    if not path.stat().st_size:
        return "is empty"
    try:
        with zipfile.ZipFile(path) as file:  # testzip compares the checksums of the content
            return "is damaged" if file.testzip() else ""
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, NotImplementedError):
        return "is truncated or damaged"


def write_tensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a file with ``torch.save``; it gets its name when it is complete.

    Raises:
        WriteError: if the file cannot be written.
    """
    errors: list[OSError] = []
    try:
        with atomic_write(path) as file:
            torch.save(content, _Recorder(file, errors))
    except RuntimeError as error:  # PyTorch's, after an OSError
        if not errors:
            raise
        raise WriteError(errors[0].errno, errors[0].strerror, str(path)) from error


class _Recorder:
    """A file that records the errors of writing."""

    def __init__(self, file: IO[bytes], errors: list[OSError]) -> None:
        self._file, self._errors = file, errors

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._errors.append(error)
            raise

    def flush(self) -> None:
        self._file.flush()


def _visible_problem(path: Path) -> str:
    """Return why a file is obviously not a file of tensors; "" if there is no such reason."""
    if path.is_dir():
        return "is a folder: give a file in it, such as model_final.pth"
    if not path.exists():
        return "does not exist: correct the path"
    if not path.is_file():
        return f"is no regular file: {_GIVE}"
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "is empty: write or copy it again"
    if head.startswith(_LFS_HEADER):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull`, or download the file"
    if head.startswith(b"PK") and _has_entry(path, "/constants.pkl"):
        return "is a TorchScript program, not a file of weights: save the model's state dict"
    if head.startswith(b"PK") and _is_compressed(path):
        return (
            "contains compressed data, which can fill the memory and is not from torch.save: "
            "save the weights again"
        )
    if path.suffix == ".safetensors":
        return ""  # it starts with a length, which can look like text
    if head.lstrip()[:1] == b"<":
        return "is a web page, not a file of weights: download the file itself"
    text = head.decode("utf-8", "replace").rstrip("\ufffd")  # a letter can be cut at the end
    if all(c.isprintable() or c in "\r\n\t" for c in text) and "\ufffd" not in text:
        return f"is a text file, not a file of weights: {_GIVE}"
    return ""


def explain(path: Path, error: Exception) -> str:
    """Explain a read error, as the end of a sentence that begins with the name of the file.

    PyTorch's own messages are not shown, because they advise to allow the file to run code.
    """
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if path.suffix == ".safetensors":
        return "is truncated, damaged or no .safetensors file: write or copy it again"
    if is_zip and (problem := damage(path)):
        return f"{problem}: write or copy it again"
    if is_zip and _is_lightning(path):
        return (
            "is a checkpoint of Lightning, which contains Python objects besides the weights: save "
            "the state dict of the model alone, with torch.save"
        )
    if found := re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", str(error)):
        return (
            f"contains the Python object {found[1] or found[2]}, and Python objects can run code "
            "when they are read: save the state dict of the model alone, with torch.save"
        )
    return f"is no readable file of PyTorch ({type(error).__name__}): {_GIVE}"


def _has_entry(path: Path, suffix: str) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith(suffix) for name in file.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _is_compressed(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def _is_lightning(path: Path) -> bool:
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith("/data.pkl"):
                return b"pytorch-lightning_version" in file.read(name)
    return False
