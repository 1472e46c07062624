"""The table of summarizers: its figures on texts made by hand, the best of n, and who predicts labels."""

import json

import pytest
import torch

from trl_ziegler.experiments.generation import Generator, Responses
from trl_ziegler.experiments.laptop import facts_in
from trl_ziegler.experiments.summaries_evaluation import (
    Summaries,
    SummaryJudge,
    best_of_n,
    compare,
    predictors_of_labels,
    sampled,
    written,
)
from trl_ziegler.metrics import LengthControlledWinRate, WinRate
from trl_ziegler.reward_model import load_reward_model, score_token_ids
from trl_ziegler.tasks import Task

RECORDS = [
    {
        "prompt_ids": [5 + i],
        "prompt": "We met. Anna bought a car. She was happy.",
        "document": "unused",
        "reference": "Anna got a new car.",
    }
    for i in range(4)
]


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")


def letters(prompts, completions, *, reference):
    """The labeller's score of these tests: letters that the text has more than its reference."""
    return [float(len(text) - len(wanted)) for text, wanted in zip(completions, reference, strict=True)]


def judge_of(**changed):
    options = {"judge": letters, "reward_model": None, "facts": None}
    return SummaryJudge(RECORDS, **{**options, **changed})


def authored(*texts, words=None, **options):
    """Summaries with as many ids as words."""
    ids = [[0] * n for n in words or [len(text.split()) for text in texts]]
    return Summaries(list(texts), ids, **options)


AUTHORS = {
    "policy": authored(
        "Anna bought a car.",
        "Anna bought a car. Ben lost a ring.",
        "We met. She was happy.",
        "",
        valid=[True, True, True, False],
        kl=[1.0, 2.0, 3.0, 2.0],
    ),
    "supervised": authored(*["Anna got a new car."] * 4, valid=[True] * 4),
    "lead_3": authored(*["We met. Anna bought a car. She was happy."] * 4),
}


def test_metrics_have_the_names_that_reports_read():
    metrics, samples = compare(AUTHORS, judge_of())
    assert set(metrics) == {
        "win_rate", "win_rate_at_equal_length", "true_score", "score", "length", "valid_share", "kl_by_model", "kl",
        "rouge", "copying",
    }  # fmt: skip
    for group in ("true_score", "score", "length", "rouge", "copying"):
        assert set(metrics[group]) == set(AUTHORS)
    for group in ("win_rate", "win_rate_at_equal_length"):
        assert set(metrics[group]) == {"supervised", "lead_3"}
        assert {"value", "low", "high", "n"} <= set(metrics[group]["lead_3"])
    assert {"rouge1", "rouge2", "rougeL", "mean"} <= set(metrics["rouge"]["policy"])
    assert {"copied_share", "novel_ngrams", "starts_with_first"} <= set(metrics["copying"]["policy"])
    json.dumps([metrics, samples])


def test_figures_by_hand():
    metrics, _ = compare(AUTHORS, judge_of())
    # letters beyond the reference's 19: the policy -1, 16, 3 and -19; lead-3 has 22 each
    assert metrics["true_score"] == {"policy": -0.25, "supervised": 0.0, "lead_3": 22.0}
    assert metrics["score"] == metrics["true_score"]
    assert metrics["win_rate"]["supervised"]["value"] == 0.5
    assert metrics["win_rate"]["lead_3"]["value"] == 0.0
    assert metrics["win_rate"]["supervised"]["n"] == 4
    assert metrics["length"] == {"policy": 4.25, "supervised": 5.0, "lead_3": 9.0}
    assert metrics["valid_share"] == {"policy": 0.75, "supervised": 1.0}
    assert metrics["kl"] == 2.0
    assert metrics["kl_by_model"] == {"policy": 2.0}
    assert metrics["rouge"]["supervised"]["rouge1"] == 1.0
    # of the five sentences of the policy four are the post's; the rest has none
    assert metrics["copying"]["policy"]["copied_share"] == pytest.approx(4 / 5)
    assert metrics["copying"]["policy"]["starts_with_first"] == 0.25
    assert metrics["copying"]["supervised"]["copied_share"] == 0.0


