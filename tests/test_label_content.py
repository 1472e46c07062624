"""What a comparison is to the store: its identity, its repeats, its display order, and what is refused."""

import hashlib
from collections import Counter

import pytest
from label_records import records

from trl_ziegler.labelers.human import comparison_id, display_order
from trl_ziegler.labelers.human.content import wanted_answers

pytest_plugins = "label_fixtures"

CHAT = [{"role": "user", "content": "Hello"}]
REPLIES = [[{"role": "assistant", "content": text}] for text in ("Hi.", "Go away.")]
HOSTILE = "NUL \0, quote ' \" \\, emoji 👩‍🚀, separators \u2028\u2029\x85, right to left \u202e, percent %s %(x)s :x ?"


class TestComparisons:
    def test_come_back_as_they_went_in_and_in_order(self, store, clock):
        record = {
            "prompt": CHAT, "completions": REPLIES, "source": "ppo", "step": 30, "task": "chat", "seed": 7,
            "repeats": 3, "post": {"author": "x", "votes": [1, 2]},
        }  # fmt: skip
        ids, added = store.add([*records(2), record])
        assert added == 3
        assert [c.id for c in store.comparisons()] == ids
        last = store.comparison(ids[2])
        assert (last.prompt, last.completions) == (CHAT, REPLIES)
        assert (last.source, last.step, last.task, last.seed, last.repeats) == ("ppo", 30, "chat", 7, 3)
        assert last.extra == {"post": {"author": "x", "votes": [1, 2]}}
        assert (last.position, last.created_at) == (2, clock())
        assert [c.id for c in store.comparisons(task="chat")] == [ids[2]]

    def test_adding_twice_adds_nothing(self, store):
        first = store.add(records(3))
        assert store.add(records(4)) == ([*first.ids, store.comparisons()[3].id], 1)
        assert store.add([*records(1), *records(1)]) == ([first.ids[0]] * 2, 0)
        assert [c.prompt for c in store.comparisons()] == ["Prompt 0", "Prompt 1", "Prompt 2", "Prompt 3"]

    def test_twins_within_one_call_count_once_in_the_place_of_the_first(self, store):
        a, b = records(2)
        ids, added = store.add([a, b, {**a, "seed": 9, "note": "the second"}])
        assert (added, ids[2]) == (2, ids[0])
        assert [c.id for c in store.comparisons()] == ids[:2]
        assert (store.comparison(ids[0]).seed, store.comparison(ids[0]).extra) == (0, {})

    @pytest.mark.parametrize(
        ("change", "same"),
        [
            ({"seed": 3}, True),
            ({"repeats": 9}, True),
            ({"note": "x"}, True),
            ({"source": "ppo"}, False),
            ({"step": 1}, False),
            ({"task": "tldr"}, False),
            ({"prompt": "Prompt 0 "}, False),
            ({"completions": [" answer 0.1", " answer 0.0", " answer 0.2", " answer 0.3"]}, False),
        ],
    )
    def test_what_makes_it_another_comparison(self, store, change, same):
        store.add(records(1))
        assert store.add([{**records(1)[0], **change}]).added == (0 if same else 1)

    def test_id_by_hand(self):
        content = b'["tldr", "p", ["a", "b"], "ppo", 3]'
        assert comparison_id("p", ["a", "b"], source="ppo", step=3, task="tldr") == hashlib.sha256(content).hexdigest()

    def test_keys_that_arrow_adds_to_messages_do_not_count(self, store):
        store.add([{"prompt": CHAT, "completions": REPLIES}])
        padded = [{"role": "user", "content": "Hello", "name": None}]
        assert store.add([{"prompt": padded, "completions": REPLIES}]).added == 0

    def test_hostile_text_survives(self, store):
        long = "x" * 2**20
        store.add(
            [{"prompt": HOSTILE, "completions": [long, HOSTILE], "task": HOSTILE, "source": HOSTILE, "n": HOSTILE}]
        )
        store.add_labeller("Zoë O'Hara; DROP TABLE answers")
        work = store.take("Zoë O'Hara; DROP TABLE answers")
        assert work.comparison.prompt == HOSTILE and work.comparison.completions == [long, HOSTILE]
        assert [c.extra for c in store.comparisons(task=HOSTILE)] == [{"n": HOSTILE}]
        store.flag(work.labeller, work.comparison.id, HOSTILE, seconds=1)
        (flag,) = store.flags()
        assert (flag.reason, flag.labeller) == (HOSTILE, work.labeller)
        store.request_stop(work.labeller, HOSTILE)
        assert store.stop_requested().reason == HOSTILE
        assert store.authenticate(HOSTILE) is None and store.authenticate("\ud800") is None

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ({"prompt": "p"}, r"Record 1 has no `completions`; give `prompt` and `completions`"),
            ({"prompt": "", "completions": ["a", "b"]}, "Record 1: `prompt` is ''; give non-empty text or chat"),
            ({"prompt": "p", "completions": "ab"}, "`completions` is 'ab'; a choice needs a list of 2 or more"),
            ({"prompt": "p", "completions": ["a"]}, "needs a list of 2 or more"),
            ({"prompt": "p", "completions": ["a", 3]}, "completion 1 is 3"),
            ({"prompt": "p", "completions": ["a", "a"]}, "all 2 completions are identical"),
            ({"prompt": CHAT, "completions": ["a", "b"]}, "mixes plain text and chat"),
            ({"prompt": [{"role": "user"}], "completions": REPLIES}, "give non-empty text or chat messages"),
            ({"prompt": "p\ud800", "completions": ["a", "b"]}, "`prompt` is no valid Unicode"),
            ({"prompt": "p", "completions": ["a", "b"], "step": -1}, "`step` is -1; give a whole number from 0"),
            ({"prompt": "p", "completions": ["a", "b"], "seed": 0.5}, "`seed` is 0.5"),
            ({"prompt": "p", "completions": ["a", "b"], "repeats": 0}, "`repeats` is 0; give a whole number from 1"),
            ({"prompt": "p", "completions": ["a", "b"], "task": ""}, "`task` is ''; give its name"),
            ({"prompt": "p", "completions": ["a", "b"], "x": {1}}, r"the columns \['x'\] cannot be written as JSON"),
            ({"prompt": "p", "completions": ["a", "b"], "x": float("nan")}, "cannot be written as JSON"),
            ({"prompt": "p", "completions": ["a", "b"], "label": 0}, "has `label`, which is no part of a comparison"),
        ],
    )
    def test_wrong_record_is_named_and_nothing_is_added(self, second_store, record, message):
        with pytest.raises(ValueError, match=message):
            second_store.add([*records(1), record])
        assert second_store.comparisons() == []


