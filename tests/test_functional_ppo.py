"""Means, whitening, advantages and PPO objectives of `functional`; the rest of that module is in test_functional.py.

`ours` is the shipped function's result, `*_numpy` a separate version. Axis letters: B queries, T response tokens.
"""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from trl_ziegler import functional as fn

NAN, INF = math.nan, math.inf
LENGTHS = [6, 1, 4]


def f64(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ragged(seed: int, garbage: float = NAN) -> torch.Tensor:
    """`[3, 6]` random rows of `LENGTHS` real entries, garbage after them."""
    return torch.where(MASK, normal(3, 6, seed=seed), garbage)


MASK = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
ALL = torch.ones_like(MASK)


def gradient(function, tensor: torch.Tensor) -> torch.Tensor:
    leaf = tensor.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def gae_numpy(rewards, values, gamma, lam):
    """Advantages of one row as the explicit double sum of discounted one-step errors."""
    steps = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(steps)]
    return np.array([sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, steps)) for t in range(steps)])


class TestMeansAndMoments:
    def test_masked_mean_is_over_masked_in_entries(self):
        assert fn.masked_mean(f64([1, 2], [6, NAN]), mask=torch.tensor([[1, 1], [1, 0]])).item() == 3.0
        assert fn.masked_mean(f64([1, 2], [6, 7])).item() == 4.0
        assert fn.masked_mean(torch.tensor([1, 2])).item() == 1.5
        assert fn.masked_mean(f64(NAN), mask=torch.tensor([0])).isnan()

    def test_moments_are_the_population_s(self):
        assert [float(x) for x in fn.moments(f64(0, 0, 0, 4))] == [4.0, 1.0, 3.0]
        assert [float(x) for x in fn.moments(f64(0, 4, 99), mask=torch.tensor([1, 1, 0]))] == [2.0, 2.0, 4.0]
        assert [float(x) for x in fn.moments(f64(NAN), mask=torch.tensor([0]))] == [0.0, 0.0, 0.0]

    @pytest.mark.parametrize("mask", [None, torch.tensor([1, 1, 0])])
    def test_moments_have_one_dtype(self, mask):
        for dtype in (torch.float32, torch.float64):
            assert {x.dtype for x in fn.moments(torch.ones(3, dtype=dtype), mask=mask)} == {dtype}

    def test_merged_moments_are_those_of_the_union(self):
        groups = [normal(5), 3 + 2 * normal(2, seed=1), f64(NAN), normal(9, seed=2)]
        masks = [torch.full(group.shape, i != 2) for i, group in enumerate(groups)]
        stacked = torch.stack([torch.stack(fn.moments(g, mask=m)) for g, m in zip(groups, masks, strict=True)])
        union = torch.cat([groups[0], groups[1], groups[3]])
        assert_close(fn.merge_moments(*stacked.unbind(1)), fn.moments(union)[1:])

    def test_wrong_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"`mask` must have shape \(2, 3\) .* got \(3,\)"):
            fn.masked_mean(torch.zeros(2, 3), mask=torch.ones(3))
        with pytest.raises(ValueError, match=r"`mask` must have shape"):
            fn.moments(torch.zeros(2, 3), mask=torch.ones(2, 1))
        with pytest.raises(ValueError, match=r"`means` must have shape \(2,\)"):
            fn.merge_moments(torch.ones(2), torch.zeros(1), torch.zeros(2))
        with pytest.raises(ValueError, match=r"`variances` must have shape \(2,\)"):
            fn.merge_moments(torch.ones(2), torch.zeros(2), torch.zeros(1))
        with pytest.raises(ValueError, match=r"`counts` must have the axes \[N\]"):
            fn.merge_moments(torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(2, 1))


