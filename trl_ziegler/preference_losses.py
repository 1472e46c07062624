"""Which candidate was judged better than which, and the loss that follows from it.

Axis letters: `B` records, `K` candidates. A record with fewer than K candidates is filled up; `mask [B, K]` is true
where a candidate exists. A *judgement* is a batch with one of `labels [B]` (index of the best), `rankings [B, K]`
(indices, best first, then anything) or `scores [B, K]`; where several are there, that order decides.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .functional import best_of_k_loss, ranking_loss, scalar_loss


def best_candidates(judgement: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """`[B, K]` bool: the best candidate of each record, or all that share the highest score."""
    if "labels" in judgement or "rankings" in judgement:
        best = judgement["labels"] if "labels" in judgement else judgement["rankings"][:, 0]
        return F.one_hot(best, mask.shape[1]).bool()
    scores = judgement["scores"].masked_fill(~mask, -torch.inf)
    return (scores == scores.max(1, keepdim=True).values) & mask


def preferred_pairs(judgement: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """`[B, K, K]` bool: whether candidate i is known to be better than candidate j.

    A label tells K - 1 pairs, a ranking all of them, scores those that do not tie. No pair is invented.
    """
    both = mask[:, :, None] & mask[:, None, :]
    if "labels" in judgement:
        best = best_candidates(judgement, mask)
        return both & best[:, :, None] & ~best[:, None, :]
    height = -_places(judgement["rankings"], mask) if "rankings" in judgement else judgement["scores"]
    return both & (height[:, :, None] > height[:, None, :])


def _places(rankings: Tensor, mask: Tensor) -> Tensor:
    """`[B, K]`: the place of each candidate in its ranking, 0 for the best."""
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(rankings)
    # What fills a ranking up is sent to a column of its own, which is then cut off.
    order = rankings.masked_fill(places >= mask.sum(1, keepdim=True), mask.shape[1])
    return F.pad(torch.zeros_like(places), (0, 1)).scatter(1, order, places)[:, :-1]


def pairwise_loss(rewards: Tensor, preferred: Tensor) -> Tensor:
    """Mean over records of the mean over a record's known pairs of -log sigmoid(r_better - r_worse).

    Args:
        rewards: `[B, K]`.
        preferred: `[B, K, K]` bool, with at least one pair in each record.

    Returns:
        A scalar; every record has the same weight whatever its K. K = 2 is the loss of Stiennon et al. 2020, a full
        ranking that of InstructGPT (Ouyang et al. 2022).
    """
    losses = -F.logsigmoid(rewards[:, :, None] - rewards[:, None, :])
    return (torch.where(preferred, losses, 0).sum((1, 2)) / preferred.sum((1, 2))).mean()


def preference_loss(loss_type: str, rewards: Tensor, judgement: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """The loss of a batch.

    Args:
        loss_type: "best_of_k" (Ziegler et al. 2019), "pairwise", "ranking" (InstructGPT) or "scalar" (squared error).
        rewards: `[B, K]`; a `margin [B]` in the judgement is first taken off the labelled candidate's.
        judgement: See the module.
        mask: `[B, K]` bool.
    """
    if "margin" in judgement:
        rewards = rewards - judgement["margin"][:, None] * best_candidates(judgement, mask)
    if loss_type == "best_of_k":
        return best_of_k_loss(rewards, judgement["labels"], mask=mask)
    if loss_type == "scalar":
        return scalar_loss(rewards, judgement["scores"], mask=mask)
    if loss_type == "ranking" and "rankings" in judgement:
        return ranking_loss(rewards, judgement["rankings"], mask=mask)
    return pairwise_loss(rewards, preferred_pairs(judgement, mask))
