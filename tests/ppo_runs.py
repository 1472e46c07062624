"""What the tests of the PPO trainer share: a task, prompts, a reward, and how runs are compared."""

import torch
from transformers import TrainerCallback

from trl_ziegler.tasks import Task

TASK = Task("t", 6, temperature=0.7, truncate_token=".", truncate_after=3, penalty=-1.0)
PROMPTS = [" the cat was", " a dog saw it. the", " she", " they found the old house in the garden and"]

SMALL_RUN = {
    "per_device_train_batch_size": 4,
    "num_ppo_epochs": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def letter_e(prompts, completions, **columns):
    return [float(text.count("e")) for text in completions]


def training_logs(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "loss" in row]


def assert_same_weights(ours, theirs, **tolerance):
    tolerance = tolerance or {"atol": 0, "rtol": 0}
    for (name, a), b in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


class CountSteps(TrainerCallback):
    def __init__(self):
        self.steps = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.steps += 1