class TestWhiten:
    def test_hand_worked_number_with_the_mean_kept(self):
        # mean 1, population variance 3: 1 - 1/sqrt(3) and 1 + 3/sqrt(3); a variance over n-1 would give 0.5 and 2.5
        ours = fn.whiten(f64([0, 0, 0, 4]), shift_mean=False)
        assert_close(ours, f64([0.42265, 0.42265, 0.42265, 2.73205]), atol=5e-6, rtol=0)

    def test_result_has_mean_0_and_population_deviation_1(self):
        ours = fn.whiten(3 + 5 * normal(16, 24))
        assert ours.mean().item() == pytest.approx(0, abs=1e-9)
        assert ours.std(correction=0).item() == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("shift_mean", [True, False])
    def test_equals_numpy_under_a_mask(self, shift_mean):
        values = ragged(0)
        chosen = values[MASK].numpy()
        expected = (chosen - chosen.mean()) / np.sqrt(np.mean((chosen - chosen.mean()) ** 2) + 1e-8)
        ours = fn.whiten(values, mask=MASK, shift_mean=shift_mean)
        np.testing.assert_allclose(ours[MASK], expected + (0 if shift_mean else chosen.mean()), rtol=1e-12)
        assert (ours[~MASK] == 0).all()
        assert gradient(lambda x: fn.whiten(x, mask=MASK, shift_mean=shift_mean)[0, 0], values).isfinite().all()

    @pytest.mark.parametrize("shift_mean", [True, False])
    def test_mask_of_ones_is_no_mask(self, shift_mean):
        values = normal(3, 6)
        assert_close(fn.whiten(values, mask=ALL, shift_mean=shift_mean), fn.whiten(values, shift_mean=shift_mean))

    def test_scale_and_shift_of_the_input_are_removed(self):
        assert_close(fn.whiten(100 * normal(8) - 7), fn.whiten(normal(8)), atol=1e-7, rtol=1e-6)

    def test_equal_values_become_zero(self):
        assert (fn.whiten(torch.full((2, 3), 5.0)) == 0).all()

    def test_epsilon_is_under_the_root(self):
        assert_close(fn.whiten(f64(-1e-4, 1e-4)), f64(-1, 1) / math.sqrt(2))  # variance 1e-8 equals epsilon

    def test_given_moments_whiten_two_ranks_like_their_union(self):
        values, ranks = normal(3, 6), (slice(0, 1), slice(1, 3))
        parts = torch.stack([torch.stack(fn.moments(values[r])) for r in ranks])
        merged = fn.merge_moments(*parts.unbind(1))
        for shift_mean in (True, False):
            ours = torch.cat([fn.whiten(values[r], shift_mean=shift_mean, moments=merged) for r in ranks])
            assert_close(ours, fn.whiten(values, shift_mean=shift_mean))

    def test_wrong_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"`mask` must have shape \(2, 3\)"):
            fn.whiten(torch.zeros(2, 3), mask=torch.ones(2, 1))


class TestGAE:
    def test_hand_worked_numbers(self):
        advantages, returns = fn.gae(f64([0, 0, 1]), f64([0, 0, 0]))
        assert_close(advantages, f64([0.9025, 0.95, 1]))
        assert_close(returns, f64([0.9025, 0.95, 1]))
        # deltas 1 + 0.5*4 - 2 = 1 and 3 - 4 = -1; A = (1 + 0.25*(-1), -1)
        advantages, returns = fn.gae(f64([1, 3]), f64([2, 4]), gamma=0.5, lam=0.5)
        assert_close(advantages, f64([0.75, -1]))
        assert_close(returns, f64([2.75, 3]))

    @pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.5, 1.0)])
    def test_equals_numpy_and_masked_tail_is_a_shorter_row(self, gamma, lam):
        rewards, values = ragged(1), ragged(2)
        advantages, returns = fn.gae(rewards, values, gamma=gamma, lam=lam, mask=MASK)
        for b, length in enumerate(LENGTHS):
            expected = gae_numpy(rewards[b, :length].numpy(), values[b, :length].numpy(), gamma, lam)
            np.testing.assert_allclose(advantages[b, :length], expected, rtol=1e-12)
            np.testing.assert_allclose(returns[b, :length], expected + values[b, :length].numpy(), rtol=1e-12)
        assert (advantages[~MASK] == 0).all() and (returns[~MASK] == 0).all()

    def test_mask_of_ones_is_no_mask(self):
        rewards, values = normal(3, 6, seed=1), normal(3, 6, seed=2)
        assert_close(fn.gae(rewards, values, mask=ALL), fn.gae(rewards, values))

    def test_lambda_1_gives_the_plain_return(self):
        rewards, values = normal(3, 6, seed=1), normal(3, 6, seed=2)
        _, returns = fn.gae(rewards, values, lam=1.0)
        assert_close(returns, rewards.flip(1).cumsum(1).flip(1))

    def test_inputs_are_kept(self):
        rewards, values = normal(3, 6, seed=1), normal(3, 6, seed=2)
        before = rewards.clone(), values.clone()
        fn.gae(rewards, values, mask=MASK)
        assert torch.equal(rewards, before[0]) and torch.equal(values, before[1])

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"`values` must have shape \(2, 3\)"):
            fn.gae(torch.zeros(2, 3), torch.zeros(2, 1))
        with pytest.raises(ValueError, match=r"axes \[B, T\], got shape \(3,\)"):
            fn.gae(torch.zeros(3), torch.zeros(3))
        with pytest.raises(ValueError, match=r"`mask` must have shape \(2, 3\)"):
            fn.gae(torch.zeros(2, 3), torch.zeros(2, 3), mask=torch.ones(1, 3))
        with pytest.raises(ValueError, match="`mask` must be trues followed by falses"):
            fn.gae(torch.zeros(1, 3), torch.zeros(1, 3), mask=torch.tensor([[1, 0, 1]]))


