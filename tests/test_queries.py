"""Finding, counting and steering jobs by what is in their rows, in any combination."""

from __future__ import annotations

import json
import typing
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from conftest import NEW_YEAR, TurnedClock, add, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import litejobs
from litejobs import (
    STATES,
    Changes,
    Filters,
    LiteJobs,
    Match,
    Moved,
    OptionError,
    PayloadError,
    from_micros,
    to_micros,
)

START = to_micros(NEW_YEAR)
DAY = timedelta(days=1)
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def found(jobs: LiteJobs, **filters: Any) -> list[int]:
    return [job.id for job in jobs.find(**filters)]


# What combinations are made of: few values of each, so that many rows match.

PAYLOADS: list[Any] = [
    {},
    {"customer": 12},
    {"customer": 12.0, "to": "ada"},
    {"customer": "12", "to": {"name": "ada"}},
    {"customer": True, "to": None},
    {"customer": 1, "to": {"name": {"first": "ada"}}},
    {"customer": None, 'a"b\\': "\x00é😀"},
    {"customer": [12]},
    {"": {"": False}, "a.b": 1, "$": 0.1},
    [12],
    "customer",
    None,
]
TEXTS = [
    *(json.dumps(payload) for payload in PAYLOADS),
    "no JSON",
    "",
    b'{"customer": 12}',
    b"\xff",
]
WANTED: list[dict[str, Any]] = [
    {"customer": 12},
    {"customer": "12"},
    {"customer": True},
    {"customer": 1},
    {"customer": None},
    {"customer": 12, "to": "ada"},
    {"to.name": "ada"},
    {"to.name.first": "ada"},
    {'a"b\\': "\x00é😀"},
    {".": False},
    {"$": 0.1},
    {"a.b": 1},
]
ERRORS = [
    None,
    "ValueError: no user 12 in '/srv/a.txt'",
    "ValueError: no user 7 in 'b'",
    "Fail: 100 %",
]
GROUP = litejobs.error_group("mail", ERRORS[1])
NODES, KEYS = ["", "laptop", "server"], [None, "ada", "bob"]
TAGS = [None, '["acme"]', '["acme","import"]', '["import", "acme"]', "[]", "{}", "no JSON"]
HOURS = st.integers(0, 4).map(lambda hours: START + hours * 3_600_000_000)

rows = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["mail", "report"]),
        "queue": st.sampled_from(["default", "slow"]),
        "state": st.sampled_from(STATES),
        "node": st.sampled_from(NODES),
        "key": st.sampled_from(KEYS),
        "schedule": st.sampled_from([None, "nightly"]),
        "tags": st.sampled_from(TAGS),
        "enqueued_at": HOURS,
        "finished_at": st.none() | HOURS,
        "payload": st.sampled_from(TEXTS),
        "error": st.sampled_from(ERRORS),
    }
)
moments = HOURS.map(from_micros)
filters = st.fixed_dictionaries(
    {},
    optional={
        "id": st.lists(st.integers(0, 12), max_size=6),
        "name": st.sampled_from(["mail", "report", "none"]),
        "queue": st.sampled_from(["default", "slow"]),
        "state": st.lists(st.sampled_from(STATES), min_size=1, max_size=5),
        "not_name": st.lists(st.sampled_from(["mail", "none"]), max_size=2),
        "not_state": st.lists(st.sampled_from(STATES), min_size=1, max_size=5),
        "error": st.sampled_from(["VALUE", "%", "user 7"]),
        "group": st.just(GROUP),
        "node": st.sampled_from(NODES),
        "key": st.sampled_from(["ada", "bob"]),
        "schedule": st.just("nightly"),
        "tags": st.sampled_from(["acme", ["import", "acme"], ["other"]]),
        "enqueued_after": moments,
        "enqueued_before": moments,
        "finished_after": moments,
        "finished_before": moments,
        "payload": st.sampled_from(WANTED),
    },
)


