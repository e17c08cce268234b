"""Build an open_clip model by name and load its weights from a tag or a local file."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import open_clip
import torch
from detectron2.config import CfgNode

from dcp_clip.modeling.clip import tiny_cnn  # noqa: F401  (registers its image towers with timm)
from dcp_clip.utils.arguments import in_one_line
from dcp_clip.utils.shipped_files import find_file
from dcp_clip.utils.tensor_files import TensorFileError, explain, require_tensors

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_SETTINGS = "open_clip_config.json"  # of open_clip, on the Hugging Face Hub
_SHARED: ContextVar[dict | None] = ContextVar("shared_clip", default=None)
_ROOT_LOGGER = threading.Lock()  # held while the root logger is disabled


class CLIPWeightsError(RuntimeError):
    """CLIP's weights cannot be loaded; the message says what to do."""


open_clip.add_model_config(Path(__file__).with_name("model_configs"))


@contextlib.contextmanager
def share_clip() -> Iterator[None]:
    """Within this context, build and load each pair of model name and weights only once.

    The image encoder and the text encoder are built separately, but their weights are in the same
    checkpoint. Without this context, the checkpoint of a ViT-L would be read from disk twice.
    """
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def load_clip(cfg: CfgNode) -> torch.nn.Module:
    """Build ``cfg.MODEL.CLIP.NAME`` and load the weights of ``cfg.MODEL.CLIP.PRETRAINED``.

    Returns:
        An ``open_clip.CustomTextCLIP``, in fp32 on the CPU, in evaluation mode.

    Raises:
        CLIPWeightsError: for an unknown name or tag, weights that do not exist or cannot be
            downloaded, or weights of another model.
    """
    name, pretrained = cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED
    shared = _SHARED.get()
    if shared is not None and (name, pretrained) in shared:
        return shared[name, pretrained]
    if open_clip.get_model_config(name) is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.7)
        raise CLIPWeightsError(
            f"MODEL.CLIP.NAME is '{name}', which open_clip {open_clip.__version__} does not know; "
            + (f"did you mean {' or '.join(map(repr, close))}? " if close else "")
            + "`python -c 'import open_clip; print(open_clip.list_models())'` lists the names."
        )
    if not pretrained:
        model = create_clip(name, force_preprocess_cfg=pixel_stats(name, None))
    elif (path := weights_file(pretrained)) is not None:
        model = create_clip(name, force_preprocess_cfg=pixel_stats(name, path))
        _load_file(model, name, path)
        trained = (_settings_beside(path) or {}).get("model_cfg")
        if isinstance(trained, dict):
            _check_activation(name, bool(trained.get("quick_gelu")), f"in '{path}'")
    else:
        model = _load_tag(name, pretrained)
    model.eval()
    if shared is not None:
        shared[name, pretrained] = model
    return model


def weights_file(pretrained: str) -> Path | None:
    """The file that MODEL.CLIP.PRETRAINED names, whether it exists or not; None for a tag or ""."""
    if not pretrained or (Path(pretrained).suffix not in WEIGHT_SUFFIXES and "/" not in pretrained):
        return None
    return find_file(pretrained)


