"""What the tests share: a clock that they turn, and a queue that goes by it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest
from hypothesis import settings
from programs import Programs

from litejobs import NEW_YEAR, LiteJobs, TurnedClock

__all__ = ["NEW_YEAR", "TurnedClock", "write_by_hand"]

# Else each of the many programs that tests start would compile litejobs.py anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A machine that has other things to do is not a failure.
settings.register_profile("litejobs", deadline=None)
settings.load_profile("litejobs")


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


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    yield programs
    programs.close()
