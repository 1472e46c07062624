"""The length-controlled win rate against planted judges, closed forms and resampled pairs."""

import math

import numpy as np
import pytest

from trl_ziegler.metrics import LengthControlledWinRate, WinRate, length_control
from trl_ziegler.metrics.length_control import logistic_fit

NAMES = ("predictions", "references", "prediction_lengths", "reference_lengths")


@pytest.fixture
def metric(tmp_path):
    return LengthControlledWinRate(cache_dir=str(tmp_path), keep_in_memory=True)


def pairs(wins, log_ratio, base=40.0):
    """What `compute` takes for outcomes (1, 1/2 or 0 for model A) at the given log length ratios."""
    wins = np.asarray(wins, dtype=float)
    lengths = base * np.exp(np.asarray(log_ratio, dtype=float))
    return {
        "predictions": wins,
        "references": np.full(len(wins), 0.5),
        "prediction_lengths": lengths,
        "reference_lengths": np.full(len(wins), base),
    }


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


class TestPlantedJudges:
    def test_judge_of_length_alone_stands_at_one_half(self, metric):
        ratios = np.random.default_rng(0).normal(0.25, 0.3, size=(20, 500))
        fits = np.array([logistic_fit(x, (x > 0).astype(float), np.ones((1, 500)))[0] for x in ratios])
        assert np.mean(sigmoid(fits[:, 0])) == pytest.approx(0.5, abs=0.04)
        result = metric.compute(**pairs(ratios[0] > 0, ratios[0]))
        assert result["value"] == pytest.approx(sigmoid(fits[0, 0]))
        assert result["value"] == pytest.approx(0.5, abs=0.1)
        assert result["plain"] > 0.75
        assert result["length_effect"] > 10

    def test_noisy_judge_of_length_alone_stands_at_one_half(self, metric):
        rng = np.random.default_rng(0)
        ratio = rng.normal(0.4, 0.4, size=1500)
        result = metric.compute(**pairs(rng.random(1500) < sigmoid(4 * ratio), ratio))
        assert result["plain"] > 0.7
        assert result["low"] < 0.5 < result["high"]
        assert result["length_effect"] == pytest.approx(4, abs=0.6)

    def test_judge_of_quality_alone_gives_the_plain_rate(self, metric):
        rng = np.random.default_rng(1)
        ratio = rng.normal(0.2, 0.3, size=2000)
        result = metric.compute(**pairs(rng.random(2000) < 0.7, ratio))
        assert result["value"] == pytest.approx(result["plain"], abs=0.015)
        assert result["length_effect"] == pytest.approx(0, abs=0.4)

    def test_judge_of_both_gives_the_rate_at_equal_length(self, metric):
        rng = np.random.default_rng(2)
        ratio = rng.normal(-0.3, 0.4, size=2000)
        result = metric.compute(**pairs(rng.random(2000) < sigmoid(0.8 + 2 * ratio), ratio))
        assert result["plain"] < 0.6
        assert result["value"] == pytest.approx(sigmoid(0.8), abs=0.04)
        assert result["low"] < sigmoid(0.8) < result["high"]


class TestByHand:
    def test_two_ratios(self, metric):
        # Twice as long A wins 3 of 4, half as long 2 of 4: logits a + b ln 2 = ln 3 and a - b ln 2 = 0, so that
        # a = ln(3) / 2 and P = sqrt(3) / (1 + sqrt(3)) = 0.634.
        wins, ratio = [1, 1, 1, 0] * 100 + [1, 1, 0, 0] * 100, [math.log(2)] * 400 + [-math.log(2)] * 400
        result = metric.compute(**pairs(wins, ratio))
        assert result["value"] == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)), abs=1e-3)
        assert result["length_effect"] == pytest.approx(math.log(3) / (2 * math.log(2)), abs=1e-2)
        assert (result["plain"], result["n"], result["ties"], result["reason"]) == (5 / 8, 800, 0, None)
        assert result["length_ratio"] == pytest.approx(1.0)

    def test_ties_count_half(self, metric):
        ratio = [math.log(2)] * 400 + [-math.log(2)] * 400
        tied = metric.compute(**pairs([1, 1, 0.5, 0.5] * 100 + [0.5] * 400, ratio))
        split = metric.compute(**pairs([1, 1, 1, 0] * 100 + [1, 0] * 200, ratio))
        assert tied["value"] == pytest.approx(split["value"])
        assert (tied["plain"], tied["ties"]) == (5 / 8, 600)

    def test_equal_lengths_need_no_control(self, metric, tmp_path):
        rng = np.random.default_rng(3)
        arguments = pairs(rng.choice([0, 0.5, 1], p=[0.3, 0.1, 0.6], size=400), np.zeros(400))
        result = metric.compute(**arguments)
        scores = {key: arguments[key] for key in ("predictions", "references")}
        plain = WinRate(cache_dir=str(tmp_path)).compute(**scores)
        for key in ("value", "low", "high"):
            assert result[key] == pytest.approx(plain[key], abs=0.01)
        assert result["plain"] == plain["value"]
        assert result["length_effect"] == pytest.approx(0)

    def test_exchanging_the_models_mirrors_the_value(self, metric):
        rng = np.random.default_rng(4)
        a, b = rng.normal(0.3, 1, size=(2, 500))
        long, short = rng.integers(20, 80, size=500), rng.integers(20, 60, size=500)
        ours = metric.compute(**dict(zip(NAMES, (a, b, long, short), strict=True)))
        theirs = metric.compute(**dict(zip(NAMES, (b, a, short, long), strict=True)))
        assert theirs["value"] == pytest.approx(1 - ours["value"])
        assert theirs["length_effect"] == pytest.approx(ours["length_effect"])
        assert theirs["length_ratio"] == pytest.approx(1 / ours["length_ratio"])
        assert (theirs["low"], theirs["high"]) == pytest.approx((1 - ours["high"], 1 - ours["low"]))

    def test_the_unit_of_length_does_not_matter(self, metric):
        rng = np.random.default_rng(5)
        wins, ratio = rng.random(200) < 0.6, rng.normal(size=200)
        first, second = (metric.compute(**pairs(wins, ratio, base=base)) for base in (1.0, 700.0))
        assert first["value"] == pytest.approx(second["value"])

    def test_docstring_example(self, metric):
        wins, ratio = [1] * 6 + [0] * 2 + [1] + [0] * 3, [math.log(2)] * 8 + [-math.log(2)] * 4
        result = metric.compute(**pairs(wins, ratio))
        assert (round(result["plain"], 2), round(result["value"], 2)) == (0.58, 0.5)


