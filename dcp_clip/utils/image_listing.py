"""Find image files in folders and by glob patterns."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dcp_clip.utils.image_io import ImageReadError

# Files with these extensions in a folder are images. HEIC cannot be read, but an error message is
# better than a silently skipped photograph.
IMAGE_EXTENSIONS = frozenset(
    (
        ".avif .bmp .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif "
        ".tiff .webp"
    ).split()
)


def list_images(inputs: Sequence[str | os.PathLike]) -> list[Path]:
    """Find image files.

    Args:
        inputs: files, folders and glob patterns. Files may have any name. Folders and their
            sub-folders are searched for files with `IMAGE_EXTENSIONS`; hidden files and folders are
            skipped. Files that match a pattern need one of these extensions too, unless the pattern
            ends in an extension. ``**`` matches sub-folders.

    Returns:
        list[Path]: the images in the order of `inputs`, in natural order within each input (2.jpg
        before 10.jpg), without repetitions.

    Raises:
        ImageReadError: if an input does not exist, or contains or matches no image.
    """
    found: dict[str, Path] = {}
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    for given in inputs:
        matches = _list_input(os.fspath(given))
        for path in sorted(matches, key=_natural_key):
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise ImageReadError("no images: no input was given")
    return list(found.values())


def _list_input(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        matches = _list_folder(path)
        if not matches:
            raise ImageReadError(
                f"no images in {given}: the folder contains no file with an image extension"
            )
        return matches
    if path.exists():
        return [path]
    if not glob.has_magic(given):
        raise ImageReadError(f"no images in {given}: no such file or folder")
    suffix = Path(given).suffix
    any_file = suffix != "" and not glob.has_magic(suffix)
    matches = []
    for match in map(Path, glob.iglob(given, recursive=True)):
        if match.is_dir():
            # '**' also matches the files in this folder.
            matches += [] if "**" in given else _list_folder(match)
        elif any_file or match.suffix.lower() in IMAGE_EXTENSIONS:
            matches.append(match)
    if not matches:
        raise ImageReadError(f"no images in {given}: the pattern matches no image file")
    return matches


def _list_folder(folder: Path) -> list[Path]:
    def stop(error: OSError) -> None:
        # os.walk would silently skip a folder without read permission.
        reason = error.strerror or error
        raise ImageReadError(f"cannot search {error.filename}: {reason}") from error

    matches = []
    for parent, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_EXTENSIONS:
                matches.append(Path(parent, name))
    return matches


def _natural_key(path: Path) -> list:
    # The split puts text at even and numbers at odd positions, so they are never compared.
    return [
        [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", part.lower())]
        for part in path.parts
    ]
