"""The best reward within reach at a given KL from the reference, and how near a policy comes to it.

The optimum of `E[r] - beta * KL(pi, rho)` is `pi*(y|x) = rho(y|x) exp(r(x, y) / beta) / Z(x)` (Ziegler et al. 2019,
section 3.1.1 and figure 3). Its reward and its KL are expectations under rho with weights `w = exp(r / beta)`:

    reward = sum(w r) / sum(w)        KL = reward / beta - log(mean w)

taken for each query alone and then averaged: weights pooled over queries would tilt the queries too.

Shapes: `M` values of beta, `Q` queries, `N` responses y ~ rho per query, `V` outcomes of a toy. KL in nats per
response, rewards in the units of the score that PPO optimises. Nothing here knows a trainer; arrays in, arrays out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

MIN_EFFECTIVE_SAMPLES = 20.0
"""Below this mean effective sample size, and below this many samples per e^KL, no optimum is reported."""


@dataclass(frozen=True)
class Frontier:
    """The reward-KL frontier at M values of beta; all arrays float64 `[M]`, in the order of `beta`.

    `effective_samples` is the mean over queries of `(sum w)^2 / sum w^2`, in 1..N; infinite after an exact
    enumeration. `trusted` says where the sampled curve may be read: enough effective samples, and N >= 20 e^KL.
    """

    beta: np.ndarray
    kl: np.ndarray
    reward: np.ndarray
    effective_samples: np.ndarray
    trusted: np.ndarray

    def rows(self) -> list[dict[str, float]]:
        """One dict with `beta`, `kl`, `reward` and `effective_samples` for each beta, ready for JSON if finite."""
        columns = ("beta", "kl", "reward", "effective_samples")
        return [
            dict(zip(columns, row, strict=True))
            for row in zip(*(getattr(self, c).tolist() for c in columns), strict=True)
        ]


@dataclass(frozen=True)
class Optimum:
    """The point of the frontier at one KL.

    `reward` is None where it cannot be estimated, and `reason` then says why (None otherwise). `beta` is the one KL
    coefficient of all queries that leads to `kl`; `effective_samples` the mean over queries at that beta.
    """

    kl: float
    reward: float | None
    beta: float | None
    effective_samples: float | None
    reason: str | None


def _tilted(
    rewards: np.ndarray, log_rho: np.ndarray | float, beta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reward, KL and `sum of squared weights` of pi* for each row of `rewards[Q, N]`, as three `[Q]`.

    `log_rho` broadcasts to `rewards`: log-probabilities of the outcomes, or -log N for N equally likely samples.
    """
    shift = rewards.max(axis=-1, keepdims=True)  # keeps exp(r / beta) in range however small beta is
    weights = np.exp((rewards - shift) / beta + log_rho)
    mass = weights.sum(axis=-1, keepdims=True)
    posterior = weights / mass
    shifted_reward = (posterior * (rewards - shift)).sum(axis=-1)
    kl = shifted_reward / beta - np.log(mass[:, 0])
    return shifted_reward + shift[:, 0], kl, (posterior**2).sum(axis=-1)


