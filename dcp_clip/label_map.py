"""Label maps of any size in bounded memory: made from logits, and measured, a band at a time."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def label_map_in_tiles(
    logits: Tensor,
    size: tuple[int, int],
    tile_rows: int | None = None,
    *,
    category_ids: Tensor | None = None,
    num_categories: int | None = None,
) -> np.ndarray:
    """Enlarge logits bilinearly and take every pixel's best category, a band of rows at a time.

    Does what ``F.interpolate(logits[None], size, mode="bilinear")[0].argmax(0)`` does, without its
    K x H x W tensor (14 GB for 32 categories on a photograph of 12,000 x 9,000 pixels).

    Args:
        logits: (K, h, w) float, on any device.
        size: (H, W) of the label map.
        tile_rows: rows of the label map in a band; default: as many as give about 8 million logits.
        category_ids: (K,) what to write for each of the K maps; default: 0 ... K-1.
        num_categories: how many ids there may be, which decides the type; default: K, or what the
            largest of `category_ids` asks for.

    Returns:
        np.ndarray: (H, W) ids, of the smallest unsigned type that holds `num_categories` ids.
    """
    k, in_height, in_width = logits.shape
    height, width = size
    if category_ids is None:
        category_ids = torch.arange(k)
    ids = category_ids.cpu().numpy()
    ids = ids.astype(np.min_scalar_type(max(num_categories or 1, int(ids.max()) + 1) - 1))
    if tile_rows is None:
        tile_rows = max(1, 8_000_000 // (k * width))
    label_map = np.empty(size, ids.dtype)
    for start in range(0, height, tile_rows):
        stop = min(start + tile_rows, height)
        if (in_height, in_width) == (height, width):
            band = logits[:, start:stop]
        else:
            # Rows of the logits above and below each row's centre, as with align_corners=False.
            rows = torch.arange(start, stop, device=logits.device, dtype=torch.float32)
            rows = ((rows + 0.5) * (in_height / height) - 0.5).clamp(0, in_height - 1)
            above = rows.long()
            below = (above + 1).clamp(max=in_height - 1)
            first, last = int(above[0]), int(below[-1])
            needed = logits[None, :, first : last + 1].float()
            wide = F.interpolate(
                needed, (last + 1 - first, width), mode="bilinear", align_corners=False
            )[0]
            weight = (rows - above)[:, None]
            band = torch.lerp(wide[:, above - first], wide[:, below - first], weight)
        label_map[start:stop] = ids[band.argmax(dim=0).cpu().numpy()]
    return label_map


def category_shares(label_map: np.ndarray, num_categories: int) -> np.ndarray:
    """Compute the share of the area that each category covers.

    Args:
        label_map: (H, W) category ids of any integer type; other values count as unlabelled.
        num_categories: C, the size of the vocabulary.

    Returns:
        np.ndarray: (C,) float64 in 0 ... 1; they add up to 1 if no pixel is unlabelled.
    """
    counts = np.zeros(num_categories, np.int64)
    rows = max(1, 4_000_000 // max(1, label_map.shape[1]))
    # In bands, because bincount makes a copy with eight bytes a pixel.
    for start in range(0, len(label_map), rows):
        band = label_map[start : start + rows].ravel()
        if band.dtype.kind != "u":
            band = band[band >= 0]
        counts += np.bincount(band, minlength=num_categories)[:num_categories]
    return counts / max(1, label_map.size)
