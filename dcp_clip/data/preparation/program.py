"""What the programs in ``datasets/`` share: arguments, splits, settings and the final report."""

import argparse
import json
import logging
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dcp_clip.data.catalog import datasets_root
from dcp_clip.data.label_maps import LabelEncoding
from dcp_clip.data.pairing import DatasetError, pair_images_with_labels
from dcp_clip.data.preparation.convert import Pair, count_pixels, prepare_split
from dcp_clip.utils.image_io import atomic_write

logger = logging.getLogger(__name__)

_SETTINGS_FILE = "prepared.json"


def available_cpus() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_parser(
    description: str | None, input_help: str | None = None, *, input_required: bool = False
) -> argparse.ArgumentParser:
    """Return a parser of what every prepare program takes: --root, --workers, and --input if it has
    a help text."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if input_help is not None:
        parser.add_argument("--input", type=Path, required=input_required, help=input_help)
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="folder of all datasets (default: $DETECTRON2_DATASETS or ./datasets)",
    )
    parser.add_argument(
        "--workers", type=int, default=available_cpus(), help="processes (default: all processors)"
    )
    return parser


def run_program(prepare: Callable[[], None]) -> int:
    """Call ``prepare`` with its messages on the terminal; returns the exit status.

    An error that names what is wrong with the data is told in its one sentence, without a
    traceback; so is Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare()
    except (DatasetError, OSError) as e:
        logger.error("error: %s", e)
        return 1
    except KeyboardInterrupt:
        logger.error("Stopped. The same command goes on with what is left.")
        return 130
    return 0


def find_splits(
    source: Path,
    folders: Mapping[str, tuple[Path, Path]],
    counts: Mapping[str, int | None],
    *,
    wanted: Sequence[str] | None = None,
    advice: str = "",
) -> dict[str, list[Pair]]:
    """List the (image, label map) files of every split that an input folder holds.

    Args:
        source: the input folder.
        folders: the image and label folder of each split.
        counts: how many images each split must have; None for any number.
        wanted: splits that must be there. None takes those that are and tells of the others.
        advice: sentence appended to errors: where the data come from.

    Raises:
        DatasetError: if there is no split, a wanted one is missing, or one is incomplete.
    """
    if not source.is_dir():
        raise DatasetError(f"The input folder {source} does not exist. {advice}")
    splits = wanted
    if splits is None:
        splits = [s for s, pair in folders.items() if any(folder.is_dir() for folder in pair)]
        for split in folders:
            if split not in splits:
                logger.info("%s: not in %s, skipped.", split, source)
        if not splits:
            expected = " or ".join(" and ".join(map(str, pair)) for pair in folders.values())
            raise DatasetError(f"{source} holds no dataset: there must be {expected}. {advice}")
    return {
        split: pair_images_with_labels(*folders[split], expected_count=counts[split], advice=advice)
        for split in splits
    }


def prepare_dataset(
    output: Path,
    splits: Mapping[str, Sequence[Pair]],
    encoding: LabelEncoding,
    *,
    workers: int = 1,
    max_short_side: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Write ``<output>/{images,labels}/<split>`` and tell what was made; skip what is finished.

    Args:
        output: folder of the prepared dataset.
        splits: the pairs of each split; what can be checked without reading them has been.
        encoding: how to read label maps, and what they become.
        workers: processes.
        max_short_side: see :func:`dcp_clip.data.preparation.convert.prepare_split`.
        settings: choices that decide what is in the files, kept in ``<output>/prepared.json`` so
            that files of different choices are never mixed. None if the dataset has no choices.

    Raises:
        DatasetError: as :func:`prepare_split` does, or if ``output`` has other settings.
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
            "%s: %d images in %s (%d written, %d there before).",
            split,
            len(pairs),
            output / "images" / split,
            written,
            len(pairs) - written,
        )
        pixels = count_pixels(label_dir, encoding, workers=workers)
        logger.info("%s", _describe_shares(split, pixels, encoding.names))


def _keep_settings(output: Path, settings: dict[str, str]) -> None:
    path = output / _SETTINGS_FILE
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            raise DatasetError(
                f"{output} was prepared with {_describe(found)}, not with {_describe(settings)}: "
                "give another --root, or remove the folder and start again."
            )
        return
    if any(output.glob("*/*/*")):
        raise DatasetError(
            f"{output} holds files, but no {_SETTINGS_FILE} that says how they were made: remove "
            "the folder and start again."
        )
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as f:
        json.dump(settings, f)


def _describe(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())


def _describe_shares(split: str, pixels: np.ndarray, names: Sequence[str]) -> str:
    percent = 100 * pixels / max(1, pixels.sum())
    shares = [f"{name} {p:.2f}" for name, p in zip((*names, "(ignored)"), percent, strict=True)]
    present = np.count_nonzero(pixels[:-1])
    text = f"{split}: {present} of {len(names)} categories occur; % of pixels: {', '.join(shares)}"
    return textwrap.fill(text, 100, subsequent_indent="  ", break_long_words=False)
