"""Optimiser and weight averaging."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..modeling.trainable import part_of, trainable_table
from .muon import Muon, hidden_matrices

__all__ = ["EMAHook", "build_optimizer", "rates_by_part"]

logger = logging.getLogger(__name__)

_OPTIMIZERS = ("ADAMW", "MUON", "SGD")


def rates_by_part(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """The highest learning rate of each part of the model, from SOLVER.BASE_LR, LR_FACTOR_* and,
    for the matrices that Muon steps, MUON_LR_FACTOR."""
    muon = cfg.SOLVER.OPTIMIZER == "MUON"
    matrices = hidden_matrices(model) if muon else set()
    rates: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        rate = cfg.SOLVER.BASE_LR * _rate_factor(cfg, part)
        if parameter.requires_grad and parameter in matrices:
            rate *= cfg.SOLVER.MUON_LR_FACTOR
        rates[part] = max(rate, rates.get(part, 0.0))
    return rates


def _rate_factor(cfg: CfgNode, part: str) -> float:
    factors = {
        "backbone": cfg.SOLVER.LR_FACTOR_IMAGE,
        "text_encoder": cfg.SOLVER.LR_FACTOR_TEXT,
    }
    return factors.get(part, 1.0)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with learning rates by part, after logging the table of what trains.

    With SOLVER.OPTIMIZER "MUON" the matrices between features take orthogonal steps instead, at
    MUON_LR_FACTOR times the rate of their part.

    Reads SOLVER.{OPTIMIZER, MUON_LR_FACTOR, BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM,
    WEIGHT_DECAY_BIAS, LR_FACTOR_IMAGE, LR_FACTOR_TEXT, CLIP_GRADIENTS}; CLIP_TYPE may also be
    "full_model". What decay would pull away from a meaning (factors, gates, layer scales, position
    and class embeddings) decays as norms do.

    Raises:
        ValueError: for an unknown SOLVER.OPTIMIZER, a BIAS_LR_FACTOR, or when nothing trains.
    """
    if cfg.SOLVER.OPTIMIZER not in _OPTIMIZERS:
        raise ValueError(
            f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; known are {', '.join(_OPTIMIZERS)}."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "nothing in this model trains (MODEL.CLIP.TRAIN_* are 'none' and no stage has "
            "parameters); evaluate it with --eval-only."
        )
    if cfg.SOLVER.BIAS_LR_FACTOR != 1:
        raise ValueError(
            f"SOLVER.BIAS_LR_FACTOR is {cfg.SOLVER.BIAS_LR_FACTOR}, but biases learn at the rate "
            "of their part here: set it to 1."
        )
    lr = cfg.SOLVER.BASE_LR
    logger.info("What trains:\n%s", trainable_table(model, rates_by_part(cfg, model)))
    params = get_default_optimizer_params(
        model,
        base_lr=lr,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: _rate_factor(cfg, part_of(name)),
        overrides=_decay_overrides(cfg, model),
    )
    if cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD
        options = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
    else:
        # One pass over all parameters, where that does not put the loss scaling of AMP after the
        # clipping.
        optimizer, options = torch.optim.AdamW, {"fused": not cfg.SOLVER.AMP.ENABLED}
        if cfg.SOLVER.OPTIMIZER == "MUON":
            optimizer = Muon
            params = _orthogonal_apart(params, model, cfg.SOLVER.MUON_LR_FACTOR)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        optimizer = _clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    return optimizer(params, lr=lr, **options)


def _orthogonal_apart(params: list[dict], model: nn.Module, lr_factor: float) -> list[dict]:
    """Groups of parameters, each split into matrices for :class:`Muon` and the rest."""
    matrices, result = hidden_matrices(model), []
    for group in params:
        rate = {"lr": group["lr"] * lr_factor, "orthogonal": True}
        for chosen, options in ((True, rate), (False, {})):
            members = [p for p in group["params"] if (p in matrices) == chosen]
            if members:
                result.append({**group, "params": members, **options})
    return result


def _decay_overrides(cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, float]]:
    """Weight decay by the last component of a parameter's name, where the module does not tell."""
    result = {}
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("weight", "bias"):  # told by their module, and by WEIGHT_DECAY_BIAS
            continue
        if leaf.endswith("_bias"):  # of attention's projections
            decay = cfg.SOLVER.WEIGHT_DECAY_BIAS
        elif parameter.ndim < 2 or leaf.endswith("_embedding"):
            decay = cfg.SOLVER.WEIGHT_DECAY_NORM
        else:
            continue
        if decay is not None:
            result[leaf] = {"weight_decay": decay}
    return result


def _clip_full_model(
    optimizer: type[torch.optim.Optimizer], max_norm: float, norm_type: float
) -> type[torch.optim.Optimizer]:
    """An optimiser class that first clips the norm of the whole model's gradient.

    Detectron2's "norm" clips each parameter by itself, which changes the gradient's direction.
    """

    class FullModelClipping(optimizer):
        def step(self, closure=None):
            parameters = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
            return super().step(closure)

    FullModelClipping.__name__ = f"{optimizer.__name__}WithFullModelClipping"
    return FullModelClipping


class EMAHook(HookBase):
    """Exponential moving average of the weights and buffers.

    The average is evaluated during training, and becomes the model at the last iteration, so that
    ``model_final.pth`` and the final evaluation are of the same weights. It is kept in the
    checkpoints, so a resumed training goes on with it. Register it before the checkpointer and the
    evaluation.
    """

    def __init__(self, model: nn.Module, decay: float):
        """
        Args:
            model: without its distributed wrapper.
            decay: of the average, an iteration; in its first iterations the average follows faster.
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

    def after_step(self) -> None:
        step = self.trainer.iter + 1
        # An average over the whole short past first: a fixed decay would keep the random start
        # alive.
        decay = min(self._decay, (1 + step) / (10 + step))
        self._average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self._average.update_parameters(self._model)
        # Statistics of batch norm are averages already.
        for mean, now in zip(self._average.module.buffers(), self._model.buffers(), strict=True):
            mean.copy_(now)
        if step >= self.trainer.max_iter:
            self._copy(self._average.module, self._model)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the model holds the averaged weights."""
        backup = [p.detach().clone() for p in self._model.parameters()]
        self._copy(self._average.module, self._model)
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
            "average": self._average.module.state_dict(),
            "n_averaged": self._average.n_averaged.clone(),
        }

    def load_state_dict(self, state: dict) -> None:
        self._average.module.load_state_dict(state["average"])
        self._average.n_averaged.copy_(state["n_averaged"])
