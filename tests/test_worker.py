"""What jobs can do to their worker, and how workers find the code that they run."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from programs import Programs, alive, eventually, lines, surroundings, trouble

import litejobs
from litejobs import Definition, DefinitionError, LiteJobs, Moved, WorkerError, define

GRACE = 0.3
PATIENT = 60.0
MARGIN = 2.0
"""Seconds by which a busy machine may be late."""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LiteJobs]:
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        jobs.register(*trouble.DEFINITIONS)
        yield jobs


# Jobs that misbehave


def assert_innocents_are_unharmed(jobs: LiteJobs, log: Path, ids: list[int]) -> None:
    innocents = [jobs.get(id) for id in ids]
    assert {(job.state, job.attempt) for job in innocents} == {("completed", 1)}
    assert sorted(map(int, lines(log))) == list(range(len(ids)))
    assert not any(job.errors for job in innocents)


@pytest.mark.parametrize(
    ("kind", "culprits"),
    [
        (
            "crash",
            {
                trouble.segfault: "SIGSEGV",
                trouble.leave_at_once: "exit code 3",
                trouble.kill_itself: "SIGKILL",
            },
        ),
        (
            "timeout",
            {
                trouble.spin_in_c: "timeout of 0.5 s",
                trouble.ignore_signals: "timeout of 0.5 s",
                trouble.stop_itself: "timeout of 0.5 s",
            },
        ),
        (
            "exception",
            {
                trouble.call_exit: "bye",
                trouble.interrupt: "",
                trouble.recurse: "recursion depth",
                trouble.use_all_memory: "",
                trouble.fail_in_bad_text: "caf",
            },
        ),
    ],
    ids=["crash", "timeout", "exception"],
)
def test_jobs_that_misbehave_use_up_their_own_attempts_and_harm_nobody_else(
    kind: str, culprits: dict[Definition[[], object, object], str], jobs: LiteJobs, log: Path
) -> None:
    with jobs.start(workers=2, grace=GRACE) as pool:
        before = jobs.enqueue_many(trouble.innocent.bind(str(log), n) for n in range(150))
        bad = [culprit.using(max_attempts=2).enqueue() for culprit in culprits]
        after = jobs.enqueue_many(trouble.innocent.bind(str(log), n) for n in range(150, 300))
        eventually(lambda: pool.wait(0) or all(job.refresh().finished for job in (*bad, *after)))
        for job, message in zip(bad, culprits.values(), strict=True):
            assert (job.refresh().state, job.refresh().attempt) == ("failed", 2)
            assert [(error.attempt, error.kind) for error in job.errors] == [(1, kind), (2, kind)]
            for error in job.errors:
                assert message in error.message
                took = (error.finished_at - error.started_at).total_seconds()
                asked_after = 0.5 if kind == "timeout" else 0.0
                assert asked_after <= took < asked_after + GRACE + MARGIN
    assert_innocents_are_unharmed(jobs, log, [job.id for job in (*before, *after)])


def test_a_node_of_one_worker_goes_on_with_what_waited_behind_a_crash(jobs: LiteJobs) -> None:
    culprit = trouble.leave_at_once.using(max_attempts=1).enqueue()
    waiting = [trouble.nap.enqueue(0) for _ in range(5)]
    with jobs.start(workers=1, grace=GRACE):
        assert culprit.wait(PATIENT).state == "failed"
        assert [job.wait(PATIENT).state for job in waiting] == ["completed"] * 5


def test_many_crashes_in_a_row_end_neither_the_node_nor_other_jobs(
    jobs: LiteJobs, log: Path
) -> None:
    with jobs.start(workers=2, grace=GRACE):
        culprits = jobs.enqueue_many(
            trouble.kill_itself.using(max_attempts=1).bind() for _ in range(4)
        )
        innocents = [trouble.innocent.enqueue(str(log), n) for n in range(20)]
        assert [job.wait(PATIENT).state for job in culprits] == ["failed"] * 4
        for job in innocents:
            job.wait(PATIENT)
    assert_innocents_are_unharmed(jobs, log, [job.id for job in innocents])


def test_a_job_that_closes_all_files_of_its_worker_stops_nobody(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=GRACE):
        job = trouble.close_everything.using(max_attempts=1).enqueue()
        after = [trouble.nap.enqueue(0) for _ in range(3)]
        assert job.wait(PATIENT).state in ("completed", "failed")
        assert [job.wait(PATIENT).state for job in after] == ["completed"] * 3
        assert {job.refresh().attempt for job in after} == {1}


def test_what_a_job_started_dies_with_it_at_its_timeout(jobs: LiteJobs, log: Path) -> None:
    with jobs.start(workers=1, grace=GRACE):
        job = trouble.start_a_sleeper.using(max_attempts=1).enqueue(str(log))
        assert job.wait(PATIENT).errors[0].kind == "timeout"
        [sleeper] = map(int, lines(log))
        eventually(lambda: not alive(sleeper), within=1.0)


def test_what_a_job_started_dies_with_it_when_it_crashes(jobs: LiteJobs, log: Path) -> None:
    """A forked child holds all that its parent had open: the death must show regardless."""
    with jobs.start(workers=1, grace=GRACE):
        job = trouble.leave_a_child_behind.using(max_attempts=1).enqueue(str(log))
        assert job.wait(10.0).errors[0].kind == "crash"
        [child] = map(int, lines(log))
        eventually(lambda: not alive(child), within=1.0)


@pytest.mark.posix
def test_what_a_dead_worker_was_being_told_keeps_nobody_waiting(
    jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    """A process that a job had forked held the pipe: the rest of a message that fits no pipe
    was never read and never refused, and the node waited until that could be said."""
    node = programs.node(jobs.path)
    worker = trouble.leave_a_daemon.enqueue(str(log)).result(PATIENT)
    [daemon] = map(int, eventually(lambda: lines(log)))
    try:
        os.kill(worker, signal.SIGSTOP)
        job = trouble.measure.enqueue("x" * 2**20)
        eventually(lambda: job.refresh().state == "running")
        os.kill(worker, signal.SIGKILL)
        assert (job.result(PATIENT), job.refresh().attempt, job.errors) == (2**20, 1, ())
        node.terminate()
        assert node.wait(PATIENT) == 0
    finally:
        os.kill(daemon, signal.SIGKILL)


@pytest.mark.posix
def test_a_worker_that_is_killed_costs_the_running_job_one_attempt(
    jobs: LiteJobs, log: Path
) -> None:
    with jobs.start(workers=1, grace=GRACE):
        job = trouble.nap_and_tell.using(backoff=trouble.AT_ONCE).enqueue(str(log), 0.5)
        [worker] = map(int, eventually(lambda: lines(log)))
        os.kill(worker, signal.SIGKILL)
        job = job.wait(PATIENT)
    assert (job.state, job.attempt) == ("completed", 2)
    assert [(error.attempt, error.kind, error.worker) for error in job.errors] == [
        (1, "crash", worker)
    ]
    assert "SIGKILL" in job.errors[0].message


@pytest.mark.posix
def test_an_idle_worker_that_is_killed_is_replaced(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=GRACE):
        first = trouble.whoami.enqueue().result(PATIENT)
        os.kill(first, signal.SIGKILL)
        job = trouble.whoami.enqueue().wait(PATIENT)
        assert job.result() != first
        assert (job.attempt, job.errors) == (1, ())


# Jobs that use processes themselves


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_job_may_use_a_pool_of_processes(method: str, jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=GRACE):
        assert trouble.use_a_pool.enqueue(method).result(PATIENT) == [1, 4, 9]


def test_a_job_can_terminate_a_child_that_it_forked(jobs: LiteJobs) -> None:
    """The worker ignores SIGTERM; what it starts must not."""
    with jobs.start(workers=1, grace=GRACE):
        job = trouble.end_a_child.using(max_attempts=1, timeout=2).enqueue()
        assert job.result(PATIENT) == -signal.SIGTERM


def test_a_job_may_start_programs(jobs: LiteJobs) -> None:
    with jobs.start(workers=1, grace=GRACE):
        assert trouble.use_a_subprocess.enqueue().result(PATIENT) == "42"


PRINTING = """
import os, subprocess, sys
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db", durability="fast")

