"""Index the Python standard library: one job for each of its thousands of files.

    python examples/index_library.py [FOLDER] [--db FILE] [--workers N]

Stop it with Ctrl-C or `kill -9` whenever you like, and start it again: it goes on where
it was. Some files there do not parse (the test suite keeps broken ones); they are tried
three times and end as dead letters, with the reason.
"""

import argparse
import ast
import hashlib
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from litejobs import Constant, Job, LiteJobs, Retention, State, define

LIBRARY = Path(sysconfig.get_path("stdlib"))


@attrs.frozen
class Entry:
    """What the index knows of one file."""

    path: Path
    size: int
    lines: int
    definitions: int
    imports: int
    digest: str


@define(max_attempts=3, backoff=Constant(0.1), timeout=60, retention=Retention(completed=None))
def index_file(path: Path) -> Entry:
    """Parses one file, counts what is in it, and hashes it."""
    source = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = list(ast.walk(ast.parse(source, path.name)))
    return Entry(
        path=path,
        size=len(source),
        lines=source.count(b"\n"),
        definitions=sum(
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            for node in nodes
        ),
        imports=sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes),
        digest=hashlib.sha256(source).hexdigest(),
    )


def python_files(folder: Path) -> list[Path]:
    """The files of a library, without packages that were installed into it."""
    found = (path for path in folder.rglob("*.py") if path.is_file())
    return sorted(path for path in found if "site-packages" not in path.relative_to(folder).parts)


def enqueue_all(jobs: LiteJobs, folder: Path) -> None:
    """One job for each file, larger files first: all of them in one transaction, so
    that an interrupted start leaves none and a later start never enqueues twice."""
    if jobs.count() == 0:
        jobs.enqueue_many(
            index_file.using(priority=path.stat().st_size // 1024).bind(path)
            for path in python_files(folder)
        )


def show_progress(jobs: LiteJobs) -> int:
    """Prints one line that is rewritten (or a line a second, if this is no terminal)
    until nothing is left; says how many jobs this run has finished."""
    total = jobs.count()
    start = time.monotonic()
    before = jobs.count(state=("completed", "failed"))
    live = sys.stderr.isatty()
    while True:
        done, dead, retrying = (jobs.count(state=s) for s in ("completed", "failed", "retrying"))
        rate = (done + dead - before) / (time.monotonic() - start + 1e-9)
        line = f"{done + dead}/{total} files, {retrying} to retry, {dead} dead, {rate:.0f} files/s"
        over = done + dead == total
        print(
            f"\r{line}   " if live else line, end="" if live and not over else "\n", file=sys.stderr
        )
        if over:
            return done + dead - before
        time.sleep(0.1 if live else 1.0)


def pages(jobs: LiteJobs, state: State) -> Iterator[Job[Entry]]:
    """All jobs in a state, a thousand at a time."""
    before = None
    while page := jobs.find(state=state, before=before, limit=1000):
        yield from page
        before = page[-1].id


def totals(entries: Iterable[Entry]) -> dict[str, int]:
    """The sums over all files; a plain loop over `index_file` must come to the same."""
    entries = list(entries)
    names = ("size", "lines", "definitions", "imports")
    sums = {name: sum(getattr(entry, name) for entry in entries) for name in names}
    digests = int(
        hashlib.sha256("".join(sorted(e.digest for e in entries)).encode()).hexdigest(), 16
    )
    return {"files": len(entries), **sums, "digest": digests % 2**32}


def print_summary(jobs: LiteJobs, finished: int, seconds: float) -> None:
    """Totals, the largest files, the dead letters with their reasons, and the rate."""
    entries = [job.result() for job in pages(jobs, "completed")]
    print("\nTotals")
    for name, value in totals(entries).items():
        print(f"  {name:12} {value:>12,}")
    print("\nThe ten largest")
    for entry in sorted(entries, key=lambda entry: -entry.size)[:10]:
        print(f"  {entry.size:>9,} bytes  {entry.definitions:>5,} definitions  {entry.path}")
    dead = sorted(pages(jobs, "failed"), key=lambda job: job.payload["path"])
    print(f"\n{len(dead)} dead letters")
    for job in dead:
        print(f"  {job.payload['path']}: {job.error} ({job.attempt} attempts)")
    print(f"\n{finished:,} files in {seconds:.1f} s: {finished / seconds:,.0f} files/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Index the Python standard library.")
    parser.add_argument("folder", nargs="?", type=Path, default=LIBRARY, help="another library")
    parser.add_argument("--db", default="index_library.db", help="the queue's file")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    options = parser.parse_args()
    with LiteJobs(options.db) as jobs:
        jobs.register(index_file)
        enqueue_all(jobs, options.folder.resolve())
        start = time.monotonic()
        with jobs.start(options.workers):
            finished = show_progress(jobs)
        print_summary(jobs, finished, time.monotonic() - start)
        print(f"All is in {options.db}; delete it to begin again.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run it again to go on")
