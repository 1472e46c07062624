"""Metrics against numbers worked out by hand, exact enumeration and known intervals."""

import math

import numpy as np
import pytest
import torch

from trl_ziegler.metrics import (
    BestOfKAccuracy,
    WinRate,
    exact_frontier,
    frontier_fraction,
    optimum_at,
    sampled_frontier,
    wilson_interval,
)
from trl_ziegler.metrics.best_of_k import chance_of_at_most


class TestBestOfKAccuracy:
    @pytest.fixture
    def metric(self, tmp_path):
        return BestOfKAccuracy(cache_dir=str(tmp_path))

    def test_ragged_records_by_hand(self, metric):
        result = metric.compute(predictions=[[0.1, 0.9], [3.0, 1.0, 2.0, 0.0], [5.0, 4.0]], references=[1, 2, 0])
        assert result["accuracy"] == pytest.approx(2 / 3)
        assert result["chance"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 2) / 3)
        assert (result["n"], result["ties"]) == (3, 0)

    def test_wilson_interval_by_hand(self):
        # 8 of 10: centre (0.8 + 1.92073/10) / 1.384146 = 0.716739, half 1.416123 * sqrt(0.016 + 0.0096037) = 0.226594
        assert wilson_interval(0.8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
        assert wilson_interval(1.0, 4) == pytest.approx((4 / (4 + 1.959964**2), 1.0), abs=1e-6)
        assert wilson_interval(0.0, 4)[0] == 0.0

    def test_chance_of_at_most_by_hand(self):
        # Two coins: 1/4, 3/4, 1. Of four guesses among four, at most one right: (81 + 4 * 27) / 256.
        assert [chance_of_at_most(share, 2, 0.5) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.25, 0.75, 1.0])
        assert chance_of_at_most(0.25, 4, 0.25) == pytest.approx(189 / 256)
        assert chance_of_at_most(0.49, 4, 0.25) == pytest.approx(189 / 256)  # 1.96 of 4 is one, no two
        assert chance_of_at_most(0.2, 5000, 0.25) == pytest.approx(3.479161680542674e-17)  # with whole numbers

    def test_interval_of_the_result_is_wilsons(self, metric):
        result = metric.compute(predictions=[[1.0, 0.0]] * 10, references=[0] * 8 + [1] * 2)
        assert (result["low"], result["high"]) == wilson_interval(0.8, 10)

    @pytest.mark.parametrize("label", [0, 3])
    def test_equal_scores_stand_at_chance_wherever_the_label_lies(self, metric, label):
        result = metric.compute(predictions=[[1.0] * 4] * 6, references=[label] * 6)
        assert result["accuracy"] == result["chance"] == 0.25
        assert result["ties"] == 6

    def test_a_tie_of_two_counts_half_if_it_holds_the_label(self, metric):
        result = metric.compute(predictions=[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]], references=[1, 2])
        assert (result["accuracy"], result["ties"]) == (0.25, 2)

    def test_random_scores_stand_at_chance(self, metric):
        rng = np.random.default_rng(0)
        result = metric.compute(predictions=rng.normal(size=(10_000, 4)), references=rng.integers(4, size=10_000))
        assert result["accuracy"] == pytest.approx(0.25, abs=0.02)

    @pytest.mark.parametrize(
        ("predictions", "references", "message"),
        [
            ([[1.0, 2.0], [1.0, 2.0]], [0, 2], r"references\[1\] is 2: a label must lie in 0..1"),
            ([[1.0, 2.0]], [-1], r"references\[0\] is -1"),
            ([[1.0]], [0], r"predictions\[0\] has 1 scores"),
            ([[1.0, math.nan]], [0], r"predictions\[0\] is \[1.0, nan\]: a score must be finite"),
            ([], [], "`predictions` is empty"),
        ],
    )
    def test_wrong_input_is_named(self, metric, predictions, references, message):
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=predictions, references=references)

    def test_batches_add_up_and_the_metric_survives_a_refusal(self, tmp_path):
        metric = BestOfKAccuracy(cache_dir=str(tmp_path), keep_in_memory=True)  # a refusal would hold the file's lock
        with pytest.raises(ValueError, match="a label must lie"):
            metric.compute(predictions=[[1.0, 2.0]], references=[7])
        metric.add_batch(predictions=torch.tensor([[1.0, 0.0]]), references=torch.tensor([0]))
        metric.add_batch(predictions=[[0.0, 1.0, 0.5]], references=[2])
        result = metric.compute()
        assert (result["accuracy"], result["n"]) == (0.5, 2)

    def test_nothing_is_written_outside_the_cache(self, tmp_path, monkeypatch):
        home, cache = tmp_path / "home", tmp_path / "cache"
        home.mkdir()
        monkeypatch.chdir(home)
        BestOfKAccuracy(cache_dir=str(cache)).compute(predictions=[[1.0, 0.0]], references=[0])
        assert list(home.iterdir()) == []
        assert [p.name for p in cache.rglob("*.arrow")] == []

    def test_docstring_example(self, metric):
        assert metric.compute(predictions=[[0.1, 0.9], [0.3, 0.2, 0.7]], references=[1, 0])["accuracy"] == 0.5


