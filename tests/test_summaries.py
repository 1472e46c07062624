"""What a summarization run is made of: its stages and their settings, records and candidates."""

import gc
import shutil
import weakref
from dataclasses import fields, replace
from pathlib import Path

import pytest

from trl_ziegler.experiments import summaries
from trl_ziegler.experiments.arguments import SummaryArguments
from trl_ziegler.experiments.generation import authors_of
from trl_ziegler.experiments.pipeline import run_stages, write_json
from trl_ziegler.experiments.summaries import SummaryExperiment
from trl_ziegler.tasks import part_ids

pytest_plugins = "summaries_fixtures"


# ---- Stages ---------------------------------------------------------------------------------------------------------

BEFORE, ROUND = ["base", "sft"], ["collect", "label", "reward", "policy"]
ALL = [*BEFORE, *ROUND, "evaluate"]
ONE_UPDATE = {"max_steps": 1}


def names_of(experiment):
    return [stage.name for stage in experiment.stages()]


def test_the_stages_of_each_kind_of_run(make_experiment):
    assert names_of(make_experiment()) == names_of(make_experiment("cnndm", layout="stiennon")) == ALL
    both = make_experiment(starts=["supervised", "zero_shot"])
    assert names_of(both) == [*ALL[:-1], "policy_zero_shot", "evaluate"]
    assert names_of(make_experiment(mode="direct")) == [*BEFORE, "collect", "policy", "evaluate"]
    online = make_experiment(mode="online", policy=ONE_UPDATE)
    assert names_of(online) == [*BEFORE, "collect", "label", "policy", "evaluate"]
    rounds = make_experiment(rounds=3, starts=["zero_shot", "supervised"])
    numbered = [f"{name}_round_{number}" for number in (1, 2) for name in ROUND]
    assert names_of(rounds) == [*BEFORE, *numbered, *ROUND, "policy_supervised", "evaluate"]
    with pytest.raises(ValueError, match="The task 'sentiment' is unknown; this experiment has tldr, cnndm"):
        make_experiment("sentiment")


def test_every_argument_that_changes_results_belongs_to_a_stage(make_experiment, tmp_path):
    people = str(tmp_path / "labels.db")
    kinds = [make_experiment(), make_experiment(label_store=people), make_experiment(mode="online", policy=ONE_UPDATE)]
    read = {key for kind in kinds for stage in kind.stages() for key in stage.settings} - {"task_name", "start"}
    unread = {
        "output_dir", "stages", "reuse_from", "batch_size", "cpu_threads", "report_to", "label_poll_seconds",
        "requires",
    }  # fmt: skip
    assert read == {item.name for item in fields(SummaryArguments)} - unread


def record_run(experiment):
    """Names of the stages that a run of `experiment` would not skip."""
    ran = []
    stages = [replace(stage, run=lambda folder, name=stage.name: ran.append(name)) for stage in experiment.stages()]
    run_stages(experiment.run_dir, stages)
    return ran


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """Run directory whose stages are all complete with the default settings."""
    folder = tmp_path_factory.mktemp("finished")
    assert record_run(SummaryExperiment("tldr", SummaryArguments(), folder)) == ALL
    return folder


@pytest.mark.parametrize(
    "changed, rerun",
    [
        ({"few_shot_examples": 1}, ["evaluate"]),
        ({"starts": ["supervised", "zero_shot"]}, ["policy_zero_shot", "evaluate"]),
        ({"policy": {"learning_rate": 1e-5}}, ["policy", "evaluate"]),
        ({"num_curve_queries": 7}, ["policy", "evaluate"]),
        ({"reward": {"learning_rate": 1e-5}}, ["reward", "policy", "evaluate"]),
        ({"label_error_rate": 0.1}, ["label", "reward", "policy", "evaluate"]),
        ({"label_noise": 0.1}, ["label", "reward", "policy", "evaluate"]),
        ({"starts": ["zero_shot"]}, [*ROUND, "evaluate"]),
        ({"num_candidates": 3}, [*ROUND, "evaluate"]),
        ({"candidate_sources": ["zero_shot", "reference"]}, [*ROUND, "evaluate"]),
        ({"normalize_to": "references"}, [*ROUND, "evaluate"]),
        ({"num_labels": 3}, [*ROUND, "evaluate"]),
        ({"num_policy_queries": 3}, [*ROUND, "evaluate"]),
        ({"num_normalization_samples": 3}, [*ROUND, "evaluate"]),
        ({"mode": "direct"}, ["collect", "policy", "evaluate"]),
        ({"rounds": 2}, [*(f"{name}_round_1" for name in ROUND), *ROUND, "evaluate"]),
        ({"sft_learning_rates": [1e-4]}, ALL[1:]),
        ({"num_eval_queries": 3}, ALL[1:]),
        ({"base": {"max_steps": 3, "bf16": False}}, ALL),
        ({"summary_tokens": [1, 20]}, ALL),
        ({"layout": "stiennon"}, ALL),
        ({"task": {"temperature": 1.0}}, ALL),
        ({"seed": 2}, ALL),
        ({"batch_size": 3, "cpu_threads": 1, "report_to": "none", "output_dir": "elsewhere"}, []),
    ],
)
def test_a_changed_setting_reruns_the_stages_that_read_it_and_those_that_build_on_them(
    make_experiment, finished_run, changed, rerun
):
    experiment = make_experiment(**changed)
    shutil.copytree(finished_run, experiment.run_dir)
    assert record_run(experiment) == rerun


