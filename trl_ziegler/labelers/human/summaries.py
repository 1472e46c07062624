"""What is read out of a label store: labels by majority, ratings for agreement, counts and progress."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import Row, Select, case, func, select
from sqlalchemy.orm import Session

from .queries import in_pool, is_live, label_count
from .schema import Answer, Comparison, Labeller


@dataclass(frozen=True)
class Counts:
    """Where a store stands.

    `comparisons`: all of them; `labelled`: with at least one label; `set_aside`: out of the pool because of a flag;
    `labels`: unretracted ones in the pool; `remaining`: labels that are still to be given in the pool.
    """

    comparisons: int
    labelled: int
    set_aside: int
    labels: int
    remaining: int


@dataclass(frozen=True)
class Progress:
    """What one labeller has done: unretracted answers by kind, how many were retracted, and the median seconds of the
    timed ones (None without any; the median, because people leave pages open)."""

    labeller: str
    labels: int
    skips: int
    flags: int
    retracted: int
    median_seconds: float | None


def majority(session: Session, task: str | None) -> dict[str, int]:
    """Label of each labelled comparison; see `LabelStore.majority`."""
    given: dict[str, list[int]] = defaultdict(list)
    for row in session.execute(_labels_in_pool(task)):
        given[row.comparison_id].append(row.label)
    # most_common keeps the first of equals, and the labels come in the order of their time
    return {comparison: Counter(labels).most_common(1)[0][0] for comparison, labels in given.items()}


def ratings(session: Session, task: str | None) -> dict[str, list[Any]]:
    """Arguments of `Agreement.compute`; see `LabelStore.ratings`."""
    labels: dict[str, list[int]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for row in session.execute(_labels_in_pool(task)):
        labels[row.comparison_id].append(row.label)
        names[row.comparison_id].append(row.labeller)
    sizes = {row.id: len(row.completions) for row in session.execute(select(Comparison.id, Comparison.completions))}
    return {
        "predictions": list(labels.values()),
        "references": [names[comparison] for comparison in labels],
        "num_choices": [sizes[comparison] for comparison in labels],
    }


def counts(session: Session) -> Counts:
    """Where the store stands."""
    pool = select(Comparison.repeats, label_count().label("labels")).where(in_pool()).subquery()
    missing = case((pool.c.repeats > pool.c.labels, pool.c.repeats - pool.c.labels), else_=0)
    row = session.execute(
        select(
            func.count().label("comparisons"),
            func.count().filter(pool.c.labels > 0).label("labelled"),
            func.coalesce(func.sum(pool.c.labels), 0).label("labels"),
            func.coalesce(func.sum(missing), 0).label("remaining"),
        ).select_from(pool)
    ).one()
    total = session.scalar(select(func.count()).select_from(Comparison)) or 0
    return Counts(total, row.labelled, total - row.comparisons, int(row.labels), int(row.remaining))


def progress(session: Session) -> list[Progress]:
    """One entry per labeller, by name."""
    names = session.scalars(select(Labeller.name).order_by(Labeller.name)).all()
    given: dict[str, list[Row]] = defaultdict(list)
    for row in session.execute(select(Answer.labeller, Answer.kind, Answer.seconds, is_live().label("live"))):
        given[row.labeller].append(row)
    return [_progress(name, given[name]) for name in names]


def _progress(name: str, rows: list[Row]) -> Progress:
    kinds = Counter(row.kind for row in rows if row.live)
    seconds = [row.seconds for row in rows if row.live and row.seconds is not None]
    return Progress(
        labeller=name,
        labels=kinds["label"],
        skips=kinds["skip"],
        flags=kinds["flag"],
        retracted=sum(not row.live for row in rows),
        median_seconds=median(seconds) if seconds else None,
    )


def _labels_in_pool(task: str | None) -> Select:
    """Unretracted labels by comparison, in order of arrival, and within one by time."""
    query = (
        select(Answer.comparison_id, Answer.labeller, Answer.label)
        .join(Comparison, Comparison.id == Answer.comparison_id)
        .where(Answer.kind == "label", is_live(), in_pool())
        .order_by(Comparison.position, Answer.created_at, Answer.id)
    )
    return query if task is None else query.where(Comparison.task == task)
