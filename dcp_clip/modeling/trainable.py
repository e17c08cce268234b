"""What trains is decided here, and nowhere else."""

from __future__ import annotations

import re

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

__all__ = ["POLICIES", "apply_freeze_policy", "apply_tower_policy", "part_of", "trainable_table"]

# Patterns over the parameter names inside a tower; a parameter trains if one of them is found in
# it.
POLICIES = {
    "none": (),
    "all": ("",),
    # Queries, keys, values and positions. CAT-Seg found that tuning the attention of a CLIP ViT
    # (there queries and values) keeps its open vocabulary best.
    "attention": (r"attn\.in_proj", r"positional_embedding"),
    # The part of a tower that is closest to the joint embedding space.
    "late": (
        r"stages\.3\.",
        r"trunk\.head",
        r"^visual\.head",
        r"resblocks\.(8|9|1\d|2\d)\.",
        r"proj$",
    ),
}


def apply_freeze_policy(cfg: CfgNode, backbone: nn.Module, text_encoder: nn.Module) -> None:
    """Set ``requires_grad`` in CLIP's two towers as MODEL.CLIP.TRAIN_IMAGE and TRAIN_TEXT say.

    Raises:
        ValueError: for an unknown policy, or one that matches no parameter of the tower.
    """
    apply_tower_policy(cfg, "TRAIN_IMAGE", backbone)
    apply_tower_policy(cfg, "TRAIN_TEXT", text_encoder)


def apply_tower_policy(cfg: CfgNode, key: str, tower: nn.Module) -> None:
    """Set ``requires_grad`` in one tower as MODEL.CLIP.<key> says.

    Raises:
        ValueError: for an unknown policy, or one that matches no parameter of the tower.
    """
    policy = cfg.MODEL.CLIP[key]
    if policy not in POLICIES:
        raise ValueError(f"MODEL.CLIP.{key} is '{policy}'; known are {', '.join(POLICIES)}.")
    matched = False
    for name, parameter in tower.named_parameters():
        wanted = any(re.search(pattern, name) for pattern in POLICIES[policy])
        parameter.requires_grad_(wanted)
        matched |= wanted
    if policy != "none" and not matched:
        raise ValueError(
            f"MODEL.CLIP.{key} is '{policy}', which matches no parameter of "
            f"{cfg.MODEL.CLIP.NAME}; use 'none' or 'all'."
        )


def part_of(name: str) -> str:
    """The part of the model that a parameter name belongs to: its first component."""
    return name.split(".", 1)[0]


def trainable_table(model: nn.Module, lr_of: dict[str, float] | None = None) -> str:
    """A table of parts: parameters, how many of them train, and their learning rate.

    Args:
        model: the whole model.
        lr_of: learning rate by part, optional.
    """
    rows: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = rows.setdefault(part_of(name), [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() * parameter.requires_grad
    rows["total"] = [sum(r[0] for r in rows.values()), sum(r[1] for r in rows.values())]
    table = []
    for part, (total, trained) in rows.items():
        lr = (lr_of or {}).get(part)
        table.append(
            [part, f"{total:,}", f"{trained:,}", "" if lr is None or not trained else f"{lr:g}"]
        )
    headers = ["part", "parameters", "trained", "lr"]
    return tabulate(table, headers, tablefmt="github", colalign=("left", "right", "right", "right"))
