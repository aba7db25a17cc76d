"""Options of jobs: each one survives every way that a job takes."""

import inspect
import json
import pydoc
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import apsw
import pytest
from conftest import TurnedClock

from litejobs import (
    CHOICES,
    JOB_COLUMNS,
    STORED,
    Bound,
    Choices,
    Claimed,
    Constant,
    Context,
    Declaring,
    Definition,
    Filters,
    Job,
    LiteJobs,
    NodeOptions,
    Queue,
    QueueChoices,
    Retention,
    Unique,
    main,
)

EXAMPLES: dict[str, Any] = {
    "queue": "urgent",
    "priority": 7,
    "max_attempts": None,
    "timeout": 90,
    "grace": 0.5,
    "backoff": Constant(3),
    "retention": Retention(completed=60),
    "node": "laptop",
    "expires": timedelta(hours=1),
    "unique": Unique(ttl=60),
    "key": "customer 5",
    "headers": {"tenant": "7"},
    "tags": ("acme", "import"),
    "meta": {"customer": 7},
}
"""Of each option that a row keeps, a value other than the default."""
SAYS_WHEN = {"delay", "at"}
OF_OTHERS = {"key_limit", "connection"}
"""Options that mean something for others only: a key, and where the row goes."""

Way = Callable[[LiteJobs, Bound[Any], str], Job[Any]]


def on_the_callers_connection(jobs: LiteJobs, work: Bound[Any], option: str) -> Job[Any]:
    jobs.count()
    connection = apsw.Connection(str(jobs.path))
    try:
        return jobs.enqueue(work, connection=connection)
    finally:
        connection.close()


def in_place_of_another(jobs: LiteJobs, work: Bound[Any], option: str) -> Job[Any]:
    unique = Unique(key="one", on_conflict="replace")
    first = jobs.enqueue(jobs.registry.named("work").bind().using(unique=unique))
    kept = work if option == "unique" else work.using(unique=unique)
    second = jobs.enqueue(kept)
    assert second.duplicate is (option != "unique")
    assert (second.id == first.id) is (option != "unique")
    return second


def by_a_schedule(jobs: LiteJobs, work: Bound[Any], option: str) -> Job[Any]:
    jobs.schedule("often").set(60, work)
    return jobs.schedule("often").fire()


WAYS: dict[str, Way] = {
    "enqueue_many, with others": lambda jobs, work, option: jobs.enqueue_many(
        [jobs.registry.named("work").bind(), work]
    )[1],
    "enqueue_many, twice": lambda jobs, work, option: jobs.enqueue_many(
        [work] if option == "unique" else [work, work]
    )[-1],
    "the caller's connection": on_the_callers_connection,
    "replace": in_place_of_another,
    "a schedule": by_a_schedule,
}
COLUMNS = "SELECT name FROM pragma_table_info('litejobs_job')"
ONLY_ITS_OWN = {"id", "schedule", "unique_key", "unique_scope", "unique_until", "state"}
"""Columns in which two jobs with the same options may differ."""


@pytest.fixture
def work(jobs: LiteJobs, clock: TurnedClock) -> Any:
    @jobs.define
    def work(context: Context) -> dict[str, Any]:
        return {name: repr(getattr(context.job, name)) for name in shown(context.job)}

    return work


def shown(job: Job[Any]) -> list[str]:
    """The options that a job shows."""
    return [option for option in CHOICES if hasattr(job, option)]


def row(jobs: LiteJobs, job: Job[Any], option: str) -> dict[str, Any]:
    with jobs.store.file.transaction(read_only=True) as tx:
        names = [name for (name,) in tx.execute(COLUMNS)]
        sql = f"SELECT {', '.join(map(str, names))} FROM litejobs_job WHERE id = ?"
        values: dict[Any, Any] = dict(
            zip(names, tx.execute(sql, (job.id,)).fetchall()[0], strict=True)
        )
    left = ONLY_ITS_OWN - ({"unique_key", "unique_until"} if option == "unique" else set())
    return {name: value for name, value in values.items() if name not in left}


def test_every_option_has_an_example() -> None:
    assert {*CHOICES} == {*EXAMPLES} | SAYS_WHEN | OF_OTHERS
    assert {*STORED} <= {*EXAMPLES}


@pytest.mark.parametrize("option", EXAMPLES)
class TestEachOption:
    def test_is_stored_and_the_same_by_every_way(
        self, jobs: LiteJobs, work: Any, option: str
    ) -> None:
        plain = row(jobs, work.enqueue(), option)
        bound = work.using(**{option: EXAMPLES[option]}).bind()
        expected = row(jobs, jobs.enqueue(bound), option)
        assert expected != plain
        for name, way in WAYS.items():
            jobs.delete(state=["pending", "scheduled", "blocked"])
            found = row(jobs, way(jobs, bound, option), option)
            assert found == expected, name

    def test_of_a_definition_is_that_of_its_jobs(
        self, jobs: LiteJobs, work: Any, option: str
    ) -> None:
        if option == "grace":
            pytest.skip("nodes know that of a definition by its name")
        expected = row(jobs, work.using(**{option: EXAMPLES[option]}).enqueue(), option)
        other = jobs.define(name="other", **{option: EXAMPLES[option]})(lambda: None)
        differ = {"name", "unique_key"}
        found = row(jobs, other.enqueue(), option)
        assert {k: v for k, v in found.items() if k not in differ} == {
            k: v for k, v in expected.items() if k not in differ
        }

    def test_is_shown_by_the_job_and_its_context_and_on_the_command_line(
        self, jobs: LiteJobs, work: Any, option: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = work.using(**{option: EXAMPLES[option]}).enqueue()
        if option in JOB_COLUMNS and option in shown(job):
            assert getattr(job, option) == getattr(jobs.get(job.id), option)
            assert getattr(job, option) != getattr(work.enqueue(), option)
        if option != "node":
            jobs.drain()
            seen = job.result(0)
            for name in shown(job):
                if name in Claimed._fields:
                    assert seen[name] == repr(getattr(job, name)), name
        assert main(["show", str(jobs.path), str(job.id), "--json"]) == 0
        values = json.loads(capsys.readouterr().out)
        for name in {*shown(job)} & {*JOB_COLUMNS} - {"timeout", "headers"}:
            value = getattr(jobs.get(job.id), name)
            assert values[name] == (list(value) if name == "tags" else value), name


@pytest.mark.parametrize(
    ("method", "typed"),
    [
        (LiteJobs.work, NodeOptions),
        (LiteJobs.find, Filters),
        (LiteJobs.cron, Declaring),
        (LiteJobs.enqueue, Choices),
        (Bound.using, Choices),
        (Definition.using, Choices),
        (Queue.set, QueueChoices),
    ],
    ids=lambda given: getattr(given, "__qualname__", ""),
)
def test_help_names_each_option_that_a_method_takes(method: Any, typed: Any) -> None:
    assert typed.__annotations__.keys() <= inspect.signature(method).parameters.keys()
    for name in typed.__annotations__:
        assert f"{name}: " in pydoc.plain(pydoc.render_doc(method))


def test_ids_are_a_filter_of_the_command_line_too(
    jobs: LiteJobs, capsys: pytest.CaptureFixture[str]
) -> None:
    work = jobs.define(name="work")(lambda: None)
    first, _, third = (work.enqueue().id for _ in range(3))
    ids = ["--id", str(first), "--id", str(third)]
    assert main(["list", str(jobs.path), "--json", *ids]) == 0
    assert [job["id"] for job in json.loads(capsys.readouterr().out)] == [third, first]
