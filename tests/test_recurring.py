"""Recurring jobs: schedules in the file, and the nodes that fire them."""

from __future__ import annotations

import importlib.resources
import json
import logging
import os
import re
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
from conftest import NEW_YEAR, TurnedClock, write_by_hand
from programs import TIMEOUT, Programs, eventually, never

from litejobs import (
    Constant,
    Context,
    Definition,
    DefinitionError,
    File,
    Job,
    LiteJobs,
    OptionError,
    PayloadError,
    Retention,
    Schedule,
    ScheduleHandle,
    ScheduleNotFoundError,
    Store,
    Unique,
    define,
    main,
)

HOUR = 3600
Program = Callable[[], LiteJobs]


@pytest.fixture
def program(tmp_path: Path, clock: TurnedClock) -> Iterator[Program]:
    """Makes programs of one file and one clock; each starts anew, as after a restart."""
    opened: list[LiteJobs] = []

    def start() -> LiteJobs:
        opened.append(LiteJobs(tmp_path / "jobs.db", durability="fast", clock=clock))
        return opened[-1]

    yield start
    for jobs in opened:
        jobs.close()


def report(kind: str = "daily") -> str:
    return kind


def hours(jobs: LiteJobs) -> list[float]:
    """When the jobs in the file were due, in hours of the new year."""
    return sorted((job.run_at - NEW_YEAR) / timedelta(hours=1) for job in jobs.find())


def next_hour(jobs: LiteJobs, name: str = "report") -> float | None:
    at = jobs.schedule(name).get().next_at
    return None if at is None else (at - NEW_YEAR) / timedelta(hours=1)


