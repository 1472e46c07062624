"""People as a labeller: what is waited for, what is taken as it is, and what ends the waiting."""

import re
import threading
import time

import pytest
from label_records import answer_all, records

from trl_ziegler.labelers import LabellingStopped
from trl_ziegler.labelers.human import HumanLabeler, LabelStore, export_jsonl, import_jsonl

pytest_plugins = "label_fixtures"


@pytest.fixture
def make_labeler(store):
    """`make_labeler(**options)`: one that asks once each and looks often."""

    def make(**options) -> HumanLabeler:
        return HumanLabeler(
            store, **{"repeats": 1, "poll_seconds": 0.01, "progress": False, "timeout": 60.0, **options}
        )

    return make


@pytest.fixture
def ann(store):
    store.add_labeller("ann")
    return "ann"


def ask(labeler, rows, **columns):
    return labeler.label([row["prompt"] for row in rows], [row["completions"] for row in rows], **columns)


def say(store, name, label):
    """Take one comparison and answer it; its id."""
    work = store.take(name)
    store.answer(name, work.comparison.id, label=label, seconds=1.0)
    return work.comparison.id


class TestWaiting:
    def test_labels_come_back_in_the_order_of_the_prompts(self, store, make_labeler, ann):
        rows = [*records(2, k=3), *records(1)]
        store.add(rows, repeats=1)
        for label in (2, 0, 3):
            say(store, ann, label)
        assert ask(make_labeler(), rows[::-1]) == [3, 0, 2]
        assert ask(make_labeler(), [rows[0], rows[0]]) == [2, 2]
        assert make_labeler().label([], []) == []

    def test_blocks_until_somebody_has_answered_everything(self, store, make_labeler, ann):
        given = []

        def work():
            while len(given) < 3:
                time.sleep(0.02)
                if (assignment := store.take(ann)) is not None:
                    store.answer(ann, assignment.comparison.id, label=3, seconds=1.0)
                    given.append(assignment.comparison.prompt)

        person = threading.Thread(target=work)
        person.start()
        labels = ask(make_labeler(), records(3))
        assert (labels, len(given)) == ([3, 3, 3], 3)
        person.join()

    def test_shows_its_progress_only_when_asked(self, store, make_labeler, ann, capsys):
        store.add(records(2), repeats=1)
        answer_all(store, ann)
        ask(make_labeler(), records(2))
        assert capsys.readouterr().err == ""
        ask(make_labeler(progress=True), records(2))
        assert "Waiting for labels: 100%" in capsys.readouterr().err

    def test_gives_up_after_the_timeout_and_keeps_what_is_there(self, store, make_labeler, ann):
        store.add(records(1), repeats=1)
        answer_all(store, ann)
        with pytest.raises(TimeoutError, match=r"2 of 3 comparisons have no label after timeout=0.05 .*call again"):
            ask(make_labeler(timeout=0.05), records(3))
        answer_all(store, ann, label=2)
        assert ask(make_labeler(), records(3)) == [0, 2, 2]

    def test_the_label_is_that_of_the_majority_once_all_have_answered(self, store, make_labeler):
        store.add(records(1), repeats=3)
        for name, label in (("ann", 1), ("bob", 2)):
            store.add_labeller(name)
            say(store, name, label)
        store.add_labeller("eve")
        with pytest.raises(TimeoutError):
            ask(make_labeler(timeout=0.02), records(1))
        say(store, "eve", 2)
        assert ask(make_labeler(), records(1)) == [2]

    def test_repeats_task_and_columns_reach_the_store(self, store, make_labeler, ann):
        labeler = make_labeler(repeats=4, task="Which is happier?", timeout=0.01)
        with pytest.raises(TimeoutError):
            ask(labeler, records(2), step=[1, 2], task=["Which is longer?", None], reference=["x", "y"])
        first, second = store.comparisons()
        assert (first.task, second.task) == ("Which is longer?", "Which is happier?")
        assert (second.repeats, second.step, second.extra) == (4, 2, {"reference": "y"})

    def test_what_nobody_is_left_to_label_is_reported_instead_of_waited_for(self, store, make_labeler, ann):
        labeler = make_labeler()
        labeler.request(records(2))
        identity = say(store, ann, 0)
        second = store.take(ann).comparison.id
        flag = store.flag(ann, second, "cut in half", seconds=1.0)
        message = rf"1 of 2 comparisons are left without a label, the first at prompts\[1\] \(comparison {second}\)"
        with pytest.raises(RuntimeError, match=message):
            ask(labeler, records(2))
        store.decide(flag.id, keep=True, author="kim", reason="it is whole")
        store.add_labeller("bob")
        assert say(store, "bob", 1) == second != identity
        assert ask(labeler, records(2)) == [0, 1]

    def test_a_record_that_cannot_be_asked_is_refused(self, make_labeler):
        with pytest.raises(ValueError, match="completions has 1 rows for 2 prompts"):
            make_labeler().label(["p", "q"], [["a", "b"]])
        with pytest.raises(ValueError, match="step has 2 rows for 1 prompts"):
            make_labeler().label(["p"], [["a", "b"]], step=[1, 2])
        with pytest.raises(ValueError, match=r"completions=\['a', 'a'\] leave nothing to choose"):
            make_labeler().label(["p"], [["a", "a"]])
        with pytest.raises(ValueError, match="completion 1 is ''"):
            make_labeler().label(["p"], [["a", ""]])


