"""Detection of pixels whose category is not in the vocabulary."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import scipy

from dcp_clip.evaluation.calibration import PixelSamples, label_confidence
from dcp_clip.utils.optional_packages import import_optional

__all__ = ["detection_scores", "removed_names", "require_sklearn", "unknown_signals"]

_COMBINATION = "all four, logistic regression"


def removed_names(num_categories: int, draw: int) -> np.ndarray:
    """Return the ids of the categories that are removed from a vocabulary.

    A tenth of the names is removed, or three of fewer than 30. Different draws remove different
    names.

    Args:
        num_categories: C.
        draw: number of the random draw, from 0.
    """
    count = max(3, num_categories // 10)
    order = np.random.default_rng(0).permutation(num_categories)
    return np.sort(order[draw * count : (draw + 1) * count])


def unknown_signals(
    samples: PixelSamples, removed: np.ndarray, temperature: float
) -> dict[str, np.ndarray]:
    """Return the signals that can detect unknown pixels, by name; a higher value means unknown.

    Args:
        samples: N pixels.
        removed: (N,) bool, whether the category was removed. A combination of the signals is fitted
            on images with odd numbers; evaluate it on images with even numbers.
        temperature: temperature of the confidence.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    confidence = label_confidence(samples.logits, temperature)
    probability = scipy.special.softmax(samples.logits.astype(np.float64) / temperature, axis=1)
    signals = {
        "confidence": 1 - confidence,
        "entropy over the proposals": scipy.special.entr(probability).sum(axis=1),
        "score of stage 1": -samples.scores,
    }
    if np.isfinite(samples.presence).all():
        signals["presence of stage 5"] = 1 - samples.presence
    columns = [
        scipy.special.logit(np.clip(1 - confidence, 1e-5, 1 - 1e-5)),
        signals["entropy over the proposals"],
        samples.scores,
        scipy.special.logit(np.clip(np.nan_to_num(samples.presence), 1e-5, 1 - 1e-5)),
    ]
    features = np.stack(columns, axis=1)
    features = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    linear_model, _ = require_sklearn()
    model = linear_model.LogisticRegression(max_iter=500)
    odd = samples.images % 2 == 1
    signals[_COMBINATION] = model.fit(features[odd], removed[odd]).decision_function(features)
    return signals


def detection_scores(signal: np.ndarray, removed: np.ndarray) -> dict[str, float]:
    """Return AUROC, AUPR and the false positive rate at 95% true positives, in percent.

    Args:
        signal: (N,), higher for unknown pixels.
        removed: (N,) bool, whether a pixel is unknown.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    _, metrics = require_sklearn()
    false, true, _ = metrics.roc_curve(removed, signal)
    values = {
        "AUROC": metrics.roc_auc_score(removed, signal),
        "AUPR": metrics.average_precision_score(removed, signal),
        "FPR95": false[np.searchsorted(true, 0.95)],
    }
    return {name: 100 * float(value) for name, value in values.items()}


def require_sklearn() -> tuple[ModuleType, ModuleType]:
    """Return the modules ``linear_model`` and ``metrics`` of scikit-learn.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    need = "The detection of unknown pixels needs"
    modules = ("sklearn.linear_model", "sklearn.metrics")
    return tuple(import_optional(module, need, "scikit-learn") for module in modules)
