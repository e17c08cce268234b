"""COCO-Stuff 164k: everyday photographs in 171 categories (arXiv 1612.03716), to train on.

Registers ``coco_stuff_sem_seg_{train,val}``. Label maps hold train ids, 255 = ignored.
"""

from pathlib import Path

from dcp_clip.categories import load_names
from dcp_clip.data.register import datasets_root, register_sem_seg

NAMES = "coco_stuff_171"
IMAGE_COUNTS = {"train": 118287, "val": 5000}


def register_coco_stuff(root: str | Path | None = None) -> None:
    """Register both splits under ``<root>/coco-stuff``; the disk is not touched before use.

    Args:
        root: folder of all datasets, default ``$DETECTRON2_DATASETS`` or ``datasets``.
    """
    folder = Path(root or datasets_root()) / "coco-stuff"
    for split, count in IMAGE_COUNTS.items():
        register_sem_seg(
            f"coco_stuff_sem_seg_{split}",
            folder / "images" / f"{split}2017",
            folder / "annotations_detectron2" / f"{split}2017",
            load_names(NAMES),
            expected_count=count,
            advice="See datasets/README.md, or set DETECTRON2_DATASETS to the folder that holds "
            "coco-stuff/.",
            replace=True,
        )
