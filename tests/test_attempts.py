"""What is kept of failed attempts: what they wrote and used, and how their worker ended."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import write_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Programs, wordy

from litejobs import (
    OUTPUT_KEPT,
    OUTPUT_LIMIT,
    Board,
    Bound,
    Constant,
    Context,
    Failure,
    LiteJobs,
    Pool,
    Report,
    last_lines,
    main,
    pack,
)

PATIENT = 60.0
GRACE = 0.3
MIB = 2**20


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteJobs]:
    file = tmp_path_factory.mktemp("attempts") / "jobs.db"
    with LiteJobs(file, durability="fast") as jobs:
        jobs.register(*wordy.DEFINITIONS)
        yield jobs


@pytest.fixture(scope="module")
def pool(jobs: LiteJobs) -> Iterator[Pool]:
    """One node for all, since starting one takes longer than most jobs."""
    with jobs.start(workers=1, grace=GRACE) as pool:
        yield pool


def failure_of(jobs: LiteJobs, bound: Bound[Any]) -> Failure:
    """The one failed attempt of a job."""
    (failure,) = jobs.enqueue(bound).wait(PATIENT).errors
    return failure


@pytest.mark.usefixtures("pool")
class TestOutput:
    def test_is_what_was_printed_logged_and_written(self, jobs: LiteJobs) -> None:
        failure = failure_of(jobs, wordy.say_everywhere.bind())
        said = "one and two\nthree\nfour\nfive\nWARNING six\nseven\n"
        assert (failure.type, failure.output) == ("Luckless", said)

    def test_is_that_of_one_attempt(self, jobs: LiteJobs) -> None:
        wordy.say_and_end.enqueue("of another job")
        silent = wordy.fail_in_silence.enqueue()
        job = jobs.enqueue(wordy.say_the_attempt.bind()).wait(PATIENT)
        assert [failure.output for failure in job.errors] == ["attempt 1\n", "attempt 2\n"]
        assert [failure.output for failure in silent.wait(PATIENT).errors] == [""]

    def test_is_the_last_lines_of_much(self, jobs: LiteJobs) -> None:
        output = failure_of(jobs, wordy.say_much.bind(10_000)).output
        lines = output.splitlines()
        assert OUTPUT_LIMIT - len("line 9999\n") < len(output) <= OUTPUT_LIMIT
        assert lines == [f"line {n}" for n in range(10_000 - len(lines), 10_000)]

    def test_may_be_any_text(self, jobs: LiteJobs, capfd: pytest.CaptureFixture[str]) -> None:
        hostile = "nul \0, bell \a, escape \x1b[31m, caf\xe9, \U0001f600"
        assert failure_of(jobs, wordy.say.bind(hostile)).output == hostile + "\n"

    @pytest.mark.posix
    def test_is_also_that_of_forked_children(self, jobs: LiteJobs) -> None:
        assert failure_of(jobs, wordy.say_in_a_fork.bind()).output == "from a child\n"

    def test_leaves_the_streams_as_they_are(self, jobs: LiteJobs) -> None:
        failure = failure_of(jobs, wordy.ask_the_streams.bind())
        seen = (True, False, 1, True, "ascii", "ordinal not in range(128)")
        assert failure.message == str(seen)

    def test_of_coroutines_is_told_apart(self, jobs: LiteJobs) -> None:
        both = [wordy.say_in_turns.enqueue(name) for name in ("Ada", "Ben")]
        plain = failure_of(jobs, wordy.say.bind("beside them"))
        for job, name in zip(both, ("Ada", "Ben"), strict=True):
            (failure,) = job.wait(PATIENT).errors
            assert failure.output == f"{name} 0\n{name} 1\n{name} 2\n{name} aside\n"
            assert (failure.cpu, failure.exit_code) == (None, None)
        assert plain.output == "beside them\n"

    def test_appears_as_if_nobody_kept_it(self, programs: Programs) -> None:
        programs.write(app=SPEAKER)
        plainly, as_a_job = programs.run("app.py", "plainly"), programs.run("app.py")
        assert plainly[0] == 0
        assert "bytes\n1%\n2%\nlast" in plainly[1]
        assert "caf\\xe9\nold\nWARNING:root:log\n" in plainly[2]
        assert as_a_job == plainly


SPEAKER = """
import logging, sys
from litejobs import LiteJobs

old = sys.stderr
logging.basicConfig()
sys.stderr.reconfigure(encoding="ascii", errors="backslashreplace")
jobs = LiteJobs("speaker.db")

@jobs.define
def speak() -> None:
    print("text")
    sys.stdout.flush()
    sys.stdout.buffer.write(b"bytes\\n")
    print("1%", "2%", sep="\\r", end="\\r")
    print("caf\\xe9", file=sys.stderr)
    print("old", file=old, flush=True)
    logging.warning("log")
    sys.stdout.write("last")

