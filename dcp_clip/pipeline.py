"""Segment many image files and write their results; reading, model and writing overlap."""

import glob
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from dcp_clip.predictor import Prediction, Predictor
from dcp_clip.utils.image_io import ImageReadError, read_image_and_size, write_png
from dcp_clip.utils.image_listing import list_images
from dcp_clip.utils.visualization import save_label_map

# Decoded images that wait for the model, and results that wait for writing. They bound the memory.
READ_AHEAD, WRITE_BEHIND = 2, 3


@dataclass(frozen=True)
class Job:
    """An image file, and the path of its results relative to the output folder, without suffix."""

    image: Path
    stem: Path


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
        done: number of images with results.
        failed: one error message for each other image.
        interrupted: whether Ctrl-C ended the run.
    """

    done: int = 0
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False


def plan_jobs(inputs: Sequence[str], output: Path) -> list[Job]:
    """Find the image files, and select a different path for the results of each one.

    Results of images in folders and patterns keep their sub-folders. If several images have the
    same name (x.jpg and x.png, or x.jpg in two folders), a number is appended to the later ones.

    Args:
        inputs: files, folders and glob patterns, see `list_images`.
        output: folder for the results. Images in it are skipped, unless they are given as files.

    Raises:
        ImageReadError: if an input matches no image, or is in the output folder.
    """
    output = output.resolve()
    stems: dict[Path, Path] = {}  # wanted stem of each image
    several_roots = sum(not Path(given).is_file() for given in inputs) > 1
    seen = set()
    for given in inputs:
        is_file = Path(given).is_file()
        root = Path(given).parent if is_file else _search_root(given)
        if not is_file and (output == root.resolve() or output in root.resolve().parents):
            raise ImageReadError(
                f"the input {given} is in the output folder {output}, where results and images "
                "would be mixed; choose another --output"
            )
        for image in list_images([given]):
            absolute = Path(os.path.abspath(image))
            # If the output folder is in the input folder, it can contain results of an earlier run.
            if absolute in seen or (not is_file and output in absolute.resolve().parents):
                continue
            seen.add(absolute)
            prefix = root.resolve().name if several_roots and not is_file else ""
            stems[image] = Path(prefix, image.relative_to(root)).with_suffix("")
    # Some file systems ignore case.
    used = {str(path.resolve()).casefold() for path in stems}
    jobs = []
    for image, wanted in stems.items():
        for i in itertools.count(1):
            stem = wanted if i == 1 else wanted.with_name(f"{wanted.name}-{i}")
            files = {str(path).casefold() for path in result_files(output, stem)}
            if not files & used:
                break
        used |= files
        jobs.append(Job(image, stem))
    if not jobs:
        raise ImageReadError(f"no images in {', '.join(inputs)} outside the output folder")
    return jobs


def result_files(output: Path, stem: Path) -> tuple[Path, Path]:
    """Return the paths of the overlay and of the label map of an image."""
    path = output / stem
    return path.with_name(path.name + "_overlay.png"), path.with_name(path.name + "_labels.png")


def segment_files(
    predictor: Predictor, jobs: Sequence[Job], output: Path, results: TextIO
) -> Summary:
    """Segment image files. One thread reads, the calling thread runs the model, two threads write.

    For each image, an overlay and a label map are written to `output`, and one line of JSON to
    `results`. An image that fails is reported on stderr, and the others continue. After Ctrl-C the
    finished images have their files and lines.

    Args:
        predictor: the model and its vocabulary.
        jobs: see `plan_jobs`.
        output: folder for the results; must exist.
        results: open text file.
    """
    summary = Summary()
    writers = ThreadPoolExecutor(2, thread_name_prefix="write")
    writing: deque[tuple[Job, Future[dict[str, Any]]]] = deque()
    reading = _read_ahead(jobs, predictor.max_input_pixels)
    bar = tqdm(
        total=len(jobs),
        unit=" images",
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{rate_noinv_fmt}, {remaining} left]",
    )

    def report_failure(job: Job, error: Exception) -> None:
        message = f"{job.image}: {type(error).__name__}: {' '.join(str(error).split())}"
        # The message of an ImageReadError is a sentence that contains the path.
        summary.failed.append(str(error) if isinstance(error, ImageReadError) else message)
        bar.write(summary.failed[-1], file=sys.stderr)
        bar.update()

    def finish_oldest() -> None:
        # The job stays in `writing` while this waits, so that Ctrl-C does not lose it. `wait` never
        # returns for a job that `shutdown` has cancelled, therefore the check before it.
        if not writing[0][1].done():
            wait([writing[0][1]])
        job, future = writing.popleft()
        if future.cancelled():
            return
        try:
            line = json.dumps(future.result())
        except Exception as error:  # for example, the path of the result is too long
            report_failure(job, error)
            return
        results.write(line + "\n")
        results.flush()
        summary.done += 1
        bar.update()

    try:
        for job, future in reading:
            try:
                image, size = future.result()
                prediction = predictor(image, size)
            except Exception as error:  # the next images may be fine
                report_failure(job, error)
                continue
            writing.append((job, writers.submit(_write_results, job, image, prediction, output)))
            if len(writing) > WRITE_BEHIND:
                finish_oldest()
        while writing:
            finish_oldest()
    except KeyboardInterrupt:
        summary.interrupted = True
    finally:
        reading.close()
        writers.shutdown(cancel_futures=True)
        while writing:
            finish_oldest()
        bar.close()
    return summary


def _search_root(given: str) -> Path:
    """Return the folder, or the part of a glob pattern before the first wildcard."""
    if Path(given).is_dir():
        return Path(given)
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(given).parts))


def _read_ahead(
    jobs: Iterable[Job], max_pixels: int
) -> Iterator[tuple[Job, Future[tuple[np.ndarray, tuple[int, int]]]]]:
    """Decode images in a thread, at most `READ_AHEAD` images in advance."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="read")
    waiting: deque = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(read_image_and_size, job.image, max_pixels)))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


def _write_results(
    job: Job, image: np.ndarray, prediction: Prediction, output: Path
) -> dict[str, Any]:
    """Write the overlay and the label map of an image, and return its line for the results."""
    overlay_file, labels_file = result_files(output, job.stem)
    overlay_file.parent.mkdir(parents=True, exist_ok=True)
    save_label_map(labels_file, prediction.label_map, prediction.vocabulary)
    write_png(overlay_file, prediction.overlay(image), quick=True)
    height, width = prediction.label_map.shape
    return {
        "file": str(job.image),
        "width": width,
        "height": height,
        "categories": [asdict(category) for category in prediction.found],
        "milliseconds": round(prediction.milliseconds, 1),
        "overlay": overlay_file.relative_to(output).as_posix(),
        "labels": labels_file.relative_to(output).as_posix(),
    }
