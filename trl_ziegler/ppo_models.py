"""The networks and the optimiser that `ZieglerPPOTrainer` is given: what they must be, and the policy made ready."""

import inspect
import os
from typing import Any

import torch
from accelerate.utils import is_peft_model
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from ._files import found_model

MODELS = (PreTrainedModel, PeftModel)


def load_policy(model: Any, peft_config: Any) -> PreTrainedModel:
    """The policy: loaded in float32 if `model` is a path, in a fresh adapter if there is a `peft_config`.

    Raises `ValueError` for what is no causal language model, and for one of which nothing trains.
    """
    if isinstance(model, (str, os.PathLike)):
        with found_model(model, "model") as path:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if not isinstance(model, MODELS):
        raise ValueError(
            f"`model` is {described(model)}; give a causal language model of transformers or the path of one (the "
            "order is args, processing_class, model)."
        )
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise ValueError(f"`peft_config` is {described(peft_config)}; give a `LoraConfig` or another of PEFT's.")
    if peft_config is not None and is_peft_model(model):
        raise ValueError("`model` has an adapter already and `peft_config` is given; leave that out.")
    _require_causal("model", model)
    policy = model if peft_config is None else get_peft_model(model, peft_config)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            "No parameter of `model` trains: all are frozen, or its adapter was loaded without `is_trainable=True`."
        )
    if any(parameter.dtype == torch.float16 for parameter in trained):
        raise ValueError(
            "`model` trains weights in float16, in which the optimiser's steps overflow or are lost; load it with "
            "`dtype=torch.float32`, and set `bf16` to compute in bfloat16."
        )
    return policy


def check_other_models(ref_model: Any, value_model: Any, rewards: list[Any]) -> None:
    """`ValueError` where a model beside the policy is none, or not of the kind that it is given as."""
    for name, model in (("ref_model", ref_model), ("value_model", value_model)):
        if model is not None and not isinstance(model, MODELS):
            swapped = callable(model) and not isinstance(model, torch.nn.Module)
            hint = "a reward function is `reward_model`" if swapped else "load it, and give the model itself"
            raise ValueError(f"`{name}` is {described(model)}; {hint}.")
    if ref_model is not None:
        _require_causal("ref_model", ref_model)
    for reward in rewards:
        if isinstance(reward, torch.nn.Module) and not isinstance(reward, MODELS):
            raise ValueError(
                f"`reward_model` holds {described(reward)}; give a model of transformers itself, or wrap it in a "
                "function of prompts and completions."
            )


def complete_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
    """Add the value function that the trainer made to a given optimiser; one of other weights is refused."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not any(id(parameter) in held for name, parameter in trained.items() if name.startswith("policy.")):
        raise ValueError(
            "The optimizer of `optimizers` holds none of the policy's trained weights; make it of those that train, "
            "after an adapter is put on (`get_peft_model`)."
        )
    of_value = [parameter for name, parameter in trained.items() if not name.startswith("policy.")]
    optimizer.param_groups[0]["params"] += [parameter for parameter in of_value if id(parameter) not in held]


def described(value: Any) -> str:
    """An argument for an error message: small values as they are, else the type."""
    return repr(value) if value is None or isinstance(value, (str, int, float, bool)) else f"a {type(value).__name__}"


def base(model: PreTrainedModel) -> PreTrainedModel:
    """The model, without its adapter."""
    return model.get_base_model() if is_peft_model(model) else model


def _require_causal(name: str, model: PreTrainedModel) -> None:
    if "logits_to_keep" not in inspect.signature(base(model).forward).parameters:
        raise ValueError(
            f"`{name}` is a {type(base(model)).__name__}, whose forward has no `logits_to_keep`; use a causal "
            "language model of transformers."
        )
