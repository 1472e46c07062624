"""Reward model and policy in one network, to see why the paper keeps them apart (Ziegler et al. 2019, section 4.2).

The reward is a head on the policy's own trunk, beside the head of the value. Its labels' loss is added to PPO's, so
that it can follow the trunk as that moves; the more labels a step, the better it follows, and the more often it has
seen each of the few labels there are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel

from ..functional import best_of_k_loss
from ..ppo_config import ZieglerPPOConfig
from ..ppo_trainer import ZieglerPPOTrainer
from ..preference_collator import DataCollatorForBestOfK, candidate_rewards
from ..reward_model import load_reward_model
from ..reward_trainer import BestOfKRewardConfig, BestOfKRewardTrainer
from ..reward_wrapper import RewardFunction, function_name
from ..rollout import MicroBatch, Rollout
from ..tasks import Task
from .cards import save_with_card
from .experiment import load_model
from .pipeline import write_json
from .training import as_queries, label_accuracy, normalize_over, with_aliases

HEAD_EPOCHS, HEAD_RATE = 4, 1e-2
"""Of the head alone, before PPO, on the trunk of the start model: 64 weights need larger steps than a network."""


class SharedTrunkTrainer(ZieglerPPOTrainer):
    """PPO on a reward head of its own trunk. One process, no checkpoints.

    Overridden: `_collect` (the reward is normalised anew before each rollout), `compute_loss` (adds the labels' loss)
    and `log` (adds `labels/accuracy`, `labels/held_out_accuracy` and `labels/epochs`).

    Args:
        shared: The reward model whose trunk is the policy's.
        judge: Logged only.
        labels: Rows `prompt_ids`, `completion_ids`, `label` to train on.
        held_out: Rows to measure on.
        samples: Rows `prompt_ids`, `response_ids` of the start model, over which the reward has mean 0, deviation 1.
        labels_per_step: Labels of each optimiser step.
        label_coef: Weight of their loss beside PPO's.
        kwargs: Those of [`ZieglerPPOTrainer`].
    """

    def __init__(
        self,
        shared: PreTrainedModel,
        judge: RewardFunction,
        *,
        labels: list[dict[str, Any]],
        held_out: list[dict[str, Any]],
        samples: list[dict[str, Any]],
        labels_per_step: int,
        label_coef: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(reward_model=[shared, judge], **kwargs)
        self.shared = shared
        self.model.reward_head = shared.score  # so that the optimiser knows it
        self.labels, self.held_out, self.samples = labels, held_out, samples
        self.label_coef, self.labels_seen = label_coef, 0
        # `Trainer` averages the losses of a step's micro-batches, so each takes its part of the labels.
        self._label_batches = endless(labels, max(1, labels_per_step // self.plan.micro_batches_per_step))

    def _collect(self, batch: dict[str, Any]) -> Rollout:
        normalize_over(self.shared, self.samples)
        return super()._collect(batch)

    def compute_loss(self, model, inputs: MicroBatch, return_outputs: bool = False, num_items_in_batch=None):
        """PPO's loss and the labels'."""
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = next(self._label_batches)
        self.labels_seen += len(labels["labels"])
        labels_loss = best_of_k_loss(candidate_rewards(self.shared, labels), labels["labels"])
        self.record.add({"loss/labels_avg": labels_loss.detach() / self.plan.micro_batches_per_step})
        return loss + self.label_coef * labels_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how well the reward head knows labels it was trained on, and others."""
        if "loss" in logs:
            some = self.labels[: len(self.held_out)]
            logs["labels/accuracy"] = label_accuracy(self.shared, some)["accuracy"]
            logs["labels/held_out_accuracy"] = label_accuracy(self.shared, self.held_out)["accuracy"]
            logs["labels/epochs"] = self.labels_seen / len(self.labels)
        super().log(logs, start_time)


def train_shared_policy(
    folder: Path,
    config: ZieglerPPOConfig,
    reward_config: BestOfKRewardConfig,
    start: str,
    queries: list[dict[str, Any]],
    judge: RewardFunction,
    task: Task,
    rows: list[dict[str, Any]],
    samples: list[dict[str, Any]],
    *,
    held_out: int,
    labels_per_step: int,
    label_coef: float,
) -> None:
    """PPO as `train_policy`, on a reward head of the policy's trunk; further to its log, see [`SharedTrunkTrainer`].

    Args:
        reward_config: Of the head's training before PPO; its epochs and learning rate are set here.
        judge: Logged as `score/true`.
        rows, samples, held_out: As in `train_reward_model`.

    Raises:
        ValueError: several processes.
    """
    if PartialState().num_processes > 1:
        raise ValueError(
            f"`shared_trunk_labels` works in one process, not in {PartialState().num_processes}; launch one, or leave "
            "it out."
        )
    policy, tokenizer = load_model(start)
    labels, others = rows[: len(rows) - held_out], rows[len(rows) - held_out :]
    config.reward_weights = [1.0, 0.0]
    trainer = SharedTrunkTrainer(
        head_on_trunk(policy, start, reward_config, labels, samples),
        judge,
        args=config,
        processing_class=tokenizer,
        model=policy,
        train_dataset=as_queries(queries),
        task=task,
        labels=labels,
        held_out=others,
        samples=samples,
        labels_per_step=labels_per_step,
        label_coef=label_coef,
    )
    trainer.train()
    save_with_card(trainer, folder)
    aliases = {"score/true": function_name(judge)}
    write_json(folder / "log_history.json", [with_aliases(row, aliases) for row in trainer.state.log_history])


def head_on_trunk(
    policy: PreTrainedModel,
    start: str,
    config: BestOfKRewardConfig,
    labels: list[dict[str, Any]],
    samples: list[dict[str, Any]],
) -> PreTrainedModel:
    """A normalised reward model whose trunk is the policy's own module; only its head has been trained."""
    model = load_reward_model(start, seed=config.seed, without_head="fresh")
    setattr(model, model.base_model_prefix, policy.base_model)
    policy.requires_grad_(False)
    config.num_train_epochs, config.learning_rate = HEAD_EPOCHS, HEAD_RATE
    columns = {key: [row[key] for row in labels] for key in ("prompt_ids", "completion_ids", "label")}
    BestOfKRewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(start),
    ).train()
    policy.requires_grad_(True)
    normalize_over(model, samples)
    return model


def endless(labels: list[dict[str, Any]], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of [`DataCollatorForBestOfK`], one pass in a new order after another."""
    columns = ("prompt_ids", "completion_ids", "label")
    rows: Any = [{key: row[key] for key in columns} for row in labels]
    while True:
        yield from DataLoader(rows, batch_size, shuffle=True, collate_fn=DataCollatorForBestOfK(), drop_last=True)
