"""Several labellers as one: majorities, shared work, and the agreement figures of the paper."""

import random
from collections import Counter
from functools import cache

import pytest

from trl_ziegler.experiments.laptop import passages, true_sentiment
from trl_ziegler.labelers import (
    OTHER_TASTE,
    LengthScorer,
    MajorityLabeler,
    MixedScore,
    Panel,
    RandomTaste,
    ScoreLabeler,
    VividnessScorer,
    paper_labelers,
    score_spread,
)
from trl_ziegler.metrics import Agreement

PAPER = {"sentiment": (0.38, 0.44, 0.62), "tldr": (0.46, 0.38, 0.61)}
"""Agreement of two labellers, of an author and a labeller, of two authors (Ziegler et al. 2019)."""


class Always:
    """Gives one label to everything."""

    def __init__(self, label):
        self.answer = label

    def label(self, prompts, completions, **columns):
        return [self.answer] * len(prompts)


def numbers(prompts, completions, **columns):
    """The score of a completion that is written as a number."""
    return [float(completion) for completion in completions]


def sentiment(prompts, completions, **columns):
    return [true_sentiment(completion) for completion in completions]


def gaussian_records(count):
    rng = random.Random(0)
    return [f"p{i}" for i in range(count)], [[repr(rng.gauss(0.0, 3.0)) for _ in range(4)] for _ in range(count)]


@cache
def passage_records(count):
    openings = [". ".join(text.split(". ")[:2]) for text in passages(4 * count, seed=1)]
    return [f"p{i}" for i in range(count)], [openings[i : i + 4] for i in range(0, 4 * count, 4)]


def agreement(panel, records):
    return Agreement().compute(**panel.ratings(*records))["agreement"]


class TestMajorityLabeler:
    def test_the_label_is_what_most_say(self):
        labeler = MajorityLabeler([Always(2), Always(1), Always(1)])
        assert labeler.label(["p", "q"], [list("abc")] * 2) == [1, 1]

    def test_among_equals_the_first_listed_decides(self):
        assert MajorityLabeler([Always(3), Always(1)]).label(["p"], [list("abcd")]) == [3]
        assert MajorityLabeler([Always(0), Always(3), Always(1), Always(1), Always(3)]).label(["p"], ["abcd"]) == [3]

    def test_many_who_err_are_right_more_often_than_one(self):
        # three with 70 % each, wrong ones rarely alike: 0.7^3 + 3 * 0.7^2 * 0.3 = 0.784, and in 3 * 0.7 * 0.3^2 * 2/3
        # of the records each says something else, and the first, right in a third of them, decides: 0.042
        people = [ScoreLabeler(numbers, error_rate=0.3, seed=seed) for seed in range(3)]
        prompts, completions = gaussian_records(3000)
        truth = ScoreLabeler(numbers).label(prompts, completions)
        labels = MajorityLabeler(people).label(prompts, completions)
        right = sum(label == best for label, best in zip(labels, truth, strict=True)) / 3000
        assert right == pytest.approx(0.784 + 0.042, abs=0.02)

    def test_columns_reach_the_labellers_and_nobody_is_refused(self):
        def column(prompts, completions, *, liking):
            return [float(text == wanted) for text, wanted in zip(completions, liking, strict=True)]

        labeler = MajorityLabeler([ScoreLabeler(column)])
        assert labeler.label(["p", "q"], [["a", "b"]] * 2, liking=["b", "a"]) == [1, 0]
        with pytest.raises(ValueError, match="nobody to ask"):
            MajorityLabeler([])


