"""`Predictor` segments single images with any vocabulary, in bounded memory."""

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
from dcp_clip.engine.checkpoints.loading import has_weights, load_weights, warn_if_untrained
from dcp_clip.modeling.finite import check_weights
from dcp_clip.utils.images.reading import read_image_and_size
from dcp_clip.utils.upsampling import category_shares
from dcp_clip.utils.visualization import draw_overlay
from dcp_clip.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Accepted by `dcp_clip.data.parse_vocabulary`.
VocabularySpec = Vocabulary | str | os.PathLike | Sequence


@dataclass(frozen=True)
class FoundCategory:
    """A category with at least one pixel in the label map.

    Attributes:
        id: position in the vocabulary, and value in the label map.
        name: display name.
        share: fraction of the area, 0 to 1.
        score: score of the category in stage 1 for this image. A higher score means a more likely
            category, but the score is not a probability.
    """

    id: int
    name: str
    share: float
    score: float


@dataclass
class Prediction:
    """The segmentation of one image.

    Attributes:
        label_map: (H, W) category ids in the smallest unsigned integer type that can store C ids.
        vocabulary: the C categories.
        category_ids: (K,) int64, the ids of the proposed categories.
        scores: (K,) float32, the scores of the proposed categories.
        found: the categories in the label map, the largest area first.
        milliseconds: time to resize the image, run the model and make the label map. It does not
            include the time to read the file.
    """

    label_map: np.ndarray
    vocabulary: Vocabulary
    category_ids: np.ndarray
    scores: np.ndarray
    found: list[FoundCategory]
    milliseconds: float

    @property
    def shares(self) -> dict[str, float]:
        """The fraction of the area (0 to 1) by display name, the largest area first.

        If two categories have the same display name, the second one gets its id as a suffix.
        """
        shares: dict[str, float] = {}
        for category in self.found:
            taken = category.name in shares
            name = f"{category.name} ({category.id})" if taken else category.name
            shares[name] = category.share
        return shares

    def overlay(self, image: np.ndarray, **options: Any) -> np.ndarray:
        """Draw the regions over the image, and a legend below it.

        Args:
            image: the image that was segmented, (H, W, 3) uint8 RGB.
            **options: other arguments of `dcp_clip.utils.visualization.draw_overlay`.

        Returns:
            np.ndarray: (H', W', 3) uint8 RGB.
        """
        shares = np.zeros(len(self.vocabulary))
        shares[[category.id for category in self.found]] = [c.share for c in self.found]
        return draw_overlay(image, self.label_map, self.vocabulary, shares, **options)


