"""Stage 4: refine the coarse logits of each category with the encoder's finer features."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import resize_to
from dcp_clip.modeling.stages.registry import FINE_DECODER_REGISTRY
from dcp_clip.modeling.stages.stage4_region_pooling import RegionPooling

__all__ = ["BilinearDecoder", "PyramidDecoder"]

_LEVELS = (("res4", 16), ("res3", 8), ("res2", 4))
_NORMS = ("GN", "BN", "SyncBN", "LN", "")
_GROUPS = 4  # of group norm
# In evaluation, the category pathway computes this many values of maps at a time.
_CHUNK_CPU, _CHUNK_GPU = 2_000_000, 256_000_000


def _target_size(feature: Tensor, stride: int, target: int) -> tuple[int, int]:
    """Return the size of the grid of stride `target`, if `feature` has stride `stride`."""
    h, w = feature.shape[-2:]
    return -(-h * stride // target), -(-w * stride // target)


def _conv(in_channels: int, out_channels: int, norm: str) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        3,
        padding=1,
        bias=norm == "",
        norm=get_norm(norm, out_channels) if norm != "GN" else nn.GroupNorm(_GROUPS, out_channels),
        activation=F.relu_,
    )


class _CategoryStep(nn.Module):
    """One step of the category pathway: the maps of all categories are one batch.

    Work that is done K times at full size must be cheap, so the maps are convolved before they are
    upsampled. The image features are convolved once for each image. For each category, a gate from
    its text feature then weights their channels: K products instead of K convolutions.
    """

    def __init__(self, channels: int, image_channels: int, text_channels: int, norm: str | None):
        """With `norm` None there is no normalisation and no second convolution."""
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        self.guide = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.gate = nn.Linear(text_channels, channels)
        self.norm = self.refine = None
        if norm is not None:
            norm_layer = (
                nn.GroupNorm(_GROUPS, channels) if norm == "GN" else get_norm(norm, channels)
            )
            self.norm = norm_layer or nn.Identity()
            self.refine = _conv(channels, channels, norm)

    def forward(self, maps: Tensor, guide: Tensor, text_features: Tensor) -> Tensor:
        """
        Args:
            maps: (B*K, C, h', w').
            guide: (B, C, h, w), the output of `self.guide` for the image features.
            text_features: (B, K, d).

        Returns:
            (B*K, C, h, w).
        """
        maps = resize_to(self.mix(maps), guide.shape[-2:])
        maps = maps.unflatten(0, text_features.shape[:2])
        gate = 1 + self.gate(text_features)[..., None, None]
        # The maps of all categories at stride 4 are the model's largest tensor. They are changed in
        # place, except where autograd would copy them.
        add = torch.addcmul if maps.requires_grad else Tensor.addcmul_
        maps = add(maps, gate, guide[:, None])
        if self.norm is None:
            return F.relu_(maps).flatten(0, 1)
        maps = F.relu_(self.norm(maps.flatten(0, 1)))
        return maps + self.refine(maps)


@FINE_DECODER_REGISTRY.register()
class PyramidDecoder(nn.Module):
    """Refines the coarse logits in two pathways, at strides 16, 8 and 4.

    The image pathway runs once for each image. Like an FPN (arXiv 1612.03144), it merges the visual
    features of stage 3 with res4, res3 and res2. The category pathway runs K times with few
    channels. It upsamples the map of each category in the same steps, guided by the image pathway.
    Its weights are shared over the categories, so unseen categories become as sharp as seen ones.
    The result is added to the upsampled coarse logits.

    With `pixel_text`, the product of the last image features and the text features is added. This
    is a per-pixel classifier, which quickly learns the appearance of the trained categories.

    With `region_stride`, :class:`RegionPooling` then makes the pixels of a region agree.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: dict[str, ShapeSpec],
        visual_channels: int,
        text_channels: int,
        image_dim: int,
        category_dim: int,
        norm: str,
        pixel_text: bool,
        region_stride: int = 0,
        region_key_stride: int = 32,
    ):
        """
        Args:
            input_shape: output shape of the backbone; res2, res3 and res4 are used.
            visual_channels, text_channels: widths of the features from stage 3.
            image_dim: channels of the image pathway.
            category_dim: channels of the category pathway.
            norm: one of `_NORMS`; "LN" is over the channels, and "" is none.
            pixel_text: add the product of pixel and text features at stride 4.
            region_stride, region_key_stride: see :class:`RegionPooling`; 0 for none.

        Raises:
            ValueError: if "GN" cannot divide a width into its groups, or for an unknown norm or an
                invalid stride.
        """
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(
                f"MODEL.DCP_CLIP.FINE_DECODER.NORM is '{norm}'; it must be one of "
                f"{', '.join(map(repr, _NORMS))}."
            )
        for key, width in (("IMAGE_DIM", image_dim), ("CATEGORY_DIM", category_dim)):
            if norm == "GN" and width % _GROUPS:
                raise ValueError(
                    f"MODEL.DCP_CLIP.FINE_DECODER.{key} is {width}; with NORM 'GN' it must be a "
                    f"multiple of {_GROUPS}."
                )
        self.text_norm = nn.LayerNorm(text_channels)
        self.strides = {key: input_shape[key].stride for key, _ in _LEVELS}
        self.visual = nn.Conv2d(visual_channels, image_dim, 1)
        self.laterals = nn.ModuleDict(
            {key: nn.Conv2d(input_shape[key].channels, image_dim, 1) for key, _ in _LEVELS}
        )
        self.merges = nn.ModuleDict({key: _conv(image_dim, image_dim, norm) for key, _ in _LEVELS})
        self.embed = nn.Conv2d(2, category_dim, 3, padding=1)
        # No second convolution at stride 4, where it would cost as much as everything else.
        widths = (category_dim, image_dim, text_channels)
        self.steps = nn.ModuleDict(
            {key: _CategoryStep(*widths, norm if stride > 4 else None) for key, stride in _LEVELS}
        )
        self.out = nn.Conv2d(category_dim, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.pixel = self.name = None
        if pixel_text:
            self.pixel = nn.Conv2d(image_dim, image_dim, 1)
            self.name = nn.Linear(text_channels, image_dim)
            nn.init.zeros_(self.name.weight)
            nn.init.zeros_(self.name.bias)
        self.regions = None
        if region_stride:
            self.regions = RegionPooling(image_dim, region_stride, region_key_stride)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        visual_channels: int,
        text_channels: int,
    ) -> dict:
        node = cfg.MODEL.DCP_CLIP.FINE_DECODER
        return {
            "input_shape": input_shape,
            "visual_channels": visual_channels,
            "text_channels": text_channels,
            "image_dim": node.IMAGE_DIM,
            "category_dim": node.CATEGORY_DIM,
            "norm": node.NORM,
            "pixel_text": node.PIXEL_TEXT,
            "region_stride": node.REGION_STRIDE,
            "region_key_stride": node.REGION_KEY_STRIDE,
        }

    def forward(
        self,
        coarse: Tensor,
        visual: Tensor,
        text_features: Tensor,
        features: dict[str, Tensor],
        pixel_valid: Tensor,
        proposal_valid: Tensor,
    ) -> Tensor:
        """
        Args:
            coarse: (B, K, h, w) logits.
            visual: (B, d, h, w) from stage 3.
            text_features: (B, K, d) from stage 3.
            features: output of the backbone; res2, res3 and res4 are used, and ``image`` for
                the regions.
            pixel_valid: (B, h, w) bool, False at padding.
            proposal_valid: (B, K) bool, False for padded proposals.

        Returns:
            fine logits (B, K, H/4, W/4), or at the stride of the regions.
        """
        image, guides = self._image_pathway(visual, features)
        text_features = self.text_norm(text_features)
        relative = _category_input(coarse, proposal_valid)
        correction = self._category_pathway(relative, guides, text_features)
        if self.pixel is not None:
            pixels = self.pixel(image)
            product = torch.einsum("bkc,bchw->bkhw", self.name(text_features), pixels)
            correction = correction + product * pixels.shape[1] ** -0.5
        fine = resize_to(coarse, correction.shape[-2:]) + correction
        if self.regions is None:
            return fine
        return self.regions(fine, image, features["image"], pixel_valid, proposal_valid)

    def _image_pathway(self, visual: Tensor, features: dict) -> tuple[Tensor, list[Tensor]]:
        """Return the image features (B, G, H/4, W/4), and a guide (B, C, h, w) for each step."""
        image, guides = self.visual(visual), []
        for key, target in _LEVELS:
            feature = features[key]
            size = _target_size(feature, self.strides[key], target)
            # Projection and resizing commute, and the projected features are cheaper to resize.
            lateral = resize_to(self.laterals[key](feature), size)
            image = self.merges[key](resize_to(image, size) + lateral)
            guides.append(self.steps[key].guide(image))
        return image, guides

    def _category_pathway(
        self, logits: Tensor, guides: list[Tensor], text_features: Tensor
    ) -> Tensor:
        """Compute the correction of each category from its logits.

        Args:
            logits: (B, K, 2, h, w), see :func:`_category_input`.
            guides: see :meth:`_image_pathway`.
            text_features: (B, K, d).

        Returns:
            (B, K, H/4, W/4).
        """
        chunks = [(logits, text_features)]
        # Autograd keeps all maps, and an exported program has no loop. Otherwise the maps of a few
        # categories fit into the cache of a CPU.
        if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            most = _CHUNK_GPU if logits.is_cuda else _CHUNK_CPU
            step = max(1, most // guides[-1].numel())
            chunks = list(zip(logits.split(step, dim=1), text_features.split(step, dim=1)))
        corrections = []
        for some, text in chunks:
            maps = self.embed(some.flatten(0, 1))
            for (key, _), guide in zip(_LEVELS, guides):
                maps = self.steps[key](maps, guide, text)
            corrections.append(self.out(maps).unflatten(0, text.shape[:2]).squeeze(2))
        return torch.cat(corrections, dim=1)


def _category_input(coarse: Tensor, proposal_valid: Tensor) -> Tensor:
    """Return (B, K, 2, h, w): each category's logits relative to all categories and to the best."""
    logits = coarse.float()
    proposed = logits.masked_fill(~proposal_valid[..., None, None], float("-inf"))
    against_all = logits - proposed.logsumexp(1, keepdim=True)
    against_best = logits - proposed.amax(1, keepdim=True)
    return 0.3 * torch.stack([against_all, against_best], dim=2).clamp(-20, 20)


@FINE_DECODER_REGISTRY.register()
class BilinearDecoder(nn.Module):
    """Upsamples the coarse logits bilinearly to stride 4. It has no learned weights."""

    def __init__(
        self,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        visual_channels: int,
        text_channels: int,
    ):
        super().__init__()
        self.stride = input_shape["res2"].stride

    def forward(
        self,
        coarse: Tensor,
        visual: Tensor,
        text_features: Tensor,
        features: dict[str, Tensor],
        pixel_valid: Tensor,
        proposal_valid: Tensor,
    ) -> Tensor:
        """As :meth:`PyramidDecoder.forward`."""
        return resize_to(coarse, _target_size(features["res2"], self.stride, 4))
