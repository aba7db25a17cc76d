"""What the benchmarks share: a queue, a node, figures with their spread."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol, cast

import apsw
import attrs

from litejobs import LiteJobs

Aim = Literal["at least", "at most"]


@attrs.frozen
class Figure:
    """One measured thing, taken several times, beside its limit in the same run."""

    what: str
    unit: str
    ours: Sequence[float]
    beside: str = ""
    theirs: Sequence[float] = ()
    aim: tuple[Aim, float] | None = None
    """For the median of the ratios if there is a limit, else for that of ours."""
    upside_down: bool = False
    """Whether the ratio is that of theirs to ours, as for times: 1 is still the limit."""

    @property
    def ratios(self) -> list[float]:
        """Pair by pair, in the order in which they were measured."""
        pairs = list(zip(self.ours, self.theirs, strict=bool(self.theirs)))
        return [b / a if self.upside_down else a / b for a, b in pairs]

    @property
    def met(self) -> bool | None:
        """Whether the median is what was aimed at."""
        if self.aim is None:
            return None
        value = statistics.median(self.ratios or self.ours)
        return value >= self.aim[1] if self.aim[0] == "at least" else value <= self.aim[1]

    def cells(self) -> list[str]:
        """The figure as a line of the table."""
        aim = "" if self.aim is None else f"{'≥' if self.aim[0] == 'at least' else '≤'} "
        aim += "" if self.aim is None else number(self.aim[1])
        verdict = {None: "", True: "yes", False: "NO"}[self.met]
        theirs = f"{self.beside}: {number(statistics.median(self.theirs))}" if self.theirs else ""
        ratio = spread(self.ratios) if self.theirs else ""
        return [self.what, f"{spread(self.ours)} {self.unit}", theirs, ratio, aim, verdict]


HEADINGS = ["what", "litejobs", "beside it", "ratio", "aim", "met"]


def table(figures: Sequence[Figure]) -> str:
    """Figures as a table that Markdown understands."""
    lines = [HEADINGS, *(figure.cells() for figure in figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    lines.insert(1, ["-" * width for width in widths])
    rows = ([cell.ljust(width) for cell, width in zip(x, widths, strict=True)] for x in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if abs(value) >= 1000:
        digits = max(0, len(str(int(abs(value)))) - 3)
        return f"{round(value / 10**digits) * 10**digits:,.0f}"
    return f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median, and the whole range."""
    middle = number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))} to {number(max(values))})"


def seconds(action: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which that share of all lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Runner(Protocol):
    """A thread or a process."""

    def start(self) -> None:
        """Sets it off."""

    def join(self) -> None:
        """Waits for its end."""


def together(runners: Sequence[Runner], ready: Callable[[], object]) -> float:
    """Seconds from when all are *ready*, which each waits for too, to the end of the last."""
    for runner in runners:
        runner.start()
    ready()
    began = time.perf_counter()
    for runner in runners:
        runner.join()
    return time.perf_counter() - began


# A queue and a node


def run_command(workers: int, *options: str) -> list[str]:
    """The command that runs a node on the queue of the benchmark."""
    target = ["run", "tests.bench.work:jobs", "--workers", str(workers)]
    return [sys.executable, "-m", "litejobs", *target, *options]


@contextlib.contextmanager
def queue(durability: str = "full", file: Path | None = None) -> Iterator[LiteJobs]:
    """A queue in a fresh file, or in *file*, and the environment that leads other
    processes to it. Import `tests.bench.work` inside."""
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as folder:
        place = file or Path(folder, "bench.db")
        os.environ["BENCH_DB"] = str(place.resolve())
        os.environ["BENCH_DURABILITY"] = durability
        sys.modules.pop("tests.bench.work", None)
        from .work import jobs

        with jobs:
            yield jobs


@contextlib.contextmanager
def node(*options: str, workers: int = 2) -> Iterator[subprocess.Popen[bytes]]:
    """A node in a process of its own, warm: it has run jobs."""
    from .work import first_line

    process = subprocess.Popen(run_command(workers, *options), stderr=subprocess.DEVNULL)
    try:
        for _ in range(20):
            first_line.enqueue().wait(timeout=20)
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def opened(file: Path) -> Iterator[apsw.Connection]:
    """The file without litejobs, for what is no part of a measurement."""
    connection = apsw.Connection(str(file))
    try:
        connection.set_busy_timeout(30_000)
        connection.transaction_mode = "IMMEDIATE"
        connection.pragma("synchronous", "off")
        connection.pragma("temp_store", "memory")
        yield connection
    finally:
        connection.close()


def drained(file: Path, only: str | None = None) -> float:
    """No-op jobs per second through two workers, from the end of the first tenth of what is
    pending (in one queue *only*) to the last one."""
    with opened(file) as connection:
        span = connection.execute(
            "SELECT min(id), max(id) FROM litejobs_job"
            " WHERE state = 'pending' AND queue = coalesce(?, queue)",
            (only,),
        ).fetchone()
    with queue("fast", file):
        command = run_command(2, "--until", "empty", *(["--queue", only] if only else []))
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=600)
    with opened(file) as connection:
        ends = connection.execute(
            """
            SELECT finished_at FROM litejobs_job
            WHERE id BETWEEN ? AND ? AND state = 'completed' ORDER BY finished_at
            """,
            span,
        ).fetchall()
    moments = [cast(int, moment) for (moment,) in ends]
    tenth = len(moments) // 10
    return (len(moments) - tenth) / (moments[-1] - moments[tenth]) * 1e6


def first_lines(
    number: int, durability: str = "fast", file: Path | None = None, pause: float = 0.015
) -> list[float]:
    """Milliseconds from before `enqueue` to the first line in another process, on a node
    that has nothing else to run."""
    with queue(durability, file) as jobs, node():
        from .work import first_line

        began = []
        for _ in range(number):
            time.sleep(pause)
            began.append((time.monotonic_ns(), first_line.enqueue().id))
        return [(jobs.wait(id, timeout=60).result() - start) / 1e6 for start, id in began]


# Processes (Linux)


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def cpu_seconds(pid: int) -> float:
    """Time that all threads of a process have been on a core, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def peak_memory(pid: int) -> float:
    """The largest resident set of a process, in megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