def value_loss_numpy(new, old, target, clip):
    clipped = np.minimum(np.maximum(new, old - clip), old + clip)
    return 0.5 * np.mean(np.maximum((new - target) ** 2, (clipped - target) ** 2))


def policy_loss_numpy(new, old, advantages, clip):
    ratio = np.exp(new - old)
    return np.mean(np.maximum(-advantages * ratio, -advantages * np.clip(ratio, 1 - clip, 1 + clip)))


class TestValueLoss:
    @pytest.mark.parametrize(
        ("new", "target", "expected"),
        [
            (0.5, 1.0, 0.32),  # clipped to 0.2: half of 0.8^2
            (0.5, 0.0, 0.125),  # the unclipped error is larger: half of 0.5^2
            (-0.5, -1.0, 0.32),
            (0.1, 1.0, 0.405),  # inside the clip
        ],
    )
    def test_hand_worked_numbers(self, new, target, expected):
        assert fn.value_loss(f64(new), f64(0), f64(target)).item() == pytest.approx(expected, abs=1e-12)

    def test_clip_is_around_the_old_value(self):
        assert fn.value_loss(f64(5.5), f64(5), f64(6)).item() == pytest.approx(0.32, abs=1e-12)

    @pytest.mark.parametrize("clip_range", [0.2, 0.05])
    def test_equals_numpy_under_a_mask(self, clip_range):
        new, old, target = ragged(0), ragged(1, INF), ragged(2, -INF)
        expected = value_loss_numpy(*(x[MASK].numpy() for x in (new, old, target)), clip_range)
        assert fn.value_loss(new, old, target, clip_range=clip_range, mask=MASK).item() == pytest.approx(expected)

    def test_gradient_stops_where_the_clip_binds_and_under_the_mask(self):
        old, target = torch.zeros(4, dtype=torch.float64), f64(1, 0, 1, NAN)
        mask = torch.tensor([1, 1, 1, 0])
        slope = gradient(lambda v: fn.value_loss(v, old, target, mask=mask), f64(0.5, 0.5, 0.1, NAN))
        assert_close(slope, f64(0, 0.5, -0.9, 0) / 3)

    def test_wrong_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"`returns` must have shape \(2, 3\) .* got \(2, 1\)"):
            fn.value_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))


