"""Ancestral sampling with the policy: plain categorical draws, log-probabilities and values from the same pass.

Source: `openai/lm-human-preferences`, `language/sample.py:sample_sequence` and `policy.py:respond_op`. Nothing of a
model's `generation_config` takes part, so the log-probabilities are those of the distribution that was sampled.
Axis letters: B rows, Q context tokens, T response tokens, V vocabulary.
"""

from typing import NamedTuple

import torch

from .actor_critic import ActorCritic


class Samples(NamedTuple):
    """`responses [B, T]` ids, `logprobs [B, T]` in nats and `values [B, T]`, both float32."""

    responses: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor


def draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One categorical draw per row of `logits [B, V]`: ids `[B]`.

    Inverts the cumulative distribution at one uniform number a row: on a CPU many times cheaper than
    `torch.multinomial`, which draws V numbers a row. `right=True` keeps ids of probability zero out of reach.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator, device=logits.device)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
    # Rounding can place the uniform number at the very end of the distribution; the last id of non-zero mass is meant.
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).squeeze(1)
    # A row of NaN draws the last id, whose log-probability is NaN too, for the caller to refuse.
    return torch.minimum(drawn, last).clamp(max=logits.shape[1] - 1)


@torch.no_grad()
def sample(
    model: ActorCritic,
    context_ids: torch.Tensor,
    context_mask: torch.Tensor,
    *,
    response_length: int,
    temperature: float,
    generator: torch.Generator,
    stop_token_id: int | None = None,
    stop_after: int = 0,
    samples_per_query: int = 1,
) -> Samples:
    """Sample responses token by token with a key-value cache.

    Args:
        model: Policy and value function, in evaluation mode.
        context_ids: `[B, Q]` contexts, padded on the left.
        context_mask: `[B, Q]`, 0 at padding.
        response_length: T. Always T tokens come back: EOS and PAD are ordinary tokens.
        temperature: Divides the logits.
        generator: Source of all randomness, on the model's device.
        stop_token_id: If given, sampling ends early once every row has drawn this id at an index >= `stop_after`;
            what a finished row would still have drawn is 0 with log-probability 0, for the caller to mask.
        stop_after: First index at which `stop_token_id` counts.
        samples_per_query: Responses to each context, which is run once for all of them; the rows that come back are
            those of the first context, then those of the second, and so on.
    """
    rows, device = len(context_ids) * samples_per_query, context_ids.device
    responses = torch.zeros(rows, response_length, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, response_length, device=device)
    values = torch.zeros(rows, response_length, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    mask = context_mask.long()
    out = model.step(context_ids, mask)
    if samples_per_query > 1:
        mask = mask.repeat_interleave(samples_per_query, 0)
        out.past_key_values.batch_repeat_interleave(samples_per_query)
        out = out.repeat_interleave(samples_per_query)
    for t in range(response_length):
        logits = out.logits[:, -1].float() / temperature
        tokens = draw(logits, generator)
        responses[:, t] = tokens * alive
        logprobs[:, t] = (logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(1)) * alive
        values[:, t] = out.values[:, -1].float()
        if stop_token_id is not None and t >= stop_after:
            alive &= tokens != stop_token_id
            if not alive.any():
                break
        if t + 1 < response_length:
            mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
            out = model.step(tokens[:, None], mask, out.past_key_values)
    return Samples(responses, logprobs, values)
