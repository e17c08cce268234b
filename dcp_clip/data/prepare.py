"""What the scripts in ``datasets/`` share: turn a benchmark's files into train ids, once.

A prepared dataset has its photographs unchanged and 8-bit PNG label maps of train ids in which 255
is ignored. Every file appears under its name only when it is complete and checked, so that a run
that was stopped is simply started again.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dcp_clip.categories import IGNORE_LABEL, Category
from dcp_clip.data.pairing import DatasetError
from dcp_clip.image_io import atomic_write, write_png

_FORBIDDEN = -1


def available_cpus() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def label_lookup(categories: Sequence[Category], ignored_raw: Iterable[int] = ()) -> np.ndarray:
    """Return a (256,) int16 table from a dataset's raw 8-bit label to the train id.

    Args:
        categories: at most 255, each with a ``raw_id`` in 0 ... 255.
        ignored_raw: raw values that become 255. All others are forbidden (-1 in the table).
    """
    table = np.full(256, _FORBIDDEN, dtype=np.int16)
    table[list(ignored_raw)] = IGNORE_LABEL
    for category in categories:
        table[category.raw_id] = category.train_id
    return table


def prepare_split(
    pairs: Sequence[tuple[Path, Path]],
    image_dir: Path,
    label_dir: Path,
    lookup: np.ndarray,
    *,
    workers: int = 1,
    description: str = "",
) -> int:
    """Write the photographs and label maps of one split; skip those that are there already.

    Args:
        pairs: (image, raw label map) files with equal stems.
        image_dir: output folder of photographs, which are linked, or copied across file systems.
        label_dir: output folder of label maps.
        lookup: table of :func:`label_lookup`.
        workers: processes; 1 works in this one.
        description: name on the progress bar.

    Returns:
        The number of pairs written, i.e. not skipped.

    Raises:
        DatasetError: if a file is unreadable, image and label map differ in size, a label has a
            forbidden value, or an output folder holds files that these pairs do not produce. The
            good pairs are written nonetheless.
    """
    for folder, names in (
        (image_dir, {image.name for image, _ in pairs}),
        (label_dir, {f"{label.stem}.png" for _, label in pairs}),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(".*.part"):  # atomic_write, killed
            unfinished.unlink()
        strange = sorted({path.name for path in folder.iterdir()} - names)
        if strange:
            raise DatasetError(
                f"{folder / strange[0]} is not made from this input ({len(strange)} such files): "
                f"remove {folder} and start again."
            )
    convert = partial(_convert_pair, image_dir=image_dir, label_dir=label_dir, lookup=lookup)
    return sum(run_parallel(convert, pairs, workers=workers, description=description))


def run_parallel(
    function: Callable[[Any], Any], items: Sequence, *, workers: int, description: str = ""
) -> list:
    """Apply a picklable function to every item with a progress bar, and keep the order.

    Raises:
        DatasetError: after all items were tried, if the function raised DatasetError or OSError
            for some: tells the first message and how many more there are.
    """
    task = partial(_attempt, function)
    progress = partial(tqdm, total=len(items), desc=description, unit="file", disable=None)
    if workers <= 1 or len(items) <= 1:
        outcomes = list(progress(map(task, items)))
    else:
        chunk = max(1, min(16, len(items) // (4 * workers)))
        with ProcessPoolExecutor(workers) as pool:
            outcomes = list(progress(pool.map(task, items, chunksize=chunk)))
    errors = [error for error, _ in outcomes if error is not None]
    if errors:
        more = f" ({len(errors) - 1} more files failed)" if len(errors) > 1 else ""
        raise DatasetError(f"{errors[0]}{more}")
    return [result for _, result in outcomes]


def count_pixels(label_dir: Path, num_categories: int, *, workers: int = 1) -> np.ndarray:
    """Count the pixels of every category in a folder of prepared label maps.

    Lets users compare what they prepared with the figures in datasets/README.md.

    Returns:
        (num_categories + 1,) int64; the last entry is the ignored pixels.
    """
    files = sorted(label_dir.glob("*.png"))
    histograms = run_parallel(_histogram, files, workers=workers, description="count pixels")
    total = np.sum(histograms, axis=0, dtype=np.int64)
    return np.append(total[:num_categories], total[IGNORE_LABEL])


def _attempt(function: Callable[[Any], Any], item: Any) -> tuple[str | None, Any]:
    try:
        return None, function(item)
    except (DatasetError, OSError) as e:
        return str(e), None


def _convert_pair(
    pair: tuple[Path, Path], *, image_dir: Path, label_dir: Path, lookup: np.ndarray
) -> bool:
    image, label = pair
    image_out, label_out = image_dir / image.name, label_dir / f"{label.stem}.png"
    # The label map is written last, so it vouches for the image as well.
    if label_out.exists() and image_out.exists():
        if image_out.stat().st_size == image.stat().st_size:
            return False
    raw = _read_label(label)
    size = _read_size(image)
    if size != raw.shape[::-1]:
        raise DatasetError(
            f"{image} is {size[0]} x {size[1]} pixels, but its label map {label} is "
            f"{raw.shape[1]} x {raw.shape[0]}."
        )
    train_ids = lookup[raw]
    if (train_ids == _FORBIDDEN).any():
        value = int(raw[train_ids == _FORBIDDEN][0])
        allowed = np.flatnonzero(lookup != _FORBIDDEN).tolist()
        raise DatasetError(
            f"{label} holds the label {value}, which is not among {allowed}: it is of another "
            "dataset or already converted."
        )
    _link_or_copy(image, image_out)
    write_png(label_out, train_ids.astype(np.uint8))
    return True


def _read_label(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as label:
            if label.mode not in ("L", "P"):  # both decode to the stored 8-bit values
                raise DatasetError(
                    f"{path} is no label map: its pixels are {label.mode}, not 8-bit indices."
                )
            return np.array(label)
    except (OSError, SyntaxError) as e:  # Pillow raises SyntaxError for some broken PNG files
        raise DatasetError(f"The label map {path} cannot be read: {e}.") from e


def _read_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            image.load()  # an archive that was cut off shows only here
            return image.size
    except (OSError, SyntaxError) as e:
        raise DatasetError(f"The image {path} cannot be read: {e}.") from e


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        with open(source, "rb") as reader, atomic_write(target) as writer:
            shutil.copyfileobj(reader, writer)


def _histogram(label: Path) -> np.ndarray:
    return np.bincount(_read_label(label).ravel(), minlength=256)
