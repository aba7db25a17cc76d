"""Benchmarks: `python -m tests.bench [--quick] [NAME ...]`.

Every figure stands beside its limit, measured in the same run. Machines are noisy: what
counts is the ratio, and its spread over the rounds.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from . import contention, large, peers, plot, producing, running, waking
from .measure import Figure, table

Bench = Callable[[bool], Iterator[Figure]]

BENCHES: tuple[Bench, ...] = (
    producing.enqueue,
    producing.enqueue_from_threads,
    producing.enqueue_many,
    producing.payloads,
    running.throughput,
    running.short_jobs,
    running.million,
    waking.latency,
    waking.lateness,
    waking.idle,
    waking.start,
    waking.imports,
    contention.producers,
    contention.pruning,
    large.rates,
    large.queries,
    large.growth,
    peers.enqueue_beside_huey,
    peers.peers,
)


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, SQLite {apsw.sqlite_lib_version()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    names = [bench.__name__ for bench in BENCHES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--quick", action="store_true", help="two or three minutes in all, without the peers"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw what was measured there")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there is {', '.join(names)}")
    print(machine(), flush=True)
    figures: list[Figure] = []
    # The peers install themselves first: in a hurry, only when named.
    hurried = set(names) - {"enqueue_beside_huey", "peers"} if options.quick else set(names)
    for bench in BENCHES:
        if bench.__name__ in (options.names or hurried):
            print(f"\n{bench.__name__}: {(bench.__doc__ or '').splitlines()[0]}", flush=True)
            measured = list(bench(options.quick))
            print(table(measured), flush=True)
            figures += measured
    print(f"\n{table(figures)}")
    if options.plots:
        plot.draw(figures, options.plots)


if __name__ == "__main__":
    main()
