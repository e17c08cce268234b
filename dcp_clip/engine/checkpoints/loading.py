"""Find the weights that a config names, and load them into a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from dcp_clip.engine.checkpoints.calibration import read_temperature
from dcp_clip.engine.checkpoints.file_format import trained_weights
from dcp_clip.engine.checkpoints.safe_checkpointer import SafeCheckpointer, WeightsError
from dcp_clip.utils.shipped_files import find_file, find_weights

__all__ = [
    "SafeCheckpointer",
    "WeightsError",
    "has_weights",
    "load_model",
    "last_checkpoint",
    "load_weights",
    "shipped_weights",
    "warn_if_untrained",
]

logger = logging.getLogger(__name__)


class _WeightsReader(SafeCheckpointer):
    """Loads the moving average of the weights if the checkpoint has one."""

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = super()._load_file(filename)
        return {**checkpoint, "model": trained_weights(checkpoint)}


def last_checkpoint(folder: str, opts: Sequence[str]) -> str:
    """Return the last complete checkpoint in OUTPUT_DIR, for ``--eval-only --resume``.

    Args:
        folder: OUTPUT_DIR.
        opts: KEY VALUE overrides of the command line.

    Raises:
        WeightsError: if there is none, or `opts` set MODEL.WEIGHTS.
    """
    if "MODEL.WEIGHTS" in opts[::2]:
        raise WeightsError(
            "--eval-only --resume evaluates the last checkpoint in OUTPUT_DIR, not MODEL.WEIGHTS: "
            "leave out --resume or MODEL.WEIGHTS."
        )
    path = SafeCheckpointer(nn.Module(), folder).get_checkpoint_file()
    if not path:
        raise WeightsError(
            f"--resume evaluates the last checkpoint in OUTPUT_DIR, but '{folder}' has none: set "
            "MODEL.WEIGHTS instead."
        )
    return path


def has_weights(cfg: CfgNode) -> bool:
    """Return whether a config names weights of the model or of CLIP."""
    return bool(cfg.MODEL.WEIGHTS or cfg.MODEL.CLIP.PRETRAINED)


def shipped_weights(config_file: str, opts: Sequence[str]) -> Path | None:
    """Return the trained weights that this repository ships for a config.

    Args:
        config_file: path of a config; "" for none.
        opts: KEY VALUE overrides.

    Returns:
        The file; None if there is none, or if `opts` set MODEL.WEIGHTS or MODEL.CLIP.PRETRAINED.
    """
    if not config_file or {"MODEL.WEIGHTS", "MODEL.CLIP.PRETRAINED"} & set(opts[::2]):
        return None
    return find_weights(config_file)


def load_model(cfg: CfgNode, allow_random_weights: bool) -> nn.Module:
    """Build the model of a config, and load its weights.

    MODEL.DEVICE becomes "cpu" in `cfg` if there is no CUDA device.

    Args:
        cfg: the whole config.
        allow_random_weights: accept a config without MODEL.WEIGHTS and MODEL.CLIP.PRETRAINED.

    Raises:
        ValueError: if the config sets neither of them.
        WeightsError: if the weights cannot be read or belong to another model.
    """
    if not (allow_random_weights or has_weights(cfg)):
        raise ValueError(
            "The config sets no weights. Set MODEL.WEIGHTS to a trained model, or "
            "MODEL.CLIP.PRETRAINED to CLIP weights for the training-free mode."
        )
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        # "cuda" is Detectron2's default, so the user may not have chosen it.
        logger.warning("MODEL.DEVICE is 'cuda', but there is no CUDA device. The CPU is used.")
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    warn_if_untrained(model, cfg.MODEL.WEIGHTS)
    return model


def warn_if_untrained(model: nn.Module, weights: str) -> None:
    """Log a warning if a model has trainable parameters but no weights were loaded for them.

    Args:
        model: the model after it was built; its trainable parameters require gradients.
        weights: MODEL.WEIGHTS.
    """
    if not weights and any(parameter.requires_grad for parameter in model.parameters()):
        logger.warning(
            "MODEL.WEIGHTS is empty, so the trainable parameters of this model have random values."
        )


def load_weights(model: nn.Module, path: str, calibrated: bool = True) -> None:
    """Load ``MODEL.WEIGHTS`` and their calibration. Unlike in Detectron2, all weights must fit.

    Detectron2 logs missing weights and wrong shapes, and continues with random weights. A
    segmentation with random weights could be mistaken for a result. The file cannot run code, see
    :class:`SafeCheckpointer`.

    Args:
        model: a model, possibly wrapped for distributed training. It does not change if the file
            cannot be loaded.
        path: path or URL of a checkpoint of ``train_net.py`` or a plain state dict (.pth or
            .safetensors); "" does nothing.
        calibrated: also read the calibration of the weights; otherwise the temperature is 1.

    Raises:
        WeightsError: the message names the file and the first parameters that do not fit; see also
            :func:`dcp_clip.engine.checkpoints.calibration.read_temperature`.
    """
    if not path:
        return
    if "://" not in path:
        path = str(find_file(path))
    try:
        _WeightsReader(model).load(path)
    except WeightsError as error:
        raise WeightsError(f"MODEL.WEIGHTS: {error}") from error
    unwrapped = getattr(model, "module", model)
    unwrapped.temperature = read_temperature(path, unwrapped) if calibrated else 1.0
