"""Requests and collections: every record once, in order, with its columns; what cannot be asked is refused."""

import pytest
from label_records import records

from trl_ziegler.labelers import (
    ImmediateLabeler,
    LengthScorer,
    MajorityLabeler,
    MixedScore,
    Panel,
    RandomTaste,
    ScoreLabeler,
    VividnessScorer,
)
from trl_ziegler.labelers.collecting import describe_labeler


def last_is_best(prompts, completions, **columns):
    """Completions end in a number: the highest is the best."""
    return [float(completion.split(".")[-1]) for completion in completions]


@pytest.fixture
def labeler():
    return ImmediateLabeler(ScoreLabeler(last_is_best))


def test_every_request_is_answered_at_once_in_order(labeler):
    labeler.request(records(3, k=2, step=0))
    labeler.request([])
    labeler.request(records(2, k=3, step=1)[::-1])
    rows = labeler.collect()
    assert [(row["prompt"], row["step"], row["label"]) for row in rows] == [
        ("Prompt 0", 0, 1), ("Prompt 1", 0, 1), ("Prompt 2", 0, 1), ("Prompt 1", 1, 2), ("Prompt 0", 1, 2),
    ]  # fmt: skip
    assert labeler.open() == 0
    assert rows == labeler.collect()


def test_what_is_collected_belongs_to_the_caller(labeler):
    (record,) = records(1)
    labeler.request([record])
    labeler.collect()[0]["label"] = 7
    assert labeler.collect() == [{**record, "label": 3}]
    assert "label" not in record


def test_columns_reach_the_labeller_row_by_row():
    seen = {}

    class Spy:
        def label(self, prompts, completions, **columns):
            seen.update(columns)
            return [0] * len(prompts)

    first, second = records(2, step=5)
    ImmediateLabeler(Spy()).request([{**first, "reference": "x"}, second])
    assert seen == {"step": [5, 5], "reference": ["x", None]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completions": ["a"]}, r"Record 1: completions=\['a'\] leave nothing to choose"),
        ({"completions": ["a", "a"]}, r"Record 1: completions=\['a', 'a'\] leave nothing to choose"),
        ({"completions": "ab"}, "Record 1: completions='ab' leave nothing to choose"),
        ({"label": 0}, "Record 1 has label=0 already"),
    ],
)
def test_a_record_that_cannot_be_asked_is_refused_with_the_whole_request(labeler, change, message):
    first, second = records(2)
    with pytest.raises(ValueError, match=message):
        labeler.request([first, {**second, **change}])
    with pytest.raises(ValueError, match=r"Record 0 has no `completions`; .*\['prompt'\]"):
        labeler.request([{"prompt": "p"}])
    assert labeler.collect() == []


LABELERS = {
    "function": lambda: ScoreLabeler(last_is_best),
    "scorer": lambda: ScoreLabeler(LengthScorer()),
    "other scorer": lambda: ScoreLabeler(VividnessScorer()),
    "slips": lambda: ScoreLabeler(last_is_best, error_rate=0.1),
    "other slips": lambda: ScoreLabeler(last_is_best, error_rate=0.1, seed=1),
    "taste": lambda: ScoreLabeler(MixedScore((last_is_best, 1.0), (RandomTaste("ann"), 2.0))),
    "other taste": lambda: ScoreLabeler(MixedScore((last_is_best, 1.0), (RandomTaste("bob"), 2.0))),
    "panel": lambda: Panel({"ann": ScoreLabeler(last_is_best), "bob": ScoreLabeler(LengthScorer())}),
    "majority": lambda: MajorityLabeler([ScoreLabeler(last_is_best), ScoreLabeler(LengthScorer())]),
}


def test_what_labellers_are_known_by_tells_them_apart_and_is_the_same_in_each_process():
    once, again = ([describe_labeler(ImmediateLabeler(make())) for make in LABELERS.values()] for _ in range(2))
    assert once == again  # no address of an object in memory
    assert len(set(once)) == len(LABELERS)


def test_a_labeller_without_a_text_of_its_own_is_known_by_its_class():
    class Mine:
        pass

    assert describe_labeler(Mine()).endswith("Mine object>") and " at " not in describe_labeler(Mine())
