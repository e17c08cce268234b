"""Category lists as data: the benchmarks' lists in ``names/*.json``, and files of users.

Each benchmark has one file. The preparation of the labels (``raw_id`` to ``train_id``), the
registration (names and colours) and :class:`dcp_clip.vocabulary.Vocabulary` all read it.
"""

import functools
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

# Pixels with this value in prepared label maps are ignored in training and evaluation.
IGNORE_LABEL = 255

_NAMES_DIR = Path(__file__).parent / "names"


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


def load_names(dataset: str) -> tuple[Category, ...]:
    """Return a category list that ships with the package, for example ``"camvid_11"``.

    Raises:
        VocabularyError: if the package has no list of this name.
    """
    path = _NAMES_DIR / f"{dataset}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _NAMES_DIR.glob("*.json")))
        raise VocabularyError(f"There is no category list '{dataset}'. Choose one of {known}.")
    return read_categories(path)


def split_names(text: str) -> list[list[str]]:
    """Split ``"sky; tree; car, automobile"`` into one list of names for each category.

    Semicolons and line breaks separate categories, commas separate synonyms. A string without
    semicolons and line breaks is different: there, commas separate categories. Blank lines and a
    semicolon at the end of a line do not add a category.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1 and ";" not in lines[0]:
        return [[name] for name in lines[0].split(",")]
    categories = []
    for line in lines:
        parts = line.split(";")
        categories += parts if parts[-1].strip() else parts[:-1]
    return [category.split(",") for category in categories]


def read_categories(path: str | Path) -> tuple[Category, ...]:
    """Read a category list from a .txt or .json file in UTF-8.

    .txt: one category in each line, with ',' or ';' between synonyms. Blank lines are skipped. A
    '#' at the start of a line or after a space begins a comment.

    .json: ``{"categories": [{"name": ..., "synonyms": [...], "train_id": ..., "raw_id": ...,
    "color": [r, g, b], "official": ...}, ...]}``. Only ``name`` is required. A plain list of names,
    or of lists of synonyms, is also accepted.

    Raises:
        VocabularyError: if the file does not exist or does not have this format; the message
            contains the file and the entry.
    """
    path = Path(path)
    if path.suffix.lower() not in (".txt", ".json"):
        raise VocabularyError(f"The vocabulary file {path} must end in .txt or .json.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as e:
        raise VocabularyError(f"The vocabulary file {path} does not exist.") from e
    except (OSError, UnicodeDecodeError) as e:
        raise VocabularyError(f"The vocabulary file {path} cannot be read as UTF-8: {e}") from e
    entries = _lines(text, path) if path.suffix.lower() == ".txt" else _json_entries(text, path)
    if not entries:
        raise VocabularyError(f"The vocabulary file {path} contains no category.")
    return tuple(_parse_entry(entry, i, path) for i, entry in enumerate(entries))


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

    Args:
        name: the name.
        where: where the name comes from, for error messages.

    Raises:
        VocabularyError: if the name is empty or not a string.
    """
    if not isinstance(name, str):
        raise VocabularyError(f"{where} has a name that is not a string: {name!r}.")
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not cleaned:
        raise VocabularyError(f"{where} has an empty name.")
    return cleaned


def check_distinct(synonyms: Sequence[tuple[str, ...]], *, warn_shared: bool = True) -> None:
    """Check that no two categories have the same names, and warn if some share a name.

    Args:
        synonyms: the names of each category.
        warn_shared: whether to warn about shared names. A benchmark's list cannot be changed, so
            its shared names (three kinds of "bag" in ADE20K) need no warning.

    Raises:
        VocabularyError: if two categories have the same set of names.
    """
    first_position: dict[frozenset[str], int] = {}
    for i, category in enumerate(synonyms):
        j = first_position.setdefault(frozenset(category), i)
        if j != i:
            raise VocabularyError(
                f"The categories {j} and {i} (counting from 0) are both '{', '.join(category)}'. "
                "Remove one of them."
            )
    if not warn_shared:
        return
    # CLIP's tokenizers ignore case, so names that differ only in case have the same features.
    count = Counter(name for category in synonyms for name in {n.casefold() for n in category})
    shared = [name for name, times in count.items() if times > 1]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        _warn_once(
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
def _warn_once(message: str) -> None:
    logger.warning(message)


def _lines(text: str, path: Path) -> list[list[str]]:
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        entries.append(re.split("[,;]", line))
        if not all(name.strip() for name in entries[-1]):
            raise VocabularyError(f"{path}, line {number}: '{line}' contains an empty name.")
    if len(entries) == 1 and len(entries[0]) > 1:
        logger.warning(
            "%s has only one line: its names are read as synonyms of one category.", path
        )
    return entries


def _json_entries(text: str, path: Path) -> list:
    try:
        content = json.loads(text)
    except ValueError as e:
        raise VocabularyError(f"{path} is not valid JSON: {e}.") from e
    entries = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise VocabularyError(f'{path} must contain {{"categories": [...]}} or a list of names.')
    return entries


def _parse_entry(entry: object, position: int, path: Path) -> Category:
    where = f"{path}, category {position}"
    if isinstance(entry, str):
        entry = {"name": entry}
    elif isinstance(entry, list) and entry:
        entry = {"name": entry[0], "synonyms": entry[1:]}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise VocabularyError(f"{where}: expected an object with a 'name', got {entry!r}.")
    unknown = set(entry) - {"name", "synonyms", "train_id", "raw_id", "color", "official"}
    if unknown:
        raise VocabularyError(f"{where} ('{entry['name']}'): unknown key {sorted(unknown)[0]!r}.")

    synonyms = entry.get("synonyms") or []
    if not isinstance(synonyms, list) or not all(isinstance(s, str) for s in synonyms):
        raise VocabularyError(f"{where} ('{entry['name']}'): 'synonyms' must be a list of strings.")
    if entry.get("train_id", position) != position:
        # Label maps contain train_ids, so a list in another order would give wrong labels.
        raise VocabularyError(
            f"{where} ('{entry['name']}'): train_id is {entry['train_id']}, but the train_ids must "
            f"be 0, 1, 2, ... in the order of the list."
        )
    raw_id = entry.get("raw_id")
    if raw_id is not None and (not isinstance(raw_id, int) or isinstance(raw_id, bool)):
        raise VocabularyError(f"{where} ('{entry['name']}'): raw_id {raw_id!r} is not an integer.")
    color = entry.get("color")
    if color is not None and not isinstance(color, list):
        raise VocabularyError(f"{where} ('{entry['name']}'): 'color' must be [red, green, blue].")
    official = entry.get("official", entry["name"])
    if not isinstance(official, str):
        raise VocabularyError(f"{where} ('{entry['name']}'): 'official' must be a string.")
    return Category(
        name=entry["name"],
        synonyms=tuple(synonyms),
        train_id=position,
        raw_id=raw_id,
        color=None if color is None else tuple(color),
        official=official,
    )
