"""Waiting for nothing: what is logged, once, while a job that is waited for cannot run."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import Programs, eventually, trouble

import litejobs
from litejobs import Definition, Job, LiteJobs, WaitTimeoutError

PATIENT = 60.0
GRACE = 0.3
BRIEF = 0.2

Child = Definition[[], int, int]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warns after a tenth of the time."""
    monkeypatch.setattr(litejobs, "WARN_AFTER", BRIEF / 2)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LiteJobs]:
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        yield jobs


@pytest.fixture
def child(jobs: LiteJobs) -> Child:
    @jobs.define
    def child() -> int:
        return 1

    return child


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


Warnings = Callable[[], list[str]]


def held(child: Child) -> Job[int]:
    return child.enqueue().hold()


def in_a_paused_queue(child: Child) -> Job[int]:
    (job := child.using(queue="quiet").enqueue())._source.queue("quiet").pause()
    return job


class TestOutside:
    @pytest.mark.parametrize(
        ("enqueue", "why"),
        [
            (lambda child: child.enqueue(), "no node is at work"),
            (lambda child: child.using(delay=3600).enqueue(), r"it is due at 20.* UTC"),
            (held, "a person holds it, until it is released"),
            (in_a_paused_queue, "its queue 'quiet' is paused"),
        ],
    )
    def test_says_once_why_the_job_does_not_run(
        self, child: Child, warnings: Warnings, enqueue: Callable[[Child], Job[int]], why: str
    ) -> None:
        job = enqueue(child)
        with pytest.raises(WaitTimeoutError):
            job.result(timeout=3 * BRIEF)
        [said] = warnings()
        assert re.fullmatch(rf"waiting for job 1 \(child\): {why}", said)
        with pytest.raises(WaitTimeoutError):
            job.wait(timeout=BRIEF)
        assert warnings() == [said, said], "each wait says it once"

    def test_says_it_of_several_and_in_a_coroutine(
        self, jobs: LiteJobs, child: Child, warnings: Warnings
    ) -> None:
        several = [child.enqueue(), child.using(delay=3600).enqueue()]
        with pytest.raises(WaitTimeoutError):
            jobs.wait_all(several, BRIEF)
        assert re.match(r"waiting for job 2 \(child\) and 1 other: it is due", warnings()[0])

        async def wait() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(several[0], 3 * BRIEF)

        asyncio.run(wait())
        assert warnings()[1:] == ["waiting for job 1 (child): no node is at work"]

    def test_says_nothing_while_the_job_runs_or_only_waits_for_its_turn(
        self, jobs: LiteJobs, warnings: Warnings
    ) -> None:
        over = threading.Event()

        @jobs.define
        def wait() -> None:
            over.wait(PATIENT)

        with jobs.start(threads=1, grace=GRACE):
            both = [wait.enqueue(), wait.enqueue()]
            for job in both:
                with pytest.raises(WaitTimeoutError):
                    job.wait(BRIEF)
            over.set()
            jobs.wait_all(both, PATIENT)
        assert warnings() == []

    def test_says_that_the_node_which_ran_it_was_killed(
        self, jobs: LiteJobs, programs: Programs, warnings: Warnings
    ) -> None:
        jobs.register(trouble.nap)
        node = programs.node(jobs.path)
        job = trouble.nap.enqueue(PATIENT)
        eventually(lambda: job.refresh().state == "running")
        node.kill()
        node.wait()
        with pytest.raises(WaitTimeoutError):
            job.wait(3 * BRIEF)
        [said] = warnings()
        assert said.endswith(
            "the node that ran it has died, and the next one at work takes it over"
        )


