"""Stage 1: the scores of all names, in as few passes over the memory as possible."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rank_names"]

_NAMES_PER_CHUNK = 2048  # bounds the memory, and the similarities of a chunk fit into a cache
# exp(80) is a finite float32, and a cosine is at most 1. So the exponentials of smaller multiples
# of cosines need no maximum to be subtracted.
_MAX_EXPONENT = 80.0


@torch.no_grad()
def rank_names(
    tokens: Tensor,
    token_valid: Tensor,
    pooled: Tensor,
    text_features: Tensor,
    weights: tuple[float, float],
    lse_sharpness: float,
) -> Tensor:
    """Return the scores of :class:`CategoryProposal` for all names, equal up to rounding.

    One product of matrices compares a chunk of names with all image features. Its result has one
    row for each image feature, which is fast for any number of them.

    Args:
        tokens: (B, D, M) of unit length.
        token_valid: (B, M) bool, False at padding; each row has at least one True.
        pooled: (B, D) of unit length.
        text_features: (N, D) of unit length.
        weights: of the image-level and of the dense evidence.
        lse_sharpness: sharpness of the log-sum-exp over the tokens; 0 for the maximum.

    Returns:
        scores (B, N).
    """
    pooled_weight, dense_weight = weights
    # Padding becomes a copy of a valid token: it does not change the maximum.
    first = token_valid.int().argmax(1)[:, None, None].expand(-1, len(tokens[0]), 1)
    tokens = tokens.where(token_valid[:, None], tokens.gather(2, first))
    vectors = torch.cat([tokens.mT, pooled[:, None]], dim=1)
    share = (token_valid / token_valid.sum(1, keepdim=True))[:, None]  # (B, 1, M)
    scores = []
    for chunk in text_features.split(_NAMES_PER_CHUNK):
        similarity = vectors @ chunk.T  # (B, M + 1, n)
        score = pooled_weight * similarity[:, -1]
        if dense_weight:
            dense = _soft_maximum(similarity[:, :-1], share, lse_sharpness)
            score = score + dense_weight * dense
        scores.append(score)
    return torch.cat(scores, dim=1)


def _soft_maximum(similarity: Tensor, share: Tensor, sharpness: float) -> Tensor:
    """Return the maximum or log-sum-exp over dimension 1; changes `similarity` (B, M, n)."""
    if not sharpness:
        return similarity.amax(1)
    if sharpness > _MAX_EXPONENT:
        return ((sharpness * similarity).add_(share.mT.log()).logsumexp(1)) / sharpness
    return (share @ similarity.mul_(sharpness).exp_()).squeeze(1).log_() / sharpness
