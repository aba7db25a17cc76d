"""Jobs in threads of this process: what works as in workers, and what cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from chaos.disk import Disk, Touch, nobody
from programs import Programs, eventually, lines, never, trouble

from litejobs import Constant, Context, FileError, LiteJobs, Moved, OptionError, WorkerError

PATIENT = 60.0
FAR = 60.0
GRACE = 0.3
AT_ONCE = Constant(0, jitter="none")


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LiteJobs]:
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        yield jobs


@pytest.fixture
def flag() -> Iterator[threading.Event]:
    """Ends what would otherwise wait for ever."""
    flag = threading.Event()
    yield flag
    flag.set()


class TestRunning:
    def test_definitions_may_stand_inside_a_function_and_see_what_it_sees(
        self, jobs: LiteJobs
    ) -> None:
        seen: list[tuple[int, int, str]] = []

        @jobs.define
        def local(n: int) -> int:
            seen.append((n, os.getpid(), threading.current_thread().name))
            return -n

        made = jobs.enqueue_many(local.bind(n) for n in range(500))
        jobs.work(threads=3, until="empty")
        assert sorted(n for n, _, _ in seen) == list(range(500))
        assert {pid for _, pid, _ in seen} == {os.getpid()}
        assert [job.result(PATIENT) for job in made] == [-n for n in range(500)]
        assert not [t for t in threading.enumerate() if t.name == "litejobs-worker"]

    def test_as_many_run_at_a_time_as_there_are_threads(self, jobs: LiteJobs) -> None:
        meeting = threading.Barrier(3)

        @jobs.define
        def meet() -> None:
            meeting.wait(PATIENT)

        with jobs.start(threads=3):
            met = jobs.enqueue_many(meet.bind() for _ in range(3))
            assert [job.wait(PATIENT).state for job in met] == ["completed"] * 3

    def test_failures_are_tried_again_and_remembered(self, jobs: LiteJobs) -> None:
        @jobs.define(backoff=AT_ONCE, max_attempts=3)
        def leave(context: Context) -> str:
            if context.attempt < 3:
                sys.exit(f"bye {context.attempt}")
            return "done"

        with jobs.start(threads=1):
            job = leave.enqueue()
            assert job.result(PATIENT) == "done"
            assert [(e.kind, e.message, e.worker) for e in job.errors] == [
                ("exception", "bye 1", os.getpid()), ("exception", "bye 2", os.getpid()),
            ]  # fmt: skip

    def test_coroutines_run_many_at_a_time(self, jobs: LiteJobs) -> None:
        @jobs.define
        async def rest() -> str:
            await asyncio.sleep(0.2)
            return threading.current_thread().name

        with jobs.start(threads=1):
            since = time.monotonic()
            resting = jobs.enqueue_many(rest.bind() for _ in range(100))
            assert {job.result(PATIENT) for job in resting} == {"litejobs-async"}
            assert time.monotonic() - since < 4
        eventually(lambda: "litejobs-async" not in {t.name for t in threading.enumerate()})

    def test_large_payloads_and_results_pass(self, jobs: LiteJobs) -> None:
        @jobs.define
        def twice(text: str) -> str:
            return text * 2

        with jobs.start(threads=1):
            large = [twice.enqueue("x" * 1_500_000) for _ in range(3)]
            assert [len(job.result(PATIENT)) for job in large] == [3_000_000] * 3

    def test_each_thread_has_a_state_of_its_own_that_is_closed(self, tmp_path: Path) -> None:
        open_ones: list[object] = []
        made: list[object] = []

        @contextlib.contextmanager
        def state() -> Iterator[object]:
            mine = threading.current_thread()
            open_ones.append(mine)
            made.append(mine)
            yield mine
            open_ones.remove(mine)

        jobs = LiteJobs(tmp_path / "jobs.db", state=state, durability="fast")
        meeting = threading.Barrier(2)

        @jobs.define
        def own(context: Context[object]) -> bool:
            meeting.wait(PATIENT)
            return context.state is threading.current_thread()

        with jobs.start(threads=2):
            pair = [own.enqueue(), own.enqueue()]
            assert [job.result(PATIENT) for job in pair] == [True, True]
        assert (len(made), open_ones) == (2, [])

    def test_a_state_that_fails_ends_the_node(self, tmp_path: Path) -> None:
        def state() -> None:
            raise RuntimeError("no birds today")

        jobs = LiteJobs(tmp_path / "jobs.db", state=state)
        jobs.register(trouble.nap)
        with pytest.raises(WorkerError, match="no birds today"):
            jobs.work(threads=2)
        assert jobs.nodes() == []

    def test_a_commit_of_unknown_outcome_makes_nobody_run_again(self, jobs: LiteJobs) -> None:
        ran: list[int] = []

        def fail_once(touch: Touch) -> None:
            if touch.kind == "sync" and touch.path.name == "jobs.db-wal":
                disk.watcher = nobody
                raise apsw.IOError("the sync failed")

        @jobs.define
        def start_the_log_anew(number: int) -> int:
            ran.append(number)
            if len(ran) == 1:
                # Now the node's next commit has to sync.
                jobs.store.file.connection().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
                disk.watcher = fail_once
            return number

        with Disk() as disk:
            made = jobs.enqueue_many(start_the_log_anew.bind(n) for n in range(3))
            jobs.work(threads=1, until="empty")
            jobs.close()
        assert disk.watcher is nobody
        assert [(job.wait(PATIENT).attempt, job.result()) for job in made] == [
            (1, 0),
            (1, 1),
            (1, 2),
        ]
        assert ran == [0, 1, 2]

    def test_a_job_that_reads_every_file_of_its_folder_keeps_its_node_alive(
        self, jobs: LiteJobs, flag: threading.Event
    ) -> None:
        """A lock that is lost when somebody else closes the file, as one of POSIX is, would let
        another node run the job at the same time."""
        refused: list[str] = []
        read: list[str] = []

        @jobs.define
        def read_all() -> None:
            for place in sorted(jobs.path.parent.iterdir()):
                try:
                    place.read_bytes()
                except FileError:
                    refused.append(place.name)
            read.append("all")
            flag.wait(PATIENT)

        with jobs.start(threads=1, grace=GRACE):
            job = read_all.enqueue()
            eventually(lambda: read)
            rescue = "import sys, litejobs; s = litejobs.Store(litejobs.File(sys.argv[1])); "
            rescue += "print(len(s.nodes.rescue(1)))"
            other = [sys.executable, "-c", rescue, str(jobs.path)]
            assert subprocess.run(other, capture_output=True, text=True).stdout == "0\n"
            flag.set()
            assert job.wait(PATIENT).state == "completed"
        assert refused == ["jobs.db", "jobs.db-shm"], "whose locks are of POSIX"

    def test_no_process_is_started(self, programs: Programs) -> None:
        """Not even a helper of multiprocessing's: a frozen application would be started."""
        programs.write(script=WITHOUT_CHILDREN)
        assert programs.run("script.py") == (0, "[4, 9] []\n", "")

    @pytest.mark.parametrize(
        ("module", "statement"),
        [
            ("multiprocessing.process", "square.enqueue(3)"),
            ("sqlite3", "square.using(connection=object()).enqueue(3)"),
        ],
    )
    def test_an_enqueue_while_another_thread_imports_a_standard_module(
        self, module: str, statement: str, programs: Programs
    ) -> None:
        """A node in the background imports multiprocessing, whose modules stand in
        sys.modules before they have been executed."""
        programs.write(script=HALF_IMPORTED.format(module=module, statement=statement))
        code, output, errors = programs.run("script.py")
        expected = "OptionError" if "connection" in statement else "None"
        assert (code, output, errors) == (0, f"{expected}\n", "")

    def test_threads_that_enqueue_first_at_the_same_time_all_get_their_jobs(
        self, tmp_path: Path
    ) -> None:
        def enqueue(ready: threading.Barrier, local: Any, ids: list[int]) -> None:
            ready.wait(PATIENT)
            ids.append(local.enqueue(1).id)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(40):
                with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
                    local = jobs.define(name="local")(lambda n: n)
                    arguments: Any = threading.Barrier(8), local, []
                    threads = [
                        threading.Thread(target=enqueue, args=arguments, daemon=True)
                        for _ in range(8)
                    ]
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join(PATIENT)
                    assert len(arguments[2]) == 8
        finally:
            sys.setswitchinterval(interval)

    def test_threads_and_workers_are_not_given_together(self, jobs: LiteJobs) -> None:
        jobs.register(trouble.nap)
        with pytest.raises(OptionError, match="threads"):
            jobs.work(workers=1, threads=1)
        with pytest.raises(OptionError, match="threads: expected 1 "):
            jobs.work(threads=0)

    def test_the_command_line_has_them_too(self, programs: Programs) -> None:
        programs.write(app=APP)
        code, output, _ = programs.run("-m", "litejobs", "run", "app:jobs", "--threads", "2",
                                       "--until", "empty")  # fmt: skip
        assert (code, output) == (0, "True\n")


