"""NaN and infinite weights or logits end in an error, never in an answer."""

import json

import numpy as np
import pytest
import torch

from dcp_clip.modeling.finite import NonFiniteError, check_weights
from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary

VALUES = [float("nan"), float("inf"), float("-inf")]
WINDOWS = {"MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64, "MODEL.DCP_CLIP.SLIDING_WINDOW.STRIDE": 32}


@pytest.mark.parametrize("value", VALUES)
def test_the_weight_is_named(value):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    check_weights(model.state_dict())
    model[1].running_mean[1] = value
    with pytest.raises(NonFiniteError, match="in model.pth .* '1.running_mean'.*earlier"):
        check_weights(model.state_dict(), "model.pth")


@pytest.mark.parametrize("part", ["text_encoder", "backbone", "decoder"])
def test_a_predictor_refuses_such_weights(make_cfg, make_model, part):
    model = make_model()
    name, weight = next((n, p) for n, p in model.named_parameters() if part in n)
    with torch.no_grad():
        weight.view(-1)[-1] = float("nan")
    with pytest.raises(NonFiniteError, match=f"first in '{name}'"):
        Predictor(make_cfg(), "sky; tree", model=model)


@pytest.mark.parametrize("opts", [{}, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("value", VALUES)
def test_logits_are_checked(make_cfg, make_model, make_image, segment, monkeypatch, opts, value):
    """The evaluation and the predictor call the model in the same way."""
    model = make_model(opts=opts)
    inner = model.segment

    def overflow(*args, **kwargs):
        logits, proposals, refinement = inner(*args, **kwargs)
        list(logits.values())[-1][0, 0, 0, 0] = value
        return logits, proposals, refinement

    image = make_image(96, 96)
    segment(model, image)
    monkeypatch.setattr(model, "segment", overflow)
    with pytest.raises(NonFiniteError, match="no answer for this image"):
        segment(model, image)


def test_valid_scores_are_valid_json(make_cfg, make_model):
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 64})
    predictor = Predictor(cfg, Vocabulary(["sky", "tree"]), model=make_model())
    prediction = predictor(np.zeros((64, 64, 3), np.uint8))
    json.dumps([category.score for category in prediction.found], allow_nan=False)
