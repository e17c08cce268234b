"""The optimizer, and the table of what trains."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from tabulate import tabulate
from torch import nn

from dcp_clip.engine.muon import Muon, hidden_matrices

__all__ = ["build_optimizer", "learning_rates_by_part", "part_of", "trainable_table"]

logger = logging.getLogger(__name__)

_OPTIMIZERS = ("ADAMW", "MUON", "SGD")


def learning_rates_by_part(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """The highest learning rate of each part of the model, from SOLVER.BASE_LR, LR_FACTOR_* and,
    for the matrices that Muon steps, MUON_LR_MULTIPLIER."""
    muon = cfg.SOLVER.OPTIMIZER == "MUON"
    matrices = hidden_matrices(model) if muon else set()
    rates: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        rate = cfg.SOLVER.BASE_LR * _rate_factor(cfg, part)
        if parameter.requires_grad and parameter in matrices:
            rate *= cfg.SOLVER.MUON_LR_MULTIPLIER
        rates[part] = max(rate, rates.get(part, 0.0))
    return rates


def _rate_factor(cfg: CfgNode, part: str) -> float:
    factors = {
        "backbone": cfg.SOLVER.IMAGE_LR_MULTIPLIER,
        "text_encoder": cfg.SOLVER.TEXT_LR_MULTIPLIER,
    }
    return factors.get(part, 1.0)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with learning rates by part, after logging the table of what trains.

    With SOLVER.OPTIMIZER "MUON" the matrices between features take orthogonal steps instead, at
    MUON_LR_MULTIPLIER times the rate of their part.

    Reads SOLVER.{OPTIMIZER, MUON_LR_MULTIPLIER, BASE_LR, WEIGHT_DECAY, WEIGHT_DECAY_NORM,
    WEIGHT_DECAY_BIAS, IMAGE_LR_MULTIPLIER, TEXT_LR_MULTIPLIER, CLIP_GRADIENTS}; CLIP_TYPE may also be
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
    logger.info("What trains:\n%s", trainable_table(model, learning_rates_by_part(cfg, model)))
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
            params = _orthogonal_apart(params, model, cfg.SOLVER.MUON_LR_MULTIPLIER)
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


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: the first component of its name."""
    return name.split(".", 1)[0]


def trainable_table(model: nn.Module, learning_rates: dict[str, float] | None = None) -> str:
    """A table of the parts of a model: parameters, how many of them train, and learning rates.

    Args:
        model: the whole model.
        learning_rates: learning rate of each part, optional.
    """
    parts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        counts = parts.setdefault(part_of(name), [0, 0])
        counts[0] += parameter.numel()
        counts[1] += parameter.numel() * parameter.requires_grad
    parts["total"] = [sum(c[0] for c in parts.values()), sum(c[1] for c in parts.values())]
    table = []
    for part, (total, trained) in parts.items():
        rate = (learning_rates or {}).get(part)
        shown = "" if rate is None or not trained else f"{rate:g}"
        table.append([part, f"{total:,}", f"{trained:,}", shown])
    headers = ["part", "parameters", "trained", "lr"]
    return tabulate(table, headers, tablefmt="github", colalign=("left", "right", "right", "right"))
