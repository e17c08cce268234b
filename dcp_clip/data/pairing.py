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


def pair_listed(
    ids: Sequence[str],
    image_dir: str | Path,
    label_dir: str | Path,
    *,
    image_ext: str = ".jpg",
    label_ext: str = ".png",
    advice: str = "",
) -> list[tuple[Path, Path]]:
    """Find the files of a split that is a list of stems; what else the folders hold is not seen.

    Returns:
        Pairs (image, label), in the order of ``ids``.

    Raises:
        DatasetError: if a folder or a file is missing.
    """
    pairs = [(Path(image_dir, i + image_ext), Path(label_dir, i + label_ext)) for i in ids]
    for folder, files in zip((image_dir, label_dir), zip(*pairs)):
        check_files(folder, files, advice=advice)
    return pairs


def check_files(folder: str | Path, files: Sequence[Path], *, advice: str = "") -> None:
    """Refuse a folder that is missing, or in which one of the files is.

    Raises:
        DatasetError: naming the first of the missing files and how many there are.
    """
    if not Path(folder).is_dir():
        raise _error(f"The folder {folder} does not exist.", advice)
    present = {path.name for path in Path(folder).iterdir()}
    missing = [path for path in files if path.name not in present]
    if missing:
        raise _error(
            f"{missing[0]} does not exist ({len(missing)} of {len(files)} files are missing).",
            advice,
        )


def pair_in_tree(
    folder: str | Path,
    *,
    image_ext: str = ".jpg",
    label_ending: str = "_seg.png",
    expected_count: int | None = None,
    advice: str = "",
) -> list[tuple[Path, Path]]:
    """Match images and label maps that lie side by side in a tree of folders.

    Args:
        folder: root of the tree.
        image_ext: suffix of photographs; other files are not seen.
        label_ending: what the name of a label map has after its image's stem.
        expected_count: the number of pairs there must be; None for any number above zero.
        advice: a sentence appended to every error, saying what to do.

    Returns:
        Pairs (image, label), sorted by the image's stem.

    Raises:
        DatasetError: as :func:`pair_images_with_labels` does.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _error(f"The folder {folder} does not exist.", advice)
    images: dict[str, Path] = {}
    labels: set[Path] = set()
    for path in sorted(folder.rglob("*")):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() == image_ext:
            if path.stem in images:
                raise _error(f"{images[path.stem]} and {path} have the same stem.", advice)
            images[path.stem] = path
        elif path.name.endswith(label_ending):
            labels.add(path)
    pairs = [
        (image, image.with_name(stem + label_ending)) for stem, image in sorted(images.items())
    ]
    for lonely, what in (
        (sorted(image for image, label in pairs if label not in labels), "label map"),
        (sorted(labels - {label for _, label in pairs}), "image"),
    ):
        if lonely:
            more = f" (and {len(lonely) - 1} more files have none)" if len(lonely) > 1 else ""
            raise _error(f"{lonely[0]} has no {what} beside it{more}.", advice)
    if not pairs:
        raise _error(f"{folder} holds no image.", advice)
    if expected_count is not None and len(pairs) != expected_count:
        raise _error(f"{folder} holds {len(pairs)} images, not {expected_count}.", advice)
    return pairs


def read_ids(path: str | Path, *, expected_count: int | None = None, advice: str = "") -> list[str]:
    """Read a split file: one stem a line, what follows a space is not seen.

    Raises:
        DatasetError: if the file is missing, names a stem twice, or has another number of them.
    """
    if not Path(path).is_file():
        raise _error(f"{path} does not exist.", advice)
    ids = [line.split()[0] for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    if len(set(ids)) != len(ids):
        raise _error(f"{path} names {len(ids) - len(set(ids))} images more than once.", advice)
    if expected_count is not None and len(ids) != expected_count:
        raise _error(f"{path} names {len(ids)} images, not {expected_count}.", advice)
    return ids


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
