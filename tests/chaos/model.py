"""The ordeal `model`: the life of jobs, against a model of it in plain Python.

Hypothesis makes up what people, programs, nodes and clocks do to one file: two `LiteJobs` enqueue,
steer and fire schedules, two nodes claim, run, settle, die and are rescued, the clock is set an
hour or a day forward or back, the file is closed, or the machine is switched off. After every step
each row of the file is compared, column by column, with its twin in the model, and so are failed
attempts, counts, schedules, queues and nodes.

The model is written after what the README and docstrings promise, and knows no SQL. Where it goes
further than a promise it says so. Time stands still between the steps, and the file is where no
sync costs anything: what syncs, kills and clocks of a machine do is for other ordeals.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import operator
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import apsw
import attrs
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import litejobs
from litejobs import (
    DUTIES,
    Bound,
    Cancel,
    Claimed,
    Constant,
    Context,
    DuplicateError,
    Duties,
    Executor,
    Exponential,
    Fail,
    JobNotFoundError,
    Linear,
    LiteJobs,
    Moved,
    Ready,
    Report,
    Retention,
    Retry,
    ScheduleNotFoundError,
    Snooze,
    TurnedClock,
    Unique,
    define,
    final_report,
    not_begun,
    store_backoff,
    store_progress,
    store_retention,
)

from .ordeal import Ordeal, Run, Violation

SECOND = 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3_600 * SECOND, 86_400 * SECOND

WAITING = ("scheduled", "blocked", "paused", "pending", "retrying")
FINISHED = ("completed", "failed", "cancelled")
STATES = (*WAITING, "running", *FINISHED)
COUNTED = tuple(state for state in STATES if state not in ("pending", "running"))

################################################################################
# What runs
#
# Three definitions that differ in all their rules, and do what the test says.
################################################################################

Act = Literal[
    "return", "raise", "retry", "later", "snooze", "fail", "cancel",
    "crash", "timeout", "give back", "stop", "asked", "misfit",
]  # fmt: skip
"""How an attempt ends: by itself, or as its node says of it (the last line)."""

LATER, NAP = 60 * SECOND, 30 * SECOND


def perform(context: Context[Any]) -> str:
    """Ends as the worker's state says."""
    match context.state[context.job.id]:
        case "stop":
            assert context.cancelled, "its node stops"
            raise ValueError("broken off")
        case "raise" | "timeout":
            raise ValueError("as planned")
        case "retry":
            raise Retry(reason="again")
        case "later":
            raise Retry(LATER / SECOND)
        case "snooze":
            raise Snooze(NAP / SECOND)
        case "fail":
            raise Fail("for good")
        case "cancel":
            raise Cancel("no need")
    return f"attempt {context.attempt}"


BRIEF = Retention(completed=100, failed=None, cancelled=0)
LONG = Retention(completed=None, failed=5, cancelled=3_600)


@define(max_attempts=3, backoff=Constant(10), retention=BRIEF)
def mail(context: Context[Any], n: int) -> str:
    """Is tried three times, with equal pauses."""
    return perform(context)


@define(queue="slow", backoff=Linear(5))
def note(context: Context[Any], n: int) -> str:
    """Leaves the limit of attempts to its queue."""
    return perform(context)


@define(max_attempts=None, backoff=Exponential(2, jitter="none", cap=20), retention=LONG)
def poll(context: Context[Any], n: int) -> str:
    """Never gives up."""
    return perform(context)


def misfit(n: str) -> None:
    """What a node with other definitions has: no payload fits it."""


MISFITS = litejobs.Registry()
for _name in ("mail", "note", "poll"):
    MISFITS.add(define(name=_name)(misfit))


@attrs.frozen
class Rules:
    """What the model knows of a definition; times in microseconds."""

    queue: str
    max_attempts: int | None
    backoff: Callable[[int], int]
    kept: Mapping[str, int | None]
    stored_backoff: str | None
    stored_retention: str | None
    leaves_limit: bool = False


RULES: Mapping[str, Rules] = {
    "mail": Rules(
        "default", 3, lambda attempt: 10 * SECOND,
        {"completed": 100 * SECOND, "failed": None, "cancelled": 0},
        store_backoff(Constant(10)), store_retention(BRIEF),
    ),
    "note": Rules(
        "slow", 5, lambda attempt: 5 * SECOND * attempt,
        {"completed": DAY, "failed": 30 * DAY, "cancelled": DAY},
        store_backoff(Linear(5)), None, leaves_limit=True,
    ),
    "poll": Rules(
        "default", None, lambda attempt: min(20 * SECOND, 2 * SECOND * 2 ** (attempt - 1)),
        {"completed": None, "failed": 5 * SECOND, "cancelled": HOUR},
        store_backoff(Exponential(2, jitter="none", cap=20)), store_retention(LONG),
    ),
}  # fmt: skip
DEFINITIONS: Mapping[str, Any] = {"mail": mail, "note": note, "poll": poll}


@attrs.frozen
class Only:
    """A rule that at most one job holds a key."""

    key: str
    scope: Any = "queued"
    on_conflict: Any = "return"
    ttl: int | None = None
    """Seconds."""


