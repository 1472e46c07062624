"""Cleaning of posts and articles rule by rule, and the baselines that need no training."""

import time

import pytest

from trl_ziegler.experiments.summaries_text import (
    EXAMPLE_SEPARATOR,
    after_cnn_mark,
    after_dateline,
    after_update_note,
    before_highlights,
    clean_article,
    clean_post,
    collapse_newlines,
    drop_and_line,
    drop_byline,
    few_shot_prefix,
    join_highlights,
    lead_3,
    sentences,
    straighten_quotes,
    zero_shot_prompt,
)

LONG = "The council met again on Monday to talk about the old bridge, and nobody could say what it would cost. "
assert len(LONG) > 100


# ---- Rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\n\n\n\nb ", "a\n\nb"),
        ("a cafÃ© in town", "a café in town"),
        ("two\r\n\r\n\r\n\r\nlines", "two\n\nlines"),  # line breaks are repaired before they are counted
        ("\n\n stays \n\n as it is\n", "stays \n\n as it is"),
        ("By me\n(CNN) -- a post\n@highlight", "By me\n(CNN) -- a post\n@highlight"),  # rules of articles
    ],
)
def test_posts_are_repaired_and_stripped(raw, clean):
    assert clean_post(raw) == clean


@pytest.mark.parametrize(("raw", "kept"), [("a\n\n\nb\n\n\n\n\nc", "a\n\nb\n\nc"), ("a\n\nb\nc", "a\n\nb\nc")])
def test_only_three_or_more_newlines_collapse(raw, kept):
    assert collapse_newlines(raw) == kept


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("By Jane Doe\nof our staff\nThe mayor spoke.\nHe left.", "The mayor spoke.\nHe left."),
        ("Bypass opens\n\nThe road is new.", "The road is new."),  # as in the source: two letters, not a word
        ("The mayor spoke.\nBy noon he left.\nSo did we.", "The mayor spoke.\nBy noon he left.\nSo did we."),
        (" By Jane Doe\nof our staff\nText.", " By Jane Doe\nof our staff\nText."),
        ("By Jane Doe. The mayor spoke.", "By Jane Doe. The mayor spoke."),  # a copy without line breaks
        ("By Jane Doe\nThe mayor spoke.", "By Jane Doe\nThe mayor spoke."),
    ],
)
def test_byline_takes_two_lines_and_never_the_whole_text(raw, kept):
    assert drop_byline(raw) == kept


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("PARIS, France (CNN) -- Rain fell.", " Rain fell."),
        ("(CNN)   -- Rain fell. (CNN) -- Then snow.", " Then snow."),
        (LONG + "(CNN) -- Rain fell.", " Rain fell."),  # wherever it is
        ("(CNN)-- Rain fell.", "(CNN)-- Rain fell."),  # no space
        ("(CNN) - Rain fell.", "(CNN) - Rain fell."),
    ],
)
def test_text_begins_after_the_last_dateline(raw, kept):
    assert after_dateline(raw) == kept


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("(CNN)Rain fell.", "Rain fell."),
        ("Paris (CNN) and Rome (CNN)Rain fell.", "Rain fell."),
        ("(CNN)" + LONG + "(CNN)End.", LONG + "(CNN)End."),
        ("x" * 95 + "(CNN)End.", "End."),  # its last character is the 100th
        ("x" * 96 + "(CNN)End.", "x" * 96 + "(CNN)End."),
        (LONG + "(CNN)End.", LONG + "(CNN)End."),
    ],
)
def test_cnn_mark_counts_within_the_first_100_characters(raw, kept):
    assert after_cnn_mark(raw) == kept


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("and Staff\nRain fell.", "Rain fell."),
        ("and Jane Doe\nRain fell.", "and Jane Doe\nRain fell."),  # two words
        ("Rain fell\nand Staff\nleft.", "Rain fell\nand Staff\nleft."),  # not the first line
        ("and Staff", "and Staff"),  # no line of its own
    ],
)
def test_rest_of_a_byline_is_dropped(raw, kept):
    assert drop_and_line(raw) == kept


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("PUBLISHED: 09:00 |\nUPDATED: 10:15 EST, 3 May 2012\nRain fell.", "\nRain fell."),
        ("Page 7. UPDATED:\n\n10:15 EST, 3 May 2013 | 9 comments\nRain fell.", " 9 comments\nRain fell."),
        ("UPDATED: 10:15 EST, 7 May 1 a.m.\nRain fell.", " a.m.\nRain fell."),  # any one of the characters closes it
        ("UPDATED: 10:15 of 2012\nRain.\nUPDATED: 11:30 of 2012\nSnow.", "\nSnow."),
        ("UPDATED: 10:16 on 7 May 1999", "999"),
        (
            "UPDATED: 10:17 on the 8th\nRain fell.",
            "UPDATED: 10:17 on the 8th\nRain fell.",
        ),  # none of 0..5 or | follows
        ("UPDATED: 9:15 EST, 3 May 2012\nRain fell.", "UPDATED: 9:15 EST, 3 May 2012\nRain fell."),  # one digit
        ("Updated: 10:15 EST, 3 May 2012\nRain fell.", "Updated: 10:15 EST, 3 May 2012\nRain fell."),
        ("UPDATED:10:15 EST, 3 May 2012\nRain fell.", "UPDATED:10:15 EST, 3 May 2012\nRain fell."),  # no space
    ],
)
def test_text_begins_after_the_last_update_note(raw, kept):
    assert after_update_note(raw) == kept