class TestCollecting:
    def test_takes_what_is_there_in_the_order_of_the_requests(self, store, make_labeler, ann):
        labeler = make_labeler()
        labeler.request(records(2, step=1, note="x"))
        labeler.request(records(1, step=2))
        assert (labeler.open(), labeler.collect()) == (3, [])
        first = say(store, ann, 2)
        assert (labeler.open(), [row["label"] for row in labeler.collect()]) == (2, [2])
        answer_all(store, ann, label=1)
        assert store.comparison(first).prompt == "Prompt 0"
        requested = [*records(2, step=1, note="x"), *records(1, step=2)]
        assert labeler.collect() == [{**row, "label": b} for row, b in zip(requested, [2, 1, 1], strict=True)]
        assert labeler.open() == 0

    def test_other_comparisons_of_the_store_do_not_come_along(self, store, make_labeler, ann):
        store.add(records(3, task="another"), repeats=1)
        labeler = make_labeler()
        labeler.request(records(1))
        assert labeler.open() == 1
        answer_all(store, ann)
        assert len(labeler.collect()) == 1

    def test_another_process_finds_the_answers_of_the_first(self, store, make_labeler, ann):
        make_labeler().request(records(2))
        say(store, ann, 3)
        again = make_labeler()
        again.request(records(2))
        assert (again.open(), [row["label"] for row in again.collect()]) == (1, [3])
        assert store.counts().comparisons == 2

    def test_a_refused_request_leaves_nothing_behind(self, store, make_labeler):
        labeler = make_labeler()
        with pytest.raises(ValueError, match="Record 1 has label=0 already"):
            labeler.request([records(1)[0], {**records(2)[1], "label": 0}])
        with pytest.raises(ValueError, match="Record 1: `step` is -1"):
            labeler.request([records(1)[0], {**records(2)[1], "step": -1}])
        assert (labeler.open(), store.counts().comparisons) == (0, 0)

    def test_a_flag_ends_the_expectation_and_a_decision_to_keep_renews_it(self, store, make_labeler, ann):
        labeler = make_labeler()
        labeler.request(records(1))
        work = store.take(ann)
        flag = store.flag(ann, work.comparison.id, "no text", seconds=1.0)
        assert (labeler.open(), labeler.collect()) == (0, [])
        store.add_labeller("bob")
        store.decide(flag.id, keep=True, author="kim", reason="there is")
        assert (labeler.open(), labeler.collect()) == (1, [])

    def test_a_skip_leaves_it_to_the_others_until_nobody_is_left(self, store, make_labeler, ann):
        store.add_labeller("bob")
        labeler = make_labeler()
        labeler.request(records(1))
        for name, left in (("ann", 1), ("bob", 0)):
            store.skip(name, store.take(name).comparison.id, "cannot say", seconds=1.0)
            assert (labeler.open(), labeler.collect()) == (left, [])
        store.retract("bob")
        assert labeler.open() == 1
        say(store, "bob", 1)
        assert (labeler.open(), labeler.collect()) == (0, [{**records(1)[0], "label": 1}])

    def test_a_small_team_is_not_waited_for_beyond_its_number(self, store, make_labeler, ann):
        store.add_labeller("bob")
        labeler = make_labeler(repeats=5)
        labeler.request(records(1))
        say(store, ann, 2)
        assert (labeler.open(), labeler.collect()) == (1, [])
        say(store, "bob", 0)
        assert (labeler.open(), [row["label"] for row in labeler.collect()]) == (0, [2])
        store.add_labeller("eve")
        assert (labeler.open(), labeler.collect()) == (1, [])

    def test_without_any_labeller_everything_is_still_expected(self, make_labeler):
        labeler = make_labeler()
        labeler.request(records(2))
        assert labeler.open() == 2

    def test_who_has_no_token_is_not_waited_for(self, store, second_store, make_labeler, tmp_path, ann):
        second_store.add_labeller("imported")
        second_store.add(records(1), repeats=3)
        say(second_store, "imported", 2)
        export_jsonl(second_store, tmp_path / "past.jsonl")
        import_jsonl(store, tmp_path / "past.jsonl")
        labeler = make_labeler()
        labeler.request(records(1))
        assert (labeler.open(), labeler.collect()) == (1, [])
        say(store, ann, 1)
        assert (labeler.open(), [row["label"] for row in labeler.collect()]) == (0, [2])


