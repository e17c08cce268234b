"""Category lists as data: those of the benchmarks in ``dcp_clip/names/*.json``, and users' own.

A benchmark's file is read by everything that needs its categories: the prepare script (``raw_id``
to ``train_id``), the registration (names and colours) and :class:`dcp_clip.vocabulary.Vocabulary`.
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

# The value of pixels that count for nothing, in prepared label maps.
IGNORE_LABEL = 255

_NAMES_DIR = Path(__file__).parent / "names"


class VocabularyError(ValueError):
    """Names or prompt templates that cannot be used, with the entry at fault."""


@dataclass(frozen=True)
class Category:
    """One category of a dataset.

    Attributes:
        name: the benchmark's name, spelled as people write it: it goes into prompts and legends.
        synonyms: other names, possibly none; ``name`` is not repeated among them.
        train_id: the value in prepared label maps, 0 ... C-1, equal to the position in the list.
        raw_id: the value in the dataset's own files, None if the list has no dataset.
        color: RGB, 0 ... 255, None for the default palette.
        official: the benchmark's own spelling ("tvmonitor", "wall-other"), to look up its tables
            and other projects' results by; equal to ``name`` for most. Never prompted with.
    """

    name: str
    synonyms: tuple[str, ...]
    train_id: int
    raw_id: int | None
    color: tuple[int, int, int] | None
    official: str

    @property
    def all_names(self) -> tuple[str, ...]:
        """The name, then the synonyms."""
        return (self.name, *self.synonyms)


def load_names(dataset: str) -> tuple[Category, ...]:
    """Return the categories of a dataset that ships with the package, e.g. ``"camvid_11"``.

    Raises:
        VocabularyError: if no such list ships with the package.
    """
    path = _NAMES_DIR / f"{dataset}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _NAMES_DIR.glob("*.json")))
        raise VocabularyError(f"No category list named '{dataset}': choose one of {known}.")
    return read_categories(path)


def split_names(text: str) -> list[list[str]]:
    """Split ``"sky; tree; car, automobile"`` into one list of names a category.

    ';' or a new line ends a category, ',' separates its synonyms. Without any ';' or new line
    commas separate categories. Blank lines and what follows a last ';' of a line are nothing.
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

    .txt: one category a line, ',' or ';' between synonyms; blank lines are skipped, and so is
    everything from a '#' at the start of a line or after a space.

    .json: ``{"categories": [{"name": ..., "synonyms": [...], "train_id": ..., "raw_id": ...,
    "color": [r, g, b], "official": ...}, ...]}``; only ``name`` is required, so that users can
    write one by hand.
    A plain list of names, or of lists of synonyms, is read as well.

    Raises:
        VocabularyError: naming the file and the entry, if the file is missing or not as described.
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
        raise VocabularyError(f"The vocabulary file {path} holds no category.")
    return tuple(_parse_entry(entry, i, path) for i, entry in enumerate(entries))


def clean_category(entry: str | Sequence[str], position: int) -> tuple[str, ...]:
    """The names of a category in their one spelling, each once; see :func:`clean_name`.

    Args:
        entry: a name, or names of one category.
        position: of the category, for messages.

    Raises:
        VocabularyError: if there is no name.
    """
    where = f"Category {position} (counting from 0)"
    names = [entry] if isinstance(entry, str) else entry
    if not isinstance(names, Sequence):
        raise VocabularyError(f"{where} is no name and no list of names: {entry!r}.")
    if len(names) == 0:
        raise VocabularyError(f"{where} has no name.")
    return tuple(dict.fromkeys(clean_name(name, where) for name in names))


def clean_name(name: str, where: str) -> str:
    """Unicode NFC, runs of white space made one space, none at the ends.

    Raises:
        VocabularyError: telling `where` the name is, if it is empty or no string.
    """
    if not isinstance(name, str):
        raise VocabularyError(f"{where} has a name that is no string: {name!r}.")
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not cleaned:
        raise VocabularyError(f"{where} has an empty name.")
    return cleaned


def check_distinct(synonyms: Sequence[tuple[str, ...]], *, warn_shared: bool = True) -> None:
    """Refuse categories of the same names; log a warning if some share a name.

    Args:
        synonyms: the names of each category.
        warn_shared: whether to log; not for a benchmark's list, which is as it is (ADE20K's have
            three kinds of "bag").

    Raises:
        VocabularyError: naming the two categories.
    """
    first_position: dict[frozenset[str], int] = {}
    for i, category in enumerate(synonyms):
        j = first_position.setdefault(frozenset(category), i)
        if j != i:
            raise VocabularyError(
                f"The categories {j} and {i} (counting from 0) are both '{', '.join(category)}': "
                "remove one."
            )
    if not warn_shared:
        return
    # CLIP's tokenizers ignore case, so names that differ in case only are one name to them.
    count = Counter(name for category in synonyms for name in {n.casefold() for n in category})
    shared = [name for name, times in count.items() if times > 1]
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        _warn_once(
            f"Several categories share a name, which the model can give to only one of them: "
            f"{', '.join(shared[:5])}{more}."
        )


def distinct_titles(synonyms: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return one title a category: its first name, told apart where several have the same.

    ADE20K's "bag", "bag, traveling bag" and "bag, handbag" become "bag", "bag (traveling bag)" and
    "bag (handbag)", so that no two rows of a table or entries of a legend read the same.

    Args:
        synonyms: the names of each category; no two with the same names.
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
            raise VocabularyError(f"{path}, line {number}: an empty name in '{line}'.")
    if len(entries) == 1 and len(entries[0]) > 1:
        logger.warning("%s has one line: its names are the synonyms of one category.", path)
    return entries


def _json_entries(text: str, path: Path) -> list:
    try:
        content = json.loads(text)
    except ValueError as e:
        raise VocabularyError(f"{path} is not valid JSON: {e}.") from e
    entries = content.get("categories") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise VocabularyError(f'{path} must hold {{"categories": [...]}} or a list of names.')
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
        # Label maps store the train_id: a list in another order would mislabel every pixel.
        raise VocabularyError(
            f"{where} ('{entry['name']}'): train_id is {entry['train_id']}, but train_ids must "
            f"count 0, 1, 2, ... in the order of the list."
        )
    raw_id = entry.get("raw_id")
    if raw_id is not None and (not isinstance(raw_id, int) or isinstance(raw_id, bool)):
        raise VocabularyError(
            f"{where} ('{entry['name']}'): raw_id {raw_id!r} is not a whole number."
        )
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
