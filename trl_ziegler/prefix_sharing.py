"""Several sequences behind one copy of the prefix they share, in one row of a batch.

A row is the prefix, then the rest of each sequence, then padding. Every rest sees the prefix and itself only, and its
positions go on from the prefix's, so each token computes what it computes in a row of its own.

Axis letters: `B` rows (records), `K` sequences of a record, `S` slots of a row.
"""

from collections.abc import Sequence
from itertools import takewhile
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

SERVED_MODEL_TYPES = (
    "falcon", "gemma", "glm", "gpt2", "gpt_neox", "gptj", "llama", "mistral", "mixtral", "nemotron", "opt",
    "persimmon", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip
"""The architectures that the tests hold to equal rewards. Others may overrule a 4-D mask or explicit positions."""

SERVED_ATTENTION = ("eager", "sdpa")
"""The attention implementations of transformers that apply a 4-D mask as it is given.

In transformers 5.0 the eager attention of GPT-2 raises for rows of more slots than the model has positions.
"""

PADDING, PREFIX = -1, 0
"""Segments of slots that belong to none of a row's sequences alone; the rest of sequence k is segment k + 1."""


class PackedRows(NamedTuple):
    """A batch whose records are one row each.

    Attributes:
        input_ids: `[B, S]` int64.
        segment_ids: `[B, S]` int64: `PREFIX`, k + 1 for the rest of sequence k, `PADDING` behind them.
        position_ids: `[B, S]` int64: index of the token in its sequence, 0-based; 0 at padding.
        reward_positions: `[B, K]` int64: slot of each sequence's last token; 0 for an absent sequence.
    """

    input_ids: Tensor
    segment_ids: Tensor
    position_ids: Tensor
    reward_positions: Tensor


def pack_shared_prefix(
    records: Sequence[Sequence[Sequence[int]]], *, filler: int = 0, pad_to_multiple_of: int = 1
) -> PackedRows:
    """One row per record: what its sequences begin with in common, once, then the rest of each.

    [1, 2, 3], [1, 2, 4, 5] and [1, 2] -> ids 1 2 3 4 5, positions 0 1 2 2 3, last tokens at the slots 2, 4 and 1.

    Args:
        records: The sequences of each record, K may differ; a prompt with each of its completions.
        filler: Id at padding, which is on the right.
        pad_to_multiple_of: S is a multiple of this.

    Raises:
        ValueError: a record without sequences, or an empty sequence.
    """
    for row, sequences in enumerate(records):
        if not sequences or not all(sequences):
            raise ValueError(f"Record {row} has no sequence, or one without tokens; drop it.")
    rows = [_pack_record(sequences) for sequences in records]
    longest = max(len(row.input_ids) for row in rows)
    width = ceil(longest / pad_to_multiple_of) * pad_to_multiple_of
    most = max(len(row.reward_positions) for row in rows)
    return PackedRows(
        stack_right_padded([row.input_ids for row in rows], width, filler),
        stack_right_padded([row.segment_ids for row in rows], width, PADDING),
        stack_right_padded([row.position_ids for row in rows], width, 0),
        stack_right_padded([row.reward_positions for row in rows], most, 0),
    )


def sharing_groups(prefixes: Sequence[Sequence[int]], lengths: Sequence[int], *, most: int) -> list[list[int]]:
    """Which sequences to pack into one row: those of equal prefixes, as long as packing also saves attention scores.

    A row computes (P + Σ rests)² of them, rows of their own Σ (P + rest)², so many long rests behind a short prefix
    become several rows, and sequences without a prefix one each.

    Args:
        prefixes: The known prefix of each sequence.
        lengths: Tokens of each sequence, its prefix included.
        most: Sequences of a row.

    Returns:
        Indices of the sequences in groups, each group and the list of them in the order given.
    """
    groups: list[list[int]] = []
    last_of: dict[tuple[int, ...], list[int]] = {}
    for i, prefix in enumerate(prefixes):
        group = last_of.get(tuple(prefix), [])
        widths = [lengths[j] for j in (*group, i)]
        packed = sum(widths) - len(group) * len(prefix)
        if group and len(group) < most and packed**2 <= sum(width**2 for width in widths):
            group.append(i)
        else:
            last_of[tuple(prefix)] = [i]
            groups.append(last_of[tuple(prefix)])
    return groups


def shared_prefix_mask(segment_ids: Tensor) -> Tensor:
    """Which slots each slot may read: `[B, 1, S, S]` bool, queries before keys.

    A slot reads those at or before it that are in the prefix or in its own segment. Padding reads itself too, since a
    softmax over nothing is NaN in some kernels; no token reads padding, which comes last.

    Args:
        segment_ids: `[B, S]` as in [`PackedRows`].
    """
    if segment_ids.dim() != 2:
        raise ValueError(f"`segment_ids` has {segment_ids.dim()} dimensions; give [B, S].")
    queries, keys = segment_ids[:, :, None], segment_ids[:, None, :]
    causal = torch.ones(queries.shape[1], keys.shape[2], dtype=torch.bool, device=segment_ids.device).tril()
    return (causal & ((keys == PREFIX) | (keys == queries)))[:, None]


def packed_inputs(rows: PackedRows) -> dict[str, Tensor]:
    """Arguments of a reward model's `forward`: what is packed and the mask; the filler, which is embedded, is 0."""
    return {
        "input_ids": rows.input_ids.masked_fill(rows.segment_ids == PADDING, 0),
        "attention_mask": shared_prefix_mask(rows.segment_ids),
        "position_ids": rows.position_ids,
        "reward_positions": rows.reward_positions,
    }


def behind_contexts(
    input_ids: Tensor, attention_mask: Tensor, response_length: int, samples: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments of a model's `forward` that run each context once for its `samples` responses.

    Args:
        input_ids: `[B, Q + K T]`: contexts padded on the left, each followed by its K responses.
        attention_mask: `[B, Q + K T]`, 0 at padding.
        response_length: T.
        samples: K.

    Returns:
        The arguments, `input_ids [B, Q + K (T - 1)]` among them (nothing is predicted from the last token of a
        response), and the slots `[K T]` from whose states the tokens of the first response are predicted, then those
        of the second, and so on: the last slot of the context for each first token.
    """
    rows, context = len(input_ids), input_ids.shape[1] - samples * response_length
    device, rest = input_ids.device, response_length - 1
    mask = attention_mask[:, :context].long()
    responses = input_ids[:, context:].view(rows, samples, response_length)[:, :, :-1]
    segments = torch.arange(1, samples + 1, device=device).repeat_interleave(rest)
    offsets = torch.arange(rest, device=device).repeat(samples)
    segment_ids = torch.cat([torch.where(mask == 1, PREFIX, PADDING), segments.expand(rows, -1)], 1)
    inputs = {
        "input_ids": torch.cat([input_ids[:, :context].masked_fill(mask == 0, 0), responses.flatten(1)], 1),
        "attention_mask": shared_prefix_mask(segment_ids),
        "position_ids": torch.cat([mask.cumsum(1) - mask, mask.sum(1, keepdim=True) + offsets], 1),
    }
    own = torch.arange(context, context + samples * rest, device=device).view(samples, rest)
    first = torch.full((samples, 1), context - 1, device=device)
    return inputs, torch.cat([first, own], 1).flatten()


def next_token_mask(attention_mask: Tensor, samples: int, most: int) -> Tensor:
    """Which keys the next token of each response may read: `[B, 1, K, Q + K most]` bool.

    The keys are the context's, then the first token of every response, then the second of every response, and so on;
    the mask of a step is its first columns.

    Args:
        attention_mask: `[B, Q]` of the contexts, 0 at padding.
        samples: K, responses to each context.
        most: Tokens of a response.
    """
    rows, context = attention_mask.shape
    own = torch.eye(samples, dtype=torch.bool, device=attention_mask.device).repeat(1, most)
    shared = attention_mask.bool()[:, None, None].expand(rows, 1, samples, context)
    return torch.cat([shared, own.expand(rows, 1, -1, -1)], 3)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What eager attention adds: 0 where `mask` (bool) is true, the lowest number of `dtype` elsewhere; same shape."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def check_prefix_sharing(model: Any) -> None:
    """Raise where sequences behind a shared prefix would not get the rewards they get in rows of their own.

    Args:
        model: A model of transformers, or a wrapper with its `config`.

    Raises:
        ValueError: an architecture not in `SERVED_MODEL_TYPES`, ALiBi (its distances go by slot), layers with a
            sliding window (the mask would overrule the window), or attention not in `SERVED_ATTENTION`.
    """
    reason = obstacle_to_masks(model.config)
    if reason is not None:
        raise ValueError(
            f"Candidates cannot share their prompt in this model: {reason}, or set `shared_prefix=False`."
        )


def can_share_prefix(model: Any) -> bool:
    """Whether `check_prefix_sharing` passes."""
    return obstacle_to_masks(model.config) is None


def obstacle_to_masks(config: Any) -> str | None:
    """What stands against masks and positions of our own, and a way out of it; None if nothing does."""
    config = config.get_text_config()
    if config.model_type not in SERVED_MODEL_TYPES:
        return f"its type '{config.model_type}' is not one of those tested ({', '.join(SERVED_MODEL_TYPES)}); take one"
    if getattr(config, "alibi", False):
        return "`config.alibi` is True, whose distances go by slot and not by position; take rotary positions"
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if layers:
        return f"`config.layer_types` has {', '.join(sorted(layers))}; take a model with full attention"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        return (
            f"`config.sliding_window` is {window}, which a 4-D mask would overrule; take a model with full attention"
        )
    if config._attn_implementation not in SERVED_ATTENTION:
        return (
            f"its attention is '{config._attn_implementation}', which takes no 4-D mask; load it with "
            "`attn_implementation='sdpa'`"
        )
    return None


class _Row(NamedTuple):
    input_ids: list[int]
    segment_ids: list[int]
    position_ids: list[int]
    reward_positions: list[int]


def _pack_record(sequences: Sequence[Sequence[int]]) -> _Row:
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False)))
    row = _Row(list(sequences[0][:shared]), [PREFIX] * shared, list(range(shared)), [])
    for k, ids in enumerate(sequences):
        rest = len(ids) - shared
        row.input_ids.extend(ids[shared:])
        row.segment_ids.extend([k + 1] * rest)
        row.position_ids.extend(range(shared, len(ids)))
        row.reward_positions.append((len(row.input_ids) if rest else shared) - 1)
    return row


def stack_right_padded(rows: Sequence[Sequence[float]], width: int, filler: float) -> Tensor:
    """`[len(rows), width]`: each row, then `filler`."""
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
