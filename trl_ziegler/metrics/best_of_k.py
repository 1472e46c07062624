"""Accuracy of a reward model on best-of-K labels, with the chance level beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

Z_95 = 1.959963984540054
"""The standard normal quantile of a two-sided 95 % interval."""


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share observed on `n` records.

    Args:
        share: observed share in [0, 1].
        n: number of records, at least 1.

    Returns:
        `(low, high)`, both in [0, 1]. Unlike the normal interval it keeps a width at shares of 0 and 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    shrink = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / shrink
    half = Z_95 / shrink * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def chance_of_at_most(accuracy: float, n: int, chance: float) -> float:
    """Probability that guessing gets no more than this share of `n` records right.

    Args:
        accuracy: share in [0, 1]; ties may make `accuracy * n` no whole number, which is rounded down.
        n: number of records, at least 1.
        chance: share that guessing gets right in the mean, in (0, 1).

    Returns:
        The binomial distribution function, in [0, 1].
    """
    hits = math.floor(accuracy * n + 1e-9)
    log_terms = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(chance)
        + (n - k) * math.log1p(-chance)
        for k in range(hits + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, log_terms)))


def _credit(scores: np.ndarray, label: int) -> tuple[float, bool]:
    """Credit of one record (1 / size of the tie if the label is among the best, else 0), and whether the best tie."""
    best = np.flatnonzero(scores == scores.max())
    return float(label in best) / len(best), len(best) > 1


class BestOfKAccuracy(evaluate.Metric):
    """How often the labelled best completion is the one that the reward model scores highest.

    Constructed directly, `BestOfKAccuracy()`, so that no hub is asked. `compute(predictions=, references=)` takes

    - `predictions`: one list of K scores per record, floats; K may differ between records, K >= 2;
    - `references`: the label of each record, an index in 0..K-1,

    and returns `accuracy`; `chance`, the mean of 1/K; `low` and `high`, the 95 % Wilson interval of the accuracy; `n`,
    the number of records; `ties`, how many records have several highest scores. A tie of m that contains the label
    counts 1/m, so that a model that gives the same score to everything stands at chance, wherever the labels lie.

    Raises `ValueError` for an empty set, fewer than two scores, a score that is not finite, or a label outside 0..K-1.

    Example:

    >>> BestOfKAccuracy().compute(predictions=[[0.1, 0.9], [0.3, 0.2, 0.7]], references=[1, 0])["accuracy"]
    0.5
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Accuracy of a reward model on best-of-K labels, with its chance level and a 95 % interval.",
            citation="Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593",
            inputs_description="predictions: K scores per record; references: the index of the best, 0..K-1.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[Sequence[float]], references: Sequence[int]) -> dict[str, float | int]:
        records = [np.asarray(scores, dtype=np.float64) for scores in predictions]
        _check_records(records, references)
        credits, tied = zip(*map(_credit, records, references), strict=True)
        accuracy, n = float(np.mean(credits)), len(records)
        low, high = wilson_interval(accuracy, n)
        chance = float(np.mean([1 / len(scores) for scores in records]))
        return {"accuracy": accuracy, "chance": chance, "low": low, "high": high, "n": n, "ties": sum(tied)}


def _check_records(records: Sequence[np.ndarray], labels: Sequence[int]) -> None:
    if not records:
        raise ValueError("`predictions` is empty: best-of-K accuracy needs at least one record.")
    for i, (scores, label) in enumerate(zip(records, labels, strict=True)):
        if len(scores) < 2:
            raise ValueError(f"predictions[{i}] has {len(scores)} scores: give one score per candidate, at least two.")
        if not np.isfinite(scores).all():
            raise ValueError(f"predictions[{i}] is {scores.tolist()}: a score must be finite; check the reward model.")
        if not 0 <= label < len(scores):
            raise ValueError(
                f"references[{i}] is {label}: a label must lie in 0..{len(scores) - 1}, its record's K - 1."
            )
