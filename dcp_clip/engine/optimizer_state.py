"""Load the state of an optimizer whose parameter groups have changed."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["keep_groups"]


def keep_groups(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Sort a state dict by the parameter groups of an optimizer, and give it their settings.

    Parameters with equal settings share a group, so another learning rate or weight decay can merge
    or split groups. If both sides have the names of the parameters, each parameter gets its own
    state. Checkpoints of earlier versions have no names; their groups must have the same sizes.
    Register this function with ``register_load_state_dict_pre_hook``.

    Args:
        optimizer: the optimizer that loads the state.
        state: the result of ``state_dict``.

    Returns:
        A state dict with the same states of parameters and the groups of the optimizer.

    Raises:
        ValueError: if the state belongs to other parameters, or to another update of them.
    """
    groups, saved = optimizer.param_groups, state["param_groups"]
    sizes, saved_sizes = ([len(group["params"]) for group in x] for x in (groups, saved))
    if all("param_names" in group for group in [*groups, *saved]):
        names, saved_names = ([n for g in x for n in g["param_names"]] for x in (groups, saved))
    elif sizes == saved_sizes:
        names = saved_names = list(range(sum(sizes)))
    else:
        raise ValueError(
            f"the optimizer had parameter groups of {saved_sizes} parameters and has groups of "
            f"{sizes}, and the names of the parameters are unknown"
        )
    if missing := sorted(set(names) - set(saved_names)):
        raise ValueError(
            f"it has no state of {len(missing)} parameters that are trained now, first: "
            f"{missing[0]}"
        )
    if other := sorted(set(saved_names) - set(names)):
        raise ValueError(
            f"{len(other)} parameters that it trained are not trained now, first: {other[0]}"
        )
    ids = dict(zip(saved_names, (i for group in saved for i in group["params"]), strict=True))
    is_orthogonal = {i: g.get("orthogonal", False) for g in saved for i in g["params"]}
    remaining, sorted_groups = iter(names), []
    for group in groups:
        members = [ids[next(remaining)] for _ in group["params"]]
        if any(is_orthogonal[i] != group.get("orthogonal", False) for i in members):
            raise ValueError("Muon updates other matrices than before")
        sorted_groups.append({**group, "params": members})
    return {**state, "param_groups": sorted_groups}
