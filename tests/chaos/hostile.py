"""Hostile files: databases that were damaged, or made to harm whoever opens them.

From queues of every kind come files with other bytes, pages, WALs and journals, and files that SQL
makes: triggers, views, wrong types, missing and strange tables, a newer schema. Each is opened and
read, steered, worked on or examined in a child process with an alarm and a limit of memory. Only
errors of ours may come out; nothing may crash, hang, or run what stands in the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import attrs

import litejobs
from litejobs import Context, Fail, LiteJobs, LitejobsError, Unique

from .children import Died, answers
from .older import SCHEMA_3, older_file
from .ordeal import Ordeal, Run, Violation

BATCH = 100
"""Files that one child looks at."""
TIMEOUT = 20.0
"""Seconds after which a file has hung its reader, on a machine that has other things to do."""
MEMORY = 768 * 2**20
"""Bytes of address space that a child may take beyond its own."""
CANARIES = ("canary", "canary:jobs", "canary.py:jobs", "os.system", "../canary", "canary.zone/x")
"""Names that would do harm if anything in a file were imported or called."""
CANARY = """
from pathlib import Path
Path(__file__).with_name("canary-was-imported").touch()
jobs = None
"""

Bytes = dict[str, bytes]
"""A file, its WAL and what else is beside it, by the ends of their names."""


# The queues that all files are made of.


@litejobs.define(max_attempts=2)
def work(context: Context, what: str = "") -> str:
    """What the jobs in the file do, if they get that far."""
    context.progress(1, 2, what)
    if what == "fail":
        raise Fail("as planned")
    return what


def program(path: Path) -> LiteJobs:
    """A program that works on a file."""
    jobs = LiteJobs(path, durability="fast")
    jobs.register(work)
    return jobs


def fill(jobs: LiteJobs) -> None:
    """Jobs in every state, schedules, queues with settings, nodes that died, numbers."""
    work = jobs.registry.named("work")
    for number, what in enumerate(("", "fail", "x" * 3000)):
        work.using(queue=f"q{number}", headers={"from": "here"}).enqueue(what)
    jobs.drain()
    for name in CANARIES:
        unique = Unique(key=name, ttl=timedelta(days=10_000))
        work.using(queue=name[:20], key="k", unique=unique).enqueue(name)
    work.using(delay=10**6, expires=10**7).enqueue("later")
    jobs.hold(work.enqueue("held").id)
    jobs.cancel(work.enqueue("cancelled").id)
    work.using(delay=1e-3).enqueue("due")
    work.using(queue="q2", key="other").enqueue("fail")
    work.using(queue="q2", priority=3).enqueue("aged")
    jobs.queue("q1").set(concurrency=1, rate="5/s", weight=2.0, ageing=60)
    jobs.queue("q2").set(rate="9/s", burst=3, ageing=1, max_attempts=3, timeout=60)
    jobs.schedule("hourly").set("@every 1h", work.bind("tick"))
    jobs.schedule("nightly").set("0 3 * * *", work.bind("tock"), timezone="Europe/Berlin")
    connection = jobs.store.file.connection()
    connection.execute("UPDATE litejobs_job SET name = 'canary:jobs' WHERE id % 4 = 0")
    connection.execute(
        "UPDATE litejobs_schedule SET origin = 'canary', next_at = 1 WHERE name < 'i'"
    )
    connection.execute(
        "INSERT INTO litejobs_node (name, pid, port, workers, queues, started_at, names)"
        " VALUES ('dead', 1, 9, 2, '[\"q1\"]', 1, '[\"work\", \"os.system\"]')"
    )
    sql = "UPDATE litejobs_job SET state = 'running', holder = 99, claim = 1 WHERE id = ?"
    connection.execute(sql, (work.enqueue("lost").id,))
    connection.execute("CREATE TABLE application (id INTEGER PRIMARY KEY, text TEXT)")


def snapshot(path: Path) -> Bytes:
    """The bytes of a file and its WAL."""
    ends = ("", "-wal")
    return {
        end: Path(f"{path}{end}").read_bytes() for end in ends if os.path.exists(f"{path}{end}")
    }


def make_templates(folder: Path) -> list[Bytes]:
    """Queues with pages and texts of every size, with a WAL and without, and of older schemas."""
    templates = []
    for number, pragmas in enumerate(PRAGMAS):
        path = folder / f"template{number}.db"
        connection = apsw.Connection(str(path))
        for name, value in pragmas.items():
            connection.pragma(name, value)
        connection.execute(
            "CREATE TABLE of_the_application (x); INSERT INTO of_the_application VALUES (1)"
        )
        connection.close()
        with program(path) as jobs:
            fill(jobs)
        templates.append(snapshot(path))
        connection = apsw.Connection(str(path))  # Not by ours, which lets nobody read beside it.
        connection.execute("UPDATE litejobs_job SET priority = 7 WHERE state = 'pending'")
        templates.append(snapshot(path))
        connection.close()
    return templates + [older(folder / f"schema{version}.db", version) for version in (0, 1, 3)]


PRAGMAS: tuple[Mapping[str, Any], ...] = (
    {"page_size": 4096, "auto_vacuum": "incremental"},
    {"page_size": 512, "auto_vacuum": "full"},
    {"page_size": 1024, "encoding": "UTF-16le"},
    {"page_size": 8192, "encoding": "UTF-16be"},
    {"page_size": 2048, "user_version": -1, "application_id": 7},
    {"page_size": 65536},
)


def older(path: Path, version: int) -> Bytes:
    """A file as a litejobs of that schema left it; of the first ones there is only the number."""
    if version == 3:
        older_file(path, "INSERT INTO litejobs_job (name, payload) VALUES ('work', '{}')")
        return snapshot(path)
    connection = apsw.Connection(str(path))
    connection.execute(SCHEMA_3.partition(";")[0])
    connection.execute("INSERT INTO litejobs_meta VALUES ('schema', ?)", (version,))
    connection.close()
    return snapshot(path)


# Damage: other bytes.


def damage(dice: random.Random, made: Bytes) -> None:
    """Makes one to three changes to the bytes of a file, or of what is beside it."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        end = dice.choice([end for end in made if end in ("", "-wal")] * 3 + [""])
        data = bytearray(made[end])
        if data:
            size = int.from_bytes(data[16:18], "big") if end == "" else 4096
            dice.choice(DAMAGES)(dice, data, 65536 if size < 512 else size)
        made[end] = bytes(data)
    if dice.random() < 0.1:
        made[dice.choice(("-wal", "-journal", "-shm"))] = dice.randbytes(dice.choice((0, 31, 5000)))


