"""What `benchmark.py --bf16` measures: bfloat16 autocast beside float32, in time and in answers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from benchmark_meters import seconds
from benchmark_subject import Subject, make_vocabulary
from torch import nn
from tqdm import tqdm

from dcp_clip.image_io import read_image_and_size
from dcp_clip.image_listing import list_images
from dcp_clip.predictor import Predictor

WARM_UPS = 2


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
    times: tuple[list[float], list[float]] = ([], [])
    same = pixels = 0
    for i, path in enumerate(tqdm(images, desc="fp32 and bf16", unit="image")):
        predict = partial(predictor, *read_image_and_size(path, predictor.max_input_pixels))
        for _ in range(1 if i else 1 + WARM_UPS):
            (fp32, bf16), spent = _run_both(predictor.model, predict)
        for kept, value in zip(times, spent, strict=True):
            kept.append(value)
        same += int(np.count_nonzero(fp32.label_map == bf16.label_map))
        pixels += fp32.label_map.size
    row = {"vocabulary": len(predictor.vocabulary), "images": len(images)}
    return row | _figures(times) | {"agreement": same / pixels}


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
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in tqdm(range(WARM_UPS + repeats), desc=subject.name, unit="round"):
        _, spent = _run_both(subject.model, whole)
        if round_ >= WARM_UPS:
            for kept, value in zip(times, spent, strict=True):
                kept.append(value)
    return {"vocabulary": names, "images": 1} | _figures(times)


def _run_both(model: nn.Module, run: Callable[[], object]) -> tuple[list, list[float]]:
    """Answers and seconds of ``run()`` in float32 and in bfloat16; the model keeps its own."""
    own, answers, spent = model.bf16, [], []
    try:
        for bf16 in (False, True):
            model.bf16 = bf16
            spent.append(seconds(lambda: answers.append(run()), model.device))
    finally:
        model.bf16 = own
    return answers, spent


def _figures(times: tuple[list[float], list[float]]) -> dict:
    fp32, bf16 = times
    return {
        "fp32_seconds": median(fp32),
        "bf16_seconds": median(bf16),
        "speed_up": median(a / b for a, b in zip(fp32, bf16, strict=True)),
        "fp32_seconds_all": fp32,
        "bf16_seconds_all": bf16,
    }
