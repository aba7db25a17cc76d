"""The command `litejobs`: what it prints, and the codes that it exits with."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import plistlib
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree import ElementTree

import apsw
import pytest
from programs import eventually

import litejobs
from litejobs import Fail, LiteJobs, Subscription

PROGRAM = '''\
"""A program whose definitions the command may run."""

from litejobs import Fail, LiteJobs

jobs = LiteJobs("jobs.db", durability="fast")
nothing = None
number = 5


@jobs.define(queue="mails", priority=3, max_attempts=2)
def send(to: str, copies: int = 1) -> str:
    return f"{copies} to {to}"


@jobs.define(name="report:fail", max_attempts=1)
def fail() -> None:
    raise Fail("as planned")
'''
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
PIPED = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def complains(self, code: int, problem: str) -> None:
        """Asserts that it ended with *code*, and one line that says why."""
        assert (self.code, self.out) == (code, "")
        assert self.err.startswith("litejobs")
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        assert "Traceback" not in self.err
        assert re.search(problem, self.err), self.err


class CommandLine:
    """Calls the command in this process, which takes no time to start."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: object) -> Done:
        self.capsys.readouterr()
        try:
            code: object = litejobs.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = exit.code
        out, err = self.capsys.readouterr()
        # So does Python end when the code is a text.
        return Done(code, out, err) if isinstance(code, int) else Done(1, out, f"{err}{code}\n")


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "litejobs", *map(str, arguments)]
    # Unbuffered, what cannot be written fails at another place.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment |= options.pop("environment", {})
    return subprocess.Popen(command, env=environment, **{**PIPED, **options})


def run(*arguments: object, **options: Any) -> Done:
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=30)
    return Done(process.returncode, out, err)


def fail() -> None:
    raise Fail("as planned")


