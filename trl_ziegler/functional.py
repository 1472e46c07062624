"""The mathematics of the method: tensors in, tensors out, no state, no configuration, no logging.

Axis letters: `B` queries, `K` candidates, `T` response tokens, `V` vocabulary, `N` ranks or samples, `...` any axes.

Conventions shared by every function here:

- Required arguments are positional, defaulted ones keyword-only. Inputs are never changed in place.
- Results are float32, or float64 if an input is; float16, bfloat16 and integer inputs are computed in float32.
- A `mask` (bool or 0/1) is true where an entry exists. What lies under a false entry, NaN included, reaches neither
  the result nor the gradient. A mean over an empty mask is NaN.
- A wrong rank or shape raises `ValueError`, because it would broadcast silently.
- Log-probabilities, entropies and KL are in nats; variances are population variances, as in the reference code.

One file, though a long one, so that every formula is found in one place.

Sources: Ziegler et al. 2019, *Fine-Tuning Language Models from Human Preferences*, and openai/lm-human-preferences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked_softmax import TokenLogprobs

WHITEN_EPS = 1e-8  # openai/lm-human-preferences, utils/core.py:whiten
SCORE_ROUNDING = 1e-5  # a score is a float32 sum of hundreds of terms of order 1, whatever dtype it is passed in


class KLEntropyRewards(NamedTuple):
    """What `kl_entropy_rewards` returns; every field is `[B, T]`."""

    rewards: Tensor
    """What PPO optimises: `kl_reward` plus the score at the last token."""
    kl_reward: Tensor
    """-kl_coef * (log pi - log rho), per token."""
    entropy_bonus: Tensor
    """-kl_coef * log pi: the part of `kl_reward` that rewards entropy. Never add it again."""


# Reward-model losses


def best_of_k_loss(rewards: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """-mean log softmax(r_1..r_K)[label], the loss of Ziegler et al. 2019, equation 1 (there without the minus).

    Args:
        rewards: `[B, K]`, one reward per candidate; K >= 2.
        labels: integer `[B]` in 0..K-1, the candidate picked as best.
        mask: `[B, K]`, true where the candidate exists; records with fewer than K candidates are padded with false.

    Returns:
        A scalar. K = 2 is the logistic pairwise loss. Source: label_types.py:PickBest.

    Raises:
        ValueError: on a wrong shape, K < 2, or a label outside 0..K-1 or on a masked candidate.
    """
    _require_candidates(rewards)
    _require_shape(rewards.shape[:1], labels=labels)
    _require_shape(rewards.shape, mask=mask)
    _require_labels(labels, rewards.shape[1], mask)
    rewards = _at_least_float32(rewards)
    if mask is not None:
        rewards = rewards.masked_fill(~mask.bool(), -torch.inf)
    return F.cross_entropy(rewards, labels.long())


def ranking_loss(rewards: Tensor, rankings: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean over prompts of the mean over a prompt's C(n, 2) pairs of -log sigmoid(r_better - r_worse).

    Args:
        rewards: `[B, K]`, one reward per candidate; K >= 2.
        rankings: integer `[B, K]`, candidate indices, best first.
        mask: `[B, K]`, true where the candidate exists. With n candidates in a row, the first n entries of its ranking
            rank them and the rest are ignored.

    Returns:
        A scalar; every prompt weighs the same whatever its n. Source: Ouyang et al. 2022 (InstructGPT), equation 1.

    Raises:
        ValueError: on a wrong shape, fewer than 2 candidates in a row, or a row that is not a permutation of them.
    """
    _require_candidates(rewards)
    _require_shape(rewards.shape, rankings=rankings, mask=mask)
    _require_integers(rankings=rankings)
    present = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask.bool()
    counts = present.sum(1)  # [B]
    ranked = torch.arange(rewards.shape[1], device=rewards.device) < counts[:, None]  # [B, K]
    order = rankings.long().masked_fill(~ranked, 0)
    _require_permutations(order, ranked, present)
    ordered = _present(rewards, present).gather(1, order)  # [B, K], best first
    losses = -F.logsigmoid(ordered[:, :, None] - ordered[:, None, :])  # [B, better, worse]
    pairs = (ranked[:, :, None] & ranked[:, None, :]).triu(diagonal=1)
    return (torch.where(pairs, losses, 0).sum((1, 2)) / pairs.sum((1, 2))).mean()


