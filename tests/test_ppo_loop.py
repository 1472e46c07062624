"""Early stop of an update, values that are not finite, half-written checkpoints, rollouts on disk."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from ppo_parts import prompts
from ppo_runs import PROMPTS, CountSteps, assert_same_weights, letter_e, training_logs
from transformers import TrainerCallback

from trl_ziegler.actor_critic import ActorCritic
from trl_ziegler.ppo_checkpoints import missing_part, newest_checkpoint
from trl_ziegler.ppo_trainer import ZieglerPPOTrainer

pytest_plugins = "ppo_fixtures"

CHECKPOINTS = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "num_ppo_epochs": 1}


class TestTargetKL:
    def test_an_update_ends_before_the_step_that_exceeds_it(self, train):
        """With a step as large as this the second minibatch is already too far away, and nothing moves any more."""
        settings = {"max_steps": 1, "num_ppo_epochs": 4, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
        one_step = train(**{**settings, "num_ppo_epochs": 1})
        stopped = train(target_kl=1e-3, **settings)
        assert_same_weights(one_step, stopped)
        (log,) = training_logs(stopped)
        assert log["policy/optimizer_steps"] == 1
        assert stopped.state.global_step == 4  # the schedule counts the steps left out

    def test_a_generous_limit_changes_nothing(self, train):
        plain, limited = train(), train(target_kl=1e3)
        assert_same_weights(plain, limited)
        assert [log["policy/optimizer_steps"] for log in training_logs(limited)] == [2, 2, 2]

    def test_the_next_update_trains_again(self, train):
        logs = training_logs(train(target_kl=1e-3, num_ppo_epochs=4, learning_rate=0.1, max_steps=3))
        assert all(log["policy/optimizer_steps"] >= 1 for log in logs)
        assert logs[0]["objective/kl"] != logs[1]["objective/kl"] != logs[2]["objective/kl"]

    def test_means_leave_out_the_minibatches_that_never_ran(self, train):
        """The first epoch has ratio 1; a mean over four epochs of which two ran would be diluted to half."""
        settings = {"max_steps": 1, "num_ppo_epochs": 4, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
        (stopped,) = training_logs(train(target_kl=1e-3, **settings))
        (two,) = training_logs(train(**{**settings, "num_ppo_epochs": 2}))
        for name in ("policy/approxkl_avg", "val/ratio", "loss/policy_avg", "loss/value_avg", "loss"):
            assert stopped[name] == pytest.approx(two[name], rel=1e-4), name

    def test_momentum_moves_nothing_in_the_steps_left_out(self, train):
        class Weights(TrainerCallback):
            seen = []  # noqa: RUF012 (one trainer)

            def on_optimizer_step(self, args, state, control, model, **kwargs):
                self.seen.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))

        train(target_kl=1e-3, max_steps=2, num_ppo_epochs=3, learning_rate=0.1, callbacks=[Weights()])
        after = Weights.seen
        assert len(after) == 6
        assert not torch.equal(after[0], after[3])
        assert torch.equal(after[1], after[0]) and torch.equal(after[2], after[0])

    @pytest.mark.parametrize(
        ("fields", "message"), [({"target_kl": 0.0}, "`target_kl` is 0.0"), ({"target_kl": -1}, "`target_kl` is -1")]
    )
    def test_bad_limits_are_refused(self, train, fields, message):
        with pytest.raises(ValueError, match=message):
            train(**fields)


class Spoil(TrainerCallback):
    """Puts a NaN into the gradient of one parameter before the second step."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        if state.global_step == 1:
            next(model.parameters()).grad[0, 0] = float("nan")


