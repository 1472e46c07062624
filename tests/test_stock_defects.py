"""Defects of the PPO trainer of TRL 1.12.0 that this one does not have, one test each: wrong training.

Numbers in the comments are the stock trainer's. What crashed, was lost or misled is in `test_stock_defects_crashes.py`
and `test_stock_defects_reports.py`.
"""

import copy
import random

import numpy as np
import pytest
import torch
from ppo_parts import favour, prompts
from ppo_runs import assert_same_weights, training_logs
from transformers import TrainerCallback

from trl_ziegler.queries import raw_queries
from trl_ziegler.reward_model import as_reward_model, score_token_ids
from trl_ziegler.rollout import Rollout, advantages_and_returns
from trl_ziegler.tasks import Task

pytest_plugins = "ppo_fixtures"


class StepsPerUpdate(TrainerCallback):
    """Counts what the optimiser itself is told, update by update."""

    def __init__(self):
        self.steps, self.per_update = 0, []

    def watch(self, trainer):
        def count(*_):
            self.steps += 1

        trainer.add_callback(self)
        trainer.create_optimizer().register_step_post_hook(count)
        return self

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.per_update.append(self.steps - sum(self.per_update))


@pytest.mark.parametrize(("minibatches", "steps"), [(1, 2), (2, 4), (4, 8)])
def test_d01_every_minibatch_makes_a_step_and_no_unfilled_cell_dilutes_the_statistics(make_ppo, minibatches, steps):
    trainer = make_ppo(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, num_mini_batches=minibatches, max_steps=2,
        learning_rate=0.0,
    )  # fmt: skip
    counter = StepsPerUpdate().watch(trainer)
    trainer.train()
    assert counter.per_update == [steps, steps]  # 2 each time
    assert [row["val/ratio"] for row in training_logs(trainer)] == pytest.approx([1, 1], abs=1e-5)  # 0.5 and 0.25


def test_d02_the_last_batch_of_a_pass_accumulates_like_the_others(make_ppo):
    trainer = make_ppo(
        train_dataset=prompts(24), per_device_train_batch_size=2, gradient_accumulation_steps=4, num_ppo_epochs=1,
        max_steps=6,
    )  # fmt: skip
    counter = StepsPerUpdate().watch(trainer)
    trainer.train()
    assert counter.per_update == [1] * 6  # 1 1 4 1 1 4


def ending_at(tokenizer, index: int, end: int, length: int = 8) -> list[int]:
    """A response whose only `end` is at `index`; at `length` or later for none."""
    row = tokenizer(" the cat was old and very good not")["input_ids"][:length]
    assert len(row) == length and end not in row
    return [end if i == index else token for i, token in enumerate(row)]


def test_d03_eos_is_trained_scored_and_attended_to_when_it_is_also_the_pad(
    make_ppo, tokenizer, make_classifier, make_causal_lm
):
    tokenizer.pad_token = tokenizer.eos_token
    eos = tokenizer.eos_token_id
    judge = as_reward_model(make_classifier(), fresh_head=True)
    trainer = make_ppo(
        model=favour(make_causal_lm(), eos, 4.0), reward_model=judge, task=None, stop_token="eos", response_length=8,
        kl_coef=0.0, train_dataset=prompts(4).map(lambda row: {"prompt": row["prompt"] + "<|endoftext|> she"}),
    )  # fmt: skip
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert batch["attention_mask"].sum(1).tolist() == [len(ids) for ids in trainer.train_dataset["input_ids"]]
    assert all(eos in query for query in raw_queries(trainer.task, batch))
    rollout = trainer._collect(batch)
    ended = (rollout.responses == eos).any(1)
    assert ended.any()
    for row in ended.nonzero().flatten().tolist():
        end = int((rollout.responses[row] == eos).nonzero()[0])
        assert rollout.mask[row].tolist() == [i <= end for i in range(8)]  # EOS at 3: stock trained 0, 1, 2
        query = [raw_queries(trainer.task, batch)[row]]
        read = score_token_ids(judge, query, [rollout.responses[row, : end + 1].tolist()])
        torch.testing.assert_close(rollout.rewards[row, end], read[0])  # stock read index 2 - 1