class TestWinRate:
    @pytest.fixture
    def metric(self, tmp_path):
        return WinRate(cache_dir=str(tmp_path))

    def test_ties_count_half(self, metric):
        result = metric.compute(predictions=[2.0, 1.0, 0.0, 3.0], references=[1.0, 1.0, 1.0, 1.0])
        assert (result["value"], result["n"], result["ties"]) == (0.625, 4, 1)

    def test_swapping_the_models_mirrors_the_value(self, metric):
        rng = np.random.default_rng(1)
        a, b = rng.integers(4, size=200).astype(float), rng.integers(4, size=200).astype(float)
        ours = metric.compute(predictions=a, references=b)["value"]
        assert metric.compute(predictions=b, references=a)["value"] == pytest.approx(1 - ours)

    def test_interval_is_that_of_resampled_queries(self, metric):
        a, b = np.array([1.0] * 70 + [0.0] * 20 + [0.5] * 10), np.full(100, 0.5)
        result = metric.compute(predictions=a, references=b, resamples=20_000)
        outcomes = (a > b) + 0.5 * (a == b)
        rows = np.random.default_rng(5).integers(100, size=(20_000, 100))
        low, high = np.quantile(outcomes[rows].mean(axis=1), [0.025, 0.975])
        assert (result["low"], result["high"]) == pytest.approx((low, high), abs=0.006)

    def test_interval_is_reproducible_and_moves_with_the_seed(self, metric):
        rng = np.random.default_rng(2)
        a, b = rng.normal(size=997), rng.normal(size=997)
        first, again, other = (metric.compute(predictions=a, references=b, seed=s, resamples=1000) for s in (0, 0, 1))
        assert first == again
        assert first["low"] != other["low"]

    def test_interval_covers_the_truth_about_95_times_in_100(self, metric):
        rng, hits = np.random.default_rng(3), 0
        for seed in range(100):
            result = metric.compute(
                predictions=(rng.random(200) < 0.7).astype(float), references=[0.5] * 200, seed=seed, resamples=1000
            )
            hits += result["low"] <= 0.7 <= result["high"]
        assert 88 <= hits <= 100

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"predictions": [], "references": []}, "`predictions` is empty"),
            ({"predictions": [1.0], "references": [math.inf]}, r"references\[0\] is inf: a score must be finite"),
            ({"predictions": [1.0], "references": [0.0], "resamples": 10}, "`resamples` is 10"),
            ({"predictions": [1.0, 2.0], "references": [0.0]}, "Mismatch in the number of predictions"),
        ],
    )
    def test_wrong_input_is_named(self, metric, arguments, message):
        with pytest.raises(ValueError, match=message):
            metric.compute(**arguments)


PROBS, REWARDS = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0])


