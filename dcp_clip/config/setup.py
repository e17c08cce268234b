"""Build the config of a program from defaults, config files and options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

from dcp_clip import data
from dcp_clip.config.files import read_config_chain
from dcp_clip.config.imports import import_modules, require_imported
from dcp_clip.config.input import check_input
from dcp_clip.config.keys import add_dcp_clip_config
from dcp_clip.config.merge import merge_file, merge_options, option_list
from dcp_clip.utils.shipped_files import find_config
from dcp_clip.vocabulary.prompts import is_template_set

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
    "MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS",
    "MODEL.DCP_CLIP.FINE_DECODER.IMAGE_DIM",
    "MODEL.DCP_CLIP.FINE_DECODER.CATEGORY_DIM",
)
_NOT_NEGATIVE = (
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.DCP_CLIP.FINE_DECODER.NUM_CATEGORIES",
    "MODEL.DCP_CLIP.LOSS.CE_WEIGHT",
    "MODEL.DCP_CLIP.LOSS.DICE_WEIGHT",
    "MODEL.DCP_CLIP.LOSS.COARSE_WEIGHT",
    "MODEL.DCP_CLIP.LOSS.FINAL_WEIGHT",
    "MODEL.DCP_CLIP.LOSS.PROPOSAL_WEIGHT",
    "MODEL.DCP_CLIP.LOSS.PRESENCE_WEIGHT",
    "MODEL.DCP_CLIP.LOSS.MASK_CLASS_WEIGHT",
)


def get_cfg() -> CfgNode:
    """Return Detectron2's default config with the keys of DCP-CLIP."""
    cfg = detectron2_cfg()
    add_dcp_clip_config(cfg)
    return cfg


def setup_cfg(
    config_file: str | Path = "",
    opts: Sequence = (),
    cfg: CfgNode | None = None,
    *,
    imports: Sequence[str] = (),
) -> CfgNode:
    """Read a config file and command-line overrides.

    A config file cannot run code, unlike with Detectron2's ``CfgNode.merge_from_file``.

    Args:
        config_file: path of a yaml file, or the name of a shipped config, such as
            "camvid/dcp_clip_tiny.yaml"; "" for the defaults. The file can name others that it
            inherits from in ``_BASE_``.
        opts: KEY VALUE KEY VALUE ...
        cfg: the config to change; default: that of :func:`get_cfg`.
        imports: names of modules to import first, such as "my_heads". A module can register heads
            and stages, and its function ``add_config(cfg)`` can add keys (docs/new_head.md).

    Returns:
        The config. MODEL.DEVICE, "cuda" by Detectron2's default, becomes "cpu" if there is no GPU
        and `opts` do not ask for one. A file of prompt templates beside its config file has its
        path. The data sets of DATASETS.SEM_SEG_FOLDERS are registered, and other projects' names in
        DATASETS.TRAIN and DATASETS.TEST are replaced by ours (dcp_clip/data/aliases.py).

    Raises:
        FileNotFoundError: if the config file, or a file in its ``_BASE_``, does not exist.
        KeyError: for keys that do not exist; the message names similar keys, and the new name of a
            key that was renamed.
        ValueError: if a file is not YAML with plain values, a value has the wrong type, a number
            that must be positive is not, `opts` or `imports` is a text, OUTPUT_DIR is empty or a
            URL, MODEL.PIXEL_MEAN or MODEL.PIXEL_STD is set, MODEL.DEVICE is unknown, INPUT.FORMAT
            is not "RGB", a key of INPUT is wrong (:func:`check_input`), an entry of
            DATASETS.SEM_SEG_FOLDERS is wrong, a module of `imports` does not exist, or
            MODEL.IMPORTS names a module that is not in `imports`.
    """
    opts = option_list(opts)
    if isinstance(imports, str):
        raise ValueError(f'imports is {imports!r}, but must be a list: write ["{imports}"].')
    cfg = get_cfg() if cfg is None else cfg
    chain = read_config_chain(find_config(config_file)) if config_file else []
    for path, content in chain:  # before the merge, which finds keys of missing modules unknown
        if isinstance(model := content.get("MODEL"), Mapping) and "IMPORTS" in model:
            merge_file(cfg, {"MODEL": {"IMPORTS": model.pop("IMPORTS")}}, str(path))
            require_imported(cfg.MODEL.IMPORTS, imports, f"config file '{path}'")
    import_modules(cfg, imports)
    for path, content in chain:
        version = content.pop("VERSION", _VERSION)
        if version != _VERSION:
            raise ValueError(
                f"config file '{path}': VERSION is {version!r}, but must be {_VERSION}."
            )
        _find_templates(content, path.parent)
        merge_file(cfg, content, str(path))
    merge_options(cfg, opts)
    require_imported(cfg.MODEL.IMPORTS, imports, "the options")
    _check_values(cfg)
    for node, key in ((cfg, "OUTPUT_DIR"), (cfg.SOLVER, "CHECKPOINT_COPY")):
        node[key] = os.path.expanduser(node[key])
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        if cfg.MODEL.DEVICE != "cuda" or "MODEL.DEVICE" in opts[::2]:
            raise ValueError(
                f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}', but PyTorch finds no GPU: leave it out to "
                "use the CPU."
            )
        cfg.MODEL.DEVICE = "cpu"
    data.register_config_folders(cfg)
    cfg.DATASETS.TRAIN = data.resolve_dataset_names(cfg.DATASETS.TRAIN)
    cfg.DATASETS.TEST = data.resolve_dataset_names(cfg.DATASETS.TEST)
    return cfg


