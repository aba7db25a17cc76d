"""The test kit: a clock that is turned, a recorder, and what pytest finds of them by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest

import litejobs
from litejobs import (
    NEW_YEAR,
    Constant,
    Context,
    Definition,
    DefinitionError,
    Fail,
    LiteJobs,
    LitejobsError,
    OptionError,
    Recorder,
    Retry,
    Snooze,
    TurnedClock,
    define,
    recording,
    to_micros,
)

PROJECT = Path(__file__).resolve().parent.parent


@attrs.frozen
class Resize:
    """A definition that is a class."""

    path: str
    width: int = 100

    def run(self) -> int:
        return self.width


Send = Definition[..., str, str]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[LiteJobs]:
    """A LiteJobs as it stands in the module of a program, with the program's own file."""
    folder = tmp_path / "own"
    folder.mkdir()
    with LiteJobs(folder / "jobs.db") as app:
        yield app


@pytest.fixture
def send(app: LiteJobs) -> Send:
    @app.define(queue="mails")
    def send(to: str, subject: str = "Hi") -> str:
        return f"{subject}, {to}"

    return send


@pytest.fixture
def recorder(app: LiteJobs, send: Send) -> Iterator[Recorder]:
    app.define(Resize)
    with recording(app) as recorder:
        yield recorder


