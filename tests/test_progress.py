"""Progress: what a job tells while it runs, and what of it is kept."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_by_hand
from hypothesis import given
from hypothesis import strategies as st
from programs import eventually, lines, trouble

from litejobs import (
    Constant,
    Context,
    Fail,
    Job,
    LiteJobs,
    OptionError,
    Progress,
    ProgressReporter,
    define,
    main,
    store_progress,
)

PATIENT = 60.0


@define
def copy(context: Context, log: str, files: int) -> int:
    """Tells of each file, then waits for somebody to write into its log."""
    for done in range(files + 1):
        context.progress(done, files, f"file {done}")
    wait_for_line(log)
    return files


@define
def tell_and_end(context: Context, number: int) -> None:
    context.progress(number)


@define
def tell_much(context: Context, times: int) -> None:
    for done in range(1, times + 1):
        context.progress(done, times)


@define(max_attempts=2, backoff=Constant(0))
def half(context: Context) -> None:
    if context.attempt == 1:
        context.progress(5, 10, "half")
        raise ValueError("half-way")


@define(max_attempts=1)
def crash_half_way(context: Context) -> None:
    context.progress(5, 10)
    os._exit(3)


def wait_for_line(log: str) -> None:
    give_up = time.monotonic() + PATIENT
    while not lines(Path(log)) and time.monotonic() < give_up:
        time.sleep(0.005)


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[LiteJobs]:
    """A queue with a node that has one worker."""
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        jobs.register(copy, tell_and_end, tell_much, half, crash_half_way)
        with jobs.start(workers=1, grace=0):
            yield jobs


class TestAValue:
    def test_knows_its_share(self) -> None:
        assert Progress(3, 4).share == 0.75
        assert Progress(3).share is None
        assert Progress(5, 4).share == 1.0
        assert Progress(-1, 4).share == 0.0
        assert Progress(0, 0).share == 1.0

    def test_reads_like_a_sentence(self) -> None:
        assert str(Progress(3, 4, "shrinking")) == "3 of 4 (75%): shrinking"
        assert str(Progress(2.5)) == "2.5"

    @pytest.mark.parametrize("wrong", ["3", None, True, float("nan"), float("inf"), 10**400])
    def test_is_refused_when_it_is_no_number(self, wrong: Any) -> None:
        with pytest.raises(OptionError, match="progress: expected a finite number"):
            Progress(wrong)
        if wrong is not None:
            with pytest.raises(OptionError, match="progress: expected a finite number"):
                Progress(1, wrong)

    def test_is_refused_when_its_note_is_no_text(self) -> None:
        note: Any = 7
        with pytest.raises(OptionError, match="expected a text as the note, got 7"):
            Progress(1, note=note)

    @given(st.floats(-1e9, 1e9) | st.integers(-(2**63), 2**63), st.text())
    def test_is_read_as_it_was_written(self, done: float, note: str) -> None:
        reported = Progress(done, 10, note)
        assert Progress(**json.loads(store_progress(reported))) == reported

    def test_keeps_the_beginning_of_a_long_note(self) -> None:
        assert Progress(1, note="x" * 10_000).note == "x" * 500
        halves = Progress(1, note="\ud800" * 10_000)  # Each is kept as an escape, of six.
        assert Progress(1, note=halves.note) == halves


class TestWhileAJobRuns:
    def test_it_is_seen_within_a_fraction_of_a_second(self, at_work: LiteJobs, log: Path) -> None:
        job = copy.enqueue(str(log), 0)
        eventually(lambda: job.refresh().progress)
        assert (job.refresh().state, job.refresh().progress) == (
            "running",
            Progress(0, 0, "file 0"),
        )
        trouble.note(str(log), "go on")
        assert job.result(PATIENT) == 0

    def test_what_was_told_last_is_seen_although_much_was_told_at_once(
        self, at_work: LiteJobs, log: Path
    ) -> None:
        job = copy.enqueue(str(log), 50)
        last = Progress(50, 50, "file 50")
        eventually(lambda: job.refresh().progress == last, within=5.0)
        assert job.refresh().state == "running"
        trouble.note(str(log), "go on")
        job.wait(PATIENT)


class TestWhenAJobHasEnded:
    def test_the_last_word_is_there_before_the_result(self, at_work: LiteJobs) -> None:
        given = [tell_and_end.bind(number) for number in range(300)]
        reported = [job.wait(PATIENT).progress for job in at_work.enqueue_many(given)]
        assert reported == [Progress(number) for number in range(300)]

    def test_much_was_told_and_the_last_is_kept(self, at_work: LiteJobs) -> None:
        job = tell_much.enqueue(20_000).wait(PATIENT)
        assert (job.state, job.progress) == ("completed", Progress(20_000, 20_000))

    def test_a_further_attempt_shows_the_old_one_until_it_tells(self, at_work: LiteJobs) -> None:
        job = half.enqueue().wait(PATIENT)
        assert (job.state, job.attempt, job.progress) == ("completed", 2, Progress(5, 10, "half"))

    def test_a_crash_leaves_what_had_been_told(self, at_work: LiteJobs) -> None:
        job = crash_half_way.enqueue().wait(PATIENT)
        assert (job.state, job.progress) == ("failed", Progress(5, 10))

    def test_a_job_that_never_told_has_none(self, jobs: LiteJobs) -> None:
        jobs.register(trouble.nap)
        job = trouble.nap.enqueue(0)
        jobs.drain()
        assert job.refresh().progress is None


class TestInDrain:
    def test_it_is_in_the_file_at_once(self, jobs: LiteJobs) -> None:
        seen: list[Progress | None] = []

        @jobs.define
        def look(context: Context) -> None:
            context.progress(1, 2, "seen")
            seen.append(jobs.get(context.job.id).progress)

        look.enqueue()
        jobs.drain()
        assert seen == [Progress(1, 2, "seen")]

    def test_the_last_word_is_kept(self, jobs: LiteJobs) -> None:
        @jobs.define
        def count(context: Context) -> None:
            for done in range(1000):
                context.progress(done)
            raise Fail("enough")

        job = count.enqueue()
        jobs.drain()
        assert (job.refresh().state, job.refresh().progress) == ("failed", Progress(999))

    def test_a_wrong_value_fails_the_attempt(self, jobs: LiteJobs) -> None:
        @jobs.define(max_attempts=1)
        def wrong(context: Context) -> None:
            context.progress(float("nan"))

        job = wrong.enqueue()
        jobs.drain()
        assert "expected a finite number, got nan" in str(job.refresh().error)

    def test_a_plain_call_may_tell_too(self, jobs: LiteJobs) -> None:
        assert tell_and_end(1) is None


def test_a_claim_that_does_not_hold_any_more_changes_nothing(jobs: LiteJobs) -> None:
    jobs.register(trouble.nap)
    job = trouble.nap.enqueue(0)
    write_by_hand(jobs, "UPDATE litejobs_job SET state = 'running', claim = 3")
    jobs.store.keep_progress({(job.id, 2): [store_progress(Progress(1)), None]})
    assert job.refresh().progress is None
    jobs.store.keep_progress({(job.id, 3): [store_progress(Progress(2)), None]})
    assert job.refresh().progress == Progress(2)
    write_by_hand(jobs, "UPDATE litejobs_job SET state = 'completed'")
    jobs.store.keep_progress({(job.id, 3): [store_progress(Progress(4)), None]})
    assert job.refresh().progress == Progress(2)


class TestAProgressReporter:
    def test_passes_on_at_most_ten_a_second_and_the_last(self) -> None:
        passed: list[str | None] = []
        reporter = ProgressReporter(lambda progress, meta: passed.append(progress))
        began = time.monotonic()
        done = 0
        while time.monotonic() - began < 0.35:
            done += 1
            reporter.report(Progress(done))
        reporter.close()
        took = time.monotonic() - began
        assert passed[0] == store_progress(Progress(1))
        assert passed[-1] == store_progress(Progress(done))
        assert 3 <= len(passed) <= took * 10 + 2

    def test_passes_on_the_last_although_nothing_follows(self) -> None:
        passed: list[str | None] = []
        reporter = ProgressReporter(lambda progress, meta: passed.append(progress))
        reporter.report(Progress(1))
        reporter.report(Progress(2))
        eventually(lambda: len(passed) == 2, within=5.0)
        reporter.close()
        assert passed == [store_progress(Progress(1)), store_progress(Progress(2))]

    def test_takes_the_word_of_several_threads_and_of_none_after_its_end(self) -> None:
        passed: list[str | None] = []
        reporter = ProgressReporter(lambda progress, meta: passed.append(progress))

        def tell() -> None:
            for done in range(1000):
                reporter.report(Progress(done))

        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reporter.close()
        count = len(passed)
        reporter.report(Progress(7))
        assert passed[-1] == store_progress(Progress(999))
        assert len(passed) == count


def shown(job: Job[Any], capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    source: Any = job._source
    assert main(["show", *options, str(source.path), str(job.id)]) == 0
    return capsys.readouterr().out


def test_show_prints_it(jobs: LiteJobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.register(tell_and_end, half)
    reported = half.enqueue()
    jobs.drain()
    assert "progress:     5 of 10 (50%): half\n" in shown(reported, capsys)
    assert json.loads(shown(reported, capsys, "--json"))["progress"] == {
        "done": 5,
        "total": 10,
        "note": "half",
    }
    later = tell_and_end.using(delay=60).enqueue(1)
    assert "progress" not in shown(later, capsys)
