"""Middleware: what a program puts around every run and every enqueue."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
from conftest import write_by_hand
from programs import Programs, lines

from litejobs import (
    Bound,
    Cancel,
    Constant,
    Context,
    Fail,
    Job,
    LiteJobs,
    OptionError,
    Retry,
    Snooze,
    compose_async,
    define,
    recording,
)

T = TypeVar("T")
PATIENT = 60.0
SPOKEN: contextvars.ContextVar[str] = contextvars.ContextVar("SPOKEN", default="nothing")

Enqueue = Callable[[Sequence[Bound[Any]]], Sequence[Job[Any]]]


def shout(context: Context, call_next: Callable[[], str]) -> str:
    return call_next().upper()


async def shout_async(context: Context, call_next: Callable[[], Awaitable[str]]) -> str:
    return (await call_next()).upper()


@attrs.frozen
class Around:
    """Adds a mark on both sides; found by workers since its class is importable."""

    mark: str

    def __call__(self, context: Context, call_next: Callable[[], str]) -> str:
        return f"{self.mark}({call_next()})"


@attrs.frozen
class AroundAsync:
    mark: str

    async def __call__(self, context: Context, call_next: Callable[[], Awaitable[str]]) -> str:
        await asyncio.sleep(0)
        return f"{self.mark}({await call_next()})"


@define
def hello(name: str) -> str:
    return f"hello {name}"


@define
async def hello_async(name: str) -> str:
    await asyncio.sleep(0)
    return f"hello {name}"


@define
def greet_later(name: str) -> int:
    """Enqueues from where it runs."""
    return hello.enqueue(name).id


def hurry(works: Sequence[Bound[Any]], call_next: Enqueue) -> Sequence[Job[Any]]:
    return call_next([work.using(priority=7) for work in works])


def ran(jobs: LiteJobs, job: Job[T]) -> T:
    jobs.drain()
    return job.result(0)


@pytest.fixture
def both(jobs: LiteJobs) -> LiteJobs:
    jobs.register(hello, hello_async)
    return jobs


HANDLERS = pytest.mark.parametrize("handler", [hello, hello_async], ids=["sync", "async"])


class TestAroundARun:
    @HANDLERS
    @pytest.mark.parametrize("layer", [shout, shout_async])
    def test_sees_and_replaces_the_result(self, both: LiteJobs, handler: Any, layer: Any) -> None:
        assert both.middleware.run(layer) is layer
        assert ran(both, handler.enqueue("Ada")) == "HELLO ADA"

    @HANDLERS
    @pytest.mark.parametrize("kinds", ["sss", "aaa", "sas", "asa", "ssa", "aas"])
    def test_stands_in_the_order_in_which_it_was_added(
        self, both: LiteJobs, handler: Any, kinds: str
    ) -> None:
        for mark, kind in zip("xyz", kinds, strict=True):
            both.middleware.run(Around(mark) if kind == "s" else AroundAsync(mark))
        assert ran(both, handler.enqueue("Ada")) == "x(y(z(hello Ada)))"
        assert ran(both, handler.enqueue("Bob")) == "x(y(z(hello Bob)))"

    def test_has_the_same_context_as_the_handler(self, jobs: LiteJobs) -> None:
        seen: list[Context] = []

        @jobs.middleware.run
        def look(context: Context, call_next: Callable[[], T]) -> T:
            seen.append(context)
            return call_next()

        @jobs.define(queue="mails")
        def work(context: Context) -> None:
            seen.append(context)

        job = work.enqueue()
        jobs.drain()
        assert len(seen) == 2
        assert seen[0] is seen[1]
        assert (seen[0].job.id, seen[0].job.queue, seen[0].attempt) == (job.id, "mails", 1)

    def test_sees_what_was_sent_along(self, jobs: LiteJobs) -> None:
        jobs.register(hello)
        seen: list[dict[str, str]] = []

        @jobs.middleware.run
        def look(context: Context, call_next: Callable[[], T]) -> T:
            seen.append(context.job.headers)
            return call_next()

        plain, sent = hello.enqueue("Ada"), hello.enqueue("Bob")
        sql = "UPDATE litejobs_job SET headers = ? WHERE id = ?"
        write_by_hand(jobs, sql, '{"trace": "7"}', sent.id)
        jobs.drain()
        assert seen == [plain.refresh().headers, sent.refresh().headers] == [{}, {"trace": "7"}]

    @HANDLERS
    @pytest.mark.parametrize(
        ("outcome", "state"),
        [
            (Retry(60), "retrying"),
            (Fail("no"), "failed"),
            (Cancel(), "cancelled"),
            (Snooze(60), "scheduled"),
            (ValueError("no"), "retrying"),
            (SystemExit(3), "retrying"),
        ],
    )
    def test_may_raise_what_a_handler_may(
        self, both: LiteJobs, handler: Any, outcome: BaseException, state: str
    ) -> None:
        @both.middleware.run
        def refuse(context: Context, call_next: Callable[[], T]) -> T:
            call_next()
            raise outcome

        job = handler.enqueue("Ada")
        both.drain()
        assert job.refresh().state == state

    @pytest.mark.parametrize("is_async", [False, True])
    def test_may_run_the_handler_again_or_not_at_all(self, jobs: LiteJobs, is_async: bool) -> None:
        calls: list[int] = []

        @jobs.define
        def count() -> int:
            calls.append(1)
            return len(calls)

        def thrice(context: Context, call_next: Callable[[], int]) -> int:
            return call_next() + call_next() + call_next()

        async def thrice_async(context: Context, call_next: Callable[[], Awaitable[int]]) -> int:
            return await call_next() + await call_next() + await call_next()

        def never(context: Context, call_next: Callable[[], int]) -> int:
            return -1 if context.job.priority else call_next()

        jobs.middleware.run(never)
        jobs.middleware.run(thrice_async if is_async else thrice)
        assert ran(jobs, count.enqueue()) == 6
        assert ran(jobs, count.using(priority=1).enqueue()) == -1
        assert len(calls) == 3

    @HANDLERS
    def test_a_result_that_does_not_fit_fails_the_job(self, both: LiteJobs, handler: Any) -> None:
        @both.middleware.run
        def replace(context: Context, call_next: Callable[[], Any]) -> Any:
            return 7

        job = handler.enqueue("Ada")
        both.drain()
        assert job.refresh().state == "failed"
        assert "expected str, got 7" in str(job.refresh().error)

    def test_what_a_handler_raises_passes_through_it(self, jobs: LiteJobs) -> None:
        seen: list[BaseException] = []

        @jobs.middleware.run
        def outer(context: Context, call_next: Callable[[], T]) -> T:
            try:
                return call_next()
            except BaseException as error:
                seen.append(error)
                raise

        jobs.middleware.run(AroundAsync("x"))
        jobs.middleware.run(Around("y"))

        @jobs.define(max_attempts=1)
        async def broken() -> str:
            raise LookupError("lost")

        job = broken.enqueue()
        jobs.drain()
        [failure] = job.errors
        assert (failure.type, failure.message) == ("LookupError", "lost")
        assert 'raise LookupError("lost")' in failure.traceback
        assert [type(error) for error in seen] == [LookupError]

    @pytest.mark.parametrize("outside", [[], [AroundAsync("x")]], ids=["alone", "in a thread"])
    @pytest.mark.parametrize("is_async", [False, True])
    def test_context_variables_reach_the_handler(
        self, jobs: LiteJobs, outside: list[Any], is_async: bool
    ) -> None:
        for layer in outside:
            jobs.middleware.run(layer)

        @jobs.middleware.run
        def speak(context: Context, call_next: Callable[[], T]) -> T:
            token = SPOKEN.set(f"job {context.job.id}")
            try:
                return call_next()
            finally:
                SPOKEN.reset(token)

        @jobs.define(name="listen_async")
        async def listen_async() -> str:
            return SPOKEN.get()

        @jobs.define
        def listen() -> str:
            return SPOKEN.get()

        job = (listen_async if is_async else listen).enqueue()
        assert ran(jobs, job) == ("x(job 1)" if outside else "job 1")
        assert SPOKEN.get() == "nothing"

    def test_that_is_sync_inside_an_async_one_does_not_hold_the_event_loop(
        self, jobs: LiteJobs
    ) -> None:
        """Or it could not wait there for the coroutine that it is around."""
        threads: list[int] = []

        def where(context: Context, call_next: Callable[[], str]) -> str:
            threads.append(threading.get_ident())
            return call_next()

        jobs.middleware.run(AroundAsync("x"))
        jobs.middleware.run(where)

        @jobs.define
        async def work() -> str:
            threads.append(threading.get_ident())
            return "done"

        assert ran(jobs, work.enqueue()) == "x(done)"
        assert threads[0] != threads[1] == threading.get_ident()

    def test_that_is_cancelled_cancels_what_is_inside(self) -> None:
        ended: list[str] = []
        inside = asyncio.Event()

        async def handler() -> None:
            try:
                inside.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("handler")
                raise

        def layer(context: Context, call_next: Callable[[], T]) -> T:
            try:
                return call_next()
            finally:
                ended.append("layer")

        async def cancel() -> None:
            context: Any = None
            run = asyncio.create_task(compose_async([layer], context, handler))
            await inside.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

        asyncio.run(cancel())
        assert sorted(ended) == ["handler", "layer"]


class TestAroundAnEnqueue:
    def test_one_call_is_one_transaction(self, both: LiteJobs) -> None:
        seen: list[list[tuple[object, ...]]] = []

        @both.middleware.enqueue
        def look(works: Sequence[Bound[Any]], call_next: Enqueue) -> Sequence[Job[Any]]:
            seen.append([(work.name, work.payload, work.options.queue) for work in works])
            return call_next(works)

        hello.enqueue("Ada")
        both.enqueue_many([hello.bind("Bob"), hello_async.using(queue="slow").bind("Eve")])
        both.enqueue(hello.bind("Dan"), queue="fast")
        assert seen == [
            [("hello", '{"name":"Ada"}', "default")],
            [("hello", '{"name":"Bob"}', "default"), ("hello_async", '{"name":"Eve"}', "slow")],
            [("hello", '{"name":"Dan"}', "fast")],
        ]
        assert both.count() == 4

    def test_changes_the_options(self, both: LiteJobs) -> None:
        both.middleware.enqueue(hurry)
        assert hello.enqueue("Ada").refresh().priority == 7

    def test_stands_in_the_order_in_which_it_was_added(self, both: LiteJobs) -> None:
        order: list[str] = []

        def note(mark: str, works: Sequence[Bound[Any]], call_next: Enqueue) -> Sequence[Job[Any]]:
            order.append(mark)
            jobs = call_next(works)
            order.append(f"{mark} after {jobs[0].id}")
            return jobs

        both.middleware.enqueue(functools.partial(note, "x"))
        both.middleware.enqueue(functools.partial(note, "y"))
        hello.enqueue("Ada")
        assert order == ["x", "y", "y after 1", "x after 1"]

    def test_refuses_by_raising_and_then_nothing_is_there(self, both: LiteJobs) -> None:
        @both.middleware.enqueue
        def refuse(works: Sequence[Bound[Any]], call_next: Enqueue) -> Sequence[Job[Any]]:
            if any("Eve" in work.payload for work in works):
                raise PermissionError("not Eve")
            return call_next(works)

        with pytest.raises(PermissionError, match="not Eve"):
            both.enqueue_many([hello.bind("Ada"), hello.bind("Eve")])
        assert both.count() == 0

    def test_that_gives_no_jobs_is_told_so(self, both: LiteJobs) -> None:
        @both.middleware.enqueue
        def forget(works: Sequence[Bound[Any]], call_next: Enqueue) -> Any:
            call_next(works)

        with pytest.raises(OptionError, match=r"has to return what call_next gives.* it gave None"):
            hello.enqueue("Ada")

    def test_is_not_called_for_nothing(self, both: LiteJobs) -> None:
        @both.middleware.enqueue
        def never(works: Sequence[Bound[Any]], call_next: Enqueue) -> Sequence[Job[Any]]:
            raise AssertionError("called for nothing")

        assert len(both.enqueue_many([])) == 0

    def test_cannot_be_async(self, jobs: LiteJobs) -> None:
        async def wrong(works: Any, call_next: Any) -> Any: ...

        layer: Any = wrong
        with pytest.raises(OptionError, match="is async, which enqueue is not"):
            jobs.middleware.enqueue(layer)


class TestABoundJob:
    def test_is_changed_by_using_and_stays_what_it_was(self, both: LiteJobs) -> None:
        bound = hello.using(queue="mails").bind("Ada")
        changed = bound.using(priority=3, delay=60)
        assert (bound.options.priority, changed.options.priority) == (0, 3)
        assert (changed.name, changed.options.queue, changed.payload) == (
            "hello",
            "mails",
            '{"name":"Ada"}',
        )
        assert repr(bound) == """<Bound hello '{"name":"Ada"}'>"""

    def test_refuses_options_that_its_definition_would_refuse(self) -> None:
        bound = hello.bind("Ada")
        unknown: Any = {"prority": 3}
        with pytest.raises(OptionError, match="did you mean 'priority'"):
            bound.using(**unknown)
        with pytest.raises(OptionError, match="a function belongs to the definition"):
            bound.using(backoff=lambda attempt: 1)
        assert bound.using(backoff=Constant(3)).options.backoff == Constant(3)


class TestOnceWorkHasStarted:
    def test_nothing_is_added_until_it_ends(self, both: LiteJobs) -> None:
        with both.start(threads=1):
            with pytest.raises(OptionError, match=r"middleware: .*shout.* was added after work ha"):
                both.middleware.run(shout)
            with pytest.raises(OptionError, match="was added after work had started"):
                both.middleware.enqueue(hurry)
        both.middleware.run(shout)
        assert ran(both, hello.enqueue("Ada")) == "HELLO ADA"

    def test_a_drain_in_a_recording_has_not_started_the_programs_own(self, both: LiteJobs) -> None:
        both.middleware.run(shout)
        with recording(both):
            assert ran(both, hello.enqueue("Ada")) == "HELLO ADA"
        both.middleware.run(Around("x"))
        assert ran(both, hello.enqueue("Ada")) == "X(HELLO ADA)"

    def test_what_cannot_be_called_was_refused_before(self, jobs: LiteJobs) -> None:
        wrong: Any = "shout"
        with pytest.raises(OptionError, match="expected a function, got 'shout'"):
            jobs.middleware.run(wrong)

    @pytest.mark.parametrize("around", ["run", "enqueue"])
    def test_what_workers_cannot_find_is_an_error(self, both: LiteJobs, around: str) -> None:
        def local(first: Any, call_next: Any) -> Any: ...

        getattr(both.middleware, around)(local)
        with pytest.raises(OptionError, match=r"middleware: workers cannot find it .*local"):
            both.start(workers=1)


class TestInWorkers:
    def test_it_is_there(self, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
            jobs.register(hello, hello_async, greet_later)
            jobs.middleware.run(shout)
            jobs.middleware.run(Around("x"))
            jobs.middleware.run(AroundAsync("y"))
            jobs.middleware.run(Around("z"))
            with jobs.start(workers=1):
                results = [
                    handler.enqueue("Ada").result(PATIENT) for handler in (hello, hello_async)
                ]
        assert results == ["X(Y(Z(HELLO ADA)))"] * 2

    def test_it_is_around_what_a_handler_enqueues(self, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
            jobs.register(hello, greet_later)
            jobs.middleware.enqueue(hurry)
            with jobs.start(workers=1):
                later = greet_later.enqueue("Ada").result(PATIENT)
                assert jobs.wait(later, PATIENT).priority == 7

    def test_it_may_stand_in_the_main_program(self, programs: Programs, log: Path) -> None:
        programs.write(main=PROGRAM)
        code, output, errors = programs.run("main.py", log)
        assert (code, output, errors) == (0, "14\n", "")
        assert lines(log) == ["enqueue 1", "run 1"]


PROGRAM = """
import sys

from litejobs import LiteJobs
from programs.trouble import note

jobs = LiteJobs("jobs.db")


@jobs.middleware.enqueue
def tell(works, call_next):
    enqueued = call_next(works)
    note(sys.argv[1], f"enqueue {enqueued[0].id}")
    return enqueued


@jobs.middleware.run
def double(context, call_next):
    note(context.job.payload["log"], f"run {context.job.id}")
    return 2 * call_next()


@jobs.define
def seven(log: str) -> int:
    return 7


if __name__ == "__main__":
    job = seven.enqueue(sys.argv[1])
    jobs.work(workers=1, until="empty")
    print(job.result())
"""
