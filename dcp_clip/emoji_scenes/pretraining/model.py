"""Contrastive pre-training of a small CLIP, from pictures and captions alone."""

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
    """CLIP's two towers and its loss, on the picture as a whole and on its positions.

    The loss of the whole is CLIP's (arXiv 2103.00020), where a picture may have several captions.
    That of the positions compares a caption with its best position, as FILIP does
    (arXiv 2111.07783): nothing tells where a thing is, but a caption must fit somewhere, and so the
    dense map, which segmentation reads, comes to tell things apart by place.
    """

    @configurable
    def __init__(self, *, backbone: CLIPBackbone, text: nn.Module, tokenizer, dense_weight: float):
        """
        Args:
            backbone: the image tower.
            text: the text tower.
            tokenizer: of the text tower.
            dense_weight: of the loss of the positions, beside 1 for that of the whole picture.
        """
        super().__init__()
        self.backbone, self.text_encoder, self.tokenizer = backbone, text, tokenizer
        self.dense_weight = dense_weight
        self._tokens: dict[str, Tensor] = {}  # of the captions seen so far, which come again
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
            named losses, to be summed.
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
        """What the backbone returns for (B, 3, H, W), RGB from 0 to 255."""
        images = (images.to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std
        return self.backbone(images.contiguous(memory_format=torch.channels_last))

    def encode_text(self, captions: list[str]) -> Tensor:
        """(T, D) unit-length features of T captions; padding behind the longest is not computed."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._tokens]
        if new:
            self._tokens.update(zip(new, self.tokenizer(new), strict=True))
        tokens = torch.stack([self._tokens[c] for c in captions]).to(self.logit_scale.device)
        lengths = needed_lengths(self.text_encoder, tokens)
        order = lengths.argsort()
        parts = []
        for rows in order.chunk(3):  # short captions apart from long ones
            part = tokens[rows, : int(lengths[rows].max())]
            parts.append(encode_tokens(self.text_encoder, part))
        return F.normalize(torch.cat(parts)[order.argsort()], dim=1)

    def clip_state(self) -> dict[str, Tensor]:
        """The weights as open_clip names them."""
        state = {f"visual.{k}": v for k, v in self.backbone.visual.state_dict().items()}
        state |= {f"text.{k}": v for k, v in self.text_encoder.state_dict().items()}
        return {**state, "logit_scale": self.logit_scale.detach()}


def contrastive_loss(logits: Tensor, match: Tensor) -> Tensor:
    """CLIP's symmetric loss where pictures have several captions and captions several pictures.

    Each pair that belongs together competes with the pairs of its row (and of its column) that do
    not; pairs that belong together do not compete with each other. With one caption a picture this
    is CLIP's loss.

    Args:
        logits: (B, T).
        match: (B, T): 1 for pairs that belong together, 0 for those that do not, -1 for those that
            count as neither.
    """
    positive, negative = match == 1, match == 0
    return sum(ranking_loss(logits, positive, negative, dim) for dim in (1, 0)) / 2
