"""The label store's rules, on SQLite and PostgreSQL alike: who gets what, what counts, what can be undone."""

import hashlib
from datetime import datetime, timedelta

import pytest
from label_records import answer_all, records
from sqlalchemy import select

from trl_ziegler.labelers.human import LabelStore, summaries
from trl_ziegler.labelers.human.schema import Token
from trl_ziegler.metrics.agreement import Agreement

pytest_plugins = "label_fixtures"


class TestRepeats:
    def test_repeats_go_to_different_people_and_no_further(self, store):
        (only,) = store.add(records(1), repeats=3).ids
        given = []
        for name in ("ann", "bob", "cyd", "dan"):
            store.add_labeller(name)
            given.append(answer_all(store, name))
        assert given == [[only], [only], [only], []]

    def test_work_in_hand_counts_towards_the_repeats(self, store):
        store.add(records(1), repeats=2)
        for name in ("ann", "bob", "cyd"):
            store.add_labeller(name)
        assert store.take("ann") is not None and store.take("bob") is not None
        assert store.take("cyd") is None


class TestLeases:
    def test_work_in_hand_stays_until_it_is_answered(self, store, clock):
        ids = store.add(records(2), repeats=1).ids
        store.add_labeller("ann")
        work = store.take("ann")
        assert (work.comparison.id, work.expires_at) == (ids[0], clock() + timedelta(minutes=10))
        clock.turn(minutes=9)
        assert store.take("ann") == work
        store.answer("ann", ids[0], label=1, seconds=1)
        assert store.take("ann").comparison.id == ids[1]

    def test_work_not_answered_in_time_goes_to_somebody_else(self, store, clock):
        ids = store.add(records(2), repeats=1).ids
        for name in ("ann", "bob", "cyd"):
            store.add_labeller(name)
        assert store.take("ann").comparison.id == ids[0]
        clock.turn(minutes=10, microseconds=-1)
        assert store.take("bob").comparison.id == ids[1]
        clock.turn(microseconds=1)
        assert store.take("cyd").comparison.id == ids[0]
        assert store.take("ann") is None

    def test_a_late_answer_counts(self, store, clock):
        (only,) = store.add(records(1), repeats=1).ids
        store.add_labeller("ann"), store.add_labeller("bob")
        store.take("ann")
        clock.turn(hours=1)
        store.take("bob")
        store.answer("ann", only, label=2, seconds=3600)
        assert store.majority() == {only: 2}
        store.answer("bob", only, label=1, seconds=5)
        assert store.counts().labels == 2 and store.majority() == {only: 2}

    def test_the_lease_can_be_set(self, location, clock):
        with LabelStore(location, clock=clock, lease=timedelta(seconds=30)) as store:
            store.add(records(1))
            store.add_labeller("ann")
            assert store.take("ann").expires_at == clock() + timedelta(seconds=30)
        with pytest.raises(ValueError, match="lease=0:00:00 ends before it begins"):
            LabelStore(location, lease=timedelta(0))
        with pytest.raises(ValueError, match="tells a time without its zone; give one in UTC"):
            LabelStore(location, clock=datetime.now)


class TestTasks:
    @pytest.fixture
    def ids(self, store):
        store.add_labeller("ann")
        return store.add(
            [{**record, "task": task} for record, task in zip(records(3), ("a", "b", None), strict=True)]
        ).ids

    def test_a_page_of_one_task_gets_its_comparisons_and_those_without_any(self, store, ids):
        taken = []
        while (work := store.take("ann", task="b")) is not None:
            taken.append(work.comparison.id)
            store.answer("ann", work.comparison.id, label=0, seconds=1)
        assert taken == ids[1:]
        assert store.take("ann").comparison.id == ids[0]

    def test_work_in_hand_of_another_task_waits(self, store, ids):
        assert store.take("ann", task="a").comparison.id == ids[0]
        assert store.take("ann", task="b").comparison.id == ids[1]
        assert store.take("ann", task="a").comparison.id == ids[0]

    def test_what_is_left_and_counted_goes_by_task_too(self, store):
        store.add(records(3, task="a"), repeats=2), store.add(records(4, task="b"), repeats=1)
        for name in ("ann", "bob"):
            store.add_labeller(name)
        answer_all(store, "ann")
        store.take("bob")
        with store.reading() as session:
            assert [summaries.remaining(session, task) for task in ("a", "b", "c", None)] == [3, 0, 0, 3]
            assert [summaries.counts(session, task).comparisons for task in ("a", "b", "c", None)] == [3, 4, 0, 7]
            assert summaries.counts(session).remaining == 3


