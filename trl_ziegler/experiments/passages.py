"""What queries are cut from: passages of whole books, and the queries of documents, or why there are none."""

import re

from transformers import PreTrainedTokenizerBase

from ..tasks import BoundTask

PASSAGE = 500
"""Characters of a passage at least. Of 500 or of 1,500, three quarters of the passages of novels give a query of 32 to
64 tokens of GPT-2: what is left of a first sentence is lost, and short sentences may follow a long one."""

AT_ONCE = 1000
"""Documents that are tokenised together. If none of so many gives a query, no others are tried."""


def passages_of(document: str, most: int) -> list[str]:
    """At most `most` passages of a document, at even distances from its beginning to its end.

    A passage is paragraphs in a row, together at least `PASSAGE` characters long, on one line. Paragraphs are parted
    by empty lines. What is over at the end is left out, and so is the beginning, a title page, of a book with several
    times as many passages.
    """
    passages, growing = [], ""
    for paragraph in re.split(r"\n\s*\n", document):
        growing = " ".join([*growing.split(), *paragraph.split()])
        if len(growing) >= PASSAGE:
            passages.append(growing)
            growing = ""
    kept = min(most, len(passages))
    return [passages[(2 * i + 1) * len(passages) // (2 * kept)] for i in range(kept)]


def cut_queries(
    documents: list[str], task: BoundTask, tokenizer: PreTrainedTokenizerBase, needed: int, split: str
) -> list[list[int]]:
    """The first `needed` queries of the documents, of which no more are read than that takes.

    Raises `ValueError` where there are fewer, and says what a query is where there seem to be none.
    """
    queries: list[list[int]] = []
    for start in range(0, len(documents), AT_ONCE):
        part = documents[start : start + AT_ONCE]
        encoded = tokenizer(part, add_special_tokens=False)["input_ids"]
        queries += [query for ids in encoded if (query := task.query(ids)) is not None]
        if not queries:
            raise ValueError(
                f"None of the first {len(part)} {split} documents gives a query, which {_rules(task)}; they read like "
                f"{part[0][:120]!r}. Give prose with ordinary punctuation, or set the rule in the section 'task'."
            )
        if len(queries) >= needed:
            return queries[:needed]
    raise ValueError(
        f"The {split} documents give {len(queries)} queries, {needed} are needed; give more documents (of books, more "
        "`passages_per_document`) or lower `num_labels`, `num_policy_queries` and `num_eval_queries`."
    )


def _rules(task: BoundTask) -> str:
    rule = task.task
    said = [f"has at least {rule.min_query_length} tokens"]
    if task.start_id is not None:
        said.append(f"starts after the first token {rule.query_start!r} (id {task.start_id})")
    if task.end_id is not None:
        said.append(f"ends with the last {rule.query_end!r} (id {task.end_id}) of the next {rule.query_length}")
    return ", ".join(said)
