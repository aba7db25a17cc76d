"""Who takes part when processes are killed: jobs that look for others inside, producers that write
down what was acknowledged, nodes, readers, and one who does what is left.

A line in a diary is written before something is tried, and another one when the call has returned.
Of what was tried and never returned nobody knows whether it was done: it may be either way, but
not both, and not by half.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import attrs

import litejobs
from litejobs import (
    Constant,
    Context,
    Definition,
    Durability,
    Job,
    LiteJobs,
    Retry,
    Snooze,
    Unique,
    define,
)

from . import actors
from .actors import Diary

NODES = ("one", "two")
NARROW, MAY_RUN = "narrow", 2
"""A queue, and how many of its jobs may run at a time on all nodes together."""
TIMEOUT = 0.4
"""Seconds. Processes are stopped for longer."""
GRACE = 0.2
TICK = 0.25
"""Seconds between two ticks of the schedule."""
ENOUGH = 120
"""Jobs that wait: then producers rest."""
SOON = Constant(0.02)
TOKENS = 12
"""Jobs that are enqueued at once."""


# What the jobs do: each locks a file of its own, so that a second one inside is seen, and files
# that only so many jobs may hold at a time.


@contextlib.contextmanager
def inside(context: Context[Diary], *slots: tuple[str, int]) -> Iterator[int]:
    """Writes down when a job begins and how it ends; reports everyone who is where nobody may be.
    Gives the descriptor of the job's own lock."""
    diary, job = context.state, context.job
    diary.write("begin", job.id, job.attempt, time.monotonic_ns())
    how = "raised"
    with contextlib.ExitStack() as locks:
        own = locks.enter_context(_locked(diary, job, f"job-{job.id}", 1))
        for name, places in slots:
            locks.enter_context(_locked(diary, job, name, places))
        try:
            yield own
            how = "returned"
        except Snooze:
            how = "snoozed"
            raise
        finally:
            diary.write("end", job.id, job.attempt, time.monotonic_ns(), how)


