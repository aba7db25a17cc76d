"""Large files: every rate and every query again where millions of jobs lie around.

The full run needs some 10 GB of disk, in the current folder.
"""

import contextlib
import functools
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import apsw
import attrs

from litejobs import STATES, Filters, LiteJobs

from .measure import Figure, drained, first_lines, opened, queue, seconds

DAY = 86_400_000_000
URGENT = 2**31 - 1
RARE = "rare"
"""The name, and the queue, of a handful of jobs: the oldest of the file."""


@attrs.frozen
class Contents:
    """What a file is to hold."""

    finished: int = 0
    scheduled: int = 0
    pending: int = 0
    queues: int = 1
    overdue: bool = False
    """Whether the retention of what has finished is over."""

    @property
    def rows(self) -> int:
        return self.finished + self.scheduled + self.pending


# Building


def build(file: Path, contents: Contents) -> float:
    """Makes a queue with these jobs; gives the rows per second that it took.

    What litejobs itself stores for a job is taken as a pattern and multiplied by one
    statement. Indexes are made afterwards, by their own SQL; triggers do what they do.
    """
    began = time.perf_counter()
    pattern = stored(file)
    with opened(file) as connection:
        connection.pragma("journal_mode", "off")
        connection.pragma("cache_size", -400_000)
        with unindexed(connection):
            connection.execute("DELETE FROM litejobs_job")
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'litejobs_job'")
            multiply(connection, pattern, contents.finished, finished(contents))
            multiply(connection, pattern, contents.scheduled, scheduled(contents))
            multiply(connection, pattern, contents.pending, pending(contents.queues))
    sync(file)
    rate = contents.rows / (time.perf_counter() - began)
    with queue("fast", file) as jobs:
        if (counted := jobs.count()) != contents.rows:
            raise RuntimeError(f"{contents.rows} jobs were made, and litejobs counts {counted}")
    return rate


def stored(file: Path) -> dict[str, Any]:
    """The columns of a pending job but its id, as litejobs stores them in a new file."""
    with queue("fast", file):
        from .work import noop

        id = noop.enqueue(0).id
    with opened(file) as connection:
        columns = [column[1] for column in connection.execute("PRAGMA table_info(litejobs_job)")]
        row = connection.execute(
            f"SELECT {', '.join(columns)} FROM litejobs_job WHERE id = ?", (id,)
        )
        values: tuple[Any, ...] = row.get
    return {name: value for name, value in zip(columns, values, strict=True) if name != "id"}


@contextlib.contextmanager
def unindexed(connection: apsw.Connection) -> Iterator[None]:
    """A transaction in which the table of jobs has no indexes."""
    with connection:
        made = connection.execute("""
            SELECT name, sql FROM sqlite_schema
            WHERE tbl_name = 'litejobs_job' AND type = 'index' AND sql IS NOT NULL
        """).fetchall()
        for name, _ in made:
            connection.execute(f"DROP INDEX {name}")
        yield
        for _, sql in made:
            connection.execute(cast(str, sql))


def multiply(
    connection: apsw.Connection, pattern: Mapping[str, Any], number: int, changes: Mapping[str, str]
) -> None:
    """Inserts a row *number* times, with *changes*: columns as SQL of n, which counts."""
    values = ", ".join(changes.get(column, f":{column}") for column in pattern)
    connection.execute(
        f"""
        WITH RECURSIVE counter (n) AS (
            SELECT 0 WHERE :number > 0 UNION ALL SELECT n + 1 FROM counter WHERE n + 1 < :number
        )
        INSERT INTO litejobs_job ({", ".join(pattern)}) SELECT {values} FROM counter
        """,
        {**pattern, "number": number},
    )


