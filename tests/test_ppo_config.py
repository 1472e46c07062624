"""What the configuration refuses, and how batch sizes divide an update."""

import math

import pytest
import torch
from transformers import TrainingArguments

from trl_ziegler.ppo_config import UpdatePlan, ZieglerPPOConfig
from trl_ziegler.reward_trainer import BestOfKRewardConfig


def config(tmp_path, **fields) -> ZieglerPPOConfig:
    return ZieglerPPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **fields)


def test_defaults_that_differ_from_trl(tmp_path):
    args = config(tmp_path)
    assert (args.bf16, args.gradient_checkpointing) == (False, False)
    assert args.dataloader_pin_memory == torch.accelerator.is_available()
    assert args.world_size == 1


def test_paths_that_scripts_read_are_theirs(tmp_path):
    args = config(tmp_path, sft_model_path="sft", reward_model_path="rm")
    assert (args.sft_model_path, args.reward_model_path) == ("sft", "rm")


def test_without_an_accelerator_the_cpu_is_chosen(tmp_path, monkeypatch):
    """Or `Trainer` would leave each of several processes to itself, and refuse bfloat16."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = ZieglerPPOConfig(output_dir=str(tmp_path), report_to="none", bf16=True)
    assert args.use_cpu and BestOfKRewardConfig(output_dir=str(tmp_path), report_to="none", bf16=True).use_cpu


def test_one_process_drives_one_gpu(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 4)
    assert config(tmp_path)._n_gpu == 1
    assert "1 of 4 GPUs is used; `accelerate launch` starts a process for each." in caplog.text


def test_ddp_searches_for_unused_parameters_only_when_asked(tmp_path):
    assert config(tmp_path).ddp_find_unused_parameters is False
    assert config(tmp_path, ddp_find_unused_parameters=True).ddp_find_unused_parameters is True


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 8}, "`batch_size` is 8 but follows from the other batch sizes"),
        ({"world_size": 2}, "`world_size` is 2 but follows"),
        ({"kl_estimator": "k3"}, "`kl_estimator` is 'k3', which this trainer does not use"),
        ({"stop_token": "period"}, "`stop_token` is 'period'; it can be 'eos' or None"),
        ({"stop_token": "eos", "stop_token_id": 3}, "both set; give one"),
        (
            {"missing_eos_penalty": -1.0},
            "`missing_eos_penalty` is -1.0; give a number of at least 0: it is subt",
        ),
        ({"missing_eos_penalty": 1.0}, "`missing_eos_penalty` is 1.0 but there is no `stop_token`"),
        ({"whiten_scope": "node"}, "`whiten_scope` is 'node'"),
        ({"value_init": "policy"}, "`value_init` is 'policy'"),
        ({"cache_implementation": "dynamic"}, "`cache_implementation` is 'dynamic'; it can be 'static' or None"),
        ({"optimizer": "adam"}, "`optimizer` is 'adam'"),
        ({"optimizer": "tf_adam", "optim": "sgd"}, "`optim` is .*sgd.* and `optimizer` is 'tf_adam'"),
        ({"optimizer": "tf_adam", "adam_epsilon": 1e-6}, "`adam_epsilon` is 1e-06, which `optimizer='tf_adam'`"),
        ({"optimizer": "tf_adam", "weight_decay": 0.1}, "`weight_decay` is 0.1, which `optimizer='tf_adam'`"),
        ({"fp16": True}, "`fp16` is True, which this trainer does not use: its loss scaling"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1, which this trainer does not use"),
        ({"neftune_noise_alpha": 5.0}, "`neftune_noise_alpha` is 5.0"),
        ({"auto_find_batch_size": True}, "`auto_find_batch_size` is True"),
        ({"bf16_full_eval": True}, "`bf16_full_eval` is True"),
        ({"num_ppo_epochs": 0}, "`num_ppo_epochs` is 0; give at least 1"),
        ({"total_episodes": 0}, "`total_episodes` is 0; give at least 1"),
        ({"temperature": 0.0}, "`temperature` is 0.0; give a number above 0"),
        ({"temperature": math.inf}, "`temperature` is inf; give a number above 0"),
        ({"kl_coef": -1.0}, "`kl_coef` is -1.0; give a number of at least 0: a negative one would reward leaving"),
        ({"gamma": 99.0}, "`gamma` is 99.0; give a number from 0 to 1"),
        ({"lam": -1.0}, "`lam` is -1.0; give a number from 0 to 1"),
        ({"cliprange": -0.2}, "`cliprange` is -0.2; give a number above 0"),
        ({"cliprange_value": 0.0}, "`cliprange_value` is 0.0; give a number above 0"),
        ({"vf_coef": -0.1}, "`vf_coef` is -0.1; give a number of at least 0"),
        ({"learning_rate": "3e-5"}, "`learning_rate` is '3e-5'; give a number of at least 0"),
        ({"kl_target": 0.0}, "`kl_target` is 0.0; give a number above 0"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "`kl_target` is 6.0 and `kl_coef` 0, from which it could not move"),
        ({"kl_horizon": 0}, "`kl_horizon` is 0; give a number above 0"),
        ({"num_ppo_epochs": 2.0}, "`num_ppo_epochs` is 2.0; give a whole number"),
        ({"response_length": None}, "`response_length` is None; give a whole number"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` is 0; give at least 1"),
        ({"reward_weights": 1.0}, "`reward_weights` is 1.0; give a list"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 500, "eval_steps": 500},
            "`metric_for_best_model` is 'loss', which PPO does not evaluate; give for example 'objective/scores'",
        ),
    ],
)
def test_values_are_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **fields)


@pytest.mark.parametrize(
    ("minibatches", "accumulation", "mini", "micro", "steps", "accumulated"),
    [(1, 4, 32, 8, 2, 4), (2, 4, 16, 8, 4, 2), (4, 4, 8, 8, 8, 1), (2, 1, 4, 4, 4, 1), (8, 4, 4, 4, 16, 1)],
)
def test_optimiser_steps_are_epochs_times_minibatches(
    tmp_path, minibatches, accumulation, mini, micro, steps, accumulated
):
    args = config(
        tmp_path,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=minibatches,
        num_ppo_epochs=2,
        total_episodes=100,
    )
    plan = UpdatePlan.from_config(args, 100)
    assert (plan.local_mini_batch_size, plan.micro_batch_size) == (mini, micro)
    assert (plan.steps_per_update, plan.micro_batches_per_step) == (steps, accumulated)
    assert plan.updates == -(-100 // (8 * accumulation))  # rounded up


def test_updates_from_max_steps_episodes_or_epochs(tmp_path):
    size = {"per_device_train_batch_size": 10}
    assert UpdatePlan.from_config(config(tmp_path, max_steps=7, **size), 50).updates == 7
    assert UpdatePlan.from_config(config(tmp_path, total_episodes=1_000_000, **size), 50).updates == 100_000
    assert UpdatePlan.from_config(config(tmp_path, num_train_epochs=2.5, **size), 50).updates == 13


@pytest.mark.parametrize(
    ("fields", "queries", "message"),
    [
        ({"num_mini_batches": 3}, 100, "`num_mini_batches` is 3, which does not divide the 8 episodes"),
        (
            {"gradient_accumulation_steps": 3, "num_mini_batches": 2},
            100,
            "minibatch of 12 episodes is not a multiple of `per_device_train_batch_size` 8",
        ),
        ({"num_mini_batches": 2, "whiten_rewards": True}, 100, "a minibatch has 4 episodes; whitening needs"),
        ({}, 7, "`train_dataset` has 7 prompts, fewer than the 8 of one update"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, fields, queries, message):
    with pytest.raises(ValueError, match=message):
        UpdatePlan.from_config(config(tmp_path, per_device_train_batch_size=8, **fields), queries)


def test_plan_describes_every_size(tmp_path):
    args = config(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=2, max_steps=3)
    text = UpdatePlan.from_config(args, 100).describe()
    assert text == (
        "3 updates of 16 episodes (1 process x 16); per update 4 optimiser steps (4 epochs) on minibatches of 16 "
        "per process, 2 micro-batches of 8"
    )
