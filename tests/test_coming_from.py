"""What the README says to those who come from other systems: every line of code in it works."""

from __future__ import annotations

import ast
import inspect
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest

import litejobs
from litejobs import (
    Backoff,
    Cancel,
    Context,
    Definition,
    Fail,
    Job,
    LiteJobs,
    OptionError,
    Retry,
    Snooze,
    backoff_delay,
    define,
)

README = Path(__file__).parents[1] / "README.md"
SYSTEMS = [
    "State (C++)",
    "xraph/dispatch (Go)",
    "Forj, goforj/queue (Go)",
    "asonix background-jobs (Rust)",
    "Zizq (Rust)",
    "Celery",
    "RQ",
    "huey",
    "APScheduler 3",
]
HEAD = ["ours", "the line"]
CODE = re.compile(r"`(.+?)`")
DAY = 86_400.0

Names = dict[str, Any]


class Table(NamedTuple):
    """One system's: the cells of its rows, and the lines of code in the last of them."""

    head: list[str]
    rows: list[list[str]]
    lines: list[str]


def read_tables(readme: str) -> dict[str, Table]:
    """The tables of the part, by what stands above their first column."""
    part = readme.partition("\n## Coming from")[2].partition("\n## ")[0]
    tables = {}
    for text in re.findall(r"(?:^\|.*\|$\n?)+", part, re.MULTILINE):
        cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()]
        (system, *head), rows = cells[0], cells[2:]
        lines = [line for row in rows for line in CODE.findall(row[-1])]
        tables[system] = Table(head, rows, lines)
    return tables


TABLES = read_tables(README.read_text("utf-8"))
LINES = [(system, line) for system, table in TABLES.items() for line in table.lines]


# What the lines stand in


@attrs.frozen
class Email:
    to: str

    def run(self) -> None: ...


@define
@attrs.frozen
class Report:
    def run(self) -> None: ...


def send_email(to: str, subject: str = "Hi") -> str:
    return f"{subject} {to}"


def connect() -> str:
    return "connected"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job[str]]:
    """A job that has completed, in a file of its own."""
    with LiteJobs(tmp_path_factory.mktemp("done") / "jobs.db", durability="fast") as jobs:
        job = jobs.define(send_email).enqueue("you")
        jobs.drain()
        yield job