def finished(contents: Contents) -> dict[str, str]:
    """A job in a hundred has failed, one was cancelled, one in ten has another name. The
    ages go from twenty hours to nothing."""
    age = 40 * DAY if contents.overdue else 0
    step = 20 * 3_600_000_000 // max(1, contents.finished)
    moment = f"{now() - age} - {step} * ({contents.finished} - n)"
    state = "CASE n / 7 % 100 WHEN 0 THEN 'failed' WHEN 1 THEN 'cancelled' ELSE 'completed' END"
    name = f"CASE WHEN n / {contents.queues} % 10 = 9 THEN 'compute' ELSE 'noop' END"
    return {
        "name": f"CASE WHEN n < 5 THEN '{RARE}' ELSE {name} END",
        "queue": f"CASE WHEN n < 5 THEN '{RARE}' ELSE {queue_of(contents.queues)} END",
        "state": state,
        "attempt": "1",
        "claim": "1",
        "enqueued_at": moment,
        "run_at": moment,
        "started_at": f"{moment} + 500",
        "finished_at": f"{moment} + 1000",
        "prune_at": f"{moment} + 1000 + {DAY} * CASE WHEN n / 7 % 100 = 0 THEN 30 ELSE 1 END",
        "error": "CASE n / 7 % 100 WHEN 0 THEN 'ValueError: no' WHEN 1 THEN 'cancelled' END",
    }


def scheduled(contents: Contents) -> dict[str, str]:
    """Due in a week, the most urgent of all."""
    return {
        "queue": queue_of(contents.queues),
        "state": "'scheduled'",
        "priority": str(URGENT),
        "run_at": f"{now() + 7 * DAY} + n",
    }


def pending(queues: int) -> dict[str, str]:
    """Ready no-op jobs."""
    return {"queue": queue_of(queues), "run_at": f"{now()} + n - 1000000"}


def queue_of(queues: int) -> str:
    return ":queue" if queues == 1 else f"printf('queue-%04d', n % {queues})"


def now() -> int:
    return time.time_ns() // 1000


def sync(file: Path) -> None:
    """Puts the file on the disk, so that nothing of it is written back later, while
    something is measured."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@attrs.frozen
class Built:
    """A file that was built, and how it went."""

    file: Path
    contents: Contents
    rate: float
    folder: "tempfile.TemporaryDirectory[str]"
    """Removed when the program ends."""


@functools.cache
def large_file(quick: bool) -> Built:
    """The large file of this run, which nobody may change."""
    full = Contents(10_000_000, 1_000_000, 100_000, queues=1000)
    contents = Contents(100_000, 10_000, 10_000, queues=1000) if quick else full
    folder = tempfile.TemporaryDirectory(dir=".", prefix="bench-")
    file = Path(folder.name, "large.db").resolve()
    return Built(file, contents, build(file, contents), folder)


def copied(file: Path, folder: Path) -> Path:
    """A copy that may be changed."""
    copy = Path(shutil.copy(file, folder))
    sync(copy)
    return copy


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder for files."""
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as folder:
        yield Path(folder).resolve()


# Rates in one file


@contextlib.contextmanager
def scratch(file: Path) -> Iterator[int]:
    """Takes away what is enqueued inside; gives the last id before."""
    with opened(file) as connection:
        last: int = connection.execute("SELECT coalesce(max(id), 0) FROM litejobs_job").get
    yield last
    with opened(file) as connection:
        connection.execute("DELETE FROM litejobs_job WHERE id > ?", (last,))
    sync(file)


def one_by_one(file: Path, durability: str, number: int) -> float:
    """Jobs enqueued per second, each by its own call."""
    with queue(durability, file):
        from .work import noop

        for n in range(100):
            noop.enqueue(n)
        return number / seconds(lambda: [noop.enqueue(n) for n in range(number)])


def in_bulk(file: Path, number: int) -> float:
    """Jobs enqueued per second, 10,000 a call."""
    with queue("fast", file) as jobs:
        from .work import noop

        def fill() -> None:
            for first in range(0, number, 10_000):
                jobs.enqueue_many(noop.bind(n) for n in range(first, min(number, first + 10_000)))

        return number / seconds(fill)


def refill(file: Path, contents: Contents, pattern: Mapping[str, Any]) -> None:
    """Replaces the newest jobs, which were pending and have been run, by pending ones."""
    with opened(file) as connection, connection:
        first = contents.finished + contents.scheduled
        connection.execute("DELETE FROM litejobs_job WHERE id > ?", (first,))
        multiply(connection, pattern, contents.pending, pending(contents.queues))
    sync(file)


def merged(figures: Iterable[Figure]) -> Iterator[Figure]:
    """The rounds of each thing as one figure."""
    same: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        same.setdefault((figure.what, figure.beside), []).append(figure)
    for rounds in same.values():
        ours = [value for figure in rounds for value in figure.ours]
        theirs = [value for figure in rounds for value in figure.theirs]
        yield attrs.evolve(rounds[0], ours=ours, theirs=theirs)


