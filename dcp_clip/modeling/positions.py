"""What stage 1 does to the positions of the dense map before names are compared with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import check_heads

__all__ = ["PositionGrouping", "merge_positions"]

_MAX_LOGITS = 16_000_000  # an image's, at a time: 64 MB


class PositionGrouping(nn.Module):
    """Lets each position borrow from those that look like parts of the same thing.

    Attention whose values are CLIP's own features, unprojected: what is learned is which positions
    belong together, not what they are called, so unseen names gain as seen ones do. A closed gate
    starts it as the identity.
    """

    def __init__(self, embed_dim: int, dim: int, num_heads: int):
        """
        Args:
            embed_dim: D, CLIP's joint embedding width.
            dim: width of queries and keys.
            num_heads: heads, each with a mixture of its own, averaged; must divide `dim`.

        Raises:
            ValueError: if it does not.
        """
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query_key = nn.Linear(embed_dim, 2 * dim)
        self.gate = nn.Parameter(torch.zeros(num_heads))

    def forward(self, positions: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            positions: (B, D, N) unit length.
            valid: (B, N) bool, False at padding.

        Returns:
            (B, D, N) unit length.
        """
        rows = positions.transpose(1, 2)
        qk = self.query_key(rows * rows.shape[2] ** 0.5)
        query, key = qk.unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # A large image's positions some at a time: all with all would be gigabytes.
        step = max(1, _MAX_LOGITS // (self.num_heads * key.shape[2]))
        borrowed = [
            positions @ self._mixture(some, key, valid).mT for some in query.split(step, dim=2)
        ]
        return F.normalize(positions + torch.cat(borrowed, dim=2), dim=1)

    def _mixture(self, query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
        """(B, n, N): what n of the positions, by their queries (B, heads, n, dim / heads), borrow
        from each."""
        logits = query @ key.mT * query.shape[-1] ** -0.5  # (B, heads, n, N)
        weight = logits.masked_fill(~valid[:, None, None], float("-inf")).softmax(3)
        return (weight * self.gate.tanh().view(1, -1, 1, 1)).sum(1)


def merge_positions(positions: Tensor, valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Reduce the positions to at most `count` by averaging those that are most alike.

    The names have no say in it, so what is proposed among some names does not depend on others; and
    a small thing keeps a vector of its own as long as it looks like nothing else. The matching is
    ToMe's (arXiv 2210.09461): every second vector may be merged into the most similar of the rest.

    Args:
        positions: (B, D, N) unit length.
        valid: (B, N) bool, False at padding, which weighs nothing.
        count: most vectors to keep, 1 or more.

    Returns:
        (B, D, M) unit length and (B, M) bool, M = min(N, count).
    """
    sums = (positions * valid[:, None]).transpose(1, 2)  # (B, N, D)
    while sums.shape[1] > count:
        unit = F.normalize(sums, dim=2)
        moving, staying = sums[:, ::2], sums[:, 1::2]
        best, target = (unit[:, ::2] @ unit[:, 1::2].mT).max(2)
        # The less similar half stays, so that what resembles nothing is not forced to merge.
        merged = min(sums.shape[1] - count, -(-moving.shape[1] // 2))
        # Padding is nothing, and goes first.
        best = best.masked_fill(~valid[:, ::2], 2.0)
        order = best.argsort(dim=1, descending=True, stable=True)
        out, keep = order[:, :merged], order[:, merged:].sort(1).values
        width = (-1, -1, sums.shape[2])
        index = target.gather(1, out)[..., None].expand(*width)
        staying = staying.scatter_add(1, index, moving.gather(1, out[..., None].expand(*width)))
        kept = moving.gather(1, keep[..., None].expand(*width))
        sums = torch.cat([kept, staying], dim=1)
        valid = (sums != 0).any(2)
    return F.normalize(sums, dim=2).transpose(1, 2), valid
