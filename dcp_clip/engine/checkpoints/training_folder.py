"""The output folder of a training: lock it, protect its checkpoints, and check what is resumed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from detectron2.config import CfgNode
from detectron2.utils import comm

from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine.checkpoints.file_format import read_checkpoint
from dcp_clip.engine.checkpoints.remote_copy import RemoteCopy
from dcp_clip.engine.checkpoints.safe_checkpointer import LAST, find_checkpoint
from dcp_clip.utils.atomic_files import remove_unfinished
from dcp_clip.utils.model_settings import model_settings

__all__ = ["ResumeError", "prepare_training_folder", "training_folder", "training_record"]

logger = logging.getLogger(__name__)

# Keys of a model, and groups of keys, that may differ when a training is resumed. All others change
# what the model computes with the same weights.
_MAY_CHANGE = (
    "MODEL.IMPORTS",
    "MODEL.CLIP.PRETRAINED",
    "MODEL.CLIP.PROXY.PRETRAINED",
    "MODEL.CLIP.TRAIN_IMAGE",
    "MODEL.CLIP.TRAIN_TEXT",
    "MODEL.DCP_CLIP.BF16",
    "MODEL.DCP_CLIP.CHANNELS_LAST",
    "MODEL.DCP_CLIP.LOSS",
    "MODEL.DCP_CLIP.OUTPUT",
    "MODEL.DCP_CLIP.SLIDING_WINDOW",
    "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR",
    "MODEL.TRAINING_FREE",
)
_MAX_NAMED = 3  # differences that an error message names
_LOCK = ".training.lock"
# Loader workers of a killed training end within 5 seconds (torch.utils.data); with an early version
# of filelock they hold the lock until then.
_WAIT = 8.0


class ResumeError(ValueError):
    """A folder cannot be used for this training; the message is one sentence."""


def training_record(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings that a training must share with the one that it resumes.

    Returns:
        A dict of plain values. "architecture" maps config keys to values. "categories" has the
        names of each category of DATASETS.TRAIN in their order, of one vocabulary after another;
        None if there is no data set. "optimizer" is SOLVER.OPTIMIZER, whose state is resumed.
        "batch" is SOLVER.IMS_PER_BATCH, scaled to the number of GPUs in the record of a checkpoint.
    """
    # Data sets with the same names share them; their colours have no effect.
    vocabularies = dict.fromkeys(dataset_vocabulary(x).synonyms for x in cfg.DATASETS.TRAIN)
    names = [list(names) for vocabulary in vocabularies for names in vocabulary] or None
    return {
        "architecture": model_settings(cfg, _MAY_CHANGE),
        "categories": names,
        "optimizer": cfg.SOLVER.OPTIMIZER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
    }


@contextlib.contextmanager
def training_folder(cfg: CfgNode, resume: bool) -> Iterator[None]:
    """Lock OUTPUT_DIR for a training and prepare it, see :func:`prepare_training_folder`.

    Every process of the training calls this. Only the main process uses the folder; an error of it
    is raised in all processes, before any of them writes to the folder. The operating system
    releases the lock when the main process ends, however it ends. A file system without locks is
    a warning.

    With SOLVER.CHECKPOINT_COPY, the newest checkpoint of the folder and of the copy becomes the
    last one in both, and in the OUTPUT_DIR of every machine.

    Raises:
        ResumeError, WeightsError, TensorFileError: as :func:`prepare_training_folder`; also if
            another training uses the folder.
        OSError: if the folder or the copy cannot be written to.
    """
    copy, folder = RemoteCopy.from_config(cfg), Path(cfg.OUTPUT_DIR)
    with contextlib.ExitStack() as stack:
        error, last = None, ""
        if comm.is_main_process():
            try:
                stack.enter_context(_lock(folder))
                if copy is not None:
                    last = _prepare_copy(copy, folder, resume)
                prepare_training_folder(cfg, resume)
            except Exception as raised:  # the other processes wait for it
                error = raised
        error, last = comm.all_gather((error, last))[0]
        if error is None and last and comm.get_local_rank() == 0 and not comm.is_main_process():
            try:
                copy.get(last, folder)
            except OSError as raised:
                error = raised
        if error := next(filter(None, comm.all_gather(error)), None):
            raise error
        yield


