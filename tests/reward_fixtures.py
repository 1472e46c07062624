"""Fixtures shared by the tests of the reward model and its trainer; loaded through `pytest_plugins`."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trl_ziegler.reward_model import as_reward_model, load_reward_model, reward_head
from trl_ziegler.reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer


@pytest.fixture
def make_reward_model(make_classifier):
    """`make(kind)`: a reward model whose four head parameters all differ from their start."""

    def make(kind="gpt2"):
        model = as_reward_model(make_classifier(kind), fresh_head=True, seed=5).eval()
        with torch.no_grad():
            reward_head(model).bias.fill_(0.3)
        reward_head(model).set_affine(2.5, -0.7)
        return model

    return make


@pytest.fixture
def make_adapter(make_causal_lm, tmp_path):
    """`make()`: a LoRA adapter of a reward model, with non-zero weights, over a causal model in `tmp_path`."""

    def make(**config):
        make_causal_lm().save_pretrained(tmp_path / "base")
        base = load_reward_model(tmp_path / "base", seed=5)
        config = {"target_modules": ["c_attn"], "modules_to_save": ["score"], "fan_in_fan_out": True, **config}
        model = as_reward_model(get_peft_model(base, LoraConfig(**config)))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.5, generator=generator)
        reward_head(model).set_affine(2.5, -0.7)
        return model

    return make


@pytest.fixture
def config(tmp_path):
    """`config(**changes)`: a quiet configuration for the CPU."""

    def make(cls=BestOfKRewardConfig, **changes):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_steps": 1,
        }
        return cls(**{**settings, **changes})

    return make


@pytest.fixture
def make_trainer(make_classifier, tokenizer, config):
    """`make_trainer(dataset, model=None, **config)`: a trainer on a random GPT-2 with a fresh head."""

    def make(dataset, model=None, peft_config=None, eval_dataset=None, trainer_kwargs=None, **changes):
        return BestOfKRewardTrainer(
            model=as_reward_model(make_classifier(), fresh_head=True) if model is None else model,
            args=config(**changes),
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            **(trainer_kwargs or {}),
        )

    return make
