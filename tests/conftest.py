"""What the tests share: a clock that they turn, and a queue that goes by it."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import settings
from programs import Programs

import litejobs
from litejobs import NEW_YEAR, LiteJobs, Store, TurnedClock, to_micros

__all__ = ["NEW_YEAR", "TurnedClock", "add", "insert", "row_of", "rows_of", "write_by_hand"]

# Else each of the many programs that tests start would compile litejobs.py anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A machine that has other things to do is not a failure.
settings.register_profile("litejobs", deadline=None)
settings.load_profile("litejobs")


SYSTEMS = {"linux": sys.platform == "linux", "posix": os.name == "posix"}
"""The marks by which a test says that it needs one system, or any but Windows."""

# The ordeals need signals, limits and much else of POSIX.
collect_ignore = [] if SYSTEMS["posix"] else ["test_planted_bugs.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for system, is_here in SYSTEMS.items():
            if not is_here and item.get_closest_marker(system):
                item.add_marker(pytest.mark.skip(reason=f"needs {system}"))


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def jobs(tmp_path: Path, clock: TurnedClock) -> Iterator[LiteJobs]:
    """A queue in an empty file, without the fsyncs that only power loss would miss."""
    with LiteJobs(tmp_path / "jobs.db", durability="fast", clock=clock) as jobs:
        yield jobs


def write_by_hand(jobs: LiteJobs, sql: str, *bindings: object) -> None:
    """Does to the queue's file what somebody with the sqlite3 shell could do."""
    connection = apsw.Connection(str(jobs.store.file.path))
    try:
        connection.execute(sql, bindings)
    finally:
        connection.close()


def rows_of(store: Store) -> list[Any]:
    """The rows of jobs as they are in the file, by column, the newest first."""
    connection = store.file.connection()
    columns = connection.execute("SELECT name FROM pragma_table_info('litejobs_job')")
    row = namedtuple("row", [str(name) for (name,) in columns])  # type: ignore[misc]
    return [*map(row._make, connection.execute("SELECT * FROM litejobs_job ORDER BY id DESC"))]


def row_of(store: Store, id: int) -> Any:
    """The row of one job."""
    return next(row for row in rows_of(store) if row.id == id)


def insert(store: Store, name: str, payload: str = "{}", **columns: Any) -> int:
    """Enqueues a job of a definition that the program does not have; gives its id."""
    with store.file.transaction(enqueues=True) as tx:
        return litejobs.insert_unknown(tx, name, payload, columns)


def add(jobs: LiteJobs, **columns: Any) -> int:
    """A row with the given columns, whatever state it is in; counted as if it had got there by
    itself."""
    columns = {
        "name": "mail", "queue": "default", "priority": 0, "run_at": to_micros(NEW_YEAR),
        "enqueued_at": jobs.clock(), **columns,
    }  # fmt: skip
    with jobs.store.file.transaction() as tx:
        tx.connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 1)
        tx.execute(
            f"INSERT INTO litejobs_job ({', '.join(columns)})"
            f" VALUES ({', '.join(f':{column}' for column in columns)})",
            columns,
        )
        tx.connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        id: int = tx.connection.last_insert_rowid()
        return id


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    yield programs
    programs.close()
