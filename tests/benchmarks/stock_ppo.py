"""Stock TRL's `PPOTrainer` on our experiments: the same prompts, models and rule for scores."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from trl_ziegler._compat import PPOConfig, PPOTrainer
from trl_ziegler.reward_wrapper import KLEntropyReward
from trl_ziegler.tasks import Task

SHARED_OPTIONS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "total_episodes", "num_ppo_epochs",
    "num_mini_batches", "learning_rate", "lr_scheduler_type", "kl_coef", "gamma", "lam", "cliprange",
    "cliprange_value", "vf_coef", "whiten_rewards", "local_rollout_forward_batch_size", "seed",
)  # fmt: skip


class _ScoreEverywhere(torch.nn.Module):
    """The `backbone` of a stock reward model: hidden states `[B, S, 1]` that hold the score at every position."""

    def __init__(self, reward: KLEntropyReward, response_length: int) -> None:
        super().__init__()
        self.reward, self.response_length = reward, response_length

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        contexts, masks = input_ids[:, : -self.response_length], attention_mask[:, : -self.response_length].bool()
        queries = [ids[mask].tolist() for ids, mask in zip(contexts, masks, strict=True)]
        scores = self.reward.score(queries, input_ids[:, -self.response_length :], {}).scores
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1)])


class ScoredAsOurs(torch.nn.Module):
    """Score, cut and penalty of the method in the shape that stock PPO reads a reward model in."""

    base_model_prefix = "backbone"

    def __init__(self, reward: KLEntropyReward, response_length: int) -> None:
        super().__init__()
        self.backbone = _ScoreEverywhere(reward, response_length)
        self.score = torch.nn.Identity()


def train_stock(
    folder: Path,
    start: str,
    value_model: str,
    tokenizer: PreTrainedTokenizerBase,
    queries: list[list[int]],
    reward: KLEntropyReward,
    task: Task,
    options: dict[str, Any],
) -> None:
    """Train with TRL's own `PPOTrainer` and save the policy in `folder`.

    Args:
        start, value_model: Folders of the start model and of the value network's start.
        queries: Token ids of the prompts.
        reward: Gives the score after cut and penalty.
        task: Its length and temperature are used; stock PPO samples T tokens and scores the whole response.
        options: Fields of `PPOConfig`; see `SHARED_OPTIONS`.
    """
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # not EOS, or stock PPO would cut responses at it
    tokenizer.padding_side = "left"
    config = PPOConfig(
        output_dir=str(folder),
        response_length=task.response_length,
        temperature=task.temperature,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.accelerator.is_available(),
        disable_tqdm=True,
        **options,
    )
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    trainer = PPOTrainer(
        config,
        tokenizer,
        model,
        ref_model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        reward_model=ScoredAsOurs(reward, task.response_length),
        train_dataset=Dataset.from_dict({"input_ids": queries}),
        value_model=AutoModelForSequenceClassification.from_pretrained(value_model, num_labels=1, dtype=torch.float32),
        data_collator=DataCollatorWithPadding(tokenizer),
        eval_dataset=Dataset.from_dict({"input_ids": queries[:1]}),
    )
    trainer.train()
    model.save_pretrained(folder / "model")
