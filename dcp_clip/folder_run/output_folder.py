"""The output folder of a folder run, which can be stopped at any moment and resumed.

| file | content |
| --- | --- |
| run.json | the settings of the run, written before the first result |
| results.jsonl | one line for each finished image, appended after its result files are complete |
| coco.json | all finished images, in a run with the format "coco"; written at its end |
| failures.jsonl | file and error of each image that failed; the next run tries these again |
| .lock | locked while a run writes to the folder |
| .unfinished | result files that are not complete; removed at the next start |
| .blocks | finished blocks of a raster that is not finished |
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from dcp_clip.folder_run.line_file import LineFile, file_state
from dcp_clip.folder_run.records import is_result, parse_record, record_key, result_stem
from dcp_clip.folder_run.result_files import ALL_SUFFIXES, DEFAULT_FORMATS, RESULTS, SETTINGS
from dcp_clip.folder_run.settings import describe_difference, kind_of_input
from dcp_clip.utils.atomic_files import atomic_write, remove_unfinished

__all__ = [
    "COCO_FILE",
    "RunFolder",
    "RunFolderError",
    "blocks_folder",
    "is_inside",
    "unfinished_folder",
    "writing",
]

COCO_FILE = "coco.json"  # all images of a run with the format "coco"


class RunFolderError(RuntimeError):
    """The output folder cannot be used. The message is one sentence that names a path."""


def unfinished_folder(folder: Path) -> Path:
    """Return the sub-folder for files that are not complete."""
    return folder / ".unfinished"


def blocks_folder(folder: Path) -> Path:
    """Return the sub-folder for the finished blocks of a raster that is not finished."""
    return folder / ".blocks"


def is_inside(folder: Path, path: Path) -> bool:
    """Return whether a file is inside a folder after all symbolic links are resolved."""
    return path.parent.resolve().is_relative_to(folder.resolve())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a `RunFolderError` that names `path`.

    Raises:
        RunFolderError: if the block raises an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; finished images are kept, so run the "
            "same command again when the folder can be written to"
        ) from error


class RunFolder:
    """The output folder of a run, a context that locks it.

    Call `open`, then `begin`, then append lines to `results` and `failures`.

    Args:
        folder: the folder; it is created.

    Attributes:
        finished: maps the `record_key` of each finished image to the path of its results. That
            path is relative to the folder and has no suffix.
        repeated: number of images that are segmented again, because the last line was incomplete, a
            result image is missing, or the input image has changed.
        results, failures: files for lines of JSON.

    Raises:
        RunFolderError: on entering, if the folder cannot be written to or another run uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished: dict[str, Path] = {}
        self.repeated = 0
        self.results = LineFile(folder / RESULTS)
        self.failures = LineFile(folder / "failures.jsonl")
        self._manifest = folder / SETTINGS
        self._is_new, self._may_replace = True, False
        self._settings: dict[str, Any] = {}
        self._videos: list[str] = []  # those that runs with these settings have made
        self._lock = filelock.FileLock(folder / ".lock")

    def __enter__(self) -> "RunFolder":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunFolderError(
                f"another run is writing to {self.folder}; wait until it ends, or choose another "
                "output folder"
            ) from None
        except NotImplementedError as error:
            raise RunFolderError(
                f"the file system of {self.folder} cannot lock files, so two runs could overwrite "
                "each other; choose an output folder on another file system"
            ) from error
        except OSError as error:
            raise RunFolderError(
                f"cannot use {self.folder} as the output folder: {error.strerror or error}; choose "
                "another one"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.results.close()
        self.failures.close()
        self._lock.release()

    def open(self, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        """Compare the settings with those of the results in the folder, and repair the results.

        Args:
            settings: everything that the results depend on, as values for JSON.
            overwrite: remove results that were made with other settings. Results with the same
                settings stay, so the same command resumes the run.

        Raises:
            RunFolderError: if the folder holds the results of a run with other settings and
                `overwrite` is not set, or if a file cannot be read or written.
        """
        self._settings = json.loads(json.dumps(settings))
        difference = self._difference()
        if difference and not overwrite and self._has_results():
            raise RunFolderError(
                f"{self.folder} holds results of a run with other settings ({difference}); choose "
                "another output folder, or replace the results with --overwrite"
            )
        with writing(self.folder):
            remove_unfinished(self.folder)
            if unfinished_folder(self.folder).exists():
                shutil.rmtree(unfinished_folder(self.folder))
            if difference:
                self._remove_results()
            self._is_new = not self._manifest.exists()
            self._may_replace = overwrite
            if not self._is_new:
                self._read_results()
            self.failures.path.unlink(missing_ok=True)

    def begin(self, pictures: Iterable[Path]) -> None:
        """Write ``run.json`` if the run is new.

        Args:
            pictures: the files that the run will write.

        Raises:
            RunFolderError: if the run is new, `overwrite` is not set and one of the files exists;
                or if ``run.json`` cannot be written.
        """
        if self._is_new:
            for path in () if self._may_replace else pictures:
                if os.path.lexists(path):
                    raise RunFolderError(
                        f"{path} exists and is not from a run in {self.folder}; choose another "
                        "output folder, or replace the file with --overwrite"
                    )
            self._write_manifest()
        with writing(self.results.path):
            self.results.write("")

    def record_video(self, path: Path) -> None:
        """Record a video in ``run.json`` before it is written, so that --overwrite removes it.

        Raises:
            RunFolderError: if ``run.json`` cannot be written.
        """
        name = path.relative_to(self.folder).as_posix()
        if name not in self._videos:
            self._videos.append(name)
            self._write_manifest()

    def _write_manifest(self) -> None:
        content = self._settings | ({"videos": self._videos} if self._videos else {})
        with writing(self._manifest), atomic_write(self._manifest) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    def _difference(self) -> str:
        """Return how the settings of the results in the folder differ; "" if they are equal."""
        try:
            before = json.loads(self._manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            has_results = self.results.path.exists() or self.failures.path.exists()
            return "run.json is missing" if has_results else ""
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"cannot read {self._manifest}: {error}; choose another output folder"
            ) from error
        if isinstance(before, dict):
            self._videos = before.pop("videos", [])
            old, new = kind_of_input(before), kind_of_input(self._settings)
            if old != new:
                return f"the input was {old} and is {new}"
        return describe_difference(before, self._settings)

    def _has_results(self) -> bool:
        """Whether the folder has more than the settings of a run in which nothing was finished."""
        if not self._manifest.exists() or self._videos or blocks_folder(self.folder).exists():
            return True
        return self.results.path.exists() and self.results.path.stat().st_size > 0

    def _lines(self) -> Iterator[tuple[bytes, dict | None]]:
        """Yield the lines of the results and their content, which is None for a damaged line."""
        if not self.results.path.exists():
            return
        with open(self.results.path, "rb") as file:
            for line in file:
                yield line, parse_record(line)

    def records(self) -> Iterator[dict]:
        """Yield the content of the lines of all finished images."""
        return (record for _, record in self._lines() if record is not None)

    def _pictures(self, record: Mapping[str, str]) -> list[Path]:
        """Return the paths of the result files in a line."""
        return [self.folder / record[name] for name in ALL_SUFFIXES if name in record]

    def _read_results(self) -> None:
        """Find the finished images, and remove the other lines from the results."""
        formats = set(self._settings.get("formats", DEFAULT_FORMATS))
        usable: dict[str, int] = {}  # absolute path of an image: number of its line
        count = 0
        for record in (record for _, record in self._lines()):
            count += 1
            if record is None or not formats <= set(record):
                continue
            if not all(map(os.path.isfile, self._pictures(record))):
                continue
            state = file_state(record["file"])
            # An image that does not exist any more keeps its results.
            if state["bytes"] is None or state.items() <= record.items():
                key = record_key(record["file"], record.get("frame"))
                usable[key] = count
                self.finished[key] = result_stem(record)
        self.repeated = count - len(usable)
        if self.repeated:
            numbers = set(usable.values())
            self._remove_files_of_other_lines(numbers)
            with atomic_write(self.results.path) as file:
                for number, (line, _) in enumerate(self._lines(), 1):
                    if number in numbers:
                        file.write(line)

    def _remove_files_of_other_lines(self, numbers: set[int]) -> None:
        """Remove the result files that only lines with other numbers name."""
        kept: set[Path] = set()
        other: set[Path] = set()
        for number, (_, record) in enumerate(self._lines(), 1):
            (kept if number in numbers else other).update(self._pictures(record or {}))
        self._remove(other - kept)

    def _remove(self, files: Iterable[Path]) -> None:
        """Remove those of the files that are in the folder."""
        for path in files:
            if is_inside(self.folder, path):
                path.unlink(missing_ok=True)

    def _remove_results(self) -> None:
        """Remove the results of a run.

        The settings are removed last, so an interruption leaves a valid folder.
        """
        for record in self.records():
            self._remove(self._pictures(record))
            self._remove([self.folder / COCO_FILE] * ("coco" in record))
        videos = [name for name in self._videos if is_result(name, ("_overlay.mp4",))]
        self._remove(self.folder / name for name in videos)
        self._videos = []
        shutil.rmtree(blocks_folder(self.folder), ignore_errors=True)
        for path in (self.failures.path, self.results.path, self._manifest):
            path.unlink(missing_ok=True)
