"""Whatever is done to the file while it is open, no job is acknowledged that nobody will find.

For each change of the file, and each kind of process that sees it, at a random moment: what was
acknowledged before is where the file is then; the first call that begins afterwards is refused, in
words that name the file; and what is acknowledged later is in the file that bears the name.

What cannot be noticed: a file that is written over in place, as `cp` does it, keeps its identity.
SQLite may find it damaged, or not; "unnoticed" counts how often a job was acknowledged after that.
The same goes for one that is emptied in the moment in which SQLite writes the WAL back into it.
And who opens a file for the first time cannot know that the WAL beside it is another file's; those
who had it open do. So a copy is put back while nothing has the file open, together with the
removal of its `-wal` and `-shm`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import shutil
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import apsw
import attrs

import litejobs
from litejobs import (
    Claimed,
    Durability,
    File,
    LiteJobs,
    LitejobsError,
    Ready,
    Report,
    Settlement,
    Store,
    Subscription,
    system_clock,
)

from .ordeal import Ordeal, Run

DEADLINE = 20.0
"""Seconds within which a process has to answer; else it hangs."""
SOON = 3.0
"""Seconds within which a node has to end that has nothing to do."""
BURST = 2_000
"""Calls after which a burst ends by itself."""
AFTERWARDS = 3
"""Calls that each process makes after the change."""
WAITING = 20
"""Jobs that wait in the file at first, for those who run them."""


class Call(NamedTuple):
    """Something that litejobs was asked to acknowledge, and what it said."""

    began: float
    ended: float
    marks: frozenset[str]
    """What has to be in the file then: "5", a job; "5 completed", one that was settled."""
    error: str = ""
    """Empty: it was acknowledged."""
    ours: bool = True
    """Whether the error is one of litejobs' own."""


@attrs.define(eq=False)
class Scene:
    """The file, what lies beside it, and how it is used."""

    path: Path
    durability: Durability
    payload: str
    """Of each job: with long ones a checkpoint comes soon."""
    before: int
    """Jobs that each process enqueues before the change."""
    burst: float | None
    """Seconds after which the change comes in the middle of a burst; `None`: it is quiet then."""
    choice: int
    """Of what is done in the process itself."""

    def beside(self, name: str) -> Path:
        return self.path.with_name(name)

    @property
    def wal(self) -> Path:
        return self.beside(f"{self.path.name}-wal")

    @property
    def shm(self) -> Path:
        return self.beside(f"{self.path.name}-shm")

    @property
    def moved(self) -> Path:
        """Where the file is after it was moved."""
        here = self.beside("moved.db")
        return here if here.exists() else self.path.parent.with_name("moved") / self.path.name


# What is done to the file


def removed(scene: Scene) -> None:
    scene.path.unlink()


def removed_with_all(scene: Scene) -> None:
    for each in (scene.path, scene.wal, scene.shm):
        each.unlink(missing_ok=True)


def moved_away(scene: Scene) -> None:
    # The WAL gets the moved file's name, too: for who looks into that one.
    os.link(scene.wal, scene.beside("moved.db-wal"))
    scene.path.rename(scene.beside("moved.db"))


def moved_with_its_folder(scene: Scene) -> None:
    scene.path.parent.rename(scene.path.parent.with_name("moved"))


def replaced(scene: Scene) -> None:
    scene.beside("other.db").replace(scene.path)


def replaced_with_all(scene: Scene) -> None:
    for each in (scene.wal, scene.shm):
        each.unlink(missing_ok=True)
    scene.beside("other.db").replace(scene.path)


def restored_by_a_rename(scene: Scene) -> None:
    for each in (scene.wal, scene.shm):
        each.unlink(missing_ok=True)
    scene.beside("copy.db").replace(scene.path)


def restored_in_place(scene: Scene) -> None:
    shutil.copyfile(scene.beside("copy.db"), scene.path)


def replaced_by_a_folder(scene: Scene) -> None:
    while not scene.path.is_dir():
        scene.path.unlink(missing_ok=True)
        with contextlib.suppress(FileExistsError):  # Somebody has just made a new file.
            scene.path.mkdir()


def emptied(scene: Scene) -> None:
    os.truncate(scene.path, 0)


def wal_removed(scene: Scene) -> None:
    scene.wal.unlink()


def shm_removed(scene: Scene) -> None:
    scene.shm.unlink()


def wal_and_shm_removed(scene: Scene) -> None:
    scene.wal.unlink()
    scene.shm.unlink()


def linked(scene: Scene) -> None:
    os.link(scene.path, scene.beside("second-name.db"))


