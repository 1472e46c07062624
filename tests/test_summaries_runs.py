"""What the stages of a summarization run do: the supervised sweep, labels, rounds, collection, a run end to end."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from trl_ziegler._files import write_jsonl
from trl_ziegler.experiments import summaries
from trl_ziegler.experiments.pipeline import read_jsonl, run_stages, write_json
from trl_ziegler.experiments.summaries import SummaryExperiment
from trl_ziegler.experiments.summaries_records import supervised_rows
from trl_ziegler.labelers import CopiedShare, ReferenceOverlap
from trl_ziegler.reward_wrapper import function_name

pytest_plugins = "summaries_fixtures"

TRAINING = {"save_strategy": "no", "bf16": False, "gradient_checkpointing": None}


# ---- The supervised sweep -------------------------------------------------------------------------------------------


@pytest.fixture
def held_out_losses(monkeypatch):
    """Supervised trainings that do nothing but to have the loss that belongs to their rate."""
    losses = {1e-4: 3.0, 2e-4: 1.0, 4e-4: 2.0}

    class Trainer:
        def __init__(self, *, model, args, train_dataset, eval_dataset, processing_class):
            assert args.completion_only_loss and model.training
            self.rate, self.state = args.learning_rate, SimpleNamespace(log_history=[args.learning_rate])
            self.sizes = len(train_dataset), len(eval_dataset)

        def train(self):
            pass

        def evaluate(self):
            return {"eval_loss": losses[self.rate]}

        def save_model(self, folder):
            Path(folder).mkdir(exist_ok=True)
            write_json(Path(folder) / "rate.json", [self.rate, *self.sizes])

    monkeypatch.setattr(summaries, "SFTTrainer", Trainer)
    return losses


@pytest.mark.parametrize("rates, best", [([1e-4, 2e-4, 4e-4], 2e-4), ([4e-4, 1e-4], 4e-4), (None, 1e-4)])
def test_a_sweep_keeps_the_model_of_the_lowest_held_out_loss(
    make_experiment, own_files, rows_of, held_out_losses, rates, best
):
    sft = {"learning_rate": 1e-4, **TRAINING}
    experiment = make_experiment(**own_files(rows_of(60)), sft=sft, sft_learning_rates=rates, num_eval_queries=8)
    experiment.run_dir.mkdir()
    (experiment.run_dir / "base").mkdir()
    experiment.base(experiment.run_dir / "base")
    experiment.sft(experiment.run_dir)
    assert json.loads((experiment.run_dir / "model" / "rate.json").read_text()) == [best, 59, 1]
    assert json.loads((experiment.run_dir / "log_history.json").read_text()) == [best]
    tried = {str(rate): held_out_losses[rate] for rate in rates or [1e-4]}
    assert json.loads((experiment.run_dir / "metrics.json").read_text()) == {"eval_loss": tried}


def test_a_supervised_training_that_diverged_stops_the_run(make_experiment, own_files, rows_of, held_out_losses):
    held_out_losses[1e-4] = float("nan")
    experiment = make_experiment(**own_files(rows_of(60)), sft={"learning_rate": 1e-4, **TRAINING}, num_eval_queries=8)
    (experiment.run_dir / "base").mkdir(parents=True)
    experiment.base(experiment.run_dir / "base")
    with pytest.raises(RuntimeError, match=r"rate 0\.0001 ended with a held-out loss of nan; lower `sft"):
        experiment.sft(experiment.run_dir)


def test_supervised_rows_are_trained_on_the_reference_alone():
    rows = supervised_rows([{"context_ids": [5, 6, 7], "reference_ids": [8, 9]}])
    assert rows.to_list() == [{"input_ids": [5, 6, 7, 8, 9], "completion_mask": [0, 0, 0, 1, 1]}]


# ---- Labels and rounds ----------------------------------------------------------------------------------------------


def put(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / f"{name}.jsonl", rows)


@pytest.fixture
def trainings(monkeypatch):
    """What the stages hand to the trainings of reward models and policies, which do not happen."""
    made = []
    monkeypatch.setattr(summaries, "train_reward_model", lambda *args, **options: made.append((args, options)))
    monkeypatch.setattr(summaries, "train_policy", lambda *args, **options: made.append((args, options)))
    monkeypatch.setattr(SummaryExperiment, "reward_model", lambda self, number: f"reward model {number}")
    return made


@pytest.fixture
def two_rounds(make_experiment, trainings):
    """`two_rounds(**arguments)`: an experiment whose two rounds have 5 and 4 labels, and queries."""

    def make(**arguments):
        experiment = make_experiment(rounds=2, num_eval_labels=2, num_curve_queries=2, **arguments)
        for number, count in ((1, 5), (2, 4)):
            labels = [{"round": number, "i": i} for i in range(count)]
            put(experiment.folder("label", number), "labels", labels)
            put(experiment.folder("collect", number), "normalization", [{"round": number}])
            put(experiment.folder("collect", number), "train_queries", [{"train": number}])
            put(experiment.folder("collect", number), "eval_queries", [{"eval": i} for i in range(3)])
        (experiment.run_dir / "base").mkdir()
        write_json(experiment.run_dir / "base" / "start.json", {"model": None})
        return experiment

    return make


def test_a_rounds_reward_model_learns_the_labels_of_all_rounds_and_is_held_to_its_own(two_rounds, trainings):
    experiment = two_rounds(normalize_to="references")
    experiment.reward(experiment.run_dir / "x", number=1)
    experiment.reward(experiment.run_dir / "x", number=2)
    (_, _, first_start, first_rows, first_samples), _ = trainings[0]
    (_, _, start, rows, samples), options = trainings[1]
    assert [(row["round"], row["i"]) for row in first_rows] == [(1, i) for i in range(5)]
    assert [(row["round"], row["i"]) for row in rows] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert (first_samples, samples) == ([{"round": 1}], [{"round": 2}])
    assert options == {"held_out": 2, "normalize_to": "references"}
    assert first_start == start == str(experiment.run_dir / "sft" / "model")


def test_later_rounds_continue_the_policy_near_the_supervised_model(two_rounds, trainings):
    experiment = two_rounds()
    supervised = str(experiment.run_dir / "sft" / "model")
    for number in (1, 2):
        experiment.policy(experiment.run_dir / "x", number=number)
    (_, _, start, rows, rewards, _), options = trainings[0]
    assert (start, options["reference"], rows) == (supervised, None, [{"train": 1}])
    assert rewards[0] == "reward model 1"
    (_, _, start, rows, rewards, _), options = trainings[1]
    assert start == str(experiment.run_dir / "policy_round_1" / "model")
    assert (options["reference"], rows, rewards[0]) == (supervised, [{"train": 2}], "reward model 2")
    assert options["eval_rows"] == [{"eval": 0}, {"eval": 1}]


def test_a_further_start_trains_from_itself_on_the_last_rounds_reward(two_rounds, trainings):
    experiment = two_rounds(starts=["supervised", "zero_shot"])
    stage = next(stage for stage in experiment.stages() if stage.name == "policy_zero_shot")
    stage.run(experiment.run_dir / "x")
    [((_, _, start, rows, rewards, _), options)] = trainings
    assert (start, options["reference"]) == (str(experiment.run_dir / "base" / "model"), None)
    assert (rows, rewards[0]) == ([{"train": 2}], "reward model 2")


def weights_by_name(made):
    (_, config, _, _, rewards, _), options = made
    names = ["model" if isinstance(reward, str) else function_name(reward) for reward in rewards]
    return dict(zip(names, config.reward_weights, strict=True)), options["aliases"]


def test_a_policy_is_trained_on_the_reward_model_and_the_rest_is_logged(two_rounds, trainings, own_files, rows_of):
    two_rounds().policy(Path("x"), number=1)
    weights, aliases = weights_by_name(trainings[0])
    assert weights == {"model": 1.0, "rouge_mean": 0.0, "copied_share": 0.0, "summary_truth": 0.0}
    assert aliases == {"score/true": "summary_truth", "copied_share": "copied_share", "rouge_mean": "rouge_mean"}


def test_on_ones_own_files_rouge_is_the_judge_and_is_logged_once(make_experiment, trainings, own_files, rows_of):
    for mode in ("best_of_k", "direct"):
        experiment = make_experiment(**own_files(rows_of(40)), mode=mode)
        put(experiment.run_dir / "sft", "x", [])
        for name in ("train_queries", "eval_queries"):
            put(experiment.run_dir / "collect", name, [])
        experiment.policy(experiment.run_dir / "x", number=1)
    (weights, aliases), (direct, _) = map(weights_by_name, trainings)
    assert weights == {"model": 1.0, "rouge_mean": 0.0, "copied_share": 0.0}
    assert direct == {"rouge_mean": 1.0, "copied_share": 0.0}
    assert aliases["score/true"] == aliases["rouge_mean"] == "rouge_mean"
    (_, _, _, _, rewards, _), _ = trainings[1]
    assert list(map(type, rewards)) == [ReferenceOverlap, CopiedShare]


def test_pretraining_text_is_the_documents_and_given_where_its_loss_counts(two_rounds, trainings, own_files, rows_of):
    two_rounds(**own_files(rows_of(40)), policy={"ptx_coef": 1.0}).policy(Path("x"), number=1)
    _, options = trainings[0]
    assert sorted(options["pretraining"]["text"]) == sorted(row["document"] for row in rows_of(40))


def test_labels_are_the_best_of_a_ranking_by_the_judge(make_experiment, own_files, rows_of):
    experiment = make_experiment(**own_files(rows_of(40)))
    candidates = [{"prompt": "p", "completions": ["x", "a cat", "a cat sat"], "reference": "a cat sat", "sources": []}]
    put(experiment.run_dir / "collect", "candidates", candidates)
    experiment.label(experiment.run_dir, number=1)
    (row,) = read_jsonl(experiment.run_dir / "labels.jsonl")
    assert row == {**candidates[0], "label": 2, "ranking": [2, 1, 0]}


# ---- Collection -----------------------------------------------------------------------------------------------------


@pytest.fixture
def collected(make_experiment, own_files, rows_of, monkeypatch):
    """`collected(number, **arguments)`: an experiment after its stage `collect`, whose models write one id, 7."""

    def sample(queries):
        return SimpleNamespace(responses=SimpleNamespace(tolist=lambda: [[7, len(q)] for q in queries]))

    monkeypatch.setattr(SummaryExperiment, "_generator", lambda self, path, seed: SimpleNamespace(sample=sample))
    monkeypatch.setattr(SummaryExperiment, "_candidates", lambda self, records, number: (records, {"x": 0.5}))

    def run(number=1, **arguments):
        counts = {"num_labels": 10, "num_eval_labels": 5, "num_policy_queries": 3, "num_normalization_samples": 4}
        experiment = make_experiment(**own_files(rows_of(60)), **counts, **arguments)
        experiment.run_dir.mkdir()
        experiment.collect(experiment.run_dir, number=number)
        return experiment

    return run


def test_each_round_labels_documents_of_its_own(collected):
    experiment = collected(number=2, rounds=2)
    records = experiment.records("train")
    assert len(records) == 59
    assert [row["id"] for row in read_jsonl(experiment.run_dir / "candidates.jsonl")] == [
        record["id"] for record in records[15:30]
    ]
    queries = read_jsonl(experiment.run_dir / "train_queries.jsonl")
    assert [row["prompt_ids"] for row in queries] == [record["prompt_ids"] for record in records[:3]]
    assert set(queries[0]) == {"prompt_ids", "prompt", "reference"}
    assert len(read_jsonl(experiment.run_dir / "eval_queries.jsonl")) == 1


def test_more_labels_than_documents_are_refused(collected):
    with pytest.raises(
        ValueError, match="The documents give 59 queries, 60 are to be labelled in 4 rounds; give more"
    ):
        collected(number=4, rounds=4)


@pytest.mark.parametrize("rule", ["samples", "references"])
def test_the_reward_is_normalised_over_samples_or_references(collected, rule):
    experiment = collected(normalize_to=rule)
    records = experiment.records("train")[:4]
    responses = {
        "samples": [[7, len(r["prompt_ids"])] for r in records],
        "references": [r["reference_ids"] for r in records],
    }
    assert read_jsonl(experiment.run_dir / "normalization.jsonl") == [
        {"prompt_ids": record["prompt_ids"], "response_ids": response}
        for record, response in zip(records, responses[rule], strict=True)
    ]


def test_direct_training_collects_queries_only(collected):
    experiment = collected(mode="direct")
    assert {path.name for path in experiment.run_dir.iterdir()} == {"train_queries.jsonl", "eval_queries.jsonl"}


# ---- End to end -----------------------------------------------------------------------------------------------------

SECTIONS = {
    # A random model hardly ever writes a newline, so any response will do.
    "task": {"query_length": 40, "response_length": 8, "truncate_after": 0, "truncate_token": None, "penalty": None},
    "sft": {"max_steps": 1, "per_device_train_batch_size": 4, **TRAINING},
    "reward": {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"},
    "policy": {
        "max_steps": 1, "per_device_train_batch_size": 8, "num_ppo_epochs": 1, "kl_coef": 0.1, "logging_steps": 1,
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "num_sample_generations": 0,
    },
}  # fmt: skip
COUNTS = {
    "num_labels": 12, "num_eval_labels": 6, "num_policy_queries": 16, "num_eval_queries": 8, "few_shot_examples": 1,
    "num_normalization_samples": 6, "num_curve_queries": 4, "num_candidates": 2,
}  # fmt: skip


@pytest.mark.slow
def test_ones_own_model_and_documents_from_the_first_stage_to_the_last(make_experiment, own_files, rows_of):
    experiment = make_experiment("cnndm", **own_files(rows_of(120)), **COUNTS, **SECTIONS)
    run_stages(experiment.run_dir, experiment.stages())
    assert not list(experiment.run_dir.glob("*.partial"))
    samples = read_jsonl(experiment.run_dir / "evaluate" / "samples.jsonl")
    metrics = json.loads((experiment.run_dir / "evaluate" / "metrics.json").read_text())
    authors = {"supervised", "zero_shot", "few_shot", "policy", "best_of_n", "lead_3", "reference"}
    assert set(metrics["rouge"]) == authors
    assert metrics["rouge"]["reference"]["mean"] == 1.0
    assert [row["reference"] for row in samples] == [row["reference"] for row in experiment.records("validation")]
    log = json.loads((experiment.run_dir / "policy" / "log_history.json").read_text())
    assert {"score/true", "rouge_mean", "eval_score/true", "eval_copied_share"} <= {key for row in log for key in row}
