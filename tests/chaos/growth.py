"""Several healthy processes grow, checkpoint and prune one file; then contents are compared.

Two producers, one program that inserts by the standard `sqlite3`, one that deletes what has ended,
one that checkpoints in every mode, and in two of three rounds a node: none of them does anything
that it may not do. Each writes to a log of its own what it enqueued, and when all have stopped,
every payload, header and result is held against that, each index against its table, and SQLite
checks the file. In half of the rounds some of them are killed and begin again.

What is enqueued is worked out from a token, so that a log of tokens and sizes is enough to know it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import attrs

from litejobs import Context, Durability, LiteJobs, Retention, define

from . import actors
from .actors import Actor, Diary
from .ordeal import Ordeal, Run

TIMEOUT = 60.0
"""Seconds until something that must happen counts as not happening, on a busy machine."""
SECONDS = 4.0
"""How long the processes of one round live."""
MOST = 100 * 1024 * 1024
"""Bytes of payload that one program enqueues in a round."""
FOR_EVER = Retention(completed=None, failed=None, cancelled=None)
MODES = (
    apsw.SQLITE_CHECKPOINT_PASSIVE, apsw.SQLITE_CHECKPOINT_FULL,
    apsw.SQLITE_CHECKPOINT_RESTART, apsw.SQLITE_CHECKPOINT_TRUNCATE,
)  # fmt: skip


def text_of(token: str, size: int) -> str:
    """Text of that length that no other token has anywhere: a page of another job is seen."""
    block = hashlib.sha256(token.encode()).hexdigest()
    return "".join(f"{number:x}{block}" for number in range(size // 64 + 1))[:size]


@define(retention=FOR_EVER)
def echo(context: Context[Any], token: str, text: str) -> str:
    return text[::-1]


def queue_in(folder: Path, durability: Durability = "fast") -> LiteJobs:
    """The queue that all of them share."""
    jobs = LiteJobs(folder / "jobs.db", durability=durability)
    jobs.register(echo)
    return jobs


# Those who take part.


@attrs.define(eq=False)
class Writer:
    """Makes tokens, and logs what is to be in the file before and after it is there."""

    name: str
    dice: random.Random
    diary: Diary
    number: int = 0
    written: int = 0

    @classmethod
    def begin(cls, name: str, seed: int) -> Writer:
        return cls(f"{name}.{time.monotonic_ns()}", random.Random(seed), Diary.begin(name))

    def next(self) -> tuple[str, int]:
        """A token and a size: mostly small, seldom very large."""
        self.number += 1
        size = round(30 * 35_000 ** self.dice.random())
        self.written += size
        token = f"{self.name}.{self.number}"
        self.diary.write("try", token, size)
        return token, size

    def acknowledge(self, token: str, size: int, id: int) -> None:
        self.diary.write("put", id, token, size)


def produce(folder: Path, name: str, seed: int, durability: Durability) -> None:
    """Enqueues one or several, with headers that the token gives."""
    stopped, writer = actors.Stopped(), Writer.begin(name, seed)
    with queue_in(folder, durability) as jobs:
        while writer.written < MOST and not stopped.wait(0):
            given = [writer.next() for _ in range(writer.dice.choice((1, 1, 1, 1, 5, 20)))]
            bound = [
                echo.using(headers={"of": text_of(token, 200)}).bind(token, text_of(token, size))
                for token, size in given
            ]
            for (token, size), job in zip(given, jobs.enqueue_many(bound), strict=True):
                writer.acknowledge(token, size, job.id)


def insert(folder: Path, name: str, seed: int, durability: Durability) -> None:
    """The same from another program, by plain INSERTs of the standard sqlite3."""
    stopped, writer = actors.Stopped(), Writer.begin(name, seed)
    path = folder / "jobs.db"
    with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA synchronous = {'full' if durability == 'full' else 'normal'}")
        while writer.written < MOST and not stopped.wait(0):
            token, size = writer.next()
            row = connection.execute(
                "INSERT INTO litejobs_job (name, payload, headers) VALUES ('echo', ?, ?)",
                (
                    json.dumps({"token": token, "text": text_of(token, size)}),
                    json.dumps({"of": text_of(token, 200)}),
                ),
            )
            writer.acknowledge(token, size, row.lastrowid or 0)


def checkpoint(folder: Path, seed: int) -> None:
    """Moves what is in the WAL into the file, in every way, and gives space back."""
    stopped, dice = actors.Stopped(), random.Random(seed)
    with contextlib.closing(apsw.Connection(str(folder / "jobs.db"))) as connection:
        connection.set_busy_timeout(1_000)
        while not stopped.wait(dice.uniform(0, 2)):
            with contextlib.suppress(apsw.BusyError, apsw.LockedError):
                connection.wal_checkpoint(mode=dice.choice(MODES))
                if dice.random() < 0.2:
                    connection.execute("PRAGMA incremental_vacuum(200)").fetchall()


def delete(folder: Path, seed: int) -> None:
    """Deletes some of what has ended, and logs that first."""
    stopped, dice = actors.Stopped(), random.Random(seed)
    diary = Diary.begin("deleter")
    with queue_in(folder) as jobs:
        while not stopped.wait(dice.uniform(0.05, 0.3)):
            ids = [job.id for job in jobs.find(state="completed", limit=200)]
            chosen = dice.sample(ids, len(ids) // 2)
            if chosen:
                diary.write("deleting", *chosen)
                jobs.delete(*chosen)


def work(folder: Path) -> None:
    """A node with two workers."""
    queue_in(folder).work(2, node="node", grace=2)


def finish(folder: Path) -> None:
    """Runs what is left."""
    with queue_in(folder) as jobs:
        jobs.work(2, until="empty", node="last")


# The rounds.


def growth(run: Run) -> None:
    """Healthy processes grow, checkpoint and prune one file: every content is what was written."""
    if not actors.AVAILABLE:
        run.counts["times skipped, for want of Linux"] += 1
        return
    for number in range(run.count):
        folder = run.folder / f"round-{number}"
        folder.mkdir()
        play(run, folder, number)
        for place in folder.glob("jobs.db*"):
            place.unlink()


def play(run: Run, folder: Path, number: int) -> None:
    """One round."""
    durability: Durability = ("fast", "full")[number % 2]
    with queue_in(folder) as jobs:
        jobs.stats()  # Now the file is there.
    acts: dict[str, Callable[[], None]] = {
        "producer": functools.partial(produce, folder, "producer", _seed(run), durability),
        "other": functools.partial(produce, folder, "other", _seed(run), durability),
        "inserter": functools.partial(insert, folder, "inserter", _seed(run), durability),
        "checkpointer": functools.partial(checkpoint, folder, _seed(run)),
    }
    if number % 3 < 2:
        acts["node"] = functools.partial(work, folder)
        acts["deleter"] = functools.partial(delete, folder, _seed(run))
    cast = {role: actors.start(folder, role, act) for role, act in acts.items()}
    try:
        _live(run, folder, acts, cast, kills=number // 2 % 2 == 1)
        for actor in cast.values():
            actor.signal(signal.SIGTERM)
        for role, actor in cast.items():
            run.expect(actor.ended(TIMEOUT), f"{role} does not stop: {actor.complaint}")
            ended = actor.exit_code in (0, -signal.SIGTERM)
            run.expect(ended, f"{role} ended with {actor.exit_code}: {actor.complaint}")
    finally:
        for actor in cast.values():
            actor.kill()
    compare(run, folder, ended=False)  # Nobody can finish with a file that is damaged.
    last = actors.start(folder, "last", functools.partial(finish, folder))
    try:
        run.expect(last.ended(2 * TIMEOUT), f"what is left does not end: {last.complaint}")
        run.expect(last.exit_code == 0, f"the last node failed: {last.complaint}")
    finally:
        last.kill()
    compare(run, folder, ended=True)
    run.counts["rounds"] += 1


def _seed(run: Run) -> int:
    return run.dice.getrandbits(32)


def _live(
    run: Run, folder: Path, acts: dict[str, Callable[[], None]], cast: dict[str, Actor], kills: bool
) -> None:
    """Lets them live, and in some rounds kills one of them now and then, which begins again."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(run.dice.uniform(0.2, 0.6))
        for role, actor in cast.items():
            ended = actor.exit_code not in (None, 0)
            run.expect(not ended, f"{role} ended with {actor.exit_code}: {actor.complaint}")
        if kills:
            role = run.dice.choice(list(cast))
            cast[role].kill()
            cast[role] = actors.start(folder, role, acts[role])
            run.counts["kills"] += 1