def exact_frontier(probs: ArrayLike, rewards: ArrayLike, betas: ArrayLike) -> Frontier:
    """The frontier of a discrete toy by enumeration, for one query.

    Args:
        probs: `[V]`, rho of each outcome, positive, summing to 1.
        rewards: `[V]`, reward of each outcome.
        betas: `[M]`, KL coefficients, positive; `inf` is rho itself.

    Returns:
        `Frontier` with infinite `effective_samples`, trusted everywhere.
    """
    rho, values = np.asarray(probs, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if rho.ndim != 1 or rho.shape != values.shape:
        raise ValueError(
            f"`probs` and `rewards` must be vectors of one length, not of shapes {rho.shape}, {values.shape}."
        )
    if (rho <= 0).any() or not math.isclose(rho.sum(), 1.0, abs_tol=1e-9):
        raise ValueError(f"`probs` must be positive and sum to 1, not to {rho.sum()}; leave out impossible outcomes.")
    grid = _checked_betas(betas)
    points = [_tilted(values[None], np.log(rho), beta) for beta in grid]
    reward, kl = np.array([p[0][0] for p in points]), np.array([p[1][0] for p in points])
    return Frontier(grid, kl, reward, np.full_like(grid, np.inf), np.full(grid.shape, True))


def sampled_frontier(rewards: ArrayLike, betas: ArrayLike) -> Frontier:
    """The frontier estimated from N responses y ~ rho to each of Q queries.

    Args:
        rewards: `[Q, N]`, the score of each response, finite.
        betas: `[M]`, KL coefficients, positive; `inf` is rho itself.

    Returns:
        `Frontier`. The KL cannot exceed ln N and is biased low as it comes near it; see `trusted`.
    """
    samples, grid = _checked_rewards(rewards), _checked_betas(betas)
    means = np.array([_sampled_point(samples, beta) for beta in grid])  # [M, 3]
    reward, kl, effective = means.reshape(-1, 3).T
    trusted = (effective >= MIN_EFFECTIVE_SAMPLES) & (kl <= _largest_kl(samples.shape[1]))
    return Frontier(grid, kl, reward, effective, trusted)


def _sampled_point(samples: np.ndarray, beta: float) -> tuple[float, float, float]:
    """Mean over queries of reward, KL and effective sample size at one beta."""
    reward, kl, concentration = _tilted(samples, -math.log(samples.shape[1]), beta)
    return float(reward.mean()), float(kl.mean()), float((1 / concentration).mean())


def optimum_at(rewards: ArrayLike, kl: float) -> Optimum:
    """The highest mean reward within a mean KL of `kl`, from samples of rho.

    One beta serves all queries, as in PPO, and is found by bisection: the KL falls as beta grows.

    Args:
        rewards: `[Q, N]`, the score of each of N responses y ~ rho to Q queries, finite.
        kl: mean KL, nats per response. A KL of 0 or an estimate below it stands for rho itself.

    Returns:
        `Optimum`; its `reward` is None, with a `reason`, where N < 20 e^kl, where the rewards vary too little for that
        KL, or where the mean effective sample size is below 20.
    """
    samples = _checked_rewards(rewards)
    if not math.isfinite(kl):
        raise ValueError(f"`kl` is {kl}: give a finite KL in nats per response.")
    n = samples.shape[1]
    if kl > _largest_kl(n):
        needed = f"{MIN_EFFECTIVE_SAMPLES * math.exp(kl):.0f}" if kl < 50 else f"20 e^{kl:.0f}"
        return Optimum(
            kl, None, None, None, f"{n} samples a query are too few for a KL of {kl:.2f} nats: {needed} are needed."
        )
    beta = math.inf if kl <= 0 else _beta_for(samples, kl)
    if beta is None:
        return Optimum(
            kl, None, None, None, f"The rewards of the samples vary too little to reach a KL of {kl:.2f} nats."
        )
    reward, _, effective = _sampled_point(samples, beta)
    if effective < MIN_EFFECTIVE_SAMPLES:
        reason = f"The mean effective sample size at a KL of {kl:.2f} nats is {effective:.1f}, under 20."
        return Optimum(kl, None, beta, effective, reason)
    return Optimum(kl, reward, beta, effective, None)


def _beta_for(samples: np.ndarray, kl: float) -> float | None:
    """The beta at which the mean KL is `kl` > 0; None if no beta reaches it.

    Bisection on log beta between bounds in units of the rewards' spread: at the lower one all weight lies on the best
    samples, at the upper one the KL is at most spread^2 / (8 beta^2) = kl / 8.
    """
    spread = float(np.ptp(samples, axis=1).max())
    low, high = math.log(1e-9 * spread) if spread else 0.0, math.log(spread / math.sqrt(kl)) if spread else 0.0
    if _sampled_point(samples, math.exp(low))[1] < kl:
        return None
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _sampled_point(samples, math.exp(middle))[1] > kl else (low, middle)
    return math.exp((low + high) / 2)


def frontier_fraction(reached: float, baseline: float, optimum: float | None) -> float | None:
    """`(E_pi r - E_rho r) / (r* - E_rho r)`: the share of the attainable gain that a policy reached.

    Args:
        reached: mean score of the policy.
        baseline: mean score of the reference.
        optimum: the frontier's reward at the policy's KL, `Optimum.reward`.

    Returns:
        0 for the reference, 1 on the frontier (sampling noise can carry it a little above). None where there is no
        optimum, or where the optimum does not exceed the baseline and there was nothing to gain.
    """
    if optimum is None or optimum <= baseline:
        return None
    return (reached - baseline) / (optimum - baseline)


def _largest_kl(n: int) -> float:
    """The KL up to which n samples a query suffice, from n >= 20 e^KL; below 0 when they never do."""
    return math.log(n / MIN_EFFECTIVE_SAMPLES)


def _checked_rewards(rewards: ArrayLike) -> np.ndarray:
    samples = np.asarray(rewards, dtype=np.float64)
    if samples.ndim != 2 or 0 in samples.shape:
        raise ValueError(f"`rewards` has shape {samples.shape}: give one row of N scores for each query, [Q, N].")
    if not np.isfinite(samples).all():
        q, i = np.argwhere(~np.isfinite(samples))[0]
        raise ValueError(f"rewards[{q}, {i}] is {samples[q, i]}: scores must be finite; check the reward model.")
    return samples


def _checked_betas(betas: Sequence[float] | ArrayLike) -> np.ndarray:
    grid = np.asarray(betas, dtype=np.float64)
    if grid.ndim != 1 or not (grid > 0).all():
        raise ValueError(f"`betas` is {grid.tolist()}: give a list of positive KL coefficients.")
    return grid
