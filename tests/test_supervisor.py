"""A node and what befalls it: kills, stops, signals, cancellations, and neighbours."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
from conftest import insert, write_by_hand
from programs import (
    Programs,
    alive,
    beside,
    children,
    eventually,
    lines,
    misdeeds,
    never,
    surroundings,
    trouble,
)

from litejobs import (
    Bound,
    Channel,
    Constant,
    Definition,
    Failure,
    FileError,
    FileReplacedError,
    Job,
    LiteJobs,
    Moved,
    WorkerError,
    pack,
    usage_of,
)

GRACE = 0.3
PATIENT = 60.0
FAR = 60.0
"""Seconds that no test waits for."""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LiteJobs]:
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        jobs.register(*trouble.DEFINITIONS)
        yield jobs


def teach_that_it_is_short(jobs: LiteJobs, work: Bound[Any]) -> None:
    """Until a node knows how long a definition's jobs take, it hands them over singly."""
    for job in jobs.enqueue_many([work] * 20):
        job.wait(PATIENT)


def teach_that_naps_are_short(jobs: LiteJobs) -> None:
    teach_that_it_is_short(jobs, trouble.nap.bind(0))


def written(log: Path, count: int) -> Callable[[], bool]:
    """Whether jobs have written so many lines."""
    return lambda: len(lines(log)) >= count


def seconds_late(job: Job[Any]) -> float:
    """How long a job that was due waited for its start."""
    job = job.wait(PATIENT)
    assert job.started_at is not None
    return (job.started_at - max(job.enqueued_at, job.run_at)).total_seconds()


# A node that dies


