"""An exported model for runs over folders, whose predictions have all formats."""

from typing import Any

from dcp_clip.data.vocabularies import parse_vocabulary
from dcp_clip.prediction import Prediction, make_prediction
from dcp_clip.runtime import OnnxPredictor

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
        settings = dict(self.folder.settings)
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
        found = super().__call__(*args, **options)
        scores = dict(zip(found.category_ids.tolist(), found.scores.tolist(), strict=True))
        below = options.get("unknown_below")
        below = self.unknown_below if below is None else below
        prediction = make_prediction(found.sem_seg, scores, found.vocabulary, below)
        prediction.milliseconds = found.milliseconds
        return prediction