def send(to: str) -> str:
    return to


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    """The command, in a folder of its own; what it imports is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield CommandLine(capsys)
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def file(command: CommandLine) -> Path:
    """A file with a job in each of four states: 1 completed, 2 failed, 3 pending and
    4 scheduled."""
    path = Path("jobs.db").absolute()
    with LiteJobs(path, durability="fast") as jobs:
        sending = jobs.define(send)
        sending.using(queue="mails").enqueue("Ada")
        jobs.define(name="report:fail")(fail).enqueue()
        jobs.drain()
        sending.enqueue("Bob")
        sending.using(delay=3600).enqueue("Eve")
    return path


@pytest.fixture
def program(command: CommandLine) -> str:
    Path("app.py").write_text(PROGRAM)
    return "app:jobs"


def job_of(path: Path, id: int) -> Any:
    with LiteJobs(path) as jobs:
        return jobs.get(id)


def insert(path: Path, **columns: object) -> None:
    """Puts a row into the file as anybody could with the `sqlite3` shell."""
    places = ", ".join(f":{column}" for column in columns)
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute(
            f"INSERT INTO litejobs_job ({', '.join(columns)}) VALUES ({places})", columns
        )


def lines_of(process: subprocess.Popen[str]) -> Callable[[float], Iterator[str]]:
    """A function that gives the lines that a process prints within some seconds, until there is
    at least one."""
    assert process.stdout is not None
    found: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read(stream: IO[str]) -> None:
        for line in stream:
            found.put(line.rstrip())

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()

    def lines(seconds: float) -> Iterator[str]:
        with contextlib.suppress(queue.Empty):
            yield found.get(timeout=seconds)
            while True:
                yield found.get_nowait()

    return lines


class TestList:
    def test_shows_the_newest_first(self, command: CommandLine, file: Path) -> None:
        done = command("list", file)
        assert (done.code, done.err) == (0, "")
        header, *lines = done.out.splitlines()
        assert header.split() == [
            "id", "name", "state", "when", "took", "error", "payload", "progress", "queue",
            "schedule", "attempt", "priority", "tags",
        ]  # fmt: skip
        assert [line.split()[:3] for line in lines] == [
            ["4", "send", "scheduled"],
            ["3", "send", "pending"],
            ["2", "report:fail", "failed"],
            ["1", "send", "completed"],
        ]
        assert "Fail: as planned" in lines[2]
        assert re.search(r'{"to": "Ada"} +mails +1/5 +0$', lines[3])

    @pytest.mark.parametrize(
        ("filters", "ids"),
        [
            (["--state", "failed"], [2]),
            (["--state", "failed", "--state", "pending"], [3, 2]),
            (["--queue", "mails"], [1]),
            (["--name", "send"], [4, 3, 1]),
            (["--name", "send", "--limit", "2"], [4, 3]),
            (["--before", "3"], [2, 1]),
        ],
    )
    def test_takes_filters(
        self, filters: list[str], ids: list[int], command: CommandLine, file: Path
    ) -> None:
        done = command("list", file, *filters, "--json")
        assert (done.code, done.err) == (0, "")
        assert [job["id"] for job in done.json] == ids

    def test_says_by_its_code_that_nothing_matched(self, command: CommandLine, file: Path) -> None:
        done = command("list", file, "--name", "no")
        assert (done.code, done.err) == (1, "")
        assert len(done.out.splitlines()) == 1
        assert command("list", file, "--name", "no", "--json") == Done(1, "[]\n", "")

    @pytest.mark.parametrize(
        "filters",
        [["--limit", 2**64], ["--limit", "-1"], ["--before", 2**64], ["--name", "\udcff"]],
        ids=str,
    )
    def test_survives_every_filter(
        self, filters: list[object], command: CommandLine, file: Path
    ) -> None:
        done = command("list", file, *filters)
        assert done.code in (0, 1, 2)
        assert done.err.count("\n") <= 1

    def test_works_on_a_program(self, command: CommandLine, program: str) -> None:
        assert command("enqueue", program, "send", '{"to": "Ada"}').code == 0
        assert [job["name"] for job in command("list", program, "--json").json] == ["send"]


class TestOnATerminal:
    """Nothing is lost but what does not fit; elsewhere everything is whole, and the same always."""

    @pytest.fixture
    def terminal(
        self, command: CommandLine, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> CommandLine:
        for name, value in (
            ("COLUMNS", "100"),
            ("NO_COLOR", "1"),
            ("TERM", "xterm"),
            ("TZ", "XYZ-3"),
        ):
            monkeypatch.setenv(name, value)
        time.tzset()
        insert(
            file, name="long:named", state="failed", attempt=1, error="E" * 70, queue="default",
            payload=json.dumps({"text": "p" * 70}), run_at=10**15, started_at=10**15,
            finished_at=10**15 + 61_000_000, enqueued_at=10**15, priority=0,
            progress='{"done": 3, "total": 4, "note": "rows"}',
        )  # fmt: skip
        call = CommandLine.__call__

        def on_terminal(self: CommandLine, *arguments: object) -> Done:
            monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
            return call(self, *arguments)

        monkeypatch.setattr(CommandLine, "__call__", on_terminal)
        return command

    @pytest.fixture(autouse=True)
    def zone(self) -> Iterator[None]:
        yield
        time.tzset()  # After the environment is as it was.

    def test_times_are_in_words_and_far_ones_local(self, terminal: CommandLine) -> None:
        _head, far, soon, *_, past = terminal("list", "jobs.db").out.splitlines()
        assert "2001-09-09 04:47  1.02 min" in far
        assert " in 59 min " in soon
        assert re.search(r" (now|\d+ s ago) ", past)
        exact = terminal("list", "jobs.db", "--utc").out
        assert "2001-09-09T01:47:41Z" in exact
        assert "finished_at:  2001-09-09 04:47:41 XYZ (" in terminal("show", "jobs.db", 5).out

    @pytest.mark.parametrize("width", [1, 12, 40, 60, 80, 100, 300])
    def test_columns_fit_and_the_first_ones_stay(
        self, width: int, terminal: CommandLine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        lines = terminal("list", "jobs.db").out.splitlines()
        assert max(map(len, lines)) <= max(width, 2)
        assert [line.split()[0] for line in lines] == ["id", "5", "4", "3", "2", "1"]
        if width == 100:
            assert re.search(r" E+… +{\"text\": \"p+…$", lines[1])
        if width == 300:
            assert "E" * 70 in lines[1]
            assert "████████░░ 75% rows" in lines[1]
            assert "priority" not in lines[0]  # All have the same.

    def test_the_next_page_is_a_command(self, terminal: CommandLine) -> None:
        *_, last = terminal("list", "jobs.db", "--name", "send", "--limit", 2).out.splitlines()
        assert last == "2 of 3, next page: litejobs list jobs.db --name send --limit 2 --before 3"
        *_, last = terminal(*last.partition("litejobs ")[2].split(), "--limit", 1).out.splitlines()
        assert last.endswith("litejobs list jobs.db --name send --limit 2 --limit 1 --before 1")
        assert "next page" not in terminal("list", "jobs.db").out

    def test_colours_are_those_of_rich_and_say_nothing_more(
        self, terminal: CommandLine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = terminal("list", "jobs.db").out
        assert "\x1b" not in plain
        monkeypatch.delenv("NO_COLOR")
        for option in ([], ["--color", "always"]):
            colored = terminal("list", "jobs.db", *option).out
            assert "\x1b[31mfailed" in colored
            assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain
        assert terminal("list", "jobs.db", "--color", "never").out == plain
        monkeypatch.setitem(sys.modules, "rich.console", None)
        assert terminal("list", "jobs.db").out == plain
        terminal("list", "jobs.db", "--color", "always").complains(2, "pip install 'litejobs")

    def test_metrics_have_a_sparkline(self, terminal: CommandLine) -> None:
        *_, last = terminal("metrics", "jobs.db", "--span", "day").out.splitlines()
        assert re.fullmatch(r"ended  ▁{22,23}█▁?  at most 2 in a day", last)

    def test_what_is_stored_controls_nothing(self, terminal: CommandLine, file: Path) -> None:
        insert(file, name=f"name{ESCAPES}", error=ESCAPES, payload=json.dumps({"key": ESCAPES}))
        done = terminal("list", file)
        assert all(character.isprintable() or character == "\n" for character in done.out)


class TestShow:
    def test_prints_all_about_a_job(self, command: CommandLine, file: Path) -> None:
        done = command("show", file, 2)
        assert (done.code, done.err) == (0, "")
        fields = dict(re.findall(r"^(\w+): +(.*)$", done.out, re.M))
        assert fields["state"] == "failed"
        assert fields["error"] == "Fail: as planned"
        assert "attempt 1: exception (" in done.out
        assert 'raise Fail("as planned")' in done.out

    def test_prints_it_as_json_too(self, command: CommandLine, file: Path) -> None:
        job = command("show", file, 1, "--json").json
        times = [
            datetime.fromisoformat(job.pop(name))
            for name in ("enqueued_at", "run_at", "started_at", "finished_at")
        ]
        assert times == sorted(times)
        assert timedelta(0) <= datetime.now(UTC) - times[-1] < timedelta(minutes=1)
        assert job.pop("took") > 0
        assert job == {
            "id": 1, "name": "send", "queue": "mails", "node": None, "priority": 0,
            "state": "completed", "attempt": 1, "max_attempts": 5, "payload": {"to": "Ada"},
            "progress": None, "result": "Ada", "error": None, "errors": [], "timeout": None,
            "key": None, "expires_at": None, "schedule": None, "tags": [], "meta": {},
            "unfit_at": None,
        }  # fmt: skip
        (failure,) = command("show", file, 2, "--json").json["errors"]
        assert (failure["kind"], failure["type"], failure["message"]) == (
            "exception",
            "Fail",
            "as planned",
        )

    @pytest.mark.parametrize("id", [99, 0, -1, 2**63, 10**40])
    def test_says_that_there_is_no_such_job(
        self, id: int, command: CommandLine, file: Path
    ) -> None:
        command("show", file, "--", id).complains(1, f"no job has the id {id}: it was deleted")

    def test_wants_a_number(self, command: CommandLine, file: Path) -> None:
        command("show", file, "two").complains(2, "argument id: 'two' is not a whole number")


class TestLogs:
    def test_show_what_has_happened_to_a_job(self, command: CommandLine, file: Path) -> None:
        with LiteJobs(file) as jobs:
            jobs.retry(2)
            jobs.define(name="report:fail")(fail)
            jobs.drain()
        lines = command("logs", file, 2).out.splitlines()
        events = [line.partition("  ")[2] for line in lines if line.startswith("20")]
        assert [re.sub(r", [^,]* s: .*", "", event) for event in events] == [
            "job 2 (report:fail) enqueued",
            "job 2 (report:fail) started, attempt 1",
            "job 2 (report:fail) retrying, attempt 1",  # Since it was retried by hand.
            "job 2 (report:fail) started, attempt 1",
            "job 2 (report:fail) failed, attempt 1",
        ]
        assert sum('raise Fail("as planned")' in line for line in lines) == 2
        values = [json.loads(line) for line in command("logs", file, 2, "--json").out.splitlines()]
        assert [value["kind"] for value in values[:2]] == ["enqueued", "started"]
        assert values[-1]["failure"]["message"] == "as planned"
        command("logs", file, 99).complains(1, "no job has the id 99")

    def test_follow_a_job_until_it_has_ended(
        self, command: CommandLine, program: str, file: Path
    ) -> None:
        process = start("logs", file, 3, "-f")
        assert process.stdout is not None
        assert process.stdout.readline().endswith("job 3 (send) enqueued\n")
        with LiteJobs(file) as jobs:
            jobs.define(send)
            jobs.drain()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        assert out.splitlines()[-1].partition("  ")[2].startswith("job 3 (send) completed")


class TestTail:
    def test_follows_what_happens_even_if_a_job_ends_between_two_looks(
        self, command: CommandLine, file: Path
    ) -> None:
        with LiteJobs(file) as jobs:
            everything, failures = start("tail", file), start("tail", file, "--state", "failed")
            lines, failed = lines_of(everything), lines_of(failures)
            with contextlib.ExitStack() as cleaning:
                for process in (everything, failures):
                    cleaning.enter_context(process)
                    cleaning.callback(process.kill)
                sending, failing = jobs.define(send), jobs.define(name="report:fail")(fail)
                seen = list[str]()
                while not seen:  # Until it is there.
                    last = sending.enqueue("x").id
                    seen = list(lines(0.5))
                failing.using(max_attempts=1).enqueue()
                assert jobs.drain() > 2
                while not any(f"job {last + 1} (report:fail) failed" in line for line in seen):
                    seen += lines(20)
                printed = list[str]()
                while not printed:
                    failing.using(max_attempts=1).enqueue()
                    jobs.drain()
                    printed = list(failed(0.5))
                for process in (everything, failures):
                    process.send_signal(signal.SIGINT)
                    assert process.wait(20) == 130
                    assert process.stderr is not None
                    assert process.stderr.read() == ""
        seen = [line.partition("  ")[2].partition(",")[0] for line in seen]
        # It was enqueued before: it ran and ended between two looks.
        for event in ("started", "completed"):
            assert seen.count(f"job 3 (send) {event}") == 1
        for event in ("enqueued", "started", "completed"):
            assert seen.count(f"job {last} (send) {event}") == 1
        assert all("(report:fail) failed, attempt 1" in line for line in printed)

    def test_ends_when_nobody_reads_it_any_more(self, command: CommandLine, file: Path) -> None:
        process = start("tail", file)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        with LiteJobs(file) as jobs:
            sending = jobs.define(send)
            for _ in range(200):
                sending.enqueue("x")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
                    break
        assert process.wait(1) == 0
        assert process.stderr.read() == ""
        process.stderr.close()


class TestErrors:
    @pytest.fixture
    def file(self, command: CommandLine) -> Path:
        with LiteJobs("jobs.db", durability="fast") as jobs:

            def load(number: int) -> None:
                if number % 3:
                    raise ValueError(f"no user {number} in '/srv/{number}.txt'")
                raise Fail(f"page {number * 1000:#x}")

            work = jobs.define(name="load", max_attempts=1)(load)
            jobs.enqueue_many([work.bind(number) for number in range(9)])
            jobs.define(name="other", max_attempts=1)(fail).enqueue()
            jobs.drain()
        return Path("jobs.db").absolute()

    def test_are_grouped_by_what_they_have_in_common(
        self, command: CommandLine, file: Path
    ) -> None:
        groups = command("errors", file, "--json").json
        assert [(each["number"], each["name"], each["error"]) for each in groups] == [
            (6, "load", "ValueError: no user N in …"),
            (3, "load", "Fail: page N"),
            (1, "other", "Fail: as planned"),
        ]
        assert groups[0]["example"] == 9
        assert groups[0]["first_at"] <= groups[0]["last_at"]
        assert command("errors", file).out.splitlines()[1].split()[:3] == [
            groups[0]["group"], "6", "load",
        ]  # fmt: skip
        assert command("errors", file, "--name", "none").code == 1
        *_, last = command("errors", file, "--limit", 2).out.splitlines()
        assert last.startswith("These are the newest 2 dead letters")

    def test_of_a_group_are_retried_together(self, command: CommandLine, file: Path) -> None:
        group = command("errors", file, "--json").json[0]["group"]
        assert len(command("list", file, "--group", group, "--json").json) == 6
        done = command("retry", file, "--group", group, "--yes")
        assert done == Done(0, "6 retried, 0 left as they are\n", "")
        assert len(command("list", file, "--state", "pending", "--json").json) == 6
        assert command("retry", file, "--group", "none").code == 1


class TestEnqueue:
    def test_prints_the_id(self, command: CommandLine, file: Path) -> None:
        assert command("enqueue", file, "send", '{"to": "Zoe"}') == Done(0, "5\n", "")
        job = job_of(file, 5)
        assert (job.name, job.queue, job.state) == ("send", "default", "pending")
        assert job.payload == {"to": "Zoe"}

    def test_takes_every_choice(self, command: CommandLine, file: Path) -> None:
        choices = "--queue q --priority -7 --max-attempts 9 --timeout 1.5 --node n --delay 60"
        done = command("enqueue", file, "send", *choices.split(), "--json")
        assert (done.code, done.err) == (0, "")
        shown = done.json
        assert (shown["queue"], shown["priority"], shown["max_attempts"]) == ("q", -7, 9)
        assert (shown["node"], shown["state"], shown["payload"]) == ("n", "scheduled", {})
        job = job_of(file, shown["id"])
        assert job.timeout == timedelta(seconds=1.5)
        assert timedelta(seconds=59) < job.run_at - job.enqueued_at < timedelta(seconds=61)

    @pytest.mark.parametrize("target", ["jobs.db", "app:jobs"])
    def test_takes_a_time_with_an_offset(
        self, target: str, command: CommandLine, file: Path, program: str
    ) -> None:
        at = "2099-01-01T12:00:00+02:00"
        done = command("enqueue", target, "send", '{"to": "x"}', "--at", at, "--json")
        assert done.json["run_at"] == "2099-01-01T10:00:00+00:00"
        assert done.json["state"] == "scheduled"

    def test_takes_lengths_and_times_as_people_type_them(
        self, command: CommandLine, file: Path
    ) -> None:
        def due(*options: str) -> datetime:
            shown = command("enqueue", file, "send", "to=x", "--json", *options).json
            return datetime.fromisoformat(shown["run_at"])

        now, some = datetime.now(UTC), timedelta(minutes=1)
        for text, minutes in (("10m", 10), ("1h30m", 90), ("2 days", 2880), ("600", 10)):
            assert abs(due("--delay", text) - now - timedelta(minutes=minutes)) < some, text
        for hour in (0, 9, 18):
            at = due("--at", f"{hour}:15").astimezone()
            assert (at.hour, at.minute) == (hour, 15)
            assert now < at <= now + timedelta(hours=26)
        for text in ("2099-01-02 9:00", "2099-01-02T09:00"):
            assert due("--at", text) == datetime(2099, 1, 2, 9).astimezone()

    @pytest.mark.parametrize("target", ["jobs.db", "app:jobs"])
    def test_takes_fields_beside_json(
        self, target: str, command: CommandLine, file: Path, program: str
    ) -> None:
        arguments = ("enqueue", target, "send", "to=Ada L.", "--priority", 1, "copies=3")
        assert command(*arguments) == Done(0, "5\n", "")
        assert job_of(file, 5).payload == {"to": "Ada L.", "copies": 3}

    def test_reads_fields_by_their_types_in_the_program(
        self, command: CommandLine, file: Path, program: str
    ) -> None:
        command("enqueue", program, "send", "to=12")
        assert job_of(file, 5).payload == {"to": "12"}
        command("enqueue", file, "send", "to=12")
        assert job_of(file, 6).payload == {"to": 12}
        command("enqueue", program, "send", "to=x", "copies=two").complains(
            2, r"expected int, got 'two' @ \$.copies"
        )

    def test_uses_the_definition_of_a_program(self, command: CommandLine, program: str) -> None:
        shown = command("enqueue", program, "send", '{"to": "Ada"}', "--json").json
        assert (shown["queue"], shown["priority"], shown["max_attempts"]) == ("mails", 3, 2)
        shown = command("enqueue", "app.py:jobs", "send", '{"to": "A"}', "--priority", 0, "--json")
        assert (shown.json["queue"], shown.json["priority"]) == ("mails", 0)

    def test_uses_on_a_file_the_options_that_nodes_have_stored(
        self, command: CommandLine, program: str
    ) -> None:
        assert run("run", program, "--until", "empty", "--workers", "1").code == 0
        shown = command("enqueue", "jobs.db", "send", '{"to": "Ada"}', "--json").json
        assert (shown["queue"], shown["priority"], shown["max_attempts"]) == ("mails", 3, 2)

    @pytest.mark.parametrize("target", ["jobs.db", "app:jobs"])
    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["send", "{to: 1}"], "JSON"),
            (["send", ""], "JSON"),
            (["send", '{"to": "x", "copies": NaN}'], "(?i)nan|json"),
            (["sned", '{"to": "x"}'], "definition 'sned': .*; did you mean 'send'?"),
            (["send", '{"to": "x"}', "--delay", "-1"], "delay: -1.0 is negative"),
            (["send", '{"to": "x"}', "--delay", "nan"], "delay: nan is not a length of time"),
            (
                ["send", '{"to": "x"}', "--delay", "soon"],
                "argument --delay: 'soon' is not a length of time such as",
            ),
            (["send", '{"to": "x"}', "--delay", "1e12"], "delay: .* more than a hundred years"),
            (
                ["send", '{"to": "x"}', "--at", "tomorrow 9:00"],
                r"argument --at: 'tomorrow 0?9:00' is not a time such as 18:00, '2026-12-24 18:00'",
            ),
            (["send", '{"to": "x"}', "--at", "10m"], "argument --at: '10m' is not a time"),
            (["send", '{"to": "x"}', "copies=2"], "payload: expected fields such as to=ada, or"),
            (["send", "to=x", "--copies", "2"], "unrecognized arguments: --copies 2"),
            (
                ["send", '{"to": "x"}', "--at", "2099-01-01T12:00:00Z", "--delay", "1"],
                "--at: given together with --delay",
            ),
            (["send", '{"to": "x"}', "--timeout", "0"], "timeout: expected more than zero"),
            (["send", '{"to": "x"}', "--max-attempts", "0"], "--max-attempts: expected 1 or more"),
            (["send", '{"to": "x"}', "--priority", str(2**31)], "priority: expected an integer"),
            (
                ["send", '{"to": "x"}', "--priority", "high"],
                "argument --priority: 'high' is not a whole",
            ),
            (["send", '{"to": "x"}', "--queue", ""], "queue: expected 1 to 200 printable"),
            (["send", '{"to": "x"}', "--queue", "a\x1b[2J"], "queue: .*printable"),
            (["send", '{"to": "x"}', "--node", "\udcff"], "node: .*printable"),
            ([], "the following arguments are required: name"),
        ],
    )
    def test_refuses_wrong_input_in_one_line(
        self,
        target: str,
        arguments: list[str],
        problem: str,
        command: CommandLine,
        file: Path,
        program: str,
    ) -> None:
        with LiteJobs(file) as jobs:
            before = jobs.count()
            command("enqueue", target, *arguments).complains(2, problem)
            assert jobs.count() == before

    @pytest.mark.parametrize(
        ("payload", "problem"),
        [
            ("{}", "missing"),
            ('{"to": 5}', "expected str, got 5"),
            ('{"to": "x", "cc": "y"}', "unknown field.*cc"),
            ('["x"]', "got .*x"),
            ("5", "got 5"),
        ],
    )
    def test_refuses_a_payload_that_does_not_fit_the_program(
        self, payload: str, problem: str, command: CommandLine, program: str
    ) -> None:
        command("enqueue", program, "send", payload).complains(
            2, f"the payload of 'send' does not fit: .*{problem}"
        )

    @pytest.mark.parametrize("target", ["jobs.db", "app:jobs"])
    def test_takes_the_bytes_of_a_file_name_that_are_no_text(
        self, target: str, command: CommandLine, file: Path, program: str
    ) -> None:
        assert command("enqueue", target, "send", '{"to": "\udcff.txt"}') == Done(0, "5\n", "")
        assert job_of(file, 5).payload == {"to": "\udcff.txt"}

    @pytest.mark.parametrize("name", ["", "a\x1b[2J", "a\nb", "\udcff", "x" * 201])
    def test_refuses_a_name_that_no_definition_can_have(
        self, name: str, command: CommandLine, tmp_path: Path
    ) -> None:
        path = tmp_path / "fresh.db"
        LiteJobs(path).count()
        command("enqueue", path, name).complains(2, "name")
        assert LiteJobs(path).count() == 0


class TestBulkCommands:
    @pytest.mark.parametrize(
        ("arguments", "text", "code"),
        [
            (["retry", "2"], "1 retried, 0 left as they are", 0),
            (["cancel", "3", "4"], "2 cancelled, 0 left as they are", 0),
            (["delete", "1", "2", "3", "4"], "4 deleted, 0 left as they are", 0),
            (["retry", "--state", "failed", "--name", "report:fail"], "1 retried", 0),
            (["cancel", "--queue", "default"], "2 cancelled, 1 left as they are", 1),
            (["retry", "1", "2"], "1 retried, 1 left as they are", 1),
            (["delete", "1", "99"], "1 deleted, 0 left as they are, 1 not found", 1),
            (["cancel", "99"], "0 cancelled, 0 left as they are, 1 not found", 1),
            (["delete", str(2**63)], "0 deleted, 0 left as they are, 1 not found", 1),
            (["delete", "--name", "no"], "0 deleted, 0 left as they are", 1),
            (["cancel", "1"], "0 cancelled, 1 left as they are", 1),
        ],
    )
    def test_say_how_many_and_by_their_code_whether_all(
        self, arguments: list[str], text: str, code: int, command: CommandLine, file: Path
    ) -> None:
        name, *rest = arguments
        done = command(name, file, *rest)
        assert (done.code, done.err) == (code, "")
        assert done.out.startswith(text)

    def test_say_it_as_json_too(self, command: CommandLine, file: Path) -> None:
        done = command("cancel", file, "--state", "pending", "--state", "failed", "--json")
        assert (done.code, done.json) == (1, {"moved": 1, "left": 1}) or (
            done.code,
            done.json,
        ) == (0, {"moved": 1, "left": 0})
        assert [job_of(file, id).state for id in (2, 3)] == ["failed", "cancelled"]

    @pytest.mark.parametrize("name", ["retry", "cancel", "delete"])
    def test_require_ids_or_filters(self, name: str, command: CommandLine, file: Path) -> None:
        command(name, file).complains(2, "say which jobs")
        assert LiteJobs(file).count() == 4

    @pytest.mark.parametrize("name", ["list", "retry", "cancel", "delete"])
    def test_refuse_a_state_that_does_not_exist(
        self, name: str, command: CommandLine, file: Path
    ) -> None:
        command(name, file, "--state", "done").complains(2, "argument --state: invalid choice")


def answer(text: str, *arguments: object) -> tuple[int, str]:
    """The exit code and the output of the command on a terminal at which *text* is typed."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, text.encode())
    shown = b""
    with contextlib.suppress(OSError):  # So does a terminal end on Linux.
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    return process.wait(30), shown.decode()


