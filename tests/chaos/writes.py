"""Dies at each write and each sync, with half of it written: what was acknowledged is there, and
what was being done is there as a whole or not at all.

A child does one deed after the other on a watched disk and reports which are done. It kills itself
at its n-th touch of the disk, and what the file says then is compared, word by word, with what it
said before and after each deed in a run that nothing happened to.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

import litejobs

from .child import CAN_FORK, Ended, Say, in_child, within_timeout
from .deeds import Hands, changes_between, portrait, works_on
from .disk import Disk, Touch, nobody, remove_all
from .older import older_file
from .ordeal import Ordeal, Run

DURABILITIES: tuple[litejobs.Durability, ...] = ("full", "fast")


@attrs.frozen
class Scene:
    """What is done before, and then the deeds in which to die."""

    deeds: tuple[str, ...]
    before: tuple[str, ...] = ("open",)
    make: Callable[[Path], None] = lambda path: None
    """Makes the file; by default the first deed does."""


def make_an_older_file(path: Path) -> None:
    """A file with an older schema and a job."""
    older_file(
        path,
        "INSERT INTO litejobs_job (name, queue, priority, run_at, enqueued_at, payload)"
        " VALUES ('work', 'default', 0, 1, 1, '{\"number\": 1}')",
    )


SCENES: Mapping[str, Scene] = {
    "a new file": Scene(("open", "enqueue", "close"), ()),
    "an older file": Scene(("open", "enqueue", "close"), (), make_an_older_file),
    "a producer": Scene(
        ("enqueue", "enqueue later", "enqueue to expire", "enqueue once", "enqueue once",
         "enqueue in turn", "enqueue in turn", "enqueue many")
    ),
    "a node": Scene(
        ("join", "claim", "progress", "settle", "settle and claim", "fail", "try again later",
         "settle and claim", "count", "leave"),
        ("enqueue in turn", "enqueue in turn", "enqueue many"),
    ),
    "people": Scene(
        ("retry now", "retry", "cancel", "ask to end", "hold", "release", "change", "delete",
         "set a queue"),
        ("enqueue many", "enqueue later", "claim", "settle", "claim", "fail", "try again later"),
    ),
    "duties": Scene(
        ("schedule", "tick", "stage", "expire", "tick", "prune", "shrink", "count"),
        ("enqueue many", "enqueue later", "enqueue to expire", "claim", "settle"),
    ),
    "upkeep": Scene(
        ("checkpoint", "enqueue", "restart the WAL", "enqueue", "truncate the WAL", "enqueue",
         "compact", "enqueue", "close"),
        ("enqueue many", "join", "enqueue many"),
    ),
    "a long WAL": Scene(
        ("enqueue many", "settle and claim", "enqueue", "delete", "enqueue many", "close"),
        ("checkpoint often", "enqueue many", "claim"),
    ),
    "a copy": Scene(("enqueue many", "back up", "enqueue"), ("enqueue many",)),
}  # fmt: skip


@attrs.frozen
class Case:
    """A scene with all that decides what happens in it."""

    scene: str
    durability: litejobs.Durability
    seed: int
    path: Path

    def __str__(self) -> str:
        return f"{self.scene}, durability {self.durability}"

    def prepared(self) -> Hands:
        """Hands that have done what comes before."""
        scene = SCENES[self.scene]
        remove_all(self.path.parent)
        scene.make(self.path)
        hands = Hands(self.path, self.durability, random.Random(f"{self.seed} {self.scene}"))
        for deed in scene.before:
            hands.do(deed)
        return hands

    def perform(self, disk: Disk, watch: Callable[[Touch], None], done: Say) -> None:
        """All deeds, of which *done* is called after each."""
        hands = self.prepared()
        done(0)
        for number, deed in enumerate(SCENES[self.scene].deeds, 1):
            disk.watcher = watch
            hands.do(deed)
            disk.watcher = nobody
            done(number)


@attrs.frozen
class Rehearsed:
    """How a case goes when nothing happens."""

    case: Case
    states: list[str]
    """What the file says at first and after each deed."""
    touches: int


def rehearse(run: Run, disk: Disk, case: Case) -> Rehearsed:
    """Performs a case to its end, and looks at the file after each deed."""
    count = itertools.count()

    def watch(touch: Touch) -> None:
        if strikes_at(touch):
            next(count)

    def act(say: Say) -> None:
        case.perform(disk, watch, lambda number: say(portrait(case.path)))
        say(next(count))

    ended = in_child(act)
    ended.expect(run, (0,), f"{case}, undisturbed")
    *states, touches = ended.said
    for deed, before, after in zip(SCENES[case.scene].deeds, states, states[1:], strict=False):
        if deed in ("enqueue", "enqueue many"):
            run.expect(before != after, f"{case}: {deed!r} was acknowledged, and is not there")
    return Rehearsed(case, states, touches)


def strikes_at(touch: Touch) -> bool:
    """The locks of nodes are files too, but nothing is written there."""
    return touch.kind != "open" and "-node-" not in touch.path.name


def die_at(disk: Disk, case: Case, number: int) -> Ended:
    """Performs a case up to its n-th touch of the disk."""
    count = itertools.count(1)

    def watch(touch: Touch) -> None:
        if strikes_at(touch) and next(count) == number:
            if touch.kind == "write" and touch.file is not None:
                touch.file.write_half(touch)
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child(functools.partial(case.perform, disk, watch))


def every_write(run: Run) -> None:
    """Whoever dies at any write or sync leaves what was acknowledged, and nothing half-done."""
    if not CAN_FORK:
        run.counts["skipped, since nothing can fork here"] += 1
        return
    path = run.folder / "jobs.db"
    with Disk() as disk:
        cases = [Case(scene, kept, run.seed, path) for scene in SCENES for kept in DURABILITIES]
        rehearsed = [rehearse(run, disk, case) for case in cases]
        points = [(on, n) for on in rehearsed for n in range(1, on.touches + 1)]
        run.counts["points to die at"] = len(points)
        if run.count < len(points):
            points = run.dice.sample(points, run.count)
        for on, number in points:
            what = f"{on.case}, dead at write {number}"
            ended = die_at(disk, on.case, number)
            ended.expect(run, (-signal.SIGKILL,), what)
            with within_timeout(what):
                examine(run, on, ended.said[-1], what)
            run.counts["deaths"] += 1


def examine(run: Run, on: Rehearsed, done: int, what: str) -> None:
    """Compares what is left with what has to be, and goes on working with it."""
    path = on.case.path
    state, allowed = portrait(path), on.states[done : done + 2]
    if state not in allowed:
        deed = [*SCENES[on.case.scene].deeds, "the end"][done]
        run.violated(
            f"{what}, in {deed!r}: the file is neither as before nor as after it; what is"
            f" new since before it:\n{changes_between(allowed[0], state)}"
        )
    if "back up" in SCENES[on.case.scene].deeds:
        examine_copy(run, path.with_name("copy.db"), on.states[1], what)
    works_on(run, path, what)


def examine_copy(run: Run, path: Path, whole: str, what: str) -> None:
    """A copy is there as a whole, or there is none that would be taken for one."""
    if not path.exists():
        return
    try:
        with litejobs.LiteJobs(path) as copy:
            copy.count()
    except litejobs.FileError:
        run.counts["unfinished copies that were refused"] += 1
        return
    run.expect(portrait(path) == whole, f"{what}: half a copy is taken for a queue")


ORDEALS = (Ordeal(run=every_write, quick=80, full=100_000, unit="deaths at most"),)
