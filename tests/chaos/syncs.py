"""Lets a sync fail, each one in turn: no error says "not enqueued" of a job that comes up later,
and whoever enqueues again with the same unique key has one job.

An error of COMMIT does not mean that nothing was committed. What was written before the sync is in
the WAL, and there it stays: it counts as soon as all who have the file open are gone, and somebody
opens it anew. So a neighbour has it open, and dies at the worst moment.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw
import attrs

import litejobs
from litejobs import LiteJobs, LitejobsError, OutcomeUnknownError, Unique

from .child import CAN_FORK, TIMEOUT, Ended, Say, in_child, within_timeout
from .deeds import portrait, works_on
from .disk import Disk, Touch, nobody, remove_all
from .ordeal import Ordeal, Run

NEVER = 10**9
HEALED = 99
"""The number of the job that is enqueued when all syncs work again."""
TRIES = 10
"""How often one enqueues again, or starts the node again."""


@attrs.frozen
class Way:
    """What comes of a failing sync."""

    dies: bool = False
    """Whoever called, as soon as it hears of it."""
    neighbour_dies: bool = False
    """When the file is opened again."""
    times: int = 1
    """How many syncs fail, one after the other."""


WAYS: Mapping[str, Way] = {
    "once": Way(),
    "once, and then its neighbour dies": Way(neighbour_dies=True),
    "once, and then all die": Way(dies=True),
    "three times": Way(times=3),
    "for good": Way(times=NEVER),
}


@attrs.define(eq=False)
class Watch:
    """Lets a sync fail, in one of the ways."""

    way: Way
    number: int
    say: Say
    neighbour: Neighbour
    syncs: int = 0

    def __call__(self, touch: Touch) -> None:
        opened = touch.kind == "open" and touch.path.name == "jobs.db"
        if opened and self.way.neighbour_dies and self.syncs >= self.number:
            self.neighbour.die()
        if touch.kind != "sync":
            return
        self.syncs += 1
        if self.number <= self.syncs < self.number + self.way.times:
            raise apsw.IOError("the sync failed")

    def recorded(self, *what: Any) -> None:
        """An error has reached whoever called."""
        self.say(what)
        if self.way.dies:
            os.kill(os.getpid(), signal.SIGKILL)


@attrs.define(eq=False)
class Neighbour:
    """Another process that has the file open, and does nothing. It ends with this one."""

    pid: int
    _lifeline: int

    @classmethod
    def at(cls, path: Path) -> Neighbour:
        """One that has opened the file, which then exists."""
        ready, begun = os.pipe()
        ended, lifeline = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(lifeline)
            signal.alarm(2 * TIMEOUT)
            LiteJobs(path).count()
            os.write(begun, b".")
            os.read(ended, 1)
            os._exit(0)
        os.close(ended)
        os.close(begun)
        if not os.read(ready, 1):
            raise AssertionError("the neighbour could not open the file")
        os.close(ready)
        return cls(pid, lifeline)

    def die(self) -> None:
        """It has died, when this returns."""
        pid, self.pid = self.pid, 0  # Other threads may open the file as well.
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def produce(jobs: LiteJobs, watch: Watch) -> None:
    """Enqueues one after the other, with keys and without, and several at once."""
    work = jobs.registry.named("work")
    for number in range(6):
        keyed = number % 2 == 1
        choices: dict[str, Any] = {"unique": Unique(key=str(number), scope="exists")}
        bound = (work.using(**choices) if keyed else work).bind(number)
        try_to(functools.partial(jobs.enqueue, bound), [number], watch, again=keyed)
    many = [
        work.using(unique=Unique(key=str(number), scope="exists")).bind(number)
        for number in range(6, 10)
    ]
    try_to(functools.partial(jobs.enqueue_many, many), [*range(6, 10)], watch, again=True)
    more = [work.bind(number) for number in range(10, 30)]
    try_to(functools.partial(jobs.enqueue_many, more), [*range(10, 30)], watch, again=False)
    run_all(jobs.close, watch)


def try_to(
    enqueue: Callable[[], object], numbers: Sequence[int], watch: Watch, *, again: bool
) -> None:
    """Enqueues jobs; *again*, with the same keys, as long as the outcome is unknown."""
    for _ in range(TRIES if again else 1):
        try:
            enqueue()
        except OutcomeUnknownError:
            watch.recorded("unknown", numbers)
        except LitejobsError as error:
            watch.recorded("refused", numbers, str(error))
            return
        else:
            watch.say(("kept", numbers))
            return


def drain(jobs: LiteJobs, watch: Watch) -> None:
    """Runs jobs in this process, which claims and settles as durably as it enqueues."""
    run_all(jobs.drain, watch)


def work(jobs: LiteJobs, watch: Watch) -> None:
    """A node runs jobs; whatever it writes starts the WAL anew, since others checkpoint."""
    run_all(functools.partial(jobs.work, threads=2, until="empty"), watch)


def run_all(run_them: Callable[[], object], watch: Watch) -> None:
    """Until nothing is left to do."""
    for _ in range(TRIES):
        try:
            run_them()
        except LitejobsError as error:
            watch.recorded("ended with", str(error))
        except apsw.IOError as error:
            if not from_closing(error):
                raise
            watch.recorded("ended with", "an error while it closed the file")
        else:
            watch.say(("ran all",))
            return


def from_closing(error: apsw.IOError) -> bool:
    """Whether it is one that SQLite ignores, since the WAL stays where it is. apsw passes on
    whatever a disk in Python has raised."""
    return any(f.name == "Connection.close" for f in traceback.extract_tb(error.__traceback__))


@attrs.frozen
class Scene:
    """What is done while a sync fails."""

    act: Callable[[LiteJobs, Watch], None]
    jobs: int = 0
    """How many are there before."""
    new_file: bool = False


SCENES: Mapping[str, Scene] = {
    "a new file": Scene(produce, new_file=True),
    "a producer": Scene(produce),
    "a drain": Scene(drain, jobs=6),
    "a node": Scene(work, jobs=6),
}
DURABILITIES: tuple[litejobs.Durability, ...] = ("full", "fast")


@attrs.frozen
class Case:
    """A scene with all that decides what happens in it."""

    scene: str
    durability: litejobs.Durability
    way: str
    path: Path

    def __str__(self) -> str:
        return f"{self.scene}, durability {self.durability}, a sync fails {self.way}"

    def perform(self, disk: Disk, number: int) -> Ended:
        """Does it in a child, where the n-th sync fails."""
        return in_child(functools.partial(self._perform, disk, number))

    def _perform(self, disk: Disk, number: int, say: Say) -> None:
        logging.disable()  # The node says what it tries again.
        scene = SCENES[self.scene]
        remove_all(self.path.parent)
        neighbour = Neighbour(0, 0) if scene.new_file else Neighbour.at(self.path)
        jobs = LiteJobs(self.path, durability=self.durability)

        @jobs.define(name="work")
        def work(number: int) -> None:
            say(("began", number))
            try:
                checkpoint(jobs)
            finally:
                say(("ended", number))

        jobs.enqueue_many([work.bind(number) for number in range(scene.jobs)])
        if not scene.new_file:
            jobs.store.file.connection().pragma("wal_autocheckpoint", 5)
        watch = Watch(WAYS[self.way], number, say, neighbour)
        disk.watcher = watch
        scene.act(jobs, watch)
        disk.watcher = nobody
        jobs.enqueue(work.bind(HEALED))
        say(("kept", [HEALED]))
        say(("syncs", watch.syncs))


def checkpoint(jobs: LiteJobs) -> None:
    """So that the next who writes starts the WAL anew, and syncs its head."""
    with (
        contextlib.suppress(apsw.Error, LitejobsError),
        jobs.store.file.second_connection() as connection,
    ):
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)


def failing_sync(run: Run) -> None:
    """A failing sync makes an outcome unknown, never untrue; with a unique key there is one job."""
    if not CAN_FORK:
        run.counts["skipped, since nothing can fork here"] += 1
        return
    path = run.folder / "jobs.db"
    with Disk() as disk:
        points = [
            (Case(scene, durability, way, path), number)
            for scene in SCENES
            for durability in DURABILITIES
            for number in syncs_of(run, disk, Case(scene, durability, "once", path))
            for way in WAYS
            if makes_sense(SCENES[scene], WAYS[way])
        ]
        run.counts["points to fail at"] = len(points)
        if run.count < len(points):
            points = run.dice.sample(points, run.count)
        for case, number in points:
            what = f"{case}, at sync {number}"
            ended = case.perform(disk, number)
            ended.expect(run, (0, -signal.SIGKILL) if WAYS[case.way].dies else (0,), what)
            with within_timeout(what):
                examine(run, case, ended.said, what)
            run.counts["failing syncs"] += 1


def makes_sense(scene: Scene, way: Way) -> bool:
    """A new file has no neighbours, and a node tries for ever."""
    return not (
        (scene.new_file and way.neighbour_dies) or (scene.act is work and way.times > TRIES)
    )


def syncs_of(run: Run, disk: Disk, case: Case) -> range:
    """Their numbers, as there are when none fails."""
    ended = case.perform(disk, NEVER)
    ended.expect(run, (0,), f"{case}, undisturbed")
    return range(1, ended.said[-1][1] + 1)


def examine(run: Run, case: Case, said: list[Any], what: str) -> None:
    """Compares what was said with what is in the file, and goes on working with it."""
    state = portrait(case.path)
    run.expect(not state.startswith("broken"), f"{what}: {state}")
    found = numbers_in(case.path)
    scene, fates = SCENES[case.scene], fates_of(said)
    for number in range(scene.jobs):
        fates[number] = "kept"
    for number, fate in fates.items():
        allowed = {"kept": (1,), "refused": (0,), "unknown": (0, 1)}[fate]
        if found[number] not in allowed:
            run.violated(f"{what}: job {number} was {fate}, and is there {found[number]} times")
        run.counts[f"jobs {fate}"] += 1
    strange = found.keys() - fates.keys() if said and said[-1][0] == "syncs" else set()
    run.expect(not strange, f"{what}: nobody knows of jobs {strange}")
    examine_attempts(run, said, what)
    undisturbed = not any(entry[0] == "ended with" for entry in said)
    if ["ran all"] in said and (undisturbed or scene.act is work):
        # What a drain had in hand that ended with an error, only a node takes over.
        with LiteJobs(case.path) as jobs:
            left = jobs.count(state=("pending", "running", "retrying", "failed")) - 1
            run.expect(left == 0 or not scene.jobs, f"{what}: {left} jobs were left")
    if undisturbed:
        ran = [entry[1] for entry in said if entry[0] == "began"]
        run.expect(len({*ran}) == len(ran), f"{what}: a node that went on ran jobs again: {ran}")
    works_on(run, case.path, what)


def fates_of(said: list[Any]) -> dict[int, str]:
    """What was said of each job at last."""
    fates = [entry for entry in said if entry[0] in ("kept", "unknown", "refused")]
    return {number: fate for fate, numbers, *_ in fates for number in numbers}


def numbers_in(path: Path) -> Counter[int]:
    """How often each job is in the file."""
    if not portrait(path):
        return Counter()
    with LiteJobs(path) as jobs:
        return Counter(job.payload["number"] for job in jobs.iterate())


def examine_attempts(run: Run, said: list[Any], what: str) -> None:
    """No job ran twice at a time."""
    running: set[int] = set()
    for entry in said:
        if entry[0] == "began":
            run.expect(entry[1] not in running, f"{what}: job {entry[1]} ran twice at a time")
            running.add(entry[1])
        elif entry[0] == "ended":
            running.remove(entry[1])


ORDEALS = (Ordeal(run=failing_sync, quick=35, full=100_000, unit="failing syncs at most"),)
