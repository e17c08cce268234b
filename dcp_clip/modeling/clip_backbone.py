"""CLIP's image encoder as a Detectron2 backbone."""

from __future__ import annotations

from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from .clip_loading import clip_pixel_stats, load_clip
from .compilation import Compiled
from .layers import resize_to
from .precision import AutocastWeights
from .vit_dense import DENSE_READINGS, dense_tokens, run_vit
from .windows import encode_in_windows

__all__ = ["CLIPBackbone"]

_STRIDES = (4, 8, 16, 32)


@BACKBONE_REGISTRY.register()
class CLIPBackbone(Backbone):
    """CLIP's image tower, read as a pyramid, as a dense map and as one vector.

    ``forward`` takes images (B, 3, H, W), normalised with :attr:`pixel_mean` and :attr:`pixel_std`,
    H and W multiples of :attr:`size_divisibility`, and returns a dict of

    * ``res2`` to ``res4`` (and ``res5`` of a convolutional tower that goes on to stride 32): the
      pyramid, strides 4, 8, 16 and 32;
    * ``dense`` (B, D, h, w): every position of the last grid in CLIP's joint embedding space, not
      normalised;
    * ``pooled`` (B, D): what ``encode_image`` returns for the same pixels, not normalised;
    * ``image`` (B, 3, H, W): the images as they came, for decoders that follow their edges.

    A ConvNeXt is read as FC-CLIP does (arXiv 2308.02487): the tower's final norm and projection are
    applied to each position instead of to the average. A ViT is read through its last block with
    another attention, see :func:`dcp_clip.modeling.vit_dense.dense_tokens`.

    With `window`, larger images are seen in overlapping windows of about the size that the tower
    was trained on, see :func:`dcp_clip.modeling.windows.encode_in_windows`; ``pooled`` stays that
    of the whole image, so that the image is judged as a whole and parity with CLIP holds.
    """

    @configurable
    def __init__(
        self,
        *,
        visual: nn.Module,
        pixel_mean: list[float],
        pixel_std: list[float],
        dense: str = "value",
        residual: bool = False,
        neighbour_std: float = 5.0,
        resample: bool = True,
        window: int = 0,
        window_stride: int = 0,
        compile_tower: bool = False,
    ):
        """
        Args:
            visual: open_clip's image tower, a ``TimmModel`` with a hierarchical trunk or a
                ``VisionTransformer``.
            pixel_mean: three values on the 0 to 255 scale, RGB.
            pixel_std: likewise.
            dense: how a ViT is read, one of ``vit_dense.DENSE_READINGS``; a convolutional tower has
                one reading.
            residual: keep the last block's residual and feed-forward part in a ViT's reading.
            neighbour_std: reach of the reading "neighbour", in patches.
            resample: bring a ViT's layers to strides 4, 8 and 16. Without it they stay on the patch
                grid and :meth:`output_shape` says so: cheaper when the user projects them to few
                channels first, since a 1x1 projection and bilinear resizing commute.
            window: side of the windows in pixels; 0 for none.
            window_stride: pixels from one window to the next.
            compile_tower: run the tower through torch.compile unless it trains.

        Raises:
            ValueError: for a tower of another kind, an unknown reading, or windows that do not fit
                the tower's grid.
        """
        super().__init__()
        if dense not in DENSE_READINGS:
            raise ValueError(
                f"MODEL.CLIP.DENSE is '{dense}'; known are {', '.join(DENSE_READINGS)}."
            )
        if neighbour_std <= 0:
            raise ValueError(f"MODEL.CLIP.NEIGHBOUR_STD is {neighbour_std}; it must be above 0.")
        self.visual = visual
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.dense, self.residual, self.neighbour_std = dense, residual, neighbour_std
        self.resample = resample
        self.window, self.window_stride = window, window_stride
        self._autocast_weights, self._compiled = AutocastWeights(), None
        if compile_tower:
            self._compiled = Compiled(CLIPBackbone._encode, "CLIP's image tower")
        if isinstance(visual, VisionTransformer):
            self._init_vit(visual)
        elif isinstance(visual, TimmModel) and hasattr(visual.trunk, "stages"):
            self._init_timm(visual)
        else:
            raise ValueError(
                f"CLIPBackbone reads open_clip's ConvNeXt-like timm towers and its ViT, not "
                f"{type(visual).__name__}; choose another MODEL.CLIP.NAME."
            )
        self._shapes["image"] = ShapeSpec(channels=3, stride=1)
        self._check_windows()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        clip = load_clip(cfg)
        mean, std = clip_pixel_stats(clip)
        return {
            "visual": clip.visual,
            "pixel_mean": mean,
            "pixel_std": std,
            "dense": cfg.MODEL.CLIP.DENSE,
            "residual": cfg.MODEL.CLIP.DENSE_RESIDUAL,
            "neighbour_std": cfg.MODEL.CLIP.NEIGHBOUR_STD,
            "resample": cfg.MODEL.CLIP.RESAMPLE,
            "window": cfg.MODEL.CLIP.WINDOW,
            "window_stride": cfg.MODEL.CLIP.WINDOW_STRIDE,
            "compile_tower": cfg.MODEL.DCP_CLIP.COMPILE,
        }

    def _init_timm(self, visual: TimmModel) -> None:
        info = visual.trunk.feature_info
        info = info.info if hasattr(info, "info") else info
        # The last feature of each stride: timm may list a stem of the same stride before it.
        last = {f["reduction"]: i for i, f in enumerate(info)}
        strides = [s for s in _STRIDES if s in last]
        self._indices = [last[s] for s in strides]
        channels = [info[i]["num_chs"] for i in self._indices]
        if getattr(visual.trunk.head, "global_pool", None) is None or hasattr(visual.head, "pool"):
            raise ValueError(
                "CLIPBackbone needs a tower that averages its last grid before projecting."
            )
        embed_dim = _project(visual, torch.zeros(1, channels[-1], 1, 1)).shape[1]
        self._shapes = {
            f"res{i + 2}": ShapeSpec(channels=c, stride=s)
            for i, (c, s) in enumerate(zip(channels, strides, strict=True))
        }
        self._shapes["dense"] = ShapeSpec(channels=embed_dim, stride=strides[-1])
        self._shapes["pooled"] = ShapeSpec(channels=embed_dim)
        self._size_divisibility = strides[-1]

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
        attention = visual.transformer.resblocks[-1].attn
        if self.dense != "tokens" and not isinstance(attention, nn.MultiheadAttention):
            raise ValueError(
                f"MODEL.CLIP.DENSE '{self.dense}' reads CLIP's plain attention, and "
                f"{type(attention).__name__} is another; set it to 'tokens'."
            )

    def _check_windows(self) -> None:
        window, stride, divisor = self.window, self.window_stride, self._size_divisibility
        if not window:
            return
        if window < 0 or window % divisor or stride % divisor or not 0 < stride <= window:
            raise ValueError(
                f"MODEL.CLIP.WINDOW is {window} and WINDOW_STRIDE {stride}; both must be multiples "
                f"of {divisor} pixels for this encoder, the stride above 0 and at most the window."
            )

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
        self._autocast_weights.clear()
        if not any(p.requires_grad for p in self.visual.parameters()):
            self.visual.eval()
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class: images (B, 3, H, W) to res2 .. res5, dense, pooled and image.

        Raises:
            ValueError: when H or W is no multiple of :attr:`size_divisibility`.
        """
        divisor = self.size_divisibility
        if images.shape[-2] % divisor or images.shape[-1] % divisor:
            raise ValueError(
                f"image of {images.shape[-2]} x {images.shape[-1]} pixels given to an encoder that "
                f"needs multiples of {divisor}; pad it first."
            )
        visual = self._autocast_weights.of(self.visual)
        run = partial(self._run, visual)
        if self.window and max(images.shape[-2:]) > self.window:
            out = encode_in_windows(run, images, self.window, self.window_stride)
            out["pooled"] = _pooled(visual, images)
        else:
            out = run(images)
        if isinstance(self.visual, VisionTransformer) and self.resample:
            height, width = images.shape[-2:]
            for key, stride in zip(("res2", "res3", "res4"), _STRIDES, strict=False):
                out[key] = resize_to(out[key], (-(-height // stride), -(-width // stride)))
        out["image"] = images
        return out

    def _run(self, visual: nn.Module, images: Tensor) -> dict[str, Tensor]:
        # Of a tower that trains: drop path and gradients stay what the recipes were made with.
        if self._compiled is None or visual.training:
            return self._encode(visual, images)
        return self._compiled(self, visual, images)

    def _encode(self, visual: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """All outputs but the images, each on the grid that the tower computes it on."""
        if isinstance(visual, VisionTransformer):
            tokens = run_vit(visual, images, self._indices)
            out = {f"res{i + 2}": tokens.patches(x) for i, x in enumerate(tokens.levels)}
            dense = dense_tokens(
                visual.transformer.resblocks[-1],
                tokens,
                self.dense,
                self.residual,
                self.neighbour_std,
            )
            out["dense"] = tokens.patches(visual.ln_post(dense) @ visual.proj)
            out["pooled"] = visual.ln_post(tokens.last[:, 0]) @ visual.proj
            return out
        trunk = visual.trunk
        last, levels = trunk.forward_intermediates(images, indices=self._indices)
        out = {f"res{i + 2}": level for i, level in enumerate(levels)}
        out["dense"] = _project(visual, last)
        out["pooled"] = visual.head(trunk.forward_head(last))
        return out


def _pooled(visual: nn.Module, images: Tensor) -> Tensor:
    """(B, D): what ``encode_image`` returns."""
    if isinstance(visual, VisionTransformer):
        return visual.ln_post(run_vit(visual, images, []).last[:, 0]) @ visual.proj
    return visual(images)


def _project(visual: TimmModel, x: Tensor) -> Tensor:
    """Apply to each position what the tower applies to its average: (B,C,h,w) to (B,D,h,w)."""
    head = visual.trunk.head
    x = getattr(head, "norm", nn.Identity())(x).permute(0, 2, 3, 1)
    x = getattr(head, "pre_logits", nn.Identity())(x)
    return visual.head(head.fc(x)).permute(0, 3, 1, 2)
