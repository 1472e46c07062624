"""The run report: complete, partial, hostile and alarming runs, read back from the page that is written."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from trl_ziegler.experiments.report import duration, headline_figures, model_table, number, read_samples, write_report
from trl_ziegler.experiments.report_alarms import find_alarms
from trl_ziegler.experiments.report_plots import RED, policy_plots, reward_plots, running_mean, series

HOSTILE = '</div><script>alert(1)</script><img src=http://evil.example/x.png onerror="alert(2)">\x00\ud800&lt;'
PNG = b"\x89PNG\r\n\x1a\n"

METRICS = {
    "task": "sentiment",
    "config": "laptop",
    "seed": 3,
    "win_rate": {
        "zero_shot": {"value": 0.914, "low": 0.889, "high": 0.938, "n": 512},
        "supervised": {"value": 0.67, "low": 0.64, "high": 0.7, "n": 512},
    },
    "kl": 3.1,
    "kl_target": 3.0,
    "frontier": {"fraction": 0.93, "reached": 2.25, "optimum": 2.42, "effective_samples": 78.3},
    "reward_model": {"accuracy": 0.61, "chance": 0.25, "n": 1000, "low": 0.58, "high": 0.64},
    "classifier": {"accuracy": 0.97, "n": 2000},
    "true_score": {"zero_shot": 0.02, "policy": 2.4, "zero_shot_generator": 0.1, "policy_generator": 1.9},
    "length": {"zero_shot": 24, "policy": 23.5},
    "rouge": {"policy": {"rouge1": 0.31, "rougeL": 0.22}},
    "copying": {"policy": {"copied_share": 0.4}},
    "stage_seconds": {"sft": 31.0, "policy": 142.0},
    "wall_seconds": 275.3,
    "versions": {"torch": "2.13.0"},
}


def healthy_row(i):
    """One update of a run that goes well; `i` is the update, 64 episodes each."""
    wobble = 0.05 * (-1) ** i
    return {
        "objective/kl": 3.0 + wobble,
        "objective/scores": 1.0 + 0.01 * i + wobble,
        "score/raw": 1.1 + 0.01 * i,
        "score/true": 2.0 + 0.01 * i + wobble,
        "objective/kl_coef": 0.1,
        "objective/entropy": 40.0,
        "objective/valid_share": 0.97,
        "policy/approxkl_avg": 0.01,
        "policy/clipfrac_avg": 0.12,
        "loss/policy_avg": -0.01,
        "loss/value_avg": 0.1,
        "val/explained_variance": 0.6,
        "episode": 64 * (i + 1),
        "step": 16 * (i + 1),
    }


@pytest.fixture
def log():
    return [healthy_row(i) for i in range(40)]


def write_run(run):
    """A complete run directory whose policy writes hostile text."""
    rows = [healthy_row(i) for i in range(40)]
    rows.insert(20, {"eval_score/true": 2.1, "step": 320})
    rewards = [{"loss": 1.3 - 0.1 * i, "accuracy": 0.3 + 0.05 * i, "step": i} for i in range(6)]
    rewards.append({"eval_accuracy": 0.55, "step": 6})
    frontier = {
        "kl_penalty_curve": [
            {"beta": b, "kl": 2 / b, "reward": 2 / b**0.5, "effective_samples": 30 * b} for b in (8.0, 2.0, 1.0, 0.4)
        ],
        "points": [{"name": "zero_shot", "kl": 0, "reward": 0.0}, {"name": "$\\bad$", "kl": 3.1, "reward": 2.25}],
    }
    files = {
        "metrics.json": json.dumps(METRICS),
        "policy/log_history.json": json.dumps(rows),
        "reward/log_history.json": json.dumps(rewards),
        "evaluate/frontier.json": json.dumps(frontier),
        "config.yaml": "policy:\n  kl_coef: 0.1 # <b>bold</b>\n",
        "samples.jsonl": "".join(json.dumps(sample_row(i)) + "\n" for i in range(30)),
    }
    for name, content in files.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content, encoding="utf-8")


def sample_row(i):
    return {
        "prompt": f"<script>alert({i})</script>",
        "zero_shot": "plain",
        "zero_shot_score": -0.5,
        "policy": f"{HOSTILE} {i}",
        "policy_score": 2.25,
    }


class Page(HTMLParser):
    """What a browser would see: every (tag, attributes) and the text."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " " * (tag in ("td", "th"))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    write_run(run)
    path = write_report(run)
    return path, Page(path.read_text(encoding="utf-8"))


