"""Convert the content of JSON and YAML files to categories."""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import yaml
from PIL import ImageColor

from dcp_clip.vocabulary.category import Category, VocabularyError, shortened, warn_once

# Files of other programs keep their categories under one of these keys: COCO and Label Studio,
# YOLO, CVAT, Hugging Face.
_LIST_KEYS = ("categories", "names", "labels", "id2label", "label2id")
_KEYS = {"name", "synonyms", "train_id", "raw_id", "color", "official"}
# Keys that show that an entry was written by another program. Its other keys are then ignored.
_CVAT_KEYS = {"attributes", "type", "sublabels", "svg"}
_FORMAT_HINT = 'a list of names, or {"categories": [{"name": ...}, ...]}'


def parse_json(text: str, where: str) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        VocabularyError: if the text is not such JSON; the message begins with `where`.
    """
    return _parse(lambda: json.loads(text, object_pairs_hook=_unique), "JSON", where)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML to dicts, lists and strings. "no" and "12" stay the strings of the file.

    Raises:
        VocabularyError: if the text is not YAML, a mapping has a key twice, or a name with the
            mark "!" has no quotes; the message begins with `where`.
    """
    return _parse(lambda: yaml.load(text, _Loader), "YAML", where)


class _Loader(yaml.BaseLoader):
    """Creates no other objects than dicts, lists and strings, whatever tags a file contains.

    Tags such as "!!str" have no effect. A tag with a single "!" is the mark of a negative name.
    Aliases are refused, because a short text could stand for a very long list.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise VocabularyError(
                f"line {self.peek_event().start_mark.line + 1}: a list of names cannot contain "
                "aliases of YAML (*name); write the names."
            )
        return super().compose_node(parent, index)

    def scan_tag(self) -> yaml.Token:
        if self.peek(1) in ("!", "<"):
            return super().scan_tag()
        name = re.split(r"[,:#\[\]{}\0]", self.prefix(80).splitlines()[0])[0].strip()
        raise VocabularyError(
            f"line {self.line + 1}: write the name '{name}' in quotes, because YAML reads a word "
            "that begins with '!' as a tag and not as a negative name."
        )

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            return super().construct_mapping(node, deep)
        return _unique(
            [
                (self.construct_object(key, deep=True), self.construct_object(value, deep=deep))
                for key, value in node.value
            ]
        )


def _unique(pairs: list[tuple[Any, Any]]) -> dict:
    found: dict = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f"the key {shortened(reprlib.repr(key))} is not a string")
        if key in found:
            raise ValueError(f"the key {shortened(reprlib.repr(key))} occurs twice")
        found[key] = value
    return found


def _parse(parse: Callable[[], Any], kind: str, where: str) -> Any:
    try:
        return parse()
    except VocabularyError as e:
        raise VocabularyError(f"{where}, {e}") from e
    except RecursionError as e:
        raise VocabularyError(f"{where} is not a list of names: it is nested too deeply.") from e
    except (ValueError, yaml.YAMLError) as e:
        reason = shortened(" ".join(str(e).split()), 200)
        raise VocabularyError(f"{where} is not valid {kind}: {reason}.") from e


def categories_of(content: Any, where: str) -> tuple[Category, ...]:
    """Find the categories in the content of a file.

    These are accepted: a list of names, of lists of synonyms, or of objects with a "name"; such a
    list under "categories", "names" or "labels"; numbers and names, ``{"0": "sky", ...}`` or
    ``{"sky": 0, ...}``, also under "names", "id2label" or "label2id".

    Categories with an "id" are sorted by it. Their id becomes the `raw_id`.

    Args:
        content: dicts, lists, strings and numbers.
        where: the file, for error messages.

    Raises:
        VocabularyError: if there is no such list, or an entry is invalid.
    """
    entries = _find_entries(content)
    if entries is None:
        raise VocabularyError(f"{where} must contain {_FORMAT_HINT}.")
    if not entries:
        raise VocabularyError(f"{where} contains no category.")
    _check_count(content, entries, where)
    categories = [_category(entry, i, where) for i, entry in enumerate(entries)]
    ids = [_own_id(entry) for entry in entries]
    if any(number is not None for number in ids):
        categories = _sorted_by_id(categories, ids, where)
    return tuple(categories)


def numbered(numbers: Sequence[int], categories: Sequence[Category], where: str) -> tuple:
    """Sort the categories of a file by their numbers, which become the `raw_id`.

    Raises:
        VocabularyError: if a number occurs twice.
    """
    return tuple(_sorted_by_id(list(categories), list(numbers), where))


def _find_entries(content: Any) -> list | None:
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        return None
    for key in _LIST_KEYS:
        value = content.get(key)
        if isinstance(value, list):
            return value
        if isinstance(value, dict):
            return _mapping_entries(value)
    # Label Studio's parsed labelling config: {"tag": {"type": "BrushLabels", "labels": [...]}}.
    tags = [
        v for v in content.values() if isinstance(v, dict) and isinstance(v.get("labels"), list)
    ]
    if len(tags) == 1:
        return tags[0]["labels"]
    return _mapping_entries(content) if content else None


def _mapping_entries(mapping: dict) -> list | None:
    """Turn {number: name} or {name: number} into entries with an "id"."""
    if all(_integer(key) is not None for key in mapping):
        return [{"id": _integer(key), "name": name} for key, name in mapping.items()]
    if all(_integer(value) is not None for value in mapping.values()):
        return [{"id": _integer(value), "name": name} for name, value in mapping.items()]
    return None


def _check_count(content: Any, entries: list, where: str) -> None:
    count = _integer(content.get("nc")) if isinstance(content, dict) else None
    if count is not None and count != len(entries):  # in YOLO's files
        raise VocabularyError(f"{where}: 'nc' is {count}, but there are {len(entries)} names.")


def _own_id(entry: Any) -> Any:
    """Return the "id" of an entry; None for CVAT, whose ids are those of its database."""
    return entry.get("id") if isinstance(entry, dict) and not _CVAT_KEYS & set(entry) else None


def _sorted_by_id(categories: list[Category], ids: list[Any], where: str) -> list[Category]:
    numbers = [_integer(number) for number in ids]
    for number, given, category in zip(numbers, ids, categories, strict=True):
        if number is None:
            raise VocabularyError(
                f"{where}: the id of '{category.name}' must be a whole number, got "
                f"{reprlib.repr(given)}."
            )
    repeated = sorted(number for number, times in Counter(numbers).items() if times > 1)
    if repeated:
        raise VocabularyError(
            f"{where}: several categories have the id {', '.join(map(str, repeated))}."
        )
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    if [numbers[i] for i in order] != list(range(len(numbers))):
        last = len(numbers) - 1
        example = f"id {numbers[order[0]]} is category 0"
        example += f", id {numbers[order[-1]]} is category {last}" if last else ""
        warn_once(
            f"{where}: the ids are not the numbers from 0 on. The categories are numbered from 0 "
            f"in the order of their ids: {example}. Label maps must contain these numbers, not the "
            "ids."
        )
    return [
        replace(categories[i], train_id=position, raw_id=numbers[i])
        for position, i in enumerate(order)
    ]


def _integer(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
        return int(value)
    return None


def parse_color(value: Any, where: str) -> tuple[int, ...] | None:
    """Return an RGB colour from [red, green, blue], "red, green, blue" or a colour of CSS.

    CSS has "#rrggbb", "#rgb", "rgb(red, green, blue)", "hsl(...)" and names such as "navy".

    Raises:
        VocabularyError: if the value is none of these.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        text = value.strip()
        is_hexadecimal = re.fullmatch("[0-9a-fA-F]{6}([0-9a-fA-F]{2})?", text)
        try:
            return ImageColor.getrgb(f"#{text}" if is_hexadecimal else text)[:3]
        except ValueError:  # no colour, or numbers in a form that Pillow does not know
            match = re.fullmatch(r"(?:rgba?\()?\s*(\d{1,3})\D+(\d{1,3})\D+(\d{1,3})[^#]*", text)
            value = list(match.groups()) if match else value
    channels = [_integer(channel) for channel in value] if isinstance(value, list) else [None]
    if None in channels:
        raise VocabularyError(
            f'{where}: the colour must be [red, green, blue], "#rrggbb" or a name of CSS, got '
            f"{shortened(reprlib.repr(value))}."
        )
    return tuple(channels)