class TestInside:
    """A handler that waits for a job which cannot run before it ends."""

    @pytest.mark.parametrize("threads", [1, 2])
    def test_names_both_jobs_where_no_worker_is_free(
        self, jobs: LiteJobs, child: Child, warnings: Warnings, threads: int
    ) -> None:
        together = threading.Barrier(threads, timeout=PATIENT)

        @jobs.define(max_attempts=1)
        def parent() -> str:
            together.wait()
            job = child.enqueue()
            with pytest.raises(WaitTimeoutError):
                job.result(timeout=5 * BRIEF)
            with LiteJobs(jobs.path) as shell:
                why = shell.why(job.id)
            together.wait()
            return why

        with jobs.start(threads=threads, grace=GRACE):
            parents = [parent.enqueue() for _ in range(threads)]
            whys = [job.result(PATIENT) for job in parents]
            jobs.wait_all(jobs.find(name="child"), PATIENT)
        share = "the only one" if threads == 1 else "one of them"
        text = (
            f"it is ready, but no worker is free: job 1 (parent), which waits for it, has {share}"
        )
        assert whys[0].startswith(text)
        assert any(w.startswith("waiting for job ") and text in w for w in warnings())
        assert len(warnings()) == threads

    def test_names_both_jobs_where_one_has_the_place_or_the_key_of_the_other(
        self, jobs: LiteJobs, child: Child, warnings: Warnings
    ) -> None:
        @jobs.define(max_attempts=1)
        def parent(key: str | None) -> None:
            with pytest.raises(WaitTimeoutError):
                child.using(queue="one", key=key).enqueue().result(timeout=5 * BRIEF)

        jobs.queue("one").set(concurrency=1)
        with jobs.start(threads=2, grace=GRACE):
            parent.using(queue="one").enqueue(None).result(PATIENT)
            parent.using(key="k").enqueue("k").result(PATIENT)
        assert warnings() == [
            "waiting for job 2 (child): its queue 'one' runs as many jobs at a time as it may:"
            " 1 of 1; job 1 (parent), which waits for it, is one of them",
            "waiting for job 4 (child): its key 'k' is held by job 3;"
            " job 3 (parent), which waits for it, is one of them",
        ]

    def test_says_it_in_a_drain_which_runs_one_job_at_a_time(
        self, jobs: LiteJobs, child: Child, warnings: Warnings
    ) -> None:
        @jobs.define(max_attempts=1)
        def parent() -> int:
            return child.enqueue().result(timeout=5 * BRIEF)

        parent.enqueue()
        jobs.drain()
        assert "job 1 (parent), which waits for it, has the only one" in warnings()[0]

    def test_says_nothing_where_another_worker_or_an_event_loop_is_free(
        self, jobs: LiteJobs, child: Child, warnings: Warnings
    ) -> None:
        @jobs.define
        async def parent() -> int:
            return (await child.using(delay=2 * BRIEF).enqueue()).result()

        with jobs.start(threads=1, grace=GRACE):
            assert parent.enqueue().result(PATIENT) == 1
        assert all("it is due at" in said for said in warnings())


class TestTheEnd:
    def test_of_a_node_says_which_jobs_are_left_and_why(
        self, jobs: LiteJobs, child: Child, warnings: Warnings
    ) -> None:
        with LiteJobs(jobs.path) as other:
            gone = other.define(name="gone")(lambda: None)
            other.enqueue_many([gone.bind(), gone.bind()])
        for choices in ({"delay": 3600}, {"delay": 7200}, {"node": "desk"}, {"queue": "other"}):
            child.using(**choices).enqueue()
        held(child)
        in_a_paused_queue(child)
        jobs.work(threads=1, queues=["default", "quiet"], until="empty")
        [said] = warnings()
        due = re.search(r"ends with nothing to do now, but jobs are left: (.*)", said)
        assert due
        assert {re.sub(r"due at .* UTC", "due at …", left) for left in due[1].split("; ")} == {
            "2 of 'gone', which this program does not define",
            "2 scheduled (the first is due at …)",
            "1 for other nodes",
            "1 in queue 'other', which the node does not serve",
            "1 held",
            "1 in queue 'quiet', which is paused",
        }

    def test_of_a_node_is_no_warning_if_jobs_just_have_to_become_due(
        self, jobs: LiteJobs, child: Child, caplog: pytest.LogCaptureFixture, warnings: Warnings
    ) -> None:
        caplog.set_level("INFO")
        child.enqueue()
        jobs.work(threads=1, until="empty")
        assert "jobs are left" not in caplog.text
        child.using(delay=3600).enqueue()
        jobs.work(threads=1, until="empty")
        assert "jobs are left: 1 scheduled (the first is due at 20" in caplog.text
        assert warnings() == []
