"""Segment many image files. Threads read images and write results while the model runs."""

import hashlib
import json
import os
import shutil
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from dcp_clip.folder_run.interruption import Interruption
from dcp_clip.folder_run.line_file import concerns_one_file, file_state
from dcp_clip.folder_run.output_folder import unfinished_folder, writing
from dcp_clip.folder_run.plan import Job
from dcp_clip.folder_run.result_files import DEFAULT_FORMATS, SUFFIXES, result_files, write_result
from dcp_clip.predictor import Prediction, Predictor
from dcp_clip.utils.images.reading import ImageReadError, read_image_and_size
from dcp_clip.utils.model_settings import all_settings

__all__ = ["Job", "ReadImage", "Summary", "run_settings", "segment_files"]

# Maximum numbers of decoded images before the model and of results after it. They bound memory.
READ_AHEAD, WRITE_BEHIND = 2, 3
# Config keys that cannot change the results, or that have a setting of their own.
_OTHER_KEYS = {
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR",
    "TEST.UNKNOWN_BELOW",
}


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
        done: number of images with results.
        failed: one error message for each other image.
        signal: number of the signal that ended the run, SIGINT (Ctrl-C) or SIGTERM, or None.
    """

    done: int = 0
    failed: list[str] = field(default_factory=list)
    signal: int | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the run."""
        return self.signal is not None


# The image (H, W, 3), the (height, width) of its label map, and what its line says of the file.
ReadImage = tuple[np.ndarray, tuple[int, int], dict[str, Any]]


class LineWriter(Protocol):
    """An object with a method `write` for lines, such as a text file."""

    def write(self, line: str, /) -> Any: ...


def run_settings(
    predictor: Predictor,
    images: Iterable[Path],
    version: str,
    formats: Sequence[str] = DEFAULT_FORMATS,
) -> dict[str, Any]:
    """Return everything that the results in an output folder depend on, except the images.

    Args:
        predictor: the model and its vocabulary.
        images: image files; if a path is relative, the working folder becomes a setting.
        version: version of the program.
        formats: the files that the run writes.
    """
    vocabulary = predictor.vocabulary
    content = (vocabulary.synonyms, vocabulary.display_names, vocabulary.colors)
    content += (vocabulary.negatives,) if vocabulary.negatives else ()
    # Only what differs from the default is a setting, so runs of earlier versions can be resumed.
    options: dict[str, Any] = {}
    if set(formats) != set(DEFAULT_FORMATS):
        options["formats"] = sorted(set(formats))
    if predictor.unknown_below:
        options["unknown_below"] = predictor.unknown_below
    if predictor.unknown_below or set(formats) - {"overlay", "labels"}:
        options["temperature"] = predictor.temperature
    relative = any(not path.is_absolute() for path in images)
    return {
        "dcp_clip": version,
        "weights fingerprint": predictor.fingerprint,
        "vocabulary fingerprint": hashlib.sha256(repr(content).encode()).hexdigest()[:16],
        "vocabulary": list(vocabulary.display_names),
        "max_input_pixels": predictor.max_input_pixels,
        "working folder": os.getcwd() if relative else None,
        "config": {k: str(v) for k, v in all_settings(predictor.cfg) if k not in _OTHER_KEYS},
        **options,
    }


