"""Small baselines on a tiny random CLIP."""

import pytest
import torch

from dcp_clip.vocabulary import Vocabulary

HEADS = ["PixelTextSegmentor", "CostAggregationSegmentor", "MaskQuerySegmentor"]
SMALL = {
    "MODEL.BASELINES.DIM": 16,
    "MODEL.BASELINES.COST_AGGREGATION.DIM": 48,
    "MODEL.BASELINES.COST_AGGREGATION.NUM_HEADS": 2,
    "MODEL.BASELINES.COST_AGGREGATION.NUM_LAYERS": 1,
    # All names, as the other heads.
    "MODEL.BASELINES.COST_AGGREGATION.NUM_NAMES": 0,
    "MODEL.BASELINES.MASK_QUERIES.NUM_QUERIES": 6,
    "MODEL.BASELINES.MASK_QUERIES.NUM_HEADS": 2,
}


@pytest.fixture(scope="session")
def head_options():
    """``head_options(architecture)``: config of a small head."""
    return lambda architecture: {"MODEL.META_ARCHITECTURE": architecture, **SMALL}


@pytest.fixture(scope="session")
def make_head(make_model, head_options):
    """``make_head(architecture, clip, {key: value})``: as ``make_model``."""

    def make(architecture, clip="dcp-tiny-cnn", opts=None, seed=0):
        return make_model(clip, head_options(architecture) | (opts or {}), seed)

    return make


@pytest.fixture(scope="session", params=HEADS)
def architecture(request):
    return request.param


@pytest.fixture
def batch(make_image):
    """Two images of 64 x 64 with three of five categories: two stripes, and a quarter."""
    vocabulary = Vocabulary([f"thing {i}" for i in range(5)])
    stripes = torch.arange(64)[:, None].expand(64, 64) // 32
    quarters = 2 * (torch.arange(64)[:, None] // 32) * (torch.arange(64) // 32)
    images = [make_image(64, 64, seed=i) for i in range(2)]
    return [
        {"image": image, "sem_seg": labels, "vocabulary": vocabulary}
        for image, labels in zip(images, (stripes, quarters), strict=True)
    ]