def test_all_policies_are_trained_again_with_other_settings(make_experiment):
    both = {"starts": ["supervised", "zero_shot"]}
    record_run(make_experiment(**both))
    rerun = record_run(make_experiment(**both, policy={"learning_rate": 1e-5}))
    assert rerun == ["policy", "policy_zero_shot", "evaluate"]


def test_the_laptop_world_needs_a_trained_base(make_experiment, tmp_path):
    with pytest.raises(ValueError, match="The section 'base' is empty, but the laptop world has no trained model"):
        make_experiment().base(tmp_path)


# ---- Records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tldr", "cnndm"])
def test_contexts_are_prefix_query_and_suffix_and_references_end_with_the_stop_token(
    make_experiment, own_files, rows_of, tokenizer, name
):
    rows = rows_of(60)
    rows[0]["summary"] = " ".join(["a very old cat"] * 20)
    experiment = make_experiment(
        name, **own_files(rows), task={"query_length": 60, "response_length": 20, "truncate_after": 0}
    )
    records = experiment.records("train") + experiment.records("validation")
    prefix, suffix = part_ids(tokenizer, experiment.task.prefix), part_ids(tokenizer, "\n\nTL;DR:")
    by_id = {row["id"]: row for row in rows}
    assert {record["id"] for record in records} == set(by_id)
    newline = part_ids(tokenizer, "\n")
    for record in records:
        row = by_id[record["id"]]
        ids = part_ids(tokenizer, row["document"])[:60]
        if name == "cnndm":  # up to the last line's end among the first 60 tokens
            ids = ids[: len(ids) - ids[::-1].index(newline[0])]
        assert record["prompt_ids"] == ids
        assert record["context_ids"] == [*prefix, *ids, *suffix]
        assert record["prompt"] == tokenizer.decode(ids)
        summary = part_ids(tokenizer, f" {row['summary']}")
        assert record["reference_ids"] == summary[:19] + newline
        assert len(record["reference_ids"]) <= 20
        assert record["reference"] == row["summary"]
    assert max(len(record["reference_ids"]) for record in records) == 20


def test_a_stiennon_query_holds_title_and_subreddit_and_its_summary_ends_with_eos(
    make_experiment, own_files, rows_of, tokenizer
):
    files = own_files(rows_of(40, title="my cat", subreddit="advice"))
    task = {"query_length": 200, "response_length": 20}
    record = make_experiment(**files, layout="stiennon", task=task).records("train")[0]
    assert record["prompt"] == f"SUBREDDIT: r/advice\n\nTITLE: my cat\n\nPOST: {record['document']}\n\nTL;DR:"
    assert record["context_ids"] == record["prompt_ids"] == part_ids(tokenizer, record["prompt"])
    assert record["reference_ids"][-1] == tokenizer.eos_token_id
    article = make_experiment("cnndm", **files, layout="stiennon", task=task).records("train")[0]
    assert article["prompt"] == f"Article:\n{article['document']}\n\nTL;DR:\n"
    with pytest.raises(ValueError, match="`query_length` is None; the layout 'stiennon' cuts posts to a length"):
        make_experiment(**files, layout="stiennon", task={"query_length": None}).records("train")


def test_a_stiennon_post_without_title_is_refused(make_experiment, own_files, rows_of):
    rows = rows_of(40, title="my cat", subreddit="advice")
    rows[3]["title"] = None
    experiment = make_experiment(**own_files(rows), layout="stiennon")
    with pytest.raises(ValueError, match=r"Row 'row 3' has no `title` or `subreddit`.* or use --layout ziegler"):
        experiment.records("train")


def test_articles_without_line_ends_give_no_queries_unless_they_are_cut_hard(make_experiment, own_files, rows_of):
    files = own_files([row | {"document": row["document"].replace("\n", " ")} for row in rows_of(40)])
    with pytest.raises(ValueError, match=r"None of the 40 documents gives a query; .* --task.query_end null"):
        make_experiment("cnndm", **files).records("train")
    assert len(make_experiment("cnndm", **files, task={"query_end": None}).records("train")) == 40


