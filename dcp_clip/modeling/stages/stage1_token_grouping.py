"""Stage 1: group the tokens of the dense features (learned), and merge similar tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import check_heads

__all__ = ["TokenGrouping", "merge_tokens"]

# Attention logits of one image in memory at a time. On a CPU they fit into a cache.
_CHUNK_CPU, _CHUNK_GPU = 1_000_000, 16_000_000


class TokenGrouping(nn.Module):
    """Mixes each token with tokens that look like parts of the same object.

    This is an attention whose values are CLIP's features without a projection. It learns which
    tokens belong together, but not their names, so it helps unseen names as much as seen ones. The
    gate starts closed, so an untrained module is the identity.
    """

    def __init__(self, embed_dim: int, dim: int, num_heads: int):
        """
        Args:
            embed_dim: D, width of CLIP's embeddings.
            dim: width of queries and keys.
            num_heads: attention heads, which are averaged; must divide `dim`.

        Raises:
            ValueError: if `num_heads` does not divide `dim`.
        """
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query_key = nn.Linear(embed_dim, 2 * dim)
        self.gate = nn.Parameter(torch.zeros(num_heads))

    def forward(self, tokens: Tensor, token_valid: Tensor) -> Tensor:
        """
        Args:
            tokens: (B, D, N) of unit length.
            token_valid: (B, N) bool, False at padding.

        Returns:
            (B, D, N) of unit length.
        """
        features = tokens.transpose(1, 2)
        qk = self.query_key(features * features.shape[2] ** 0.5)
        query, key = qk.unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = query * query.shape[-1] ** -0.5
        chunks = [query]
        if not torch.compiler.is_compiling():  # the size is an input of an exported program
            # All attention logits of a large image would need gigabytes.
            most = _CHUNK_GPU if query.is_cuda else _CHUNK_CPU
            step = max(1, most // (self.num_heads * key.shape[2]))
            chunks = query.split(step, dim=2)
        mixed = [tokens @ self._attention(chunk, key, token_valid).mT for chunk in chunks]
        return F.normalize(tokens + torch.cat(mixed, dim=2), dim=1)

    def _attention(self, query: Tensor, key: Tensor, token_valid: Tensor) -> Tensor:
        """Return gated attention weights (B, n, N) of n queries (B, heads, n, dim / heads)."""
        logits = query @ key.mT  # (B, heads, n, N)
        weight = logits.masked_fill_(~token_valid[:, None, None], float("-inf")).softmax(3)
        return (self.gate.tanh()[None] @ weight.flatten(2)).view(-1, *weight.shape[2:])


def merge_tokens(tokens: Tensor, token_valid: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Reduce the tokens to at most `count` by averaging the most similar ones.

    The merging does not depend on the names, so the score of a name does not depend on other names.
    A small object keeps its own token as long as no other token is similar. The matching is that of
    ToMe (arXiv 2210.09461): every second token may be merged into the most similar of the others.

    Args:
        tokens: (B, D, N) of unit length.
        token_valid: (B, N) bool, False at padding, which has no weight.
        count: maximum number of tokens to keep, at least 1.

    Returns:
        (B, D, M) of unit length and (B, M) bool, M = min(N, count).
    """
    sums = (tokens * token_valid[:, None]).transpose(1, 2)  # (B, N, D)
    while sums.shape[1] > count:
        unit = F.normalize(sums, dim=2)
        source, target = sums[:, ::2], sums[:, 1::2]
        similarity, nearest = (unit[:, ::2] @ unit[:, 1::2].mT).max(2)
        # The less similar half stays, so that a token without a similar one is not merged.
        num_merged = min(sums.shape[1] - count, -(-source.shape[1] // 2))
        # Padding is merged first.
        similarity = similarity.masked_fill(~token_valid[:, ::2], 2.0)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        merged, kept = order[:, :num_merged], order[:, num_merged:].sort(1).values
        width = (-1, -1, sums.shape[2])
        index = nearest.gather(1, merged)[..., None].expand(*width)
        target = target.scatter_add(1, index, source.gather(1, merged[..., None].expand(*width)))
        source = source.gather(1, kept[..., None].expand(*width))
        sums = torch.cat([source, target], dim=1)
        token_valid = (sums != 0).any(2)
    return F.normalize(sums, dim=2).transpose(1, 2), token_valid
