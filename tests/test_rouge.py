"""ROUGE against numbers worked out by hand and against `rouge_score` called directly."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from trl_ziegler.metrics import Rouge

TYPES = ["rouge1", "rouge2", "rougeL"]
SUMMARIES = [
    "Police killed the gunman!",
    "A man was running with his dogs near the house; the dogs barked.",
    "I (24F) don't know what to do,\nplease help.",
    "nothing in common",
]
REFERENCES = [
    "The gunman was killed by police.",
    "The man's dog runs near houses.",
    "24F needs help: what do I do?",
    "zebra",
]


@pytest.fixture
def metric(tmp_path):
    return Rouge(cache_dir=str(tmp_path), keep_in_memory=True)


def test_by_hand(metric):
    # "the cat sat on it" against "the cat ran": 2 shared words, precision 2/5, recall 2/3, F = 2 * 2 / (5 + 3);
    # 1 shared pair of words, F = 2 * 1 / (4 + 2); longest common subsequence "the cat".
    result = metric.compute(predictions=["The cat sat on it."], references=["the cat ran"])
    assert [result[key] for key in TYPES] == pytest.approx([1 / 2, 1 / 3, 1 / 2])
    assert result["mean"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    assert (result["n"], result["empty"]) == (1, 0)


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_equals_rouge_score_called_directly(metric, use_stemmer):
    result = metric.compute(predictions=SUMMARIES, references=REFERENCES, use_stemmer=use_stemmer, per_example=True)
    scorer = RougeScorer(TYPES, use_stemmer=use_stemmer)
    for key in TYPES:
        direct = [scorer.score(r, s)[key].fmeasure for s, r in zip(SUMMARIES, REFERENCES, strict=True)]
        assert [row[key] for row in result["per_example"]] == direct
        assert result[key] == pytest.approx(np.mean(direct))
    assert result["mean"] == pytest.approx(np.mean([row["mean"] for row in result["per_example"]]))
    assert result["use_stemmer"] is use_stemmer


def test_stemming_joins_forms_of_a_word_only_when_asked(metric):
    texts = {"predictions": ["dogs running"], "references": ["dog runs"]}
    assert metric.compute(**texts)["rouge1"] == 0.0
    # "dogs" has four letters and is stemmed, "dog" three and is not; both end as "dog".
    assert metric.compute(**texts, use_stemmer=True)["rouge1"] == 1.0


def test_each_type_takes_its_best_reference(metric):
    # Words fit the first reference best (F = 2 * 3 / 6), pairs of words the second (F = 2 * 1 / (2 + 1)).
    references = ["c b a", "a b"]
    result = metric.compute(predictions=["a b c"], references=[references])
    assert result["rouge1"] == pytest.approx(1.0)
    assert result["rouge2"] == pytest.approx(2 / 3)
    best = RougeScorer(TYPES).score_multi(references, "a b c")
    assert [result[key] for key in TYPES] == [best[key].fmeasure for key in TYPES]


def test_lists_of_one_reference_equal_plain_references(metric):
    plain = metric.compute(predictions=SUMMARIES, references=REFERENCES)
    assert metric.compute(predictions=SUMMARIES, references=[[text] for text in REFERENCES]) == plain


def test_numbers_of_references_may_differ(metric):
    result = metric.compute(predictions=["a", "b"], references=[["a"], ["a", "c"]], per_example=True)
    assert [row["rouge1"] for row in result["per_example"]] == [1.0, 0.0]


def test_result_names_the_text_rules_and_hides_examples_unless_asked(metric):
    result = metric.compute(predictions=["a"], references=["a"])
    assert "lower case" in result["tokenizer"]
    assert result["use_stemmer"] is False
    assert "per_example" not in result


def test_texts_without_a_token_score_zero_and_are_counted(metric):
    result = metric.compute(predictions=["", "猫が座った", "a", "a"], references=["a", "猫が座った", "?!", "a"])
    assert (result["rouge1"], result["empty"]) == (0.25, 3)


def test_one_readable_reference_is_enough(metric):
    assert metric.compute(predictions=["a"], references=[["?!", "a"]])["empty"] == 0


def test_batches_add_up(metric):
    metric.add_batch(predictions=SUMMARIES[:1], references=REFERENCES[:1])
    metric.add_batch(predictions=SUMMARIES[1:], references=REFERENCES[1:])
    assert metric.compute() == metric.compute(predictions=SUMMARIES, references=REFERENCES)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "`predictions` is empty: ROUGE needs at least one summary"),
        (["a", "b"], [["a"], []], r"references\[1\] is empty: give at least one reference"),
        (["a", "b"], ["a"], "Mismatch in the number of predictions"),
    ],
)
def test_wrong_input_is_named(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)


def test_docstring_example(metric):
    assert metric.compute(predictions=["The cat sat."], references=["the cat ran"])["rouge2"] == 0.5