def test_curly_single_quotes_become_straight_and_nothing_else_does():
    assert straighten_quotes("it’s ‘new’ “here”") == "it's 'new' “here”"


@pytest.mark.parametrize(
    ("raw", "kept"),
    [("Text.\n@highlight\nA\n@highlight\nB", "Text.\n"), ("A highlight of @high light", "A highlight of @high light")],
)
def test_text_ends_at_the_first_highlight(raw, kept):
    assert before_highlights(raw) == kept


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("By Jane Doe\n\nand Staff\n\n\n\nThe cafÃ© ‘Blue’.\n\n@highlight\n\nShort", "The café 'Blue'."),
        (LONG + "(CNN) -- (CNN)Rain.", "Rain."),  # the dateline goes before the first 100 characters are counted
        ("Text.\n@highlight\n(CNN) -- Rain.", "Rain."),  # highlights are cut last
        ("UPDATED: 10:15 |and Staff\nRain.", "and Staff\nRain."),  # the `and` line is looked for before
        ("Rain.\r\n\r\n\r\nSnow.", "Rain.\n\nSnow."),
    ],
)
def test_steps_of_an_article_come_in_the_order_of_the_source(raw, clean):
    assert clean_article(raw) == clean


def test_highlights_become_one_line_of_sentences():
    assert join_highlights("Rain fell\n \n The mayor left .\nWas it 'good'\n") == (
        "Rain fell. The mayor left . Was it 'good'"
    )
    assert join_highlights("") == ""


# ---- Lead-3 ---------------------------------------------------------------------------------------------------------


def test_lead_3_is_the_first_three_sentences_on_one_line():
    assert lead_3("Rain fell. Snow\nfell! Did it? Nobody knew.") == "Rain fell. Snow fell!"
    assert lead_3("Rain  fell. It did? “Yes.” So it ended.") == "Rain fell. It did? “Yes.”"
    assert lead_3("Only one") == "Only one"
    assert lead_3(" \n ") == ""


@pytest.mark.parametrize(
    "sentence",
    [
        "Dr. Anna B. Smith of the U.S. Army spoke to Mrs. Jones.",
        "It cost $3.50 at 5 p.m. on Monday.",
        "He said no. and then yes.",
        "See example.com for more...",
    ],
)
def test_full_stops_inside_a_sentence_do_not_end_it(sentence):
    assert sentences(f"{sentence} Then 20 left.") == [sentence, "Then 20 left."]


def test_sentence_ends_include_quotes_and_lines():
    text = "“Go.” (He went.) 'It ended.' A headline\n\nRain fell . Snow too ."
    assert sentences(text) == ["“Go.”", "(He went.)", "'It ended.'", "A headline", "Rain fell .", "Snow too ."]


def test_long_runs_without_a_space_take_no_time():
    start = time.process_time()
    assert sentences("a" * 40_000 + " b") == ["a" * 40_000 + " b"]
    assert after_update_note("a" * 40_000) == "a" * 40_000
    assert time.process_time() - start < 10


# ---- Few-shot context -----------------------------------------------------------------------------------------------

POST = {"subreddit": "cats", "title": "The cat", "document": "the cat was warm", "summary": "a warm cat"}
ARTICLE = {"document": "the dog saw it", "summary": "a dog"}


def test_prompt_of_a_post_and_of_an_article():
    assert zero_shot_prompt(POST) == "Subreddit: r/cats\n\nTitle: The cat\n\nthe cat was warm\n\nTL;DR:"
    assert zero_shot_prompt(ARTICLE) == "Article:\n\nthe dog saw it\n\nTL;DR:"


def test_few_shot_prefix_shows_whole_examples_where_there_is_room(tokenizer):
    ids = few_shot_prefix(tokenizer, [POST, ARTICLE], 10_000)
    assert tokenizer.decode(ids) == (
        f"{zero_shot_prompt(POST)} a warm cat{EXAMPLE_SEPARATOR}{zero_shot_prompt(ARTICLE)} a dog{EXAMPLE_SEPARATOR}"
    )


def test_few_shot_prefix_loses_its_beginning(tokenizer):
    whole = few_shot_prefix(tokenizer, [POST, ARTICLE], 10_000)
    assert few_shot_prefix(tokenizer, [POST, ARTICLE], len(whole)) == whole
    assert few_shot_prefix(tokenizer, [POST, ARTICLE], 12) == whole[-12:]
    assert few_shot_prefix(tokenizer, [POST, ARTICLE], 0) == []
    assert few_shot_prefix(tokenizer, [], 5) == []


def test_few_shot_prefix_needs_room(tokenizer):
    with pytest.raises(ValueError, match=r"`room` is -3: .* shorten the prompt"):
        few_shot_prefix(tokenizer, [POST], -3)
