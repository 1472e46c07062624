"""Policy and value function as one module, so that one forward pass of one (wrapped) module trains both.

Axis letters: B rows, S context + response tokens, T response tokens, V vocabulary, H hidden.
"""

import copy
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import is_peft_model
from peft import get_peft_model
from peft.utils import (
    CONFIG_NAME,
    SAFETENSORS_WEIGHTS_NAME,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .kv_cache import cache_argument
from .prefix_sharing import additive_mask, behind_contexts
from .reward_model import as_reward_model, load_reward_model, restore_reward_head, save_reward_head
from .sharding import has_parts, in_parts_like, tied_as_in

VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_MODEL_FOLDER = "value_model"


class ActorCriticOutput(NamedTuple):
    """`logits [B, T, V]` that predict each response token (untempered), `values [B, T]` before each, and the cache."""

    logits: torch.Tensor
    values: torch.Tensor
    cache: Any = None


class TrunkOutput:
    """A hook on a head: what it read in the one pass before which `listen` was called.

    It knows no module and keeps nothing else, so that a model may be copied, and serve another trainer.
    """

    def __init__(self) -> None:
        self._listening = False
        self._read: torch.Tensor | None = None

    def __call__(self, head: nn.Module, args: tuple) -> None:
        if self._listening:
            self._read, self._listening = args[0], False

    def listen(self) -> None:
        """Keep what the head reads in the next pass."""
        self._listening = True

    def take(self) -> torch.Tensor:
        """What the head has read, `[B, T, H]`."""
        read, self._read = self._read, None
        assert read is not None  # there was a pass since `listen`
        return read


class ActorCritic(nn.Module):
    """A causal language model with a value function.

    Without `value_model` the value is a linear head, weight and bias zero at the start, on the policy's own final
    layer-norm output (Ziegler et al. 2019; `openai/lm-human-preferences`, `policy.py`), and its loss reaches the
    trunk. With `value_model` it is that network (Stiennon et al. 2020).

    Args:
        policy: A causal language model, or a `PeftModel` of one.
        value_model: A sequence-classification model with one label whose head is called `score`, or `None`.
    """

    FORWARD_METHODS = ("step", "policy_logits", "network_values")
    """What runs the networks besides `forward`."""

    def __init__(self, policy: PreTrainedModel, value_model: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = None if value_model is None else as_reward_model(value_model)
        self._cache_name = cache_argument(policy)
        head = policy.get_output_embeddings()
        if value_model is None:
            width = policy.config.get_text_config().hidden_size
            self.value_head = nn.Linear(width, 1, device=head.weight.device, dtype=torch.float32)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
            # What the language-model head reads is the trunk's output at exactly the positions asked for, whatever
            # the architecture does to its logits afterwards; taking it here avoids keeping every layer's states.
            self._trunk = TrunkOutput()
            head.register_forward_pre_hook(self._trunk)

    @property
    def config(self):
        """The policy's configuration."""
        return self.policy.config

    @property
    def _no_split_modules(self) -> list[str]:
        """The blocks of both networks, where FSDP cuts; the name is transformers'."""
        networks = filter(None, (self.policy, self.value_model))
        return sorted({name for network in networks for name in network._no_split_modules or ()})

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        return next(self.policy.parameters()).device

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int, samples: int = 1
    ) -> ActorCriticOutput:
        """Logits and values for every token of the responses.

        Args:
            input_ids: `[B, Q + K T]` contexts, padded on the left, each followed by its K responses.
            attention_mask: `[B, Q + K T]`, 0 at padding. Ids at masked slots are never embedded.
            response_length: T.
            samples: K. With more than one, a context is run once for all of its responses (`check_prefix_sharing`
                says which models can); the rows `[B K]` that come back are those of the first context, then the next.
        """
        inputs, keep = response_inputs(input_ids, attention_mask, response_length, samples)
        out = self._run(inputs, keep)
        shape = (len(input_ids) * samples, response_length)
        return out._replace(logits=out.logits.view(*shape, -1), values=out.values.view(shape))

    def policy_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int, samples: int = 1
    ) -> torch.Tensor:
        """The logits `[B K, T, V]` of `forward` alone; args as there."""
        return response_logits(self.policy, input_ids, attention_mask, response_length, samples)

    def network_values(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int, samples: int = 1
    ) -> torch.Tensor:
        """The values `[B K, T]` of `forward` alone, for a separate value network; args as there."""
        inputs, keep = response_inputs(input_ids, attention_mask, response_length, samples)
        return self._network_values(inputs, keep).view(-1, response_length)

    def step(self, inputs: dict[str, torch.Tensor], keep: int, cache: Any = None) -> ActorCriticOutput:
        """A step of sampling: logits, values and cache after the last `keep` tokens of each row.

        Args:
            inputs: Arguments of the policy's `forward`: `input_ids` that the cache has not seen, `attention_mask` and
                `position_ids`.
            keep: How many of the last tokens are followed by one that is drawn.
            cache: What the previous step returned.
        """
        return self._run(inputs, keep, use_cache=True, **{self._cache_name: cache})

    def _run(self, inputs: dict[str, torch.Tensor], keep: int | torch.Tensor, **cache: Any) -> ActorCriticOutput:
        if self.value_model is None:
            self._trunk.listen()
        out = self.policy(**as_read(self.policy, inputs), logits_to_keep=keep, **{"use_cache": False, **cache})
        if self.value_model is None:
            trunk = self._trunk.take()
            values = self.value_head(trunk.to(self.value_head.weight.dtype)).squeeze(-1)
        elif cache:
            # A separate network keeps no cache; its values are read from the finished responses by `forward`.
            values = torch.zeros(out.logits.shape[:2], device=out.logits.device)
        else:
            values = self._network_values(inputs, keep)
        return ActorCriticOutput(out.logits, values, out.get(self._cache_name))

    def _network_values(self, inputs: dict[str, torch.Tensor], keep: int | torch.Tensor) -> torch.Tensor:
        assert self.value_model is not None
        rows, width = inputs["input_ids"].shape
        if isinstance(keep, int):
            keep = torch.arange(width - keep, width, device=inputs["input_ids"].device)
        return self.value_model(**inputs, reward_positions=keep.expand(rows, -1)).logits

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Recompute activations in the backward pass, in the policy and in the value network if there is one."""
        self.policy.gradient_checkpointing_enable(**kwargs)
        if self.value_model is not None:
            self.value_model.gradient_checkpointing_enable(**kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """The name `gradient_checkpointing_enable` has in newer releases of transformers."""
        self.policy.activation_checkpointing_enable(**kwargs)
        if self.value_model is not None:
            self.value_model.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        self.policy.gradient_checkpointing_disable()
        if self.value_model is not None:
            self.value_model.gradient_checkpointing_disable()

    def add_model_tags(self, tags: list[str] | str) -> None:
        """Tag the policy for its model card."""
        self.policy.add_model_tags(tags)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` and `ActorCritic.from_pretrained` both read.

        Args:
            save_directory: The folder.
            state_dict: This module's, where its parameters are in shards and had to be gathered.
        """
        gathered = None if state_dict is None else tied_as_in(self, state_dict)

        def part(name: str) -> dict[str, torch.Tensor] | None:
            return None if gathered is None else _below(f"{name}.", gathered)

        self.policy.save_pretrained(save_directory, state_dict=part("policy"))
        if self.value_model is not None:
            folder, state = Path(save_directory, VALUE_MODEL_FOLDER), part("value_model")
            self.value_model.save_pretrained(folder, state_dict=state)
            save_reward_head(self.value_model, folder, state_dict=state)
        else:
            head = part("value_head") or self.value_head.state_dict()
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.items()}
            save_file(state, Path(save_directory, VALUE_HEAD_FILE))

    def remove_former_parts(self, folder: str | os.PathLike) -> None:
        """Remove what a model of another kind left in a folder that this one was saved to, and loading would prefer.

        That is the other kind of value function, and an adapter beside a whole policy.
        """
        former = [VALUE_MODEL_FOLDER if self.value_model is None else VALUE_HEAD_FILE]
        if not is_peft_model(self.policy):
            former += [CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME]
        for path in (Path(folder, name) for name in former):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **kwargs: Any) -> "ActorCritic":
        """Load what `save_pretrained` wrote; `kwargs` go to `AutoModelForCausalLM.from_pretrained`.

        Raises `FileNotFoundError` where there is no such folder, or it holds a policy without its value function.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}; give the one that `save_pretrained` wrote.")
        if not (folder / VALUE_HEAD_FILE).is_file() and not (folder / VALUE_MODEL_FOLDER).is_dir():
            raise FileNotFoundError(
                f"{folder} holds neither {VALUE_HEAD_FILE} nor {VALUE_MODEL_FOLDER}/, so it is a policy without its "
                "value function; load it with AutoModelForCausalLM.from_pretrained."
            )
        policy = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
        if (folder / VALUE_MODEL_FOLDER).is_dir():
            value_model = load_reward_model(folder / VALUE_MODEL_FOLDER)
            restore_reward_head(value_model, folder / VALUE_MODEL_FOLDER)
            return cls(policy, value_model)
        model = cls(policy)
        model.value_head.load_state_dict(load_file(folder / VALUE_HEAD_FILE))
        return model

    def load_checkpoint(self, path: str | os.PathLike) -> None:
        """Overwrite the weights of this module, adapters included, with those `save_pretrained` wrote.

        Where they are in shards, all processes must call this.

        Raises `ValueError` where the folder holds a model of another kind.
        """
        self._require_kind(Path(path))
        _load_weights(self.policy, path)
        if self.value_model is not None:
            _load_weights(self.value_model, Path(path, VALUE_MODEL_FOLDER))
            restore_reward_head(self.value_model, Path(path, VALUE_MODEL_FOLDER))
        else:
            head = load_file(Path(path, VALUE_HEAD_FILE))
            self.value_head.load_state_dict(in_parts_like(head, self.value_head.state_dict()))

    def _require_kind(self, folder: Path) -> None:
        kinds = {VALUE_HEAD_FILE: "a value head on the policy", VALUE_MODEL_FOLDER: "a value network of its own"}
        ours, other = kinds if self.value_model is None else reversed(kinds)
        if not (folder / ours).exists() and (folder / other).exists():
            raise ValueError(
                f"{folder} was written with {kinds[other]}, this run has {kinds[ours]}; resume with the same."
            )
        adapted = is_peft_model(self.policy)
        if adapted != ((_adapter_folder(self.policy, folder) if adapted else folder) / CONFIG_NAME).is_file():
            written, run = ("without", "with") if adapted else ("with", "without")
            raise ValueError(
                f"{folder} was written {written} this adapter, the run is {run} one; resume with the same."
            )


def _adapter_folder(model: PreTrainedModel, path: str | os.PathLike) -> Path:
    """Where PEFT saves the active adapter: any but the default one in a folder of its name."""
    return Path(path) if model.active_adapter == "default" else Path(path, model.active_adapter)


def value_network(reward_model: PreTrainedModel, policy: PreTrainedModel) -> PreTrainedModel:
    """A trainable copy of a reward model; if the policy trains an adapter, so does the copy, beside its head."""
    copied = copy.deepcopy(reward_model)
    if is_peft_model(copied):
        copied = copied.merge_and_unload()
    copied.requires_grad_(True)
    if not is_peft_model(policy):
        return copied
    adapter = copy.deepcopy(policy.active_peft_config)
    adapter.task_type, adapter.modules_to_save = "SEQ_CLS", ["score"]
    return get_peft_model(copied, adapter)


def model_inputs(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model reads: ids 0 at masked slots, positions that count present tokens (0-based).

    Args:
        input_ids: `[B, S]` the tokens to run.
        attention_mask: `[B, S]`, or longer on the left by the tokens a cache already holds.
    """
    new, mask = input_ids.shape[1], attention_mask.long()
    return {
        "input_ids": input_ids.masked_fill(mask[:, -new:] == 0, 0),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - mask)[:, -new:],
    }