class TestNonFinite:
    def test_a_policy_without_finite_values_stops_at_its_rollout(self, train, make_causal_lm):
        model = make_causal_lm()
        trainer = train(model=model, start=False)
        with torch.no_grad():
            trainer.model.policy.transformer.ln_f.weight[3] = float("nan")
        with pytest.raises(FloatingPointError, match=r"The reward of the prompt .* is not finite"):
            trainer.train()

    def test_a_loss_names_the_response_and_leaves_the_weights(self, train, monkeypatch):
        evaluate = ZieglerPPOTrainer._evaluate_tokens

        def broken(self, model, rollout):
            logprobs, entropy, values = evaluate(self, model, rollout)
            if self.state.global_step == 1:
                logprobs = logprobs + torch.where(torch.arange(len(logprobs)) == 2, torch.nan, 0.0)[:, None]
            return logprobs, entropy, values

        monkeypatch.setattr(ZieglerPPOTrainer, "_evaluate_tokens", broken)
        one_step = train(max_steps=1, num_ppo_epochs=1, lr_scheduler_type="constant")
        trainer = train(start=False, lr_scheduler_type="constant")
        with pytest.raises(FloatingPointError, match=r"The loss of the prompt ' .+' and the response '") as error:
            trainer.train()
        assert_same_weights(one_step, trainer)
        assert "the run stops before the weights change" in str(error.value)

    def test_a_gradient_is_traced_to_its_response(self, train, monkeypatch):
        """The forward pass is finite, the backward pass is not: sqrt at 0 for one response."""
        losses = ZieglerPPOTrainer._losses
        prompts = []

        def broken(self, batch, logprobs, values):
            policy, value = losses(self, batch, logprobs, values)
            target = batch.rollout.responses[:, 0] == broken.token
            if self.state.global_step == 1 and target.any():
                policy = policy + (logprobs[target] * 0).sqrt().sum()
            return policy, value

        def choose(prompts_, completions, **columns):
            prompts.append((prompts_, completions))
            return letter_e(prompts_, completions)

        trainer = train(start=False, reward_model=choose, max_steps=1)
        collect = trainer._collect

        def remember(batch):
            rollout = collect(batch)
            broken.token = int(rollout.responses[1, 0])
            broken.response = trainer.processing_class.decode(rollout.responses[1])
            return rollout

        monkeypatch.setattr(trainer, "_collect", remember)
        monkeypatch.setattr(ZieglerPPOTrainer, "_losses", broken)
        with pytest.raises(FloatingPointError, match="The gradient of the prompt") as error:
            trainer.train()
        assert repr(broken.response) in str(error.value)

    def test_a_gradient_spoiled_elsewhere_names_its_parameter(self, train):
        trainer = train(start=False, callbacks=[Spoil()], lr_scheduler_type="constant")
        trainer.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, Spoil))
        with pytest.raises(FloatingPointError, match=r"gradient of policy\.transformer\.wte\.weight is not finite"):
            trainer.train()
        assert_same_weights(train(max_steps=1, num_ppo_epochs=1, lr_scheduler_type="constant"), trainer)

    def test_clipping_to_a_norm_does_not_hide_it(self, train):
        trainer = train(start=False, callbacks=[Spoil()], max_grad_norm=1.0)
        trainer.callback_handler.callbacks.sort(key=lambda callback: not isinstance(callback, Spoil))
        with pytest.raises(FloatingPointError, match="not finite"):
            trainer.train()


class OwnRate(TrainerCallback):
    """The rate of the first step of each update."""

    def __init__(self):
        self.rates = []

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_a_scheduler_that_is_given_counts_updates_too(make_ppo):
    seen, model = OwnRate(), make_ppo().model.policy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 / (1 + update))
    make_ppo(model=model, optimizers=(optimizer, scheduler), callbacks=[seen]).train()
    assert seen.rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.1 / 3, 0.1 / 3])
    with pytest.raises(ValueError, match="`optimizers` holds a StepLR, which is no function of the step"):
        make_ppo(model=model, optimizers=(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1))).train()


def test_samples_per_second_are_episodes_of_this_run(train, tmp_path):
    for resume in (None, str(tmp_path / "run" / "checkpoint-4")):
        trainer = train(resume=resume, max_steps=3, save_strategy="steps", save_steps=1)
        (last,) = [row for row in trainer.state.log_history if "train_runtime" in row][-1:]
        updates = 3 if resume is None else 1
        assert last["train_samples_per_second"] == pytest.approx(updates * 4 / last["train_runtime"], rel=1e-3)


