"""Compare the settings of two runs."""

from collections.abc import Mapping
from typing import Any

__all__ = ["describe_difference", "kind_of_input"]

_MAX_DIFFERENCES = 3  # settings that an error message names


def kind_of_input(settings: Mapping[str, Any]) -> str:
    """Return what a run with these settings segments."""
    return "rasters" if "bands" in settings else "videos" if "every" in settings else "images"


def describe_difference(before: Any, now: Mapping[str, Any]) -> str:
    """Return how the settings of two runs differ, in a few words; "" if they are equal."""
    if not isinstance(before, dict):
        return "run.json has another format"
    texts = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            texts.append(describe_difference(old, new))
        elif key == "working folder" and None in (old, new):
            texts.append("one run has relative paths of images, and the other absolute paths")
        else:
            short = max(len(str(old)), len(str(new))) <= 40
            texts.append(f"{key} was {old} and is {new}" if short else f"{key} differs")
    texts = [text for text in texts if text]
    more = len(texts) - _MAX_DIFFERENCES
    return ", ".join(texts[:_MAX_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")
