"""The mode `online` of a recipe: its arguments, its stage, what a stop leaves, and its part of the report."""

import json
from pathlib import Path

import pytest

from trl_ziegler._files import write_jsonl
from trl_ziegler.experiments import online, recipe, summaries
from trl_ziegler.experiments.arguments import StyleArguments
from trl_ziegler.experiments.online import collection_schedule, finish_collection, last_reward, reward_training
from trl_ziegler.experiments.pipeline import read_jsonl
from trl_ziegler.experiments.recipe import run_recipe
from trl_ziegler.experiments.report import write_report
from trl_ziegler.labelers import ImmediateLabeler, LabellingStopped
from trl_ziegler.online_schedule import CollectionSchedule
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.reward_trainer import BestOfKRewardConfig

SMOKE = Path(__file__).parents[1] / "recipes" / "configs" / "sentiment" / "smoke-online.yaml"
MODE = {"mode": "online", "num_labels": 300, "online_initial_labels": 100, "online_trainings": 4, "online_margin": 7}


def test_the_schedule_is_that_of_the_arguments_over_the_episodes_of_the_policy(tmp_path):
    config = ZieglerPPOConfig(str(tmp_path), per_device_train_batch_size=8, total_episodes=60, report_to="none")
    schedule = collection_schedule(StyleArguments(**MODE), config)
    assert schedule == CollectionSchedule(initial=100, total=300, episodes=64, trainings=4, margin=7)


def test_fewer_labels_than_initial_ones_are_refused():
    with pytest.raises(ValueError, match=r"`num_labels` is 99, fewer than the 100 of `online_initial_labels`"):
        StyleArguments(**{**MODE, "num_labels": 99})
    StyleArguments(**{**MODE, "num_labels": 99, "mode": "best_of_k"})


