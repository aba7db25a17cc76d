"""What diaries and the file say after processes were killed, and what of it may not be.

An *execution* is one line "begin" with the line "end" that follows it, if the handler got so far.
Each check gives what is wrong, in words.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import attrs

from . import actors, cast

LOST_LIMIT = 5
"""How many nodes may die with a job before it is given up."""
CLOCK_TOLERANCE = 500_000_000
"""Nanoseconds by which the wall clock, which the file goes by, may have been put right."""


class Row(NamedTuple):
    """A job as it stands in the file."""

    id: int
    name: str
    state: str
    attempt: int
    lost: int
    payload: str
    result: str | None
    error: str | None
    schedule: str | None
    run_at: int
    headers: str | None

    @property
    def given(self) -> Any:
        """The arguments."""
        return json.loads(self.payload)


class Charge(NamedTuple):
    """A failed attempt as it stands in the file."""

    job: int
    attempt: int
    kind: str
    worker: int
    """For those that are lost: the node."""
    finished_at: int


@attrs.define(eq=False)
class Execution:
    """What a worker did."""

    job: int
    attempt: int
    worker: int
    node: int
    """The process id of its supervisor."""
    began: int
    how: str = ""
    """Empty if the handler was interrupted."""

    def __str__(self) -> str:
        end = self.how or "was interrupted"
        return f"attempt {self.attempt} of job {self.job} in worker {self.worker}, which {end}"


@attrs.define(eq=False)
class Evidence:
    """All that is known of one file."""

    folder: Path
    ended: Mapping[int, int]
    """The supervisors that have been asked to end, or were killed, and when."""
    killed: frozenset[int]
    """The workers that were killed by the director."""
    stopped: frozenset[int]
    """The workers that it has stopped for a while."""

    @cached_property
    def rows(self) -> dict[int, Row]:
        sql = f"SELECT {', '.join(Row._fields)} FROM litejobs_job ORDER BY id"
        return {row[0]: Row._make(row) for row in self._query(sql)}

    @cached_property
    def charges(self) -> list[Charge]:
        sql = f"SELECT {', '.join(Charge._fields)} FROM litejobs_attempt ORDER BY id"
        return [Charge._make(row) for row in self._query(sql)]

    def _query(self, sql: str) -> list[Any]:
        path = str(self.folder / "jobs.db")
        with contextlib.closing(apsw.Connection(path)) as connection:
            return connection.execute(sql).fetchall()

    @cached_property
    def application(self) -> set[str]:
        """The tokens that the application has committed with jobs."""
        return {token for (token,) in self._query("SELECT token FROM application")}

    @cached_property
    def workers(self) -> dict[int, list[Execution]]:
        """What each worker did, in this order."""
        found: dict[int, list[Execution]] = {}
        for place in sorted(self.folder.glob("worker-*.diary")):
            worker = int(place.name.split("-")[1])
            found[worker] = list(_executions(worker, actors.lines_of(place)))
        return found

    @cached_property
    def executions(self) -> dict[int, list[Execution]]:
        """What was done for each job, in this order."""
        found = defaultdict(list)
        for execution in sorted(
            (one for them in self.workers.values() for one in them), key=lambda one: one.began
        ):
            found[execution.job].append(execution)
        return found

    @cached_property
    def blown(self) -> frozenset[int]:
        """The workers that a job in them has killed, or will."""
        return frozenset(one.worker for job in self.ids("fuse") for one in self.executions[job])

    def history(self, job: int) -> str:
        """All that is known of a job, for whoever has to find out what happened."""
        ran = [
            (one.attempt, one.began, one.how, one.worker, one.node) for one in self.executions[job]
        ]
        charged = [charge for charge in self.charges if charge.job == job]
        ended = {one.node: self.ended.get(one.node) for one in self.executions[job]}
        ahead = time.time_ns() - time.monotonic_ns()
        logs = [
            line
            for place in sorted(self.folder.glob("*.err"))
            for line in place.read_text(errors="replace").splitlines()
            if f"job {job} " in line or any(str(one.worker) in line for one in self.executions[job])
        ]
        beside = [
            (self.rows[one.job].name, one.job, one.attempt, one.began, one.how, worker)
            for worker in sorted({one.worker for one in self.executions[job]})
            for one in self.workers[worker][-5:]
        ]
        stopped = {one.worker for one in self.executions[job]} & self.stopped
        name = self.rows[job].name
        places = f"stopped {stopped}, in those workers {beside}"
        return f"{name} {ran}, {charged}, ended {ended}, {places}, {ahead} apart, {logs[-20:]}"

    @cached_property
    def noted(self) -> dict[str, list[list[str]]]:
        """What was written after each word, in all diaries."""
        return self._read()

    @cached_property
    def noted_since(self) -> dict[str, list[list[str]]]:
        """The same, read after what was executed, which goes on meanwhile."""
        return self._read() if self.executions else defaultdict(list)

    def _read(self) -> dict[str, list[list[str]]]:
        found = defaultdict(list)
        for word, *rest in actors.entries(self.folder):
            found[word].append(rest)
        return found

    def ids(self, word: str) -> Counter[int]:
        """The jobs that are named after a word, and how often."""
        return _ids(self.noted[word])

    def tokens(self, word: str) -> set[str]:
        """The tokens that stand after a word."""
        return {token for rest in self.noted[word] for token in rest}

    @cached_property
    def acknowledged(self) -> dict[str, int]:
        """The jobs that were acknowledged, by token."""
        single = {rest[1]: int(rest[0]) for rest in self.noted["ack"]}
        several = [word.split(":") for rest in self.noted["acks"] for word in rest]
        return {**single, **{token: int(id) for id, token in several}}

    @cached_property
    def restarted(self) -> Counter[int]:
        """The jobs for which somebody has tried to have all attempts again."""
        return _ids(self.noted_since["retrying"])

    def is_coroutine(self, one: Execution) -> bool:
        return self.rows[one.job].name in cast.ASIDE

    @cached_property
    def cut_short(self) -> frozenset[int]:
        """The workers with a coroutine that somebody has tried to cancel: if it cannot end in
        time, its worker is killed for it."""
        asked = _ids(self.noted_since["cancelling"])
        ran = ((worker, one) for worker, them in self.workers.items() for one in them)
        return frozenset(w for w, one in ran if one.job in asked and self.is_coroutine(one))


def _ids(said: list[list[str]]) -> Counter[int]:
    """The jobs that are named first, and how often."""
    return Counter(int(rest[0]) for rest in said)


def _executions(worker: int, lines: Iterator[list[str]]) -> Iterator[Execution]:
    node, running = 0, dict[tuple[int, int], Execution]()
    for word, *rest in lines:
        if word == "node":
            node = int(rest[0])
        elif word == "begin":
            job, attempt, began = map(int, rest)
            running[job, attempt] = Execution(job, attempt, worker, node, began)
            yield running[job, attempt]
        elif word == "end":
            running[int(rest[0]), int(rest[1])].how = rest[3]


# What is enqueued.


def what_is_missing(evidence: Evidence) -> Iterator[str]:
    """What was acknowledged is there, and it is that."""
    for token, id in evidence.acknowledged.items():
        row = evidence.rows.get(id)
        if row is None:
            yield f"job {id} was acknowledged and is missing"
        elif row.given.get("token") != token:
            yield f"job {id} was acknowledged, and another job has its number"
    for id in evidence.ids("joined"):
        if id not in evidence.rows:
            yield f"job {id} was said to be there already, and is missing"


def what_is_not_what_was_enqueued(evidence: Evidence) -> Iterator[str]:
    """Payloads and headers are, to the letter, what their producer has logged."""
    for id, digest in evidence.noted["content"]:
        row = evidence.rows.get(int(id))
        if row and actors.digest([row.given, json.loads(row.headers or "{}")]) != digest:
            yield f"job {id} has {row.payload!r:.300} and {row.headers!r:.300}, as nobody enqueued"


def what_nobody_enqueued(evidence: Evidence) -> Iterator[str]:
    """No job is there that nobody wanted, twice, by half, or after a rollback."""
    tokens = Counter(r.given["token"] for r in evidence.rows.values() if r.schedule is None)
    for token in tokens.keys() - evidence.tokens("try"):
        yield f"nobody has enqueued {token}"
    for token, number in tokens.items():
        if number > 1:
            yield f"{number} jobs came of one call ({token})"
    for group in evidence.noted["together"]:
        if 0 < sum(token in tokens for token in group) < len(group):
            yield f"of {len(group)} jobs that were enqueued together, only some are there"
    for token in tokens.keys() & evidence.tokens("undone"):
        yield f"{token} was rolled back and is there"
    committed = evidence.tokens("own") & tokens.keys()
    for token in committed ^ evidence.application:
        yield f"of {token} and what the application wrote with it, only one is there"


def what_is_not_unique(evidence: Evidence) -> Iterator[str]:
    """Of jobs of which only one may be accepted, one was."""
    names = Counter(row.given["name"] for row in evidence.rows.values() if row.name == "alone")
    for name, number in names.items():
        if name.startswith("only") and number > 1:
            yield f"{number} jobs were accepted of which there may be one ({name})"


def what_did_not_tick(evidence: Evidence) -> Iterator[str]:
    """Each tick of the schedule is one job, and none is missing: the n-th job is that of the n-th
    tick. (Those that ran again are due later than their tick was.)"""
    step = round(cast.TICK * 1e6)
    ticks = [row.run_at for row in evidence.rows.values() if row.schedule == "tick"]
    (phase, _), *_ = Counter(at % step for at in ticks).most_common(1) or [(0, 0)]
    ahead = {at // step - number for number, at in enumerate(ticks) if at % step == phase}
    if len(ahead) > 1:
        yield f"ticks were missed or came twice: {max(ahead) - min(ahead)} of {len(ticks)}"


# What is run.


def who_met(evidence: Evidence) -> Iterator[str]:
    """No two processes are ever inside the same job at one time, nor more than a key or a queue
    lets in."""
    for job, attempt, at, name in evidence.noted["clash"]:
        if not _orphaned(evidence, int(job), int(at)):
            found = f"attempt {attempt} of job {job} found too many others inside ({name}), at {at}"
            yield f"{found}: {evidence.history(int(job))}"


def _orphaned(evidence: Evidence, job: int, at: int) -> bool:
    """Whether a job may have met what it had started itself: if its worker is killed by somebody
    else, and then its supervisor before that has cleaned up, nobody is left who could."""
    if evidence.rows[job].name != "family":
        return False
    earlier = [one for one in evidence.executions[job] if one.began < at][:-1]
    return any(
        one.worker in evidence.killed | evidence.blown and evidence.ended.get(one.node, at) < at
        for one in earlier
    )


def who_was_taken_for_dead(evidence: Evidence) -> Iterator[str]:
    """Jobs are only taken over from nodes that had been killed by then, or asked to end."""
    ahead = time.time_ns() - time.monotonic_ns()
    for charge in evidence.charges:
        at = 1000 * charge.finished_at - ahead + CLOCK_TOLERANCE
        if charge.kind == "lost" and evidence.ended.get(charge.worker, at) >= at:
            yield f"job {charge.job} was taken from node {charge.worker}, which lived"


def what_ran_again(evidence: Evidence) -> Iterator[str]:
    """Attempts rise by one for each that is in the history of failures; the same one only runs
    again if its whole node has ended meanwhile, or it was put off."""
    charged = {(charge.job, charge.attempt) for charge in evidence.charges if charge.kind != "lost"}
    for job, executions in evidence.executions.items():
        if job in evidence.restarted:
            continue
        attempts = [0, *(execution.attempt for execution in executions)]
        for before, after in pairwise(attempts):
            if after < before:
                yield f"job {job} ran its attempt {before}, and then its attempt {after}"
            for attempt in range(max(1, before), after):
                if (job, attempt) not in charged:
                    yield f"attempt {attempt} of job {job} is over, and not among the failed ones"
        for one, following in pairwise(executions):
            if one.attempt == following.attempt and not _may_repeat(evidence, one, following):
                yield f"{one}, ran again, although its node lives: {evidence.history(job)}"


def _may_repeat(evidence: Evidence, one: Execution, following: Execution) -> bool:
    if one.how == "snoozed" or evidence.ended.get(one.node, following.began) < following.began:
        return True
    # A coroutine is innocent if its worker was killed for another job; and so is whoever shared
    # the worker of one that did not end when it was cancelled, or could not even begin.
    if evidence.is_coroutine(one) and not one.how:
        return True
    return one.worker in evidence.cut_short | evidence.stopped


def what_ran_after_its_end(evidence: Evidence) -> Iterator[str]:
    """What has been seen completed does not run again, and its result stays."""
    for id, result, at in evidence.noted["saw"]:
        job = int(id)
        row = evidence.rows[job]
        if row.state != "completed" or json.loads(row.result or "null") != result:
            yield f"job {job} had the result {result}, and then {row.state} {row.result}"
        if late := [one for one in evidence.executions[job] if one.began > int(at)]:
            yield f"job {job} had completed, and then began {late[0]}"


def what_ran_although_cancelled(evidence: Evidence) -> Iterator[str]:
    """After its cancellation a job begins at most once: if a worker had it in hand already."""
    for id, _, at in evidence.noted["cancelled"]:
        late = [one for one in evidence.executions[int(id)] if one.began > int(at)]
        if len(late) > 1 and int(id) not in evidence.restarted:
            yield f"job {id} was cancelled, and then began {len(late)} times"


# What it came to.


def what_is_charged_wrongly(evidence: Evidence) -> Iterator[str]:
    """A crash is charged to the job that ran, and only to that; an exception and a time-out to a
    job that had them."""
    crashes = Counter[int]()
    for charge in evidence.charges:
        about = f"{charge.kind} of attempt {charge.attempt} of job {charge.job}"
        name = evidence.rows[charge.job].name
        if charge.kind == "timeout" and name != "timed":
            yield f"{about}: it has no limit of time"
        if charge.kind == "exception" and "raised" not in _ends(evidence, charge):
            yield f"{about}: {_ends(evidence, charge) or 'it never began'}"
        if charge.kind != "crash":
            continue
        if charge.worker not in evidence.killed | evidence.blown:
            yield f"{about}: nobody has killed worker {charge.worker}"
        if name not in cast.ASIDE:
            crashes[charge.worker] += 1
            yield from _charged_to_another(evidence, charge, about)
    for worker, number in crashes.items():
        if number > 1:
            yield f"{number} jobs were charged for one crash, of worker {worker}"


def _ends(evidence: Evidence, charge: Charge) -> set[str]:
    """How an attempt ended, in the words of its handler: several, if it was put off."""
    key = charge.attempt, charge.worker
    mine = evidence.executions[charge.job]
    return {one.how for one in mine if (one.attempt, one.worker) == key}


def _charged_to_another(evidence: Evidence, charge: Charge, about: str) -> Iterator[str]:
    """Whether a worker ran another job last. A job may be killed before its first line; then the
    one before it has ended."""
    ran = [
        one for one in evidence.workers.get(charge.worker, ())
        if evidence.rows[one.job].name not in cast.ASIDE
    ]  # fmt: skip
    if not ran or (ran[-1].job, ran[-1].attempt) == (charge.job, charge.attempt):
        return
    if not ran[-1].how:
        yield f"{about}: its worker ran {ran[-1]}"
    elif any((one.job, one.attempt) == (charge.job, charge.attempt) for one in ran):
        yield f"{about}: it had ended before its worker ran {ran[-1]}"


def what_did_not_end_well(evidence: Evidence) -> Iterator[str]:
    """Each job has ended as it had to, at the attempt that its history says."""
    failed = defaultdict(set)
    for charge in evidence.charges:
        if charge.kind != "lost":
            failed[charge.job].add(charge.attempt)
    for row in evidence.rows.values():
        if problem := _ended_badly(evidence, row):
            yield f"job {row.id} ({row.name}) {problem}"
        if row.id in evidence.restarted or row.state not in ("completed", "failed"):
            continue
        given_up = row.lost >= LOST_LIMIT
        last = row.attempt + (row.state == "failed" and not given_up)
        if failed[row.id] != {*range(1, last)}:
            yield f"job {row.id} {row.state} at {row.attempt}; failed were {failed[row.id]}"


def _ended_badly(evidence: Evidence, row: Row) -> str:
    if row.state == "completed":
        job, attempt, worker, _ = json.loads(row.result or '"0-0-0-0"').split("-")
        ran = {(one.job, one.attempt, one.worker) for one in evidence.executions[row.id]}
        if (row.id, row.attempt) != (int(job), int(attempt)):
            return f"completed by its attempt {row.attempt} with the result {row.result}"
        if (row.id, row.attempt, int(worker)) not in ran:
            return "completed without having run"
        return ""
    if row.state == "failed":
        return "" if row.name == "doomed" or row.lost >= LOST_LIMIT else f"failed: {row.error}"
    if row.state == "cancelled":
        return _wrongly_cancelled(evidence, row)
    return f"is {row.state} in the end"


def _wrongly_cancelled(evidence: Evidence, row: Row) -> str:
    cancelled = evidence.ids("cancelling")[row.id]
    again = sum(rest == [str(row.id), "1"] for rest in evidence.noted["retried"])
    if not cancelled:
        return "was cancelled by nobody"
    return "was cancelled and retried, and is cancelled" if cancelled == 1 == again else ""


def what_readers_found(evidence: Evidence) -> Iterator[str]:
    """At no moment was anything broken in the file."""
    for words in evidence.noted["found"]:
        yield f"the doctor found meanwhile: {' '.join(words)}"


Check = Callable[[Evidence], Iterator[str]]
AT_ANY_TIME: tuple[Check, ...] = (
    what_is_missing, who_met, who_was_taken_for_dead, what_ran_again, what_readers_found,
)  # fmt: skip
"""What can be said while all of them play, if the diaries are read before the file."""
IN_THE_END: tuple[Check, ...] = (
    *AT_ANY_TIME, what_is_not_what_was_enqueued, what_nobody_enqueued, what_is_not_unique,
    what_did_not_tick, what_ran_after_its_end, what_ran_although_cancelled, what_is_charged_wrongly,
    what_did_not_end_well,
)  # fmt: skip


def wrong(evidence: Evidence, checks: tuple[Check, ...]) -> list[str]:
    """All that is."""
    assert evidence.noted, "nobody has written anything"
    assert evidence.executions, "nobody has run anything"
    return [problem for check in checks for problem in check(evidence)]
