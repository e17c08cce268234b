"""The keys of a config by their whole names, and those of a model that Detectron2 does not have."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

__all__ = ["all_settings", "model_settings"]


def model_settings(cfg: CfgNode, exclude: Iterable[str] = ()) -> dict[str, Any]:
    """Return MODEL.META_ARCHITECTURE and all keys of MODEL that Detectron2 does not have.

    Args:
        cfg: the whole config.
        exclude: keys, and groups of keys, to leave out.

    Returns:
        Values by the names of keys, such as "MODEL.DCP_CLIP.DIM".
    """
    groups = tuple(f"{name}." for name in exclude)
    return {
        key: value
        for key, value in all_settings(cfg.MODEL, "MODEL.")
        if (key == "MODEL.META_ARCHITECTURE" or key not in _detectron2_keys())
        and not f"{key}.".startswith(groups)
    }


@functools.cache
def _detectron2_keys() -> frozenset[str]:
    return frozenset(key for key, _ in all_settings(detectron2_cfg().MODEL, "MODEL."))


def all_settings(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names of all keys, such as "MODEL.DEVICE", and their values.

    Args:
        node: a config, or a group of its keys.
        prefix: beginning of the names.
    """
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from all_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
