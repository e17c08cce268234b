"""Stage 4 without training: upsampling of the coarse logits along the edges of the image."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.stages.registry import FINE_DECODER_REGISTRY

__all__ = ["BilateralDecoder", "joint_bilateral_upsample"]

_STRIDE = 4
# Radius in cells. Spatial weights beyond it are below 0.5 % at the default reach and below 5 % at
# the largest one; with a larger reach the border of the window would be visible.
_RADIUS = 2
_MAX_REACH = _RADIUS / 2


def joint_bilateral_upsample(
    maps: Tensor, guide: Tensor, reach: float, contrast: float, radius: int = _RADIUS
) -> Tensor:
    """Upsample `maps` to the size of `guide`, along the edges of the guide.

    Joint bilateral upsampling (Kopf et al., SIGGRAPH 2007): a pixel is the weighted mean of the
    cells around it, with the largest weights for near cells of a similar colour. The colour of a
    cell is its mean; a cell on an edge is similar to neither side, so its weight is small. The
    weights depend on the guide only and sum to 1: all maps are treated the same and stay within
    their own range.

    Args:
        maps: (B, K, h, w).
        guide: (B, C, H, W), H >= h, W >= w.
        reach: standard deviation of the weight in space, in cells.
        contrast: standard deviation of the weight in colour, root mean square over the channels.
        radius: number of cells in each direction.

    Returns:
        (B, K, H, W). It also needs memory for two more such tensors and for (2 * radius + 1)^2
        weights per pixel, for any K.
    """
    (h, w), (height, width) = maps.shape[-2:], guide.shape[-2:]
    colours = F.adaptive_avg_pool2d(guide, (h, w))
    rows = _cells(height, h, radius, guide.device)
    columns = _cells(width, w, radius, guide.device)
    weights = []
    for row, down, row_inside in rows:
        for column, across, column_inside in columns:
            space = (down**2)[:, None] + across**2
            colour = (guide - _take(colours, row, column)).square().mean(1)
            weight = -space / (2 * reach**2) - colour / (2 * contrast**2)
            inside = row_inside[:, None] & column_inside
            weights.append(weight.masked_fill(~inside, float("-inf")))
    shares = torch.stack(weights, 1).softmax(1).to(maps.dtype)  # (B, taps, H, W)
    out = maps.new_zeros(*maps.shape[:2], height, width)
    taps = [(row, column) for row, *_ in rows for column, *_ in columns]
    for (row, column), share in zip(taps, shares.split(1, dim=1), strict=True):
        out = torch.addcmul(out, _take(maps, row, column), share)
    return out


def _cells(
    length: int, cells: int, radius: int, device: torch.device
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each offset along one side: cells, distances in cells, whether they exist; each (L,)."""
    place = (torch.arange(length, device=device) + 0.5) * (cells / length) - 0.5
    nearest = place.round().long()
    found = []
    for step in range(-radius, radius + 1):
        cell = nearest + step
        inside = (cell >= 0) & (cell < cells)
        found.append((cell.clamp(0, cells - 1), cell - place, inside))
    return found


def _take(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, K, h, w) to (B, K, len(rows), len(columns))."""
    return maps.index_select(2, rows).index_select(3, columns)


@FINE_DECODER_REGISTRY.register()
class BilateralDecoder(nn.Module):
    """Upsamples the coarse logits to stride 4 along the edges of the image.

    It has no learned weights and needs no fine features, so it works with any encoder, also with a
    ViT. SCLIP and NACLIP use PAMR (arXiv 2005.08104) instead, which needs ten passes instead of
    one.
    """

    @configurable
    def __init__(self, *, reach: float, contrast: float):
        """
        Args:
            reach: in cells of the coarse grid, at most 1, see :func:`joint_bilateral_upsample`.
            contrast: in units of the normalised pixels.

        Raises:
            ValueError: if one of them is not above 0, or `reach` is above 1.
        """
        super().__init__()
        for key, value in (("REACH", reach), ("CONTRAST", contrast)):
            if value <= 0:
                raise ValueError(
                    f"MODEL.DCP_CLIP.FINE_DECODER.GUIDE_{key} is {value}; it must be above 0."
                )
        if reach > _MAX_REACH:
            raise ValueError(
                f"MODEL.DCP_CLIP.FINE_DECODER.GUIDE_REACH is {reach}; it must not be above "
                f"{_MAX_REACH:g}, as cells beyond {_RADIUS} are not used."
            )
        self.reach, self.contrast = reach, contrast

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        visual_channels: int,
        text_channels: int,
    ) -> dict:
        node = cfg.MODEL.DCP_CLIP.FINE_DECODER
        return {"reach": node.GUIDE_REACH, "contrast": node.GUIDE_CONTRAST}

    def forward(
        self,
        coarse: Tensor,
        visual: Tensor,
        text_features: Tensor,
        features: dict[str, Tensor],
        pixel_valid: Tensor,
        proposal_valid: Tensor,
    ) -> Tensor:
        """As :meth:`PyramidDecoder.forward`; of `features`, ``image`` is used."""
        image = features["image"].float()
        size = tuple(-(-side // _STRIDE) for side in image.shape[-2:])
        guide = F.adaptive_avg_pool2d(image, size)
        return joint_bilateral_upsample(coarse.float(), guide, self.reach, self.contrast)