class TestOwnProgress:
    def test_is_the_entry_of_progress(self, store, clock):
        store.add(records(6), repeats=2)
        for name in ("ann", "bob"):
            store.add_labeller(name)
        for act in ("label", "skip", "flag", "label", "retract", "label"):
            clock.turn(seconds=1)
            work = store.take("ann")
            if act == "label":
                store.answer("ann", work.comparison.id, label=1, seconds=3)
            elif act == "retract":
                store.retract("ann")
            else:
                getattr(store, act)("ann", work.comparison.id, "unclear", seconds=4)
        answer_all(store, "bob", seconds=50)
        with store.reading() as session:
            assert [summaries.progress_of(session, name) for name in ("ann", "bob")] == store.progress()

    def test_speed_is_that_of_the_last_answers(self, store):
        store.add(records(5))
        store.add_labeller("ann")
        for seconds in (100, 90, 1, 2, 4):
            store.answer("ann", store.take("ann").comparison.id, label=1, seconds=seconds)
        with store.reading() as session:
            assert summaries.progress_of(session, "ann", last=3).median_seconds == 2


class TestAnswers:
    @pytest.fixture
    def work(self, store):
        store.add(records(1), repeats=1)
        for name in ("ann", "bob"):
            store.add_labeller(name)
        return store.take("ann")

    def test_say_who_what_when_and_how_long(self, store, work, clock):
        clock.turn(seconds=4)
        answer = store.answer("ann", work.comparison.id, label=3, seconds=4.5)
        assert (answer.labeller, answer.comparison_id, answer.kind, answer.label) == (
            "ann", work.comparison.id, "label", 3,
        )  # fmt: skip
        assert (answer.seconds, answer.created_at, answer.reason) == (4.5, clock(), None)
        assert answer.created_at.utcoffset() == timedelta(0)

    def test_sent_twice_are_stored_once(self, store, work):
        first = store.answer("ann", work.comparison.id, label=3, seconds=4)
        assert store.answer("ann", work.comparison.id, label=3, seconds=9) == first
        assert store.counts().labels == 1

    def test_a_second_thought_needs_a_retraction(self, store, work):
        store.answer("ann", work.comparison.id, label=3, seconds=4)
        with pytest.raises(ValueError, match=r"'ann' has answered comparison \w+ with label 3; `retract` that"):
            store.answer("ann", work.comparison.id, label=0, seconds=4)
        with pytest.raises(ValueError, match="with label 3"):
            store.skip("ann", work.comparison.id, "unsure", seconds=4)

    def test_what_was_never_given_cannot_be_answered(self, store, work):
        with pytest.raises(ValueError, match="was never given to labeller='bob'; answer what `take` gave"):
            store.answer("bob", work.comparison.id, label=0, seconds=1)

    @pytest.mark.parametrize(
        ("labeller", "identity", "label", "seconds", "message"),
        [
            ("ann", None, 4, 1, "label=4 points at no completion; with 4 of them it is in 0..3"),
            ("ann", None, -1, 1, "label=-1"),
            ("ann", None, 1.0, 1, r"label=1\.0"),
            ("ann", None, True, 1, "label=True"),
            ("ann", None, 0, -1, "seconds=-1 is no duration"),
            ("ann", None, 0, float("nan"), "seconds=nan"),
            ("ann", None, 0, "3", "seconds='3'"),
            ("eve", None, 0, 1, "labeller='eve' is not known; add the name with `add_labeller`"),
            ("a\0", None, 0, 1, r"labeller='a\\x00' is no name"),
            ("ann", "0" * 64, 0, 1, "comparison_id='0000.*' is not in the store"),
            ("ann", "\0", 0, 1, "is not in the store"),
            ("ann", 7, 0, 1, "comparison_id=7 is not in the store"),
        ],
    )
    def test_wrong_ones_are_named(self, store, work, labeller, identity, label, seconds, message):
        with pytest.raises(ValueError, match=message):
            store.answer(labeller, work.comparison.id if identity is None else identity, label=label, seconds=seconds)
        assert store.counts().labels == 0

    def test_a_skip_goes_to_somebody_else(self, store, work):
        skip = store.skip("ann", work.comparison.id, "I do not know these people", seconds=2)
        assert (skip.kind, skip.label, skip.reason) == ("skip", None, "I do not know these people")
        assert store.take("ann") is None
        assert store.take("bob").comparison.id == work.comparison.id
        assert store.majority() == {} and store.counts().remaining == 1

    @pytest.mark.parametrize("act", ["skip", "flag"])
    @pytest.mark.parametrize("reason", ["", "  \n", None, 3])
    def test_skips_and_flags_need_a_reason(self, store, work, act, reason):
        with pytest.raises(ValueError, match=f"says nothing; give the reason of a {act} in words"):
            getattr(store, act)("ann", work.comparison.id, reason, seconds=1)


