"""Convert a benchmark's own label numbers to train ids."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcp_clip.data.label_maps import read_pixels
from dcp_clip.data.pairing import DatasetError
from dcp_clip.vocabulary.categories import IGNORE_LABEL, Category

_REFUSED = -1


@dataclass(frozen=True)
class LabelEncoding:
    """How to convert a benchmark's label maps to train ids. Made by :func:`label_encoding`.

    Attributes:
        decode: reads one label map: (H, W) uint8 or uint16 raw labels.
        lookup: (65536,) int32, the train id of each raw label, -1 for labels that must not occur.
        names: names of the train ids 0 ... C-1.
        ignore_label: 255 for 8-bit PNG, or 65535 for 16-bit TIFF.
    """

    decode: Callable[[Any], np.ndarray]
    lookup: np.ndarray
    names: tuple[str, ...]
    ignore_label: int

    @property
    def suffix(self) -> str:
        """Suffix of prepared label maps: ``".png"`` (8 bits) or ``".tif"`` (16 bits)."""
        return ".png" if self.ignore_label == IGNORE_LABEL else ".tif"

    def train_ids(self, source: Any) -> np.ndarray:
        """Read one label map as train ids, (H, W) uint8 or uint16.

        Raises:
            DatasetError: if it cannot be read, or holds a label that must not occur.
        """
        raw = self.decode(source)
        train_ids = self.lookup[raw]
        refused = train_ids == _REFUSED
        if refused.any():
            raise DatasetError(
                f"{source} holds the label {int(raw[refused][0])}, which is not among "
                f"{_ranges(np.flatnonzero(self.lookup != _REFUSED))}: it belongs to another data "
                "set or is already converted."
            )
        return train_ids.astype(np.uint8 if self.suffix == ".png" else np.uint16)


def label_encoding(
    categories: Sequence[Category],
    decode: Callable[[Any], np.ndarray],
    *,
    ignored_raw: Iterable[int] | None = None,
    ignore_label: int = IGNORE_LABEL,
) -> LabelEncoding:
    """Make the encoding of a benchmark from the ``raw_id`` of its categories.

    Args:
        categories: in the order of their train ids, each with its own ``raw_id``.
        decode: reads a label map in the benchmark's format; must be picklable.
        ignored_raw: raw labels that become ``ignore_label``. Any other label without a category is
            an error. None: all labels without a category are ignored, for benchmarks that select
            some categories from more.
        ignore_label: :data:`dcp_clip.vocabulary.categories.IGNORE_LABEL` or
            :data:`dcp_clip.data.label_maps.IGNORE_LABEL_16`.

    Raises:
        ValueError: if there are more categories than ``ignore_label``, or two have the same
            ``raw_id``.
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


def with_background(encoding: LabelEncoding) -> LabelEncoding:
    """Return the encoding in which ignored pixels are category 0, the background.

    The other train ids increase by 1. Labels that must not occur stay errors.
    """
    ignored, refused = encoding.lookup == encoding.ignore_label, encoding.lookup == _REFUSED
    lookup = np.select([ignored, refused], [0, _REFUSED], encoding.lookup + 1)
    return replace(encoding, lookup=lookup.astype(np.int32), names=("background", *encoding.names))


def read_indices(path: Path) -> np.ndarray:
    """Read an 8-bit greyscale or palette label map: the stored values, (H, W) uint8.

    Raises:
        DatasetError: if the file cannot be read or holds colours.
    """
    return read_pixels(path, ("L", "P"), "8-bit indices")


def _ranges(values: np.ndarray) -> str:
    """Format sorted whole numbers as in "0-10, 12, 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