class TestPolicyLoss:
    @pytest.mark.parametrize(
        ("advantage", "ratio", "expected"),
        [(1, 1.5, -1.2), (-1, 1.5, 1.5), (1, 0.5, -0.5), (-1, 0.5, 0.8), (2, 1.1, -2.2), (-2, 0.9, 1.8)],
    )
    def test_hand_worked_numbers(self, advantage, ratio, expected):
        new, old = f64(math.log(ratio) - 3), f64(-3)
        assert fn.policy_loss(new, old, f64(advantage)).item() == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("clip_range", [0.2, 0.05])
    def test_equals_numpy_under_a_mask(self, clip_range):
        new, old, advantages = ragged(0, -INF), ragged(1, -INF), ragged(2)
        expected = policy_loss_numpy(*(x[MASK].numpy() for x in (new, old, advantages)), clip_range)
        ours = fn.policy_loss(new, old, advantages, clip_range=clip_range, mask=MASK)
        assert ours.item() == pytest.approx(expected)

    def test_first_gradient_is_minus_the_advantage(self):
        logprobs, advantages = ragged(0, -INF), ragged(1)
        slope = gradient(lambda new: fn.policy_loss(new, logprobs, advantages, mask=MASK), logprobs)
        assert_close(slope, torch.where(MASK, -advantages / MASK.sum(), 0))

    def test_gradient_stops_where_the_clip_binds(self):
        new = torch.log(f64(1.5, 1.5, 0.5, 0.5))
        slope = gradient(lambda x: fn.policy_loss(x, torch.zeros_like(x), f64(1, -1, 1, -1)), new)
        assert_close(slope, f64(0, 1.5, -0.5, 0) / 4)

    def test_wrong_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"`advantages` must have shape \(2, 3\) .* got \(2,\)"):
            fn.policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))
        with pytest.raises(ValueError, match=r"`logprobs_old` must have shape \(2, 3\) .* got \(1, 3\)"):
            fn.policy_loss(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("loss", [fn.value_loss, fn.policy_loss])
class TestBothLosses:
    def arguments(self):
        return [normal(3, 6, seed=seed) for seed in range(3)]

    def test_mask_of_ones_is_no_mask(self, loss):
        assert_close(loss(*self.arguments(), mask=ALL), loss(*self.arguments()))

    def test_nan_under_the_mask_reaches_neither_result_nor_gradient(self, loss):
        arguments = [ragged(seed) for seed in range(3)]
        assert_close(loss(*arguments, mask=MASK), loss(*self.arguments(), mask=MASK))
        slope = gradient(lambda new: loss(new, *arguments[1:], mask=MASK), arguments[0])
        assert (slope[~MASK] == 0).all()

    @pytest.mark.parametrize("mask", [None, MASK])
    def test_micro_batches_with_the_total_add_up_to_the_minibatch(self, loss, mask):
        total = 18 if mask is None else int(MASK.sum())
        parts = [
            loss(*(x[rows] for x in self.arguments()), mask=None if mask is None else mask[rows], total=total)
            for rows in (slice(0, 2), slice(2, 3))
        ]
        assert_close(sum(parts), loss(*self.arguments(), mask=mask))

    def test_float32_stays_float32_and_bfloat16_is_computed_in_float32(self, loss):
        arguments = [x.bfloat16() for x in self.arguments()]
        ours = loss(*arguments)
        assert ours.dtype == torch.float32
        assert_close(ours, loss(*(x.float() for x in arguments)), rtol=0, atol=0)


class TestStatistics:
    def test_policy_clip_fraction_counts_only_where_the_clip_binds(self):
        new = torch.log(f64(1.5, 1.5, 0.5, 0.5, 1.1))  # at advantage 1, -1, 1, -1, 1 only the first and fourth bind
        advantages = f64(1, -1, 1, -1, 1)
        old = torch.zeros_like(new)
        assert fn.policy_clip_fraction(new, old, advantages).item() == pytest.approx(0.4)
        assert fn.policy_clip_fraction(new, old, advantages, clip_range=0.05).item() == pytest.approx(0.6)
        assert fn.policy_clip_fraction(f64(math.log(1.15)), f64(0), f64(1)).item() == 0  # 0.2 unless told otherwise
        mask = torch.tensor([0, 1, 1, 1, 1])
        assert fn.policy_clip_fraction(new, old, advantages, mask=mask).item() == pytest.approx(0.25)

    def test_value_clip_fraction_counts_only_where_the_clip_binds(self):
        new, old, target = f64(0.5, 0.5, 0.1, -0.5), f64(0, 0, 0, 0), f64(1, 0, 1, -1)
        assert fn.value_clip_fraction(new, old, target).item() == 0.5
        assert fn.value_clip_fraction(new, old, target, clip_range=0.05).item() == 0.75
        assert fn.value_clip_fraction(f64(0.15), f64(0), f64(1)).item() == 0
        mask = torch.tensor([0, 1, 1, 1])
        assert fn.value_clip_fraction(new, old, target, mask=mask).item() == pytest.approx(1 / 3)

    def test_equality_is_not_clipping(self):
        zeros = torch.zeros(4)
        assert fn.policy_clip_fraction(zeros, zeros, torch.ones(4)).item() == 0
        assert fn.value_clip_fraction(zeros, zeros, torch.ones(4)).item() == 0

    def test_approx_kl_is_half_the_mean_squared_difference(self):
        assert fn.approx_kl(f64(-1, -2), f64(-2, 1)).item() == 2.5
        assert fn.approx_kl(f64(-1, -INF), f64(-2, -INF), mask=torch.tensor([1, 0])).item() == 0.5
        with pytest.raises(ValueError, match=r"`logprobs_old` must have shape \(2,\)"):
            fn.approx_kl(f64(-1, -2), f64(-2))