class TestFullRun:
    def test_page_is_at_the_promised_place(self, full_run):
        assert full_run[0].name == "report.html"

    def test_refers_to_nothing_outside_itself(self, full_run):
        for tag, attributes in full_run[1].tags:
            for name in ("src", "href", "srcset", "action", "data"):
                assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
        source = full_run[0].read_text(encoding="utf-8")
        style = source[source.index("<style>") : source.index("</style>")]
        assert "url(" not in style
        assert "@import" not in style

    def test_policy_of_the_page_forbids_scripts_and_requests(self, full_run):
        policies = [a["content"] for tag, a in full_run[1].tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]

    def test_hostile_completions_are_text(self, full_run):
        tags = [tag for tag, _ in full_run[1].tags]
        assert "script" not in tags
        assert "b" not in tags
        assert not any(name.startswith("on") for _, attributes in full_run[1].tags for name in attributes)
        assert (
            '</div><script>alert(1)</script><img src=http://evil.example/x.png onerror="alert(2)">' in full_run[1].text
        )
        assert "kl_coef: 0.1 # <b>bold</b>" in full_run[1].text

    def test_plots_are_pngs_beside_the_page_and_the_same_within(self, full_run):
        plots = sorted((full_run[0].parent / "plots").iterdir())
        assert [p.stem for p in plots] == [
            "approx_kl", "entropy", "explained_variance", "frontier", "kl", "kl_coef", "losses", "reward_accuracy",
            "reward_loss", "score", "true_score", "update_size", "valid_share",
        ]  # fmt: skip
        files = {p.read_bytes() for p in plots}
        embedded = {base64.b64decode(a["src"].split(",")[1]) for tag, a in full_run[1].tags if tag == "img"}
        assert files == embedded
        assert all(png.startswith(PNG) and len(png) > 5000 for png in files)

    def test_no_half_written_file_is_left(self, full_run):
        assert not [p for p in full_run[0].parent.rglob("*") if p.suffix == ".tmp"]

    @pytest.mark.parametrize(
        "expected",
        [
            "Win rate against zero_shot 0.91 95% interval 0.89 to 0.94, n = 512 queries",
            "Win rate against supervised 0.67",
            "KL from the reference 3.10 nats per response; target 3 (+3%)",
            "Share of the attainable gain 0.93 mean score 2.25 of 2.42 at the optimum; 78 effective samples a query",
            "Reward-model accuracy 0.61 95% interval 0.58 to 0.64, chance 0.25, n = 1000 held-out records",
            "Classifier accuracy 0.97",
            "policy 2.40 1.90 23.50 0.31 0.22 0.40",
            "zero_shot 0.02 0.10 24.00 – – –",
            "policy 2 min 22 s",
            "config laptop · seed 3 · 2 min 53 s",
            "25 of 30 rows",
            "No alarm",
            "torch 2.13.0",
        ],
    )
    def test_numbers_appear(self, full_run, expected):
        assert expected in re.sub(r"\s+", " ", full_run[1].text)

    def test_every_plot_says_what_to_look_for(self, full_run):
        tags = [(tag, a.get("class")) for tag, a in full_run[1].tags]
        figures = [i for i, (tag, _) in enumerate(tags) if tag == "figure"]
        assert [tags[i + 1 : i + 4] for i in figures] == [[("figcaption", None), ("img", None), ("p", "look")]] * 13

    def test_better_response_of_each_row_is_marked(self, full_run):
        chips = [a["class"] for tag, a in full_run[1].tags if tag == "span" and a["class"].startswith("chip")]
        assert chips == ["chip", "chip best"] * 25


