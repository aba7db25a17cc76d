"""What the README says under Security: private files, harmless words, hidden fields."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any

import apsw
import attrs
import pytest
from conftest import TurnedClock

import litejobs
from litejobs import (
    Codec,
    FileError,
    Finding,
    LiteJobs,
    LitejobsError,
    OptionError,
    PayloadError,
    Presence,
    Unfit,
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
        connection = jobs.store.file.connection()
        text = litejobs.storable(ESCAPES)
        connection.execute(
            "INSERT INTO litejobs_job (name, queue, state, error) VALUES (?1, ?1, 'failed', ?1)",
            (text,),
        )
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
        def heard(event: object) -> None:
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

    def test_of_json_hold_no_delete(self, jobs: LiteJobs) -> None:
        jobs.define(name="note")(lambda text: None).enqueue("a\x7fb")  # type: ignore[call-arg]
        printed = commanded("show", jobs.path, 1, "--json")
        assert "\x7f" not in printed
        assert json.loads(printed)["payload"] == {"text": "a\x7fb"}

    def test_of_advice_are_quoted_for_the_shell(self, jobs: LiteJobs) -> None:
        jobs.define(lambda: None, name="note").using(node="x; rm -rf ~").enqueue()
        (finding,) = jobs.doctor()
        assert "--from-node 'x; rm -rf ~'" in finding.advice


class TestNames:
    @pytest.mark.parametrize("name", ["a\0b", "\udc80"], ids=ascii)
    def test_of_files_that_sqlite_cannot_take_are_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="no name of a file"):
            LiteJobs(tmp_path / name).count()
        with pytest.raises(FileError, match="no name of a file"):
            LiteJobs(tmp_path / "jobs.db").backup(tmp_path / name)
        assert not [each for each in os.listdir(tmp_path) if "jobs.db" not in each]

    @pytest.mark.parametrize("name", ["os.path/sep", "../zone", "a b", "", ".", "/UTC"])
    def test_of_time_zones_lead_to_nothing_else(self, name: str) -> None:
        with pytest.raises(OptionError, match="no time zone"):
            litejobs.time_zone(name)


class TestTheFile:
    def test_never_runs_a_trigger_of_others(self, jobs: LiteJobs) -> None:
        jobs.define(lambda: None, name="note").enqueue()
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
        jobs.define(lambda: None, name="note", queue="notes", priority=3, expires=60)
        jobs.drain()
        at = "2999-01-01T00:00+00:00"
        commanded("enqueue", jobs.path, "note")
        commanded("enqueue", jobs.path, "note", "--key", "k", "--at", at)
        commanded("enqueue", jobs.path, "note", "--key", "k")
        commanded("enqueue", jobs.path, "note", "--key", "k")
        jobs.close()
        other = apsw.Connection(str(jobs.path))
        run_at = litejobs.to_micros(litejobs.datetime.fromisoformat(at))
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

    def test_is_private_also_its_copy_and_its_locks(self, jobs: LiteJobs, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            jobs.count()
            jobs.backup(tmp_path / "copy.db")
            presence = Presence.create(jobs.store.nodes.presence_path(1))
        finally:
            os.umask(before)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
        assert modes == dict.fromkeys(modes, 0o600)
        assert len(modes) == 5
        presence.close()

    @pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
    def test_follows_no_link(self, end: str, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        os.symlink(victim, tmp_path / f"jobs.db{end}")
        with contextlib.suppress(FileError), LiteJobs(tmp_path / "jobs.db") as jobs:
            jobs.define(lambda: None, name="note").enqueue()
        assert victim.read_bytes() == b"precious"


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
        with pytest.raises(Unfit) as caught:
            Codec(kind).decode(text)
        assert SECRET not in str(caught.value)
        assert "hidden" in str(caught.value)

    def test_are_not_shown_by_validators_either(self) -> None:
        with pytest.raises(Unfit) as caught:
            Codec(Pin).decode('{"digits": 123456}')
        assert str(caught.value) == "Pin refuses it: ValueError, of which the rest is hidden @ $"

    def test_leave_the_others_to_be_shown(self) -> None:
        with pytest.raises(Unfit, match=r"expected str, got 5 @ \$\.user"):
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

    def test_may_be_shown_again(self, jobs: LiteJobs) -> None:
        join = jobs.store.nodes.join
        serves = litejobs.Serves(frozenset({"send"}), None, "here")
        for hidden in ({"payload.to"}, set()):
            _, presence = join("here", 0, 1, serves, [], {"send": frozenset(hidden)})
            assert jobs.store.nodes.hidden() == ({"send": hidden} if hidden else {})
            presence.close()

    def test_are_those_of_all_the_classes_inside(self, jobs: LiteJobs) -> None:
        assert jobs.define(log_in).body.hidden == {"payload.password"}
        hidden = litejobs.definition_of(jobs.define(Account)).body.hidden  # type: ignore[union-attr]
        assert hidden == {"payload.login", "payload.card", "result"}