WITHOUT_CHILDREN = """
import subprocess, os
from litejobs import LiteJobs
jobs = LiteJobs("jobs.db")

@jobs.define
def square(n: int) -> int:
    return n * n

@jobs.define
async def later(n: int) -> int:
    return n * n

made = square.enqueue(2), later.enqueue(3)
with jobs.start(threads=2):
    results = [job.result(20) for job in made]
    found = subprocess.Popen(["pgrep", "-P", str(os.getpid())], stdout=subprocess.PIPE, text=True)
    children = [pid for pid in found.communicate()[0].split() if int(pid) != found.pid]
print(results, children)
"""

HALF_IMPORTED = """
import importlib.machinery, sys, threading
from litejobs import LiteJobs, OptionError
jobs = LiteJobs("jobs.db")

@jobs.define
def square(n: int) -> int:
    return n * n

begun, ended = threading.Event(), threading.Event()

class Slow(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        begun.set()
        ended.wait(1.0)  # Whoever waits for the import is not kept for ever.
        super().exec_module(module)

class Finder:
    def find_spec(name, path, target=None):
        if name == "{module}":
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            spec.loader = Slow(name, spec.origin)
            return spec

sys.meta_path.insert(0, Finder)
assert "{module}" not in sys.modules
thread = threading.Thread(target=__import__, args=("{module}",))
thread.start()
begun.wait()
error = None
try:
    {statement}
except Exception as caught:
    error = caught
ended.set()
thread.join()
print(error and type(error).__name__)
"""

