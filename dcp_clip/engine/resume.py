"""Save and restore data order and random state, so resumed and uninterrupted runs are equal."""

from __future__ import annotations

import logging
import random

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from dcp_clip.data.train_loader import ResumableLoader, redistribute

__all__ = ["ResumeHook"]

logger = logging.getLogger(__name__)


class ResumeHook(HookBase):
    """Adds to each checkpoint the state of the data loader and of the random number generators.

    The generators are those of Python, NumPy and PyTorch. Only the main process writes checkpoints,
    so it gathers the states of all processes before each checkpoint. Register this hook before the
    checkpointer.
    """

    def __init__(self, loader: ResumableLoader | None, period: int):
        """
        Args:
            loader: the training loader; None if it has no state.
            period: SOLVER.CHECKPOINT_PERIOD.
        """
        self._loader, self._period = loader, period
        self._states: list[dict] = []
        self.has_loaded = False
        self._random_state: dict | None = None

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if iteration % self._period == 0 or iteration >= self.trainer.max_iter:
            self._states = comm.gather(self._state())

    def before_train(self) -> None:
        if self._random_state is not None:
            _set_random_state(self._random_state)
            self._random_state = None

    def state_dict(self) -> dict:
        return {"processes": self._states} if self._states else {}

    def load_state_dict(self, state: dict) -> None:
        """
        Args:
            state: the result of :meth:`state_dict`, from any number of processes. With another
                number, the order of the images changes, but the seeds are those of the first
                process, so no image of the epoch is repeated or missed.
        """
        self.has_loaded = True
        self._states = processes = state["processes"]  # for a checkpoint before the first step
        if len(processes) != comm.get_world_size():
            logger.warning(
                "The checkpoint is from a training with %d processes, but this one has %d: the "
                "order of the images differs from a training without an interruption.",
                len(processes),
                comm.get_world_size(),
            )
            if self._loader is not None:
                loaders = [process["loader"] for process in processes]
                self._loader.load_state_dict(
                    redistribute(loaders, comm.get_rank(), comm.get_world_size())
                )
            return
        own = processes[comm.get_rank()]
        self._random_state = own["random"]
        if self._loader is not None:
            self._loader.load_state_dict(own["loader"])

    def _state(self) -> dict:
        loader = self._loader.state_dict() if self._loader is not None else {}
        return {"loader": loader, "random": _random_state()}


def _random_state() -> dict:
    """Return the states of the generators as tensors and plain Python objects."""
    name, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict) -> None:
    name, keys, *rest = state["numpy"]
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
