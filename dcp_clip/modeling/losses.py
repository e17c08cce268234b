"""The losses of the stages, over the K proposals of each image.

Void pixels and padding are taken out before anything is averaged: they contribute exactly zero loss
and zero gradient.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from ..structures import Proposals
from .class_refinement import Refinement
from .layers import resize_to

__all__ = [
    "SegmentationCriterion",
    "labels_to_proposals",
    "present_categories",
    "ranking_loss",
]

_VOID = -1


def present_categories(labels: Tensor, num_categories: int) -> Tensor:
    """(B, C) bool: the categories that have a pixel in `labels` (B, H, W); the rest is void."""
    flat = labels.flatten(1)
    inside = (flat >= 0) & (flat < num_categories)
    present = torch.zeros(len(labels), num_categories + 1, dtype=torch.bool, device=labels.device)
    present.scatter_(1, flat.where(inside, num_categories), True)
    return present[:, :num_categories]


def labels_to_proposals(labels: Tensor, proposals: Proposals, num_categories: int) -> Tensor:
    """(B, H, W) category ids to the index of the proposal, or -1 for void and unproposed pixels."""
    b, k = proposals.ids.shape
    table = labels.new_full((b, num_categories + 1), _VOID)
    order = torch.arange(k, device=labels.device).expand(b, k)
    ids = proposals.ids.where(proposals.valid, num_categories)
    table.scatter_(1, ids, order.to(table.dtype))
    table[:, num_categories] = _VOID
    inside = (labels >= 0) & (labels < num_categories)
    index = labels.where(inside, num_categories).flatten(1)
    return table.gather(1, index).view_as(labels)


def ranking_loss(logits: Tensor, positive: Tensor, negative: Tensor, dim: int) -> Tensor:
    """Mean over the positive entries of -log p, each alone against the negative ones of its line.

    Args:
        logits: (B, K).
        positive, negative: (B, K) bool; what is neither takes no part.
        dim: the lines: 1 for rows, 0 for columns.
    """
    rest = logits.masked_fill(~negative, -1e4).logsumexp(dim, keepdim=True)
    # softplus(rest - x) = -log(exp(x) / (exp(x) + exp(rest)))
    loss = F.softplus((rest - logits)[positive])
    return loss.sum() / max(len(loss), 1)


class SegmentationCriterion(nn.Module):
    """Ranking of the proposals; cross-entropy and dice on coarse, fine and final maps; presence and
    mask classification.

    The prototype's finding (cross-entropy over the proposals plus dice beats focal plus dice) is
    the default. Cross-entropy can weigh pixels by how rare their category is in the batch, which
    needs no list of class weights and so works for any vocabulary.
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
        balance: float,
        stride: int,
        proposal_weight: float,
        scale: float,
    ):
        """
        Args:
            ce_weight, dice_weight: of the per-pixel and the region loss, on every map.
            presence_weight, mask_class_weight: of stage 5's two losses.
            coarse_weight, final_weight: of the coarse and of the refined maps, beside 1 for the
                fine.
            balance: exponent b of the pixel weight frequency**-b; 0 weighs all pixels alike.
            stride: pixels between the positions at which the maps are compared with the labels.
            proposal_weight: of the ranking of the proposals, where stage 1 learns.
            scale: from proposal scores to logits.
        """
        super().__init__()
        self.ce_weight, self.dice_weight = ce_weight, dice_weight
        self.presence_weight, self.mask_class_weight = presence_weight, mask_class_weight
        self.map_weights = {"coarse": coarse_weight, "fine": 1.0, "final": final_weight}
        if stride < 1:
            raise ValueError(f"MODEL.DCP_CLIP.LOSS.STRIDE is {stride}; it must be 1 or more.")
        self.balance, self.stride = balance, stride
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
            "balance": node.BALANCE,
            "stride": node.STRIDE,
            "proposal_weight": node.PROPOSAL_WEIGHT,
            "scale": cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        }

    def forward(
        self,
        maps: dict[str, Tensor],
        refinement: Refinement | None,
        proposals: Proposals,
        labels: Tensor,
        num_categories: int,
    ) -> dict[str, Tensor]:
        """
        Args:
            maps: "coarse" (B, K, h, w), "fine" and (with stage 5) "final" (B, K, H/4, W/4) logits.
            refinement: stage 5's output, or None.
            proposals: the K categories of each image.
            labels: (B, H, W) category ids of the padded input; anything outside 0 .. C-1 is void.
            num_categories: C.

        Returns:
            named losses, to be summed.
        """
        present = present_categories(labels, num_categories)
        start = self.stride // 2
        sampled = labels[:, start :: self.stride, start :: self.stride]
        target = labels_to_proposals(sampled, proposals, num_categories)
        weight = self._pixel_weight(sampled, target, num_categories)
        losses = {}
        for name, logits in maps.items():
            logits = resize_to(logits.float(), target.shape[-2:])
            logits = logits.masked_fill(~proposals.valid[..., None, None], -1e4)
            # Both losses read this one, and at the target only where that is enough: K maps of the
            # batch are large, and every further pass over them costs as much as a convolution.
            log_p = logits.log_softmax(1)
            log_hit = log_p.gather(1, target.clamp(min=0)[:, None])[:, 0]
            factor = self.map_weights[name]
            ce = -(log_hit * weight).sum() / weight.sum().clamp(min=1e-6)
            losses[f"loss_{name}_ce"] = factor * self.ce_weight * ce
            losses[f"loss_{name}_dice"] = factor * self.dice_weight * _dice(log_p, log_hit, target)
        present = proposals.to_category(present)
        # Where nothing in stage 1 learns, its loss would pull at CLIP alone, or at nothing.
        if proposals.learned:
            # Whoever has nothing labelled says nothing of what is absent either.
            absent = proposals.valid & ~present & present.any(1, keepdim=True)
            loss = ranking_loss(self.scale * proposals.scores, present, absent, dim=1)
            losses["loss_proposal"] = self.proposal_weight * loss
        if refinement is not None:
            losses |= self._class_losses(refinement, proposals, present)
        return losses

    def _pixel_weight(self, labels: Tensor, target: Tensor, num_categories: int) -> Tensor:
        """(B, H, W) weight a pixel: 0 for void, else its category's frequency in the batch**-b."""
        known = target >= 0
        if not self.balance:
            return known.float()
        count = torch.bincount(labels[known], minlength=num_categories).float()
        rarity = (count / count.sum().clamp(min=1)).clamp(min=1e-4) ** -self.balance
        return rarity[labels.where(known, 0)] * known

    def _class_losses(
        self, refinement: Refinement, proposals: Proposals, present: Tensor
    ) -> dict[str, Tensor]:
        valid = proposals.valid
        # An image without labels says nothing about what is absent; padded places may be infinite.
        judged = valid & present.any(1, keepdim=True)
        presence = F.binary_cross_entropy_with_logits(
            refinement.class_logits[judged], present[judged].float(), reduction="sum"
        ) / judged.sum().clamp(min=1)
        # Only masks of categories that are there have a right answer.
        rows = refinement.mask_logits[present.bool()]
        columns = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)[present.bool()]
        fit = F.cross_entropy(rows, columns, reduction="sum") / max(len(rows), 1)
        return {
            "loss_presence": self.presence_weight * presence,
            "loss_mask_class": self.mask_class_weight * fit,
        }


def _dice(log_p: Tensor, log_hit: Tensor, target: Tensor) -> Tensor:
    """Mean soft dice loss over the categories present (V-Net, arXiv 1606.04797), void left out.

    Args:
        log_p: (B, K, H, W) log of the probability of each proposal.
        log_hit: (B, H, W) the same of the target alone; anything where that is void.
        target: (B, H, W) index of the proposal, -1 for void.
    """
    known = (target >= 0).flatten(1).to(log_p.dtype)
    index = target.clamp(min=0).flatten(1)
    nothing = log_p.new_zeros(log_p.shape[:2])
    count = nothing.scatter_add(1, index, known)
    overlap = 2 * nothing.scatter_add(1, index, log_hit.flatten(1).exp() * known) + 1
    size = torch.einsum("bkn,bn->bk", log_p.flatten(2).exp(), known) + count + 1
    present = count > 0
    return ((1 - overlap / size) * present).sum() / present.sum().clamp(min=1)
