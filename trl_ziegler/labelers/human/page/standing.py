"""The figures of the researcher's page: counts, agreement against chance, time per answer, who disagrees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from sqlalchemy import select

from .. import summaries
from ..queries import asks, is_live
from ..schema import Answer, Comparison
from ..store import LabelStore

LEAST_SHARED = 10
"""Comparisons that a labeller must share with others before the page says that they disagree."""


@dataclass(frozen=True)
class LabellerStanding:
    """One labeller: what they did, how often others say the same (None with nothing shared), and the verdict."""

    progress: summaries.Progress
    shared: int
    agreement: float | None
    chance: float | None
    disagrees: bool


@dataclass(frozen=True)
class Standing:
    """Where labelling stands at `at`; `agreement` is the metric's result, None while no comparison has two labels."""

    at: datetime
    counts: summaries.Counts
    agreement: dict[str, Any] | None
    median_seconds: float | None
    labellers: list[LabellerStanding]


def read_standing(store: LabelStore, task: str | None) -> Standing:
    """Read all figures in one transaction: seconds for tens of thousands of comparisons."""
    with store.reading() as session:
        counts = summaries.counts(session, task)
        progress = summaries.progress(session)
        ratings = summaries.ratings(session, asks(task))
        timed = select(Answer.seconds).join(Comparison).where(asks(task), is_live(), Answer.seconds.is_not(None))
        seconds = [value for value in session.scalars(timed) if value is not None]
    agreement = summaries.agreement(ratings)
    return Standing(
        at=store.clock(),
        counts=counts,
        agreement=agreement,
        median_seconds=median(seconds) if seconds else None,
        labellers=[_labeller(entry, agreement) for entry in progress],
    )


def disagrees(agreement: float, everyone: float, shared: int) -> bool:
    """Whether a labeller agrees with the others less than `everyone` does, by more than two standard errors.

    The error is that of a share among `shared` comparisons, which is too large rather than too small: with several
    others on a comparison the labeller's agreement there is a mean.
    """
    error = math.sqrt(everyone * (1 - everyone) / shared) if shared else math.inf
    return shared >= LEAST_SHARED and agreement < everyone - 2 * error


def _labeller(progress: summaries.Progress, agreement: dict[str, Any] | None) -> LabellerStanding:
    own = agreement["per_labeller"].get(progress.labeller) if agreement else None
    if agreement is None or own is None:
        return LabellerStanding(progress, 0, None, None, False)
    verdict = disagrees(own["agreement"], agreement["agreement"], own["n"])
    return LabellerStanding(progress, own["n"], own["agreement"], own["chance"], verdict)
