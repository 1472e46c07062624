"""What an update reports, every number under the regime's mask. Names follow TRL's where the meaning is the same.

Source: `openai/lm-human-preferences`, `train_policy.py:record_step_stats, loss`. Axis letters: B episodes, T response
tokens.
"""

import torch

from .functional import approx_kl, masked_mean, policy_clip_fraction, value_clip_fraction
from .ppo_config import ZieglerPPOConfig
from .reward_wrapper import Scored, ShapedRewards
from .rollout import MicroBatch


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
    batch: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor, values: torch.Tensor, args: ZieglerPPOConfig
) -> dict[str, torch.Tensor]:
    """This micro-batch's part of its minibatch's means: they add up over the micro-batches of an optimiser step.

    `policy/entropy_avg` is the full tempered entropy per token; `value_error` the mean squared error of the values,
    from which the explained variance is made once per update. Return and value variances are population variances.
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
    return {name: value * share for name, value in statistics.items()}
