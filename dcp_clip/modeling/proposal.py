"""Stage 1: which of the C names are likely in this image?

CLIP is asked twice: its image-level vector says what the picture is about, its dense map says what
stands somewhere in it, however small. The names are ranked on a bounded number of vectors that
stand for the positions, and taken in chunks, so that neither memory nor, by much, time grows with
the vocabulary.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from ..structures import Proposals
from .build import CATEGORY_PROPOSAL_REGISTRY
from .layers import masked_max
from .positions import PositionGrouping, merge_positions

__all__ = [
    "AllCategories",
    "CategoryProposal",
    "DenseProposal",
    "OracleProposal",
    "PooledProposal",
]

_NAMES_PER_CHUNK = 2048


@CATEGORY_PROPOSAL_REGISTRY.register()
class CategoryProposal(nn.Module):
    """Top K categories by image-level and dense CLIP evidence combined.

    A category's score is ``pooled_weight * cos(pooled, text) + dense_weight * best cos(dense,
    text)`` over the positions. No term compares names with each other (as a softmax over the
    vocabulary would), so a name that is not proposed cannot change the answer.

    The best position is a soft maximum, which also counts how much of the image agrees. Where the
    stage is learned, positions of one thing are grouped first, and a loss on the scores of what was
    proposed teaches to rank what is there above what is not.

    In training the categories of the image's ground truth are always proposed; a share of the
    remaining places can be given to random names, which teaches the decoders to refuse whatever is
    proposed.
    """

    # Whether scores decide what is proposed.
    ranks = True

    @configurable
    def __init__(
        self,
        *,
        num_proposals: int,
        pooled_weight: float,
        dense_weight: float,
        random_ratio: float,
        sharpness: float = 0.0,
        num_positions: int = 0,
        grouping: PositionGrouping | None = None,
    ):
        """
        Args:
            num_proposals: K, at least 1; all categories when the vocabulary is no larger.
            pooled_weight: weight of the image-level evidence.
            dense_weight: weight of the dense evidence.
            random_ratio: in training, the chance of each category to be ranked at random.
            sharpness: of the soft maximum over the positions; 0 for the maximum itself.
            num_positions: vectors that stand for the positions in the ranking; 0 for all of them.
            grouping: what is learned; None for nothing.

        Raises:
            ValueError: naming the key whose value makes no sense.
        """
        super().__init__()
        node = "MODEL.DCP_CLIP.PROPOSAL"
        for key, value, least in (
            ("NUM_PROPOSALS", num_proposals, 1),
            ("SHARPNESS", sharpness, 0),
            ("NUM_POSITIONS", num_positions, 0),
        ):
            if value < least:
                raise ValueError(f"{node}.{key} is {value}; it must be {least} or more.")
        if self.ranks and not (pooled_weight or dense_weight):
            raise ValueError(
                f"{node}.NAME {type(self).__name__} has no evidence to rank names by: set "
                f"{node}.POOLED_WEIGHT or DENSE_WEIGHT, whichever it uses, above 0."
            )
        self.num_proposals = num_proposals
        self.pooled_weight, self.dense_weight = pooled_weight, dense_weight
        self.random_ratio = random_ratio
        self.sharpness, self.num_positions = sharpness, num_positions
        self.grouping = grouping

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.DCP_CLIP.PROPOSAL
        grouping = None
        if node.LEARNED:
            embed_dim = input_shape["dense"].channels
            grouping = PositionGrouping(
                embed_dim, cfg.MODEL.DCP_CLIP.DIM, cfg.MODEL.DCP_CLIP.NUM_HEADS
            )
        return {
            "num_proposals": node.NUM_PROPOSALS,
            "pooled_weight": node.POOLED_WEIGHT,
            "dense_weight": node.DENSE_WEIGHT,
            "random_ratio": node.RANDOM_RATIO,
            "sharpness": node.SHARPNESS,
            "num_positions": node.NUM_POSITIONS,
            "grouping": grouping,
        }

    def forward(
        self,
        dense: Tensor,
        pooled: Tensor,
        text: Tensor,
        rows: Tensor,
        valid: Tensor,
        present: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Proposals:
        """
        Args:
            dense: (B, D, h, w) dense CLIP features; only their direction counts.
            pooled: (B, D) image-level CLIP features.
            text: (N, D) unit-length text features, one row a name.
            rows: (C, S) the rows of `text` that speak for each category.
            valid: (B, h, w) bool, False at positions that hold padding only.
            present: (B, C) bool, the categories of the ground truth; they are always proposed.
            ids: (B, K) categories to propose, chosen already.

        Returns:
            K = min(`num_proposals`, C) proposals an image, in vocabulary order; more in training
            where an image has more categories.
        """
        dense, pooled, valid = self._prepare(dense, pooled, valid)
        # Ranking is not differentiated; the scores of the chosen few are, below.
        if ids is None:
            with torch.no_grad():
                ids = self._choose(dense, pooled, text, rows, valid, present)
        # In vocabulary order, so that sums over the proposals do not depend on the other names.
        ids = ids.sort(dim=1).values
        return self._propose(dense, pooled, text, rows, valid, ids)

    def _prepare(self, dense, pooled, valid) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (B, D, N) and pooled (B, D) of unit length, and (B, N) which are no padding."""
        dense = F.normalize(dense.float(), dim=1).flatten(2)
        valid = valid.flatten(1)
        if self.grouping is not None:
            dense = self.grouping(dense, valid)
        return dense, F.normalize(pooled.float(), dim=1), valid

    def _choose(self, dense, pooled, text, rows, valid, present) -> Tensor:
        """(B, K) ids of the best categories."""
        num_categories = len(rows)
        if num_categories <= self.num_proposals:
            return torch.arange(num_categories, device=rows.device).expand(len(dense), -1)
        if self.num_positions:
            dense, valid = merge_positions(dense, valid, self.num_positions)
        scores = [
            self._score(dense, pooled, part.expand(len(dense), -1, -1), valid)
            for part in text.split(_NAMES_PER_CHUNK)
        ]
        scores = torch.cat(scores, dim=1)[:, rows].amax(-1)
        k = self.num_proposals
        if present is not None:
            if self.random_ratio:
                lottery = torch.rand_like(scores) < self.random_ratio
                noise = scores.mean() + scores.std() * torch.randn_like(scores)
                scores = scores.where(~lottery, noise)
            scores = scores.masked_fill(present, float("inf"))
            k = min(max(k, int(present.sum(1).max())), num_categories)
        return scores.topk(k, dim=1).indices

    def _score(self, dense: Tensor, pooled: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        """Evidence (B, M) for text features (B, M, D)."""
        score = torch.zeros(text.shape[:2], device=text.device)
        if self.pooled_weight:
            score = score + self.pooled_weight * torch.einsum("bd,bmd->bm", pooled, text)
        if self.dense_weight:
            similarity = torch.bmm(text, dense)
            score = score + self.dense_weight * self._best(similarity, valid[:, None])
        return score

    def _best(self, similarity: Tensor, valid: Tensor) -> Tensor:
        """The maximum, hard or soft, over the last dimension where `valid` holds."""
        if not self.sharpness:
            return masked_max(similarity, valid)
        spread = (self.sharpness * similarity).masked_fill(~valid, float("-inf")).logsumexp(-1)
        return (spread - valid.sum(-1).log()) / self.sharpness

    def _propose(self, dense, pooled, text, rows, valid, ids) -> Proposals:
        """Scores and text features of the chosen ids, from tensors of K rows only.

        The scores are computed again rather than gathered, so that their last bits do not depend on
        how many names the ranking went through.
        """
        names = text[rows[ids]]  # (B, K, S, D)
        # One synonym at a time, as the shape of a matrix product can change its last bits.
        score = [self._score(dense, pooled, name, valid) for name in names.unbind(2)]
        score = torch.stack(score, dim=2)
        best = score.argmax(-1, keepdim=True)
        names = names.gather(2, best[..., None].expand(-1, -1, -1, names.shape[-1])).squeeze(2)
        score = score.gather(2, best).squeeze(2)
        valid = torch.ones_like(ids, dtype=torch.bool)
        return Proposals(ids, score, valid, names, learned=self.grouping is not None)


@CATEGORY_PROPOSAL_REGISTRY.register()
class PooledProposal(CategoryProposal):
    """Image-level evidence only (ablation)."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), "dense_weight": 0.0, "grouping": None}


@CATEGORY_PROPOSAL_REGISTRY.register()
class DenseProposal(CategoryProposal):
    """Dense evidence only (ablation)."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), "pooled_weight": 0.0}


@CATEGORY_PROPOSAL_REGISTRY.register()
class AllCategories(CategoryProposal):
    """Every category goes further, K = C: the model without a proposal stage."""

    ranks = False

    def _choose(self, dense, pooled, text, rows, valid, present) -> Tensor:
        return torch.arange(len(rows), device=rows.device).expand(len(dense), -1)


@CATEGORY_PROPOSAL_REGISTRY.register()
class OracleProposal(CategoryProposal):
    """Exactly the categories of the ground truth, at test time too: for measuring what proposals
    cost.

    The model needs the labels in evaluation, too: ``train_net.py`` reads them where
    MODEL.DCP_CLIP.PROPOSAL.NAME names a class with `needs_labels`.
    """

    ranks = False
    needs_labels = True

    def forward(self, dense, pooled, text, rows, valid, present=None, ids=None) -> Proposals:
        """As :meth:`CategoryProposal.forward`; rows of images with fewer categories are padded.

        Raises:
            ValueError: without the ground truth.
        """
        if ids is not None:
            return super().forward(dense, pooled, text, rows, valid, present, ids)
        if present is None:
            raise ValueError(
                "MODEL.DCP_CLIP.PROPOSAL.NAME is 'OracleProposal', which needs the ground truth "
                "('sem_seg') of every image, in evaluation too."
            )
        dense, pooled, valid = self._prepare(dense, pooled, valid)
        count = present.sum(1).clamp(min=1)  # an image of void pixels still needs one name
        places = torch.arange(int(count.max()), device=present.device)[None] < count[:, None]
        ids = present.float().topk(places.shape[1], dim=1).indices
        # In vocabulary order, with what pads the row behind it.
        ids = ids.masked_fill(~places, len(rows)).sort(dim=1).values.clamp(max=len(rows) - 1)
        out = self._propose(dense, pooled, text, rows, valid, ids)
        out.valid = places
        return out
