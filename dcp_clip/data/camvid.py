"""CamVid: street scenes in 11 categories (Brostow et al., ECCV 2008, in SegNet's form).

Registers ``camvid_sem_seg_{train,val,test}``, as ``datasets/prepare_camvid.py`` lays them out.
"""

from pathlib import Path

from dcp_clip.categories import load_names
from dcp_clip.data.register import datasets_root, register_sem_seg

NAMES = "camvid_11"
# Images in each split of SegNet's CamVid, which every published figure refers to.
IMAGE_COUNTS = {"train": 367, "val": 101, "test": 233}


def register_camvid(root: str | Path | None = None) -> None:
    """Register the three splits under ``<root>/camvid``; the disk is not touched before use.

    Importing :mod:`dcp_clip.data` does this with the default root. A second call moves the
    registration to another root.

    Args:
        root: folder of all datasets, default ``$DETECTRON2_DATASETS`` or ``datasets``.
    """
    folder = Path(root or datasets_root()) / "camvid"
    for split, count in IMAGE_COUNTS.items():
        register_sem_seg(
            f"camvid_sem_seg_{split}",
            folder / "images" / split,
            folder / "labels" / split,
            load_names(NAMES),
            expected_count=count,
            advice=(
                "Run `python datasets/prepare_camvid.py --input <CamVid folder> "
                f"--root {folder.parent}` (see datasets/README.md), or set DETECTRON2_DATASETS "
                "to the folder that holds camvid/."
            ),
            replace=True,
        )
