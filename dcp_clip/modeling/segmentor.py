"""The base class of all segmentors, which maps Detectron2's inputs to losses or results."""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections import defaultdict

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn

from dcp_clip.modeling.clip.text_encoder import TextEncoder
from dcp_clip.modeling.finite import check_logits
from dcp_clip.modeling.inputs import input_labels, shared_vocabulary, train_vocabularies
from dcp_clip.modeling.losses import IGNORE_INDEX, SegmentationCriterion
from dcp_clip.modeling.sliding_window import SlidingWindow
from dcp_clip.structures import Proposals, Refinement, SemSegProposals, output_size
from dcp_clip.vocabulary import Vocabulary

__all__ = ["OpenVocabularySegmentor"]


class OpenVocabularySegmentor(nn.Module, ABC):
    """The common part of all open-vocabulary segmentors.

    The forward pass prepares the inputs, calls :meth:`segment`, and computes losses or results. A
    subclass implements only :meth:`segment`.
    """

    needs_train_names = False  # whether building the model reads the categories of DATASETS.TRAIN
    outputs: tuple[str, ...] = ("last", "fine", "coarse")  # values of MODEL.DCP_CLIP.OUTPUT

    def __init__(
        self,
        *,
        backbone: nn.Module,
        criterion: nn.Module,
        vocabulary: Vocabulary | None,
        text_encoder: TextEncoder | None = None,
        output: str = "last",
        bf16: bool = False,
        window: SlidingWindow | None = None,
    ):
        """
        Args:
            backbone: a :class:`CLIPBackbone`, or a network on top of one.
            criterion: computes the losses; its interface is :meth:`SegmentationCriterion.forward`.
            vocabulary: used for inputs that have no vocabulary of their own.
            text_encoder: text tower of the same CLIP; None for a closed vocabulary.
            output: which logits to return: "last", or those of an earlier stage, "fine" or
                "coarse".
            bf16: run the forward pass under bfloat16 autocast.
            window: sliding windows for images larger than a window; None for whole images.

        Raises:
            ValueError: for an unknown `output`.
        """
        super().__init__()
        if output not in self.outputs:
            raise ValueError(
                f"MODEL.DCP_CLIP.OUTPUT is '{output}'; known are {', '.join(self.outputs)} for "
                f"{type(self).__name__}."
            )
        self.backbone = backbone
        self.criterion = criterion
        self.text_encoder = text_encoder
        self.vocabulary = vocabulary
        self.output = output
        self.bf16 = bf16
        self.window = window
        self.temperature = 1.0  # of the confidence; `load_weights` sets that of its file
        for name, value in (("mean", backbone.pixel_mean), ("std", backbone.pixel_std)):
            self.register_buffer(f"pixel_{name}", torch.tensor(value).view(-1, 1, 1), False)

    @staticmethod
    def common_config(cfg: CfgNode) -> dict:
        """Return the constructor arguments that do not depend on the kind of segmentor."""
        return {
            "criterion": SegmentationCriterion(cfg),
            "vocabulary": next(train_vocabularies(cfg), None),
            "output": cfg.MODEL.DCP_CLIP.OUTPUT,
            "bf16": cfg.MODEL.DCP_CLIP.BF16,
            "window": SlidingWindow.from_config(cfg),
        }

    @abstractmethod
    def segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, Refinement | dict[str, Tensor] | None]:
        """Segment a batch.

        Args:
            images: (B, 3, H, W), normalised and padded.
            image_sizes: (height, width) of each image without padding.
            vocabulary: the C categories.
            labels: (B, H', W') category ids, -1 where ignored. They are given in training, and in
                evaluation if the inputs have labels.
            ids: (B, K) categories to propose instead of those that stage 1 would choose.
            features: the output of the backbone for `images`; default: computed here.

        Returns:
            The logits by stage, each (B, K, h, w): "coarse", "fine" and "final", in this order;
            some may be missing. The proposals. What the criterion gets as its second argument: the
            output of stage 5, a head's own losses by name, or None.
        """

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def set_vocabulary(self, vocabulary: Vocabulary | None) -> None:
        """Set the default vocabulary, which is used for inputs without their own vocabulary.

        The names are encoded once, in this call. With None, every input needs a vocabulary.

        Raises:
            ValueError: if a name is too long for CLIP; the message quotes it.
        """
        if self.text_encoder is not None and vocabulary is not None:
            self.text_encoder.encode_vocabulary(vocabulary)
        self.vocabulary = vocabulary

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> list[dict[str, Tensor]]:
        """Encode an image (3, H, W), RGB, 0 to 255, to segment it with several vocabularies.

        Returns:
            the value "features" of an input of :meth:`forward`: the output of the backbone for the
            image, or for the reduced image and each window if it is segmented in windows.
        """
        in_windows = self.window is not None and self.window.is_needed(image)
        views = self.window.views(image) if in_windows else [image]
        with self._autocast():
            return [self.backbone(self._preprocess([view]).tensor) for view in views]

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a list, batched outputs of Detectron2's ``DatasetMapper``. Each dict has

                * "image": (3, H, W) tensor, RGB, 0 to 255;
                * "sem_seg": (H, W) category ids, in training (and for the oracle proposal);
                  ignored pixels have any other number;
                * "vocabulary": :class:`Vocabulary`, optional; default: that of the model. All
                  images of a batch share one;
                * "height", "width": output size in pixels, optional; default: that of the image;
                * "features": optional, the result of :meth:`encode_image` for this image;
                * "category_ids": optional, (K,) categories to propose instead of those that stage 1
                  would choose, in evaluation, for images that are not segmented in windows;
                * "confidence": optional, False if the confidence of an image that is segmented in
                  windows is not needed, which saves time.

        Returns:
            In training a dict of losses by name; in evaluation one dict for each image:

            * "sem_seg": :class:`SemSegProposals` of (height, width) pixels. If the image was
              segmented in sliding windows, it is :class:`SemSegLabels`, which also has
              ``argmax(dim=0)``;
            * "proposals": dict of "ids" (K,) and "scores" (K,), and with stage 5 "presence" (K,),
              the probability that the category is in the image.

        Raises:
            ValueError: without a vocabulary, with two different ones in a batch, or, in training,
                without labels.
            NonFiniteError: in evaluation, if logits are NaN or infinite.
        """
        vocabulary = shared_vocabulary(batched_inputs, self.vocabulary)
        with self._autocast():
            if self.training:
                return self._losses(batched_inputs, vocabulary)
            return self._results(batched_inputs, vocabulary)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _preprocess(self, images: list[Tensor]) -> ImageList:
        """Normalise, and pad to one size that the backbone accepts."""
        images = [(x.to(self.device).float() - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _losses(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> dict[str, Tensor]:
        if any("sem_seg" not in x for x in batched_inputs):
            raise ValueError("training needs 'sem_seg' labels in every input; this batch has none.")
        batch = self._preprocess([x["image"] for x in batched_inputs])
        labels = [input_labels(x, len(vocabulary), self.device) for x in batched_inputs]
        labels = ImageList.from_tensors(
            labels, self.backbone.size_divisibility, pad_value=IGNORE_INDEX
        )
        logits, proposals, refinement = self.segment(
            batch.tensor, batch.image_sizes, vocabulary, labels.tensor
        )
        # In float32: sums over all positions overflow float16.
        with torch.autocast(self.device.type, enabled=False):
            return self.criterion(logits, refinement, proposals, labels.tensor, len(vocabulary))

    def _results(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> list[dict]:
        results: list[dict] = [{} for _ in batched_inputs]
        groups = defaultdict(list)
        for i, x in enumerate(batched_inputs):
            if self.window is not None and self.window.is_needed(x["image"]):
                results[i] = self._result_in_windows(x, vocabulary)
            else:
                own = "features" in x or "category_ids" in x
                groups[x["image"].shape[-2:], i if own else None].append(i)
        # Images of the same size share a forward pass, unless their features or categories are
        # given. Images of other sizes have their own: padding an image would change its answer.
        for members in groups.values():
            inputs = [batched_inputs[i] for i in members]
            for i, result in zip(members, self._results_of_one_size(inputs, vocabulary)):
                results[i] = result
        return results

    def _results_of_one_size(self, inputs: list[dict], vocabulary: Vocabulary) -> list[dict]:
        labels = None
        if all("sem_seg" in x for x in inputs):
            labels = [input_labels(x, len(vocabulary), self.device) for x in inputs]
            labels = ImageList.from_tensors(labels, pad_value=IGNORE_INDEX).tensor
        ids = (
            inputs[0]["category_ids"].to(self.device)[None] if "category_ids" in inputs[0] else None
        )
        images = [x["image"] for x in inputs]
        (features,) = inputs[0].get("features", [None])
        logits, extent, proposals = self._segment_images(images, vocabulary, labels, ids, features)
        results = []
        for i, x in enumerate(inputs):
            keep = proposals.valid[i]
            chosen = proposals.ids[i][keep]
            maps, sizes = logits[i][keep].float(), (output_size(x), extent)
            sem_seg = SemSegProposals(maps, chosen, len(vocabulary), *sizes, self.temperature)
            results.append({"sem_seg": sem_seg, "proposals": proposals.of_image(i)})
        return results

    def _result_in_windows(self, inputs: dict, vocabulary: Vocabulary) -> dict:
        # In the order of `SlidingWindow.views`.
        features = iter(inputs.get("features") or itertools.repeat(None))
        chosen: dict[str, Tensor] = {}

        def propose(image: Tensor) -> tuple[Tensor, Tensor]:
            labels = None
            if "sem_seg" in inputs:
                labels = input_labels(inputs, len(vocabulary), self.device)[None]
            _, _, proposals = self._segment_images(
                [image], vocabulary, labels, features=next(features)
            )
            chosen.update(proposals.of_image(0))
            return chosen["ids"], chosen["scores"]

        def segment(image: Tensor, ids: Tensor) -> tuple[Tensor, tuple[float, float]]:
            logits, extent, _ = self._segment_images(
                [image], vocabulary, ids=ids[None], features=next(features)
            )
            return logits[0], extent

        sizes = output_size(inputs), len(vocabulary)
        temperature = self.temperature if inputs.get("confidence", True) else None
        labels, _, _ = self.window.segment(inputs["image"], *sizes, propose, segment, temperature)
        return {"sem_seg": labels, "proposals": chosen}

    def _segment_images(
        self,
        images: list[Tensor],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[float, float], Proposals]:
        """Segment B images (3, H, W) of the same size, 0 to 255.

        Returns:
            The logits (B, K, h, w) that MODEL.DCP_CLIP.OUTPUT selects. The (rows, columns) of their
            grid that the images cover; the rest is padding. The proposals.
        """
        batch = self._preprocess(images)
        args = batch.tensor, batch.image_sizes, vocabulary, labels, ids
        kept = {} if features is None else {"features": features}
        stages, proposals, refinement = self.segment(*args, **kept)
        output = list(stages)[-1] if self.output == "last" else self.output
        if output not in stages:
            raise ValueError(
                f"MODEL.DCP_CLIP.OUTPUT is '{output}', but this model has the logits "
                f"{', '.join(stages)}; set it to 'last' or one of these."
            )
        logits = stages[output]
        if isinstance(refinement, Refinement):
            proposals.presence = refinement.class_logits.float().sigmoid()
        check_logits(logits[proposals.valid], proposals.scores[proposals.valid])
        covered = zip(images[0].shape[-2:], logits.shape[-2:], batch.tensor.shape[-2:])
        rows, columns = (side * cells / padded for side, cells, padded in covered)
        return logits, (rows, columns), proposals
