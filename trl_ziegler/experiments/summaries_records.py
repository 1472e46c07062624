"""Documents with summaries as the models read them: ids of contexts and references."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..labelers import ScoreLabeler
from ..tasks import BoundTask, part_ids, stiennon_article_query, stiennon_query

Record = dict[str, Any]


def make_records(
    rows: Sequence[Record], queries: Sequence[list[int] | None], task: BoundTask, tokenizer: PreTrainedTokenizerBase
) -> list[Record]:
    """`prompt_ids`, `context_ids`, `prompt`, `reference`, `reference_ids` of each row that has a query.

    The ids of a reference end with the token that ends a summary, and are no more than a response has.

    Args:
        rows: `document` and `summary`, `id` and, for posts, `title` and `subreddit`, which are kept.
        queries: Ids of each row's query; `None` where a document has no end of a line among its first tokens, which
            the reference code skips too.

    Raises:
        ValueError: no row has a query.
    """
    end = [] if task.truncate_id is None else [task.truncate_id]
    longest = task.task.response_length - len(end)
    records = []
    for row, query in zip(rows, queries, strict=True):
        if query is not None:
            ids = part_ids(tokenizer, f" {row['summary']}")[:longest] + end
            record: Record = {key: row[key] for key in ("id", "document", "title", "subreddit") if key in row}
            record |= {"prompt_ids": query, "context_ids": task.context(query), "prompt": tokenizer.decode(query)}
            records.append({**record, "reference": row["summary"], "reference_ids": ids})
    if not records:
        raise ValueError(
            f"None of the {len(rows)} documents gives a query; where texts have lost their lines' ends, cut them hard "
            "with --task.query_end null."
        )
    return records


def stiennon_queries(
    task_name: str, rows: Sequence[Record], tokenizer: PreTrainedTokenizerBase, length: int | None
) -> list[list[int] | None]:
    """Queries in the layout of Stiennon et al. 2020, of posts ("tldr") or articles ("cnndm").

    Raises `ValueError` without a length, and for a post without `title` or `subreddit`.
    """
    if length is None:
        raise ValueError("`query_length` is None; the layout 'stiennon' cuts posts to a length, so give one.")
    if task_name == "cnndm":
        return [stiennon_article_query(tokenizer, row["document"], length) for row in rows]
    missing: str | None = next((row["id"] for row in rows if not {"title", "subreddit"} <= set(row)), None)
    if missing is not None:
        raise ValueError(
            f"Row '{missing}' has no `title` or `subreddit`, which the layout 'stiennon' shows; give posts that have "
            "them, or use --layout ziegler."
        )
    return [stiennon_query(tokenizer, row["subreddit"], row["title"], row["document"], length) for row in rows]


def whole_texts(records: Sequence[Record], eos_token_id: int) -> Dataset:
    """Rows of TRL's `SFTTrainer` that are contexts with their references, as a model meets them on the web."""
    return Dataset.from_dict(
        {"input_ids": [record["context_ids"] + record["reference_ids"] + [eos_token_id] for record in records]}
    )


def supervised_rows(records: Sequence[Record]) -> Dataset:
    """Rows of TRL's `SFTTrainer` whose loss is on the reference alone."""
    rows = [(record["context_ids"], record["reference_ids"]) for record in records]
    return Dataset.from_dict(
        {
            "input_ids": [context + reference for context, reference in rows],
            "completion_mask": [[0] * len(context) + [1] * len(reference) for context, reference in rows],
        }
    )


def without_context(records: Sequence[Record]) -> list[Record]:
    """Records as PPO's queries: what is not to be read again is left out."""
    return [{key: record[key] for key in ("prompt_ids", "prompt", "reference")} for record in records]


def ranked(labeler: ScoreLabeler, rows: Sequence[Record]) -> list[Record]:
    """Rows with the labeller's `ranking` of their `completions`, and the first of it as `label`."""
    columns = {key: [row[key] for row in rows] for key in ("prompt", "completions", "reference")}
    rankings = labeler.rank(columns["prompt"], columns["completions"], reference=columns["reference"])
    return [{**row, "label": order[0], "ranking": order} for row, order in zip(rows, rankings, strict=True)]
