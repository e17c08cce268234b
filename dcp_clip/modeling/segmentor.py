"""From Detectron2's inputs to the stages, and from their maps to Detectron2's outputs."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections import defaultdict

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..structures import Proposals, SemSegProposals, output_size
from ..vocabulary import Vocabulary
from .class_refinement import Refinement
from .losses import SegmentationCriterion
from .sliding_window import SlidingWindow

__all__ = ["OUTPUTS", "OpenVocabularySegmentor"]

OUTPUTS = ("last", "fine", "coarse")
_VOID = -1


class OpenVocabularySegmentor(nn.Module):
    """What every open-vocabulary segmentor here shares: all but the segmentation itself.

    A subclass implements :meth:`segment`, on tensors.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        criterion: nn.Module,
        vocabulary: Vocabulary | None,
        output: str = "last",
        bf16: bool = False,
        window: SlidingWindow | None = None,
    ):
        """
        Args:
            backbone: a :class:`CLIPBackbone`.
            criterion: the losses.
            vocabulary: used for inputs that bring none of their own.
            output: the maps that are the answer: "last", or an earlier stage's, "fine" or "coarse".
            bf16: run forward under bfloat16 autocast.
            window: how images larger than a window are evaluated; None: whole.

        Raises:
            ValueError: for an unknown `output`.
        """
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(
                f"MODEL.DCP_CLIP.OUTPUT is '{output}'; known are {', '.join(OUTPUTS)}."
            )
        self.backbone = backbone
        self.criterion = criterion
        self.vocabulary = vocabulary
        self.output = output
        self.bf16 = bf16
        self.window = window
        for name, value in (("mean", backbone.pixel_mean), ("std", backbone.pixel_std)):
            self.register_buffer(f"pixel_{name}", torch.tensor(value).view(-1, 1, 1), False)

    @staticmethod
    def common_config(cfg: CfgNode) -> dict:
        """The arguments above that do not depend on the kind of segmentor."""
        train = cfg.DATASETS.TRAIN
        return {
            "criterion": SegmentationCriterion(cfg),
            "vocabulary": Vocabulary.from_dataset(train[0]) if train else None,
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
        labels: Tensor | None,
        ids: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Proposals, Refinement | None]:
        """Segment a batch.

        Args:
            images: (B, 3, H, W), normalised and padded.
            image_sizes: (height, width) of each image without padding.
            vocabulary: the C categories.
            labels: (B, H', W') category ids, -1 where void; in training, and in evaluation when the
                inputs bring them.
            ids: (B, K) categories to propose, instead of those that stage 1 would choose.

        Returns:
            logits by stage ("coarse", "fine", "final", in this order, some may be missing), each
            (B, K, h, w); the proposals; stage 5's output if there is one.
        """

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Segment into these categories from now on, unless an input brings its own."""
        self.vocabulary = vocabulary

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: a list, batched outputs of Detectron2's ``DatasetMapper``. Each dict has

                * "image": (3, H, W) tensor, RGB, 0 to 255;
                * "sem_seg": (H, W) category ids, in training (and for the oracle proposal); void
                  pixels hold any other number;
                * "vocabulary": :class:`Vocabulary`, optional; else the model's own. One for all
                  images of a batch;
                * "height", "width": output size in pixels, optional; else the image's.

        Returns:
            in training a dict of named losses; in evaluation one dict an image:

            * "sem_seg": :class:`SemSegProposals` of (height, width) pixels; of an image that was
              segmented in windows :class:`SemSegLabels`, which answers ``argmax(dim=0)`` likewise;
            * "proposals": dict of "ids" (K,) and "scores" (K,).

        Raises:
            ValueError: without a vocabulary, with two different ones in a batch, or, in training,
                without labels.
        """
        vocabulary = self._vocabulary_of(batched_inputs)
        with self._autocast():
            if self.training:
                return self._losses(batched_inputs, vocabulary)
            return self._inference(batched_inputs, vocabulary)

    def _autocast(self):
        if self.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _vocabulary_of(self, batched_inputs: list[dict]) -> Vocabulary:
        if not batched_inputs:
            raise ValueError("the batch is empty: give the model one input or more.")
        vocabularies = {x.get("vocabulary") or self.vocabulary for x in batched_inputs}
        if len(vocabularies) != 1:
            raise ValueError("the images of one batch must share a vocabulary; split the batch.")
        vocabulary = vocabularies.pop()
        if vocabulary is None:
            raise ValueError(
                "no vocabulary: call model.set_vocabulary(...), give each input a 'vocabulary', or "
                "set DATASETS.TRAIN to a registered data set."
            )
        return vocabulary

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device).float() - self.pixel_mean) / self.pixel_std

    def labels_of(self, inputs: dict, vocabulary: Vocabulary) -> Tensor:
        """(H, W) category ids of an input, -1 where void."""
        # Whatever is no category is void: data sets ignore 255 or, with more categories, 65535.
        labels = inputs["sem_seg"].to(self.device).long()
        return labels.masked_fill((labels < 0) | (labels >= len(vocabulary)), _VOID)

    def _losses(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> dict[str, Tensor]:
        if any("sem_seg" not in x for x in batched_inputs):
            raise ValueError("training needs 'sem_seg' labels in every input; this batch has none.")
        divisor = self.backbone.size_divisibility
        images = [self._normalise(x["image"]) for x in batched_inputs]
        images = ImageList.from_tensors(images, divisor)
        labels = [self.labels_of(x, vocabulary) for x in batched_inputs]
        labels = ImageList.from_tensors(labels, divisor, pad_value=_VOID).tensor
        maps, proposals, refinement = self.segment(
            images.tensor, images.image_sizes, vocabulary, labels
        )
        # In float32: sums over all positions overflow float16.
        with torch.autocast(self.device.type, enabled=False):
            return self.criterion(maps, refinement, proposals, labels, len(vocabulary))

    def _inference(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> list[dict]:
        results: list[dict] = [{} for _ in batched_inputs]
        groups = defaultdict(list)
        for i, x in enumerate(batched_inputs):
            if self.window is not None and self.window.is_needed(x["image"]):
                results[i] = self.window.segment(self, x, vocabulary)
            else:
                groups[tuple(x["image"].shape[-2:])].append(i)
        # Images of one size share a forward pass, others get their own: padding an image to its
        # neighbours' size would change its answer.
        for members in groups.values():
            inputs = [batched_inputs[i] for i in members]
            labels = None
            if all("sem_seg" in x for x in inputs):
                labels = torch.stack([self.labels_of(x, vocabulary) for x in inputs])
            maps, extent, proposals = self.segment_images(
                [x["image"] for x in inputs], vocabulary, labels
            )
            for j, i in enumerate(members):
                size = output_size(inputs[j])
                results[i] = self._result(maps[j], extent, proposals, j, size, len(vocabulary))
        return results

    def segment_images(
        self,
        images: list[Tensor],
        vocabulary: Vocabulary,
        labels: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> tuple[Tensor, tuple[float, float], Proposals]:
        """Segment images of one size.

        Args:
            images: B tensors (3, H, W), 0 to 255.
            vocabulary: the C categories.
            labels: (B, H, W), for the oracle.
            ids: (B, K) categories to propose, instead of those that stage 1 would choose.

        Returns:
            the maps (B, K, h, w) that MODEL.DCP_CLIP.OUTPUT asks for; the (rows, columns) of their
            grid that the images cover, the rest being padding; the proposals.
        """
        batch = ImageList.from_tensors(
            [self._normalise(image) for image in images], self.backbone.size_divisibility
        )
        maps, proposals, _ = self.segment(batch.tensor, batch.image_sizes, vocabulary, labels, ids)
        output = list(maps)[-1] if self.output == "last" else self.output
        if output not in maps:
            raise ValueError(
                f"MODEL.DCP_CLIP.OUTPUT is '{output}', but this model's maps are "
                f"{', '.join(maps)}; set it to 'last' or one of these."
            )
        logits = maps[output]
        covered = zip(images[0].shape[-2:], logits.shape[-2:], batch.tensor.shape[-2:])
        rows, columns = (side * cells / padded for side, cells, padded in covered)
        return logits, (rows, columns), proposals

    @staticmethod
    def _result(
        maps: Tensor,
        extent: tuple[float, float],
        proposals: Proposals,
        index: int,
        size: tuple[int, int],
        num_categories: int,
    ) -> dict:
        """The output of one image from its maps (K, h, w)."""
        keep = proposals.valid[index]
        ids, scores = proposals.ids[index][keep], proposals.scores[index][keep]
        return {
            "sem_seg": SemSegProposals(maps[keep].float(), ids, num_categories, size, extent),
            "proposals": {"ids": ids, "scores": scores},
        }
