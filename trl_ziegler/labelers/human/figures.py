"""What some of a store's comparisons have come to: answers, labellers, agreement against chance, speed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

from sqlalchemy import select

from . import summaries
from .queries import is_live
from .schema import Answer, Comparison
from .steps import chunks
from .store import LabelStore


def labelling_figures(store: LabelStore, ids: Iterable[str]) -> dict[str, Any]:
    """Figures of the comparisons with these ids, in plain values; what was taken back does not count.

    Args:
        store: Where they are.
        ids: Of `comparison_id`; the store need not know all of them, and each counts once.

    Returns:
        `answers`, of which `labels`, `skips` and `flags`; `labellers`, who gave them; `median_seconds` of an answer
        (None without a timed one); `agreement`: that of `Agreement`, without its part on each labeller (None while no
        comparison has two labels; `kappa` None where it is undefined).
    """
    ratings: dict[str, list[Any]] = {"predictions": [], "references": [], "num_choices": []}
    answers: list[Any] = []
    with store.reading() as session:
        for chunk in chunks(dict.fromkeys(ids)):
            for name, values in summaries.ratings(session, Comparison.id.in_(chunk)).items():
                ratings[name] += values
            given = select(Answer.labeller, Answer.kind, Answer.seconds).where(is_live())
            answers += session.execute(given.where(Answer.comparison_id.in_(chunk))).all()
    kinds = Counter(answer.kind for answer in answers)
    seconds = [answer.seconds for answer in answers if answer.seconds is not None]
    return {
        "answers": len(answers),
        "labels": kinds["label"],
        "skips": kinds["skip"],
        "flags": kinds["flag"],
        "labellers": len({answer.labeller for answer in answers}),
        "median_seconds": median(seconds) if seconds else None,
        "agreement": _agreement(ratings),
    }


def _agreement(ratings: dict[str, list[Any]]) -> dict[str, Any] | None:
    result = summaries.agreement(ratings)
    if result is None:
        return None
    kappa = result["kappa"] if math.isfinite(result["kappa"]) else None  # NaN is no JSON
    return {name: result[name] for name in ("agreement", "chance", "n", "pairs")} | {"kappa": kappa}
