"""What a run on one's own data is made with, kept beside its checkpoints, so that no other run takes them for its own.

`settings.json` in the output directory holds what the result depends on: settings of the method and the optimiser, the
adapter, and name and content of models and data. What may change between two calls is left out: how long the run is,
how it is logged, saved, evaluated, and fitted into memory. A function of rewards counts by its name, since one that
failed in the middle of a run is mended and the run goes on.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from .pipeline import SETTINGS, hash_of, read_json, write_json

logger = get_logger(__name__)

OF_THE_OPTIMISER = frozenset(
    {
        "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed", "fp16", "gradient_accumulation_steps",
        "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "neftune_noise_alpha", "optim",
        "optim_args", "per_device_train_batch_size", "seed", "warmup_ratio", "warmup_steps", "weight_decay",
    }
)  # fmt: skip
"""Of `TrainingArguments`; of its many other fields none changes what is learned."""

FREE = frozenset(
    {
        "activation_offloading", "batch_size", "cache_implementation", "dataset_num_proc", "label_origin",
        "local_batch_size", "local_mini_batch_size", "local_rollout_forward_batch_size", "micro_batch_size",
        "mini_batch_size", "num_sample_generations", "num_total_batches", "pad_to_multiple_of", "rollout_dir",
        "shared_prefix", "total_episodes", "world_size",
    }
)  # fmt: skip
"""Of the trainers' own fields; all others count."""

SHOWN = 3
"""Differences that a refusal names."""


def settings_of(args: TrainingArguments) -> dict[str, Any]:
    """The fields of a trainer's configuration that its result depends on."""
    names = {item.name for item in fields(args)}
    own = names - {item.name for item in fields(TrainingArguments)} - FREE
    return {name: getattr(args, name) for name in sorted(own | (names & OF_THE_OPTIMISER))}


def model_input(name: str) -> dict[str, str]:
    """Name and content of a model in a folder; a hub id, or a function, is its own content."""
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name, "content": name}
    patterns = ("*.safetensors", "pytorch_model*.bin", "config.json", "adapter_config.json", "tokenizer.json")
    files = sorted(file for pattern in patterns for file in folder.glob(pattern))
    return {"name": name, "content": hash_of({file.name: _digest(file) for file in files})}


def data_input(name: str, rows: Dataset) -> dict[str, str]:
    """Name and content of data."""
    return {"name": name, "content": hash_of([hash_of(batch) for batch in rows.with_format(None).iter(1000)])}


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def keep_settings(
    args: TrainingArguments, checkpoint: str | None, others: Mapping[str, Any], inputs: Mapping[str, dict[str, str]]
) -> None:
    """Write what a run is made with; every process calls it.

    Args:
        args: The trainer's configuration.
        checkpoint: What the run takes up. Unless the user has named it, this has to be the run that made it.
        others: Further settings by name, plain values.
        inputs: Models and data by the argument that gives them.

    Raises:
        ValueError: the checkpoint is another run's.
    """
    file = Path(args.output_dir, SETTINGS)
    own = json.loads(json.dumps({"settings": {**others, **settings_of(args)}, "inputs": dict(inputs)}, default=str))
    former = read_json(file)
    PartialState().wait_for_everyone()  # all have looked before one writes
    if checkpoint is not None and args.resume_from_checkpoint is None:
        if former is None:
            logger.warning(
                f"{args.output_dir} has checkpoints, but no {SETTINGS}; they are taken for those of this run."
            )
        else:
            _require_same(args.output_dir, former, own)
    if PartialState().is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, own)


def _require_same(output_dir: str, former: dict[str, Any], own: dict[str, Any]) -> None:
    found = [
        f"`{name}` was {former['settings'].get(name)!r} and is {new!r}"
        for name, new in own["settings"].items()
        if former["settings"].get(name) != new
    ]
    for name, new in own["inputs"].items():
        old = former["inputs"].get(name, {"name": None, "content": None})
        if old["content"] == new["content"]:
            continue
        same = f"`{name}` is {new['name']!r} as before, but its content has changed"
        found.append(same if old["name"] == new["name"] else f"`{name}` was {old['name']!r} and is {new['name']!r}")
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(
            f"{output_dir} holds checkpoints of a run with other settings: {'; '.join(found[:SHOWN])}{more}. Give "
            "another `output_dir` or, to go on from one all the same, its path as `resume_from_checkpoint`."
        )


def refuse_shorter_run(trainer: Trainer) -> None:
    """`ValueError` where the checkpoint that was resumed lies beyond the end of this run; before anything is saved."""
    done, planned = trainer.state.global_step, trainer.state.max_steps
    if done > planned:
        raise ValueError(
            f"{trainer.args.output_dir} has been trained for {done} optimiser steps, more than the {planned} of these "
            "settings; give another `output_dir`, or a run at least as long."
        )
