"""`Predictor` segments single images with any vocabulary, in bounded memory."""

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from dcp_clip.config import setup_cfg
from dcp_clip.config.merge import option_list
from dcp_clip.data.augmentation import ResizeForTest
from dcp_clip.data.vocabularies import dataset_vocabulary, parse_vocabulary
from dcp_clip.engine.checkpoints.loading import load_model, shipped_weights
from dcp_clip.evaluation.environment import weights_fingerprint
from dcp_clip.found_categories import FoundCategory, checked_threshold
from dcp_clip.hub.mixin import HubMixin
from dcp_clip.modeling.finite import check_weights
from dcp_clip.modeling.large_image import LARGE_IMAGE_PIXELS, gives_logits, segment_large_image
from dcp_clip.prediction import EncodedImage, Prediction, encoder_token, make_prediction
from dcp_clip.structures import label_regions
from dcp_clip.utils.images.arrays import check_max_pixels, check_rgb, check_size
from dcp_clip.utils.images.reading import read_image_and_size
from dcp_clip.vocabulary import Vocabulary

__all__ = ["EncodedImage", "FoundCategory", "Prediction", "Predictor", "VocabularySpec"]

# Accepted by `dcp_clip.data.parse_vocabulary`.
VocabularySpec = Vocabulary | str | os.PathLike | Sequence


