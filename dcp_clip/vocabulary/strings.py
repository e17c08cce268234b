"""Parse vocabularies in strings, and refuse strings that are probably not names."""

import contextlib
import json
import re
from pathlib import Path

from dcp_clip.vocabulary.category import INVISIBLE, NEGATIVE_MARKS, VocabularyError, shortened
from dcp_clip.vocabulary.entries import categories_of, parse_json, parse_yaml

# Separators of Chinese, Japanese, Arabic and full-width text; invisible characters are removed.
FULL_WIDTH = str.maketrans("；؛，、،｜", ";;,,,|", INVISIBLE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "„": "“", "«": "»", "「": "」"}
# A name does not begin with one of these, but it may begin with an apostrophe.
OPENING_QUOTES = ('"', "“", "„", "«")
_FILE_SUFFIXES = frozenset(
    "txt names csv tsv json jsonl yaml yml xml pbtxt data cfg ini toml conf list lst md rst html "
    "htm pdf doc docx odt rtf xls xlsx ods ppt pptx log zip tar gz tgz bz2 xz 7z rar npy npz pkl "
    "pickle pt pth ckpt onnx safetensors bin h5 hdf5 parquet arrow db sqlite py ipynb sh "
    "jpg jpeg png gif bmp tif tiff webp avif heic heif svg eps ppm pgm mp4 avi mov mkv".split()
)
_ADVICE_FOR_FILES = "If the file is a list of names, end its name in .txt, .csv, .json or .yaml."
_EXAMPLE = '"sky; tree; car, automobile"'


def has_file_suffix(text: str) -> bool:
    """Whether a text ends like the name of a file, for example in ".csv" or ".jpg"."""
    _, dot, suffix = text.strip().rpartition(".")
    return bool(dot) and suffix.casefold() in _FILE_SUFFIXES


def is_list_file(text: str, suffixes: frozenset[str] | set[str]) -> bool:
    """Whether a string is the path of one file with one of the suffixes, rather than names."""
    text = text.strip()
    if text[:1] in ("[", "{") or any(character in text for character in ";|\n\r"):
        return False
    return Path(text.replace("\0", "")).suffix.casefold() in suffixes


def split_names(text: str) -> list[list[str]]:
    """Split ``"sky; tree; car, automobile"`` into one list of names for each category.

    Semicolons and line breaks separate categories, commas separate synonyms. A string without
    semicolons and line breaks is different: there, commas separate categories. Blank lines and a
    semicolon at the end of a line do not add a category. Also accepted: the full-width and Arabic
    forms of these characters, "sky | tree", "sky . tree . road .", and lists in brackets such as
    ``["sky", ["car", "automobile"]]``.

    Raises:
        VocabularyError: if the separators are ambiguous, or a name looks like a path; the message
            shows how to write it.
    """
    text = text.translate(FULL_WIDTH)
    if text.strip()[:1] in ("[", "{"):
        return _in_brackets(text.strip())
    lines = [line for line in text.splitlines() if line.strip()]
    if "|" in text:
        categories = [[name] for name in _split_at_bars(text, lines)]
    elif len(lines) == 1 and ";" not in lines[0]:
        line = lines[0]
        names = line.split(",") if "," in line else _split_at_periods(line)
        categories = [[name] for name in names]
    else:
        categories = []
        for line in lines:
            parts = line.split(";")
            parts = parts if parts[-1].strip() else parts[:-1]
            categories += [part.split(",") for part in parts]
    categories = [[_read_name(name.strip(), text) for name in names] for names in categories]
    for name in (name for names in categories for name in names):
        if not name:
            raise VocabularyError(
                f"A name is missing in '{shortened(text.strip())}': there is a separator too many."
            )
        _refuse_path(name)
    if categories and all(re.match(r"\d+\s*[:=]\s*\S", names[0]) for names in categories):
        raise VocabularyError(
            f"The names begin with numbers: '{shortened(text.strip())}'. Write the names alone, in "
            f"the order of their numbers, for example {_EXAMPLE}."
        )
    return categories


def refuse_files(names: object) -> None:
    """Raise an error if a list of names contains the name of a file.

    Raises:
        VocabularyError: naming the entry.
    """
    for name in names if isinstance(names, list | tuple) else ():
        if isinstance(name, str) and has_file_suffix(name):
            raise VocabularyError(
                f"'{shortened(name)}' in the list of names looks like a file. Give the file alone, "
                "not in a list."
            )