@jobs.define(max_attempts=1)
def speak() -> None:
    print("a line", flush=True)
    print("an error", file=sys.stderr, flush=True)
    subprocess.run(["sh", "-c", "echo a line; echo an error >&2"], check=True)

if __name__ == "__main__":
    speak.enqueue()
    jobs.work(**{sys.argv[1]: 1}, until="empty")
    with open("said.txt", "w") as said:
        said.write(repr([(job.state, job.error) for job in jobs.find()]))
"""


@pytest.mark.posix
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">&-", "2>&-"])
@pytest.mark.parametrize("how", ["workers", "threads"])
def test_jobs_print_to_nowhere_in_a_program_whose_standard_streams_are_closed(
    how: str, streams: str, programs: Programs
) -> None:
    programs.write(script=PRINTING)
    command = f'exec "$0" script.py {how} {streams}'
    subprocess.run(["sh", "-c", command, sys.executable], cwd=programs.folder, check=False)
    assert (programs.folder / "said.txt").read_text() == "[('completed', None)]"


# What jobs change of their process


@pytest.mark.posix
def test_a_job_finds_signals_folder_and_context_as_before_the_one_that_changed_them(
    jobs: LiteJobs,
) -> None:
    jobs.register(surroundings.look, surroundings.change)
    with jobs.start(workers=1, grace=GRACE):
        before = surroundings.look.enqueue().result(PATIENT)
        assert surroundings.change.enqueue().result(PATIENT) == before[0]
        assert surroundings.look.enqueue().result(PATIENT) == before


def test_a_coroutine_finds_the_folder_as_before_the_one_that_changed_it(jobs: LiteJobs) -> None:
    jobs.register(surroundings.look_aside, surroundings.change_folder_aside)
    with jobs.start(workers=1, grace=GRACE):
        before = surroundings.look_aside.enqueue().result(PATIENT)
        assert surroundings.change_folder_aside.enqueue().result(PATIENT) == before[0]
        assert surroundings.look_aside.enqueue().result(PATIENT) == before


@pytest.mark.posix
def test_a_job_can_terminate_its_programs_after_one_that_ignored_sigterm(jobs: LiteJobs) -> None:
    """They inherited that: `terminate` of a pool of processes hung."""
    jobs.register(surroundings.ignore_sigterm, surroundings.terminate_a_program)
    with jobs.start(workers=1, grace=GRACE):
        surroundings.ignore_sigterm.enqueue()
        job = surroundings.terminate_a_program.enqueue()
        assert job.result(PATIENT) == -signal.SIGTERM


@pytest.mark.posix
def test_a_job_after_which_the_folder_cannot_be_put_back_is_the_last_one_in_its_worker(
    jobs: LiteJobs,
) -> None:
    jobs.register(surroundings.look, surroundings.close_folders)
    with jobs.start(workers=1, grace=GRACE):
        last = surroundings.close_folders.enqueue()
        job = surroundings.look.enqueue().wait(PATIENT)
        assert last.result(PATIENT) != job.result()[0]
        assert (job.state, job.attempt, job.errors) == ("completed", 1, ())


def test_a_context_variable_that_a_job_sets_does_not_reach_who_drains(jobs: LiteJobs) -> None:
    @jobs.define
    def become() -> None:
        surroundings.TENANT.set("another")

    become.enqueue()
    assert jobs.drain() == 1
    assert surroundings.TENANT.get() == "none"


WAITED_FOR = """
import os
import signal
import sys
from litejobs import LiteJobs
from programs import trouble