class TestPartialRun:
    def test_empty_run_names_every_absent_file(self, tmp_path):
        text = Page(write_report(str(tmp_path)).read_text(encoding="utf-8")).text
        for name in ("metrics.json", "policy/log_history.json", "reward/log_history.json", "evaluate/frontier.json"):
            assert f"it will come from {name}" in text
        assert "it will come from samples.jsonl" in text
        assert "Nothing was checked" in text
        assert "No alarm" not in text
        assert list((tmp_path / "plots").iterdir()) == []

    def test_run_killed_during_ppo_shows_what_there_is(self, tmp_path):
        (tmp_path / "policy").mkdir()
        (tmp_path / "policy" / "log_history.json").write_text(json.dumps([{"objective/kl": 0.5, "episode": 64}]))
        (tmp_path / "metrics.json").write_text(json.dumps({"task": "tldr", "stage_seconds": {"sft": 3.0}}))
        text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
        assert [p.name for p in (tmp_path / "plots").iterdir()] == ["kl.png"]
        assert "it will come from metrics.json" in text
        assert "tldr: run report" in text
        assert "3.0 s" in text

    def test_second_report_replaces_the_first(self, tmp_path):
        write_report(tmp_path)
        (tmp_path / "config.yaml").write_text("seed: 12345")
        assert "seed: 12345" in write_report(tmp_path).read_text(encoding="utf-8")

    def test_folder_is_called_one(self, tmp_path):
        text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
        assert f"Folder {tmp_path.name}\n" in text  # "Run run", where that is its name, would read as a slip

    def test_missing_directory_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such directory; give the --output_dir"):
            write_report(tmp_path / "nowhere")

    def test_broken_file_is_named(self, tmp_path):
        (tmp_path / "metrics.json").write_text('{"task": ')
        with pytest.raises(ValueError, match=r"metrics\.json is not valid JSON"):
            write_report(tmp_path)


class TestAlarms:
    def titles(self, log, metrics=METRICS):
        return [alarm.title for alarm in find_alarms(log, metrics)]

    def test_healthy_run_raises_none(self, log):
        assert self.titles(log) == []

    def test_no_log_raises_none(self):
        assert self.titles([], {}) == []

    @pytest.mark.parametrize(
        ("key", "good", "bad", "title"),
        [
            ("objective/kl", 4.4, 4.6, "The KL is far over its target"),
            ("policy/clipfrac_avg", 0.39, 0.41, "The updates are too large"),
            ("val/explained_variance", 0.01, -0.01, "The value head is worse than a constant"),
            ("objective/valid_share", 0.51, 0.49, "Most responses are penalised"),
        ],
    )
    def test_threshold_at_the_end_of_the_run(self, log, key, good, bad, title):
        for value, expected in ((good, []), (bad, [title])):
            for row in log[-4:]:
                row[key] = value
            assert self.titles(log) == expected

    def test_one_wild_update_is_not_an_alarm(self, log):
        log[-1]["policy/clipfrac_avg"] = 0.9
        log[-1]["val/explained_variance"] = -1.0
        assert self.titles(log) == []

    def test_only_clipping_is_watched_before_the_end(self, log):
        for row in log[:4]:
            row.update({"val/explained_variance": -1.0, "objective/valid_share": 0.1, "policy/clipfrac_avg": 0.6})
        assert self.titles(log) == ["The updates are too large"]

    def test_fixed_beta_has_no_target_to_miss(self, log):
        for row in log:
            row["objective/kl"] = 100.0
        assert self.titles(log, METRICS | {"kl_target": None}) == []

    def test_true_score_falling_while_score_rises_is_over_optimisation(self, log):
        for i, row in enumerate(log):
            row["score/true"] = 2.0 - abs(i - 20) / 20 + 0.02 * (-1) ** i
        (alarm,) = find_alarms(log, METRICS)
        assert alarm.title == "Over-optimisation"
        # Blocks of 4 updates: the best is updates 20..23, mean 2 - 1.5/20; the last 36..39, mean 2 - 17.5/20.
        assert "Since about episode 1440 the true score fell by 0.80 while the score rose by 0.16" in alarm.detail

    def test_both_scores_falling_is_another_matter(self, log):
        for i, row in enumerate(log):
            row["score/true"] = row["objective/scores"] = 2.0 - abs(i - 20) / 20
        assert self.titles(log) == []

    def test_noise_is_not_over_optimisation(self):
        fired = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            noisy = [healthy_row(i) | {"score/true": 2.0 + rng.normal()} for i in range(100)]
            fired += bool(find_alarms(noisy, METRICS))
        assert fired <= 5

    def test_reward_model_at_chance(self, log):
        at_chance = METRICS["reward_model"] | {"low": 0.24}
        assert self.titles(log, METRICS | {"reward_model": at_chance}) == [
            "The reward model cannot be told from chance"
        ]

    def test_alarms_reach_the_page(self, tmp_path):
        (tmp_path / "policy").mkdir()
        (tmp_path / "policy" / "log_history.json").write_text(json.dumps([{"objective/kl": 3.0, "episode": 64}] * 10))
        (tmp_path / "metrics.json").write_text(json.dumps({"kl_target": 1.5}))
        text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
        assert "What is wrong" in text
        assert "The KL is far over its target." in text
        assert "2.0 times the target of 1.5" in text
        assert "No alarm" not in text