# The benches


def rates(quick: bool) -> Iterator[Figure]:
    """Every rate again in a large file, beside the same in an empty one."""
    built = large_file(quick)
    what = f"{built.contents.finished:,} finished"
    yield Figure(f"{what}: building the file", "rows/s", [built.rate])
    with temporary() as folder:
        large = copied(built.file, folder)
        pattern = stored(folder / "pattern.db")
        rounds: list[Figure] = []
        for _ in range(1 if quick else 3):
            with temporary() as fresh:
                rounds += enqueue_rates(large, fresh / "empty.db", quick)
                rounds += drain_rates(large, fresh, built.contents)
                rounds.append(waits(large, fresh / "empty.db", quick))
            refill(large, built.contents, pattern)
    for figure in merged(rounds):
        yield attrs.evolve(figure, what=f"{what}: {figure.what}", aim=("at least", 0.8))


def enqueue_rates(large: Path, empty: Path, quick: bool) -> Iterator[Figure]:
    """One round; then the files are as they were."""
    with queue(file=empty) as jobs:
        jobs.count()
    for durability, number in (("fast", 10_000), ("full", 3_000)):
        number = number // 5 if quick else number
        with scratch(large), scratch(empty):
            ours = one_by_one(large, durability, number)
            theirs = one_by_one(empty, durability, number)
        what = f"enqueue one by one, {durability}"
        yield Figure(what, "jobs/s", [ours], "empty", [theirs])
    number = 20_000 if quick else 100_000
    with scratch(large), scratch(empty):
        pair = in_bulk(large, number), in_bulk(empty, number)
    yield Figure("enqueue_many, 10,000 a call", "jobs/s", pair[:1], "empty", pair[1:])


