"""`OnnxPredictor` segments single images with an exported model and any vocabulary."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcp_clip.found_categories import checked_threshold
from dcp_clip.runtime.folder import read_folder
from dcp_clip.runtime.model import ExportedModel, Features
from dcp_clip.runtime.prediction import EncodedImage, Prediction, make_prediction
from dcp_clip.runtime.resizing import Resizing
from dcp_clip.runtime.segmentation import Segmentation
from dcp_clip.runtime.sessions import open_program
from dcp_clip.runtime.text import TextEncoder, TextFeatures
from dcp_clip.utils.images.arrays import check_max_pixels, check_rgb, check_size
from dcp_clip.utils.images.reading import read_image_and_size
from dcp_clip.vocabulary import Vocabulary, VocabularyError

__all__ = ["OnnxPredictor"]

VocabularySpec = Vocabulary | str | os.PathLike | Sequence

# The names of data sets that `Predictor` knows, in this project and in others.
_DATASET = re.compile(r"[\w-]+_sem_seg(_[\w-]+)?|emoji_scenes_\w+")


class OnnxPredictor:
    """Segment images with the folder that tools/export.py wrote, without PyTorch.

    It has the interface of :class:`dcp_clip.Predictor` and gives the same labels, except for pixels
    where two categories are equal up to rounding. Several threads can share it, as there.

    Example::

        predictor = OnnxPredictor("output/onnx/camvid")
        predictor.set_vocabulary("sky; tree; car, automobile")
        print(predictor("street.jpg").shares)

        predictor.set_image("cat.jpg")  # encoded once
        for names in ("cat; sofa", "cat; cushion; wall"):
            print(predictor.predict(names).shares)
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

        self.model = ExportedModel(self.folder, load("encoder.onnx"), load("head.onnx"))
        self._labels = load("labels.onnx")
        self._text = TextEncoder(self.folder, load("text.onnx"))
        self.backend = backend
        self.resizing = Resizing.from_settings(self.folder["input"])
        self.max_input_pixels = check_max_pixels(max_input_pixels)
        self.image: EncodedImage | None = None
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
        vocabulary = _parsed(vocabulary)
        self._text(vocabulary)
        self.vocabulary = vocabulary

    def set_image(
        self, image: str | os.PathLike | np.ndarray, size: tuple[int, int] | None = None
    ) -> EncodedImage:
        """Encode an image once, to segment it with several vocabularies.

        `predict` then segments this image without running the encoder. The predictor keeps the last
        image only. If several threads set images, each of them passes the result of its own call:
        `predictor(encoded, vocabulary=...)`.

        Args:
            image, size: see `__call__`.

        Raises:
            ImageReadError, ValueError: see `__call__`.
        """
        if isinstance(image, np.ndarray):
            image = image.copy()  # the program may use its array again
        image, size = self._read(image, size)
        resized = self.resizing(image)
        features = self.model.encode(resized)
        encoded = EncodedImage(image, size, resized, features, self.folder.settings)
        self.image = encoded  # returned from the variable: another thread may set another image
        return encoded

    def __call__(
        self,
        image: str | os.PathLike | np.ndarray | EncodedImage,
        size: tuple[int, int] | None = None,
        vocabulary: VocabularySpec | None = None,
        unknown_below: float | None = None,
    ) -> Prediction:
        """Segment an image.

        Args:
            image: an image file, an (H, W, 3) uint8 RGB array, or an image from `set_image`.
            size: (height, width) of the label map; default: the size of the image after its EXIF
                rotation, or that given to `set_image`.
            vocabulary: the vocabulary for this image; default: the current one.
            unknown_below: default: that of the predictor.

        Raises:
            ImageReadError: if the file cannot be read.
            VocabularyError: if the vocabulary is invalid, or a name is too long for CLIP.
            ValueError: if the array is not an (H, W, 3) uint8 array, or is empty; if `size` is not
                two whole numbers from 1 on; if `unknown_below` is not from 0 to 1; if the model
                computes NaN or infinite logits.
        """
        vocabulary = self.vocabulary if vocabulary is None else _parsed(vocabulary)
        below = self.unknown_below if unknown_below is None else checked_threshold(unknown_below)
        if isinstance(image, EncodedImage):
            if image.encoder != self.folder.settings:
                raise ValueError("Another model encoded this image: call set_image first.")
            start, resized, features = time.perf_counter(), image.resized, image.features
            size = image.size if size is None else check_size(size)
        else:
            image, size = self._read(image, size)
            start, features = time.perf_counter(), None
            resized = self.resizing(image)
        prediction = self.predict_resized(resized, size, vocabulary, below, features)
        prediction.milliseconds = 1000 * (time.perf_counter() - start)
        return prediction

    def predict(self, vocabulary: VocabularySpec | None = None, **options: Any) -> Prediction:
        """Segment the last image of `set_image`; the arguments are those of `__call__`.

        Raises:
            ValueError: if no image was set; see also `__call__`.
        """
        if self.image is None:
            raise ValueError("There is no image; call set_image first.")
        return self(self.image, vocabulary=vocabulary, **options)

    def predict_resized(
        self,
        resized: np.ndarray,
        size: tuple[int, int],
        vocabulary: Vocabulary | None = None,
        unknown_below: float | None = None,
        features: list[Features] | None = None,
    ) -> Prediction:
        """Segment an image that `resizing` has resized.

        Args:
            resized: (h, w, 3) uint8 RGB.
            size: (height, width) of the label map.
            vocabulary, unknown_below: default: those of the predictor.
            features: see :class:`EncodedImage`; default: computed here.

        Raises:
            ValueError: if the model computes NaN or infinite logits.
        """
        vocabulary = self.vocabulary if vocabulary is None else vocabulary
        below = self.unknown_below if unknown_below is None else unknown_below
        text = self._text(vocabulary)
        maps, ids, scores, extent = self.model.segment(resized, text, features)
        if not (np.isfinite(maps).all() and np.isfinite(scores).all()):
            raise ValueError(
                "The model computed NaN or infinite logits, so it has no answer for this image; "
                "check the weights that were exported."
            )
        sem_seg = Segmentation(
            self._labels, maps, ids, len(vocabulary), size, extent, self.folder["temperature"]
        )
        return make_prediction(sem_seg, scores, vocabulary, below)

    def text_features(self) -> TextFeatures:
        """Return the text features of the vocabulary, which head.onnx takes."""
        return self._text(self.vocabulary)

    def _read(
        self, image: str | os.PathLike | np.ndarray, size: tuple[int, int] | None
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the (H, W, 3) uint8 RGB image, and the (height, width) of its label map."""
        if isinstance(image, str | os.PathLike):
            image, file_size = read_image_and_size(image, self.max_input_pixels)
            size = file_size if size is None else size
        check_rgb(image)
        return image, image.shape[:2] if size is None else check_size(size)


def _parsed(vocabulary: VocabularySpec) -> Vocabulary:
    if isinstance(vocabulary, str) and _DATASET.fullmatch(vocabulary.strip()):
        raise VocabularyError(
            f"'{vocabulary.strip()}' is the name of a data set, which an exported model does not "
            "know: give the names, or a file of names."
        )
    return Vocabulary.parse(vocabulary)
