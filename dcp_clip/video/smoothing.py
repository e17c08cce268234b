"""Average the logits of consecutive frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dcp_clip.modeling.large_image import require_logits
from dcp_clip.structures import SemSegProposals
from dcp_clip.vocabulary import Vocabulary

__all__ = ["SmoothedModel", "check_can_smooth", "check_smoothing"]

_SMALL = 1e-3  # a frame with a smaller weight no longer matters


def check_smoothing(weight: float) -> None:
    """Raise a ValueError if the weight of the previous frames is not from 0 to below 1."""
    if not 0 <= weight < 1:
        raise ValueError(f"--smoothing is {weight}; it is from 0 to below 1, for example 0.6.")


def check_can_smooth(model: nn.Module) -> None:
    """Raise a ValueError if a segmentor gives no logits to average."""
    require_logits(model, "--smoothing cannot average them")


class SmoothedModel(nn.Module):
    """A segmentor that averages the logits of its images exponentially over time.

    The average of a frame is ``weight * previous average + (1 - weight) * logits``, for each
    category. Stage 1 proposes other categories in each frame. A category that only one of the two
    has gets there the lowest logit of the other at that pixel: it is less likely than everything
    that was proposed. The average keeps the K proposed categories and at most K others, those that
    were proposed last.

    All images are frames of one video and have the same size. An image of another size starts a new
    average.
    """

    def __init__(self, model: nn.Module, weight: float):
        """
        Args:
            model: a segmentor in eval mode.
            weight: weight of the previous frames, 0 to 1 (exclusive).

        Raises:
            ValueError: if the weight is not in this range, or the model gives no logits.
        """
        super().__init__()
        check_smoothing(weight)
        check_can_smooth(model)
        self.model, self.weight = model, weight
        self._vocabulary: Vocabulary | None = None
        self.forget()

    @property
    def temperature(self) -> float:
        """That of the model."""
        return self.model.temperature

    @property
    def memory(self) -> int:
        """The number of previous frames that matter."""
        return math.ceil(math.log(_SMALL) / math.log(self.weight)) if self.weight else 0

    def set_vocabulary(self, vocabulary) -> None:
        """Set the vocabulary of the model, and forget the frames."""
        self.model.set_vocabulary(vocabulary)
        self.forget()

    def encode_image(self, image: Tensor) -> None:
        """Raise a ValueError, because a kept image is no frame of a video."""
        raise ValueError("A model that smooths a video keeps no images: call it with each frame.")

    def forget(self) -> None:
        """Forget the frames, so that the next one starts a new average."""
        self._average: SemSegProposals | None = None
        self._scores: dict[int, float] = {}

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment one frame; see `OpenVocabularySegmentor.forward`.

        Raises:
            ValueError: if the model segments the frame in windows, which has no logits.
        """
        vocabulary = batched_inputs[0].get("vocabulary")
        if vocabulary != self._vocabulary:  # its categories have other ids
            self.forget()
            self._vocabulary = vocabulary
        (result,) = self.model(batched_inputs)
        sem_seg, proposals = result["sem_seg"], result["proposals"]
        if not isinstance(sem_seg, SemSegProposals):
            raise ValueError(
                "--smoothing needs the logits of whole frames: set "
                "MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE to 0."
            )
        ids = sem_seg.category_ids.tolist()
        self._scores |= dict(zip(proposals["ids"].tolist(), proposals["scores"].tolist()))
        before = self._average
        if before is not None and _sizes(before) == _sizes(sem_seg):
            old = [i for i in before.category_ids.tolist() if i not in set(ids)]
            kept = [*ids, *old[: len(ids)]]
            mixed = self.weight * _maps_of(before, kept)
            mixed += (1 - self.weight) * _maps_of(sem_seg, kept)
            sem_seg = SemSegProposals(
                mixed,
                torch.tensor(kept, device=mixed.device),
                sem_seg.num_categories,
                sem_seg.image_size,
                sem_seg.extent,
                sem_seg.temperature,
            )
        self._average = sem_seg
        kept = sem_seg.category_ids.tolist()
        self._scores = {i: self._scores[i] for i in kept}
        scores = torch.tensor([self._scores[i] for i in kept])
        return [{"sem_seg": sem_seg, "proposals": {"ids": torch.tensor(kept), "scores": scores}}]


def _sizes(sem_seg: SemSegProposals) -> tuple:
    return tuple(sem_seg.maps.shape[1:]), sem_seg.image_size, sem_seg.extent


def _maps_of(sem_seg: SemSegProposals, ids: list[int]) -> Tensor:
    """Return the maps of categories; the lowest map where there is none."""
    position = {category: i for i, category in enumerate(sem_seg.category_ids.tolist())}
    lowest = sem_seg.maps.amin(dim=0)
    return torch.stack([sem_seg.maps[position[i]] if i in position else lowest for i in ids])
