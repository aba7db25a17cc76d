"""Plays scenes while something fails, each in a process of its own, and judges what became of it.

A forked child does the scene and has to go on afterwards as if nothing had been; its parent, where
nothing fails, compares what is in the file. A child that hangs or dies breaks a promise, too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import attrs

import litejobs
from litejobs import LiteJobs, LitejobsError

from .ordeal import Run, Violation
from .scenes import BEGINNINGS, Content, Scene, content, difference, note, queue_at

DEADLINE = 20.0
"""Seconds after which something that takes a fraction of one hangs."""
PATIENT = 0.3
"""Seconds to wait for a lock here: nobody but the faults holds one."""

Outcome = tuple[str, str]
"""The name of the error, or "done"; and its text."""


def outcome_of(act: Callable[[], object]) -> Outcome:
    """What becomes of it: ours is every error that is a LitejobsError."""
    try:
        act()
    except LitejobsError as error:
        return type(error).__name__, str(error)
    except BaseException:
        return "foreign", traceback.format_exc()[-3_000:]
    return "done", ""


@attrs.define
class Child:
    """A forked child that does something, and what it has to say."""

    run: Run
    about: str
    pid: int
    _line: socket.socket
    _said: bytes = b""

    @classmethod
    def fork(cls, run: Run, about: str, work: Callable[[Send], None]) -> Child:
        """Lets a child *work*, which is given what it reports with, and ends with it."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            signal.alarm(int(DEADLINE) + 5)
            ours.close()
            _live(theirs, work)
        theirs.close()
        return cls(run, about, pid, ours)

    def receive(self) -> Any:
        """The next thing that it says. After that it waits until this is called again."""
        self._line.sendall(b"\n")
        while b"\n" not in self._said:
            if not select.select([self._line], [], [], DEADLINE)[0]:
                self.end()
                raise Violation(f"{self.about}: nothing happened for {DEADLINE:.0f} s")
            received = self._line.recv(65_536)
            if not received:
                raise Violation(f"{self.about}: the process ended, with {self.end()}")
            self._said += received
        said, _, self._said = self._said.partition(b"\n")
        return json.loads(said)

    def end(self) -> int:
        """Ends it, if it has not ended; gives its exit status."""
        if self.pid:
            self._line.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            status = os.waitpid(self.pid, 0)[1]
            self.pid = 0
            return os.waitstatus_to_exitcode(status)
        return 0


Send = Callable[[Any], None]
"""Sends something to the parent, and waits until it wants more."""


