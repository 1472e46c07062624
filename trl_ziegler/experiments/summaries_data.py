"""Posts, articles and judgements of the summarization experiments, from any of the layouts they are published in.

| columns | what | read by |
| --- | --- | --- |
| `post`, `summary` | TL;DR posts, the filtered files of Stiennon et al. 2020 | `load_summaries` |
| `content`, `summary` | the corpus these come from | `load_summaries` |
| `prompt`, `completion` | the same on the hub as `trl-lib/tldr` | `load_summaries` |
| `article`, `highlights` | CNN/DM, on the hub as `cnn_dailymail` | `load_summaries` |
| `document`, `summary` | one's own; taken as they are | `load_summaries` |
| `info`, `summaries`, `choice` | comparisons of `openai/summarize_from_feedback` | `load_comparisons` |
| `query`, `sample0`, ..., `best` | label files of openai/lm-human-preferences | `load_comparisons` |
| `info`, `summary` with `axes` | ratings of `openai/summarize_from_feedback` | `load_ratings` |

Each comes as a local file, a folder of files, a saved dataset or a hub id (see `load_rows`). `id`, `title` and
`subreddit` are kept where a layout has them.
"""

import gzip
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..openai_labels import load_openai_labels
from .data import load_rows
from .summaries_text import clean_article, clean_post, join_highlights

Row = dict[str, Any]


class Layout(NamedTuple):
    """The two text columns of a layout, and what is done to them."""

    document: str
    summary: str
    clean: Callable[[str], str] = str
    summarize: Callable[[str], str] = str.strip


POSTS = Layout("post", "summary", clean_post)
LAYOUTS = (
    Layout("document", "summary"),
    POSTS,
    Layout("content", "summary", clean_post),
    Layout("article", "highlights", clean_article, join_highlights),
)
TLDR_PROMPT = re.compile(
    r"SUBREDDIT: r/(?P<subreddit>[^\n]*)\n\nTITLE: (?P<title>.*?)\n\nPOST: (?P<post>.*)\n\nTL;DR:", re.DOTALL
)
LABEL_FILE_HEAD = 100_000


def load_summaries(source: str, *, split: str = "train", clean: bool = True) -> list[Row]:
    """Rows with `id`, `document` and `summary`, and `title` and `subreddit` where the source has them.

    Args:
        source: Where from; see the table above.
        split: Of a hub id, a folder or a saved `DatasetDict`.
        clean: Whether posts and articles are cleaned as in Ziegler et al. 2019. Stiennon et al. 2020 take the filtered
            posts as they are.

    Returns:
        All rows in the source's order, also those whose document or summary is empty or missing: `select_summaries`
        counts them out. A row without an id gets one from its document.

    Raises:
        ValueError: columns of no known layout, a text that is none, or a `prompt` that is no TL;DR prompt.
    """
    rows = load_rows(source, split=split)
    columns = set(rows.column_names)
    if {"prompt", "completion"} <= columns:
        return [
            _summary_row(_parse_prompt(row, i, source), LAYOUTS[1], clean, i, source) for i, row in enumerate(rows)
        ]
    layout = next((layout for layout in LAYOUTS if {layout.document, layout.summary} <= columns), None)
    if layout is None:
        known = ", ".join(f"`{layout.document}` and `{layout.summary}`" for layout in LAYOUTS)
        raise ValueError(
            f"{source} has the columns {sorted(columns)}; rename them to one of the pairs {known}, `prompt` and "
            "`completion`."
        )
    return [_summary_row(row, layout, clean, i, source) for i, row in enumerate(rows)]


def _summary_row(row: Row, layout: Layout, clean: bool, number: int, source: str) -> Row:
    document = _text(row, layout.document, number, source)
    return {
        "id": _identity(row, document),
        "document": layout.clean(document) if clean else document,
        "summary": layout.summarize(_text(row, layout.summary, number, source)),
        **_kept(row),
    }


