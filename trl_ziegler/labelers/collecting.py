"""Labels that come when they come: what online collection asks of a labeller, and simulated labellers in its terms."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .protocol import Labeler


class LabellingStopped(RuntimeError):
    """A labeller has pulled the cord: something is wrong, and whoever waits for labels should stop."""


class CollectingLabeler(Protocol):
    """Takes best-of-K records to label and hands back those that have their label, without waiting for the others.

    A run that collects labels while it trains (Ziegler et al. 2019, section 2.3) requests ahead of its need, looks at
    `collect` from time to time, and waits only while `open` is not 0. Every requested record is in one of three
    states: it has its label (`collect`), its label is still to come (`open`), or it gets none, because labellers
    skipped it or flagged it as faulty. People change their minds, so a record may return from the third state.

    `HumanLabeler` asks people; `ImmediateLabeler` asks any `Labeler` and has the answer at once. A run that restarts
    requests its records again, which costs nobody work: people are not asked for what their store knows.
    """

    def request(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Ask for the labels of records: `prompt`, `completions` (K >= 2, not all alike), and any other columns.

        Raises:
            ValueError: a record that cannot be asked, or that has a `label`; nothing of `records` is requested then.
            LabellingStopped: a labeller has pulled the cord.
        """
        ...

    def collect(self) -> list[dict[str, Any]]:
        """All requested records that have a label so far, in the order of their requests, one for each request.

        Each has the columns it was requested with, and `label`, the index of the best completion in 0..K-1. Errors as
        in `request`, but for `ValueError`.
        """
        ...

    def open(self) -> int:
        """How many requested records are still expected to get their label; 0 if waiting is of no use.

        Errors as in `collect`.
        """
        ...


class ImmediateLabeler:
    """A `CollectingLabeler` that lets a labeller answer each request at once.

    Args:
        labeler (`Labeler`): who answers; columns other than `prompt` and `completions` are handed to its `label`.

    Example:

    ```python
    >>> labeler = ImmediateLabeler(ScoreLabeler(VividnessScorer()))
    >>> labeler.request([{"prompt": "She saw", "completions": [" a man.", " a red moon."], "step": 3}])
    >>> labeler.collect()
    [{'prompt': 'She saw', 'completions': [' a man.', ' a red moon.'], 'step': 3, 'label': 1}]
    >>> labeler.open()
    0
    ```
    """

    def __init__(self, labeler: Labeler):
        self.labeler = labeler
        self._labelled: list[dict[str, Any]] = []

    def request(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Label `records` and keep them; a column that only some of them have is None for the others' labelling."""
        for i, record in enumerate(records):
            check_record(record, f"Record {i}")
        if not records:
            return
        names = dict.fromkeys(name for record in records for name in record if name not in ("prompt", "completions"))
        labels = self.labeler.label(
            [record["prompt"] for record in records],
            [list(record["completions"]) for record in records],
            **{name: [record.get(name) for record in records] for name in names},
        )
        self._labelled += [{**record, "label": label} for record, label in zip(records, labels, strict=True)]

    def collect(self) -> list[dict[str, Any]]:
        """All records requested so far, with their labels, in the order of their requests."""
        return [dict(record) for record in self._labelled]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labeler!r})"

    def open(self) -> int:
        """0: every request has been answered."""
        return 0


def describe_labeler(labeler: CollectingLabeler) -> str:
    """What a labeller is known by: its `repr`, without addresses in memory; for want of one, the name of its class."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(labeler))


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Refuse what nobody can choose from; `where` is what messages call the record."""
    for name in ("prompt", "completions"):
        if name not in record:
            raise ValueError(f"{where} has no `{name}`; give `prompt` and `completions`, not {sorted(record)}.")
    if "label" in record:
        raise ValueError(f"{where} has label={record['label']!r} already; request only records without a label.")
    completions = record["completions"]
    is_list = isinstance(completions, list | tuple)
    if not is_list or len(completions) < 2 or all(text == completions[0] for text in completions):
        raise ValueError(
            f"{where}: completions={completions!r} leave nothing to choose from; give a list of 2 or more that differ."
        )
