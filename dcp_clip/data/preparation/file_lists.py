"""List the photographs and label maps in a benchmark's download."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcp_clip.data.pairing import (
    DatasetError,
    check_count,
    match_files,
    pair_images_with_labels,
)

logger = logging.getLogger(__name__)

_IMAGE_EXT = ".jpg"
_TREE_LABEL = "_seg.png"  # follows the stem of the photograph, in a tree of folders


def require_folder(folder: str | Path, advice: str = "", *, what: str = "The folder") -> None:
    """Check that a folder exists.

    Raises:
        DatasetError: if it does not.
    """
    if not Path(folder).is_dir():
        raise DatasetError(f"{what} {folder} does not exist.", advice)


def find_splits(
    source: Path,
    folders: Mapping[str, tuple[Path, Path]],
    counts: Mapping[str, int | None],
    *,
    required: Sequence[str] | None = None,
    advice: str = "",
) -> dict[str, list[tuple[Path, Path]]]:
    """List the (image, label map) files of the splits in an input folder.

    Args:
        source: the input folder.
        folders: the image folder and the label folder of each split.
        counts: required number of images of each split; None for any number.
        required: splits that must exist. None takes those that exist and logs the others.
        advice: sentence appended to errors that says where to get the data.

    Raises:
        DatasetError: if there is no split, a required split is missing, or a split is incomplete.
    """
    require_folder(source, advice, what="The input folder")
    splits = required
    if splits is None:
        splits = [s for s, pair in folders.items() if any(folder.is_dir() for folder in pair)]
        for split in folders:
            if split not in splits:
                logger.info("%s: not in %s, skipped.", split, source)
        if not splits:
            expected = " or ".join(" and ".join(map(str, pair)) for pair in folders.values())
            raise DatasetError(f"{source} holds no data set: there must be {expected}.", advice)
    return {
        split: pair_images_with_labels(*folders[split], expected_count=counts[split], advice=advice)
        for split in splits
    }


def read_ids(path: str | Path, *, expected_count: int | None = None, advice: str = "") -> list[str]:
    """Read a split file: one stem per line; text after a space is ignored.

    Raises:
        DatasetError: if the file is missing, repeats a stem, or has a different number of stems.
    """
    if not Path(path).is_file():
        raise DatasetError(f"{path} does not exist.", advice)
    lines = Path(path).read_text("utf-8-sig").splitlines()
    ids = [line.split()[0] for line in lines if line.strip()]
    if len(set(ids)) != len(ids):
        repeated = len(ids) - len(set(ids))
        raise DatasetError(f"{path} names {repeated} images more than once.", advice)
    if expected_count is not None and len(ids) != expected_count:
        raise DatasetError(f"{path} names {len(ids)} images, not {expected_count}.", advice)
    return ids


def pair_listed(
    ids: Sequence[str],
    image_dir: str | Path,
    label_dir: str | Path,
    *,
    label_ext: str = ".png",
    advice: str = "",
) -> list[tuple[Path, Path]]:
    """Find the files of a split that is given as a list of stems. Other files are ignored.

    Returns:
        Pairs (image, label), in the order of ``ids``.

    Raises:
        DatasetError: if a folder or a file is missing.
    """
    pairs = [(Path(image_dir, i + _IMAGE_EXT), Path(label_dir, i + label_ext)) for i in ids]
    for folder, files in zip((image_dir, label_dir), zip(*pairs)):
        check_files(folder, files, advice=advice)
    return pairs


def check_files(folder: str | Path, files: Sequence[Path], *, advice: str = "") -> None:
    """Check that a folder and all of `files` in it exist.

    Raises:
        DatasetError: naming the first missing file and the number of missing files.
    """
    require_folder(folder, advice)
    present = {path.name for path in Path(folder).iterdir()}
    missing = [path for path in files if path.name not in present]
    if missing:
        raise DatasetError(
            f"{missing[0]} does not exist ({len(missing)} of {len(files)} files are missing).",
            advice,
        )


def pair_in_tree(
    folder: str | Path,
    *,
    expected_count: int | None = None,
    advice: str = "",
) -> list[tuple[Path, Path]]:
    """Match images and label maps that are side by side in a tree of folders.

    Args:
        folder: root of the tree. A photograph x.jpg has the label map x_seg.png; other files are
            ignored.
        expected_count: required number of pairs; None for any number above zero.
        advice: a sentence appended to every error that says what to do.

    Returns:
        Pairs (image, label), sorted by the image's stem.

    Raises:
        DatasetError: if the folder is missing, two images have the same stem, a file has no
            partner, or the count differs.
    """
    folder = Path(folder)
    require_folder(folder, advice)
    images: dict[tuple[str, Path], Path] = {}
    labels: dict[tuple[str, Path], Path] = {}
    stems: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() == _IMAGE_EXT:
            if path.stem in stems:
                raise DatasetError(f"{stems[path.stem]} and {path} have the same stem.", advice)
            stems[path.stem] = images[path.stem, path.parent] = path
        elif path.name.endswith(_TREE_LABEL):
            labels[path.name.removesuffix(_TREE_LABEL), path.parent] = path
    pairs = match_files(
        images, labels, image_place="beside it", label_place="beside it", advice=advice
    )
    check_count(folder, len(pairs), expected_count, advice)
    return pairs
