"""Configurations, models and adapters, checkpoints, resuming, two processes."""

import json
from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from launches import launched, several_processes
from peft import LoraConfig, PromptTuningConfig
from reward_records import assert_same_parameters, parameters_of, records
from safetensors.torch import load_file
from trl import RewardConfig

from trl_ziegler.checkpoints import newest_reward_checkpoint
from trl_ziegler.reward_model import (
    is_normalized,
    load_reward_model,
    normalize_reward_model,
    reward_head,
    score_token_ids,
)
from trl_ziegler.reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer

pytest_plugins = "reward_fixtures"


class TestResume:
    @pytest.mark.parametrize("adapter", [False, True])
    def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
        self, make_trainer, make_causal_lm, tmp_path, adapter
    ):
        make_causal_lm().save_pretrained(tmp_path / "base")
        peft_config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True) if adapter else None
        settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2, "model": str(tmp_path / "base")}
        settings["peft_config"] = peft_config
        whole = make_trainer(records(16), **settings, output_dir=str(tmp_path / "a"))
        whole.train()
        resumed = make_trainer(records(16), **settings, output_dir=str(tmp_path / "b"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
        assert reward_head(whole.model).gain.item() != 1.0
        assert_same_parameters(parameters_of(whole.model), parameters_of(resumed.model))
        losses = [[log["loss"] for log in t.state.log_history if "loss" in log] for t in (whole, resumed)]
        assert losses[0] == losses[1]

    def test_best_model_is_loaded_with_its_own_head(self, make_trainer):
        trainer = make_trainer(
            records(16),
            eval_dataset=records(4, seed=1),
            save_strategy="steps",
            eval_strategy="steps",
            save_steps=1,
            eval_steps=1,
            learning_rate=3e-2,
            load_best_model_at_end=True,
        )
        trainer.train()
        losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
        assert losses[-1] != min(losses)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)

    def test_checkpoint_is_an_ordinary_reward_model(self, make_trainer):
        trainer = make_trainer(records(8), save_strategy="epoch", learning_rate=1e-2)
        trainer.train()
        loaded = load_reward_model(f"{trainer.args.output_dir}/checkpoint-2")
        pairs = [[[1, 2], [3]], [[4, 5, 6], [7]]]
        torch.testing.assert_close(score_token_ids(loaded, *pairs), score_token_ids(trainer.model, *pairs))

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("trainer_state.json", None),
            ("trainer_state.json", '{"epoch": 1.0, "lo'),
            ("reward_head.safetensors", None),
            ("rng_state.pth", "half"),
        ],
    )
    def test_half_written_checkpoint_is_passed_over(self, make_trainer, tmp_path, caplog, file, content):
        make_trainer(records(12), save_strategy="steps", save_steps=1).train()
        half = tmp_path / "out" / "checkpoint-3"
        (half / file).unlink() if content is None else (half / file).write_text(content)
        assert newest_reward_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-2")
        assert f"{half} is ignored: it has no complete {file}, so its writing was cut off" in caplog.text

    def test_training_goes_on_from_the_newest_whole_checkpoint(self, make_trainer, tmp_path):
        settings = {"save_strategy": "steps", "save_steps": 1}
        whole = make_trainer(records(12), **settings)
        whole.train()
        (tmp_path / "out" / "checkpoint-3" / "trainer_state.json").unlink()
        resumed = make_trainer(records(12), **settings)
        resumed.train(resume_from_checkpoint=True)
        assert_same_parameters(parameters_of(resumed.model), parameters_of(whole.model))

    def test_training_whose_only_checkpoint_is_half_written_starts_over(self, make_trainer, tmp_path):
        with pytest.raises(ValueError, match="No valid checkpoint"):
            make_trainer(records(8)).train(resume_from_checkpoint=True)
        (tmp_path / "out" / "checkpoint-1").mkdir(parents=True)
        trainer = make_trainer(records(8))
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 2

    def test_checkpoint_without_its_head_is_refused(self, make_trainer, tmp_path):
        trainer = make_trainer(records(8), save_strategy="epoch")
        trainer.train()
        (tmp_path / "out" / "checkpoint-2" / "reward_head.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="not a complete checkpoint of a reward model"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


class TestModels:
    def test_path_without_a_head_gets_one_seeded_with_the_run(self, make_trainer, make_causal_lm, tmp_path):
        make_causal_lm().save_pretrained(tmp_path / "base")
        trainers = [make_trainer(records(), model=str(tmp_path / "base"), seed=seed) for seed in (1, 1, 2)]
        weights = [reward_head(trainer.model).weight for trainer in trainers]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])

    def test_model_object_keeps_its_head(self, make_trainer, make_classifier):
        model = make_classifier()
        weight = model.score.weight.clone()
        assert torch.equal(reward_head(make_trainer(records(), model=model).model).weight, weight)

    def test_tokenizer_is_found_beside_the_model(self, make_causal_lm, tokenizer, config, tmp_path):
        make_causal_lm().save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        columns = {"prompt": ["she"], "completions": [[" saw", " was"]], "label": [1]}
        trainer = BestOfKRewardTrainer(str(tmp_path / "base"), config(), train_dataset=Dataset.from_dict(columns))
        assert trainer.processing_class.decode(trainer.train_dataset[0]["prompt_ids"]) == "she"

    def test_model_init_kwargs_reach_the_model(self, make_trainer, make_causal_lm, tmp_path):
        make_causal_lm().save_pretrained(tmp_path / "base")
        kwargs = {"attn_implementation": "eager"}
        trainer = make_trainer(records(), model=str(tmp_path / "base"), model_init_kwargs=kwargs)
        assert trainer.model.config._attn_implementation == "eager"
        assert trainer.args.model_init_kwargs == kwargs

    def test_lora_trains_and_saves_head_and_adapter_only(self, make_trainer, make_causal_lm, tmp_path):
        make_causal_lm().save_pretrained(tmp_path / "base")
        peft_config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
        trainer = make_trainer(records(), model=str(tmp_path / "base"), peft_config=peft_config, learning_rate=1e-2)
        assert peft_config.modules_to_save is None  # the user's object is left alone
        before = parameters_of(trainer.model)
        trainer.train()
        moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
        assert moved and all("lora" in n or "score.modules_to_save.default" in n for n in moved)
        assert {"weight", "gain"} <= {n.rsplit(".", 1)[1] for n in moved if "score" in n}
        trainer.save_model(str(tmp_path / "adapter"))
        saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert (
            saved["base_model.model.score.gain"].item() == 1.0
        )  # folded, as `save_pretrained` of a reward model does
        loaded = load_reward_model(tmp_path / "adapter")
        pairs = [[[1, 2], [3]], [[4, 5, 6], [7]]]
        torch.testing.assert_close(score_token_ids(loaded, *pairs), score_token_ids(trainer.model, *pairs))

    def test_adapter_folder_can_be_trained_further(self, make_trainer, make_causal_lm, tmp_path):
        make_causal_lm().save_pretrained(tmp_path / "base")
        config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True)
        make_trainer(records(), model=str(tmp_path / "base"), peft_config=config).save_model(str(tmp_path / "adapter"))
        trainer = make_trainer(records(), model=str(tmp_path / "adapter"), learning_rate=1e-2)
        before = parameters_of(trainer.model)
        trainer.train()
        assert any("lora" in n and not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())

    def test_training_forgets_a_normalisation_and_evaluating_does_not(self, make_trainer):
        trainer = make_trainer(records(4), eval_dataset=records(4))
        normalize_reward_model(trainer.model, [[1, 2], [3]], [[4], [5, 6]])
        trainer.evaluate()
        assert is_normalized(trainer.model)
        trainer.train()
        assert not is_normalized(trainer.model)

    def test_model_card_names_the_paper(self, make_trainer, tmp_path):
        trainer = make_trainer(records(4))
        trainer.create_model_card()
        assert "1909.08593" in (tmp_path / "out" / "README.md").read_text()