def named_by_a_symbolic_link(scene: Scene) -> None:
    """Through the folder's it is the same file; through its own it is refused."""
    scene.beside("link.db").symlink_to(scene.path)
    folder = scene.path.parent.with_name("link")
    folder.symlink_to(scene.path.parent)
    for name in (scene.beside("link.db"), folder / scene.path.name):
        with contextlib.suppress(LitejobsError), LiteJobs(name) as jobs:
            jobs.define(name="note")(_note).enqueue(0, "through a link")


def opened_by_sqlite3(scene: Scene) -> None:
    with contextlib.closing(sqlite3.connect(scene.path)) as connection:
        if scene.choice % 3:
            connection.execute("SELECT count(*) FROM litejobs_job").fetchall()
        if scene.choice % 3 == 2:
            connection.execute("CREATE TABLE IF NOT EXISTS customer (name TEXT)")
            connection.commit()


def read_by_the_program(scene: Scene) -> None:
    """As a program does that copies its own files."""
    for each in (scene.path, scene.wal, scene.shm)[: 1 + scene.choice % 3]:
        with contextlib.suppress(FileNotFoundError):
            each.read_bytes()


@attrs.frozen
class Change:
    """Something that is done to the file, and what becomes of it."""

    act: Callable[[Scene], None]
    kept: Literal["there", "moved", "gone", "lost"]
    """Where the jobs are afterwards that had been acknowledged before. "lost": what was only in the
    WAL is lost with it, and all others are refused as long as one has the file open."""
    noticed: Literal["once", "always", "maybe"] = "once"
    """How often each who had the file open has to be refused. "maybe": nothing need be lost."""
    inside: bool = False
    """Whether the process does it that has the file open."""
    hopeless: bool = False
    """Whether the file may be damaged for who opens it now, and nobody can know."""

    @property
    def name(self) -> str:
        return self.act.__name__.replace("_", " ")


CHANGES = (
    Change(removed, "gone"),
    Change(removed_with_all, "gone"),
    Change(moved_away, "moved"),
    Change(moved_with_its_folder, "moved"),
    Change(replaced, "gone", hopeless=True),
    Change(replaced_with_all, "gone"),
    Change(restored_by_a_rename, "gone"),
    Change(restored_in_place, "gone", "maybe", hopeless=True),
    Change(replaced_by_a_folder, "gone", "always"),
    Change(emptied, "gone"),
    Change(wal_removed, "lost"),
    Change(shm_removed, "there"),
    Change(wal_and_shm_removed, "lost"),
    Change(linked, "there", "always"),
    Change(named_by_a_symbolic_link, "there", "maybe"),
    Change(opened_by_sqlite3, "there", "maybe", inside=True),
    Change(read_by_the_program, "there", "maybe", inside=True),
)
WITNESSES = ("alone", "with another", "with a settler", "with a node", "with a newcomer")


def files(run: Run) -> None:
    """A file that is removed, moved, replaced or opened otherwise: noticed before the next job."""
    if not hasattr(os, "pidfd_open"):
        run.counts["skipped (this needs Linux)"] += 1
        return
    litejobs.BUSY_TIMEOUT = 1.0  # Who has emptied the file has not taken the locks on it away.
    litejobs.POLL_INTERVAL = (
        0.05  # So that nobody waits half a second for a node that has nothing to do.
    )
    template = run.folder / "template"
    template.mkdir()
    with _process(lambda line: _fill(template, line)) as line:
        line.recv()
    cases = list(itertools.product(CHANGES, WITNESSES))
    start = run.dice.randrange(len(cases))
    for number in range(run.count):
        change, company = cases[(start + number) % len(cases)]
        folder = run.folder / str(number) / "queue"
        shutil.copytree(template, folder)
        case = _Case(run, _scene(run, folder), change, company)
        try:
            case.play()
        except (apsw.Error, OSError) as error:
            case.violated("".join(traceback.format_exception(error)))
        shutil.rmtree(folder.parent)


def _scene(run: Run, folder: Path) -> Scene:
    dice = run.dice
    long = dice.random() < 0.2
    return Scene(
        folder / "jobs.db",
        durability=dice.choice(["full", "fast"]),
        payload="x" * (20_000 if long else 10),
        before=dice.randrange(1, 220 if long else 30),
        burst=dice.uniform(0, 0.01) if dice.random() < 0.6 else None,
        choice=dice.randrange(2**30),
    )


