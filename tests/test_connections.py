"""Enqueueing in the caller's own transaction: there if and only if the caller commits."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from chaos.disk import Disk, Touch, nobody
from chaos.older import older_file
from conftest import row_of
from programs import Programs, trouble

import litejobs
from litejobs import (
    BusyError,
    Definition,
    DuplicateError,
    FileError,
    LiteJobs,
    OptionError,
    OutcomeUnknownError,
    PayloadError,
    Unique,
)

Note = Definition[..., Any, Any]
PATIENT = 60.0
standard: Any = sqlite3.connect
"""With arguments that the types of older Pythons do not know."""
KINDS: dict[str, Callable[[Path], Any]] = {
    "apsw": lambda path: apsw.Connection(str(path)),
    "sqlite3": lambda path: sqlite3.connect(path, isolation_level=None),
}
"""Connections whose changes are there at once, without a transaction."""
if sys.version_info >= (3, 12):
    KINDS["sqlite3 with autocommit"] = lambda path: standard(path, autocommit=True)


def note(n: int = 0) -> int:
    return n


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def noting(path: Path) -> Iterator[Note]:
    """A definition whose queue has never opened its file in this process."""
    with LiteJobs(path, durability="fast") as jobs:
        yield jobs.define(note)


def home(noting: Note) -> LiteJobs:
    assert isinstance(noting.body.home, LiteJobs)
    return noting.body.home


@pytest.fixture(params=["apsw", "sqlite3"])
def connection(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    """An application's own connection, with a table of its own."""
    kind = apsw.Connection if request.param == "apsw" else sqlite3.connect
    made: Any = kind(str(path))
    made.execute("PRAGMA journal_mode = wal").fetchall()
    made.execute("CREATE TABLE customer (name TEXT)")
    end(made, "COMMIT")
    yield made
    made.close()


def begin(connection: Any) -> None:
    if not connection.in_transaction:
        connection.execute("BEGIN")


def end(connection: Any, how: str) -> None:
    if connection.in_transaction:
        connection.execute(how)


def counted(noting: Note, connection: Any) -> dict[str, dict[str, int]]:
    """The numbers of jobs, once the other library has let go of the file."""
    connection.close()
    return home(noting).stats()


def test_a_job_is_there_if_the_caller_commits(noting: Note, connection: Any) -> None:
    begin(connection)
    connection.execute("INSERT INTO customer VALUES ('Ada')")
    job = noting.using(connection=connection).enqueue(5)
    assert (job.id, job.state, job.payload) == (1, "pending", {"n": 5})
    end(connection, "COMMIT")
    assert counted(noting, connection) == {"default": {"pending": 1}}
    assert home(noting).drain() == 1
    assert job.refresh().result() == 5


def test_a_job_is_not_there_if_the_caller_rolls_back(noting: Note, connection: Any) -> None:
    begin(connection)
    noting.using(connection=connection).enqueue()
    end(connection, "ROLLBACK")
    assert counted(noting, connection) == {}


