"""How many images a second an evaluation takes."""

from __future__ import annotations

import time
from collections import OrderedDict

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

__all__ = ["SpeedEvaluator"]

# Batches of a process that are not counted for the model alone, as in Detectron2's own timing.
_WARM_UP = 5


class SpeedEvaluator(DatasetEvaluator):
    """Times the loop over a data set, and within it the model, up to the category of every pixel.

    A model may leave the pixels' categories to whoever asks for them, and with many names that can
    take longer than all before; so they are asked for here.
    :class:`dcp_clip.structures.SemSegProposals` keeps its answer for the other evaluators; that of
    a plain tensor is found once more by them.

    A context manager; it watches the model while the context is open. In a list of evaluators it
    goes last, so that what the others do for an image belongs to the loop.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: what is being evaluated.
        """
        self._model = model
        self._handles: list = []
        self._clear()

    def __enter__(self) -> SpeedEvaluator:
        self._handles = [
            self._model.register_forward_pre_hook(self._before),
            self._model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, *_) -> None:
        self._entered = time.perf_counter()

    def _after(self, model: nn.Module, inputs: tuple, outputs: list[dict]) -> None:
        for output in outputs:
            if "sem_seg" in output:
                output["sem_seg"].argmax(dim=0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._calls.append(time.perf_counter() - self._entered)

    def _clear(self) -> None:
        self._calls: list[float] = []  # seconds in the model, a batch
        self._sizes: list[int] = []  # images in it
        self._entered = self._start = self._last = time.perf_counter()

    def reset(self) -> None:
        comm.synchronize()  # all processes start together, so that the slowest tells the time
        self._clear()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self._sizes.append(len(inputs))
        self._last = time.perf_counter()

    def evaluate(self) -> OrderedDict | None:
        """``{"speed": {...}}`` on the main process:

        * "images";
        * "images_per_second": of all processes together, by the wall clock, from the first batch's
          loading to the last one's scoring; the names' text features are part of it;
        * "model_images_per_second": of one process, in the model alone, after a few batches, every
          pixel's category included.
        """
        skipped = min(_WARM_UP, max(len(self._calls) - 1, 0))
        counts = comm.gather(
            (
                sum(self._sizes),
                self._last - self._start,
                sum(self._sizes[skipped:]),
                sum(self._calls[skipped:]),
            )
        )
        if not comm.is_main_process():
            return None
        images, seconds, timed, in_model = zip(*counts)
        return OrderedDict(
            speed={
                "images": sum(images),
                "images_per_second": _rate(sum(images), max(seconds)),
                "model_images_per_second": _rate(sum(timed), sum(in_model)),
            }
        )


def _rate(images: int, seconds: float) -> float:
    return images / seconds if seconds else float("nan")
