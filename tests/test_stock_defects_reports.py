"""Defects of the PPO trainer of TRL 1.12.0 that this one does not have: what was lost, misleading numbers, cost."""

import gc
import itertools
import math
import weakref
from dataclasses import fields

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ppo_parts import favour, prompts
from ppo_runs import assert_same_weights, letter_e, training_logs
from safetensors.torch import load_file
from transformers import trainer as library_trainer

from trl_ziegler.actor_critic import VALUE_HEAD_FILE, ActorCritic
from trl_ziegler.reward_model import as_reward_model
from trl_ziegler.tasks import Task

pytest_plugins = "ppo_fixtures"


def test_d18_a_run_resumes_evaluates_and_predicts(make_ppo, tmp_path):
    whole, resumed = (
        make_ppo(max_steps=4, save_strategy="steps", save_steps=2, eval_dataset=prompts(5)) for _ in range(2)
    )
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert_same_weights(whole, resumed)
    assert resumed.evaluate()["eval_objective/scores"] == whole.evaluate()["eval_objective/scores"]
    assert math.isfinite(whole.predict(prompts(5)).metrics["test_objective/scores"])


@pytest.mark.parametrize("kind", ["head", "network", "lora"])
def test_d19_the_critic_is_in_the_checkpoint(make_ppo, make_classifier, tmp_path, kind):
    lora = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True) if kind == "lora" else None
    trainer = make_ppo(
        max_steps=2, save_strategy="steps", save_steps=2, peft_config=lora,
        value_model=make_classifier(seed=3) if kind == "network" else None,
    )  # fmt: skip
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-4"
    if kind == "lora":
        saved = {f"value_head.{name}": weight for name, weight in load_file(folder / VALUE_HEAD_FILE).items()}
        assert len(load_file(folder / "adapter_model.safetensors")) + len(saved) == entries_of_optimizer(folder)
    else:
        saved = ActorCritic.from_pretrained(folder).state_dict()
        assert len(dict(ActorCritic.from_pretrained(folder).named_parameters())) == entries_of_optimizer(folder)
    critic = {name: weight for name, weight in trainer.model.state_dict().items() if name.startswith("value_")}
    assert any(weight.any() for weight in critic.values())
    for name, weight in critic.items():
        assert torch.equal(saved[name], weight), name


def entries_of_optimizer(folder) -> int:
    return len(torch.load(folder / "optimizer.pt", weights_only=True)["state"])  # 57 for 28 saved tensors


@pytest.mark.parametrize(("rows", "batch"), [(12, 8), (5, 8), (5, 2)])
@pytest.mark.parametrize("as_dict", [False, True])
def test_d20_no_sample_of_an_evaluation_is_lost(make_ppo, rows, batch, as_dict):
    asked = []

    def count(prompts, completions, number, **columns):
        asked.extend(number)
        return [float(n) for n in number]

    data = prompts(rows)
    trainer = make_ppo(
        reward_model=count, eval_dataset={"a": data, "b": data} if as_dict else data, per_device_eval_batch_size=batch
    )
    metrics = trainer.evaluate()
    names = ("eval_a", "eval_b") if as_dict else ("eval",)
    for name in names:
        assert metrics[f"{name}_objective/scores"] == pytest.approx((rows - 1) / 2)
    assert sorted(asked) == sorted([*range(rows)] * 2 * len(names))  # the policy's answer and the reference's
    table = trainer.generate_completions()
    assert len(table) == rows * len(names)


@pytest.mark.parametrize("rows", [12, 5])
def test_d20_dropping_the_last_batch_is_for_training(make_ppo, rows):
    trainer = make_ppo(
        reward_model=lambda prompts, completions, number: [float(n) for n in number],
        eval_dataset=prompts(rows), per_device_eval_batch_size=8, dataloader_drop_last=True,
    )  # fmt: skip
    assert trainer.evaluate()["eval_objective/scores"] == pytest.approx((rows - 1) / 2)


def test_d20_evaluation_samples_at_the_temperature_of_the_task(make_ppo):
    tables = [make_ppo(seed=seed, eval_dataset=prompts(4)).generate_completions() for seed in (0, 1)]
    responses = [list(table["model response"]) for table in tables]
    assert responses[0] != responses[1]  # the stock trainer evaluates at 0.01, where all seeds agree
    cold = [
        make_ppo(seed=seed, eval_dataset=prompts(4), task=Task("t", 6, temperature=0.001)).generate_completions()
        for seed in (0, 1)
    ]
    assert list(cold[0]["model response"]) == list(cold[1]["model response"])


