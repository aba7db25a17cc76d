"""Events: what happens to jobs, nodes and queues, told to callbacks and to the log."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import NEW_YEAR, TurnedClock, write_by_hand
from programs import Programs, eventually, lines, trouble

from litejobs import (
    EVENT_KINDS,
    Cancel,
    Constant,
    Context,
    Definition,
    Duties,
    Event,
    EventKind,
    Events,
    Fail,
    LiteJobs,
    OptionError,
    Pool,
    Snooze,
    define,
)

PATIENT = 60.0
AT_ONCE = Constant(0)


@define(max_attempts=2, backoff=AT_ONCE)
def work(context: Context, outcome: str) -> int:
    """Ends in the way that its payload says."""
    match outcome:
        case "fail":
            raise Fail("no\nmore of it")
        case "cancel":
            raise Cancel("never mind")
        case "snooze":
            raise Snooze(3600)
        case "error":
            raise ValueError("broken")
        case "once" if context.attempt == 1:
            raise ValueError("broken")
        case "crash":
            os._exit(3)
        case "sleep":
            time.sleep(60)
    return 7


@define
def nothing() -> None: ...


DEFINITIONS: tuple[Definition[..., Any, Any], ...] = (work, nothing, trouble.nap)


def event(kind: EventKind = "completed", job: int = 1) -> Event:
    return Event(kind, NEW_YEAR, job=job, name="work")


class Received:
    """A callback that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, job: int) -> list[str]:
        return [event.kind for event in self.events if event.job == job]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiteJobs, Pool]]:
    """A node with one worker, for all tests: a worker takes longer to start than they do."""
    path = tmp_path_factory.mktemp("events") / "jobs.db"
    with LiteJobs(path, durability="fast") as jobs:
        jobs.register(*DEFINITIONS)
        with jobs.start(workers=1, grace=0.1, node="here") as pool:
            yield jobs, pool


@pytest.fixture
def node(at_work: tuple[LiteJobs, Pool], received: Received) -> LiteJobs:
    """Its queue, which tells all."""
    jobs, _ = at_work
    for definition in DEFINITIONS:
        definition.body.home = jobs  # Other tests have registered them with other queues.
    jobs.on()(received)
    return jobs


def run_all(jobs: LiteJobs) -> None:
    """Drains until nothing is due, however soon it is tried again."""
    while jobs.drain():
        pass


class TestListening:
    def test_to_kinds_that_there_are_not_is_refused(self, jobs: LiteJobs) -> None:
        wrong: Any = "fialed"
        with pytest.raises(OptionError, match="there is no 'fialed'; did you mean 'failed'"):
            jobs.on("failed", wrong)(print)

    def test_without_parentheses_is_told_so(self, jobs: LiteJobs) -> None:
        wrong: Any = print
        with pytest.raises(OptionError, match=r'write @jobs.on\("failed"\), or @jobs.on\(\)'):
            jobs.on(wrong)

    def test_is_not_for_coroutines_and_what_cannot_be_called(self, jobs: LiteJobs) -> None:
        async def late(event: Event) -> None: ...

        wrong: Any = "print"
        with pytest.raises(OptionError, match="expected a function, not async"):
            jobs.on()(late)
        with pytest.raises(OptionError, match="got 'print'"):
            jobs.on()(wrong)

    def test_gives_the_function_back(self, jobs: LiteJobs, received: Received) -> None:
        assert jobs.on("failed")(received) is received

    def test_by_kind_hears_only_those(self, jobs: LiteJobs) -> None:
        jobs.register(work)
        failed, two, every = Received(), Received(), Received()
        jobs.on("failed")(failed)
        jobs.on("failed", "retrying")(two)
        jobs.on()(every)
        work.enqueue("error")
        run_all(jobs)
        assert failed.kinds == ["failed"]
        assert two.kinds == ["retrying", "failed"]
        assert every.kinds == ["enqueued", "started", "retrying", "started", "failed"]


