"""Segment rasters, with the arguments of `dcp_clip_cli.segment`."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dcp_clip import __version__
from dcp_clip.folder_run.interruption import Interruption
from dcp_clip.folder_run.output_folder import RunFolder, blocks_folder, writing
from dcp_clip.folder_run.pipeline import run_settings
from dcp_clip.folder_run.plan import plan_jobs
from dcp_clip.folder_run.result_files import check_name
from dcp_clip.geo.raster import Raster, check_range
from dcp_clip.geo.run import RASTER_FORMATS, RasterRun, publish, raster_suffixes
from dcp_clip.predictor import Predictor
from dcp_clip.utils.images.files import ImageReadError


def segment_rasters(
    args: argparse.Namespace,
    images: Mapping[Path, Path],
    make_predictor: Callable[[], Predictor],
) -> int:
    """Segment the rasters that `find_images` found, and return the exit status of `segment.run`.

    Raises:
        ValueError: for a format that rasters do not have, or an invalid range.
        RunFolderError: if the output folder cannot be used.
    """
    output, formats = args.output, args.formats
    others = [name for name in formats if name not in RASTER_FORMATS]
    if others:
        known = ", ".join(RASTER_FORMATS)
        raise ValueError(f"A raster has no format {others[0]}; choose from {known}.")
    if args.range is not None:
        check_range(*args.range)  # before --overwrite removes results
    start, failed, done = time.perf_counter(), 0, 0
    with RunFolder(output) as folder, Interruption() as interruption:
        predictor = make_predictor()
        settings = run_settings(predictor, images, __version__, formats)
        settings |= {"bands": args.bands, "range": args.range}
        folder.open(settings, args.overwrite)
        suffixes = [raster_suffixes()[name] for name in formats]
        jobs = plan_jobs(images, output, folder.finished, suffixes)
        folder.begin(output / f"{job.stem}{suffix}" for job in jobs for suffix in suffixes)
        if len(jobs) < len(images):
            count = f"{len(images) - len(jobs)} of {len(images)}"
            print(f"Skipping {count} rasters, which have results in {output}.")
        try:
            for job in jobs:
                try:
                    for suffix in suffixes:
                        check_name(job.image, output, f"{job.stem.name}{suffix}")
                    with Raster(job.image, args.bands, args.range) as raster:
                        run = RasterRun(predictor, raster, output, formats, settings)
                        with writing(output):
                            run.segment(interruption.allowed)
                            files, line = run.finish(job.stem)
                            publish(files)
                            folder.results.write(json_line(line))
                            run.remove_blocks()
                    done += 1
                except (ImageReadError, ValueError) as error:  # the next raster may be fine
                    # The message of an ImageReadError contains the path.
                    named = str(job.image) in str(error)
                    print(error if named else f"{job.image}: {error}", file=sys.stderr)
                    folder.failures.write(json_line({"file": str(job.image), "error": str(error)}))
                    failed += 1
            shutil.rmtree(blocks_folder(output), ignore_errors=True)
        except KeyboardInterrupt:
            print(f"interrupted; run the same command to continue; results in {output}")
            return 128 + (interruption.signal or 2)
    seconds = time.perf_counter() - start
    notes = f", {failed} failed" if failed else ""
    print(f"{done} of {len(jobs)} rasters in {seconds:.1f} s{notes}; results in {output}")
    return int(bool(failed))


def json_line(record: dict) -> str:
    """Return a line for a file of results."""
    return json.dumps(record) + "\n"