def test_d21_statistics_leave_the_padding_out(make_ppo, make_causal_lm, tokenizer):
    stop = tokenizer(".")["input_ids"][0]
    task = Task("t", 8, regime="eos", truncate_token=".", truncate_after=1)
    trainer = make_ppo(model=favour(make_causal_lm(), stop, 4.0), task=task, max_steps=1, learning_rate=5e-3)
    parts, compute_loss = [], trainer.compute_loss

    def look(model, inputs, **kwargs):
        with torch.no_grad():
            logprobs, entropy, _ = trainer._evaluate_tokens(model, inputs.rollout)
        parts.append((inputs.rollout.mask, logprobs - inputs.rollout.logprobs, entropy))
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = look
    trainer.train()
    logs = training_logs(trainer)[0]
    assert not parts[0][0].all()
    real = {"approxkl": [], "ratio": [], "entropy": []}
    for mask, difference, entropy in parts:
        real["approxkl"].append(0.5 * difference[mask].square().mean())
        real["ratio"].append(difference[mask].exp().mean())
        real["entropy"].append(entropy[mask].mean())
    means = {name: float(torch.stack(values).mean()) for name, values in real.items()}
    assert means["approxkl"] > 1e-4 and abs(means["ratio"] - 1) > 1e-3
    assert logs["policy/approxkl_avg"] == pytest.approx(means["approxkl"], rel=1e-4)  # 1.7e-2 where 6.9e-2 is true
    assert logs["val/ratio"] == pytest.approx(means["ratio"], rel=1e-5)  # 1.04 where 1.16 is true
    assert logs["policy/entropy_avg"] == pytest.approx(means["entropy"], rel=1e-4)


def test_d22_the_share_of_finished_responses_counts_no_filling(make_ppo, make_causal_lm, tokenizer):
    stop, ended = tokenizer(".")["input_ids"][0], []

    def look(prompts, completions, **columns):
        ended.extend(text.endswith(".") for text in completions)
        return letter_e(prompts, completions)

    model = favour(make_causal_lm(), stop, 3.0)
    model.generation_config.pad_token_id = None
    trainer = make_ppo(
        model=model, reward_model=look, task=None, stop_token_id=stop, response_length=13, max_steps=1,
        per_device_train_batch_size=12,
    )  # fmt: skip
    trainer.train()
    assert 0 < sum(ended) < 12
    assert training_logs(trainer)[0]["objective/valid_share"] == pytest.approx(sum(ended) / 12)  # 78 fills for 6 ends


def test_d23_the_speed_of_a_slow_run_is_not_cut_to_zero(make_ppo, monkeypatch):
    clock = itertools.count(0, 100)  # every look at the clock takes 100 s
    monkeypatch.setattr(library_trainer.time, "time", lambda: float(next(clock)))
    trainer = make_ppo()
    trainer.train()
    final = trainer.state.log_history[-1]
    assert 0 < final["train_samples_per_second"] < 1
    assert [row["episode"] for row in training_logs(trainer)] == [4, 8, 12]


def test_d24_micro_batches_of_empty_responses_give_finite_logs(make_ppo, make_causal_lm, tokenizer):
    trainer = make_ppo(
        model=favour(make_causal_lm(), tokenizer.eos_token_id), task=None, stop_token="eos", response_length=6,
        per_device_train_batch_size=1, gradient_accumulation_steps=4,
        reward_model=lambda prompts, completions, number: [float(n) for n in number],
    )  # fmt: skip
    trainer.train()
    for row in training_logs(trainer):
        assert row["objective/response_length"] == 1
        assert all(math.isfinite(value) for value in row.values())


