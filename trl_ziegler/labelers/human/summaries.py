"""What is read out of a label store: labels by majority, ratings for agreement, counts and progress."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, case, func, select
from sqlalchemy.orm import Session

from ...metrics.agreement import Agreement
from .queries import asks, in_pool, is_live, label_count, of_task
from .schema import Answer, Comparison, Labeller, OpenComparison


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
    for row in session.execute(_labels_in_pool(of_task(task))):
        given[row.comparison_id].append(row.label)
    # most_common keeps the first of equals, and the labels come in the order of their time
    return {comparison: Counter(labels).most_common(1)[0][0] for comparison, labels in given.items()}


def ratings(session: Session, which: ColumnElement[bool]) -> dict[str, list[Any]]:
    """Arguments of `Agreement.compute` about the comparisons for which `which` holds; see `LabelStore.ratings`."""
    labels: dict[str, list[int]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for row in session.execute(_labels_in_pool(which)):
        labels[row.comparison_id].append(row.label)
        names[row.comparison_id].append(row.labeller)
    contents = session.execute(select(Comparison.id, Comparison.completions).where(which))
    sizes = {row.id: len(row.completions) for row in contents}
    return {
        "predictions": list(labels.values()),
        "references": [names[comparison] for comparison in labels],
        "num_choices": [sizes[comparison] for comparison in labels],
    }


def agreement(ratings: dict[str, list[Any]]) -> dict[str, Any] | None:
    """Result of `Agreement` for what `ratings` gives; None while no comparison has two labels."""
    if not any(len(labels) > 1 for labels in ratings["predictions"]):
        return None
    # In memory, because two processes of one machine would share the file.
    return Agreement(keep_in_memory=True).compute(**ratings)


def counts(session: Session, task: str | None = None) -> Counts:
    """Where the store stands with what `asks` for `task`."""
    pool = select(Comparison.repeats, label_count().label("labels")).where(in_pool(), asks(task)).subquery()
    missing = case((pool.c.repeats > pool.c.labels, pool.c.repeats - pool.c.labels), else_=0)
    row = session.execute(
        select(
            func.count().label("comparisons"),
            func.count().filter(pool.c.labels > 0).label("labelled"),
            func.coalesce(func.sum(pool.c.labels), 0).label("labels"),
            func.coalesce(func.sum(missing), 0).label("remaining"),
        ).select_from(pool)
    ).one()
    total = session.scalar(select(func.count()).select_from(Comparison).where(asks(task))) or 0
    return Counts(total, row.labelled, total - row.comparisons, int(row.labels), int(row.remaining))


def progress(session: Session) -> list[Progress]:
    """One entry per labeller, by name."""
    names = session.scalars(select(Labeller.name).order_by(Labeller.name)).all()
    given: dict[str, list[Row]] = defaultdict(list)
    for row in session.execute(select(Answer.labeller, Answer.kind, Answer.seconds, is_live().label("live"))):
        given[row.labeller].append(row)
    return [_progress(name, given[name]) for name in names]


def progress_of(session: Session, labeller: str, last: int = 50) -> Progress:
    """The entry of one labeller, its median over the `last` timed answers: fast enough for every page shown."""
    own = select(Answer.kind, is_live().label("live")).where(Answer.labeller == labeller).subquery()
    numbers = {
        (row.kind, bool(row.live)): row.number
        for row in session.execute(select(own.c.kind, own.c.live, func.count().label("number")).group_by(*own.c))
    }
    timed = select(Answer.seconds).where(Answer.labeller == labeller, Answer.seconds.is_not(None), is_live())
    newest = session.scalars(timed.order_by(Answer.id.desc()).limit(last))
    seconds = [value for value in newest if value is not None]
    return Progress(
        labeller=labeller,
        labels=numbers.get(("label", True), 0),
        skips=numbers.get(("skip", True), 0),
        flags=numbers.get(("flag", True), 0),
        retracted=sum(number for (_, live), number in numbers.items() if not live),
        median_seconds=median(seconds) if seconds else None,
    )


def remaining(session: Session, task: str | None = None) -> int:
    """`Counts.remaining` of what `asks` for `task`; reads only what is still open."""
    missing = (
        select((Comparison.repeats - label_count()).label("labels"))
        .join(OpenComparison, OpenComparison.comparison_id == Comparison.id)
        .where(asks(task))
        .subquery()
    )
    return int(session.scalar(select(func.coalesce(func.sum(missing.c.labels), 0))) or 0)


def remaining_by_task(session: Session) -> dict[str | None, int]:
    """Labels that are still to be given, by task (None for comparisons that name none); without zeros."""
    missing = (
        select(Comparison.task, (Comparison.repeats - label_count()).label("labels"))
        .join(OpenComparison, OpenComparison.comparison_id == Comparison.id)
        .subquery()
    )
    rows = session.execute(select(missing.c.task, func.sum(missing.c.labels)).group_by(missing.c.task))
    return {task: int(labels) for task, labels in rows}


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


def _labels_in_pool(which: ColumnElement[bool]) -> Select:
    """Unretracted labels of the comparisons for which `which` holds, in order of arrival, and within one by time."""
    return (
        select(Answer.comparison_id, Answer.labeller, Answer.label)
        .join(Comparison, Comparison.id == Answer.comparison_id)
        .where(Answer.kind == "label", is_live(), in_pool(), which)
        .order_by(Comparison.position, Answer.created_at, Answer.id)
    )
