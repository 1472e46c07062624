"""What is wrong with a run, by rules on its log: each alarm names what was seen, where, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics.copying import copier_alarm
from .report_plots import series

KL_OVER_TARGET = 1.5
"""The adaptive controller holds the KL within a few per cent; half as much again means it has lost hold."""

CLIP_FRACTION = 0.4
"""With more of the tokens outside the clip range, an update is mostly thrown away."""

VALID_SHARE = 0.5
BLOCKS = 10
"""A log is read in this many blocks of equal length: one update is noise, a tenth of the run is not."""


@dataclass(frozen=True)
class Alarm:
    """`title` says what is wrong in a few words, `detail` what was measured and what to try."""

    title: str
    detail: str


def find_alarms(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]) -> list[Alarm]:
    """The alarms of a run, the gravest first; empty where nothing is flagged.

    Args:
        rows: the PPO trainer's `log_history`, one row per update; evaluation rows may lie between.
        metrics: the run's metrics; `kl_target` and `reward_model` are read, and either may be absent.
    """
    blocks = {key: np.array_split(series(rows, key, "episode")[1], BLOCKS) for key in _RULE_KEYS}
    means = {key: [float(part.mean()) for part in parts if len(part)] for key, parts in blocks.items()}
    found = [
        _over_optimised(rows),
        _copier(rows),
        _kl_over_target(means["objective/kl"], metrics.get("kl_target")),
        _clipped(means["policy/clipfrac_avg"]),
        _useless_value_head(means["val/explained_variance"]),
        _invalid_responses(means["objective/valid_share"]),
        _reward_model_at_chance(metrics.get("reward_model", {})),
    ]
    return [alarm for alarm in found if alarm]


_RULE_KEYS = ("objective/kl", "policy/clipfrac_avg", "val/explained_variance", "objective/valid_share")


def _kl_over_target(means: list[float], target: float | None) -> Alarm | None:
    if target is None or not means or means[-1] <= KL_OVER_TARGET * target:
        return None
    return Alarm(
        "The KL is far over its target",
        f"At the end it is {means[-1]:.2f} nats per response, {means[-1] / target:.1f} times the target of "
        f"{target:g}. Raise the initial β, shorten the controller's horizon, or lower the learning rate.",
    )


def _clipped(means: list[float]) -> Alarm | None:
    if not means or max(means) <= CLIP_FRACTION:
        return None
    return Alarm(
        "The updates are too large",
        f"In one tenth of the run {max(means):.0%} of the tokens were outside the clip range (over "
        f"{CLIP_FRACTION:.0%} is too many). Lower the learning rate or the number of PPO epochs.",
    )


def _useless_value_head(means: list[float]) -> Alarm | None:
    if not means or means[-1] >= 0:
        return None
    return Alarm(
        "The value head is worse than a constant",
        f"Its explained variance at the end is {means[-1]:.2f}. Raise the value loss's weight, or check that scores "
        "are normalised to about unit spread.",
    )


def _invalid_responses(means: list[float]) -> Alarm | None:
    if not means or means[-1] >= VALID_SHARE:
        return None
    return Alarm(
        "Most responses are penalised",
        f"At the end only {means[-1]:.0%} of the responses contain the token that ends them; the others get the "
        "penalty instead of a score. Allow longer responses, or fine-tune the start model on texts that end.",
    )


def _reward_model_at_chance(reward_model: Mapping[str, Any]) -> Alarm | None:
    low, chance = reward_model.get("low"), reward_model.get("chance")
    if low is None or chance is None or low > chance:
        return None
    return Alarm(
        "The reward model cannot be told from chance",
        f"The 95% interval of its accuracy starts at {low:.2f} and chance is {chance:.2f}: PPO optimises noise. "
        "Collect more labels, or check that the labels belong to their completions.",
    )


def _over_optimised(rows: Sequence[Mapping[str, Any]]) -> Alarm | None:
    """The true score has fallen from its peak by over 3 standard errors while the score rose by over 2.

    The peak is the best of `BLOCKS` block means and so a little lucky, hence the wider margin for the fall.
    """
    both = [row for row in rows if "score/true" in row and "objective/scores" in row]
    if len(both) < 2 * BLOCKS:
        return None
    episodes = _block_means(series(both, "episode", "episode")[1])[0]
    (true, true_error), (score, score_error) = (
        _block_means(series(both, key, "episode")[1]) for key in ("score/true", "objective/scores")
    )
    peak = int(true.argmax())
    fall, rise = true[peak] - true[-1], score[-1] - score[peak]
    if fall <= 3 * math.hypot(true_error[peak], true_error[-1]) or rise <= 2 * math.hypot(
        score_error[peak], score_error[-1]
    ):
        return None
    return Alarm(
        "Over-optimisation",
        f"Since about episode {episodes[peak]:.0f} the true score fell by {fall:.2f} while the score rose by "
        f"{rise:.2f}: the policy exploits the reward model. Lower the KL target, stop earlier, or label "
        "samples of the policy.",
    )


def _copier(rows: Sequence[Mapping[str, Any]]) -> Alarm | None:
    sentence = copier_alarm(rows)
    return Alarm("The policy copies its sources", sentence) if sentence else None


def _block_means(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of each of `BLOCKS` blocks of `values[n]`, n >= 2 `BLOCKS`."""
    parts = np.array_split(values, BLOCKS)
    return np.array([p.mean() for p in parts]), np.array([p.std(ddof=1) / math.sqrt(len(p)) for p in parts])
