"""Registers ``emoji_scenes_{base,unseen,unseen_style,all}_{val,test}`` and ``..._base_train``.

The second base split is ``emoji_scenes_split1_...``. The metadata has ``is_thing`` and ``is_base``,
a bool for each category, so that these groups are reported separately.
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
# The file with the settings of a folder, and the settings of the benchmark.
SETTINGS_FILE = "settings.json"
BENCHMARK = {"source": "npm", "size": 128, "seed": 0}


def register_emoji_scenes(root: str | Path | None = None) -> None:
    """Register all subsets in ``<root>/emoji_scenes``. The folder may not exist yet.

    Importing :mod:`dcp_clip` does this with the default root. A second call changes the root.

    Args:
        root: folder of all data sets, default ``$DETECTRON2_DATASETS`` or ``datasets``.
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
    """The file that describes all scenes of a subset; it is written last."""
    return folder / "scenes" / f"{subset_name}.json"


def _command(root: Path, split: int) -> str:
    option = f" --split {split}" if split else ""
    return f"python datasets/prepare_emoji_scenes.py --root {root}{option}"


def _count(folder: str, subset_name: str, official: int) -> int:
    """The number of scenes of a subset. Warns if they are not the benchmark's."""
    count = _read_json(scene_list(Path(folder), subset_name), "count")
    settings = _read_json(Path(folder) / SETTINGS_FILE)
    # The file can also have the keys "styles" and "format".
    other = {k: v for k, v in settings.items() if k != "format" and v != BENCHMARK.get(k)}
    if other:
        logger.warning(
            "%s%s was made with %s and is not the benchmark: results are not comparable.",
            PREFIX,
            subset_name,
            ", ".join(f"{key} {value}" for key, value in other.items()),
        )
    if count != official:
        logger.warning(
            "%s%s has %d scenes and not the benchmark's %d: results are not comparable.",
            PREFIX,
            subset_name,
            count,
            official,
        )
    return count


def _read_json(path: Path, key: str | None = None) -> Any:
    """Read a JSON file of the preparation, or one key of it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if key is None else content[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise DatasetError(f"{path}, which a complete preparation writes, cannot be read.") from e
