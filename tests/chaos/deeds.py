"""What is done with a queue, one transaction at a time, and what the file then says: the ordeals
that break the disk do these deeds and compare."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import attrs

import litejobs
from litejobs import (
    Claimed,
    File,
    LiteJobs,
    Ready,
    Report,
    Settlement,
    State,
    Store,
    Subscription,
    Unique,
)

from .ordeal import Run

SUBSCRIPTION = Subscription(frozenset({"work"}), None, "here")
ROUNDS = 100
"""In how many exchanges a node gets through all jobs that there may be."""
FAR = litejobs.to_micros(datetime(2040, 1, 1, tzinfo=UTC))
"""When all is due, and nothing is kept any more."""


@litejobs.define
def work(number: int, text: str = "") -> None:
    """What all jobs are to do."""


work.bind(0)  # A first time, which takes the longest.


@attrs.define(eq=False)
class Hands:
    """A producer, and a node, which is less durable as all nodes are: two connections to one
    file. With the same dice they do the same things, by a clock that they turn."""

    path: Path
    durability: litejobs.Durability
    dice: random.Random
    clock: litejobs.TurnedClock = attrs.field(factory=litejobs.TurnedClock)
    jobs: LiteJobs = attrs.field(init=False)
    store: Store = attrs.field(init=False)
    """The node's."""
    node: int = 0
    held: list[Claimed] = attrs.field(factory=list)
    numbers: Iterator[int] = attrs.field(factory=itertools.count)

    def __attrs_post_init__(self) -> None:
        self.jobs = LiteJobs(self.path, durability=self.durability, clock=self.clock)
        self.jobs.register(work)
        self.store = Store(File(self.path, "fast", clock=self.clock))

    def do(self, name: str) -> None:
        """The deed of that name, a second later."""
        self.clock.turn(1)
        DEEDS[name](self)

    def close(self) -> None:
        """Lets go of the file, the node with all that it holds."""
        self._die()
        self.jobs.close()
        self.store.file.close()

    def _die(self) -> None:
        self.store.nodes.release_lock(self.node)
        self.node = 0
        self.held.clear()

    def job(self, **choices: Any) -> litejobs.Bound[None]:
        """One that is not enqueued yet, of one page or more."""
        text = "x" * self.dice.choice((0, 10, 300, 5_000))
        return work.using(**choices).bind(next(self.numbers), text)

    def one(self, *states: State) -> int:
        """The id of some job in one of these states; 0 if there is none."""
        found = self.jobs.find(state=states, limit=5)
        return self.dice.choice(found).id if found else 0

    def exchange(self, state: State, ended: int, claimed: int) -> None:
        """Settles some of what the node holds, and claims some more; first it has to join."""
        if not self.node:
            return self.join()
        settled = [self._ending(self.held.pop(0), state) for _ in self.held[:ended]]

        def choose(ready: Ready) -> list[int]:
            return [id for id, _ in itertools.islice(ready, claimed)]

        # What a node has read ahead, for how long goes by how busy the machine is, is of one
        # *subscription*: with another one, the same jobs are claimed in every run.
        subscription = attrs.evolve(SUBSCRIPTION)
        self.held += self.store.exchange(settled, self.node, choose, subscription).claimed
        return None

    def _ending(self, job: Claimed, state: State) -> Settlement:
        now = self.clock()
        report = Report(now, now, 0, state)
        if state == "completed":
            return job, report._replace(result='"done"')
        message = "it went wrong " * self.dice.randrange(1, 40)
        return job, report._replace(
            delay=3_000_000, kind="exception", type="ValueError", message=message, traceback="…",
            worker=1,
        )  # fmt: skip

    def join(self) -> None:
        """Lists the node, if it is not."""
        if not self.node:
            self.node = self.store.nodes.join("here", 0, 1, SUBSCRIPTION, [])

    def leave(self) -> None:
        """As a node that died with all that it held, and is rescued at once."""
        self._die()
        self.rescue()

    def rescue(self) -> None:
        """Takes over what a node held that died."""
        if others := self.store.nodes.others(self.node):
            self.store.nodes.rescue(others[0][0])

    def progress(self) -> None:
        """Of all that run."""
        progress = json.dumps({"done": self.clock() % 1000, "total": 1000, "note": ""})
        self.store.keep_progress({job[:2]: (progress, None) for job in self.held})

    def checkpoint(self, mode: int) -> None:
        """As one comes along when the WAL has grown, or later."""
        with contextlib.suppress(apsw.BusyError):
            self.store.file.connection().wal_checkpoint(mode=mode)

    def checkpoint_often(self) -> None:
        """After so few pages that it happens."""
        for file in (self.jobs.store.file, self.store.file):
            file.connection().pragma("wal_autocheckpoint", 20)

    def tick(self) -> None:
        """Fires the schedule."""
        self.clock.turn(60)
        self.store.schedules.fire(self.clock())

    def stage(self) -> None:
        """Makes ready what waited for its time."""
        self.clock.turn(10)
        self.store.stage(self.clock())


