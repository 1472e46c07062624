"""From a dataset of prompts to batches of contexts: tokenisation, left padding, and the order of the updates.

Axis letters: B rows, Q context tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import RepeatSampler

from .preference_data import tokenize_prompt
from .tasks import BoundTask


def prepare_queries(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    task: BoundTask,
    *,
    context_limit: int,
    name: str,
    num_proc: int | None = None,
) -> Dataset:
    """A dataset whose `input_ids` are raw queries; every other column stays.

    Args:
        dataset: Has `input_ids`, or `prompt` as text or chat messages.
        context_limit: Most tokens of prefix, query, suffix and response together.
        name: What error messages call the dataset.

    Raises:
        ValueError: neither column, an empty prompt, or one too long for the task or the model, named by its row.
    """
    columns = dataset.column_names
    if "input_ids" not in columns:
        if "prompt" not in columns:
            raise ValueError(f"`{name}` has the columns {columns}; give a `prompt` (text or chat) or `input_ids`.")
        with PartialState().main_process_first():
            dataset = dataset.map(
                lambda row: {"input_ids": tokenize_prompt(tokenizer, row["prompt"])},
                num_proc=num_proc,
                desc=f"Tokenizing {name}",
            )
    own = len(task.context([])) + task.task.response_length
    limit = min(context_limit - own, task.task.query_length or context_limit)
    for row, ids in enumerate(dataset["input_ids"]):
        if not ids:
            raise ValueError(f"Row {row} of `{name}` has an empty prompt; drop it or give it text.")
        if len(ids) > limit:
            raise ValueError(
                f"Row {row} of `{name}` has {len(ids)} tokens; with {own} tokens of prefix, suffix and response at "
                f"most {limit} fit the task's query length and the model's context. Cut the prompts first."
            )
    return dataset


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


def raw_queries(task: BoundTask, batch: dict[str, Any]) -> list[list[int]]:
    """The raw queries (without padding, prefix and suffix) inside a batch of contexts."""
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [task.query_of(ids[mask.bool()].tolist()) for ids, mask in rows]


def extra_columns(batch: dict[str, Any]) -> dict[str, list]:
    """The columns of a batch that are not its contexts."""
    return {key: values for key, values in batch.items() if key not in ("input_ids", "attention_mask")}


def with_responses(
    context_ids: torch.Tensor, context_mask: torch.Tensor, responses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `[B, Q + T]` of contexts followed by their responses."""
    return torch.cat([context_ids, responses], 1), torch.cat([context_mask, torch.ones_like(responses)], 1)


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
