"""Readers of category lists that are not JSON or YAML: lines, tables, XML and label maps."""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from dcp_clip.vocabulary.category import Category, VocabularyError, shortened, warn_once
from dcp_clip.vocabulary.entries import categories_of, numbered
from dcp_clip.vocabulary.strings import FULL_WIDTH, OPENING_QUOTES, has_file_suffix, unquoted

# A line of CVAT's labelmap.txt: label:color_rgb:parts:actions.
_CVAT_LINE = re.compile(r"([^:]+):\s*((?:\d{1,3}\s*,\s*){2}\d{1,3})?\s*:[^:]*:[^:]*")
_NUMBERED_LINE = re.compile(r"([0-9]{1,9})(\s*[:\t,;]\s*|[.)]\s+|\s+)(\S.*)")
_NUMBER = re.compile(r"[-+]?[0-9]+([.,][0-9]*)?|#[0-9a-fA-F]{6}")
# A row of a table that is a comment. A row can also begin with a colour.
_COMMENT = re.compile(r"\s*#(?![0-9a-fA-F]{6}\s*([,;\t]|$))")
# Comments of a label map, and its tokens: strings, braces and words.
_TOKEN = re.compile(r"#[^\n]*|(\"[^\"\n]*\"|'[^'\n]*'|[{}]|[^\s{}:;,#\"']+)")
# Titles of columns, without spaces and underscores.
_NAME = "name label class category classname labelname categoryname displayname".split()
_NAME += ["names", "labels", "classes", "categories"]
_ID = "id index idx classid labelid categoryid trainid value number".split()
_SYNONYMS = ["synonyms", "synonym", "aliases", "alias"]
_COLOR = ["color", "colour", "hex", "rgb", "colorrgb"]
_CHANNELS = (["r", "red"], ["g", "green"], ["b", "blue"])


def parse_lines(text: str, file: str) -> tuple[Category, ...]:
    """Read a list with one category in each line; see
    :func:`dcp_clip.vocabulary.categories.read_categories`.

    Raises:
        VocabularyError: if a line contains an empty name or a path, or if it is not clear whether
            the names of the only line are categories or synonyms.
    """
    header = next((line for line in text.splitlines() if line.strip()), "")
    if "\t" in header and _has_name(_titles(header.split("\t"))):
        return parse_table(text, file)
    lines = []  # number and content
    for number, line in enumerate(text.translate(FULL_WIDTH).splitlines(), start=1):
        if line := re.sub(r"(^|\s)#.*", "", line).strip():
            lines.append((number, line))
    labels = [_CVAT_LINE.fullmatch(line) for _, line in lines]
    if labels and all(labels):
        entries = [
            {"name": label[1], "color": label[2].split(",") if label[2] else None}
            for label in labels
        ]
        return categories_of(entries, file)
    numbers = _line_numbers([line for _, line in lines], file)
    if numbers:
        lines = [(n, _NUMBERED_LINE.fullmatch(line)[3]) for n, line in lines]
    entries = []
    for number, line in lines:
        names = [unquoted(name.strip()).strip() for name in re.split("[,;]", line)]
        if not all(names):
            raise VocabularyError(f"{file}, line {number}: '{line}' contains an empty name.")
        if path := next(filter(has_file_suffix, names), None):
            raise VocabularyError(
                f"{file}, line {number}: '{shortened(path)}' looks like a file, not like a name."
            )
        if any(name[:1] in OPENING_QUOTES for name in names):
            raise VocabularyError(
                f"{file}, line {number}: the quotes in '{shortened(line)}' do not enclose single "
                "names. Remove them, or write a list in JSON for names with commas."
            )
        entries.append(names)
    if len(entries) == 1 and len(entries[0]) > 1:
        raise VocabularyError(
            f"{file} has only one line, so its names could be categories or synonyms. Write each "
            "category in its own line."
        )
    categories = categories_of(entries, file) if entries else ()
    return numbered(numbers, categories, file) if numbers else categories


def _line_numbers(lines: list[str], file: str) -> list[int] | None:
    """Return the number at the start of each line; None if the numbers may be parts of names."""
    matches = [_NUMBERED_LINE.fullmatch(line) for line in lines]
    if not lines or not all(matches):
        return None
    numbers = [int(match[1]) for match in matches]
    if len(lines) > 1:
        count_all = any(sorted(numbers) == list(range(i, i + len(lines))) for i in (0, 1))
        separated = all(not match[2].isspace() or "\t" in match[2] for match in matches)
        if count_all or separated:
            return numbers
    warn_once(
        f"The names in {file} begin with numbers, for example '{shortened(lines[0])}'. If these "
        "are ids, write at least two lines with a colon after each id, such as "
        f"'{numbers[0]}: {shortened(matches[0][3])}'."
    )
    return None


