"""Definitions: names, forms and options of work, and what is refused before a job exists."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import apsw
import attrs
import pytest
from conftest import NEW_YEAR, TurnedClock, row_of
from hypothesis import given
from hypothesis import strategies as st

from litejobs import (
    OPTIONS,
    Bound,
    Constant,
    Context,
    Definition,
    DefinitionChoices,
    DefinitionError,
    Exponential,
    Job,
    LiteJobs,
    LitejobsError,
    OptionError,
    Options,
    PayloadError,
    Retention,
    Unique,
    define,
)


@attrs.frozen
class Address:
    user: str
    host: str = "example.com"


@attrs.frozen
class Letter:
    """A payload whose own fields say how it is sent."""

    to: str
    urgent: bool = False

    @property
    def queue(self) -> str:
        return "express" if self.urgent else "letters"

    @property
    def priority(self) -> int:
        return 10 if self.urgent else 0

    def run(self) -> str:
        return f"sent to {self.to}"


@attrs.frozen
class Download:
    """A payload with all five options among its fields."""

    url: str
    queue: str = "slow"
    priority: int = 3
    max_attempts: int = 2
    timeout: float = 1.5

    @property
    def backoff(self) -> Constant:
        return Constant(90)

    def run(self) -> None:
        raise ConnectionError(self.url)


def refusal(error: type[LitejobsError], call: Any, *args: Any, **kwargs: Any) -> str:
    """What a call that has to be refused says."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def line_of(code: Any) -> int:
    return inspect.getsourcelines(code)[1]


# Names


def test_a_definition_bears_the_name_of_its_function(jobs: LiteJobs) -> None:
    @jobs.define
    def send_email(to: str) -> None: ...

    assert send_email.name == "send_email"
    assert send_email.enqueue("a").name == "send_email"


def test_a_definition_bears_the_name_of_its_class(jobs: LiteJobs) -> None:
    jobs.define(Letter)
    assert jobs.enqueue(Letter("a")).name == "Letter"


def test_a_name_that_is_given_outlives_the_name_in_the_code(jobs: LiteJobs) -> None:
    @jobs.define(name="reports:generate")
    def renamed_twice_already() -> None: ...

    assert renamed_twice_already.enqueue().name == "reports:generate"
    assert jobs.drain() == 1


def test_a_name_that_is_taken_is_refused_with_both_places(jobs: LiteJobs) -> None:
    def first() -> None: ...
    def second() -> None: ...

    jobs.define(name="work")(first)
    said = refusal(DefinitionError, jobs.define(name="work"), second)
    assert said.startswith("definition 'work': defined twice, at ")
    assert f"{__file__}:{line_of(first)} and at {__file__}:{line_of(second)}" in said
    assert "name=" in said


