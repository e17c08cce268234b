"""What a figure depends on besides the model: to be printed beside it."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from collections.abc import Sequence
from importlib import metadata

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from dcp_clip import __version__
from dcp_clip.evaluation.confusion import CONVENTIONS, probe_detectron2
from dcp_clip.utils.check_env import ROOT, environment_summary, installed_version

__all__ = ["evaluation_environment", "source_commit", "weights_fingerprint"]

_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "Pillow", "OpenCV")
_READING = ("DENSE", "DENSE_RESIDUAL", "NACLIP_STD", "ENCODER_WINDOW", "ENCODER_WINDOW_STRIDE")
# The row of each stage's settings, and its node.
_STAGES = {
    "proposals": "PROPOSAL",
    "guidance": "TEXT_GUIDANCE",
    "coarse decoder": "COARSE_DECODER",
    "fine decoder": "FINE_DECODER",
    "class refinement": "CLASS_REFINEMENT",
}
_MACHINE = ("Python", "system", "CPU", "cores", "PyTorch on CPU", "GPU")


def evaluation_environment(cfg: CfgNode, model: nn.Module) -> dict[str, str]:
    """Describe the model, its input, the software and the machine of an evaluation.

    Args:
        cfg: the whole config.
        model: with the weights that are evaluated.

    Returns:
        text by name, in the order of a report. Every switch that changes the answer is in it. So
        are Pillow, for its resampling, and Detectron2, for its builds: both have moved published
        figures by tenths.
    """
    return {
        "dcp_clip": f"{__version__}, {source_commit()}",
        "model": f"{cfg.MODEL.META_ARCHITECTURE}, maps: {cfg.MODEL.DCP_CLIP.OUTPUT}"
        + (", named by vote within the true masks (an oracle)" if cfg.TEST.ORACLE_MASKS else ""),
        "CLIP": f"{cfg.MODEL.CLIP.NAME}, weights: {cfg.MODEL.CLIP.PRETRAINED or 'none'}",
        "MODEL.WEIGHTS": cfg.MODEL.WEIGHTS or "none",
        "weights fingerprint": weights_fingerprint(model),
        **_describe_switches(cfg),
        "device": f"{_device_of(model)}, processes: {comm.get_world_size()}",
        **_software_and_machine(),
    }


def _describe_switches(cfg: CfgNode) -> dict[str, str]:
    """The config values that change the answer, under the names of their keys."""
    node, window = cfg.MODEL.DCP_CLIP, cfg.MODEL.DCP_CLIP.SLIDING_WINDOW
    rows = {
        "encoder reading": _settings(cfg.MODEL.CLIP, _READING),
        "input": f"shortest edge {cfg.INPUT.MIN_SIZE_TEST}, longest {cfg.INPUT.MAX_SIZE_TEST}, "
        + (f"sliding window {_settings(window)}" if window.SIZE else "whole images"),
        "precision": "bfloat16 autocast" if node.BF16 else "as the weights",
        "prompts": f"{node.VOCABULARY.TEMPLATES}, synonyms: {node.VOCABULARY.SYNONYM_POOLING}",
    }
    if cfg.MODEL.META_ARCHITECTURE != "DCPCLIP":
        return rows | {"baseline": str(dict(cfg.MODEL.BASELINES))}
    return rows | {
        "stages": ", ".join(node[stage].NAME for stage in _STAGES.values()),
        "of all stages": _settings(node, ("DIM", "NUM_HEADS", "SIMILARITY_SCALE")),
        **{name: text for name, key in _STAGES.items() if (text := _settings(node[key]))},
    }


def _settings(node: CfgNode, keys: Sequence[str] | None = None) -> str:
    """Keys and values of a config node: all but its NAME, unless told which."""
    return ", ".join(f"{k} {node[k]}" for k in keys or node if k != "NAME")


@functools.cache  # listing what is installed takes seconds, and training evaluates many times
def _software_and_machine() -> dict[str, str]:
    summary = environment_summary()
    build = _build_commit("detectron2")
    return {
        "detectron2": summary["detectron2"] + (f", commit {build}" if build else ""),
        "detectron2's own mIoU is over the": CONVENTIONS.get(probe_detectron2(), "unknown"),
        **{name: summary[name] for name in (*_PACKAGES, *_MACHINE)},
    }


def weights_fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of the SHA-256 of all parameters and buffers with their names.

    The same for the same weights, whatever file they came from and whatever device they are on.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def source_commit() -> str:
    """The commit of this project's clone, with "-dirty" where files differ from it."""
    if not (ROOT / ".git").exists():  # installed elsewhere; a repository around it is not ours
        return "not in git"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or a folder of another owner
        return "commit unknown"
    return f"commit {done.stdout.strip()}"


def _build_commit(module: str) -> str:
    """Short commit that a package was installed from, "" unless pip installed it from a repository
    (which it notes in direct_url.json, PEP 610)."""
    owner, _ = installed_version(module, module)
    try:
        text = metadata.distribution(owner).read_text("direct_url.json") if owner else None
    except metadata.PackageNotFoundError:
        return ""
    return json.loads(text).get("vcs_info", {}).get("commit_id", "")[:12] if text else ""


def _device_of(model: nn.Module) -> str:
    tensor = next(model.parameters(), None)
    return str(tensor.device) if tensor is not None else "none"
