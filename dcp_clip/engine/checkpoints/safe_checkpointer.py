"""A checkpointer that runs no code, loads only matching weights and writes only complete files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from dcp_clip.engine.checkpoints.file_format import read_checkpoint
from dcp_clip.modeling.finite import NonFiniteError, check_weights
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.utils.tensor_files import (
    TensorFileError,
    damage,
    refuse_pickle,
    write_tensors,
)

__all__ = ["FINAL", "LAST", "SafeCheckpointer", "WeightsError", "find_checkpoint"]

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # the file that names the newest checkpoint
FINAL = "model_final"  # Detectron2's name of the last checkpoint of a training


class WeightsError(RuntimeError):
    """A file of weights does not exist, cannot be read, or belongs to another model."""


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made safe against code in files, crashes and wrong weights.

    - No file can run code when it is read: pickles are refused, and ``torch.load`` reads only
      tensors and plain values.
    - All weights must fit the model. Detectron2 logs those that do not fit and continues with
      random ones. If a file does not fit, the model does not change.
    - Checkpoints and ``last_checkpoint`` are written to a temporary file and renamed, so each is
      complete or absent.
    - If the file that ``last_checkpoint`` names is missing, empty or damaged, a warning is logged
      and the newest complete checkpoint of the folder is used.
    - It also reads checkpoints of earlier versions, and of models in DataParallel or torch.compile.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        record: Mapping[str, Any] | None = None,
        copy: Callable[[Path], None] | None = None,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: the model, possibly wrapped for distributed training.
            save_dir: folder of the checkpoints; "" if none are written.
            save_to_disk: whether this process writes; default: only the main process does.
            record: plain values that describe the training, from ``training_record``; every
                checkpoint stores them as "training".
            copy: called with every checkpoint after it was written.
            checkpointables: objects with ``state_dict`` and ``load_state_dict``.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._record = record
        self._copy = copy
        self._last: str | None = None  # the last checkpoint; None before the first search

    def save(self, name: str, **kwargs: Any) -> None:
        """Write a checkpoint, then write its name into ``last_checkpoint``, both atomically.

        Raises:
            OSError: if the disk is full or the folder cannot be written to.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **states, **kwargs}
        if self._record is not None:
            content["training"] = self._record
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        write_tensors(path, content)
        self.tag_last_checkpoint(path.name)
        if self._copy is not None:
            self._copy(path)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / LAST, "w") as file:
            file.write(last_filename_basename)
        self._last = str(Path(self.save_dir) / last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Return whether the folder has a complete checkpoint; see `get_checkpoint_file`."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Return the last complete checkpoint in the folder; "" if there is none.

        Raises:
            WeightsError: if there are only damaged checkpoints, or ``last_checkpoint`` names a
                pickle.
        """
        if self._last is None:
            self._last, warning = find_checkpoint(self.save_dir)
            if warning:
                logger.warning(warning)
        return self._last

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; see Detectron2's method.

        Raises:
            WeightsError: if the file cannot be read, or does not fit the model or the objects.
        """
        if not path:
            self.logger.info("No checkpoint found. Initializing model from scratch")
            return {}
        self.logger.info(f"[SafeCheckpointer] Loading from {path} ...")
        checkpoint = self._load_file(self.fetch(path))
        self._check(checkpoint["model"], path)
        self.model.load_state_dict(checkpoint.pop("model"), strict=False)  # all names were checked
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key not in checkpoint:
                raise WeightsError(
                    f"'{path}' has no state of the {key}, so the training cannot be resumed from "
                    "it: set MODEL.WEIGHTS to this file, and start without --resume."
                )
            try:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise WeightsError(
                    f"The state of the {key} in '{path}' does not fit this training "
                    f"({_first_line(error)}): resume with the config of the interrupted training."
                ) from error
        return checkpoint

    def fetch(self, path: str) -> str:
        """Return the local file of a path or URL; a download is cached.

        Raises:
            WeightsError: if the file does not exist, cannot be fetched, or is a pickle.
        """
        _call(refuse_pickle, path)
        if "://" not in path:
            return path
        if urlparse(path).query:
            raise WeightsError(
                f"The URL '{path}' has a query ('?...'), which is not supported: download the file "
                "and give its path."
            )
        try:
            return self.path_manager.get_local_path(path)
        except Exception as error:  # each kind of URL raises other errors
            raise WeightsError(f"'{path}' cannot be fetched: {_first_line(error)}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        return _call(read_checkpoint, filename)

    def _check(self, state: Mapping[str, Tensor], path: str) -> None:
        """Raise WeightsError if a state dict does not fit the model or has values like NaN."""
        own, problems = self.model.state_dict(), []
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
            raise WeightsError(f"'{path}' contains no state dict of tensors: give another file.")
        # The pixel statistics come from the config.
        missing = [k for k in own if k not in state and k not in ("pixel_mean", "pixel_std")]
        if missing:
            problems.append(
                f"it lacks {len(missing)} parameters of the model (first: {missing[0]})"
            )
        if other := [k for k in state if k not in own]:
            problems.append(f"the model lacks {len(other)} of its parameters (first: {other[0]})")
        shapes = [k for k, v in state.items() if k in own and v.shape != own[k].shape]
        if shapes:
            found, expected = (tuple(x[shapes[0]].shape) for x in (state, own))
            problems.append(f"{shapes[0]} has shape {found}, but {expected} in the model")
        if problems:
            raise WeightsError(
                f"The weights in '{path}' belong to another model than the config describes: "
                f"{'; '.join(problems)}. Use the config that they were trained with."
            )
        try:
            check_weights(state, f"'{path}'")
        except NonFiniteError as error:
            raise WeightsError(str(error)) from error


def find_checkpoint(folder: str | Path) -> tuple[str, str]:
    """Find the last complete checkpoint in a folder.

    Returns:
        its path, "" if there has been none; and a warning if it is not the one that
        ``last_checkpoint`` names, else "".

    Raises:
        WeightsError: if there are only damaged checkpoints, or ``last_checkpoint`` names a pickle.
    """
    folder = Path(folder)
    tag = folder / LAST
    name, problem = "", "does not exist"
    if tag.is_file():
        name = tag.read_text(encoding="utf-8", errors="replace").strip()
        problem = "is empty"
    if name:
        if not name.isprintable() or Path(name).name != name:
            problem = "does not contain the name of a file in its folder"
        else:
            _call(refuse_pickle, folder / name)
            damaged = damage(folder / name)
            if not damaged:
                return str(folder / name), ""
            problem = f"names '{name}', which {damaged}"
    newest = _newest_checkpoint(folder)
    if newest is not None:
        return str(newest), (
            f"'{tag}' {problem}: using '{newest.name}', the newest complete checkpoint."
        )
    if tag.exists() or any(damage(p) for p in folder.glob("model_*.pth")):
        raise WeightsError(
            f"'{tag}' {problem}, and the folder has no complete checkpoint: start a new training "
            "in another folder."
        )
    return "", ""


def _call(function: Callable, path: str | Path) -> Any:
    """Call a function with a path, and turn a TensorFileError into a WeightsError."""
    try:
        return function(path)
    except TensorFileError as error:
        raise WeightsError(str(error)) from error


def _newest_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint of the latest iteration; None if there is none.

    If two checkpoints have the same iteration, the one that was written later is returned.
    """
    found = []
    for path in folder.glob("*.pth"):
        try:
            content = read_checkpoint(path, mmap=True)
        except TensorFileError:
            continue
        if isinstance(iteration := content.get("iteration"), int):
            found.append((iteration, path.stat().st_mtime_ns, path))
    for *_, path in sorted(found, reverse=True):
        if not damage(path):
            return path
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
