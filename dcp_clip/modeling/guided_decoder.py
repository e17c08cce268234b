"""Stage 4 without training: the photograph itself says where the coarse maps have their edges."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from .build import FINE_DECODER_REGISTRY

__all__ = ["GuidedDecoder", "joint_bilateral_upsample"]

_STRIDE = 4
# Cells. Weights in space beyond it are below 0.5 % at the default reach, and below 5 % at the
# largest; with a larger one the window would be seen to end.
_RADIUS = 2
_MAX_REACH = _RADIUS / 2


def joint_bilateral_upsample(
    maps: Tensor, guide: Tensor, reach: float, contrast: float, radius: int = _RADIUS
) -> Tensor:
    """Enlarge `maps` to the size of `guide`, along the guide's edges.

    Joint bilateral upsampling (Kopf et al., SIGGRAPH 2007): a pixel is the weighted mean of the
    cells around it, near ones and those of its own colour counting most. A cell's colour is its
    average; a cell across an edge, whose features saw two things, resembles neither side and so
    counts for little. Weights come from the guide alone and add up to 1: every map is treated alike
    and stays within its own range.

    Args:
        maps: (B, K, h, w).
        guide: (B, C, H, W), H >= h, W >= w.
        reach: standard deviation of the weight in space, in cells.
        contrast: standard deviation of the weight in colour, root mean square over the channels.
        radius: cells that are looked at in each direction.

    Returns:
        (B, K, H, W). Beside it, memory for two more such tensors and (2 * radius + 1)^2 weights a
        pixel is used, whatever K.
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
    """Along one side, for each step away: the cell (L,), its distance in cells, if there is one."""
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
class GuidedDecoder(nn.Module):
    """Joint bilateral upsampling of the coarse logits to stride 4, guided by the image.

    Nothing is learned, so it serves any encoder, the ViT too, which has no fine features. It takes
    the place that PAMR (arXiv 1911.12448) has in SCLIP and NACLIP, in one pass instead of ten.
    """

    @configurable
    def __init__(self, *, reach: float, contrast: float):
        """
        Args:
            reach: in cells of the coarse grid, at most 1, see :func:`joint_bilateral_upsample`.
            contrast: in units of the normalised pixels.

        Raises:
            ValueError: when one of them is not above 0, or `reach` is above 1.
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
                f"{_MAX_REACH:g}, as cells further than {_RADIUS} are not looked at."
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
        text: Tensor,
        features: dict[str, Tensor],
        mask: Tensor,
    ) -> Tensor:
        """As :meth:`PyramidDecoder.forward`; of `features`, ``image`` is read."""
        image = features["image"].float()
        size = tuple(-(-side // _STRIDE) for side in image.shape[-2:])
        guide = F.adaptive_avg_pool2d(image, size)
        return joint_bilateral_upsample(coarse.float(), guide, self.reach, self.contrast)
