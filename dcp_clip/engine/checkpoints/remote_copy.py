"""A copy of the checkpoints on another file system, such as s3://, through iopath."""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from pathlib import Path, PurePosixPath

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from dcp_clip.engine.checkpoints.file_format import read_checkpoint
from dcp_clip.engine.checkpoints.safe_checkpointer import FINAL, LAST, find_checkpoint
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.utils.tensor_files import damage

__all__ = ["CopyError", "RemoteCopy"]

logger = logging.getLogger(__name__)

_KEY = "SOLVER.CHECKPOINT_COPY"
_NUMBERED = re.compile(r"model_\d+\.pth")
_FINAL_FILE = f"{FINAL}.pth"


class CopyError(OSError):
    """The copy of the checkpoints cannot be used. The message is one sentence."""


class RemoteCopy:
    """The folder of SOLVER.CHECKPOINT_COPY, with a copy of every checkpoint of a training.

    A checkpoint is uploaded under a temporary name and moved, if the file system can move files;
    otherwise a file must be complete or absent, as in object stores. ``last_checkpoint`` is written
    after the checkpoint that it names, and a file is checked after it was fetched. So a training
    never continues from an incomplete file.
    """

    def __init__(self, url: str) -> None:
        """
        Args:
            url: the folder; its prefix belongs to a handler of Detectron2's ``PathManager``.
        """
        self.url = url.rstrip("/")
        self._can_move: bool | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> RemoteCopy | None:
        """Return the copy of a config, or None."""
        return cls(cfg.SOLVER.CHECKPOINT_COPY) if cfg.SOLVER.CHECKPOINT_COPY else None

    def open(self) -> None:
        """Check that the folder can be written to, and whether files can be moved there.

        Raises:
            CopyError: if it cannot.
        """
        # PathManager would use a path with an unknown prefix as a folder of this machine.
        if "://" in self.url and not self.url.startswith(tuple(PathManager._path_handlers)):
            raise CopyError(
                f"{_KEY} is '{self.url}', but no handler of iopath is registered for "
                f"'{self.url.partition('://')[0]}://': register one in a module of your own, and "
                "give the module with --import (docs/cluster.md)."
            )
        try:
            PathManager.mkdirs(self.url)
            first, second = self._temporary(), self._temporary()
            with PathManager.open(first, "w") as file:
                file.write("a test")
            try:
                self._can_move = PathManager.mv(first, second) is not False
            except NotImplementedError:
                self._can_move = False
            PathManager.rm(second if self._can_move else first)
        except Exception as error:  # each handler has its own types of errors
            raise CopyError(
                f"{_KEY} '{self.url}' cannot be written to: {_reason(error)}"
            ) from error

    def last(self) -> str:
        """Return the name of the last checkpoint; "" if there is none.

        Raises:
            CopyError: if the folder cannot be read.
        """
        tag = f"{self.url}/{LAST}"
        try:
            name = ""
            if PathManager.exists(tag):
                with PathManager.open(tag, "r") as file:
                    name = file.read().strip()
            name = name or self._newest()
        except Exception as error:
            raise CopyError(f"'{tag}' cannot be read: {_reason(error)}") from error
        if name and (not name.endswith(".pth") or PurePosixPath(name).name != name):
            raise CopyError(
                f"'{tag}' does not contain the name of a checkpoint: correct or remove it."
            )
        return name

    def _newest(self) -> str:
        """Return the newest checkpoint with a number, for a ``last_checkpoint`` without a name.

        A process that is killed while it writes this file leaves it empty.
        """
        try:
            names = PathManager.ls(self.url) if PathManager.isdir(self.url) else []
        except NotImplementedError:
            return ""
        return max(filter(_NUMBERED.fullmatch, names), default="")

    def add(self, path: Path) -> None:
        """Copy a new checkpoint. If this fails, there is a warning, because later ones follow.

        Raises:
            CopyError: if the final checkpoint cannot be copied.
        """
        try:
            self.put(path)
        except CopyError as error:
            if path.name == _FINAL_FILE:
                raise CopyError(f"{error} Continue with --resume, which copies it.") from error
            logger.warning("%s The training continues.", error)

    def put(self, path: Path) -> None:
        """Copy a checkpoint into the folder, then write its name into ``last_checkpoint``.

        Raises:
            CopyError: if it cannot be copied.
        """
        if self._can_move is None:
            self.open()
        target = f"{self.url}/{path.name}"
        try:
            part = self._temporary() if self._can_move else target
            if PathManager.copy_from_local(str(path), part, overwrite=True) is False:
                raise OSError("the upload failed")
            if self._can_move:
                if PathManager.exists(target):
                    PathManager.rm(target)
                if PathManager.mv(part, target) is False:
                    raise OSError("the upload cannot be renamed")
            with PathManager.open(f"{self.url}/{LAST}", "w") as file:
                file.write(path.name)
        except Exception as error:
            raise CopyError(f"'{path}' cannot be copied to '{target}': {_reason(error)}") from error
        logger.info("Copied the checkpoint to %s", target)

    def get(self, name: str, folder: Path) -> None:
        """Fetch a checkpoint into a local folder, unless it is there, and tag it as the last one.

        Raises:
            CopyError: if it cannot be fetched, or is incomplete.
        """
        if not _is_there(name, folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._fetch(name, folder / name)
        _tag(name, folder)

    def _fetch(self, name: str, path: Path) -> None:
        source = f"{self.url}/{name}"
        try:
            with atomic_write(path) as file:
                with PathManager.open(source, "rb") as remote:
                    shutil.copyfileobj(remote, file)
                file.flush()
                if problem := damage(Path(file.name)):
                    raise CopyError(f"'{source}' {problem}")
        except CopyError:
            raise
        except Exception as error:
            raise CopyError(f"'{source}' cannot be fetched: {_reason(error)}") from error
        logger.info("Fetched %s", source)

    def synchronise(self, folder: Path) -> str:
        """Make the newest checkpoint the last one in both folders; if they are equal, the local.

        Args:
            folder: OUTPUT_DIR.

        Returns:
            the name of the checkpoint; "" if there is none.

        Raises:
            CopyError, WeightsError, TensorFileError: if a checkpoint cannot be read or copied.
        """
        remote, (local, _) = self.last(), find_checkpoint(folder)
        own = Path(local).name if local else ""
        # A longer training writes another final checkpoint; a number stands for one checkpoint.
        is_copied = own == remote != _FINAL_FILE
        if remote and not is_copied:
            newer = self._newer(remote, folder, _iteration(folder / own) if own else -1)
            if newer > 0:
                return remote
            is_copied = own == remote and newer == 0
        if own and not is_copied:
            self.put(folder / own)
        return own

    def _newer(self, name: str, folder: Path, iteration: int) -> int:
        """Return by how much a checkpoint of the copy is newer; if it is, make it the local last.

        Until then, it has the name of an unfinished file, which the next start removes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        is_there = _is_there(name, folder)
        path = folder / (name if is_there else f".{uuid.uuid4().hex}.part")
        try:
            if not is_there:
                self._fetch(name, path)
            newer = _iteration(path) - iteration
            if newer > 0:
                os.replace(path, folder / name)
                _tag(name, folder)
            return newer
        finally:
            if not is_there:
                path.unlink(missing_ok=True)

    def _temporary(self) -> str:
        return f"{self.url}/.{uuid.uuid4().hex}.part"


def _is_there(name: str, folder: Path) -> bool:
    """Whether a local file is certainly the checkpoint of this name in the copy."""
    return name != _FINAL_FILE and not damage(folder / name)


def _tag(name: str, folder: Path) -> None:
    with atomic_write(folder / LAST, "w") as file:
        file.write(name)


def _iteration(path: Path) -> int:
    return int(read_checkpoint(path, mmap=True).get("iteration", -1))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, NotImplementedError):
        text = "its handler of iopath cannot write files"
    return f"{text or type(error).__name__}."