class TestConfig:
    def test_changed_and_added_fields(self, config):
        added = {f.name for f in fields(BestOfKRewardConfig)} - {f.name for f in fields(RewardConfig)}
        assert added == {"loss_type", "optimizer", "shared_prefix", "label_origin"}
        args = config()
        assert (args.bf16, bool(args.gradient_checkpointing), args.num_train_epochs) == (False, False, 1)
        assert config(dataloader_pin_memory=True).dataloader_pin_memory == torch.accelerator.is_available()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pad_token": "x"}, "`pad_token` is 'x', which this trainer does not use: masks go by length"),
            ({"eos_token": "x"}, "`eos_token` is 'x'"),
            pytest.param(
                {"trust_remote_code": True},
                "`trust_remote_code` is True",
                marks=pytest.mark.skipif(
                    "trust_remote_code" not in {f.name for f in fields(RewardConfig)},
                    reason="this TRL has no such field",
                ),
            ),
            ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1"),
            ({"label_names": ["x"]}, "`label_names` is"),
            ({"loss_type": "dpo"}, "`loss_type` is 'dpo'; it can be 'best_of_k' or 'ranking'"),
            ({"optimizer": "sgd"}, "`optimizer` is 'sgd'; it can be 'hf' or 'tf_adam'"),
            ({"max_length": 0}, "`max_length` is 0; give at least 1"),
            ({"optimizer": "tf_adam", "weight_decay": 0.1}, "`weight_decay` is 0.1, which `optimizer='tf_adam'`"),
            ({"optimizer": "tf_adam", "adam_epsilon": 1e-6}, "`adam_epsilon` is 1e-06"),
        ],
    )
    def test_refused_values_are_named(self, config, changes, message):
        with pytest.raises(ValueError, match=message):
            config(**changes)

    def test_tf_adam_takes_the_configured_rate_and_betas(self, make_trainer):
        trainer = make_trainer(records(), optimizer="tf_adam", learning_rate=2e-3, adam_beta1=0.8, adam_beta2=0.9)
        group = trainer.create_optimizer().param_groups[0]
        assert (group["lr"], group["betas"], group["eps"]) == (2e-3, (0.8, 0.9), 1e-5)

    def test_two_optimizers_are_refused(self, make_trainer):
        kwargs = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1})}
        with pytest.raises(ValueError, match="are both given; give one of them"):
            make_trainer(records(), optimizer="tf_adam", trainer_kwargs=kwargs)

    def test_loading_options_for_a_loaded_model_are_refused(self, make_trainer):
        with pytest.raises(ValueError, match="`model_init_kwargs` is given, but `model` is loaded already"):
            make_trainer(records(), model_init_kwargs={"dtype": "float32"})

    def test_prompt_learning_is_refused(self, make_trainer):
        with pytest.raises(ValueError, match="`peft_config` is PROMPT_TUNING"):
            make_trainer(records(), peft_config=PromptTuningConfig(num_virtual_tokens=2))

    def test_records_beyond_the_models_context_are_refused(self, make_trainer):
        rows = records(2)
        rows = rows.map(lambda row: {"prompt_ids": [1] * 260})
        with pytest.raises(ValueError, match="the model reads 256; lower `max_length`"):
            make_trainer(rows)


