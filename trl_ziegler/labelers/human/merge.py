"""Bringing answers given elsewhere into a store, so that doing it twice adds nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .queries import is_live
from .schema import Answer, Comparison, Decision, Labeller, Retraction
from .steps import chunks, refresh_open


@dataclass(frozen=True)
class PastDecision:
    """A `Decision` on a `PastAnswer`."""

    keep: bool
    author: str
    reason: str
    created_at: datetime


@dataclass(frozen=True)
class PastAnswer:
    """An `Answer` with what happened to it afterwards."""

    comparison_id: str
    labeller: str
    kind: str
    created_at: datetime
    label: int | None = None
    reason: str | None = None
    seconds: float | None = None
    retracted_at: datetime | None = None
    decisions: Sequence[PastDecision] = ()


def merge_answers(session: Session, past: Sequence[PastAnswer], now: datetime) -> int:
    """Add those of `past` that the store does not hold, with their retractions and decisions; return their number.

    An answer is known if it has the store's labeller, time and content, or if the labeller's standing answer says the
    same. Labellers the store does not know are added without a token. The session must be alone in importing.

    Raises:
        ValueError: a labeller whose standing answer in the store says something else.
    """
    _add_labellers(session, {answer.labeller for answer in past}, now)
    ids = list(dict.fromkeys(answer.comparison_id for answer in past))
    stored, standing = _lock_and_load(session, ids)
    before = len(stored)
    rows = [_row_of(answer, stored, standing) for answer in past]
    session.add_all(rows)
    session.flush()  # gives the rows their ids
    for row, answer in zip(rows, past, strict=True):
        _add_aftermath(session, row, answer)
    refresh_open(session, ids)
    return len(stored) - before


def _key(answer: PastAnswer | Answer) -> tuple[Any, ...]:
    return answer.comparison_id, answer.labeller, answer.kind, answer.label, answer.created_at


def _add_labellers(session: Session, names: set[str], now: datetime) -> None:
    known = set(session.scalars(select(Labeller.name).where(Labeller.name.in_(names))))
    session.add_all(Labeller(name=name, created_at=now) for name in sorted(names - known))
    session.flush()
    # In the order of `steps`: labellers, then comparisons.
    session.execute(select(Labeller.name).where(Labeller.name.in_(names)).order_by(Labeller.name).with_for_update())


def _lock_and_load(
    session: Session, ids: Iterable[str]
) -> tuple[dict[tuple[Any, ...], Answer], dict[tuple[str, str], Answer]]:
    """Answers of these comparisons by key, and the unretracted ones by comparison and labeller."""
    stored: dict[tuple[Any, ...], Answer] = {}
    standing: dict[tuple[str, str], Answer] = {}
    for chunk in chunks(ids):
        locked = select(Comparison.id).where(Comparison.id.in_(chunk)).order_by(Comparison.position)
        session.execute(locked.with_for_update())
        for answer, live in session.execute(select(Answer, is_live()).where(Answer.comparison_id.in_(chunk))):
            stored[_key(answer)] = answer
            if live:
                standing[answer.comparison_id, answer.labeller] = answer
    return stored, standing


def _row_of(
    answer: PastAnswer, stored: dict[tuple[Any, ...], Answer], standing: dict[tuple[str, str], Answer]
) -> Answer:
    """The store's row of a past answer, made and noted in `stored` and `standing` if there is none."""
    where = answer.comparison_id, answer.labeller
    row = stored.get(_key(answer))
    if row is None and answer.retracted_at is None:
        row = standing.get(where)
        _refuse_contradiction(answer, row)
    if row is None:
        row = stored[_key(answer)] = Answer(
            comparison_id=answer.comparison_id,
            labeller=answer.labeller,
            kind=answer.kind,
            label=answer.label,
            reason=answer.reason,
            seconds=answer.seconds,
            created_at=answer.created_at,
        )
        if answer.retracted_at is None:
            standing[where] = row
    elif answer.retracted_at is not None and standing.get(where) is row:
        del standing[where]
    return row


def _refuse_contradiction(answer: PastAnswer, row: Answer | None) -> None:
    if row is not None and (row.kind, row.label) != (answer.kind, answer.label):
        raise ValueError(
            f"labeller={answer.labeller!r} says {_said(answer)} on comparison {answer.comparison_id}, but "
            f"{_said(row)} in the store; retract one of the two."
        )


def _said(answer: PastAnswer | Answer) -> str:
    return answer.kind if answer.label is None else f"label {answer.label}"


def _add_aftermath(session: Session, row: Answer, answer: PastAnswer) -> None:
    """The retraction and the decisions of `answer`, as far as the store lacks them."""
    if answer.retracted_at is not None and session.get(Retraction, row.id) is None:
        session.add(Retraction(answer_id=row.id, created_at=answer.retracted_at))
    if answer.decisions:
        known = set(session.scalars(select(Decision.created_at).where(Decision.answer_id == row.id)))
        for word in answer.decisions:
            if word.created_at not in known:
                session.add(
                    Decision(
                        answer_id=row.id,
                        keep=word.keep,
                        author=word.author,
                        reason=word.reason,
                        created_at=word.created_at,
                    )
                )
