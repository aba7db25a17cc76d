"""A wall clock that jumps in a running node, and clocks that change in fifty zones.

Two nodes work while the clock that they go by is turned by up to a day, forward and back; now and
then one of them is stopped meanwhile, as a laptop is that sleeps. Then two connections fire the
schedules of one file around changes of the clock, in uneven steps and back, and all ticks are held
against a walk through real time that knows nothing of litejobs: that of `test_schedules`.

A clock that was ahead has fired the ticks of those hours; when it is turned back they do not come
again. What was ready stays ready, and what had expired by a wrong clock stays cancelled.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
import zoneinfo
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import attrs
from programs import Programs, clocked, lines
from test_schedules import HOUR, MINUTE, ZONES, Expression, changes, expected, walk

from litejobs import (
    File,
    Job,
    LiteJobs,
    OptionError,
    State,
    Store,
    TurnedClock,
    from_micros,
    to_micros,
)

from .ordeal import Ordeal, Run

PROMPT = 20.0
"""Seconds in which a node must have done what is due, on a machine with much to do."""
SECOND = 10**6
DAY = 24 * HOUR
TICK = timedelta(minutes=20)
UNFINISHED: tuple[State, ...] = ("scheduled", "pending", "running", "retrying")


# Turned while nodes run


@attrs.define(eq=False)
class Turned:
    """Two nodes and the clock that they go by."""

    run: Run
    programs: Programs = attrs.field(init=False)
    jobs: LiteJobs = attrs.field(init=False)
    nodes: list[subprocess.Popen[str]] = attrs.field(init=False)
    latest: int = 0
    """The latest that the clock has ever shown."""
    highest: list[tuple[float, int]] = attrs.field(factory=list)
    """The same by the monotonic clock, at each jump: until then it was no later."""
    began: int = 0

    def __attrs_post_init__(self) -> None:
        folder = self.run.folder / "turned"
        folder.mkdir()
        offset = folder / "offset"
        offset.write_bytes(bytes(8))
        os.environ[clocked.OFFSET] = str(offset)
        self.programs = Programs(folder)
        self.jobs = clocked.program(folder / "jobs.db")
        self.began = self.latest = clocked.clock()
        tick = clocked.tick.bind(str(self.log))
        self.jobs.schedule("every").set(TICK, tick, misfire="all")
        self.jobs.schedule("cron").set("7,37 * * * *", tick, misfire="all")
        self.jobs.schedule("lazy").set("*/5 * * * *", tick, misfire="once")
        path = folder / "jobs.db"
        self.nodes = [self.programs.start("-m", "programs.clocked", path) for _ in range(2)]
        self.wait_until("both nodes are there", lambda: len(self.jobs.nodes()) == 2)

    @property
    def log(self) -> Path:
        return self.programs.folder / "log.txt"

    # Turn

    def turn(self, micros: int) -> None:
        """Turns the clock; remembers how late it had been until then."""
        self.latest = max(self.latest, clocked.clock())
        self.highest.append((time.monotonic(), self.latest))
        clocked.turn(micros)
        self.latest = max(self.latest, clocked.clock())
        self.run.counts["jumps"] += 1

    def jump(self) -> None:
        """By anything up to a day, forward a little more often than back."""
        dice = self.run.dice
        size = dice.choice((MINUTE, HOUR, HOUR, DAY, DAY, 25 * HOUR))
        self.turn(int(dice.uniform(-0.8, 1.0) * size))

    @contextlib.contextmanager
    def perhaps_asleep(self) -> Iterator[None]:
        """Stops one node with all its processes meanwhile, now and then; or only its head."""
        if self.run.dice.random() < 0.7:
            yield
            return
        node = self.run.dice.choice(self.nodes).pid
        whole = self.run.dice.random() < 0.5
        processes = [*_session(node)] if whole else [node]
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
        # The other one has time to find that this one is silent.
        time.sleep(1.2)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.run.counts["sleeps"] += 1

    # Work

    def enqueue(self) -> None:
        """Some of everything; most of it for later, by the clock on the wall."""
        dice, log = self.run.dice, str(self.log)
        for _ in range(dice.randint(1, 4)):
            delay = dice.choice((0, 0, dice.uniform(0, 3600), dice.uniform(0, 2 * 86_400)))
            clocked.once.using(delay=delay).enqueue(log)
        clocked.third_time.using(delay=dice.choice((0, 1800))).enqueue(log)
        if dice.random() < 0.5:
            clocked.patient.enqueue(log, dice.uniform(0.05, 0.4))
        if dice.random() < 0.3:
            clocked.late.enqueue(log)
        expires = dice.choice((60, 3600, 86_400))
        clocked.once.using(queue="nobody's", expires=expires).enqueue(log)

    def expect_all_that_is_due(self, what: str) -> None:
        """Nothing that is due by the clock is left, soon after it was turned."""
        self.wait_until(f"{what}: all that is due has run", lambda: not self._overdue())

    def _overdue(self) -> list[tuple[int, str, str]]:
        now = from_micros(clocked.clock())
        late = [
            entry
            for entry in self.jobs.schedules()
            if entry.next_at is None or entry.next_at <= now
        ]
        left = self.jobs.find(state=UNFINISHED, queue="default", limit=10_000)
        left += self.jobs.find(state="pending", queue="nobody's", limit=10_000)
        return [
            *((0, schedule.name, schedule.state) for schedule in late),
            *((job.id, job.name, job.state) for job in left if not _waits(job, now)),
        ]

    def wait_until(self, what: str, come: object) -> None:
        """A deadline for what must come to pass."""
        assert callable(come)
        give_up = time.monotonic() + PROMPT
        while not come():
            for node in self.nodes if hasattr(self, "nodes") else ():
                if (code := node.poll()) is not None:
                    self.run.violated(f"a node ended, {code}: {self._errors()}")
            if time.monotonic() > give_up:
                self.run.violated(f"{what}: not within {PROMPT} s: {self._overdue()[:20]}")
            time.sleep(0.01)

    def _errors(self) -> str:
        return self.programs.errors.read_text(errors="replace")[-2000:]

    # End and look

    def close(self) -> None:
        for node in self.nodes:
            for pid in _session(node.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.programs.close()
        self.jobs.close()

    def look(self) -> None:
        """Holds each job, and each tick, against the promises."""
        runs = Counter[tuple[int, int]]()
        began: dict[tuple[int, int], float] = {}
        for line in lines(self.log):
            id, attempt, at = line.split()
            runs[int(id), int(attempt)] += 1
            began[int(id), int(attempt)] = float(at)
        twice = {key: times for key, times in runs.items() if times > 1}
        self.run.expect(not twice, f"(job, attempt) that ran more than once: {twice}")
        for job in self.jobs.iterate():
            self._look_at(job, runs, began)
        self._look_at_the_ticks()

    def _look_at(
        self, job: Job, runs: Counter[tuple[int, int]], began: dict[tuple[int, int], float]
    ) -> None:
        kinds = [error.kind for error in job.errors]
        summary = f"job {job.id} ({job.name}): {job.state}, attempt {job.attempt}, {kinds}"
        if job.queue != "default":
            self._look_at_one_that_expires(job, summary)
            return
        attempts, failures = {
            "third_time": (3, ["exception", "exception"]),
            "late": (1, ["timeout"]),
        }.get(job.name, (1, []))
        state = "failed" if job.name == "late" else "completed"
        self.run.expect((job.state, job.attempt) == (state, attempts), f"{summary}, not {state}")
        self.run.expect(kinds == failures, f"{summary}, not {failures}")
        for attempt in range(1, attempts + 1):
            self.run.expect(runs[job.id, attempt], f"{summary}: attempt {attempt} left no trace")
        first = to_micros(job.enqueued_at) if job.name == "third_time" else to_micros(job.run_at)
        shown = self._highest_at(began[job.id, 1])
        early = (first - shown) / SECOND
        self.run.expect(early <= 0.1, f"{summary}: it began {early:.1f} s before its time")
        self.run.counts[f"jobs {job.state}"] += 1

    def _look_at_one_that_expires(self, job: Job, summary: str) -> None:
        expires = to_micros(job.expires_at) if job.expires_at else 0
        if job.state == "cancelled":
            self.run.counts["jobs expired"] += 1
            self.run.expect(
                self.latest >= expires, f"{summary}: it expires at {from_micros(expires)}"
            )
            return
        self.run.expect(job.state == "pending", f"{summary}: nobody serves its queue")
        self.run.expect(clocked.clock() < expires, f"{summary}: not cancelled when it had expired")

    def _highest_at(self, moment: float) -> int:
        """The latest that the clock had shown by a moment of the monotonic clock."""
        for until, latest in self.highest:
            if moment <= until:
                return latest
        return self.latest

    def _look_at_the_ticks(self) -> None:
        ticks = [(job.schedule, job.run_at) for job in self.jobs.iterate(name="tick")]
        twice = [tick for tick, times in Counter(ticks).items() if times > 1]
        self.run.expect(not twice, f"ticks that fired more than once: {twice[:5]}")
        for name in ("every", "cron"):
            # A clock that was turned back to before it was made gives some earlier ones, too.
            made = from_micros(self.began)
            times = sorted(at for schedule, at in ticks if schedule == name and at > made)
            pace = TICK if name == "every" else timedelta(minutes=30)
            gaps = [f"{a}, {b - a}" for a, b in itertools.pairwise(times) if b - a != pace]
            self.run.expect(not gaps, f"{name}: ticks were left out after {gaps[:5]}")
            behind = from_micros(self.latest) - times[-1]
            self.run.expect(behind < pace, f"{name}: the last tick is {behind} old")
        self.run.counts["ticks"] += len(ticks)


def _waits(job: Job, now: datetime) -> bool:
    """Whether a job is not due yet, or has not expired."""
    if job.queue != "default":
        return job.expires_at is not None and job.expires_at > now
    return job.state in ("scheduled", "retrying") and job.run_at > now


def _session(leader: int) -> Iterator[int]:
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(place.read_text(errors="replace").rpartition(")")[2].split()[3]) == leader:
                yield int(place.parent.name)


def turn_while_nodes_run(run: Run) -> None:
    """Turns the clock as often as given, with work for every jump."""
    turned = Turned(run)
    try:
        for number in range(run.count):
            turned.enqueue()
            with turned.perhaps_asleep():
                turned.jump()
            turned.expect_all_that_is_due(f"jump {number}")
        # What was put off for days comes when they have passed, an hour's wait after the other.
        for _ in range(3):
            turned.turn(3 * DAY)
            turned.expect_all_that_is_due("at the end")
        turned.look()
    finally:
        turned.close()


# Changes of the clock


def fire_around_changes(run: Run, zones: int) -> None:
    """Two connections fire the schedules of one file around changes of the clock."""
    clock = TurnedClock()
    path = run.folder / "zones.db"
    with LiteJobs(path, durability="fast", clock=clock) as jobs:
        jobs.register(clocked.tick)
        stores = [Store(File(path, "fast", clock=clock)) for _ in range(2)]
        try:
            for name, year in run.dice.sample(ZONES, min(zones, len(ZONES))):
                for change in changes(zoneinfo.ZoneInfo(name), year, year):
                    hold(run, jobs, stores, clock, name, change)
                    run.counts["changes of the clock"] += 1
        finally:
            for store in stores:
                store.file.close()


def hold(
    run: Run, jobs: LiteJobs, stores: list[Store], clock: TurnedClock, zone: str, change: int
) -> None:
    """Holds the ticks of some schedules around one change against a walk through real time."""
    moments = list(walk(zoneinfo.ZoneInfo(zone), change - 4 * HOUR, change + 4 * HOUR, MINUTE))
    near = [wall for moment in moments for wall in (moment.wall, *moment.skipped)]
    clock.turn_to(from_micros(moments[0].at - 1))
    schedules: dict[str, list[int]] = {}
    for number in range(6):
        expression = Expression.drawn(run.dice, near, seconds=False)
        name = f"{zone} {change} {number}"
        with contextlib.suppress(OptionError):  # There is no such day.
            work = clocked.tick.bind("")
            jobs.schedule(name).set(expression.text, work, timezone=zone, misfire="all")
            schedules[name] = expected(expression, moments)
    step_through(run, stores, clock, moments[-1].at)
    ticks = Counter((job.schedule, to_micros(job.run_at)) for job in jobs.iterate(name="tick"))
    for name, want in schedules.items():
        got = {
            at: times
            for (schedule, at), times in ticks.items()
            if schedule == name and at >= moments[0].at
        }
        rule = jobs.schedule(name).get().expression
        run.expect(
            got == dict.fromkeys(want, 1),
            f"{rule!r} in {name}: {[from_micros(at).isoformat() for at in got]}, {[*got.values()]},"
            f" and not {[from_micros(at).isoformat() for at in want]}",
        )
        run.counts["ticks around them"] += len(want)
        jobs.schedule(name).remove()
    jobs.delete(name="tick")


def step_through(run: Run, stores: list[Store], clock: TurnedClock, end: int) -> None:
    """Turns the clock in uneven steps, and back; both fire at each of them, at once."""
    now = to_micros(clock.now)
    while now < end:
        now = min(end, now + int(run.dice.choice((1, 60, 1800, 5400)) * SECOND * run.dice.random()))
        clock.turn_to(from_micros(now))
        fire_together(run, stores, clock)
        if run.dice.random() < 0.3:
            clock.turn_to(from_micros(now - int(run.dice.uniform(0, 3 * HOUR))))
            fire_together(run, stores, clock)
            clock.turn_to(from_micros(now))


def fire_together(run: Run, stores: list[Store], clock: TurnedClock) -> None:
    """As the duty of two nodes does it, until nothing is due any more."""
    start = threading.Barrier(len(stores))
    failed: list[BaseException] = []

    def fire(store: Store) -> None:
        try:
            start.wait()
            while store.schedules.fire(clock())[0]:
                pass
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=fire, args=(store,), daemon=True) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PROMPT)
    run.expect(not failed, f"firing failed: {failed}")
    run.expect(not any(thread.is_alive() for thread in threads), "firing does not end")


def clocks(run: Run) -> None:
    """Shows that no job and no tick comes twice, or is lost, when the clock is turned."""
    if not Path("/proc/self/stat").exists():
        run.counts["skipped: there is no /proc here"] += 1
        return
    turn_while_nodes_run(run)
    fire_around_changes(run, run.count)


ORDEALS = (Ordeal(run=clocks, quick=12, full=300, unit="jumps"),)
