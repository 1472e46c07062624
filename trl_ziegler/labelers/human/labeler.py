"""People as a labeller: comparisons go into a `LabelStore`, and come back with the label that most people gave."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, select
from tqdm.auto import tqdm

from ..collecting import LabellingStopped, check_record
from ..protocol import Text, check_rows
from .queries import is_live
from .schema import Answer, OpenComparison, Token
from .store import LabelStore


class HumanLabeler:
    """A `Labeler` and a `CollectingLabeler` behind which people answer, on the page of `python -m trl_ziegler.label`.

    `label` waits for all answers; `request` and `collect` do not. Everything lies in the store: a process that ends
    loses nothing, and the next one that asks for the same comparisons finds the answers there.

    A comparison has its label when it has all the answers it wants (`repeats`), or when everybody who has an access
    token has answered or skipped it and somebody has answered; the label is what most say, among equals what was said
    first. It is still expected while it lacks answers and somebody is left who may give one (always, while the store
    has no labeller with a token). A flag that is not decided on, or a skip by everyone, leaves it without a label.

    Args:
        store (`LabelStore`): where comparisons and answers are.
        repeats (`int`, *optional*): how many people must answer records without `repeats` of their own; by default 5
            for 5 % of them and 1 for the rest, as in the paper. Comparisons that the store knows keep theirs.
        task (`str`, *optional*): the question, for records without `task` of their own.
        poll_seconds (`float`, *optional*, defaults to `5.0`): how often `label` looks into the store.
        timeout (`float`, *optional*): seconds after which `label` gives up; by default it waits for ever.
        progress (`bool`, *optional*, defaults to `True`): show a progress bar of comparisons while `label` waits.

    Raises:
        ValueError: `poll_seconds` or `timeout` that is not positive.

    Example:

    ```python
    >>> store = LabelStore("labels.db")
    >>> token = store.add_labeller("ann")
    >>> labeler = HumanLabeler(store, repeats=1)
    >>> labeler.request([{"prompt": "She was in", "completions": [" a garden.", " Rome."], "step": 0}])
    >>> labeler.open(), labeler.collect()
    (1, [])
    >>> work = store.take("ann")
    >>> answer = store.answer("ann", work.comparison.id, label=1, seconds=4.2)
    >>> labeler.open(), labeler.collect()
    (0, [{'prompt': 'She was in', 'completions': [' a garden.', ' Rome.'], 'step': 0, 'label': 1}])
    ```
    """

    def __init__(
        self,
        store: LabelStore,
        *,
        repeats: int | None = None,
        task: str | None = None,
        poll_seconds: float = 5.0,
        timeout: float | None = None,
        progress: bool = True,
    ):
        for name, value in {"poll_seconds": poll_seconds, "timeout": timeout}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be a positive number of seconds.")
        self.store = store
        self.repeats = repeats
        self.task = task
        self.poll_seconds = poll_seconds
        self.timeout = timeout
        self.progress = progress
        self._requested: list[tuple[str, dict[str, Any]]] = []  # the store's id beside each record

    def label(self, prompts: list[Text], completions: list[list[Text]], **columns: list) -> list[int]:
        """Ask for all comparisons and wait; return the index of the best completion per prompt, in 0..K-1.

        Args:
            prompts (`list`): B prompts.
            completions (`list[list]`): B lists of K >= 2 completions; K may differ between prompts.
            columns (`list`): extra columns of length B; `source`, `step`, `task`, `seed` and `repeats` mean what they
                mean to `LabelStore.add`, and the others are stored with the comparison.

        Raises:
            ValueError: lengths disagree, or a record that the store refuses.
            LabellingStopped: a labeller has pulled the cord.
            TimeoutError: not everything is labelled after `timeout` seconds.
            RuntimeError: comparisons are left without a label, and nobody is left who may give one.
        """
        check_rows(prompts, completions, columns)
        rows: dict[str, list] = {"prompt": prompts, "completions": completions, **columns}
        ids = self._add([{name: values[i] for name, values in rows.items()} for i in range(len(prompts))])
        self._wait(ids)
        labels = self._labels()
        missing = [i for i, identity in enumerate(ids) if identity not in labels]
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(ids)} comparisons are left without a label, the first at "
                f"prompts[{missing[0]}] (comparison {ids[missing[0]]}): flagged, or skipped by all labellers; put "
                "them back by `LabelStore.decide(keep=True)`, add a labeller, or leave them out: `request`, `collect`."
            )
        return [labels[identity] for identity in ids]

    def request(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Put `records` into the store, all or none, and return at once; see `CollectingLabeler`."""
        self._refuse_if_stopped()
        self._requested += zip(self._add(records), [dict(record) for record in records], strict=True)

    def collect(self) -> list[dict[str, Any]]:
        """The requested records that have their label so far, in the order of their requests, with that label.

        A label may change between two calls where a labeller takes an answer back or somebody joins the labellers.
        """
        self._refuse_if_stopped()
        labels = self._labels()
        return [{**record, "label": labels[identity]} for identity, record in self._requested if identity in labels]

    def open(self) -> int:
        """How many requested records are still expected to get their label."""
        self._refuse_if_stopped()
        waiting = self._waiting()
        return sum(identity in waiting for identity, _ in self._requested)

    def _add(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Add checked records; their ids in order."""
        for i, record in enumerate(records):
            check_record(record, f"Record {i}")
        asked = [{**record, "task": self.task if record.get("task") is None else record["task"]} for record in records]
        return self.store.add(asked, repeats=self.repeats).ids

    def _waiting(self) -> set[str]:
        """The comparisons of the store that are still expected to get their label."""
        with self.store.reading() as session:
            return set(session.scalars(_expected()))

    def _labels(self) -> dict[str, int]:
        """The label of each comparison of the store that has got it."""
        waiting = self._waiting()
        return {identity: label for identity, label in self.store.majority().items() if identity not in waiting}

    def _wait(self, ids: Sequence[str]) -> None:
        """Return once none of `ids` is expected any more."""
        wanted = set(ids)
        end = None if self.timeout is None else time.monotonic() + self.timeout
        with tqdm(total=len(wanted), desc="Waiting for labels", disable=not self.progress) as bar:
            while True:
                self._refuse_if_stopped()
                waiting = wanted & self._waiting()
                bar.update(len(wanted) - len(waiting) - bar.n)
                if not waiting:
                    return
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(
                        f"{len(waiting)} of {len(wanted)} comparisons have no label after timeout={self.timeout} "
                        "seconds; what was answered is kept, so call again, with more time or more labellers."
                    )
                time.sleep(self.poll_seconds)

    def _refuse_if_stopped(self) -> None:
        stop = self.store.stop_requested()
        if stop is not None:
            raise LabellingStopped(
                f"{stop.labeller!r} asked to stop on {stop.created_at:%Y-%m-%d %H:%M} UTC: {stop.reason!r}; settle it "
                f"on the researcher's page of the labelling server or with `LabelStore.clear_stop({stop.id}, ...)`, "
                "and start again, since what was answered is kept."
            )


def _expected() -> Select[str]:
    """Ids of comparisons that lack labels and that not all who have an access token have answered."""
    able = select(Token.labeller).distinct()
    said = (
        select(func.count(Answer.labeller.distinct()))
        .where(Answer.comparison_id == OpenComparison.comparison_id, is_live(), Answer.labeller.in_(able))
        .correlate(OpenComparison)
        .scalar_subquery()
    )
    everybody = select(func.count(Token.labeller.distinct())).scalar_subquery()
    return select(OpenComparison.comparison_id).where((everybody == 0) | (said < everybody))
