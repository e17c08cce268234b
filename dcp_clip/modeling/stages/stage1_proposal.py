"""Stage 1: choose the K categories that are likely in this image.

CLIP gives two kinds of evidence. The similarity with its image-level vector shows the subject of
the image. The similarity with its dense features also shows small objects.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import masked_max
from dcp_clip.modeling.stages.registry import CATEGORY_PROPOSAL_REGISTRY
from dcp_clip.modeling.stages.stage1_ranking import rank_names
from dcp_clip.modeling.stages.stage1_token_grouping import TokenGrouping, merge_tokens
from dcp_clip.structures import Proposals

__all__ = [
    "AllCategories",
    "CategoryProposal",
    "DenseProposal",
    "OracleProposal",
    "PooledProposal",
]

# The ranking merges similar tokens until at most this many remain, which keeps the cost of 20,000
# names small.
_NUM_TOKENS = 64
# In training, the probability that a category gets a random rank.
_RANDOM_RATIO = 0.1


def _all_ids(batch_size: int, category_rows: Tensor) -> Tensor:
    """Return the ids of all categories, (B, C)."""
    return torch.arange(len(category_rows), device=category_rows.device).expand(batch_size, -1)


class _Evidence(NamedTuple):
    """The image features, of unit length, that are compared with the text features."""

    tokens: Tensor  # (B, D, N)
    token_valid: Tensor  # (B, N) bool, False at padding
    pooled: Tensor  # (B, D)


@CATEGORY_PROPOSAL_REGISTRY.register()
class CategoryProposal(nn.Module):
    """Proposes the K categories with the highest image-level and dense CLIP similarity.

    The score of a category is ``pooled_weight * cos(pooled, text) + dense_weight * max cos(dense,
    text)``, with the maximum over the positions. Scores do not depend on other categories, as they
    would with a softmax over the vocabulary. So a category that is not proposed cannot change the
    result.

    The maximum over the positions is smooth (log-sum-exp): a match at many positions has a higher
    score. If the stage is learned, it first groups the tokens of one object. A ranking loss on the
    scores teaches it to rank the categories that are present above the others. This loss does not
    train the encoder: with its gradients, the masks of stuff were less accurate
    (docs/plain_clip.md).

    In training, the categories of the ground truth are always proposed. Some of the other
    categories get a random rank, which teaches the decoders to reject any wrong proposal.
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
        lse_sharpness: float = 0.0,
        grouping: TokenGrouping | None = None,
        num_tokens: int = _NUM_TOKENS,
        random_ratio: float = _RANDOM_RATIO,
    ):
        """
        Args:
            num_proposals: K, at least 1; all categories if the vocabulary is not larger.
            pooled_weight: weight of the image-level evidence.
            dense_weight: weight of the dense evidence.
            lse_sharpness: sharpness of the log-sum-exp over the positions; 0 for the maximum.
            grouping: the learned part; None if nothing is learned.
            num_tokens: maximum number of tokens in the ranking; 0 for all positions.
            random_ratio: in training, the probability that a category gets a random rank.

        Raises:
            ValueError: for an impossible value; the message names the config key.
        """
        super().__init__()
        node = "MODEL.DCP_CLIP.PROPOSAL"
        for key, value, least in (
            ("NUM_PROPOSALS", num_proposals, 1),
            ("LSE_SHARPNESS", lse_sharpness, 0),
        ):
            if value < least:
                raise ValueError(f"{node}.{key} is {value}; it must be {least} or more.")
        if self.ranks and not (pooled_weight or dense_weight):
            raise ValueError(
                f"{node}.NAME {type(self).__name__} has no evidence to rank categories by: set "
                f"{node}.POOLED_WEIGHT or DENSE_WEIGHT, whichever it uses, above 0."
            )
        self.num_proposals = num_proposals
        self.pooled_weight, self.dense_weight = pooled_weight, dense_weight
        self.lse_sharpness, self.num_tokens = lse_sharpness, num_tokens
        self.random_ratio = random_ratio
        self.grouping = grouping

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        model, node = cfg.MODEL.DCP_CLIP, cfg.MODEL.DCP_CLIP.PROPOSAL
        widths = (input_shape["dense"].channels, model.DIM, model.NUM_HEADS)
        return {
            "num_proposals": node.NUM_PROPOSALS,
            "pooled_weight": node.POOLED_WEIGHT,
            "dense_weight": node.DENSE_WEIGHT,
            "lse_sharpness": node.LSE_SHARPNESS,
            "grouping": TokenGrouping(*widths) if node.LEARNED else None,
        }

    def forward(
        self,
        dense: Tensor,
        pooled: Tensor,
        text_features: Tensor,
        category_rows: Tensor,
        pixel_valid: Tensor,
        present: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Proposals:
        """
        Args:
            dense: (B, D, h, w) dense CLIP features; only their direction matters.
            pooled: (B, D) image-level CLIP features.
            text_features: (N, D) unit-length text features, one row for each name.
            category_rows: (C, S) the rows of `text_features` that belong to each category.
            pixel_valid: (B, h, w) bool, False at positions of padding.
            present: (B, C) bool, the categories of the ground truth; they are always proposed.
            ids: (B, K) categories to propose, if they are already known.

        Returns:
            K = min(`num_proposals`, C) proposals for each image, in vocabulary order. In training,
            K is larger if an image has more categories.
        """
        evidence = self._evidence(dense, pooled, pixel_valid)
        # The ranking has no gradient. The scores of the proposals are computed again, with one.
        if ids is None:
            with torch.no_grad():
                ids = self._rank(evidence, text_features, category_rows, present)
        # In vocabulary order, so that sums over the proposals do not depend on the other names.
        ids = ids.sort(dim=1).values
        return self._propose(evidence, text_features, category_rows, ids)

    def _evidence(self, dense: Tensor, pooled: Tensor, pixel_valid: Tensor) -> _Evidence:
        tokens = F.normalize(dense.float(), dim=1).flatten(2)
        token_valid = pixel_valid.flatten(1)
        if self.grouping is not None:
            tokens, pooled = self.grouping(tokens.detach(), token_valid), pooled.detach()
        return _Evidence(tokens, token_valid, F.normalize(pooled.float(), dim=1))

    def _rank(
        self,
        evidence: _Evidence,
        text_features: Tensor,
        category_rows: Tensor,
        present: Tensor | None,
    ) -> Tensor:
        """Return the ids of the K categories with the highest scores, (B, K)."""
        batch_size, num_categories = len(evidence.pooled), len(category_rows)
        if num_categories <= self.num_proposals:
            return _all_ids(batch_size, category_rows)
        if self.num_tokens:
            merged = merge_tokens(evidence.tokens, evidence.token_valid, self.num_tokens)
            evidence = _Evidence(*merged, evidence.pooled)
        weights = (self.pooled_weight, self.dense_weight)
        scores = rank_names(*evidence, text_features, weights, self.lse_sharpness)
        scores = scores[:, category_rows].amax(-1)
        k = self.num_proposals
        if present is not None:
            if self.random_ratio:
                random_rank = torch.rand_like(scores) < self.random_ratio
                noise = scores.mean() + scores.std() * torch.randn_like(scores)
                scores = scores.where(~random_rank, noise)
            scores = scores.masked_fill(present, float("inf"))
            k = min(max(k, int(present.sum(1).max())), num_categories)
        return scores.topk(k, dim=1).indices

    def _score(self, evidence: _Evidence, text_features: Tensor) -> Tensor:
        """Return the scores (B, M) of text features (B, M, D)."""
        score = torch.zeros(text_features.shape[:2], device=text_features.device)
        if self.pooled_weight:
            cosines = torch.einsum("bd,bmd->bm", evidence.pooled, text_features)
            score = score + self.pooled_weight * cosines
        if self.dense_weight:
            similarity = torch.bmm(text_features, evidence.tokens)
            best = self._max_similarity(similarity, evidence.token_valid[:, None])
            score = score + self.dense_weight * best
        return score

    def _max_similarity(self, similarity: Tensor, token_valid: Tensor) -> Tensor:
        """Return the maximum or log-sum-exp over the last dimension where `token_valid` is True."""
        if not self.lse_sharpness:
            return masked_max(similarity, token_valid)
        logits = (self.lse_sharpness * similarity).masked_fill(~token_valid, float("-inf"))
        return (logits.logsumexp(-1) - token_valid.sum(-1).log()) / self.lse_sharpness

    def _propose(
        self, evidence: _Evidence, text_features: Tensor, category_rows: Tensor, ids: Tensor
    ) -> Proposals:
        """Compute the scores and text features of the chosen ids.

        The scores are computed again from K rows instead of gathered from the ranking. So their
        last bits do not depend on the number of names in the ranking.
        """
        synonyms = text_features[category_rows[ids]]  # (B, K, S, D)
        # One synonym at a time, as the shape of a matrix product can change its last bits.
        scores = [self._score(evidence, features) for features in synonyms.unbind(2)]
        scores = torch.stack(scores, dim=2)
        best = scores.argmax(-1, keepdim=True)
        index = best[..., None].expand(-1, -1, -1, synonyms.shape[-1])
        chosen = synonyms.gather(2, index).squeeze(2)
        scores = scores.gather(2, best).squeeze(2)
        valid = torch.ones_like(ids, dtype=torch.bool)
        return Proposals(ids, scores, valid, chosen, learned=self.grouping is not None)


@CATEGORY_PROPOSAL_REGISTRY.register()
class PooledProposal(CategoryProposal):
    """Uses only the image-level evidence (ablation)."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), "dense_weight": 0.0, "grouping": None}


@CATEGORY_PROPOSAL_REGISTRY.register()
class DenseProposal(CategoryProposal):
    """Uses only the dense evidence (ablation)."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {**super().from_config(cfg, input_shape), "pooled_weight": 0.0}


@CATEGORY_PROPOSAL_REGISTRY.register()
class AllCategories(CategoryProposal):
    """Proposes every category, K = C, as a model without stage 1."""

    ranks = False

    def _rank(self, evidence, text_features, category_rows, present) -> Tensor:
        return _all_ids(len(evidence.pooled), category_rows)


@CATEGORY_PROPOSAL_REGISTRY.register()
class OracleProposal(CategoryProposal):
    """Proposes exactly the categories of the ground truth, to measure the errors of stage 1.

    The model needs the labels also in evaluation. ``train_net.py`` reads them if the class that
    MODEL.DCP_CLIP.PROPOSAL.NAME names has `needs_labels`.
    """

    ranks = False
    needs_labels = True

    def forward(
        self, dense, pooled, text_features, category_rows, pixel_valid, present=None, ids=None
    ) -> Proposals:
        """As :meth:`CategoryProposal.forward`; images with fewer categories are padded.

        Raises:
            ValueError: without the ground truth.
        """
        if ids is not None:
            return super().forward(
                dense, pooled, text_features, category_rows, pixel_valid, present, ids
            )
        if present is None:
            raise ValueError(
                "MODEL.DCP_CLIP.PROPOSAL.NAME is 'OracleProposal', which needs the ground truth "
                "('sem_seg') of every image, in evaluation too."
            )
        evidence = self._evidence(dense, pooled, pixel_valid)
        count = present.sum(1).clamp(min=1)  # an image of ignored pixels needs one, too
        valid = torch.arange(int(count.max()), device=present.device)[None] < count[:, None]
        ids = present.float().topk(valid.shape[1], dim=1).indices
        # In vocabulary order, with the padding at the end.
        ids = ids.masked_fill(~valid, len(category_rows)).sort(dim=1).values
        ids = ids.clamp(max=len(category_rows) - 1)
        proposals = self._propose(evidence, text_features, category_rows, ids)
        proposals.valid = valid
        return proposals
