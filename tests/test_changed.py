"""Definitions that change while jobs wait: the jobs whose payloads no longer fit."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from chaos.older import older_file
from conftest import TurnedClock, write_by_hand

from litejobs import (
    Event,
    Job,
    LiteJobs,
    Moved,
    PayloadError,
    RecordJobs,
    Unique,
)

OLD = "def send(to: str) -> str: return f'old {to}'"
NEW = "def send(to: str, copies: int) -> str: return f'{copies} {to}'"
Program = Callable[..., LiteJobs]


@pytest.fixture
def program(tmp_path: Path, clock: TurnedClock) -> Program:
    """A program with the definition `send` as it is in a text, on the same file as all others."""

    def program(code: str, module: str = "program", **options: Any) -> LiteJobs:
        made: Any = types.ModuleType(module)
        made.Any = Any
        exec(compile(code, module, "exec", dont_inherit=True), vars(made))
        jobs = LiteJobs(tmp_path / "jobs.db", durability="fast", clock=clock)
        if upgrade := getattr(made, "upgrade", None):
            options["upgrade"] = upgrade
        jobs.define(**options)(made.send)
        return jobs

    return program


def enqueue(jobs: LiteJobs, *args: Any, **options: Any) -> Job[Any]:
    job: Job[Any] = jobs.registry.named("send").using(**options).enqueue(*args)
    return job


def unfit(program: Program, **options: Any) -> Job[Any]:
    """A job of the old program that the new one has found not to fit."""
    job = enqueue(program(OLD), "ada", **options)
    assert program(NEW).drain() == 1
    job = job.refresh()
    assert (job.state, job.attempt, job.errors) == ("blocked", 0, ())
    assert job.unfit_at is not None
    return job


def test_a_job_that_lacks_a_new_parameter_goes_on_when_a_node_has_a_default_for_it(
    program: Program,
) -> None:
    job = unfit(program)
    later = program("def send(to: str, copies: int = 2) -> str: return f'{copies} {to}'")
    assert later.drain() == 1
    job = job.refresh()
    assert (job.result(), job.attempt, job.error, job.unfit_at) == ("2 ada", 1, None, None)
    assert later.stats() == {"default": {"completed": 1}}


def test_a_job_that_did_not_fit_is_tried_again_once_by_each_other_definition(
    program: Program,
) -> None:
    job = unfit(program)
    other = "def send(to: int) -> str: return ''"
    assert [program(code).drain() for code in (NEW, other, NEW, other, NEW)] == [0, 1, 0, 0, 0]
    assert program(NEW, module="__main__").drain() == 0  # The same, imported by another name.
    assert program(OLD).drain() == 1
    assert job.result() == "old ada"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("to: str", "to: int"),
        ("to: str", "to: str, copies: int"),
        ("to: str, copies: int", "to: str, copies: int = 1"),
        ("to: list[str]", "to: list[int]"),
        ("to: Address", "to: Address  # int = 0"),
        ("to: Flag", "to: Flag  # B = 2"),
    ],
)
def test_definitions_that_accept_other_payloads_are_told_apart(
    program: Program, before: str, after: str
) -> None:
    code = """
        import enum, attrs, dataclasses
        @attrs.frozen
        class Inner:
            zip: {}
        @dataclasses.dataclass
        class Address:
            inner: list[Inner]
        class Flag(enum.Enum):
            A = 1
            {}
        def send({}): ...
    """

    def fingerprint(parameters: str) -> str:
        parts = parameters.partition("  # ")
        inner, member = parts[2] or "int", parts[2] if "B" in parts[2] else ""
        text = textwrap.dedent(code).format("int" if member else inner, member, parts[0])
        body = program(text).registry.named("send").body
        return body.fingerprint

    assert fingerprint(before) == fingerprint(before)
    assert fingerprint(before) != fingerprint(after)


class TestUpgrade:
    def test_takes_the_old_fields_and_gives_new_ones(self, program: Program) -> None:
        job = enqueue(program(OLD), "ada")
        new = program(f"{NEW}\ndef upgrade(old): return {{**old, 'copies': 3}}")
        assert new.drain() == 1
        assert job.result() == "3 ada"
        assert job.refresh().payload == {"to": "ada"}

    def test_is_not_called_for_a_payload_that_fits(self, program: Program) -> None:
        new = program(f"{NEW}\ndef upgrade(old): raise ValueError")
        job = enqueue(new, "ada", 1)
        new.drain()
        assert job.result() == "1 ada"

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            ("1 / 0", "upgrade raised ZeroDivisionError: division by zero"),
            ("exit('no')", "upgrade raised SystemExit: no"),
            ("old", "what upgrade gave: missing @ $.copies"),
            ("{**old, 'copies': '3'}", "what upgrade gave: expected int, got '3' @ $.copies"),
            ("None", "what upgrade gave: expected send, got None @ $"),
            ("{'to': object}", "what upgrade gave: expected a JSON value, got <class 'object'>"),
        ],
    )
    def test_that_does_not_succeed_leaves_the_job_blocked_and_says_why(
        self, program: Program, body: str, problem: str
    ) -> None:
        job = unfit(program)
        assert program(f"{NEW}\ndef upgrade(old): return {body}").drain() == 1
        job = job.refresh()
        assert (job.state, job.attempt) == ("blocked", 0)
        assert f"PayloadError: the payload of 'send' does not fit: {problem}" in (job.error or "")
        assert program(f"{NEW}\n\n\ndef upgrade(old): return {body}").drain() == 0
        assert program(f"{NEW}\ndef upgrade(old): return {{**old, 'copies': 5}}").drain() == 1
        assert job.result() == "5 ada"

    def test_is_also_given_the_fields_when_a_payload_is_changed(self, program: Program) -> None:
        job = enqueue(program(OLD), "ada")
        new = program(f"{NEW}\ndef upgrade(old): return {{**old, 'copies': 3}}")
        new.change(job, to={"payload": {"to": "zoe"}})
        assert job.refresh().payload == {"to": "zoe", "copies": 3}

    def test_must_be_a_function(self, program: Program) -> None:
        with pytest.raises(Exception, match="upgrade: expected a function, got 5"):
            program(NEW, upgrade=5)


class TestABlockedJob:
    def test_says_why_and_is_found_by_the_doctor(self, program: Program) -> None:
        job = unfit(program)
        reason = "PayloadError: the payload of 'send' does not fit: missing @ $.copies"
        assert job.error == reason
        assert job.why() == f"{reason}; it goes on once a node has a definition that it fits"
        [finding] = [each for each in program(NEW).doctor() if each.subject == "definition 'send'"]
        assert finding.problem == f"1 job blocked, such as 1: {reason}"

    def test_is_an_event(self, program: Program) -> None:
        events: list[Event] = []
        enqueue(program(OLD), "ada")
        new = program(NEW)
        new.on("blocked")(events.append)
        new.drain()
        assert [(event.job, event.name) for event in events] == [(1, "send")]
        assert "missing @ $.copies" in (events[0].error or "")

    def test_holds_no_slot_of_its_key_and_is_not_let_in_by_it(self, program: Program) -> None:
        job = unfit(program, key="k")
        new = program(NEW)
        others = [enqueue(new, "zoe", n, key="k") for n in range(3)]
        assert new.drain() == 3
        assert {each.refresh().state for each in others} == {"completed"}
        assert new.repair() == 0
        assert new.store.admit() == 0
        assert job.refresh().state == "blocked"
        assert "missing @ $.copies" in job.refresh().why()

    def test_waits_for_a_slot_of_its_key_before_it_goes_on(self, program: Program) -> None:
        jobs = [unfit(program, key="k") for _ in range(2)]
        old = program(OLD)
        assert old.store.release_unfit(old._subscription(None, None), 0, 1) == 2
        assert [job.refresh().state for job in jobs] == ["pending", "blocked"]
        assert jobs[1].refresh().unfit_at is None
        assert old.drain() == 2
        assert [job.result() for job in jobs] == ["old ada"] * 2

    def test_expires(self, program: Program, clock: TurnedClock) -> None:
        job = unfit(program, expires=60)
        clock.turn(61)
        assert program(OLD).drain() == 0
        job = job.refresh()
        assert (job.state, job.unfit_at) == ("cancelled", None)

    def test_holds_its_unique_key(self, program: Program) -> None:
        job = unfit(program, unique=Unique(scope="active"))
        again = enqueue(program(OLD), "ada", unique=Unique(scope="active"))
        assert (again.id, again.duplicate) == (job.id, True)

    def test_can_be_cancelled_and_retried(self, program: Program) -> None:
        job = unfit(program)
        new = program(NEW)
        assert new.cancel(job) == Moved(1)
        assert (job.refresh().state, job.refresh().unfit_at) == ("cancelled", None)
        assert new.retry(job) == Moved(1)
        assert new.drain() == 1
        assert job.refresh().state == "blocked"

    def test_is_tried_again_when_asked_to(self, program: Program) -> None:
        job = unfit(program)
        new = program(NEW)
        assert (new.drain(), new.retry(state="blocked"), new.drain()) == (0, Moved(1), 1)
        assert job.refresh().state == "blocked"

    def test_retry_leaves_those_alone_that_wait_for_their_key(self, program: Program) -> None:
        old = program(OLD)
        jobs = [enqueue(old, "ada", key="k") for _ in range(2)]
        assert old.retry(state="blocked") == Moved(0, 1)
        assert jobs[1].refresh().state == "blocked"

    def test_can_be_deleted(self, program: Program) -> None:
        job = unfit(program)
        assert program(NEW).delete(job) == Moved(1)
        assert program(NEW).stats() == {}

    def test_can_be_held_and_released(self, program: Program) -> None:
        job = unfit(program)
        new, old = program(NEW), program(OLD)
        assert new.hold(job) == Moved(1)
        assert (old.drain(), job.refresh().state) == (0, "paused")
        assert new.release(job) == Moved(1)
        assert old.drain() == 1
        assert job.result() == "old ada"

    def test_goes_on_with_a_payload_that_is_changed_to_fit(self, program: Program) -> None:
        job = unfit(program)
        new = program(NEW)
        with pytest.raises(PayloadError):
            new.change(job, to={"payload": {"to": "zoe"}})
        assert job.refresh().state == "blocked"
        assert new.change(job, to={"payload": {"copies": 4}, "priority": 3}) == Moved(1)
        assert (job.refresh().state, job.refresh().unfit_at) == ("pending", None)
        assert new.drain() == 1
        assert job.result() == "4 ada"

    def test_stays_blocked_when_its_time_is_changed_and_then_waits_for_that(
        self, program: Program, clock: TurnedClock
    ) -> None:
        job = unfit(program)
        assert program(NEW).change(job, to={"delay": 60}) == Moved(1)
        old = program(OLD)
        assert (job.refresh().state, old.drain()) == ("blocked", 0)
        assert job.refresh().state == "scheduled"
        clock.turn(timedelta(minutes=1))
        assert old.drain() == 1

    def test_keeps_the_number_of_its_attempts(self, program: Program) -> None:
        old = program(OLD)
        job = enqueue(old, "ada")
        write_by_hand(old, "UPDATE litejobs_job SET attempt = 3")
        program(NEW).drain()
        assert (job.refresh().state, job.refresh().attempt) == ("blocked", 3)

    def test_may_have_been_written_by_another_program(self, program: Program) -> None:
        new = program(NEW)
        new.drain()
        write_by_hand(
            new,
            "INSERT INTO litejobs_job (name, payload, run_at)"
            " VALUES ('send', '{\"to\": \"ada\"}', 0)",
        )
        assert new.drain() == 1
        assert new.get(1).state == "blocked"
        assert program(OLD).drain() == 1
        assert new.get(1).result() == "old ada"

    def test_of_a_queue_that_a_node_does_not_serve_is_left_to_others(
        self, program: Program
    ) -> None:
        job = unfit(program, queue="mails")
        old = program(OLD)
        assert old.drain(queues=["default"]) == 0
        assert job.refresh().state == "blocked"
        assert old.drain(queues=["mails"]) == 1

    def test_fails_the_test_that_drains_it(self, program: Program, record_jobs: RecordJobs) -> None:
        new = program(NEW)
        recorder = record_jobs(new)
        enqueue(new, "zoe", 1)
        write_by_hand(new, "UPDATE litejobs_job SET payload = '{}'")
        with pytest.raises(AssertionError, match=r"job 1 is blocked: PayloadError: .* missing @ "):
            recorder.drain()
        assert recorder.drain() == 0

    def test_in_an_older_file_keeps_no_other_job_with_its_key_waiting(
        self, program: Program, tmp_path: Path
    ) -> None:
        by_hand = "INSERT INTO litejobs_job (name, payload, key) VALUES ('send', '{}', 'k')"
        older_file(tmp_path / "jobs.db", by_hand)
        new = program(NEW)
        job = enqueue(new, "zoe", 1, key="k")
        assert new.drain() == 2
        assert (new.get(1).state, job.result()) == ("blocked", "1 zoe")
        assert [each for each in new.doctor() if each.level == "error"] == []
        index = "SELECT sql FROM sqlite_schema WHERE name = 'litejobs_key'"
        assert "unfit_at IS NULL" in new.store.file.connection().execute(index).get


class TestTwoNodes:
    def test_with_other_parameters_get_the_jobs_that_fit_them_in_few_passes(
        self, program: Program
    ) -> None:
        old, new = program(OLD), program(NEW)
        with old.start(threads=2), new.start(threads=1):
            jobs = [enqueue(new, "zoe", n) for n in range(20)]
            jobs += [enqueue(old, "ada") for _ in range(20)]
            results = [job.result(timeout=60) for job in jobs]
            [finding] = [each for each in new.doctor() if "parameters" in each.problem]
        assert results == [*(f"{n} zoe" for n in range(20)), *(["old ada"] * 20)]
        assert finding.subject == "definition 'send'"
        claims = [job._claim for job in old.find(limit=100)]
        assert sum(claims) <= 40 * 3

    def test_with_the_same_parameters_are_no_finding(self, program: Program) -> None:
        one = program(NEW)
        two = program(f"{NEW}\ndef upgrade(old): return old", module="other")
        with one.start(threads=1), two.start(threads=1):
            assert one.doctor() == []

    def test_a_node_that_works_until_nothing_is_left_takes_what_others_refused_and_no_more(
        self, program: Program
    ) -> None:
        fits, never = unfit(program), enqueue(program("def send(x: int) -> None: ..."), 5)
        program(NEW).drain()
        with program(OLD).start(threads=1, until="empty") as pool:
            pool.wait(60)
        assert fits.result() == "old ada"
        assert never.refresh().state == "blocked"


def test_a_program_that_was_changed_goes_on_with_the_jobs_of_the_one_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "changing.py"

    def run(definition: str, end: str) -> str:
        path.write_text(
            "from litejobs import LiteJobs\njobs = LiteJobs('jobs.db')\n"
            f"{definition}\nif __name__ == '__main__':\n    {end}\n"
        )
        ended = subprocess.run(
            [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr

    work = "jobs.work(workers=1, until='empty'); print(jobs.get(1), jobs.get(1).attempt)"
    run("@jobs.define\ndef send(to: str): ...", "send.enqueue('ada')")
    said = run("@jobs.define\ndef send(to: str, copies: int): ...", work)
    assert "<Job 1 send blocked> 0" in said
    assert "does not fit: missing @ $.copies" in said
    fixed = "@jobs.define(upgrade=lambda old: {**old, 'copies': 1})"
    said = run(f"{fixed}\ndef send(to: str, copies: int): return copies", work)
    assert "<Job 1 send completed> 1" in said