def wait_for_all(number, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, {"SIG_IGN": signal.SIG_IGN, "waitpid": wait_for_all}[sys.argv[2]])
    for _ in range(2):
        with LiteJobs(sys.argv[1]) as jobs:
            jobs.register(*trouble.DEFINITIONS)
            trouble.leave_at_once.using(max_attempts=1, priority=1).enqueue()
            trouble.whoami.enqueue()
            jobs.work(workers=1, until="empty")
        print(len(os.listdir("/dev/fd")))
"""


@pytest.mark.posix
@pytest.mark.parametrize("how", ["SIG_IGN", "waitpid"])
def test_a_worker_that_somebody_else_has_waited_for_is_dead_all_the_same(
    how: str, jobs: LiteJobs, programs: Programs
) -> None:
    """Its exit code was awaited, which never came: the node span, its job was left running,
    and the end was a ValueError of multiprocessing's."""
    programs.write(waited_for=WAITED_FOR)
    status, said, complaints = programs.run("waited_for.py", jobs.path, how)
    assert (status, "Traceback" in complaints) == (0, False)
    first, second = said.split()
    assert first == second  # Nothing is left open of a worker.
    crashed, others = jobs.find(name="leave_at_once"), jobs.find(name="whoami")
    assert [job.state for job in others] == ["completed"] * 2
    for failure in [job.errors[0] for job in crashed]:
        assert failure.kind == "crash"
        if how == "SIG_IGN":
            assert failure.exit_code is None
            assert "its exit code is not known" in failure.message


