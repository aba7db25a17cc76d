"""The programs in examples/coming_from: they run, and keep the numbers of where they come from."""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import printed

from litejobs import Backoff, Definition, LiteJobs, backoff_delay, definition_of

FOLDER = Path(__file__).parents[1] / "examples" / "coming_from"
README = (FOLDER.parents[1] / "README.md").read_text("utf-8")
PRINTED = {
    "apscheduler": "13 jobs after ten minutes of sleep\n1 job at once",
    "background_jobs": "hello you",
    "celery": "sent to you\n10 completed",
    "dramatiq": "sent to you\n['Fail: nobody to send it to']",
    "goforj_queue": "WELCOME, ADA",
    "huey": "sent to you",
    "rq": "5 words\nMoved(moved=0, left=0)",
    "state_cpp": "sent to you, sent to you, all is quiet\n3 attempts",
    "xraph_dispatch": "sent to you\nMoved(moved=0, left=0)",
    "zizq": "sent to you\nsent to me",
}
"""The last lines of each program."""
DAY = 86_400.0


def test_each_program_is_in_the_readme_and_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*PRINTED}
    for name in PRINTED:
        assert f"(examples/coming_from/{name}.py)" in README


@pytest.mark.parametrize("name", PRINTED)
def test_a_program_runs(name: str, tmp_path: Path) -> None:
    assert printed(FOLDER / f"{name}.py", tmp_path).endswith(PRINTED[name] + "\n")
    with LiteJobs(next(tmp_path.glob("*.db"))) as jobs:
        assert jobs.doctor() == [] or name in ("apscheduler", "dramatiq")


def chosen(system: str, option: str, definition: str) -> Any:
    """What a program's definition, or else its queue, has for an option."""
    program = runpy.run_path(str(FOLDER / f"{system}.py"), run_name="program")
    made = program[definition]
    found = made if isinstance(made, Definition) else definition_of(made)
    assert isinstance(found, Definition)
    return getattr(found.options, option)


@pytest.mark.parametrize(
    ("system", "definition", "runs"),
    [
        ("apscheduler", "report", 1),
        ("background_jobs", "MyJob", 6),
        ("background_jobs", "Stubborn", None),
        ("celery", "download", 4),
        ("dramatiq", "send_email", 21),
        ("goforj_queue", "welcome", 1),
        ("huey", "send_email", 1),
        ("huey", "download", 3),
        ("rq", "send_email", 1),
        ("rq", "count_words", 4),
        ("xraph_dispatch", "send_email", 4),
        ("zizq", "SendEmail", 26),
    ],
)
def test_a_job_runs_as_often_as_it_did_there(
    system: str, definition: str, runs: int | None
) -> None:
    assert chosen(system, "max_attempts", definition) == runs


Waits = Callable[[int], tuple[float, float]]


def exactly(wait: Callable[[int], float]) -> Waits:
    return lambda n: (wait(n), wait(n))


def up_to(wait: Callable[[int], float]) -> Waits:
    return lambda n: (0.0, wait(n))


@pytest.mark.parametrize(
    ("system", "definition", "wait"),
    [
        ("background_jobs", "MyJob", exactly(lambda n: 2**n)),
        ("background_jobs", "Stubborn", exactly(lambda n: 5)),
        ("celery", "download", exactly(lambda n: 180)),
        ("celery", "upload", up_to(lambda n: min(2 ** (n - 1), 600))),
        ("goforj_queue", "welcome", exactly(lambda n: 0)),
        ("goforj_queue", "report", exactly(lambda n: 0.5)),
        ("huey", "download", exactly(lambda n: 60)),
        ("huey", "upload", exactly(lambda n: min(60 * 2 ** (n - 1), 3600))),
        ("rq", "count_words", exactly(lambda n: (10, 30, 60, 60)[min(n, 4) - 1])),
        ("xraph_dispatch", "send_email", up_to(lambda n: min(2 ** (n - 1), 60))),
        ("zizq", "SendEmail", lambda n: (n**4 + 15, n**4 + 15 + 30 * n)),
    ],
)
def test_a_job_waits_as_long_as_it_did_there(system: str, definition: str, wait: Waits) -> None:
    rng = random.Random(7)
    policy = chosen(system, "backoff", definition)
    for attempt in range(1, 11):
        least, most = wait(attempt)
        margin = 0.2 * (most - least)
        drawn = [seconds(policy, attempt, rng) for _ in range(100)]
        assert least <= min(drawn) <= least + margin
        assert most - margin <= max(drawn) <= most


def seconds(policy: Backoff, attempt: int, rng: random.Random) -> float:
    return backoff_delay(policy, attempt, rng).total_seconds()


def test_a_zizq_job_tries_for_about_25_days() -> None:
    policy = chosen("zizq", "backoff", "SendEmail")
    rng = random.Random(7)
    in_all = sum(seconds(policy, attempt, rng) for attempt in range(1, 26))
    assert 24 * DAY < in_all < 26 * DAY
