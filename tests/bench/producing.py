"""Enqueueing, beside bare inserts of the same rows."""

import itertools
import threading
import time
from collections.abc import Iterator

from . import bare
from .measure import Figure, queue, seconds, together

ROUNDS = 5


def enqueue(quick: bool) -> Iterator[Figure]:
    """One job a call, typed; beside bare apsw inserting the same row."""
    rounds, chunks, chunk = (3, 3, 500) if quick else (ROUNDS, 8, 500)
    for durability in ("full", "fast"):
        with queue(durability), bare.beside(durability) as opened:
            from .work import noop

            noop.enqueue(0)

            def ours() -> None:
                for n in range(chunk):
                    noop.enqueue(n)

            def theirs() -> None:
                for n in range(chunk):
                    bare.insert(opened, [bare.row(n)])

            pairs = [
                [seconds(what) for _ in range(chunks) for what in (ours, theirs)]
                for _ in range(rounds)
            ]
        rate = chunks * chunk
        yield Figure(
            f"enqueue, one by one, durability {durability}",
            "jobs/s",
            [rate / sum(times[0::2]) for times in pairs],
            "bare insert",
            [rate / sum(times[1::2]) for times in pairs],
            ("at least", 0.7),
        )


def enqueue_from_threads(quick: bool) -> Iterator[Figure]:
    """Eight threads at once, beside one, both with synchronous=FULL."""
    rounds, number = (3, 400) if quick else (ROUNDS, 4000)
    many, one = [], []
    for _ in range(rounds):
        with queue("full"):
            from .work import noop

            noop.enqueue(0)
            one.append(number / by_threads(1, number))
            many.append(number / by_threads(8, number // 8))
    yield Figure("enqueue from 8 threads, FULL", "jobs/s", many, "one thread", one, ("at least", 3))


def by_threads(threads: int, share: int) -> float:
    """Seconds for so many threads to enqueue so many jobs each."""
    from .work import noop

    ready = threading.Barrier(threads + 1)

    def produce() -> None:
        ready.wait()
        for n in range(share):
            noop.enqueue(n)

    return together([threading.Thread(target=produce) for _ in range(threads)], ready.wait)


def enqueue_many(quick: bool) -> Iterator[Figure]:
    """Typed no-op jobs, 10,000 a call, binding included; beside a bare executemany."""
    rounds, calls = (3, 3) if quick else (ROUNDS, 10)
    ours, theirs = [], []
    for _ in range(rounds):
        with queue() as jobs, bare.beside("full") as opened:
            from .work import noop

            noop.enqueue(0)
            for call in range(calls):
                numbers = range(call * 10_000, (call + 1) * 10_000)
                began = time.perf_counter()
                jobs.enqueue_many(map(noop.bind, numbers))
                between = time.perf_counter()
                bare.insert(opened, [*map(bare.row, numbers)])
                ours.append(10_000 / (between - began))
                theirs.append(10_000 / (time.perf_counter() - between))
    beside = "bare executemany"
    yield Figure("enqueue_many", "jobs/s", ours, beside, theirs, ("at least", 0.4))
    yield Figure("enqueue_many, absolute", "jobs/s", ours, aim=("at least", 200_000))


def payloads(quick: bool) -> Iterator[Figure]:
    """Payloads from 100 bytes to a megabyte, one by one; beside a bare insert of the text."""
    for size, number in ((100, 1000), (10_000, 500), (100_000, 100), (1_000_000, 20)):
        number = max(5, number // 4) if quick else number
        with queue("fast"), bare.beside("fast") as opened:
            from .work import sink

            text = "x" * size
            sink.enqueue(text)
            ours, theirs = [], []
            for _ in range(3):
                began = time.perf_counter()
                for _ in range(number):
                    sink.enqueue(text)
                between = time.perf_counter()
                for n in range(number):
                    bare.insert(opened, [bare.row(n, f'{{"text":"{text}"}}')])
                ours.append(number / (between - began))
                theirs.append(number / (time.perf_counter() - between))
        yield Figure(f"enqueue, payload of {size:,} B", "jobs/s", ours, "bare insert", theirs)


def fill(number: int) -> float:
    """Enqueues no-op jobs, 10,000 in a transaction; gives the seconds that it took."""
    from .work import jobs, noop

    def enqueue_all() -> None:
        numbers = iter(range(number))
        while chunk := [noop.bind(n) for n in itertools.islice(numbers, 10_000)]:
            jobs.enqueue_many(chunk)

    return seconds(enqueue_all)
