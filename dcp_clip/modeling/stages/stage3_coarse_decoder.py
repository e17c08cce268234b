"""Stage 3: image and text features attend to each other on the encoder's last grid."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import MLP, CrossAttention, masked_max
from dcp_clip.modeling.stages.registry import COARSE_DECODER_REGISTRY

__all__ = [
    "CosineDecoder",
    "DualInteractionDecoder",
    "ImageToTextDecoder",
    "TextToImageDecoder",
    "most_probable",
]


@COARSE_DECODER_REGISTRY.register()
class DualInteractionDecoder(nn.Module):
    """Lets image and text features attend to each other in every layer.

    In each layer, the image features attend to the text features, then the text features attend to
    the image features. The coarse logits of a category are CLIP's similarity times a learned
    factor, plus the product of the final image and text features. This product starts at zero, so
    an untrained decoder returns CLIP's similarity. All weights are shared over the categories.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        guidance_dim: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        scale: float,
        image_to_text: bool = True,
        text_to_image: bool = True,
    ):
        """
        Args:
            embed_dim: D, width of the dense features.
            guidance_dim: width d' of the guidance from stage 2.
            dim: d, decoder width.
            num_heads: attention heads; must divide `dim`.
            num_layers: number of interaction layers.
            scale: initial factor from cosine similarities to logits.
            image_to_text: text features attend to image features.
            text_to_image: image features attend to text features.

        Raises:
            ValueError: if `num_heads` does not divide `dim`.
        """
        super().__init__()
        self.image_in = nn.Linear(embed_dim, dim)
        self.text_in = nn.Linear(guidance_dim, dim) if guidance_dim != dim else nn.Identity()
        layers = range(num_layers)

        def attentions(enabled: bool) -> nn.ModuleList:
            return nn.ModuleList([CrossAttention(dim, num_heads) for _ in layers if enabled])

        self.image_from_text = attentions(text_to_image)
        self.text_from_image = attentions(image_to_text)
        self.image_mlp = nn.ModuleList([MLP(dim) for _ in self.image_from_text])
        self.text_mlp = nn.ModuleList([MLP(dim) for _ in self.text_from_image])
        self.num_layers = num_layers
        self.image_out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.text_out = nn.Linear(dim, dim)
        nn.init.zeros_(self.text_out.weight)
        nn.init.zeros_(self.text_out.bias)
        self.text_norm = nn.LayerNorm(dim)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.visual_channels = self.text_channels = dim

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], guidance_channels: int
    ) -> dict:
        return {
            "embed_dim": input_shape["dense"].channels,
            "guidance_dim": guidance_channels,
            "dim": cfg.MODEL.DCP_CLIP.DIM,
            "num_heads": cfg.MODEL.DCP_CLIP.NUM_HEADS,
            "num_layers": cfg.MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS,
            "scale": cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        }

    def forward(
        self,
        dense: Tensor,
        guidance: Tensor,
        similarity: Tensor,
        pixel_valid: Tensor,
        proposal_valid: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            dense: (B, D, h, w).
            guidance: (B, K, d') text features from stage 2.
            similarity: (B, K, h, w) cosine similarity of dense and text features.
            pixel_valid: (B, h, w) bool, False at padding.
            proposal_valid: (B, K) bool, False for padded proposals.

        Returns:
            coarse logits (B, K, h, w), visual features (B, d, h, w), text features (B, K, d).
        """
        h, w = dense.shape[-2:]
        pixel_valid = pixel_valid.flatten(1)
        size = dense.shape[1] ** 0.5  # unit-length vectors times sqrt(D) have entries of unit size
        image = self.image_in(F.normalize(dense, dim=1).flatten(2).transpose(1, 2) * size)
        text = self.text_in(guidance)
        to_image = self.scale * similarity.flatten(2)  # (B, K, N)
        to_text = to_image.transpose(1, 2)
        for i in range(self.num_layers):
            if len(self.image_from_text):
                image = image + self.image_from_text[i](image, text, to_text, proposal_valid)
                image = image + self.image_mlp[i](image)
            if len(self.text_from_image):
                text = text + self.text_from_image[i](text, image, to_image, pixel_valid)
                text = text + self.text_mlp[i](text)
        learned = torch.bmm(self.text_out(self.text_norm(text)), self.image_out(image).mT)
        coarse = to_image + learned * image.shape[-1] ** -0.5
        return coarse.unflatten(2, (h, w)), image.transpose(1, 2).unflatten(2, (h, w)), text


@COARSE_DECODER_REGISTRY.register()
class ImageToTextDecoder(DualInteractionDecoder):
    """Uses only one direction (ablation): text features attend to image features."""

    @classmethod
    def from_config(cls, cfg: CfgNode, *args) -> dict:
        return {**super().from_config(cfg, *args), "text_to_image": False}


@COARSE_DECODER_REGISTRY.register()
class TextToImageDecoder(DualInteractionDecoder):
    """Uses only one direction (ablation): image features attend to text features."""

    @classmethod
    def from_config(cls, cfg: CfgNode, *args) -> dict:
        return {**super().from_config(cfg, *args), "image_to_text": False}


@COARSE_DECODER_REGISTRY.register()
class CosineDecoder(nn.Module):
    """Returns CLIP's similarity times a constant. It is stage 3 of the training-free mode."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec], guidance_channels: int):
        super().__init__()
        self.scale = float(cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE)
        self.visual_channels = input_shape["dense"].channels
        self.text_channels = guidance_channels

    def forward(
        self,
        dense: Tensor,
        guidance: Tensor,
        similarity: Tensor,
        pixel_valid: Tensor,
        proposal_valid: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DualInteractionDecoder.forward`; the visual features are `dense`, the text
        features are `guidance`."""
        return self.scale * similarity, dense, guidance


@torch.no_grad()
def most_probable(
    coarse: Tensor,
    pixel_valid: Tensor,
    proposal_valid: Tensor,
    count: int,
    required: Tensor | None = None,
) -> Tensor:
    """Choose the categories for the fine decoder, as the early rejection of SED does.

    Most proposals win nowhere. The probability of a category among the K proposals, at the position
    where it is highest, shows which ones can win somewhere (arXiv 2311.15537).

    Args:
        coarse: (B, K, h, w) coarse logits.
        pixel_valid: (B, h, w) bool, False at padding.
        proposal_valid: (B, K) bool, False for padded proposals.
        count: M, the number of categories to choose.
        required: (B, K) bool, categories that must be chosen.

    Returns:
        (B, M) positions among the K proposals, in ascending order. M is at most K, and larger than
        `count` if an image has more required categories.
    """
    # Sums of many probabilities need float32.
    logits = coarse.float().masked_fill(~proposal_valid[..., None, None], float("-inf"))
    highest = masked_max(logits.softmax(1).flatten(2), pixel_valid.flatten(1)[:, None])
    if required is not None:
        highest = highest.masked_fill(required, 2.0)
        count = max(count, int(required.sum(1).max()))
    count = torch.sym_min(coarse.shape[1], count)
    return highest.topk(count, dim=1).indices.sort(dim=1).values
