"""What every queue is asked to do, and the notes by which it is measured.

    python -m bench.peer MODULE enqueue JOBS SECONDS GATES
    python -m bench.peer MODULE work
    python -m bench.peer MODULE wake SAMPLES SECONDS

A module, the program of one queue, has `enqueue(n)`, which enqueues `run(n)`, and `work()`, which
runs jobs in two workers until it is ended. All of it runs in that queue's own environment, so it
needs nothing but the standard library. `plainjob.mjs` is the same in JavaScript.
"""

import importlib
import os
import random
import struct
import time
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path

FOLDER = Path(os.environ["PEER_FOLDER"])
FILE = FOLDER / "jobs.db"
GATE = FOLDER / "open"
NOTES = FOLDER / "notes"
NOTE = struct.Struct("=qq")
"""A job's number, and when it began in nanoseconds of the clock that all processes share."""
WARM_UP = 100
"""Jobs, all with the number 0, that are run before the gates."""
WAKE = 1_000_000_000
"""The number from which jobs count that meet an idle queue."""

Enqueue = Callable[[int], object]

_notes = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def run(n: int) -> None:
    """The job. One with a negative number is a gate: it keeps its worker until all may start."""
    os.write(_notes, NOTE.pack(n, time.monotonic_ns()))
    while n < 0 and not GATE.exists():
        time.sleep(0.001)


def enqueue_backlog(enqueue: Enqueue, jobs: int, seconds: float, gates: int) -> None:
    """Prints how many jobs were enqueued and the seconds it took: fewer than *jobs* (but 1,000)
    if the time is over. Nobody runs jobs meanwhile; those that warm up stand before them."""
    for n in [0] * WARM_UP + [-1] * gates:
        enqueue(n)
    n = 0
    began = time.perf_counter()
    while n < jobs and (n < 1000 or time.perf_counter() - began < seconds):
        n += 1
        enqueue(n)
    print(n, time.perf_counter() - began)


def wake(enqueue: Enqueue, samples: int, seconds: float) -> None:
    """Prints the milliseconds from before each enqueue to the first line of the handler."""
    end = time.monotonic() + seconds
    with NOTES.open("rb", buffering=0) as notes:
        notes.seek(0, os.SEEK_END)
        for n in range(WAKE, WAKE + samples):
            time.sleep(random.uniform(0.03, 0.13))
            before = time.monotonic_ns()
            enqueue(n)
            print((began(n, notes) - before) / 1e6)
            if time.monotonic() > end:
                return


def began(n: int, notes: RawIOBase) -> int:
    """Waits for the note of a job."""
    while True:
        note = notes.read(NOTE.size)
        if not note:
            time.sleep(0.001)
        elif (noted := NOTE.unpack(note))[0] == n:
            return int(noted[1])


def main(module: str, command: str, *numbers: str) -> None:
    queue = importlib.import_module(f"bench.peer.{module}")
    if command == "work":
        queue.work()
    elif command == "wake":
        wake(queue.enqueue, int(numbers[0]), float(numbers[1]))
    else:
        enqueue_backlog(queue.enqueue, int(numbers[0]), float(numbers[1]), int(numbers[2]))
