"""The parts a reward model is made of: the head, and what is mixed into a classifier's and an adapter's class.

Axis letters: `B` rows, `S` tokens, `H` hidden, `N` reward positions per row.
"""

import os
import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from .prefix_sharing import additive_mask


class RewardHead(nn.Module):
    """r = gain (weight · h + bias) + offset in float32 (float64 where h is), whatever the autocast state.

    Parameters, all trained: `weight [1, H]`, `bias [1]`, `gain [1]`, `offset [1]`. The start is weight ~
    N(0, 1/(H+1)), bias 0, gain 1, offset 0 (openai/lm-human-preferences, language/model.py:fc_layer, rewards.py).
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))
        self.gain = nn.Parameter(torch.ones(1))
        self.offset = nn.Parameter(torch.zeros(1))
        nn.init.normal_(self.weight, std=self.initial_std)

    @property
    def initial_std(self) -> float:
        """1/√(H+1): 0.03606 for H = 768, 0.02794 for H = 1280."""
        return (self.weight.shape[1] + 1) ** -0.5

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., H]` -> `[..., 1]` in float32, or in float64 if it comes so."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            raw = nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
            return self.gain.to(dtype) * raw + self.offset.to(dtype)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Start afresh; the same seed gives the same weights on every machine and rank."""
        weight = torch.empty(self.weight.shape).normal_(
            std=self.initial_std, generator=torch.Generator().manual_seed(seed)
        )
        self.weight.copy_(weight)
        self.bias.zero_()
        self.set_affine(1.0, 0.0)

    @torch.no_grad()
    def set_affine(self, gain: float, offset: float) -> None:
        """Overwrite `gain` and `offset`."""
        self.gain.fill_(gain)
        self.offset.fill_(offset)


class RewardModelMixin:
    """What is ours in a reward model: the head, masks by length instead of by PAD id, and the form on disk.

    Overrides of the classifier it is mixed into: `forward`, `save_pretrained`, `_init_weights`, and the head built by
    `__init__`. Use `load_reward_model` or `as_reward_model` instead of naming this class.
    """

    # Absent on disk by design: `save_pretrained` folds them away, loading puts their neutral values back.
    _keys_to_ignore_on_save = ("score.bias", "score.gain", "score.offset")
    # Lists, as in transformers, whose older releases append to them with `+`.
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = [r"^score\.(bias|gain|offset)$"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^lm_head\."]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.score = RewardHead(config.get_text_config().hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        reward_positions: Tensor | None = None,
        labels: None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Rewards of token sequences padded on either side, or in the middle.

        Args:
            input_ids: `[B, S]`. Ids at masked slots are never embedded, so any filler will do.
            attention_mask: `[B, S]`, 0 at padding, or `[B, 1, S, S]` bool, true where a query may read a key, or such
                a mask as numbers to add to the attention scores; by default all ones.
            position_ids: `[B, S]`; by default the exclusive cumulative sum of the mask. Required with a 4-D mask.
            reward_positions: `[B]` or `[B, N]` slots to read the reward at; by default the last present token's.
                Required with a 4-D mask.
            labels: Refused: the losses are the trainer's.
            kwargs: Go to the base model.

        Returns:
            `logits [B, N]` in float32, one reward per position read; N = 1 unless `reward_positions` says otherwise.
        """
        if labels is not None:
            raise ValueError("`labels` was given to a reward model, which computes no loss; use BestOfKRewardTrainer.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.dim() == 2:
            mask = attention_mask.long()
            input_ids = input_ids.masked_fill(mask == 0, 0)
            position_ids = exclusive_positions(mask) if position_ids is None else position_ids
            reward_positions = last_present(mask) if reward_positions is None else reward_positions
        elif position_ids is None or reward_positions is None:
            raise ValueError(
                f"`attention_mask` has {attention_mask.dim()} dimensions, so it does not tell where a sequence ends; "
                "give `position_ids` and `reward_positions` with it."
            )
        elif attention_mask.dtype == torch.bool and self.config._attn_implementation == "eager":
            attention_mask = additive_mask(attention_mask, self.dtype)  # eager attention would add the bits themselves
        base = getattr(self, self.base_model_prefix)
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}
        hidden = base(input_ids, **{**kwargs, **inputs})[0]  # [B, S, H]
        positions = reward_positions.reshape(len(hidden), -1)  # [B, N]
        read = hidden.gather(1, positions[:, :, None].expand(-1, -1, hidden.shape[-1]))  # [B, N, H]
        return SequenceClassifierOutput(logits=self.score(read).squeeze(-1))

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """Write a folder any one-label classifier loads: `score.weight` = g w, `config.reward_bias` = g c + d.

        Positional arguments beyond the folder are not taken; the rest is `PreTrainedModel.save_pretrained`.
        """
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        self.config.reward_bias = fold(state_dict, "score.")
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # Reached for what a checkpoint lacks: the whole head, or only what `save_pretrained` folded away.
        if not isinstance(module, RewardHead):
            return super()._init_weights(module)
        init.normal_(module.weight, std=module.initial_std)
        init.zeros_(module.bias)
        init.ones_(module.gain)
        init.constant_(module.offset, reward_bias(self.config))


class PeftRewardModelMixin:
    """What is ours in an adapter of a reward model: `save_pretrained` folds the head as the full model's does.

    The adapter file keeps `bias`, `gain` and `offset` with the values 0, 1 and g c + d; the configuration with the
    normalisation record lies beside it.
    """

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """Write an adapter folder for `load_reward_model`; arguments are `PeftModel.save_pretrained`'s."""
        state_dict = dict(self.state_dict() if state_dict is None else state_dict)
        prefixes = [m[1] for key in state_dict if (m := re.match(r"(.*\bscore\.modules_to_save\.[^.]+\.)gain$", key))]
        for prefix in prefixes:
            constant = fold(state_dict, prefix)
            state_dict[f"{prefix}bias"] = torch.zeros(1)
            state_dict[f"{prefix}gain"] = torch.ones(1)
            state_dict[f"{prefix}offset"] = torch.tensor([constant])
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        if kwargs.get("is_main_process", True):
            self.get_base_model().config.save_pretrained(save_directory)


def exclusive_positions(mask: Tensor) -> Tensor:
    """Position ids `[B, S]`: how many tokens are present before each slot of `mask [B, S]` (0 or 1).

    [1, 0, 0, 1, 1] -> [0, 1, 1, 1, 2]. Source: openai/lm-human-preferences, language/model.py:positions_for.
    """
    return mask.cumsum(-1) - mask


def last_present(mask: Tensor) -> Tensor:
    """Index `[B]` of the last 1 in each row of `mask [B, S]`."""
    return (mask * torch.arange(mask.shape[-1], device=mask.device)).argmax(-1)


def reward_bias(config: Any) -> float:
    """The constant that `save_pretrained` put into the configuration; 0 for a model that is not ours."""
    return getattr(config, "reward_bias", 0.0)


def fold(state_dict: dict[str, Tensor], prefix: str) -> float:
    """Replace the weight under `prefix` by g w, and return the constant g c + d."""
    weight, bias, gain, offset = (state_dict[prefix + key] for key in ("weight", "bias", "gain", "offset"))
    state_dict[f"{prefix}weight"] = gain * weight
    return (gain * bias + offset).item()
