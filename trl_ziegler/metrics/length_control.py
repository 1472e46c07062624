"""Win rate of one model against another at equal lengths, for judges that like long texts (or short ones)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

PRIOR_SD = 10.0
"""Of both coefficients. Odds of e^10 are a near certainty: it only keeps them finite where a judge never errs."""

MIN_SHARE = 0.05
"""Of the pairs, on either side of equal length: with fewer, the rate there would be an extrapolation."""

MAX_STEPS = 1000
"""Of the regression, which takes about six, and up to fifty where a judge never errs."""

_BLOCK = 2_000_000
"""Numbers per array of the bootstrap, 16 MB."""

_ORIGIN = np.zeros(2)


class LengthControlledWinRate(evaluate.Metric):
    """Win rate of model A against model B if their responses were equally long.

    A logistic regression `P(A wins) = sigmoid(a + b x)` on the log length ratio `x = log(length A / length B)`, read
    off at x = 0, after the control for summary length in the appendix of Stiennon et al. 2020; a tie counts as half a
    win and half a loss. Exchanging the models turns `value` into 1 - `value`.

    Constructed directly, `LengthControlledWinRate()`, so that no hub is asked. `compute` takes, in one order,

    - `predictions`, `references`: score of model A's, B's response to each query, floats;
    - `prediction_lengths`, `reference_lengths`: lengths of these responses in any one unit, above 0;
    - `seed` (`int`, *optional*, defaults to 0) and `resamples` (`int`, *optional*, defaults to 1000, at least 1000):
      the bootstrap's,

    and returns `value` in [0, 1]; `low` and `high`, the 95 % percentile interval of a bootstrap over queries; `plain`,
    the win rate without control; `length_effect`, the coefficient b, change of the log odds per unit of x (positive:
    the judge likes length); `length_ratio`, the geometric mean of length A / length B; `n`; `ties`; and `reason`.

    A judge of length alone leaves only the pairs near equal length to read the rate from: over samples of 500 pairs it
    varies around 0.5 with a deviation of 0.05, somewhat more than the interval says.

    Where one model's response is the longer one in more than 95 % of the pairs there is next to nothing at equal
    length to learn from: `value`, `low`, `high` and `length_effect` are None, and `reason` (None otherwise) says why.

    Raises `ValueError` for an empty set, a score that is not finite, a length that is not above 0, or too few
    resamples.

    Example:

    >>> judged = {"predictions": [1] * 6 + [0] * 2 + [1] + [0] * 3, "references": [0.5] * 12}
    >>> lengths = {"prediction_lengths": [60] * 8 + [15] * 4, "reference_lengths": [30] * 12}
    >>> result = LengthControlledWinRate().compute(**judged, **lengths)
    >>> round(result["plain"], 2), round(result["value"], 2)
    (0.58, 0.5)
    """

    def _info(self) -> evaluate.MetricInfo:
        names = ("predictions", "references", "prediction_lengths", "reference_lengths")
        return evaluate.MetricInfo(
            description="Win rate of model A against model B at equal lengths, with a 95 % bootstrap interval.",
            citation="Stiennon et al. 2020, Learning to summarize from human feedback, arXiv:2009.01325",
            inputs_description="Scores of models A and B on the same queries, and the lengths of their responses.",
            features=datasets.Features({name: datasets.Value("float64") for name in names}),
        )

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[float],
        prediction_lengths: Sequence[float],
        reference_lengths: Sequence[float],
        seed: int = 0,
        resamples: int = 1000,
    ) -> dict[str, Any]:
        ours, theirs = _finite("predictions", predictions), _finite("references", references)
        ratio = _log_lengths("prediction_lengths", prediction_lengths)
        ratio = ratio - _log_lengths("reference_lengths", reference_lengths)
        if resamples < 1000:
            raise ValueError(f"`resamples` is {resamples}: a 95 % bootstrap interval needs at least 1000.")
        wins = (ours > theirs) + 0.5 * (ours == theirs)
        result: dict[str, Any] = dict.fromkeys(("value", "low", "high", "length_effect", "reason"))
        result |= {"plain": float(wins.mean()), "length_ratio": math.exp(ratio.mean())}
        result |= {"n": len(wins), "ties": int((ours == theirs).sum())}
        one_sided = max((ratio > 0).mean(), (ratio < 0).mean())
        if one_sided > 1 - MIN_SHARE:
            reason = (
                f"One model's response is the longer one in {one_sided:.1%} of the pairs, over {1 - MIN_SHARE:.0%}."
            )
            return result | {"reason": reason}
        fit = logistic_fit(ratio, wins, np.ones((1, len(wins))))[0]
        rates = _bootstrap(ratio, wins, fit, seed, resamples)
        value, low, high = (float(rate) for rate in (_sigmoid(fit[0]), *np.quantile(rates, [0.025, 0.975])))
        return result | {"value": value, "low": low, "high": high, "length_effect": float(fit[1])}


def logistic_fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, start: np.ndarray = _ORIGIN) -> np.ndarray:
    """Intercept and slope of R logistic regressions on the same n points, each under its own weights.

    Args:
        x: `[n]`, the covariate.
        y: `[n]`, outcomes in [0, 1].
        weights: `[R, n]`, weight of each point in each regression, 0 or more.
        start: `[2]`, where the search begins; it changes nothing but the time.

    Returns:
        `[R, 2]` maxima of the log posterior under normal priors of mean 0 and deviation `PRIOR_SD`, which exist and
        are unique for any data.

    Newton steps are shortened by log(1 + m) / m, where m is the largest change of a logit, which makes them converge
    from any start (Sun and Tran-Dinh 2019, "Generalized self-concordant functions: a recipe for Newton-type methods").
    """
    design = np.stack([np.ones_like(x), x], axis=1)  # [n, 2]
    products = np.stack([np.ones_like(x), x, x * x], axis=1)  # [n, 3], the entries of the Hessian
    fit, precision = np.tile(start, (len(weights), 1)), PRIOR_SD**-2  # [R, 2]
    for _ in range(MAX_STEPS):
        p = _sigmoid(fit @ design.T)  # [R, n]
        gradient = (weights * (y - p)) @ design - precision * fit
        h00, h01, h11 = ((weights * p * (1 - p)) @ products + [precision, 0.0, precision]).T
        g0, g1 = gradient.T
        step = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0], axis=1) / (h00 * h11 - h01**2)[:, None]
        change = np.abs(step) @ [1.0, np.abs(x).max()]  # [R], at least the largest change of a logit
        if change.max() < 1e-6:
            return fit + step
        fit += step * (np.log1p(change) / np.maximum(change, 1e-12))[:, None]
    raise ArithmeticError(
        f"The logistic regression took {MAX_STEPS} steps and found no end: `x` or `y` is not finite."
    )


def _bootstrap(x: np.ndarray, y: np.ndarray, fit: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """The rate at x = 0 in each of `[resamples]` draws of n queries with replacement; `fit[2]` is that of all."""
    rng, n = np.random.default_rng(seed), len(x)
    sizes = [len(part) for part in np.array_split(np.arange(resamples), math.ceil(resamples * n / _BLOCK))]
    draws = (rng.multinomial(n, np.full(n, 1 / n), size=size) for size in sizes)  # [size, n] counts each
    return np.concatenate([_sigmoid(logistic_fit(x, y, counts, fit)[:, 0]) for counts in draws])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(logits / 2)  # no overflow on either side


def _finite(name: str, values: Sequence[float]) -> np.ndarray:
    scores = np.asarray(values, dtype=np.float64)
    if not len(scores):
        raise ValueError(f"`{name}` is empty: a win rate needs at least one query.")
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{name}[{first}] is {scores[first]}: a score must be finite; check the judge.")
    return scores


def _log_lengths(name: str, values: Sequence[float]) -> np.ndarray:
    lengths = np.asarray(values, dtype=np.float64)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise ValueError(
            f"{name}[{wrong[0]}] is {lengths[wrong[0]]:g}: a length ratio needs lengths above 0; count the token that "
            "ends a response, or leave the pair out."
        )
    return np.log(lengths)