def sharp(model):
    """Random weights three times as large: logits in which the rounding of bfloat16 shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


def test_d25_bfloat16_autocast_starts_on_policy_with_reference_and_sampler_alike(make_ppo, make_causal_lm):
    trainer = make_ppo(model=sharp(make_causal_lm()), bf16=True, learning_rate=0.0, task=Task("t", 24), max_steps=2)
    trainer.train()
    for row in training_logs(trainer):
        assert row["objective/kl"] == pytest.approx(0, abs=1e-6)  # +0.02
        assert row["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)  # 6e-6
        assert row["val/ratio"] == pytest.approx(1, abs=1e-6)


def test_d25_weights_in_bfloat16_start_on_policy(make_ppo, make_causal_lm):
    model = sharp(make_causal_lm()).to(torch.bfloat16)
    trainer = make_ppo(model=model, learning_rate=0.0, task=Task("t", 24), max_steps=2)
    trainer.train()
    for row in training_logs(trainer):
        assert row["objective/kl"] == pytest.approx(0, abs=1e-6)
        assert row["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)


def test_d26_no_logits_of_the_rollout_are_kept(make_ppo):
    rows, length, chunk = 12, 6, 2
    trainer = make_ppo(per_device_train_batch_size=rows, local_rollout_forward_batch_size=chunk)
    vocabulary = trainer.model.config.vocab_size
    alive: list[weakref.ref] = []
    most = [0]

    def watch(module, inputs, logits):
        alive.append(weakref.ref(logits))
        kept = sum(ref().numel() for ref in alive if ref() is not None)
        most[0] = max(most[0], kept)

    for model in (trainer.model.policy, trainer.ref_model):
        model.get_output_embeddings().register_forward_hook(watch)
    rollout = trainer._collect(trainer.data_collator(list(trainer.train_dataset)))
    gc.collect()
    assert len(alive) == (rows // chunk) * (length + 1)
    assert all(ref() is None for ref in alive)
    # A chunk's logits and those of the step before, not the rollout's 12 x 6 x V and its copies.
    assert most[0] <= 2 * chunk * length * vocabulary < rows * length * vocabulary
    assert all(vocabulary not in getattr(rollout, item.name).shape for item in fields(rollout))


def lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)


def trained_names(trainer) -> set[str]:
    return {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


def test_d27_lora_trains_adapters_and_the_value_head_alone(make_ppo):
    trainer = make_ppo(peft_config=lora())
    names = trained_names(trainer)
    assert {name for name in names if "lora_" not in name} == {"value_head.weight", "value_head.bias"}
    assert sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) < 3000  # 36,832 of the value model
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == names


def test_d27_a_value_network_made_from_the_reward_model_gets_an_adapter_too(make_ppo, make_classifier, tmp_path):
    def build():
        judge = as_reward_model(make_classifier(), fresh_head=True)
        return make_ppo(
            peft_config=lora(), reward_model=judge, value_init="reward", max_steps=4,
            save_strategy="steps", save_steps=2,
        )  # fmt: skip

    whole, resumed = build(), build()
    rest = {name for name in trained_names(whole) if "lora_" not in name}
    assert rest and all("score" in name for name in rest)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert_same_weights(whole, resumed)


def test_d27_a_value_network_made_from_an_adapted_reward_model_has_one_adapter(make_ppo, make_classifier):
    adapter = LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True, modules_to_save=["score"])
    judge = as_reward_model(get_peft_model(as_reward_model(make_classifier(), fresh_head=True), adapter))
    torch.manual_seed(0)
    for name, parameter in judge.named_parameters():
        parameter.requires_grad_(False)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trainer = make_ppo(peft_config=lora(), reward_model=judge, value_init="reward")
    names = {name for name in trained_names(trainer) if name.startswith("value_model")}
    assert any("lora_B" in name for name in names) and all("lora_" in name or "score" in name for name in names)
    ids = torch.tensor([[1, 2, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(3)[None]}
    start = [model.eval()(**inputs).logits for model in (trainer.model.value_model, judge)]
    torch.testing.assert_close(*start)
    trainer.train()
    assert any(parameter.any() for name, parameter in trainer.model.value_model.named_parameters() if "lora_B" in name)


def test_d27_a_value_model_that_is_given_trains_what_its_owner_left_trainable(make_ppo, make_classifier):
    value_model = make_classifier(seed=3)
    value_model.transformer.requires_grad_(False)
    trainer = make_ppo(peft_config=lora(), value_model=value_model)
    rest = {name for name in trained_names(trainer) if "lora_" not in name}
    assert rest and all(name.startswith("value_model.score.") for name in rest)


def test_a_value_network_made_from_a_frozen_reward_model_trains(make_ppo, make_classifier):
    judge = as_reward_model(make_classifier(), fresh_head=True)
    judge.requires_grad_(False)
    trainer = make_ppo(reward_model=judge, value_init="reward")
    assert any(name.startswith("value_model.transformer") for name in trained_names(trainer))
