"""What makes `Trainer`'s loop count in updates: order of the queries, learning rate, boundaries, checkpoints."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import TrainerControl

from .ppo_config import UpdatePlan, ZieglerPPOConfig
from .ppo_evaluation import SampledEvaluation
from .queries import UpdateSampler

STATE_FILE = "ppo_state.json"
GENERATOR_FILE = "rollout_generators_{rank}.safetensors"


class UpdateLoop(SampledEvaluation):
    """The part of `ZieglerPPOTrainer` between `Trainer`'s loop and PPO's updates.

    An update is one rollout and `plan.steps_per_update` optimiser steps. Expects the attributes `plan`,
    `kl_controller`, `_sampling_generator`, `_permutation_generator`, `_deferred`, `_step_sums`, `_start_unchecked` and
    the method `_finish_update`.
    """

    plan: UpdatePlan
    control: TrainerControl
    _deferred: dict[str, bool]

    _step_sums: dict[str, list[torch.Tensor]]

    def _finish_update(self) -> None:
        raise NotImplementedError

    def get_train_dataloader(self) -> DataLoader:
        """Batches of one update's queries per process, each repeated for every micro-batch of its update."""
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self.plan.local_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> UpdateSampler:
        args, plan = self.args, self.plan
        return UpdateSampler(
            self.train_dataset if train_dataset is None else train_dataset,
            mini_repeat_count=1,
            batch_size=plan.batch_size,
            repeat_count=plan.steps_per_update * plan.micro_batches_per_step,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        return dataset  # every column reaches the reward functions

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """`lr_scheduler_type` over updates instead of optimiser steps: constant within an update (E9)."""
        created_here = self.lr_scheduler is None
        steps = self.plan.steps_per_update
        scheduler = super().create_scheduler(num_training_steps // steps, optimizer)
        if created_here:
            if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                raise ValueError(
                    f"`lr_scheduler_type` is {self.args.lr_scheduler_type!r}, which is no function of the step; use "
                    "one that is, such as 'linear', 'cosine' or 'constant'."
                )
            scheduler.lr_lambdas = [once_per_update(rate, steps) for rate in scheduler.lr_lambdas]
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
        finished = bool(self._step_sums)  # `Trainer` calls this once more at the end of a pass over the data
        if finished:
            self._finish_update()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if finished and self._update % self._updates_between_tables == 0:
            self.generate_completions(sampling=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Policy, value function, tokenizer and arguments, in formats that load without pickle."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(self.args.to_json_string())

    def _save_rng_state(self, output_dir: str) -> None:
        """Besides the library's random states: this process's generators, and beta."""
        super()._save_rng_state(output_dir)
        states = {"sampling": self._sampling_generator, "permutation": self._permutation_generator}
        file = Path(output_dir, GENERATOR_FILE.format(rank=self.args.process_index))
        save_file({name: generator.get_state() for name, generator in states.items()}, file)
        if self.args.should_save:
            Path(output_dir, STATE_FILE).write_text(json.dumps({"kl_controller": self.kl_controller.state_dict()}))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        states = load_file(Path(checkpoint, GENERATOR_FILE.format(rank=self.args.process_index)))
        self._sampling_generator.set_state(states["sampling"])
        self._permutation_generator.set_state(states["permutation"])
        state = json.loads(Path(checkpoint, STATE_FILE).read_text())
        self.kl_controller.load_state_dict(state["kl_controller"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.accelerator.unwrap_model(self.model).load_checkpoint(resume_from_checkpoint)
        self._start_unchecked = False  # the policy has moved away from the reference

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def in_optimizer_steps(args: ZieglerPPOConfig, plan: UpdatePlan) -> ZieglerPPOConfig:
    """A copy of `args` as `Trainer`'s loop reads them: intervals in optimiser steps, accumulation per optimiser step.

    Intervals below 1 are shares of the run and stay.
    """
    args = copy.copy(args)
    args.max_steps = plan.updates * plan.steps_per_update
    args.gradient_accumulation_steps = plan.micro_batches_per_step
    args.per_device_train_batch_size = plan.micro_batch_size
    for name in ("logging_steps", "save_steps", "eval_steps"):
        interval = getattr(args, name)
        if interval is not None and interval >= 1:
            setattr(args, name, int(interval * plan.steps_per_update))
    return args


def once_per_update(rate: Callable[[int], float], steps_per_update: int) -> Callable[[int], float]:
    """A learning-rate rule of the update turned into one of the optimiser step."""
    return lambda step: rate(step // steps_per_update)
