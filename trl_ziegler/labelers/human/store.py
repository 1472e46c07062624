"""The label store: comparisons go in, labellers take them under a lease and answer, labels come out."""

import hashlib
import hmac
import os
import secrets
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import queries, summaries
from .content import (
    check_count,
    check_index,
    check_name,
    check_seconds,
    check_words,
    comparison_values,
    display_order,
)
from .database import lock_exclusively, open_engine, reader_of
from .schema import (
    Answer,
    Comparison,
    Decision,
    Labeller,
    Lease,
    Retraction,
    StopClearance,
    StopRequest,
    Token,
)
from .steps import (
    Added,
    Assignment,
    NothingToRetract,
    assignment,
    insert_comparisons,
    known_comparison,
    lock_labeller,
    lock_open,
    refresh_open,
    require_lease,
    unless_contradicted,
)

LEASE = timedelta(minutes=10)


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class LabelStore:
    """Comparisons and what people say about them, on SQLite or PostgreSQL, for any number of processes at once.

    Rows are only added. An undo is a retraction, a word on a flag is a decision, the end of a stop is a clearance.
    What a method has returned is on the disk. Every method is one transaction, safe to call from any thread.

    Args:
        location (`str` or `Path`): an SQLite file, made if it is not there, or a URL, `postgresql://user@host/database`
            (needs `psycopg`). SQLite's log does not work on network file systems; a team takes PostgreSQL.
        lease (`timedelta`, *optional*, defaults to 10 minutes): how long a comparison stays with a labeller who does
            not answer.
        clock (`Callable[[], datetime]`, *optional*): the time, with its zone; by default the machine's.
        create (`bool`, *optional*, defaults to `True`): make a store that is not there; otherwise it is refused.

    Raises:
        ValueError: a location that cannot be a store, a store of another schema version, or a clock without time zone.
        ConnectionError: a server that does not answer.

    Example:

    ```python
    >>> store = LabelStore("labels.db")
    >>> store.add([{"prompt": "She was in", "completions": [" a garden.", " Rome."]}], repeats=1).added
    1
    >>> token = store.add_labeller("ann")
    >>> work = store.take("ann")
    >>> answer = store.answer("ann", work.comparison.id, label=work.order[0], seconds=4.2)
    >>> store.take("ann") is None
    True
    ```
    """

    def __init__(
        self,
        location: str | os.PathLike,
        *,
        lease: timedelta = LEASE,
        clock: Callable[[], datetime] = utc_now,
        create: bool = True,
    ):
        if lease <= timedelta(0):
            raise ValueError(f"lease={lease} ends before it begins; give a positive time.")
        if clock().tzinfo is None:
            raise ValueError(f"clock={clock!r} tells a time without its zone; give one in UTC.")
        self.lease = lease
        self.clock = clock
        self._engine = open_engine(location, clock, create=create)
        self._reader = reader_of(self._engine)
        weakref.finalize(self, self._engine.dispose)  # a labeller's store has nobody who would close it

    def __enter__(self) -> "LabelStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[Session]:
        """A transaction, committed on leaving it without an error; for the modules of this folder.

        Args:
            alone: keep out other sessions that ask for the same (imports, which number the comparisons).
        """
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            if alone:
                lock_exclusively(session.connection())
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that sees one state of the store and writes nothing; for the modules of this folder."""
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    # ---- Comparisons ------------------------------------------------------------------------------------------------

    def add(self, records: Iterable[Mapping[str, Any]], *, repeats: int | None = None) -> Added:
        """Add comparisons, all or none; those that the store knows (by `comparison_id`) stay as they are.

        Args:
            records: `prompt` (text or chat messages) and `completions` (K >= 2); where known `source` and `step` (the
                policy that wrote them), `task` (the question), `seed` (of the display order, 0) and `repeats`. Other
                columns are kept and come back in exports.
            repeats: How many labellers must answer records without `repeats` of their own; by default 5 for 5 % of
                them, picked by their id, and 1 for the rest.

        Raises:
            ValueError: a wrong record, named by its place, field and value.
        """
        values = [comparison_values(record, f"Record {i}", repeats) for i, record in enumerate(records)]
        with self.writing(alone=True) as session:
            return insert_comparisons(session, values, self.clock())

    def comparison(self, comparison_id: str) -> Comparison:
        """The comparison of this id; `ValueError` if there is none."""
        with self.reading() as session:
            return known_comparison(session, comparison_id)

    def comparisons(self, *, task: str | None = None) -> list[Comparison]:
        """All comparisons (of `task`) in order of arrival."""
        query = select(Comparison).order_by(Comparison.position)
        with self.reading() as session:
            return list(session.scalars(query if task is None else query.where(Comparison.task == task)))

    # ---- Labellers --------------------------------------------------------------------------------------------------

    def add_labeller(self, labeller: str) -> str:
        """Add a labeller; return the access token, which cannot be read again: the store has its hash only."""
        check_name(labeller)
        with self.writing(alone=True) as session:
            if session.get(Labeller, labeller) is not None:
                raise ValueError(f"labeller={labeller!r} is there already; `replace_token` gives another token.")
            session.add(Labeller(name=labeller, created_at=self.clock()))
            session.flush()
            return self._issue_token(session, labeller)

    def replace_token(self, labeller: str) -> str:
        """Give a labeller another token; the former ones are refused from here on."""
        with self.writing() as session:
            lock_labeller(session, labeller)
            return self._issue_token(session, labeller)

    def authenticate(self, token: str) -> str | None:
        """The name of the labeller with this token, or None; takes the same time for every token."""
        digest = _digest(token)
        with self.reading() as session:
            tokens = session.scalars(queries.valid_tokens()).all()
        matches = [t.labeller for t in tokens if hmac.compare_digest(t.digest, digest)]
        return matches[0] if matches else None

    def _issue_token(self, session: Session, labeller: str) -> str:
        token = secrets.token_urlsafe()
        session.add(Token(labeller=labeller, digest=_digest(token), created_at=self.clock()))
        return token

    # ---- Work -------------------------------------------------------------------------------------------------------

    def take(self, labeller: str, *, task: str | None = None) -> Assignment | None:
        """Give `labeller` a comparison under a lease: the one in hand if there is one, else the first open one.

        Open is what is in the pool, lacks labels (those that others have in hand counted in), and has no answer of
        this labeller. With `task`, only comparisons of this task and such that name none; with an empty one only
        such that name none. None if nothing is open.
        """
        while True:
            with self.writing() as session:
                lock_labeller(session, labeller)
                now = self.clock()
                held = session.execute(queries.held_by(labeller, now, task)).first()
                if held is not None:
                    return assignment(*held)
                comparison = lock_open(session, labeller, now, task)
                if comparison is None:
                    return None
                # A rival may have leased it after our query looked and before our lock: look again under the lock.
                if session.scalars(queries.open_for(labeller, now).where(Comparison.id == comparison.id)).first():
                    return assignment(comparison, self._hand_out(session, comparison, labeller))

    def _hand_out(self, session: Session, comparison: Comparison, labeller: str) -> Lease:
        now = self.clock()
        lease = Lease(comparison_id=comparison.id, labeller=labeller, created_at=now, expires_at=now + self.lease)
        session.add(lease)
        return lease

    def answer(self, labeller: str, comparison_id: str, *, label: int, seconds: float) -> Answer:
        """Store that `label`, an original index in 0..K-1, is the best; see `answer_shown` for places on a page.

        An answer after the end of the lease counts too: work is not thrown away. Handing in the same answer again, as
        after a lost reply, returns the stored one.

        Args:
            labeller: Who; must have been given the comparison by `take`.
            comparison_id: What.
            label: The original index.
            seconds: From display to answer.

        Raises:
            ValueError: an unknown labeller or comparison, one that was never taken, a label outside 0..K-1, or an
                answer that contradicts the labeller's own.
        """
        return self._answer(labeller, comparison_id, "label", seconds, label=label)

    def answer_shown(self, labeller: str, comparison_id: str, *, place: int, seconds: float) -> Answer:
        """Store that the completion shown at `place` (0..K-1 in `display_order`) is the best; unshuffled on saving."""
        comparison = self.comparison(comparison_id)
        check_index(place, len(comparison.completions), "place")
        label = display_order(comparison, labeller)[place]
        return self._answer(labeller, comparison_id, "label", seconds, label=label)

    def skip(self, labeller: str, comparison_id: str, reason: str, *, seconds: float) -> Answer:
        """Store that `labeller` cannot say; the comparison goes to somebody else. Errors as in `answer`."""
        check_words(reason, "reason", "a skip")
        return self._answer(labeller, comparison_id, "skip", seconds, reason=reason)

    def flag(self, labeller: str, comparison_id: str, reason: str, *, seconds: float) -> Answer:
        """Store that the comparison is faulty; it leaves the pool until `decide`. Errors as in `answer`."""
        check_words(reason, "reason", "a flag")
        return self._answer(labeller, comparison_id, "flag", seconds, reason=reason)

    def _answer(
        self,
        labeller: str,
        comparison_id: str,
        kind: str,
        seconds: float,
        *,
        label: int | None = None,
        reason: str | None = None,
    ) -> Answer:
        check_seconds(seconds)
        with self.writing() as session:
            lock_labeller(session, labeller)
            comparison = known_comparison(session, comparison_id, lock=True)
            if kind == "label":
                check_index(label, len(comparison.completions), "label")
            former = session.scalars(queries.live_answer(labeller, comparison_id)).first()
            if former is not None:
                return unless_contradicted(former, kind, label)
            require_lease(session, labeller, comparison_id)
            answer = Answer(
                comparison_id=comparison_id,
                labeller=labeller,
                kind=kind,
                label=label,
                reason=reason,
                seconds=float(seconds),
                created_at=self.clock(),
            )
            session.add(answer)
            refresh_open(session, [comparison_id])
        return answer

    def retract(self, labeller: str, *, task: str | None = None) -> Assignment:
        """Undo: take back the labeller's own last answer and give the comparison back to them under another lease.

        With `task`, the last one on what `take` gives for it: undo on one page leaves the answers of others alone.

        Raises:
            ValueError: no answer is left to take back, or a researcher has decided on it.
        """
        with self.writing() as session:
            lock_labeller(session, labeller)
            answer = session.scalars(queries.last_answer(labeller, task)).first()
            if answer is None:
                raise NothingToRetract(f"labeller={labeller!r} has no answer to take back.")
            comparison = known_comparison(session, answer.comparison_id, lock=True)
            if session.scalars(select(Decision).where(Decision.answer_id == answer.id)).first() is not None:
                raise ValueError(
                    f"Flag {answer.id} has been decided on; ask the researcher instead of taking it back."
                )
            session.add(Retraction(answer_id=answer.id, created_at=self.clock()))
            refresh_open(session, [comparison.id])
            return assignment(comparison, self._hand_out(session, comparison, labeller))

    # ---- What researchers decide ------------------------------------------------------------------------------------

    def flags(self) -> list[Answer]:
        """The flags that wait for a decision, oldest first."""
        with self.reading() as session:
            return list(session.scalars(queries.undecided_flags()))

    def decide(self, flag_id: int, *, keep: bool, author: str, reason: str) -> Decision:
        """Put a flagged comparison back into the pool (`keep`) or leave it out for good; the last decision counts."""
        check_words(author, "author", "a decision")
        check_words(reason, "reason", "a decision")
        check_count(flag_id, "flag_id", "A decision", least=1)
        if not isinstance(keep, bool):
            raise ValueError(f"keep={keep!r} decides nothing; give True or False.")
        with self.writing() as session:
            flag = session.get(Answer, flag_id)
            if flag is None or flag.kind != "flag" or session.get(Retraction, flag_id) is not None:
                raise ValueError(f"flag_id={flag_id!r} is no flag that stands; take the `id` of one from `flags()`.")
            known_comparison(session, flag.comparison_id, lock=True)
            decision = Decision(answer_id=flag_id, keep=keep, author=author, reason=reason, created_at=self.clock())
            session.add(decision)
            refresh_open(session, [flag.comparison_id])
        return decision

    def request_stop(self, labeller: str, reason: str) -> StopRequest:
        """Pull the cord: something is wrong, and training runs that poll `stop_requested` should stop."""
        check_words(reason, "reason", "a request to stop")
        with self.writing() as session:
            lock_labeller(session, labeller)
            request = StopRequest(labeller=labeller, reason=reason, created_at=self.clock())
            session.add(request)
        return request

    def stop_requested(self) -> StopRequest | None:
        """The oldest request to stop that has not been cleared, or None."""
        with self.reading() as session:
            return session.scalars(queries.standing_stops()).first()

    def clear_stop(self, request_id: int, *, author: str, reason: str) -> StopClearance:
        """Settle one request to stop; others stand until they are cleared too."""
        check_words(author, "author", "a clearance")
        check_words(reason, "reason", "a clearance")
        check_count(request_id, "request_id", "A clearance", least=1)
        with self.writing(alone=True) as session:
            if session.scalars(queries.standing_stops().where(StopRequest.id == request_id)).first() is None:
                raise ValueError(f"request_id={request_id!r} is no standing request; take it from `stop_requested()`.")
            clearance = StopClearance(request_id=request_id, author=author, reason=reason, created_at=self.clock())
            session.add(clearance)
        return clearance

    # ---- What comes out ---------------------------------------------------------------------------------------------

    def majority(self, *, task: str | None = None) -> dict[str, int]:
        """Label of each comparison in the pool that has one, by id in order of arrival.

        The label is what most unretracted answers say; among equals the one that was given first.
        """
        with self.reading() as session:
            return summaries.majority(session, task)

    def ratings(self, *, task: str | None = None) -> dict[str, list[Any]]:
        """Arguments of `Agreement().compute(**...)`: labels, labellers and K of each labelled comparison."""
        with self.reading() as session:
            return summaries.ratings(session, queries.of_task(task))

    def counts(self) -> summaries.Counts:
        """Where the store stands: comparisons, labels, and how many are still to be given."""
        with self.reading() as session:
            return summaries.counts(session)

    def progress(self) -> list[summaries.Progress]:
        """What each labeller has done, by name."""
        with self.reading() as session:
            return summaries.progress(session)


def _digest(token: str) -> str:
    """A plain hash is enough for 256 random bits: nobody can try them all."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
