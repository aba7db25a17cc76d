"""What a program holds: enqueueing, looking, waiting, steering, and running what is due."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import attrs
import pytest
from conftest import NEW_YEAR, TurnedClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import Programs

from litejobs import (
    PRUNE_BATCH,
    STATES,
    Bound,
    Choices,
    Codec,
    Context,
    Definition,
    DefinitionError,
    Fail,
    FileError,
    Job,
    JobFailedError,
    JobNotFoundError,
    LiteJobs,
    LitejobsError,
    Moved,
    OptionError,
    PayloadError,
    Retention,
    Retry,
    State,
    Unique,
    WaitTimeoutError,
    define,
    from_micros,
    to_micros,
)

HOSTILE_TEXTS = (
    "'; DROP TABLE litejobs_job; --",
    '" OR 1=1 --',
    "a' OR 'a'='a",
    "%",
    "_",
    ":name",
    "?1",
    "$.queue",
    "\\",
    "null",
    "ünï–cödé 🚀 漢字",
)
"""Texts that would do harm, or match too much, if they were ever a part of SQL."""


def square(n: int) -> int:
    return n * n


@pytest.fixture
def squared(jobs: LiteJobs) -> Definition[[int], int, int]:
    return jobs.define(square)


@attrs.frozen
class Letter:
    """A definition that is a class."""

    to: str
    queue: str | None = None
    priority: int | None = None

    def run(self) -> str:
        return f"to {self.to}"


@attrs.frozen
class Parcel:
    """A class that is not a definition."""

    to: str


class TestEnqueue:
    def test_gives_back_the_job_as_it_is_in_the_file(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job = squared.enqueue(3)
        assert job == jobs.get(1)
        assert (job.id, job.name, job.queue, job.state) == (1, "square", "default", "pending")
        assert (job.attempt, job.max_attempts, job.priority, job.node) == (0, 5, 0, None)
        assert job.enqueued_at == job.run_at == NEW_YEAR
        assert (job.started_at, job.finished_at, job.error) == (None, None, None)
        assert (job.payload, job.errors, job.finished, job.duplicate) == (
            {"n": 3},
            (),
            False,
            False,
        )
        assert repr(job) == "<Job 1 square pending>"

    def test_is_seen_by_others_at_once(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        squared.enqueue(3)
        with LiteJobs(jobs.path) as others:
            assert others.get(1).payload == {"n": 3}

    @pytest.mark.posix
    def test_survives_kill_9_once_it_has_returned(self, tmp_path: Path) -> None:
        program = """
            import os, signal
            from litejobs import LiteJobs
            jobs = LiteJobs("jobs.db")
            @jobs.define
            def square(n: int) -> int: return n * n
            for n in range(20):
                print(square.enqueue(n).id, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        printed = [int(line) for line in done.stdout.split()]
        assert printed == [*range(1, 21)]
        with LiteJobs(tmp_path / "jobs.db") as jobs:
            assert {job.id: job.payload for job in jobs.find()} == {
                n + 1: {"n": n} for n in range(20)
            }

    def test_never_uses_an_id_again(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        for _ in range(3):
            last = squared.enqueue(1).id
        jobs.delete(last)
        assert squared.enqueue(1).id == last + 1

    def test_keeps_every_choice(self, jobs: LiteJobs, squared: Definition[[int], int, int]) -> None:
        job = squared.using(
            queue="slow", priority=-(2**31), max_attempts=None, timeout=1.5, node="laptop", delay=60
        ).enqueue(1)
        job = jobs.get(job.id)
        assert (job.queue, job.priority, job.max_attempts) == ("slow", -(2**31), None)
        assert (job.timeout, job.node) == (timedelta(seconds=1.5), "laptop")
        assert job.state == "scheduled"
        assert job.run_at == NEW_YEAR + timedelta(seconds=60)

    @pytest.mark.parametrize(
        ("at", "state"),
        [
            (NEW_YEAR + timedelta(microseconds=1), "scheduled"),
            (NEW_YEAR, "pending"),
            (NEW_YEAR - timedelta(days=9999), "pending"),
            (datetime.max.replace(tzinfo=UTC), "scheduled"),
            (datetime.min.replace(tzinfo=UTC), "pending"),
            (datetime(2025, 1, 1, 2, tzinfo=UTC).astimezone(), "scheduled"),
        ],
    )
    def test_takes_any_moment_that_has_a_time_zone(
        self, at: datetime, state: State, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job = squared.using(at=at).enqueue(1)
        assert (job.run_at, job.state) == (at, state)
        assert jobs.find()[0] == job

    def test_refuses_a_time_without_a_zone(self, squared: Definition[[int], int, int]) -> None:
        with pytest.raises(OptionError, match=r"at: .* has no time zone: add one"):
            squared.using(at=datetime(2025, 1, 1))  # noqa: DTZ001

    def test_takes_an_instance_and_its_own_choices(self, jobs: LiteJobs) -> None:
        jobs.define(queue="letters", priority=1)(Letter)
        plain: Job[Any] = jobs.enqueue(Letter("Ada"))
        own: Job[Any] = jobs.enqueue(Letter("Ada", queue="express", priority=9))
        given: Job[Any] = jobs.enqueue(Letter("Ada", queue="express"), queue="slow")
        assert [(job.queue, job.priority) for job in (plain, own, given)] == [
            ("letters", 1),
            ("express", 9),
            ("slow", 1),
        ]
        assert jobs.drain() == 3
        assert own.result() == "to Ada"

    def test_takes_what_is_bound_and_further_choices(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        bound = squared.using(priority=3).bind(4)
        assert jobs.enqueue(bound).priority == 3
        assert jobs.enqueue(bound, priority=5, delay=1).priority == 5
        assert jobs.enqueue(bound).state == "pending", "the bound job is as it was"

    @pytest.mark.parametrize(
        ("work", "error", "problem"),
        [
            (Parcel("Ada"), DefinitionError, "'Parcel': no definition: decorate its class"),
            ("text", DefinitionError, "'text': not a job"),
            (None, DefinitionError, "'NoneType': no definition"),
            (Letter, DefinitionError, "'Letter': not a job"),
        ],
    )
    def test_refuses_what_is_no_job(
        self, work: object, error: type[Exception], problem: str, jobs: LiteJobs
    ) -> None:
        jobs.define(Letter)
        with pytest.raises(error, match=problem):
            jobs.enqueue(work)
        assert jobs.count() == 0

    def test_refuses_a_definition_without_its_arguments(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        with pytest.raises(DefinitionError, match="not a job yet: write"):
            jobs.enqueue(squared)

    def test_refuses_a_payload_that_does_not_fit(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        with pytest.raises(PayloadError, match=r"'square' does not fit: expected int, got '3'"):
            squared.enqueue("3")  # type: ignore[arg-type]
        with pytest.raises(PayloadError, match="missing 1 required positional argument: 'n'"):
            squared.enqueue()  # type: ignore[call-arg]
        assert jobs.count() == 0

    def test_refuses_a_payload_of_ten_megabytes_and_says_what_to_do(self, jobs: LiteJobs) -> None:
        keep = jobs.define(name="keep")(keep_text)
        with pytest.raises(PayloadError, match=r"10\.0 MiB, more than 4; put the data into a file"):
            keep.enqueue("x" * 10 * 2**20)
        assert jobs.count() == 0
        big = "x" * (4 * 2**20 - 20)
        assert keep.enqueue(big).refresh().payload == {"text": big}

    @pytest.mark.parametrize(
        "text",
        ["", "\0", "a\0b", "\ud800", "\udcff.txt", "\U0001f680", "e\u0301", "\x1b[31m", "\r\u2028"],
        ids=ascii,
    )
    def test_brings_every_text_to_the_handler_and_back(self, text: str, jobs: LiteJobs) -> None:
        keep = jobs.define(name="keep")(keep_text)
        job = keep.enqueue(text)
        assert jobs.get(job.id).payload == {"text": text}
        assert jobs.drain() == 1
        assert job.result() == text

    def test_of_a_definition_that_belongs_to_no_queue_says_so(self) -> None:
        with pytest.raises(DefinitionError, match=r"belongs to no queue yet: jobs\.register"):
            define(name="lonely")(square).enqueue(1)

    def test_goes_to_the_queue_that_the_definition_is_registered_with(self, jobs: LiteJobs) -> None:
        loose = define(name="loose")(square)
        jobs.register(loose)
        assert loose.enqueue(2) == jobs.get(1)

    def test_says_when_the_file_cannot_be_used(self, tmp_path: Path) -> None:
        jobs = LiteJobs(tmp_path)
        with pytest.raises(FileError, match="is a folder"):
            jobs.define(square).enqueue(2)


def keep_text(text: str) -> str:
    return text


class TestEnqueueMany:
    def test_keeps_the_order_and_counts_without_gaps(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        squared.enqueue(0)
        made = jobs.enqueue_many(squared.bind(n) for n in range(1000))
        assert [job.id for job in made] == list(range(2, 1002))
        assert [job.payload["n"] for job in made] == list(range(1000))
        assert jobs.find(limit=1000, before=1002) == made[::-1]

    def test_takes_definitions_and_instances_together(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        jobs.define(Letter)
        made = jobs.enqueue_many([squared.bind(2), Letter("Ada"), squared.using(delay=5).bind(3)])
        assert [(job.name, job.state) for job in made] == [
            ("square", "pending"),
            ("Letter", "pending"),
            ("square", "scheduled"),
        ]
        assert [job.run_at for job in made][:2] == [NEW_YEAR] * 2

    def test_of_nothing_is_nothing(self, jobs: LiteJobs) -> None:
        assert list(jobs.enqueue_many([])) == []
        assert not jobs.path.exists()

    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("bad", [Parcel("Ada"), Letter(5), "text", None])  # type: ignore[arg-type]
    def test_leaves_none_when_one_is_bad(
        self, bad: object, place: int, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        jobs.define(Letter)
        works: list[object] = [squared.bind(1), Letter("Ada")]
        works.insert(place, bad)
        with pytest.raises(LitejobsError):
            jobs.enqueue_many(works)
        assert jobs.count() == 0

    def test_leaves_none_when_the_file_refuses_one(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        jobs.store.file.connection().execute(
            "CREATE UNIQUE INDEX unlucky ON litejobs_job (priority) WHERE priority = 13"
        )
        unlucky = squared.using(priority=13)
        with pytest.raises(FileError, match="UNIQUE"):
            jobs.enqueue_many([squared.bind(1), unlucky.bind(2), unlucky.bind(3)])
        assert jobs.count() == 0
        assert squared.enqueue(1).id == 1

    def test_leaves_none_when_the_iterable_fails(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        def works() -> Iterator[Bound[int]]:
            yield squared.bind(1)
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            jobs.enqueue_many(works())
        assert jobs.count() == 0


class TestThreads:
    def test_share_one_queue(self, jobs: LiteJobs, squared: Definition[[int], int, int]) -> None:
        ids: list[int] = []
        problems: list[BaseException] = []

        def act(number: int) -> None:
            try:
                for n in range(50):
                    job = squared.enqueue(number * 50 + n)
                    assert jobs.get(job.id).payload == {"n": number * 50 + n}
                    ids.append(job.id)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=act, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert sorted(ids) == list(range(1, 401))
        assert {job.payload["n"] for job in jobs.find(limit=1000)} == set(range(400))

    def test_may_close_the_queue_while_others_use_it(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        done = threading.Event()
        closes = 0

        def close() -> None:
            nonlocal closes
            while not done.is_set():
                jobs.close()
                closes += 1

        thread = threading.Thread(target=close)
        thread.start()
        try:
            for n in range(100):
                squared.enqueue(n)
        finally:
            done.set()
            thread.join()
        assert jobs.count() == 100
        assert closes

    def test_drain_together_and_run_nothing_twice(self, jobs: LiteJobs) -> None:
        ran: list[int] = []
        note = jobs.define(_noting(ran))
        jobs.enqueue_many([note.bind(n) for n in range(60)])
        counts: list[int] = []
        threads = [threading.Thread(target=lambda: counts.append(jobs.drain())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ran) == list(range(60))
        assert sum(counts) == 60


def _noting(ran: list[int]) -> Callable[[int], None]:
    def note(n: int) -> None:
        ran.append(n)

    return note


class TestOpening:
    def test_again_finds_everything(self, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db") as jobs:
            job = jobs.define(square).using(delay=5).enqueue(3)
        with LiteJobs(tmp_path / "jobs.db") as again:
            assert again.get(job.id) == job
        assert again.get(job.id) == job, "a closed queue opens when it is used"

    def test_is_left_for_the_first_use(self, tmp_path: Path) -> None:
        jobs = LiteJobs(tmp_path / "no" / "such" / "jobs.db")
        jobs.define(square)
        with pytest.raises(FileError, match="does not exist: create it"):
            jobs.count()
        (tmp_path / "no" / "such").mkdir(parents=True)
        assert jobs.count() == 0

    def test_takes_a_text_as_path(self, tmp_path: Path) -> None:
        assert LiteJobs(str(tmp_path / "jobs.db")).count() == 0

    def test_refuses_a_durability_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="durability: expected 'full' or 'fast', got 'none'"):
            LiteJobs(tmp_path / "jobs.db", durability="none")  # type: ignore[arg-type]


class TestGet:
    @pytest.mark.parametrize("id", [1, 0, -1, 2**62, 2**63, 10**40])
    def test_of_no_job_says_so(self, id: int, jobs: LiteJobs) -> None:
        with pytest.raises(JobNotFoundError) as caught:
            jobs.get(id)
        assert caught.value.id == id
        assert str(caught.value) == (
            f"no job has the id {id}: it was deleted or pruned, or never existed"
        )
        assert isinstance(caught.value, LookupError)

    def test_shows_what_hands_have_written(self, jobs: LiteJobs) -> None:
        jobs.count()
        jobs.store.file.connection().execute(
            """INSERT INTO litejobs_job (name, queue, priority, payload, run_at, enqueued_at)
            VALUES ('a', 'q', 0, '{"n": [1, 2.5, null, "é"]}', 7, 8)"""
        )
        job = jobs.get(1)
        assert job.payload == {"n": [1, 2.5, None, "é"]}
        assert (job.run_at, job.enqueued_at) == (from_micros(7), from_micros(8))


@pytest.fixture
def mixed(jobs: LiteJobs) -> LiteJobs:
    """Six jobs of two definitions in two queues, in five states."""
    square_ = jobs.define(square)
    other = jobs.define(name="other", max_attempts=1, retention=Retention(failed=None))(fail)
    square_.enqueue(1)
    other.enqueue()
    jobs.drain()
    other.using(queue="slow").enqueue()
    square_.using(queue="slow", delay=60).enqueue(4)
    square_.enqueue(5)
    square_.enqueue(6)
    jobs.cancel(6)
    return jobs


def fail() -> None:
    raise Fail("as planned")


class TestFind:
    @pytest.mark.parametrize(
        ("filters", "ids"),
        [
            ({}, [6, 5, 4, 3, 2, 1]),
            ({"name": "square"}, [6, 5, 4, 1]),
            ({"queue": "slow"}, [4, 3]),
            ({"name": "square", "queue": "slow"}, [4]),
            ({"state": "pending"}, [5, 3]),
            ({"state": "failed"}, [2]),
            ({"state": ["cancelled"]}, [6]),
            ({"state": ["cancelled", "failed"]}, [6, 2]),
            ({"state": ("scheduled", "retrying")}, [4]),
            ({"state": STATES}, [6, 5, 4, 3, 2, 1]),
            ({"state": "running"}, []),
            ({"state": []}, []),
            ({"id": 3}, [3]),
            ({"id": [1, 5, 5, 99]}, [5, 1]),
            ({"id": []}, []),
            ({"id": [1, 2, 3], "state": "failed", "name": "other"}, [2]),
            ({"name": "no"}, []),
        ],
    )
    def test_gives_the_newest_first_and_counts_the_same(
        self, filters: Any, ids: list[int], mixed: LiteJobs
    ) -> None:
        assert [job.id for job in mixed.find(**filters)] == ids
        assert mixed.count(**filters) == len(ids)

    def test_turns_pages_that_hold_although_jobs_come_and_go(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        jobs.enqueue_many([squared.bind(n) for n in range(25)])
        seen: list[int] = []
        before = None
        while page := jobs.find(limit=10, before=before):
            seen += [job.id for job in page]
            before = page[-1].id
            squared.enqueue(0)
            jobs.delete(before)
        assert seen == list(range(25, 0, -1))

    def test_gives_a_hundred_unless_told_otherwise(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        jobs.enqueue_many([squared.bind(n) for n in range(120)])
        assert len(jobs.find()) == 100
        assert len(jobs.find(limit=0)) == 0
        assert len(jobs.find(limit=10**9)) == 120

    @pytest.mark.parametrize("act", ["find", "count", "cancel", "retry", "delete"])
    @pytest.mark.parametrize(
        ("filters", "problem"),
        [
            ({"status": "failed"}, "status: no such filter; did you mean 'state'?"),
            ({"colour": 1}, "colour: no such filter; there is enqueued_after, "),
            ({"state": "done"}, "state: there is no 'done'; there is blocked, cancelled"),
            ({"state": ["failed", "fail"]}, "state: there is no 'fail'; did you mean 'failed'"),
        ],
    )
    def test_refuses_a_filter_that_cannot_match(
        self, filters: Any, problem: str, act: str, jobs: LiteJobs
    ) -> None:
        with pytest.raises(OptionError) as caught:
            getattr(jobs, act)(**filters)
        assert str(caught.value).startswith(problem)

    @pytest.mark.parametrize("limit", [-1, 2**64, 1.5, None])
    def test_refuses_a_limit_that_is_none(self, limit: Any, jobs: LiteJobs) -> None:
        with pytest.raises(OptionError, match="limit"):
            jobs.find(limit=limit)

    @pytest.mark.parametrize("before", [2**63, -(2**70)])
    def test_takes_any_integer_as_a_cursor(
        self, before: int, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        squared.enqueue(1)
        assert len(jobs.find(before=before)) == (before > 0)

    @pytest.mark.parametrize("text", HOSTILE_TEXTS)
    def test_takes_every_text_as_nothing_but_text(self, text: str, jobs: LiteJobs) -> None:
        jobs.define(square).enqueue(1)
        named = jobs.define(name=text)(fail)
        job = named.using(queue=text, node=text).enqueue()
        for filters in ({"name": text}, {"queue": text}, {"name": text, "queue": text}):
            assert [found.id for found in jobs.find(**filters)] == [job.id]  # type: ignore[arg-type]
        assert jobs.stats() == {"default": {"pending": 1}, text: {"pending": 1}}
        assert (job.refresh().node, job.refresh().name) == (text, text)
        assert jobs.cancel(queue=text) == Moved(1)
        assert jobs.retry(name=text) == Moved(1)
        assert jobs.delete(name=text, queue=text) == Moved(1)
        assert [left.id for left in jobs.find()] == [1]

    @pytest.mark.parametrize(
        "text", ["\ud800", "\0", "x" * 10**6], ids=["surrogate", "nul", "long"]
    )
    def test_finds_nothing_by_what_can_be_no_name(self, text: str, mixed: LiteJobs) -> None:
        assert mixed.find(name=text) == mixed.find(queue=text) == []
        assert mixed.count(name=text) == mixed.count(queue=text) == 0
        assert mixed.cancel(name=text) == Moved(0)

    def test_counts_by_queue_and_state(self, mixed: LiteJobs) -> None:
        assert mixed.stats() == {
            "default": {"completed": 1, "failed": 1, "pending": 1, "cancelled": 1},
            "slow": {"pending": 1, "scheduled": 1},
        }

    @pytest.mark.parametrize("name", ["first", "last"])
    def test_counts_a_state_although_one_definition_has_no_job_in_it_any_more(
        self, jobs: LiteJobs, name: str
    ) -> None:
        for each in ("first", "last"):
            jobs.define(name=each)(lambda: None).using(delay=5).enqueue()
        jobs.delete(name=name)
        assert jobs.stats() == {"default": {"scheduled": 1}}


class TestSteering:
    @pytest.mark.parametrize(
        ("act", "moved", "ids"),
        [
            ("cancel", Moved(3, 3), [6, 5, 4, 3]),
            ("retry", Moved(2, 4), [6, 5, 3, 2]),
            ("delete", Moved(6, 0), []),
        ],
    )
    def test_says_how_many_were_changed_and_how_many_left(
        self, act: str, moved: Moved, ids: list[int], mixed: LiteJobs
    ) -> None:
        assert getattr(mixed, act)(state=STATES) == moved
        state = {"cancel": "cancelled", "retry": "pending", "delete": "pending"}[act]
        assert [job.id for job in mixed.find(state=state)] == ids  # type: ignore[arg-type]

    def test_by_ids_leaves_all_others(self, mixed: LiteJobs) -> None:
        assert mixed.cancel(5, 3, 99) == Moved(2, 0)
        assert mixed.cancel(1, 5) == Moved(0, 2)
        assert mixed.delete(1, 1, 2, id=[3]) == Moved(3)
        assert [job.id for job in mixed.find()] == [6, 5, 4]

    def test_by_ids_and_filters_means_both(self, mixed: LiteJobs) -> None:
        assert mixed.retry(1, 2, 6, state="failed") == Moved(1)
        assert [mixed.get(id).state for id in (1, 2, 6)] == ["completed", "pending", "cancelled"]

    @pytest.mark.parametrize("act", ["cancel", "retry", "delete"])
    def test_wants_to_be_told_which_jobs(self, act: str, mixed: LiteJobs) -> None:
        with pytest.raises(OptionError, match="id: say which jobs: ids, or filters"):
            getattr(mixed, act)()
        assert mixed.count() == 6

    @pytest.mark.parametrize("act", ["cancel", "retry", "delete"])
    @pytest.mark.parametrize("id", [99, 0, -5, 2**63, 10**30])
    def test_of_no_job_changes_none(self, id: int, act: str, mixed: LiteJobs) -> None:
        before = mixed.find()
        assert getattr(mixed, act)(id) == Moved(0, 0)
        assert mixed.find() == before

    def test_cancelling_says_why_the_job_ended(self, mixed: LiteJobs, clock: TurnedClock) -> None:
        clock.turn(7)
        mixed.cancel(5)
        job = mixed.get(5)
        assert (job.state, job.error) == ("cancelled", "cancelled")
        assert job.finished_at == NEW_YEAR + timedelta(seconds=7)

    def test_makes_a_job_that_waits_for_its_backoff_due_now(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        job = jobs.define(backoff=lambda attempt: 3600)(explode).enqueue()
        jobs.drain()
        assert job.refresh().state == "retrying"
        clock.turn(1)
        assert jobs.retry(job.id) == Moved(1)
        job = job.refresh()
        assert (job.state, job.attempt, job.run_at) == ("pending", 1, clock.now)
        assert jobs.drain() == 1

    def test_of_more_jobs_than_fit_into_one_transaction(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        jobs.enqueue_many([squared.bind(1)] * 10_001)
        assert jobs.cancel(name="square") == Moved(10_001)
        assert jobs.retry(state="cancelled") == Moved(10_001)
        assert jobs.delete(state=["pending"]) == Moved(10_001)

    def test_a_job_that_was_cancelled_while_it_ran_never_runs_again(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        def cancel_myself_and_fail(context: Context[Any]) -> None:
            assert jobs.cancel(context.job.id) == Moved(1)
            raise RuntimeError("and then it fails")

        job = jobs.define(cancel_myself_and_fail).enqueue()
        assert jobs.drain() == 1
        clock.turn(timedelta(hours=20))
        assert jobs.drain() == 0
        assert job.refresh().state == "cancelled"

    def test_a_job_that_runs_is_not_deleted(self, jobs: LiteJobs) -> None:
        def delete_myself(context: Context[Any]) -> None:
            assert jobs.delete(context.job.id) == Moved(0, 1)

        job = jobs.define(delete_myself).enqueue()
        jobs.drain()
        assert job.refresh().state == "completed"


def explode() -> None:
    raise ValueError("boom")


class TestArguments:
    def test_a_job_goes_wherever_its_id_goes(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job, other = squared.enqueue(2), squared.enqueue(3)
        assert [jobs.get(job), *jobs.find(id=job), *jobs.find(before=other)] == [job] * 3
        assert jobs.find(id=[other, job.id]) == [other, job]
        assert (jobs.why(job), jobs.errors(job)) == ("no node is at work", ())
        assert jobs.change(job, to={"priority": 7}) == Moved(1, 0)
        assert [jobs.hold(job), jobs.release(job)] == [Moved(1, 0)] * 2
        assert [jobs.cancel(job, other.id), jobs.retry(job.id, other)] == [Moved(2, 0)] * 2
        jobs.drain()
        assert jobs.result(job) == jobs.result(job.id) == jobs.wait(job).result() == 4
        assert jobs.wait_all([other.id, job]) == [other.refresh(), job.refresh()]
        assert jobs.delete(job, other.id) == Moved(2, 0)

    def test_a_definition_goes_wherever_its_name_goes(self, jobs: LiteJobs) -> None:
        @jobs.define
        @attrs.frozen
        class Letter:
            def run(self) -> None: ...

        @jobs.define
        def nightly() -> None: ...

        jobs.cron("@daily", nightly)
        letter, job = jobs.enqueue(Letter()), nightly.enqueue()
        assert jobs.find(name=nightly) == [job]
        assert [job.id for job in jobs.iterate(name=Letter)] == [letter.id]
        assert jobs.cancel(name=Letter) == Moved(1, 0)
        jobs.drain()
        assert jobs.metrics("day", name=nightly, limit=1)[0].completed == 1
        assert jobs.schedule(nightly).fire().schedule == "nightly"
        assert jobs.count(schedule=nightly) == 1

    @pytest.mark.parametrize("wrong", ["x", "12", [1, 2], None, True, 1.5])
    def test_what_is_no_job_is_refused(self, jobs: LiteJobs, wrong: Any) -> None:
        expected = r"^(id|before): expected a job or its id, got "
        for call in (jobs.get, jobs.wait, jobs.why, jobs.errors, jobs.result, jobs.cancel,
                     jobs.retry, jobs.delete, jobs.hold, jobs.release):  # fmt: skip
            with pytest.raises(OptionError, match=expected):
                call(wrong)
        with pytest.raises(OptionError, match=expected):
            jobs.find(id=[wrong])
        if wrong is not None:
            with pytest.raises(OptionError, match=expected):
                jobs.find(before=wrong)

    def test_what_is_no_name_is_refused(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        wrong: Any
        for wrong in (3, squared.bind(1), object):
            with pytest.raises(OptionError, match=r"^name: expected a name or a def"):
                jobs.find(name=wrong)
        wrong = 5
        with pytest.raises(OptionError, match=r"^state: there is no 5; "):
            jobs.find(state=wrong)


class TestHandles:
    """What can be done with a job that one holds."""

    def test_change_the_job_and_show_it_as_it_is_then(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job = squared.enqueue(3)
        assert job.hold() is job
        assert job.state == "paused"
        assert job.release().state == "pending"
        assert job.change(priority=4, payload={"n": 5}).payload == {"n": 5}
        assert job.cancel().state == job.cancel().state == "cancelled"
        assert (job.retry().state, job.priority) == ("pending", 4)
        jobs.drain()
        assert f"{job} {job.result()}" == "<Job 1 square pending> 25", "read from left to right"
        assert job == jobs.get(job.id)
        assert job.delete().state == "completed"
        with pytest.raises(JobNotFoundError):
            job.refresh()

    @pytest.mark.parametrize("verb", ["cancel", "retry", "hold", "release", "delete", "refresh"])
    def test_say_that_a_job_is_gone(
        self, jobs: LiteJobs, squared: Definition[[int], int, int], verb: str
    ) -> None:
        job = squared.enqueue(3)
        jobs.delete(job)
        with pytest.raises(JobNotFoundError, match="no job has the id 1"):
            getattr(job, verb)()

    def test_refuse_what_the_job_would_not_show(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        @jobs.define
        def delete_itself(context: Context) -> None:
            context.job.delete()

        job = squared.enqueue(3)
        with pytest.raises(OptionError, match="prio: cannot be changed; did you mean 'priority'"):
            job.change(prio=3)  # type: ignore[call-arg]
        with pytest.raises(PayloadError, match="expected int"):
            job.change(payload={"n": "three"})
        jobs.drain()
        with pytest.raises(OptionError, match="is completed: only waiting jobs can be changed"):
            job.change(priority=3)
        itself = delete_itself.using(max_attempts=1).enqueue()
        jobs.drain()
        with pytest.raises(JobFailedError, match="is running: cancel it before it is deleted"):
            itself.result()

    def test_a_job_that_was_waited_for_is_as_it_was_seen_last(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        unique = squared.using(unique=Unique())
        first, same = unique.enqueue(1), unique.enqueue(1)
        others = {squared.enqueue(n): n for n in range(3)}
        jobs.drain()
        assert same.wait() is same
        assert (same.state, same.duplicate, same == first.refresh()) == ("completed", True, False)
        assert {others[job]: job.result() for job in jobs.as_completed(others)} == {
            0: 0,
            1: 1,
            2: 4,
        }
        assert {job.state for job in others} == {"completed"}
        assert asyncio.run(_wait_for(other := squared.enqueue(4), jobs)) is other
        assert other.state == "completed"


async def _wait_for(job: Job[Any], jobs: LiteJobs) -> Job[Any]:
    await asyncio.to_thread(jobs.drain)
    return await job


class TestWaiting:
    def test_is_over_at_once_for_a_finished_job(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job = squared.enqueue(3)
        jobs.drain()
        assert job.wait(0).state == "completed"
        assert job.wait(0).result(0) == 9
        assert job.result(timeout=timedelta(0)) == 9
        assert job.state == "completed", "waiting refreshes the job"

    def test_ends_soon_after_the_job(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job = squared.enqueue(3)
        working = threading.Timer(0.05, jobs.drain)
        working.start()
        assert job.wait(30).result() == 9
        working.join()

    def test_gives_up_in_time(self, squared: Definition[[int], int, int]) -> None:
        job = squared.enqueue(3)
        began = time.monotonic()
        with pytest.raises(WaitTimeoutError) as caught:
            job.wait(0.05)
        assert 0.05 <= time.monotonic() - began < 5
        assert (caught.value.id, caught.value.state) == (1, "pending")
        assert str(caught.value) == (
            "job 1 is still pending: wait longer, or see that a node is working"
        )
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(WaitTimeoutError):
            job.result(0)

    @pytest.mark.parametrize("timeout", [-1, math.nan, "5", True, 10**12])
    def test_refuses_a_timeout_that_is_none(
        self, timeout: Any, squared: Definition[[int], int, int]
    ) -> None:
        with pytest.raises(OptionError, match="timeout"):
            squared.enqueue(3).wait(timeout)

    def test_says_when_the_job_is_gone(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job = squared.enqueue(3)
        jobs.delete(job.id)
        for ask in (job.wait, job.result, job.refresh):
            with pytest.raises(JobNotFoundError):
                ask()
        assert job.errors == ()

    @pytest.mark.parametrize(
        ("code", "state", "reason"),
        [
            (fail, "failed", "Fail: as planned"),
            (explode, "failed", "ValueError: boom"),
        ],
    )
    def test_says_why_there_is_no_result(
        self, code: Callable[[], None], state: State, reason: str, jobs: LiteJobs
    ) -> None:
        job = jobs.define(max_attempts=1)(code).enqueue()
        jobs.drain()
        with pytest.raises(JobFailedError) as caught:
            job.result(0)
        assert (caught.value.state, caught.value.reason) == (state, reason)
        assert str(caught.value) == (
            f"job 1 ({code.__name__}) is {state} and has no result: {reason}"
        )

    def test_says_that_a_cancelled_job_has_no_result(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        job = squared.enqueue(3)
        jobs.cancel(job.id)
        with pytest.raises(JobFailedError, match=r"job 1 \(square\) is cancelled and has no"):
            job.result(0)

    def test_gives_plain_values_where_the_definition_is_not_known(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        squared.enqueue(3)
        jobs.drain()
        with LiteJobs(jobs.path) as others:
            assert others.get(1).result() == 9

    def test_says_when_a_result_is_no_longer_of_its_type(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        squared.enqueue(3)
        jobs.drain()
        with LiteJobs(jobs.path) as today:
            today.define(name="square")(keep_text)
            with pytest.raises(LitejobsError, match=r"square.*expected str, got 9"):
                today.get(1).result()

    def test_of_several_coroutines_goes_on_together(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        async def main() -> list[int]:
            made = [squared.enqueue(n) for n in range(3)]
            loop = asyncio.get_running_loop()
            working = loop.run_in_executor(None, jobs.drain)
            done = await asyncio.wait_for(asyncio.gather(*made), 30)
            await working
            return [job.result() for job in done]

        assert asyncio.run(main()) == [0, 1, 4]

    def test_in_a_coroutine_can_be_given_up(self, squared: Definition[[int], int, int]) -> None:
        async def main() -> None:
            await asyncio.wait_for(wait(), 0.03)

        async def wait() -> Job[int]:
            return await squared.enqueue(1)

        with pytest.raises(TimeoutError):
            asyncio.run(main())

    def test_in_a_coroutine_says_when_the_job_is_gone(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        async def main() -> None:
            job = squared.enqueue(1)
            jobs.delete(job.id)
            await job

        with pytest.raises(JobNotFoundError):
            asyncio.run(main())


class TestDrain:
    def test_counts_the_attempts(
        self, jobs: LiteJobs, squared: Definition[[int], int, int], clock: TurnedClock
    ) -> None:
        assert jobs.drain() == 0
        squared.enqueue(1)
        squared.using(delay=10).enqueue(2)
        assert jobs.drain() == 1
        assert jobs.drain() == 0
        clock.turn(10)
        assert jobs.drain() == 1
        assert jobs.count(state="completed") == 2

    def test_runs_what_its_jobs_enqueue(self, jobs: LiteJobs) -> None:
        def count_down(n: int) -> None:
            if n:
                definition.enqueue(n - 1)

        definition = jobs.define(count_down)
        definition.enqueue(4)
        assert jobs.drain() == 5

    def test_limits_itself_to_queues(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        for queue in ("a", "b", "a"):
            squared.using(queue=queue).enqueue(1)
        assert jobs.drain(queues=["a"]) == 2
        assert jobs.drain(queues=[]) == 0
        assert jobs.drain(queues={"b", "c"}) == 1

    def test_refuses_one_text_for_several_queues(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        with pytest.raises(OptionError, match="queues: expected several names, got the text 'a'"):
            jobs.drain(queues="a")

    def test_leaves_jobs_of_other_nodes_and_of_other_programs(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        squared.using(node="there").enqueue(1)
        with LiteJobs(jobs.path) as others:
            others.define(keep_text).enqueue("x")
        assert jobs.drain() == 0
        assert jobs.count(state="pending") == 2

    def test_wants_definitions(self, jobs: LiteJobs) -> None:
        with pytest.raises(DefinitionError, match=r"there is nothing to run: use @jobs\.define"):
            jobs.drain()

    def test_is_followed_by_another_one_of_definitions_that_come_later(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        refused = []

        @jobs.define
        def define_more() -> None:
            with pytest.raises(DefinitionError, match="defined after work had started"):
                jobs.define(keep_text)
            refused.append(True)

        define_more.enqueue()
        assert (jobs.drain(), refused) == (1, [True])
        job = jobs.define(keep_text).enqueue("x")
        assert (jobs.drain(), job.refresh().state) == (1, "completed")

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("lone \ud800 surrogate"),
            ValueError("a\0b"),
            ValueError("\x1b[31m"),
            ValueError("x" * 10**6),
            OSError(2, "no such file", "\udcff.txt"),
            SystemExit(3),
            MemoryError(),
            RecursionError(),
            GeneratorExit(),
            asyncio.CancelledError(),
            Retry(reason="\udcff"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_survives_whatever_a_handler_raises(
        self, error: BaseException, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        def handler() -> None:
            raise error

        job = jobs.define(handler).enqueue()
        squared.enqueue(1)
        assert jobs.drain() == 2
        job = job.refresh()
        assert (job.state, len(job.errors)) == ("retrying", 1)
        assert job.error is not None
        assert job.error.startswith(f"{type(error).__name__}: ")
        assert len(job.error) < 3000

    def test_gives_the_job_back_when_it_is_interrupted(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        job = jobs.define(interrupt).enqueue()
        squared.enqueue(1)
        with pytest.raises(KeyboardInterrupt):
            jobs.drain()
        assert job.refresh().state == "retrying"
        assert jobs.nodes() == []
        assert jobs.drain() == 1

    @pytest.mark.parametrize("column", ["backoff", "retention"])
    @pytest.mark.parametrize("text", ["soon", "{}", "[]", "7", '{"kind": "Never"}', '"x"'])
    def test_goes_on_after_a_row_with_rules_that_make_no_sense(
        self, column: str, text: str, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        jobs.define(explode).enqueue()
        squared.using(priority=-1).enqueue(1)
        with contextlib.suppress(apsw.Error):  # the file may refuse it
            jobs.store.file.connection().execute(f"UPDATE litejobs_job SET {column} = ?", (text,))
        assert jobs.drain() == 2
        assert jobs.get(1).state in ("retrying", "failed")
        assert jobs.get(2).state == "completed"

    @pytest.mark.parametrize(
        "payload",
        [
            "{",
            "[]",
            "5",
            '{"n": "1"}',
            '{"n": 1, "m": 2}',
            "{}",
            '{"n": NaN}',
            '{"n": ' + "9" * 5000 + "}",
            "[" * 900 + "]" * 900,
            b"\xff",
            7,
            2.5,
        ],
        ids=lambda payload: ascii(payload)[:20],
    )
    def test_leaves_a_job_blocked_whose_payload_does_not_fit(
        self, payload: Any, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        squared.enqueue(1)
        squared.enqueue(2)
        jobs.store.file.connection().execute(
            "UPDATE litejobs_job SET payload = ? WHERE id = 1", (payload,)
        )
        assert jobs.drain() == 2
        job = jobs.get(1)
        assert job.state == "blocked"
        assert job.error is not None
        assert "the payload of 'square' does not fit" in job.error
        assert jobs.get(2).result() == 4

    def test_closes_the_state_that_its_jobs_used(self, tmp_path: Path) -> None:
        log: list[str] = []

        @contextlib.contextmanager
        def state() -> Iterator[str]:
            log.append("open")
            yield "the state"
            log.append("closed")

        def look(context: Context[str]) -> str:
            return context.state

        with LiteJobs(tmp_path / "jobs.db", state=state) as jobs:
            job = jobs.define(look).enqueue()
            assert jobs.drain() == 1
            assert job.result() == "the state"
        assert log == ["open", "closed"]

    def test_keeps_results_of_definitions_that_return_something(
        self, jobs: LiteJobs, squared: Definition[[int], int, int]
    ) -> None:
        async def later(text: str) -> dict[str, datetime]:
            await asyncio.sleep(0)
            return {text: NEW_YEAR}

        job = jobs.define(later).enqueue("new year")
        jobs.drain()
        assert job.result() == {"new year": NEW_YEAR}

    def test_takes_over_the_job_of_a_drain_whose_process_died(
        self, jobs: LiteJobs, programs: Programs
    ) -> None:
        programs.write(
            app="""
import os, sys
from litejobs import LiteJobs

jobs = LiteJobs(sys.argv[1])

@jobs.define
def crash() -> None:
    os._exit(3)

crash.enqueue()
jobs.drain()
"""
        )
        assert programs.run("app.py", jobs.path)[0] == 3
        assert jobs.get(1).state == "running"
        jobs.define(name="crash")(lambda: None)
        assert jobs.drain() == 1
        assert (jobs.get(1).state, [error.kind for error in jobs.errors(1)]) == (
            "completed",
            ["lost"],
        )

    def test_deletes_what_earlier_drains_have_run_when_its_retention_is_over(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        brief = jobs.define(name="brief", retention=Retention(completed=60))(lambda: None)
        jobs.enqueue_many(brief.bind() for _ in range(PRUNE_BATCH + 1))
        for _ in range(3):
            last = brief.enqueue()
            jobs.drain()
            assert last.refresh().state == "completed", "its own stay to be looked at"
            clock.turn(timedelta(days=1))
        assert jobs.count() == 1


printable = st.characters(exclude_categories=["C", "Z"], include_characters=" ")
names = st.text(printable, min_size=1, max_size=200)


class TestNames:
    @given(queue=names, node=names, name=names)
    @settings(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def test_of_any_printable_text_are_kept(
        self, jobs: LiteJobs, queue: str, node: str, name: str
    ) -> None:
        body = define(name=name)(square).using(queue=queue, node=node)
        job = jobs.enqueue(body.bind(1))
        assert jobs.get(job.id) == job
        assert (job.queue, job.node, job.name) == (queue, node, name)
        assert job in jobs.find(queue=queue, name=name)

    @pytest.mark.parametrize("option", ["queue", "node"])
    @pytest.mark.parametrize("value", ["", "a\n", "a\0", "\ud800", "x" * 201, 5, b"a", "\x1b[2J"])
    def test_that_could_do_harm_are_refused(
        self, option: str, value: Any, squared: Definition[[int], int, int]
    ) -> None:
        choices: Choices = {option: value}  # type: ignore[misc]
        with pytest.raises(OptionError, match=f"{option}: expected 1 to 200 printable characters"):
            squared.using(**choices)


class TestTime:
    @given(st.datetimes(timezones=st.just(UTC)))
    def test_is_kept_to_the_microsecond(self, moment: datetime) -> None:
        assert from_micros(to_micros(moment)) == moment

    def test_is_shown_in_utc(self, jobs: LiteJobs, squared: Definition[[int], int, int]) -> None:
        at = datetime.fromisoformat("2025-06-01T12:00:00.000001+02:00")
        job = squared.using(at=at).enqueue(1).refresh()
        assert job.run_at.isoformat() == "2025-06-01T10:00:00.000001+00:00"


def test_reads_back_what_json_can_say(jobs: LiteJobs) -> None:
    value = {"a": [1, -0.0, 1e300, True, None, {"": "ü"}]}
    job = jobs.define(name="any")(anything).enqueue(value)
    jobs.drain()
    assert json.dumps(job.result()) == json.dumps(value)
    assert Codec(Any).decode(jobs.get(job.id).stored_payload) == {"value": value}


def anything(value: Any) -> Any:
    return value


class TestSeveralAtOnce:
    def test_are_given_as_they_end(self, jobs: LiteJobs) -> None:
        @jobs.define
        def half(n: int) -> int:
            if n == 3:
                raise Fail("three")
            return n // 2

        enqueued = jobs.enqueue_many(half.bind(n) for n in range(5))
        jobs.drain()
        done = list(jobs.as_completed(enqueued))
        assert sorted(job.id for job in done) == [job.id for job in enqueued]
        assert {job.state for job in done} == {"completed", "failed"}

    def test_are_given_in_their_order_when_all_have_ended(self, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:

            @jobs.define
            def double(n: int) -> int:
                return 2 * n

            enqueued = jobs.enqueue_many(double.bind(n) for n in range(5))
            with jobs.start(threads=2):
                ended = jobs.wait_all(reversed(enqueued), timeout=20)
            assert [job.result() for job in ended] == [8, 6, 4, 2, 0]
            assert jobs.wait_all([]) == []

    def test_time_out_and_name_one_that_is_left(self, jobs: LiteJobs) -> None:
        job = jobs.define(name="never")(lambda: None).enqueue()
        with pytest.raises(WaitTimeoutError, match="job 1 is still pending"):
            jobs.wait_all([job], timeout=0.01)

    def test_miss_what_is_gone(self, jobs: LiteJobs) -> None:
        job = jobs.define(name="never")(lambda: None).enqueue()
        jobs.delete(job.id)
        with pytest.raises(JobNotFoundError):
            jobs.wait_all([job])

    def test_show_a_bar_on_a_terminal(
        self, jobs: LiteJobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = jobs.define(name="quick")(lambda: None).enqueue()
        jobs.drain()
        jobs.wait_all([job], bar=True)
        assert capsys.readouterr().err == "", "no terminal, no bar"
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        jobs.wait_all([job], bar=True)
        assert capsys.readouterr().err == f"\r[{'=' * 30}] 1/1 100%\n"

    def test_log_above_the_bar_on_a_terminal(
        self, jobs: LiteJobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        never = jobs.define(name="never")(lambda: None)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        handler = logging.StreamHandler(sys.stderr)
        logging.root.addHandler(handler)
        try:
            with pytest.raises(WaitTimeoutError):
                jobs.wait_all([never.enqueue(), never.enqueue()], timeout=0.01, bar=True)
            logging.warning("first")
            logging.warning("second")
        finally:
            logging.root.removeHandler(handler)
        shown = capsys.readouterr().err
        assert shown.endswith(f"0/2   0%\r{'':60}\rfirst\nsecond\n")
