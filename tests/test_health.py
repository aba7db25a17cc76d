"""Backups, compacting, what the doctor finds, and why a job is not running."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from chaos.disk import Disk, Touch
from conftest import NEW_YEAR, TurnedClock, add, write_by_hand
from programs import Programs, eventually, trouble

import litejobs
from litejobs import (
    Compacted,
    FileError,
    Finding,
    JobNotFoundError,
    LiteJobs,
    Options,
    State,
    Subscription,
    to_micros,
)

START = to_micros(NEW_YEAR)


class Nodes:
    """Nodes that are listed, and hold their lock until they die."""

    def __init__(self, jobs: LiteJobs) -> None:
        self.jobs = jobs
        self.alive: set[int] = set()

    def join(
        self, name: str = "here", names: tuple[str, ...] = ("mail",), queues: Any = None
    ) -> int:
        subscription = Subscription(
            frozenset(names), None if queues is None else frozenset(queues), name
        )
        own = {
            **Options().columns,
            "expires": None,
            "hidden": (),
            "concurrency": None,
            "rate": None,
        }
        known = [{**own, "name": name} for name in names]
        node = self.jobs.store.nodes.join(name, 0, 2, subscription, known)
        self.alive.add(node)
        return node

    def die(self, node: int) -> None:
        self.alive.discard(node)
        self.jobs.store.nodes.release_lock(node)

    def claim(self, node: int) -> None:
        """Takes all that is ready."""
        subscription = Subscription(frozenset(["mail"]), None, "here")
        self.jobs.store.exchange([], node, lambda ready: [id for id, _ in ready], subscription)


@pytest.fixture
def nodes(jobs: LiteJobs) -> Iterator[Nodes]:
    made = Nodes(jobs)
    yield made
    for node in [*made.alive]:
        made.die(node)


def settings_of(jobs: LiteJobs, queue: str, **columns: Any) -> None:
    columns = {"name": queue, **columns}
    values = ", ".join("?" * len(columns))
    jobs.count()
    write_by_hand(
        jobs,
        f"INSERT INTO litejobs_queue ({', '.join(columns)}) VALUES ({values})",
        *columns.values(),
    )


def integrity(path: Path) -> object:
    connection = apsw.Connection(str(path))
    try:
        return connection.pragma("integrity_check")
    finally:
        connection.close()


class TestBackup:
    def test_is_a_queue_with_the_same_jobs(
        self, jobs: LiteJobs, clock: TurnedClock, tmp_path: Path
    ) -> None:
        for state in litejobs.STATES:
            add(jobs, state=state, payload='{"to": "ada"}')
        place = jobs.backup(tmp_path / "copy.db")
        assert place == (tmp_path / "copy.db").resolve()
        assert integrity(place) == "ok"
        assert [file.name for file in tmp_path.glob("copy.db*")] == ["copy.db"]
        with LiteJobs(place, clock=clock) as copy:
            assert copy.find() == jobs.find()
            assert copy.stats() == jobs.stats()
            add(copy)
            assert copy.count() == jobs.count() + 1

    @pytest.mark.posix
    def test_is_private_to_its_user(self, jobs: LiteJobs, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            jobs.backup(tmp_path / "copy.db")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600

    @pytest.mark.posix
    def test_overwrites_nothing_and_leaves_nothing_half_done(
        self, jobs: LiteJobs, tmp_path: Path
    ) -> None:
        taken = tmp_path / "taken"
        taken.write_text("mine")
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "nowhere")
        for place in (taken, link, jobs.path, tmp_path, tmp_path / "no" / "folder"):
            with pytest.raises(FileError):
                jobs.backup(place)
        assert taken.read_text() == "mine"
        assert not (tmp_path / "nowhere").exists()

    def test_of_a_file_that_cannot_be_read_leaves_no_copy(self, tmp_path: Path) -> None:
        broken = tmp_path / "jobs.db"
        broken.write_text("no database " * 1000)
        with pytest.raises(FileError), LiteJobs(broken) as jobs:
            jobs.backup(tmp_path / "copy.db")
        assert not (tmp_path / "copy.db").exists()

    def test_bears_its_name_only_when_it_is_whole(
        self, jobs: LiteJobs, clock: TurnedClock, tmp_path: Path
    ) -> None:
        add(jobs)
        place = tmp_path / "copy.db"
        written: list[str] = []

        def look(touch: Touch) -> None:
            assert not place.exists(), "who is killed now leaves half a copy"
            written.append(touch.path.name)

        with Disk() as disk:
            disk.watcher = look
            jobs.backup(place)
        assert any(name.startswith("copy.db") for name in written)
        with LiteJobs(place, clock=clock) as copy:
            assert copy.count() == 1
        assert [file.name for file in tmp_path.glob("copy.db*")] == ["copy.db"]

    def test_holds_back_nobody_who_enqueues(
        self, jobs: LiteJobs, nodes: Nodes, tmp_path: Path
    ) -> None:
        @jobs.define
        def mail(number: int) -> None: ...

        stop = threading.Event()
        done: list[int] = []

        def enqueue() -> None:
            while not stop.is_set():
                done.append(mail.enqueue(len(done)).id)

        thread = threading.Thread(target=enqueue)
        thread.start()
        try:
            for number in range(10):
                eventually(lambda number=number: len(done) > number)  # type: ignore[misc]
                assert integrity(jobs.backup(tmp_path / f"{number}.db")) == "ok"
        finally:
            stop.set()
            thread.join()
        with LiteJobs(tmp_path / "9.db") as copy:
            ids = [job.id for job in copy.iterate()]
        assert ids == [*range(ids[0], 0, -1)], "a copy is of one moment"

    def test_is_made_while_jobs_run(self, tmp_path: Path) -> None:
        with LiteJobs(tmp_path / "jobs.db") as jobs:
            jobs.register(trouble.nap)
            made = jobs.enqueue_many(trouble.nap.bind(0.005) for _ in range(200))
            with jobs.start(workers=1, grace=0.3):
                eventually(lambda: jobs.count(state="completed") >= 10)
                place = jobs.backup(tmp_path / "copy.db")
                made[-1].wait(20)
        assert integrity(place) == "ok"
        with LiteJobs(place) as copy:
            states = Counter(job.state for job in copy.iterate())
            assert sum(states.values()) == len(made)
            assert 10 <= states["completed"] < len(made)
            assert {*states} <= {"completed", "running", "pending"}

    def test_has_its_running_jobs_rescued(
        self, jobs: LiteJobs, nodes: Nodes, clock: TurnedClock, tmp_path: Path
    ) -> None:
        add(jobs)
        nodes.claim(nodes.join())
        with LiteJobs(jobs.backup(tmp_path / "copy.db"), clock=clock) as copy:
            copy.define(mail)
            assert copy.get(1).state == "running"
            assert "has died" in copy.why(1)
            [node] = copy.store.nodes.unlisted()
            assert len(copy.store.nodes.rescue(node)) == 1
            assert copy.drain() == 1
        assert jobs.get(1).state == "running"


def mail() -> None:
    pass


class TestCompacting:
    def test_gives_the_space_back_while_a_node_is_at_work(
        self, tmp_path: Path, programs: Programs
    ) -> None:
        path = tmp_path / "jobs.db"
        with LiteJobs(path) as jobs:
            bulky = jobs.define(name="bulky")(mail_of)
            jobs.enqueue_many(bulky.bind("x" * 10_000) for _ in range(500))
            programs.node(path)
            eventually(jobs.nodes)
            jobs.delete(name="bulky")
            done = jobs.compact()
            assert done.before > 5_000_000
            assert done.after < 1_000_000
            assert jobs.doctor() == []

    def test_changes_nothing_else(self, jobs: LiteJobs) -> None:
        for state in litejobs.STATES:
            add(jobs, state=state)
        before = jobs.find()
        assert isinstance(jobs.compact(), Compacted)
        assert jobs.find() == before
        assert jobs.store.file.connection().pragma("auto_vacuum") == 2


def mail_of(text: str) -> None:
    pass


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


class TestDoctor:
    def test_finds_nothing_in_a_healthy_file(
        self, jobs: LiteJobs, nodes: Nodes, clock: TurnedClock
    ) -> None:
        assert jobs.doctor() == []
        node = nodes.join()
        states: list[State] = [
            "scheduled",
            "retrying",
            "paused",
            "completed",
            "cancelled",
            "pending",
        ]
        for state in states:
            add(jobs, state=state)
        nodes.claim(node)
        add(jobs, state="blocked")
        add(jobs)
        add(jobs, node="here")
        clock.turn(3000)
        assert jobs.doctor() == []

    def test_finds_a_damaged_file(self, jobs: LiteJobs) -> None:
        for _ in range(300):
            add(jobs, payload=f'{{"text": "{"x" * 500}"}}')
        jobs.compact()
        jobs.close()
        with jobs.path.open("r+b") as file:
            file.seek(20 * 4096)
            file.write(b"\xff" * 4096)
        found = jobs.doctor()
        assert found
        assert {one.level for one in found} == {"error"}
        assert {one.subject for one in found} == {"the file"}

    def test_finds_an_index_that_does_not_agree_with_its_table_and_builds_it_anew(
        self, jobs: LiteJobs
    ) -> None:
        for _ in range(3):
            add(jobs)
        with jobs.store.file.transaction(read_only=True) as tx:
            root = tx.execute(
                "SELECT rootpage FROM sqlite_schema WHERE name = 'litejobs_ready'"
            ).get
        jobs.close()
        content = jobs.path.read_bytes()
        start = (root - 1) * 4096
        page = content[start : start + 4096].replace(b"mail", b"nail", 1)
        jobs.path.write_bytes(content[:start] + page + content[start + 4096 :])
        found = only(jobs.doctor())
        assert (found.level, found.subject) == ("error", "index litejobs_ready")
        assert found.problem.startswith("does not agree with its table: rows ")
        assert jobs.repair() == 1
        assert jobs.doctor() == []
        assert jobs.count(state="pending") == 3

    @pytest.mark.parametrize("column", ["payload", "headers", "result"])
    def test_finds_text_in_which_a_byte_was_overwritten(self, jobs: LiteJobs, column: str) -> None:
        ids = [add(jobs, state="completed") for _ in range(2)]
        write_by_hand(jobs, f'UPDATE litejobs_job SET {column} = \'{{"to": "Adalbert"}}\'')
        jobs.close()
        content = jobs.path.read_bytes()
        assert content.count(b"Adalbert") == 2
        place = content.index(b"Adalbert")
        jobs.path.write_bytes(content[: place + 3] + b"\0" + content[place + 4 :])
        found = only(jobs.doctor())
        assert (found.level, found.subject) == ("error", f"the {column} of 1 job")
        (damaged,) = [id for id in ids if found.problem == f"cannot be read as JSON: {id}"]
        jobs.delete(damaged)
        assert jobs.doctor() == []
        assert jobs.count(state="completed") == 1

    def test_finds_what_is_missing_of_the_schema(self, jobs: LiteJobs) -> None:
        jobs.count()
        write_by_hand(jobs, "DROP INDEX litejobs_ready")
        assert only(jobs.doctor()).problem == "litejobs_ready is missing"

    def test_finds_wrong_numbers_and_repairs_them(self, jobs: LiteJobs) -> None:
        add(jobs, state="completed")
        add(jobs, state="scheduled")
        write_by_hand(jobs, "UPDATE litejobs_count SET number = 7 WHERE state = 'completed'")
        write_by_hand(jobs, "DELETE FROM litejobs_count WHERE state = 'scheduled'")
        write_by_hand(jobs, "INSERT INTO litejobs_count VALUES ('failed', 'q', 'mail', 0)")
        problems = {one.problem for one in jobs.doctor()}
        assert problems == {"counted as 7, but there are 1", "counted as 0, but there are 1"}
        assert jobs.repair() == 2
        assert jobs.doctor() == []
        assert jobs.stats() == {"default": {"completed": 1, "scheduled": 1}}

    def test_finds_jobs_that_no_node_at_work_knows(self, jobs: LiteJobs, nodes: Nodes) -> None:
        add(jobs, name="report", state="scheduled")
        add(jobs, name="report")
        nodes.join(names=("mail", "other"))
        found = only(jobs.doctor())
        assert found.subject == "definition 'report'"
        assert found.problem == "no node at work has it, for 2 waiting jobs"
        nodes.join("there", names=("report",))
        assert jobs.doctor() == []

    def test_finds_jobs_that_no_node_has_ever_known(self, jobs: LiteJobs, nodes: Nodes) -> None:
        add(jobs, name="report")
        assert jobs.doctor() == []
        node = nodes.join()
        nodes.die(node)
        jobs.store.nodes.rescue(node)
        assert only(jobs.doctor()).problem == "no node so far has it, for 1 waiting job"

    def test_finds_jobs_for_a_node_that_is_gone(self, jobs: LiteJobs, nodes: Nodes) -> None:
        add(jobs, node="laptop")
        nodes.join()
        found = only(jobs.doctor())
        assert found.subject == "node 'laptop'"
        assert "--from-node laptop --node" in found.advice
        jobs.change(node="laptop", to={"node": None})
        assert jobs.doctor() == []

    def test_finds_nodes_that_died(self, jobs: LiteJobs, nodes: Nodes) -> None:
        add(jobs)
        node = nodes.join()
        nodes.claim(node)
        nodes.die(node)
        found = only(jobs.doctor())
        assert found.subject == "node 'here'"
        assert "with 1 job" in found.problem
        assert len(jobs.store.nodes.rescue(node)) == 1, "the doctor only looks"
        assert jobs.doctor() == []

    def test_finds_jobs_in_the_hands_of_a_node_that_is_not_listed(
        self, jobs: LiteJobs, nodes: Nodes
    ) -> None:
        add(jobs)
        node = nodes.join()
        nodes.claim(node)
        write_by_hand(jobs, "DELETE FROM litejobs_node")
        found = only(jobs.doctor())
        assert (found.subject, found.problem) == (f"node {node}", "is not listed, and holds 1 job")

    def test_finds_a_node_whose_lock_file_was_removed(self, jobs: LiteJobs, nodes: Nodes) -> None:
        Path(jobs.store.file.presence_path(nodes.join())).unlink()
        assert "whether it lives cannot be known" in only(jobs.doctor()).problem

    def test_finds_a_paused_queue_in_which_jobs_wait(self, jobs: LiteJobs, nodes: Nodes) -> None:
        nodes.join()
        settings_of(jobs, "default", paused=1)
        assert jobs.doctor() == []
        add(jobs)
        assert only(jobs.doctor()).problem == "is paused, with 1 waiting job"

    def test_finds_a_key_that_nobody_holds_and_lets_one_job_in(
        self, jobs: LiteJobs, nodes: Nodes
    ) -> None:
        nodes.join()
        for key in ("ada", "ada", "bob"):
            add(jobs, key=key, state="blocked")
        add(jobs, key="bob", state="pending")
        found = only(jobs.doctor())
        assert found.subject == "key 'ada'"
        assert "held by no job" in jobs.why(1)
        assert jobs.repair() == 1
        assert [jobs.get(id).state for id in (1, 2, 3)] == ["pending", "blocked", "blocked"]
        assert jobs.doctor() == []

    def test_finds_jobs_that_are_late(
        self, jobs: LiteJobs, nodes: Nodes, clock: TurnedClock
    ) -> None:
        add(jobs)
        assert jobs.doctor() == []
        clock.turn(61)
        assert "no node is at work" in only(jobs.doctor()).problem
        nodes.join()
        assert jobs.doctor() == []
        clock.turn(3600)
        assert only(jobs.doctor()).problem.startswith("1 job late, the first since 2025")

    def test_finds_dead_letters(self, jobs: LiteJobs) -> None:
        add(jobs, state="failed")
        assert only(jobs.doctor()).problem == "1 dead letter in queue 'default'"
        jobs.delete(state="failed")
        assert jobs.doctor() == []

    def test_finds_schedules_that_nobody_knows(self, jobs: LiteJobs, nodes: Nodes) -> None:
        nodes.join()
        for name in ("mail", "report", "x"):
            jobs.schedule(name).set("@daily", jobs.define(name=name)(lambda: None))
        jobs.schedule("x").pause()
        assert only(jobs.doctor()).subject == "schedule 'report'"

    def test_finds_a_large_wal(self, jobs: LiteJobs, monkeypatch: pytest.MonkeyPatch) -> None:
        add(jobs)
        monkeypatch.setattr(litejobs, "LARGE_WAL", 1000)
        assert only(jobs.doctor()).subject == "the WAL"


class TestWhy:
    @pytest.mark.parametrize(
        ("columns", "why"),
        [
            ({"state": "scheduled", "run_at": START + 1}, "it is due at 2025-01-01 00:00:00 UTC"),
            ({"state": "scheduled"}, "it has been due since 2025-.* and no node is at work"),
            (
                {"state": "retrying", "attempt": 2, "error": "E: no", "run_at": START + 10**7},
                r"attempt 2 failed \(E: no\), and the next one is due at 2025-01-01 00:00:10 UTC",
            ),
            ({"state": "paused"}, "a person holds it"),
            ({"state": "blocked"}, "it waits for another job"),
            ({"state": "pending"}, "no node is at work"),
            ({"state": "running"}, "the node that ran it has died"),
            ({"state": "completed", "finished_at": START}, "it completed at 2025"),
            ({"state": "cancelled", "finished_at": START}, "it was cancelled at 2025"),
            (
                {"state": "cancelled", "finished_at": START, "error": "Cancel: gone"},
                "it was cancelled at 2025.*: Cancel: gone",
            ),
            (
                {"state": "failed", "finished_at": START, "attempt": 5, "error": "E: no"},
                "it failed at 2025.*, after 5 attempts: E: no",
            ),
        ],
    )
    def test_is_in_one_sentence(self, jobs: LiteJobs, columns: dict[str, Any], why: str) -> None:
        id = add(jobs, **columns)
        assert re.match(why, jobs.why(id)), jobs.why(id)
        assert jobs.get(id).why() == jobs.why(id)

    def test_names_the_node_that_runs_it(self, jobs: LiteJobs, nodes: Nodes) -> None:
        add(jobs)
        nodes.claim(nodes.join())
        assert jobs.why(1) == (
            f"it is running: attempt 1 on node 'here' (pid {os.getpid()})"
            " since 2025-01-01 00:00:00 UTC"
        )
        jobs.cancel(1)
        assert jobs.why(1).endswith(", and was asked to end")

    def test_names_the_job_that_holds_its_key(self, jobs: LiteJobs) -> None:
        for state in ("running", "blocked", "pending"):
            add(jobs, key="ada", state=state)
        assert jobs.why(2) == "its key 'ada' is held by jobs 1, 3"

    def test_names_what_no_node_has(self, jobs: LiteJobs, nodes: Nodes) -> None:
        add(jobs)
        add(jobs, name="report")
        add(jobs, queue="slow")
        add(jobs, node="laptop")
        nodes.join(queues=["default"])
        assert [jobs.why(id) for id in (1, 2, 3, 4)] == [
            "it is ready, and next in its queue",
            "no node at work has its definition 'report'",
            "no node at work serves its queue 'slow'",
            "its node 'laptop' is not at work",
        ]

    def test_counts_what_is_more_urgent(self, jobs: LiteJobs, nodes: Nodes) -> None:
        nodes.join()
        for priority in (0, 5, 0, -1):
            add(jobs, priority=priority)
        add(jobs, queue="slow", priority=9)
        assert [jobs.why(id).split()[4] for id in (1, 3, 4)] == ["1", "2", "3"]

    def test_names_the_limit_of_its_queue(
        self, jobs: LiteJobs, nodes: Nodes, clock: TurnedClock
    ) -> None:
        node = nodes.join()
        add(jobs)
        nodes.claim(node)
        for queue in ("default", "paused", "rated"):
            add(jobs, queue=queue)
        settings_of(jobs, "default", concurrency=1)
        settings_of(jobs, "paused", paused=1)
        settings_of(jobs, "rated", rate=0.5, tokens=0.0, filled_at=START)
        assert [jobs.why(id) for id in (2, 3, 4)] == [
            "its queue 'default' runs as many jobs at a time as it may: 1 of 1",
            "its queue 'paused' is paused",
            "its queue 'rated' starts as many jobs as it may: 0.5/s",
        ]
        clock.turn(2)
        assert jobs.why(4) == "it is ready, and next in its queue"

    def test_of_a_job_that_is_not_there_is_an_error(self, jobs: LiteJobs) -> None:
        with pytest.raises(JobNotFoundError):
            jobs.why(5)
