"""One network for reward and policy: what is shared, what trains what, what is measured."""

import json
from types import SimpleNamespace

import pytest
import torch
from ppo_parts import prompts
from ppo_runs import SMALL_RUN, TASK, letter_e, training_logs
from reward_records import RESPONSES, parameters_of, records

from trl_ziegler.experiments.arguments import StyleArguments
from trl_ziegler.experiments.shared_trunk import SharedTrunkTrainer, endless, head_on_trunk, train_shared_policy
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.reward_model import is_normalized, score_token_ids
from trl_ziegler.reward_trainer import BestOfKRewardConfig

LABELS = records(8).to_list()
HELD_OUT = records(4, seed=1).to_list()
SAMPLES = [{"prompt_ids": [1, 2, i], "response_ids": RESPONSES[i % 4]} for i in range(8)]


@pytest.fixture
def start(tmp_path, make_causal_lm, tokenizer):
    """Folder of a start model."""
    make_causal_lm().save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


def reward_config(folder):
    return BestOfKRewardConfig(
        str(folder), per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True,
        save_strategy="no", optimizer="tf_adam",
    )  # fmt: skip


@pytest.fixture
def make(tmp_path, start, make_causal_lm, tokenizer):
    """`make(**arguments)`: a small job, not started: 2 epochs of 2 micro-batches, 8 labels a step."""

    def job(**given):
        policy = make_causal_lm()
        settings = {**SMALL_RUN, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2}
        return SharedTrunkTrainer(
            head_on_trunk(policy, start, reward_config(tmp_path / "head"), LABELS, SAMPLES),
            letter_e,
            args=ZieglerPPOConfig(str(tmp_path / "run"), reward_weights=[1.0, 0.0], **settings),
            processing_class=tokenizer,
            model=policy,
            train_dataset=prompts(),
            task=TASK,
            **{"labels": LABELS, "held_out": HELD_OUT, "samples": SAMPLES, "labels_per_step": 8, "label_coef": 1.0}
            | given,
        )

    return job


def test_the_head_is_trained_alone_on_the_policys_own_trunk(tmp_path, start, make_causal_lm):
    policy = make_causal_lm()
    before = parameters_of(policy)
    reward = head_on_trunk(policy, start, reward_config(tmp_path / "head"), LABELS, SAMPLES)
    assert reward.transformer is policy.transformer
    for name, weight in policy.named_parameters():
        assert weight.requires_grad and torch.equal(weight, before[name]), name
    fresh = torch.empty_like(reward.score.weight)
    fresh.normal_(std=reward.score.initial_std, generator=torch.Generator().manual_seed(42))
    assert (reward.score.weight - fresh).abs().max() > 1e-3  # 42 is the configuration's seed
    assert is_normalized(reward)
    scores = score_token_ids(reward, *([row[key] for row in SAMPLES] for key in ("prompt_ids", "response_ids")))
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_labels_and_ppo_train_one_trunk_and_the_head_follows(make):
    trainer = make()
    head, trunk = parameters_of(trainer.shared.score), parameters_of(trainer.model.policy.transformer)
    reference = parameters_of(trainer.ref_model)
    trainer.train()
    assert trainer.shared.transformer is trainer.model.policy.transformer
    assert not torch.equal(trainer.shared.score.weight, head["weight"])
    assert not torch.equal(trainer.model.policy.transformer.wte.weight, trunk["wte.weight"])
    assert all(torch.equal(weight, reference[name]) for name, weight in trainer.ref_model.named_parameters())


def test_without_weight_the_labels_train_nothing_but_ppo_still_moves_what_the_reward_reads(make):
    trainer = make(label_coef=0.0)
    head, rewards = trainer.shared.score.weight.clone(), score_of(trainer)
    trainer.train()
    assert torch.equal(trainer.shared.score.weight, head)
    assert not torch.allclose(score_of(trainer), rewards, atol=1e-4)


def score_of(trainer):
    return score_token_ids(trainer.shared, [[1, 2, 3]] * 4, RESPONSES)


