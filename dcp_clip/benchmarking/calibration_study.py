"""Fit and measure the confidence of a trained model on data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from dcp_clip.config import setup_cfg
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine import Trainer
from dcp_clip.engine.checkpoints.calibration import write_temperature
from dcp_clip.engine.checkpoints.loading import has_weights, load_weights, shipped_weights
from dcp_clip.evaluation.calibration import (
    CalibrationEvaluator,
    PixelSamples,
    fit_temperature,
    label_confidence,
    reliability,
)
from dcp_clip.evaluation.unknown_detection import (
    detection_scores,
    removed_names,
    require_sklearn,
    unknown_signals,
)
from dcp_clip.modeling.large_image import require_logits
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.vocabulary import Vocabulary

__all__ = ["CalibrationStudy", "save_diagram"]


class CalibrationStudy:
    """A trained model and the figures of its confidence.

    Attributes:
        results: "temperature"; "calibration", a dict for each data set; "unknown", a list of rows.
    """

    def __init__(
        self,
        config_file: str,
        opts: Sequence[str] = (),
        pixels: int = 400,
        imports: Sequence[str] = (),
        refit: bool = False,
        write: bool = False,
    ):
        """
        Args:
            config_file: file, or name of a shipped config.
            opts: alternating config keys and values.
            pixels: number of random pixels of an image.
            imports: see `dcp_clip.setup_cfg`.
            refit: do not read the stored temperature, which can belong to other weights.
            write: check that :meth:`write` is possible.

        Raises:
            ValueError: if there are no weights or logits, or images are segmented in windows, or
                the weights are no file but `write` is set.
            WeightsError: if the weights cannot be read.
        """
        self.cfg = setup_cfg(config_file, opts, imports=imports)
        weights = shipped_weights(config_file, opts)
        if weights and not self.cfg.MODEL.WEIGHTS:
            self.cfg.MODEL.WEIGHTS = os.fspath(weights)
        if not has_weights(self.cfg):
            raise ValueError("The config sets no weights. Set MODEL.WEIGHTS to a trained model.")
        if self.cfg.MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE:
            raise ValueError(
                "Calibration needs whole images: set MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE to 0."
            )
        if write and not Path(self.cfg.MODEL.WEIGHTS).is_file():
            raise ValueError(
                f"MODEL.WEIGHTS is '{self.cfg.MODEL.WEIGHTS}', but --write stores the temperature "
                "next to a file of weights: set it to such a file, or leave out --write."
            )
        self.model = build_model(self.cfg).eval()
        require_logits(self.model, "its confidence cannot be calibrated")
        self._pixels = pixels
        load_weights(self.model, self.cfg.MODEL.WEIGHTS, calibrated=not refit)
        self.results: dict[str, Any] = {
            "temperature": self.model.temperature,
            "calibration": {},
            "unknown": [],
        }

    def fit(self, datasets: Sequence[str]) -> None:
        """Fit the temperature on data sets, and measure them by two-fold cross-validation.

        Args:
            datasets: names of registered data sets.

        Raises:
            ValueError: if there are fewer than two images with labels.
        """
        samples = {name: self._sample(name) for name in datasets}
        joined = PixelSamples.join(list(samples.values()))
        even = joined.images % 2 == 0
        if even.all() or not even.any():
            raise ValueError(
                f"A fit on {', '.join(datasets)} needs at least 2 images with labels, because it "
                "measures the images of one half with the temperature of the other: give more."
            )
        self.results["temperature"] = fit_temperature(joined.logits, joined.right)
        folds = []  # fitted on the images with even numbers, and on the others
        for half in (even, ~even):
            part = joined.select(half)
            folds.append(fit_temperature(part.logits, part.right))
        for name, values in samples.items():
            even = values.images % 2 == 0
            confidence = np.where(
                even,
                label_confidence(values.logits, folds[1]),
                label_confidence(values.logits, folds[0]),
            )
            self._add(name, values, confidence)

    def measure(self, dataset: str) -> None:
        """Measure the calibration on a data set with the current temperature."""
        samples = self._sample(dataset)
        confidence = label_confidence(samples.logits, self.results["temperature"])
        self._add(dataset, samples, confidence)

    def _add(self, dataset: str, samples: PixelSamples, confidence: np.ndarray) -> None:
        error, bins = reliability(confidence, samples.right)
        before, bins_before = reliability(label_confidence(samples.logits, 1.0), samples.right)
        self.results["calibration"][dataset] = {
            "images": len(np.unique(samples.images)),
            "accuracy": 100 * float(samples.right.mean()),
            "confidence": 100 * float(confidence.mean()),
            "ECE": 100 * error,
            "ECE without calibration": 100 * before,
            "bins": bins,
            "bins without calibration": bins_before,
        }

    @staticmethod
    def check_unknown(dataset: str, draws: int) -> None:
        """Check that :meth:`measure_unknown` is possible, as far as the names tell.

        Raises:
            ValueError: if the data set has too few names.
            ImportError: if scikit-learn is not installed.
        """
        require_sklearn()
        count = len(dataset_vocabulary(dataset))
        removed = len(removed_names(count, draws - 1))
        if removed < 3 or removed == count:
            raise ValueError(f"{dataset} has {count} names, too few for --unknown {draws}.")

    def measure_unknown(self, dataset: str, draws: int) -> None:
        """Measure the detection of pixels whose names were removed from the vocabulary.

        Args:
            dataset: name of a registered data set.
            draws: number of random choices of names; the pixels of all choices are joined.

        Raises:
            ValueError: if the data set has too few names, or the removed names do not occur in
                both halves of the images.
        """
        self.check_unknown(dataset, draws)
        count = len(dataset_vocabulary(dataset))
        parts, unknown = [], []
        for draw in range(draws):
            removed = removed_names(count, draw)
            parts.append(self._sample(dataset, removed))
            unknown.append(np.isin(parts[-1].labels, removed))
        samples, removed = PixelSamples.join(parts), np.concatenate(unknown)
        even = samples.images % 2 == 0
        if any(len(np.unique(removed[half])) < 2 for half in (even, ~even)):
            raise ValueError(
                f"{dataset}: the names that --unknown {draws} removes label none or all of the "
                "pixels in one half of the images: give more images, or a larger --unknown."
            )
        signals = unknown_signals(samples, removed, self.results["temperature"])
        for name, signal in signals.items():
            row = {"data set": dataset, "signal": name}
            scores = detection_scores(signal[even], removed[even])
            share = 100 * float(removed[even].mean())
            self.results["unknown"].append(row | scores | {"unknown pixels": share})

    def _sample(self, dataset: str, removed: Sequence[int] = ()) -> PixelSamples:
        """Segment a data set, without the names `removed`, and sample pixels."""
        full = dataset_vocabulary(dataset)
        ids = np.setdiff1d(np.arange(len(full)), removed)
        vocabulary = Vocabulary(
            [full.synonyms[i] for i in ids],
            display_names=[full.display_names[i] for i in ids],
            warn_shared=False,
        )
        loader = Trainer.build_test_loader(self.cfg, dataset)
        evaluator = CalibrationEvaluator(dataset, ids, self._pixels)

        def segment(inputs: list[dict]) -> list[dict]:
            return self.model([{**x, "vocabulary": vocabulary} for x in inputs])

        with torch.no_grad():
            inference_on_dataset(segment, loader, evaluator)
        return evaluator.samples()

    def write(self, datasets: Sequence[str]) -> Path:
        """Store the temperature next to the weights; see `write_temperature`."""
        weights = self.cfg.MODEL.WEIGHTS
        return write_temperature(weights, self.model, self.results["temperature"], datasets)

    def to_markdown(self) -> str:
        """Return the temperature and the tables."""
        text = f"Temperature: {self.results['temperature']:.3f}\n\n"
        keys = ("images", "accuracy", "confidence", "ECE", "ECE without calibration")
        rows = [
            [name, *(values[key] for key in keys)]
            for name, values in self.results["calibration"].items()
        ]
        text += tabulate(rows, ["data set", *keys], tablefmt="github", floatfmt=".1f")
        if self.results["unknown"]:
            table = tabulate(self.results["unknown"], "keys", tablefmt="github", floatfmt=".1f")
            text += f"\n\n{table}"
        return text


def save_diagram(path: str | os.PathLike, calibration: dict[str, dict]) -> None:
    """Draw the accuracy over the confidence of each data set, as a PNG.

    Args:
        path: the file to write.
        calibration: see `CalibrationStudy.results`.

    Raises:
        WriteError: if the file cannot be written.
    """
    figure = Figure(figsize=(4.2 * len(calibration), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(calibration), squeeze=False)[0]
    for panel, (name, values) in zip(panels, calibration.items(), strict=True):
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for key, label, color in (
            ("bins without calibration", "ECE without calibration", "C1"),
            ("bins", "ECE", "C0"),
        ):
            _, confidence, accuracy = zip(*values[key])
            text = f"{'raw' if 'without' in key else 'calibrated'}: ECE {values[label]:.1f}%"
            panel.plot(confidence, accuracy, "o-", color=color, markersize=4, label=text)
        panel.set(title=name, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        panel.set_aspect("equal")
        panel.legend(loc="upper left")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100)