def test_registering_a_definition_again_changes_nothing(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    jobs.register(work)
    assert [*jobs.registry] == [work]
    assert "defined twice" in refusal(DefinitionError, jobs.register, work.using(priority=1))


def test_two_queues_may_have_the_same_names(jobs: LiteJobs) -> None:
    other = LiteJobs("never-opened.db")

    @jobs.define(name="work")
    def ours() -> None: ...

    @other.define(name="work")
    def theirs() -> None: ...

    assert ours.name == theirs.name
    assert not other.path.exists()


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[2J", "x" * 201, 5, b"work", "\ud800"])
def test_a_name_that_cannot_be_shown_or_typed_is_refused(jobs: LiteJobs, name: Any) -> None:
    def work() -> None: ...

    said = refusal(OptionError, lambda: jobs.define(name=name)(work))
    assert said == f"name: expected 1 to 200 printable characters, got {name!r}"


@pytest.mark.parametrize("name", ["a", "reports:generate", "Größe 1/2", "x" * 200])
def test_a_name_may_be_any_line_of_text(jobs: LiteJobs, name: str) -> None:
    def work() -> None: ...

    assert jobs.define(name=name)(work).name == name


def test_a_definition_shows_its_name_and_place(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    assert repr(work) == f"<Definition work at {__file__}:{line_of(work.body.code)}>"


# Functions


def test_calling_a_definition_runs_the_plain_function(jobs: LiteJobs) -> None:
    @jobs.define
    def divide(a: int, b: int = 2, *, digits: int = 1) -> float:
        return round(a / b, digits)

    assert divide(7) == 3.5
    assert divide(22, b=7, digits=3) == 3.143
    assert jobs.count() == 0


def test_a_plain_call_raises_what_the_function_raises(jobs: LiteJobs) -> None:
    @jobs.define
    def divide(a: int) -> float:
        return a / 0

    with pytest.raises(ZeroDivisionError):
        divide(1)


def test_a_plain_call_with_wrong_arguments_is_a_type_error_that_names_the_function(
    jobs: LiteJobs,
) -> None:
    @jobs.define
    def divide(a: int) -> float:
        return a / 2

    call: Any = divide
    with pytest.raises(TypeError, match=r"^divide\(\) missing 1 required positional argument: 'a'"):
        call()
    with pytest.raises(TypeError, match=r"^divide\(\) got an unexpected keyword argument 'b'"):
        call(1, b=2)


def test_a_plain_call_of_an_async_function_gives_its_coroutine(jobs: LiteJobs) -> None:
    @jobs.define
    async def fetch(n: int) -> int:
        return n

    coroutine = fetch(3)
    with pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value == 3


def test_the_parameters_arrive_as_they_were_given(jobs: LiteJobs) -> None:
    @jobs.define
    def gather(a: int, /, b: str, c: list[int], *, d: Address, e: float = 0.5) -> list[Any]:
        return [a, b, c, d.user, d.host, e]

    job = gather.enqueue(1, "b", [2, 3], d=Address("me"))
    jobs.drain()
    assert job.result(timeout=0) == [1, "b", [2, 3], "me", "example.com", 0.5]


def test_a_parameter_without_annotation_takes_any_json(jobs: LiteJobs) -> None:
    def echo(value, other=None):  # type: ignore[no-untyped-def]
        return [value, other]

    define_any: Any = jobs.define
    job = define_any(echo).enqueue({"a": [1, None]})
    jobs.drain()
    assert job.result(timeout=0) == [{"a": [1, None]}, None]


def test_defaults_are_those_of_the_code_that_runs_and_not_of_the_code_that_enqueued(
    jobs: LiteJobs,
) -> None:
    @jobs.define
    def greet(name: str, greeting: str = "Hello") -> str:
        return f"{greeting}, {name}"

    assert greet.enqueue("Ann").payload == {"name": "Ann"}
    assert greet.enqueue("Ann", greeting="Hi").payload == {"name": "Ann", "greeting": "Hi"}


def test_arguments_that_do_not_fit_are_refused_with_the_path_of_the_field(jobs: LiteJobs) -> None:
    @jobs.define
    def send(to: Address, copies: list[int]) -> None: ...

    wrong: Any = send
    said = refusal(PayloadError, wrong.enqueue, Address("a"), [1, "2"])
    assert said.startswith("the payload of 'send' does not fit: ")
    assert "$.copies[1]" in said
    assert jobs.count() == 0


def test_missing_and_unknown_arguments_are_named(jobs: LiteJobs) -> None:
    @jobs.define
    def send(to: str) -> None: ...

    wrong: Any = send
    assert "missing 1 required positional argument: 'to'" in refusal(PayloadError, wrong.enqueue)
    assert "unexpected keyword argument 'too'" in refusal(PayloadError, wrong.enqueue, "a", too="b")
    assert "__init__" not in refusal(PayloadError, wrong.enqueue)


# The last is a word of attrs' own, in the __init__ that it writes for a frozen class.
@pytest.mark.parametrize(
    "name", ["name", "queue", "payload", "context", "cls", "values", "_private", "_setattr"]
)
def test_parameters_may_have_any_name(jobs: LiteJobs, name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def double({name}: int) -> int:\n    return 2 * {name}", scope)
    definition: Any = jobs.define(scope["double"])
    job = definition.enqueue(21)
    jobs.drain()
    assert job.result(timeout=0) == 42
    assert definition.enqueue(**{name: 1}).payload == {name: 1}


def test_a_payload_of_more_than_four_mebibytes_is_refused_with_advice(jobs: LiteJobs) -> None:
    @jobs.define
    def store(text: str) -> None: ...

    store.bind("x" * (4 * 2**20 - 100))
    said = refusal(PayloadError, store.enqueue, "x" * (4 * 2**20))
    assert "4.0 MiB, more than 4; put the data into a file and pass its path" in said


def test_a_wrapped_function_keeps_the_parameters_of_what_it_wraps(jobs: LiteJobs) -> None:
    def twice(code: Any) -> Any:
        @functools.wraps(code)
        def run(*args: Any, **kwargs: Any) -> Any:
            return 2 * code(*args, **kwargs)

        return run

    @jobs.define
    @twice
    def add(a: int, *, b: int) -> int:
        return a + b

    job = add.enqueue(1, b=2)
    jobs.drain()
    assert job.result(timeout=0) == 6


# Code that cannot be a definition


def test_a_lambda_needs_a_name(jobs: LiteJobs) -> None:
    assert "write a function, or give name=" in refusal(DefinitionError, jobs.define, lambda: None)
    assert jobs.define(name="nothing")(lambda: None).name == "nothing"


def test_what_takes_any_number_of_arguments_is_refused(jobs: LiteJobs) -> None:
    def many(*names: str) -> None: ...
    def more(**names: str) -> None: ...

    said = refusal(DefinitionError, jobs.define, many)
    assert said.startswith("definition 'many': takes *names")
    assert "use a parameter of type list or dict" in said
    assert "takes **names" in refusal(DefinitionError, jobs.define, more)


def test_parameters_that_no_payload_can_hold_are_refused(jobs: LiteJobs) -> None:
    def method(self: str) -> None: ...
    def mangled(__name: str) -> None: ...
    def lost(__class__: str = "") -> None: ...

    assert "a method" in refusal(DefinitionError, jobs.define, method)
    for code in mangled, lost:
        said = refusal(DefinitionError, jobs.define, code)
        assert "use a name that does not begin with two underscores" in said


def test_generators_are_refused_since_their_body_would_never_run(jobs: LiteJobs) -> None:
    def steps() -> Iterator[int]:
        yield 1

    async def later_steps() -> AsyncIterator[int]:
        yield 1

    for code in (steps, later_steps):
        said = refusal(DefinitionError, jobs.define, code)
        assert said == f"definition {code.__name__!r}: a generator: its body would never run"


def test_a_method_is_refused_since_its_object_would_have_to_travel(jobs: LiteJobs) -> None:
    class Mailer:
        def send(self, to: str) -> None: ...

    assert refusal(DefinitionError, jobs.define, Mailer.send).startswith("definition 'send': ")
    assert refusal(DefinitionError, jobs.define, Mailer().send).startswith("definition 'send': ")


@pytest.mark.parametrize("code", [len, print, Address("a"), functools.partial(int, "5"), 5])
def test_only_functions_and_classes_are_definitions(jobs: LiteJobs, code: Any) -> None:
    said = refusal(DefinitionError, jobs.define(name="work"), code)
    assert "expected a function or an attrs class" in said


def test_a_definition_cannot_be_defined_again(jobs: LiteJobs) -> None:
    @define
    def work() -> None: ...

    define_any: Any = jobs.define
    said = refusal(DefinitionError, define_any, work)
    assert said == f"definition 'work': defined already, at {work.body.place}: register it"


def test_an_annotation_that_names_nothing_is_reported_when_it_is_needed(jobs: LiteJobs) -> None:
    @jobs.define
    def send(to: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    said = refusal(DefinitionError, send.enqueue, "a")
    assert said == ("definition 'send': its annotations do not work: name 'Nowhere' is not defined")


def test_an_annotation_may_name_what_comes_later_in_the_module(jobs: LiteJobs) -> None:
    @jobs.define
    def visit(tree: Later) -> int:
        return tree.depth

    job = visit.enqueue(Later(3))
    jobs.drain()
    assert job.result(timeout=0) == 3


@attrs.frozen
class Later:
    depth: int


def test_a_type_that_json_does_not_have_is_reported_with_the_definition(jobs: LiteJobs) -> None:
    @jobs.define
    def work(value: complex) -> None: ...

    said = refusal(DefinitionError, work.enqueue, 1j)
    assert said == "definition 'work': complex has no form in JSON"


def test_a_result_type_that_json_does_not_have_is_reported_before_the_job_runs(
    jobs: LiteJobs,
) -> None:
    @jobs.define
    def work() -> complex:
        return 1j

    assert "complex" in refusal(DefinitionError, work.enqueue)


# Context


def test_a_context_is_filled_in_wherever_it_stands(jobs: LiteJobs) -> None:
    @jobs.define
    def first(context: Context[Any], a: int) -> int:
        return a + context.attempt

    @jobs.define
    def middle(a: int, context: Context[Any], b: int) -> int:
        return a + b + context.attempt

    @jobs.define
    def last(a: int, context: Context[Any]) -> int:
        return a + context.attempt

    @jobs.define
    def keyword(a: int, *, context: Context[Any], b: int) -> int:
        return a + b + context.attempt

    @jobs.define
    def positional(context: Context[Any], /, a: int) -> int:
        return a + context.attempt

    given: list[tuple[Any, tuple[int, ...], dict[str, int]]] = [
        (first, (10,), {}),
        (middle, (4, 6), {}),
        (last, (10,), {}),
        (keyword, (4,), {"b": 6}),
        (positional, (10,), {}),
    ]
    for definition, args, kwargs in given:
        job = definition.enqueue(*args, **kwargs)
        jobs.drain()
        assert job.result(timeout=0) == 11, definition.name
        assert "context" not in job.payload


def test_a_context_may_be_annotated_with_or_without_the_type_of_the_state(jobs: LiteJobs) -> None:
    @jobs.define
    def bare(context: Context) -> int:
        return context.attempt

    @jobs.define
    def typed(context: Context[dict[str, int]]) -> int:
        return context.attempt

    first, second = bare.enqueue(), typed.enqueue()
    jobs.drain()
    assert first.result(timeout=0) == second.result(timeout=0) == 1


def test_a_plain_call_gets_a_context_that_belongs_to_no_job(jobs: LiteJobs) -> None:
    @jobs.define
    def work(context: Context, n: int) -> tuple[int, int, bool, bool]:
        return n, context.attempt, context.cancelled, context.deadline is None

    assert work(5) == (5, 1, False, True)


# Classes


def test_an_instance_of_a_class_is_its_payload(jobs: LiteJobs) -> None:
    @jobs.define(queue="letters")
    @attrs.frozen
    class Send:
        to: str
        copies: list[str] = attrs.field(factory=list)

        def run(self) -> str:
            return self.to + "".join(self.copies)

    job = jobs.enqueue(Send("a", ["b", "c"]))
    assert job.payload == {"to": "a", "copies": ["b", "c"]}
    assert job.queue == "letters"
    jobs.drain()
    assert job.result(timeout=0) == "abc"


def test_a_class_stays_what_it_is(jobs: LiteJobs) -> None:
    assert jobs.define(Letter) is Letter
    assert Letter("me").run() == "sent to me"


def test_run_may_take_a_context_and_may_be_async(jobs: LiteJobs) -> None:
    @jobs.define
    @attrs.frozen
    class Count:
        n: int

        async def run(self, context: Context) -> int:
            return self.n + context.attempt

    job = jobs.enqueue(Count(1))
    jobs.drain()
    assert job.result(timeout=0) == 2


def test_run_may_take_its_context_by_keyword_only(jobs: LiteJobs) -> None:
    @jobs.define
    @attrs.frozen
    class Count:
        n: int

        def run(self, *, context: Context) -> int:
            return self.n + context.attempt

    job = jobs.enqueue(Count(1))
    jobs.drain()
    assert job.result(timeout=0) == 2


def test_a_class_without_fields_is_a_job_without_arguments(jobs: LiteJobs) -> None:
    @jobs.define
    @attrs.frozen
    class Sweep:
        def run(self) -> int:
            return 1

    job = jobs.enqueue(Sweep())
    jobs.drain()
    assert (job.payload, job.result(timeout=0)) == ({}, 1)


def test_an_instance_chooses_its_own_queue_and_priority(jobs: LiteJobs) -> None:
    jobs.define(queue="ignored", priority=-5)(Letter)
    slow, fast = jobs.enqueue(Letter("a")), jobs.enqueue(Letter("b", urgent=True))
    assert (slow.queue, slow.priority) == ("letters", 0)
    assert (fast.queue, fast.priority) == ("express", 10)


def test_an_instance_chooses_its_own_attempts_backoff_and_timeout(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    jobs.define(max_attempts=9, timeout=60, backoff=Constant(1))(Download)
    job = jobs.enqueue(Download("x"))
    assert (job.queue, job.priority, job.max_attempts) == ("slow", 3, 2)
    assert job.timeout == timedelta(seconds=1.5)
    jobs.drain()
    assert job.refresh().run_at - clock.now == timedelta(seconds=90)


def test_what_enqueue_is_told_goes_before_what_the_instance_chooses(jobs: LiteJobs) -> None:
    jobs.define(Letter)
    job = jobs.enqueue(Letter("a", urgent=True), queue="lost", delay=60)
    assert (job.queue, job.priority, job.state) == ("lost", 10, "scheduled")


def test_an_option_that_an_instance_leaves_at_none_is_the_definitions(jobs: LiteJobs) -> None:
    @jobs.define(queue="files", timeout=60)
    @attrs.frozen
    class Fetch:
        queue: str | None = None
        timeout: float | None = None

        def run(self) -> None: ...

    job = jobs.enqueue(Fetch())
    assert (job.queue, job.timeout) == ("files", timedelta(minutes=1))
    assert jobs.enqueue(Fetch("now")).queue == "now"


def test_an_option_of_an_instance_is_checked_like_any_other(jobs: LiteJobs) -> None:
    jobs.define(Download)
    assert refusal(OptionError, jobs.enqueue, Download("x", max_attempts=0)).startswith(
        "max_attempts: expected 1 or more"
    )
    assert jobs.count() == 0


def test_a_function_as_an_instances_backoff_is_kept_or_refused(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define
    @attrs.frozen
    class Fetch:
        pause: float

        def backoff(self, attempt: int) -> float:
            return self.pause

        def run(self) -> None:
            raise ConnectionError

    try:
        job = jobs.enqueue(Fetch(500))
    except OptionError:
        return  # "A row cannot keep a function" is a fair answer; another backoff is not.
    jobs.drain()
    assert job.refresh().run_at - clock.now == timedelta(seconds=500)


def test_the_fields_of_an_instance_are_checked_when_it_is_enqueued(jobs: LiteJobs) -> None:
    jobs.define(Letter)
    wrong: Any = Letter
    assert "$.to" in refusal(PayloadError, jobs.enqueue, wrong(5))


def test_an_instance_of_a_class_that_is_not_defined_is_refused(jobs: LiteJobs) -> None:
    said = refusal(DefinitionError, jobs.enqueue, Letter("a"))
    assert said == "definition 'Letter': no definition: decorate its class with @jobs.define"


def test_an_instance_of_a_subclass_is_another_definition(jobs: LiteJobs) -> None:
    jobs.define(Letter)

    @attrs.frozen
    class Postcard(Letter):
        motif: str = ""

    assert "'Postcard'" in refusal(DefinitionError, jobs.enqueue, Postcard("a"))


def test_a_class_has_to_be_an_attrs_class_with_run(jobs: LiteJobs) -> None:
    class Plain:
        def run(self) -> None: ...

    assert "put @attrs.frozen below the @define" in refusal(DefinitionError, jobs.define, Plain)
    assert "has no run() method" in refusal(DefinitionError, jobs.define, Address)


def test_run_takes_nothing_but_a_context(jobs: LiteJobs) -> None:
    @attrs.frozen
    class Two:
        def run(self, context: Context, n: int) -> None: ...

    @attrs.frozen
    class Other:
        def run(self, n: int) -> None: ...

    said = refusal(DefinitionError, jobs.define, Two)
    assert said == "definition 'Two': run() takes at most a context; 'n' should be a field"

    def define_and_enqueue() -> None:
        jobs.define(Other)
        jobs.enqueue(Other())

    assert "'n' should be a field" in refusal(DefinitionError, define_and_enqueue)


def test_a_run_that_is_a_generator_is_refused_since_its_body_would_never_run(
    jobs: LiteJobs,
) -> None:
    @attrs.frozen
    class Steps:
        def run(self) -> Iterator[int]:
            yield 1

    assert "a generator" in refusal(DefinitionError, jobs.define, Steps)


# Options


def test_a_job_has_the_options_of_its_definition(jobs: LiteJobs) -> None:
    @jobs.define(
        queue="emails", priority=7, max_attempts=3, timeout=30, node="laptop", delay=10,
        backoff=Constant(2), retention=Retention(completed=None),
    )  # fmt: skip
    def send() -> None: ...

    job = send.enqueue()
    assert (job.queue, job.priority, job.max_attempts, job.node) == ("emails", 7, 3, "laptop")
    assert job.timeout == timedelta(seconds=30)
    assert job.state == "scheduled"
    assert job == job.refresh()


def test_the_grace_of_a_job_is_kept_however_it_comes_into_the_file(jobs: LiteJobs) -> None:
    @jobs.define(grace=9)
    def work(n: int) -> None: ...

    def stored(id: int) -> Any:
        sql = "SELECT grace FROM litejobs_job WHERE id = ?"
        return jobs.store.file.connection().execute(sql, (id,)).get

    own = work.using(grace=0.5)
    assert stored(work.enqueue(1).id) is None, "that of the definition is known by its name"
    ways = [own.enqueue(1), *jobs.enqueue_many([own.bind(1), own.bind(2)])]
    unique = Unique(on_conflict="replace")
    later = work.using(unique=unique, delay=60)
    ways.append(later.enqueue(1))
    assert later.using(grace=0.5).enqueue(1).duplicate
    connection = apsw.Connection(str(jobs.path))
    ways.append(own.using(connection=connection).enqueue(1))
    connection.close()
    jobs.schedule("often").set(60, own.bind(1))
    ways.append(jobs.schedule("often").fire())
    assert [stored(job.id) for job in ways] == [500_000] * len(ways)
    jobs.change(ways[0].id, to={"grace": 2})
    jobs.change(ways[1].id, to={"grace": None})
    assert [stored(job.id) for job in ways[:2]] == [2_000_000, None]


def test_the_defaults_are_five_attempts_in_the_queue_default(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    job = work.enqueue()
    assert (job.queue, job.priority, job.max_attempts, job.node) == ("default", 0, 5, None)
    assert (job.timeout, job.state) == (None, "pending")
    assert row_of(jobs.store, job.id).backoff is None


def test_using_gives_a_copy_with_other_options(jobs: LiteJobs) -> None:
    @jobs.define(queue="emails", priority=1)
    def send(queue: str) -> str:
        return queue

    urgent = send.using(priority=10).using(max_attempts=None)
    job = urgent.enqueue("a parameter of the same name")
    assert (job.queue, job.priority, job.max_attempts) == ("emails", 10, None)
    assert job.payload == {"queue": "a parameter of the same name"}
    assert send.enqueue("b").priority == 1
    assert isinstance(urgent, Definition)
    assert urgent.name == "send"
    assert urgent("c") == "c"


def test_a_delay_is_given_in_seconds_or_as_a_timedelta(jobs: LiteJobs, clock: TurnedClock) -> None:
    @jobs.define
    def work() -> None: ...

    assert work.using(delay=1.5).enqueue().run_at == clock.now + timedelta(seconds=1.5)
    later = work.using(delay=timedelta(days=2)).enqueue()
    assert (later.run_at, later.state) == (clock.now + timedelta(days=2), "scheduled")
    assert work.using(delay=0).enqueue().state == "pending"


def test_a_time_to_run_is_an_aware_datetime_of_any_zone(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    tea = datetime(2025, 1, 1, 17, tzinfo=timezone(timedelta(hours=1)))
    job = work.using(at=tea).enqueue()
    assert job.run_at == datetime(2025, 1, 1, 16, tzinfo=UTC)
    assert job.state == "scheduled"


def test_a_time_that_is_over_is_now(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    assert work.using(at=NEW_YEAR - timedelta(days=1)).enqueue().state == "pending"
    assert jobs.drain() == 1


def test_a_naive_time_is_refused(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    naive = datetime(2025, 1, 1)  # noqa: DTZ001
    said = refusal(OptionError, work.using, at=naive)
    assert said == f"at: {naive!r} has no time zone: add one, such as datetime.UTC"


def test_a_job_has_one_time_to_run(jobs: LiteJobs, clock: TurnedClock) -> None:
    @jobs.define(delay=60)
    def work() -> None: ...

    assert refusal(OptionError, work.using, at=NEW_YEAR, delay=5) == (
        "at: given together with delay: a job has one time to run"
    )
    tomorrow = clock.now + timedelta(days=1)
    assert work.using(at=tomorrow).enqueue().run_at == tomorrow
    assert work.using(at=tomorrow).using(delay=5).enqueue().run_at == clock.now + timedelta(
        seconds=5
    )


def test_the_delay_counts_from_the_enqueue_and_not_from_using(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define
    def work() -> None: ...

    soon = work.using(delay=10)
    clock.turn(100)
    assert soon.enqueue().run_at == clock.now + timedelta(seconds=10)


MISTAKES: list[tuple[str, Any, str]] = [
    ("queue", "", "expected 1 to 200 printable characters, got ''"),
    ("queue", None, "expected 1 to 200 printable characters, got None"),
    ("queue", "a\nb", r"expected 1 to 200 printable characters, got 'a\nb'"),
    ("node", "", "expected 1 to 200 printable characters, got ''"),
    ("node", 5, "expected 1 to 200 printable characters, got 5"),
    ("priority", "high", "expected an integer of 32 bits, got 'high'"),
    ("priority", 1.0, "expected an integer of 32 bits, got 1.0"),
    ("priority", True, "expected an integer of 32 bits, got True"),
    ("priority", 2**31, "expected an integer of 32 bits, got 2147483648"),
    ("priority", -(2**31) - 1, "expected an integer of 32 bits, got -2147483649"),
    ("max_attempts", 0, "expected 1 or more, or None for ever, got 0"),
    ("max_attempts", -1, "expected 1 or more, or None for ever, got -1"),
    ("max_attempts", "5", "expected 1 or more, or None for ever, got '5'"),
    ("max_attempts", True, "expected 1 or more, or None for ever, got True"),
    ("max_attempts", math.inf, "expected 1 or more, or None for ever, got inf"),
    ("timeout", 0, "expected more than zero, or None for no limit"),
    ("timeout", 1e-9, "expected more than zero, or None for no limit"),
    ("timeout", -1, "-1 is negative; a length of time is zero or more"),
    ("timeout", "30", "expected seconds or a timedelta, got '30'"),
    ("grace", -1, "-1 is negative; a length of time is zero or more"),
    ("delay", -1, "-1 is negative; a length of time is zero or more"),
    ("delay", timedelta(-1), f"{timedelta(-1)!r} is negative; a length of time is zero or more"),
    ("delay", "60", "expected seconds or a timedelta, got '60'"),
    ("delay", True, "expected seconds or a timedelta, got True"),
    ("delay", None, "expected seconds or a timedelta, got None"),
    ("delay", math.nan, "nan is not a length of time"),
    ("delay", math.inf, "inf is not a length of time"),
    ("delay", 10**12, f"{10**12} is more than a hundred years"),
    ("at", 5, "expected an aware datetime, got 5"),
    ("at", "tomorrow", "expected an aware datetime, got 'tomorrow'"),
    (
        "backoff",
        5,
        "expected Constant, Linear, Exponential, Polynomial or a function from attempt to delay,"
        " got 5",
    ),
    ("retention", 5, "expected a Retention, got 5"),
    ("retention", None, "expected a Retention, got None"),
    ("headers", {"from": 5}, "expected texts by their names, got {'from': 5}"),
    ("tags", 5, "expected words, got 5"),
    ("tags", ["", "a"], "expected 1 to 200 printable characters, got ''"),
    ("tags", [*map(str, range(21))], "21 words, more than 20"),
    ("meta", [1], "expected JSON values by their names, got [1]"),
    ("meta", {1: 2}, "expected JSON values by their names, got {1: 2}"),
    ("meta", {"a": {1}}, "expected JSON values: Object of type set is not JSON serializable"),
]


@pytest.mark.parametrize(("option", "value", "problem"), MISTAKES)
def test_a_value_that_an_option_cannot_have_is_refused_at_every_door(
    jobs: LiteJobs, option: str, value: Any, problem: str
) -> None:
    @jobs.define
    def work() -> None: ...

    def another() -> None: ...

    jobs.define(Letter)
    choice: dict[str, Any] = {option: value}
    said = f"{option}: {problem}"
    assert refusal(OptionError, work.using, **choice) == said
    assert refusal(OptionError, lambda: jobs.define(**choice)(another)) == said
    assert refusal(OptionError, jobs.enqueue, Letter("a"), **choice) == said
    assert refusal(OptionError, jobs.enqueue, work.bind(), **choice) == said
    assert jobs.count() == 0


def test_a_curve_without_its_numbers_is_no_backoff(jobs: LiteJobs) -> None:
    curve: Any = Exponential
    assert refusal(OptionError, jobs.define, backoff=curve).startswith("backoff: expected ")


def test_an_unknown_option_is_refused_with_the_nearest_known_one(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    using: Any = work.using
    define_any: Any = jobs.define
    assert refusal(OptionError, using, delai=5) == "delai: no such option; did you mean 'delay'?"
    assert refusal(OptionError, define_any, max_attempt=5) == (
        "max_attempt: no such option; did you mean 'max_attempts'?"
    )


def test_every_option_has_a_type_a_check_and_a_default() -> None:
    assert [*OPTIONS] == [*DefinitionChoices.__annotations__]
    assert [field.name for field in attrs.fields(Options)] == [*OPTIONS, "given"]


def test_an_unknown_option_that_is_near_to_none_is_refused_with_all(jobs: LiteJobs) -> None:
    define_any: Any = jobs.define
    said = refusal(OptionError, define_any, zzz=5)
    assert said == f"zzz: no such option; there is {', '.join(sorted(OPTIONS))}"


@given(
    queue=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=200),
    priority=st.integers(-(2**31), 2**31 - 1),
    max_attempts=st.none() | st.integers(1, 2**31 - 1),
    timeout=st.none() | st.timedeltas(timedelta(microseconds=1), timedelta(days=36500)),
    delay=st.timedeltas(timedelta(0), timedelta(days=36500)),
)
def test_every_value_that_an_option_allows_is_taken_as_it_is(
    queue: str,
    priority: int,
    max_attempts: int | None,
    timeout: timedelta | None,
    delay: timedelta,
) -> None:
    @define
    def work() -> None: ...

    options = work.using(
        queue=queue, priority=priority, max_attempts=max_attempts, timeout=timeout, delay=delay
    ).options
    assert (options.queue, options.priority, options.max_attempts) == (
        queue, priority, max_attempts,
    )  # fmt: skip
    assert (options.timeout, options.delay) == (timeout, delay)
    assert options.run_at(1000) == 1000 + delay // timedelta(microseconds=1)


# Binding


def test_a_bound_job_is_checked_but_not_enqueued(jobs: LiteJobs) -> None:
    @jobs.define
    def send(to: str) -> None: ...

    bound = send.using(priority=3).bind("a")
    assert isinstance(bound, Bound)
    assert jobs.count() == 0
    job = jobs.enqueue(bound)
    assert (job.name, job.priority, job.payload) == ("send", 3, {"to": "a"})
    wrong: Any = send
    assert "$.to" in refusal(PayloadError, wrong.bind, 5)


def test_a_bound_job_may_be_enqueued_with_other_options_and_more_than_once(jobs: LiteJobs) -> None:
    @jobs.define(queue="emails")
    def send() -> None: ...

    bound = send.bind()
    first, second = jobs.enqueue(bound, priority=5), jobs.enqueue(bound)
    assert (first.queue, first.priority) == ("emails", 5)
    assert (second.queue, second.priority) == ("emails", 0)
    assert first.id < second.id


def test_what_was_bound_does_not_change_with_the_objects_that_it_was_made_of(
    jobs: LiteJobs,
) -> None:
    @jobs.define
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    numbers = [1, 2]
    bound = total.bind(numbers)
    numbers.append(100)
    job = jobs.enqueue(bound)
    jobs.drain()
    assert job.result(timeout=0) == 3


def test_many_jobs_of_both_forms_are_enqueued_in_order(jobs: LiteJobs) -> None:
    @jobs.define
    def send(to: str) -> None: ...

    jobs.define(Letter)
    many = jobs.enqueue_many([send.bind("a"), Letter("b"), *(send.bind(c) for c in "cd")])
    assert [job.name for job in many] == ["send", "Letter", "send", "send"]
    assert [job.id for job in many] == sorted(job.id for job in many)
    assert [jobs.get(job.id) for job in many] == [*many] == [many[n] for n in range(4)]
    assert many[1:3] == [*many][1:3]
    assert many[-1] == [*many][-1]
    assert len(many) == 4


def test_many_jobs_are_enqueued_all_or_none(jobs: LiteJobs) -> None:
    jobs.define(Letter)
    wrong: Any = Letter
    refusal(PayloadError, jobs.enqueue_many, [Letter("a"), wrong(5), Letter("c")])
    assert jobs.count() == 0


def test_a_definition_alone_is_not_a_job(jobs: LiteJobs) -> None:
    @jobs.define
    def send() -> None: ...

    said = refusal(DefinitionError, jobs.enqueue, send)
    assert (
        said == "definition 'send': not a job yet: write f.enqueue(…), or jobs.enqueue(f.bind(…))"
    )


# Registries


def test_definitions_of_a_library_are_bound_when_the_program_starts(jobs: LiteJobs) -> None:
    @define(queue="emails", max_attempts=2)
    def send(to: str) -> str:
        return to

    jobs.register(send)
    job = send.enqueue("a")
    assert (job.queue, job.max_attempts) == ("emails", 2)
    jobs.drain()
    assert job.result(timeout=0) == "a"


def test_copies_made_before_the_registration_enqueue_after_it(jobs: LiteJobs) -> None:
    @define
    def send() -> None: ...

    urgent = send.using(priority=10)
    jobs.register(send)
    assert urgent.enqueue().priority == 10


def test_classes_of_a_library_are_registered_like_functions(jobs: LiteJobs) -> None:
    @define(queue="parcels")
    @attrs.frozen
    class Parcel:
        to: str

        def run(self) -> str:
            return self.to

    register: Any = jobs.register
    register(Parcel)
    job = jobs.enqueue(Parcel("a"))
    jobs.drain()
    assert (job.queue, job.result(timeout=0)) == ("parcels", "a")


def test_a_definition_that_no_queue_has_says_so(jobs: LiteJobs) -> None:
    @define
    def send() -> None: ...

    said = refusal(DefinitionError, send.enqueue)
    assert said == "definition 'send': belongs to no queue yet: jobs.register(it) first"
    send()


def test_no_definition_is_added_once_work_has_started(jobs: LiteJobs) -> None:
    @jobs.define
    def work() -> None: ...

    @define
    def late() -> None: ...

    with jobs.start(threads=1):
        said = refusal(DefinitionError, jobs.register, late)
        problem = "defined after work had started: do it before, or stop the node first"
        assert said == f"definition 'late': {problem}"
        assert "'Letter'" in refusal(DefinitionError, jobs.define, Letter)
        assert refusal(DefinitionError, late.enqueue).endswith("jobs.register(it) first")
        assert work.enqueue().wait(30).state == "completed"
    jobs.register(late)
    job = late.enqueue()
    with jobs.start(threads=1):
        assert job.wait(30).state == "completed"


def test_work_without_definitions_says_that_there_is_nothing_to_run(jobs: LiteJobs) -> None:
    assert "use @jobs.define first" in refusal(DefinitionError, jobs.drain)


def test_one_define_may_serve_several_definitions(jobs: LiteJobs) -> None:
    email = jobs.define(queue="emails", priority=1)

    @email
    def welcome() -> None: ...

    @email(priority=5)
    def reset_password() -> None: ...

    first, second = welcome.enqueue(), reset_password.enqueue()
    assert (first.queue, first.priority) == ("emails", 1)
    assert (second.queue, second.priority) == ("emails", 5)


def test_a_job_says_what_its_definition_returns_to_the_type_checker(jobs: LiteJobs) -> None:
    @jobs.define
    def length(text: str) -> int:
        return len(text)

    job: Job[int] = length.enqueue("abc")
    jobs.drain()
    assert job.result(timeout=0) == 3


@pytest.mark.parametrize("policy", [Constant(1), lambda attempt: 5, Constant(3).curve])
def test_a_backoff_is_a_curve_or_anything_that_can_be_called(policy: Any) -> None:
    @define(backoff=policy)
    def work() -> None: ...

    assert work.options.backoff == policy


def test_too_many_arguments_are_counted_as_the_caller_does(jobs: LiteJobs) -> None:
    @jobs.define
    def one(a: int = 1) -> None: ...

    enqueue: Any = one.enqueue
    said = refusal(PayloadError, enqueue, 1, 2)
    assert "one() takes no more than 1 arguments, 2 were given" in said


@pytest.mark.parametrize("option", ["encode", "name", "fail_on"])
def test_what_belongs_to_a_definition_is_no_choice(jobs: LiteJobs, option: str) -> None:
    using: Any = jobs.define(name="f")(lambda: None).using
    assert "belongs to the definition" in refusal(OptionError, using, **{option: 1})