class TestInDrain:
    @pytest.mark.parametrize(
        ("outcome", "kinds"),
        [
            ("return", ["completed"]),
            ("fail", ["failed"]),
            ("cancel", ["cancelled"]),
            ("snooze", []),
            ("once", ["retrying", "started", "completed"]),
            ("error", ["retrying", "started", "failed"]),
        ],
    )
    def test_events_come_in_order(
        self, jobs: LiteJobs, received: Received, outcome: str, kinds: list[str]
    ) -> None:
        jobs.register(work)
        jobs.on()(received)
        work.enqueue(outcome)
        run_all(jobs)
        assert received.kinds == ["enqueued", "started", *kinds]

    def test_events_say_what_they_know(
        self, jobs: LiteJobs, received: Received, clock: TurnedClock
    ) -> None:
        jobs.register(work)
        jobs.on()(received)
        job = work.using(queue="slow").enqueue("fail")
        clock.turn(60)
        jobs.drain()
        enqueued, started, failed = received.events
        assert enqueued == Event("enqueued", NEW_YEAR, None, job.id, "work", "slow")
        at, pid = NEW_YEAR + timedelta(minutes=1), os.getpid()
        assert started.node is not None
        assert started == Event("started", at, started.node, job.id, "work", "slow", 1, pid)
        assert failed.took is not None
        assert timedelta(0) <= failed.took < timedelta(seconds=5)
        assert failed == Event(
            "failed", at, started.node, job.id, "work", "slow", 1, pid, failed.took, "Fail: no"
        )

    def test_they_are_told_at_once(self, jobs: LiteJobs) -> None:
        jobs.register(work)
        seen: list[tuple[str, str, int]] = []

        @jobs.on("started", "completed", "enqueued")
        def look(event: Event) -> None:
            assert event.job is not None
            state = jobs.get(event.job).state
            seen.append((event.kind, state, threading.get_ident()))

        work.enqueue("return")
        jobs.drain()
        here = threading.get_ident()
        assert seen[0][:2] == ("enqueued", "pending")
        assert seen[1:] == [("started", "running", here), ("completed", "completed", here)]

    def test_a_failing_callback_is_logged_and_harms_nothing(
        self, jobs: LiteJobs, received: Received, caplog: pytest.LogCaptureFixture
    ) -> None:
        @jobs.on("completed")
        def broken(event: Event) -> None:
            raise SystemExit(3)

        jobs.on("completed")(received)
        jobs.register(work)
        work.enqueue("return")
        assert jobs.drain() == 1
        assert received.kinds == ["completed"]
        [record] = [r for r in caplog.records if "the callback" in r.message]
        assert "broken" in record.message
        assert record.exc_info

    def test_nobody_who_listens_is_told_of_a_rollback(
        self, jobs: LiteJobs, received: Received
    ) -> None:
        """What goes through somebody's own connection may never be committed."""
        import apsw

        jobs.register(work)
        jobs.on()(received)
        jobs.count()
        connection = apsw.Connection(str(jobs.store.file.path))
        connection.execute("BEGIN IMMEDIATE")
        work.using(connection=connection).enqueue("return")
        connection.execute("ROLLBACK")
        connection.close()
        jobs.events.close()
        assert received.kinds == []