class TestExactFrontier:
    def test_two_outcomes_by_hand(self):
        # w = (1, e^ln3) = (1, 3), pi* = (1/4, 3/4): reward 3/4, KL = 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812
        curve = exact_frontier([0.5, 0.5], [0.0, 1.0], [1 / math.log(3)])
        assert curve.reward[0] == pytest.approx(0.75)
        assert curve.kl[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))

    def test_infinite_beta_is_the_reference_and_zero_beta_the_best_outcome(self):
        curve = exact_frontier(PROBS, REWARDS, [math.inf, 1e-6])
        assert curve.kl == pytest.approx([0.0, -math.log(0.2)])
        assert curve.reward == pytest.approx([0.7, 2.0])

    def test_no_policy_lies_above_the_curve(self):
        curve = exact_frontier(PROBS, REWARDS, np.geomspace(0.05, 100, 200))
        policies = np.random.default_rng(0).dirichlet([1, 1, 1], size=500)
        kl = (policies * np.log(policies / PROBS)).sum(axis=1)
        within = kl < curve.kl.max()
        best = np.interp(kl[within], curve.kl[::-1], curve.reward[::-1])
        assert ((policies @ REWARDS)[within] <= best + 1e-3).all()
        assert within.sum() > 300

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0.5, 0.6], [0.0, 1.0], [1.0]), "must be positive and sum to 1"),
            (([1.0, 0.0], [0.0, 1.0], [1.0]), "must be positive and sum to 1"),
            (([0.5, 0.5], [0.0, 1.0, 2.0], [1.0]), "vectors of one length"),
            (([0.5, 0.5], [0.0, 1.0], [0.0]), "`betas` is \\[0.0\\]: give a list of positive"),
        ],
    )
    def test_wrong_input_is_named(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            exact_frontier(*arguments)


class TestSampledFrontier:
    def test_agrees_with_enumeration_on_a_toy_of_three_outcomes(self):
        samples = np.random.default_rng(0).choice(REWARDS, p=PROBS, size=(40, 5000))
        betas = [math.inf, 3.0, 1.0, 0.5, 0.2]
        sampled, exact = sampled_frontier(samples, betas), exact_frontier(PROBS, REWARDS, betas)
        assert sampled.reward == pytest.approx(exact.reward, abs=0.01)
        assert sampled.kl == pytest.approx(exact.kl, abs=0.01)
        assert sampled.trusted.all()

    def test_is_averaged_over_queries_after_weighting_within_each(self):
        # One query of rewards (0, ln 3) and one of (10, 10): at beta 1 the first has w = (1, 3), the second w equal.
        curve = sampled_frontier([[0.0, math.log(3)], [10.0, 10.0]], [1.0])
        assert curve.reward[0] == pytest.approx((0.75 * math.log(3) + 10) / 2)
        assert curve.kl[0] == pytest.approx((0.75 * math.log(3) - math.log(2)) / 2)
        assert curve.effective_samples[0] == pytest.approx((16 / 10 + 2) / 2)

    def test_infinite_beta_gives_no_kl_and_the_mean_reward(self):
        curve = sampled_frontier([[1.0, 2.0, 6.0], [0.0, 1.0, 2.0]], [math.inf])
        assert (curve.kl[0], curve.reward[0]) == pytest.approx((0.0, 2.0))
        assert curve.effective_samples[0] == pytest.approx(3.0)

    def test_curve_rises_and_bends_down(self):
        curve = sampled_frontier(np.random.default_rng(1).normal(size=(5, 2000)), np.geomspace(10, 0.4, 40))
        slopes = np.diff(curve.reward) / np.diff(curve.kl)
        assert (np.diff(curve.kl) > 0).all()
        assert (slopes > 0).all()
        assert (np.diff(slopes) < 0).all()

    def test_slope_of_the_curve_is_beta(self):
        betas = np.linspace(1.0, 1.02, 3)
        curve = sampled_frontier(np.random.default_rng(1).normal(size=(5, 2000)), betas)
        assert np.diff(curve.reward) / np.diff(curve.kl) == pytest.approx([1.005, 1.015], abs=1e-3)

    def test_tiny_beta_and_large_rewards_stay_finite(self):
        curve = sampled_frontier([[1e4, -1e4, 0.0, 5.0]], [1e-6])
        assert (curve.reward[0], curve.kl[0]) == pytest.approx((1e4, math.log(4)))

    def test_shifting_the_rewards_shifts_the_curve_only(self):
        samples = np.random.default_rng(2).normal(size=(3, 50))
        plain, shifted = sampled_frontier(samples, [0.5, 2.0]), sampled_frontier(samples + 100, [0.5, 2.0])
        assert shifted.kl == pytest.approx(plain.kl)
        assert shifted.reward == pytest.approx(plain.reward + 100)

    def test_points_with_few_effective_samples_are_not_trusted(self):
        curve = sampled_frontier(np.random.default_rng(3).normal(size=(4, 400)), [math.inf, 1.0, 0.05])
        assert curve.trusted.tolist() == [True, True, False]

    def test_points_resting_on_one_outlier_are_not_trusted_at_a_small_kl_either(self):
        samples = np.zeros((4, 1000))
        samples[:, 0] = 1.0
        curve = sampled_frontier(samples, [1 / math.log(1000)])  # the outlier weighs as much as all others together
        assert curve.effective_samples[0] == pytest.approx(1999**2 / (1000**2 + 999))
        assert curve.kl[0] < math.log(1000 / 20)
        assert not curve.trusted[0]

    def test_rows_are_ready_for_json(self):
        rows = sampled_frontier([[1.0, 1.0]], [2.0]).rows()
        assert rows == [
            {"beta": 2.0, "kl": pytest.approx(0.0), "reward": 1.0, "effective_samples": pytest.approx(2.0)}
        ]
        assert type(rows[0]["reward"]) is float

    @pytest.mark.parametrize(
        ("rewards", "message"), [([1.0, 2.0], r"shape \(2,\)"), ([[1.0, math.nan]], r"rewards\[0, 1\] is nan")]
    )
    def test_wrong_input_is_named(self, rewards, message):
        with pytest.raises(ValueError, match=message):
            sampled_frontier(rewards, [1.0])


class TestOptimumAt:
    def test_normal_rewards_follow_the_closed_form(self):
        # For r ~ N(0, 1) under rho, pi* is N(1/beta, 1): reward 1/beta, KL 1/(2 beta^2), so r*(KL) = sqrt(2 KL).
        best = optimum_at(np.random.default_rng(0).normal(size=(50, 4000)), 0.5)
        assert best.reward == pytest.approx(1.0, abs=0.02)
        assert best.beta == pytest.approx(1.0, abs=0.02)
        assert best.reason is None

    def test_lies_on_the_sampled_curve(self):
        samples = np.random.default_rng(1).normal(size=(6, 500))
        best = optimum_at(samples, 1.0)
        curve = sampled_frontier(samples, [best.beta])
        assert (curve.kl[0], curve.reward[0]) == pytest.approx((1.0, best.reward))
        assert best.effective_samples == pytest.approx(curve.effective_samples[0])

    @pytest.mark.parametrize("kl", [0.0, -0.02])
    def test_no_kl_is_the_reference(self, kl):
        best = optimum_at([[float(i) for i in range(40)]], kl)
        assert (best.reward, best.beta) == (pytest.approx(19.5), math.inf)

    def test_too_few_samples_for_the_kl_are_refused_with_the_number_needed(self):
        samples = np.array([[0.0] * 80 + [1.0] * 20])
        assert optimum_at(samples, 1.6).reward is not None  # 20 e^1.6 = 99.06
        best = optimum_at(samples, 1.62)  # 20 e^1.62 = 101.06
        assert best.reward is None
        assert best.reason == "100 samples a query are too few for a KL of 1.62 nats: 101 are needed."

    def test_few_effective_samples_are_refused(self):
        # One outlier among 1000 samples takes most of the weight at a KL that 1000 samples would otherwise allow.
        samples = np.random.default_rng(3).normal(size=(10, 1000))
        samples[:, 0] = 1000.0
        best = optimum_at(samples, 3.0)
        assert best.reward is None
        assert "mean effective sample size" in best.reason
        assert best.effective_samples < 20

    def test_equal_rewards_have_no_frontier(self):
        best = optimum_at(np.ones((3, 400)), 1.0)
        assert best.reward is None
        assert "vary too little" in best.reason

    def test_a_kl_that_is_not_finite_is_refused(self):
        with pytest.raises(ValueError, match="`kl` is nan"):
            optimum_at([[1.0, 2.0]], math.nan)

    def test_a_huge_kl_is_refused_without_overflow(self):
        assert optimum_at([[1.0, 2.0]], 1000.0).reward is None


class TestFrontierFraction:
    def test_by_hand(self):
        assert frontier_fraction(reached=2.0, baseline=1.0, optimum=3.0) == 0.5
        assert frontier_fraction(reached=1.0, baseline=1.0, optimum=3.0) == 0.0
        assert frontier_fraction(reached=0.0, baseline=1.0, optimum=3.0) == -0.5

    @pytest.mark.parametrize("optimum", [None, 1.0, 0.5])
    def test_is_absent_where_nothing_was_to_gain(self, optimum):
        assert frontier_fraction(reached=2.0, baseline=1.0, optimum=optimum) is None
