"""What the README says under Security: private files, harmless words, hidden fields."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import attrs
import pytest
from chaos.older import older_file
from conftest import TurnedClock

import litejobs
from litejobs import (
    Codec,
    CodecError,
    FileError,
    Finding,
    LiteJobs,
    LitejobsError,
    OptionError,
    PayloadError,
    ResultError,
    Unique,
)

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\nERROR forged\udc80"
SECRET = "hunter2"


@attrs.frozen
class Secret:
    value: str = attrs.field(repr=False)


@attrs.frozen
class Login:
    user: str
    password: str = attrs.field(repr=False)
    codes: dict[str, int] = attrs.field(factory=dict, repr=False)
    masked: str = attrs.field(default="", repr=lambda _: "***")


@dataclasses.dataclass(frozen=True)
class Card:
    holder: str
    number: str = dataclasses.field(repr=False)


@attrs.frozen
class Pin:
    digits: int = attrs.field(repr=False, validator=attrs.validators.lt(10_000))


@attrs.frozen
class Account:
    login: Login
    card: Card | None = None

    def run(self) -> Secret:
        return Secret(SECRET)


def log_in(user: str, password: Secret, tries: int = 1) -> None: ...


def commanded(*arguments: object) -> str:
    """What a command prints, out and err."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(out),
        contextlib.suppress(SystemExit),
    ):
        litejobs.main([str(argument) for argument in arguments])
    return out.getvalue()


@pytest.fixture
def jobs(tmp_path: Path) -> Any:
    with LiteJobs(tmp_path / "jobs.db", clock=TurnedClock()) as jobs:
        yield jobs


