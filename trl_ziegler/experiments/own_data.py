"""The two trainers on one's own data and models, for `recipes/reward.py` and `recipes/ppo.py`."""

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, get_peft_config

from ..ppo_config import ZieglerPPOConfig
from ..ppo_trainer import ZieglerPPOTrainer
from ..preference_data import tokenize_prompt
from ..reward_model import load_reward_model, normalize_reward_model
from ..reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer
from ..reward_wrapper import RewardFunction
from ..tasks import Task
from .data import load_rows
from .generation import Generator
from .recipe import use_cores


@dataclass
class RewardScriptArguments:
    """Arguments of `recipes/reward.py` beside the trainer's own."""

    dataset_name: str = field(metadata={"help": "Labels: file, saved dataset or hub id."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out labels."})
    normalization_samples: int = field(
        default=256, metadata={"help": "Responses of the start model to normalise over; 0 leaves the model as it is."}
    )
    response_length: int = field(default=24, metadata={"help": "Tokens of each of those responses."})
    temperature: float = field(default=0.7, metadata={"help": "Their sampling temperature."})
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads of torch on a CPU; default all cores."})


@dataclass
class PolicyScriptArguments:
    """Arguments of `recipes/ppo.py` beside the trainer's own."""

    dataset_name: str = field(metadata={"help": "Prompts: file, saved dataset or hub id."})
    reward: str = field(metadata={"help": "Reward model (folder or hub id), or a function as module:name."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "Held-out prompts."})
    cpu_threads: int | None = field(default=None, metadata={"help": "Threads of torch on a CPU; default all cores."})


def train_reward_model(script: RewardScriptArguments, args: BestOfKRewardConfig, model: ModelConfig) -> None:
    """Train, evaluate if there are held-out labels, normalise, save; continue a run that was interrupted."""
    use_cores(script.cpu_threads)
    rows = load_rows(script.dataset_name)
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
    trainer = BestOfKRewardTrainer(
        model=load_reward_model(model.model_name_or_path, seed=args.seed),
        args=args,
        train_dataset=rows,
        eval_dataset=None if script.eval_dataset_name is None else load_rows(script.eval_dataset_name),
        processing_class=tokenizer,
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or get_last_checkpoint(args.output_dir))
    if script.eval_dataset_name is not None:
        trainer.accelerator.print(trainer.evaluate())
    if script.normalization_samples:
        normalize_reward_model(
            trainer.model, *_start_samples(script, model.model_name_or_path, tokenizer, rows, args.seed)
        )
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Reward model: {args.output_dir}")


def train_policy(script: PolicyScriptArguments, args: ZieglerPPOConfig, model: ModelConfig) -> None:
    """Train and save; continue a run that was interrupted."""
    use_cores(script.cpu_threads)
    trainer = ZieglerPPOTrainer(
        args=args,
        processing_class=AutoTokenizer.from_pretrained(model.model_name_or_path),
        model=model.model_name_or_path,
        reward_model=load_reward(script.reward),
        train_dataset=load_rows(script.dataset_name),
        eval_dataset=None if script.eval_dataset_name is None else load_rows(script.eval_dataset_name),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or get_last_checkpoint(args.output_dir))
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Policy: {args.output_dir}")


def load_reward(name: str) -> RewardFunction:
    """A reward model by path or id, or a function by `module:name`.

    Raises `ValueError` where the module has no such function.
    """
    module, colon, function = name.partition(":")
    if not colon:
        return load_reward_model(name)
    loaded = getattr(importlib.import_module(module), function, None)
    if not callable(loaded):
        raise ValueError(f"`reward` is '{name}', but the module {module} has no function '{function}'.")
    return loaded


def _start_samples(
    script: RewardScriptArguments, path: str, tokenizer: Any, rows: Dataset, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """This process's share of the start model's full, uncut responses to the data's own prompts."""
    if "prompt" not in rows.column_names:
        raise ValueError(
            f"`{script.dataset_name}` has no `prompt` column to sample responses to; add it, or pass "
            "`--normalization_samples 0`."
        )
    state = PartialState()
    prompts = rows["prompt"][: script.normalization_samples][state.process_index :: state.num_processes]
    queries = [tokenize_prompt(tokenizer, prompt) for prompt in prompts]
    task = Task("normalization", script.response_length, temperature=script.temperature).bind(tokenizer)
    start = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    sampler = Generator(start, task, seed=seed + state.process_index, batch_size=64)
    return queries, sampler.sample(queries).responses.tolist()