DEEDS: Mapping[str, Callable[[Hands], object]] = {
    "enqueue": lambda its: its.jobs.enqueue(its.job()),
    "enqueue later": lambda its: its.jobs.enqueue(its.job(delay=its.dice.randrange(1, 30))),
    "enqueue to expire": lambda its: its.jobs.enqueue(its.job(expires=1)),
    "enqueue once": lambda its: its.jobs.enqueue(
        its.job(unique=Unique(key=f"key {its.dice.randrange(3)}"))
    ),
    "enqueue in turn": lambda its: its.jobs.enqueue(its.job(key="one at a time")),
    "enqueue many": lambda its: its.jobs.enqueue_many([its.job() for _ in range(20)]),
    "join": Hands.join,
    "claim": lambda its: its.exchange("completed", 0, 3),
    "settle": lambda its: its.exchange("completed", 2, 0),
    "settle and claim": lambda its: its.exchange("completed", 2, 2),
    "fail": lambda its: its.exchange("failed", 1, 0),
    "try again later": lambda its: its.exchange("retrying", 1, 1),
    "progress": Hands.progress,
    "leave": Hands.leave,
    "rescue": Hands.rescue,
    "cancel": lambda its: its.jobs.cancel(its.one("pending", "scheduled")),
    "ask to end": lambda its: its.jobs.cancel(its.one("running")),
    "retry": lambda its: its.jobs.retry(state="failed"),
    "retry now": lambda its: its.jobs.retry(state="retrying"),
    "hold": lambda its: its.jobs.hold(its.one("pending", "scheduled")),
    "release": lambda its: its.jobs.release(state="paused"),
    "change": lambda its: its.jobs.change(its.one("pending"), to={"priority": 5}),
    "delete": lambda its: its.jobs.delete(state="completed"),
    "set a queue": lambda its: its.jobs.queue("default").set(concurrency=9),
    "schedule": lambda its: its.jobs.schedule("tick").set(60, its.job()),
    "tick": Hands.tick,
    "stage": Hands.stage,
    "expire": lambda its: its.store.expire(its.clock()),
    "prune": lambda its: its.store.prune(FAR),
    "shrink": lambda its: its.store.shrink(),
    "count": lambda its: its.store.meter.flush(),
    "checkpoint": lambda its: its.checkpoint(apsw.SQLITE_CHECKPOINT_PASSIVE),
    "restart the WAL": lambda its: its.checkpoint(apsw.SQLITE_CHECKPOINT_RESTART),
    "truncate the WAL": lambda its: its.checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE),
    "checkpoint often": Hands.checkpoint_often,
    "compact": lambda its: its.jobs.compact(),
    "back up": lambda its: its.jobs.backup(its.path.with_name("copy.db")),
    "open": lambda its: its.jobs.count(),
    "close": Hands.close,
}
"""Each changes what the file says at most once: in one transaction."""

BY_PROCESS = frozenset({"pid", "worker"})
"""Columns that show which process it was."""


def changes_between(before: str, after: str) -> str:
    """What is not the same in two portraits."""
    lines = difflib.unified_diff(before.split("\n"), after.split("\n"), n=0)
    return "\n".join(line[:200] for line in lines)[:2_000]


def portrait(path: Path) -> str:
    """All that a file says, in text; nothing if there is no file, or nothing in it. It is read
    past litejobs, which would bring it up to date."""
    if not path.exists():
        return ""
    with contextlib.closing(apsw.Connection(str(path), apsw.SQLITE_OPEN_READWRITE)) as connection:
        if (sound := connection.pragma("integrity_check")) != "ok":
            return f"broken: {sound}"
        return "\n".join(_lines(connection))


def _lines(connection: apsw.Connection) -> Iterator[str]:
    schema = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*' ORDER BY 2"
    tables = []
    for kind, name, sql in connection.execute(schema).fetchall():
        yield f"{kind} {name} {hash(sql)}"
        tables += [name] if kind == "table" else []
    for table in tables:
        columns = connection.execute("SELECT name FROM pragma_table_info(?)", (table,)).fetchall()
        compared = ", ".join(str(name) for (name,) in columns if name not in BY_PROCESS)
        for row in connection.execute(f"SELECT {compared} FROM {table}"):
            yield f"{table} {row}"


def works_on(run: Run, path: Path, what: str) -> None:
    """Nothing is broken, whoever died is rescued, and all jobs come to their end."""
    hands = Hands(path, "fast", random.Random(0))
    hands.clock.turn_to(litejobs.from_micros(FAR))
    with contextlib.closing(hands):
        for node in hands.store.nodes.all():  # Copies of a file come without them.
            Path(hands.store.file.presence_path(node.id)).touch()
        broken = [finding for finding in hands.jobs.doctor() if finding.level == "error"]
        run.expect(not broken, f"{what}: the doctor says {broken}")
        for node in hands.store.nodes.all():
            hands.store.nodes.rescue(node.id)
        job = hands.jobs.enqueue(hands.job())
        hands.jobs.release(state="paused")
        hands.store.expire(FAR)
        hands.store.stage(FAR)
        hands.join()
        for _ in range(ROUNDS):
            hands.exchange("completed", 99, 99)
            if not hands.held:
                break
        left = json.dumps(hands.jobs.stats())
        run.expect(hands.jobs.get(job.id).state == "completed", f"{what}: a new job waits: {left}")
        waiting = hands.jobs.count(state=("pending", "scheduled", "retrying", "blocked", "running"))
        run.expect(not waiting, f"{what}: not all jobs came to their end: {left}")
