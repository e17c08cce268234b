"""Prepare ADE20K with 150 categories (A-150) and with 847 (A-847)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import IGNORE_LABEL_16, read_pixels
from dcp_clip.data.preparation.file_lists import find_splits, pair_in_tree, require_folder
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.data.preparation.program import prepare_dataset
from dcp_clip.vocabulary.categories import load_names

A150, A847 = BENCHMARKS["ade20k_150"], BENCHMARKS["ade20k_847"]
FOLDERS = {"train": "training", "val": "validation"}
OTHER = 0
MAX_SHORT_SIDE = 512
A150_SOURCE = (
    "Photographs and label maps are in ADEChallengeData2016.zip of sceneparsing.csail.mit.edu; "
    "see datasets/README.md."
)
A847_SOURCE = (
    "ADE20K_2021_17_01 comes from groups.csail.mit.edu/vision/datasets/ADE20K, which sends a link "
    "to registered users; see datasets/README.md."
)


def prepare_ade20k_150(
    source: Path | None,
    root: Path,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    image_counts: Mapping[str, int] = A150.counts,
) -> None:
    """Write ``<root>/ade20k_150``; skip finished files.

    Args:
        source: the folder ADEChallengeData2016; None for the one in `root`.
        root: folder of all data sets.
        splits: some of "train", "val"; None for those that exist.
        workers: number of processes.
        image_counts: required number of images in each split.

    Raises:
        DatasetError: if the input is incomplete. Nothing is written unless all splits match.
    """
    source = source or root / "ADEChallengeData2016"
    folders = {
        split: (source / "images" / folder, source / "annotations" / folder)
        for split, folder in FOLDERS.items()
    }
    pairs = find_splits(source, folders, image_counts, required=splits, advice=A150_SOURCE)
    encoding = label_encoding(load_names(A150.names), read_indices, ignored_raw=[OTHER])
    prepare_dataset(root / A150.key, pairs, encoding, workers=workers)


def prepare_ade20k_847(
    source: Path | None,
    root: Path,
    *,
    splits: Sequence[str] = ("val",),
    original_size: bool = False,
    workers: int = 1,
    image_counts: Mapping[str, int | None] = A847.counts,
    max_short_side: int = MAX_SHORT_SIDE,
) -> None:
    """Write ``<root>/ade20k_847``; skip finished files.

    Args:
        source: the folder ADE20K_2021_17_01; None for the one in `root`.
        root: folder of all data sets.
        splits: some of "train", "val".
        original_size: whether to keep the size of the photographs. A prepared folder never holds
            both sizes, see ``prepared.json`` in it.
        workers: number of processes.
        image_counts: required number of images in each split; None for any number.
        max_short_side: longest allowed short side in pixels; not used with ``original_size``.

    Raises:
        DatasetError: if the input is incomplete. Nothing is written unless all splits match.
    """
    source = source or root / "ADE20K_2021_17_01"
    require_folder(source, A847_SOURCE, what="The input folder")
    pairs = {
        split: pair_in_tree(
            source / "images" / "ADE" / FOLDERS[split],
            expected_count=image_counts[split],
            advice=A847_SOURCE,
        )
        for split in splits
    }
    encoding = label_encoding(
        load_names(A847.names), read_ade_objects, ignore_label=IGNORE_LABEL_16
    )
    prepare_dataset(
        root / A847.key,
        pairs,
        encoding,
        workers=workers,
        max_short_side=None if original_size else max_short_side,
        settings={"size": "original" if original_size else f"short side <= {max_short_side}"},
    )


def read_ade_objects(path: Path) -> np.ndarray:
    """Read the object number of each pixel, (H, W) uint16, from a ``*_seg.png`` of full ADE20K.

    The number is ``R // 10 * 256 + G``. Blue distinguishes instances and is not used. The number
    is the position in ``objectnames`` of the data set's index file, counted from 1; 0 stands for
    no object.

    Raises:
        DatasetError: if the file cannot be read or has no colours.
    """
    rgb = read_pixels(path, ("RGB",), "RGB codes").astype(np.uint16)
    return rgb[..., 0] // 10 * 256 + rgb[..., 1]