class TestOnANode:
    def test_all_that_happens_to_a_job_is_told_in_order(
        self, node: LiteJobs, received: Received
    ) -> None:
        expected = {
            "return": ["completed"],
            "fail": ["failed"],
            "cancel": ["cancelled"],
            "snooze": [],
            "once": ["retrying", "started", "completed"],
            "crash": ["crashed", "retrying", "started", "crashed", "failed"],
        }
        jobs = {outcome: work.enqueue(outcome) for outcome in expected}
        for outcome, job in jobs.items():
            if outcome != "snooze":
                job.wait(PATIENT)
        for outcome, kinds in expected.items():
            job = jobs[outcome]
            number = 2 + len(kinds)
            eventually(lambda job=job, number=number: len(received.of(job.id)) == number)  # type: ignore[misc]
            assert received.of(job.id) == ["enqueued", "started", *kinds]

    def test_events_say_what_they_know(self, node: LiteJobs, received: Received) -> None:
        job = work.enqueue("crash").wait(PATIENT)
        eventually(lambda: received.of(job.id)[-1:] == ["failed"])
        crashed = [event for event in received.events if event.kind == "crashed"]
        assert [(e.node, e.job, e.name, e.queue, e.attempt) for e in crashed] == [
            ("here", job.id, "work", "default", 1),
            ("here", job.id, "work", "default", 2),
        ]
        assert {e.error for e in crashed} == {"WorkerCrashed: its worker ended with exit code 3"}
        assert [e.worker for e in crashed] == [error.worker for error in job.errors]
        assert all(e.took is not None for e in crashed)

    def test_a_timeout_is_told_and_what_becomes_of_the_job(
        self, node: LiteJobs, received: Received
    ) -> None:
        job = work.using(timeout=0.1, max_attempts=1).enqueue("sleep").wait(PATIENT)
        eventually(lambda: received.of(job.id)[-1:] == ["failed"])
        assert received.of(job.id) == ["enqueued", "started", "timed_out", "failed"]

    def test_a_start_is_told_while_the_job_runs(self, node: LiteJobs, received: Received) -> None:
        job = work.enqueue("sleep")
        eventually(lambda: received.of(job.id) == ["enqueued", "started"], within=5.0)
        assert job.refresh().state == "running"
        node.cancel(job.id)
        job.wait(PATIENT)
        eventually(lambda: received.of(job.id) == ["enqueued", "started", "cancelled"])

    def test_what_is_told_is_in_the_file_by_then(self, node: LiteJobs) -> None:
        states: list[str] = []

        @node.on("completed")
        def look(event: Event) -> None:
            assert event.job is not None
            states.append(node.get(event.job).state)

        node.enqueue_many(nothing.bind() for _ in range(200))
        eventually(lambda: len(states) == 200)
        assert set(states) == {"completed"}

    def test_the_node_joins_and_leaves(self, tmp_path: Path, received: Received) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
            jobs.register(nothing)
            jobs.on("node_joined", "node_left")(received)
            with jobs.start(workers=1, node="here"):
                nothing.enqueue().wait(PATIENT)
            assert [(e.kind, e.node) for e in received.events] == [
                ("node_joined", "here"),
                ("node_left", "here"),
            ]

    def test_a_queue_is_paused_and_resumed_by_whomever(
        self, node: LiteJobs, received: Received
    ) -> None:
        nothing.enqueue().wait(PATIENT)
        other = LiteJobs(node.path, durability="fast")
        other.queue("mails").pause()
        eventually(lambda: "queue_paused" in received.kinds)
        other.queue("mails").resume()
        eventually(lambda: "queue_resumed" in received.kinds)
        reported = [
            (e.kind, e.queue, e.node) for e in received.events if e.kind.startswith("queue")
        ]
        assert reported == [("queue_paused", "mails", "here"), ("queue_resumed", "mails", "here")]
        other.close()

    def test_jobs_that_were_lost_with_their_node_are_told(
        self, jobs: LiteJobs, received: Received
    ) -> None:
        jobs.register(work)
        kept, given_up = work.enqueue("return"), work.enqueue("return")
        write_by_hand(
            jobs,
            "UPDATE litejobs_job SET state = 'running', attempt = 1, holder = 7, started_at = 0",
        )
        write_by_hand(jobs, "UPDATE litejobs_job SET lost = 4 WHERE id = ?", given_up.id)
        write_by_hand(
            jobs,
            "INSERT INTO litejobs_node (id, name, pid, port, workers, started_at)"
            " VALUES (7, 'gone', 77, 0, 1, 0)",
        )
        Path(jobs.store.file.presence_path(7)).touch()
        jobs.on("crashed", "failed")(received)
        Duties(jobs.store, 0, jobs.events, "here").do("rescue")
        jobs.events.close()
        assert (kept.refresh().state, given_up.refresh().state) == ("pending", "failed")
        reported = [(e.kind, e.job, e.node) for e in received.events]
        assert reported == [
            ("crashed", kept.id, "gone"),
            ("crashed", given_up.id, "gone"),
            ("failed", given_up.id, "gone"),
        ]

    def test_a_slow_callback_holds_up_no_job_and_leaving_only_for_its_grace(
        self, tmp_path: Path, received: Received
    ) -> None:
        release = threading.Event()
        jobs = LiteJobs(tmp_path / "jobs.db", durability="fast")
        jobs.register(nothing)

        @jobs.on("completed")
        def slow(event: Event) -> None:
            release.wait(PATIENT)
            received(event)

        with jobs.start(workers=1, grace=0):
            for job in jobs.enqueue_many(nothing.bind() for _ in range(100)):
                job.wait(PATIENT)
            assert received.events == []
            began = time.monotonic()
        assert time.monotonic() - began < 3.0
        release.set()
        eventually(lambda: len(received.events) == 100)
        jobs.close()


