"""Labels for an experiment's comparisons: from its simulated labeller, or from people through a label store."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..labelers import CollectingLabeler, ImmediateLabeler, Labeler, LabellingStopped
from .arguments import RecipeArguments
from .pipeline import read_jsonl
from .report_online import COLLECTION

if TYPE_CHECKING:
    from ..labelers.human import LabelStore

logger = get_logger(__name__)


def open_store(location: str) -> "LabelStore":
    """The label store at `location`; `ModuleNotFoundError` says how to install the extra where it is missing."""
    from ..labelers.human import LabelStore  # an extra, which runs without people do not need

    return LabelStore(location)


def make_labeler(args: RecipeArguments, task: str, simulated: Callable[[], Labeler]) -> CollectingLabeler:
    """Who answers: people where there is a `label_store`, otherwise what `simulated` gives."""
    if args.label_store is None:
        return ImmediateLabeler(simulated())
    from ..labelers.human import HumanLabeler

    PartialState().print(
        f"People give the labels of this run; they see its comparisons on the page of `python -m trl_ziegler.label "
        f"--store {args.label_store} --task {task}`."
    )
    return HumanLabeler(open_store(args.label_store), task=task)


def label_all(
    make: Callable[[], CollectingLabeler], records: Sequence[dict[str, Any]], poll_seconds: float
) -> list[dict[str, Any]]:
    """Ask for the labels of records and wait for them, in one process for all.

    A run that is killed meanwhile asks again when it goes on, which costs nobody work; see `CollectingLabeler`.

    Args:
        make: Gives the labeller; called by the process that asks.
        records: `prompt`, `completions`; those without two different candidates, or with an empty one, are left out.
        poll_seconds: Pause between two looks.

    Returns:
        The records that got their label, with it and in their order, in the main process; elsewhere none.

    Raises:
        LabellingStopped: a labeller has asked to stop; in every process.
    """
    main = PartialState().is_main_process
    askable = [row for row in records if all(row["completions"]) and len(set(row["completions"])) > 1]
    if len(askable) < len(records):
        logger.warning(f"{len(records) - len(askable)} of {len(records)} comparisons leave nothing to choose from.")
    labeler = make() if main else None
    asked: Sequence[dict[str, Any]] = askable
    with tqdm(total=len(askable), desc="Labels", disable=not main, leave=False) as progress:
        while True:
            missing, stop, rows = _look(labeler, asked)
            if stop is not None:
                raise LabellingStopped(stop)
            progress.update(len(askable) - missing - progress.n)
            if not missing:
                return rows
            asked = ()
            time.sleep(poll_seconds)


def _look(
    labeler: CollectingLabeler | None, asked: Sequence[dict[str, Any]]
) -> tuple[int, str | None, list[dict[str, Any]]]:
    """How many labels are still to come, the reason of a request to stop, and, once all are there, the records."""
    standing: tuple[int, str | None] = (0, None)
    rows: list[dict[str, Any]] = []
    if labeler is not None:
        try:
            if asked:
                labeler.request(asked)
            standing = (labeler.open(), None)
            rows = labeler.collect() if standing[0] == 0 else []
        except LabellingStopped as request:
            standing = (0, str(request))
    box = [standing]
    broadcast_object_list(box)
    return *box[0], rows


def labelling_of_run(run_dir: Path, task: str, args: RecipeArguments, stages: Sequence[str]) -> dict[str, Any] | None:
    """What the people of a run have done so far, see `labelling_figures`; None without people."""
    if args.label_store is None:
        return None
    from ..labelers.human import comparison_id
    from ..labelers.human.figures import labelling_figures

    ids = [
        comparison_id(row["prompt"], row["completions"], step=row.get("step"), task=task)
        for row in _asked(run_dir, stages)
    ]
    with open_store(args.label_store) as store:
        return labelling_figures(store, ids)


def _asked(run_dir: Path, stages: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The comparisons that a run's stages have made, also unfinished ones."""
    for name in stages:
        for folder in (run_dir / name, run_dir / f"{name}.partial"):
            for file in (folder / "candidates.jsonl", *sorted((folder / COLLECTION).glob("comparisons-*.jsonl"))):
                yield from read_jsonl(file) if file.is_file() else ()
