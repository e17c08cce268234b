"""`Predictor`: from an image to a label map, with any vocabulary, in bounded memory."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from dcp_clip.config import setup_cfg
from dcp_clip.data.augmentation import ResizeForTest
from dcp_clip.data.vocabularies import dataset_vocabulary, parse_vocabulary
from dcp_clip.engine.checkpoint import has_weights, load_weights, warn_if_untrained
from dcp_clip.utils.image_io import read_image_and_size
from dcp_clip.utils.label_map import category_shares
from dcp_clip.utils.visualization import draw_overlay
from dcp_clip.vocabulary import Vocabulary, VocabularyError

logger = logging.getLogger(__name__)

# What `Vocabulary.parse` takes.
VocabularySpec = Vocabulary | str | os.PathLike | Sequence


@dataclass(frozen=True)
class FoundCategory:
    """A category that won at least one pixel.

    Attributes:
        id: its position in the vocabulary, which is its value in the label map.
        name: its display name.
        share: its share of the area, 0 ... 1.
        score: the proposal stage's evidence that it is in the image; higher is likelier, but it is
            no probability.
    """

    id: int
    name: str
    share: float
    score: float


@dataclass
class Prediction:
    """What was found in one image.

    Attributes:
        label_map: (H, W) category id of every pixel, in the smallest unsigned type that holds the
            vocabulary's ids (int64 would take eight times the memory).
        vocabulary: the C categories that the ids refer to.
        category_ids: (K,) int64, the categories that were proposed for this image.
        scores: (K,) float32, the proposal stage's evidence for each of them.
        found: the categories that won a pixel, the largest first.
        milliseconds: time for resizing, model and label map, without reading the file.
    """

    label_map: np.ndarray
    vocabulary: Vocabulary
    category_ids: np.ndarray
    scores: np.ndarray
    found: list[FoundCategory]
    milliseconds: float

    @property
    def shares(self) -> dict[str, float]:
        """Share of the area, 0 ... 1, by display name, the largest first.

        Where two categories have the same display name, the second gets its id behind the name.
        """
        shares: dict[str, float] = {}
        for category in self.found:
            taken = category.name in shares
            name = f"{category.name} ({category.id})" if taken else category.name
            shares[name] = category.share
        return shares

    def overlay(self, image: np.ndarray, **options: Any) -> np.ndarray:
        """Draw the regions and a legend over the image; see `visualization.draw_overlay`."""
        shares = np.zeros(len(self.vocabulary))
        shares[[category.id for category in self.found]] = [c.share for c in self.found]
        return draw_overlay(image, self.label_map, self.vocabulary, shares, **options)


class Predictor:
    """Segment single images with a trained model, or a training-free one, and any vocabulary.

    Images are resized by `INPUT.MIN_SIZE_TEST` and `INPUT.MAX_SIZE_TEST`, as Detectron2's
    `DefaultPredictor` does it, so that the answers are those of the evaluation. Memory is bounded
    whatever the image's size: the logits are enlarged to it in bands.

    Example::

        predictor = Predictor.from_config_file("configs/camvid/dcp_clip_tiny.yaml", "weights.pth")
        predictor.set_vocabulary("sky; tree; car, automobile")
        prediction = predictor("street.jpg")
        print(prediction.shares)
    """

    def __init__(
        self,
        cfg: CfgNode,
        vocabulary: VocabularySpec | None = None,
        *,
        model: nn.Module | None = None,
        allow_random_weights: bool = False,
        max_input_pixels: int = 16_000_000,
    ) -> None:
        """
        Args:
            cfg: the config of the model.
            vocabulary: see `set_vocabulary`; default: the vocabulary of `DATASETS.TRAIN[0]`.
            model: a model to use instead of building one and loading `MODEL.WEIGHTS`.
            allow_random_weights: accept a config that names no weights at all.
            max_input_pixels: larger image files are reduced to this while they are read.

        Raises:
            ValueError: if the config names no weights, neither of the model nor of CLIP, the
                weights do not fit the model, or there is neither a vocabulary nor a training set.
            VocabularyError: if the vocabulary cannot be used.
        """
        self.cfg = cfg.clone()
        self.cfg.defrost()  # MODEL.DEVICE may have to change
        # Before the weights: they may be a long download.
        if vocabulary is None:
            if not cfg.DATASETS.TRAIN:
                raise ValueError(
                    "DATASETS.TRAIN is empty, so the config has no names of its own: give a "
                    "vocabulary (the demo's --vocabulary)"
                )
            vocabulary = dataset_vocabulary(cfg.DATASETS.TRAIN[0])
        if model is None:
            model = _load_model(self.cfg, allow_random_weights)
        self.model = model.eval()
        self.max_input_pixels = max_input_pixels
        self._resizing = ResizeForTest(self.cfg)
        self.set_vocabulary(vocabulary)

    @classmethod
    def from_config_file(
        cls,
        config_file: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        opts: Sequence[str] = (),
        vocabulary: VocabularySpec | None = None,
        **options: Any,
    ) -> "Predictor":
        """Make a predictor of a config file.

        Args:
            config_file: a YAML file of configs/.
            weights: a checkpoint; default: the config's `MODEL.WEIGHTS`.
            opts: further config keys and values in turn, as on the command line.
            vocabulary: see `set_vocabulary`.
            **options: further arguments of the constructor.

        Raises:
            as the constructor; KeyError or FileNotFoundError for the config.
        """
        opts = list(opts) + (["MODEL.WEIGHTS", os.fspath(weights)] if weights is not None else [])
        return cls(setup_cfg(os.fspath(config_file), opts), vocabulary, **options)

    def set_vocabulary(self, vocabulary: VocabularySpec) -> None:
        """Change the categories for all further images.

        Args:
            vocabulary: anything that `Vocabulary.parse` takes: a `Vocabulary`, a list of names, a
                string such as "sky; tree; car, automobile", a file, or the name of a dataset.

        Raises:
            VocabularyError: if it cannot be used; the old one then stays.
        """
        vocabulary = parse_vocabulary(vocabulary)
        try:
            self.model.set_vocabulary(vocabulary)
        except ValueError as error:  # a name that is too long for CLIP
            raise VocabularyError(str(error)) from error
        self.vocabulary = vocabulary

    @torch.no_grad()
    def __call__(
        self, image: str | os.PathLike | np.ndarray, size: tuple[int, int] | None = None
    ) -> Prediction:
        """Label every pixel of an image.

        Args:
            image: an image file, or an (H, W, 3) uint8 array in RGB order.
            size: (height, width) of the label map; default: that of the file (upright) or array.

        Raises:
            ImageReadError: if the file cannot be read.
            ValueError: if the array is not an image.
        """
        if isinstance(image, (str, os.PathLike)):
            image, file_size = read_image_and_size(image, self.max_input_pixels)
            size = size or file_size
        _check_image(image)
        start = time.perf_counter()
        size = size or image.shape[:2]
        inputs = {"image": self._resize(image), "height": size[0], "width": size[1]}
        output = self.model([inputs])[0]
        sem_seg, proposals = output["sem_seg"], output["proposals"]
        label_map = sem_seg.label_map()
        milliseconds = 1000 * (time.perf_counter() - start)
        scores = dict(zip(proposals["ids"].tolist(), proposals["scores"].tolist(), strict=True))
        ids = sem_seg.category_ids.tolist()
        return Prediction(
            label_map=label_map,
            vocabulary=self.vocabulary,
            category_ids=np.array(ids, np.int64),
            scores=np.array([scores[i] for i in ids], np.float32),
            found=_found(label_map, self.vocabulary, scores),
            milliseconds=milliseconds,
        )

    def _resize(self, image: np.ndarray) -> Tensor:
        """Bring an RGB image to the model's size and channel order, (3, h, w) uint8."""
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        image = np.ascontiguousarray(image)
        resized = self._resizing.get_transform(image).apply_image(image)
        return torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _load_model(cfg: CfgNode, allow_random_weights: bool) -> nn.Module:
    if not (allow_random_weights or has_weights(cfg)):
        raise ValueError(
            "the config names no weights: set MODEL.WEIGHTS to a trained model, or "
            "MODEL.CLIP.PRETRAINED to CLIP weights for the training-free mode"
        )
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        # Detectron2's default is "cuda", which whoever has no GPU did not choose.
        logger.warning("MODEL.DEVICE is 'cuda', but there is no CUDA device: using the CPU")
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    warn_if_untrained(model, cfg.MODEL.WEIGHTS)
    return model


def _check_image(image: np.ndarray) -> None:
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if image.size:
            return
    got = f"{image.shape} {image.dtype}" if is_array else type(image).__name__
    raise ValueError(f"an image must be a path or an (H, W, 3) uint8 RGB array, not {got}")


def _found(
    label_map: np.ndarray, vocabulary: Vocabulary, scores: dict[int, float]
) -> list[FoundCategory]:
    shares = category_shares(label_map, len(vocabulary))
    found = [
        FoundCategory(i, vocabulary.display_names[i], float(shares[i]), scores[i])
        for i in np.flatnonzero(shares).tolist()
    ]
    return sorted(found, key=lambda category: (-category.share, category.id))
