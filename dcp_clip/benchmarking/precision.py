"""What `benchmark.py --bf16` measures: bfloat16 autocast beside float32, in time and in answers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from torch import nn
from tqdm import tqdm

from dcp_clip.benchmarking.meters import seconds
from dcp_clip.benchmarking.subject import WARM_UPS, Subject, alternate, make_vocabulary
from dcp_clip.predictor import Predictor
from dcp_clip.utils.image_io import read_image_and_size
from dcp_clip.utils.image_listing import list_images

T = TypeVar("T")


def compare_on_images(predictor: Predictor, folder: str | Path, count: int) -> dict:
    """Figures of both precisions on the images of a folder, as the demo would answer them.

    Args:
        predictor: with the weights to judge; they decide the answers.
        folder: where the images are.
        count: read this many at most.

    Returns:
        as :func:`compare_on_noise`, with "agreement": the share of all pixels that get the same
        category, 0 ... 1.

    Raises:
        ImageReadError: if there is no image, or one cannot be read.
    """
    images = list_images([str(folder)])[:count]
    times: dict[bool, list[float]] = {False: [], True: []}
    same = pixels = 0
    rounds = [*images[:1] * WARM_UPS, *images]
    for round_, path in enumerate(tqdm(rounds, desc="fp32 and bf16", unit="image")):
        predict = partial(predictor, *read_image_and_size(path, predictor.max_input_pixels))
        answers = []
        for bf16, kept in times.items():
            answer, spent = _timed(partial(_run, predictor.model, bf16, predict), predictor)
            answers.append(answer.label_map)
            if round_ >= WARM_UPS:
                kept.append(spent)
        if round_ >= WARM_UPS:
            same += int(np.count_nonzero(answers[0] == answers[1]))
            pixels += answers[0].size
    row = {"vocabulary": len(predictor.vocabulary), "images": len(images)}
    return row | _figures(times[False], times[True]) | {"agreement": same / pixels}


def compare_on_noise(subject: Subject, names: int, repeats: int) -> dict:
    """Figures of both precisions on one image of random pixels; times in seconds, a forward.

    Returns:
        "vocabulary" and "images" (numbers), "fp32_seconds" and "bf16_seconds" (medians), "speed_up"
        (median of the rounds' ratios: both take turns, so that a disturbance of the machine hits
        both) and all times.
    """
    vocabulary = make_vocabulary(names)
    subject.time_text([vocabulary], random=True)
    whole = subject.whole(vocabulary)
    turns = [partial(_run, subject.model, bf16, whole) for bf16 in (False, True)]
    fp32, bf16 = alternate(subject, turns, repeats)
    return {"vocabulary": names, "images": 1} | _figures(fp32, bf16)


def _run(model: nn.Module, bf16: bool, function: Callable[[], T]) -> T:
    """``function()`` in one precision; the model keeps its own."""
    own, model.bf16 = model.bf16, bf16
    try:
        return function()
    finally:
        model.bf16 = own


def _timed(function: Callable[[], T], predictor: Predictor) -> tuple[T, float]:
    result: list[T] = []
    spent = seconds(lambda: result.append(function()), predictor.model.device)
    return result[0], spent


def _figures(fp32: list[float], bf16: list[float]) -> dict:
    return {
        "fp32_seconds": median(fp32),
        "bf16_seconds": median(bf16),
        "speed_up": median(a / b for a, b in zip(fp32, bf16, strict=True)),
        "fp32_seconds_all": fp32,
        "bf16_seconds_all": bf16,
    }
