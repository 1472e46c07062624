"""What a style recipe is made of: worlds, sampling, candidates, evaluation, and which settings rerun which stage."""

import gzip
import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from trl_ziegler.actor_critic import response_logits
from trl_ziegler.experiments import laptop, training
from trl_ziegler.experiments.arguments import StyleArguments
from trl_ziegler.experiments.evaluation import Judged, evaluate_policy
from trl_ziegler.experiments.generation import Generator, Responses, collect_candidates
from trl_ziegler.experiments.pipeline import run_stages
from trl_ziegler.experiments.style import StyleExperiment
from trl_ziegler.experiments.training import refuse_below_chance
from trl_ziegler.experiments.worlds import FileWorld, LaptopWorld, make_world, part_of
from trl_ziegler.functional import token_logprobs
from trl_ziegler.kl_control import FixedKLController
from trl_ziegler.metrics import frontier_fraction, optimum_at
from trl_ziegler.online_candidates import MAX_ROUNDS
from trl_ziegler.reward_wrapper import KLEntropyReward
from trl_ziegler.tasks import Task

QUERIES = [[65, 66, 67, 68, 69], [70], [71, 72, 73], [74, 75], [76, 77, 78, 79], [80, 81]]
SMALL = {"passages": 60, "eval_passages": 20, "reviews": 40, "eval_reviews": 10}


@pytest.fixture(autouse=True)
def private_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache" / "metrics")


