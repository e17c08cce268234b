"""Describe what influences an evaluation: settings, weights, software and hardware."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import cv2
import detectron2
import numpy as np
import open_clip
import PIL
import timm
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import nn

from dcp_clip import __version__
from dcp_clip.utils.model_settings import model_settings
from dcp_clip.utils.processors import usable_cpus

__all__ = [
    "evaluation_environment",
    "software_and_hardware",
    "source_commit",
    "weights_fingerprint",
]

_ROOT = Path(__file__).resolve().parents[2]
_CLIP_KEYS = ("DENSE", "DENSE_RESIDUAL", "NACLIP_STD", "ENCODER_WINDOW", "ENCODER_WINDOW_STRIDE")
# Name in the report and config node of each stage.
_STAGES = {
    "proposals": "PROPOSAL",
    "guidance": "TEXT_GUIDANCE",
    "coarse decoder": "COARSE_DECODER",
    "fine decoder": "FINE_DECODER",
    "class refinement": "CLASS_REFINEMENT",
}
# Keys, and groups of keys, that have a row of their own.
_SHOWN = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.IMPORTS",
    "MODEL.CLIP.NAME",
    "MODEL.CLIP.PRETRAINED",
    *(f"MODEL.CLIP.{key}" for key in _CLIP_KEYS),
    "MODEL.DCP_CLIP.OUTPUT",
    "MODEL.DCP_CLIP.BF16",
    "MODEL.DCP_CLIP.SLIDING_WINDOW",
    "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES",
    "MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING",
)
_SHOWN_OF_ALL_STAGES = ("DIM", "NUM_HEADS", "SIMILARITY_SCALE")
# Keys, and groups of keys, that an evaluation does not depend on.
_NOT_USED = (
    "MODEL.CLIP.TRAIN_IMAGE",
    "MODEL.CLIP.TRAIN_TEXT",
    "MODEL.DCP_CLIP.LOSS",
    "MODEL.DCP_CLIP.CHANNELS_LAST",
    "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR",
)


def evaluation_environment(cfg: CfgNode, model: nn.Module) -> dict[str, str]:
    """Describe the model, its settings, the software and the machine of an evaluation.

    Args:
        cfg: the whole config.
        model: the model with the weights that are evaluated.

    Returns:
        Text by name, in the order of a report. It contains every setting that changes the results.
    """
    device = next((str(parameter.device) for parameter in model.parameters()), "none")
    return {
        "dcp_clip": f"{__version__}, {source_commit()}",
        "model": f"{cfg.MODEL.META_ARCHITECTURE}, logits: {cfg.MODEL.DCP_CLIP.OUTPUT}"
        + (", categories by majority vote in the true masks" if cfg.TEST.ORACLE_MASKS else ""),
        **_describe_choices(cfg),
        "CLIP": f"{cfg.MODEL.CLIP.NAME}, weights: {cfg.MODEL.CLIP.PRETRAINED or 'none'}",
        "MODEL.WEIGHTS": cfg.MODEL.WEIGHTS or "none",
        "weights fingerprint": weights_fingerprint(model),
        **_describe_settings(cfg, model),
        "device": f"{device}, processes: {comm.get_world_size()}",
        **software_and_hardware(),
    }


def _describe_choices(cfg: CfgNode) -> dict[str, str]:
    """Describe settings that most evaluations leave at their defaults."""
    rows = {}
    if cfg.MODEL.IMPORTS:
        rows["imported modules"] = ", ".join(cfg.MODEL.IMPORTS)
    if limit := cfg.TEST.MAX_IMAGES:
        rows["images"] = f"at most {limit} of each data set, evenly spaced (TEST.MAX_IMAGES)"
    if cfg.TEST.AUG.ENABLED:
        rows["test-time augmentation"] = _format_settings(cfg.TEST.AUG, ("FLIP", "SCALES"))
    return rows


def _describe_settings(cfg: CfgNode, model: nn.Module) -> dict[str, str]:
    node, window = cfg.MODEL.DCP_CLIP, cfg.MODEL.DCP_CLIP.SLIDING_WINDOW
    rows = {
        "dense features": _format_settings(cfg.MODEL.CLIP, _CLIP_KEYS),
        "input": f"shortest edge {cfg.INPUT.MIN_SIZE_TEST}, longest {cfg.INPUT.MAX_SIZE_TEST}, "
        + (f"sliding window {_format_settings(window)}" if window.SIZE else "whole images"),
        "precision": "bfloat16 autocast" if node.BF16 else "that of the weights",
    }
    if getattr(model, "text_encoder", None) is not None:
        vocabulary = node.VOCABULARY
        rows["prompts"] = f"{vocabulary.TEMPLATES}, synonyms: {vocabulary.SYNONYM_POOLING}"
    if cfg.MODEL.META_ARCHITECTURE == "DCPCLIP":
        settings = {name: _format_settings(node[key]) for name, key in _STAGES.items()}
        rows |= {
            "stages": ", ".join(node[key].NAME for key in _STAGES.values()),
            "all stages": _format_settings(node, _SHOWN_OF_ALL_STAGES),
            **{name: text for name, text in settings.items() if text},
        }
    return rows | {"other settings": _other_settings(cfg)}


def _other_settings(cfg: CfgNode) -> str:
    """Describe the settings without a row of their own."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    exclude = [*_SHOWN, *_NOT_USED, *(f"MODEL.DCP_CLIP.{key}" for key in _STAGES.values())]
    if architecture == "DCPCLIP":
        exclude += [f"MODEL.DCP_CLIP.{key}" for key in _SHOWN_OF_ALL_STAGES]
    # Only the baselines, and heads that inherit from one, read these keys.
    classes = META_ARCH_REGISTRY.get(architecture).__mro__
    if not any(kind.__module__.startswith("dcp_clip.modeling.baselines.") for kind in classes):
        exclude.append("MODEL.BASELINES")
    if architecture != "SimilaritySegmentor":
        exclude.append("MODEL.TRAINING_FREE")
    settings = {"INPUT.RESIZE_TEST": cfg.INPUT.RESIZE_TEST, **model_settings(cfg, exclude)}
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value != "")


