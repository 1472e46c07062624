"""The trainer as a Hugging Face `Trainer` that does PPO: what a run does, logs, saves and continues."""

import copy
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from ppo_runs import PROMPTS, CountSteps, assert_same_weights, letter_e, training_logs
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_ziegler._compat import PPOTrainer
from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.optim import TFAdam
from trl_ziegler.ppo_config import ZieglerPPOConfig
from trl_ziegler.ppo_loop import in_optimizer_steps, once_per_update
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer
from trl_ziegler.reward_model import as_reward_model
from trl_ziegler.tasks import Task

pytest_plugins = "ppo_fixtures"


def test_constructor_is_trl_s_and_so_is_the_type(train):
    ours = list(inspect.signature(ZieglerPPOTrainer).parameters)
    theirs = list(inspect.signature(PPOTrainer).parameters)
    assert ours[: len(theirs)] == theirs
    assert isinstance(train(start=False), PPOTrainer)


def test_a_query_has_to_fit_every_model_that_reads_it(make_ppo, make_classifier):
    judge = make_classifier()
    judge.config.max_position_embeddings = 40
    fits, too_long = (Dataset.from_dict({"prompt": [" the" * length] * 4}) for length in (34, 35))
    make_ppo(reward_model=judge, train_dataset=fits)
    with pytest.raises(ValueError, match=r"Row 0 of `train_dataset` has 35 tokens; .* at most 34 fit"):
        make_ppo(reward_model=judge, train_dataset=too_long)


def test_prompts_are_tokenised_in_as_many_processes_as_asked(make_ppo, monkeypatch):
    plain, asked = Dataset.map, []

    def counted(self, *args, num_proc=None, **kwargs):
        asked.append(num_proc)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Dataset, "map", counted)
    make_ppo(dataset_num_proc=2)
    assert asked == [2]


@pytest.mark.parametrize(
    ("minibatches", "accumulation", "expected"), [(1, 1, 2), (2, 1, 4), (4, 1, 8), (1, 2, 2), (2, 2, 4)]
)
def test_every_update_makes_epochs_times_minibatches_steps(train, minibatches, accumulation, expected):
    counter = CountSteps()
    trainer = train(
        num_mini_batches=minibatches, gradient_accumulation_steps=accumulation, callbacks=[counter], max_steps=4
    )
    assert counter.steps == trainer.state.global_step == 4 * expected  # 12 prompts: the fourth update is a second pass


def test_first_update_is_on_policy_and_the_next_is_not(train):
    logs = training_logs(train())
    assert logs[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert abs(logs[1]["objective/kl"]) > 1e-3
    still = training_logs(train(learning_rate=0.0, max_steps=2))
    assert still[1]["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert still[1]["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)


def test_learning_rate_is_constant_within_an_update_and_ends_at_one_part_in_u(train):
    rates = [row["learning_rate"] for row in training_logs(train(max_steps=4, lr_scheduler_type="linear"))]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])
    rate = once_per_update(lambda update: 1 - update / 4, 8)
    assert [rate(step) for step in (0, 7, 8, 31)] == [1, 1, 0.75, 0.25]