class TestBulkCommandsOnATerminal:
    def test_say_what_they_will_touch_and_ask(self, command: CommandLine, file: Path) -> None:
        filters = "cancel", file, "--queue", "default"
        code, shown = answer("n\n", *filters)
        question = "2 would be cancelled (1 scheduled, 1 pending), 1 left as they are (1 failed)"
        assert f"{question}. Go on? [y/N]" in shown
        assert (code, shown.rstrip().endswith("nothing was changed")) == (1, True)
        assert job_of(file, 3).state == "pending"
        code, shown = answer("y\n", *filters)
        assert "2 cancelled, 1 left as they are" in shown
        assert job_of(file, 3).state == "cancelled"

    def test_do_not_ask_about_ids_or_with_yes(self, command: CommandLine, file: Path) -> None:
        assert "[y/N]" not in answer("", "cancel", file, 3)[1]
        assert "[y/N]" not in answer("", "delete", file, "--state", "cancelled", "--yes")[1]
        assert LiteJobs(file).count() == 3

    def test_change_nothing_in_a_dry_run(self, command: CommandLine, file: Path) -> None:
        done = command("delete", file, "--dry-run", 1, 3, 99)
        assert done == Done(0, "2 would be deleted (1 pending, 1 completed)\n", "")
        done = command("change", file, "--state", "failed", "--priority", 2, "--dry-run", "--json")
        assert (done.code, done.json) == (1, {"would": {}, "left": {"failed": 1}})
        assert LiteJobs(file).count() == 4
        command("delete", file, "--dry-run").complains(2, "say which jobs")

    def test_take_ids_after_options_too(self, command: CommandLine, file: Path) -> None:
        assert command("delete", file, 1, "--yes", 2, 3).out.startswith("3 deleted")
        command("delete", file, "--yes", 4, "x").complains(2, "'x' is not a whole number")


