"""Categories, and the rules for their names."""

import functools
import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# Pixels with this value in prepared label maps are ignored in training and evaluation.
IGNORE_LABEL = 255
# The mark of a negative name, also in full width.
NEGATIVE_MARKS = ("!", "！")
# Soft hyphen, zero-width space, word joiner, byte order mark: copied text has them unseen.
INVISIBLE = "\u00ad\u200b\u2060\ufeff"
# Joiners and direction marks are invisible too, but within a word or an emoji they have a meaning.
_INVISIBLE_AT_ENDS = "\u200c\u200d\u200e\u200f"


class VocabularyError(ValueError):
    """Category names or prompt templates are invalid; the message names the invalid entry."""


@dataclass(frozen=True)
class Category:
    """One category of a data set.

    Attributes:
        name: the category's name in usual spelling, for prompts and legends.
        synonyms: other names, possibly none; does not contain ``name``.
        train_id: value in prepared label maps, 0 to C-1; equal to the position in the list.
        raw_id: value in the data set's own label files; None if there are no such files.
        color: RGB, 0 to 255; None for the default colour.
        official: the benchmark's own spelling ("tvmonitor", "wall-other"), which its tables and
            other projects use; often equal to ``name``. Prompts never contain it.
    """

    name: str
    synonyms: tuple[str, ...]
    train_id: int
    raw_id: int | None
    color: tuple[int, int, int] | None
    official: str

    @property
    def all_names(self) -> tuple[str, ...]:
        """The name, followed by the synonyms."""
        return (self.name, *self.synonyms)


def clean_category(entry: str | Sequence[str], position: int) -> tuple[str, ...]:
    """Normalise the names of one category with :func:`clean_name`, and remove duplicates.

    Args:
        entry: one name, or a sequence of synonyms.
        position: position of the category in the vocabulary, for error messages.

    Raises:
        VocabularyError: if there is no name, or a name is invalid.
    """
    where = f"Category {position} (counting from 0)"
    names = [entry] if isinstance(entry, str) else entry
    if not isinstance(names, Sequence):
        raise VocabularyError(f"{where} must be a name or a list of names, got {entry!r}.")
    if len(names) == 0:
        raise VocabularyError(f"{where} has no name.")
    return tuple(dict.fromkeys(clean_name(name, where) for name in names))


def clean_name(name: str, where: str) -> str:
    """Convert to Unicode NFC, replace each run of white space by one space, and strip the ends.

    Characters that cannot be seen, such as zero-width spaces, are removed.

    Args:
        name: the name.
        where: where the name comes from, for error messages.

    Raises:
        VocabularyError: if the name is not a string, has no visible character, or has characters
            that cannot be printed.
    """
    if not isinstance(name, str):
        raise VocabularyError(
            f"{where} has a name that is not a string: {shortened(repr(name))}. Put it in quotes."
        )
    visible = name.translate(str.maketrans("", "", INVISIBLE))
    cleaned = " ".join(unicodedata.normalize("NFC", visible).split())
    cleaned = cleaned.strip(f" {_INVISIBLE_AT_ENDS}")
    kinds = {unicodedata.category(character) for character in cleaned}
    if not kinds - {"Cf", "Zs"}:  # spaces and invisible formatting
        raise VocabularyError(f"{where} has an empty name.")
    if kinds & {"Cc", "Cs"}:  # control characters, halves of a surrogate pair
        raise VocabularyError(
            f"{where} has the name {shortened(ascii(cleaned))} with characters that are not text."
        )
    return cleaned


def split_negatives(
    categories: Sequence[tuple[str, ...]],
) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...]]:
    """Remove the mark "!" of negative categories: ("!hand", "!palm") or ("!hand", "palm").

    Args:
        categories: the names of each category.

    Returns:
        the names without marks; the positions of the negative categories.

    Raises:
        VocabularyError: if a mark is not at the first name, a name is empty without it, or all
            categories are negative.
    """
    if not any(name.startswith(NEGATIVE_MARKS) for names in categories for name in names):
        return tuple(categories), ()
    plain, negatives = [], []
    for i, names in enumerate(categories):
        marked = [name for name in names if name.startswith(NEGATIVE_MARKS)]
        if marked and marked[0] != names[0]:
            raise VocabularyError(
                f"Category {i} has the mark '!' at '{shortened(marked[0])}' but not at its first "
                f"name '{shortened(names[0])}'; write it at the first name, or make two categories."
            )
        if marked:
            negatives.append(i)
        plain.append(
            tuple(
                dict.fromkeys(
                    clean_name(n[1:], f"Category {i}") if n in marked else n for n in names
                )
            )
        )
    if len(negatives) == len(plain):
        raise VocabularyError(
            "All categories have the mark '!', so there is nothing to find; add a name without it."
        )
    return tuple(plain), tuple(negatives)


def with_marks(
    categories: Sequence[tuple[str, ...]], negatives: Sequence[int]
) -> list[tuple[str, ...]]:
    """Undo :func:`split_negatives`: add the mark "!" to the first name of negative categories."""
    return [
        (f"{NEGATIVE_MARKS[0]}{first}" if i in negatives else first, *others)
        for i, (first, *others) in enumerate(categories)
    ]


def shortened(text: str, length: int = 80) -> str:
    """Return the beginning of a long text, for error messages."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def check_distinct(synonyms: Sequence[tuple[str, ...]], *, warn_shared: bool = True) -> None:
    """Check that no two categories have the same names, and warn if some share a name.

    Args:
        synonyms: the names of each category.
        warn_shared: whether to warn about shared names. A benchmark's list cannot be changed, so
            its shared names (three kinds of "bag" in ADE20K) need no warning.

    Raises:
        VocabularyError: if categories have the same set of names; the message names all of them.
    """
    positions: dict[frozenset[str], list[int]] = {}
    for i, category in enumerate(synonyms):
        positions.setdefault(frozenset(category), []).append(i)
    repeated = [
        f"{', '.join(map(str, at[:-1]))} and {at[-1]} are '{', '.join(synonyms[at[0]])}'"
        for at in positions.values()
        if len(at) > 1
    ]
    if repeated:
        raise VocabularyError(
            f"Categories are repeated: the categories {'; '.join(repeated)} (counting from 0). "
            "Keep one of each."
        )
    if not warn_shared:
        return
    # CLIP's tokenizers ignore case, so names that differ only in case have the same features.
    count = Counter(name for category in synonyms for name in {n.casefold() for n in category})
    shared = [name for name, times in count.items() if times > 1]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        warn_once(
            f"Several categories share a name, so the model cannot tell them apart by it: "
            f"{', '.join(shared[:5])}{more}."
        )


def distinct_titles(synonyms: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return a title for each category: its first name, made unique with a synonym.

    ADE20K's "bag", "bag, traveling bag" and "bag, handbag" become "bag", "bag (traveling bag)" and
    "bag (handbag)". Rows of tables and entries of legends then have different titles.

    Args:
        synonyms: the names of each category; no two categories have the same set of names.
    """
    first = Counter(category[0] for category in synonyms)
    every = Counter(name for category in synonyms for name in category)
    titles = []
    for name, *others in synonyms:
        if first[name] > 1 and others:
            own = next((other for other in others if every[other] == 1), ", ".join(others))
            name = f"{name} ({own})"
        titles.append(name)
    return tuple(titles)


@functools.lru_cache(maxsize=256)
def warn_once(message: str) -> None:
    """Log a warning, and skip it when it comes again."""
    logger.warning(message)
