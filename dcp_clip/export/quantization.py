"""Compute the convolutions of an exported model in 8-bit integers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dcp_clip.export.support import ExportError
from dcp_clip.runtime import OnnxPredictor
from dcp_clip.runtime.folder import read_folder
from dcp_clip.utils.images.reading import read_image
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import load_names

__all__ = ["check_can_quantize", "quantize_convolutions"]

_MAX_PHOTOGRAPHS = 32


def check_can_quantize() -> None:
    """Raise ExportError if ONNX Runtime is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime.quantization  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportError("int8 needs ONNX Runtime: pip install onnx onnxruntime.") from error


def quantize_convolutions(
    folder: Path, photographs: Sequence[Path], vocabulary: Any | None = None
) -> None:
    """Compute the convolutions of encoder.onnx and head.onnx, which `OnnxPredictor` runs, in int8.

    The ranges of their inputs come from photographs (static quantisation). All other operators
    stay in fp32, because they decide between categories and take little time.

    Args:
        folder: an exported model.
        photographs: image files like those to segment; at most 32 are used, evenly spaced.
        vocabulary: names for these photographs; default: those of the model, or, if it has none,
            those of COCO-Stuff.

    Raises:
        ExportError: if there is no photograph, or no ONNX Runtime.
        ImageReadError: if a photograph cannot be read.
    """
    check_can_quantize()
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if not photographs:
        raise ExportError("int8 needs photographs, but the folder of --int8 has none.")
    if vocabulary is None and read_folder(folder).vocabulary is None:
        vocabulary = Vocabulary.from_categories(load_names("coco_stuff_171"))
    predictor = OnnxPredictor(folder, vocabulary)
    step = -(-len(photographs) // _MAX_PHOTOGRAPHS)
    for name in ("encoder", "head"):
        with _without_advice():
            quantize_static(
                onnx.load(folder / f"{name}.onnx"),
                folder / f"{name}.onnx",
                _Inputs(predictor, name, photographs[::step]),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )


class _Inputs:
    """The inputs of a program for photographs, as ONNX Runtime's CalibrationDataReader."""

    def __init__(self, predictor: OnnxPredictor, program: str, photographs: Sequence[Path]):
        text = predictor.text_features()
        images = (predictor.resizing(read_image(path)) for path in photographs)
        self._inputs = (predictor.model.inputs(image, text)[program] for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._inputs, None)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without ONNX Runtime's advice to fuse layers first, which fails for sizes that stay open."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
