"""From records to a batch, and from a batch to the rewards of its candidates: one row per record, or per candidate.

Axis letters: `B` records, `K` candidates of a record, `N` candidates of the batch, `S` tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.data.data_collator import DataCollatorMixin

from .prefix_sharing import PackedRows, pack_shared_prefix, packed_inputs, stack_right_padded


@dataclass
class DataCollatorForBestOfK(DataCollatorMixin):
    """Pads the candidates of records whose K may differ.

    Expects `prompt_ids`, `completion_ids` and any of `label`, `ranking`, `scores`, `margin`. Returns:

    - `candidate_mask` `[B, K]`: true where a record has a candidate; `N` of them are true.
    - `input_ids`, `attention_mask` `[N, S]`: prompt and completion of each candidate, record by record, right-padded.
      The mask goes by length, so the filler may be any id, EOS included: it is never embedded.
    - With `shared_prefix`, instead of these two: `input_ids`, `segment_ids`, `position_ids` `[B, S]` and
      `reward_positions` `[B, K]`, see [`PackedRows`].
    - `labels` `[B]`, `rankings` `[B, K]` (filled up with 0), `scores` `[B, K]` (filled up with 0), `margin` `[B]`.

    Args:
        pad_token_id (`int`, *optional*, defaults to `0`): The filler.
        pad_to_multiple_of (`int`, *optional*): Pad S to a multiple of this.
        shared_prefix (`bool`, *optional*, defaults to `False`): One row per record, its candidates behind one prompt.
        return_tensors (`str`, *optional*, defaults to `"pt"`): Only `"pt"`.

    Examples:
    ```python
    >>> from trl_ziegler import DataCollatorForBestOfK

    >>> collator = DataCollatorForBestOfK()
    >>> batch = collator(
    ...     [
    ...         {"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5], [6]], "label": 2},
    ...         {"prompt_ids": [7], "completion_ids": [[8], [9]], "label": 0},
    ...     ]
    ... )
    >>> batch["candidate_mask"]
    tensor([[ True,  True,  True],
            [ True,  True, False]])
    >>> batch["input_ids"]
    tensor([[1, 2, 3, 0],
            [1, 2, 4, 5],
            [1, 2, 6, 0],
            [7, 8, 0, 0],
            [7, 9, 0, 0]])
    >>> batch["attention_mask"]
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1],
            [1, 1, 1, 0],
            [1, 1, 0, 0],
            [1, 1, 0, 0]])
    >>> batch["labels"]
    tensor([2, 0])
    ```
    """

    pad_token_id: int = 0
    pad_to_multiple_of: int | None = None
    shared_prefix: bool = False
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Make a batch of B records."""
        counts = [len(example["completion_ids"]) for example in examples]
        sequences = [[[*e["prompt_ids"], *completion] for completion in e["completion_ids"]] for e in examples]
        # First, because Trainer takes the batch size from the first tensor it meets.
        batch = {"candidate_mask": torch.arange(max(counts)) < torch.tensor(counts)[:, None]}
        batch |= self._packed(sequences) if self.shared_prefix else self._apart(sequences)
        if "label" in examples[0]:
            batch["labels"] = torch.tensor([example["label"] for example in examples])
        if "ranking" in examples[0]:
            batch["rankings"] = stack_right_padded([example["ranking"] for example in examples], max(counts), 0)
        if "scores" in examples[0]:
            batch["scores"] = stack_right_padded([example["scores"] for example in examples], max(counts), 0.0).float()
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        return batch

    def _packed(self, records: list[list[list[int]]]) -> dict[str, Tensor]:
        step = self.pad_to_multiple_of or 1
        return pack_shared_prefix(records, filler=self.pad_token_id, pad_to_multiple_of=step)._asdict()

    def _apart(self, records: list[list[list[int]]]) -> dict[str, Tensor]:
        sequences = [ids for record in records for ids in record]
        return right_padded(sequences, filler=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of or 1)


def right_padded(
    sequences: Sequence[Sequence[int]], *, filler: int = 0, pad_to_multiple_of: int = 1
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, `[N, S]` int64: one sequence a row; the mask goes by length."""
    width = math.ceil(max(map(len, sequences)) / pad_to_multiple_of) * pad_to_multiple_of
    return {
        "input_ids": stack_right_padded(sequences, width, filler),
        "attention_mask": stack_right_padded([[1] * len(ids) for ids in sequences], width, 0),
    }


def candidate_rewards(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Rewards `[B, K]` of a batch of [`DataCollatorForBestOfK`] from one forward pass; 0 where there is no candidate.

    Args:
        model: A reward model, possibly wrapped for parallel training.
        batch: With or without a shared prefix; its keys tell which.
    """
    mask = batch["candidate_mask"]
    if "segment_ids" in batch:
        return model(**packed_inputs(_packed(batch))).logits.masked_fill(~mask, 0.0)
    rewards = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]  # [N]
    return rewards.new_zeros(mask.shape).masked_scatter(mask, rewards)


def count_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Tokens of all prompts with their completions, a prompt counted once per candidate: `[]` int64."""
    if "segment_ids" not in batch:
        return batch["attention_mask"].sum()
    rows = _packed(batch)
    lengths = rows.position_ids.gather(1, rows.reward_positions) + 1  # [B, K]
    return lengths[batch["candidate_mask"]].sum()


def _packed(batch: Mapping[str, Tensor]) -> PackedRows:
    return PackedRows(*(batch[name] for name in PackedRows._fields))