APP = """
import os
from litejobs import LiteJobs
jobs = LiteJobs("jobs.db")

@jobs.define
def tell(pid: int) -> None:
    print(os.getpid() == pid)

tell.enqueue(os.getpid())
"""


class TestAskedOnly:
    def test_a_timeout_is_asked_for_and_counts_when_the_job_has_ended(self, jobs: LiteJobs) -> None:
        @jobs.define(timeout=0.2, max_attempts=1)
        def obey(context: Context) -> bool:
            give_up = time.monotonic() + PATIENT
            while not context.cancelled and time.monotonic() < give_up:
                time.sleep(0.005)
            return context.cancelled

        with jobs.start(threads=1, grace=GRACE):
            job = obey.enqueue()
            assert job.wait(PATIENT).state == "failed"
            assert [e.kind for e in job.errors] == ["timeout"]

    def test_who_ignores_it_goes_on_after_the_grace_and_then_has_timed_out(
        self, jobs: LiteJobs, flag: threading.Event
    ) -> None:
        ended: list[int] = []

        @jobs.define(timeout=0.1, max_attempts=1)
        def ignore() -> None:
            flag.wait(PATIENT)
            ended.append(1)

        @jobs.define
        def other() -> None: ...

        with jobs.start(threads=2, grace=0.1):
            job = ignore.enqueue()
            eventually(lambda: job.refresh().state == "running")
            never(lambda: job.refresh().finished, during=0.5)
            assert other.enqueue().wait(PATIENT).state == "completed"
            flag.set()
            assert job.wait(PATIENT).state == "failed"
        assert (ended, [e.kind for e in job.errors]) == ([1], ["timeout"])

    def test_a_cancelled_job_is_asked(self, jobs: LiteJobs) -> None:
        began = threading.Event()

        @jobs.define
        def obey(context: Context) -> None:
            began.set()
            while not context.cancelled:
                time.sleep(0.005)

        with jobs.start(threads=1, grace=FAR):
            job = obey.enqueue()
            assert began.wait(PATIENT)
            assert jobs.cancel(job.id) == Moved(1)
            assert job.wait(PATIENT).state == "cancelled"

    def test_a_coroutine_is_cancelled_at_its_timeout(self, jobs: LiteJobs) -> None:
        @jobs.define(timeout=0.1, max_attempts=1)
        async def rest() -> None:
            await asyncio.sleep(FAR)

        with jobs.start(threads=1, grace=FAR):
            job = rest.enqueue()
            assert job.wait(PATIENT).state == "failed"
            assert [e.kind for e in job.errors] == ["timeout"]


