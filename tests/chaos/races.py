"""Several processes do the same thing to one file at the same moment.

The director says when, a moment ahead; each process waits for it in a loop, so that all of them
start within microseconds of each other.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs

from litejobs import (
    Claimed,
    Exchanged,
    LiteJobs,
    Ready,
    Report,
    Settlement,
    State,
    TurnedClock,
    Unique,
    to_micros,
)

from .older import older_file
from .ordeal import Ordeal, Run

RACERS = 4
AHEAD = 0.002
"""Seconds until all start; long enough for each to have read its line."""
DEADLINE = 60.0
FOR_ONE_FILE = 500
"""Races: the director looks at all jobs after each."""

FAR = datetime(1990, 1, 1, tzinfo=UTC)
"""As a length of time: beyond all retention."""


@attrs.define(eq=False)
class Racer:
    """One process: its queue, and the node as which it claims."""

    number: int
    path: Path
    clock: TurnedClock = attrs.field(factory=TurnedClock)
    jobs: LiteJobs = attrs.field(init=False)
    node: int = 0
    mine: list[Claimed] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.open(self.path)

    def open(self, path: Path) -> None:
        """Another file; nothing is opened yet."""
        self.jobs = LiteJobs(path, durability="fast", clock=self.clock)

        @self.jobs.define
        def note(n: int) -> None:
            """What is raced for."""

        self.node = 0

    @property
    def note(self) -> Any:
        return self.jobs.registry.named("note")

    def exchange(self, settlements: Sequence[Settlement]) -> Exchanged:
        """What a node does in its turn: settles, and claims everything that is ready."""

        def all_of_it(ready: Ready) -> list[int]:
            while not settlements and ready.peek():
                next(ready)
            return ready.taken

        subscription = self.jobs._subscription(None, f"racer {self.number}")
        if not self.node:
            known = self.jobs.registry.listing()
            self.node = self.jobs.store.nodes.join(subscription.node, 0, 1, subscription, known)
        return self.jobs.store.exchange(settlements, self.node, all_of_it, subscription)

    def claim(self) -> list[int]:
        """Claims everything, and keeps it in hand."""
        self.mine = self.exchange(()).claimed
        return [job.id for job in self.mine]

    def settle(self, ids: Collection[int], state: State) -> Exchanged:
        """Settles what it has in hand of these."""
        now = self.clock()
        held = [job for job in self.mine if job.id in ids]
        report = Report(now, now, 0, state)
        return self.exchange([(job, report) for job in held])

    def die(self) -> int:
        """Its node ends as if it were killed; gives which it was."""
        assert self.node
        self.jobs.store.nodes.release_lock(self.node)
        node, self.node = self.node, 0
        return node


# What they race for: each gives what the director needs to judge.


def enqueue_unique(racer: Racer, key: str) -> tuple[int, bool]:
    """One of them enqueues, the others get its id."""
    job = racer.note.using(unique=Unique(key=lambda n: key)).enqueue(racer.number)
    return job.id, job.duplicate


def enqueue_keyed(racer: Racer, key: str) -> int:
    """All enqueue jobs of one key."""
    return int(racer.note.using(key=key).enqueue(racer.number).id)


def fire(racer: Racer, now: int) -> int:
    """Fires the schedules that are due."""
    return racer.jobs.store.schedules.fire(now)[0]


def claim(racer: Racer, _: None) -> list[int]:
    """Claims everything that is ready."""
    return racer.claim()


def settle_or_cancel(racer: Racer, id: int) -> int:
    """Who holds the job completes it, while the others cancel it."""
    if any(job.id == id for job in racer.mine):
        return racer.settle([id], "completed").late
    return racer.jobs.cancel(id=id).moved


def retry_or_prune(racer: Racer, now: int) -> int:
    """One half prunes what the other half tries again."""
    if racer.number % 2:
        return racer.jobs.store.prune(now)
    return racer.jobs.retry(state="failed").moved


def rescue(racer: Racer, node: int) -> int:
    """Takes over what a dead node held."""
    return len(racer.jobs.store.nodes.rescue(node))


def open_another(racer: Racer, path: Path) -> int:
    """Opens a file and enqueues."""
    if racer.node:
        racer.die()
    racer.jobs.close()
    racer.open(path)
    return int(racer.note.enqueue(racer.number).id)


DEEDS: dict[str, Callable[[Racer, Any], Any]] = {
    deed.__name__: deed
    for deed in (
        enqueue_unique, enqueue_keyed, fire, claim, settle_or_cancel, retry_or_prune, rescue,
        open_another,
    )
}  # fmt: skip


def race(line: Connection, number: int, path: Path) -> None:
    """The life of a racer: it is given a deed, a moment and what it is about, and answers."""
    racer = Racer(number, path)
    with contextlib.suppress(EOFError):
        while True:
            name, start, about = line.recv()
            while time.monotonic() < start:
                pass
            try:
                answer = DEEDS[name](racer, about)
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            line.send(answer)


@attrs.define(eq=False)
class Director:
    """Has them race, and judges. It touches the file only while they wait."""

    run: Run
    lines: list[Connection]
    own: Racer
    serial: Iterator[int] = attrs.field(factory=itertools.count)

    def start(self, name: str, about: Any) -> list[Any]:
        """Has all do the same; what they answer."""
        start = time.monotonic() + AHEAD
        for line in self.lines:
            line.send((name, start, about))
        return [self._answer(name, line) for line in self.lines]

    def _answer(self, name: str, line: Connection) -> Any:
        self.run.expect(line.poll(DEADLINE), f"{name} took more than {DEADLINE:.0f} s")
        try:
            answer = line.recv()
        except EOFError:
            self.run.violated(f"a process died in {name}")
        self.run.expect(not isinstance(answer, str), f"{name}: {answer}")
        return answer

    def sound(self) -> None:
        """Nothing is broken, and no number is wrong."""
        wrong = [found for found in self.own.jobs.doctor() if found.level == "error"]
        self.run.expect(not wrong, f"the doctor says: {wrong}")

    def enqueue(self, count: int) -> list[int]:
        """Jobs that are ready, with nothing else ready beside them."""
        while rest := self.own.claim():
            self.own.settle(rest, "completed")
        return [job.id for job in self.own.jobs.enqueue_many(map(self.own.note.bind, range(count)))]

    def unique_keys(self) -> None:
        """One job for a key."""
        done = self.start("enqueue_unique", f"unique {next(self.serial)}")
        made = {id for id, duplicate in done if not duplicate}
        returned = {id for id, _ in done}
        self.run.expect(len(made) == 1 and returned == made, f"for one unique key: {done}")

    def keys(self) -> None:
        """One job of a key is ready, the others are blocked."""
        ids = self.start("enqueue_keyed", f"key {next(self.serial)}")
        states = sorted(self.own.jobs.get(id).state for id in ids)
        expected = ["blocked"] * (RACERS - 1) + ["pending"]
        self.run.expect(states == expected, f"with one key: {states}")

    def ticks(self) -> None:
        """One job for a tick."""
        self.own.clock.turn(60)
        before = self.own.jobs.count(schedule="each minute")
        fired = self.start("fire", self.own.clock())
        more = self.own.jobs.count(schedule="each minute") - before
        self.run.expect(sum(fired) == more == 1, f"one tick: {fired} fired, {more} jobs")

    def claims(self) -> None:
        """A job goes to one; and what is settled while it is cancelled is completed."""
        ids = self.enqueue(20)
        claimed = [id for taken in self.start("claim", None) for id in taken]
        self.run.expect(sorted(claimed) == ids, f"of {ids}, these were claimed: {claimed}")
        id = self.run.dice.choice(ids)
        self.start("settle_or_cancel", id)
        job = self.own.jobs.get(id)
        self.run.expect(job.state == "completed", f"completed while it was cancelled: {job}")

    def retries(self) -> None:
        """A failed job is pruned or tried again, with all that belongs to it."""
        ids = self.enqueue(10)
        self.own.claim()
        self.own.settle(ids, "failed")
        self.start("retry_or_prune", self.own.clock() + to_micros(FAR))
        left = [job.state for job in self.own.jobs.find(id=ids)]
        self.run.expect(set(left) <= {"pending"}, f"pruned and tried again: {left}")

    def rescues(self) -> None:
        """What a node held that died comes back once, and its attempt is not counted."""
        ids = self.enqueue(10)
        self.own.claim()
        node = self.own.die()
        # All may be turned away at once: who asks for the lock keeps others from having it.
        for _ in range(10):
            rescued = self.start("rescue", node)
            if any(rescued):
                break
            self.run.counts["rescues that were turned away"] += 1
        left = {(job.state, job.attempt, len(job.errors)) for job in self.own.jobs.find(id=ids)}
        self.run.expect(sum(rescued) == 10, f"of 10 jobs, these were rescued: {rescued}")
        self.run.expect(left == {("pending", 0, 1)}, f"the rescued ones: {left}")

    def openings(self) -> None:
        """A file that does not exist, or has an older schema, is made once."""
        path = self.own.path.with_name(f"{next(self.serial)}.db")
        if self.run.dice.random() < 0.5:
            older_file(path)
        ids = self.start("open_another", path)
        self.run.expect(sorted(ids) == [*range(1, RACERS + 1)], f"in a new file: {ids}")
        with LiteJobs(path) as jobs:
            wrong = [found for found in jobs.doctor() if found.level == "error"]
            self.run.expect(not wrong and jobs.count() == RACERS, f"of {jobs.count()}: {wrong}")
        self.start("open_another", self.own.path)


RACES = (
    Director.unique_keys, Director.keys, Director.ticks, Director.claims, Director.retries,
    Director.rescues, Director.openings,
)  # fmt: skip


@contextlib.contextmanager
def racers(path: Path) -> Iterator[list[Connection]]:
    """Processes that wait for orders; they end with their pipes."""
    spawning = multiprocessing.get_context("spawn")
    pairs = [spawning.Pipe() for _ in range(RACERS)]
    started = []
    for number, (_, theirs) in enumerate(pairs):
        process = spawning.Process(target=race, args=(theirs, number, path), daemon=True)
        process.start()
        theirs.close()
        started.append(process)
    try:
        yield [ours for ours, _ in pairs]
    finally:
        for (ours, _), process in zip(pairs, started, strict=True):
            ours.close()
            process.join(5)
            process.kill()


def races(run: Run) -> None:
    """The second one learns it: unique keys, keys, ticks, claims, rescues, prunes, openings."""
    for first in range(0, run.count, FOR_ONE_FILE):
        path = run.folder / f"from-{first}" / "jobs.db"
        path.parent.mkdir()
        own = Racer(RACERS, path)
        own.jobs.schedule("each minute").set(timedelta(minutes=1), own.note.bind(0))
        with racers(path) as lines:
            race_on(Director(run, lines, own), min(FOR_ONE_FILE, run.count - first))
        own.jobs.close()


def race_on(director: Director, number: int) -> None:
    """So many races for one file."""
    for done in range(number):
        race = director.run.dice.choice(RACES)
        race(director)
        director.run.counts[race.__name__] += 1
        if done % 50 == 0:
            director.sound()
    director.sound()


ORDEALS = (Ordeal(races, quick=200, full=20_000, unit="races"),)
