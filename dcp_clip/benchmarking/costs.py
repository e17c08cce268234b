"""The figures of tools/benchmark.py: inference, training, text encoding, bf16 and the demo.

Each function returns the figures as a dict: times in seconds, memory in bytes.
"""

import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dcp_clip.benchmarking.benchmark_model import BenchmarkModel, make_vocabulary
from dcp_clip.benchmarking.measure import (
    WARM_UPS,
    count_flops,
    peak_bytes,
    time_call,
    time_in_turns,
)
from dcp_clip.utils.image_io import read_image_and_size
from dcp_clip.vocabulary import Vocabulary

# Names that are encoded to estimate the time of the text tower for each name.
_SAMPLE_NAMES = 32


def measure_inference(
    subject: BenchmarkModel, sizes: Sequence[int], repeats: int, random_text: bool
) -> list[dict]:
    """The whole forward pass and the image encoder alone, for each vocabulary size.

    The time without the encoder ("rest") is measured with the encoder's features given. This is
    more precise than the difference of two long times.
    """
    vocabularies = [make_vocabulary(size) for size in sizes]
    text_seconds = _time_text(subject, vocabularies, random_text)
    encoder = subject.encoder()
    forwards = [subject.forward(vocabulary) for vocabulary in vocabularies]
    encoder_flops = count_flops(encoder)
    encoder_peak = peak_bytes(encoder, subject.device)
    rows = []
    for size, forward, text in zip(sizes, forwards, text_seconds):
        rows.append(
            {
                "vocabulary": size,
                "proposals": len(forward()[0]["sem_seg"]),
                "text_seconds": text,
                "text_is_estimated": random_text,
                "encoder_flops": encoder_flops,
                "rest_flops": count_flops(forward) - encoder_flops,
                "encoder_peak_bytes": encoder_peak,
                "whole_peak_bytes": peak_bytes(forward, subject.device),
            }
        )
    # Each round measures all sizes, so that the rows can be compared with each other.
    turns = [function for forward in forwards for function in (encoder, forward)]
    times = time_in_turns(turns, repeats)
    encoder_times = [seconds for part in times[::2] for seconds in part]
    encoder_seconds = statistics.median(encoder_times)
    with subject.cached_backbone():
        rest_times = time_in_turns(forwards, repeats)
    for row, whole, rest in zip(rows, times[1::2], rest_times):
        row |= {"encoder_seconds": encoder_seconds, "encoder_seconds_all": encoder_times}
        row |= {"whole_seconds": statistics.median(whole), "whole_seconds_all": whole}
        row |= {"rest_seconds": statistics.median(rest), "rest_seconds_all": rest}
        row |= {"relative_time": row["whole_seconds"] / encoder_seconds}
    return rows


def _time_text(
    subject: BenchmarkModel, vocabularies: Sequence[Vocabulary], random_text: bool
) -> list[float]:
    """Seconds to encode each vocabulary.

    With `random_text` they are estimated from a few names, and the model gets random features.
    """
    encode = subject.model.text_encoder.encode_vocabulary
    encode(Vocabulary(["a warm-up"]))
    if not random_text:
        return [time_call(partial(encode, vocabulary)) for vocabulary in vocabularies]
    each = time_call(partial(encode, make_vocabulary(_SAMPLE_NAMES))) / _SAMPLE_NAMES
    subject.use_random_text()
    return [each * len(vocabulary) for vocabulary in vocabularies]


def measure_training(
    subject: BenchmarkModel, batch: int, vocabulary_size: int, repeats: int
) -> dict:
    """A training step, and the forward pass of the image encoder alone on the same images.

    Raises:
        ValueError: if nothing in the model trains.
    """
    vocabulary = make_vocabulary(vocabulary_size)
    subject.use_random_text()
    encoder, step = subject.encoder(batch), subject.train_step(batch, vocabulary)
    output, _ = subject.forward(vocabulary)()
    row = {"batch": batch, "vocabulary": vocabulary_size, "proposals": len(output["sem_seg"])}
    row |= {"encoder_flops": count_flops(encoder), "step_flops": count_flops(step)}
    row |= {"encoder_peak_bytes": peak_bytes(encoder, subject.device)}
    row |= {"step_peak_bytes": peak_bytes(step, subject.device)}
    encoder_times, step_times = time_in_turns([encoder, step], repeats)
    row |= {"encoder_seconds_all": encoder_times, "step_seconds_all": step_times}
    row |= {"encoder_seconds": statistics.median(encoder_times)}
    row |= {"step_seconds": statistics.median(step_times)}
    return row | {"relative_time": row["step_seconds"] / row["encoder_seconds"]}


