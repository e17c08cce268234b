"""A text encoder on a small random CLIP."""

import pytest
import torch

from dcp_clip.modeling import TextEncoder


@pytest.fixture
def make_encoder(make_cfg, randomize, tmp_path):
    """``make_encoder(clip, {key: value}, cache)``: a frozen one; `cache`: its folder or ""."""

    def make(clip="test-convnext", opts=None, cache="text"):
        torch.manual_seed(0)
        folder = str(tmp_path / cache) if cache else ""
        encoder = TextEncoder(
            make_cfg(clip, {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": folder, **(opts or {})})
        )
        return randomize(encoder).requires_grad_(False).eval()

    return make


@pytest.fixture
def count_prompts():
    """``count(encoder)``: list of the batch sizes that its tower encodes from now on."""

    def count(encoder):
        sizes = []
        encoder.text.transformer.register_forward_pre_hook(
            lambda _, args: sizes.append(len(args[0]))
        )
        return sizes

    return count
