"""An exported model for runs over folders, whose predictions have all formats."""

from typing import Any

import numpy as np

from dcp_clip.data.vocabularies import parse_vocabulary
from dcp_clip.prediction import Prediction, make_prediction
from dcp_clip.runtime import OnnxPredictor
from dcp_clip.runtime.model import Features
from dcp_clip.vocabulary import Vocabulary

__all__ = ["RunOnnxPredictor"]


class RunOnnxPredictor(OnnxPredictor):
    """An :class:`OnnxPredictor` that returns a :class:`dcp_clip.Prediction`.

    This needs PyTorch. It also takes the names of data sets as a vocabulary.
    """

    def __init__(self, folder: str, vocabulary: Any = None, **options: Any) -> None:
        """
        Args:
            folder, vocabulary, **options: see :class:`OnnxPredictor`.
        """
        vocabulary = None if vocabulary is None else parse_vocabulary(vocabulary)
        super().__init__(folder, vocabulary, **options)

    @property
    def cfg(self) -> dict[str, Any]:
        """What the results depend on, besides the weights."""
        # Backends can label single pixels differently.
        settings = self.folder.settings | {"backend": self.backend}
        return {key: settings[key] for key in sorted(settings) if key != "vocabulary"}

    @property
    def fingerprint(self) -> str:
        """That of the weights that were exported."""
        return f"{self.folder['fingerprint']}, exported"

    @property
    def temperature(self) -> float:
        """Return the temperature of the confidence."""
        return self.folder["temperature"]

    def __call__(self, *args: Any, confidence: bool = True, **options: Any) -> Prediction:
        """See :meth:`OnnxPredictor.__call__`; the confidence is computed when it is first used."""
        return super().__call__(*args, **options)

    def predict_resized(
        self,
        resized: np.ndarray,
        size: tuple[int, int],
        vocabulary: Vocabulary | None = None,
        unknown_below: float | None = None,
        features: list[Features] | None = None,
    ) -> Prediction:
        """See :meth:`OnnxPredictor.predict_resized`."""
        found = super().predict_resized(resized, size, vocabulary, unknown_below, features)
        scores = dict(zip(found.category_ids.tolist(), found.scores.tolist(), strict=True))
        below = self.unknown_below if unknown_below is None else unknown_below
        return make_prediction(found.sem_seg, scores, found.vocabulary, below)
