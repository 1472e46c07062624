"""The two trainers on one's own data and models, for `recipes/reward.py` and `recipes/ppo.py`."""

import importlib.util
import json
import math
import os
import random
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from .._files import folder_or_hub_id, found_model
from ..checkpoints import newest_reward_checkpoint
from ..metrics import PairAccuracy
from ..ppo_checkpoints import newest_checkpoint
from ..ppo_checks import context_limit
from ..ppo_config import ZieglerPPOConfig
from ..ppo_trainer import ZieglerPPOTrainer
from ..preference_data import JUDGEMENTS, prepare_preferences
from ..reward_model import load_reward_model, normalize_reward_model, score_token_ids
from ..reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer
from ..reward_wrapper import RewardFunction
from ..tasks import Task
from .data import load_rows
from .generation import Generator
from .recipe import end_processes, start_processes
from .run_settings import data_input, keep_settings, model_input, refuse_shorter_run

MODEL_OPTIONS = ("model_name_or_path", "lora_", "use_peft", "use_rslora", "use_dora")


@dataclass
class RewardScriptArguments:
    """Arguments of `recipes/reward.py` beside the trainer's own."""

    dataset_name: str = field(metadata={"help": "Labels: file, saved dataset or hub id."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out labels."})
    eval_size: float | None = field(
        default=None,
        metadata={"help": "Or the share of the prompts of `dataset_name` to hold out, each with all of its rows."},
    )
    normalization_samples: int = field(
        default=256, metadata={"help": "Responses of the start model to normalise over; 0 leaves the model as it is."}
    )
    response_length: int = field(default=24, metadata={"help": "Tokens of each of those responses."})
    temperature: float = field(default=0.7, metadata={"help": "Their sampling temperature."})
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads of torch on a CPU; default all cores."})

    def __post_init__(self) -> None:
        if self.normalization_samples < 0 or self.normalization_samples == 1:
            raise ValueError(
                f"`normalization_samples` is {self.normalization_samples}; give at least 2 to have a variance, or "
                "0 to leave the normalisation out."
            )
        if self.response_length < 1:
            raise ValueError(f"`response_length` is {self.response_length}; give at least 1 token.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` is {self.temperature}; give a positive number, 1 for the model's own.")
        if self.eval_size is None:
            return
        if self.eval_dataset_name is not None:
            raise ValueError(
                f"`eval_size` is {self.eval_size} and `eval_dataset_name` is '{self.eval_dataset_name}'; give one of "
                "them."
            )
        if not 0 < self.eval_size < 1:
            raise ValueError(f"`eval_size` is {self.eval_size}; give a share of the prompts between 0 and 1.")


@dataclass
class PolicyScriptArguments:
    """Arguments of `recipes/ppo.py` beside the trainer's own."""

    dataset_name: str = field(metadata={"help": "Prompts: file, saved dataset or hub id."})
    reward: str = field(metadata={"help": "Reward model (folder or hub id), or a function as module:name."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out prompts."})
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads of torch on a CPU; default all cores."})


def train_reward_model(script: RewardScriptArguments, args: BestOfKRewardConfig, model: ModelConfig) -> None:
    """Train, evaluate if there are held-out labels, normalise, save; continue a run that was interrupted.

    The checkpoints of a run with other settings are refused ([`keep_settings`]).

    The metrics of the evaluation go to `eval_results.json`, those of ratings (`scores`) with the accuracy on pairs.
    """
    check_model_options(model)
    start_processes(script.cpu_threads)
    rows, held_out = _train_and_held_out(script, args.seed)
    if script.normalization_samples and "prompt" not in rows.column_names:
        raise ValueError(
            f"`{script.dataset_name}` has no `prompt` column to sample responses to; add it, or pass "
            "`--normalization_samples 0`."
        )
    checkpoint = args.resume_from_checkpoint or newest_reward_checkpoint(args.output_dir)
    start, data = model_input(model.model_name_or_path), data_input(script.dataset_name, rows)
    others, inputs = {"eval_size": script.eval_size}, {"model_name_or_path": start, "dataset_name": data}
    keep_settings(args, checkpoint, {**others, **adapter_of(model)}, inputs)
    tokenizer = _tokenizer(model)
    args.label_origin = args.label_origin or f"those of `{Path(script.dataset_name).name}`"
    trainer = BestOfKRewardTrainer(
        model=load_reward_model(model.model_name_or_path, seed=args.seed, without_head="fresh"),
        args=args,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        # `ModelConfig` takes every model for a causal one, which a reward model is not.
        peft_config=get_peft_config(replace(model, lora_task_type="SEQ_CLS")),
    )
    rated = None if held_out is None else _rated(held_out, tokenizer, args)
    samples = _start_samples(script, model.model_name_or_path, tokenizer, trainer.train_dataset, args.seed)
    trainer.train(resume_from_checkpoint=checkpoint)
    refuse_shorter_run(trainer)
    if held_out is not None:
        metrics = trainer.evaluate() | ({} if rated is None else _pair_metrics(trainer, rated))
        trainer.save_metrics("eval", metrics)
        trainer.accelerator.print(metrics)
    if samples is not None:
        trainer.save_model(args.output_dir)  # whatever becomes of the normalisation
        normalize_reward_model(trainer.model, *samples)
    trainer.create_model_card()
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Reward model: {args.output_dir}")
    end_processes(PartialState())


def train_policy(script: PolicyScriptArguments, args: ZieglerPPOConfig, model: ModelConfig) -> None:
    """Train and save; continue a run that was interrupted, but not one with other settings ([`keep_settings`])."""
    check_model_options(model)
    start_processes(script.cpu_threads)
    rows = load_rows(script.dataset_name)
    checkpoint = args.resume_from_checkpoint or newest_checkpoint(args.output_dir)
    start, data = model_input(model.model_name_or_path), data_input(script.dataset_name, rows)
    inputs = {"model_name_or_path": start, "reward": model_input(script.reward), "dataset_name": data}
    keep_settings(args, checkpoint, adapter_of(model), inputs)
    trainer = ZieglerPPOTrainer(
        args=args,
        processing_class=_tokenizer(model),
        model=model.model_name_or_path,
        reward_model=load_reward(script.reward),
        train_dataset=rows,
        eval_dataset=None if script.eval_dataset_name is None else load_rows(script.eval_dataset_name),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    refuse_shorter_run(trainer)
    trainer.create_model_card()
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Policy: {args.output_dir}")
    end_processes(PartialState())


def adapter_of(model: ModelConfig) -> dict[str, Any]:
    """What these scripts read of `ModelConfig` besides the model."""
    read = [item.name for item in fields(ModelConfig) if item.name.startswith(MODEL_OPTIONS)]
    return {name: getattr(model, name) for name in read if name != "model_name_or_path"}


def check_model_options(model: ModelConfig) -> None:
    """Refuse by name what these scripts do not read of `ModelConfig`: everything but the model and its adapter."""
    if model.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing; give the folder or hub id of the start model.")
    folder_or_hub_id(model.model_name_or_path)
    for item in fields(ModelConfig):
        value = getattr(model, item.name)
        default = item.default_factory() if callable(item.default_factory) else item.default
        if item.name.startswith(MODEL_OPTIONS[1:]) and not model.use_peft and value != default:
            raise ValueError(
                f"`{item.name}` is {value!r} without `use_peft`, and the whole model would be trained; add "
                "`--use_peft`, or leave it out."
            )
        if not item.name.startswith(MODEL_OPTIONS) and value != item.default:
            raise ValueError(
                f"`{item.name}` is {value!r}, which this script does not use: weights are loaded in float32 (for "
                "mixed precision there is `--bf16`). Leave it out, or call the trainer from Python with a loaded "
                "model."
            )


def _tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    with found_model(model.model_name_or_path, "model_name_or_path") as path:
        return AutoTokenizer.from_pretrained(path)


def load_reward(name: str) -> RewardFunction:
    """A reward model by path or id, or a function by `module:name`, the module in the working directory or installed.

    Raises `ValueError` where there is no such model, module, or function in it.
    """
    module, colon, function = name.partition(":")
    if not colon:
        _refuse_dot_for_colon(name)
        try:
            return load_reward_model(name, without_head="refuse")
        except OSError as error:
            raise ValueError(
                f"`reward` is '{name}', which is no folder of a model and cannot be loaded from the hub "
                f"({str(error.__cause__ or error).splitlines()[0]}); a function is given as `module:function`."
            ) from None
    _look_in_working_directory()
    try:
        loaded = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports
        raise ValueError(
            f"`reward` is '{name}', but there is no module {error.name}; give `module:function` with a module of the "
            "working directory or an installed one."
        ) from None
    if not callable(loaded):
        raise ValueError(f"`reward` is '{name}', but the module {module} has no function '{function}'.")
    return loaded


def _look_in_working_directory() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a script has its own folder there instead


def _refuse_dot_for_colon(name: str) -> None:
    """Refuse `module.function` by itself, before the hub is asked for it, and waited for."""
    module, dot, function = name.rpartition(".")
    if Path(name).exists() or not (dot and module.replace(".", "").isidentifier() and function.isidentifier()):
        return
    _look_in_working_directory()
    if importlib.util.find_spec(module.partition(".")[0]) is not None:
        raise ValueError(
            f"`reward` is '{name}', which is no folder of a model, but there is a module {module.partition('.')[0]}; "
            f"a function is given as `module:function`: '{module}:{function}'."
        )


def split_by_prompt(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split rows such that no prompt is on both sides: the rest, and the rows of a share of the prompts.

    Args:
        rows: With a `prompt` (text or chat messages) or `prompt_ids`; several rows may have the same one.
        share: Of the prompts, between 0 and 1; rounded to a number of prompts.
        seed: Decides which ones, together with the order of the rows.

    Raises:
        ValueError: no prompts, or so few that a side would be empty.
    """
    column = next((name for name in ("prompt", "prompt_ids") if name in rows.column_names), None)
    if column is None:
        raise ValueError(
            f"`eval_size` is {share}, but the labels have no `prompt` to split by, only {sorted(rows.column_names)}; "
            "add it, or hold rows out yourself and give them as `eval_dataset_name`."
        )
    keys = [json.dumps(prompt) for prompt in rows[column]]
    prompts = list(dict.fromkeys(keys))
    count = round(share * len(prompts))
    if not 0 < count < len(prompts):
        raise ValueError(
            f"`eval_size` is {share}, which holds out {count} of {len(prompts)} prompts and leaves a side empty; give "
            "another share or more prompts."
        )
    chosen = set(random.Random(seed).sample(prompts, count))
    sides: tuple[list[int], list[int]] = ([], [])
    for row, key in enumerate(keys):
        sides[key in chosen].append(row)
    return rows.select(sides[0]), rows.select(sides[1])


def _train_and_held_out(script: RewardScriptArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    rows = load_rows(script.dataset_name)
    if script.eval_size is not None:
        return split_by_prompt(rows, script.eval_size, seed)
    return rows, None if script.eval_dataset_name is None else load_rows(script.eval_dataset_name)


def _rated(held_out: Dataset, tokenizer: Any, args: BestOfKRewardConfig) -> Dataset | None:
    """Tokenised held-out ratings, also those that the loss has no use for; None where it learns from other labels."""
    columns = held_out.column_names
    used = [name for name in JUDGEMENTS[args.loss_type] if name in columns][:1]
    if used != ["scores"] or not {"completions", "completion_ids"} & set(columns):
        return None
    rated = prepare_preferences(
        held_out.remove_columns([name for name in columns if name == "margin"]),  # which is that of a label
        tokenizer,
        loss_type="scalar",
        max_length=args.max_length,
        name="held-out ratings",
    )
    if all(len(set(scores)) == 1 for scores in rated["scores"]):
        raise ValueError(
            f"The {len(rated)} held-out records have the same `scores` throughout, so that no pair is left to measure "
            "on; hold out more prompts, or leave the column out."
        )
    return rated


def _pair_metrics(trainer: BestOfKRewardTrainer, rated: Dataset) -> dict[str, float | int]:
    """`eval_pair_accuracy`, and with that prefix everything else that [`PairAccuracy`] returns."""
    completions = rated["completion_ids"][:]
    counts = [len(of_record) for of_record in completions]
    prompts = rated["prompt_ids"][:]
    rewards = score_token_ids(
        trainer.model,
        [prompt for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)],
        [completion for of_record in completions for completion in of_record],
        batch_size=trainer.args.per_device_eval_batch_size,
    )
    # In memory, because every process comes here and a file would be locked by the first.
    result = PairAccuracy(keep_in_memory=True).compute(
        predictions=[record.tolist() for record in rewards.split(counts)],
        references=rated["scores"][:],
        prompts=[tuple(prompt) for prompt in prompts],
    )
    return {f"eval_pair_{key}" if key == "accuracy" else f"eval_pair_accuracy_{key}": x for key, x in result.items()}


def _start_samples(
    script: RewardScriptArguments, path: str, tokenizer: Any, records: Dataset, seed: int
) -> tuple[list[list[int]], list[list[int]]] | None:
    """This process's share of the start model's full, uncut responses to the data's own prompts; None without any.

    Drawn before anything is trained, so that what cannot be sampled costs no trained model.
    """
    if not script.normalization_samples:
        return None
    state = PartialState()
    prompts = records["prompt_ids"][: script.normalization_samples]
    if len(prompts) < 2:
        raise ValueError(
            f"`{script.dataset_name}` has {len(prompts)} record, over which no variance can be normalised; give more, "
            "or `--normalization_samples 0`."
        )
    start = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    longest, limit = max(map(len, prompts)), context_limit([start])
    if longest + script.response_length > limit:
        raise ValueError(
            f"`response_length` is {script.response_length}, which behind a prompt of {longest} tokens is more than "
            f"the {limit} that the start model reads; lower it, or the longest records by `max_length`."
        )
    task = Task("normalization", script.response_length, temperature=script.temperature).bind(tokenizer)
    sampler = Generator(start, task, seed=seed + state.process_index, batch_size=64)
    queries = prompts[state.process_index :: state.num_processes]
    return queries, sampler.sample(queries).responses.tolist()
