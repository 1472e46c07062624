"""Queries, cut and penalty by the numbers of the released code."""

import pytest
import torch

from trl_ziegler.tasks import (
    BOOKS,
    CNNDM,
    STIENNON_CNNDM,
    STIENNON_TLDR,
    TLDR,
    Task,
    cut_query,
    stiennon_article_query,
    stiennon_query,
)

PERIOD = 9


@pytest.mark.parametrize(
    ("document", "query"),
    [
        ([1, 9, 2, 3, 9, 4, 5, 9], [2, 3, 9]),  # after the first period, four tokens, up to the last period among them
        ([1, 2], None),  # no start token: skipped
        ([1, 9], [1, 9]),  # the start token is the very last: kept whole
        ([9, 1, 2, 3, 4, 5], None),  # no end token among the first four: skipped
        ([9, 9, 1], [9]),
        ([], None),
    ],
)
def test_query_is_cut_between_its_first_and_last_period(document, query):
    assert cut_query(document, 4, PERIOD, PERIOD) == query


def test_query_without_start_and_end_is_a_hard_cut():
    assert cut_query(range(10), 3, None, None) == [0, 1, 2]
    assert cut_query(range(3), None, None, None) == [0, 1, 2]


def test_short_queries_are_left_out(tokenizer):
    task = Task("t", 4, query_start=".", query_end=".", min_query_length=4).bind(tokenizer)
    ids = tokenizer(". the cat. the dog saw. a")["input_ids"]
    assert tokenizer.decode(task.query(ids)) == " the cat. the dog saw."
    assert task.query(tokenizer(". the cat. ")["input_ids"]) is None


def test_released_numbers_of_the_three_tasks():
    style = (BOOKS.query_length, BOOKS.response_length, BOOKS.truncate_token, BOOKS.truncate_after, BOOKS.penalty)
    assert style == (64, 24, ".", 16, -1.0)
    assert (BOOKS.query_start, BOOKS.query_end, BOOKS.temperature, BOOKS.min_query_length) == (".", ".", 0.7, 32)
    for task, end, temperature in ((TLDR, None, 0.7), (CNNDM, "\n", 0.5)):
        numbers = (task.query_length, task.response_length, task.truncate_token, task.truncate_after, task.penalty)
        assert numbers == (500, 75, "\n", 55, -1.0)
        assert (task.query_start, task.query_end, task.temperature) == (None, end, temperature)
        assert task.regime == "fixed"
    assert (TLDR.prefix, TLDR.suffix) == ("", "\n\nTL;DR:")
    assert (CNNDM.prefix, CNNDM.suffix) == ("Article:\n\n", "\n\nTL;DR:")


def test_context_is_encoded_in_parts_and_gives_the_query_back(tokenizer):
    task = CNNDM.bind(tokenizer)
    query = tokenizer(" the cat was warm")["input_ids"]
    context = task.context(query)
    assert tokenizer.decode(context) == "Article:\n\n the cat was warm\n\nTL;DR:"
    assert context == tokenizer("Article:\n\n")["input_ids"] + query + tokenizer("\n\nTL;DR:")["input_ids"]
    assert task.query_of(context) == query
    assert TLDR.bind(tokenizer).query_of(TLDR.bind(tokenizer).context(query)) == query


def responses_with(period_at: list[int], length: int = 24) -> torch.Tensor:
    row = torch.ones(1, length, dtype=torch.long)
    row[0, period_at] = PERIOD
    return row


@pytest.mark.parametrize(
    ("periods", "length", "valid"), [([15, 20, 22], 21, True), ([15], 24, False), ([23], 24, True), ([16], 17, True)]
)
def test_cut_counts_only_from_truncate_after(tokenizer, periods, length, valid):
    task = Task("t", 24, truncate_token=PERIOD, truncate_after=16).bind(tokenizer)
    lengths, is_valid = task.cut(responses_with(periods))
    assert (lengths.item(), is_valid.item()) == (length, valid)


def test_mask_follows_the_regime(tokenizer):
    lengths = torch.tensor([1, 3])
    fixed = Task("t", 3, truncate_token=PERIOD).bind(tokenizer)
    eos = Task("t", 3, regime="eos", truncate_token=PERIOD).bind(tokenizer)
    assert fixed.mask(lengths).tolist() == [[True] * 3, [True] * 3]
    assert eos.mask(lengths).tolist() == [[True, False, False], [True] * 3]


def test_responses_that_never_end_are_valid_and_whole(tokenizer):
    lengths, valid = Task("t", 3).bind(tokenizer).cut(torch.ones(2, 3, dtype=torch.long))
    assert lengths.tolist() == [3, 3]
    assert valid.all()


def test_penalty_replaces_or_adds(tokenizer):
    scores, valid = torch.tensor([3.2, -5.0, 2.0]), torch.tensor([False, False, True])
    replaced = Task("t", 2, truncate_token=PERIOD, penalty=-1.0).bind(tokenizer).penalize(scores, valid)
    added = Task("t", 2, truncate_token=PERIOD, penalty=-1.0, penalty_rule="add").bind(tokenizer)
    assert replaced.tolist() == [-1.0, -1.0, 2.0]
    torch.testing.assert_close(added.penalize(scores, valid), torch.tensor([2.2, -6.0, 2.0]))
    assert Task("t", 2).bind(tokenizer).penalize(scores, valid) is scores


