"""PPO-ptx in the trainer: its gradient, its absence, its checkpoints."""

import pytest
import torch
from datasets import Dataset
from ppo_runs import assert_same_weights, training_logs

from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.pretraining_data import pretraining_loss

pytest_plugins = "ppo_fixtures"

DOCUMENTS = [" the cat was old and warm.", " she found a house.", " they saw the dog in the garden and loved it."]
PTX = {"ptx_coef": 2.5, "ptx_batch_size": 2, "ptx_length": 8}


def documents() -> Dataset:
    return Dataset.from_dict({"text": DOCUMENTS})


def test_without_a_coefficient_the_run_is_plain_ppo_bit_for_bit(train):
    plain = train()
    assert_same_weights(plain, train(ptx_coef=0.0, ptx_batch_size=2, ptx_length=8))
    assert "loss/ptx_avg" not in training_logs(plain)[0]
    with pytest.raises(AssertionError):
        assert_same_weights(plain, train(pretraining_dataset=documents(), **PTX))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_with_zero_advantages_the_gradient_is_the_coefficient_times_the_language_models(
    train, monkeypatch, accumulation
):
    def no_ppo(self, batch, logprobs, values):
        return 0 * logprobs.sum(), 0 * values.sum()

    monkeypatch.setattr(ZieglerPPOTrainer, "_losses", no_ppo)
    grads = {}

    def remember(self):
        grads.update({name: p.grad.clone() for name, p in self.model.policy.named_parameters()})

    monkeypatch.setattr(ZieglerPPOTrainer, "_before_step", remember)
    size = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = train(
        pretraining_dataset=documents(), start=False, max_steps=1, num_ppo_epochs=1, max_grad_norm=0, **size, **PTX
    )
    stream = trainer._pretraining_stream(documents(), 256)
    batches = [next(stream) for _ in range(accumulation)]
    loss = sum(pretraining_loss(trainer.model, ids) for ids in batches) / accumulation
    expected = torch.autograd.grad(PTX["ptx_coef"] * loss, list(trainer.model.policy.parameters()))
    monkeypatch.setattr(ZieglerPPOTrainer, "log", lambda self, logs, start_time=None: None)
    trainer.train()
    for (name, _), gradient in zip(trainer.model.policy.named_parameters(), expected, strict=True):
        torch.testing.assert_close(grads[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_loss_is_logged_and_part_of_the_whole(train):
    (log,) = training_logs(train(pretraining_dataset=documents(), max_steps=1, vf_coef=0.1, **PTX))
    whole = log["loss/policy_avg"] + 0.1 * log["loss/value_avg"] + 2.5 * log["loss/ptx_avg"]
    assert log["loss"] == pytest.approx(whole)
    assert 4 < log["loss/ptx_avg"] < 7  # ln 343, the size of the vocabulary, is 5.8


def test_a_resumed_run_reads_on_where_it_was(train, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "pretraining_dataset": documents(), **PTX}
    whole = train(**settings)
    resumed = train(resume=str(tmp_path / "run" / "checkpoint-4"), **settings)
    assert_same_weights(whole, resumed)
    plain = {key: settings[key] for key in ("max_steps", "save_strategy", "save_steps")}
    train(output_dir=str(tmp_path / "plain"), **plain)
    with pytest.raises(ValueError, match="that run had no `pretraining_dataset`"):
        train(resume=str(tmp_path / "plain" / "checkpoint-4"), **settings)


def test_it_learns_the_text(train):
    logs = training_logs(train(pretraining_dataset=documents(), max_steps=9, lr_scheduler_type="constant", **PTX))
    assert logs[-1]["loss/ptx_avg"] < logs[0]["loss/ptx_avg"] - 0.5


def test_what_does_not_go_together_is_refused(train):
    with pytest.raises(ValueError, match=r"`ptx_coef` is 2\.5 and there is no `pretraining_dataset`"):
        train(**PTX)
    with pytest.raises(ValueError, match=r"`ptx_coef` is 0\.0 and there is a `pretraining_dataset`"):
        train(pretraining_dataset=documents())
    with pytest.raises(ValueError, match="`ptx_length` is 300, more than the 256 tokens"):
        train(pretraining_dataset=documents(), ptx_coef=1.0, ptx_length=300)
    with pytest.raises(ValueError, match="`ptx_coef` is -1"):
        train(ptx_coef=-1.0)
