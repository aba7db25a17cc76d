"""The limits: SQLite by bare apsw, with the tables and settings of litejobs and nothing else."""

import array
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apsw

from litejobs import LiteJobs

INSERT = """
    INSERT INTO litejobs_job (
        queue, node, priority, max_attempts, timeout, backoff, retention,
        name, payload, state, run_at, enqueued_at
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@contextlib.contextmanager
def beside(durability: str = "fast") -> Iterator[apsw.Connection]:
    """Another file like that of the benchmark, next to it."""
    path = f"{os.environ['BENCH_DB']}-bare"
    with LiteJobs(path) as jobs:
        jobs.count()
    with connection(durability, path) as opened:
        yield opened


@contextlib.contextmanager
def connection(durability: str = "fast", path: str = "") -> Iterator[apsw.Connection]:
    """The file of the benchmark, in which litejobs has made its tables, with its settings."""
    opened = apsw.Connection(path or os.environ["BENCH_DB"])
    opened.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    opened.transaction_mode = "IMMEDIATE"
    opened.set_busy_timeout(30_000)
    opened.pragma("synchronous", "full" if durability == "full" else "normal")
    opened.pragma("temp_store", "memory")
    opened.pragma("wal_autocheckpoint", 1000)
    try:
        yield opened
    finally:
        opened.close()


def row(number: int, payload: str | None = None) -> tuple[Any, ...]:
    """What litejobs stores for `noop.enqueue(number)`."""
    now = time.time_ns() // 1000
    text = payload or f'{{"n":{number}}}'
    return ("default", "", 0, 5, None, None, None, "noop", text, "pending", now, now)


def insert(opened: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """All in one transaction."""
    opened.execute("BEGIN IMMEDIATE")
    if len(rows) == 1:
        opened.execute(INSERT, rows[0])
    else:
        opened.executemany(INSERT, rows)
    opened.execute("COMMIT")


def drain(batch: int) -> int:
    """Settles and claims all pending no-op jobs, *batch* in a transaction, in one process
    and without running anything; gives how many."""
    done = 0
    with connection() as opened:
        settled: list[tuple[int, ...]] = []
        while True:
            with opened:
                opened.executemany(
                    "UPDATE litejobs_job SET state = 'completed', finished_at = ?, prune_at = ?,"
                    " holder = NULL WHERE id = ? AND claim = ? AND state = 'running'",
                    settled,
                )
                ids = [
                    id
                    for (id,) in opened.execute(
                        "SELECT id FROM litejobs_job WHERE state = 'pending' AND"
                        " queue = 'default' AND name = 'noop' AND node = ''"
                        " ORDER BY priority DESC, run_at, id LIMIT ?",
                        (batch,),
                    )
                ]
                done += len(ids)
                if not ids:
                    return done
                rows: list[Any] = opened.execute(
                    "UPDATE litejobs_job SET state = 'running', attempt = attempt + 1,"
                    " claim = claim + 1, holder = 1, started_at = 1 WHERE id IN carray(?)"
                    " RETURNING id, claim, name, payload",
                    (apsw.carray(array.array("q", ids)),),
                ).fetchall()
            now = time.time_ns() // 1000
            settled = [(now, now, row[0], row[1]) for row in rows]


def reader() -> None:
    """The other end of a bare wake-up: waits for a datagram, claims what there is, sends a
    byte through a pipe, and writes the moment at which a job would begin."""
    wakeup = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wakeup.bind(("127.0.0.1", 0))
    read, write = os.pipe()
    with connection() as opened:
        sys.stdout.write(f"{wakeup.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            wakeup.recv(16)
            with opened:
                opened.execute(
                    "UPDATE litejobs_job SET state = 'running' WHERE state = 'pending' AND"
                    " queue = 'default' AND name = 'noop' AND node = ''"
                ).fetchall()
            os.write(write, b".")
            os.read(read, 1)
            sys.stdout.write(f"{time.monotonic_ns()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    reader()
