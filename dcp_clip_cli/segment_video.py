"""Segment videos, with the arguments of `dcp_clip_cli.segment`."""

import argparse
import contextlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dcp_clip import __version__
from dcp_clip.folder_run.coco_file import write_coco_file
from dcp_clip.folder_run.output_folder import (
    COCO_FILE,
    RunFolder,
    unfinished_folder,
    writing,
)
from dcp_clip.folder_run.pipeline import ReadImage, Summary, run_settings, segment_files
from dcp_clip.folder_run.plan import Job, numbered_stems
from dcp_clip.folder_run.records import record_key
from dcp_clip.folder_run.result_files import check_name, result_files
from dcp_clip.modeling.large_image import LARGE_IMAGE_PIXELS
from dcp_clip.predictor import Predictor
from dcp_clip.utils.images.files import ImageReadError
from dcp_clip.utils.images.reading import reduced_size, shrink
from dcp_clip.video.frames import VideoReader
from dcp_clip.video.overlay import changed_fraction, write_overlay_video
from dcp_clip.video.smoothing import SmoothedModel, check_can_smooth, check_smoothing


def segment_videos(
    args: argparse.Namespace,
    videos: Mapping[Path, Path],
    make_predictor: Callable[[], Predictor],
) -> int:
    """Segment the videos that `find_images` found, and return the exit status of `segment.run`.

    Raises:
        RunFolderError: if the output folder cannot be used.
        ImageReadError: if no video can be read.
        ValueError: if the smoothing is invalid, or the model gives no logits to smooth.
    """
    output = args.output
    if args.smoothing is not None:
        check_smoothing(args.smoothing)  # before --overwrite removes results
    # The overlays of the frames become one video, which is made of the label maps.
    formats = [name for name in args.formats if name not in ("overlay", "labels")] + ["labels"]
    has_overlays = "overlay" in args.formats
    inputs = {path.resolve() for path in videos}
    for stem in videos.values() if has_overlays else ():
        path = _overlay(output, stem)
        if path.resolve() in inputs:
            raise ValueError(f"{path} is an input and would be replaced: choose another --output.")
    with RunFolder(output) as folder, contextlib.ExitStack() as stack:
        readers, failures = _open_videos(videos, stack)
        predictor = make_predictor()
        if args.smoothing is not None:
            check_can_smooth(predictor.model)
        settings = run_settings(predictor, videos, __version__, formats)
        settings |= {"every": args.every, "smoothing": args.smoothing}
        # Frames are resized as a whole.
        predictor.max_input_pixels = args.max_pixels or LARGE_IMAGE_PIXELS
        folder.open(settings, args.overwrite)
        stems = _choose_stems({path: videos[path] for path in readers}, output, folder.finished)
        overlays = {path: _overlay(output, stem) for path, stem in stems.items() if has_overlays}
        for path, overlay in overlays.items():
            try:
                check_name(path, output, overlay.name)
            except ImageReadError as error:
                failures[path] = error
                del stems[path]
        jobs = {
            path: [
                Job(path, stem / f"{frame:06d}", frame)
                for frame in range(0, readers[path].count, args.every)
            ]
            for path, stem in stems.items()
        }
        files = (
            file
            for frames in jobs.values()
            for job in frames
            for file in result_files(output, job.stem, formats).values()
        )
        folder.begin([*overlays.values(), *files, *[output / COCO_FILE] * ("coco" in formats)])
        for path, error in failures.items():
            _report_failure(folder, path, error)
        for path, reader in readers.items():
            if reader.is_truncated:
                _report_failure(folder, path, _truncation(reader))
        for path, frames in jobs.items():
            todo = [job for job in frames if record_key(path, job.frame) not in folder.finished]
            if len(todo) < len(frames):
                done = len(frames) - len(todo)
                print(f"Skipping {done} of {len(frames)} frames of {path}, which have results.")
            if todo and path in overlays:
                overlays[path].unlink(missing_ok=True)  # a killed run leaves no outdated one
            start = time.perf_counter()
            summary = _segment(args, predictor, readers[path], frames, todo, folder, formats)
            seconds = time.perf_counter() - start
            notes = f", {len(summary.failed)} failed" if summary.failed else ""
            notes += ", interrupted" if summary.interrupted else ""
            print(f"{path}: {summary.done} of {len(todo)} frames in {seconds:.1f} s{notes}")
            if summary.signal:
                return 128 + summary.signal
            labels = _label_maps(folder, path)
            if len(labels) > 1:
                _report(path, labels)
            if labels and path in overlays and (todo or not overlays[path].exists()):
                folder.record_video(overlays[path])
                try:
                    _write_overlay(overlays[path], readers[path], labels, predictor, args.every)
                except ImageReadError as error:
                    _report_failure(folder, path, error)
            if summary.failed:
                print(f"{len(summary.failed)} frames of {path} failed", file=sys.stderr)
        if "coco" in formats:
            write_coco_file(folder, predictor.vocabulary)
    print(f"results in {output}")
    return int(folder.failures.path.exists())


def _overlay(output: Path, stem: Path) -> Path:
    return output / f"{stem}_overlay.mp4"