def test_the_policy_is_compared_with_each_other_author_also_at_equal_length():
    words = {"policy": [3, 9, 2, 8], "supervised": [6, 5, 7, 4]}
    texts = {"policy": ["a" * 30, "b" * 60, "c" * 25, "d" * 50], "supervised": ["e" * n for n in (40, 35, 45, 20)]}
    authors = {name: authored(*texts[name], words=words[name], valid=[True] * 4) for name in words}
    authors["policy"] = Summaries(authors["policy"].texts, authors["policy"].ids, [True] * 4, [0.0] * 4)
    metrics, _ = compare(authors, judge_of())
    scores = {name: [float(len(text) - 19) for text in texts[name]] for name in texts}
    pair = {"predictions": scores["policy"], "references": scores["supervised"]}
    assert metrics["win_rate"]["supervised"] == WinRate().compute(**pair)
    assert metrics["win_rate_at_equal_length"]["supervised"] == LengthControlledWinRate().compute(
        **pair, prediction_lengths=words["policy"], reference_lengths=words["supervised"]
    )


def test_facts_count_where_they_are_known():
    authors = {"policy": AUTHORS["policy"]}
    with_facts, _ = compare(authors, judge_of(facts=facts_in))
    assert with_facts["copying"]["policy"]["invented_facts"] == pytest.approx(1 / 3)  # Ben's ring, of three facts
    assert "invented_facts" not in compare(authors, judge_of())[0]["copying"]["policy"]


def test_each_summary_is_scored_with_its_own_prompt_and_reference():
    def score(prompts, completions, *, reference):
        return [float(f"{p}{c}{r}") for p, c, r in zip(prompts, completions, reference, strict=True)]

    records = [{"prompt": "1", "reference": "3"}, {"prompt": "4", "reference": "6"}]
    judge = SummaryJudge(records, score, None, None)
    assert judge.true_scores(authored("2", "5")) == judge.rewards(authored("2", "5")) == [123.0, 456.0]


def test_samples_show_all_texts_of_a_query_with_their_scores():
    _, samples = compare(AUTHORS, judge_of())
    assert len(samples) == 4
    assert samples[1] == {
        "prompt": RECORDS[1]["prompt"],
        "policy": "Anna bought a car. Ben lost a ring.",
        "supervised": "Anna got a new car.",
        "lead_3": "We met. Anna bought a car. She was happy.",
        "policy_score": 16.0,
        "supervised_score": 0.0,
        "lead_3_score": 22.0,
    }


def test_the_reward_is_the_models_where_there_is_one(make_causal_lm, tokenizer, tmp_path):
    make_causal_lm().save_pretrained(tmp_path)
    model = load_reward_model(tmp_path, seed=0)
    summaries = Summaries(["x"] * 4, [[7], [8, 9], [7, 7, 7], [3]])
    expected = score_token_ids(model, [[5], [6], [7], [8]], summaries.ids).tolist()
    judge = judge_of(reward_model=model)
    assert judge.rewards(summaries) == pytest.approx(expected)
    assert judge.true_scores(summaries) == [-18.0] * 4


# ---- Where summaries come from --------------------------------------------------------------------------------------


class Fixed:
    """In the place of a generator: each call answers all queries with the next of its scripted responses."""

    def __init__(self, task, scripts, kl=None):
        self.task, self.scripts, self.reference, self.kl = task, iter(scripts), kl, kl

    def sample(self, queries, description):
        responses = torch.tensor(next(self.scripts))
        return Responses(responses, torch.zeros(len(responses)) if self.kl is None else torch.tensor(self.kl))


@pytest.fixture
def task(tokenizer):
    """Four tokens, of which `.` ends a response."""
    return Task("t", 4, truncate_token=".", truncate_after=1).bind(tokenizer)


