"""Category lists as data: the benchmarks' lists in ``names/*.json``, and files of users.

Each benchmark has one file. The preparation of the labels (``raw_id`` to ``train_id``), the
registration (names and colours) and :class:`dcp_clip.vocabulary.Vocabulary` all read it.
"""

import codecs
from collections.abc import Callable
from pathlib import Path

from dcp_clip.vocabulary.category import IGNORE_LABEL, Category, VocabularyError, shortened
from dcp_clip.vocabulary.entries import categories_of, parse_json, parse_yaml
from dcp_clip.vocabulary.lists import parse_label_map, parse_lines, parse_table, parse_xml

__all__ = [
    "IGNORE_LABEL",
    "READERS",
    "Category",
    "VocabularyError",
    "load_names",
    "read_categories",
]

_NAMES_DIR = Path(__file__).parent / "names"
# The reader of each kind of file, from its text and its name to categories.
READERS: dict[str, Callable[[str, str], tuple[Category, ...]]] = {
    ".txt": parse_lines,
    ".names": parse_lines,
    ".csv": parse_table,
    ".tsv": parse_table,
    ".json": lambda text, file: categories_of(parse_json(text, file), file),
    ".yaml": lambda text, file: categories_of(parse_yaml(text, file), file),
    ".yml": lambda text, file: categories_of(parse_yaml(text, file), file),
    ".xml": parse_xml,
    ".pbtxt": parse_label_map,
}


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


def read_categories(path: str | Path) -> tuple[Category, ...]:
    """Read a category list from a file in UTF-8, or in UTF-16 with a byte order mark.

    The suffix selects the format:

    - .txt, .names: one category in each line, with ',' or ';' between synonyms. Blank lines are
      skipped. A '#' at the start of a line or after a space begins a comment. CVAT's labelmap.txt
      and lists with a number in each line are recognised.
    - .csv, .tsv: one category in each line, the name and then synonyms. A header line can name
      columns for names, synonyms, ids and colours.
    - .json, .yaml, .yml: ``{"categories": [{"name": ..., "synonyms": [...], "train_id": ...,
      "raw_id": ..., "color": [r, g, b], "official": ...}, ...]}``, of which only ``name`` is
      required, or a list of names or of lists of synonyms. The files of COCO, YOLO, CVAT, Label
      Studio and Hugging Face are recognised, see
      :func:`dcp_clip.vocabulary.entries.categories_of`.
    - .xml: a labelling config of Label Studio, or CVAT's annotations.
    - .pbtxt: a label map of TensorFlow's detection models.

    Raises:
        VocabularyError: if the file does not exist or does not have this format; the message
            contains the file and the entry.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise VocabularyError(
            f"The vocabulary file {path} must end in {', '.join(READERS)}. A .txt file has one "
            "category in each line."
        )
    categories = reader(_read_text(path), str(path))
    if not categories:
        raise VocabularyError(f"The vocabulary file {path} contains no category.")
    return categories


def _read_text(path: Path) -> str:
    try:
        if not path.exists():
            raise VocabularyError(f"The vocabulary file {path} does not exist.")
        if not path.is_file():
            raise VocabularyError(f"The vocabulary file {path} is a folder or device, not a file.")
        content = path.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise VocabularyError(
            f"The vocabulary file {path} is not UTF-8 text (line {line}): save it as UTF-8."
        ) from e
    except VocabularyError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        reason = getattr(e, "strerror", None) or e
        name = shortened(ascii(str(path)), 200)
        raise VocabularyError(f"The vocabulary file {name} cannot be read: {reason}.") from e
