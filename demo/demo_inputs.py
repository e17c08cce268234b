"""What demo.py works on: the images that the user means, and a name for each one's results."""

import glob
import importlib.util
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcp_clip.utils.image_io import ImageReadError
from dcp_clip.utils.image_listing import list_images

# Outdoor photographs that these packages bring along: (package, file). The shipped weights know
# streets; cats and cups would only show what they do not know.
SAMPLES = (
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/rocket.jpg"),
)


@dataclass(frozen=True)
class Job:
    """An image and where its results go: `stem`, relative to the output folder, plus a suffix."""

    image: Path
    stem: Path


def find_samples() -> list[str]:
    """Locate the sample photographs, without importing the packages or downloading anything."""
    found = []
    for package, file in SAMPLES:
        spec = importlib.util.find_spec(package)
        path = Path(next(iter(spec.submodule_search_locations)), file) if spec else None
        if path and path.is_file():
            found.append(str(path))
    if not found:
        raise ImageReadError(
            "no sample photographs: install them with pip install -e '.[demo]'"
        )
    return found


def plan_jobs(inputs: Sequence[str], output: Path) -> list[Job]:
    """Find the images, and for each a name in the output folder that no other image has.

    Images of a folder or pattern keep their sub-folders. Where names still clash (x.jpg and x.png,
    or the same name in two folders), the later ones get a number.

    Raises:
        ImageReadError: if an input matches no image, or lies in the output folder.
    """
    output = output.resolve()
    relative: dict[Path, Path] = {}  # image as given -> its place below the output folder
    several = sum(not Path(given).is_file() for given in inputs) > 1
    seen = set()
    for given in inputs:
        is_file = Path(given).is_file()
        root = Path(given).parent if is_file else _fixed_part(given)
        if not is_file and (output == root.resolve() or output in root.resolve().parents):
            raise ImageReadError(
                f"the input {given} lies in the output folder {output}, where it would mix with "
                "the results: choose another --output"
            )
        for image in list_images([given]):
            absolute = Path(os.path.abspath(image))
            # The results of an earlier run, in a sub-folder of the input, are no photographs.
            if absolute in seen or (not is_file and output in absolute.resolve().parents):
                continue
            seen.add(absolute)
            prefix = root.resolve().name if several and not is_file else ""
            relative[image] = Path(prefix, image.relative_to(root)).with_suffix("")
    # Case is ignored, as some file systems do.
    taken = {str(path.resolve()).casefold() for path in relative}
    jobs = []
    for image, wanted in relative.items():
        for i in itertools.count(1):
            stem = wanted if i == 1 else wanted.with_name(f"{wanted.name}-{i}")
            files = {str(path).casefold() for path in result_files(output, stem)}
            if not files & taken:
                break
        taken |= files
        jobs.append(Job(image, stem))
    if not jobs:
        raise ImageReadError(f"no images in {', '.join(inputs)} but those in the output folder")
    return jobs


def _fixed_part(given: str) -> Path:
    """The folder itself, or the part of a glob pattern before its first wildcard."""
    if Path(given).is_dir():
        return Path(given)
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), Path(given).parts))


def result_files(output: Path, stem: Path) -> tuple[Path, Path]:
    """The overlay and the label map of an image."""
    path = output / stem
    return path.with_name(path.name + "_overlay.png"), path.with_name(path.name + "_labels.png")
