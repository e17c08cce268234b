"""Stage 5: pool CLIP's features under the masks, and correct the categories."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.stages.registry import CLASS_REFINEMENT_REGISTRY
from dcp_clip.structures import Refinement

__all__ = ["MaskPooledRefinement", "NoRefinement", "ReassignmentRefinement"]

_HIDDEN_DIM = 32  # of the classifier


@CLASS_REFINEMENT_REGISTRY.register()
class MaskPooledRefinement(nn.Module):
    """Compares CLIP's dense features, averaged inside and outside each mask, with the K categories.

    As in SAM 3 (arXiv 2511.16719), *whether* a category is present is predicted separately from
    *where* it is. The two probabilities are multiplied. Mask-pooled CLIP features follow FC-CLIP
    (arXiv 2308.02487). A small classifier predicts the presence. Its inputs (similarities, margins,
    area, confidence) have the same meaning for every category, so it also works for unseen ones.

    If `learned` is False, there are no parameters. The presence of a category is then its
    probability among the K categories, computed from the features under its own mask, to the power
    of `weight`. The final logits are FC-CLIP's geometric ensemble of the probabilities of the pixel
    and of the mask: log p(pixel) + weight * log p(mask), up to a constant for each pixel. Both
    probabilities come from CLIP's cosine similarities. FC-CLIP's exponent alpha of the mask is
    weight / (1 + weight). Its 0.4 and 0.8 (for seen and unseen categories, with a trained
    classifier) correspond to weights of 0.67 and 4.

    There are two differences. FC-CLIP pools before the tower's last norm and projection; here the
    projected features of unit length are pooled. The masks of FC-CLIP come from a trained decoder;
    here they come from the same features that they pool. A hard mask selects exactly the positions
    that are similar to its category, so it would confirm any category. A higher `temperature`
    softens the masks, so they include some of their surroundings.
    """

    _num_outputs = 1  # of the classifier, for each mask: the logit that its category is present

    @configurable
    def __init__(
        self,
        *,
        scale: float,
        learned: bool,
        weight: float = 1.0,
        temperature: float = 1.0,
        hidden_dim: int = _HIDDEN_DIM,
    ):
        """
        Args:
            scale: factor from cosine similarities to logits; the initial value if it is learned.
            learned: if False, the module has no parameters.
            weight: exponent of the mask's probability if nothing is learned.
            temperature: temperature of the softmax that turns fine logits into masks.
            hidden_dim: width of the classifier.

        Raises:
            ValueError: if the weight or the temperature is not above 0.
        """
        super().__init__()
        if temperature <= 0:
            raise ValueError(
                f"MODEL.DCP_CLIP.CLASS_REFINEMENT.MASK_TEMPERATURE is {temperature}; it must be "
                "above 0."
            )
        if weight <= 0:
            raise ValueError(
                f"MODEL.DCP_CLIP.CLASS_REFINEMENT.WEIGHT is {weight}; it must be above 0 "
                "(CLASS_REFINEMENT.NAME 'NoRefinement' switches the stage off)."
            )
        self.learned, self.weight, self.temperature = learned, float(weight), float(temperature)
        if learned:
            self.scale = nn.Parameter(torch.tensor(float(scale)))
            self.classifier = nn.Sequential(
                nn.Linear(6, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, self._num_outputs)
            )
            # Every proposal counts as present at first: the log-sigmoid of 3 is nearly zero.
            nn.init.zeros_(self.classifier[-1].weight)
            nn.init.constant_(self.classifier[-1].bias, 3.0)
        else:
            self.scale = float(scale)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT
        return {
            "scale": cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
            "learned": node.LEARNED,
            "weight": node.WEIGHT,
            "temperature": node.MASK_TEMPERATURE,
        }

    def forward(
        self,
        fine: Tensor,
        dense: Tensor,
        text_features: Tensor,
        scores: Tensor,
        pixel_valid: Tensor,
        proposal_valid: Tensor,
    ) -> Refinement:
        """
        Args:
            fine: (B, K, H/4, W/4) logits.
            dense: (B, D, h, w).
            text_features: (B, K, D) of unit length.
            scores: (B, K) proposal scores.
            pixel_valid: (B, h, w) bool, False at padding.
            proposal_valid: (B, K) bool, False for padded proposals.

        Returns:
            The logits (B, K) that the categories are present, and the logits (B, K, K) of the
            categories under each mask.
        """
        # Small differences of cosine similarity decide between categories, so use float32.
        with torch.autocast(fine.device.type, enabled=False):
            return self._refine(
                fine, dense, text_features.float(), scores.float(), pixel_valid, proposal_valid
            )

    def _refine(
        self, fine, dense, text_features, scores, pixel_valid, proposal_valid
    ) -> Refinement:
        masks = self._masks(fine, dense, pixel_valid, proposal_valid)
        features = F.normalize(dense.float(), dim=1).flatten(2).mT  # (B, N, D)
        pooled = torch.bmm(masks, features)
        mask_logits = self._mask_logits(pooled, text_features, proposal_valid)
        if not self.learned:
            log_probability = mask_logits.log_softmax(2).diagonal(dim1=1, dim2=2)
            return Refinement(_logit_of_log(self.weight * log_probability), mask_logits)
        evidence = self._evidence(
            mask_logits, masks, features, text_features, scores, pixel_valid, proposal_valid
        )
        return Refinement(self.classifier(evidence).squeeze(2).float(), mask_logits)

    def _masks(
        self, fine: Tensor, dense: Tensor, pixel_valid: Tensor, proposal_valid: Tensor
    ) -> Tensor:
        """(B, K, N) soft masks on the grid of the dense features, 0 at padding."""
        masks = fine.float() / self.temperature
        masks = masks.masked_fill(~proposal_valid[..., None, None], float("-inf")).softmax(1)
        # On the dense grid, pooling costs K x h x w x D only.
        masks = F.adaptive_avg_pool2d(masks, dense.shape[-2:]) * pixel_valid[:, None]
        return masks.flatten(2)

    def _mask_logits(self, pooled: Tensor, text_features: Tensor, proposal_valid: Tensor) -> Tensor:
        """(B, K, K) similarity of the features pooled under each mask (B, K, D) and each text."""
        logits = self.scale * torch.bmm(F.normalize(pooled, dim=2), text_features.mT)
        return logits.masked_fill(~proposal_valid[:, None], float("-inf"))

    def _evidence(
        self, mask_logits, masks, features, text_features, scores, pixel_valid, proposal_valid
    ) -> Tensor:
        """(B, K, 6): inputs of the classifier, which mean the same for every category."""
        area = masks.sum(2)
        # Do not subtract the sum under the mask from the sum over all positions. For a mask that
        # fills the image, the normalised difference would be rounding noise.
        outside = torch.bmm((1 - masks) * pixel_valid.flatten(1)[:, None], features)
        own = mask_logits.diagonal(dim1=1, dim2=2)
        log_probability = mask_logits.log_softmax(2).diagonal(dim1=1, dim2=2)
        contrast = own - self.scale * (F.normalize(outside, dim=2) * text_features).sum(2)
        confidence = (masks * masks).sum(2) / area.clamp(min=1e-6)
        return torch.stack(
            [
                own.masked_fill(~proposal_valid, 0.0) / 10,
                log_probability.masked_fill(~proposal_valid, 0.0) / 5,
                contrast.masked_fill(~proposal_valid, 0.0) / 10,
                (area / pixel_valid.flatten(1).sum(1, keepdim=True) + 1e-4).log() / 5,
                confidence,
                scores,
            ],
            dim=2,
        )


@CLASS_REFINEMENT_REGISTRY.register()
class ReassignmentRefinement(MaskPooledRefinement):
    """Also reassigns the area of a mask to other categories.

    An object whose pixels look like several categories is split into several masks. CLIP's features
    are pooled under each mask, and the area of the mask is distributed over the categories by their
    probability. A learned bonus favours the mask's own category. The pieces of one object have
    similar features, so they get the same category. As in MaskFormer (arXiv 2107.06278), masks are
    classified and pixels get the category of their masks.

    The pooled features are CLIP's projected features before normalisation, as CLIP pools them for
    an image. Positions are weighted by the square of the mask, because positions at the border of
    an object also show its surroundings.
    """

    _num_outputs = 2  # presence, and the bonus of the mask's own category

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see :class:`MaskPooledRefinement`.

        Raises:
            ValueError: as there, and if `learned` is off.
        """
        super().__init__(**kwargs)
        if not self.learned:
            raise ValueError(
                "MODEL.DCP_CLIP.CLASS_REFINEMENT.LEARNED is False, but ReassignmentRefinement "
                "learns; use MaskPooledRefinement."
            )

    def _refine(
        self, fine, dense, text_features, scores, pixel_valid, proposal_valid
    ) -> Refinement:
        masks = self._masks(fine, dense, pixel_valid, proposal_valid)
        features = dense.float().flatten(2).mT  # (B, N, D)
        pooled = torch.bmm(masks.square(), features)
        mask_logits = self._mask_logits(pooled, text_features, proposal_valid)
        evidence = self._evidence(
            mask_logits, masks, features, text_features, scores, pixel_valid, proposal_valid
        )
        presence, bonus = self.classifier(evidence).float().unbind(2)
        reassignment = (mask_logits + bonus.diag_embed()).softmax(2)
        return Refinement(presence, mask_logits, reassignment)


def _logit_of_log(log_probability: Tensor) -> Tensor:
    """Return the logit whose log-sigmoid is `log_probability` (<= 0), finite at probability 1."""
    log_probability = log_probability.clamp(max=-1e-6)
    return log_probability - (-torch.expm1(log_probability)).log()


@CLASS_REFINEMENT_REGISTRY.register()
class NoRefinement(nn.Module):
    """Skips stage 5."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()

    def forward(self, fine, dense, text_features, scores, pixel_valid, proposal_valid) -> None:
        """Return None: the fine logits (B, K, H/4, W/4) are the final ones."""
