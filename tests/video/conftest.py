"""A small clip, and a program that segments it with a small model."""

import numpy as np
import pytest

from dcp_clip.predictor import Predictor
from dcp_clip_cli import segment


def _write_clip(
    path, size=(48, 64), codec="libx264", times=range(7), aspect=1, container=(), **options
):
    """Write frames whose grey rises by 30 from frame to frame, at times in fifths of a second."""
    av = pytest.importorskip("av")
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w", options=dict(container)) as output:
        stream = output.add_stream(codec, rate=5, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for i, time in enumerate(times):
            image = np.full((*size, 3), 30 * i % 256, np.uint8)
            image[:, 32:] = 255 - 30 * i % 256
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = time
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return path


@pytest.fixture
def write_clip():
    return _write_clip


@pytest.fixture
def clip(tmp_path):
    return _write_clip(tmp_path / "clip.mp4")


@pytest.fixture
def run(make_cfg, make_model, monkeypatch, clip, tmp_path):
    """``run(*arguments)``: segment the clip with a small model; the exit status."""
    cfg, model = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 32}), make_model()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))

    def from_config_file(config_file, weights, opts, vocabulary, imports=()):
        return Predictor(cfg, "sky; tree; car; road", model=model)

    monkeypatch.setattr(Predictor, "from_config_file", from_config_file)

    def start(*arguments):
        calls.clear()
        output = str(tmp_path / "out")
        return segment.main(["--input", str(clip), "--output", output, *arguments]), len(calls)

    return start
