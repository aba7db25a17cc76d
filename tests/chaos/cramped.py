"""A program with too little room: its node may open few files, or the disk is full.

`python -m tests.chaos.cramped KIND PATH AMOUNT` prints what became of it, as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs

import litejobs
from litejobs import LiteJobs, LitejobsError, define

from .ordeal import Run, Violation
from .scenes import linger, note
from .system import Call, replace


@define
def swell(text: str) -> str:
    return 3 * text


DEADLINE = 60.0
"""Seconds for what takes three."""


def cramped(run: Run, kind: str, path: Path, amount: int) -> dict[str, Any]:
    """Runs the program in a process of its own; returns what it reports."""
    command = [sys.executable, "-m", "tests.chaos.cramped", kind, str(path), str(amount)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        raise Violation(f"{kind}, {amount}: nothing happened for {DEADLINE:.0f} s") from None
    run.expect(ended.returncode == 0, f"{kind}, {amount}: {ended.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return report


@attrs.define(eq=False)
class SmallDisk:
    """A disk with so much room left, as SQLite sees it: what does not fit is written in part,
    and then refused."""

    number: int
    """The errno of the refusal: ENOSPC, or EDQUOT for a quota."""
    left: int | None = None
    """Bytes; `None`: as much as one likes."""
    _kept: list[object] = attrs.field(factory=list)

    def install(self) -> None:
        """From now on, for the rest of this process."""
        ways = {
            "write": self._writing,
            "pwrite64": self._writing,
            "ftruncate": self._truncating,
            "unlink": self._unlinking,
        }
        self._kept = [replace(name, by) for name, by in ways.items()]

    @contextlib.contextmanager
    def with_room(self, room: int) -> Iterator[None]:
        """Leaves so much room meanwhile."""
        self.left = room
        asked, os.statvfs = os.statvfs, self._statvfs
        try:
            yield
        finally:
            self.left, os.statvfs = None, asked

    def _statvfs(self, path: Any) -> Any:
        """What a disk says that is nearly full. Of a quota it would say nothing."""
        known = 1 if self.number == errno.ENOSPC else 0
        return SimpleNamespace(f_bavail=max(0, self.left or 0), f_frsize=1, f_blocks=known)

    def _writing(self, name: str, original: Call) -> Call:
        def write(handle: int, buffer: int, size: int, *place: int) -> int:
            if self.left is None:
                return original(handle, buffer, size, *place)
            start = place[0] if place else os.lseek(handle, 0, os.SEEK_CUR)
            grows = max(0, start + size - os.fstat(handle).st_size)
            missing = max(0, grows - max(0, self.left))
            if missing >= size:
                ctypes.set_errno(self.number)
                return -1
            self.left -= grows - missing
            return original(handle, buffer, size - missing, *place)

        return write

    def _truncating(self, name: str, original: Call) -> Call:
        def truncate(handle: int, size: int) -> int:
            if self.left is not None:
                self.left += os.fstat(handle).st_size - size
            return original(handle, size)

        return truncate

    def _unlinking(self, name: str, original: Call) -> Call:
        def unlink(path: bytes) -> int:
            if self.left is not None:
                with contextlib.suppress(FileNotFoundError):
                    self.left += os.stat(path).st_size
            return original(path)

        return unlink


def eventually(holds: Callable[[], bool], patience: float = 20.0) -> bool:
    """Whether something comes to hold soon."""
    give_up = time.monotonic() + patience
    while not holds():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True


def waiting(jobs: LiteJobs) -> int:
    """How many jobs have not ended."""
    return jobs.count() - jobs.count(state=["completed", "failed"])


def work_without_descriptors(jobs: LiteJobs, left: int) -> dict[str, Any]:
    """A node that may open only so many files more."""
    jobs.enqueue_many(note.bind(str(number)) for number in range(5))
    jobs.close()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while (last := os.dup(0)) < highest:
        pass  # What is free below would not count.
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + left, before[1]))
    outcome = "done", ""
    try:
        jobs.work(workers=2, until="empty", grace=1.0)
    except LitejobsError as error:
        outcome = type(error).__name__, str(error)
    except OSError as error:
        outcome = "foreign", repr(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    return {
        "outcome": outcome, "jobs": jobs.count(), "waiting": waiting(jobs),
        "nodes": [node.name for node in jobs.nodes()],
    }  # fmt: skip


def work_on_a_full_disk(jobs: LiteJobs, room: int) -> dict[str, Any]:
    """A node whose disk fills while its jobs run, and which has space again later."""
    disk, end = SmallDisk(errno.ENOSPC), jobs.path.with_name("end")
    disk.install()
    refusals: list[str] = []
    enqueued = 2
    for _ in range(2):
        linger.enqueue(str(end))
    with jobs.start(workers=2, grace=1.0):
        eventually(lambda: jobs.count(state="running") == 2)
        with disk.with_room(room):
            while len(refusals) < 3 and enqueued < 3_000:
                try:
                    jobs.enqueue_many(note.bind("x" * 3_000) for _ in range(20))
                    enqueued += 20
                except LitejobsError as error:
                    refusals.append(type(error).__name__)
            end.touch()
            settled = eventually(lambda: jobs.count(state="running", name="linger") == 0)
            eventually(lambda: waiting(jobs) == 0, 2.0)
            began = time.process_time()
            time.sleep(0.5)
            cpu = time.process_time() - began
        note.enqueue("afterwards")
        eventually(lambda: waiting(jobs) == 0)
    return {
        "refusals": refusals, "settled": settled, "cpu": cpu, "waiting": waiting(jobs),
        "lost": enqueued + 1 - jobs.count(),
    }  # fmt: skip


def work_until_empty(jobs: LiteJobs, room: int) -> dict[str, Any]:
    """A node that is to end when all is done, on a disk that was filled while no node was at work.
    Its jobs return what makes the file larger."""
    disk, enqueued = SmallDisk(errno.ENOSPC), 0
    disk.install()
    litejobs.BUSY_TIMEOUT = 1.0
    outcome = "done"
    with disk.with_room(room):
        try:
            while True:
                swell.enqueue("x" * 3_000)
                enqueued += 1
        except LitejobsError:
            pass
        try:
            jobs.work(threads=1, until="empty")
        except LitejobsError as error:
            outcome = f"{type(error).__name__}: {error}"
    states = jobs.stats()["default"]
    jobs.work(threads=1, until="empty")
    return {"outcome": outcome, "enqueued": enqueued, "states": states, "after": jobs.stats()}


def main() -> None:
    logging.disable()
    kind, path, amount = sys.argv[1:]
    jobs = LiteJobs(Path(path))
    jobs.register(note, linger, swell)
    does = {
        "descriptors": work_without_descriptors, "disk": work_on_a_full_disk,
        "empty": work_until_empty,
    }  # fmt: skip
    print(json.dumps(does[kind](jobs, int(amount))), flush=True)
    os._exit(0)  # SQLite would call what has been put in place, when that is gone already.


if __name__ == "__main__":
    main()
