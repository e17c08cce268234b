"""The calibration of trained weights: a small JSON file next to them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dcp_clip.engine.checkpoints.safe_checkpointer import WeightsError
from dcp_clip.evaluation.environment import weights_fingerprint
from dcp_clip.utils.atomic_files import atomic_write

__all__ = ["calibration_file", "read_temperature", "write_temperature"]


def calibration_file(weights: str) -> Path:
    """Return the path of the calibration of a weights file: "x.calibration.json" for "x.pth"."""
    return Path(weights).with_suffix(".calibration.json")


def read_temperature(weights: str, model: nn.Module) -> float:
    """Return the temperature for the confidence of a model, 1 if its weights are not calibrated.

    Args:
        weights: path or address of the weights; an address has no calibration.
        model: the model with these weights.

    Raises:
        WeightsError: if the calibration cannot be read or belongs to other weights.
    """
    path = calibration_file(weights)
    if not path.is_file():
        return 1.0
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        temperature, fingerprint = float(content["temperature"]), content["weights fingerprint"]
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"the temperature is {temperature}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the calibration {path} cannot be read ({error}); write it again with "
            "tools/calibrate.py, or delete it"
        ) from error
    if fingerprint != weights_fingerprint(model):
        raise WeightsError(
            f"the calibration {path} belongs to other weights than {weights}; write it again with "
            "tools/calibrate.py, or delete it"
        )
    return temperature


def write_temperature(
    weights: str, model: nn.Module, temperature: float, datasets: Sequence[str]
) -> Path:
    """Write the calibration of a weights file, and return its path.

    Args:
        weights: path of the weights.
        model: the model with these weights.
        temperature: see :func:`dcp_clip.utils.upsampling.winners`.
        datasets: the data sets that the temperature was fitted on.

    Raises:
        OSError: if the file cannot be written.
    """
    content = {
        "temperature": round(temperature, 4),
        "weights fingerprint": weights_fingerprint(model),
        "fitted on": list(datasets),
    }
    path = calibration_file(weights)
    with atomic_write(path, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    return path