def _parse_prompt(row: Row, number: int, source: str) -> Row:
    """`prompt` and `completion` of `trl-lib/tldr` taken apart into the columns they were made of."""
    found = TLDR_PROMPT.fullmatch(_text(row, "prompt", number, source))
    if found is None:
        raise ValueError(
            f"{source}, row {number}: `prompt` is no TL;DR prompt (SUBREDDIT, TITLE, POST, TL;DR:); for texts of "
            "another kind, rename the columns to `document` and `summary`."
        )
    return {**found.groupdict(), "summary": row["completion"], "id": row.get("id")}


def load_comparisons(source: str, *, split: str = "train") -> Dataset:
    """Best-of-K records: those of a label file as ids, comparisons as text.

    Comparisons give `id`, `document`, `completions` (K texts), `label`, `policies` (who wrote each) and `worker`, and
    `title` and `subreddit` of posts. Texts stay as the labellers saw them. A label file gives the columns of
    `load_openai_labels`.

    Raises:
        ValueError: other columns, a text that is none, fewer than two summaries, or a `choice` that is none of them.
    """
    if _is_label_file(source):
        return load_openai_labels(source)
    rows = load_rows(source, split=split)
    _require_columns(rows, {"info", "summaries", "choice"}, "comparisons", source)
    return Dataset.from_list([_comparison(row, i, source) for i, row in enumerate(rows)])


def _is_label_file(source: str) -> bool:
    """Whether a local JSON file begins with a record that has `sample0`; no text in JSON can hold the bare quotes."""
    path = Path(source)
    if not path.is_file() or not {".json", ".jsonl"} & set(path.suffixes):
        return False
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return b'"sample0"' in file.read(LABEL_FILE_HEAD)


def _comparison(row: Row, number: int, source: str) -> Row:
    summaries, choice = row["summaries"], row["choice"]
    if not isinstance(summaries, list) or len(summaries) < 2:
        raise ValueError(f"{source}, row {number}: `summaries` is {summaries!r}; a choice needs 2, drop the row.")
    if choice not in range(len(summaries)):
        raise ValueError(
            f"{source}, row {number}: `choice` is {choice!r}, but with {len(summaries)} summaries it is in "
            f"0..{len(summaries) - 1}; correct it or drop the row."
        )
    return {
        "title": None,
        "subreddit": None,  # columns that articles and posts share: those of a dataset are those of its first row
        **_subject(row["info"], number, source),
        "completions": [_text(summary, "text", number, source) for summary in summaries],
        "label": choice,
        "policies": [summary.get("policy") for summary in summaries],
        "worker": row.get("worker"),
    }


def load_ratings(source: str, *, split: str = "validation") -> list[Row]:
    """Rows with `id`, `document`, `summary`, `policy`, `axes` (name to rating 1..7, unrated ones left out), `worker`.

    Raises `ValueError` for other columns and for a text that is none.
    """
    rows = load_rows(source, split=split)
    _require_columns(rows, {"info", "summary"}, "ratings", source)
    return [
        {
            **_subject(row["info"], i, source),
            "summary": _text(row["summary"], "text", i, source),
            "policy": row["summary"].get("policy"),
            "axes": {name: rating for name, rating in row["summary"]["axes"].items() if rating is not None},
            "worker": row.get("worker"),
        }
        for i, row in enumerate(rows)
    ]


def _subject(info: Row, number: int, source: str) -> Row:
    """What was summarized: a post with its title and subreddit, or an article with its title."""
    document = _text(info, "post", number, source) or _text(info, "article", number, source)
    return {"id": _identity(info, document), "document": document, **_kept(info)}


def _kept(row: Mapping[str, Any]) -> Row:
    return {name: row[name] for name in ("title", "subreddit") if row.get(name) is not None}


def _identity(row: Mapping[str, Any], document: str) -> str:
    """The row's id, or one that its document determines: an id shared by all that have none would say nothing."""
    given = row.get("id")
    return str(given) if given not in (None, "") else hashlib.sha256(document.encode()).hexdigest()[:16]


