"""Scores to mix: sums by hand, words counted, tastes that last and differ, and the spread between candidates."""

from statistics import fmean, pstdev

import pytest

from trl_ziegler.labelers import LengthScorer, MixedScore, RandomTaste, ScoreLabeler, VividnessScorer, score_spread


def numbers(prompts, completions, **columns):
    """The score of a completion that is written as a number."""
    return [float(completion) for completion in completions]


class TestMixedScore:
    def test_is_the_weighted_sum_of_its_terms(self):
        def from_column(prompts, completions, *, bonus, **columns):
            return bonus

        mixed = MixedScore((numbers, 2.0), (from_column, -1.0))
        assert mixed(["p", "q"], ["3", "0.5"], bonus=[1.0, 4.0]) == [5.0, -3.0]

    def test_a_labeller_who_likes_length_picks_longer_texts_than_the_judge(self):
        rows = [[" a red moon.", " a man who sold her an old bicycle."]]
        judge, likes_length = VividnessScorer(), MixedScore((VividnessScorer(), 1.0), (LengthScorer(), 0.5))
        assert ScoreLabeler(judge).label(["She saw"], rows) == [0]
        assert ScoreLabeler(likes_length).label(["She saw"], rows) == [1]
        assert likes_length(["She saw"] * 2, rows[0]) == [2.5, 4.0]

    def test_nothing_to_mix_and_weights_that_are_no_numbers_are_refused(self):
        with pytest.raises(ValueError, match="needs a term"):
            MixedScore()
        with pytest.raises(ValueError, match="weight=nan of <function numbers"):
            MixedScore((numbers, float("nan")))


def test_length_is_counted_in_words():
    chat = [{"role": "assistant", "content": "I see\nno cat."}]
    assert LengthScorer()(["p"] * 4, [" the  cat sat.", "", "well-known", chat]) == [3.0, 0.0, 1.0, 4.0]


class TestRandomTaste:
    def test_is_standard_normal(self):
        likings = RandomTaste(0)(["p"] * 4000, [str(i) for i in range(4000)])
        assert fmean(likings) == pytest.approx(0.0, abs=0.05)
        assert pstdev(likings) == pytest.approx(1.0, abs=0.05)

    def test_lasts_and_belongs_to_its_owner_prompt_and_text(self):
        prompts, texts = ["p", "p", "q"], ["a", "b", "a"]
        likings = RandomTaste("ann")(prompts, texts)
        assert RandomTaste("ann")(prompts[::-1], texts[::-1]) == likings[::-1]
        assert len({*likings, *RandomTaste("bob")(prompts, texts)}) == 6


class TestScoreSpread:
    def test_is_that_between_candidates_not_between_prompts(self):
        # variances (n - 1) of 1, 3 and of 100, 100, 103: 2 and 3
        assert score_spread(numbers, ["p", "q"], [["1", "3"], ["100", "100", "103"]]) == pytest.approx(2.5**0.5)

    def test_columns_reach_the_score(self):
        def scaled(prompts, completions, *, unit, **columns):
            return [float(completion) * u for completion, u in zip(completions, unit, strict=True)]

        assert score_spread(scaled, ["p"], [["1", "3"]], unit=[10.0]) == pytest.approx(10 * 2**0.5)

    @pytest.mark.parametrize(("prompts", "completions"), [([], []), (["p", "q"], [["1", "1"], ["2", "2"]])])
    def test_a_score_that_tells_nothing_apart_is_refused(self, prompts, completions):
        with pytest.raises(ValueError, match=f"none of {len(prompts)} prompts do the candidates differ"):
            score_spread(numbers, prompts, completions)

    def test_what_a_labeller_refuses_is_refused(self):
        with pytest.raises(ValueError, match=r"completions\[0\]=\['1'\].*at least 2"):
            score_spread(numbers, ["p"], [["1"]])
