"""Label photographs with any list of category names.

    python demo/demo.py --input photos/ --vocabulary "sky; tree; car, automobile"

For each image, <name>_overlay.png (regions and legend) and <name>_labels.png (category ids, with
the vocabulary's colours) are written, and one line to results.jsonl: the file, its size, the
categories found with their share of the area and score, and the model's milliseconds. Sub-folders
of the input are kept. An unreadable file is reported and left out; the exit status is then 1.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from demo_inputs import Job, find_samples, plan_jobs, result_files
from tqdm import tqdm

from dcp_clip.engine.checkpoint import shipped_weights
from dcp_clip.predictor import Prediction, Predictor
from dcp_clip.utils.arguments import format_error
from dcp_clip.utils.image_io import ImageReadError, atomic_write, read_image_and_size, write_png
from dcp_clip.utils.visualization import save_label_map

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
# Images decoded ahead of the model, and results waiting to be written: bounds memory.
READ_AHEAD, WRITE_BEHIND = 2, 3


@dataclass
class Tally:
    """What became of the images."""

    done: int = 0
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--input", nargs="+", default=[], help="image files, folders, or quoted glob patterns")
    add(
        "--samples",
        action="store_true",
        help="the sample photographs of scikit-learn and scikit-image, if they are installed",
    )
    add(
        "--vocabulary",
        help="'sky; tree; car, automobile' (';' between categories, ',' between synonyms; without "
        "any ';' also ',' is between categories), a .txt or .json file, or a registered dataset; "
        "default: the categories of the training set",
    )
    add("--output", default="output/demo", help="folder of the results (default: %(default)s)")
    add("--config-file", default=str(DEFAULT_CONFIG), help="default: %(default)s")
    add(
        "--weights",
        help="the same as MODEL.WEIGHTS; default: those that the repository has for the config",
    )
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys to override")
    return parser


def read_ahead(
    jobs: Iterable[Job], max_pixels: int
) -> Iterator[tuple[Job, "Future[tuple[np.ndarray, tuple[int, int]]]"]]:
    """Decode in a thread, at most `READ_AHEAD` images before they are asked for."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="read")
    waiting: deque = deque()
    try:
        for job in jobs:
            waiting.append((job, pool.submit(read_image_and_size, job.image, max_pixels)))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def write_results(
    job: Job, image: np.ndarray, prediction: Prediction, output: Path
) -> dict[str, Any]:
    """Write the two pictures of one image, and return its line for results.jsonl."""
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


def run(predictor: Predictor, jobs: Sequence[Job], output: Path, results: TextIO) -> Tally:
    """Label all images: one thread reads, this one runs the model, two write.

    Ctrl-C ends it early, with the finished images in `results`.
    """
    tally = Tally()
    writers = ThreadPoolExecutor(2, thread_name_prefix="write")
    writing: deque = deque()
    reading = read_ahead(jobs, predictor.max_input_pixels)
    bar = tqdm(
        total=len(jobs),
        unit=" images",
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{rate_noinv_fmt}, {remaining} left]",
    )

    def fail(job: Job, error: Exception) -> None:
        # An ImageReadError is a sentence that names the file; others may be anything.
        message = f"{job.image}: {type(error).__name__}: {' '.join(str(error).split())}"
        tally.failed.append(str(error) if isinstance(error, ImageReadError) else message)
        bar.write(tally.failed[-1], file=sys.stderr)
        bar.update()

    def finish_oldest() -> None:
        # Waiting comes before taking it out, so that it is not lost if Ctrl-C comes meanwhile.
        # `wait` would wait forever for what `shutdown` has cancelled.
        if not writing[0][1].done():
            wait([writing[0][1]])
        job, future = writing.popleft()
        if future.cancelled():
            return
        try:
            line = json.dumps(future.result())
        except Exception as error:  # such as a full disk: the other images may still go
            fail(job, error)
            return
        results.write(line + "\n")
        results.flush()
        tally.done += 1
        bar.update()

    try:
        for job, future in reading:
            try:
                image, size = future.result()
                prediction = predictor(image, size)
            except Exception as error:  # one bad image must not end a long run
                fail(job, error)
                continue
            writing.append((job, writers.submit(write_results, job, image, prediction, output)))
            if len(writing) > WRITE_BEHIND:
                finish_oldest()
        while writing:
            finish_oldest()
    except KeyboardInterrupt:
        tally.interrupted = True
    finally:
        reading.close()
        writers.shutdown(cancel_futures=True)
        while writing:
            finish_oldest()
        bar.close()
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status: 0, 1 if images failed, 130 if interrupted."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if not (args.input or args.samples):
        parser.error("give --input or --samples")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    output = Path(args.output)
    try:
        jobs = plan_jobs([*args.input, *(find_samples() if args.samples else [])], output)
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass  # a folder that cannot be written to should show now, not after the first image
        weights = args.weights
        if weights is None:
            weights = shipped_weights(args.config_file, args.opts)
        predictor = Predictor.from_config_file(
            args.config_file, weights, args.opts, vocabulary=args.vocabulary
        )
    # yacs asserts that the keys and values of --opts are right.
    except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: error: {format_error(error)}\n")
    names = predictor.vocabulary.display_names
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    print(f"Vocabulary: {len(names)} {'category' if len(names) == 1 else 'categories'}: {shown}")
    start = time.perf_counter()
    try:
        with atomic_write(output / "results.jsonl", "w") as results:
            tally = run(predictor, jobs, output, results)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: cannot write results.jsonl: {error}\n")
    seconds = time.perf_counter() - start
    notes = [f"{tally.done} of {len(jobs)} images in {seconds:.1f} s"]
    notes += [f"{tally.done / seconds:.2f} a second"] if tally.done else []
    notes += [f"{len(tally.failed)} failed"] if tally.failed else []
    notes += ["interrupted"] if tally.interrupted else []
    print(f"{', '.join(notes)}; results in {output}")
    return 130 if tally.interrupted else int(bool(tally.failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first image
        sys.exit(130)
