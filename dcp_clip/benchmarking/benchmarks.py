"""The figures of tools/benchmark.py: each function returns one row as a dict.

The end of a key tells the unit: ``_seconds``, ``_flops`` or ``_bytes``.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

from tqdm import tqdm

from dcp_clip.benchmarking.benchmark_model import BenchmarkModel, make_vocabulary
from dcp_clip.benchmarking.call_cost import count_flops, peak_bytes, time_call, time_in_turns
from dcp_clip.utils.images.reading import read_image_and_size
from dcp_clip.vocabulary import Vocabulary


def measure_inference(subject: BenchmarkModel, num_categories: int, repeats: int) -> dict:
    """Measure the whole forward pass relative to the image encoder alone.

    The "added" time is that of the whole forward pass with precomputed encoder features. This is
    more precise than the difference of two long times.
    """
    vocabulary = make_vocabulary(num_categories)
    encoder, whole = subject.encoder(), subject.forward(vocabulary)
    flops, peak = count_flops(encoder), peak_bytes(encoder, subject.device)
    row = {"categories": num_categories, "proposals": subject.num_proposals(vocabulary)}
    row |= {"encoder_flops": flops, "added_flops": count_flops(whole) - flops}
    row |= {"encoder_peak_bytes": peak}
    row |= {"added_peak_bytes": peak_bytes(whole, subject.device) - peak}
    encoder_seconds, whole_seconds = time_in_turns([encoder, whole], repeats)
    with subject.cached_backbone():
        (added_seconds,) = time_in_turns([whole], repeats)
    row |= {"encoder_seconds": encoder_seconds, "added_seconds": added_seconds}
    return row | {"whole_seconds": whole_seconds, "relative_time": whole_seconds / encoder_seconds}


def measure_training(
    subject: BenchmarkModel, batch: int, num_categories: int, repeats: int
) -> dict:
    """Measure a training step relative to the image encoder's forward pass on the same images.

    Raises:
        ValueError: if nothing in the model trains.
    """
    vocabulary = make_vocabulary(num_categories)
    encoder, step = subject.encoder(batch), subject.train_step(batch, vocabulary)
    row = {"batch": batch, "categories": num_categories}
    row |= {"proposals": subject.num_proposals(vocabulary)}
    row |= {"encoder_flops": count_flops(encoder), "step_flops": count_flops(step)}
    row |= {"encoder_peak_bytes": peak_bytes(encoder, subject.device)}
    row |= {"step_peak_bytes": peak_bytes(step, subject.device)}
    encoder_seconds, step_seconds = time_in_turns([encoder, step], repeats)
    row |= {"encoder_seconds": encoder_seconds, "step_seconds": step_seconds}
    return row | {"relative_time": step_seconds / encoder_seconds}


def measure_text(subject: BenchmarkModel, num_categories: int) -> dict:
    """Measure encoding a vocabulary, and reading it from the cache on disk in a second start."""
    encoder, vocabulary = subject.model.text_encoder, make_vocabulary(num_categories)
    encoder.encode_vocabulary(Vocabulary(["a warm-up"]))
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        encoder.cache_dir = folder
        for _ in range(2):
            encoder.clear_cache()
            seconds.append(time_call(partial(encoder.encode_vocabulary, vocabulary)))
        encoder.cache_dir = ""
        encoder.clear_cache()
    # Every chunk of names needs the same memory. A larger vocabulary adds its features only.
    few = make_vocabulary(min(num_categories, 4 * encoder.chunk_size))
    peak = peak_bytes(partial(encoder.encode_vocabulary, few), subject.device)
    peak += 4 * subject.model.backbone.embed_dim * (num_categories - len(few))
    row = {"categories": num_categories, "templates": len(encoder.templates)}
    row |= {"encoding_seconds": seconds[0], "categories_per_second": num_categories / seconds[0]}
    return row | {"second_start_seconds": seconds[1], "peak_bytes": peak}


def compare_precisions(subject: BenchmarkModel, num_categories: int, repeats: int) -> dict:
    """The whole forward pass in float32 and under bfloat16 autocast, on random pixels."""
    vocabulary = make_vocabulary(num_categories)
    calls = [subject.forward(vocabulary, bf16) for bf16 in (False, True)]
    fp32, bf16 = time_in_turns(calls, repeats)
    row = {"categories": num_categories, "fp32_seconds": fp32, "bf16_seconds": bf16}
    return row | {"speed_up": fp32 / bf16}


def compare_precisions_on_images(predictor, images: Sequence[Path]) -> dict:
    """Compare both precisions on photographs.

    Args:
        predictor: a :class:`dcp_clip.predictor.Predictor` with trained weights.
        images: image files.

    Returns:
        The figures of :func:`compare_precisions` for an image, and "equal_pixels": the fraction of
        the pixels that get the same category in both precisions.

    Raises:
        ImageReadError: if an image cannot be read.
    """
    seconds, equal, pixels = [0.0, 0.0], 0, 0
    for path in tqdm(images, unit="image"):
        image = read_image_and_size(path, predictor.max_input_pixels)
        label_maps = []
        for i, bf16 in enumerate((False, True)):
            predictor.model.bf16 = bf16
            predictor(*image)  # a warm-up
            prediction = predictor(*image)
            seconds[i] += prediction.milliseconds / 1e3 / len(images)
            label_maps.append(prediction.label_map)
        equal += int((label_maps[0] == label_maps[1]).sum())
        pixels += label_maps[0].size
    row = {"images": len(images), "categories": len(predictor.vocabulary)}
    row |= {"fp32_seconds": seconds[0], "bf16_seconds": seconds[1]}
    return row | {"speed_up": seconds[0] / seconds[1], "equal_pixels": equal / pixels}


def measure_demo(
    predictor, segment_files: Callable[[Sequence[Path]], object], images: Sequence[Path], count: int
) -> dict:
    """Measure the demo's time for an image, from file to written results, and the model's time.

    The model alone gets decoded images. It runs on one half of the images before the demo and on
    the other half after it.

    Args:
        predictor: the :class:`dcp_clip.predictor.Predictor` of the demo.
        segment_files: reads and segments image files, and writes the results.
        images: image files; they are repeated to make `count`.
        count: number of images to process.

    Raises:
        ImageReadError: if an image cannot be read.
    """

    def model_seconds(paths: Sequence[Path]) -> float:
        decoded = (read_image_and_size(path, predictor.max_input_pixels) for path in paths)
        return sum(predictor(*image).milliseconds for image in decoded) / 1e3 / count

    files = list(islice(cycle(images), count))
    segment_files(files[:2])  # a warm-up
    model = model_seconds(files[: count // 2])
    demo = time_call(partial(segment_files, files)) / count
    model += model_seconds(files[count // 2 :])
    row = {"images": count, "categories": len(predictor.vocabulary)}
    return row | {"demo_seconds": demo, "model_seconds": model, "relative_time": demo / model}