@pytest.mark.skipif(sqlite3.sqlite_version_info >= (3, 51, 3), reason="this one is sound")
def test_an_sqlite3_that_may_lose_commits_is_told_of_once(
    noting: Note, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connection = standard(path)
    for _ in range(2):
        noting.using(connection=connection).enqueue()
        connection.commit()
    connection.close()
    problem = f"SQLite {sqlite3.sqlite_version}"
    assert [problem in record.getMessage() for record in caplog.records] == [True]
    with home(noting) as jobs:
        assert [problem in finding.problem for finding in jobs.doctor()] == [True]
        jobs.repair()
        assert jobs.doctor() == []


@pytest.mark.posix
def test_a_job_is_not_there_if_the_callers_process_is_killed(path: Path) -> None:
    program = textwrap.dedent("""
        import os, signal, sqlite3, sys
        from litejobs import LiteJobs
        connection = sqlite3.connect(sys.argv[1])
        jobs = LiteJobs(sys.argv[1])
        definition = jobs.define(name="note")(lambda n: None)
        definition.using(connection=connection).enqueue(1)
        connection.commit()
        definition.using(connection=connection).enqueue(2)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=30)
    with LiteJobs(path) as jobs:
        assert [job.payload for job in jobs.find()] == [{"n": 1}]


def test_what_sqlite3_begins_by_itself_is_not_committed_by_us(noting: Note, path: Path) -> None:
    connection = sqlite3.connect(path)
    assert not connection.in_transaction
    noting.using(connection=connection).enqueue()
    assert connection.in_transaction, "as after any change in sqlite3's way"
    connection.rollback()
    connection.close()
    assert home(noting).count() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_transaction_of_the_callers_it_is_committed_at_once(
    noting: Note, path: Path, kind: str
) -> None:
    connection = KINDS[kind](path)
    noting.using(connection=connection).enqueue()
    assert not connection.in_transaction
    connection.close()
    assert home(noting).count() == 1


@pytest.mark.parametrize("choices", [{"delay": 60}, {"priority": 3}, {"key": "k"}])
def test_it_is_counted_and_looks_like_any_other(
    noting: Note, connection: Any, choices: Any
) -> None:
    theirs = noting.using(connection=connection, **choices).enqueue(1)
    end(connection, "COMMIT")
    connection.close()
    ours = noting.using(**choices).enqueue(1)
    # A second one of the same key waits for the first.
    states = {theirs.state} if "key" not in choices else {"pending", "blocked"}
    assert {theirs.state, ours.state} == states
    apart = ("id", "state", "enqueued_at", "run_at")
    rows = [row_of(home(noting).store, job.id) for job in (theirs, ours)]
    values = [{k: v for k, v in row._asdict().items() if k not in apart} for row in rows]
    assert values[0] == values[1]
    found = home(noting).find()
    by_state = {state: sum(job.state == state for job in found) for state in states}
    assert home(noting).stats() == {"default": by_state}


def test_unique_jobs_stay_unique(noting: Note, connection: Any) -> None:
    unique = noting.using(connection=connection, unique=Unique())
    first = unique.enqueue(1)
    again = unique.enqueue(1)
    assert (again.id, again.duplicate) == (first.id, True)
    strict = noting.using(connection=connection, unique=Unique(on_conflict="raise"))
    with pytest.raises(DuplicateError):
        strict.enqueue(1)
    connection.execute("INSERT INTO customer VALUES ('Ada')")  # the transaction goes on
    moved = noting.using(connection=connection, unique=Unique(on_conflict="replace"), delay=60)
    assert moved.enqueue(1).state == "scheduled"
    end(connection, "COMMIT")
    assert connection.execute("SELECT count(*) FROM customer").fetchone() == (1,)
    assert counted(noting, connection) == {"default": {"scheduled": 1}}


def test_many_at_once_are_all_or_none(noting: Note, connection: Any) -> None:
    jobs = home(noting)
    theirs = noting.using(connection=connection)
    many = jobs.enqueue_many(theirs.bind(n) for n in range(5))
    assert [job.id for job in many] == [1, 2, 3, 4, 5]
    strict = theirs.using(unique=Unique(on_conflict="raise"))
    with pytest.raises(DuplicateError):
        jobs.enqueue_many([theirs.bind(9), strict.bind(1), strict.bind(1)])
    end(connection, "COMMIT")
    assert counted(noting, connection) == {"default": {"pending": 5}}


def test_instances_of_a_class_go_the_same_way(noting: Note, connection: Any) -> None:
    job = home(noting).enqueue(noting.bind(3), connection=connection)
    end(connection, "COMMIT")
    connection.close()
    assert job.refresh().payload == {"n": 3}


def test_an_older_file_is_brought_up_to_date_in_the_same_transaction(
    noting: Note, path: Path
) -> None:
    older_file(path, "INSERT INTO litejobs_job (name, payload) VALUES ('note', '{\"n\": 1}')")
    connection = sqlite3.connect(path)
    noting.using(connection=connection).enqueue(2)
    connection.commit()
    connection.close()
    home(noting).drain()
    assert [job.state for job in home(noting).find()] == ["completed", "completed"]


def test_a_running_node_takes_it_soon_after_the_commit(
    tmp_path: Path, log: Path, programs: Programs
) -> None:
    path = tmp_path / "jobs.db"
    jobs = LiteJobs(path)
    jobs.register(trouble.nap_and_tell)
    connection = apsw.Connection(str(path))
    job = trouble.nap_and_tell.using(connection=connection).enqueue(str(log), 0)
    programs.node(path)
    assert job.wait(PATIENT).state == "completed"
    connection.close()
    jobs.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit yet")
@pytest.mark.parametrize("level", [None, "", "IMMEDIATE"])
def test_what_sqlite3_autocommits_is_there_whatever_the_isolation_level(
    noting: Note, path: Path, level: Any
) -> None:
    """With autocommit=True the level means nothing, but we began a transaction because of it:
    commit() did nothing there, close() rolled it back, and all others waited until then."""
    connection = standard(path, isolation_level=level, autocommit=True)
    noting.using(connection=connection).enqueue(1)
    assert not connection.in_transaction
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as other:
        other.execute("CREATE TABLE customer (name TEXT)")
    connection.execute("BEGIN")
    noting.using(connection=connection).enqueue(2)
    connection.execute("ROLLBACK")
    assert counted(noting, connection) == {"default": {"pending": 1}}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit yet")
@pytest.mark.parametrize("level", [None, ""])
def test_what_sqlite3_does_not_autocommit_is_there_if_the_caller_commits(
    noting: Note, path: Path, level: Any
) -> None:
    connection = standard(path, isolation_level=level, autocommit=False)
    noting.using(connection=connection).enqueue(1)
    connection.commit()
    noting.using(connection=connection).enqueue(2)
    connection.rollback()
    connection.execute("COMMIT")  # By hand, so that there is none until somebody begins one.
    noting.using(connection=connection).enqueue(3)
    connection.rollback()
    assert counted(noting, connection) == {"default": {"pending": 1}}


def enqueue_while_another_commits(noting: Note, connection: Any, other: Any) -> None:
    """The other one tries to just before this one looks for the defaults of the queue."""
    other.execute("PRAGMA busy_timeout = 0")
    tried: list[str] = []

    def commit_by_the_other(sql: str) -> bool:
        if "FROM litejobs_queue" in sql:
            tried.append(sql)
            with contextlib.suppress(apsw.BusyError, sqlite3.OperationalError):
                other.execute("CREATE TABLE customer (name TEXT)")
        return True  # It may go on.

    if isinstance(connection, apsw.Connection):
        connection.exec_trace = lambda cursor, sql, bindings: commit_by_the_other(sql)
    else:
        connection.set_trace_callback(commit_by_the_other)
    noting.using(connection=connection).enqueue()
    assert tried


@pytest.mark.parametrize("kind", KINDS)
def test_others_may_commit_while_it_is_enqueued_without_a_transaction(
    noting: Note, path: Path, kind: str
) -> None:
    """It read first, and wrote then: who committed in between made it fail at once, whatever
    the busy timeout."""
    noting.enqueue()
    home(noting).close()
    connection, other = KINDS[kind](path), KINDS[kind](path)
    enqueue_while_another_commits(noting, connection, other)
    assert not connection.in_transaction
    other.close()
    assert counted(noting, connection) == {"default": {"pending": 2}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_that_has_to_wait_for_too_long_is_no_unknown_outcome(
    noting: Note, path: Path, kind: str
) -> None:
    """In an application's file that is not in WAL mode, who reads keeps others from committing."""
    connection, reader = KINDS[kind](path), KINDS[kind](path)
    connection.execute("CREATE TABLE customer (name TEXT)")
    connection.execute("PRAGMA busy_timeout = 100")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM customer").fetchall()
    with pytest.raises(BusyError, match="as long as its own busy timeout allows"):
        noting.using(connection=connection).enqueue()
    reader.close()
    noting.using(connection=connection).enqueue()
    assert counted(noting, connection) == {"default": {"pending": 1}}


BEGUN: dict[str, Callable[[Path], Any]] = {
    "apsw": KINDS["apsw"],
    "sqlite3": sqlite3.connect,
}
"""Connections whose transactions are the application's to commit."""
if sys.version_info >= (3, 12):
    BEGUN["sqlite3 without autocommit"] = lambda path: standard(path, autocommit=False)


@pytest.mark.parametrize("kind", BEGUN)
def test_others_may_commit_while_it_is_enqueued_in_a_transaction_that_was_only_begun(
    noting: Note, path: Path, kind: str
) -> None:
    """As sqlite3 does by itself with autocommit=False. It read before it wrote as well."""
    noting.enqueue()
    home(noting).close()
    connection, other = BEGUN[kind](path), KINDS["apsw" if kind == "apsw" else "sqlite3"](path)
    begin(connection)
    enqueue_while_another_commits(noting, connection, other)
    end(connection, "COMMIT")
    other.close()
    assert counted(noting, connection) == {"default": {"pending": 2}}


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_transaction_of_the_callers_an_error_leaves_none_behind(
    noting: Note, path: Path, kind: str
) -> None:
    """Nor a lock that everybody else would wait for."""
    connection = KINDS[kind](path)
    strict = noting.using(connection=connection, unique=Unique(on_conflict="raise"))
    strict.enqueue(1)
    with pytest.raises(DuplicateError):
        home(noting).enqueue_many([noting.using(connection=connection).bind(2), strict.bind(1)])
    assert not connection.in_transaction
    assert counted(noting, connection) == {"default": {"pending": 1}}


# Rows as the application wants them


def as_dict(cursor: Any, row: Any) -> dict[str, Any]:
    """As the documentation of sqlite3 has it."""
    names = [column[0] for column in cursor.description]
    return dict(zip(names, row, strict=True))


class Dicts(apsw.Cursor):
    def __init__(self, connection: apsw.Connection) -> None:
        super().__init__(connection)
        self.row_trace = as_dict


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("sqlite3", "row_factory", as_dict),
        ("sqlite3", "row_factory", sqlite3.Row),
        ("sqlite3", "text_factory", bytes),
        ("apsw", "row_trace", as_dict),
        ("apsw", "cursor_factory", Dicts),
    ],
)
def test_rows_may_be_whatever_the_application_makes_of_them(
    noting: Note, path: Path, kind: str, setting: str, value: Any
) -> None:
    """They led to a KeyError, and texts as bytes to a RuntimeError."""
    connection = KINDS[kind](path)
    setattr(connection, setting, value)
    theirs = noting.using(connection=connection, unique=Unique(on_conflict="raise"), key="k")
    job = theirs.enqueue(1)
    assert (job.id, job.name, job.payload) == (1, "note", {"n": 1})
    assert getattr(connection, setting) is value
    with pytest.raises(DuplicateError):
        theirs.enqueue(1)
    assert getattr(connection, setting) is value
    assert counted(noting, connection) == {"default": {"pending": 1}}