class TestStats:
    def test_count_by_queue_and_state(self, command: CommandLine, file: Path) -> None:
        head, *lines = command("stats", file).out.splitlines()
        assert head == (
            "queue    scheduled  pending  completed  failed  oldest due            "
            "median wait  per minute"
        )
        assert [line.split()[:5] for line in lines] == [
            ["default", "1", "1", "0", "1"],
            ["mails", "0", "0", "1", "0"],
        ]
        counts = command("stats", file, "--json").json
        assert datetime.fromisoformat(counts["default"].pop("oldest_due")) <= datetime.now(UTC)
        assert all(queue.pop("median_wait") > 0 for queue in counts.values())
        assert counts == {
            "default": {"failed": 1, "pending": 1, "scheduled": 1, "per_minute": 0.02},
            "mails": {"completed": 1, "oldest_due": None, "per_minute": 0.02},
        }

    def test_say_since_when_a_job_is_due_that_no_node_has_staged(
        self, command: CommandLine, file: Path
    ) -> None:
        with LiteJobs(file) as jobs:
            jobs.store.file.connection().execute(
                "UPDATE litejobs_job SET run_at = 1e15 WHERE state = 'scheduled'"
            )
        oldest = command("stats", file, "--json").json["default"]["oldest_due"]
        assert oldest == "2001-09-09T01:46:40+00:00"

    def test_of_an_empty_file_are_empty(self, command: CommandLine) -> None:
        LiteJobs("empty.db").count()
        assert command("stats", "empty.db") == Done(
            0, "queue  oldest due  median wait  per minute\n", ""
        )
        assert command("stats", "empty.db", "--json") == Done(0, "{}\n", "")


LOGGING_APP = """
import logging
from litejobs import Context, LiteJobs
{set_up}
jobs = LiteJobs("jobs.db")

@jobs.define
def tell(context: Context) -> None:
    context.logger.debug("a detail")
    context.logger.info("a step")
    context.logger.warning("a danger")
"""


class TestRun:
    def test_until_empty_ends_with_0_and_has_run_everything(
        self, command: CommandLine, program: str
    ) -> None:
        for payload in ('{"to": "Ada"}', '{"to": "Bob", "copies": 2}'):
            command("enqueue", program, "send", payload)
        command("enqueue", program, "report:fail")
        done = run("run", "app.py:jobs", "--until", "empty", "--workers", "1")
        assert (done.code, done.out) == (0, ""), done.err
        assert "Traceback" not in done.err
        jobs = command("list", "jobs.db", "--json").json
        assert [(job["state"], job["result"]) for job in jobs] == [
            ("failed", None),
            ("completed", "2 to Bob"),
            ("completed", "1 to Ada"),
        ]

    @pytest.mark.parametrize(
        ("option", "set_up", "shown"),
        [
            ([], "", [" INFO a step", " WARNING a danger"]),
            (["--verbose"], "", [" DEBUG a detail", " INFO a step", " WARNING a danger"]),
            (["--quiet"], "", []),
            (["--verbose"], "logging.basicConfig(level=20, format='own %(message)s')",
             ["own a step", "own a danger"]),
        ],
        ids=["default", "verbose", "quiet", "as the program has it"],
    )  # fmt: skip
    def test_what_jobs_log_in_their_workers_is_shown(
        self, option: list[str], set_up: str, shown: list[str], command: CommandLine
    ) -> None:
        Path("logging_app.py").write_text(LOGGING_APP.format(set_up=set_up))
        command("enqueue", "logging_app:jobs", "tell")
        done = run("run", "logging_app:jobs", "--workers", "1", "--until", "empty", *option)
        assert done.code == 0
        printed = [line for line in done.err.splitlines() if " a " in line]
        assert [line[-len(end) :] for line, end in zip(printed, shown, strict=True)] == shown

    def test_says_at_the_start_what_it_runs(self, command: CommandLine, tmp_path: Path) -> None:
        Path("app.py").write_text(f"{PROGRAM}\njobs.every(3600, send.bind('x'), name='hourly')\n")
        command("enqueue", "app.py", "send", "to=x")
        for name in ("old", "old", "older"):
            insert(Path("jobs.db"), name=name)
        done = run("run", "app.py", "--until", "empty", "--workers", "1", "--queue", "mails")
        first = done.err.splitlines()[0].partition(" INFO ")[2]
        assert first == (
            f"{tmp_path / 'jobs.db'}: definitions report:fail, send; queues mails; "
            "schedules hourly; 3 waiting without a definition here (old: 2, older: 1)"
        )
        done = run("run", "app.py", "--until", "empty", "--queue", "mails", "--quiet")
        assert (done.code, "definitions" in done.err) == (0, False)

    def test_logs_one_line_for_each_job_when_it_is_verbose(
        self, command: CommandLine, program: str
    ) -> None:
        for name in ("Ada", "Bob"):
            command("enqueue", program, "send", f"to={name}")
        done = run("run", "app.py", "--until", "empty", "--workers", "1", "--verbose")
        lines = [line.partition(" DEBUG ")[2] for line in done.err.splitlines() if " job " in line]
        assert [re.sub(r"[\d.e-]+ s$", "# s", line) for line in lines] == [
            f"job {id} (send) completed, attempt 1, # s" for id in (1, 2)
        ]

    def test_logs_a_repeated_error_once_and_then_counts(
        self, command: CommandLine, program: str
    ) -> None:
        for _ in range(5):
            command("enqueue", program, "report:fail")
        done = run("run", "app.py", "--until", "empty", "--workers", "1")
        lines = [line for line in done.err.splitlines() if " WARNING " in line]
        assert len(lines) == 2, done.err
        assert re.search(r"WARNING job \d \(report:fail\) failed, .*: Fail: as planned$", lines[0])
        assert re.search(r"WARNING 4 more like this: job \d \(report:fail\) failed", lines[1])

    def test_reloads_when_a_source_file_changes(self, command: CommandLine) -> None:
        pytest.importorskip("watchfiles")
        source = PROGRAM.replace("return f", "import time; time.sleep(0.3); return VERSION or f")
        path = Path("app.py")
        path.write_text("VERSION = 'old'\n" + source)
        with LiteJobs("jobs.db") as jobs:
            run("enqueue", "app.py", "send", "to=Ada")
            process = start("run", "app.py", "--reload", "--workers", "1")
            assert process.stderr is not None
            try:
                eventually(lambda: jobs.get(1).state == "running")
                path.write_text("def (\n")
                assert any("SyntaxError" in line for line in iter(process.stderr.readline, ""))
                assert jobs.get(1).result(0) == "old", "the change left it its grace"
                path.write_text("VERSION = 'new'\n" + source)
                run("enqueue", "jobs.db", "send", "to=Bob")
                assert jobs.get(2).result(20) == "new"
            finally:
                process.terminate()
                process.communicate(timeout=20)
            assert process.returncode == 0

    def test_says_what_reloading_needs(
        self, command: CommandLine, program: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "watchfiles", None)
        problem = r"--reload needs the package watchfiles: pip install 'litejobs\[reload\]'"
        command("run", program, "--reload").complains(2, problem)

    def test_ends_in_good_order_when_it_is_asked_to(
        self, command: CommandLine, program: str
    ) -> None:
        process = start("run", program, "--workers", "1")
        with LiteJobs("jobs.db") as jobs:
            id = int(command("enqueue", program, "send", '{"to": "Ada"}').out)
            assert jobs.wait(id, 20).state == "completed"
            process.terminate()
            process.communicate(timeout=20)
            assert process.returncode == 0
            assert jobs.nodes() == []

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["jobs.db"], r"jobs\.db: a file has no code to run: name module:attribute"),
            (["app:jobs", "--workers", "0"], "workers: expected 1 or more, got 0"),
            (["app:jobs", "--workers", "two"], "argument --workers: 'two' is not a whole number"),
            (["app:jobs", "--grace", "-1"], "grace: -1.0 is negative"),
            (["app:jobs", "--until", "tomorrow"], "argument --until: invalid choice"),
            (["app:jobs", "--queue", ""], "--queue: expected 1 to 200 printable"),
            (["app:jobs", "--node", "a\nb"], "node: expected 1 to 200 printable"),
            (["bare:jobs"], "there is nothing to run"),
            ([], "the following arguments are required: PROGRAM"),
        ],
    )
    def test_refuses_wrong_use_in_one_line(
        self,
        arguments: list[str],
        problem: str,
        command: CommandLine,
        file: Path,
        program: str,
    ) -> None:
        Path("bare.py").write_text("from litejobs import LiteJobs\njobs = LiteJobs('jobs.db')\n")
        command("run", *arguments).complains(2, problem)


