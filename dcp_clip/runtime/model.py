"""An exported model: image and text features to the logits of the proposed categories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from dcp_clip.runtime.folder import ModelFolder
from dcp_clip.runtime.segmentation import blend_windows, window_views
from dcp_clip.runtime.sessions import Program
from dcp_clip.runtime.text import TextFeatures

__all__ = ["ExportedModel", "Features"]

Features = dict[str, np.ndarray]


class ExportedModel:
    """Runs encoder.onnx and head.onnx on whole images or in sliding windows."""

    def __init__(self, folder: ModelFolder, encoder: Program, head: Program):
        """
        Args:
            folder: gives the windows and the stride of the encoder.
            encoder, head: encoder.onnx and head.onnx.
        """
        self.encoder, self.head = encoder, head
        self._window, self._stride = folder["window"], folder["input"]["stride"]

    def encode(self, image: np.ndarray) -> list[Features]:
        """Encode an image (h, w, 3) of uint8.

        Returns:
            the features of the image, or of the reduced image and each window if it is segmented in
            windows.
        """
        return [self._encode(view) for view in self._views(image)]

    def segment(
        self, image: np.ndarray, text: TextFeatures, features: list[Features] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
        """Segment an image.

        Args:
            image: (h, w, 3) uint8 RGB.
            text: the text features of C categories.
            features: the result of :meth:`encode`; default: computed here, one window at a time.

        Returns:
            logits (K, h', w'), ids (K,), scores (K,), and the (rows, columns) of the grid of the
            logits that the image covers.
        """
        encoded = self._encoded_views(image, features)
        maps, extent, ids, scores = self._run_head(*next(encoded), text)
        if self._needs_windows(image):
            # A vocabulary of at most K names is proposed completely.
            text = TextFeatures(text.embeddings, text.category_rows[ids])
            results = (self._run_head(*view, text)[:2] for view in encoded)
            maps, extent = blend_windows(results, image.shape[:2], **self._window)
        return maps, ids, scores, extent

    def inputs(self, image: np.ndarray, text: TextFeatures) -> dict[str, dict[str, np.ndarray]]:
        """Return the inputs by name of the programs "encoder" and "head" for a whole image."""
        head = _head_inputs(image, self._encode(image), text)
        return {"encoder": _image_input(image), "head": head}

    def _needs_windows(self, image: np.ndarray) -> bool:
        return self._window is not None and max(image.shape[:2]) > self._window["size"]

    def _views(self, image: np.ndarray) -> Iterable[np.ndarray]:
        return window_views(image, **self._window) if self._needs_windows(image) else [image]

    def _encoded_views(
        self, image: np.ndarray, features: list[Features] | None
    ) -> Iterator[tuple[np.ndarray, Features]]:
        for i, view in enumerate(self._views(image)):
            yield view, self._encode(view) if features is None else features[i]

    def _encode(self, view: np.ndarray) -> Features:
        names = self.encoder.outputs
        return dict(zip(names, self.encoder(_image_input(view), names), strict=True))

    def _run_head(
        self, view: np.ndarray, features: Features, text: TextFeatures
    ) -> tuple[np.ndarray, tuple[float, float], np.ndarray, np.ndarray]:
        """Return logits (K, h, w), what of their grid is image, ids (K,) and scores (K,)."""
        inputs = _head_inputs(view, features, text)
        logits, ids, scores = self.head(inputs, ["logits", "ids", "scores"])
        padded = [-(-side // self._stride) * self._stride for side in view.shape[:2]]
        covered = zip(view.shape[:2], logits.shape[2:], padded, strict=True)
        rows, columns = (side * cells / whole for side, cells, whole in covered)
        return logits[0], (rows, columns), ids[0], scores[0]


def _image_input(image: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": np.ascontiguousarray(image.transpose(2, 0, 1))[None]}


def _head_inputs(
    image: np.ndarray, features: Features, text: TextFeatures
) -> dict[str, np.ndarray]:
    texts = {"text_features": text.embeddings, "category_rows": text.category_rows}
    return _image_input(image) | features | texts