def _live(line: socket.socket, work: Callable[[Send], None]) -> None:
    status = 1
    try:
        logging.getLogger("litejobs").setLevel(logging.CRITICAL + 1)
        litejobs.BUSY_TIMEOUT = PATIENT
        line.recv(1)

        def send(what: Any) -> None:
            line.sendall(json.dumps(what).encode() + b"\n")
            line.recv(1)

        work(send)
        status = 0
    except BrokenPipeError:
        pass  # They have received enough.
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def in_memory(run: Run) -> Iterator[Path]:
    """A folder where syncs take no time, if there is such a thing here: these faults do not ask
    what a disk keeps."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield run.folder
        return
    with tempfile.TemporaryDirectory(prefix="litejobs-", dir=memory) as folder:
        yield Path(folder)


@attrs.frozen
class Archive:
    """The files with which scenes begin, made once and copied."""

    run: Run
    folder: Path

    def make(self) -> None:
        """Makes all of them, each by a process of its own."""
        for begins in BEGINNINGS:
            folder = self._folder(begins)
            folder.mkdir(parents=True)

            def work(
                send: Send, begins: Callable[[Path], None] = begins, folder: Path = folder
            ) -> None:
                begins(folder / "jobs.db")
                send("made")

            child = Child.fork(self.run, begins.__name__, work)
            child.receive()
            child.end()

    def _folder(self, begins: Callable[[Path], None]) -> Path:
        return self.folder / "beginnings" / begins.__name__

    @contextlib.contextmanager
    def copy(self, scene: Scene) -> Iterator[Path]:
        """A fresh file to begin a scene with."""
        folder = self.folder / "case"
        shutil.copytree(self._folder(scene.begins), folder)
        try:
            yield folder / "jobs.db"
        finally:
            shutil.rmtree(folder)


class Trouble(Protocol):
    """What goes wrong while a scene is played."""

    hit: str
    """What it hit first; empty, if nothing."""

    def install(self) -> None:
        """In the child, at its beginning."""

    def at_work(self) -> contextlib.AbstractContextManager[None]:
        """Goes wrong meanwhile."""

    def observed(self) -> Any:
        """What it has seen."""


@attrs.define
class Played:
    """What became of a scene."""

    about: str
    outcome: Outcome
    observed: Any
    before: Content
    now: Content


def play(archive: Archive, scene: Scene, trouble: Trouble, about: str) -> Played:
    """Plays a scene with some trouble; what comes after it has to work in any case.

    Raises:
        Violation: the next call does not work, or changes something else, or leaks.
    """
    with archive.copy(scene) as path:
        child = Child.fork(archive.run, about, lambda send: _act(scene, path, trouble, send))
        try:
            child.receive()
            before = content(path)
            outcome, hit, observed = child.receive()
            now = content(path)
            about = f"{about} ({hit or 'not hit'}), which gave {outcome}"
            _check_next(about, child.receive())
            if (leaked := child.receive()) > 0:
                raise Violation(f"{about}: {leaked} descriptors were left open")
            _check_end(about, now, content(path))
            _check_copy(about, path)
        finally:
            child.end()
    return Played(about, outcome, observed, before, now)


def _act(scene: Scene, path: Path, trouble: Trouble, send: Send) -> None:
    """What the child does: the scene in trouble, then the next call without."""
    before = descriptors()
    trouble.install()
    jobs = queue_at(path)
    closing = contextlib.ExitStack()
    if scene.opened:
        jobs.count()
        scene.ready(jobs, closing)
    send("open")
    with trouble.at_work():
        outcome = outcome_of(lambda: scene.act(jobs))
    send([outcome, trouble.hit, trouble.observed()])
    send(outcome_of(lambda: go_on(jobs)))
    jobs.close()
    closing.close()
    send(descriptors() - before)


def go_on(jobs: LiteJobs) -> None:
    """The next calls, with which nothing is wrong."""
    job = note.enqueue("afterwards")
    assert jobs.get(job.id).payload == {"text": "afterwards"}
    if broken := [finding for finding in jobs.doctor() if finding.level == "error"]:
        raise AssertionError(f"the doctor finds {broken}")


def check_state(scene: Scene, played: Played, after: Content) -> None:
    """The error is ours, names the file, and is right about what is there."""
    about, (kind, text) = played.about, played.outcome
    before, now = played.before, played.now
    if kind == "foreign":
        raise Violation(f"{about}: an error that is not ours")
    if kind != "done" and "jobs.db" not in text:
        raise Violation(f"{about}: it does not name the file")
    if now not in (before, after):
        raise Violation(f"{about}: half done: {difference(before, now)}")
    if scene.either or kind == "OutcomeUnknownError":
        return
    if kind == "done" and now != after:
        raise Violation(f"{about}: done, and not there: {difference(after, now)}")
    if kind != "done" and now != before:
        raise Violation(f"{about}: refused, and there: {difference(before, now)}")


def _check_next(about: str, outcome: Outcome) -> None:
    """What comes next works."""
    if outcome[0] != "done":
        raise Violation(f"{about}: the next call gave {outcome}")


def _check_end(about: str, before: Content, after: Content) -> None:
    """Nothing has gone since then, and the one job has come."""
    # The next step of the schema gives all rows further columns.
    same_schema = before.get("litejobs_meta") == after["litejobs_meta"]
    known = before.get("litejobs_job", ()) if same_schema else ()
    if gone := [row for row in known if row not in after["litejobs_job"]]:
        raise Violation(f"{about}: the next call changed {gone}")
    come = len(after["litejobs_job"]) - len(before.get("litejobs_job", ()))
    if come != 1:
        raise Violation(f"{about}: the next call brought {come} jobs")


def _check_copy(about: str, path: Path) -> None:
    """It is whole, or gone; if it could be removed."""
    copy = path.with_name(f"copy-{path.name}")
    if copy.exists() and "from then on" not in about and not content(copy):
        raise Violation(f"{about}: there is a copy, and nothing in it")