def _category(entry: Any, position: int, file: str) -> Category:
    where = f"{file}, category {position}"
    if isinstance(entry, str):
        entry = {"name": entry}
    elif isinstance(entry, list) and entry:
        entry = {"name": entry[0], "synonyms": entry[1:]}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise VocabularyError(
            f"{where}: expected a name, or an object with a 'name', got "
            f"{shortened(reprlib.repr(entry))}."
        )
    where = f"{where} ('{shortened(entry['name'])}')"
    unknown = set(entry) - _KEYS
    if unknown and "id" not in entry and not _CVAT_KEYS & set(entry):
        raise VocabularyError(f"{where}: unknown key {sorted(unknown)[0]!r}.")

    synonyms = entry.get("synonyms") or []
    if not isinstance(synonyms, list) or not all(isinstance(s, str) for s in synonyms):
        raise VocabularyError(f"{where}: 'synonyms' must be a list of strings.")
    if _integer(entry.get("train_id", position)) != position:
        # Label maps contain train_ids, so a list in another order would give wrong labels.
        raise VocabularyError(
            f"{where}: train_id is {reprlib.repr(entry['train_id'])}, but the train_ids must be "
            "0, 1, 2, ... in the order of the list."
        )
    raw_id = _integer(entry.get("raw_id"))
    if raw_id is None and entry.get("raw_id") is not None:
        raise VocabularyError(f"{where}: raw_id {reprlib.repr(entry['raw_id'])} is not an integer.")
    official = entry.get("official", entry["name"])
    if not isinstance(official, str):
        raise VocabularyError(f"{where}: 'official' must be a string.")
    return Category(
        name=entry["name"],
        synonyms=tuple(synonyms),
        train_id=position,
        raw_id=raw_id,
        color=parse_color(entry.get("color"), where),
        official=official,
    )
