"""Accuracy and time of a trained model for vocabularies of different sizes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn
from torch.utils.benchmark import timer
from tqdm import tqdm

from dcp_clip.config import setup_cfg
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine import Trainer
from dcp_clip.engine.checkpoints.loading import (
    has_weights,
    load_weights,
    shipped_weights,
    warn_if_untrained,
)
from dcp_clip.evaluation import evaluation_environment
from dcp_clip.evaluation.confusion import count_pairs, score
from dcp_clip.experiments.growing_vocabulary import GrowingVocabulary, StudyError
from dcp_clip.experiments.vocabulary_questions import Question, Row, StudyImages, make_rows
from dcp_clip.modeling.stages.registry import CATEGORY_PROPOSAL_REGISTRY
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary

_WARM_UPS = 2


def run_study(
    config_file: str,
    opts: Sequence[str],
    dataset: str,
    sizes: Iterable[int],
    *,
    related: str = "",
    limit: int = 200,
    seed: int = 0,
    special: bool = False,
    imports: Sequence[str] = (),
) -> dict:
    """Run the whole study.

    Args:
        config_file: config of the model. Its shipped weights are used if `opts` names none.
        opts: KEY VALUE overrides of the config.
        dataset: a registered data set.
        sizes: sizes of the vocabularies.
        related: a data set whose names are the first distractors; "" for none.
        limit: largest number of images.
        seed: seed of the random choices for each image.
        special: whether to include :func:`special_rows`.
        imports: modules to import first, see :func:`dcp_clip.setup_cfg`.

    Returns:
        ``{"images": number, "own_names": number, "environment": {...}, "rows": [figures]}``.

    Raises:
        StudyError: if the study is not possible.
        WeightsError: if the weights do not fit the model.
    """
    cfg = setup_cfg(config_file, opts, imports=imports)
    if cfg.TEST.MAX_IMAGES:
        raise StudyError("TEST.MAX_IMAGES is for train_net.py: set it to 0 and use --images.")
    if shipped := shipped_weights(config_file, opts):
        cfg.MODEL.WEIGHTS = str(shipped)
    model = _build_model(cfg)
    images = StudyImages(dataset, limit, seed)
    source = GrowingVocabulary(images.own, dataset_vocabulary(related) if related else None)
    rows = make_rows(images, source, sorted(set(sizes)), special)
    environment = evaluation_environment(cfg, model)
    return {
        "images": len(images.indices),
        "own_names": len(images.own),
        "environment": environment,
        "rows": measure(cfg, model, images, rows),
    }


def _build_model(cfg: CfgNode) -> nn.Module:
    """Build the model in eval mode and load its weights."""
    if not has_weights(cfg):
        raise StudyError("The config names no weights: add MODEL.WEIGHTS and a file.")
    name = cfg.MODEL.DCP_CLIP.PROPOSAL.NAME
    if getattr(CATEGORY_PROPOSAL_REGISTRY.get(name), "needs_labels", False):
        raise StudyError(
            f"MODEL.DCP_CLIP.PROPOSAL.NAME {name} uses the labels, so its proposals do not depend "
            "on the vocabulary: choose another."
        )
    model = build_model(cfg).eval()
    if getattr(model, "text_encoder", None) is None:
        raise StudyError(f"{cfg.MODEL.META_ARCHITECTURE} has a fixed vocabulary.")
    load_weights(model, cfg.MODEL.WEIGHTS)
    warn_if_untrained(model, cfg.MODEL.WEIGHTS)
    return model


class _CachedTextEncoder(nn.Module):
    """Keeps the text features of all shared vocabularies, more than the encoder's own cache."""

    def __init__(self, encoder: nn.Module, shared: Iterable[Vocabulary]) -> None:
        super().__init__()
        self.encoder = encoder
        self._cache = {v: encoder.encode_vocabulary(v) for v in shared}
        encoder.cache_dir = ""  # the vocabularies of single images are not written to disk

    def encode_vocabulary(self, vocabulary: Vocabulary) -> TextFeatures:
        cached = self._cache.get(vocabulary)
        return self.encoder.encode_vocabulary(vocabulary) if cached is None else cached


