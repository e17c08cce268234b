"""The common code of the programs in ``datasets/``: errors, settings and the report."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcp_clip.data.catalog import datasets_root
from dcp_clip.data.label_statistics import report_pixels
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.convert import Pair, count_pixels, prepare_split
from dcp_clip.data.preparation.label_encoding import LabelEncoding
from dcp_clip.utils.atomic_files import atomic_write, remove_unfinished
from dcp_clip.utils.processors import usable_cpus

logger = logging.getLogger(__name__)

_SETTINGS_FILE = "prepared.json"


def run_program(
    prepare: Callable[..., None], *, root: Path | None, workers: int | None, **options: Any
) -> int:
    """Call ``prepare(root=root, workers=workers, **options)`` and return the exit status.

    Messages go to standard error. An error in the data, and Ctrl-C, end with one sentence and
    without a traceback.

    Args:
        prepare: the function that prepares a data set.
        root: folder of all data sets; None for ``datasets_root()``.
        workers: number of processes; None for all processors.
        options: further arguments. As in `root`, a ``~`` at the start of a path is the home folder,
            because shells do not replace it in ``--root=~/data``.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options |= {"root": Path(datasets_root()) if root is None else root}
    paths = {key: value.expanduser() for key, value in options.items() if isinstance(value, Path)}
    try:
        prepare(workers=usable_cpus() if workers is None else workers, **options | paths)
    except (DatasetError, OSError) as e:
        logger.error("error: %s", e)
        return 1
    except KeyboardInterrupt:
        logger.error("Stopped. Run the same command again to continue.")
        return 130
    return 0


def prepare_dataset(
    output: Path,
    splits: Mapping[str, Sequence[Pair]],
    encoding: LabelEncoding,
    *,
    workers: int = 1,
    max_short_side: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Write ``<output>/{images,labels}/<split>`` and log the result; skip finished files.

    Args:
        output: folder of the prepared data set.
        splits: the pairs of each split.
        encoding: how to convert label maps.
        workers: number of processes.
        max_short_side: see :func:`dcp_clip.data.preparation.convert.prepare_split`.
        settings: choices that change the files, saved in ``<output>/prepared.json`` so that files
            of different choices are never mixed. None if the data set has no choices.

    Raises:
        DatasetError: as :func:`prepare_split` does, if ``output`` has other settings, or if a split
            has only ignored pixels or black-and-white masks.
    """
    if settings is not None:
        _keep_settings(output, dict(settings))
    for split, pairs in splits.items():
        label_dir = output / "labels" / split
        written = prepare_split(
            pairs,
            output / "images" / split,
            label_dir,
            encoding,
            workers=workers,
            max_short_side=max_short_side,
            description=split,
        )
        logger.info(
            "%s: %d images in %s (%d written, %d existed).",
            split,
            len(pairs),
            output / "images" / split,
            written,
            len(pairs) - written,
        )
        pixels = count_pixels(label_dir, encoding, workers=workers)
        report_pixels(split, pixels, encoding.names, encoding.ignore_label)


def _keep_settings(output: Path, settings: dict[str, str]) -> None:
    path = output / _SETTINGS_FILE
    remove_unfinished(output)
    if path.exists():
        found = _read_settings(path)
        if found != settings:
            raise DatasetError(
                f"{output} was prepared with {_describe(found)}, not with {_describe(settings)}: "
                "give another --root, or remove the folder and start again."
            )
        return
    if any(output.glob("*/*/*")):
        raise DatasetError(
            f"{output} holds files, but no {_SETTINGS_FILE} with their settings: remove the folder "
            "and start again."
        )
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as f:
        json.dump(settings, f)


def _read_settings(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DatasetError(f"{path} is damaged: remove {path.parent} and start again.")
    return found


def _describe(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())
