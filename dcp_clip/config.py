"""From config files and command-line overrides to a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from . import data, modeling  # noqa: F401  (registers what a config may name)
from .arguments import sentence
from .defaults import add_dcp_clip_config

__all__ = ["add_dcp_clip_config", "setup_cfg"]


def setup_cfg(config_file: str | Path = "", opts: Sequence[str] = ()) -> CN:
    """Detectron2's config with DCP-CLIP's keys, a file and command-line overrides.

    Args:
        config_file: yaml file; "" for the defaults.
        opts: KEY VALUE KEY VALUE ...

    Raises:
        FileNotFoundError: naming the config file that does not exist.
        KeyError: naming a key that no config has.
        ValueError: if the file is no YAML, INPUT.FORMAT is not "RGB", or an entry of
            DATASETS.SEM_SEG_FOLDERS is at fault.

    MODEL.DEVICE, "cuda" by Detectron2's default, becomes "cpu" where there is no CUDA device. The
    datasets of DATASETS.SEM_SEG_FOLDERS are registered, and other projects' names in DATASETS.TRAIN
    and DATASETS.TEST become ours (dcp_clip/data/aliases.py).
    """
    cfg = get_cfg()
    add_dcp_clip_config(cfg)
    try:
        _merge(cfg, config_file, opts)
    except (AssertionError, KeyError) as error:  # yacs asserts that the keys of `opts` exist
        raise KeyError(
            f"{sentence(error)} (in '{config_file}' or the options {list(opts)})"
        ) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config file '{config_file}' cannot be read as YAML: {reason}") from error
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(
            f"INPUT.FORMAT is '{cfg.INPUT.FORMAT}', but CLIP's pixel statistics and filters are in "
            "the order RGB: set it to 'RGB'."
        )
    data.register_config_folders(cfg)
    cfg.DATASETS.TRAIN = data.resolve_dataset_names(cfg.DATASETS.TRAIN)
    cfg.DATASETS.TEST = data.resolve_dataset_names(cfg.DATASETS.TEST)
    return cfg


def _merge(cfg: CN, config_file: str | Path, opts: Sequence[str]) -> None:
    if config_file:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"config file '{config_file}' does not exist.")
        cfg.merge_from_file(str(config_file))
    cfg.merge_from_list(list(opts))