class TestWords:
    """What goes to a terminal or a log."""

    @pytest.mark.parametrize(
        "error",
        [
            LitejobsError(ESCAPES),
            FileError(ESCAPES, ESCAPES),
            OptionError(ESCAPES, ESCAPES),
            litejobs.JobFailedError(1, ESCAPES, "failed", ESCAPES),
            litejobs.ScheduleNotFoundError(ESCAPES, ESCAPES),
            litejobs.WorkerError(ESCAPES),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_of_an_error_are_printable_on_one_line(self, error: LitejobsError) -> None:
        assert str(error).isprintable()
        assert "ERROR forged" in str(error)

    def test_of_a_job_and_a_finding_are_printable(self, jobs: LiteJobs) -> None:
        text = litejobs.storable(ESCAPES)
        sql = "INSERT INTO litejobs_job (name, queue, state, error) VALUES (?1, ?1, 'failed', ?1)"
        jobs.count()
        write(jobs, sql, text)
        assert repr(jobs.get(1)).isprintable()
        assert jobs.why(1).isprintable()
        assert all(word.isprintable() for word in attrs.astuple(Finding("error", text, text, text)))

    def test_of_the_log_are_printable(
        self, jobs: LiteJobs, caplog: pytest.LogCaptureFixture
    ) -> None:
        @jobs.define(max_attempts=1)
        def fail() -> None:
            raise ValueError(ESCAPES)

        @jobs.on("failed")
        def received(event: object) -> None:
            raise ValueError(ESCAPES)

        fail.enqueue()
        with caplog.at_level(logging.DEBUG, "litejobs"):
            jobs.drain()
        lines = [record.getMessage() for record in caplog.records if record.name == "litejobs"]
        assert any("owned" in line for line in lines)
        assert all(line.isprintable() for line in lines)
        written = logging.Formatter().format(caplog.records[-1])
        assert "Traceback" in written
        assert all(c.isprintable() or c == "\n" for c in written)
        assert "\nERROR" not in written

    def test_of_a_wrong_command_are_printable(self, jobs: LiteJobs) -> None:
        printed = commanded("stats", jobs.path, "", f"x{ESCAPES}")
        assert "unrecognized" in printed
        assert printed.rstrip("\n").isprintable()

    @pytest.mark.parametrize("arguments", [("list", "--name=--"), ("queue", "--", "--")], ids=str)
    def test_of_two_dashes_are_no_other_value(
        self, arguments: tuple[str, ...], jobs: LiteJobs
    ) -> None:
        verb, *rest = arguments
        assert "Traceback" not in commanded(verb, jobs.path, *rest)

    def test_of_json_hold_no_delete(self, jobs: LiteJobs) -> None:
        jobs.define(name="note")(lambda text: None).enqueue("a\x7fb")
        printed = commanded("show", jobs.path, 1, "--json")
        assert "\x7f" not in printed
        assert json.loads(printed)["payload"] == {"text": "a\x7fb"}

    def test_of_advice_are_quoted_for_the_shell(self, jobs: LiteJobs) -> None:
        jobs.define(name="note")(lambda: None).using(node="x; rm -rf ~").enqueue()
        (finding,) = jobs.doctor()
        assert "--from-node 'x; rm -rf ~'" in finding.advice


class TestNames:
    @pytest.mark.parametrize("name", ["a\0b", "\udc80"], ids=ascii)
    def test_of_files_that_sqlite_cannot_take_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="not a valid file name"):
            LiteJobs(tmp_path / name).count()
        with pytest.raises(FileError, match="not a valid file name"):
            LiteJobs(tmp_path / "jobs.db").backup(tmp_path / name)
        assert not [each for each in os.listdir(tmp_path) if "jobs.db" not in each]

    @pytest.mark.parametrize("name", ["os.path/sep", "../zone", "a b", "", ".", "/UTC"])
    def test_of_time_zones_lead_to_nothing_else(self, name: str) -> None:
        with pytest.raises(OptionError, match="no time zone"):
            litejobs.time_zone(name)


class TestTheFile:
    def test_never_runs_a_trigger_of_others(self, jobs: LiteJobs) -> None:
        jobs.define(name="note")(lambda: None).enqueue()
        connection = jobs.store.file.connection()
        connection.execute("CREATE TABLE canary (text)")
        for verb in ("INSERT", "UPDATE", "DELETE"):
            connection.execute(
                f"CREATE TRIGGER evil_{verb} AFTER {verb} ON litejobs_job"
                " BEGIN INSERT INTO canary VALUES ('ran'); END"
            )
        assert commanded("enqueue", jobs.path, "note") == "2\n"
        jobs.cancel(1, 2)
        jobs.delete(1)
        assert connection.execute("SELECT count(*) FROM canary").get == 0

    def test_is_completed_by_hand_as_by_its_trigger(self, jobs: LiteJobs) -> None:
        """The command enqueues on the file alone without the trigger: with what it says."""
        jobs.define(name="note", queue="notes", priority=3, expires=60)(lambda: None)
        jobs.drain()
        at = "2999-01-01T00:00+00:00"
        commanded("enqueue", jobs.path, "note")
        commanded("enqueue", jobs.path, "note", "--key", "k", "--at", at)
        commanded("enqueue", jobs.path, "note", "--key", "k")
        commanded("enqueue", jobs.path, "note", "--key", "k")
        jobs.close()
        other = apsw.Connection(str(jobs.path))
        run_at = litejobs.to_micros(datetime.fromisoformat(at))
        for columns in ("", ", key, run_at", ", key", ", key"):
            values = f", 'k', {run_at}" if "run_at" in columns else ", 'k'" if columns else ""
            other.execute(f"INSERT INTO litejobs_job (name{columns}) VALUES ('note'{values})")
        names = "name, queue, node, priority, state, max_attempts, timeout, backoff, retention, key"
        rows = other.execute(f"SELECT {names} FROM litejobs_job ORDER BY id").fetchall()
        states = ["pending", "scheduled", "pending", "blocked"]
        assert [row[4] for row in rows] == [*states, "pending", "scheduled", "blocked", "blocked"]
        assert [row[:4] for row in rows[:4]] == [row[:4] for row in rows[4:]]
        assert [row[5:] for row in rows[:4]] == [row[5:] for row in rows[4:]]
        assert {row[1:4] for row in rows} == {("notes", "", 3)}
        other.close()
        assert not [finding for finding in jobs.doctor() if finding.level == "error"]

    @pytest.mark.posix
    def test_is_private_also_its_copy_and_its_locks(self, jobs: LiteJobs, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            jobs.count()
            jobs.backup(tmp_path / "copy.db")
            subscription = litejobs.Subscription(frozenset(), None, "here")
            node = jobs.store.nodes.join("here", 0, 1, subscription, [])
        finally:
            os.umask(before)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
        assert modes == dict.fromkeys(modes, 0o600)
        assert len(modes) == 5
        jobs.store.nodes.release_lock(node)

    @pytest.mark.posix
    @pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
    def test_follows_no_link(self, end: str, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        os.symlink(victim, tmp_path / f"jobs.db{end}")
        with contextlib.suppress(FileError), LiteJobs(tmp_path / "jobs.db") as jobs:
            jobs.define(name="note")(lambda: None).enqueue()
        assert victim.read_bytes() == b"precious"


def write(jobs: LiteJobs, sql: str, *bindings: object, triggers: bool = True) -> None:
    """Does to the file what nothing refuses."""
    jobs.close()
    connection = apsw.Connection(str(jobs.path))
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, int(triggers))
    connection.pragma("writable_schema", 1)
    connection.execute(sql, bindings)
    connection.close()


def only_one(jobs: LiteJobs) -> None:
    """Enqueues a job if there is none like it."""
    unique = Unique(key="k", ttl=timedelta(days=9))
    jobs.registry.named("note").using(unique=unique).enqueue()


def behind_its_back(jobs: LiteJobs, thing: str, sql: str, *bindings: object) -> None:
    """Changes rows while SQLite knows nothing of an index, or of the rules of a table: as they
    are when pages were overwritten."""
    jobs.close()
    path = str(jobs.store.file.path)
    connection = apsw.Connection(path)
    found = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema WHERE name = ?"
    rows: list[Any] = connection.execute(found, (thing,)).fetchall()
    (row,) = rows
    connection.close()
    if row[0] == "index":
        write(jobs, "DELETE FROM sqlite_schema WHERE name = ?", thing)
        write(jobs, sql, *bindings)
        write(jobs, "INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", *row)
        return
    strict = row[4]
    loose = strict.replace("STRICT, ", "").replace("STRICT", "").replace("NOT NULL", "")
    write(jobs, "UPDATE sqlite_schema SET sql = ? WHERE name = ?", loose, thing)
    write(jobs, sql, *bindings, triggers=False)
    write(jobs, "UPDATE sqlite_schema SET sql = ? WHERE name = ?", strict, thing)


class TestAHostileFile:
    @pytest.fixture
    def jobs(self, tmp_path: Path) -> Any:
        with LiteJobs(tmp_path / "jobs.db", clock=TurnedClock()) as jobs:
            jobs.define(name="note", max_attempts=1)(lambda: None).using(key="k").enqueue()
            yield jobs

    @pytest.mark.parametrize(
        "sql",
        [
            "DROP TABLE litejobs_queue; CREATE VIEW litejobs_queue AS WITH RECURSIVE n (x) AS"
            " (SELECT 1 UNION ALL SELECT 1 FROM n) SELECT x FROM n",
            "DROP TABLE litejobs_meta;"
            " CREATE VIEW LiteJobs_Meta AS SELECT 'schema' AS name, 3 AS value",
            "DROP TABLE litejobs_node; CREATE TABLE litejobs_node (x)",
            "DROP INDEX litejobs_due; CREATE INDEX litejobs_due ON litejobs_job (id)",
            "ALTER TABLE litejobs_job ADD COLUMN more BLOB GENERATED ALWAYS AS (zeroblob(1e9))",
            "UPDATE sqlite_schema SET sql = replace(sql, 'STRICT', '') WHERE name = 'litejobs_job'",
            "DROP TRIGGER litejobs_forget; CREATE TRIGGER litejobs_forget AFTER DELETE ON"
            " litejobs_job BEGIN DELETE FROM litejobs_job; END",
        ],
        ids=["view", "case", "table", "index", "generated", "loose", "trigger"],
    )
    def test_with_something_else_by_one_of_our_names_is_refused(
        self, sql: str, jobs: LiteJobs
    ) -> None:
        write(jobs, sql)
        with pytest.raises(FileError, match="is not as litejobs made it"):
            jobs.count()

    def test_of_an_older_version_is_brought_up_to_date(self, tmp_path: Path) -> None:
        path = tmp_path / "old.db"
        older_file(path)
        shapes = []
        for file in (path, tmp_path / "new.db"):
            with LiteJobs(file) as jobs:
                assert jobs.count() == 0
            with contextlib.closing(apsw.Connection(str(file))) as connection:
                columns = """
                    SELECT its.name, field.name, field.type, "notnull", dflt_value, pk, hidden
                    FROM sqlite_schema AS its, pragma_table_xinfo(its.name) AS field
                    WHERE its.type = 'table' AND its.name GLOB 'litejobs_*'
                """
                others = "SELECT name, tbl_name, type FROM sqlite_schema WHERE type <> 'table'"
                shapes.append(({*connection.execute(columns)}, {*connection.execute(others)}))
        assert shapes[0] == shapes[1]

    def test_may_have_columns_that_users_added(self, jobs: LiteJobs) -> None:
        write(jobs, "ALTER TABLE litejobs_job ADD COLUMN \"their, note\" TEXT DEFAULT '--'")
        assert jobs.count() == 1

    def test_however_its_schema_is_laid_out_is_taken(self, jobs: LiteJobs) -> None:
        write(jobs, "UPDATE sqlite_schema SET sql = replace(sql, '  ', ' ')")
        assert jobs.count() == 1

    def test_may_have_indexes_and_triggers_of_others(self, jobs: LiteJobs) -> None:
        write(jobs, "CREATE INDEX theirs ON litejobs_job (payload)")
        write(jobs, "CREATE TRIGGER their AFTER INSERT ON litejobs_job BEGIN SELECT 1; END")
        assert jobs.count() == 1

    @pytest.mark.parametrize(
        ("table", "column", "value"),
        [
            ("job", "name", b"x"),
            ("job", "run_at", "soon"),
            ("job", "attempt", None),
            ("job", "name", "CAST(x'ff' AS TEXT)"),
            ("node", "queues", "[1]"),
            ("schedule", "grace", None),
            ("queue", "rate", "fast"),
            ("metric", "bucket", "x"),
            ("attempt", "started_at", "x"),
        ],
    )
    def test_with_values_of_other_types_gives_errors_of_ours(
        self, table: str, column: str, value: Any, jobs: LiteJobs
    ) -> None:
        """As they are after a page was overwritten: SQLite takes them as they come."""
        write(
            jobs,
            "INSERT INTO litejobs_node VALUES (1, 'n', 1, 1, 1, '[]', 1, '[]', NULL);"
            "INSERT INTO litejobs_queue (name) VALUES ('q');"
            "INSERT INTO litejobs_attempt"
            " VALUES (1, 1, 1, '', '', '', '', 1, 1, 1, 1, 1, 1, '', 0);"
            "INSERT INTO litejobs_metric"
            " VALUES (3600, 1735689600000000, 'q', 'n', 'waiting', 1, 1);"
            "INSERT INTO litejobs_schedule (name, definition, payload, options, expression,"
            " timezone, misfire, grace, overlap, jitter)"
            " VALUES ('s', 'note', '{}', '{}', '@daily', 'UTC', 'once', 1, 'allow', 1)",
        )
        bad = value if str(value).startswith("CAST") else "?"
        update = f"UPDATE litejobs_{table} SET {column} = {bad}"
        behind_its_back(jobs, f"litejobs_{table}", update, *[value] * (bad == "?"))
        looks: dict[str, Callable[[], object]] = {
            "job": lambda: (jobs.find(), jobs.drain()),
            "node": jobs.nodes,
            "schedule": jobs.schedules,
            "queue": jobs.queues,
            "metric": lambda: jobs.metrics("hour"),
            "attempt": lambda: jobs.errors(1),
        }
        with pytest.raises(FileError, match="is damaged"):
            looks[table]()

    @pytest.mark.parametrize(
        ("column", "value", "look"),
        [
            ("payload", "{", "payload"),
            ("payload", 5, "payload"),
            ("payload", "[" * 5000, "payload"),
            ("headers", "[]", "headers"),
            ("headers", '{"a": 1}', "headers"),
            ("progress", "x", "progress"),
            ("progress", '{"wrong": 1}', "progress"),
        ],
    )
    def test_with_jobs_that_somebody_else_wrote_shows_the_others(
        self, column: str, value: object, look: str, jobs: LiteJobs
    ) -> None:
        write(jobs, f"UPDATE litejobs_job SET {column} = ?", value)
        with pytest.raises(LitejobsError):
            getattr(jobs.get(1), look)
        assert "note" in commanded("list", jobs.path)
        assert "note" in commanded("show", jobs.path, 1)

    def test_with_json_that_is_too_deep_to_be_read_says_so(self, jobs: LiteJobs) -> None:
        jobs.schedule("daily").set("@daily", jobs.registry.named("note").bind())
        deep = "[" * 100_000
        for column in ("payload", "headers", "progress", "result"):
            write(jobs, f"UPDATE litejobs_job SET {column} = ?", deep)
        write(jobs, "UPDATE litejobs_job SET state = 'completed'")
        write(jobs, "UPDATE litejobs_schedule SET options = ?", deep)
        job = jobs.get(1)
        for look in ("payload", "headers", "progress"):
            with pytest.raises(LitejobsError):
                getattr(job, look)
        with pytest.raises(ResultError):
            job.result()
        with pytest.raises(OptionError, match="not written by litejobs"):
            litejobs.load_backoff(deep, litejobs.DEFAULT_BACKOFF)
        with pytest.raises(OptionError, match="not written by litejobs"):
            jobs.schedule("daily").fire()

    @pytest.mark.posix
    def test_beside_which_lies_a_link_in_place_of_a_lock_says_so(self, jobs: LiteJobs) -> None:
        write(jobs, "INSERT INTO litejobs_node VALUES (1, 'n', 1, 1, 1, '[]', 1, '[]', NULL)")
        Path(f"{jobs.path}-node-1").symlink_to("nowhere")
        assert len(jobs.store.nodes.rescue(1)) == 0
        assert jobs.get(1).why() == "no node at work has its definition 'note'"
        problems = [found.problem for found in jobs.doctor() if found.subject == "node 'n'"]
        assert len(problems) == 1
        assert "whether it lives cannot be known: " in problems[0]
        assert "jobs.db-node-1: cannot be used: Too many levels" in problems[0]

    @pytest.mark.parametrize("damage", ["queue = x'00'", "state = x'00'", "number = 0.5"])
    def test_whose_numbers_are_damaged_says_so(self, jobs: LiteJobs, damage: str) -> None:
        """What prints them fell over a name that was no text."""
        jobs.drain()
        behind_its_back(jobs, "litejobs_count", f"UPDATE litejobs_count SET {damage} WHERE number")
        with pytest.raises(FileError, match="is damaged"):
            jobs.stats()

    @pytest.mark.parametrize(
        ("table", "damage", "look"),
        [
            ("job", "state = 'blocked', key = 'k', key_limit = 'x'", lambda jobs: jobs.repair()),
            ("job", "unique_until = 'x'", only_one),
        ],
    )
    def test_whose_limits_are_damaged_says_so(
        self, table: str, damage: str, look: Callable[[LiteJobs], object], jobs: LiteJobs
    ) -> None:
        """What compares them, or reckons with them, fell over numbers that were none."""
        only_one(jobs)
        behind_its_back(jobs, f"litejobs_{table}", f"UPDATE litejobs_{table} SET {damage}")
        with pytest.raises(FileError, match="is damaged"):
            look(jobs)

    def test_in_which_a_job_has_no_time_says_so(self, jobs: LiteJobs) -> None:
        damage = "UPDATE litejobs_job SET state = 'scheduled', run_at = NULL"
        behind_its_back(jobs, "litejobs_job", damage)
        with pytest.raises(FileError, match="is damaged"):
            jobs.get(1)
        assert "its run_at is out of bounds" in [found.problem for found in jobs.doctor()]

    def test_in_which_a_job_is_not_where_it_should_be_says_so(self, jobs: LiteJobs) -> None:
        with (
            pytest.raises(FileError, match="is damaged"),
            jobs.store.file.transaction() as tx,
        ):
            litejobs.expire_job(tx, 99)

    @pytest.mark.parametrize("index", ["litejobs_due", "litejobs_expiry", "litejobs_key"])
    def test_whose_index_leads_elsewhere_is_not_searched_for_ever(
        self, index: str, jobs: LiteJobs
    ) -> None:
        before, after = {
            "litejobs_due": ("state = 'scheduled'", "state = 'pending'"),
            "litejobs_expiry": ("expires_at = 1", "expires_at = NULL"),
            "litejobs_key": ("state = 'blocked'", "state = 'completed'"),
        }[index]
        write(jobs, f"UPDATE litejobs_job SET {before}")
        behind_its_back(jobs, index, f"UPDATE litejobs_job SET {after}")
        store = jobs.store
        duty = {
            "litejobs_due": lambda: store.stage(2**60),
            "litejobs_expiry": lambda: store.expire(2**60),
            "litejobs_key": store.admit,
        }[index]
        with pytest.raises(FileError, match="is damaged: an index"):
            duty()


class TestHiddenFields:
    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            (Login, '{"user": "ada", "password": ["hunter2"]}'),
            (Login, '{"user": "ada", "password": "", "codes": {"hunter2": ""}}'),
            (Login, '{"user": "ada", "password": "", "codes": {"x": "hunter2"}}'),
            (Login, '{"user": "ada", "password": "", "masked": ["hunter2"]}'),
            (Login, '["hunter2"]'),
            (Secret, '"hunter2"'),
            (list[Login], '{"password": "hunter2"}'),
            (dict[str, Login], '["hunter2"]'),
            (Login | None, '"hunter2"'),
            (Card, '{"holder": "ada", "number": ["hunter2"]}'),
            (Account, '{"login": "hunter2"}'),
            (Account, '{"login": {"user": "ada", "password": ""}, "card": ["hunter2"]}'),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_are_in_no_error_about_a_payload(self, kind: Any, text: str) -> None:
        with pytest.raises(CodecError) as caught:
            Codec(kind).decode(text)
        assert SECRET not in str(caught.value)
        assert "hidden" in str(caught.value)

    def test_are_not_shown_by_validators_either(self) -> None:
        with pytest.raises(CodecError) as caught:
            Codec(Pin).decode('{"digits": 123456}')
        assert str(caught.value) == "Pin refuses it: ValueError, of which the rest is hidden @ $"

    def test_leave_the_others_to_be_shown(self) -> None:
        with pytest.raises(CodecError, match=r"expected str, got 5 @ \$\.user"):
            Codec(Login).decode('{"user": 5, "password": ""}')

    def test_are_in_no_error_about_arguments(self, jobs: LiteJobs) -> None:
        definition = jobs.define(log_in)
        with pytest.raises(PayloadError) as caught:
            definition.enqueue("ada", SECRET)  # type: ignore[arg-type]
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(definition.bind("ada", Secret(SECRET)))

    def test_are_not_on_the_pages_of_a_file_once_a_node_has_had_it(self, jobs: LiteJobs) -> None:
        jobs.define(log_in)
        jobs.define(Account)
        jobs.enqueue(Account(Login("ada", SECRET), Card("ada", SECRET)))
        jobs.registry.named("log_in").enqueue("ada", Secret(SECRET), 2)
        jobs.schedule("nightly").set("@daily", Account(Login("ada", SECRET)))
        jobs.drain()
        assert jobs.get(1).result() == Secret(SECRET)
        for arguments in (["show", 1], ["show", 2], ["list"], ["schedules"]):
            verb, *rest = arguments
            for form in ([], ["--json"]):
                assert SECRET not in commanded(verb, jobs.path, *rest, *form)
        shown = json.loads(commanded("show", jobs.path, 2, "--json"))
        assert shown["payload"] == {"user": "ada", "password": "hidden", "tries": 2}
        shown = json.loads(commanded("show", jobs.path, 1, "--json"))
        assert (shown["payload"], shown["result"]) == (
            {"login": "hidden", "card": "hidden"},
            "hidden",
        )

    def test_are_in_no_error_about_a_row_that_is_damaged(self, jobs: LiteJobs) -> None:
        jobs.define(Account)
        jobs.schedule("nightly").set("@daily", Account(Login("ada", SECRET)))
        update = "UPDATE litejobs_schedule SET grace = NULL"
        behind_its_back(jobs, "litejobs_schedule", update)
        with pytest.raises(FileError, match="is damaged") as caught:
            jobs.schedules()
        assert SECRET not in str(caught.value)

    def test_may_be_shown_again(self, jobs: LiteJobs) -> None:
        nodes = jobs.store.nodes
        subscription = litejobs.Subscription(frozenset({"send"}), None, "here")
        for hidden in ({"payload.to"}, set()):
            known = {**litejobs.Options().columns, "name": "send", "expires": None}
            known |= {"concurrency": None, "rate": None}
            node = nodes.join("here", 0, 1, subscription, [{**known, "hidden": hidden}])
            assert nodes.hidden() == ({"send": hidden} if hidden else {})
            nodes.release_lock(node)

    def test_are_those_of_all_the_classes_inside(self, jobs: LiteJobs) -> None:
        assert jobs.define(log_in).body.hidden == {"payload.password"}
        hidden = litejobs.definition_of(jobs.define(Account)).body.hidden  # type: ignore[union-attr]
        assert hidden == {"payload.login", "payload.card", "result"}
