"""Unique jobs: one winner for each key, whoever enqueues, and no key that sticks."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import attrs
import pytest
from conftest import TurnedClock, write_by_hand

from litejobs import (
    Cancel,
    Constant,
    Definition,
    DuplicateError,
    Job,
    LiteJobs,
    Moved,
    OptionError,
    Retry,
    Scope,
    Snooze,
    Unique,
)

SCOPES: tuple[Scope, ...] = ("queued", "active", "exists")
Note = Definition[..., Any, Any]


def note(customer: int = 0, text: str = "", *, items: list[int] | None = None) -> str:
    return text


@pytest.fixture
def noting(jobs: LiteJobs) -> Note:
    return jobs.define(note)


def one(noting: Note, **choices: Any) -> Note:
    return noting.using(unique=Unique(**choices))


# What is a duplicate


def test_a_duplicate_gives_the_job_that_is_there(noting: Note, jobs: LiteJobs) -> None:
    first, second = one(noting).enqueue(1), one(noting).enqueue(1)
    assert not first.duplicate
    assert second.duplicate
    assert second.id == first.id
    assert jobs.count() == 1


def test_the_whole_payload_counts_if_nothing_else_is_said(noting: Note, jobs: LiteJobs) -> None:
    one(noting).enqueue(1)
    assert one(noting).enqueue(1, "").duplicate, "a default says the same"
    assert one(noting).enqueue(text="", customer=1).duplicate, "in any order"
    assert not one(noting).enqueue(1, "other").duplicate


def test_some_fields_count_if_they_are_named(noting: Note) -> None:
    by_customer = one(noting, fields=["customer"])
    by_customer.enqueue(1, "a")
    assert by_customer.enqueue(1, "b").duplicate
    assert not by_customer.enqueue(2, "a").duplicate


def test_a_field_that_holds_its_default_is_the_same_given_or_not(noting: Note) -> None:
    by_text = one(noting, fields=("text",))
    by_text.enqueue(1)
    assert by_text.enqueue(2, "").duplicate


def test_a_function_of_the_arguments_makes_the_key(noting: Note) -> None:
    odd = one(noting, key=lambda customer, **_: customer % 2)
    odd.enqueue(1)
    assert odd.enqueue(3).duplicate
    assert not odd.enqueue(4).duplicate


def test_a_text_is_the_key(noting: Note) -> None:
    one(noting, key="nightly").enqueue(1)
    assert one(noting, key="nightly").enqueue(2).duplicate


def test_a_class_makes_its_own_key(jobs: LiteJobs) -> None:
    @jobs.define(name="import")
    @attrs.frozen
    class Import:
        account: str
        page: int = 0

        def unique_key(self) -> str:
            return self.account

        def run(self) -> None: ...

    first = jobs.enqueue(Import("a"))
    assert jobs.enqueue(Import("a", 2)).id == first.id
    assert not jobs.enqueue(Import("b")).duplicate
    assert not jobs.enqueue(Import("a"), unique=None).duplicate, "a choice overrides it"


def test_keys_of_two_definitions_never_meet(jobs: LiteJobs) -> None:
    a, b = (jobs.define(name=name)(note).using(unique=Unique(key="x")) for name in "ab")
    a.enqueue()
    assert not b.enqueue().duplicate


def test_a_job_without_the_option_is_no_duplicate(noting: Note) -> None:
    one(noting).enqueue(1)
    assert not noting.enqueue(1).duplicate


def test_the_payload_cannot_be_read_from_the_key(noting: Note, jobs: LiteJobs) -> None:
    one(noting, key="secret").enqueue()
    key = jobs.store.file.connection().execute("SELECT unique_key FROM litejobs_job").get
    assert "secret" not in key


# How long a key is held


@pytest.mark.parametrize("scope", SCOPES)
def test_a_waiting_job_holds_its_key_in_every_scope(noting: Note, scope: Scope) -> None:
    for delay in (0, 60):
        by_delay = noting.using(unique=Unique(scope=scope, key=str(delay)), delay=delay)
        by_delay.enqueue()
        assert by_delay.enqueue().duplicate


@pytest.mark.parametrize(("scope", "held"), [("queued", False), ("active", True), ("exists", True)])
def test_a_running_job_holds_it_or_not(jobs: LiteJobs, scope: Scope, held: bool) -> None:
    seen: list[bool] = []

    @jobs.define(unique=Unique(scope=scope))
    def again() -> None:
        if len(seen) < 3:
            seen.append(again.enqueue().duplicate)

    again.enqueue()
    jobs.drain()
    assert set(seen) == {held}


@pytest.mark.parametrize(
    ("scope", "held"), [("queued", False), ("active", False), ("exists", True)]
)
def test_a_finished_job_holds_it_or_not(
    noting: Note, jobs: LiteJobs, scope: Scope, held: bool
) -> None:
    first = one(noting, scope=scope).enqueue()
    jobs.drain()
    assert one(noting, scope=scope).enqueue().duplicate == held
    jobs.delete(first.id)
    jobs.delete(state="pending")
    assert not one(noting, scope=scope).enqueue().duplicate, "its row is gone"


def test_a_key_lives_no_longer_than_its_ttl(noting: Note, clock: TurnedClock) -> None:
    hourly = one(noting, scope="exists", ttl=timedelta(hours=1))
    first = hourly.enqueue()
    clock.turn(3599)
    assert hourly.enqueue().duplicate
    clock.turn(1)
    second = hourly.enqueue()
    assert not second.duplicate
    assert hourly.enqueue().id == second.id != first.id


def test_a_cancelled_job_lets_go(noting: Note, jobs: LiteJobs) -> None:
    jobs.cancel(one(noting, scope="active").enqueue().id)
    assert not one(noting, scope="active").enqueue().duplicate


def test_a_prune_lets_go(noting: Note, jobs: LiteJobs, clock: TurnedClock) -> None:
    one(noting, scope="exists").enqueue()
    jobs.drain()
    clock.turn(86_401)
    jobs.store.prune(clock())
    assert not one(noting, scope="exists").enqueue().duplicate


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("outcome", [ValueError("no"), Retry(5), Snooze(5)])
def test_a_job_never_loses_its_retry_to_its_own_key(
    jobs: LiteJobs, clock: TurnedClock, scope: Scope, outcome: Exception
) -> None:
    runs: list[int] = []

    @jobs.define(unique=Unique(scope=scope), backoff=Constant(5))
    def fails_once() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise outcome

    job = fails_once.enqueue()
    jobs.drain()
    clock.turn(5)
    jobs.drain()
    assert job.refresh().state == "completed"
    assert len(runs) == 2


def test_a_retry_goes_on_beside_a_job_that_took_its_key(jobs: LiteJobs, clock: TurnedClock) -> None:
    runs: list[int] = []

    @jobs.define(unique=Unique(), backoff=Constant(5))
    def fails_once() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    first = fails_once.enqueue()
    jobs.drain()
    second = fails_once.enqueue()
    assert not second.duplicate, "the first one has started"
    clock.turn(5)
    jobs.drain()
    assert [first.refresh().state, second.refresh().state] == ["completed", "completed"]


def test_a_dead_letter_is_not_replayed_beside_its_successor(noting: Note, jobs: LiteJobs) -> None:
    first = one(noting, scope="active").enqueue()
    jobs.cancel(first.id)
    second = one(noting, scope="active").enqueue()
    assert jobs.retry(first.id) == Moved(0, 1)
    assert first.refresh().state == "cancelled"
    jobs.cancel(second.id)
    assert jobs.retry(first.id) == Moved(1, 0)
    assert one(noting, scope="active").enqueue().id == first.id


def test_bulk_retry_revives_one_of_each_key(noting: Note, jobs: LiteJobs) -> None:
    for _ in range(5):
        jobs.cancel(one(noting, scope="active").enqueue().id)
    assert jobs.retry(state="cancelled") == Moved(1, 4)
    assert jobs.stats()["default"] == {"cancelled": 4, "pending": 1}


def test_a_key_that_has_lasted_its_time_keeps_nobody_from_starting_again(
    noting: Note, jobs: LiteJobs, clock: TurnedClock
) -> None:
    dead = one(noting, scope="active", ttl=5).enqueue()
    jobs.cancel(dead.id)
    other = one(noting, scope="active", ttl=60).enqueue()
    assert jobs.retry(dead.id) == Moved(0, 1)
    clock.turn(5)
    assert jobs.retry(dead.id) == Moved(1), "its own is over"
    jobs.cancel(other.id)
    last = one(noting, scope="active", ttl=5).enqueue()
    clock.turn(5)
    assert jobs.retry(other.id) == Moved(1), "that of the other is"
    assert [job.state for job in jobs.find()] == ["pending"] * 3
    assert one(noting).enqueue().id == other.id
    assert not last.duplicate


# What is done about a duplicate


def test_it_raises_if_one_wants(noting: Note, jobs: LiteJobs) -> None:
    strict = one(noting, on_conflict="raise")
    first = strict.enqueue()
    with pytest.raises(DuplicateError, match=f"'note' is there already, as job {first.id}"):
        strict.enqueue()
    assert jobs.count() == 1


def test_it_replaces_the_waiting_job(noting: Note, clock: TurnedClock) -> None:
    debounced = one(noting, fields=["customer"], on_conflict="replace").using(delay=10)
    first = debounced.enqueue(1, "a")
    clock.turn(5)
    second = debounced.using(priority=3).enqueue(1, "b")
    assert (second.id, second.duplicate) == (first.id, True)
    assert second.payload == {"customer": 1, "text": "b"}
    assert second.priority == 3
    assert second.run_at - first.run_at == timedelta(seconds=5)


def test_replacing_leaves_what_a_person_holds(noting: Note, jobs: LiteJobs) -> None:
    debounced = one(noting, fields=["customer"], on_conflict="replace")
    job = debounced.enqueue(1, "a")
    jobs.hold(job.id)
    assert debounced.enqueue(1, "b").state == "paused"
    assert jobs.drain() == 0
    jobs.release(job.id)
    assert jobs.drain() == 1
    assert job.refresh().result() == "b"


@pytest.mark.parametrize("scope", ["active", "exists"])
@pytest.mark.parametrize("on_conflict", ["replace", lambda old, new: new])
def test_what_has_started_is_never_changed_by_a_duplicate(
    noting: Note, jobs: LiteJobs, scope: Scope, on_conflict: Any
) -> None:
    """A definition may have had another scope when the job was enqueued."""
    noting.using(unique=Unique(key="k", scope=scope)).enqueue(1)
    store, subscription = jobs.store, jobs._subscription(None, "here")
    node = store.nodes.join("here", 0, 1, subscription, [])
    store.exchange([], node, lambda ready: [id for id, _ in ready], subscription)
    before = jobs.get(1)
    with pytest.raises(DuplicateError):
        noting.using(unique=Unique(key="k", on_conflict=on_conflict)).enqueue(2)
    assert jobs.get(1) == before
    assert before.state == "running"
    store.nodes.release_lock(node)


def test_what_has_ended_is_never_changed_by_a_duplicate(noting: Note, jobs: LiteJobs) -> None:
    job = noting.using(unique=Unique(key="k", scope="exists")).enqueue(1)
    jobs.cancel(job.id)
    before = job.refresh()
    with pytest.raises(DuplicateError):
        noting.using(unique=Unique(key="k", on_conflict="replace")).enqueue(2)
    assert job.refresh() == before


def test_replacing_moves_a_job_between_due_and_not_due(noting: Note, jobs: LiteJobs) -> None:
    debounced = one(noting, on_conflict="replace")
    assert debounced.using(delay=60).enqueue().state == "scheduled"
    assert debounced.enqueue().state == "pending"
    assert debounced.using(delay=60).enqueue().state == "scheduled"
    assert jobs.stats() == {"default": {"scheduled": 1}}, "and is counted right"


def test_a_function_merges_the_payloads(noting: Note, jobs: LiteJobs) -> None:
    def gather(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        return {**old, "items": old["items"] + new["items"]}

    batch = one(noting, fields=["customer"], on_conflict=gather).using(delay=10)
    for n in range(4):
        last = batch.enqueue(1, items=[n])
    assert last.duplicate
    assert last.payload["items"] == [0, 1, 2, 3]
    assert jobs.count() == 1


def test_a_class_merges_instances(jobs: LiteJobs) -> None:
    @jobs.define
    @attrs.frozen
    class Basket:
        items: list[int]

        def run(self) -> None: ...

    def gather(old: Basket, new: Basket) -> Basket:
        return Basket(old.items + new.items)

    unique = Unique(fields=(), on_conflict=gather)
    jobs.enqueue(Basket([1]), unique=unique)
    assert jobs.enqueue(Basket([2]), unique=unique).payload == {"items": [1, 2]}


def test_a_merge_that_does_not_fit_changes_nothing(noting: Note, jobs: LiteJobs) -> None:
    def wrong(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        return {"customer": "nobody"}

    job = one(noting, fields=(), on_conflict=wrong).enqueue(1)
    with pytest.raises(ValueError, match=r"merged: expected int, got 'nobody'"):
        one(noting, fields=(), on_conflict=wrong).enqueue(2)
    assert job.refresh().payload == {"customer": 1}


def test_duplicates_inside_a_batch_are_found(noting: Note, jobs: LiteJobs) -> None:
    many = jobs.enqueue_many(one(noting).bind(n % 3) for n in range(9))
    assert [job.duplicate for job in many] == [False] * 3 + [True] * 6
    assert jobs.count() == 3


def test_a_batch_is_all_or_nothing(noting: Note, jobs: LiteJobs) -> None:
    one(noting).enqueue(1)
    works = [noting.bind(5), one(noting, on_conflict="raise").bind(1)]
    with pytest.raises(DuplicateError):
        jobs.enqueue_many(works)
    assert jobs.count() == 1


def test_the_numbers_stay_right(noting: Note, jobs: LiteJobs) -> None:
    later = one(noting, on_conflict="replace").using(delay=60)
    for _ in range(3):
        later.enqueue()
        later.using(queue="other").enqueue()
    assert jobs.stats() == {"other": {"scheduled": 1}}
    assert jobs.count(state="scheduled") == len(jobs.find(state="scheduled")) == 1


# Whoever enqueues

RACER = """
import sys
from litejobs import LiteJobs, Unique