class TestFlags:
    @pytest.fixture
    def flag(self, store):
        store.add(records(1), repeats=2)
        for name in ("ann", "bob"):
            store.add_labeller(name)
            store.take(name)
        only = store.comparisons()[0].id
        store.answer("bob", only, label=1, seconds=1)
        return store.flag("ann", only, "not English", seconds=1)

    def test_take_the_comparison_out_of_the_pool(self, store, flag):
        store.add_labeller("cyd")
        assert store.take("cyd") is None and store.take("ann") is None
        assert store.majority() == {} and store.ratings()["predictions"] == []
        counts = store.counts()
        assert (counts.comparisons, counts.set_aside, counts.labels, counts.remaining) == (1, 1, 0, 0)
        assert store.flags() == [flag]

    def test_a_rivals_work_in_hand_ends_too(self, store):
        store.add(records(2), repeats=2)
        for name in ("ann", "bob"):
            store.add_labeller(name)
        shared = store.take("ann").comparison.id
        assert store.take("bob").comparison.id == shared
        store.flag("ann", shared, "empty", seconds=1)
        assert store.take("bob").comparison.id != shared

    def test_kept_ones_return_to_others(self, store, flag, clock):
        decision = store.decide(flag.id, keep=True, author="the researcher", reason="it is Scots")
        assert (decision.keep, decision.author, decision.created_at) == (True, "the researcher", clock())
        assert store.flags() == [] and store.majority() == {flag.comparison_id: 1}
        store.add_labeller("cyd")
        assert store.take("ann") is None
        assert store.take("cyd").comparison.id == flag.comparison_id

    def test_dropped_ones_stay_out_until_the_last_decision_says_otherwise(self, store, flag):
        store.decide(flag.id, keep=False, author="r", reason="right")
        assert store.flags() == [] and store.majority() == {}
        store.decide(flag.id, keep=True, author="r", reason="on second thoughts")
        assert store.majority() == {flag.comparison_id: 1}

    def test_one_undecided_flag_is_enough(self, store, flag):
        store.decide(flag.id, keep=True, author="r", reason="fine")
        store.add_labeller("cyd")
        store.flag("cyd", store.take("cyd").comparison.id, "still not English", seconds=1)
        assert store.counts().set_aside == 1

    def test_can_be_taken_back_before_the_decision_only(self, store, flag):
        store.retract("ann")
        assert store.counts().set_aside == 0 and store.flags() == []
        with pytest.raises(ValueError, match=f"flag_id={flag.id} is no flag that stands"):
            store.decide(flag.id, keep=True, author="r", reason="fine")
        again = store.flag("ann", flag.comparison_id, "no, really", seconds=1)
        store.decide(again.id, keep=False, author="r", reason="right")
        with pytest.raises(ValueError, match=f"Flag {again.id} has been decided on; ask the researcher"):
            store.retract("ann")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"flag_id": 99}, "flag_id=99 is no flag that stands"),
            ({"flag_id": 1}, "flag_id=1 is no flag that stands"),  # bob's label
            ({"flag_id": "1"}, "`flag_id` is '1'"),
            ({"keep": "no"}, "keep='no' decides nothing"),
            ({"author": ""}, "author='' says nothing; give the author of a decision"),
            ({"reason": " "}, "reason=' ' says nothing; give the reason of a decision"),
        ],
    )
    def test_wrong_decisions_are_named(self, store, flag, changes, message):
        words = {"flag_id": flag.id, "keep": True, "author": "r", "reason": "fine", **changes}
        with pytest.raises(ValueError, match=message):
            store.decide(words.pop("flag_id"), **words)