# Two SQLite libraries, one file


def test_sqlite3_is_refused_while_our_sqlite_has_the_file_open(noting: Note, path: Path) -> None:
    home(noting).count()
    for name in (path, str(path).encode(), path.parent / "." / path.name, f"file:{path}?mode=ro"):
        with pytest.raises(FileError, match="has the file open in this process, and would lose"):
            sqlite3.connect(name, uri=True)
    home(noting).close()
    connection = sqlite3.connect(path)
    noting.using(connection=connection).enqueue()
    connection.commit()
    connection.close()
    assert home(noting).count() == 1


def test_our_sqlite_does_not_open_the_file_while_sqlite3_has_it(noting: Note, path: Path) -> None:
    connection = sqlite3.connect(path)
    job = noting.using(connection=connection).enqueue()
    connection.commit()
    for use in (job.refresh, home(noting).count, noting.enqueue):
        with pytest.raises(FileError, match="something else in this process has the file open"):
            use()
    connection.close()
    assert job.refresh().state == "pending"


def test_a_node_is_not_started_either(noting: Note, path: Path) -> None:
    connection = sqlite3.connect(path)
    noting.using(connection=connection).enqueue()
    connection.commit()
    with pytest.raises(FileError, match="something else in this process has the file open"):
        home(noting).drain()
    connection.close()


