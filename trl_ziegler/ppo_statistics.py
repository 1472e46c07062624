"""What an update reports, every number under the regime's mask. Names follow TRL's where the meaning is the same.

Source: `openai/lm-human-preferences`, `train_policy.py:record_step_stats, loss`. Axis letters: B episodes, T response
tokens.
"""

from collections import defaultdict
from collections.abc import Callable

import torch

from .functional import approx_kl, masked_mean, policy_clip_fraction, value_clip_fraction
from .ppo_config import ZieglerPPOConfig
from .reward_wrapper import Scored, ShapedRewards
from .rollout import MicroBatch


class UpdateRecord:
    """Statistics of the updates since the last log.

    Args:
        mean_over_processes: Takes a vector of this process's statistics, returns their means over all processes.
    """

    def __init__(self, mean_over_processes: Callable[[torch.Tensor], list[float]]) -> None:
        self._mean_over_processes = mean_over_processes
        self._updates: list[dict[str, float]] = []
        self._parts: dict[str, list[torch.Tensor]] = defaultdict(list)

    @property
    def open(self) -> bool:
        """Whether an update has begun and not been finished."""
        return bool(self._parts)

    def of_rollout(self, name: str) -> float:
        """A statistic of the last rollout over all processes, such as `objective/kl`."""
        return self._updates[-1][name]

    def begin(self, episodes: dict[str, torch.Tensor], kl_coef: float) -> None:
        """A rollout's per-episode statistics `[B]`, and the beta it was shaped with.

        NaN entries do not count: a mean is over the episodes of all processes that have the statistic.
        """
        columns = torch.stack([column.float() for column in episodes.values()])
        sums, counts = columns.nansum(1), (~columns.isnan()).sum(1)
        parts = torch.tensor(self._mean_over_processes(torch.cat([sums, counts]))).chunk(2)
        means = (parts[0] / parts[1]).tolist()
        self._updates.append({**dict(zip(episodes, means, strict=True)), "objective/kl_coef": kl_coef})

    def add(self, parts: dict[str, torch.Tensor]) -> None:
        """One micro-batch's parts of its minibatch's means."""
        for name, part in parts.items():
            self._parts[name].append(part)

    def last(self, name: str, micro_batches: int) -> float:
        """The mean over processes of a statistic on the last minibatch."""
        return self._mean_over_processes(torch.stack(self._parts[name][-micro_batches:]).sum()[None])[0]

    def finish(self, micro_batches_per_step: int, **more: float) -> None:
        """Average the update's minibatches over minibatches and processes (E11); `more` are added as they are."""
        minibatches = len(next(iter(self._parts.values()))) // micro_batches_per_step
        sums = torch.stack([torch.stack(parts).sum() for parts in self._parts.values()])
        means = dict(zip(self._parts, self._mean_over_processes(sums.float() / minibatches), strict=True))
        error, variance = means.pop("value_error"), means["val/return_var"]
        means["val/explained_variance"] = 1 - error / variance if variance > 0 else float("nan")
        self._updates[-1].update(means, **more)
        self._parts.clear()

    def take(self) -> dict[str, float]:
        """The means over the updates since the last call that have a statistic; NaN where none has."""
        means = {
            name: float(torch.tensor([update[name] for update in self._updates], dtype=torch.float64).nanmean())
            for name in (self._updates[0] if self._updates else {})
        }
        self._updates.clear()
        return means


def rollout_statistics(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, scored: Scored, shaped: ShapedRewards, names: list[str]
) -> dict[str, torch.Tensor]:
    """Per-episode statistics `[B]`; KL and entropy in nats per response, summed over its masked tokens.

    Args:
        logprobs, ref_logprobs: `[B, T]` of policy and reference.
        names: The reward functions' names, for `rewards/<name>` (each function's own score, NaN where it gave none).
    """
    mask = shaped.mask
    non_score = shaped.kl_reward.sum(1)
    statistics = {
        "objective/kl": ((logprobs - ref_logprobs) * mask).sum(1),
        "objective/entropy": (-logprobs * mask).sum(1),
        "objective/non_score_reward": non_score,
        "objective/entropy_bonus": shaped.entropy_bonus.sum(1),
        "objective/rlhf_reward": scored.scores + non_score,
        "objective/scores": scored.scores,
        "score/raw": scored.raw,
        "objective/valid_share": scored.valid,
        "objective/response_length": scored.lengths,
    }
    for i, name in enumerate(names):
        statistics[f"rewards/{name}"] = scored.parts[:, i].to(logprobs.device)
    return statistics


@torch.no_grad()
def loss_statistics(
    batch: MicroBatch,
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    values: torch.Tensor,
    policy: torch.Tensor,
    value: torch.Tensor,
    args: ZieglerPPOConfig,
) -> dict[str, torch.Tensor]:
    """This micro-batch's part of its minibatch's means: they add up over the micro-batches of an optimiser step.

    `policy/entropy_avg` is the full tempered entropy per token; `value_error` the mean squared error of the values,
    from which the explained variance is made once per update. Return and value variances are population variances.
    `policy` and `value` are the micro-batch's parts of the two losses.
    """
    rollout, mask = batch.rollout, batch.rollout.mask
    share = mask.sum() / batch.total
    old, ratio = rollout.logprobs, (logprobs - rollout.logprobs).exp()
    statistics = {
        "policy/approxkl_avg": approx_kl(logprobs, old, mask=mask),
        "policy/clipfrac_avg": policy_clip_fraction(
            logprobs, old, batch.advantages, clip_range=args.cliprange, mask=mask
        ),
        "policy/entropy_avg": masked_mean(entropy, mask=mask),
        "val/clipfrac_avg": value_clip_fraction(
            values, rollout.values, batch.returns, clip_range=args.cliprange_value, mask=mask
        ),
        "val/ratio": masked_mean(ratio, mask=mask),
        "value_error": masked_mean((values - batch.returns) ** 2, mask=mask),
        "val/return_var": batch.return_variance,
    }
    parts = {name: mean * share for name, mean in statistics.items()}
    return {**parts, "loss/policy_avg": policy.detach(), "loss/value_avg": value.detach()}
