"""Build an open_clip model by name and load its weights from a tag or a local file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import open_clip
import torch
from detectron2.config import CfgNode

from dcp_clip.modeling.clip import tiny_cnn  # noqa: F401  (registers the project's own image towers with timm)

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SHARED: ContextVar[dict | None] = ContextVar("shared_clip", default=None)


class CLIPWeightsError(RuntimeError):
    """CLIP's weights cannot be had or do not fit; the message says what to do."""


open_clip.add_model_config(Path(__file__).with_name("model_configs"))


@contextlib.contextmanager
def share_clip() -> Iterator[None]:
    """Within this context equal (name, weights) pairs are built and loaded only once.

    The image and the text encoder are built apart, each by its own registry, yet come out of the
    same checkpoint; without sharing, a ViT-L would be read from disk twice.
    """
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def load_clip(cfg: CfgNode) -> torch.nn.Module:
    """The open_clip model of ``cfg.MODEL.CLIP.NAME`` with the weights of ``MODEL.CLIP.PRETRAINED``.

    Returns:
        an ``open_clip.CustomTextCLIP``, in fp32 on the CPU, in eval mode.

    Raises:
        CLIPWeightsError: unknown name or tag, weights absent while offline, or weights of another
            model.
    """
    name, pretrained = cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED
    shared = _SHARED.get()
    if shared is not None and (name, pretrained) in shared:
        return shared[name, pretrained]
    if open_clip.get_model_config(name) is None:
        raise CLIPWeightsError(
            f"MODEL.CLIP.NAME is '{name}', which open_clip {open_clip.__version__} does not know; "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists the names."
        )
    if not pretrained:
        model = _create(name)
    elif Path(pretrained).suffix in WEIGHT_SUFFIXES or "/" in pretrained:
        model = _create(name)
        _load_file(model, name, Path(pretrained))
    else:
        model = _load_tag(name, pretrained)
    model.eval()
    if shared is not None:
        shared[name, pretrained] = model
    return model


def clip_pixel_stats(model: torch.nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation (0 to 255 scale, RGB) of open_clip's preprocessing for
    `model`."""
    preprocess = open_clip.model.get_model_preprocess_cfg(model)
    mean = preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = preprocess.get("std", open_clip.OPENAI_DATASET_STD)
    return [255.0 * x for x in mean], [255.0 * x for x in std]


def _create(name: str, **kwargs) -> torch.nn.Module:
    # open_clip warns on the root logger of random weights, which MODEL.WEIGHTS may yet replace.
    root = logging.getLogger()
    before, root.disabled = root.disabled, True
    try:
        return open_clip.create_model(
            name, force_custom_text=True, pretrained_text=False, output_dict=False, **kwargs
        )
    finally:
        root.disabled = before


def _load_tag(name: str, tag: str) -> torch.nn.Module:
    known = open_clip.list_pretrained_tags_by_model(name)
    if tag not in known:
        raise CLIPWeightsError(
            f"MODEL.CLIP.PRETRAINED is '{tag}', but open_clip knows these weights for '{name}': "
            f"{', '.join(known) or 'none'}; use one of them or the path of a local file."
        )
    source = open_clip.get_pretrained_cfg(name, tag)
    trained_quick = bool(source.get("quick_gelu", False))
    config_quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    if trained_quick != config_quick:
        # open_clip issue 771: loading succeeds, but every feature is wrong.
        other = f"{name}-quickgelu" if trained_quick else name.removesuffix("-quickgelu")
        raise CLIPWeightsError(
            f"The weights '{tag}' were trained with {'QuickGELU' if trained_quick else 'GELU'}, "
            f"MODEL.CLIP.NAME '{name}' builds the other activation; set it to '{other}'."
        )
    try:
        return _create(name, pretrained=tag)
    except Exception as error:  # the hub client raises many kinds, all meaning "not to be had"
        where = source.get("hf_hub") or source.get("url") or f"{name}/{tag}"
        raise CLIPWeightsError(
            f"The weights '{tag}' of '{name}' are neither cached nor downloadable here; fetch "
            f"'{where.rstrip('/')}' (open_clip_model.safetensors) on a machine with internet and "
            "set MODEL.CLIP.PRETRAINED to the file's path (or to '' if MODEL.WEIGHTS is a trained "
            f"model: it holds CLIP's). ({_in_one_line(error)})"
        ) from error


def _load_file(model: torch.nn.Module, name: str, path: Path) -> None:
    # The shipped weights are found from every working folder.
    shipped = Path(__file__).parents[3] / path
    if not path.is_file() and shipped.is_file():
        path = shipped
    if not path.is_file():
        raise CLIPWeightsError(
            f"MODEL.CLIP.PRETRAINED names the file '{path}', which does not exist; put CLIP's "
            f"weights for '{name}' there ({', '.join(WEIGHT_SUFFIXES)}) or give an open_clip tag."
        )
    try:
        # weights_only: a checkpoint is data and must not be able to run code.
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        if lines and lines[0].startswith("Error(s) in loading state_dict"):
            raise CLIPWeightsError(
                f"The weights in '{path}' are not those of '{name}' (MODEL.CLIP.NAME): "
                f"{lines[-1].strip()[:200]}"
            ) from error
        raise CLIPWeightsError(
            f"The weights in '{path}' cannot be read: {_in_one_line(error)}"
        ) from error
    except Exception as error:
        raise CLIPWeightsError(
            f"The weights in '{path}' cannot be read as a plain state dict of tensors: "
            f"{_in_one_line(error)}"
        ) from error
    logger.info("Loaded CLIP weights for %s from %s", name, path)


def _in_one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]}…"
