"""Micro-batches of similar length against those of a minibatch in the order it was drawn: padding and time.

    python -m tests.benchmarks.mixed_lengths --contexts 64 500 --response 75 --batch 64 --micro 8

A rollout whose contexts have random lengths, evenly spread between the two given, is trained on for one epoch in one
minibatch by a random GPT-2 with a value head: forward and backward pass of every micro-batch, without optimiser, and
with the losses of PPO. Both splits cut off the padding that all rows of a micro-batch have. They alternate in one
process; the first round is the warm-up. Printed are padded and present tokens of an epoch, the medians of the
processor seconds of an update of `--epochs` epochs, and the smallest and largest ratio of a round.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.fast_layers import use_fast_layers
from trl_ziegler.functional import policy_loss, token_logprobs_and_entropy, value_loss
from trl_ziegler.queries import with_responses
from trl_ziegler.rollout import MicroBatch, Rollout, micro_batches

from .ppo_speed import Setup, Shape, make_model


def make_rollout(shortest: int, longest: int, response: int, episodes: int, vocabulary: int) -> Rollout:
    """Random tokens, rewards and values."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (episodes, 1), generator=draw)
    mask = (torch.arange(longest) >= longest - lengths).long()
    return Rollout(
        context_ids=torch.randint(1, vocabulary, mask.shape, generator=draw) * mask,
        context_mask=mask,
        responses=torch.randint(1, vocabulary, (episodes, response), generator=draw),
        mask=torch.ones(episodes, response, dtype=torch.bool),
        logprobs=torch.full((episodes, response), -torch.tensor(float(vocabulary)).log().item()),
        values=torch.zeros(episodes, response),
        rewards=torch.randn(episodes, response, generator=draw),
    )


def split(rollout: Rollout, size: int, micro: int, seed: int) -> list[MicroBatch]:
    """One epoch's, by length."""
    generator = torch.Generator().manual_seed(seed)
    return list(
        micro_batches(
            rollout, epochs=1, mini_batch_size=size, micro_batch_size=micro, gamma=1.0, lam=0.95,
            whiten_rewards=False, gather=None, generator=generator,
        )
    )  # fmt: skip


def split_at_random(rollout: Rollout, size: int, micro: int, seed: int) -> Iterator[MicroBatch]:
    """The same minibatch in another order, as if lengths were not looked at."""
    (whole,) = split(rollout, size, size, seed)
    for index in torch.randperm(size, generator=torch.Generator().manual_seed(seed)).split(micro):
        part = whole.rollout.of_queries(index)
        part = part.from_column(int(part.context_mask.argmax(1).min()))
        yield MicroBatch(part, whole.advantages[index], whole.returns[index], whole.return_variance, whole.total)


def train_on(model: ActorCritic, parts: list[MicroBatch]) -> float:
    """Processor seconds of the forward and backward passes of one epoch."""
    model.zero_grad()
    began = time.process_time()
    for part in parts:
        given = part.rollout
        inputs = with_responses(given.context_ids, given.context_mask, given.responses)
        out = model(*inputs, given.responses.shape[1])
        logprobs, _ = token_logprobs_and_entropy(out.logits, given.responses, temperature=0.7)
        over = {"mask": given.mask, "total": part.total}
        policy = policy_loss(logprobs, given.logprobs, part.advantages, clip_range=0.2, **over)
        value = value_loss(out.values, given.values, part.returns, clip_range=0.2, **over)
        (policy + 0.1 * value).backward()
    return time.process_time() - began


def main() -> None:
    """Count, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", nargs=2, type=int, default=[64, 500], help="Shortest and longest, in tokens.")
    parser.add_argument("--response", type=int, default=75)
    parser.add_argument("--batch", type=int, default=64, help="Episodes of the one minibatch.")
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=4, help="The first is the warm-up.")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    setup = Setup(args.layers, args.width, args.vocabulary, args.batch, args.micro, args.epochs, 1, args.threads, "")
    model = ActorCritic(make_model(AutoModelForCausalLM, Shape(args.contexts[1], args.response, 1), setup, 0)).eval()
    use_fast_layers(model.policy)
    rollout = make_rollout(*args.contexts, args.response, args.batch, args.vocabulary)
    tokens, seconds = {}, {"as drawn": [], "by length": []}
    for number in range(args.rounds):
        for name, cut in (("as drawn", split_at_random), ("by length", split)):
            parts = list(cut(rollout, args.batch, args.micro, number))
            masks = [part.rollout.context_mask for part in parts]
            tokens.setdefault(name, []).append(sum(mask.numel() for mask in masks))
            seconds[name].append(train_on(model, parts) * args.epochs)
    present = int(rollout.context_mask.sum())
    for name in seconds:
        padded = statistics.mean(tokens[name]) - present
        median = statistics.median(seconds[name][1:])
        print(
            f"{name}: {padded:.0f} tokens of padding beside {present} of contexts and {rollout.responses.numel()} of "
            f"responses, {median:.2f} processor seconds an update"
        )
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)][1:]
    print(f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
