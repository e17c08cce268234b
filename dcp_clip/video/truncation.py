"""Notice that the end of a video file is missing, by the sizes that the file itself states.

Times are no measure for this: sound can be longer than the pictures, and the time between frames
can vary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_truncated"]

_UNKNOWN = 0  # an end that a file does not state
_SEGMENT = 0x18538067  # the element of Matroska that contains the whole video
_MEDIA_BOXES = (b"moov", b"moof", b"mdat")
# GUIDs of ASF: the header, and the object in it that states the size of the file.
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def is_truncated(path: Path, container: str) -> bool:
    """Return whether a file ends before the end that it states.

    Files that are written while they are sent or recorded may state none, and those of MPEG, FLV
    and Ogg never do.

    Args:
        path: a video file.
        container: FFmpeg's name of its format, such as "matroska,webm".
    """
    find_end = _ENDS.get(container.partition(",")[0])
    if find_end is None:
        return False
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            return find_end(file, size) > size
        except (OSError, OverflowError, ValueError):
            return False  # a damaged size leads to a place that no file can have


def _matroska_end(file: BinaryIO, size: int) -> int:
    """RFC 8794: the segment states its size, or has only ones there."""
    while file.tell() < size:
        name, _ = _variable_integer(file)
        length, bits = _variable_integer(file)
        content = length & ((1 << bits) - 1)
        if name == _SEGMENT:
            return file.tell() + content if content < (1 << bits) - 1 else _UNKNOWN
        file.seek(content, 1)
    return _UNKNOWN


def _variable_integer(file: BinaryIO) -> tuple[int, int]:
    """Read an integer with its length marker; return it and the number of bits after the marker."""
    first = file.read(1)
    length = 9 - first[0].bit_length() if first else 1
    return int.from_bytes(first + file.read(length - 1), "big"), 7 * length


def _mp4_end(file: BinaryIO, size: int) -> int:
    """ISO/IEC 14496-12: each box states its size; 0 is up to the end of the file."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if length < 8:
            break
        # What some cameras append is no box.
        if header[4:8] in _MEDIA_BOXES and start + length > size:
            return start + length
        start += length
    return _UNKNOWN


def _avi_end(file: BinaryIO, size: int) -> int:
    """OpenDML: one chunk, or several in a large file; recordings that were killed have no size."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        if name != b"RIFF" or length in (0, 0xFFFFFFFF):
            break
        start += 8 + length
        if start > size:
            return start
        start += length % 2
    return _UNKNOWN


def _asf_end(file: BinaryIO, size: int) -> int:
    """Advanced Systems Format: a broadcast has a flag, and no size."""
    header = file.read(30)
    end = int.from_bytes(header[16:24], "little")
    while header.startswith(_ASF_HEADER) and file.tell() < min(end, size):
        start = file.tell()
        fields = file.read(92)
        if fields.startswith(_ASF_FILE):
            is_broadcast = fields[88:89] != b"" and fields[88] & 1
            return _UNKNOWN if is_broadcast else int.from_bytes(fields[40:48], "little")
        file.seek(start + max(24, int.from_bytes(fields[16:24], "little")))
    return _UNKNOWN


_ENDS: dict[str, Callable[[BinaryIO, int], int]] = {
    "matroska": _matroska_end,
    "mov": _mp4_end,
    "avi": _avi_end,
    "asf": _asf_end,
}
