"""Shows that nothing is lost: `python -m tests.chaos [--full] [--seed N] [NAME ...]`.

Without a name, every ordeal runs in its quick form, each in a process of its own. Each prints its
seed and what it did; `--seed` throws the same dice again. The exit status is 3 if a promise was
broken, 1 if an ordeal itself failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import importlib.util
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import apsw

import litejobs

from .ordeal import VIOLATED, Ordeal, Run, Violation

MODULES = (
    "model",
    "kills",
    "soak",
    "growth",
    "races",
    "writes",
    "syncs",
    "power",
    "calls",
    "space",
    "files",
    "forks",
    "trouble",
    "clocks",
    "hostile",
    "payloads",
    "names",
    "planted",
)


def ordeals() -> dict[str, Ordeal]:
    """All of them by name, in the order in which they run."""
    found: dict[str, Ordeal] = {}
    for name in MODULES:
        if importlib.util.find_spec(f".{name}", __package__) is None:
            continue
        module = importlib.import_module(f".{name}", __package__)
        found |= {ordeal.name: ordeal for ordeal in module.ORDEALS}
    return found


def face(ordeal: Ordeal, seed: int, count: int) -> int:
    """Runs one, here; prints what it did and returns the exit status."""
    print(f"{ordeal.name}: {ordeal.about}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix=f"litejobs-{ordeal.name}-", ignore_cleanup_errors=True
    ) as folder:
        run = Run(seed, count, Path(folder))
        try:
            ordeal.run(run)
            status, verdict = 0, "nothing violated"
        except Violation as violation:
            status, verdict = VIOLATED, f"VIOLATED: {violation}"
        except Exception:
            status, verdict = 1, f"the ordeal failed: {traceback.format_exc()}"
    done = ", ".join(f"{number:,} {what}" for what, number in run.counts.items())
    took = time.monotonic() - began
    print(f"  {done or 'nothing'}; seed {seed}, {count:,} {ordeal.unit}, {took:.1f} s: {verdict}")
    if status:
        print(f"  again: python -m tests.chaos {ordeal.name} --seed {seed} --count {count}")
    sys.stdout.flush()
    return status


def face_all(chosen: Iterable[tuple[Ordeal, int]], seed: int, at_once: int) -> int:
    """Runs several, each in a process of its own, *at_once* at a time."""

    def start(choice: tuple[Ordeal, int]) -> subprocess.CompletedProcess[str]:
        ordeal, count = choice
        arguments = [ordeal.name, "--seed", str(seed), "--count", str(count)]
        return subprocess.run(
            [sys.executable, "-m", "tests.chaos", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    worst = 0
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        for ended in concurrent.futures.as_completed(pool.submit(start, one) for one in chosen):
            print(ended.result().stdout, end="", flush=True)
            worst = max(worst, abs(ended.result().returncode))
    return worst


def main() -> int:
    known = ordeals()
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--full", action="store_true", help="the full form: hours in all")
    parser.add_argument("--seed", type=int, help="the dice of an earlier run")
    parser.add_argument("--count", type=int, help="how much, in the ordeal's own unit")
    parser.add_argument(
        "--at-once", type=int, default=os.cpu_count(), help="how many ordeals run side by side"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there is {', '.join(known)}")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    chosen = [
        (ordeal, options.count or (ordeal.full if options.full else ordeal.quick))
        for name, ordeal in known.items()
        if name in (options.names or known)
    ]
    if len(chosen) == 1:
        return face(chosen[0][0], seed, chosen[0][1])
    print(
        f"litejobs {litejobs.__version__} at {litejobs.__file__}, {platform.system()}, "
        f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}, seed {seed}",
        flush=True,
    )
    return face_all(chosen, seed, options.at_once)


if __name__ == "__main__":
    raise SystemExit(main())
