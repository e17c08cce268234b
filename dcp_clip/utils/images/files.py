"""Open image files safely: a fixed list of formats, bounded size, and one type of error.

This module opens every image file that the project reads: photographs, label maps and drawings.
Pillow recognises a format by the content of a file, not by its name, and one of its formats (EPS)
starts another program. Here a file of another format is an error, whatever its name is.
"""

import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

# Pillow recognises these formats by a signature. Other formats have no signature (any file can look
# like TGA), or start another program (EPS).
PHOTOGRAPH_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# The largest cameras have about 200 megapixels. Pillow's own limit (89) would reject their images.
MAX_FILE_PIXELS = 300_000_000
# Pillow refuses a PNG with more text than this in one chunk (and 64 times as much in all chunks).
_MAX_PNG_TEXT = 1 << 20
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The chunks that Pillow decompresses when it reads the header.
_PNG_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_open_lock = threading.Lock()


class ImageReadError(ValueError):
    """A file cannot be read as an image; the message is one sentence and contains the path."""


@contextmanager
def open_image(
    path: str | os.PathLike,
    formats: Sequence[str] = PHOTOGRAPH_FORMATS,
    content: bytes | None = None,
) -> Iterator[Image.Image]:
    """Open an image file for decoding.

    Decode the image inside the ``with`` block. An error of the decoder becomes an ImageReadError.

    Args:
        path: an image file.
        formats: Pillow's names of the accepted formats. The content decides, not the file's name.
        content: the bytes of the file, if they are in memory; `path` is then only its name.

    Yields:
        the image, of which only the header has been read.

    Raises:
        ImageReadError: if the file does not exist, is empty, damaged, truncated, of another format,
            or has more than 300 million pixels.
    """
    path = Path(path)
    try:
        if content is None and path.exists() and not path.is_file():
            raise ImageReadError(f"cannot read {path}: it is a folder or device, not an image file")
        # Opened by its name, Pillow 13 scrambles some TIFF files that it has to rotate.
        with open(path, "rb") if content is None else io.BytesIO(content) as stream:
            if not stream.seek(0, os.SEEK_END):
                raise ImageReadError(f"cannot read {path}: the file is empty")
            stream.seek(0)
            with _open(_without_long_text(stream), formats) as image:
                width, height = image.size
                if width * height > MAX_FILE_PIXELS:
                    raise ImageReadError(
                        f"cannot read {path}: {width} x {height} pixels are more than the limit "
                        f"of {MAX_FILE_PIXELS // 10**6} megapixels; reduce the image"
                    )
                yield image
    except ImageReadError:
        raise
    except UnidentifiedImageError as e:
        reason = "it is not an image, or its header is damaged"
        if path.suffix.lower() in (".heic", ".heif"):
            reason = "the HEIC format is not supported; convert it to JPEG"
        raise ImageReadError(f"cannot read {path}: {reason}") from e
    except Exception as e:  # Pillow's decoders raise many types of exceptions for damaged files
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise ImageReadError(f"cannot read {path}: {' '.join(reason.split())}") from e


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) if it has none."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # a damaged EXIF block does not matter
        return 1
    return orientation if orientation in range(1, 9) else 1


def _open(stream: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """Open an image without Pillow's limit on the pixels; `open_image` has a higher limit."""
    # Pillow reads the limit from a global variable while it parses the header.
    with _open_lock:
        Image.init()  # Image.open knows only common formats before this call
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(stream, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _without_long_text(stream: BinaryIO) -> BinaryIO:
    """Hide the long texts and colour profiles of a PNG file, which Pillow would refuse.

    A chunk is hidden if, with the chunks before it, it has more than 1 MiB of text. A few kB can
    decompress to that. The pixels do not depend on these chunks.
    """
    hidden = []
    if stream.read(8) == _PNG_SIGNATURE:
        budget = _MAX_PNG_TEXT
        while len(header := stream.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            start = stream.tell()
            if kind in _PNG_TEXT_CHUNKS:
                # Also in compressed form, a longer text exceeds the budget.
                size = _text_size(kind, stream.read(length), budget) if length < budget else budget
                budget -= size
                if not budget:
                    hidden.append((start, length))
            if kind == b"IEND":
                break
            stream.seek(start + length + 4)
    stream.seek(0)
    if not hidden:
        return stream
    content = bytearray(stream.read())
    for start, length in hidden:
        # Pillow skips chunks of an unknown type, but checks their checksum.
        content[start - 4 : start] = b"sKIp"
        end = start + length
        content[end : end + 4] = struct.pack(">I", zlib.crc32(memoryview(content)[start - 4 : end]))
    return io.BytesIO(content)


def _text_size(kind: bytes, chunk: bytes, limit: int) -> int:
    """Return the length of a PNG text in memory, or `limit` if it is longer."""
    rest = chunk.partition(b"\0")[2]  # after the keyword
    compressed = b""
    if kind in (b"zTXt", b"iCCP"):
        compressed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        compressed = rest[2:].split(b"\0", 2)[-1]
    try:
        text = zlib.decompressobj().decompress(compressed, limit)
    except zlib.error:
        text = b""
    return min(limit, len(chunk) + len(text))
