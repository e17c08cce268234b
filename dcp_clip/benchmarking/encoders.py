"""Which of open_clip's models can be encoders here, and whether they agree with open_clip."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import open_clip
import torch
from open_clip.model import _build_vision_tower
from torch import nn

from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.families import describe
from dcp_clip.modeling.clip.loading import CLIPWeightsError, create_clip
from dcp_clip.modeling.clip.text_tower import encode_tokens, needed_lengths

__all__ = ["COLUMNS", "EncoderRow", "examine"]

COLUMNS = (
    "name",
    "million weights",
    "image tower",
    "pooling",
    "dense attentions",
    "D",
    "strides",
    "result",
)


@dataclass
class EncoderRow:
    """A row of the table of encoders, see :data:`COLUMNS`."""

    name: str
    weights: int = 0
    tower: str = ""
    pooling: str = ""
    dense_attentions: tuple[str, ...] = ()
    width: int = 0
    strides: tuple[int, ...] = ()
    result: str = ""

    def cells(self) -> list[str]:
        attentions = "all" if len(self.dense_attentions) > 1 else ", ".join(self.dense_attentions)
        strides = ", ".join(map(str, self.strides))
        weights = f"{self.weights / 1e6:.0f}" if self.weights else ""
        width = str(self.width or "")
        return [
            f"`{self.name}`",
            weights,
            self.tower,
            self.pooling,
            attentions,
            width,
            strides,
            self.result,
        ]


def examine(name: str, limit: float) -> EncoderRow:
    """Build a model with random weights and compare its features with those of open_clip.

    Args:
        name: a name of ``open_clip.list_models()``.
        limit: gigabytes of weights; a larger model is built on the meta device and not run.
    """
    row = EncoderRow(name)
    try:
        with torch.device("meta"):
            clip = create_clip(name, device="meta")
        text_problem = None
    except CLIPWeightsError as error:
        # The image tower can be examined without the text tower.
        clip, text_problem = None, "text tower not built: its config.json is on the Hub"
        if "transformers" in str(error.__cause__):
            text_problem = "text tower not built: the package transformers is not installed"
    try:
        with torch.device("meta"):
            visual = _image_tower(name) if clip is None else clip.visual
            backbone = _backbone(visual)
    except ValueError as error:
        row.tower, row.result = describe(visual), f"refused: {error}"
        return row
    tower, shapes = backbone._tower, backbone.output_shape()
    row.weights = sum(p.numel() for p in (visual if clip is None else clip).parameters())
    row.tower, row.pooling = describe(visual), tower.pooling
    row.dense_attentions = tower.dense_attentions
    row.width = shapes["dense"].channels
    row.strides = tuple(s.stride for key, s in shapes.items() if key.startswith("res"))
    if 4 * row.weights > limit * 1e9:
        row.result = f"built, not run: {4 * row.weights / 1e9:.1f} GB of weights"
    else:
        del clip, visual, backbone, tower
        row.result = _compare(name, with_text=text_problem is None)
    if text_problem:
        row.result += f"; {text_problem}"
    gc.collect()
    return row


@torch.no_grad()
def _compare(name: str, with_text: bool) -> str:
    """Run a model, and describe the largest difference from open_clip's features."""
    torch.manual_seed(0)
    if with_text:
        model = create_clip(name).eval()
        visual = model.visual
    else:
        visual = _image_tower(name).eval()
    for parameter in visual.parameters():  # some layers start at zero
        parameter.add_(0.02 * torch.randn_like(parameter))
    size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
    images = torch.randn(1, 3, *size)
    expected = visual(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    backbone = _backbone(visual)
    differences = {"image": _difference(backbone(images)["pooled"], expected)}
    divisor = backbone.size_divisibility
    other = backbone(torch.randn(1, 3, 3 * divisor, 5 * divisor))
    if other["dense"].shape[-2:] != (3, 5) or not other["dense"].isfinite().all():
        return "run: wrong at another size"
    if with_text:
        text = model.text
        end = text.eos_id if text.pool_type == "eos" else text.vocab_size - 1
        tokens = torch.zeros(4, text.context_length, dtype=torch.long)
        tokens[:, :9] = torch.randint(3, text.vocab_size - 1, (4, 9))
        tokens[:, 9] = end
        length = int(needed_lengths(text, tokens).max())
        expected = text(tokens)
        expected = expected[0] if isinstance(expected, tuple) else expected
        differences["text"] = _difference(encode_tokens(text, tokens[:, :length]), expected)
    largest = max(differences.values())
    verdict = "equal" if largest < 1e-5 else "DIFFERENT"
    return f"run: {verdict} ({', '.join(f'{k} {v:.0e}' for k, v in differences.items())})"


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def _backbone(visual: nn.Module) -> CLIPBackbone:
    return CLIPBackbone(visual=visual, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3).eval()


def _image_tower(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    quick = config.get("quick_gelu", False)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    return _build_vision_tower(config["embed_dim"], vision, quick)
