"""Minibatches of a rollout: what is whitened when, over what, and that every episode is used once an epoch."""

from types import SimpleNamespace

import pytest
import torch

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.functional import gae, policy_loss, token_logprobs, value_loss
from trl_ziegler.queries import trimmed, with_responses
from trl_ziegler.rollout import Rollout, advantages_and_returns, micro_batches

OPTIONS = {"gamma": 1.0, "lam": 0.95, "whiten_rewards": False, "gather": None}


def make_rollout(rewards, values=None, mask=None) -> Rollout:
    rewards = torch.tensor(rewards)
    values = torch.zeros_like(rewards) if values is None else torch.tensor(values)
    rows, length = rewards.shape
    return Rollout(
        context_ids=torch.arange(rows)[:, None],
        context_mask=torch.ones(rows, 1, dtype=torch.long),
        responses=torch.zeros(rows, length, dtype=torch.long),
        mask=torch.ones(rows, length, dtype=torch.bool) if mask is None else torch.tensor(mask),
        logprobs=torch.zeros(rows, length),
        values=values,
        rewards=rewards,
    )


def test_returns_are_taken_before_the_advantages_are_whitened():
    advantages, returns = advantages_and_returns(make_rollout([[0.0, 0.0, 1.0]]), **OPTIONS)
    torch.testing.assert_close(returns, torch.tensor([[0.9025, 0.95, 1.0]]))
    torch.testing.assert_close(advantages.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantages.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)


def test_rewards_are_whitened_before_gae_and_keep_their_mean():
    rollout = make_rollout([[0.0, 0.0, 0.0, 4.0]])
    _, returns = advantages_and_returns(rollout, **{**OPTIONS, "whiten_rewards": True})
    whitened = torch.tensor([[0.42265, 0.42265, 0.42265, 2.73205]])
    expected = gae(whitened, rollout.values, gamma=1.0, lam=0.95)[1]
    torch.testing.assert_close(returns, expected, atol=1e-4, rtol=0)


def test_masked_tokens_take_no_part():
    short = make_rollout([[1.0, 2.0]])
    padded = make_rollout([[1.0, 2.0, 99.0]], [[0.0, 0.0, 7.0]], [[True, True, False]])
    options = {**OPTIONS, "whiten_rewards": True}
    for plain, masked in zip(
        advantages_and_returns(short, **options), advantages_and_returns(padded, **options), strict=True
    ):
        torch.testing.assert_close(masked[:, :2], plain)
        assert masked[0, 2] == 0


def test_global_whitening_merges_the_ranks():
    ours, theirs = make_rollout([[1.0, 5.0], [2.0, 0.0]]), make_rollout([[9.0, 3.0], [4.0, 4.0]])
    both = make_rollout([[1.0, 5.0], [2.0, 0.0], [9.0, 3.0], [4.0, 4.0]])
    sent = []

    def record(tensor):
        sent.append(tensor)
        return tensor

    advantages_and_returns(theirs, **{**OPTIONS, "gather": record})
    replies = iter(sent)
    ours_whitened, _ = advantages_and_returns(
        ours, **{**OPTIONS, "gather": lambda tensor: torch.cat([tensor, next(replies)])}
    )
    whole, _ = advantages_and_returns(both, **OPTIONS)
    alone, _ = advantages_and_returns(ours, **OPTIONS)
    torch.testing.assert_close(ours_whitened, whole[:2])
    assert not torch.allclose(alone, whole[:2])


def stream(rollout, epochs=2, mini=4, micro=2, seed=0, **options):
    return list(
        micro_batches(
            rollout,
            epochs=epochs,
            mini_batch_size=mini,
            micro_batch_size=micro,
            generator=torch.Generator().manual_seed(seed),
            **{**OPTIONS, **options},
        )
    )


def test_every_episode_once_an_epoch_in_a_fresh_order():
    rollout = make_rollout(torch.randn(8, 3).tolist())
    parts = stream(rollout)
    assert len(parts) == 2 * 2 * 2
    epochs = [torch.cat([p.rollout.context_ids for p in parts[i : i + 4]]).squeeze(1).tolist() for i in (0, 4)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8))
    assert epochs[0] != epochs[1]
    again = torch.cat([p.rollout.context_ids for p in stream(rollout)[:4]]).squeeze(1).tolist()
    assert again == epochs[0]


