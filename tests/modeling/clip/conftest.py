"""Image encoders on small random CLIPs."""

import pytest
import torch
from detectron2.modeling import build_backbone

from dcp_clip.modeling.clip import text_cache


@pytest.fixture(autouse=True)
def warn_again():
    """The warnings of an earlier test do not hide those of this one."""
    text_cache._warn_once.cache_clear()


@pytest.fixture(scope="session")
def make_backbone(make_cfg, randomize):
    """``make_backbone(clip, {key: value})``: a randomised image encoder in evaluation mode."""

    def make(clip, opts=None):
        torch.manual_seed(0)
        return randomize(build_backbone(make_cfg(clip, opts))).eval()

    return make


@pytest.fixture(scope="session")
def native_images():
    """``native_images(backbone, batch)``: noise of the size that the tower was built for."""

    def make(backbone, batch=2):
        size = backbone.visual.image_size
        size = size if isinstance(size, tuple) else (size, size)
        return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))

    return make
