"""A tokenizer for small text towers."""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from dcp_clip.vocabulary import VocabularyError
from dcp_clip.vocabulary.prompts import build_prompts

__all__ = ["PrefixTokenizer", "build_tokenizer", "tokenize"]


class PrefixTokenizer(SimpleTokenizer):
    """open_clip's byte pair encoding with its first merges only, for small token tables.

    The merges are ranked, so the first ones are a byte pair encoding too. It can encode any text,
    with more tokens.
    """

    def __init__(self, vocab_size: int, **kwargs):
        """
        Args:
            vocab_size: number of tokens: 512 byte symbols, the merges, start and end of text.

        Raises:
            ValueError: if `vocab_size` is below 514.
        """
        super().__init__(**kwargs)
        if vocab_size < 514:
            raise ValueError(f"{vocab_size} tokens are too few: bytes, start and end need 514.")
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
    """The tokenizer of an open_clip model, limited to the tokens of its text tower.

    Args:
        model_name: open_clip's name.
        vocab_size: number of tokens of the text tower.

    Returns:
        a callable from a list of strings to token ids (N, L).
    """
    tokenizer = open_clip.get_tokenizer(model_name)
    if isinstance(tokenizer, SimpleTokenizer) and vocab_size < tokenizer.vocab_size:
        return PrefixTokenizer(vocab_size, context_length=tokenizer.context_length)
    return tokenizer


def tokenize(tokenizer, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids (N * T, L) of N names in T templates, in the order of :func:`build_prompts`.

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
                f"needs {length} tokens in the prompt, but CLIP's context holds {context}; "
                "shorten it."
            )
    return tokens
