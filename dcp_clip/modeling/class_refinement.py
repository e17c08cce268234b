"""Stage 5: the masks go back to CLIP and correct the names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from .build import CLASS_REFINEMENT_REGISTRY

__all__ = ["MaskPooledRefinement", "NoRefinement", "Refinement", "RenamingRefinement"]


@dataclass
class Refinement:
    """What stage 5 says.

    Attributes:
        class_logits: (B, K), the logit that the category is in the image at all; its log-sigmoid is
            added to the category's map.
        mask_logits: (B, K, K), how well each mask (row) fits each proposed name (column); its loss
            trains the pooled features to tell the names apart.
        names: (B, K, K), the probability that what a mask (row) covers bears a name (column); None
            where every mask keeps its own.
    """

    class_logits: Tensor
    mask_logits: Tensor
    names: Tensor | None = None

    def apply(self, fine: Tensor, mask: Tensor) -> Tensor:
        """The final maps: the fine ones, renamed, and fainter the less their category is there.

        Args:
            fine: (B, K, H/4, W/4) logits.
            mask: (B, K) bool, False for padded proposals.
        """
        presence = F.logsigmoid(self.class_logits)[..., None, None]
        if self.names is None:
            return fine + presence
        # Probabilities are mixed, so never in half precision.
        with torch.autocast(fine.device.type, enabled=False):
            shares = fine.float().masked_fill(~mask[..., None, None], float("-inf")).softmax(1)
            renamed = torch.bmm(self.names.mT, shares.flatten(2)).view_as(shares)
            return renamed.clamp(min=1e-6).log() + presence.float()


@CLASS_REFINEMENT_REGISTRY.register()
class MaskPooledRefinement(nn.Module):
    """CLIP's dense features, averaged under each mask and outside it, judged against the K names.

    *Whether* a category is present is decided apart from *where* it is, and the two are multiplied
    (added, as logarithms), as SAM 3 does (arXiv 2511.16719). Mask-pooled CLIP evidence follows
    FC-CLIP (arXiv 2308.02487). A small network weighs the evidence; it reads only numbers that mean
    the same for every name (similarities, margins, area, confidence), so it serves unseen names
    too.

    With `learned` off nothing has parameters, and the presence of a category is its probability
    among the K names by the features under its own mask, to the power of `weight`. The final map is
    then FC-CLIP's geometric ensemble of the pixel's and the mask's probability, both of CLIP's own
    cosines: log p(pixel) + weight * log p(mask), up to what all names of a pixel share. FC-CLIP's
    exponent alpha of the mask is weight / (1 + weight); its 0.4 and 0.8 (for seen and unseen names,
    beside a trained classifier) are weights of 0.67 and 4. Two differences: FC-CLIP pools before
    the tower's last norm and projection, here pooled are the projected features of unit length; and
    FC-CLIP's masks come from a trained decoder, here from the very features that they pool. A hard
    mask holds just the positions that look like its name, so it would confirm any name;
    `temperature` softens the masks that are pooled, until they see what lies around them.
    """

    _verdicts = 1  # numbers that the network says of a mask: the logit of its name's presence

    @configurable
    def __init__(
        self,
        *,
        scale: float,
        hidden_dim: int,
        learned: bool,
        weight: float = 1.0,
        temperature: float = 1.0,
    ):
        """
        Args:
            scale: initial factor from cosines to logits.
            hidden_dim: width of the small network.
            learned: with False nothing here has parameters.
            weight: exponent of the mask's probability where nothing is learned.
            temperature: what the fine logits are divided by before they become masks to pool under.

        Raises:
            ValueError: for a weight or a temperature that is not above 0.
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
                "(CLASS_REFINEMENT.NAME 'NoRefinement' leaves the stage out)."
            )
        self.learned, self.weight, self.temperature = learned, float(weight), float(temperature)
        if learned:
            self.scale = nn.Parameter(torch.tensor(float(scale)))
            self.judge = nn.Sequential(
                nn.Linear(6, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, self._verdicts)
            )
            # Starts by believing every proposal: log-sigmoid of 3 is nearly zero.
            nn.init.zeros_(self.judge[-1].weight)
            nn.init.constant_(self.judge[-1].bias, 3.0)
        else:
            self.scale = float(scale)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.DCP_CLIP.CLASS_REFINEMENT
        return {
            "scale": cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
            "hidden_dim": node.HIDDEN_DIM,
            "learned": node.LEARNED,
            "weight": node.WEIGHT,
            "temperature": node.MASK_TEMPERATURE,
        }

    def forward(
        self,
        fine: Tensor,
        dense: Tensor,
        text: Tensor,
        scores: Tensor,
        valid: Tensor,
        mask: Tensor,
    ) -> Refinement:
        """
        Args:
            fine: (B, K, H/4, W/4) logits.
            dense: (B, D, h, w).
            text: (B, K, D) unit length.
            scores: (B, K) proposal scores.
            valid: (B, h, w) bool, False at padding.
            mask: (B, K) bool, False for padded proposals.
        """
        # Cosines decide between names: never in half precision.
        with torch.autocast(fine.device.type, enabled=False):
            return self._judge(fine, dense, text.float(), scores.float(), valid, mask)

    def _judge(self, fine, dense, text, scores, valid, mask) -> Refinement:
        shares = self._shares(fine, dense, valid, mask)
        positions = F.normalize(dense.float(), dim=1).flatten(2).mT  # (B, N, D)
        mask_logits = self._mask_logits(torch.bmm(shares, positions), text, mask)
        if not self.learned:
            fit = mask_logits.log_softmax(2).diagonal(dim1=1, dim2=2)
            return Refinement(_logit_of_log(self.weight * fit), mask_logits)
        evidence = self._evidence(mask_logits, shares, positions, text, scores, valid, mask)
        return Refinement(self.judge(evidence).squeeze(2).float(), mask_logits)

    def _shares(self, fine: Tensor, dense: Tensor, valid: Tensor, mask: Tensor) -> Tensor:
        """(B, K, N) of each dense position that each name has, 0 at padding."""
        # Averaged to the dense grid: pooling under them then costs K x h x w x D.
        shares = fine.float() / self.temperature
        shares = shares.masked_fill(~mask[..., None, None], float("-inf")).softmax(1)
        shares = F.adaptive_avg_pool2d(shares, dense.shape[-2:]) * valid[:, None]
        return shares.flatten(2)

    def _mask_logits(self, inside: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """(B, K, K) from the sums of features under the masks (B, K, D)."""
        logits = self.scale * torch.bmm(F.normalize(inside, dim=2), text.mT)
        return logits.masked_fill(~mask[:, None], float("-inf"))

    def _evidence(self, mask_logits, shares, positions, text, scores, valid, mask) -> Tensor:
        """(B, K, 6): numbers that mean the same for every name."""
        area = shares.sum(2)
        # Not the sum over all positions less that under the mask: for a mask that fills the image
        # that would be rounding noise, made a unit vector.
        outside = torch.bmm((1 - shares) * valid.flatten(1)[:, None], positions)
        own = mask_logits.diagonal(dim1=1, dim2=2)
        fit = mask_logits.log_softmax(2).diagonal(dim1=1, dim2=2)
        contrast = own - self.scale * (F.normalize(outside, dim=2) * text).sum(2)
        confidence = (shares * shares).sum(2) / area.clamp(min=1e-6)
        return torch.stack(
            [
                own.masked_fill(~mask, 0.0) / 10,
                fit.masked_fill(~mask, 0.0) / 5,
                contrast.masked_fill(~mask, 0.0) / 10,
                (area / valid.flatten(1).sum(1, keepdim=True) + 1e-4).log() / 5,
                confidence,
                scores,
            ],
            dim=2,
        )


@CLASS_REFINEMENT_REGISTRY.register()
class RenamingRefinement(MaskPooledRefinement):
    """Masks not only vote on which names are there: what a mask covers may take another's name.

    A thing whose pixels look like several names falls apart into their masks. Under each of them
    CLIP's features are pooled, and what it covers is given to the names in proportion to how well
    they fit, its own with a head start that is learned. The pieces of one thing have nearly the
    same features under them, so they come to agree on a name; that every mask is classified, and
    the pixels get what their masks are called, is MaskFormer's idea (arXiv 2107.06278).

    Pooled are CLIP's projected features before they are made unit length, which is what CLIP pools
    of an image itself, and positions count by the square of a mask's share of them: at a thing's
    rim they show its surroundings.
    """

    _verdicts = 2  # presence, and the head start of the mask's own name

    @configurable
    def __init__(self, **kwargs):
        """
        Args:
            kwargs: see :class:`MaskPooledRefinement`; there must be something to learn.

        Raises:
            ValueError: as there, and where `learned` is off.
        """
        super().__init__(**kwargs)
        if not self.learned:
            raise ValueError(
                "MODEL.DCP_CLIP.CLASS_REFINEMENT.LEARNED is False, but RenamingRefinement learns; "
                "use MaskPooledRefinement."
            )

    def _judge(self, fine, dense, text, scores, valid, mask) -> Refinement:
        shares = self._shares(fine, dense, valid, mask)
        positions = dense.float().flatten(2).mT  # (B, N, D)
        mask_logits = self._mask_logits(torch.bmm(shares.square(), positions), text, mask)
        evidence = self._evidence(mask_logits, shares, positions, text, scores, valid, mask)
        presence, head_start = self.judge(evidence).float().unbind(2)
        names = (mask_logits + head_start.diag_embed()).softmax(2)
        return Refinement(presence, mask_logits, names)


def _logit_of_log(log_probability: Tensor) -> Tensor:
    """The logit whose log-sigmoid is `log_probability` (<= 0), finite at probability 1."""
    log_probability = log_probability.clamp(max=-1e-6)
    return log_probability - (-torch.expm1(log_probability)).log()


@CLASS_REFINEMENT_REGISTRY.register()
class NoRefinement(nn.Module):
    """The names stay as proposed."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()

    def forward(self, fine, dense, text, scores, valid, mask) -> None:
        return None
