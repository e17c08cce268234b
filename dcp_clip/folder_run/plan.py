"""Find the images of a run, and choose a different result path for each one."""

import functools
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcp_clip.folder_run.output_folder import is_inside
from dcp_clip.folder_run.result_files import DEFAULT_FORMATS, RESULTS, SETTINGS, SUFFIXES
from dcp_clip.utils.images.listing import list_images_by_input, search_root
from dcp_clip.utils.images.reading import ImageReadError

__all__ = ["Job", "find_images", "numbered_stems", "plan_jobs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An image file, or a frame of a video, and the path of its results.

    `stem` is that path, relative to the output folder and without suffix. `frame` is the number of
    the frame, from 0.
    """

    image: Path
    stem: Path
    frame: int | None = None

    @property
    def name(self) -> str:
        """The file, and after "#" the number of the frame."""
        return str(self.image) if self.frame is None else f"{self.image}#{self.frame}"


def find_images(inputs: Sequence[str], output: Path) -> dict[Path, Path]:
    """Find the image files, and the preferred result path of each one.

    For folders and patterns, the result paths keep the sub-folders of the images.

    Args:
        inputs: files, folders and glob patterns, see `list_images_by_input`.
        output: folder for the results. Images in it, and in sub-folders with the results of other
            runs, are skipped, unless they are given as files.

    Returns:
        For each image, a path relative to `output` without suffix. Several images can have the same
        path.

    Raises:
        ImageReadError: if an input matches no image, or is in the output folder.
    """
    output = output.resolve()
    folders = {}  # input that is no file: its folder
    for given in inputs:
        if Path(given).is_file():
            continue
        folders[given] = root = search_root(given)
        if root.resolve().is_relative_to(output):
            raise ImageReadError(
                f"the input {given} is in the output folder {output}, where results and images "
                "would be mixed; choose another --output"
            )
    stems, other_runs = {}, {}
    is_run = functools.cache(_holds_a_run)
    for image, given in list_images_by_input(inputs).items():
        if given not in folders:
            stems[image] = Path(image.name).with_suffix("")
        # If the output folder is in the input folder, it can contain results of an earlier run.
        elif output not in image.resolve().parents:
            root = folders[given]
            below = [folder for folder in image.parents if root in folder.parents]
            if run := next(filter(is_run, below), None):
                other_runs[run] = True
                continue
            parts = image.relative_to(root).with_suffix("").parts
            if ".." in parts:  # a pattern such as */../../photos must not lead out of `output`
                parts = parts[len(parts) - parts[::-1].index("..") :]
            stems[image] = Path(root.resolve().name if len(folders) > 1 else "", *parts)
    if other_runs:
        names = ", ".join(map(str, other_runs))
        logger.warning("Skipped the results of an earlier run in %s.", names)
    if not stems:
        raise ImageReadError(f"no images in {', '.join(inputs)} outside the output folder")
    return stems


def _holds_a_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (SETTINGS, RESULTS))


def plan_jobs(
    images: Mapping[Path, Path],
    output: Path,
    finished: Mapping[str, Path] | None = None,
    suffixes: Sequence[str] = tuple(SUFFIXES[name] for name in DEFAULT_FORMATS),
) -> list[Job]:
    """Choose a different result path for each image that is not finished.

    If several images have the same name (x.jpg and x.png, or x.jpg in two folders), the later ones
    get a number. An image keeps its path when a run is resumed.

    Args:
        images: see `find_images`.
        output: folder for the results.
        finished: maps the absolute path of each finished image to its result path.
        suffixes: what the run appends to a result path, for each file that it writes.

    Raises:
        ImageReadError: if a link in `output` leads out of it, so results would be outside.
    """
    finished = finished or {}
    # Some file systems ignore case.
    used = {str(path.resolve()).casefold() for path in images}
    for stem in finished.values():
        used |= _comparable_files(output, stem, suffixes)
    jobs = []
    for image, wanted in images.items():
        if os.path.abspath(image) in finished:
            continue
        for stem in numbered_stems(wanted):
            files = _comparable_files(output, stem, suffixes)
            if not files & used:
                break
        used |= files
        jobs.append(Job(image, stem))
    for folder in {job.stem.parent for job in jobs}:
        if not is_inside(output, output / folder / "x"):
            raise ImageReadError(
                f"{output / folder} leads out of the output folder through a link; remove the link "
                "or choose another --output"
            )
    return jobs


def numbered_stems(wanted: Path) -> Iterator[Path]:
    """Yield the result paths to try in turn: x, x-2, x-3, ..."""
    yield wanted
    for i in itertools.count(2):
        yield wanted.with_name(f"{wanted.name}-{i}")


def _comparable_files(output: Path, stem: Path, suffixes: Sequence[str]) -> set[str]:
    return {f"{output.resolve() / stem}{suffix}".casefold() for suffix in suffixes}
