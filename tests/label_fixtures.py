"""A label store on each database, and a clock to turn."""

import os
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy
from sqlalchemy import make_url, text

from trl_ziegler.labelers.human import LabelStore

POSTGRES = "TRL_ZIEGLER_TEST_POSTGRES"
"""Environment variable with the URL of a PostgreSQL database to test on; each test has a schema of its own there.

`postgresql://` alone is filled up from PGHOST and its like. With Debian's `postgresql` package installed,
`TRL_ZIEGLER_TEST_POSTGRES=postgresql:// pg_virtualenv python -m pytest` starts a server for the time of the tests.
"""


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self):
        self.now = datetime(2019, 9, 18, 12, 0, 0, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def postgresql():
    """The URL of an empty schema."""
    if POSTGRES not in os.environ:
        pytest.skip(f"{POSTGRES} names no PostgreSQL database")
    url = make_url(os.environ[POSTGRES]).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    schema = f"labels_{uuid.uuid4().hex}"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request, tmp_path) -> str:
    """Where a store may be, on each database."""
    return str(tmp_path / "labels.db") if request.param == "sqlite" else request.getfixturevalue("postgresql")


@pytest.fixture
def store(location, clock):
    with LabelStore(location, clock=clock) as store:
        yield store


@pytest.fixture
def second_store(tmp_path, clock):
    """Another, empty one."""
    with LabelStore(tmp_path / "second.db", clock=clock) as store:
        yield store
