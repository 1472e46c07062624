"""Small runs that collect labels while they train, shared by the tests of online collection."""

import time
from pathlib import Path

import torch
from accelerate import PartialState
from ppo_parts import prompts
from ppo_runs import SMALL_RUN, letter_e
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ziegler.labelers import ImmediateLabeler, LabellingStopped, ScoreLabeler
from trl_ziegler.online import OnlineCollection
from trl_ziegler.online_schedule import CollectionSchedule
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.reward_model import load_reward_model, normalize_reward_model, reward_head
from trl_ziegler.tasks import Task

TASK = Task("t", 6)
EPISODES = 24  # six updates of four
SCHEDULE = CollectionSchedule(initial=6, total=30, episodes=EPISODES, trainings=3, margin=2)
SETTINGS = {**SMALL_RUN, "total_episodes": EPISODES}
QUERIES = [[i, i + 1, i + 2] for i in range(40, 60)]
SAMPLES = [[i, 90, i + 3] for i in range(40, 60)]


class RewardTraining:
    """Stands for a training: a fresh head from the reference that is different for other labels, normalised.

    `calls` has the number, the labels and the weights of the trunk of each training; `before(number)` may raise.
    """

    def __init__(self, start: Path, before=lambda number: None) -> None:
        self.start, self.before, self.calls = start, before, []

    def __call__(self, rows, number, folder):
        self.before(number)
        torch.manual_seed(123)  # as a Trainer does
        model = load_reward_model(self.start, seed=number)
        trunk = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("score")}
        self.calls.append((number, [(row["number"], row["label"]) for row in rows], trunk))
        chosen = sum(sum(row["completion_ids"][row["label"]]) for row in rows)
        with torch.no_grad():
            reward_head(model).weight[0, chosen % 32] += 1.0
        normalize_reward_model(model, QUERIES, SAMPLES)
        if PartialState().is_main_process:
            model.save_pretrained(folder / "model")


class Simulated(ImmediateLabeler):
    """Counts letters; `asked` has the numbers of all requests of this process."""

    def __init__(self) -> None:
        super().__init__(ScoreLabeler(letter_e))
        self.asked: list[int] = []

    def __repr__(self) -> str:
        return "Simulated()"  # its slow and dying subclasses label alike

    def request(self, records):
        self.asked += [record["number"] for record in records]
        super().request(records)


class Slow(Simulated):
    """Gives a record's label only when `allow` says so, and raises when the cord is pulled."""

    def __init__(self, allowed: int = 10**9) -> None:
        super().__init__()
        self.allowed = allowed
        self.stop: str | None = None
        self.looks = 0

    def collect(self):
        self.looks += 1
        if self.stop is not None:
            raise LabellingStopped(self.stop)
        return super().collect()[: self.allowed]

    def open(self):
        return max(0, len(self._labelled) - self.allowed)


def wait_until(condition, seconds: float = 100.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def online_logs(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "online/labels" in row]


def begin(folder: Path, labeler, train_reward=None, **given) -> OnlineCollection:
    """A collection whose files are in `folder/online`, from the models in `folder/start`."""
    start = folder / "start"
    tokenizer = AutoTokenizer.from_pretrained(start)
    rows = [{"prompt_ids": ids, "prompt": tokenizer.decode(ids)} for ids in QUERIES]
    options = {"schedule": SCHEDULE, "num_candidates": 4, "validation_interval": 3, "seed": 1, "poll_seconds": 0.005}
    return OnlineCollection(
        folder / "online",
        queries=rows,
        labeler=labeler,
        train_reward=train_reward or RewardTraining(start),
        task=TASK,
        tokenizer=tokenizer,
        **{**options, **given},
    )


def trainer_of(folder: Path, collection: OnlineCollection, rewards=(), **settings) -> ZieglerPPOTrainer:
    """The trainer of a collection, after the first labels; `rewards` are logged beside the reward model."""
    start = folder / "start"
    weights = [1.0] + [0.0] * len(rewards)
    config = ZieglerPPOConfig(str(folder / "run"), **{**SETTINGS, **settings}, reward_weights=weights)
    assert config.world_size == PartialState().num_processes  # where there are several, the config makes them known
    reward = collection.begin(AutoModelForCausalLM.from_pretrained(start))
    trainer = ZieglerPPOTrainer(
        config,
        AutoTokenizer.from_pretrained(start),
        AutoModelForCausalLM.from_pretrained(start),
        reward_model=[reward, *rewards],
        train_dataset=prompts(12),
        task=TASK,
    )
    collection.attach(trainer)
    return trainer