# ---- Worlds ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_files(tmp_path):
    """Arguments of a run on 50 documents and 30 reviews in files."""
    rows = [{"body": f"document {i}"} for i in range(50)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "documents.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    reviews = "".join(json.dumps({"text": f"review {i}", "label": i % 2}) + "\n" for i in range(30))
    (tmp_path / "reviews.jsonl").write_text(reviews)
    return {
        "model": "unused",
        "documents": str(tmp_path / "documents.jsonl.gz"),
        "documents_column": "body",
        "reviews": str(tmp_path / "reviews.jsonl"),
    }


def test_the_world_is_ones_own_where_a_model_is_given(own_files):
    assert isinstance(make_world(StyleArguments()), LaptopWorld)
    assert isinstance(make_world(StyleArguments(**own_files)), FileWorld)


def test_own_documents_are_split_without_overlap_alike_for_every_seed(own_files):
    world, other = FileWorld(StyleArguments(**own_files, seed=1)), FileWorld(StyleArguments(**own_files, seed=2))
    train, test = world.documents("train"), world.documents("test")
    assert (len(train), len(test)) == (45, 5)
    assert set(train) | set(test) == {f"document {i}" for i in range(50)}
    assert (train, test) == (other.documents("train"), other.documents("test"))
    assert train != sorted(train, key=lambda text: int(text.split()[1]))
    reviews = {split: world.reviews(split) for split in ("train", "test")}
    assert [len(rows) for rows in reviews.values()] == [27, 3]
    assert not {row["text"] for row in reviews["train"]} & {row["text"] for row in reviews["test"]}
    assert all(row["label"] == int(row["text"].split()[1]) % 2 for row in reviews["train"])


def test_a_split_leaves_at_least_one_row_to_each_side_and_its_argument_alone():
    rows = ["a", "b", "c"]
    assert len(part_of(rows, "test")) == 1
    assert sorted(part_of(rows, "train") + part_of(rows, "test")) == rows == ["a", "b", "c"]


def test_columns_that_own_files_lack_are_named(own_files):
    with pytest.raises(ValueError, match=r"`documents` has the columns \['body'\], not 'text'; .* `documents_column`"):
        FileWorld(StyleArguments(**own_files | {"documents_column": "text"})).documents("train")
    with pytest.raises(ValueError, match=r"`reviews` has the columns \['body'\]; it needs `text` and `label`"):
        FileWorld(StyleArguments(**own_files | {"reviews": own_files["documents"]})).reviews("train")
    with pytest.raises(ValueError, match=r"`reviews` is missing; give labelled reviews, or .* `judge_model`"):
        FileWorld(StyleArguments(**own_files | {"reviews": None})).reviews("train")


def test_sentiment_without_a_judge_is_refused_before_anything_is_read(own_files, tmp_path):
    args = StyleArguments(**own_files | {"reviews": None})
    with pytest.raises(ValueError, match=r"`reviews` is missing; give labelled reviews, or .* `judge_model`"):
        StyleExperiment("sentiment", args, tmp_path)
    StyleExperiment("descriptiveness", args, tmp_path)
    StyleExperiment("sentiment", replace(args, judge_model="a/judge"), tmp_path)


def test_the_laptop_world_has_the_sizes_asked_for_and_two_disjoint_splits():
    world = LaptopWorld(StyleArguments(world=SMALL | {"vocab_size": 300}, seed=3))
    train, test = world.documents("train"), world.documents("test")
    assert (len(train), len(test)) == (60, 20)
    assert not set(train) & set(test)
    assert (len(world.reviews("train")), len(world.reviews("test"))) == (40, 10)
    model, tokenizer = world.start_model()
    assert model.config.vocab_size == len(tokenizer) <= 300
    classifier, _ = world.classifier()
    assert classifier.config.num_labels == 2


def test_the_laptop_world_is_its_seeds():
    worlds = [LaptopWorld(StyleArguments(world=SMALL, seed=seed)) for seed in (3, 3, 4)]
    models = [world.start_model()[0].state_dict()["transformer.h.0.attn.c_attn.weight"] for world in worlds]
    assert worlds[0].documents("train") == worlds[1].documents("train") != worlds[2].documents("train")
    torch.testing.assert_close(models[0], models[1], atol=0, rtol=0)
    assert not torch.equal(models[0], models[2])


def test_the_laptop_worlds_truth_is_the_one_of_the_task():
    text = " The crimson bird was wonderful."
    assert LaptopWorld.truth("sentiment", text) == laptop.true_sentiment(text) > 0
    assert LaptopWorld.truth("descriptiveness", text) == laptop.true_vividness(text) > 0
    assert LaptopWorld.truth("sentiment", text) != LaptopWorld.truth("descriptiveness", text)


# ---- Sampling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_generator(tokenizer, make_causal_lm):
    """`make_generator(model seed, reference seed or None, draws, batch_size, **task fields)`."""

    def make(model=0, reference=None, draws=0, batch_size=2, **fields):
        task = Task("t", **{"response_length": 6, **fields}).bind(tokenizer)
        rho = None if reference is None else make_causal_lm(seed=reference)
        return Generator(make_causal_lm(seed=model), task, seed=draws, batch_size=batch_size, reference=rho)

    return make


def test_responses_come_in_the_order_of_their_queries(make_generator):
    greedy = {"temperature": 1e-5}
    together = make_generator(**greedy).sample(QUERIES).responses
    alone = torch.cat([make_generator(**greedy).sample([query]).responses for query in QUERIES])
    assert len({tuple(row) for row in alone.tolist()}) == len(QUERIES)
    torch.testing.assert_close(together, alone)


def test_several_responses_are_grouped_by_query(make_generator):
    greedy = {"temperature": 1e-5, "batch_size": 6}
    single = make_generator(**greedy).sample(QUERIES).responses
    out = make_generator(**greedy).sample(QUERIES, count=3)
    torch.testing.assert_close(out.responses, single.repeat_interleave(3, 0))
    warm = make_generator(batch_size=6).sample(QUERIES, count=3).responses
    assert len({tuple(row) for row in warm.tolist()}) == 18


@pytest.mark.parametrize("regime", ["fixed", "eos"])
@pytest.mark.parametrize("count", [1, 2])
def test_kl_is_the_log_ratio_of_the_trained_tokens(make_generator, make_causal_lm, regime, count):
    stop = make_generator(temperature=0.7, draws=5).sample(QUERIES, count=count).responses[0, 2].item()
    rule = {"temperature": 0.7, "regime": regime, "truncate_token": stop, "truncate_after": 1}
    generator = make_generator(model=0, reference=1, draws=5, **rule)
    out = generator.sample(QUERIES, count=count)
    assert stop in out.responses[:, 1:5]
    policy, rho = make_causal_lm(seed=0).eval(), make_causal_lm(seed=1).eval()
    expected = []
    for query, response in zip([q for q in QUERIES for _ in range(count)], out.responses, strict=True):
        ids = torch.cat([torch.tensor(query), response])[None]
        pi, reference = (
            token_logprobs(response_logits(model, ids, torch.ones_like(ids), 6), response[None], temperature=0.7)[0]
            for model in (policy, rho)
        )
        stops = [t for t in range(1, 6) if response[t] == stop]
        end = stops[0] + 1 if regime == "eos" and stops else 6
        expected.append((pi - reference)[:end].sum())
    torch.testing.assert_close(out.kl, torch.stack(expected).detach(), atol=1e-4, rtol=0)
    assert out.kl.abs().max() > 0.01


def test_kl_is_zero_without_a_reference_and_against_oneself(make_generator):
    assert make_generator().sample(QUERIES).kl.tolist() == [0.0] * len(QUERIES)
    assert make_generator(model=0, reference=0).sample(QUERIES).kl.abs().max() < 1e-4


def test_draws_are_the_seeds(make_generator):
    first, same, other = (make_generator(draws=seed).sample(QUERIES).responses for seed in (7, 7, 8))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    generator = make_generator(draws=7)
    assert not torch.equal(generator.sample(QUERIES).responses, generator.sample(QUERIES).responses)


# ---- Candidates -----------------------------------------------------------------------------------------------------


class Scripted:
    """Stands for a `Generator`: the next scripted response (the last one again and again) of each query."""

    def __init__(self, task, script):
        self.task, self.script, self.asked = task, script, []

    def sample(self, queries, *, count=1, description=""):
        self.asked.append((queries, count))
        rows = [self._next(tuple(query)) for query in queries for _ in range(count)]
        return Responses(torch.tensor(rows), torch.zeros(len(rows)))

    def _next(self, query):
        script = self.script[query]
        return script.pop(0) if len(script) > 1 else script[0]


def test_candidates_are_valid_cut_and_different_and_incomplete_queries_are_left_out(tokenizer):
    task = Task("t", 4, truncate_token=9, truncate_after=1).bind(tokenizer)
    script = {
        (1,): [[5, 9, 7, 7], [5, 9, 8, 8], [6, 9, 0, 0], [7, 9, 0, 0]],  # the second is the first once cut
        (2,): [[1, 1, 1, 1], [2, 2, 2, 2], [1, 9, 0, 0], [1, 1, 1, 1]],  # ends once only
        (3,): [[9, 5, 9, 1], [6, 6, 6, 9]],  # a stop token before index 1 does not count
    }
    generator = Scripted(task, script)
    rows, rejected = collect_candidates(generator, [[1], [2], [3]], 2)
    assert rows == [
        {"prompt_ids": [1], "completion_ids": [[5, 9], [6, 9]]},
        {"prompt_ids": [3], "completion_ids": [[9, 5, 9], [6, 6, 6, 9]]},
    ]
    # Drawn: 6, then 4, then 2 in each remaining round; ended by the rule: 4, then 3, then none.
    assert rejected == pytest.approx(1 - 7 / (6 + 4 + 2 * (MAX_ROUNDS - 2)))
    assert generator.asked[:3] == [([[1], [2], [3]], 2), ([[1], [2]], 2), ([[2]], 2)]
    assert len(generator.asked) == MAX_ROUNDS


# ---- Evaluation -----------------------------------------------------------------------------------------------------


class Fixed:
    """Stands for a `Generator` whose responses cycle through given rows, with a given KL."""

    def __init__(self, rows, kl=0.0):
        self.rows, self.kl, self.drawn = rows, kl, 0

    def sample(self, queries, *, count=1, description=""):
        rows = [self.rows[(self.drawn + i) % len(self.rows)] for i in range(len(queries) * count)]
        self.drawn += len(rows)
        return Responses(torch.tensor(rows), torch.full((len(rows),), self.kl))


def letter_e(prompts, completions, **columns):
    return [float(text.count("e")) for text in completions]


def few_letters_e(prompts, completions, **columns):
    return [-float(text.count("e")) for text in completions]


@pytest.fixture
def evaluate(tokenizer):
    """`evaluate(zero_shot, policy, judge, truth, task fields)`: the metrics of 40 queries, frontier of 2."""

    def run(zero_shot, policy, judge=letter_e, truth=None, best_of=2, **rule):
        task = Task("t", **{"response_length": 6, **rule}).bind(tokenizer)
        score = KLEntropyReward([letter_e], [1.0], task, tokenizer, FixedKLController(0.0))
        return evaluate_policy(
            {"zero_shot": zero_shot, "policy": policy},
            Judged(score, judge, truth),
            tokenizer,
            [[65 + i % 20] for i in range(40)],
            best_of=best_of,
            frontier_queries=2,
            frontier_samples=64,
        )

    return run


@pytest.fixture
def rows_of(tokenizer):
    """Ids of texts of six tokens each."""
    return lambda *texts: tokenizer(list(texts))["input_ids"]


def test_two_identical_models_draw_and_keep_to_the_reference(make_generator, evaluate):
    models = [make_generator(model=0, reference=0, draws=draws, batch_size=128) for draws in (1, 2)]
    results = evaluate(*models)
    win = results["metrics"]["win_rate"]["zero_shot"]
    assert win["n"] == 40
    assert win["low"] <= 0.5 <= win["high"]
    assert abs(results["metrics"]["kl"]) < 1e-4
    assert abs(results["metrics"]["frontier"]["kl"]) < 1e-4


def test_metrics_have_the_names_that_reports_read(rows_of, evaluate):
    zero_shot, policy = Fixed(rows_of(" the cat was old and she")), Fixed(rows_of(" we loved the bad dog."), kl=1.5)
    results = evaluate(zero_shot, policy, truth=len)
    metrics = results["metrics"]
    assert set(metrics) == {"win_rate", "kl", "frontier", "true_score", "score", "valid_share", "length"}
    assert {"value", "low", "high", "n"} <= set(metrics["win_rate"]["zero_shot"])
    assert {"fraction", "reached", "optimum", "effective_samples", "reason"} <= set(metrics["frontier"])
    models = {"zero_shot", "policy", "best_of_n"}
    assert set(metrics["length"]) == set(metrics["score"]) == set(metrics["valid_share"]) == models
    assert set(metrics["true_score"]) == models | {f"{name}_generator" for name in models}
    json.dumps(results)
    assert set(evaluate(zero_shot, policy)["metrics"]["true_score"]) == models


def test_numbers_of_a_policy_that_always_wins(rows_of, evaluate):
    rule = {"truncate_token": ".", "truncate_after": 1, "penalty": -1.0}
    zero_shot = Fixed(rows_of(" the cat was old and she"))  # two letters e, but no period
    policy = Fixed(rows_of(" we loved the bad. dog"), kl=1.5)  # three letters e before its period
    results = evaluate(zero_shot, policy, truth=len, **rule)
    metrics = results["metrics"]
    assert metrics["win_rate"]["zero_shot"]["value"] == 1.0
    assert metrics["kl"] == 1.5
    assert metrics["score"] == {"zero_shot": -1.0, "policy": 3.0, "best_of_n": -1.0}
    assert metrics["valid_share"] == {"zero_shot": 0.0, "policy": 1.0, "best_of_n": 0.0}
    assert metrics["length"] == {"zero_shot": 6.0, "policy": 5.0, "best_of_n": 6.0}
    assert metrics["true_score"]["zero_shot"] == 2.0  # the judge reads the text, whatever the penalty
    assert metrics["true_score"]["policy_generator"] == len(" we loved the bad.")
    assert results["samples"][1] == {
        "prompt": "c",
        "zero_shot": " the cat was old and she",
        "policy": " we loved the bad.",
        "zero_shot_score": 2.0,
        "policy_score": 3.0,
    }
    assert len(results["samples"]) == 40


def test_best_of_n_is_picked_by_the_score_and_not_by_the_judge(rows_of, evaluate):
    texts = [" we loved the bad dog.", " a cat saw dull cold it"]  # three letters e, and none
    judged_badly = evaluate(Fixed(rows_of(*texts, texts[1])), Fixed(rows_of(texts[1])), few_letters_e, best_of=3)
    metrics = judged_badly["metrics"]
    assert metrics["score"]["best_of_n"] == 3.0
    assert metrics["true_score"]["best_of_n"] == -3.0
    assert metrics["score"]["zero_shot"] < 3.0


def test_the_frontier_is_measured_on_the_score_at_the_policys_kl(rows_of, evaluate):
    texts = [" we loved the bad dog.", " a cat saw dull cold it"]
    results = evaluate(Fixed(rows_of(*texts)), Fixed(rows_of(texts[0]), kl=0.5))
    summary = results["metrics"]["frontier"]
    optimum = optimum_at([[3.0, 0.0] * 32] * 2, 0.5)
    assert (summary["baseline"], summary["reached"], summary["kl"]) == (1.5, 3.0, 0.5)
    assert summary["optimum"] == pytest.approx(optimum.reward)
    assert summary["fraction"] == pytest.approx(frontier_fraction(3.0, 1.5, optimum.reward))
    assert results["frontier"]["points"] == [
        {"name": "zero_shot", "kl": 0.0, "reward": 1.5},
        {"name": "policy", "kl": 0.5, "reward": 3.0},
    ]
    assert all(row["effective_samples"] >= 20 for row in results["frontier"]["kl_penalty_curve"])
    far = evaluate(Fixed(rows_of(*texts)), Fixed(rows_of(texts[0]), kl=3.0))["metrics"]["frontier"]
    assert (far["optimum"], far["fraction"]) == (None, None)
    assert "64 samples a query are too few" in far["reason"]


# ---- Stages ---------------------------------------------------------------------------------------------------------


def stages(tmp_path, name="sentiment", **changed):
    return StyleExperiment(name, StyleArguments(**changed), tmp_path).stages()


def names_of(*arguments, **changed):
    return [stage.name for stage in stages(*arguments, **changed)]


def test_the_stages_of_each_kind_of_run(tmp_path):
    everything = ["classifier", "sft", "collect", "label", "reward", "policy", "evaluate"]
    assert names_of(tmp_path) == everything
    assert names_of(tmp_path, "descriptiveness") == everything[1:]
    direct = ["classifier", "sft", "collect", "policy", "evaluate"]
    assert names_of(tmp_path, mode="direct") == direct
    assert names_of(tmp_path, "descriptiveness", mode="direct") == direct[1:]
    online = {"mode": "online", "policy": {"max_steps": 2}}
    assert names_of(tmp_path, **online) == ["classifier", "sft", "collect", "label", "policy", "evaluate"]
    with pytest.raises(ValueError, match="The task 'tldr' is unknown; this experiment has sentiment, descriptiveness"):
        stages(tmp_path, "tldr")


def test_every_argument_that_changes_results_belongs_to_a_stage(tmp_path):
    people = str(tmp_path / "labels.db")
    modes = [stages(None), stages(None, label_store=people), stages(None, mode="online", policy={"max_steps": 2})]
    modes.append(stages(None, shared_trunk_labels=8))
    read = {key for mode in modes for stage in mode for key in stage.settings} - {"task_name"}
    unread = {
        "output_dir", "stages", "reuse_from", "batch_size", "cpu_threads", "report_to", "label_poll_seconds",
        "requires",
    }  # fmt: skip
    assert read == {item.name for item in fields(StyleArguments)} - unread


@pytest.mark.parametrize(
    ("changes", "origin"),
    [
        ({"label_error_rate": 0.25}, "a simulated labeller of the task sentiment, 25% of its labels slips"),
        ({"label_store": "labels.db"}, "people, on the labelling page"),
        ({"label_store": "labels.db", "reward": {"label_origin": "two authors"}}, "two authors"),
    ],
)
def test_the_reward_models_card_says_who_labelled(tmp_path, monkeypatch, changes, origin):
    monkeypatch.chdir(tmp_path)
    experiment = StyleExperiment("sentiment", StyleArguments(**changes), tmp_path)
    assert experiment.trainer_config("reward", tmp_path).label_origin == origin


def test_one_process_alone_notes_which_ready_models_are_used(tmp_path, monkeypatch):
    """Two at once would write and move the same temporary file."""
    own = {"model": "org/lm", "documents": "texts.jsonl", "judge_model": "org/judge"}
    experiment = StyleExperiment("sentiment", StyleArguments(**own), tmp_path)
    notes = {"start.json": {"model": "org/lm"}, "metrics.json": {"model": "org/judge"}}
    for main in (False, True):
        for module in ("style", "training"):
            state = SimpleNamespace(is_main_process=main)
            monkeypatch.setattr(f"trl_ziegler.experiments.{module}.PartialState", lambda state=state: state)
        experiment.classifier(tmp_path)
        experiment.sft(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == (set(notes) if main else set())
    assert {name: json.loads((tmp_path / name).read_text()) for name in notes} == notes


def test_the_laptop_world_needs_a_trained_start_model(tmp_path):
    with pytest.raises(ValueError, match="The section 'sft' is empty, but the laptop world has no trained model"):
        StyleExperiment("sentiment", StyleArguments(), tmp_path).sft(tmp_path)


@pytest.mark.parametrize(
    "changed, rerun",
    [
        ({"policy": {"learning_rate": 1e-5}}, ["policy", "evaluate"]),
        ({"frontier_samples": 7}, ["evaluate"]),
        ({"reward": {"learning_rate": 1e-5}}, ["reward", "policy", "evaluate"]),
        ({"label_error_rate": 0.1}, ["label", "reward", "policy", "evaluate"]),
        ({"num_candidates": 3}, ["collect", "label", "reward", "policy", "evaluate"]),
        ({"num_policy_queries": 3}, ["collect", "label", "reward", "policy", "evaluate"]),
        ({"task": {"temperature": 1.0}}, ["collect", "label", "reward", "policy", "evaluate"]),
        ({"sft": {"max_steps": 3, "bf16": False}}, ["sft", "collect", "label", "reward", "policy", "evaluate"]),
        ({"seed": 2}, ["classifier", "sft", "collect", "label", "reward", "policy", "evaluate"]),
        ({"batch_size": 3, "cpu_threads": 1, "report_to": "none", "output_dir": "elsewhere"}, []),
    ],
)
def test_a_changed_setting_reruns_the_stages_that_read_it_and_those_that_build_on_them(tmp_path, changed, rerun):
    ran = []

    def run(**arguments):
        recorded = [
            replace(stage, run=lambda folder, name=stage.name: ran.append(name))
            for stage in stages(tmp_path, **arguments)
        ]
        run_stages(tmp_path, recorded)

    run()
    ran.clear()
    run(**changed)
    assert ran == rerun


def test_more_samples_than_a_batch_holds_are_drawn_in_parts(make_causal_lm, tokenizer):
    task = Task("t", 4, temperature=1.0).bind(tokenizer)
    generator = Generator(make_causal_lm(), task, seed=0, batch_size=3)
    rows = []
    inner = generator._sample_batch
    generator._sample_batch = lambda ids, mask, count: rows.append(len(ids) * count) or inner(ids, mask, count)
    out = generator.sample([[5, 6], [7]], count=8)
    assert rows == [3, 3, 2, 3, 3, 2]
    assert out.responses.shape == (16, 4)
    assert len({tuple(row) for row in out.responses.tolist()}) == 16


def test_processes_share_the_samples_that_a_reward_model_is_normalised_over(monkeypatch):
    """A sample that each of them scored would be counted by each."""
    scored = []
    monkeypatch.setattr(training, "normalize_reward_model", lambda model, *pairs, **rule: scored.append(pairs))
    samples = [{"prompt_ids": [i], "response_ids": [i, i]} for i in range(5)]
    for rank in (0, 1):
        state = SimpleNamespace(process_index=rank, num_processes=2)
        monkeypatch.setattr(training, "PartialState", lambda state=state: state)
        training.normalize_over(None, samples)
    assert scored == [([[0], [2], [4]], [[0, 0], [2, 2], [4, 4]]), ([[1], [3]], [[1, 1], [3, 3]])]


def test_a_reward_model_below_chance_stops_the_pipeline():
    """A flipped sign makes the best candidate the one it likes least; four picks in a hundred are no accident."""
    refuse_below_chance({"accuracy": 0.24, "n": 512, "chance": 0.25})
    with pytest.raises(RuntimeError, match=r"agrees with 0\.040 of the 100 held-out labels, guessing with 0\.250"):
        refuse_below_chance({"accuracy": 0.04, "n": 100, "chance": 0.25})


def test_a_few_held_out_labels_below_chance_do_not_stop_the_pipeline():
    """Three of 32: a 95 % interval lies below chance, yet one guesser in forty does no better."""
    refuse_below_chance({"accuracy": 3 / 32, "n": 32, "chance": 0.25})
    with pytest.raises(RuntimeError, match=r"0\.000 of the 32 held-out labels"):
        refuse_below_chance({"accuracy": 0.0, "n": 32, "chance": 0.25})