if __name__ == "__main__":
    if sys.argv[1:]:
        speak()
    else:
        speak.enqueue()
        jobs.work(workers=1, until="empty")
"""


@pytest.mark.usefixtures("pool")
class TestCrashes:
    @pytest.mark.posix
    @pytest.mark.parametrize(
        ("how", "code"),
        [("segfault", -signal.SIGSEGV), ("kill", -signal.SIGKILL), ("exit", 3)],
    )
    def test_leave_their_exit_code_and_last_words(
        self, how: str, code: int, jobs: LiteJobs
    ) -> None:
        failure = failure_of(jobs, wordy.say_and_crash.bind(how))
        reported = failure.kind, failure.exit_code, failure.output
        assert reported == ("crash", code, "last words")

    @pytest.mark.posix
    def test_at_the_timeout_too(self, jobs: LiteJobs) -> None:
        failure = failure_of(jobs, wordy.log_and_hang.bind())
        assert (failure.kind, failure.output) == ("timeout", "WARNING this takes long\n")
        assert failure.exit_code == (-signal.SIGKILL if hasattr(os, "fork") else 1)
        if sys.platform == "linux":
            assert failure.cpu is not None
            assert failure.memory is not None
            assert timedelta(seconds=0.01) < failure.cpu < timedelta(seconds=5)
            assert 5 * MIB < failure.memory < 2048 * MIB

    def test_a_job_that_obeys_its_timeout_tells_as_much(self, jobs: LiteJobs) -> None:
        failure = failure_of(jobs, wordy.log_and_obey.bind())
        assert (failure.kind, failure.exit_code) == ("timeout", None)
        assert failure.output == "WARNING this takes long\n"
        assert failure.cpu is not None
        assert failure.cpu > timedelta(seconds=0.01)

    @pytest.mark.linux
    def test_leave_their_cpu_time(self, jobs: LiteJobs) -> None:
        wordy.compute_well.enqueue(0.3).wait(PATIENT)
        cpu = failure_of(jobs, wordy.compute_and_crash.bind(0.1)).cpu
        assert cpu is not None
        assert timedelta(seconds=0.07) < cpu < timedelta(seconds=0.3)


@pytest.mark.usefixtures("pool")
class TestUse:
    def test_cpu_time_is_that_of_the_attempt(self, jobs: LiteJobs) -> None:
        wordy.compute_well.enqueue(0.3).wait(PATIENT)
        cpu = failure_of(jobs, wordy.compute.bind(0.1)).cpu
        assert cpu is not None
        assert timedelta(seconds=0.1) <= cpu < timedelta(seconds=0.3)

    def test_short_jobs_before_it_in_the_same_hands_do_not_count(self, jobs: LiteJobs) -> None:
        before = [wordy.say_and_end.bind(".") for _ in range(200)]
        *_, last = jobs.enqueue_many([*before, wordy.compute.bind(0.05)])
        (failure,) = last.wait(PATIENT).errors
        assert failure.cpu is not None
        assert timedelta(seconds=0.045) < failure.cpu < timedelta(seconds=0.1)

    def test_waiting_is_no_cpu_time(self, jobs: LiteJobs) -> None:
        cpu = failure_of(jobs, wordy.wait.bind(0.3)).cpu
        assert cpu is not None
        assert cpu < timedelta(seconds=0.1)

    @pytest.mark.posix
    def test_memory_is_the_peak(self, jobs: LiteJobs) -> None:
        before = failure_of(jobs, wordy.fail_in_silence.bind()).memory
        after = failure_of(jobs, wordy.occupy.bind(100 * MIB)).memory
        assert before is not None
        assert after is not None
        assert 100 * MIB < after < before + 400 * MIB


class TestInThreads:
    def test_the_output_is_the_programs_own(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:

            @jobs.define(max_attempts=1)
            def say() -> None:
                print("here")
                raise ValueError

            with jobs.start(threads=1, grace=GRACE):
                (failure,) = say.enqueue().wait(PATIENT).errors
        assert capsys.readouterr().out == "here\n"
        assert (failure.output, failure.exit_code) == ("", None)
        assert failure.cpu is not None
        assert failure.cpu < timedelta(seconds=1)


class TestShow:
    def test_prints_what_a_failed_attempt_did(
        self, jobs: LiteJobs, pool: Pool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = wordy.say_and_crash.enqueue("exit").wait(PATIENT)
        assert main(["show", str(jobs.store.file.path), str(job.id)]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^exit code: 3(, CPU time: \d+\.\d{3} s)?$", shown, re.MULTILINE)
        assert shown.endswith("output:\n    last words\n")

    def test_escapes_what_could_steer_a_terminal(
        self, jobs: LiteJobs, pool: Pool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = wordy.say.enqueue("red \x1b[31m\a").wait(PATIENT)
        assert main(["show", str(jobs.store.file.path), str(job.id)]) == 0
        shown = capsys.readouterr().out
        assert shown.endswith("output:\n    red \\x1b[31m\\x07\n")
        assert re.search(r"^CPU time: \d+\.\d{3} s, peak memory: [\d.]+ MiB$", shown, re.MULTILINE)

    def test_tells_the_same_in_json(
        self, jobs: LiteJobs, pool: Pool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = wordy.say.enqueue("a word").wait(PATIENT)
        assert main(["show", str(jobs.store.file.path), str(job.id), "--json"]) == 0
        (reported,) = json.loads(capsys.readouterr().out)["errors"]
        (failure,) = job.errors
        assert (reported["exit_code"], reported["output"]) == (None, "a word\n")
        assert failure.cpu is not None
        assert reported["cpu"] == failure.cpu.total_seconds()
        assert reported["memory"] == failure.memory


class TestOfAJobThatIsRetriedForWeeks:
    def test_the_first_and_the_last_are_kept(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:

            @jobs.define(max_attempts=None, backoff=Constant(0))
            def poll(context: Context) -> None:
                if context.attempt <= 120:
                    raise ValueError(f"not yet, for the {context.attempt}. time")

            job = poll.enqueue()
            jobs.drain()
            assert [error.attempt for error in job.errors] == [*range(1, 11), *range(81, 121)]
            omitted = {error.attempt: error.omitted for error in job.errors if error.omitted}
            assert omitted == {81: 70}
            assert main(["show", str(jobs.path), str(job.id)]) == 0
            shown = capsys.readouterr().out
            assert shown.count("ValueError: not yet") == 5
            assert "115 earlier failed attempts: --all shows those that are kept" in shown
            assert main(["show", str(jobs.path), str(job.id), "--all"]) == 0
            shown = capsys.readouterr().out
            assert shown.count("ValueError: not yet") == 50
            assert "70 failed attempts are not kept" in shown


class TestAttemptsOfOlderVersions:
    def test_have_nothing_to_tell(self, jobs: LiteJobs, pool: Pool) -> None:
        job = wordy.say.enqueue("a word").wait(PATIENT)
        nothing = "exit_code = NULL, cpu = NULL, memory = NULL, output = NULL"
        write_by_hand(jobs, f"UPDATE litejobs_attempt SET {nothing} WHERE job = ?", job.id)
        (failure,) = job.errors
        assert (failure.exit_code, failure.cpu, failure.memory) == (None, None, None)
        assert failure.output == ""


class TestTheBoard:
    def test_tells_of_what_has_ended_in_the_moment_in_which_the_rest_is_taken_back(self) -> None:
        """A worker that was stopped right after that, with the lock of its board in hand, kept its
        reports from being read: what they were about ran again, although it had returned."""
        board = Board(0)
        reports = [("report", number, Report(1, 2, 5)[:]) for number in (1, 2, 3)]
        assert board.start_next(b"", 1)
        assert board.start_next(pack(*reports[0]), 2)
        assert board.start_next(pack(*reports[1]), 3)
        assert board.revoke(9) == 3
        with board.held():
            assert list(board.collect()) == reports[:2]
            assert board.revoke(12) is None
        assert not board.start_next(pack(*reports[2]), 4), "it was taken back"
        assert list(board.collect()) == reports[2:]


class TestTheRing:
    @settings(max_examples=80)
    @given(st.lists(st.text() | st.integers(0, 3 * OUTPUT_KEPT).map(lambda n: "ab\xe9\n" * n)))
    def test_keeps_the_end_of_whatever_is_written(self, texts: list[str]) -> None:
        board = Board(0)
        board.start_next(b"", 7)
        for text in texts:
            board.keep_output(text)
        written = "".join(texts).encode(errors="backslashreplace")
        assert board.output_of(7) == last_lines(written)
        assert board.output_of(8) == ""

    def test_shows_lone_surrogates_as_escapes(self) -> None:
        board = Board(0)
        board.start_next(b"", 7)
        board.keep_output("caf\udce9")
        assert board.output_of(7) == "caf\\udce9"

    def test_keeps_nothing_of_what_is_written_between_jobs(self) -> None:
        board = Board(0)
        board.start_next(b"", 7)
        board.start_next(b"", 0)
        board.keep_output("lost")
        assert (board.output_of(7), board.output_of(0)) == ("", "")

    def test_begins_with_a_whole_line_if_it_has_room_for_one(self) -> None:
        line = "x" * 99 + "\n"
        assert last_lines((line * 100).encode()) == line * (OUTPUT_LIMIT // 100)
        assert last_lines(b"y" * 9999) == "y" * OUTPUT_LIMIT
        assert last_lines(("y" * 9999 + "\n").encode()) == "y" * (OUTPUT_LIMIT - 1) + "\n"
        assert last_lines(("\xe9" * 9999).encode()) == "\xe9" * (OUTPUT_LIMIT // 2)
