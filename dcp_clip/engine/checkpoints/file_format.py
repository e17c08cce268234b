"""Read checkpoints, find the weights in them, and convert those of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dcp_clip.utils.tensor_files import TensorFileError, read_tensors

__all__ = [
    "applied_alpha",
    "exported_content",
    "half_precision",
    "hook_state",
    "read_checkpoint",
    "trained_weights",
    "upgrade_checkpoint",
]

# Names of earlier versions and their current names.
_RENAMED_PARAMETERS = {  # prefixes
    "refinement.judge.": "refinement.classifier.",
    "head.words.": "head.text.",  # CostAggregationSegmentor
    "head.name.": "head.embedding.",  # MaskQuerySegmentor
}
_RENAMED_HOOKS = {"CLIPShareHook": "WeightInterpolationHook"}
_RENAMED_HOOK_STATE = {"share": "alpha"}
_ALPHA = "wise_ft_alpha"  # the entry of exported weights that records it
# Prefixes that DataParallel and torch.compile add to the names of all parameters.
_WRAPPERS = ("module.", "_orig_mod.")


def hook_state(checkpoint: Mapping[str, Any], hook: str) -> Mapping[str, Any]:
    """Return the state of a trainer's hook in a checkpoint of ``train_net.py``.

    Args:
        checkpoint: the content of the file.
        hook: name of the hook's class.

    Returns:
        The state, or an empty dict if the checkpoint has none.
    """
    state: Any = checkpoint
    for key in ("trainer", "hooks", hook):
        state = state.get(key) if isinstance(state, Mapping) else None
    return state if isinstance(state, Mapping) else {}


def applied_alpha(checkpoint: Mapping[str, Any]) -> float | None:
    """Return the fraction of CLIP's original weights in the image tower (SOLVER.WISE_FT_ALPHA).

    Args:
        checkpoint: the content of a checkpoint of ``train_net.py`` or of exported weights.

    Returns:
        The fraction, 0 before the end of a training; None if the file does not record it.
    """
    if "trainer" in checkpoint:
        return hook_state(checkpoint, "WeightInterpolationHook").get("alpha", 0.0)
    return checkpoint.get(_ALPHA)


def exported_content(weights: Mapping[str, Tensor], alpha: float | None) -> dict[str, Any]:
    """Return the content of a file of exported weights.

    Args:
        weights: the state dict.
        alpha: see `applied_alpha`.
    """
    return {"model": weights, **({} if alpha is None else {_ALPHA: alpha})}


def trained_weights(checkpoint: Mapping[str, Any]) -> Any:
    """Return the state dict to evaluate from a checkpoint of ``train_net.py``.

    If the training used SOLVER.EMA_DECAY, this is the moving average. Evaluations during training
    use it too. In ``model_final.pth``, "model" is already the average. Earlier checkpoints contain
    both.

    Raises:
        KeyError: if the checkpoint has no "model".
    """
    average = hook_state(checkpoint, "EMAHook").get("average")
    return checkpoint["model"] if average is None else average


def _rename_parameters(state: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {}
    wrapper = next((w for w in _WRAPPERS if state and all(k.startswith(w) for k in state)), "")
    if wrapper:
        return _rename_parameters({k.removeprefix(wrapper): v for k, v in state.items()})
    for name, value in state.items():
        for old, new in _RENAMED_PARAMETERS.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        renamed[name] = value
    return renamed


def upgrade_checkpoint(checkpoint: Any) -> None:
    """Rename the parameters of earlier versions and of wrapped models in a checkpoint, in place.

    Args:
        checkpoint: the content of a file; nothing changes if it is no checkpoint.
    """
    if not isinstance(checkpoint, MutableMapping):
        return
    if _has_names(checkpoint.get("model")):
        checkpoint["model"] = _rename_parameters(checkpoint["model"])
    trainer = checkpoint.get("trainer")
    hooks = trainer.get("hooks") if isinstance(trainer, Mapping) else None
    if not isinstance(hooks, MutableMapping):
        return
    for old, new in _RENAMED_HOOKS.items():
        if isinstance(hooks.get(old), Mapping):
            state = hooks.pop(old)
            hooks[new] = {_RENAMED_HOOK_STATE.get(k, k): v for k, v in state.items()}
    ema = hook_state(checkpoint, "EMAHook")
    if _has_names(ema.get("average")):
        hooks["EMAHook"] = {**ema, "average": _rename_parameters(ema["average"])}


def _has_names(state: Any) -> bool:
    return isinstance(state, Mapping) and all(isinstance(name, str) for name in state)


def read_checkpoint(path: str | Path, mmap: bool = False, bare: bool = True) -> dict[str, Any]:
    """Read a checkpoint or a plain state dict, and rename parameters of earlier versions.

    Args:
        path: a local file of ``torch.save``, or a .safetensors file.
        mmap: read the values of tensors only when they are used.
        bare: accept a state dict without the "model" entry of a checkpoint.

    Returns:
        The content; "model" is the state dict.

    Raises:
        TensorFileError: if the file cannot be read, or does not contain a state dict.
    """
    content = read_tensors(path, mmap)
    if not isinstance(content, Mapping) or not content:
        raise TensorFileError(path, "contains no weights: give a checkpoint of train_net.py")
    if "pytorch-lightning_version" in content:
        raise TensorFileError(
            path,
            "is a checkpoint of Lightning, whose parameters have other names: save only the state "
            "dict of the model, with torch.save",
        )
    if "model" not in content and not bare:
        raise TensorFileError(path, "has no 'model' entry: give a checkpoint of train_net.py")
    checkpoint = dict(content) if "model" in content else {"model": content}
    state = checkpoint["model"]
    wrong = ["model"]
    if _has_names(state):
        wrong = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if wrong:
        raise TensorFileError(
            path,
            f"is not a checkpoint of train_net.py, because its entry '{wrong[0]}' is not a "
            "tensor: give another file",
        )
    upgrade_checkpoint(checkpoint)
    return checkpoint


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the matrices and kernels of a state dict to float16, for a small released file.

    Vectors (norms, biases, statistics) keep their precision. Loading converts back to float32.
    """
    return {
        name: (value.half() if value.is_floating_point() and value.dim() >= 2 else value)
        .contiguous()
        .clone()
        for name, value in state.items()
    }