# ---- Candidates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "count", "expected"),
    [
        ("s", 3, ["sss", "sss"]),
        ("sz", 4, ["szsz", "zszs"]),
        ("sz", 3, ["szs", "zsz"]),
        ("srp", 2, ["sr", "rp", "ps", "sr"]),
        ("srp", 3, ["srp", "rps"]),
        ("rs", 4, ["rsss", "srss"]),  # a document has one reference
        ("srp", 6, ["srpsps", "rpspsp", "psrpsp"]),
    ],
)
def test_sources_write_in_turn(sources, count, expected):
    names = {"s": "supervised", "z": "zero_shot", "r": "reference", "p": "policy"}
    for i, letters in enumerate(expected):
        assert authors_of(i, [names[letter] for letter in sources], count) == [names[letter] for letter in letters]


@pytest.fixture
def scripted(monkeypatch):
    """Models that write `[model's number, query's first id, 0]`, `[..., 1]`, ... to each query that they are asked."""
    asked = []

    def collect(generator, queries, count):
        asked.append((generator, len(queries), count))
        # to the query 3 the second model has nothing to say, and to the query 4 what the first model says
        number = {"sft": 1, "base": 2, "policy_round_1": 3}[generator]
        rows = [
            {"prompt_ids": q, "completion_ids": [[1 if q[0] == 4 else number, q[0], i] for i in range(count)]}
            for q in queries
            if (number, q[0]) != (2, 3)
        ]
        return rows, number / 10

    monkeypatch.setattr(summaries, "collect_candidates", collect)
    monkeypatch.setattr(SummaryExperiment, "_generator", lambda self, path, seed: Path(path).parent.name)
    return asked


def records_of(*firsts):
    return [{"prompt_ids": [n], "prompt": f"p{n}", "reference": f"r{n}", "reference_ids": [9, n]} for n in firsts]


@pytest.fixture
def mixed(make_experiment, own_files, rows_of, scripted):
    """`mixed(sources, K, records)`: rows and rejected shares of a first or, with the policy, second round."""

    def collect(sources, count, records, number=1):
        experiment = make_experiment(
            **own_files(rows_of(40)), candidate_sources=sources, num_candidates=count, rounds=2
        )
        (experiment.run_dir / "base").mkdir(parents=True)
        write_json(experiment.run_dir / "base" / "start.json", {"model": None})
        return experiment._candidates(records, number)

    return collect


def test_each_source_gives_its_candidates_and_says_so(mixed):
    rows, rejected = mixed(["supervised", "zero_shot", "reference"], 4, records_of(5, 6))
    assert [row["completion_ids"] for row in rows] == [
        [[1, 5, 0], [1, 5, 1], [2, 5, 0], [9, 5]],
        [[1, 6, 0], [2, 6, 0], [2, 6, 1], [9, 6]],
    ]
    assert rows[0]["sources"] == ["supervised", "supervised", "zero_shot", "reference"]
    assert rows[1]["sources"] == ["supervised", "zero_shot", "zero_shot", "reference"]
    assert rows[0] | {"completion_ids": 0, "completions": 0, "sources": 0} == {
        "prompt_ids": [5], "prompt": "p5", "reference": "r5", "completion_ids": 0, "completions": 0, "sources": 0,
    }  # fmt: skip
    assert rejected == {"supervised": 0.1, "zero_shot": 0.2}


def test_rows_with_equal_candidates_or_too_few_are_left_out(mixed):
    rows, _ = mixed(["supervised", "zero_shot"], 2, records_of(3, 4, 5))
    assert [row["prompt_ids"] for row in rows] == [[5]]


def test_a_source_is_asked_for_the_rows_that_it_writes_for(mixed, scripted):
    rows, rejected = mixed(["supervised", "reference", "policy"], 2, records_of(5, 6, 7), number=2)
    assert [row["sources"] for row in rows] == [
        ["supervised", "reference"], ["reference", "policy"], ["supervised", "policy"],
    ]  # fmt: skip
    assert [row["completion_ids"] for row in rows] == [
        [[1, 5, 0], [9, 5]],
        [[9, 6], [3, 6, 0]],
        [[1, 7, 0], [3, 7, 0]],
    ]
    assert scripted == [("sft", 2, 1), ("policy_round_1", 2, 1)]
    assert rejected == {"supervised": 0.1, "policy": 0.3}


def test_the_policy_writes_from_the_second_round_on(mixed):
    rows, _ = mixed(["supervised", "policy"], 2, records_of(5))
    assert rows[0]["sources"] == ["supervised", "supervised"]


def test_a_run_that_has_ended_leaves_its_texts_to_the_next(make_experiment):
    """A comparison makes many runs in one process."""
    experiment = make_experiment(world={"documents": 20, "eval_documents": 5})
    assert experiment.records("train") is experiment.records("train")
    ended = weakref.ref(experiment), weakref.ref(experiment.world)
    del experiment
    gc.collect()
    assert [reference() for reference in ended] == [None, None]
