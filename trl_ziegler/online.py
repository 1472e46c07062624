"""Online collection (Ziegler et al. 2019, section 2.3): PPO asks for labels of what it says, and waits for them.

Before each update, and before the first: ask for labels ahead of the schedule, wait while there are fewer than l(n),
train the reward model anew when a training point of the schedule is reached, and put it in place of the former one.
One process asks and waits for all; everything it knows is on disk (`online_files`), so a run that was killed at any
point, the wait for labels included, goes on from its last checkpoint without asking anything twice.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from .fast_layers import use_fast_layers
from .labelers.collecting import CollectingLabeler, LabellingStopped, describe_labeler
from .online_candidates import REFERENCE, ComparisonMaker, drawing, win_rate
from .online_files import CollectionFiles
from .online_schedule import LabelSchedule
from .ppo_passes import evaluating
from .ppo_trainer import ZieglerPPOTrainer
from .reward_model import is_normalized, load_reward_model
from .tasks import Task

logger = get_logger(__name__)

TrainReward = Callable[[list[dict[str, Any]], int, Path], None]
WIN_RATE_WINDOW = 100  # validation labels behind one value of the running win rate
REQUEST_SEED_STEP = 1_000_003  # between the seeds of two requests


class Standing(NamedTuple):
    """Where the collection stands: `labels` so far, the running win rate, and why it should stop, if it should."""

    labels: int
    win_rate: float | None
    stop: str | None


class OnlineCollection(TrainerCallback):
    """Collects labels while a [`ZieglerPPOTrainer`] trains, and retrains its reward model on them.

    `begin` collects the first labels and gives the first reward model, with which the trainer is made; `attach` then
    ties the two together. A labeller's request to stop ends the training at the next update, or the wait for labels,
    with a checkpoint; its reason is logged, kept in `collection.json` ([`CollectionFiles`]) and in `stopped`.

    Logged: `online/labels` (there), `online/labels_wanted` (l(n)), `online/reward_model` (number of the one in use),
    `online/win_rate` (share of picks of the policy's candidates in the last 100 validation labels; 0.5 when it says
    what the reference says).

    Args:
        folder: Where everything is kept; the same one continues.
        schedule: How many labels, and when rewards are trained.
        queries: Rows with `prompt_ids`, `prompt` and any columns the labeller needs; comparisons take them in turn.
        labeler: Who is asked. The folder keeps its `repr`, and refuses a labeller with another one.
        train_reward: `f(rows, number, folder)` trains reward model `number` (0 is the first) on labelled records, from
            the reference with a fresh head, normalises it and leaves it in `folder/model`; every process calls it.
            What else a killed training left in `folder` is there when it is called again.
        task: As the trainer's.
        tokenizer: The policy's.
        num_candidates: K.
        validation_interval: Every how many-th comparison is two candidates of the reference against two of the policy;
            0 for none.
        batch_size: Rows per forward pass in sampling.
        seed: Of sampling.
        poll_seconds: Pause between two looks at the labels while waiting.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        schedule: LabelSchedule,
        queries: Sequence[dict[str, Any]],
        labeler: CollectingLabeler,
        train_reward: TrainReward,
        *,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        num_candidates: int = 4,
        validation_interval: int = 10,
        batch_size: int = 256,
        seed: int = 0,
        poll_seconds: float = 5.0,
    ) -> None:
        self.schedule, self.labeler, self.train_reward = schedule, labeler, train_reward
        self.batch_size, self.seed, self.poll_seconds = batch_size, seed, poll_seconds
        self.maker = ComparisonMaker(
            queries, task.bind(tokenizer), tokenizer, num_candidates, validation_interval, seed
        )
        self.files = CollectionFiles(folder, schedule, describe_labeler(labeler))
        self.stopped: str | None = None
        self.trainer: ZieglerPPOTrainer | None = None
        self._reference: PreTrainedModel | None = None
        self._reward: PreTrainedModel | None = None
        self._number = 0  # of the reward model in use
        self._standing: Standing | None = None
        self._asked_again = self._log_due = False

    # ---- Before PPO -------------------------------------------------------------------------------------------------

    def begin(self, reference: PreTrainedModel) -> PreTrainedModel:
        """Collect the first labels, of the reference's responses, and train the first reward model.

        With several processes, make the trainer's configuration before: it is what makes them known to each other.

        Args:
            reference: rho, on the device it samples on.

        Returns:
            The reward model to make the trainer with, also where a run goes on.

        Raises:
            LabellingStopped: a labeller's request to stop stands.
        """
        self._reference = reference.eval()
        if PartialState().is_main_process:
            self.files.start()
        PartialState().wait_for_everyone()
        self._standing = self._wait(0)
        self._refuse_if_stopped(0)
        self._reward = self._reward_model(0, 0)
        return self._reward

    def attach(self, trainer: ZieglerPPOTrainer) -> None:
        """Collect at the updates of `trainer`, which was made with the model that `begin` returned.

        Raises:
            ValueError: another reward model, another task, a schedule for another number of episodes, or FSDP.
        """
        plan = trainer.plan
        if trainer.is_fsdp_enabled:
            raise ValueError(
                "FSDP is on, but one process alone samples the candidates of a collection, from the whole policy; "
                "launch with DDP (recipes/accelerate/ddp.yaml)."
            )
        if self._reward is None or not any(function is self._reward for function in trainer.reward.functions):
            raise ValueError("The trainer's `reward_model` is not what `begin` returned; make the trainer with that.")
        if trainer.task != self.maker.task:
            raise ValueError(f"The trainer's `task` is {trainer.task.task}; give the collection the same one.")
        if -(-self.schedule.episodes // plan.batch_size) != plan.updates:
            raise ValueError(
                f"`episodes` of the schedule is {self.schedule.episodes}, but the trainer makes {plan.updates} "
                f"updates of {plan.batch_size} episodes; give {plan.updates * plan.batch_size}."
            )
        starts = range(0, plan.updates * plan.batch_size, plan.batch_size)
        trainings = len({self.schedule.trainings_before(n) for n in starts})
        if trainings < len(self.schedule.training_points):
            logger.warning(
                f"{plan.updates} updates pass several of the {len(self.schedule.training_points)} points of reward "
                f"training at once; there will be {trainings} trainings."
            )
        self.trainer, self._reference = trainer, None
        trainer.add_callback(self)

    # ---- Between updates --------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        """Nothing is known yet of where this run starts, but that it may start with what a former one has left."""
        self._standing, self.stopped = None, None
        if state.global_step == 0 and self.files.found:
            labels = f"{self.files.found} labels found in {self.files.folder}"
            logger.warning(f"PPO begins anew, going on with {labels} and the reward models trained on them there.")

    def on_step_end(self, args, state, control, **kwargs):
        """After an update: ask ahead; before a pause, or a stop, there is a checkpoint."""
        if not self._is_boundary(state):
            return
        self._log_due = control.should_log
        self._standing = self._look(self._episode(state))
        self._stop_if_asked(control, state)
        if self.stopped is not None or self._is_short(state):
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """With the checkpoint written: wait for the labels that the next update needs."""
        if self._is_boundary(state) and not control.should_training_stop and self._is_short(state):
            self._standing = self._wait(self._episode(state))
            self._stop_if_asked(control, state)

    def on_step_begin(self, args, state, control, **kwargs):
        """Before an update: its reward model. At the start of a run also ask and wait.

        Raises:
            LabellingStopped: at the start of a run, a labeller's request to stop stands.
        """
        if not self._is_boundary(state):
            return
        episode, first = self._episode(state), self._standing is None
        if first:
            self._standing = self._wait(episode)
            self._refuse_if_stopped(episode)
        number = self.schedule.trainings_before(episode) - 1
        retrained = number != self._number
        if retrained:
            self._use(self._reward_model(number, episode), number)
        if self._log_due or retrained or first:
            self._log(episode)

    def _is_boundary(self, state: TrainerState) -> bool:
        """Whether an update comes next; nothing is collected after the last."""
        steps = self._ppo.plan.steps_per_update
        return state.global_step % steps == 0 and state.global_step < state.max_steps

    def _episode(self, state: TrainerState) -> int:
        """Episodes before the next update."""
        plan = self._ppo.plan
        return state.global_step // plan.steps_per_update * plan.batch_size

    def _is_short(self, state: TrainerState) -> bool:
        assert self._standing is not None
        return self._standing.labels < self.schedule.labels_before(self._episode(state))

    def _stop_if_asked(self, control: TrainerControl, state: TrainerState) -> None:
        if self._note_stop(self._episode(state)) is not None:
            control.should_training_stop = True

    def _refuse_if_stopped(self, episode: int) -> None:
        reason = self._note_stop(episode)
        if reason is not None:
            raise LabellingStopped(reason)

    def _note_stop(self, episode: int) -> str | None:
        """The reason of a request to stop, logged and kept."""
        assert self._standing is not None
        self.stopped = self._standing.stop
        if self.stopped is not None:
            logger.warning(f"Training stops after {episode} episodes, as a labeller asked: {self.stopped}")
            if PartialState().is_main_process:
                self.files.summarize({"episode": episode, "reason": self.stopped})
        return self.stopped

    def _log(self, episode: int) -> None:
        """A row of its own: the training's row was written before the reward model changed."""
        assert self._standing is not None
        row: dict[str, float] = {
            "episode": episode,
            "online/labels": self._standing.labels,
            "online/labels_wanted": self.schedule.labels_before(episode),
            "online/reward_model": self._number,
        }
        if self._standing.win_rate is not None:
            row["online/win_rate"] = self._standing.win_rate
        self._ppo.log(row)

    @property
    def _ppo(self) -> ZieglerPPOTrainer:
        assert self.trainer is not None, "`attach` comes before training"
        return self.trainer

    # ---- Labels -----------------------------------------------------------------------------------------------------

    def _wait(self, episode: int) -> Standing:
        """Where the collection stands once there are l(n) labels, or a labeller has asked to stop."""
        needed, standing = self.schedule.labels_before(episode), self._look(episode)
        if standing.stop is not None or standing.labels >= needed:
            return standing
        main = PartialState().is_main_process
        logger.info(f"Waiting for labels: {standing.labels} of {needed} before episode {episode}.")
        with tqdm(total=needed, initial=standing.labels, desc="Labels", disable=not main, leave=False) as progress:
            while standing.stop is None and standing.labels < needed:
                time.sleep(self.poll_seconds)
                standing = self._look(episode)
                progress.update(standing.labels - progress.n)
        return standing

    def _look(self, episode: int) -> Standing:
        """Ask ahead and take what was answered, in one process for all."""
        standing = Standing(0, None, None)
        if PartialState().is_main_process:
            stop = None
            try:
                self._ask_ahead(episode)
            except LabellingStopped as request:
                stop = str(request)
            standing = Standing(len(self.files.labels), self._win_rate(), stop)
        box = [standing]
        broadcast_object_list(box)
        return box[0]

    def _ask_ahead(self, episode: int) -> None:
        if not self._asked_again:
            # A labeller in this process does not know what a killed one was asked; people's store does.
            known = self.files.labels
            self.labeler.request([row for i, row in enumerate(self.files.records) if i not in known])
            self._asked_again = True
        expected = self.labeler.open()  # before `collect`: a label given in between counts twice, not never
        self._take_labels()
        short = self.schedule.requested_before(episode) - len(self.files.labels) - expected
        if short > 0:
            records = self._comparisons(short)
            self.files.add_records(records)
            self.labeler.request(records)
            self._take_labels()

    def _take_labels(self) -> None:
        self.files.add_labels({row["number"]: row["label"] for row in self.labeler.collect()})

    def _comparisons(self, count: int) -> list[dict[str, Any]]:
        """Fresh comparisons by the policy as it is; a function of seed, weights and what was asked before."""
        former = self.files.records
        first = len(former)
        device = self._reference.device if self._reference is not None else self._ppo.args.device
        generator = torch.Generator(device).manual_seed(self.seed + REQUEST_SEED_STEP * (first + 1))
        draws = (
            drawing(model, self.maker.task, generator, self.batch_size) for model in (self._policy, self._start_model)
        )
        rows = self.maker.make(count, former[-1]["query"] + 1 if former else 0, *draws)
        update = 0 if self.trainer is None else self.trainer.state.global_step // self.trainer.plan.steps_per_update
        return [{**row, "number": first + i, "step": update} for i, row in enumerate(rows)]

    @contextlib.contextmanager
    def _policy(self) -> Iterator[PreTrainedModel]:
        """pi as it samples; before PPO that is rho."""
        if self._reference is not None:
            yield self._reference
            return
        model, accelerator = self._ppo.model, self._ppo.accelerator
        with evaluating(model), accelerator.autocast():
            yield accelerator.unwrap_model(model).policy

    @contextlib.contextmanager
    def _start_model(self) -> Iterator[PreTrainedModel]:
        """rho."""
        if self._reference is not None:
            yield self._reference
            return
        with evaluating(self._ppo.model), self._ppo.accelerator.autocast(), self._ppo._reference() as reference:
            yield reference.policy

    def _win_rate(self) -> float | None:
        labels = self.files.labels
        validation = [i for i in labels if REFERENCE in self.files.records[i]["sources"]]
        last = sorted(validation)[-WIN_RATE_WINDOW:]
        return win_rate([{**self.files.records[i], "label": labels[i]} for i in last])

    # ---- Reward models ----------------------------------------------------------------------------------------------

    def _reward_model(self, number: int, episode: int) -> PreTrainedModel:
        """A reward model from its folder, trained now if it is not there."""
        folder = self.files.reward(number)
        if not folder.is_dir():
            self._train_reward(number, episode)
        # Also a model that was trained just now, whose parts round otherwise than what is on disk.
        model = load_reward_model(folder / "model")
        if not is_normalized(model):
            raise ValueError(f"`train_reward` left a model in {folder} that is not normalised; normalise it over rho.")
        use_fast_layers(model)  # the trainer of PPO sees only the first
        return model.eval()

    def _train_reward(self, number: int, episode: int) -> None:
        state = PartialState()
        if state.is_main_process:
            self.files.begin_reward(number, episode)
        state.wait_for_everyone()
        partial = self.files.partial_reward(number)
        rows = self.files.training_rows(partial)
        if state.is_main_process:
            tqdm.write(f"Reward model {number}: {len(rows)} labels")  # above PPO's progress bar
        with undisturbed():
            self.train_reward(rows, number, partial)
        PartialState().wait_for_everyone()
        if state.is_main_process:
            self.files.finish_reward(number)
        PartialState().wait_for_everyone()

    def _use(self, model: PreTrainedModel, number: int) -> None:
        """Have PPO optimise `model` in place of the former reward model."""
        functions = self._ppo.reward.functions
        slot = next(i for i, function in enumerate(functions) if function is self._reward)
        functions[slot] = self._reward = model.to(self._ppo.args.device)
        self._number = number
        self._ppo.forget_reference_scores()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """For a training inside a training: random states, and what accelerate keeps for all trainers, as they were."""
    states = random.getstate(), np.random.get_state()
    # Empty ones too: the first reward model is trained before the trainer of PPO has set any.
    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    kept = [dict(state) for state in shared]
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    for state, values in zip(shared, kept, strict=True):
        state.clear()
        state.update(values)
