"""The definitions that the benchmarks run; the file is named by the environment."""

import os
import time

from litejobs import LiteJobs

jobs = LiteJobs(
    os.environ.get("BENCH_DB", "bench.db"),
    durability="fast" if os.environ.get("BENCH_DURABILITY") == "fast" else "full",
)


@jobs.define
def noop(n: int) -> None:
    """Nothing: what is measured is the queue."""


@jobs.define
def first_line() -> int:
    """The moment of its own first line, by the clock that all processes share."""
    return time.monotonic_ns()


@jobs.define
def compute(milliseconds: float) -> None:
    """Keeps a core busy for a while."""
    end = time.perf_counter() + milliseconds / 1000
    while time.perf_counter() < end:
        pass


@jobs.define
def sink(text: str) -> None:
    """Takes a payload of any size."""
