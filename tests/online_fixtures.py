"""What the tests of online collection share: a start model, and one whole run; loaded through `pytest_plugins`."""

from typing import Any, NamedTuple

import pytest
from online_runs import RewardTraining, Simulated, begin, trainer_of

from trl_ziegler.reward_model import reward_head


class Run(NamedTuple):
    """A finished run in `folder`; `heads` has the reward head's weights of each rollout."""

    folder: Any
    trainer: Any
    collection: Any
    training: RewardTraining
    heads: list


RUNS: list[Run] = []


@pytest.fixture
def folder(tmp_path, tokenizer, make_causal_lm):
    """A folder with a start model and its tokenizer in `start`."""
    make_causal_lm().save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path


@pytest.fixture
def whole(folder, tmp_path_factory) -> Run:
    """An uninterrupted run, made once for all tests, whose start models are all alike."""
    if not RUNS:
        target = tmp_path_factory.mktemp("whole")
        (target / "start").symlink_to(folder / "start")
        training, heads = RewardTraining(folder / "start"), []
        collection = begin(target, Simulated(), training)
        trainer = trainer_of(target, collection)
        score = trainer.reward.score

        def note(*args):
            heads.append(reward_head(trainer.reward.functions[0]).weight.clone())
            return score(*args)

        trainer.reward.score = note
        trainer.train()
        RUNS.append(Run(target, trainer, collection, training, heads))
    return RUNS[0]
