"""The losses of the stages, over the K proposals of each image.

Ignored pixels (IGNORE_INDEX) and padding are removed before any average, so their loss and gradient
are exactly zero.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import resize_to
from dcp_clip.structures import Proposals, Refinement

__all__ = [
    "IGNORE_INDEX",
    "LABEL_STRIDE",
    "SegmentationCriterion",
    "labels_to_proposals",
    "present_categories",
    "ranking_loss",
]

# The id of pixels without a category in the model. In files it is the data set's ignore label.
IGNORE_INDEX = -1
# Pixels between the positions at which logits and labels are compared, unless the logits are finer.
LABEL_STRIDE = 4


def present_categories(labels: Tensor, num_categories: int) -> Tensor:
    """Return (B, C) bool: which categories have a pixel in `labels` (B, H, W)."""
    flat = labels.flatten(1)
    inside = (flat >= 0) & (flat < num_categories)
    present = torch.zeros(len(labels), num_categories + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, flat.where(inside, num_categories), True)
    return present[:, :num_categories]


def labels_to_proposals(labels: Tensor, proposals: Proposals, num_categories: int) -> Tensor:
    """Map category ids (B, H, W) to indices of proposals, or IGNORE_INDEX without a proposal."""
    b, k = proposals.ids.shape
    table = labels.new_full((b, num_categories + 1), IGNORE_INDEX)
    order = torch.arange(k, device=labels.device).expand(b, k)
    ids = proposals.ids.where(proposals.valid, num_categories)
    table.scatter_(1, ids, order.to(table.dtype))
    table[:, num_categories] = IGNORE_INDEX
    inside = (labels >= 0) & (labels < num_categories)
    index = labels.where(inside, num_categories).flatten(1)
    return table.gather(1, index).view_as(labels)


def ranking_loss(logits: Tensor, positive: Tensor, negative: Tensor, dim: int) -> Tensor:
    """Return the mean of -log p over the positive entries.

    p is a softmax of the positive entry and all negative entries of its row or column.

    Args:
        logits: (B, K).
        positive, negative: (B, K) bool; entries that are neither have no effect.
        dim: 1 to compare along rows, 0 along columns.
    """
    rest = logits.masked_fill(~negative, -1e4).logsumexp(dim, keepdim=True)
    # softplus(rest - x) = -log(exp(x) / (exp(x) + exp(rest)))
    loss = F.softplus((rest - logits)[positive])
    return loss.sum() / max(len(loss), 1)


class SegmentationCriterion(nn.Module):
    """Computes all losses.

    They are the ranking loss of the proposals, the cross-entropy and dice losses of the coarse,
    fine and final logits, and the presence and mask classification losses of stage 5.

    Cross-entropy over the proposals plus dice was better than focal loss plus dice. Cross-entropy
    can give pixels of rare categories in the batch a larger weight. This needs no list of class
    weights, so it works for any vocabulary.
    """

    @configurable
    def __init__(
        self,
        *,
        ce_weight: float,
        dice_weight: float,
        presence_weight: float,
        mask_class_weight: float,
        coarse_weight: float,
        final_weight: float,
        class_balance: float,
        proposal_weight: float,
        scale: float,
    ):
        """
        Args:
            ce_weight, dice_weight: weights of the cross-entropy and the dice loss.
            presence_weight, mask_class_weight: weights of the two losses of stage 5.
            coarse_weight, final_weight: weights of the coarse and of the final logits, relative to
                1 for the fine ones.
            class_balance: exponent b of the pixel weight frequency**-b; 0 for equal weights.
            proposal_weight: weight of the ranking loss, if stage 1 learns.
            scale: factor from proposal scores to logits.
        """
        super().__init__()
        self.ce_weight, self.dice_weight = ce_weight, dice_weight
        self.presence_weight, self.mask_class_weight = presence_weight, mask_class_weight
        self.map_weights = {"coarse": coarse_weight, "fine": 1.0, "final": final_weight}
        self.class_balance = class_balance
        self.proposal_weight, self.scale = proposal_weight, scale

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.DCP_CLIP.LOSS
        return {
            "ce_weight": node.CE_WEIGHT,
            "dice_weight": node.DICE_WEIGHT,
            "presence_weight": node.PRESENCE_WEIGHT,
            "mask_class_weight": node.MASK_CLASS_WEIGHT,
            "coarse_weight": node.COARSE_WEIGHT,
            "final_weight": node.FINAL_WEIGHT,
            "class_balance": node.CLASS_BALANCE,
            "proposal_weight": node.PROPOSAL_WEIGHT,
            "scale": cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        }

    def forward(
        self,
        logits: dict[str, Tensor],
        refinement: Refinement | dict[str, Tensor] | None,
        proposals: Proposals,
        labels: Tensor,
        num_categories: int,
    ) -> dict[str, Tensor]:
        """Every criterion has this interface; the first three arguments come from ``segment``.

        Args:
            logits: "coarse" (B, K, h, w), "fine" and (with stage 5) "final" (B, K, H/4, W/4); maps
                that are missing have no loss.
            refinement: output of stage 5; or a head's own losses by name, which are added; or None.
            proposals: the K categories of each image.
            labels: (B, H, W) category ids of the padded input; values outside 0 .. C-1 are ignored.
            num_categories: C.

        Returns:
            The losses by name. Their sum is the total loss.

        Raises:
            ValueError: if a head's own loss has the name of another loss.
        """
        present = present_categories(labels, num_categories)
        stride = _label_stride(logits, labels)
        sampled = labels[:, stride // 2 :: stride, stride // 2 :: stride]
        target = labels_to_proposals(sampled, proposals, num_categories)
        weight = self._pixel_weight(sampled, target, num_categories)
        losses = {}
        for name, maps in logits.items():
            maps = resize_to(maps.float(), target.shape[-2:])
            maps = maps.masked_fill(~proposals.valid[..., None, None], -1e4)
            # Both losses use these tensors: the K maps of a batch are large, and every further pass
            # over them costs as much as a convolution.
            log_p = maps.log_softmax(1)
            log_hit = log_p.gather(1, target.clamp(min=0)[:, None])[:, 0]
            factor = self.map_weights[name]
            ce = -(log_hit * weight).sum() / weight.sum().clamp(min=1e-6)
            losses[f"loss_{name}_ce"] = factor * self.ce_weight * ce
            losses[f"loss_{name}_dice"] = factor * self.dice_weight * _dice(log_p, log_hit, target)
        # If stage 1 does not learn, its loss would train nothing, or CLIP only.
        if proposals.learned:
            loss = self._proposal_loss(proposals.candidates or proposals, present)
            losses["loss_proposal"] = self.proposal_weight * loss
        present = proposals.gather(present)
        if isinstance(refinement, dict):
            if repeated := sorted(losses.keys() & refinement.keys()):
                raise ValueError(
                    f"The head's own losses {', '.join(repeated)} have names of other losses: "
                    "rename them."
                )
            losses |= refinement
        elif refinement is not None:
            losses |= self._class_losses(refinement, proposals, present)
        return losses

    def _proposal_loss(self, proposals: Proposals, present: Tensor) -> Tensor:
        present = proposals.gather(present)
        # Images without labels provide no negatives.
        absent = proposals.valid & ~present & present.any(1, keepdim=True)
        return ranking_loss(self.scale * proposals.scores, present, absent, dim=1)

    def _pixel_weight(self, labels: Tensor, target: Tensor, num_categories: int) -> Tensor:
        """(B, H, W) pixel weights: frequency**-b of the category in the batch; 0 where ignored."""
        known = target >= 0
        if not self.class_balance:
            return known.float()
        count = torch.bincount(labels[known], minlength=num_categories).float()
        rarity = (count / count.sum().clamp(min=1)).clamp(min=1e-4) ** -self.class_balance
        return rarity[labels.where(known, 0)] * known

    def _class_losses(
        self, refinement: Refinement, proposals: Proposals, present: Tensor
    ) -> dict[str, Tensor]:
        valid = proposals.valid
        # Images without labels provide no negatives; logits of padded proposals may be infinite.
        supervised = valid & present.any(1, keepdim=True)
        presence = F.binary_cross_entropy_with_logits(
            refinement.class_logits[supervised], present[supervised].float(), reduction="sum"
        ) / supervised.sum().clamp(min=1)
        # Only masks of categories that are present have a correct answer.
        rows = refinement.mask_logits[present]
        columns = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)[present]
        fit = F.cross_entropy(rows, columns, reduction="sum") / max(len(rows), 1)
        return {
            "loss_presence": self.presence_weight * presence,
            "loss_mask_class": self.mask_class_weight * fit,
        }


def _label_stride(logits: dict[str, Tensor], labels: Tensor) -> int:
    """Return the stride of the largest maps, in pixels, at most LABEL_STRIDE."""
    rows = max((maps.shape[-2] for maps in logits.values()), default=1)
    return min(-(-labels.shape[-2] // rows), LABEL_STRIDE)


def _dice(log_p: Tensor, log_hit: Tensor, target: Tensor) -> Tensor:
    """Compute the mean soft dice loss over the categories present (V-Net, arXiv 1606.04797).

    Ignored pixels do not count.

    Args:
        log_p: (B, K, H, W) log of the probability of each proposal.
        log_hit: (B, H, W) the same for the target only; any value where ignored.
        target: (B, H, W) index of the proposal, -1 where ignored.
    """
    known = (target >= 0).flatten(1).to(log_p.dtype)
    index = target.clamp(min=0).flatten(1)
    zeros = log_p.new_zeros(log_p.shape[:2])
    count = zeros.scatter_add(1, index, known)
    overlap = 2 * zeros.scatter_add(1, index, log_hit.flatten(1).exp() * known) + 1
    size = torch.einsum("bkn,bn->bk", log_p.flatten(2).exp(), known) + count + 1
    present = count > 0
    return ((1 - overlap / size) * present).sum() / present.sum().clamp(min=1)
