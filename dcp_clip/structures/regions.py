"""Regions of an image, given by masks, whose pixels get the same label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from dcp_clip.structures.sem_seg import SemSegLabels, SemSegProposals

__all__ = ["label_regions", "region_map"]


# A boolean array (H, W), or a dict of SAM's automatic mask generators.
Mask = np.ndarray | Mapping[str, Any]


def label_regions(
    sem_seg: SemSegProposals | SemSegLabels, masks: Iterable[Mask] | None
) -> SemSegProposals | SemSegLabels:
    """Give all pixels of a region the category with the highest mean logit in the region.

    Masks of SAM follow the borders of things better than CLIP's features do; CorrCLIP (arXiv
    2411.10086) also makes labels agree in them. Pixels outside the masks keep their label.

    Args:
        sem_seg: the output of the model for one image.
        masks: see :func:`region_map`; None returns `sem_seg`.

    Returns:
        Labels and confidence. The confidence in a region is that of its mean logits.

    Raises:
        ValueError: if `sem_seg` has no logits, or for an invalid mask.
    """
    if masks is None:
        return sem_seg
    if not isinstance(sem_seg, SemSegProposals):
        raise ValueError(
            "regions need logits, but there are only labels of an image that is segmented in "
            "windows (a large one, or MODEL.DCP_CLIP.SLIDING_WINDOW) or by SimilaritySegmentor; "
            "use a smaller image, or a config without these."
        )
    regions = region_map(masks, sem_seg.image_size)
    count = int(regions.max()) + 1
    device, number = sem_seg.device, torch.from_numpy(regions)
    total = torch.zeros(count, len(sem_seg.maps), dtype=torch.float64, device=device)
    for start, band in sem_seg.bands():
        rows = number[start : start + band.shape[1]].flatten().to(device)
        total.index_add_(0, rows, band.flatten(1).T.double())
    area = number.flatten().bincount(minlength=count).clamp(min=1).to(device)
    mean = total / area[:, None]
    best = sem_seg.category_ids[mean.argmax(1)].cpu().numpy()
    probability = (mean / sem_seg.temperature).softmax(1).amax(1).half().cpu().numpy()
    confidence = np.where(regions > 0, probability[regions], sem_seg.confidence())
    labels = sem_seg.label_map()
    labels = np.where(regions > 0, best.astype(labels.dtype)[regions], labels)
    return SemSegLabels(labels, sem_seg.category_ids, sem_seg.num_categories, confidence)


def region_map(
    masks: Iterable[np.ndarray | Mapping[str, Any]], size: tuple[int, int]
) -> np.ndarray:
    """Number the regions of an image.

    Args:
        masks: (H, W) boolean arrays, or the dicts of SAM's automatic mask generators, with such an
            array as "segmentation". They may overlap: a pixel belongs to its smallest mask.
        size: (H, W).

    Returns:
        (H, W) int32: the number of the mask plus 1; 0 outside all masks.

    Raises:
        ValueError: for a mask of another type or size.
    """
    arrays = []
    if isinstance(masks, Mapping) or not isinstance(masks, Iterable):
        raise ValueError(f"regions must be a list of masks, got {type(masks).__name__}.")
    for i, mask in enumerate(masks):
        mask = mask.get("segmentation") if isinstance(mask, Mapping) else mask
        if isinstance(mask, Mapping):
            raise ValueError(
                f"regions[{i}] is run-length encoded: decode it with pycocotools.mask.decode, and "
                "convert it to bool."
            )
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != tuple(size):
            raise ValueError(
                f"regions[{i}] is {mask.dtype} {mask.shape}; a region must be a bool array of the "
                f"size of the label map, {tuple(size)} (for SAM's dicts, 'segmentation' is it)."
            )
        arrays.append(mask)
    areas = [np.count_nonzero(mask) for mask in arrays]
    regions = np.zeros(size, np.int32)
    for i in sorted(range(len(arrays)), key=lambda i: -areas[i]):
        regions[arrays[i]] = i + 1
    return regions
