"""The formulas against hand-worked numbers, against each other, and against a separate numpy version.

Axis letters: B queries, K candidates, T response tokens, V vocabulary.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from trl_ziegler import functional as fn
from trl_ziegler.chunked_softmax import CHUNK_ELEMENTS

NAN, INF = math.nan, math.inf


def f64(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def prefix_mask(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def gradient(function, tensor: torch.Tensor) -> torch.Tensor:
    leaf = tensor.detach().clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


class TestBestOfK:
    def test_hand_worked_numbers(self):
        # log(e^0 + e^1 + e^2 + e^-1) - 2 = log(11.4752) - 2
        assert fn.best_of_k_loss(f64([0, 1, 2, -1]), torch.tensor([2])).item() == pytest.approx(0.4402, abs=5e-5)
        assert fn.best_of_k_loss(f64([3, 3, 3, 3]), torch.tensor([1])).item() == pytest.approx(1.3863, abs=5e-5)

    def test_is_a_plain_mean_over_the_batch(self):
        rewards, labels = f64([0, 1, 2, -1], [3, 3, 3, 3]), torch.tensor([2, 0])
        assert fn.best_of_k_loss(rewards, labels).item() == pytest.approx((0.440190 + math.log(4)) / 2, abs=1e-6)

    def test_constant_added_to_all_rewards_changes_neither_loss_nor_gradient(self):
        rewards, labels = normal(5, 4), torch.tensor([0, 1, 2, 3, 0])
        assert_close(fn.best_of_k_loss(rewards + 7, labels), fn.best_of_k_loss(rewards, labels))
        slope = gradient(lambda r: fn.best_of_k_loss(r, labels), rewards)
        assert_close(slope, gradient(lambda r: fn.best_of_k_loss(r, labels), rewards + 7))
        assert_close(slope.sum(1), torch.zeros(5, dtype=torch.float64))  # so a bias on all rewards gets no gradient

    def test_gradient_is_softmax_minus_one_hot(self):
        rewards, labels = normal(3, 4), torch.tensor([1, 3, 0])
        expected = (rewards.softmax(1) - F.one_hot(labels, 4)) / 3
        assert_close(gradient(lambda r: fn.best_of_k_loss(r, labels), rewards), expected)

    def test_two_candidates_give_the_logistic_pairwise_loss(self):
        rewards, labels = normal(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
        chosen, rejected = rewards.gather(1, labels[:, None]), rewards.gather(1, 1 - labels[:, None])
        assert_close(fn.best_of_k_loss(rewards, labels), -F.logsigmoid(chosen - rejected).mean())

    def test_masked_candidates_do_not_exist(self):
        rewards = f64([0.5, 99, 2, -1], [1, 2, 3, 4])
        mask, labels = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]), torch.tensor([3, 0])
        alone = [
            fn.best_of_k_loss(f64([0.5, 2, -1]), torch.tensor([2])),
            fn.best_of_k_loss(f64([1, 2]), torch.tensor([0])),
        ]
        assert_close(fn.best_of_k_loss(rewards, labels, mask=mask), sum(alone) / 2)

    def test_permuted_candidates_give_the_same_loss(self):
        rewards, labels, order = normal(4, 4), torch.tensor([0, 1, 2, 3]), torch.tensor([2, 0, 3, 1])
        moved = order.argsort()[labels]
        assert_close(fn.best_of_k_loss(rewards[:, order], moved), fn.best_of_k_loss(rewards, labels))

    @pytest.mark.parametrize(
        ("rewards", "labels", "mask", "message"),
        [
            (torch.zeros(2, 4), [0, 4], None, r"`labels` must lie in 0\.\.3 for K = 4 candidates, got 4"),
            (torch.zeros(2, 4), [-1, 0], None, r"`labels` must lie in 0\.\.3 .* got -1"),
            (torch.zeros(2, 4), [0.0, 1.0], None, "`labels` must hold integers, got dtype torch.float32"),
            (torch.zeros(2, 4), [[0], [1]], None, r"`labels` must have shape \(2,\) .* got \(2, 1\)"),
            (torch.zeros(2, 4), [0], None, r"`labels` must have shape \(2,\)"),
            (torch.zeros(4), [0], None, r"`rewards` must have the axes \[B, K\], got shape \(4,\)"),
            (torch.zeros(2, 1), [0, 0], None, "K >= 2 candidates per row to compare, got K = 1"),
            (
                torch.zeros(2, 2),
                [0, 1],
                [[1, 1], [1, 0]],
                "`labels` picks a candidate that `mask` says does not exist",
            ),
            (torch.zeros(2, 2), [0, 1], [1, 1], r"`mask` must have shape \(2, 2\)"),
        ],
    )
    def test_bad_input_is_refused(self, rewards, labels, mask, message):
        with pytest.raises(ValueError, match=message):
            fn.best_of_k_loss(rewards, torch.tensor(labels), mask=None if mask is None else torch.tensor(mask))


class TestRanking:
    def test_equal_rewards_cost_ln_2_whatever_k(self):
        for k in (2, 4, 9):
            loss = fn.ranking_loss(torch.full((3, k), 1.5), torch.arange(k).expand(3, k))
            assert loss.item() == pytest.approx(math.log(2), abs=1e-6)

    def test_hand_worked_number(self):
        # order 2, 0, 1: rewards 2, 0, 1; pairs with differences 2, 1, -1
        expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 3
        loss = fn.ranking_loss(f64([0, 1, 2]), torch.tensor([[2, 0, 1]]))
        assert loss.item() == pytest.approx(expected, abs=1e-12)

    def test_two_candidates_give_the_pairwise_loss(self):
        rewards, labels = normal(5, 2), torch.tensor([0, 1, 1, 0, 1])
        rankings = torch.stack([labels, 1 - labels], 1)
        assert_close(fn.ranking_loss(rewards, rankings), fn.best_of_k_loss(rewards, labels))

    def test_every_prompt_weighs_the_same_whatever_its_k(self):
        rewards = f64([0.3, -1, 2, 0.1], [1, 5, NAN, INF])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        rankings = torch.tensor([[2, 0, 3, 1], [0, 1, -1, 77]])  # what follows the ranked candidates is ignored
        alone = [
            fn.ranking_loss(rewards[:1], rankings[:1]),
            fn.ranking_loss(rewards[1:, :2], rankings[1:, :2]),
        ]
        assert_close(fn.ranking_loss(rewards, rankings, mask=mask), sum(alone) / 2)
        assert gradient(lambda r: fn.ranking_loss(r, rankings, mask=mask), rewards).isfinite().all()

    def test_candidates_may_be_missing_anywhere(self):
        rewards, mask, rankings = f64([NAN, 1, 4]), torch.tensor([[0, 1, 1]]), torch.tensor([[2, 1, 0]])
        assert_close(fn.ranking_loss(rewards, rankings, mask=mask), -F.logsigmoid(f64(3)).squeeze())
        slope = torch.sigmoid(f64(-3)).item()
        assert_close(gradient(lambda r: fn.ranking_loss(r, rankings, mask=mask), rewards), f64([0, slope, -slope]))

    def test_constant_added_to_all_rewards_changes_nothing(self):
        rewards, rankings = normal(2, 4), torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
        assert_close(fn.ranking_loss(rewards + 7, rankings), fn.ranking_loss(rewards, rankings))

    @pytest.mark.parametrize(
        ("rankings", "mask", "message"),
        [
            ([[0, 1, 1]], None, "`rankings` must name each existing candidate of its row exactly once"),
            ([[0, 1, 3]], None, r"indices in 0\.\.2, got 0\.\.3"),
            ([[0, -1, 2]], None, r"indices in 0\.\.2, got -1\.\.2"),
            ([[0, 1, 2]], [[1, 0, 1]], "must name each existing candidate"),
            ([[0, 1, 2]], [[0, 0, 1]], "fewer than 2 candidates"),
            ([[0.0, 1, 2]], None, "`rankings` must hold integers"),
            ([0, 1, 2], None, r"`rankings` must have shape \(1, 3\)"),
            ([[0, 1, 2]], [1, 1, 1], r"`mask` must have shape \(1, 3\)"),
        ],
    )
    def test_bad_ranking_is_refused(self, rankings, mask, message):
        with pytest.raises(ValueError, match=message):
            mask = None if mask is None else torch.tensor(mask)
            fn.ranking_loss(torch.zeros(1, 3), torch.tensor(rankings), mask=mask)

    def test_every_row_needs_two_candidates(self):
        with pytest.raises(ValueError, match="fewer than 2 candidates"):
            fn.ranking_loss(torch.zeros(2, 2), torch.tensor([[0, 1]] * 2), mask=torch.tensor([[1, 1], [1, 0]]))
        with pytest.raises(ValueError, match="K >= 2 candidates per row to compare, got K = 1"):
            fn.ranking_loss(torch.zeros(1, 1), torch.tensor([[0]]))


def reward_losses_numpy(rewards, rankings, scores, mask):
    """Best-of-K (the best is each ranking's first), ranking and scalar loss, one candidate at a time."""
    best, ranked, errors = [], [], []
    for b, ranking in enumerate(rankings):
        present = [k for k in range(len(ranking)) if mask[b, k]]
        order = ranking[: len(present)]
        best.append(np.log(sum(np.exp(rewards[b, k]) for k in present)) - rewards[b, order[0]])
        pairs = [(i, j) for n, i in enumerate(order) for j in order[n + 1 :]]
        ranked.append(np.mean([np.log1p(np.exp(rewards[b, j] - rewards[b, i])) for i, j in pairs]))
        errors += [(rewards[b, k] - scores[b, k]) ** 2 for k in present]
    return np.mean(best), np.mean(ranked), np.mean(errors)


@pytest.mark.parametrize("mask", [[[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1]], [[1] * 4] * 3])
def test_reward_losses_equal_numpy(mask):
    mask, scores = torch.tensor(mask), normal(3, 4, seed=1)
    rewards = torch.where(mask.bool(), 3 * normal(3, 4), NAN)
    rankings = [[3, 0, 2, 1], [2, 3, 1, 0], [3, 1, 0, 2]]
    best, ranked, error = reward_losses_numpy(rewards.numpy(), rankings, scores.numpy(), mask.numpy())
    rankings = torch.tensor(rankings)
    assert fn.best_of_k_loss(rewards, rankings[:, 0], mask=mask).item() == pytest.approx(best, rel=1e-12)
    assert fn.ranking_loss(rewards, rankings, mask=mask).item() == pytest.approx(ranked, rel=1e-12)
    assert fn.scalar_loss(rewards, scores, mask=mask).item() == pytest.approx(error, rel=1e-12)


def test_scalar_loss_is_the_mean_squared_error_over_present_candidates():
    rewards, scores = f64([1, 2], [0, NAN]), f64([0, 4], [-3, 1])
    mask = torch.tensor([[1, 1], [1, 0]])
    assert fn.scalar_loss(rewards, scores, mask=mask).item() == pytest.approx((1 + 4 + 9) / 3)
    assert gradient(lambda r: fn.scalar_loss(r, scores, mask=mask), rewards).tolist()[1] == [2.0, 0.0]
    assert fn.scalar_loss(rewards[:1], scores[:1]).item() == 2.5
    with pytest.raises(ValueError, match=r"`scores` must have shape \(2, 2\)"):
        fn.scalar_loss(rewards, scores[:1])
    with pytest.raises(ValueError, match=r"`rewards` must have the axes \[B, K\]"):
        fn.scalar_loss(rewards[0], scores[0])


def test_narrow_types_give_the_numbers_of_wide_ones():
    wide, labels, mask = normal(2, 3).bfloat16().float(), torch.tensor([2, 0]), torch.ones(2, 3)
    narrow, short = wide.bfloat16(), labels.to(torch.int16)
    for ours, expected in (
        (fn.best_of_k_loss(narrow, short, mask=mask), fn.best_of_k_loss(wide, labels)),
        (fn.token_logprobs(narrow, short), fn.token_logprobs(wide, labels)),
        (fn.apply_penalty(narrow[0], mask[0], -1), wide[0]),
    ):
        assert_close(ours, expected, rtol=0, atol=0)  # the type too


class TestGainAndBias:
    def test_hand_worked_number_uses_the_population_deviation(self):
        gain, bias = fn.gain_and_bias(f64(1, 3))  # the sample deviation would give 0.7071
        assert (gain.item(), bias.item()) == (1.0, -2.0)
        assert fn.gain_and_bias(f64(0, 1e-4))[0].item() == pytest.approx(2e4)

    def test_targets_are_reached(self):
        raw = 3 * normal(50) + 4
        gain, bias = fn.gain_and_bias(raw, target_mean=0.5, target_std=2.0)
        scores = gain * raw + bias
        assert_close((scores.mean(), scores.std(correction=0)), (f64(0.5)[0], f64(2.0)[0]))

    def test_scaled_head_leaves_the_normalised_reward_unchanged(self):
        raw = normal(20)
        (gain, bias), (gain3, bias3) = fn.gain_and_bias(raw), fn.gain_and_bias(3 * raw)
        assert_close(gain3 * 3 * raw + bias3, gain * raw + bias)

    @pytest.mark.parametrize(
        ("raw", "options", "message"),
        [
            ([0.1, 0.1, 0.1], {}, "at least two different values to be normalised, got 3 equal ones"),
            ([0.1, 0.1 + 1e-8, 0.1], {}, "got 3 equal ones"),
            ([1e-7, 2e-7], {}, "got 2 equal ones"),  # rounding is that of a sum of terms of order 1,
            ([-1000.0, -1000.005], {}, "got 2 equal ones"),  # and relative to larger scores
            ([], {}, "at least two different values"),
            ([1.0, NAN], {}, "must be finite"),
            ([1.0, 2.0], {"target_std": 0.0}, "`target_std` must be positive, got 0.0"),
            ([[1.0, 2.0]], {}, r"axes \[N\], got shape \(1, 2\)"),
        ],
    )
    def test_bad_scores_are_refused(self, raw, options, message):
        with pytest.raises(ValueError, match=message):
            fn.gain_and_bias(torch.tensor(raw), **options)


class TestTruncationAndPenalty:
    def cut(self, *positions: int, after: int = 16):
        response = torch.ones(1, 24, dtype=torch.long)
        response[0, list(positions)] = 13
        cut, valid = fn.truncate_after(response, 13, after, 50259)
        return response[0].tolist(), cut[0].tolist(), valid.tolist()

    def test_cut_is_after_the_first_token_that_counts(self):
        response, cut, valid = self.cut(15, 20, 22)
        assert cut == response[:21] + [50259] * 3
        assert valid == [True]

    def test_token_before_the_range_does_not_count(self):
        response, cut, valid = self.cut(15)
        assert (cut, valid) == (response, [False])

    def test_token_on_the_first_index_of_the_range_counts(self):
        response, cut, valid = self.cut(16)
        assert (cut, valid) == (response[:17] + [50259] * 7, [True])

    def test_token_at_the_end_is_valid_and_cuts_nothing(self):
        response, cut, valid = self.cut(23)
        assert (cut, valid) == (response, [True])

    def test_rows_are_cut_independently_and_the_input_is_kept(self):
        responses = torch.tensor([[9, 1, 9, 2], [1, 2, 3, 9], [1, 1, 1, 1]])
        cut, valid = fn.truncate_after(responses, 9, 0, -1)
        assert cut.tolist() == [[9, -1, -1, -1], [1, 2, 3, 9], [1, 1, 1, 1]]
        assert valid.tolist() == [True, True, False]
        assert responses[0].tolist() == [9, 1, 9, 2]

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"axes \[B, T\]"):
            fn.truncate_after(torch.zeros(4), 9, 0, -1)
        with pytest.raises(ValueError, match="`after` must be an index >= 0 into the response, got -1"):
            fn.truncate_after(torch.zeros(1, 4), 9, -1, -1)

    def test_penalty_replaces_the_score(self):
        scores, valid = torch.tensor([3.2, -5.0, 3.2, -5.0]), torch.tensor([False, False, True, True])
        assert_close(fn.apply_penalty(scores, valid, -1), torch.tensor([-1.0, -1.0, 3.2, -5.0]))
        with pytest.raises(ValueError, match=r"`valid` must have shape \(4,\)"):
            fn.apply_penalty(scores, valid[:, None], -1)
        with pytest.raises(ValueError, match=r"`scores` must have the axes \[B\]"):
            fn.apply_penalty(scores[None], valid[None], -1)