def _format_settings(node: CfgNode, keys: Sequence[str] | None = None) -> str:
    """Return "KEY value, ..." of some keys, by default all keys but NAME."""
    return ", ".join(f"{key} {node[key]}" for key in keys or node if key != "NAME")


@functools.cache  # finding Detectron2's distribution takes a second
def software_and_hardware() -> dict[str, str]:
    """Return the versions of the main packages and a description of the machine, by name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "detectron2": f"{detectron2.__version__}{_detectron2_commit()}",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "open_clip": open_clip.__version__,
        "timm": timm.__version__,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,  # its resampling has changed published figures
        "OpenCV": cv2.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(),
        "CPU": _cpu_name(),
        "CPU cores": f"{usable_cpus()} usable of {os.cpu_count()}",
        "PyTorch on CPU": f"{torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads",
        "GPU": ", ".join(gpus) or "none",
    }


def _detectron2_commit() -> str:
    """Return the commit that pip installed Detectron2 from (PEP 610); "" if it is unknown."""
    for name in metadata.packages_distributions().get("detectron2", []):
        if text := metadata.distribution(name).read_text("direct_url.json"):
            if commit := json.loads(text).get("vcs_info", {}).get("commit_id"):
                return f", commit {commit[:12]}"
    return ""


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def weights_fingerprint(model: nn.Module) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of all parameters and buffers with their names.

    The same weights have the same fingerprint on every device and from every file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def source_commit() -> str:
    """Return the commit of this project's clone, with "-dirty" if files differ from it."""
    if not (_ROOT / ".git").exists():  # a repository that contains an installed copy does not count
        return "not in git"
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a clone of another user
        return "commit unknown"
    return f"commit {done.stdout.strip()}"
