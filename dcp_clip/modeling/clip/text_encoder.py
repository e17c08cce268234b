"""CLIP's text encoder. It computes and caches the text features of a vocabulary."""

from __future__ import annotations

import itertools

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from dcp_clip.modeling.clip.feature_memory import FeatureMemory
from dcp_clip.modeling.clip.loading import load_clip, weights_file
from dcp_clip.modeling.clip.synonym_pooling import POOLINGS, pool_synonyms, pooled_rows
from dcp_clip.modeling.clip.text_cache import cache_file, read_features, write_features
from dcp_clip.modeling.clip.text_parts import PartFiles, encode_in_parts
from dcp_clip.modeling.clip.text_tower import encode_rows, encode_tokens, prompt_lengths
from dcp_clip.modeling.clip.tokenizer import build_tokenizer, tokenize
from dcp_clip.modeling.clip.weights_fingerprint import WeightsFingerprint
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary, load_templates

__all__ = ["TextEncoder"]

# Number of prompts in one forward pass, which bounds memory. The prompts of a chunk have similar
# lengths. Chunks with fewer prompts are padded, so the features of a name are the same to the last
# bit in every vocabulary.
_CHUNK_SIZE = 32
_CACHED_VOCABULARIES = 8  # in memory; the features of 20,000 names take 60 MB
_CACHED_NAMES = 4096  # in memory, for lists of names that differ little; they take 12 MB
_PART_CHUNKS = 64  # number of chunks that are tokenised and grouped by length at once