@contextlib.contextmanager
def _locked(diary: Diary, job: Job[Any], name: str, places: int) -> Iterator[int]:
    """Takes one of so many places under this name."""
    folder = Path(os.environ[actors.FOLDER])
    for place in range(places):
        lock = os.open(folder / "locks" / f"{name}-{place}", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        try:
            yield lock
        finally:
            os.close(lock)
        return
    diary.write("clash", job.id, job.attempt, time.monotonic_ns(), name)
    yield -1


def mark(context: Context[Diary]) -> str:
    """A result that no other attempt can have."""
    return f"{context.job.id}-{context.attempt}-{os.getpid()}-{time.monotonic_ns()}"


@define(max_attempts=None, backoff=SOON)
def plain(context: Context[Diary], token: str, seconds: float) -> str:
    with inside(context):
        time.sleep(seconds)
    return mark(context)


@define(max_attempts=None, backoff=SOON)
def brief(context: Context[Diary], token: str) -> str:
    with inside(context):
        return mark(context)


@define(max_attempts=None, backoff=SOON)
def failing(context: Context[Diary], token: str, times: int) -> str:
    with inside(context):
        if context.attempt <= times:
            raise RuntimeError("not yet")
        return mark(context)


@define(max_attempts=3, backoff=SOON)
def doomed(context: Context[Diary], token: str) -> None:
    with inside(context):
        raise RuntimeError("never")


@define(max_attempts=None, backoff=SOON)
def undecided(context: Context[Diary], token: str) -> str:
    with inside(context):
        if random.random() < 0.3:
            raise Snooze(0.02)
        if random.random() < 0.3:
            raise Retry(0.02)
        return mark(context)


@define(max_attempts=None, backoff=SOON, timeout=TIMEOUT)
def timed(context: Context[Diary], token: str) -> str:
    with inside(context):
        if context.attempt == 1:
            time.sleep(60)
        return mark(context)


@define(max_attempts=None, backoff=SOON)
def keyed(context: Context[Diary], token: str, name: str, places: int) -> str:
    with inside(context, (f"key-{name}", places)):
        time.sleep(0.01)
    return mark(context)


@define(max_attempts=None, backoff=SOON, queue=NARROW)
def narrow(context: Context[Diary], token: str) -> str:
    with inside(context, (NARROW, MAY_RUN)):
        time.sleep(0.02)
    return mark(context)


@define(max_attempts=None, backoff=SOON)
def alone(context: Context[Diary], token: str, name: str) -> str:
    with inside(context, (f"alone-{name}", 1)):
        time.sleep(0.01)
    return mark(context)


@define(max_attempts=None, backoff=SOON)
def fuse(context: Context[Diary], token: str, seconds: float) -> str:
    """Its worker is killed about when it returns: before its result is left, after that, or after
    it was settled."""
    with inside(context):
        if context.attempt == 1:
            context.state.write("fuse", context.job.id)
            threading.Thread(target=_burn, args=(seconds,), daemon=True).start()
        return mark(context)


def _burn(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


@define(max_attempts=None, backoff=SOON, priority=5)
def family(context: Context[Diary], token: str) -> str:
    """The job is not over as long as what it has started holds its lock. If it is killed it is
    the next one to run, so that this would be seen."""
    with inside(context) as lock:
        if lock < 0:
            return mark(context)
        with subprocess.Popen(["sleep", "1.5"], pass_fds=[lock]) as child:
            child.wait()
    return mark(context)


@define(max_attempts=None, backoff=SOON)
async def drifting(context: Context[Diary], token: str, seconds: float) -> str:
    with inside(context):
        await asyncio.sleep(seconds)
        return mark(context)


@define(max_attempts=None, backoff=SOON)
def tick(context: Context[Diary]) -> str:
    with inside(context):
        return mark(context)


DEFINITIONS: tuple[Definition[..., Any, Any], ...] = (
    plain, brief, failing, doomed, undecided, timed, keyed, narrow, alone, fuse, family, drifting,
    tick,
)  # fmt: skip
ASIDE = frozenset({"drifting"})
"""Coroutines, several of which may be inside one worker."""


def queue_in(folder: Path, durability: Durability = "fast") -> LiteJobs:
    """The queue that all of them share."""
    jobs = LiteJobs(folder / "jobs.db", state=diary_of_worker, durability=durability)
    jobs.register(*DEFINITIONS)
    return jobs


def diary_of_worker() -> Diary:
    """A diary as the state of a worker; it begins with whose worker it is."""
    diary = Diary.begin("worker")
    diary.write("node", os.getppid())
    return diary


# Producers.


@attrs.define(eq=False)
class Producer:
    """Enqueues in every way that there is, cancels, and lets jobs run again."""

    jobs: LiteJobs
    diary: Diary
    dice: random.Random
    own: apsw.Connection
    """The application's own connection to the file."""
    number: int = 0
    recent: deque[int] = attrs.field(factory=lambda: deque(maxlen=30))

    def token(self) -> str:
        """Something that no other job has."""
        self.number += 1
        return f"{os.getpid()}.{self.number}"

    def tried(self, *tokens: str) -> None:
        self.diary.write("try", *tokens)

    def acknowledged(self, token: str, job: Job[Any]) -> None:
        self.diary.write("joined" if job.duplicate else "ack", job.id, token)
        if not job.duplicate:
            self.diary.write("content", job.id, actors.digest([job.payload, job.headers]))
        self.recent.append(job.id)

    def one(self, definition: Definition[..., Any, Any], *arguments: Any) -> None:
        """Enqueues one, in one of several ways."""
        options: dict[str, Any] = {"headers": {"pad": "x" * self.dice.choice((0, 10, 3_000))}}
        if self.dice.random() < 0.2:
            options["delay"] = self.dice.uniform(0, 1)
        if self.dice.random() < 0.2:
            options["priority"] = self.dice.randint(-1, 1)
        if self.dice.random() < 0.1:
            options["node"] = self.dice.choice(NODES)
        self.enqueue(definition.using(**options), *arguments)

    def enqueue(self, definition: Definition[..., Any, Any], *arguments: Any) -> None:
        token = self.token()
        self.tried(token)
        self.acknowledged(token, definition.enqueue(token, *arguments))

    def many(self) -> None:
        """All of them, or none."""
        tokens = [self.token() for _ in range(TOKENS)]
        self.diary.write("together", *tokens)
        self.tried(*tokens)
        jobs = self.jobs.enqueue_many(brief.bind(token) for token in tokens)
        self.diary.write("acks", *[f"{job.id}:{t}" for t, job in zip(tokens, jobs, strict=True)])

    def keyed(self) -> None:
        name, places = self.dice.choice((("a", 1), ("b", 1), ("c", 2)))
        self.one(keyed.using(key=name, key_limit=places), name, places)

    def alone(self) -> None:
        name = self.dice.choice("xyz")
        self.one(alone.using(unique=Unique(key=name, scope="active")), name)

    def only(self) -> None:
        """At most one of this name is ever accepted."""
        name = f"only{self.dice.randrange(40)}"
        self.one(alone.using(unique=Unique(key=name, scope="exists")), name)

    def through_own(self) -> None:
        """In a transaction of the application, with a row of its own."""
        token = self.token()
        self.tried(token)
        give_up = self.dice.random() < 0.3
        self.diary.write("undone" if give_up else "own", token)
        self.own.execute("BEGIN IMMEDIATE")
        self.own.execute("INSERT INTO application VALUES (?)", (token,))
        job = brief.using(connection=self.own).enqueue(token)
        self.own.execute("ROLLBACK" if give_up else "COMMIT")
        if not give_up:
            self.acknowledged(token, job)

    def cancel(self) -> None:
        """Cancels one of the last jobs, and perhaps wants it after all."""
        if not self.recent:
            return
        id = self.dice.choice(self.recent)
        self.diary.write("cancelling", id)
        moved = self.jobs.cancel(id).moved
        self.diary.write("cancelled", id, moved, time.monotonic_ns())
        if self.dice.random() < 0.5:
            self.diary.write("retrying", id)
            moved = self.jobs.retry(id).moved
            self.diary.write("retried", id, moved)

    def act(self) -> None:
        """Does one of these things, some more often than others."""
        dice = self.dice
        deeds: tuple[tuple[Callable[[], None], float], ...] = (
            (lambda: self.one(plain, round(dice.uniform(0, 0.06), 4)), 14),
            (lambda: self.one(plain, 0.7), 1),
            (lambda: self.one(brief), 14),
            (self.many, 4),
            (lambda: self.one(failing, dice.randrange(3)), 5),
            (lambda: self.one(doomed), 2),
            (lambda: self.one(undecided), 5),
            (lambda: self.one(timed), 1),
            (self.keyed, 14),
            (lambda: self.one(narrow), 12),
            (self.alone, 6),
            (self.only, 6),
            (lambda: self.one(fuse, dice.uniform(0, 0.003)), 1),
            (lambda: self.one(family), 1),
            (lambda: self.one(drifting, round(dice.uniform(0, 0.2), 4)), 6),
            (self.through_own, 8),
            (self.cancel, 8),
        )
        dice.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])[0]()