def test_jobs_of_a_killed_node_run_again_without_the_loss_of_an_attempt(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    job = trouble.nap_and_tell.using(max_attempts=1).enqueue(str(log), FAR)
    for death in range(1, 6):
        since = time.monotonic()
        node = programs.node(jobs.path)
        eventually(written(log, death))
        print(f"run {death} began {time.monotonic() - since:.3f} s after its node was started")
        assert (job.refresh().state, job.refresh().attempt) == ("running", 1)
        assert [error.kind for error in job.errors] == ["lost"] * (death - 1)
        node.kill()
        node.wait()
        eventually(lambda: not alive(int(lines(log)[-1])), within=1.0)
    last = programs.node(jobs.path, "--until", "empty")
    assert last.wait(PATIENT) == 0
    job = job.refresh()
    assert (job.state, job.attempt, len(lines(log))) == ("failed", 1, 5)
    assert [error.kind for error in job.errors] == ["lost"] * 5
    assert "NodeLost" in str(job.error)


def test_another_node_takes_over_within_about_a_second(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path)
    job = trouble.nap_and_tell.enqueue(str(log), FAR)
    eventually(lambda: lines(log))
    with jobs.start(workers=1, grace=0):
        trouble.nap.enqueue(0).wait(PATIENT)
        node.kill()
        since = time.monotonic()
        eventually(lambda: len(lines(log)) == 2)
        took = time.monotonic() - since
        print(f"taken over in {took:.3f} s")
        assert took < 2.5
        assert job.refresh().attempt == 1


def test_jobs_that_were_handed_over_but_not_begun_are_not_lost_with_their_node(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path)
    teach_that_naps_are_short(jobs)
    batch = [trouble.nap.bind(FAR), *[trouble.nap.bind(0)] * 30]
    long, *short = jobs.enqueue_many(batch)
    eventually(lambda: long.refresh().state == "running")
    node.kill()
    node.wait()
    assert jobs.cancel(long.id) == Moved(1)
    with jobs.start(workers=1, grace=0):
        assert {(job.wait(PATIENT).state, job.refresh().attempt) for job in short} == {
            ("completed", 1)
        }


@pytest.mark.posix
def test_a_job_that_was_cancelled_when_its_node_died_does_not_run_again(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path)
    job = trouble.nap_and_tell.enqueue(str(log), FAR)
    eventually(lambda: lines(log))
    os.kill(node.pid, signal.SIGSTOP)
    assert jobs.cancel(job.id) == Moved(1)
    node.kill()
    node.wait()
    with jobs.start(workers=1, grace=0):
        assert job.wait(PATIENT).state == "cancelled"
    assert len(lines(log)) == 1


def test_what_a_job_started_dies_with_its_killed_node(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path)
    trouble.start_a_sleeper_and_spin.enqueue(str(log))
    [sleeper] = map(int, eventually(lambda: lines(log)))
    node.kill()
    eventually(lambda: not alive(sleeper), within=1.0)


def test_many_nodes_rescue_the_same_jobs_and_none_is_hurt(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def rescue(barrier: threading.Barrier) -> None:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
            for node in range(200):
                barrier.wait(PATIENT)
                try:
                    jobs.store.nodes.rescue(node)
                except BaseException as error:
                    errors.append(error)

    for node in range(200):
        (tmp_path / f"jobs.db-node-{node}").touch()
    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=rescue, args=(barrier,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.posix
def test_a_node_that_is_stopped_for_a_while_keeps_its_jobs(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path, "--workers", "2")
    held = [trouble.nap_and_tell.enqueue(str(log), 3.0) for _ in range(2)]
    eventually(lambda: len(lines(log)) == 2)
    stopped = [node.pid, *children(node.pid)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        with jobs.start(workers=1, grace=GRACE):
            others = [trouble.nap_and_tell.enqueue(str(log), 0.01) for _ in range(20)]
            for job in others:
                job.wait(PATIENT)
            never(lambda: len(lines(log)) != 22, during=2.0)
            assert {job.refresh().state for job in held} == {"running"}
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            assert {job.wait(PATIENT).attempt for job in held} == {1}
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert len(lines(log)) == 22
    assert {job.refresh().state for job in held} == {"completed"}
    assert not any(job.errors for job in held + others)


# Hand-over


def test_short_jobs_behind_a_slow_one_go_to_an_idle_worker(jobs: LiteJobs) -> None:
    with jobs.start(workers=2, grace=GRACE):
        teach_that_naps_are_short(jobs)
        _, *short = jobs.enqueue_many([trouble.nap.bind(FAR), *[trouble.nap.bind(0)] * 10])
        late = max(map(seconds_late, short))
        print(f"the last of 10 short jobs started after {late * 1000:.1f} ms")
        assert late < FAR / 10
        assert {job.refresh().attempt for job in short} == {1}


def test_a_slow_job_in_the_middle_of_many_holds_nobody_up(jobs: LiteJobs) -> None:
    with jobs.start(workers=2, grace=0):
        teach_that_naps_are_short(jobs)
        naps = [trouble.nap.bind(0)] * 1000
        naps[500] = trouble.nap.bind(30.0)
        batch = jobs.enqueue_many(naps)
        slow, short = batch[500], [*batch[:500], *batch[501:]]
        late = max(map(seconds_late, short))
        assert slow.refresh().state == "running"
        short = [job.refresh() for job in short]
        print(f"the last of 999 short jobs started after {late * 1000:.1f} ms")
        assert {(job.state, job.attempt) for job in short} == {("completed", 1)}
        jobs.cancel(slow.id)


def test_large_results_are_not_lost_when_jobs_are_given_back(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    """They do not fit the board; a job whose report is in the pipe has run."""
    for _ in range(2):
        node = programs.node(jobs.path, "--grace", str(FAR))
        seen = len(lines(log))
        jobs.enqueue_many(trouble.large.bind(str(log), 0) for _ in range(200))
        eventually(written(log, seen + 50))
        node.terminate()
        assert node.wait(PATIENT) == 0
        assert jobs.nodes() == []
        assert jobs.count(state="completed") == len(lines(log))
        jobs.cancel(state="pending")


def test_a_signal_in_the_midst_of_short_jobs_ends_the_node(
    jobs: LiteJobs, programs: Programs
) -> None:
    """The last report before those that were taken back is handled, too."""
    for _ in range(2):
        node = programs.node(jobs.path)
        teach_that_naps_are_short(jobs)
        batch = jobs.enqueue_many([trouble.nap.bind(0.0002)] * 300)
        batch[20].wait(PATIENT)
        node.terminate()
        assert node.wait(PATIENT) == 0
        assert jobs.count(state="running") == 0
        jobs.cancel(state="pending")


def test_the_end_of_a_job_is_seen_when_those_behind_it_are_cancelled(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=0):
        teach_that_naps_are_short(jobs)
        for _ in range(30):
            batch = jobs.enqueue_many([trouble.nap.bind(0.0002)] * 60)
            batch[3].wait(PATIENT)
            jobs.cancel(*(job.id for job in batch[40:]))
            assert {job.wait(PATIENT).state for job in batch[:40]} == {"completed"}
            assert {job.wait(PATIENT).state for job in batch} <= {"completed", "cancelled"}


def test_a_node_whose_workers_are_busy_rests(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=0):
        for job in jobs.enqueue_many(trouble.nap.bind(0.004) for _ in range(10)):
            job.wait(PATIENT)
        busy = trouble.nap.enqueue(FAR)
        unknown = trouble.whoami.enqueue()
        eventually(lambda: busy.refresh().state == "running")
        before, since = time.process_time(), time.monotonic()
        eventually(lambda: time.monotonic() - since > 0.5)
        spent = time.process_time() - before
        print(f"spent {spent:.3f} s of computing in half a second")
        assert spent < 0.2
        assert unknown.refresh().state == "pending"
        jobs.cancel(busy.id)
        assert unknown.wait(PATIENT).state == "completed"


def test_a_due_time_is_met_and_never_too_early(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=GRACE):
        trouble.nap.enqueue(0).wait(PATIENT)
        delays = [0.5 + n * 0.1 for n in range(5)]
        late = sorted(
            seconds_late(job)
            for job in [trouble.nap.using(delay=delay).enqueue(0) for delay in delays]
        )
    print(f"late by {', '.join(f'{each * 1000:.1f}' for each in late)} ms")
    assert late[0] >= 0
    assert late[2] < 0.05


def test_an_enqueue_starts_on_an_idle_worker_at_once(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=GRACE):
        trouble.nap.enqueue(0).wait(PATIENT)
        late = sorted(seconds_late(trouble.nap.enqueue(0)) for _ in range(30))
    print(f"median {late[15] * 1000:.2f} ms, worst {late[-1] * 1000:.2f} ms")
    assert late[15] < 0.05


BY_HAND = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute(
    "INSERT INTO litejobs_job (name, payload) VALUES ('innocent', json_object('log', ?, 'n', 7))",
    (sys.argv[2],),
)
connection.commit()
connection.close()
"""


def test_an_insert_by_hand_from_another_process_is_seen(jobs: LiteJobs, log: Path) -> None:
    with jobs.start(workers=1, grace=GRACE):
        trouble.nap.enqueue(0).wait(PATIENT)
        command = [sys.executable, "-c", BY_HAND, str(jobs.path), str(log)]
        subprocess.run(command, check=True)
        eventually(lambda: lines(log) == ["7"], within=1.5)
        [job] = eventually(lambda: jobs.find(name="innocent", state="completed"))
    assert seconds_late(job) < 1.0
    assert (job.result(), job.queue, job.max_attempts) == (7, "default", 5)


@pytest.mark.linux
def test_an_idle_node_computes_nothing(jobs: LiteJobs, programs: Programs) -> None:
    """Less than one part in thirty of a core, and of that most is the check of its workers."""
    node = programs.node(jobs.path, "--workers", "2")
    for job in jobs.enqueue_many(trouble.nap.bind(0.01) for _ in range(20)):
        job.wait(PATIENT)
    eventually(lambda: len(children(node.pid)) >= 2)
    never(lambda: node.poll() is not None, during=1.0)  # So that its workers have started, too.
    processes = [node.pid, *children(node.pid)]
    before = sum(map(computed, processes))
    never(lambda: node.poll() is not None, during=1.5)
    spent = sum(map(computed, processes)) - before
    print(f"spent {spent:.2f} s of computing in 1.5 s")
    assert spent <= 0.05


def computed(pid: int) -> float:
    """The seconds of computing that a process has had."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_an_enqueue_in_another_process_starts_at_once(jobs: LiteJobs, programs: Programs) -> None:
    programs.node(jobs.path)
    trouble.nap.enqueue(0).wait(PATIENT)
    late = sorted(seconds_late(trouble.nap.enqueue(0)) for _ in range(30))
    print(f"median {late[15] * 1000:.2f} ms, worst {late[-1] * 1000:.2f} ms")
    assert late[15] < 0.05


def test_a_node_says_who_it_is_and_what_it_does(jobs: LiteJobs, log: Path) -> None:
    began = datetime.now(UTC)
    with jobs.start(workers=2, queues=["slow", "mail"], node="desk", grace=0):
        busy = trouble.nap_and_tell.using(queue="slow").enqueue(str(log), FAR)
        eventually(lambda: lines(log))
        [node] = jobs.nodes()
        assert (node.name, node.pid, node.workers) == ("desk", os.getpid(), 2)
        assert sorted(node.queues or ()) == ["mail", "slow"]
        assert timedelta(0) <= node.started_at - began < timedelta(seconds=PATIENT)
        assert node.running == 1
        jobs.cancel(busy.id)
        busy.wait(PATIENT)
        eventually(lambda: jobs.nodes()[0].running == 0)


@pytest.mark.linux
def test_a_node_that_cannot_join_leaves_nothing_open(tmp_path: Path) -> None:
    """Its wakeup socket and its selector were left to the garbage collector."""
    folder = tmp_path / "folder"
    folder.mkdir()
    jobs = LiteJobs(folder / "jobs.db")
    jobs.register(trouble.nap)
    folder.rmdir()
    gc.collect()
    gc.disable()
    try:
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(FileError, match="does not exist"):
                jobs.work(threads=1, until="empty")
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_a_node_has_a_worker_for_each_core_if_nothing_is_said(jobs: LiteJobs) -> None:
    with jobs.start(grace=GRACE) as pool:
        assert pool.wait(0) is False, "it does not block"
        [node] = eventually(jobs.nodes)
        assert node.workers == os.cpu_count()


def test_a_job_that_one_node_does_not_know_waits_for_one_that_does(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    ignorant = LiteJobs(jobs.path)
    ignorant.register(trouble.nap)
    with ignorant, ignorant.start(workers=1, grace=GRACE):
        job = trouble.innocent.using(priority=9, max_attempts=1).enqueue(str(log), 7)
        known = [trouble.nap.enqueue(0) for _ in range(5)]
        for other in known:
            assert other.wait(PATIENT).state == "completed"
        job = jobs.get(job.id)
        assert (job.state, job.attempt, job.errors) == ("pending", 0, ())
        assert "no node at work has its definition" in jobs.why(job.id)
        programs.node(jobs.path)
        job = job.wait(PATIENT)
    assert (job.state, job.attempt, lines(log)) == ("completed", 1, ["7"])


# Timeouts


def test_a_timeout_is_kept(jobs: LiteJobs, log: Path) -> None:
    with jobs.start(workers=1, grace=FAR):
        trouble.nap.enqueue(0).wait(PATIENT)
        attempts: list[Failure] = []
        for _ in range(9):
            job = trouble.obey.using(max_attempts=1, timeout=0.05).enqueue(str(log))
            attempts += job.wait(PATIENT).errors
    took = sorted((each.finished_at - each.started_at).total_seconds() for each in attempts)
    print(f"timeout 0.05 s, took {took}")
    assert [each.kind for each in attempts] == ["timeout"] * 9
    assert took[0] >= 0.05
    assert took[7] < 0.15


def test_a_job_that_heeds_its_deadline_keeps_its_worker(jobs: LiteJobs, log: Path) -> None:
    with jobs.start(workers=1, grace=FAR):
        job = trouble.obey.using(timeout=0.2, max_attempts=1).enqueue(str(log))
        assert job.wait(PATIENT).state == "failed"
        assert [error.kind for error in job.errors] == ["timeout"]
        assert trouble.whoami.enqueue().result(PATIENT) == int(lines(log)[0])


# The write lock is held by others, such as a database browser with an open transaction


@contextlib.contextmanager
def write_lock(jobs: LiteJobs) -> Iterator[apsw.Connection]:
    with contextlib.closing(apsw.Connection(str(jobs.path))) as connection:
        connection.set_busy_timeout(10_000)
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def test_a_timeout_is_kept_while_another_program_holds_the_write_lock(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    programs.node(jobs.path, "--workers", "2")
    flag = log.with_name("flag")
    short = trouble.wait_for.using(max_attempts=1).enqueue(str(log), str(flag))
    eventually(lambda: lines(log))
    long = trouble.nap_and_tell.using(timeout=1, max_attempts=1).enqueue(str(log), FAR)
    eventually(written(log, 2))
    with write_lock(jobs):
        flag.touch()  # So there is something to settle.
        since = time.monotonic()
        eventually(lambda: not alive(int(lines(log)[1])))
        took = time.monotonic() - since
        print(f"the worker was killed after {took:.3f} s")
        assert took < 10.0
        assert (short.refresh().state, long.refresh().state) == ("running", "running")
    assert (short.wait(PATIENT).state, long.wait(PATIENT).state) == ("failed", "failed")
    assert [error.kind for job in (short, long) for error in job.errors] == ["exception", "timeout"]


def test_a_node_is_stopped_while_another_program_holds_the_write_lock(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path, "--grace", "60")
    job = trouble.nap_and_tell.enqueue(str(log), FAR)
    eventually(lambda: lines(log))
    with write_lock(jobs):
        since = time.monotonic()
        node.terminate()

        def ends_at_once() -> bool:
            node.terminate()  # The second one, which the first one may have swallowed.
            return node.poll() is not None

        eventually(ends_at_once)
        assert node.returncode != 0, "it tells that it could not settle the job"
        took = time.monotonic() - since
        print(f"the node ended after {took:.3f} s")
        assert took < 5.0
        assert not alive(int(lines(log)[0]))
    assert "results are lost" in programs.errors.read_text()
    assert (job.refresh().state, job.refresh().attempt) == ("running", 1)
    programs.node(jobs.path)
    eventually(written(log, 2))
    assert (job.refresh().state, job.refresh().attempt) == ("running", 1)


def test_what_a_node_could_not_settle_for_the_lock_it_settles_before_it_leaves(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    with jobs.start(workers=1, grace=PATIENT) as node:
        job = trouble.nap_and_tell.enqueue(str(log), 0.2)
        eventually(lambda: lines(log))
        with write_lock(jobs):
            stopping = threading.Thread(target=node.stop)
            stopping.start()
            never(lambda: not stopping.is_alive(), during=1.5)
        stopping.join(PATIENT)
        assert node.wait(PATIENT)
    assert (job.refresh().state, job.refresh().attempt) == ("completed", 1)


# Anything may arrive at the port that wakes a node


def test_a_flood_of_datagrams_at_the_wakeup_port_costs_little(
    jobs: LiteJobs, programs: Programs
) -> None:
    node = programs.node(jobs.path)
    trouble.nap.enqueue(0).wait(PATIENT)
    [listed] = jobs.nodes()
    before = usage_of(node.pid)
    sent, began = 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
        while time.monotonic() < began + 1.5:
            flood.sendto(b"", ("127.0.0.1", listed.port))
            sent += 1
            time.sleep(0.00002)
        job = trouble.nap.enqueue(0)
    used = ((usage_of(node.pid)[0] or 0) - (before[0] or 0)) / 1e9
    print(f"{sent} datagrams cost {used:.3f} s of CPU time")
    assert used < 0.3 * (time.monotonic() - began)
    assert job.wait(PATIENT).attempt == 1


# What others write into the file


EXTREMES = (-(2**63), -1, 0, 2**53 + 1, 2**63 - 1)


def numbers_of(jobs: LiteJobs, table: str, kind: str = "INTEGER") -> list[str]:
    """The columns of a table that hold numbers."""
    with contextlib.closing(apsw.Connection(str(jobs.path))) as connection:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
    return [str(column[1]) for column in columns if column[2] == kind]


def insert_jobs(jobs: LiteJobs, rows: list[dict[str, Any]], triggers: bool) -> list[str]:
    """Inserts jobs as somebody without litejobs does; gives why some were refused."""
    refused = []
    with contextlib.closing(apsw.Connection(str(jobs.path))) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, int(triggers))
        for row in rows:
            names, holes = ", ".join(row), ", ".join("?" * len(row))
            sql = f"INSERT INTO litejobs_job ({names}) VALUES ({holes})"
            try:
                connection.execute(sql, tuple(row.values()))
            except apsw.ConstraintError as error:
                refused.append(str(error))
    return refused


@pytest.mark.parametrize("triggers", [True, False], ids=["as usual", "of before there were bounds"])
def test_a_plain_insert_of_an_extreme_number_stops_no_other_job(
    jobs: LiteJobs, triggers: bool
) -> None:
    jobs.stats()
    plain = {"name": "nap", "payload": '{"seconds": 0}', "max_attempts": 1}
    if not triggers:
        plain |= {"queue": "default", "priority": 0, "run_at": 1, "enqueued_at": 1}
    columns = [name for name in numbers_of(jobs, "litejobs_job") if name != "id"]
    rows = [plain | {name: value} for name in columns for value in EXTREMES]
    lengths = ("9223372036854775807", "-9223372036854775808", "9223372036854775808", "1e308")
    kept = [f'{{"completed": {length}}}' for length in (*lengths, '"x"', "[1]", "1.5")]
    rows += [plain | {"retention": text} for text in kept]
    refused = insert_jobs(jobs, rows, triggers)
    assert bool(refused) == triggers
    assert all(re.match(r"litejobs: \w+ (must be from|is not in)", each) for each in refused)
    others = [trouble.nap.enqueue(0) for _ in range(5)]
    failing = trouble.fail.using(max_attempts=1).enqueue()
    jobs.work(threads=1, until="empty")
    assert [job.refresh().state for job in [*others, failing]] == ["completed"] * 5 + ["failed"]
    found = {finding.problem for finding in jobs.doctor() if finding.level == "error"}
    assert any("out of bounds" in problem for problem in found) != triggers
    assert len(jobs.find(limit=1000)) > len(others), "they can be looked at"
    assert jobs.delete(name="nap").moved


@pytest.mark.parametrize("column", ["queue", "priority", "run_at", "enqueued_at"])
def test_another_program_cannot_set_a_needed_column_to_null(jobs: LiteJobs, column: str) -> None:
    trouble.nap.enqueue(0)
    with (
        contextlib.closing(apsw.Connection(str(jobs.path))) as connection,
        pytest.raises(apsw.ConstraintError, match=f"litejobs: {column} cannot be NULL"),
    ):
        connection.execute(f"UPDATE litejobs_job SET {column} = NULL")
    assert [job.state for job in jobs.find()] == ["pending"]


@pytest.mark.parametrize("number", [3, 20], ids=["few", "many"])
@pytest.mark.parametrize("column", ["priority", "run_at", "enqueued_at"])
def test_a_job_whose_column_was_set_to_null_in_an_older_file_runs_like_the_others(
    jobs: LiteJobs, column: str, number: int
) -> None:
    jobs.enqueue_many(trouble.nap.bind(0) for _ in range(number))
    with contextlib.closing(apsw.Connection(str(jobs.path))) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        connection.execute(f"UPDATE litejobs_job SET {column} = NULL WHERE id = 2")
    jobs.work(threads=1, until="empty")
    assert jobs.stats()["default"]["completed"] == number


def test_a_plain_insert_cannot_use_up_the_ids(jobs: LiteJobs) -> None:
    jobs.stats()
    plain = {"name": "nap", "payload": '{"seconds": 0}'}
    rows = [plain | {"id": id} for id in (2**63 - 1, 0, -1)]
    [refused, *_] = refusals = insert_jobs(jobs, rows, triggers=True)
    assert (len(refusals), refused) == (3, "litejobs: id must be from 1 to 9007199254740992")
    assert trouble.nap.enqueue(0).id == 1


def test_a_setting_that_is_out_of_bounds_pauses_its_queue_alone(jobs: LiteJobs) -> None:
    jobs.stats()
    settings = [
        (name, value)
        for kind, values in (("INTEGER", EXTREMES), ("REAL", (-math.inf, -1e308, math.inf)))
        for name in numbers_of(jobs, "litejobs_queue", kind)
        for value in values
        if name != "paused" and not (name != "filled_at" and value in (0, 2**53 + 1))
    ]
    unsound, refusals = [], []
    with contextlib.closing(apsw.Connection(str(jobs.path))) as connection:
        for place, (name, value) in enumerate(settings):
            row = {"name": f"q{place}", "rate": 1.0, "tokens": 9.0, "filled_at": 1} | {name: value}
            names, holes = ", ".join(row), ", ".join("?" * len(row))
            sql = f"INSERT INTO litejobs_queue ({names}) VALUES ({holes})"
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 1)
            try:
                connection.execute(sql, tuple(row.values()))
            except apsw.ConstraintError as error:
                refusals.append((name, str(error)))
                connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
                connection.execute(sql, tuple(row.values()))
                unsound.append(f"q{place}")
    assert all(why.startswith(f"litejobs: {name} must be from") for name, why in refusals)
    waiting = [trouble.nap.using(queue=f"q{n}").enqueue(0) for n in range(len(settings))]
    others = [trouble.nap.enqueue(0) for _ in range(5)]
    with jobs.start(threads=1):
        assert {job.wait(PATIENT).state for job in others} == {"completed"}
        stopped = {f"queue {name!r}" for name in unsound}
        found = {each.subject for each in jobs.doctor() if "out of bounds" in each.problem}
        assert len(found & stopped) == 10, "of many, the first ones"
        for name in unsound:
            jobs.queue(name).reset()
        assert {job.wait(PATIENT).state for job in waiting} == {"completed"}


def test_a_number_of_jobs_that_somebody_has_changed_stops_no_job(jobs: LiteJobs) -> None:
    trouble.nap.enqueue(0)
    jobs.drain()
    for extreme in EXTREMES:
        write_by_hand(jobs, "UPDATE litejobs_count SET number = ?", extreme)
        write_by_hand(jobs, "UPDATE litejobs_metric SET number = ?", extreme)
        job = trouble.nap.enqueue(0)
        jobs.work(threads=1, until="empty")
        assert job.refresh().state == "completed"
        assert [finding.level for finding in jobs.doctor()] == ["error"]
        jobs.repair()
        assert jobs.doctor() == []
    assert jobs.count() == 6


def test_a_job_that_cannot_be_settled_fails_alone(
    jobs: LiteJobs, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.stats()
    # Of an application that keeps its own tables in the same file.
    write_by_hand(jobs, "CREATE UNIQUE INDEX app_once ON litejobs_job (error)")
    batch = [trouble.fail.using(max_attempts=1).enqueue() for _ in range(3)]
    others = [trouble.nap.enqueue(0) for _ in range(5)]
    jobs.work(threads=1, until="empty")
    assert {job.refresh().state for job in others} == {"completed"}
    first, *rest = [job.refresh() for job in batch]
    assert (first.state, {job.state for job in rest}) == ("failed", {"failed"})
    problem = "was failed, but could not be settled: UNIQUE constraint failed: litejobs_job.error"
    assert [job.error for job in rest] == [f"job {job.id} {problem}" for job in rest]
    assert problem in caplog.text
    assert [finding.problem for finding in jobs.doctor()] == ["3 dead letters in queue 'default'"]


def test_a_node_that_died_with_a_row_of_somebody_elses_is_taken_over(jobs: LiteJobs) -> None:
    listed = jobs.store.nodes.join("gone", 0, 1, jobs._subscription(None, "gone"), [])
    plain = {"name": "nap", "payload": '{"seconds": 0}', "queue": "default", "priority": 0}
    plain |= {"run_at": 1, "enqueued_at": 1, "state": "running", "holder": listed}
    columns = ("lost", "attempt", "claim")
    rows = [plain | {name: value} for name in columns for value in EXTREMES]
    assert not insert_jobs(jobs, rows, triggers=False)
    jobs.store.nodes.release_lock(listed)
    jobs.work(threads=1, until="empty")
    states = [job.state for job in jobs.find()]
    assert (len(states), set(states)) == (15, {"completed", "failed"})


@pytest.mark.posix
@pytest.mark.parametrize("obeys", [True, False], ids=["in time", "in its grace"])
def test_time_in_which_the_whole_node_was_frozen_counts_towards_no_timeout(
    obeys: bool, jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    """As by `docker pause`, or when a laptop sleeps; jobs that had run for a moment became dead
    letters when it went on."""
    flag = log.with_suffix(".flag")
    timeout, grace = (3.0, 0.2) if obeys else (0.1, 3.0)
    node = programs.node(jobs.path, "--grace", str(grace))
    work = trouble.end_as.using(timeout=timeout)
    job = work.enqueue(str(log), str(flag), "Snooze", not obeys)
    eventually(written(log, 1))
    if not obeys:
        since = time.monotonic()
        eventually(lambda: time.monotonic() > since + 0.5)
    frozen = [node.pid, *children(node.pid)]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    since = time.monotonic()
    eventually(lambda: time.monotonic() > since + 4.0)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    # Its node has the time to see how long it has been, and to kill it.
    eventually(lambda: time.monotonic() > since + 4.5)
    flag.touch()
    eventually(lambda: job.refresh().state != "running")
    ended = job.refresh().state, [(error.kind, error.exit_code) for error in job.errors]
    assert ended == (("scheduled", []) if obeys else ("failed", [("timeout", None)]))


@pytest.mark.parametrize("whose", ["definition", "job", "coroutine"])
def test_a_job_is_killed_after_its_own_grace_and_its_failure_says_how_long_that_was(
    whose: str, jobs: LiteJobs
) -> None:
    jobs.register(beside.ignore)
    work: Definition[[], Any, Any] = trouble.stop_soon
    if whose == "job":
        work = trouble.stop_itself.using(timeout=0.1, grace=0.2)
    elif whose == "coroutine":
        work = beside.ignore.using(timeout=0.1, grace=0.2)
    with jobs.start(workers=1, grace=FAR):
        job = work.using(max_attempts=1).enqueue().wait(PATIENT)
    (failure,) = job.errors
    reported = "it took longer than its timeout of 0.1 s, and was granted 0.2 s more to end"
    assert (failure.kind, failure.message) == ("timeout", reported)


# Signals


@pytest.mark.posix
@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGTERM, True), (signal.SIGINT, False)],
    ids=["SIGTERM to its group", "SIGINT"],
)
def test_a_signal_lets_running_jobs_end_and_gives_back_the_others(
    number: signal.Signals, to_group: bool, jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path, "--grace", str(FAR))
    short = trouble.nap_and_tell.bind(str(log), 0)
    teach_that_it_is_short(jobs, short)
    long = trouble.nap_and_tell.bind(str(log), 1)
    running, *waiting = jobs.enqueue_many([long, *[short] * 10])
    eventually(written(log, 21))
    (os.killpg if to_group else os.kill)(node.pid, number)
    output, _ = node.communicate(timeout=PATIENT)
    assert (node.returncode, output, programs.errors.read_text()) == (0, "worked to the end\n", "")
    assert (running.refresh().state, running.refresh().attempt) == ("completed", 1)
    assert {(job.refresh().state, job.refresh().attempt) for job in waiting} == {("pending", 0)}
    assert not any(job.errors for job in waiting)
    assert len(lines(log)) == 21
    assert jobs.nodes() == []


def test_a_job_that_outlasts_the_grace_is_given_back_without_the_loss_of_an_attempt(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    node = programs.node(jobs.path, "--grace", "0.3")
    job = trouble.nap_and_tell.using(max_attempts=1).enqueue(str(log), FAR)
    eventually(lambda: lines(log))
    node.terminate()
    assert node.wait(PATIENT) == 0
    job = job.refresh()
    assert (job.state, job.attempt, job.errors) == ("pending", 0, ())
    assert not alive(int(lines(log)[0]))


@pytest.mark.parametrize("where", ["workers", "threads"])
@pytest.mark.parametrize("work", [trouble.obey, trouble.check], ids=["obey", "check"])
def test_a_job_that_obeys_the_stop_of_its_node_is_given_back_and_not_taken_for_done(
    work: Definition[[str], Any, Any], where: str, jobs: LiteJobs, log: Path
) -> None:
    one: Any = {where: 1}
    job = work.using(max_attempts=1).enqueue(str(log))
    for run in (1, 2):
        with jobs.start(**one, grace=FAR):
            eventually(lambda: sum(line.isdigit() for line in lines(log)) == run)  # noqa: B023
        job = job.refresh()
        assert (job.state, job.attempt, job.errors) == ("pending", 0, ())
    assert lines(log).count("cleaned up") == (2 if work is trouble.check else 0)


@pytest.mark.parametrize("where", ["workers", "threads"])
def test_what_a_handler_raises_while_its_node_stops_counts(
    where: str, jobs: LiteJobs, log: Path
) -> None:
    """The card is not valid, and was charged again by each node that was stopped meanwhile."""
    expected = {
        "Fail": ("failed", 1, ["Fail"]),
        "Retry": ("retrying", 1, ["Retry"]),
        "Snooze": ("scheduled", 0, []),
        "Cancel": ("cancelled", 1, []),
        "ValueError": ("failed", 1, ["ValueError"]),
    }
    flag = log.with_suffix(".flag")
    cases = [(how, looks) for how in expected for looks in (False, True)]
    if where == "workers":  # Of which so many take long to start.
        cases = [("Fail", False), ("ValueError", True)]
    size: Any = {where: len(cases)}
    with jobs.start(**size, grace=PATIENT / 4) as pool:
        ran = [trouble.end_as.enqueue(str(log), str(flag), *case) for case in cases]
        eventually(written(log, len(cases)))
        pool._supervisor.stop()
        eventually(lambda: all(run.reason for run in pool._supervisor.pool.runs()))
        flag.touch()
        assert pool.wait(PATIENT)
    for job, (how, looks) in zip(ran, cases, strict=True):
        job = job.refresh()
        ended = job.state, job.attempt, [error.type for error in job.errors]
        # What it raises after it has seen that it is to end is how it breaks off.
        gone = ("pending", 0, []) if looks and how == "ValueError" else expected[how]
        assert ended == gone, (how, looks)
    dead = sorted(line for line in lines(log) if line.startswith("dead"))
    assert len(dead) == [case[0] for case in cases].count("Fail") + (where == "threads")


def test_a_crash_while_its_node_stops_costs_an_attempt(jobs: LiteJobs, log: Path) -> None:
    flag = log.with_suffix(".flag")
    with jobs.start(workers=1, grace=PATIENT / 4) as pool:
        job = trouble.end_as.enqueue(str(log), str(flag), "exit")
        eventually(written(log, 1))
        pool._supervisor.stop()
        eventually(lambda: pool._supervisor.pool.runs()[0].reason)
        flag.touch()
        assert pool.wait(PATIENT)
    assert (job.refresh().state, [error.kind for error in job.errors]) == ("failed", ["crash"])


def test_a_checkpoint_ends_a_job_as_it_was_asked_to_end(jobs: LiteJobs, log: Path) -> None:
    work = trouble.check.using(max_attempts=1)
    with jobs.start(workers=2, grace=FAR):
        late, unwanted = work.using(timeout=0.1).enqueue(str(log)), work.enqueue(str(log))
        eventually(lambda: unwanted.refresh().state == "running")
        jobs.cancel(unwanted.id)
        assert [job.wait(PATIENT).state for job in (late, unwanted)] == ["failed", "cancelled"]
        assert [error.kind for error in late.errors] == ["timeout"]
        assert lines(log).count("cleaned up") == 2


def test_a_second_signal_ends_a_node_at_once(jobs: LiteJobs, log: Path, programs: Programs) -> None:
    node = programs.node(jobs.path, "--grace", str(FAR))
    job = trouble.nap_and_tell.using(max_attempts=1).enqueue(str(log), FAR)
    eventually(lambda: lines(log))
    node.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        node.wait(0.3)
    since = time.monotonic()
    node.terminate()
    assert node.wait(PATIENT) == 0
    assert time.monotonic() - since < 2.0
    job = job.refresh()
    assert (job.state, job.attempt, job.errors) == ("pending", 0, ())
    assert not alive(int(lines(log)[0]))


@pytest.mark.posix
@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
def test_a_signal_while_workers_start_ends_the_node_in_order(
    to_group: bool, jobs: LiteJobs, programs: Programs
) -> None:
    job = trouble.nap.enqueue(0)
    node = programs.node(jobs.path, "--workers", "2", "--grace", str(FAR))
    eventually(jobs.nodes)
    since = time.monotonic()
    (os.killpg if to_group else os.kill)(node.pid, signal.SIGTERM)
    assert node.wait(PATIENT) == 0
    print(f"ended after {time.monotonic() - since:.3f} s")
    assert time.monotonic() - since < 4.0
    assert (job.refresh().state, job.refresh().attempt) in [("pending", 0), ("completed", 1)]
    assert jobs.nodes() == []
    assert programs.errors.read_text() == ""


IMPORTING = """
import os, time
from litejobs import LiteJobs
jobs = LiteJobs("jobs.db")

@jobs.define
def nap() -> None: ...

if __name__ == "__main__":
    jobs.work(workers=1)
else:
    open("importing", "w").close()
    while not os.path.exists("signalled"):
        time.sleep(0.01)
"""


@pytest.mark.posix
def test_ctrl_c_while_a_worker_imports_the_program_prints_no_traceback(programs: Programs) -> None:
    programs.write(app=IMPORTING)
    node = programs.start("app.py")
    eventually((programs.folder / "importing").exists)
    os.killpg(node.pid, signal.SIGINT)
    (programs.folder / "signalled").touch()
    assert node.wait(PATIENT) == 0
    assert programs.errors.read_text() == ""


def test_a_signal_before_work_has_begun_ends_the_program(
    jobs: LiteJobs, programs: Programs
) -> None:
    job = trouble.nap.enqueue(0)
    node = programs.node(jobs.path)
    node.terminate()
    assert node.wait(PATIENT) in (0, -signal.SIGTERM)
    assert (job.refresh().state, job.refresh().attempt) == ("pending", 0)
    assert jobs.nodes() == []


# Cancelling


def test_a_waiting_job_is_cancelled_at_once(jobs: LiteJobs, log: Path) -> None:
    pending = trouble.innocent.enqueue(str(log), 1)
    later = trouble.innocent.using(delay=FAR).enqueue(str(log), 2)
    assert jobs.cancel(pending.id, later.id) == Moved(2)
    with jobs.start(workers=1, grace=GRACE):
        trouble.nap.enqueue(0).wait(PATIENT)
    assert {job.refresh().state for job in (pending, later)} == {"cancelled"}
    assert lines(log) == []


def test_a_running_job_that_heeds_its_cancellation_keeps_its_worker(
    jobs: LiteJobs, log: Path
) -> None:
    with jobs.start(workers=1, grace=FAR):
        job = trouble.obey.enqueue(str(log))
        eventually(lambda: lines(log))
        assert jobs.cancel(job.id) == Moved(1)
        job = job.wait(PATIENT)
        assert (job.state, job.attempt, job.errors) == ("cancelled", 1, ())
        assert trouble.whoami.enqueue().result(PATIENT) == int(lines(log)[0])


def test_a_running_job_that_does_not_heed_its_cancellation_is_killed(
    jobs: LiteJobs, log: Path
) -> None:
    with jobs.start(workers=1, grace=GRACE):
        job = trouble.nap_and_tell.enqueue(str(log), FAR)
        [worker] = map(int, eventually(lambda: lines(log)))
        since = time.monotonic()
        assert jobs.cancel(job.id) == Moved(1)
        job = job.wait(PATIENT)
        assert GRACE <= time.monotonic() - since < GRACE + 1.0
        assert (job.state, job.attempt, job.errors) == ("cancelled", 1, ())
        assert not alive(worker)
        assert trouble.nap.enqueue(0).wait(PATIENT).state == "completed"


def test_the_command_cancels_exactly_one_running_job(
    jobs: LiteJobs, log: Path, tmp_path: Path, programs: Programs
) -> None:
    flag = tmp_path / "go on"
    with jobs.start(workers=3, grace=GRACE):
        work = trouble.wait_for.using(max_attempts=1)
        waiting = [work.enqueue(str(log), str(flag)) for _ in range(3)]
        eventually(written(log, 3))
        code, output, _ = programs.run("-m", "litejobs", "cancel", jobs.path, waiting[1].id)
        assert (code, output) == (0, "1 cancelled, 0 left as they are\n")
        assert waiting[1].wait(PATIENT).state == "cancelled"
        flag.touch()
        ended = [job.wait(PATIENT) for job in waiting]
    # The others end as this definition does, by its own error, and nothing ran twice.
    assert [job.state for job in ended] == ["failed", "cancelled", "failed"]
    assert [[each.type for each in job.errors] for job in ended] == [
        ["ValueError"],
        [],
        ["ValueError"],
    ]
    assert len(lines(log)) == 3


def test_a_job_that_is_cancelled_behind_a_slow_one_never_runs(jobs: LiteJobs, log: Path) -> None:
    with jobs.start(workers=1, grace=GRACE):
        teach_that_naps_are_short(jobs)
        trouble.innocent.enqueue(str(log), 0).wait(PATIENT)
        slow, *others = jobs.enqueue_many(
            [trouble.nap.bind(0.5), *(trouble.innocent.bind(str(log), n) for n in (1, 2, 3))]
        )
        eventually(lambda: slow.refresh().state == "running")
        assert jobs.cancel(*(job.id for job in others)) == Moved(3)
        assert {(job.wait(PATIENT).state, job.refresh().attempt) for job in others} == {
            ("cancelled", 0)
        }
        assert slow.wait(PATIENT).state == "completed"
    assert lines(log) == ["0"]


def test_a_cancellation_that_races_with_completion_has_one_winner(
    jobs: LiteJobs, log: Path
) -> None:
    rng = random.Random(7)
    with jobs.start(workers=2, grace=0):
        trouble.nap.enqueue(0).wait(PATIENT)
        batch = jobs.enqueue_many(trouble.nap.bind(rng.uniform(0, 0.03)) for _ in range(60))
        for job in batch:
            jobs.cancel(job.id)
        ended = [job.wait(PATIENT) for job in batch]
    assert {job.state for job in ended} <= {"completed", "cancelled"}
    assert all(job.attempt <= 1 and not job.errors for job in ended)


@pytest.mark.posix
def test_a_job_that_is_cancelled_while_it_fails_is_not_tried_again(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    """Its node learns of the cancellation after its failure, and in the same turn."""
    node = programs.node(jobs.path, "--grace", "10")
    flag = log.with_name("flag")
    job = trouble.wait_for.using(max_attempts=3).enqueue(str(log), str(flag))
    [worker] = map(int, eventually(lambda: lines(log)))
    os.kill(node.pid, signal.SIGSTOP)
    flag.touch()
    eventually(lambda: _sleeps_in_a_read(worker))
    assert jobs.cancel(job.id) == Moved(1)
    os.kill(node.pid, signal.SIGCONT)
    assert job.wait(PATIENT).state == "cancelled"
    assert len(lines(log)) == 1


def _sleeps_in_a_read(pid: int) -> bool:
    """Whether a worker waits for its next job (best known on Linux)."""
    with contextlib.suppress(OSError):
        return "unix_stream" in Path(f"/proc/{pid}/wchan").read_text()
    return True


def test_a_job_that_is_cancelled_in_the_grace_of_its_timeout_is_not_tried_again(
    jobs: LiteJobs, log: Path
) -> None:
    with jobs.start(workers=1, grace=0.6):
        definition = trouble.nap_and_tell.using(timeout=0.1, max_attempts=3, backoff=Constant(0))
        job = definition.enqueue(str(log), FAR)
        eventually(lambda: lines(log))
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > 0.4)
        assert jobs.cancel(job.id) == Moved(1)
        assert job.wait(PATIENT).state == "cancelled"
    assert len(lines(log)) == 1


def test_a_backoff_that_cannot_be_read_harms_no_node(jobs: LiteJobs) -> None:
    ids = []
    for name in ("fail", "leave_at_once"):
        given: dict[str, Any] = {"backoff": '{"kind": "Nonsense"}', "max_attempts": 2}
        ids.append(insert(jobs.store, name, **given))
    with jobs.start(workers=1, grace=GRACE) as pool:
        eventually(lambda: pool.wait(0) or jobs.count(state="retrying") == 2)
    assert [job.errors[0].kind for job in map(jobs.get, ids)] == ["exception", "crash"]


# Starting and ending


def test_a_node_works_in_the_background_twice_in_a_row(jobs: LiteJobs) -> None:
    for _ in range(2):
        with jobs.start(workers=1, grace=GRACE):
            assert trouble.nap.enqueue(0).wait(PATIENT).state == "completed"
        assert jobs.nodes() == []


def test_a_node_starts_from_a_thread_that_is_not_the_main_one(jobs: LiteJobs) -> None:
    states = []

    def work() -> None:
        job = trouble.nap.enqueue(0)
        jobs.work(workers=1, until="empty")
        states.append(job.refresh().state)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENT)
    assert states == ["completed"]


def test_two_nodes_in_one_process_share_the_work(jobs: LiteJobs, log: Path) -> None:
    with jobs.start(workers=1, node="one", grace=GRACE), jobs.start(workers=1, node="two"):
        eventually(lambda: len(jobs.nodes()) == 2)
        own = [trouble.whoami.using(node=node).enqueue() for node in ("one", "two")]
        batch = [trouble.innocent.enqueue(str(log), n) for n in range(100)]
        for job in batch:
            assert job.wait(PATIENT).attempt == 1
        assert len({job.result(PATIENT) for job in own}) == 2
    assert sorted(map(int, lines(log))) == list(range(100))
    assert jobs.nodes() == []


def test_work_until_empty_ends_after_the_last_job(jobs: LiteJobs) -> None:
    batch = [trouble.nap.enqueue(0.5) for _ in range(2)]
    jobs.work(workers=2, until="empty")
    ended = time.time()
    moments = [job.refresh().finished_at for job in batch]
    finished = max(moment.timestamp() for moment in moments if moment is not None)
    print(f"ended {ended - finished:.3f} s after the last job")
    assert ended - finished < 5


def test_work_until_empty_waits_for_retries(jobs: LiteJobs, log: Path) -> None:
    job = trouble.fail.using(max_attempts=3, backoff=Constant(0.3)).enqueue(str(log))
    jobs.work(workers=1, until="empty")
    ended = time.time()
    job = job.refresh()
    assert (job.state, job.attempt, len(lines(log))) == ("failed", 3, 3)
    assert job.finished_at is not None
    assert ended - job.finished_at.timestamp() < 1.5
    starts = [error.started_at for error in job.errors]
    ends = [error.finished_at for error in job.errors]
    pauses = [(start - end).total_seconds() for end, start in zip(ends, starts[1:], strict=False)]
    assert all(0.3 <= pause < 2.0 for pause in pauses)


def test_work_until_empty_ends_after_a_crash(jobs: LiteJobs) -> None:
    culprit = trouble.leave_at_once.using(max_attempts=1).enqueue()
    job = trouble.nap.enqueue(0)
    with jobs.start(workers=1, until="empty", grace=GRACE) as pool:
        assert pool.wait(PATIENT), "it hangs"
    assert (culprit.refresh().state, job.refresh().state) == ("failed", "completed")


def test_work_until_empty_leaves_what_it_does_not_know(jobs: LiteJobs, programs: Programs) -> None:
    with LiteJobs(jobs.path) as others:

        @others.define(name="of-another-program")
        def other() -> None: ...

        unknown = [other.enqueue(), other.using(priority=9).enqueue()]
        elsewhere = trouble.nap.using(node="laptop").enqueue(0)
        later = trouble.nap.using(delay=FAR).enqueue(0)
        known = trouble.nap.enqueue(0)
        jobs.work(workers=1, until="empty")
    assert known.refresh().state == "completed"
    assert {(job.refresh().state, job.refresh().attempt) for job in [*unknown, elsewhere]} == {
        ("pending", 0)
    }
    assert later.refresh().state == "scheduled"


# The file is taken away


def test_an_idle_node_ends_when_its_file_is_removed(jobs: LiteJobs) -> None:
    with jobs.start(threads=1) as pool:
        jobs.path.unlink()
        with pytest.raises(FileReplacedError, match="was removed, moved or replaced"):
            pool.wait(PATIENT)
    assert not jobs.path.exists(), "a node that leaves makes no new one"


def test_a_node_whose_file_is_replaced_leaves_the_jobs_of_the_other_one_alone(
    jobs: LiteJobs, log: Path
) -> None:
    """Ids and claims are small numbers: there may be the same in both."""
    other = jobs.path.with_name("other.db")
    with LiteJobs(other) as theirs:
        theirs.define(name="nap")(lambda: None).enqueue()
        with theirs.store.file.transaction() as tx:
            tx.execute("UPDATE litejobs_job SET state = 'running', claim = 1, holder = 99")
    with jobs.start(workers=1, grace=0) as pool:
        trouble.nap_and_tell.enqueue(str(log), FAR)
        eventually(lambda: lines(log))
        other.replace(jobs.path)
        with pytest.raises(FileReplacedError):
            pool.wait(PATIENT)
    with LiteJobs(jobs.path) as theirs:
        assert [job.state for job in theirs.find()] == ["running"]
        assert theirs.nodes() == []


@pytest.mark.posix
def test_a_node_that_cannot_be_asked_does_not_keep_others_from_being_rescued(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    """The search ended with an error at the first one, each second anew."""
    node = programs.node(jobs.path)
    job = trouble.nap_and_tell.enqueue(str(log), FAR)
    eventually(written(log, 1))
    (listed,) = jobs.nodes()
    write_by_hand(
        jobs,
        "INSERT INTO litejobs_node (id, name, pid, port, workers, queues, started_at, names)"
        " SELECT id - 1, 'silent', pid, 1, 1, queues, started_at, names FROM litejobs_node",
    )
    silent = Path(jobs.store.file.presence_path(listed.id - 1))
    silent.symlink_to(log)
    node.kill()
    with jobs.start(workers=1, grace=GRACE):
        eventually(written(log, 2))
        jobs.cancel(job.id)


# The lock file of a node is taken away, or its row


def test_of_a_living_node_whose_lock_file_a_cleaner_removes_no_other_takes_the_job_over(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    first = programs.node(jobs.path)
    before = trouble.whoami.enqueue().wait(PATIENT).result()
    (listed,) = jobs.nodes()
    lock = Path(jobs.store.file.presence_path(listed.id))
    job = trouble.nap_and_tell.enqueue(str(log), 2.5)
    eventually(written(log, 1))
    lock.unlink()
    with jobs.start(workers=1, grace=GRACE) as other:
        assert eventually(lock.exists)
        assert job.wait(PATIENT).result() == before
        assert (job.refresh().attempt, len(lines(log))) == (1, 1)
        eventually(lambda: not alive(before))  # It held the lock of the file that was removed.
        assert {listed.id} < {node.id for node in jobs.nodes()}
        other.stop()
    job = trouble.nap_and_tell.enqueue(str(log), FAR)
    eventually(written(log, 2))
    first.kill()
    with jobs.start(workers=1, grace=0):
        eventually(written(log, 3))
        jobs.cancel(job.id)


def test_a_node_that_was_taken_for_dead_ends_its_jobs_and_joins_anew(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    programs.node(jobs.path)
    job = trouble.nap_and_tell.enqueue(str(log), FAR)
    eventually(written(log, 1))
    (listed,) = jobs.nodes()
    worker = int(lines(log)[0])
    write_by_hand(jobs, "DELETE FROM litejobs_node")
    eventually(written(log, 2))
    assert not alive(worker)
    (again,) = jobs.nodes()
    assert again.id > listed.id
    assert job.refresh().attempt == 1
    jobs.cancel(job.id)
    assert trouble.innocent.enqueue(str(log), 3).wait(PATIENT).state == "completed"


# Two nodes with one name


def test_a_second_node_with_a_name_is_refused_while_the_first_one_lives(
    jobs: LiteJobs, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    first = programs.node(jobs.path, "--node", "web")
    eventually(jobs.nodes)
    with pytest.raises(WorkerError, match=rf"'web' is at work \(process {first.pid}\)"):
        jobs.work(threads=1, node="web")
    with (
        pytest.raises(WorkerError, match="give this one another name"),
        jobs.start(threads=1, node="web"),
    ):
        pytest.fail("there is no node behind this block")
    assert "the node ended" not in caplog.text, "what is raised is not logged as well"
    assert [node.pid for node in jobs.nodes()] == [first.pid]
    first.kill()
    with jobs.start(threads=1, node="web"):
        assert trouble.whoami.using(node="web").enqueue().wait(PATIENT).result() == os.getpid()


def test_nodes_without_a_name_are_told_apart_and_each_gets_what_is_for_all(
    jobs: LiteJobs,
) -> None:
    """As in two containers with one host name, in each of which the node is process 1."""
    with jobs.start(threads=1), jobs.start(threads=1):
        done = [job.wait(PATIENT) for job in jobs.broadcast(trouble.whoami.bind())]
    assert [job.state for job in done] == ["completed"] * 2


# In the background

FORGETFUL = """
import gc, multiprocessing, os, sys
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db")

@jobs.define
def pid() -> int:
    return os.getpid()

def main() -> None:
    jobs.start(**{sys.argv[1]: 1})
    gc.collect()
    job = pid.enqueue()
    print(job.result(60) == os.getpid(), job.state, flush=True)

if __name__ == "__main__":
    if sys.argv[2] == "child":
        child = multiprocessing.get_context("fork").Process(target=main)
        child.start()
        child.join()
        sys.exit(3 + child.exitcode)
    main()
    if sys.argv[2] == "raise":
        raise ValueError("oops")
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("where", "end"),
    [("threads", "raise"), ("threads", "exit"), ("workers", "raise"), ("workers", "child")],
)
def test_a_node_that_the_program_forgot_works_and_is_stopped_at_exit(
    programs: Programs, where: str, end: str
) -> None:
    programs.write(forgetful=FORGETFUL)
    code, output, errors = programs.run("forgetful.py", where, end)
    assert output == f"{where == 'threads'} completed\n"
    assert (code, "ValueError: oops" in errors) == ((1, True) if end == "raise" else (3, False))
    with LiteJobs(programs.folder / "jobs.db") as jobs:
        assert jobs.nodes() == [], "it has left the list"


def test_a_node_in_the_background_works_before_and_without_a_with_and_stops_any_number_of_times(
    jobs: LiteJobs,
) -> None:
    pool = jobs.start(threads=1)
    assert [node.workers for node in jobs.nodes()] == [1]
    assert trouble.whoami.enqueue().result(PATIENT) == os.getpid()
    with pool:
        assert trouble.whoami.enqueue().result(PATIENT) == os.getpid()
    pool.stop()
    pool.stop()
    assert pool.wait()
    assert repr(pool).endswith(" ended>")
    assert jobs.nodes() == []


def test_a_node_that_is_stopped_twice_at_once_still_gives_its_jobs_their_grace(
    tmp_path: Path,
) -> None:
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        over = threading.Event()

        @jobs.define
        def wait() -> bool:
            return over.wait(PATIENT)

        pool = jobs.start(threads=1, grace=PATIENT)
        job = wait.enqueue()
        eventually(lambda: job.refresh().state == "running")
        both = [threading.Thread(target=pool.stop) for _ in range(2)]
        for thread in both:
            thread.start()
        never(lambda: not all(thread.is_alive() for thread in both), during=0.3)
        over.set()
        for thread in both:
            thread.join(PATIENT)
        assert job.result(PATIENT) is True


def test_a_notebook_whose_cell_is_run_again_has_one_node(
    jobs: LiteJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)
    with jobs.start(threads=1, queues=["other"]), jobs.start(threads=1) as first:
        assert len(jobs.nodes()) == 2, "one for other queues is another one"
        again = LiteJobs(jobs.path)
        again.define(name="later")(lambda: None)
        with again, again.start(threads=2):
            assert first.wait(0), "the first one has been stopped"
            assert sorted(node.workers for node in jobs.nodes()) == [1, 2]


# Forks


@pytest.mark.posix
def test_a_fork_of_a_process_that_has_the_queue_open_loses_nothing(
    jobs: LiteJobs, log: Path
) -> None:
    for n in range(5):
        trouble.innocent.enqueue(str(log), 2 * n)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                trouble.innocent.enqueue(str(log), 2 * n + 1)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    jobs.work(workers=1, until="empty")
    assert sorted(map(int, lines(log))) == list(range(10))


@pytest.mark.posix
def test_a_node_goes_on_while_its_process_forks(jobs: LiteJobs, log: Path) -> None:
    with jobs.start(workers=1, grace=GRACE):
        for n in range(5):
            job = trouble.innocent.enqueue(str(log), 2 * n)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    trouble.innocent.enqueue(str(log), 2 * n + 1)
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            assert job.wait(PATIENT).state == "completed"
        eventually(lambda: jobs.count(state="completed") == 10)
    assert sorted(map(int, lines(log))) == list(range(10))


FORKING = """
import os, sys, time
from litejobs import LiteJobs
from programs import trouble

if __name__ == "__main__":
    jobs = LiteJobs(sys.argv[1])
    jobs.register(*trouble.DEFINITIONS)
    with jobs.start(workers=1):
        jobs.enqueue(trouble.nap_and_tell.bind(sys.argv[2], 60.0))
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        time.sleep(60)
"""


@pytest.mark.posix
def test_workers_of_a_killed_node_die_even_if_its_process_had_forked(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    """The child has inherited what the workers watch their supervisor by."""
    programs.write(forking=FORKING)
    node = programs.start("forking.py", jobs.path, log)
    assert node.stdout is not None
    child = int(node.stdout.readline())
    try:
        node.kill()
        eventually(lambda: not alive(int(lines(log)[0])), within=1.0)
    finally:
        os.kill(child, signal.SIGKILL)


ADOPTING = """
import ctypes, subprocess, sys, os
from litejobs import LiteJobs
from programs import trouble

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans are its children now
    jobs = LiteJobs(sys.argv[1])
    jobs.register(*trouble.DEFINITIONS)
    with jobs.start(workers=1, grace=0):
        for _ in range(3):
            trouble.leave_at_once.using(max_attempts=1).enqueue().wait(20)
        trouble.nap.enqueue(0).wait(20)
        command = ["ps", "-o", "stat=", "--ppid", str(os.getpid())]
        states = subprocess.run(command, capture_output=True, text=True).stdout.split()
        print("zombies:", sum(state.startswith("Z") for state in states))
"""


@pytest.mark.linux
def test_replaced_workers_leave_no_zombies_to_the_first_process_of_a_container(
    jobs: LiteJobs, programs: Programs
) -> None:
    programs.write(adopting=ADOPTING)
    assert programs.run("adopting.py", jobs.path)[:2] == (0, "zombies: 0\n")


def test_all_promises_hold_under_full_load(jobs: LiteJobs, log: Path) -> None:
    """Short jobs by the thousand, and among them those that crash, overrun their timeout or
    are cancelled, and one that is urgent."""
    with jobs.start(workers=2, grace=GRACE):
        teach_that_naps_are_short(jobs)
        short = [*jobs.enqueue_many(trouble.nap.bind(0) for _ in range(10_000))]
        crash = trouble.segfault.using(max_attempts=1, priority=1).enqueue()
        overrun = trouble.nap.using(max_attempts=1, timeout=0.2, priority=1).enqueue(FAR)
        obedient = trouble.obey.using(priority=1).enqueue(str(log))
        short += jobs.enqueue_many(trouble.nap.bind(0) for _ in range(10_000))
        eventually(lambda: obedient.refresh().state == "running")
        urgent = trouble.nap.using(priority=2).enqueue(0)
        urgent = urgent.wait(PATIENT)
        assert jobs.cancel(obedient.id) == Moved(1)
        assert (crash.wait(PATIENT).state, crash.refresh().attempt) == ("failed", 1)
        assert (overrun.wait(PATIENT).state, overrun.errors[0].kind) == ("failed", "timeout")
        assert obedient.wait(PATIENT).state == "cancelled"
        eventually(lambda: jobs.count(state="completed") == len(short) + 21)
        left = jobs.count(state="pending")
    starts = [job.started_at for job in jobs.iterate(name="nap", state="completed")]
    meanwhile = sum(str(urgent.enqueued_at) < str(at) < str(urgent.started_at) for at in starts)
    print(f"an urgent job started after {seconds_late(urgent) * 1000:.1f} ms")
    # What was in the workers' hands, and in those of workers that took over from the killed.
    assert meanwhile < 4_000, "of 20,000 that were there before it"
    assert left == 0
    done = jobs.find(name=short[0].name, state="completed", limit=30_000)
    assert {(job.attempt, job.error) for job in done} == {(1, None)}


@pytest.mark.posix
def test_a_payload_for_a_worker_that_is_stopped_blocks_nobody(jobs: LiteJobs, log: Path) -> None:
    """It fits no pipe, and the worker reads nothing."""
    with jobs.start(workers=2, grace=GRACE) as pool:
        eventually(lambda: sum(worker.ready for worker in pool._supervisor.pool.workers) == 2)
        stopped = [worker.process.pid for worker in pool._supervisor.pool.workers]
        for pid in stopped[:1]:
            os.kill(pid, signal.SIGSTOP)
        try:
            large = trouble.innocent.using(max_attempts=1).enqueue("x" * 3_000_000, 1)
            eventually(lambda: large.refresh().state == "running")
            naps = [trouble.nap.enqueue(0) for _ in range(20)]
            eventually(lambda: jobs.count(state="completed") >= 10, within=5.0)
        finally:
            os.kill(stopped[0], signal.SIGCONT)
        assert [job.wait(PATIENT).state for job in naps] == ["completed"] * 20
        assert large.wait(PATIENT).state == "failed"  # no file has so long a name


@pytest.mark.posix
def test_a_node_with_such_a_worker_ends(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=GRACE) as pool:
        eventually(lambda: any(worker.ready for worker in pool._supervisor.pool.workers))
        [worker] = [worker.process.pid for worker in pool._supervisor.pool.workers]
        os.kill(worker, signal.SIGSTOP)
        large = trouble.innocent.using(max_attempts=1).enqueue("x" * 3_000_000, 1)
        eventually(lambda: large.refresh().state == "running")
        since = time.monotonic()
    assert time.monotonic() - since < 8
    assert (large.refresh().state, large.refresh().attempt) == ("pending", 0)


# Jobs that get hold of what is their worker's


@pytest.mark.parametrize("workers", [{"workers": 1}, {"threads": 1}])
def test_a_process_that_a_job_forked_does_not_go_on_as_its_worker(
    jobs: LiteJobs, log: Path, workers: Any
) -> None:
    """It came back from the handler, and believed that it was the worker: its report was
    taken, and then it took other jobs."""
    jobs.register(misdeeds.come_back_twice, misdeeds.fail_twice)
    with jobs.start(**workers, grace=GRACE):
        assert misdeeds.come_back_twice.enqueue(str(log)).result(PATIENT) == "parent"
        failing = misdeeds.fail_twice.using(max_attempts=1).enqueue(str(log))
        assert failing.wait(PATIENT).errors[0].message == "parent"
        children = [int(line.split()[-1]) for line in lines(log)]
        eventually(lambda: not any(map(alive, children)))


@pytest.mark.parametrize("words", ["41" * 40, "ff" * 40, "00" * 40, "0000000568656c6c6f" * 5])
def test_what_a_job_writes_to_all_that_is_open_ends_only_its_worker(
    jobs: LiteJobs, log: Path, words: str
) -> None:
    """The supervisor took it for a message of its worker, or waited for the rest of it; the
    memory that both share was overwritten; and no worker could share the node's lock, which is
    a file that had become none of SQLite's."""
    jobs.register(misdeeds.garble_all)
    with jobs.start(workers=1, grace=GRACE):
        garbling = misdeeds.garble_all.using(max_attempts=2, timeout=FAR).enqueue(str(log), words)
        assert garbling.wait(PATIENT).state == "failed"
        assert [error.kind for error in garbling.errors] == ["crash"] * 2
        assert trouble.innocent.enqueue(str(log), 1).result(PATIENT) == 1
    assert jobs.nodes() == []


def test_a_message_that_stops_half_way_is_not_waited_for() -> None:
    """A worker that is stopped while it sends a large result held its whole node up."""
    theirs, ours = socket.socketpair()
    ours.setblocking(False)
    channel = Channel(ours)
    message = pack("hello")
    theirs.sendall(message + message[:6])
    assert list(channel.receive()) == [("hello",)]
    theirs.sendall(message[6:] + message)
    assert list(channel.receive()) == [("hello",)] * 2
    theirs.close()
    with pytest.raises(EOFError):
        list(channel.receive())
    ours.close()


def test_a_worker_that_begins_nothing_any_more_is_replaced(jobs: LiteJobs, log: Path) -> None:
    """A job had left a thread behind that keeps the interpreter: the next one was running for
    ever, for the file, and its timeout did not matter, since it had not begun."""
    jobs.register(misdeeds.leave_a_hog)
    with jobs.start(workers=1, grace=GRACE) as pool:
        pool._supervisor.unresponsive_after = 0.3
        worker = trouble.whoami.enqueue().result(PATIENT)
        assert misdeeds.leave_a_hog.enqueue(str(log)).result(PATIENT) == "done"
        spent = usage_of(worker)[0] or 0
        eventually(lambda: (usage_of(worker)[0] or 0) > spent + 100_000_000)
        job = trouble.whoami.using(max_attempts=1).enqueue()
        assert job.result(PATIENT) != worker
        assert (job.refresh().attempt, job.errors) == (1, ())


def test_a_worker_that_begins_no_coroutine_any_more_is_replaced(jobs: LiteJobs, log: Path) -> None:
    jobs.register(misdeeds.leave_a_hog, surroundings.look_aside)
    with jobs.start(workers=1, grace=GRACE) as pool:
        pool._supervisor.unresponsive_after = 1.0
        worker = trouble.whoami.enqueue().result(PATIENT)
        assert misdeeds.leave_a_hog.enqueue(str(log)).result(PATIENT) == "done"
        spent = usage_of(worker)[0] or 0
        eventually(lambda: (usage_of(worker)[0] or 0) > spent + 100_000_000)
        job = surroundings.look_aside.using(max_attempts=1).enqueue()
        assert job.result(PATIENT)[0] != worker
        assert (job.refresh().attempt, job.errors) == (1, ())


def test_coroutines_run_although_a_job_has_used_up_the_descriptors_of_their_worker(
    jobs: LiteJobs,
) -> None:
    """The thread that takes them had died, and they were running for ever, for the file."""
    jobs.register(surroundings.use_up_descriptors, surroundings.look_aside)
    with jobs.start(workers=1, grace=GRACE):
        surroundings.use_up_descriptors.enqueue().result(PATIENT)
        job = surroundings.look_aside.using(max_attempts=1).enqueue()
        job.result(PATIENT)
        assert (job.refresh().attempt, job.errors) == (1, ())


def test_a_worker_that_is_just_done_with_a_job_is_not_killed_for_it(
    jobs: LiteJobs, log: Path
) -> None:
    """On a busy machine it was killed in the midst of its next one, which ran again as if it had
    not begun."""
    flag = log.with_suffix(".flag")
    with jobs.start(workers=1, grace=1.0) as pool:
        job = trouble.wait_for.enqueue(str(log), str(flag))
        eventually(written(log, 1))
        (worker,) = pool._supervisor.pool.workers
        jobs.cancel(job.id)
        [run] = worker.runs.values()
        eventually(lambda: run.reason)
        # As the worker does when it leaves its report, and is not on the processor meanwhile.
        with worker.board.held():
            kill_at = run.kill_at
            flag.touch()
            eventually(lambda: kill_at + 0.2 < run.kill_at < math.inf)
        assert job.wait(PATIENT).state == "cancelled"


def test_a_job_that_closes_what_its_worker_has_open_is_the_last_one_to_run_there(
    jobs: LiteJobs,
) -> None:
    """The next one had begun when the supervisor could not read from the worker any more, and was
    taken for the one that had crashed it."""
    seconds = (0, 0.1, -1, 0.1, 0.1, -1, 0.1)
    work = [trouble.nap_or_close.bind(each) for each in seconds]
    with jobs.start(workers=1, grace=GRACE):
        teach_that_it_is_short(jobs, work[0])
        batch = jobs.enqueue_many(work)
        jobs.wait_all(batch, timeout=PATIENT)
    # Whether its worker is still there to say that such a job has returned is a matter of luck.
    naps = [job.refresh() for job, each in zip(batch, seconds, strict=True) if each >= 0]
    assert [(job.attempt, job.errors) for job in naps] == [(1, ())] * len(naps)


def test_a_job_that_closes_what_others_print_to_is_the_last_one_to_run_there(
    jobs: LiteJobs, log: Path
) -> None:
    """Who printed next failed for it: "I/O operation on closed file"."""
    jobs.register(misdeeds.close_its_streams)
    with jobs.start(workers=1, grace=GRACE):
        teach_that_it_is_short(jobs, trouble.mutter.bind())
        bad = misdeeds.close_its_streams.bind(str(log))
        batch = jobs.enqueue_many([bad, *[trouble.mutter.bind()] * 5] * 3)
        jobs.wait_all(batch, timeout=PATIENT)
    ended = [job.refresh() for job in batch]
    assert {(job.state, job.attempt, job.errors) for job in ended} == {("completed", 1, ())}


def test_a_worker_that_is_replaced_has_begun_nothing(jobs: LiteJobs, log: Path) -> None:
    """Between the last look and its death it began a job, which ran again as the same attempt."""
    replaced: list[str] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "begins nothing" in record.getMessage():
                replaced.append(record.getMessage())
                time.sleep(0.02)

    logging.getLogger("litejobs").addHandler(slow := Slow())
    try:
        with jobs.start(workers=1, grace=GRACE) as pool:
            teach_that_naps_are_short(jobs)
            naps = [
                trouble.nap_and_tell.bind(str(log), 0.03 if n % 50 == 0 else 0) for n in range(600)
            ]
            rounds = 0
            while len(replaced) < 4:
                assert rounds < 100, "none is replaced"
                rounds += 1
                pool._supervisor.unresponsive_after = 0.0
                work = jobs.enqueue_many(naps)
                eventually(lambda: len(replaced) >= 4 or jobs.count(state="pending") == 0)
                pool._supervisor.unresponsive_after = FAR
                jobs.wait_all(work, timeout=PATIENT)
    finally:
        logging.getLogger("litejobs").removeHandler(slow)
    assert len(lines(log)) == rounds * len(naps)


# A disk that fills while no node is at work


@pytest.mark.linux
def test_a_node_until_all_is_done_ends_with_an_error_on_a_disk_that_stays_full(
    tmp_path: Path,
) -> None:
    room = 12_000_000
    done = subprocess.run(
        [sys.executable, "-m", "chaos.cramped", "empty", str(tmp_path / "jobs.db"), str(room)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=PATIENT,
    )
    reported = json.loads(done.stdout)
    problem = "the disk is nearly full: no further jobs are started; free some space"
    assert reported["outcome"].startswith("FileError: ")
    assert reported["outcome"].endswith(problem)
    assert reported["states"].keys() == {"completed", "pending"}, "what was begun was settled"
    assert sum(reported["states"].values()) == reported["enqueued"] > 100
    assert reported["after"] == {"default": {"completed": reported["enqueued"]}}