class Predictor(HubMixin):
    """Segment single images with a trained or training-free model and any vocabulary.

    Images are resized by `INPUT.MIN_SIZE_TEST` and `INPUT.MAX_SIZE_TEST`, as in the evaluation and
    in Detectron2's `DefaultPredictor`. The logits are upsampled to the image's size in bands of
    rows, so memory is bounded for images of any size. An image of more than 16 million pixels is
    not resized but segmented in windows (docs/rasters.md), unless `max_input_pixels` is given.

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

        predictor.set_image("cat.jpg")  # encoded once
        for names in ("cat; sofa", "cat; cushion; wall"):
            print(predictor.predict(names).shares)
    """

    def __init__(
        self,
        cfg: CfgNode,
        vocabulary: VocabularySpec | None = None,
        *,
        model: nn.Module | None = None,
        allow_random_weights: bool = False,
        max_input_pixels: int | None = None,
        unknown_below: float | None = None,
    ) -> None:
        """
        Args:
            cfg: config of the model.
            vocabulary: see `set_vocabulary`; default: the categories of `DATASETS.TRAIN[0]`.
            model: a built model; default: build the model of the config and load `MODEL.WEIGHTS`.
            allow_random_weights: accept a config without `MODEL.WEIGHTS` and without
                `MODEL.CLIP.PRETRAINED`.
            max_input_pixels: image files with more pixels are downscaled while they are read, and
                all images are resized as a whole; None: images above 16 million pixels are
                segmented in windows at their full resolution, if the model gives logits.
            unknown_below: pixels with a smaller confidence become unknown (0 to 1; 0 for none);
                default: `TEST.UNKNOWN_BELOW`.

        Raises:
            ValueError: if the config sets neither `MODEL.WEIGHTS` nor `MODEL.CLIP.PRETRAINED`, or
                there is neither a vocabulary nor a training set, or `unknown_below` or
                `max_input_pixels` is invalid.
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
                    "vocabulary (--vocabulary in the demo), such as the names.json of a model "
                    "folder."
                )
            vocabulary = dataset_vocabulary(cfg.DATASETS.TRAIN[0])
        vocabulary = parse_vocabulary(vocabulary)
        if model is None:
            model = load_model(self.cfg, allow_random_weights)
        check_weights(model.state_dict(), self.cfg.MODEL.WEIGHTS)
        self.model = model.eval()
        encoder_token(model)  # before several threads need it
        self.max_input_pixels = check_max_pixels(max_input_pixels)
        self.unknown_below = checked_threshold(
            cfg.TEST.UNKNOWN_BELOW if unknown_below is None else unknown_below
        )
        self.image: EncodedImage | None = None
        self._resizing = ResizeForTest(self.cfg)
        self.set_vocabulary(vocabulary)

    @classmethod
    def from_config_file(
        cls,
        config_file: str | os.PathLike,
        weights: str | os.PathLike | None = None,
        opts: Sequence[str] = (),
        vocabulary: VocabularySpec | None = None,
        *,
        imports: Sequence[str] = (),
        **options: Any,
    ) -> "Predictor":
        """Create a predictor from a config file.

        Args:
            config_file: a YAML file, or the name of a shipped config, such as
                "camvid/dcp_clip_tiny.yaml".
            weights: a checkpoint; default: `MODEL.WEIGHTS` of the config, or the trained weights
                that ship for it. With `allow_random_weights`, the latter are not used.
            opts: alternating config keys and values that override the file.
            vocabulary: see `set_vocabulary`.
            imports: modules of your own to import first, see `dcp_clip.setup_cfg`.
            **options: other arguments of the constructor.

        Raises:
            FileNotFoundError: if the config file does not exist.
            KeyError: if the file or `opts` contains an unknown config key.
            ValueError, WeightsError, VocabularyError: see the constructor.
        """
        opts = option_list(opts)
        if weights is None and not options.get("allow_random_weights"):
            weights = shipped_weights(os.fspath(config_file), opts)
        opts = (["MODEL.WEIGHTS", os.fspath(weights)] if weights is not None else []) + opts
        cfg = setup_cfg(os.fspath(config_file), opts, imports=imports)
        return cls(cfg, vocabulary, **options)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the weights, see `dcp_clip.evaluation.environment`."""
        return weights_fingerprint(self.model)

    @property
    def temperature(self) -> float:
        """Return the temperature of the confidence."""
        return getattr(self.model, "temperature", 1.0)

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

    def set_image(
        self, image: str | os.PathLike | np.ndarray, size: tuple[int, int] | None = None
    ) -> EncodedImage:
        """Encode an image once, to segment it with several vocabularies.

        `predict` then segments this image without running the encoder. The predictor keeps the last
        image only. If several threads set images, each of them passes the result of its own call:
        `predictor(encoded, vocabulary=...)`.

        The features are kept on the device of the model. For an image of 640 x 640 pixels and
        ConvNeXt-B they take 30 MB, see `EncodedImage.nbytes`. In sliding windows they grow with the
        number of windows. The features are valid only for the current weights of the model. Files
        above 16 million pixels are reduced to this number, or to `max_input_pixels`. Unlike in
        `__call__`, an image of this size is resized as a whole, so its labels differ.

        Args:
            image, size: see `__call__`.

        Raises:
            ImageReadError, ValueError: see `__call__`.
        """
        if isinstance(image, np.ndarray):
            image = image.copy()  # the program may use its array again
        image, size = self._read(image, size, self.max_input_pixels or LARGE_IMAGE_PIXELS)
        resized = self._resizing.model_input(image)
        features = self.model.encode_image(resized)
        encoded = EncodedImage(image, size, resized, features, encoder_token(self.model))
        self.image = encoded  # returned from the variable: another thread may set another image
        return encoded

    @torch.no_grad()
    def __call__(
        self,
        image: str | os.PathLike | np.ndarray | EncodedImage,
        size: tuple[int, int] | None = None,
        vocabulary: VocabularySpec | None = None,
        unknown_below: float | None = None,
        regions: Iterable | None = None,
        confidence: bool = True,
    ) -> Prediction:
        """Segment an image.

        Args:
            image: an image file, an (H, W, 3) uint8 RGB array, or an image from `set_image`.
            size: (height, width) of the label map; default: the size of the image after its EXIF
                rotation, or that given to `set_image`.
            vocabulary: the vocabulary for this image, see `set_vocabulary`; default: the current
                one. The text features of recent vocabularies are cached.
            unknown_below: pixels with a smaller confidence become unknown; default: that of the
                predictor.
            regions: masks, for example SAM's, whose pixels get one label; see `label_regions`.
            confidence: False saves time for an image that is segmented in windows, if the
                confidence of the result is not used; reading it is then an error.

        Raises:
            ImageReadError: if the file cannot be read.
            VocabularyError: if the vocabulary is invalid, or a name is too long for CLIP.
            ValueError: if another model encoded the image; if the array is not an (H, W, 3) uint8
                array, or is empty; if `size` is not two whole numbers from 1 on; if `unknown_below`
                is not from 0 to 1; if there can be unknown pixels and the vocabulary has more than
                65,535 names.
            NonFiniteError: if the model computes NaN or infinite logits.
        """
        # Keep a reference, because another thread may set another vocabulary during this call.
        vocabulary = self.vocabulary if vocabulary is None else parse_vocabulary(vocabulary)
        below = self.unknown_below if unknown_below is None else checked_threshold(unknown_below)
        if isinstance(image, EncodedImage):
            if image.encoder != encoder_token(self.model):
                raise ValueError("Another model encoded this image: call set_image first.")
            start = time.perf_counter()
            inputs = {"image": image.resized, "features": image.features}
            size = image.size if size is None else check_size(size)
        else:
            image, size = self._read(image, size, self.max_input_pixels)
            start = time.perf_counter()
            large = self.max_input_pixels is None and size[0] * size[1] > LARGE_IMAGE_PIXELS
            large = large and tuple(size) == image.shape[:2] and gives_logits(self.model)
            inputs = {} if large else {"image": self._resizing.model_input(image)}
        confidence = confidence or bool(below)
        if inputs:
            inputs |= {"height": size[0], "width": size[1], "vocabulary": vocabulary}
            inputs["confidence"] = confidence
            output = self.model([inputs])[0]
        else:
            pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
            output = segment_large_image(self.model, vocabulary, pixels, confidence)
        scores = dict(zip(*(output["proposals"][key].tolist() for key in ("ids", "scores"))))
        sem_seg = (
            output["sem_seg"] if regions is None else label_regions(output["sem_seg"], regions)
        )
        prediction = make_prediction(sem_seg, scores, vocabulary, below)
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

    def _read(
        self,
        image: str | os.PathLike | np.ndarray,
        size: tuple[int, int] | None,
        max_pixels: int | None,
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the (H, W, 3) uint8 RGB image, and the (height, width) of its label map."""
        if isinstance(image, (str, os.PathLike)):
            image, file_size = read_image_and_size(image, max_pixels)
            size = file_size if size is None else size
        check_rgb(image)
        return image, image.shape[:2] if size is None else check_size(size)
