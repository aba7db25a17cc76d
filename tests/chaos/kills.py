"""Kills and stops the processes of a queue at random, and then asks whether anything was lost.

Three producers, two nodes with two workers each, and a reader. The director kills any of them by
SIGKILL, one worker, one supervisor, a whole node, or all at once, and starts them again; others it
stops by SIGSTOP for longer than any timeout, as a laptop does that sleeps. After some hundred kills
a round ends: what is left has to be done by the nodes that live, and then by a last one, and the
diaries and the file are held against each other. Each round has a file of its own; in every other
one the producers' commits are synced.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import attrs

from litejobs import Durability

from . import actors, cast
from .actors import Actor
from .evidence import AT_ANY_TIME, IN_THE_END, Evidence, wrong
from .ordeal import Ordeal, Run

ROUND = 250
"""Kills with one file."""
LOOK = 20
"""Kills after which the diaries are looked at, although not all can be said yet."""
TIMEOUT = 60.0
"""Seconds until something that must happen counts as not happening, on a busy machine."""
NEWS = 1500
"""Bytes that are written into diaries between two deeds, at the most: so much goes on meanwhile,
however busy the machine is. It is about a tenth of a second on one that is not."""
LULL = 1.5
"""Seconds to wait for that, and for one who can be killed; then it is another one's turn."""
CLUMSY = 3
"""So many workers that are killed while they start make a node give up, as it says it does."""
ENDED = (0, -signal.SIGTERM)
"""How one ends that was asked to: before it handles signals, too."""
READER, PRODUCERS = "reader", ("producer 1", "producer 2", "producer 3")


