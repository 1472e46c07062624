"""Online collection in an experiment: its stage `policy` collects labels and trains rewards and policy in one loop.

The stage's folder holds `collection/` (see `online_files`) beside the policy; a run that a labeller stopped, or that
was killed, goes on from there.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from ..labelers.collecting import LabellingStopped
from ..online import OnlineCollection
from ..online_candidates import REFERENCE, win_rate
from ..online_files import REWARD, SUMMARY
from ..ppo_config import ZieglerPPOConfig
from ..reward_trainer import BestOfKRewardConfig
from .experiment import Experiment, collection_schedule, load_model
from .pipeline import read_jsonl, write_json
from .report_online import COLLECTION
from .training import train_reward_model


def start_collection(
    experiment: Experiment[Any],
    folder: Path,
    config: ZieglerPPOConfig,
    start: str,
    queries: list[dict[str, Any]],
    **options: Any,
) -> tuple[OnlineCollection, PreTrainedModel]:
    """The collection of a stage, with the first labels there, and the first reward model.

    Args:
        experiment: Its stages `collect` and `label` have left what rewards are normalised over and held-out labels.
        folder: The stage's.
        config: Of the stage's PPO.
        start: Folder or id of the start model.
        queries: Rows that comparisons are made of, in this order.
        options: Further options of `train_reward_model`.

    Raises:
        LabellingStopped: a labeller has asked to stop.
    """
    args, run_dir = experiment.args, experiment.run_dir
    train_reward = reward_training(
        partial(experiment.trainer_config, "reward"),
        start,
        read_jsonl(run_dir / "collect" / "normalization.jsonl"),
        read_jsonl(run_dir / "label" / "labels.jsonl"),
        **options,
    )
    model, tokenizer = load_model(start)
    collection = OnlineCollection(
        folder / COLLECTION,
        collection_schedule(args, config),
        queries,
        experiment.collecting_labeler(),
        train_reward,
        task=experiment.task,
        tokenizer=tokenizer,
        num_candidates=args.num_candidates,
        validation_interval=args.online_validation_interval,
        batch_size=args.batch_size,
        seed=args.seed,
        poll_seconds=args.label_poll_seconds,
    )
    return collection, collection.begin(model.to(PartialState().device))


def reward_training(
    config: Callable[[Path], BestOfKRewardConfig],
    start: str,
    samples: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    **options: Any,
) -> Callable[[list[dict[str, Any]], int, Path], None]:
    """`train_reward_model` as a collection calls it: each time from the start model, with a head of its own.

    Args:
        config: The section `reward` for a folder.
        start: Folder or id of the start model.
        samples: What the reward models are normalised over.
        held_out: Labelled rows that none is trained on, for the accuracy of all.
        options: Further options of `train_reward_model`.
    """

    def train(rows: list[dict[str, Any]], number: int, folder: Path) -> None:
        own = config(folder)
        own.seed += number
        own.report_to = []  # the trackers' run is the policy's
        train_reward_model(folder, own, start, [*rows, *held_out], samples, held_out=len(held_out), **options)

    return train


def finish_collection(folder: Path, collection: OnlineCollection) -> None:
    """Leave `metrics.json` with what the collection came to.

    Raises:
        LabellingStopped: a labeller ended the run before its time; the stage is not complete.
    """
    if collection.stopped is not None:
        raise LabellingStopped(collection.stopped)
    if not PartialState().is_main_process:
        return
    rows = [row for row in collection.files.labelled() if REFERENCE in row["sources"]]
    metrics = {
        "reward_model": json.loads((last_reward(folder) / "metrics.json").read_text()),
        "online": {"labels": len(collection.files.labels), "validation_labels": len(rows), "win_rate": win_rate(rows)},
    }
    write_json(folder / "metrics.json", metrics)


def last_reward(folder: Path) -> Path:
    """The folder of the newest reward model of a stage."""
    trainings = json.loads((folder / COLLECTION / SUMMARY).read_text())["trainings"]
    return folder / COLLECTION / REWARD.format(number=trainings[-1]["number"])
