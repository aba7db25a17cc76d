"""The store: one file, its connection, its schema, and what becomes of its rows."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import apsw
import attrs
import pytest
from chaos.disk import Disk, Touch, nobody
from chaos.older import older_file
from conftest import NEW_YEAR, TurnedClock, insert, row_of, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import eventually
from typing_extensions import Buffer

import litejobs
from litejobs import (
    BATCH,
    DEFAULT_RETENTION,
    LOST_LIMIT,
    MEBIBYTE,
    SCHEMA_VERSION,
    BusyError,
    Claimed,
    Durability,
    Duties,
    Failure,
    File,
    FileError,
    FileReplacedError,
    Job,
    JobNotFoundError,
    LiteJobs,
    Match,
    Moved,
    NewJob,
    Options,
    OutcomeUnknownError,
    Report,
    Retention,
    Settlement,
    State,
    Store,
    Subscription,
    Transaction,
    _carray,
    from_micros,
    system_clock,
    to_micros,
)

START = to_micros(NEW_YEAR)
"""Where the tests' clock stands before it is turned."""

SECOND = 1_000_000
NAMES = ("mail", "report", "thumbnail")
QUEUES = ("default", "slow")
ALL = Subscription(frozenset(NAMES), None, "here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def store(path: Path, clock: TurnedClock) -> Iterator[Store]:
    made = Store(File(path, "fast", clock=clock))
    yield made
    made.file.close()


@pytest.fixture
def node(store: Store) -> Iterator[int]:
    """A node that is at work."""
    number = store.nodes.join("here", 0, 1, ALL, [])
    yield number
    store.nodes.release_lock(number)


def new(
    name: str = "mail",
    queue: str = "default",
    *,
    node: str = "",
    priority: int = 0,
    run_at: int = START,
    retention: Retention | None = None,
    payload: str = "{}",
) -> NewJob:
    """A job as it is enqueued."""
    state: State = "scheduled" if run_at > START else "pending"
    options = Options(queue, priority, node=node or None, retention=retention or DEFAULT_RETENTION)
    own = {"name": name, "run_at": run_at, "enqueued_at": START, "state": state}
    return NewJob({**options.columns, **own}, (payload,))


def put(store: Store, jobs: Iterable[NewJob]) -> range:
    """Enqueues jobs; gives their ids."""
    ids: range = store.group_commit.commit(lambda tx: litejobs.insert_all(tx, [*jobs])[0])
    return ids


def get_in(store: Store, id: int) -> Job[Any]:
    with store.file.transaction(read_only=True) as tx:
        return litejobs.get_jobs(tx, [id])[0]


def find_in(store: Store, match: Match, limit: int) -> list[Job[Any]]:
    with store.file.transaction(read_only=True) as tx:
        return litejobs.find_jobs(tx, match, limit)


def count_in(store: Store, match: Match) -> int:
    with store.file.transaction(read_only=True) as tx:
        return litejobs.count_jobs(tx, match)


def errors_in(store: Store, id: int) -> tuple[Failure, ...]:
    with store.file.transaction(read_only=True) as tx:
        return tuple(found for *_, found in litejobs.read_failures(tx, "job = :number", id))


def steer(store: Store, verb: str, match: Match) -> Moved:
    return litejobs.bulk(store.file, match, litejobs.VERBS[verb])


def take(
    store: Store, node: int, limit: int = 10**9, subscription: Subscription = ALL
) -> list[Claimed]:
    """Claims the most urgent jobs."""

    def choose(ready: Iterator[tuple[int, str]]) -> list[int]:
        return [id for id, _ in itertools.islice(ready, limit)]

    return store.exchange([], node, choose, subscription)[0]


def settle(store: Store, node: int, *settlements: Settlement) -> int:
    """Settles jobs and claims none; says how many settlements came too late."""
    return store.exchange(settlements, node, lambda ready: [], ALL)[1]


def ending(claimed: Claimed, state: State, **fields: Any) -> Settlement:
    """What becomes of a job that began a second ago and ended now."""
    return claimed, Report(START, START + SECOND, SECOND, state)._replace(**fields)


def failing(claimed: Claimed, state: State = "failed", message: str = "no") -> Settlement:
    """The same for one that raised."""
    said = {"type": "ValueError", "message": message, "traceback": "…"}
    return ending(claimed, state, kind="exception", worker=1, **said)


def nothing() -> None:
    """What most definitions of this file do."""


def a_failure(claimed: Claimed, message: str) -> Failure:
    began = from_micros(START)
    ended = began + timedelta(seconds=1)
    return Failure(claimed.attempt, "exception", "ValueError", message, "…", 1, began, ended)


def shell(path: Path, sql: str) -> subprocess.CompletedProcess[str]:
    """Runs SQL on the file by the `sqlite3` shell."""
    program = shutil.which("sqlite3")
    if program is None:
        pytest.skip("there is no sqlite3 shell here")
    return subprocess.run([program, "-batch", str(path), sql], capture_output=True, text=True)


def standard_library(path: Path, sql: str) -> subprocess.CompletedProcess[str]:
    """Runs SQL on the file by Python's own sqlite3: in a process of its own, since two
    SQLite libraries in one process take each other's locks away."""
    code = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "for row in connection.execute(sys.argv[2]): print(*row, sep='|')\n"
        "connection.commit()\n"
    )
    return subprocess.run(
        [sys.executable, "-S", "-c", code, str(path), sql], capture_output=True, text=True
    )


Outsider = Callable[[Path, str], "subprocess.CompletedProcess[str]"]
outsiders = pytest.mark.parametrize("outsider", [shell, standard_library])


def enqueueing(count: int, jobs: str = "jobs") -> str:
    """The code by which a process enqueues that many jobs and returns their number."""
    made = f"[litejobs.NewJob{tuple(new())!r}] * {count}"
    write = f"litejobs.functools.partial(litejobs.insert_all, jobs={made})"
    return f"len({jobs}.store.group_commit.commit({write})[0])"


