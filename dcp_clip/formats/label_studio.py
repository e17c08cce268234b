"""Pre-annotations of Label Studio, with its own run-length encoding of brush masks.

The encoding is that of `label_studio_sdk.converter.brush`: a stream of bits with the number of
values (32 bits), the bits of a value minus 1 (5 bits), the bits of four lengths minus 1 (4 bits
each), and then blocks. A block is 1 for a repeated value, the number of the length used (2 bits),
the count of values minus 1, and the value. The values are the RGBA channels of the mask, 0 or 255.
"""

from typing import Any

import numpy as np

from dcp_clip.formats.regions import find_regions
from dcp_clip.vocabulary import Vocabulary

__all__ = ["encode_brush", "to_label_studio"]

_LENGTH_BITS = (3, 4, 8, 16)
_CHANNELS = 4


def to_label_studio(
    label_map: np.ndarray,
    vocabulary: Vocabulary,
    confidence: np.ndarray | None = None,
    *,
    image: str = "",
    model_version: str = "dcp_clip",
) -> dict[str, Any]:
    """Return a task of Label Studio with the prediction; a list of tasks can be imported.

    The labelling config of the project needs
    ``<Image name="image" value="$image"/><BrushLabels name="label" toName="image">`` with the names
    of the categories.

    Args:
        label_map, vocabulary, confidence: see `dcp_clip.formats`.
        image: address of the image, for example "/data/local-files/?d=/photos/a.jpg".
        model_version: name of the model in Label Studio.
    """
    height, width = label_map.shape
    results = []
    for region in find_regions(label_map, vocabulary, confidence):
        rle = encode_brush(region.full_mask())
        result = {
            "id": f"category{region.id}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": rle, "brushlabels": [region.name]},
        }
        results.append(result | ({} if region.score is None else {"score": region.score}))
    prediction: dict[str, Any] = {"model_version": model_version, "result": results}
    if confidence is not None:
        prediction["score"] = round(float(confidence.mean(dtype=np.float64)), 4)
    return {"data": {"image": image}, "predictions": [prediction]}


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode an (H, W) bool mask as Label Studio's brush, a list of bytes."""
    pixels = mask.ravel()
    starts = np.flatnonzero(np.diff(pixels, prepend=~pixels[:1]))
    values = pixels[starts]
    lengths = np.diff(starts, append=pixels.size) * _CHANNELS
    # The longest block has 2 ** 16 values.
    longest = 1 << _LENGTH_BITS[-1]
    blocks = -(-lengths // longest)
    last = lengths - (blocks - 1) * longest
    counts = np.full(blocks.sum(), longest)
    counts[np.cumsum(blocks) - 1] = last
    values = np.repeat(values, blocks)
    parts = [
        np.tile([1, 1, 1], (len(counts), 1)),  # repeated, and length number 3
        _bits(counts - 1, _LENGTH_BITS[-1]),
        np.repeat(values[:, None], 8, axis=1),
    ]
    header = [_bits(np.array([pixels.size * _CHANNELS]), 32), _bits(np.array([8 - 1]), 5)]
    header += [_bits(np.array([bits - 1]), 4) for bits in _LENGTH_BITS]
    stream = np.concatenate([np.hstack(header).ravel(), np.hstack(parts).ravel()])
    return np.packbits(stream.astype(bool)).tolist()


def _bits(numbers: np.ndarray, count: int) -> np.ndarray:
    """The (N, count) bits of numbers, the highest first."""
    return numbers[:, None] >> np.arange(count - 1, -1, -1) & 1