def same(is_there: object, wanted: object) -> bool:
    """Whether two scalars are the same JSON."""
    numbers = {type(is_there), type(wanted)} <= {int, float}
    return is_there == wanted and (numbers or type(is_there) is type(wanted))


def at(payload: object, path: str) -> object:
    """What is at a dotted path; `...` if nothing is."""
    for name in path.split("."):
        payload = payload.get(name, ...) if isinstance(payload, dict) else ...
    return payload


def fits(row: Any, wanted: dict[str, Any]) -> bool:
    if not isinstance(row.payload, str):
        return False
    try:
        payload = json.loads(row.payload)
    except ValueError:
        return False
    return all(same(at(payload, path), value) for path, value in wanted.items())


LOOKS: dict[str, Callable[[Any, Any], bool]] = {
    "id": lambda row, ids: row.id in ids,
    "name": lambda row, name: row.name == name,
    "queue": lambda row, queue: row.queue == queue,
    "state": lambda row, states: row.state in states,
    "not_name": lambda row, names: row.name not in names,
    "not_state": lambda row, states: row.state not in states,
    "error": lambda row, text: (
        row.state != "completed" and text.lower() in (row.error or "").lower()
    ),
    "group": lambda row, group: litejobs.error_group(row.name, row.error) == group,
    "node": lambda row, node: row.node == node,
    "key": lambda row, key: row.key == key,
    "schedule": lambda row, schedule: row.schedule == schedule,
    "tags": lambda row, tags: (
        bool(row.tags)
        and row.tags.startswith("[")
        and {*json.loads(row.tags)} >= {*([tags] if isinstance(tags, str) else tags)}
    ),
    "enqueued_after": lambda row, moment: row.enqueued_at >= to_micros(moment),
    "enqueued_before": lambda row, moment: row.enqueued_at < to_micros(moment),
    "finished_after": lambda row, moment: (row.finished_at or -1) >= to_micros(moment),
    "finished_before": lambda row, moment: (
        row.finished_at is not None and row.finished_at < to_micros(moment)
    ),
    "payload": fits,
}


def matches(row: Any, chosen: dict[str, Any]) -> bool:
    if "group" in chosen and "state" not in chosen:
        chosen = {**chosen, "state": ["failed"]}
    return all(LOOKS[name](row, value) for name, value in chosen.items())


