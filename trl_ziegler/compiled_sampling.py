"""Decoding steps of fixed shapes, compiled: on a GPU a step is one CUDA graph instead of hundreds of launches.

What transformers calls `cache_implementation="static"`. The context is run as ever; its keys and values move into
rooms of a fixed size, and from there on every step reads tensors of the same shapes at the same addresses.

Axis letters: B contexts, K responses to each, R rows (B K, or B where the responses share a row), G tokens a row and
step (1, or K there), Q slots of the context, T response tokens, S = Q + G T slots of a room, H heads, D width of one.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch._dynamo
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .actor_critic import ActorCritic
from .prefix_sharing import next_token_mask, obstacle_to_masks

BACKEND = "inductor"
"""Of `torch.compile`; the tests take one that needs no compiler."""
MULTIPLE = 64
"""Slots of a room are a multiple of this, so that few shapes are compiled."""
MOST_SHAPES = 64
"""Shapes that are compiled before torch would give up (its own limit is 8)."""


class RoomLayer(DynamicLayer):
    """Keys and values `[R, H, S, D]` that stay in their place; new ones are written into given slots.

    Args:
        keys, values: The context's `[B, H, Q, D]` or fewer slots, which are not kept.
        rows: R, a multiple of B.
        size: S.
        slots: `[G]` int64, where the next tokens are written; changed in place by whoever decodes.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: int, size: int, slots: Tensor) -> None:
        super().__init__()
        # Zeros, for a masked slot that holds NaN would still be multiplied by its weight of 0.
        self.keys = keys.new_zeros(rows, keys.shape[1], size, keys.shape[3])
        self.values = values.new_zeros(rows, values.shape[1], size, values.shape[3])
        self.slots, self.is_initialized = slots, True
        for tensor in (self.keys, self.values, self.slots):
            torch._dynamo.mark_static_address(tensor)  # what a CUDA graph may change

    def fill(self, keys: Tensor, values: Tensor, samples: int) -> None:
        """Begin with a context's keys and values `[B, H, Q, D]` (or fewer slots), each row `samples` times."""
        width = keys.shape[2]
        self.keys[:, :, :width] = keys.repeat_interleave(samples, 0)
        self.values[:, :, :width] = values.repeat_interleave(samples, 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write `[R, H, G, D]` keys and values; returns the whole room."""
        self.keys.index_copy_(2, self.slots, key_states)
        self.values.index_copy_(2, self.slots, value_states)
        return self.keys, self.values

    def get_seq_length(self, *args: Any) -> int:
        """Always 0: positions and masks are given with each step, and a count would make every step another one."""
        return 0


class CompiledSteps:
    """The compiled step of a model, with a room for every shape of batch it has decoded.

    Args:
        model: Policy and value function, on their device, in evaluation mode while in use.
        longest: Tokens of the longest context to expect; a longer one makes its rooms anew, and is compiled again.
        sharded: Whether its weights will be in shards.

    Raises:
        ValueError: a policy that `check_compilable` refuses.
    """

    def __init__(self, model: ActorCritic, *, longest: int = 0, sharded: bool = False) -> None:
        check_compilable(model.policy, sharded=sharded)
        self._longest = longest
        self._model = model
        self._rooms: dict[tuple[int, int, int], Room] = {}
        mode = "reduce-overhead" if model.policy.device.type == "cuda" else None
        self._step = torch.compile(self._run, fullgraph=True, dynamic=False, backend=BACKEND, mode=mode)

    def after(self, cache: Cache, mask: Tensor, samples: int, most: int, *, together: bool) -> "Room":
        """What decodes behind the contexts whose keys and values `cache` holds.

        A room has space for the longest context of all, as far as it is known, and is kept: its addresses are part of
        the graph. Its size does not depend on the order of the contexts, or a resumed run would round otherwise.

        Args:
            cache: Of the contexts, one row each.
            mask: `[B, Q]` int64 of the contexts, 0 at padding.
            samples: K.
            most: T.
            together: Whether the responses to a context share a row.
        """
        rows, group = (len(mask), samples) if together else (len(mask) * samples, 1)
        shape = rows, group, most
        if shape not in self._rooms or self._rooms[shape].context < mask.shape[1]:
            self._rooms.pop(shape, None)  # before its successor takes memory
            self._rooms[shape] = Room(self._step, cache, max(mask.shape[1], self._longest), *shape)
        self._rooms[shape].begin(cache, mask, samples // group)
        return self._rooms[shape]

    def _run(
        self, tokens: Tensor, positions: Tensor, readable: Tensor, slots: Tensor, cache: Cache
    ) -> tuple[Tensor, Tensor]:
        written = torch.arange(readable.shape[-1], device=slots.device) <= slots[-1]
        inputs = {"input_ids": tokens, "attention_mask": readable & written, "position_ids": positions}
        out = self._model.step(inputs, tokens.shape[1], cache)
        return out.logits, out.values


class Room:
    """What every step of one shape reads and writes."""

    def __init__(self, step: Callable, cache: Cache, context: int, rows: int, group: int, most: int) -> None:
        self._step, self._compiled = step, False
        self.rows, self.group, self.most = rows, group, most
        size = -(-(context + group * most) // MULTIPLE) * MULTIPLE
        self.context = size - group * most
        self._first = torch.arange(self.context, self.context + group, device=cache.layers[0].keys.device)
        self._slots = self._first.clone()
        layers = [RoomLayer(layer.keys, layer.values, rows, size, self._slots) for layer in cache.layers]
        self._cache = Cache(layers=layers)

    def begin(self, cache: Cache, mask: Tensor, samples: int) -> None:
        """Take over the contexts in `cache` and their `mask [B, Q]`, each for `samples` rows."""
        for room, layer in zip(self._cache.layers, cache.layers, strict=True):
            room.fill(layer.keys, layer.values, samples)
        mask = mask.repeat_interleave(samples, 0)
        self._lengths = mask.sum(1, keepdim=True).repeat(1, self.group)
        padded = torch.nn.functional.pad(mask, (0, self.context - mask.shape[1]))
        self._readable = next_token_mask(padded, self.group, self.most)

    def step(self, tokens: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Logits `[R G, V]` and values `[R G]` after the tokens `[R G]` at index t were drawn; valid until the next.

        Nothing here waits for the device.
        """
        torch.add(self._first, self.group * t, out=self._slots)
        ids = tokens.view(self.rows, self.group)
        torch.compiler.cudagraph_mark_step_begin()
        # The first call compiles, and only compiling looks at the limit.
        limit = nullcontext() if self._compiled else torch._dynamo.config.patch(recompile_limit=MOST_SHAPES)
        with limit:
            logits, values = self._step(ids, self._lengths + t, self._readable, self._slots, self._cache)
        self._compiled = True
        return logits.flatten(0, 1), values.flatten()


def check_compilable(policy: Any, *, sharded: bool = False) -> None:
    """Raise `ValueError` where a compiled step would fail, be compiled over and over, or draw other tokens."""
    reason = None
    if sharded:
        reason = "its weights are in shards (FSDP), which are gathered anew in every step"
    elif is_peft_model(policy):
        reason = "it has an adapter, which the reference switches off and on"
    elif not policy._can_compile_fullgraph:
        reason = f"transformers does not compile {type(policy).__name__} as a whole"
    reason = reason or obstacle_to_masks(policy.config)
    if reason is not None:
        raise ValueError(
            f"`cache_implementation` is 'static', which this policy does not allow: {reason}; leave the field out."
        )
