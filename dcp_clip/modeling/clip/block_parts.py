"""The interface between a dense attention and the last block of a transformer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["LastBlock"]


class LastBlock(Protocol):
    """The last block of a transformer, split into the parts that a dense attention combines.

    Tokens are (B, N, C); the prefix (the class token and registers) comes first, then the patches.
    """

    def value(self, tokens: Tensor) -> Tensor:
        """Tokens to the values of their attention, (B, N, C)."""

    def query_key_value(
        self, tokens: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens to queries, keys and values (B, heads, N, c), as they enter the attention.

        Rotary positions of the (h, w) patches are applied to queries and keys.
        """

    def output(self, mixed: Tensor) -> Tensor:
        """Mixed values (B, N, C) to what the attention adds to the tokens."""

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """Tokens to the tokens after the feed-forward part, with its residual connection."""
