"""The recipe scripts and every YAML beside them: what they accept, what they refuse, and small runs end to end."""

import contextlib
import gzip
import io
import json
import random
import re
import runpy
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

from trl_ziegler.experiments.arguments import parse_recipe_arguments, section_config
from trl_ziegler.experiments.comparison import ComparisonArguments
from trl_ziegler.experiments.own_data import PolicyScriptArguments, RewardScriptArguments
from trl_ziegler.experiments.recipe import EXPERIMENTS, run_recipe
from trl_ziegler.experiments.simulated_labellers import SimulatedLabellersArguments
from trl_ziegler.experiments.style import StyleExperiment
from trl_ziegler.experiments.summaries_worlds import SummaryWorldConfig
from trl_ziegler.experiments.worlds import WorldConfig
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.reward_trainer import BestOfKRewardConfig

RECIPES = Path(__file__).parents[1] / "recipes"
CONFIGS = sorted(path for path in RECIPES.glob("configs/*/*.yaml") if path.parent.name != "experiments")
SCRIPTS = sorted(RECIPES.glob("*.py"))
KINDS = {task: kind for kind in EXPERIMENTS for task in kind.tasks}
# The recipes choose the device themselves; without a GPU torch says that it cannot pin memory.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")


def smoke(task):
    return RECIPES / "configs" / task / "smoke.yaml"


# ---- The files ------------------------------------------------------------------------------------------------------


def test_every_recipe_has_its_configs():
    assert {path.parent.name for path in CONFIGS} == set(KINDS)
    for task in KINDS:
        assert (RECIPES / f"{task}.py").is_file()
        names = {path.stem for path in CONFIGS if path.parent.name == task}
        assert {"laptop", "local", "gpt2-124m", "paper-774m", "smoke"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_config_passes_the_real_parser_into_the_configs_of_its_stages(path, tmp_path, monkeypatch):
    kind, made = KINDS[path.parent.name], {}

    def remember(config_class, name, section, **forced):
        made[name] = section_config(config_class, name, section, **forced)
        return made[name]

    monkeypatch.setattr("trl_ziegler.experiments.experiment.section_config", remember)
    given = [f"--{argument}=own" for argument in yaml.safe_load(path.read_text()).get("requires", [])]
    given += ["--reviews=own"] if given and kind is StyleExperiment else []
    args, name = parse_recipe_arguments(kind.arguments, path, given)
    experiment = kind(path.parent.name, args, tmp_path)
    assert name == path.stem
    sizes = WorldConfig if kind is StyleExperiment else SummaryWorldConfig
    made["task"], made["world"] = experiment.task, section_config(sizes, "world", args.section("world"))
    for key, value in yaml.safe_load(path.read_text()).items():
        if isinstance(value, dict):
            read = {k: getattr(made[key], k) for k in value}
            assert read == {k: read[k] if v is None else v for k, v in value.items()}  # None leaves it to the class
            assert not any(read[k] for k, v in value.items() if v is None)
        else:
            assert getattr(args, key) == value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_config_sets_what_its_recipe_does_not_read(path):
    config = yaml.safe_load(path.read_text())
    if path.parent.name == "descriptiveness":
        assert not {"reviews", "review_tokens", "judge_model"} & set(config)
    if "model" in config:
        assert "world" not in config
    if "sft_learning_rates" in config:
        assert "learning_rate" not in config["sft"]
    policy = config["policy"]
    assert "kl_target" in policy or "kl_horizon" not in policy
    assert "ptx_coef" in policy or not {"ptx_length", "ptx_batch_size"} & set(policy)


# ---- The command line -----------------------------------------------------------------------------------------------


def run_script(script, argv, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script.name, *argv])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_lists_every_argument(script, monkeypatch, capsys):
    own = {
        "reward": (RewardScriptArguments, BestOfKRewardConfig, ModelConfig),
        "ppo": (PolicyScriptArguments, ZieglerPPOConfig, ModelConfig),
        "simulated_labellers": (SimulatedLabellersArguments,),
        "experiments": (ComparisonArguments,),
    }
    with pytest.raises(SystemExit) as end:
        run_script(script, ["--help"], monkeypatch)
    assert end.value.code == 0
    listed = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    classes = own[script.stem] if script.stem in own else (KINDS[script.stem].arguments,)
    assert {item.name for config in classes for item in fields(config) if item.init} <= listed


