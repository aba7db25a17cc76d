"""No room: the disk is full, a quota is used up, or there is no memory.

The small disk is made of the functions by which SQLite asks the system: what would make the folder
larger than it may be is refused. So it can be as small as one likes, to the byte, on any machine.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import attrs

from litejobs import (
    DISK_RESERVE,
    DUTIES,
    Claimed,
    Duties,
    File,
    FileError,
    LiteJobs,
    LitejobsError,
    OutcomeUnknownError,
    Settlement,
    Store,
)

from .cramped import SmallDisk, cramped
from .ordeal import Ordeal, Run, Violation
from .scenes import DAY, HERE, NOW, SCENES, Scene, a_full_file, note, queue_at, settled
from .stage import Archive, Child, Send, check_state, in_memory, play


@attrs.define
class LittleMemory:
    """SQLite may use so many bytes more than it does already."""

    room: int | None = None
    hit: str = ""
    _used: int = 0
    _peak: int = 0

    def install(self) -> None:
        """Nothing is needed before."""

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Limits it meanwhile."""
        self._used = apsw.memory_used()
        apsw.memory_high_water(True)
        if self.room is not None:
            apsw.hard_heap_limit(max(1, self._used + self.room))
            self.hit = f"{self.room:,} bytes left"
        try:
            yield
        finally:
            self._peak = apsw.memory_high_water()
            apsw.hard_heap_limit(0)

    def observed(self) -> int:
        """How many bytes more were used."""
        return self._peak - self._used


def heap(run: Run) -> None:
    """SQLite gets no more memory, at every size: the error is ours, and nothing is half done."""
    with in_memory(run) as folder:
        archive = Archive(run, folder)
        archive.make()
        share, more = divmod(run.count, len(SCENES))
        scenes = run.dice.sample(SCENES, len(SCENES))
        for number, scene in enumerate(scenes):
            _starve(run, archive, scene, share + (number < more))


def _starve(run: Run, archive: Archive, scene: Scene, limits: int) -> None:
    """Plays a scene with less memory than it needs, by so many limits."""
    if not limits:
        return
    fed = play(archive, scene, LittleMemory(), f"{scene.name!r} with all memory")
    if fed.outcome[0] != "done":
        raise Violation(f"{fed.about}: it fails")
    for number in range(limits):
        # The last bytes are those that are needed to clean up.
        most = fed.observed if number % 2 else min(fed.observed, 4_000)
        room = int((number + run.dice.random()) * most / limits)
        played = play(archive, scene, LittleMemory(room), f"{scene.name!r} without memory")
        run.counts["limits"] += 1
        run.counts["done all the same" if played.outcome[0] == "done" else "refused"] += 1
        check_state(scene, played, fed.now)
        if played.outcome[0] != "done" and "memory" not in played.outcome[1]:
            raise Violation(f"{played.about}: it does not say that memory is missing")


