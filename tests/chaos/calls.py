"""Every system call fails once, in every verb: the error is ours, and nothing is half done.

SQLite asks the system through a table of functions, which can be replaced (`xSetSystemCall`); for
what litejobs asks beside SQLite, the functions of `os` and `socket` are. Syncs are in no table:
they fail elsewhere. In each case one call fails, and then the same process has to go on as if
nothing had been, while another one compares what is in the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from .cramped import cramped
from .ordeal import Ordeal, Run, Violation
from .scenes import SCENES, Content, Scene
from .stage import Archive, check_state, in_memory, play
from .system import PROTOTYPES, Call, replace

PYTHONS = ("open", "close", "stat", "lstat", "unlink", "fsync", "scandir", "listdir")
"""What Python calls for litejobs: of the module `os`."""


@attrs.frozen
class Fault:
    """One way in which a system call fails."""

    name: str
    number: int
    """The errno; 0: fewer bytes are written than asked for."""
    hits: frozenset[str]
    """Which calls can fail like this."""
    lasting: bool = False
    """Whether all that follow fail, too."""


_ALL = frozenset(PROTOTYPES) | {f"os.{name}" for name in PYTHONS} | {"socket"}
_OPENING = frozenset({"open", "os.open", "socket"})
_WRITING = frozenset({"write", "pwrite64"})
_GROWING = _WRITING | {"open", "os.open", "ftruncate", "unlink", "os.unlink", "os.fsync"}
_INTERRUPTED = _WRITING | {"open", "read", "pread64", "ftruncate", "fcntl", "close"}
EIO = Fault("EIO", errno.EIO, _ALL - {"socket"})
ENOSPC = Fault("ENOSPC", errno.ENOSPC, _GROWING)
FAULTS = (
    EIO,
    ENOSPC,
    Fault("EINTR", errno.EINTR, _INTERRUPTED),
    Fault("EMFILE", errno.EMFILE, _OPENING),
    Fault("ENOLCK", errno.ENOLCK, frozenset({"fcntl"})),
    Fault("a short write", 0, _WRITING),
    Fault("ENOMEM", errno.ENOMEM, frozenset({"mmap", "socket"})),
    Fault("EDQUOT", errno.EDQUOT, _GROWING),
    Fault("EMFILE from then on", errno.EMFILE, _OPENING, lasting=True),
    # Not of locks: SQLite then tries for ten seconds, and says what it says at once of others.
    attrs.evolve(EIO, name="EIO from then on", hits=EIO.hits - {"fcntl"}, lasting=True),
    attrs.evolve(ENOSPC, name="ENOSPC from then on", lasting=True),
)


@attrs.define(eq=False)
class Interceptor:
    """Stands between this process and the system: counts calls, and lets one of them fail."""

    fault: Fault | None = None
    place: int = -1
    """Which of the calls that the fault can hit is hit."""
    armed: bool = False
    seen: list[str] = attrs.field(factory=list)
    hit: str = ""
    """The call that failed."""
    _left: int = 0
    _kept: list[object] = attrs.field(factory=list)

    def install(self) -> None:
        """From now on. There is no way back: the process ends with it."""
        self._kept = [replace(name, self._between) for name in PROTOTYPES]
        for name in PYTHONS:
            setattr(os, name, self._before(f"os.{name}", getattr(os, name)))
        socket.socket = self._before("socket", socket.socket)  # type: ignore[assignment,misc]

    def observed(self) -> list[str]:
        """The calls that were made meanwhile."""
        return self.seen

    def _between(self, name: str, original: Call) -> Call:
        """What SQLite calls instead."""

        def call(*arguments: Any) -> int:
            if not self.armed or _unlocks(name, arguments) or not self._strikes(name):
                return original(*arguments)
            assert self.fault is not None
            if name in ("close", "munmap"):
                # They do what they do, also when they fail.
                original(*arguments)
            if not self.fault.number:
                handle, buffer, size, *place = arguments
                return original(handle, buffer, size // 2, *place)
            ctypes.set_errno(self.fault.number)
            return -1

        return call

    def _before(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """What Python calls instead."""

        def call(*arguments: Any, **named: Any) -> Any:
            if self.armed and self._strikes(name):
                assert self.fault is not None
                if name == "os.close":
                    original(*arguments)
                raise OSError(self.fault.number, os.strerror(self.fault.number))
            return original(*arguments, **named)

        return call

    def _strikes(self, name: str) -> bool:
        self.seen.append(name)
        if self.fault is None or name not in self.fault.hits:
            return False
        self._left -= 1
        strikes = self._left == 0 or (self.fault.lasting and self._left < 0)
        if strikes:
            self.hit = self.hit or name
        return strikes

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Lets the fault strike meanwhile."""
        self._left = self.place + 1
        self.armed = True
        try:
            yield
        finally:
            self.armed = False


