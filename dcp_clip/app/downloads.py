"""The files that a user can download."""

import json
from pathlib import Path

from dcp_clip.predictor import EncodedImage, Prediction
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.utils.images.writing import write_jpeg
from dcp_clip.utils.label_maps import save_label_map

__all__ = ["FORMATS", "write_file"]

# Format: ending of the file's name.
FORMATS = {
    "labels": "labels.png",
    "overlay": "overlay.jpg",
    "coco": "coco.json",
    "polygons": "polygons.json",
}


def write_file(
    folder: Path, file_name: str, kind: str, image: EncodedImage, prediction: Prediction
) -> Path:
    """Write a segmentation in one of the `FORMATS`.

    Args:
        folder: an existing folder.
        file_name: name of the image file.
        kind: the format.
        image: the image.
        prediction: its segmentation.

    Returns:
        the file, named after the image: street.jpg gives street_labels.png.

    Raises:
        ValueError: for an unknown format.
    """
    if kind not in FORMATS:
        raise ValueError(f"There is no format '{kind}'; choose one of {', '.join(FORMATS)}.")
    path = folder / f"{Path(file_name).stem}_{FORMATS[kind]}"
    if kind == "labels":
        save_label_map(path, prediction.label_map, prediction.vocabulary)
    elif kind == "overlay":
        write_jpeg(path, prediction.overlay(image.image))
    else:
        content = prediction.to_coco(file_name) if kind == "coco" else prediction.to_polygons()
        with atomic_write(path, "w") as f:
            json.dump(content, f, ensure_ascii=False)
    return path
