"""What `ZieglerPPOTrainer` refuses before work starts, and what it asserts on the first update."""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from accelerate.logging import get_logger
from accelerate.utils import FullyShardedDataParallelPlugin, is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .ppo_config import ZieglerPPOConfig
from .ppo_models import base, check_other_models, described
from .reward_model import is_normalized
from .reward_wrapper import KLEntropyReward, check_call, function_name
from .rollout import Rollout
from .sharding import local_part
from .tasks import BoundTask, Task

logger = get_logger(__name__)

LEAST_VALID = 0.1


def list_of(value: Any) -> list:
    """`value` itself if it is a list, else a list of it."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def tokenizers_of_rewards(given: Any, count: int) -> list[PreTrainedTokenizerBase | None]:
    """One entry for each of `count` rewards; `ValueError` for another number."""
    tokenizers = [None] * count if given is None else list_of(given)
    if len(tokenizers) != count:
        raise ValueError(
            f"`reward_processing_classes` has {len(tokenizers)} entries for {count} reward functions; give one for "
            "each, None where there is no model with a tokenizer of its own."
        )
    return tokenizers


def check_padding(attention_mask: torch.Tensor) -> None:
    """`ValueError` where a row of contexts `[B, Q]` does not end in a token: a response would follow its padding."""
    if not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "`data_collator` pads on the right (a row of `attention_mask` ends in 0), and the response would follow "
            "the padding; pad on the left (`padding_side='left'`), or leave it out."
        )


def check_columns(reward: KLEntropyReward, name: str, data: Any) -> None:
    """`ValueError` where a reward function needs a column that a dataset, or one of a dict of them, has not."""
    if isinstance(data, dict):
        for key, part in data.items():
            check_columns(reward, f"{name}[{key!r}]", part)
    if not isinstance(data, Dataset):
        return  # a stream need not know its columns
    columns = dict.fromkeys(set(data.column_names) - {"prompt", "input_ids", "attention_mask"})
    for function, called in zip(reward.functions, reward.names, strict=True):
        if not isinstance(function, torch.nn.Module):
            check_call(function, called, columns, f"`{name}`")


def build_task(args: ZieglerPPOConfig, task: Task | None, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The task as given, or the one that the config's stop, length and temperature fields describe (`eos` regime)."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(f"`processing_class` is {described(tokenizer)}; give the policy's tokenizer.")
    if task is not None and not isinstance(task, Task):
        raise ValueError(f"`task` is {described(task)}; give a `Task`, such as `trl_ziegler.TLDR`.")
    if task is not None:
        defaults = {name: type(args).__dataclass_fields__[name].default for name in (
            "response_length", "temperature", "stop_token", "stop_token_id", "missing_eos_penalty"
        )}  # fmt: skip
        twice = [name for name, default in defaults.items() if getattr(args, name) != default]
        if twice:
            raise ValueError(f"`{twice[0]}` is set in the config and by the task '{task.name}'; give it once.")
        return task
    penalty = args.missing_eos_penalty
    return Task(
        name="custom",
        regime="eos",
        response_length=args.response_length,
        temperature=args.temperature,
        truncate_token=args.stop_token or args.stop_token_id,
        penalty=None if penalty is None else -penalty,
        penalty_rule="add",
    )


def check_setup(
    policy: PreTrainedModel,
    ref_model: PreTrainedModel | None,
    value_model: PreTrainedModel | None,
    rewards: Sequence[Any],
    own_tokenizers: Sequence[PreTrainedTokenizerBase | None],
    args: ZieglerPPOConfig,
    train_dataset: Any,
) -> None:
    """Refuse what cannot train, each with one sentence."""
    if not isinstance(args, ZieglerPPOConfig):
        raise ValueError(f"`args` is a {type(args).__name__}; give a `ZieglerPPOConfig`, as the first argument.")
    _check_data(train_dataset, args)
    check_other_models(ref_model, value_model, list(rewards))
    if ref_model is policy:
        raise ValueError("`ref_model` is the same object as `model`; pass a copy, or None to have one made.")
    if not rewards or rewards[0] is None:
        raise ValueError("`reward_model` is missing; give a model, a callable, or a list of these.")
    for reward in rewards:
        if reward is value_model or reward is policy or reward is ref_model:
            raise ValueError(
                "A reward model is the same object as another model of the trainer and would change while training; "
                "pass a copy (`copy.deepcopy`)."
            )
        if not isinstance(reward, torch.nn.Module) and not callable(reward):
            raise ValueError(
                f"`reward_model` holds {reward!r}; give a model (`load_reward_model` loads one from a path) or a "
                "callable."
            )
    _check_scalar_models([r for r in [*rewards, value_model] if isinstance(r, torch.nn.Module)])
    _check_vocabularies(policy, ref_model, value_model, rewards, own_tokenizers)
    _check_adapters(policy, ref_model, args)
    if args.value_init == "reward":
        _check_value_init(value_model, rewards, own_tokenizers)


def _check_data(train_dataset: Any, args: ZieglerPPOConfig) -> None:
    if not isinstance(train_dataset, (Dataset, IterableDataset)):
        raise ValueError(
            f"`train_dataset` is a {type(train_dataset).__name__}; give a `datasets.Dataset` or `IterableDataset`."
        )
    if isinstance(train_dataset, Dataset) and "attention_mask" in train_dataset.column_names:
        padded = next((row for row, mask in enumerate(train_dataset["attention_mask"]) if not all(mask)), None)
        if padded is not None:
            raise ValueError(
                f"Row {padded} of `train_dataset` is padded (its `attention_mask` has zeros) and the padding would be "
                "read as text; tokenise without it, the collator pads on the left."
            )
    if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0 and args.total_episodes is None:
        raise ValueError(
            "`train_dataset` is a stream, whose length nobody knows; give `max_steps` (updates) or `total_episodes`."
        )
    if isinstance(train_dataset, IterableDataset) and args.dataloader_num_workers > 1:
        raise ValueError(
            f"`dataloader_num_workers` is {args.dataloader_num_workers}, and each worker would read the whole stream "
            "`train_dataset`; use at most 1."
        )


def warn_of_unnormalized(rewards: Sequence[Any]) -> None:
    """Warn of a reward model without a normalisation record: beta is in units of its standard deviation."""
    for reward in rewards:
        if isinstance(reward, torch.nn.Module) and not is_normalized(reward):
            logger.warning(
                f"The reward model {function_name(reward)} was never normalised, so its scale is arbitrary and "
                "`kl_coef` has no known unit; see `normalize_reward_model`."
            )


def warn_of_whole_value_model(policy: PreTrainedModel, value_model: PreTrainedModel | None) -> None:
    """Warn of a value network that trains as a whole beside a policy of which an adapter does."""
    if value_model is None or not is_peft_model(policy) or not all(p.requires_grad for p in value_model.parameters()):
        return
    logger.warning(
        f"`value_model` trains all of its {sum(p.numel() for p in value_model.parameters()):,} weights beside the "
        "policy's adapter; leave it out (`value_init` has two others), or freeze what shall stay."
    )


def warn_of_invalid(valid_share: float) -> None:
    """Warn once of a stop token that hardly any response holds: their scores are then the penalty (C6)."""
    if valid_share < LEAST_VALID:
        logger.warning_once(
            f"Less than {LEAST_VALID:.0%} of the responses of a rollout hold the token that ends them, so the score "
            "of the others is the penalty or changed by it; check `stop_token` (of a task `truncate_token` and "
            "`truncate_after`) and `response_length`."
        )


def _check_scalar_models(models: Sequence[PreTrainedModel]) -> None:
    for model in models:
        if model.config.num_labels != 1 or "score" not in dict(base(model).named_children()):
            raise ValueError(
                f"{type(base(model)).__name__} with {model.config.num_labels} labels cannot serve as reward or value "
                "model; use a sequence classifier with num_labels=1 whose head is `score`, or wrap it in a callable."
            )


def reading_policys_ids(
    rewards: Sequence[Any], own_tokenizers: Sequence[PreTrainedTokenizerBase | None]
) -> list[PreTrainedModel]:
    """The reward models without a tokenizer of their own."""
    pairs = zip(rewards, own_tokenizers, strict=True)
    return [reward for reward, own in pairs if isinstance(reward, torch.nn.Module) and own is None]


def context_limit(models: Sequence[PreTrainedModel | None]) -> int:
    """Most tokens that each of these models can read; without end where none of them numbers its positions."""
    configs = [model.config.get_text_config() for model in models if model is not None]
    return min(getattr(config, "max_position_embeddings", None) or sys.maxsize for config in configs)


def _check_value_init(
    value_model: PreTrainedModel | None,
    rewards: Sequence[Any],
    own_tokenizers: Sequence[PreTrainedTokenizerBase | None],
) -> None:
    """`value_init="reward"` makes the value network of the first reward model."""
    if value_model is not None:
        raise ValueError("`value_init` is 'reward' and `value_model` is given; give one of them.")
    if not isinstance(rewards[0], torch.nn.Module):
        raise ValueError(
            f"`value_init` is 'reward', but the first reward is the function {function_name(rewards[0])}; put a "
            "reward model first, or use 'zero'."
        )
    if own_tokenizers[0] is not None:
        raise ValueError(
            "`value_init` is 'reward', but the first reward model has a tokenizer of its own, and a value network "
            "reads the policy's ids; use 'zero'."
        )


def _check_vocabularies(policy, ref_model, value_model, rewards, own_tokenizers) -> None:
    size = policy.config.get_text_config().vocab_size
    for model in [ref_model, value_model, *reading_policys_ids(rewards, own_tokenizers)]:
        if model is not None and model.config.get_text_config().vocab_size != size:
            raise ValueError(
                f"{type(base(model)).__name__} has {model.config.get_text_config().vocab_size} ids, the policy "
                f"{size}; they read the same ids. A reward model of another tokenizer needs "
                "`reward_processing_classes`."
            )


def _check_adapters(policy: PreTrainedModel, ref_model: PreTrainedModel | None, args: ZieglerPPOConfig) -> None:
    """Without `ref_model` the reference is the policy with its adapters off: only right for a fresh adapter."""
    if args.ref_adapter_name is not None and (ref_model is not None or not is_peft_model(policy)):
        other = "`model` has no adapters" if ref_model is None else "`ref_model` is given, too"
        raise ValueError(f"`ref_adapter_name` is {args.ref_adapter_name!r}, but {other}; leave it out.")
    if not is_peft_model(policy) or ref_model is not None or args.ref_adapter_name is not None:
        return
    trained = [name for name, p in policy.named_parameters() if "lora_B" in name and bool(p.detach().any())]
    if trained:
        raise ValueError(
            "`model` has a trained adapter and `ref_model` is None, so switching adapters off would not give the "
            "start model; merge the adapter first, pass `ref_model`, or name a frozen copy in `ref_adapter_name`."
        )


def check_stop_token(task: BoundTask, policy: PreTrainedModel) -> None:
    """Refuse a stop token that the tokenizer has and the policy's vocabulary has not: no response could ever end."""
    size = policy.config.get_text_config().vocab_size
    if task.truncate_id is not None and task.truncate_id >= size:
        raise ValueError(
            f"The stop token id {task.truncate_id} is outside the policy's {size} ids, so no response could end; "
            "resize the policy's embeddings or choose another."
        )


