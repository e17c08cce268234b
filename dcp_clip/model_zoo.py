"""Configs and trained weights that ship with DCP-CLIP, by name, as in ``detectron2.model_zoo``.

Names are relative to ``configs/``, for example "camvid/dcp_clip_tiny.yaml". They work in a clone of
the repository and in an installed package.
"""

import os

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from dcp_clip.config import setup_cfg
from dcp_clip.engine.checkpoints.loading import load_weights
from dcp_clip.modeling.clip.cached_weights import is_cached
from dcp_clip.utils.shipped_files import find_config, find_weights, list_configs

__all__ = ["available", "get", "get_config", "get_config_file", "get_weights"]


def available() -> list[str]:
    """Return the names of the configs that need no download.

    These are the configs with shipped weights, and those of ``training_free/`` whose CLIP weights
    are in the cache of Hugging Face.
    """
    names = list_configs()
    trained = [name for name in names if find_weights(name)]
    training_free = []
    for name in names:
        if name.startswith("training_free/") and not name.endswith("Base.yaml"):
            clip = setup_cfg(get_config_file(name)).MODEL.CLIP
            if is_cached(clip.NAME, clip.PRETRAINED):
                training_free.append(name)
    return trained + training_free


def get_config_file(config_path: str | os.PathLike) -> str:
    """Return the path of a shipped config.

    Args:
        config_path: name of the config, for example "camvid/dcp_clip_tiny.yaml", or a path.

    Raises:
        FileNotFoundError: if there is no such config.
    """
    return str(find_config(os.fspath(config_path)))


def get_weights(config_path: str | os.PathLike) -> str:
    """Return the path of the trained weights that ship for a config.

    Args:
        config_path: see `get_config_file`.

    Raises:
        FileNotFoundError: if there is no such config.
        ValueError: if no trained weights ship for it. Configs of ``training_free/`` need none.
    """
    path = find_weights(find_config(os.fspath(config_path)))
    if path is None:
        raise ValueError(f"no trained weights ship for the config '{os.fspath(config_path)}'.")
    return str(path)


def get_config(config_path: str | os.PathLike, trained: bool = False) -> CfgNode:
    """Return a shipped config.

    Args:
        config_path: see `get_config_file`.
        trained: set MODEL.WEIGHTS to the shipped weights.

    Raises:
        FileNotFoundError: if there is no such config.
        ValueError: if `trained` is set and no trained weights ship for it.
    """
    opts = ["MODEL.WEIGHTS", get_weights(config_path)] if trained else []
    return setup_cfg(get_config_file(config_path), opts)


def get(
    config_path: str | os.PathLike, trained: bool = False, device: str | None = None
) -> nn.Module:
    """Return the model of a shipped config in evaluation mode.

    To segment images, use :class:`dcp_clip.Predictor`, which also prepares the images.

    Args:
        config_path: see `get_config_file`.
        trained: load the shipped weights. If False, the weights are random, except those of CLIP.
        device: device of the model; default: MODEL.DEVICE of the config.

    Raises:
        FileNotFoundError: if there is no such config.
        ValueError: if `trained` is set and no trained weights ship for it.
    """
    cfg = get_config(config_path, trained)
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    return model.eval()
