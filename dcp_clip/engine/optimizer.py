"""Build the optimizer, and show which parameters are trained."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from tabulate import tabulate
from torch import nn

from dcp_clip.engine.muon import Muon, hidden_matrices
from dcp_clip.modeling import CLIPBackbone

__all__ = ["build_optimizer", "learning_rates_by_part", "part_of", "trainable_table"]

logger = logging.getLogger(__name__)

_OPTIMIZERS = ("ADAMW", "MUON", "SGD")


def part_of(name: str) -> str:
    """Return the part of the model that a parameter belongs to: the first component of its name."""
    return name.split(".", 1)[0]


def _lr_multipliers(cfg: CfgNode, model: nn.Module) -> Callable[[str], float]:
    """Return a function from the name of a parameter to its rate relative to SOLVER.BASE_LR.

    The backbone of a baseline also has new layers on top of CLIP's image tower.
    """
    towers = [n for n, module in model.named_modules() if isinstance(module, CLIPBackbone)]
    image = tuple(f"{name}." for name in towers or ["backbone"])

    def multiplier(name: str) -> float:
        if name.startswith(image):
            return cfg.SOLVER.IMAGE_LR_MULTIPLIER
        return cfg.SOLVER.TEXT_LR_MULTIPLIER if part_of(name) == "text_encoder" else 1.0

    return multiplier


def learning_rates_by_part(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """Return the highest learning rate within each part of the model.

    Reads SOLVER.{BASE_LR, IMAGE_LR_MULTIPLIER, TEXT_LR_MULTIPLIER} and, for the matrices that Muon
    updates, SOLVER.MUON_LR_MULTIPLIER.
    """
    matrices = hidden_matrices(model) if cfg.SOLVER.OPTIMIZER == "MUON" else set()
    multiplier, rates = _lr_multipliers(cfg, model), {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        rate = cfg.SOLVER.BASE_LR * multiplier(name)
        if parameter.requires_grad and parameter in matrices:
            rate *= cfg.SOLVER.MUON_LR_MULTIPLIER
        rates[part] = max(rate, rates.get(part, 0.0))
    return rates


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer, and log a table of the trainable parameters.

    Reads SOLVER.{OPTIMIZER, BASE_LR, IMAGE_LR_MULTIPLIER, TEXT_LR_MULTIPLIER, MUON_LR_MULTIPLIER,
    MOMENTUM, NESTEROV, WEIGHT_DECAY, WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, CLIP_GRADIENTS}.
    CLIP_GRADIENTS.CLIP_TYPE may also be "full_model". WEIGHT_DECAY_NORM also applies to scales,
    gates, position embeddings and class embeddings. The parameter groups contain the names of their
    parameters, so that a checkpoint can be resumed with other groups.

    Raises:
        ValueError: if SOLVER.OPTIMIZER is unknown, SOLVER.BIAS_LR_FACTOR is not 1, or the model has
            no trainable parameters.
    """
    if cfg.SOLVER.OPTIMIZER not in _OPTIMIZERS:
        raise ValueError(
            f"SOLVER.OPTIMIZER is '{cfg.SOLVER.OPTIMIZER}'; it must be one of "
            f"{', '.join(_OPTIMIZERS)}."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            "This model has no trainable parameters, because MODEL.CLIP.TRAIN_* are 'none' and no "
            "stage has parameters: evaluate it with --eval-only."
        )
    if cfg.SOLVER.BIAS_LR_FACTOR != 1:
        raise ValueError(
            f"SOLVER.BIAS_LR_FACTOR is {cfg.SOLVER.BIAS_LR_FACTOR}, but DCP-CLIP has no separate "
            "learning rate for biases: set it to 1."
        )
    lr = cfg.SOLVER.BASE_LR
    table = trainable_table(model, learning_rates_by_part(cfg, model))
    logger.info("Trainable parameters:\n%s", table)
    params = get_default_optimizer_params(
        model,
        base_lr=lr,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=_lr_multipliers(cfg, model),
        overrides=_decay_overrides(cfg, model),
    )
    if cfg.SOLVER.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD
        options = {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
    else:
        # The fused kernel is faster. Under AMP, however, it unscales the gradients only after they
        # are clipped.
        optimizer, options = torch.optim.AdamW, {"fused": not cfg.SOLVER.AMP.ENABLED}
        if cfg.SOLVER.OPTIMIZER == "MUON":
            optimizer = Muon
            params = _split_matrices(params, model, cfg.SOLVER.MUON_LR_MULTIPLIER)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        optimizer = _clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    params = [{**group, "params": [(names[p], p) for p in group["params"]]} for group in params]
    return optimizer(params, lr=lr, **options)


def _split_matrices(params: list[dict], model: nn.Module, lr_multiplier: float) -> list[dict]:
    """Split each parameter group into matrices for :class:`Muon` and other parameters."""
    matrices, groups = hidden_matrices(model), []
    for group in params:
        muon_options = {"lr": group["lr"] * lr_multiplier, "orthogonal": True}
        for is_matrix, options in ((True, muon_options), (False, {})):
            members = [p for p in group["params"] if (p in matrices) == is_matrix]
            if members:
                groups.append({**group, "params": members, **options})
    return groups


def _decay_overrides(cfg: CfgNode, model: nn.Module) -> dict[str, dict[str, float]]:
    """Return the weight decay of norms and biases that Detectron2 does not recognise as such.

    Returns:
        A dict from the last component of a parameter's name to ``{"weight_decay": value}``.
    """
    overrides = {}
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("weight", "bias"):  # Detectron2 recognises them by module and name
            continue
        if leaf.endswith("_bias"):  # of the projections of attention
            decay = cfg.SOLVER.WEIGHT_DECAY_BIAS
        elif parameter.squeeze().ndim < 2 or leaf.endswith(("_embedding", "_embed")):
            decay = cfg.SOLVER.WEIGHT_DECAY_NORM
        else:
            continue
        if decay is not None:
            overrides[leaf] = {"weight_decay": decay}
    return overrides


def _clip_full_model(
    optimizer: type[torch.optim.Optimizer], max_norm: float, norm_type: float
) -> type[torch.optim.Optimizer]:
    """Return an optimizer class that clips the norm of the whole model's gradient before a step.

    Detectron2's "norm" clips each parameter separately, so the gradient changes its direction.
    """

    class FullModelClipping(optimizer):
        def step(self, closure=None):
            parameters = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
            return super().step(closure)

    FullModelClipping.__name__ = f"{optimizer.__name__}WithFullModelClipping"
    return FullModelClipping


def trainable_table(model: nn.Module, learning_rates: dict[str, float] | None = None) -> str:
    """Return a table of the parts of a model, their parameters and their learning rates.

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