def _find_templates(content: Mapping, folder: Path) -> None:
    """Replace the name of a template file by its path, if the file is beside the config file."""
    node = content
    for key in ("MODEL", "DCP_CLIP", "VOCABULARY"):
        node = node.get(key) if isinstance(node, Mapping) else None
    name = node.get("TEMPLATES") if isinstance(node, Mapping) else None
    if isinstance(name, str) and not is_template_set(name) and (folder / name).is_file():
        node["TEMPLATES"] = str(folder / name)


def _check_values(cfg: CfgNode) -> None:
    if cfg.TEST.MAX_IMAGES < 0:
        raise ValueError(
            f"TEST.MAX_IMAGES is {cfg.TEST.MAX_IMAGES}, but must be at least 0 (0 for all images)."
        )
    for keys, least in ((_POSITIVE, 1), (_NOT_NEGATIVE, 0)):
        for key in keys:
            value = cfg
            for part in key.split("."):
                value = value[part]
            if value < least:
                raise ValueError(f"{key} is {value}, but must be at least {least}.")
    if cfg.SOLVER.BASE_LR <= 0:
        raise ValueError(f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR}, but must be above 0.")
    default = detectron2_cfg().MODEL
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if cfg.MODEL[key] != default[key]:
            raise ValueError(
                f"MODEL.{key} is {cfg.MODEL[key]}, but the pixel statistics are those of CLIP: "
                "leave it out."
            )
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.DEVICE is '{cfg.MODEL.DEVICE}', which PyTorch does not know: set it to 'cuda' "
            "or 'cpu'."
        ) from error
    if not 0 <= cfg.SOLVER.EMA_DECAY < 1:
        raise ValueError(
            f"SOLVER.EMA_DECAY is {cfg.SOLVER.EMA_DECAY}, but must be at least 0 and below 1."
        )
    if not cfg.OUTPUT_DIR.strip():  # for example a shell variable without a value
        raise ValueError(
            f"OUTPUT_DIR is '{cfg.OUTPUT_DIR}', but must be a folder: name it, or . for the "
            "current one."
        )
    if "://" in cfg.OUTPUT_DIR:
        raise ValueError(
            f"OUTPUT_DIR is '{cfg.OUTPUT_DIR}', but must be a folder of this machine: give the URL "
            "in SOLVER.CHECKPOINT_COPY, which gets a copy of each checkpoint."
        )
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(
            f"INPUT.FORMAT is '{cfg.INPUT.FORMAT}', but CLIP's pixel statistics and filters are in "
            "the order RGB: set it to 'RGB'."
        )
    check_input(cfg.INPUT)
