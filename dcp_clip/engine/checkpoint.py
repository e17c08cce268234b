"""Checkpoints: loading weights that must fit, and reading the files of earlier versions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn

from dcp_clip.utils.shipped_files import find_weights

__all__ = [
    "Checkpointer",
    "WeightsError",
    "half_precision",
    "has_weights",
    "hook_state",
    "load_weights",
    "shipped_weights",
    "trained_weights",
    "upgrade_checkpoint",
    "warn_if_untrained",
]

logger = logging.getLogger(__name__)
# Names of earlier versions and their current names.
_RENAMED_PARAMETERS = {  # prefixes
    "refinement.judge.": "refinement.classifier.",
    "head.words.": "head.text.",  # CostAggregationSegmentor
    "head.name.": "head.embedding.",  # MaskQuerySegmentor
}
_RENAMED_HOOKS = {"CLIPShareHook": "WeightInterpolationHook"}
_RENAMED_HOOK_STATE = {"share": "alpha"}


class WeightsError(RuntimeError):
    """A file of weights does not exist, cannot be read, or belongs to another model."""


def hook_state(checkpoint: Mapping[str, Any], hook: str) -> Mapping[str, Any]:
    """Return the state of a trainer's hook in a checkpoint of ``train_net.py``.

    Args:
        checkpoint: the content of the file.
        hook: name of the hook's class.

    Returns:
        The state, or an empty dict if the checkpoint has none.
    """
    state: Any = checkpoint
    for key in ("trainer", "hooks", hook):
        state = state.get(key) if isinstance(state, Mapping) else None
    return state if isinstance(state, Mapping) else {}


def trained_weights(checkpoint: Mapping[str, Any]) -> Any:
    """Return the state dict to evaluate from a checkpoint of ``train_net.py``.

    If the training used SOLVER.EMA_DECAY, this is the moving average, which evaluations during
    training use as well. In ``model_final.pth`` the model itself holds the average; earlier
    checkpoints contain both.

    Raises:
        KeyError: if the checkpoint has no "model".
    """
    average = hook_state(checkpoint, "EMAHook").get("average")
    return checkpoint["model"] if average is None else average


def _rename_parameters(state: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {}
    for name, value in state.items():
        for old, new in _RENAMED_PARAMETERS.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        renamed[name] = value
    return renamed


def upgrade_checkpoint(checkpoint: Any) -> None:
    """Replace the names of earlier versions in a checkpoint, in place.

    Args:
        checkpoint: the content of a file; anything but a checkpoint stays as it is.
    """
    if not isinstance(checkpoint, MutableMapping):
        return
    if isinstance(checkpoint.get("model"), Mapping):
        checkpoint["model"] = _rename_parameters(checkpoint["model"])
    trainer = checkpoint.get("trainer")
    hooks = trainer.get("hooks") if isinstance(trainer, Mapping) else None
    if not isinstance(hooks, MutableMapping):
        return
    for old, new in _RENAMED_HOOKS.items():
        if old in hooks:
            state = hooks.pop(old)
            hooks[new] = {_RENAMED_HOOK_STATE.get(k, k): v for k, v in state.items()}
    ema = hook_state(checkpoint, "EMAHook")
    if "average" in ema:
        hooks["EMAHook"] = {**ema, "average": _rename_parameters(ema["average"])}


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also reads the checkpoints of earlier versions."""

    def _load_file(self, filename: str) -> Any:
        checkpoint = super()._load_file(filename)
        upgrade_checkpoint(checkpoint)
        return checkpoint


