"""The shipped weights give the answers of the last release.

``shipped_outputs.json`` holds them. Update it only if a change of the answers is intended::

    python -m pytest tests/regression --update-regression
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dcp_clip import Predictor, model_zoo

FILE = Path(__file__).with_name("shipped_outputs.json")
NAMES = {
    "camvid/dcp_clip_tiny.yaml": "sky; building; pole; road; pavement; tree; sign; fence; car",
    "emoji_scenes/dcp_clip_tiny.yaml": "sand; cobblestone; octopus; car, automobile; cheese; taco",
}
# Logits of other processors and versions of PyTorch differ by rounding.
TOLERANCE = 2e-3


def make_image(seed: int, height: int, width: int) -> np.ndarray:
    """Coloured blocks with noise, the same on every machine."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (height // 16, width // 16, 3))
    noise = rng.integers(0, 56, (height, width, 3))
    return (np.kron(blocks, np.ones((16, 16, 1), int)) + noise).astype(np.uint8)


def outputs_of(config: str) -> dict:
    predictor = Predictor(model_zoo.get_config(config, trained=True))
    predictor.set_vocabulary(NAMES[config])
    result = {}
    for seed, size in enumerate([(128, 160), (96, 64)]):
        image = torch.from_numpy(make_image(seed, *size)).permute(2, 0, 1)
        with torch.no_grad():
            (output,) = predictor.model([{"image": image, "vocabulary": predictor.vocabulary}])
        logits = output["sem_seg"].logits[:, ::16, ::16]
        result[f"{size[0]} x {size[1]}"] = {
            "ids": output["proposals"]["ids"].tolist(),
            "scores": [round(x, 5) for x in output["proposals"]["scores"].tolist()],
            "logits": [[round(x, 4) for x in row] for row in logits.flatten(1).tolist()],
        }
    return result


@pytest.mark.parametrize("config", list(NAMES))
def test_outputs_equal_those_of_the_last_release(config, request):
    outputs = outputs_of(config)
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    if request.config.getoption("--update-regression"):
        FILE.write_text(json.dumps({**stored, config: outputs}) + "\n")
        pytest.skip("the file was updated")
    assert outputs.keys() == stored[config].keys()
    for size, values in outputs.items():
        expected = stored[config][size]
        assert values["ids"] == expected["ids"]
        for key in ("scores", "logits"):
            np.testing.assert_allclose(values[key], expected[key], atol=TOLERANCE, rtol=TOLERANCE)
