"""Encode many names in parts, so that an interrupted encoding continues where it stopped.

Each part has a file in the folder of the text cache until the whole vocabulary has one. Several
processes that encode the same vocabulary use each other's parts. They need no locks, because each
process takes the parts in a random order: two processes seldom compute the same part.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dcp_clip.modeling.clip.text_cache import cache_file, read_features, write_features
from dcp_clip.structures import TextFeatures

__all__ = ["PartFiles", "encode_in_parts"]

logger = logging.getLogger(__name__)

_PROGRESS_FROM = 2000  # prompts; fewer are encoded in seconds, without a progress bar
_ADVICE_FROM = 2000  # names


class PartFiles:
    """The files of the parts of one vocabulary."""

    def __init__(
        self,
        folder: str,
        key: tuple[str, ...],
        whole: Path,
        width: int | None,
        device: torch.device,
    ):
        """
        Args:
            folder: folder of the text cache.
            key: all that the features of a name depend on, besides the name.
            whole: the file of the whole vocabulary.
            width: D, the width of the features; None if it is unknown.
            device: device of the features.
        """
        self._folder, self._key, self._whole = folder, key, whole
        self._width, self._device = width, device
        # A file that already exists could not be read, so it says nothing about other processes.
        self._watch = not whole.exists()

    def whole_exists(self) -> bool:
        """Return whether another process has written the whole vocabulary since the start."""
        return self._watch and self._whole.exists()

    def read(self, names: Sequence[str]) -> Tensor | None:
        """Return the features (N, D) of a part, or None."""
        rows = torch.arange(len(names))[:, None]
        features = read_features(self._path(names), rows, self._width, self._device)
        return None if features is None else features.embeddings

    def write(self, names: Sequence[str], features: Tensor) -> None:
        """Write the features (N, D) of a part."""
        rows = torch.arange(len(names))[:, None]
        write_features(self._path(names), TextFeatures(features, rows))

    def remove(self, parts: Sequence[Sequence[str]]) -> None:
        """Remove the files of all parts if the whole vocabulary has a file."""
        if self._whole.is_file():
            for names in parts:
                self._path(names).unlink(missing_ok=True)

    def _path(self, names: Sequence[str]) -> Path:
        return cache_file(self._folder, (*self._key, "part", *names))


def encode_in_parts(
    parts: Sequence[Sequence[str]],
    num_templates: int,
    encode: Callable[[Sequence[str], tqdm], Tensor],
    files: PartFiles | None = None,
) -> Tensor | None:
    """Encode the names of all parts.

    If this takes long with many templates, a warning says what one template would cost.

    Args:
        parts: the names of each part.
        num_templates: number of prompts for each name.
        encode: maps the names of a part to features (N, D), and counts prompts in a progress bar.
        files: where to keep the parts; None to keep none.

    Returns:
        The features of all names, in their order. None if another process has written the whole
        vocabulary in the meantime.
    """
    if len(parts) == 1:
        files = None
    prompts = sum(map(len, parts)) * num_templates
    order = list(range(len(parts)))
    if files is not None:
        random.Random().shuffle(order)  # a generator of its own: a seed would give one order
    advise = num_templates > 1 and prompts > _ADVICE_FROM * num_templates
    found: dict[int, Tensor] = {}
    bar = tqdm(
        total=prompts, desc="Encoding names", unit="prompt", disable=prompts < _PROGRESS_FROM
    )
    with bar:
        for i in order:
            names = parts[i]
            features = None if files is None else files.read(names)
            if features is not None:
                bar.update(len(names) * num_templates)
            elif files is not None and files.whole_exists():
                return None
            else:
                start = time.perf_counter()
                features = encode(names, bar)
                if advise:
                    seconds = (time.perf_counter() - start) / (len(names) * num_templates)
                    _advise(prompts, num_templates, seconds)
                    advise = False
                if files is not None:
                    files.write(names, features)
            found[i] = features
    return torch.cat([found[i] for i in range(len(parts))])


def _advise(prompts: int, num_templates: int, seconds: float) -> None:
    """Say what the encoding costs with all templates and with one; `seconds` are for a prompt."""
    names = prompts // num_templates
    logger.warning(
        "%s names in %d templates are %s prompts, which take about %s (h:mm:ss) at the speed of "
        "the first ones; with one template, %s prompts would take about %s. Set "
        "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES to 'single' for that.",
        *(f"{names:,}", num_templates, f"{prompts:,}", _duration(prompts * seconds)),
        *(f"{names:,}", _duration(names * seconds)),
    )


def _duration(seconds: float) -> timedelta:
    return timedelta(seconds=max(round(seconds), 1))
