"""The output folder of a bulk run: a fixed list of images, in partitions that are written whole.

| file | content |
| --- | --- |
| _run.json | the settings and the number of images; written after the list |
| _inputs/*.parquet | the sorted list of the images; each row group is a partition |
| part-*.parquet | the results of a partition, one row for each image, in the order of the list |
| _summary.json | counts, written when all partitions are finished |

Readers of Parquet folders (PyArrow, Spark, DuckDB) skip names that begin with an underscore.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from dcp_clip.bulk.storage import Folder
from dcp_clip.folder_run.settings import describe_difference
from dcp_clip.utils.atomic_files import remove_unfinished

__all__ = ["BulkFolder", "BulkFolderError"]

_RUN, _SUMMARY = "_run.json", "_summary.json"
# A worker reads the footer of a whole list file for each partition, so the files are short.
_PARTITIONS_PER_LIST = 256
_PART = re.compile(r"part-(\d{7})\.parquet")
# Another run may be writing files that were changed later than this before now.
_UNFINISHED_SECONDS = 3600
_HAS_ERROR = pc.field("error").is_valid()


class BulkFolderError(RuntimeError):
    """The output folder cannot be used. The message is one sentence that names it."""


class BulkFolder:
    """The output folder of a bulk run. Workers get copies of this object.

    Args:
        url: path or URL of the folder.

    Attributes:
        images: number of images of the run, after `open`.
        size: number of images in each partition except the last one, after `open`.
    """

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        self.images = self.size = 0

    @property
    def partitions(self) -> int:
        """Number of partitions."""
        return -(-self.images // self.size)

    def length(self, partition: int) -> int:
        """Return the number of images of a partition."""
        return min(self.size, self.images - partition * self.size)

    def open(self, inputs: pa.Table, size: int, settings: Mapping[str, Any]) -> None:
        """Start a run, or check that the run in the folder has the same images and settings.

        Args:
            inputs: the images, see `dcp_clip.bulk.inputs.find_inputs`.
            size: number of images in a partition.
            settings: everything else that the results depend on, as values for JSON.

        Raises:
            BulkFolderError: if the folder has the results of another run.
            WriteError: if the folder cannot be written to.
        """
        self.images, self.size = len(inputs), size
        now = {**settings, "images": self.images, "partition size": size}
        now = json.loads(json.dumps({**now, "list of images": _fingerprint(inputs)}))
        found = self.folder.read(_RUN)
        if found is None:
            if self.finished():
                raise BulkFolderError(
                    f"{self.folder.url} has results but no {_RUN}; choose another output folder"
                )
            self._write_list(inputs)
            self.folder.write(_RUN, json.dumps(now, indent=1).encode() + b"\n")
        else:
            try:
                difference = describe_difference(json.loads(found), now)
            except ValueError as error:
                raise BulkFolderError(
                    f"{self.folder.url}/{_RUN} is damaged: {error}; choose another output folder"
                ) from error
            if difference:
                raise BulkFolderError(
                    f"{self.folder.url} has results of a run with other settings or images "
                    f"({difference}); choose another output folder"
                )
        if self.folder.is_local:
            remove_unfinished(Path(self.folder.path), _UNFINISHED_SECONDS)

    def _write_list(self, inputs: pa.Table) -> None:
        step = _PARTITIONS_PER_LIST * self.size
        for number, start in enumerate(range(0, self.images, step)):
            content = io.BytesIO()
            pq.write_table(inputs.slice(start, step), content, row_group_size=self.size)
            self.folder.write(f"_inputs/{number:05}.parquet", content.getvalue())

    def read_list(self, partition: int) -> pa.Table:
        """Return the images of a partition."""
        number, group = divmod(partition, _PARTITIONS_PER_LIST)
        with self.folder.open(f"_inputs/{number:05}.parquet") as file:
            return pq.ParquetFile(file).read_row_group(group)

    def finished(self) -> set[int]:
        """Return the numbers of the finished partitions."""
        matches = map(_PART.fullmatch, self.folder.names())
        return {int(match[1]) for match in matches if match}

    def with_errors(self, partitions: set[int]) -> set[int]:
        """Return those of some finished partitions that have rows with an error.

        Raises:
            BulkFolderError: if a file is damaged.
        """
        with self._reading():
            files = self._rows(partitions).get_fragments()
            names = [file.path.rpartition("/")[2] for file in files if file.count_rows(_HAS_ERROR)]
        return {int(_PART.fullmatch(name)[1]) for name in names}

    def _rows(self, partitions: Iterable[int]) -> pyarrow.dataset.Dataset:
        root = self.folder.path.rstrip("/")
        files = [f"{root}/part-{number:07}.parquet" for number in partitions]
        return pyarrow.dataset.dataset(files, filesystem=self.folder.fs, format="parquet")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowInvalid as error:
            name = re.search(_PART.pattern, str(error))
            raise BulkFolderError(
                f"{self.folder.url}/{name[0] if name else 'part-*.parquet'} is damaged: delete it, "
                f"and start the run again ({' '.join(str(error).split())})"
            ) from error

    def write_partition(self, partition: int, rows: pa.Table) -> None:
        """Write the results of a partition.

        A worker that was thought to be dead may write the same partition again: the content is the
        same, so it does not matter which file stays.

        Raises:
            WriteError: if the file cannot be written.
        """
        content = io.BytesIO()
        pq.write_table(rows, content, compression="zstd")
        self.folder.write(f"part-{partition:07}.parquet", content.getvalue())

    def finish(self) -> dict[str, int]:
        """Count the rows of all partitions, and write ``_summary.json``.

        Returns:
            "images", "errors" and "partitions".

        Raises:
            BulkFolderError: if rows are missing, there are too many, or a file is damaged.
        """
        with self._reading():
            rows = self._rows(range(self.partitions))
            count, errors = rows.count_rows(), rows.count_rows(filter=_HAS_ERROR)
        if count != self.images:
            raise BulkFolderError(
                f"{self.folder.url} has {count} rows for {self.images} images; a program other "
                "than this one has changed its files, so choose another output folder"
            )
        summary = {"images": count, "errors": errors, "partitions": self.partitions}
        self.folder.write(_SUMMARY, json.dumps(summary, indent=1).encode() + b"\n")
        return summary


def _fingerprint(inputs: pa.Table) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the list."""
    digest = hashlib.sha256()
    for batch in inputs.combine_chunks().to_batches(max_chunksize=65536):
        digest.update(json.dumps(batch.to_pydict()).encode())
    return digest.hexdigest()[:16]
