"""The model of the contrastive pre-training: both towers of CLIP and the two losses."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.image_encoder import CLIPBackbone
from dcp_clip.modeling.clip.loading import load_clip, share_clip
from dcp_clip.modeling.clip.text_tower import encode_tokens, needed_lengths
from dcp_clip.modeling.clip.tokenizer import build_tokenizer
from dcp_clip.modeling.losses import ranking_loss

__all__ = ["CLIPPretraining", "contrastive_loss"]


@META_ARCH_REGISTRY.register()
class CLIPPretraining(nn.Module):
    """CLIP's two towers, trained by a loss on the whole image and a loss on the dense features.

    The loss on the whole image is CLIP's (arXiv 2103.00020), except that an image can have several
    captions. The loss on the dense features compares a caption with the position that matches it
    best, as in FILIP (arXiv 2111.07783). No label says where a thing is. But each caption must
    match at some position, so the dense features, which segmentation uses, learn to localise.
    """

    @configurable
    def __init__(self, *, backbone: CLIPBackbone, text: nn.Module, tokenizer, dense_weight: float):
        """
        Args:
            backbone: the image tower.
            text: the text tower.
            tokenizer: tokenizer of the text tower.
            dense_weight: weight of the loss on the dense features, relative to 1 for the loss on
                the whole image.
        """
        super().__init__()
        self.backbone, self.text_encoder, self.tokenizer = backbone, text, tokenizer
        self.dense_weight = dense_weight
        self._tokens: dict[str, Tensor] = {}  # cached, because captions repeat
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for name, value in (("mean", backbone.pixel_mean), ("std", backbone.pixel_std)):
            self.register_buffer(f"pixel_{name}", torch.tensor(value).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        with share_clip():
            backbone, clip = build_backbone(cfg), load_clip(cfg)
        return {
            "backbone": backbone,
            "text": clip.text,
            "tokenizer": build_tokenizer(cfg.MODEL.CLIP.NAME, clip.text.vocab_size),
            "dense_weight": cfg.PRETRAIN.DENSE_WEIGHT,
        }

    def forward(self, batch) -> dict[str, Tensor]:
        """
        Args:
            batch: a :class:`dcp_clip.emoji_scenes.pretraining.pairs.PairBatch`.

        Returns:
            named losses; their sum is minimised.
        """
        features = self.encode_images(batch.images)
        text = self.encode_text(batch.captions)
        match = batch.match.to(text.device)
        scale = self.logit_scale.exp().clamp(max=100)
        pooled = F.normalize(features["pooled"], dim=1)
        losses = {"loss_whole": contrastive_loss(scale * pooled @ text.T, match)}
        if self.dense_weight:
            dense = F.normalize(features["dense"], dim=1).flatten(2)
            cosines = torch.einsum("bdn,td->btn", dense, text)
            best = (scale * cosines).logsumexp(2) - math.log(dense.shape[2])
            losses["loss_dense"] = self.dense_weight * contrastive_loss(best, match)
        return losses

    def encode_images(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's output for images (B, 3, H, W), RGB from 0 to 255."""
        images = (images.to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std
        return self.backbone(images.contiguous(memory_format=torch.channels_last))

    def encode_text(self, captions: list[str]) -> Tensor:
        """Compute the (T, D) unit-length features of T captions.

        Captions of similar length are encoded together, so that little padding is computed.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._tokens]
        if new:
            self._tokens.update(zip(new, self.tokenizer(new), strict=True))
        tokens = torch.stack([self._tokens[c] for c in captions]).to(self.logit_scale.device)
        lengths = needed_lengths(self.text_encoder, tokens)
        order = lengths.argsort()
        parts = []
        for rows in order.chunk(3):
            part = tokens[rows, : int(lengths[rows].max())]
            parts.append(encode_tokens(self.text_encoder, part))
        return F.normalize(torch.cat(parts)[order.argsort()], dim=1)

    def clip_state(self) -> dict[str, Tensor]:
        """The weights as open_clip names them."""
        state = {f"visual.{k}": v for k, v in self.backbone.visual.state_dict().items()}
        state |= {f"text.{k}": v for k, v in self.text_encoder.state_dict().items()}
        return {**state, "logit_scale": self.logit_scale.detach()}


def contrastive_loss(logits: Tensor, match: Tensor) -> Tensor:
    """Compute CLIP's symmetric loss if images have several captions, and captions several images.

    Each positive pair competes with the negative pairs of its row, and of its column. Positive
    pairs do not compete with each other. With one caption for each image this is CLIP's loss.

    Args:
        logits: (B, T) similarities of images and captions.
        match: (B, T): 1 for positive pairs, 0 for negative pairs, -1 for pairs that are ignored.
    """
    positive, negative = match == 1, match == 0
    return sum(ranking_loss(logits, positive, negative, dim) for dim in (1, 0)) / 2