def _prepare_copy(copy: RemoteCopy, folder: Path, resume: bool) -> str:
    """Return the checkpoint to resume from, which is in the folder and in its copy; "" for none."""
    copy.open()
    if resume:
        return copy.synchronise(folder)
    if name := copy.last():
        raise ResumeError(
            f"SOLVER.CHECKPOINT_COPY '{copy.url}' has the checkpoints of another training "
            f"({name}): add --resume to continue it, or choose another folder."
        )
    return ""


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created."""
    try:
        os.fsencode(folder)
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ResumeError(
            f"OUTPUT_DIR is {ascii(str(folder))}, and the locale has no such characters: set the "
            "environment variable LC_ALL to C.UTF-8, or choose another folder."
        ) from error
    _require_no_file(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_WAIT)
    except filelock.Timeout:
        raise ResumeError(
            f"Another training is writing to OUTPUT_DIR '{folder}': wait until it ends, or choose "
            "another OUTPUT_DIR."
        ) from None
    except NotImplementedError:
        logger.warning(
            "The file system of OUTPUT_DIR '%s' cannot lock files: start no second training there.",
            folder,
        )
    try:
        yield
    finally:
        lock.release()


def _require_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ResumeError(f"OUTPUT_DIR is '{folder}', which is a file: choose another folder.")


def prepare_training_folder(cfg: CfgNode, resume: bool) -> None:
    """Check that a training may write to OUTPUT_DIR, and remove temporary files of killed runs.

    Call it before anything is written to the folder. The log and ``config.yaml`` in it must not
    change if the training may not use the folder.

    Args:
        cfg: the whole config.
        resume: whether the training continues from the last checkpoint in the folder.

    Raises:
        ResumeError: if the folder has checkpoints and `resume` is False, or the last checkpoint
            belongs to a training with another architecture or other names.
        WeightsError, TensorFileError: if the checkpoint to resume from cannot be read.
    """
    folder = Path(cfg.OUTPUT_DIR)
    _require_no_file(folder)
    checkpoints = sorted(folder.glob("model_*.pth"))
    if not resume and (checkpoints or (folder / LAST).exists()):
        found = checkpoints[-1].name if checkpoints else LAST
        raise ResumeError(
            f"OUTPUT_DIR '{folder}' has the checkpoints of another training ({found}): add "
            "--resume to continue it or --eval-only --resume to evaluate it, or choose another "
            "OUTPUT_DIR."
        )
    if resume:
        path, _ = find_checkpoint(folder)  # the trainer's checkpointer logs the warning
        if path:
            _check_record(read_checkpoint(path, mmap=True).get("training"), cfg, path)
    remove_unfinished(folder)


def _check_record(record: Any, cfg: CfgNode, path: str) -> None:
    """Raise ResumeError if a checkpoint belongs to another training.

    Checkpoints of version 0.1.0 have no record. Loading still checks that their weights fit.
    """
    if not isinstance(record, Mapping):
        return
    now, before = training_record(cfg), dict(record)
    _check_batch(before.get("batch"), cfg, path)
    old = before.get("architecture") or {}
    # Ignore keys that only one version of this package has.
    changed = [k for k, v in now["architecture"].items() if k in old and not _equal(old[k], v)]
    differences = [f"{k} was {old[k]!r} and is {now['architecture'][k]!r}" for k in changed]
    if before.get("optimizer", now["optimizer"]) != now["optimizer"]:
        differences.append(
            f"SOLVER.OPTIMIZER was {before['optimizer']!r} and is {now['optimizer']!r}"
        )
    if before.get("categories") is not None and now["categories"] is not None:
        differences += _name_differences(before["categories"], now["categories"])
    if differences:
        more = len(differences) - _MAX_NAMED
        text = "; ".join(differences[:_MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise ResumeError(
            f"'{path}' cannot be resumed, because it belongs to another training: {text}. Use its "
            "config, or start a new training from it with MODEL.WEIGHTS in another OUTPUT_DIR."
        )


def _check_batch(before: int | None, cfg: CfgNode, path: str) -> None:
    """Raise ResumeError if SOLVER.REFERENCE_WORLD_SIZE scales the batch and MAX_ITER differently.

    The iterations of the checkpoint would count more or fewer images than the schedule assumes.
    """
    reference, world = cfg.SOLVER.REFERENCE_WORLD_SIZE, comm.get_world_size()
    if not before or not reference:
        return
    now = round(cfg.SOLVER.IMS_PER_BATCH * world / reference)
    if now != before:
        kept, rest = divmod(world * cfg.SOLVER.IMS_PER_BATCH, before)
        advice = f", or set SOLVER.REFERENCE_WORLD_SIZE to {kept}, which keeps its batch"
        raise ResumeError(
            f"'{path}' cannot be resumed, because its batch has {before} images, and "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} scales the batch to {now} images for "
            f"{world} GPUs: use the same number of GPUs{'' if rest else advice}."
        )


def _equal(a: Any, b: Any) -> bool:
    return list(a) == list(b) if isinstance(a, list | tuple) else a == b


def _name_differences(old: Sequence, new: Sequence) -> list[str]:
    """Describe how the categories of DATASETS.TRAIN differ."""
    if list(map(list, old)) == list(map(list, new)):
        return []
    if len(old) != len(new):
        return [f"DATASETS.TRAIN had {len(old)} categories and has {len(new)}"]
    index = next(i for i in range(len(old)) if list(old[i]) != list(new[i]))
    return [
        f"category {index} of DATASETS.TRAIN was '{', '.join(old[index])}' and is "
        f"'{', '.join(new[index])}'"
    ]
