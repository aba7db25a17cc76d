"""What a definition has called after its jobs: on_success and on_end (on_failure is older)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TurnedClock
from programs import Programs, eventually, hooked, lines

from litejobs import (
    LOST_LIMIT,
    PREFETCH_JOBS,
    Cancel,
    Context,
    Fail,
    Failure,
    LiteJobs,
    OptionError,
    recording,
)

PATIENT = 60.0
GRACE = 0.3


@pytest.fixture
def real(tmp_path: Path) -> Iterator[LiteJobs]:
    """A queue whose jobs run in workers."""
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        jobs.register(*hooked.DEFINITIONS)
        yield jobs


class TestOnSuccess:
    def test_gets_what_the_handler_returned(self, jobs: LiteJobs) -> None:
        called: list[Any] = []

        def hook(context: Context, result: int) -> None:
            called.append((context.job.id, context.attempt, result))

        @jobs.define(on_success=hook)
        def double(n: int) -> int:
            if n < 0:
                raise Fail("negative")
            return 2 * n

        job = double.enqueue(21)
        double.enqueue(-1)
        assert jobs.drain() == 2
        assert called == [(job.id, 1, 42)]

    def test_is_not_called_for_a_result_that_does_not_fit(self, jobs: LiteJobs) -> None:
        called: list[Any] = []

        @jobs.define(max_attempts=1, on_success=lambda context, result: called.append(result))
        def double(n: int) -> int:
            return "no number"  # type: ignore[return-value]

        job = double.enqueue(21)
        jobs.drain()
        assert (called, job.refresh().state) == ([], "failed")

    def test_its_own_failure_is_logged_and_the_job_is_completed(
        self, jobs: LiteJobs, caplog: pytest.LogCaptureFixture
    ) -> None:
        def hook(context: Context, what: Any) -> None:
            raise RuntimeError("the hook is broken")

        @jobs.define(on_success=hook, on_end=hook)
        def double(n: int) -> int:
            return 2 * n

        job = double.enqueue(21)
        jobs.drain()
        assert (job.refresh().state, job.errors, job.result()) == ("completed", (), 42)
        logged = [record.message for record in caplog.records if record.levelname == "ERROR"]
        assert logged == [
            f"on_success failed for job {job.id} (double)",
            f"on_end failed for job {job.id} (double)",
        ]


class TestOnEnd:
    def test_gets_the_job_as_it_ended_and_its_last_failure(self, jobs: LiteJobs) -> None:
        called: list[tuple[str, dict[str, Any], Failure | None]] = []

        def hook(context: Context, failure: Failure | None) -> None:
            job = context.job
            assert (job.finished, job.refresh().state) == (True, job.state)
            called.append((job.state, job.payload, failure))

        @jobs.define(max_attempts=2, backoff=hooked.AT_ONCE, on_end=hook)
        def work(how: str) -> None:
            if how == "fail":
                raise OSError("no disk")
            if how == "cancel":
                raise Cancel

        for how in ("return", "fail", "cancel"):
            work.enqueue(how)
        assert jobs.drain() == 4
        called.sort(key=lambda each: each[0])
        assert [(state, payload["how"]) for state, payload, _ in called] == [
            ("cancelled", "cancel"), ("completed", "return"), ("failed", "fail"),
        ]  # fmt: skip
        [cancelled, completed, failed] = [failure for *_, failure in called]
        assert (completed, cancelled) == (None, None)
        assert failed is not None
        assert (failed.attempt, failed.kind, failed.message) == (2, "exception", "no disk")

    def test_is_called_each_time_a_job_ends(self, jobs: LiteJobs) -> None:
        called: list[Failure | None] = []

        @jobs.define(max_attempts=1, on_end=lambda context, failure: called.append(failure))
        def work() -> None:
            raise KeyError

        job = work.enqueue()
        jobs.drain()
        jobs.retry(job)
        jobs.drain()
        assert [failure and failure.type for failure in called] == ["KeyError", "KeyError"]

    def test_is_not_called_for_a_job_that_never_started(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        called: list[int] = []

        @jobs.define(on_end=lambda context, failure: called.append(context.job.id))
        def work() -> None:
            pass

        jobs.cancel(work.enqueue())
        work.using(expires=5).enqueue()
        clock.turn(10)
        jobs.drain()
        assert (called, jobs.count(state="cancelled")) == ([], 2)

    def test_may_enqueue_what_drain_then_runs(self, jobs: LiteJobs) -> None:
        @jobs.define
        def tidy(id: int) -> int:
            return id

        @jobs.define(on_end=lambda context, failure: tidy.enqueue(context.job.id))
        def work() -> None:
            pass

        with recording(jobs) as recorder:
            job = work.enqueue()
            recorder.drain()
            assert recorder.assert_enqueued(tidy, id=job.id)[0].state == "completed"

    @pytest.mark.parametrize("option", ["on_success", "on_end"])
    def test_belongs_to_the_definition(self, option: str, jobs: LiteJobs) -> None:
        with pytest.raises(OptionError, match=f"{option}: expected a function, got 5"):
            jobs.define(**{option: 5})  # type: ignore[call-overload]
        with pytest.raises(OptionError, match=f"{option}: belongs to the definition"):
            hooked.add.using(**{option: print})  # type: ignore[arg-type]


class TestInWorkers:
    @pytest.mark.parametrize("how", ["workers", "threads"])
    def test_both_are_called(self, how: str, real: LiteJobs, log: Path) -> None:
        options: Any = {how: 2, "until": "empty", "grace": GRACE}
        works: Any = hooked.fail, hooked.cancel, hooked.rest_too_long
        real.enqueue_many([work.bind(str(log)) for work in works])
        real.enqueue_many([hooked.add.bind(str(log), 1), hooked.add_async.bind(str(log), 1)])
        real.work(**options)
        assert sorted(lines(log)) == [
            "add completed None 1", "add_async completed None 1", "cancel cancelled None 1",
            "fail failed exception 2", "rest_too_long failed timeout 1", "success add 2",
            "success add_async 2",
        ]  # fmt: skip

    def test_the_end_is_told_whatever_became_of_the_worker(self, real: LiteJobs, log: Path) -> None:
        for definition in (hooked.nap_too_long, hooked.crash, hooked.devour):
            definition.enqueue(str(log))
        nap = hooked.nap.enqueue(str(log), 60)
        with real.start(workers=2, grace=GRACE):
            eventually(lambda: "nap" in lines(log))
            real.cancel(nap)
            eventually(lambda: len(lines(log)) == 5)
        assert sorted(lines(log)) == [
            "crash failed crash 2", "devour failed memory 1", "nap", "nap cancelled None 1",
            "nap_too_long failed timeout 1",
        ]  # fmt: skip

    def test_the_end_is_told_by_the_node_that_takes_over(
        self, real: LiteJobs, log: Path, programs: Programs
    ) -> None:
        job = hooked.nap.enqueue(str(log), 60)
        for times in range(1, LOST_LIMIT + 1):
            node = programs.node(real.path, "--module", "hooked")
            eventually(lambda times=times: len(lines(log)) == times)  # type: ignore[misc]
            node.kill()
            node.wait()
        with real.start(threads=1, grace=GRACE):
            eventually(lambda: lines(log)[-1] != "nap")
        assert lines(log)[LOST_LIMIT:] == [f"nap failed lost {job.refresh().attempt}"]

    def test_a_crash_in_it_does_nothing_to_the_job(
        self, real: LiteJobs, log: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        enqueued = [hooked.add_badly.enqueue(str(log), 1), hooked.add_slowly.enqueue(str(log), 1)]
        enqueued += [hooked.add.enqueue(str(log), n) for n in range(20)]
        real.work(workers=1, until="empty", grace=GRACE)
        for job in enqueued:
            job = job.refresh()
            assert (job.state, job.attempt, job.errors) == ("completed", 1, ())
        text = f"on_end of job {enqueued[0].id} (add_badly) did not end: its worker was killed by"
        assert f"{text} SIGKILL" in caplog.messages
        assert (
            f"on_end of job {enqueued[1].id} (add_slowly) did not end: timeout" in caplog.messages
        )
        logged = [line for line in lines(log) if line.startswith("add_")]
        assert sorted(logged) == ["add_badly completed None 1", "add_slowly completed None 1"]
        assert lines(log).count("add completed None 1") == 20

    @pytest.mark.parametrize("jobs_per_worker", [None, 1])
    def test_a_node_that_stops_calls_it_for_what_has_ended(
        self, jobs_per_worker: int | None, real: LiteJobs, log: Path
    ) -> None:
        with real.start(workers=1, jobs_per_worker=jobs_per_worker, grace=PATIENT):
            hooked.nap.enqueue(str(log), 0.1)
            eventually(lambda: lines(log))
        assert lines(log) == ["nap", "nap completed None 1"]

    @pytest.mark.parametrize("is_async", [False, True])
    def test_it_keeps_up_with_jobs_and_jobs_with_it(self, is_async: bool, tmp_path: Path) -> None:
        """While more jobs are ready than workers have room for."""
        events: list[int] = []
        jobs = LiteJobs(tmp_path / "many.db", durability="fast")

        def work(n: int) -> None:
            events.append(n)

        async def work_async(n: int) -> None:
            events.append(n)

        define = jobs.define(on_end=lambda context, failure: events.append(-1))
        definition: Any = define(work_async if is_async else work)
        jobs.enqueue_many(definition.bind(n) for n in range(1600))
        jobs.work(threads=1, concurrency=10, until="empty")
        assert len(events) == 3200
        waiting = [1 if event >= 0 else -1 for event in events]
        assert max(itertools.accumulate(waiting)) <= (20 if is_async else 4 * PREFETCH_JOBS)

    def test_it_is_no_attempt_and_no_event(
        self, real: LiteJobs, log: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "litejobs")
        job = hooked.add.enqueue(str(log), 1)
        real.work(threads=1, until="empty")
        assert job.refresh().attempt == 1
        logged = [text for text in caplog.messages if text.startswith(f"job {job.id} ")]
        assert [text.split(")")[1].split(",")[0] for text in logged] == [
            " enqueued", " started", " completed",
        ]  # fmt: skip
