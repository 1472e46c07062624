"""What a PPO checkpoint holds besides `Trainer`'s files, and which checkpoints can be resumed.

`Trainer` writes `trainer_state.json` last, and every process writes its generators after its random states, so a
checkpoint with all of them is whole; a killed run leaves one without.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from safetensors.torch import load_file, save_file

from ._files import write_atomically, write_text
from .checkpoints import TRAINER_STATE_FILE, cut_off, is_json, newest_whole
from .kl_control import AdaptiveKLController, FixedKLController
from .ppo_config import UpdatePlan

logger = get_logger(__name__)

STATE_FILE = "ppo_state.json"
SIZES = {"batch_size": "episodes", "steps_per_update": "optimiser steps"}
GENERATOR_FILE = "rollout_generators_{rank}.safetensors"
STREAM_FILE = "pretraining_stream_{rank}.json"


def save_ppo_state(folder: str | os.PathLike, controller: FixedKLController, plan: UpdatePlan, sharded: bool) -> None:
    """Write beta, the sizes of an update, and whether the processes share one model; the main process's part."""
    state = {"kl_controller": controller.state_dict(), "world_size": plan.world_size, "sharded": sharded}
    state |= {name: getattr(plan, name) for name in SIZES}
    write_text(Path(folder, STATE_FILE), json.dumps(state))


def load_ppo_state(folder: str | os.PathLike, controller: FixedKLController, plan: UpdatePlan, sharded: bool) -> None:
    """Restore beta; `ValueError` where a run with other sizes, or a launch of another kind, wrote it."""
    state = json.loads(Path(folder, STATE_FILE).read_text())
    if state["world_size"] != plan.world_size:
        raise ValueError(
            f"{folder} was written by {state['world_size']} processes, this run has {plan.world_size}; each has "
            "random states of its own, so resume with as many."
        )
    if state.get("sharded", False) != sharded:
        raise ValueError(
            f"{folder} was written {'with' if not sharded else 'without'} FSDP, whose optimiser state is another, and "
            f"this run is {'with' if sharded else 'without'} it; resume with the same launch file, or start a new run "
            "from the policy in that folder."
        )
    for name, what in SIZES.items():
        if state.get(name, getattr(plan, name)) != getattr(plan, name):
            raise ValueError(
                f"{folder} was written with {state[name]} {what} an update, this run has {getattr(plan, name)} and "
                "would count its updates wrong; resume with the same batch sizes and epochs, or start a new run from "
                "the policy in that folder."
            )
    given = controller.value
    controller.load_state_dict(state["kl_controller"])
    if not isinstance(controller, AdaptiveKLController) and controller.value != given:
        logger.warning(f"`kl_coef` is {given}, but the run goes on with the {controller.value} of {folder}.")


def save_generators(folder: str | os.PathLike, generators: dict[str, torch.Generator], rank: int) -> None:
    """Write the states of this process's random generators."""
    states = {name: generator.get_state() for name, generator in generators.items()}
    write_atomically(Path(folder, GENERATOR_FILE.format(rank=rank)), lambda file: save_file(states, file))


def load_generators(folder: str | os.PathLike, generators: dict[str, torch.Generator], rank: int) -> None:
    """Restore the states of this process's random generators."""
    for name, state in load_file(Path(folder, GENERATOR_FILE.format(rank=rank))).items():
        generators[name].set_state(state)


def save_stream(folder: str | os.PathLike, state: dict[str, Any], rank: int) -> None:
    """Write this process's position in the pretraining text; before its generators, which mark it as done."""
    write_text(Path(folder, STREAM_FILE.format(rank=rank)), json.dumps(state))


def load_stream(folder: str | os.PathLike, rank: int) -> dict[str, Any]:
    """This process's position in the pretraining text; `ValueError` where the checkpoint has none."""
    file = Path(folder, STREAM_FILE.format(rank=rank))
    if not file.is_file():
        raise ValueError(f"{folder} has no {file.name}: that run had no `pretraining_dataset`; leave it out, too.")
    return json.loads(file.read_text())


def missing_part(checkpoint: str | os.PathLike) -> str | None:
    """The file that a checkpoint lacks, or has only half of; `None` for a whole one."""
    folder = Path(checkpoint)
    for name in (STATE_FILE, TRAINER_STATE_FILE):
        if not is_json(folder / name):
            return name
    ranks = json.loads((folder / STATE_FILE).read_text())["world_size"]
    names = (GENERATOR_FILE.format(rank=rank) for rank in range(ranks))
    return next((name for name in names if not (folder / name).is_file()), None)


def newest_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest whole checkpoint in `output_dir`, or `None`; half-written ones are warned of and left alone."""
    return newest_whole(output_dir, missing_part, _why_not_whole)


def _why_not_whole(checkpoint: str | os.PathLike) -> str:
    """`Trainer`'s state comes last: a checkpoint that has it and no state of PPO is another trainer's."""
    if is_json(Path(checkpoint, TRAINER_STATE_FILE)) and not Path(checkpoint, STATE_FILE).exists():
        return "another trainer wrote it, whose policy can be given as `model`"
    if not list(Path(checkpoint).glob("*.json*")):
        return "it is no checkpoint"
    return cut_off(Path(checkpoint))


def require_whole(checkpoint: str | os.PathLike) -> None:
    """Raise `ValueError` for a path that is no folder, or a checkpoint whose writing was cut off."""
    if not Path(checkpoint).is_dir():
        raise ValueError(f"`resume_from_checkpoint` is {checkpoint}, which is no folder; give a checkpoint or True.")
    missing = missing_part(checkpoint)
    if missing is not None:
        inside, newest = newest_checkpoint(checkpoint), newest_checkpoint(Path(checkpoint).parent)
        if inside is not None:
            raise ValueError(f"`resume_from_checkpoint` is {checkpoint}, which holds {inside}; give that, or True.")
        raise ValueError(
            f"`resume_from_checkpoint` is {checkpoint}, which has no complete {missing}, so "
            f"{_why_not_whole(checkpoint)}; resume from {newest or 'the start'} instead (`True` finds the newest "
            "whole one)."
        )