def check_sharding(model: torch.nn.Module, fsdp: FullyShardedDataParallelPlugin | None, deepspeed: bool) -> None:
    """Refuse a launch that shards the model in a way in which it cannot be sampled, looked at or loaded.

    DeepSpeed makes its optimiser step within the backward pass, before which nobody can look at the gradients.
    """
    if deepspeed:
        raise ValueError(
            "DeepSpeed is on, but PPO looks at gradients before each step, which DeepSpeed makes within the backward "
            "pass; launch with FSDP 2 (recipes/accelerate/fsdp.yaml) or DDP (recipes/accelerate/ddp.yaml)."
        )
    if fsdp is None:
        return
    if fsdp.fsdp_version != 2:
        raise ValueError(
            f"`fsdp_version` is {fsdp.fsdp_version}, which puts parts of several parameters into one; PPO needs 2, as "
            "in recipes/accelerate/fsdp.yaml."
        )
    if fsdp.cpu_ram_efficient_loading:
        raise ValueError(
            "`fsdp_cpu_ram_efficient_loading` is on, with which only one process loads what others read, but the "
            "reference and the reward models are whole on each; set it to false."
        )
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad})
    if fsdp.mixed_precision_policy is None and len(dtypes) > 1:
        raise ValueError(
            f"Policy and value function train parameters in {' and '.join(dtypes)}, which FSDP does not put together; "
            "load the policy in float32, with `bf16` to compute in bfloat16."
        )