@pytest.fixture
def names(jobs: LiteJobs, done: Job[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Names:
    """What a program has that uses the lines. (The lines take names for definitions of their
    own, so that those of ours are others.)"""
    monkeypatch.chdir(tmp_path)
    public = {name: getattr(litejobs, name) for name in litejobs.__all__}
    standard = {"UTC": UTC, "datetime": datetime, "random": random, "timedelta": timedelta}
    return {
        **public,
        **standard,
        "jobs": jobs,
        "send_email": jobs.define(name="function")(send_email),
        "SendEmail": jobs.define(name="class")(Email),
        "Report": Report,
        "connect": connect,
        "job": done,
        "context": Context(done, None),
        "__name__": __name__,
    }


BODIES = {
    "@jobs.middleware.": "def task(context, call_next): return call_next()",
    "@jobs.on(": "def task(event): ...",
    "@": "def task(to: str = 'you', subject: str = 'Hi') -> str: return to",
    "": "",
}
"""What follows a decorator, by how it begins."""


def run(line: str, names: Names) -> None:
    """Does what a line says. Of one that would start a node, only the arguments are looked
    at: it takes as many as the method has, by names that the method knows."""
    body = next(body for start, body in BODIES.items() if line.startswith(start))
    program = ast.parse(f"{line}\n{body}")
    starts = [node for node in ast.walk(program) if starts_a_node(node)]
    for call in starts:
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Attribute)
        arguments = [ast.literal_eval(value) for value in call.args]
        by_name = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        inspect.signature(getattr(names["jobs"], call.func.attr)).bind(*arguments, **by_name)
    if not starts:
        exec(compile(program, "README.md", "exec"), names)


def starts_a_node(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("jobs.work", "jobs.start")


def test_there_is_one_table_for_each_system() -> None:
    assert list(TABLES) == SYSTEMS


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_table_is_short_and_gives_a_line_for_everything(system: str) -> None:
    table = TABLES[system]
    assert table.head == HEAD
    assert 5 <= len(table.rows) <= 9
    for row in table.rows:
        assert len(row) == 3, row
        assert set(CODE.sub("", row[-1])) <= set(", "), "the last cell is code and nothing else"
        assert CODE.search(row[-1]), row


@pytest.mark.parametrize(("system", "line"), LINES)
def test_every_line_works(system: str, line: str, names: Names, jobs: LiteJobs) -> None:
    if line.startswith("raise "):
        with pytest.raises((Cancel, Fail, Retry, Snooze)):
            run(line, names)
        return
    enqueued = run_and_enqueue(line, names)
    if names["jobs"] is not jobs:
        assert names["jobs"].state() == "connected"
        return
    jobs.drain()
    for job in enqueued:
        assert job.refresh().state == "completed"


def run_and_enqueue(line: str, names: Names) -> list[Job[Any]]:
    """Does what a line says, and makes a job of what a decorator stood on, if that is a
    definition now."""
    run(line, names)
    task = names.get("task")
    return [task.enqueue("you")] if isinstance(task, Definition) else []


@pytest.mark.parametrize(
    "line",
    [
        "@jobs.define(max_retries=3)",
        "@jobs.define(backoff=Exponential(5, jitter='some'))",
        "@jobs.define(unique=Unique(['from']))",
        "@jobs.define(key=lambda who: who)",
        "send_email.using(priority='high').enqueue('you')",
        "jobs.queue('mail').set(rate='fast')",
        "jobs.retry(states='failed')",
        "jobs.work(processes=4)",
        "jobs.start(4, 5)",
        "nothing.enqueue('you')",
        "jobs.enqueue(SendEmail(to='you')",
    ],
)
def test_a_line_that_does_not_work_is_noticed(line: str, names: Names) -> None:
    with pytest.raises((OptionError, TypeError, NameError, SyntaxError)):
        run_and_enqueue(line, names)


# The numbers behind the lines


def chosen(system: str, option: str, names: Names) -> Iterator[Any]:
    """What a system's lines choose for an option, in their order: of a definition or of a
    queue."""
    for line in TABLES[system].lines:
        if f"{option}=" in line and not line.startswith("send_email"):
            with LiteJobs("queue.db", durability="fast") as jobs:
                line_names = {**names, "jobs": jobs}
                run(line, line_names)
                task = line_names.get("task")
                if isinstance(task, Definition):
                    yield getattr(task.options, option)
                else:
                    yield jobs.queue("emails").settings.defaults[option]


@pytest.mark.parametrize(
    ("system", "runs"), [*zip(SYSTEMS, [3, 4, 1, 6, 26, 4, 1, 1, 1], strict=True)]
)
def test_a_job_runs_as_often_as_it_did_there(system: str, runs: int, names: Names) -> None:
    assert next(chosen(system, "max_attempts", names)) == runs


Waits = Callable[[int], tuple[float, float]]


def exactly(wait: Callable[[int], float]) -> Waits:
    return lambda n: (wait(n), wait(n))


def up_to(wait: Callable[[int], float]) -> Waits:
    return lambda n: (0.0, wait(n))


@pytest.mark.parametrize(
    ("system", "waits"),
    [
        ("State (C++)", [exactly(lambda n: 5 * 2 ** (n - 1))]),
        ("xraph/dispatch (Go)", [up_to(lambda n: min(2 ** (n - 1), 60))]),
        ("Forj, goforj/queue (Go)", [exactly(lambda n: 0), exactly(lambda n: 0.5)]),
        ("asonix background-jobs (Rust)", [exactly(lambda n: 2**n), exactly(lambda n: 5)]),
        ("Zizq (Rust)", [lambda n: (n**4 + 15, n**4 + 15 + 30 * n)]),
        ("Celery", [exactly(lambda n: 180), up_to(lambda n: min(2 ** (n - 1), 600))]),
        ("RQ", [exactly(lambda n: (10, 30, 60, 60)[min(n, 4) - 1])]),
        ("huey", [exactly(lambda n: 60), exactly(lambda n: min(60 * 2 ** (n - 1), 3600))]),
    ],
)
def test_a_job_waits_as_long_as_it_did_there(system: str, waits: list[Waits], names: Names) -> None:
    rng = random.Random(7)
    policies: list[Backoff] = list(chosen(system, "backoff", names))
    assert len(policies) == len(waits)
    for policy, wait in zip(policies, waits, strict=True):
        for attempt in range(1, 11):
            least, most = wait(attempt)
            margin = 0.2 * (most - least)
            drawn = [seconds(policy, attempt, rng) for _ in range(100)]
            assert least <= min(drawn) <= least + margin
            assert most - margin <= max(drawn) <= most


def seconds(policy: Backoff, attempt: int, rng: random.Random) -> float:
    return backoff_delay(policy, attempt, rng).total_seconds()


def test_a_zizq_job_tries_for_about_25_days(names: Names) -> None:
    (policy,) = chosen("Zizq (Rust)", "backoff", names)
    rng = random.Random(7)
    in_all = sum(seconds(policy, attempt, rng) for attempt in range(1, 26))
    assert 24 * DAY < in_all < 26 * DAY