class TestASchedule:
    def test_that_fires_is_told_with_each_of_its_jobs(
        self, jobs: LiteJobs, received: Received, clock: TurnedClock
    ) -> None:
        jobs.register(nothing)
        jobs.every(timedelta(hours=1), name="hourly", misfire="all")(nothing)
        jobs.on("schedule_fired", "started")(received)
        jobs.drain()
        clock.turn(2 * 3600 + 1)
        jobs.drain()
        fired = [(e.kind, e.schedule, e.name, e.job) for e in received.events]
        assert fired[0] == ("schedule_fired", "hourly", "nothing", 1)
        assert [kind for kind, *_ in fired[:3]] == ["schedule_fired", "schedule_fired", "started"]

    def test_is_told_by_the_duty_that_fires_it(
        self, jobs: LiteJobs, received: Received, clock: TurnedClock
    ) -> None:
        jobs.register(nothing)
        jobs.every(timedelta(hours=1), name="hourly")(nothing)
        jobs.drain()
        jobs.on("schedule_fired")(received)
        clock.turn(3601)
        Duties(jobs.store, 0, jobs.events, "here").do("fire")
        jobs.events.close()
        [fired] = received.events
        assert (fired.schedule, fired.node, fired.at) == ("hourly", "here", clock.now)
        assert [job.id for job in jobs.find()] == [fired.job]


class TestWhoEnqueues:
    def test_tells_it_after_the_commit(self, jobs: LiteJobs, received: Received) -> None:
        jobs.register(work)
        states: list[str] = []

        @jobs.on("enqueued")
        def look(event: Event) -> None:
            assert event.job is not None
            states.append(jobs.get(event.job).state)

        jobs.on("enqueued")(received)
        one = work.enqueue("return")
        many = jobs.enqueue_many([work.bind("return"), work.using(delay=9, key="k").bind("x")])
        jobs.events.close()
        assert [e.job for e in received.events] == [one.id, *(job.id for job in many)]
        assert states == ["pending", "pending", "scheduled"]

    def test_does_not_tell_of_a_duplicate(self, jobs: LiteJobs, received: Received) -> None:
        from litejobs import Unique

        jobs.register(work)
        jobs.on("enqueued")(received)
        unique = work.using(unique=Unique())
        assert [unique.enqueue("return").duplicate for _ in range(2)] == [False, True]
        jobs.events.close()
        assert received.kinds == ["enqueued"]

    def test_has_its_callbacks_called_before_its_process_ends(
        self, programs: Programs, log: Path
    ) -> None:
        programs.write(main=PROGRAM)
        assert programs.run("main.py", log) == (0, "", "")
        assert lines(log) == ["enqueued 1", "enqueued 2", "enqueued 3"]

    def test_may_be_a_job_in_a_worker(self, programs: Programs, log: Path) -> None:
        programs.write(main=ENQUEUES_IN_A_WORKER)
        assert programs.run("main.py", log) == (0, "", "")
        parent, child = lines(log)
        assert parent.split()[:2] == ["enqueued", "1"]
        assert child.split()[:2] == ["enqueued", "2"]
        assert parent.split()[2] != child.split()[2], "both in the same process"


