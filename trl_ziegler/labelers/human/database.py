"""Opening SQLite or PostgreSQL so that a committed answer survives a crash and two writers cannot mix.

SQLite: write-ahead log, `synchronous=FULL` (a commit is on the disk before it returns), and BEGIN IMMEDIATE, so that
a writer sees what the one before it wrote. PostgreSQL: READ COMMITTED, row locks, and `synchronous_commit` on.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from .schema import SCHEMA_VERSION, Base, StoreVersion

WAIT_SECONDS = 30
"""How long a writer waits for another one before it gives up."""

LOCK_KEY = 190908593
"""Number of PostgreSQL's advisory lock for what only one session may do at a time: creating tables, importing."""


def open_engine(location: str | os.PathLike, clock: Callable[[], datetime], *, create: bool) -> Engine:
    """Connect, make the tables where there are none (with `create`), and check their version.

    Args:
        location: a file for SQLite, or the URL of a PostgreSQL database.
        clock: gives the time of creation.
        create: whether a store that is not there is made or refused.

    Raises:
        ValueError: a location that is neither, a file that is no SQLite database, or a store of another version.
        ConnectionError: the database cannot be reached.
    """
    url = _url(location)
    if not create and url.get_backend_name() == "sqlite" and not os.path.exists(str(url.database)):
        raise _missing(str(url))  # connecting would make the file
    engine = _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    try:
        with engine.begin() as connection:
            lock_exclusively(connection)
            _prepare_tables(connection, clock(), str(engine.url), create)  # str() hides the password
    except OperationalError as error:
        engine.dispose()
        first_line = str(error.orig).strip().splitlines()[0]
        raise ConnectionError(
            f"The label store {engine.url} cannot be reached ({first_line}); start its server or correct the location."
        ) from error
    except DatabaseError as error:
        engine.dispose()
        raise ValueError(f"{engine.url} is no label store ({error.orig}); give the path of another file.") from error
    except ValueError:
        engine.dispose()
        raise
    return engine


def reader_of(engine: Engine) -> Engine:
    """The same connections, for transactions that only read: several queries see one state, and wait for no writer."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(label_store_reads=True)
    return engine.execution_options(isolation_level="REPEATABLE READ")


def lock_exclusively(connection: Connection) -> None:
    """Until the end of the transaction, wait for and keep out others who ask for the same."""
    if connection.dialect.name == "postgresql":  # on SQLite every writer is alone already
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")


def _url(location: str | os.PathLike) -> URL:
    if isinstance(location, str) and "://" in location:
        return _checked_url(location)
    if str(location) == ":memory:":
        raise ValueError("A label store in memory would vanish with its process; give the path of a file.")
    path = Path(location).absolute()
    if not path.parent.is_dir():
        raise ValueError(f"The label store {path} has no folder to lie in; make {path.parent} or correct the path.")
    if path.is_dir():
        raise ValueError(f"The label store {path} is a folder; give the path of a file in it.")
    return URL.create("sqlite", database=str(path))


def _checked_url(location: str) -> URL:
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise ValueError(
            f"The label store's location is not a URL ({error}); give a path or postgresql://..."
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError(f"The label store {url} would vanish with its process; give the path of a file.")
    if backend == "sqlite":
        return url.set(drivername="sqlite")
    if backend not in ("postgresql", "postgres"):
        raise ValueError(f"The label store {url} is on {backend}; give the path of an SQLite file or postgresql://...")
    return url.set(drivername="postgresql+psycopg")


def _sqlite(url: URL) -> Engine:
    # `isolation_level=None` leaves BEGIN to the listener below instead of to the driver.
    engine = create_engine(url, connect_args={"timeout": WAIT_SECONDS, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        _switch_to_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("label_store_reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _switch_to_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Once in the life of a file. SQLite's own waiting does not cover it: several who open a fresh file collide."""
    give_up = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _postgresql(url: URL) -> Engine:
    try:
        engine = create_engine(url, isolation_level="READ COMMITTED")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A label store on PostgreSQL needs psycopg; install it with `pip install 'psycopg[binary]'`."
        ) from error

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        connection.execute("SET synchronous_commit TO on")
        connection.commit()

    return engine


def _missing(where: str) -> ValueError:
    return ValueError(
        f"There is no label store at {where}; correct the location, or make one by adding comparisons or labellers "
        "(`--import`, `--add_labeller`)."
    )


def _prepare_tables(connection: Connection, now: datetime, where: str, create: bool) -> None:
    names = set(inspect(connection).get_table_names())
    if StoreVersion.__tablename__ in names:
        _check_version(connection, where)
        return
    taken = sorted(names.intersection(Base.metadata.tables))
    if taken:
        raise ValueError(f"{where} holds tables of somebody else ({', '.join(taken)}); give a database of its own.")
    if not create:
        raise _missing(where)
    Base.metadata.create_all(connection)
    connection.execute(insert(StoreVersion), [{"version": SCHEMA_VERSION, "created_at": now}])


def _check_version(connection: Connection, where: str) -> None:
    version = connection.scalar(select(StoreVersion.version))
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{where} is a label store of version {version}, this release reads version {SCHEMA_VERSION}; export it "
            "as JSON lines with the release that wrote it and import them into another store."
        )
