"""The meta-architecture of training-free publications: CLIP's similarity and thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.clip.build import build_clip
from dcp_clip.modeling.finite import check_logits
from dcp_clip.modeling.segmentor import OpenVocabularySegmentor
from dcp_clip.modeling.training_free.labels import Thresholds, label_pixels
from dcp_clip.modeling.training_free.pamr import pixel_adaptive_refinement
from dcp_clip.modeling.training_free.windows import PADDINGS, EncoderWindows
from dcp_clip.structures import Proposals, Refinement, SemSegLabels, TextFeatures, output_size
from dcp_clip.utils.upsampling import resized_bands
from dcp_clip.vocabulary import Vocabulary

__all__ = ["SimilaritySegmentor"]

_NODE = "MODEL.TRAINING_FREE"


@META_ARCH_REGISTRY.register()
class SimilaritySegmentor(OpenVocabularySegmentor):
    """Labels each pixel with the name that CLIP's dense features are most similar to.

    The steps are those of SCLIP (arXiv 2312.01597), NACLIP (arXiv 2404.08181) and ClearCLIP (arXiv
    2407.12442), in this order: similarities of windows, upsampled and averaged; upsampling to the
    size of the image; PAMR, if it has steps; softmax over all names; the best name of each
    category; thresholds of the background. The model needs memory for one map of the resized image
    for each name. It does not use the five stages of DCP-CLIP and has nothing to train.

    It gives labels and no logits, so larger images are resized as a whole.
    """

    gives_logits = False
    outputs = ("last", "fine")  # there are no coarse logits

    @configurable
    def __init__(
        self,
        *,
        scale: float,
        encoder_window: int,
        encoder_stride: int,
        padding: str,
        thresholds: Thresholds,
        pamr_steps: int,
        **common,
    ):
        """
        Args:
            scale: factor from similarities to logits.
            encoder_window: height and width of the windows in pixels; 0 for the whole image.
            encoder_stride: pixels from one window to the next.
            padding: a key of :data:`PADDINGS`.
            thresholds: thresholds of the background.
            pamr_steps: number of steps of PAMR; 0 for none.
            common: see :class:`OpenVocabularySegmentor`.

        Raises:
            ValueError: for an unknown padding, or a negative number of steps.
        """
        super().__init__(**common)
        if padding not in PADDINGS:
            raise ValueError(f"{_NODE}.PADDING is '{padding}'; known are {', '.join(PADDINGS)}.")
        if pamr_steps < 0:
            raise ValueError(f"{_NODE}.PAMR_STEPS is {pamr_steps}; it must be 0 or more.")
        patch = self.backbone.size_divisibility
        self.windows = EncoderWindows(patch, encoder_window, encoder_stride, padding)
        self.scale = scale
        self.thresholds, self.pamr_steps = thresholds, pamr_steps

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.TRAINING_FREE
        if cfg.MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE:
            raise ValueError(
                "MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE has no effect on SimilaritySegmentor; set it "
                "to 0, and use MODEL.CLIP.ENCODER_WINDOW."
            )
        return {
            "scale": cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
            "encoder_window": cfg.MODEL.CLIP.ENCODER_WINDOW,
            "encoder_stride": cfg.MODEL.CLIP.ENCODER_WINDOW_STRIDE,
            "padding": node.PADDING,
            "thresholds": Thresholds(node.PROBABILITY_THRESHOLD, node.AREA_THRESHOLD),
            "pamr_steps": node.PAMR_STEPS,
            **build_clip(cfg),
            **cls.common_config(cfg),
        }

    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, Refinement | None]:
        """See :meth:`OpenVocabularySegmentor.segment`. The logits "fine" are those of the best name
        of every category at the pixels of `images`, without PAMR and thresholds; `ids` and
        `features` have no effect."""
        text = self.text_encoder.encode_vocabulary(vocabulary)
        logits = images.new_zeros(len(images), len(vocabulary), *images.shape[-2:])
        for i, (height, width) in enumerate(image_sizes):
            maps = self._similarity(images[i, :, :height, :width], text)
            best = torch.stack([maps[rows].amax(0) for rows in text.category_rows])
            logits[i, :, :height, :width] = self.scale * best
        return {"fine": logits}, Proposals.all_categories(logits), None

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> list[dict[str, Tensor]]:
        """See :meth:`OpenVocabularySegmentor.encode_image`; "dense" for each chunk of windows."""
        return [{"dense": dense} for dense in self._encode(self._normalised(image))]

    def _normalised(self, image: Tensor) -> Tensor:
        return (image.to(self.device).float() - self.pixel_mean) / self.pixel_std

    def _encode(self, image: Tensor) -> Iterator[Tensor]:
        def encode(pixels: Tensor) -> Tensor:
            with self._autocast():
                return self.backbone(pixels)["dense"]

        return self.windows.encode(encode, image)

    def _similarity(
        self, image: Tensor, text: TextFeatures, features: Iterable[Tensor] | None = None
    ) -> Tensor:
        """(N, H, W) similarities of all names at the pixels of a normalised image (3, H, W)."""
        features = self._encode(image) if features is None else features
        # Similarities decide between categories, so never in half precision.
        with torch.autocast(self.device.type, enabled=False):
            return self.windows.similarity(features, text.embeddings.float(), image.shape[-2:])

    def _losses(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> dict[str, Tensor]:
        raise ValueError(
            "MODEL.META_ARCHITECTURE 'SimilaritySegmentor' has nothing to train: use --eval-only."
        )

    def _results(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> list[dict]:
        text = self.text_encoder.encode_vocabulary(vocabulary)
        return [self._result(x, text) for x in batched_inputs]

    def _result(self, inputs: dict, text: TextFeatures) -> dict:
        image, size = self._normalised(inputs["image"]), output_size(inputs)
        kept = inputs.get("features")
        maps = self._similarity(image, text, None if kept is None else (x["dense"] for x in kept))
        scores = torch.stack([maps[rows].amax() for rows in text.category_rows])
        check_logits(scores)
        if self.pamr_steps:
            maps, image = (F.interpolate(x[None], size, mode="bilinear")[0] for x in (maps, image))
            maps = pixel_adaptive_refinement(maps, image, self.pamr_steps)
        labels, confidence = label_pixels(
            lambda: resized_bands(maps, size),
            size,
            text.category_rows,
            self.scale,
            self.thresholds,
        )
        ids = torch.arange(len(scores), device=scores.device)
        return {
            "sem_seg": SemSegLabels(labels, ids, len(scores), confidence),
            "proposals": {"ids": ids, "scores": scores},
        }