def drain_rates(large: Path, folder: Path, contents: Contents) -> Iterator[Figure]:
    """One round; then nothing is pending."""
    few, many = folder / "few.db", folder / "many.db"
    build(few, Contents(pending=contents.pending))
    build(many, Contents(pending=contents.pending, queues=contents.queues))
    with queue(file=large) as jobs:
        from .work import noop

        mine = noop.using(queue="mine")
        jobs.enqueue_many(mine.bind(n) for n in range(contents.pending // 2))
    alone = drained(large, only="mine")
    ours, one_lane, same_lanes = (drained(file) for file in (large, few, many))
    what = "no-op jobs, two workers, one queue; as many jobs pending in others"
    yield Figure(what, "jobs/s", [alone], "empty, one queue", [one_lane])
    what = f"no-op jobs, two workers, {contents.pending:,} over {contents.queues:,} queues"
    yield Figure(what, "jobs/s", [ours], "empty, one queue", [one_lane])
    yield Figure(what, "jobs/s", [ours], "empty, as many queues", [same_lanes])


def waits(large: Path, empty: Path, quick: bool) -> Figure:
    """One round, in files in which nothing is pending."""
    number = 100 if quick else 300
    ours, theirs = (statistics.median(first_lines(number, file=file)) for file in (large, empty))
    what = "from enqueue to the first line, nothing else pending, median"
    return Figure(what, "ms", [ours], "empty", [theirs], upside_down=True)


Query = tuple[str, Callable[[], object]]

VALUES: dict[str, tuple[str, ...]] = {
    "name": ("noop", "compute", RARE, "nowhere"),
    "queue": ("queue-0007", RARE, "nowhere"),
    "state": STATES,
}
"""To filter by: what most jobs have, some, the five oldest, and none."""


def queries(quick: bool) -> Iterator[Figure]:
    """The slowest of five runs of each query in a large file, without and with the statistics
    by which SQLite chooses an index."""
    built = large_file(quick)
    with temporary() as folder:
        file = copied(built.file, folder)
        worst = worst_queries(file, built.contents.rows, "")
        with opened(file) as connection:
            connection.execute("PRAGMA analysis_limit = 1000; ANALYZE").fetchall()
        informed = worst_queries(file, built.contents.rows, ", with statistics")
    for group, one in worst.items():
        took, query = max(one, informed[group])
        what = f"{built.contents.rows:,} jobs, {group}; slowest: {query}"
        yield Figure(what, "ms", [took], aim=("at most", 50))


def worst_queries(file: Path, rows: int, note: str) -> dict[str, tuple[float, str]]:
    """Milliseconds and name of the slowest of each group; a group that takes long is not
    asked to its end."""
    worst: dict[str, tuple[float, str]] = {}
    with queue("fast", file) as jobs:
        for group, members in query_groups(jobs, rows):
            give_up = time.monotonic() + 20
            for what, query in members:
                worst[group] = max(worst.get(group, (0.0, "")), (slowest(query), what + note))
                if time.monotonic() > give_up:
                    break
    return worst


def query_groups(jobs: LiteJobs, rows: int) -> Iterator[tuple[str, Iterator[Query]]]:
    """What an application or a person asks a file."""
    yield "stats", iter([("stats()", jobs.stats)])
    for keys in ((), ("state",), ("queue",), ("name",), ("queue", "state"), ("name", "state")):
        yield f"count by {' and '.join(keys) or 'nothing'}", counts(jobs, keys)
    for number in range(3):
        for pair in itertools.combinations(VALUES, number):
            yield f"find by {' and '.join(pair) or 'nothing'}", pages(jobs, pair, rows)
    ids = (1, rows // 2, rows)
    yield "get", ((f"get({id})", functools.partial(jobs.get, id)) for id in ids)
    with jobs.start(workers=1, queues=["none"]) as pool:
        while not jobs.nodes() and not pool.wait(0.01):
            pass
        yield "nodes", iter([("nodes()", jobs.nodes)])


def counts(jobs: LiteJobs, keys: Sequence[str]) -> Iterator[Query]:
    """A count for each value of these filters."""
    for filters in every(keys):
        yield f"count({shown(filters)})", functools.partial(jobs.count, **filters)


def pages(jobs: LiteJobs, keys: Sequence[str], rows: int) -> Iterator[Query]:
    """The first page and one from the middle for each value of these filters."""
    for filters in every(keys):
        for before in (None, rows // 2):
            find = functools.partial(jobs.find, limit=100, before=before, **filters)
            yield f"find({shown(filters)}){', from the middle' if before else ''}", find


def every(keys: Sequence[str]) -> Iterator[Filters]:
    for values in itertools.product(*(VALUES[key] for key in keys)):
        yield cast(Filters, dict(zip(keys, values, strict=True)))


def shown(filters: Filters) -> str:
    return ", ".join(f"{key}={value}" for key, value in filters.items())


def slowest(query: Callable[[], object]) -> float:
    """Milliseconds that the slowest of five runs takes; of fewer, if it takes long."""
    runs: list[float] = []
    while len(runs) < 5 and sum(runs) < 1:
        runs.append(seconds(query))
    return max(runs) * 1000


def growth(quick: bool) -> Iterator[Figure]:
    """Rates in files with more and more finished jobs."""
    sizes = [10**digits for digits in ((3, 4, 5) if quick else (4, 5, 6, 7))]
    with temporary() as folder:
        files = {size: folder / f"{size}.db" for size in sizes}
        for size, file in files.items():
            build(file, Contents(size))
        growth_rates(files[sizes[0]], quick=True)  # Else the first size would pay for the start.
        rounds: list[Figure] = []
        for _ in range(1 if quick else 3):
            found = {size: growth_rates(file, quick) for size, file in files.items()}
            rounds += beside_the_first(found)
    yield from merged(rounds)


def growth_rates(file: Path, quick: bool) -> dict[str, float]:
    """One round in one file, which then is as it was."""
    with scratch(file):
        return {
            "enqueue one by one, fast": one_by_one(file, "fast", 2_000 if quick else 10_000),
            "enqueue_many, 10,000 a call": in_bulk(file, 20_000 if quick else 100_000),
            "no-op jobs, two workers": drained(file),
        }


def beside_the_first(found: Mapping[int, Mapping[str, float]]) -> Iterator[Figure]:
    """The rates of one round by size, each beside that in the smallest file."""
    first = min(found)
    for rate, limit in found[first].items():
        yield Figure(f"{rate}, {first:,} finished rows", "jobs/s", [limit])
        for size in sorted(found)[1:]:
            what, beside = f"{rate}, {size:,} finished rows", f"{first:,} rows"
            ours = [found[size][rate]]
            yield Figure(what, "jobs/s", ours, beside, [limit], aim=("at least", 0.8))
