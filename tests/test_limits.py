"""Limits of queues and of keys: nobody gets more, nobody waits for others', nothing sticks."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest
from conftest import TurnedClock, write_by_hand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import Programs, eventually, lines, never, trouble

import litejobs
from litejobs import (
    Claimed,
    Constant,
    Definition,
    Exponential,
    Fail,
    Job,
    LiteJobs,
    Moved,
    OptionError,
    QueueSettings,
    Ready,
    Retry,
    Snooze,
    Subscription,
    from_micros,
    not_begun,
    parse_rate,
)

SECOND = timedelta(seconds=1)
PATIENT = 60.0


def note(n: int = 0) -> int:
    return n


@pytest.fixture(autouse=True)
def defined(jobs: LiteJobs) -> None:
    jobs.define(note)


class Hands:
    """A node without workers: the test claims and settles by itself."""

    def __init__(self, jobs: LiteJobs) -> None:
        self.jobs = jobs
        self.subscription = jobs._subscription(None, None)
        known = jobs.registry.listing()
        name = self.subscription.node
        self.node = jobs.store.nodes.join(name, 0, 1, self.subscription, known)
        self.again_at: int | None = None

    def die(self) -> None:
        """As when all its processes were killed."""
        self.jobs.store.nodes.release_lock(self.node)

    def claim(self, limit: int = 10**6) -> list[Claimed]:
        """Claims what may be claimed, at most so many."""

        def choose(ready: Ready) -> list[int]:
            while len(claimed) + len(ready.taken) < limit and ready.peek():
                next(ready)
            return ready.taken

        claimed: list[Claimed] = []
        while True:
            done = self.jobs.store.exchange([], self.node, choose, self.subscription)
            claimed += done.claimed
            ready = self.jobs.store._ready
            if len(claimed) >= limit or ready is None or ready.version is not None:
                self.again_at = done.again_at
                return claimed
            # On a busy machine a look may take so long that the next one is put off a while.
            time.sleep(0.005)

    def settle(self, *claimed: Claimed, error: Exception | None = None) -> None:
        """Completes jobs, or lets them end with an error."""
        from litejobs import Report, retry_or_fail

        now = self.jobs.clock()
        settlements = []
        for job in claimed:
            report = Report()
            if error is not None:
                report = retry_or_fail(job, Constant(0), random.Random())
                if isinstance(error, Fail):
                    report = Report(state="failed")
                report = report._replace(kind="exception", type="E", message="e")
            settlements.append((job, report._replace(started_at=now, finished_at=now, worker=1)))
        self.jobs.store.exchange(settlements, self.node, lambda ready: [], self.subscription)

    def names(self, limit: int = 10**6) -> list[int]:
        """What the claimed jobs are, by the number in their payload."""
        return [json.loads(job.payload).get("n", 0) for job in self.claim(limit)]


@pytest.fixture
def hands(jobs: LiteJobs) -> Iterator[Hands]:
    hands = Hands(jobs)
    yield hands
    hands.die()


def enqueue(jobs: LiteJobs, count: int, start: int = 1, **choices: Any) -> None:
    definition = jobs.registry.named("note").using(**choices)
    jobs.enqueue_many(definition.bind(start + n) for n in range(count))


class TestConcurrency:
    def test_holds_over_several_claims(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.queue("slow").set(concurrency=2)
        enqueue(jobs, 5, queue="slow")
        enqueue(jobs, 3, start=100)
        first = hands.claim()
        assert [job.queue for job in first] == ["slow", "slow", "default", "default", "default"]
        assert hands.claim() == []
        hands.settle(first[0])
        assert hands.names() == [3]

    def test_is_shared_by_all_nodes(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.queue("slow").set(concurrency=3)
        enqueue(jobs, 9, queue="slow")
        other = Hands(jobs)
        assert len(hands.claim(2)) == 2
        assert len(other.claim()) == 1
        assert hands.claim() == other.claim() == []
        other.die()

    def test_changes_at_once(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 9, queue="slow")
        jobs.queue("slow").set(concurrency=1)
        assert len(hands.claim()) == 1
        jobs.queue("slow").set(concurrency=4)
        assert len(hands.claim()) == 3
        jobs.queue("slow").set(concurrency=None)
        assert len(hands.claim()) == 5

    def test_survives_a_node_that_dies(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.queue("slow").set(concurrency=1)
        enqueue(jobs, 2, queue="slow")
        other = Hands(jobs)
        assert len(other.claim()) == 1
        other.die()
        assert hands.claim() == []
        jobs.store.nodes.rescue(other.node)
        assert len(hands.claim()) == 1


class TestRate:
    def test_lets_so_many_start_and_says_when_the_next_may(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("mail").set(rate="2/s")
        enqueue(jobs, 9, queue="mail")
        assert len(hands.claim()) == 1, "evenly: one, and the next after half a second"
        assert hands.claim() == []
        assert hands.again_at is not None
        assert abs(hands.again_at - clock() - 500_000) <= 2
        clock.turn(0.4)
        assert hands.claim() == []
        clock.turn(0.100002)
        assert len(hands.claim()) == 1

    def test_has_a_burst_after_a_rest(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("mail").set(rate="1/s", burst=3)
        enqueue(jobs, 20, queue="mail")
        assert len(hands.claim()) == 3
        clock.turn(2)
        assert len(hands.claim()) == 2
        clock.turn(3600)
        assert len(hands.claim()) == 3, "what is saved up is bounded"

    def test_calls_nobody_back_while_others_take_all_the_slots(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        """A node that was told so would look again at once, and again, until one ends."""
        jobs.queue("mail").set(rate="1/s", burst=5, concurrency=1)
        enqueue(jobs, 3, queue="mail")
        running = hands.claim()
        assert (len(running), hands.again_at) == (1, None)
        assert (hands.claim(), hands.again_at) == ([], None)
        hands.settle(*running)
        assert len(hands.claim()) == 1

    def test_says_when_the_next_may_start_beside_those_just_claimed(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("mail").set(rate="2/s", burst=2)
        enqueue(jobs, 9, queue="mail")
        assert len(hands.claim()) == 2
        assert hands.again_at is not None
        assert abs(hands.again_at - clock() - 500_000) <= 2

    def test_is_shared_and_outlives_the_node(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("mail").set(rate="60/min")
        enqueue(jobs, 9, queue="mail")
        assert len(hands.claim()) == 1
        jobs.close()
        assert Hands(jobs).claim() == []

    def test_is_not_upset_by_a_clock_that_is_set_back(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("mail").set(rate="1/s")
        enqueue(jobs, 9, queue="mail")
        assert len(hands.claim()) == 1
        clock.turn(-3600)
        assert hands.claim() == []
        clock.turn(3601)
        assert len(hands.claim()) == 1

    def test_may_be_smaller_in_the_file_than_any_time_is_long(
        self, jobs: LiteJobs, hands: Hands
    ) -> None:
        jobs.queue("mail").set(rate="1/s")
        write_by_hand(jobs, "UPDATE litejobs_queue SET rate = 5e-324, tokens = 0, filled_at = 0")
        enqueue(jobs, 2, queue="mail")
        assert hands.claim() == []

    def test_comes_to_the_rate_in_the_long_run(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("mail").set(rate="7/s", burst=2)
        enqueue(jobs, 400, queue="mail")
        started = 0
        for _ in range(3000):
            started += len(hands.claim())
            clock.turn(0.01)
        assert 30 * 7 <= started <= 30 * 7 + 2

    @pytest.mark.parametrize(
        ("text", "rate"),
        [("10/s", 10), ("10 / sec", 10), ("90/min", 1.5), ("1/10s", 0.1), ("36/h", 0.01),
         ("2.5/s", 2.5), ("864/day", 0.01)],
    )  # fmt: skip
    def test_is_written_as_people_do(self, text: str, rate: float) -> None:
        assert parse_rate(text) == pytest.approx(rate)

    @pytest.mark.parametrize(
        "text",
        ["", "10", "10/", "0/s", "1/0s", "1/00s", "-1/s", "10/year", 10, None,
         "9" * 400 + "/s", "1/" + "9" * 400 + "d", "1/" + "9" * 5000 + "s"],
        ids=lambda text: repr(text)[:20],
    )  # fmt: skip
    def test_is_refused_when_it_is_none(self, text: object) -> None:
        with pytest.raises(OptionError, match=r"rate: expected something like '10/s' or '100/min'"):
            parse_rate(text)


class TestLimitsOfADefinition:
    def define(self, jobs: LiteJobs, **options: Any) -> Hands:
        """A node that has the definition `call` with these options."""
        jobs.define(name="call", **options)(note)
        return Hands(jobs)

    def enqueue(self, jobs: LiteJobs, count: int, **choices: Any) -> None:
        call = jobs.registry.named("call").using(**choices)
        jobs.enqueue_many(call.bind(n) for n in range(count))

    def test_concurrency_holds_in_all_queues_and_nodes_together(self, jobs: LiteJobs) -> None:
        hands = self.define(jobs, concurrency=2)
        other = Hands(jobs)
        self.enqueue(jobs, 3)
        self.enqueue(jobs, 3, queue="slow")
        enqueue(jobs, 2)
        first = hands.claim(1)
        assert [job.name for job in first] == ["call"]
        assert [job.name for job in other.claim()] == ["call", "note", "note"]
        assert hands.claim() == other.claim() == []
        hands.settle(*first)
        assert [job.name for job in other.claim()] == ["call"]
        hands.die()
        other.die()

    def test_rate_lets_so_many_start_and_says_when_the_next_may(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        hands = self.define(jobs, rate="2/s")
        self.enqueue(jobs, 5)
        enqueue(jobs, 2)
        assert [job.name for job in hands.claim()] == ["call", "note", "note"]
        assert hands.claim() == []
        assert hands.again_at is not None
        assert abs(hands.again_at - clock() - 500_000) <= 2
        clock.turn(0.500002)
        assert [job.name for job in hands.claim()] == ["call"]
        hands.die()

    def test_hold_beside_those_of_the_queue(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        hands = self.define(jobs, rate="1/s", concurrency=3)
        jobs.queue("default").set(concurrency=2)
        self.enqueue(jobs, 5)
        enqueue(jobs, 5)
        first = hands.claim()
        assert [job.name for job in first] == ["call", "note"]
        clock.turn(1.1)
        assert hands.claim() == []
        hands.settle(*first)
        assert [job.name for job in hands.claim()] == ["call", "note"]
        hands.die()

    def test_are_those_of_the_node_that_started_last(self, jobs: LiteJobs) -> None:
        hands = self.define(jobs, concurrency=1)
        self.enqueue(jobs, 9)
        assert len(hands.claim()) == 1
        with LiteJobs(jobs.path, durability="fast", clock=jobs.clock) as later:
            other = self.define(later, concurrency=4)
            assert len(hands.claim()) == 3
            other.die()
        with LiteJobs(jobs.path, durability="fast", clock=jobs.clock) as last:
            self.define(last).die()
            assert len(hands.claim()) == 5
        hands.die()

    def test_let_no_more_start_because_a_node_starts_again(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        hands = self.define(jobs, rate="6/min")
        self.enqueue(jobs, 9)
        assert len(hands.claim()) == 1
        hands.die()
        with LiteJobs(jobs.path, durability="fast", clock=clock) as later:
            hands = self.define(later, rate="12/min")
            assert hands.claim() == []
            clock.turn(5.1)
            assert len(hands.claim()) == 1
            hands.die()

    def test_are_listed_with_the_queues(
        self, jobs: LiteJobs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.define(jobs, rate="10/min", concurrency=2).die()
        jobs.queue("mail").set(concurrency=3)
        assert litejobs.main(["queues", str(jobs.path)]) == 0
        _, mail, _, *limits = capsys.readouterr().out.splitlines()
        assert mail.split() == ["mail", "open", "3"]
        assert [line.split() for line in limits] == [
            ["definition", "concurrency", "rate"], ["call", "2", "10/min"],
        ]  # fmt: skip
        assert litejobs.main(["queues", str(jobs.path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[1:] == [
            {"definition": "call", "concurrency": 2, "rate": "10/min"}
        ]

    def test_are_named_by_why_and_doctor(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        hands = self.define(jobs, rate="1/10min", concurrency=1)
        self.enqueue(jobs, 2)
        running = hands.claim()
        job = jobs.find(state="pending")[0]
        text = "its definition 'call' runs as many jobs at a time as it may: 1 of 1"
        assert job.why() == text
        hands.settle(*running)
        assert job.why() == "its definition 'call' starts as many jobs as it may: 1/10min"
        hands.die()
        clock.turn(60 * 120)
        [finding] = [found for found in jobs.doctor() if found.subject == "definition 'call'"]
        assert finding.problem == "1 job late, and it may only run 1 at a time, and start 1/10min"

    def test_cannot_be_set_for_one_job(self, jobs: LiteJobs) -> None:
        with pytest.raises(OptionError, match="concurrency: belongs to the definition"):
            jobs.registry.named("note").using(concurrency=1)  # type: ignore[call-arg]
        for option, value in (("concurrency", 0), ("rate", "fast"), ("rate", 10)):
            with pytest.raises(OptionError, match=f"{option}: expected"):
                self.define(jobs, **{option: value})

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_never_let_more_run_or_start(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        clock, began = TurnedClock(), TurnedClock()
        path = tmp_path_factory.mktemp("limits") / "jobs.db"
        with LiteJobs(path, durability="fast", clock=clock) as jobs:
            hands = [self.define(jobs, concurrency=3, rate="2/s"), Hands(jobs)]
            running: list[tuple[Hands, Claimed]] = []
            started = 0
            for _ in range(data.draw(st.integers(1, 30))):
                step = data.draw(st.sampled_from(["enqueue", "claim", "settle", "turn"]))
                if step == "enqueue":
                    self.enqueue(jobs, 2, queue=data.draw(st.sampled_from("ab")))
                elif step == "claim":
                    node = data.draw(st.sampled_from(hands))
                    claimed = node.claim(data.draw(st.integers(1, 3)))
                    started += len(claimed)
                    running += [(node, job) for job in claimed]
                elif step == "settle" and running:
                    node, job = running.pop()
                    node.settle(job, error=data.draw(st.sampled_from([None, ValueError()])))
                else:
                    clock.turn(data.draw(st.sampled_from([0.2, 1.0, 30.0])))
                assert jobs.count(name="call", state="running") == len(running) <= 3
                assert started <= 1 + 2 * (clock.now - began.now) / SECOND
            for node in hands:
                node.die()

    def test_hold_for_two_programs(self, tmp_path: Path, programs: Programs) -> None:
        path = tmp_path / "jobs.db"
        programs.write(
            app="""if True:
            import sys, time
            from litejobs import LiteJobs

            jobs = LiteJobs(sys.argv[1])

            @jobs.define(concurrency=2)
            def narrow() -> None:
                time.sleep(0.03)

            @jobs.define(rate="20/s")
            def slow() -> None:
                pass

            if __name__ == "__main__":
                if sys.argv[2:]:
                    jobs.enqueue_many(each.bind() for each in [narrow, slow] * 12)
                else:
                    jobs.work(2, until="empty")
            """
        )
        assert programs.run("app.py", path, "enqueue")[0] == 0
        nodes = [programs.start("app.py", path) for _ in range(2)]
        assert [node.wait(PATIENT) for node in nodes] == [0, 0]
        with LiteJobs(path) as jobs:
            done = [(job, job.started_at, job.finished_at) for job in jobs.find()]
        narrow = [(a, b) for job, a, b in done if a and b and job.name == "narrow"]
        assert len(narrow) == 12
        assert all(sum(a <= start < b for a, b in narrow) <= 2 for start, _ in narrow)
        starts = [a for job, a, _ in done if a and job.name == "slow"]
        assert max(starts) - min(starts) > timedelta(seconds=0.5), "11 intervals of 50 ms, roughly"


class TestPause:
    def test_lets_nothing_start_until_it_is_resumed(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 3, queue="slow")
        enqueue(jobs, 1, start=9)
        running = hands.claim(1)
        jobs.queue("slow").pause()
        assert hands.names() == [9]
        assert jobs.queue("slow").settings.paused
        hands.settle(*running)
        assert hands.claim() == []
        jobs.queue("slow").resume()
        assert hands.names() == [2, 3]

    def test_ends_with_a_reset(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.queue("slow").pause()
        jobs.queue("slow").reset()
        assert jobs.queues() == []
        enqueue(jobs, 1, queue="slow")
        assert len(hands.claim()) == 1

    def test_does_not_keep_a_node_that_works_until_all_is_done(self, jobs: LiteJobs) -> None:
        subscription = jobs._subscription(None, "here")
        enqueue(jobs, 1, queue="slow")
        assert jobs.store.has_work(subscription)
        jobs.queue("slow").pause()
        assert not jobs.store.has_work(subscription)


class TestShares:
    def test_are_as_the_weights(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.queue("a").set(weight=3)
        enqueue(jobs, 400, queue="a")
        enqueue(jobs, 400, queue="b")
        queues = [job.queue for job in hands.claim(200)]
        assert queues.count("a") == pytest.approx(150, abs=2)
        # And all along, not only at the end.
        assert queues[:40].count("a") == pytest.approx(30, abs=2)

    def test_never_come_before_priority(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.queue("a").set(weight=100)
        enqueue(jobs, 5, queue="a")
        enqueue(jobs, 2, start=50, queue="b", priority=1)
        assert hands.names(3) == [50, 51, 1]

    def test_are_not_saved_up(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.queue("a").set(weight=1)
        enqueue(jobs, 100, queue="a")
        assert len(hands.claim(90)) == 90
        enqueue(jobs, 100, queue="b")
        queues = [job.queue for job in hands.claim(20)]
        assert queues.count("a") == pytest.approx(10, abs=2)

    def test_hold_between_definitions_of_a_queue(self, jobs: LiteJobs) -> None:
        jobs.define(name="other")(note)
        jobs.queue("a").set(weight=1)
        hands = Hands(jobs)
        enqueue(jobs, 100, queue="a")
        enqueue(jobs, 100, queue="b")
        other = jobs.registry.named("other").using(queue="a")
        jobs.enqueue_many(other.bind(n) for n in range(100))
        queues = [job.queue for job in hands.claim(60)]
        assert queues.count("a") == pytest.approx(30, abs=2), "two lanes, one share"
        hands.die()


class TestAgeing:
    def test_raises_the_priority_of_what_waits(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("default").set(ageing=60)
        enqueue(jobs, 1, priority=0)
        clock.turn(119)
        enqueue(jobs, 1, start=2, priority=1)
        assert hands.names(1) == [1], "one step up, and due before"
        enqueue(jobs, 1, start=3, priority=0)
        clock.turn(1)
        assert hands.names() == [2, 3]

    def test_finds_the_oldest_of_each_priority(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.queue("default").set(ageing=1)
        for n in range(10):
            enqueue(jobs, 2, start=10 * n, priority=n % 5)
            clock.turn(3)
        # The rank is priority + age: constant - run_at, for an interval of one second.
        rows = jobs.find(limit=100)
        now = from_micros(clock())
        rank = {
            job.payload.get("n", 0): (
                -(job.priority + (now - job.run_at) // timedelta(seconds=1)), job.run_at, job.id
            )
            for job in rows
        }  # fmt: skip
        assert hands.names() == sorted(rank, key=lambda n: rank[n])

    def test_is_off_by_default(self, jobs: LiteJobs, hands: Hands, clock: TurnedClock) -> None:
        enqueue(jobs, 1, priority=0)
        clock.turn(10**6)
        enqueue(jobs, 1, start=2, priority=1)
        assert hands.names() == [2, 1]


class TestDefaultsOfAQueue:
    def test_are_for_jobs_whose_definition_does_not_say(self, jobs: LiteJobs) -> None:
        jobs.queue("q").set(max_attempts=2, timeout=9, backoff=Constant(1))
        plain = jobs.registry.named("note").using(queue="q")
        job = plain.enqueue(1)
        assert (job.max_attempts, job.timeout) == (2, timedelta(seconds=9))
        assert job == job.refresh()
        chosen = plain.using(max_attempts=7).enqueue(1)
        assert chosen.max_attempts == chosen.refresh().max_attempts == 7
        keyed = plain.using(key="k").enqueue(1)
        assert keyed.max_attempts == keyed.refresh().max_attempts == 2
        assert {j.max_attempts for j in jobs.enqueue_many(plain.bind(n) for n in range(3))} == {2}

    def test_may_be_for_ever(self, jobs: LiteJobs) -> None:
        settings = jobs.queue("q").set(max_attempts=None, backoff=Exponential(5))
        assert settings.defaults == {"max_attempts": None, "backoff": Exponential(5)}
        assert jobs.registry.named("note").using(queue="q").enqueue(1).max_attempts is None


class TestSettings:
    def test_are_seen_as_they_are(self, jobs: LiteJobs) -> None:
        assert jobs.queue("x").settings == QueueSettings("x")
        jobs.queue("x").set(concurrency=3, rate="10/s", burst=5, weight=2, ageing=60)
        jobs.queue("x").set(burst=None)
        assert jobs.queues() == [QueueSettings("x", False, 3, "10/s", None, 2.0, 60 * SECOND)]

    @pytest.mark.parametrize("rate", ["1/h", "10 / m", "60/min", "1/10s", "7/3day"])
    def test_show_a_rate_as_it_was_given(self, jobs: LiteJobs, rate: str) -> None:
        settings = jobs.queue("x").set(rate=rate)
        assert settings.rate == rate
        assert jobs.queue("x").set(rate=settings.rate) == settings
        write_by_hand(jobs, "UPDATE litejobs_queue SET tokens = 0, filled_at = 0, name = 'default'")
        write_by_hand(jobs, "UPDATE litejobs_queue SET filled_at = ?", jobs.clock())
        enqueue(jobs, 1)
        assert jobs.why(1) == f"its queue 'default' starts as many jobs as it may: {rate}"

    def test_show_a_rate_that_was_changed_by_hand_as_it_is_now(self, jobs: LiteJobs) -> None:
        jobs.queue("x").set(rate="1/h")
        write_by_hand(jobs, "UPDATE litejobs_queue SET rate = 2.5")
        assert jobs.queue("x").settings.rate == "2.5/s"

    @pytest.mark.parametrize(
        ("choices", "problem"),
        [
            ({"concurency": 1}, "concurency: no such setting; did you mean 'concurrency'?"),
            ({"concurrency": 0}, "concurrency: expected 1 or more, or None, got 0"),
            ({"burst": True}, "burst: expected 1 or more, or None, got True"),
            ({"weight": 0}, "weight: expected a number from 0.001 to 1000, got 0"),
            ({"ageing": 0}, "ageing: expected more than zero"),
            ({"rate": "fast"}, "rate: expected something like"),
            ({"max_attempts": 0}, "max_attempts: expected 1 or more"),
            ({"backoff": max}, "backoff: expected Constant, Linear, Exponential, Polynomial"),
        ],
    )
    def test_are_refused_when_they_make_no_sense(
        self, jobs: LiteJobs, choices: dict[str, Any], problem: str
    ) -> None:
        with pytest.raises(OptionError) as refusal:
            jobs.queue("x").set(**choices)
        assert problem in str(refusal.value)
        assert jobs.queues() == []

    def test_are_those_of_a_name(self, jobs: LiteJobs) -> None:
        with pytest.raises(OptionError, match="queue: expected 1 to 200 printable characters"):
            jobs.queue("")


class TestKeys:
    def test_let_one_run_at_a_time(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 3, key="c1")
        enqueue(jobs, 2, start=50, key="c2")
        assert jobs.stats() == {"default": {"pending": 2, "blocked": 3}}
        first = hands.claim()
        assert sorted(json.loads(job.payload)["n"] for job in first) == [1, 50]
        hands.settle(first[0])
        assert hands.names() == [2]
        assert jobs.stats() == {"default": {"completed": 1, "running": 2, "blocked": 2}}

    def test_may_let_more_run(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 9, key="c1", key_limit=3)
        assert len(hands.claim()) == 3
        assert hands.claim() == []

    def test_come_from_a_function_of_the_arguments(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 6, key=lambda n: f"c{n % 2}")
        assert hands.names() == [1, 2]

    def test_go_by_priority_among_those_that_wait(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 1, key="c")
        enqueue(jobs, 1, start=2, key="c", priority=1)
        enqueue(jobs, 1, start=3, key="c", priority=5)
        order = []
        while claimed := hands.claim():
            order += [json.loads(job.payload)["n"] for job in claimed]
            hands.settle(*claimed)
        assert order == [1, 3, 2]

    @pytest.mark.parametrize("error", [ValueError(), Fail("no"), Retry(0)])
    def test_pass_on_whatever_the_job_came_to(
        self, jobs: LiteJobs, hands: Hands, error: Exception
    ) -> None:
        enqueue(jobs, 2, key="c")
        hands.settle(*hands.claim(), error=error)
        assert hands.names() == [2]

    def test_pass_on_when_jobs_are_cancelled_or_deleted(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 4, key="c")
        jobs.cancel(1)
        jobs.delete(2)
        jobs.cancel(4)
        assert hands.names() == [3]

    def test_pass_on_after_a_rescue(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 2, key="c")
        other = Hands(jobs)
        other.claim()
        other.die()
        assert hands.claim() == []
        jobs.store.nodes.rescue(other.node)
        claimed = hands.claim()
        assert [job.id for job in claimed] == [1], "still one at a time"
        hands.settle(*claimed)
        assert hands.names() == [2]

    def test_hold_for_scheduled_and_retried_jobs(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        enqueue(jobs, 3, key="c", delay=10)
        assert jobs.stats() == {"default": {"scheduled": 3}}
        clock.turn(10)
        jobs.store.stage(clock())
        assert jobs.stats() == {"default": {"pending": 1, "blocked": 2}}
        hands.settle(*hands.claim(), error=Fail("no"))
        hands.settle(*hands.claim(), error=Fail("no"))
        jobs.retry(state="failed")
        assert jobs.stats() == {"default": {"pending": 1, "blocked": 2}}

    def test_are_free_again_after_changes_by_hand(self, jobs: LiteJobs, hands: Hands) -> None:
        enqueue(jobs, 3, key="c")
        enqueue(jobs, 3, start=10, key="d")
        write_by_hand(jobs, "UPDATE litejobs_job SET state = 'completed' WHERE state = 'pending'")
        assert hands.claim() == []
        assert jobs.store.admit() == 2
        assert sorted(hands.names()) == [2, 11]

    def test_hold_for_inserts_by_hand(self, jobs: LiteJobs, hands: Hands) -> None:
        jobs.count()
        for _ in range(3):
            write_by_hand(jobs, "INSERT INTO litejobs_job (name, key) VALUES ('note', 'c')")
        assert jobs.stats() == {"default": {"pending": 1, "blocked": 2}}

    def test_ten_thousand_behind_one_do_not_slow_others(self, jobs: LiteJobs, hands: Hands) -> None:
        """Steps of SQLite's virtual machine, which no busy machine changes."""
        enqueue(jobs, 1, start=5)

        def steps() -> int:
            connection, counted = jobs.store.file.connection(), [0]

            def count() -> bool:
                counted[0] += 1
                return False

            connection.set_progress_handler(count, 1)
            claimed = hands.claim(1)
            hands.settle(*claimed)
            connection.set_progress_handler(None)
            assert len(claimed) == 1
            return counted[0]

        enqueue(jobs, 1)
        few = steps()
        enqueue(jobs, 10_000, start=100, key="c")
        hands.claim(1)
        enqueue(jobs, 3, start=50_000)
        assert steps() < 3 * few

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_never_run_more_and_never_stick(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        clock = TurnedClock()
        path = tmp_path_factory.mktemp("keys") / "jobs.db"
        with LiteJobs(path, durability="fast", clock=clock) as jobs:
            jobs.define(note)
            hands, running = Hands(jobs), list[Claimed]()
            for _ in range(data.draw(st.integers(1, 25))):
                step = data.draw(st.sampled_from(["enqueue", "claim", "settle", "cancel", "turn"]))
                if step == "enqueue":
                    key, delay = (
                        data.draw(st.sampled_from("ab")),
                        data.draw(st.sampled_from([0, 5])),
                    )
                    enqueue(jobs, data.draw(st.integers(1, 4)), key=key, key_limit=2, delay=delay)
                elif step == "claim":
                    running += hands.claim(data.draw(st.integers(1, 3)))
                elif step == "settle" and running:
                    error = data.draw(st.sampled_from([None, ValueError(), Fail("no")]))
                    hands.settle(running.pop(), error=error)
                elif step == "cancel":
                    jobs.cancel(data.draw(st.integers(1, 30)), state=("pending", "blocked"))
                else:
                    clock.turn(5)
                    jobs.store.stage(clock())
                self.check(jobs)
            hands.die()

    def check(self, jobs: LiteJobs) -> None:
        for key in "ab":
            rows: list[Any] = jobs.store.file.connection().execute(
                "SELECT state, count(*) FROM litejobs_job WHERE key = ? GROUP BY state", (key,)
            ).fetchall()  # fmt: skip
            counts = dict(rows)
            slots = counts.get("pending", 0) + counts.get("running", 0)
            assert slots <= 2
            assert slots == 2 or not counts.get("blocked"), "nobody waits for a free slot"


class TestExpiry:
    def test_cancels_what_was_not_started_in_time(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        definition = jobs.registry.named("note")
        job = definition.using(expires=10).enqueue(1)
        kept = definition.using(expires=11).enqueue(2)
        clock.turn(10)
        assert jobs.drain() == 1
        job = job.refresh()
        assert (job.state, job.attempt) == ("cancelled", 0)
        assert job.error == "Expired: not started by 2025-01-01 00:00:10 UTC"
        assert job.why() == f"it was cancelled at 2025-01-01 00:00:10 UTC: {job.error}"
        assert kept.refresh().state == "completed"

    def test_counts_from_the_time_when_the_job_is_due(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        job = jobs.registry.named("note").using(delay=3600, expires=10).enqueue(1)
        assert job.expires_at == job.run_at + 10 * SECOND
        clock.turn(3605)
        jobs.drain()
        assert job.refresh().state == "completed"

    def test_may_be_a_moment(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        job = jobs.registry.named("note").using(expires=clock.now + SECOND).enqueue(1)
        clock.turn(1)
        jobs.drain()
        assert job.refresh().state == "cancelled"

    def test_does_not_touch_a_job_that_has_started(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        job = jobs.registry.named("note").using(expires=10).enqueue(1)
        claimed = hands.claim()
        clock.turn(20)
        jobs.store.expire(clock())
        assert job.refresh().state == "running"
        hands.settle(*claimed, error=Retry(5))
        clock.turn(10)
        jobs.drain()
        assert job.refresh().state == "completed"

    @pytest.mark.parametrize("looked", [True, False], ids=["looked at", "not looked at"])
    @pytest.mark.parametrize("fate", ["naps", "is lost with its node"])
    def test_does_not_touch_one_whose_first_attempt_did_not_count(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock, fate: str, looked: bool
    ) -> None:
        """Whether a duty came by while it ran makes no difference."""
        job = jobs.registry.named("note").using(expires=10).enqueue(1)
        claimed = hands.claim()
        if looked:
            clock.turn(20)
            jobs.store.expire(clock())
        if fate == "naps":
            hands.settle(*claimed, error=Snooze(5))
        else:
            hands.die()
            jobs.store.nodes.rescue(hands.node)
        clock.turn(20)
        jobs.drain()
        assert job.refresh().state == "completed"

    def test_waits_for_one_that_was_given_back_before_it_began(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        job = jobs.registry.named("note").using(expires=10).enqueue(1)
        given_back = [(c, not_begun(clock(), cancelled=False)) for c in hands.claim()]
        jobs.store.exchange(given_back, hands.node, lambda ready: [], hands.subscription)
        assert (job.refresh().state, job.refresh().started_at) == ("pending", None)
        clock.turn(10)
        assert jobs.drain() == 0
        assert job.refresh().state == "cancelled"

    def test_is_never_missed_by_a_claim(
        self, jobs: LiteJobs, hands: Hands, clock: TurnedClock
    ) -> None:
        jobs.registry.named("note").using(expires=10).enqueue(1)
        clock.turn(10)
        assert hands.claim() == [], "although no duty has been there yet"

    def test_cancels_more_jobs_than_fit_into_one_transaction(
        self, jobs: LiteJobs, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(litejobs, "BATCH", 3)
        definition = jobs.registry.named("note").using(expires=10)
        jobs.enqueue_many(definition.bind(n) for n in range(7))
        clock.turn(20)
        jobs.drain()
        assert jobs.stats() == {"default": {"cancelled": 7}}

    def test_is_kept_right_in_the_numbers(self, jobs: LiteJobs, clock: TurnedClock) -> None:
        definition = jobs.registry.named("note")
        for delay in (0, 5):
            definition.using(expires=10, delay=delay).enqueue(1)
        definition.using(expires=1, key="k").enqueue(1)
        definition.using(expires=1, key="k").enqueue(1)
        clock.turn(60)
        assert jobs.store.expire(clock()) == (4, None)
        assert jobs.stats() == {"default": {"cancelled": 4}}

    def test_comes_from_the_definition_for_inserts_by_hand(
        self, jobs: LiteJobs, clock: TurnedClock
    ) -> None:
        jobs.define(name="brief", expires=5)(note)
        Hands(jobs).die()
        write_by_hand(jobs, "INSERT INTO litejobs_job (name) VALUES ('brief')")
        (job,) = jobs.find(name="brief")
        assert job.expires_at == job.run_at + 5 * SECOND


class TestRunningNodes:
    """With processes: what was set a moment ago holds now."""

    @pytest.fixture
    def jobs(self, tmp_path: Path) -> Iterator[LiteJobs]:
        with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
            jobs.register(*trouble.DEFINITIONS)
            yield jobs

    def test_heed_a_pause_and_a_resume(self, jobs: LiteJobs, log: Path, programs: Programs) -> None:
        programs.node(jobs.path)
        eventually(jobs.nodes)
        jobs.queue("mail").pause()
        job = trouble.nap_and_tell.using(queue="mail").enqueue(str(log), 0)
        never(lambda: job.refresh().state != "pending", during=0.7)
        jobs.queue("mail").resume()
        job.wait(PATIENT)

    def test_begin_nothing_once_a_pause_has_returned(
        self, jobs: LiteJobs, log: Path, programs: Programs
    ) -> None:
        """Not even what workers had been given behind what they run."""
        programs.node(jobs.path, "--workers", "2")
        naps = [trouble.nap_and_tell.using(queue="mail").bind(str(log), 0.03) for _ in range(20)]
        for done in range(5, 25, 5):
            jobs.queue("mail").resume()
            jobs.enqueue_many(naps)
            eventually(lambda done=done: len(lines(log)) >= done)  # type: ignore[misc]
            jobs.queue("mail").pause()
            paused_at = jobs.clock()
            eventually(lambda: not jobs.count(state="running"))
            begun = [job.started_at for job in jobs.find(state="completed") if job.started_at]
            assert max(begun) <= from_micros(paused_at)
            jobs.cancel(queue="mail")
            log.unlink()

    def test_keep_to_one_at_a_time_together(
        self, jobs: LiteJobs, log: Path, programs: Programs
    ) -> None:
        jobs.queue("mail").set(concurrency=1)
        works = [trouble.nap_and_tell.using(queue="mail").bind(str(log), 0.02) for _ in range(8)]
        works += [trouble.nap_and_tell.using(key="c").bind(str(log), 0.02) for _ in range(8)]
        enqueued = jobs.enqueue_many(works)
        for _ in range(2):
            programs.node(jobs.path)
        done = [job.wait(PATIENT) for job in enqueued]
        assert len(lines(log)) == 16
        for part in (done[:8], done[8:]):
            spans = sorted((str(job.started_at), str(job.finished_at)) for job in part)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), spans

    def test_keep_to_a_rate(self, jobs: LiteJobs, log: Path, programs: Programs) -> None:
        jobs.queue("mail").set(rate="20/s")
        works = [trouble.nap_and_tell.using(queue="mail").bind(str(log), 0) for _ in range(11)]
        enqueued = jobs.enqueue_many(works)
        programs.node(jobs.path)
        starts = sorted(job.wait(PATIENT).started_at or job.run_at for job in enqueued)
        assert starts[-1] - starts[0] > timedelta(seconds=0.45), (
            "ten intervals of 50 ms, less what a start varies"
        )

    def test_broadcast_gives_each_its_own_copy(
        self, jobs: LiteJobs, log: Path, programs: Programs
    ) -> None:
        assert jobs.broadcast(trouble.nap_and_tell.bind(str(log), 0)) == []
        for name in ("desk", "laptop"):
            programs.node(jobs.path, "--node", name)
        eventually(lambda: len(jobs.nodes()) == 2)
        copies = jobs.broadcast(trouble.nap_and_tell.bind(str(log), 0))
        assert [job.node for job in copies] == ["desk", "laptop"]
        for job in copies:
            assert job.wait(PATIENT).state == "completed"

    def test_broadcast_leaves_out_the_dead(
        self, jobs: LiteJobs, log: Path, programs: Programs
    ) -> None:
        node = programs.node(jobs.path, "--node", "desk")
        eventually(jobs.nodes)
        node.kill()
        node.wait()
        eventually(lambda: not jobs.broadcast(trouble.nap_and_tell.bind(str(log), 0)))


class TestBusyWorkers:
    """What was given to a worker, and waits there for a job that turns out to be slow."""

    @pytest.fixture
    def begun(self) -> list[int]:
        return []

    @pytest.fixture
    def gate(self) -> threading.Event:
        return threading.Event()

    @pytest.fixture
    def steps(
        self, jobs: LiteJobs, begun: list[int], gate: threading.Event
    ) -> Definition[[int], None, Any]:
        """Jobs that have been short, so that workers are given many; from now on they wait
        for the gate."""

        @jobs.define(queue="steps")
        def step(n: int) -> None:
            begun.append(n)
            gate.wait(PATIENT)
            begun.append(-n)

        return step

    @contextlib.contextmanager
    def at_work(
        self, jobs: LiteJobs, step: Definition[[int], None, Any], gate: threading.Event, size: int
    ) -> Iterator[list[Job[Any]]]:
        """Workers that have each begun a step, of many."""
        gate.set()
        with jobs.start(threads=size):
            jobs.wait_all(jobs.enqueue_many(step.bind(n) for n in range(1, 41)), PATIENT)
            gate.clear()
            try:
                steps = jobs.enqueue_many(step.bind(n) for n in range(101, 141))
                eventually(lambda: jobs.count(state="running") > size)
                yield [*steps]
            finally:
                gate.set()

    def test_give_back_what_they_have_not_begun_when_their_queue_is_paused(
        self,
        jobs: LiteJobs,
        steps: Definition[[int], None, Any],
        begun: list[int],
        gate: threading.Event,
    ) -> None:
        with self.at_work(jobs, steps, gate, size=1) as waiting:
            eventually(lambda: 101 in begun)
            jobs.queue("steps").pause()
            assert jobs.count(state="running") == 1
            assert jobs.hold(*waiting) == Moved(39, 1)
            gate.set()
            waiting[0].wait(PATIENT)
            assert max(begun) == 101
            assert all(job.refresh().attempt == 0 for job in waiting[1:])

    def test_keep_to_a_lower_concurrency_once_it_is_set(
        self,
        jobs: LiteJobs,
        steps: Definition[[int], None, Any],
        begun: list[int],
        gate: threading.Event,
    ) -> None:
        with self.at_work(jobs, steps, gate, size=3) as waiting:
            jobs.queue("steps").set(concurrency=1)
            running = [n for n in begun if n > 100]
            gate.set()
            jobs.wait_all(waiting, PATIENT)
        since = [n for n in begun[begun.index(101) :] if abs(n) not in running]
        assert len(since) == 2 * (40 - len(running))
        assert since[::2] == [-n for n in since[1::2]]

    def test_get_a_job_of_a_queue_with_a_rate_only_when_it_can_start(
        self,
        jobs: LiteJobs,
        steps: Definition[[int], None, Any],
        begun: list[int],
        gate: threading.Event,
    ) -> None:
        """Else it would start when the slow job ends, right before the next of its queue."""
        jobs.queue("rated").set(rate="1/s")
        gate.set()
        with jobs.start(threads=1):
            jobs.wait_all(jobs.enqueue_many(steps.bind(n) for n in range(1, 41)), PATIENT)
            gate.clear()
            steps.enqueue(101)
            eventually(lambda: 101 in begun)
            rated = jobs.registry.named("note").using(queue="rated").enqueue(1)
            never(lambda: rated.refresh().state != "pending", during=0.2)
            gate.set()
            assert rated.wait(PATIENT).state == "completed"

    def test_do_not_keep_a_job_of_a_queue_with_a_rate_waiting_for_ever(
        self, jobs: LiteJobs, steps: Definition[[int], None, Any], gate: threading.Event
    ) -> None:
        jobs.queue("rated").set(rate="1/s")
        gate.set()
        with jobs.start(threads=2):
            others = jobs.enqueue_many(steps.bind(n) for n in range(4000))
            eventually(lambda: others[100].refresh().finished)
            rated = jobs.registry.named("note").using(queue="rated", priority=1).enqueue(1)
            rated.wait(PATIENT)
            assert not others[-1].refresh().finished


def test_a_node_that_does_not_answer_keeps_nobody_from_pausing_a_queue(
    jobs: LiteJobs, hands: Hands, caplog: pytest.LogCaptureFixture
) -> None:
    write_by_hand(jobs, "UPDATE litejobs_node SET port = 9")
    jobs.queue("slow").pause()
    assert jobs.queue("slow").settings.paused
    assert "no answer from node " in caplog.text


def test_all_sorts_of_serves_leave_out_paused_queues() -> None:
    subscription = Subscription(frozenset({"a"}), None, "here", frozenset({"q"}))
    assert ("q", "a", "") not in subscription
    assert ("r", "a", "") in subscription


def test_the_schema_knows_the_words_of_the_indexes(jobs: LiteJobs) -> None:
    """SQLite finds the partial indexes for what the claim and the enqueue ask."""
    from litejobs import HOLDS, KEYED

    jobs.count()
    connection = apsw.Connection(str(jobs.path))
    for index, term, rest in (
        ("litejobs_unique", HOLDS, "unique_key = 'x'"),
        ("litejobs_key", KEYED, "state = 'blocked' AND key = 'x'"),
    ):
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN SELECT 1 FROM litejobs_job WHERE {term} AND {rest}"
        ).fetchall()
        assert index in str(plan)
    connection.close()


def test_a_node_in_the_background_is_listed_when_the_block_begins(tmp_path: Path) -> None:
    with LiteJobs(tmp_path / "jobs.db", durability="fast") as jobs:
        definition = jobs.define(note)
        for _ in range(5):
            with jobs.start(threads=1):
                assert len(jobs.broadcast(definition.bind(1))) == 1


def test_drain_ends_only_when_all_lanes_were_looked_at(
    jobs: LiteJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that takes long, as on a busy machine, is not repeated at once: what had become
    ready meanwhile was left there."""
    monkeypatch.setattr(litejobs, "SLOW_SCAN", 0.0)
    monkeypatch.setattr(litejobs, "SCAN_PAUSE", 500)

    @jobs.define(queue="mail")
    def send(n: int) -> None: ...

    @jobs.define(key="one at a time")
    def bill(n: int) -> None: ...

    jobs.queue("mail").pause()
    jobs.enqueue_many(send.bind(n) for n in range(20))
    jobs.enqueue_many(bill.bind(n) for n in range(4))
    jobs.drain()
    assert jobs.count(state="completed") == 4
