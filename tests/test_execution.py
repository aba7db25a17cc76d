"""Execution: one attempt of one job, and what becomes of the job after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import marshal
import random
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import attrs
import pytest
from conftest import TurnedClock, write_by_hand
from hypothesis import given
from hypothesis import strategies as st
from programs import misdeeds

from litejobs import (
    Cancel,
    Claimed,
    Constant,
    Context,
    Definition,
    Executor,
    Fail,
    Failure,
    Job,
    JobFailedError,
    LiteJobs,
    LitejobsError,
    OptionError,
    Options,
    Registry,
    ResultError,
    Retry,
    Snooze,
    WaitTimeoutError,
    define,
    describe,
    report_of_error,
    store_backoff,
)

MICRO = timedelta(microseconds=1)


@attrs.frozen
class Point:
    x: int
    y: int


class Pair(NamedTuple):
    x: int
    y: int


@attrs.frozen
class Track:
    name: UUID
    points: list[Point]
    recorded: datetime


TRACK = Track(UUID(int=5), [Point(1, 2), Point(3, 4)], datetime(2025, 1, 1, tzinfo=UTC))


class Unspeakable(Exception):
    """An error that cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def run(jobs: LiteJobs, job: Job[Any]) -> Job[Any]:
    """The job after all that is due has run."""
    jobs.drain()
    return job.refresh()


def runs(jobs: LiteJobs, clock: TurnedClock, job: Job[Any], attempts: int) -> Job[Any]:
    """The job after it has become due and run so many times."""
    for _ in range(attempts):
        job = run(jobs, job)
        clock.turn(2 * 3600)
    return job


def raising(jobs: LiteJobs, error: BaseException, **choices: Any) -> Job[Any]:
    """A job of a handler that raises this."""

    def handler() -> None:
        raise error

    definition: Any = jobs.define(**{"name": "handler", **choices})(handler)
    job: Job[Any] = definition.enqueue()
    return job


def is_due_in(job: Job[Any], seconds: float, clock: TurnedClock) -> bool:
    return bool(job.run_at - clock.now == timedelta(seconds=seconds))


# Outcomes


def test_a_handler_that_returns_completes_its_job(jobs: LiteJobs, clock: TurnedClock) -> None:
    @jobs.define
    def work() -> int:
        return 5

    job = work.enqueue()
    clock.turn(30)
    done = run(jobs, job)
    assert (done.state, done.attempt, done.error, done.errors) == ("completed", 1, None, ())
    assert done.started_at == clock.now
    assert done.finished_at == clock.now
    assert done.finished


