"""Labels for a recipe's comparisons: what is refused at the start, the stage `label` with people, their figures."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest
from label_records import answer_all, records

from trl_ziegler._files import write_jsonl
from trl_ziegler.experiments import labelling
from trl_ziegler.experiments.arguments import StyleArguments, SummaryArguments
from trl_ziegler.experiments.labelling import label_all, labelling_of_run, make_labeler
from trl_ziegler.experiments.pipeline import read_jsonl
from trl_ziegler.experiments.recipe import run_recipe
from trl_ziegler.experiments.report import write_report
from trl_ziegler.experiments.style import StyleExperiment
from trl_ziegler.experiments.summaries import SummaryExperiment
from trl_ziegler.labelers import ImmediateLabeler, LabellingStopped, LengthScorer, ScoreLabeler
from trl_ziegler.labelers.human import LabelStore
from trl_ziegler.labelers.human.figures import labelling_figures
from trl_ziegler.labelers.human.schema import Answer

pytest_plugins = "label_fixtures"
SMOKE = Path(__file__).parents[1] / "recipes" / "configs" / "sentiment" / "smoke.yaml"


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "labels.db")


def longest():
    return ScoreLabeler(LengthScorer())


# ---- What is refused before anything runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (StyleArguments, {"mode": "direct"}, "`label_store` is 'x.db', but the mode 'direct' asks nobody"),
        (StyleArguments, {"label_error_rate": 0.1}, "`label_error_rate` is 0.1, the simulated labeller's, but people"),
        (StyleArguments, {"label_poll_seconds": 0.0}, "`label_poll_seconds` is 0.0; give a positive pause"),
        (SummaryArguments, {"label_noise": 0.1}, "`label_noise` is 0.1, the simulated labeller's, but people"),
        (StyleArguments, {"label_store": "postgresql://me:secret@host/db"}, "holds a password, .* PGPASSWORD"),
        (SummaryArguments, {"mode": "online", "rounds": 2}, "`rounds` is 2 with `mode` 'online'"),
        (SummaryArguments, {"mode": "online", "starts": ["supervised", "zero_shot"]}, "`starts` is .* follow one"),
    ],
)
def test_arguments_that_contradict_each_other_are_named(kind, changed, message):
    with pytest.raises(ValueError, match=message) as refusal:
        kind(**{"label_store": "x.db", **changed})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("people", [True, False])
@pytest.mark.parametrize("kind", [StyleExperiment, SummaryExperiment])
def test_rankings_are_refused_where_only_the_best_is_known(kind, people, path, tmp_path):
    asked = {"label_store": path} if people else {"mode": "online", "policy": {"max_steps": 1}}
    name = kind.tasks[0]
    kind(name, kind.arguments(**asked), tmp_path)
    with pytest.raises(ValueError, match="`loss_type` in the section 'reward' is 'ranking', but people"):
        kind(name, kind.arguments(**asked, reward={"loss_type": "ranking"}), tmp_path)


def test_a_store_that_cannot_be_opened_is_refused_before_the_run_directory_is_made(tmp_path):
    run, store = tmp_path / "run", tmp_path / "nowhere" / "labels.db"
    with pytest.raises(ValueError, match="has no folder to lie in"):
        run_recipe("sentiment", SMOKE, ["--output_dir", str(run), "--label_store", str(store)])
    assert not run.exists()


def test_a_missing_extra_is_explained_before_the_run_directory_is_made(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("trl_ziegler.labelers.human")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    run = tmp_path / "run"
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'trl-ziegler\[label\]'"):
        run_recipe("sentiment", SMOKE, ["--output_dir", str(run), "--label_store", str(tmp_path / "labels.db")])
    assert not run.exists()


# ---- Asking and waiting ---------------------------------------------------------------------------------------------


def test_simulated_labels_come_at_once_and_in_order():
    rows = [{"prompt": "p", "completions": [" a", " a b"], "x": 1}, {"prompt": "q", "completions": [" a b", " a"]}]
    assert label_all(lambda: ImmediateLabeler(longest()), rows, 5.0) == [
        {**rows[0], "label": 1},
        {**rows[1], "label": 0},
    ]


def test_comparisons_without_a_choice_are_left_out():
    rows = [{"prompt": "p", "completions": texts} for texts in (["a", "a"], ["", "a"], ["a", "a", "b b"])]
    assert label_all(lambda: ImmediateLabeler(longest()), rows, 5.0) == [{**rows[2], "label": 2}]


class Slow:
    """Gives one label between two looks; pulls the cord at a number of them."""

    def __init__(self, cord=None):
        self.rows, self.given, self.cord = [], 0, cord

    def request(self, rows):
        assert not self.rows
        self.rows = list(rows)

    def open(self):
        self.given += 1
        if self.given == self.cord:
            raise LabellingStopped("broken texts")
        return max(0, len(self.rows) - self.given)

    def collect(self):
        assert self.given >= len(self.rows)
        return [{**row, "label": 0} for row in self.rows]


def test_waits_until_the_last_label_is_there_and_asks_once(monkeypatch):
    pauses = []
    monkeypatch.setattr(labelling.time, "sleep", pauses.append)
    assert [row["label"] for row in label_all(Slow, records(4), 2.5)] == [0] * 4
    assert pauses == [2.5] * 3


def test_a_pulled_cord_ends_the_waiting(monkeypatch):
    monkeypatch.setattr(labelling.time, "sleep", lambda seconds: None)
    with pytest.raises(LabellingStopped, match="broken texts"):
        label_all(lambda: Slow(cord=3), records(4), 1.0)


# ---- The stage `label` with people ----------------------------------------------------------------------------------


@pytest.fixture
def make_experiment(path, tmp_path):
    """`make_experiment(name)` whose stage `collect` has left three comparisons."""
    rows = [{"prompt_ids": [i], "completion_ids": [[1], [2]], "reference": "r", **row}
            for i, row in enumerate(records(3, k=2))]  # fmt: skip

    def make(name, **changed):
        kind = SummaryExperiment if name == "tldr" else StyleExperiment
        arguments = {"label_store": path, "label_poll_seconds": 0.01, **changed}
        experiment = kind(name, kind.arguments(**arguments), tmp_path / "run")
        (tmp_path / "run" / "collect").mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / "run" / "collect" / "candidates.jsonl", rows)
        return experiment

    return make


def stage(experiment, name):
    return next(stage for stage in experiment.stages() if stage.name == name)


@pytest.mark.parametrize("name", ["sentiment", "tldr"])
def test_people_label_what_the_recipe_asks_under_its_task(make_experiment, path, tmp_path, name):
    experiment = make_experiment(name)
    with LabelStore(path) as store:
        store.add_labeller("ann")
        done: list[str] = []

        def person():
            while len(done) < 3:
                done.extend(answer_all(store, "ann", label=1))
                time.sleep(0.01)

        thread = threading.Thread(target=person)
        thread.start()
        stage(experiment, "label").run(tmp_path)
        thread.join()
        assert {comparison.task for comparison in store.comparisons()} == {name}
    rows = read_jsonl(tmp_path / "labels.jsonl")
    assert [(row["prompt"], row["label"], row["prompt_ids"]) for row in rows] == [
        (f"Prompt {i}", 1, [i]) for i in range(3)
    ]


def test_a_stopped_stage_goes_on_once_the_cord_is_settled_and_asks_nothing_twice(make_experiment, path, tmp_path):
    run = stage(make_experiment("sentiment"), "label").run
    with LabelStore(path) as store:
        store.add_labeller("ann")
        store.add(records(3, k=2, task="sentiment"), repeats=1)
        work = store.take("ann")
        store.answer("ann", work.comparison.id, label=1, seconds=1.0)
        stop = store.request_stop("ann", "the second is cut in half")
        with pytest.raises(LabellingStopped, match=r"'ann' asked to stop .*the second is cut in half"):
            run(tmp_path)
        assert not (tmp_path / "labels.jsonl").exists()
        store.clear_stop(stop.id, author="kim", reason="it is whole")
        answer_all(store, "ann", label=0)
        run(tmp_path)
        assert len(store.comparisons()) == 3
    assert [row["label"] for row in read_jsonl(tmp_path / "labels.jsonl")] == [1, 0, 0]


def test_another_store_labels_anew_and_no_store_leaves_the_settings_as_they_were(make_experiment, path):
    settings = [
        stage(make_experiment("sentiment", **changed), "label").settings
        for changed in ({"label_store": None}, {}, {"label_store": f"{path}2"}, {"label_poll_seconds": 1.0})
    ]
    assert set(settings[0]) == {"task_name", "label_error_rate", "seed"}
    assert settings[0] != settings[1] != settings[2] and settings[1] == settings[3]


def test_the_simulated_labeller_is_not_made_where_people_answer(path):
    make_labeler(StyleArguments(label_store=path), "sentiment", lambda: pytest.fail("was made"))
    assert isinstance(make_labeler(StyleArguments(), "sentiment", longest), ImmediateLabeler)


@pytest.mark.parametrize("name", ["sentiment", "tldr"])
def test_an_online_policy_depends_on_the_schedule_and_on_how_rewards_are_trained(make_experiment, name):
    offline, online = (
        stage(make_experiment(name, mode=mode, policy={"max_steps": 1}), "policy").settings
        for mode in ("best_of_k", "online")
    )
    assert set(online) - set(offline) == {
        "reward", "online_initial_labels", "online_trainings", "online_margin", "online_validation_interval",
    }  # fmt: skip


# ---- Figures --------------------------------------------------------------------------------------------------------


def answered(store, name, *says):
    """`name` answers what comes, in turn: a label, or a skip by None; 2 seconds each, the first 9."""
    ids = []
    for i, label in enumerate(says):
        work = store.take(name)
        ids.append(work.comparison.id)
        seconds = 2.0 if i else 9.0
        if label is None:
            store.skip(name, ids[-1], "cannot say", seconds=seconds)
        else:
            store.answer(name, ids[-1], label=label, seconds=seconds)
    return ids


def test_figures_are_of_the_asked_comparisons_by_hand(store):
    ids = store.add(records(3), repeats=2).ids
    for name in ("ann", "bob"):
        store.add_labeller(name)
    assert answered(store, "ann", 0, 1, 2) == ids
    answered(store, "bob", 0, 3, None)
    figures = labelling_figures(store, [*ids, ids[0], "unknown"])
    agreement = figures.pop("agreement")
    assert figures == {
        "answers": 6, "labels": 5, "skips": 1, "flags": 0, "labellers": 2, "median_seconds": 2.0,
    }  # fmt: skip
    # Labels {0, 0}, {1, 3} and {2}: one of two pairs agrees; the third comparison counts for chance only.
    shares = [1 / 3, 0.5 / 3, 1 / 3, 0.5 / 3]
    expected = sum(share * share for share in shares)
    assert agreement.pop("kappa") == pytest.approx((0.5 - expected) / (1 - expected))
    assert agreement == {"agreement": 0.5, "chance": 0.25, "n": 2, "pairs": 2}
    one = labelling_figures(store, ids[:1])
    assert (one["answers"], one["agreement"]["kappa"]) == (2, None)  # both said 0: chance alone agrees
    json.dumps(one, allow_nan=False)


def test_what_was_taken_back_does_not_count(store):
    ids = store.add(records(2), repeats=1).ids
    store.add_labeller("ann")
    answered(store, "ann", 0, 1)
    store.retract("ann")
    figures = labelling_figures(store, ids)
    assert (figures["answers"], figures["median_seconds"], figures["agreement"]) == (1, 9.0, None)


def test_figures_of_more_comparisons_than_one_query_takes(store):
    ids = store.add(records(1101, k=2), repeats=2).ids
    for name in ("ann", "bob"):
        store.add_labeller(name)
    said = {"kind": "label", "label": 0, "reason": None, "seconds": 1.0, "created_at": store.clock()}
    with store.writing() as session:
        session.add_all(Answer(comparison_id=i, labeller=name, **said) for i in ids for name in ("ann", "bob"))
    figures = labelling_figures(store, [*ids, *ids])
    assert (figures["answers"], figures["agreement"]["n"]) == (2202, 1101)


def test_figures_of_a_run_are_those_of_its_own_comparisons(path, tmp_path):
    """Of the held-out ones and of the online ones, finished or not; not of what else is in the store."""
    rows, other = records(6), records(1, k=3)
    write = tmp_path / "collect"
    (tmp_path / "policy.partial" / "collection").mkdir(parents=True)
    write.mkdir()
    write_jsonl(write / "candidates.jsonl", rows[:2])
    online = [{**row, "step": 4} for row in rows[2:4]]
    write_jsonl(tmp_path / "policy.partial" / "collection" / "comparisons-000000.jsonl", online)
    with LabelStore(path) as store:
        asked = [{**row, "task": "tldr"} for row in (*rows[:2], *online, *other)]
        store.add(asked, repeats=1)
        store.add_labeller("ann")
        answer_all(store, "ann")
    args = SummaryArguments(label_store=path)
    assert labelling_of_run(tmp_path, "tldr", args, ["collect", "label", "policy"])["answers"] == 4
    assert labelling_of_run(tmp_path, "tldr", args, ["collect"])["answers"] == 2
    assert labelling_of_run(tmp_path, "cnndm", args, ["collect", "policy"])["answers"] == 0
    assert labelling_of_run(tmp_path, "tldr", SummaryArguments(), ["collect"]) is None


def test_the_report_shows_what_people_have_done(tmp_path):
    agreement = {"agreement": 0.412, "chance": 0.25, "kappa": 0.2161, "n": 41, "pairs": 410}
    figures = {"answers": 1234, "labels": 1200, "skips": 33, "flags": 1, "labellers": 20, "median_seconds": 30.04}
    page = written(tmp_path, {**figures, "agreement": agreement})
    assert "Answers of 20 people" in page and "1,234" in page
    assert "1,200 labels, 33 skips, 1 flags; median 30.0 seconds an answer" in page
    assert "Agreement of two people" in page and "0.41" in page
    assert "chance 0.25, Fleiss&#39; kappa 0.22; n = 41 comparisons" in page
    page = written(tmp_path, {**figures, "median_seconds": None, "agreement": None})
    assert "1 flags</td>" in page and "Agreement" not in page
    page = written(tmp_path, {**figures, "agreement": {**agreement, "kappa": None}})
    assert "chance 0.25; n = 41" in page
    assert "people" not in written(tmp_path, None)


def written(run, figures):
    (run / "metrics.json").write_text(json.dumps({} if figures is None else {"labelling": figures}))
    return write_report(run).read_text()
