"""A small PPO run, for the tests of the method's rules and invariances; loaded through `pytest_plugins`."""

import pytest
from datasets import Dataset

from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.tasks import Task

TASK = Task("t", 6, temperature=0.7, truncate_token=".", truncate_after=3, penalty=-1.0, suffix=" and")
PROMPTS = [" the cat was", " a dog saw it. the", " she", " they found the old house in the garden and"]
OF_THE_TRAINER = ("reward_model", "data_collator", "task", "callbacks")


def letter_e(prompts, completions, **columns):
    return [float(text.count("e")) for text in completions]


@pytest.fixture
def small_ppo(tmp_path, tokenizer, make_causal_lm):
    """`small_ppo(**fields)`: a run of three updates of four episodes, trained unless `start=False`.

    Fields are those of the config, and the trainer's `reward_model`, `data_collator`, `task`, `callbacks`.
    """

    def make(start=True, **fields):
        given = {name: fields.pop(name) for name in OF_THE_TRAINER if name in fields}
        settings = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "num_ppo_epochs": 2,
            "learning_rate": 1e-2,
            "optimizer": "tf_adam",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        trainer = ZieglerPPOTrainer(
            ZieglerPPOConfig(**{**settings, **fields}),
            tokenizer,
            make_causal_lm(),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * 3, "number": list(range(12))}),
            **{"reward_model": letter_e, "task": TASK, **given},
        )
        if start:
            trainer.train()
        return trainer

    return make