def test_a_handler_that_raises_has_failed_and_is_tried_again(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    job = run(jobs, raising(jobs, ValueError("no luck"), backoff=Constant(60)))
    assert (job.state, job.attempt, job.error) == ("retrying", 1, "ValueError: no luck")
    assert is_due_in(job, 60, clock)
    assert job.finished_at is None


def test_a_job_becomes_a_dead_letter_when_no_attempts_are_left(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    job = raising(jobs, ValueError("no luck"), max_attempts=3)
    assert runs(jobs, clock, job, 2).state == "retrying"
    dead = runs(jobs, clock, job, 1)
    assert (dead.state, dead.attempt) == ("failed", 3)
    assert dead.finished_at is not None
    assert runs(jobs, clock, job, 2).attempt == 3


def test_a_job_without_a_limit_is_tried_for_ever(jobs: LiteJobs, clock: TurnedClock) -> None:
    job = raising(jobs, ValueError(), max_attempts=None)
    tried = runs(jobs, clock, job, 30)
    assert (tried.state, tried.attempt) == ("retrying", 30)


def test_a_job_that_succeeds_in_the_end_is_completed_and_keeps_its_history(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define
    def work(context: Context) -> str:
        if context.attempt < 3:
            raise ConnectionError(f"attempt {context.attempt}")
        return "done"

    job = runs(jobs, clock, work.enqueue(), 3)
    assert (job.state, job.attempt, job.error) == ("completed", 3, None)
    assert job.result(timeout=0) == "done"
    assert [failure.message for failure in job.errors] == ["attempt 1", "attempt 2"]


def test_retry_picks_the_time(jobs: LiteJobs, clock: TurnedClock) -> None:
    job = run(jobs, raising(jobs, Retry(delay=1234, reason="rate limit")))
    assert (job.state, job.attempt, job.error) == ("retrying", 1, "Retry: rate limit")
    assert is_due_in(job, 1234, clock)
    assert len(job.errors) == 1


def test_retry_with_a_time_goes_past_the_limit_of_attempts(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    job = runs(jobs, clock, raising(jobs, Retry(delay=timedelta(hours=1)), max_attempts=1), 4)
    assert (job.state, job.attempt) == ("retrying", 4)


def test_retry_without_a_time_is_a_failure_like_any_other(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    job = raising(jobs, Retry(), max_attempts=2, backoff=Constant(70))
    waiting = run(jobs, job)
    assert waiting.state == "retrying"
    assert is_due_in(waiting, 70, clock)
    clock.turn(100)
    assert run(jobs, job).state == "failed"


def test_snooze_costs_no_attempt_and_is_no_failure(jobs: LiteJobs, clock: TurnedClock) -> None:
    seen: list[int] = []

    @jobs.define(max_attempts=1)
    def work(context: Context) -> None:
        seen.append(context.attempt)
        if len(seen) < 4:
            raise Snooze(600)

    job = work.enqueue()
    asleep = run(jobs, job)
    assert (asleep.state, asleep.attempt, asleep.errors) == ("scheduled", 0, ())
    assert is_due_in(asleep, 600, clock)
    assert asleep.finished_at is None
    clock.turn(700)
    awake = runs(jobs, clock, job, 3)
    assert (awake.state, awake.attempt, seen) == ("completed", 1, [1, 1, 1, 1])


def test_fail_ends_a_job_whatever_attempts_are_left(jobs: LiteJobs) -> None:
    job = run(jobs, raising(jobs, Fail("no such account"), max_attempts=None))
    assert (job.state, job.attempt, job.error) == ("failed", 1, "Fail: no such account")
    assert [failure.message for failure in job.errors] == ["no such account"]


def test_cancel_ends_a_job_without_a_failure(jobs: LiteJobs) -> None:
    job = run(jobs, raising(jobs, Cancel("not wanted any more")))
    assert (job.state, job.error) == ("cancelled", "Cancel: not wanted any more")
    assert job.errors == ()
    assert job.finished_at is not None


def test_outcomes_may_be_raised_without_their_arguments_where_they_have_defaults(
    jobs: LiteJobs,
) -> None:
    @jobs.define
    def again() -> None:
        raise Retry

    @jobs.define
    def never() -> None:
        raise Cancel

    first, second = again.enqueue(), never.enqueue()
    assert run(jobs, first).error == "Retry: the handler asked for a retry"
    assert run(jobs, second).state == "cancelled"


@pytest.mark.parametrize("delay", [-1, "60", True, float("nan")])
@pytest.mark.parametrize("outcome", [Retry, Snooze])
def test_an_outcome_with_a_wrong_delay_is_an_error_of_the_handler(outcome: Any, delay: Any) -> None:
    with pytest.raises(OptionError, match=r"^delay: "):
        outcome(delay)


def test_drain_gives_the_number_of_attempts(jobs: LiteJobs) -> None:
    @jobs.define
    def work(n: int) -> None:
        if n % 2:
            raise ValueError

    jobs.enqueue_many(work.bind(n) for n in range(10))
    assert jobs.drain() == 10
    assert jobs.drain() == 0
    assert (jobs.count(state="completed"), jobs.count(state="retrying")) == (5, 5)


def test_a_job_is_left_alone_until_it_is_due(jobs: LiteJobs, clock: TurnedClock) -> None:
    @jobs.define
    def work() -> None: ...

    job = work.using(delay=60).enqueue()
    clock.turn(59.999999)
    assert jobs.drain() == 0
    clock.turn(0.000001)
    assert jobs.drain() == 1
    assert job.refresh().state == "completed"


@pytest.mark.parametrize("outcome", [Retry(delay=60), Snooze(60), ValueError()])
def test_a_job_is_due_again_once_the_clock_was_turned_by_its_delay(
    jobs: LiteJobs, clock: TurnedClock, outcome: Exception
) -> None:
    raising(jobs, outcome, backoff=Constant(60))
    assert jobs.drain() == 1
    clock.turn(59)
    assert jobs.drain() == 0
    clock.turn(1)
    assert jobs.drain() == 1


def test_jobs_of_other_programs_are_left_for_them(jobs: LiteJobs) -> None:
    @jobs.define
    def ours() -> None: ...

    @define
    def theirs() -> None: ...

    left = jobs.enqueue(theirs.bind())
    done = ours.enqueue()
    assert jobs.drain() == 1
    assert (left.refresh().state, left.refresh().attempt) == ("pending", 0)
    assert done.refresh().state == "completed"


# The order of precedence


errors = st.one_of(
    st.just(ValueError("x")),
    st.builds(Retry, st.none() | st.floats(0, 10**6)),
    st.builds(Snooze, st.floats(0, 10**6)),
    st.builds(Fail, st.text()),
    st.builds(Cancel, st.text()),
    st.sampled_from([SystemExit(1), KeyboardInterrupt(), MemoryError(), asyncio.CancelledError()]),
)


@given(errors, st.integers(1, 10), st.none() | st.integers(1, 10))
def test_for_good_goes_before_the_handlers_own_time_before_the_limit_before_the_backoff(
    error: BaseException, attempt: int, max_attempts: int | None
) -> None:
    report = report_of_error(
        error, claimed(attempt, max_attempts), Options(backoff=Constant(8)), random.Random()
    )
    own = error.delay if isinstance(error, Retry | Snooze) else None
    expected: tuple[str, timedelta | None, bool]
    if isinstance(error, Fail):
        expected = ("failed", None, True)
    elif isinstance(error, Cancel):
        expected = ("cancelled", None, True)
    elif own is not None:
        snoozed = isinstance(error, Snooze)
        expected = ("scheduled" if snoozed else "retrying", own, not snoozed)
    elif max_attempts is not None and attempt >= max_attempts:
        expected = ("failed", None, True)
    else:
        expected = ("retrying", timedelta(seconds=7), True)
    state, delay, counted = expected
    assert (report.state, report.counted) == (state, counted)
    if delay is not None:
        assert report.delay == delay // MICRO


def claimed(attempt: int = 1, max_attempts: int | None = 5) -> Claimed:
    """An attempt of a job that was enqueued with a backoff of seven seconds."""
    backoff = store_backoff(Constant(7))
    return Claimed(1, 1, "work", "default", 0, attempt, max_attempts, None, backoff, "{}", 0, 0)


# History


def test_every_failed_attempt_is_kept_with_its_number_and_times(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    started: list[datetime] = []

    @jobs.define(max_attempts=3)
    def work() -> None:
        started.append(clock.now)
        raise KeyError(len(started))

    job = runs(jobs, clock, work.enqueue(), 3)
    assert [failure.attempt for failure in job.errors] == [1, 2, 3]
    assert [failure.started_at for failure in job.errors] == started
    assert [failure.finished_at for failure in job.errors] == started
    assert {(f.kind, f.type) for f in job.errors} == {("exception", "KeyError")}
    assert [failure.message for failure in job.errors] == ["1", "2", "3"]


def test_history_stays_when_a_dead_letter_starts_again(jobs: LiteJobs, clock: TurnedClock) -> None:
    job = run(jobs, raising(jobs, ValueError("first"), max_attempts=1))
    assert jobs.retry(job.id).moved == 1
    assert job.refresh().attempt == 0
    assert [failure.attempt for failure in run(jobs, job).errors] == [1, 1]


def only_failure(jobs: LiteJobs, job: Job[Any]) -> Failure:
    [failure] = run(jobs, job).errors
    return failure


def test_a_traceback_begins_in_the_handler_and_not_in_litejobs(jobs: LiteJobs) -> None:
    @jobs.define
    def outer() -> None:
        inner()

    def inner() -> None:
        raise ValueError("deep")

    text = only_failure(jobs, outer.enqueue()).traceback
    assert text.startswith("Traceback (most recent call last):\n")
    assert re.findall(r"in (\w+)$", text, re.MULTILINE) == ["outer", "inner"]
    assert text.endswith("ValueError: deep\n")
    assert "litejobs.py" not in text


def test_a_traceback_of_a_class_or_an_async_handler_leaves_litejobs_out_too(
    jobs: LiteJobs,
) -> None:
    @jobs.define
    @attrs.frozen
    class Work:
        def run(self) -> None:
            raise ValueError("deep")

    @jobs.define
    async def later() -> None:
        await asyncio.sleep(0)
        raise ValueError("deep")

    for job in (jobs.enqueue(Work()), later.enqueue()):
        text = only_failure(jobs, job).traceback
        assert "litejobs.py" not in text
        assert text.endswith("ValueError: deep\n")
        assert __file__ in text


def test_a_traceback_tells_what_the_error_came_from(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None:
        try:
            {"lock": 1}["key"]
        except KeyError as error:
            raise ValueError("no such setting") from error

    text = only_failure(jobs, work.enqueue()).traceback
    assert text.index("KeyError: 'key'") < text.index("direct cause") < text.index("ValueError")
    assert "litejobs.py" not in text


def test_messages_and_tracebacks_are_bounded_and_keep_their_telling_end(jobs: LiteJobs) -> None:
    def sink(n: int) -> None:
        # Each level looks different, so that the traceback is not shortened as a repetition.
        if n:
            exec(f"def level_{n}(): sink({n - 1})\nlevel_{n}()", {"sink": sink})
        raise ValueError("x" * 1_500)

    long = raising(jobs, ValueError("x" * 10**6), name="long")

    @jobs.define
    def deep() -> None:
        sink(200)

    failure = only_failure(jobs, long)
    assert len(failure.message) <= 2_000
    assert len(failure.traceback) <= 16_000
    assert len(long.refresh().error or "") <= 2_100
    assert failure.message.startswith("xxx")
    failure = only_failure(jobs, deep.enqueue())
    assert 10_000 < len(failure.traceback) <= 16_000
    assert failure.traceback.endswith("ValueError: " + "x" * 1_500 + "\n")


def test_the_error_of_a_job_is_one_line(jobs: LiteJobs) -> None:
    job = run(jobs, raising(jobs, ValueError("first line\nsecond line")))
    assert (job.error or "").splitlines() == [job.error]
    assert "first line" in (job.error or "")
    assert job.errors[0].message == "first line\nsecond line"


def test_an_error_that_cannot_be_shown_is_kept_all_the_same(jobs: LiteJobs) -> None:
    failure = only_failure(jobs, raising(jobs, Unspeakable()))
    assert (failure.type, failure.message) == ("Unspeakable", "(its message cannot be shown)")
    assert "Unspeakable" in failure.traceback


@pytest.mark.parametrize("what", misdeeds.ERRORS)
@pytest.mark.parametrize("form", ["sync", "async"])
def test_an_error_that_does_what_it_likes_is_a_failed_attempt(what: str, form: str) -> None:
    """When it is shown, when it is asked for its class, when its delay is read."""
    work = misdeeds.fail_with if form == "sync" else misdeeds.fail_aside
    registry = Registry()
    registry.add(work)
    executor = Executor(registry)
    payload = json.dumps({"log": "", "what": what})
    job = claimed()._replace(name=work.name, payload=payload)
    if form == "sync":
        report = executor.run(job)
    else:
        report = asyncio.run(executor.run_async(job, lambda: None))
    assert (report.kind, report.state in ("retrying", "failed")) == ("exception", True)
    assert all(type(text) is str for text in (report.type, report.message, report.traceback))
    marshal.dumps(tuple(report))


def test_a_backoff_that_ends_the_process_does_not(jobs: LiteJobs) -> None:
    """The supervisor asks it, too: when a worker has crashed."""
    job = run(jobs, raising(jobs, ValueError(), backoff=sys.exit))
    assert (job.state, job.errors[0].type) == ("retrying", "ValueError")


def test_a_message_that_sqlite_cannot_store_is_kept_with_escapes(jobs: LiteJobs) -> None:
    """Names of files that are not UTF-8 are in Python's texts as lone surrogates."""
    job = raising(jobs, ValueError("caf\udce9.txt"), max_attempts=1)
    after = run(jobs, job)
    assert (after.state, after.error) == ("failed", "ValueError: caf\\udce9.txt")
    assert after.errors[0].message == "caf\\udce9.txt"


def test_a_message_with_a_zero_byte_is_kept_whole(jobs: LiteJobs) -> None:
    assert only_failure(jobs, raising(jobs, ValueError("a\0b"))).message == "a\0b"


@given(st.text(st.characters(exclude_categories=())))
def test_what_describes_an_error_is_bounded_text_whatever_the_message(message: str) -> None:
    name, said, trace = describe(ValueError(message))
    assert name == "ValueError"
    assert said[:10] == message[:10] or not message.isprintable()
    assert len(said) <= 2_000
    assert len(trace) <= 16_000


# Errors that are not exceptions


@pytest.mark.parametrize(
    "error", [SystemExit(3), MemoryError(), RecursionError(), GeneratorExit(), StopIteration()]
)
def test_an_error_of_any_kind_is_a_failed_attempt_and_the_next_job_runs(
    jobs: LiteJobs, error: BaseException
) -> None:
    @jobs.define
    def after() -> None: ...

    job = raising(jobs, error)
    second = after.enqueue()
    assert jobs.drain() == 2
    assert job.refresh().state == "retrying"
    assert job.errors[0].type == type(error).__name__
    assert second.refresh().state == "completed"


def test_a_handler_that_calls_itself_for_ever_has_failed(jobs: LiteJobs) -> None:
    @jobs.define
    def endless(n: int) -> int:
        return endless(n + 1) + 1

    failure = only_failure(jobs, endless.enqueue(0))
    assert failure.type == "RecursionError"
    assert len(failure.traceback) <= 16_000


def test_sys_exit_does_not_end_the_program(jobs: LiteJobs) -> None:
    @jobs.define
    def leave() -> None:
        sys.exit("out of paper")

    assert run(jobs, leave.enqueue()).error == "SystemExit: out of paper"


@pytest.mark.parametrize("form", ["sync", "async"])
def test_ctrl_c_ends_a_drain_after_the_attempt_was_written_down(jobs: LiteJobs, form: str) -> None:
    @jobs.define(name="sync")
    def work() -> None:
        raise KeyboardInterrupt

    @jobs.define(name="async")
    async def later() -> None:
        raise KeyboardInterrupt

    job: Job[Any] = work.enqueue() if form == "sync" else later.enqueue()
    with pytest.raises(KeyboardInterrupt):
        jobs.drain()
    assert job.refresh().state == "retrying"
    assert job.errors[0].type == "KeyboardInterrupt"


@given(
    st.sampled_from(
        [ValueError, Unspeakable, SystemExit, MemoryError, Fail, Cancel, ExceptionGroup]
    ),
    st.text(st.characters(exclude_categories=())),
)
def test_the_report_of_an_attempt_can_always_be_sent_to_the_supervisor(
    kind: Callable[..., BaseException], message: str
) -> None:
    error = kind(message, [ValueError()]) if kind is ExceptionGroup else kind(message)

    @define
    def work() -> None:
        raise error

    registry = Registry()
    registry.add(work)
    report = Executor(registry, clock=lambda: 5).run(claimed())
    assert marshal.loads(marshal.dumps(tuple(report))) == tuple(report)
    assert report.started_at == 5
    assert report.took >= 0


# Results


def test_a_result_is_rebuilt_with_the_type_that_the_handler_declares(jobs: LiteJobs) -> None:
    @jobs.define
    def record() -> Track:
        return TRACK

    @jobs.define
    @attrs.frozen
    class Origin:
        async def run(self) -> dict[str, Point | None]:
            return {"a": Point(0, 0), "b": None}

    first, second = record.enqueue(), jobs.enqueue(Origin())
    jobs.drain()
    assert first.result(timeout=0) == TRACK
    assert second.result(timeout=0) == {"a": Point(0, 0), "b": None}


def test_a_result_can_be_read_by_whoever_finds_the_job(jobs: LiteJobs) -> None:
    @jobs.define
    def record() -> Track:
        return TRACK

    job = run(jobs, record.enqueue())
    assert jobs.get(job.id).result() == TRACK
    assert jobs.find(state="completed")[0].result() == TRACK


def test_a_result_of_an_unknown_definition_is_plain_json(jobs: LiteJobs) -> None:
    @jobs.define
    def origin() -> Point:
        return Point(1, 2)

    job = run(jobs, origin.enqueue())
    with LiteJobs(jobs.path) as other:
        assert other.get(job.id).result() == {"x": 1, "y": 2}


def test_a_handler_that_declares_no_type_may_return_any_json(jobs: LiteJobs) -> None:
    def anything():  # type: ignore[no-untyped-def]
        return {"a": [1, None, "b"]}

    define_any: Any = jobs.define
    job = run(jobs, define_any(anything).enqueue())
    assert job.result() == {"a": [1, None, "b"]}


def test_what_a_handler_returns_that_declares_to_return_nothing_is_dropped(jobs: LiteJobs) -> None:
    @jobs.define
    def nothing() -> None:
        return object()  # type: ignore[return-value]

    job = run(jobs, nothing.enqueue())
    assert (job.state, job.result(), job.stored_result) == ("completed", None, None)


def test_a_handler_may_declare_that_it_never_returns(jobs: LiteJobs) -> None:
    @jobs.define
    def refuse() -> NoReturn:
        raise Fail("always")

    assert run(jobs, refuse.enqueue()).error == "Fail: always"


def test_a_result_that_is_not_of_its_type_is_a_dead_letter_that_names_the_place(
    jobs: LiteJobs,
) -> None:
    @jobs.define(max_attempts=None)
    def origin() -> list[Point]:
        return [Point(1, 2), (3, 4)]  # type: ignore[list-item]

    job = run(jobs, origin.enqueue())
    assert (job.state, job.attempt) == ("failed", 1)
    assert (job.error or "").startswith("Fail: its result cannot be kept: ")
    assert "$[1]" in (job.error or "")


def returning(jobs: LiteJobs, value: object) -> Definition[[], Any, Any]:
    def anything():  # type: ignore[no-untyped-def]
        return value

    define_any: Any = jobs.define
    made: Definition[[], Any, Any] = define_any(anything)
    return made


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, float("nan"), {"a": b"x"}, 1j, {1: 2}, CYCLE, ("a", {"b"})]
)
def test_a_job_whose_result_json_does_not_have_is_completed_and_says_why_it_has_none(
    jobs: LiteJobs, value: Any
) -> None:
    job = run(jobs, returning(jobs, value).enqueue())
    assert (job.state, job.errors, job.stored_result) == ("completed", (), None)
    assert job.wait().finished
    advice = "; annotate the return type, or return None"
    with pytest.raises(
        ResultError, match=r"^the result of job 1 \(anything\) was not kept: "
    ) as no:
        job.result()
    assert str(no.value).endswith(advice)
    assert (job.error or "").startswith("its result was not kept: ")
    assert f"and {job.error}" in job.why()


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (("q", [1]), ["q", [1]]),
        ({"a": (1, ({"b": (2,)},))}, {"a": [1, [{"b": [2]}]]}),
        (Pair(1, 2), [1, 2]),
        ((), []),
    ],
)
def test_tuples_in_a_result_without_a_type_are_kept_as_lists(
    jobs: LiteJobs, value: Any, kept: Any
) -> None:
    assert run(jobs, returning(jobs, value).enqueue()).result() == kept


def test_a_result_without_a_type_of_more_than_four_mebibytes_is_not_kept(jobs: LiteJobs) -> None:
    job = run(jobs, returning(jobs, "x" * (4 * 2**20)).enqueue())
    assert job.state == "completed"
    with pytest.raises(ResultError, match=r"it has 4\.0 MiB, more than 4; return a path"):
        job.result()


def test_a_result_of_more_than_four_mebibytes_is_a_dead_letter_with_advice(
    jobs: LiteJobs,
) -> None:
    @jobs.define
    def huge() -> str:
        return "x" * (4 * 2**20)

    assert run(jobs, huge.enqueue()).error == (
        "Fail: its result has 4.0 MiB, more than 4; return a path instead"
    )


def test_a_job_that_failed_or_was_cancelled_has_no_result_and_says_why(jobs: LiteJobs) -> None:
    dead = raising(jobs, Fail("no such account"), name="dead")
    gone = raising(jobs, Cancel("not wanted"), name="gone")
    jobs.drain()
    with pytest.raises(JobFailedError, match=r"job 1 \(dead\) is failed .*: Fail: no such account"):
        dead.result(timeout=0)
    with pytest.raises(JobFailedError, match=r"job 2 \(gone\) is cancelled .*: Cancel: not wanted"):
        gone.result(timeout=0)


def test_a_job_that_has_not_ended_has_no_result_yet(jobs: LiteJobs) -> None:
    job = run(jobs, raising(jobs, ValueError()))
    with pytest.raises(WaitTimeoutError, match="job 1 is still retrying"):
        job.result(timeout=0)


def test_a_result_that_no_longer_fits_its_type_is_an_error_of_litejobs(jobs: LiteJobs) -> None:
    @jobs.define
    def origin() -> Point:
        return Point(1, 2)

    job = run(jobs, origin.enqueue())
    write_by_hand(jobs, """UPDATE litejobs_job SET result = '{"x": 1, "z": 2}'""")
    with pytest.raises(LitejobsError, match="origin"):
        jobs.get(job.id).result()


# Payloads in rows


PAYLOADS: list[tuple[Any, str]] = [
    ("no JSON", "not JSON"),
    ("", "not JSON"),
    ('{"to": {"x": 1, "y": 2}', "not JSON"),
    ("[]", "$"),
    ("null", "$"),
    ("5", "$"),
    ("{}", "$.to"),
    ('{"to": 5}', "$.to"),
    ('{"to": {"x": 1}}', "$.to.y"),
    ('{"to": {"x": 1, "y": "2"}}', "$.to.y"),
    ('{"to": {"x": 1, "y": 2, "z": 3}}', "'z' @ $.to"),
    ('{"to": {"x": 1, "y": 2}, "more": [1, 2, "3"]}', "$.more[2]"),
    ('{"to": {"x": 1, "y": 2}, "less": 5}', "'less' @ $"),
    ('{"to": {"x": 1, "y": NaN}}', ""),
    ('{"to": {"x": 1, "y": 2}} {}', "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    (b"\xff\x00", ""),
    (5, ""),
    (1.5, ""),
]


@pytest.mark.parametrize(("payload", "problem"), PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_job_whose_payload_does_not_fit_is_blocked_costs_no_attempt_and_names_the_field(
    jobs: LiteJobs, payload: Any, problem: str
) -> None:
    ran: list[Point] = []

    @jobs.define(max_attempts=None)
    def send(to: Point, more: list[int] = []) -> None:  # noqa: B006
        ran.append(to)

    bad, good = send.enqueue(Point(1, 2)), send.enqueue(Point(3, 4))
    write_by_hand(jobs, "UPDATE litejobs_job SET payload = ? WHERE id = ?", payload, bad.id)
    assert jobs.drain() == 2
    kept = jobs.get(bad.id)
    assert (kept.state, kept.attempt, kept.errors, kept.started_at) == ("blocked", 0, (), None)
    assert (kept.error or "").startswith("PayloadError: the payload of 'send' does not fit: ")
    assert problem in (kept.error or "")
    assert good.refresh().state == "completed"
    assert ran == [Point(3, 4)]


def test_all_fields_that_do_not_fit_are_named_at_once(jobs: LiteJobs) -> None:
    @jobs.define
    def send(to: Point, n: int) -> None: ...

    job = send.enqueue(Point(1, 2), 3)
    write_by_hand(jobs, """UPDATE litejobs_job SET payload = '{"to": {"y": ""}, "n": null}'""")
    error = run(jobs, job).error or ""
    assert "$.to.x" in error
    assert "$.to.y" in error
    assert "$.n" in error


def test_jobs_of_a_definition_that_can_no_longer_be_compiled_are_blocked(jobs: LiteJobs) -> None:
    @jobs.define
    def send(to: Gone) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    @define(name="send")
    def as_it_was(to: int) -> None: ...

    job = run(jobs, jobs.enqueue(as_it_was.bind(5)))
    assert (job.state, job.attempt) == ("blocked", 0)
    assert "name 'Gone' is not defined" in (job.error or "")


def test_a_job_inserted_by_hand_runs_like_any_other(jobs: LiteJobs) -> None:
    @jobs.define
    def double(n: int) -> int:
        return 2 * n

    with LiteJobs(jobs.path) as today:
        today.register(double)
        today.drain()  # tells the file what there is
        write_by_hand(
            today, "INSERT INTO litejobs_job (name, payload) VALUES ('double', '{\"n\": 4}')"
        )
        assert today.drain() == 1
        assert today.find()[0].result() == 8


# Async handlers


def test_an_async_handler_runs_to_its_end(jobs: LiteJobs) -> None:
    @jobs.define
    async def gather(context: Context, n: int) -> list[int]:
        async def one(k: int) -> int:
            await asyncio.sleep(0)
            return k * context.attempt

        return list(await asyncio.gather(*(one(k) for k in range(n))))

    assert run(jobs, gather.enqueue(3)).result() == [0, 1, 2]


def test_async_handlers_share_one_event_loop(jobs: LiteJobs) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @jobs.define
    async def work() -> None:
        loops.append(asyncio.get_running_loop())

    work.enqueue()
    work.enqueue()
    jobs.drain()
    assert loops[0] is loops[1]
    assert loops[0].is_closed()


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (ValueError(), "retrying"),
        (Retry(5), "retrying"),
        (Snooze(5), "scheduled"),
        (Fail("x"), "failed"),
        (Cancel(), "cancelled"),
        (asyncio.CancelledError(), "retrying"),
        (SystemExit(1), "retrying"),
    ],
)
def test_an_async_handler_has_the_same_outcomes_and_the_next_one_runs(
    jobs: LiteJobs, outcome: BaseException, state: str
) -> None:
    @jobs.define
    async def work(n: int) -> int:
        await asyncio.sleep(0)
        if n:
            return n
        raise outcome

    first, second = work.enqueue(0), work.enqueue(5)
    jobs.drain()
    assert first.refresh().state == state
    assert second.result(timeout=0) == 5


# Context


def test_a_context_tells_about_its_job(jobs: LiteJobs, clock: TurnedClock) -> None:
    seen: list[Context] = []

    @jobs.define(queue="emails", priority=4, timeout=30)
    def work(context: Context, n: int) -> None:
        seen.append(context)
        if len(seen) == 1:
            raise ValueError("once")

    job = runs(jobs, clock, work.enqueue(7), 2)
    first, second = seen
    assert (first.attempt, second.attempt) == (1, 2)
    assert (second.job.id, second.job.name, second.job.queue) == (job.id, "work", "emails")
    assert (second.job.priority, second.job.state, second.job.payload) == (4, "running", {"n": 7})
    assert second.job.max_attempts == 5
    assert second.job.enqueued_at == job.enqueued_at
    assert [failure.message for failure in second.job.errors] == ["once"]
    assert second.job.refresh().state == "completed"
    assert not second.cancelled


def test_the_deadline_counts_from_the_start_of_the_attempt(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    deadlines: list[datetime | None] = []

    @jobs.define
    def work(context: Context) -> None:
        deadlines.append(context.deadline)

    work.using(timeout=30).enqueue()
    work.enqueue()
    clock.turn(1000)
    jobs.drain()
    assert deadlines == [clock.now + timedelta(seconds=30), None]


def test_the_logger_of_a_context_carries_the_job(
    jobs: LiteJobs, caplog: pytest.LogCaptureFixture
) -> None:
    @jobs.define(name="reports:generate")
    def work(context: Context) -> None:
        context.logger.warning("half of %d done", 10)

    job = work.enqueue()
    jobs.drain()
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.name == "litejobs.reports:generate"
    assert record.getMessage() == "half of 10 done"
    about: Any = record
    assert (about.job, about.definition, about.attempt) == (job.id, "reports:generate", 1)


def test_a_context_says_whether_its_job_was_asked_to_end() -> None:
    asked: list[bool] = []

    @define
    def work(context: Context) -> None:
        asked.append(context.cancelled)
        stop.append(True)
        asked.append(context.cancelled)

    stop: list[bool] = []
    registry = Registry()
    registry.add(work)
    Executor(registry).run(claimed(), lambda: "stop" if stop else None)
    assert asked == [False, True]


# State


def test_the_state_is_made_once_and_handed_to_every_job(jobs: LiteJobs) -> None:
    made: list[dict[str, int]] = []

    def make() -> dict[str, int]:
        made.append({"jobs": 0})
        return made[-1]

    jobs.state = make

    @jobs.define
    def work(context: Context[dict[str, int]]) -> None:
        context.state["jobs"] += 1

    @jobs.define
    @attrs.frozen
    class Other:
        def run(self, context: Context[dict[str, int]]) -> None:
            context.state["jobs"] += 10

    jobs.enqueue_many([work.bind(), work.bind(), Other()])
    assert made == []
    jobs.drain()
    assert made == [{"jobs": 12}]


def test_a_state_that_is_a_context_manager_is_closed_at_the_end(jobs: LiteJobs) -> None:
    story: list[str] = []

    @contextlib.contextmanager
    def opened() -> Iterator[str]:
        story.append("opened")
        yield "the state"
        story.append("closed")

    jobs.state = opened

    @jobs.define
    def work(context: Context[str]) -> None:
        story.append(context.state)
        raise ValueError

    work.enqueue()
    work.enqueue()
    jobs.drain()
    assert story == ["opened", "the state", "the state", "closed"]


def test_a_state_is_closed_even_if_the_drain_is_interrupted(jobs: LiteJobs) -> None:
    story: list[str] = []

    @contextlib.contextmanager
    def opened() -> Iterator[None]:
        try:
            yield
        finally:
            story.append("closed")

    jobs.state = opened
    raising(jobs, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        jobs.drain()
    assert story == ["closed"]


def test_a_state_that_cannot_be_made_takes_no_job(jobs: LiteJobs) -> None:
    def fail() -> NoReturn:
        raise ConnectionError("no database")

    jobs.state = fail

    @jobs.define
    def work() -> None: ...

    job = work.enqueue()
    with pytest.raises(ConnectionError, match="no database"):
        jobs.drain()
    assert (job.refresh().state, jobs.nodes()) == ("pending", [])


def test_a_state_has_to_be_a_function_that_makes_it(jobs: LiteJobs) -> None:
    wrong: Any = {"connection": None}

    @define
    def work() -> None: ...

    def make_and_drain() -> None:
        queue = LiteJobs(jobs.path, state=wrong)
        queue.register(work)
        queue.drain()

    with pytest.raises(OptionError, match=r"^state: expected a function that makes the state"):
        make_and_drain()


def test_without_a_state_factory_the_state_is_none(jobs: LiteJobs) -> None:
    @jobs.define
    def work(context: Context[None]) -> bool:
        return context.state is None

    assert run(jobs, work.enqueue()).result() is True


# Jobs that make jobs


def test_a_handler_may_enqueue_and_drain_runs_that_too(jobs: LiteJobs) -> None:
    @jobs.define
    def count_down(n: int) -> int:
        if n:
            count_down.enqueue(n - 1)
        return n

    count_down.enqueue(3)
    assert jobs.drain() == 4
    assert sorted(job.result() for job in jobs.find()) == [0, 1, 2, 3]


def test_only_the_queues_that_were_asked_for_are_drained(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    ours, theirs = work.using(queue="a").enqueue(), work.using(queue="b").enqueue()
    assert jobs.drain(queues=["a", "c"]) == 1
    assert (ours.refresh().state, theirs.refresh().state) == ("completed", "pending")


def test_the_most_urgent_job_runs_first_and_then_the_one_that_was_due_first(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    order: list[str] = []

    @jobs.define
    def work(name: str) -> None:
        order.append(name)

    work.using(delay=20).enqueue("due third")
    work.using(delay=10).enqueue("due second")
    work.enqueue("due first")
    work.using(priority=1, delay=30).enqueue("urgent")
    work.using(priority=-1).enqueue("whenever")
    clock.turn(60)
    jobs.drain()
    assert order == ["urgent", "due first", "due second", "due third", "whenever"]


def test_drain_runs_a_retry_that_is_due_at_once(jobs: LiteJobs) -> None:
    runs: list[int] = []

    @jobs.define(backoff=Constant(0), max_attempts=3)
    def stubborn() -> None:
        runs.append(1)
        raise ValueError

    job = stubborn.enqueue()
    assert jobs.drain() == len(runs) == 3
    assert job.refresh().state == "failed"