# What is to be true in the end.


def compare(run: Run, folder: Path, ended: bool) -> None:
    """Every payload, header and result is what its writer logged; indexes agree with tables."""
    tried = {token: int(size) for word, token, size in _logged(folder, "try")}
    put = {int(id): (token, int(size)) for word, id, token, size in _logged(folder, "put")}
    deleted = {int(id) for entry in _logged(folder, "deleting") for id in entry[1:]}
    wrong: list[str] = []
    states: dict[int, str] = {}
    with contextlib.closing(apsw.Connection(str(folder / "jobs.db"))) as connection:
        verdict = connection.execute("PRAGMA integrity_check(5)").fetchall()
        if verdict != [("ok",)]:
            wrong.append(f"integrity_check: {verdict}")
        rows = connection.execute("SELECT id, state, payload, headers, result FROM litejobs_job")
        try:
            for id, state, payload, headers, result in rows:
                states[id] = state
                wrong += _differences(put, tried, id, payload, headers, result)
        except apsw.CorruptError as error:
            wrong.append(f"the jobs cannot be read: {error}")
    lost = put.keys() - states.keys() - deleted
    if lost:
        wrong.append(f"{len(lost)} acknowledged jobs are missing, such as {min(lost)}")
    if ended:
        with queue_in(folder) as jobs:
            wrong += [f"{f.subject}: {f.problem}" for f in jobs.doctor() if f.level == "error"]
        wrong += [f"job {id} is {state}" for id, state in states.items() if state != "completed"]
        run.counts["jobs"] += len(put)
        run.counts["MB"] += sum(size for _, size in put.values()) // 10**6
    run.expect(not wrong, f"{len(wrong)} differences in {folder.name}: {'; '.join(wrong[:3])}")


def _logged(folder: Path, word: str) -> list[list[str]]:
    return [line for line in actors.entries(folder) if line[0] == word]


def _differences(
    put: dict[int, tuple[str, int]], tried: dict[str, int],
    id: int, payload: str, headers: str, result: str | None,
) -> list[str]:  # fmt: skip
    try:
        given = json.loads(payload)
        token = str(given["token"])
        size = put.get(id, (token, tried[token]))[1]
        expected = {"token": put.get(id, (token, 0))[0], "text": text_of(token, size)}
        wrong = [] if given == expected else [f"the payload of job {id} is not what was enqueued"]
        if json.loads(headers) != {"of": text_of(token, 200)}:
            wrong.append(f"the headers of job {id} are not what was enqueued")
        if result is not None and json.loads(result) != expected["text"][::-1]:
            wrong.append(f"the result of job {id} is not what its handler returned")
        return wrong
    except (ValueError, KeyError, TypeError) as error:
        return [f"job {id} cannot be read: {error!r}"]


ORDEALS = (Ordeal(run=growth, quick=3, full=360, unit="rounds"),)
