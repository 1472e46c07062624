"""The two trainers on one's own data and models, for `recipes/reward.py` and `recipes/ppo.py`."""

import importlib
import os
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config

from ..ppo_checkpoints import newest_checkpoint
from ..ppo_config import ZieglerPPOConfig
from ..ppo_trainer import ZieglerPPOTrainer
from ..preference_data import tokenize_prompt
from ..reward_model import load_reward_model, normalize_reward_model
from ..reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer
from ..reward_wrapper import RewardFunction
from ..tasks import Task
from .data import load_rows
from .generation import Generator
from .recipe import start_processes

MODEL_OPTIONS = ("model_name_or_path", "lora_", "use_peft", "use_rslora", "use_dora")


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


def script_parser(script_arguments: type, config: type) -> TrlParser:
    """The parser of a script: its own arguments, the trainer's, the model's.

    Without an accelerator `use_cpu` is on, or the library would leave each of several processes to itself.
    """
    parser = TrlParser((script_arguments, config, ModelConfig))
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())
    return parser


def train_reward_model(script: RewardScriptArguments, args: BestOfKRewardConfig, model: ModelConfig) -> None:
    """Train, evaluate if there are held-out labels, normalise, save; continue a run that was interrupted."""
    check_model_options(model)
    start_processes(script.cpu_threads)
    rows = load_rows(script.dataset_name)
    if script.normalization_samples and "prompt" not in rows.column_names:
        raise ValueError(
            f"`{script.dataset_name}` has no `prompt` column to sample responses to; add it, or pass "
            "`--normalization_samples 0`."
        )
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
    trainer = BestOfKRewardTrainer(
        model=load_reward_model(model.model_name_or_path, seed=args.seed),
        args=args,
        train_dataset=rows,
        eval_dataset=None if script.eval_dataset_name is None else load_rows(script.eval_dataset_name),
        processing_class=tokenizer,
        # `ModelConfig` takes every model for a causal one, which a reward model is not.
        peft_config=get_peft_config(replace(model, lora_task_type="SEQ_CLS")),
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
    check_model_options(model)
    start_processes(script.cpu_threads)
    trainer = ZieglerPPOTrainer(
        args=args,
        processing_class=AutoTokenizer.from_pretrained(model.model_name_or_path),
        model=model.model_name_or_path,
        reward_model=load_reward(script.reward),
        train_dataset=load_rows(script.dataset_name),
        eval_dataset=None if script.eval_dataset_name is None else load_rows(script.eval_dataset_name),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or newest_checkpoint(args.output_dir))
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"Policy: {args.output_dir}")


def check_model_options(model: ModelConfig) -> None:
    """Refuse by name what these scripts do not read of `ModelConfig`: everything but the model and its adapter."""
    if model.model_name_or_path is None:
        raise ValueError("`model_name_or_path` is missing; give the folder or hub id of the start model.")
    for item in fields(ModelConfig):
        value = getattr(model, item.name)
        if not item.name.startswith(MODEL_OPTIONS) and value != item.default:
            raise ValueError(
                f"`{item.name}` is {value!r}, which this script does not use: weights are loaded in float32 (for "
                "mixed precision there is `--bf16`). Leave it out, or call the trainer from Python with a loaded "
                "model."
            )


def load_reward(name: str) -> RewardFunction:
    """A reward model by path or id, or a function by `module:name`, the module in the working directory or installed.

    Raises `ValueError` where there is no such module, or no such function in it.
    """
    module, colon, function = name.partition(":")
    if not colon:
        return load_reward_model(name)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a script has its own folder there instead
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


def _start_samples(
    script: RewardScriptArguments, path: str, tokenizer: Any, rows: Dataset, seed: int
) -> tuple[list[list[int]], list[list[int]]]:
    """This process's share of the start model's full, uncut responses to the data's own prompts."""
    state = PartialState()
    prompts = rows["prompt"][: script.normalization_samples][state.process_index :: state.num_processes]
    queries = [tokenize_prompt(tokenizer, prompt) for prompt in prompts]
    task = Task("normalization", script.response_length, temperature=script.temperature).bind(tokenizer)
    start = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    sampler = Generator(start, task, seed=seed + state.process_index, batch_size=64)
    return queries, sampler.sample(queries).responses.tolist()
