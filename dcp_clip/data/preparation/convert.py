"""Write the photographs and label maps of a split in the prepared layout.

Photographs are unchanged, unless they are to be shrunk. Label maps hold train ids in a single
channel: 8-bit PNG with 255 for ignored pixels, or 16-bit TIFF with 65535 if the categories do not
fit into 8 bits. A file gets its name only when it is complete and checked, so an interrupted run
can be started again.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from dcp_clip.data.label_maps import read_palette
from dcp_clip.data.label_statistics import check_palettes, count_labels
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.photographs import read_photograph
from dcp_clip.data.preparation.label_encoding import LabelEncoding, read_indices
from dcp_clip.utils.atomic_files import WriteError, atomic_write, remove_unfinished
from dcp_clip.utils.images.writing import write_image, write_png

# An image file, and a label map: a file, or any other object that the encoding decodes.
Pair = tuple[Path, Any]
_MAX_WORKERS = 61 if sys.platform == "win32" else 1024  # Windows can wait for no more processes
# Files that file managers add to folders.
_FOREIGN_FILES = {"Thumbs.db", "desktop.ini"}


def prepare_split(
    pairs: Sequence[Pair],
    image_dir: Path,
    label_dir: Path,
    encoding: LabelEncoding,
    *,
    workers: int = 1,
    max_short_side: int | None = None,
    description: str = "",
) -> int:
    """Write the photographs and label maps of one split; skip those that already exist.

    Args:
        pairs: image files with distinct stems, and their label maps.
        image_dir: output folder of photographs, which are hard-linked, or copied to another file
            system.
        label_dir: output folder of label maps.
        encoding: how to convert label maps.
        workers: number of processes; 1 for this process only.
        max_short_side: longest allowed short side in pixels; None leaves all images unchanged.
            If it is given, every image is saved again as JPEG with Pillow's default quality, also
            if it is small enough. Images are resized bilinearly without antialiasing, label maps
            by nearest neighbour. Full ADE20K has been shrunk in this way since MaskFormer.
        description: name on the progress bar.

    Returns:
        The number of pairs that were written, not skipped.

    Raises:
        DatasetError: if a file is unreadable, image and label map differ in size, or a label must
            not occur; all other pairs are written. Also if two palettes contradict each other, or
            an output folder holds files of another input; then nothing is written.
        OSError: if a file cannot be written to an output folder; the remaining pairs are not tried.
    """
    convert = partial(
        _convert_pair,
        image_dir=image_dir,
        label_dir=label_dir,
        encoding=encoding,
        max_short_side=max_short_side,
    )
    outputs = [_output_names(image, encoding, max_short_side) for image, _ in pairs]
    for folder, names in (
        (image_dir, {o[0] for o in outputs}),
        (label_dir, {o[1] for o in outputs}),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        unexpected = sorted(visible_files(folder) - names)
        if unexpected:
            raise DatasetError(
                f"{folder / unexpected[0]} is not made from this input ({len(unexpected)} such "
                f"files): remove {folder} and start again."
            )
    if encoding.decode is read_indices:
        labels = [label for _, label in pairs]
        palettes = run_parallel(
            _palette_of, labels, workers=workers, description=f"{description} palettes"
        )
        check_palettes(labels, palettes, read=read_indices)
    return sum(run_parallel(convert, pairs, workers=workers, description=description))


def visible_files(folder: Path) -> set[str]:
    """Return the names in a folder, except hidden ones and those that file managers add."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names - _FOREIGN_FILES


