"""Jobs that misbehave, at random among many more that do not.

They are `programs.misdeeds`: each says how it has to end. A node runs them in workers of its own,
where all is allowed; then as coroutines and in threads, where those run that need no process of
their own. Last come a few that spoil their worker for whoever runs there next, which nobody can
undo: there it is only said that the node goes on, and that all come to an end.

What is not promised: a process that has left its worker's group and session, as programs do that
become daemons, stays; and a coroutine shares its worker with others, whose attempts it may cost.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from programs import Programs, alive, lines, misdeeds
from programs.misdeeds import Misdeed

from litejobs import Bound, Job, LiteJobs, ResultError

from .ordeal import Ordeal, Run

STALL = 20.0
"""Seconds in which some job must end, however busy the machine is."""
GRACE = 0.2


@attrs.define(eq=False)
class Lot:
    """A node with its file, and what it is given to do."""

    run: Run
    name: str
    options: tuple[str, ...]
    strict: bool = True
    """Whether the good ones must need one attempt, and run once."""
    good: int = 0
    given: dict[int, Misdeed] = attrs.field(factory=dict)
    """Those that misbehave, by id of the job."""
    numbers: dict[int, int] = attrs.field(factory=dict)
    """What the good ones have to give, by id."""
    programs: Programs = attrs.field(init=False)
    jobs: LiteJobs = attrs.field(init=False)
    node: subprocess.Popen[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        folder = self.run.folder / self.name
        folder.mkdir()
        self.programs = Programs(folder)
        self.jobs = LiteJobs(folder / "jobs.db", durability="fast")
        self.jobs.register(*misdeeds.DEFINITIONS)
        options = ("--module", "misdeeds", "--grace", str(GRACE), *self.options)
        self.node = self.programs.node(folder / "jobs.db", *options)

    @property
    def notes(self) -> Path:
        """Where the good ones say that they ran."""
        return self.programs.folder / "good.txt"

    @property
    def left(self) -> Path:
        """Where the others say whom they have left behind."""
        return self.programs.folder / "left.txt"

    # Enqueue

    def enqueue(self, bad: list[Misdeed], good: int) -> None:
        """All that there is to do, mixed, in several transactions while the node works."""
        self.good = good
        work: list[Misdeed | int] = [*bad, *range(good)]
        self.run.dice.shuffle(work)
        while work:
            size = self.run.dice.randint(1, 2 * max(50, len(work) // 8))
            part, work = work[:size], work[size:]
            made = [self._bound(what) for what in part]
            for what, job in zip(part, self.jobs.enqueue_many(made), strict=True):
                if isinstance(what, Misdeed):
                    self.given[job.id] = what
                else:
                    self.numbers[job.id] = what
        self.run.counts["bad jobs"] += len(bad)
        self.run.counts["good jobs"] += good

    def _bound(self, what: Misdeed | int) -> Bound[Any]:
        dice = self.run.dice
        # A hog may take the interpreter in the midst of one: against that only a time-out helps.
        within = STALL / 4 if self.name == "spoilt" else None
        if isinstance(what, Misdeed):
            attempts, priority = dice.choice((1, 1, 2)), dice.randint(-1, 1)
            bound = what.bind(str(self.left)).using(max_attempts=attempts, priority=priority)
            return bound if within is None else bound.using(timeout=within)
        aside = self.name == "coroutines"
        definition = misdeeds.good_aside if aside else misdeeds.good
        # Coroutines should still be there when their worker is killed for another one.
        slow = dice.random() < (0.5 if aside else 0.005)
        seconds = dice.choice((0.005, 0.05)) if slow else 0.0
        return definition.bind(str(self.notes), what, seconds).using(max_attempts=5, timeout=within)

    # Wait

    def work_off(self) -> None:
        """Waits until all have ended; the node must go on, and something must happen."""
        ended, give_up = -1, 0.0
        while (now := self._ended()) < len(self.given) + len(self.numbers):
            if now > ended:
                ended, give_up = now, time.monotonic() + STALL
            self._expect_that_it_runs()
            if time.monotonic() > give_up:
                self.run.violated(f"{self.name}: nothing ends any more: {self._unfinished()}")
            time.sleep(0.02)

    def _ended(self) -> int:
        return sum(self.jobs.count(state=state) for state in ("completed", "failed", "cancelled"))

    def _expect_that_it_runs(self) -> None:
        if (code := self.node.poll()) is not None:
            self.run.violated(f"{self.name}: the node ended, {code}: {self.errors[-2000:]}")

    @property
    def errors(self) -> str:
        """What the node and its workers have complained of."""
        return self.programs.errors.read_text(errors="replace")

    def _unfinished(self) -> str:
        left = self.jobs.find(state=("scheduled", "pending", "running", "retrying"), limit=20)
        what = {job.id: self.given[job.id].what for job in left if job.id in self.given}
        return f"{[(job.id, job.name, job.state, job.attempt) for job in left]}, of which {what}"

    # End

    def end(self) -> None:
        """Has the node stop: by a job, if those run in a process of their own."""
        if "--workers" in self.options and self.strict:
            asked = misdeeds.end_the_node.using(max_attempts=1).enqueue(str(self.left))
            self.given[asked.id] = misdeeds.ENDING
        else:
            self.node.send_signal(signal.SIGTERM)
        try:
            code = self.node.wait(STALL)
        except subprocess.TimeoutExpired:
            self.run.violated(f"{self.name}: the node did not stop when it was asked to")
        self.run.expect(
            code == 0, f"{self.name}: the node ended with {code}: {self.errors[-2000:]}"
        )

    def close(self) -> None:
        """Leaves nothing behind, whatever has happened."""
        self._end_what_was_left(("ours", "its own"))
        self.programs.close()
        self.jobs.close()

    def _end_what_was_left(self, whose: tuple[str, ...]) -> None:
        for owner, pid in self._left_behind():
            if owner in whose:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # Look

    def look(self) -> None:
        """Holds against the promises what has become of each job, and what is left."""
        found = {job.id: job for job in self.jobs.iterate()}
        for id, misdeed in self.given.items():
            if misdeed not in misdeeds.SPOILERS:  # Those may not survive themselves.
                self._look_at_a_bad_one(found[id], misdeed)
        for id, number in self.numbers.items():
            self._look_at_a_good_one(found[id], number)
        self._look_at_the_notes()
        self._look_for_processes()
        self._look_for_files()

    def _look_at_a_bad_one(self, job: Job, misdeed: Misdeed) -> None:
        said = [(error.kind, f"{error.type}: {error.message}") for error in job.errors]
        summary = f"{self.name}: {misdeed.what}: {job.state} after attempt {job.attempt}, {said}"
        self.run.expect(job.state in misdeed.states, summary)
        completed = job.state == "completed"
        attempts = 1 if misdeed.once or not misdeed.kind else job.max_attempts
        if len(misdeed.states) == 1:
            self.run.expect(job.attempt == attempts, f"{summary}, not {attempts}")
        self.run.expect(len(said) == job.attempt - completed, f"{summary}, of {job.attempt}")
        for kind, text in said:
            self.run.expect(re.fullmatch(misdeed.kind, kind), f"{summary}, no {misdeed.kind}")
            self.run.expect(
                re.search(misdeed.says, text), f"{summary}, which is not {misdeed.says}"
            )
        if completed:
            try:
                result = job.result()
            except ResultError:
                result = misdeeds.LOST
            self.run.expect(result is misdeed.result or result == misdeed.result, summary)
        self.run.counts[f"ended by {misdeed.kind or 'return'}"] += 1

    def _look_at_a_good_one(self, job: Job, number: int) -> None:
        summary = (
            f"{self.name}: good job {job.id}: {job.state}, attempt {job.attempt}, {job.errors}"
        )
        if self.name == "spoilt" and job.state == "failed":
            self.run.counts["good jobs that were spoilt"] += 1
            return
        self.run.expect(job.state == "completed", summary)
        self.run.expect(job.result() == number, f"{summary}: gave {job.result()!r}, not {number}")
        if self.strict:
            self.run.expect((job.attempt, job.errors) == (1, ()), summary)

    def _look_at_the_notes(self) -> None:
        times = Counter(map(int, lines(self.notes)))
        if self.name == "spoilt":
            return
        self.run.expect(times.keys() == {*range(self.good)}, f"{self.name}: {times} ran")
        if self.name == "workers":
            often = [number for number, count in times.items() if count > 1]
            self.run.expect(not often, f"{self.name}: the good ones {often} ran more than once")

    def _left_behind(self) -> Iterator[tuple[str, int]]:
        for line in lines(self.left):
            whose, _, pid = line.rpartition(" ")
            yield whose, int(pid)

    def _look_for_processes(self) -> None:
        for whose, pid in self._left_behind():
            if whose == "ours":
                self.run.expect(not alive(pid), f"{self.name}: process {pid} of a job goes on")
                self.run.counts["processes left behind"] += 1
        # Those that may stay keep multiprocessing's own process from ending, too.
        self._end_what_was_left(("its own",))
        give_up = time.monotonic() + STALL
        while left := [pid for pid in _session(self.node.pid) if alive(pid)]:
            if time.monotonic() > give_up:
                self.run.violated(f"{self.name}: of the node there still run {left}")
            time.sleep(0.02)

    def _look_for_files(self) -> None:
        folder = self.programs.folder
        files = {file.name for file in folder.iterdir()} - {"good.txt", "left.txt", "stderr.txt"}
        self.run.expect(files <= {"jobs.db", "jobs.db-wal", "jobs.db-shm"}, f"left: {files}")


def _session(leader: int) -> Iterator[int]:
    """All processes of a session."""
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = place.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == leader:
                yield int(place.parent.name)


def bad_jobs(run: Run) -> None:
    """Shows that a job which crashes, hangs or says what cannot be said hurts no other."""
    if not Path("/proc/self/stat").exists():
        run.counts["skipped: there is no /proc here"] += 1
        return
    few = max(4, run.count // 10)
    face(run, Lot(run, "workers", ("--workers", "3")), misdeeds.MISDEEDS, run.count)
    face(run, Lot(run, "threads", ("--threads", "2")), misdeeds.IN_THREADS, few)
    face(run, Lot(run, "coroutines", ("--workers", "2")), misdeeds.ASIDE, few)
    spoilt = Lot(run, "spoilt", ("--workers", "2"), strict=False)
    face(run, spoilt, (misdeeds.SPOILERS,), few)


def face(run: Run, lot: Lot, kinds: tuple[tuple[Misdeed, ...], ...], count: int) -> None:
    """Runs so many bad jobs, of each kind in turn, among a hundred times as many good ones."""
    shuffled = [itertools.cycle(run.dice.sample(kind, len(kind))) for kind in kinds]
    chosen = [next(kind) for kind in itertools.islice(itertools.cycle(shuffled), count)]
    try:
        lot.enqueue(chosen, 100 * count)
        lot.work_off()
        lot.end()
        lot.look()
    finally:
        lot.close()


ORDEALS = (Ordeal(run=bad_jobs, quick=22, full=200, unit="bad jobs"),)
