"""What the pages and the JSON interface share: the store, the task, and the acts of a labeller."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, NoReturn, TypeVar

from flask import abort, current_app
from sqlalchemy import func, select

from .. import queries, summaries
from ..schema import Answer, StopRequest
from ..steps import Assignment
from ..store import LabelStore
from .access import Throttle
from .instructions import Instructions
from .standing import Standing

REASON_LIMIT = 2000
"""Characters of a reason that a page or script may send."""

MOST_LEFT = 1000
"""Comparisons left for a labeller that a page counts."""

SESSION = timedelta(days=7)
"""How long a login lasts."""

EXTENSION = "trl_ziegler_label"

T = TypeVar("T")


class Cached(Generic[T]):
    """A value that is read anew once it is older than `seconds`; one thread reads while others wait for it."""

    def __init__(self, read: Callable[[], T], seconds: float):
        self._read = read
        self._seconds = seconds
        self._lock = threading.Lock()
        self._kept: tuple[T, float] | None = None

    def __call__(self) -> T:
        with self._lock:
            if self._kept is None or time.monotonic() > self._kept[1] + self._seconds:
                self._kept = (self._read(), time.monotonic())
            return self._kept[0]

    def forget(self) -> None:
        """Read anew the next time."""
        with self._lock:
            self._kept = None


@dataclass(frozen=True)
class Desk:
    """What one page serves: comparisons of `store` that name `task` or none; figures that take long are kept."""

    store: LabelStore
    task: str
    instructions: Instructions
    researcher_token: str
    throttle: Throttle
    standing: Cached[Standing]

    def give(
        self,
        labeller: str,
        comparison: Any,
        *,
        seconds: Any,
        place: Any = None,
        skip: Any = None,
        flag: Any = None,
    ) -> Answer:
        """Store one answer: the chosen `place` on the page (0..K-1), or the reason of a `skip` or a `flag`."""
        given = [name for name, value in {"place": place, "skip": skip, "flag": flag}.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"An answer is one of `place`, `skip` and `flag`, not {given}; give exactly one.")
        if isinstance(seconds, int | float) and seconds > SESSION.total_seconds():
            raise ValueError(f"seconds={seconds} is longer than a login lasts, 7 days; give those since the display.")
        if place is not None:
            return self.store.answer_shown(labeller, comparison, place=place, seconds=seconds)
        act = self.store.skip if flag is None else self.store.flag
        return act(labeller, comparison, within_limit(skip if flag is None else flag), seconds=seconds)

    def stop(self, labeller: str, reason: Any) -> StopRequest:
        """Pull the cord."""
        return self.store.request_stop(labeller, within_limit(reason))

    def progress(self, labeller: str) -> summaries.Progress:
        """What the labeller has done, with the speed of the last answers."""
        with self.store.reading() as session:
            return summaries.progress_of(session, labeller)

    def left(self, labeller: str) -> str:
        """How many comparisons are left for the labeller; beyond `MOST_LEFT` they are not counted, page by page."""
        with self.store.reading() as session:
            some = queries.left_for(labeller, self.task).limit(MOST_LEFT + 1).subquery()
            number = session.scalar(select(func.count()).select_from(some)) or 0
        return f"over {MOST_LEFT}" if number > MOST_LEFT else str(number)

    def former_place(self, work: Assignment) -> int | None:
        """Where the choice is shown that the labeller has taken back; None if there is none."""
        with self.store.reading() as session:
            label = session.scalar(queries.retracted_labels(work.labeller, work.comparison.id))
        return None if label is None else work.order.index(label)

    def remaining(self) -> int:
        """How many labels are wanted from all."""
        with self.store.reading() as session:
            return summaries.remaining(session, self.task)

    def stops(self) -> list[StopRequest]:
        """The requests to stop that stand, oldest first."""
        with self.store.reading() as session:
            return list(session.scalars(queries.standing_stops()))


def desk() -> Desk:
    """That of the application at hand."""
    return current_app.extensions[EXTENSION]


def within_limit(reason: Any) -> Any:
    """`reason`, unless it is too long a text; what else may be wrong with it the store says."""
    if isinstance(reason, str) and len(reason) > REASON_LIMIT:
        raise ValueError(f"The reason has {len(reason)} characters; say it in {REASON_LIMIT}.")
    return reason


@contextmanager
def refusals() -> Iterator[None]:
    """Answer with the store's own sentence (status 409) where the store refuses an act."""
    try:
        yield
    except ValueError as error:
        refuse(409, str(error))


def refuse(status: int, sentence: str) -> NoReturn:
    """End the request with an error that says why."""
    abort(status, description=sentence)


def messages(text: Any) -> list[tuple[str | None, str]]:
    """Role and text of each message of a chat, without spaces at the ends; plain text is one message without a role.

    What is no text (parts of a multimodal message, calls of tools) is shown as JSON.
    """
    if isinstance(text, str):
        return [(None, text.strip())]
    return [(message["role"], _content(message).strip()) for message in text]


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str) and "tool_calls" not in message:
        return content
    rest = {key: value for key, value in message.items() if key != "role"}
    return json.dumps(rest, ensure_ascii=False, indent=2)
