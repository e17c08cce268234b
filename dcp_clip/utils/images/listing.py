"""Find image files in folders and by glob patterns."""

import fnmatch
import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from dcp_clip.utils.images.reading import ImageReadError

__all__ = [
    "IMAGE_EXTENSIONS",
    "VIDEO_EXTENSIONS",
    "list_images",
    "list_images_by_input",
    "search_root",
]

logger = logging.getLogger(__name__)

# Files with these extensions in a folder are images. HEIC cannot be read, but an error message is
# better than a silently skipped photograph.
IMAGE_EXTENSIONS = frozenset(
    (
        ".avif .bmp .gif .heic .heif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif "
        ".tiff .webp"
    ).split()
)
VIDEO_EXTENSIONS = frozenset(
    ".3g2 .3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogg .ogv .ts .webm "
    ".wmv".split()
)


def list_images(inputs: Sequence[str | os.PathLike]) -> list[Path]:
    """Find image files; see `list_images_by_input`."""
    return list(list_images_by_input(inputs))


def list_images_by_input(inputs: Sequence[str | os.PathLike]) -> dict[Path, str]:
    """Find image files.

    Symbolic links to files and folders are followed. A file that several paths lead to is listed
    once, by the path with the fewest links, so a link to a parent folder does no harm. A warning
    tells how many links were skipped.

    Args:
        inputs: files, folders and glob patterns. Files may have any name. Folders and their
            sub-folders are searched for files with `IMAGE_EXTENSIONS`; hidden files and folders are
            skipped. Files that match a pattern need one of these extensions too, unless the pattern
            ends in an extension. ``**`` matches sub-folders. A part of a pattern that is the name
            of an existing file or folder, such as "photos [2024]", stands for this name only.

    Returns:
        Each image and the first input that it was found by. The images are in the order of
        `inputs`, and in natural order within each input (2.jpg before 10.jpg).

    Raises:
        ImageReadError: if an input does not exist, is a pipe or a device, or contains or matches no
            image.
    """
    found: dict[str, tuple[Path, str]] = {}  # path without links: path that is listed, input
    skipped: dict[str, str] = {}  # link that is not followed: reason
    if isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    for given in map(os.fspath, inputs):
        matches = _unique_files(_list_input(given, skipped), skipped)
        for real in sorted(matches, key=lambda real: _natural_key(matches[real])):
            listed, _ = found.setdefault(real, (matches[real], given))
            if os.path.abspath(listed) != os.path.abspath(matches[real]):
                skipped[str(matches[real])] = f"it is the same file as {listed}"
    if not found:
        raise ImageReadError("no images: no input was given")
    if skipped:
        path, reason = next(iter(skipped.items()))
        count = f"{len(skipped)} links" if len(skipped) > 1 else "1 link"
        logger.warning("Skipped %s; the first is %s: %s.", count, path, reason)
    return dict(found.values())


def search_root(given: str) -> Path:
    """Return a folder itself, or the part of a glob pattern before its first wildcard."""
    root = Path()
    for part in Path(given).parts:
        if _is_wildcard(root, part):
            break
        root /= part
    return root


def _list_input(given: str, skipped: dict[str, str]) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        matches = _list_folder(path, skipped)
        if not matches:
            reason = "the folder contains no file with an image extension"
            if videos := _list_folder(path, skipped, VIDEO_EXTENSIONS):
                reason += _but_videos(videos[0])
            raise ImageReadError(f"no images in {given}: {reason}")
        return matches
    if path.exists():
        if not path.is_file():
            raise ImageReadError(f"no images in {given}: it is a pipe or a device, not a file")
        return [path]
    if not glob.has_magic(given):
        raise ImageReadError(f"no images in {given}: no such file or folder")
    suffix = path.suffix
    any_file = suffix != "" and not glob.has_magic(suffix)
    matches, video = [], None
    for match in _expand(Path(), path.parts, skipped):
        if match.is_dir():
            # '**/*' also matches the files in this folder.
            covered = path.parts[-2:] == ("**", "*")
            matches += [] if covered else _list_folder(match, skipped)
        elif any_file or match.suffix.lower() in IMAGE_EXTENSIONS:
            matches.append(match)
        elif match.suffix.lower() in VIDEO_EXTENSIONS:
            video = match
    if not matches:
        reason = "the pattern matches no image file" + (_but_videos(video) if video else "")
        raise ImageReadError(f"no images in {given}: {reason}")
    return matches


