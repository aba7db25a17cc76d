"""Metrics: what nodes did, by minute, hour and day."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import NEW_YEAR, TurnedClock
from hypothesis import given
from hypothesis import strategies as st
from programs import Programs

import litejobs
from litejobs import (
    Cancel,
    Claimed,
    Fail,
    LiteJobs,
    Meter,
    Metric,
    OptionError,
    Report,
    Settlement,
    State,
    bucket_of,
    quantile,
    to_micros,
)

START = to_micros(NEW_YEAR)
MINUTE = timedelta(minutes=1)


def settled(
    state: State, name: str = "mail", *, waiting: int = 1000, running: int = 2000
) -> Settlement:
    claimed = Claimed(1, 1, name, "default", 0, 1, None, None, None, "{}", START, START)
    began = START + 1000
    return claimed, Report(began, began + running, running, state)


def note(meter: Meter, *settlements: Settlement) -> None:
    groups = Counter((report.state, job.queue, job.name) for job, report in settlements)
    meter.count(settlements, groups)


def near(time: timedelta | None, micros: float) -> bool:
    return time is not None and abs(time / timedelta(microseconds=1) / micros - 1) < 0.1


def written(jobs: LiteJobs) -> list[tuple[Any, ...]]:
    rows = jobs.store.file.connection().execute("SELECT * FROM litejobs_metric")
    return list(rows)


class TestBuckets:
    @given(times=st.lists(st.integers(2, 10**12), min_size=1), share=st.floats(0.01, 1))
    def test_hold_a_quantile_to_a_tenth(self, times: list[int], share: float) -> None:
        found = quantile(Counter(map(bucket_of, times)), share)
        exact = sorted(times)[max(0, -int(-share * len(times) // 1) - 1)]
        assert found is not None
        assert abs(found / timedelta(microseconds=1) - exact) <= exact * 0.1 + 1

    def test_take_a_time_that_a_clock_set_back_made_negative(self) -> None:
        assert bucket_of(-5) == bucket_of(0) == bucket_of(1) == 0

    def test_without_jobs_there_is_no_time(self) -> None:
        assert quantile({}, 0.5) is None


class TestDraining:
    def test_is_measured_by_state_and_times(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        @jobs.define(max_attempts=2, backoff=litejobs.Constant(0))
        def work(outcome: str) -> None:
            clock.turn(2)
            if outcome == "raise":
                raise ValueError
            if outcome == "fail":
                raise Fail("no")
            if outcome == "cancel":
                raise Cancel("no")

        for outcome in ("fine", "raise", "fail", "cancel"):
            work.enqueue(outcome)
            clock.turn(1)
            jobs.drain()
        [metric] = jobs.metrics(limit=1)
        counts = metric.completed, metric.failed, metric.retried, metric.cancelled
        assert counts == (1, 2, 1, 1)
        assert near(metric.running_median, 2_000_000)
        assert near(metric.running_p95, 2_000_000)
        assert near(metric.waiting_median, 1_000_000)

    def test_measures_queues_and_definitions_apart(self, jobs: LiteJobs) -> None:
        @jobs.define(queue="fast")
        def quick() -> None: ...

        @jobs.define(queue="slow")
        def slow() -> None: ...

        jobs.enqueue_many([quick.bind(), quick.bind(), slow.bind()])
        jobs.drain()

        def completed(**filters: Any) -> int:
            return jobs.metrics(limit=1, **filters)[0].completed

        assert (completed(), completed(queue="fast"), completed(name="slow")) == (3, 2, 1)
        assert completed(queue="fast", name="slow") == 0


class TestSpans:
    def test_come_the_oldest_first_with_empty_ones(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        @jobs.define
        def mail() -> None: ...

        for _ in range(2):
            mail.enqueue()
            jobs.drain()
            clock.turn(120)
        found = jobs.metrics(limit=5)
        assert [metric.completed for metric in found] == [1, 0, 1, 0, 0]
        assert found[0].start == NEW_YEAR
        assert found[-1].start == NEW_YEAR + 4 * MINUTE
        assert found[1] == Metric(NEW_YEAR + MINUTE, 0, 0, 0, 0, None, None, None, None)
        assert [metric.completed for metric in jobs.metrics("hour", limit=2)] == [0, 2]
        assert [metric.completed for metric in jobs.metrics("day", limit=2)] == [0, 2]

    @pytest.mark.parametrize("chosen", [{"span": "week"}, {"limit": 0}, {"limit": True}])
    def test_that_do_not_exist_are_refused(self, jobs: LiteJobs, chosen: Any) -> None:
        with pytest.raises(OptionError):
            jobs.metrics(**chosen)


class TestSamples:
    @given(
        kinds=st.lists(st.sampled_from(["mail", "report"]), min_size=1, max_size=300),
        seed=st.integers(0, 99),
    )
    def test_stand_for_all_that_were_settled_together(self, kinds: list[str], seed: int) -> None:
        meter = Meter(litejobs.File(Path("unused"), clock=lambda: START), random.Random(seed))
        note(meter, *[settled("completed", kind) for kind in kinds])
        weights: Counter[tuple[str, str]] = Counter()
        for (_, _, name, measure, _), number in meter._counts.items():
            weights[measure, name] += number
        for measure in ("waiting", "running"):
            assert weights[measure, "mail"] + weights[measure, "report"] == len(kinds)
        for kind in ("mail", "report"):
            assert weights["completed", kind] == kinds.count(kind)
        assert len(meter._counts) <= 6

    def test_tell_nothing_of_what_was_given_back(self, jobs: LiteJobs) -> None:
        meter = jobs.store.meter
        note(meter, settled("pending"), settled("scheduled"))
        meter.flush()
        assert written(jobs) == []


class TestFolding:
    def fill(self, jobs: LiteJobs, clock: TurnedClock, *, hours: int) -> None:
        for _ in range(hours * 2):
            note(jobs.store.meter, settled("completed"), settled("failed", running=8000))
            clock.turn(1800)
        jobs.store.meter.flush()

    def fold(self, jobs: LiteJobs) -> int:
        times = 0
        while jobs.store.meter.roll_up(jobs.clock()):
            times += 1
            assert times < 1000
        return times

    def test_keeps_every_number(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        self.fill(jobs, clock, hours=30)
        before = jobs.metrics("hour", limit=31)
        assert self.fold(jobs) == 6
        assert jobs.metrics("hour", limit=31) == before
        assert {row[0] for row in written(jobs)} == {60, 3600}
        minutes = [row[1] for row in written(jobs) if row[0] == 60]
        assert min(minutes) == START + 6 * 3_600_000_000
        assert self.fold(jobs) == 0

    def test_adds_what_is_written_late(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        self.fill(jobs, clock, hours=2)
        now = clock.now
        clock.turn(86400)
        self.fold(jobs)
        late, clock.now = clock.now, now - timedelta(hours=1)
        note(jobs.store.meter, settled("completed"))
        jobs.store.meter.flush()
        clock.now = late
        self.fold(jobs)
        assert sum(metric.completed for metric in jobs.metrics("day", limit=2)) == 5
        assert {row[0] for row in written(jobs)} == {3600}

    def test_forgets_hours_after_ninety_days(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        self.fill(jobs, clock, hours=2)
        clock.turn(2 * 86400)
        self.fold(jobs)
        clock.turn(87 * 86400)
        self.fold(jobs)
        assert written(jobs) != []
        clock.turn(2 * 86400)
        self.fold(jobs)
        assert written(jobs) == []


class TestNodes:
    def test_write_down_what_they_did_when_they_leave(
        self, tmp_path: Path, programs: Programs
    ) -> None:
        programs.write(
            app="""
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db", durability="fast")

@jobs.define
def nothing(n: int) -> None: ...

if __name__ == "__main__":
    jobs.enqueue_many(nothing.bind(n) for n in range(500))
    jobs.work(workers=2, until="empty")
"""
        )
        code, _, errors = programs.run("app.py")
        assert (code, errors) == (0, "")
        with LiteJobs(tmp_path / "jobs.db") as jobs:
            found = jobs.metrics(limit=2)
        assert sum(metric.completed for metric in found) == 500
        assert any(metric.running_median for metric in found)