def test_statistics_are_the_minibatch_s_not_the_micro_batch_s():
    rollout = make_rollout(torch.randn(8, 3).tolist())
    fine, coarse = stream(rollout, micro=1), stream(rollout, micro=4)
    torch.testing.assert_close(
        torch.cat([p.advantages for p in fine]), torch.cat([p.advantages for p in coarse]), atol=0, rtol=0
    )
    first = torch.cat([p.advantages for p in fine[:4]])
    torch.testing.assert_close(first.std(correction=0), torch.tensor(1.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(fine[0].return_variance, torch.cat([p.returns for p in fine[:4]]).var(correction=0))


@pytest.mark.parametrize(("gather", "total"), [(None, 3.0), (lambda t: torch.cat([t, t + 4]), 5.0)])
def test_total_counts_the_minibatch_s_trained_tokens(gather, total):
    rollout = make_rollout([[1.0, 2.0], [3.0, 4.0]], mask=[[True, True], [True, False]])
    fake = None if gather is None else lambda t: gather(t) if t.dim() == 1 else t
    assert [p.total for p in stream(rollout, epochs=1, mini=2, micro=1, gather=fake)] == [total, total]


class AppleTensor(torch.Tensor):
    """On the CPU, but calls itself Apple's, and like those has no float64."""

    device = SimpleNamespace(type="mps")

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64")


def test_statistics_of_several_processes_are_float32_where_there_is_no_float64():
    gathered = []

    def gather(tensor):
        gathered.append(tensor.dtype)
        return tensor

    rollout = make_rollout([[1.0, 2.0], [3.0, 5.0]])
    options = {**OPTIONS, "whiten_rewards": True, "gather": gather}
    advantages, _ = advantages_and_returns(rollout, **options)
    rollout.rewards = rollout.rewards.as_subclass(AppleTensor)
    theirs, _ = advantages_and_returns(rollout, **options)
    assert gathered == [torch.float64] * 2 + [torch.float32] * 2
    torch.testing.assert_close(theirs.as_subclass(torch.Tensor), advantages)


def test_a_minibatch_is_split_by_length_of_its_contexts():
    """The shortest come first within each minibatch; which minibatch an episode is in stays a matter of chance."""
    rollout = make_rollout([[float(i)] for i in range(8)])
    lengths = [3, 1, 4, 2, 4, 1, 3, 2]
    rollout.context_mask = torch.tensor([[0] * (4 - n) + [1] * n for n in lengths])
    generator = torch.Generator().manual_seed(0)
    parts = list(
        micro_batches(rollout, epochs=3, mini_batch_size=4, micro_batch_size=2, generator=generator, **OPTIONS)
    )
    minibatches = [[*a.rollout.rewards[:, 0].tolist(), *b.rollout.rewards[:, 0].tolist()]
                   for a, b in zip(parts[::2], parts[1::2], strict=True)]  # fmt: skip
    for episodes in minibatches:
        seen = [lengths[int(i)] for i in episodes]
        assert seen == sorted(seen)
    assert len({frozenset(episodes) for episodes in minibatches}) > 2
    for first, second in zip(minibatches[::2], minibatches[1::2], strict=True):
        assert sorted(first + second) == list(range(8))


class TestLengths:
    """Sixteen contexts of 1 to 40 tokens, two responses of three tokens to each."""

    LENGTHS = (40, 1, 17, 3, 38, 9, 2, 25, 30, 5, 33, 12, 21, 7, 28, 14)

    @pytest.fixture
    def rollout(self):
        generator = torch.Generator().manual_seed(0)
        mask = torch.tensor([[0] * (45 - n) + [1] * n for n in self.LENGTHS])
        floats = [torch.randn(32, 3, generator=generator) for _ in range(2)]
        return Rollout(
            context_ids=torch.randint(1, 250, mask.shape, generator=generator) * mask,
            context_mask=mask,
            responses=torch.randint(1, 250, (32, 3), generator=generator),
            mask=torch.arange(3) < 1 + torch.arange(32)[:, None] % 3,
            logprobs=torch.full((32, 3), -5.5),
            values=floats[0],
            rewards=floats[1],
        )

    def test_micro_batches_have_no_column_of_padding(self, rollout):
        for part in stream(rollout, mini=16, micro=4):
            ids, mask = part.rollout.context_ids, part.rollout.context_mask
            assert ids.shape == mask.shape and mask[:, 0].any()
            for row, present in zip(ids, mask.bool(), strict=True):
                assert any(torch.equal(row[present], given[given > 0]) for given in rollout.context_ids)

    def test_micro_batches_of_similar_length_pad_less_than_those_of_any(self, rollout):
        """By count: about 15 tokens of padding beside a context in the order drawn, under 4 in that of the lengths."""

        def padding(parts):
            return sum(int((mask == 0).sum()) for mask in parts)

        whole = stream(rollout, epochs=8, mini=32, micro=32)
        drawn = torch.Generator().manual_seed(0)
        at_random = [
            trimmed(mask, mask)[1]
            for _ in whole
            for mask in rollout.context_mask[torch.randperm(16, generator=drawn)].split(4)
        ]
        by_length = [part.rollout.context_mask for part in stream(rollout, epochs=8, mini=32, micro=8)]
        assert len(by_length) == len(at_random) == 8 * 4
        assert padding(by_length) < 8 * 16 * 4 < 8 * 16 * 12 < padding(at_random)

    def test_the_gradient_is_that_of_the_whole_minibatch(self, rollout, make_causal_lm):
        model = ActorCritic(make_causal_lm()).eval()
        torch.nn.init.normal_(model.value_head.weight)

        def gradient(micro):
            model.zero_grad()
            for part in stream(rollout, epochs=1, mini=32, micro=micro):
                given = part.rollout
                out = model(*with_responses(given.context_ids, given.context_mask, given.responses), 3, 2)
                logprobs = token_logprobs(out.logits, given.responses, temperature=0.7)
                over = {"mask": given.mask, "total": part.total}
                policy = policy_loss(logprobs, given.logprobs, part.advantages, clip_range=0.2, **over)
                value = value_loss(out.values, given.values, part.returns, clip_range=0.2, **over)
                (policy + 0.1 * value).backward()
            return [p.grad.clone() for p in model.parameters()]

        whole = gradient(32)
        assert all(bool(slope.any()) for slope in whole)
        torch.testing.assert_close(gradient(8), whole, atol=1e-6, rtol=1e-6)
