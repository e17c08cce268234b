"""How the benchmarks store their label maps: one function a format, each to the raw label numbers.

A decoder takes whatever stands for one label map (mostly a file) and returns the dataset's own
numbers, (H, W) uint8 or uint16. What they become is :class:`LabelEncoding`'s business.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from dcp_clip.data.pairing import DatasetError
from dcp_clip.vocabulary.categories import IGNORE_LABEL, Category

# The ignored value of prepared label maps with more categories than fit 8 bits.
IGNORE_LABEL_16 = 65535
_REFUSED = -1


@dataclass(frozen=True)
class LabelEncoding:
    """From a benchmark's label maps to train ids. Made by :func:`label_encoding`.

    Attributes:
        decode: reads one label map, (H, W) uint8 or uint16 raw labels.
        lookup: (65536,) int32, the train id of each raw label, -1 for labels there must not be.
        names: what the train ids 0 ... C-1 stand for.
        ignore_label: 255, prepared as 8-bit PNG, or 65535, prepared as 16-bit TIFF.
    """

    decode: Callable[[Any], np.ndarray]
    lookup: np.ndarray
    names: tuple[str, ...]
    ignore_label: int

    @property
    def suffix(self) -> str:
        """Of prepared label maps: ``".png"`` (8 bits) or ``".tif"`` (16 bits)."""
        return ".png" if self.ignore_label == IGNORE_LABEL else ".tif"

    def train_ids(self, source: Any) -> np.ndarray:
        """Read one label map as train ids, (H, W) uint8 or uint16.

        Raises:
            DatasetError: if it cannot be read, or holds a label that this dataset does not have.
        """
        raw = self.decode(source)
        train_ids = self.lookup[raw]
        refused = train_ids == _REFUSED
        if refused.any():
            raise DatasetError(
                f"{source} holds the label {int(raw[refused][0])}, which is not among "
                f"{_ranges(np.flatnonzero(self.lookup != _REFUSED))}: it is of another dataset or "
                "already converted."
            )
        return train_ids.astype(np.uint8 if self.suffix == ".png" else np.uint16)


def label_encoding(
    categories: Sequence[Category],
    decode: Callable[[Any], np.ndarray],
    *,
    ignored_raw: Iterable[int] | None = None,
    ignore_label: int = IGNORE_LABEL,
) -> LabelEncoding:
    """Make the encoding of a dataset from its categories' ``raw_id``.

    Args:
        categories: in the order of their train ids; each has a ``raw_id`` of its own.
        decode: the decoder of the dataset's format, picklable.
        ignored_raw: raw labels that become ``ignore_label``; those that are neither here nor a
            category's are refused. None: all others are ignored, for datasets whose list is a
            selection.
        ignore_label: :data:`dcp_clip.vocabulary.categories.IGNORE_LABEL` or :data:`IGNORE_LABEL_16`.

    Raises:
        ValueError: if the categories do not fit below ``ignore_label``, or two share a raw label.
    """
    raw_ids = [category.raw_id for category in categories]
    if len(categories) > ignore_label or len(set(raw_ids)) != len(raw_ids) or None in raw_ids:
        raise ValueError(
            f"{len(categories)} categories with {len(set(raw_ids) - {None})} different raw labels "
            f"cannot be encoded beside the ignored value {ignore_label}."
        )
    lookup = np.full(65536, ignore_label if ignored_raw is None else _REFUSED, dtype=np.int32)
    lookup[list(ignored_raw or ())] = ignore_label
    lookup[raw_ids] = np.arange(len(raw_ids))
    names = tuple(category.name for category in categories)
    return LabelEncoding(decode, lookup, names, ignore_label)


def read_indices(path: Path) -> np.ndarray:
    """Read an 8-bit label map, greyscale or palette: the stored values, (H, W) uint8.

    Raises:
        DatasetError: if the file cannot be read or holds colours.
    """
    return _read_pixels(path, ("L", "P"), "8-bit indices")


def read_prepared(path: Path) -> np.ndarray:
    """Read a label map that was prepared here, (H, W) uint8 or uint16."""
    return _read_pixels(path, ("L", "I;16"), "8-bit or 16-bit integers")


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map of any data set that can be trained or scored on: (H, W) integers.

    Raises:
        DatasetError: naming the file, if it cannot be read or holds colours.
    """
    kind = "a single channel of 8 or 16 bits that holds label numbers (see docs/custom_data.md)"
    return _read_pixels(Path(path), ("L", "P", "I", "I;16", "I;16B"), kind)


