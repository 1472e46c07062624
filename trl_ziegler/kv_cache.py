"""A key-value cache that does not copy itself at every token.

Axis letters: B rows, H heads, S tokens so far, D width of a head.
"""

import inspect
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

GROWTH = 32
"""Tokens that room is made for at a time."""


class GrowingLayer(DynamicLayer):
    """`DynamicLayer` with room to grow: the library's concatenates all of its keys and values for each new token.

    `keys` and `values` `[B, H, S, D]` are views of the room, as everything else in the library expects them.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rooms: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[B, H, new, D]` keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        keys, values = self._room(end)
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def _room(self, needed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tensors that begin with `keys` and `values` and hold at least `needed` tokens."""
        rooms = self._rooms
        if rooms is None or rooms[0].shape[2] < needed or rooms[0].data_ptr() != self.keys.data_ptr():
            # Also after the library's own methods have replaced `keys` and `values`.
            rooms = _with_room(self.keys, needed + GROWTH), _with_room(self.values, needed + GROWTH)
        self._rooms = rooms
        return rooms


def _with_room(states: torch.Tensor, size: int) -> torch.Tensor:
    room = states.new_empty(*states.shape[:2], size, states.shape[3])
    room[:, :, : states.shape[2]] = states
    return room


def growing_cache() -> Cache:
    """An empty cache for a model whose layers all have full attention."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def cache_argument(model: PreTrainedModel) -> str:
    """What a causal model calls its cache, as an argument and in its output: transformers 5.24 renamed it."""
    forward = (model.get_base_model() if is_peft_model(model) else model).forward
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