class TestMessages:
    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["cancel", "jobs.db"], "ID: say which jobs: ids, or filters such as --state failed"),
            (["change", "jobs.db", "1"], "change: say what to change, such as --priority 10"),
            (["change", "jobs.db", "1", "--max-attempts", "-1"],
             "--max-attempts: expected 1 or more, got -1"),
            (["change", "jobs.db", "1", "--to-queue", "\t"],
             "--to-queue: expected 1 to 200 printable characters, got '\\\\t'"),
            (["enqueue", "jobs.db", "send", "to=x", "--at", "18:00", "--delay", "1m"],
             "--at: given together with --delay: a job has one time to run"),
            (["enqueue", "jobs.db", "send", "to=x", "--max-attempts", "0"],
             "--max-attempts: expected 1 or more, got 0"),
            (["list", "jobs.db", "--limit", "-1"], "--limit: expected a number of jobs, got -1"),
            (["queue", "jobs.db", "mails", "--concurrency", "-1"],
             "--concurrency: expected 1 or more, got -1"),
            (["run", "app:jobs", "--queue", ""], "--queue: expected 1 to 200"),
            (["run", "app:jobs", "--threads", "1", "--workers", "1"],
             "--threads: given together with --workers"),
        ],
    )  # fmt: skip
    def test_name_options_as_they_are_typed(
        self,
        arguments: list[str],
        problem: str,
        command: CommandLine,
        file: Path,
        program: str,
    ) -> None:
        command(*arguments).complains(2, f"^litejobs: {problem}")


class TestTheTarget:
    @pytest.mark.parametrize("name", ["list", "stats", "enqueue", "show", "delete", "run"])
    def test_that_does_not_exist_is_not_made(self, name: str, command: CommandLine) -> None:
        rest = {"enqueue": ["send"], "show": ["1"], "delete": ["1"]}.get(name, [])
        command(name, "no.db", *rest).complains(
            3, r"no\.db: no such file; a program is named module:attribute"
        )
        assert not Path("no.db").exists()

    def test_that_is_no_database_is_left_alone(self, command: CommandLine) -> None:
        Path("notes.txt").write_text("milk, eggs, a gallon of coffee\n" * 50)
        before = Path("notes.txt").read_bytes()
        command("list", "notes.txt").complains(3, r"notes\.txt: is not an SQLite database")
        assert Path("notes.txt").read_bytes() == before

    def test_that_is_a_folder_is_refused(self, command: CommandLine, tmp_path: Path) -> None:
        command("list", tmp_path).complains(3, "is a folder: name a file in it")

    @pytest.mark.posix
    def test_that_is_a_symbolic_link_is_refused(self, command: CommandLine, file: Path) -> None:
        Path("link.db").symlink_to(file)
        command("list", "link.db").complains(3, "is a symbolic link: name the file")

    def test_with_a_colon_in_its_name_is_a_file(self, command: CommandLine, file: Path) -> None:
        shutil.copy(file, "a:b")
        assert command("stats", "a:b").code == 0

    def test_that_is_the_database_of_an_application_is_not_changed_by_a_look(
        self, command: CommandLine
    ) -> None:
        code = "import sqlite3, sys; sqlite3.connect('app.db').execute('CREATE TABLE customer (a)')"
        subprocess.run([sys.executable, "-c", code], check=True)
        before = Path("app.db").read_bytes()
        done = command("list", "app.db")
        assert Path("app.db").read_bytes() == before
        done.complains(3, r"app\.db: ")

    @pytest.mark.parametrize(
        ("target", "code", "problem"),
        [
            ("no_such_module:jobs", 2, "No module named 'no_such_module'"),
            ("no.such.module:jobs", 2, "No module named 'no'"),
            (":jobs", 2, ":jobs: "),
            ("..above:jobs", 2, "above:jobs: "),
            ("no_such.py:jobs", 3, r"no_such\.py: no such file"),
            ("app:missing", 2, "'missing' in app"),
            ("app.py:missing", 2, r"'missing' in app\.py"),
            ("app:nothing", 2, "expected a LiteJobs at 'nothing' in app, found NoneType"),
            ("app:number", 2, "expected a LiteJobs at 'number' in app, found int"),
            ("app:missing", 2, "found NoneType: name app:jobs"),
            ("several.py", 2, "more than one LiteJobs at its top level: name several.py:a or sev"),
            ("bare", 2, "bare: there is no LiteJobs at its top level"),
            ("bare:jobs", 2, r"at 'jobs' in bare, found NoneType$"),
            ("no_such_module", 3, "no such file; a program is named module:attribute"),
            ("raises", 2, r"importing it failed at .*raises\.py:2: ValueError: two lines"),
            ("raises:jobs", 2, r"importing it failed at .*raises\.py:2: ValueError: two lines"),
            ("syntax.py:jobs", 2, "SyntaxError: "),
            ("exits:jobs", 2, r"exits"),
            ("unimportable:jobs", 2, "No module named 'nowhere'"),
            ("escapes:jobs", 2, r"\\x1b\[2J"),
            ("binary.py:jobs", 2, r"binary\.py:jobs: "),
        ],
    )
    @pytest.mark.parametrize("name", ["run", "list"])
    def test_that_cannot_be_loaded_says_why_in_one_line(
        self,
        name: str,
        target: str,
        code: int,
        problem: str,
        command: CommandLine,
        program: str,
    ) -> None:
        Path("raises.py").write_text("# this one\nraise ValueError('two lines\\nof text')\n")
        Path("syntax.py").write_text("def (:\n")
        Path("exits.py").write_text("raise SystemExit('not now')\n")
        Path("unimportable.py").write_text("import nowhere.to.be.found\n")
        Path("escapes.py").write_text(r"raise ValueError('\x1b[2J')" "\n")
        Path("binary.py").write_bytes(b"\x00\xff\xfe")
        Path("bare.py").write_text("")
        Path("several.py").write_text("from litejobs import LiteJobs\na, b = map(LiteJobs, 'ab')")
        command(name, target).complains(code, problem)

    @pytest.mark.parametrize("name", ["json.py", "queue.py", "test_command_line.py"])
    def test_with_the_name_of_a_module_that_is_loaded_is_not_mistaken_for_it(
        self, name: str, command: CommandLine
    ) -> None:
        Path(name).write_text(PROGRAM)
        command("stats", f"{name}:jobs").complains(2, f"{name}:jobs: .*another module")

    @pytest.mark.parametrize(
        "target", ["app.py", "app", "app:send", "app.py:send", "app:fail", "pkg.inner", "pkg"]
    )
    def test_may_be_a_module_or_a_definition_in_it(
        self, target: str, command: CommandLine, program: str
    ) -> None:
        Path("pkg").mkdir()
        Path("pkg/inner.py").write_text(PROGRAM)
        Path("pkg/__init__.py").write_text("from .inner import jobs\nagain = jobs\n")
        assert command("enqueue", target, "send", "to=x", "--json").json["queue"] == "mails"

    def test_may_be_a_file_whose_name_is_no_identifier(self, command: CommandLine) -> None:
        Path("my-app.py").write_text(PROGRAM)
        assert command("stats", "my-app.py:jobs", "--json") == Done(0, "{}\n", "")

    def test_may_be_in_another_folder(self, command: CommandLine) -> None:
        Path("sub").mkdir()
        Path("sub/deep_program.py").write_text(PROGRAM)
        assert command("stats", "sub/deep_program.py:jobs").code == 0
        assert command("stats", "sub.deep_program:jobs").code == 0

    def test_that_is_a_damaged_file_is_refused(self, command: CommandLine, file: Path) -> None:
        with open(file, "r+b") as opened:
            opened.seek(4096)
            opened.write(b"\xff" * (file.stat().st_size - 4096))
        command("list", file).complains(3, "malformed")