TWO_PROCESSES = """
import json, os, sys
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer
from trl_ziegler.experiments.recipe import end_processes
from trl_ziegler.reward_model import load_reward_model, normalize_reward_model, reward_head
from trl_ziegler.reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer

folder, world, rank = sys.argv[1], int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
rows = json.load(open(f"{folder}/rows.json"))
args = BestOfKRewardConfig(
    f"{folder}/{world}", per_device_train_batch_size=8 // world, per_device_eval_batch_size=8 // world,
    report_to="none", use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True, learning_rate=1e-2,
    optimizer="tf_adam", max_grad_norm=0, ddp_backend="gloo" if world > 1 else None,
)
trainer = BestOfKRewardTrainer(
    load_reward_model(f"{folder}/base"), args, train_dataset=Dataset.from_list(rows[:16]),
    eval_dataset=Dataset.from_list(rows[:13]), processing_class=AutoTokenizer.from_pretrained(f"{folder}/base"),
)
assert args.world_size == world
trainer.train()
metrics = trainer.evaluate()
queries, responses = [row["prompt_ids"] for row in rows], [row["completion_ids"][0] for row in rows]
record = normalize_reward_model(trainer.model, queries[rank::world], responses[rank::world])
if rank == 0:
    keys = ("accuracy", "chance", "margin", "mean_reward", "std_reward", "num_tokens")
    result = {f"train_{key}": trainer.state.log_history[1][key] for key in ("loss", *keys)}
    result |= {key: metrics[f"eval_{key}"] for key in keys}
    result |= {"n": record.n_samples, "mean": record.measured_mean, "gain": reward_head(trainer.model).gain.item()}
    json.dump(result, open(f"{folder}/result{world}.json", "w"))
end_processes(PartialState())
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(make_causal_lm, tokenizer, tmp_path):
    make_causal_lm().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = [row for k in (2, 3, 4) for row in records(8, k=k, seed=k)]
    (tmp_path / "rows.json").write_text(json.dumps(rows[::3] + rows[1::3] + rows[2::3]))
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    for launcher in ([], several_processes()):
        launched(*launcher, str(tmp_path / "run.py"), str(tmp_path))
    one, two = (json.loads((tmp_path / f"result{world}.json").read_text()) for world in (1, 2))
    assert one["n"] == 24 and two == pytest.approx(one, rel=1e-3, abs=1e-5)
