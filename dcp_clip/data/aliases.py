"""What other projects call the same images and labels.

Their scripts and habits carry over: a name of the table is taken for ours, with a line in the log.
The categories are ours too: names as people write them, ADE20K's with all synonyms.
"""

import logging
from collections.abc import Iterable

from detectron2.data import DatasetCatalog

logger = logging.getLogger(__name__)

# Ours: theirs. Not here: "pascal_context_{59,459}_sem_seg_val" (OVSeg), which is our name as well;
# "ade20k_sem_seg_{train,val}" (SAN, OVSeg), which is Detectron2's own dataset; FC-CLIP's PAS-21,
# which is another protocol than PAS-20b.
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
    """Return our name of a dataset that another project calls `name`; any other `name` as it is.

    A dataset registered under `name` itself comes first. The log tells what was resolved.
    """
    ours = _OURS.get(name)
    if ours is None or name in DatasetCatalog:
        return name
    # A warning, as configs are read before loggers are set up: one would not see less.
    logger.warning("The dataset '%s' is '%s' here (dcp_clip/data/aliases.py).", name, ours)
    return ours


def resolve_dataset_names(names: Iterable[str]) -> tuple[str, ...]:
    """:func:`resolve_dataset_name` for each of several.

    Raises:
        ValueError: if two names are one dataset, which would be used twice.
    """
    names = tuple(names)
    resolved = tuple(resolve_dataset_name(name) for name in names)
    for i, name in enumerate(resolved):
        j = resolved.index(name)
        if names[i] != names[j]:
            raise ValueError(
                f"The datasets '{names[j]}' and '{names[i]}' are both '{name}': remove one."
            )
    return resolved