def refuse_existing_path(text: str) -> None:
    """Raise an error for the name of a file or folder in the current directory.

    Raises:
        VocabularyError: with the spelling for a category of this name.
    """
    text = text.translate(FULL_WIDTH).strip()
    if text and not any(character in text for character in ";,|\n") and _exists(text):
        raise VocabularyError(
            f"'{shortened(text)}' is a file or folder, not a list of names. To use it as a name, "
            f"write '{shortened(text)};'. {_ADVICE_FOR_FILES}"
        )


def _exists(path: str) -> bool:
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, NUL, unknown user
        return Path(path).expanduser().exists()
    return False


def _in_brackets(text: str) -> list[list[str]]:
    where = f"The vocabulary '{shortened(text, 40)}'"
    try:
        try:
            content = parse_json(text, where)
        except VocabularyError:
            content = parse_yaml(text, where)  # single quotes, or none, as shells leave them
        categories = categories_of(content, where)
    except VocabularyError as e:
        raise VocabularyError(
            f'{e} Write a list such as ["sky", ["car", "automobile"]], or {_EXAMPLE}.'
        ) from e
    names = [list(category.all_names) for category in categories]
    for synonyms in names:
        refuse_files(synonyms)
    return names


def _split_at_bars(text: str, lines: list[str]) -> list[str]:
    if len(lines) > 1 or ";" in text or "," in text:
        raise VocabularyError(
            f"'|' and other separators are mixed in '{shortened(text.strip())}'. Write ';' between "
            f"categories and ',' between synonyms: {_EXAMPLE}."
        )
    names = text.split("|")
    return names if names[-1].strip() else names[:-1]


def _split_at_periods(line: str) -> list[str]:
    """Split "sky . tree ." and "sky. tree. road"; names such as "St. Bernard" have periods too."""
    names = [name.strip() for name in re.split(r"\.(?:\s+|$)", line.strip())]
    ended = names[-1] == ""
    names = names[:-1] if ended else names
    if re.search(r"\s\.(\s|$)", line.strip()):
        return names
    if len(names) < 2:
        # GroundingDINO's "cat." has one name; "no." may be an abbreviation.
        return names if ended and names and len(names[0]) > 2 else [line]
    abbreviated = any(len(name) < 3 for name in names)
    if not abbreviated and (len(names) > 2 or ended):
        return names
    line = shortened(line.strip())
    raise VocabularyError(
        f"It is not clear whether '{line}' is one name. If it is several, write "
        f"'{shortened('; '.join(names))}'; if it is one, write '{line};'."
    )


def unquoted(name: str) -> str:
    """Remove the pair of quotation marks around a name, if there is one."""
    return name[1:-1] if len(name) > 1 and _QUOTES.get(name[0]) == name[-1] else name


def _read_name(name: str, text: str) -> str:
    mark = name[:1] if name.startswith(NEGATIVE_MARKS) else ""
    name = name.removeprefix(mark).lstrip()
    if (plain := unquoted(name)) != name:
        return mark + plain
    if name[:1] in OPENING_QUOTES:
        raise VocabularyError(
            f"The quotes in '{shortened(text.strip())}' do not enclose single names. Write "
            f'{_EXAMPLE} or ["sky", ["car", "automobile"]].'
        )
    return mark + name


def _refuse_path(name: str) -> None:
    if has_file_suffix(name):
        raise VocabularyError(
            f"'{shortened(name)}' looks like a file, not like a name. Give a list of names in a "
            f".txt, .csv, .json or .yaml file alone, or write names such as {_EXAMPLE}."
        )
    if "/" in name or "\\" in name or re.match(r"~|[A-Za-z]:", name):
        if _exists(name):
            raise VocabularyError(f"'{shortened(name)}' is a file or folder. {_ADVICE_FOR_FILES}")
        parts = [part.strip() for part in re.split(r"[/\\]", name) if part.strip(" .~")]
        synonyms = ""
        if len(parts) > 1:
            synonyms = f" If these are synonyms, write '{shortened(', '.join(parts))};'."
        raise VocabularyError(
            f"'{shortened(name)}' looks like a path.{synonyms} If it is one name, write a list: "
            f"{json.dumps([shortened(name)], ensure_ascii=False)}."
        )
