"""From a dataset of prompts to batches of contexts: tokenisation, left padding, and the order of the updates.

Axis letters: B rows, Q context tokens.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import RepeatSampler

from .preference_data import tokenize_prompt
from .tasks import BoundTask


def prepare_queries(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    task: BoundTask,
    *,
    context_limit: int,
    vocab_size: int,
    name: str,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """A dataset whose `input_ids` are raw queries; every other column stays.

    Args:
        dataset: Has `input_ids`, or `prompt` as text or chat messages. A stream is tokenised and checked while read.
        context_limit: Most tokens of prefix, query, suffix and response together.
        vocab_size: Ids the policy knows.
        name: What error messages call the dataset.

    Raises:
        ValueError: neither column, an empty prompt, one too long for the task or the model, or one with an id that the
            policy does not know, named by its row.
    """
    if isinstance(dataset, Dataset) and not len(dataset):
        raise ValueError(f"`{name}` has no rows; check where it was loaded from.")
    dataset = dataset.with_format(None)  # as Python's lists
    columns = _columns(dataset)
    if "input_ids" not in columns and "prompt" not in columns:
        raise ValueError(f"`{name}` has the columns {columns}; give a `prompt` (text or chat) or `input_ids`.")
    own = len(task.context([])) + task.task.response_length
    limit = min(context_limit - own, task.task.query_length or context_limit)
    if limit < 1:
        raise ValueError(
            f"Prefix, suffix and response have {own} tokens, which leaves no room for a query in the model's context "
            f"of {context_limit}; lower `response_length`."
        )

    def tokenize(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        return {"input_ids": tokenize_prompt(tokenizer, row["prompt"], where=f"Row {index} of `{name}`")}

    def check(ids: list[int], row: int) -> None:
        _check_ids(ids, f"Row {row} of `{name}`", tokenizer, vocab_size)
        if len(ids) > limit:
            raise ValueError(
                f"Row {row} of `{name}` has {len(ids)} tokens; with {own} tokens of prefix, suffix and response at "
                f"most {limit} fit the task's query length and the model's context. Cut the prompts first."
            )

    def checked(row: dict[str, Any], index: int) -> dict[str, Any]:
        check(row["input_ids"], index)
        return row

    if isinstance(dataset, IterableDataset):
        dataset = dataset if "input_ids" in columns else dataset.map(tokenize, with_indices=True)
        return dataset.map(checked, with_indices=True)
    if "input_ids" not in columns:
        with PartialState().main_process_first():
            dataset = dataset.map(tokenize, with_indices=True, num_proc=num_proc, desc=f"Tokenizing {name}")
    for row, ids in enumerate(dataset["input_ids"]):
        check(ids, row)
    return dataset


def _check_ids(ids: Any, where: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """`ValueError` for a query that holds no ids of the policy's, or padding."""
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise ValueError(
            f"{where} has no list of integers in `input_ids` but {str(ids)[:60]!r}; give token ids "
            "(`apply_chat_template` returns them with `return_dict=False`)."
        )
    if _looks_padded(ids, tokenizer):
        raise ValueError(
            f"{where} is padded with the id {tokenizer.pad_token_id} and the padding would be read as text; tokenise "
            "without it, the collator pads on the left."
        )
    if not ids:
        raise ValueError(f"{where} has an empty prompt; drop it or give it text.")
    unknown = [token for token in ids if not 0 <= token < vocab_size]
    if unknown:
        raise ValueError(
            f"{where} has the id {unknown[0]}, which is outside the policy's {vocab_size}; resize the policy's "
            "embeddings, or drop the added token from the prompts."
        )


