"""Accuracy on pairs of unequal ratings, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from trl_ziegler.metrics import PairAccuracy


@pytest.fixture
def metric(tmp_path):
    return PairAccuracy(cache_dir=str(tmp_path), keep_in_memory=True)  # a refusal would hold the file's lock


def single_pairs(outcomes):
    """One record with one pair for each outcome: 1 ordered as rated, 0 the other way round, 0.5 tied."""
    return {"predictions": [[0.5, outcome] for outcome in outcomes], "references": [[1, 2]] * len(outcomes)}


class TestAccuracy:
    def test_ragged_records_by_hand(self, metric):
        # First record: (0,1) and (0,3) right, (2,1) and (2,3) wrong, (3,1) tied, (0,2) no pair. Second: right.
        predictions, ratings = [[0.9, 0.2, 0.1, 0.2], [-1.0, 7.0]], [[5, 1, 5, 3], [2, 3]]
        result = metric.compute(predictions=predictions, references=ratings)
        assert result["accuracy"] == pytest.approx((2 + 0.5 + 1) / 6)
        assert (result["pairs"], result["prompts"], result["ties"], result["chance"]) == (6, 2, 1, 0.5)

    def test_equal_ratings_give_no_pair_and_no_prompt(self, metric):
        alone = metric.compute(predictions=[[1.0, 2.0, 0.0]], references=[[0.0, 1.0, 1.0]])
        ratings = [[0.0, 1.0, 1.0], [3.0, 3.0, 3.0]]
        assert metric.compute(predictions=[[1.0, 2.0, 0.0], [9.0, 8.0, 7.0]], references=ratings) == alone
        assert (alone["accuracy"], alone["pairs"], alone["prompts"]) == (0.5, 2, 1)

    def test_equal_scores_stand_at_chance_whatever_the_ratings(self, metric):
        result = metric.compute(predictions=[[1.0] * 4] * 2, references=[[4, 3, 2, 1], [1, 1, 1, 9]])
        assert (result["accuracy"], result["pairs"], result["ties"]) == (0.5, 9, 9)

    def test_the_ratings_themselves_are_right_and_their_negatives_wrong(self, metric):
        ratings = [[0.25, 1.0, 0.0], [2.0, 2.0, 5.0]]
        assert metric.compute(predictions=ratings, references=ratings)["accuracy"] == 1.0
        assert (
            metric.compute(predictions=[[-x for x in row] for row in ratings], references=ratings)["accuracy"] == 0.0
        )

    def test_neither_the_scale_of_scores_nor_the_order_of_candidates_counts(self, metric):
        rng = np.random.default_rng(0)
        scores, ratings = rng.normal(size=(20, 5)), rng.integers(3, size=(20, 5))
        expected = metric.compute(predictions=scores, references=ratings)
        assert 0 < expected["accuracy"] < 1
        assert metric.compute(predictions=np.exp(3 * scores), references=2 * ratings - 7) == expected
        assert metric.compute(predictions=scores[:, ::-1], references=ratings[:, ::-1]) == expected

    def test_candidates_of_different_records_are_not_compared(self, metric):
        result = metric.compute(predictions=[[0.0, 1.0], [5.0, 6.0]], references=[[3, 4], [1, 2]], prompts=["a", "a"])
        assert (result["accuracy"], result["pairs"], result["prompts"]) == (1.0, 2, 1)

    def test_docstring_example(self, metric):
        predictions, ratings = [[0.9, 0.2, 0.1], [0.0, 1.0]], [[5, 1, 5], [2, 3]]
        assert metric.compute(predictions=predictions, references=ratings)["pairs"] == 3


class TestInterval:
    def test_prompts_are_drawn_with_all_their_pairs(self, metric):
        # Eight pairs as eight prompts: of Binomial(8, 1/2), P(0) = 0.004 and P(0 or 1) = 0.035.
        data = single_pairs([1, 0] * 4)
        result = metric.compute(**data)
        assert (result["low"], result["high"], result["prompts"]) == (1 / 8, 7 / 8, 8)
        # As two prompts, one right and one wrong throughout: both draws are the same one with probability 1/4 each.
        result = metric.compute(**data, prompts=["a", "b"] * 4)
        assert (result["low"], result["high"], result["prompts"]) == (0.0, 1.0, 2)

    def test_a_draw_is_divided_by_its_own_number_of_pairs(self, metric):
        # One prompt with three pairs, all right, and three prompts with one wrong pair each. The first is drawn four
        # times with P = 1/256 and three times with P = 12/256: then 9 of 10 pairs are right.
        data = single_pairs([1, 1, 1, 0, 0, 0])
        result = metric.compute(**data, prompts=[0, 0, 0, 1, 2, 3])
        assert (result["accuracy"], result["low"], result["high"]) == (0.5, 0.0, 0.9)

    def test_random_scores_have_chance_in_an_interval_of_the_known_width(self, metric):
        outcomes = np.random.default_rng(1).integers(2, size=500)  # 500 prompts: several blocks of draws
        result = metric.compute(**single_pairs(outcomes))
        assert result["low"] < 0.5 < result["high"]
        assert result["high"] - result["low"] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(500), rel=0.05)

    def test_the_seed_decides_the_draws(self, metric):
        data = single_pairs(np.random.default_rng(2).integers(2, size=101))
        intervals = [metric.compute(**data, seed=seed, resamples=1000)["low"] for seed in (0, 0, 1, 2, 3)]
        assert intervals[0] == intervals[1]
        assert len(set(intervals)) > 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"predictions": [[1.0, 2.0]], "references": [[1, 2, 3]]}, r"predictions\[0\] has 2 scores for 3 ratings"),
        (
            {"predictions": [[1.0, math.nan]], "references": [[1, 2]]},
            r"predictions\[0\] is \[1.0, nan\]: numbers must",
        ),
        ({"predictions": [[1.0, 2.0]], "references": [[1, math.inf]]}, r"references\[0\] is \[1.0, inf\]"),
        ({"predictions": [[1.0, 2.0]] * 2, "references": [[3, 3]] * 2}, "there is no pair to measure on"),
        ({**single_pairs([1, 1]), "prompts": ["a"]}, "`prompts` has 1 entries for 2 records"),
        ({**single_pairs([1, 1]), "resamples": 999}, "`resamples` is 999"),
    ],
)
def test_wrong_input_is_named(metric, data, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(**data)
