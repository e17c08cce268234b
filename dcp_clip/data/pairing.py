"""Which label map belongs to which photograph, told strictly.

Detectron2's ``load_sem_seg`` takes the intersection of the two folders when they differ, so that a
half-finished conversion trains and evaluates on fewer images with no more than a warning. Here a
difference is an error.
"""

from collections.abc import Sequence
from pathlib import Path


class DatasetError(RuntimeError):
    """A dataset folder that is missing, incomplete or holds what it must not hold."""


def pair_images_with_labels(
    image_dir: str | Path,
    label_dir: str | Path,
    *,
    image_ext: str | Sequence[str] = (".jpg", ".png"),
    label_ext: str | Sequence[str] = ".png",
    expected_count: int | None = None,
    advice: str = "",
) -> list[tuple[Path, Path]]:
    """Match the files of two folders by stem, one to one.

    Args:
        image_dir: folder of photographs.
        label_dir: folder of label maps of the same stems.
        image_ext: suffix or suffixes of photographs, case-insensitive; other files are not seen.
        label_ext: suffix or suffixes of label maps.
        expected_count: the number of pairs there must be; None for any number above zero.
        advice: a sentence appended to every error, saying what to do.

    Returns:
        Pairs (image, label), sorted by stem.

    Raises:
        DatasetError: if a folder is missing, a file has no partner, or the count is another.
    """
    image_dir, label_dir = Path(image_dir), Path(label_dir)
    images = _files_by_stem(image_dir, image_ext, advice)
    labels = _files_by_stem(label_dir, label_ext, advice)
    for files, partners, what, partner_dir in (
        (images, labels, "label map", label_dir),
        (labels, images, "image", image_dir),
    ):
        lonely = sorted(files.keys() - partners.keys())
        if lonely:
            more = f" (and {len(lonely) - 1} more files have none)" if len(lonely) > 1 else ""
            raise _error(f"{files[lonely[0]]} has no {what} in {partner_dir}{more}.", advice)
    if not images:
        raise _error(f"{image_dir} holds no image.", advice)
    if expected_count is not None and len(images) != expected_count:
        raise _error(f"{image_dir} holds {len(images)} images, not {expected_count}.", advice)
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def _files_by_stem(folder: Path, ext: str | Sequence[str], advice: str) -> dict[str, Path]:
    suffixes = {ext.lower()} if isinstance(ext, str) else {e.lower() for e in ext}
    if not folder.is_dir():
        raise _error(f"The folder {folder} does not exist.", advice)
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # Hidden files are unfinished writes and the like ("._x.png" of a Mac's archive).
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise _error(f"{files[path.stem]} and {path.name} have the same stem.", advice)
        files[path.stem] = path
    return files


def _error(sentence: str, advice: str) -> DatasetError:
    return DatasetError(f"{sentence} {advice}".rstrip())
