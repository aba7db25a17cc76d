"""The life of a job, whatever people and handlers do, against a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from conftest import TurnedClock, row_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from litejobs import (
    FINISHED,
    MICROSECOND,
    STATES,
    WAITING,
    Cancel,
    Constant,
    Context,
    Fail,
    Job,
    LiteJobs,
    Moved,
    Retention,
    Retry,
    Snooze,
    State,
    to_micros,
)

Act = Literal["return", "raise", "exit", "retry", "retry later", "snooze", "fail", "cancel"]
ACTS: tuple[Act, ...] = (
    "return", "raise", "exit", "retry", "retry later", "snooze", "fail", "cancel",
)  # fmt: skip

SECOND = 1_000_000
BACKOFF, LATER, NAP = 10, 60, 30
"""Seconds that jobs wait: after a failure, when a handler wants more, when it snoozes."""

NEVER = 10**18
KEPT: Mapping[str, float | None] = {"completed": 100, "failed": None, "cancelled": 0}

plan: dict[int, Act] = {}
"""What each job will do when it runs next, by its id."""

ran: list[int] = []


def perform(context: Context[Any]) -> str:
    """The only handler: does what the plan says."""
    ran.append(context.job.id)
    match plan[context.job.id]:
        case "return":
            return f"attempt {context.attempt}"
        case "raise":
            raise ValueError("as planned")
        case "exit":
            raise SystemExit(3)
        case "retry":
            raise Retry(reason="again")
        case "retry later":
            raise Retry(LATER)
        case "snooze":
            raise Snooze(NAP)
        case "fail":
            raise Fail("for good")
        case "cancel":
            raise Cancel("no need")


@attrs.define
class Model:
    """What is known of one job."""

    id: int
    priority: int
    max_attempts: int | None
    run_at: int
    state: State
    attempt: int = 0
    failures: int = 0
    ended: int = NEVER
    result: str | None = None

    def seen(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "attempt": self.attempt,
            "run_at": self.run_at,
            "failures": self.failures,
            "result": self.result,
        }

    @property
    def prune_at(self) -> float:
        kept = KEPT.get(self.state)
        return NEVER if kept is None else self.ended + kept * SECOND

    def run(self, act: Act) -> int | None:
        """Changes to what one attempt makes of the job; gives the seconds until it is
        due again."""
        self.attempt += 1
        again = self.max_attempts is None or self.attempt < self.max_attempts
        match act:
            case "return":
                self.state, self.result = "completed", f"attempt {self.attempt}"
            case "cancel":
                self.state = "cancelled"
            case "snooze":
                self.state, self.attempt = "scheduled", self.attempt - 1
                return NAP
            case "retry later":
                self.state, self.failures = "retrying", self.failures + 1
                return LATER
            case "raise" | "exit" | "retry" if again:
                self.state, self.failures = "retrying", self.failures + 1
                return BACKOFF
            case _:
                self.state, self.failures = "failed", self.failures + 1
        return None


class JobsAndPeople(RuleBasedStateMachine):
    """Enqueues, runs, cancels, retries, deletes, prunes and turns the clock in any
    order; after each step all that can be seen of every job is what the model says."""

    jobs_made = Bundle[int]("jobs_made")

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = TurnedClock()
        self.jobs = LiteJobs(self.folder / "jobs.db", durability="fast", clock=self.clock)
        self.perform = self.jobs.define(
            backoff=Constant(BACKOFF),
            retention=Retention(**KEPT),
        )(perform)
        self.model: dict[int, Model] = {}
        plan.clear()
        ran.clear()

    def teardown(self) -> None:
        if hasattr(self, "jobs"):
            self.jobs.close()
            shutil.rmtree(self.folder)

    # Enqueue

    @rule(
        target=jobs_made,
        number=st.integers(1, 3),
        priority=st.integers(-1, 1),
        delay=st.sampled_from([0, 0, 0, 1, 45]),
        max_attempts=st.sampled_from([1, 2, 3, None]),
    )
    def enqueue(self, number: int, priority: int, delay: int, max_attempts: int | None) -> Any:
        options = self.perform.using(priority=priority, delay=delay, max_attempts=max_attempts)
        made = self.jobs.enqueue_many([options.bind()] * number)
        for job in made:
            run_at = self.clock() + delay * SECOND
            state: State = "scheduled" if delay else "pending"
            assert job.id not in self.model, "an id is never used again"
            self.model[job.id] = Model(job.id, priority, max_attempts, run_at, state)
        return multiple(*(job.id for job in made))

    # Run

    @rule(acts=st.lists(st.sampled_from(ACTS), min_size=1, max_size=5))
    def drain(self, acts: list[Act]) -> None:
        now = self.clock()
        self.model = {id: job for id, job in self.model.items() if job.prune_at > now}
        for job in self.model.values():
            if job.state in ("scheduled", "retrying") and job.run_at <= now:
                job.state = "pending"
        due = [job for job in self.model.values() if job.state == "pending"]
        due.sort(key=lambda job: (-job.priority, job.run_at, job.id))
        plan.update({job.id: acts[n % len(acts)] for n, job in enumerate(due)})
        ran.clear()
        assert self.jobs.drain() == len(due)
        assert ran == [job.id for job in due]
        for job in due:
            self._settle(job, now)

    def _settle(self, job: Model, now: int) -> None:
        delay = job.run(plan[job.id])
        row = row_of(self.jobs.store, job.id)
        assert row.started_at == now
        # How long an attempt took is measured, not told by the clock that tests turn.
        if delay is None:
            assert row.finished_at is not None
            assert now <= row.finished_at < now + 5 * SECOND
            job.ended = row.finished_at
        else:
            assert now + delay * SECOND <= row.run_at < now + (delay + 5) * SECOND
            job.run_at = row.run_at

    @rule(seconds=st.sampled_from([0.5, 6, 11, 31, 66, 101, -20]))
    def turn_the_clock(self, seconds: float) -> None:
        self.clock.turn(seconds)

    # Steer

    def _among(self, ids: tuple[int, ...], states: tuple[State, ...]) -> list[Model]:
        found = [self.model[id] for id in ids if id in self.model]
        return [job for job in found if job.state in states]

    def _expected(self, changed: list[Model], matching: int) -> Moved:
        return Moved(len(changed), matching - len(changed))

    def _cancel(self, ids: tuple[int, ...], matching: int) -> Moved:
        changed = self._among(ids, WAITING)
        for job in changed:
            job.state, job.ended = "cancelled", self.clock()
        return self._expected(changed, matching)

    def _retry(self, ids: tuple[int, ...], matching: int) -> Moved:
        waiting = self._among(ids, ("retrying",))
        ended = self._among(ids, ("failed", "cancelled"))
        for job in waiting + ended:
            job.state, job.run_at, job.ended = "pending", self.clock(), NEVER
        for job in ended:
            job.attempt = 0
        return self._expected(waiting + ended, matching)

    def _delete(self, ids: tuple[int, ...], matching: int) -> Moved:
        changed = self._among(ids, WAITING + FINISHED)
        for job in changed:
            del self.model[job.id]
        return self._expected(changed, matching)

    @rule(id=jobs_made)
    def cancel_one(self, id: int) -> None:
        assert self.jobs.cancel(id) == self._cancel((id,), id in self.model)

    @rule(id=jobs_made)
    def retry_one(self, id: int) -> None:
        assert self.jobs.retry(id) == self._retry((id,), id in self.model)

    @rule(id=consumes(jobs_made))
    def delete_one(self, id: int) -> None:
        expected = self._delete((id,), id in self.model)
        assert self.jobs.delete(id) == expected

    @rule(state=st.sampled_from(STATES), act=st.sampled_from(["cancel", "retry", "delete"]))
    def steer_all_of_a_state(self, state: State, act: str) -> None:
        ids = tuple(job.id for job in self.model.values() if job.state == state)
        expected = getattr(self, f"_{act}")(ids, len(ids))
        assert getattr(self.jobs, act)(state=state) == expected

    # Keep

    @rule()
    def prune(self) -> None:
        now = self.clock()
        over = [job.id for job in self.model.values() if job.prune_at <= now]
        for id in over:
            del self.model[id]
        assert self.jobs.store.prune(now) == len(over)

    @rule()
    def close_and_open_again(self) -> None:
        self.jobs.close()

    # See

    @invariant()
    def shows_what_the_model_says(self) -> None:
        if not hasattr(self, "jobs"):
            return
        found = {job.id: job for job in self.jobs.find(limit=10_000)}
        assert {id: self._seen(job) for id, job in found.items()} == {
            id: job.seen() for id, job in self.model.items()
        }
        assert list(found) == sorted(found, reverse=True)
        for job in found.values():
            assert job.finished == (job.state in FINISHED) == (job.finished_at is not None)

    def _seen(self, job: Job[Any]) -> dict[str, Any]:
        return {
            "state": job.state,
            "attempt": job.attempt,
            "run_at": to_micros(job.run_at),
            "failures": len(job.errors),
            "result": job.result() if job.state == "completed" else None,
        }

    @invariant()
    def counts_what_the_model_counts(self) -> None:
        if not hasattr(self, "jobs"):
            return
        states = [job.state for job in self.model.values()]
        counts = {state: states.count(state) for state in set(states)}
        assert self.jobs.stats() == ({"default": counts} if counts else {})
        assert self.jobs.nodes() == []


TestJobsAndPeople = JobsAndPeople.TestCase
TestJobsAndPeople.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


def a_life(jobs: LiteJobs, clock: TurnedClock, *acts: Act) -> Iterator[State]:
    """The states in which the acts of one job leave it."""
    job = jobs.define(backoff=Constant(BACKOFF), max_attempts=3)(perform).enqueue()
    yield job.state
    for act in acts:
        plan[job.id] = act
        jobs.drain()
        yield job.refresh().state
        clock.turn(LATER * 2)


def test_gives_up_after_the_last_attempt(jobs: LiteJobs, clock: TurnedClock) -> None:
    states = [*a_life(jobs, clock, "raise", "exit", "retry", "return")]
    assert states == ["pending", "retrying", "retrying", "failed", "failed"]
    assert [failure.attempt for failure in jobs.get(1).errors] == [1, 2, 3]


def test_never_counts_a_nap_as_an_attempt(jobs: LiteJobs, clock: TurnedClock) -> None:
    naps: list[Act] = ["snooze"] * 9
    states = [*a_life(jobs, clock, *naps, "return")]
    assert states == ["pending", *["scheduled"] * 9, "completed"]
    assert jobs.get(1).attempt == 1


def test_goes_past_the_limit_when_the_handler_names_the_time(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    retries: list[Act] = ["retry later"] * 5
    states = [*a_life(jobs, clock, *retries, "raise")]
    assert states == ["pending", *["retrying"] * 5, "failed"]
    assert jobs.get(1).attempt == 6


def test_fails_for_good_whatever_attempts_are_left(jobs: LiteJobs, clock: TurnedClock) -> None:
    assert [*a_life(jobs, clock, "fail")] == ["pending", "failed"]
    assert jobs.get(1).error == "Fail: for good"


def test_comes_back_from_the_dead_letters_with_all_its_attempts(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    assert [*a_life(jobs, clock, "raise", "fail")][-1] == "failed"
    assert jobs.retry(state="failed") == Moved(1)
    job = jobs.get(1)
    assert (job.state, job.attempt, job.error, job.finished_at) == ("pending", 0, None, None)
    assert len(job.errors) == 2, "its history stays"
    plan[1] = "raise"
    jobs.drain()
    job = job.refresh()
    assert (job.state, job.attempt, len(job.errors)) == ("retrying", 1, 3)


def test_runs_again_at_the_backoff_and_not_a_moment_before(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    states = a_life(jobs, clock, "raise")
    assert [next(states), next(states)] == ["pending", "retrying"]
    plan[1] = "return"
    clock.now = jobs.get(1).run_at - MICROSECOND
    assert jobs.drain() == 0
    clock.now += MICROSECOND
    assert jobs.drain() == 1
    assert jobs.get(1).result() == "attempt 2"
