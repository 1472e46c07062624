"""Real reward trainings inside a PPO run."""

import shutil

import pytest
import torch
from online_runs import QUERIES, SAMPLES, Simulated, begin, online_logs, trainer_of
from ppo_runs import assert_same_weights

from trl_ziegler.experiments.training import train_reward_model
from trl_ziegler.online_schedule import CollectionSchedule
from trl_ziegler.reward_model import reward_head
from trl_ziegler.reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer

pytest_plugins = "online_fixtures"

SCHEDULE = CollectionSchedule(initial=12, total=24, episodes=24, trainings=2, margin=0)


class Training:
    """`train_reward_model` on all but two labels, which are held out."""

    def __init__(self, start, **settings):
        self.start, self.settings = start, settings

    def __call__(self, rows, number, folder):
        config = BestOfKRewardConfig(
            str(folder), seed=100 + number, learning_rate=1e-2, per_device_train_batch_size=2, report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="no", **self.settings,
        )  # fmt: skip
        samples = [{"prompt_ids": q, "response_ids": y} for q, y in zip(QUERIES, SAMPLES, strict=True)]
        train_reward_model(folder, config, str(self.start), rows, samples, held_out=2)


@pytest.mark.slow
def test_each_training_is_a_fresh_one_from_the_reference(folder, make_causal_lm, monkeypatch):
    before, after, train = [], [], BestOfKRewardTrainer.train

    def look(self, *args, **kwargs):
        before.append({name: weight.detach().clone() for name, weight in self.model.named_parameters()})
        result = train(self, *args, **kwargs)
        after.append({name: weight.detach().clone() for name, weight in self.model.named_parameters()})
        return result

    monkeypatch.setattr(BestOfKRewardTrainer, "train", look)
    collection = begin(folder, Simulated(), Training(folder / "start"), schedule=SCHEDULE)
    trainer = trainer_of(folder, collection)
    trainer.train()
    assert [row["online/reward_model"] for row in online_logs(trainer)] == [0, 0, 1, 1, 1, 1]
    start = dict(make_causal_lm().transformer.named_parameters())
    for weights in before:
        for name, weight in start.items():
            assert torch.equal(weights[f"transformer.{name}"], weight), name
    assert not torch.equal(before[0]["score.weight"], before[1]["score.weight"])
    trunks = [weights["transformer.wte.weight"] for weights in after]
    assert not torch.equal(trunks[0], start["wte.weight"]) and not torch.equal(trunks[0], trunks[1])
    assert torch.equal(trainer.reward.functions[0].transformer.wte.weight, trunks[1])


def test_a_training_goes_on_past_a_checkpoint_whose_writing_was_cut_off(folder):
    rows = [{"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5]], "label": i % 2} for i in range(6)]
    (folder / "reward" / "checkpoint-1").mkdir(parents=True)
    Training(folder / "start")(rows, 0, folder / "reward")
    assert (folder / "reward" / "model").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "policy"),
    [({}, {}), ({"bf16": True, "gradient_accumulation_steps": 3}, {"gradient_accumulation_steps": 2})],
    ids=["alike", "different"],
)
def test_a_training_leaves_ppo_as_it_was(folder, reward, policy):
    """The same run with reward models that are only copied ends with the same weights."""
    if policy:
        policy = {**policy, "per_device_train_batch_size": 2}
    trained = begin(folder, Simulated(), Training(folder / "start", **reward), schedule=SCHEDULE)
    first = trainer_of(folder, trained, **policy)
    first.train()

    def copy(rows, number, target):
        shutil.copytree(folder / "online" / f"reward_{number:02d}" / "model", target / "model")

    other = folder / "other"
    other.mkdir()
    (other / "start").symlink_to(folder / "start")
    second = trainer_of(other, begin(other, Simulated(), copy, schedule=SCHEDULE), **policy)
    second.train()
    assert len(reward_head(first.reward.functions[0]).weight[0]) == 32
    assert_same_weights(first, second)
    assert first.accelerator.mixed_precision == second.accelerator.mixed_precision == "no"
