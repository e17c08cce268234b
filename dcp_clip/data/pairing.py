"""Match photographs with their label maps, one to one.

If two folders differ, Detectron2's ``load_sem_seg`` uses their intersection. After an incomplete
conversion, it would train and evaluate on fewer images with only a warning. Here a difference is an
error.
"""

import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


class DatasetError(RuntimeError):
    """A folder of a data set is missing, incomplete, or has unexpected content."""

    def __init__(self, message: str, advice: str = "") -> None:
        """
        Args:
            message: a sentence that says what is wrong.
            advice: a sentence that says what to do, appended to the message.
        """
        super().__init__(f"{message} {advice}".rstrip())


def pair_images_with_labels(
    image_dir: str | Path,
    label_dir: str | Path,
    *,
    image_ext: str | Sequence[str] = (".jpg", ".png"),
    label_ext: str | Sequence[str] = ".png",
    expected_count: int | None = None,
    advice: str = "",
) -> list[tuple[Path, Path]]:
    """Match the files of two folders by stem.

    Args:
        image_dir: folder of photographs.
        label_dir: folder of label maps with the same stems.
        image_ext: suffix or suffixes of photographs, case-insensitive. Other files are skipped.
        label_ext: suffix or suffixes of label maps.
        expected_count: required number of pairs; None for any number above zero.
        advice: a sentence appended to every error that says what to do.

    Returns:
        Pairs (image, label), sorted by stem.

    Raises:
        DatasetError: if a folder is missing, a file has no partner, or the count differs.
    """
    image_dir, label_dir = Path(image_dir), Path(label_dir)
    images = _files_by_stem(image_dir, image_ext, advice)
    labels = _files_by_stem(label_dir, label_ext, advice)
    if missing := sorted(images.keys() - labels.keys()):
        advice = f"{_other_name(label_dir, missing[0], label_ext)} {advice}".strip()
    pairs = match_files(
        images,
        labels,
        image_place=f"in {image_dir}",
        label_place=f"in {label_dir}",
        advice=advice,
    )
    check_count(image_dir, len(pairs), expected_count, advice)
    return pairs


def match_files(
    images: Mapping[Key, Path],
    labels: Mapping[Key, Path],
    *,
    image_place: str,
    label_place: str,
    advice: str = "",
) -> list[tuple[Path, Path]]:
    """Match images and label maps that have the same key.

    Args:
        images, labels: the files by key.
        image_place, label_place: where the partner should be, for messages.
        advice: a sentence appended to every error.

    Returns:
        Pairs (image, label), sorted by key.

    Raises:
        DatasetError: if a file has no partner. The message names the first such file.
    """
    for files, partners, what in (
        (images, labels, f"label map {label_place}"),
        (labels, images, f"image {image_place}"),
    ):
        unmatched = sorted(files.keys() - partners.keys())
        if unmatched:
            more = f" (and {len(unmatched) - 1} more files have none)" if unmatched[1:] else ""
            raise DatasetError(f"{files[unmatched[0]]} has no {what}{more}.", advice)
    return [(images[key], labels[key]) for key in sorted(images)]


def check_count(folder: Path, count: int, expected: int | None, advice: str = "") -> None:
    """Check the number of images of a split.

    Raises:
        DatasetError: if there is no image, or the number differs from `expected`.
    """
    if count == 0:
        raise DatasetError(f"{folder} holds no image.", advice)
    if expected is not None and count != expected:
        raise DatasetError(f"{folder} holds {count} images, not {expected}.", advice)


def _other_name(folder: Path, stem: str, ext: str | Sequence[str]) -> str:
    """Return a sentence about a file that may be the label map of an image, "" if there is none."""
    wanted = stem + (ext if isinstance(ext, str) else ext[0])
    for path in sorted(folder.iterdir()):
        if stem in path.stem and not path.name.startswith("."):
            return f"There is '{path.name}', but its name must be '{wanted}'."
    return ""


def _files_by_stem(folder: Path, ext: str | Sequence[str], advice: str) -> dict[str, Path]:
    suffixes = {ext.lower()} if isinstance(ext, str) else {e.lower() for e in ext}
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist.", advice)
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # Hidden files are unfinished writes, or "._x.png" from archives made on macOS.
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        # macOS decomposes the letters of file names that have an accent.
        stem = unicodedata.normalize("NFC", path.stem)
        if stem in files:
            raise DatasetError(f"{files[stem]} and {path.name} have the same stem.", advice)
        files[stem] = path
    return files