def test_so_is_whatever_else_would_close_the_file_and_drop_its_locks(
    noting: Note, path: Path
) -> None:
    noting.enqueue(1)
    for each in (path, path.with_name("app.db-shm")):
        with pytest.raises(FileError, match=r"close\(\) it first, .*backup\(\), or work elsewhere"):
            each.read_bytes()
    # On the WAL there are no locks, and these are other files.
    assert path.with_name("app.db-wal").read_bytes()
    path.with_name("other.db").write_bytes(b"")
    sqlite3.connect(":memory:").close()
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(path.parent)
    home(noting).close()
    assert path.read_bytes().startswith(b"SQLite")


def test_our_sqlite_does_not_open_a_file_that_this_process_has_open_otherwise(
    noting: Note, path: Path
) -> None:
    noting.enqueue(1)
    home(noting).close()
    connection = sqlite3.connect(path)
    with path.open("rb"):
        for _ in range(2):
            with pytest.raises(FileError, match="something else in this process has the file"):
                noting.enqueue(2)
            connection.close()
    theirs = apsw.Connection(str(path))
    assert noting.enqueue(3).id == 2, "what uses our SQLite has the same locks"
    theirs.close()


def test_a_connection_that_was_refused_keeps_nobody_from_the_file(
    noting: Note, tmp_path: Path
) -> None:
    home(noting).count()
    home(noting).close()
    other = sqlite3.connect(tmp_path / "other.db")
    with pytest.raises(OptionError, match=r"the jobs are in .*app.db"):
        noting.using(connection=other).enqueue()
    assert home(noting).count() == 0
    other.close()


