"""benchmark.py --bf16: both precisions in turns, and the pixels on which they agree."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import benchmark  # noqa: E402

from dcp_clip.predictor import Predictor  # noqa: E402

TINY = str(ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml")


def test_both_precisions_are_compared_in_time(tmp_path, capsys):
    out = tmp_path / "figures.json"
    arguments = ["--config-file", TINY, "--size", "64", "96", "--vocabulary-sizes", "10", "20"]
    benchmark.main([*arguments, "--repeats", "3", "--device", "cpu", "--bf16", "--json", str(out)])
    (result,) = json.loads(out.read_text())["results"]
    for row, names in zip(result["precision"], (10, 20), strict=True):
        ratios = [a / b for a, b in zip(row["fp32_seconds_all"], row["bf16_seconds_all"])]
        assert (row["vocabulary"], len(ratios)) == (names, 3)
        assert row["speed_up"] == sorted(ratios)[1] and "agreement" not in row
    assert "| 1 | 20 |" in capsys.readouterr().out


@pytest.mark.parametrize(("rows", "agreement"), [(0, 1.0), (8, 0.875)])
def test_pixels_with_the_same_name_are_counted(tmp_path, capsys, monkeypatch, rows, agreement):
    """The first rows of one of two pictures of 32 rows get another name in bfloat16."""
    (tmp_path / "in").mkdir()
    for i in range(2):
        Image.new("RGB", (48, 32), (80 * i, 100, 0)).save(tmp_path / "in" / f"{i}.png")
    precisions = []

    def predict(predictor, image, size):
        precisions.append(predictor.model.bf16)
        label_map = np.zeros(image.shape[:2], np.uint8)
        label_map[: rows * (predictor.model.bf16 and image[0, 0, 0] == 80)] = 1
        return SimpleNamespace(label_map=label_map)

    monkeypatch.setattr(Predictor, "__call__", predict)
    out = tmp_path / "figures.json"
    arguments = ["--config-file", TINY, "--bf16", str(tmp_path / "in"), "--device", "cpu"]
    benchmark.main([*arguments, "--vocabulary", "sky; tree", "--json", str(out)])
    (result,) = json.loads(out.read_text())["results"]
    (row,) = result["precision"]
    assert row["agreement"] == agreement
    assert (row["images"], row["vocabulary"], len(row["fp32_seconds_all"])) == (2, 2, 2)
    assert f"| {agreement:.2%} |" in capsys.readouterr().out
    assert precisions == [False, True] * (len(precisions) // 2)