@attrs.define(eq=False)
class SmallFiles:
    """No file may grow by more than so much beyond the largest one (RLIMIT_FSIZE)."""

    folder: Path

    def install(self) -> None:
        """Nothing is needed before."""

    @contextlib.contextmanager
    def with_room(self, room: int) -> Iterator[None]:
        """Limits them meanwhile."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        largest = max(file.stat().st_size for file in self.folder.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILLED, BY_OTHERS = "a full disk", "a disk that others filled"
KINDS = (FILLED, BY_OTHERS, "a quota", "small files")
SEEN = FILLED, BY_OTHERS
"""Where room is kept for those who settle, since the disk says how much is left. Limits that it
does not name are met by whoever comes next."""


@attrs.frozen
class Point:
    """Where and how the room ends."""

    kind: str
    room: int
    """Bytes."""
    waiting: int
    """Jobs that are there before."""
    held: int
    """How many of them a node has in its hands."""
    size: int
    """Bytes of each job that comes then."""
    at_once: int
    """How many come in one transaction, and are settled in one."""
    staffed: bool
    """Whether a node is at work."""

    @classmethod
    def throw(cls, dice: random.Random) -> Point:
        """One that nobody has thought of."""
        kind = dice.choice(KINDS)
        room = dice.choice((0, dice.randrange(5_000), dice.randrange(500_000)))
        if kind == FILLED:
            room += DISK_RESERVE + dice.randrange(2_000_000)
        return cls(
            kind, room, dice.choice((20, 200, 1_000)), dice.choice((1, 10, 20)),
            dice.choice((10, 300, 5_000, 50_000)), dice.choice((1, 1, 7, 40)),
            dice.random() < 0.7,
        )  # fmt: skip

    def disk(self, path: Path) -> SmallDisk | SmallFiles:
        """The disk that is so small."""
        if self.kind == "small files":
            return SmallFiles(path.parent)
        return SmallDisk(errno.EDQUOT if self.kind == "a quota" else errno.ENOSPC)


@attrs.define(eq=False)
class Plant:
    """A program that enqueues, and a node that works, in one process, both by hand."""

    jobs: LiteJobs
    store: Store
    node: int = 0
    leaving: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    sure: list[str] = attrs.field(factory=list)
    """What was enqueued for certain."""
    unsure: list[str] = attrs.field(factory=list)
    """What may have been."""
    refusals: list[tuple[str, str]] = attrs.field(factory=list)
    held: list[Claimed] = attrs.field(factory=list)
    claims: set[tuple[int, int]] = attrs.field(factory=set)
    settled: int = 0

    @classmethod
    def at(cls, path: Path) -> Plant:
        """Nobody is at work yet."""
        return cls(queue_at(path), Store(File(path, "fast", clock=lambda: NOW)))

    def come(self) -> None:
        """A node comes to work, if there is none, and does all its duties once."""
        if not self.node:
            known = self.jobs.registry.listing()
            self.node = self.store.nodes.join("here", 9, 1, HERE, known)
            self.leaving.callback(self.store.leave, self.node)
            Duties(self.store, self.node).do(*DUTIES)

    def enqueue(self, size: int, at_once: int) -> bool:
        """Enqueues some jobs; says whether they are there."""
        first = len(self.sure) + len(self.unsure) + len(self.refusals)
        texts = [f"{first}-{number} ".ljust(size, "x") for number in range(at_once)]
        try:
            self.jobs.enqueue_many(map(note.bind, texts))
        except LitejobsError as error:
            self.refusals.append((type(error).__name__, str(error)))
            if isinstance(error, OutcomeUnknownError):
                self.unsure += texts
            return False
        self.sure += texts
        return True

    def claim(self, most: int) -> None:
        """Takes so many jobs in hand."""
        claimed = self.store.exchange(
            [], self.node, lambda ready: [id for id, _ in itertools.islice(ready, most)], HERE
        ).claimed
        claims = {job[:2] for job in claimed}
        assert not claims & self.claims, "a job was claimed twice under the same number"
        self.claims |= claims
        self.held += claimed

    def settle(self, at_once: int) -> None:
        """Settles what is in hand, trying again as a node does.

        Raises:
            FileError: it cannot be done.
        """
        while self.held:
            ends = [
                settled(job.id, "completed" if job.id % 3 else "failed", job.claim)
                for job in self.held[:at_once]
            ]
            self._settle(ends)
            del self.held[:at_once]
            self.settled += len(ends)

    def _settle(self, ends: list[Settlement]) -> None:
        for tries in range(TRIES):
            try:
                self.store.exchange(ends, self.node, lambda ready: [], HERE)
                return
            except FileError:
                if tries == TRIES - 1:
                    raise

    def close(self) -> None:
        """Ends all."""
        self.leaving.close()
        self.store.file.close()
        self.jobs.close()


TRIES = 3
MOST = 300
"""Enqueues that are tried: a full WAL is begun anew, so that there may be room for very many."""


def fill(point: Point, path: Path, send: Send) -> None:
    """Lets the room end, in a process of its own, and sees what can be done without."""
    disk = point.disk(path)
    disk.install()
    plant = Plant.at(path)
    plant.jobs.enqueue_many(note.bind(f"{n}".ljust(500, "w")) for n in range(point.waiting))
    if point.staffed:
        plant.come()
        plant.claim(point.held)
    with disk.with_room(point.room):
        send(without_room(plant, point))
    note.enqueue("afterwards")
    plant.come()
    work_on(plant)
    send([finding.problem for finding in plant.jobs.doctor() if finding.level == "error"])
    plant.close()
    send("closed")


def without_room(plant: Plant, point: Point) -> Any:
    """What can be done: how many jobs were pruned, and run, and what was enqueued."""
    plant.enqueue(point.size, point.at_once)
    while len(plant.refusals) < 5 and len(plant.sure) < MOST:
        plant.enqueue(10 if plant.refusals else point.size, point.at_once)
    pruned = 0
    if point.staffed:
        with contextlib.ExitStack() as limits:
            if point.kind not in SEEN:
                limits.enter_context(contextlib.suppress(FileError))
            plant.settle(point.at_once)
            pruned = plant.store.prune(NOW + 100 * DAY)
        with contextlib.suppress(FileError):
            work_on(plant)
    return pruned, plant.settled, plant.sure, plant.unsure, plant.refusals


def work_on(plant: Plant, patience: float = 10.0) -> int:
    """Runs what is left; says how many jobs that were."""
    before = plant.settled
    give_up = time.monotonic() + patience
    while plant.jobs.count(state="pending", queue="default") and time.monotonic() < give_up:
        plant.claim(10)
        plant.settle(10)
    return plant.settled - before


def full_disk(run: Run) -> None:
    """Room ends at any byte: producers see errors, what runs is settled and pruned, all goes on."""
    if sys.platform != "linux":
        run.counts["skipped: replaces system calls of Linux"] += 1
        return
    with in_memory(run) as folder:
        archive = Archive(run, folder)
        archive.make()
        for _ in range(run.count):
            _fill(run, archive, Point.throw(run.dice))
            run.counts["fill points"] += 1
        for number in range(-(-run.count // 40)):
            _fill_under_a_node(
                run, folder / f"node-{number}", DISK_RESERVE + run.dice.randrange(2_000_000)
            )


def _fill_under_a_node(run: Run, folder: Path, room: int) -> None:
    """A node, with its processes: it settles what runs, does not spin, and goes on by itself."""
    folder.mkdir()
    report = cramped(run, "disk", folder / "jobs.db", room)
    about = f"a node with {room:,} bytes left: {report}"
    run.expect(
        report["refusals"] and all(kind == "FileError" for kind in report["refusals"]), about
    )
    run.expect(report["settled"], f"{about}: what ran was not settled")
    run.expect(report["cpu"] < 0.6, f"{about}: it spins")
    run.expect(report["lost"] == 0 and report["waiting"] == 0, f"{about}: it did not go on")
    run.counts["nodes on a full disk"] += 1


def _fill(run: Run, archive: Archive, point: Point) -> None:
    """One point, seen from outside."""
    with archive.copy(FULL) as path:
        child = Child.fork(run, str(point), lambda send: fill(point, path, send))
        try:
            pruned, worked, sure, unsure, refusals = child.receive()
            held = point.held if point.staffed and point.kind in SEEN else 0
            run.expect(pruned >= held, f"{point}: {held} had ended, {pruned} were pruned")
            run.counts["settled without room"] += worked
            run.counts["refused"] += len(refusals)
            _check_refusals(run, point, refusals)
            run.expect(not (wrong := child.receive()), f"{point}: the doctor finds {wrong}")
            child.receive()
            _check_jobs(run, point, path, set(sure), set(unsure))
        finally:
            child.end()


FULL = Scene(lambda jobs: None, a_full_file, "a disk")


def _check_refusals(run: Run, point: Point, refusals: list[tuple[str, str]]) -> None:
    """They name the file, and say what to do."""
    for kind, text in refusals:
        run.expect("jobs.db" in text, f"{point}: {kind} does not name the file: {text}")
        if point.kind in SEEN:
            clear = kind == "FileError" and "nothing was written; free some space" in text
            run.expect(clear, f"{point}: {kind} does not say what to do: {text}")


def _check_jobs(run: Run, point: Point, path: Path, sure: set[str], unsure: set[str]) -> None:
    """What was enqueued has run, once, and what was refused is not there."""
    sql = "SELECT json_extract(payload, '$.text'), state FROM litejobs_job"
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        rows = [(str(text), str(state)) for text, state in connection.execute(sql)]
    come = [text for text, _ in rows if "-" in text.partition(" ")[0]]
    run.expect(len(come) == len({*come}), f"{point}: jobs are there twice")
    run.expect(not (lost := sure - {*come}), f"{point}: lost {len(lost)} of {len(sure)} jobs")
    unexpected = {*come} - sure - unsure
    run.expect(not unexpected, f"{point}: refused and there: {len(unexpected)} jobs")
    left = {state for text, state in rows if text in come} - {"completed", "failed"}
    run.expect(not left, f"{point}: jobs that nobody ran: they are {left}")
    run.expect(("afterwards", "pending") not in rows, f"{point}: nothing went on afterwards")


ORDEALS = (
    Ordeal(run=full_disk, quick=20, full=400, unit="fill points"),
    Ordeal(run=heap, quick=80, full=12_000, unit="limits"),
)
