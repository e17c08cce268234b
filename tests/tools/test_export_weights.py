"""tools/export_weights.py: small, complete, and loading back to the same answer."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dcp_clip.checkpoint import load_weights

TOOL = Path(__file__).parents[2] / "tools" / "export_weights.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("export_weights", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))


def test_weights_load_back_within_half_precision(tool, tmp_path):
    model = make_model(0)
    model[1].running_var.fill_(1e6)  # beyond float16: statistics must stay in full precision
    checkpoint = {"model": model.state_dict(), "optimizer": {"state": torch.zeros(10_000)}}
    torch.save(checkpoint, tmp_path / "model_final.pth")

    values, size = tool.export(tmp_path / "model_final.pth", tmp_path / "out" / "weights.pth")

    assert values == sum(v.numel() for v in model.state_dict().values())
    assert size < 10_000, "the optimiser's state is not part of the weights"
    other = make_model(1)
    load_weights(other, str(tmp_path / "out" / "weights.pth"))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert other[0].weight.dtype == torch.float32


@pytest.mark.parametrize("content", [None, {"weights": torch.zeros(1)}])
def test_what_is_no_checkpoint_is_refused_by_name(tool, tmp_path, content):
    source = tmp_path / "wrong.pth"
    if content is not None:
        torch.save(content, source)
    with pytest.raises(SystemExit, match="wrong.pth"):
        tool.export(source, tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()
