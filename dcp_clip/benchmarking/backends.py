"""Compare what runs a model: PyTorch, torch.compile, ONNX Runtime and OpenVINO."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from dcp_clip.benchmarking.benchmark_model import BenchmarkModel, make_vocabulary
from dcp_clip.benchmarking.call_cost import time_in_turns
from dcp_clip.export.folder import export_model
from dcp_clip.runtime import OnnxPredictor
from dcp_clip.vocabulary import Vocabulary

__all__ = ["measure_backends"]

_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


def measure_backends(
    subject: BenchmarkModel, backends: Sequence[str], num_categories: int, repeats: int
) -> list[dict]:
    """Measure one image, from its pixels to the label map; the backends take turns.

    All backends use the same number of threads, and the text features are computed before.

    Args:
        subject: the model; it is exported at its image size.
        backends: some of "torch", "compile", "onnx" and "openvino", in the order of the rows.
        num_categories: names in the vocabulary.
        repeats: timed rounds.

    Returns:
        A row for each backend: "image_seconds", the "speed_up" over the first backend, and
        "equal_pixels", the fraction of the pixels with the label of the first backend.

    Raises:
        ExportError: if the model cannot be exported.
        ImportError: if a package is missing.
    """
    vocabulary = make_vocabulary(num_categories)
    subject.model.set_vocabulary(vocabulary)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        if set(backends) & set(_RUNTIMES):
            cfg = subject.cfg.clone()
            cfg.INPUT.MIN_SIZE_TEST = 0  # no backend resizes the image
            export_model(cfg, subject.model, folder)
        calls = [_label_map(subject, name, folder, vocabulary) for name in backends]
        label_maps = [call() for call in calls]
        seconds = time_in_turns(calls, repeats)
    return [
        {
            "backend": name,
            "categories": num_categories,
            "image_seconds": time,
            "speed_up": seconds[0] / time,
            "equal_pixels": float((label_map == label_maps[0]).mean()),
        }
        for name, time, label_map in zip(backends, seconds, label_maps, strict=True)
    ]


def _label_map(
    subject: BenchmarkModel, backend: str, folder: Path, vocabulary: Vocabulary
) -> Callable[[], np.ndarray]:
    """A function that segments the image of the benchmark."""
    if backend in _RUNTIMES:
        threads = torch.get_num_threads()
        predictor = OnnxPredictor(folder, vocabulary, backend=_RUNTIMES[backend], threads=threads)
        image = np.ascontiguousarray(subject.input["image"].permute(1, 2, 0).numpy())
        return lambda: predictor(image).label_map
    model = subject.model
    eager = model.segment
    segment = torch.compile(eager, dynamic=False) if backend == "compile" else eager

    def run() -> np.ndarray:
        model.segment = segment
        try:
            with torch.no_grad():
                (output,) = model([{**subject.input, "vocabulary": vocabulary}])
        finally:
            del model.segment
        return output["sem_seg"].label_map()

    return run
