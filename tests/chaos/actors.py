"""Processes that ordeals start, watch and kill, and the diaries in which these write what they did.

They are forked, since starting Python anew for each of thousands takes longer than all the rest;
so whoever directs them must not have a queue open meanwhile. They end with their director.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

FOLDER = "LITEJOBS_CHAOS_FOLDER"
"""The environment variable by which workers, too, know where their diaries belong."""
AVAILABLE = sys.platform == "linux"
"""Whether there is what all this needs: /proc, and the kernel to end children."""


@attrs.define(eq=False)
class Diary:
    """What one process did, line by line: a line is there whatever befalls the process next."""

    _descriptor: int

    @classmethod
    def begin(cls, role: str) -> Diary:
        """A new one, of its own, in the folder of this run."""
        # A process may have the number of one that is dead.
        name = f"{role}-{os.getpid()}-{time.monotonic_ns()}.diary"
        place = Path(os.environ[FOLDER]) / name
        return cls(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))

    def write(self, *words: object) -> None:
        """Adds a line, in one write."""
        os.write(self._descriptor, (" ".join(map(str, words)) + "\n").encode())


def digest(content: object) -> str:
    """What JSON values are, in a few letters that nothing else has."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def diary_of_worker() -> Diary:
    """A diary as the state of a worker."""
    return Diary.begin("worker")


def lines_of(place: Path) -> Iterator[list[str]]:
    """The lines of a diary, word by word; but not a last one that was cut off, since that write
    had not returned."""
    return (line.split(" ") for line in place.read_text().split("\n")[:-1])


def entries(folder: Path, role: str = "") -> Iterator[list[str]]:
    """The lines of all diaries of a role, each diary's in order."""
    for place in sorted(folder.glob(f"{role}*.diary")):
        yield from lines_of(place)


@attrs.define(eq=False)
class Actor:
    """A process that plays a role until it is asked to stop, or killed."""

    role: str
    pid: int
    errors: Path
    """What it wrote to the standard streams."""
    _status: int | None = None

    @property
    def exit_code(self) -> int | None:
        """As subprocess gives it; `None` as long as it lives."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def signal(self, number: int) -> None:
        """Sends it a signal, if it lives: until it was waited for the number is its own."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it, and sees it dead."""
        self.signal(signal.SIGKILL)
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def ended(self, within: float) -> bool:
        """Whether it ends by itself in time."""
        return eventually(lambda: self.exit_code is not None, within)

    @property
    def complaint(self) -> str:
        """The end of what it wrote to the standard streams."""
        return self.errors.read_text(errors="replace")[-2000:].strip()


def start(folder: Path, role: str, act: Callable[[], None]) -> Actor:
    """Has another process play a role."""
    errors = folder / f"{role}.err"
    director = os.getpid()
    pid = os.fork()
    if pid == 0:
        _play(folder, errors, director, act)
    return Actor(role, pid, errors)


def _play(folder: Path, errors: Path, director: int, act: Callable[[], None]) -> None:
    """The whole life of an actor. It never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == director:
            os.environ[FOLDER] = str(folder)
            _redirect(errors)
            act()
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(errors: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    for source, stream in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, stream)
    os.close(nothing)
    os.close(written)


class Stopped:
    """Whether the process has got a SIGTERM. (An Event whose `wait` is interrupted by a handler
    that sets it waits for its own lock, for ever.)"""

    def __init__(self) -> None:
        self._stop_read, stop_write = os.pipe()
        signal.signal(signal.SIGTERM, lambda number, frame: os.write(stop_write, b"!"))

    def wait(self, seconds: float) -> bool:
        """Waits for it, at most so long."""
        return bool(select.select([self._stop_read], [], [], seconds)[0])


def eventually(look: Callable[[], object], within: float) -> bool:
    """Whether *look* gives something true in time."""
    give_up = time.monotonic() + within
    while not look():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        found = [
            Path(f"/proc/{pid}/task/{task}/children") for task in os.listdir(f"/proc/{pid}/task")
        ]
        return [int(child) for place in found for child in place.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def workers(node: int) -> list[int]:
    """The workers of a node: its children, but for the one that cleans up after all of them."""
    return [pid for pid in children(node) if b"spawn_main" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@functools.cache
def kibibytes_of_a_page() -> int:
    return os.sysconf("SC_PAGE_SIZE") // 1024


@attrs.frozen
class Usage:
    """What a process has of the machine."""

    memory: int
    """Resident, in KiB."""
    descriptors: int
    threads: int
    cpu: float
    """Seconds, those of its dead children included."""


def usage(pid: int) -> Usage | None:
    """What a process uses now; `None` if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = sum(map(int, stat[11:15]))
        return Usage(
            memory=int(stat[21]) * kibibytes_of_a_page(),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            threads=int(stat[17]),
            cpu=ticks / os.sysconf("SC_CLK_TCK"),
        )
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