class TestTheCommand:
    def test_alone_says_what_is_in_the_folder_and_runs_no_code(
        self, command: CommandLine, file: Path
    ) -> None:
        Path("app.py").write_text(PROGRAM + "raise ValueError('this ran')\n")
        Path("pkg").mkdir()
        Path("pkg/__init__.py").touch()
        Path("pkg/two.py").write_text(
            "from litejobs import LiteJobs\na = LiteJobs('a')\nb = LiteJobs('b')\n"
        )
        Path("broken.py").write_text("jobs = LiteJobs(")
        Path("other.db").write_bytes(b"SQLite format 3\0" + bytes(84))
        assert command() == Done(
            0,
            "Queues in this folder:\n"
            "  jobs.db  1 scheduled, 1 pending, 1 completed, 1 failed\n"
            "Programs:\n"
            "  app.py  defines send, fail\n"
            "  pkg.two:a  defines nothing\n"
            "  pkg.two:b  defines nothing\n"
            "Next:\n"
            "  litejobs list jobs.db\n"
            "  litejobs run app.py\n"
            "  litejobs run pkg.two:a\n"
            "  litejobs run pkg.two:b\n"
            "  litejobs --help\n",
            "",
        )

    def test_alone_in_an_empty_folder_says_how_to_begin(self, command: CommandLine) -> None:
        done = command()
        assert (done.code, done.err) == (0, "")
        assert "There is no queue in this folder." in done.out
        assert "litejobs new " in done.out

    def test_groups_its_commands(self, command: CommandLine) -> None:
        helped = [verb for group in litejobs._HELP.values() for verb in group]
        assert sorted(helped) == sorted(litejobs._COMMANDS)
        out = command("--help").out
        for title in litejobs._HELP:
            assert f"\n{title}:\n" in out
        assert "  list             list jobs" in out

    @pytest.mark.parametrize("verb", litejobs._COMMANDS)
    def test_shows_examples_that_it_understands(self, verb: str, command: CommandLine) -> None:
        _, found, examples = command(verb, "--help").out.partition("\nexamples:\n")
        assert found
        for line in examples.splitlines():
            called, *words = shlex.split(re.split(r" >|\|", line)[0])
            assert (called, words[0]) == ("litejobs", verb)
            assert litejobs._parse(words).verb == verb

    def test_with_a_wrong_verb_says_which_there_are(self, command: CommandLine) -> None:
        command("lsit", "x").complains(2, "invalid choice: 'lsit'.*list")

    def test_prints_its_version(self, command: CommandLine) -> None:
        assert command("--version") == Done(0, f"litejobs {litejobs.__version__}\n", "")

    @pytest.mark.parametrize("name", ["", "run", "enqueue", "list", "show", "retry", "stats"])
    def test_helps(self, name: str, command: CommandLine) -> None:
        done = command(*filter(None, [name]), "--help")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"usage: litejobs {name}".rstrip())

    def test_is_the_same_as_a_module(self, command: CommandLine, file: Path) -> None:
        assert run("list", file, "--json") == command("list", file, "--json")
        assert run("list", "no.db") == command("list", "no.db")

    @pytest.mark.parametrize("name", ["list", "stats"])
    def test_ends_quietly_when_nobody_reads_what_it_prints(
        self, name: str, command: CommandLine, file: Path
    ) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        process = start(name, file, stdout=writing)
        os.close(writing)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")

    @pytest.mark.posix
    def test_prints_nothing_if_its_output_is_closed(self, command: CommandLine, file: Path) -> None:
        closed = subprocess.run(
            ["sh", "-c", 'exec "$0" -m litejobs list "$1" >&-', sys.executable, str(file)],
            capture_output=True,
        )
        assert (closed.returncode, closed.stdout, closed.stderr) == (0, b"", b"")

    def test_ends_quietly_when_its_reader_has_seen_enough(
        self, command: CommandLine, file: Path
    ) -> None:
        with LiteJobs(file) as jobs:
            sending = jobs.define(send)
            jobs.enqueue_many([sending.bind("x" * 50)] * 1500)
        process = start("list", file, "--limit", "1500", "--json")
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "[\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(20) == 0
        process.stderr.close()

    @pytest.mark.linux
    def test_complains_when_what_it_prints_cannot_be_kept(
        self, command: CommandLine, file: Path
    ) -> None:
        if not os.path.exists("/dev/full"):
            pytest.skip("there is no full device here")
        with open("/dev/full", "w") as full:
            done = run("list", file, stdout=full)
        assert done.code not in (0, None)
        assert os.strerror(errno.ENOSPC) in done.err
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
    def test_prints_what_the_terminal_can_show(
        self, encoding: str, command: CommandLine, file: Path
    ) -> None:
        with LiteJobs(file) as jobs:
            jobs.define(name="große 🚀")(fail).using(max_attempts=None).enqueue()
        done = run("list", file, encoding=encoding, environment={"PYTHONIOENCODING": encoding})
        assert (done.code, done.err) == (0, "")
        assert len(done.out.splitlines()) == 6


class TestCompletion:
    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
    def test_knows_commands_options_and_values(self, shell: str, command: CommandLine) -> None:
        pytest.importorskip("shtab")
        done = command("completion", shell)
        assert (done.code, done.err) == (0, "")
        for word in ("pause-schedule", "finished-before", "retrying"):
            assert word in done.out
        if found := shutil.which(shell):
            checked = subprocess.run(
                [found, "-n"], input=done.out, text=True, stderr=subprocess.PIPE
            )
            assert (checked.returncode, checked.stderr) == (0, "")

    def test_completes_in_bash(self, command: CommandLine, file: Path) -> None:
        pytest.importorskip("shtab")
        if not shutil.which("bash"):
            pytest.skip("there is no bash here")
        Path("script").write_text(command("completion", "bash").out)
        for typed, completed in (
            ("ca", "cancel"),
            ("list job", "jobs.db"),
            ("list x --state f", "failed"),
        ):
            words = f"litejobs {typed}".split()
            code = (
                'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_litejobs; echo ${COMPREPLY[@]}'
            )
            shell = ["bash", "-c", f"source ./script; {code}", "bash", *words]
            assert subprocess.check_output(shell, text=True).split() == [completed]

    def test_says_what_it_needs(
        self, command: CommandLine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "shtab", None)
        problem = r"completion: is made by the package shtab: pip install 'litejobs\[cli\]'"
        command("completion", "fish").complains(2, problem)


