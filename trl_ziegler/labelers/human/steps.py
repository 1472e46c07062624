"""Steps of the store's transactions: what they lock, look up, insert and refuse.

Lock order, so that no two transactions wait for each other: the labeller's row, then the comparison's. Everything that
depends on a comparison's answers and leases is decided with its row locked, and whoever adds one locks it first.
SQLite has one writer at a time and ignores row locks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from . import queries
from .content import check_name, display_order, is_identity
from .schema import Answer, Comparison, Labeller, Lease, OpenComparison

CHUNK = 500  # ids per query; databases limit the parameters of one statement


class AlreadyAnswered(ValueError):
    """The labeller's own answer stands and says something else."""


class NothingToRetract(ValueError):
    """The labeller has no answer that stands."""


class Added(NamedTuple):
    """Result of `LabelStore.add`: the id of every record in order, and how many of them the store did not know."""

    ids: list[str]
    added: int


@dataclass(frozen=True)
class Assignment:
    """A comparison in a labeller's hands until `expires_at`; `order[place]` is the original index shown at `place`."""

    comparison: Comparison
    labeller: str
    order: list[int]
    expires_at: datetime

    @property
    def shown(self) -> list[Any]:
        """The K completions in display order."""
        return [self.comparison.completions[index] for index in self.order]


def assignment(comparison: Comparison, lease: Lease) -> Assignment:
    """What `lease` puts into its labeller's hands."""
    order = display_order(comparison, lease.labeller)
    return Assignment(comparison, lease.labeller, order, lease.expires_at)


def insert_comparisons(session: Session, values: Sequence[Mapping[str, Any]], now: datetime) -> Added:
    """Insert those that are not there yet, numbered in their order; the session must be alone in doing so."""
    ids = [row["id"] for row in values]
    known = _known_ids(session, ids)
    fresh: dict[str, Mapping[str, Any]] = {}
    for row in values:
        if row["id"] not in known:
            fresh.setdefault(row["id"], row)
    last = session.scalar(select(func.max(Comparison.position)))
    first = 0 if last is None else last + 1
    if fresh:
        rows = [{**row, "position": first + i, "created_at": now} for i, row in enumerate(fresh.values())]
        session.execute(insert(Comparison), rows)
        refresh_open(session, fresh)
    return Added(ids, len(fresh))


def refresh_open(session: Session, ids: Iterable[str]) -> None:
    """Bring `OpenComparison` up to date with the records of these comparisons, whose rows are locked."""
    session.flush()
    for chunk in chunks(ids):
        session.execute(
            delete(OpenComparison).where(OpenComparison.comparison_id.in_(chunk)),
            execution_options={"synchronize_session": False},
        )
        lacking = queries.lacking_labels().where(Comparison.id.in_(chunk))
        session.execute(insert(OpenComparison).from_select(["comparison_id", "position"], lacking))


def known_comparison(session: Session, comparison_id: str, *, lock: bool = False) -> Comparison:
    """The comparison of this id, its row locked on request; `ValueError` if there is none."""
    query = select(Comparison).where(Comparison.id == comparison_id)
    likely = is_identity(comparison_id)  # what a page sends is not sent on to the database as it is
    comparison = session.scalars(query.with_for_update() if lock else query).first() if likely else None
    if comparison is None:
        raise ValueError(
            f"comparison_id={comparison_id!r} is not in the store; take an id from `take` or `comparisons`."
        )
    return comparison


def lock_labeller(session: Session, labeller: str) -> None:
    """Make the acts of one labeller follow each other; `ValueError` if the store does not know the name."""
    check_name(labeller)
    query = select(Labeller).where(Labeller.name == labeller).with_for_update()
    if session.scalars(query).first() is None:
        raise ValueError(f"labeller={labeller!r} is not known; add the name with `add_labeller`.")


def lock_open(session: Session, labeller: str, now: datetime, task: str | None = None) -> Comparison | None:
    """The first comparison open for `labeller`, its row locked; waits for rows of rivals only if no other is open."""
    query = queries.open_for(labeller, now, task).limit(1)
    for skip_locked in (True, False):
        comparison = session.scalars(query.with_for_update(of=Comparison, skip_locked=skip_locked)).first()
        if comparison is not None:
            return comparison
    return None


def require_lease(session: Session, labeller: str, comparison_id: str) -> None:
    """Refuse an answer to what the labeller was never given."""
    query = select(Lease.id).where(Lease.labeller == labeller, Lease.comparison_id == comparison_id).limit(1)
    if session.scalar(query) is None:
        raise ValueError(
            f"Comparison {comparison_id} was never given to labeller={labeller!r}; answer what `take` gave."
        )


def unless_contradicted(former: Answer, kind: str, label: int | None) -> Answer:
    """The stored answer, if it says the same."""
    if (former.kind, former.label) != (kind, label):
        said = former.kind if former.label is None else f"label {former.label}"
        raise AlreadyAnswered(
            f"labeller={former.labeller!r} has answered comparison {former.comparison_id} with {said}; "
            "`retract` that answer before giving another one."
        )
    return former


def _known_ids(session: Session, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that the store holds."""
    known: set[str] = set()
    for chunk in chunks(ids):
        known.update(session.scalars(select(Comparison.id).where(Comparison.id.in_(chunk))))
    return known


def chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    """`ids` in lists of at most `CHUNK`."""
    remaining = iter(ids)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk
