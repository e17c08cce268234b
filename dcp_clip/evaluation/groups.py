"""Groups of categories that are reported apart: things and stuff, base and unseen names."""

from __future__ import annotations

import numpy as np
from detectron2.data import MetadataCatalog

__all__ = ["category_groups"]

# Key of a data set's metadata, a bool a category; the group where it is true, and where it is not.
_GROUPS = {"is_thing": ("things", "stuff"), "is_base": ("base", "unseen")}


def category_groups(dataset_name: str) -> dict[str, np.ndarray]:
    """The groups that a data set's metadata tells of.

    Returns:
        (C,) bool by name: "things" and "stuff" where the metadata has ``is_thing``, "base" (had
        masks in training) and "unseen" where it has ``is_base``. A group without a category is left
        out, so that which there are depends on the metadata alone and not on the images.

    Raises:
        ValueError: for a key that has not one value a category.
    """
    meta = MetadataCatalog.get(dataset_name)
    groups = {}
    for key, (true, false) in _GROUPS.items():
        values = meta.get(key)
        if values is None:
            continue
        if len(values) != len(meta.stuff_classes):
            raise ValueError(
                f"data set '{dataset_name}' has {len(values)} values of {key} in its metadata and "
                f"{len(meta.stuff_classes)} categories; give one bool a category."
            )
        member = np.asarray(values, bool)
        groups |= {true: member, false: ~member}
    return {name: member for name, member in groups.items() if member.any()}
