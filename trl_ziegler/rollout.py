"""A rollout, and the minibatches PPO makes of it: whitening, advantages, micro-batches.

Source: `openai/lm-human-preferences`, `train_policy.py:PPOTrainer.train, loss`.
Axis letters: N queries of this process, K responses to each, B = N K episodes, Q context tokens, T response tokens.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from ._files import write_jsonl
from .functional import gae, merge_moments, moments, whiten

Gather = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Rollout:
    """Episodes with everything that stays fixed while PPO trains on them.

    Args:
        context_ids: `[N, Q]` int64, padded on the left.
        context_mask: `[N, Q]` int64, 0 at padding.
        responses: `[B, T]` int64 as sampled, uncut: those to the first context, then those to the second, and so on.
        mask: `[B, T]` bool, the tokens trained on.
        logprobs: `[B, T]` float32, log pi of the sampling policy, nats.
        values: `[B, T]` float32, value of the state before each token.
        rewards: `[B, T]` float32, R of each token, before whitening.
    """

    context_ids: torch.Tensor
    context_mask: torch.Tensor
    responses: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor
    rewards: torch.Tensor

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def samples(self) -> int:
        """K, the responses to each context."""
        return len(self.responses) // len(self.context_ids)

    def of_queries(self, index: torch.Tensor | slice) -> "Rollout":
        """The contexts of an index into N, each with all of its responses."""
        queries = len(self.context_ids)
        return self._with(lambda rows: rows[index], lambda rows: rows.unflatten(0, (queries, -1))[index].flatten(0, 1))

    def from_column(self, first: int) -> "Rollout":
        """With the columns of the contexts from `first` on."""
        return self._with(lambda rows: rows[:, first:], lambda rows: rows)

    def episode(self, i: int) -> "Rollout":
        """Episode `i` alone, with its context."""
        return self._with(lambda rows: rows[i // self.samples][None], lambda rows: rows[i : i + 1])

    def _with(self, contexts: Gather, episodes: Gather) -> "Rollout":
        chosen = {item.name: contexts if item.name.startswith("context") else episodes for item in fields(self)}
        return Rollout(**{name: choose(getattr(self, name)) for name, choose in chosen.items()})


ROLLOUT_FILE = "rollouts-{update:06d}-{rank}.jsonl"


def write_rollouts(
    folder: str | os.PathLike,
    update: int,
    rank: int,
    tokenizer: PreTrainedTokenizerBase,
    queries: list[list[int]],
    responses: torch.Tensor,
    episodes: dict[str, torch.Tensor],
) -> None:
    """Write one JSON line per episode of one process and update: `update`, `prompt`, `response` (uncut), statistics.

    Args:
        folder: Gets the file `rollouts-<update>-<rank>.jsonl`; an update that is repeated after a resume replaces it.
        update: Number of the update, from 1.
        rank: The process.
        queries: B raw queries.
        responses: `[B, T]` ids as sampled.
        episodes: Per-episode statistics `[B]`.
    """
    # JSON has no NaN, which stands for "this function gave no score".
    columns = {name: [None if v != v else v for v in column.tolist()] for name, column in episodes.items()}
    prompts, texts = tokenizer.batch_decode(queries), tokenizer.batch_decode(responses)
    rows = [
        {"update": update, "prompt": prompt, "response": text, **{name: values[i] for name, values in columns.items()}}
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_jsonl(Path(folder, ROLLOUT_FILE.format(update=update, rank=rank)), rows)


class MicroBatch(NamedTuple):
    """One forward pass: a part of a minibatch with its `advantages [b, T]` and `returns [b, T]`.

    `return_variance` is the population variance of the whole minibatch's returns. `total` is the number of trained
    tokens that the whole minibatch's losses are divided by (averaged over processes where whitening is global), so
    that the losses of its micro-batches add up to the minibatch's mean.
    """

    rollout: Rollout
    advantages: torch.Tensor
    returns: torch.Tensor
    return_variance: torch.Tensor
    total: float

    def episode(self, i: int) -> "MicroBatch":
        """Episode `i` alone."""
        part = slice(i, i + 1)
        return self._replace(
            rollout=self.rollout.episode(i), advantages=self.advantages[part], returns=self.returns[part]
        )


def advantages_and_returns(
    rollout: Rollout, *, gamma: float, lam: float, whiten_rewards: bool, gather: Gather | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whitened advantages and raw returns `[B, T]` of one minibatch.

    Rewards are whitened first if asked (mean kept), then GAE, then the advantages are whitened (mean removed);
    returns are taken before that. `gather` collects tensors over processes for global statistics, `None` keeps them
    to this process.
    """
    rewards = rollout.rewards
    if whiten_rewards:
        rewards = _whiten(rewards, rollout.mask, gather, shift_mean=False)
    advantages, returns = gae(rewards, rollout.values, gamma=gamma, lam=lam, mask=rollout.mask)
    return _whiten(advantages, rollout.mask, gather, shift_mean=True), returns


def _whiten(values: torch.Tensor, mask: torch.Tensor, gather: Gather | None, shift_mean: bool) -> torch.Tensor:
    if gather is None:
        return whiten(values, mask=mask, shift_mean=shift_mean)
    parts = gather(_precise(torch.stack(moments(values, mask=mask)))[None])
    mean, variance = merge_moments(*parts.unbind(1))
    return whiten(values, mask=mask, shift_mean=shift_mean, moments=(mean.to(values.dtype), variance.to(values.dtype)))


def _precise(values: torch.Tensor) -> torch.Tensor:
    """In float64, or in float32 on Apple's GPU, which has no wider type."""
    return values.float() if values.device.type == "mps" else values.double()


def micro_batches(
    rollout: Rollout,
    *,
    epochs: int,
    mini_batch_size: int,
    micro_batch_size: int,
    gamma: float,
    lam: float,
    whiten_rewards: bool,
    gather: Gather | None,
    generator: torch.Generator,
) -> Iterator[MicroBatch]:
    """Every micro-batch of one update, in the order of training: a fresh permutation per epoch, cut into minibatches.

    Sizes count episodes; the responses to a query stay together, so K divides them. Whitening and advantages are
    computed on the whole minibatch before it is split, and its order does not matter, so the shortest contexts come
    first: micro-batches of similar lengths need little padding, and what all rows of one have is cut off. Args as in
    `advantages_and_returns`; `generator` (CPU) draws the permutations of this process.
    """
    samples, device = rollout.samples, rollout.context_ids.device
    starts = rollout.context_mask.argmax(1).cpu()  # of the contexts in their rows; the device is asked once
    for _ in range(epochs):
        order = torch.randperm(len(starts), generator=generator)
        for index in order.split(mini_batch_size // samples):
            index = index[starts[index].argsort(stable=True, descending=True)]
            mini = rollout.of_queries(index.to(device))
            advantages, returns = advantages_and_returns(
                mini, gamma=gamma, lam=lam, whiten_rewards=whiten_rewards, gather=gather
            )
            _, _, variance = moments(returns, mask=mini.mask)
            tokens = _precise(mini.mask.sum()[None])
            total = float((tokens if gather is None else gather(tokens)).mean())
            for start in range(0, mini_batch_size, micro_batch_size):
                part = slice(start, start + micro_batch_size)
                queries = slice(part.start // samples, part.stop // samples)
                padding = int(starts[index[queries]].min())
                micro = mini.of_queries(queries).from_column(padding)
                yield MicroBatch(micro, advantages[part], returns[part], variance, total)