class TestRepeats:
    def test_five_percent_are_answered_five_times(self, store, second_store):
        store.add(records(2000, k=2))
        repeats = {c.id: c.repeats for c in store.comparisons()}
        assert set(repeats.values()) == {1, 5}
        assert list(repeats.values()).count(5) == pytest.approx(100, abs=30)  # three standard deviations
        second_store.add(records(200, k=2)[::-1], repeats=None)
        assert all(repeats[c.id] == c.repeats for c in second_store.comparisons())

    def test_the_share_is_cut_at_the_twentieth_part_of_the_hashes(self):
        assert [wanted_answers(f"{first}{'0' * 56}") for first in ("00000000", "0ccccccc", "0ccccccd")] == [5, 5, 1]

    def test_a_record_knows_better_than_the_call_and_the_call_than_the_rule(self, store):
        store.add([records(2)[0], {**records(2)[1], "repeats": 3}], repeats=2)
        assert [c.repeats for c in store.comparisons()] == [2, 3]


class TestDisplayOrder:
    def test_is_fixed_by_seed_comparison_and_labeller(self, second_store):
        second_store.add([*records(1), {**records(1)[0], "seed": 1, "step": 1}])
        first, reseeded = second_store.comparisons()
        keys = [hashlib.sha256(f"0 {first.id} {i} ann".encode()).digest() for i in range(4)]
        assert display_order(first, "ann") == sorted(range(4), key=keys.__getitem__)
        orders = {tuple(display_order(first, f"labeller {i}")) for i in range(200)}
        assert len(orders) == 24
        reseeded.id = first.id
        assert any(display_order(first, name) != display_order(reseeded, name) for name in ("ann", "bob", "cyd"))

    def test_every_completion_comes_first_equally_often(self, second_store):
        second_store.add(records(1))
        (comparison,) = second_store.comparisons()
        firsts = Counter(display_order(comparison, f"labeller {i}")[0] for i in range(2000))
        assert all(firsts[i] == pytest.approx(500, abs=80) for i in range(4))

    def test_answers_are_unshuffled_on_saving(self, store):
        store.add(records(12), repeats=1)
        store.add_labeller("ann")
        shuffled = 0
        while (work := store.take("ann")) is not None:
            target = work.comparison.completions[2]
            place = work.shown.index(target)
            answer = store.answer_shown("ann", work.comparison.id, place=place, seconds=1)
            assert (answer.label, work.order[place]) == (2, 2)
            shuffled += work.order != [0, 1, 2, 3]
        assert set(store.majority().values()) == {2} and shuffled > 6

    @pytest.mark.parametrize("place", [-1, 4, True, "0", None])
    def test_a_place_off_the_page_is_refused(self, second_store, place):
        second_store.add(records(1))
        second_store.add_labeller("ann")
        work = second_store.take("ann")
        with pytest.raises(ValueError, match=r"place=.* points at no completion; with 4 of them it is in 0..3"):
            second_store.answer_shown("ann", work.comparison.id, place=place, seconds=1)
