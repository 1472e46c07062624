"""Tables of the label store. Records are only added: a change of mind is another row, and triggers refuse the rest.

The one table without that protection, `open_comparisons`, records nothing: it is an index that the others determine.
"""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DDL,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    String,
    Table,
    Text,
    event,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION = 1
"""Raised whenever a table changes; a store of another version is refused on opening."""


class Json(TypeDecorator[Any]):
    """Any JSON value as ASCII text, the same on every database: PostgreSQL's own types have no NUL character."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC. SQLite stores no time zone: there it is dropped on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """Rows are dataclasses; those that the store returns are detached, so changing one changes nothing."""

    type_annotation_map = {datetime: UtcTime, Any: Json, str: String}  # noqa: RUF012  (SQLAlchemy's own attribute)


class StoreVersion(Base):
    """One row: the version of the tables."""

    __tablename__ = "label_store"

    version: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]


class Comparison(Base):
    """A prompt and K completions to choose from, in their original order.

    `id` is the hash of what is compared (`comparison_id`), `position` the place in the order of arrival. `prompt` and
    the K `completions` are text or chat messages. `source` and `step` name the policy that wrote them, `task` the
    question asked. `seed` fixes the display order, `repeats` is how many labellers must answer, `extra` holds the
    other columns.
    """

    __tablename__ = "comparisons"

    id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(unique=True)
    prompt: Mapped[Any]
    completions: Mapped[Any]
    source: Mapped[str | None] = mapped_column(Json)
    step: Mapped[int | None]
    task: Mapped[str | None] = mapped_column(Json)
    seed: Mapped[int]
    repeats: Mapped[int]
    extra: Mapped[Any]
    created_at: Mapped[datetime]


class Labeller(Base):
    """Somebody who answers."""

    __tablename__ = "labellers"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime]


class Token(Base):
    """SHA-256 of an access token; a labeller's last one is valid."""

    __tablename__ = "tokens"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    labeller: Mapped[str] = mapped_column(ForeignKey(Labeller.name), index=True)
    digest: Mapped[str]
    created_at: Mapped[datetime]


class Lease(Base):
    """A comparison is in a labeller's hands until `expires_at`, or until the labeller answers it."""

    __tablename__ = "leases"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    comparison_id: Mapped[str] = mapped_column(ForeignKey(Comparison.id))
    labeller: Mapped[str] = mapped_column(ForeignKey(Labeller.name))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    __table_args__ = (
        Index("leases_of_comparison", "comparison_id", "expires_at"),
        Index("leases_of_labeller", "labeller", "expires_at"),
    )


class Answer(Base):
    """What a labeller said.

    `kind` is "label", with `label`, an original index in 0..K-1, or "skip" or "flag", with a `reason`.
    `seconds` is the time from display to answer, None where it was not measured (imported labels).
    """

    __tablename__ = "answers"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    comparison_id: Mapped[str] = mapped_column(ForeignKey(Comparison.id))
    labeller: Mapped[str] = mapped_column(ForeignKey(Labeller.name), index=True)
    kind: Mapped[str]
    label: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(Json)
    seconds: Mapped[float | None]
    created_at: Mapped[datetime]
    __table_args__ = (Index("answers_of_comparison", "comparison_id", "labeller"),)


class Retraction(Base):
    """An answer taken back by its labeller."""

    __tablename__ = "retractions"

    answer_id: Mapped[int] = mapped_column(ForeignKey(Answer.id), primary_key=True)
    created_at: Mapped[datetime]


class Decision(Base):
    """A researcher's word on a flag: `keep` puts the comparison back into the pool. A flag's last decision counts."""

    __tablename__ = "decisions"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    answer_id: Mapped[int] = mapped_column(ForeignKey(Answer.id), index=True)
    keep: Mapped[bool]
    author: Mapped[str] = mapped_column(Json)
    reason: Mapped[str] = mapped_column(Json)
    created_at: Mapped[datetime]


class StopRequest(Base):
    """A labeller pulled the cord: something is wrong, training should stop."""

    __tablename__ = "stop_requests"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    labeller: Mapped[str] = mapped_column(ForeignKey(Labeller.name))
    reason: Mapped[str] = mapped_column(Json)
    created_at: Mapped[datetime]


class StopClearance(Base):
    """A researcher's word that the matter of one stop request is settled."""

    __tablename__ = "stop_clearances"

    request_id: Mapped[int] = mapped_column(ForeignKey(StopRequest.id), primary_key=True)
    author: Mapped[str] = mapped_column(Json)
    reason: Mapped[str] = mapped_column(Json)
    created_at: Mapped[datetime]


class OpenComparison(Base):
    """Index of what still lacks labels, so that finding work takes the same time however much is done already."""

    __tablename__ = "open_comparisons"

    comparison_id: Mapped[str] = mapped_column(ForeignKey(Comparison.id), primary_key=True)
    position: Mapped[int] = mapped_column(unique=True)


REFUSAL = "rows of the label store are only added, never changed or deleted"


def _forbid_changes(table: Table) -> None:
    """Let the database itself refuse to change or delete rows of `table`, whoever asks."""
    for act in ("UPDATE", "DELETE"):
        trigger = (
            f"CREATE TRIGGER {table.name}_no_{act.lower()} BEFORE {act} ON {table.name} "
            f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
        )
        event.listen(table, "after_create", DDL(trigger).execute_if(dialect="sqlite"))
    trigger = (
        f"CREATE TRIGGER only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON {table.name} "
        "FOR EACH STATEMENT EXECUTE FUNCTION label_store_refuses()"
    )
    event.listen(table, "after_create", DDL(trigger).execute_if(dialect="postgresql"))


_refuses = DDL(
    "CREATE FUNCTION label_store_refuses() RETURNS trigger LANGUAGE plpgsql AS "
    f"'BEGIN RAISE EXCEPTION ''{REFUSAL}''; END'"
)
event.listen(Base.metadata, "before_create", _refuses.execute_if(dialect="postgresql"))
for _name, _table in Base.metadata.tables.items():
    if _name != OpenComparison.__tablename__:
        _forbid_changes(_table)