def _fill(template: Path, line: Connection) -> None:
    """Makes a queue in which jobs wait, and another one, in which the same jobs are run by
    somebody who is not here."""
    for name in ("jobs.db", "other.db"):
        with LiteJobs(template / name, durability="fast") as jobs:
            note = jobs.define(name="note")(_note)
            jobs.enqueue_many(note.bind(-1 - n, name) for n in range(WAITING))
            if name == "other.db":
                taken = "UPDATE litejobs_job SET state = 'running', claim = 1, holder = 99"
                with jobs.store.file.transaction() as tx:
                    tx.execute(taken)


def _note(n: int, text: str) -> None:
    """What all jobs do: it takes a moment, so that some are in hand when the change comes."""
    time.sleep(0.002)


@attrs.define(eq=False)
class _Case:
    """A change, and those who see it."""

    run: Run
    scene: Scene
    change: Change
    company: str

    def play(self) -> None:
        with contextlib.ExitStack() as ending:
            began, ended, seen_by_each = self._run(ending)
        self.run.counts["changes"] += 1
        for calls in seen_by_each:
            self.run.counts["calls"] += len(calls)
            self.run.counts["refused"] += sum(bool(call.error) for call in calls)
            self._judge_words(calls)
        seen = seen_by_each[:-1] if self.company == "with a newcomer" else seen_by_each
        for calls in seen:
            self._judge_notice(calls, ended)
            self._judge_recovery(calls)
        self._judge_kept(seen, began, ended)
        self._judge_later(seen_by_each, ended)

    def _run(self, ending: contextlib.ExitStack) -> tuple[float, float, list[list[Call]]]:
        """When the change began and ended, and what each process saw."""
        lines = [ending.enter_context(_process(act)) for act in self._acts()]
        for line in lines:
            self._receive(line)
        _back_up(self.scene)
        for line in lines:
            line.send("go")
        if self.scene.burst is not None:
            time.sleep(self.scene.burst)
        began = time.monotonic()
        if self.change.inside:
            lines[0].send("change")
            self._receive(lines[0])
        else:
            self.change.act(self.scene)
        ended = time.monotonic()
        seen_by_each = []
        if self.company == "with a newcomer":
            newcomer = ending.enter_context(_process(lambda line: _come(self.scene, line)))
            seen_by_each = [self._receive(newcomer)]
            lines.append(newcomer)
        for line in lines[: len(lines) - len(seen_by_each)]:
            line.send("changed")
        others = lines[: len(lines) - len(seen_by_each)]
        seen_by_each = [self._receive(line) for line in others] + seen_by_each
        for line in self.run.dice.sample(lines, len(lines)):
            line.send("close")
            self._receive(line)
        return began, ended, seen_by_each

    def _acts(self) -> list[Callable[[Connection], None]]:
        scene, change = self.scene, self.change
        acts: list[Callable[[Connection], None]] = [lambda line: _produce(scene, change, 0, line)]
        if self.company == "with another":
            acts.append(lambda line: _produce(scene, change, 1, line))
        elif self.company == "with a settler":
            acts.append(lambda line: _settle(scene, line))
        elif self.company == "with a node":
            acts.append(lambda line: _work(scene, change, line))
        return acts

    def _receive(self, line: Connection) -> Any:
        if not line.poll(DEADLINE):
            self.violated(f"a process hangs that has the file open, {DEADLINE:.0f} s")
        try:
            said = line.recv()
        except EOFError:
            self.violated("a process died that has the file open")
        if isinstance(said, str) and said.startswith("Traceback"):
            self.violated(f"an error that is not one of litejobs': {said}")
        return said

    def _judge_words(self, calls: Sequence[Call]) -> None:
        for call in calls:
            if not call.ours or (call.error and self.scene.path.name not in call.error):
                self.violated(f"an error that does not name the file: {call.error}")

    def _judge_notice(self, calls: Sequence[Call], changed: float) -> None:
        """Who had the file open is refused, at the first call that begins after the change."""
        later = [call for call in calls if call.began > changed]
        sooner = [call for call in calls if call.began <= changed]
        blind = [call for call in later if not call.error]
        if self.change.noticed == "maybe" or self._may_be_filled_again():
            self.run.counts["unnoticed"] += bool(blind) and self.change.hopeless
            return
        if any(call.error for call in sooner) and self.change.noticed == "once":
            return  # It was noticed in the middle of a call.
        if (blind and self.change.noticed == "always") or (later and not later[0].error):
            self.violated("acknowledged after the change, as if nothing had been")

    def _judge_recovery(self, calls: Sequence[Call]) -> None:
        """Who was refused is served again, by the file that has the name then."""
        if self.change.noticed != "once" or not self.scene.path.parent.is_dir():
            return
        if self.change.kept == "lost":
            return
        if self.change.hopeless or self._may_be_filled_again():
            return
        if len(calls) < AFTERWARDS or not calls[-1].error:
            return
        if any(call.error for call in calls[:-1]):
            self.violated(f"refused again and again: {calls[-1].error}")

    def _may_be_filled_again(self) -> bool:
        """Whether SQLite may have written to a file that was emptied before anybody looked."""
        return self.change.act is emptied and len(self.scene.payload) > 1_000

    def _judge_kept(
        self, seen_by_each: Sequence[Sequence[Call]], began: float, ended: float
    ) -> None:
        """What was acknowledged before the change, and during it, is where the file is."""
        if self.change.kept in ("gone", "lost"):
            return
        sooner: set[str] = set()
        for calls in seen_by_each:
            sound = itertools.takewhile(lambda call: not call.error, calls)
            sooner.update(n for call in sound if call.began <= ended for n in call.marks)
        place = self.scene.path if self.change.kept == "there" else self.scene.moved
        self._expect(sooner, place, "acknowledged before the change")

    def _judge_later(self, seen_by_each: Sequence[Sequence[Call]], ended: float) -> None:
        """What was acknowledged after the change is in the file of that name, and what another
        file says of its own jobs stays."""
        blind = self.change.noticed == "maybe" or self.company == "with a newcomer"
        if (self.change.hopeless and blind) or self._may_be_filled_again():
            return
        calls = [call for calls in seen_by_each for call in calls if call.began > ended]
        marks = frozenset().union(*(call.marks for call in calls))
        self._expect(marks, self.scene.path, "acknowledged after the change")
        if self.change.act in (replaced, replaced_with_all):
            running = sum(mark.endswith(" running") for mark in _marks_in(self.scene.path))
            if running != WAITING:
                self.violated(f"{WAITING - running} jobs of the other file were settled")

    def _expect(self, marks: Set[str], place: Path, what: str) -> None:
        self.run.counts["acknowledged"] += len(marks)
        if not marks:
            return
        if not place.is_file():
            self.violated(f"{len(marks)} jobs {what} are lost: there is no {place.name}")
        try:
            lost = marks - _marks_in(place)
        except apsw.Error as error:
            if self.change.kept == "lost":  # SQLite was moving the WAL's content into the file.
                self.run.counts["damaged"] += 1
                return
            self.violated(f"{len(marks)} jobs {what}, and {place.name} cannot be read: {error}")
        if lost:
            some = ", ".join(sorted(lost)[:5])
            self.violated(f"{len(lost)} of {len(marks)} jobs {what} are lost: {some} …")

    def violated(self, what: str) -> NoReturn:
        scene = self.scene
        moment = "in a quiet moment" if scene.burst is None else f"{scene.burst:.4f} s into a burst"
        jobs = f"{scene.before} jobs of {len(scene.payload):,} characters before"
        where = f"{self.change.name}, {self.company}, durability {scene.durability}, {jobs}"
        self.run.violated(f"{where}, {moment}: {what}")