def everything(app: LiteJobs) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that a LiteJobs has, and its store, as it is now."""
    return attrs.asdict(app, recurse=False), attrs.asdict(app.store, recurse=False)


class TestTurnedClock:
    def test_stands_still_until_it_is_turned(self) -> None:
        clock = TurnedClock()
        assert clock() == clock() == to_micros(datetime(2025, 1, 1, tzinfo=UTC))
        clock.turn(1.5)
        clock.turn(timedelta(days=1))
        clock.turn(-0.5)
        assert clock.now == datetime(2025, 1, 2, 0, 0, 1, tzinfo=UTC)
        assert clock() == to_micros(clock.now)

    def test_is_turned_to_a_moment(self) -> None:
        clock = TurnedClock(start=datetime(1999, 12, 31, tzinfo=UTC))
        clock.turn_to(NEW_YEAR)
        assert clock.now == NEW_YEAR

    @pytest.mark.parametrize("moment", [datetime(2025, 1, 1), "2025", None])  # noqa: DTZ001
    def test_wants_moments_with_a_time_zone(self, moment: Any) -> None:
        with pytest.raises(OptionError, match=r"clock: .*(aware datetime|no time zone)"):
            TurnedClock(moment)
        with pytest.raises(OptionError, match=r"clock: .*(aware datetime|no time zone)"):
            TurnedClock().turn_to(moment)

    def test_is_a_clock_for_a_queue(self, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db", clock=TurnedClock()) as jobs:
            jobs.define(Resize)
            assert jobs.enqueue(Resize("a")).enqueued_at == NEW_YEAR


class TestRecording:
    def test_never_touches_the_files_of_the_program(self, app: LiteJobs, send: Send) -> None:
        with recording(app) as recorder:
            send.enqueue("ann")
            recorder.drain()
        assert list(app.path.parent.iterdir()) == []

    def test_puts_everything_back(self, app: LiteJobs, send: Send) -> None:
        real = send.enqueue("real")
        before = everything(app)
        with recording(app) as recorder:
            assert recorder.enqueued() == []
            assert app.get(send.enqueue("test").id).payload == {"to": "test"}
            private = app.path
            recorder.drain()
        assert everything(app) == before
        assert not private.parent.exists()
        assert [job.payload for job in app.find()] == [real.payload]

    def test_puts_everything_back_after_an_error(self, app: LiteJobs, send: Send) -> None:
        before = everything(app)

        def fails() -> None:
            with recording(app):
                send.enqueue("test")
                raise ValueError("no luck")

        with pytest.raises(ValueError, match="no luck"):
            fails()
        assert everything(app) == before
        assert app.count() == 0

    def test_reaches_queues_that_the_program_holds(self, app: LiteJobs, send: Send) -> None:
        mails = app.queue("mails")
        with recording(app) as recorder:
            mails.pause()
            send.enqueue("ann")
            assert recorder.drain() == 0
            mails.resume()
            assert recorder.drain() == 1
            mails.pause()
        send.enqueue("real")
        assert app.drain() == 1, "what the test has paused is not"

    def test_fires_schedules_when_the_clock_passes_them(self, app: LiteJobs, send: Send) -> None:
        app.every(60, send.bind("ann"), name="reminder")
        with recording(app) as recorder:
            assert recorder.drain_all() == 0, "no clock is turned for what never ends"
            recorder.clock.turn(61)
            assert recorder.drain() == 1
            recorder.assert_enqueued(send, to="ann", times=1)
        assert app.count() == 0

    def test_sees_what_was_registered_with_another_queue_last(
        self, app: LiteJobs, tmp_path: Path
    ) -> None:
        @define
        def shared() -> None: ...

        with LiteJobs(tmp_path / "other.db") as other:
            app.register(shared)
            other.register(shared)
            with recording(app) as recorder:
                shared.enqueue()
                recorder.assert_enqueued(shared, times=1)
            shared.enqueue()
            assert (app.count(), other.count()) == (0, 1)

    def test_lets_a_test_define_more_even_after_a_drain(self, app: LiteJobs, send: Send) -> None:
        with recording(app) as recorder:
            recorder.drain()

            @app.define
            def late() -> str:
                return "late"

            job = late.enqueue()
            recorder.drain()
            assert job.result() == "late"
        # Defined is defined: the module that did it is not imported again.
        assert app.registry.named("late") is late
        app.define(Resize)  # and the program is as free to define as it was

    def test_leaves_a_program_that_works_already_as_strict_as_it_was(
        self, app: LiteJobs, send: Send
    ) -> None:
        with app.start(threads=1):
            with recording(app):
                app.define(name="free")(lambda: None)
            with pytest.raises(DefinitionError, match="defined after work had started"):
                app.define(Resize)
        app.define(Resize)

    def test_may_stand_inside_another_and_the_outer_one_goes_on(
        self, app: LiteJobs, send: Send
    ) -> None:
        with recording(app) as outer:
            send.enqueue("outer")
            with recording(app) as inner:
                send.enqueue("inner")
                inner.assert_enqueued(send, to="inner", times=1)
                with pytest.raises(LitejobsError, match="this recorder's test is over"):
                    outer.enqueued()
            outer.assert_enqueued(send, times=1)
            outer.assert_enqueued(send, to="outer")

    def test_ends_with_its_test(self, app: LiteJobs, send: Send) -> None:
        with recording(app) as recorder:
            pass
        for late in (recorder.enqueued, recorder.drain, recorder.drain_all):
            with pytest.raises(LitejobsError, match="this recorder's test is over"):
                late()

    def test_has_no_workers_which_would_know_nothing_of_it(self, app: LiteJobs, send: Send) -> None:
        with recording(app):
            for begin in (app.work, app.start):
                with pytest.raises(LitejobsError, match=r"not the test's: drain\(\)"):
                    begin(1)

    def test_takes_a_clock_that_several_share(self, app: LiteJobs, tmp_path: Path) -> None:
        clock = TurnedClock()
        with (
            LiteJobs(tmp_path / "other.db") as other,
            recording(app, clock) as one,
            recording(other, clock) as two,
        ):
            clock.turn(60)
            assert one.clock is two.clock is clock
            assert app.clock() == other.clock() == to_micros(NEW_YEAR) + 60_000_000


class TestEnqueued:
    def test_lists_jobs_in_the_order_of_their_enqueue(
        self, app: LiteJobs, recorder: Recorder, send: Send
    ) -> None:
        send.using(priority=5).enqueue("ann")
        app.enqueue_many([Resize(str(n)) for n in range(200)])
        send.enqueue("bob")
        names = [job.name for job in recorder.enqueued()]
        assert names == ["send", *["Resize"] * 200, "send"]
        assert [job.payload["to"] for job in recorder.enqueued(send)] == ["ann", "bob"]
        assert [job.payload["path"] for job in recorder.enqueued(Resize)][:3] == ["0", "1", "2"]
        assert recorder.enqueued("send") == recorder.enqueued(send)

    def test_shows_jobs_as_they_are_now(self, recorder: Recorder, send: Send) -> None:
        send.enqueue("ann")
        recorder.drain()
        [job] = recorder.enqueued(send)
        assert (job.state, job.result()) == ("completed", "Hi, ann")

    def test_filters_by_the_fields_that_matter_and_knows_defaults(
        self, recorder: Recorder, send: Send
    ) -> None:
        send.enqueue("ann")
        send.enqueue("ann", "Bye")
        send.enqueue("bob")
        assert [job.id for job in recorder.enqueued(send, to="ann")] == [1, 2]
        assert [job.id for job in recorder.enqueued(send, subject="Hi")] == [1, 3]
        assert [job.id for job in recorder.enqueued(send, to="ann", subject="Bye")] == [2]
        assert recorder.enqueued(send, to="eve") == []

    def test_compares_values_as_the_handler_gets_them(
        self, app: LiteJobs, recorder: Recorder
    ) -> None:
        @app.define
        def remind(when: datetime, about: tuple[str, ...]) -> None: ...

        remind.enqueue(NEW_YEAR, ("cake", "tea"))
        [job] = recorder.enqueued(remind, when=NEW_YEAR, about=("cake", "tea"))
        assert job.payload["about"] == ["cake", "tea"]
        assert recorder.enqueued(remind, when=mock.ANY) == [job]

    def test_reads_payloads_of_bytes_too(self, app: LiteJobs, recorder: Recorder) -> None:
        @app.define(
            encode=lambda given: bytes(given["data"]), decode=lambda data: {"data": list(data)}
        )
        def play(data: list[int]) -> None: ...

        play.enqueue([1, 2])
        recorder.assert_enqueued(play, data=[1, 2])
        recorder.assert_not_enqueued(play, data=[2])

    def test_refuses_a_field_that_the_definition_does_not_have(
        self, recorder: Recorder, send: Send
    ) -> None:
        for ask in (recorder.enqueued, recorder.assert_enqueued, recorder.assert_not_enqueued):
            with pytest.raises(OptionError, match="no such field; did you mean 'subject'"):
                ask(send, subjct="Hi")

    def test_refuses_what_is_no_definition_here(self, recorder: Recorder) -> None:
        nothing: Any = len
        with pytest.raises(DefinitionError, match="did you mean 'send'"):
            recorder.enqueued("sent")
        with pytest.raises(DefinitionError, match="no definition: give one, or its name"):
            recorder.enqueued(nothing)

    def test_sees_what_other_threads_and_handlers_enqueue(
        self, app: LiteJobs, recorder: Recorder, send: Send
    ) -> None:
        @app.define
        def welcome(name: str) -> None:
            send.enqueue(name, "Welcome")

        thread = threading.Thread(target=welcome.enqueue, args=("ann",))
        thread.start()
        thread.join()
        assert recorder.drain() == 2
        recorder.assert_enqueued(send, to="ann", subject="Welcome", times=1)


class TestAssertions:
    def test_give_the_jobs_that_they_found(self, recorder: Recorder, send: Send) -> None:
        send.using(queue="express").enqueue("ann")
        [job] = recorder.assert_enqueued(send, to="ann")
        assert job.queue == "express"

    def test_show_what_was_enqueued_instead(
        self, app: LiteJobs, recorder: Recorder, send: Send
    ) -> None:
        send.enqueue("ann")
        app.enqueue(Resize("a.png"), delay=60)
        with pytest.raises(AssertionError) as raised:
            recorder.assert_enqueued(send, to="bob")
        assert str(raised.value) == (
            "expected a job send(to='bob'), found 0; enqueued were:\n"
            "  1  send(to='ann', subject='Hi')  pending\n"
            "  2  Resize(path='a.png', width=100)  scheduled for 2025-01-01 00:01:00+00:00"
        )

    def test_say_when_nothing_was_enqueued(self, recorder: Recorder) -> None:
        with pytest.raises(AssertionError, match=r"^expected a job Resize\(\), found 0; nothing"):
            recorder.assert_enqueued(Resize)

    @pytest.mark.parametrize("times", [0, 1, 3])
    def test_count_if_they_are_told_to(self, recorder: Recorder, send: Send, times: int) -> None:
        send.enqueue("ann")
        send.enqueue("bob")
        recorder.assert_enqueued(send, times=2)
        with pytest.raises(
            AssertionError, match=rf"expected {times} times a job send\(\), found 2"
        ):
            recorder.assert_enqueued(send, times=times)

    def test_say_what_should_not_have_been_enqueued(self, recorder: Recorder, send: Send) -> None:
        recorder.assert_not_enqueued(send)
        send.enqueue("ann")
        recorder.assert_not_enqueued(send, to="bob")
        recorder.assert_not_enqueued("Resize")
        with pytest.raises(AssertionError, match=r"expected no job send\(to='ann'\), found 1; enq"):
            recorder.assert_not_enqueued(send, to="ann")


class TestDrain:
    def test_leaves_what_was_enqueued_however_far_the_clock_is_turned(
        self, app: LiteJobs, send: Send
    ) -> None:
        with recording(app) as recorder:
            for _ in range(3):
                send.enqueue("a")
                recorder.drain()
                recorder.clock.turn(timedelta(days=365))
            recorder.assert_enqueued(send, times=3)

    def test_runs_what_is_due_now_and_counts_attempts(self, recorder: Recorder, send: Send) -> None:
        now, later = send.enqueue("now"), send.using(delay=60).enqueue("later")
        assert recorder.drain() == 1
        assert (now.refresh().state, later.refresh().state) == ("completed", "scheduled")
        recorder.clock.turn(60)
        assert recorder.drain() == 1
        assert later.refresh().state == "completed"

    def test_is_loud_when_a_job_fails(self, app: LiteJobs, recorder: Recorder) -> None:
        @app.define
        def divide(by: int) -> float:
            return 1 / by

        divide.enqueue(0)
        divide.enqueue(1)
        with pytest.raises(AssertionError) as raised:
            recorder.drain()
        printed = str(raised.value)
        assert printed.startswith("1 failed\n\njob 1, divide(by=0), attempt 1:\nTraceback")
        assert printed.endswith(
            "return 1 / by\n           ~~^~~~\nZeroDivisionError: division by zero"
        )
        assert [job.state for job in recorder.enqueued()] == ["retrying", "completed"]

    def test_keeps_failures_on_demand_each_once(self, app: LiteJobs, recorder: Recorder) -> None:
        @app.define(backoff=Constant(60), max_attempts=2)
        def broken() -> None:
            raise Fail("as planned") if recorder.clock.now > NEW_YEAR else ValueError("not yet")

        job = broken.enqueue()
        assert recorder.drain(errors="keep") == 1
        recorder.clock.turn(60)
        assert recorder.drain(errors="keep") == 1
        printed = [(job.id, failure.attempt, failure.message) for job, failure in recorder.failures]
        assert printed == [(job.id, 1, "not yet"), (job.id, 2, "as planned")]
        assert recorder.drain() == 0, "old failures are not reported again"

    def test_tells_the_same_failure_again_when_it_happens_again(
        self, app: LiteJobs, recorder: Recorder
    ) -> None:
        @app.define
        def broken() -> None:
            raise Fail("as planned")

        job = broken.enqueue()
        recorder.drain(errors="keep")
        app.retry(job.id)
        with pytest.raises(AssertionError, match="Fail: as planned"):
            recorder.drain()
        assert len(recorder.failures) == 2
        app.delete(job.id)
        broken.enqueue()
        with pytest.raises(AssertionError, match="Fail: as planned"):
            recorder.drain()
        assert len(recorder.failures) == 3

    def test_takes_a_nap_for_no_failure(self, app: LiteJobs, recorder: Recorder) -> None:
        @app.define
        def nap() -> None:
            raise Snooze(60)

        nap.enqueue()
        assert recorder.drain() == 1
        assert recorder.failures == []

    def test_refuses_another_way_with_errors(self, recorder: Recorder) -> None:
        way: Any = "ignore"
        with pytest.raises(OptionError, match="errors: expected 'raise' or 'keep', got 'ignore'"):
            recorder.drain(errors=way)

    def test_all_turns_the_clock_to_what_is_due_next(
        self, app: LiteJobs, recorder: Recorder
    ) -> None:
        seen = []

        @app.define(backoff=Constant(60))
        def note(context: Context, n: int) -> None:
            seen.append((n, (recorder.clock.now - NEW_YEAR).total_seconds()))
            if context.attempt < 3:
                raise Retry

        note.using(delay=7200).enqueue(1)
        note.enqueue(2)
        assert recorder.drain_all(errors="keep") == 6
        assert seen == [(2, 0), (2, 60), (2, 120), (1, 7200), (1, 7260), (1, 7320)]
        assert recorder.drain_all() == 0

    def test_all_leaves_what_nobody_here_can_run(self, recorder: Recorder, send: Send) -> None:
        job = send.using(node="elsewhere", delay=60).enqueue("ann")
        assert recorder.drain_all() == 0
        assert job.refresh().state == "pending"

    def test_all_is_loud_too(self, app: LiteJobs, recorder: Recorder) -> None:
        @app.define
        def broken() -> None:
            raise ValueError("no luck")

        broken.using(delay=60).enqueue()
        with pytest.raises(AssertionError, match="ValueError: no luck"):
            recorder.drain_all()
        assert len(recorder.failures) == 1

    def test_all_says_when_there_is_no_end_to_it(
        self, app: LiteJobs, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @app.define
        def poll() -> None:
            raise Snooze(timedelta(hours=1))

        monkeypatch.setattr(litejobs, "MAX_TURNS", 24)
        poll.enqueue()
        problem = (
            r"no end to it, after 24 turns of the clock to 2025-01-02 .*\n +1 +poll\(\) +sched"
        )
        with pytest.raises(AssertionError, match=problem):
            recorder.drain_all()


APP = """\
from litejobs import LiteJobs