def segment_files(
    predictor: Predictor,
    jobs: Sequence[Job],
    output: Path,
    results: LineWriter,
    failures: LineWriter | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    read: Callable[[Job], ReadImage] | None = None,
) -> Summary:
    """Segment image files. One thread reads, the calling thread runs the model, two threads write.

    For each image, the function puts the files of `formats` into `output` and then writes one line
    of JSON to `results`. If an image fails, the function reports it on stderr and in
    `failures`, and continues. After Ctrl-C or SIGTERM, all finished images have their files and
    lines.

    Args:
        predictor: the model and its vocabulary.
        jobs: see `dcp_clip.folder_run.plan.plan_jobs`.
        output: folder for the results; must exist.
        results: takes one line for each image, in the order of `jobs`.
        failures: takes one line for each image that failed.
        formats: keys of `dcp_clip.folder_run.result_files.SUFFIXES`.
        read: reads the images, called in the order of `jobs`; default: reads image files.

    Raises:
        RunFolderError: if the output folder cannot be written to, for example on a full disk. The
            images that were finished before have their files and lines.
    """
    summary = Summary()
    confidence = bool(set(formats) - {"overlay", "labels"})
    aside = unfinished_folder(output)
    with writing(output):
        aside.mkdir(exist_ok=True)
    writers = ThreadPoolExecutor(2, thread_name_prefix="write")
    written: deque[tuple[Job, Future[_Result]]] = deque()
    reading = _read_ahead(jobs, read or partial(_read_file, max_pixels=predictor.max_input_pixels))
    bar = tqdm(
        total=len(jobs),
        unit=" images",
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{rate_noinv_fmt}, {remaining} left]",
        disable=not jobs,
    )

    def report_failure(job: Job, error: Exception) -> None:
        message = f"{job.name}: {type(error).__name__}: {' '.join(str(error).split())}"
        # The message of an ImageReadError is a sentence that contains the path.
        message = str(error) if isinstance(error, ImageReadError) else message
        summary.failed.append(message)
        bar.write(message, file=sys.stderr)
        bar.update()
        if failures is not None:
            with writing(output / "failures.jsonl"):
                failures.write(json.dumps({"file": job.name, "error": message}) + "\n")

    def finish_oldest() -> None:
        job, future = written.popleft()
        # `wait` would never return for a job that `shutdown` has cancelled.
        if not future.done():
            wait([future])
        if future.cancelled():
            return
        try:
            result = future.result()
            result.publish(output, results)
        except Exception as error:
            if isinstance(error, OSError) and not concerns_one_file(error):
                with writing(output):
                    raise
            report_failure(job, error)
            return
        summary.done += 1
        bar.update()

    with Interruption() as interruption:
        try:
            for job, future in reading:
                try:
                    with interruption.allowed():
                        image, size, state = future.result()
                        prediction = predictor(image, size, confidence=confidence)
                except Exception as error:  # the next images may be fine
                    report_failure(job, error)
                    continue
                task = (_write_pictures, job, image, prediction, output, state, formats)
                written.append((job, writers.submit(*task)))
                if len(written) > WRITE_BEHIND:
                    finish_oldest()
            while written:
                finish_oldest()
        except KeyboardInterrupt:
            writers.shutdown(cancel_futures=True)
            while written:
                finish_oldest()
        finally:
            reading.close()
            writers.shutdown(cancel_futures=True)
            shutil.rmtree(aside, ignore_errors=True)
            bar.close()
        summary.signal = interruption.signal
    return summary


def _read_file(job: Job, max_pixels: int | None) -> ReadImage:
    state = file_state(job.image)  # before reading, to detect a change during reading
    return *read_image_and_size(job.image, max_pixels), state


def _read_ahead(
    jobs: Iterable[Job], read: Callable[[Job], ReadImage]
) -> Iterator[tuple[Job, Future[ReadImage]]]:
    """Decode images in a thread, at most `READ_AHEAD` images in advance."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="read")
    waiting: deque = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(read, job)))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Result:
    """The result of one image: its files in the folder for incomplete files, and its line.

    Attributes:
        job: the input image.
        files: the final path of each file.
        line: content of the line without the paths of the files.
    """

    job: Job
    files: dict[Path, Path]
    line: dict[str, Any]

    def publish(self, output: Path, results: LineWriter) -> None:
        """Move the files to their final paths and write the line. An error undoes all of it.

        Raises:
            OSError: if one of them cannot be written.
        """
        published = []
        try:
            (output / self.job.stem).parent.mkdir(parents=True, exist_ok=True)
            for source, target in self.files.items():
                os.replace(source, target)
                published.append(target)
            results.write(json.dumps(self.line) + "\n")
        except OSError:
            for path in (*self.files, *published):
                path.unlink(missing_ok=True)
            raise


def _write_pictures(
    job: Job,
    image: np.ndarray,
    prediction: Prediction,
    output: Path,
    state: Mapping[str, Any],
    formats: Sequence[str],
) -> _Result:
    """Write the files of an image into the folder for incomplete files."""
    aside, name = unfinished_folder(output), uuid.uuid4().hex
    targets = result_files(output, job.stem, formats)
    files = {aside / (name + SUFFIXES[key]): target for key, target in targets.items()}
    for key, path, target in zip(targets, files, targets.values()):
        write_result(key, path, Path(job.name), target, image, prediction)
    height, width = prediction.label_map.shape
    line = {
        "file": str(job.image),
        **state,
        "width": width,
        "height": height,
        "categories": [asdict(category) for category in prediction.found],
        "milliseconds": round(prediction.milliseconds, 1),
        **{key: path.relative_to(output).as_posix() for key, path in targets.items()},
    }
    return _Result(job, files, line)