def _back_up(scene: Scene) -> None:
    """A copy of the file, as of before the change."""
    with contextlib.closing(apsw.Connection(str(scene.path))) as connection:
        connection.execute("VACUUM INTO ?", (str(scene.beside("copy.db")),))


def _marks_in(place: Path) -> frozenset[str]:
    """What there is of jobs in a file that is sound: their numbers, alone and with the state."""
    with contextlib.closing(apsw.Connection(str(place))) as connection:
        if (verdict := connection.pragma("integrity_check")) != "ok":
            raise apsw.CorruptError(str(verdict)[:200])
        rows = connection.execute("SELECT payload ->> '$.n', state FROM litejobs_job").fetchall()
    return frozenset(mark for n, state in rows for mark in (str(n), f"{n} {state}"))


# The processes that see the change


@contextlib.contextmanager
def _process(act: Callable[[Connection], None]) -> Iterator[Connection]:
    """A forked process that acts; it ends when the block does."""
    here, there = Pipe()
    if (child := os.fork()) == 0:
        here.close()
        try:
            logging.disable()
            act(there)
            there.send("closed")
        except EOFError:
            pass  # The parent has given up.
        except BaseException:
            with contextlib.suppress(OSError):
                there.send(traceback.format_exc())
        finally:
            os._exit(0)
    there.close()
    try:
        yield here
    finally:
        here.close()
        _see_out(child)