jobs = LiteJobs("mails.db")
more = LiteJobs("more.db")


@jobs.define
def send(to: str) -> str:
    return to


@more.define
def count(n: int) -> int:
    return n
"""
TESTS = """\
from pathlib import Path

import pytest
from app import count, jobs, more, send


@pytest.mark.parametrize("n", range(6))
def test_one_queue(record_jobs, litejobs_clock, n):
    recorder = record_jobs(jobs)
    assert recorder is record_jobs(jobs)
    assert recorder.clock is litejobs_clock
    send.using(delay=60).enqueue(str(n))
    recorder.assert_enqueued(send, to=str(n), times=1)
    litejobs_clock.turn(60)
    assert recorder.drain() == 1


def test_several_queues(record_jobs, litejobs_clock):
    mails, others = record_jobs(jobs), record_jobs(more)
    send.enqueue("a")
    count.enqueue(1)
    assert [len(mails.enqueued()), len(others.enqueued())] == [1, 1]


def test_fails(record_jobs):
    recorder = record_jobs(jobs)
    send.enqueue("a")
    recorder.assert_not_enqueued(send)


def test_leaves_no_files():
    assert jobs.path == Path("mails.db").absolute() and not jobs.tested
    assert not list(Path().glob("*.db*"))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, with litejobs on the path, installed as pyproject.toml says."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "test_app.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def as_installed(project: Path) -> str:
    """A folder in which litejobs looks installed, with its entry points of today."""
    entries = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]
    about = project / "site" / "litejobs-0.dist-info"
    about.mkdir(parents=True)
    about.joinpath("METADATA").write_text("Name: litejobs\nVersion: 0\n")
    lines = [f"{name} = {place}" for name, place in entries["pytest11"].items()]
    about.joinpath("entry_points.txt").write_text("\n".join(["[pytest11]", *lines]))
    return str(about.parent)