class TestTokenLogprobsAndEntropy:
    def test_hand_worked_numbers_at_half_temperature(self):
        logits = torch.tensor([[[0.0, math.log(2), 0.0]]])  # at temperature 0.5: probabilities 1/6, 4/6, 1/6
        logprobs, entropy = fn.token_logprobs_and_entropy(logits, torch.tensor([[1]]), temperature=0.5)
        assert logprobs.item() == pytest.approx(math.log(4 / 6), abs=1e-6)
        assert entropy.item() == pytest.approx(math.log(6) / 3 + math.log(1.5) * 2 / 3, abs=1e-6)

    def test_probabilities_sum_to_one_at_any_temperature(self):
        logits = normal(2, 1, 5).expand(2, 5, 5)
        tokens = torch.arange(5).expand(2, 5)
        for temperature in (0.5, 1.0, 2.0):
            logprobs, _ = fn.token_logprobs_and_entropy(logits, tokens, temperature=temperature)
            assert_close(logprobs.exp().sum(1), torch.ones(2, dtype=torch.float64))

    def test_equals_torch_distributions(self):
        logits, tokens = normal(3, 4, 7), torch.randint(7, (3, 4), generator=torch.Generator().manual_seed(0))
        logprobs, entropy = fn.token_logprobs_and_entropy(logits, tokens, temperature=0.7)
        expected = torch.distributions.Categorical(logits=logits / 0.7)
        assert_close((logprobs, entropy), (expected.log_prob(tokens), expected.entropy()))

    def test_gradient_is_one_hot_minus_softmax_over_temperature(self):
        logits, tokens = normal(1, 2, 3), torch.tensor([[0, 2]])
        for temperature in (1.0, 0.5):
            slope = gradient(
                lambda z, t=temperature: fn.token_logprobs_and_entropy(z, tokens, temperature=t)[0].sum(), logits
            )
            assert_close(slope, (F.one_hot(tokens, 3) - (logits / temperature).softmax(-1)) / temperature)

    def test_banned_token_leaves_a_finite_entropy_and_nan_shows(self):
        _, entropy = fn.token_logprobs_and_entropy(torch.tensor([[[0.0, 0.0, -INF]]]), torch.tensor([[0]]))
        assert entropy.item() == pytest.approx(math.log(2))
        logprobs, entropy = fn.token_logprobs_and_entropy(torch.tensor([[[0.0, NAN]]]), torch.tensor([[0]]))
        assert logprobs.isnan().all() and entropy.isnan().all()

    def test_half_precision_logits_are_computed_in_float32(self):
        logits, tokens = normal(2, 3, 50).bfloat16(), torch.full((2, 3), 4)
        logprobs, entropy = fn.token_logprobs_and_entropy(logits, tokens, temperature=0.7)
        expected = fn.token_logprobs_and_entropy(logits.float(), tokens, temperature=0.7)
        assert logprobs.dtype == entropy.dtype == torch.float32
        assert_close((logprobs, entropy), expected, rtol=0, atol=0)

    def test_chunks_of_rows_give_what_one_pass_gives(self, monkeypatch):
        """A chunk of two rows and a rest of one; a chunk smaller than a row."""
        logits, tokens = normal(1, 5, 4), torch.tensor([[3, 0, 2, 1, 1]])

        def with_slope(elements):
            monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", elements)
            given = logits.clone().requires_grad_()
            logprobs, entropy = fn.token_logprobs_and_entropy(given, tokens, temperature=0.7)
            (logprobs * torch.arange(5)).sum().backward()
            return logprobs.detach(), entropy, given.grad

        whole = with_slope(1000)
        assert_close(with_slope(9), whole, rtol=0, atol=0)
        assert_close(with_slope(1), whole, rtol=0, atol=0)

    def test_large_logits_do_not_overflow(self):
        logits = f64([1000, 999], [-1000, -1000])[None]
        logprobs, entropy = fn.token_logprobs_and_entropy(logits, torch.tensor([[0, 1]]))
        assert_close(logprobs, f64([-math.log1p(math.exp(-1)), -math.log(2)]))
        assert entropy[0, 1].item() == pytest.approx(math.log(2))

    def test_entropy_carries_no_gradient_and_logits_are_kept(self):
        logits = normal(1, 2, 3).requires_grad_()
        before = logits.detach().clone()
        logprobs, entropy = fn.token_logprobs_and_entropy(logits, torch.tensor([[0, 1]]))
        assert logprobs.requires_grad and not entropy.requires_grad
        assert torch.equal(logits, before)

    def test_bad_input_is_refused(self):
        logits = torch.zeros(2, 3, 5)
        with pytest.raises(ValueError, match=r"`tokens` must have shape \(2, 3\) .* got \(2, 1\)"):
            fn.token_logprobs_and_entropy(logits, torch.zeros(2, 1, dtype=torch.long))
        with pytest.raises(ValueError, match="`temperature` must be positive, got 0"):
            fn.token_logprobs_and_entropy(logits, torch.zeros(2, 3, dtype=torch.long), temperature=0)
        with pytest.raises(ValueError, match="`tokens` must hold integers"):
            fn.token_logprobs_and_entropy(logits, torch.zeros(2, 3))


