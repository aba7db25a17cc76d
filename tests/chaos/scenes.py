"""What litejobs is asked to do while something fails, and what may be in the file afterwards.

Each scene begins with a file that has been prepared, and is one verb: so there are two states of
which a failure may leave one, that before and that after it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import attrs

import litejobs
from litejobs import (
    Claimed,
    LiteJobs,
    Report,
    Retention,
    Settlement,
    State,
    Subscription,
    Unique,
    define,
)

from .older import older_file
from .ordeal import Violation

NOW = 1_800_000_000_000_000
"""Where the clock of all scenes stands."""
SECOND = 1_000_000
DAY = 86_400 * SECOND
HERE = Subscription(frozenset(["note"]), None, "here")


@define
def note(text: str) -> str:
    """The work of all scenes."""
    return text


@define
def linger(until: str) -> None:
    """Runs until there is such a file."""
    give_up = time.monotonic() + 60
    while not os.path.exists(until) and time.monotonic() < give_up:
        time.sleep(0.01)


def queue_at(path: Path) -> LiteJobs:
    """The queue in the file, in which time stands still."""
    jobs = LiteJobs(path, clock=lambda: NOW)
    jobs.register(note)
    return jobs


# The files with which scenes begin


def nothing(path: Path) -> None:
    """No file."""


def an_applications_file(path: Path) -> None:
    """A file of somebody else's, in which there is no queue yet."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE customer (name TEXT); INSERT INTO customer VALUES ('Ada')")


def an_old_file(path: Path) -> None:
    """A file of the schema before today's."""
    older_file(
        path,
        "INSERT INTO litejobs_job (name, payload) VALUES ('note', '{}')",
        # Which the schema asked for the time.
        "UPDATE litejobs_job SET enqueued_at = 1, run_at = 1",
    )


def a_full_file(path: Path) -> None:
    """One with jobs in all states, a node that died, a schedule, and what has been counted."""
    with queue_at(path) as jobs:
        store = jobs.store
        jobs.queue("slow").pause()
        node = store.nodes.join("gone", 9, 2, HERE, jobs.registry.listing())
        for number in range(8):
            note.enqueue(f"number {number}")
        claimed = store.exchange([], node, lambda ready: [id for id, _ in ready], HERE).claimed
        ends: tuple[State, ...] = ("failed", "retrying", "completed", "completed", "cancelled")
        ended = [settled(job.id, state) for job, state in zip(claimed, ends, strict=False)]
        store.exchange(ended, node, lambda ready: [], HERE)
        store.meter.flush()
        for number in range(3):
            note.enqueue(f"ready {number}")
        note.using(delay=60).enqueue("later")
        note.using(expires=10, delay=5).enqueue("soon over")
        note.using(unique=Unique(key="same"), delay=60).enqueue("the only one")
        for _ in range(2):
            note.using(key="one", queue="slow").enqueue("one at a time")
        jobs.schedule("tick").set("@every 60s", note.bind("tick"))
        store.nodes.release_lock(node)


def a_large_file(path: Path) -> None:
    """One with much to prune and to give back."""
    a_full_file(path)
    with queue_at(path) as jobs:
        gone = note.using(retention=Retention(timedelta(seconds=1)))
        jobs.enqueue_many(gone.bind("x" * 2_000) for _ in range(200))
        jobs.cancel(state="pending")
        jobs.store.prune(NOW + 100 * DAY)


def a_crashed_file(path: Path) -> None:
    """One whose last process was killed, with everything in the WAL."""
    kept = path.with_name("kept")
    kept.mkdir()
    with queue_at(path) as jobs:
        a_full_file(path)
        jobs.enqueue_many(note.bind(f"number {number}") for number in range(50))
        for file in path.parent.glob(f"{path.name}*"):
            if not file.name.endswith("-shm"):
                # Not by this process: it would lose its locks.
                subprocess.run(["cp", str(file), str(kept)], check=True)
    for file in kept.iterdir():
        shutil.move(file, path.parent / file.name)
    kept.rmdir()


BEGINNINGS: tuple[Callable[[Path], None], ...] = (
    nothing, an_applications_file, an_old_file, a_full_file, a_large_file, a_crashed_file,
)  # fmt: skip


# What is done


def settled(id: int, state: State, claim: int = 1) -> Settlement:
    """What a worker could report of the first attempt of a job."""
    claimed = Claimed(id, claim, "note", "default", 0, 1, None, None, None, "{}", NOW, NOW)
    report = Report(NOW, NOW, 0, state)
    if state in ("failed", "retrying"):
        report = report._replace(
            delay=5 * SECOND, kind="exception", type="ValueError", message="no",
            traceback="the traceback " * 300, worker=1,
        )  # fmt: skip
    elif state == "completed":
        report = report._replace(result='"done"')
    return claimed, report