def _but_videos(video: Path) -> str:
    pattern = video.with_name(f"*{video.suffix}")
    return f", but videos: give the files or a quoted pattern such as '{pattern}'"


def _is_wildcard(folder: Path, part: str) -> bool:
    return glob.has_magic(part) and not os.path.lexists(folder / part)


def _expand(folder: Path, parts: Sequence[str], skipped: dict[str, str]) -> Iterator[Path]:
    """Yield the paths that match the parts of a pattern.

    ``glob.iglob`` cannot be used: its ``**`` follows a link to a parent folder 40 times, and it
    does not find folders with brackets in their names.
    """
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if not folder.is_dir():
        return
    if part == "**":
        for parent, files in _walk(folder, skipped):
            yield from _expand(parent, rest, skipped) if rest else (parent / f for f in files)
        return
    names = [part]
    if _is_wildcard(folder, part):
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise _search_error(error) from error
        names = [name for name in names if part.startswith(".") or not name.startswith(".")]
        names = fnmatch.filter(names, part)
    for name in names:
        if os.path.lexists(folder / name):
            yield from _expand(folder / name, rest, skipped)


def _search_error(error: OSError) -> ImageReadError:
    return ImageReadError(f"cannot search {error.filename}: {error.strerror or error}")


def _list_folder(
    folder: Path, skipped: dict[str, str], extensions: Set[str] = IMAGE_EXTENSIONS
) -> list[Path]:
    return [
        Path(parent, name)
        for parent, files in _walk(folder, skipped)
        for name in files
        if Path(name).suffix.lower() in extensions
    ]


def _walk(folder: Path, skipped: dict[str, str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below and including `folder` once, with the names of its files.

    Links are followed after everything that is reached without links. Hidden names are omitted.
    """

    def stop(error: OSError) -> None:
        # os.walk would silently skip a folder without read permission.
        raise _search_error(error) from error

    visited: set[str] = set()
    links = [folder]
    for start in links:  # the list grows in the loop
        if os.path.realpath(start) in visited:
            skipped[str(start)] = "its folder is already searched"
            continue
        for parent, folders, files in os.walk(start, onerror=stop):
            real = os.path.realpath(parent)
            if real in visited:  # below a link to a parent of a folder that was searched
                folders.clear()
                continue
            visited.add(real)
            visible = sorted(name for name in folders if not name.startswith("."))
            linked = [name for name in visible if os.path.islink(os.path.join(parent, name))]
            links += [Path(parent, name) for name in linked]
            folders[:] = [name for name in visible if name not in linked]
            files = [name for name in files if not name.startswith(".")]
            for name in files:
                path = os.path.join(parent, name)
                if Path(name).suffix.lower() not in IMAGE_EXTENSIONS and not os.path.exists(path):
                    # The target may have been a folder of photographs.
                    skipped[path] = "it is a link to nothing"
            yield Path(parent), files


def _unique_files(paths: Iterable[Path], skipped: dict[str, str]) -> dict[str, Path]:
    """Return one path for each file, by its path without links."""
    folders: dict[Path, str] = {}
    unique: dict[str, Path] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        real = os.path.join(folders[path.parent], path.name)
        if os.path.islink(path):
            real = os.path.realpath(path)
        other = unique.setdefault(real, path)
        if os.path.abspath(other) == os.path.abspath(path):
            continue
        unique[real], dropped = sorted((other, path), key=_links_and_name)
        skipped[str(dropped)] = f"it is the same file as {unique[real]}"
    return unique


def _links_and_name(path: Path) -> tuple[int, list]:
    return sum(map(os.path.islink, (path, *path.parents))), _natural_key(path)


def _natural_key(path: Path) -> list:
    # The split puts text at even and numbers at odd positions, so they are never compared.
    return [
        [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", part.lower())]
        for part in path.parts
    ]
