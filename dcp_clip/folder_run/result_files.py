"""The files of an image in a folder run: their names, and how they are written."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from dcp_clip.folder_run.line_file import concerns_one_file
from dcp_clip.prediction import Prediction
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.utils.images.files import ImageReadError
from dcp_clip.utils.images.writing import write_jpeg, write_png
from dcp_clip.utils.label_maps import save_label_map

__all__ = [
    "ALL_SUFFIXES",
    "DEFAULT_FORMATS",
    "RESULTS",
    "SETTINGS",
    "SUFFIXES",
    "check_name",
    "result_files",
    "write_result",
]

# Files of the whole run: a line for each result, and the settings.
RESULTS, SETTINGS = "results.jsonl", "run.json"

# The formats, and what is appended to the name of an image. The keys are those of results.jsonl.
SUFFIXES = {
    "overlay": "_overlay.jpg",
    "labels": "_labels.png",
    "confidence": "_confidence.png",
    "coco": "_coco.json",
    "polygons": "_polygons.json",
    "labelme": "_labelme.json",
    "label_studio": "_label_studio.json",
}
DEFAULT_FORMATS = ("overlay", "labels")
# What a run over images or rasters of this or an earlier version has appended.
ALL_SUFFIXES: dict[str, tuple[str, ...]] = {name: (suffix,) for name, suffix in SUFFIXES.items()}
ALL_SUFFIXES |= {
    "overlay": ("_overlay.jpg", "_overlay.png"),
    "labels": ("_labels.png", "_labels.tif"),
    "confidence": ("_confidence.png", "_confidence.tif"),
    "polygons": ("_polygons.json", "_polygons.gpkg", "_polygons.geojson"),
}


def result_files(
    output: Path, stem: Path, formats: Sequence[str] = DEFAULT_FORMATS
) -> dict[str, Path]:
    """Return the path of each format of an image.

    Args:
        output: folder for the results.
        stem: path of the results relative to `output`, without suffix.
        formats: keys of `SUFFIXES`.
    """
    path = output / stem
    return {name: path.with_name(path.name + s) for name, s in SUFFIXES.items() if name in formats}


def check_name(source: Path, output: Path, name: str) -> None:
    """Check that the file system allows the name of a result, before the source is segmented.

    Args:
        source: the file to segment.
        output: folder for the results; must exist.
        name: name of the result, without its folder.

    Raises:
        ImageReadError: if the name is too long, or has a character that is not allowed.
    """
    try:
        os.lstat(output / name)
    except OSError as error:
        if concerns_one_file(error):
            raise ImageReadError(
                f"{source}: the name of its result, '{name}', is not allowed "
                f"({error.strerror}): rename the file"
            ) from error


def write_result(
    name: str, path: Path, image_file: Path, final: Path, image: np.ndarray, prediction: Prediction
) -> None:
    """Write one format of an image. Only "overlay" draws.

    Args:
        name: a key of `SUFFIXES`.
        path: the file to write.
        image_file: the file of the image.
        final: the path that the file will have.
        image: (H, W, 3) uint8 RGB, for the overlay.
        prediction: the segmentation.

    Raises:
        OSError: if the file cannot be written.
    """
    if name == "overlay":
        write_jpeg(path, prediction.overlay(image))
    elif name == "labels":
        save_label_map(path, prediction.label_map, prediction.vocabulary)
    elif name == "confidence":
        # In one byte: 255 is certain.
        write_png(path, np.rint(255 * prediction.confidence).astype(np.uint8))
    else:
        with atomic_write(path, "w") as file:
            json.dump(_CONTENTS[name](prediction, image_file, final), file)


def _labelme(prediction: Prediction, image_file: Path, final: Path) -> dict[str, Any]:
    try:
        # Without links: ".." after a link leads to the parent of its target.
        image_path = os.path.relpath(image_file.resolve(), final.parent.resolve())
    except ValueError:  # on another drive of Windows
        image_path = os.path.abspath(image_file)
    return prediction.to_labelme(Path(image_path).as_posix())


def _label_studio(prediction: Prediction, image_file: Path, final: Path) -> list[dict[str, Any]]:
    # How Label Studio names files of its local storage, below its document root, by default "/".
    address = quote(os.fsencode(image_file.absolute().as_posix()))  # it need not be valid Unicode
    return [prediction.to_label_studio(f"/data/local-files/?d={address}")]


_CONTENTS: dict[str, Callable[[Prediction, Path, Path], Any]] = {
    "coco": lambda prediction, image_file, final: prediction.to_coco(str(image_file)),
    "polygons": lambda prediction, image_file, final: prediction.to_polygons(),
    "labelme": _labelme,
    "label_studio": _label_studio,
}