def test_the_sizes_of_an_update_are_printed_at_the_start(train, capsys):
    train(max_steps=1)
    said = capsys.readouterr().out
    assert (
        "1 update of 4 episodes (1 process x 4); per update 2 optimiser steps (2 epochs) on minibatches of 4" in said
    )


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["trainer_state.json", "ppo_state.json", "rollout_generators_0.safetensors"])
    def test_a_half_written_one_is_passed_over_with_a_warning(self, train, tmp_path, caplog, name):
        whole = train(**CHECKPOINTS)
        last = tmp_path / "run" / "checkpoint-3"
        file = last / name
        if name == "trainer_state.json":
            file.write_text(file.read_text()[:100])
        else:
            file.unlink()
        assert missing_part(last) == name
        resumed = train(resume=True, **CHECKPOINTS)
        assert f"{last} is ignored: it has no complete {name}" in caplog.text
        assert_same_weights(whole, resumed)
        assert len(training_logs(resumed)) == 3

    def test_a_model_whose_saving_fails_leaves_the_saved_one(self, train, tmp_path, monkeypatch):
        """The tokenizer's turn comes after the weights'."""
        trainer = train(start=False)
        folder = tmp_path / "model"
        trainer.save_model(str(folder))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        trainer.train()

        def fail(*args, **kwargs):
            raise OSError("disk full")

        monkeypatch.setattr(trainer.processing_class, "save_pretrained", fail)
        with pytest.raises(OSError, match="disk full"):
            trainer.save_model(str(folder))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_half_written_one_given_by_path_is_refused(self, train, tmp_path):
        train(**CHECKPOINTS)
        last = tmp_path / "run" / "checkpoint-3"
        (last / "ppo_state.json").unlink()
        with pytest.raises(ValueError, match=re.escape(f"resume from {tmp_path / 'run' / 'checkpoint-2'} instead")):
            train(resume=str(last), **CHECKPOINTS)
        (last / "trainer_state.json").write_text("{}")
        with pytest.raises(ValueError, match="another trainer wrote it, whose policy can be given as `model`"):
            train(resume=str(last), **CHECKPOINTS)
        with pytest.raises(ValueError, match="which is no folder"):
            train(resume=str(tmp_path / "nowhere"))

    def test_nothing_to_resume_is_said(self, train, tmp_path):
        with pytest.raises(ValueError, match=r"`resume_from_checkpoint` is True, but .*run holds no whole checkpoint"):
            train(resume=True)
        assert newest_checkpoint(tmp_path) is None

    def test_a_half_written_one_alone_is_not_resumed(self, train, tmp_path):
        train(**{**CHECKPOINTS, "max_steps": 1})
        (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").unlink()
        with pytest.raises(ValueError, match="holds no whole checkpoint"):
            train(resume=True, **CHECKPOINTS)

    def test_the_best_of_checkpoints_without_a_state_is_loaded(self, train, tmp_path):
        trainer = train(
            **CHECKPOINTS, save_only_model=True, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1,
            metric_for_best_model="objective/scores", greater_is_better=True, evaluate_with=prompts(4),
        )  # fmt: skip
        best = ActorCritic.from_pretrained(trainer.state.best_model_checkpoint)
        assert not (Path(trainer.state.best_model_checkpoint) / "ppo_state.json").exists()
        for name, weight in best.state_dict().items():
            assert torch.equal(trainer.model.state_dict()[name], weight), name

    def test_another_number_of_processes_is_refused(self, train, tmp_path):
        train(**CHECKPOINTS)
        file = tmp_path / "run" / "checkpoint-2" / "ppo_state.json"
        state = json.loads(file.read_text())
        file.write_text(json.dumps({**state, "world_size": 2}))
        (file.parent / "rollout_generators_1.safetensors").write_bytes(b"")
        with pytest.raises(ValueError, match="written by 2 processes, this run has 1"):
            train(resume=str(file.parent), **CHECKPOINTS)

    def test_the_limit_on_their_number_holds(self, train, tmp_path):
        train(**CHECKPOINTS, save_total_limit=1)
        assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


def test_rollouts_are_written_as_json_lines(train, tmp_path):
    trainer = train(rollout_dir=str(tmp_path / "rollouts"))
    files = sorted((tmp_path / "rollouts").iterdir())
    assert [file.name for file in files] == [f"rollouts-00000{update}-0.jsonl" for update in (1, 2, 3)]
    for file, log in zip(files, training_logs(trainer), strict=True):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) == 4
        assert sum(row["objective/kl"] for row in rows) / 4 == pytest.approx(log["objective/kl"], abs=1e-6)
        assert sum(row["objective/scores"] for row in rows) / 4 == pytest.approx(log["objective/scores"])
        assert all(isinstance(row["prompt"], str) and isinstance(row["response"], str) for row in rows)


def test_no_step_is_counted_twice(train):
    counter = CountSteps()
    trainer = train(callbacks=[counter], target_kl=1e3)
    assert counter.steps == trainer.state.global_step == 6


class TestStreams:
    def stream(self, rows=12):
        columns = {"prompt": (PROMPTS * 3)[:rows], "number": list(range(rows))}
        return Dataset.from_dict(columns).to_iterable_dataset()

    def test_every_row_comes_in_order_pass_after_pass(self, train):
        seen = []

        def reward(prompts, completions, number, **columns):
            seen.append(number)
            return letter_e(prompts, completions)

        trainer = train(train_dataset=self.stream(10), max_steps=5, reward_model=reward, num_mini_batches=2)
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2 + [[0, 1, 2, 3]]
        assert trainer.state.global_step == 5 * 4

    def test_a_resumed_stream_equals_the_uninterrupted_one(self, train, tmp_path):
        settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1}
        whole = train(train_dataset=self.stream().shuffle(seed=3, buffer_size=8), **settings)
        resumed = train(
            train_dataset=self.stream().shuffle(seed=3, buffer_size=8),
            resume=str(tmp_path / "run" / "checkpoint-8"),
            **settings,
        )
        assert_same_weights(whole, resumed)

    def test_bad_streams_are_refused(self, train):
        with pytest.raises(ValueError, match=r"a stream, whose length nobody knows; give `max_steps`"):
            train(train_dataset=self.stream(), max_steps=-1)
        with pytest.raises(ValueError, match="`dataloader_num_workers` is 2"):
            train(train_dataset=self.stream(), dataloader_num_workers=2)
        with pytest.raises(ValueError, match="fewer than the 4 prompts of one update"):
            train(train_dataset=self.stream(3))
        with pytest.raises(ValueError, match=r"`train_dataset` has the columns \['number'\]"):
            train(train_dataset=self.stream().remove_columns("prompt"))
        with pytest.raises(ValueError, match="Row 1 of `train_dataset` has an empty prompt"):
            train(train_dataset=Dataset.from_dict({"input_ids": [[1], []] * 4}).to_iterable_dataset())
