"""Stage 4 for exported programs: the attention of region pooling is computed in parts."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.stages.stage4_region_pooling import RegionPooling

__all__ = ["ExportableRegionPooling", "with_regions_in_parts"]

_PARTS = 16


class ExportableRegionPooling(RegionPooling):
    """Computes what :class:`RegionPooling` computes, in parts of the pixels.

    PyTorch attends in blocks. Other runtimes store the attention of all pixels to all positions at
    once, which takes gigabytes for large images. Here they store one part at a time.
    """

    def _average(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        count = queries.shape[1]
        length = (count + _PARTS - 1) // _PARTS  # of a part; the last ones may contain padding
        parts = F.pad(queries, (0, 0, 0, _PARTS * length - count)).unflatten(1, (_PARTS, length))
        pooled = [(part @ keys.mT).softmax(2) @ values for part in parts.unbind(1)]
        return torch.cat(pooled, 1)[:, :count]


def with_regions_in_parts(decoder: nn.Module) -> nn.Module:
    """Return a fine decoder with the same weights whose region pooling can be exported."""
    regions = getattr(decoder, "regions", None)
    if regions is None:
        return decoder
    exportable = copy.copy(regions)
    exportable.__class__ = ExportableRegionPooling
    decoder = copy.copy(decoder)
    decoder._modules = {**decoder._modules, "regions": exportable}
    return decoder