class TestRetraction:
    def test_gives_the_comparison_back_for_another_answer(self, store, clock):
        ids = store.add(records(2), repeats=1).ids
        store.add_labeller("ann"), store.add_labeller("bob")
        store.take("ann")
        store.answer("ann", ids[0], label=1, seconds=1)
        interrupted = store.take("ann")
        clock.turn(minutes=1)
        work = store.retract("ann")
        assert (work.comparison.id, work.expires_at) == (ids[0], clock() + timedelta(minutes=10))
        assert store.majority() == {} and store.counts().remaining == 2
        assert store.take("bob") is None
        assert store.take("ann") == work
        store.answer("ann", ids[0], label=2, seconds=1)
        assert store.majority() == {ids[0]: 2}
        assert store.take("ann").comparison.id == interrupted.comparison.id

    def test_goes_back_one_answer_at_a_time_and_only_ones_own(self, store, clock):
        ids = store.add(records(3), repeats=1).ids
        for name in ("ann", "bob"):
            store.add_labeller(name)
        for name, identity in (("ann", ids[0]), ("ann", ids[1]), ("bob", ids[2])):
            clock.turn(seconds=1)
            assert store.take(name).comparison.id == identity
            store.answer(name, identity, label=0, seconds=1)
        assert [store.retract("ann").comparison.id for _ in range(2)] == [ids[1], ids[0]]
        with pytest.raises(ValueError, match="labeller='ann' has no answer to take back"):
            store.retract("ann")
        assert list(store.majority()) == [ids[2]]

    def test_goes_to_others_when_the_lease_ends(self, store, clock):
        (only,) = store.add(records(1), repeats=1).ids
        store.add_labeller("ann"), store.add_labeller("bob")
        answer_all(store, "ann")
        store.retract("ann")
        clock.turn(minutes=10)
        assert store.take("bob").comparison.id == only


class TestSummaries:
    def test_majority_and_among_equals_the_earliest(self, store, clock):
        store.add(records(3), repeats=5)
        votes = {"ann": [3, 2, 0], "bob": [1, 2, 1], "cyd": [3, 0, 1], "dan": [1, 0, 0], "eve": [2, 0, 1]}
        for name, labels in votes.items():
            store.add_labeller(name)
            for label in labels:
                clock.turn(seconds=1)
                store.answer(name, store.take(name).comparison.id, label=label, seconds=1)
        assert list(store.majority().values()) == [3, 0, 1]  # 3 1 3 1 2: 3 was first; 2 2 0 0 0; 0 1 1 0 1
        clock.turn(seconds=1)
        store.retract("ann"), store.retract("ann"), store.retract("ann")
        assert list(store.majority().values()) == [1, 0, 1]  # without ann: 1 3 1 2; 2 0 0 0; 1 1 0 1

    def test_ratings_are_what_agreement_takes(self, store):
        store.add([*records(1), *records(2, k=2, task="b")], repeats=2)
        for name, label in (("ann", 0), ("bob", 1)):
            store.add_labeller(name)
            answer_all(store, name, label)
        assert store.ratings(task="b")["num_choices"] == [2, 2]
        ratings = store.ratings()
        assert ratings["predictions"] == [[0, 1]] * 3 and ratings["references"] == [["ann", "bob"]] * 3
        assert ratings["num_choices"] == [4, 2, 2]
        result = Agreement(keep_in_memory=True).compute(**ratings)
        assert (result["agreement"], result["n"]) == (0.0, 3)

    def test_counts_and_progress_by_hand(self, store):
        store.add(records(4), repeats=2)
        for name in ("ann", "bob", "cyd"):
            store.add_labeller(name)
        for seconds in (1, 2, 9):
            store.answer("ann", store.take("ann").comparison.id, label=0, seconds=seconds)
        store.skip("ann", store.take("ann").comparison.id, "unsure", seconds=100)
        store.retract("ann")
        for _ in range(2):
            store.answer("bob", store.take("bob").comparison.id, label=0, seconds=3)
        store.flag("bob", store.take("bob").comparison.id, "broken", seconds=1)
        counts = store.counts()
        # labels: 2 2 (1, set aside) 0
        assert (counts.comparisons, counts.labelled, counts.set_aside) == (4, 2, 1)
        assert (counts.labels, counts.remaining) == (4, 2)
        ann, bob, cyd = store.progress()
        assert (ann.labeller, ann.labels, ann.skips, ann.flags, ann.retracted, ann.median_seconds) == (
            "ann", 3, 0, 0, 1, 2,
        )  # fmt: skip
        assert (bob.labels, bob.flags, bob.median_seconds) == (2, 1, 3)
        assert (cyd.labels, cyd.median_seconds) == (0, None)

    def test_labels_beyond_the_repeats_do_not_lower_what_remains(self, store, clock):
        ids = store.add(records(2), repeats=1).ids
        store.add_labeller("ann"), store.add_labeller("bob")
        store.take("ann")
        clock.turn(hours=1)
        store.take("bob")
        for name in ("ann", "bob"):
            store.answer(name, ids[0], label=0, seconds=1)
        assert (store.counts().labels, store.counts().remaining) == (2, 1)


