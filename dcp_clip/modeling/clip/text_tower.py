"""Run CLIP's text tower without the padding tokens that do not change its features."""

from __future__ import annotations

import torch
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

__all__ = [
    "can_truncate",
    "encode_rows",
    "encode_tokens",
    "needed_lengths",
    "prompt_lengths",
    "rounded_lengths",
]


def can_truncate(text: nn.Module) -> bool:
    """Return whether the features of a text tower ignore the tokens after the end of text.

    This is true for open_clip's own transformer with a causal mask, if its feature is the output at
    the end of text. All other towers run on the whole context: those that use a class token or the
    last position, bidirectional ones, those of Hugging Face, and subclasses.
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
    """Return for each row of tokens (N, L) how many first tokens its feature depends on, (N,)."""
    if not can_truncate(text):
        return torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
    if text.pool_type == "eos":
        return (tokens == text.eos_id).int().argmax(1) + 1
    return tokens.argmax(1) + 1


def prompt_lengths(text: nn.Module, tokens: Tensor, group: int) -> list[int]:
    """Return how many first tokens of each prompt (N, L) to encode.

    The lengths are rounded, so that more prompts have the same. They are equal for each `group` of
    prompts: those of a name.
    """
    lengths = needed_lengths(text, tokens).view(-1, group).amax(1).repeat_interleave(group)
    return rounded_lengths(lengths, tokens.shape[1]).tolist()


def rounded_lengths(lengths: Tensor, context: int) -> Tensor:
    """Round lengths (N,) up to 8, 12, 16, 24, 32, 48, ..., at most to `context`.

    With few different lengths, more prompts fit into the same chunk.
    """
    steps = [step << i for i in range(context.bit_length()) for step in (8, 12)]
    steps = torch.tensor([s for s in steps if s < context] + [context], device=lengths.device)
    return steps[torch.bucketize(lengths, steps)]


def encode_rows(text: nn.Module, tokens: Tensor, rows: int) -> Tensor:
    """Compute the text features (n, D) of token ids (n, L), in a batch of `rows` rows.

    The shape of a matrix product can change its last bits. With batches of one size for each
    length, the features of a prompt do not depend on other prompts.
    """
    padding = tokens[:1].expand(rows - len(tokens), -1)
    return encode_tokens(text, torch.cat([tokens, padding]))[: len(tokens)]


def encode_tokens(text: nn.Module, tokens: Tensor) -> Tensor:
    """Compute the text features (N, D) of truncated token ids (N, L).

    They equal the features of the whole context. L must be at least the maximum of
    :func:`needed_lengths`. It may be smaller than the context length only if :func:`can_truncate`
    is true.
    """
    if type(text) is not TextTransformer or tokens.shape[1] >= text.context_length:
        out = text(tokens)
        return out[0] if isinstance(out, tuple) else out  # CoCa's also returns the tokens
    length, dtype = tokens.shape[1], text.transformer.get_cast_dtype()
    x = text.token_embedding(tokens).to(dtype) + text.positional_embedding[:length].to(dtype)
    x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
    x = text_global_pool(text.ln_final(x), tokens, text.pool_type, text.eos_id)
    if text.text_projection is None:
        return x
    if isinstance(text.text_projection, nn.Linear):
        return text.text_projection(x)
    return x @ text.text_projection
