"""A small PPO run as a fixture."""

import pytest
from datasets import Dataset
from ppo_runs import PROMPTS, TASK, letter_e

from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer

ARGUMENTS = (
    "model", "ref_model", "reward_model", "value_model", "train_dataset", "peft_config", "task", "callbacks",
    "pretraining_dataset",
)  # fmt: skip


def three_updates_of_prompts() -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS * 3, "number": list(range(12))})


@pytest.fixture
def train(tmp_path, tokenizer, make_causal_lm):
    """`train(**config fields)` runs a small job and returns the trainer, which gets `model`, `task` and so on."""

    def run(resume=None, evaluate_with=None, start=True, **fields):
        options = {name: fields.pop(name) for name in ARGUMENTS if name in fields}
        settings = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "num_ppo_epochs": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **fields,
        }
        if "task" not in options:
            options["task"] = TASK
        trainer = ZieglerPPOTrainer(
            ZieglerPPOConfig(**settings),
            tokenizer,
            options.pop("model", None) or make_causal_lm(),
            reward_model=options.pop("reward_model", letter_e),
            train_dataset=options.pop("train_dataset", None) or three_updates_of_prompts(),
            eval_dataset=evaluate_with,
            **options,
        )
        if start:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run
