"""The rows of the EmojiScenes tables, as configs/emoji_scenes/ablation.yaml lists them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml  # comes with yacs

TRAINED, REREAD, UNTRAINED = ("variants", "references"), "evaluations", "training_free"
SECTIONS = (*TRAINED, REREAD, UNTRAINED)
SPLITS = ("val", "test")
# Folders of the output that no row may be named after.
_RESERVED = (*SPLITS, "data", "clip")


class PlanError(ValueError):
    """The list of rows, or what was asked of it, is at fault; the message is one sentence."""


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Attributes:
        name: also its folder's.
        section: one of :data:`SECTIONS`, which says whether it is trained.
        config: file, relative to the project's folder.
        overrides: KEY VALUE KEY VALUE ...
        weights_of: the row whose weights it reads; its own name where it is trained, "" for none.
        note: for the reader.
        on_request: takes so long that it is made only where it is named.
    """

    name: str
    section: str
    config: str
    overrides: tuple[str, ...] = ()
    weights_of: str = ""
    note: str = ""
    on_request: bool = False


@dataclass(frozen=True)
class Plan:
    """All rows, the seeds they are trained with, and the pre-training of CLIP."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    clip_config: str
    clip_weights: str

    def choose(self, names: Sequence[str] | None) -> list[Row]:
        """Rows by name, in the plan's order; None for all but those on request.

        Raises:
            PlanError: for a name that no row has.
        """
        known = [row.name for row in self.rows]
        if unknown := [name for name in names or () if name not in known]:
            raise PlanError(f"there is no row '{unknown[0]}'; there are: {', '.join(known)}.")
        if names is None:
            return [row for row in self.rows if not row.on_request]
        return [row for row in self.rows if row.name in names]


def load_plan(path: Path) -> Plan:
    """Read a list of rows, as configs/emoji_scenes/ablation.yaml is.

    Raises:
        PlanError: if the file is missing or something in it is.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        rows = [
            _read_row(entry, section, content["base"])
            for section in SECTIONS
            for entry in content.get(section) or ()
        ]
        seeds = tuple(int(seed) for seed in content["seeds"])
        plan = Plan(tuple(rows), seeds, content["clip"]["config"], content["clip"]["weights"])
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error.strerror}.") from error
    except KeyError as error:
        raise PlanError(f"{path} has no {error}, or a row of it has none.") from error
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise PlanError(f"{path} is no list of rows: {reason}") from error
    _check_rows(plan, path)
    return replace(plan, rows=tuple(_inherit(row, plan) for row in plan.rows))


def _inherit(row: Row, plan: Plan) -> Row:
    """Weights are read by the model that they were trained in, but for the row's own overrides,
    which come last."""
    if row.section != REREAD:
        return row
    source = next(other for other in plan.rows if other.name == row.weights_of)
    return replace(row, config=source.config, overrides=source.overrides + row.overrides)


def _read_row(entry: dict, section: str, base: str) -> Row:
    known = {"name", "note", "overrides", "on_request"}
    known.add("weights_of" if section == REREAD else "config")
    if unknown := set(entry) - known:
        raise ValueError(f"a row of {section} has the key '{min(unknown)}'.")
    overrides = (entry.get("overrides") or {}).items()
    own = entry["name"] if section in TRAINED else ""
    return Row(
        name=entry["name"],
        section=section,
        config=entry.get("config", base),
        overrides=tuple(str(part) for pair in overrides for part in pair),
        weights_of=entry["weights_of"] if section == REREAD else own,
        note=entry.get("note", ""),
        on_request=bool(entry.get("on_request", False)),
    )


def _check_rows(plan: Plan, path: Path) -> None:
    names = [row.name for row in plan.rows]
    trained = {row.name for row in plan.rows if row.section in TRAINED}
    for row in plan.rows:
        if names.count(row.name) > 1 or row.name in _RESERVED or Path(row.name).name != row.name:
            raise PlanError(f"{path}: '{row.name}' cannot be the name of a row, or of two.")
        if row.weights_of and row.weights_of not in trained:
            raise PlanError(
                f"{path}: '{row.name}' needs the weights of '{row.weights_of}', which "
                "is no trained row."
            )