class _Scores:
    """Sums up the results of one row."""

    def __init__(self, images: StudyImages) -> None:
        self.images, n = images, len(images.own) + 1
        self.groups = {"": np.ones(n, bool)}
        if images.is_thing is not None:
            things = np.append(images.is_thing, False)
            self.groups |= {"_things": things, "_stuff": ~things}
        self.matrix = np.zeros((n + 1, n + 1), np.int64)
        self.found = dict.fromkeys(self.groups, 0)
        self.present = dict.fromkeys(self.groups, 0)
        self.seconds: list[float] = []
        self.proposals: list[int] = []

    def add(self, question: Question, labels: np.ndarray, output: dict, seconds: float) -> None:
        """Add the model's output for an image with these labels (H, W), -1 if not labelled."""
        void = len(self.images.own) + 1
        truth = np.append(question.truth, void)[labels]  # -1 is the last entry
        prediction = question.meaning[output["sem_seg"].label_map()]
        self.matrix += count_pairs(prediction, truth, void)
        present = np.setdiff1d(truth, [void])
        ids = output["proposals"]["ids"].cpu().numpy()
        found = np.isin(present, question.meaning[ids])
        for group, member in self.groups.items():
            self.found[group] += int((found & member[present]).sum())
            self.present[group] += int(member[present].sum())
        self.proposals.append(len(ids))
        self.seconds.append(seconds)

    def figures(self) -> dict[str, float | None]:
        """mIoU and proposal recall in percent; None for what the data set does not have."""
        scores, figures = score(self.matrix), {}
        for group in ("", "_things", "_stuff"):
            member = self.groups.get(group)
            has_any = member is not None and scores.present[member].any()
            figures[f"mIoU{group}"] = 100 * scores.group_mean_iou(member) if has_any else None
        for group in ("", "_things"):
            present = self.present.get(group, 0)
            figures[f"recall{group}"] = 100 * self.found[group] / present if present else None
        figures["proposals"] = statistics.fmean(self.proposals)
        figures["milliseconds"] = 1000 * statistics.median(self.seconds)
        return figures


@torch.no_grad()
def measure(cfg: CfgNode, model: nn.Module, images: StudyImages, rows: Sequence[Row]) -> list[dict]:
    """Segment all images with the vocabularies of all rows.

    The rows take turns on each image, so that other load on the machine affects all of them.

    Returns:
        for each row a dict with its description, "mIoU", "mIoU_things", "mIoU_stuff", "recall" and
        "recall_things" in percent, "proposals" (mean K) and "milliseconds" (median time until every
        pixel has a category, without the text features).
    """
    shared = [row.ask(0).vocabulary for row in rows if row.shared]
    model.text_encoder = _CachedTextEncoder(model.text_encoder, shared)
    records = Trainer.build_test_loader(cfg, images.dataset).dataset
    results = [_Scores(images) for _ in rows]
    for number, index in enumerate(tqdm(images.indices, unit="image")):
        record, labels = records[index], images.labels(number)
        if number == 0:
            for row, _ in itertools.product(rows, range(_WARM_UPS)):
                _answer(model, record, row.ask(number))
        for row, result in zip(rows, results, strict=True):
            question = row.ask(number)
            seconds, output = _answer(model, record, question)
            result.add(question, labels, output, seconds)
    return [
        {
            "names": row.names,
            "vocabulary": row.title,
            "special": row.special,
            "per_image": not row.shared,
            **result.figures(),
        }
        for row, result in zip(rows, results, strict=True)
    ]


def _answer(model: nn.Module, record: dict, question: Question) -> tuple[float, dict]:
    """Seconds until every pixel has a category, and the output."""
    record = record | {"vocabulary": question.vocabulary}
    model.text_encoder.encode_vocabulary(question.vocabulary)
    start = timer()
    (output,) = model([record])
    output["sem_seg"].label_map()  # computed once and kept
    return timer() - start, output
