"""Write the overlay video of segmented frames, and measure how much their labels flicker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dcp_clip.utils.images.files import open_image
from dcp_clip.utils.label_maps import category_shares
from dcp_clip.utils.visualization import draw_overlay
from dcp_clip.video.frames import VideoReader, import_av
from dcp_clip.vocabulary import Vocabulary

__all__ = ["changed_fraction", "mean_shares", "write_overlay_video"]


_TICK = Fraction(1, 90000)  # of the times of frames, in seconds


def changed_fraction(label_maps: Iterable[Path]) -> float:
    """Return the fraction of the pixels whose label differs from the frame before.

    Args:
        label_maps: files of the frames in order, all of one size.

    Returns:
        The mean over all pairs of consecutive frames, 0 to 1; 0 for fewer than two frames.
    """
    changed, pairs, before = 0.0, 0, None
    for path in label_maps:
        labels = _read(path)
        if before is not None and before.shape == labels.shape:
            changed += float(np.mean(before != labels))
            pairs += 1
        before = labels
    return changed / max(1, pairs)


def mean_shares(label_maps: Iterable[Path], vocabulary: Vocabulary) -> tuple[np.ndarray, float]:
    """Return the mean share of each category (C,) in the frames, and that of unknown pixels."""
    total, unknown, count = np.zeros(len(vocabulary)), 0.0, 0
    for path in label_maps:
        labels = _read(path)
        total += category_shares(labels, len(vocabulary))
        unknown += float(np.mean(labels >= len(vocabulary)))
        count += 1
    return total / max(1, count), unknown / max(1, count)


def write_overlay_video(
    path: Path,
    unfinished: Path,
    reader: VideoReader,
    label_maps: Mapping[int, Path],
    vocabulary: Vocabulary,
    every: int,
) -> None:
    """Draw the label maps over their frames, and encode them (H.264).

    The legend is the same in all frames: it has the shares of the whole clip. The label maps are
    read from their files, so a run that was killed loses no more than the encoding.

    Args:
        path: the file to write.
        unfinished: path of the file while it is not complete.
        reader: the video.
        label_maps: files by number of the frame.
        vocabulary: names and colours.
        every: the overlay has every n-th frame, at its time in the video. The last one is shown
            up to the end of the video.

    Raises:
        ImageReadError: if the video cannot be read.
        OSError: if the file cannot be written.
    """
    av = import_av()
    shares, unknown = mean_shares(label_maps.values(), vocabulary)
    bar = tqdm(total=len(label_maps), desc=path.name, unit=" frames")
    with bar, av.open(str(unfinished), "w", format="mp4") as container:
        stream, last = None, None
        for number, seconds, image in reader.frames(range(0, reader.count, every)):
            if number not in label_maps:
                continue
            labels = _read(label_maps[number])
            picture = draw_overlay(image, labels, vocabulary, shares, unknown_share=unknown)
            # The colours of H.264 belong to squares of 2 x 2 pixels.
            sides = [(0, side % 2) for side in picture.shape[:2]]
            picture = np.pad(picture, [*sides, (0, 0)], mode="edge")
            if stream is None:
                stream = container.add_stream("libx264", rate=reader.rate / every)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.sample_aspect_ratio = reader.pixel_aspect
                # Without B-frames, packets have the order of the frames.
                stream.options = {"crf": "20", "preset": "veryfast", "bf": "0"}
                stream.time_base = stream.codec_context.time_base = _TICK
                start, before = seconds, -1
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            # The times of the video, because telephones record with a varying rate.
            before = max(before + 1, round((seconds - start) / _TICK))
            frame.pts, frame.time_base = before, _TICK
            last = _mux(container, last, stream.encode(frame))
            bar.update()
        if stream is not None:
            last = _mux(container, last, stream.encode())
            # The encoder supposes a constant rate: a clip with one frame would have n frame times.
            last.duration = max(1, round((reader.end - start) / _TICK) - last.pts)
            container.mux(last)
    os.replace(unfinished, path)


def _mux(container: Any, last: Any, packets: Iterable[Any]) -> Any:
    """Write the packets before the last one, and return that one."""
    for packet in packets:
        if last is not None:
            container.mux(last)
        last = packet
    return last


def _read(path: Path) -> np.ndarray:
    with open_image(path) as image:
        return np.array(image)
