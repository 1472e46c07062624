"""Accuracy of a reward model on human ratings: how often it orders two candidates as their ratings do."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import datasets
import evaluate
import numpy as np

_BLOCK = 2_000_000
"""Numbers per array of the bootstrap, 16 MB."""


class PairAccuracy(evaluate.Metric):
    """Share of the pairs with unequal ratings that the predicted scores order the same way.

    A pair is two candidates of one record. Equal ratings order nothing and give no pair; equal predictions count half,
    so that a model that gives the same score to everything stands at chance. All pairs weigh the same, whichever
    record they come from.

    Constructed directly, `PairAccuracy()`, so that no hub is asked. `compute(predictions=, references=)` takes

    - `predictions`: one list of K scores per record, floats; K may differ between records;
    - `references`: the K ratings of each record in the same order, floats on any scale, higher is better;
    - `prompts` (sequence of any hashable ids, *optional*): which prompt each record belongs to, where records share
      one; by default every record has its own;
    - `seed` (`int`, *optional*, defaults to 0) and `resamples` (`int`, *optional*, defaults to 10000, at least 1000):
      the bootstrap's,

    and returns `accuracy`; `chance`, 0.5; `low` and `high`, the 95 % percentile interval of a bootstrap over prompts;
    `pairs`, the number of pairs; `prompts`, the number of prompts that have any; `ties`, how many pairs have equal
    predictions. The bootstrap draws whole prompts, because pairs that share a candidate or a prompt are not
    independent: an interval over pairs would be too narrow. From a handful of prompts it is too narrow all the same,
    and from a single one it has no width.

    Raises `ValueError` for numbers of predictions, ratings or prompts that do not match, a number that is not finite,
    ratings without any pair, or too few resamples.

    Example:

    >>> ratings = [[5, 1, 5], [2, 3]]  # two pairs and one
    >>> PairAccuracy().compute(predictions=[[0.9, 0.2, 0.1], [0.0, 1.0]], references=ratings)["pairs"]
    3
    """

    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Share of the pairs with unequal ratings that are ordered alike, with a 95 % interval.",
            citation="Stiennon et al. 2020, Learning to summarize from human feedback, arXiv:2009.01325",
            inputs_description="predictions: K scores per record; references: the K ratings of each record.",
            features=datasets.Features({"predictions": numbers, "references": numbers}),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]],
        prompts: Sequence[Hashable] | None = None,
        seed: int = 0,
        resamples: int = 10_000,
    ) -> dict[str, float | int]:
        records = [
            (_floats(scores), _floats(ratings)) for scores, ratings in zip(predictions, references, strict=True)
        ]
        prompts = range(len(records)) if prompts is None else prompts
        _check_records(records, prompts, resamples)
        totals: dict[Hashable, np.ndarray] = {}  # of each prompt: pairs, of these ordered alike, of these tied
        for prompt, record in zip(prompts, records, strict=True):
            totals[prompt] = totals.get(prompt, 0) + _pair_counts(*record)
        counts = np.array([total for total in totals.values() if total[0]], dtype=np.int64)  # [prompts, 3]
        if not len(counts):
            raise ValueError("`references` has no record with two unequal ratings, so there is no pair to measure on.")
        pairs, credit = counts[:, 0], counts[:, 1] + counts[:, 2] / 2
        low, high = np.quantile(_bootstrap(credit, pairs, seed, resamples), [0.025, 0.975])
        return {
            "accuracy": float(credit.sum() / pairs.sum()),
            "chance": 0.5,
            "low": float(low),
            "high": float(high),
            "pairs": int(pairs.sum()),
            "prompts": len(counts),
            "ties": int(counts[:, 2].sum()),
        }


def _floats(numbers: Sequence[float]) -> np.ndarray:
    return np.asarray(numbers, dtype=np.float64)


def _pair_counts(scores: np.ndarray, ratings: np.ndarray) -> np.ndarray:
    """`[3]`: pairs with unequal ratings of one record, and of these the ones ordered alike and the ones tied."""
    better = ratings[:, None] > ratings[None, :]  # each pair once, the better candidate first
    return np.array(
        [better.sum(), (better & (scores[:, None] > scores)).sum(), (better & (scores[:, None] == scores)).sum()]
    )


def _bootstrap(credit: np.ndarray, pairs: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """`[resamples]`: the accuracy in draws of n prompts with replacement; `credit` and `pairs` are `[n]`."""
    rng, n = np.random.default_rng(seed), len(pairs)
    sizes = [len(part) for part in np.array_split(np.arange(resamples), math.ceil(resamples * n / _BLOCK))]
    draws = (rng.multinomial(n, np.full(n, 1 / n), size=size) for size in sizes)  # [size, n] counts each
    return np.concatenate([drawn @ credit / (drawn @ pairs) for drawn in draws])


def _check_records(
    records: Sequence[tuple[np.ndarray, np.ndarray]], prompts: Sequence[Hashable], resamples: int
) -> None:
    if len(prompts) != len(records):
        raise ValueError(f"`prompts` has {len(prompts)} entries for {len(records)} records; give one for each.")
    for i, (scores, ratings) in enumerate(records):
        if scores.shape != ratings.shape:
            raise ValueError(
                f"predictions[{i}] has {len(scores)} scores for {len(ratings)} ratings; give one for each candidate."
            )
        for name, numbers in (("predictions", scores), ("references", ratings)):
            if not np.isfinite(numbers).all():
                raise ValueError(
                    f"{name}[{i}] is {numbers.tolist()}: numbers must be finite; leave the candidate out."
                )
    if resamples < 1000:
        raise ValueError(f"`resamples` is {resamples}: a 95 % bootstrap interval needs at least 1000.")
