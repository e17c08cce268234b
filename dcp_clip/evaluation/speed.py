"""Measure the images per second of an evaluation."""

from __future__ import annotations

import time
from collections import OrderedDict

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

__all__ = ["SpeedEvaluator"]

# First batches of a process that "model_images_per_second" excludes, as Detectron2's timing does.
_NUM_WARM_UP = 5


class SpeedEvaluator(DatasetEvaluator):
    """Measures the time of an evaluation, and the time within the model.

    The time within the model includes the argmax over the categories. With many categories, argmax
    can take longer than the rest. :class:`dcp_clip.structures.SemSegProposals` computes it only
    once and caches the result. For a plain tensor, the other evaluators compute it again.

    Use this class as a context manager: it measures the model while the context is open. In a list
    of evaluators it must be the last one, so that the time of the others is included.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: the model that is evaluated.
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
        self._calls: list[float] = []  # seconds in the model, per batch
        self._sizes: list[int] = []  # images, per batch
        self._entered = self._start = self._last = time.perf_counter()

    def reset(self) -> None:
        comm.synchronize()  # all processes start together
        self._clear()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self._sizes.append(len(inputs))
        self._last = time.perf_counter()

    def evaluate(self) -> OrderedDict | None:
        """Compute the figures.

        Returns:
            On the main process ``{"speed": {...}}`` with

            * "images": number of images;
            * "images_per_second": of all processes together, in wall-clock time from loading the
              first batch to evaluating the last. This includes computing the text features.
            * "model_images_per_second": of one process, in the model alone with the argmax over
              the categories, without the first batches.

            None on other processes.
        """
        skipped = min(_NUM_WARM_UP, max(len(self._calls) - 1, 0))
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
