"""Check all label maps of a data set together: the frequencies of categories, and the palettes."""

import logging
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from dcp_clip.data.label_maps import read_labels, read_palette
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.photographs import check_size
from dcp_clip.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# The number of label maps that are counted when a user's data set is first used. Counting them
# takes less than a second.
_SAMPLE = 100
_MAX_NAMES = 20


class LabelCheck:
    """Checks the files of a user's data set once, when it is first used."""

    def __init__(self, name: str, vocabulary: Vocabulary, ignore_label: int) -> None:
        """
        Args:
            name: name of the data set, for messages.
            vocabulary: its C categories.
            ignore_label: value of the ignored pixels.
        """
        self.name = name
        self.vocabulary = vocabulary
        self.ignore_label = ignore_label
        self._checked = False

    def __call__(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Check the sizes and palettes of all files, and count the labels of up to 100 of them.

        Args:
            pairs: the photographs and their label maps.

        Raises:
            DatasetError: if a file cannot be read, or a label map has another size than its
                photograph or holds other labels; see also :func:`check_palettes` and
                :func:`report_pixels`.
        """
        if self._checked:
            return
        for pair in pairs:
            check_size(*pair)
        names, files = self.vocabulary.display_names, [label for _, label in pairs]
        check_palettes(files, map(read_palette, files), self.vocabulary)
        step = -(-len(files) // _SAMPLE)
        sample = files[::step]
        pixels = sum(count_labels(file, len(names), self.ignore_label) for file in sample)
        if len(sample) < len(files) and describe_fault(pixels, names, self.ignore_label):
            # The other files decide whether the whole data set is wrong.
            sample = files
            pixels = sum(count_labels(file, len(names), self.ignore_label) for file in files)
        where = f"The data set '{self.name}'"
        if len(sample) < len(files):
            where += f" ({len(sample)} of its {len(files)} label maps were counted)"
        report_pixels(where, pixels, names, self.ignore_label)
        self._checked = True


def count_labels(path: str | Path, num_categories: int, ignore_label: int) -> np.ndarray:
    """Count the pixels of every category in a label map.

    Returns:
        (C + 1,) int64; the last entry counts the ignored pixels.

    Raises:
        DatasetError: if the file cannot be read, or holds a value that is neither a label of one
            of the C categories nor ``ignore_label``.
    """
    labels = read_labels(path)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > max(ignore_label, 65535):
        unexpected = [low if low < 0 else high]
    else:
        counts = np.bincount(labels.ravel(), minlength=max(ignore_label, num_categories) + 1)
        present = np.flatnonzero(counts)
        unexpected = present[(present >= num_categories) & (present != ignore_label)]
    if len(unexpected):
        raise DatasetError(
            f"{path} holds the label {unexpected[0]}, but there are {num_categories} categories "
            f"(labels 0 to {num_categories - 1}) and the ignored label {ignore_label}."
        )
    ignored = counts[ignore_label] if ignore_label >= num_categories else 0
    return np.append(counts[:num_categories], ignored)


def report_pixels(
    where: str,
    pixels: np.ndarray,
    names: Sequence[str],
    ignore_label: int,
    *,
    complete: bool = True,
) -> None:
    """Log how many pixels each category has, and warn of categories without pixels.

    Args:
        where: the subject of the messages, such as "train".
        pixels: (C + 1,) from :func:`count_labels`.
        names: the C categories.
        ignore_label: value of the ignored pixels.
        complete: whether every category should occur. Otherwise there is no warning.

    Raises:
        DatasetError: if all pixels are ignored, or the label maps are masks of 0 and 255.
    """
    percent = 100 * pixels / max(1, pixels.sum())
    shares = [
        f"{name} {p:.2f} ({n:,})"
        for name, p, n in zip((*names, "(ignored)"), percent, pixels.tolist(), strict=True)
    ]
    present = np.count_nonzero(pixels[:-1])
    text = (
        f"{where}: {present} of {len(names)} categories occur; % of pixels (number of pixels): "
        f"{', '.join(shares)}"
    )
    logger.info("%s", textwrap.fill(text, 100, subsequent_indent="  ", break_long_words=False))
    if fault := describe_fault(pixels, names, ignore_label):
        raise DatasetError(f"{where}: {fault}")
    absent = [name for name, n in zip(names, pixels[:-1].tolist()) if n == 0]
    if absent and complete:
        more = f" and {len(absent) - _MAX_NAMES} more" if len(absent) > _MAX_NAMES else ""
        logger.warning(
            "WARNING: %s: %d of %d categories have no pixel, so they cannot be learned or scored "
            "there: %s%s. If this is not expected, compare the numbers in the label maps with the "
            "order of the names.",
            where,
            len(absent),
            len(names),
            ", ".join(absent[:_MAX_NAMES]),
            more,
        )


def describe_fault(pixels: np.ndarray, names: Sequence[str], ignore_label: int) -> str:
    """Return why the label maps of a data set are useless; "" if they are not."""
    if not pixels[:-1].any():
        return (
            f"all pixels have the ignored label {ignore_label}, so there is nothing to learn or to "
            "score; check the numbers in the label maps."
        )
    if len(names) > 1 and pixels[-1] and not pixels[1:-1].any() and ignore_label == 255:
        return (
            f"the label maps hold only 0 ('{names[0]}') and 255 (ignored), like black-and-white "
            "masks; write the number of the second category instead of 255."
        )
    return ""


def check_palettes(
    files: Sequence[Path],
    palettes: Iterable[np.ndarray],
    vocabulary: Vocabulary | None = None,
    read: Callable[[Path], np.ndarray] = read_labels,
) -> None:
    """Check that the palettes of label maps do not contradict each other or the vocabulary.

    Programs that shrink PNG files renumber the palette of each file and keep its colours. The
    renumbered file is valid, but its indices are no longer the labels.

    Args:
        files: the label maps.
        palettes: the palette of each file, (N, 3) uint8.
        vocabulary: the categories with their colours. If the colours of the indices of a file are
            colours of categories, each must be that of its own category.
        read: reads the indices of a label map. If all palettes agree, only as many files are read
            as are needed to find two indices.

    Raises:
        DatasetError: naming the file.
    """
    distinct: dict[bytes, Path] = {}
    with_palette = []
    for file, palette in zip(files, palettes, strict=True):
        if len(palette):
            with_palette.append((file, palette))
            distinct.setdefault(palette.tobytes(), file)
    if not with_palette:
        return
    longest = max(distinct, key=len)
    # Files may store only the first colours of a common palette.
    consistent = all(longest.startswith(palette) for palette in distinct)
    if consistent:
        if vocabulary is not None:
            common = np.frombuffer(longest, np.uint8).reshape(-1, 3)
            _compare_common_palette([file for file, _ in with_palette], common, vocabulary, read)
        return
    seen: dict[int, tuple[bytes, Path]] = {}
    for file, palette in with_palette:
        used = np.unique(read(file))
        used = used[used < len(palette)].tolist()
        for index in used:
            color, other = seen.setdefault(index, (palette[index].tobytes(), file))
            if palette[index].tobytes() != color:
                raise DatasetError(
                    f"{file} gives the index {index} the colour {_rgb(palette[index])}, but "
                    f"{other} gives it {_rgb(color)}: a program has renumbered the palette of one "
                    "of the two, so its indices are not the labels; restore the original file."
                )
        if vocabulary is not None:
            _compare_with_vocabulary(file, palette, used, vocabulary)


def _compare_common_palette(
    files: Sequence[Path],
    palette: np.ndarray,
    vocabulary: Vocabulary,
    read: Callable[[Path], np.ndarray],
) -> None:
    """Compare the palette of all files with the vocabulary, by the first two indices in use."""
    used: set[int] = set()
    for file in files:
        used.update(np.unique(read(file)).tolist())
        used = {index for index in used if index < min(len(palette), len(vocabulary))}
        if len(used) > 1:
            _compare_with_vocabulary(file, palette, sorted(used), vocabulary)
            return


def _compare_with_vocabulary(
    file: Path, palette: np.ndarray, used: Sequence[int], vocabulary: Vocabulary
) -> None:
    numbers = {color: number for number, color in enumerate(vocabulary.colors)}
    found = {i: numbers.get(tuple(palette[i].tolist())) for i in used if i < len(vocabulary)}
    if len(found) < 2 or None in found.values() or len(numbers) < len(vocabulary):
        return
    for index, number in found.items():
        if number != index:
            names = vocabulary.display_names
            raise DatasetError(
                f"{file} gives the index {index} ('{names[index]}') the colour of the category "
                f"{number} ('{names[number]}'): its palette is in another order than the names, "
                "so its indices are not the labels; restore the original file or correct the order."
            )


def _rgb(color: Iterable[int]) -> str:
    return "({}, {}, {})".format(*color)