def scalar_loss(rewards: Tensor, scores: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error between rewards and rated scores over the present candidates.

    Args:
        rewards: `[B, K]`.
        scores: `[B, K]`, the labellers' ratings, in the units of the reward.
        mask: `[B, K]`, true where the candidate exists.

    Returns:
        A scalar. Source: label_types.py:ScalarRating.
    """
    _require_axes("[B, K]", rewards=rewards)
    _require_shape(rewards.shape, scores=scores, mask=mask)
    return _mean((_present(rewards, mask) - _present(scores, mask)).square(), mask)


def gain_and_bias(raw_scores: Tensor, *, target_mean: float = 0.0, target_std: float = 1.0) -> tuple[Tensor, Tensor]:
    """Gain and bias for which gain * raw_scores + bias has the target mean and population standard deviation.

    Args:
        raw_scores: `[N]`, scores with gain 1 and bias 0 of N responses sampled from the reference model.
        target_mean: mean after normalisation, in units of the reward.
        target_std: standard deviation after normalisation, > 0.

    Returns:
        Two scalars `(gain, bias)`. Source: rewards.py:set_reward_norm.

    Raises:
        ValueError: on a wrong shape, a target_std <= 0, non-finite scores, or scores that are equal up to rounding.
    """
    _require_axes("[N]", raw_scores=raw_scores)
    if not target_std > 0:
        raise ValueError(f"`target_std` must be positive, got {target_std}; a zero gain would erase the reward.")
    if not raw_scores.isfinite().all():
        raise ValueError(
            "`raw_scores` must be finite to be normalised; check the reward model's outputs for NaN and inf."
        )
    if not _differ(raw_scores):
        raise ValueError(
            f"`raw_scores` needs at least two different values to be normalised, got {raw_scores.numel()} equal ones; "
            "score more samples, or check that the reward head is not zero."
        )
    _, mean, variance = moments(raw_scores)
    gain = target_std / variance.sqrt()
    return gain, target_mean - gain * mean


# From response to per-token reward


def truncate_after(responses: Tensor, token_id: int, after: int, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Cut each response after the first `token_id` at index >= `after`, keeping that token.

    Args:
        responses: integer `[B, T]`.
        token_id: the truncation token, such as the id of "." or a newline.
        after: first index (0-based, in tokens) at which the token counts, >= 0.
        pad_token_id: what replaces the positions after the cut.

    Returns:
        `(cut, valid)`: the cut responses `[B, T]`, and bool `[B]`, true where the token was found. Invalid responses
        are returned whole. Source: lm_tasks.py:postprocess_fn_from_hparams.
    """
    _require_axes("[B, T]", responses=responses)
    if after < 0:
        raise ValueError(f"`after` must be an index >= 0 into the response, got {after}.")
    found = (responses == token_id) & (torch.arange(responses.shape[1], device=responses.device) >= after)
    found_before = found.long().cumsum(1) > found
    return responses.masked_fill(found_before, pad_token_id), found.any(1)


def apply_penalty(scores: Tensor, valid: Tensor, penalty: float) -> Tensor:
    """Replace (not lower) the score of every invalid response by `penalty`, even where that raises it.

    Args:
        scores: `[B]`, after gain and bias.
        valid: bool `[B]`, from `truncate_after`.
        penalty: the score of an invalid response; -1 in the paper.

    Returns:
        `[B]`. Source: train_policy.py:make_score_fn.
    """
    _require_axes("[B]", scores=scores)
    _require_shape(scores.shape, valid=valid)
    return _at_least_float32(scores).masked_fill(~valid.bool(), penalty)


def token_logprobs_and_entropy(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[token] and the entropy of that distribution, per position.

    Args:
        logits: `[B, T, V]` (or any leading axes), `logits[:, t]` predicting `tokens[:, t]`. -inf bans a token.
        tokens: integer `[B, T]` in 0..V-1.
        temperature: > 0; the one the responses were sampled at, for policy and reference alike.

    Returns:
        `(logprobs, entropy)`, both `[B, T]`. The entropy is a statistic and carries no gradient (the method has no
        entropy term). Computed in chunks (chunked_softmax.py). Source: policy.py:analyze_responses_op.
    """
    return _token_logprobs(logits, tokens, temperature, entropy=True)


def token_logprobs(logits: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The first result of `token_logprobs_and_entropy`, at less cost."""
    return _token_logprobs(logits, tokens, temperature, entropy=False)[0]


def _token_logprobs(logits: Tensor, tokens: Tensor, temperature: float, *, entropy: bool) -> tuple[Tensor, Tensor]:
    _require_shape(logits.shape[:-1], tokens=tokens)
    _require_integers(tokens=tokens)
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    rows = logits.reshape(-1, logits.shape[-1])
    logprobs, entropies = TokenLogprobs.apply(rows, tokens.long().reshape(-1), temperature, entropy)
    return logprobs.reshape(tokens.shape), entropies.reshape(tokens.shape)


def kl_entropy_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, kl_coef: float, *, mask: Tensor | None = None
) -> KLEntropyRewards:
    """Per-token rewards whose sum over a response is score - kl_coef * log(pi/rho), the R of Ziegler et al. 2019.

    Args:
        scores: `[B]`, after penalty.
        logprobs: `[B, T]`, log pi of the sampled tokens under the policy that sampled them.
        ref_logprobs: `[B, T]`, log rho of the same tokens under the frozen reference.
        kl_coef: beta, >= 0.
        mask: `[B, T]`, true on the response's tokens; the score lands on the last one (T-1 without a mask).

    Returns:
        `(rewards, kl_reward, entropy_bonus)`, zero where masked out. Source: train_policy.py:compute_rewards.

    Raises:
        ValueError: on a wrong shape, or a row of the mask that is false throughout.
    """
    _require_axes("[B, T]", logprobs=logprobs)
    _require_shape(logprobs.shape, ref_logprobs=ref_logprobs, mask=mask)
    _require_shape(logprobs.shape[:1], scores=scores)
    positions = torch.arange(logprobs.shape[1], device=logprobs.device).expand(logprobs.shape)
    if mask is not None:
        positions = positions.masked_fill(~mask.bool(), -1)
    last = positions.amax(1, keepdim=True)  # [B, 1]
    if (last < 0).any():
        raise ValueError(
            f"`mask` is false throughout row {int(last.argmin())}; every response needs at least one token."
        )
    logprobs, ref_logprobs = _present(logprobs, mask), _present(ref_logprobs, mask)
    kl_reward = -kl_coef * (logprobs - ref_logprobs)
    rewards = torch.where(positions == last, kl_reward + scores[:, None], kl_reward)
    return KLEntropyRewards(rewards, kl_reward, entropy_bonus=-kl_coef * logprobs)


# Means, whitening, advantages


def masked_mean(values: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Mean of the values `[...]` over the entries where the mask `[...]` is true, or over all; a scalar."""
    _require_shape(values.shape, mask=mask)
    return _mean(_present(values, mask), mask)


def moments(values: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Scalars `(count, mean, population variance)` of the values `[...]` where the mask `[...]` is true.

    All three have one dtype, so they can be stacked, gathered over ranks and merged by `merge_moments`. An empty mask
    gives (0, 0, 0), which merges as nothing.
    """
    _require_shape(values.shape, mask=mask)
    count, mean, variance = _moments(values, mask)
    return count, mean, variance


def merge_moments(counts: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Scalars `(mean, population variance)` of the union of N groups, from the `[N]` `moments` of each."""
    _require_axes("[N]", counts=counts)
    _require_shape(counts.shape, means=means, variances=variances)
    weights = counts / counts.sum()
    mean = (weights * means).sum()
    return mean, (weights * (variances + (means - mean).square())).sum()


def whiten(
    values: Tensor,
    *,
    mask: Tensor | None = None,
    shift_mean: bool = True,
    moments: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(values - mean) / sqrt(variance + 1e-8), plus the mean again unless `shift_mean`.

    Args:
        values: `[...]`.
        mask: `[...]`; statistics are taken where it is true, and the result is 0 where it is false.
        shift_mean: true for advantages (result has mean 0), false for rewards (result keeps its mean).
        moments: `(mean, variance)` to use instead of this tensor's own, for whitening over all ranks.

    Returns:
        The shape of `values`. Source: utils/core.py:whiten, whose variance is the population's (TRL's is n-1).
    """
    _require_shape(values.shape, mask=mask)
    mean, variance = _moments(values, mask)[1:] if moments is None else moments
    whitened = (_present(values, mask) - mean) * (variance + WHITEN_EPS).rsqrt()
    return _present(whitened if shift_mean else whitened + mean, mask)


def gae(
    rewards: Tensor, values: Tensor, *, gamma: float = 1.0, lam: float = 0.95, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: A_t = delta_t + gamma * lam * A_{t+1}, delta_t = R_t + gamma * V_{t+1} - V_t.

    V after the last token is 0.

    Args:
        rewards: `[B, T]`, whitened if the recipe whitens them.
        values: `[B, T]`, V read before each token was sampled.
        gamma: discount in [0, 1].
        lam: lambda in [0, 1].
        mask: `[B, T]`, trues then falses in each row; a row behaves as if it ended at its last true.

    Returns:
        `(advantages, returns)`, both `[B, T]`, returns = advantages + values; 0 where masked out. Whiten the
        advantages only after this. Source: train_policy.py:PPOTrainer.loss.

    Raises:
        ValueError: on a wrong shape, or a mask with a true after a false.
    """
    _require_axes("[B, T]", rewards=rewards)
    _require_shape(rewards.shape, values=values, mask=mask)
    if mask is not None and (mask.bool()[:, 1:] & ~mask.bool()[:, :-1]).any():
        raise ValueError(
            "`mask` must be trues followed by falses in each row; a true after a false has no meaning here."
        )
    rewards, values = _present(rewards, mask), _present(values, mask)
    deltas = rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values
    advantage = torch.zeros_like(deltas[:, 0])
    backwards = []
    for delta in reversed(deltas.unbind(1)):
        advantage = delta + gamma * lam * advantage
        backwards.append(advantage)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


# PPO objectives and their statistics


def value_loss(
    values_new: Tensor,
    values_old: Tensor,
    returns: Tensor,
    *,
    clip_range: float = 0.2,
    mask: Tensor | None = None,
    total: float | None = None,
) -> Tensor:
    """Half the mean of max((v - G)^2, (clip(v, V - clip_range, V + clip_range) - G)^2).

    Args:
        values_new: `[...]`, v of the model being trained.
        values_old: `[...]`, V at the rollout.
        returns: `[...]`, G from `gae`.
        clip_range: >= 0, in units of the value.
        mask: `[...]`, true where a token counts.
        total: divisor in place of the number of tokens here. Losses of micro-batches that are given their minibatch's
            number add up to the minibatch's loss.

    Returns:
        A scalar, the factor 1/2 included and the coefficient 0.1 not. Source: train_policy.py:PPOTrainer.loss.
    """
    unclipped, clipped = _value_errors(values_new, values_old, returns, clip_range, mask)
    return 0.5 * _mean(torch.maximum(unclipped, clipped), mask, total)


def policy_loss(
    logprobs_new: Tensor,
    logprobs_old: Tensor,
    advantages: Tensor,
    *,
    clip_range: float = 0.2,
    mask: Tensor | None = None,
    total: float | None = None,
) -> Tensor:
    """Mean of max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range)), with ratio = exp(new - old).

    Args:
        logprobs_new: `[...]`, log pi of the sampled tokens under the model being trained.
        logprobs_old: `[...]`, the same under the policy that sampled them.
        advantages: `[...]`, whitened.
        clip_range: >= 0, of the ratio.
        mask: `[...]`, true where a token counts.
        total: divisor in place of the number of tokens here. Losses of micro-batches that are given their minibatch's
            number add up to the minibatch's loss.

    Returns:
        A scalar. There is no entropy term. Source: train_policy.py:PPOTrainer.loss.
    """
    unclipped, clipped = _policy_terms(logprobs_new, logprobs_old, advantages, clip_range, mask)
    return _mean(torch.maximum(unclipped, clipped), mask, total)


def value_clip_fraction(
    values_new: Tensor, values_old: Tensor, returns: Tensor, *, clip_range: float = 0.2, mask: Tensor | None = None
) -> Tensor:
    """Share of tokens whose clipped squared error exceeds the unclipped one; a scalar. Arguments: `value_loss`."""
    unclipped, clipped = _value_errors(values_new, values_old, returns, clip_range, mask)
    return _mean(_at_least_float32(clipped > unclipped), mask)


def policy_clip_fraction(
    logprobs_new: Tensor,
    logprobs_old: Tensor,
    advantages: Tensor,
    *,
    clip_range: float = 0.2,
    mask: Tensor | None = None,
) -> Tensor:
    """Share of tokens whose clipped objective exceeds the unclipped one; a scalar. Arguments: `policy_loss`."""
    unclipped, clipped = _policy_terms(logprobs_new, logprobs_old, advantages, clip_range, mask)
    return _mean(_at_least_float32(clipped > unclipped), mask)


def approx_kl(logprobs_new: Tensor, logprobs_old: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Half the mean squared difference of two log-probabilities `[...]`, in nats per token; a scalar."""
    _require_shape(logprobs_new.shape, logprobs_old=logprobs_old, mask=mask)
    return 0.5 * _mean((_present(logprobs_new, mask) - _present(logprobs_old, mask)).square(), mask)


# Parts and checks


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _present(values: Tensor, mask: Tensor | None) -> Tensor:
    """The values, 0 where the mask is false. Where, not times: NaN * 0 is NaN, in the gradient too."""
    values = _at_least_float32(values)
    return values if mask is None else torch.where(mask.bool(), values, 0)


def _mean(present_values: Tensor, mask: Tensor | None, total: float | None = None) -> Tensor:
    """Sum over `total`, or else over the number of entries; the values must already be 0 where masked out."""
    if total is not None:
        return present_values.sum() / total
    return present_values.mean() if mask is None else present_values.sum() / mask.bool().sum()


def _moments(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    values = _present(values, mask)
    count = values.new_tensor(values.numel()) if mask is None else mask.bool().sum().to(values.dtype)
    divisor = count.clamp(min=1)
    mean = values.sum() / divisor
    return count, mean, _present(values - mean, mask).square().sum() / divisor


def _value_errors(
    values_new: Tensor, values_old: Tensor, returns: Tensor, clip_range: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    _require_shape(values_new.shape, values_old=values_old, returns=returns, mask=mask)
    new, old, target = _present(values_new, mask), _present(values_old, mask), _present(returns, mask)
    return (new - target).square(), (new.clamp(old - clip_range, old + clip_range) - target).square()


def _policy_terms(
    logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, clip_range: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    _require_shape(logprobs_new.shape, logprobs_old=logprobs_old, advantages=advantages, mask=mask)
    ratio = (_present(logprobs_new, mask) - _present(logprobs_old, mask)).exp()
    advantages = _present(advantages, mask)
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)


def _require_axes(axes: str, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() != axes.count(",") + 1:
            raise ValueError(f"`{name}` must have the axes {axes}, got shape {tuple(tensor.shape)}.")


def _require_shape(shape: Sequence[int], **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != torch.Size(shape):
            raise ValueError(
                f"`{name}` must have shape {tuple(shape)} to match the first argument, got {tuple(tensor.shape)}."
            )


def _require_integers(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            raise ValueError(f"`{name}` must hold integers, got dtype {tensor.dtype}.")


def _differ(scores: Tensor) -> bool:
    """Whether scores differ by more than rounding: equal rows of one batch need not give equal floats."""
    return scores.numel() > 0 and bool(scores.max() - scores.min() > SCORE_ROUNDING * scores.abs().max().clamp(min=1))


def _require_candidates(rewards: Tensor) -> None:
    _require_axes("[B, K]", rewards=rewards)
    if rewards.shape[1] < 2:
        raise ValueError(f"`rewards` must hold K >= 2 candidates per row to compare, got K = {rewards.shape[1]}.")


def _require_labels(labels: Tensor, k: int, mask: Tensor | None) -> None:
    _require_integers(labels=labels)
    outside = (labels < 0) | (labels >= k)
    if outside.any():
        raise ValueError(f"`labels` must lie in 0..{k - 1} for K = {k} candidates, got {int(labels[outside][0])}.")
    if mask is not None and not mask.bool().gather(1, labels.long()[:, None]).all():
        raise ValueError("`labels` picks a candidate that `mask` says does not exist; check both for the same order.")


def _require_permutations(order: Tensor, ranked: Tensor, present: Tensor) -> None:
    k = order.shape[1]
    if (present.sum(1) < 2).any():
        raise ValueError("`mask` leaves a row with fewer than 2 candidates, which cannot be ranked; drop such rows.")
    if ((order < 0) | (order >= k)).any():
        raise ValueError(f"`rankings` must hold candidate indices in 0..{k - 1}, got {order.min()}..{order.max()}.")
    times_ranked = torch.zeros_like(order).scatter_add(1, order, ranked.long())
    if not torch.equal(times_ranked, present.long()):
        raise ValueError("`rankings` must name each existing candidate of its row exactly once, best first.")