jobs = LiteJobs(sys.argv[1], durability="fast")

@jobs.define(unique=Unique(("n",), scope="exists"))
def race(n: int, by: int) -> None: ...

print("ready", flush=True)
sys.stdin.readline()
print([n for n in range(int(sys.argv[3])) if not race.enqueue(n, int(sys.argv[2])).duplicate])
"""


def test_eight_processes_that_enqueue_the_same_keys_have_one_winner_each(tmp_path: Path) -> None:
    keys = 1_250  # each tried by all eight: 10,000
    path = tmp_path / "jobs.db"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path), str(by), str(keys)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for by in range(8)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [n for racer in racers for n in eval(racer.communicate(timeout=60)[0])]
    assert sorted(won) == list(range(keys))
    with LiteJobs(path) as jobs:
        assert jobs.count() == keys


def test_threads_that_enqueue_the_same_key_have_one_winner(noting: Note, jobs: LiteJobs) -> None:
    won: list[Job[Any]] = []

    def try_all() -> None:
        won.extend(job for n in range(50) if not (job := one(noting).enqueue(n)).duplicate)

    threads = [threading.Thread(target=try_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.payload.get("customer", 0) for job in won) == list(range(50))


def test_a_raising_thread_does_not_spoil_the_others(noting: Note, jobs: LiteJobs) -> None:
    strict = one(noting, on_conflict="raise")
    strict.enqueue(99)
    done: list[str] = []

    def enqueue(n: int) -> None:
        try:
            for _ in range(20):
                (strict if n % 2 else noting).enqueue(99)
            done.append("all")
        except DuplicateError:
            done.append("refused")

    threads = [threading.Thread(target=enqueue, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["all"] * 4 + ["refused"] * 4
    assert jobs.count() == 1 + 4 * 20


def test_a_key_written_by_hand_is_held_too(noting: Note, jobs: LiteJobs) -> None:
    jobs.count()
    sql = "INSERT INTO litejobs_job (name, unique_key, unique_scope) VALUES ('note', 'k', 'active')"
    write_by_hand(jobs, sql)
    with pytest.raises(Exception, match="UNIQUE"):
        write_by_hand(jobs, sql)


# Jobs that have expired before a node was there to cancel them


@pytest.mark.parametrize("state", ["pending", "scheduled", "paused"])
def test_a_job_that_expired_while_no_node_was_at_work_holds_no_key(
    noting: Note, jobs: LiteJobs, clock: TurnedClock, state: str
) -> None:
    delay = 1 if state == "scheduled" else 0
    expired = one(noting).using(expires=1, delay=delay).enqueue(1)
    if state == "paused":
        jobs.hold(expired.id)
    clock.turn(2)
    assert not one(noting).enqueue(1).duplicate
    ended = expired.refresh()
    assert (ended.state, ended.error) == (
        "cancelled",
        f"Expired: not started by 2025-01-01 00:00:0{1 + delay} UTC",
    )
    assert jobs.stats() == {"default": {"cancelled": 1, "pending": 1}}
    assert jobs.doctor() == []


def test_a_job_that_expired_is_not_merged_with_nor_raised_for(
    noting: Note, jobs: LiteJobs, clock: TurnedClock
) -> None:
    merging = one(noting, key="m", on_conflict=lambda old, new: old).using(expires=1)
    raising = one(noting, key="r", on_conflict="raise").using(expires=1)
    merging.enqueue(1)
    raising.enqueue(2)
    clock.turn(1)
    assert merging.enqueue(3).payload == {"customer": 3}
    assert raising.enqueue(4).state == "pending"


@pytest.mark.parametrize("driver", ["apsw", "sqlite3"])
def test_a_job_that_expired_holds_no_key_in_the_application_s_transaction_either(
    noting: Note, jobs: LiteJobs, clock: TurnedClock, driver: str
) -> None:
    expired = one(noting).using(expires=1, key="k").enqueue(1)
    jobs.close()
    clock.turn(2)
    connection: Any = (apsw.Connection if driver == "apsw" else sqlite3.connect)(str(jobs.path))
    connection.execute("BEGIN IMMEDIATE")
    job = one(noting).using(connection=connection, key="k").enqueue(1)
    assert (job.duplicate, job.state) == (False, "pending")
    connection.execute("ROLLBACK")
    connection.close()
    assert expired.refresh().state == "pending"
    assert jobs.doctor() == []


def test_a_job_that_has_started_in_time_keeps_its_key(
    noting: Note, jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define(unique=Unique(scope="active"), expires=1, backoff=Constant(60), max_attempts=9)
    def fail() -> None:
        raise RuntimeError

    started = fail.enqueue()
    jobs.drain()
    clock.turn(2)
    assert fail.enqueue().id == started.id


def test_a_job_that_expired_is_still_there_if_that_is_what_counts(
    noting: Note, jobs: LiteJobs, clock: TurnedClock
) -> None:
    definition = one(noting, scope="exists").using(expires=1)
    expired = definition.enqueue(1)
    clock.turn(2)
    assert definition.enqueue(1).id == expired.id
    assert expired.refresh().state == "cancelled"


def test_a_job_that_expired_does_not_keep_another_from_being_retried(
    noting: Note, jobs: LiteJobs, clock: TurnedClock
) -> None:
    cancelled = one(noting).enqueue(1)
    jobs.cancel(cancelled.id)
    one(noting).using(expires=1).enqueue(1)
    clock.turn(2)
    assert jobs.retry(cancelled.id) == Moved(1, 0)
    assert cancelled.refresh().state == "pending"


def test_jobs_that_expired_hold_no_slot_of_their_key(
    noting: Note, jobs: LiteJobs, clock: TurnedClock
) -> None:
    expired = [noting.using(key="k", expires=1).enqueue(n) for n in range(3)]
    assert [job.refresh().state for job in expired] == ["pending", "blocked", "blocked"]
    clock.turn(2)
    assert noting.using(key="k").enqueue(9).state == "pending"
    assert {job.refresh().state for job in expired} == {"cancelled"}
    assert jobs.doctor() == []


def test_a_tick_does_not_wait_for_a_job_that_expired_while_no_node_was_at_work(
    noting: Note, jobs: LiteJobs, clock: TurnedClock
) -> None:
    jobs.schedule("s").set("@hourly", noting.using(expires=60), overlap="skip")
    clock.turn(3600)
    jobs.store.schedules.fire(jobs.clock(), lambda entry, ids: None)
    clock.turn(3600)
    assert jobs.drain() == 1
    assert jobs.stats() == {"default": {"cancelled": 1, "completed": 1}}


# What makes no sense


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        ({"scope": "for ever"}, "scope: there is no 'for ever'; there is active, exists, queued"),
        ({"on_conflict": "ignore"}, "on_conflict: expected return, raise, replace or a function"),
        ({"scope": "active", "on_conflict": "replace"}, "this needs scope='queued'"),
        ({"scope": "exists", "on_conflict": max}, "this needs scope='queued'"),
        ({"fields": "customer"}, "fields takes several names, got the text 'customer'"),
        ({"fields": ["a"], "key": "b"}, "fields and key were both given"),
        ({"ttl": -1}, "ttl: -1 is negative"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(choices: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError) as refusal:
        Unique(**choices)
    assert problem in str(refusal.value)


def test_a_field_that_does_not_exist_is_named(noting: Note) -> None:
    with pytest.raises(OptionError, match="'note' has no field 'custmer'; did you mean 'customer'"):
        one(noting, fields=["custmer"]).enqueue(1)


def test_a_function_that_fails_is_named(noting: Note, jobs: LiteJobs) -> None:
    with pytest.raises(OptionError, match=r"the function for it failed on a job of 'note': KeyErr"):
        one(noting, key=lambda **arguments: arguments["nothing"]).enqueue(1)
    assert jobs.count() == 0


def test_only_a_unique_is_taken(noting: Note) -> None:
    wrong: Any = True
    with pytest.raises(OptionError, match=r"unique: expected Unique\(…\) or None, got True"):
        noting.using(unique=wrong)


def test_cancel_is_no_way_to_keep_a_key(jobs: LiteJobs) -> None:
    @jobs.define(unique=Unique(scope="active"))
    def give_up() -> None:
        raise Cancel

    give_up.enqueue()
    jobs.drain()
    assert not give_up.enqueue().duplicate