def _looks_padded(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a row begins or ends with two PAD tokens; one may be the EOS or BOS that the tokenizer uses for it."""
    pads = [tokenizer.pad_token_id] * 2
    return None not in pads and len(ids) > 2 and pads in (ids[:2], ids[-2:])


def _columns(dataset: Dataset | IterableDataset) -> list[str]:
    """Column names; a stream need not know its own before a row is read."""
    return dataset.column_names or list(next(iter(dataset), {}))


class LastBatch(torch.utils.data.Dataset):
    """A dataset that reads the rows of a batch once while the same batch is asked for, as an update does."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows
        self._batch: tuple[list[int], list[dict[str, Any]]] = ([], [])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        if indices != self._batch[0]:
            self._batch = (list(indices), self.rows.__getitems__(indices))
        return [dict(row) for row in self._batch[1]]  # a collator may take its rows apart


@dataclass
class QueryCollator:
    """Batches rows with `input_ids` into left-padded contexts.

    Returns `input_ids [B, Q]`, `attention_mask [B, Q]` (int64; 0 at padding, whose id is 0 and never embedded) and
    every other column as a list of B values.
    """

    task: BoundTask

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        contexts = [self.task.context(row["input_ids"]) for row in rows]
        width = max(len(context) for context in contexts)
        columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("input_ids", "attention_mask")}
        return {
            "input_ids": torch.tensor([[0] * (width - len(ids)) + ids for ids in contexts]),
            "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in contexts]),
            **columns,
        }


def longest_context(dataset: Dataset | IterableDataset, task: BoundTask) -> int:
    """Tokens of the longest context that prepared queries make; 0 for a stream, whose rows are not known."""
    if isinstance(dataset, IterableDataset):
        return 0
    return len(task.context([])) + max(map(len, dataset["input_ids"]), default=0)


def raw_queries(task: BoundTask, batch: dict[str, Any], samples: int = 1) -> list[list[int]]:
    """The raw queries (without padding, prefix and suffix) inside a batch of contexts, each `samples` times."""
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    return [query for ids, mask in rows for query in [task.query_of(list(itertools.compress(ids, mask)))] * samples]


def extra_columns(batch: dict[str, Any], samples: int = 1) -> dict[str, list]:
    """The columns of a batch that are not its contexts, each value `samples` times."""
    columns = {key: values for key, values in batch.items() if key not in ("input_ids", "attention_mask")}
    return {key: [value for value in values for _ in range(samples)] for key, values in columns.items()}


def by_length(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its shortest contexts first, so that parts of it need little padding."""
    order = batch["attention_mask"].sum(1).argsort(stable=True)
    return {
        key: values[order] if isinstance(values, torch.Tensor) else [values[i] for i in order.tolist()]
        for key, values in batch.items()
    }


def trimmed(context_ids: torch.Tensor, context_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts `[N, Q]`, padded on the left, without the first columns, as far as they are padding in every row."""
    first = int(context_mask.amax(0).argmax())
    return context_ids[:, first:], context_mask[:, first:]


def with_responses(
    context_ids: torch.Tensor, context_mask: torch.Tensor, responses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `[B, Q + K T]` of contexts `[B, Q]` followed by their responses `[B K, T]`."""
    responses = responses.view(len(context_ids), -1)
    return torch.cat([context_ids, responses], 1), torch.cat([context_mask, torch.ones_like(responses)], 1)


class RepeatedBatches(torch.utils.data.IterableDataset):
    """What `UpdateSampler` is to a dataset, for a stream: each global batch of rows, repeated, pass after pass.

    Args:
        rows: The stream; its `set_epoch` selects the shuffle of a pass.
        batch_size: Rows of one update over all processes; an incomplete last batch of a pass is left out.
        repeat_count: How often a batch comes in a row.

    Raises `ValueError` while being read if a pass has no whole batch.
    """

    def __init__(self, rows: IterableDataset, batch_size: int, repeat_count: int) -> None:
        self.rows, self.batch_size, self.repeat_count = rows, batch_size, repeat_count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            self.rows.set_epoch(number)
            passed = False
            for batch in self.rows.iter(self.batch_size, drop_last_batch=True):
                passed = True
                rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
                for _ in range(self.repeat_count):
                    yield from rows
            if not passed:
                raise ValueError(
                    f"The stream `train_dataset` has fewer than the {self.batch_size} prompts of one update; lower "
                    "the batch size."
                )


class UpdateSampler(RepeatSampler):
    """TRL's `RepeatSampler` whose order is a function of seed and pass, so that a resumed run sees the same queries.

    Each global batch is repeated once for every micro-batch of its update; an incomplete last batch is left out.
    """

    def set_epoch(self, epoch: int) -> None:
        """Select the permutation of one pass over the data."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + getattr(self, "epoch", 0))
        return super().__iter__()
