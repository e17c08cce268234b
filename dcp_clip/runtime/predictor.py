"""`OnnxPredictor` segments single images with an exported model and any vocabulary."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcp_clip.labels import checked_threshold
from dcp_clip.runtime.folder import read_folder
from dcp_clip.runtime.prediction import Prediction, make_prediction
from dcp_clip.runtime.resizing import Resizing
from dcp_clip.runtime.segmentation import Segmentation, segment_in_windows
from dcp_clip.runtime.sessions import open_program
from dcp_clip.runtime.text import TextEncoder, TextFeatures
from dcp_clip.utils.images.arrays import check_rgb
from dcp_clip.utils.images.reading import read_image_and_size
from dcp_clip.vocabulary import Vocabulary

__all__ = ["OnnxPredictor"]

VocabularySpec = Vocabulary | str | os.PathLike | Sequence


class OnnxPredictor:
    """Segment images with the folder that tools/export.py wrote, without PyTorch.

    It has the interface of :class:`dcp_clip.Predictor` and gives the same labels, except for pixels
    where two categories are equal up to rounding. Several threads can share it, as there.

    Example::

        predictor = OnnxPredictor("output/onnx/camvid")
        predictor.set_vocabulary("sky; tree; car, automobile")
        print(predictor("street.jpg").shares)
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        vocabulary: VocabularySpec | None = None,
        *,
        backend: str = "onnxruntime",
        threads: int = 0,
        providers: Sequence[str] = (),
        max_input_pixels: int = 16_000_000,
        unknown_below: float | None = None,
    ) -> None:
        """
        Args:
            folder: written by tools/export.py.
            vocabulary: see `set_vocabulary`; default: the names that the model was trained with.
            backend: "onnxruntime" or "openvino".
            threads: threads of the CPU for one image; 0 lets the backend decide.
            providers: execution providers of ONNX Runtime, the preferred one first; default: CPU.
            max_input_pixels: image files with more pixels are downscaled while they are read.
            unknown_below: pixels with a smaller confidence become unknown (0 to 1; 0 for none);
                default: that of the exported model.

        Raises:
            RuntimeFolderError: if the folder is not complete or of another version.
            ValueError: if there is no vocabulary, or for an unknown backend or provider.
            VocabularyError: if the vocabulary is invalid.
            ImportError: if the package of the backend is not installed.
        """
        self.folder = read_folder(Path(folder))
        if vocabulary is None:
            if self.folder.vocabulary is None:
                raise ValueError(
                    f"'{self.folder.path}' has no default vocabulary: give a vocabulary."
                )
            vocabulary = self.folder.vocabulary

        def load(name: str) -> Any:
            return open_program(self.folder.path / name, backend, threads, providers)

        self._image, self._labels = load("logits.onnx"), load("labels.onnx")
        self._text = TextEncoder(self.folder, load("text.onnx"))
        self.backend = backend
        self.resizing = Resizing.from_settings(self.folder["input"])
        self.max_input_pixels = max_input_pixels
        below = self.folder["unknown_below"] if unknown_below is None else unknown_below
        self.unknown_below = checked_threshold(below)
        self.set_vocabulary(vocabulary)

    def set_vocabulary(self, vocabulary: VocabularySpec) -> None:
        """Set the vocabulary of the following images; its names are encoded in this call.

        Args:
            vocabulary: a `Vocabulary`, a list of names, a string such as
                "sky; tree; car, automobile", or a file; see `Vocabulary.parse`.

        Raises:
            VocabularyError: if the vocabulary is invalid, or a name is too long for CLIP. The
                current vocabulary is then unchanged.
        """
        vocabulary = Vocabulary.parse(vocabulary)
        self._text(vocabulary)
        self.vocabulary = vocabulary

    def __call__(
        self,
        image: str | os.PathLike | np.ndarray,
        size: tuple[int, int] | None = None,
        vocabulary: VocabularySpec | None = None,
        unknown_below: float | None = None,
    ) -> Prediction:
        """Segment an image.

        Args:
            image: an image file, or an (H, W, 3) uint8 RGB array.
            size: (height, width) of the label map; default: the size of the image after its EXIF
                rotation.
            vocabulary: the vocabulary for this image; default: the current one.
            unknown_below: default: that of the predictor.

        Raises:
            ImageReadError: if the file cannot be read.
            VocabularyError: if the vocabulary is invalid, or a name is too long for CLIP.
            ValueError: if the array is not an (H, W, 3) uint8 array, or is empty; if
                `unknown_below` is not from 0 to 1; if the model computes NaN or infinite logits.
        """
        vocabulary = self.vocabulary if vocabulary is None else Vocabulary.parse(vocabulary)
        below = self.unknown_below if unknown_below is None else checked_threshold(unknown_below)
        if isinstance(image, str | os.PathLike):
            image, file_size = read_image_and_size(image, self.max_input_pixels)
            size = size or file_size
        check_rgb(image)
        start = time.perf_counter()
        size = tuple(size or image.shape[:2])
        prediction = self.predict_resized(self.resizing(image), size, vocabulary, below)
        prediction.milliseconds = 1000 * (time.perf_counter() - start)
        return prediction

    def predict_resized(
        self,
        resized: np.ndarray,
        size: tuple[int, int],
        vocabulary: Vocabulary | None = None,
        unknown_below: float | None = None,
    ) -> Prediction:
        """Segment an image that `resizing` has resized.

        Args:
            resized: (h, w, 3) uint8 RGB.
            size: (height, width) of the label map.
            vocabulary, unknown_below: default: those of the predictor.

        Raises:
            ValueError: if the model computes NaN or infinite logits.
        """
        vocabulary = self.vocabulary if vocabulary is None else vocabulary
        below = self.unknown_below if unknown_below is None else unknown_below
        text = self._text(vocabulary)
        maps, ids, scores, extent = self._segment(resized, text)
        if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
            raise ValueError(
                "The model computed NaN or infinite logits, so it has no answer for this image; "
                "check the weights that were exported."
            )
        sem_seg = Segmentation(
            self._labels, maps, ids, len(vocabulary), size, extent, self.folder["temperature"]
        )
        return make_prediction(sem_seg, scores, vocabulary, below)

    def inputs(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return the inputs of logits.onnx for an (H, W, 3) uint8 RGB array and the vocabulary."""
        return _inputs(self.resizing(image), self._text(self.vocabulary))

    def _segment(
        self, image: np.ndarray, text: TextFeatures
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
        """Return logits (K, h, w), ids (K,), scores (K,), and the (rows, columns) of the image."""
        window = self.folder["window"]
        if window is None or max(image.shape[:2]) <= window["size"]:
            maps, extent, ids, scores = self._run(image, text)
            return maps, ids, scores, extent
        proposed: dict[str, np.ndarray] = {}

        def propose(reduced: np.ndarray) -> None:
            _, _, proposed["ids"], proposed["scores"] = self._run(reduced, text)

        def segment(view: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
            # A vocabulary of at most K names is proposed completely.
            rows = text.category_rows[proposed["ids"]]
            return self._run(view, TextFeatures(text.embeddings, rows))[:2]

        maps, extent = segment_in_windows(image, window["size"], window["stride"], propose, segment)
        return maps, proposed["ids"], proposed["scores"], extent

    def _run(
        self, image: np.ndarray, text: TextFeatures
    ) -> tuple[np.ndarray, tuple[float, float], np.ndarray, np.ndarray]:
        """Run logits.onnx: logits (K, h, w), what of their grid is image, ids (K,), scores (K,)."""
        logits, ids, scores = self._image(_inputs(image, text), ["logits", "ids", "scores"])
        stride = self.folder["input"]["stride"]
        padded = [-(-side // stride) * stride for side in image.shape[:2]]
        covered = zip(image.shape[:2], logits.shape[2:], padded, strict=True)
        rows, columns = (side * cells / whole for side, cells, whole in covered)
        return logits[0], (rows, columns), ids[0], scores[0]


def _inputs(image: np.ndarray, text: TextFeatures) -> dict[str, np.ndarray]:
    return {
        "image": np.ascontiguousarray(image.transpose(2, 0, 1))[None],
        "text_features": text.embeddings,
        "category_rows": text.category_rows,
    }
