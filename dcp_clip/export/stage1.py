"""Stage 1 for exported programs: the number of names and of tokens are inputs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.stages.stage1_proposal import CategoryProposal
from dcp_clip.structures import Proposals

__all__ = ["ExportableProposal", "merge_in_loop", "merge_round"]


class ExportableProposal(CategoryProposal):
    """Computes what a :class:`CategoryProposal` computes in evaluation, without Python loops.

    A loop or a condition that depends on the size of an input would be fixed by the export. Here
    the names are ranked in one product instead of in chunks, synonyms are scored in one product
    instead of one after another, and tokens are merged in a loop of the program itself.
    """

    @classmethod
    def of(cls, proposal: CategoryProposal) -> ExportableProposal:
        """Make one with the values and the weights of `proposal`."""
        exportable = copy.copy(proposal)
        exportable.__class__, exportable.ranks = cls, proposal.ranks
        return exportable.eval()

    def _rank(self, evidence, text_features, category_rows, present) -> Tensor:
        batch_size, num_categories = evidence.pooled.shape[0], category_rows.shape[0]
        if not self.ranks:
            ids = torch.arange(num_categories, device=category_rows.device)
            return ids.expand(batch_size, -1)
        if self.num_tokens:
            tokens, valid = merge_in_loop(evidence.tokens, self.num_tokens)
            evidence = evidence._replace(tokens=tokens, token_valid=valid.expand(batch_size, -1))
        scores = self._score(evidence, text_features.expand(batch_size, -1, -1))
        scores = scores[:, category_rows].amax(-1)
        return scores.topk(torch.sym_min(num_categories, self.num_proposals), dim=1).indices

    def _propose(self, evidence, text_features, category_rows, ids) -> Proposals:
        synonyms = text_features[category_rows[ids]]  # (B, K, S, D)
        scores = self._score(evidence, synonyms.flatten(1, 2))
        scores, best = scores.unflatten(1, synonyms.shape[1:3]).max(2)
        index = best[..., None, None].expand(-1, -1, 1, synonyms.shape[-1])
        chosen = synonyms.gather(2, index).squeeze(2)
        return Proposals(ids, scores, torch.ones_like(ids, dtype=torch.bool), chosen)


def merge_in_loop(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As :func:`merge_tokens` for tokens without padding, in a loop that can be exported.

    ``torch.while_loop`` needs tensors whose shapes do not change, so merged tokens stay behind the
    live ones and are marked.

    Args:
        tokens: (B, D, N) of unit length.
        count: maximum number of tokens to keep.

    Returns:
        (B, D, M) tokens, M = N or N + 1, of unit length or zero; (M,) bool, the live tokens.
    """
    # An even number of tokens, so that each source has a target.
    sums = F.pad(tokens.transpose(1, 2), (0, 0, 0, tokens.shape[2] % 2))
    live = torch.scalar_tensor(tokens.shape[2], dtype=torch.int64, device=tokens.device)
    sums, live = torch.while_loop(
        lambda sums, live: live > count,
        lambda sums, live: merge_round(sums, live, count),
        (sums, live),
    )
    valid = torch.arange(sums.shape[1], device=tokens.device) < live
    return F.normalize(sums, dim=2).transpose(1, 2), valid


def merge_round(sums: Tensor, live: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One round of :func:`merge_tokens`: every second token may join one of the others.

    Args:
        sums: (B, 2n, D), live tokens first, then zeros.
        live: (), the number of live tokens, above `count`.
        count: see :func:`merge_in_loop`.

    Returns:
        the same with fewer live tokens.
    """
    n = sums.shape[1] // 2
    pair = torch.arange(n, device=sums.device)
    source, target = sums.unflatten(1, (n, 2)).unbind(2)  # (B, n, D) each
    is_source, is_target = 2 * pair < live, 2 * pair + 1 < live
    similarity = F.normalize(source, dim=2) @ F.normalize(target, dim=2).mT
    similarity, nearest = similarity.masked_fill(~is_target, -2.0).max(2)
    # The less similar half stays, so that a token without a similar one is not merged.
    order = similarity.masked_fill(~is_source, -3.0).argsort(dim=1, descending=True)
    half = ((live + 1) // 2 + 1) // 2
    num_merged = torch.minimum(live - count, half)
    merged = torch.zeros_like(order).scatter(1, order, pair.expand_as(order)) < num_merged
    added = source * merged[..., None]
    target = target.scatter_add(1, nearest[..., None].expand_as(added), added)
    # Kept sources come first, then targets, then what is no token any more.
    kept = ~merged & is_source
    last = (4 * n + pair).expand_as(order)
    key = torch.cat([pair.where(kept, last), (n + pair).where(is_target, last)], dim=1)
    position = key.argsort(dim=1)[..., None]
    sums = torch.cat([source, target], dim=1)
    live = live - num_merged
    is_live = torch.arange(2 * n, device=sums.device) < live
    return sums.gather(1, position.expand_as(sums)) * is_live[:, None], live
