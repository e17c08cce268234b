"""Run the exported programs with ONNX Runtime or OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dcp_clip.runtime.folder import damaged_file
from dcp_clip.utils.optional_packages import import_optional

__all__ = ["BACKENDS", "Program", "open_program"]

BACKENDS = ("onnxruntime", "openvino")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of a backend that loads a program into a RuntimeFolderError."""
    try:
        yield
    except Exception as error:  # each backend has its own types of errors
        raise damaged_file(path, error) from error


class Program:
    """One exported program. Several threads can call it.

    Call it with an array for each input; it returns the array of each output that is asked for.

    Attributes:
        outputs: the names of all outputs.
    """

    outputs: tuple[str, ...]

    def __call__(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        raise NotImplementedError


def open_program(
    path: Path, backend: str, threads: int = 0, providers: Sequence[str] = ()
) -> Program:
    """Load a program.

    Args:
        path: a file .onnx.
        backend: one of `BACKENDS`.
        threads: threads of the CPU for one call; 0 lets the backend decide.
        providers: execution providers of ONNX Runtime, such as "CUDAExecutionProvider".

    Raises:
        RuntimeFolderError: if the file is damaged.
        ValueError: for an unknown backend, a provider that this installation does not have, or
            providers for OpenVINO.
        ImportError: if the package of the backend is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"The backend '{backend}' is unknown; known are {', '.join(BACKENDS)}.")
    if backend == "openvino":
        if providers:
            raise ValueError(
                "Execution providers belong to the backend 'onnxruntime': leave them out for "
                "'openvino'."
            )
        return _OpenVino(path, threads)
    return _OnnxRuntime(path, threads, providers)


class _OnnxRuntime(Program):
    def __init__(self, path: Path, threads: int, providers: Sequence[str]):
        onnxruntime = import_optional("onnxruntime", "The ONNX backend needs")
        known = onnxruntime.get_available_providers()
        if unknown := [name for name in providers if name not in known]:
            raise ValueError(
                f"This installation of ONNX Runtime has no {unknown[0]}, only {', '.join(known)}; "
                "for CUDA: pip install onnxruntime-gpu."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        providers = list(providers) or ["CPUExecutionProvider"]
        with _explained(path):
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        return self._session.run(list(outputs), dict(inputs))


class _OpenVino(Program):
    def __init__(self, path: Path, threads: int):
        openvino = import_optional("openvino", "The backend 'openvino' needs")
        core = openvino.Core()
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        options |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        with _explained(path):
            self._model = core.compile_model(core.read_model(path), "CPU", options)
        self.outputs = tuple(output.any_name for output in self._model.outputs)

    def __call__(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        # A request of its own for each call, as threads cannot share one.
        results = self._model.create_infer_request().infer(dict(inputs))
        return [np.array(results[name]) for name in outputs]
