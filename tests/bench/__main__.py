"""Benchmarks: `python -m tests.bench [--quick] [NAME ...]`.

Every figure stands beside its limit, measured in the same run. Machines are noisy: what
counts is the ratio, and its spread over the rounds.
"""

import argparse
import array
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw

from litejobs import LiteJobs

ROUNDS = 5


@contextlib.contextmanager
def queue(durability: str = "full") -> Iterator[LiteJobs]:
    """A fresh queue, and the environment that leads workers to it."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.environ["BENCH_DB"] = str(Path(folder, "bench.db").resolve())
        os.environ["BENCH_DURABILITY"] = durability
        for module in [name for name in sys.modules if name == "tests.bench.work"]:
            del sys.modules[module]
        from .work import jobs

        with jobs:
            yield jobs


@contextlib.contextmanager
def node(workers: int = 2) -> Iterator[subprocess.Popen[bytes]]:
    """A node in a process of its own, warm: it has run a job."""
    from .work import first_line

    command = ["run", "tests.bench.work:jobs", "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, "-m", "litejobs", *command], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(20):
            first_line.enqueue().wait(timeout=20)
        yield process
    finally:
        process.terminate()
        process.wait()


def spread(figures: list[float]) -> str:
    """Median, and the whole range."""
    return f"{statistics.median(figures):,.2f} ({min(figures):,.2f} to {max(figures):,.2f})"


def bare_drain(number: int, batch: int) -> float:
    """Seconds for bare apsw to settle and claim *number* jobs, *batch* in a transaction,
    in one process and without running anything: the limit for a pool."""
    with queue() as jobs:
        fill(jobs, number)
        jobs.close()
        connection = apsw.Connection(os.environ["BENCH_DB"])
        connection.transaction_mode = "IMMEDIATE"
        connection.pragma("synchronous", "normal")
        connection.pragma("temp_store", "memory")
        connection.pragma("wal_autocheckpoint", 4000)
        begin = time.perf_counter()
        settled: list[tuple[int, ...]] = []
        while True:
            with connection:
                connection.executemany(
                    "UPDATE litejobs_job SET state = 'completed', finished_at = ?, prune_at = ?,"
                    " holder = NULL WHERE id = ? AND claim = ? AND state = 'running'",
                    settled,
                )
                ids = [
                    id
                    for (id,) in connection.execute(
                        "SELECT id FROM litejobs_job WHERE state = 'pending' AND"
                        " queue = 'default' AND name = 'noop' AND node = ''"
                        " ORDER BY priority DESC, run_at, id LIMIT ?",
                        (batch,),
                    )
                ]
                if not ids:
                    break
                rows: list[Any] = connection.execute(
                    "UPDATE litejobs_job SET state = 'running', attempt = attempt + 1,"
                    " claim = claim + 1, holder = 1, started_at = 1 WHERE id IN carray(?)"
                    " RETURNING id, claim, name, payload",
                    (apsw.carray(array.array("q", ids)),),
                ).fetchall()
            now = time.time_ns() // 1000
            settled = [(now, now, row[0], row[1]) for row in rows]
        connection.close()
        return time.perf_counter() - begin


def fill(jobs: LiteJobs, number: int) -> float:
    """Enqueues no-op jobs, 10,000 in a transaction; gives the seconds it took."""
    from .work import noop

    begin = time.perf_counter()
    numbers = iter(range(number))
    while chunk := [noop.bind(n) for n in itertools.islice(numbers, 10_000)]:
        jobs.enqueue_many(chunk)
    return time.perf_counter() - begin


def throughput(quick: bool) -> None:
    """No-op jobs through two workers, beside bare apsw in batches of 64."""
    number = 20_000
    ours, bare = [], []
    for _ in range(3 if quick else ROUNDS):
        bare.append(number / bare_drain(number, 64))
        with queue() as jobs:
            fill(jobs, number)
            begin = time.perf_counter()
            with jobs.start(workers=2) as pool:
                while jobs.count(state="completed") < 1:
                    time.sleep(0.0005)
                warm, first = time.perf_counter(), jobs.count(state="completed")
                while jobs.count(state="pending") or jobs.count(state="running"):
                    time.sleep(0.002)
                end = time.perf_counter()
            del pool
            ours.append((number - first) / (end - warm))
            print(f"  all {number:,} with starting the node: {end - begin:.2f} s")
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    print(f"  litejobs, 2 workers (NORMAL)      {spread(ours)} jobs/s")
    print(f"  bare apsw, 64 a transaction       {spread(bare)} jobs/s")
    print(f"  ratio                             {spread(ratios)}")


def latency(quick: bool) -> None:
    """From before `enqueue` in one process to the handler's first line in another."""
    number = 200 if quick else 1000
    for durability in ("fast", "full"):
        with queue(durability) as jobs, node():
            from .work import first_line

            began = []
            for _ in range(number):
                time.sleep(0.015)
                began.append((time.monotonic_ns(), first_line.enqueue().id))
            waits = sorted((jobs.wait(id).result() - begin) / 1e6 for begin, id in began)
        p50, p99 = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
        print(f"  durability={durability}: median {p50:.2f} ms, p99 {p99:.2f}, max {waits[-1]:.2f}")