class TextEncoder(nn.Module):
    """CLIP's text tower.

    Training, evaluation and demo all get their text features from :meth:`encode_vocabulary`, so
    they use the same prompts.

    The features of a frozen tower are cached in memory and on disk. An interrupted encoding of many
    names continues where it stopped. The cache key contains the name of the model, a hash of the
    weights, the prompt templates, the synonym pooling and the names. Nothing is cached while the
    tower is trained. If this process has trained it, it writes no cache files, because the weights
    will change again.

    Several threads can call :meth:`encode_vocabulary` at the same time, as long as no thread trains
    the tower or changes its weights.
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
            text: open_clip's text tower; it maps token ids (N, context length) to (N, D).
            tokenizer: callable from a list of strings to token ids.
            model_name: open_clip's model name; part of the cache key.
            templates: prompt templates, each with one ``{}``.
            synonym_pooling: "mean": one feature for each category, the mean over its synonyms;
                "max": one feature for each synonym, and a category has the score of its best
                synonym; "first": the main name only.
            chunk_size: prompts in one forward pass; smaller chunks are padded to this size. All
                prompts of a name are in one chunk, also if it has more templates than this.
            cache_dir: folder for features on disk; "" keeps them in memory only.

        Raises:
            ValueError: for an unknown `synonym_pooling`.
        """
        super().__init__()
        if synonym_pooling not in POOLINGS:
            raise ValueError(
                f"MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING is '{synonym_pooling}'; known are "
                f"{', '.join(POOLINGS)}."
            )
        self.text = text
        self.tokenizer = tokenizer
        self.model_name, self.templates = model_name, templates
        self.synonym_pooling = synonym_pooling
        self.chunk_size, self.cache_dir = chunk_size, cache_dir
        self._tokens: dict[str, list[tuple[Tensor, list[int]]]] = {}
        self._cache = FeatureMemory(_CACHED_VOCABULARIES)
        self._names = FeatureMemory(_CACHED_NAMES)
        self._has_trained = False
        self._fingerprint = WeightsFingerprint()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        clip = load_clip(cfg)
        node, name = cfg.MODEL.DCP_CLIP.VOCABULARY, cfg.MODEL.CLIP.NAME
        return {
            "text": clip.text,
            "tokenizer": build_tokenizer(
                name, clip.text.vocab_size, weights_file(cfg.MODEL.CLIP.PRETRAINED)
            ),
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
        """Whether the tower is in training mode and a weight of it requires a gradient."""
        return self.training and any(p.requires_grad for p in self.text.parameters())

    def train(self, mode: bool = True) -> TextEncoder:
        super().train(mode)
        if self.trains:
            self._has_trained = True
            self.clear_cache()
        return self

    def clear_cache(self) -> None:
        """Remove the features in memory.

        A change of the weights is detected without this method. Call it only after you have
        replaced a module inside the tower.
        """
        self._cache.clear()
        self._names.clear()
        self._fingerprint.clear()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, context length) to text features (N, D), as CLIP's ``encode_text``."""
        return encode_tokens(self.text, tokens)

    def encode_vocabulary(self, vocabulary: Vocabulary) -> TextFeatures:
        """Return the text features of every category.

        The features of a frozen tower are computed once for each vocabulary, and then come from the
        cache. Each lookup compares the addresses and versions of the weights, which takes little
        time.

        Raises:
            ValueError: if a name does not fit CLIP's context; the message quotes it.
        """
        if self.trains:
            return self._encode(vocabulary)
        key = self._key(vocabulary)
        # The features do not depend on the caller's mode, such as autocast or inference mode.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
        ):
            features = self._cache.get_or_compute(
                key, lambda: self._read_or_encode(vocabulary, key)
            )
            if features.embeddings.device != self.device:
                features = TextFeatures(
                    features.embeddings.to(self.device), features.category_rows.to(self.device)
                )
                self._cache.put(key, features)
        return features

    def remember(self, vocabulary: Vocabulary, features: TextFeatures) -> None:
        """Keep the features that a copy of this encoder, in another process, has computed."""
        self._cache.put(self._key(vocabulary), features)

    def _key(self, vocabulary: Vocabulary) -> tuple[str, ...]:
        return (*self._name_key(), self.synonym_pooling, vocabulary.fingerprint())

    def _name_key(self) -> tuple[str, ...]:
        """Return what the feature of a name depends on."""
        # Features of untruncated prompts, or of other chunks, differ in their last bits.
        kind = "cut at the end of text, all prompts of a name in a chunk"
        return (kind, self.model_name, self._fingerprint.of(self.text), *self.templates)

    def _read_or_encode(self, vocabulary: Vocabulary, key: tuple[str, ...]) -> TextFeatures:
        """Read the features from the file of `key`; without a file, encode them and write it."""
        use_files = self.cache_dir and not self._has_trained
        path = cache_file(self.cache_dir, key) if use_files else None
        if path is None:
            return self._encode(vocabulary)
        counts = [len(names) for names in self.prompted_names(vocabulary)]
        rows = pooled_rows(counts, self.synonym_pooling)
        width = getattr(self.text, "output_dim", None)

        def read() -> TextFeatures | None:
            return read_features(path, rows, width, self.device)

        features = read()
        if features is None:
            files = PartFiles(self.cache_dir, self._name_key(), path, width, self.device)
            # The first is None if another process writes the file of the vocabulary meanwhile.
            features = self._encode(vocabulary, files) or read() or self._encode(vocabulary)
            write_features(path, features)
            files.remove(self._parts(vocabulary))
        return features

    def _encode(
        self, vocabulary: Vocabulary, files: PartFiles | None = None
    ) -> TextFeatures | None:
        """Encode a vocabulary; None if another process has written its file in the meantime."""
        groups, parts = self.prompted_names(vocabulary), self._parts(vocabulary)
        if self.trains:
            bar = tqdm(disable=True)
            blocks = self.tokenize_vocabulary(vocabulary)
            features = torch.cat([self._encode_part(*block, bar) for block in blocks])
        else:
            self._tokens = {}
            features = encode_in_parts(parts, len(self.templates), self._encode_names, files)
        if features is None:
            return None
        row = {name: i for i, name in enumerate(itertools.chain(*parts))}
        rows = [row[name] for group in groups for name in group]
        if len(rows) > len(row):  # several categories share a name
            features = features[rows]
        return pool_synonyms(features, [len(group) for group in groups], self.synonym_pooling)

    def _parts(self, vocabulary: Vocabulary) -> list[list[str]]:
        """Split the distinct names into parts that are tokenised and encoded together."""
        names = list(dict.fromkeys(itertools.chain(*self.prompted_names(vocabulary))))
        size = max(_PART_CHUNKS * self.chunk_size // len(self.templates), 1)
        return [names[i : i + size] for i in range(0, len(names), size)]

    def prompted_names(self, vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
        """Return the names of each category to encode: all of them, or the main name only."""
        if self.synonym_pooling == "first":
            return tuple(names[:1] for names in vocabulary.synonyms)
        return vocabulary.synonyms

    def _encode_names(self, names: list[str], bar: tqdm) -> Tensor:
        """Map N names to features (N, D); those of names that were used lately are in memory."""
        key = (*self._name_key(), str(self.device))
        found = {name: self._names.get((key, name)) for name in names}
        new = [name for name in names if found[name] is None]
        bar.update(len(self.templates) * (len(names) - len(new)))
        if new:
            for name, feature in zip(new, self._encode_part(*self._tokenize(new), bar)):
                found[name] = feature.clone()
                self._names.put((key, name), found[name])
        return torch.stack([found[name] for name in names])

    def _encode_part(self, tokens: Tensor, lengths: list[int], bar: tqdm) -> Tensor:
        """Map the tokens of N names in T templates (N * T, L) to features (N, D)."""
        out = self._encode_prompts(tokens.to(self.device), lengths, bar)
        out = F.normalize(out.float(), dim=-1)
        out = out.unflatten(0, (-1, len(self.templates))).mean(1)
        return F.normalize(out, dim=-1)

    def _encode_prompts(self, tokens: Tensor, lengths: list[int], bar: tqdm) -> Tensor:
        """Map token ids (N, L) to features (N, D), in chunks of prompts of the same length."""
        rows, parts = [], []
        size = self.chunk_size
        if not self.trains:  # whole names
            size = max(size // len(self.templates), 1) * len(self.templates)
        for length in sorted(set(lengths)):
            members = [i for i, other in enumerate(lengths) if other == length]
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                part = tokens[torch.tensor(chunk, device=tokens.device), :length]
                if not self.trains:
                    out = encode_rows(self.text, part, size)
                elif len(tokens) > size:
                    out = checkpoint(encode_tokens, self.text, part, use_reentrant=False)
                else:
                    out = encode_tokens(self.text, part)
                rows += chunk
                parts.append(out)
                bar.update(len(part))
        order = sorted(range(len(rows)), key=rows.__getitem__)
        return torch.cat(parts)[torch.tensor(order, device=tokens.device)]

    def tokenize_vocabulary(self, vocabulary: Vocabulary) -> list[tuple[Tensor, list[int]]]:
        """Tokenize the prompts of a tower that is trained, and keep the tokens for later steps.

        Returns:
            For each part of the names: token ids (N, L), and for each prompt the number of tokens
            to encode.

        Raises:
            ValueError: if a name does not fit CLIP's context; the message quotes it.
        """
        if (kept := self._tokens.get(key := vocabulary.fingerprint())) is None:
            kept = [self._tokenize(names) for names in self._parts(vocabulary)]
            # Data sets with different categories take turns.
            others = list(self._tokens.items())[1 - _CACHED_VOCABULARIES :]
            self._tokens = dict([*others, (key, kept)])
        return kept

    def _tokenize(self, names: list[str]) -> tuple[Tensor, list[int]]:
        tokens = tokenize(self.tokenizer, names, self.templates)
        group = 1 if self.trains else len(self.templates)
        return tokens, prompt_lengths(self.text, tokens, group)