def test_samples_are_cut_after_the_stop_token_and_stripped(task, tokenizer):
    stop = task.truncate_id
    cat, dog = tokenizer(" cat dog")["input_ids"]
    rows = [[cat, stop, dog, dog], [stop, cat, dog, stop], [cat, cat, dog, dog]]
    out = sampled(Fixed(task, [rows], kl=[0.5, 1.0, 1.5]), tokenizer, [[1]] * 3, description="x")
    assert out.texts == ["cat.", ". cat dog.", "cat cat dog dog"]
    assert out.ids == [[cat, stop], [stop, cat, dog, stop], [cat, cat, dog, dog]]
    assert (out.valid, out.kl) == ([True, True, False], [0.5, 1.0, 1.5])
    assert sampled(Fixed(task, [rows]), tokenizer, [[1]] * 3, description="x").kl is None


def test_the_best_of_n_is_picked_by_the_score_it_is_given(task, tokenizer):
    cat, dog, old = tokenizer(" cat dog old")["input_ids"]
    draws = [[[cat] * 4, [dog] * 4], [[dog] * 4, [old] * 4], [[old] * 4, [cat] * 4]]
    calls = []

    def score(draw):
        calls.append(draw.texts)
        return [{"cat": 1.0, "dog": 3.0, "old": 2.0}[text.split()[0]] for text in draw.texts]

    best = best_of_n(Fixed(task, draws), tokenizer, [[1], [2]], score, 3)
    assert best.texts == ["dog dog dog dog", "dog dog dog dog"]
    assert best.ids == [[dog] * 4, [dog] * 4]
    assert len(calls) == 3
    worst = best_of_n(Fixed(task, draws), tokenizer, [[1], [2]], lambda draw: [-s for s in score(draw)], 3)
    assert worst.texts == ["cat cat cat cat", "cat cat cat cat"]


def test_written_texts_get_the_ids_a_model_would_have_written(task, tokenizer):
    out = written(tokenizer, task, ["cat dog", ""])
    assert out.texts == ["cat dog", ""]
    assert out.ids == [
        [*tokenizer(" cat dog")["input_ids"], task.truncate_id],
        [*tokenizer(" ")["input_ids"], task.truncate_id],
    ]
    assert (out.valid, out.kl) == (None, None)
    endless = Task("t", 4).bind(tokenizer)
    assert written(tokenizer, endless, ["cat"]).ids == [tokenizer(" cat")["input_ids"]]


def test_a_real_generator_gives_summaries_of_each_query(make_causal_lm, tokenizer):
    task = Task("t", 5, regime="eos", truncate_token="eos").bind(tokenizer)
    generator = Generator(make_causal_lm(), task, seed=0, batch_size=4, reference=make_causal_lm(seed=1))
    out = sampled(generator, tokenizer, [[5, 6], [7], [8]], description="x")
    assert len(out.texts) == len(out.ids) == len(out.valid) == len(out.kl) == 3
    assert all(1 <= len(ids) <= 5 for ids in out.ids)


# ---- Who predicts labels --------------------------------------------------------------------------------------------


def test_predictors_of_labels_by_hand():
    def row(label, *completions):
        return {"prompt": "p", "completions": list(completions), "reference": "a cat sat down", "label": label}

    rows = [
        row(0, "a cat sat", "the old dog ran away there"),  # ROUGE and the shortest are right
        row(1, "a cat sat", "the old dog ran away there"),  # the longest is
        row(1, "dog", "a cat sat down"),  # ROUGE and the longest are
        row(1, "we saw the very old cat sat down", "a cat sat down"),  # ROUGE and the shortest are
        row(0, "a cat", "the old cat ran away"),  # likewise
    ]
    found = predictors_of_labels(rows)
    accuracies = {name: result["accuracy"] for name, result in found.items()}
    assert accuracies == pytest.approx({"rouge": 0.8, "longest": 0.4, "shortest": 0.6})
    assert all(result["n"] == 5 and result["chance"] == 0.5 for result in found.values())
