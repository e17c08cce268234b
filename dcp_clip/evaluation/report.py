"""The results of several data sets as one table, beside what they depend on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dcp_clip.evaluation.confusion import CONVENTIONS
from dcp_clip.utils.image_io import atomic_write

__all__ = ["EvaluationReport"]

# Heading, task and metric in an evaluator's results, and format.
_COLUMNS = (
    ("mIoU", "sem_seg", "mIoU", ".2f"),
    ("mIoU things", "sem_seg", "mIoU_things", ".2f"),
    ("mIoU stuff", "sem_seg", "mIoU_stuff", ".2f"),
    ("fwIoU", "sem_seg", "fwIoU", ".2f"),
    ("pixel accuracy", "sem_seg", "pACC", ".2f"),
    ("recall at K", "proposals", "recall", ".2f"),
    ("recall things", "proposals", "recall_things", ".2f"),
    ("K", "proposals", "per_image", ".4g"),
    ("images", "speed", "images", ",d"),
    ("images/s", "speed", "images_per_second", ".3g"),
    ("images/s, model only", "speed", "model_images_per_second", ".3g"),
)
_LEGEND = """\
Percent. mIoU is over the classes present in the ground truth. Recall at K: how many of the classes
in an image are among its K proposals (K: mean over the images). images/s: the whole loop, by the
wall clock, all processes together; model only: one process.
"""
# Where a data set's metadata has `is_thing`.
_GROUPS_LEGEND = """\
mIoU and recall of things and of stuff: over those of the classes only, predicted or proposed from
the whole list.
"""
_CONVENTIONS_NOTE = """\
**{name}: {present}/{all} classes present.** Published figures differ by what the sum of IoU is
divided by:
"""
# What published figures with each convention were made with.
_USERS = {
    "present": "the table above; Detectron2 since July 2022",
    "seen": "the release v0.6 of Detectron2",
    "all": "the sum over the length of the list",
}


class EvaluationReport:
    """Collects the results of a list of data sets; written anew after each of them."""

    def __init__(self, datasets: Sequence[str], environment: Mapping[str, str]):
        """
        Args:
            datasets: names of all data sets that are going to be evaluated.
            environment: text by name, see :func:`evaluation_environment`.
        """
        self._datasets = list(datasets)
        self._environment = dict(environment)
        self._results: dict[str, Mapping[str, Mapping[str, float]]] = {}

    def add(self, dataset: str, results: Mapping[str, Mapping[str, float]]) -> None:
        """Take the results of one data set: task to metric to value, as Detectron2's evaluators
        return them."""
        self._results[dataset] = results

    def to_markdown(self) -> str:
        """The table, what is missing from it, mIoU by convention, and the environment."""
        columns = [c for c in _COLUMNS if any(_find(r, c) is not None for r in self._list())]
        rows = [
            [name, _classes(results), *(_cell(results, column) for column in columns)]
            for name, results in self._results.items()
        ]
        headings = ["data set", "classes present", *(column[0] for column in columns)]
        parts = [_table(rows, headings), "\n" + _LEGEND]
        if any(column[2].endswith(("_things", "_stuff")) for column in columns):
            parts[1] += _GROUPS_LEGEND
        missing = [name for name in self._datasets if name not in self._results]
        if missing:
            parts.append(f"**Not evaluated (yet): {', '.join(missing)}.**\n")
        parts += [_conventions(name, results) for name, results in self._results.items()]
        parts.append(_table(list(self._environment.items()), ["environment", ""]))
        return "\n".join(part for part in parts if part) + "\n"

    def to_json(self) -> str:
        """``{"datasets": names, "results": {name: {task: {metric: value}}}, "environment": ...}``,
        with null for NaN."""
        content = {
            "datasets": self._datasets,
            "results": self._results,
            "environment": self._environment,
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"

    def write(self, folder: str | Path) -> None:
        """Write results.md and results.json into `folder`, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("results.md", self.to_markdown()), ("results.json", self.to_json())):
            with atomic_write(folder / name, "w") as file:
                file.write(text)

    def _list(self) -> list[Mapping]:
        return list(self._results.values())


def _find(results: Mapping, column: tuple[str, str, str, str]) -> float | None:
    return results.get(column[1], {}).get(column[2])


def _cell(results: Mapping, column: tuple[str, str, str, str]) -> str:
    value = _find(results, column)
    return "–" if value is None or math.isnan(value) else format(value, column[3])


def _classes(results: Mapping) -> str:
    counts = results.get("classes")
    return f"{counts['present']}/{counts['all']}" if counts else "–"


def _conventions(name: str, results: Mapping) -> str:
    """mIoU by every convention, "" where all classes are present and they agree."""
    counts = results.get("classes")
    if not counts or counts["present"] == counts["all"]:
        return ""
    values = {
        "present": results["sem_seg"]["mIoU"],
        "seen": counts["mIoU_seen"],
        "all": counts["mIoU_all"],
    }
    rows = [
        [f"IoU sum over the {counts[key]} {CONVENTIONS[key]}", _USERS[key], f"{value:.2f}"]
        for key, value in values.items()
    ]
    note = _CONVENTIONS_NOTE.format(name=name, **counts)
    return f"{note}\n{_table(rows, ['mIoU', 'as in', 'percent'])}\n"


def _table(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    # As they are: tabulate would read "1e-05" or "7" in a text as numbers and write them anew.
    escaped = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    return tabulate(escaped, headings, tablefmt="github", disable_numparse=True)


def _plain(value: Any) -> Any:
    """What JSON knows: NumPy's numbers become Python's, NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
