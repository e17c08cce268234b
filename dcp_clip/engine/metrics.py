"""Metrics of a training: metrics.json of a resumed training equals that of an uninterrupted one."""

from __future__ import annotations

import json
import os
from pathlib import Path

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter

__all__ = ["MetricsHook"]

# They would make a line of an iteration before the checkpoint.
_TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")
_WINDOW = 20  # iterations of which the writers show the median


class MetricsHook(HookBase):
    """Keeps recent metrics in each checkpoint, and continues metrics.json where it belongs.

    The file contains medians over the last iterations, so a resumed training needs the values
    before the checkpoint. Lines of iterations after the checkpoint are removed, because the resumed
    training repeats these iterations. A checkpoint is written before the evaluation and the metrics
    of its iteration. If the training was killed between them, they are made up for.

    Times and speeds of resumed trainings differ. Register this hook after the writers.
    """

    def __init__(
        self, folder: str, evaluation: hooks.EvalHook, writer: hooks.PeriodicWriter | None
    ):
        """
        Args:
            folder: OUTPUT_DIR.
            evaluation: the hook that evaluates.
            writer: the hook that writes metrics; None in other processes than the main one.
        """
        self._path = Path(folder) / "metrics.json"
        self._evaluation, self._writer = evaluation, writer
        self._recent: dict[str, list] = {}

    def state_dict(self) -> dict:
        """Name to smoothing hint and pairs (value, iteration), of what a line can still need."""
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # the training has not started
            return {"recent": self._recent}
        recent = {}
        for name, hint in storage.smoothing_hints().items():
            if name in _TIMES:
                continue
            pairs = [list(pair) for pair in storage.history(name).values()[-_WINDOW:]]
            # Metrics that are not smoothed are written in the iteration that they come from.
            if hint or pairs[-1][1] == storage.iter:
                recent[name] = [hint, pairs if hint else pairs[-1:]]
        return {"recent": recent}

    def load_state_dict(self, state: dict) -> None:
        self._recent = state["recent"]

    def before_train(self) -> None:
        trainer = self.trainer
        for name, (hint, pairs) in self._recent.items():
            for value, iteration in pairs:
                trainer.storage.put_scalar(name, value, hint, iteration)
        is_complete = True
        # A trainer with other writers may have none for this file.
        if self._writer is not None and self._path.exists():
            last = self._remove_repeated_lines()
            is_complete = last >= trainer.start_iter - 1
            for writer in self._writer._writers:
                if isinstance(writer, JSONWriter):
                    writer._last_write = min(last, trainer.start_iter - 1)
        is_complete = comm.all_gather(is_complete)[0]
        if self._recent:
            trainer.iter = trainer.storage.iter = trainer.start_iter - 1
            if not is_complete:
                self._evaluation.after_step()
                if self._writer is not None:
                    self._writer.after_step()
                    self.after_step()

    def after_step(self) -> None:
        # A line for each evaluation; otherwise a later line would contain its result.
        step, period = self.trainer.iter + 1, self._evaluation._period
        if self._writer is None or period <= 0 or step % period:
            return
        if step % self._writer._period and step < self.trainer.max_iter:
            for writer in self._writer._writers:
                writer.write()

    def _remove_repeated_lines(self) -> int:
        """Remove lines of iterations that come again; return the iteration of the last line."""
        end, last = 0, -1
        with self._path.open("rb") as file:
            for line in file:
                if not self._is_kept(line):
                    break
                end, last = end + len(line), json.loads(line)["iteration"]
        if end < self._path.stat().st_size:
            os.truncate(self._path, end)
        return last

    def _is_kept(self, line: bytes) -> bool:
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            return False
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            return False
        iteration, start = record["iteration"], self.trainer.start_iter
        # The final evaluation of a shorter training has the number of the next iteration.
        is_final = iteration == start < self.trainer.max_iter and "total_loss" not in record
        return iteration < start or is_final
