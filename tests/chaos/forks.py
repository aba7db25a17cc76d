"""Whoever forks, and whenever: what was acknowledged is there once, and nobody waits for ever.

Each program is a process of its own that uses a queue and makes others that do: with
multiprocessing in its three ways, with pools, with workers that are forked before they are needed
and replaced when they die, in the midst of what other threads do, and in jobs. Each process writes
down what it asked for and the answers. When all have ended, the file holds each job that was
acknowledged, once, and nothing that nobody asked for; a node has run each once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import apsw
import attrs

from litejobs import Durability, Event, LiteJobs, LitejobsError, define

from .ordeal import Ordeal, Run

DEADLINE = 20.0
"""Seconds that a program has, with all whom it forked; then it hangs."""


def _tell(log: str, *words: object) -> None:
    """Writes down one line, at once, whoever else does."""
    place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(place, (" ".join(map(str, words)).replace("\n", "|") + "\n").encode())
    finally:
        os.close(place)


@define(max_attempts=1)
def note(log: str, number: int) -> None:
    _tell(log, "ran", number)


@define(max_attempts=1)
def fork_and(how: str, log: str, number: int) -> None:
    """A job that forks; the child enqueues, or does nothing, or stays, or returns like its
    parent from the job."""
    _tell(log, "ran", number)
    if (child := os.fork()) == 0:
        if how == "return":
            return
        with _ending():
            if how != "exit":
                ask(log, [number + 1, number + 2])
    ask(log, [number + 3])
    if how != "stay":
        os.waitpid(child, 0)


@define(max_attempts=1)
def start_a_program(how: str, log: str, number: int) -> None:
    """A job that starts another program, which may inherit what it has open."""
    _tell(log, "ran", number)
    ask(log, [number + 1])
    inherit = how == "inherit"
    program = subprocess.Popen(["/bin/sleep", "0.02"], close_fds=not inherit)
    ask(log, [number + 2])
    if how != "leave":
        program.wait()


def ask(log: str, numbers: Iterable[int]) -> None:
    """Enqueues, and writes down what came of it."""
    for number in numbers:
        _tell(log, "asked", number)
        try:
            note.enqueue(log, number)
        except LitejobsError as error:
            _tell(log, "refused", number, repr(error), error)
        else:
            _tell(log, "got", number)


def _ask_elsewhere(path: Path, log: str, numbers: range) -> None:
    """What a process does that shares nothing with the one that started it."""
    with LiteJobs(path) as jobs:
        jobs.register(note)
        ask(log, numbers)


@contextlib.contextmanager
def _ending(log: str = "") -> Iterator[None]:
    """The rest of a forked process: whatever happens, it does not go on from here."""
    try:
        yield
    except BaseException:
        if log:
            _tell(log, "broke", traceback.format_exc())
    finally:
        os._exit(0)


def _child(log: str, act: Callable[..., object], *arguments: object) -> int:
    if (child := os.fork()) == 0:
        with _ending(log):
            act(*arguments)
    return child


# The programs


@attrs.define(eq=False)
class Stage:
    """What a program has in hand."""

    path: Path
    log: str
    durability: Durability
    dice: random.Random
    jobs: LiteJobs = attrs.field(init=False)
    _last: int = 0

    def open(self) -> LiteJobs:
        """The queue, in use already."""
        self.jobs = LiteJobs(self.path, durability=self.durability)
        self.jobs.register(note, fork_and, start_a_program)
        self.ask(self.dice.randrange(1, 5))
        return self.jobs

    def numbers(self, most: int = 10) -> range:
        """Some that nobody else has."""
        start, self._last = self._last, self._last + most
        return range(start, start + self.dice.randrange(1, most + 1))

    def ask(self, most: int = 10) -> None:
        ask(self.log, self.numbers(most))

    def child(self, most: int = 10) -> int:
        """A forked process that enqueues, and closes or not."""
        return _child(self.log, self._ask_and_close, self.numbers(most), self.dice.random() < 0.5)

    def _ask_and_close(self, numbers: range, close: bool) -> None:
        ask(self.log, numbers)
        if close:
            self.jobs.close()


def _wait_for(children: Iterable[int]) -> None:
    for child in children:
        os.waitpid(child, 0)


def _wait_for_all() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def multiprocessing_fork(stage: Stage) -> None:
    with stage.open():
        _run_processes(stage, "fork", 3, ask, stage.log)


def multiprocessing_forkserver(stage: Stage) -> None:
    multiprocessing.set_forkserver_preload([__name__])
    with stage.open():
        _run_processes(stage, "forkserver", 3, _ask_elsewhere, stage.path, stage.log)


def multiprocessing_spawn(stage: Stage) -> None:
    with stage.open():
        _run_processes(stage, "spawn", 1, _ask_elsewhere, stage.path, stage.log)


def _run_processes(
    stage: Stage, method: str, count: int, act: Callable[..., None], *arguments: object
) -> None:
    context = multiprocessing.get_context(method)
    started = []
    for _ in range(count):
        process = context.Process(target=act, args=(*arguments, stage.numbers()))  # type: ignore[attr-defined]
        process.start()
        started.append(process)
        stage.ask()
    for process in started:
        process.join()
        if process.exitcode:
            _tell(stage.log, "broke", f"exit code {process.exitcode}")


def forked_pool(stage: Stage) -> None:
    """The pool forks when it likes, also while the program enqueues in another thread."""
    with stage.open(), _enqueueing(stage, 1):
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            for future in [pool.submit(ask, stage.log, stage.numbers()) for _ in range(6)]:
                future.result()


def workers_forked_before(stage: Stage) -> None:
    """As gunicorn does it: the master has used the queue; workers die and are replaced."""
    jobs = stage.open()
    workers = [stage.child() for _ in range(3)]
    if stage.dice.random() < 0.5:
        jobs.close()
    for _ in range(3):
        os.kill(victim := workers.pop(0), signal.SIGKILL)
        os.waitpid(victim, 0)
        workers.append(stage.child())
        if stage.dice.random() < 0.5:
            stage.ask()
    _wait_for(workers)
    jobs.close()


def orphans(stage: Stage) -> None:
    """The children go on when their parent has closed and ended."""
    reading, writing = os.pipe()

    def go_on(numbers: range) -> None:
        os.close(writing)
        ask(stage.log, numbers[:1])
        os.read(reading, 1)  # Until the parent has ended.
        ask(stage.log, numbers[1:])

    with stage.open():
        for _ in range(2):
            _child(stage.log, go_on, stage.numbers(30))
        stage.ask()


def in_the_midst_of_enqueues(stage: Stage) -> None:
    with stage.open(), _enqueueing(stage, 3):
        for _ in range(4):
            child = stage.child()
            if stage.dice.random() < 0.5:
                os.waitpid(child, 0)
        _wait_for_all()


@contextlib.contextmanager
def _enqueueing(stage: Stage, threads: int) -> Iterator[None]:
    """Meanwhile, other threads enqueue."""
    stop = threading.Event()

    def go_on(numbers: range) -> None:
        for number in numbers:
            if stop.is_set():
                return
            ask(stage.log, [number])

    with _threads([(go_on, stage.numbers(500)) for _ in range(threads)], stop):
        yield


@contextlib.contextmanager
def _threads(
    acts: Iterable[tuple[Callable[[range], None], range]], stop: threading.Event
) -> Iterator[None]:
    started = [threading.Thread(target=act, args=(numbers,)) for act, numbers in acts]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in started:
            thread.join()


def in_the_midst_of_anothers_transactions(stage: Stage) -> None:
    """A thread enqueues through its own connection of sqlite3; children do so without one."""
    jobs = stage.open()
    jobs.close()
    stop = threading.Event()

    def borrow(numbers: range) -> None:
        while not stop.is_set() and numbers:
            connection = sqlite3.connect(stage.path, timeout=20.0)
            _tell(stage.log, "asked", numbers[0])
            note.using(connection=connection).enqueue(stage.log, numbers[0])
            connection.commit()
            connection.close()
            _tell(stage.log, "got", numbers[0])
            numbers = numbers[1:]

    numbers = range(100_000, 101_000)
    with _threads([(borrow, numbers)], stop):
        _wait_for([_child(stage.log, _open_and_close, stage.path) for _ in range(6)])


def _open_and_close(path: Path) -> None:
    """A child of a process with an open connection of sqlite3 is refused, or is not."""
    with contextlib.suppress(LitejobsError), LiteJobs(path) as jobs:
        jobs.count()


def with_somebody_who_listens(stage: Stage) -> None:
    events: list[Event] = []
    jobs = stage.open()
    jobs.on("enqueued")(events.append)
    with jobs, _enqueueing(stage, 2):
        _wait_for([stage.child() for _ in range(4)])


def beside_a_node_in_threads(stage: Stage) -> None:
    jobs = stage.open()
    with jobs.start(threads=2) as pool:
        for _ in range(3):
            stage.ask()
            _wait_for([stage.child()])
        _wait_until_run(stage)
        pool.stop()
    jobs.close()


def beside_a_node_with_workers(stage: Stage) -> None:
    jobs = stage.open()
    with jobs.start(workers=1) as pool:
        for _ in range(3):
            stage.ask()
            _wait_for([stage.child()])
        _wait_until_run(stage)
        pool.stop()
    jobs.close()


def _wait_until_run(stage: Stage) -> None:
    while stage.jobs.count(state=("pending", "running")):
        time.sleep(0.005)


def jobs_that_fork(stage: Stage) -> None:
    hows = ["enqueue", "exit", "stay", "return"]
    stage.dice.shuffle(hows)
    with stage.open() as jobs:
        jobs.enqueue_many(
            fork_and.bind(how, stage.log, 1_000 * (1 + n)) for n, how in enumerate(hows)
        )
        jobs.work(workers=1, until="empty")
        jobs.work(threads=1, until="empty")  # What children enqueued when it had ended.


def jobs_that_fork_in_threads(stage: Stage) -> None:
    hows = ["enqueue", "exit", "stay", "return"]
    stage.dice.shuffle(hows)
    with stage.open() as jobs:
        jobs.enqueue_many(
            fork_and.bind(how, stage.log, 1_000 * (1 + n)) for n, how in enumerate(hows)
        )
        jobs.work(threads=2, until="empty")
        _wait_for_all()
        jobs.work(threads=1, until="empty")  # What children enqueued when it had ended.


def jobs_that_start_programs(stage: Stage) -> None:
    hows = ["plain", "inherit", "leave"]
    threads = stage.dice.random() < 0.7
    with stage.open() as jobs:
        jobs.enqueue_many(
            start_a_program.bind(how, stage.log, 1_000 * (1 + n)) for n, how in enumerate(hows)
        )
        if threads:
            jobs.work(threads=2, until="empty")
        else:
            jobs.work(workers=1, until="empty")


PROGRAMS: tuple[Callable[[Stage], None], ...] = (
    multiprocessing_fork,
    multiprocessing_forkserver,
    multiprocessing_spawn,
    forked_pool,
    workers_forked_before,
    orphans,
    in_the_midst_of_enqueues,
    in_the_midst_of_anothers_transactions,
    with_somebody_who_listens,
    beside_a_node_in_threads,
    beside_a_node_with_workers,
    jobs_that_fork,
    jobs_that_fork_in_threads,
    jobs_that_start_programs,
)
RUN_BY_NODES = {
    beside_a_node_in_threads,
    beside_a_node_with_workers,
    jobs_that_fork,
    jobs_that_fork_in_threads,
    jobs_that_start_programs,
}
"""After these, all that is in the file has been run."""


def forks(run: Run) -> None:
    """However a program forks: nothing is lost or doubled, nobody waits for ever."""
    if not hasattr(os, "fork"):
        run.counts["skipped (there are no forks here)"] += 1
        return
    start = run.dice.randrange(len(PROGRAMS))
    for number in range(run.count):
        folder = run.folder / str(number)
        folder.mkdir()
        _face(run, PROGRAMS[(start + number) % len(PROGRAMS)], folder)
        shutil.rmtree(folder, ignore_errors=True)


def _face(run: Run, program: Callable[[Stage], None], folder: Path) -> None:
    durability: Durability = run.dice.choice(["full", "fast"])
    dice = random.Random(run.dice.randrange(2**32))
    stage = Stage(folder / "jobs.db", str(folder / "log"), durability, dice)
    what = program.__name__.replace("_", " ")
    if not _play(program, stage):
        run.violated(f"{what}: hangs for {DEADLINE:.0f} s, after {_last_words(stage.log)}")
    run.counts["programs"] += 1
    said = [line.split(" ", 2) for line in Path(stage.log).read_text().splitlines()]
    for word, *rest in said:
        run.counts[word] += 1
        if word in ("broke", "refused"):
            run.violated(f"{what}: {word} {' '.join(rest)}".replace("|", "\n"))
    entries = {word: Counter(int(line[1]) for line in said if line[0] == word)
            for word in ("asked", "got", "ran")}  # fmt: skip
    _judge(run, what, stage.path, entries, program in RUN_BY_NODES)


def _last_words(log: str) -> str:
    lines = Path(log).read_text().splitlines() if os.path.exists(log) else []
    return "; ".join(lines[-5:]) or "nothing"


def _play(program: Callable[[Stage], None], stage: Stage) -> bool:
    """Whether a program ends in time, with all that it forked: then nobody has the end of
    the pipe any more that they inherited."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.setpgid(0, 0)
        os.close(reading)
        # What comes out of a job that has forked says so, and is meant to.
        os.dup2(
            os.open(f"{stage.log}-errors", os.O_WRONLY | os.O_CREAT, 0o600), sys.stderr.fileno()
        )
        with _ending(stage.log):
            program(stage)
            for process in multiprocessing.active_children():
                process.join()
    os.close(writing)
    ended, _, _ = select.select([reading], [], [], DEADLINE)
    os.close(reading)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return bool(ended)


