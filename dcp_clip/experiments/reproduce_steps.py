"""The steps that lead to the rows of a plan: their commands, and how to tell that they are done."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dcp_clip.emoji_scenes.register import FOLDER, PREFIX, scene_list
from dcp_clip.emoji_scenes.subsets import SCENE_COUNTS, subset_name
from dcp_clip.experiments.reproduce_plan import Plan, PlanError, Row
from dcp_clip.utils.arguments import format_error

ROOT = Path(__file__).resolve().parents[2]
SUBSETS = ("base", "unseen", "unseen_style", "all")
# What the steps set themselves, from the program's own options.
_OWN_KEYS = (
    "DATASETS.TEST",
    "DATASETS.TRAIN",
    "MODEL.CLIP.PRETRAINED",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "SEED",
    "SOLVER.MAX_ITER",
)


@dataclass(frozen=True)
class Step:
    """One command of the reproduction.

    Attributes:
        name: to be shown.
        folder: where its log and its record go.
        command: arguments of Python, run in the project's folder.
        leaves: what it leaves, in words.
        is_done: is that there, and complete?
        needs: names of the steps that come before it.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    leaves: str
    is_done: Callable[[], bool]
    needs: tuple[str, ...] = ()


def finished_training(folder: Path, *files: str) -> bool:
    """Has a training in `folder` ended? Its checkpointer names the last checkpoint once that is
    written to the end, which the file's mere presence does not tell."""
    pointer = folder / "last_checkpoint"
    ended = pointer.is_file() and pointer.read_text().strip() == "model_final.pth"
    return ended and all((folder / name).is_file() for name in ("model_final.pth", *files))


def finished_evaluation(path: Path, datasets: Sequence[str], weights: Path) -> bool:
    """Does a results.json, which grows with each data set, hold all of them, and is it of these
    weights: no older than the file?

    Raises:
        PlanError: if it is damaged.
    """
    if not path.is_file():
        return False
    if not weights.is_file() or path.stat().st_mtime < weights.stat().st_mtime:
        return False
    return set(datasets) <= set(_read_json(path, "results"))


def finished_scenes(root: Path, base_split: int) -> bool:
    """Is the benchmark prepared, all its subsets? A subset's list is written after its scenes.

    Raises:
        PlanError: if such a list is damaged.
    """
    counts = {
        scene_list(root / FOLDER, subset_name(plain, base_split)): count
        for plain, count in SCENE_COUNTS.items()
    }
    return all(path.is_file() and _read_json(path, "count") == n for path, n in counts.items())


def _read_json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path} is damaged ({error}): remove it.") from error