def produce(folder: Path, seed: int, durability: Durability) -> None:
    stopped = actors.Stopped()
    dice = random.Random(seed)
    own = apsw.Connection(str(folder / "jobs.db"))
    own.set_busy_timeout(60_000)
    with queue_in(folder, durability) as jobs, contextlib.closing(own):
        producer = Producer(jobs, Diary.begin("producer"), dice, own)
        while not stopped.wait(dice.uniform(0, 0.02)):
            if jobs.count(state=("pending", "blocked")) > ENOUGH:
                stopped.wait(0.05)
            else:
                producer.act()


# The others.


def prepare(folder: Path) -> None:
    """Makes the file, with what the application keeps in it, and a folder for locks."""
    (folder / "locks").mkdir()
    with queue_in(folder) as jobs:
        jobs.queue(NARROW).set(concurrency=MAY_RUN)
    with contextlib.closing(apsw.Connection(str(folder / "jobs.db"))) as connection:
        connection.execute("CREATE TABLE application (token TEXT)")


def work(folder: Path, name: str) -> None:
    jobs = queue_in(folder)
    jobs.every(TICK, tick, name="tick", misfire="all")
    # Workers import nothing of the program but the definitions: they start sooner.
    sys.modules["__main__"] = types.ModuleType("__main__")
    jobs.work(2, node=name, concurrency=5, grace=GRACE)


def read(folder: Path, seed: int) -> None:
    """Looks at everything, and writes down which results are there: they may never change."""
    stopped = actors.Stopped()
    dice = random.Random(seed)
    diary = Diary.begin("reader")
    known: set[int] = set()
    own = apsw.Connection(str(folder / "jobs.db"))
    with queue_in(folder) as jobs, contextlib.closing(own):
        while not stopped.wait(dice.uniform(0, 0.05)):
            _look(jobs, diary, dice, known)
            if dice.random() < 0.1:
                with own:
                    own.execute("SELECT count(*) FROM litejobs_job").fetchall()
                    stopped.wait(dice.uniform(0, 0.3))


def _look(jobs: LiteJobs, diary: Diary, dice: random.Random, known: set[int]) -> None:
    for job in jobs.find(state="completed", limit=200):
        if job.id not in known:
            diary.write("saw", job.id, job.result(), time.monotonic_ns())
            known.add(job.id)
    jobs.stats()
    jobs.nodes()
    for job in jobs.find(limit=1):
        jobs.why(job.id)
    if dice.random() < 0.05:
        for finding in jobs.doctor():
            if finding.level == "error":
                diary.write("found", finding.subject, finding.problem)


def finish(folder: Path) -> None:
    """Does what is left, without a schedule that would go on for ever."""
    with queue_in(folder) as jobs:
        while jobs.count(state=(*litejobs.WAITING, "running")):
            for node in NODES:
                jobs.work(2, until="empty", node=node)
