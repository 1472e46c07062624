"""Ancestral sampling with the policy: plain categorical draws, log-probabilities and values from the same pass.

Source: `openai/lm-human-preferences`, `language/sample.py:sample_sequence` and `policy.py:respond_op`. Nothing of a
model's `generation_config` takes part, so the log-probabilities are those of the distribution that was sampled.
Axis letters: B rows, Q context tokens, T response tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .actor_critic import ActorCriticOutput, model_inputs
from .compiled_sampling import CompiledSteps, Room
from .kv_cache import growing_cache
from .prefix_sharing import can_share_prefix, next_token_mask

BLOCK = 128
"""Tokens whose probabilities are summed before a block of them is drawn."""
LOOK_EVERY = 8
"""Steps between two looks at a GPU for rows that have not ended."""


class Samples(NamedTuple):
    """`responses [B, T]` ids, `logprobs [B, T]` in nats and `values [B, T]`, both float32."""

    responses: Tensor
    logprobs: Tensor
    values: Tensor


class Steps(Protocol):
    """What can be sampled from: an [`ActorCritic`], or a model with a `step` like its."""

    @property
    def config(self): ...

    def step(self, inputs: dict[str, Tensor], keep: int, cache: object = None) -> ActorCriticOutput:
        """See [`ActorCritic.step`]."""
        ...


def draw(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One categorical draw per row of `logits [B, V]`: ids `[B]` and their log-probabilities `[B]` in nats.

    Inverts the cumulative distribution at one uniform number a row, first over blocks of tokens and then within the
    block that was hit: on a CPU many times cheaper than `torch.multinomial`, which draws V numbers a row, and one pass
    over the vocabulary where a cumulative sum over all of it takes another two.
    """
    rows, vocabulary = logits.shape
    blocks = -(-vocabulary // BLOCK)
    largest = logits.amax(-1, keepdim=True)
    weights = logits.new_zeros(rows, blocks * BLOCK)
    torch.exp(logits - largest, out=weights[:, :vocabulary])
    weights = weights.view(rows, blocks, BLOCK)
    reached = weights.sum(-1).cumsum(-1)  # [B, blocks]
    total = reached[:, -1:]
    target = torch.rand(rows, 1, generator=generator, device=logits.device) * total
    block, before = _invert(reached, target)
    within = weights.take_along_dim(block[:, :, None], 1)[:, 0].cumsum(-1)  # [B, BLOCK]
    drawn = (block * BLOCK + _invert(within, target - before)[0])[:, 0]
    # A row of NaN draws the last id, whose log-probability is NaN too, for the caller to refuse.
    drawn = drawn.clamp(max=vocabulary - 1)
    logprobs = logits.gather(1, drawn[:, None]) - largest - total.log()
    return drawn, logprobs[:, 0]


def _invert(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first index `[B, 1]` whose cumulative weight `[B, N]` exceeds the target `[B, 1]`, and the weight before it.

    `right=True` keeps what has no weight out of reach. Rounding can place the target at the very end; then the last
    index with a weight is meant.
    """
    index = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    index = torch.minimum(index, last).clamp(max=cumulative.shape[1] - 1)
    before = cumulative.gather(1, (index - 1).clamp(min=0))
    return index, before.masked_fill(index == 0, 0)


@torch.no_grad()
def sample(
    model: Steps,
    context_ids: Tensor,
    context_mask: Tensor,
    *,
    response_length: int,
    temperature: float,
    generator: torch.Generator,
    stop_token_id: int | None = None,
    stop_after: int = 0,
    samples_per_query: int = 1,
    compiled: CompiledSteps | None = None,
    any_process: Callable[[bool], bool] = bool,
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
        compiled: Of `model`; runs every step after the context's.
        any_process: Whether something is so in any of the processes among which the model is in shards. They have to
            make as many passes as the one that needs most; those beyond its own end a process makes for the others.
    """
    queries, device = len(context_ids), context_ids.device
    rows = queries * samples_per_query
    responses = torch.zeros(rows, response_length, dtype=torch.long, device=device)
    logprobs = torch.zeros(rows, response_length, device=device)
    values = torch.zeros(rows, response_length, device=device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    known = can_share_prefix(model)
    out = model.step(model_inputs(context_ids, context_mask), 1, growing_cache() if known else None)
    # Behind one copy of the context's keys, each token reads those of the other responses too, under the mask.
    together = known and samples_per_query > 1 and samples_per_query * response_length <= context_ids.shape[1]
    contexts = out.cache, context_mask.long(), samples_per_query, response_length
    steps: _Layout | Room
    if compiled is None:
        steps = (_Together if together else _Apart)(model, *contexts)
    else:
        steps = compiled.after(*contexts, together=together)
    predicted = out.logits[:, -1].repeat_interleave(samples_per_query, 0)
    value = out.values[:, -1].repeat_interleave(samples_per_query, 0)
    del out, contexts  # a compiled step has a cache of its own
    drawing = True
    first_end = response_length if stop_token_id is None else stop_after
    for t in range(response_length):
        if drawing:
            tokens, chosen = draw(predicted.float() / temperature, generator)
            responses[:, t] = tokens * alive
            logprobs[:, t] = chosen * alive
            values[:, t] = value.float()
        if t >= first_end:
            alive &= tokens != stop_token_id
        if t >= first_end and (device.type == "cpu" or t % LOOK_EVERY == 0):
            drawing = bool(alive.any())
            if not any_process(drawing):
                break
        if t + 1 < response_length:
            predicted, value = steps.step(tokens, t)
    return Samples(responses, logprobs, values)


class _Layout:
    """How the responses to a context lie in the rows of a step."""

    def __init__(self, model: Steps, cache: object) -> None:
        self.model, self.cache = model, cache

    def inputs(self, tokens: Tensor, t: int) -> dict[str, Tensor]:
        """What the model reads after the tokens `[B K]` at index t were drawn."""
        raise NotImplementedError

    def step(self, tokens: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Logits `[B K, V]` and values `[B K]` after the tokens `[B K]` at index t were drawn."""
        inputs = self.inputs(tokens, t)
        out = self.model.step(inputs, inputs["input_ids"].shape[1], self.cache)
        self.cache = out.cache
        return out.logits.flatten(0, 1), out.values.flatten()


class _Apart(_Layout):
    """Each response in a row of its own, with its own copy of the context's keys and values."""

    def __init__(self, model: Steps, cache: Any, mask: Tensor, samples: int, most: int) -> None:
        super().__init__(model, cache)
        if samples > 1:
            cache.batch_repeat_interleave(samples)
        self.mask = torch.nn.functional.pad(mask.repeat_interleave(samples, 0), (0, most), value=1)
        self.context, self.lengths = mask.shape[1], mask.sum(1).repeat_interleave(samples)

    def inputs(self, tokens: Tensor, t: int) -> dict[str, Tensor]:
        return {
            "input_ids": tokens[:, None],
            "attention_mask": self.mask[:, : self.context + t + 1],
            "position_ids": (self.lengths + t)[:, None],
        }


class _Together(_Layout):
    """All responses of a context in one row, a token of each at a time, behind one copy of its keys and values."""

    def __init__(self, model: Steps, cache: Any, mask: Tensor, samples: int, most: int) -> None:
        super().__init__(model, cache)
        self.mask = next_token_mask(mask, samples, most)
        self.context, self.samples, self.lengths = mask.shape[1], samples, mask.sum(1, keepdim=True)

    def inputs(self, tokens: Tensor, t: int) -> dict[str, Tensor]:
        ids = tokens.view(-1, self.samples)
        return {
            "input_ids": ids,
            "attention_mask": self.mask[..., : self.context + self.samples * (t + 1)],
            "position_ids": (self.lengths + t).expand_as(ids),
        }
