"""The newest checkpoint that a training can be resumed from, and what makes one of a reward model whole.

`Trainer` writes `trainer_state.json` last, so a run killed before that leaves a checkpoint without it, or with half of
it. Other processes may still be at their random states by then, whose files end in an index that half of one lacks.
"""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from accelerate.logging import get_logger
from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .reward_model import REWARD_HEAD_FILE

logger = get_logger(__name__)

TRAINER_STATE_FILE = "trainer_state.json"


def checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """The folders of checkpoints in `output_dir`, whole or not, the newest first."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def newest_whole(output_dir: str | os.PathLike, missing_part: Callable[[Path], str | None]) -> str | None:
    """The newest whole checkpoint in `output_dir`, or `None`; half-written ones are warned of and left alone.

    Args:
        output_dir: The run's folder.
        missing_part: The file that a checkpoint lacks, or has only half of; `None` for a whole one.
    """
    for folder in checkpoints(output_dir):
        missing = missing_part(folder)
        if missing is None:
            return str(folder)
        logger.warning(f"{folder} is ignored: it has no complete {missing}, so its writing was cut off.")
    return None


def newest_reward_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest whole checkpoint of a reward model; see `newest_whole`."""
    return newest_whole(output_dir, missing_reward_part)


def missing_reward_part(checkpoint: Path) -> str | None:
    """The file that a checkpoint of `BestOfKRewardTrainer` lacks, or has only half of; `None` for a whole one."""
    if not is_json(checkpoint / TRAINER_STATE_FILE):
        return TRAINER_STATE_FILE
    sharded = any(checkpoint.glob(f"{FSDP_MODEL_NAME}*"))  # FSDP's own files hold the head
    if not sharded and not (checkpoint / REWARD_HEAD_FILE).is_file():
        return REWARD_HEAD_FILE
    states = sorted(checkpoint.glob("rng_state*.pth"))
    return next((file.name for file in states if not zipfile.is_zipfile(file)), None)


def is_json(file: Path) -> bool:
    """Whether there is a file, and all of it."""
    if not file.is_file():
        return False
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return False
    return True