def test_each_reward_training_has_a_seed_of_its_own_and_the_same_held_out_labels(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(online, "train_reward_model", lambda *args, **options: calls.append((args, options)))

    def config(folder):
        return BestOfKRewardConfig(str(folder), seed=5, report_to="none")

    train = reward_training(config, "start", ["sample"], ["h1", "h2"], normalize_to="references")
    train(["a"], 0, tmp_path)
    train(["a", "b", "c"], 3, tmp_path / "x")
    first, second = calls
    assert [args[1].seed for args, _ in calls] == [5, 8]
    assert first[0][2:] == ("start", ["a", "h1", "h2"], ["sample"])
    assert second[0][3] == ["a", "b", "c", "h1", "h2"] and second[0][0] == tmp_path / "x"
    assert second[1] == {"held_out": 2, "normalize_to": "references"}


# ---- The report -----------------------------------------------------------------------------------------------------


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def collected(run, stage, stopped=None):
    """A run directory with two reward trainings."""
    rows = [
        {"episode": n, "online/labels": 10 + n, "online/labels_wanted": 8 + n, "online/win_rate": 0.5 + n / 100}
        for n in (0, 4, 8)
    ]
    write(run / stage / "log_history.json", rows)
    trainings = [{"number": 0, "episode": 0, "labels": 10}, {"number": 3, "episode": 4, "labels": 14}]
    write(run / stage / "collection" / "collection.json", {"trainings": trainings, "stopped": stopped})
    for number, accuracy in ((0, 0.4), (3, 0.5)):
        folder = run / stage / "collection" / f"reward_{number:02d}"
        write(folder / "metrics.json", {"accuracy": accuracy, "low": 0.3, "high": 0.6, "chance": 0.25, "n": 9})
        write(folder / "log_history.json", [{"step": 1, "accuracy": accuracy, "loss": 1.0}])
    return run


def test_the_report_shows_labels_win_rate_and_the_accuracy_of_each_reward_model(tmp_path):
    page = write_report(collected(tmp_path, "policy")).read_text()
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert {"labels", "online_win_rate", "reward_accuracy_by_labels", "reward_accuracy"} <= names
    assert "Labels collected online" in page and "stopped the run" not in page


def test_the_report_of_a_stopped_run_begins_with_the_reason(tmp_path):
    stopped = {"episode": 8, "reason": "'ann' asked to stop: 'the texts are <broken>'"}
    page = write_report(collected(tmp_path, "policy.partial", stopped)).read_text()
    assert "A labeller stopped the run" in page
    assert "After 8 episodes: &#39;ann&#39; asked to stop: &#39;the texts are &lt;broken&gt;" in page
    assert (tmp_path / "plots" / "labels.png").is_file()


def test_a_report_without_a_collection_has_no_such_section(tmp_path):
    write(tmp_path / "policy" / "log_history.json", [{"episode": 1, "objective/kl": 0.5}])
    page = write_report(tmp_path).read_text()
    assert "Labels collected online" not in page and not (tmp_path / "plots" / "labels.png").exists()


def test_the_last_reward_model_is_the_one_of_the_last_training(tmp_path):
    run = collected(tmp_path, "policy")
    assert last_reward(run / "policy").name == "reward_03"


def test_a_stopped_collection_leaves_its_stage_unfinished(tmp_path):
    class Stopped:
        stopped = "enough"

    with pytest.raises(LabellingStopped, match="enough"):
        finish_collection(tmp_path, Stopped())
    assert list(tmp_path.iterdir()) == []


def test_a_stop_before_any_policy_stands_at_the_top_until_the_run_goes_on(tmp_path, monkeypatch):
    """As in the mode `best_of_k`, where all labels are waited for before there is a log of anything."""

    def stop(*stages):
        raise LabellingStopped("'ann' asked to stop: 'the texts are <broken>'")

    argv = ["--output_dir", str(tmp_path), "--cpu_threads", "1"]
    monkeypatch.setattr(recipe, "run_stages", stop)
    _, stopped = recipe.run_to_report("descriptiveness", SMOKE, argv)
    top, _ = (tmp_path / "report.html").read_text().split('<section id="results">')
    assert "A labeller stopped the run" in top and "&#39;the texts are &lt;broken&gt;&#39;" in top
    assert json.loads((tmp_path / "metrics.json").read_text())["stopped"].startswith("'ann' asked")
    assert stopped.startswith("A labeller stopped this run: 'ann' asked to stop")
    monkeypatch.setattr(recipe, "run_stages", lambda *stages: None)
    assert recipe.run_to_report("descriptiveness", SMOKE, argv)[1] is None
    assert "A labeller stopped the run" not in (tmp_path / "report.html").read_text()


def test_a_stopped_collection_is_named_once(tmp_path):
    reason = "'ann' asked to stop"
    write(tmp_path / "metrics.json", {"stopped": reason})
    page = write_report(collected(tmp_path, "policy.partial", {"episode": 8, "reason": reason})).read_text()
    assert page.count("A labeller stopped the run") == 1 and "After 8 episodes: " in page


# ---- Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_recipe_reports_the_reason_and_goes_on(tmp_path, monkeypatch, capsys):
    """The descriptiveness labeller needs no classifier. The cord is pulled when 60 labels are there."""
    argv = ["--config", str(SMOKE), "--output_dir", str(tmp_path), "--world.passages", "300", "--sft.max_steps", "20"]
    argv += ["--policy.save_strategy", "steps", "--policy.save_steps", "1", "--cpu_threads", "1"]
    pulled = ImmediateLabeler.open

    def pull(self):
        if len(self.collect()) >= 60:
            raise LabellingStopped("the texts are broken")
        return pulled(self)

    with monkeypatch.context() as patch:
        patch.setattr(ImmediateLabeler, "open", pull)
        with pytest.raises(SystemExit, match=r"A labeller stopped this run: the texts are broken"):
            run_recipe("descriptiveness", SMOKE, argv)
    page = (tmp_path / "report.html").read_text()
    assert "A labeller stopped the run" in page and "the texts are broken" in page
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == f"Report: {tmp_path / 'report.html'}"
    assert not (tmp_path / "policy").exists()
    before = len((tmp_path / "policy.partial" / "collection" / "labels.jsonl").read_text().splitlines())

    run_recipe("descriptiveness", SMOKE, argv)
    assert "A labeller stopped the run" not in (tmp_path / "report.html").read_text()
    summary = json.loads((tmp_path / "policy" / "collection" / "collection.json").read_text())
    assert summary["stopped"] is None and [row["number"] for row in summary["trainings"]] == [0, 1, 2]
    rows = json.loads((tmp_path / "policy" / "log_history.json").read_text())
    labels = [row["online/labels"] for row in rows if "online/labels" in row]
    assert labels[0] == 32 and labels == sorted(labels) and labels[-1] > before >= 60
    assert sum("objective/kl" in row for row in rows) == 4
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    held_out = [json.loads(line) for line in (tmp_path / "label" / "labels.jsonl").read_text().splitlines()]
    # Of sixteen queries, those that four candidates were found for.
    assert metrics["reward_model"]["n"] == len(held_out) > 8 and metrics["online"]["labels"] == labels[-1]
    asked = (tmp_path / "policy" / "collection").glob("comparisons-*.jsonl")
    online_prompts = {json.loads(line)["prompt"] for file in asked for line in file.read_text().splitlines()}
    assert not online_prompts & {row["prompt"] for row in held_out}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", ["samples", "references"])
def test_summaries_are_collected_online_and_judged_with_the_last_reward_model(tmp_path, rule, monkeypatch):
    judged = []
    last = summaries.normalized_reward_model
    monkeypatch.setattr(summaries, "normalized_reward_model", lambda folder: judged.append(folder) or last(folder))
    config = SMOKE.parents[1] / "tldr" / "smoke-online.yaml"
    argv = ["--config", str(config), "--output_dir", str(tmp_path), "--normalize_to", rule, "--cpu_threads", "1"]
    argv += ["--sft.max_steps", "10", "--base.max_steps", "5"]
    run_recipe("tldr", config, [*argv, "--stages", "base,sft,collect,label,policy"])
    labels = tmp_path / "label" / "labels.jsonl"
    write_jsonl(labels, read_jsonl(labels)[:-1])  # one less than wanted, as where candidates were rejected
    run_recipe("tldr", config, argv)

    collection = tmp_path / "policy" / "collection"
    assert judged == [collection / "reward_02"]
    assert not (tmp_path / "reward").exists()
    held_out = read_jsonl(labels)
    asked = [row for file in collection.glob("comparisons-*.jsonl") for row in read_jsonl(file)]
    assert 1 < len(held_out) < 16 and 32 < len(asked) <= 48
    assert not {row["prompt"] for row in asked} & {row["prompt"] for row in held_out}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["online"]["labels"] == len(asked)
    assert metrics["reward_model"]["n"] - 1 == metrics["predictors"]["rouge"]["n"] == len(held_out)
    config = json.loads((collection / "reward_02" / "model" / "config.json").read_text())
    assert config["reward_normalization"]["method"] == (
        "reference_samples" if rule == "samples" else "reference_summaries"
    )
