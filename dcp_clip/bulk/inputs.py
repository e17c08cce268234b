"""Find the input images of a bulk run: folders, patterns, lists and WebDataset shards.

An image is a row of `SCHEMA`. A member of a shard is read by its position, so a worker needs no
other part of the shard.
"""

import glob
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from dcp_clip.bulk.storage import StorageError, locate
from dcp_clip.utils.images.listing import IMAGE_EXTENSIONS, list_images

__all__ = ["SCHEMA", "InputError", "find_inputs", "index_shard"]

# offset and size are null for whole files.
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
_LIST_COLUMNS = ("file", "path")
_SHARD, _LISTS = ".tar", (".parquet", ".jsonl")


class InputError(ValueError):
    """An input cannot be used. The message is one sentence that names it."""


def find_inputs(
    inputs: Sequence[str],
    index_shards: Callable[[list[str]], Iterable[pa.Table]] = lambda urls: map(index_shard, urls),
) -> pa.Table:
    """Return the table of all images, sorted by file and member, each once.

    Args:
        inputs: folders, glob patterns, image files, lists (.parquet or .jsonl with a column "file"
            or "path") and WebDataset shards (.tar, also by a pattern); each a path or a URL. A
            relative path, also one in a list, is relative to the working folder.
        index_shards: maps `index_shard` over shards, for example on a cluster.

    Raises:
        InputError, StorageError, ImageReadError: if an input does not exist, has no image, or has
            another content.
    """
    files: list[str] = []
    shards: list[str] = []
    for url in _expand(inputs):
        suffix = PurePosixPath(url).suffix.lower()
        if suffix == _SHARD:
            shards.append(url)
        elif suffix in _LISTS:
            for listed in _read_list(url):
                is_shard = PurePosixPath(listed).suffix.lower() == _SHARD
                (shards if is_shard else files).append(_absolute(listed))
        else:
            files.append(url)
    tables = [_table(sorted(set(files))), *index_shards(sorted(set(shards)))]
    table = pa.concat_tables(tables).combine_chunks()
    if not len(table):
        raise InputError(f"no images in {', '.join(inputs)}")
    return table.sort_by([("file", "ascending"), ("member", "ascending"), ("offset", "ascending")])


def _table(files: list[str]) -> pa.Table:
    for file in files:
        _check_name(file)
    nothing = pa.nulls(len(files))
    columns = [pa.array(files, pa.string()), pa.array([""] * len(files), pa.string())]
    return pa.table([*columns, *(nothing.cast(pa.int64()) for _ in range(2))], schema=SCHEMA)


def _check_name(name: str, shard: str | None = None) -> None:
    """Check that the name of an image can be stored in a table."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        where = "" if shard is None else f" in {shard}"
        message = f"the name of the image {ascii(name)}{where} is not valid UTF-8: rename it"
        raise InputError(message) from error


def _absolute(url: str) -> str:
    """Return a local path as an absolute path, and a URL as it is."""
    fs, path = locate(url)
    return path if isinstance(fs, LocalFileSystem) else url


def _expand(inputs: Sequence[str]) -> Iterator[str]:
    """Yield the files of all inputs: images, lists and shards."""
    local = []
    for given in inputs:
        fs, path = locate(given)
        if isinstance(fs, LocalFileSystem):
            local.append(path)
        else:
            yield from _expand_remote(given)
    if local:
        yield from (os.path.abspath(image) for image in list_images(local))


def _expand_remote(given: str) -> list[str]:
    fs, path = locate(given)
    suffix = PurePosixPath(path).suffix.lower()
    try:
        if glob.has_magic(path) and not fs.exists(path):
            found = fs.glob(path)
            if suffix != _SHARD and suffix not in _LISTS:
                found = [name for name in found if _is_image(name)]
            if not _is_hidden(path):
                found = [name for name in found if not _is_hidden(name)]
        elif suffix == _SHARD or suffix in _LISTS or suffix in IMAGE_EXTENSIONS:
            return [given]
        else:
            found = [
                name
                for name in fs.find(path)
                if _is_image(name) and not _is_hidden(name[len(path) :])
            ]
    except Exception as error:  # each file system has its own types of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"cannot list {given}: {reason}") from error
    if not found:
        raise InputError(f"no images in {given}")
    return sorted(fs.unstrip_protocol(name) for name in found)


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS


def _is_hidden(path: str) -> bool:
    """Whether a part of a path is hidden, such as "._a.jpg", which macOS adds to archives."""
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(path).parts)


def _read_list(url: str) -> list[str]:
    fs, path = locate(url)
    read = _parquet_paths if path.lower().endswith(".parquet") else _json_paths
    try:
        with fs.open(path, "rb") as file:
            paths = list(read(file))
    except Exception as error:  # each file system has its own types of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the list {url}: {reason}") from error
    if all(listed is None for listed in paths):
        raise InputError(f"the list {url} has no column 'file' or 'path'")
    if not all(isinstance(listed, str) and listed for listed in paths):
        raise InputError(f"the list {url} has rows without a path")
    return paths


def _parquet_paths(file: io.IOBase) -> list[Any]:
    parquet = pq.ParquetFile(file)
    known = [name for name in _LIST_COLUMNS if name in parquet.schema_arrow.names]
    return parquet.read(columns=known[:1])[known[0]].to_pylist() if known else []


def _json_paths(file: io.IOBase) -> Iterator[Any]:
    for line in filter(bytes.strip, file):
        row = json.loads(line)
        yield next((row[name] for name in _LIST_COLUMNS if name in row), None)


def index_shard(url: str) -> pa.Table:
    """Return the images of a WebDataset shard with their positions, without reading them.

    Raises:
        InputError: if the file is no tar file, or is compressed, damaged or truncated.
    """
    fs, path = locate(url)
    rows = []
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile() and _is_image(member.name) and not _is_hidden(member.name):
                    _check_name(member.name, url)
                    rows.append((url, member.name, member.offset_data, member.size))
            _check_end(file, tar.offset)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no images in {url}: no such file") from error
    except Exception as error:  # each file system has its own types of errors
        raise InputError(f"cannot read {url} as a tar file: {error}") from error
    columns = list(zip(*rows)) if rows else [[]] * len(SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA)], schema=SCHEMA)


def _check_end(file: io.IOBase, offset: int) -> None:
    """Check that a tar file ends where `tarfile` stopped.

    For `tarfile`, a damaged or truncated header is the end of the file.
    """
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE + 2 * tarfile.RECORDSIZE)
    if len(end) < tarfile.BLOCKSIZE or any(end[: tarfile.BLOCKSIZE]):
        raise tarfile.ReadError(f"it is damaged or truncated at byte {offset}")
    if any(end):
        raise tarfile.ReadError(f"more data follows its end at byte {offset}")