def run_pytest(project: Path, *options: str, path: str = "") -> str:
    """The last line that pytest prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=project,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, str(PROJECT))))},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


class TestThePlugin:
    @pytest.mark.parametrize("options", [(), ("-n2",)], ids=["alone", "with xdist"])
    def test_gives_fixtures_to_whoever_installs_litejobs(
        self, project: Path, options: tuple[str, ...]
    ) -> None:
        printed = run_pytest(project, *options, path=as_installed(project))
        assert re.search(r"^1 failed, 8 passed in", printed, re.M), printed
        assert "AssertionError: expected no job send(), found 1; enqueued were:" in printed
        assert "  1  send(to='a')  pending" in printed
        assert "litejobs.py:" not in printed, "the test is at fault, and its lines are shown"

    def test_gives_them_to_a_conftest_where_the_file_was_copied(self, project: Path) -> None:
        (project / "conftest.py").write_text(
            "from litejobs import pytest_plugin\n\n"
            "litejobs_clock = pytest_plugin.litejobs_clock\n"
            "record_jobs = pytest_plugin.record_jobs\n"
        )
        printed = run_pytest(project, "-p", "no:litejobs")
        assert re.search(r"^1 failed, 8 passed in", printed, re.M), printed

    def test_describes_its_fixtures(self, project: Path) -> None:
        printed = run_pytest(project, "--fixtures", path=as_installed(project))
        assert re.search(
            r"^record_jobs -- .*\n    record_jobs\(jobs\) gives a LiteJobs a private", printed, re.M
        )
        assert re.search(r"^litejobs_clock -- .*\n    The clock of `record_jobs`", printed, re.M)

    def test_costs_a_program_no_pytest(self, tmp_path: Path) -> None:
        look = "import sys, litejobs; print({'pytest', '_pytest', 'tempfile'} & {*sys.modules})"
        done = subprocess.run(
            [sys.executable, "-c", look],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("set()\n", "")

    def test_is_the_only_name_that_is_made_on_demand(self) -> None:
        with pytest.raises(AttributeError, match="module 'litejobs' has no attribute 'pytestt'"):
            vars(litejobs)["__getattr__"]("pytestt")
        assert litejobs.pytest_plugin is litejobs.pytest_plugin
