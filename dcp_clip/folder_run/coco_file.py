"""One COCO file of all images of a folder run."""

import json
from pathlib import Path
from typing import Any

from dcp_clip.folder_run.output_folder import COCO_FILE, RunFolder, RunFolderError, writing
from dcp_clip.formats.coco import coco_categories
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.vocabulary import Vocabulary

__all__ = ["write_coco_file"]


def write_coco_file(folder: RunFolder, vocabulary: Vocabulary) -> Path:
    """Join the COCO files of all finished images to `COCO_FILE`, one image at a time.

    Images get the ids 1, 2, ... in the order of results.jsonl, and annotations likewise.

    Args:
        folder: the open folder of a run with the format "coco".
        vocabulary: the categories of the run.

    Raises:
        RunFolderError: if the file cannot be written, or the file of an image cannot be read.
    """
    path = folder.folder / COCO_FILE
    with writing(path), atomic_write(path, "w") as file:
        file.write('{"images": [\n')
        _write_items(file, (image for image, _ in _parts(folder)))
        file.write('],\n"annotations": [\n')
        annotations = (item for _, items in _parts(folder) for item in items)
        _write_items(file, ({**item, "id": i} for i, item in enumerate(annotations, 1)))
        file.write('],\n"categories": ' + json.dumps(coco_categories(vocabulary)) + "}\n")
    return path


def _parts(folder: RunFolder):
    """Yield the image and the annotations of each finished image, with the id of the image."""
    for number, record in enumerate(folder.records(), 1):
        path = folder.folder / record["coco"]
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            annotations = [{**item, "image_id": number} for item in content["annotations"]]
            image = {**content["images"][0], "id": number}
        except (ValueError, LookupError, TypeError) as error:
            raise RunFolderError(
                f"{path} is damaged: delete it, and start the run again to segment its image again"
            ) from error
        yield image, annotations


def _write_items(file, items) -> None:
    separator = ""
    for item in items:
        file.write(separator + json.dumps(item))
        separator = ",\n"
    file.write("\n")