FORKING = """
import sys
from litejobs import LiteJobs
from programs import trouble

if __name__ == "__main__":
    with LiteJobs(sys.argv[1]) as jobs:
        jobs.register(*trouble.DEFINITIONS)
        jobs.drain() if sys.argv[2] == "drain" else jobs.work(**{sys.argv[2]: 1}, until="empty")
        print("ended")
"""


@pytest.mark.posix
@pytest.mark.parametrize("where", ["workers", "threads", "drain"])
def test_a_process_that_a_job_forked_does_not_come_out_of_it_as_well(
    where: str, jobs: LiteJobs, log: Path, programs: Programs
) -> None:
    """It would say a second time how the job ended, and take others' turns."""
    hows = ("return", "raise", "exit")
    made = [trouble.come_out_twice.using(max_attempts=1).enqueue(str(log), how) for how in hows]
    programs.write(forking=FORKING)
    status, said, complaints = programs.run("forking.py", jobs.path, where)
    assert (status, said) == (0, "ended\n")
    assert complaints.count("left the handler: end it with os._exit()") == 2
    assert lines(log) == ["1", "1", "7"]
    assert all(job.refresh().result() for job in made)


# Where workers find definitions

SCRIPT = """
import sys
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db")

@jobs.define
def add(a: int, b: int = 1) -> int:
    if a < 3:
        add.enqueue(a + 1, b=b)
    return a + b

def main() -> None:
    add.enqueue(1)
    jobs.work(workers=1, until="empty")
    print(sorted(job.result() for job in jobs.find()))

if __name__ == "__main__":
    main()
"""

BOUND_IN_MAIN = """
import attrs
from litejobs import LiteJobs, define

@define
def add(a: int) -> int:
    if a < 3:
        add.enqueue(a + 1)
    return a + 1

if __name__ == "__main__":
    def main() -> None:
        jobs = LiteJobs("jobs.db")
        jobs.register(add)
        add.enqueue(1)
        jobs.work(workers=1, until="empty")
        print(sorted(job.result() for job in jobs.find()))

    main()
"""

IMPORTING = """
from tasks import add, jobs

if __name__ == "__main__":
    add.enqueue(1)
    jobs.work(workers=1, until="empty")
    print(sorted(job.result() for job in jobs.find()))
"""

IMPORTING_LATE = """
if __name__ == "__main__":
    from package.tasks import add, jobs
    add.enqueue(1)
    jobs.work(workers=1, until="empty")
    print(sorted(job.result() for job in jobs.find()))
"""

OF_A_CLASS = """
import attrs
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db")

@jobs.define
@attrs.frozen
class Add:
    a: int

    def run(self) -> int:
        if self.a < 3:
            jobs.enqueue(Add(self.a + 1))
        return self.a + 1

if __name__ == "__main__":
    jobs.enqueue(Add(1))
    jobs.work(workers=1, until="empty")
    print(sorted(job.result() for job in jobs.find()))
"""