class Processes:
    """Processes that run the same code at the same moment."""

    PROGRAM = """
import json, os, sys, time
import litejobs
from litejobs import LiteJobs

def note(n: int) -> None: ...

kept = []
for line in sys.stdin:
    start, code, path = json.loads(line)
    jobs = LiteJobs(path)
    definition = jobs.define(note)
    while time.monotonic() < start:
        pass
    try:
        answer = eval(code)
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""

    def __init__(self, size: int) -> None:
        self.members = [
            subprocess.Popen(
                [sys.executable, "-c", self.PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(size)
        ]

    def run(self, code: str, path: Path, members: int | None = None) -> list[Any]:
        """What each of them answers to a Python expression, in which `jobs` is the
        queue, `definition` a definition of it, and `kept` a list that stays."""
        reported = self.members[:members]
        order = json.dumps([time.monotonic() + 0.005, code, str(path)])
        for member in reported:
            assert member.stdin is not None
            member.stdin.write(order + "\n")
            member.stdin.flush()
        return [json.loads(member.stdout.readline()) for member in reported if member.stdout]

    def dismiss(self) -> None:
        for member in self.members:
            member.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    made = Processes(8)
    yield made
    made.dismiss()


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Lets root be nobody for a while: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def enqueue(jobs: LiteJobs) -> None:
    with jobs.store.file.transaction() as tx:
        litejobs.insert_unknown(tx, "job", "{}", {})


class TestTheConnection:
    @pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("fast", 1)])
    def test_follows_the_recipe(self, path: Path, durability: Durability, synchronous: int) -> None:
        store = Store(File(path, durability))
        connection = store.file.connection()
        found = {
            name: connection.pragma(name)
            for name in (
                "journal_mode", "synchronous", "auto_vacuum", "temp_store",
                "wal_autocheckpoint", "journal_size_limit", "trusted_schema",
            )
        }  # fmt: skip
        assert found == {
            "journal_mode": "wal",
            "synchronous": synchronous,
            "auto_vacuum": 2,
            "temp_store": 2,
            "wal_autocheckpoint": 1000,
            "journal_size_limit": 64 * 2**20,
            "trusted_schema": 0,
        }
        assert connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, -1) == 1
        assert connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, -1) == 0
        assert connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, -1) == 0
        assert connection.transaction_mode == "IMMEDIATE"
        store.file.close()

    def test_is_made_when_first_used(self, path: Path) -> None:
        jobs = LiteJobs(path)
        assert not path.exists()
        assert jobs.count() == 0
        assert path.exists()

    @pytest.mark.posix
    def test_keeps_the_file_private_whatever_the_umask(self, path: Path) -> None:
        before = os.umask(0)
        try:
            store = Store(File(path))
            put(store, [new()])
            node = store.nodes.join("here", 0, 1, ALL, [])
        finally:
            os.umask(before)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
        assert modes == dict.fromkeys(
            ["jobs.db", "jobs.db-wal", "jobs.db-shm", "jobs.db-node-1"], 0o600
        )
        store.nodes.release_lock(node)
        store.file.close()

    @pytest.mark.posix
    def test_lets_a_colleague_who_may_use_it_ask_whether_a_node_lives(self, path: Path) -> None:
        store = Store(File(path))
        store.file.changes()
        path.chmod(0o660)
        if os.geteuid() == 0:
            os.chown(path, 0, 12345)
        node = store.nodes.join("here", 0, 1, ALL, [])
        found = os.stat(store.file.presence_path(node))
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, path.stat().st_gid)
        store.nodes.release_lock(node)
        store.file.close()

    def test_leaves_no_other_file_behind_when_it_is_closed(self, path: Path) -> None:
        with LiteJobs(path) as jobs:
            jobs.define(name="mail")(nothing).enqueue()
            assert jobs.drain() == 1
        assert [each.name for each in path.parent.iterdir()] == ["jobs.db"]

    @pytest.mark.posix
    def test_refuses_a_symbolic_link(self, path: Path) -> None:
        target = path.with_name("target.db")
        target.touch()
        path.symlink_to(target)
        with pytest.raises(FileError, match=r"jobs\.db: is a symbolic link: name the file that"):
            Store(File(path)).file.changes()
        assert target.stat().st_size == 0

    @pytest.mark.posix
    def test_follows_links_of_folders(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        store = Store(File(tmp_path / "link" / "jobs.db"))
        put(store, [new()])
        assert store.file.path == tmp_path / "real" / "jobs.db"
        store.file.close()

    @pytest.mark.posix
    def test_refuses_a_loop_of_links(self, store: Store, tmp_path: Path) -> None:
        """Path.resolve() raised a RuntimeError of a loop, before Python 3.13."""
        (tmp_path / "one").symlink_to(tmp_path / "two")
        (tmp_path / "two").symlink_to(tmp_path / "one")
        place = tmp_path / "one" / "jobs.db"
        reported = r"/one/jobs\.db: cannot be created: Too many levels of symbolic links"
        with pytest.raises(FileError, match=reported):
            Store(File(place)).file.changes()
        with pytest.raises(FileError, match=reported):
            litejobs.back_up(store.file, place)

    @pytest.mark.parametrize("name", [":memory:", "file:jobs.db?mode=memory"])
    def test_refuses_what_sqlite_takes_for_a_database_in_memory(self, name: str) -> None:
        with pytest.raises(litejobs.OptionError, match=r"path of a file, got .*recording"):
            LiteJobs(name)

    @pytest.mark.posix
    def test_refuses_a_relative_path_in_a_folder_that_is_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        with pytest.raises(FileError, match=r"jobs\.db: cannot be used: No such file"):
            LiteJobs("jobs.db")

    def test_refuses_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="is a folder: name a file in it"):
            Store(File(tmp_path)).file.changes()

    @pytest.mark.posix
    def test_refuses_a_pipe(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(FileError, match="is not a regular file"):
            Store(File(path)).file.changes()

    def test_names_a_folder_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match=r"the folder .*/no does not exist: create it"):
            Store(File(tmp_path / "no" / "jobs.db")).file.changes()

    def test_refuses_a_file_as_a_folder(self, path: Path) -> None:
        path.touch()
        with pytest.raises(FileError, match=r"jobs\.db is not a folder"):
            Store(File(path / "jobs.db")).file.changes()

    def test_makes_no_file_when_told_not_to(self, path: Path) -> None:
        with pytest.raises(FileError, match="does not exist"):
            Store(File(path, create=False)).file.changes()
        assert not path.exists()

    @pytest.mark.parametrize("content", [b"no database " * 100, b"short"], ids=["long", "short"])
    def test_refuses_what_is_no_database_and_leaves_it(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(FileError, match="is not an SQLite database: name another file"):
            Store(File(path)).file.changes()
        assert path.read_bytes() == content

    def test_refuses_a_path_with_a_nul(self) -> None:
        with pytest.raises(FileError):
            Store(File(Path("a\0b"))).file.changes()

    def test_refuses_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="File name too long"):
            Store(File(tmp_path / ("x" * 300))).file.changes()

    def test_says_that_a_damaged_file_is_damaged(self, store: Store, path: Path) -> None:
        put(store, [new() for _ in range(1000)])
        store.file.close()
        with open(path, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (path.stat().st_size - 4096))
        with pytest.raises(FileError, match=r"CorruptError: database disk image is malformed"):
            count_in(store, Match())

    @pytest.mark.posix
    def test_says_that_a_file_cannot_be_read(self, public_folder: Path) -> None:
        path = public_folder / "jobs.db"
        LiteJobs(path).count()
        path.chmod(0o000)
        problem = "cannot be opened: is it readable"
        with without_privileges(), pytest.raises(FileError, match=problem):
            Store(File(path)).file.changes()

    @pytest.mark.posix
    @pytest.mark.parametrize("folder", [0o555, 0o777], ids=oct)
    @pytest.mark.parametrize("mode", [0o444, 0o666], ids=oct)
    @pytest.mark.parametrize("in_use", [False, True], ids=["left", "in use"])
    def test_that_may_only_be_read_is_read(
        self,
        folder: int,
        mode: int,
        in_use: bool,
        public_folder: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        if mode == 0o666 and (folder == 0o777 or in_use):
            pytest.skip("it may be written")
        path = public_folder / "jobs.db"
        with LiteJobs(path) as jobs:
            enqueue(jobs)
            if not in_use:
                jobs.close()
            for made in public_folder.iterdir():
                made.chmod(mode)
            public_folder.chmod(folder)
            there = sorted(public_folder.iterdir())
            assert len(there) == (3 if in_use else 1)
            with without_privileges(), LiteJobs(path) as reader:
                assert reader.count() == 1
                assert reader.stats() == {"default": {"pending": 1}}
                assert [job.refresh().state for job in reader.find(name="job")] == ["pending"]
                for write in (reader.queue("q").pause, lambda: reader.cancel(name="job")):
                    with pytest.raises(FileError, match="may only be read here"):
                        write()
                assert caplog.text.count("may only be read here") == 1
            assert sorted(public_folder.iterdir()) == there
            public_folder.chmod(0o755)

    @pytest.mark.posix
    def test_that_may_only_be_read_shows_what_others_write_and_is_written_once_it_may_be(
        self, public_folder: Path
    ) -> None:
        path = public_folder / "jobs.db"
        with LiteJobs(path) as jobs, LiteJobs(path) as reader:
            enqueue(jobs)
            jobs.close()
            path.chmod(0o444)
            with without_privileges():
                assert reader.count() == 1  # Without locks.
            enqueue(jobs)
            for made in public_folder.iterdir():
                made.chmod(0o444)
            with without_privileges():
                assert reader.count() == 2  # With the shared memory of the other one.
            enqueue(jobs)
            with without_privileges():
                assert reader.count() == 3
            jobs.close()
            with without_privileges():
                assert reader.count() == 3
            for made in (*public_folder.iterdir(), public_folder):
                made.chmod(0o777)
            with without_privileges():
                assert reader.cancel(name="job").moved == 3
                reader.close()

    @pytest.mark.posix
    def test_says_that_a_file_cannot_be_created(self, public_folder: Path) -> None:
        public_folder.chmod(0o555)
        with (
            without_privileges(),
            pytest.raises(FileError, match="cannot be created: Permission denied"),
        ):
            Store(File(public_folder / "jobs.db")).file.changes()

    @pytest.mark.posix
    def test_says_that_a_folder_cannot_be_written(self, public_folder: Path) -> None:
        path = public_folder / "jobs.db"
        LiteJobs(path).count()
        path.chmod(0o666)
        public_folder.chmod(0o555)
        with (
            without_privileges(),
            pytest.raises(FileError, match="cannot be opened: is it readable"),
        ):
            Store(File(path)).file.changes()

    def test_refuses_a_file_of_a_newer_schema_and_leaves_it(self, store: Store, path: Path) -> None:
        store.file.connection().execute("UPDATE litejobs_meta SET value = 99")
        store.file.connection().execute("CREATE TABLE litejobs_of_tomorrow (id)")
        store.file.close()
        before = path.read_bytes()
        with pytest.raises(FileError, match=r"newer litejobs \(schema 99, .*: upgrade litejobs"):
            Store(File(path)).file.changes()
        assert path.read_bytes() == before

    def test_refuses_a_place_where_wal_does_not_work(self, path: Path) -> None:
        # The VFS with lock files has no shared memory; as some file systems have none.
        code = (
            "import apsw, sys; from litejobs import LiteJobs\n"
            "apsw.set_default_vfs('unix-dotfile')\n"
            "try: LiteJobs(sys.argv[1]).count()\n"
            "except Exception as error: print(type(error).__name__, error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True
        )
        assert done.stdout == (
            f"FileError {path}: stays in journal mode 'delete': WAL does not work there\n"
        ), done.stderr

    def test_lives_in_the_file_of_an_application(self, path: Path) -> None:
        with contextlib.closing(apsw.Connection(str(path))) as application:
            application.execute("CREATE TABLE customer (name TEXT); PRAGMA user_version = 7")
            application.execute("INSERT INTO customer VALUES ('Ada')")
        store = Store(File(path))
        put(store, [new()])
        assert store.file.connection().pragma("journal_mode") == "wal"
        assert store.file.connection().pragma("user_version") == 7
        assert store.file.connection().execute("SELECT name FROM customer").get == "Ada"
        schema = store.file.connection().execute("SELECT name FROM sqlite_schema")
        tables = {str(name) for (name,) in schema}
        assert all(name.startswith(("litejobs_", "sqlite_", "customer")) for name in tables)
        store.file.close()

    def test_opens_again_after_it_was_closed(self, store: Store) -> None:
        put(store, [new()])
        store.file.close()
        store.file.close()
        assert get_in(store, 1).id == 1


class TestOtherProcesses:
    def test_open_a_fresh_file_all_at_once(self, processes: Processes, tmp_path: Path) -> None:
        for round in range(20):
            answers = processes.run("jobs.count()", tmp_path / f"{round}.db")
            assert answers == [0] * 8, f"round {round}"

    def test_open_a_fresh_file_first_and_keep_their_wal(
        self, processes: Processes, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who had found no file looked at what lay beside it afterwards: it was another's WAL."""
        look, opened = litejobs._file_id, list[Any]()

        def look_late(name: str) -> litejobs.FileId:
            if not opened:
                opened.append("now")
                opened.append(processes.run(f"[kept.append(jobs), {enqueueing(1)}][1]", path, 1))
            return look(name)

        monkeypatch.setattr(litejobs, "_file_id", look_late)
        store = Store(File(path))
        put(store, [new()])
        assert opened[1:] == [[1]]
        assert count_in(store, Match()) == 2
        assert not list(path.parent.glob("jobs.db-wal-*"))
        processes.run("kept.pop().close()", path, 1)
        store.file.close()

    def test_enqueue_all_at_once_and_lose_nothing(self, processes: Processes, path: Path) -> None:
        answers = processes.run("[definition.enqueue(n).id for n in range(50)]", path)
        ids = [id for answer in answers for id in answer]
        assert sorted(ids) == list(range(1, 401))
        rows = find_in(Store(File(path)), Match(), 1000)
        assert {row.id for row in rows} == set(ids)
        sent = [row.payload["n"] for row in rows]
        assert sorted(sent) == sorted(list(range(50)) * 8)

    def test_claim_all_at_once_and_none_of_them_the_same(
        self, processes: Processes, path: Path
    ) -> None:
        put(Store(File(path)), [new("note") for _ in range(100)])
        claim = (
            "(subscription := litejobs.Subscription(frozenset(['note']), None, 'x')) and"
            " [job.id for _ in range(30) for job in jobs.store.exchange([], os.getpid(),"
            " lambda ready: [id for id, _ in [*ready][:3]], subscription)[0]]"
        )
        ids = [id for answer in processes.run(claim, path) for id in answer]
        assert sorted(ids) == list(range(1, 101))

    def test_hold_the_write_lock_for_too_long(
        self, processes: Processes, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(litejobs, "BUSY_TIMEOUT", 0.2)
        put(store, [new()])
        hold = "[kept.append(jobs), jobs.store.file.connection().execute('BEGIN IMMEDIATE')] and 1"
        assert processes.run(hold, store.file.path, 1) == [1]
        began = time.monotonic()
        with pytest.raises(BusyError, match=r"locked by another process .*: who holds a trans"):
            put(store, [new()])
        assert 0.2 <= time.monotonic() - began < 5
        assert count_in(store, Match()) == 1, "one can read meanwhile"
        assert processes.run("kept.pop().close()", store.file.path, 1) == [None]
        assert list(put(store, [new()])) == [2]

    def test_are_waited_for_while_they_write(self, processes: Processes, store: Store) -> None:
        put(store, [new()])
        hold = "[kept.append(jobs), jobs.store.file.connection().execute('BEGIN IMMEDIATE')] and 1"
        processes.run(hold, store.file.path, 1)
        waiting = threading.Thread(target=put, args=(store, [new()]))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        processes.run("kept.pop().close()", store.file.path, 1)
        waiting.join(10)
        assert count_in(store, Match()) == 2

    def test_that_read_for_long_hinder_nobody(self, processes: Processes, store: Store) -> None:
        put(store, [new()])
        read = (
            "[kept.append(jobs), jobs.store.file.connection().execute('BEGIN DEFERRED'),"
            " jobs.count()][-1]"
        )
        assert processes.run(read, store.file.path, 1) == [1]
        assert list(put(store, [new()])) == [2]
        processes.run("kept.pop().close()", store.file.path, 1)


@pytest.mark.posix
class TestAFork:
    def in_a_child(self, act: Callable[[], object]) -> None:
        child = os.fork()
        if child == 0:
            try:
                act()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    def test_lets_both_processes_go_on(self, path: Path) -> None:
        store = Store(File(path))
        ids = [*put(store, [new()])]
        for act in (
            lambda: put(store, [new()]),
            lambda: store.file.close(),
            lambda: get_in(store, 1),
            lambda: os.kill(os.getpid(), 0),
        ):
            self.in_a_child(act)
            ids += put(store, [new() for _ in range(5)])
        # Asked by a process that shares nothing with this one.
        assert shell(path, "SELECT count(*) FROM litejobs_job").stdout == "22\n"
        assert len(set(ids)) == 21
        store.file.close()

    def test_leaves_the_child_its_file_when_the_parent_closes(self, path: Path) -> None:
        # SQLite in the child would believe in the parent's locks, had it inherited them:
        # the parent, the last one as it seems, would delete the WAL under the child.
        store = Store(File(path))
        put(store, [new()])
        asking, reported = os.pipe()
        hearing, answered = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                put(store, [new()])
                os.write(answered, b"open")
                os.read(asking, 9)
                for _ in range(20):
                    put(store, [new()])
                os._exit(0)
            except BaseException:
                os._exit(1)
        os.close(asking)
        os.close(answered)
        assert os.read(hearing, 9) == b"open"
        get_in(store, 1)
        store.file.close()
        os.write(reported, b"closed")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(reported)
        os.close(hearing)
        assert shell(path, "SELECT count(*) FROM litejobs_job").stdout == "22\n"

    def test_does_not_wait_for_a_store_that_is_gone(self, path: Path) -> None:
        store = Store(File(path))
        put(store, [new()])
        store.file.close()
        del store
        self.in_a_child(lambda: put(Store(File(path)), [new()]))
        assert count_in(Store(File(path)), Match()) == 2

    def test_does_not_leave_the_child_waiting_for_a_thread_that_opens_a_file(
        self, path: Path
    ) -> None:
        held = threading.Event()

        def open_slowly() -> None:
            with litejobs._OPENING:
                held.set()
                time.sleep(0.05)

        def open_in_the_child() -> None:
            signal.alarm(5)
            Store(File(path)).file.changes()

        thread = threading.Thread(target=open_slowly)
        thread.start()
        held.wait()
        self.in_a_child(open_in_the_child)
        thread.join()

    def test_that_is_interrupted_while_it_waits_holds_nothing_up(self, tmp_path: Path) -> None:
        """Python forks all the same; what had been held by then was never given back."""
        program = """
import os, signal, sys, threading
from litejobs import LiteJobs

def note() -> None: ...

def work():
    with busy.store.file.lock:
        ready.set()
        done.wait()

quiet, busy = LiteJobs("quiet.db"), LiteJobs("busy.db")
notes = [jobs.define(note) for jobs in (quiet, busy)]
[note.enqueue() for note in notes]
ready, done = threading.Event(), threading.Event()
threading.Thread(target=work, daemon=True).start()
ready.wait()
signal.signal(signal.SIGINT, signal.default_int_handler)  # In the background it is ignored.
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
if os.fork() == 0:
    os._exit(0)
done.set()
threads = [threading.Thread(target=note.enqueue, daemon=True) for note in notes]
[thread.start() for thread in threads]
[thread.join(20) for thread in threads]
print([jobs.count() for jobs in (quiet, busy)])
"""
        ran = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (ran.stdout, ran.returncode) == ("[2, 2]\n", 0), ran.stderr

    def test_waits_until_another_thread_has_committed(self, path: Path) -> None:
        store = Store(File(path))
        stop = threading.Event()
        acknowledged: list[int] = []

        def enqueue() -> None:
            while not stop.is_set():
                acknowledged.extend(put(store, [new()]))

        thread = threading.Thread(target=enqueue)
        thread.start()
        for _ in range(10):
            self.in_a_child(lambda: put(store, [new()]))
        stop.set()
        thread.join()
        count = int(shell(path, "SELECT count(*) FROM litejobs_job").stdout)
        assert count == len(acknowledged) + 10
        store.file.close()


class TestAFileThatIsOpenedWhile:
    """Opening it takes long, since somebody writes to it and its schema has steps to take."""

    @pytest.fixture
    def busy(self, path: Path) -> Iterator[apsw.Connection]:
        older_file(path)
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def test_another_one_takes_its_name_is_not_taken_for_that(
        self, path: Path, busy: apsw.Connection, tmp_path: Path
    ) -> None:
        """The names were looked at when all was open: what was in the first file was accepted
        for the second one's."""
        other = tmp_path / "other.db"
        older_file(other)

        def replace() -> None:
            os.replace(other, path)
            busy.execute("ROLLBACK")

        store = Store(File(path))
        with contextlib.closing(store.file), once_it_waits(replace):
            with pytest.raises(FileReplacedError):
                put(store, [new()])
            put(store, [new()])
            assert count_in(store, Match()) == 1
            assert store.file.connection().pragma("integrity_check") == "ok"

    def test_a_newer_version_takes_more_steps_keeps_its_number(
        self, path: Path, busy: apsw.Connection
    ) -> None:
        """The older version wrote its own number over that of the newer one, which would have
        taken its steps again."""

        def upgrade() -> None:
            busy.execute("ALTER TABLE litejobs_job ADD COLUMN newest TEXT")
            busy.execute("UPDATE litejobs_meta SET value = ?", (SCHEMA_VERSION + 1,))
            busy.execute("COMMIT")

        store = Store(File(path))
        with (
            contextlib.closing(store.file),
            once_it_waits(upgrade),
            pytest.raises(FileError, match="newer litejobs"),
        ):
            put(store, [new()])
        assert busy.execute("SELECT value FROM litejobs_meta").get == SCHEMA_VERSION + 1

    def test_a_signal_handler_opens_another_one_is_opened_all_the_same(
        self, path: Path, busy: apsw.Connection, tmp_path: Path
    ) -> None:
        """The thread waited for itself."""
        other = Store(File(tmp_path / "other.db"))

        def enqueue(number: int, frame: object) -> None:
            put(other, [new()])
            busy.execute("ROLLBACK")

        before, store = signal.signal(signal.SIGTERM, enqueue), Store(File(path))
        try:
            with (
                contextlib.closing(store.file),
                once_it_waits(lambda: os.kill(os.getpid(), signal.SIGTERM)),
            ):
                put(store, [new()])
            assert count_in(other, Match()) == 1
        finally:
            signal.signal(signal.SIGTERM, before)
            other.file.close()


@contextlib.contextmanager
def soon(
    act: Callable[[], None], wait: Callable[[], object] = lambda: time.sleep(0.2)
) -> Iterator[None]:
    """Has a thread wait, and then do something while the block waits for it."""

    def act_then() -> None:
        wait()
        act()

    thread = threading.Thread(target=act_then)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def once_it_waits(act: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """The same when the block has opened a connection, and waits for a lock."""
    before = len(apsw.connections())

    def wait() -> None:
        eventually(lambda: len(apsw.connections()) > before)
        time.sleep(0.1)

    return soon(act, wait)


class TestTheFileThatIsTakenAway:
    def remove(self, path: Path) -> None:
        path.unlink()

    def rename(self, path: Path) -> None:
        path.rename(path.with_name("elsewhere.db"))

    def replace(self, path: Path) -> None:
        other = path.with_name("other.db")
        Store(File(other)).file.changes()
        other.replace(path)

    def lose_the_wal(self, path: Path) -> None:
        path.with_name("jobs.db-wal").unlink()

    def lose_all(self, path: Path) -> None:
        for each in path.parent.glob("jobs.db*"):
            each.unlink()

    def lose_the_shared_memory(self, path: Path) -> None:
        path.with_name("jobs.db-shm").unlink()

    def empty(self, path: Path) -> None:
        os.truncate(path, 0)

    @pytest.mark.parametrize(
        "act",
        [remove, rename, replace, lose_the_wal, lose_the_shared_memory, lose_all, empty],
    )
    def test_is_noticed_at_the_next_commit(
        self, act: Callable[[object, Path], None], path: Path
    ) -> None:
        store = Store(File(path))
        put(store, [new()])
        act(self, path)
        with pytest.raises(FileReplacedError, match=r"jobs\.db: was removed, moved or replaced"):
            put(store, [new()])
        # The next use takes the file that is there by then.
        before = count_in(store, Match())
        id = put(store, [new()])[0]
        assert get_in(store, id).name == "mail"
        assert count_in(store, Match()) == before + 1
        store.file.close()

    def test_leaves_the_jobs_of_the_new_file_alone(self, processes: Processes, path: Path) -> None:
        store = Store(File(path))
        put(store, [new()])
        self.lose_all(path)
        begin = f"[kept.append(jobs), {enqueueing(7)}] and jobs.count()"
        assert processes.run(begin, path, 1) == [7]
        with pytest.raises(FileReplacedError):
            put(store, [new()])
        assert processes.run(enqueueing(1, "kept[0]"), path, 1) == [1]
        assert count_in(store, Match()) == 8
        processes.run("kept.pop().close()", path, 1)
        assert count_in(store, Match()) == 8
        store.file.close()

    def test_is_noticed_before_anything_is_written(self, processes: Processes, path: Path) -> None:
        """Without its shared memory this process would write over what the other one wrote."""
        store = Store(File(path))
        put(store, [new()])
        self.lose_the_shared_memory(path)
        begin = f"[kept.append(jobs), {enqueueing(1)}] and jobs.count()"
        assert processes.run(begin, path, 1) == [2]
        with pytest.raises(FileReplacedError, match="nothing was written"):
            steer(store, "cancel", Match())
        assert put(store, [new()])[0] == 3
        processes.run("kept.pop().close()", path, 1)
        assert count_in(store, Match()) == 3
        store.file.close()

    def test_keeps_what_was_acknowledged_if_it_has_only_lost_its_shared_memory(
        self, path: Path
    ) -> None:
        for end in (File.changes, File.close):
            store = Store(File(path))
            put(store, [new() for _ in range(5)])
            self.lose_the_shared_memory(path)
            with contextlib.suppress(FileReplacedError):
                end(store.file)
        assert shell(path, "SELECT count(*) FROM litejobs_job").stdout == "10\n"

    def test_whose_wal_is_lost_is_refused_as_long_as_a_program_has_it_open(
        self, path: Path, processes: Processes
    ) -> None:
        """A new WAL began behind frames that were only in the old one: it had holes."""
        store = Store(File(path))
        put(store, [new() for _ in range(50)])
        self.lose_the_wal(path)
        for _ in range(2):
            refused = processes.run("jobs.count()", path, 1)[0]
            assert "jobs.db: its WAL was removed while programs had it open" in refused
            assert "end them; what was only in the WAL is lost" in refused
        store.file.close()
        assert processes.run("jobs.count()", path, 1) == [0]

    def test_whose_wal_is_lost_gets_one_that_can_be_recovered(
        self, path: Path, request: pytest.FixtureRequest
    ) -> None:
        """While somebody still read the old one, the new one was written as if it went on with
        that: it had a hole where it should begin."""
        writer, reader = Processes(1), Processes(1)
        request.addfinalizer(writer.dismiss)
        request.addfinalizer(reader.dismiss)
        assert writer.run(f"[kept.append(jobs), {enqueueing(50)}][1]", path) == [50]
        read = "jobs.store.file.connection().execute('BEGIN; SELECT max(id) FROM litejobs_job').get"
        assert reader.run(f"[kept.append(jobs), {read}][1]", path) == [50]
        self.lose_the_wal(path)
        again = enqueueing(50, "kept[0]")
        for _ in range(2):
            assert writer.run(again, path)[0].startswith("FileReplacedError")
        reader.members[0].kill()
        reader.members[0].wait()
        assert writer.run(again, path) == [50]
        writer.members[0].kill()
        writer.dismiss()
        assert shell(path, "SELECT count(*) FROM litejobs_job").stdout == "50\n"

    def test_is_not_opened_anew_while_somebody_writes_who_has_not_noticed(
        self, path: Path, processes: Processes
    ) -> None:
        """Who only read opened it anew at once, and wrote to the same places of the WAL."""
        store = Store(File(path))
        put(store, [new() for _ in range(50)])
        assert processes.run(f"[kept.append(jobs), {enqueueing(50)}][1]", path, 1) == [50]
        reported: list[Any] = []

        def go_on() -> None:
            for code in ("kept[0].count()", enqueueing(50, "kept[0]")):
                reported.extend(processes.run(code, path, 1))

        other = threading.Thread(target=go_on)
        with contextlib.suppress(FileReplacedError), store.file.transaction() as tx:
            self.lose_the_shared_memory(path)
            time.sleep(2 * litejobs.CHECK_INTERVAL)
            other.start()
            time.sleep(0.3)  # It must not get on meanwhile, which nothing tells.
            tx.execute("UPDATE litejobs_job SET priority = 1")
            tx.execute("UPDATE litejobs_job SET priority = 0")
        other.join()
        refused, went_on = reported
        assert refused.startswith("FileReplacedError")
        assert went_on == 50
        store.file.close()
        processes.run("kept.pop().close()", path, 1)
        assert shell(path, "PRAGMA integrity_check").stdout == "ok\n"
        assert shell(path, "SELECT count(*) FROM litejobs_job").stdout == "150\n"

    def test_is_not_mixed_with_the_one_that_takes_its_place(self, path: Path) -> None:
        """SQLite would take the WAL that is left for that of the other file."""
        other = Store(File(path.with_name("other.db")))
        put(other, [new(name="theirs")])
        other.file.close()
        store = Store(File(path))
        put(store, [new(name="ours") for _ in range(50)])
        path.with_name("other.db").replace(path)
        with pytest.raises(FileReplacedError):
            put(store, [new(name="ours")])
        put(store, [new(name="ours")])
        assert [get_in(store, id).name for id in (1, 2)] == ["theirs", "ours"]
        assert count_in(store, Match()) == 2
        store.file.close()

    @pytest.mark.posix
    def test_has_its_wal_put_aside_by_one_process_and_not_a_new_one_by_another(
        self, path: Path
    ) -> None:
        import fcntl

        store = Store(File(path))
        put(store, [new()])
        self.replace(path)
        refused: list[BaseException] = []

        def enqueue() -> None:
            try:
                put(store, [new()])
            except FileReplacedError as error:
                refused.append(error)

        thread = threading.Thread(target=enqueue)
        folder, wal = os.open(path.parent, os.O_RDONLY), path.with_name("jobs.db-wal")
        fcntl.flock(folder, fcntl.LOCK_EX)  # As another process does that is at it.
        thread.start()
        eventually(lambda: store.file._connection is None)  # It lets go, and waits for the lock.
        wal.rename(path.with_name("jobs.db-wal-1"))
        wal.write_bytes(b"of the new file")
        os.close(folder)
        thread.join()
        assert wal.read_bytes() == b"of the new file"
        assert len(refused) == 1

    @pytest.mark.posix
    def test_has_its_wal_put_aside_in_a_folder_that_cannot_be_read(
        self, public_folder: Path
    ) -> None:
        public_folder.chmod(0o777)
        path = public_folder / "jobs.db"
        with without_privileges():
            store = Store(File(path))
            put(store, [new()])
        public_folder.chmod(0o333)
        with without_privileges():
            path.unlink()
            with pytest.raises(FileReplacedError):
                put(store, [new()])
            store.file.close()
        assert list(public_folder.glob("jobs.db-wal-*"))

    def test_leaves_its_wal_to_who_looks_for_its_jobs(self, path: Path) -> None:
        store = Store(File(path))
        put(store, [new() for _ in range(50)])
        self.rename(path)
        with pytest.raises(FileReplacedError):
            put(store, [new()])
        (wal,) = path.parent.glob("jobs.db-wal-*")
        wal.rename(path.with_name("elsewhere.db-wal"))
        moved = Store(File(path.with_name("elsewhere.db")))
        assert count_in(moved, Match()) in (50, 51), "the last one was refused"
        moved.file.close()
        store.file.close()

    def test_leaves_its_wal_alone_when_somebody_makes_a_new_one(
        self, path: Path, processes: Processes
    ) -> None:
        old = Store(File(path))
        put(old, [new() for _ in range(50)])
        self.rename(path)
        assert processes.run(enqueueing(1), path, 1) == [1]
        assert list(path.parent.glob("jobs.db-wal-*"))
        with pytest.raises(FileReplacedError):
            old.file.changes()
        assert shell(path, "SELECT count(*) FROM litejobs_job").stdout == "1\n"
        old.file.close()

    def test_that_has_a_second_name_is_refused_as_long_as_it_has(self, path: Path) -> None:
        store = Store(File(path))
        put(store, [new()])
        second = path.with_name("second.db")
        os.link(path, second)
        with pytest.raises(FileError, match=r"jobs\.db: has a second name, a hard link"):
            [store.file.changes() for _ in range(10_000)]
        for name in (path, second):
            with pytest.raises(FileError, match="has a second name, a hard link"):
                Store(File(name)).file.changes()
        second.unlink()
        before = count_in(store, Match())
        put(store, [new()])
        assert count_in(store, Match()) == before + 1
        store.file.close()

    def test_is_no_false_alarm_after_a_checkpoint(self, path: Path) -> None:
        store = Store(File(path))
        put(store, [new()])
        store.file.connection().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        assert list(put(store, [new()])) == [2]
        store.file.close()


class TestACommitThatFails:
    PROGRAM = """
import os, resource, sys
from litejobs import LiteJobs
jobs = LiteJobs(sys.argv[1])

@jobs.define
def note(text: str) -> None: ...

def outcome(text):
    try:
        return note.enqueue(text).id
    except Exception as error:
        return f"{type(error).__name__}: {error}"

print(outcome("first"))
outcome("x" * 2**19)
jobs.delete(2)  # Its pages are free: the file need not grow, but the WAL.
size = os.stat(sys.argv[1] + "-wal").st_size
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores SIGXFSZ
print(outcome("x" * 2**19))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
print(outcome("last"))
print(jobs.store.file.connection().pragma("integrity_check"), jobs.find()[0].payload)
"""

    def test_half_way_has_an_unknown_outcome(self, path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", self.PROGRAM, str(path)], capture_output=True, text=True
        )
        first, failed, last, state = done.stdout.splitlines()
        assert first == "1", done.stderr
        assert re.fullmatch(
            r"OutcomeUnknownError: .*/jobs\.db: a commit failed \(.*\);"
            r" what it wrote may be there or not",
            failed,
        ), done.stdout
        assert last in ("3", "4")
        assert state == "ok {'text': 'last'}"

    def test_in_its_sync_has_an_unknown_outcome(self, path: Path) -> None:
        broken = BrokenDisk()
        store = Store(File(path))
        try:
            put(store, [new()])
            broken.fails = True
            with pytest.raises(OutcomeUnknownError, match="may be there or not"):
                put(store, [new()])
            count = count_in(store, Match())
            assert count in (1, 2)
            put(store, [new()])
            assert count_in(store, Match()) == count + 1
            assert store.file.connection().pragma("integrity_check") == "ok"
        finally:
            store.file.close()
            broken.unregister()

    def test_opens_the_file_anew_even_if_it_could_not_be_closed(self, path: Path) -> None:
        def fail(touch: Touch) -> None:
            if touch.kind == "sync":
                raise apsw.IOError("the sync failed")

        store = Store(File(path))
        with Disk() as disk:
            put(store, [new()])
            disk.watcher = fail
            with pytest.raises(OutcomeUnknownError):
                put(store, [new()])
            disk.watcher = nobody
            put(store, [new()])
            assert count_in(store, Match()) in (2, 3)
            store.file.close()

    def test_for_want_of_space_writes_nothing(self, store: Store) -> None:
        put(store, [new()])
        connection = store.file.connection()
        most = connection.pragma("max_page_count")
        connection.pragma("max_page_count", connection.pragma("page_count"))
        with pytest.raises(FileError, match=r"the disk is full: nothing was written; free some"):
            put(store, [new(payload=json.dumps("x" * 2**20))])
        connection.pragma("max_page_count", most)
        assert count_in(store, Match()) == 1
        assert list(put(store, [new()])) == [2]

    def test_for_want_of_disk_writes_nothing(self, store: Store) -> None:
        with a_broken_disk() as broken:
            put(store, [new()])
            broken.left = 0
            # More than is taken beforehand.
            with pytest.raises(FileError, match="nothing was written; free some") as caught:
                put(store, [new(payload=json.dumps("x" * 2**20))])
            assert type(caught.value) is FileError, "its outcome is known"
            broken.left = None
            assert count_in(store, Match()) == 1
            assert list(put(store, [new()])) == [2]
            store.file.close()

    def test_is_not_said_to_be_lost_because_nobody_can_look(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store, [new()])
        with monkeypatch.context() as patched:

            def enqueue_and_go_blind(tx: Transaction) -> None:
                litejobs.insert_all(tx, [new()])
                patched.setattr(os, "stat", out_of_order)
                patched.setattr(os, "access", lambda *path: False)

            with pytest.raises(
                OutcomeUnknownError, match=r"jobs\.db: a commit failed .*may be there or not"
            ):
                store.group_commit.commit(enqueue_and_go_blind)
            with pytest.raises(FileError, match=r"jobs\.db: .*Input/output error"):
                put(store, [new()])
        assert count_in(store, Match()) == 2
        assert list(put(store, [new()])) == [3]


class TestATransaction:
    def test_ends_though_there_is_no_memory_to_roll_it_back(self, store: Store) -> None:
        def starve(tx: Transaction) -> None:
            tx.execute("DELETE FROM litejobs_job")
            apsw.hard_heap_limit(apsw.memory_used())
            tx.execute("SELECT zeroblob(100000)").fetchall()

        put(store, [new()])
        limit = apsw.hard_heap_limit(-1)
        try:
            with pytest.raises(FileError, match="no memory"):
                store.group_commit.commit(starve)
        finally:
            apsw.hard_heap_limit(limit)
        assert list(put(store, [new()])) == [2]
        assert count_in(store, Match()) == 2

    def test_that_makes_the_schema_says_what_it_has_no_memory_for(self, tmp_path: Path) -> None:
        limit, refused = apsw.hard_heap_limit(-1), 0
        for room in range(20_000, 220_000, 5_000):
            store = Store(File(tmp_path / f"{room}.db", "fast"))
            apsw.hard_heap_limit(apsw.memory_used() + room)
            try:
                count_in(store, Match())
            except FileError as error:
                refused += "memory" in str(error) or pytest.fail(str(error))
            finally:
                apsw.hard_heap_limit(limit)
                store.file.close()
        assert refused > 10


def out_of_order(*path: Any, **how: Any) -> NoReturn:
    """What the system does on a disk that is broken."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@contextlib.contextmanager
def a_broken_disk() -> Iterator[BrokenDisk]:
    """On which all files are that are opened meanwhile."""
    broken = BrokenDisk()
    try:
        yield broken
    finally:
        broken.unregister()


class BrokenDisk(apsw.VFS):
    """A disk, the default one meanwhile, whose next sync can be made to fail, that has so many
    bytes left if that is limited, and from which there may be no more than reading."""

    def __init__(self) -> None:
        self.fails = self.closed = self.read_only = False
        self.left: int | None = None
        self.opened: list[str] = []
        self.before = apsw.vfs_names()[0]
        super().__init__("broken-disk", self.before, makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> BrokenFile:
        self.opened.append(str(name.filename() if isinstance(name, apsw.URIFilename) else name))
        if self.closed:
            raise apsw.CantOpenError("too many open files")
        if self.read_only:
            flags[0] = flags[0] & ~apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_READONLY
        return BrokenFile(self, name, flags)

    def unregister(self) -> None:
        apsw.set_default_vfs(self.before)
        super().unregister()


class BrokenFile(apsw.VFSFile):
    def __init__(self, disk: BrokenDisk, name: Any, flags: list[int]) -> None:
        self.disk = disk
        super().__init__(disk.before, name, flags)

    def xWrite(self, data: Buffer, offset: int) -> None:
        if self.disk.left is not None:
            grows = max(0, offset + len(bytes(data)) - self.xFileSize())
            if grows > self.disk.left:
                raise apsw.FullError("no space left")
            self.disk.left -= grows
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        if self.disk.fails:
            self.disk.fails = False
            raise apsw.IOError("the sync failed")
        super().xSync(flags)


COLUMNS = "name, queue, node, priority, state, payload, max_attempts, timeout, backoff, retention"
REPORT = (
    "INSERT OR REPLACE INTO litejobs_definition (name, queue, node, priority, max_attempts,"
    " timeout, backoff, retention) VALUES"
    " ('report', 'slow', 'laptop', 7, NULL, 60000000, NULL, '{\"completed\": 5}')"
)


class TestAnInsertByHand:
    def row(self, store: Store, id: int) -> dict[str, Any]:
        cursor = store.file.connection().execute("SELECT * FROM litejobs_job WHERE id = ?", (id,))
        names = [name for name, _ in cursor.get_description()]
        return dict(zip(names, cursor.fetchone() or (), strict=True))

    @pytest.fixture(autouse=True)
    def a_file(self, store: Store) -> None:
        store.file.connection().execute(REPORT)

    @outsiders
    def test_gets_sane_values_when_no_node_knows_the_definition(
        self, outsider: Outsider, store: Store
    ) -> None:
        began = system_clock()
        sql = "INSERT INTO litejobs_job (name, payload) VALUES ('mail', '{\"to\": \"Ada\"}')"
        done = outsider(store.file.path, sql)
        assert (done.returncode, done.stderr) == (0, "")
        row = self.row(store, 1)
        at = row.pop("enqueued_at")
        # SQLite's clock has milliseconds.
        assert began - 1000 <= at <= system_clock() + 1000
        assert {key: value for key, value in row.items() if value not in (None, 0, "")} == {
            "id": 1,
            "name": "mail",
            "queue": "default",
            "state": "pending",
            "payload": '{"to": "Ada"}',
            "run_at": at,
            "max_attempts": 5,
        }
        assert row["priority"] == 0
        assert row["node"] == ""
        assert row["timeout"] is row["backoff"] is row["retention"] is None

    @outsiders
    def test_gets_what_a_node_has_said_of_the_definition(
        self, outsider: Outsider, store: Store
    ) -> None:
        done = outsider(store.file.path, "INSERT INTO litejobs_job (name) VALUES ('report')")
        assert (done.returncode, done.stderr) == (0, "")
        row = self.row(store, 1)
        assert [row[name.strip()] for name in COLUMNS.split(",")] == [
            "report", "slow", "laptop", 7, "pending", "{}", None, 60 * SECOND, None,
            '{"completed": 5}',
        ]  # fmt: skip

    @outsiders
    def test_keeps_what_it_says_itself(self, outsider: Outsider, store: Store) -> None:
        values = "'report', 'q', 'n', -3, 'pending', '[1]', 2, 9, NULL, '{}'"
        done = outsider(store.file.path, f"INSERT INTO litejobs_job ({COLUMNS}) VALUES ({values})")
        assert (done.returncode, done.stderr) == (0, "")
        row = self.row(store, 1)
        assert [row[name.strip()] for name in COLUMNS.split(",")] == [
            "report", "q", "n", -3, "pending", "[1]", 2, 9, None, "{}",
        ]  # fmt: skip

    @outsiders
    def test_may_lie_in_the_future(self, outsider: Outsider, store: Store) -> None:
        later = system_clock() + 3600 * SECOND
        outsider(
            store.file.path, f"INSERT INTO litejobs_job (name, run_at) VALUES ('mail', {later})"
        )
        row = row_of(store, 1)
        assert (row.state, row.run_at) == ("scheduled", later)

    def test_may_insert_many_at_once(self, store: Store) -> None:
        done = shell(
            store.file.path,
            "INSERT INTO litejobs_job (name) VALUES ('mail'), ('report'), ('mail')",
        )
        assert done.stderr == ""
        assert [(row.id, row.name, row.queue) for row in find_in(store, Match(), 9)] == [
            (3, "mail", "default"),
            (2, "report", "slow"),
            (1, "mail", "default"),
        ]

    @outsiders
    @pytest.mark.parametrize("payload", ["{to: 1}", "", "{"])
    def test_is_refused_when_its_payload_is_no_json(
        self, outsider: Outsider, payload: str, store: Store
    ) -> None:
        sql = f"INSERT INTO litejobs_job (name, payload) VALUES ('mail', '{payload}')"
        done = outsider(store.file.path, sql)
        assert done.returncode != 0
        assert "litejobs: payload is not JSON" in done.stderr
        assert count_in(store, Match()) == 0

    @pytest.mark.parametrize(
        ("columns", "values"),
        [
            ("name", "NULL"),
            ("state", "'done'"),
            ("priority", "'high'"),
            ("name, run_at", "'mail', 1.5"),
            ("name, run_at", "'mail', '2026-01-01'"),
            # In nanoseconds: no date that Python could show.
            ("name, run_at", "'mail', 1700000000000000000"),
            ("name, backoff", "'mail', 'soon'"),
            ("name, retention", "'mail', 'a week'"),
        ],
    )
    def test_is_refused_when_nobody_could_run_or_show_it(
        self, columns: str, values: str, store: Store
    ) -> None:
        done = shell(store.file.path, f"INSERT INTO litejobs_job ({columns}) VALUES ({values})")
        assert done.returncode != 0
        assert count_in(store, Match()) == 0

    @pytest.mark.parametrize("column", ["enqueued_at", "started_at", "attempt", "claim"])
    def test_never_hides_the_jobs_of_others(self, column: str, store: Store, node: int) -> None:
        shell(store.file.path, f"INSERT INTO litejobs_job (name, {column}) VALUES ('mail', 5)")
        (other,) = put(store, [new(queue="other")])
        assert other in [job.id for job in take(store, node)]

    def test_is_run_like_any_other(self, jobs_that_note: LiteJobs) -> None:
        jobs_that_note.drain()
        jobs_that_note.close()
        sql = "INSERT INTO litejobs_job (name, payload) VALUES ('note', '{\"n\": 3}')"
        shell(jobs_that_note.store.file.path, sql)
        assert jobs_that_note.drain() == 1
        assert jobs_that_note.get(1).result() == 6

    @pytest.fixture
    def jobs_that_note(self, path: Path) -> Iterator[LiteJobs]:
        with LiteJobs(path) as jobs:

            @jobs.define
            def note(n: int) -> int:
                return n * 2

            yield jobs

    def test_is_deleted_with_its_history(self, store: Store, node: int) -> None:
        put(store, [new(), new()])
        one, other = take(store, node)
        settle(store, node, failing(one), failing(other))
        shell(store.file.path, "DELETE FROM litejobs_job WHERE id = 1")
        assert errors_in(store, 1) == ()
        assert len(errors_in(store, 2)) == 1


rows = st.lists(
    st.builds(
        new,
        st.sampled_from(NAMES),
        st.sampled_from(QUEUES),
        node=st.sampled_from(["", "here"]),
        priority=st.integers(-2, 2) | st.sampled_from([-(2**31), 2**31 - 1]),
        run_at=st.integers(START - 3, START) | st.just(0),
    ),
    max_size=60,
)


def urgency(row: NewJob, id: int) -> tuple[int, int, int]:
    return -row.columns["priority"], row.columns["run_at"], id


class TestClaims:
    @given(rows=rows)
    @settings(
        max_examples=30,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_go_by_priority_then_by_when_they_became_due_then_by_id(
        self, store: Store, rows: list[NewJob]
    ) -> None:
        store.file.connection().execute("DELETE FROM litejobs_job")
        ids = put(store, rows) if rows else range(0)
        expected = sorted(ids, key=lambda id: urgency(rows[id - ids[0]], id))
        half = len(expected) // 2
        first, rest = take(store, 1, half), take(store, 1)
        assert [job.id for job in first] == expected[:half]
        assert [job.id for job in rest] == expected[half:]

    def test_go_in_order_through_many_full_lanes(self, store: Store) -> None:
        # Some lanes have many pages of jobs, and there are many lanes.
        rows = [
            new(f"job{n % 7}", f"queue{n % 5}", priority=n * 7 % 3, run_at=START - n * 13 % 50)
            for n in range(3000)
        ]
        ids = put(store, rows)
        subscription = Subscription(frozenset(f"job{n}" for n in range(7)), None, "here")
        expected = sorted(ids, key=lambda id: urgency(rows[id - 1], id))
        assert [job.id for job in take(store, 1, subscription=subscription)] == expected

    def test_leave_jobs_alone_until_they_are_due(self, store: Store, clock: TurnedClock) -> None:
        put(store, [new(run_at=START + 10), new(), new(run_at=START + 5, priority=9)])
        assert [job.id for job in take(store, 1)] == [2]
        assert store.stage(START + 4) == (0, START + 5)
        assert take(store, 1) == []
        assert store.stage(START + 5) == (1, START + 10)
        assert [job.id for job in take(store, 1)] == [3]
        assert store.stage(START + 99) == (1, None)
        assert [job.id for job in take(store, 1)] == [1]

    def test_leave_what_the_node_does_not_serve(self, store: Store) -> None:
        put(
            store,
            [
                new("mail", "default"),
                new("mail", "slow"),
                new("unknown", "slow"),
                new("mail", "slow", node="there"),
                new("mail", "slow", node="here"),
            ],
        )
        subscription = Subscription(frozenset(["mail"]), frozenset(["slow"]), "here")
        assert [job.id for job in take(store, 1, subscription=subscription)] == [2, 5]
        assert [row.state for row in find_in(store, Match(ids=(1, 3, 4)), 9)] == ["pending"] * 3

    def test_take_what_is_chosen_in_the_order_of_the_choice(self, store: Store) -> None:
        put(store, [new(), new(), new()])
        claimed, *_ = store.exchange([], 1, lambda ready: [3, 1], ALL)
        assert [job.id for job in claimed] == [3, 1]
        assert get_in(store, 2).state == "pending"

    def test_show_each_job_with_its_name(self, store: Store) -> None:
        put(store, [new("mail"), new("report", "slow")])
        seen: list[tuple[int, str]] = []

        def choose(ready: Iterator[tuple[int, str]]) -> list[int]:
            seen.extend(ready)
            return []

        store.exchange([], 1, choose, ALL)
        assert seen == [(1, "mail"), (2, "report")]

    def test_count_the_attempt_and_raise_the_fence(self, store: Store, clock: TurnedClock) -> None:
        put(store, [new()])
        clock.turn(5e-6)
        (claimed,) = take(store, 1)
        row = row_of(store, 1)
        assert (row.state, row.attempt, row.claim, row.started_at) == ("running", 1, 1, START + 5)
        assert claimed == Claimed(1, 1, "mail", "default", 0, 1, 5, None, None, "{}", START, START)

    def test_of_two_stores_never_overlap(self, store: Store, path: Path) -> None:
        put(store, [new() for _ in range(400)])
        taken: list[list[int]] = []

        def work() -> None:
            mine: list[int] = []
            own = Store(File(path, "fast"))
            while jobs := take(own, 1, 5):
                mine += [job.id for job in jobs]
            own.file.close()
            taken.append(mine)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken[0] + taken[1]) == list(range(1, 401))

    def test_roll_back_when_the_choice_fails(self, store: Store, node: int) -> None:
        put(store, [new(), new()])
        (claimed,) = take(store, node, 1)

        def choose(ready: Iterator[tuple[int, str]]) -> list[int]:
            raise RuntimeError("no choice")

        with pytest.raises(RuntimeError, match="no choice"):
            store.exchange([ending(claimed, "completed")], node, choose, ALL)
        assert get_in(store, 1).state == "running"
        assert settle(store, node, ending(claimed, "completed")) == 0

    def test_stage_more_than_one_batch(self, store: Store) -> None:
        put(store, [new(run_at=START + 1)] * (BATCH + 1))
        assert store.stage(START + 1) == (BATCH + 1, None)
        assert count_in(store, Match(states=("pending",))) == BATCH + 1


class TestSettlements:
    @pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
    def test_of_the_ends(self, state: State, store: Store, node: int) -> None:
        put(store, [new()])
        (claimed,) = take(store, node)
        end = ending(claimed, state, result="[1]", kind="cancelled", type="Why", message="why\nnot")
        assert settle(store, node, end) == 0
        row = row_of(store, 1)
        assert (row.state, row.attempt, row.run_at) == (state, 1, START)
        assert (row.started_at, row.finished_at) == (START, START + SECOND)
        assert (row.result, row.error) == ("[1]", "Why: why")
        assert [each.running for each in store.nodes.all()] == [0]
        assert take(store, node) == []

    @pytest.mark.parametrize("state", ["scheduled", "retrying"])
    def test_of_jobs_that_come_back_later(self, state: State, store: Store, node: int) -> None:
        put(store, [new()])
        (claimed,) = take(store, node)
        settle(store, node, ending(claimed, state, delay=5, counted=False))
        row = row_of(store, 1)
        assert (row.state, row.attempt, row.run_at) == (state, 0, START + SECOND + 5)
        assert row.finished_at is None
        assert store.stage(START + SECOND + 4) == (0, START + SECOND + 5)
        assert store.stage(START + SECOND + 5) == (1, None)
        assert [job.claim for job in take(store, node)] == [2]

    def test_of_a_job_that_is_given_back(self, store: Store, node: int) -> None:
        put(store, [new(), new()])
        (claimed,) = take(store, node, 1)
        settle(store, node, ending(claimed, "pending", counted=False))
        assert [(job.id, job.attempt, job.claim) for job in take(store, node)] == [
            (1, 1, 2),
            (2, 1, 1),
        ]

    def test_of_jobs_that_are_given_back_keep_their_place_among_those_that_became_due(
        self, store: Store, node: int, clock: TurnedClock
    ) -> None:
        """They went behind all that had become due since, and the time of a schedule's tick was
        lost."""
        put(store, [new()])
        (claimed,) = take(store, node)
        clock.turn(10)
        settle(store, node, ending(claimed, "pending", counted=False, delay=7))
        assert row_of(store, 1).run_at == START

    def test_keep_the_failure_with_the_job(self, store: Store, node: int) -> None:
        put(store, [new()])
        kept = []
        for message in ("one", "two\0, with a NUL", "drei – 🚀"):
            store.stage(START + SECOND)
            (claimed,) = take(store, node)
            settle(store, node, failing(claimed, "retrying", message))
            kept.append(a_failure(claimed, message))
        assert errors_in(store, 1) == tuple(kept)

    def test_from_an_older_claim_change_nothing(self, store: Store, node: int) -> None:
        put(store, [new()])
        (old,) = take(store, node)
        settle(store, node, ending(old, "pending", counted=False))
        (current,) = take(store, node)
        before = row_of(store, 1)
        assert settle(store, node, failing(old)) == 1
        assert row_of(store, 1) == before
        assert errors_in(store, 1) == ()
        assert settle(store, node, ending(current, "completed", result="2")) == 0
        assert row_of(store, 1).result == "2"
        assert settle(store, node, ending(current, "failed")) == 1, "it was settled already"
        assert get_in(store, 1).state == "completed"

    def test_of_a_job_that_is_gone_leave_no_history(self, store: Store, node: int) -> None:
        put(store, [new()])
        (claimed,) = take(store, node)
        shell(store.file.path, "DELETE FROM litejobs_job")
        assert settle(store, node, failing(claimed)) == 1
        assert errors_in(store, 1) == ()

    def test_are_counted_one_by_one(self, store: Store, node: int) -> None:
        put(store, [new() for _ in range(3)])
        one, two, three = take(store, node)
        assert settle(
            store,
            node,
            ending(one, "completed"),
            ending(two._replace(claim=7), "completed"),
            ending(three, "completed"),
        ) == 1  # fmt: skip
        assert [row.state for row in find_in(store, Match(), 9)] == [
            "completed",
            "running",
            "completed",
        ]

    @pytest.mark.parametrize("state", ["retrying", "scheduled", "pending"])
    def test_never_bring_back_a_job_that_was_cancelled_meanwhile(
        self, state: State, store: Store, node: int
    ) -> None:
        put(store, [new()])
        (claimed,) = take(store, node)
        assert steer(store, "cancel", Match(ids=(1,))) == Moved(1)
        settle(store, node, ending(claimed, state))
        assert get_in(store, 1).state == "cancelled"

    def test_let_a_job_complete_though_it_was_asked_to_end(self, store: Store, node: int) -> None:
        put(store, [new()])
        (claimed,) = take(store, node)
        steer(store, "cancel", Match(ids=(1,)))
        assert store.nodes.requests(node)[0] == [1]
        settle(store, node, ending(claimed, "completed"))
        assert get_in(store, 1).state == "completed"
        assert store.nodes.requests(node)[0] == []


class TestRescue:
    def test_leaves_the_jobs_of_a_node_that_lives(self, store: Store, node: int) -> None:
        put(store, [new()])
        take(store, node)
        assert len(store.nodes.rescue(node)) == 0
        assert get_in(store, 1).state == "running"
        assert [each.id for each in store.nodes.all()] == [node]

    def test_leaves_the_jobs_of_a_node_in_another_process(
        self, processes: Processes, store: Store
    ) -> None:
        put(store, [new()])
        join = (
            "[kept.append(jobs.store.nodes)] and kept[0].join('x', 0, 1, SUBSCRIPTION, [])".replace(
                "SUBSCRIPTION", "litejobs.Subscription(frozenset(), None, 'x')"
            )
        )
        (node,) = processes.run(join, store.file.path, 1)
        take(store, node)
        assert len(store.nodes.rescue(node)) == 0
        assert processes.run(f"kept.pop().release_lock({node})", store.file.path, 1) == [None]
        assert len(store.nodes.rescue(node)) == 1

    def test_takes_over_when_the_last_process_of_a_node_is_gone(
        self, store: Store, clock: TurnedClock
    ) -> None:
        node = store.nodes.join("there", 0, 1, ALL, [])
        worker = litejobs.lock_shared(store.file.presence_path(node))
        put(store, [new(), new(), new()])
        take(store, node, 2)
        store.nodes.release_lock(node)
        assert len(store.nodes.rescue(node)) == 0, "its worker may still run the jobs"
        worker.close()
        clock.turn(1)
        assert len(store.nodes.rescue(node)) == 2
        assert store.nodes.all() == []
        assert not os.path.exists(store.file.presence_path(node))
        rows = rows_of(store)
        assert [(row.state, row.attempt, row.lost) for row in rows] == [
            ("pending", 0, 0),
            ("pending", 0, 1),
            ("pending", 0, 1),
        ]
        (failure,) = errors_in(store, 1)
        assert (failure.attempt, failure.kind, failure.worker) == (1, "lost", os.getpid())
        assert len(store.nodes.rescue(node)) == 0, "there is nothing left to rescue"

    def test_waits_for_a_node_to_make_its_lock_file_anew_that_somebody_removed(
        self, store: Store, clock: TurnedClock
    ) -> None:
        node = store.nodes.join("there", 0, 1, ALL, [])
        put(store, [new()])
        take(store, node)
        os.unlink(store.file.presence_path(node))
        for _ in range(20):
            assert len(store.nodes.rescue(node)) == 0
            clock.turn(1)
        assert store.nodes.renew(node)
        assert not store.nodes.renew(node)
        assert len(store.nodes.rescue(node)) == 0, "it lives"
        store.nodes.release_lock(node)
        os.unlink(store.file.presence_path(node))
        for _ in range(30):
            assert len(store.nodes.rescue(node)) == 0
            clock.turn(1)
        assert len(store.nodes.rescue(node)) == 1
        assert (get_in(store, 1).state, store.nodes.all()) == ("pending", [])

    def test_does_not_count_the_time_in_which_nobody_looked_for_a_removed_lock_file(
        self, store: Store, clock: TurnedClock
    ) -> None:
        """All is frozen, or the clock is set: the node has had no time to make it anew."""
        node = store.nodes.join("there", 0, 1, ALL, [])
        put(store, [new()])
        take(store, node)
        os.unlink(store.file.presence_path(node))
        for _ in range(5):
            assert len(store.nodes.rescue(node)) == 0
            clock.turn(3600)
        store.nodes.release_lock(node)

    def test_takes_over_from_those_who_are_not_in_the_list(
        self, store: Store, node: int, clock: TurnedClock
    ) -> None:
        dead = store.nodes.join("there", 0, 1, ALL, [])
        put(store, [new(), new()])
        take(store, dead, 1)
        take(store, node, 1)
        with store.file.transaction() as tx:
            tx.execute("DELETE FROM litejobs_node WHERE id = ?", (dead,))
        duties = Duties(store, node)
        duties.do("rescue_from_unlisted")
        assert get_in(store, 1).state == "running", "it holds the lock"
        store.nodes.release_lock(dead)
        duties.do("rescue_from_unlisted")
        assert [row.state for row in find_in(store, Match(), 9)] == ["running", "pending"]
        with store.file.transaction() as tx:
            tx.execute("UPDATE litejobs_job SET state = 'running', holder = NULL")
        duties.do("rescue_from_unlisted")
        assert get_in(store, 1).state == "pending"

    def test_is_the_duty_of_the_next_node_so_that_not_all_ask_all(
        self, path: Path, store: Store, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store, [new() for _ in range(30)])
        listed = [store.nodes.join(f"n{n}", 0, 1, ALL, []) for n in range(30)]
        for node in listed:
            take(store, node, 1)
        each = [Duties(store, node) for node in listed]
        asked: list[str] = []

        def ask(path: str, exclusive: bool, wait: float = 0.0) -> contextlib.ExitStack | None:
            asked.append(path)
            return lock(path, exclusive, wait)

        lock = litejobs.lock
        with monkeypatch.context() as patched:
            patched.setattr(litejobs, "lock", ask)
            for duties in each:
                duties.do("rescue")
        assert len(asked) <= 2 * len(listed), "not 870"
        for node in listed[:10] + listed[12:]:
            store.nodes.release_lock(node)
        each[10].do("rescue")
        each[11].do("rescue")
        assert [node.name for node in store.nodes.all()] == ["n10", "n11"]
        assert [row.id for row in find_in(store, Match(states=("running",)), 99)] == [12, 11]
        for node in listed[10:12]:
            store.nodes.release_lock(node)

    def test_makes_a_dead_letter_of_a_job_that_takes_every_node_down(
        self, store: Store, clock: TurnedClock
    ) -> None:
        put(store, [new(retention=Retention(failed=5))])
        for count in range(1, LOST_LIMIT + 1):
            assert get_in(store, 1).state == "pending"
            node = store.nodes.join("there", 0, 1, ALL, [])
            take(store, node)
            store.nodes.release_lock(node)
            assert len(store.nodes.rescue(node)) == 1
            assert row_of(store, 1).lost == count
        row = row_of(store, 1)
        assert (row.state, row.attempt, row.finished_at) == ("failed", 1, START)
        assert [failure.kind for failure in errors_in(store, 1)] == ["lost"] * LOST_LIMIT
        assert store.prune(START + 5 * SECOND - 1) == 0
        assert store.prune(START + 5 * SECOND) == 1

    def test_throws_away_what_the_old_claim_brings_later(self, store: Store, node: int) -> None:
        dead = store.nodes.join("there", 0, 1, ALL, [])
        put(store, [new()])
        (old,) = take(store, dead)
        store.nodes.release_lock(dead)
        store.nodes.rescue(dead)
        assert settle(store, dead, ending(old, "completed")) == 1
        (current,) = take(store, node)
        assert settle(store, dead, ending(old, "completed")) == 1
        assert settle(store, node, ending(current, "completed")) == 0

    def test_cancels_what_was_asked_to_end_on_the_node_that_died(self, store: Store) -> None:
        node = store.nodes.join("there", 0, 1, ALL, [])
        put(store, [new()])
        take(store, node)
        steer(store, "cancel", Match(ids=(1,)))
        store.nodes.release_lock(node)
        assert len(store.nodes.rescue(node)) == 1
        assert get_in(store, 1).state == "cancelled"

    def test_forgets_the_wish_to_cancel_once_somebody_retries(
        self, store: Store, node: int
    ) -> None:
        dead = store.nodes.join("there", 0, 1, ALL, [])
        put(store, [new()])
        take(store, dead)
        steer(store, "cancel", Match(ids=(1,)))
        store.nodes.release_lock(dead)
        store.nodes.rescue(dead)
        steer(store, "cancel", Match(ids=(1,)))
        assert steer(store, "retry", Match(ids=(1,))) == Moved(1)
        assert [job.id for job in take(store, node)] == [1]
        assert store.nodes.requests(node)[0] == []

    def test_leaving_gives_back_what_was_held(self, store: Store) -> None:
        node = store.nodes.join("there", 0, 1, ALL, [])
        put(store, [new()])
        take(store, node)
        store.leave(node)
        assert store.nodes.all() == []
        assert get_in(store, 1).state == "pending"

    def test_gives_back_jobs_that_a_node_does_not_know_it_has(
        self, store: Store, node: int
    ) -> None:
        put(store, [new(), new(), new()])
        take(store, node)
        store.nodes.release_orphans(node, [(2, 1), (3, 0)])
        assert [(row.id, row.state, row.attempt) for row in find_in(store, Match(), 9)] == [
            (3, "pending", 0),
            (2, "running", 1),
            (1, "pending", 0),
        ]

    def test_what_was_cancelled_meanwhile_is_not_given_back(self, store: Store, node: int) -> None:
        put(store, [new(), new()])
        take(store, node)
        steer(store, "cancel", Match(ids=(1,)))
        store.nodes.release_orphans(node, [])
        assert [row.state for row in find_in(store, Match(), 9)] == ["pending", "cancelled"]

    def test_takes_nobody_for_dead_who_cannot_be_asked(
        self,
        store: Store,
        node: int,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        put(store, [new()])
        (job,) = take(store, node)
        with monkeypatch.context() as patched:
            patched.setattr(litejobs, "lock", out_of_order)
            assert [store.nodes.rescue(node) for _ in range(3)] == [[], [], []]
        (reported,) = caplog.messages
        assert re.search(
            r"a node lives cannot be known: .*db-node-1: cannot be (opened|written|used)", reported
        )
        assert get_in(store, job.id).state == "running"
        assert settle(store, node, ending(job, "completed")) == 0

    def test_tries_again_when_the_system_refuses(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert store.nodes.all() == []
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", out_of_order)
            with pytest.raises(FileError, match=r"node-1: cannot be used: Input/output error"):
                store.nodes.join("here", 0, 1, ALL, [])
        assert store.nodes.all() == []

    def test_of_a_lock_that_somebody_has_refuses_new_holders(self, tmp_path: Path) -> None:
        path = str(tmp_path / "lock")
        Path(path).touch()
        with litejobs.lock_of_dead(path) as gone:
            assert gone
            assert os.path.exists(path)
        assert not os.path.exists(path)
        with litejobs.lock_of_dead(path) as gone:
            assert not gone, "who lives makes it anew"


class TestPruning:
    @pytest.mark.parametrize("state", ["completed", "cancelled", "failed"])
    @pytest.mark.parametrize("kept", [0, 0.5, 3600, None])
    def test_waits_for_the_retention_of_the_outcome(
        self, state: State, kept: float | None, store: Store, node: int
    ) -> None:
        others: dict[str, Any] = {"completed": 7, "cancelled": 7, "failed": 7, state: kept}
        put(store, [new(retention=Retention(**others))])
        (claimed,) = take(store, node)
        settle(store, node, failing(claimed, state))
        ended = START + SECOND
        if kept is None:
            assert store.prune(ended + 10**15) == 0
            assert get_in(store, 1).state == state
            return
        due = ended + int(kept * SECOND)
        assert store.prune(due - 1) == 0
        assert len(errors_in(store, 1)) == 1
        assert store.prune(due) == 1
        assert errors_in(store, 1) == ()
        with pytest.raises(JobNotFoundError, match="no job has the id 1: it was deleted or pru"):
            get_in(store, 1)

    @pytest.mark.parametrize(
        ("state", "days"), [("completed", 1), ("cancelled", 1), ("failed", 30)]
    )
    def test_by_default_keeps_finished_jobs_for_days(
        self, state: State, days: int, store: Store, node: int
    ) -> None:
        put(store, [new()])
        (claimed,) = take(store, node)
        settle(store, node, ending(claimed, state))
        due = START + SECOND + days * 86400 * SECOND
        assert store.prune(due - 1) == 0
        assert store.prune(due) == 1

    def test_counts_from_the_cancellation_of_a_waiting_job(
        self, store: Store, clock: TurnedClock
    ) -> None:
        put(store, [new(), new(retention=Retention(cancelled=2))])
        clock.turn(100e-6)
        steer(store, "cancel", Match(states=("pending",)))
        assert store.prune(START + 100 + 2 * SECOND - 1) == 0
        assert store.prune(START + 100 + 2 * SECOND) == 1
        assert store.prune(START + 100 + 86400 * SECOND - 1) == 0
        assert store.prune(START + 100 + 86400 * SECOND) == 1

    def test_leaves_a_dead_letter_that_was_retried(self, store: Store, node: int) -> None:
        put(store, [new(retention=Retention(failed=0))])
        (claimed,) = take(store, node)
        settle(store, node, ending(claimed, "failed"))
        steer(store, "retry", Match(ids=(1,)))
        assert store.prune(START + 10**15) == 0

    def test_goes_by_small_batches_and_gives_the_space_back(
        self, store: Store, path: Path, node: int
    ) -> None:
        fill(store, 1200, "completed", "x" * 3000)
        pages = store.file.connection().pragma("page_count")
        assert [store.prune(1100) for _ in range(3)] == [1000, 100, 0]
        assert count_in(store, Match()) == 100
        assert max(iter(store.shrink, 0)) == 200
        assert store.file.connection().pragma("page_count") < pages * 0.2


def fill(
    store: Store, number: int, state: State, text: str = "", run_at: int = 0, queue: str = "default"
) -> None:
    """Puts many rows of one state into the file, to be pruned at 1, 2, 3, …"""
    ended = state in ("completed", "failed", "cancelled")
    count_in(store, Match())
    by_hand = apsw.Connection(str(store.file.path))
    by_hand.execute(
        """
        WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted LIMIT ?)
        INSERT INTO litejobs_job (
            name, queue, priority, state, payload, run_at, enqueued_at, finished_at, prune_at
        )
        SELECT 'mail', ?, 0, ?, ?, ?, 0, ?, CASE WHEN ? THEN n END FROM counted
        """,
        (number, queue, state, json.dumps(text), run_at, 0 if ended else None, ended),
    )
    by_hand.close()


@contextlib.contextmanager
def watched(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """The statements that the store runs meanwhile, with their bindings."""
    seen: list[tuple[str, Any]] = []

    def note(cursor: Any, sql: str, bindings: Any) -> bool:
        seen.append((sql, bindings))
        return True

    store.file.connection().exec_trace = note
    try:
        yield seen
    finally:
        store.file.connection().exec_trace = None


@contextlib.contextmanager
def measured(store: Store) -> Iterator[list[dict[str, int]]]:
    """How much work each statement does meanwhile, triggers included."""
    seen: list[dict[str, int]] = []

    def note(event: dict[str, Any]) -> None:
        seen.append(event["stmt_status"])

    store.file.connection().trace_v2(apsw.SQLITE_TRACE_PROFILE, note)
    try:
        yield seen
    finally:
        store.file.connection().trace_v2(0, None)


def plan(store: Store, sql: str, bindings: Any) -> list[str]:
    rows: list[Any] = (
        store.file.connection().execute(f"EXPLAIN QUERY PLAN {sql}", bindings).fetchall()
    )
    return [row[3] for row in rows]


def an_exchange(store: Store, node: int) -> None:
    claimed = take(store, node, 2)
    settle(store, node, *(ending(job, "retrying") for job in claimed))


HOT: dict[str, tuple[Callable[[Store, int], object], str]] = {
    "claiming and settling": (an_exchange, "litejobs_ready"),
    "staging": (lambda store, node: store.stage(START + 1), "litejobs_due"),
    "asking who was cancelled": (lambda store, node: store.nodes.requests(node), "litejobs_asked"),
    "pruning": (lambda store, node: store.prune(3), "litejobs_prune"),
    "listing nodes": (lambda store, node: store.nodes.all(), "litejobs_held"),
    "rescuing": (lambda store, node: store.nodes._take_over(node + 1), "litejobs_held"),
    "giving strays back": (
        lambda store, node: store.nodes.release_orphans(node, [(1, 1)]),
        "litejobs_held",
    ),
    "finding dead letters": (
        lambda store, node: find_in(store, Match(states=("failed",)), 20),
        "litejobs_counted",
    ),
    "counting dead letters": (
        lambda store, node: count_in(store, Match(states=("failed",))),
        "litejobs_count USING PRIMARY KEY",
    ),
    "retrying dead letters": (
        lambda store, node: steer(store, "retry", Match(states=("failed",), name="no")),
        "litejobs_counted",
    ),
    "cancelling one job": (
        lambda store, node: steer(store, "cancel", Match(ids=(7,))),
        "INTEGER PRIMARY KEY",
    ),
    "deleting one job": (
        lambda store, node: steer(store, "delete", Match(ids=(7,))),
        "INTEGER PRIMARY KEY",
    ),
    "looking whether anything is left to do": (
        lambda store, node: store.has_work(Subscription(frozenset(["no"]), None, "here")),
        "litejobs_held",
    ),
    "turning a page": (
        lambda store, node: find_in(store, Match(before=70), 20),
        "INTEGER PRIMARY KEY",
    ),
    "finding cancelled jobs": (
        lambda store, node: find_in(store, Match(states=("cancelled", "failed")), 20),
        "litejobs_counted",
    ),
    "finding scheduled jobs": (
        lambda store, node: find_in(store, Match(states=("scheduled",)), 20),
        "litejobs_counted",
    ),
    "finding pending jobs of a queue": (
        lambda store, node: count_in(store, Match(states=("pending",), queue="default")),
        "litejobs_ready",
    ),
    "finding running jobs": (
        lambda store, node: count_in(store, Match(states=("running",))),
        "litejobs_held",
    ),
}
hot = pytest.mark.parametrize(("act", "index"), HOT.values(), ids=HOT)


class TestALargeFile:
    """Statements that a node runs all the time must not get slower as the file grows."""

    @pytest.fixture(params=["without statistics", "with statistics"])
    def large(self, request: pytest.FixtureRequest, store: Store) -> Store:
        for state in ("completed", "scheduled", "failed", "cancelled", "pending"):
            fill(store, 300, state, run_at=START + 10**9)
        fill(store, 20, "retrying", run_at=START)
        if request.param == "with statistics":
            store.file.connection().execute("ANALYZE")
            store.file.close()
        return store

    @hot
    def test_is_only_read_through_indexes(
        self, act: Callable[[Store, int], object], index: str, large: Store, node: int
    ) -> None:
        with watched(large) as statements:
            act(large, node)
        plans = {
            sql: plan(large, sql, bindings)
            for sql, bindings in statements
            # What can match nothing has a plan, but is not run.
            if "litejobs_" in sql and "state IN ()" not in sql
        }
        assert plans
        for sql, steps in plans.items():
            for step in steps:
                through_all = re.match(r"SCAN (litejobs_job|job|next)\b", step)
                assert not through_all or "INDEX litejobs_" in step, (sql, steps)
        assert any(f" {index}" in f" {step}" for steps in plans.values() for step in steps), plans

    def test_is_not_read_whole_because_it_was_small_when_it_was_analyzed(
        self, store: Store, node: int
    ) -> None:
        put(store, [new() for _ in range(3)])
        hand = apsw.Connection(str(store.file.path))
        hand.execute("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1); ANALYZE")
        hand.close()
        store.forget_statistics()
        with watched(store) as statements:
            an_exchange(store, node)
        for sql, bindings in statements:
            if "carray" in sql:
                for step in plan(store, sql, bindings):
                    assert not step.startswith("SCAN litejobs"), (sql, step)
        rows = store.file.connection().execute("SELECT tbl FROM sqlite_stat1").fetchall()
        assert rows == [("theirs",)], "the application's own statistics stay"

    @pytest.mark.parametrize(
        "act",
        [
            HOT[name][0]
            for name in ("claiming and settling", "staging", "asking who was cancelled", "pruning")
        ],
    )
    def test_costs_no_more_work_than_a_small_one(
        self, act: Callable[[Store, int], object], store: Store, node: int
    ) -> None:
        def steps() -> int:
            put(store, [new(run_at=START), new(run_at=START + 1)])
            with measured(store) as statuses:
                act(store, node)
            assert statuses
            assert sum(status["SQLITE_STMTSTATUS_AUTOINDEX"] for status in statuses) == 0
            return sum(status["SQLITE_STMTSTATUS_VM_STEP"] for status in statuses)

        small = steps()
        for state in ("completed", "failed", "scheduled"):
            fill(store, 5000, state, run_at=START + 10**9)
        store.file.connection().execute("UPDATE litejobs_job SET prune_at = prune_at + 10")
        assert steps() < small + 500

    def test_with_many_ready_jobs_costs_no_more_to_claim_from(
        self, store: Store, node: int
    ) -> None:
        def steps() -> int:
            with measured(store) as statuses:
                assert len(take(store, node, 4)) == 4
            return sum(status["SQLITE_STMTSTATUS_VM_STEP"] for status in statuses)

        put(store, [new()] * 1000)
        small = steps()
        fill(store, 10_000, "pending", run_at=START - 1)
        assert steps() < small + 500


class TestTheBell:
    def test_rings_at_every_node_when_something_has_changed_for_it(self, store: Store) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wakeup:
            wakeup.bind(("127.0.0.1", 0))
            wakeup.settimeout(5)
            node = store.nodes.join("here", wakeup.getsockname()[1], 1, ALL, [])
            for act in (
                lambda: put(store, [new()]),
                lambda: insert(store, "mail"),
                lambda: steer(store, "cancel", Match()),
                lambda: store.set_queue("mail", {"paused": 1}),
                lambda: store.reset_queue("mail"),
            ):
                act()
                assert wakeup.recv(10) == b""
            store.leave(node)

    def test_of_a_node_with_an_impossible_port_harms_nobody(self, store: Store) -> None:
        node = store.nodes.join("here", 70_000, 1, ALL, [])
        assert list(put(store, [new()])) == [1]
        store.leave(node)


def sequence(rows: Sequence[Any]) -> list[int]:
    return [row.id for row in rows]

    def test_that_cannot_be_rung_harms_nobody(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.nodes.join("here", 9, 1, ALL, [])[1].close()
        monkeypatch.setattr(socket, "socket", out_of_order)
        assert list(put(store, [new()])) == [1]

    return None


class TestAFullDisk:
    def test_lets_jobs_be_settled_and_pruned_and_others_run(
        self, path: Path, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with a_broken_disk() as disk:

            def statvfs(path: Any) -> Any:
                return SimpleNamespace(f_bavail=disk.left, f_frsize=1, f_blocks=1)

            store = Store(File(path, "fast", clock=clock))
            node = store.nodes.join("here", 0, 1, ALL, [])
            store.file.extend_wal()
            put(store, [new() for _ in range(100)])
            held = take(store, node, 50)
            disk.left = 6 * MEBIBYTE
            monkeypatch.setattr(os, "statvfs", statvfs)
            many = [new(payload=json.dumps("x" * 2_000)) for _ in range(100)]
            with pytest.raises(FileError, match="nothing was written; free some space"):
                all(put(store, many) for _ in itertools.count())
            done = [failing(job, message="no " * 300) for job in held]
            for settled in done:
                assert settle(store, node, settled) == 0
            clock.turn(timedelta(days=100))
            assert store.prune(clock()) == 50
            # So many that the WAL is begun anew, again and again.
            while claimed := take(store, node, 20):
                settle(store, node, *(ending(job, "completed") for job in claimed))
            disk.left = 100 * MEBIBYTE
            put(store, many)
            assert len(take(store, node)) == 100
            assert [*litejobs.find_problems(store.nodes)] == []
            store.nodes.release_lock(node)
            store.file.close()

    def test_has_room_in_the_wal_that_only_sqlite_has_written(self, store: Store) -> None:
        store.queues()
        wal = Path(f"{store.file.path}-wal")
        small = wal.stat().st_size
        before = store.file.connection().data_version()
        store.file.extend_wal()
        size = wal.stat().st_size
        assert small < 5_000_000 < size
        assert store.file.connection().data_version() == before
        assert [*litejobs.find_problems(store.nodes)] == []
        store.file.extend_wal()
        assert wal.stat().st_size == size

    def test_is_told_by_the_node_that_can_give_the_wal_no_room(self, path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", self.PROGRAM, str(path)], capture_output=True, text=True
        )
        assert done.stdout == "FileError\n1\n", done.stderr

    PROGRAM = """
import os, resource, sys
from pathlib import Path
from litejobs import File, FileError, LiteJobs, Store
store = Store(File(Path(sys.argv[1])))
store.queues()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
try:
    store.file.extend_wal()
except FileError as error:
    print(type(error).__name__)
jobs = LiteJobs(sys.argv[1])
jobs.define(lambda: None, name="f").enqueue()
print(jobs.count())
"""


class TestMatching:
    def test_takes_ids_beyond_what_sqlite_has(self, store: Store) -> None:
        put(store, [new()])
        huge = Match(ids=(2**63, 2**200, -(2**70), 1))
        assert sequence(find_in(store, huge, 9)) == [1]
        assert count_in(store, huge) == 1
        for id in (2**63, -(2**63) - 1, 2**100, 0, -1):
            with pytest.raises(JobNotFoundError, match=f"no job has the id {id}"):
                get_in(store, id)

    def test_takes_filters_that_are_no_proper_text(self, store: Store) -> None:
        put(store, [new()])
        assert find_in(store, Match(name="\ud800"), 9) == []
        assert count_in(store, Match(queue="\udcff")) == 0


def scanned(store: Store) -> dict[tuple[str, str, str], int]:
    """How many jobs there are by state, queue and name, by reading them all."""
    rows: list[Any] = (
        store.file.connection()
        .execute("SELECT state, queue, name, count(*) FROM litejobs_job GROUP BY 1, 2, 3")
        .fetchall()
    )
    return {(state, queue, name): number for state, queue, name, number in rows}


def counted(store: Store) -> dict[tuple[str, str, str], int]:
    """The same as the store has counted it."""
    groups = itertools.product(litejobs.STATES, QUEUES, NAMES)
    numbers = {
        (state, queue, name): count_in(store, Match(states=(state,), queue=queue, name=name))
        for state, queue, name in groups
    }
    return {group: number for group, number in numbers.items() if number}


queues, names = st.sampled_from(QUEUES), st.sampled_from(NAMES)
matches = st.builds(
    Match,
    name=st.none() | names,
    queue=st.none() | queues,
    states=st.none() | st.lists(st.sampled_from(litejobs.STATES), unique=True).map(tuple),
)
outcomes: st.SearchStrategy[State] = st.sampled_from(
    ["completed", "failed", "cancelled", "retrying", "scheduled", "pending"]
)
steps = st.one_of(
    st.tuples(
        st.just("enqueue"), st.builds(new, names, queues, run_at=st.integers(START, START + 9))
    ),
    st.tuples(st.just("settle"), st.lists(outcomes, max_size=5)),
    st.tuples(st.sampled_from(["cancel", "retry", "delete"]), matches),
    st.tuples(st.sampled_from(["stage", "prune", "rescue", "give back"]), st.just(None)),
    st.tuples(
        st.just("by hand"),
        st.sampled_from(
            [
                "INSERT INTO litejobs_job (name) VALUES ('mail')",
                "INSERT INTO litejobs_job (name, queue, state) VALUES ('mail', 'slow', 'failed')",
                "INSERT INTO litejobs_job (name, run_at) VALUES ('report', 253402300799999999)",
                "UPDATE litejobs_job SET state = 'cancelled' WHERE id % 3 = 0",
                "UPDATE litejobs_job SET queue = 'slow', name = 'report' WHERE id % 4 = 0",
                "DELETE FROM litejobs_job WHERE id % 5 = 0",
            ]
        ),
    ),
)


class TestCounting:
    """The jobs in the counted states are counted as they come and go, never by reading them."""

    def do(self, store: Store, node: int, step: tuple[str, Any], other: int) -> None:
        what, how = step
        match what:
            case "enqueue":
                put(store, [how])
            case "settle":
                claimed = take(store, node, len(how))
                endings = (
                    ending(job, state, finished_at=START, delay=5)
                    for job, state in zip(claimed, how, strict=False)
                )
                settle(store, node, *endings)
            case "cancel" | "retry" | "delete":
                steer(store, what, how)
            case "stage":
                store.stage(START + 5)
            case "prune":
                store.prune(START + 3600 * SECOND)
            case "rescue":
                take(store, other, 2)
                store.nodes._take_over(other)
            case "give back":
                take(store, node, 2)
                store.nodes.release_orphans(node, [])
            case "by hand":
                hand = apsw.Connection(str(store.file.path))
                hand.execute(how)
                hand.close()

    @given(steps=st.lists(steps, max_size=12), match=matches)
    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_agrees_with_a_look_at_all_rows(
        self, tmp_path: Path, clock: TurnedClock, steps: list[tuple[str, Any]], match: Match
    ) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            store = Store(File(Path(folder, "jobs.db"), "fast", clock=clock))
            node = store.nodes.join("here", 0, 1, ALL, [])
            for number, step in enumerate(steps):
                self.do(store, node, step, other=100 + number)
                assert counted(store) == scanned(store), step
            self.finds_what_is_there(store, match)
            store.nodes.release_lock(node)
            store.file.close()

    def finds_what_is_there(self, store: Store, match: Match) -> None:
        everything = [get_in(store, id) for id in range(200) if self.exists(store, id)]
        matching = [
            row.id
            for row in reversed(everything)
            if (match.states is None or row.state in match.states)
            and match.queue in (None, row.queue)
            and match.name in (None, row.name)
        ]
        assert count_in(store, match) == len(matching)
        paged: list[int] = []
        before = None
        while page := find_in(store, attrs.evolve(match, before=before), 2):
            paged += [row.id for row in page]
            before = page[-1].id
        assert paged == matching

    def exists(self, store: Store, id: int) -> bool:
        with contextlib.suppress(JobNotFoundError):
            return bool(get_in(store, id))
        return False


def test_a_file_of_before_the_first_release_is_refused(store: Store) -> None:
    store.file.connection().execute("UPDATE litejobs_meta SET value = 1 WHERE name = 'schema'")
    store.file.close()
    with pytest.raises(FileError, match="before its first release: start with a new file"):
        count_in(store, Match())


class TestThreadsThatEnqueueAtOnce:
    def test_share_commits_and_lose_nothing(self, path: Path) -> None:
        store = Store(File(path, "full"))
        count_in(store, Match())
        ids: list[int] = []

        def produce(number: int) -> None:
            for _ in range(number):
                ids.extend(put(store, [new(), new()]))

        threads = [threading.Thread(target=produce, args=(50,)) for _ in range(8)]
        commits = store.file.connection().data_version()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        commits = store.file.connection().data_version() - commits
        assert sorted(ids) == list(range(1, 801))
        assert count_in(store, Match()) == 800
        assert commits < 400, "400 calls had a commit each"
        print(f"400 calls took {commits} commits")
        store.file.close()

    def test_are_refused_alone(self, path: Path) -> None:
        store = Store(File(path, "full"))
        count_in(store, Match())
        store.file.connection().execute(
            "CREATE UNIQUE INDEX unlucky ON litejobs_job (priority) WHERE priority = 13"
        )
        put(store, [new(priority=13)])
        refused: list[str] = []
        kept: list[int] = []

        def produce(priority: int) -> None:
            for _ in range(30):
                try:
                    kept.extend(put(store, [new(priority=priority)]))
                except FileError as error:
                    refused.append(str(error))

        threads = [threading.Thread(target=produce, args=(p,)) for p in (1, 2, 13, 3, 13, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(kept), len(refused)) == (120, 60)
        assert all("UNIQUE" in said for said in refused)
        assert count_in(store, Match()) == 121
        store.file.close()

    def test_learn_that_the_one_who_committed_for_them_was_interrupted(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(File(path, "full"))
        count_in(store, Match())
        commit, commits = Transaction._commit, itertools.count(1)

        def slow(tx: Transaction) -> None:
            number = next(commits)
            time.sleep(0.3 if number == 1 else 0)
            if number == 2:
                raise KeyboardInterrupt
            commit(tx)

        monkeypatch.setattr(Transaction, "_commit", slow)
        said: list[str] = []

        def produce() -> None:
            try:
                put(store, [new()])
                said.append("done")
            except BaseException as error:
                said.append(type(error).__name__)

        threads = [threading.Thread(target=produce) for _ in range(4)]
        for thread in threads:
            thread.start()
            time.sleep(0.03)
        for thread in threads:
            thread.join(10)
        unknown = ["OutcomeUnknownError"] * 2
        assert sorted(said) == ["KeyboardInterrupt", *unknown, "done"]
        assert len(put(store, [new()])) == 1
        store.file.close()

    def test_do_not_wait_for_themselves_in_a_signal_handler(self, path: Path) -> None:
        store = Store(File(path, "full"))
        count_in(store, Match())
        with store.group_commit._lead:  # as in the midst of an enqueue of this thread
            assert list(put(store, [new()])) == [1]
        store.file.close()

    @pytest.mark.posix
    def test_are_left_to_their_own_process_by_a_fork(self, path: Path) -> None:
        store = Store(File(path, "full"))
        count_in(store, Match())
        done = threading.Event()

        def produce() -> None:
            while not done.is_set():
                put(store, [new(payload='"parent"')])

        threads = [threading.Thread(target=produce) for _ in range(4)]
        for thread in threads:
            thread.start()
        children = []
        for _ in range(10):
            pid = os.fork()
            if not pid:
                put(store, [new(payload='"child"')])
                os._exit(0)
            children.append(pid)
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 10
        payloads = [row.payload for row in rows_of(store)]
        assert payloads.count('"child"') == 10
        store.file.close()


class TestReadingAhead:
    """What was read of the ready jobs is kept while nobody else commits."""

    @pytest.fixture(autouse=True)
    def no_look_takes_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After one that did, as on a busy machine, there would be none for a while."""
        monkeypatch.setattr(litejobs, "SLOW_SCAN", math.inf)

    def test_reads_nothing_twice(self, store: Store, node: int) -> None:
        put(store, [new("mail", f"queue {n % 200}") for n in range(2000)])
        take(store, node, 100)
        with measured(store) as statements:
            assert len(take(store, node, 100)) == 100
        assert sum(each["SQLITE_STMTSTATUS_VM_STEP"] for each in statements) < 100 * 350

    def test_sees_what_others_commit(self, store: Store, node: int, path: Path) -> None:
        other = Store(File(path, "fast", clock=store.clock))
        put(store, [new() for _ in range(20)])
        assert [job.id for job in take(store, node, 2)] == [1, 2]
        (urgent,) = put(other, [new(priority=9)])
        steer(other, "cancel", Match(ids=(3,)))
        assert [job.id for job in take(store, node, 2)] == [urgent, 4]
        other.file.close()

    def test_sees_what_comes_back(self, store: Store, node: int) -> None:
        put(store, [new() for _ in range(20)])
        claimed = take(store, node, 3)
        settle(store, node, *(ending(job, "pending", counted=False) for job in claimed[:2]))
        assert [job.id for job in take(store, node, 3)] == [1, 2, 4]

    def test_goes_on_in_order_after_an_error(self, store: Store, node: int) -> None:
        put(store, [new() for _ in range(20)])
        take(store, node, 2)

        def fail(ready: Iterator[tuple[int, str]]) -> list[int]:
            next(ready)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.exchange([], node, fail, ALL)
        assert [job.id for job in take(store, node, 2)] == [3, 4]

    def test_never_claims_twice_when_two_nodes_read_ahead(self, store: Store, path: Path) -> None:
        other = Store(File(path, "fast", clock=store.clock))
        put(store, [new("mail", f"queue {n % 50}") for n in range(1000)])
        seen: list[int] = []
        while claimed := [*take(store, 1, 7), *take(other, 2, 5)]:
            seen += [job.id for job in claimed]
        assert sorted(seen) == list(range(1, 1001))
        other.file.close()

    def test_gives_nothing_out_twice_while_it_does_not_look(
        self, store: Store, node: int, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(litejobs, "SLOW_SCAN", -1.0)
        monkeypatch.setattr(litejobs, "SCAN_PAUSE", 1e9)
        other = Store(File(path, "fast", clock=store.clock))
        put(store, [new() for _ in range(100)])
        seen: list[int] = []
        for _ in range(40):
            seen += [job.id for job in take(store, node, 9)]
            put(other, [new(priority=9)])
        while claimed := take(store, node, 9):
            seen += [job.id for job in claimed]
        while claimed := take(store, node, 9):
            seen += [job.id for job in claimed]
        assert sorted(seen) == list(range(1, 141))
        other.file.close()


class TestSettlingTwice:
    def test_counts_the_second_as_too_late(self, store: Store, node: int) -> None:
        put(store, [new(), new()])
        one, two = take(store, node)
        done = ending(one, "completed")
        assert settle(store, node, done, ending(two, "completed"), done) == 1
        assert count_in(store, Match(states=("completed",))) == 2


def test_an_array_of_no_ids_has_none(store: Store) -> None:
    """When another node was first to cancel what had expired, nothing was left; and an array
    of nothing is not where SQLite wants it, which ended the node."""
    with store.file.transaction(read_only=True) as tx:
        for _ in range(100):
            assert tx.execute("SELECT 5 IN carray(?)", (_carray([]),)).get == 0
            assert tx.execute("SELECT 5 IN carray(?)", (_carray([5]),)).get == 1
