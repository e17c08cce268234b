"""CLIP's text encoder, and the cached path from a vocabulary to text features."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.modeling.clip.text_cache import read_features, write_features
from dcp_clip.modeling.clip.text_tower import encode_tokens, needed_lengths, rounded_lengths
from dcp_clip.modeling.clip.tokenizer import build_tokenizer, tokenize
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary, load_templates

__all__ = ["TextEncoder"]

_SYNONYM_POOLING = ("mean", "max", "first")
# Prompts encoded at once, which bounds memory. A chunk has prompts of about one length, and short
# chunks are padded, so that the features of a name are the same to the last bit in every vocabulary.
_CHUNK_SIZE = 32
_CACHED_VOCABULARIES = 8  # in memory: 20,000 names are 60 MB
_BLOCK_CHUNKS = 64  # prompts are grouped by length within so many chunks; bounds memory
_PROGRESS_FROM = 2000  # prompts; below it encoding is a matter of seconds


class TextEncoder(nn.Module):
    """CLIP's text tower. Training, evaluation and demo all get text features from
    :meth:`encode_vocabulary`, so that there is one prompt path.

    Features of a frozen tower are cached in memory and on disk, under a key made of the model's
    name, a fingerprint of the weights, the prompt templates, the synonym rule and the names. While
    the tower trains nothing is cached, and whenever its weights change the key changes with them.
    """

    @configurable
    def __init__(
        self,
        *,
        text: nn.Module,
        tokenizer,
        model_name: str,
        templates: tuple[str, ...],
        synonym_pooling: str = "mean",
        chunk_size: int = _CHUNK_SIZE,
        cache_dir: str = "",
    ):
        """
        Args:
            text: open_clip's text tower; token ids (N, context length) to (N, D).
            tokenizer: callable from a list of strings to token ids.
            model_name: open_clip's model name; part of the cache key.
            templates: prompt templates with one ``{}`` each.
            synonym_pooling: "mean": one feature for each category, the mean over its synonyms;
                "max": one feature for each synonym, the score of a category is that of its best
                synonym; "first": the main name only.
            chunk_size: prompts encoded at once; short chunks are padded to this size.
            cache_dir: folder for features on disk; "" keeps them in memory only.

        Raises:
            ValueError: for an unknown `synonym_pooling`.
        """
        super().__init__()
        if synonym_pooling not in _SYNONYM_POOLING:
            raise ValueError(
                f"MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING is '{synonym_pooling}'; known are "
                f"{', '.join(_SYNONYM_POOLING)}."
            )
        self.text = text
        self.tokenizer = tokenizer
        self.model_name, self.templates = model_name, templates
        self.synonym_pooling = synonym_pooling
        self.chunk_size, self.cache_dir = chunk_size, cache_dir
        self._tokens: dict[str, list[tuple[Tensor, list[int]]]] = {}
        self._cache: OrderedDict[str, TextFeatures] = OrderedDict()
        self._fingerprint: tuple[tuple[tuple[int, int], ...], str] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        clip = load_clip(cfg)
        node, name = cfg.MODEL.DCP_CLIP.VOCABULARY, cfg.MODEL.CLIP.NAME
        return {
            "text": clip.text,
            "tokenizer": build_tokenizer(name, clip.text.vocab_size),
            "model_name": name,
            "templates": load_templates(node.TEMPLATES),
            "synonym_pooling": node.SYNONYM_POOLING,
            "cache_dir": node.CACHE_DIR,
        }

    @property
    def device(self) -> torch.device:
        return next(self.text.parameters()).device

    @property
    def trains(self) -> bool:
        """Whether any weight of the text tower is being trained right now."""
        return self.training and any(p.requires_grad for p in self.text.parameters())

    def train(self, mode: bool = True) -> TextEncoder:
        if mode and any(p.requires_grad for p in self.text.parameters()):
            self.clear_cache()
        return super().train(mode)

    def clear_cache(self) -> None:
        """Forget the features in memory; those on disk are safe, their key holds the weights."""
        self._cache.clear()
        self._fingerprint = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (N, context length) to text features (N, D): what ``encode_text`` returns."""
        return self.text(tokens)

    def encode_vocabulary(self, vocabulary: Vocabulary) -> TextFeatures:
        """Text features of every category, through the templates and the synonym rule.

        Raises:
            ValueError: when a name does not fit CLIP's context; the message quotes it.
        """
        if self.trains:
            return self._encode(vocabulary)
        key = self._cache_key(vocabulary)
        if key not in self._cache:
            # The same tensors whoever asks first: a run in bf16, or one in inference mode.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(self.device.type, enabled=False),
            ):
                path = self._path(key)
                features = read_features(path, len(vocabulary), self.device) if path else None
                if features is None:
                    features = self._encode(vocabulary)
                    if path:
                        write_features(path, features)
            self._cache[key] = features
            if len(self._cache) > _CACHED_VOCABULARIES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        cached = self._cache[key]
        if cached.embeddings.device != self.device:
            cached.embeddings = cached.embeddings.to(self.device)
            cached.category_rows = cached.category_rows.to(self.device)
        return cached

    def _encode(self, vocabulary: Vocabulary) -> TextFeatures:
        counts = [len(names) for names in self.prompted_names(vocabulary)]
        num_templates = len(self.templates)
        features = []
        prompts = sum(counts) * num_templates
        bar = tqdm(
            total=prompts, desc="Encoding names", unit="prompt", disable=prompts < _PROGRESS_FROM
        )
        with bar:
            for tokens, lengths in self.tokenize_vocabulary(vocabulary):
                out = self._encode_prompts(tokens.to(self.device), lengths, bar)
                out = F.normalize(out.float(), dim=-1)
                out = out.unflatten(0, (-1, num_templates)).mean(1)
                features.append(F.normalize(out, dim=-1))
        return self._group(torch.cat(features), counts)

    def prompted_names(self, vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
        """Of each category the names that speak for it, as the synonym rule says."""
        if self.synonym_pooling == "first":
            return tuple(names[:1] for names in vocabulary.synonyms)
        return vocabulary.synonyms

    def _encode_prompts(self, tokens: Tensor, lengths: list[int], bar: tqdm) -> Tensor:
        """Token ids (N, L) to features (N, D), in chunks of prompts of the same length."""
        rows, parts = [], []
        for length in sorted(set(lengths)):
            members = [i for i, other in enumerate(lengths) if other == length]
            for start in range(0, len(members), self.chunk_size):
                chunk = members[start : start + self.chunk_size]
                part = tokens[torch.tensor(chunk, device=tokens.device), :length]
                if not self.trains:
                    # The shape of a matrix product can change its last bits: with chunks of one
                    # size a length a name's features do not depend on the other names.
                    out = encode_tokens(self.text, _padded(part, self.chunk_size))[: len(part)]
                elif len(tokens) > self.chunk_size:
                    out = checkpoint(encode_tokens, self.text, part, use_reentrant=False)
                else:
                    out = encode_tokens(self.text, part)
                rows += chunk
                parts.append(out)
                bar.update(len(part))
        order = sorted(range(len(rows)), key=rows.__getitem__)
        return torch.cat(parts)[torch.tensor(order, device=tokens.device)]

    def _group(self, embeddings: Tensor, counts: list[int]) -> TextFeatures:
        """Rows a category from rows a name, as the synonym rule says."""
        starts = torch.tensor([0, *counts]).cumsum(0)[:-1, None]
        offsets = torch.arange(max(counts))[None]
        counts_column = torch.tensor(counts)[:, None]
        rows = (starts + offsets.where(offsets < counts_column, 0)).to(embeddings.device)
        if self.synonym_pooling == "max" or max(counts) == 1:
            return TextFeatures(embeddings, rows)
        weight = (offsets < counts_column).to(embeddings)
        mean = (embeddings[rows] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        # A lone name keeps its bits, whether or not another category has synonyms.
        alone = (counts_column == 1).to(embeddings.device)
        mean = embeddings[rows[:, 0]].where(alone, F.normalize(mean, dim=-1))
        own_row = torch.arange(len(counts), device=embeddings.device)[:, None]
        return TextFeatures(mean, own_row)

    def tokenize_vocabulary(self, vocabulary: Vocabulary) -> Iterable[tuple[Tensor, list[int]]]:
        """Token ids (N, L) of the prompts, some names at a time, and how many of each to encode.

        Kept while the tower trains; else never there all at once, as a long list's tokens outweigh
        its features.

        Raises:
            ValueError: when a name does not fit CLIP's context; the message quotes it.
        """
        key = vocabulary.fingerprint()
        if key in self._tokens:
            return self._tokens[key]
        names = [name for group in self.prompted_names(vocabulary) for name in group]
        some = max(_BLOCK_CHUNKS * self.chunk_size // len(self.templates), 1)
        blocks = (self._tokenize(names[i : i + some]) for i in range(0, len(names), some))
        self._tokens = {key: list(blocks)} if self.trains else {}
        return self._tokens.get(key, blocks)

    def _tokenize(self, names: list[str]) -> tuple[Tensor, list[int]]:
        tokens = tokenize(self.tokenizer, names, self.templates)
        lengths = rounded_lengths(needed_lengths(self.text, tokens), tokens.shape[1])
        return tokens, lengths.tolist()

    def _cache_key(self, vocabulary: Vocabulary) -> str:
        parts = (
            "cut at the end of text",  # others differ in their last bits
            self.model_name,
            self._weights_fingerprint(),
            *self.templates,
            self.synonym_pooling,
            vocabulary.fingerprint(),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _weights_fingerprint(self) -> str:
        """Hash of the tower's weights, taken anew whenever one of them was written to."""
        state = self.text.state_dict()
        # Writing in place raises the version, replacing a tensor moves it.
        versions = tuple((t.data_ptr(), t._version) for t in state.values())
        if self._fingerprint is None or self._fingerprint[0] != versions:
            digest = hashlib.sha256()
            for name, tensor in state.items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._fingerprint = (versions, digest.hexdigest())
        return self._fingerprint[1]

    def _path(self, key: str) -> Path | None:
        return Path(self.cache_dir).expanduser() / f"{key}.pt" if self.cache_dir else None


def _padded(tokens: Tensor, length: int) -> Tensor:
    """(n, L) to (length, L), the first row repeated at the end."""
    return torch.cat([tokens, tokens[:1].expand(length - len(tokens), -1)])
