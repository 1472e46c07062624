"""Requests and collections: every record once, in order, with its columns; what cannot be asked is refused."""

import pytest
from label_records import records

from trl_ziegler.labelers import ImmediateLabeler, ScoreLabeler


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
