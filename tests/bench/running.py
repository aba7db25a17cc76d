"""Jobs through a pool of two workers, beside what bare SQLite or a plain loop does."""

import contextlib
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from . import bare
from .measure import (
    Figure,
    drained,
    family,
    peak_memory,
    queue,
    run_command,
    seconds,
    together,
)
from .producing import fill

ROUNDS = 5


def throughput(quick: bool) -> Iterator[Figure]:
    """No-op jobs through two workers, beside bare apsw settling and claiming 64 at a time."""
    number = 20_000 if quick else 40_000
    ours, theirs = [], []
    for _ in range(3 if quick else ROUNDS):
        with queue():
            fill(number)
            theirs.append(number / seconds(lambda: bare.drain(64)))
        with queue() as jobs:
            fill(number)
            ours.append(drained(jobs.store.file.path))
    yield Figure(
        "no-op jobs, two workers",
        "jobs/s",
        ours,
        "bare apsw, 64 a transaction",
        theirs,
        ("at least", 0.4),
    )


def short_jobs(quick: bool) -> Iterator[Figure]:
    """Jobs that compute for 1 ms or 20 ms, beside two processes in a plain loop."""
    for milliseconds, number, aim in ((1, 4000, 0.9), (20, 400, 0.98)):
        number = number // 4 if quick else number
        ours, theirs = [], []
        for _ in range(3 if quick else ROUNDS):
            with queue() as jobs:
                from .work import compute

                jobs.enqueue_many(compute.bind(milliseconds) for _ in range(number))
                ours.append(drained(jobs.store.file.path))
            theirs.append(looped(milliseconds, number))
        what = f"jobs of {milliseconds} ms, two workers"
        yield Figure(what, "jobs/s", ours, "plain loops", theirs, ("at least", aim))


def looped(milliseconds: float, number: int) -> float:
    """The same work in two processes that share nothing."""
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(3)
    loops = [
        context.Process(target=loop, args=(milliseconds, number // 2, started)) for _ in range(2)
    ]
    return number / together(loops, started.wait)


def loop(milliseconds: float, number: int, started: Any) -> None:
    """One of the two plain loops."""
    from .work import compute

    started.wait()
    for _ in range(number):
        compute(milliseconds)


def million(quick: bool) -> Iterator[Figure]:
    """A backlog of a million: memory must not grow with it."""
    number = 100_000 if quick else 1_000_000
    with queue() as jobs:
        producing = number / fill(number)
        producer = peak_memory(os.getpid())
        began = time.perf_counter()
        process = subprocess.Popen(run_command(2, "--until", "empty"), stderr=subprocess.DEVNULL)
        peaks = watched(process)
        done = jobs.count(state="completed")
        running = done / (time.perf_counter() - began)
    what = f"a backlog of {number:,}"
    yield Figure(f"{what}: enqueue_many, 10,000 a call", "jobs/s", [producing])
    yield Figure(f"{what}: run", "jobs/s", [running])
    yield Figure(f"{what}: peak memory of the producer", "MB", [producer])
    yield Figure(f"{what}: peak of the supervisor", "MB", peaks[:1], aim=("at most", 45))
    yield Figure(f"{what}: peak of each worker", "MB", peaks[-2:], aim=("at most", 35))


def watched(process: "subprocess.Popen[bytes]") -> list[float]:
    """Peak memory of a process and its children until it ends, the workers last."""
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for pid in family(process.pid):
            with contextlib.suppress(OSError, IndexError):
                peaks[pid] = peak_memory(pid)
        time.sleep(0.2)
    return [peaks[pid] for pid in sorted(peaks)]
