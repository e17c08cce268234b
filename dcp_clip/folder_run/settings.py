"""Compare the settings of two runs."""

from collections.abc import Mapping
from typing import Any

from dcp_clip.folder_run.result_files import DEFAULT_FORMATS
from dcp_clip.vocabulary.category import shortened

__all__ = ["describe_difference", "kind_of_input"]

_MAX_DIFFERENCES = 3  # settings that an error message names
_MAX_LENGTH = 40  # of a value in a message
# Those that run.json does not have, or did not have in earlier versions.
_DEFAULTS = {"formats": sorted(DEFAULT_FORMATS), "backend": "onnxruntime"}


def kind_of_input(settings: Mapping[str, Any]) -> str:
    """Return what a run with these settings segments."""
    return "rasters" if "bands" in settings else "videos" if "every" in settings else "images"


def describe_difference(before: Any, now: Mapping[str, Any]) -> str:
    """Return how the settings of two runs differ, in a few words; "" if they are equal."""
    if not isinstance(before, dict):
        return "run.json has another format"
    texts = []
    for key in sorted({*before, *now}):
        old, new = (settings.get(key, _DEFAULTS.get(key)) for settings in (before, now))
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            texts.append(describe_difference(old, new))
        elif key == "working folder" and None in (old, new):
            texts.append("one run has relative paths of images, and the other absolute paths")
        else:
            texts.append(f"{key} {_describe_change(old, new)}")
    texts = [text for text in texts if text]
    more = len(texts) - _MAX_DIFFERENCES
    return ", ".join(texts[:_MAX_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _describe_change(old: Any, new: Any) -> str:
    texts = [shortened(str(value), _MAX_LENGTH) for value in (old, new)]
    is_short = texts == [str(old), str(new)]
    if is_short or not (isinstance(old, list) and isinstance(new, list)):
        return "differs" if texts[0] == texts[1] else f"was {texts[0]} and is {texts[1]}"
    missing, extra = _items_only_in(old, new), _items_only_in(new, old)
    parts = [f"has {extra}" if extra else "", f"lacks {missing}" if missing else ""]
    return "now " + (" and ".join(filter(None, parts)) or "has another order")


def _items_only_in(values: list, others: list) -> str:
    known = set(map(str, others))
    items = [f"'{shortened(str(x), _MAX_LENGTH)}'" for x in values if str(x) not in known]
    more = f" and {len(items) - 2} more" if len(items) > 2 else ""
    return ", ".join(items[:2]) + more