def _unlocks(name: str, arguments: tuple[Any, ...]) -> bool:
    """To give a lock back cannot fail; SQLite would believe that it holds it still."""
    if name != "fcntl" or arguments[1] not in (fcntl.F_SETLK, fcntl.F_SETLKW):
        return False
    return ctypes.c_short.from_address(arguments[2]).value == fcntl.F_UNLCK


@attrs.frozen
class Case:
    """One fault in one scene."""

    scene: Scene
    fault: Fault
    place: int

    def __str__(self) -> str:
        return f"{self.fault.name} at call {self.place + 1} of {self.scene.name!r}"


@attrs.define
class Rehearsal:
    """A scene without a fault: what is in the file afterwards, and the calls that were made."""

    after: Content
    seen: list[str]

    @classmethod
    def of(cls, archive: Archive, scene: Scene) -> Rehearsal:
        """Plays it."""
        played = play(archive, scene, Interceptor(), f"{scene.name!r} without a fault")
        if played.outcome[0] != "done":
            raise Violation(f"{scene.name!r} fails without a fault: {played.outcome[1]}")
        return cls(played.now, played.observed)


def every_call(run: Run) -> None:
    """A system call fails, once for each that there is: the error is ours, nothing is half done."""
    if sys.platform != "linux":
        run.counts["skipped: replaces system calls of Linux"] += 1
        return
    with in_memory(run) as folder:
        archive = Archive(run, folder)
        archive.make()
        rehearsals = {scene.name: Rehearsal.of(archive, scene) for scene in SCENES}
        for case in chosen(run, cases(rehearsals)):
            played = play(archive, case.scene, Interceptor(case.fault, case.place), str(case))
            run.counts["faults"] += 1
            run.counts["done all the same" if played.outcome[0] == "done" else "refused"] += 1
            check_state(case.scene, played, rehearsals[case.scene.name].after)
        for number in range(min(40, -(-run.count // 500))):
            # The first has enough to come to work, and not enough for a worker.
            left = run.dice.randrange(40) if number else run.dice.randrange(7, 22)
            start_without(run, folder / f"node-{number}", left)


def start_without(run: Run, folder: Path, descriptors: int) -> None:
    """A node that may open only so many files says so, or works; nothing is lost."""
    folder.mkdir()
    report = cramped(run, "descriptors", folder / "jobs.db", descriptors)
    about = f"a node with {descriptors} descriptors: {report}"
    run.expect(report["outcome"][0] != "foreign", about)
    run.expect(
        report["waiting"] == (0 if report["outcome"][0] == "done" else report["jobs"]), about
    )
    run.expect(not report["nodes"], about)
    run.counts["nodes without descriptors"] += 1


def cases(rehearsals: dict[str, Rehearsal]) -> Iterator[Case]:
    """All faults at all calls of all scenes."""
    for scene in SCENES:
        for fault in FAULTS:
            number = sum(name in fault.hits for name in rehearsals[scene.name].seen)
            yield from (Case(scene, fault, place) for place in range(number))


def chosen(run: Run, cases: Iterable[Case]) -> list[Case]:
    """So many cases as are wanted: first, if there is room, each EIO and ENOSPC."""
    every = list(cases)
    run.counts["possible"] = len(every)
    must = [case for case in every if case.fault in (EIO, ENOSPC)]
    others = [case for case in every if case.fault not in (EIO, ENOSPC)]
    if run.count >= len(must):
        return must + run.dice.sample(others, min(len(others), run.count - len(must)))
    kinds: dict[tuple[Scene, Fault], list[Case]] = {}
    for case in every:
        kinds.setdefault((case.scene, case.fault), []).append(case)
    return [run.dice.choice(run.dice.choice([*kinds.values()])) for _ in range(run.count)]


ORDEALS = (Ordeal(run=every_call, quick=100, full=20_000, unit="faults"),)
