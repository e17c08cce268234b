"""Prepare PASCAL VOC 2012 without background (PAS-20) and with it (PAS-20b, VOC-21)."""

import logging
from dataclasses import replace
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.file_lists import pair_listed, read_ids, require_folder
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.data.preparation.program import prepare_dataset
from dcp_clip.vocabulary.categories import load_names

logger = logging.getLogger(__name__)

PAS20, PAS20B, PAS21 = (BENCHMARKS[f"pascal_voc_{key}"] for key in ("20", "20b", "21"))
BACKGROUND, BORDER = 0, 255
# Most published figures use the first folder.
LABEL_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
SOURCE = (
    "JPEGImages, ImageSets and SegmentationClass are in VOCtrainval_11-May-2012.tar of "
    "host.robots.ox.ac.uk/pascal/VOC/voc2012; SegmentationClassAug.zip is the one of "
    "github.com/kazuto1011/deeplab-pytorch; see datasets/README.md."
)


def prepare_pascal_voc(
    source: Path | None,
    root: Path,
    *,
    labels: str | None = None,
    workers: int = 1,
    image_count: int = PAS20.counts["val"],
) -> None:
    """Write ``pascal_voc_20``, ``pascal_voc_20b`` and ``pascal_voc_21``; skip finished files.

    Args:
        source: the folder VOC2012; None for VOCdevkit/VOC2012 in `root`.
        root: folder of all data sets.
        labels: which of LABEL_FOLDERS to use; None for the first that exists. A prepared folder
            never holds both, see ``prepared.json`` in it.
        workers: number of processes.
        image_count: required number of validation images.

    Raises:
        DatasetError: if the input is incomplete. Nothing is written then.
    """
    source = source or root / "VOCdevkit" / "VOC2012"
    require_folder(source, SOURCE, what="The input folder")
    if labels is None:
        found = [name for name in LABEL_FOLDERS if (source / name).is_dir()]
        if not found:
            raise DatasetError(f"{source} holds neither {' nor '.join(LABEL_FOLDERS)}.", SOURCE)
        labels = found[0]
    logger.info("The label maps are in %s.", source / labels)
    ids = read_ids(
        source / "ImageSets" / "Segmentation" / "val.txt",
        expected_count=image_count,
        advice=SOURCE,
    )
    pairs = pair_listed(ids, source / "JPEGImages", source / labels, advice=SOURCE)
    categories = load_names(PAS20.names)
    background = replace(
        categories[0], name="background", train_id=len(categories), raw_id=BACKGROUND
    )
    encodings = {
        PAS20.key: label_encoding(categories, read_indices, ignored_raw=[BACKGROUND, BORDER]),
        PAS20B.key: label_encoding([*categories, background], read_indices, ignored_raw=[BORDER]),
        PAS21.key: label_encoding(load_names(PAS21.names), read_indices, ignored_raw=[BORDER]),
    }
    for key, encoding in encodings.items():
        logger.info("%s:", key)
        settings = {"labels": labels}
        prepare_dataset(root / key, {"val": pairs}, encoding, workers=workers, settings=settings)
