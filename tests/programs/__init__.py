"""Programs that the tests start, and what it takes to start and to watch them.

Everything here waits for conditions, with a deadline: nothing just sleeps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

TESTS = Path(__file__).resolve().parent.parent
TIMEOUT = 60.0
"""Seconds until something that must happen counts as not happening, on a busy machine."""


def eventually(look: Callable[[], T], within: float = TIMEOUT) -> T:
    """What *look* gives as soon as it is true."""
    give_up = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < give_up, f"it did not come to pass within {within:g} s"
        time.sleep(0.005)
    return found


def never(look: Callable[[], object], during: float) -> None:
    """Makes sure that *look* stays false for so many seconds."""
    end = time.monotonic() + during
    while time.monotonic() < end:
        assert not (found := look()), f"it came to pass: {found!r}"
        time.sleep(0.01)


def lines(log: Path) -> list[str]:
    """The complete lines of a log that jobs write."""
    return log.read_text().split("\n")[:-1] if log.exists() else []


def printed(program: Path, folder: Path, *options: str) -> str:
    """What an example prints when it is run in a folder; it has to end well."""
    done = subprocess.run(
        [sys.executable, str(program), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


class Programs:
    """Starts programs in folders and sessions of their own, and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.errors = folder / "stderr.txt"
        self._started: list[subprocess.Popen[str]] = []

    def write(self, **sources: str) -> None:
        """Writes modules; two underscores in a name stand for a folder."""
        for name, source in sources.items():
            place = self.folder / (name.replace("__", "/", 1) + ".py")
            place.parent.mkdir(exist_ok=True)
            place.write_text(source)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Starts Python with these arguments."""
        with self.errors.open("a") as errors:
            program = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths())},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._started.append(program)
        return program

    def node(self, path: Path, *options: str) -> subprocess.Popen[str]:
        """Starts a node that runs the definitions of `trouble`."""
        return self.start("-m", "programs.node", path, *options)

    def run(self, *arguments: object) -> tuple[int, str, str]:
        """Runs Python to its end: exit code, output, error output."""
        self.errors.unlink(missing_ok=True)
        program = self.start(*arguments)
        output, _ = program.communicate(timeout=TIMEOUT)
        return program.returncode, output, self.errors.read_text()

    def close(self) -> None:
        """Kills what still runs."""
        for program in self._started:
            if program.poll() is None:
                os.kill(program.pid, signal.SIGCONT)
                program.kill()
            program.communicate()


def _paths() -> Iterator[str]:
    yield str(TESTS)
    if "PYTHONPATH" in os.environ:
        yield os.environ["PYTHONPATH"]
