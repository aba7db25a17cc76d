"""What a worker may use and how long it lives, and rules by exception."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TurnedClock, insert
from programs import Programs, alive, beside, eventually, lines

from litejobs import (
    Constant,
    Context,
    Fail,
    Job,
    LiteJobs,
    OptionError,
    Retry,
    Snooze,
    define,
    history,
    memory_of,
)

GRACE = 0.3
PATIENT = 60.0
NOW = Constant(0, jitter="none")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[LiteJobs]:
    """A queue whose jobs run in workers."""
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        jobs.register(*beside.DEFINITIONS)
        yield jobs


class TestMemory:
    def test_a_job_that_uses_too_much_is_killed_and_nothing_else_is_harmed(
        self, real: LiteJobs, log: Path
    ) -> None:
        events: list[tuple[str, int | None]] = []
        real.on()(lambda event: events.append((event.kind, event.job)))
        with real.start(workers=2, grace=GRACE):
            culprit = beside.devour.enqueue(str(log))
            modest = beside.eat_little.enqueue(0.5)
            assert culprit.wait(PATIENT).state == "failed"
            assert modest.wait(PATIENT).state == "completed"
        assert [(e.attempt, e.kind) for e in culprit.errors] == [(1, "memory"), (2, "memory")]
        assert "200,000,000 bytes" in culprit.errors[0].message
        assert [e.worker for e in culprit.errors] == list(map(int, lines(log)))
        assert (modest.refresh().attempt, modest.errors) == (1, ())
        kept = [event.kind for event, _ in history(culprit, culprit.errors)]
        assert kept == [kind for kind, job in events if job == culprit.id]

    def test_a_coroutine_that_uses_too_much_is_the_only_culprit(
        self, real: LiteJobs, log: Path
    ) -> None:
        with real.start(workers=1, grace=GRACE):
            neighbour = beside.rest_and_tell.using(max_attempts=1).enqueue(str(log), 1.5)
            eventually(lambda: lines(log))
            culprit = beside.devour_aside.enqueue()
            assert culprit.wait(PATIENT).state == "failed"
            assert neighbour.wait(PATIENT).state == "completed"
        assert [e.kind for e in culprit.errors] == ["memory"]
        assert (neighbour.errors, len(lines(log))) == ((), 2)

    def test_where_it_cannot_be_measured_the_node_does_not_start(
        self, real: LiteJobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setitem(sys.modules, "psutil", None)
        with pytest.raises(OptionError, match=r"max_memory.*litejobs\[memory\]"):
            real.work(workers=1)

    @pytest.mark.linux
    def test_what_it_measures_grows_with_what_is_used(self) -> None:
        before = memory_of(os.getpid())
        eaten = b"x" * 50_000_000
        assert 40_000_000 < memory_of(os.getpid()) - before < 60_000_000
        del eaten

    @pytest.mark.parametrize(
        ("given", "bytes"),
        [(1000, 1000), ("512MB", 512_000_000), ("2 GiB", 2 * 2**30), ("64kB", 64_000), ("5B", 5)],
    )
    def test_it_is_given_in_bytes_or_as_text(self, given: Any, bytes: int) -> None:
        made = define(max_memory=given, name="made")(lambda: None)
        assert made.options.max_memory == bytes

    @pytest.mark.parametrize("given", [0, -1, 1.5, True, "512", "-5MB", "1.5GB", "9" * 5000 + "B"])
    def test_what_is_no_size_is_refused(self, given: Any) -> None:
        with pytest.raises(OptionError, match="max_memory"):
            define(max_memory=given)


class TestReplacement:
    def test_a_worker_is_replaced_after_so_many_jobs(self, real: LiteJobs) -> None:
        pids = []
        with real.start(workers=1, jobs_per_worker=10, grace=GRACE) as pool:
            made = real.enqueue_many(beside.whoami.bind() for _ in range(35))
            pids = [job.result(PATIENT) for job in made]
            eventually(lambda: len(pool._supervisor.pool.workers) == 2)
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10, 10, 10, 5]
        assert not any(map(alive, pids))

    def test_coroutines_count_too(self, real: LiteJobs) -> None:
        with real.start(workers=1, jobs_per_worker=3, concurrency=2, grace=GRACE):
            made = real.enqueue_many(
                (beside.rest.bind(0.01), beside.whoami.bind())[n % 2] for n in range(8)
            )
            pids = [job.result(PATIENT) for job in made]
        assert sorted(pids.count(pid) for pid in {*pids}) == [2, 3, 3]

    def test_the_next_worker_stands_by(self, real: LiteJobs) -> None:
        with real.start(workers=1, jobs_per_worker=1, grace=GRACE) as pool:
            eventually(lambda: len(pool._supervisor.pool.workers) == 2)
            eventually(lambda: all(worker.ready for worker in pool._supervisor.pool.workers))
            first, second = (beside.eat_little.enqueue(0.05) for _ in range(2))
            assert first.result(PATIENT) != second.result(PATIENT)
            ended, began = first.refresh().finished_at, second.refresh().started_at
            assert ended is not None
            assert began is not None
            assert 0 <= (began - ended).total_seconds() < 0.1

    def test_it_works_for_threads_too(self, jobs: LiteJobs) -> None:
        @jobs.define
        def double(n: int) -> int:
            return 2 * n

        made = jobs.enqueue_many(double.bind(n) for n in range(20))
        jobs.work(threads=2, jobs_per_worker=3, until="empty")
        assert [job.refresh().result() for job in made] == [2 * n for n in range(20)]

    def test_less_than_one_is_refused(self, real: LiteJobs) -> None:
        with pytest.raises(OptionError, match="jobs_per_worker"):
            real.start(workers=1, jobs_per_worker=0)

    def test_the_command_line_has_it(self, real: LiteJobs, programs: Programs) -> None:
        programs.write(app='import programs.beside as b, litejobs\njobs = litejobs.LiteJobs("jobs.'
                           'db")\njobs.register(*b.DEFINITIONS)')  # fmt: skip
        made = real.enqueue_many(beside.whoami.bind() for _ in range(4))
        options = ("--workers", 1, "--jobs-per-worker", 2, "--concurrency", 3, "--until", "empty")
        assert programs.run("-m", "litejobs", "run", "app:jobs", *options)[0] == 0
        pids = [job.refresh().result() for job in made]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2]


class Unreachable(ConnectionError):
    """More special than what a rule names."""


class TestRules:
    def run(self, jobs: LiteJobs, error: BaseException, **rules: Any) -> Job[None]:
        """The job after an attempt that ended with this error."""

        @jobs.define(max_attempts=5, **rules)
        def work() -> None:
            raise error

        job = work.enqueue()
        jobs.drain()
        return job.refresh()

    @pytest.mark.parametrize(
        ("error", "state"),
        [
            (Unreachable(), "failed"),
            (ValueError(), "failed"),
            (KeyError(), "retrying"),
            (Retry(), "retrying"),
            (Snooze(5), "scheduled"),
        ],
    )
    def test_after_what_fail_on_names_it_is_not_tried_again(
        self, error: Exception, state: str, jobs: LiteJobs
    ) -> None:
        job = self.run(jobs, error, fail_on=(ConnectionError, ValueError))
        assert (job.state, job.attempt) == (state, 0 if state == "scheduled" else 1)

    @pytest.mark.parametrize(
        ("error", "state"),
        [
            (Unreachable(), "retrying"),
            (KeyError(), "failed"),
            (Fail("no"), "failed"),
            (Retry(), "retrying"),
            (Snooze(5), "scheduled"),
        ],
    )
    def test_it_is_tried_again_only_after_what_retry_on_names(
        self, error: Exception, state: str, jobs: LiteJobs
    ) -> None:
        assert self.run(jobs, error, retry_on=ConnectionError).state == state

    def test_fail_on_comes_first(self, jobs: LiteJobs) -> None:
        rules: Any = {"retry_on": ConnectionError, "fail_on": Unreachable}
        assert self.run(jobs, Unreachable(), **rules).state == "failed"

    @pytest.mark.parametrize(
        ("error", "seconds"), [(Unreachable(), 7), (OSError(), 70), (KeyError(), 700)]
    )
    def test_each_may_have_a_backoff_of_its_own(
        self, error: Exception, seconds: float, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        policies = {
            ConnectionError: Constant(7, jitter="none"),
            OSError: lambda attempt: 70.0,
            KeyError: None,
        }
        job = self.run(jobs, error, retry_on=policies, backoff=Constant(700, jitter="none"))
        assert (job.run_at - clock.now).total_seconds() == seconds

    def test_attempts_are_limited_all_the_same(self, jobs: LiteJobs) -> None:
        @jobs.define(max_attempts=2, retry_on={KeyError: NOW})
        def work() -> None:
            raise KeyError

        job = work.enqueue()
        assert jobs.drain() == 2
        assert job.refresh().state == "failed"

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("retry_on", "KeyError"),
            ("retry_on", (KeyError, 5)),
            ("retry_on", {KeyError: 5}),
            ("fail_on", int),
            ("fail_on", {"KeyError"}),
            ("on_failure", 5),
        ],
    )
    def test_what_is_no_rule_is_refused(self, option: str, value: Any) -> None:
        with pytest.raises(OptionError, match=option if value != {KeyError: 5} else "backoff"):
            define(**{option: value})

    @pytest.mark.parametrize("option", ["retry_on", "fail_on", "on_failure", "max_memory"])
    def test_one_job_cannot_have_its_own(self, option: str) -> None:
        with pytest.raises(OptionError, match=rf"{option}: belongs to the definition"):
            beside.whoami.using(**{option: None})  # type: ignore[arg-type]


class TestHook:
    def test_it_is_called_once_when_the_attempts_are_used_up(
        self, real: LiteJobs, log: Path
    ) -> None:
        with real.start(workers=1, grace=GRACE):
            for work in (beside.give_up, beside.give_up_aside):
                log.unlink(missing_ok=True)
                job = work.enqueue(str(log))
                assert job.wait(PATIENT).state == "failed"
                assert lines(log) == ["2 OSError no disk"]

    def test_its_own_failure_harms_nothing(self, real: LiteJobs, log: Path) -> None:
        with real.start(workers=1, grace=GRACE):
            job = beside.give_up_badly.enqueue(str(log))
            assert job.wait(PATIENT).state == "failed"
            assert (job.refresh().error, len(job.errors)) == ("OSError: no disk", 1)
            assert lines(log) == ["1 OSError no disk"]

    def test_it_is_not_called_for_what_the_worker_cannot_tell(
        self, real: LiteJobs, log: Path
    ) -> None:
        with real.start(workers=1, grace=GRACE):
            job = beside.rest_too_long.enqueue(str(log))
            assert job.wait(PATIENT).state == "failed"
        assert (lines(log), [e.kind for e in job.errors]) == ([], ["timeout"])

    def test_it_is_called_in_drain_but_not_for_a_payload_that_does_not_fit(
        self, jobs: LiteJobs
    ) -> None:
        called: list[tuple[int, str]] = []

        def hook(context: Context, error: BaseException) -> None:
            called.append((context.job.id, type(error).__name__))

        @jobs.define(on_failure=hook)
        def work(n: int) -> None:
            raise Fail("never")

        job = work.enqueue(1)
        worse = insert(jobs.store, "work", '{"n": "no number"}')
        jobs.drain()
        assert called == [(job.id, "Fail")]
        assert jobs.get(worse).state == "blocked"
