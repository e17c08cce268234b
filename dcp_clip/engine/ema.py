"""Exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["EMAHook"]


class EMAHook(HookBase):
    """Keeps an exponential moving average of the weights.

    Evaluations during training use the average. After the last iteration the average replaces the
    weights of the model, so ``model_final.pth`` and the final evaluation use the same weights. Each
    checkpoint contains the average, so resumed training continues with it. Register this hook
    before the checkpointer and the evaluation.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: the model without its distributed wrapper.
            decay: decay per iteration; the first iterations use a smaller one.
        """
        self._model = model
        self._decay = decay
        self._average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False
        )

    @property
    def average(self) -> nn.Module:
        """The model with the averaged weights."""
        return self._average.module

    def before_train(self) -> None:
        # Weights were loaded after the average was made. Without an iteration they are the average.
        if not self._average.n_averaged:
            self.average.load_state_dict(self._model.state_dict())

    def after_step(self) -> None:
        step = self.trainer.iter + 1
        # The decay is smaller at first, so the random initial weights disappear from the average.
        decay = min(self._decay, (1 + step) / (10 + step))
        self._average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        # The buffers are copied: batch norm statistics are already averages.
        self._average.update_parameters(self._model)
        if step >= self.trainer.max_iter:
            self.finish()

    def finish(self) -> None:
        """Replace the weights of the model by the average, if there is one."""
        if self._average.n_averaged:
            self._copy(self.average, self._model)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context, the model has the averaged weights."""
        backup = [p.detach().clone() for p in self._model.parameters()]
        self._copy(self.average, self._model)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._model.parameters(), backup, strict=True):
                    parameter.copy_(value)

    @staticmethod
    @torch.no_grad()
    def _copy(source: nn.Module, target: nn.Module) -> None:
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            b.copy_(a)

    def state_dict(self) -> dict:
        return {
            "average": self.average.state_dict(),
            "n_averaged": self._average.n_averaged.clone(),
        }

    def load_state_dict(self, state: dict) -> None:
        self.average.load_state_dict(state["average"])
        self._average.n_averaged.copy_(state["n_averaged"])
