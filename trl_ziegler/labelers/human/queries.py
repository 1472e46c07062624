"""The conditions that decide who may answer what, as SQL that SQLite and PostgreSQL share."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, true
from sqlalchemy.orm import aliased

from .schema import (
    Answer,
    Comparison,
    Decision,
    Lease,
    OpenComparison,
    Retraction,
    StopClearance,
    StopRequest,
    Token,
)


def is_live(answer: Any = Answer) -> ColumnElement[bool]:
    """The answer has not been retracted."""
    return ~exists().where(Retraction.answer_id == answer.id).correlate(answer)


def live_answer(labeller: str, comparison_id: str) -> Select[Answer]:
    """What `labeller` says about a comparison: at most one row, since a second answer is refused."""
    return select(Answer).where(Answer.comparison_id == comparison_id, Answer.labeller == labeller, is_live())


def in_pool() -> ColumnElement[bool]:
    """No flag lies on the comparison, or a researcher decided to keep it in spite of each."""
    last_word = (
        select(Decision.keep)
        .where(Decision.answer_id == Answer.id)
        .order_by(Decision.id.desc())
        .limit(1)
        .correlate(Answer)
        .scalar_subquery()
    )
    kept = func.coalesce(last_word, False)
    flagged = exists().where(Answer.comparison_id == Comparison.id, Answer.kind == "flag", is_live(), ~kept)
    return ~flagged.correlate(Comparison)


def label_count() -> ColumnElement[int]:
    """How many labels the comparison has."""
    return (
        select(func.count())
        .select_from(Answer)
        .where(Answer.comparison_id == Comparison.id, Answer.kind == "label", is_live())
        .correlate(Comparison)
        .scalar_subquery()
    )


def of_task(task: str | None) -> ColumnElement[bool]:
    """The comparison names the question `task`; any comparison for None."""
    return true() if task is None else Comparison.task == task


NO_TASK = ""
"""Where a task is asked for: only comparisons that name none. No comparison's own task is empty."""


def asks(task: str | None) -> ColumnElement[bool]:
    """The comparison names the question `task` or none, so that a page of this task shows it; any for None.

    With `NO_TASK`, only those that name none.
    """
    return true() if task is None else or_(Comparison.task == task, Comparison.task.is_(None))


def held_by(labeller: str, now: datetime, task: str | None = None) -> Select[Comparison, Lease]:
    """What `labeller` has in hand (that `asks` for `task`).

    The last lease comes first: an answer taken back before the work that this interrupted.
    """
    unanswered = ~_answered_by(labeller)
    return (
        select(Comparison, Lease)
        .join(Lease, Lease.comparison_id == Comparison.id)
        .where(Lease.labeller == labeller, Lease.expires_at > now, unanswered, in_pool(), asks(task))
        .order_by(Lease.id.desc())
        .limit(1)
    )


def open_for(labeller: str, now: datetime, task: str | None = None) -> Select[Comparison]:
    """What can be handed to `labeller` (that `asks` for `task`), in order of arrival.

    It lacks labels even if all who have it in hand answer, and `labeller` has not answered it.
    """
    return (
        select(Comparison)
        .join(OpenComparison, OpenComparison.comparison_id == Comparison.id)
        .where(asks(task), label_count() + _lease_count(now) < Comparison.repeats, ~_answered_by(labeller))
        .order_by(OpenComparison.position)
    )


def left_for(labeller: str, task: str | None = None) -> Select[int]:
    """Position of each comparison (that `asks` for `task`) which lacks labels and has none of `labeller`.

    What others have in hand counts in: they may not answer it.
    """
    return (
        select(OpenComparison.position)
        .join(Comparison, Comparison.id == OpenComparison.comparison_id)
        .where(asks(task), ~_answered_by(labeller))
    )


def lacking_labels() -> Select[str, int]:
    """Id and position of what belongs into `OpenComparison`: in the pool, with fewer labels than `repeats`."""
    return select(Comparison.id, Comparison.position).where(label_count() < Comparison.repeats, in_pool())


def last_answer(labeller: str, task: str | None = None) -> Select[Answer]:
    """What the labeller said last (on what `asks` for `task`), by time: an import may bring older answers later."""
    query = select(Answer).join(Comparison).where(Answer.labeller == labeller, is_live(), asks(task))
    return query.order_by(Answer.created_at.desc(), Answer.id.desc()).limit(1)


def retracted_labels(labeller: str, comparison_id: str) -> Select[int | None]:
    """Labels that `labeller` has taken back, the last one first (None for a skip or a flag)."""
    query = select(Answer.label).join(Retraction, Retraction.answer_id == Answer.id)
    own = query.where(Answer.comparison_id == comparison_id, Answer.labeller == labeller)
    return own.order_by(Retraction.created_at.desc(), Answer.id.desc())


def undecided_flags() -> Select[Answer]:
    """Flags that stand and wait for a decision."""
    decided = exists().where(Decision.answer_id == Answer.id)
    return select(Answer).where(Answer.kind == "flag", is_live(), ~decided).order_by(Answer.id)


def standing_stops() -> Select[StopRequest]:
    """Requests to stop that are not cleared, oldest first."""
    cleared = exists().where(StopClearance.request_id == StopRequest.id)
    return select(StopRequest).where(~cleared).order_by(StopRequest.id)


def valid_tokens() -> Select[Token]:
    """The last token of each labeller."""
    newest = select(func.max(Token.id)).group_by(Token.labeller)
    return select(Token).where(Token.id.in_(newest))


def valid_token_ids() -> Select[str, int]:
    """Labeller and id of the last token of each labeller."""
    return select(Token.labeller, func.max(Token.id)).group_by(Token.labeller)


def _answered_by(labeller: str) -> ColumnElement[bool]:
    answered = exists().where(Answer.comparison_id == Comparison.id, Answer.labeller == labeller, is_live())
    return answered.correlate(Comparison)


def _lease_count(now: datetime) -> ColumnElement[int]:
    """How many labellers have the comparison in hand and have not answered it."""
    by_holder = aliased(Answer)
    answered = exists().where(
        and_(by_holder.comparison_id == Lease.comparison_id, by_holder.labeller == Lease.labeller, is_live(by_holder))
    )
    return (
        select(func.count(Lease.labeller.distinct()))
        .where(Lease.comparison_id == Comparison.id, Lease.expires_at > now, ~answered.correlate(Lease))
        .correlate(Comparison)
        .scalar_subquery()
    )
