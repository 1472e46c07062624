"""Prompts become left-padded contexts, in an order that resuming does not change."""

import pytest
import torch
from datasets import Dataset

from trl_ziegler.queries import (
    LastBatch,
    QueryCollator,
    UpdateSampler,
    by_length,
    extra_columns,
    longest_context,
    prepare_queries,
    raw_queries,
    trimmed,
)
from trl_ziegler.tasks import Task


@pytest.fixture
def task(tokenizer):
    return Task("t", 4, prefix="it ", suffix=" and", query_length=8).bind(tokenizer)


def prepare(data, tokenizer, task, limit=64):
    options = {"context_limit": limit, "vocab_size": len(tokenizer), "name": "train_dataset"}
    return prepare_queries(Dataset.from_dict(data), tokenizer, task, **options)


def test_text_prompts_are_encoded_and_columns_stay(tokenizer, task):
    data = prepare({"prompt": [" the cat", " a dog was"], "extra": [1, 2]}, tokenizer, task)
    assert data["input_ids"][1] == tokenizer(" a dog was")["input_ids"]
    assert data["extra"][:] == [1, 2]


def test_ids_are_used_as_they_are(tokenizer, task):
    assert prepare({"input_ids": [[5, 6]]}, tokenizer, task)["input_ids"][0] == [5, 6]


@pytest.mark.parametrize(
    ("data", "limit", "message"),
    [
        ({"text": ["x"]}, 64, r"`train_dataset` has the columns \['text'\]; give a `prompt`"),
        ({"input_ids": [[5], []]}, 64, "Row 1 of `train_dataset` has an empty prompt"),
        ({"input_ids": [[5] * 9]}, 64, "Row 0 of `train_dataset` has 9 tokens; .* at most 8 fit"),
        ({"input_ids": [[5]]}, 6, "leaves no room for a query in the model's context of 6; lower `response_length`"),
        ({"input_ids": [[5] * 5]}, 10, "Row 0 of `train_dataset` has 5 tokens"),
    ],
)
def test_prompts_that_cannot_be_used_are_named_by_row(tokenizer, task, data, limit, message):
    with pytest.raises(ValueError, match=message):
        prepare(data, tokenizer, task, limit)


def test_collator_pads_contexts_on_the_left_and_gives_the_queries_back(tokenizer, task):
    rows = [{"input_ids": [5], "name": "a"}, {"input_ids": [6, 7, 8], "name": "b"}]
    batch = QueryCollator(task)(rows)
    prefix, suffix = list(task.prefix_ids), list(task.suffix_ids)
    assert batch["input_ids"].tolist() == [[0, 0, *prefix, 5, *suffix], [*prefix, 6, 7, 8, *suffix]]
    assert batch["attention_mask"].sum(1).tolist() == [len(prefix) + 1 + len(suffix), len(prefix) + 3 + len(suffix)]
    assert raw_queries(task, batch) == [[5], [6, 7, 8]]
    assert extra_columns(batch) == {"name": ["a", "b"]}


def test_query_tokens_equal_to_the_filler_survive(task):
    batch = QueryCollator(task)([{"input_ids": [0, 0]}, {"input_ids": [0, 1, 2]}])
    assert raw_queries(task, batch) == [[0, 0], [0, 1, 2]]


def test_each_update_repeats_its_queries_and_each_pass_has_its_own_order():
    sampler = UpdateSampler(range(7), mini_repeat_count=1, batch_size=3, repeat_count=2, seed=4)
    first = list(sampler)
    assert len(first) == 2 * 3 * 2  # the seventh query is left out
    assert first[:3] == first[3:6]
    assert first[6:9] == first[9:12]
    assert len(set(first)) == 6
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    resumed = UpdateSampler(range(7), mini_repeat_count=1, batch_size=3, repeat_count=2, seed=4)
    resumed.set_epoch(1)
    assert list(resumed) == second


def test_a_batch_that_comes_again_is_read_once():
    reads = []

    class Rows:
        def __len__(self):
            return 4

        def __getitems__(self, indices):
            reads.append(indices)
            return [{"number": i} for i in indices]

    rows = LastBatch(Rows())
    batches = [rows.__getitems__(indices) for indices in ([1, 2], [1, 2], [3, 0], [1, 2])]
    assert [[row["number"] for row in batch] for batch in batches] == [[1, 2], [1, 2], [3, 0], [1, 2]]
    assert reads == [[1, 2], [3, 0], [1, 2]]
    assert len(rows) == 4


def test_the_longest_context_counts_what_the_task_adds(tokenizer):
    task = Task("t", 3, prefix="the", suffix=" and").bind(tokenizer)
    data = Dataset.from_dict({"input_ids": [[5, 6], [7], [8, 9, 10]]})
    added = len(task.context([]))
    assert added > 1 and longest_context(data, task) == 3 + added == len(task.context([8, 9, 10]))
    assert longest_context(data.to_iterable_dataset(), task) == 0


def test_the_shortest_contexts_come_first_with_their_columns():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [0, 0, 8], [0, 9, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
        "number": [0, 1, 2],
    }
    ordered = by_length(batch)
    assert ordered["input_ids"].tolist() == [[0, 0, 8], [0, 9, 9], [5, 6, 7]]
    assert ordered["attention_mask"].sum(1).tolist() == [1, 2, 3]
    assert ordered["number"] == [1, 2, 0]


def test_columns_of_padding_alone_are_cut_off():
    ids, mask = torch.tensor([[0, 0, 8], [0, 9, 7]]), torch.tensor([[0, 0, 1], [0, 1, 1]])
    assert [x.tolist() for x in trimmed(ids, mask)] == [[[0, 8], [9, 7]], [[0, 1], [1, 1]]]
    between = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 1]])
    assert trimmed(between, between)[1].tolist() == [[1, 0, 1], [1, 0, 1]]
    assert torch.equal(trimmed(ids[1:, 1:], mask[1:, 1:])[0], ids[1:, 1:])