def read_ade_objects(path: Path) -> np.ndarray:
    """Read a ``*_seg.png`` of the full ADE20K: the object of each pixel, (H, W) uint16.

    The object's number is ``R // 10 * 256 + G``; blue tells instances apart and is not used. It
    is the position in ``objectnames`` of the dataset's index file counted from 1, 0 = none.

    Raises:
        DatasetError: if the file cannot be read or has no colours.
    """
    rgb = _read_pixels(path, ("RGB",), "RGB codes").astype(np.uint16)
    return rgb[..., 0] // 10 * 256 + rgb[..., 1]


def read_mat_label_map(path: Path) -> np.ndarray:
    """Read ``LabelMap`` of a PASCAL-Context ``.mat`` file, (H, W) uint16.

    Raises:
        DatasetError: if the file cannot be read or holds no such matrix.
    """
    # Only this dataset needs scipy, whose import takes a while.
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        labels = loadmat(path, variable_names=["LabelMap"]).get("LabelMap")
    except (MatReadError, zlib.error, OSError, EOFError, ValueError, TypeError, KeyError) as e:
        raise DatasetError(f"The label map {path} cannot be read: {e}.") from e
    if labels is None or labels.ndim != 2 or labels.dtype.kind not in "uif" or not labels.size:
        raise DatasetError(f"{path} is no label map: it has no matrix LabelMap of numbers.")
    raw = labels.astype(np.uint16)
    if not np.array_equal(raw, labels):
        raise DatasetError(f"{path} is no label map: LabelMap does not hold whole numbers >= 0.")
    return raw


@dataclass(frozen=True)
class RleLabelMap:
    """The label map of one image as run-length coded masks of COCO's kind.

    Attributes:
        name: what to call it in messages.
        height, width: of the image.
        masks: (category id, ``{"size": [height, width], "counts": ...}``) pairs. Where masks
            overlap, the later one wins, as in the Detail API and CAT-Seg's conversion.
    """

    name: str
    height: int
    width: int
    masks: tuple[tuple[int, dict], ...]

    def __str__(self) -> str:
        return self.name


def decode_rle(label_map: RleLabelMap) -> np.ndarray:
    """Draw the masks: (H, W) uint16 category ids, 0 where there is none.

    Raises:
        DatasetError: if a mask is malformed or of another size.
    """
    size = [label_map.height, label_map.width]
    raw = np.zeros(size, dtype=np.uint16)
    for category_id, rle in label_map.masks:
        try:
            if list(rle["size"]) != size:
                raise DatasetError(
                    f"{label_map} has a mask of {rle['size']} pixels (height, width), not {size}."
                )
            if isinstance(rle["counts"], list):  # not compressed
                rle = coco_mask.frPyObjects(rle, *size)
            raw[coco_mask.decode(rle) != 0] = category_id
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise DatasetError(f"{label_map} has a mask that cannot be read: {e!r}.") from e
    return raw


def _read_pixels(path: Path, modes: tuple[str, ...], kind: str) -> np.ndarray:
    try:
        with Image.open(path) as label:
            if label.mode not in modes:
                raise DatasetError(
                    f"{path} is no label map: its pixels are {label.mode}, not {kind}."
                )
            return np.array(label)
    except DatasetError:
        raise
    except Exception as e:  # Pillow's decoders raise nearly any kind
        raise DatasetError(f"The label map {path} cannot be read: {e}.") from e


def _ranges(values: np.ndarray) -> str:
    """Write sorted whole numbers as in "0-10, 12, 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