@pytest.mark.parametrize("task", KINDS)
def test_a_recipe_without_config_takes_its_own_laptop_yaml_wherever_it_is_started(task, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("trl_ziegler.experiments.recipe.run_recipe", lambda *arguments: started.append(arguments))
    monkeypatch.chdir(tmp_path)
    run_script(RECIPES / f"{task}.py", [], monkeypatch)
    [(name, default_config)] = started
    assert name == task
    assert default_config.resolve() == (RECIPES / "configs" / task / "laptop.yaml").resolve()
    args, config_name = parse_recipe_arguments(KINDS[task].arguments, default_config, [])
    assert (config_name, args.model, args.documents) == ("laptop", None, None)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_paths_in_a_recipes_usage_exist(script):
    for path in re.findall(r"recipes/\S+\.(?:yaml|py)", script.read_text()):
        assert (RECIPES.parent / path).is_file(), path


# ---- What is refused before anything runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, message",
    [
        (
            ["--policy.lerning_rate", "1"],
            "Unknown key 'lerning_rate' in the section 'policy'; did you mean 'learning_rat",
        ),
        (["--num_label", "5"], r"arguments are not used by the HfArgumentParser: \['--num_label', '5'\]"),
        (["--reward.loss_typ", "x"], "Unknown key 'loss_typ' in the section 'reward'; did you mean 'loss_type'"),
        (["--sft.packin", "true"], "Unknown key 'packin' in the section 'sft'; did you mean 'packing'"),
        (
            ["--classifier.max_step", "1"],
            "Unknown key 'max_step' in the section 'classifier'; did you mean 'max_steps'",
        ),
        (["--task.query_lenth", "1"], "Unknown key 'query_lenth' in the section 'task'; did you mean 'query_length'"),
        (["--world.passage", "1"], "Unknown key 'passage' in the section 'world'; did you mean 'passages'"),
        (["--model", "m", "--documents", "d", "--world.passage", "1"], "Unknown key 'passage' in the section 'world'"),
        (["--policy.seed", "1"], "Unknown key 'seed' in the section 'policy'"),
        (["--polcy.learning_rate", "1"], "--polcy.learning_rate"),
        (["--num_lables", "1"], "--num_lables"),
        (["--policy.kl_coef", "-1"], "`kl_coef` is -1"),
        (["--task.temperature", "0"], "`temperature` is 0"),
        (["--policy", "[1]"], r"The section 'policy' is '\[1\]'; give keys and values"),
        (["--config"], "--config needs a value"),
    ],
)
def test_a_wrong_argument_is_named_before_any_stage_runs(tmp_path, argv, message):
    with pytest.raises(ValueError, match=message):
        run_recipe("sentiment", smoke("sentiment"), ["--output_dir", str(tmp_path / "run"), *argv])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--base.packin", "true"], "Unknown key 'packin' in the section 'base'; did you mean 'packing'"),
        (["--world.passages", "1"], "Unknown key 'passages' in the section 'world'"),
        (["--classifier.max_steps", "1"], "--classifier.max_steps"),
        (["--frontier_queries", "1"], "--frontier_queries"),
        (["--starts", "reference"], r"`starts` is \['reference'\]; give one or more of supervised, zero_shot"),
        (["--starts", "zero_shot", "zero_shot"], "`starts` is .* each once"),
        (["--candidate_sources", "reference"], r"`candidate_sources` is \['reference'\]; the first round needs"),
        (["--candidate_sources", "supervised", "policy"], "`candidate_sources` has 'policy', .* raise `rounds`"),
        (["--rounds", "0"], "`rounds` is 0; give at least 1"),
        (["--summary_tokens", "24"], r"`summary_tokens` is \[24\]; give the fewest and the most"),
        (["--model", "m", "--documents", "d", "--label_noise", "0.1"], "`label_noise` is 0.1, but only the laptop"),
        (["--model", "m"], "`model` and `documents` go together"),
    ],
)
@pytest.mark.parametrize("task", ["tldr", "cnndm"])
def test_a_wrong_argument_of_a_summarization_is_named_before_any_stage_runs(tmp_path, task, argv, message):
    with pytest.raises(ValueError, match=message):
        run_recipe(task, smoke(task), ["--output_dir", str(tmp_path / "run"), *argv])
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_of_a_config_file_is_named(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("num_labels: 64\nnum_canidates: 4\n")
    with pytest.raises(ValueError, match="--num_canidates"):
        run_recipe("sentiment", smoke("sentiment"), [f"--config={config}", "--output_dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


# ---- Small runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def private_places(tmp_path_factory):
    """No cache of these runs lies in the home directory."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
        patch.setattr("evaluate.config.HF_METRICS_CACHE", folder / "metrics")
        yield


def run(task, folder, *argv, config=None):
    """Run a recipe into `folder`; returns the lines it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run_recipe(task, config or smoke(task), ["--output_dir", str(folder), "--cpu_threads", "1", *argv])
    return out.getvalue().strip().splitlines()


@pytest.fixture(scope="module")
def sentiment_run(tmp_path_factory):
    """Folder and printed lines of one run at the smallest scale."""
    folder = tmp_path_factory.mktemp("sentiment")
    return folder, run("sentiment", folder)


def finished_stages(folder):
    return {path.parent.name for path in folder.glob("*/manifest.json")}


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


STAGES = {"classifier", "sft", "collect", "label", "reward", "policy", "evaluate"}


@pytest.mark.slow
def test_a_run_leaves_every_artifact_and_names_its_report_last(sentiment_run):
    folder, lines = sentiment_run
    assert finished_stages(folder) == STAGES
    for name in ("config.yaml", "metrics.json", "samples.jsonl", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert not list(folder.glob("*.partial"))
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    assert "<script" not in (folder / "report.html").read_text()
    for model in ("classifier", "sft", "reward", "policy"):
        assert (folder / model / "model" / "model.safetensors").is_file()
        assert (folder / model / "model" / "tokenizer.json").is_file()


@pytest.mark.slow
def test_the_reward_model_and_the_policy_of_a_run_have_cards(sentiment_run):
    folder, _ = sentiment_run
    origin = "a simulated labeller of the task sentiment, 0% of its labels slips"
    reward, policy = ((folder / name / "model" / "README.md").read_text() for name in ("reward", "policy"))
    assert f"- Labels: {origin}." in reward and "- Held-out labels: accuracy 0." in reward
    assert f'load_reward_model("{folder}/reward/model")' in reward
    assert f"`model`, weight 1: a reward model; its labels: {origin}." in policy
    rate = metrics_of(folder)["win_rate"]["zero_shot"]["value"]
    assert f"| `zero_shot` | {rate:.3f} | " in policy


@pytest.mark.slow
def test_a_runs_metrics_have_the_promised_names(sentiment_run):
    folder, _ = sentiment_run
    metrics = metrics_of(folder)
    assert (metrics["task"], metrics["config"], metrics["seed"], metrics["kl_target"]) == (
        "sentiment",
        "smoke",
        1,
        2.0,
    )
    assert {"value", "low", "high", "n"} <= set(metrics["win_rate"]["zero_shot"])
    assert metrics["win_rate"]["zero_shot"]["n"] == 32
    assert isinstance(metrics["kl"], float)
    assert {"fraction", "reached", "optimum", "effective_samples"} <= set(metrics["frontier"])
    assert {"accuracy", "chance", "n"} <= set(metrics["reward_model"])
    assert metrics["reward_model"]["chance"] == 0.25
    models = {"zero_shot", "policy", "best_of_n"}
    assert set(metrics["true_score"]) == models | {f"{name}_generator" for name in models}
    assert set(metrics["length"]) == models
    assert set(metrics["stage_seconds"]) == STAGES
    assert metrics["wall_seconds"] > 0
    assert {"torch", "trl", "transformers", "trl_ziegler"} <= set(metrics["versions"])


@pytest.mark.slow
def test_candidates_and_labels_of_a_run_follow_the_tasks_rule(sentiment_run):
    folder, _ = sentiment_run
    rows = [json.loads(line) for line in (folder / "label" / "labels.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        assert len({tuple(ids) for ids in row["completion_ids"]}) == 4
        assert all(17 <= len(ids) <= 24 for ids in row["completion_ids"])
        assert all(text.endswith(".") for text in row["completions"])
        assert row["label"] in range(4)
    log = json.loads((folder / "policy" / "log_history.json").read_text())
    assert all(row["score/true"] == row["rewards/sentiment"] for row in log if "score/raw" in row)
    assert sum("score/true" in row for row in log) == 2


@pytest.mark.slow
def test_a_second_run_skips_every_stage_and_keeps_its_results(sentiment_run):
    folder, _ = sentiment_run
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/manifest.json")}
    metrics = metrics_of(folder)
    lines = run("sentiment", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/manifest.json")} == before
    assert all(line.endswith("finished before") for line in lines if line.startswith("["))
    assert lines[-1].startswith("Report: ")
    again = metrics_of(folder)
    assert again.pop("wall_seconds") < metrics.pop("wall_seconds")
    assert again == metrics


@pytest.mark.slow
def test_direct_training_has_no_labels_and_no_reward_model(tmp_path):
    lines = run("sentiment", tmp_path, "--mode", "direct")
    assert finished_stages(tmp_path) == STAGES - {"label", "reward"}
    assert not (tmp_path / "collect" / "candidates.jsonl").exists()
    metrics = metrics_of(tmp_path)
    assert "reward_model" not in metrics
    assert metrics["classifier"]["n"] == 50
    log = json.loads((tmp_path / "policy" / "log_history.json").read_text())
    assert [row["score/true"] for row in log if "score/raw" in row] == [
        row["score/raw"] for row in log if "score/raw" in row
    ]
    assert lines[-1] == f"Report: {tmp_path / 'report.html'}"


@pytest.mark.slow
def test_descriptiveness_runs_without_a_classifier(tmp_path):
    lines = run("descriptiveness", tmp_path)
    assert finished_stages(tmp_path) == STAGES - {"classifier"}
    metrics = metrics_of(tmp_path)
    assert "classifier" not in metrics
    assert {"policy_generator", "zero_shot_generator"} <= set(metrics["true_score"])
    assert 0 <= metrics["true_score"]["policy"] <= 10
    assert lines[-1] == f"Report: {tmp_path / 'report.html'}"


@pytest.mark.slow
def test_ones_own_model_documents_and_reviews(tmp_path, tokenizer, make_causal_lm):
    make_causal_lm().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    words = random.Random(0)
    sentences = [
        " ".join(["the", *words.choices(["cat", "dog", "old", "house", "was", "in"], k=7)]) for _ in range(160)
    ]
    documents = "".join(json.dumps({"body": f"start. {text} and. more"}) + "\n" for text in sentences)
    (tmp_path / "documents.jsonl.gz").write_bytes(gzip.compress(documents.encode()))
    reviews = [
        {"text": f"she {verb} it {i}.", "label": int(verb == "loved")}
        for i in range(20)
        for verb in ("loved", "hated")
    ]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    config = {
        "model": str(tmp_path / "model"), "documents": str(tmp_path / "documents.jsonl.gz"),
        "documents_column": "body", "reviews": str(tmp_path / "reviews.jsonl"), "review_tokens": 16,
        "num_labels": 16, "num_eval_labels": 8, "num_policy_queries": 16, "num_eval_queries": 8,
        "num_normalization_samples": 8, "frontier_queries": 2, "frontier_samples": 32, "label_error_rate": 0.25,
        # A random model hardly ever writes a period, so any response will do.
        "task": {"truncate_token": None, "penalty": None, "min_query_length": 4},
        "classifier": {"max_steps": 2, "save_strategy": "no"},
        "reward": {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no"},
        "policy": {"max_steps": 1, "per_device_train_batch_size": 8, "save_strategy": "no"},
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    folder = tmp_path / "run"
    lines = run("sentiment", folder, config=tmp_path / "mine.yaml")
    assert finished_stages(folder) == STAGES
    assert json.loads((folder / "sft" / "start.json").read_text()) == {"model": str(tmp_path / "model")}
    metrics = metrics_of(folder)
    assert (metrics["config"], metrics["kl_target"]) == ("mine", None)
    assert set(metrics["true_score"]) == {"zero_shot", "policy", "best_of_n"}  # own texts have no generator's truth
    prompts = [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(prompts) == 8
    assert all(prompt.startswith(" the ") and prompt.endswith(" and.") for prompt in prompts)
    assert lines[-1] == f"Report: {folder / 'report.html'}"


@pytest.mark.slow
def test_a_summarization_leaves_the_promised_names_and_is_not_run_again(tmp_path):
    lines = run("tldr", tmp_path)
    stages = {"base", "sft", "collect", "label", "reward", "policy", "policy_zero_shot", "evaluate"}
    assert finished_stages(tmp_path) == stages
    assert lines[-1] == f"Report: {tmp_path / 'report.html'}"
    metrics = metrics_of(tmp_path)
    assert (metrics["task"], metrics["config"], metrics["kl_target"]) == ("tldr", "smoke", None)
    models = {"zero_shot", "supervised", "few_shot", "policy", "rl_zero_shot", "best_of_n", "lead_3", "reference"}
    for group in ("true_score", "score", "length", "rouge", "copying"):
        assert set(metrics[group]) == models
    for group in ("win_rate", "win_rate_at_equal_length"):
        assert set(metrics[group]) == models - {"policy"}
        assert metrics[group]["supervised"]["n"] == 32
    assert {"rouge1", "rouge2", "rougeL"} <= set(metrics["rouge"]["policy"])
    assert {"copied_share", "invented_facts", "novel_ngrams"} <= set(metrics["copying"]["policy"])
    assert set(metrics["predictors"]) == {"rouge", "longest", "shortest"}
    assert metrics["reward_model"]["chance"] == 0.25
    assert set(metrics["stage_seconds"]) == stages
    assert all(line.endswith("finished before") for line in run("tldr", tmp_path) if line.startswith("["))