def parse_table(text: str, file: str) -> tuple[Category, ...]:
    """Read a table with one category in each row: its name, and then synonyms, or with a header.

    The delimiter is the most frequent of comma, semicolon and tab in the first row, or, if it has
    none, in the table. A column with an unknown title is ignored.

    Raises:
        VocabularyError: if the table is damaged, or it is not clear which column has the names, or
            whether the names of the only row are categories or synonyms.
    """
    lines = [x for x in text.splitlines() if x.strip() and not _COMMENT.match(x)]
    if not lines:
        return ()
    delimiter = max(",;\t", key=lambda c: (lines[0].count(c), text.count(c)))
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as e:
        raise VocabularyError(f"{file} is not a valid table: {e}.") from e
    rows = [[cell.strip() for cell in row] for row in rows if row and not _COMMENT.match(row[0])]
    rows = [row for row in rows if len(row) > 1 or row[0]]
    if not rows:
        return ()
    titles = _titles(rows[0])
    if _has_name(titles):
        return _rows_with_titles(titles, rows[1:], file, delimiter)
    for i, row in enumerate(rows, start=1):
        if cell := next((c for c in row if _NUMBER.fullmatch(c) or ";" in c), ""):
            raise VocabularyError(
                f"{file}, row {i}: '{shortened(cell)}' is not a name. Begin a table of other "
                "columns than names with a header, for example id,name,synonyms,color."
            )
    entries = [[cell for cell in row if cell] or [""] for row in rows]
    if len(entries) == 1 and len(entries[0]) > 1:
        raise VocabularyError(
            f"{file} has only one row, so its names could be categories or synonyms. Write each "
            "category in its own row."
        )
    return categories_of(entries, file)


def _titles(cells: list[str]) -> list[str]:
    return [re.sub(r"[\s_]", "", cell.casefold()) for cell in cells]


def _has_name(titles: list[str]) -> bool:
    return any(title in _NAME for title in titles)


def _rows_with_titles(
    titles: list[str], rows: list[list[str]], file: str, delimiter: str
) -> tuple[Category, ...]:
    def column(known: list[str]) -> int | None:
        return next((titles.index(title) for title in known if title in titles), None)

    name, number, others, color = map(column, (_NAME, _ID, _SYNONYMS, _COLOR))
    channels = [column(known) for known in _CHANNELS]
    # The name can be followed by synonyms, as in the tables of ADE20K. With commas between the
    # cells, a comma within a name was written on purpose, unless the title is in the plural.
    separators = ";" if delimiter == "," and titles[name] != "names" else ",;"
    entries = []
    for i, row in enumerate(rows, start=1):
        extra = row[len(titles) :]
        if any(extra) and others != len(titles) - 1:
            raise VocabularyError(
                f"{file}, row {i} after the header has {len(row)} cells, but the header has "
                f"{len(titles)}."
            )
        row = row + [""] * (len(titles) - len(row))
        synonyms = [*re.split("[,;|]", row[others]), *extra] if others is not None else []
        first, *more = re.split(f"[{separators}]", row[name])
        synonyms = [s for s in map(str.strip, [*more, *synonyms]) if s]
        entry: dict = {"name": first.strip(), "synonyms": synonyms}
        if number is not None:
            entry["id"] = row[number]
        if color is not None:
            entry["color"] = row[color]
        elif None not in channels:
            entry["color"] = [row[channel] for channel in channels]
        entries.append(entry)
    return categories_of(entries, file) if entries else ()


def parse_xml(text: str, file: str) -> tuple[Category, ...]:
    """Read a labelling config of Label Studio, or CVAT's annotations in XML.

    Raises:
        VocabularyError: if the file is not XML, or has no labels.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can expand to gigabytes
        raise VocabularyError(f"{file} declares a document type, which no list of labels needs.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as e:
        raise VocabularyError(f"{file} is not valid XML: {e}.") from e
    entries = [
        {"name": label.get("value", ""), "color": label.get("background")}
        for label in root.iter("Label")
    ]
    for label in () if entries else root.iterfind(".//labels/label"):
        entries.append({"name": label.findtext("name", ""), "color": label.findtext("color")})
    if not entries:
        raise VocabularyError(
            f"{file} has no <Label value=...> of Label Studio and no <label> of CVAT."
        )
    return categories_of(entries, file)


def parse_label_map(text: str, file: str) -> tuple[Category, ...]:
    """Read a label map of TensorFlow's detection models: ``item { id: 1 name: "sky" }``.

    Raises:
        VocabularyError: if an item has no id or no name.
    """
    entries = []
    for fields in _items(text, file):
        name = fields.get("display_name", fields.get("name"))
        if name is None or "id" not in fields:
            shown = shortened(" ".join(f"{key}: {value}" for key, value in fields.items()))
            raise VocabularyError(f"{file}: the item {shown!r} needs an id and a name.")
        entries.append({"name": name.strip("\"'"), "id": fields["id"]})
    return categories_of(entries, file) if entries else ()


def _items(text: str, file: str) -> Iterator[dict[str, str]]:
    """Yield the fields of each item of a label map; messages within an item are left out."""
    depth, key, fields = 0, "", {}
    for token in filter(None, _TOKEN.findall(text)):
        if token == "{":
            depth, key = depth + 1, ""
        elif token == "}":
            depth, key = depth - 1, ""
            if depth == 0:
                yield fields
                fields = {}
        elif depth == 1 and not key:
            key = token
        elif depth == 1:
            fields[key], key = token, ""
        if depth < 0:
            break
    if depth:
        raise VocabularyError(f"{file} is not a valid label map: its braces do not match.")
