"""Read the folder that tools/export.py wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcp_clip.vocabulary import Vocabulary

__all__ = ["FORMAT", "ModelFolder", "RuntimeFolderError", "read_folder"]

FORMAT = 2  # of the folder; others are refused
_FILES = ("encoder.onnx", "head.onnx", "image.onnx.data", "text.onnx", "labels.onnx")
_FILES += ("tokenizer.json", "config.json")


class RuntimeFolderError(ValueError):
    """A folder is no exported model; the message is one sentence that names the file."""


def damaged_file(path: Path, error: Exception) -> RuntimeFolderError:
    """Return the error for a file that a package cannot load, with its reason."""
    reason = " ".join(str(error).split())[:200]
    return RuntimeFolderError(f"'{path}' is damaged: copy or export it again. ({reason})")


@dataclass(frozen=True)
class ModelFolder:
    """The content of config.json.

    Attributes:
        path: the folder.
        settings: all values.
        vocabulary: the names of the training set, or None.
    """

    path: Path
    settings: dict[str, Any]
    vocabulary: Vocabulary | None

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]


def read_folder(path: Path) -> ModelFolder:
    """Read config.json, and check that all files are there.

    Raises:
        RuntimeFolderError: if a file is missing, damaged, or of another version.
    """
    for name in _FILES:
        if not (path / name).is_file():
            raise RuntimeFolderError(
                f"'{path}' has no {name}: give the folder that tools/export.py wrote."
            )
    file = path / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        found = settings["format"]
        if found == FORMAT:
            return ModelFolder(path, settings, _vocabulary(settings["vocabulary"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeFolderError(
            f"'{file}' is damaged; export the model again. ({type(error).__name__}: {error})"
        ) from error
    raise RuntimeFolderError(
        f"'{file}' has the format {found!r}, but this version of dcp_clip reads the format "
        f"{FORMAT}; export the model again."
    )


def _vocabulary(categories: list[dict[str, Any]] | None) -> Vocabulary | None:
    if categories is None:
        return None
    columns = {key: [c[key] for c in categories] for key in ("names", "display_name", "color")}
    return Vocabulary(
        columns["names"],
        display_names=columns["display_name"],
        colors=columns["color"],
        warn_shared=False,
    )