def added(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    """Merges two payloads."""
    return {"n": old["n"] + new["n"]}


@attrs.frozen(repr=False)
class Order:
    """A job as a program asks for it; times in seconds."""

    name: str = "mail"
    n: int = 0
    priority: int = 0
    due: int = 0
    """Negative: `at=` a moment that has passed."""
    expires: int | None = None
    """So long after it was due."""
    node: str | None = None
    key: tuple[str, int] | None = None
    """With how many may run."""
    only: Only | None = None

    def bound(self, clock: TurnedClock) -> Bound[Any]:
        """The same for litejobs."""
        if self.due < 0:
            when = clock.now + timedelta(seconds=self.due)
            return _bound(attrs.evolve(self, due=0)).using(at=when)
        return _bound(self)

    def __repr__(self) -> str:
        plain = Order()
        chosen = attrs.asdict(self, recurse=False, filter=lambda f, v: v != getattr(plain, f.name))
        return f"Order({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"


@functools.lru_cache(4_096)
def _bound(order: Order) -> Bound[Any]:
    choices: dict[str, Any] = {"priority": order.priority, "delay": order.due}
    if order.expires is not None:
        choices["expires"] = order.expires
    if order.node is not None:
        choices["node"] = order.node
    if order.key is not None:
        choices["key"], choices["key_limit"] = order.key
    if (only := order.only) is not None:
        how = added if only.on_conflict == "merge" else only.on_conflict
        choices["unique"] = Unique(scope=only.scope, ttl=only.ttl, on_conflict=how, key=only.key)
    bound: Bound[Any] = DEFINITIONS[order.name].using(**choices).bind(order.n)
    return bound


@functools.lru_cache(1_024)
def text_of(n: int) -> str:
    """The payload of a job."""
    return str(mail.bind(n).payload)


@functools.lru_cache(64)
def stored_key(name: str, key: str) -> str:
    """A unique key as the file has it: no two are alike (see the end of this section)."""
    return str(litejobs.unique_key(_bound(Order(name, only=Only(key)))))


assert len({stored_key(name, key) for name in DEFINITIONS for key in "uv"}) == 6


################################################################################
# The model
################################################################################


@attrs.define
class Twin:
    """A job as its row should be."""

    id: int
    name: str
    queue: str
    node: str
    priority: int
    state: str
    payload: str
    run_at: int
    max_attempts: int | None
    backoff: str | None
    retention: str | None
    enqueued_at: int
    attempt: int = 0
    timeout: int | None = None
    claim: int = 0
    lost: int = 0
    holder: int | None = None
    cancel_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    prune_at: int | None = None
    result: str | None = None
    error: str | None = None
    headers: str | None = None
    key: str | None = None
    key_limit: int | None = None
    unique_key: str | None = None
    unique_scope: str | None = None
    unique_until: int | None = None
    expires_at: int | None = None
    progress: str | None = None
    schedule: str | None = None
    unfit_at: int | None = None
    refused: str | None = None

    @property
    def urgency(self) -> tuple[int, int, int]:
        """What it is ordered by: the most urgent first."""
        return -self.priority, self.run_at, self.id

    @property
    def holds(self) -> bool:
        """Whether it holds its unique key."""
        if self.unique_key is None:
            return False
        if self.unique_scope == "exists":
            return True
        return self.state not in FINISHED and (self.unique_scope == "active" or not self.claim)

    def get_ready(self) -> None:
        """It is due. With a key, its turn comes when there is room."""
        self.state = "pending" if self.key is None else "blocked"

    def wait(self, now: int) -> None:
        """It waits for nothing but its time and its turn."""
        if self.run_at > now:
            self.state = "scheduled"
        else:
            self.get_ready()

    def end(self, state: str, now: int) -> None:
        """It has ended, and is kept for as long as its definition says."""
        kept = RULES[self.name].kept[state]
        self.state, self.finished_at, self.unfit_at = state, now, None
        self.prune_at = None if kept is None else now + kept

    def expired(self, now: int) -> bool:
        """Whether it must not be started any more."""
        return self.expires_at is not None and self.expires_at <= now and not self.attempt


COLUMNS = tuple(field.name for field in attrs.fields(Twin))
as_row = operator.attrgetter(*COLUMNS)


@attrs.define
class Setting:
    """The settings of a queue."""

    paused: int = 0
    concurrency: int | None = None
    max_attempts: int | None = None
    """0: for ever."""


@attrs.define
class Recurrence:
    """A schedule as its row should be; times in microseconds."""

    name: str
    order: Order
    every: int
    cron: bool
    misfire: str
    grace: int
    overlap: str
    next_at: int
    paused: int = 0
    last_at: int | None = None
    last_job: int | None = None
    covered: list[tuple[int, int]] = attrs.field(factory=list)
    """Spans of time of which each tick has had its turn: the last four."""

    def after(self, moment: int, anchor: int) -> int:
        """The first tick after a moment."""
        if self.cron:
            anchor = 0
        return moment + self.every - (moment - anchor) % self.every

    def cover(self, since: int, until: int) -> None:
        self.covered = [*self.covered, (since, until)][-4:]

    def uncovered(self, moment: int) -> int:
        """The first tick after a moment that has not had its turn."""
        tick = self.after(moment, self.next_at)
        while any(since <= tick <= until for since, until in self.covered):
            tick += self.every
        return tick

    def plan(self, now: int) -> None:
        """Without what is after *now*, the next tick follows what has had its turn."""
        if not any(since <= now for since, _ in self.covered):
            self.cover(now, now)
        self.next_at = self.uncovered(max(u for since, u in self.covered if since <= now))

    def due(self, now: int) -> tuple[list[int], int]:
        """The ticks that fire, and the next one."""
        ticks = [*range(self.next_at, now + 1, self.every)]
        following = self.next_at + len(ticks) * self.every
        if now - self.next_at <= self.grace or self.misfire == "all":
            return ticks, following
        if self.misfire == "once":
            return ticks[-1:], following
        return [tick for tick in ticks if now - tick <= self.grace], following


class Refused(Exception):
    """A duplicate that is an error."""


@attrs.frozen
class End:
    """What an attempt comes to."""

    state: str
    counted: bool = True
    delay: int = 0
    kind: str = ""
    """Of the failure that is kept, if it is one."""
    error: str | None = None
    begun: bool = True


BY_ITSELF: Mapping[str, End] = {
    "return": End("completed"),
    "later": End("retrying", True, LATER, "exception", "Retry: the handler asked for a retry"),
    "snooze": End("scheduled", False, NAP),
    "fail": End("failed", True, 0, "exception", "Fail: for good"),
    "cancel": End("cancelled", error="Cancel: no need"),
    "give back": End("pending", False, begun=False),
    "stop": End("pending", False),
    "asked": End("cancelled", error="Cancelled: cancelled while it ran"),
    "misfit": End("blocked", False, begun=False),
}
BY_RULE: Mapping[str, tuple[str, str]] = {
    "raise": ("exception", "ValueError: as planned"),
    "retry": ("exception", "Retry: again"),
    "crash": ("crash", "WorkerCrashed: of course"),
    "timeout": (
        "timeout",
        "JobTimedOut: it took longer than its timeout of 0 s, and was granted 0 s more to end",
    ),
}
"""Kind and error of what fails an attempt, so that limit and backoff say what follows."""


def end_of(twin: Twin, act: str) -> End:
    """What an attempt of this job comes to."""
    if act in BY_ITSELF:
        return BY_ITSELF[act]
    kind, error = BY_RULE[act]
    if twin.max_attempts is not None and twin.attempt >= twin.max_attempts:
        return End("failed", True, 0, kind, error)
    return End("retrying", True, RULES[twin.name].backoff(twin.attempt), kind, error)


LOST = "NodeLost: the node ended while it held the job"
Failed = tuple[int, int, str, str, "int | None", int]
"""A failed attempt: job, number, kind, type, start and end."""


@attrs.define
class Model:
    """All that should be in the file."""

    clock: TurnedClock
    jobs: dict[int, Twin] = attrs.field(factory=dict)
    failed: list[Failed] = attrs.field(factory=list)
    settings: dict[str, Setting] = attrs.field(factory=dict)
    schedules: dict[str, Recurrence] = attrs.field(factory=dict)
    nodes: dict[int, str] = attrs.field(factory=dict)
    """Names by number."""
    last_id: int = 0
    now: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.now = self.clock()

    # Enqueue

    def place(self, orders: Iterable[Order], schedule: str | None = None, tick: int = 0) -> Any:
        """Enqueues all or none: gives ids and whether they are duplicates."""
        before = {id: copy.copy(twin) for id, twin in self.jobs.items()}, self.last_id
        orders = list(orders)
        try:
            placed = [self._place(order, schedule, tick) for order in orders]
        except Refused:
            self.jobs, self.last_id = before
            raise
        for key in {order.key[0] for order in orders if order.key}:
            self._free_slots(key)
            self.admit(key)
        for id, _ in placed:
            self.admit(self.jobs[id].key)
        return placed

    def _free_slots(self, key: str | None) -> None:
        """Jobs that have expired hold no slot of a key, once somebody else asks."""
        while key is not None and (
            late := [t for t in self.jobs.values()
                     if t.key == key and t.state == "pending" and t.expired(self.now)]
        ):  # fmt: skip
            self._expire(late[0])
            self.admit(key)

    def _place(self, order: Order, schedule: str | None, tick: int) -> tuple[int, bool]:
        new = self._made(order, tick or self.now + order.due * SECOND)
        new.schedule = schedule
        held = self._holder(new.unique_key)
        if held is None:
            self.last_id = new.id
            self.jobs[new.id] = new
            return new.id, False
        how = order.only.on_conflict if order.only else "return"
        if how == "raise" or (how != "return" and (held.claim or held.state in FINISHED)):
            # Nobody can change a job that has started: the duplicate is not lost in silence.
            raise Refused(held.id)
        if how == "merge":
            held.payload = text_of(self._n(held) + order.n)
        elif how == "replace":
            self._replace(held, new)
        return held.id, True

    def _n(self, twin: Twin) -> int:
        return int(twin.payload.strip("{}").partition(":")[2])

    def _made(self, order: Order, run_at: int) -> Twin:
        rules = RULES[order.name]
        limit = rules.max_attempts
        queue = self.settings.get(rules.queue)
        if rules.leaves_limit and queue and queue.max_attempts is not None:
            limit = queue.max_attempts or None
        twin = Twin(
            self.last_id + 1, order.name, rules.queue, order.node or "", order.priority,
            "scheduled", text_of(order.n), run_at, limit, rules.stored_backoff,
            rules.stored_retention, self.now,
        )  # fmt: skip
        if order.expires is not None:
            twin.expires_at = run_at + order.expires * SECOND
        if order.key is not None:
            twin.key, twin.key_limit = order.key
        if (only := order.only) is not None:
            twin.unique_key, twin.unique_scope = stored_key(order.name, only.key), only.scope
            twin.unique_until = None if only.ttl is None else self.now + only.ttl * SECOND
        twin.wait(self.now)
        return twin

    def _holder(self, key: str | None) -> Twin | None:
        held = next((t for t in self.jobs.values() if t.unique_key == key and t.holds), None)
        if key is None or held is None:
            return None
        if held.state in WAITING and held.expired(self.now):
            self._expire(held)
            self.admit(held.key)
            return self._holder(key)
        self._let_go(held)
        return held if held.holds else None

    def _let_go(self, twin: Twin) -> None:
        """A key that has lasted its time is nobody's any more, once somebody else asks."""
        if twin.unique_until is not None and twin.unique_until <= self.now:
            twin.unique_key = None

    def _replace(self, held: Twin, new: Twin) -> None:
        """What a person holds stays held."""
        kept = ("id", "name", "enqueued_at", "unique_key", "unique_scope", "schedule")
        state, before = held.state, held.key
        for column in COLUMNS:
            if column not in kept:
                setattr(held, column, getattr(new, column))
        held.state = "paused" if state == "paused" else new.state
        self.admit(before)

    def admit(self, *keys: str | None) -> None:
        """Lets jobs in whose key has room, the most urgent first; for all keys, if none is
        given."""
        for key in keys or {twin.key for twin in self.jobs.values()}:
            if key is None:
                continue
            sharing = [twin for twin in self.jobs.values() if twin.key == key]
            blocked = [t for t in sharing if t.state == "blocked" and t.unfit_at is None]
            taken = sum(twin.state in ("pending", "running") for twin in sharing)
            for twin in sorted(blocked, key=lambda twin: twin.urgency):
                assert twin.key_limit is not None
                if taken >= twin.key_limit:
                    break
                twin.state = "pending"
                taken += 1

    # Run

    def claim(self, node: int, limit: int, given: Sequence[int]) -> list[Twin]:
        """What a node gets, in this order. While jobs wait that have expired, only that none of
        them is *given*: each may have a place in the order, until somebody cancels it."""
        name = self.nodes[node]
        ready = [t for t in self.jobs.values() if t.state == "pending" and t.node in ("", name)]
        in_time = [twin for twin in ready if not twin.expired(self.now)]
        if len(in_time) < len(ready):
            ready = [twin for twin in in_time if twin.id in given]
        running = Counter(twin.queue for twin in self.jobs.values() if twin.state == "running")
        claimed: list[Twin] = []
        for twin in sorted(ready, key=lambda twin: twin.urgency):
            setting = self.settings.get(twin.queue, Setting())
            room = 10**6 if setting.concurrency is None else setting.concurrency
            if len(claimed) < limit and not setting.paused and running[twin.queue] < room:
                claimed.append(twin)
                running[twin.queue] += 1
        for twin in claimed:
            twin.state, twin.holder, twin.started_at = "running", node, self.now
            twin.claim += 1
            twin.attempt += 1
        return claimed

    def settle(self, twin: Twin, act: str) -> None:
        """Applies how an attempt ended."""
        end = end_of(twin, act)
        if end.kind:
            name = (end.error or "").partition(":")[0]
            failed = twin.id, twin.attempt, end.kind, name, self.now, self.now
            self.failed.append(failed)
        twin.result = f'"attempt {twin.attempt}"' if act == "return" else None
        twin.attempt -= not end.counted
        twin.state, twin.error, twin.holder = end.state, end.error, None
        twin.started_at = None
        if act == "misfit":
            what = f"expected str, got {self._n(twin)} @ $.n"
            twin.error = f"PayloadError: the payload of {twin.name!r} does not fit: {what}"
            twin.unfit_at = self.now
            twin.refused = f" {DEFINITIONS[twin.name].body.fingerprint} "
        if end.begun:
            # In time: from now on it does not expire, also if that attempt does not count.
            twin.started_at, twin.expires_at = self.now, None
        if end.state in FINISHED:
            twin.end(end.state, self.now)
        elif end.state not in ("pending", "blocked"):  # What is given back keeps its place.
            twin.run_at = self.now + end.delay
        if end.state == "completed":
            twin.cancel_at = None
        self.cancel_returned(twin)

    def cancel_returned(self, twin: Twin) -> None:
        """What was cancelled while it ran is not tried again, however it came back."""
        if twin.cancel_at is not None:
            twin.cancel_at = None
            twin.end("cancelled", self.now)

    def lose(self, node: int) -> list[Twin]:
        """A node has died: its jobs lose no attempt, but each such loss counts, and the fifth
        is too many."""
        held = [twin for twin in self.jobs.values() if twin.holder == node]
        for twin in held:
            lost = twin.id, twin.attempt, "lost", "NodeLost", twin.started_at, self.now
            self.failed.append(lost)
            twin.lost, twin.error = twin.lost + 1, LOST
            twin.holder = twin.expires_at = None
            if twin.lost < 5:
                twin.state = "pending"
                twin.attempt -= 1
            else:
                twin.end("failed", self.now)
            self.cancel_returned(twin)
        del self.nodes[node]
        self.admit()
        return held

    def release_orphaned(self, node: int, kept: Iterable[int]) -> None:
        """What a node holds without knowing of it is ready again."""
        for twin in self.jobs.values():
            if twin.holder == node and twin.id not in kept:
                twin.state, twin.attempt = "pending", twin.attempt - 1
                twin.holder = twin.started_at = None
                self.cancel_returned(twin)
        self.admit()

    # Steer: each says how many it has changed.

    def cancel(self, twins: Sequence[Twin]) -> int:
        """What waits has ended, what runs is asked to."""
        changed = 0
        for twin in twins:
            if twin.state in WAITING:
                twin.error = "cancelled"
                twin.end("cancelled", self.now)
                changed += 1
            elif twin.state == "running" and twin.cancel_at is None:
                twin.cancel_at = self.now
                changed += 1
        return changed

    def retry(self, twins: Sequence[Twin]) -> int:
        """Dead letters and what was cancelled start again, unless their key is another's by
        now; what waits for its backoff is due."""
        again = [twin for twin in twins if twin.state in ("failed", "cancelled")]
        waiting = [twin for twin in twins if twin.state == "retrying"]
        changed = 0
        for twin in sorted(again, key=lambda twin: twin.id):
            for late in self.jobs.values():
                same = late.unique_key == twin.unique_key and late is not twin
                if same and late.state in WAITING and late.expired(self.now):
                    late.unique_key = None
            other = self._holder(twin.unique_key)
            self._let_go(twin)
            if other not in (None, twin) and attrs.evolve(twin, state="pending").holds:
                continue
            twin.get_ready()
            twin.run_at, twin.attempt, twin.lost = self.now, 0, 0
            twin.finished_at = twin.prune_at = twin.error = None
            changed += 1
        self.admit()
        for twin in waiting:
            twin.get_ready()
            twin.run_at = self.now
        self.admit()
        return changed + len(waiting) + self.try_again(twins)

    def try_again(self, twins: Iterable[Twin]) -> int:
        """What did not fit is ready again, and its definition is asked once more."""
        unfit = [twin for twin in twins if twin.unfit_at is not None]
        for twin in unfit:
            twin.get_ready()
            twin.run_at, twin.unfit_at, twin.refused = min(twin.run_at, self.now), None, None
        return len(unfit)

    def delete(self, twins: Sequence[Twin]) -> int:
        """Those that run are left."""
        gone = {twin.id for twin in twins if twin.state != "running"}
        self.forget(gone)
        return len(gone)

    def forget(self, ids: set[int]) -> None:
        """Takes jobs out, with their history."""
        self.jobs = {id: twin for id, twin in self.jobs.items() if id not in ids}
        self.failed = [failed for failed in self.failed if failed[0] not in ids]

    def hold(self, twins: Sequence[Twin]) -> int:
        """What waits is paused."""
        held = [t for t in twins if t.state in WAITING and t.state != "paused"]
        for twin in held:
            twin.state, twin.unfit_at = "paused", None
        return len(held)

    def release(self, twins: Sequence[Twin]) -> int:
        """What is paused waits for its time or its turn again."""
        released = [twin for twin in twins if twin.state == "paused"]
        for twin in released:
            twin.wait(self.now)
        return len(released)

    def change(self, twins: Sequence[Twin], columns: Mapping[str, Any]) -> int:
        """Gives what waits other values. What is paused stays so, and what waits for its
        backoff does so until its new time."""
        changed = [twin for twin in twins if twin.state in WAITING]
        for twin in changed:
            for column, value in columns.items():
                setattr(twin, column, value)
            ready = twin.state == "pending" and twin.run_at <= self.now
            stays = twin.state in ("retrying", "paused") or twin.unfit_at is not None
            if "payload" in columns:
                twin.refused = None
                if twin.unfit_at is not None:
                    twin.unfit_at = None
                    twin.wait(self.now)
            if "run_at" in columns and not ready and not stays:
                twin.wait(self.now)
        return len(changed)

    # Duties

    def offer(self, node: str) -> int:
        """A node with other definitions gets what did not fit."""
        unfit = [
            twin for twin in self.jobs.values()
            if twin.unfit_at is not None and twin.node in ("", node)
        ]  # fmt: skip
        for twin in unfit:
            twin.unfit_at = None
            twin.wait(self.now)
        self.admit()
        return len(unfit)

    def stage(self) -> int:
        """What is due is ready."""
        due = [
            twin for twin in self.jobs.values()
            if twin.state in ("scheduled", "retrying") and twin.run_at <= self.now
        ]  # fmt: skip
        for twin in due:
            twin.get_ready()
        self.admit()
        return len(due)

    def expire(self) -> int:
        """What has not started in time is cancelled."""
        expired = 0
        for twin in self.jobs.values():
            if twin.expires_at is None or twin.expires_at > self.now:
                continue
            if twin.expired(self.now) and twin.state in WAITING:
                self._expire(twin)
                expired += 1
            twin.expires_at = None
        self.admit()
        return expired

    def _expire(self, twin: Twin) -> None:
        moment = litejobs.from_micros(twin.expires_at or 0)
        twin.error = f"Expired: not started by {moment:%Y-%m-%d %H:%M:%S} UTC"
        twin.end("cancelled", self.now)
        twin.expires_at = None

    def prune(self) -> int:
        """What was kept for long enough goes."""
        over = {
            twin.id for twin in self.jobs.values()
            if twin.prune_at is not None and twin.prune_at <= self.now
        }  # fmt: skip
        self.forget(over)
        return len(over)

    # Schedules

    def put(self, new: Recurrence) -> None:
        """Makes or changes a schedule. With the same times its next tick stays."""
        if (known := self.schedules.get(new.name)) is not None:
            new.paused, new.last_at, new.last_job = known.paused, known.last_at, known.last_job
            if (known.every, known.cron) == (new.every, new.cron):
                new.next_at, new.covered = known.next_at, known.covered
        self.schedules[new.name] = new

    def fire(self) -> int:
        """Each tick that is due becomes one job."""
        return sum(self._fire(self.schedules[name]) for name in sorted(self.schedules))

    def _fire(self, entry: Recurrence) -> int:
        if entry.paused:
            return 0
        entry.plan(self.now)
        if entry.next_at > self.now:
            return 0
        first = entry.next_at
        ticks, entry.next_at = entry.due(self.now)
        if ticks[:1] == [first]:
            span = max((s for s in entry.covered if s[0] <= self.now), key=lambda span: span[1])
            entry.covered.remove(span)
            entry.cover(span[0], self.now)
        else:
            entry.cover(ticks[0] if ticks else self.now, self.now)
        entry.next_at = entry.uncovered(entry.next_at - 1)
        if entry.overlap == "skip":
            last = self.jobs.get(entry.last_job or 0)
            ticks = ticks[:1] if last is None or last.state in FINISHED else []
        fired = 0
        for tick in ticks:
            with contextlib.suppress(Refused):
                ((entry.last_job, _),) = self.place([entry.order], entry.name, tick)
                entry.last_at = tick
                fired += 1
        return fired

    def fire_now(self, name: str) -> int:
        """One job of a schedule, whose next tick stays."""
        entry = self.schedules[name]
        ((id, _),) = self.place([entry.order], name, self.now)
        entry.last_at, entry.last_job = self.now, id
        return int(id)

    def resume(self, entry: Recurrence) -> bool:
        """What was missed meanwhile is not made up."""
        if entry.paused:
            entry.paused = 0
            entry.cover(self.now, self.now)
            entry.plan(self.now)
            return True
        return False


################################################################################
# The file
#
# Read by a connection of its own, and compared with the model.
################################################################################

PARTS: Mapping[str, str] = {
    "jobs": f"SELECT {', '.join(COLUMNS)} FROM litejobs_job ORDER BY id",
    "failed attempts": """
        SELECT job, attempt, kind, type, started_at, finished_at FROM litejobs_attempt
        ORDER BY job, id
    """,
    "counts": "SELECT state, queue, name, number FROM litejobs_count WHERE number <> 0",
    "queues": "SELECT name, paused, concurrency, max_attempts FROM litejobs_queue ORDER BY name",
    "schedules": """
        SELECT name, definition, payload, misfire, grace, overlap, paused, next_at, last_at,
            last_job
        FROM litejobs_schedule ORDER BY name
    """,
    "nodes": "SELECT id, name FROM litejobs_node ORDER BY id",
}


def expected(model: Model) -> dict[str, list[Any]]:
    """What a query for each part should give."""
    counts = Counter((t.state, t.queue, t.name) for t in model.jobs.values() if t.state in COUNTED)
    return {
        "jobs": [*map(as_row, model.jobs.values())],
        "failed attempts": sorted(model.failed, key=lambda failed: failed[0]),
        "counts": sorted((*group, number) for group, number in counts.items()),
        "queues": [(name, *attrs.astuple(s)) for name, s in sorted(model.settings.items())],
        "schedules": [
            (name, s.order.name, text_of(s.order.n), s.misfire, s.grace, s.overlap, s.paused,
             s.next_at, s.last_at, s.last_job)
            for name, s in sorted(model.schedules.items())
        ],
        "nodes": [*model.nodes.items()],
    }  # fmt: skip


def difference(part: str, found: Sequence[Any], wanted: Sequence[Any]) -> str:
    """The first thing that is not as it should be, in words."""
    for there, should in itertools.zip_longest(found, wanted):
        if there == should:
            continue
        if part != "jobs" or there is None or should is None or there[0] != should[0]:
            return f"of the {part}, {there!r} is there instead of {should!r}"
        wrong = [
            f"{column} is {a!r} instead of {b!r}"
            for column, a, b in zip(COLUMNS, there, should, strict=True)
            if a != b
        ]
        return f"job {there[0]}: {', '.join(wrong)}"
    return "nothing"


@attrs.define(eq=False)
class Comparison:
    """Looks into the file from outside."""

    path: Path
    _connection: apsw.Connection | None = None

    def compare(self, model: Model) -> None:
        """Sees whether the file is what the model says.

        Raises:
            Violation: it is not.
        """
        if self._connection is None:
            self._connection = apsw.Connection(str(self.path))
        for part, wanted in expected(model).items():
            found: list[Any] = self._connection.execute(PARTS[part]).fetchall()
            if found != wanted:
                raise Violation(difference(part, found, wanted))

    def close(self) -> None:
        """Closes its connection; the next look opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


################################################################################
# What happens
################################################################################


@attrs.define(eq=False)
class Hand:
    """A node without workers."""

    name: str
    jobs: LiteJobs
    node: int
    subscription: Any
    held: dict[int, Claimed] = attrs.field(factory=dict)
    """By job."""

    @classmethod
    def join(cls, name: str, jobs: LiteJobs) -> Hand:
        """Comes to work."""
        subscription = jobs._subscription(None, name)
        known = jobs.registry.listing()
        node = jobs.store.nodes.join(name, 0, 1, subscription, known)
        return cls(name, jobs, node, subscription)

    def exchange(self, settlements: Sequence[Any], limit: int) -> tuple[list[Claimed], int]:
        """Settles, and claims at most so many; says also how many settlements were late."""

        def choose(ready: Ready) -> list[int]:
            while len(ready.taken) < limit and ready.peek():
                next(ready)
            return ready.taken

        store = self.jobs.store
        if store._ready is not None:
            # On a busy machine a look may take so long that the next one is put off a while.
            time.sleep(max(0.0, store._ready._scan_not_before - time.monotonic()))
        done = store.exchange(settlements, self.node, choose, self.subscription)
        return done.claimed, done.late

    @property
    def duties(self) -> Duties:
        """What it does besides running jobs."""
        return Duties(self.jobs.store, self.node)


Story = list[tuple[str, dict[str, Any]]]
"""The steps of an example: names of methods, and what they were called with."""


@attrs.define(eq=False)
class Bench:
    """What the examples of one run share."""

    run: Run
    folder: Path
    template: Path
    """A file in which nothing has happened."""
    wrong: tuple[Story, Exception] | None = None
    """The story that ended badly last, and how."""
    files: Iterator[int] = attrs.field(factory=itertools.count)

    @classmethod
    def of(cls, run: Run, folder: Path) -> Bench:
        """Makes the template."""
        template = folder / "template.db"
        with LiteJobs(template, durability="fast") as jobs:
            jobs.count()
        return cls(run, folder, template)


SHORTENING = 20.0
"""Seconds for making a story shorter."""
HANGING = 60
"""Seconds after which an example, which takes a tenth of one, is given up."""


@attrs.frozen
class Kind:
    """A kind of step: how often it is taken, and what its arguments are drawn from."""

    group: str
    weight: int
    arguments: st.SearchStrategy[dict[str, Any]]


KINDS: dict[str, Kind] = {}
"""By the names of their methods."""
GROUPS = ("enqueue", "run", "nodes", "steer", "duties", "schedules", "trouble")
Happen = Callable[..., None]


def step(group: str, weight: int = 1, **drawn: Any) -> Callable[[Happen], Happen]:
    """Something that may happen; it is written into the story, and all is compared after it."""

    def decorate(happen: Happen) -> Happen:
        KINDS[happen.__name__] = Kind(group, weight, st.fixed_dictionaries(drawn))

        @functools.wraps(happen)
        def happens(self: LifeOfJobs, **values: Any) -> None:
            self.story.append((happen.__name__, values))
            try:
                happen(self, **values)
                self.comparison.compare(self.model)
            except Exception as error:
                self.bench.wrong = [*self.story], error
                raise
            self.bench.run.counts["steps"] += 1

        return happens

    return decorate


@functools.cache
def kinds(favourite: str, missing: str) -> st.SearchStrategy[str]:
    """Kinds of steps by their weights: one group has more of them, another one none, so that
    lives differ."""
    return st.sampled_from(
        [
            name
            for name, kind in KINDS.items()
            if kind.group != missing
            for _ in range(kind.weight * (3 if kind.group == favourite else 1))
        ]
    )


def some(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


NAMES, NODES, SCHEDULES = some(*RULES), some("a", "b"), some("s", "t")
KEYS = some(None, None, None, ("k", 1), ("k", 2), ("l", 1))
ONLY = some(
    None, None, None, None,
    Only("u"), Only("u", "active"), Only("u", "exists"), Only("v", on_conflict="raise"),
    Only("u", on_conflict="replace"), Only("u", on_conflict="merge"), Only("u", ttl=60),
    Only("u", "active", "raise", 3_600), Only("v", "exists", ttl=60), Only("v"),
    Only("u", "active", ttl=1),
    Only("v", on_conflict="replace"),
)  # fmt: skip
ORDERS = st.builds(
    Order,
    name=NAMES,
    n=st.integers(0, 3),
    priority=some(0, 0, 1, -1),
    due=some(0, 0, 0, 0, 5, 3_600, -10, 60),
    expires=some(None, None, None, 0, 3, 60, 3_600),
    node=some(None, None, None, None, "a", "b"),
    key=KEYS,
    only=ONLY,
)
PICKS = st.lists(st.integers(0, 9), min_size=1, max_size=3)
"""Jobs, counted from the newest."""
TARGETS = st.one_of(
    PICKS,
    PICKS,
    some(*({"state": state} for state in STATES)),
    some(
        {"queue": "slow"}, {"name": "mail"}, {"key": "k"}, {"schedule": "s"}, {"node": "a"},
        {"name": "poll", "state": ("pending", "running", "cancelled")},
    ),
)  # fmt: skip
FITTING = (
    ("retry", ("failed", "cancelled")), ("retry", ("failed", "cancelled", "retrying")),
    ("retry", "cancelled"), ("retry", "blocked"), ("release", "paused"),
    ("hold", ("pending", "blocked", "scheduled")),
    ("cancel", ("pending", "running")), ("delete", FINISHED),
)  # fmt: skip
ACTS = some(
    "return", "return", "raise", "raise", "retry", "later", "snooze", "fail", "cancel",
    "crash", "crash", "timeout", "give back", "give back", "stop", "asked", "misfit",
)  # fmt: skip


class LifeOfJobs(RuleBasedStateMachine):
    """Two programs, two nodes, one clock and one file."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.story: Story = []
        self.clock = TurnedClock()
        self.model = Model(self.clock)
        self.hands: dict[str, Hand] = {}
        self.fallen: dict[int, list[Claimed]] = {}
        """What nodes held that died and are still listed."""
        self.ghosts: list[Claimed] = []
        """Claims that do not hold any more."""
        self.path = bench.folder / f"{next(bench.files)}" / "jobs.db"
        self.path.parent.mkdir()
        shutil.copyfile(bench.template, self.path)
        self.acts: dict[int, str] = {}
        self._open()
        if hasattr(signal, "alarm"):
            signal.alarm(HANGING)

    @initialize(favourite=some(*GROUPS), missing=some("", *GROUPS[2:]))
    def begin(self, favourite: str, missing: str) -> None:
        """Each life has a way of its own."""
        self.kinds = kinds(favourite, missing)

    @rule(data=st.data())
    def go_on(self, data: Any) -> None:
        """Takes a step."""
        name = data.draw(self.kinds)
        getattr(self, name)(**data.draw(KINDS[name].arguments))

    def _open(self) -> None:
        """Two programs start."""
        self.programs = [self._program(), self._program()]
        self.comparison = Comparison(self.path)
        self.registry, self.rng = self.programs[0].registry, random.Random(0)
        self.executor = Executor(self.registry, self.acts, self.clock)

    def _program(self) -> LiteJobs:
        jobs = LiteJobs(self.path, durability="fast", clock=self.clock)
        jobs.register(*DEFINITIONS.values())
        return jobs

    def teardown(self) -> None:
        """Has the file examined, and ends all."""
        try:
            self.examine()
        finally:
            if hasattr(signal, "alarm"):
                signal.alarm(0)
            self._close()
            shutil.rmtree(self.path.parent)

    def examine(self) -> None:
        """Has the doctor look for what is broken."""
        try:
            broken = [found for found in self.programs[0].doctor() if found.level == "error"]
            if broken:
                raise Violation(f"doctor finds {broken}")
        except Exception as error:
            self.bench.wrong = [*self.story], error
            raise

    def _close(self) -> None:
        for hand in self.hands.values():
            hand.jobs.store.nodes.release_lock(hand.node)
        for jobs in self.programs:
            jobs.close()
        self.comparison.close()

    def expect(self, found: object, wanted: object, what: str) -> None:
        """Sees whether something is what the model says."""
        if found != wanted:
            raise Violation(f"{what}: {found!r} instead of {wanted!r}")

    def hand(self, name: str) -> Hand:
        """The node of this name, which comes to work if need be."""
        if name not in self.hands:
            jobs = self.programs["ab".index(name)]
            hand = self.hands[name] = Hand.join(name, jobs)
            self.model.nodes[hand.node] = name
        return self.hands[name]

    # Enqueue

    def _place(self, orders: Sequence[Order], by: int) -> None:
        """Enqueues by one program or the other, all or none."""
        jobs = self.programs[by]
        works = [order.bound(self.clock) for order in orders]
        placed: object
        try:
            made = [jobs.enqueue(works[0])] if len(works) == 1 else jobs.enqueue_many(works)
            placed = [(job.id, job.duplicate) for job in made]
        except DuplicateError as error:
            placed = error.id
        wanted: object
        try:
            wanted = self.model.place(orders)
        except Refused as refused:
            (wanted,) = refused.args
        self.expect(placed, wanted, "enqueued (with duplicates), or the job in the way")

    @step("enqueue", 2, order=ORDERS, by=some(0, 1))
    def enqueue(self, order: Order, by: int) -> None:
        self._place([order], by)

    @step("enqueue", 2, orders=st.lists(ORDERS, min_size=2, max_size=4), by=some(0, 1))
    def enqueue_many(self, orders: list[Order], by: int) -> None:
        self._place(orders, by)

    @step("enqueue", 3, order=ORDERS, by=some(0, 1), times=some(1, 2), after=some(0, 0, 1, 61))
    def enqueue_a_common_one(self, order: Order, by: int, times: int, after: int) -> None:
        """One that any node takes at once, so that more runs; some time after the last step."""
        self._turn(after)
        self._place([attrs.evolve(order, due=0, expires=None, node=None)] * times, by)

    @step("enqueue", order=ORDERS, by=some(0, 1))
    def broadcast(self, order: Order, by: int) -> None:
        order = attrs.evolve(order, only=None)
        made = self.programs[by].broadcast(order.bound(self.clock))
        self._rescued()
        names = sorted(set(self.model.nodes.values()))
        wanted = self.model.place([attrs.evolve(order, node=name) for name in names])
        self.expect([(job.id, False) for job in made], wanted, "broadcast")

    # Run

    def _attempt(self, claimed: Claimed, act: str) -> Report:
        """Runs a job, or says how its node made it end."""
        if act == "give back":
            return not_begun(self.clock(), cancelled=False)
        if act == "misfit":
            return Executor(MISFITS, self.acts, self.clock).run(claimed)
        self.acts[claimed.id] = act
        report = self.executor.run(claimed, lambda: "stop" if act == "stop" else None)
        if act in ("crash", "timeout", "asked"):
            nobody: Any = None
            run = litejobs.Run(0, claimed, nobody, 0.0)
            reasons: dict[str, Any] = {"timeout": "timeout", "asked": "cancel"}
            run.reason = reasons.get(act)
            return final_report(run, report, self.registry, self.rng, "of course")
        return report

    def _exchange(self, node: str, acts: Sequence[str], ghosts: int, limit: int) -> None:
        """Settles and claims, in one transaction, with results that nobody wants any more."""
        hand = self.hand(node)
        ended = [*zip(hand.held.values(), acts, strict=False)]
        # Best of jobs that run again by now.
        self.ghosts.sort(key=lambda ghost: self._runs(ghost.id))
        late = [*zip(self.ghosts[::-1][:ghosts], itertools.cycle(acts or ["return"]))]
        settlements = [
            (claimed, self._attempt(claimed, act)._replace(worker=1))
            for claimed, act in (*late, *ended)
        ]
        claimed, too_late = hand.exchange(settlements, limit)
        self.expect(too_late, len(late), "settlements that came too late")
        for job, act in ended:
            self.model.settle(self.model.jobs[job.id], act)
            self.ghosts.append(hand.held.pop(job.id))
        self.model.admit()
        wanted = self.model.claim(hand.node, limit, [job.id for job in claimed])
        self.expect(
            [(job.id, job.claim, job.attempt, job.payload, job.key) for job in claimed],
            [(twin.id, twin.claim, twin.attempt, twin.payload, twin.key) for twin in wanted],
            "claimed",
        )
        hand.held |= {job.id: job for job in claimed}

    def _runs(self, id: int) -> bool:
        twin = self.model.jobs.get(id)
        return twin is not None and twin.state == "running"

    @step("run", 3, node=NODES, acts=st.lists(ACTS, max_size=3), limit=some(3, 1, 2, 0))
    def exchange(self, node: str, acts: list[str], limit: int) -> None:
        self._exchange(node, acts, 0, limit)

    @step(
        "run",
        3,
        node=NODES,
        acts=st.lists(ACTS, max_size=3),
        ghosts=some(1, 2, 3),
        limit=some(2, 0),
    )
    def exchange_late(self, node: str, acts: list[str], ghosts: int, limit: int) -> None:
        self._exchange(node, acts, ghosts, limit)

    @step("run", 4, node=NODES, acts=st.lists(ACTS, min_size=1, max_size=3))
    def take_and_end(self, node: str, acts: list[str]) -> None:
        """Due jobs run at once, as on a node that has time."""
        self.expect(self.hand(node).jobs.store.stage(self.model.now)[0], self.model.stage(), "due")
        self._exchange(node, (), 0, 3)
        self._exchange(node, acts, 0, 0)

    @step("run", node=NODES)
    def offer(self, node: str) -> None:
        """A node has other definitions now, which may fit."""
        hand = self.hand(node)
        others = dict.fromkeys(DEFINITIONS, f"{self.model.now}")
        subscription = attrs.evolve(hand.subscription, fingerprints=others)
        released = hand.jobs.store.release_unfit(subscription, hand.node, 10**6)
        self.expect(released, self.model.offer(node), "offered to other definitions")

    @step("run", node=NODES, ghost=st.booleans(), done=st.integers(0, 9))
    def tell_progress(self, node: str, ghost: bool, done: int) -> None:
        """A report counts only if its attempt holds the job."""
        held = self.ghosts if ghost else [*self.hand(node).held.values()]
        if not held:
            return
        text = store_progress(litejobs.Progress(done, 10))
        self.hand(node).jobs.store.keep_progress({held[-1][:2]: (text, None)})
        if not ghost:
            self.model.jobs[held[-1].id].progress = text

    # Nodes

    def _rescued(self) -> None:
        """What died is off the list."""
        for node in list(self.fallen):
            self.model.lose(node)
            self.ghosts += self.fallen.pop(node)

    @step("nodes", node=NODES)
    def a_node_dies(self, node: str) -> None:
        """All its processes are killed: nothing changes until somebody looks."""
        self._die(node)

    def _die(self, node: str) -> None:
        hand = self.hand(node)
        del self.hands[node]
        hand.jobs.store.nodes.release_lock(hand.node)
        self.fallen[hand.node] = [*hand.held.values()]

    @step("nodes", node=NODES, times=some(2, 3, 4))
    def nodes_die_with_their_jobs(self, node: str, times: int) -> None:
        """One after the other, as of jobs that take the machine down."""
        for _ in range(times):
            self._exchange(node, (), 0, 3)
            self._die(node)
            node = "b" if node == "a" else "a"
            self.hand(node)
            self._all_rescue()

    @step("nodes", node=NODES)
    def a_node_leaves(self, node: str) -> None:
        hand = self.hand(node)
        del self.hands[node]
        hand.jobs.store.leave(hand.node)
        self.model.lose(hand.node)
        self.ghosts += hand.held.values()

    @step("nodes", 2, node=NODES)
    def rescue(self, node: str) -> None:
        """Each looks after the next one; the living are left alone."""
        hand = self.hand(node)
        self._all_rescue()
        for other in self.hands.values():
            self.expect(hand.jobs.store.nodes.rescue(other.node), [], "rescued from the living")

    def _all_rescue(self) -> None:
        for hand in self.hands.values():
            hand.duties.do("rescue")
        self._rescued()

    @step("nodes", node=NODES, known=st.integers(0, 3))
    def forget_strays(self, node: str, known: int) -> None:
        """A commit of unknown outcome has claimed more than its node knows."""
        hand = self.hand(node)
        kept = [*hand.held][:known]
        claims = [hand.held[id][:2] for id in kept]
        hand.jobs.store.nodes.release_orphans(hand.node, claims)
        self.model.release_orphaned(hand.node, kept)
        self.ghosts += [hand.held.pop(id) for id in [*hand.held] if id not in kept]

    # Steer

    def _meant(self, which: Any) -> tuple[list[int], dict[str, Any], list[Twin]]:
        """Ids, filters, and the jobs that they mean."""
        if isinstance(which, list):
            ids = [max(1, self.model.last_id - pick) for pick in which]
            return ids, {}, [self.model.jobs[id] for id in sorted({*ids} & {*self.model.jobs})]
        meant = [
            twin for twin in self.model.jobs.values()
            if all(getattr(twin, name) in (value if isinstance(value, tuple) else (value,))
                   for name, value in which.items())
        ]  # fmt: skip
        return [], which, meant

    @step(
        "steer",
        4,
        verb=some("cancel", "retry", "delete", "hold", "release"),
        which=TARGETS,
        by=some(0, 1),
    )
    def steer(self, verb: str, which: Any, by: int) -> None:
        self._steer(verb, which, by)

    def _steer(self, verb: str, which: Any, by: int) -> None:
        ids, filters, meant = self._meant(which)
        moved = getattr(self.programs[by], verb)(*ids, **filters)
        changed = getattr(self.model, verb)(meant)
        self.model.admit()
        self.expect(moved, Moved(changed, len(meant) - changed), f"changed by {verb}")

    @step(
        "steer",
        2,
        which=TARGETS,
        to=st.fixed_dictionaries(
            {},
            optional={
                "queue": some("default", "slow"),
                "priority": some(2, -2),
                "max_attempts": some(1, None),
                "node": some(None, "a"),
                "delay": some(0, 5, 60),
                "expires": some(None, 0, 60),
                "payload": some({"n": 7}),
            },
        ).filter(bool),
        by=some(0, 1),
    )
    def change(self, which: Any, to: dict[str, Any], by: int) -> None:
        ids, filters, meant = self._meant(which)
        columns: dict[str, Any]
        columns = {name: to[name] for name in ("queue", "priority", "max_attempts") if name in to}
        if "node" in to:
            columns["node"] = to["node"] or ""
        if "delay" in to:
            columns["run_at"] = self.model.now + to["delay"] * SECOND
        if "expires" in to:
            lasts, start = to["expires"], columns.get("run_at", self.model.now)
            columns["expires_at"] = None if lasts is None else start + lasts * SECOND
        if "payload" in to:
            columns["payload"] = text_of(to["payload"]["n"])
        moved = self.programs[by].change(*ids, to=to, **filters)  # type: ignore[arg-type]
        changed = self.model.change(meant, columns)
        self.model.admit()
        self.expect(moved, Moved(changed, len(meant) - changed), "changed")

    @step("steer", 3, deed=some(*FITTING), by=some(0, 1))
    def steer_those_that_it_is_for(self, deed: tuple[str, Any], by: int) -> None:
        verb, states = deed
        self._steer(verb, {"state": states}, by)

    @step(
        "steer", 2,
        queue=some("default", "slow"),
        to=some(
            "pause", "resume", "reset", {"concurrency": 1}, {"concurrency": 2},
            {"concurrency": None}, {"max_attempts": 2}, {"max_attempts": None},
        ),
        by=some(0, 1),
    )  # fmt: skip
    def set_queue(self, queue: str, to: Any, by: int) -> None:
        handle = self.programs[by].queue(queue)
        setting = self.model.settings.setdefault(queue, Setting())
        match to:
            case "pause":
                handle.pause()
                setting.paused = 1
            case "resume":
                handle.resume()
                setting.paused = 0
            case "reset":
                handle.reset()
                del self.model.settings[queue]
            case {"max_attempts": limit}:
                handle.set(max_attempts=limit)
                setting.max_attempts = limit or 0
            case {"concurrency": limit}:
                handle.set(concurrency=limit)
                setting.concurrency = limit

    # Duties

    @step("duties", 2, node=NODES)
    def stage(self, node: str) -> None:
        staged, _ = self.hand(node).jobs.store.stage(self.model.now)
        self.expect(staged, self.model.stage(), "staged")

    @step("duties", node=NODES)
    def expire(self, node: str) -> None:
        expired, _ = self.hand(node).jobs.store.expire(self.model.now)
        self.expect(expired, self.model.expire(), "expired")

    @step("duties", node=NODES)
    def prune(self, node: str) -> None:
        pruned = self.hand(node).jobs.store.prune(self.model.now)
        self.expect(pruned, self.model.prune(), "pruned")

    @step("duties", node=NODES)
    def attend_to_all_duties(self, node: str) -> None:
        """As a node does when it starts. Nobody waits for a key that has room."""
        hand = self.hand(node)
        self._sees_the_clock_set_back(hand)
        self.expect(hand.jobs.store.admit(), 0, "jobs that waited for a key in vain")
        self._all_rescue()
        hand.duties.do(*DUTIES)
        self.model.fire()
        self.model.stage()
        self.model.expire()
        self.model.prune()

    # Schedules

    def _sees_the_clock_set_back(self, hand: Hand) -> None:
        """Has all next ticks worked out, which a node does at the start or if the clock is behind
        what it has seen."""
        hand.jobs.store.schedules._last_fired_at = self.model.now + 1

    @step(
        "schedules",
        2,
        names=some(("s",), ("t",), ("s", "t")),
        order=ORDERS,
        expression=some("@every 10m", "*/30 * * * *", "@every 7h", "0 */6 * * *"),
        misfire=some("once", "once", "skip", "all"),
        grace=some(60, 3_600, 5),
        overlap=some("allow", "allow", "skip"),
        by=some(0, 1),
    )
    def set_schedules(
        self, names: Sequence[str], order: Order, expression: str, by: int, **how: Any
    ) -> None:
        lengths = {"@every 10m": 600, "*/30 * * * *": 1_800, "@every 7h": 25_200}
        every = lengths.get(expression, 21_600) * SECOND
        if every < HOUR and how["misfire"] == "all":
            how["misfire"] = "skip"  # A day of them would be a hundred jobs.
        only = order.only
        if only is not None and only.on_conflict == "merge":
            only = None  # Only a program can merge, not a file.
        order = attrs.evolve(order, due=0, only=only)
        work = _bound(order).using(delay=0)
        for name in names:
            self.programs[by].schedule(name).set(expression, work, **how)
            new = Recurrence(name, order, every, "*" in expression, **how, next_at=0)
            new.grace *= SECOND
            new.next_at = new.after(self.model.now, self.model.now)
            new.cover(self.model.now, self.model.now)
            self.model.put(new)

    @step(
        "schedules", name=SCHEDULES, verb=some("pause", "resume", "remove", "fire"), by=some(0, 1)
    )
    def steer_schedule(self, name: str, verb: str, by: int) -> None:
        handle = self.programs[by].schedule(name)
        if (entry := self.model.schedules.get(name)) is None:
            with contextlib.suppress(ScheduleNotFoundError):
                getattr(handle, verb)()
                raise Violation(f"a schedule that is not there: {verb}")
            return
        if verb == "fire":
            self._fire_now(handle)
            return
        getattr(handle, verb)()
        if verb == "pause":
            entry.paused = 1
        elif verb == "resume":
            self.model.resume(entry)
        else:
            del self.model.schedules[name]

    def _fire_now(self, handle: Any) -> None:
        try:
            fired = handle.fire().id
        except DuplicateError as error:
            fired = error.id
        try:
            wanted = self.model.fire_now(handle.name)
        except Refused as refused:
            (wanted,) = refused.args
        self.expect(fired, wanted, "the job of a schedule that was fired")

    @step(
        "schedules",
        2,
        node=NODES,
        at_once=st.booleans(),
        after=some(0, 0, 601, 1_801, 25_201, 86_400),
    )
    def fire(self, node: str, at_once: bool, after: int) -> None:
        """One node fires what is due; or another one comes in between, so that the first finds
        ticks fired that were due when it looked."""
        self._turn(after)
        first, other = self.hand(node), self.hand("b" if node == "a" else "a")
        fired: list[int] = []
        for hand in (first, other):
            self._sees_the_clock_set_back(hand)

        def come_between(entry: object, jobs: object) -> None:
            if at_once:
                fired.append(other.jobs.store.schedules.fire(self.model.now)[0])

        fired.append(first.jobs.store.schedules.fire(self.model.now, come_between)[0])
        self.expect(sum(fired), self.model.fire(), "jobs of ticks")

    # Time and trouble

    @step(
        "trouble",
        3,
        seconds=some(1, 3, 11, 31, 61, 61, 601, 3_601, 86_400, -1, -11, -3_600, -86_400),
    )
    def turn_the_clock(self, seconds: int) -> None:
        self._turn(seconds)

    def _turn(self, seconds: int) -> None:
        self.clock.turn(seconds)
        self.model.now = self.clock()
        if seconds < 0:
            # A node does not look again at a job that it could not claim, since it had expired,
            # until somebody commits: as the duty does that cancels it, within a second.
            for jobs in self.programs:
                jobs.store._ready = None

    @step("trouble", which=some("one", "the other", "all"))
    def close(self, which: str) -> None:
        """The next use opens the file again. The last to close it takes the WAL away."""
        for jobs in self.programs if which == "all" else self.programs[which == "one" :][:1]:
            jobs.close()
        if which == "all":
            self.comparison.close()

    @step("trouble")
    def kill_everything(self) -> None:
        """What the file and its WAL hold at this moment is all that is left."""
        after = self.bench.folder / f"{next(self.bench.files)}" / "jobs.db"
        after.parent.mkdir()
        # By another process: to open the file here would drop the locks that this one has on it.
        parts = [part for part in (self.path, f"{self.path}-wal") if os.path.exists(part)]
        subprocess.run(["cp", *parts, after.parent], check=True)
        for lock in self.path.parent.glob("*-node-*"):
            (after.parent / lock.name).touch()
        for hand in self.hands.values():
            self.fallen[hand.node] = [*hand.held.values()]
        self._close()
        self.hands.clear()
        shutil.rmtree(self.path.parent)
        self.path = after
        self._open()

    # Look

    @step("steer", which=TARGETS, limit=some(3, 100), by=some(0, 1))
    def look(self, which: Any, limit: int, by: int) -> None:
        """What the public face shows is what is in the file."""
        ids, filters, meant = self._meant(which)
        jobs = self.programs[by]
        filters = filters or {"id": ids}
        found = [job.id for job in jobs.find(limit=limit, **filters)]
        self.expect(found, [twin.id for twin in reversed(meant)][:limit], "found")
        self.expect(jobs.count(**filters), len(meant), "counted")
        stats: dict[str, dict[str, int]] = {}
        for twin in self.model.jobs.values():
            states = stats.setdefault(twin.queue, {})
            states[twin.state] = states.get(twin.state, 0) + 1
        self.expect(jobs.stats(), stats, "stats")
        for id in ids:
            self._look_at(jobs, id)

    def _look_at(self, jobs: LiteJobs, id: int) -> None:
        if (twin := self.model.jobs.get(id)) is None:
            with contextlib.suppress(JobNotFoundError):
                raise Violation(f"{jobs.get(id)!r} is not there any more, but is given")
            return
        job = jobs.get(id)
        shown = job.state, job.attempt, job.payload, job.key, len(job.errors)
        failures = sum(failed[0] == id for failed in self.model.failed)
        wanted = twin.state, twin.attempt, {"n": self.model._n(twin)}, twin.key, failures
        self.expect(shown, wanted, f"job {id}")
        self.expect(bool(job.why()), True, "a reason")
        if twin.state == "completed":
            self.expect(job.result(), f"attempt {twin.attempt}", "a result")


################################################################################
# The ordeal
################################################################################

STEPS = 80
"""Of one example."""
EXAMPLES = 50
"""Of one batch: then Hypothesis begins anew, with the next seed, lest its memory grow."""


@contextlib.contextmanager
def in_memory(run: Run) -> Iterator[Path]:
    """A folder where syncs cost nothing, if there is one."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else run.folder
    with tempfile.TemporaryDirectory(prefix="litejobs-model-", dir=place) as folder:
        yield Path(folder)


def give_up(signum: int, frame: object) -> None:
    """Called when an example does not come to an end."""
    raise Violation(f"an example has been running for {HANGING} seconds: something hangs")


def retold(bench: Bench, story: Story) -> tuple[Story, Exception] | None:
    """Lets the same happen again; gives what was wrong, if anything was."""
    bench.wrong = None
    life = LifeOfJobs(bench)
    with contextlib.suppress(Exception):
        try:
            for name, values in story:
                getattr(life, name)(**values)
        finally:
            life.teardown()
    return bench.wrong


def shortened(bench: Bench, story: Story, error: Exception) -> tuple[Story, Exception]:
    """The same with fewer steps: leaves out half of them, a quarter, one, as long as it still
    ends badly."""
    until, size = time.monotonic() + SHORTENING, len(story)
    while size := size // 2:
        start = 0
        while start < len(story) and time.monotonic() < until:
            if shorter := retold(bench, story[:start] + story[start + size :]):
                story, error = shorter
            else:
                start += size
    return story, error


def describe(story: Story, error: Exception) -> str:
    """What happened, step by step, and what came of it."""
    steps = [
        f"    {name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"
        for name, values in story
    ]
    if isinstance(error, Violation):
        return "\n".join([f"{error}, after", *steps])
    trouble = "".join(traceback.format_exception(error))
    return "\n".join([f"{error!r}, after", *steps, trouble])


def live(bench: Bench, number: int, examples: int) -> None:
    """Lets Hypothesis make up some lives.

    Raises:
        Violation: one went wrong; it is shown without the steps that it does not need.
    """

    def life() -> LifeOfJobs:
        return LifeOfJobs(bench)

    how = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        phases=(Phase.generate,),  # Stories are made shorter here, which is faster.
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=[*HealthCheck],
    )
    try:
        run_state_machine_as_test(seed(number)(life), settings=how)  # type: ignore[arg-type]
    except Exception:
        if bench.wrong is None:
            raise
        story, error = shortened(bench, *bench.wrong)
        bench.run.violated(f"{describe(story, error)}\n  (batch with seed {number})")


def model(run: Run) -> None:
    """Every row is what a model in plain Python says, whatever people, nodes and clocks do."""
    litejobs.logger.setLevel("ERROR")
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, give_up)
    with in_memory(run) as folder:
        bench = Bench.of(run, folder)
        for number in itertools.count(run.seed):
            left = run.count - run.counts["steps"]
            if left <= 0:
                return
            live(bench, number, min(EXAMPLES, -(-left // STEPS)))
            run.counts["lives"] += min(EXAMPLES, -(-left // STEPS))


ORDEALS = (Ordeal(run=model, quick=2_500, full=500_000, unit="steps"),)