def test_d04_score_lands_on_the_last_real_token(make_ppo, tokenizer):
    trainer = make_ppo(task=None, stop_token="eos", response_length=8, reward_model=lambda p, c, **k: [5.0] * len(p))
    eos = tokenizer.eos_token_id
    responses = torch.tensor([ending_at(tokenizer, index, eos) for index in (0, 3, 7, 8)])
    scored = trainer.reward.score([[1]] * 4, responses, {"number": [0] * 4})
    zeros = torch.zeros(4, 8)
    rewards = trainer.reward.shape(scored, zeros, zeros).rewards
    assert rewards.nonzero().tolist() == [[0, 0], [1, 3], [2, 7], [3, 7]]  # stock: 1, 4, 7, 7
    assert rewards.sum(1).tolist() == [5.0] * 4


def test_d05_the_penalty_looks_for_the_stop_token_and_leaves_the_models_score_readable(make_ppo, make_causal_lm):
    def logs(by):
        trainer = make_ppo(
            model=favour(make_causal_lm(), 15, by), task=None, stop_token_id=15, missing_eos_penalty=99.9, max_steps=1
        )
        trainer.train()
        return training_logs(trainer)[0]

    always, never = logs(30.0), logs(-30.0)
    assert always["objective/scores"] == always["score/raw"] > -1  # -99.9
    assert never["objective/scores"] == pytest.approx(never["score/raw"] - 99.9, rel=1e-5)
    with pytest.raises(ValueError, match=r"`missing_eos_penalty` is -1\.0; give a number of at least 0: it is sub"):
        make_ppo(task=None, stop_token="eos", missing_eos_penalty=-1.0)


@pytest.mark.parametrize("processor", [{"repetition_penalty": 1.8}, {"no_repeat_ngram_size": 1}, {"min_p": 0.5}])
def test_d06_a_models_generation_config_takes_no_part_in_the_log_probabilities(make_ppo, make_causal_lm, processor):
    model = make_causal_lm()
    model.generation_config.update(**processor)
    trainer = make_ppo(model=model, max_steps=1, learning_rate=0.0, task=Task("t", 12))
    trainer.train()
    logs = training_logs(trainer)[0]
    assert logs["val/ratio"] == pytest.approx(1, abs=1e-5)  # 1.17, 0.02 and 0.98
    assert logs["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)  # 6.75 for the first


def test_d07_a_sampled_pad_is_a_token_like_any_other(make_ppo, make_causal_lm, tokenizer):
    pad = tokenizer("!")["input_ids"][0]
    tokenizer.pad_token = "!"
    trainer = make_ppo(model=favour(make_causal_lm(), pad, 5.0), max_steps=1, learning_rate=0.0)
    rollouts, collect = [], trainer._collect
    trainer._collect = lambda batch: rollouts.append(collect(batch)) or rollouts[-1]
    trainer.train()
    assert (rollouts[0].responses[:, :-1] == pad).any()
    assert rollouts[0].mask.all()
    assert training_logs(trainer)[0]["val/ratio"] == pytest.approx(1, abs=1e-5)


def test_d08_a_reward_model_that_is_also_trained_is_refused(make_ppo, make_classifier):
    judge = as_reward_model(make_classifier(), fresh_head=True)
    with pytest.raises(ValueError, match="reward model is the same object as another model of the trainer"):
        make_ppo(reward_model=judge, value_model=judge)
    trainer = make_ppo(reward_model=judge, value_model=copy.deepcopy(judge))
    before = score_token_ids(judge, [[1, 2]], [[3]])
    trainer.train()
    assert torch.equal(score_token_ids(judge, [[1, 2]], [[3]]), before)  # +0.05 became -0.47


@pytest.mark.parametrize("kind", ["function", "model"])
def test_d09_a_reward_of_nan_stops_the_run_before_the_weights_change(make_ppo, make_classifier, kind):
    judge = as_reward_model(make_classifier(), fresh_head=True)
    with torch.no_grad():
        judge.score.weight.fill_(float("nan"))
    reward = judge if kind == "model" else lambda prompts, completions, **columns: [float("nan")] * len(prompts)
    trainer = make_ppo(reward_model=reward)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises((ValueError, FloatingPointError), match="finite"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.state_dict().items())


# D10: arguments that had no effect


def test_d10_max_grad_norm_clips(make_ppo):
    trainer = make_ppo(
        max_grad_norm=1e-3, optim="sgd", learning_rate=1.0, num_ppo_epochs=1, max_steps=1, lr_scheduler_type="constant"
    )
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    moved = [(weight.detach() - before[name]).norm() for name, weight in trainer.model.named_parameters()]
    assert torch.stack(moved).norm() == pytest.approx(1e-3, rel=1e-3)


def test_d10_gradient_checkpointing_recomputes(make_ppo):
    def passes(**options):
        trainer = make_ppo(num_ppo_epochs=1, max_steps=1, **options)
        seen = []
        trainer.model.policy.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: seen.append(1))
        trainer.train()
        return len(seen)

    assert passes(gradient_checkpointing=True) == passes() + 1