def red_pixels(png):
    """How many pixels have the colour of a target line."""
    return int((np.abs(imread(io.BytesIO(png))[..., :3] - to_rgb(RED)).max(axis=-1) < 0.02).sum())


class TestPieces:
    def test_series_takes_the_clock_of_the_last_row_that_has_it(self):
        rows = [
            {"episode": 64, "a": 1.0},
            {"eval_a": 5.0},
            {"episode": 128, "a": None},
            {"a": float("nan")},
            {"episode": 192, "a": 2},
        ]
        assert [list(x) for x in series(rows, "a", "episode")] == [[64, 192], [1, 2]]
        assert [list(x) for x in series(rows, "eval_a", "episode")] == [[64], [5]]

    def test_running_mean_is_centred(self):
        assert running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 2).tolist() == [1.5, 3.0, 3.0, 3.0]

    def test_panels_without_a_logged_key_are_left_out(self):
        assert [p.name for p in policy_plots([{"objective/kl_coef": 0.1, "episode": 1}], None)] == ["kl_coef"]
        assert [p.name for p in reward_plots([{"eval_accuracy": 0.5, "step": 1}], None)] == ["reward_accuracy"]

    def test_target_changes_the_kl_plot_and_no_other(self, log):
        keys = ("objective/kl", "objective/kl_coef", "episode")
        rows = [{key: row[key] for key in keys} for row in log]
        plain, aimed = policy_plots(rows, None), policy_plots(rows, 3.0)
        assert [a.name for a, b in zip(plain, aimed, strict=True) if a.png != b.png] == ["kl"]
        assert red_pixels(plain[0].png) == 0
        assert red_pixels(aimed[0].png) > 200

    def test_absent_optimum_gives_its_reason(self):
        metrics = {
            "frontier": {"fraction": None, "reached": 2.0, "optimum": None, "reason": "100 samples are too few."}
        }
        (figure,) = headline_figures(metrics)
        assert (figure.value, figure.note) == ("–", "100 samples are too few.")

    def test_fixed_beta_is_said(self):
        assert headline_figures({"classifier": {"model": "org/judge"}}) == []  # used as it is, not measured
        (figure,) = headline_figures({"kl": 2.0, "kl_target": None})
        assert figure.note == "nats per response; β fixed, no target"

    def test_model_table_pairs_the_judges_and_the_generators_score(self):
        table = model_table({"true_score": {"policy": 1.0, "policy_generator": 0.5, "zero_shot": 0.0}})
        assert table == {
            "columns": ["true score", "generator's truth"],
            "rows": [["policy", "1.00", "0.50"], ["zero_shot", "0.00", "–"]],
        }

    def test_samples_without_scores_and_chat_prompts(self, tmp_path):
        path = tmp_path / "samples.jsonl"
        row = {
            "prompt": [{"role": "user", "content": "hé"}],
            "reference": "a",
            "policy": "b",
            "policy_score": 1.0,
            "id": 7,
        }
        path.write_text(json.dumps(row) + "\n\n")
        samples = read_samples(path)
        assert (samples.models, samples.total) == (["reference", "policy"], 1)
        assert '"content": "hé"' in samples.rows[0][0]
        assert samples.rows[0][1] == [("a", None), ("b", 1.0)]

    def test_broken_sample_names_its_row(self, tmp_path):
        (tmp_path / "samples.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
        with pytest.raises(ValueError, match=r"samples\.jsonl, row 2 is not valid JSON"):
            read_samples(tmp_path / "samples.jsonl")

    @pytest.mark.parametrize(
        ("value", "text"), [(None, "–"), (0.125, "0.12"), (-0.5, "-0.50"), (123.4, "123"), (12345.6, "12,346")]
    )
    def test_number(self, value, text):
        assert number(value) == text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(None, "–"), (0.44, "0.4 s"), (59.96, "60.0 s"), (75.2, "1 min 15 s"), (7325, "2 h 2 min")],
    )
    def test_duration(self, seconds, text):
        assert duration(seconds) == text
