"""The trainer against TRL's, by hand, and on every format and loss."""

import copy
import math
from typing import ClassVar

import pytest
import torch
from datasets import Dataset, IterableDataset
from reward_records import assert_same_parameters, parameters_of, records
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BloomConfig
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardConfig, RewardTrainer

from trl_ziegler.optim import TFAdam
from trl_ziegler.reward_model import (
    as_reward_model,
    reward_head,
)
from trl_ziegler.reward_trainer import DataCollatorForBestOfK

pytest_plugins = "reward_fixtures"


class TestEqualToTRL:
    @pytest.mark.parametrize("changes", [{}, {"center_rewards_coefficient": 0.1}, {"margin": True}])
    @pytest.mark.parametrize("loss_type", ["best_of_k", "pairwise"])
    def test_pairs_give_trls_loss_and_gradients(
        self, make_classifier, make_trainer, tokenizer, config, changes, loss_type
    ):
        """The same ids and weights; TRL embeds padding where we mask it, and lengths differ to show that we agree."""
        changes = dict(changes)
        generator = torch.Generator().manual_seed(0)
        pairs = [torch.randint(0, 300, (2, 6), generator=generator).tolist() for _ in range(4)]
        columns = {"chosen_ids": [c[: 4 + i % 3] for i, (c, _) in enumerate(pairs)]}
        columns["rejected_ids"] = [rejected for _, rejected in pairs]
        if changes.pop("margin", False):
            columns["margin"] = [0.5, 0.0, 1.0, 2.0]
        dataset = Dataset.from_dict(columns)
        ours = make_trainer(dataset, model=make_classifier(), loss_type=loss_type, **changes)
        theirs = RewardTrainer(
            model=make_classifier(),
            args=config(RewardConfig, bf16=False, gradient_checkpointing=None, **changes),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        theirs.model.config.pad_token_id = tokenizer.eos_token_id  # some releases of TRL forget it
        losses = []
        for trainer in (ours, theirs):
            batch = trainer.data_collator([{k: row[k] for k in row} for row in trainer.train_dataset])
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
        our_gradients = {n: p.grad for n, p in ours.model.named_parameters()}
        for name, parameter in theirs.model.named_parameters():
            torch.testing.assert_close(our_gradients[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)

    def test_metrics_of_pairs_are_trls(self, make_classifier, make_trainer, tokenizer, config):
        dataset = Dataset.from_dict({"chosen_ids": [[1, 2, 3], [4, 5, 6]], "rejected_ids": [[1, 2, 7], [4, 5, 9]]})
        args = config(RewardConfig, bf16=False, gradient_checkpointing=None, num_train_epochs=1)
        ours = make_trainer(dataset, model=make_classifier())
        theirs = RewardTrainer(make_classifier(), args, train_dataset=dataset, processing_class=tokenizer)
        ours.train()
        theirs.train()
        logs = [trainer.state.log_history[0] for trainer in (ours, theirs)]
        shared = {"loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward", "num_tokens", "grad_norm"}
        assert shared <= set(logs[1])
        assert {k: logs[0][k] for k in shared} == pytest.approx({k: logs[1][k] for k in shared}, rel=1e-4, abs=1e-6)


class TestTraining:
    @pytest.mark.parametrize("optimizer", ["tf_adam", "hf"])
    def test_gain_trains_while_bias_and_offset_stay(self, make_trainer, optimizer):
        """The loss ignores bias and offset; only an Adam with a large epsilon takes their rounding errors for zero."""
        trainer = make_trainer(records(), optimizer=optimizer, learning_rate=1e-3, num_train_epochs=3, max_grad_norm=0)
        head = reward_head(trainer.model)
        before = copy.deepcopy(head)
        trainer.train()
        drift = max(abs(head.offset - before.offset).item(), abs(head.bias - before.bias).item())
        assert abs(head.gain - before.gain).item() > 1e-4 and not torch.equal(head.weight, before.weight)
        if optimizer == "tf_adam":
            assert isinstance(trainer.optimizer.optimizer, TFAdam) and drift < 1e-6
        else:
            assert drift > 1e-5

    @pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
    def test_every_parameter_reached_moves(self, make_classifier, make_trainer, kind):
        model = as_reward_model(make_classifier(kind), fresh_head=True)
        trainer, before = make_trainer(records(), model=model, learning_rate=1e-3), parameters_of(model)
        trainer.train()
        unmoved = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
        assert unmoved <= {"score.bias", "score.offset"}
        assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)

    def test_schedule_starts_at_lr_and_never_reaches_zero(self, make_trainer):
        """lr (1 - k B/N) for k = 0..N/B-1, in the logs as the rate of the step just made."""
        trainer = make_trainer(records(16), learning_rate=8e-3)
        rates = []
        trainer.create_optimizer_and_scheduler(4)
        for _ in range(4):
            rates.append(trainer.lr_scheduler.get_last_lr()[0])
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        assert rates == pytest.approx([8e-3, 6e-3, 4e-3, 2e-3])

    def test_each_label_is_used_once(self, make_trainer):
        trainer = make_trainer(records(8))
        trainer.train()
        assert trainer.state.global_step == 2 and trainer.state.epoch == 1

    def test_accumulated_micro_batches_equal_one_batch(self, make_trainer, make_classifier):
        models = []
        for batch, accumulation in ((4, 1), (2, 2)):
            trainer = make_trainer(
                records(4),
                model=as_reward_model(make_classifier(), fresh_head=True),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                optimizer="tf_adam",
            )
            trainer.train()
            models.append(parameters_of(trainer.model))
        assert_same_parameters(*models, atol=1e-6, rtol=0)

    def test_dropout_is_off(self, make_trainer):
        trainer = make_trainer(records())
        assert {m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == {0}

    def test_padding_and_filler_do_not_change_the_loss(self, make_trainer):
        trainer = make_trainer(records(4))
        rows = [{k: row[k] for k in row} for row in trainer.train_dataset]
        collators = [DataCollatorForBestOfK(), DataCollatorForBestOfK(pad_token_id=342, pad_to_multiple_of=32)]
        losses = [trainer.compute_loss(trainer.model, collate(rows)) for collate in collators]
        torch.testing.assert_close(*losses, atol=1e-6, rtol=0)

    def test_permuted_candidates_do_not_change_the_loss(self, make_trainer):
        trainer = make_trainer(records(4))
        rows = [{k: row[k] for k in row} for row in trainer.train_dataset]
        order = [2, 0, 3, 1]
        permuted = [
            {**row, "completion_ids": [row["completion_ids"][i] for i in order], "label": order.index(row["label"])}
            for row in rows
        ]
        losses = [trainer.compute_loss(trainer.model, trainer.data_collator(each)) for each in (rows, permuted)]
        torch.testing.assert_close(*losses, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(
        ("loss_type", "judgement", "values"),
        [
            ("ranking", "ranking", [[2, 0, 1], [1, 0]]),
            ("ranking", "scores", [[2.0, 2.0, 1.0], [0.0, 1.0]]),
            ("pairwise", "label", [2, 1]),
            ("scalar", "scores", [[1.0, 1.0, 1.0], [2.0, 0.0]]),
            ("best_of_k", "scores", [[1.0, 3.0, 1.0], [2.0, 0.0]]),
        ],
    )
    def test_every_loss_trains_on_records_of_mixed_k(self, make_trainer, loss_type, judgement, values):
        columns = {"prompt_ids": [[1], [2]], "completion_ids": [[[3], [4, 5], [6]], [[7], [8]]], judgement: values}
        dataset = Dataset.from_dict(columns)
        trainer = make_trainer(dataset, loss_type=loss_type, eval_dataset=dataset)
        trainer.train()
        metrics = trainer.evaluate()
        assert math.isfinite(metrics["eval_loss"]) and math.isfinite(trainer.state.log_history[0]["loss"])

    def test_centring_takes_the_mean_over_present_candidates(self, make_trainer, monkeypatch):
        """Rewards (2, 0, 1) and (1, 4): means 1 and 2.5, so (2² + 5²) / 2 = 14.5 on top, times the coefficient."""
        columns = {"prompt_ids": [[1], [2]], "completion_ids": [[[3], [4], [6]], [[7], [8]]], "label": [0, 0]}
        rewards = torch.tensor([[2.0, 0.0, 1.0], [1.0, 4.0, 9.0]])[:, :, None]  # the last is nobody's
        losses = []
        for coefficient in (None, 0.1):
            trainer = make_trainer(Dataset.from_dict(columns), center_rewards_coefficient=coefficient)
            monkeypatch.setattr(trainer.model.score, "forward", lambda hidden: rewards)
            losses.append(
                trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset))).item()
            )
        assert losses[1] - losses[0] == pytest.approx(1.45, abs=1e-5)

    def test_text_records_train_without_an_eos(self, make_trainer, tokenizer):
        columns = {"prompt": ["she"] * 4, "completions": [[" saw", " loved", " hated"]] * 4, "label": [0, 1, 2, 1]}
        trainer = make_trainer(Dataset.from_dict(columns))
        assert all(tokenizer.eos_token_id not in ids for row in trainer.train_dataset["completion_ids"] for ids in row)
        assert tokenizer.pad_token is None and trainer.model.config.pad_token_id is None
        trainer.train()

    def test_chat_records_train(self, make_trainer, tokenizer):
        tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        answers = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
        columns = {"prompt": [[{"role": "user", "content": "hi"}]] * 4, "completions": [answers] * 4, "label": [0] * 4}
        trainer = make_trainer(Dataset.from_dict(columns))
        trainer.train()
        assert math.isfinite(trainer.state.log_history[0]["loss"])

    def test_streamed_records_train(self, make_trainer):
        stream = IterableDataset.from_generator(lambda: iter(list(records(8))))
        trainer = make_trainer(stream, max_steps=2)
        trainer.train()
        assert trainer.state.global_step == 2

    @pytest.mark.slow
    def test_a_planted_linear_reward_is_learned(self, make_trainer):
        """The label is the candidate whose tokens have the highest sum of hidden values; 1 in 4 is chance."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(40, generator=generator)
        completions = torch.randint(0, 40, (2400, 4, 3), generator=generator)
        columns = {
            "prompt_ids": [[1, 2]] * 2400,
            "completion_ids": completions.tolist(),
            "label": values[completions].sum(-1).argmax(-1).tolist(),
        }
        dataset = Dataset.from_dict(columns)
        trainer = make_trainer(
            dataset.select(range(2000)),
            eval_dataset=dataset.select(range(2000, 2400)),
            per_device_train_batch_size=32,
            num_train_epochs=6,
            learning_rate=3e-3,
            logging_steps=1000,
        )
        trainer.train()
        metrics = trainer.evaluate()
        assert metrics["eval_accuracy"] > 0.9 and metrics["eval_chance"] == 0.25


class TestMetrics:
    def test_by_hand(self, make_trainer, monkeypatch):
        """Rewards (2, 0, 1), best 0; (1, 4), best 0: hit and miss, margins 1.5 and -3."""
        columns = {"prompt_ids": [[1], [2]], "completion_ids": [[[3], [4], [6]], [[7], [8]]], "label": [0, 0]}
        trainer = make_trainer(Dataset.from_dict(columns), eval_dataset=Dataset.from_dict(columns))
        rewards = torch.tensor([[2.0, 0.0, 1.0], [1.0, 4.0, 9.0]])[:, :, None]  # the last is nobody's
        monkeypatch.setattr(trainer.model.score, "forward", lambda hidden: rewards)
        metrics = trainer.evaluate()
        expected = {"accuracy": 0.5, "chance": (1 / 3 + 1 / 2) / 2, "margin": -0.75, "mean_reward": 1.6}
        expected |= {"min_reward": 0, "max_reward": 4, "std_reward": 1.356466}
        assert {key: metrics[f"eval_{key}"] for key in expected} == pytest.approx(expected, rel=1e-5)
        losses = [math.log(math.exp(2) + 1 + math.e) - 2, math.log(math.e + math.exp(4)) - 1]
        assert metrics["eval_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)

    def test_equal_rewards_count_as_a_miss(self, make_trainer, monkeypatch):
        trainer = make_trainer(records(4), eval_dataset=records(4))
        monkeypatch.setattr(trainer.model.score, "forward", lambda hidden: hidden.new_zeros(*hidden.shape[:2], 1))
        metrics = trainer.evaluate()
        assert metrics["eval_accuracy"] == 0 and metrics["eval_loss"] == pytest.approx(math.log(4))

    def test_batch_split_does_not_matter(self, make_trainer):
        keys = ("loss", "accuracy", "chance", "margin", "mean_reward", "std_reward")
        results = []
        for batch_size in (2, 3, 7):
            trainer = make_trainer(records(4), eval_dataset=records(7), per_device_eval_batch_size=batch_size)
            metrics = trainer.evaluate()
            results.append({key: metrics[f"eval_{key}"] for key in keys})
        assert results[0] == pytest.approx(results[2], abs=1e-5) and results[1] == pytest.approx(results[2], abs=1e-5)

    def test_random_rewards_are_right_at_the_rate_of_chance(self, make_trainer, monkeypatch):
        trainer = make_trainer(records(2), eval_dataset=records(2000), per_device_eval_batch_size=500)
        monkeypatch.setattr(trainer.model, "forward", _random_rewards)
        metrics = trainer.evaluate()
        assert metrics["eval_accuracy"] == pytest.approx(0.25, abs=0.03) and metrics["eval_chance"] == 0.25

    def test_compute_metrics_gets_rewards_and_labels(self, make_trainer):
        seen = []
        columns = {"prompt_ids": [[1], [2]], "completion_ids": [[[3], [4], [6]], [[7], [8]]], "label": [2, 1]}
        trainer = make_trainer(
            records(4),
            eval_dataset=Dataset.from_dict(columns),
            trainer_kwargs={"compute_metrics": lambda p: seen.append((p.predictions, p.label_ids)) or {"n": 1}},
        )
        assert trainer.evaluate()["eval_n"] == 1
        predictions, labels = seen[0]
        assert predictions.shape == (2, 3) and predictions[1, 2] == -100 and labels.tolist() == [2, 1]


class TestSharedPrefix:
    """`shared_prefix=True`, the default, against `False`: the same numbers, whatever the judgement and the model."""

    COLUMNS: ClassVar = {
        "prompt_ids": [[1, 2, 3, 4, 5, 6], [7], [], [8, 9, 10]],
        "completion_ids": [
            [[11, 12], [13], [14, 15, 16], [11, 17]],
            [[18], [19, 20]],
            [[21, 22], [21, 23, 24], [25]],
            [[26, 27, 28, 29], [30]],
        ],
    }

    def pair(self, make_trainer, model, dataset=None, **changes):
        """Two trainers that differ in `shared_prefix` alone, with copies of one model."""
        dataset = Dataset.from_dict({**self.COLUMNS, "label": [3, 0, 1, 1]}) if dataset is None else dataset
        return [
            make_trainer(dataset, model=copy.deepcopy(model), eval_dataset=dataset, shared_prefix=shared, **changes)
            for shared in (True, False)
        ]

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    @pytest.mark.parametrize(
        ("kind", "dtype", "tolerance"),
        [("gpt2", torch.float32, 1e-5), ("llama", torch.float32, 1e-5), ("gpt2", torch.float64, 1e-10)],
    )
    @pytest.mark.parametrize("loss_type", ["best_of_k", "pairwise"])
    def test_loss_and_gradients_are_equal(
        self, make_reward_model, make_trainer, kind, dtype, tolerance, attention, loss_type
    ):
        model = make_reward_model(kind).to(dtype)
        model.set_attn_implementation(attention)
        results = []
        for trainer in self.pair(make_trainer, model, loss_type=loss_type, center_rewards_coefficient=0.1):
            batch = trainer.data_collator(list(trainer.train_dataset))
            assert ("segment_ids" in batch) == trainer.args.shared_prefix
            loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
            loss.backward()
            gradients = [parameter.grad for parameter in trainer.model.parameters()]
            results.append((loss.detach(), outputs.logits.detach(), gradients))
        assert results[0][1][1, 2:].tolist() == [-100, -100]
        torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)

    def test_training_metrics_and_evaluation_are_equal(self, make_reward_model, make_trainer):
        logs = []
        for trainer in self.pair(make_trainer, make_reward_model(), per_device_train_batch_size=2, learning_rate=1e-3):
            trainer.train()
            metrics = {**trainer.state.log_history[0], **trainer.evaluate()}
            logs.append({k: v for k, v in metrics.items() if not k.endswith(("runtime", "second"))})
        assert {"num_tokens", "eval_accuracy", "eval_margin", "grad_norm"} <= set(logs[0])
        assert logs[0] == pytest.approx(logs[1], rel=1e-4, abs=1e-5)

    def test_trained_models_are_equal_on_disk(self, make_reward_model, make_trainer, tmp_path):
        folders = []
        changes = {"optimizer": "tf_adam", "learning_rate": 1e-3, "max_grad_norm": 0}
        for trainer in self.pair(make_trainer, make_reward_model(), **changes):
            trainer.train()
            folders.append(tmp_path / str(trainer.args.shared_prefix))
            trainer.save_model(str(folders[-1]))
        assert sorted(p.name for p in folders[0].iterdir()) == sorted(p.name for p in folders[1].iterdir())
        states = [{**load_file(f / "model.safetensors"), **load_file(f / "reward_head.safetensors")} for f in folders]
        assert_same_parameters(*states, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("gradient_checkpointing", [False, True])
    def test_adapters_train_alike_also_with_recomputed_activations(
        self, make_adapter, make_trainer, gradient_checkpointing
    ):
        model, trained = make_adapter(), []
        changes = {"optimizer": "tf_adam", "learning_rate": 1e-3, "max_grad_norm": 0}
        for trainer in self.pair(make_trainer, model, gradient_checkpointing=gradient_checkpointing, **changes):
            trainer.train()
            trained.append(parameters_of(trainer.model))
        before = parameters_of(model)
        moved = {name for name, parameter in trained[0].items() if not torch.equal(parameter, before[name])}
        assert any("lora_A" in name for name in moved) and any("gain" in name for name in moved)
        assert_same_parameters(*trained, atol=1e-6, rtol=1e-5)

    def test_pairs_without_a_prompt_share_what_they_begin_with(self, make_reward_model, make_trainer):
        dataset = Dataset.from_dict({"chosen_ids": [[1, 2, 3, 4]], "rejected_ids": [[1, 2, 5]]})
        shared, apart = self.pair(make_trainer, make_reward_model(), dataset)
        batches = [trainer.data_collator(list(trainer.train_dataset)) for trainer in (shared, apart)]
        assert batches[0]["input_ids"].tolist() == [[1, 2, 3, 4, 5]] and batches[1]["input_ids"].shape == (2, 4)
        losses = [t.compute_loss(t.model, b) for t, b in zip((shared, apart), batches, strict=True)]
        torch.testing.assert_close(*losses, atol=1e-6, rtol=0)

    def test_a_model_that_cannot_share_is_refused_and_trains_when_told(self, make_trainer):
        torch.manual_seed(0)
        config = BloomConfig(vocab_size=400, hidden_size=32, n_layer=1, n_head=2, num_labels=1)
        model = as_reward_model(AutoModelForSequenceClassification.from_config(config))
        with pytest.raises(ValueError, match=r"type 'bloom' is not one of those tested.*set `shared_prefix=False`"):
            make_trainer(records(4), model=model)
        trainer = make_trainer(records(4), model=model, shared_prefix=False)
        trainer.train()
        assert math.isfinite(trainer.state.log_history[0]["loss"])


def _random_rewards(reward_positions, **inputs):
    return SequenceClassifierOutput(logits=torch.randn(reward_positions.shape))