@attrs.define(eq=False)
class Director:
    """Has all the others play, and decides who dies."""

    run: Run
    folder: Path
    durability: Durability
    actors: dict[str, Actor] = attrs.field(factory=dict)
    ended: dict[int, int] = attrs.field(factory=dict)
    """The supervisors that were killed, or asked to stop, and when, by the monotonic clock."""
    killed: set[int] = attrs.field(factory=set)
    """The workers that were."""
    halted: set[int] = attrs.field(factory=set)
    """The workers that were stopped for a while."""
    _enter_at: dict[str, float] = attrs.field(factory=dict)
    """When a role is to be played again."""
    _stopped: list[tuple[float, int]] = attrs.field(factory=list)
    """When to let which processes go on, by descriptors of them."""
    _grown: set[int] = attrs.field(factory=set)
    """The workers that have begun a job, so that their supervisor knows that they could start."""
    _clumsy: dict[int, list[int]] = attrs.field(factory=dict)
    """When workers of a node were killed while they started, one after the other."""

    # Who plays

    def enter_all(self) -> None:
        """Starts those who are missing, if their time has come."""
        for role in (*cast.NODES, READER, *PRODUCERS):
            if role not in self.actors and time.monotonic() >= self._enter_at.get(role, 0):
                self.actors[role] = actors.start(self.folder, role, self._act(role))

    def _act(self, role: str) -> Callable[[], None]:
        if role in cast.NODES:
            return functools.partial(cast.work, self.folder, role)
        seed = self.run.dice.getrandbits(32)
        if role == READER:
            return functools.partial(cast.read, self.folder, seed)
        return functools.partial(cast.produce, self.folder, seed, self.durability)

    def has_begun(self) -> bool:
        """Whether a worker is there."""
        return any(self.folder.glob("worker-*"))

    def watch(self) -> None:
        """Sees who has ended without having been killed."""
        for role, actor in list(self.actors.items()):
            if actor.exit_code is None:
                continue
            asked = actor.pid in self.ended and actor.exit_code in ENDED
            falls = self._clumsy.get(actor.pid, [])
            weary = len(falls) >= CLUMSY and "WorkerError" in actor.complaint
            if not asked and not weary:
                self.run.violated(
                    f"{role} ended by itself with {actor.exit_code}: {actor.complaint}"
                )
            if weary:
                self.ended.setdefault(actor.pid, falls[CLUMSY - 1])
            self._leave(role, after=0)

    def _leave(self, role: str, after: float) -> None:
        actor = self.actors.pop(role)
        self.ended.setdefault(actor.pid, time.monotonic_ns())
        self._enter_at[role] = time.monotonic() + after

    # Who is killed

    def do_something(self) -> None:
        """Kills somebody, mostly; stops somebody, or asks a node to end, now and then. On a busy
        machine it takes its time, so that those who start get as far as elsewhere."""
        deeds: tuple[tuple[Callable[[], bool], float], ...] = (
            (self._kill_a_producer, 38), (self._kill_the_reader, 10), (self._kill_a_worker, 32),
            (self._kill_a_young_worker, 2), (self._kill_a_supervisor, 6), (self._kill_a_node, 3),
            (self._kill_all, 0.7), (self._stop_somebody, 16), (self._end_a_node, 1),
        )  # fmt: skip
        chances = [chance for _, chance in deeds]
        done = False
        while not done:
            deed = self.run.dice.choices([deed for deed, _ in deeds], chances)[0]
            done = actors.eventually(functools.partial(self._tend_and, deed), LULL)

    def tend(self) -> None:
        """Sees who has ended, lets those go on who were stopped, and starts who is missing."""
        self.watch()
        self.wake(time.monotonic())
        self.enter_all()

    def let_them_play(self) -> None:
        """Waits until some things have happened."""
        before = self._written()
        wanted = self.run.dice.randrange(NEWS)

        def enough() -> bool:
            self.tend()
            return self._written() - before >= wanted

        actors.eventually(enough, LULL)

    def _written(self) -> int:
        """The bytes in all diaries."""
        found = os.scandir(self.folder)
        return sum(place.stat().st_size for place in found if place.name.endswith(".diary"))

    def _tend_and(self, deed: Callable[[], bool]) -> bool:
        self.tend()
        return deed()

    def _count(self, what: str) -> bool:
        self.run.counts["kills"] += 1
        self.run.counts[what] += 1
        return True

    def _kill(self, role: str, after: float = 0.0) -> None:
        # Who was asked to end may have given back its jobs before.
        self.ended.setdefault(self.actors[role].pid, time.monotonic_ns())
        self.actors[role].kill()
        self._leave(role, after)

    def _kill_a_producer(self) -> bool:
        role = self.run.dice.choice(PRODUCERS)
        if role not in self.actors:
            return False
        self._kill(role)
        return self._count("of a producer")

    def _kill_the_reader(self) -> bool:
        if READER not in self.actors:
            return False
        self._kill(READER)
        return self._count("of a reader")

    def _a_node(self) -> str | None:
        """One that is at work; seldom, one that starts."""
        here = [role for role in cast.NODES if role in self.actors]
        if not here:
            return None
        role = self.run.dice.choice(here)
        busy = any(map(self._is_grown, actors.workers(self.actors[role].pid)))
        return role if busy or self.run.dice.random() < 0.02 else None

    def _a_node_to_end(self) -> str | None:
        """One that is at work; while somebody sleeps, seldom: so that the nodes that are awake
        have the time to take another for dead, if they would."""
        rested = not self._stopped or self.run.dice.random() < 0.2
        return self._a_node() if rested else None

    def _kill_a_supervisor(self) -> bool:
        if (role := self._a_node_to_end()) is None:
            return False
        self._kill(role, after=self.run.dice.uniform(0, 0.6))
        return self._count("of a supervisor")

    def _kill_a_node(self) -> bool:
        """The supervisor and its workers, in whatever order."""
        if (role := self._a_node_to_end()) is None:
            return False
        self._kill_with_workers(role)
        return self._count("of a whole node")

    def _kill_with_workers(self, role: str) -> None:
        node = self.actors[role].pid
        dice = self.run.dice
        workers = self._workers_of(node)
        before = dice.randint(0, len(workers))
        for pid, held in workers[:before]:
            self._kill_worker(pid, held)
        self._kill(role, after=dice.uniform(0, 0.6))
        for pid, held in workers[before:]:
            self._kill_worker(pid, held)
        for _, held in workers:
            os.close(held)

    def _kill_worker(self, pid: int, held: int) -> None:
        self.killed.add(pid)
        self._send(held, signal.SIGKILL)

    def _kill_all(self) -> bool:
        if self._stopped:
            return False
        for role in self.run.dice.sample(list(self.actors), len(self.actors)):
            if role in cast.NODES:
                self._kill_with_workers(role)
            else:
                self._kill(role)
        return self._count("of all at once")

    def _kill_a_worker(self) -> bool:
        return self._kill_one(grown=True) and self._count("of a worker")

    def _kill_a_young_worker(self) -> bool:
        """One that starts."""
        return self._kill_one(grown=False) and self._count("of a starting worker")

    def _kill_one(self, grown: bool) -> bool:
        if (role := self._a_node()) is None:
            return False
        node = self.actors[role].pid
        found = self._workers_of(node)
        fitting = [(pid, held) for pid, held in found if self._is_grown(pid) == grown]
        began = time.monotonic_ns()
        if fitting:
            self._kill_worker(*self.run.dice.choice(fitting))
            self._clumsy[node] = [] if grown else [*self._clumsy.get(node, []), began]
        for _, held in found:
            os.close(held)
        return bool(fitting)

    def _workers_of(self, node: int) -> list[tuple[int, int]]:
        """Their process ids, with descriptors by which nobody else can be meant."""
        found = []
        for pid in actors.workers(node):
            with contextlib.suppress(ProcessLookupError):
                held = os.pidfd_open(pid)
                # Now the number cannot pass to another process unseen.
                if pid in actors.workers(node):
                    found.append((pid, held))
                else:
                    os.close(held)
        return found

    def _is_grown(self, worker: int) -> bool:
        if worker not in self._grown:
            places = self.folder.glob(f"worker-{worker}-*.diary")
            if any("begin" in place.read_text() for place in places):
                self._grown.add(worker)
        return worker in self._grown

    def _send(self, held: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(held, number)

    # Who is stopped

    def _end_a_node(self) -> bool:
        """As a service is ended: in time, or at once."""
        if (role := self._a_node_to_end()) is None:
            return False
        actor = self.actors[role]
        self.ended.setdefault(actor.pid, time.monotonic_ns())
        for _ in range(self.run.dice.choice((1, 2))):
            actor.signal(signal.SIGTERM)
        self.run.counts["nodes asked to end"] += 1
        return True

    def _stop_somebody(self) -> bool:
        """One process, or a whole node: for longer than any timeout, mostly."""
        dice = self.run.dice
        role = (self._a_node() if dice.random() < 0.7 else None) or dice.choice([*self.actors])
        actor = self.actors[role]
        held = [os.pidfd_open(actor.pid)] if actor.exit_code is None else []
        if role in cast.NODES:
            found = self._workers_of(actor.pid)
            workers = [worker for _, worker in found]
            chosen = dice.choice((held, workers, held + workers))
            for unwanted in {*held, *workers} - {*chosen}:
                os.close(unwanted)
            self.halted |= {pid for pid, worker in found if worker in chosen}
            held = chosen
        until = time.monotonic() + dice.choice((0.2, 3, 3))
        for one in held:
            self._send(one, signal.SIGSTOP)
            self._stopped.append((until, one))
        self.run.counts["stops"] += 1
        return True

    def wake(self, until: float) -> None:
        """Lets those go on whose time has come."""
        waiting = []
        for when, held in self._stopped:
            if when > until:
                waiting.append((when, held))
                continue
            self._send(held, signal.SIGCONT)
            os.close(held)
        self._stopped = waiting

    # The end

    def evidence(self) -> Evidence:
        """What there is by now."""
        return Evidence(self.folder, self.ended, frozenset(self.killed), frozenset(self.halted))

    def stop(self, *roles: str) -> None:
        """Asks those who play to stop, and sees that they do."""
        here = [(role, self.actors[role]) for role in roles if role in self.actors]
        for _, actor in here:
            self.ended.setdefault(actor.pid, time.monotonic_ns())
            actor.signal(signal.SIGTERM)
        for role, actor in here:
            self.run.expect(actor.ended(TIMEOUT), f"{role} does not stop: {actor.complaint}")
            self.run.expect(actor.exit_code in ENDED, f"{role} failed: {actor.complaint}")
            del self.actors[role]

    def close(self) -> None:
        """Leaves nobody behind."""
        for actor in self.actors.values():
            actor.kill()
        self.wake(until=float("inf"))


def kills(run: Run) -> None:
    """SIGKILL and SIGSTOP of anybody at any time: nothing lost, doubled or run side by side."""
    if not actors.AVAILABLE:
        run.counts["times skipped, for want of Linux"] += 1
        return
    number = 0
    while (left := run.count - run.counts["kills"]) > 0:
        folder = run.folder / f"round-{number}"
        folder.mkdir()
        play(run, Director(run, folder, ("fast", "full")[number % 2]), min(left, ROUND))
        number += 1
    run.counts["rounds"] = number


def play(run: Run, director: Director, number: int) -> None:
    """One round."""
    cast.prepare(director.folder)
    end = run.counts["kills"] + number
    try:
        director.enter_all()
        run.expect(actors.eventually(director.has_begun, TIMEOUT), "no worker begins")
        look_at = run.counts["kills"] + LOOK
        while run.counts["kills"] < end:
            director.do_something()
            director.let_them_play()
            if run.counts["kills"] >= look_at:
                complain(run, wrong(director.evidence(), AT_ANY_TIME))
                look_at += LOOK
        bring_to_an_end(run, director)
    finally:
        director.close()
    judge(run, director)


def bring_to_an_end(run: Run, director: Director) -> None:
    """Those who live do what is left; then a last node has nothing to do, or does it."""
    director.wake(until=float("inf"))
    missing = functools.partial(_all_are_there, director)
    run.expect(actors.eventually(missing, TIMEOUT), "not all can be started any more")
    director.stop(READER, *PRODUCERS)
    done = functools.partial(_nothing_left, director)
    if not actors.eventually(done, TIMEOUT):
        run.violated(f"two nodes live, and this is not done: {'; '.join(_left(director.folder))}")
    director.stop(*cast.NODES)
    last = actors.start(director.folder, "last", functools.partial(cast.finish, director.folder))
    try:
        run.expect(last.ended(TIMEOUT), f"what is left is not done: {last.complaint}")
        run.expect(last.exit_code == 0, f"the last node failed: {last.complaint}")
    finally:
        last.kill()


def _all_are_there(director: Director) -> bool:
    """Also those that were asked to end, and will begin anew."""
    director.tend()
    asked = any(actor.pid in director.ended for actor in director.actors.values())
    return len(director.actors) == 1 + len(cast.NODES) + len(PRODUCERS) and not asked


def _nothing_left(director: Director) -> bool:
    director.watch()
    return not any(_left(director.folder))


def _left(folder: Path) -> Iterator[str]:
    """The jobs that have not ended, the schedule's apart."""
    sql = """
        SELECT state, name, queue, node, count(*), min(id) FROM litejobs_job
        WHERE state NOT IN ('completed', 'failed', 'cancelled') AND schedule IS NULL
        GROUP BY 1, 2, 3, 4
    """
    with contextlib.closing(apsw.Connection(str(folder / "jobs.db"))) as connection:
        for state, name, queue, node, number, id in connection.execute(sql).fetchall():
            place = f"queue {queue!r}, for node {node!r}" if node else f"queue {queue!r}"
            yield f"{number} {state} jobs of {name} in {place}, such as {id}"


def judge(run: Run, director: Director) -> None:
    """Holds the diaries and the file against each other."""
    evidence = director.evidence()
    found = wrong(evidence, IN_THE_END)
    with cast.queue_in(director.folder) as jobs:
        found += [f"{f.subject}: {f.problem}" for f in jobs.doctor() if f.level == "error"]
    with contextlib.closing(apsw.Connection(str(director.folder / "jobs.db"))) as connection:
        if (verdict := connection.pragma("integrity_check")) != "ok":
            found.append(f"integrity_check says: {verdict}")
    complain(run, found)
    executions = [one for them in evidence.executions.values() for one in them]
    run.counts["acknowledged"] += len(evidence.acknowledged)
    run.counts["attempts"] += len(executions)
    run.counts["interrupted"] += sum(not one.how for one in executions)
    for kind in ("crash", "lost", "timeout"):
        run.counts[f"charged as {kind}"] += sum(c.kind == kind for c in evidence.charges)


def complain(run: Run, found: list[str]) -> None:
    """Reports the first of what is wrong, if anything is."""
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        run.violated(f"{'; '.join(found[:3])}{more}")


ORDEALS = (Ordeal(run=kills, quick=16, full=5000, unit="kills"),)