class TestTokens:
    def test_open_the_door_to_their_labeller_only(self, store):
        ann, bob = store.add_labeller("ann"), store.add_labeller("bob")
        assert (store.authenticate(ann), store.authenticate(bob), store.authenticate(ann[:-1])) == ("ann", "bob", None)
        assert len(ann) >= 43  # 256 bits

    def test_are_not_in_the_store(self, store):
        token = store.add_labeller("ann")
        with store.reading() as session:
            (digest,) = session.scalars(select(Token.digest))
        assert digest == hashlib.sha256(token.encode()).hexdigest()

    def test_a_replaced_one_is_refused(self, store):
        first = store.add_labeller("ann")
        second = store.replace_token("ann")
        assert (store.authenticate(first), store.authenticate(second)) == (None, "ann")

    @pytest.mark.parametrize("name", ["", " ann", "a\nb", "a\0", "\ud800", "x" * 201, None, 3])
    def test_wrong_names_are_refused(self, second_store, name):
        with pytest.raises(ValueError, match="is no name; give 1 to 200 printable characters"):
            second_store.add_labeller(name)

    def test_a_name_is_given_once(self, store):
        store.add_labeller("ann")
        with pytest.raises(ValueError, match="labeller='ann' is there already; `replace_token` gives another token"):
            store.add_labeller("ann")


class TestTheCord:
    def test_stands_until_each_request_is_cleared(self, store, location, clock):
        store.add_labeller("ann"), store.add_labeller("bob")
        assert store.stop_requested() is None
        first = store.request_stop("ann", "all texts are about sex")
        second = store.request_stop("bob", "it swears")
        with LabelStore(location) as training_run:
            request = training_run.stop_requested()
            assert (request.labeller, request.reason, request.created_at) == ("ann", first.reason, clock())
            store.clear_stop(first.id, author="the researcher", reason="sign error found")
            assert training_run.stop_requested().id == second.id
            store.clear_stop(second.id, author="the researcher", reason="the same")
            assert training_run.stop_requested() is None

    def test_wrong_words_are_named(self, store):
        store.add_labeller("ann")
        with pytest.raises(ValueError, match="give the reason of a request to stop in words"):
            store.request_stop("ann", "")
        with pytest.raises(ValueError, match="labeller='eve' is not known"):
            store.request_stop("eve", "wrong")
        request = store.request_stop("ann", "wrong")
        with pytest.raises(ValueError, match="give the reason of a clearance in words"):
            store.clear_stop(request.id, author="r", reason="")
        store.clear_stop(request.id, author="r", reason="done")
        with pytest.raises(ValueError, match=f"request_id={request.id} is no standing request"):
            store.clear_stop(request.id, author="r", reason="done")