def check_sign_of_reward(shape: Any, scored: Any, logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> None:
    """Raising the score must raise R, raising log pi above log rho must not raise it (section 4.4 of the paper)."""
    total = shape(scored, logprobs, ref_logprobs).rewards.sum()
    higher = scored.scores + scored.scores.abs().max().clamp(min=1)  # 1 would be lost beside a score of a billion
    if not shape(scored._replace(scores=higher), logprobs, ref_logprobs).rewards.sum() > total:
        raise RuntimeError("A higher score gives a lower reward R; the reward rule has its sign wrong.")
    if shape(scored, logprobs + 1, ref_logprobs).rewards.sum() > total:
        raise RuntimeError("A larger log(pi/rho) gives a higher reward R; the KL penalty has its sign wrong.")


def check_start(
    rollout: Rollout, new_logprobs: torch.Tensor, kl: float | None, zero_head: bool, exact: bool = True
) -> None:
    """Before the first step: the ratio is 1, KL(pi, rho) is 0, the zero-initialised value is 0.

    Args:
        rollout: The first micro-batch, with its sampling log-probabilities.
        new_logprobs: `[b, T]`, the training pass's.
        kl: Mean KL of the rollout in nats per response, where the reference is a copy of the policy; else `None`.
        zero_head: Whether the value head was made here.
        exact: Whether all is computed in float32. Where it is not, a token may be off by much, as padding changes how
            its states are rounded, and only the mean tells rounding from another model.
    """
    off = (new_logprobs.detach() - rollout.logprobs)[rollout.mask].abs()
    worst, allowed = (float(off.max()), 1e-3) if exact else (float(off.mean()), 5e-2)
    if not worst < allowed:
        raise RuntimeError(
            f"Before the first step the log-probability ratio is off by {worst:.1e} {'' if exact else 'in the mean '}"
            f"(allowed {allowed:.0e}): sampling and training do not see the same model. Look for dropout, noise, or a "
            f"forward pass that depends on padding{'' if exact else '; float32 weights round less'}."
        )
    if kl is not None and not abs(kl) < allowed:
        raise RuntimeError(
            f"Before the first step KL(pi, rho) is {kl:.2e} nats although the reference is a copy of the policy: the "
            "two are not evaluated alike."
        )
    if zero_head and bool(rollout.values.any()):
        raise RuntimeError("Before the first step the zero-initialised value head gives values other than 0.")


def first_non_finite_row(mask: torch.Tensor, *tensors: torch.Tensor) -> int | None:
    """The first row where one of the tensors `[b, T]` is not finite under `mask [b, T]`, or `None`."""
    finite = torch.stack([tensor.detach().isfinite() for tensor in tensors]).all(0)
    bad = (~finite & mask).any(1)
    return int(bad.nonzero()[0]) if bad.any() else None


def non_finite_gradients(model: torch.nn.Module) -> list[str]:
    """Names of the parameters whose gradient, or this process's part of it, holds a NaN or an infinity.

    Processes are not asked: a norm of shards would be agreed upon with a message for each parameter.
    """
    named = [(name, local_part(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    norms = torch._foreach_norm([grad for _, grad in named]) if named else ()
    if not norms or bool(torch.stack([norm.isfinite() for norm in norms]).all()):  # one look at the device
        return []
    return [name for name, grad in named if not grad.isfinite().all()]


def raise_non_finite(
    what: str, tokenizer: PreTrainedTokenizerBase, task: BoundTask, rollout: Rollout, row: int
) -> NoReturn:
    """`FloatingPointError` that names the prompt and the response in `row`."""
    episode = rollout.episode(row)
    query = task.query_of(episode.context_ids[episode.context_mask.bool()].tolist())
    response = rollout.responses[row][rollout.mask[row]]
    raise FloatingPointError(
        f"The {what} of the prompt {tokenizer.decode(query)!r} and the response {tokenizer.decode(response)!r} is not "
        "finite; the run stops before the weights change."
    )
