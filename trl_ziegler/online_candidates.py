"""What labellers are asked: K different responses to a query, from the policy, or half of them from the reference.

Axis letters: N queries, K candidates of each, T response tokens.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .ppo_passes import ReferenceStep
from .queries import QueryCollator
from .sampling import sample
from .tasks import BoundTask

Draw = Callable[[list[list[int]], int], torch.Tensor]
"""`(queries, count)` to `[N * count, T]` ids as sampled, those of the first query first."""

POLICY, REFERENCE = "policy", "reference"
MAX_ROUNDS = 12  # draws of a whole set of candidates before a query is given up
MOST_REJECTED = 0.9  # share of queries given up beyond which something is wrong


def different_candidates(
    draw: Draw, task: BoundTask, queries: list[list[int]], count: int
) -> tuple[list[list[list[int]]], float]:
    """Up to `count` different valid candidates of each query, and the share of draws that were not valid.

    Only responses that end by the task's rule are shown to labellers, cut there (rejection sampling, section 3.1 of
    the paper; `openai/lm-human-preferences`, `lm_tasks.py`). A query without enough of them after a number of rounds
    keeps what it has.
    """
    found: list[list[list[int]]] = [[] for _ in queries]
    drawn = kept = 0
    for _ in range(MAX_ROUNDS):
        short = [i for i, candidates in enumerate(found) if len(candidates) < count]
        if not short:
            break
        # The same number for every query keeps one prefill per query; what is too much is not looked at.
        rows = [i for i in short for _ in range(count)]
        responses = draw([queries[i] for i in short], count)
        lengths, valid = task.cut(responses)
        drawn, kept = drawn + len(rows), kept + int(valid.sum())
        for i, ids, length, ok in zip(rows, responses.tolist(), lengths.tolist(), valid.tolist(), strict=True):
            if ok and len(found[i]) < count and ids[:length] not in found[i]:
                found[i].append(ids[:length])
    return found, 1 - kept / max(drawn, 1)


def drawing(
    model: Callable[[], contextlib.AbstractContextManager[PreTrainedModel]],
    task: BoundTask,
    generator: torch.Generator,
    batch_size: int,
) -> Draw:
    """A `Draw` from the model that `model()` gives for the time of a draw, `batch_size` rows at a time."""

    @torch.no_grad()
    def draw(queries: list[list[int]], count: int) -> torch.Tensor:
        parts = []
        with model() as policy:
            for rows in _chunks(queries, max(1, batch_size // count)):
                batch = QueryCollator(task)([{"input_ids": query} for query in rows])
                ids, mask = (batch[name].to(policy.device) for name in ("input_ids", "attention_mask"))
                out = sample(
                    ReferenceStep(policy), ids, mask, generator=generator, samples_per_query=count, **task.sampling
                )
                parts.append(out.responses.cpu())
        return torch.cat(parts)

    return draw


def _chunks(rows: list[Any], size: int) -> Iterator[list[Any]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))


@dataclass(frozen=True)
class ComparisonMaker:
    """Turns queries into records for labellers.

    Args:
        rows: Queries with `prompt_ids`, `prompt` and any columns that labellers need; each is used once before any is
            used again.
        task: Where responses end.
        tokenizer: Decodes them.
        num_candidates: K.
        validation_interval: Every how many-th query is a validation query, whose candidates come half from the
            reference and half from the policy (the paper: two of four); 0 for none.
        seed: Of the places of those candidates.
    """

    rows: Sequence[dict[str, Any]]
    task: BoundTask
    tokenizer: PreTrainedTokenizerBase
    num_candidates: int
    validation_interval: int
    seed: int

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("`queries` is empty; give the rows that candidates are sampled for.")
        if self.num_candidates < 2:
            raise ValueError(f"`num_candidates` is {self.num_candidates}; a comparison needs at least 2.")
        if self.validation_interval < 0 or (self.validation_interval and self.num_candidates % 2):
            raise ValueError(
                f"`validation_interval` is {self.validation_interval} with `num_candidates` {self.num_candidates}; "
                "half of a validation query's candidates are the reference's, so give an even number of them, or 0 as "
                "the interval."
            )

    def make(self, count: int, first_query: int, policy: Draw, reference: Draw) -> list[dict[str, Any]]:
        """`count` records from the queries that follow `first_query`.

        Queries without enough different valid candidates, none of them empty, are left out. A record has the columns
        of its row, `completion_ids`, `completions`, `sources` (who wrote each: `"policy"` or `"reference"`) and
        `query`, the running number of its query: the next call continues after the last record's.

        Raises:
            RuntimeError: nearly all queries are left out.
        """
        records: list[dict[str, Any]] = []
        query = first_query
        while len(records) < count:
            numbers = list(range(query, query + count - len(records)))
            query = numbers[-1] + 1
            records += self._try(numbers, policy, reference)
            asked = query - first_query
            if asked >= 20 and len(records) < (1 - MOST_REJECTED) * asked:
                raise RuntimeError(
                    f"Only {len(records)} of {asked} queries got {self.num_candidates} different valid candidates; "
                    "look at what the policy says, at `truncate_token` and at `response_length`."
                )
        return records

    def is_validation(self, query: int) -> bool:
        """Whether a query, by its running number, is one of those that compare policy and reference."""
        return bool(self.validation_interval) and query % self.validation_interval == self.validation_interval - 1

    def _try(self, numbers: list[int], policy: Draw, reference: Draw) -> list[dict[str, Any]]:
        """The records of these queries, in their order."""
        mixed = [n for n in numbers if self.is_validation(n)]
        plain = [n for n in numbers if not self.is_validation(n)]
        half = self.num_candidates // 2
        ours = self._candidates(policy, plain, self.num_candidates) | self._candidates(policy, mixed, half)
        theirs = self._candidates(reference, mixed, half)
        records = (self._record(n, ours[n], theirs.get(n, [])) for n in numbers)
        return [
            record
            for record in records
            if all(record["completions"]) and len(set(record["completions"])) == self.num_candidates
        ]

    def _candidates(self, draw: Draw, numbers: list[int], count: int) -> dict[int, list[list[int]]]:
        if not numbers:
            return {}
        found, _ = different_candidates(draw, self.task, [self._row(n)["prompt_ids"] for n in numbers], count)
        return dict(zip(numbers, found, strict=True))

    def _record(self, number: int, ours: list[list[int]], theirs: list[list[int]]) -> dict[str, Any]:
        written = [(ids, REFERENCE) for ids in theirs] + [(ids, POLICY) for ids in ours]
        if self.is_validation(number):
            # A labeller who takes the first of equals would otherwise prefer the reference.
            random.Random(f"{self.seed} {number}").shuffle(written)
        ids = [ids for ids, _ in written]
        return {
            **self._row(number),
            "completion_ids": ids,
            "completions": self.tokenizer.batch_decode(ids, skip_special_tokens=True),
            "sources": [source for _, source in written],
            "query": number,
        }

    def _row(self, number: int) -> dict[str, Any]:
        return self.rows[number % len(self.rows)]


def win_rate(records: Sequence[dict[str, Any]]) -> float | None:
    """Share of picks of the policy's candidates in labelled validation records; 0.5 for equals, None without any."""
    picks = [row["sources"][row["label"]] == POLICY for row in records if REFERENCE in row["sources"]]
    return sum(picks) / len(picks) if picks else None
