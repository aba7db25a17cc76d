"""An hour of everyday life, in which nothing may grow: three producers, two nodes, one who sits on
a read transaction now and then, one who deletes and compacts, and one who asks by the command line.

Nobody is killed from outside, so each attempt has to be there exactly once. What each process uses
is read from /proc; how much of the WAL is in use stands in the first bytes of the -shm file.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import itertools
import os
import random
import signal
import statistics
import struct
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import attrs

import litejobs
from litejobs import Constant, Context, Job, LiteJobs, Retention, Unique, define

from . import actors
from .actors import Actor, Diary
from .ordeal import Ordeal, Run

PRODUCERS = 3
NODES = {"steady": ("default", "gentle"), "rough": ("default", "rough")}
"""And their queues. Coroutines beside a job whose worker is killed begin again without the loss of
an attempt; they are kept apart, so that here each attempt begins once."""
SOON = Constant(0.2)
TIMEOUT = 90.0
"""Seconds until something that must happen counts as not happening, on a busy machine."""
LONG = {"memory": 30, "descriptors": 30, "threads": 30, "file": 600, "wal": 600}
"""Seconds from which on what grows can be distinguished from what fluctuates."""
MOST = {"memory": 400 * 1024, "descriptors": 120, "threads": 16}
"""What no process may ever have: KiB, and numbers."""
ROOM = {"memory": 3 * 1024, "descriptors": 3, "threads": 1, "file": 8 * 1024, "wal": 8 * 1024}
"""By how much a series may rise beside the tenth that is noise. The file: since metrics of each
minute are kept for a day."""
LARGEST_WAL = 64 * 1024
"""KiB: the limit that litejobs sets, since it is truncated to that when it begins anew."""
EMPTIED = 2_000
"""Frames: the WAL begins anew after 1,000, as soon as nobody reads what is in it."""


# What the jobs do. Each notes in its diary what it began and how it ended.


@define
def small(context: Context[Diary], number: int) -> int:
    context.state.write("begin", context.job.id, context.attempt)
    context.state.write("done", context.job.id)
    return number


@define(timeout=60)
def slow(context: Context[Diary], seconds: float) -> None:
    context.state.write("begin", context.job.id, context.attempt)
    for part in range(4):
        context.progress(part, 4)
        time.sleep(seconds / 4)
    context.state.write("done", context.job.id)


@define
def large(context: Context[Diary], text: str) -> str:
    context.state.write("begin", context.job.id, context.attempt)
    context.state.write("done", context.job.id)
    return text


@define(queue="gentle")
async def waiting(context: Context[Diary], seconds: float) -> None:
    context.state.write("begin", context.job.id, context.attempt)
    await asyncio.sleep(seconds)
    context.state.write("done", context.job.id)


@define
def keyed(context: Context[Diary], name: str) -> str:
    context.state.write("begin", context.job.id, context.attempt)
    context.state.write("done", context.job.id)
    return name


@define(backoff=SOON)
def flaky(context: Context[Diary]) -> None:
    context.state.write("begin", context.job.id, context.attempt)
    if context.attempt == 1:
        raise RuntimeError("as it always is at first")
    context.state.write("done", context.job.id)


@define(backoff=SOON, max_attempts=2)
def hopeless(context: Context[Diary]) -> None:
    context.state.write("begin", context.job.id, context.attempt)
    if context.attempt == 2:
        context.state.write("done", context.job.id)
    raise RuntimeError("as it always is")


@define(queue="rough", backoff=SOON, timeout=0.3)
def late(context: Context[Diary]) -> None:
    context.state.write("begin", context.job.id, context.attempt)
    if context.attempt == 1:
        time.sleep(60)
    context.state.write("done", context.job.id)


@define(queue="rough", backoff=SOON)
def crash(context: Context[Diary]) -> None:
    context.state.write("begin", context.job.id, context.attempt)
    if context.attempt == 1:
        os._exit(3)
    context.state.write("done", context.job.id)


@define
def tick(context: Context[Diary]) -> None:
    context.state.write("ticked", context.job.id)


DEFINITIONS = (small, slow, large, waiting, keyed, flaky, hopeless, late, crash, tick)


def queue_in(folder: Path) -> LiteJobs:
    """The queue that all of them share."""
    jobs = LiteJobs(folder / "jobs.db", state=actors.diary_of_worker)
    jobs.register(*DEFINITIONS)
    return jobs


# Those who take part.


@attrs.define(eq=False)
class Producer:
    """Enqueues a bit of everything, and now and then cancels what it has enqueued."""

    jobs: LiteJobs
    diary: Diary
    dice: random.Random
    retention: Retention
    own: apsw.Connection
    """Its own connection, as an application has one."""
    late_ones: deque[int] = attrs.field(factory=lambda: deque(maxlen=20))

    def one(self) -> None:
        self._tell([small.using(retention=self.retention).enqueue(self.dice.randrange(99))])

    def many(self) -> None:
        bound = [small.using(retention=self.retention).bind(n) for n in range(20)]
        self._tell(self.jobs.enqueue_many(bound))

    def slow(self) -> None:
        self._tell([slow.using(retention=self.retention, priority=-1).enqueue(0.02)])

    def large(self) -> None:
        text = "x" * self.dice.randrange(10_000)
        self._tell([large.using(retention=self.retention).enqueue(text)])

    def waiting(self) -> None:
        self._tell([waiting.using(retention=self.retention).enqueue(0.1)])

    def keyed(self) -> None:
        name = f"key-{self.dice.randrange(5)}"
        self._tell([keyed.using(retention=self.retention, key=name).enqueue(name)])

    def unique(self) -> None:
        unique = Unique(key=f"one-{self.dice.randrange(9)}", scope="active")
        self._tell([small.using(retention=self.retention, unique=unique).enqueue(0)])

    def failing(self) -> None:
        self._tell([flaky.using(retention=self.retention).enqueue()])
        if self.dice.random() < 0.3:
            self._tell([hopeless.using(retention=self.retention).enqueue()])

    def rough(self) -> None:
        body = self.dice.choice((late, crash))
        self._tell([body.using(retention=self.retention).enqueue()])

    def later(self) -> None:
        delay = self.dice.uniform(0.1, 3)
        job = small.using(retention=self.retention, delay=delay).enqueue(1)
        self._tell([job])
        self.late_ones.append(job.id)

    def cancel(self) -> None:
        if self.late_ones:
            id = self.late_ones.popleft()
            self.diary.write("cancelling", id)
            self.jobs.cancel(id)

    def through_own(self) -> None:
        """In a transaction of the application, which it sometimes takes back."""
        self.own.execute("BEGIN IMMEDIATE")
        job = small.using(retention=self.retention, connection=self.own).enqueue(2)
        if self.dice.random() < 0.2:
            self.own.execute("ROLLBACK")
            return
        self.own.execute("COMMIT")
        self._tell([job])

    def _tell(self, jobs: Sequence[Job[Any]]) -> None:
        self.diary.write("enqueued", *[job.id for job in jobs])
        contents = [f"{job.id}:{actors.digest(job.payload)}" for job in jobs if not job.duplicate]
        self.diary.write("content", *contents)

    def act(self) -> None:
        """Does one of these things, some more often than others."""
        deeds = (
            (self.one, 20), (self.many, 8), (self.slow, 6), (self.large, 4), (self.waiting, 8),
            (self.keyed, 12), (self.unique, 10), (self.failing, 6), (self.rough, 0.15),
            (self.later, 8), (self.cancel, 4), (self.through_own, 6),
        )  # fmt: skip
        self.dice.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])[0]()


def produce(folder: Path, seed: int, retention: Retention) -> None:
    stopped = actors.Stopped()
    dice = random.Random(seed)
    own = apsw.Connection(str(folder / "jobs.db"))
    own.set_busy_timeout(30_000)
    own.pragma("wal_autocheckpoint", 0)  # That is left to litejobs.
    with queue_in(folder) as jobs, contextlib.closing(own):
        producer = Producer(jobs, Diary.begin("producer"), dice, retention, own)
        while not stopped.wait(dice.uniform(0, 0.04)):
            producer.act()


def work(folder: Path, name: str) -> None:
    jobs = queue_in(folder)
    often = tick.using(retention=Retention(completed=5))
    jobs.every(1, often, name="tick", misfire="all")
    jobs.work(1, node=name, queues=NODES[name], grace=2)


def sit(folder: Path, seed: int, longest: float) -> None:
    """Keeps a read transaction open for a while, again and again, and notes when."""
    stopped = actors.Stopped()
    dice = random.Random(seed)
    diary = Diary.begin("sitter")
    with contextlib.closing(apsw.Connection(str(folder / "jobs.db"))) as connection:
        while not stopped.wait(dice.uniform(2, 4) * longest):
            with connection:
                connection.execute("SELECT count(*) FROM litejobs_job").fetchall()
                began = time.monotonic()
                stopped.wait(dice.uniform(0.3, 1) * longest)
                diary.write("sat", began, time.monotonic())


def keep(folder: Path, kept: float) -> None:
    """Deletes what has ended some time ago, for those who do not wait for the retention, and
    compacts the file now and then."""
    stopped = actors.Stopped()
    with queue_in(folder) as jobs:
        for turn in range(10**9):
            if stopped.wait(kept / 2):
                return
            before = datetime.now(UTC) - timedelta(seconds=kept)
            jobs.delete(state="failed", finished_before=before)
            jobs.delete(name="keyed", state="completed", finished_before=before)
            if turn % 20 == 19:
                jobs.compact()


def ask(folder: Path, seed: int) -> None:
    """Asks what people ask, by the command line."""
    stopped = actors.Stopped()
    dice = random.Random(seed)
    path = str(folder / "jobs.db")
    questions = (
        ("stats",), ("list", "--limit", "20"), ("list", "--state", "failed"), ("nodes",),
        ("metrics",), ("schedules",), ("queues",), ("doctor",),
    )  # fmt: skip
    while not stopped.wait(dice.uniform(0.5, 4)):
        command, *options = dice.choice(questions)
        with contextlib.redirect_stdout(io.StringIO()):
            status = litejobs.main([command, path, *options])
        if status > 1:  # 1 says that nothing was found, or something.
            raise RuntimeError(f"{command} gave {status}")


def drain(folder: Path) -> None:
    """Runs what is left, without a schedule that would go on for ever."""
    with queue_in(folder) as jobs:
        while jobs.count(state=litejobs.WAITING) or jobs.count(state="running"):
            jobs.work(2, until="empty")


# Those who watch.


@attrs.define(eq=False)
class Watch:
    """What all of them used, as time went by."""

    folder: Path
    series: defaultdict[tuple[str, str], list[float]] = attrs.field(
        factory=lambda: defaultdict(list)
    )
    frames: list[tuple[float, int]] = attrs.field(factory=list)
    """Moments, and how many frames of the WAL were in use."""
    cpu: dict[str, float] = attrs.field(factory=dict)

    def look(self, cast: list[Actor]) -> None:
        for actor in cast:
            self._look_at(actor.role, actor.pid)
            if actor.role in NODES:
                for worker in actors.workers(actor.pid):
                    self._look_at(f"{actor.role}'s worker", worker)
        for what, end in (("file", ""), ("wal", "-wal")):
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(self.folder / f"jobs.db{end}").st_size
                self.series[what, what].append(size / 1024)
        if (frames := frames_in_use(self.folder / "jobs.db-shm")) is not None:
            self.frames.append((time.monotonic(), frames))

    def _look_at(self, role: str, pid: int) -> None:
        if used := actors.usage(pid):
            for what in ("memory", "descriptors", "threads"):
                self.series[role, what].append(getattr(used, what))
            self.cpu[role] = used.cpu


def frames_in_use(shm: Path) -> int | None:
    """How many frames the WAL has that are not to be overwritten yet: "mxFrame" in SQLite's
    description of the WAL index. (This process has no connection whose locks it could lose.)"""
    with contextlib.suppress(FileNotFoundError):
        head = shm.read_bytes()[:20]
        if len(head) == 20:
            return int(struct.unpack("=I", head[16:20])[0])
    return None


def soak(run: Run) -> None:
    """Eight processes, mixed load: memory, descriptors and the WAL stay flat, nothing is lost."""
    if not actors.AVAILABLE:
        run.counts["times skipped, for want of Linux"] += 1
        return
    watch = Watch(run.folder)
    cast = begin(run)
    try:
        live(run, cast, watch)
        stop(run, cast)
        finish(run)
    finally:
        for actor in cast:
            actor.kill()
    check_series(run, watch)
    check_wal(run, watch)
    check_file(run)
    check_diaries(run)
    check_contents(run)


def begin(run: Run) -> list[Actor]:
    """The eight."""
    with queue_in(run.folder) as jobs:
        jobs.count()  # Now the file is there.
    kept = max(1.0, min(60.0, run.count / 20))
    retention = Retention(completed=kept, cancelled=kept, failed=4 * kept)
    longest = max(0.5, min(5.0, run.count / 60))
    seeds = [run.dice.getrandbits(32) for _ in range(PRODUCERS + 2)]
    acts: dict[str, Callable[[], None]] = {
        **{name: functools.partial(work, run.folder, name) for name in NODES},
        "sitter": functools.partial(sit, run.folder, seeds.pop(), longest),
        "keeper": functools.partial(keep, run.folder, 2 * kept),
        "asker": functools.partial(ask, run.folder, seeds.pop()),
    }
    for number, seed in enumerate(seeds, 1):
        acts[f"producer {number}"] = functools.partial(produce, run.folder, seed, retention)
    return [actors.start(run.folder, role, act) for role, act in acts.items()]


def live(run: Run, cast: list[Actor], watch: Watch) -> None:
    """Lets them live as long as they should, and looks at them."""
    end = time.monotonic() + run.count
    pause = max(0.25, min(2.0, run.count / 100))
    while (left := end - time.monotonic()) > 0:
        for actor in cast:
            if actor.exit_code is not None:
                run.violated(f"{actor.role} ended with {actor.exit_code}: {actor.complaint}")
        watch.look(cast)
        time.sleep(min(pause, left))
    run.counts["looks"] = len(watch.frames)
    used = sum(watch.cpu.values())
    run.counts["% of a core used"] = round(100 * used / run.count)


def stop(run: Run, cast: list[Actor]) -> None:
    """Stops all, and the nodes when nobody is left who could be killed by them: a job that ends
    with its node begins again without the loss of an attempt."""
    _stop(run, [actor for actor in cast if actor.role not in NODES])
    with queue_in(run.folder) as jobs:
        ended = actors.eventually(lambda: not _rough_ones(jobs), TIMEOUT)
        run.expect(ended, f"{_rough_ones(jobs)} jobs of the queue rough do not end")
    _stop(run, [actor for actor in cast if actor.role in NODES])


def _rough_ones(jobs: LiteJobs) -> int:
    return jobs.count(queue="rough", state=("pending", "running", "retrying"))


def _stop(run: Run, cast: list[Actor]) -> None:
    for actor in cast:
        actor.signal(signal.SIGTERM)
    for actor in cast:
        run.expect(actor.ended(TIMEOUT), f"{actor.role} does not stop")
        run.expect(actor.exit_code == 0, f"{actor.role} failed: {actor.complaint}")
        if actor.role in NODES and "Traceback" in actor.complaint:
            run.violated(f"{actor.role} complains: {actor.complaint}")


def finish(run: Run) -> None:
    """Has what is left run."""
    last = actors.start(run.folder, "last", functools.partial(drain, run.folder))
    try:
        run.expect(last.ended(TIMEOUT), f"what is left does not end: {last.complaint}")
        run.expect(last.exit_code == 0, f"the last node failed: {last.complaint}")
    finally:
        last.kill()


# What is to be true in the end.


def check_series(run: Run, watch: Watch) -> None:
    """Nothing may ever be enormous; and once it is warm nothing may rise."""
    for (who, what), values in sorted(watch.series.items()):
        highest = max(values)
        if what in MOST:
            run.expect(highest <= MOST[what], f"{who} had {highest:,.0f} {what}")
        if run.count >= LONG[what]:
            third = len(values) // 3
            middle, last = (statistics.median(values[n * third : (n + 1) * third]) for n in (1, 2))
            limit = middle * 1.1 + ROOM[what]
            run.expect(last <= limit, f"{what} of {who} rose from {middle:,.0f} to {last:,.0f}")
            if what != "threads":
                run.counts[f"{what} of {who} (then {last:,.0f})"] = round(middle)
    for what, unit in (("memory", "KiB of the largest process"), ("descriptors", "descriptors")):
        run.counts[unit] = round(max(max(v) for (_, w), v in watch.series.items() if w == what))
    run.counts["KiB of the file"] = round(max(watch.series["file", "file"]))


def check_wal(run: Run, watch: Watch) -> None:
    """It never outgrows its limit by more than what one pinning adds, and it begins anew after
    each: before the next one, if there was the time."""
    highest = max(watch.series["wal", "wal"])
    run.counts["KiB of the WAL"] = round(highest)
    run.expect(highest <= LARGEST_WAL, f"the WAL had {highest:,.0f} KiB")
    pins = [(float(began), float(ended)) for _, began, ended in actors.entries(run.folder, "sit")]
    run.counts["pinnings"] = len(pins)
    run.counts["frames in the WAL"] = max(frames for _, frames in watch.frames)
    for (_, ended), (following, _) in itertools.pairwise(pins):
        seen = [frames for moment, frames in watch.frames if ended + 1 < moment < following]
        if len(seen) >= 3:
            run.expect(min(seen) < EMPTIED, f"the WAL kept {min(seen):,} frames after a pinning")
            run.counts["times the WAL came back"] += 1


def check_file(run: Run) -> None:
    """Integrity, and what the doctor says."""
    with queue_in(run.folder) as jobs:
        broken = [f"{f.subject}: {f.problem}" for f in jobs.doctor() if f.level == "error"]
        run.expect(not broken, f"the doctor found: {'; '.join(broken)}")
        left = jobs.count(state=litejobs.WAITING) + jobs.count(state="running")
        run.expect(not left, f"{left} jobs are left although a node ended because all was done")
    with contextlib.closing(apsw.Connection(str(run.folder / "jobs.db"))) as connection:
        verdict = connection.pragma("integrity_check")
        run.expect(verdict == "ok", f"integrity_check says: {verdict}")


def check_diaries(run: Run) -> None:
    """All that was acknowledged ran to its end, and no attempt was made twice."""
    enqueued = {int(id) for entry in noted(run, "producer", "enqueued") for id in entry}
    cancelled = {int(id) for entry in noted(run, "producer", "cancelling") for id in entry}
    done = [int(id) for (id,) in noted(run, "worker", "done")]
    begun = [(int(id), int(attempt)) for id, attempt in noted(run, "worker", "begin")]
    ticks = [int(id) for (id,) in noted(run, "worker", "ticked")]
    run.counts["jobs"], run.counts["ticks"] = len(enqueued), len(ticks)
    run.counts["attempts"] = len(begun) + len(ticks)
    for what, them in (("ended", done), ("begun", begun), ("ticked", ticks)):
        twice = len(them) - len(set(them))
        run.expect(not twice, f"{twice} were {what} twice, of {len(them):,}")
    lost = enqueued - set(done) - cancelled
    run.expect(not lost, f"{len(lost)} acknowledged jobs never ended, such as {min(lost or {0})}")
    expected = run.count - 3 - run.count // 10
    run.expect(len(ticks) >= expected, f"{len(ticks)} ticks in {run.count} s")


def check_contents(run: Run) -> None:
    """What is left in the file is what was enqueued, and what its handler gave back."""
    known = dict(
        word.split(":") for entry in noted(run, "producer", "content") for word in entry if word
    )
    given_back = {"small": "number", "large": "text", "keyed": "name"}
    with queue_in(run.folder) as jobs:
        for job in jobs.iterate():
            if str(job.id) in known:
                same = actors.digest(job.payload) == known[str(job.id)]
                run.expect(same, f"job {job.id} has a payload that nobody enqueued: {job.payload}")
                run.counts["contents"] += 1
            if job.state == "completed" and job.name in given_back:
                expected = job.payload[given_back[job.name]]
                run.expect(job.result() == expected, f"job {job.id} has another result")


def noted(run: Run, role: str, verb: str) -> Iterator[list[str]]:
    """What follows this word in the diaries of a role."""
    return (words for first, *words in actors.entries(run.folder, role) if first == verb)


ORDEALS = (Ordeal(run=soak, quick=4, full=3600, unit="seconds"),)
