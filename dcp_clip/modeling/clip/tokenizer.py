"""CLIP's tokenizer, and a variant with fewer tokens for small text towers."""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from dcp_clip.vocabulary import VocabularyError
from dcp_clip.vocabulary.prompts import build_prompts

__all__ = ["PrefixTokenizer", "build_tokenizer", "tokenize"]


class PrefixTokenizer(SimpleTokenizer):
    """open_clip's byte pair encoding with only its first merges, for small token embeddings.

    The merges have an order, so the first ones are also a byte pair encoding. This tokenizer can
    encode any text but needs more tokens.
    """

    def __init__(self, vocab_size: int, **kwargs):
        """
        Args:
            vocab_size: number of tokens: 512 bytes, the merges, and the start and end of text.

        Raises:
            ValueError: if `vocab_size` is below 514.
        """
        super().__init__(**kwargs)
        if vocab_size < 514:
            raise ValueError(
                f"vocab_size is {vocab_size}; it must be at least 514 (the bytes, start and end)."
            )
        merges = list(self.bpe_ranks)[: vocab_size - 514]
        symbols = list(self.encoder)[:512]
        tokens = symbols + ["".join(m) for m in merges] + ["<start_of_text>", "<end_of_text>"]
        self.encoder = {token: i for i, token in enumerate(tokens)}
        self.decoder = dict(enumerate(tokens))
        self.bpe_ranks = {merge: i for i, merge in enumerate(merges)}
        self.vocab_size = len(tokens)
        self.sot_token_id, self.eot_token_id = len(tokens) - 2, len(tokens) - 1
        self.all_special_ids = [self.sot_token_id, self.eot_token_id]


def build_tokenizer(model_name: str, vocab_size: int):
    """Return the tokenizer of an open_clip model, limited to the tokens of its text tower.

    Args:
        model_name: name of the model in open_clip.
        vocab_size: number of tokens of the text tower.

    Returns:
        A callable that maps a list of strings to token ids (N, L).
    """
    tokenizer = open_clip.get_tokenizer(model_name)
    if isinstance(tokenizer, SimpleTokenizer) and vocab_size < tokenizer.vocab_size:
        return PrefixTokenizer(vocab_size, context_length=tokenizer.context_length)
    return tokenizer


def tokenize(tokenizer, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return token ids (N * T, L) of N names in T templates, in the order of `build_prompts`.

    Raises:
        VocabularyError: if a name does not fit the context; the message quotes it.
    """
    prompts = build_prompts(names, templates)
    tokens = tokenizer(prompts)
    end = getattr(tokenizer, "eot_token_id", None)
    if end is None:
        return tokens
    context = tokens.shape[1]
    # Only a sequence that fills the context may have been truncated.
    for i in (tokens[:, -1] == end).nonzero()[:, 0].tolist():
        length = len(tokenizer.encode(prompts[i])) + 2
        if length > context:
            name = names[i // len(templates)]
            raise VocabularyError(
                f"The name '{name[:60]}{'…' if len(name) > 60 else ''}' ({len(name)} characters) "
                f"needs {length} tokens in the prompt, but CLIP's context has {context}; "
                "shorten it."
            )
    return tokens