class TestStop:
    def test_jobs_may_end_within_the_grace(self, jobs: LiteJobs, flag: threading.Event) -> None:
        began = threading.Event()

        @jobs.define
        def wait() -> str:
            began.set()
            flag.wait(PATIENT)
            return "ended"

        with jobs.start(threads=1, grace=FAR):
            job = wait.enqueue()
            assert began.wait(PATIENT)
            threading.Timer(0.1, flag.set).start()
        assert job.refresh().result() == "ended"
        assert jobs.nodes() == []

    @pytest.fixture
    def stuck(self, jobs: LiteJobs, flag: threading.Event) -> Callable[[str], Any]:
        """Enqueues a job that ignores the stop of its node, and stops it meanwhile."""
        runs: list[int] = []
        began = threading.Event()

        @jobs.define(max_attempts=1)
        def ignore(size: int) -> str:
            runs.append(1)
            began.set()
            flag.wait(PATIENT)
            return "x" * size

        def stop(size: str) -> Any:
            with jobs.start(threads=1, grace=0.1):
                job = ignore.enqueue(int(size))
                assert began.wait(PATIENT)
                since = time.monotonic()
            assert time.monotonic() - since < 1.5
            return job, runs

        return stop

    @pytest.mark.parametrize("size", ["3", "1000000"])
    def test_the_job_of_a_thread_that_is_left_behind_stays_held_until_it_ends(
        self, size: str, jobs: LiteJobs, flag: threading.Event, stuck: Callable[[str], Any]
    ) -> None:
        job, runs = stuck(size)
        with jobs.start(threads=1):  # another node, which would rescue it
            never(lambda: job.refresh().state != "running" or len(runs) > 1, during=1.2)
            assert len(jobs.nodes()) == 2
            flag.set()
            assert len(job.result(PATIENT)) == int(size)
            eventually(lambda: len(jobs.nodes()) == 1)
        assert (len(runs), job.refresh().attempt) == (1, 1)

    def test_after_the_end_of_the_process_the_next_node_runs_it_again(
        self, programs: Programs
    ) -> None:
        programs.write(script=LEFT_BEHIND)
        complaint = "threads left behind, each with a job: 1\n"
        assert programs.run("script.py") == (0, "running\n", complaint)
        jobs = LiteJobs(programs.folder / "jobs.db")
        assert len(jobs.nodes()) == 1
        code, output, _ = programs.run("script.py", "again")
        assert (code, output) == (0, "completed 1 lost\n")
        assert lines(programs.folder / "log.txt") == ["run", "run"]


LEFT_BEHIND = """
import sys, threading
from litejobs import LiteJobs
jobs = LiteJobs("jobs.db")
began = threading.Event()

@jobs.define(max_attempts=1)
def stay() -> None:
    with open("log.txt", "a") as log:
        print("run", file=log)
    began.set()
    if "again" not in sys.argv:
        threading.Event().wait(60)

if "again" in sys.argv:
    jobs.work(threads=1, until="empty")
    [job] = jobs.find()
    print(job.state, job.attempt, *[error.kind for error in job.errors])
else:
    with jobs.start(threads=1, grace=0.05):
        job = stay.enqueue()
        began.wait(20)
    print(job.refresh().state)
"""
