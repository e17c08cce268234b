"""A small convolutional image tower for laptops and tests, registered with timm.

It has plain 3x3 residual blocks with batch norm. On a CPU they train several times faster than the
depthwise blocks of a ConvNeXt, or a ViT, of the same accuracy. The blocks come from timm; this
module chooses only their sizes.
"""

from timm.models import build_model_with_cfg, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

_PRETRAINED_CFG = {
    "url": "",
    "input_size": (3, 256, 256),
    "pool_size": (8, 8),
    "first_conv": "stem.conv",
    "classifier": "head.fc",
}
_WIDTHS = (32, 64, 128, 256)


def _byob(
    variant: str, depths: tuple[int, ...], strides: tuple[int, ...], stem: int, **kwargs
) -> ByobNet:
    blocks = tuple(
        ByoBlockCfg(type="basic", d=depth, c=width, s=stride, gs=0, br=1.0)
        for width, depth, stride in zip(_WIDTHS, depths, strides, strict=True)
    )
    cfg = ByoModelCfg(blocks=blocks, stem_chs=stem, stem_type="3x3", stem_pool="", act_layer="relu")
    kwargs["pretrained_cfg"] = _PRETRAINED_CFG
    return build_model_with_cfg(ByobNet, variant, pretrained=False, model_cfg=cfg, **kwargs)


@register_model
def dcp_tiny_cnn(pretrained: bool = False, **kwargs) -> ByobNet:
    """A tower with 2.8 M parameters, strides 4, 8, 16, 32 and 32, 64, 128, 256 channels."""
    return _byob("dcp_tiny_cnn", (1, 2, 2, 2), (2, 2, 2, 2), stem=32, **kwargs)


@register_model
def dcp_tiny_cnn_s16(pretrained: bool = False, **kwargs) -> ByobNet:
    """A tower with 1.6 M parameters, strides 4, 8, 16, 16 and 32, 64, 128, 256 channels.

    It is for small images, which have few positions at stride 32. It is a third faster than
    :func:`dcp_tiny_cnn`.
    """
    return _byob("dcp_tiny_cnn_s16", (1, 2, 2, 1), (2, 2, 2, 1), stem=16, **kwargs)
