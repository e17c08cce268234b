#!/usr/bin/env python
"""Prepare PASCAL-Context with its 59 most frequent categories, "PC-59"; see datasets/README.md.

    python datasets/prepare_pascal_context_59.py

The input is VOCdevkit/VOC2010 with JPEGImages and PASCAL in Detail's trainval_merged.json. The
output is <root>/pascal_context_59/{images,labels}/val, with 255 for pixels of no category.
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import RleLabelMap, decode_rle, label_encoding
from dcp_clip.data.pairing import DatasetError, check_files, read_ids
from dcp_clip.data.preparation.program import make_parser, prepare_dataset, run_program
from dcp_clip.vocabulary.categories import load_names

logger = logging.getLogger("prepare_pascal_context_59")

NAMES = BENCHMARKS["pascal_context_59"].names
IMAGE_COUNT = BENCHMARKS["pascal_context_59"].counts["val"]
ANNOTATIONS = "trainval_merged.json"
VAL_IDS = Path(__file__).parent / "pascal_context_val_ids.txt"
SOURCE = (
    "JPEGImages is in VOCtrainval_03-May-2010.tar of host.robots.ox.ac.uk/pascal/VOC/voc2010; "
    f"{ANNOTATIONS} is the annotation of the PASCAL in Detail challenge, "
    "sites.google.com/view/pasd; see datasets/README.md."
)


def read_val_label_maps(path: Path) -> dict[str, RleLabelMap]:
    """Read the validation split of PASCAL in Detail's JSON.

    Of the file are used: ``images`` (image_id, file_name, height, width, phase) and
    ``annos_segmentation`` (image_id, category_id, segmentation in COCO's run-length code).

    Returns:
        The label map of each image whose phase is "val", by the file's stem, in the file's order.

    Raises:
        DatasetError: if the file is missing, is not such a JSON, or has no mask for an image.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist. {SOURCE}")
    logger.info("Reading %s, which takes a while and some gigabytes of memory.", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {i["image_id"]: i for i in content["images"] if i["phase"] == "val"}
        masks: dict[int, list[tuple[int, dict]]] = {image_id: [] for image_id in images}
        for a in content["annos_segmentation"]:
            if a["image_id"] in masks:
                masks[a["image_id"]].append((int(a["category_id"]), a["segmentation"]))
        label_maps = {
            Path(image["file_name"]).stem: RleLabelMap(
                f"{path} ({image['file_name']})",
                int(image["height"]),
                int(image["width"]),
                tuple(masks[image_id]),
            )
            for image_id, image in images.items()
        }
    except (ValueError, KeyError, TypeError) as e:
        raise DatasetError(
            f"{path} is not PASCAL in Detail's annotation, or is damaged: {e!r}. {SOURCE}"
        ) from e
    empty = [label_map for label_map in label_maps.values() if not label_map.masks]
    if empty:
        raise DatasetError(f"{empty[0]} has no mask, as have {len(empty) - 1} more. {SOURCE}")
    return label_maps


def prepare_pascal_context_59(
    source: Path,
    root: Path,
    *,
    workers: int = 1,
    val_ids: Path = VAL_IDS,
    image_count: int = IMAGE_COUNT,
) -> None:
    """Write ``<root>/pascal_context_59``; what is finished is skipped.

    Args:
        source: the folder VOC2010.
        root: folder of all datasets.
        workers: processes.
        val_ids: file that lists the validation images, to be compared with the JSON's own list.
        image_count: how many validation images there must be.

    Raises:
        DatasetError: if the input is incomplete, before anything is written.
    """
    if not source.is_dir():
        raise DatasetError(f"The input folder {source} does not exist. {SOURCE}")
    if not (source / "JPEGImages").is_dir():  # told at once, not after minutes of reading
        raise DatasetError(f"The folder {source / 'JPEGImages'} does not exist. {SOURCE}")
    listed = set(read_ids(val_ids, expected_count=image_count))
    label_maps = read_val_label_maps(source / ANNOTATIONS)
    if len(label_maps) != image_count:
        raise DatasetError(
            f"{source / ANNOTATIONS} has {len(label_maps)} validation images, not {image_count}. "
            f"{SOURCE}"
        )
    absent, strange = sorted(listed - label_maps.keys()), sorted(label_maps.keys() - listed)
    if absent or strange:
        logger.warning(
            "The validation split of %s is not the one in %s: it lacks %d of its images (%s, ...) "
            "and has as many others (%s, ...). Its own split is used; PC-459 has the other one.",
            source / ANNOTATIONS,
            val_ids,
            len(absent),
            absent[0],
            strange[0],
        )
    images = {stem: source / "JPEGImages" / f"{stem}.jpg" for stem in label_maps}
    check_files(source / "JPEGImages", list(images.values()), advice=SOURCE)
    pairs = [(images[stem], label_map) for stem, label_map in label_maps.items()]
    encoding = label_encoding(load_names(NAMES), decode_rle)
    prepare_dataset(root / "pascal_context_59", {"val": pairs}, encoding, workers=workers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = make_parser(__doc__, "default: <root>/VOCdevkit/VOC2010").parse_args(argv)
    source = args.input or args.root / "VOCdevkit" / "VOC2010"
    return run_program(lambda: prepare_pascal_context_59(source, args.root, workers=args.workers))


if __name__ == "__main__":
    sys.exit(main())