def test_a_scheduler_that_needs_a_metric_is_refused(train):
    with pytest.raises(ValueError, match=r"'reduce_lr_on_plateau'.*, which is no function of the step"):
        train(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", evaluate_with=eval_set())


def eval_set(n: int = 5) -> Dataset:
    return Dataset.from_dict({"prompt": (PROMPTS * 2)[:n]})


def test_intervals_count_updates(train, tmp_path):
    trainer = train(
        max_steps=6, logging_steps=2, save_steps=3, save_strategy="steps", eval_steps=4, eval_strategy="steps",
        evaluate_with=eval_set(),
    )  # fmt: skip
    steps_per_update = 2
    assert [row["step"] // steps_per_update for row in training_logs(trainer)] == [2, 4, 6]
    assert [row["episode"] for row in training_logs(trainer)] == [8, 16, 24]
    saved = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert saved == [6, 12]
    assert [row["step"] for row in trainer.state.log_history if "eval_runtime" in row] == [8, 12]  # and at the end


def test_callers_config_is_left_alone(train, tmp_path):
    args = ZieglerPPOConfig(output_dir=str(tmp_path), max_steps=5, gradient_accumulation_steps=2, use_cpu=True)
    before = copy.deepcopy(args.to_dict())
    trainer = train(start=False)
    converted = in_optimizer_steps(args, trainer.plan)
    assert args.to_dict() == before
    assert converted.max_steps == 3 * 2


class StopInTheMiddle(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == 3
        control.should_save = control.should_save or state.global_step == 1


def test_stopping_and_saving_wait_for_the_end_of_the_update(train, tmp_path):
    trainer = train(max_steps=9, callbacks=[StopInTheMiddle()])
    assert trainer.state.global_step == 4
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert len(training_logs(trainer)) == 2


def test_micro_batches_do_not_change_the_update(train):
    plain = {"max_steps": 2, "optim": "sgd", "max_grad_norm": 0}  # Adam would blow rounding up to the size of a step
    whole = train(**plain)
    parts = train(per_device_train_batch_size=1, gradient_accumulation_steps=4, **plain)
    assert_same_weights(whole, parts, atol=1e-6, rtol=1e-5)
    for a, b in zip(training_logs(whole), training_logs(parts), strict=True):
        for name in a:
            if name not in ("epoch", "step"):
                assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name


def test_rollout_chunks_do_not_change_what_the_models_say(train):
    whole, chunked = train(max_steps=1), train(max_steps=1, local_rollout_forward_batch_size=4)
    assert_same_weights(whole, chunked)


@pytest.mark.parametrize("kind", ["trunk", "network", "lora", "several minibatches"])
def test_a_resumed_run_equals_the_uninterrupted_one(train, tmp_path, make_causal_lm, make_classifier, kind):
    def options():
        if kind == "network":
            return {"value_model": make_classifier(seed=3)}
        if kind == "lora":
            return {"peft_config": LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)}
        return (
            {"num_mini_batches": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
            if (kind == "several minibatches")
            else {}
        )

    settings = {"max_steps": 5, "kl_target": 0.1, "kl_horizon": 20, "save_strategy": "steps", "save_steps": 2}
    whole = train(**settings, **options())
    steps = 2 * whole.plan.steps_per_update
    resumed = train(resume=str(tmp_path / "run" / f"checkpoint-{steps}"), **settings, **options())
    assert_same_weights(whole, resumed)
    assert resumed.kl_controller.value == whole.kl_controller.value != 0.05
    ignored = ("epoch",)
    for ours, theirs in zip(training_logs(whole)[-3:], training_logs(resumed)[-3:], strict=True):
        assert {k: v for k, v in ours.items() if k not in ignored} == {
            k: v for k, v in theirs.items() if k not in ignored
        }


def test_beta_follows_the_kl_of_the_rollout_and_the_logged_one_is_the_one_used(train):
    logs = training_logs(train(max_steps=4, kl_coef=0.2, kl_target=0.5, kl_horizon=100))
    for now, later in itertools.pairwise(logs):
        error = np.clip(now["objective/kl"] / 0.5 - 1, -0.2, 0.2)
        assert later["objective/kl_coef"] == pytest.approx(now["objective/kl_coef"] * (1 + error * 4 / 100))
        reward = now["objective/scores"] - now["objective/kl_coef"] * now["objective/kl"]
        assert now["objective/rlhf_reward"] == pytest.approx(reward, abs=1e-4)
    assert logs[0]["objective/kl_coef"] == 0.2


def test_training_raises_the_reward(train):
    logs = training_logs(
        train(
            max_steps=20, per_device_train_batch_size=12, kl_coef=0.0, task=Task("t", 6), lr_scheduler_type="constant"
        )
    )
    first, last = (np.mean([row["objective/scores"] for row in part]) for part in (logs[:3], logs[-3:]))
    assert last > first + 1


def test_only_the_policy_and_its_value_move(train, make_causal_lm, make_classifier):
    judge = as_reward_model(make_classifier(), fresh_head=True)
    before = copy.deepcopy(judge.state_dict())
    trainer = train(reward_model=[judge, letter_e], reward_weights=[1.0, 0.5])
    start = make_causal_lm().state_dict()
    assert all(torch.equal(judge.state_dict()[name], weight) for name, weight in before.items())
    assert all(torch.equal(trainer.ref_model.state_dict()[name], weight) for name, weight in start.items())
    policy = trainer.model.policy.state_dict()
    assert any(not torch.equal(policy[name], weight) for name, weight in start.items())
    assert trainer.model.value_head.weight.any()
    names = {name for name in training_logs(trainer)[0] if name.startswith("rewards/")}
    assert names == {"rewards/GPT2ForSequenceClassification", "rewards/letter_e"}


def test_value_network_starts_from_the_reward_model(train, make_classifier):
    judge = as_reward_model(make_classifier(), fresh_head=True)
    trainer = train(reward_model=judge, value_init="reward", start=False)
    assert trainer.model.value_model is not judge
    assert torch.equal(trainer.model.value_model.score.weight, judge.score.weight)
    trainer.train()
    assert not torch.equal(trainer.model.value_model.score.weight, judge.score.weight)


def test_lora_trains_the_adapter_and_the_head_alone(train, make_causal_lm):
    trainer = train(peft_config=LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True))
    assert trainer.ref_model is None
    base = trainer.model.policy.unload().state_dict()
    for name, weight in make_causal_lm().state_dict().items():
        assert torch.equal(base[name], weight), name
    logs = training_logs(trainer)
    assert logs[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert logs[2]["objective/kl"] != 0


def test_a_named_adapter_serves_as_reference(train, make_causal_lm):
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False)
    policy = get_peft_model(make_causal_lm(), lora)
    policy.add_adapter("reference", lora)
    for name, parameter in policy.named_parameters():
        if ".reference." in name:
            parameter.data.copy_(policy.get_parameter(name.replace(".reference.", ".default.")))
    logs = training_logs(train(model=policy, ref_adapter_name="reference"))
    assert logs[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert logs[2]["objective/kl"] != 0


def test_saved_model_loads_and_the_policy_can_be_a_path(train, tmp_path, make_causal_lm):
    trainer = train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = ActorCritic.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.value_head.weight, trainer.model.value_head.weight)
    AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    again = train(model=str(tmp_path / "saved"), max_steps=1)
    assert training_logs(again)[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_evaluation_samples_held_out_prompts_without_touching_the_run(train):
    plain = train(max_steps=2)
    evaluated = train(
        max_steps=2, eval_strategy="steps", eval_steps=1, evaluate_with={"a": eval_set(), "b": eval_set(3)}
    )
    assert_same_weights(plain, evaluated)
    first, second = evaluated.evaluate(), evaluated.evaluate()
    names = ("eval_a_objective/kl", "eval_b_objective/scores", "eval_a_objective/valid_share")
    assert all(math.isfinite(first[name]) for name in names)
    assert {k: first[k] for k in names} == {k: second[k] for k in names}
    assert set(evaluated.evaluate(eval_set(2))) >= {"eval_objective/kl", "eval_rewards/letter_e"}


def test_statistics_equal_a_recomputation_on_a_frozen_rollout(train):
    trainer = train(max_steps=1, start=False)
    seen = []
    inner = trainer.compute_loss

    def record(model, inputs, **kwargs):
        loss = inner(model, inputs, **kwargs)
        with torch.no_grad():
            logprobs, entropy, values = trainer._evaluate_tokens(model, inputs.rollout)
        seen.append((inputs, logprobs.numpy(), entropy.numpy(), values.numpy()))
        return loss

    trainer.compute_loss = record
    trainer.train()
    logged = training_logs(trainer)[0]
    expected: dict[str, list[float]] = {}
    for inputs, logprobs, entropy, values in seen:
        old, returns = inputs.rollout.logprobs.numpy(), inputs.returns.numpy()
        advantages, old_values = inputs.advantages.numpy(), inputs.rollout.values.numpy()
        ratio = np.exp(logprobs - old)
        clipped_ratio, clipped_value = np.clip(ratio, 0.8, 1.2), old_values + np.clip(values - old_values, -0.2, 0.2)
        errors = (values - returns) ** 2, (clipped_value - returns) ** 2
        for name, value in {
            "loss/policy_avg": np.maximum(-advantages * ratio, -advantages * clipped_ratio).mean(),
            "loss/value_avg": 0.5 * np.maximum(*errors).mean(),
            "policy/approxkl_avg": 0.5 * ((logprobs - old) ** 2).mean(),
            "policy/clipfrac_avg": (-advantages * clipped_ratio > -advantages * ratio).mean(),
            "val/clipfrac_avg": (errors[1] > errors[0]).mean(),
            "policy/entropy_avg": entropy.mean(),
            "val/ratio": ratio.mean(),
            "val/return_var": returns.var(),
            "error": errors[0].mean(),
        }.items():
            expected.setdefault(name, []).append(float(value))
    means = {name: np.mean(values) for name, values in expected.items()}
    means["val/explained_variance"] = 1 - means.pop("error") / means["val/return_var"]
    for name, value in means.items():
        assert logged[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert logged["loss"] == pytest.approx(means["loss/policy_avg"] + 0.1 * means["loss/value_avg"], rel=1e-4)


def test_policy_trains_on_the_uncut_response(train):
    trainer = train(max_steps=1, start=False)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    rollout = trainer._collect(batch)
    assert rollout.mask.all()
    shaped_end = rollout.rewards[:, -1].abs() >= 0.9  # a score of -1 or a whole number of letters lands at T-1
    assert shaped_end.any()
    micro = next(trainer._train_on(rollout))
    logits = []

    def keep(module, inputs, output):
        output.retain_grad()
        logits.append(output)

    trainer.model.policy.lm_head.register_forward_hook(keep)
    trainer.compute_loss(trainer.model, micro).backward()
    assert (logits[0].grad.abs().sum(-1) > 0).all()


def test_a_reward_that_is_not_finite_stops_before_the_weights_change(train, make_causal_lm):
    def broken(prompts, completions, **columns):
        return [math.nan] * len(prompts)

    trainer = train(reward_model=broken, start=False)
    with pytest.raises(ValueError, match="'broken' gave no finite score for the prompt"):
        trainer.train()
    for name, weight in make_causal_lm().state_dict().items():
        assert torch.equal(trainer.model.policy.state_dict()[name], weight), name


def test_reference_optimizer_is_used_when_asked(train):
    optimizer = train(optimizer="tf_adam", adam_beta1=0.5, adam_beta2=0.9, max_steps=1).optimizer.optimizer
    assert isinstance(optimizer, TFAdam)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.5, 0.9), 1e-5)


def test_bfloat16_autocast_starts_on_policy(train):
    logs = training_logs(train(bf16=True, learning_rate=0.0, max_steps=1))
    assert logs[0]["val/ratio"] == pytest.approx(1, abs=1e-3)


def test_gradient_checkpointing_changes_nothing(train):
    assert_same_weights(train(), train(gradient_checkpointing=True), atol=1e-6, rtol=1e-5)


def test_config_without_a_task_masks_after_the_stop_token(train, tokenizer):
    trainer = train(task=None, response_length=6, stop_token_id=tokenizer(" the")["input_ids"][0], max_steps=1)
    assert trainer.task.task.regime == "eos"
    assert training_logs(trainer)[0]["objective/response_length"] <= 6


def test_held_out_samples_come_as_a_table_and_leave_training_alone(train, capsys):
    plain = train(max_steps=4)
    sampled = train(max_steps=4, evaluate_with=eval_set(), num_sample_generations=2, per_device_eval_batch_size=2)
    assert_same_weights(plain, sampled)
    assert capsys.readouterr().out.count("model response") == 2
    table = sampled.generate_completions()
    assert list(table.columns) == ["query", "model response", "score"]
    assert len(table) == 5
    assert table["query"][0] == PROMPTS[0]
    assert plain.generate_completions() is None


def test_a_reward_model_that_was_never_normalised_is_warned_of(train, make_classifier, caplog):
    train(reward_model=as_reward_model(make_classifier(), fresh_head=True), start=False)
    assert "GPT2ForSequenceClassification was never normalised" in caplog.text
