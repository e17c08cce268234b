"""CLIP's image encoder as a Detectron2 backbone."""

from __future__ import annotations

import contextlib

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from dcp_clip.modeling.clip.augmented_views import AugmentedViews
from dcp_clip.modeling.clip.dense_attention import DenseAttention
from dcp_clip.modeling.clip.encoder_windows import encode_in_windows
from dcp_clip.modeling.clip.families import build_image_tower
from dcp_clip.modeling.clip.loading import clip_pixel_stats, load_clip
from dcp_clip.modeling.clip.proxy import AttentionProxy

__all__ = ["CLIPBackbone"]


@BACKBONE_REGISTRY.register()
class CLIPBackbone(Backbone):
    """CLIP's image tower with three outputs: a feature pyramid, dense features and one vector.

    ``forward`` takes images (B, 3, H, W) that are normalised with :attr:`pixel_mean` and
    :attr:`pixel_std`. H and W must be multiples of :attr:`size_divisibility`. It returns a dict of

    * ``res2`` to ``res4``, and ``res5`` and ``res6`` of convolutional towers with strides 32 and
      64: the feature pyramid, with the strides that :meth:`output_shape` gives;
    * ``dense`` (B, D, h, w): a feature for each position of the last grid, in CLIP's joint
      embedding space, not normalised;
    * ``pooled`` (B, D): what ``encode_image`` returns for the same pixels, not normalised;
    * ``image`` (B, 3, H, W): the input, for decoders that follow its edges.

    The modules of :mod:`dcp_clip.modeling.clip.families` describe how each family of towers
    computes these outputs.

    With `window`, the tower encodes larger images in overlapping windows of about its training
    resolution, see :func:`encode_in_windows`. ``pooled`` is computed from the whole image, so it
    stays equal to ``encode_image``.

    With `proxy`, a second, frozen tower decides which positions share their dense features; the
    other outputs stay equal.

    With `views`, in evaluation mode, ``dense`` and ``pooled`` are averages over several views of
    the image, so ``pooled`` is no longer equal to ``encode_image``.
    """

    @configurable
    def __init__(
        self,
        *,
        visual: nn.Module,
        pixel_mean: list[float],
        pixel_std: list[float],
        dense_attention: DenseAttention = DenseAttention(),  # noqa: B008  (immutable)
        window: int = 0,
        window_stride: int = 0,
        proxy: AttentionProxy | None = None,
        views: AugmentedViews | None = None,
    ):
        """
        Args:
            visual: open_clip's image tower.
            pixel_mean: three values on the 0 to 255 scale, RGB.
            pixel_std: three values on the same scale.
            dense_attention: how a ViT with a class token computes its dense features; other towers
                have "maskclip" only.
            window: size of the encoder windows in pixels; 0 for none.
            window_stride: pixels from one encoder window to the next.
            proxy: gives the attention between the positions of ``dense``; None for CLIP's own.
            views: test-time augmentation; None for none.

        Raises:
            ValueError: for a tower that no family supports or that does not have this attention, or
                windows that do not fit its grid.
        """
        super().__init__()
        self.visual = visual
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.window, self.window_stride = window, window_stride
        self._tower = build_image_tower(visual, dense_attention)
        self.proxy, self.views = proxy, views
        self._check_windows()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        clip, node = load_clip(cfg), cfg.MODEL.CLIP
        mean, std = clip_pixel_stats(clip)
        return {
            "visual": clip.visual,
            "pixel_mean": mean,
            "pixel_std": std,
            "dense_attention": DenseAttention(
                node.DENSE, node.DENSE_RESIDUAL, node.NACLIP_STD, node.POSITION_OFFSET
            ),
            "window": node.ENCODER_WINDOW,
            "window_stride": node.ENCODER_WINDOW_STRIDE,
            "proxy": AttentionProxy.from_config(cfg, mean, std),
            "views": AugmentedViews.from_config(cfg),
        }

    def _check_windows(self) -> None:
        window, stride, divisor = self.window, self.window_stride, self.size_divisibility
        if not window:
            return
        if window < 0 or window % divisor or stride % divisor or not 0 < stride <= window:
            raise ValueError(
                f"MODEL.CLIP.ENCODER_WINDOW is {window} and ENCODER_WINDOW_STRIDE {stride}; both "
                f"must be multiples of {divisor} pixels for this encoder, the stride above 0 and "
                "at most the window."
            )

    @property
    def size_divisibility(self) -> int:
        """H and W must be multiples of this many pixels."""
        return self._tower.size_divisibility

    @property
    def embed_dim(self) -> int:
        """D, the width of CLIP's joint embedding space."""
        return self._tower.shapes["dense"].channels

    def train(self, mode: bool = True) -> CLIPBackbone:
        """Set the mode, but keep a frozen tower in evaluation mode.

        A frozen tower has no drop path and does not update its batch norm statistics.
        """
        super().train(mode)
        if not any(p.requires_grad for p in self.visual.parameters()):
            self.visual.eval()
        return self

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {**self._tower.shapes, "image": ShapeSpec(channels=3, stride=1)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute res2 .. res5, dense, pooled and image from images (B, 3, H, W); see the class.

        Raises:
            ValueError: if H or W is not a multiple of :attr:`size_divisibility`.
        """
        divisor = self.size_divisibility
        if images.shape[-2] % divisor or images.shape[-1] % divisor:
            raise ValueError(
                f"The image has {images.shape[-2]} x {images.shape[-1]} pixels, but this encoder "
                f"needs multiples of {divisor}; pad it first."
            )
        in_windows = self.window and max(images.shape[-2:]) > self.window
        # An image that fits into a window stays whole in all its views.
        encode = self._encode_in_windows if in_windows else self._encode_whole
        with _precision(images, divisor):
            if self.views is None or self.training:
                out = encode(images)
            else:
                out = self.views.encode(encode, images, divisor)
        out["image"] = images
        return out

    def _encode_in_windows(self, images: Tensor) -> dict[str, Tensor]:
        out = encode_in_windows(self._encode_whole, images, self.window, self.window_stride)
        return out | {"pooled": self._tower.pooled(images)}

    def _encode_whole(self, images: Tensor) -> dict[str, Tensor]:
        if self.proxy is None:
            return self._tower.encode(images)
        stride = self._tower.shapes["dense"].stride
        grid = images.shape[-2] // stride, images.shape[-1] // stride
        return self._tower.encode_mixed(images, self.proxy(images, grid))


def _precision(images: Tensor, divisor: int) -> contextlib.AbstractContextManager:
    """float32 for images with one column of positions on a CPU, else the caller's precision.

    There, a strided bf16 convolution with one column of results reads uninitialised memory
    (PyTorch 2.14, oneDNN 3.12, AVX-512).
    """
    half = images.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if half and images.shape[-1] <= divisor:
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()
