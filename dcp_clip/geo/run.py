"""Segment a raster block by block. A run can be stopped at any moment and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dcp_clip.folder_run.line_file import file_state
from dcp_clip.folder_run.output_folder import blocks_folder, unfinished_folder
from dcp_clip.found_categories import FoundCategory, area_shares, find_categories
from dcp_clip.geo.area import check_has_areas
from dcp_clip.geo.label_file import label_type, write_geotiff, write_label_geotiff
from dcp_clip.geo.polygons import polygon_suffix, write_polygons
from dcp_clip.geo.raster import Raster, Region
from dcp_clip.geo.rasterio_files import open_raster
from dcp_clip.modeling.large_image import LargeImage, window_of
from dcp_clip.prediction import make_prediction
from dcp_clip.predictor import Predictor
from dcp_clip.utils.atomic_files import atomic_write, remove_unfinished
from dcp_clip.utils.images.writing import write_jpeg
from dcp_clip.utils.visualization import draw_overlay

__all__ = ["RASTER_FORMATS", "RasterRun", "publish", "raster_suffixes"]

RASTER_FORMATS = ("overlay", "labels", "confidence", "polygons")
BLOCK = 4096  # side in pixels of the parts that are segmented at once; it bounds the memory


def raster_suffixes() -> dict[str, str]:
    """Return what each format appends to the name of a raster."""
    suffixes = ("_overlay.jpg", "_labels.tif", "_confidence.tif", polygon_suffix())
    return dict(zip(RASTER_FORMATS, suffixes))


class RasterRun:
    """The segmentation of one raster.

    Each finished block is a file in the folder for blocks. When all blocks are finished, they are
    put together.
    """

    def __init__(
        self,
        predictor: Predictor,
        raster: Raster,
        output: Path,
        formats: Sequence[str],
        settings: dict[str, Any],
    ):
        """
        Args:
            predictor: the model and its vocabulary.
            raster: an open raster.
            output: folder for the results; must exist.
            formats: keys of `RASTER_FORMATS`.
            settings: what the results depend on, except the raster.

        Raises:
            ValueError: if the vocabulary is too large for a raster, or polygons are wanted but the
                raster has no coordinate system on the Earth.
        """
        if "polygons" in formats:
            check_has_areas(raster.path, raster.dataset.crs)
        self.predictor, self.raster, self.output, self.formats = predictor, raster, output, formats
        self._vocabulary = predictor.vocabulary
        self._kind, self._nodata = label_type(self._vocabulary)
        state = [settings, file_state(raster.path), str(raster.path.resolve()), raster.settings()]
        digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]
        self._blocks = blocks_folder(output) / digest
        self._area = _Area(raster)

    def segment(self, allowed: AbstractContextManager[None] | Any) -> None:
        """Segment the blocks that are not finished.

        Args:
            allowed: a function that returns a context in which KeyboardInterrupt may be raised.

        Raises:
            ImageReadError: if the raster cannot be read.
            OSError: if a block cannot be written.
        """
        self._blocks.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self._blocks)
        window = window_of(self.predictor.model)
        self._large = LargeImage(
            self.predictor.model,
            self._vocabulary,
            self.raster.size,
            window.reduce(torch.from_numpy(self.raster.overview()[0])),
            self._area.read,
            "confidence" in self.formats or self.predictor.unknown_below > 0,
        )
        ids, scores = (self._large.proposals[key].tolist() for key in ("ids", "scores"))
        self._scores = dict(zip(ids, scores))
        regions = list(self.raster.blocks(BLOCK))
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining} left]"
        for region in tqdm(regions, self.raster.path.name, unit=" blocks", bar_format=form):
            path = self._block(region)
            if path.exists():
                continue
            with allowed():
                arrays = self._segment_block(region, window.size)
            with atomic_write(path) as file:
                np.savez_compressed(file, **arrays)
        self._area.release()

    def finish(self, stem: Path) -> tuple[dict[Path, Path], dict[str, Any]]:
        """Put the blocks together.

        Args:
            stem: path of the results relative to `output`, without suffix.

        Returns:
            The final path of each file, by its path in the folder for incomplete files. The line of
            the raster in the results.

        Raises:
            OSError: if a file cannot be written.
        """
        start = time.perf_counter()
        aside = unfinished_folder(self.output)
        aside.mkdir(exist_ok=True)
        files = {key: aside / f"raster{suffix}" for key, suffix in raster_suffixes().items()}
        counts = np.zeros(np.iinfo(self._kind).max + 1, np.int64)
        write_label_geotiff(files["labels"], self.raster, self._parts(counts), self._vocabulary)
        if "confidence" in self.formats:
            parts = ((r, np.load(self._block(r))["confidence"]) for r in self._regions())
            tags = {"DESCRIPTION": "probability that the label is right: 255 is certain"}
            write_geotiff(files["confidence"], self.raster, parts, np.uint8, None, tags)
        found = self._found(counts)
        lines = [asdict(category) for category in found]
        if "polygons" in self.formats:
            files["polygons"].unlink(missing_ok=True)
            areas = write_polygons(files["labels"], files["polygons"], self._vocabulary)
            for line in lines:
                line["area_m2"] = areas.get(line["id"])
        if "overlay" in self.formats:
            self._write_overlay(files["labels"], files["overlay"], found)
        height, width = self.raster.size
        crs = self.raster.dataset.crs
        suffixes = raster_suffixes()
        targets = {key: stem.with_name(stem.name + suffixes[key]) for key in self.formats}
        line = {
            "file": str(self.raster.path),
            **file_state(self.raster.path),
            "width": width,
            "height": height,
            "crs": crs.to_string() if crs else None,
            **self.raster.settings(),
            "nodata": self._nodata,
            "categories": lines,
            "finish_seconds": round(time.perf_counter() - start, 1),
            **{key: path.as_posix() for key, path in targets.items()},
        }
        return {files[key]: self.output / path for key, path in targets.items()}, line

    def remove_blocks(self) -> None:
        """Remove the blocks, when the results have their final names."""
        for folder in (self._blocks, unfinished_folder(self.output)):
            shutil.rmtree(folder, ignore_errors=True)

    def _segment_block(self, region: Region, margin: int) -> dict[str, np.ndarray]:
        valid = self._area.load(region, margin)
        confidence = np.zeros(valid.shape, np.uint8)
        if valid.any():
            sem_seg = self._large.segment(region)
            below = self.predictor.unknown_below
            prediction = make_prediction(sem_seg, self._scores, self._vocabulary, below)
            labels = prediction.label_map.astype(self._kind)
            labels[~valid] = self._nodata
            if "confidence" in self.formats:
                confidence = np.rint(255 * prediction.confidence).astype(np.uint8)
                confidence[~valid] = 0
        else:
            labels = np.full(valid.shape, self._nodata, self._kind)
        return {"labels": labels} | (
            {"confidence": confidence} if "confidence" in self.formats else {}
        )

    def _block(self, region: Region) -> Path:
        return self._blocks / f"{region[0]}_{region[1]}.npz"

    def _regions(self) -> Iterator[Region]:
        return self.raster.blocks(BLOCK)

    def _parts(self, counts: np.ndarray) -> Iterator[tuple[Region, np.ndarray]]:
        """Yield the labels of each block, and add the number of pixels of each value."""
        for region in self._regions():
            labels = np.load(self._block(region))["labels"]
            for row in range(0, len(labels), 256):
                counts += np.bincount(labels[row : row + 256].ravel(), minlength=len(counts))
            yield region, labels

    def _found(self, counts: np.ndarray) -> list[FoundCategory]:
        """The categories by area; shares are of the pixels with data."""
        unknown, num_categories = self._vocabulary.unknown_id, len(self._vocabulary)
        total = max(1, int(counts.sum() - counts[self._nodata]))
        unknown_pixels = counts[unknown] if unknown >= num_categories else 0
        return find_categories(
            counts[:num_categories] / total, unknown_pixels / total, self._scores, self._vocabulary
        )

    def _write_overlay(self, labels: Path, path: Path, found: list[FoundCategory]) -> None:
        image, _ = self.raster.overview()
        with open_raster(labels) as dataset:
            small = dataset.read(1, out_shape=image.shape[1:])
        shares, unknown = area_shares(found, len(self._vocabulary))
        picture = np.ascontiguousarray(image.transpose(1, 2, 0))
        overlay = draw_overlay(picture, small, self._vocabulary, shares, unknown_share=unknown)
        write_jpeg(path, overlay)


class _Area:
    """The pixels of a block and of all windows that touch it."""

    def __init__(self, raster: Raster):
        self._raster = raster

    def load(self, region: Region, margin: int) -> np.ndarray:
        """Read the pixels, and return where the region has data, (h, w) bool."""
        top, left, height, width = region
        self._top, self._left = max(top - margin, 0), max(left - margin, 0)
        bottom = min(top + height + margin, self._raster.size[0])
        right = min(left + width + margin, self._raster.size[1])
        area = self._top, self._left, bottom - self._top, right - self._left
        image, self._valid = self._raster.read(area)
        self._image = torch.from_numpy(image)
        return self._cut(self._valid, *region)

    def release(self) -> None:
        """Free the memory of the pixels."""
        self._image = self._valid = None

    def read(self, *place: int) -> Tensor | None:
        """Return the pixels of a window, see `LargeImage`."""
        if not self._cut(self._valid, *place).any():
            return None
        return self._cut(self._image, *place)

    def _cut(self, array: Any, top: int, left: int, height: int, width: int) -> Any:
        top, left = top - self._top, left - self._left
        return array[..., top : top + height, left : left + width]


def publish(files: dict[Path, Path]) -> None:
    """Move the files of a raster to their final paths."""
    for source, target in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
