"""Prepare COCO-Stuff with 171 categories, and COCO-Object: its 80 things and background."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.file_lists import find_splits
from dcp_clip.data.preparation.label_encoding import (
    label_encoding,
    read_indices,
    with_background,
)
from dcp_clip.data.preparation.program import prepare_dataset
from dcp_clip.vocabulary.categories import load_names

logger = logging.getLogger(__name__)

COCO_STUFF, COCO_OBJECT = BENCHMARKS["coco_stuff"], BENCHMARKS["coco_object"]
NUM_THINGS = 80  # the first categories of COCO-Stuff
UNLABELLED = 255
IMAGE_FOLDERS = ("{}2017", "images/{}2017")
LABEL_FOLDERS = (
    "stuffthingmaps/{}2017",
    "annotations/{}2017",
    "stuffthingmaps_trainval2017/{}2017",
)
SOURCE = (
    "The photographs are train2017.zip and val2017.zip of cocodataset.org, the label maps "
    "stuffthingmaps_trainval2017.zip of github.com/nightrome/cocostuff; see datasets/README.md."
)


def default_input(root: Path) -> Path:
    """Return the conventional folder that holds label maps, or else one that exists."""
    candidates = [root / "coco", root / "coco-stuff"]
    for folder in candidates:
        if any((folder / part.format("val")).is_dir() for part in LABEL_FOLDERS):
            return folder
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])


def prepare_coco_stuff(
    source: Path | None,
    root: Path,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    image_counts: Mapping[str, int] = COCO_STUFF.counts,
) -> None:
    """Write ``<root>/coco_stuff``, and ``<root>/coco_object`` (val); skip finished files.

    Args:
        source: input folder; None for :func:`default_input`.
        root: folder of all data sets.
        splits: some of "train", "val"; None for those that exist.
        workers: number of processes.
        image_counts: required number of images in each split.

    Raises:
        DatasetError: if the input is not a complete COCO-Stuff. Nothing is written unless all
            splits match.
    """
    source = source or default_input(root)
    folders = {
        split: (_find_one(source, IMAGE_FOLDERS, split), _find_one(source, LABEL_FOLDERS, split))
        for split in image_counts
    }
    pairs = find_splits(source, folders, image_counts, required=splits, advice=SOURCE)
    # The raw labels of COCO's unused categories are errors. Train ids use these numbers, so label
    # maps that are already converted are detected.
    categories = load_names(COCO_STUFF.names)
    encoding = label_encoding(categories, read_indices, ignored_raw=[UNLABELLED])
    prepare_dataset(root / COCO_STUFF.key, pairs, encoding, workers=workers)
    if "val" in pairs:
        logger.info("%s:", COCO_OBJECT.key)
        things, stuff = categories[:NUM_THINGS], categories[NUM_THINGS:]
        others = [*(category.raw_id for category in stuff), UNLABELLED]
        encoding = with_background(label_encoding(things, read_indices, ignored_raw=others))
        val = {"val": pairs["val"]}
        prepare_dataset(root / COCO_OBJECT.key, val, encoding, workers=workers)


def _find_one(source: Path, layouts: Sequence[str], split: str) -> Path:
    candidates = [source / layout.format(split) for layout in layouts]
    found = [folder for folder in candidates if folder.is_dir()]
    if len(found) > 1:
        raise DatasetError(f"{source} holds both {found[0]} and {found[1]}: keep one.")
    return found[0] if found else candidates[0]
