"""CLIP's image encoder as a Detectron2 backbone."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from .clip_loading import clip_pixel_stats, load_clip
from .layers import resize_to

__all__ = ["CLIPBackbone"]

_STRIDES = (4, 8, 16, 32)
_DENSE_READINGS = ("value", "tokens")


@BACKBONE_REGISTRY.register()
class CLIPBackbone(Backbone):
    """CLIP's image tower, read as a pyramid, as a dense map and as one vector.

    ``forward`` takes images (B, 3, H, W), normalised with :attr:`pixel_mean` and :attr:`pixel_std`,
    H and W multiples of :attr:`size_divisibility`, and returns a dict of

    * ``res2`` to ``res4`` (and ``res5`` of a convolutional tower): the pyramid, strides 4 to 32;
    * ``dense`` (B, D, h, w): every position of the last grid in CLIP's joint embedding space, not
      normalised;
    * ``pooled`` (B, D): what ``encode_image`` returns for the same pixels, not normalised.

    A ConvNeXt is read as FC-CLIP does (arXiv 2308.02487): the tower's final norm and projection are
    applied to each position instead of to the average. A ViT is read through the value path of its
    last block (MaskCLIP, arXiv 2112.01071), without that block's residual and feed-forward part,
    which carry the global rather than the local content (ClearCLIP, arXiv 2407.12442); ``tokens``
    is the plain output of the last block, for comparison.
    """

    @configurable
    def __init__(
        self,
        *,
        visual: nn.Module,
        pixel_mean: list[float],
        pixel_std: list[float],
        dense: str = "value",
        resample: bool = True,
    ):
        """
        Args:
            visual: open_clip's image tower, a ``TimmModel`` with a hierarchical trunk or a
                ``VisionTransformer``.
            pixel_mean: three values on the 0 to 255 scale, RGB.
            pixel_std: likewise.
            dense: how a ViT is read, "value" or "tokens"; a convolutional tower has one reading.
            resample: bring a ViT's layers to strides 4, 8 and 16. Without it they stay on the patch
                grid and :meth:`output_shape` says so: cheaper when the user projects them to few
                channels first, since a 1x1 projection and bilinear resizing commute.

        Raises:
            ValueError: for a tower of another kind.
        """
        super().__init__()
        if dense not in _DENSE_READINGS:
            raise ValueError(
                f"MODEL.CLIP.DENSE is '{dense}'; known are {', '.join(_DENSE_READINGS)}."
            )
        self.visual = visual
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.dense, self.resample = dense, resample
        if isinstance(visual, VisionTransformer):
            self._init_vit(visual)
        elif isinstance(visual, TimmModel) and hasattr(visual.trunk, "stages"):
            self._init_timm(visual)
        else:
            raise ValueError(
                f"CLIPBackbone reads open_clip's ConvNeXt-like timm towers and its ViT, not "
                f"{type(visual).__name__}; choose another MODEL.CLIP.NAME."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        clip = load_clip(cfg)
        mean, std = clip_pixel_stats(clip)
        return {
            "visual": clip.visual,
            "pixel_mean": mean,
            "pixel_std": std,
            "dense": cfg.MODEL.CLIP.DENSE,
            "resample": cfg.MODEL.CLIP.RESAMPLE,
        }

    def _init_timm(self, visual: TimmModel) -> None:
        info = visual.trunk.feature_info
        info = info.info if hasattr(info, "info") else info
        # The last feature of each stride: timm may list a stem of the same stride before it.
        self._indices = [
            max(i for i, f in enumerate(info) if f["reduction"] == s) for s in _STRIDES
        ]
        channels = [info[i]["num_chs"] for i in self._indices]
        if getattr(visual.trunk.head, "global_pool", None) is None or hasattr(visual.head, "pool"):
            raise ValueError(
                "CLIPBackbone needs a tower that averages its last grid before projecting."
            )
        embed_dim = self._project(torch.zeros(1, channels[-1], 1, 1)).shape[1]
        self._shapes = {
            f"res{i + 2}": ShapeSpec(channels=c, stride=s)
            for i, (c, s) in enumerate(zip(channels, _STRIDES, strict=True))
        }
        self._shapes["dense"] = ShapeSpec(channels=embed_dim, stride=_STRIDES[-1])
        self._shapes["pooled"] = ShapeSpec(channels=embed_dim)
        self._size_divisibility = _STRIDES[-1]

    def _init_vit(self, visual: VisionTransformer) -> None:
        if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
            raise ValueError("CLIPBackbone reads ViT towers that pool by their class token only.")
        depth, width = len(visual.transformer.resblocks), visual.transformer.width
        # Evenly spaced earlier layers; the last quarter belongs to the dense map.
        self._indices = [max(depth * q // 4 - 1, 0) for q in (1, 2, 3)]
        patch = visual.patch_size[0]
        strides = _STRIDES[:3] if self.resample else (patch,) * 3
        self._shapes = {
            f"res{i + 2}": ShapeSpec(channels=width, stride=s) for i, s in enumerate(strides)
        }
        self._shapes["dense"] = ShapeSpec(channels=visual.output_dim, stride=patch)
        self._shapes["pooled"] = ShapeSpec(channels=visual.output_dim)
        self._size_divisibility = patch

    @property
    def size_divisibility(self) -> int:
        """H and W must be multiples of this many pixels."""
        return self._size_divisibility

    @property
    def embed_dim(self) -> int:
        """D, the width of CLIP's joint embedding space."""
        return self._shapes["dense"].channels

    def train(self, mode: bool = True) -> CLIPBackbone:
        """A frozen tower stays in evaluation mode: no drop path, no new batch norm statistics."""
        super().train(mode)
        if not any(p.requires_grad for p in self.visual.parameters()):
            self.visual.eval()
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class: images (B, 3, H, W) to res2 .. res5, dense and pooled.

        Raises:
            ValueError: when H or W is no multiple of :attr:`size_divisibility`.
        """
        divisor = self.size_divisibility
        if images.shape[-2] % divisor or images.shape[-1] % divisor:
            raise ValueError(
                f"image of {images.shape[-2]} x {images.shape[-1]} pixels given to an encoder that "
                f"needs multiples of {divisor}; pad it first."
            )
        if isinstance(self.visual, VisionTransformer):
            return self._forward_vit(images)
        return self._forward_timm(images)

    def _forward_timm(self, images: Tensor) -> dict[str, Tensor]:
        trunk = self.visual.trunk
        last, levels = trunk.forward_intermediates(images, indices=self._indices)
        out = {f"res{i + 2}": level for i, level in enumerate(levels)}
        out["dense"] = self._project(last)
        out["pooled"] = self.visual.head(trunk.forward_head(last))
        return out

    def _project(self, x: Tensor) -> Tensor:
        """Apply to each position what the tower applies to its average: (B,C,h,w) to (B,D,h,w)."""
        head = self.visual.trunk.head
        x = getattr(head, "norm", nn.Identity())(x).permute(0, 2, 3, 1)
        x = getattr(head, "pre_logits", nn.Identity())(x)
        return self.visual.head(head.fc(x)).permute(0, 3, 1, 2)

    def _forward_vit(self, images: Tensor) -> dict[str, Tensor]:
        vit = self.visual
        x = vit.conv1(images)
        b, _, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        cls = vit.class_embedding.to(x.dtype).expand(b, 1, -1)
        x = torch.cat([cls, x], dim=1) + self._position_embedding((h, w)).to(x.dtype)
        x = vit.ln_pre(vit.patch_dropout(x))
        blocks = vit.transformer.resblocks
        levels = []
        for i, block in enumerate(blocks[:-1]):
            x = block(x)
            levels += [x] * self._indices.count(i)
        last = blocks[-1](x)
        levels += [last] * self._indices.count(len(blocks) - 1)

        def grid(tokens: Tensor) -> Tensor:
            return tokens[:, 1:].transpose(1, 2).unflatten(2, (h, w))

        dense = self._value_path(blocks[-1], x) if self.dense == "value" else last
        dense = vit.ln_post(dense) @ vit.proj
        out = {f"res{i + 2}": grid(level) for i, level in enumerate(levels)}
        if self.resample:
            height, width = images.shape[-2:]
            for key, stride in zip(("res2", "res3", "res4"), _STRIDES, strict=False):
                size = (-(-height // stride), -(-width // stride))
                out[key] = resize_to(out[key], size)
        out["dense"] = grid(dense)
        out["pooled"] = vit.ln_post(last[:, 0]) @ vit.proj
        return out

    @staticmethod
    def _value_path(block: nn.Module, x: Tensor) -> Tensor:
        """Each position's own value through the output projection of the block's attention."""
        attn, dim = block.attn, x.shape[-1]
        value = F.linear(
            block.ln_1(x), attn.in_proj_weight[2 * dim :], attn.in_proj_bias[2 * dim :]
        )
        return block.ls_1(attn.out_proj(value))

    def _position_embedding(self, size: tuple[int, int]) -> Tensor:
        """Position embeddings for an (h, w) grid: CLIP's own, resized bicubically."""
        table, native = self.visual.positional_embedding, tuple(self.visual.grid_size)
        if tuple(size) == native:
            return table
        grid = table[1:].T.reshape(1, -1, *native)
        grid = F.interpolate(grid.float(), size=size, mode="bicubic", align_corners=False)
        return torch.cat([table[:1], grid.to(table.dtype).flatten(2)[0].T])
