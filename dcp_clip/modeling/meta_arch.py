"""The meta-architecture: CLIP's encoders and the five stages, in their one direction of flow."""

from __future__ import annotations

import contextlib
from collections import defaultdict

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from ..structures import Proposals, SemSegProposals
from ..vocabulary import Vocabulary
from .build import (
    CATEGORY_PROPOSAL_REGISTRY,
    CLASS_REFINEMENT_REGISTRY,
    COARSE_DECODER_REGISTRY,
    FINE_DECODER_REGISTRY,
    TEXT_GUIDANCE_REGISTRY,
    build_stage,
)
from .class_refinement import Refinement
from .clip_loading import share_clip
from .layers import resize_to
from .losses import SegmentationCriterion, present_categories
from .text_encoder import TextEncoder
from .trainable import apply_freeze_policy

__all__ = ["DCPCLIP"]

_VOID = -1


@META_ARCH_REGISTRY.register()
class DCPCLIP(nn.Module):
    """Open-vocabulary semantic segmentation, coarse to fine, with dual interaction.

    An independent implementation of the method that the abstract of arXiv 2603.13951 describes. The
    docstrings of the stages say what is theirs and what is ours.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        text_encoder: TextEncoder,
        proposal: nn.Module,
        guidance: nn.Module,
        coarse_decoder: nn.Module,
        fine_decoder: nn.Module,
        refinement: nn.Module,
        criterion: nn.Module,
        vocabulary: Vocabulary | None,
        ignore_value: int,
        bf16: bool = False,
        channels_last: bool = False,
    ):
        """
        Args:
            backbone: a :class:`CLIPBackbone`.
            text_encoder: the text tower of the same CLIP.
            proposal, guidance, coarse_decoder, fine_decoder, refinement: stages 1 to 5.
            criterion: the losses.
            vocabulary: used for inputs that bring none of their own.
            ignore_value: label value of void pixels in the data set's files.
            bf16: run forward under bfloat16 autocast.
            channels_last: keep convolutions in channels-last memory format.
        """
        super().__init__()
        self.backbone = backbone
        self.text_encoder = text_encoder
        self.proposal = proposal
        self.guidance = guidance
        self.coarse_decoder = coarse_decoder
        self.fine_decoder = fine_decoder
        self.refinement = refinement
        self.criterion = criterion
        self.vocabulary = vocabulary
        self.ignore_value = ignore_value
        self.bf16 = bf16
        if channels_last:
            self.to(memory_format=torch.channels_last)
        for name, value in (("mean", backbone.pixel_mean), ("std", backbone.pixel_std)):
            self.register_buffer(f"pixel_{name}", torch.tensor(value).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        with share_clip():
            backbone = build_backbone(cfg)
            text_encoder = TextEncoder(cfg)
        shape = backbone.output_shape()
        guidance = build_stage(TEXT_GUIDANCE_REGISTRY, "TEXT_GUIDANCE", cfg, shape)
        coarse = build_stage(
            COARSE_DECODER_REGISTRY, "COARSE_DECODER", cfg, shape, guidance.out_channels
        )
        widths = (coarse.visual_channels, coarse.text_channels)
        apply_freeze_policy(cfg, backbone, text_encoder)
        return {
            "backbone": backbone,
            "text_encoder": text_encoder,
            "proposal": build_stage(CATEGORY_PROPOSAL_REGISTRY, "PROPOSAL", cfg),
            "guidance": guidance,
            "coarse_decoder": coarse,
            "fine_decoder": build_stage(FINE_DECODER_REGISTRY, "FINE_DECODER", cfg, shape, *widths),
            "refinement": build_stage(CLASS_REFINEMENT_REGISTRY, "CLASS_REFINEMENT", cfg, shape),
            "criterion": SegmentationCriterion(cfg),
            "vocabulary": Vocabulary.from_dataset(cfg.DATASETS.TRAIN[0])
            if cfg.DATASETS.TRAIN
            else None,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "bf16": cfg.MODEL.DCP_CLIP.BF16,
            "channels_last": cfg.MODEL.DCP_CLIP.CHANNELS_LAST,
        }

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
                * "sem_seg": (H, W) category ids, in training (and for the oracle proposal);
                * "vocabulary": :class:`Vocabulary`, optional; else the model's own. One for all
                  images of a batch;
                * "height", "width": output size in pixels, optional; else the image's.

        Returns:
            in training a dict of named losses; in evaluation one dict an image:

            * "sem_seg": :class:`SemSegProposals` with logits (K, height, width);
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

    def _labels(self, inputs: dict) -> Tensor:
        labels = inputs["sem_seg"].to(self.device).long()
        return labels.masked_fill(labels == self.ignore_value, _VOID)

    def _losses(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> dict[str, Tensor]:
        if any("sem_seg" not in x for x in batched_inputs):
            raise ValueError("training needs 'sem_seg' labels in every input; this batch has none.")
        divisor = self.backbone.size_divisibility
        images = [self._normalise(x["image"]) for x in batched_inputs]
        images = ImageList.from_tensors(images, divisor)
        labels = [self._labels(x) for x in batched_inputs]
        labels = ImageList.from_tensors(labels, divisor, pad_value=_VOID).tensor
        maps, proposals, refinement = self._segment(
            images.tensor, images.image_sizes, vocabulary, labels
        )
        return self.criterion(maps, refinement, proposals, labels, len(vocabulary))

    def _inference(self, batched_inputs: list[dict], vocabulary: Vocabulary) -> list[dict]:
        # Images of one size share a forward pass, others get their own: padding an image to its
        # neighbours' size would change its answer.
        groups = defaultdict(list)
        for i, x in enumerate(batched_inputs):
            groups[tuple(x["image"].shape[-2:])].append(i)
        results: list[dict] = [{} for _ in batched_inputs]
        for size, members in groups.items():
            inputs = [batched_inputs[i] for i in members]
            images = [self._normalise(x["image"]) for x in inputs]
            images = ImageList.from_tensors(images, self.backbone.size_divisibility)
            labels = None
            if all("sem_seg" in x for x in inputs):
                labels = torch.stack([self._labels(x) for x in inputs])
            maps, proposals, _ = self._segment(
                images.tensor, images.image_sizes, vocabulary, labels
            )
            logits = maps["final"] if "final" in maps else maps["fine"]
            for j, i in enumerate(members):
                output_size = (inputs[j].get("height", size[0]), inputs[j].get("width", size[1]))
                results[i] = self._result(
                    logits[j], proposals, j, size, images.tensor.shape[-2:], output_size, vocabulary
                )
        return results

    def _segment(
        self,
        images: Tensor,
        image_sizes: list[tuple[int, int]],
        vocabulary: Vocabulary,
        labels: Tensor | None,
    ) -> tuple[dict[str, Tensor], Proposals, Refinement | None]:
        """The five stages. images (B, 3, H, W) normalised, padded; labels (B, H', W')."""
        features = self.backbone(images)
        dense, pooled = features["dense"], features["pooled"]
        valid = _valid_positions(image_sizes, images.shape[-2:], dense.shape[-2:], images.device)
        text = self.text_encoder.encode_vocabulary(vocabulary)
        present = None
        if labels is not None and (self.training or getattr(self.proposal, "needs_labels", False)):
            present = present_categories(labels, len(vocabulary))

        proposals = self.proposal(dense, pooled, text.embeddings, text.rows, valid, present)
        similarity = torch.einsum(
            "bkd,bdhw->bkhw", proposals.text, F.normalize(dense.float(), dim=1)
        )
        guidance = self.guidance(proposals.text, dense, similarity, valid)
        coarse, visual, words = self.coarse_decoder(
            dense, guidance, similarity, valid, proposals.valid
        )
        fine = self.fine_decoder(coarse, visual, words, features, proposals.valid)
        refinement = self.refinement(
            fine, dense, proposals.text, proposals.scores, valid, proposals.valid
        )
        maps = {"coarse": coarse, "fine": fine}
        if refinement is not None:
            presence = F.logsigmoid(refinement.class_logits)
            maps["final"] = fine + presence[..., None, None]
        return maps, proposals, refinement

    @staticmethod
    def _result(
        logits: Tensor,
        proposals: Proposals,
        index: int,
        image_size: tuple[int, int],
        padded_size: tuple[int, int],
        output_size: tuple[int, int],
        vocabulary: Vocabulary,
    ) -> dict:
        """Logits (K, H/4, W/4) of one image to its own extent at the output size."""
        keep = proposals.valid[index]
        ids, scores = proposals.ids[index][keep], proposals.scores[index][keep]
        logits = resize_to(logits[keep][None].float(), padded_size)[0]
        logits = sem_seg_postprocess(logits, image_size, *output_size)
        return {
            "sem_seg": SemSegProposals(logits, ids, len(vocabulary)),
            "proposals": {"ids": ids, "scores": scores},
        }


def _valid_positions(
    image_sizes: list[tuple[int, int]],
    padded_size: tuple[int, int],
    grid: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """(B, h, w) bool: grid positions that see at least one pixel of the image itself."""
    heights, widths = torch.tensor(image_sizes, device=device).T
    rows = torch.arange(grid[0], device=device) * (padded_size[0] / grid[0])
    columns = torch.arange(grid[1], device=device) * (padded_size[1] / grid[1])
    return (rows < heights[:, None])[:, :, None] & (columns < widths[:, None])[:, None, :]