def run_parallel(
    function: Callable[[Any], Any], items: Sequence, *, workers: int, description: str = ""
) -> list:
    """Apply a picklable function to every item with a progress bar, and keep the order.

    Raises:
        DatasetError: after all items, if the function raised DatasetError or OSError for some:
            the first message and the number of further errors. Also if a worker was killed.
        WriteError: at once, if the function raised it, because most disks that refuse a file
            refuse all others.
    """
    task = partial(_attempt, function)
    progress = partial(tqdm, total=len(items), desc=description, unit="file", disable=None)
    if workers <= 1 or len(items) <= 1:
        outcomes = list(progress(map(task, items)))
    else:
        workers = min(workers, len(items), _MAX_WORKERS)
        chunk = max(1, min(16, len(items) // (4 * workers)))
        with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
            try:
                outcomes = list(progress(pool.map(task, items, chunksize=chunk)))
            except BrokenProcessPool as e:
                raise DatasetError(
                    "A worker process was killed, perhaps because the memory was full: run the "
                    "same command again, with fewer --workers."
                ) from e
            except BaseException:  # also KeyboardInterrupt
                pool.shutdown(cancel_futures=True)  # only running conversions are finished
                raise
    errors = [error for error, _ in outcomes if error is not None]
    if errors:
        more = f" ({len(errors) - 1} more files failed)" if len(errors) > 1 else ""
        raise DatasetError(f"{errors[0]}{more}")
    return [result for _, result in outcomes]


def count_pixels(label_dir: Path, encoding: LabelEncoding, *, workers: int = 1) -> np.ndarray:
    """Count the pixels of every category in a folder of prepared label maps.

    Users can compare the result with the figures in datasets/README.md.

    Returns:
        (C + 1,) int64; the last entry counts the ignored pixels.

    Raises:
        DatasetError: if a label map holds a value that is neither a train id nor ignored.
    """
    return count_folder(
        label_dir, encoding.suffix, len(encoding.names), encoding.ignore_label, workers=workers
    )


def count_folder(
    label_dir: Path, suffix: str, num_categories: int, ignore_label: int, *, workers: int = 1
) -> np.ndarray:
    """Count the pixels of every category in the label maps with this suffix; see `count_pixels`."""
    files = sorted(label_dir.glob(f"[!.]*{suffix}"))  # without macOS's "._*"
    count = partial(count_labels, num_categories=num_categories, ignore_label=ignore_label)
    histograms = run_parallel(count, files, workers=workers, description="count pixels")
    return np.sum(histograms, axis=0, dtype=np.int64)


def _start_worker() -> None:
    # Ctrl-C reaches every process. A worker that it stops while it uses a queue would block the
    # pool, so workers ignore it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is killed. Otherwise it would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _attempt(function: Callable[[Any], Any], item: Any) -> tuple[str | None, Any]:
    try:
        return None, function(item)
    except WriteError:
        raise
    except (DatasetError, OSError) as e:
        return str(e), None


def _palette_of(label: Path) -> np.ndarray:
    try:
        return read_palette(label)
    except DatasetError:  # the conversion reports it
        return np.empty((0, 3), np.uint8)


def _output_names(
    image: Path, encoding: LabelEncoding, max_short_side: int | None
) -> tuple[str, str]:
    image_name = image.name if max_short_side is None else f"{image.stem}.jpg"
    return image_name, f"{image.stem}{encoding.suffix}"


def _convert_pair(
    pair: Pair,
    *,
    image_dir: Path,
    label_dir: Path,
    encoding: LabelEncoding,
    max_short_side: int | None,
) -> bool:
    image, label = pair
    image_name, label_name = _output_names(image, encoding, max_short_side)
    image_out, label_out = image_dir / image_name, label_dir / label_name
    # The label map is written last. If it exists, the image was complete.
    if label_out.exists() and image_out.exists() and not _is_newer(label, label_out):
        if max_short_side is not None or image_out.stat().st_size == image.stat().st_size:
            return False
    # An old label map must not stay with a new image if this is interrupted.
    label_out.unlink(missing_ok=True)
    train_ids = encoding.train_ids(label)
    # The mapper reads photographs in the same way, so damaged files are already errors here.
    photograph = read_photograph(image, lambda: train_ids.shape)
    if photograph.shape[:2] != train_ids.shape:
        raise DatasetError(
            f"{image} is {photograph.shape[1]} x {photograph.shape[0]} pixels, but its label map "
            f"{label} is {train_ids.shape[1]} x {train_ids.shape[0]}."
        )
    if max_short_side is None:
        _link_or_copy(image, image_out)
    else:
        photograph, train_ids = _shrink(photograph, train_ids, max_short_side)
        write_image(image_out, Image.fromarray(photograph), format="JPEG")
    if encoding.suffix == ".png":
        write_png(label_out, train_ids)
    else:
        image = Image.fromarray(train_ids)
        write_image(label_out, image, format="TIFF", compression="tiff_adobe_deflate")
    return True


def _is_newer(source: Any, prepared: Path) -> bool:
    """Whether a label map was replaced after its file was prepared."""
    if not isinstance(source, Path):  # label maps of one large file
        return False
    return source.stat().st_mtime > prepared.stat().st_mtime


def _shrink(
    photograph: np.ndarray, labels: np.ndarray, max_short_side: int
) -> tuple[np.ndarray, np.ndarray]:
    height, width = labels.shape
    short, long = sorted((height, width))
    if short <= max_short_side:
        return photograph, labels
    sides = {short: max_short_side, long: round(long / short * max_short_side)}
    size = (sides[width], sides[height])
    pixels = cv2.resize(photograph, size, interpolation=cv2.INTER_LINEAR)
    return pixels, cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        with open(source, "rb") as reader, atomic_write(target) as writer:
            shutil.copyfileobj(reader, writer)