PROGRAM = """
import sys

from litejobs import LiteJobs
from programs.trouble import note

jobs = LiteJobs("jobs.db")


@jobs.on("enqueued")
def tell(event):
    note(sys.argv[1], f"{event.kind} {event.job}")


@jobs.define
def nothing() -> None: ...


if __name__ == "__main__":
    for _ in range(3):
        nothing.enqueue()
"""

ENQUEUES_IN_A_WORKER = """
import os
import sys

from litejobs import LiteJobs
from programs.trouble import note

jobs = LiteJobs("jobs.db")


@jobs.on("enqueued")
def tell(event):
    note(sys.argv[1], f"{event.kind} {event.job} {os.getpid()}")


@jobs.define
def child() -> None: ...


@jobs.define
def parent() -> None:
    child.enqueue()


if __name__ == "__main__":
    parent.enqueue()
    jobs.work(workers=1, until="empty")
"""


class TestTheLine:
    def test_has_an_end_and_what_is_dropped_is_counted(
        self, caplog: pytest.LogCaptureFixture, received: Received
    ) -> None:
        events, entered, release = Events(limit=5), threading.Event(), threading.Event()

        def slow(event: Event) -> None:
            entered.set()
            release.wait(PATIENT)
            received(event)

        events.listen([], slow)
        events.dispatch(event(job=0))
        assert entered.wait(PATIENT)
        for job in range(1, 21):
            events.dispatch(event(job=job))
        release.set()
        events.close(PATIENT)
        assert [e.job for e in received.events] == [0, 1, 2, 3, 4, 5]
        dropped = [r.message for r in caplog.records if "dropped" in r.message]
        assert dropped == [
            "1 events were dropped: the callbacks are too slow",
            "14 events were dropped: the callbacks are too slow",
        ]

    def test_goes_on_after_it_was_closed(self, received: Received) -> None:
        events = Events()
        events.listen(["completed"], received)
        for job in range(3):
            events.dispatch(event(job=job))
            events.close(PATIENT)
            assert [e.job for e in received.events] == list(range(job + 1))

    def test_has_no_thread_as_long_as_nobody_listens(self, jobs: LiteJobs) -> None:
        before = threading.active_count()
        jobs.register(nothing)
        nothing.enqueue()
        jobs.events.emit(event())
        assert threading.active_count() == before

    def test_can_be_closed_by_a_callback(self, received: Received) -> None:
        events = Events()

        def close(event: Event) -> None:
            events.close(PATIENT)
            received(event)

        events.listen([], close)
        began = time.monotonic()
        events.dispatch(event())
        eventually(lambda: received.events)
        assert time.monotonic() - began < PATIENT / 2

    @pytest.mark.posix
    def test_is_anothers_in_a_process_that_was_forked(self, received: Received) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("there are no forks here")
        events = Events()
        events.listen([], received)
        events.dispatch(event())
        events.close(PATIENT)
        events.dispatch(event())
        eventually(lambda: len(received.events) == 2)
        child = os.fork()
        if not child:
            try:
                events.dispatch(event())
                events.close(5.0)
            finally:
                os._exit(len(received.events))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3

    @pytest.mark.posix
    def test_does_not_wait_there_for_a_thread_of_the_parents(self, received: Received) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("there are no forks here")
        events = Events()
        events.listen([], received)
        held, done = threading.Event(), threading.Event()

        def tell_slowly() -> None:
            with events._lock:
                held.set()
                done.wait(PATIENT)

        thread = threading.Thread(target=tell_slowly)
        thread.start()
        held.wait(PATIENT)
        if not (child := os.fork()):
            signal.alarm(5)
            try:
                events.dispatch(event())
                events.close(5.0)
            finally:
                os._exit(len(received.events))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        done.set()
        thread.join()


