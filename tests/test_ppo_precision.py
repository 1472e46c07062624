"""PPO in fewer bits than float32: what rounding may not do to the ratio of the first step."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from ppo_runs import training_logs
from transformers import GPT2Config, GPT2LMHeadModel

from trl_ziegler.tasks import Task

pytest_plugins = "ppo_fixtures"


def low_logits(vocab_size: int, by: float = 100.0) -> GPT2LMHeadModel:
    """A random model with `by` less on every logit, where GPT-2 has its own: numbers that bfloat16 keeps badly."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=128, n_layer=2, n_head=2, n_positions=256, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        model.transformer.wte.weight.add_(1)
        model.transformer.ln_f.bias.sub_(by / model.config.n_embd)
    return model


def start_in_other_padding(make_ppo, **given) -> dict[str, float]:
    """The log of an update at a rate of 0, in micro-batches that are padded otherwise than the rollout."""
    lengths = [" the cat was here" * n for n in (1, 9, 2, 3, 1, 4, 2, 1)]
    trainer = make_ppo(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, learning_rate=0.0, task=Task("t", 16),
        max_steps=1, train_dataset=Dataset.from_dict({"prompt": lengths}), **given,
    )  # fmt: skip
    trainer.train()
    return training_logs(trainer)[0]


def test_autocast_starts_on_policy_whatever_the_padding(make_ppo, tokenizer):
    log = start_in_other_padding(make_ppo, model=low_logits(len(tokenizer)), bf16=True)
    assert log["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert log["policy/approxkl_avg"] < 1e-6  # 1e-3 with logits in bfloat16


def test_weights_in_bfloat16_start_whatever_the_padding(make_ppo, tokenizer):
    log = start_in_other_padding(make_ppo, model=low_logits(len(tokenizer)).bfloat16())
    assert log["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert 1e-6 < log["policy/approxkl_avg"] < 1e-2


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_tf32_counts_as_rounding(make_ppo, monkeypatch, precision):
    seen = []
    monkeypatch.setattr("trl_ziegler.ppo_trainer.check_start", lambda *args, exact: seen.append(exact))
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=precision))
    make_ppo(max_steps=1).train()
    assert seen == [precision == "ieee"]
