"""Merge values into a config, and check that the keys exist and the types are right."""

from __future__ import annotations

import ast
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from dcp_clip.config.old_keys import OLD_KEYS

__all__ = ["merge_file", "merge_options", "option_list"]

_NUMBERS = (int, float)
_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a tuple",
    list: "a list",
}


def merge_file(cfg: CfgNode, content: Mapping, file: str) -> None:
    """Merge the content of a config file.

    Args:
        cfg: the config, which is changed.
        content: values, and mappings of values.
        file: name of the file for messages.

    Raises:
        KeyError: for keys that do not exist; the message names all of them.
        ValueError: for a value that does not fit its key.
    """
    unknown: list[str] = []
    _merge(cfg, cfg, content, "", f"config file '{file}'", unknown)
    _require_known(cfg, unknown, f"config file '{file}'")


def option_list(opts: Sequence) -> list:
    """Return KEY VALUE KEY VALUE ... as a list.

    Raises:
        ValueError: for a string or a mapping, whose characters or keys would be the items.
    """
    if isinstance(opts, str | Mapping):
        raise ValueError(
            f"opts is {opts!r}, but must be a list of keys and values, such as "
            '["TEST.UNKNOWN_BELOW", 0.4].'
        )
    return list(opts)


def merge_options(cfg: CfgNode, opts: Sequence) -> None:
    """Merge KEY VALUE KEY VALUE ... of a command line; errors as in :func:`merge_file`."""
    where, unknown = "the options", []
    if late := next((word for word in map(str, opts) if word.startswith("--")), ""):
        raise ValueError(
            f"{where} are pairs KEY VALUE, but contain '{late}', which must come before them."
        )
    if len(opts) % 2:
        hint = " ".join(str(opts[-1]).split("=", 1)) if "=" in str(opts[-1]) else ""
        hint = f": write {hint}" if hint else ": add it"
        raise ValueError(f"{where} are pairs KEY VALUE, but '{opts[-1]}' has no value{hint}.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        node, (*parents, last) = cfg, str(key).split(".")
        for part in parents:
            node = node.get(part) if isinstance(node, CfgNode) else None
        if isinstance(node, CfgNode) and last in node:
            _merge(cfg, node, {last: value}, "".join(f"{p}." for p in parents), where, unknown)
        else:
            unknown.append(str(key))
    _require_known(cfg, unknown, where)


def _merge(
    root: CfgNode, node: CfgNode, content: Mapping, prefix: str, where: str, unknown: list[str]
) -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if root.key_is_deprecated(name):
            continue
        if root.key_is_renamed(name):
            root.raise_key_rename_error(name)
        if key not in node:
            if isinstance(key, str) and node.is_new_allowed():
                node[key] = node._decode_cfg_value(value)
            else:
                unknown.append(name)
        elif isinstance(node[key], CfgNode):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{where}: {name} is a group of keys, but has the value {value!r}: write the "
                    "keys of the group."
                )
            _merge(root, node[key], value, f"{name}.", where, unknown)
        else:
            node[key] = _convert(value, node[key], name, where)


def _convert(raw: Any, default: Any, name: str, where: str) -> Any:
    """Convert a value to the type of the key's default.

    Strings are parsed as Python literals, because YAML reads 1e-4 as a string, and a command line
    has only strings.
    """
    if isinstance(raw, os.PathLike):
        raw = os.fspath(raw)
    value, kind = _literal(raw), type(default)
    if isinstance(raw, Mapping):
        raise ValueError(f"{where}: {name} is {_KINDS.get(kind, 'a value')}, not a group of keys.")
    if default is None or kind not in _KINDS:
        return value
    if kind is bool and isinstance(raw, str) and raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    if kind is str:  # a text that looks like a number, such as a folder "2024", stays a text
        value = value if isinstance(value, str) or not isinstance(raw, str) else raw
    elif kind in _NUMBERS:
        value = _to_number(value, kind)
    elif kind in (tuple, list) and isinstance(value, tuple | list):
        return kind(_convert_items(value, default, name, where))
    if type(value) is not kind:
        raise ValueError(
            f"{where}: {name} must be {_KINDS[kind]}, but is {_hint(raw, value, kind)}"
        )
    return value


def _convert_items(items: Sequence, default: Sequence, name: str, where: str) -> list:
    """Convert the items of a list of numbers; other items stay as they are."""
    if not default or not all(type(item) in _NUMBERS for item in default):
        return list(items)
    is_whole = all(type(item) is int for item in default)
    result = []
    for raw in items:
        item = _literal(raw)
        number = _to_number(item, int if is_whole else type(item))
        if type(number) not in _NUMBERS:
            raise ValueError(f"{where}: {name} must contain numbers only, but contains {raw!r}.")
        result.append(number)
    return result


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value  # a plain text


def _to_number(value: Any, kind: type) -> Any:
    """Convert int to float, and float to int, if the value stays the same."""
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is float and math.isnan(value):
        return "nan"
    return value


def _hint(raw: Any, value: Any, kind: type) -> str:
    """Describe a wrong value, and how to write a right one."""
    if value is None:
        return "empty: write a value."
    if kind is str:
        return f"{value!r}: write it in quotation marks."
    if kind in (tuple, list):
        parts = [value]
        if isinstance(value, str):
            parts = [part.strip(" '\"") for part in value.strip("()[] ").split(",")]
            parts = [_literal(part) for part in parts if part]
        right = repr(kind(parts))
        return f'{_describe(value)}: write "{right}".'
    return f"{_describe(raw)}."


def _describe(value: Any) -> str:
    return f"the text '{value}'" if isinstance(value, str) else repr(value)


def _require_known(cfg: CfgNode, unknown: Sequence[str], where: str) -> None:
    if not unknown:
        return
    keys = _names(cfg)
    noun = "key does" if len(unknown) == 1 else "keys do"
    explained = [_explain(key, keys) for key in unknown]
    text = "; ".join(explained)
    if set(explained) & set(unknown):  # nothing is known about a key
        text += " (if your own module adds keys, name the module with --import or imports=[...])"
    raise KeyError(f"{where}: {len(unknown)} config {noun} not exist: {text}.")


def _explain(key: str, keys: Sequence[str]) -> str:
    """Return the new name of a key of an earlier version, or the keys that are similar."""
    for old, new in OLD_KEYS.items():
        if f"{key}.".startswith(f"{old}."):
            return f"{key} was removed" if new is None else f"{old} is called {new} now"
    if key == "_BASE_":
        return "_BASE_ (it is for files only)"
    if "=" in key:
        return f"{key} (write KEY VALUE without '=')"
    similar = _similar(key, keys)
    return f"{key} (did you mean {' or '.join(similar)}?)" if similar else key


def _similar(key: str, keys: Sequence[str]) -> list[str]:
    """Return at most three keys with a similar last part, sorted by the similarity of the key."""

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a.upper(), b.upper()).ratio()

    last = key.rpartition(".")[2]
    close = [k for k in keys if ratio(last, k.rpartition(".")[2]) >= 0.75]
    return sorted(close, key=lambda k: -ratio(key, k))[:3]


def _names(node: CfgNode, prefix: str = "") -> list[str]:
    """Return the names of all keys and groups of keys."""
    found = []
    for key, value in node.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, CfgNode):
            found += _names(value, f"{prefix}{key}.")
    return found