class TestCord:
    def test_a_pulled_cord_ends_every_call_until_it_is_settled(self, store, make_labeler, ann):
        labeler = make_labeler()
        labeler.request(records(1))
        stop = store.request_stop(ann, "it writes insults")
        message = re.escape(
            "'ann' asked to stop on 2019-09-18 12:00 UTC: 'it writes insults'; settle it on the researcher's page of "
            f"the labelling server or with `LabelStore.clear_stop({stop.id}, ...)`"
        )
        calls = [labeler.collect, labeler.open, lambda: labeler.request(records(2)), lambda: ask(labeler, records(1))]
        for call in calls:
            with pytest.raises(LabellingStopped, match=message):
                call()
        store.clear_stop(stop.id, author="kim", reason="rolled back")
        assert labeler.open() == 1

    def test_it_ends_the_waiting(self, store, make_labeler, ann):
        labeler = make_labeler()
        timer = threading.Timer(0.05, store.request_stop, (ann, "stop"))
        timer.start()
        with pytest.raises(LabellingStopped, match="'stop'"):
            ask(labeler, records(1))
        timer.join()


@pytest.mark.parametrize("options", [{"poll_seconds": 0.0}, {"timeout": -1.0}, {"poll_seconds": float("nan")}])
def test_times_out_of_range_are_refused_by_name_and_value(make_labeler, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be a positive number"):
        make_labeler(**options)


def test_docstring_example(tmp_path):
    with LabelStore(tmp_path / "labels.db") as store:
        store.add_labeller("ann")
        labeler = HumanLabeler(store, repeats=1)
        labeler.request([{"prompt": "She was in", "completions": [" a garden.", " Rome."], "step": 0}])
        assert (labeler.open(), labeler.collect()) == (1, [])
        store.answer("ann", store.take("ann").comparison.id, label=1, seconds=4.2)
        assert (labeler.open(), labeler.collect()) == (
            0,
            [{"prompt": "She was in", "completions": [" a garden.", " Rome."], "step": 0, "label": 1}],
        )
