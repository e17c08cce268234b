"""SC-CLIP's attention in the last block (arXiv 2411.15869): outliers, similarity, earlier blocks.

The steps follow the formulas of the publication. It leaves open the numbers that the constants
below give, and how a row of similarities is normalised (:func:`supporters`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.clip.block_parts import LastBlock

__all__ = [
    "fused_blocks",
    "local_outlier_factor",
    "self_calibrated_tokens",
    "replace_outliers",
    "supporters",
]

# Fraction of the patches that are anomalous, and neighbours (in feature space) of the outlier
# factor.
_OUTLIERS = 0.05
_NEIGHBOURS = 20


def fused_blocks(depth: int) -> list[int]:
    """Indices of the blocks whose outputs are fused; the middle one gives the similarity.

    They go from a third of the depth to the block before the penultimate one: the blocks 4 to 10 of
    12, with block 7 in the middle. A tower of one block has none.
    """
    first = max(depth // 3 - 1, 0)
    return list(range(first, max(depth - 2, first + 1)))[: max(depth - 1, 0)]


def self_calibrated_tokens(
    block: LastBlock, tokens: Tensor, levels: Sequence[Tensor], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Run the attention of the last block on the repaired tokens and on the fused levels.

    1. Anomalous patches of `tokens` are replaced by the mean of their neighbours.
    2. Each patch becomes a mean of the patches that support it, by the similarity in the middle of
       the tower.
    3. The attention is softmax(key key^T / sqrt(c)) + softmax(similarity). Class token and
       registers take part in the first term only.
    4. The attention runs on the result, and on the sum of the `levels`. Both outputs are added.

    Args:
        block: the last block.
        tokens: (B, P+N, C), its input; P prefix tokens come first.
        levels: tokens (B, P+N, C) after the blocks that :func:`fused_blocks` names.
        grid: (h, w) of the N patches.

    Returns:
        The tokens of steps 1 and 2, and what the attention adds to them, both (B, P+N, C).
    """
    prefix = tokens.shape[1] - grid[0] * grid[1]
    levels = levels or [tokens]
    # Half precision is too coarse for differences of similarities.
    with torch.autocast(tokens.device.type, enabled=False):
        middle = F.normalize(levels[len(levels) // 2][:, prefix:].float(), dim=2)
        similarity = middle @ middle.mT
        supports = supporters(similarity)
        patches = replace_outliers(tokens[:, prefix:].float(), grid)
        weight = similarity * supports
        patches = (weight / weight.sum(2, keepdim=True)) @ patches
    repaired = torch.cat([tokens[:, :prefix], patches.to(tokens.dtype)], dim=1)

    attention = similarity.masked_fill(~supports, float("-inf")).softmax(2)

    def attend(x: Tensor) -> Tensor:
        _, key, value = block.query_key_value(x, grid)
        mixed = F.scaled_dot_product_attention(key, key, value)
        supported = attention.to(value.dtype)[:, None] @ value[:, :, prefix:]
        mixed = mixed + F.pad(supported, (0, 0, prefix, 0))
        return block.output(mixed.transpose(1, 2).flatten(2))

    return repaired, attend(repaired) + attend(torch.stack(list(levels)).sum(0))


def supporters(similarity: Tensor) -> Tensor:
    """Which patches support each patch: those at least as similar to it as the average patch.

    Cosine similarities inside CLIP are all well above 0. With all patches, both normalisations
    would give nearly the same mean of the image to every patch.

    Args:
        similarity: (B, N, N), cosines.

    Returns:
        (B, N, N) bool; a patch always supports itself. Only positive similarities support.
    """
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
    return (similarity >= similarity.mean(2, keepdim=True).clamp(min=0)) | itself


def replace_outliers(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace the patches with the highest outlier factors by the mean of their neighbours.

    The neighbours are the other patches of the 3 x 3 around a patch that are no outliers. A patch
    without such neighbours stays as it is.

    Args:
        patches: (B, N, C).
        grid: (h, w), h * w = N.

    Returns:
        (B, N, C).
    """
    count = int(_OUTLIERS * patches.shape[1])
    if not count:
        return patches
    ids = local_outlier_factor(patches, _NEIGHBOURS).topk(count, dim=1).indices
    normal = torch.ones_like(patches[..., 0]).scatter(1, ids, 0.0).unflatten(1, grid)[:, None]
    maps = patches.mT.unflatten(2, grid)
    # Sums over the 3 x 3: zeros outside the grid and at outliers.
    around, number = (
        F.avg_pool2d(x, 3, stride=1, padding=1, divisor_override=1) for x in (maps * normal, normal)
    )
    replaced = (normal == 0) & (number > 0)
    return maps.where(~replaced, around / number.clamp(min=1)).flatten(2).mT


def local_outlier_factor(points: Tensor, neighbours: int) -> Tensor:
    """Compute the local outlier factor (Breunig et al., SIGMOD 2000) of every point.

    The density of a point is one over the mean reachability distance to its nearest neighbours. The
    reachability distance to a neighbour is their distance, and at least the distance of that
    neighbour to its own last neighbour. The factor is the mean density of the neighbours divided
    by that of the point: about 1 inside a cluster, larger outside. The values are those of
    scikit-learn's ``LocalOutlierFactor``; this function runs on the device of the points.

    Args:
        points: (B, N, C), N >= 2.
        neighbours: number of nearest neighbours; N - 1 if there are fewer.

    Returns:
        (B, N).
    """
    distance = torch.cdist(points, points)
    itself = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    neighbours = min(neighbours, points.shape[1] - 1)
    nearest, ids = distance.masked_fill(itself, float("inf")).topk(neighbours, 2, largest=False)

    def of_neighbours(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, points.shape[1], -1).gather(2, ids)

    reachability = torch.maximum(nearest, of_neighbours(nearest[..., -1]))
    # As in scikit-learn, equal points have a finite density.
    density = 1 / (reachability.mean(2) + 1e-10)
    return of_neighbours(density).mean(2) / density
