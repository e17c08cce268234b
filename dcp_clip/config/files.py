"""Read config files: no file can run code, and each error is one sentence that names the file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from dcp_clip.utils.shipped_files import find_config

__all__ = ["read_config_chain", "read_yaml"]

_BASE = "_BASE_"
# Limits that no real config reaches. A file of a few kB can expand to billions of values: each
# alias repeats its anchor, and each _BASE_ can name two more files.
_MAX_BYTES, _MAX_VALUES, _MAX_FILES = 2**20, 100_000, 100


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and refuses a key that is given twice.

    YAML would silently use the last of the values, and ignore all keys below the first.
    """

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        found = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in found:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            found.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """Read a YAML file of plain values whose top level is a mapping.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such a file; a tag that names a Python object is an error.
    """
    if not path.is_file():
        raise FileNotFoundError(f"config file '{path}' does not exist.")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"config file '{path}' is larger than 1 MiB: give a YAML file of keys.")
    try:
        content = yaml.load(path.read_bytes(), _Loader)
        _count_values(content, {}, set())
    except yaml.constructor.ConstructorError as error:
        mark, problem = error.problem_mark, error.problem or ""
        line = "" if mark is None else f", line {mark.line + 1}"
        if "could not determine a constructor" in problem:
            tag = problem.split("'")[1].replace("tag:yaml.org,2002:", "!!")
            raise ValueError(
                f"config file '{path}'{line}: the YAML tag '{tag}' is not allowed, because tags "
                "can run code: write a plain value."
            ) from error
        raise ValueError(
            f"config file '{path}' cannot be read as YAML: {problem or error}{line}."
        ) from error
    except (yaml.YAMLError, _TooLargeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config file '{path}' cannot be read as YAML: {reason}") from error
    except (RecursionError, ValueError) as error:  # ValueError: for example the date 2024-99-99
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"config file '{path}' cannot be read as YAML: {reason}.") from error
    if content is None:
        raise ValueError(f"config file '{path}' is empty: it must contain config keys.")
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a text"}.get(type(content), f"{content!r}")
        raise ValueError(
            f"config file '{path}' contains {kind}, but it must contain config keys, such as "
            "'MODEL:'."
        )
    return content


class _TooLargeError(Exception):
    """Aliases make a file larger than any config."""


def _count_values(value: Any, known: dict[int, int], parents: set[int]) -> int:
    """Return how many values there are if each alias is replaced by a copy of its anchor."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in parents:
        raise _TooLargeError("an alias contains itself")
    if id(value) not in known:
        parents.add(id(value))
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(item, known, parents) for item in items)
        parents.remove(id(value))
    if known[id(value)] > _MAX_VALUES:
        raise _TooLargeError(f"its aliases stand for more than {_MAX_VALUES:,} values")
    return known[id(value)]


def read_config_chain(path: Path) -> list[tuple[Path, dict]]:
    """Read a config file and the files that it inherits from.

    A file names the files that it inherits from in ``_BASE_``: one, or a list. Paths are relative
    to the file that names them.

    Returns:
        The path and the content (without ``_BASE_``) of each file. Later files have priority.

    Raises:
        FileNotFoundError: if one of the files does not exist.
        ValueError: if one of them cannot be read, or the files inherit from each other.
    """
    chain: list[tuple[Path, dict]] = []
    _read_into(chain, path, ())
    return chain


def _read_into(chain: list[tuple[Path, dict]], path: Path, above: tuple[Path, ...]) -> None:
    content = read_yaml(path)
    above = (*above, path)
    for base in _base_files(path, content.pop(_BASE, [])):
        if base.resolve() in [p.resolve() for p in above]:
            loop = " -> ".join(f"'{p}'" for p in (*above, base))
            raise ValueError(f"_BASE_ forms a loop of config files: {loop}: remove one of them.")
        if len(chain) >= _MAX_FILES:
            raise ValueError(
                f"config file '{above[0]}' inherits from more than {_MAX_FILES} files."
            )
        _read_into(chain, base, above)
    chain.append((path, content))


def _base_files(path: Path, value: Any) -> list[Path]:
    names = value if isinstance(value, list) else [value]
    files = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"config file '{path}': _BASE_ is {value!r}, but it must be the path of a config "
                "file, or a list of paths."
            )
        if "://" in name:
            try:
                file = Path(PathManager.get_local_path(name))
            except Exception as error:  # each kind of URL raises other errors
                raise ValueError(
                    f"config file '{path}': _BASE_ '{name}' cannot be fetched: {error}"
                ) from error
        else:
            file = path.parent / os.path.expanduser(name)
            if not file.is_file():
                # Like --config-file: configs/mine.yaml in any folder can name a shipped config.
                with contextlib.suppress(FileNotFoundError):
                    file = find_config(name)
        if not file.is_file():
            raise FileNotFoundError(
                f"config file '{path}' names '{name}' as its _BASE_, but there is no file "
                f"'{file}': correct the path, which is relative to the config file, or name a "
                "shipped config."
            )
        files.append(file)
    return files
