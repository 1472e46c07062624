"""What makes `Trainer`'s loop count in updates: order of the queries, learning rate, boundaries, checkpoints."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl
from transformers.trainer_utils import TrainOutput

from ._files import written_whole
from .kl_control import FixedKLController
from .ppo_checkpoints import (
    load_generators,
    load_ppo_state,
    load_stream,
    newest_checkpoint,
    require_whole,
    save_generators,
    save_ppo_state,
    save_stream,
)
from .ppo_checks import non_finite_gradients, raise_non_finite
from .ppo_config import UpdatePlan, ZieglerPPOConfig
from .ppo_evaluation import RANK_SEED_OFFSET, SampledEvaluation
from .ppo_statistics import UpdateRecord
from .pretraining_data import PretrainingStream, pretraining_loss
from .queries import LastBatch, RepeatedBatches, UpdateSampler
from .rollout import MicroBatch


class UpdateLoop(SampledEvaluation):
    """The part of `ZieglerPPOTrainer` between `Trainer`'s loop and PPO's updates.

    An update is one rollout and `plan.steps_per_update` optimiser steps. Expects the attributes declared here and the
    method `_gradient_is_finite`.
    """

    plan: UpdatePlan
    control: TrainerControl
    kl_controller: FixedKLController
    _generators: dict[str, torch.Generator]
    _micro_batches: Iterator[MicroBatch]
    _start_unchecked: bool
    record: UpdateRecord
    _pretraining: PretrainingStream | None

    def _plan_updates(
        self, args: ZieglerPPOConfig, queries: Dataset | IterableDataset
    ) -> tuple[ZieglerPPOConfig, Dataset | RepeatedBatches]:
        """Set `plan`; what `Trainer` gets as arguments and data, for the run that it describes."""
        streamed = isinstance(queries, IterableDataset)
        self.plan = UpdatePlan.from_config(args, None if streamed else len(queries))
        args = in_optimizer_steps(args, self.plan)
        if not streamed:
            return args, queries
        # Each process takes its rows itself: the library's dispatching can only send tensors.
        args.accelerator_config = dataclasses.replace(args.accelerator_config, dispatch_batches=False)
        return args, RepeatedBatches(queries, self.plan.num_queries, self.plan.micro_batches_per_update)

    def _start_counting(self) -> None:
        """What the loop keeps between two optimiser steps, and its sources of randomness."""
        args = self.args
        # Private generators: `set_seed` makes all ranks alike, and each must sample its own responses (E12).
        seed = args.seed + RANK_SEED_OFFSET * args.process_index
        self._generators = {
            "sampling": torch.Generator(args.device).manual_seed(seed),
            "permutation": torch.Generator().manual_seed(seed),
        }
        self.record = UpdateRecord(lambda values: self.accelerator.gather(values[None]).mean(0).tolist())
        self._micro_batches = iter(())
        self._step_batches: list[MicroBatch] = []
        self._deferred: dict[str, bool] = {}
        self._steps_taken, self._update_ended = 0, False
        self._episodes_of_run = 0
        self._scheduler_in_updates: torch.optim.lr_scheduler.LRScheduler | None = None
        self._own_pad_token_id = self.model.config.get_text_config().pad_token_id
        self.add_callback(BeforeEachStep(self._before_step))

    def _gradient_is_finite(self, batch: MicroBatch) -> bool:
        raise NotImplementedError

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """`Trainer.train`, resuming (`True`) from the newest whole checkpoint of the output directory.

        A checkpoint whose writing was cut off is passed over with a warning; given by its path it is refused.
        """
        if resume_from_checkpoint is True or resume_from_checkpoint == "True":  # as a command line gives it
            resume_from_checkpoint = newest_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"`resume_from_checkpoint` is True, but {self.args.output_dir} holds no whole checkpoint; call "
                    "`train()` to begin anew."
                )
        elif resume_from_checkpoint:
            require_whole(resume_from_checkpoint)
        self.accelerator.print(self.plan.describe())
        self._episodes_of_run = 0
        return Trainer.train(self, resume_from_checkpoint, trial, ignore_keys_for_eval)

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """`Trainer.training_step`, or nothing at all once `target_kl` has ended the update.

        Without a backward pass the gradients are None, which every optimiser passes over; zeros would still move the
        weights through the momentum.
        """
        if self._update_ended:
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _pretraining_stream(self, dataset: Dataset | None, longest: int) -> PretrainingStream | None:
        """The stream of PPO-ptx, or `None`; `ValueError` where coefficient and dataset do not go together."""
        args = self.args
        if (dataset is None) != (args.ptx_coef == 0):
            given = "no `pretraining_dataset`" if dataset is None else "a `pretraining_dataset`"
            raise ValueError(f"`ptx_coef` is {args.ptx_coef} and there is {given}; give both, or neither.")
        if dataset is None:
            return None
        if args.ptx_length > longest:
            raise ValueError(f"`ptx_length` is {args.ptx_length}, more than the {longest} tokens the policy can read.")
        return PretrainingStream(
            dataset,
            self.processing_class,
            args.ptx_length,
            args.ptx_batch_size,
            args.seed if args.data_seed is None else args.data_seed,
            process_index=args.process_index,
            num_processes=args.world_size,
        )

    def _pretraining_part(self, stream: PretrainingStream) -> torch.Tensor:
        """This micro-batch's part of the language model's mean loss on pretraining text (InstructGPT, equation 2)."""
        ids = next(stream).to(self.args.device)
        # The bare policy is outside the autocast of the wrapped module; its gradients still meet in one backward pass.
        with self._autocast():
            loss = pretraining_loss(self._actor_critic, ids)
        if not loss.isfinite():
            raise FloatingPointError(
                f"The loss on pretraining text is not finite in a batch that begins with "
                f"{self.processing_class.decode(ids[0])!r}; the run stops before the weights change."
            )
        part = loss / self.plan.micro_batches_per_step
        self.record.add({"loss/ptx_avg": part.detach()})
        return part

    def _before_step(self) -> None:
        """With a minibatch's gradients at hand: refuse what is not finite, and a policy that has moved too far."""
        if self._update_ended:
            return
        target = self.args.target_kl
        if target is not None and self.record.last("policy/approxkl_avg", self.plan.micro_batches_per_step) > target:
            self._update_ended = True
            self.model.zero_grad()
        else:
            self._require_finite_gradients()
            self._steps_taken += 1
        self._step_batches.clear()

    def _require_finite_gradients(self) -> None:
        names = self._names_of_all(non_finite_gradients(self.model))
        if not names:
            return
        self._keep_gradients_local()
        # To the last, as every process has to make the passes of shards.
        rows = [(batch, row) for batch in self._step_batches for row in range(len(batch.rollout))]
        culprits = [(batch, row) for batch, row in rows if not self._gradient_is_finite(batch.episode(row))]
        if culprits:
            batch, row = culprits[0]
            raise_non_finite("gradient", self.processing_class, self.task, batch.rollout, row)
        raise FloatingPointError(
            f"The gradient of {names[0]} is not finite, though that of every single response of this process is; the "
            "run stops before the weights change."
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of one update's queries per process, each repeated for every micro-batch of its update."""
        dataset = self.train_dataset
        return self._get_dataloader(
            dataset=LastBatch(dataset) if isinstance(dataset, Dataset) else dataset,
            description="Training",
            batch_size=self.plan.num_queries // self.plan.world_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> UpdateSampler:
        args, plan = self.args, self.plan
        return UpdateSampler(
            self.train_dataset if train_dataset is None else train_dataset,
            mini_repeat_count=1,
            batch_size=plan.num_queries,
            repeat_count=plan.micro_batches_per_update,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        return dataset  # every column reaches the reward functions

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        return data_collator  # the same, for a stream

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The scheduler over updates instead of optimiser steps: constant within an update (E9)."""
        what = f"`lr_scheduler_type` is {self.args.lr_scheduler_type!r}"
        if self.lr_scheduler is not None:
            what = f"`optimizers` holds a {type(self.lr_scheduler).__name__}"
        steps = self.plan.steps_per_update
        scheduler = super().create_scheduler(num_training_steps // steps, optimizer)
        if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
            raise ValueError(
                f"{what}, which is no function of the step; use one that is: a `LambdaLR`, or a type such as "
                "'linear', 'cosine' or 'constant'."
            )
        if scheduler is not self._scheduler_in_updates:
            scheduler.lr_lambdas = [once_per_update(rate, steps) for rate in scheduler.lr_lambdas]
            self._scheduler_in_updates = scheduler
        return scheduler

    @property
    def _update(self) -> int:
        return self.state.global_step // self.plan.steps_per_update

    @property
    def _updates_between_tables(self) -> int:
        tables = self.args.num_sample_generations
        return max(1, self.plan.updates // tables) if tables > 0 else self.plan.updates + 1

    @property
    def _at_update_boundary(self) -> bool:
        return self.state.global_step % self.plan.steps_per_update == 0

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, save, evaluate and stop only between updates, where no rollout is under way."""
        flags = ("should_log", "should_save", "should_evaluate", "should_training_stop", "should_epoch_stop")
        if not self._at_update_boundary:
            for flag in flags:
                self._deferred[flag] = self._deferred.get(flag, False) or getattr(self.control, flag)
                setattr(self.control, flag, False)
            return
        for flag in flags:
            setattr(self.control, flag, getattr(self.control, flag) or self._deferred.pop(flag, False))
        finished = self.record.open  # `Trainer` calls this once more at the end of a pass over the data
        if finished:
            self._finish_update()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if finished and self._update % self._updates_between_tables == 0:
            self.generate_completions(sampling=True)

    def _finish_update(self) -> None:
        taken = {} if self.args.target_kl is None else {"policy/optimizer_steps": float(self._steps_taken)}
        self.record.finish(self.plan.micro_batches_per_step, **taken)
        self._micro_batches = iter(())
        self._steps_taken, self._update_ended = 0, False

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Policy, value function, tokenizer and arguments, in formats that load without pickle."""
        if not self.args.should_save:
            return
        model = self._actor_critic
        config = model.config.get_text_config()
        if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
            # `Trainer` has put the tokenizer's here; with an id that the policy has not, it could not be loaded.
            config.pad_token_id = self._own_pad_token_id
        with written_whole(output_dir or self.args.output_dir) as folder:
            model.save_pretrained(folder, state_dict=state_dict)
            self.processing_class.save_pretrained(folder)
            (folder / "training_args.json").write_text(self.args.to_json_string())
        model.remove_former_parts(output_dir or self.args.output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        """Besides the library's random states: this process's generators, and beta."""
        super()._save_rng_state(output_dir)
        if self._pretraining is not None:
            save_stream(output_dir, self._pretraining.state_dict(), self.args.process_index)
        save_generators(output_dir, self._generators, self.args.process_index)
        if self.args.should_save:
            save_ppo_state(output_dir, self.kl_controller, self.plan, self.is_fsdp_enabled)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            load_generators(checkpoint, self._generators, self.args.process_index)
            if self._pretraining is not None:
                self._pretraining.load_state_dict(load_stream(checkpoint, self.args.process_index))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_ppo_state(resume_from_checkpoint, self.kl_controller, self.plan, self.is_fsdp_enabled)
        self.accelerator.unwrap_model(self.model).load_checkpoint(resume_from_checkpoint)
        self._start_unchecked = False  # the policy has moved away from the reference

    def _load_best_model(self) -> None:
        # The weights alone: a checkpoint of `save_only_model` has nothing else.
        self._actor_critic.load_checkpoint(self.state.best_model_checkpoint)


class BeforeEachStep(TrainerCallback):
    """Calls a function when the gradients of an optimiser step are complete (and clipped)."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """The library's event right before `optimizer.step()`."""
        self.act()


def in_optimizer_steps(args: ZieglerPPOConfig, plan: UpdatePlan) -> ZieglerPPOConfig:
    """A copy of `args` as `Trainer`'s loop reads them: intervals in optimiser steps, accumulation per optimiser step.

    Intervals below 1 are shares of the run and stay.
    """
    args = copy.copy(args)
    args.max_steps = plan.updates * plan.steps_per_update
    args.gradient_accumulation_steps = plan.micro_batches_per_step
    args.per_device_train_batch_size = plan.micro_batch_size
    args.dataloader_drop_last = False  # an update is never incomplete, and an evaluation reads every prompt
    if args.eval_strategy == "steps":
        args.eval_delay *= plan.steps_per_update
    for name in ("logging_steps", "save_steps", "eval_steps"):
        interval = getattr(args, name)
        if interval is not None and interval >= 1:
            setattr(args, name, int(interval * plan.steps_per_update))
    return args


def once_per_update(rate: Callable[[int], float], steps_per_update: int) -> Callable[[int], float]:
    """A learning-rate rule of the update turned into one of the optimiser step."""
    return lambda step: rate(step // steps_per_update)
