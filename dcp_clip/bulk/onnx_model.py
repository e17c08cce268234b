"""The stage of a bulk run that runs an exported model."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dcp_clip.bulk.stages import RunModel, outcome_of
from dcp_clip.folder_run.onnx_predictor import RunOnnxPredictor
from dcp_clip.vocabulary import Vocabulary

__all__ = ["RunOnnxModel"]


class RunOnnxModel(RunModel):
    """Segment the images of a partition, each alone. An actor keeps this object.

    Args:
        folder: the exported model; every machine must have it.
        vocabulary: C categories; each actor encodes them.
        backend: "onnxruntime" or "openvino".
        threads: threads of the backend.
    """

    def __init__(self, folder: str, vocabulary: Vocabulary, backend: str, threads: int) -> None:
        self.predictor = RunOnnxPredictor(folder, vocabulary, backend=backend, threads=threads)
        self.batch_size = 1

    def _input(self, table: pa.Table, i: int) -> dict[str, Any]:
        size = tuple(table[key][i].as_py() for key in ("height", "width"))
        return {"resized": self._pixels(table, i).transpose(1, 2, 0), "size": size}

    def _segment(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return [outcome_of(self.predictor.predict_resized(**one)) for one in inputs]
        except Exception as error:  # each backend has its own types of errors
            return [{"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}]