def _see_out(child: int) -> None:
    descriptor = os.pidfd_open(child)
    ended, _, _ = select.select([descriptor], [], [], 0.5)
    os.close(descriptor)
    if not ended:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _call(act: Callable[[], object], *marks: str) -> Call:
    began = time.monotonic()
    try:
        act()
    except Exception as error:
        ours = isinstance(error, LitejobsError)
        said = str(error) if ours else "".join(traceback.format_exception(error))
        return Call(began, time.monotonic(), frozenset(), f"{type(error).__name__}: {said}", ours)
    return Call(began, time.monotonic(), frozenset(marks))


def _produce(scene: Scene, change: Change, which: int, line: Connection) -> None:
    """Enqueues before, perhaps during, and after the change."""
    with LiteJobs(scene.path, durability=scene.durability) as jobs:
        note = jobs.define(name="note")(_note)
        numbers = itertools.count(1_000_000 * (1 + which))

        def enqueue() -> Call:
            n = next(numbers)
            return _call(partial(note.enqueue, n, scene.payload), str(n))

        calls = [enqueue() for _ in range(scene.before)]
        line.send("open")
        line.recv()
        calls += _until_changed(scene, change, enqueue, line)
        calls += [enqueue() for _ in range(AFTERWARDS)]
        line.send(calls)
        line.recv()


def _until_changed(
    scene: Scene, change: Change, act: Callable[[], Call], line: Connection
) -> list[Call]:
    """Goes on, if this is a burst, until the change is over; does it, if it is asked to."""
    calls: list[Call] = []
    while True:
        while scene.burst is not None and len(calls) < BURST and not line.poll():
            calls.append(act())
        if line.recv() == "changed":
            return calls
        changing = threading.Thread(target=_change, args=(scene, change))
        changing.start()
        while scene.burst is not None and changing.is_alive():
            calls.append(act())
        changing.join()
        line.send("done")


def _change(scene: Scene, change: Change) -> None:
    with contextlib.suppress(LitejobsError, sqlite3.Error):
        change.act(scene)


def _come(scene: Scene, line: Connection) -> None:
    """Opens the file for the first time, now."""
    with LiteJobs(scene.path, durability=scene.durability) as jobs:
        note = jobs.define(name="note")(_note)
        numbers = range(9_000_000, 9_000_000 + AFTERWARDS)
        calls = [_call(partial(note.enqueue, n, scene.payload), str(n)) for n in numbers]
        line.send(calls)
        line.recv()


def _settle(scene: Scene, line: Connection) -> None:
    """Claims and settles jobs one by one, as a node does, until it is refused."""
    store = Store(File(scene.path, "fast"))
    subscription = Subscription(frozenset({"note"}), None, "settler")
    node = store.nodes.join("settler", 0, 1, subscription, [])
    held: list[Claimed] = []

    def exchange() -> Call:
        settlements = [_completed(claimed) for claimed in held]
        marks = [f"{json.loads(claimed.payload)['n']} completed" for claimed in held]

        def act() -> None:
            held[:] = store.exchange(settlements, node, _first, subscription).claimed

        return _call(act, *marks)

    calls = [exchange() for _ in range(5)]
    line.send("open")
    line.recv()
    while not line.poll() and not calls[-1].error:
        calls.append(exchange())
    line.recv()
    while not calls[-1].error and len(calls) < BURST + AFTERWARDS:
        calls.append(exchange())
    line.send(calls)
    line.recv()
    store.nodes.release_lock(node)
    store.file.close()


def _first(ready: Ready) -> list[int]:
    return [id for id, _ in itertools.islice(ready, 1)]


def _completed(claimed: Claimed) -> Settlement:
    now = system_clock()
    return claimed, Report(now, now)


def _work(scene: Scene, change: Change, line: Connection) -> None:
    """A node, which may have nothing to do any more when the change comes."""
    with LiteJobs(scene.path, durability=scene.durability) as jobs:
        jobs.define(name="note")(_note)
        pool = jobs.start(threads=1)
        pool.__enter__()
        line.send("open")
        line.recv()
        line.recv()
        must_end = change.noticed == "once"
        call = _call(partial(pool.wait, SOON if must_end else 0.0))
        line.send([call] if call.error or must_end else [])
        line.recv()
        with contextlib.suppress(LitejobsError):
            pool.__exit__(None, None, None)


ORDEALS = (
    Ordeal(
        files,
        quick=len(CHANGES) * len(WITNESSES),
        full=100 * len(CHANGES) * len(WITNESSES),
        unit="changes",
    ),
)