class _StrictCheckpointer(Checkpointer):
    """Raises an error for weights that do not fit; Detectron2 logs them and continues.

    If the training averaged its weights, this loads the average.
    """

    def _load_file(self, filename: str) -> Any:
        checkpoint = super()._load_file(filename)
        if isinstance(checkpoint, Mapping) and "model" in checkpoint:
            checkpoint = {**checkpoint, "model": trained_weights(checkpoint)}
        return checkpoint

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        problems = []
        if incompatible.missing_keys:
            problems.append(
                f"it lacks {len(incompatible.missing_keys)} parameters of the model "
                f"(first: {incompatible.missing_keys[0]})"
            )
        if incompatible.unexpected_keys:
            problems.append(
                f"the model lacks {len(incompatible.unexpected_keys)} of its parameters "
                f"(first: {incompatible.unexpected_keys[0]})"
            )
        if incompatible.incorrect_shapes:
            name, found, expected = incompatible.incorrect_shapes[0]
            problems.append(
                f"{name} has shape {tuple(found)}, in the model it has {tuple(expected)}"
            )
        if problems:
            raise WeightsError("; ".join(problems))


def has_weights(cfg: CfgNode) -> bool:
    """Return whether a config names any weights, of the model or of CLIP."""
    return bool(cfg.MODEL.WEIGHTS or cfg.MODEL.CLIP.PRETRAINED)


def shipped_weights(config_file: str, opts: Sequence[str]) -> Path | None:
    """Return the trained weights that this repository contains for a config.

    Args:
        config_file: path of a config; "" for none.
        opts: KEY VALUE overrides.

    Returns:
        The file; None if there is none, or if `opts` set MODEL.WEIGHTS or MODEL.CLIP.PRETRAINED.
    """
    if not config_file or {"MODEL.WEIGHTS", "MODEL.CLIP.PRETRAINED"} & set(opts[::2]):
        return None
    return find_weights(config_file)


def warn_if_untrained(model: nn.Module, weights: str) -> None:
    """Log a warning if a model has trainable parameters but no weights were loaded for them.

    Args:
        model: the model as built; its trainable parameters require gradients.
        weights: where its weights come from; "" for nowhere.
    """
    if not weights and any(parameter.requires_grad for parameter in model.parameters()):
        logger.warning(
            "MODEL.WEIGHTS is empty, so the trainable parameters of this model have random values."
        )


def load_weights(model: nn.Module, path: str) -> None:
    """Load ``MODEL.WEIGHTS`` into a model. Unlike in Detectron2, all weights must fit.

    Detectron2 logs missing and misshapen weights and continues with random ones, and the
    segmentation of a model with random weights looks like a result.

    Args:
        model: a model, possibly wrapped for distributed training.
        path: file in the format of Detectron2's checkpointer; "" does nothing.

    Raises:
        WeightsError: the message names the file and the first parameters that do not fit.
    """
    if not path:
        return
    checkpointer = _StrictCheckpointer(model)
    try:
        local = checkpointer.path_manager.get_local_path(path)
    except Exception as error:  # each kind of address raises errors of its own
        raise WeightsError(
            f"'{path}' (MODEL.WEIGHTS) cannot be fetched: {_first_line(error)}"
        ) from error
    if not Path(local).is_file():
        raise WeightsError(f"MODEL.WEIGHTS is '{path}', but this file does not exist.")
    if path.endswith(".pkl"):
        raise WeightsError(
            f"'{path}' (MODEL.WEIGHTS) is a pickle, which can run code when it is read. Give a "
            ".pth file."
        )
    try:
        checkpointer.load(path)
    except WeightsError as error:
        raise WeightsError(
            f"The weights in '{path}' (MODEL.WEIGHTS) belong to another model than the config "
            f"describes: {error}. Use the config that they were trained with."
        ) from None
    except Exception as error:  # a file that is not a checkpoint can raise many errors
        raise WeightsError(
            f"'{path}' (MODEL.WEIGHTS) is not a readable checkpoint: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict for release: matrices and kernels become float16.

    Vectors (norms, biases, statistics) keep their precision. Loading converts back to float32.
    """
    return {
        name: (value.half() if value.is_floating_point() and value.dim() >= 2 else value)
        .contiguous()
        .clone()
        for name, value in state.items()
    }
