"""A program whose wall clock others turn, while its nodes run: python -m programs.clocked PATH.

The clock is the machine's and an offset, which stands in a file that all processes map. What the
jobs note of themselves they note with the monotonic clock, which nobody turns.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
import sys
import time
from datetime import timedelta
from pathlib import Path

from litejobs import Constant, Context, LiteJobs, Retention, define

from .trouble import note

OFFSET = "LITEJOBS_TEST_OFFSET"
"""Names the file with the offset: eight bytes, microseconds."""
HOUR = timedelta(hours=1)
KEPT = Retention(completed=None, cancelled=None, failed=None)


@functools.cache
def _mapped() -> mmap.mmap:
    with open(os.environ[OFFSET], "r+b") as file:
        return mmap.mmap(file.fileno(), 8)


def clock() -> int:
    """What the clock on the wall shows."""
    offset: int = struct.unpack("q", _mapped()[:8])[0]
    return time.time_ns() // 1000 + offset


def turn(micros: int) -> None:
    """Turns it for all processes at once."""
    offset: int = struct.unpack("q", _mapped()[:8])[0]
    _mapped()[:8] = struct.pack("q", offset + micros)


def note_run(log: str, context: Context) -> None:
    """One line for each attempt: the job, the attempt, and when it began."""
    note(log, f"{context.job.id} {context.attempt} {time.monotonic()}")


@define(retention=KEPT)
def once(context: Context, log: str) -> None:
    note_run(log, context)


@define(retention=KEPT, backoff=Constant(HOUR, jitter="none"), max_attempts=3)
def third_time(context: Context, log: str) -> None:
    """Waits an hour after each failure."""
    note_run(log, context)
    if context.attempt < 3:
        raise ValueError("not yet")


@define(retention=KEPT, timeout=120, max_attempts=1)
def patient(context: Context, log: str, seconds: float) -> None:
    """Has time enough, by a clock that nobody turns."""
    note_run(log, context)
    time.sleep(seconds)


@define(retention=KEPT, timeout=0.3, max_attempts=1)
def late(context: Context, log: str) -> None:
    """Is out of time soon, whatever the clock on the wall shows."""
    note_run(log, context)
    time.sleep(60)


@define(retention=KEPT)
def tick(context: Context, log: str) -> None:
    note_run(log, context)


DEFINITIONS = (once, third_time, patient, late, tick)


def program(path: str | Path) -> LiteJobs:
    """The queue that goes by this clock, with all definitions."""
    jobs = LiteJobs(path, durability="fast", clock=clock)
    jobs.register(*DEFINITIONS)
    return jobs


if __name__ == "__main__":
    program(sys.argv[1]).work(2, grace=0.3, queues=["default"])
