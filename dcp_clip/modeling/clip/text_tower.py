"""Running CLIP's text tower on no more tokens than its answer depends on."""

from __future__ import annotations

import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

__all__ = ["can_be_cut", "encode_tokens", "needed_lengths", "rounded_lengths"]


def can_be_cut(text: nn.Module) -> bool:
    """Whether a text tower ignores what stands behind the end of text.

    So does open_clip's own transformer where each token sees only those before it and the feature
    is read at the end of text. Towers of any other kind (read at a class token or at the last
    position, bidirectional, Hugging Face's, subclasses) are run as they are.
    """
    if type(text) is not TextTransformer or text.output_tokens:
        return False
    if text.cls_emb is not None or text.pool_type not in ("argmax", "eos"):
        return False
    mask = text.attn_mask
    if mask is None or mask.dim() != 2:
        return False
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool(torch.isneginf(mask[later]).all())


def needed_lengths(text: nn.Module, tokens: Tensor) -> Tensor:
    """(N,) tokens of each row of (N, L) that its feature depends on: to the end of text, or all."""
    if not can_be_cut(text):
        return torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
    if text.pool_type == "eos":
        return (tokens == text.eos_id).int().argmax(1) + 1
    return tokens.argmax(1) + 1


def rounded_lengths(lengths: Tensor, context: int) -> Tensor:
    """Lengths (N,) rounded up to 8, 12, 16, 24, 32, 48, ... and at most `context`: few shapes."""
    steps = [step << i for i in range(context.bit_length()) for step in (8, 12)]
    steps = torch.tensor([s for s in steps if s < context] + [context], device=lengths.device)
    return steps[torch.bucketize(lengths, steps)]


def encode_tokens(text: nn.Module, tokens: Tensor) -> Tensor:
    """What ``text`` returns, (N, D), for token ids (N, L) of which those behind L are cut off.

    L is at least the largest of :func:`needed_lengths`; below the tower's context length only for
    towers that can be cut.
    """
    if type(text) is not TextTransformer or tokens.shape[1] >= text.context_length:
        return text(tokens)
    length, dtype = tokens.shape[1], text.transformer.get_cast_dtype()
    x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
    x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
    x = text_global_pool(text.ln_final(x), tokens, text.pool_type, text.eos_id)
    if text.text_projection is None:
        return x
    if isinstance(text.text_projection, nn.Linear):
        return text.text_projection(x)
    return x @ text.text_projection
