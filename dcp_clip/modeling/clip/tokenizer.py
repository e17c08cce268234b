"""CLIP's tokenizer, those of the Hugging Face Hub, and one with fewer tokens for small towers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import open_clip
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer
from torch import Tensor

from dcp_clip.modeling.clip.loading import CLIPWeightsError
from dcp_clip.utils.arguments import in_one_line
from dcp_clip.vocabulary.prompts import build_prompts, name_too_long

__all__ = ["HubTokenizer", "PrefixTokenizer", "build_tokenizer", "tokenize"]


class PrefixTokenizer(SimpleTokenizer):
    """open_clip's byte pair encoding with only its first merges, for small token embeddings.

    The merges have an order, so the first ones are also a byte pair encoding. This tokenizer can
    encode any text but needs more tokens.
    """

    def __init__(self, whole: SimpleTokenizer, vocab_size: int):
        """
        Args:
            whole: the tokenizer with all merges. It is not read again from its file, which takes
                longer than to load a small model.
            vocab_size: number of tokens: 512 bytes, the merges, and the start and end of text.

        Raises:
            ValueError: if `vocab_size` is below 514.
        """
        if vocab_size < 514:
            raise ValueError(
                f"vocab_size is {vocab_size}; it must be at least 514 (the bytes, start and end)."
            )
        self.__dict__.update(whole.__dict__)
        # The merged words are kept. Those of `whole` have other merges.
        self.cache = {token: token for token in ("<start_of_text>", "<end_of_text>")}
        merges = list(self.bpe_ranks)[: vocab_size - 514]
        symbols = list(self.encoder)[:512]
        tokens = symbols + ["".join(m) for m in merges] + ["<start_of_text>", "<end_of_text>"]
        self.encoder = {token: i for i, token in enumerate(tokens)}
        self.decoder = dict(enumerate(tokens))
        self.bpe_ranks = {merge: i for i, merge in enumerate(merges)}
        self.vocab_size = len(tokens)
        self.sot_token_id, self.eot_token_id = len(tokens) - 2, len(tokens) - 1
        self.all_special_ids = [self.sot_token_id, self.eot_token_id]


class HubTokenizer:
    """A tokenizer of the Hugging Face Hub, as SigLIP and CLIPA have; loaded when it is needed.

    Its files are read from the folder of the weights if they are there, else from the cache of the
    Hub, else downloaded.
    """

    def __init__(self, model_name: str, folder: Path | None):
        """
        Args:
            model_name: open_clip's name of a model whose config names a tokenizer of the Hub.
            folder: the folder of the weights, if they are a local file.
        """
        self._model_name, self._folder = model_name, folder

    @cached_property
    def _tokenizer(self) -> HFTokenizer:
        text = open_clip.get_model_config(self._model_name)["text_cfg"]
        source = hub_name = text["hf_tokenizer_name"]
        if self._folder is not None and (self._folder / "tokenizer_config.json").is_file():
            source = str(self._folder)
        try:
            return HFTokenizer(
                source,
                context_length=text.get("context_length", DEFAULT_CONTEXT_LENGTH),
                tokenizer_mode=text.get("tokenizer_mode"),
                **text.get("tokenizer_kwargs", {}),
            )
        except ImportError as error:
            raise CLIPWeightsError(
                f"The tokenizer of '{self._model_name}' (MODEL.CLIP.NAME) needs a package that is "
                f"not installed: `pip install transformers sentencepiece`. ({error})"
            ) from error
        except Exception as error:  # the client of the hub raises many types of errors
            raise CLIPWeightsError(
                f"The tokenizer of '{self._model_name}' (MODEL.CLIP.NAME) cannot be loaded from "
                f"'{source}'; fetch tokenizer.json and tokenizer_config.json of '{hub_name}' "
                "on a machine with internet and put them beside the file of MODEL.CLIP.PRETRAINED. "
                f"({in_one_line(error)})"
            ) from error

    def __call__(self, texts: str | list[str]) -> Tensor:
        return self._tokenizer(texts)

    @property
    def pad_token_id(self) -> int:
        return self._tokenizer.tokenizer.pad_token_id

    def length(self, text: str) -> int:
        """Number of tokens of a text, with its end, however long it is."""
        own = self._tokenizer
        return len(own.tokenizer(own.clean_fn(text)).input_ids)


def build_tokenizer(model_name: str, vocab_size: int, weights: Path | None = None):
    """The tokenizer of an open_clip model, limited to the tokens of its text tower.

    Args:
        model_name: open_clip's name.
        vocab_size: number of tokens of the text tower.
        weights: local file of the weights; a tokenizer of the Hub can be beside it.

    Returns:
        a callable from a list of strings to token ids (N, L).
    """
    text = (open_clip.get_model_config(model_name) or {}).get("text_cfg", {})
    if text.get("hf_tokenizer_name"):
        return HubTokenizer(model_name, None if weights is None else weights.parent)
    return _build_tokenizer(model_name, vocab_size, json.dumps(text))


@lru_cache(maxsize=4)
def _build_tokenizer(model_name: str, vocab_size: int, text: str):
    """A tokenizer of open_clip. Models with the same name and config (JSON) `text` share it."""
    tokenizer = open_clip.get_tokenizer(model_name)
    if isinstance(tokenizer, SimpleTokenizer) and vocab_size < tokenizer.vocab_size:
        return PrefixTokenizer(tokenizer, vocab_size)
    return tokenizer


def tokenize(tokenizer, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Token ids (N * T, L) of N names in T templates, in the order of :func:`build_prompts`.

    Raises:
        VocabularyError: if a name does not fit the context; the message quotes it.
    """
    prompts = build_prompts(names, templates)
    tokens = tokenizer(prompts)
    context = tokens.shape[1]
    # Only a sequence that fills the context may have been truncated.
    if isinstance(tokenizer, HubTokenizer):
        # The end of text and padding can be the same token, so the one before the last decides.
        full, count = tokens[:, -2] != tokenizer.pad_token_id, tokenizer.length
    elif (end := getattr(tokenizer, "eot_token_id", None)) is not None:
        full, count = tokens[:, -1] == end, lambda text: len(tokenizer.encode(text)) + 2
    else:
        return tokens
    for i in full.nonzero()[:, 0].tolist():
        length = count(prompts[i])
        if length > context:
            raise name_too_long(names[i // len(templates)], length, context)
    return tokens