def test_the_labels_loss_is_their_mean_beside_ppos(make, monkeypatch):
    losses = {}
    for coef in (0.0, 0.5):
        trainer = make(label_coef=coef)
        trainer._label_batches = endless(LABELS, 8)
        seen = losses[coef] = []
        step = SharedTrunkTrainer.compute_loss

        def look(self, *args, seen=seen, step=step, **kwargs):
            seen.append(step(self, *args, **kwargs).item())
            return torch.tensor(0.0, requires_grad=True)

        with monkeypatch.context() as patch:
            patch.setattr(SharedTrunkTrainer, "compute_loss", look)
            trainer.train()
        labels = training_logs(trainer)[0]["loss/labels_avg"]
    # All eight labels are in each batch, and nothing has moved: every micro-batch has the same loss on them.
    differences = torch.tensor(losses[0.5][:4]) - torch.tensor(losses[0.0][:4])
    torch.testing.assert_close(differences, torch.full((4,), 0.5 * labels), atol=1e-5, rtol=0)


def test_the_log_says_how_well_and_how_often_the_labels_are_known(make):
    trainer = make()
    trainer.train()
    rows = training_logs(trainer)
    assert [row["labels/epochs"] for row in rows] == [2.0, 4.0]  # 2 steps an update of 8 labels
    for row in rows:
        assert {row["labels/accuracy"], row["labels/held_out_accuracy"]} <= {0, 0.25, 0.5, 0.75, 1}
        assert row["loss/labels_avg"] > 0


def test_the_reward_is_normalised_anew_before_each_rollout(make, monkeypatch):
    means = []
    collect = SharedTrunkTrainer.__mro__[1]._collect

    def look(self, batch):
        pairs = ([row[key] for row in SAMPLES] for key in ("prompt_ids", "response_ids"))
        means.append(score_token_ids(self.shared, *pairs).mean().item())
        return collect(self, batch)

    monkeypatch.setattr(SharedTrunkTrainer.__mro__[1], "_collect", look)
    make().train()
    assert means == pytest.approx([0, 0], abs=1e-5)


def test_every_pass_has_each_label_once_in_a_new_order():
    batches = endless([{**row, "label": i} for i, row in enumerate(LABELS)], 4)
    passes = [torch.cat([next(batches)["labels"] for _ in range(2)]).tolist() for _ in range(3)]
    assert all(sorted(order) == list(range(8)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_a_policy_and_its_log_are_left_behind(tmp_path, start):
    folder = tmp_path / "run" / "policy.partial"
    folder.mkdir(parents=True)
    queries = [{"prompt": f"{i}", "prompt_ids": [5, i]} for i in range(8)]
    config = ZieglerPPOConfig(str(folder), **{**SMALL_RUN, "max_steps": 1})
    arguments = (reward_config(folder), start, queries, letter_e, TASK, [*LABELS, *HELD_OUT], SAMPLES)
    train_shared_policy(folder, config, *arguments, held_out=4, labels_per_step=4, label_coef=1.0)
    assert (folder / "model" / "model.safetensors").is_file()
    row = json.loads((folder / "log_history.json").read_text())[0]
    assert row["score/true"] == row["rewards/letter_e"]
    assert row["labels/epochs"] == 1.0  # 2 steps of 4 of the 8 labels
    card = (folder / "model" / "README.md").read_text()
    assert "# Model Card for run-policy" in card
    assert f'ActorCritic.from_pretrained("{tmp_path}/run/policy/model")' in card and ".partial" not in card
    assert "`letter_e`, weight 0 (only logged): a function." in card


def test_what_cannot_work_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="`shared_trunk_labels` is 8 with `mode` 'online'; a shared network has"):
        StyleArguments(shared_trunk_labels=8, mode="online")
    monkeypatch.setattr("trl_ziegler.experiments.shared_trunk.PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="`shared_trunk_labels` works in one process, not in 2; launch one"):
        train_shared_policy(*[None] * 9, held_out=1, labels_per_step=1, label_coef=1.0)