class TestPanel:
    PROMPTS = [str(i) for i in range(3000)]  # noqa: RUF012  (a constant)
    COMPLETIONS = [list("abc")] * 3000

    def test_each_member_gets_an_equal_share(self):
        labels = Panel({"x": Always(0), "y": Always(1), "z": Always(2)}).label(self.PROMPTS, self.COMPLETIONS)
        assert all(share / 3000 == pytest.approx(1 / 3, abs=0.03) for share in Counter(labels).values())

    def test_who_gets_a_record_does_not_depend_on_order_or_batch(self):
        members = {"x": Always(0), "y": Always(1)}
        together = Panel(members).label(self.PROMPTS[:50], self.COMPLETIONS[:50])
        alone = [Panel(members).label([prompt], [list("abc")])[0] for prompt in self.PROMPTS[49::-1]]
        assert alone[::-1] == together
        assert Panel(members, seed=1).label(self.PROMPTS[:50], self.COMPLETIONS[:50]) != together

    def test_records_and_columns_stay_together(self):
        def column(prompts, completions, *, liking):
            return [float(text == wanted) for text, wanted in zip(completions, liking, strict=True)]

        panel = Panel({name: ScoreLabeler(column) for name in "xyz"})
        prompts, liking = self.PROMPTS[:12], list("aabbabbbaaba")
        assert panel.label(prompts, [["a", "b"]] * 12, liking=liking) == ["ab".index(wanted) for wanted in liking]

    def test_the_choice_inside_a_panel_of_panels_is_independent(self):
        pairs = {name: Panel({"one": Always(2 * i), "two": Always(2 * i + 1)}) for i, name in enumerate("xy")}
        labels = Panel(pairs).label(self.PROMPTS, [list("abcd")] * 3000)
        assert all(Counter(labels)[label] / 3000 == pytest.approx(0.25, abs=0.03) for label in range(4))

    def test_the_share_of_slips_is_that_of_the_member(self):
        # One seed in the panel and in its members: who is asked must not depend on who would slip.
        panel = Panel({name: ScoreLabeler(numbers, error_rate=0.3) for name in "xy"})
        records = gaussian_records(3000)
        truth = ScoreLabeler(numbers).label(*records)
        alone = Panel({"x": ScoreLabeler(numbers, error_rate=0.3), "y": ScoreLabeler(numbers)}).label(*records)
        slips = [
            sum(a != b for a, b in zip(labels, truth, strict=True)) / 3000 for labels in (panel.label(*records), alone)
        ]
        assert slips == pytest.approx([0.3, 0.15], abs=0.025)

    def test_ratings_hold_everybodys_label_of_every_record(self):
        ratings = Panel({"x": Always(0), "y": Always(1)}).ratings(["p", "q"], [["a", "b"], ["a", "b", "c"]])
        assert ratings == {
            "predictions": [[0, 1], [0, 1]],
            "references": [["x", "y"], ["x", "y"]],
            "num_choices": [2, 3],
        }

    def test_nobody_and_lengths_that_disagree_are_refused(self):
        with pytest.raises(ValueError, match="nobody to ask"):
            Panel({})
        for call in (Panel({"x": Always(0)}).label, Panel({"x": Always(0)}).ratings):
            with pytest.raises(ValueError, match="facts has 1 rows for 2 prompts"):
                call(["p", "q"], [["a", "b"]] * 2, facts=[1])


class TestFiguresOfThePaper:
    @pytest.mark.parametrize("task", PAPER)
    @pytest.mark.parametrize(
        ("score", "records"),
        [(numbers, gaussian_records(600)), (sentiment, passage_records(250))],
        ids=["normal scores", "embedded world"],
    )
    def test_labellers_and_authors_agree_as_often_as_in_the_paper(self, task, score, records):
        labellers, authors = paper_labelers(task, score, spread=score_spread(score, *records))
        both = Panel({"labellers": labellers, "authors": authors})
        assert [agreement(panel, records) for panel in (labellers, both, authors)] == pytest.approx(
            PAPER[task], abs=0.04
        )

    @pytest.mark.parametrize(
        ("figure", "options"),
        [
            (0.38, {"error_rate": 0.44}),
            (0.46, {"error_rate": 0.36}),
            (0.62, {"error_rate": 0.22}),
            (0.38, {"boltzmann_temperature": 3 * 1.06}),
            (0.46, {"boltzmann_temperature": 3 * 0.75}),
            (0.62, {"boltzmann_temperature": 3 * 0.43}),
        ],
    )
    def test_noise_alone_reaches_them_one_by_one(self, figure, options):
        people = Panel({str(seed): ScoreLabeler(numbers, seed=seed, **options) for seed in range(4)})
        assert agreement(people, gaussian_records(600)) == pytest.approx(figure, abs=0.03)

    def test_another_seed_is_other_people(self):
        records = gaussian_records(50)
        first, second, again = (paper_labelers("tldr", numbers, seed=seed)[0].label(*records) for seed in (0, 1, 0))
        assert first == again != second

    def test_numbers_of_people_are_as_asked(self):
        labellers, authors = paper_labelers("tldr", numbers, labellers=3, authors=1)
        assert (list(labellers.members), list(authors.members)) == (
            ["labeller 0", "labeller 1", "labeller 2"],
            ["author 0"],
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"task": "style"}, r"task='style' is unknown; choose one of \['sentiment', 'tldr'\]"),
            ({"spread": 0.0}, "spread=0.0 must be positive"),
            ({"authors": 0}, "authors=0 leaves a panel without a member"),
        ],
    )
    def test_what_makes_no_panel_is_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            paper_labelers(**{"task": "tldr", "score_fn": numbers, **change})


@pytest.mark.parametrize(
    ("taste", "judge", "records"),
    [
        (RandomTaste("ann"), numbers, gaussian_records(1000)),
        (VividnessScorer(), sentiment, passage_records(250)),
        (LengthScorer(), sentiment, passage_records(250)),
    ],
    ids=["random", "vividness", "length"],
)
def test_a_labeller_of_another_taste_prefers_the_own_picks_as_often_as_in_the_paper(taste, judge, records):
    prompts, completions = records
    mixed = MixedScore(
        (judge, 1.0 / score_spread(judge, *records)), (taste, OTHER_TASTE / score_spread(taste, *records))
    )
    own, judged = (ScoreLabeler(score).label(*records) for score in (mixed, judge))
    wins = 0.0
    for prompt, texts, a, b in zip(prompts, completions, own, judged, strict=True):
        of_own, of_judge = mixed([prompt] * 2, [texts[a], texts[b]])
        wins += 0.5 if of_own == of_judge else float(of_own > of_judge)
    assert wins / len(prompts) == pytest.approx(0.77, abs=0.04)
