"""The store's exchange formats: JSON lines with every answer, `datasets.Dataset` with labels, OpenAI's label files.

| format | holds | comes back with |
|---|---|---|
| JSON lines | all comparisons, all answers with retractions and decisions, and the majority label | everything |
| `Dataset` | labelled comparisons of the pool, in the columns that `BestOfKRewardTrainer` takes | the label |
| OpenAI's | their token ids and label | the label |

No format holds access tokens or requests to stop. Importing a file twice adds nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from pyarrow import ArrowInvalid, ArrowTypeError
from sqlalchemy import Row, select
from transformers import PreTrainedTokenizerBase

from ..._files import write_jsonl
from ...openai_labels import OPENAI_PAD_TOKEN_ID, load_openai_labels, save_openai_labels
from ...preference_data import tokenize_prompt_completion
from . import summaries
from .content import OWN_COLUMNS, RESERVED, check_index, check_name, check_seconds, check_words, comparison_values
from .merge import PastAnswer, PastDecision, merge_answers
from .schema import Answer, Comparison, Decision, Retraction
from .steps import insert_comparisons
from .store import LabelStore


class Imported(NamedTuple):
    """How many comparisons and answers an import added; those that the store held already do not count."""

    comparisons: int
    answers: int


class Exported(NamedTuple):
    """How many comparisons and answers a file holds."""

    comparisons: int
    answers: int


RECIPES_COLUMNS = ("prompt_ids", "completion_ids", "sources")
"""Further columns that recipes give their comparisons; they look like others and are not meant for them."""


# ---- JSON lines -----------------------------------------------------------------------------------------------------


def export_jsonl(store: LabelStore, path: str | os.PathLike, *, task: str | None = None) -> Exported:
    """Write one comparison (of `task`) per line, with its answers; the file appears complete or not at all.

    Keys: those of `LabelStore.add`, with `id`, `created_at`, `label` (by majority, null without one) and `answers`, a
    list of `labeller`, `kind` ("label", "skip", "flag"), `label` (original index), `reason`, `seconds`, `created_at`,
    `retracted_at` (null if it stands) and `decisions` on a flag. Times are ISO 8601 in UTC. ASCII.
    """
    with store.reading() as session:
        labels = summaries.majority(session, task)
        answers = _answers_as_json(
            session.execute(select(Answer, Retraction.created_at).outerjoin(Retraction).order_by(Answer.id)),
            session.scalars(select(Decision).order_by(Decision.id)),
        )
        query = select(Comparison).order_by(Comparison.position)
        comparisons = session.scalars(query if task is None else query.where(Comparison.task == task)).all()
    rows = [
        {
            **_record(comparison),
            "label": labels.get(comparison.id),
            "created_at": comparison.created_at.isoformat(),
            "answers": answers[comparison.id],
        }
        for comparison in comparisons
    ]
    write_jsonl(path, rows)
    return Exported(len(rows), sum(len(row["answers"]) for row in rows))


def import_jsonl(store: LabelStore, path: str | os.PathLike) -> Imported:
    """Add what a file of `export_jsonl` holds and the store does not, all or nothing.

    Labellers that the store does not know are added without a token (`replace_token` gives one).

    Raises:
        ValueError: a line that is cut, wrong or not what its id says, or an answer against the labeller's own; in a
            line without an id, which somebody made by hand, also a misspelt key and completions that are identical.
    """
    values, past = [], []
    for number, record in _read_jsonl(Path(path)):
        where = f"{path}, line {number}"
        if "answers" not in record and record.get("label") is not None:
            raise ValueError(
                f"{where} has a `label` from nobody; load the file and use `import_dataset(labeller=...)`."
            )
        content = {name: value for name, value in record.items() if name not in RESERVED}
        row = comparison_values(content, where, None)
        if "id" not in record:
            _refuse_slips(record, where)
        elif record["id"] != row["id"]:
            raise ValueError(f"{where}: `id` does not fit the content, which has {row['id']}; export the file again.")
        values.append(row)
        past += [_past_answer(answer, row, where) for answer in record.get("answers", ())]
    return _import(store, values, past)


def _refuse_slips(record: Mapping[str, Any], where: str) -> None:
    known = (*OWN_COLUMNS, *RESERVED)
    for name in record:
        meant = get_close_matches(name.casefold(), known, n=1, cutoff=0.8)
        if meant and name not in (*known, *RECIPES_COLUMNS):
            raise ValueError(
                f"{where} has `{name}`, which looks like `{meant[0]}`; correct it, or give the column another name."
            )
    texts = record["completions"]
    for later, text in enumerate(texts):
        first = texts.index(text)
        if first < later:
            raise ValueError(
                f"{where}: completions {first} and {later} are identical; a choice needs different ones, so leave one "
                "out or drop the record."
            )


def _read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Split at newlines only: other line separators may stand inside a text.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is not complete JSON ({error}); the file may have been cut in half."
                ) from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is no JSON object; give one comparison per line.")
            yield number, record


def _answers_as_json(
    answers: Iterable[Row[Answer, datetime | None]], decisions: Iterable[Decision]
) -> dict[str, list[dict[str, Any]]]:
    """All answers by comparison id, in the order in which they were given."""
    words: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for word in decisions:
        keys = {"keep": word.keep, "author": word.author, "reason": word.reason}
        words[word.answer_id].append({**keys, "created_at": word.created_at.isoformat()})
    given: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer, retracted_at in answers:
        given[answer.comparison_id].append(
            {
                "labeller": answer.labeller,
                "kind": answer.kind,
                "label": answer.label,
                "reason": answer.reason,
                "seconds": answer.seconds,
                "created_at": answer.created_at.isoformat(),
                "retracted_at": retracted_at and retracted_at.isoformat(),
                "decisions": words[answer.id],
            }
        )
    return given


def _past_answer(answer: Any, row: Mapping[str, Any], where: str) -> PastAnswer:
    """A checked entry of `answers` in a file."""
    if not isinstance(answer, dict) or not {"labeller", "kind", "created_at"} <= set(answer):
        raise ValueError(f"{where}: an answer is {answer!r}; it needs `labeller`, `kind` and `created_at`.")
    kind, label, reason, seconds = (answer.get(key) for key in ("kind", "label", "reason", "seconds"))
    try:
        check_name(answer["labeller"])
        if kind == "label":
            check_index(label, len(row["completions"]), "label")
        elif kind in ("skip", "flag"):
            check_words(reason, "reason", f"a {kind}")
        else:
            raise ValueError(f"kind={kind!r} is unknown; it is 'label', 'skip' or 'flag'.")
        if seconds is not None:
            check_seconds(seconds)
        return PastAnswer(
            comparison_id=row["id"],
            labeller=answer["labeller"],
            kind=kind,
            created_at=_time(answer["created_at"], "created_at"),
            label=label if kind == "label" else None,
            reason=reason if kind != "label" else None,
            seconds=seconds,
            retracted_at=answer.get("retracted_at") and _time(answer["retracted_at"], "retracted_at"),
            decisions=[_past_decision(word) for word in answer.get("decisions", ())],
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _past_decision(word: Mapping[str, Any]) -> PastDecision:
    check_words(word.get("author"), "author", "a decision")
    check_words(word.get("reason"), "reason", "a decision")
    if not isinstance(word.get("keep"), bool):
        raise ValueError(f"keep={word.get('keep')!r} is no decision; give true or false.")
    return PastDecision(word["keep"], word["author"], word["reason"], _time(word.get("created_at"), "created_at"))


def _time(text: Any, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={text!r} is no time; give ISO 8601 with its zone.") from None
    if moment.tzinfo is None:
        raise ValueError(f"{name}={text!r} has no time zone; append +00:00 if it is in UTC.")
    return moment


# ---- datasets.Dataset -----------------------------------------------------------------------------------------------


def export_dataset(store: LabelStore, *, task: str | None = None) -> Dataset:
    """Labelled comparisons of the pool (of `task`) in order of arrival, one record each, with the label by majority.

    Columns: `id`, `prompt`, `completions`, `label`, `source`, `step`, `task`, `seed`, `repeats`, and all others that
    were added with a comparison (None where one lacks them).

    Raises:
        ValueError: nothing is labelled, or columns that do not have one type throughout.
    """
    rows = [{**_record(comparison), "label": label} for comparison, label in _labelled(store, task)]
    if not rows:
        which = "" if task is None else f" of task={task!r}"
        raise ValueError(f"The store holds no labelled comparison{which}; wait for the first label.")
    columns = dict.fromkeys(name for row in rows for name in row)
    try:
        return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns})
    except (ArrowInvalid, ArrowTypeError) as error:
        raise ValueError(
            f"The comparisons do not have one type per column ({error}); export one `task` at a time."
        ) from None


def import_dataset(
    store: LabelStore, dataset: Dataset, *, labeller: str | None = None, repeats: int | None = None
) -> Imported:
    """Add the records of a dataset, all or none, and their `label` column as answers of `labeller`.

    A comparison that occurs several times has been labelled several times; its second label is taken for that of
    "<labeller>-2", and so on, since one labeller answers once.

    Args:
        store: Where to.
        dataset: `prompt` and `completions`, and the other columns of `LabelStore.add`; with or without `label`.
        labeller: Whose labels these are; required if there are any. The time they took is unknown.
        repeats: As in `LabelStore.add`.

    Raises:
        ValueError: a wrong record, labels of nobody, or a label that contradicts the labeller's own.
    """
    labelled = "label" in dataset.column_names
    if labelled and labeller is None:
        raise ValueError(
            "labeller=None, but the dataset has a `label`; say whose labels these are, or remove the column."
        )
    if labeller is not None:
        check_name(labeller)
    values, past = [], []
    seen: Counter[str] = Counter()
    now = store.clock()
    for i, record in enumerate(dataset):
        content = {key: value for key, value in record.items() if key not in ("id", "label") and value is not None}
        row = comparison_values(content, f"Record {i}", repeats)
        values.append(row)
        if labelled:
            check_index(record["label"], len(row["completions"]), f"Record {i}: label")
            seen[row["id"]] += 1
            name = f"{labeller}-{seen[row['id']]}" if seen[row["id"]] > 1 else str(labeller)
            past.append(PastAnswer(row["id"], name, "label", now, label=record["label"]))
    return _import(store, values, past)


# ---- OpenAI's label files -------------------------------------------------------------------------------------------


def export_openai(
    store: LabelStore,
    path: str | os.PathLike,
    *,
    processing_class: PreTrainedTokenizerBase,
    query_length: int,
    response_length: int,
    task: str | None = None,
    pad_token_id: int = OPENAI_PAD_TOKEN_ID,
) -> None:
    """Write labelled comparisons of the pool (of `task`) as a label file of openai/lm-human-preferences.

    Args:
        store: Where from.
        path: The file; gzipped if its name ends in `.gz`.
        processing_class: Encodes texts of comparisons that came without `prompt_ids` and `completion_ids`.
        query_length: Tokens to which queries are filled up.
        response_length: Tokens to which responses are filled up.
        task: Which comparisons.
        pad_token_id: The filler.

    Raises:
        ValueError: nothing is labelled, an entry longer than its width, or comparisons that differ in K.
    """
    records = []
    for comparison, label in _labelled(store, task):
        prompt_ids, completion_ids = _token_ids(comparison, processing_class)
        records.append({"prompt_ids": prompt_ids, "completion_ids": completion_ids, "label": label})
    if not records:
        raise ValueError(f"The store holds no labelled comparison to write to {path}; wait for the first label.")
    save_openai_labels(
        Dataset.from_list(records),
        path,
        query_length=query_length,
        response_length=response_length,
        pad_token_id=pad_token_id,
    )


def import_openai(
    store: LabelStore,
    path: str | os.PathLike,
    *,
    processing_class: PreTrainedTokenizerBase,
    labeller: str,
    task: str | None = None,
    repeats: int | None = None,
    pad_token_id: int = OPENAI_PAD_TOKEN_ID,
) -> Imported:
    """Add a label file of openai/lm-human-preferences: decoded texts to show, and the token ids beside them.

    Args:
        store: Where to.
        path: The file.
        processing_class: The tokenizer of the ids.
        labeller: Whose labels these are; see `import_dataset`, also about repeated records.
        task: The question that was asked.
        repeats: As in `LabelStore.add`.
        pad_token_id: The filler.

    Raises:
        ValueError: as `load_openai_labels` and `import_dataset`.
    """

    def with_texts(record: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt": processing_class.decode(record["prompt_ids"]),
            "completions": processing_class.batch_decode(record["completion_ids"]),
            "task": task,
        }

    dataset = load_openai_labels(path, pad_token_id=pad_token_id).map(with_texts)
    return import_dataset(store, dataset, labeller=labeller, repeats=repeats)


def _token_ids(comparison: Comparison, processing_class: PreTrainedTokenizerBase) -> tuple[list[int], list[list[int]]]:
    if "completion_ids" in comparison.extra:
        return comparison.extra["prompt_ids"], comparison.extra["completion_ids"]
    pairs = [tokenize_prompt_completion(processing_class, comparison.prompt, c) for c in comparison.completions]
    return pairs[0][0], [completion_ids for _, completion_ids in pairs]


# ---- Shared ---------------------------------------------------------------------------------------------------------


def _record(comparison: Comparison) -> dict[str, Any]:
    own = {name: getattr(comparison, name) for name in ("id", *OWN_COLUMNS)}
    return {**own, **comparison.extra}


def _labelled(store: LabelStore, task: str | None) -> list[tuple[Comparison, int]]:
    """Comparisons of the pool with their label by majority, in order of arrival."""
    with store.reading() as session:
        labels = summaries.majority(session, task)
        comparisons = session.scalars(select(Comparison).order_by(Comparison.position))
        return [(comparison, labels[comparison.id]) for comparison in comparisons if comparison.id in labels]


def _import(store: LabelStore, values: Sequence[Mapping[str, Any]], past: Sequence[PastAnswer]) -> Imported:
    with store.writing(alone=True) as session:
        now = store.clock()
        added = insert_comparisons(session, values, now).added
        return Imported(added, merge_answers(session, past, now))
