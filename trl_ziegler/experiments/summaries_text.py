"""Texts of the summarization experiments: how posts and articles are cleaned, and the baselines that need no training.

Cleaning is that of `openai/lm-human-preferences` (cbfd210), `datasets/tldr.py` and `datasets/cnndm.py`; highlights
are joined and few-shot contexts built as in `openai/summarize-from-feedback` (7009674), `datasets/cnndm.py` and
`utils/experiment_helpers.py`. Every function takes and returns text and changes nothing else.
"""

import re
from collections.abc import Mapping, Sequence

import ftfy
from transformers import PreTrainedTokenizerBase

from ..tasks import part_ids

# ---- Cleaning -------------------------------------------------------------------------------------------------------

CNN_MARK_WITHIN = 100
SENTENCE_ENDS = (".", "!", "?", "'", "`", '"', "’", "”", ")")


def clean_post(text: str) -> str:
    """A post: broken characters repaired, three or more newlines made two, stripped."""
    return collapse_newlines(ftfy.fix_text(text)).strip()


def clean_article(text: str) -> str:
    """A news article, by the steps below in the order of the source."""
    for step in (drop_byline, after_dateline, after_cnn_mark, drop_and_line, after_update_note, straighten_quotes):
        text = step(text)
    text = collapse_newlines(ftfy.fix_text(text.strip()))
    return before_highlights(text).strip()


def collapse_newlines(text: str) -> str:
    """Three or more newlines in a row become two."""
    return re.sub(r"\n{3,}", "\n\n", text)


def drop_byline(text: str) -> str:
    """A text that starts with `By` loses its first two lines.

    Copies of the articles that have lost their line breaks keep their byline: two lines would be all they have.
    """
    lines = text.split("\n")
    return "\n".join(lines[2:]) if text.startswith("By") and len(lines) > 2 else text


def after_dateline(text: str) -> str:
    """What follows the last `(CNN) --`, wherever it is."""
    return re.split(r"\(CNN\) +--", text)[-1]


def after_cnn_mark(text: str) -> str:
    """What follows the last `(CNN)` within the first 100 characters."""
    return text[:CNN_MARK_WITHIN].split("(CNN)")[-1] + text[CNN_MARK_WITHIN:]


def drop_and_line(text: str) -> str:
    """Without a first line that is `and` and one word: the rest of a byline."""
    return re.sub(r"^and \w+\n", "", text)


def after_update_note(text: str) -> str:
    """What follows the last note `UPDATED: HH:MM` of a line, up to its last character out of `0` to `5` and `|`.

    The source means to close the note with a year, but writes the list of years as a set of characters.
    """
    if "UPDATED:" not in text:  # the pattern is slow on long lines
        return text
    return re.split(r".*UPDATED:\s+[0-9]{2}:[0-9]{2}.*[0-5|]", text)[-1]


def straighten_quotes(text: str) -> str:
    """Curly single quotes become straight ones."""
    return text.replace("’", "'").replace("‘", "'")


def before_highlights(text: str) -> str:
    """What comes before the first `@highlight`."""
    return text.split("@highlight")[0]


def join_highlights(text: str) -> str:
    """The lines of a reference as one, each with a period unless it ends like a sentence."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return " ".join(line if line.endswith(SENTENCE_ENDS) else f"{line}." for line in lines)


# ---- Baselines ------------------------------------------------------------------------------------------------------

TITLES = "Mr Mrs Ms Dr Prof St Gen Sen Rep Gov Lt Col Sgt Capt Maj Rev Hon Pres Jr Sr No vs Inc Ltd Co Corp Mt".split()
MONTHS = "Jan Feb Mar Apr Aug Sept Oct Nov Dec".split()

# A word with its full stop, then the beginning of another sentence; or the end of a line.
BOUNDARY = re.compile(r"""(?<!\S)(\S*[.!?]["'’”)\]]*)\s+(?=["'‘“(\[]*[A-Z0-9£$€])|\n""")
# "Dr.", "J.", "U.S.": full stops that end no sentence.
ABBREVIATION = re.compile(rf"""["'‘“(\[]*(?:{"|".join(TITLES + MONTHS)}|(?:[A-Za-z]\.)*[A-Za-z])\.""")


def lead_3(text: str) -> str:
    """The first three sentences, on one line: the baseline of news summarization."""
    return " ".join(sentences(text)[:3])


def sentences(text: str) -> list[str]:
    """The sentences of a text, by a rule: a full stop before a capital or a digit ends one, and so does a line's end.

    Titles, initials and other abbreviations do not; where one happens to end a sentence, two sentences come as one.
    """
    found, start = [], 0
    for end in BOUNDARY.finditer(text):
        if end.group(1) is not None and ABBREVIATION.fullmatch(end.group(1)):
            continue
        found.append(text[start : end.end()])
        start = end.end()
    return [" ".join(part.split()) for part in [*found, text[start:]] if part.strip()]


ZERO_SHOT_POST = "Subreddit: r/{subreddit}\n\nTitle: {title}\n\n{document}\n\nTL;DR:"
ZERO_SHOT_ARTICLE = "Article:\n\n{document}\n\nTL;DR:"
EXAMPLE_SEPARATOR = "\n\n=====\n\n"


def zero_shot_prompt(row: Mapping[str, str]) -> str:
    """A post (with its `subreddit` and `title`) or an article as the few-shot context shows them."""
    return (ZERO_SHOT_POST if "subreddit" in row else ZERO_SHOT_ARTICLE).format(**row)


def few_shot_prefix(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Mapping[str, str]], room: int) -> list[int]:
    """Ids to put before a `zero_shot_prompt`: good summaries of other texts, for a model that was never fine-tuned.

    As in the source the last `room` tokens count, so the first example that is seen may begin in its middle; what
    is over is not filled up.

    Args:
        tokenizer: The model's.
        examples: Rows with `document` and `summary`, posts also with `subreddit` and `title`; in the order shown.
        room: Most ids: what the model's context has beside the prompt and the response. At least 0.

    Raises:
        ValueError: negative `room`.
    """
    if room < 0:
        raise ValueError(f"`room` is {room}: prompt and response already exceed the context; shorten the prompt.")
    text = "".join(f"{zero_shot_prompt(row)} {row['summary']}{EXAMPLE_SEPARATOR}" for row in examples)
    ids = part_ids(tokenizer, text)
    return ids[max(0, len(ids) - room) :]


def few_shot_query(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, str],
    examples: Sequence[Mapping[str, str]],
    document_length: int | None,
    limit: int,
) -> list[int]:
    """Ids of the `zero_shot_prompt` of a row, its document cut, behind as much of a `few_shot_prefix` as has room.

    Args:
        document_length: Most tokens of the document; `None` for all.
        limit: Most ids: what the model's context has beside the response.
    """
    document = tokenizer.decode(part_ids(tokenizer, row["document"])[:document_length])
    prompt = part_ids(tokenizer, zero_shot_prompt({**row, "document": document}))
    return few_shot_prefix(tokenizer, examples, limit - len(prompt)) + prompt