class TestTheLog:
    @pytest.mark.parametrize(
        ("outcome", "logged"),
        [
            ("return", [("DEBUG", "job 1 (work) completed, attempt 1")]),
            ("fail", [("WARNING", "job 1 (work) failed, attempt 1")]),
            ("cancel", [("INFO", "job 1 (work) cancelled, attempt 1")]),
            (
                "once",
                [
                    ("INFO", "job 1 (work) retrying, attempt 1"),
                    ("DEBUG", "job 1 (work) started, attempt 2"),
                    ("DEBUG", "job 1 (work) completed, attempt 2"),
                ],
            ),
        ],
    )
    def test_has_a_line_for_each(
        self,
        jobs: LiteJobs,
        caplog: pytest.LogCaptureFixture,
        outcome: str,
        logged: list[tuple[str, str]],
    ) -> None:
        caplog.set_level(logging.DEBUG, "litejobs")
        jobs.register(work)
        work.enqueue(outcome)
        run_all(jobs)
        records = [(r.levelname, r.message) for r in caplog.records]
        assert records[:2] == [
            ("DEBUG", "job 1 (work) enqueued"),
            ("DEBUG", "job 1 (work) started, attempt 1"),
        ]
        assert len(records) == 2 + len(logged)
        for (level, message), (expected, beginning) in zip(records[2:], logged, strict=True):
            assert level == expected
            assert message.startswith(beginning)

    def test_says_of_a_node_what_happens_to_its_jobs(
        self, node: LiteJobs, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "litejobs")
        done, crashed = work.enqueue("return"), work.enqueue("crash")
        done.wait(PATIENT)
        crashed.wait(PATIENT)
        eventually(lambda: "failed" in caplog.text)
        about = [r for r in caplog.records if f"job {crashed.id} (work)" in r.message]
        assert [r.levelname for r in about] == ["WARNING", "INFO", "WARNING", "WARNING"]
        assert "failed, attempt 2, " in about[-1].message
        assert about[-1].message.endswith("WorkerCrashed: its worker ended with exit code 3")
        assert f"job {done.id} (work)" not in caplog.text

    def test_is_not_printed_by_a_drain_if_nobody_has_set_it_up(self, programs: Programs) -> None:
        programs.write(main=FAILS_IN_DRAIN)
        assert programs.run("main.py") == (0, "failed\n", "")

    def test_tells_of_slow_jobs_while_they_run_at_each_doubling(
        self,
        node: LiteJobs,
        at_work: tuple[LiteJobs, Pool],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        _, pool = at_work
        usual, pool._supervisor.slow_after = pool._supervisor.slow_after, 0.3
        job = trouble.nap.enqueue(60)
        eventually(lambda: caplog.text.count("has been running for") >= 2)
        assert job.refresh().state == "running"
        pool._supervisor.slow_after = usual
        node.cancel(job.id)
        job.wait(PATIENT)
        slow = [r for r in caplog.records if "has been running" in r.message]
        assert slow[0].message.startswith(f"job {job.id} (nap) has been running for ")
        times = [float(r.message.split()[-2]) for r in slow]
        assert all(later >= 2 * sooner for sooner, later in pairwise([0.15, *times])), times
        assert {r.levelname for r in slow} == {"WARNING"}


FAILS_IN_DRAIN = """
from litejobs import Fail, LiteJobs

jobs = LiteJobs("jobs.db")


@jobs.define
def fail() -> None:
    raise Fail("no")


job = fail.enqueue()
jobs.drain()
print(job.refresh().state)
"""


class TestAnEvent:
    @pytest.mark.parametrize("kind", EVENT_KINDS)
    def test_of_any_kind_reads_like_a_sentence(self, kind: EventKind) -> None:
        assert kind.replace("_", " ") in str(Event(kind, NEW_YEAR, node="here"))

    def test_of_a_schedule_names_it(self) -> None:
        fired = Event("schedule_fired", NEW_YEAR, job=3, name="report", schedule="nightly")
        assert str(fired) == "schedule nightly fired: job 3 (report)"

    def test_is_told_by_a_duty_in_one_call(self, jobs: LiteJobs, received: Received) -> None:
        jobs.on("schedule_fired")(received)
        duties = Duties(jobs.store, 1, jobs.events, "here")
        duties.emit("schedule_fired", job=3, name="report", schedule="nightly")
        duties.emit("enqueued", job=3)
        jobs.events.close()
        assert received.events == [
            Event("schedule_fired", NEW_YEAR, "here", 3, "report", schedule="nightly")
        ]
