"""PPO on R = r - beta log(pi/rho), as an ordinary Hugging Face `Trainer`.

One update, in the order of `openai/lm-human-preferences`, `train_policy.py:PPOTrainer.step`: `_collect` samples,
scores and shapes a rollout and adapts beta, `micro_batches` (rollout.py) makes minibatches of it with their
advantages, `compute_loss` is the two clipped losses, `_finish_update` the statistics. `transformers.Trainer` owns
everything around it: the loop, accumulation, clipping, precision, checkpoints, callbacks, logging.

Axis letters: B episodes of this process, Q context tokens, T response tokens, V vocabulary.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from ._compat import PPOTrainer
from .actor_critic import ActorCritic
from .functional import policy_loss, value_loss
from .kl_control import AdaptiveKLController, FixedKLController
from .model_cards import PolicyCards
from .optim import tf_adam
from .ppo_checks import (
    build_task,
    check_columns,
    check_padding,
    check_setup,
    check_sharding,
    check_sign_of_reward,
    check_start,
    check_stop_token,
    context_limit,
    first_non_finite_row,
    list_of,
    non_finite_gradients,
    raise_non_finite,
    reading_policys_ids,
    tokenizers_of_rewards,
    warn_of_invalid,
    warn_of_unnormalized,
    warn_of_whole_value_model,
)
from .ppo_config import ZieglerPPOConfig
from .ppo_loop import UpdateLoop
from .ppo_models import complete_optimizer, load_policy
from .ppo_passes import evaluating
from .ppo_statistics import loss_statistics, rollout_statistics
from .queries import (
    QueryCollator,
    by_length,
    extra_columns,
    prepare_queries,
    raw_queries,
)
from .reward_wrapper import KLEntropyReward, RewardFunction, Scored, ShapedRewards
from .rollout import MicroBatch, Rollout, micro_batches, write_rollouts
from .sampling import Samples
from .tasks import Task


class ZieglerPPOTrainer(PolicyCards, UpdateLoop, PPOTrainer):
    """TRL's `PPOTrainer` signature on `transformers.Trainer`'s loop, with the method of Ziegler et al. 2019.

    The parent's constructor and `train` are not used (its loop has no seam); its type, signature and model card are.
    Overridden on `Trainer` here: `_prepare_inputs` (rollouts), `compute_loss`, `log`. In [`SampledEvaluation`]:
    `evaluation_loop`, `evaluate`. In [`UpdateLoop`]: `train` (resumes from whole
    checkpoints), `training_step` (`target_kl`), `get_train_dataloader` (each batch of queries is repeated for its
    update), `create_scheduler` (the rate changes once an update), `_maybe_log_save_evaluate` (acts at update
    boundaries), and saving and loading.

    Args:
        args: Configuration. The trainer keeps a copy in which `max_steps`, `logging_steps`, `save_steps` and
            `eval_steps` are converted from updates to optimiser steps, `gradient_accumulation_steps` to the
            micro-batches of one optimiser step.
        processing_class: The policy's tokenizer. It needs no PAD token.
        model: Policy: a causal language model, a `PeftModel` of one, or a path (loaded in float32).
        ref_model: Reference rho; `None` copies the policy as it is now, or switches a fresh adapter off.
        reward_model: A one-label sequence classifier, a callable `f(prompts, completions, **columns) -> list[float |
            None]`, or a list of these (see `reward_weights`).
        train_dataset: Has `prompt` (text or chat messages) or `input_ids`; other columns reach the callables. A
            stream (`IterableDataset`) needs `max_steps` or `total_episodes`.
        value_model: A separate value network, or `None` (see `value_init`).
        data_collator: Takes rows with `input_ids`, returns left-padded `input_ids`, `attention_mask` and the other
            columns as lists; `None` for [`QueryCollator`].
        eval_dataset: Held-out prompts, or a dict of such sets.
        optimizers: Optimiser and scheduler to use instead of those `args` describe.
        callbacks: Added to `Trainer`'s.
        peft_config: Wraps the policy in a fresh adapter.
        task: Lengths, temperature, cut rule and penalty; `None` builds one from `args` (`eos` regime).
        reward_processing_classes: A tokenizer for each reward model that has its own, `None` elsewhere.
        pretraining_dataset: Documents (`text` or `input_ids`) whose language-model loss `ptx_coef` adds (PPO-ptx).
    """

    _tag_names = ["trl", "ppo", "trl-ziegler"]  # noqa: RUF012 (the parent's attribute)

    # `Trainer`'s own, where the parent replaced it for its loop.
    get_eval_dataloader = Trainer.get_eval_dataloader

    def __init__(
        self,
        args: ZieglerPPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: str | os.PathLike | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: RewardFunction | list[RewardFunction] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        value_model: PreTrainedModel | None = None,
        data_collator: Callable | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        task: Task | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        pretraining_dataset: Dataset | None = None,
    ) -> None:
        rewards = list_of(reward_model)
        own_tokenizers = tokenizers_of_rewards(reward_processing_classes, len(rewards))
        policy = load_policy(model, peft_config)
        check_setup(policy, ref_model, value_model, rewards, own_tokenizers, args, train_dataset)
        warn_of_unnormalized(rewards)
        warn_of_whole_value_model(policy, value_model)
        ref_model, value_model = self._other_networks(args, policy, ref_model, value_model, rewards)
        self.task = build_task(args, task, processing_class).bind(processing_class)
        check_stop_token(self.task, policy)
        readers = [ref_model, value_model, *reading_policys_ids(rewards, own_tokenizers)]
        self._query_options = self._limits_of_queries(args, policy, readers)
        train_dataset = prepare_queries(train_dataset, processing_class, name="train_dataset", **self._query_options)
        args, train_dataset = self._plan_updates(args, train_dataset)
        # Past the parent's constructor, which sets up the loop that is not used.
        super(PPOTrainer, self).__init__(
            model=ActorCritic(policy, value_model),
            args=args,
            data_collator=data_collator or QueryCollator(self.task),
            train_dataset=train_dataset,
            eval_dataset=self._prepare_eval(eval_dataset, processing_class),
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=tf_adam(args, None, optimizers) if args.optimizer == "tf_adam" else None,
        )
        if optimizers[0] is not None:
            complete_optimizer(optimizers[0], self.model)
        check_sharding(self.model, getattr(self.accelerator.state, "fsdp_plugin", None), self.is_deepspeed_enabled)
        self._compiled = self._compiled_steps(train_dataset)
        # `training_step` then divides by the accumulated micro-batches, which `compute_loss` counts on.
        self.model_accepts_loss_kwargs = False
        self.ref_model = self._frozen(self._like_shards(ref_model))
        self.kl_controller = kl_controller(args)
        self.reward = self._reward_rule(rewards, own_tokenizers)
        if data_collator is None:  # another may add columns
            check_columns(self.reward, "train_dataset", self.train_dataset)
            check_columns(self.reward, "eval_dataset", self.eval_dataset)
        self._pretraining = self._pretraining_stream(pretraining_dataset, context_limit([policy]))
        self._start_unchecked = True
        self._start_counting()

    def _limits_of_queries(
        self, args: ZieglerPPOConfig, policy: PreTrainedModel, readers: list[PreTrainedModel | None]
    ) -> dict[str, Any]:
        """What `prepare_queries` needs to know of the task, the policy and the models that read its ids."""
        return {
            "task": self.task,
            "context_limit": context_limit([policy, *readers]),
            "vocab_size": policy.config.get_text_config().vocab_size,
            "num_proc": args.dataset_num_proc,
        }

    def _reward_rule(
        self, rewards: list[RewardFunction], own_tokenizers: list[PreTrainedTokenizerBase | None]
    ) -> KLEntropyReward:
        return KLEntropyReward(
            [self._frozen(reward) for reward in rewards],
            self.args.reward_weights or [1.0] * len(rewards),
            self.task,
            self.processing_class,
            self.kl_controller,
            processing_classes=own_tokenizers,
            batch_size=self.args.local_rollout_forward_batch_size,
        )

    # ---- One update -------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> MicroBatch | dict[str, Any]:
        """The next micro-batch of the current rollout; a batch of queries arriving after the last makes a new one."""
        inputs = super()._prepare_inputs(inputs)
        micro_batch = next(self._micro_batches, None)
        if micro_batch is None:
            self._micro_batches = self._train_on(self._collect(inputs))
            micro_batch = next(self._micro_batches)
        return micro_batch

    @torch.no_grad()
    def _collect(self, batch: dict[str, Any]) -> Rollout:
        """Sample, score, shape, record, adapt beta."""
        count = self.plan.samples_per_query
        self._episodes_of_run += self.plan.batch_size
        if self.plan.local_batch_size > self.args.local_rollout_forward_batch_size:
            batch = by_length(batch)
        samples, ref_logprobs, scored, shaped = self._respond(batch, self._generators["sampling"], count)
        rollout = Rollout(
            context_ids=batch["input_ids"],
            context_mask=batch["attention_mask"],
            responses=samples.responses,
            mask=shaped.mask,
            logprobs=samples.logprobs,
            values=samples.values,
            rewards=shaped.rewards,
        )
        self._require_finite("reward", rollout, shaped.rewards)
        if self._start_unchecked:
            check_sign_of_reward(self.reward.shape, scored, samples.logprobs, ref_logprobs)
        episodes = rollout_statistics(samples.logprobs, ref_logprobs, scored, shaped, self.reward.names)
        if self.args.rollout_dir is not None:
            self._write_rollouts(raw_queries(self.task, batch, count), samples, episodes)
        self.record.begin(episodes, self.kl_controller.value)
        warn_of_invalid(self.record.of_rollout("objective/valid_share"))
        self.kl_controller.update(self.record.of_rollout("objective/kl"), self.plan.batch_size)
        return rollout

    def _respond(
        self, batch: dict[str, Any], generator: torch.Generator, count: int = 1
    ) -> tuple[Samples, torch.Tensor, Scored, ShapedRewards]:
        """`count` responses to each of a batch of contexts, their log rho `[B, T]`, scores and per-token rewards."""
        check_padding(batch["attention_mask"])
        with evaluating(self.model), self._autocast():
            samples = self._sample(batch, generator, count)
            ref_logprobs = self._reference_logprobs(batch, samples.responses)
        queries, columns = raw_queries(self.task, batch, count), extra_columns(batch, count)
        scored = self.reward.score(queries, samples.responses, columns)
        return samples, ref_logprobs, scored, self.reward.shape(scored, samples.logprobs, ref_logprobs)

    def _train_on(self, rollout: Rollout) -> Iterator[MicroBatch]:
        """The micro-batches of one update on `rollout`."""
        return micro_batches(
            rollout,
            epochs=self.plan.num_ppo_epochs,
            mini_batch_size=self.plan.local_mini_batch_size,
            micro_batch_size=self.plan.micro_batch_size,
            gamma=self.args.gamma,
            lam=self.args.lam,
            whiten_rewards=self.args.whiten_rewards,
            gather=self.accelerator.gather if self.args.whiten_scope == "global" else None,
            generator=self._generators["permutation"],
        )

    def compute_loss(self, model, inputs: MicroBatch, return_outputs: bool = False, num_items_in_batch=None):
        """The clipped policy loss plus `vf_coef` times the clipped value loss, on the uncut response (E6, E7, C4)."""
        rollout = inputs.rollout
        logprobs, entropy, values = self._evaluate_tokens(model, rollout)
        if self._start_unchecked:
            self._check_start(rollout, logprobs)
        policy, value = self._losses(inputs, logprobs, values)
        loss = policy + self.args.vf_coef * value
        if not loss.isfinite():
            self._require_finite("loss", rollout, logprobs, values, inputs.advantages, inputs.returns)
        if self._pretraining is not None:
            loss = loss + self.args.ptx_coef * self._pretraining_part(self._pretraining)
        self._step_batches.append(inputs)
        self.record.add(loss_statistics(inputs, logprobs, entropy, values, policy, value, self.args))
        # `training_step` divides by the accumulated micro-batches, but these losses are already parts of a mean.
        return loss * self.plan.micro_batches_per_step

    def _losses(
        self, batch: MicroBatch, logprobs: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rollout, args = batch.rollout, self.args
        over: dict[str, Any] = {"mask": rollout.mask, "total": batch.total}
        policy = policy_loss(logprobs, rollout.logprobs, batch.advantages, clip_range=args.cliprange, **over)
        value = value_loss(values, rollout.values, batch.returns, clip_range=args.cliprange_value, **over)
        return policy, value

    # ---- Checks and records ----------------------------------------------------------------------------------------

    def _check_start(self, rollout: Rollout, logprobs: torch.Tensor) -> None:
        self._start_unchecked = False
        kl = self.record.of_rollout("objective/kl") if self._reference_is_copy else None
        tf32 = getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "tf32"
        exact = not (tf32 or self._lower_precision)
        check_start(rollout, logprobs, kl, self.model.value_model is None, exact=exact)

    def _require_finite(self, what: str, rollout: Rollout, *tensors: torch.Tensor) -> None:
        """Stop the run, naming the first response with a masked entry that is not finite in one of `[b, T]`."""
        row = first_non_finite_row(rollout.mask, *tensors)
        if row is not None:
            raise_non_finite(what, self.processing_class, self.task, rollout, row)

    def _gradient_is_finite(self, batch: MicroBatch) -> bool:
        """Whether the loss of `batch` alone has a finite gradient; leaves the gradients of the model changed."""
        model = self._actor_critic
        model.zero_grad()
        with self._autocast():
            logprobs, _, values = self._evaluate_tokens(model, batch.rollout)
            policy, value = self._losses(batch, logprobs, values)
        (policy + self.args.vf_coef * value).backward()
        return not non_finite_gradients(model)

    def _write_rollouts(self, queries: list[list[int]], samples: Samples, episodes: dict[str, torch.Tensor]) -> None:
        update, rank = self._update + 1, self.args.process_index
        write_rollouts(
            self.args.rollout_dir, update, rank, self.processing_class, queries, samples.responses, episodes
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the updates since the last training log."""
        if "loss" in logs:
            means = self.record.take()
            # `Trainer` divides by all steps of an update, `target_kl` may have left some out.
            logs["loss"] = means["loss/policy_avg"] + self.args.vf_coef * means["loss/value_avg"]
            logs["loss"] += self.args.ptx_coef * means.get("loss/ptx_avg", 0.0)
            logs.update(means)
            logs["episode"] = self._update * self.plan.batch_size
        if "train_samples_per_second" in logs:  # `Trainer` counts an episode once for each epoch on it
            logs["train_samples_per_second"] = round(self._episodes_of_run / logs["train_runtime"], 3)
        super().log(logs, start_time)


def kl_controller(args: ZieglerPPOConfig) -> FixedKLController | AdaptiveKLController:
    """Fixed where there is no target."""
    if args.kl_target is None:
        return FixedKLController(args.kl_coef)
    return AdaptiveKLController(args.kl_coef, args.kl_target, args.kl_horizon)
