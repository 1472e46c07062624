"""Batches of pretraining text beside PPO's rollouts, and their loss: PPO-ptx of InstructGPT (Ouyang et al. 2022).

PPO-ptx adds gamma_ptx times the gradient of the language model's loss on pretraining text to PPO's gradient.
Axis letters: b rows of a batch, L tokens of a row.
"""

from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .actor_critic import ActorCritic
from .functional import token_logprobs
from .preference_data import tokenize_prompt


class PretrainingStream:
    """Endless batches `[b, L]` of ids: documents in a random order, each followed by EOS, packed without padding.

    A row may begin and end inside a document, and hold several. Every pass over the data has its own order, a
    function of seed and pass; processes share it and take every n-th document. Nothing but this order is random, so
    `state_dict` is the whole position, and no other source of randomness is touched.

    Args:
        dataset: Has `text`, or `input_ids` (EOS is added where it is not the last id). Empty documents are skipped.
        tokenizer: The policy's; it needs an EOS.
        length: L, at least 2.
        batch_size: b.
        seed: Of the order.
        process_index: This process, from 0.
        num_processes: n.

    Raises:
        ValueError: neither column, fewer documents than processes, no EOS, a `length` or `batch_size` too small; while
            read, if all documents of this process are empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        batch_size: int,
        seed: int,
        *,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        if not {"text", "input_ids"} & set(dataset.column_names):
            raise ValueError(
                f"The pretraining dataset has the columns {dataset.column_names}; give a `text` or `input_ids`."
            )
        if len(dataset) < num_processes:
            raise ValueError(
                f"The pretraining dataset has {len(dataset)} documents for {num_processes} processes; each needs one."
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no EOS to separate documents with; set `tokenizer.eos_token`.")
        for name, value, least in (("length", length, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"`{name}` of the pretraining stream is {value}; give at least {least}.")
        self.dataset, self.tokenizer, self.length, self.batch_size = dataset, tokenizer, length, batch_size
        self._identity = {
            "seed": seed,
            "documents": len(dataset),
            "process_index": process_index,
            "num_processes": num_processes,
        }
        self._pass, self._next, self._remainder = 0, 0, list[int]()
        self._order = self._order_of_pass()

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        """The next batch, `[b, L]` int64 on the CPU."""
        needed = self.batch_size * self.length
        while len(self._remainder) < needed:
            self._remainder += self._next_document()
        batch, self._remainder = self._remainder[:needed], self._remainder[needed:]
        return torch.tensor(batch).view(self.batch_size, self.length)

    def state_dict(self) -> dict[str, Any]:
        """The position: numbers and one list of the ids that are read but not given out, all fit for JSON."""
        return {**self._identity, "pass": self._pass, "next": self._next, "remainder": list(self._remainder)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called; `length` and `batch_size` may differ.

        Raises `ValueError` where seed, number of documents, process or number of processes differ: the order would.
        """
        for name, value in self._identity.items():
            if state[name] != value:
                raise ValueError(
                    f"The saved pretraining stream has `{name}` {state[name]}, this one {value}; resume with the same."
                )
        self._pass, self._next, self._remainder = state["pass"], state["next"], list(state["remainder"])
        self._order = self._order_of_pass()

    def _order_of_pass(self) -> list[int]:
        own = self._identity
        generator = torch.Generator().manual_seed(own["seed"] + self._pass)
        order = torch.randperm(own["documents"], generator=generator)
        return order[own["process_index"] :: own["num_processes"]].tolist()

    def _next_document(self) -> list[int]:
        """Ids of the next document that is not empty, with EOS."""
        for _ in range(2 * len(self._order)):
            if self._next == len(self._order):
                self._pass, self._next = self._pass + 1, 0
                self._order = self._order_of_pass()
            row = self.dataset[self._order[self._next]]
            self._next += 1
            ids = self._ids(row)
            if ids:
                return ids
        raise ValueError("The pretraining dataset has no document with text for this process; check its column.")

    def _ids(self, row: dict[str, Any]) -> list[int]:
        if "input_ids" in row:
            ids = list(row["input_ids"])
        else:
            ids = tokenize_prompt(self.tokenizer, row["text"]) if row["text"] else []
        ends = not ids or ids[-1] == self.tokenizer.eos_token_id
        return ids if ends else [*ids, self.tokenizer.eos_token_id]


def pretraining_loss(model: ActorCritic, ids: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats per token of the policy, at temperature 1; the value function has no part.

    Args:
        model: The actor-critic itself, not wrapped for several processes. Add this loss to PPO's before the one
            backward pass, which is what averages gradients over processes.
        ids: `[b, L]` int64 without padding; the first token of a row is not predicted.

    Returns:
        A scalar, the mean over `b * (L - 1)` tokens.
    """
    logits = model.policy_logits(ids, torch.ones_like(ids), ids.shape[1] - 1)
    return -token_logprobs(logits, ids[:, 1:]).mean()
