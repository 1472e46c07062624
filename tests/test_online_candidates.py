"""Candidates that labellers are shown: different, valid, half of them the reference's in validation queries."""

import contextlib

import pytest
import torch
from ppo_parts import favour

from trl_ziegler.online_candidates import ComparisonMaker, different_candidates, drawing, win_rate
from trl_ziegler.tasks import Task


@pytest.fixture
def bound(tokenizer):
    return Task("t", 4).bind(tokenizer)


@pytest.fixture
def maker(tokenizer, bound):
    rows = [
        {"prompt_ids": tokenizer(text)["input_ids"], "prompt": text, "source_text": text.upper()} for text in "abc"
    ]

    def make(**given):
        options = {"rows": rows, "task": bound, "tokenizer": tokenizer, "num_candidates": 4, "seed": 0}
        return ComparisonMaker(**{**options, "validation_interval": 5, **given})

    return make


def numbered(first: int, asked: list | None = None):
    """A draw that says the numbers `first`, `first + 1`, ... over all calls: ids n // 90 and n % 90, twice.

    Ids below 94 are the printable ASCII characters, so different numbers are different texts.
    """
    count = [first]

    def draw(queries, n):
        if asked is not None:
            asked.append((queries, n))
        start = count[0]
        count[0] += len(queries) * n
        numbers = torch.arange(start, count[0])
        return torch.stack([numbers // 90, numbers % 90], 1).repeat(1, 2)

    return draw


class TestDifferentCandidates:
    def test_repeated_draws_are_shown_once(self, bound):
        drawn = iter([[1, 1, 2], [2, 2, 2], [5, 1, 6]])

        def draw(queries, count):
            return torch.tensor(next(drawn))[:, None].expand(-1, 4)

        found, rejected = different_candidates(draw, bound, [[0]], 3)
        assert found == [[[1] * 4, [2] * 4, [5] * 4]]
        assert rejected == 0

    def test_invalid_ones_are_left_out_and_counted(self, tokenizer):
        stop = tokenizer(".")["input_ids"][0]
        task = Task("t", 3, truncate_token=".", truncate_after=1).bind(tokenizer)

        def draw(queries, count):
            return torch.tensor([[1, stop, 7], [1, 2, 3], [stop, 2, 2], [8, 9, stop]])

        found, rejected = different_candidates(draw, task, [[0], [0]], 2)
        assert found == [[[1, stop]], [[8, 9, stop]]]
        assert rejected == pytest.approx(1 / 2)


class TestMaker:
    def test_records_have_their_rows_columns_and_go_on_where_the_last_ended(self, maker, tokenizer):
        records = maker().make(4, 2, numbered(0), numbered(100))
        assert [record["query"] for record in records] == [2, 3, 4, 5]
        assert [record["prompt"] for record in records] == ["c", "a", "b", "c"]  # all rows before one comes again
        assert records[0]["source_text"] == "C"
        for record in records:
            assert record["completions"] == tokenizer.batch_decode(record["completion_ids"])
            assert len(record["completions"]) == len(record["sources"]) == 4

    def test_every_fifth_query_compares_two_of_each(self, maker):
        records = maker().make(20, 0, numbered(0), numbered(200))
        mixed = [record["query"] for record in records if "reference" in record["sources"]]
        assert mixed == [4, 9, 14, 19]
        for record in records:
            for source, ids in zip(record["sources"], record["completion_ids"], strict=True):
                assert source == ("policy" if 90 * ids[0] + ids[1] < 200 else "reference")
        assert all(sorted(records[i]["sources"]) == ["policy"] * 2 + ["reference"] * 2 for i in mixed)

    def test_the_references_candidates_are_at_no_fixed_place(self, maker):
        """A labeller who takes the first of equals must not seem to prefer one of the two."""
        records = maker(validation_interval=1).make(60, 0, numbered(0), numbered(400))
        first = [record["sources"][0] == "policy" for record in records]
        assert 15 < sum(first) < 45

    def test_without_validation_the_reference_is_not_asked(self, maker):
        asked = []
        records = maker(validation_interval=0).make(20, 0, numbered(0), numbered(0, asked))
        assert asked == [] and len(records) == 20

    def test_texts_that_look_alike_are_no_comparison(self, maker):
        """The policy says what the reference says: the query is left out, the next one takes its place."""
        records = maker().make(5, 0, numbered(0), numbered(16))
        assert [record["query"] for record in records] == [0, 1, 2, 3, 5]

    def test_an_empty_text_is_shown_to_nobody(self, maker, tokenizer):
        numbers = numbered(0)

        def draw(queries, count):
            drawn = numbers(queries, count)
            drawn[drawn[:, 1] == 2] = tokenizer.eos_token_id  # the third of the first query's four
            return drawn

        records = maker(validation_interval=0).make(5, 0, draw, numbered(0))
        assert [record["query"] for record in records] == [1, 2, 3, 4, 5]

    def test_a_policy_that_says_one_thing_is_refused(self, maker):
        def constant(queries, count):
            return torch.zeros(len(queries) * count, 4, dtype=torch.long)

        with pytest.raises(RuntimeError, match=r"Only 0 of 20 queries got 4 different valid candidates"):
            maker().make(20, 0, constant, constant)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_candidates": 3}, "`validation_interval` is 5 with `num_candidates` 3"),
            ({"num_candidates": 1}, "`num_candidates` is 1"),
            ({"validation_interval": -1}, "`validation_interval` is -1"),
            ({"rows": []}, "`queries` is empty"),
        ],
    )
    def test_bad_options_are_refused(self, maker, options, message):
        with pytest.raises(ValueError, match=message):
            maker(**options)


class TestDrawing:
    def test_a_query_gets_its_own_responses_in_order(self, tokenizer, make_causal_lm):
        """The model says one token for sure, which one depends on nothing but the model: rows and shape are checked by
        the context each forward pass got."""
        model = favour(make_causal_lm().eval(), 7)
        task = Task("t", 3, suffix=" and").bind(tokenizer)
        seen = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
        )
        draw = drawing(lambda: contextlib.nullcontext(model), task, torch.Generator().manual_seed(0), batch_size=4)
        out = draw([[1, 2], [3], [4]], 2)
        assert out.shape == (6, 3) and (out == 7).all()
        suffix = tokenizer(" and")["input_ids"]
        assert seen[0] == [[1, 2, *suffix], [0, 3, *suffix]]  # one prefill for both responses; two queries a pass
        assert [4, *suffix] in seen[3]

    def test_the_seed_decides_and_not_the_global_state(self, tokenizer, make_causal_lm):
        model = make_causal_lm().eval()
        task = Task("t", 5).bind(tokenizer)

        def drawn(seed):
            generator = torch.Generator().manual_seed(seed)
            return drawing(lambda: contextlib.nullcontext(model), task, generator, 8)([[1, 2]], 8)

        torch.manual_seed(3)
        first = drawn(0)
        assert torch.equal(drawn(0), first) and not torch.equal(drawn(1), first)


def test_win_rate_is_the_share_of_picks_of_the_policy():
    sources = ["reference", "policy", "policy", "reference"]
    rows = [{"sources": sources, "label": label} for label in (0, 1, 2, 1)]
    rows.append({"sources": ["policy"] * 4, "label": 0})  # says nothing
    assert win_rate(rows) == 0.75
    assert win_rate(rows[4:]) is None
