"""The three stages of a bulk run. Ray Data runs them in separate workers.

    read images  ──►  run the model  ──►  write a partition
    (tasks)           (actors)            (tasks)

One row of Ray Data is one partition, so a partition stays in one piece. The column "content" has
the table of its images, as a stream of Arrow.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import ray
import torch
from fsspec.implementations.local import LocalFileSystem

from dcp_clip.bulk.partitions import BulkFolder
from dcp_clip.bulk.storage import locate, read_bytes
from dcp_clip.data.augmentation import ResizeForTest
from dcp_clip.formats.coco import to_coco
from dcp_clip.prediction import Prediction, make_prediction
from dcp_clip.runtime.resizing import Resizing
from dcp_clip.utils.atomic_files import WriteError
from dcp_clip.utils.images.reading import ImageReadError, read_image_and_size
from dcp_clip.vocabulary import Vocabulary

__all__ = ["RunModel", "outcome_of", "read_partition", "write_partition"]

# Older versions of PyTorch have no class for the errors of a GPU.
_DEVICE_ERRORS = getattr(torch, "AcceleratorError", ())
_READ_AT_ONCE = 16  # files of a partition that threads read before they are decoded
_SIZE = [("height", pa.int32()), ("width", pa.int32())]
_ERROR = ("error", pa.string())
_READ = pa.schema(
    [
        ("file", pa.string()),
        ("member", pa.string()),
        *_SIZE,
        # The input of the model, (3, h, w) bytes.
        ("rows", pa.int32()),
        ("pixels", pa.large_binary()),
        _ERROR,
    ]
)
_CATEGORY = [
    ("id", pa.int32()),
    ("name", pa.string()),
    ("share", pa.float64()),
    ("score", pa.float64()),
]
_SEGMENTED = pa.schema(
    [
        ("file", pa.string()),
        ("member", pa.string()),
        *_SIZE,
        ("categories", pa.list_(pa.struct(_CATEGORY))),
        # The label map, compressed because photographs can have hundreds of megapixels.
        ("labels", pa.large_binary()),
        ("depth", pa.int8()),  # bytes of a pixel
        _ERROR,
    ]
)
_LABEL_COLUMNS = {
    "rle": pa.list_(pa.struct([("category_id", pa.int32()), ("counts", pa.string())])),
    "png": pa.binary(),
}
_CODEC = "lz4"


def read_partition(
    batch: pa.Table, folder: BulkFolder, resizing: ResizeForTest | Resizing, max_pixels: int
) -> pa.Table:
    """Read, decode and resize the images of a partition.

    Args:
        batch: one row with the number of the partition.
        folder: the open folder of the run.
        resizing: how the model's inputs are resized.
        max_pixels: larger images are reduced, see `read_image_and_size`.
    """
    partition = batch["partition"][0].as_py()
    images, rows = folder.read_list(partition).to_pylist(), []
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for start in range(0, len(images), _READ_AT_ONCE):
            some = images[start : start + _READ_AT_ONCE]
            for image, content in zip(some, pool.map(_fetch, some)):
                rows.append(_read(image, content, resizing, max_pixels))
    return _pack(partition, pa.Table.from_pylist(rows, _READ))


def _read(
    image: dict[str, Any],
    content: bytes | Exception | None,
    resizing: ResizeForTest | Resizing,
    max_pixels: int,
) -> dict[str, Any]:
    row = {"file": image["file"], "member": image["member"]}
    name = f"{image['file']} ({image['member']})" if image["member"] else image["file"]
    try:
        if isinstance(content, Exception):
            reason = getattr(content, "strerror", None) or " ".join(str(content).split())
            raise ImageReadError(f"cannot read {name}: {reason or type(content).__name__}")
        pixels, size = read_image_and_size(image["file"], max_pixels, content)
    except ImageReadError as error:
        # The message has the path in the form of pathlib, which shortens "s3://" to "s3:/".
        return {**row, "error": str(error).replace(str(Path(image["file"])), name)}
    resized = np.asarray(resizing.model_input(pixels))
    row |= {"height": size[0], "width": size[1], "rows": resized.shape[1]}
    return {**row, "pixels": resized.tobytes()}


def _fetch(image: dict[str, Any]) -> bytes | Exception | None:
    """Return the bytes of an image, or the error; None for a whole file of this machine."""
    try:
        if image["offset"] is not None:
            content = read_bytes(image["file"], image["offset"], image["size"])
            if len(content) != image["size"]:
                raise OSError("the shard was changed or truncated after the run began")
            return content
        is_local = isinstance(locate(image["file"])[0], LocalFileSystem)
        return None if is_local else read_bytes(image["file"])
    except FileNotFoundError:
        return FileNotFoundError("no such file")
    except Exception as error:  # each file system has its own types of errors
        return error


class RunModel:
    """Segment the images of a partition. An actor keeps this object, and with it the model.

    Args:
        shared: an object of Ray's store: a predictor, and the text features of its vocabulary, or
            None for a model without a text encoder.
        device: "cpu" or "cuda".
        threads: threads of PyTorch.
        batch_size: number of images of equal size in a forward pass.
    """

    def __init__(self, shared: ray.ObjectRef, device: str, threads: int, batch_size: int) -> None:
        torch.set_num_threads(threads)
        self.predictor, features = ray.get(shared)
        if features is not None:
            encoder = self.predictor.model.text_encoder
            encoder.remember(self.predictor.vocabulary, features)
        self.predictor.model.to(device).eval()
        self.batch_size = batch_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        partition, table = _unpack(batch)
        rows = table.drop_columns(["pixels", "rows"]).to_pylist()
        for indices in self._batches(table):
            inputs = [self._input(table, i) for i in indices]
            for i, outcome in zip(indices, self._segment(inputs)):
                rows[i] |= outcome
        return _pack(partition, pa.Table.from_pylist(rows, _SEGMENTED))

    def _batches(self, table: pa.Table) -> Iterator[list[int]]:
        """Yield the indices of images of equal size, without those that could not be read."""
        by_size = defaultdict(list)
        for i, rows in enumerate(table["rows"].to_pylist()):
            if rows is not None:
                by_size[rows, len(table["pixels"][i].as_buffer())].append(i)
        for indices in by_size.values():
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    def _input(self, table: pa.Table, i: int) -> dict[str, Any]:
        image = torch.from_numpy(self._pixels(table, i).copy())  # the store is read-only
        size = {key: table[key][i].as_py() for key in ("height", "width")}
        return {"image": image, **size, "vocabulary": self.predictor.vocabulary}

    def _pixels(self, table: pa.Table, i: int) -> np.ndarray:
        pixels = np.frombuffer(table["pixels"][i].as_buffer(), np.uint8)
        return pixels.reshape(3, table["rows"][i].as_py(), -1)

    def _segment(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            with torch.no_grad():
                outputs = self.predictor.model(inputs)
                return [outcome_of(self._prediction(output)) for output in outputs]
        except _DEVICE_ERRORS:
            raise  # a GPU in this state gives no more results
        except Exception as error:  # PyTorch has many types; the next images may be fine
            if len(inputs) == 1:
                return [{"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}]
            return [outcome for one in inputs for outcome in self._segment([one])]

    def _prediction(self, output: dict[str, Any]) -> Prediction:
        ids, scores = (output["proposals"][key].tolist() for key in ("ids", "scores"))
        predictor, scores = self.predictor, dict(zip(ids, scores, strict=True))
        return make_prediction(
            output["sem_seg"], scores, predictor.vocabulary, predictor.unknown_below
        )


def outcome_of(prediction: Prediction) -> dict[str, Any]:
    """Return the columns of a segmented image."""
    label_map = np.ascontiguousarray(prediction.label_map)
    return {
        "categories": [asdict(found) for found in prediction.found],
        "labels": pa.compress(label_map, _CODEC, asbytes=True),
        "depth": label_map.itemsize,
    }


def write_partition(
    batch: pa.Table,
    folder: BulkFolder,
    vocabulary: Vocabulary,
    labels: str,
    fingerprints: dict[str, str],
) -> pa.Table:
    """Write the results of a partition.

    Args:
        batch: one row with the results of `RunModel`.
        folder: the open folder of the run.
        vocabulary: C categories.
        labels: form of the label maps, "rle" or "png".
        fingerprints: columns with the same value in each row.

    Returns:
        One row: the numbers of images and errors, and why the file cannot be written, or "".
    """
    partition, table = _unpack(batch)
    maps = (_label_map(row) for row in table.to_pylist())
    form = _png if labels == "png" else partial(_rle, vocabulary=vocabulary)
    column = [None if label_map is None else form(label_map) for label_map in maps]
    rows = table.drop_columns(["labels", "depth", "error"])
    rows = rows.append_column(labels, pa.array(column, _LABEL_COLUMNS[labels]))
    for name, value in fingerprints.items():
        rows = rows.append_column(name, pa.array([value] * len(rows)))
    errors = table["error"]
    counts = {"images": [len(rows)], "errors": [len(errors) - errors.null_count], "failure": [""]}
    try:
        folder.write_partition(partition, rows.append_column("error", errors))
    except WriteError as error:  # Ray Data would turn it into a long text
        counts["failure"] = [str(error)]
    return pa.table(counts)


def _label_map(row: dict[str, Any]) -> np.ndarray | None:
    if row["labels"] is None:
        return None
    shape, depth = (row["height"], row["width"]), row["depth"]
    content = pa.decompress(row["labels"], shape[0] * shape[1] * depth, _CODEC)
    return np.frombuffer(content, f"u{depth}").reshape(shape)


def _png(label_map: np.ndarray) -> bytes:
    return cv2.imencode(".png", label_map)[1].tobytes()


def _rle(label_map: np.ndarray, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [
        {"category_id": found["category_id"], "counts": found["segmentation"]["counts"]}
        for found in to_coco(label_map, vocabulary)["annotations"]
    ]


def _pack(partition: int, table: pa.Table) -> pa.Table:
    """Return a table of one row: the number of the partition, and the table of its images."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    # Without a copy: the images of a partition can have hundreds of megabytes.
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])
    return pa.table({"partition": pa.array([partition], pa.int64()), "content": column})


def _unpack(batch: pa.Table) -> tuple[int, pa.Table]:
    """Return what `_pack` got."""
    with pa.ipc.open_stream(batch["content"][0].as_buffer()) as reader:
        return batch["partition"][0].as_py(), reader.read_all()