class TestFilters:
    @given(rows=st.lists(rows, max_size=12), chosen=filters, limit=st.integers(0, 13))
    @MANY
    def test_agree_with_a_look_at_all_rows_in_any_combination(
        self, jobs: LiteJobs, rows: list[dict[str, Any]], chosen: Filters, limit: int
    ) -> None:
        empty(jobs)
        for number, row in enumerate(rows):
            add(jobs, **{"id": number + 1, **row})
        every = rows_of(jobs.store)
        expected = [row.id for row in every if matches(row, dict(chosen))]
        assert found(jobs, **chosen, limit=limit) == expected[:limit]
        assert found(jobs, **chosen, before=7) == [id for id in expected if id < 7]
        assert jobs.count(**chosen) == len(expected)
        assert [job.id for job in jobs.iterate(**chosen)] == expected

    @given(rows=st.lists(rows, max_size=12), chosen=filters)
    @MANY
    def test_delete_those_that_match_and_do_not_run(
        self, jobs: LiteJobs, rows: list[dict[str, Any]], chosen: Filters
    ) -> None:
        empty(jobs)
        for number, row in enumerate(rows):
            add(jobs, **{"id": number + 1, **row})
        every = {row.id: row for row in rows_of(jobs.store)}
        meant = {id for id, row in every.items() if matches(row, dict(chosen))}
        running = {id for id in meant if every[id].state == "running"}
        if chosen:
            moved = jobs.delete(**chosen)
            assert (moved.moved, moved.left) == (len(meant - running), len(running))
            assert set(found(jobs)) == every.keys() - (meant - running)
            assert jobs.count() == len(every) - moved.moved

    def test_leave_the_statements_as_they_were_when_they_are_not_used(self) -> None:
        for match in (Match(), Match(queue="slow"), Match(states=("failed",)), Match(ids=(1,))):
            for words in ("payload", "enqueued", "node", "key", "schedule", "tags"):
                assert words not in litejobs._ids_of(match)
        assert "payload" in litejobs._ids_of(Match(others={"payload": "{}"}))

    def test_of_a_group_find_what_the_group_counts_whatever_the_errors_type_is_called(
        self, jobs: LiteJobs
    ) -> None:
        for error in ("HTTP404: no page 5", "HTTP404: no page 6", "Fail: no page 5"):
            add(jobs, state="failed", error=error)
        [two, one] = jobs.error_groups()
        assert (two.number, found(jobs, group=two.group)) == (2, [2, 1])
        assert (one.number, found(jobs, group=one.group)) == (1, [3])

    def test_find_numbers_of_any_size_and_texts_that_are_no_unicode(self, jobs: LiteJobs) -> None:
        for value in (2**70, 1e300, "\ud800", "é"):
            add(jobs, payload=json.dumps({"x": value}))
        assert found(jobs, payload={"x": 2**70}) == [1]
        assert found(jobs, payload={"x": 1e300}) == [2]
        assert found(jobs, payload={"x": "\ud800"}) == [3]
        assert found(jobs, payload={"x": "é"}) == [4]

    def test_refuse_names_of_fields_with_a_nul_and_find_values_with_one(
        self, jobs: LiteJobs
    ) -> None:
        """On a path, SQLite takes a NUL for the end of a name."""
        for payload in ({"utc": "7"}, {"utc": "7\0"}, {"utc": r"\u0000", "more": {"": "\0"}}):
            add(jobs, payload=json.dumps(payload))
        assert found(jobs, payload={"utc": "7\0"}) == [2]
        assert found(jobs, payload={"utc": r"\u0000"}) == [3]
        assert found(jobs, payload={"more.": "\0"}) == [3]
        for name in ("utc\0", "\0.utc", "\0"):
            with pytest.raises(OptionError, match="NUL"):
                jobs.find(payload={name: "7"})
        assert jobs.cancel(payload={"utc": "7\0"}) == Moved(1)

    def test_change_many_jobs_in_several_batches(
        self, jobs: LiteJobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(litejobs, "BATCH", 3)
        for number in range(20):
            add(jobs, payload=json.dumps({"odd": number % 2}), state=STATES[number % 2 * 3])
        assert jobs.cancel(payload={"odd": 1}) == Moved(10)
        assert jobs.count(payload={"odd": 1}, state="cancelled") == 10
        assert jobs.count(state="cancelled") == 10

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("enqueued_after", NEW_YEAR.replace(tzinfo=None)),
            ("finished_before", NEW_YEAR.replace(tzinfo=None)),
            ("enqueued_before", "2025-01-01"),
            ("payload", {}),
            ("payload", "customer"),
            ("payload", {"customer": [1]}),
            ("payload", {"customer": float("nan")}),
            ("payload", {1: 1}),
            ("key", 5),
            ("nodes", "laptop"),
        ],
    )
    def test_that_cannot_match_anything_are_refused(
        self, jobs: LiteJobs, option: str, value: object
    ) -> None:
        with pytest.raises(OptionError, match=f"^{option}: "):
            jobs.find(**{option: value})  # type: ignore[arg-type]

    def test_of_none_alone_never_mean_every_job(self, jobs: LiteJobs) -> None:
        add(jobs)
        for chosen in ({"queue": None}, {"key": None, "payload": None}):
            with pytest.raises(OptionError, match="every job"):
                jobs.delete(**chosen)  # type: ignore[arg-type]
        assert jobs.count() == 1


def counted(jobs: LiteJobs) -> dict[tuple[str, str, str], int]:
    """The numbers that the file keeps of jobs in the counted states."""
    rows = jobs.store.file.connection().execute("SELECT * FROM litejobs_count WHERE number <> 0")
    return {(state, queue, name): number for state, queue, name, number in rows}