def test_d10_bf16_reaches_the_training_pass(make_ppo):
    trainer = make_ppo(bf16=True, max_steps=1)
    seen = set()

    def look(module, inputs, output):
        if torch.is_grad_enabled():
            seen.add(output.dtype)

    trainer.model.policy.transformer.h[0].mlp.register_forward_hook(look)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert seen == {torch.bfloat16}


class StopInTheFirstUpdate(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_d10_steps_logs_evaluations_and_the_stop_flag_are_obeyed(make_ppo):
    trainer = make_ppo(
        max_steps=5, logging_steps=2, eval_strategy="steps", eval_steps=3, eval_dataset=prompts(5),
        per_device_eval_batch_size=2,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 5 * 2
    assert [row["step"] / 2 for row in training_logs(trainer)] == [2, 4]
    # `Trainer` evaluates at the end of a run too.
    assert [row["step"] / 2 for row in trainer.state.log_history if "eval_runtime" in row] == [3, 5]
    stopped = make_ppo(max_steps=5, callbacks=[StopInTheFirstUpdate()])
    stopped.train()
    assert stopped.state.global_step == 2


def test_d10_the_delay_of_evaluations_counts_updates(make_ppo):
    trainer = make_ppo(
        max_steps=4, num_ppo_epochs=4, eval_strategy="steps", eval_steps=1, eval_delay=3, eval_dataset=prompts(4)
    )
    trainer.train()
    assert [row["step"] / 4 for row in trainer.state.log_history if "eval_runtime" in row] == [3, 4]


def test_d10_arguments_of_the_data_loader_are_obeyed(make_ppo):
    def trained(**options):
        trainer = make_ppo(max_steps=2, **options)
        trainer.train()
        return trainer

    plain = trained()
    workers = trained(dataloader_num_workers=1, dataloader_prefetch_factor=2, dataloader_persistent_workers=True)
    assert workers.get_train_dataloader().num_workers == 1
    assert_same_weights(plain, workers)
    assert_same_weights(plain, trained(dataloader_drop_last=True))  # an update is never incomplete
    other_order = trained(data_seed=7)
    with pytest.raises(AssertionError):
        assert_same_weights(plain, other_order)


def random_rollout(mean: float, rows: int = 6) -> Rollout:
    generator = torch.Generator().manual_seed(int(100 * mean))
    ids = torch.zeros(rows, 5, dtype=torch.long)
    rewards = torch.randn(rows, 5, generator=generator) + mean
    return Rollout(ids, ids, ids, torch.ones(rows, 5).bool(), torch.zeros(rows, 5), torch.zeros(rows, 5), rewards)


def test_d11_advantages_are_whitened_over_all_ranks():
    ranks = [random_rollout(0.0), random_rollout(1.0)]
    options = {"gamma": 1.0, "lam": 0.95, "whiten_rewards": False}
    sent: list[torch.Tensor] = []
    for rollout in ranks:
        advantages_and_returns(rollout, gather=lambda part: sent.append(part) or part, **options)

    def gather(_):
        return torch.cat(sent)

    whitened = [advantages_and_returns(rollout, gather=gather, **options)[0] for rollout in ranks]
    assert torch.cat(whitened).mean() == pytest.approx(0, abs=1e-5)
    assert torch.cat(whitened).var(unbiased=False) == pytest.approx(1, abs=1e-4)
    assert whitened[0].mean() < -0.3  # 0 on each rank


class Disturb(TrainerCallback):
    """Puts the global generators into another state at every step."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_step_begin(self, args, state, control, **kwargs):
        np.random.seed(self.seed + state.global_step)
        random.seed(self.seed + state.global_step)
        torch.manual_seed(self.seed + state.global_step)


def test_d12_global_generators_take_no_part(make_ppo):
    runs = [make_ppo(callbacks=[Disturb(seed)], num_mini_batches=2) for seed in (0, 1000)]
    for trainer in runs:
        trainer.train()
    assert_same_weights(*runs)
