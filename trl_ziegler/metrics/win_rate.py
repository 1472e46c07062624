"""Win rate of one model against another on the same queries, with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np


class WinRate(evaluate.Metric):
    """Share of queries on which model A's response scores higher than model B's; ties count half.

    Constructed directly, `WinRate()`, so that no hub is asked. `compute(predictions=, references=)` takes

    - `predictions`: score of model A's response to each query, floats;
    - `references`: score of model B's response to the same query, in the same order;
    - `seed` (`int`, *optional*, defaults to 0) and `resamples` (`int`, *optional*, defaults to 10000, at least 1000):
      the bootstrap's,

    and returns `value` in [0, 1]; `low` and `high`, the 95 % percentile interval of a bootstrap over queries; `n`, the
    number of queries; `ties`. Raises `ValueError` for an empty set, a score that is not finite, or too few resamples.

    A query's outcome is 0, 1/2 or 1, so that drawing n queries with replacement is drawing three counts from a
    multinomial: the bootstrap below is exact, and its cost does not grow with n.

    Example:

    >>> WinRate().compute(predictions=[2.0, 1.0, 0.0, 3.0], references=[1.0, 1.0, 1.0, 1.0])["value"]
    0.625
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        return evaluate.MetricInfo(
            description="Win rate of model A against model B on the same queries, with a 95 % bootstrap interval.",
            citation="Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, arXiv:1909.08593",
            inputs_description="predictions: scores of model A; references: scores of model B on the same queries.",
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: Sequence[float], references: Sequence[float], seed: int = 0, resamples: int = 10_000
    ) -> dict[str, float | int]:
        ours, theirs = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        _check_scores(ours, theirs, resamples)
        counts = np.array([(ours < theirs).sum(), (ours == theirs).sum(), (ours > theirs).sum()])
        n, outcomes = len(ours), np.array([0.0, 0.5, 1.0])
        draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)  # [resamples, 3]
        low, high = np.quantile(draws @ outcomes / n, [0.025, 0.975])
        value = float(counts @ outcomes / n)
        return {"value": value, "low": float(low), "high": float(high), "n": n, "ties": int(counts[1])}


def _check_scores(ours: np.ndarray, theirs: np.ndarray, resamples: int) -> None:
    if not len(ours):
        raise ValueError("`predictions` is empty: a win rate needs at least one query.")
    for name, scores in (("predictions", ours), ("references", theirs)):
        if not np.isfinite(scores).all():
            first = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(f"{name}[{first}] is {scores[first]}: a score must be finite; check the judge.")
    if resamples < 1000:
        raise ValueError(f"`resamples` is {resamples}: a 95 % bootstrap interval needs at least 1000.")
