"""Cache files for the text features of vocabularies.

A cache file only saves time. If a file cannot be used or written, a warning says so and the program
continues. Several processes can share a folder: a file gets its name when it is complete. If
another process removes a file, its names are encoded again.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from dcp_clip.structures import TextFeatures
from dcp_clip.utils.atomic_files import remove_unfinished
from dcp_clip.utils.tensor_files import read_tensors, write_tensors

__all__ = ["MAX_FOLDER_BYTES", "cache_file", "read_features", "write_features"]

logger = logging.getLogger(__name__)

# The features of 20,000 names take 60 MB. Beyond this size, the least recently used files are
# removed.
MAX_FOLDER_BYTES = 1 << 30
_FILE_NAME = re.compile(r"[0-9a-f]{64}\.pt")
_LEFTOVER_SECONDS = 3600.0  # what is older was left by a process that was killed


def cache_file(folder: str, key: tuple[str, ...]) -> Path | None:
    """Return the file of a cache key; None, with a warning, if "~" stands for no directory."""
    name = hashlib.sha256("\n".join(key).encode("utf-8", "surrogatepass")).hexdigest()
    try:
        return Path(folder).expanduser() / f"{name}.pt"
    except RuntimeError as error:
        _warn_once(f"Text features are not cached in '{folder}' ({error}).")
        return None


def read_features(
    path: Path, rows: Tensor, width: int | None, device: torch.device
) -> TextFeatures | None:
    """Read a file of :func:`write_features`.

    Args:
        path: the file; reading sets its modification time, which shows when it was last used.
        rows: (C, S) int64, the `category_rows` that the features must have.
        width: D, the width of the features that the text tower computes; None if it is unknown.
        device: device of the result.

    Returns:
        The features; None if the file does not exist. None, with a warning, if the file cannot be
        read or does not contain the features of this vocabulary.
    """
    before = _state(path)
    try:
        if path.stat().st_size > MAX_FOLDER_BYTES:
            raise ValueError("it is larger than the whole cache may be")
        data = read_tensors(path)
        features = TextFeatures(data["embeddings"], data["rows"])
        if problem := _find_problem(features, rows, width):
            raise ValueError(problem)
        if data.get("sha256", _digest(features)) != _digest(features):
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        return None
    except Exception as error:  # the content can be anything
        # Another process has just removed it, and may have written it again.
        if before is None or _state(path) != before:
            return None
        logger.warning(
            "The names are encoded again, because the text cache %s cannot be used (%s).",
            path,
            " ".join(str(error).split())[:200] or type(error).__name__,
        )
        return None
    with suppress(OSError):  # a folder that this process may only read
        os.utime(path)
    return TextFeatures(features.embeddings.to(device), features.category_rows.to(device))


def _state(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None if there is no file, or it cannot be found."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def write_features(path: Path, features: TextFeatures) -> None:
    """Write the features to a file, atomically, and keep the folder below `MAX_FOLDER_BYTES`.

    If a folder cannot be written to, one warning says so. Features that :func:`read_features` would
    refuse are not written, for example those of weights with NaN.
    """
    features = TextFeatures(features.embeddings.cpu(), features.category_rows.cpu())
    if not _is_normalised(features.embeddings):
        return
    data = {"embeddings": features.embeddings, "rows": features.category_rows}
    if features.embeddings.nbytes > MAX_FOLDER_BYTES:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, {**data, "sha256": _digest(features)})
        _prune(path)
    except OSError as error:
        reason = error.strerror or error
        _warn_once(f"Text features cannot be cached in {path.parent} ({reason}).")


def _find_problem(features: TextFeatures, rows: Tensor, width: int | None) -> str | None:
    """Return why the tensors of a file are not the features of a vocabulary; None if they are."""
    embeddings = features.embeddings
    for tensor in (embeddings, features.category_rows):
        # Not a parameter, and not sparse.
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.requires_grad:
            return "it contains no tensors"
    if features.category_rows.dtype != rows.dtype or not torch.equal(features.category_rows, rows):
        return "it belongs to other names"
    shape = (int(rows.max()) + 1, width or (embeddings.shape[-1] if embeddings.dim() else 0))
    if tuple(embeddings.shape) != shape or embeddings.dtype != torch.float32:
        found = f"{tuple(embeddings.shape)} {embeddings.dtype}"
        return f"its features are {found} instead of {shape} {torch.float32}"
    return None if _is_normalised(embeddings) else "its features do not have length 1"


def _is_normalised(embeddings: Tensor) -> bool:
    # A comparison with NaN is false.
    return bool(((embeddings.norm(dim=-1) - 1).abs() < 1e-3).all())


def _digest(features: TextFeatures) -> str:
    return hashlib.sha256(features.embeddings.contiguous().numpy()).hexdigest()


def _prune(written: Path) -> None:
    """Remove old incomplete files, and the least recently used files of a folder too large."""
    remove_unfinished(written.parent, _LEFTOVER_SECONDS)
    files, total = [], 0
    with os.scandir(written.parent) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process has removed it
                stat = entry.stat(follow_symlinks=False)
                if _FILE_NAME.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                    total += stat.st_size
                    if entry.name != written.name:
                        files.append((stat.st_mtime, stat.st_size, entry.path))
    for _, size, path in sorted(files):
        if total <= MAX_FOLDER_BYTES:
            break
        Path(path).unlink(missing_ok=True)
        total -= size


@functools.lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning(message)
