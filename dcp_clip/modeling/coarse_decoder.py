"""Stage 3: image positions and names attend to each other on the encoder's last grid."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from .build import COARSE_DECODER_REGISTRY
from .layers import MLP, CrossAttention

__all__ = ["CosineDecoder", "DualInteractionDecoder", "ImageToTextDecoder", "TextToImageDecoder"]


@COARSE_DECODER_REGISTRY.register()
class DualInteractionDecoder(nn.Module):
    """Dual interaction: in every layer the positions read the names, then the names read the
    positions.

    A category's coarse map is CLIP's own similarity, scaled by a learned factor, plus what the
    interaction adds: the product of the final position and name features. That product starts at
    zero, so an untrained decoder answers as CLIP would. All weights are shared over the categories.
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
        image_reads_text: bool = True,
        text_reads_image: bool = True,
    ):
        """
        Args:
            embed_dim: D, width of the dense features.
            guidance_dim: width of stage 2's features.
            dim: d, decoder width.
            num_heads: attention heads.
            num_layers: rounds of interaction.
            scale: initial factor from cosines to logits.
            image_reads_text: positions attend to names.
            text_reads_image: names attend to positions.
        """
        super().__init__()
        self.image_in = nn.Linear(embed_dim, dim)
        self.text_in = nn.Linear(guidance_dim, dim) if guidance_dim != dim else nn.Identity()
        layers = range(num_layers)

        def attentions(wanted: bool) -> nn.ModuleList:
            return nn.ModuleList([CrossAttention(dim, num_heads) for _ in layers if wanted])

        self.image_from_text = attentions(image_reads_text)
        self.text_from_image = attentions(text_reads_image)
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
        self, dense: Tensor, guidance: Tensor, similarity: Tensor, valid: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            dense: (B, D, h, w).
            guidance: (B, K, d') from stage 2.
            similarity: (B, K, h, w) cosine of dense and text.
            valid: (B, h, w) bool, False at padding.
            mask: (B, K) bool, False for padded proposals.

        Returns:
            coarse logits (B, K, h, w), visual (B, d, h, w), text (B, K, d).
        """
        h, w = dense.shape[-2:]
        valid = valid.flatten(1)
        size = dense.shape[1] ** 0.5  # unit-length columns times sqrt(D): entries of unit size
        image = self.image_in(F.normalize(dense, dim=1).flatten(2).transpose(1, 2) * size)
        text = self.text_in(guidance)
        to_image = self.scale * similarity.flatten(2)  # (B, K, N)
        to_text = to_image.transpose(1, 2)
        for i in range(self.num_layers):
            if len(self.image_from_text):
                image = image + self.image_from_text[i](image, text, to_text, mask)
                image = image + self.image_mlp[i](image)
            if len(self.text_from_image):
                text = text + self.text_from_image[i](text, image, to_image, valid)
                text = text + self.text_mlp[i](text)
        learned = torch.bmm(self.text_out(self.text_norm(text)), self.image_out(image).mT)
        coarse = to_image + learned * image.shape[-1] ** -0.5
        return coarse.unflatten(2, (h, w)), image.transpose(1, 2).unflatten(2, (h, w)), text


@COARSE_DECODER_REGISTRY.register()
class ImageToTextDecoder(DualInteractionDecoder):
    """One direction only (ablation): what is in the image flows to the names."""

    @classmethod
    def from_config(cls, cfg: CfgNode, *args) -> dict:
        return {**super().from_config(cfg, *args), "image_reads_text": False}


@COARSE_DECODER_REGISTRY.register()
class TextToImageDecoder(DualInteractionDecoder):
    """One direction only (ablation): what the names say flows to the image positions."""

    @classmethod
    def from_config(cls, cfg: CfgNode, *args) -> dict:
        return {**super().from_config(cfg, *args), "text_reads_image": False}


@COARSE_DECODER_REGISTRY.register()
class CosineDecoder(nn.Module):
    """CLIP's similarity, scaled; nothing learned. The coarse stage of the training-free mode."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec], guidance_channels: int):
        super().__init__()
        self.scale = float(cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE)
        self.visual_channels = input_shape["dense"].channels
        self.text_channels = guidance_channels

    def forward(
        self, dense: Tensor, guidance: Tensor, similarity: Tensor, valid: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DualInteractionDecoder.forward`; visual is `dense`, text is `guidance`."""
        return self.scale * similarity, dense, guidance