def response_inputs(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int, samples: int
) -> tuple[dict[str, torch.Tensor], int | torch.Tensor]:
    """What a model reads for contexts with responses, and which of its states predict a response's tokens.

    Args as in [`ActorCritic.forward`]. The second result is T, for the last T slots, or their indices `[K T]`.
    """
    if samples > 1:
        return behind_contexts(input_ids, attention_mask, response_length, samples)
    return model_inputs(input_ids[:, :-1], attention_mask[:, :-1]), response_length


def response_logits(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_length: int,
    samples: int = 1,
) -> torch.Tensor:
    """`[B K, T, V]` logits of a causal model that predict the tokens of the responses; args as in `ActorCritic`."""
    inputs, keep = response_inputs(input_ids, attention_mask, response_length, samples)
    logits = model(**as_read(model, inputs), logits_to_keep=keep, use_cache=False).logits
    return logits.view(len(input_ids) * samples, response_length, -1)


def as_read(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`inputs` with a mask that eager attention, which would add the bits themselves, can add."""
    mask = inputs["attention_mask"]
    if mask.dim() == 2 or model.config.get_text_config()._attn_implementation != "eager":
        return inputs
    return {**inputs, "attention_mask": additive_mask(mask, model.dtype)}


def _load_weights(model: PreTrainedModel, path: str | os.PathLike) -> None:
    if is_peft_model(model):
        name = model.active_adapter
        adapter = load_peft_weights(str(_adapter_folder(model, path)), device="cpu")
        if has_parts(model):
            adapter = in_parts_like(adapter, get_peft_model_state_dict(model, adapter_name=name))
        set_peft_model_state_dict(model, adapter, adapter_name=name)
        return
    loaded = type(model).from_pretrained(path).state_dict()
    model.load_state_dict(in_parts_like(loaded, model.state_dict()))


def _below(prefix: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries whose names begin with `prefix`, which is cut off."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
