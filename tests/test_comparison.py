"""Comparisons: their configurations, the command lines of their runs, what is made of the results, and a small one."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from trl_ziegler.experiments.arguments import parse_recipe_arguments
from trl_ziegler.experiments.comparison import (
    ComparisonArguments,
    Run,
    finished_runs,
    flags_of,
    flags_of_run,
    run_comparison,
    summarize,
    unknown_measures,
    value_at,
    write_comparison,
)
from trl_ziegler.experiments.comparison_plots import COLOURS, STYLES, Curves, _draw_curves, curves_plot, over_logs
from trl_ziegler.experiments.recipe import EXPERIMENTS

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
EXPERIMENT_FILES = sorted((CONFIGS / "experiments").glob("*.yaml"))
KINDS = {task: kind for kind in EXPERIMENTS for task in kind.tasks}
SMOKE = CONFIGS / "experiments" / "smoke.yaml"


def parsed(*argv, config=SMOKE):
    return parse_recipe_arguments(ComparisonArguments, config, list(argv))[0]


# ---- The files and the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXPERIMENT_FILES, ids=lambda path: path.stem)
def test_every_variant_of_every_comparison_passes_the_recipes_own_parser(path, tmp_path):
    args = parsed(config=path)
    assert set(yaml.safe_load(path.read_text())) <= set(args.as_dict())
    kind, config = KINDS[args.task], CONFIGS / args.task / f"{args.scale}.yaml"
    assert len(args.variants) <= len(COLOURS)
    for spec in args.curves:
        assert len(Curves(**spec).keys) <= len(STYLES)
    made = {}
    for variant in args.chosen:
        made[variant], _ = parse_recipe_arguments(kind.arguments, config, flags_of_run(args, tmp_path, variant, 1))
        kind(args.task, made[variant], tmp_path).stages()
    told_apart = {json.dumps({**one.as_dict(), "output_dir": None}, sort_keys=True) for one in made.values()}
    assert len(told_apart) == len(made)


@pytest.mark.parametrize("path", EXPERIMENT_FILES, ids=lambda path: path.stem)
def test_every_setting_of_a_comparison_reaches_the_recipes_arguments(path, tmp_path):
    args = parsed(config=path)
    config = CONFIGS / args.task / f"{args.scale}.yaml"
    for variant, own in args.variants.items():
        flags = flags_of_run(args, tmp_path, variant, 7)
        recipe, _ = parse_recipe_arguments(KINDS[args.task].arguments, config, flags)
        wanted = {**args.settings, **own}
        for section in ("policy", "reward", "task"):
            inner = {**args.settings.get(section, {}), **own.get(section, {})}
            assert {key: recipe.section(section)[key] for key in inner} == inner
            wanted.pop(section, None)
        assert {key: getattr(recipe, key) for key in wanted} == wanted
        assert recipe.seed == 7


def test_settings_as_flags():
    settings = {
        "num_labels": 64,
        "policy": {"kl_target": None, "whiten_rewards": True, "value_init": "zero"},
        "starts": ["supervised", "zero_shot"],
        "policy.kl_coef": 0.5,
    }
    assert flags_of(settings) == [
        *("--num_labels", "64", "--policy.kl_target", "null", "--policy.whiten_rewards", "true"),
        *("--policy.value_init", '"zero"', "--starts", "supervised", "zero_shot", "--policy.kl_coef", "0.5"),
    ]


def test_a_variants_settings_win_over_those_of_all_and_a_flag_over_the_file(tmp_path):
    args = parsed(
        "--settings.num_labels", "48", "--settings.policy.max_steps", "3", "--seeds", "4", "--cpu_threads", "1"
    )
    args.variants["own"] = {"num_labels": 32}
    made = {}
    for variant in ("half wrong", "own"):
        flags = flags_of_run(args, tmp_path / "x", variant, 4)
        made[variant], _ = parse_recipe_arguments(
            KINDS["sentiment"].arguments, CONFIGS / "sentiment" / "smoke.yaml", flags
        )
    assert (made["half wrong"].num_labels, made["own"].num_labels) == (48, 32)
    assert made["own"].section("policy")["max_steps"] == 3
    assert (args.seeds, made["own"].seed, made["own"].cpu_threads) == ([4], 4, 1)
    assert made["half wrong"].output_dir == str(tmp_path / "x" / "half wrong" / "seed-4")
    assert made["half wrong"].reuse_from == str(tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "half"], "`only` names 'half'; the variants are direct, half wrong."),
        (["--variants", "{}"], "`variants` is empty; name at least one, with the settings in which it differs."),
        (["--variants", "{../up: {}}"], "`variants` has '../up', which is no name for a directory; choose another."),
        (["--scale", "huge"], "`scale` is 'huge', but there is no "),
        (["--task", "poems"], "`task` is 'poems'; the recipes are "),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_written(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        run_comparison(CONFIGS, ["--config", str(SMOKE), *argv])
    assert not list(tmp_path.iterdir())


# ---- Results --------------------------------------------------------------------------------------------------------


def run_of(variant, seed, score, **metrics):
    log = [{"episode": 64.0 * (i + 1), "objective/kl": 0.1 * i, "score/true": score + i} for i in range(3)]
    own = {"seed": seed, "true_score": {"policy": score}, "stage_seconds": {"sft": 2.0, "policy": 3.0}, **metrics}
    return Run(variant, seed, own, log)


def test_a_measure_is_its_mean_and_range_over_the_seeds_that_have_it():
    runs = [run_of("a", 1, 1.0), run_of("a", 2, 4.0, reward_model={"accuracy": 0.5}), run_of("b", 1, -1.0)]
    measures = {"true": "true_score.policy", "accuracy": "reward_model.accuracy"}
    assert summarize(runs, measures) == {
        "a": {
            "seeds": [1, 2],
            "measures": {
                "true": {"mean": 2.5, "low": 1.0, "high": 4.0, "values": [1.0, 4.0]},
                "accuracy": {"mean": 0.5, "low": 0.5, "high": 0.5, "values": [0.5]},
                "seconds": {"mean": 5.0, "low": 5.0, "high": 5.0, "values": [5.0, 5.0]},
            },
        },
        "b": {
            "seeds": [1],
            "measures": {
                "true": {"mean": -1.0, "low": -1.0, "high": -1.0, "values": [-1.0]},
                "accuracy": None,
                "seconds": {"mean": 5.0, "low": 5.0, "high": 5.0, "values": [5.0]},
            },
        },
    }


def test_a_misspelt_measure_is_named_with_what_there_is_but_not_one_that_only_some_runs_have():
    runs = [run_of("direct", 1, 1.0), run_of("labels", 1, 4.0, reward_model={"accuracy": 0.5})]
    right = {"true": "true_score.policy", "accuracy": "reward_model.accuracy", "absent": "frontier.fraction"}
    assert unknown_measures(runs, right) == []
    wrong = {"true": "true_score.polcy", "seed": "sed"}
    assert unknown_measures(runs, wrong) == [
        "No run has the measure 'true', `true_score.polcy`; beside it there are ['policy'].",
        "No run has the measure 'seed', `sed`; beside it there are "
        "['reward_model', 'seed', 'stage_seconds', 'true_score'].",
    ]


def test_a_place_in_the_metrics_may_be_missing_at_any_depth():
    assert value_at({"a": {"b": 3}}, "a.b") == 3
    assert value_at({"a": {"b": 3}}, "a.c") is None
    assert value_at({"a": {"b": 3}}, "a.b.c") is None
    assert value_at({}, "a.b") is None


def test_curves_join_rows_that_hold_both_keys_and_end_with_the_shortest_seed():
    logs = [
        [{"x": 1, "y": 10}, {"x": 2}, {"x": 3, "y": 30}, {"x": 4, "y": 40}],
        [{"x": 1, "y": 12}, {"eval_y": 5}, {"x": 3, "y": 34}],
    ]
    x, y = over_logs(logs, "x", "y")
    np.testing.assert_array_equal(x, [[1, 3], [1, 3]])
    np.testing.assert_array_equal(y, [[10, 30], [12, 34]])
    assert over_logs([logs[0], []], "x", "y")[1].size == 0
    assert over_logs(logs, "x", "nothing")[1].size == 0


def test_curves_are_the_mean_and_range_over_seeds(monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda axes, x, y, *args, **kw: drawn.append((x, y, kw["label"])))
    monkeypatch.setattr("matplotlib.axes.Axes.fill_between", lambda axes, *args, **kw: drawn.append(args))
    logs = {"a": [run_of("a", 1, 1.0).log, run_of("a", 2, 4.0).log]}
    curves_plot("c", Curves("Title", "look", "objective/kl", ["score/true", "absent"]), logs)
    (x, y, label), (_, low, high) = drawn
    np.testing.assert_allclose(x, [0.0, 0.1, 0.2])
    np.testing.assert_allclose(y, [2.5, 3.5, 4.5])
    np.testing.assert_allclose((low, high), [[1, 2, 3], [4, 5, 6]])
    assert label == "a: score/true"


def write_run(folder, run):
    path = folder / run.variant / f"seed-{run.seed}"
    (path / "policy").mkdir(parents=True)
    (path / "metrics.json").write_text(json.dumps(run.metrics))
    (path / "policy" / "log_history.json").write_text(json.dumps(run.log))


def test_the_page_holds_every_variant_in_order_and_its_plots(tmp_path):
    hostile = "<b>half wrong"
    args = parsed("--variants", json.dumps({"direct": {"mode": "direct"}, hostile: {"label_error_rate": 0.5}}))
    for run in (run_of(hostile, 10, 1.0), run_of(hostile, 2, 2.0), run_of("direct", 1, 3.0)):
        write_run(tmp_path, run)
    write_run(tmp_path, Run("direct", 3, {"seed": 3}, []))  # not at its end
    runs = finished_runs(tmp_path, args)
    assert [(run.variant, run.seed) for run in runs] == [("direct", 1), (hostile, 2), (hostile, 10)]
    page = write_comparison(tmp_path, args, "Title & more").read_text()
    assert "<b>" not in page and "&lt;b&gt;half wrong" in page and "<h1>Title &amp; more</h1>" in page
    assert "1.50 [1.00, 2.00]" in page and "3.00 [3.00, 3.00]" in page
    assert "--label_error_rate 0.5" in page and "--policy.max_steps 1" in page
    assert page.count("data:image/png;base64,") == len(list((tmp_path / "plots").glob("*.png"))) == 2
    assert page.index("&lt;b&gt;half") > page.index("<td>direct</td>")
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["variants"]["direct"]["measures"]["true score"]["values"] == [3.0]
    assert saved["variants"][hostile]["seeds"] == [2, 10]


def test_seeds_take_turns_and_every_run_gets_a_page(tmp_path, monkeypatch):
    asked = []

    def pretend(task, config, flags):
        values = dict(zip(flags[::2], flags[1::2], strict=True))
        asked.append((task, config.name, Path(values["--output_dir"]).parent.name, values["--seed"]))
        write_run(tmp_path, run_of(asked[-1][2], int(values["--seed"]), 1.0))
        return tmp_path / "a report", None

    def end(state):
        assert len(asked) == 4  # a process group that was taken down could not serve the next run

    monkeypatch.setattr("trl_ziegler.experiments.comparison.run_to_report", pretend)
    monkeypatch.setattr("trl_ziegler.experiments.comparison.end_processes", end)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        page = run_comparison(CONFIGS, ["--config", str(SMOKE), "--output_dir", str(tmp_path)])
    assert asked == [
        ("sentiment", "smoke.yaml", variant, seed) for seed in ("1", "2") for variant in ("direct", "half wrong")
    ]
    assert page == tmp_path / "report.html"
    assert out.getvalue().splitlines()[-1] == f"Comparison: {page}"


def test_more_keys_than_line_styles_are_all_drawn():
    axes, keys = Figure().add_subplot(), ["a", "b", "c", "d"]
    _draw_curves(axes, Curves("t", "look", "x", keys), {"v": [[{"x": i, **dict.fromkeys(keys, i)} for i in range(3)]]})
    assert len(axes.lines) == 4 > len(STYLES)


@pytest.mark.slow
def test_a_comparison_makes_once_what_variants_share_and_skips_what_is_finished(tmp_path):
    def run(*argv):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run_comparison(
                CONFIGS, ["--config", str(SMOKE), "--output_dir", str(tmp_path / "all"), "--cpu_threads", "1", *argv]
            )
        lines = [line for line in out.getvalue().splitlines() if line.startswith(("[", "== "))]
        return [line for line in lines if not line.endswith("finished before")]

    lines = run("--seeds", "1")
    first = tmp_path / "all" / "direct" / "seed-1"
    shared = [f"[{name}] as in {first}" for name in ("classifier", "sft")]
    made = [f"[{name}]" for name in ("collect", "label", "reward", "policy", "evaluate")]
    assert lines[-8:] == ["== half wrong, seed 1", *shared, *made]
    assert run("--seeds", "1") == ["== direct, seed 1", "== half wrong, seed 1"]
    measures = json.loads((tmp_path / "all" / "metrics.json").read_text())["variants"]["half wrong"]["measures"]
    assert measures["true score"] is not None and measures["reward-model accuracy"] is not None
    assert (tmp_path / "all" / "report.html").stat().st_size > 0
