"""Losses of mask queries: each target mask goes to the one query that fits it best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import resize_to
from dcp_clip.modeling.losses import LABEL_STRIDE
from dcp_clip.structures import Proposals

__all__ = ["MaskPredictions", "MaskQueryCriterion"]


@dataclass
class MaskPredictions:
    """What N queries say, after each layer of their decoder; the last is the answer.

    Attributes:
        class_logits: of each layer (B, N, C + 1); the last column is "no object".
        mask_logits: of each layer (B, N, h, w).
    """

    class_logits: list[Tensor]
    mask_logits: list[Tensor]


class MaskQueryCriterion(nn.Module):
    """Set prediction with Hungarian matching (DETR, arXiv 2005.12872, as MaskFormer, arXiv
    2107.06278, uses it for segmentation): cross-entropy of the queries' classes, binary
    cross-entropy and dice of their masks, after every layer.

    The targets are the masks of the categories in the image, one each. Void pixels are taken out
    before masks are compared, and an image of void alone says nothing about any query.
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
            class_weight, mask_weight, dice_weight: of the three losses, in matching too.
            no_object_weight: of a query without a target, beside 1 for one with.
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
        """Called as :class:`SegmentationCriterion` is.

        Args:
            logits, proposals: not used.
            predictions: of B images.
            labels: (B, H, W) category ids of the padded input; anything outside 0 .. C-1 is void.
            num_categories: C.

        Returns:
            named losses, to be summed; those of earlier layers end in the layer's number.
        """
        start = self.stride // 2
        labels = labels[:, start :: self.stride, start :: self.stride]
        known = (labels >= 0) & (labels < num_categories)
        losses = {}
        last = len(predictions.class_logits) - 1
        for i, layer in enumerate(zip(predictions.class_logits, predictions.mask_logits)):
            suffix = "" if i == last else f"_{i}"
            for name, loss in self._of_layer(*layer, labels, known).items():
                losses[name + suffix] = loss
        return losses

    def _of_layer(
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
        """The best one-to-one assignment: indices of queries, and of the target of each.

        Where there are more targets than queries the dearest targets stay without.
        """
        # -log p where the target holds is softplus(-x), where it does not softplus(x).
        apart = F.softplus(-pixels) @ targets.T + F.softplus(pixels) @ (1 - targets).T
        cost = (
            -self.class_weight * class_logits.softmax(1)[:, present]
            + self.mask_weight * apart / pixels.shape[1]
            + self.dice_weight * _pairwise_dice(pixels, targets)
        )
        pairs = linear_sum_assignment(cost.cpu().numpy())
        queries, order = (torch.as_tensor(x, device=pixels.device) for x in pairs)
        return queries, order


def _pairwise_dice(pixels: Tensor, targets: Tensor) -> Tensor:
    """(N, T) soft dice losses of mask logits (N, P) against binary targets (T, P)."""
    probability = pixels.sigmoid()
    overlap = 2 * probability @ targets.T + 1
    return 1 - overlap / (probability.sum(1)[:, None] + targets.sum(1) + 1)
