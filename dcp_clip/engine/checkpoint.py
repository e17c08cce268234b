"""Loading weights that must fit, and the form in which they are passed on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn

__all__ = [
    "Checkpointer",
    "WeightsError",
    "half_precision",
    "hook_state",
    "load_weights",
    "has_weights",
    "shipped_weights",
    "trained_weights",
    "warn_if_untrained",
]

logger = logging.getLogger(__name__)
_ROOT = Path(__file__).resolve().parents[2]
# Each file of weights in the repository belongs to one config, and is used with no other.
_SHIPPED = {
    _ROOT / "configs" / data / "dcp_clip_tiny.yaml": _ROOT / "dcp_clip/weights" / f"{data}_tiny.pth"
    for data in ("camvid", "emoji_scenes")
}


# Beginnings of parameter names in earlier versions, and today's.
_RENAMED_PARAMETERS = {"refinement.judge.": "refinement.classifier."}


class WeightsError(RuntimeError):
    """A file of weights is absent, unreadable, or belongs to another model."""


def trained_weights(checkpoint: Mapping[str, Any]) -> Any:
    """The state dict that a checkpoint of ``train_net.py`` is evaluated by.

    With SOLVER.EMA_DECAY it is the average, which training evaluates too. In ``model_final.pth``
    that is the model itself; the checkpoints before it hold both.

    Raises:
        KeyError: when there is no "model".
    """
    average = hook_state(checkpoint, "EMAHook").get("average")
    return checkpoint["model"] if average is None else average


def hook_state(checkpoint: Mapping[str, Any], hook: str) -> Mapping[str, Any]:
    """What a hook of the trainer left in a checkpoint of ``train_net.py``; empty for nothing."""
    state: Any = checkpoint
    for key in ("trainer", "hooks", hook):
        state = state.get(key) if isinstance(state, Mapping) else None
    return state if isinstance(state, Mapping) else {}


def _rename_parameters(state: Mapping[str, Any]) -> dict[str, Any]:
    """Give the parameters of an earlier version their names of today."""
    renamed = {}
    for name, value in state.items():
        for old, new in _RENAMED_PARAMETERS.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        renamed[name] = value
    return renamed


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also reads the checkpoints of earlier versions."""

    def _load_file(self, filename: str) -> Any:
        checkpoint = super()._load_file(filename)
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("model"), Mapping):
            checkpoint["model"] = _rename_parameters(checkpoint["model"])
            ema = hook_state(checkpoint, "EMAHook")
            if "average" in ema:
                ema["average"] = _rename_parameters(ema["average"])
        return checkpoint


class _StrictCheckpointer(Checkpointer):
    """Raises an error for weights that do not fit, where Detectron2 logs them and continues.

    If the training averaged its weights, the average is loaded.
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
                f"{len(incompatible.missing_keys)} parameters are missing from it "
                f"(first: {incompatible.missing_keys[0]})"
            )
        if incompatible.unexpected_keys:
            problems.append(
                f"{len(incompatible.unexpected_keys)} are not in the model "
                f"(first: {incompatible.unexpected_keys[0]})"
            )
        if incompatible.incorrect_shapes:
            name, found, wanted = incompatible.incorrect_shapes[0]
            problems.append(f"{name} has shape {tuple(found)}, the model's has {tuple(wanted)}")
        if problems:
            raise WeightsError("; ".join(problems))


def has_weights(cfg: CfgNode) -> bool:
    """Whether a config names weights at all, of the model or of CLIP: without, all is random."""
    return bool(cfg.MODEL.WEIGHTS or cfg.MODEL.CLIP.PRETRAINED)


def shipped_weights(config_file: str, opts: Sequence[str]) -> Path | None:
    """The trained weights that the repository has for a config.

    Args:
        config_file: path of a config, "" for none.
        opts: KEY VALUE overrides; who names weights there, of the model or of CLIP, wants those.

    Returns:
        The file, or None where the repository has none or `opts` names others.
    """
    if not config_file or {"MODEL.WEIGHTS", "MODEL.CLIP.PRETRAINED"} & set(opts[::2]):
        return None
    return _SHIPPED.get(Path(config_file).resolve())


def warn_if_untrained(model: nn.Module, weights: str) -> None:
    """Warn of a model that learns, and whose own weights nobody named: CLIP's alone do not show it.

    Args:
        model: as it was built; what it trains requires gradients.
        weights: where its weights come from, "" for nowhere.
    """
    if not weights and any(parameter.requires_grad for parameter in model.parameters()):
        logger.warning(
            "MODEL.WEIGHTS is empty: what this config trains is used as it is before training."
        )


def load_weights(model: nn.Module, path: str) -> None:
    """Load ``MODEL.WEIGHTS`` into `model`; whatever does not fit is an error.

    Detectron2 logs missing and misshapen weights and goes on with random ones; a segmentation of
    random weights looks like a result.

    Args:
        model: a model, possibly wrapped for distributed training.
        path: file in the format of Detectron2's checkpointer; "" does nothing.

    Raises:
        WeightsError: naming the file and the first parameters that do not fit.
    """
    if not path:
        return
    checkpointer = _StrictCheckpointer(model)
    try:
        local = checkpointer.path_manager.get_local_path(path)
    except Exception as error:  # each kind of address fails in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"'{path}' (MODEL.WEIGHTS) cannot be fetched: {reason}") from error
    if not Path(local).is_file():
        raise WeightsError(
            f"MODEL.WEIGHTS names '{path}', which does not exist; give a checkpoint's path."
        )
    if path.endswith(".pkl"):
        raise WeightsError(
            f"'{path}' (MODEL.WEIGHTS) is a pickle, which could run code when read; give a .pth."
        )
    try:
        checkpointer.load(path)
    except WeightsError as error:
        raise WeightsError(
            f"The weights in '{path}' (MODEL.WEIGHTS) belong to another model than the config "
            f"describes: {error}. Use the config they were trained with."
        ) from None
    except Exception as error:  # what is no checkpoint fails in many ways
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"'{path}' (MODEL.WEIGHTS) is no readable checkpoint: {detail}"
        ) from error


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict to be passed on: matrices and kernels as float16, vectors (norms, biases,
    statistics) as they are. Loading converts back."""
    return {
        name: (value.half() if value.is_floating_point() and value.dim() >= 2 else value)
        .contiguous()
        .clone()
        for name, value in state.items()
    }
