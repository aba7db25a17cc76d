"""Words of other libraries end in an error that names ours."""

from __future__ import annotations

import copy
import doctest
import inspect
import pickle
import re
from typing import Any

import attrs
import pytest

import litejobs
from litejobs import (
    NAMES_ELSEWHERE,
    OPTIONS_ELSEWHERE,
    Bound,
    Context,
    Definition,
    DefinitionError,
    Job,
    LiteJobs,
    OptionError,
    PayloadError,
)

OWNERS: dict[str, Any] = {"f": Definition, "jobs": LiteJobs, "job": Job, "context": Context}


@pytest.fixture
def send(jobs: LiteJobs) -> Any:
    @jobs.define
    def send(to: str, copies: int = 1) -> str:
        """Sends.

        >>> send("a")
        'a'
        """
        return to

    return send


@pytest.mark.parametrize(
    ("owner", "name", "hint"),
    [
        ("send", "delay", "write f.enqueue(…), or f.using(delay=60).enqueue(…) with an option"),
        ("send", "apply_async", "f.using(delay=60).enqueue(…)"),
        ("send", "s", "write f.bind(…)"),
        ("bound", "enqueue", "write jobs.enqueue(f.bind(…))"),
        ("jobs", "task", "'LiteJobs' object has no attribute 'task': write @jobs.define"),
        ("jobs", "periodic_task", "write @jobs.cron(…) or @jobs.every(…)"),
        ("jobs", "worker", "write jobs.work(), or jobs.start() in the background"),
        ("job", "get", "write job.result(timeout)"),
        ("context", "retry", "write raise Retry(delay), or Snooze(delay)"),
    ],
)
def test_an_attribute_of_another_library_leads_to_ours(
    jobs: LiteJobs, send: Any, owner: str, name: str, hint: str
) -> None:
    job = send.enqueue("a")
    owners = {"send": send, "jobs": jobs, "job": job, "bound": send.bind("a")}
    with pytest.raises(AttributeError, match=re.escape(hint)):
        getattr(owners.get(owner) or Context(job, None), name)


def test_every_hint_names_what_is_there() -> None:
    for hint in NAMES_ELSEWHERE.values():
        for owner, name in re.findall(r"\b(f|jobs|job|context)\.(\w+)", hint):
            assert hasattr(OWNERS[owner], name) or name in attrs.fields_dict(OWNERS[owner]), hint
        for name in re.findall(r"raise (\w+)|or (\w+)\(", hint):
            assert hasattr(litejobs, "".join(name)), hint
    tables: Any = litejobs.OPTIONS, litejobs.FILTERS, litejobs._SETTING_CHECKS
    typed: Any = litejobs.NodeOptions, litejobs.Declaring
    known = {"workers"}.union(*tables, *(each.__annotations__ for each in typed))
    assert {*OPTIONS_ELSEWHERE.values()} <= known
    assert not known & {*OPTIONS_ELSEWHERE}


def test_names_that_are_not_there_are_absent_for_all_who_look(jobs: LiteJobs, send: Any) -> None:
    owners: list[Any] = [send, jobs, send.bind("a"), send.enqueue("a")]
    for owner in owners:
        assert not hasattr(owner, "delay")
        assert getattr(owner, "apply_async", None) is None
        assert not hasattr(owner, "_repr_html_")
        with pytest.raises(AttributeError, match=r"^'\w+' object has no attribute 'nonsense'$"):
            _ = owner.nonsense
    assert not inspect.isawaitable(send)
    assert not inspect.iscoroutine(send)


def test_copies_and_pickles_are_made_as_before(send: Any) -> None:
    job = send.enqueue("a")
    assert copy.copy(send).enqueue("b").payload == {"to": "b"}
    assert copy.copy(job) == job
    assert copy.copy(send.bind("a")).payload == '{"to":"a"}'
    bare: Any = Definition.__new__(Definition)
    with pytest.raises(AttributeError, match="body"):
        _ = bare.name
    schedule = pickle.loads(pickle.dumps(litejobs.Progress(1, 2)))
    assert schedule.share == 0.5


def test_doctest_runs_the_examples_of_a_definition(send: Any) -> None:
    examples = doctest.DocTestFinder().find(send.body.code, "send", globs={"send": send})
    assert [doctest.DocTestRunner(verbose=False).run(each).failed for each in examples] == [0]


@pytest.mark.parametrize(
    ("given", "hint"),
    [("delay", "delay"), ("countdown", "delay"), ("priority", "priority"), ("eta", "at")],
)
def test_an_option_among_the_arguments_is_sent_to_using(send: Any, given: str, hint: str) -> None:
    with pytest.raises(PayloadError, match=rf"'{given}'; .*f\.using\({hint}=…\)\.enqueue"):
        send.enqueue("a", **{given: 3})


def test_a_parameter_that_bears_an_options_name_is_a_parameter(jobs: LiteJobs) -> None:
    @jobs.define
    def wait(delay: int, countdown: int) -> None: ...

    assert wait.enqueue(delay=3, countdown=4).payload == {"delay": 3, "countdown": 4}
    with pytest.raises(PayloadError, match=r"unexpected keyword argument 'too'$"):
        wait.enqueue(delay=3, countdown=4, too=5)  # type: ignore[call-arg]


def test_an_option_that_is_called_otherwise_elsewhere_is_named(jobs: LiteJobs, send: Any) -> None:
    wrong: dict[str, tuple[Any, str]] = {
        "countdown": (send.using, "delay"),
        "max_retries": (jobs.define, "max_attempts"),
        "time_limit": (jobs.define, "timeout"),
        "processes": (jobs.work, "workers"),
        "status": (jobs.find, "state"),
    }
    for given, (call, ours) in wrong.items():
        with pytest.raises(OptionError, match=f"did you mean '{ours}'"):
            call(**{given: 3})
    with pytest.raises(OptionError, match="did you mean 'timezone'"):
        jobs.cron("@daily", tz="Europe/Berlin")  # type: ignore[call-overload]


def test_what_is_no_job_is_refused_with_the_way_to_one(jobs: LiteJobs, send: Any) -> None:
    def plain() -> None: ...

    for given, name in ((plain, "plain"), ("send", "send"), (Bound, "Bound")):
        with pytest.raises(DefinitionError, match=rf"'{name}': not a job: call enqueue\(\) of its"):
            jobs.enqueue(given)
    add: Any = jobs.enqueue  # As RQ does it.
    for arguments in ((send,), (send, "a")):
        with pytest.raises(DefinitionError, match=r"'send': not a job yet: write f\.enqueue\(…\)"):
            add(*arguments)
    with pytest.raises(DefinitionError, match="'plain': not a job"):
        add(plain, 1, 2)
    with pytest.raises(TypeError, match=r"takes one job; for several there is enqueue_many\(\)"):
        add(send.bind("a"), send.bind("b"))
    assert jobs.count() == 0
    assert "arguments" not in inspect.signature(jobs.enqueue).parameters