def rows_by_state(jobs: LiteJobs) -> dict[tuple[str, str, str], int]:
    """The same, by a look at all rows."""
    return dict(
        Counter(
            (job.state, job.queue, job.name)
            for job in jobs.find()
            if job.state in litejobs.COUNTED_STATES
        )
    )


class TestChanging:
    @given(
        rows=st.lists(rows, max_size=10),
        chosen=filters,
        to=st.fixed_dictionaries(
            {},
            optional={
                "queue": st.sampled_from(["default", "fast"]),
                "priority": st.integers(-3, 3),
                "max_attempts": st.none() | st.integers(1, 9),
                "timeout": st.none() | st.integers(1, 9),
                "node": st.sampled_from([None, "laptop"]),
                "delay": st.sampled_from([0, 60, timedelta(minutes=1)]),
                "expires": st.none() | st.integers(0, 9),
            },
        ),
    )
    @MANY
    def test_changes_what_waits_and_leaves_the_rest(
        self,
        jobs: LiteJobs,
        clock: TurnedClock,
        rows: list[dict[str, Any]],
        chosen: Filters,
        to: dict[str, Any],
    ) -> None:
        empty(jobs)
        for number, row in enumerate(rows):
            add(jobs, **{"id": number + 1, **row})
        before = rows_of(jobs.store)
        meant = [row for row in before if matches(row, dict(chosen))]
        waiting = {row.id for row in meant if row.state in litejobs.WAITING}
        if not chosen or not to:
            with pytest.raises(OptionError):
                jobs.change(**chosen, to=typing.cast(Changes, to))
            return
        moved = jobs.change(**chosen, to=typing.cast(Changes, to))
        assert (moved.moved, moved.left) == (len(waiting), len(meant) - len(waiting))
        expected = [self.changed(row, to) if row.id in waiting else row for row in before]
        keys = {row.key for row in before if row.id in waiting and row.key is not None}
        assert rows_of(jobs.store) == self.admitted(expected, keys)
        assert counted(jobs) == rows_by_state(jobs)

    def changed(self, row: Any, to: dict[str, Any]) -> Any:
        new = {k: v for k, v in to.items() if k in ("queue", "priority", "max_attempts")}
        if "timeout" in to:
            new["timeout"] = None if to["timeout"] is None else to["timeout"] * 1_000_000
        if "node" in to:
            new["node"] = to["node"] or ""
        if "expires" in to:
            left = to["expires"]
            due = START + (60_000_000 if to.get("delay") else 0)
            new["expires_at"] = None if left is None else due + left * 1_000_000
        if "delay" in to:
            new["run_at"] = START + (60_000_000 if to["delay"] else 0)
            if to["delay"] and (row.state in ("pending", "scheduled") or self.keyed(row)):
                new["state"] = "scheduled"
            elif row.state == "scheduled" and not to["delay"]:
                new["state"] = "pending" if row.key is None else "blocked"
        return row._replace(**new)

    def admitted(self, rows: list[Any], keys: set[str]) -> list[Any]:
        """With the first of the blocked jobs let in where a key has no other holder."""
        first = {
            min(
                (row for row in rows if row.key == key and row.state == "blocked"),
                key=lambda row: (-row.priority, row.run_at, row.id),
                default=None,
            )
            for key in keys
            if not any(row.key == key and row.state in ("pending", "running") for row in rows)
        }
        return [row._replace(state="pending") if row in first else row for row in rows]

    def keyed(self, row: Any) -> bool:
        return row.state == "blocked" and row.key is not None

    def test_moves_jobs_to_another_time(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        add(jobs, state="pending")
        later = NEW_YEAR + timedelta(hours=2)
        assert jobs.change(1, to={"at": later}) == Moved(1)
        assert (jobs.get(1).state, jobs.get(1).run_at) == ("scheduled", later)
        clock.turn(7200)
        assert jobs.store.stage(jobs.clock())[0] == 1
        assert jobs.get(1).state == "pending"

    def test_replaces_fields_of_the_payload_and_checks_the_whole(self, jobs: LiteJobs) -> None:
        @jobs.define
        def mail(to: str, copies: int = 1) -> None: ...

        job = mail.enqueue("ada", copies=2)
        assert jobs.change(job.id, to={"payload": {"to": "bob"}}) == Moved(1)
        assert job.refresh().payload == {"to": "bob", "copies": 2}
        for wrong in ({"to": 5}, {"copy": 1}):
            with pytest.raises(PayloadError, match="mail"):
                jobs.change(job.id, to={"payload": wrong, "priority": 9})
            assert (job.refresh().payload["to"], job.refresh().priority) == ("bob", 0)
        assert jobs.change(job.id, to={"payload": {"to": "eve"}, "priority": 9}) == Moved(1)
        assert (job.refresh().payload["to"], job.refresh().priority) == ("eve", 9)

    def test_a_new_payload_for_no_job_at_all_changes_nothing(self, jobs: LiteJobs) -> None:
        assert jobs.change(5, to={"payload": {"to": "bob"}}) == Moved(0)
        assert jobs.change(state="pending", to={"payload": {"to": "bob"}}) == Moved(0)

    def test_takes_any_object_where_the_definition_is_unknown(self, jobs: LiteJobs) -> None:
        add(jobs, payload='{"a": 1}')
        add(jobs, payload="[1]")
        add(jobs, payload=b"{}")
        add(jobs, payload="no JSON")
        assert jobs.change(1, to={"payload": {"b": [None]}}) == Moved(1)
        assert jobs.get(1).payload == {"a": 1, "b": [None]}
        for id in (2, 3, 4):
            with pytest.raises(PayloadError, match="not a JSON object"):
                jobs.change(id, to={"payload": {"b": 1}})

    @pytest.mark.parametrize(
        ("to", "option"),
        [
            ({}, "to"),
            ({"state": "failed"}, "state"),
            ({"priority": "high"}, "priority"),
            ({"queue": ""}, "queue"),
            ({"at": NEW_YEAR.replace(tzinfo=None)}, "at"),
            ({"at": None}, "at"),
            ({"at": NEW_YEAR, "delay": 5}, "at"),
            ({"delay": -1}, "delay"),
            ({"max_attempts": 0}, "max_attempts"),
            ({"timeout": 0}, "timeout"),
            ({"expires": -1}, "expires"),
            ({"payload": 5}, "payload"),
            ({"payload": {"to": object()}}, "payload"),
        ],
    )
    def test_refuses_what_cannot_be(self, jobs: LiteJobs, to: Any, option: str) -> None:
        add(jobs)
        before = jobs.get(1)
        with pytest.raises(OptionError, match=f"^{option}: "):
            jobs.change(1, to=to)
        assert jobs.get(1) == before


class TestHolding:
    @pytest.mark.parametrize(
        ("state", "key", "run_at", "back"),
        [
            ("pending", None, START, "pending"),
            ("pending", "ada", START, "pending"),
            ("blocked", "ada", START, "pending"),
            ("scheduled", None, START + 1, "scheduled"),
            ("scheduled", "ada", START + 1, "scheduled"),
            ("retrying", None, START + 1, "scheduled"),
            ("retrying", None, START, "pending"),
        ],
    )
    def test_keeps_what_waits_until_it_is_released(
        self, jobs: LiteJobs, state: str, key: str | None, run_at: int, back: str
    ) -> None:
        add(jobs, state=state, key=key, run_at=run_at)
        assert jobs.hold(1) == Moved(1)
        assert jobs.get(1).state == "paused"
        assert jobs.hold(1) == Moved(0, left=1)
        assert counted(jobs) == rows_by_state(jobs)
        assert jobs.release(name="mail") == Moved(1)
        assert jobs.get(1).state == back
        assert jobs.release(1) == Moved(0, left=1)
        assert counted(jobs) == rows_by_state(jobs)

    def test_a_held_job_leaves_its_slot_to_the_next_with_the_key(self, jobs: LiteJobs) -> None:
        add(jobs, state="pending", key="ada")
        add(jobs, state="blocked", key="ada")
        jobs.hold(1)
        assert (jobs.get(1).state, jobs.get(2).state) == ("paused", "pending")
        jobs.release(1)
        assert (jobs.get(1).state, jobs.get(2).state) == ("blocked", "pending")
        jobs.change(2, to={"delay": 60})
        assert (jobs.get(1).state, jobs.get(2).state) == ("pending", "scheduled")
        assert counted(jobs) == rows_by_state(jobs)

    @pytest.mark.parametrize("state", ["running", "completed", "failed", "cancelled"])
    def test_leaves_what_does_not_wait(self, jobs: LiteJobs, state: str) -> None:
        add(jobs, state=state)
        assert jobs.hold(1) == Moved(0, left=1)
        assert jobs.get(1).state == state

    @pytest.mark.parametrize("state", ["paused", "blocked"])
    def test_a_job_that_is_kept_can_be_cancelled_or_deleted(
        self, jobs: LiteJobs, state: str
    ) -> None:
        add(jobs, state=state)
        add(jobs, state=state)
        assert jobs.cancel(1) == Moved(1)
        assert jobs.get(1).state == "cancelled"
        assert jobs.delete(2) == Moved(1)
        assert counted(jobs) == rows_by_state(jobs)

    def test_a_held_job_does_not_run(self, jobs: LiteJobs) -> None:
        @jobs.define
        def mail() -> None: ...

        job = mail.enqueue()
        jobs.hold(job.id)
        assert jobs.drain() == 0
        jobs.release(job.id)
        assert jobs.drain() == 1


class TestIterating:
    def test_goes_through_all_pages_and_leaves_out_what_comes_meanwhile(
        self, jobs: LiteJobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(litejobs, "PAGE_SIZE", 3)
        for _ in range(8):
            add(jobs, key="ada")
        seen = []
        for job in jobs.iterate(key="ada"):
            seen.append(job.id)
            add(jobs, key="ada")
            jobs.delete(job.id)
        assert seen == [8, 7, 6, 5, 4, 3, 2, 1]

    def test_refuses_a_wrong_filter_before_the_first_job(self, jobs: LiteJobs) -> None:
        with pytest.raises(OptionError):
            jobs.iterate(color="red")  # type: ignore[call-arg]


def empty(jobs: LiteJobs) -> None:
    """Begins anew in the same file."""
    with jobs.store.file.transaction() as tx:
        tx.execute("DELETE FROM litejobs_job; DELETE FROM litejobs_count")


class TestBulkCommands:
    """One job in each state, and all of them are meant."""

    @pytest.mark.parametrize(
        ("act", "moves"),
        [
            ("retry", {"failed", "cancelled", "retrying"}),
            ("cancel", {"scheduled", "pending", "retrying", "paused", "blocked", "running"}),
            ("delete", {*STATES} - {"running"}),
            ("change", {"scheduled", "pending", "retrying", "paused", "blocked"}),
            ("hold", {"scheduled", "pending", "retrying", "blocked"}),
            ("release", {"paused"}),
        ],
    )
    def test_say_how_many_moved_and_how_many_did_not(
        self, jobs: LiteJobs, act: str, moves: set[str]
    ) -> None:
        for state in STATES:
            add(jobs, state=state)
        before = {row.id: row for row in rows_of(jobs.store)}
        options: dict[str, Any] = {"to": {"priority": 7}} if act == "change" else {}
        moved = getattr(jobs, act)(name="mail", **options)
        assert moved == Moved(len(moves), left=len(STATES) - len(moves))
        after = {row.id: row for row in rows_of(jobs.store)}
        touched = {row.state for id, row in before.items() if after.get(id) != row}
        assert touched | ({"running"} if act == "cancel" else set()) == moves
        assert getattr(jobs, act)(name="no such", **options) == Moved(0, left=0)
