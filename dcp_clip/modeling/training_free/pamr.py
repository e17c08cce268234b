"""Pixel-adaptive mask refinement (PAMR, arXiv 2005.08104)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DILATIONS", "pixel_adaptive_refinement"]

# Distances of the neighbours in pixels, as in SCLIP and NACLIP.
DILATIONS = (8, 16)
_OFFSETS = [offset for offset in itertools.product((-1, 0, 1), repeat=2) if offset != (0, 0)]


def pixel_adaptive_refinement(
    maps: Tensor, image: Tensor, steps: int, dilations: tuple[int, ...] = DILATIONS
) -> Tensor:
    """Replace each pixel repeatedly by a mean of its neighbours of similar colour.

    The neighbours of a pixel i are the 8 pixels around it at each distance d of `dilations`; beyond
    the border, the nearest pixel of the image counts. The weight of a neighbour j is the softmax
    over the neighbours of ``-|x_i - x_j| / (0.1 s_i)``, averaged over the channels, where s_i is
    the standard deviation of the pixels i and j of all distances.

    Args:
        maps: (N, H, W).
        image: (C, H, W), the colours x.
        steps: number of repetitions.
        dilations: distances in pixels.

    Returns:
        (N, H, W). It also needs memory for one more such tensor, and 8 weights for each pixel and
        distance.
    """
    around = [_shifted(image, offset, d) for d in dilations for offset in _OFFSETS]
    # The pixel itself counts once for each distance.
    deviation = torch.stack([*around, *[image] * len(dilations)]).std(0)
    logits = [-((x - image).abs() / (0.1 * deviation + 1e-8)).mean(0) for x in around]
    weights = torch.stack(logits).softmax(0)
    for _ in range(steps):
        refined = torch.zeros_like(maps)
        neighbours = itertools.product(dilations, _OFFSETS)
        for weight, (d, offset) in zip(weights, neighbours, strict=True):
            refined.addcmul_(_shifted(maps, offset, d), weight)
        maps = refined
    return maps


def _shifted(maps: Tensor, offset: tuple[int, int], distance: int) -> Tensor:
    """(N, H, W): at each pixel the value of its neighbour, or of the nearest pixel inside."""
    height, width = maps.shape[-2:]
    y, x = (distance * (1 + step) for step in offset)
    padded = F.pad(maps[None], [distance] * 4, mode="replicate")[0]
    return padded[:, y : y + height, x : x + width]