def settle(*settlements: Settlement) -> Callable[[LiteJobs], object]:
    """What the node does with the results of jobs that it runs."""

    def exchange(jobs: LiteJobs) -> None:
        jobs.store.exchange(settlements, 1, lambda ready: [], HERE)

    return exchange


def claim(jobs: LiteJobs) -> object:
    """What the node does to get jobs."""
    return jobs.store.exchange([], 1, lambda ready: [id for id, _ in ready], HERE)


def settle_and_claim(jobs: LiteJobs) -> object:
    """What it does at every turn."""
    return jobs.store.exchange(
        [settled(6, "completed"), settled(7, "failed")], 1, lambda ready: [next(ready)[0]], HERE
    )


def join(jobs: LiteJobs) -> None:
    """What a node does that starts."""
    nodes = jobs.store.nodes
    nodes.release_lock(nodes.join("here", 9, 2, HERE, jobs.registry.listing()))


def enqueue_beside(jobs: LiteJobs) -> None:
    """Enqueues in a transaction of the application's, which then goes wrong or not."""
    try:
        with contextlib.closing(apsw.Connection(str(jobs.path))) as connection:
            connection.execute("BEGIN IMMEDIATE")
            note.using(connection=connection).enqueue("beside")
            connection.execute("COMMIT")
    except apsw.Error as error:
        # What it does itself is the application's business: only what is ours has to be ours.
        raise litejobs.OutcomeUnknownError(str(jobs.path), str(error)) from error


def live_node(jobs: LiteJobs, closing: contextlib.ExitStack) -> None:
    """Gives the jobs to a node that lives as long as this process."""
    node = jobs.store.nodes.join("alive", 9, 2, HERE, jobs.registry.listing())
    assert node == 2
    jobs.store.exchange([], node, lambda ready: [id for id, _ in ready], HERE)
    closing.callback(jobs.store.nodes.release_lock, node)


def count_metric(jobs: LiteJobs) -> None:
    """Writes down what was counted."""
    meter, done = jobs.store.meter, settled(6, "completed")
    meter.count([done], {("completed", "default", "note"): 1})
    meter.flush()


def close_and_reopen(jobs: LiteJobs) -> None:
    """What a program does at its end, and the next one at its beginning."""
    jobs.close()
    jobs.count()


def back_up(jobs: LiteJobs) -> None:
    """Makes a copy, which has to be whole if it is there."""
    jobs.backup(jobs.path.with_name(f"copy-{jobs.path.name}"))


def look(jobs: LiteJobs) -> None:
    """Asks everything that reads."""
    jobs.find(state=["failed", "pending"])
    jobs.count(queue="slow")
    jobs.stats()
    jobs.get(1)
    jobs.errors(1)
    jobs.why(12)
    jobs.metrics("hour")
    jobs.schedules()
    jobs.nodes()


@attrs.frozen
class Scene:
    """Something that litejobs is asked for, with a file to begin with."""

    act: Callable[[LiteJobs], object]
    begins: Callable[[Path], None] = a_full_file
    name: str = attrs.field()
    opened: bool = True
    """Whether the file has been opened before."""
    ready: Callable[[LiteJobs, contextlib.ExitStack], object] = lambda jobs, closing: None
    """What is done with it then, and what has to be closed in the end."""
    either: bool = False
    """Whether an error says nothing of what has been done: a file may have been opened and
    brought up to date, or jobs changed in bulk, before something else went wrong. To do it
    again does no harm."""

    @name.default
    def _name(self) -> str:
        return self.act.__name__.strip("<>")


def fresh(act: Callable[[LiteJobs], object], begins: Callable[[Path], None], name: str) -> Scene:
    """A scene in which the file has to be opened, too."""
    return Scene(act, begins, name, opened=False, either=True)


def empty_the_wal_soon(jobs: LiteJobs, closing: contextlib.ExitStack) -> None:
    """Lets few jobs do what it takes thousands for otherwise."""
    jobs.store.file.connection().pragma("wal_autocheckpoint", 10)


