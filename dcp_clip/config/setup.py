"""Build the config of a program from defaults, config files and options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

from dcp_clip import data
from dcp_clip.config.files import read_config_chain
from dcp_clip.config.keys import add_dcp_clip_config
from dcp_clip.config.merge import merge_file, merge_options
from dcp_clip.utils.shipped_files import find_config

__all__ = ["get_cfg", "setup_cfg"]

_VERSION = 2  # of Detectron2's config keys
# With zero, these would divide by zero or train nothing.
_POSITIVE = (
    "SOLVER.MAX_ITER",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.CHECKPOINT_PERIOD",
    "MODEL.DCP_CLIP.DIM",
    "MODEL.DCP_CLIP.NUM_HEADS",
    "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS",
)


def get_cfg() -> CfgNode:
    """Return Detectron2's default config with the keys of DCP-CLIP."""
    cfg = detectron2_cfg()
    add_dcp_clip_config(cfg)
    return cfg


def setup_cfg(
    config_file: str | Path = "", opts: Sequence = (), cfg: CfgNode | None = None
) -> CfgNode:
    """Read a config file and command-line overrides.

    A config file cannot run code, unlike with Detectron2's ``CfgNode.merge_from_file``.

    Args:
        config_file: path of a yaml file, or the name of a shipped config, such as
            "camvid/dcp_clip_tiny.yaml"; "" for the defaults. The file can name others that it
            inherits from in ``_BASE_``.
        opts: KEY VALUE KEY VALUE ...
        cfg: the config to change, for keys of your own; default: that of :func:`get_cfg`.

    Returns:
        The config. MODEL.DEVICE, "cuda" by Detectron2's default, becomes "cpu" if there is no CUDA
        device. The data sets of DATASETS.SEM_SEG_FOLDERS are registered, and other projects' names
        in DATASETS.TRAIN and DATASETS.TEST are replaced by ours (dcp_clip/data/aliases.py).

    Raises:
        FileNotFoundError: if the config file, or a file in its ``_BASE_``, does not exist.
        KeyError: for keys that do not exist; the message names similar keys, and the new name of a
            key that was renamed.
        ValueError: if a file is not YAML with plain values, a value has the wrong type, a number
            that must be positive is not, INPUT.FORMAT is not "RGB", or an entry of
            DATASETS.SEM_SEG_FOLDERS is wrong.
    """
    cfg = get_cfg() if cfg is None else cfg
    for path, content in read_config_chain(find_config(config_file)) if config_file else ():
        version = content.pop("VERSION", _VERSION)
        if version != _VERSION:
            raise ValueError(
                f"config file '{path}': VERSION is {version!r}, but must be {_VERSION}."
            )
        merge_file(cfg, content, str(path))
    merge_options(cfg, list(opts))
    _check_values(cfg)
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    data.register_config_folders(cfg)
    cfg.DATASETS.TRAIN = data.resolve_dataset_names(cfg.DATASETS.TRAIN)
    cfg.DATASETS.TEST = data.resolve_dataset_names(cfg.DATASETS.TEST)
    return cfg


def _check_values(cfg: CfgNode) -> None:
    for key in _POSITIVE:
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value < 1:
            raise ValueError(f"{key} is {value}, but must be at least 1.")
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(
            f"INPUT.FORMAT is '{cfg.INPUT.FORMAT}', but CLIP's pixel statistics and filters are in "
            "the order RGB: set it to 'RGB'."
        )
