"""Losses of mask queries, with a one-to-one matching of queries and target masks."""

from __future__ import annotations

from dataclasses import dataclass

import scipy  # its parts are loaded when they are used; that takes long
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import resize_to
from dcp_clip.modeling.losses import LABEL_STRIDE
from dcp_clip.structures import Proposals

__all__ = ["MaskPredictions", "MaskQueryCriterion"]


@dataclass
class MaskPredictions:
    """Predictions of N queries before the first and after each layer of the decoder.

    Attributes:
        class_logits: one (B, N, C + 1) for each prediction; the last column is "no object".
        mask_logits: one (B, N, h, w) for each prediction.
    """

    class_logits: list[Tensor]
    mask_logits: list[Tensor]


class MaskQueryCriterion(nn.Module):
    """Set prediction losses with Hungarian matching (DETR, arXiv 2005.12872), for segmentation as
    in MaskFormer (arXiv 2107.06278).

    The losses are the cross-entropy of the classes, and the binary cross-entropy and dice loss of
    the masks. They are computed for each layer. The targets are one mask for each category in the
    image. Ignored pixels are removed before masks are compared. Images without labelled pixels
    contribute no loss.
    """

    @configurable
    def __init__(
        self,
        *,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        stride: int = LABEL_STRIDE,
    ):
        """
        Args:
            class_weight, mask_weight, dice_weight: weights of the three losses, also in matching.
            no_object_weight: weight of queries without a target, relative to 1 for the others.
            stride: pixels between the positions at which the masks are compared with the labels.
        """
        super().__init__()
        self.class_weight, self.mask_weight = class_weight, mask_weight
        self.dice_weight, self.no_object_weight = dice_weight, no_object_weight
        self.stride = stride

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.BASELINES.MASK_QUERIES
        return {
            "class_weight": node.CLASS_WEIGHT,
            "mask_weight": node.MASK_WEIGHT,
            "dice_weight": node.DICE_WEIGHT,
            "no_object_weight": node.NO_OBJECT_WEIGHT,
        }

    def forward(
        self,
        logits: dict[str, Tensor],
        predictions: MaskPredictions,
        proposals: Proposals,
        labels: Tensor,
        num_categories: int,
    ) -> dict[str, Tensor]:
        """Compute the losses. The interface is that of :class:`SegmentationCriterion`.

        Args:
            logits, proposals: not used.
            predictions: the predictions for B images.
            labels: (B, H, W) category ids of the padded input; values outside 0 .. C-1 are ignored.
            num_categories: C.

        Returns:
            named losses, to be summed; the names for earlier layers end with the layer's number.
        """
        start = self.stride // 2
        labels = labels[:, start :: self.stride, start :: self.stride]
        known = (labels >= 0) & (labels < num_categories)
        losses = {}
        last = len(predictions.class_logits) - 1
        for i, layer in enumerate(zip(predictions.class_logits, predictions.mask_logits)):
            suffix = "" if i == last else f"_{i}"
            for name, loss in self._layer_losses(*layer, labels, known).items():
                losses[name + suffix] = loss
        return losses

    def _layer_losses(
        self, class_logits: Tensor, mask_logits: Tensor, labels: Tensor, known: Tensor
    ) -> dict[str, Tensor]:
        class_logits = class_logits.float()
        masks = resize_to(mask_logits.float(), labels.shape[-2:])
        no_object = class_logits.shape[-1] - 1
        target_class = torch.full(class_logits.shape[:2], no_object, device=labels.device)
        mask_loss = dice_loss = masks[..., :0].sum()  # zero, with a gradient
        matched = 0
        for i in known.flatten(1).any(1).nonzero()[:, 0].tolist():
            pixels = masks[i][:, known[i]]  # (N, P)
            present, index = labels[i][known[i]].unique(return_inverse=True)
            targets = F.one_hot(index, len(present)).mT.to(pixels)  # (T, P)
            queries, order = self._match(class_logits[i], pixels, present, targets)
            target_class[i, queries] = present[order]
            bce = F.binary_cross_entropy_with_logits(
                pixels[queries], targets[order], reduction="none"
            )
            mask_loss = mask_loss + bce.mean(1).sum()
            dice_loss = dice_loss + _pairwise_dice(pixels, targets)[queries, order].sum()
            matched += len(queries)
        ce = F.cross_entropy(class_logits.mT, target_class, reduction="none")
        weight = torch.where(target_class == no_object, self.no_object_weight, 1.0)
        weight = weight * known.flatten(1).any(1, keepdim=True)
        return {
            "loss_class": self.class_weight * (ce * weight).sum() / weight.sum().clamp(min=1e-6),
            "loss_mask_bce": self.mask_weight * mask_loss / max(matched, 1),
            "loss_mask_dice": self.dice_weight * dice_loss / max(matched, 1),
        }

    @torch.no_grad()
    def _match(
        self, class_logits: Tensor, pixels: Tensor, present: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Find the one-to-one assignment of lowest cost: indices of queries, and of their targets.

        If there are more targets than queries, some targets have no query.
        """
        # The binary cross-entropy is softplus(-x) inside of the target, and softplus(x) outside.
        bce = F.softplus(-pixels) @ targets.T + F.softplus(pixels) @ (1 - targets).T
        cost = (
            -self.class_weight * class_logits.softmax(1)[:, present]
            + self.mask_weight * bce / pixels.shape[1]
            + self.dice_weight * _pairwise_dice(pixels, targets)
        )
        pairs = scipy.optimize.linear_sum_assignment(cost.cpu().numpy())
        queries, order = (torch.as_tensor(x, device=pixels.device) for x in pairs)
        return queries, order


def _pairwise_dice(pixels: Tensor, targets: Tensor) -> Tensor:
    """(N, T) soft dice losses between mask logits (N, P) and binary targets (T, P)."""
    probability = pixels.sigmoid()
    overlap = 2 * probability @ targets.T + 1
    return 1 - overlap / (probability.sum(1)[:, None] + targets.sum(1) + 1)
