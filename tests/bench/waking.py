"""Waiting: from an enqueue, or a due time, to the handler's first line; and doing nothing."""

import contextlib
import functools
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from . import bare
from .measure import Figure, cpu_seconds, family, first_lines, node, percentile, queue, seconds


def latency(quick: bool) -> Iterator[Figure]:
    """From before `enqueue` in one process to the handler's first line in another; beside
    one commit, one datagram, one claim and one pipe, bare."""
    number = 200 if quick else 1000
    for durability in ("fast", "full"):
        waits = first_lines(number, durability)
        limits = list(bare_waits(durability, number))
        what = f"enqueue to first line, {durability}"
        aims = (1.0, 5.0) if durability == "fast" else (None, None)
        for name, share, aim in zip(("median", "p99"), (50, 99), aims, strict=True):
            yield Figure(
                f"{what}, {name}",
                "ms",
                [percentile(waits, share)],
                "bare",
                [percentile(limits, share)],
                None,
                upside_down=True,
            )
            if aim is not None:
                ours = [percentile(waits, share)]
                yield Figure(f"{what}, {name}, absolute", "ms", ours, aim=("at most", aim))
        yield Figure(f"{what}, all samples", "ms", waits, "bare", limits, upside_down=True)


def bare_waits(durability: str, number: int) -> Iterator[float]:
    """The same way without litejobs: the limit of this machine."""
    with queue(durability) as jobs:
        jobs.count()
        command = [sys.executable, "-m", "tests.bench.bare"]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        try:
            port = int(reader.stdout.readline())
            with bare.connection(durability) as opened, contextlib.closing(wakeup()) as out:
                for n in range(number):
                    time.sleep(0.015)
                    began = time.monotonic_ns()
                    bare.insert(opened, [bare.row(n)])
                    out.sendto(b"", ("127.0.0.1", port))
                    yield (int(reader.stdout.readline()) - began) / 1e6
        finally:
            reader.kill()
            reader.wait()


def wakeup() -> "socket.socket":
    """What datagrams are sent from."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def lateness(quick: bool) -> Iterator[Figure]:
    """From the time that a job is due to its first line."""
    number = 50 if quick else 200
    with queue(), node():
        from .work import first_line

        offset = time.time_ns() - time.monotonic_ns()
        made = [first_line.using(delay=1 + n * 0.02).enqueue() for n in range(number)]
        late = [
            (job.result(timeout=60) + offset) / 1e6 - job.run_at.timestamp() * 1e3 for job in made
        ]
    yield Figure(
        "due time to first line, median", "ms", [statistics.median(late)], aim=("at most", 2)
    )
    yield Figure("due time to first line, earliest", "ms", [min(late)], aim=("at least", 0))


def idle(quick: bool) -> Iterator[Figure]:
    """A node with two workers and nothing to do: CPU time and bytes written."""
    length = 10 if quick else 60
    with queue() as jobs, node() as process:
        time.sleep(7)  # What the first jobs came to is written down within five seconds.
        files = [jobs.store.file.path, Path(f"{jobs.store.file.path}-wal")]
        before = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        processes = family(process.pid)
        cpu = sum(map(cpu_seconds, processes))
        time.sleep(length)
        spent = sum(map(cpu_seconds, processes)) - cpu
        same = before == [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    what = f"idle node, two workers, {length} s"
    yield Figure(f"{what}: CPU", "% of a core", [spent / length * 100], aim=("at most", 0.1))
    yield Figure(f"{what}: files written", "", [0 if same else 1], aim=("at most", 0))


def start(quick: bool) -> Iterator[Figure]:
    """`litejobs run` to the first job's first line, beside an interpreter that imports the
    user's module and calls the handler."""
    ours, theirs = [], []
    for _ in range(5 if quick else 15):
        with queue() as jobs:
            from .work import first_line

            job = first_line.enqueue()
            began = time.monotonic_ns()
            command = ["run", "tests.bench.work:jobs", "--workers", "2", "--until", "empty"]
            run([str(Path(sys.executable).with_name("litejobs")), *command])
            ours.append((jobs.get(job.id).result() - began) / 1e6)
        began = time.monotonic_ns()
        program = "from tests.bench.work import first_line; print(first_line())"
        theirs.append((int(run([sys.executable, "-c", program])) - began) / 1e6)
    yield Figure("start to first line", "ms", ours, "bare import", theirs, aim=("at most", 2))


def imports(quick: bool) -> Iterator[Figure]:
    """What `import litejobs` adds to the start of an interpreter."""
    ours, theirs = [], []
    for _ in range(11 if quick else 31):
        plain, needed, all_of_it = (
            seconds(functools.partial(run, [sys.executable, "-c", code]))
            for code in ("pass", "import apsw, attrs, cattrs", "import litejobs")
        )
        ours.append((all_of_it - plain) * 1e3)
        theirs.append((needed - plain) * 1e3)
    yield Figure("import litejobs", "ms", ours, aim=("at most", 80))
    yield Figure("import litejobs", "ms", ours, "what it imports: apsw, attrs, cattrs", theirs)


def run(command: list[str]) -> str:
    """What a program prints."""
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode()