def _judge(
    run: Run, what: str, path: Path, entries: dict[str, Counter[int]], all_run: bool
) -> None:
    """What is in the file is what was asked for, and all that was acknowledged."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        run.expect(connection.pragma("integrity_check") == "ok", f"{what}: the file is damaged")
        found = connection.execute("SELECT payload ->> '$.number', state, name FROM litejobs_job")
        rows = [(int(number), state, name) for number, state, name in found]
    notes = Counter(number for number, _, name in rows if name == "note")
    if lost := entries["got"] - notes:
        run.violated(
            f"{what}: {len(lost)} of {len(entries['got'])} acknowledged jobs are lost: {lost}"
        )
    if more := notes - entries["asked"]:
        run.violated(f"{what}: jobs are there more often than anybody asked for them: {more}")
    if all_run:
        late = [row for row in rows if row[1] != "completed"]
        run.expect(not late, f"{what}: jobs that a node should have completed are {late[:5]}")
        runs = Counter(number for number, _, _ in rows)
        if entries["ran"] != runs:
            less, twice = runs - entries["ran"], entries["ran"] - runs
            run.violated(f"{what}: jobs were run too often: {twice}, or not at all: {less}")


ORDEALS = (Ordeal(forks, quick=28, full=200 * len(PROGRAMS), unit="programs"),)