def clip_pixel_stats(model: torch.nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels that `model` expects; RGB, 0 to 255 scale."""
    preprocess = open_clip.model.get_model_preprocess_cfg(model)
    return [255.0 * x for x in preprocess["mean"]], [255.0 * x for x in preprocess["std"]]


def pixel_stats(name: str, path: Path | None) -> dict[str, tuple[float, ...]]:
    """ "mean" and "std" of the pixels for weights that do not come from a tag, on the 0 to 1 scale.

    They are in ``open_clip_config.json`` beside the weights, as on the Hugging Face Hub. Without
    this file, they are those of the weights of this model that open_clip knows. Without any, they
    are those of OpenAI's CLIP.

    Raises:
        CLIPWeightsError: for a file of another format.
    """
    settings = None if path is None else _settings_beside(path)
    if settings is not None:
        try:
            stats = settings["preprocess_cfg"]
            return {key: tuple(float(x) for x in stats[key]) for key in ("mean", "std")}
        except (ValueError, KeyError, TypeError) as error:
            raise CLIPWeightsError(
                f"'{path.with_name(_SETTINGS)}' has no 'mean' and 'std' below 'preprocess_cfg', as "
                f"open_clip writes it; correct or remove it. ({in_one_line(error)})"
            ) from error
    tags = [
        open_clip.get_pretrained_cfg(name, tag)
        for tag in open_clip.list_pretrained_tags_by_model(name)
    ]
    known = {(tuple(cfg["mean"]), tuple(cfg["std"])) for cfg in tags}
    if len(known) == 1:
        mean, std = known.pop()
        return {"mean": mean, "std": std}
    if known and path is not None:
        logger.warning(
            "Weights of %s exist for different means of the pixels; for %s that of OpenAI's CLIP "
            "is used. Put open_clip_config.json beside the file if it needs another one.",
            name,
            path,
        )
    return {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def _settings_beside(path: Path) -> Any:
    """The content of ``open_clip_config.json`` beside a file of weights; None without it."""
    file = path.with_name(_SETTINGS)
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CLIPWeightsError(
            f"'{file}' is no JSON; correct or remove it. ({in_one_line(error)})"
        ) from error


def create_clip(name: str, **kwargs) -> torch.nn.Module:
    """Build the model with an open_clip name, by default with random weights.

    Args:
        name: open_clip's name.
        kwargs: further arguments of ``open_clip.create_model``.

    Raises:
        CLIPWeightsError: if the text tower is one of the Hugging Face Hub and cannot be built.
    """
    # open_clip logs a warning about random weights, but MODEL.WEIGHTS may replace them later.
    try:
        with _without_root_logger():
            return open_clip.create_model(
                name, force_custom_text=True, pretrained_text=False, output_dict=False, **kwargs
            )
    except (RuntimeError, OSError) as error:
        text = open_clip.get_model_config(name)["text_cfg"].get("hf_model_name")
        if text is None:
            raise
        raise CLIPWeightsError(
            f"The text tower of '{name}' (MODEL.CLIP.NAME) is '{text}' of the Hugging Face Hub: "
            "install `pip install transformers`, and without internet fetch its config.json on "
            "another machine (`hf download`) and copy the cache (HF_HOME). "
            f"({in_one_line(error)})"
        ) from error


@contextlib.contextmanager
def _without_root_logger() -> Iterator[None]:
    root = logging.getLogger()
    with _ROOT_LOGGER:
        before, root.disabled = root.disabled, True
        try:
            yield
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
    _check_activation(name, bool(source.get("quick_gelu", False)), f"'{tag}'")
    try:
        return create_clip(name, pretrained=tag)
    except Exception as error:  # the Hugging Face client raises many types of errors
        where = source.get("hf_hub") or source.get("url") or f"{name}/{tag}"
        without = ""
        if pixel_stats(name, None) == {key: tuple(source[key]) for key in ("mean", "std")}:
            without = (
                " (or to '' if MODEL.WEIGHTS is a trained model, which contains CLIP's weights)"
            )
        raise CLIPWeightsError(
            f"The weights '{tag}' of '{name}' are not cached and cannot be downloaded; fetch "
            f"'{where.rstrip('/')}' (open_clip_model.safetensors) on a machine with internet and "
            f"set MODEL.CLIP.PRETRAINED to the path of the file{without}. ({in_one_line(error)})"
        ) from error


def _check_activation(name: str, trained_quick: bool, which: str) -> None:
    """Raise CLIPWeightsError if weights were trained with another activation than `name` builds.

    Loading would succeed, but every feature would be wrong (open_clip issue 771).
    """
    quick = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    other = f"{name}-quickgelu" if trained_quick else name.removesuffix("-quickgelu")
    if trained_quick != quick and other != name:  # open_clip may have the model in one form only
        raise CLIPWeightsError(
            f"The weights {which} were trained with {'QuickGELU' if trained_quick else 'GELU'}, "
            f"but MODEL.CLIP.NAME '{name}' builds the other activation; set it to '{other}'."
        )


def _load_file(model: torch.nn.Module, name: str, path: Path) -> None:
    if not path.is_file():
        raise CLIPWeightsError(
            f"MODEL.CLIP.PRETRAINED names the file '{path}', which does not exist; put CLIP's "
            f"weights for '{name}' there ({', '.join(WEIGHT_SUFFIXES)}) or give an open_clip tag."
        )
    try:
        require_tensors(path)
        # With weights_only a checkpoint cannot run code.
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except TensorFileError as error:
        raise CLIPWeightsError(f"MODEL.CLIP.PRETRAINED: {error}") from error
    except Exception as error:
        lines = str(error).strip().splitlines()
        if lines and lines[0].startswith("Error(s) in loading state_dict"):
            raise CLIPWeightsError(
                f"The weights in '{path}' are not those of '{name}' (MODEL.CLIP.NAME): "
                f"{lines[-1].strip()[:200]}"
            ) from error
        raise CLIPWeightsError(
            f"MODEL.CLIP.PRETRAINED: '{path}' {explain(path, error)}."
        ) from error
    logger.info("Loaded CLIP weights for %s from %s", name, path)