IN_ANOTHER_FOLDER = """
import errno
import math
import os
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db")

@jobs.define
def add(a: int) -> int:
    if a < 3:
        add.enqueue(a + 1)
    return a + 1

if __name__ == "__main__":
    os.mkdir("other")
    os.chdir("other")
    add.enqueue(1)
    jobs.work(workers=1, until="empty")
    print(sorted(job.result() for job in jobs.find()))
"""

FROM_STDIN = """
import os, pathlib, subprocess, sys
subprocess.run(
    [sys.executable, "-"], input=pathlib.Path("script.py").read_text(), text=True, check=True,
    env={**os.environ, "PYTHONPATH": "."},
)
"""


@pytest.mark.parametrize(
    ("arguments", "sources"),
    [
        (["script.py"], {"script": SCRIPT}),
        (["script.py"], {"script": BOUND_IN_MAIN}),
        (["script.py"], {"script": OF_A_CLASS}),
        (["script.py"], {"script": IN_ANOTHER_FOLDER}),
        (["script.py"], {"script": IMPORTING, "tasks": SCRIPT}),
        (["script.py"], {"script": IMPORTING_LATE, "package__tasks": SCRIPT}),
        (["-m", "package.tasks"], {"package____init__": "", "package__tasks": SCRIPT}),
        (["-m", "package"], {"package____main__": SCRIPT, "package____init__": ""}),
        (["-c", FROM_STDIN], {"script": IMPORTING, "tasks": SCRIPT}),
    ],
    ids=[
        "in a script", "bound in main", "of a class", "in another folder", "in a module",
        "in a package", "run as a module", "run as a package", "read from standard input",
    ],
)  # fmt: skip
def test_workers_find_definitions_and_jobs_enqueue_more(
    arguments: list[str], sources: dict[str, str], programs: Programs
) -> None:
    programs.write(**sources)
    assert programs.run(*arguments) == (0, "[2, 3, 4]\n", "")


CHANGING_FOLDERS = """
import os, tempfile
from litejobs import LiteJobs

jobs = LiteJobs("jobs.db", durability="fast")
other = LiteJobs("other.db", durability="fast")

@jobs.define
def follow() -> None: ...

@other.define
def follow_elsewhere() -> None: ...

@jobs.define(max_attempts=1)
def wander() -> str:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        follow.enqueue()
        follow_elsewhere.enqueue()
    return os.path.basename(folder)

if __name__ == "__main__":
    wander.enqueue()
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    wander.enqueue()
    jobs.work(workers=1, until="empty")
    print(jobs.count(state="completed"), other.count(), os.listdir())
"""


def test_a_program_and_jobs_that_change_the_folder_keep_their_files(programs: Programs) -> None:
    programs.write(script=CHANGING_FOLDERS)
    assert programs.run("script.py") == (0, "4 2 []\n", "")


def test_a_definition_inside_a_function_is_refused_before_work_starts(jobs: LiteJobs) -> None:
    @define
    def local() -> None: ...

    jobs.register(local)
    with pytest.raises(DefinitionError, match=r"'local'.* inside a function.*top level"):
        jobs.work(workers=1)


def test_a_lambda_is_refused_before_work_starts(jobs: LiteJobs) -> None:
    jobs.register(define(name="short")(cast(Any, lambda: None)))
    with pytest.raises(DefinitionError, match=r"'short'.*workers cannot find.*top level"):
        jobs.work(workers=1)


def test_a_state_factory_inside_a_function_is_refused_before_work_starts(tmp_path: Path) -> None:
    jobs = LiteJobs(tmp_path / "jobs.db", state=lambda: 1)
    jobs.register(trouble.nap)
    with pytest.raises(ValueError, match=r"state.*top level of a module"):
        jobs.work(workers=1)


GUARDLESS = """
from litejobs import LiteJobs

with open("imported.txt", "a") as log:
    print("imported", file=log)
    if log.tell() > 70:
        __import__("os")._exit(9)  # a fork bomb

jobs = LiteJobs("jobs.db")

@jobs.define
def tick() -> None: ...

{statement}
"""


