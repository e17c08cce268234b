"""The lines of results.jsonl: what they are about, and the files that they name."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcp_clip.folder_run.result_files import ALL_SUFFIXES

__all__ = ["is_result", "parse_record", "record_key", "result_stem"]


def record_key(path: str | os.PathLike, frame: int | None = None) -> str:
    """Return what identifies an image, or a frame of a video, in the results of a run."""
    return os.path.abspath(path) + ("" if frame is None else f"#{frame}")


def parse_record(line: bytes) -> dict | None:
    """Return the content of a line of results, or None if the line is incomplete or damaged."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    names = [name for name in ALL_SUFFIXES if name in record]
    if not all(is_result(record[name], ALL_SUFFIXES[name]) for name in names):
        return None
    return record if names and isinstance(record.get("file"), str) else None


def is_result(path: Any, suffixes: tuple[str, ...]) -> bool:
    """Return whether a run can have written a file: --overwrite removes only such files."""
    if not isinstance(path, str) or not path.endswith(suffixes):
        return False
    return not os.path.isabs(path) and ".." not in Path(path).parts


def result_stem(record: Mapping[str, Any]) -> Path:
    """Return the path of the results in a line, relative to the output folder, without suffix."""
    name = next(name for name in ALL_SUFFIXES if name in record)
    suffix = next(suffix for suffix in ALL_SUFFIXES[name] if record[name].endswith(suffix))
    return Path(record[name].removesuffix(suffix))
