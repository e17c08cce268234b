"""Loading weights that must fit."""

from __future__ import annotations

import pickle

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

__all__ = ["WeightsError", "load_weights"]


class WeightsError(RuntimeError):
    """A file of weights is absent, unreadable, or belongs to another model."""


def load_weights(model: nn.Module, path: str) -> None:
    """Load ``MODEL.WEIGHTS`` into `model`, all of it or not at all silently.

    Detectron2 logs missing and misshapen weights and goes on with random ones; a segmentation of
    random weights looks like a result, so here it is an error.

    Args:
        model: a model, possibly wrapped for distributed training.
        path: file in the format of Detectron2's checkpointer; "" does nothing.

    Raises:
        WeightsError: naming the file and the first parameters that do not fit.
    """
    if not path:
        return
    checkpointer = DetectionCheckpointer(model)
    checkpointer.logger.disabled, before = True, checkpointer.logger.disabled
    try:
        if not checkpointer.path_manager.isfile(path):
            raise WeightsError(
                f"MODEL.WEIGHTS names '{path}', which does not exist; give a checkpoint's path."
            )
        try:
            checkpoint = checkpointer._load_file(path)
            incompatible = checkpointer._load_model(checkpoint)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, KeyError) as error:
            detail = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(
                f"'{path}' (MODEL.WEIGHTS) is no readable checkpoint: {detail}"
            ) from error
    finally:
        checkpointer.logger.disabled = before
    problems = [
        f"{len(incompatible.missing_keys)} parameters are missing from it "
        f"(first: {incompatible.missing_keys[0]})"
        if incompatible.missing_keys
        else "",
        f"{len(incompatible.unexpected_keys)} are not in the model "
        f"(first: {incompatible.unexpected_keys[0]})"
        if incompatible.unexpected_keys
        else "",
        "{} has shape {} in it and {} in the model".format(*incompatible.incorrect_shapes[0])
        if incompatible.incorrect_shapes
        else "",
    ]
    problems = [p for p in problems if p]
    if problems:
        raise WeightsError(
            f"The weights in '{path}' (MODEL.WEIGHTS) belong to another model than the config "
            f"describes: {'; '.join(problems)}. Use the config they were trained with."
        )
