"""Attention weights between positions from a second, self-supervised tower (ProxyCLIP)."""

from __future__ import annotations

import difflib

import timm
import torch
from detectron2.config import CfgNode
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.families.timm_vit import allow_any_size
from dcp_clip.modeling.clip.loading import weights_file
from dcp_clip.utils.arguments import in_one_line
from dcp_clip.utils.tensor_files import TensorFileError, require_tensors

__all__ = ["AttentionProxy", "proxy_attention"]

_NODE = "MODEL.CLIP.PROXY"
# The shift and the scale of ProxyCLIP.
_BETA = 1.2
_GAMMA = 3.0


class AttentionProxy:
    """A frozen tower of timm whose similar positions share their dense CLIP features.

    DINO (arXiv 2104.14294), DINOv2 (arXiv 2304.07193) and DINOv3 (arXiv 2508.10104) see better than
    CLIP which positions belong to the same thing. ProxyCLIP (arXiv 2408.04883) takes the attention
    of CLIP's last block from them; the values stay CLIP's.

    It is no module, so its weights are not in checkpoints. Any model can use it or leave it out.
    """

    def __init__(self, tower: nn.Module, clip_mean: list[float], clip_std: list[float]):
        """
        Args:
            tower: a network of timm with ``forward_intermediates``.
            clip_mean, clip_std: of the pixels that a call gets; RGB, 0 to 255 scale.
        """
        self.tower = tower.requires_grad_(False).eval()
        self.stride = _stride_of(tower)
        mean, std = (255 * torch.tensor(tower.pretrained_cfg[key]) for key in ("mean", "std"))
        # From pixels normalised for CLIP to pixels normalised for the tower.
        self._scale = (torch.tensor(clip_std) / std)[:, None, None]
        self._shift = ((torch.tensor(clip_mean) - mean) / std)[:, None, None]

    @classmethod
    def from_config(
        cls, cfg: CfgNode, mean: list[float], std: list[float]
    ) -> AttentionProxy | None:
        """Build the tower of MODEL.CLIP.PROXY; None without a name.

        Args:
            cfg: the whole config.
            mean, std: see the constructor.

        Raises:
            ValueError: for a name or weights that timm does not have, weights that cannot be read
                or downloaded, a tower that does not accept images of any size, or another value of
                MODEL.CLIP.DENSE than 'maskclip'.
        """
        clip = cfg.MODEL.CLIP
        if not clip.PROXY.NAME:
            return None
        if clip.DENSE != "maskclip":
            raise ValueError(
                f"{_NODE}.NAME replaces the attention of CLIP's last block, but MODEL.CLIP.DENSE "
                f"is '{clip.DENSE}'; set it to 'maskclip'."
            )
        if not clip.PROXY.PRETRAINED and (clip.PRETRAINED or cfg.MODEL.WEIGHTS):
            raise ValueError(
                f"{_NODE}.NAME is '{clip.PROXY.NAME}' without weights, whose attention means "
                f"nothing; set {_NODE}.PRETRAINED to a tag of timm or the path of a file."
            )
        return cls(_build_tower(clip.PROXY.NAME, clip.PROXY.PRETRAINED), mean, std)

    @torch.no_grad()
    def __call__(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute the attention between the positions of a grid.

        The images are resized to the nearest multiples of the tower's stride. Its features are
        averaged in each cell of a coarser grid, or interpolated on a finer one.

        Args:
            images: (B, 3, H, W), normalised for CLIP.
            grid: (h, w) of CLIP's dense features.

        Returns:
            (B, h*w, h*w) float32, see :func:`proxy_attention`.
        """
        self.tower.to(images.device)  # no effect after the first call
        pixels = images * self._scale.to(images) + self._shift.to(images)
        size = [max(round(side / self.stride), 1) * self.stride for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        features = _last_features(self.tower, pixels).float()
        if features.shape[-2:] != tuple(grid):
            shrinks = features.shape[-2] >= grid[0] and features.shape[-1] >= grid[1]
            features = F.interpolate(features, grid, mode="area" if shrinks else "bilinear")
        # Half precision is too coarse for differences of similarities.
        with torch.autocast(images.device.type, enabled=False):
            return proxy_attention(F.normalize(features.flatten(2), dim=1))


def proxy_attention(unit: Tensor) -> Tensor:
    """Attention weights from similarities (ProxyCLIP, arXiv 2408.04883).

    With the cosines s of all pairs and their mean m in the image, the logits are 3 (s - 1.2 m), and
    negative ones do not take part. A position always takes part in its own mean.

    Args:
        unit: (B, C, N) features of unit length.

    Returns:
        (B, N, N); each row sums to 1.
    """
    similarity = unit.mT @ unit
    logits = _GAMMA * (similarity - _BETA * similarity.mean((1, 2), keepdim=True))
    # Features that are all alike would leave a row without any position.
    itself = torch.eye(unit.shape[2], dtype=torch.bool, device=unit.device)
    return logits.masked_fill((logits < 0) & ~itself, float("-inf")).softmax(2)


def _build_tower(name: str, pretrained: str) -> nn.Module:
    if "." in name or not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.6)
        raise ValueError(
            f"{_NODE}.NAME is '{name}', which timm {timm.__version__} does not know; "
            + (f"did you mean {' or '.join(map(repr, close))}? " if close else "")
            + "`python -c 'import timm; print(timm.list_models())'` lists the names, and the tag "
            "of the weights belongs in PROXY.PRETRAINED."
        )
    path = weights_file(pretrained)
    source: dict = {"pretrained": bool(pretrained)}
    if path is not None:
        try:
            require_tensors(path)
        except TensorFileError as error:
            raise ValueError(f"{_NODE}.PRETRAINED: {error}") from error
        source["pretrained_cfg_overlay"] = {"file": str(path)}
    elif pretrained:
        tags = [x.partition(".")[2] for x in timm.list_pretrained(f"{name}.*")]
        if pretrained not in tags:
            raise ValueError(
                f"{_NODE}.PRETRAINED is '{pretrained}', but timm knows these weights for '{name}': "
                f"{', '.join(tags) or 'none'}; use one of them or the path of a local file."
            )
        source["pretrained_cfg"] = pretrained
    try:
        tower = timm.create_model(name, num_classes=0, **source)
    except Exception as error:  # the Hugging Face client raises many types of errors
        text = in_one_line(error)
        raise ValueError(
            f"The weights '{pretrained}' ({_NODE}.PRETRAINED) of '{name}' cannot be loaded; fetch "
            f"them on a machine with internet (`hf download timm/{name}.{pretrained}`) and give "
            f"the path of the file. ({text})"
            if path is None
            else f"{_NODE}.PRETRAINED: '{path}' does not hold weights of '{name}' "
            f"({_NODE}.NAME); give the file that belongs to this name. ({text})"
        ) from error
    if problem := _problem_of(tower):
        raise ValueError(
            f"{_NODE}.NAME is '{name}', which {problem}; use a vision transformer, for example "
            "'vit_base_patch16_224' with PRETRAINED 'dino'."
        )
    return tower


@torch.no_grad()
def _problem_of(tower: nn.Module) -> str:
    """Prepare a tower for images of any size, and try one; returns why it cannot be used, or ""."""
    if not hasattr(tower, "forward_intermediates") or not getattr(tower, "feature_info", None):
        return "has no grid of features that timm can return"
    if isinstance(tower, (Eva, VisionTransformer)):
        allow_any_size(tower)
    stride = _stride_of(tower)
    try:
        _last_features(tower.eval(), torch.zeros(1, 3, 4 * stride, 6 * stride))
    except Exception as error:  # towers raise many types of errors
        return f"does not accept images of any size ({in_one_line(error, 200)})"
    return ""


def _stride_of(tower: nn.Module) -> int:
    return int(tower.feature_info[-1]["reduction"])


def _last_features(tower: nn.Module, pixels: Tensor) -> Tensor:
    """Return the last features (B, C, h, w) of a tower of timm, after its final norm."""
    (features,) = tower.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)
    return features
