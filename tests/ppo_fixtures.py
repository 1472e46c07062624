"""Small PPO runs as fixtures, shared by the tests of PPO; loaded through `pytest_plugins`."""

import inspect
from dataclasses import replace

import pytest
from ppo_parts import prompts
from ppo_runs import SMALL_RUN, TASK, letter_e

from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.tasks import Task

TRAINER_ARGUMENTS = set(inspect.signature(ZieglerPPOTrainer).parameters)


@pytest.fixture
def make_ppo(tmp_path, tokenizer, make_causal_lm):
    """`make_ppo(**arguments)`: a small job, not started; config fields and arguments of the trainer side by side.

    Four episodes per update, two epochs in one minibatch, three updates, six tokens of response.
    """

    def make(**given):
        arguments = {
            "processing_class": tokenizer,
            "model": None,
            "reward_model": letter_e,
            "train_dataset": prompts(),
            "task": Task("t", 6),
        }
        settings = {**SMALL_RUN, "output_dir": str(tmp_path / "run"), "max_steps": 3}
        for name, value in given.items():
            (arguments if name in TRAINER_ARGUMENTS else settings)[name] = value
        arguments["model"] = make_causal_lm() if arguments["model"] is None else arguments["model"]
        return ZieglerPPOTrainer(ZieglerPPOConfig(**settings), **arguments)

    return make


@pytest.fixture
def train(make_ppo):
    """`train(**arguments)`: a job of `make_ppo` with a cut and a penalty, run (from `resume`) unless `start=False`."""

    def run(resume=None, evaluate_with=None, start=True, **given):
        trainer = make_ppo(**{"task": TASK, "eval_dataset": evaluate_with, **given})
        if start:
            trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


@pytest.fixture
def small_ppo(train):
    """`small_ppo(**arguments)`: as `train`, with a suffix behind the query and the reference's optimiser."""

    def make(**given):
        return train(**{"task": replace(TASK, suffix=" and"), "optimizer": "tf_adam", **given})

    return make