class TestKLEntropyRewards:
    scores = f64(10, 20)
    logprobs = f64([-1, -2, -3], [-4, -5, -6])
    ref_logprobs = f64([-2, -2, -1], [-4, -8, NAN])

    def test_hand_worked_numbers_without_a_mask(self):
        ref = f64([-2, -2, -1], [-4, -8, -6])
        out = fn.kl_entropy_rewards(self.scores, self.logprobs, ref, 0.5)
        assert_close(out.kl_reward, f64([-0.5, 0, 1], [0, -1.5, 0]))
        assert_close(out.entropy_bonus, f64([0.5, 1, 1.5], [2, 2.5, 3]))
        assert_close(out.rewards, f64([-0.5, 0, 11], [0, -1.5, 20]))
        assert_close(out.rewards.sum(1), self.scores - 0.5 * (self.logprobs - ref).sum(1))

    def test_score_lands_on_the_last_masked_token(self):
        mask = torch.tensor([[1, 0, 0], [1, 1, 0]])
        out = fn.kl_entropy_rewards(self.scores, self.logprobs, self.ref_logprobs, 0.5, mask=mask)
        assert_close(out.kl_reward, f64([-0.5, 0, 0], [0, -1.5, 0]))
        assert_close(out.entropy_bonus, f64([0.5, 0, 0], [2, 2.5, 0]))
        assert_close(out.rewards, f64([9.5, 0, 0], [0, 18.5, 0]))

    def test_bonus_is_the_part_of_the_kl_reward_that_the_reference_does_not_cause(self):
        out = fn.kl_entropy_rewards(self.scores, self.logprobs, self.ref_logprobs[:, :2].repeat(1, 2)[:, :3], 0.3)
        assert_close(out.kl_reward - out.entropy_bonus, 0.3 * self.ref_logprobs[:, :2].repeat(1, 2)[:, :3])

    def test_signs(self):
        base = fn.kl_entropy_rewards(self.scores, self.logprobs, self.logprobs, 0.1).rewards.sum()
        better = fn.kl_entropy_rewards(self.scores + 1, self.logprobs, self.logprobs, 0.1).rewards.sum()
        farther = fn.kl_entropy_rewards(self.scores, self.logprobs + 1, self.logprobs, 0.1).rewards.sum()
        assert better > base > farther

    def test_bad_input_is_refused(self):
        with pytest.raises(ValueError, match=r"`scores` must have shape \(2,\)"):
            fn.kl_entropy_rewards(self.scores[:, None], self.logprobs, self.logprobs, 0.1)
        with pytest.raises(ValueError, match=r"`ref_logprobs` must have shape \(2, 3\)"):
            fn.kl_entropy_rewards(self.scores, self.logprobs, self.logprobs[:1], 0.1)
        with pytest.raises(ValueError, match=r"`mask` must have shape \(2, 3\)"):
            fn.kl_entropy_rewards(self.scores, self.logprobs, self.logprobs, 0.1, mask=torch.ones(1, 3))
        with pytest.raises(ValueError, match=r"`logprobs` must have the axes \[B, T\]"):
            fn.kl_entropy_rewards(self.scores[0], self.scores, self.scores, 0.1)
        with pytest.raises(ValueError, match="`mask` is false throughout row 1"):
            fn.kl_entropy_rewards(self.scores, self.logprobs, self.logprobs, 0.1, mask=prefix_mask([1, 0], 3))


def test_logprobs_alone_are_those_with_the_entropy():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 4], [2, 2, 3]])
    assert torch.equal(
        fn.token_logprobs(logits, tokens, temperature=0.5),
        fn.token_logprobs_and_entropy(logits, tokens, temperature=0.5)[0],
    )
