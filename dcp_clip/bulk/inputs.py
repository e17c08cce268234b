"""Find the input images of a bulk run: folders, patterns, lists and WebDataset shards.

An image is a row of `SCHEMA`. A member of a shard is read by its position, so a worker needs no
other part of the shard.
"""

import glob
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.json
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
    for given in inputs:
        for url in _expand(given):
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
    nothing = pa.nulls(len(files))
    columns = [pa.array(files, pa.string()), pa.array([""] * len(files), pa.string())]
    return pa.table([*columns, *(nothing.cast(pa.int64()) for _ in range(2))], schema=SCHEMA)


def _absolute(url: str) -> str:
    """Return a local path as an absolute path, and a URL as it is."""
    fs, path = locate(url)
    return path if isinstance(fs, LocalFileSystem) else url


def _expand(given: str) -> list[str]:
    """Return the files of one input: images, lists and shards."""
    fs, path = locate(given)
    if not isinstance(fs, LocalFileSystem):
        return _expand_remote(given)
    return [_absolute(str(image)) for image in list_images([path])]


def _expand_remote(given: str) -> list[str]:
    fs, path = locate(given)
    suffix = PurePosixPath(path).suffix.lower()
    try:
        if glob.has_magic(path) and not fs.exists(path):
            found = fs.glob(path)
            if suffix != _SHARD and suffix not in _LISTS:
                found = _images(found)
        elif suffix == _SHARD or suffix in _LISTS or suffix in IMAGE_EXTENSIONS:
            return [given]
        else:
            found = _images(fs.find(path))
    except Exception as error:  # each file system has its own types of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"cannot list {given}: {reason}") from error
    if not found:
        raise InputError(f"no images in {given}")
    return sorted(fs.unstrip_protocol(name) for name in found)


def _images(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if PurePosixPath(path).suffix.lower() in IMAGE_EXTENSIONS]


def _read_list(url: str) -> list[str]:
    fs, path = locate(url)
    try:
        with fs.open(path, "rb") as file:
            if path.lower().endswith(".parquet"):
                parquet = pq.ParquetFile(file)
                names = parquet.schema_arrow.names
                known = [name for name in _LIST_COLUMNS if name in names]
                table = parquet.read(columns=known[:1])
            else:
                table = pyarrow.json.read_json(file)
    except Exception as error:  # each file system has its own types of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the list {url}: {reason}") from error
    known = [name for name in _LIST_COLUMNS if name in table.column_names]
    if not known:
        raise InputError(f"the list {url} has no column 'file' or 'path'")
    column = table[known[0]]
    if column.null_count or not pa.types.is_string(column.type):
        if not pa.types.is_large_string(column.type) or column.null_count:
            raise InputError(f"the column '{known[0]}' of the list {url} has values without a path")
    return column.to_pylist()


def index_shard(url: str) -> pa.Table:
    """Return the images of a WebDataset shard with their positions, without reading them.

    Raises:
        InputError: if the file is no tar file, or is compressed or truncated.
    """
    fs, path = locate(url)
    rows = []
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                suffix = PurePosixPath(member.name).suffix.lower()
                if member.isfile() and suffix in IMAGE_EXTENSIONS:
                    rows.append((url, member.name, member.offset_data, member.size))
    except FileNotFoundError as error:
        raise InputError(f"no images in {url}: no such file") from error
    except Exception as error:  # each file system has its own types of errors
        raise InputError(f"cannot read {url} as a tar file: {error}") from error
    columns = list(zip(*rows)) if rows else [[]] * len(SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA)], schema=SCHEMA)