def _text(row: Mapping[str, Any], field: str, number: int, source: str) -> str:
    """A text; a missing one is empty."""
    value = row.get(field)
    if not isinstance(value, str | None):
        raise ValueError(f"{source}, row {number}: `{field}` is {value!r}, which is no text; correct the column.")
    return value or ""


def _require_columns(rows: Dataset, needed: set[str], what: str, source: str) -> None:
    missing = needed - set(rows.column_names)
    if missing:
        raise ValueError(
            f"{source} has the columns {sorted(rows.column_names)}; {what} also have {sorted(missing)}, so check the "
            "source and its split."
        )


# ---- Which rows an experiment uses ----------------------------------------------------------------------------------

Part = Literal["train", "validation"]
HELD_OUT_SHARE = 0.05


def select_summaries(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    part: Part,
    summary_tokens: Sequence[int] | None = (24, 48),
    held_out_share: float = HELD_OUT_SHARE,
) -> tuple[list[Row], dict[str, int]]:
    """The rows of one part of the data, in their order, and how many were left out for which reason.

    What is kept depends on the set of rows alone: neither on a seed nor, but for its order, on that of the rows.

    Args:
        rows: Rows with `id`, `document` and `summary`.
        tokenizer: Counts the tokens of the summaries.
        part: `"train"`, or `"validation"` for the part held out of it.
        summary_tokens: Fewest and most tokens of a reference summary (Stiennon et al. 2020: 24 to 48 for posts);
            `None` for any.
        held_out_share: Share of the ids in the validation part, between 0 and 1.

    Returns:
        `(rows, counts)`: counts of `read`, `empty`, `duplicates`, `too short`, `too long`, `other part` and `kept`,
        where `read` is the sum of the rest. They are printed too.

    Raises:
        ValueError: an unknown part, or nothing left.
    """
    if part not in ("train", "validation"):
        raise ValueError(f"`part` is {part!r}; give 'train' or 'validation'.")
    counts = {"read": len(rows)}
    rows = _counted(rows, counts, "empty", [bool(row["document"].strip() and row["summary"].strip()) for row in rows])
    rows = _counted(rows, counts, "duplicates", first_of_each_document(rows))
    if summary_tokens is not None:
        shortest, longest = summary_tokens
        lengths = _summary_lengths(rows, tokenizer)
        rows = _counted(rows, counts, "too short", [n >= shortest for n in lengths])
        rows = _counted(rows, counts, "too long", [n <= longest for n in lengths if n >= shortest])
    wanted = part == "validation"
    rows = _counted(rows, counts, "other part", [is_held_out(row["id"], held_out_share) == wanted for row in rows])
    counts["kept"] = len(rows)
    PartialState().print(describe_counts(part, counts))
    if not rows:
        raise ValueError(f"No row is left: {describe_counts(part, counts)} Give other data or wider `summary_tokens`.")
    return rows, counts


def describe_counts(part: str, counts: Mapping[str, int]) -> str:
    """One sentence on what `select_summaries` kept and left out."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in counts.items() if reason not in ("read", "kept"))
    return f"Summaries for {part}: {counts['kept']} of {counts['read']} rows ({left_out})."


def is_held_out(identity: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether the row of an id belongs to the validation part: a function of the id's hash alone."""
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def first_of_each_document(rows: Sequence[Row]) -> list[bool]:
    """True for one row of each document: the one of the smallest id, whatever the order of the rows."""
    first: dict[str, int] = {}
    for i in sorted(range(len(rows)), key=lambda i: (rows[i]["id"], rows[i]["summary"])):
        first.setdefault(rows[i]["document"], i)
    return [first[row["document"]] == i for i, row in enumerate(rows)]


def _counted(rows: Sequence[Row], counts: dict[str, int], reason: str, keep: Sequence[bool]) -> list[Row]:
    kept = [row for row, ok in zip(rows, keep, strict=True) if ok]
    counts[reason] = len(rows) - len(kept)
    return kept


def _summary_lengths(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    texts = [row["summary"] for row in rows]
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
