"""Async handlers: many at a time in one worker, and what befalls them there."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from programs import Programs, alive, beside, eventually, lines, misdeeds, never

from litejobs import (
    ASYNC_THREADS,
    FileError,
    Job,
    JobNotFoundError,
    LiteJobs,
    Moved,
    OptionError,
    PayloadError,
)

GRACE = 0.3
PATIENT = 60.0
FAR = 60.0
"""Seconds that no test waits for."""
MARGIN = 2.0
"""Seconds by which a busy machine may be late."""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LiteJobs]:
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        jobs.register(*beside.DEFINITIONS)
        yield jobs


def ended(*jobs: Job[Any]) -> list[tuple[str, int]]:
    """State and attempt of each job when it has ended."""
    return [(job.wait(PATIENT).state, job.refresh().attempt) for job in jobs]


class TestManyAtATime:
    def test_two_hundred_that_wait_take_little_longer_than_two_of_them(
        self, jobs: LiteJobs
    ) -> None:
        with jobs.start(workers=1, grace=GRACE):
            worker = beside.rest.enqueue(0).result(PATIENT)
            since = time.monotonic()
            waiting = jobs.enqueue_many(beside.rest.bind(0.2) for _ in range(200))
            assert {job.result(PATIENT) for job in waiting} == {worker}
            took = time.monotonic() - since
        print(f"200 times 0.2 s in {took:.3f} s")
        assert 0.4 <= took < 0.4 + MARGIN  # a hundred at a time; one by one it were 40

    def test_a_worker_has_no_more_at_a_time_than_it_may(self, jobs: LiteJobs, log: Path) -> None:
        with jobs.start(workers=1, concurrency=3, grace=0):
            jobs.enqueue_many(beside.rest_and_tell.bind(str(log), FAR) for _ in range(5))
            eventually(lambda: len(lines(log)) == 3)
            never(lambda: len(lines(log)) > 3, during=0.2)
            assert jobs.count(state="running") == 3

    def test_they_are_spread_over_the_workers(self, jobs: LiteJobs) -> None:
        with jobs.start(workers=2, concurrency=10, grace=GRACE) as pool:
            eventually(lambda: all(w.ready for w in pool._supervisor.pool.workers[1:]))
            eventually(lambda: len(pool._supervisor.pool.workers) == 2)
            eventually(lambda: all(w.ready for w in pool._supervisor.pool.workers))
            waiting = jobs.enqueue_many(beside.rest.bind(0.2) for _ in range(20))
            workers = [job.result(PATIENT) for job in waiting]
        assert sorted(map(workers.count, {*workers})) == [10, 10]

    def test_a_full_event_loop_keeps_no_plain_job_waiting(self, jobs: LiteJobs, log: Path) -> None:
        with jobs.start(workers=1, concurrency=2, grace=0):
            jobs.enqueue_many(
                beside.rest_and_tell.using(priority=9).bind(str(log), FAR) for _ in range(4)
            )
            eventually(lambda: len(lines(log)) == 2)
            assert ended(*jobs.enqueue_many(beside.compute.bind(1) for _ in range(50))) == (
                [("completed", 1)] * 50
            )
            assert jobs.count(state="pending") == 2

    def test_a_long_plain_job_keeps_no_coroutine_waiting(self, jobs: LiteJobs, log: Path) -> None:
        with jobs.start(workers=1, grace=0):
            plain = [beside.nap_and_tell.using(priority=9).enqueue(str(log), FAR) for _ in "12345"]
            eventually(lambda: lines(log))
            assert ended(*jobs.enqueue_many(beside.rest.bind(0) for _ in range(300))) == (
                [("completed", 1)] * 300
            )
            assert ended(beside.rest.enqueue(0)) == [("completed", 1)]
            states = sorted(job.refresh().state for job in plain)
            assert states[0] == "pending"

    def test_both_kinds_get_done_when_both_have_much_to_do(self, jobs: LiteJobs) -> None:
        mixed = jobs.enqueue_many(
            (beside.rest.bind(0.01), beside.compute.bind(1))[n % 2] for n in range(200)
        )
        jobs.work(workers=2, concurrency=20, until="empty")
        assert jobs.count(state="completed") == len(mixed)
        assert {job.refresh().attempt for job in mixed} == {1}

    @pytest.mark.parametrize("value", [0, True, 1.5, "many", 10_001])
    def test_a_concurrency_that_is_none_is_refused(self, value: int, jobs: LiteJobs) -> None:
        with pytest.raises(OptionError, match="concurrency"):
            jobs.start(workers=1, concurrency=value)


class TestOutcomes:
    def test_results_errors_and_outcomes_are_those_of_plain_handlers(self, jobs: LiteJobs) -> None:
        with jobs.start(workers=1, grace=GRACE):
            once = beside.fetch.using(max_attempts=1)
            fine, error, failed, left, snoozed = [once.enqueue(n) for n in (0, 1, 2, 3, 4)]
            assert fine.result(PATIENT) == {"n": 0, "attempt": 1}
            assert ended(error, failed, left) == [("failed", 1)] * 3
            assert [(e.kind, e.type) for e in error.errors] == [("exception", "KeyError")]
            assert "in fetch" in error.errors[0].traceback
            assert "litejobs.py" not in error.errors[0].traceback
            assert failed.refresh().error == "Fail: never"
            assert left.refresh().error == "SystemExit: bye"
            eventually(lambda: snoozed.refresh().state == "scheduled")
            assert snoozed.refresh().attempt == 0

    def test_payloads_and_results_that_fit_no_pipe_go_through_it(self, jobs: LiteJobs) -> None:
        texts = ["x" * 1_000_000, "y" * 100_000, "z"] * 4
        with jobs.start(workers=1, grace=GRACE):
            taken = [beside.take.enqueue(text) for text in texts]
            given = [beside.large.enqueue(len(text)) for text in texts]
            assert [job.result(PATIENT) for job in taken] == list(map(len, texts))
            assert [len(job.result(PATIENT)) for job in given] == list(map(len, texts))

    def test_what_a_handlers_own_task_raises_ends_no_other_job(self, jobs: LiteJobs) -> None:
        with jobs.start(workers=1, grace=GRACE):
            other = beside.rest.enqueue(0.2)
            assert ended(beside.stop_the_loop.enqueue()) == [("completed", 1)]
            assert ended(other, beside.rest.enqueue(0)) == [("completed", 1)] * 2

    def test_whoever_is_cancelled_by_another_before_it_began_is_given_back(
        self, jobs: LiteJobs
    ) -> None:
        """A task without a first turn runs nothing of what it was made for, and nobody said
        that it was over: its job was left running, and no time-out counted."""
        with jobs.start(workers=1, grace=GRACE):
            culprit = beside.cancel_whoever_comes.enqueue()
            eventually(lambda: culprit.refresh().state == "running")
            others = jobs.enqueue_many(beside.rest.bind(0) for _ in range(5))
            assert culprit.result(PATIENT) >= 1
            assert ended(*others) == [("completed", 1)] * 5
        assert [job.errors for job in others] == [()] * 5

    def test_an_error_that_does_what_it_likes_does_not_leave_its_job_running(
        self, jobs: LiteJobs
    ) -> None:
        jobs.register(misdeeds.fail_aside)
        work = misdeeds.fail_aside.using(max_attempts=1)
        with jobs.start(workers=1, grace=GRACE):
            bad = [work.enqueue("", what) for what in ("Deadly", "Classless", "Guarded")]
            assert ended(*bad) == [("failed", 1)] * 3
        assert {job.errors[0].kind for job in bad} == {"exception"}

    def test_a_process_that_one_forked_does_not_go_on_as_its_worker(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        jobs.register(misdeeds.come_back_twice_aside)
        with jobs.start(workers=1, grace=GRACE):
            assert misdeeds.come_back_twice_aside.enqueue(str(log)).result(PATIENT) == "parent"
            [child] = [int(line.split()[-1]) for line in lines(log)]
            eventually(lambda: not alive(child))


class TestTimeouts:
    def test_a_task_is_cancelled_at_its_deadline_and_can_clean_up(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        with jobs.start(workers=1, grace=FAR):
            innocent = beside.rest.enqueue(0.5)
            job = beside.clean_up.using(max_attempts=2).enqueue(str(log), FAR)
            assert ended(job, innocent) == [("failed", 2), ("completed", 1)]
        assert [(e.attempt, e.kind) for e in job.errors] == [(1, "timeout"), (2, "timeout")]
        assert "timeout of 0.3 s" in job.errors[0].message
        took = (job.errors[0].finished_at - job.errors[0].started_at).total_seconds()
        assert 0.3 <= took < 0.3 + MARGIN
        assert lines(log) == ["began", "cleaned up"] * 2

    def test_who_ignores_it_is_killed_and_the_others_run_again_for_nothing(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        with jobs.start(workers=1, grace=0.1):
            culprit = beside.ignore.using(max_attempts=1).enqueue()
            aside = beside.rest.enqueue(0.8)
            plain = beside.nap_and_tell.enqueue(str(log), 0.8)
            assert ended(culprit, aside, plain) == [
                ("failed", 1), ("completed", 1), ("completed", 1)
            ]  # fmt: skip
        assert [e.kind for e in culprit.errors] == ["timeout"]
        assert (aside.errors, plain.errors) == ((), ())
        assert len(lines(log)) == 2

    def test_a_plain_job_that_is_killed_costs_coroutines_no_attempt(self, jobs: LiteJobs) -> None:
        with jobs.start(workers=1, grace=0):
            aside = beside.rest.enqueue(0.6)
            plain = beside.compute.using(timeout=0.2, max_attempts=1).enqueue(FAR * 1000)
            assert ended(aside, plain) == [("completed", 1), ("failed", 1)]
        assert (aside.errors, [e.kind for e in plain.errors]) == ((), ["timeout"])

    def test_a_handler_that_blocks_the_loop_can_see_that_it_is_asked(self, jobs: LiteJobs) -> None:
        with jobs.start(workers=1, grace=FAR):
            job = beside.block_the_loop.using(max_attempts=1).enqueue()
            assert ended(job) == [("failed", 1)]
            assert [e.kind for e in job.errors] == ["timeout"]

    def test_the_deadline_is_known(self, jobs: LiteJobs) -> None:
        with jobs.start(workers=1, grace=GRACE):
            assert 20 < beside.seconds_left.enqueue().result(PATIENT) <= 30


class TestCrashes:
    def test_all_that_had_begun_may_be_the_culprit_and_lose_an_attempt(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        with jobs.start(workers=1, grace=GRACE):
            aside = beside.rest_and_tell.using(max_attempts=1).enqueue(str(log), FAR)
            plain = beside.nap_and_tell.using(max_attempts=1).enqueue(str(log), FAR)
            culprit = beside.leave_at_once.using(max_attempts=1).enqueue(str(log), 2)
            assert ended(aside, plain, culprit) == [("failed", 1)] * 3
            for job in (aside, plain, culprit):
                assert [e.kind for e in job.errors] == ["crash"]
                assert "exit code 3" in job.errors[0].message
            assert ended(beside.rest.enqueue(0)) == [("completed", 1)]

    @pytest.mark.posix
    def test_after_the_death_of_the_whole_node_they_run_again(
        self, jobs: LiteJobs, log: Path, programs: Programs
    ) -> None:
        node = programs.start("-m", "programs.node", jobs.path, "--module", "beside")
        waiting = [
            beside.rest_and_tell.using(max_attempts=1).enqueue(str(log), 1.0) for _ in range(5)
        ]
        eventually(lambda: len(lines(log)) == 5)
        node.send_signal(signal.SIGKILL)
        node.wait()
        with jobs.start(workers=1, grace=GRACE):
            assert ended(*waiting) == [("completed", 1)] * 5
        assert len(lines(log)) == 10
        assert [e.kind for e in waiting[0].errors] == ["lost"]


class TestCancelAndStop:
    def test_a_cancelled_job_has_its_task_cancelled_and_its_neighbours_go_on(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        with jobs.start(workers=1, grace=FAR):
            job = beside.clean_up.using(timeout=None).enqueue(str(log), FAR)
            neighbour = beside.rest.enqueue(0.3)
            eventually(lambda: lines(log))
            since = time.monotonic()
            assert jobs.cancel(job.id) == Moved(1)
            assert job.wait(PATIENT).state == "cancelled"
            assert time.monotonic() - since < MARGIN
            assert lines(log) == ["began", "cleaned up"]
            assert ended(neighbour) == [("completed", 1)]

    def test_at_a_stop_they_may_end_within_the_grace(self, jobs: LiteJobs, log: Path) -> None:
        with jobs.start(workers=1, grace=FAR):
            short = beside.clean_up.using(timeout=None).enqueue(str(log), 0.3)
            looking = beside.watch_itself.enqueue(str(log))
            eventually(lambda: len(lines(log)) == 2)
        assert short.refresh().result() == "ended"
        # It obeyed, and has more to do.
        assert (looking.refresh().state, looking.refresh().attempt) == ("pending", 0)

    def test_shortly_before_the_grace_is_over_they_are_cancelled_and_given_back(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        with jobs.start(workers=1, grace=1.0):
            job = beside.clean_up.using(timeout=None).enqueue(str(log), FAR)
            eventually(lambda: lines(log))
            since = time.monotonic()
        took = time.monotonic() - since
        assert 0.7 <= took < 0.75 + MARGIN
        assert lines(log) == ["began", "cleaned up"]
        assert (job.refresh().state, job.refresh().attempt, job.errors) == ("pending", 0, ())

    def test_one_that_breaks_off_when_it_is_cancelled_for_a_stop_is_given_back(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        with jobs.start(workers=1, grace=GRACE):
            job = beside.swallow.enqueue(str(log))
            eventually(lambda: lines(log))
        assert (job.refresh().state, job.refresh().attempt, job.errors) == ("pending", 0, ())

    def test_those_that_ignore_a_stop_are_killed_and_given_back(
        self, jobs: LiteJobs, log: Path
    ) -> None:
        with jobs.start(workers=1, grace=GRACE) as pool:
            job = beside.ignore.using(timeout=None, max_attempts=1).enqueue()
            eventually(lambda: job.refresh().state == "running")
            [worker] = [w.process.pid for w in pool._supervisor.pool.workers]
        assert (job.refresh().state, job.refresh().attempt, job.errors) == ("pending", 0, ())
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


class TestWithTheRest:
    def test_they_tell_of_their_start_and_how_far_they_have_come(self, jobs: LiteJobs) -> None:
        received: list[tuple[str, int]] = []
        jobs.on("started", "completed")(lambda event: received.append((event.kind, event.job or 0)))
        with jobs.start(workers=1, grace=0):
            long = beside.tell_how_far.enqueue(FAR)
            eventually(lambda: (progress := long.refresh().progress) and progress.note == "half")
            eventually(lambda: received == [("started", long.id)])
            short = beside.tell_how_far.enqueue(0)
            assert short.wait(PATIENT).state == "completed"
            progress = short.refresh().progress
            assert progress is not None
            assert progress.note == "whole"
            eventually(lambda: len(received) == 3)
            assert received[1:] == [("started", short.id), ("completed", short.id)]

    @pytest.mark.parametrize("where", ["workers", "threads"])
    def test_middleware_is_around_each_with_its_own_context(
        self, where: str, jobs: LiteJobs
    ) -> None:
        jobs.middleware.run(beside.leave_a_trail)
        one: Any = {where: 1}
        with jobs.start(**one):
            many = jobs.enqueue_many(beside.tell_how_far.bind(0.05) for _ in range(50))
            assert [job.result(PATIENT) for job in many] == [
                f"around job {job.id}" for job in many
            ]  # fmt: skip
            assert beside.compute.enqueue(0).result(PATIENT) > 0


class TestDrain:
    def test_it_may_be_called_where_an_event_loop_runs(self, jobs: LiteJobs) -> None:
        job, other = beside.fetch.enqueue(0), beside.fetch.enqueue(5)

        async def main() -> int:
            loop = asyncio.get_running_loop()
            attempts = jobs.drain()
            assert asyncio.get_running_loop() is loop
            return attempts

        assert asyncio.run(main()) == 2
        assert [job.refresh().state, other.refresh().state] == ["completed"] * 2
        assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


class TestFromCoroutines:
    def test_each_method_for_coroutines_does_what_its_twin_does(self, jobs: LiteJobs) -> None:
        async def main() -> None:
            job = await beside.fetch.using(priority=3).aenqueue(7)
            assert (job.payload, job.priority) == ({"n": 7}, 3)
            assert (await jobs.aget(job.id)) == jobs.get(job)
            other = await jobs.aenqueue(beside.fetch.bind(8), queue="q")
            more = await jobs.aenqueue_many(beside.fetch.bind(n) for n in (9, 10))
            assert await jobs.afind(name=beside.fetch, limit=3) == [*reversed(more), other]
            with jobs.start(threads=1, grace=GRACE):
                assert (await job).result() == {"n": 7, "attempt": 1}

        asyncio.run(main())

    def test_they_raise_what_their_twins_raise(self, jobs: LiteJobs) -> None:
        async def main(wrong: Any = "seven") -> None:
            with pytest.raises(PayloadError, match="expected int, got 'seven'"):
                await beside.fetch.aenqueue(wrong)
            with pytest.raises(JobNotFoundError):
                await jobs.aget(1000)
            with pytest.raises(OptionError, match="did you mean 'state'"):
                await jobs.afind(states="failed")  # type: ignore[call-arg]

        asyncio.run(main())

    def test_the_event_loop_goes_on_while_another_program_holds_the_write_lock(
        self, jobs: LiteJobs
    ) -> None:
        first = beside.fetch.enqueue(0)
        commits: list[int] = []

        def count() -> bool:
            commits.append(1)
            return False  # Lets the commit happen.

        async def main() -> list[Job[Any]]:
            other = apsw.Connection(str(jobs.path))
            other.execute("BEGIN IMMEDIATE")
            jobs.store.file.connection().set_commit_hook(count)
            waiting = [asyncio.create_task(beside.fetch.aenqueue(n)) for n in range(20)]
            reading = asyncio.create_task(jobs.aget(first))
            longest, since = 0.0, time.monotonic()
            turns = 0
            # One thread has the next commit for itself; the others share the one after it.
            while turns < 100 or len(jobs.store.group_commit._waiting) < ASYNC_THREADS - 1:
                await asyncio.sleep(0.002)
                turns += 1
                longest, since = max(longest, time.monotonic() - since), time.monotonic()
            assert not any(task.done() for task in waiting)
            print(f"the loop was late by {1000 * (longest - 0.002):.1f} ms at most")
            assert longest < 1.0
            other.execute("COMMIT")
            other.close()
            assert (await reading).id == first.id
            return await asyncio.gather(*waiting)

        added = asyncio.run(main())
        assert sorted(job.payload["n"] for job in added) == [*range(20)]
        print(f"{len(commits)} commits for 20 jobs")
        # Those enqueued later share one only if they come while another commit goes on.
        assert len(commits) <= 2 + 20 - ASYNC_THREADS

    def test_what_was_begun_is_in_the_file_though_its_task_was_cancelled(
        self, jobs: LiteJobs
    ) -> None:
        beside.fetch.enqueue(0)

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(beside.fetch.aenqueue(1), 0.05)
            never_awaited = [asyncio.create_task(beside.fetch.aenqueue(n)) for n in range(2, 40)]
            await asyncio.sleep(0)
            assert len(never_awaited) == 38

        other = apsw.Connection(str(jobs.path))
        other.execute("BEGIN IMMEDIATE")
        asyncio.run(main())
        other.execute("COMMIT")
        other.close()
        jobs.close()
        assert sorted(job.payload["n"] for job in jobs.iterate()) == [*range(40)]
        assert not [t for t in threading.enumerate() if t.name.startswith("litejobs_")]

    def test_a_connection_of_apsw_is_used_and_one_of_sqlite3_belongs_to_its_thread(
        self, jobs: LiteJobs
    ) -> None:
        beside.fetch.enqueue(0)
        jobs.close()

        async def main() -> None:
            standard = sqlite3.connect(jobs.path)
            with pytest.raises(FileError, match="same thread"):
                await beside.fetch.using(connection=standard).aenqueue(1)
            standard.close()
            own = apsw.Connection(str(jobs.path))
            own.execute("BEGIN IMMEDIATE")
            await beside.fetch.using(connection=own).aenqueue(2)
            own.execute("ROLLBACK")
            await beside.fetch.using(connection=own).aenqueue(3)
            own.close()

        asyncio.run(main())
        assert [job.payload["n"] for job in jobs.iterate()] == [3, 0]

    def test_a_handler_enqueues_from_the_event_loop_of_its_worker(self, jobs: LiteJobs) -> None:
        with jobs.start(workers=1, grace=GRACE):
            first = beside.enqueue_next.enqueue(3)
            eventually(lambda: jobs.count(name=beside.enqueue_next, state="completed") == 4)
            assert first.result(PATIENT) == first.id + 1

    def test_a_forked_child_has_threads_of_its_own(self, jobs: LiteJobs) -> None:
        assert asyncio.run(beside.fetch.aenqueue(0)).id == 1
        if not (pid := os.fork()):
            try:
                os._exit(asyncio.run(beside.fetch.aenqueue(1)).id)
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        assert asyncio.run(beside.fetch.aenqueue(2)).id == 3