def test_a_script_without_a_guard_ends_with_an_error_that_names_it(programs: Programs) -> None:
    programs.write(script=GUARDLESS.format(statement="jobs.work(workers=1)"))
    code, _, errors = programs.run("script.py")
    assert code == 1
    assert 'if __name__ == "__main__"' in errors
    assert "WorkerError" in errors
    assert len(lines(programs.folder / "imported.txt")) <= 4


@pytest.mark.parametrize(
    "statement", ['jobs.work(workers=1, until="empty")', "tick.enqueue()"], ids=["work", "enqueue"]
)
def test_a_module_without_a_guard_is_refused_in_workers(statement: str, programs: Programs) -> None:
    """A worker imports it after the main program, and must neither work nor enqueue."""
    programs.write(tasks=GUARDLESS.format(statement=statement))
    program = "import tasks; tasks.jobs.work(workers=1, until='empty')"
    code, _, errors = programs.run("-c", program)
    assert code == 1
    assert 'if __name__ == "__main__"' in errors
    assert "WorkerError" in errors
    assert len(lines(programs.folder / "imported.txt")) <= 4


FROZEN = """#!{python}
import os, sys
with open("copies.txt", "a") as log:
    print(sys.argv[1:], file=log)
    if log.tell() > 1000:
        os._exit(9)
sys.frozen, sys.executable = True, os.path.abspath(__file__)
if sys.argv[-2:-1] == ["-c"]:
    exec(sys.argv[-1])  # As PyInstaller's freeze_support does it, for the resource tracker.
    sys.exit()
import multiprocessing.spawn
from litejobs import LiteJobs
jobs = LiteJobs("jobs.db")

@jobs.define
def add(a: int) -> int:
    return a + 1

if __name__ == "__main__":
    {statement}
    job = add.enqueue(1)
    jobs.work(workers=1, until="empty")
    print(job.result())
"""


@pytest.mark.posix
@pytest.mark.parametrize(
    ("statement", "error", "copies", "enqueued"),
    [
        ("multiprocessing.spawn.freeze_support()", "", 3, 1),
        ("pass", "a frozen program has no workers without freeze_support: call", 1, 1),
        (
            "len(sys.argv) or multiprocessing.spawn.freeze_support()",
            "was started as a worker",
            5,
            1,
        ),
    ],
    ids=["with freeze_support", "without", "with one that comes to nothing"],
)
def test_a_frozen_program_has_workers_if_it_calls_freeze_support(
    statement: str, error: str, copies: int, enqueued: int, programs: Programs
) -> None:
    """A script that passes for a program of PyInstaller's: `sys.executable` is itself."""
    programs.write(app=FROZEN.format(python=sys.executable, statement=statement))
    path = programs.folder / "app.py"
    path.chmod(0o700)
    code, output, errors = programs.run(path)
    assert (code, output) == ((1, "") if error else (0, "2\n")), errors
    assert error in errors
    assert len(lines(programs.folder / "copies.txt")) <= copies
    assert LiteJobs(programs.folder / "jobs.db").count() == enqueued


# State


def broken_state() -> None:
    raise RuntimeError("the database of birds is closed")


def exiting_state() -> None:
    sys.exit("no configuration")


def clock_that_breaks_once() -> int:
    is_node = threading.current_thread().name == "litejobs"
    if is_node and os.environ.get("BROKEN_CLOCK") == str(os.getpid()):
        del os.environ["BROKEN_CLOCK"]
        raise RuntimeError("the clock is broken")
    return litejobs.system_clock()


@pytest.mark.parametrize(
    ("state", "message"),
    [(broken_state, "the database of birds is closed"), (exiting_state, "no configuration")],
    ids=["error", "exit"],
)
def test_a_state_factory_that_fails_ends_the_node_with_its_message(
    state: object, message: str, tmp_path: Path
) -> None:
    jobs = LiteJobs(tmp_path / "jobs.db", state=state)  # type: ignore[arg-type]
    jobs.register(trouble.nap)
    job = trouble.nap.enqueue(0)
    since = time.monotonic()
    with pytest.raises(WorkerError, match=message):
        jobs.work(workers=2)
    assert time.monotonic() - since < 8
    assert (job.refresh().state, job.refresh().attempt) == ("pending", 0)
    assert jobs.nodes() == []