class Predictor:
    """Segment single images with a trained or training-free model and any vocabulary.

    Images are resized by `INPUT.MIN_SIZE_TEST` and `INPUT.MAX_SIZE_TEST`, as in the evaluation and
    in Detectron2's `DefaultPredictor`. The logits are upsampled to the image's size in bands of
    rows, so memory is bounded for images of any size.

    Several threads can share a predictor and can call `set_vocabulary` at the same time. Each
    prediction uses one vocabulary, `Prediction.vocabulary`: the one given with the call, or else
    the current one when the call began. All threads share the current vocabulary, so pass a
    vocabulary with each call if threads need different ones. It is not safe to train the model,
    load weights or move it to another device while another thread uses it.

    Example::

        predictor = Predictor.from_config_file("configs/camvid/dcp_clip_tiny.yaml", "weights.pth")
        predictor.set_vocabulary("sky; tree; car, automobile")
        prediction = predictor("street.jpg")
        print(prediction.shares)
        prediction = predictor("cat.jpg", vocabulary="cat; sofa; wall")  # for this image only
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
            cfg: config of the model.
            vocabulary: see `set_vocabulary`; default: the categories of `DATASETS.TRAIN[0]`.
            model: a built model; default: build the model of the config and load `MODEL.WEIGHTS`.
            allow_random_weights: accept a config without `MODEL.WEIGHTS` and without
                `MODEL.CLIP.PRETRAINED`.
            max_input_pixels: image files with more pixels are downscaled while they are read.

        Raises:
            ValueError: if the config sets neither `MODEL.WEIGHTS` nor `MODEL.CLIP.PRETRAINED`, or
                there is neither a vocabulary nor a training set.
            WeightsError: if the weights cannot be read or belong to another model.
            NonFiniteError: if a weight is NaN or infinite.
            VocabularyError: if the vocabulary is invalid.
        """
        self.cfg = cfg.clone()
        self.cfg.defrost()  # for MODEL.DEVICE
        # Read the vocabulary before the weights, which may be a long download.
        if vocabulary is None:
            if not cfg.DATASETS.TRAIN:
                raise ValueError(
                    "DATASETS.TRAIN is empty, so the config has no default vocabulary. Give a "
                    "vocabulary (--vocabulary in the demo)."
                )
            vocabulary = dataset_vocabulary(cfg.DATASETS.TRAIN[0])
        vocabulary = parse_vocabulary(vocabulary)
        if model is None:
            model = _load_model(self.cfg, allow_random_weights)
        check_weights(model.state_dict(), self.cfg.MODEL.WEIGHTS)
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
        """Create a predictor from a config file.

        Args:
            config_file: a YAML file, for example in configs/.
            weights: a checkpoint; default: `MODEL.WEIGHTS` of the config.
            opts: alternating config keys and values that override the file.
            vocabulary: see `set_vocabulary`.
            **options: other arguments of the constructor.

        Raises:
            FileNotFoundError: if the config file does not exist.
            KeyError: if the file or `opts` contains an unknown config key.
            ValueError, WeightsError, VocabularyError: see the constructor.
        """
        opts = list(opts) + (["MODEL.WEIGHTS", os.fspath(weights)] if weights is not None else [])
        return cls(setup_cfg(os.fspath(config_file), opts), vocabulary, **options)

    def set_vocabulary(self, vocabulary: VocabularySpec) -> None:
        """Set the vocabulary of the following images.

        The model encodes the names once, in this call, and uses the text features for all images.

        Args:
            vocabulary: a `Vocabulary`, a list of names, a string such as
                "sky; tree; car, automobile", a file, or the name of a data set; see
                `dcp_clip.data.parse_vocabulary`.

        Raises:
            VocabularyError: if the vocabulary is invalid, or a name is too long for CLIP. The
                current vocabulary is then unchanged.
        """
        vocabulary = parse_vocabulary(vocabulary)
        self.model.set_vocabulary(vocabulary)
        self.vocabulary = vocabulary

    @torch.no_grad()
    def __call__(
        self,
        image: str | os.PathLike | np.ndarray,
        size: tuple[int, int] | None = None,
        vocabulary: VocabularySpec | None = None,
    ) -> Prediction:
        """Segment an image.

        Args:
            image: an image file, or an (H, W, 3) uint8 RGB array.
            size: (height, width) of the label map; default: the size of the image after its EXIF
                rotation.
            vocabulary: the vocabulary for this image, see `set_vocabulary`; default: the current
                one. The text features of recent vocabularies are cached.

        Raises:
            ImageReadError: if the file cannot be read.
            VocabularyError: if the vocabulary is invalid, or a name is too long for CLIP.
            ValueError: if the array is not an (H, W, 3) uint8 array, or is empty.
            NonFiniteError: if the model computes NaN or infinite logits.
        """
        # Keep a reference, because another thread may set another vocabulary during this call.
        vocabulary = self.vocabulary if vocabulary is None else parse_vocabulary(vocabulary)
        if isinstance(image, (str, os.PathLike)):
            image, file_size = read_image_and_size(image, self.max_input_pixels)
            size = size or file_size
        _check_image(image)
        start = time.perf_counter()
        size = size or image.shape[:2]
        inputs = {"image": self._resize(image), "height": size[0], "width": size[1]}
        output = self.model([{**inputs, "vocabulary": vocabulary}])[0]
        sem_seg, proposals = output["sem_seg"], output["proposals"]
        label_map = sem_seg.label_map()
        milliseconds = 1000 * (time.perf_counter() - start)
        scores = dict(zip(proposals["ids"].tolist(), proposals["scores"].tolist(), strict=True))
        ids = sem_seg.category_ids.tolist()
        return Prediction(
            label_map=label_map,
            vocabulary=vocabulary,
            category_ids=np.array(ids, np.int64),
            scores=np.array([scores[i] for i in ids], np.float32),
            found=_found(label_map, vocabulary, scores),
            milliseconds=milliseconds,
        )

    def _resize(self, image: np.ndarray) -> Tensor:
        """Resize an RGB image for the model and convert it to a (3, h, w) uint8 tensor."""
        if self.cfg.INPUT.FORMAT == "BGR":
            image = image[:, :, ::-1]
        image = np.ascontiguousarray(image)
        resized = self._resizing.get_transform(image).apply_image(image)
        return torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _load_model(cfg: CfgNode, allow_random_weights: bool) -> nn.Module:
    if not (allow_random_weights or has_weights(cfg)):
        raise ValueError(
            "The config sets no weights. Set MODEL.WEIGHTS to a trained model, or "
            "MODEL.CLIP.PRETRAINED to CLIP weights for the training-free mode."
        )
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        # "cuda" is Detectron2's default, so the user may not have chosen it.
        logger.warning("MODEL.DEVICE is 'cuda', but there is no CUDA device. The CPU is used.")
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
    raise ValueError(f"An image must be a path or an (H, W, 3) uint8 RGB array, got {got}.")


def _found(
    label_map: np.ndarray, vocabulary: Vocabulary, scores: dict[int, float]
) -> list[FoundCategory]:
    shares = category_shares(label_map, len(vocabulary))
    found = [
        FoundCategory(i, vocabulary.display_names[i], float(shares[i]), scores[i])
        for i in np.flatnonzero(shares).tolist()
    ]
    return sorted(found, key=lambda category: (-category.share, category.id))