BULK = ["x" * 1_000 + str(number) for number in range(60)]
SCENES: tuple[Scene, ...] = (
    fresh(lambda jobs: jobs.count(), nothing, "make a file"),
    fresh(lambda jobs: jobs.count(), an_applications_file, "make a file a queue"),
    fresh(lambda jobs: jobs.count(), an_old_file, "take a step of the schema"),
    fresh(lambda jobs: jobs.count(), a_full_file, "open a file"),
    fresh(lambda jobs: jobs.count(), a_crashed_file, "open a file after a crash"),
    Scene(lambda jobs: note.enqueue("one"), name="enqueue"),
    Scene(lambda jobs: note.enqueue("x" * 100_000), name="enqueue a large one"),
    Scene(lambda jobs: jobs.enqueue_many(map(note.bind, BULK)), name="enqueue many"),
    Scene(
        lambda jobs: jobs.enqueue_many(map(note.bind, BULK)),
        name="enqueue so many that the WAL is emptied",
        ready=empty_the_wal_soon,
    ),
    Scene(lambda jobs: note.using(unique=Unique(key="new")).enqueue("u"), name="enqueue unique"),
    Scene(
        lambda jobs: note.using(unique=Unique(key="same", on_conflict="replace")).enqueue("u"),
        name="replace the job with the same key",
    ),
    Scene(lambda jobs: note.using(key="one").enqueue("b"), name="enqueue blocked"),
    Scene(enqueue_beside),
    Scene(claim),
    Scene(settle(settled(6, "completed")), name="complete"),
    Scene(settle(settled(6, "failed")), name="fail"),
    Scene(settle(settled(6, "retrying"), settled(7, "retrying")), name="retry later"),
    Scene(settle_and_claim),
    Scene(join),
    Scene(lambda jobs: jobs.store.nodes.rescue(1), name="rescue", either=True),
    Scene(lambda jobs: jobs.store.nodes.rescue(2), name="leave a live node alone", ready=live_node),
    Scene(lambda jobs: jobs.store.schedules.fire(NOW + 61 * SECOND), name="tick", either=True),
    Scene(lambda jobs: jobs.store.stage(NOW + 61 * SECOND), name="stage", either=True),
    Scene(lambda jobs: jobs.store.expire(NOW + 61 * SECOND), name="expire", either=True),
    Scene(lambda jobs: jobs.store.prune(NOW + 100 * DAY), name="prune"),
    Scene(lambda jobs: jobs.store.shrink(), a_large_file, name="shrink"),
    Scene(lambda jobs: jobs.store.meter.roll_up(NOW + 2 * DAY), name="fold"),
    Scene(count_metric),
    Scene(lambda jobs: jobs.cancel(state="pending"), name="cancel", either=True),
    Scene(lambda jobs: jobs.retry(state="failed"), name="retry", either=True),
    Scene(lambda jobs: jobs.delete(state="completed"), name="delete", either=True),
    Scene(lambda jobs: jobs.change(9, to={"priority": 7}), name="change", either=True),
    Scene(lambda jobs: jobs.queue("slow").resume(), name="resume", either=True),
    Scene(lambda jobs: jobs.schedule("tick").remove(), name="remove a schedule", either=True),
    Scene(look, either=True),
    Scene(lambda jobs: jobs.doctor(), name="doctor"),
    Scene(lambda jobs: jobs.repair(), name="repair"),
    Scene(back_up),
    Scene(lambda jobs: jobs.compact(), a_large_file, name="compact"),
    Scene(close_and_reopen, either=True),
)


# What is there

Content = dict[str, list[tuple[Any, ...]]]
"""All rows, by table."""
_OF_THE_PROCESS = {"pid", "port"}


def content(path: Path) -> Content:
    """What any other process finds in the file; nothing, if there is no queue in it. Read with
    the library alone, so that litejobs has no part in it."""
    if not path.exists():
        return {}
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.set_busy_timeout(2_000)
        if (state := connection.pragma("integrity_check")) != "ok":
            raise Violation(f"the file is broken: {state}")
        sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name GLOB 'litejobs_*'"
        tables = [name for (name,) in connection.execute(sql)]
        if "litejobs_meta" not in tables:
            return {}
        return {table: _rows(connection, table) for table in sorted(tables)}


def _rows(connection: apsw.Connection, table: str) -> list[tuple[Any, ...]]:
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    columns = ", ".join(name for name in names if name not in _OF_THE_PROCESS)
    return sorted(connection.execute(f"SELECT {columns} FROM {table}"), key=repr)


def difference(one: Content, other: Content) -> str:
    """In which rows two contents differ, shortly."""
    parts = []
    for table in sorted({*one, *other}):
        left, right = one.get(table, []), other.get(table, [])
        gone = [row for row in left if row not in right]
        come = [row for row in right if row not in left]
        if gone or come:
            parts.append(f"{table}: {gone!r:.300} became {come!r:.300}")
    return "; ".join(parts) or "nothing"