def test_a_file_that_another_thread_is_just_opening_is_in_nobodys_way(
    noting: Note, path: Path
) -> None:
    noting.enqueue(1)
    notes = path.with_name("notes.txt")
    notes.touch()
    opening = litejobs.File(path.with_name("other.db"))
    opening._connection = apsw.Connection("")
    assert notes.write_text("another file") == 12
    opening._connection = None


# What is no connection to the file


def test_a_connection_that_was_closed_is_refused_in_words_of_ours(
    noting: Note, connection: Any
) -> None:
    connection.close()
    with pytest.raises(FileError, match=r"app.db: .*closed"):
        noting.using(connection=connection).enqueue()


def test_a_connection_to_another_file_is_refused(noting: Note, tmp_path: Path) -> None:
    home(noting).count()
    home(noting).close()
    for kind in (apsw.Connection, sqlite3.connect):
        for other in (":memory:", str(tmp_path / "other.db")):
            connection: Any = kind(other)
            with pytest.raises(
                OptionError, match=r"connection: is to .*, the jobs are in .*app.db"
            ):
                noting.using(connection=connection).enqueue()
            connection.close()


def test_what_is_no_connection_is_refused(noting: Note) -> None:
    with pytest.raises(OptionError, match=r"expected a connection of .* got a builtins\.str"):
        noting.using(connection="app.db").enqueue()


def test_a_payload_that_does_not_fit_leaves_the_transaction_alone(
    noting: Note, connection: Any
) -> None:
    begin(connection)
    connection.execute("INSERT INTO customer VALUES ('Ada')")
    with pytest.raises(PayloadError):
        noting.using(connection=connection).enqueue("five")
    end(connection, "COMMIT")
    assert connection.execute("SELECT count(*) FROM customer").fetchone() == (1,)


