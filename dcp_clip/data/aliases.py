"""Names that other projects use for the same images and labels.

A name in the table is replaced by this project's name, with a line in the log, so that other
projects' commands can be reused. The category names are this project's.
"""

import logging
from collections.abc import Iterable

from detectron2.data import DatasetCatalog

logger = logging.getLogger(__name__)

# This project's name: other projects' names. Not in the table are
# "pascal_context_{59,459}_sem_seg_val" (OVSeg), which is this project's name as well;
# "ade20k_sem_seg_{train,val}" (SAN, OVSeg), which is Detectron2's own data set; and FC-CLIP's
# PAS-21, whose protocol differs from PAS-20b.
PEER_NAMES: dict[str, tuple[str, ...]] = {
    "coco_stuff_sem_seg_train": (
        "coco_2017_train_stuff_all_sem_seg",  # CAT-Seg, SED, ERR-Seg
        "coco_2017_train_stuff_sem_seg",  # SAN, OVSeg
        "openvocab_coco_2017_train_stuff_sem_seg",  # MAFT+
    ),
    "coco_stuff_sem_seg_val": (
        "coco_2017_test_stuff_all_sem_seg",
        "coco_2017_test_stuff_sem_seg",
        "openvocab_coco_2017_val_stuff_sem_seg",
    ),
    "ade20k_150_sem_seg_val": (
        "ade20k_150_test_sem_seg",  # CAT-Seg
        "openvocab_ade20k_panoptic_val",  # FC-CLIP, MAFT+: the same photographs
    ),
    "ade20k_847_sem_seg_val": (
        "ade20k_full_sem_seg_freq_val_all",  # CAT-Seg
        "ade20k_full_sem_seg_val",  # SAN, OVSeg
        "openvocab_ade20k_full_sem_seg_val",  # FC-CLIP
    ),
    "pascal_context_59_sem_seg_val": (
        "context_59_test_sem_seg",  # CAT-Seg
        "pcontext_sem_seg_val",  # SAN
        "openvocab_pascal_ctx59_sem_seg_val",  # FC-CLIP
    ),
    "pascal_context_459_sem_seg_val": (
        "context_459_test_sem_seg",
        "pcontext_full_sem_seg_val",
        "openvocab_pascal_ctx459_sem_seg_val",
    ),
    "pascal_voc_20_sem_seg_val": (
        "voc_2012_test_sem_seg",  # CAT-Seg
        "voc_sem_seg_val",  # SAN
        "pascalvoc20_sem_seg_val",  # OVSeg
        "openvocab_pascal20_sem_seg_val",  # FC-CLIP
    ),
    "pascal_voc_20b_sem_seg_val": ("voc_2012_test_background_sem_seg",),  # CAT-Seg
}
_OURS = {theirs: ours for ours, names in PEER_NAMES.items() for theirs in names}


def resolve_dataset_name(name: str) -> str:
    """Return this project's name of a data set that other projects call `name`.

    A name that is not in the table, or is itself registered, is returned unchanged. A replacement
    is logged.
    """
    ours = _OURS.get(name)
    if ours is None or name in DatasetCatalog:
        return name
    # A warning, because configs are read before loggers are set up, which would hide an info.
    logger.warning("The data set '%s' is '%s' here (dcp_clip/data/aliases.py).", name, ours)
    return ours


def resolve_dataset_names(names: Iterable[str]) -> tuple[str, ...]:
    """Apply :func:`resolve_dataset_name` to each name.

    Raises:
        ValueError: if two names stand for the same data set, which would be used twice.
    """
    names = tuple(names)
    resolved = tuple(resolve_dataset_name(name) for name in names)
    for i, name in enumerate(resolved):
        j = resolved.index(name)
        if names[i] != names[j]:
            raise ValueError(
                f"The data sets '{names[j]}' and '{names[i]}' are both '{name}': remove one."
            )
    return resolved
