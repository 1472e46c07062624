"""Opening a label store, and what happens when many use it at once or one of them is killed."""

import importlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from label_records import answer_all, records
from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from trl_ziegler.labelers.human import Answer, Comparison, LabelStore, queries
from trl_ziegler.labelers.human import store as store_module
from trl_ziegler.labelers.human.database import _switch_to_write_ahead_log
from trl_ziegler.labelers.human.schema import SCHEMA_VERSION, Base, Lease, OpenComparison, StoreVersion
from trl_ziegler.labelers.human.store import utc_now

pytest_plugins = "label_fixtures"

SCRIPTS = Path(__file__).parent / "label_scripts.py"


@contextmanager
def script(name: str, location: str) -> Iterator[subprocess.Popen]:
    """A process of `label_scripts.py`, which neither outlives the test nor runs far ahead of its reader."""
    command = [sys.executable, str(SCRIPTS), name, location]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pipesize=4096)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class TestOpening:
    def test_again_finds_everything(self, location, clock):
        with LabelStore(location, clock=clock) as store:
            ids = store.add(records(2)).ids
            store.add_labeller("ann")
        with LabelStore(location, clock=clock) as store:
            assert [c.id for c in store.comparisons()] == ids
            assert store.take("ann").comparison.id == ids[0]

    def test_another_version_is_refused(self, location, monkeypatch):
        monkeypatch.setattr("trl_ziegler.labelers.human.database.SCHEMA_VERSION", SCHEMA_VERSION + 1)
        LabelStore(location).close()
        monkeypatch.undo()
        with pytest.raises(
            ValueError, match=r"is a label store of version 2, this release reads version 1; export it"
        ):
            LabelStore(location)

    def test_somebody_elses_tables_are_left_alone(self, store, location):
        with store._engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name != "answers":
                    connection.execute(text(f"DROP TABLE {table.name} {cascade(connection)}"))
        with pytest.raises(ValueError, match=r"holds tables of somebody else \(answers\); give a database of its own"):
            LabelStore(location)

    def test_commits_are_durable(self, store):
        with store._engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                values = [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")]
                assert (values, connection.scalar(text("PRAGMA foreign_keys"))) == (["wal", 2], 1)
            else:
                assert connection.scalar(text("SHOW synchronous_commit")) == "on"

    def test_the_switch_to_the_write_ahead_log_is_tried_again_while_others_open_the_file(self):
        attempts = []

        def execute(statement):
            attempts.append(statement)
            error = sqlite3.OperationalError("database is locked" if len(attempts) < 3 else "disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY if len(attempts) < 3 else sqlite3.SQLITE_IOERR
            raise error

        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            _switch_to_write_ahead_log(SimpleNamespace(execute=execute))
        assert attempts == ["PRAGMA journal_mode=WAL"] * 3

    @pytest.mark.parametrize(
        ("location", "error", "message"),
        [
            ("nowhere/labels.db", ValueError, "has no folder to lie in; make .*nowhere or correct the path"),
            (":memory:", ValueError, "would vanish with its process; give the path of a file"),
            ("sqlite://", ValueError, "would vanish with its process; give the path of a file"),
            ("mysql://host/db", ValueError, "is on mysql; give the path of an SQLite file or postgresql://"),
            ("://", ValueError, "location is not a URL"),
            ("folder", ValueError, "The label store .*folder is a folder; give the path of a file in it"),
            (
                "text.txt",
                ValueError,
                r"text.txt is no label store \(file is not a database\); give the path of another",
            ),
            ("postgresql://me:geheim@127.0.0.1:1/labels", ConnectionError, "cannot be reached .*start its server"),
        ],
    )
    def test_a_wrong_location_is_named(self, tmp_path, monkeypatch, location, error, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        (tmp_path / "text.txt").write_text("these are not labels" * 100)
        with pytest.raises(error, match=message) as caught:
            LabelStore(location)
        assert "geheim" not in str(caught.value)

    def test_is_made_only_where_that_is_wanted(self, location, tmp_path):
        with pytest.raises(ValueError, match=r"There is no label store at .*; correct the location, or make one"):
            LabelStore(location, create=False)
        assert list(tmp_path.iterdir()) == []
        LabelStore(location).close()
        LabelStore(location, create=False).close()

    def test_without_psycopg_postgresql_is_refused_in_one_sentence(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(
            ModuleNotFoundError, match=r"needs psycopg; install it with `pip install 'psycopg\[binary\]'"
        ):
            LabelStore("postgresql://127.0.0.1/labels")

    def test_without_sqlalchemy_the_import_is_refused_in_one_sentence(self, monkeypatch):
        for name in [name for name in sys.modules if name.startswith("trl_ziegler.labelers.human")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "sqlalchemy", None)
        with pytest.raises(
            ModuleNotFoundError, match=r"needs SQLAlchemy; install it with `pip install 'trl-ziegler\[l"
        ):
            importlib.import_module("trl_ziegler.labelers.human")

    @pytest.mark.slow
    def test_the_package_itself_does_without_sqlalchemy(self):
        code = "import sys, trl_ziegler, trl_ziegler.metrics.agreement; sys.exit('sqlalchemy' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0


def cascade(connection) -> str:
    return "CASCADE" if connection.dialect.name == "postgresql" else ""


class TestAppendOnly:
    @pytest.mark.parametrize("table", sorted(set(Base.metadata.tables) - {OpenComparison.__tablename__}))
    def test_the_database_refuses_to_change_or_delete_records(self, store, table):
        store.add(records(1))
        store.add_labeller("ann")
        work = store.take("ann")
        store.flag("ann", work.comparison.id, "so", seconds=1)
        store.decide(store.flags()[0].id, keep=True, author="r", reason="so")
        store.clear_stop(store.request_stop("ann", "so").id, author="r", reason="so")
        with store.writing() as session:
            flag = session.scalars(select(Answer)).one()
            session.execute(
                insert(Base.metadata.tables["retractions"]).values(answer_id=flag.id, created_at=flag.created_at)
            )
        rows = Base.metadata.tables[table]
        column = next(iter(rows.columns))
        for statement in (update(rows).values({column: column}), delete(rows)):
            with pytest.raises(DBAPIError, match="rows of the label store are only added"), store.writing() as session:
                session.execute(statement)
        with store.reading() as session:
            assert session.scalar(select(func.count()).select_from(rows)) == 1

    def test_an_answer_to_an_unknown_comparison_cannot_be_stored(self, store):
        store.add_labeller("ann")
        now = store.clock()
        with pytest.raises(DBAPIError, match=r"(?i)foreign key"), store.writing() as session:
            session.add(Lease(comparison_id="0" * 64, labeller="ann", created_at=now, expires_at=now))

    def test_a_transaction_that_fails_leaves_nothing(self, store):
        with pytest.raises(RuntimeError), store.writing() as session:
            session.add(StoreVersion(version=9, created_at=store.clock()))
            session.flush()
            raise RuntimeError
        with store.reading() as session:
            assert session.scalars(select(StoreVersion.version)).all() == [SCHEMA_VERSION]


class TestManyAtOnce:
    def test_ten_people_get_ten_different_comparisons_and_every_answer_counts(self, store):
        store.add(records(40), repeats=1)
        names = [f"labeller {i}" for i in range(10)]
        for name in names:
            store.add_labeller(name)
        barrier = threading.Barrier(10)

        def work(name):
            barrier.wait()
            first = store.take(name).comparison.id
            barrier.wait()
            return first, answer_all(store, name, label=1)

        with ThreadPoolExecutor(10) as pool:
            results = list(pool.map(work, names))
        assert len({first for first, _ in results}) == 10
        assert all(done[0] == first for first, done in results)
        assert sorted(i for _, done in results for i in done) == sorted(c.id for c in store.comparisons())
        assert (store.counts().labels, store.counts().remaining) == (40, 0)
        assert sum(entry.labels for entry in store.progress()) == 40

    def test_repetition_is_kept_to_what_was_asked_for(self, store):
        store.add(records(6), repeats=3)
        names = [f"labeller {i}" for i in range(6)]
        for name in names:
            store.add_labeller(name)
        with ThreadPoolExecutor(6) as pool:
            done = list(pool.map(lambda name: answer_all(store, name), names))
        counts = Counter(i for ids in done for i in ids)
        assert set(counts.values()) == {3} and all(len(set(ids)) == len(ids) for ids in done)

    def test_one_labeller_in_many_tabs_has_one_piece_of_work(self, store):
        store.add(records(8), repeats=1)
        store.add_labeller("ann")
        with ThreadPoolExecutor(8) as pool:
            works = list(pool.map(store.take, ["ann"] * 8))
        assert len({work.comparison.id for work in works}) == 1
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda w: store.answer("ann", w.comparison.id, label=0, seconds=1).id, works)
        assert len(set(answers)) == 1 and store.counts().labels == 1

    def test_imports_at_once_number_the_comparisons_without_gaps(self, store):
        with ThreadPoolExecutor(4) as pool:
            added = list(pool.map(lambda i: store.add(records(10 + i)).added, range(4)))
        assert sum(added) == 13
        assert [c.position for c in store.comparisons()] == list(range(13))

    @pytest.mark.slow
    def test_ten_processes_open_the_store_and_share_the_work(self, location):
        with script("share_work", location) as process:
            output, error = process.communicate(timeout=100)
            assert process.returncode == 0, error
        with LabelStore(location) as store:
            assert sorted(output.split()) == sorted(c.id for c in store.comparisons())
            assert (store.counts().labels, store.counts().comparisons) == (60, 60)


class TestRacesOnPostgresql:
    """SQLite has one writer at a time; on PostgreSQL what was looked up may change before its row is locked."""

    @pytest.fixture
    def store(self, postgresql, clock):
        with LabelStore(postgresql, clock=clock) as store:
            for name in ("ann", "bob"):
                store.add_labeller(name)
            yield store

    def test_work_taken_between_look_and_lock_is_not_given_out_again(self, store, monkeypatch):
        ids = store.add(records(2), repeats=1).ids
        lock_open, taken = store_module.lock_open, []

        def look_then_lose(session, labeller, now, task):
            if labeller == "bob" or taken:
                return lock_open(session, labeller, now, task)
            looked_up = session.scalars(queries.open_for(labeller, now)).first()
            taken.append(store.take("bob").comparison.id)
            return looked_up

        monkeypatch.setattr(store_module, "lock_open", look_then_lose)
        assert store.take("ann").comparison.id == ids[1] and taken == [ids[0]]

    def test_the_only_open_comparison_is_waited_for(self, store):
        (only,) = store.add(records(1), repeats=2).ids
        with ThreadPoolExecutor(1) as pool:
            with store.writing() as session:
                session.execute(select(Comparison).where(Comparison.id == only).with_for_update())
                future = pool.submit(store.take, "ann")
                time.sleep(0.2)
                assert not future.done()
            assert future.result(timeout=60).comparison.id == only

    def test_a_locked_comparison_is_passed_over(self, store):
        ids = store.add(records(2), repeats=2).ids
        with store.writing() as session:
            session.execute(select(Comparison).where(Comparison.id == ids[0]).with_for_update())
            assert store.take("ann").comparison.id == ids[1]


def test_the_index_of_open_work_follows_from_the_records(store, clock):
    """After every one of many random acts; and nobody gets what others fill up already."""
    rng = random.Random(0)
    names = ["ann", "bob", "cyd"]
    for name in names:
        store.add_labeller(name)
    for step in range(24):
        if step % 6 == 0:
            store.add(records(2, source=f"step {step}"), repeats=rng.choice([1, 2]))
        act_at_random(store, rng, rng.choice(names))
        clock.turn(seconds=1)
        with store.reading() as session:
            listed = session.scalars(select(OpenComparison.comparison_id)).all()
            lacking = [row.id for row in session.execute(queries.lacking_labels())]
        assert sorted(listed) == sorted(lacking)
    repeats = {c.id: c.repeats for c in store.comparisons()}
    labels = store.ratings()["predictions"]
    assert all(len(given) <= repeats[i] for i, given in zip(store.majority(), labels, strict=True))


def act_at_random(store, rng, name):
    work = store.take(name)
    act = rng.choice(["label", "label", "skip", "flag", "decide", "retract", "leave"])
    if act == "decide" and store.flags():
        store.decide(store.flags()[0].id, keep=rng.random() < 0.7, author="r", reason="so")
    elif act == "retract":
        with suppress(ValueError):  # nothing to take back, or decided on
            store.retract(name)
    elif work is not None and act == "label":
        store.answer(name, work.comparison.id, label=rng.randrange(4), seconds=1)
    elif work is not None and act in ("skip", "flag"):
        getattr(store, act)(name, work.comparison.id, "so", seconds=1)


@pytest.mark.slow
def test_a_killed_process_loses_no_acknowledged_answer(location):
    """SIGKILL in the middle of four threads' work: what was printed after `answer` returned is in the store."""
    acknowledged = []
    with script("answer_until_killed", location) as process:
        for line in process.stdout:
            acknowledged.append(line)
            if len(acknowledged) == 60:
                process.kill()
        assert process.wait(timeout=30) == -signal.SIGKILL
    whole = [line.split() for line in acknowledged if line.endswith("\n")]
    with LabelStore(location) as store:
        with store.reading() as session:
            stored = {str(a.id): (a.comparison_id, str(a.label)) for a in session.scalars(select(Answer))}
        assert 60 <= len(whole) < 400
        for answer_id, comparison, label in whole:
            assert stored[answer_id] == (comparison, label)
        store.add_labeller("after the crash")
        store.clock = lambda: utc_now() + timedelta(hours=1)
        answer_all(store, "after the crash")
        assert (store.counts().labels, store.counts().remaining) == (400, 0)


def test_a_store_that_nobody_closes_closes_its_connections(tmp_path):
    """Python 3.13 warns of a connection that is collected while it is open."""
    disposed = []
    store = LabelStore(tmp_path / "labels.db")
    event.listen(store._engine, "engine_disposed", disposed.append)
    del store
    assert len(disposed) == 1