def measure_text(subject: BenchmarkModel, vocabulary_size: int) -> dict:
    """Encoding a vocabulary, and reading it from the cache on disk in a second start."""
    encoder, vocabulary = subject.model.text_encoder, make_vocabulary(vocabulary_size)
    encoder.encode_vocabulary(Vocabulary(["a warm-up"]))
    times = []
    with tempfile.TemporaryDirectory() as folder:
        encoder.cache_dir = folder
        for _ in range(2):
            encoder.clear_cache()
            times.append(time_call(partial(encoder.encode_vocabulary, vocabulary)))
        encoder.cache_dir = ""
        encoder.clear_cache()
    # Every chunk of names needs the same memory. A larger vocabulary adds its features only.
    few = make_vocabulary(min(vocabulary_size, 4 * encoder.chunk_size))
    peak = peak_bytes(partial(encoder.encode_vocabulary, few), subject.device)
    peak += 4 * subject.model.backbone.embed_dim * (vocabulary_size - len(few))
    row = {"vocabulary": vocabulary_size, "templates": len(encoder.templates)}
    return row | {"first_seconds": times[0], "cached_seconds": times[1], "peak_bytes": peak}


def compare_precisions(subject: BenchmarkModel, vocabulary_size: int, repeats: int) -> dict:
    """The whole forward pass in float32 and under bfloat16 autocast, on random pixels."""
    subject.use_random_text()
    forward = subject.forward(make_vocabulary(vocabulary_size))
    turns = [partial(_run_in_precision, subject.model, bf16, forward) for bf16 in (False, True)]
    times = time_in_turns(turns, repeats)
    return {"vocabulary": vocabulary_size, "images": 1} | _precision_figures(*times)


def compare_precisions_on_images(predictor, images: Sequence[Path]) -> dict:
    """Both precisions on photographs.

    Args:
        predictor: a :class:`dcp_clip.predictor.Predictor` with trained weights.
        images: image files.

    Returns:
        The figures of :func:`compare_precisions`, and "agreement": the fraction of the pixels that
        get the same category in both precisions.

    Raises:
        ImageReadError: if an image cannot be read.
    """
    times: list[list[float]] = [[], []]
    equal = pixels = 0
    for i, path in enumerate(tqdm([*images[:1] * WARM_UPS, *images], unit="image")):
        image, size = read_image_and_size(path, predictor.max_input_pixels)
        label_maps: list[np.ndarray] = []

        def segment(bf16: bool, image=image, size=size, label_maps=label_maps) -> None:
            prediction = _run_in_precision(predictor.model, bf16, predictor, image, size)
            label_maps.append(prediction.label_map)

        seconds = [time_call(partial(segment, bf16)) for bf16 in (False, True)]
        if i >= WARM_UPS:
            for kept, value in zip(times, seconds):
                kept.append(value)
            equal += int(np.count_nonzero(label_maps[0] == label_maps[1]))
            pixels += label_maps[0].size
    row = {"vocabulary": len(predictor.vocabulary), "images": len(images)}
    figures = _precision_figures(*times)
    return row | figures | {"agreement": equal / pixels}


def _run_in_precision(model, bf16: bool, function: Callable, *args):
    before, model.bf16 = model.bf16, bf16
    try:
        return function(*args)
    finally:
        model.bf16 = before


def _precision_figures(fp32: list[float], bf16: list[float]) -> dict:
    return {
        "fp32_seconds": statistics.median(fp32),
        "bf16_seconds": statistics.median(bf16),
        # The median of the ratios of the rounds, as both precisions take turns.
        "speed_up": statistics.median(a / b for a, b in zip(fp32, bf16, strict=True)),
        "fp32_seconds_all": fp32,
        "bf16_seconds_all": bf16,
    }


def measure_demo(predictor, images: Sequence[Path], count: int, command: Sequence[str]) -> dict:
    """The rate of demo/demo.py, from file to written results, and of the model alone.

    The model alone gets decoded images. It runs on one half of the images before the demo and on
    the other half after it.

    Args:
        predictor: the :class:`dcp_clip.predictor.Predictor` that the demo uses.
        images: image files; they are repeated to make `count`.
        count: number of images to process.
        command: command line of the demo without --input and --output.

    Raises:
        ImageReadError: if an image cannot be read.
        RuntimeError: if the demo fails.
    """
    inputs = list(islice(cycle(images), count))
    for path in inputs[:WARM_UPS]:
        _time_model(predictor, path)
    model_seconds = sum(_time_model(predictor, path) for path in inputs[: count // 2])
    demo_seconds = _run_demo(inputs, command)
    model_seconds += sum(_time_model(predictor, path) for path in inputs[count // 2 :])
    return {
        "images": count,
        "distinct": len(images),
        "vocabulary": len(predictor.vocabulary),
        "model_seconds": model_seconds,
        "demo_seconds": demo_seconds,
        "relative_rate": model_seconds / demo_seconds,
    }


def _time_model(predictor, path: Path) -> float:
    image, size = read_image_and_size(path, predictor.max_input_pixels)
    return time_call(lambda: predictor(image, size))


def _run_demo(images: Sequence[Path], command: Sequence[str]) -> float:
    """The seconds that the demo reports for these images, without its start."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "images")
        source.mkdir()
        for i, path in enumerate(images):
            (source / f"{i}{path.suffix}").symlink_to(path.resolve())
        places = ["--input", str(source), "--output", str(Path(folder, "results"))]
        done = subprocess.run(
            [sys.executable, command[0], *places, *command[1:]], capture_output=True, text=True
        )
    found = re.search(r" images in ([\d.]+) s", done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"the demo failed: {(done.stderr.strip() or done.stdout)[-500:]}")
    return float(found[1])
