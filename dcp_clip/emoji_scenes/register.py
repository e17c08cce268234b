"""Registers ``emoji_scenes_{base,unseen,unseen_style,all}_{val,test}`` and ``..._base_train``.

The second base split is ``emoji_scenes_split1_...``. Beside what every dataset's metadata has,
``is_thing`` and ``is_base`` hold a bool a category, to report things and stuff, and base and unseen
names, apart.
"""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from dcp_clip.data.catalog import datasets_root, register_sem_seg
from dcp_clip.data.pairing import DatasetError
from dcp_clip.emoji_scenes.names import load_name_list
from dcp_clip.emoji_scenes.subsets import SPLITS, get_subset, subset_names

logger = logging.getLogger(__name__)

FOLDER = "emoji_scenes"
PREFIX = "emoji_scenes_"
# Tells what a folder was made with, and what the benchmark is made with.
SETTINGS_FILE = "settings.json"
BENCHMARK = {"source": "npm", "size": 128, "seed": 0}


def register_emoji_scenes(root: str | Path | None = None) -> None:
    """Register all subsets under ``<root>/emoji_scenes``; the disk is not touched before use.

    Importing :mod:`dcp_clip.data` does this with the default root. A second call moves the
    registration to another root.

    Args:
        root: folder of all datasets, default ``$DETECTRON2_DATASETS`` or ``datasets``.
    """
    folder = Path(root or datasets_root()) / FOLDER
    names = load_name_list()
    for split in SPLITS:
        base = {*names.thing_ids("base", split), *names.stuff_ids("base")}
        for subset_name in subset_names(split):
            subset = get_subset(names, subset_name)
            register_sem_seg(
                PREFIX + subset_name,
                folder / "images" / subset_name,
                folder / "labels" / subset_name,
                names.vocabulary(subset.vocabulary),
                ignore_label=subset.ignore_label,
                expected_count=partial(_count, str(folder), subset_name, subset.scenes),
                advice=f"Run `{_command(folder.parent, split)}` (see docs/emoji_scenes.md), or set "
                "DETECTRON2_DATASETS to the folder that holds emoji_scenes/.",
                replace=True,
            )
            MetadataCatalog.get(PREFIX + subset_name).set(
                is_thing=[i < len(names.things) for i in subset.vocabulary],
                is_base=[i in base for i in subset.vocabulary],
            )


def scene_list(folder: Path, subset_name: str) -> Path:
    """The file that tells what is in every scene of a subset; written when all are there."""
    return folder / "scenes" / f"{subset_name}.json"


def _command(root: Path, split: int) -> str:
    option = f" --split {split}" if split else ""
    return f"python datasets/prepare_emoji_scenes.py --root {root}{option}"


def _count(folder: str, subset_name: str, official: int) -> int:
    """The number of scenes that were prepared; a warning if they are not the benchmark's."""
    count = _read_json(scene_list(Path(folder), subset_name), "count")
    settings = _read_json(Path(folder) / SETTINGS_FILE)
    # What else is written there is another choice of styles, or the format, which is ours.
    other = {k: v for k, v in settings.items() if k != "format" and v != BENCHMARK.get(k)}
    if other:
        logger.warning(
            "%s%s was made with %s and is not the benchmark: its figures are not comparable.",
            PREFIX,
            subset_name,
            ", ".join(f"{key} {value}" for key, value in other.items()),
        )
    if count != official:
        logger.warning(
            "%s%s has %d scenes and not the benchmark's %d: its figures are not comparable.",
            PREFIX,
            subset_name,
            count,
            official,
        )
    return count


def _read_json(path: Path, key: str | None = None) -> Any:
    """What a file of the preparation holds, or what it holds under a key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if key is None else content[key]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DatasetError(f"{path}, which a finished preparation writes, cannot be read.") from e
