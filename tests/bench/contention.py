"""Many at once: producers that want the write lock, and a node that prunes while it works."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from .large import Contents, build, merged, now, temporary
from .measure import Figure, drained, first_lines, opened, percentile, queue

CROWD = 8
PAUSE = 0.002
PACE = 0.005


# Producers


@attrs.frozen
class Producers:
    """What producers saw who enqueued for the same time."""

    seconds: float
    waits: list[list[float]]
    """Milliseconds of each call, by process."""
    errors: int

    @property
    def together(self) -> list[float]:
        return [wait for one in self.waits for wait in one]


def producers(quick: bool) -> Iterator[Figure]:
    """Eight processes that enqueue at once into one file, saturated and with pauses."""
    rounds = 1 if quick else 3
    for durability in ("full", "fast"):
        for pause, pace in ((0.0, "no pause"), (PAUSE, "2 ms between")):
            seen = [run_producers(durability, pause, 2.0 if quick else 5.0) for _ in range(rounds)]
            what = f"{CROWD} producers, {durability}, {pace}"
            yield from figures(what, seen, paced=pause > 0)


def figures(what: str, seen: Sequence[Producers], *, paced: bool) -> Iterator[Figure]:
    """What is said of several rounds."""
    longest = max(max(producers.together) for producers in seen)
    yield Figure(f"{what}: longest wait", "ms", [longest], aim=("at most", 500))
    tail = [percentile(producers.together, 99) for producers in seen]
    yield Figure(f"{what}: wait, p99", "ms", tail, aim=("at most", 25) if paced else None)
    fair = [fairness([len(one) for one in producers.waits]) for producers in seen]
    yield Figure(f"{what}: fairness", "", fair, aim=("at least", 0.95))
    errors = sum(producers.errors for producers in seen)
    yield Figure(f"{what}: errors", "", [errors], aim=("at most", 0))
    yield Figure(f"{what}: together", "jobs/s", [len(c.together) / c.seconds for c in seen])


def fairness(shares: Sequence[float]) -> float:
    """Jain's index, (Σx)² / (n · Σx²): 1 if all have the same, 1/n if one has all.

    R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness and Discrimination for
    Resource Allocation in Shared Computer Systems. DEC Research Report TR-301, 1984.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def run_producers(durability: str, pause: float, length: float) -> Producers:
    """Lets producers begin at the same moment, and collects what they saw."""
    command = [sys.executable, "-m", "tests.bench.contention", str(pause), str(length)]
    with queue(durability) as jobs, contextlib.ExitStack() as ending:
        jobs.count()
        processes = []
        for _ in range(CROWD):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            ending.callback(process.wait)
            ending.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        start = f"{time.monotonic() + 0.2}\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(start)
            process.stdin.flush()
        said = [json.loads(process.communicate(timeout=length + 120)[0]) for process in processes]
    return Producers(length, [waits for waits, _ in said], sum(errors for _, errors in said))


def produce(pause: float, length: float) -> None:
    """One producer: enqueues from a given moment on, by the clock that all
    processes share, and writes how long each call took."""
    from .work import noop

    noop.enqueue(0)
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    waits, errors = list[float](), 0
    time.sleep(max(0.0, start - time.monotonic()))
    while (began := time.monotonic()) < start + length:
        try:
            noop.enqueue(0)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            errors += 1
        waits.append((time.monotonic() - began) * 1000)
        if pause:
            time.sleep(pause)
    print(json.dumps([waits, errors]))


# Pruning


def pruning(quick: bool) -> Iterator[Figure]:
    """A node that works while it deletes what is past its retention, beside one that has
    nothing to delete."""
    finished, pending, samples = (300_000, 20_000, 200) if quick else (1_000_000, 100_000, 600)
    rounds: list[Figure] = []
    for _ in range(1 if quick else 3):
        with temporary() as folder:
            rounds += pruned_backlog(folder, finished, pending)
        with temporary() as folder:
            rounds += pruned_waits(folder, finished, samples)
    yield from merged(rounds)


def pruned_backlog(folder: Path, finished: int, pending: int) -> Iterator[Figure]:
    """One round of the rate."""
    busy, calm = folder / "busy.db", folder / "calm.db"
    build(busy, Contents(finished, pending=pending, overdue=True))
    build(calm, Contents(finished, pending=pending))
    ours, theirs = drained(busy), drained(calm)
    what = f"no-op jobs, two workers, {finished:,} rows to prune"
    yield Figure(what, "jobs/s", [ours], "none", [theirs], aim=("at least", 0.8))
    yield left(what, busy)


def pruned_waits(folder: Path, finished: int, samples: int) -> Iterator[Figure]:
    """One round of the waiting, at a pace far below what the node can do."""
    busy, calm = folder / "busy.db", folder / "calm.db"
    build(busy, Contents(finished, overdue=True))
    build(calm, Contents(finished))
    ours, theirs = (first_lines(samples, file=file, pause=PACE) for file in (busy, calm))
    what = "from enqueue to the first line, p99"
    tail = [percentile(ours, 99)]
    yield Figure(f"{what}, {finished:,} rows to prune", "ms", tail, aim=("at most", 20))
    yield Figure(f"{what}, nothing to prune", "ms", [percentile(theirs, 99)])
    yield left(what, busy)


def left(what: str, file: Path) -> Figure:
    """How much there still is to prune: something, or it ended too soon to be measured."""
    with opened(file) as connection:
        rows: int = connection.execute(
            "SELECT count(*) FROM litejobs_job WHERE prune_at IS NOT NULL AND prune_at <= ?",
            (now(),),
        ).get
    return Figure(f"{what}: still to prune at its end", "rows", [rows], aim=("at least", 1))


if __name__ == "__main__":
    produce(*map(float, sys.argv[1:]))
