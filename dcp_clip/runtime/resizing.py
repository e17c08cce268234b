"""Resize images for an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["Resizing"]


@dataclass(frozen=True)
class Resizing:
    """Detectron2's ResizeShortestEdge; no side gets shorter than a pixel.

    Attributes:
        min_size: shortest side in pixels; 0 keeps the size.
        max_size: longest side in pixels.
    """

    min_size: int
    max_size: int

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Resizing:
        """Return the resizing of an exported model, from "input" in its config.json."""
        return cls(settings["min_size"], settings["max_size"])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize an image (H, W, 3) of uint8 to (h, w, 3)."""
        least, most = self.min_size, self.max_size
        if not least:
            return image
        height, width = image.shape[:2]
        scale = least / min(height, width)
        sides = (least, scale * width) if height < width else (scale * height, least)
        if max(sides) > most:
            factor = most / max(sides)
            sides = tuple(side * factor for side in sides)
        new_height, new_width = (max(1, int(side + 0.5)) for side in sides)
        if (new_height, new_width) == (height, width):
            return image
        resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def model_input(self, image: np.ndarray) -> np.ndarray:
        """Resize an image (H, W, 3) of uint8 to (3, h, w)."""
        return np.ascontiguousarray(self(image).transpose(2, 0, 1))