def _open_videos(
    videos: Iterable[Path], stack: contextlib.ExitStack
) -> tuple[dict[Path, VideoReader], dict[Path, ImageReadError]]:
    """Return the readers of the videos, and the error of each video that cannot be read.

    Raises:
        ImageReadError: if no video can be read.
    """
    readers, failures = {}, {}
    for path in videos:
        try:
            readers[path] = stack.enter_context(VideoReader(path))
        except ImageReadError as error:
            failures[path] = error
    if not readers:
        raise next(iter(failures.values()))
    return readers, failures


def _truncation(reader: VideoReader) -> ImageReadError:
    return ImageReadError(
        f"{reader.path} is truncated: only the {reader.count} frames before its missing end are "
        "segmented; copy the complete file and repeat the run to get the others"
    )


def _report_failure(folder: RunFolder, path: Path, error: ImageReadError) -> None:
    print(error, file=sys.stderr)
    with writing(folder.failures.path):
        folder.failures.write(json.dumps({"file": str(path), "error": str(error)}) + "\n")


def _choose_stems(
    videos: Mapping[Path, Path], output: Path, finished: Mapping[str, Path]
) -> dict[Path, Path]:
    """Choose a different folder for the frames of each video.

    If several videos have the same name, the later ones get a number. A video keeps its folder when
    a run is resumed.

    Args:
        videos: see `find_images`.
        output: folder for the results.
        finished: the results of the finished frames, see `RunFolder.finished`.
    """
    kept = {key.rpartition("#")[0]: stem.parent for key, stem in finished.items()}
    used = {str(stem).casefold() for stem in kept.values()}  # some file systems ignore case
    inputs = {str(path.resolve()).casefold() for path in videos}

    def is_free(stem: Path) -> bool:
        overlay = _overlay(output.resolve(), stem)
        return str(stem).casefold() not in used and str(overlay).casefold() not in inputs

    chosen = {}
    for path, wanted in videos.items():
        stem = kept.get(record_key(path)) or next(filter(is_free, numbered_stems(wanted)))
        used.add(str(stem).casefold())
        chosen[path] = stem
    return chosen


def _segment(
    args: argparse.Namespace,
    predictor: Predictor,
    reader: VideoReader,
    frames: list[Job],
    todo: list[Job],
    folder: RunFolder,
    formats: list[str],
) -> Summary:
    """Segment the frames that have no results, after those before them that the average needs."""
    if not todo:
        return Summary()

    def read(job: Job) -> ReadImage:
        return _read(reader, job, predictor.max_input_pixels)

    summary, memory = Summary(), 0
    stretches: Iterable[tuple[list[Job], list[Job]]] = [([], todo)]
    if args.smoothing is not None:
        model = SmoothedModel(predictor.model, args.smoothing)
        stretches, memory = _stretches(frames, todo), model.memory
        predictor = Predictor(
            predictor.cfg,
            predictor.vocabulary,
            model=model,
            max_input_pixels=predictor.max_input_pixels,
            unknown_below=predictor.unknown_below,
        )
    lines = folder.results, folder.failures
    for before, stretch in stretches:
        if len(before) > memory:  # the average would lack frames
            model.forget()
        for job in before[max(0, len(before) - memory) :]:
            predictor(*read(job)[:2])
        part = segment_files(predictor, stretch, folder.folder, *lines, formats, read)
        summary.done += part.done
        summary.failed += part.failed
        summary.signal = part.signal
        if part.interrupted:
            break
    return summary


def _stretches(frames: list[Job], todo: list[Job]) -> Iterator[tuple[list[Job], list[Job]]]:
    """Yield consecutive frames that have no results, after the frames before that have some."""
    before: list[Job] = []
    for is_missing, group in itertools.groupby(frames, set(todo).__contains__):
        if is_missing:
            yield before, list(group)
        else:
            before = list(group)


def _read(reader: VideoReader, job: Job, max_pixels: int) -> ReadImage:
    """Read a frame, and reduce it for the model as an image file; its label map keeps its size."""
    image, size, state = reader.read(job)
    height, width = reduced_size(size, max_pixels)
    if (height, width) != size:
        image = np.array(shrink(Image.fromarray(image), (width, height)))
    return image, size, state


def _label_maps(folder: RunFolder, path: Path) -> dict[int, Path]:
    """Return the files of the label maps of a video by frame, in order."""
    found = {
        record["frame"]: folder.folder / record["labels"]
        for record in folder.records()
        if record_key(record["file"]) == record_key(path)
    }
    return dict(sorted(found.items()))


def _report(path: Path, labels: dict[int, Path]) -> None:
    percent = 100 * changed_fraction(labels.values())
    print(f"{path}: {percent:.1f} % of the pixels change their label from frame to frame")


def _write_overlay(
    path: Path, reader: VideoReader, labels: dict[int, Path], predictor: Predictor, every: int
) -> None:
    aside = unfinished_folder(path.parent)
    try:
        with writing(path):
            aside.mkdir(exist_ok=True)
            part = aside / "overlay.mp4"
            write_overlay_video(path, part, reader, labels, predictor.vocabulary, every)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