@pytest.mark.parametrize("kind", [*KINDS, "sqlite3 as it is"])
def test_a_lock_that_others_hold_is_told_as_ours(noting: Note, path: Path, kind: str) -> None:
    """It was said to have waited for 30 s, which only our own connection does."""
    home(noting).count()
    home(noting).close()
    connect = KINDS.get(kind, sqlite3.connect)
    connection, other = connect(path), KINDS["apsw" if kind == "apsw" else "sqlite3"](path)
    other.execute("BEGIN IMMEDIATE")
    connection.execute("PRAGMA busy_timeout = 50")
    with pytest.raises(BusyError, match=r"database is locked; .*its own busy timeout.*: who holds"):
        noting.using(connection=connection).enqueue()
    assert not connection.in_transaction
    other.execute("COMMIT")
    noting.using(connection=connection).enqueue()
    end(connection, "COMMIT")
    other.close()
    assert counted(noting, connection) == {"default": {"pending": 1}}


def test_a_transaction_that_others_have_overtaken_is_told_to_begin_anew(
    noting: Note, path: Path, connection: Any
) -> None:
    begin(connection)
    connection.execute("SELECT * FROM customer").fetchall()
    kind = "apsw" if isinstance(connection, apsw.Connection) else "sqlite3"
    with contextlib.closing(KINDS[kind](path)) as other:
        other.execute("INSERT INTO customer VALUES ('Ada')")
    with pytest.raises(BusyError, match=r"database is locked; others .*: roll it back and do it"):
        noting.using(connection=connection).enqueue()
    with pytest.raises((apsw.SQLError, sqlite3.OperationalError), match="no such savepoint"):
        connection.execute("RELEASE litejobs")  # It left nothing behind.
    end(connection, "ROLLBACK")
    noting.using(connection=connection).enqueue()
    end(connection, "COMMIT")
    assert counted(noting, connection) == {"default": {"pending": 1}}


def test_a_node_that_is_just_starting_here_and_sqlite3_keep_apart(noting: Note, path: Path) -> None:
    """Whoever comes second is refused, whatever the two threads do meanwhile."""
    for _ in range(6):
        connection = sqlite3.connect(path)
        with contextlib.suppress(FileError), home(noting).start(threads=1):
            with contextlib.suppress(OptionError):
                noting.using(connection=connection).enqueue()
            connection.rollback()
            connection.close()
        home(noting).close()


def test_a_node_in_this_process_is_not_started_beside_sqlite3(noting: Note, path: Path) -> None:
    connection = sqlite3.connect(path)
    noting.using(connection=connection).enqueue()
    connection.commit()
    with (
        pytest.raises(FileError, match="something else in this process has the file open"),
        home(noting).start(threads=1) as pool,
    ):
        pool.wait(PATIENT)
    connection.close()


@pytest.mark.parametrize("failure", ["half-way", "disk full"])
def test_where_there_is_no_transaction_a_commit_that_fails_is_told_as_ours(
    path: Path, noting: Note, failure: str
) -> None:
    def fail(touch: Touch) -> None:
        if failure == "half-way" and touch.kind == "sync":
            raise apsw.IOError("the sync failed")
        if failure == "disk full" and touch.kind == "write":
            raise apsw.FullError("no space left")

    with Disk() as disk:
        connection = apsw.Connection(str(path))
        noting.using(connection=connection).enqueue(1)
        connection.pragma("synchronous", "full")
        disk.watcher = fail
        reported = OutcomeUnknownError if failure == "half-way" else FileError
        with pytest.raises(FileError) as caught:
            noting.using(connection=connection).enqueue(2)
        assert type(caught.value) is reported
        disk.watcher = nobody
        assert not connection.in_transaction
        noting.using(connection=connection).enqueue(3)
        connection.close()