def _flip(dice: random.Random, data: bytearray, page: int) -> None:
    for _ in range(dice.choice((1, 1, 5, 50, 500))):
        data[dice.randrange(len(data))] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))


def _swap(dice: random.Random, data: bytearray, page: int) -> None:
    one, other = (dice.randrange(max(1, len(data) // page)) * page for _ in range(2))
    data[one : one + page], data[other : other + page] = (
        data[other : other + page],
        data[one : one + page],
    )


def _copy(dice: random.Random, data: bytearray, page: int) -> None:
    one, other = (dice.randrange(max(1, len(data) // page)) * page for _ in range(2))
    data[one : one + page] = data[other : other + page]


def _blank(dice: random.Random, data: bytearray, page: int) -> None:
    one = dice.randrange(max(1, len(data) // page)) * page
    filler = dice.choice((b"\0", b"\xff", b"\x0d"))
    data[one : one + page] = filler * len(data[one : one + page])


def _cut(dice: random.Random, data: bytearray, page: int) -> None:
    if dice.random() < 0.5:
        del data[dice.randrange(len(data)) :]
    else:
        del data[dice.randrange(max(1, len(data) // page)) * page :]


def _grow(dice: random.Random, data: bytearray, page: int) -> None:
    data += dice.randbytes(dice.choice((1, page, 3 * page)))


def _header(dice: random.Random, data: bytearray, page: int) -> None:
    place = dice.choice((*range(16, 24), *range(24, 72), 92, 96)) % len(data)
    data[place] = dice.choice((0, 1, 2, 3, 4, 127, 255, dice.randrange(256)))


def _page_head(dice: random.Random, data: bytearray, page: int) -> None:
    """The kind of a page, its free blocks, how many cells it has, where they begin."""
    start = dice.randrange(max(1, len(data) // page)) * page
    place = (start or 100) + dice.randrange(12)
    if place < len(data):
        data[place] = dice.choice((0, 2, 5, 10, 13, 255, dice.randrange(256)))


def _cells(dice: random.Random, data: bytearray, page: int) -> None:
    start = dice.randrange(max(1, len(data) // page)) * page
    for _ in range(dice.choice((1, 2, 8))):
        place = start + 8 + dice.randrange(64)
        if place < len(data):
            data[place] = dice.randrange(256)


def _records(dice: random.Random, data: bytearray, page: int) -> None:
    """Types of values, which stand before them: a number becomes a text, or NULL."""
    for word in dice.sample((b"pending", b"completed", b"work", b"q1", b"{}", b"default"), 3):
        place = data.find(word, dice.randrange(len(data)))
        if place > 40:
            data[place - dice.randrange(1, 40)] = dice.choice(
                (0, 1, 6, 7, 8, 9, 12, 13, 24, 25, 61)
            )


def _words(dice: random.Random, data: bytearray, page: int) -> None:
    """Texts that stay as long as they were."""
    old = dice.choice(
        (b"pending", b"litejobs_job", b"CREATE", b"TEXT", b"INTEGER", b'{"', b"@every")
    )
    new = dice.choice(
        (b"\xff\xfe\xfd", b"\0\0\0\0", b"SELECT(", b"']']]]]", b"\xed\xa0\x80", b"))))")
    )
    place = data.find(old, dice.randrange(len(data)))
    if place >= 0:
        data[place : place + len(new)] = new


DAMAGES = (
    _flip, _flip, _swap, _copy, _blank, _cut, _grow, _header, _page_head, _cells,
    _records, _records, _words, _words,
)  # fmt: skip


# Malice: what SQL can make of a file.


def malice(dice: random.Random, path: Path) -> str:
    """Does something to a file that its owner would not; gives what."""
    connection = apsw.Connection(str(path))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
    connection.execute("PRAGMA ignore_check_constraints = 1; PRAGMA foreign_keys = 0")
    connection.execute("CREATE TABLE IF NOT EXISTS canary (text)")
    kind = dice.choice(MALICE)
    # IndexError: an older file has no such table.
    with contextlib.suppress(apsw.Error, IndexError):
        kind(dice, connection)
    connection.close()
    return kind.__name__


def _triggers(dice: random.Random, connection: apsw.Connection) -> None:
    table = dice.choice(TABLES)
    act = dice.choice(
        (
            "INSERT INTO canary VALUES ('a trigger ran')",
            "SELECT load_extension('canary')",
            "SELECT writefile('canary-was-imported', 'x')",
            "SELECT fts3_tokenizer('x', x'00')",
            "UPDATE litejobs_job SET name = 'os.system', state = 'pending'",
            "INSERT INTO canary WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT 1 FROM n) "
            "SELECT x FROM n",
        )
    )
    for verb in ("INSERT", "UPDATE", "DELETE"):
        connection.execute(f"CREATE TRIGGER evil_{verb} AFTER {verb} ON {table} BEGIN {act}; END")


TABLES = tuple(
    f"litejobs_{name}"
    for name in (
        "job",
        "count",
        "attempt",
        "definition",
        "node",
        "queue",
        "schedule",
        "metric",
        "meta",
    )
)
ENDLESS = (
    "CREATE VIEW {} AS WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT 1 FROM n)"
    " SELECT old_{}.* FROM n, old_{}"
)
SHAPES = (
    *(ENDLESS, ENDLESS, ENDLESS, "CREATE VIEW {} AS SELECT * FROM old_{}"),
    "CREATE VIEW {} AS SELECT load_extension('canary'), writefile('canary', 'x')",
    "CREATE VIEW {} AS SELECT * FROM {}",
    "CREATE TABLE {} (x)",
    "CREATE TABLE {} AS SELECT * FROM old_{}",
    "CREATE TABLE {} (id INTEGER PRIMARY KEY, name, queue AS (zeroblob(1e9)), state, payload)",
    "CREATE VIRTUAL TABLE {} USING fts5(id, name, queue, state, payload)",
    "CREATE VIRTUAL TABLE {} USING rtree(id, a, b)",
    "CREATE TABLE {} (id, name COLLATE unknown, queue, state, payload) WITHOUT ROWID",
    "CREATE TABLE {} (name PRIMARY KEY, value, x CHECK (abs(x) > load_extension('canary')))",
)


def _shapes(dice: random.Random, connection: apsw.Connection) -> None:
    """Something else under the name of one of our tables."""
    table = dice.choice(TABLES)
    connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    connection.execute(dice.choice(SHAPES).replace("{}", table))


def _missing(dice: random.Random, connection: apsw.Connection) -> None:
    sql = "SELECT type, name FROM sqlite_schema WHERE name GLOB 'litejobs_*'"
    things = connection.execute(sql).fetchall()
    for kind, name in dice.sample(things, min(len(things), dice.choice((1, 1, 2, 9)))):
        with contextlib.suppress(apsw.Error):
            connection.execute(f"DROP {kind} {name}")


def _columns(dice: random.Random, connection: apsw.Connection) -> None:
    table = dice.choice(TABLES)
    name = dice.choice([row[1] for row in connection.execute(f"PRAGMA table_info({table})")])
    connection.execute(
        dice.choice(
            (
                f"ALTER TABLE {table} DROP COLUMN {name}",
                f"ALTER TABLE {table} RENAME COLUMN {name} TO other",
                f"ALTER TABLE {table} ADD COLUMN more INTEGER",
                f"CREATE INDEX more ON {table} ({name})",
                f"CREATE INDEX more ON {table} (hex(zeroblob(1000)) || {name})",
                f"CREATE UNIQUE INDEX more ON {table} ({name})",
            )
        )
    )


VALUES: tuple[Any, ...] = (
    *(None, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 1e308, float("inf"), float("-inf"), 0.5),
    *("", "x", "work", "pending", "running", "\0", "\x1b[2J", "null", "[]", "{}", '{"a":1}', "[1,"),
    *("9" * 5000, "[" * 5000, '{"a":' * 900 + "1" + "}" * 900, "NaN", '"\\ud800"', "custom"),
    *('{"kind": "canary"}', '{"kind": "Constant", "base": 1e400}', '{"kind": "__class__"}'),
    *('{"completed": "x"}', '{"done": "x", "total": 2, "note": 3}', '{"done": 1e999}', "[[[1]]]"),
    *(b"", b"\xff\xfe", b"\0" * 100, b"null", "canary", "canary:jobs", "../../etc/passwd"),
    *(
        "* * * * *",
        "@every 0.1s",
        "@every 1e9d",
        "0 0 31 2 *",
        "UTC",
        "canary.zone/x",
        "x" * 100_000,
    ),
)


def _values(dice: random.Random, connection: apsw.Connection) -> None:
    """Values of other types, or that mean nothing, in tables that do not allow them; texts that
    are no UTF-8."""
    tables = "FROM sqlite_schema WHERE type = 'table' AND name GLOB 'litejobs_*'"
    schema: list[Any] = connection.execute(f"SELECT sql, name {tables}").fetchall()
    loose = [(loosened(sql), name) for sql, name in schema]
    rewrite_schema(connection, loose)
    for _ in range(dice.choice((1, 1, 2, 5))):
        table = dice.choice((*TABLES, *["litejobs_job"] * 8, *["litejobs_schedule"] * 3))
        column = dice.choice([row[1] for row in connection.execute(f"PRAGMA table_info({table})")])
        value = dice.choice(VALUES)
        how = "CAST(? AS TEXT)" if isinstance(value, bytes) and dice.random() < 0.5 else "?"
        with contextlib.suppress(apsw.Error):
            some = dice.choice(("", f"WHERE rowid = {dice.randrange(1, 20)}"))
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = {how} {some}", (value,))
    rewrite_schema(connection, schema)


def loosened(schema: str) -> str:
    """A table like that, which takes everything as it is."""
    for word, other in (("STRICT", ""), ("NOT NULL", ""), ("ANY", "BLOB"), ("TEXT", "BLOB")):
        schema = schema.replace(word, other)
    return schema


def rewrite_schema(connection: apsw.Connection, schema: Iterable[tuple[str, str]]) -> None:
    """Says of tables that they are others than they are; each with its name."""
    version: int = connection.pragma("schema_version")
    sql = "UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = ?"
    connection.executemany(sql, schema)
    connection.pragma("schema_version", version + 1)


def _schema(dice: random.Random, connection: apsw.Connection) -> None:
    """The table of tables, edited."""
    column = dice.choice(("sql", "sql", "name", "tbl_name", "rootpage", "type"))
    value = dice.choice(
        (
            *("'x'", "NULL", "1", "2", "999999", "-1", "substr(sql, 1, 30)", "sql || ' garbage'"),
            *("replace(sql, 'INTEGER', 'TEXT')", "replace(sql, 'CHECK', 'DEFAULT')"),
            *("replace(sql, 'state', 'stat')", "replace(sql, 'TEXT', 'TEXT COLLATE evil')"),
            "replace(sql, 'NOT NULL', 'DEFAULT (load_extension(1))')",
        )
    )
    some = dice.choice(("name GLOB 'litejobs_*'", f"rowid = {dice.randrange(1, 40)}"))
    connection.execute(f"UPDATE sqlite_schema SET {column} = {value} WHERE {some}")


def _versions(dice: random.Random, connection: apsw.Connection) -> None:
    value = dice.choice((4, 5, 99, -1, 0, 1, 2, 2**62, "x", b"\xff", 1.5, None))
    connection.execute("UPDATE litejobs_meta SET value = ? WHERE name = 'schema'", (value,))


def _pragmas(dice: random.Random, connection: apsw.Connection) -> None:
    name, value = dice.choice(
        (
            *(("journal_mode", "delete"), ("journal_mode", "off"), ("user_version", 2**31 - 1)),
            *(("application_id", -1), ("schema_version", -1), ("default_cache_size", 2**31 - 1)),
        )
    )
    connection.pragma(name, value)


def _statistics(dice: random.Random, connection: apsw.Connection) -> None:
    connection.execute("ANALYZE")
    value = dice.choice(("'x'", "'999999999 1 1 1'", "x'ff'", "'0 0 0'", "NULL"))
    connection.execute(f"UPDATE sqlite_stat1 SET stat = {value}")


def _numbers(dice: random.Random, connection: apsw.Connection) -> None:
    """Ids at their end, many nodes, counts that are wrong, notes on what is hidden."""
    connection.execute(
        dice.choice(
            (
                "UPDATE sqlite_sequence SET seq = 9223372036854775807",
                "UPDATE sqlite_sequence SET seq = 'x'",
                "UPDATE litejobs_count SET number = -5, name = 'x' || name",
                "INSERT INTO litejobs_meta VALUES ('hidden:work', '[\"payload.what\", 5, null]')",
                "INSERT INTO litejobs_meta VALUES ('hidden:work', '{{{')",
                "UPDATE litejobs_job SET prune_at = 1, expires_at = 1, cancel_at = 1",
                "UPDATE litejobs_job SET state = 'blocked', key = 'k', key_limit = -1",
                "UPDATE litejobs_job SET attempt = 9223372036854775807",
                "UPDATE litejobs_job SET claim = 9223372036854775807, lost = 9223372036854775807",
                "UPDATE litejobs_job SET run_at = -9223372036854775807, state = 'scheduled'",
                "UPDATE litejobs_schedule SET next_at = -9223372036854775807",
                "UPDATE litejobs_schedule SET expression = '@every 0.1s', next_at = 1",
                "UPDATE litejobs_schedule SET payload = '{', options = '{}', origin = x'ff'",
                "UPDATE litejobs_queue SET rate = 1e-300, tokens = -1e300, filled_at = 1",
                "UPDATE litejobs_metric SET bucket = 9223372036854775807",
                "INSERT INTO litejobs_node (name, pid, port, workers, started_at)"
                " VALUES ('x', -1, -1, -1, -1)",
            )
        )
    )


MALICE = (
    _triggers, _shapes, _shapes, _shapes, _missing, _columns, *[_values] * 7, _schema, _schema,
    _versions, _pragmas, _statistics, _numbers, _numbers,
)  # fmt: skip


# What is done to each file.


@attrs.define(eq=False)
class Reader:
    """Does everything to a file that litejobs can, and sees what comes out."""

    path: Path
    dice: random.Random
    counts: Counter[str] = attrs.field(factory=Counter)

    def face(self) -> None:
        jobs = program(self.path)
        try:
            if self.opens(jobs):
                for act in self.dice.sample(ACTS, 2):
                    self.may_refuse(act.__name__, lambda: act(self, jobs))  # noqa: B023
        finally:
            with contextlib.suppress(LitejobsError, apsw.Error):
                jobs.close()
        if self.dice.random() < 0.02:
            self.commands()

    def opens(self, jobs: LiteJobs) -> bool:
        """Most damage is in a page that is not read before it is wanted."""
        opened = self.may_refuse("count", jobs.count)
        self.counts["opened" if opened else "refused"] += 1
        return opened

    def may_refuse(self, what: str, act: Callable[[], Any]) -> bool:
        try:
            act()
            return True
        except LitejobsError:
            return False
        except Exception as error:
            last = traceback.format_exc().splitlines()[-8:]
            raise Violation(f"{what}: {type(error).__name__}: {error}: {last}") from error

    def commands(self) -> None:
        verbs = (["list"], ["list", "--json"], ["show", "1"], ["doctor"], ["schedules"], ["stats"])
        for verb, *rest in self.dice.sample(verbs, 2):
            with (
                contextlib.redirect_stdout(io.StringIO()) as out,
                contextlib.redirect_stderr(io.StringIO()),
            ):
                self.may_refuse(verb, lambda: litejobs.main([verb, str(self.path), *rest]))  # noqa: B023
            if not all(c.isprintable() or c in "\n\t" for c in out.getvalue()):
                raise Violation(f"{verb} steers the terminal: {out.getvalue()[:300]!r}")
            self.counts["commands"] += 1


def looks(reader: Reader, jobs: LiteJobs) -> None:
    for job in jobs.find(limit=50):
        for name in ("payload", "headers", "progress", "errors", "run_at", "enqueued_at", "key"):
            reader.may_refuse(name, lambda: getattr(job, name))  # noqa: B023
        for name in ("started_at", "finished_at", "expires_at", "error", "schedule", "finished"):
            reader.may_refuse(name, lambda: getattr(job, name))  # noqa: B023
        reader.may_refuse("why", job.why)
        reader.may_refuse("result", lambda: jobs.result(job))  # noqa: B023
        repr(job)


def finds(reader: Reader, jobs: LiteJobs) -> None:
    jobs.find(payload={"what": "x"}, state=["pending", "failed"])
    jobs.count(queue="q1", finished_after=litejobs.EPOCH)
    list(jobs.iterate(name="work"))
    jobs.get(1).refresh()


def enqueues(reader: Reader, jobs: LiteJobs) -> None:
    work = jobs.registry.named("work")
    work.enqueue("new")
    for choices in ({"unique": Unique(key="canary")}, {"key": "k"}, {"queue": "q2"}):
        reader.may_refuse("enqueue", lambda: work.using(**choices).enqueue("more"))  # noqa: B023
    jobs.enqueue_many([work.bind("a"), work.bind("b")])


def enqueues_by_hand(reader: Reader, jobs: LiteJobs) -> None:
    with jobs.store.file.transaction(enqueues=True) as tx:
        litejobs.insert_unknown(tx, "work", '{"what": "by hand"}', {})


def works(reader: Reader, jobs: LiteJobs) -> None:
    jobs.drain()


def attends(reader: Reader, jobs: LiteJobs) -> None:
    """What a node's duties do, long after now."""
    store, later = jobs.store, jobs.clock() + 10**14
    for duty in (store.stage, store.expire, store.prune, store.schedules.fire, store.meter.roll_up):
        reader.may_refuse(duty.__name__, lambda: duty(later))  # noqa: B023
    for node in store.nodes.all()[:5]:
        reader.may_refuse("rescue", lambda: store.nodes.rescue(node.id))  # noqa: B023
    store.admit()
    store.shrink()
    store.forget_statistics()


def steers(reader: Reader, jobs: LiteJobs) -> None:
    filters: Any = reader.dice.choice(({"queue": "q1"}, {"state": "failed"}, {"id": [1, 2, 3]}))
    for act in (jobs.hold, jobs.release, jobs.retry, jobs.cancel):
        reader.may_refuse(act.__name__, lambda: act(**filters))  # noqa: B023
    jobs.change(to={"priority": 5, "payload": {"what": "changed"}}, **filters)
    jobs.delete(**filters)


def keeps(reader: Reader, jobs: LiteJobs) -> None:
    jobs.doctor()
    jobs.repair()
    if reader.dice.random() < 0.1:
        reader.may_refuse("compact", jobs.compact)
        copy = Path(f"{reader.path}-copy")
        copy.unlink(missing_ok=True)
        reader.may_refuse("backup", lambda: jobs.backup(copy))


def announces(reader: Reader, jobs: LiteJobs) -> None:
    for ask in (jobs.stats, jobs.nodes, jobs.queues, jobs.store.nodes.hidden):
        reader.may_refuse(ask.__name__, ask)
    reader.may_refuse("metrics", lambda: jobs.metrics("hour", limit=5))
    queue = jobs.queue("q1")
    reader.may_refuse("queue", lambda: queue.set(burst=3))
    for schedule in jobs.schedules():
        for name in ("expression", "timezone", "state", "next_at", "last_at", "definition"):
            reader.may_refuse(name, lambda: getattr(schedule, name))  # noqa: B023
        reader.may_refuse("fire", lambda: jobs.schedule(schedule.name).fire())  # noqa: B023
    jobs.pause_schedules()
    jobs.resume_schedules()


ACTS = (looks, finds, enqueues, enqueues_by_hand, works, attends, steers, keeps, announces)


# Children, each with some files.


@attrs.frozen
class Some:
    """Some files, for one child: made of these templates, by these seeds."""

    folder: Path
    templates: list[Bytes]
    seeds: list[int]

    def __call__(self, mark: mmap.mmap) -> tuple[Counter[str], str]:
        """Looks at them; gives what it did, and what was wrong."""
        import resource  # Not on Windows.

        own = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, own + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        counts: Counter[str] = Counter()
        for seed in self.seeds:
            mark[:8] = seed.to_bytes(8, "big")
            signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
            try:
                look_at(self.folder, self.templates, random.Random(seed), counts)
            except Exception as error:
                what = error if isinstance(error, Violation) else repr(error)
                return counts, f"file {seed}: {what}"
            counts["files"] += 1
        return counts, ""


def look_at(
    folder: Path, templates: list[Bytes], dice: random.Random, counts: Counter[str]
) -> None:
    """Makes one file, and lets a reader loose on it."""
    path = folder / "jobs.db"
    clear(folder)
    # Rarely one of the large ones, which take longer to copy than to read.
    made = dict(
        dice.choice([dice.choice(templates), sorted(dice.sample(templates, 4), key=weight)[0]])
    )
    handmade = dice.random() < 0.3
    if not handmade:
        damage(dice, made)
    for end, data in made.items():
        Path(f"{path}{end}").write_bytes(data)
    kind = malice(dice, path) if handmade else "damage"
    counts[kind.strip("_")] += 1
    try:
        Reader(path, dice, counts).face()
    except Violation as violation:
        raise Violation(f"{kind}: {violation}") from violation
    if kind == "_triggers":
        connection = apsw.Connection(str(path))
        ran = connection.execute("SELECT text FROM canary LIMIT 1").get
        connection.close()
        if ran:
            raise Violation(f"triggers: {ran}")


def weight(made: Bytes) -> int:
    return sum(map(len, made.values()))


def clear(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_file() and each.name.startswith("jobs.db"):
            each.unlink()


def hostile_files(run: Run) -> None:
    """Damaged and handmade files crash nothing, hang nothing and run nothing: only our errors."""
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        print("  skipped: it needs fork and the memory limits of Linux")
        return
    at_once = 1 if run.count < 100 * BATCH else os.cpu_count() or 1
    with _somewhere_fast(run) as folder, _quiet():
        (folder / "canary.py").write_text(CANARY)
        sys.path.insert(0, str(folder))
        templates = make_templates(run.folder)
        seeds = [run.dice.getrandbits(48) for _ in range(run.count)]
        places = [folder / str(number) for number in range(2 * at_once)]
        for place in places:
            place.mkdir()
        # A child has ended when the next but one of its folder begins.
        acts = [
            Some(places[number % len(places)], templates, seeds[start : start + BATCH])
            for number, start in enumerate(range(0, len(seeds), BATCH))
        ]
        _face(run, acts, at_once)
        imported = [*folder.rglob("canary-was-imported"), Path("canary-was-imported")]
        run.expect(not any(map(Path.exists, imported)), "code of a file was imported or called")


def _face(run: Run, acts: list[Some], at_once: int) -> None:
    try:
        for counts, violation in answers(acts, at_once):
            run.counts.update(counts)
            run.expect(not violation, violation)
    except Died as died:
        run.violated(f"file {died.place}: {died}")


@contextlib.contextmanager
def _somewhere_fast(run: Run) -> Iterator[Path]:
    """A folder in memory: what counts here is what is read, not what lasts."""
    shared = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else run.folder)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("litejobs")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


ORDEALS = (Ordeal(run=hostile_files, quick=700, full=100_000, unit="files"),)