def lateness(quick: bool) -> None:
    """From the time that a job is due to its first line."""
    number = 50 if quick else 200
    with queue() as jobs, node():
        from .work import first_line

        offset = time.time_ns() - time.monotonic_ns()
        made = [first_line.using(delay=1 + n * 0.02).enqueue() for n in range(number)]
        late = sorted(
            (job.result(timeout=60) + offset) / 1e6 - job.row.run_at / 1e3 for job in made
        )
        del jobs
    print(f"  median {late[number // 2]:.2f} ms, from {late[0]:.2f} to {late[-1]:.2f}")


def idle(quick: bool) -> None:
    """A node with two workers and nothing to do: CPU time and bytes written."""
    seconds = 15 if quick else 60
    with queue() as jobs, node() as process:
        time.sleep(1)
        files = [jobs.store.file.path, Path(f"{jobs.store.file.path}-wal")]
        before = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        processes = family(process.pid)
        cpu = sum(map(cpu_seconds, processes))
        time.sleep(seconds)
        spent = sum(map(cpu_seconds, processes)) - cpu
        same = before == [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    print(f"  {len(processes)} processes, {seconds} s: {spent * 1000:.0f} ms of CPU time")
    print(f"  {spent / seconds:.3%} of a core; file and WAL {'untouched' if same else 'WRITTEN'}")


def million(quick: bool) -> None:
    """A backlog: memory must not grow with it."""
    number = 100_000 if quick else 1_000_000
    with queue() as jobs:
        seconds = fill(jobs, number)
        print(f"  enqueue_many, 10,000 a call: {number / seconds:,.0f} jobs/s")
        print(f"  peak memory of the producer: {peak_memory(os.getpid()):.0f} MB")
        command = ["run", "tests.bench.work:jobs", "--workers", "2", "--until", "empty"]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "litejobs", *command], stderr=subprocess.DEVNULL
        )
        peaks: dict[int, float] = {}
        while process.poll() is None:
            for pid in family(process.pid):
                with contextlib.suppress(OSError, IndexError):
                    peaks[pid] = peak_memory(pid)
            time.sleep(0.2)
        seconds = time.perf_counter() - begin
        done = jobs.count(state="completed")
        size = jobs.store.file.path.stat().st_size / 2**20
    print(f"  {done:,} completed in {seconds:.1f} s: {done / seconds:,.0f} jobs/s")
    print(f"  peak memory, node then children: {', '.join(f'{p:.0f}' for p in peaks.values())} MB")
    print(f"  the file: {size:.0f} MB")


def family(pid: int) -> list[int]:
    """A process and its children (Linux)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def cpu_seconds(pid: int) -> float:
    """Time that all threads of a process have been on a core, to the nanosecond (Linux)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def peak_memory(pid: int) -> float:
    """The largest resident set of a process, in megabytes (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


BENCHES: tuple[Callable[[bool], None], ...] = (
    throughput,
    latency,
    lateness,
    idle,
    million,
)


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(b.__name__ for b in BENCHES))
    parser.add_argument("--quick", action="store_true", help="about a minute in all")
    options = parser.parse_args()
    for bench in BENCHES:
        if not options.names or bench.__name__ in options.names:
            print(f"{bench.__name__}: {(bench.__doc__ or '').splitlines()[0]}", flush=True)
            bench(options.quick)


if __name__ == "__main__":
    main()