def test_stop_tokens_by_text_id_and_eos(tokenizer):
    assert Task("t", 2, truncate_token=".").bind(tokenizer).truncate_id == tokenizer(".")["input_ids"][0]
    assert Task("t", 2, truncate_token=0).bind(tokenizer).truncate_id == 0
    assert Task("t", 2, truncate_token="eos").bind(tokenizer).truncate_id == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_length": 0}, "`response_length` is 0; give at least 1 token"),
        ({"response_length": 4, "temperature": 0.0}, "`temperature` is 0.0; give a value above 0"),
        ({"response_length": 4, "truncate_token": ".", "truncate_after": 4}, "`truncate_after` is 4, outside"),
        ({"response_length": 4, "penalty": -1.0}, "no `truncate_token` whose absence"),
    ],
)
def test_impossible_tasks_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Task("t", **fields)


def test_rules_need_single_tokens_of_the_vocabulary(tokenizer):
    with pytest.raises(ValueError, match=r"is 3 tokens .* a rule needs a single token"):
        Task("t", 4, truncate_token="abc").bind(tokenizer)
    with pytest.raises(ValueError, match="stop token id 9999 is outside"):
        Task("t", 4, truncate_token=9999).bind(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tokenizer has no EOS"):
        Task("t", 4, truncate_token="eos").bind(tokenizer)


# ---- Stiennon et al. 2020 -------------------------------------------------------------------------------------------


def test_numbers_of_stiennon(tokenizer):
    for task, query, response in ((STIENNON_TLDR, 512, 48), (STIENNON_CNNDM, 1919, 128)):
        assert (task.query_length, task.response_length, task.regime) == (query, response, "eos")
        assert (task.truncate_token, task.truncate_after) == ("eos", 0)
        assert (task.penalty, task.penalty_rule, task.temperature) == (-1.0, "replace", 1.0)
        assert (task.prefix, task.suffix) == ("", "")
        assert task.bind(tokenizer).truncate_id == tokenizer.eos_token_id


def test_stiennons_response_ends_at_its_first_eos_and_needs_one(tokenizer):
    task = STIENNON_TLDR.bind(tokenizer)
    responses = torch.ones(2, 48, dtype=torch.long)
    responses[0, [0, 5]] = tokenizer.eos_token_id
    lengths, valid = task.cut(responses)
    assert (lengths.tolist(), valid.tolist()) == ([1, 48], [True, False])
    assert task.mask(lengths).sum(1).tolist() == [1, 48]
    assert task.penalize(torch.tensor([3.0, -5.0]), valid).tolist() == [3.0, -1.0]


WHOLE = "SUBREDDIT: r/cats\n\nTITLE: The cat\n\nPOST: {}\n\nTL;DR:"


def query_text(tokenizer, post: str, length: int) -> str:
    ids = stiennon_query(tokenizer, "cats", "The cat", post, length)
    assert len(ids) <= length
    return tokenizer.decode(ids)


def test_stiennons_query_is_one_text(tokenizer):
    post = "the cat was warm\n\nand old"
    assert query_text(tokenizer, post, 512) == WHOLE.format(post)
    joined = tokenizer(WHOLE.format(post))["input_ids"]
    assert stiennon_query(tokenizer, "cats", "The cat", post, len(joined)) == joined
    article = tokenizer.decode(stiennon_article_query(tokenizer, "the dog\nsaw it"))
    assert article == "Article:\nthe dog\nsaw it\n\nTL;DR:\n"


def test_long_posts_lose_whole_lines_from_their_end(tokenizer):
    lines = ["one line", "", "two lines", "three lines"]
    sizes = [len(tokenizer(WHOLE.format("\n".join(lines[:n])))["input_ids"]) for n in (4, 3, 2, 1)]
    assert query_text(tokenizer, "\n".join(lines), sizes[0] - 1) == WHOLE.format("one line\n\ntwo lines")
    assert query_text(tokenizer, "\n".join(lines), sizes[1]) == WHOLE.format("one line\n\ntwo lines")
    assert query_text(tokenizer, "\n".join(lines), sizes[1] - 1) == WHOLE.format("one line\n")
    assert query_text(tokenizer, "\n".join(lines), sizes[2] - 1) == WHOLE.format("one line")


def test_of_a_first_line_that_is_too_long_as_many_characters_stay_as_fit(tokenizer):
    """Against the loop of the source, one character after the other: "quickly" is one token, "quickl" several."""
    tokenizer.add_tokens(["quickly"])
    line = "we quickly found the old house. quickly quickly they left"
    fits = {}
    for end in range(len(line)):
        fits[len(tokenizer(WHOLE.format(line[:end]))["input_ids"])] = line[:end]
    longest = len(tokenizer(WHOLE.format(line))["input_ids"])
    for length in range(min(fits), longest):
        expected = max((post for size, post in fits.items() if size <= length), key=len)
        assert query_text(tokenizer, line + "\nmore", length) == WHOLE.format(expected)


def test_a_title_longer_than_the_query_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"alone is \d+ tokens, more than the query's 10; shorten the title"):
        stiennon_query(tokenizer, "cats", "The cat", "it was warm", 10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"penalty": 1.0}, "`penalty` is 1.0, the score of a response that misses its end; give 0 or less"),
        ({"penalty_rule": "subtract"}, "`penalty_rule` is 'subtract'; it can be 'replace' or 'add'"),
        ({"regime": "free"}, "`regime` is 'free'; it can be 'fixed' or 'eos'"),
    ],
)
def test_rules_that_are_none_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Task("t", 6, truncate_token=".", **given)
