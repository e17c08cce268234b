"""Groups of categories that are reported separately: things, stuff, base and unseen categories."""

from __future__ import annotations

import numpy as np
from detectron2.data import MetadataCatalog

__all__ = ["category_groups"]

# Metadata key with one bool per category: the groups for True and for False.
_GROUPS = {"is_thing": ("things", "stuff"), "is_base": ("base", "unseen")}


def category_groups(dataset_name: str) -> dict[str, np.ndarray]:
    """Return the groups of categories that a data set's metadata defines.

    Returns:
        (C,) bool by name: "things" and "stuff" if the metadata has ``is_thing``; "base" (categories
        with masks in training) and "unseen" if it has ``is_base``. Groups without a category are
        left out. The groups depend only on the metadata, not on the images.

    Raises:
        ValueError: if a key does not have one value per category.
    """
    meta = MetadataCatalog.get(dataset_name)
    groups = {}
    for key, (true, false) in _GROUPS.items():
        values = meta.get(key)
        if values is None:
            continue
        if len(values) != len(meta.stuff_classes):
            raise ValueError(
                f"The metadata of data set '{dataset_name}' has {len(values)} values of {key} for "
                f"{len(meta.stuff_classes)} categories: give one bool per category."
            )
        member = np.asarray(values, bool)
        groups |= {true: member, false: ~member}
    return {name: member for name, member in groups.items() if member.any()}
