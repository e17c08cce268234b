"""Read the frames of a video in order."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dcp_clip.folder_run.line_file import file_state
from dcp_clip.folder_run.pipeline import Job, ReadImage
from dcp_clip.utils.images.files import ImageReadError
from dcp_clip.utils.images.listing import VIDEO_EXTENSIONS
from dcp_clip.utils.optional_packages import import_optional

__all__ = ["VideoReader", "import_av", "is_video"]

# The formats of FFmpeg that hold their frames themselves; playlists can name other files.
_FORMATS = "asf,avi,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,ogg"
# FFmpeg's names of the formats whose files state their duration. It estimates that of the others.
_WITH_DURATION = ("matroska", "mov")


def import_av() -> Any:
    """Import PyAV.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    return import_optional("av", "Videos need PyAV,")


def is_video(path: str | Path) -> bool:
    """Return whether a path has the suffix of a video and is no folder."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS and not Path(path).is_dir()


class VideoReader:
    """The frames of a video, read in order: a context.

    One frame is in memory at a time.

    Attributes:
        path: the file.
        count: number of frames.
        rate: frames per second.
        pixel_aspect: width of a pixel divided by its height.
        is_truncated: whether the end of the file is missing, so that it had more frames.
        end: the time in seconds at which the last frame that `frames` has decoded ends.
    """

    def __init__(self, path: str | Path):
        """
        Args:
            path: a video file.

        Raises:
            ImportError: if PyAV is not installed.
            ImageReadError: if the file cannot be read or has no frames.
        """
        self._av = import_av()
        self.path = path = Path(path)
        with self._open() as container:
            stream = container.streams.video[0]
            self.rate = Fraction(stream.average_rate or 25)
            self.pixel_aspect = Fraction(stream.sample_aspect_ratio or 1)
            self.count, self.is_truncated = self._read_packets(container, stream)
        if not self.count:
            raise ImageReadError(f"cannot read {path}: the video has no frames")
        self.end = 0.0
        self._damaged = 0  # parts that could not be decoded
        self._frames = self.frames()

    def _read_packets(self, container: Any, stream: Any) -> tuple[int, bool]:
        """Return the number of frames, and whether the end of the file is missing.

        Packets are not decoded. The headers of many files have a wrong number of frames, or none.
        """
        count, times, end = 0, [], 0.0
        for packet in container.demux():  # sound can be longer than the pictures
            is_frame = packet.size > 0 and packet.stream == stream
            # Packets before the start of a clip that was cut without encoding are discarded.
            count += is_frame and not packet.is_discard
            if packet.pts is not None:
                seconds = float(packet.pts * packet.time_base)
                end = max(end, seconds + float((packet.duration or 0) * packet.time_base))
                times += [seconds] if is_frame else []
        if container.duration is None or container.format.name.split(",")[0] not in _WITH_DURATION:
            return count, False
        # The last frame of a slide show can be shown for longer than its packet says.
        times = sorted(times)
        longest = max((b - a for a, b in zip(times, times[1:])), default=0.0)
        missing = container.duration / self._av.time_base - end
        return count, missing > max(1.0, 2 * longest)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.close()

    def read(self, job: Job) -> ReadImage:
        """Read the frame of a job; the frames of later calls come later in the video.

        Raises:
            ImageReadError: if the video is damaged or ends before the frame.
        """
        state = file_state(self.path)
        for number, seconds, image in self._frames:
            if number == job.frame:
                size = image.shape[:2]
                return image, size, {**state, "frame": number, "seconds": round(seconds, 4)}
        skipped = f" (damaged packets that were skipped: {self._damaged})" if self._damaged else ""
        raise ImageReadError(
            f"cannot read frame {job.frame} of {self.path}: the video ends before{skipped}"
        )

    def frames(self, wanted: range | None = None) -> Iterator[tuple[int, float, np.ndarray]]:
        """Yield the number, the time in seconds and the pixels (H, W, 3) uint8 RGB of frames.

        Damaged parts of the video are skipped, and the frames that can be decoded are numbered.

        Args:
            wanted: the numbers of the frames; default: all of them.

        Raises:
            ImageReadError: if the container is damaged, or no frame can be decoded.
        """
        self._damaged = 0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for number, frame in enumerate(self._decode(container, stream)):
                    seconds = number / self.rate if frame.time is None else frame.time
                    length = (frame.duration or 0) * (frame.time_base or 0) or 1 / self.rate
                    self.end = float(seconds + length)
                    if wanted is not None and number not in wanted:
                        continue
                    image = frame.to_ndarray(format="rgb24")
                    if frame.rotation:  # anticlockwise, as telephones store upright videos
                        image = np.ascontiguousarray(np.rot90(image, frame.rotation // 90))
                    yield number, float(seconds), image
            except self._av.FFmpegError as error:
                raise self._error(error) from error

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield the frames; a packet that cannot be decoded is skipped, as players do."""
        found, error = False, None
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except self._av.FFmpegError as reason:
                self._damaged, error = self._damaged + 1, reason
                continue
            found = found or bool(frames)
            yield from frames
        if error is not None and not found:
            raise error

    def _open(self) -> Any:
        try:
            container = self._av.open(
                str(self.path.resolve()),
                options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            )
        except (self._av.FFmpegError, OSError) as error:
            raise self._error(error) from error
        if not container.streams.video:
            container.close()
            raise ImageReadError(
                f"cannot read {self.path}: the file has no video stream, only sound or text"
            )
        return container

    def _error(self, error: Exception) -> ImageReadError:
        reason = getattr(error, "strerror", None) or str(error)
        return ImageReadError(f"cannot read {self.path}: {reason}")
