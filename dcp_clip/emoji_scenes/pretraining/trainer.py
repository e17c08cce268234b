"""Pre-training of a small CLIP with Detectron2's trainer."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F

from dcp_clip.data.catalog import datasets_root
from dcp_clip.emoji_scenes.art import PRETRAINING_ART, SEEN_ART, UNSEEN_ART, ArtPackage
from dcp_clip.emoji_scenes.names import load_name_list
from dcp_clip.emoji_scenes.pretraining.drawing import MILD, STRONG
from dcp_clip.emoji_scenes.pretraining.pairs import PairBatch, PairSource
from dcp_clip.emoji_scenes.register import FOLDER
from dcp_clip.engine.trainer import Trainer
from dcp_clip.modeling.clip.text_encoder import TextEncoder
from dcp_clip.vocabulary.prompts import load_templates

__all__ = ["CLIPTrainer", "PairLoader"]

logger = logging.getLogger(__name__)

# Size in pixels of the images for zero-shot classification, and the number of images of each thing.
_PROBE_SIZE, _PROBE_VIEWS = 64, 4
_PROMPTS_PER_CHUNK = 512


def _build_pair_source(cfg: CfgNode, art: Sequence[ArtPackage]) -> PairSource:
    return _load_pair_source(
        Path(datasets_root()) / FOLDER / "sprites",
        tuple(package.style for package in art),
        load_templates(cfg.PRETRAIN.TEMPLATES),
        max(cfg.SEED, 0),
    )


@functools.lru_cache(maxsize=3)  # the styles of the training, the seen styles, the unseen style
def _load_pair_source(
    sprites: Path, styles: tuple[str, ...], templates: tuple[str, ...], seed: int
) -> PairSource:
    return PairSource(sprites, styles, load_name_list(), templates, seed=seed)


class PairLoader:
    """Iterates over the batches of a pre-training.

    A batch depends only on the seed and its number, so that a resumed training sees the same
    batches.
    """

    def __init__(self, cfg: CfgNode, source: PairSource):
        """
        Args:
            cfg: reads PRETRAIN, SEED and SOLVER.MAX_ITER.
            source: draws the images and captions.
        """
        self.node, self.length, self.seed = cfg.PRETRAIN, cfg.SOLVER.MAX_ITER, max(cfg.SEED, 0)
        self.source = source
        self.start = 0

    def __iter__(self) -> Iterator[PairBatch]:
        # A thread draws the next batch while the model trains on the current one.
        with ThreadPoolExecutor(1, thread_name_prefix="draw") as pool:
            upcoming = None
            for number in range(self.start, self.length):
                batch = upcoming.result() if upcoming else self.batch(number)
                has_next = number + 1 < self.length
                upcoming = pool.submit(self.batch, number + 1) if has_next else None
                yield batch

    def batch(self, number: int) -> PairBatch:
        """The batch of iteration `number`."""
        node = self.node
        look = STRONG if number < node.STRONG_UNTIL * self.length else MILD
        rng = np.random.default_rng([self.seed, 3, number])
        if number < node.SINGLES_UNTIL * self.length or number % 2:
            size = int(rng.choice(node.SINGLE_SIZES))
            return self.source.singles(
                number, size, max(2, node.SINGLE_PIXELS // size**2), look=look
            )
        size = int(rng.choice(node.SCENE_SIZES))
        return self.source.scenes(number, size, max(2, node.SCENE_PIXELS // size**2), look=look)


class CLIPTrainer(Trainer):
    """Trains the meta-architecture ``CLIPPretraining``; see tools/pretrain_clip.py."""

    def resume_or_load(self, resume: bool = True) -> None:
        """As in :class:`Trainer`; the loader continues with the batch of the next iteration."""
        super().resume_or_load(resume)
        self._trainer.data_loader.start = self.start_iter

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> PairLoader:
        art = (*SEEN_ART, *PRETRAINING_ART) if cfg.PRETRAIN.MORE_ART else SEEN_ART
        return PairLoader(cfg, _build_pair_source(cfg, art))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> dict:
        """Classify single drawings among all names, zero-shot.

        Returns:
            ``{"zero_shot": {"seen_top1": ..., "seen_top5": ..., "unseen_style_top1": ...,
            "unseen_style_top5": ...}}`` in percent.
        """
        names = load_name_list()
        vocabulary = names.vocabulary(tuple(range(len(names.entries))))
        training, results = model.training, {}
        model.eval()
        encoder = TextEncoder(
            text=model.text_encoder,
            tokenizer=model.tokenizer,
            model_name=cfg.MODEL.CLIP.NAME,
            templates=load_templates(cfg.MODEL.DCP_CLIP.VOCABULARY.TEMPLATES),
            synonym_pooling="first",
            chunk_size=_PROMPTS_PER_CHUNK,
        ).eval()
        with torch.no_grad():
            text = encoder.encode_vocabulary(vocabulary).embeddings
            for kind, art in (("seen", SEEN_ART), ("unseen_style", (UNSEEN_ART,))):
                source = _build_pair_source(cfg, art)
                ranks = torch.cat([_ranks(model, source, text, v) for v in range(_PROBE_VIEWS)])
                for k in (1, 5):
                    results[f"{kind}_top{k}"] = 100 * (ranks < k).float().mean().item()
        model.train(training)
        logger.info("Zero-shot accuracy among %d names: %s", len(vocabulary), results)
        return {"zero_shot": results}


def _ranks(model: nn.Module, source: PairSource, text: torch.Tensor, view: int) -> torch.Tensor:
    """(N,) the number of names that score higher than the correct name, for each image."""
    images, ids = source.probe(_PROBE_SIZE, view)
    pooled = [model.encode_images(part)["pooled"] for part in images.split(128)]
    cosines = F.normalize(torch.cat(pooled), dim=1) @ text.T
    return (cosines > cosines.gather(1, ids[:, None].to(cosines.device))).sum(1)