class TestDeclarations:
    def test_make_nothing_until_a_node_starts(self, jobs: LiteJobs) -> None:
        jobs.cron("@hourly")(report)
        assert not jobs.path.exists()
        jobs.drain()
        assert [schedule.name for schedule in jobs.schedules()] == ["report"]
        assert jobs.find() == []

    def test_decorate_a_plain_function(self, jobs: LiteJobs) -> None:
        definition = jobs.cron("@hourly")(report)
        assert isinstance(definition, Definition)
        assert (definition.name, definition("weekly")) == ("report", "weekly")
        assert jobs.registry.named("report") is definition

    def test_decorate_a_definition_and_leave_it_as_it_is(self, jobs: LiteJobs) -> None:
        definition = jobs.define(queue="reports")(report)
        assert jobs.cron("@hourly", name="nightly")(definition) is definition
        jobs.drain()
        assert jobs.schedule("nightly").fire().queue == "reports"

    def test_decorate_a_class(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        @jobs.every(HOUR)
        @jobs.define
        @attrs.frozen
        class Sweep:
            depth: int = 3

            def run(self) -> int:
                return self.depth

        jobs.drain()
        clock.turn(HOUR)
        jobs.drain()
        assert Sweep(1).depth == 1
        assert [(job.name, job.result()) for job in jobs.find()] == [("Sweep", 3)]

    def test_take_what_is_bound_with_its_options(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        definition = jobs.define(report)
        slow = definition.using(priority=7, max_attempts=None, timeout=9, queue="slow")
        bound = slow.using(retention=Retention(completed=60)).bind("weekly")
        handle = jobs.cron("@hourly", bound, name="weekly")
        assert isinstance(handle, ScheduleHandle)
        jobs.drain()
        clock.turn(HOUR)
        jobs.drain()
        [job] = jobs.find()
        assert (job.priority, job.max_attempts, job.queue, job.schedule, job.result()) == (
            7, None, "slow", "weekly", "weekly",
        )  # fmt: skip
        assert job.timeout == timedelta(seconds=9)
        clock.turn(61)
        assert jobs.store.prune(clock()) == 1

    def test_take_an_instance_and_a_definition(self, jobs: LiteJobs) -> None:
        @jobs.define
        @attrs.frozen
        class Sweep:
            depth: int

            def run(self) -> int:
                return self.depth

        jobs.cron("@hourly", Sweep(5))
        jobs.every(60, jobs.define(report))
        jobs.drain()
        payloads = {schedule.name: schedule.payload for schedule in jobs.schedules()}
        assert payloads == {"Sweep": {"depth": 5}, "report": {}}

    def test_take_a_function_that_wants_its_context(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        @jobs.every(HOUR)
        def which(context: Context) -> int:
            return context.job.id

        jobs.drain()
        clock.turn(HOUR)
        jobs.drain()
        [job] = jobs.find()
        assert job.result() == job.id

    def test_of_two_with_one_name_the_second_is_refused(self, jobs: LiteJobs) -> None:
        jobs.cron("@hourly")(report)
        with pytest.raises(OptionError, match="'report' declared twice, in test_recurring"):
            jobs.every(5, jobs.registry.named("report"))
        jobs.every(5, jobs.registry.named("report"), name="often")

    def test_of_parameters_that_nobody_gives_are_refused_when_work_starts(
        self, jobs: LiteJobs
    ) -> None:
        @jobs.cron("@hourly")
        def needy(day: str) -> None: ...

        with pytest.raises(PayloadError, match=r"needy.*day"):
            jobs.drain()

    def test_of_a_definition_that_is_not_registered_are_refused_when_work_starts(
        self, jobs: LiteJobs
    ) -> None:
        jobs.define(report)
        jobs.cron("@hourly", define(name="stranger")(report))
        with pytest.raises(DefinitionError, match=r"stranger.*not defined in this program"):
            jobs.drain()

    @pytest.mark.parametrize(
        "options",
        [
            {"delay": 5},
            {"at": NEW_YEAR},
            {"expires": NEW_YEAR},
            {"unique": Unique(on_conflict=lambda old, new: new)},
            {"connection": object()},
        ],
    )
    def test_of_what_is_for_one_job_only_are_refused(self, jobs: LiteJobs, options: Any) -> None:
        jobs.cron("@hourly", jobs.define(report).using(**options))
        with pytest.raises(OptionError) as caught:
            jobs.drain()
        assert caught.value.option in options

    def test_after_work_has_started_are_refused(self, jobs: LiteJobs) -> None:
        definition = jobs.define(report)
        with (
            jobs.start(threads=1),
            pytest.raises(OptionError, match="after work had started"),
        ):
            jobs.cron("@hourly", definition)
        jobs.cron("@hourly", definition)

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'"),
            ({"misfire": "never"}, "misfire"),
            ({"mifsire": "all"}, "did you mean 'misfire'"),
            ({"name": ""}, "name"),
        ],
    )
    def test_with_bad_options_are_refused_at_once(
        self, jobs: LiteJobs, options: Any, problem: str
    ) -> None:
        with pytest.raises(OptionError, match=problem):
            jobs.cron("@hourly", jobs.define(report), **options)


MAIN = """
from litejobs import LiteJobs
jobs = LiteJobs("jobs.db", durability="fast")

@jobs.every(3600)
def report() -> None: ...

if __name__ == "__main__":
    jobs.drain()
"""
TASKS = """
from queue_of import jobs

@jobs.every(3600)
def report() -> None: ...
"""


class TestWhatADeclaredSetDoesToTheFile:
    def test_an_unchanged_schedule_keeps_its_next_time_after_a_restart(
        self, program: Program, clock: TurnedClock
    ) -> None:
        first = program()
        first.cron("@hourly")(report)
        first.drain()
        assert next_hour(first) == 1
        clock.turn(2.5 * HOUR)
        second = program()
        second.cron("@hourly")(report)
        second.drain()
        assert hours(second) == [2]
        assert next_hour(second) == 3

    def test_an_unchanged_interval_is_still_counted_from_where_it_began(
        self, program: Program, clock: TurnedClock
    ) -> None:
        for turn in (0, 1.3, 1.3, 1.3):
            clock.turn(turn * HOUR)
            jobs = program()
            jobs.every(HOUR)(report)
            jobs.drain()
        assert hours(jobs) == [1, 2, 3]
        assert next_hour(jobs) == 4

    def test_an_unchanged_schedule_stays_paused(self, program: Program) -> None:
        first = program()
        first.cron("@hourly")(report)
        first.drain()
        first.schedule("report").pause()
        second = program()
        second.cron("@hourly")(report)
        second.drain()
        assert second.schedule("report").get().paused

    def test_a_changed_schedule_takes_effect_when_a_node_starts(
        self, program: Program, clock: TurnedClock
    ) -> None:
        first = program()
        first.cron("0 * * * *")(report)
        first.drain()
        second = program()
        second.cron("0 */6 * * *", timezone="Europe/Berlin")(report)
        second.drain()
        [schedule] = second.schedules()
        assert (schedule.expression, schedule.timezone) == ("0 */6 * * *", "Europe/Berlin")
        assert next_hour(second) == 5

    def test_a_changed_payload_does_not_lose_a_tick_that_was_missed_meanwhile(
        self, program: Program, clock: TurnedClock
    ) -> None:
        first = program()
        first.cron("@hourly", first.define(report).bind("old"))
        first.drain()
        clock.turn(1.5 * HOUR)
        second = program()
        second.cron("@hourly", second.define(report).bind("new"))
        second.drain()
        assert [job.result() for job in second.find()] == ["new"]
        assert hours(second) == [1]

    def test_one_that_left_the_code_goes(self, program: Program, clock: TurnedClock) -> None:
        first = program()
        first.cron("@hourly")(report)
        first.drain()
        clock.turn(5 * HOUR)
        second = program()
        second.define(report)
        second.drain()
        assert second.schedules() == []
        assert second.find() == []

    def test_one_that_was_made_at_run_time_stays(self, program: Program) -> None:
        first = program()
        first.schedule("by hand").set("@hourly", first.define(report))
        second = program()
        second.cron("@daily")(report)
        second.drain()
        by_hand, declared = second.schedules()
        assert (by_hand.name, by_hand.origin) == ("by hand", None)
        assert (declared.origin or "").endswith(":test_recurring")

    def drains(self, programs: Programs, *command: str) -> dict[str, str | None]:
        """The schedules in the file after a program has run, with their origins."""
        code, _, errors = programs.run(*command)
        assert code == 0, errors
        with LiteJobs(programs.folder / "jobs.db") as jobs:
            found = {s.name: s.origin for s in jobs.schedules()}
        place = f"{programs.folder.resolve()}{os.sep}"
        return {name: origin and origin.replace(place, "") for name, origin in found.items()}

    def test_two_programs_whose_modules_have_one_name_leave_each_others_alone(
        self, programs: Programs
    ) -> None:
        for name in ("p1", "p2"):
            programs.write(**{f"{name}__tasks": MAIN.replace("report", f"of_{name}")})
        self.drains(programs, "p1/tasks.py")
        both = {"of_p1": "p1/tasks.py:tasks", "of_p2": "p2/tasks.py:tasks"}
        assert self.drains(programs, "p2/tasks.py") == both
        assert self.drains(programs, "p1/tasks.py") == both
        programs.write(p1__tasks=MAIN.replace("every(3600)", "define"))
        assert self.drains(programs, "p1/tasks.py") == {"of_p2": "p2/tasks.py:tasks"}

    def test_those_of_a_module_whose_only_declaration_was_deleted_go(
        self, programs: Programs
    ) -> None:
        programs.write(queue_of="from litejobs import LiteJobs\njobs = LiteJobs('jobs.db')\n")
        for name in ("one", "two", "three"):
            programs.write(**{name: TASKS.replace("report", name)})
        programs.write(app="import one, two, three\none.jobs.drain()")
        origin = "app.py+queue_of.py"
        assert self.drains(programs, "app.py") == {
            name: f"{origin}:{name}" for name in ("one", "two", "three")
        }
        programs.write(app="import one, two\none.jobs.drain()", one="from queue_of import jobs")
        assert self.drains(programs, "app.py") == {"two": f"{origin}:two"}

    def test_what_another_program_declares_too_stays(self, programs: Programs) -> None:
        queue = MAIN.replace("report", "other").replace("every(3600)", "define")
        programs.write(queue_of=queue)
        programs.write(tasks=TASKS)
        for name in ("web", "worker"):
            programs.write(**{name: "import queue_of, tasks\nqueue_of.jobs.drain()"})
        self.drains(programs, "worker.py")
        both = "worker.py+queue_of.py:tasks, web.py+queue_of.py:tasks"
        assert self.drains(programs, "web.py") == {"report": both}
        programs.write(web="import queue_of\nqueue_of.jobs.drain()")
        assert self.drains(programs, "web.py") == {"report": "worker.py+queue_of.py:tasks"}
        programs.write(worker="import queue_of\nqueue_of.jobs.drain()")
        assert self.drains(programs, "worker.py") == {}

    def test_one_of_another_program_is_replaced_with_a_warning(self, programs: Programs) -> None:
        programs.write(one=MAIN, two=MAIN.replace("3600", "60"))
        assert self.drains(programs, "one.py") == {"report": "one.py:one"}
        assert self.drains(programs, "two.py") == {"report": "two.py:two"}
        errors = programs.errors.read_text()
        assert re.search(r"schedule report, of \S*one.py, is replaced by ours", errors)

    def test_is_the_same_however_the_program_is_started(self, programs: Programs) -> None:
        programs.write(app=MAIN)
        run = ("run", "app:jobs", "--until", "empty", "--threads", "1")
        for command in (
            ["app.py"],
            ["-m", "app"],
            ["-c", "import app; app.jobs.drain()"],
            ["-m", "litejobs", *run],
            ["-c", f"import litejobs; litejobs.main({run!r})"],
        ):
            assert self.drains(programs, *command) == {"report": "app.py:app"}

    def test_those_of_a_file_of_before_programs_were_told_apart_are_taken_over(
        self, program: Program
    ) -> None:
        first, second, third = program(), program(), program()
        for jobs in (first, second):
            jobs.cron("@hourly")(report)
        first.drain()
        write_by_hand(first, "UPDATE litejobs_schedule SET origin = 'test_recurring'")
        second.drain()
        assert len(second.schedules()[0].programs) == 1
        third.define(report)
        third.drain()
        assert third.schedules() == []

    def test_asks_nothing_of_a_program_without_schedules(self, jobs: LiteJobs) -> None:
        jobs.define(report)
        jobs.drain()
        before = jobs.store.file.changes()
        jobs.drain()
        assert jobs.schedules() == []
        assert jobs.store.file.changes() == before


class TestMissedTicks:
    """A laptop that slept over three ticks."""

    @pytest.mark.parametrize(
        ("misfire", "fired"), [("once", [3]), ("skip", []), ("all", [1, 2, 3])]
    )
    def test_while_no_node_ran(
        self, program: Program, clock: TurnedClock, misfire: Any, fired: list[float]
    ) -> None:
        for turn in (0, 3.5):
            clock.turn(turn * HOUR)
            jobs = program()
            jobs.cron("@hourly", misfire=misfire)(report)
            jobs.drain()
        assert hours(jobs) == fired
        assert next_hour(jobs) == 4

    @pytest.mark.parametrize(
        ("misfire", "fired"), [("once", [3]), ("skip", [3]), ("all", [1, 2, 3])]
    )
    def test_that_wakes_within_the_grace_of_the_last(
        self, jobs: LiteJobs, clock: TurnedClock, misfire: Any, fired: list[float]
    ) -> None:
        jobs.cron("@hourly", misfire=misfire, grace=120)(report)
        jobs.drain()
        clock.turn(3 * HOUR + 100)
        jobs.drain()
        assert hours(jobs) == fired

    def test_are_made_up_for_in_bounded_batches_until_none_is_left(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.every(1, misfire="all")(report)
        jobs.drain()
        clock.turn(2_300)
        fired, due = jobs.store.schedules.fire(clock())
        assert (fired, due) == (1_000, clock())
        assert jobs.store.schedules.fire(clock()) == (1_000, clock())
        assert jobs.store.schedules.fire(clock()) == (300, clock() + 10**6)
        assert jobs.count() == 2_300


class TestAClockThatWasWrong:
    """Set ahead or back once, and right again later."""

    YEARS = 1e8  # Seconds: some three years.

    @pytest.mark.parametrize("misfire", ["once", "skip"])
    @pytest.mark.parametrize("rule", ["@every 2s", "*/2 * * * * *"])
    def test_ahead_by_years_for_some_seconds_stops_no_schedule(
        self, jobs: LiteJobs, clock: TurnedClock, rule: str, misfire: Any
    ) -> None:
        jobs.cron(rule, misfire=misfire)(report)
        jobs.drain()
        clock.turn(self.YEARS)
        jobs.drain()
        before = jobs.count()
        clock.turn(2 - self.YEARS)
        assert [finding.subject for finding in jobs.doctor()] == ["schedule 'report'"]
        for _ in range(5):
            jobs.store.schedules.fire(clock())
            assert jobs.doctor() == []
            clock.turn(2)
        assert jobs.count() == before + 5
        assert len(set(hours(jobs))) == jobs.count()

    def test_ahead_while_no_node_ran_is_corrected_when_one_starts(
        self, program: Program, clock: TurnedClock
    ) -> None:
        clock.turn(self.YEARS)
        first = program()
        first.every(HOUR)(report)
        first.drain()
        clock.turn(-self.YEARS)
        second = program()
        second.every(HOUR)(report)
        assert "its next tick is stored as 2028-" in second.doctor()[0].problem
        second.drain()
        assert second.doctor() == []
        assert 0 < (next_hour(second) or 0) <= 1

    def test_ahead_of_its_end_does_not_end_a_schedule(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", misfire="skip", end=NEW_YEAR + timedelta(hours=3))(report)
        jobs.drain()
        clock.turn(5.5 * HOUR)
        jobs.drain()
        assert jobs.schedule("report").get().state == "ended"
        clock.turn(-5 * HOUR)
        jobs.drain()
        assert next_hour(jobs) == 1

    @pytest.mark.parametrize(
        ("misfire", "fired"), [("once", [2, 3, 4]), ("skip", [2, 3, 4]), ("all", [1, 2, 3, 4])]
    )
    def test_ahead_by_two_hours_gives_no_tick_two_jobs(
        self, jobs: LiteJobs, clock: TurnedClock, misfire: Any, fired: list[float]
    ) -> None:
        jobs.cron("@hourly", misfire=misfire, grace=120)(report)
        jobs.drain()
        clock.turn(3 * HOUR + 60)  # It is one minute past one.
        jobs.drain()
        clock.turn(-2 * HOUR)
        for _ in range(4):
            jobs.drain()
            clock.turn(HOUR)
        assert hours(jobs) == (fired if misfire == "all" else sorted({1, *fired}))
        assert next_hour(jobs) == 5

    @pytest.mark.parametrize("misfire", ["once", "skip", "all"])
    @pytest.mark.parametrize("rule", ["@hourly", "@every 1h"])
    def test_back_in_1970_until_the_network_is_there_fires_nothing_twice_or_for_the_years_between(
        self, jobs: LiteJobs, clock: TurnedClock, rule: str, misfire: Any
    ) -> None:
        jobs.cron(rule, misfire=misfire)(report)
        for _ in range(4):
            jobs.drain()
            clock.turn(HOUR)
        clock.turn(-50 * 365 * 24 * HOUR)
        for _ in range(3):
            jobs.drain()
            clock.turn(0.5 * HOUR)
        clock.turn(50 * 365 * 24 * HOUR - HOUR)
        jobs.drain()
        assert [hour for hour in hours(jobs) if hour > 0][:3] == [1, 2, 3]
        assert len(set(hours(jobs))) == jobs.count() <= 6

    def test_finds_jobs_that_it_has_put_off_for_years(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        def fails() -> None:
            raise ValueError

        plain, failing = jobs.define(report), jobs.define(backoff=Constant(60))(fails)
        later: list[Job[Any]] = [plain.using(at=NEW_YEAR + timedelta(days=9 * 365)).enqueue()]
        clock.turn(self.YEARS)
        later += [failing.enqueue(), plain.using(delay=60).enqueue()]
        jobs.drain()
        assert [job.refresh().state for job in later] == ["scheduled", "retrying", "scheduled"]
        assert jobs.doctor() == []
        clock.turn(-self.YEARS)
        found = {finding.subject: finding.problem for finding in jobs.doctor()}
        assert found.keys() == {"definition 'fails'", "definition 'report'"}
        assert all("put off until 2028-" in problem for problem in found.values())
        assert f"1 job, such as {later[2].id}," in found["definition 'report'"]


@pytest.fixture
def zones(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Gives Mexico City the rules of another place, as other data on time zones do."""
    data = {name: zone_file(name) for name in ("America/Mexico_City", "America/Chicago")}
    place = tmp_path / "zones" / "America" / "Mexico_City"
    place.parent.mkdir(parents=True)

    def install(rules_of: str) -> None:
        place.write_bytes(data[rules_of])
        zoneinfo.ZoneInfo.clear_cache()

    zoneinfo.reset_tzpath([place.parent.parent])
    yield install
    zoneinfo.reset_tzpath()
    zoneinfo.ZoneInfo.clear_cache()


def zone_file(name: str) -> bytes:
    for folder in zoneinfo.TZPATH:
        if (path := Path(folder, name)).exists():
            return path.read_bytes()
    return importlib.resources.files("tzdata").joinpath("zoneinfo", name).read_bytes()


class TestNewDataOnTimeZones:
    """Mexico has given up summer time: until then it had it when Chicago has it."""

    OLD, NEW = "America/Chicago", "America/Mexico_City"
    MAY = 24 * 120  # Hours from new year to the first of May.

    @pytest.mark.parametrize("started", ["before the tick", "when it was due"])
    def test_fire_at_nine_once(
        self,
        program: Program,
        clock: TurnedClock,
        zones: Callable[[str], None],
        started: str,
    ) -> None:
        zones(self.OLD)
        first = program()
        first.cron("0 9 1 5 *", timezone="America/Mexico_City")(report)
        first.drain()
        assert next_hour(first) == self.MAY + 14
        zones(self.NEW)
        second = program()
        if started == "before the tick":
            second.cron("0 9 1 5 *", timezone="America/Mexico_City")(report)
            assert (
                "stored as 2025-05-01 14:00:00 UTC, but by its rule is 2025-05-01 15:00:00 UTC"
                in (second.doctor()[0].problem)
            )
            second.drain()
            assert next_hour(second) == self.MAY + 15
        for hour in (14, 15, 16):
            clock.turn_to(NEW_YEAR + timedelta(hours=self.MAY + hour))
            second.store.schedules.fire(clock())
        assert hours(second) == [self.MAY + 15]

    def test_that_are_installed_after_the_tick_was_missed_do_not_lose_it(
        self, program: Program, clock: TurnedClock, zones: Callable[[str], None]
    ) -> None:
        for rules, hour in ((self.NEW, 0), (self.OLD, 14.5), (self.OLD, 15.5)):
            zones(rules)
            clock.turn_to(NEW_YEAR + timedelta(hours=self.MAY + hour))
            jobs = program()
            jobs.cron("0 9 1 5 *", timezone="America/Mexico_City")(report)
            jobs.drain()
        assert hours(jobs) == [self.MAY + 14]


class TestASchedule:
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ("timezone = 'Mars/Olympus'", "there is no time zone 'Mars/Olympus'"),
            ("expression = 'whenever'", "number of fields"),
            ("payload = '{'", "it is not JSON"),
            ("options = '[]'", "'[]' in a row was not written by litejobs"),
            ("definition = ''", "definition: expected 1 to 200"),
            ("covered = '7'", "covered: '7' in a row was not written by"),
        ],
    )
    def test_that_this_machine_cannot_fire_is_found_and_says_so(
        self,
        jobs: LiteJobs,
        clock: TurnedClock,
        caplog: pytest.LogCaptureFixture,
        change: str,
        problem: str,
    ) -> None:
        jobs.cron("@hourly", name="fine")(report)
        jobs.cron("@hourly", jobs.registry.named("report"), name="alien")
        jobs.drain()
        write_by_hand(jobs, f"UPDATE litejobs_schedule SET {change} WHERE name = 'alien'")
        [finding] = [one for one in jobs.doctor() if one.level == "error"]
        assert finding.subject == "schedule 'alien'"
        assert problem in finding.problem
        alien = jobs.schedule("alien").get()
        assert alien.state == "unusable"
        assert problem in (alien.problem or "")
        assert {schedule.state for schedule in jobs.schedules()} == {"active", "unusable"}
        clock.turn(HOUR)
        assert jobs.store.schedules.fire(clock())[0] == 1
        assert "schedule alien cannot fire" in caplog.text


class TestOverlap:
    def test_is_allowed_by_default(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        jobs.cron("@hourly", misfire="all")(report)
        jobs.drain()
        clock.turn(2 * HOUR)
        assert jobs.store.schedules.fire(clock())[0] == 2

    def test_skip_lets_a_tick_pass_while_the_last_job_has_not_finished(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", overlap="skip", misfire="all")(report)
        jobs.drain()
        for _ in range(3):
            clock.turn(HOUR)
            jobs.store.schedules.fire(clock())
        assert hours(jobs) == [1]
        assert next_hour(jobs) == 4
        jobs.cancel(state="pending")
        clock.turn(2 * HOUR)  # Two ticks, of which the second would overlap the first.
        assert jobs.store.schedules.fire(clock())[0] == 1
        assert hours(jobs) == [1, 4]
        assert next_hour(jobs) == 6

    def test_skip_does_not_wait_for_a_job_that_was_deleted(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", overlap="skip")(report)
        jobs.drain()
        clock.turn(HOUR)
        jobs.store.schedules.fire(clock())
        jobs.delete(name="report")
        clock.turn(HOUR)
        assert jobs.store.schedules.fire(clock())[0] == 1

    def test_skip_waits_for_a_job_that_was_fired_by_hand(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", overlap="skip")(report)
        jobs.drain()
        jobs.schedule("report").fire()
        clock.turn(HOUR)
        assert jobs.store.schedules.fire(clock())[0] == 0

    def test_queue_lets_one_job_wait_while_another_runs(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        ran: list[tuple[str, str]] = []

        @jobs.cron("@hourly", overlap="queue")
        @jobs.define
        def slow() -> None:
            if ran:
                return
            for _ in range(3):
                clock.turn(HOUR)
                jobs.store.schedules.fire(clock())
            [waits, runs] = jobs.find()
            ran.extend([(runs.state, waits.state)])
            assert waits.why() == f"its key 'schedule:slow' is held by job {runs.id}"

        jobs.drain()
        clock.turn(HOUR)
        jobs.drain()
        assert ran == [("running", "blocked")]
        assert [job.state for job in jobs.find()] == ["completed", "completed"]
        assert [job.run_at.hour for job in jobs.find()] == [2, 1]

    def test_queue_enqueues_nothing_while_the_last_job_waits(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", overlap="queue", misfire="all")(report)
        jobs.drain()
        for _ in range(3):
            clock.turn(HOUR)
            jobs.store.schedules.fire(clock())
        assert hours(jobs) == [1]

    def test_queue_uses_the_key_that_the_jobs_have(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.define(report)
        schedule = jobs.schedule("s")
        definition = jobs.registry.named("report")
        with pytest.raises(OptionError, match=r"key_limit.*one at a time"):
            schedule.set("@hourly", definition.using(key="db", key_limit=2), overlap="queue")
        schedule.set("@hourly", definition.using(key="db"), overlap="queue")
        assert schedule.fire().key == "db"


class TestFiring:
    def test_leaves_the_tick_and_the_job_with_the_schedule(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly")(report)
        jobs.drain()
        clock.turn(HOUR + 0.25)
        jobs.drain()
        [job] = jobs.find()
        schedule = jobs.schedule("report").get()
        assert schedule.last_job == job.id
        assert schedule.last_at == job.run_at == NEW_YEAR + timedelta(hours=1)
        assert schedule.next_at == NEW_YEAR + timedelta(hours=2)

    def test_of_a_job_with_jitter_is_later_and_counted(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", jitter=600, misfire="all", grace=9 * HOUR)(report)
        jobs.drain()
        clock.turn(HOUR)
        for _ in range(20):
            jobs.store.schedules.fire(clock())
            clock.turn(HOUR)
        late = [job.run_at - NEW_YEAR for job in jobs.find()]
        minutes = {(length.total_seconds() % HOUR) // 60 for length in late}
        assert minutes <= {*range(10)}
        assert len(minutes) > 3
        assert jobs.count(state="scheduled") == 20
        assert jobs.stats() == {"default": {"scheduled": 20}}
        clock.turn(0.5 * HOUR)
        jobs.drain()
        assert jobs.stats() == {"default": {"completed": 21}}

    def test_ends_with_the_end(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        jobs.cron("@hourly", end=NEW_YEAR + timedelta(hours=2))(report)
        for _ in range(5):
            jobs.drain()
            clock.turn(HOUR)
        assert hours(jobs) == [1, 2]
        assert jobs.schedule("report").get().state == "ended"

    def test_goes_on_when_one_schedule_cannot_be_understood_here(
        self, jobs: LiteJobs, clock: TurnedClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        definition = jobs.define(report)
        for name in ("alien", "broken", "fine"):
            jobs.schedule(name).set("@hourly", definition)
        set_by_hand = "UPDATE litejobs_schedule SET {} WHERE name = '{}'"
        write_by_hand(jobs, set_by_hand.format("timezone = 'Mars/Olympus'", "alien"))
        write_by_hand(jobs, set_by_hand.format("options = '[]'", "broken"))
        clock.turn(HOUR)
        assert jobs.store.schedules.fire(clock()) == (1, clock() + HOUR * 10**6)
        assert jobs.store.schedules.fire(clock()) == (0, clock() + HOUR * 10**6)
        reported = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert len(reported) == 2
        assert "Mars/Olympus" in reported[0]
        assert "schedule broken cannot fire" in reported[1]

    @pytest.mark.parametrize(("on_conflict", "last"), [("return", 3), ("raise", 1), ("replace", 3)])
    def test_of_a_unique_job_adds_none_while_one_waits(
        self, jobs: LiteJobs, clock: TurnedClock, on_conflict: Any, last: int
    ) -> None:
        unique = jobs.define(unique=Unique(on_conflict=on_conflict))(report)
        jobs.cron("@hourly", unique)
        jobs.drain()
        for _ in range(3):
            clock.turn(HOUR)
            jobs.store.schedules.fire(clock())
        assert jobs.count() == 1
        assert jobs.schedule("report").get().last_at == NEW_YEAR + timedelta(hours=last)
        jobs.drain()
        clock.turn(HOUR)
        jobs.drain()
        assert [job.state for job in jobs.find()] == ["completed", "completed"]

    def test_of_a_unique_job_lets_a_key_lapse_after_its_time(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", jobs.define(unique=Unique(ttl=1.5 * HOUR))(report))
        jobs.drain()
        for _ in range(4):
            clock.turn(HOUR)
            jobs.store.schedules.fire(clock())
        assert hours(jobs) == [1, 3]

    def test_of_jobs_with_a_key_respects_its_limit(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", jobs.define(key="tenant", key_limit=1)(report), misfire="all")
        jobs.drain()
        clock.turn(2 * HOUR)
        jobs.store.schedules.fire(clock())
        assert jobs.stats() == {"default": {"pending": 1, "blocked": 1}}

    def test_counts_the_expiry_of_each_job_from_its_tick(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.cron("@hourly", jobs.define(expires=600, headers={"from": "cron"})(report))
        jobs.drain()
        clock.turn(HOUR + 5)
        jobs.store.schedules.fire(clock())
        [job] = jobs.find()
        assert job.expires_at == NEW_YEAR + timedelta(hours=1, minutes=10)
        assert job.headers == {"from": "cron"}

    def test_takes_the_defaults_of_the_queue(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        jobs.cron("@hourly", jobs.define(timeout=7)(report))
        jobs.queue("default").set(max_attempts=2, timeout=3)
        jobs.drain()
        job = jobs.schedule("report").fire()
        assert (job.max_attempts, job.timeout) == (2, timedelta(seconds=7))

    def test_of_many_nodes_at_once_gives_each_tick_one_job(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        definition = jobs.define(report)
        for name in "abc":
            jobs.schedule(name).set("@hourly", definition)
        ticks = 25
        stores = [Store(File(jobs.path, "fast", clock=clock)) for _ in range(4)]
        start = threading.Barrier(len(stores) + 1)

        def fire(store: Store) -> None:
            for _ in range(ticks):
                start.wait()
                store.schedules.fire(clock())
                start.wait()
            store.file.close()

        threads = [threading.Thread(target=fire, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for _ in range(ticks):
            clock.turn(HOUR)
            start.wait()
            start.wait()
        for thread in threads:
            thread.join()
        fired = [(job.schedule, job.run_at) for job in jobs.find(limit=1_000)]
        assert len(fired) == len({*fired}) == 3 * ticks


class TestAtRunTime:
    @pytest.fixture
    def report(self, jobs: LiteJobs) -> Definition[..., str, str]:
        @jobs.define
        def report(kind: str = "daily") -> str:
            return kind

        return report

    def test_set_makes_a_schedule(
        self, jobs: LiteJobs, clock: TurnedClock, report: Definition[..., str, str]
    ) -> None:
        made = jobs.schedule("nightly").set(
            "0 3 * * *", report.bind("weekly"), timezone="Europe/Berlin", overlap="skip"
        )
        assert isinstance(made, Schedule)
        assert (made.name, made.definition, made.origin) == ("nightly", "report", None)
        assert (made.payload, made.overlap) == ({"kind": "weekly"}, "skip")
        assert made.words == "At 03:00 every day (Europe/Berlin)"
        assert made.next_at == NEW_YEAR + timedelta(hours=2)
        assert made == jobs.schedule("nightly").get() == jobs.schedules()[0]
        assert repr(made) == "<Schedule nightly 0 3 * * * active>"
        clock.turn(2 * HOUR)
        jobs.drain()
        assert [job.result() for job in jobs.find()] == ["weekly"]

    def test_set_changes_a_schedule(
        self, jobs: LiteJobs, clock: TurnedClock, report: Definition[..., str, str]
    ) -> None:
        handle = jobs.schedule("nightly")
        handle.set("@hourly", report)
        handle.pause()
        changed = handle.set(timedelta(minutes=90), report.bind("other"))
        assert (changed.expression, changed.payload) == ("@every 1h30m", {"kind": "other"})
        assert changed.paused
        assert len(jobs.schedules()) == 1

    def test_set_pauses_and_resumes(
        self, jobs: LiteJobs, clock: TurnedClock, report: Definition[..., str, str]
    ) -> None:
        handle = jobs.schedule("nightly")
        assert handle.set("@hourly", report, paused=True).state == "paused"
        clock.turn(3.5 * HOUR)
        jobs.drain()
        assert jobs.find() == []
        assert handle.set("@hourly", report, jitter=1).paused
        resumed = handle.set("@hourly", report, misfire="all", paused=False)
        assert (resumed.state, resumed) == ("active", handle.get())
        assert next_hour(jobs, "nightly") == 4
        clock.turn(HOUR)
        jobs.drain()
        assert hours(jobs) == [4]
        with pytest.raises(OptionError, match="expected True, False or None, got 'yes'"):
            handle.set("@hourly", report, paused="yes")  # type: ignore[arg-type]

    def test_pause_and_resume_leave_out_what_comes_between(
        self, jobs: LiteJobs, clock: TurnedClock, report: Definition[..., str, str]
    ) -> None:
        handle = jobs.schedule("nightly")
        handle.set(HOUR, report, misfire="all")
        clock.turn(0.5 * HOUR)
        handle.pause()
        assert handle.get().state == "paused"
        clock.turn(3 * HOUR)
        jobs.drain()
        assert jobs.find() == []
        handle.resume()
        assert next_hour(jobs, "nightly") == 4
        handle.resume()
        clock.turn(HOUR)
        jobs.drain()
        assert hours(jobs) == [4]

    @pytest.mark.parametrize("rule", ["@hourly", HOUR])
    def test_resuming_after_the_clock_was_set_back_fires_no_tick_twice(
        self,
        jobs: LiteJobs,
        clock: TurnedClock,
        report: Definition[..., str, str],
        rule: str | float,
    ) -> None:
        handle = jobs.schedule("nightly")
        handle.set(rule, report, misfire="all")
        clock.turn(3.5 * HOUR)
        jobs.drain()
        handle.pause()
        clock.turn(-2 * HOUR)
        handle.resume()
        clock.turn(3 * HOUR)
        jobs.drain()
        assert hours(jobs) == [1, 2, 3, 4]

    def test_resuming_what_is_not_paused_does_not_lose_a_tick(
        self, jobs: LiteJobs, clock: TurnedClock, report: Definition[..., str, str]
    ) -> None:
        handle = jobs.schedule("nightly")
        handle.set("@hourly", report)
        clock.turn(1.5 * HOUR)
        handle.resume()
        jobs.drain()
        assert hours(jobs) == [1]

    def test_all_can_be_paused_and_resumed(
        self, jobs: LiteJobs, report: Definition[..., str, str]
    ) -> None:
        for name in "abc":
            jobs.schedule(name).set("@hourly", report)
        jobs.schedule("b").pause()
        assert jobs.pause_schedules() == 2
        assert jobs.pause_schedules() == 0
        assert {schedule.state for schedule in jobs.schedules()} == {"paused"}
        assert jobs.resume_schedules() == 3
        assert jobs.resume_schedules() == 0
        assert {schedule.state for schedule in jobs.schedules()} == {"active"}

    def test_fire_enqueues_one_now_and_leaves_the_next_time(
        self, jobs: LiteJobs, clock: TurnedClock, report: Definition[..., str, str]
    ) -> None:
        handle = jobs.schedule("nightly")
        handle.set("@hourly", report.bind("weekly"))
        handle.pause()
        clock.turn(0.25 * HOUR)
        job = handle.fire()
        assert isinstance(job, Job)
        assert (job.state, job.schedule) == ("pending", "nightly")
        handle.resume()
        schedule = handle.get()
        assert schedule.next_at == NEW_YEAR + timedelta(hours=1)
        assert (schedule.last_job, schedule.last_at) == (job.id, job.run_at)
        jobs.drain()
        assert job.result() == "weekly"

    def test_remove_leaves_the_jobs(
        self, jobs: LiteJobs, clock: TurnedClock, report: Definition[..., str, str]
    ) -> None:
        handle = jobs.schedule("nightly")
        handle.set("@hourly", report)
        job = handle.fire()
        handle.remove()
        clock.turn(2 * HOUR)
        jobs.drain()
        assert jobs.schedules() == []
        assert [found.id for found in jobs.find()] == [job.id]

    @pytest.mark.parametrize("verb", ["get", "pause", "resume", "fire", "remove"])
    def test_an_unknown_name_is_an_error_that_proposes_a_near_one(
        self, jobs: LiteJobs, report: Definition[..., str, str], verb: str
    ) -> None:
        jobs.schedule("nightly").set("@hourly", report)
        with pytest.raises(ScheduleNotFoundError, match="'nihgtly'; did you mean 'nightly'"):
            getattr(jobs.schedule("nihgtly"), verb)()
        with pytest.raises(OptionError, match="name"):
            jobs.schedule("")

    def test_set_refuses_what_is_bad_and_writes_nothing(
        self, jobs: LiteJobs, report: Definition[..., str, str]
    ) -> None:
        handle = jobs.schedule("nightly")
        bad: list[Callable[[], object]] = [
            lambda: handle.set("whenever", report),
            lambda: handle.set(0, report),
            lambda: handle.set("@daily", report, grcae=5),  # type: ignore[call-arg]
            lambda: handle.set("@daily", report.using(at=NEW_YEAR)),
        ]
        for attempt in bad:
            with pytest.raises(OptionError):
                attempt()
        with pytest.raises(DefinitionError):
            handle.set("@daily", object())
        assert jobs.schedules() == []


CLOCKED = """
import os
import sys
from pathlib import Path
from litejobs import LiteJobs

def clock() -> int:
    return int(Path("clock.txt").read_text())

jobs = LiteJobs("jobs.db", durability="fast", clock=clock)

@jobs.cron("0 * * * *", misfire="all")
def tick() -> int:
    return os.getpid()

if __name__ == "__main__":
    jobs.work(1, grace=0.3)
"""


class Clocked:
    """Real nodes, in processes of their own, that share a clock in a file."""

    def __init__(self, programs: Programs, clock: TurnedClock) -> None:
        programs.write(app=CLOCKED)
        self.programs = programs
        self.clock = clock
        self.jobs = LiteJobs(programs.folder / "jobs.db", durability="fast", clock=clock)
        self.turn(0)

    def turn(self, seconds: float) -> None:
        self.clock.turn(seconds)
        new = self.programs.folder / "clock.new"
        new.write_text(str(self.clock()))
        os.replace(new, self.programs.folder / "clock.txt")
        self.jobs.store.file.notify_nodes()

    def start(self) -> Any:
        known = {node.id for node in self.jobs.nodes()}
        node = self.programs.start("app.py")
        eventually(lambda: {node.id for node in self.jobs.nodes()} - known)
        eventually(self.jobs.schedules)
        return node

    def have_done(self, count: int) -> None:
        eventually(lambda: self.jobs.count(state="completed") >= count)


@pytest.fixture
def nodes(programs: Programs, clock: TurnedClock) -> Iterator[Clocked]:
    clocked = Clocked(programs, clock)
    yield clocked
    clocked.jobs.close()


class TestNodes:
    def test_of_two_nodes_one_fires_each_tick(self, nodes: Clocked) -> None:
        nodes.start()
        nodes.start()
        for tick in range(1, 9):
            nodes.turn(HOUR)
            nodes.have_done(tick)
        never(lambda: nodes.jobs.count() != 8, during=0.2)
        assert hours(nodes.jobs) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert {job.schedule for job in nodes.jobs.find()} == {"tick"}

    def test_killed_between_ticks_lose_none(self, nodes: Clocked) -> None:
        for done in (1, 4):
            node = nodes.start()
            nodes.turn(HOUR)
            nodes.have_done(done)
            node.kill()
            node.wait()
            nodes.turn(2 * HOUR)
        nodes.start()
        nodes.have_done(6)
        assert hours(nodes.jobs) == [1, 2, 3, 4, 5, 6]

    def test_heed_changes_at_once(self, nodes: Clocked) -> None:
        nodes.start()
        handle = nodes.jobs.schedule("tick")
        handle.pause()
        nodes.turn(HOUR)
        never(nodes.jobs.count, during=0.2)
        handle.resume()
        nodes.turn(HOUR)
        nodes.have_done(1)
        assert handle.fire().wait(TIMEOUT).state == "completed"
        waits = []
        for done in range(3, 7):
            since = time.monotonic()
            nodes.turn(HOUR)
            nodes.have_done(done)
            waits.append(time.monotonic() - since)
        assert min(waits) < 0.5  # A node that was not woken looks once a second.

    def test_meet_a_tick_within_milliseconds(self, tmp_path: Path, programs: Programs) -> None:
        programs.write(app=CLOCKED.replace(", clock=clock", "").replace("0 * * * *", "@every 0.2s"))
        programs.start("app.py")
        jobs = LiteJobs(tmp_path / "jobs.db", durability="fast")

        def on_time() -> int:
            soon, done = timedelta(milliseconds=50), jobs.find(state="completed")
            begun = [(job.started_at, job.run_at) for job in done]
            return sum(at is not None and at - due < soon for at, due in begun)

        # A node that only looked once a second would meet one tick in twenty.
        eventually(lambda: jobs.path.exists() and on_time() >= 3)
        assert on_time() >= 0.3 * jobs.count(schedule="tick") - 10
        jobs.close()


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def quiet(self) -> Iterator[None]:
        yield
        logging.getLogger().handlers.clear()

    @pytest.fixture
    def path(self, jobs: LiteJobs, clock: TurnedClock) -> str:
        definition = jobs.define(report)
        jobs.schedule("nightly").set("0 3 * * *", definition, timezone="Europe/Berlin")
        jobs.schedule("often").set(30, definition.bind("often"))
        clock.turn(31)
        jobs.drain()
        jobs.schedule("often").pause()
        return str(jobs.path)

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out + err

    def test_lists_schedules(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        code, out = self.run(capsys, "schedules", path)
        assert code == 0
        assert [line.split("  ")[0] for line in out.splitlines()] == ["name", "nightly", "often"]
        cells = [filter(None, map(str.strip, line.split("  "))) for line in out.splitlines()]
        header, nightly, often = map(list, cells)
        assert header == ["name", "state", "expression", "in words", "next", "last", "zone"]
        assert nightly == [
            "nightly", "active", "0 3 * * *", "At 03:00 every day", "2025-01-01T02:00:00Z",
            "Europe/Berlin",
        ]  # fmt: skip
        assert often == [
            "often", "paused", "@every 30s", "Every 30 seconds", "2025-01-01T00:00:30Z", "UTC",
        ]  # fmt: skip

    def test_lists_schedules_as_json(self, path: str, capsys: pytest.CaptureFixture[str]) -> None:
        code, out = self.run(capsys, "schedules", path, "--json")
        nightly, often = json.loads(out)
        assert code == 0
        assert nightly["next_at"] == "2025-01-01T02:00:00+00:00"
        assert nightly["words"] == "At 03:00 every day"
        assert (often["state"], often["payload"], often["next_at"]) == (
            "paused", {"kind": "often"}, None,
        )  # fmt: skip

    def test_lists_nothing_with_code_1(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with LiteJobs(tmp_path / "empty.db") as jobs:
            jobs.count()
        assert self.run(capsys, "schedules", str(jobs.path))[0] == 1

    def test_fires_one_now(
        self, jobs: LiteJobs, path: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out = self.run(capsys, "fire", path, "nightly")
        assert code == 0
        assert jobs.get(int(out)).schedule == "nightly"
        code, out = self.run(capsys, "fire", path, "nightly", "--json")
        assert json.loads(out)["state"] == "pending"

    def test_pauses_and_resumes_one_or_all(
        self, path: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(capsys, "pause-schedule", path, "nightly") == (0, "1 paused\n")
        assert self.run(capsys, "pause-schedule", path) == (1, "0 paused\n")
        assert self.run(capsys, "resume-schedule", path) == (0, "2 resumed\n")
        assert self.run(capsys, "resume-schedule", path, "nightly") == (1, "0 resumed\n")

    @pytest.mark.parametrize("command", ["fire", "pause-schedule", "resume-schedule"])
    def test_says_that_a_name_is_unknown(
        self, path: str, capsys: pytest.CaptureFixture[str], command: str
    ) -> None:
        code, out = self.run(capsys, command, path, "nigtly")
        assert code == 1
        assert out == ("litejobs: no schedule has the name 'nigtly'; did you mean 'nightly'?\n")

    def test_shows_a_schedule_that_this_machine_does_not_understand(
        self, jobs: LiteJobs, path: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_by_hand(jobs, "UPDATE litejobs_schedule SET timezone = 'Mars/X'")
        code, out = self.run(capsys, "schedules", path)
        assert code == 0
        assert "there is no time zone 'Mars/X'" in out