class TestOverlap:
    @pytest.mark.parametrize("sign", [1, -1])
    def test_no_rate_where_one_model_is_nearly_always_longer(self, metric, sign):
        ratio = sign * np.array([0.5] * 96 + [-0.5] * 4)
        result = metric.compute(**pairs([1, 0] * 50, ratio))
        assert [result[key] for key in ("value", "low", "high", "length_effect")] == [None] * 4
        assert "longer one in 96.0% of the pairs" in result["reason"]
        assert (result["plain"], result["n"]) == (0.5, 100)

    def test_a_twentieth_on_the_other_side_is_enough_and_equal_lengths_count(self, metric):
        for rest in (-0.5, 0.0):
            assert metric.compute(**pairs([1, 0] * 50, [0.5] * 95 + [rest] * 5))["value"] is not None


class TestBootstrap:
    def test_interval_is_that_of_resampled_queries(self, metric):
        rng = np.random.default_rng(6)
        ratio = rng.normal(0.2, 0.4, size=200)
        wins = (rng.random(200) < sigmoid(0.5 + ratio)).astype(float)
        result = metric.compute(**pairs(wins, ratio), resamples=4000)
        rates = []
        for _ in range(1000):
            rows = rng.integers(200, size=200)
            rates.append(sigmoid(logistic_fit(ratio[rows], wins[rows], np.ones((1, 200)))[0, 0]))
        assert (result["low"], result["high"]) == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])), abs=0.012)

    def test_interval_is_reproducible_moves_with_the_seed_and_not_with_the_memory(self, metric, monkeypatch):
        rng = np.random.default_rng(7)
        arguments = pairs(rng.random(300) < 0.6, rng.normal(size=300))
        first, again, other = (metric.compute(**arguments, seed=seed) for seed in (0, 0, 1))
        assert first == again
        assert first["low"] != other["low"]
        monkeypatch.setattr(length_control, "_BLOCK", 10_000)
        assert metric.compute(**arguments) == pytest.approx(first)


class TestLogisticFit:
    def test_gradient_of_the_posterior_vanishes(self):
        rng = np.random.default_rng(8)
        x, y, weights = rng.normal(size=60), rng.random(60), rng.integers(3, size=(5, 60))
        fits = logistic_fit(x, y, weights)
        for (a, b), w in zip(fits, weights, strict=True):
            error = w * (y - sigmoid(a + b * x))
            assert (error.sum(), error @ x) == pytest.approx((a / 100, b / 100), abs=1e-6)

    def test_weights_are_repetitions(self):
        x, y = np.array([-1.0, 0.5, 2.0]), np.array([0.0, 1.0, 0.5])
        repeated = logistic_fit(np.repeat(x, [2, 1, 3]), np.repeat(y, [2, 1, 3]), np.ones((1, 6)))
        assert logistic_fit(x, y, np.array([[2, 1, 3]])) == pytest.approx(repeated)

    @pytest.mark.parametrize(
        ("x", "y"),
        [
            ([1e3, -1e3, 5.0], [1, 0, 1]),
            ([0.0] * 4, [1] * 4),
            ([9.0] * 50 + [-9.0], [1] * 50 + [0]),
            ([1e-9, 3.0], [0, 1]),
        ],
    )
    def test_separated_and_extreme_data_have_a_finite_fit(self, x, y):
        assert np.isfinite(logistic_fit(np.array(x), np.array(y, dtype=float), np.ones((1, len(x))))).all()

    def test_a_start_from_which_full_newton_steps_run_away_changes_nothing(self):
        x, y, weights = np.array([-0.8, 4.3]), np.array([0.0, 0.0]), np.ones((1, 2))
        assert logistic_fit(x, y, weights, np.array([0.5, 5.0])) == pytest.approx(logistic_fit(x, y, weights))

    def test_data_that_are_not_finite_come_to_an_end(self):
        with pytest.raises(ArithmeticError, match="`x` or `y` is not finite"):
            logistic_fit(np.array([1.0, -1.0]), np.array([math.nan, 1.0]), np.ones((1, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [1.0, math.nan]}, r"predictions\[1\] is nan: a score must be finite"),
        ({"references": [math.inf, 0.0]}, r"references\[0\] is inf"),
        ({"prediction_lengths": [3, 0]}, r"prediction_lengths\[1\] is 0: a length ratio needs lengths above 0"),
        ({"reference_lengths": [-2, 3]}, r"reference_lengths\[0\] is -2"),
        ({"reference_lengths": [math.inf, 3]}, r"reference_lengths\[0\] is inf"),
        ({"resamples": 10}, "`resamples` is 10: a 95 % bootstrap interval needs at least 1000"),
        ({name: [] for name in NAMES}, "`predictions` is empty: a win rate needs at least one query"),
    ],
)
def test_wrong_input_is_named(metric, change, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**pairs([1, 0], [0.1, -0.1]) | change)