@dataclass(frozen=True)
class Planner:
    """Makes the steps of rows.

    Attributes:
        plan: all rows.
        output: folder of everything that is made but the data.
        data: folder of all data sets.
        split: which scenes are evaluated, one of :data:`SPLITS`.
        iterations: of each head's training; None for the config's own.
        clip: the weights of CLIP; None to pre-train one.
        base_split: which names are base, one of EmojiScenes' splits.
        overrides: KEY VALUE KEY VALUE ... of all rows; a row's own come after them.
    """

    plan: Plan
    output: Path
    data: Path
    split: str = "test"
    iterations: int | None = None
    clip: Path | None = None
    base_split: int = 0
    overrides: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(self._dataset(f"{subset}_{self.split}") for subset in SUBSETS)

    @property
    def results(self) -> Path:
        """Folder of the evaluations, <row>/seed<N>/results.json."""
        return self.output / self.split

    def steps(self, rows: Sequence[Row], seeds: Sequence[int]) -> list[Step]:
        """Everything that `rows` need, each after what it needs; all rows of the first seed come
        first, so that the table is whole early.

        Raises:
            PlanError: for a config file, or weights of CLIP, that do not exist.
        """
        by_name = {row.name: row for row in self.plan.rows}
        steps = [self._data()]
        if self.clip is None:
            steps.append(self._clip())
        elif not self.clip.is_file():
            raise PlanError(f"the weights of CLIP, {self.clip}, do not exist: mend --clip.")
        steps += [self._evaluation(row, None) for row in rows if not row.weights_of]
        for seed in seeds:
            for row in rows:
                if row.weights_of:
                    steps.append(self._training(by_name[row.weights_of], seed))
                    steps.append(self._evaluation(row, seed))
        return list({step.name: step for step in steps}.values())

    def check_overrides(self, rows: Sequence[Row]) -> None:
        """Find out before hours of work whether :attr:`overrides` are for these rows.

        Raises:
            PlanError: for what is no KEY VALUE of their configs, or a key that the steps set.
        """
        if not self.overrides:
            return
        from dcp_clip.config import setup_cfg  # seconds to import

        for word in self.overrides:
            if word.startswith("--"):
                raise PlanError(f"options come before KEY VALUE: '{word}' comes behind.")
        for key in set(self.overrides[::2]) & set(_OWN_KEYS):
            raise PlanError(f"{key} cannot be set here: see the program's own options.")
        for row in rows:
            try:
                setup_cfg(str(ROOT / row.config), [*self.overrides, *row.overrides])
            except (KeyError, ValueError, AssertionError, OSError) as error:
                raise PlanError(f"row {row.name}: {format_error(error)}") from error

    def _data(self) -> Step:
        split = ("--split", str(self.base_split)) if self.base_split else ()
        return Step(
            "data",
            self.output / "data",
            ("datasets/prepare_emoji_scenes.py", *split),
            f"the scenes in {self.data / FOLDER}",
            partial(finished_scenes, self.data, self.base_split),
        )

    def _clip(self) -> Step:
        folder, weights = self.output / "clip", self.plan.clip_weights
        return Step(
            "clip",
            folder,
            ("tools/pretrain_clip.py", *self._config(self.plan.clip_config), "--resume")
            + ("OUTPUT_DIR", _show(folder)),
            f"model_final.pth and {weights} in {folder}",
            partial(finished_training, folder, weights),
            ("data",),
        )

    def _training(self, row: Row, seed: int) -> Step:
        folder = self._run(self.output, row.name, seed)
        options = ("DATASETS.TEST", "()", "SEED", str(seed), "OUTPUT_DIR", _show(folder))
        options += self._train_set()
        if self.iterations is not None:
            options += ("SOLVER.MAX_ITER", str(self.iterations))
        return Step(
            f"train {row.name}, seed {seed}",
            folder,
            ("train_net.py", *self._config(row.config), "--resume")
            + (*self._pretrained(), *options, *self.overrides, *row.overrides),
            f"model_final.pth in {folder}",
            partial(finished_training, folder),
            self._preparations,
        )

    def _evaluation(self, row: Row, seed: int | None) -> Step:
        folder, needs = self._run(self.results, row.name, seed), self._preparations
        weights = self._clip_weights
        options = ("DATASETS.TEST", repr(self.datasets).replace(" ", ""))
        options += (*self._train_set(), "OUTPUT_DIR", _show(folder))
        if row.weights_of:
            weights = self._run(self.output, row.weights_of, seed) / "model_final.pth"
            options = ("MODEL.WEIGHTS", _show(weights), *options)
            needs += (f"train {row.weights_of}, seed {seed}",)
        return Step(
            f"evaluate {row.name}" + ("" if seed is None else f", seed {seed}"),
            folder,
            ("train_net.py", *self._config(row.config), "--eval-only")
            + (*self._pretrained(), *options, *self.overrides, *row.overrides),
            f"results.json of {', '.join(self.datasets)} in {folder}",
            partial(finished_evaluation, folder / "results.json", self.datasets, weights),
            needs,
        )

    def _train_set(self) -> tuple[str, ...]:
        """The base split's training set as options; evaluation asks it which names were seen."""
        if not self.base_split:
            return ()
        return "DATASETS.TRAIN", repr((self._dataset("base_train"),))

    def _dataset(self, subset: str) -> str:
        """The registered name of a subset in this base split."""
        return PREFIX + subset_name(subset, self.base_split)

    @property
    def _preparations(self) -> tuple[str, ...]:
        """Names of the steps that all rows need."""
        return ("data", "clip") if self.clip is None else ("data",)

    def _pretrained(self) -> tuple[str, str]:
        return "MODEL.CLIP.PRETRAINED", _show(self._clip_weights)

    @property
    def _clip_weights(self) -> Path:
        return self.clip or self.output / "clip" / self.plan.clip_weights

    @staticmethod
    def _config(path: str) -> tuple[str, str]:
        if not (ROOT / path).is_file():
            raise PlanError(f"the config file {ROOT / path} does not exist.")
        return "--config-file", path

    @staticmethod
    def _run(folder: Path, name: str, seed: int | None) -> Path:
        return folder / name / (f"seed{seed}" if seed is not None else "")


def _show(path: Path) -> str:
    """A path as commands in the project's folder name it: short where it lies in there."""
    path = path.resolve()
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)