DEPLOYED = """
import glob, os, sys, time
from litejobs import LiteJobs
jobs = LiteJobs("jobs.db", durability="fast")

@jobs.define
def meet(workers: int) -> None:
    open(f"{os.getpid()}.pid", "w").close()
    while len(glob.glob("*.pid")) < workers:
        time.sleep(0.01)

@jobs.define(max_attempts=1)
def crash() -> None:
    os._exit(3)

if __name__ == "__main__":
    jobs.work(workers=int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("arguments", "workers"),
    [(["tasks.py"], 2), (["-c", "import sys, tasks; tasks.jobs.work(int(sys.argv[1]))"], 1)],
    ids=["the main program", "a module"],
)
def test_a_source_file_that_is_half_written_when_a_worker_is_replaced_does_not_end_the_node(
    arguments: list[str], workers: int, programs: Programs
) -> None:
    programs.write(tasks=DEPLOYED)
    jobs = LiteJobs(programs.folder / "jobs.db", durability="fast")

    @jobs.define
    def meet(workers: int) -> None: ...

    @jobs.define(max_attempts=1)
    def crash() -> None: ...

    with jobs:
        node = programs.start(*arguments, workers)
        for job in [meet.enqueue(workers) for _ in range(workers)]:
            job.result(PATIENT)  # All of them are at work.
        programs.write(tasks=DEPLOYED[:-40])
        assert crash.enqueue().wait(PATIENT).state == "failed"
        eventually(lambda: "will be tried again" in programs.errors.read_text())
        if workers > 1:
            meet.enqueue(1).result(PATIENT)
        programs.write(tasks=DEPLOYED)
        if workers > 1:
            assert crash.enqueue().wait(PATIENT).state == "failed"
        meet.enqueue(1).result(PATIENT)
        node.terminate()
        assert node.wait(PATIENT) == 0


class Pipes:
    """The system's, of which there are none for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: float) -> None:
        self.refused = refused
        self.make = os.pipe
        monkeypatch.setattr(os, "pipe", self.pipe)
        monkeypatch.setattr(litejobs, "RESTART_PAUSE", 0.05)

    def pipe(self) -> tuple[int, int]:
        self.refused -= 1
        if self.refused >= 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.make()


@pytest.mark.posix
def test_a_worker_that_the_system_has_no_room_for_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with LiteJobs(tmp_path / "jobs.db") as jobs:
        jobs.register(trouble.nap)
        job = trouble.nap.enqueue(0)
        Pipes(monkeypatch, refused=2)
        jobs.work(workers=1, until="empty")
        assert job.refresh().state == "completed"
    assert "a worker cannot be started and will be tried again: [Errno 24]" in caplog.text


@pytest.mark.posix
def test_a_node_that_the_system_has_no_room_for_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiteJobs(tmp_path / "jobs.db") as jobs:
        jobs.register(trouble.nap)
        job = trouble.nap.enqueue(0)
        Pipes(monkeypatch, refused=math.inf)
        with pytest.raises(WorkerError, match=r"no worker can be started: .*Too many open files"):
            jobs.work(workers=2)
        assert (job.refresh().state, jobs.nodes()) == ("pending", [])


def test_a_node_that_ends_by_an_error_gives_back_what_still_ran(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = LiteJobs(tmp_path / "jobs.db", clock=clock_that_breaks_once)
    jobs.register(*trouble.DEFINITIONS)
    running = trouble.nap_and_tell.using(max_attempts=1).enqueue(str(log), 60)
    with jobs.start(workers=2, grace=GRACE) as pool:
        eventually(lambda: lines(log))
        monkeypatch.setenv("BROKEN_CLOCK", str(os.getpid()))
        trouble.nap.enqueue(0)
        with pytest.raises(RuntimeError, match="the clock is broken"):
            pool.wait(PATIENT)
    running = running.refresh()
    assert (running.state, running.attempt, running.errors) == ("pending", 0, ())
    assert jobs.cancel(running.id) == Moved(1)