class TestService:
    WORDS = ("--workers", "1", "--queue", "a $b 50%", "--grace", "7.5")

    @pytest.fixture
    def folder(self, command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder that needs to be quoted, with a program."""
        folder = tmp_path / "50% of it"
        folder.mkdir()
        (folder / "app.py").write_text(PROGRAM)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PYTHONPATH", 'x "$y" 5%')
        return folder

    def test_is_a_unit_of_systemd_with_a_clean_stop(
        self, command: CommandLine, folder: Path
    ) -> None:
        done = command("service", "app.py", "--systemd", *self.WORDS)
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        assert lines[1:3] == [
            "#   sudo install -m 644 litejobs-app.service /etc/systemd/system/",
            "#   sudo systemctl daemon-reload && sudo systemctl enable --now litejobs-app",
        ]
        unit = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=[^P]", line))
        assert (unit["Restart"], unit["KillMode"], unit["TimeoutStopSec"]) == (
            "always",
            "mixed",
            "18",
        )
        assert unit["WorkingDirectory"] == str(folder).replace("%", "%%")
        assert r'Environment="PYTHONPATH=x \"$y\" 5%%"' in lines
        assert unit["ExecStart"].endswith(' app.py --workers 1 --queue "a $$b 50%%" --grace 7.5')
        if analyze := shutil.which("systemd-analyze"):
            Path("litejobs-app.service").write_text(done.out)
            checked = subprocess.run(
                [analyze, "verify", "./litejobs-app.service"], stderr=subprocess.PIPE, text=True
            )
            assert (checked.returncode, checked.stderr) == (0, "")

    def test_ends_a_running_job_within_its_grace_when_systemd_stops_it(
        self, command: CommandLine, folder: Path
    ) -> None:
        slow = PROGRAM.replace("return f", "import time; time.sleep(0.5); return f")
        Path("app.py").write_text(slow)
        command("enqueue", "app.py", "send", "to=x")
        out = command("service", "app.py", "--systemd", "--workers", "1").out
        line = next(line for line in out.splitlines() if line.startswith("ExecStart="))
        words = shlex.split(line.removeprefix("ExecStart="))
        process = subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL)
        with LiteJobs("jobs.db") as jobs:
            eventually(lambda: jobs.get(1).state == "running")
            process.terminate()
            assert process.wait(20) == 0
            assert jobs.get(1).state == "completed"

    def test_is_a_property_list_of_launchd(self, command: CommandLine, folder: Path) -> None:
        out = command("service", "app:jobs", "--launchd", *self.WORDS).out
        service = plistlib.loads(out.encode())
        assert service["ProgramArguments"] == [
            sys.executable, "-m", "litejobs", "run", "app:jobs", *self.WORDS,
        ]  # fmt: skip
        assert service["WorkingDirectory"] == str(folder)
        assert (service["KeepAlive"], service["RunAtLoad"], service["ExitTimeOut"]) == (
            True,
            True,
            18,
        )
        assert "sudo launchctl bootstrap system /Library/LaunchDaemons/litejobs-app.plist" in out

    def test_is_a_task_of_windows(self, command: CommandLine, folder: Path) -> None:
        out = command("service", "app", "--windows-task", "--queue", "a & <b>").out
        task = ElementTree.fromstring(out)
        found = {node.tag.partition("}")[2]: node.text for node in task.iter()}
        assert found["Command"] == sys.executable
        assert found["Arguments"] == '-m litejobs run app --queue "a & <b>"'
        assert found["WorkingDirectory"] == str(folder)
        assert "schtasks /Create /TN litejobs-app /XML litejobs-app.xml" in out

    def test_is_that_of_one_system_and_of_a_program(
        self, command: CommandLine, file: Path, program: str
    ) -> None:
        command("service", program, "--systemd", "--launchd").complains(2, "not allowed with")
        command("service", file).complains(2, "a file has no code to run")
        assert command("service", program).code == 0


class TestWhatIsStored:
    """Anybody who can write to the file decides what is in it."""

    @pytest.fixture
    def hostile(self, command: CommandLine, file: Path) -> Path:
        insert(
            file,
            name=f"name{ESCAPES}\nforged line",
            queue=f"queue{ESCAPES}\nforged line",
            node=ESCAPES,
            error=f"error{ESCAPES}\nforged line",
            payload=json.dumps({"key": ESCAPES}),
            result=json.dumps(ESCAPES),
        )
        with LiteJobs(file) as jobs:
            jobs.store.file.connection().execute(
                "INSERT INTO litejobs_attempt (job, attempt, kind, type, message, traceback,"
                " worker, started_at, finished_at) VALUES (5, 1, ?1, ?1, ?1, ?1, 1, 1, 1)",
                (ESCAPES,),
            )
        return file

    @pytest.mark.parametrize("arguments", [["list"], ["show", "5"], ["stats"]], ids=str)
    @pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
    def test_never_controls_the_terminal(
        self, arguments: list[str], form: list[str], command: CommandLine, hostile: Path
    ) -> None:
        name, *rest = arguments
        done = command(name, hostile, *rest, *form)
        assert (done.code, done.err) == (0, "")
        assert all(character.isprintable() or character == "\n" for character in done.out)

    def test_is_whole_in_json(self, command: CommandLine, hostile: Path) -> None:
        job = command("show", hostile, 5, "--json").json
        assert job["payload"] == {"key": ESCAPES}
        assert job["name"] == f"name{ESCAPES}\nforged line"

    def test_takes_one_line_for_each_job(self, command: CommandLine, hostile: Path) -> None:
        assert len(command("list", hostile).out.splitlines()) == 1 + 5
        assert len(command("stats", hostile).out.splitlines()) == 1 + 3

    def test_cannot_forge_a_line_by_what_an_exception_says(
        self, command: CommandLine, file: Path
    ) -> None:
        insert(file, name="mail", error="ValueError: x")
        with LiteJobs(file) as jobs:
            jobs.store.file.connection().execute(
                "INSERT INTO litejobs_attempt (job, attempt, kind, type, message, traceback,"
                " worker, started_at, finished_at) VALUES (5, 1, 'crash', 'E', 'm', ?, 1, 1, 1)",
                ("Traceback …\nValueError: x\nstate:        completed\n\nattempt 2: lost",),
            )
        shown = command("show", file, 5).out.splitlines()
        assert [
            line for line in shown if line.startswith(("Traceback", "state: ", "attempt 2"))
        ] == ["state:        pending"]
        assert "    ValueError: x" in shown

    def test_is_not_printed_raw_in_a_complaint(self, command: CommandLine, hostile: Path) -> None:
        with LiteJobs(hostile) as jobs:
            jobs.store.file.connection().execute(
                "INSERT INTO litejobs_definition (name, queue, node, priority)"
                " VALUES (?, '', '', 0)",
                (f"send{ESCAPES}",),
            )
        done = command("enqueue", hostile, "sendd")
        assert "\x1b" not in done.err
        assert done.code == 2

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("payload", 5),
            ("payload", b"\xff\xfe"),
            ("payload", '{"n": ' + "9" * 5000 + "}"),
            ("payload", "[" * 990 + "]" * 990),
            ("run_at", 1_700_000_000_000_000_000),
            ("run_at", None),
            ("enqueued_at", -(2**63)),
            ("enqueued_at", None),
            ("finished_at", 2**63 - 1),
            ("queue", None),
            ("priority", None),
            ("result", "no JSON"),
            ("state", "paused"),
        ],
        ids=lambda value: ascii(value)[:20],
    )
    @pytest.mark.parametrize("arguments", [["list"], ["show", "5"]], ids=str)
    def test_hides_no_other_job_unless_it_is_damaged(
        self,
        arguments: list[str],
        column: str,
        value: object,
        command: CommandLine,
        file: Path,
    ) -> None:
        insert(file, name="send")
        with LiteJobs(file) as jobs, contextlib.suppress(apsw.ConstraintError):
            jobs.store.file.connection().execute(
                f"UPDATE litejobs_job SET {column} = ? WHERE id = 5", (value,)
            )
        name, *rest = arguments
        done = command(name, file, *rest)
        if value is None:  # No job can be without it.
            done.complains(3, "is damaged .*: see `litejobs doctor")
            return
        assert (done.code, done.err) == (0, "")
        if name == "list":
            assert len(done.out.splitlines()) == 1 + 5


class TestQueues:
    def test_are_set_paused_and_shown(self, command: CommandLine, file: Path) -> None:
        set_ = ("--concurrency", 3, "--rate", "90/min", "--ageing", 60, "--max-attempts", 0)
        assert command("queue", file, "mails", *set_).code == 0
        done = command("queue", file, "mails", "--pause", "--json")
        assert done.json == {
            "name": "mails", "paused": True, "concurrency": 3, "rate": "90/min", "burst": None,
            "weight": None, "ageing": 60.0, "max_attempts": None,
        }  # fmt: skip
        assert command("queues", file).out.splitlines()[1].split() == [
            "mails", "paused", "3", "90/min", "60", "inf",
        ]  # fmt: skip
        with LiteJobs(file) as jobs:
            assert jobs.queue("mails").settings.paused

    def test_lose_a_limit_by_a_zero_and_all_by_a_reset(
        self, command: CommandLine, file: Path
    ) -> None:
        command("queue", file, "mails", "--concurrency", 3, "--rate", "5/s")
        done = command("queue", file, "mails", "--concurrency", 0, "--resume", "--json")
        assert (done.json["concurrency"], done.json["rate"]) == (None, "5/s")
        command("queue", file, "mails", "--reset")
        assert command("queues", file, "--json").json == []

    def test_say_what_is_wrong(self, command: CommandLine, file: Path) -> None:
        command("queue", file, "mails", "--rate", "fast").complains(2, "rate: expected some")
        command("queue", file, "mails", "--concurrency", -1).complains(2, "concurrency: exp")


class TestEnqueueWithKeys:
    @pytest.mark.parametrize("target", ["jobs.db", "app:jobs"])
    def test_sets_key_and_expiry(
        self, command: CommandLine, file: Path, program: str, target: str
    ) -> None:
        for _ in range(2):
            to = '{"to": "you"}'
            assert command("enqueue", target, "send", to, "--key", "k", "--expires", 60).code == 0
        second, first = job_of(file, 6), job_of(file, 5)
        assert (first.state, second.state, first.key) == ("pending", "blocked", "k")
        assert first.expires_at is not None
        assert first.expires_at - first.run_at == pytest.approx(
            timedelta(seconds=60), abs=timedelta(seconds=5)
        )


class TestFilters:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        jobs = LiteJobs(tmp_path / "jobs.db")
        jobs.define(send)
        jobs.enqueue_many([jobs.registry.named("send").bind(to) for to in ("ada", "bob")])
        jobs.close()
        return tmp_path / "jobs.db"

    def test_find_jobs_by_their_payload(self, command: CommandLine, file: Path) -> None:
        done = command("list", file, "--json", "--payload", 'to="bob"')
        assert [job["id"] for job in done.json] == [2]
        assert command("list", file, "--payload", "to=12").code == 1
        assert [
            job["id"] for job in command("list", file, "--json", "--payload", "to=bob").json
        ] == [2]
        command("list", file, "--payload", "bob").complains(2, "'bob' is not a field and its value")

    def test_find_jobs_by_time_key_node_and_schedule(
        self, command: CommandLine, file: Path
    ) -> None:
        soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
        assert len(command("list", file, "--json", "--enqueued-before", soon).json) == 2
        for filter, value in (
            ("--enqueued-after", soon), ("--finished-before", soon), ("--finished-after", soon),
            ("--key", "ada"), ("--node", "laptop"), ("--schedule", "nightly"),
        ):  # fmt: skip
            assert command("list", file, filter, value).code == 1
        for wrong in ("60", "soon", "25:00", "99999999d", "0001-01-01", "9" * 400 + "d"):
            command("list", file, "--enqueued-after", wrong).complains(2, "' is not a time such as")

    @pytest.mark.parametrize(("ago", "ids"), [("2d", [1]), ("25h", [1]), ("4d", [])])
    def test_take_how_long_ago_something_was(
        self, command: CommandLine, file: Path, ago: str, ids: list[int]
    ) -> None:
        with LiteJobs(file) as jobs:
            then = round((datetime.now(UTC) - timedelta(days=3)).timestamp() * 1e6)
            sql = "UPDATE litejobs_job SET enqueued_at = ? WHERE id = 1"
            jobs.store.file.connection().execute(sql, (then,))
        found = command("list", file, "--json", "--enqueued-before", ago).json
        assert [job["id"] for job in found] == ids

    def test_take_a_time_of_the_day_as_the_last_such_one(
        self, command: CommandLine, file: Path
    ) -> None:
        soon = (datetime.now(UTC) + timedelta(hours=2)).strftime("%H:%MZ")
        assert len(command("list", file, "--json", "--enqueued-after", soon).json) == 2
        assert command("list", file, "--json", "--enqueued-before", soon).json == []

    def test_choose_the_jobs_of_a_bulk_command(self, command: CommandLine, file: Path) -> None:
        assert command("cancel", file, "--payload", 'to="ada"').out.startswith("1 cancelled")
        assert [
            job["id"] for job in command("list", file, "--json", "--state", "pending").json
        ] == [2]

    def test_change_what_waits(self, command: CommandLine, file: Path) -> None:
        done = command(
            "change", file, "1", "--queue", "default", "--to-queue", "slow", "--priority", "7",
            "--node", "laptop", "--delay", "60", "--max-attempts", "0", "--timeout", "2.5",
            "--to-payload", 'to="eve"',
        )  # fmt: skip
        assert (done.code, done.out) == (0, "1 changed, 0 left as they are\n")
        job = command("show", file, "1", "--json").json
        assert job["payload"] == {"to": "eve"}
        names = ("queue", "priority", "node", "state", "max_attempts")
        assert [job[name] for name in names] == ["slow", 7, "laptop", "scheduled", None]
        assert command("change", file, "1", "--node", "").code == 0
        assert command("show", file, "1", "--json").json["node"] is None
        command("change", file, "1").complains(2, "say what to change")
        command("change", file, "--priority", "7").complains(2, "say which jobs")

    def test_hold_and_release(self, command: CommandLine, file: Path) -> None:
        assert command("hold", file, "--payload", 'to="ada"').out.startswith("1 held")
        assert command("list", file, "--json", "--state", "paused").json[0]["id"] == 1
        assert command("release", file, "1").out.startswith("1 released")
        assert command("release", file, "1").code == 1


class TestMetrics:
    def test_are_a_table_of_spans_and_json(self, command: CommandLine, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db") as jobs:
            jobs.enqueue(jobs.define(send).bind("ada"))
            jobs.drain()
        *_, last = command("metrics", "jobs.db", "--span", "day", "--json").json
        assert (last["completed"], last["failed"]) == (1, 0)
        assert last["running_p95"] > 0
        done = command("metrics", "jobs.db", "--limit", "2", "--name", "send")
        head, *spans = done.out.splitlines()
        assert head.split()[:3] == ["start", "completed", "failed"]
        assert len(spans) in (1, 2)  # None before the first one with jobs.
        assert re.search(r" (s|ms|µs)$", spans[-1]) or re.search(r" (s|ms|µs)$", spans[-2])
        command("metrics", "jobs.db", "--limit", "0").complains(2, "limit")


class TestHealth:
    @pytest.fixture
    def jobs(self, tmp_path: Path) -> Iterator[LiteJobs]:
        with LiteJobs(tmp_path / "jobs.db") as jobs:
            jobs.enqueue(jobs.define(send).bind("ada"))
            yield jobs

    def test_nothing_is_wrong(self, command: CommandLine, jobs: LiteJobs) -> None:
        assert command("doctor", "jobs.db") == Done(0, "nothing is wrong\n", "")
        assert command("doctor", "jobs.db", "--json").json == []

    def test_findings_come_with_advice(self, command: CommandLine, jobs: LiteJobs) -> None:
        connection = jobs.store.file.connection()
        connection.execute("INSERT INTO litejobs_count VALUES ('completed', 'q', 'n', 5)")
        done = command("doctor", "jobs.db")
        assert done.code == 1
        assert (
            "error: completed jobs of 'n' in queue 'q': counted as 5, but there are 0" in done.out
        )
        [finding] = command("doctor", "jobs.db", "--json").json
        assert finding["level"] == "error"
        assert "--repair" in finding["advice"]
        assert command("doctor", "jobs.db", "--repair").code == 0

    def test_a_backup_is_made_once(self, command: CommandLine, jobs: LiteJobs) -> None:
        done = command("backup", "jobs.db", "copy.db")
        assert done.code == 0
        assert done.out.startswith("copied to ")
        assert command("stats", "copy.db").out == command("stats", "jobs.db").out
        command("backup", "jobs.db", "copy.db").complains(3, "exists already")

    def test_compacting_says_how_much(self, command: CommandLine, jobs: LiteJobs) -> None:
        assert re.fullmatch(r"\d+ KiB before, \d+ KiB now\n", command("compact", "jobs.db").out)
        assert command("compact", "jobs.db", "--json").json["after"] > 0

    def test_nodes_are_listed(self, command: CommandLine, jobs: LiteJobs) -> None:
        assert command("nodes", "jobs.db").code == 1
        subscription = Subscription(frozenset(["send"]), frozenset(["default"]), "laptop")
        node = jobs.store.nodes.join("laptop", 0, 2, subscription, [])
        listed = command("nodes", "jobs.db", "--json").json
        [head, line] = command("nodes", "jobs.db").out.splitlines()
        assert (listed[0]["state"], listed[0]["jobs"]) == ("at work", [])
        jobs.store.file.connection().execute(
            "UPDATE litejobs_job SET state = 'running', holder = ?, started_at = 1e15", (node,)
        )
        [running] = command("nodes", "jobs.db", "--json").json[0]["jobs"]
        assert running == {"id": 1, "name": "send", "started_at": "2001-09-09T01:46:40+00:00"}
        *_, held = command("nodes", "jobs.db").out.splitlines()
        assert held.split() == ["1", "send", "laptop", "2001-09-09T01:46:40Z"]
        jobs.store.nodes.release_lock(node)
        assert command("nodes", "jobs.db", "--json").json[0]["state"] == "dead"
        assert (listed[0]["name"], listed[0]["queues"]) == ("laptop", ["default"])
        assert line.split()[:2] == ["laptop", str(os.getpid())]
        assert head.split()[:2] == ["name", "pid"]

    def test_why(self, command: CommandLine, jobs: LiteJobs) -> None:
        assert command("why", "jobs.db", 1) == Done(0, "no node is at work\n", "")
        assert command("why", "jobs.db", 1, "--json").json["why"] == "no node is at work"
        command("why", "jobs.db", 7).complains(1, "no job has the id 7")
