"""Backoffs and retention: how long to wait, how long to keep, and how rows remember it."""

from __future__ import annotations

import json
import math
import random
from datetime import timedelta
from typing import Any

import pytest
from conftest import TurnedClock, write_by_hand
from hypothesis import given
from hypothesis import strategies as st

from litejobs import (
    DEFAULT_BACKOFF,
    DEFAULT_RETENTION,
    Backoff,
    Constant,
    Exponential,
    Linear,
    LiteJobs,
    OptionError,
    Polynomial,
    Retention,
    backoff_delay,
    load_backoff,
    store_backoff,
    store_retention,
)

lengths = st.integers(0, 36500 * 86400 * 10**6).map(lambda n: timedelta(microseconds=n))
jitters = st.sampled_from(["none", "full", "equal"])
attempts = st.integers(1, 10**9)
curves = st.one_of(
    st.builds(Constant, lengths, cap=lengths, jitter=jitters),
    st.builds(Linear, lengths, cap=lengths, jitter=jitters),
    st.builds(Exponential, lengths, st.floats(1, 1e300), cap=lengths, jitter=jitters),
    st.builds(Polynomial, lengths, st.floats(0, 1e300), cap=lengths, jitter=jitters),
)


class Draw(random.Random):
    """Randomness that always draws the same share."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def random(self) -> float:
        return self.share


def waits(policy: Backoff, attempts: int = 5, share: float = 0.0) -> list[float]:
    """Seconds after each of the first attempts, with the jitter's draw at *share*."""
    rng = Draw(share)
    return [backoff_delay(policy, n, rng).total_seconds() for n in range(1, attempts + 1)]


# Curves


def test_constant_waits_the_same_every_time() -> None:
    assert waits(Constant(7)) == [7, 7, 7, 7, 7]


def test_linear_waits_one_base_more_each_time() -> None:
    assert waits(Linear(10)) == [10, 20, 30, 40, 50]


def test_exponential_doubles_each_time() -> None:
    assert waits(Exponential(5, jitter="none")) == [5, 10, 20, 40, 80]


def test_exponential_grows_by_the_factor_that_is_given() -> None:
    assert waits(Exponential(1, 3, jitter="none")) == [1, 3, 9, 27, 81]


def test_polynomial_raises_the_attempt_to_the_fourth_power() -> None:
    assert waits(Polynomial(1, jitter="none")) == [1, 16, 81, 256, 625]


def test_polynomial_takes_another_exponent() -> None:
    assert waits(Polynomial(2, 0.5, jitter="none"), 4) == pytest.approx([2, 8**0.5, 12**0.5, 4])


@pytest.mark.parametrize("kind", [Constant, Linear, Exponential, Polynomial])
def test_a_base_is_given_in_seconds_or_as_a_timedelta(kind: Any) -> None:
    assert kind(1.5) == kind(timedelta(seconds=1.5))


@pytest.mark.parametrize("kind", [Linear, Exponential, Polynomial])
def test_no_growing_wait_is_longer_than_an_hour_unless_a_cap_says_so(kind: Any) -> None:
    assert waits(kind(5000, jitter="none"), 2) == [3600, 3600]
    assert waits(kind(5000, cap=6000, jitter="none"), 1) == [5000]
    assert waits(kind(5000, cap=timedelta(minutes=1), jitter="none"), 1) == [60]


# Jitter


@pytest.mark.parametrize("kind", [Exponential, Polynomial])
def test_growing_curves_spread_over_the_upper_half_by_default(kind: Any) -> None:
    assert kind(5).jitter == "equal"


@pytest.mark.parametrize("kind", [Constant, Linear])
def test_steady_curves_are_not_spread_by_default(kind: Any) -> None:
    assert kind(5).jitter == "none"


@pytest.mark.parametrize(
    ("jitter", "least", "middle", "most"),
    [("none", 100, 100, 100), ("full", 0, 50, 100), ("equal", 50, 75, 100)],
)
def test_jitter_draws_from_its_own_part_of_the_wait(
    jitter: Any, least: float, middle: float, most: float
) -> None:
    policy = Constant(100, jitter=jitter)
    assert waits(policy, 1, share=0.0) == [least]
    assert waits(policy, 1, share=0.5) == [middle]
    assert waits(policy, 1, share=1.0) == [most]


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    rng = random.Random(1)
    assert len({backoff_delay(DEFAULT_BACKOFF, 3, rng) for _ in range(100)}) == 100


def test_a_wait_is_spread_after_it_was_capped() -> None:
    policy = Exponential(10_000, cap=100, jitter="full")
    assert waits(policy, 1, share=0.25) == [25]


@given(curves, attempts, st.integers())
def test_a_wait_is_never_negative_and_never_above_the_cap(
    policy: Any, attempt: int, seed: int
) -> None:
    wait = backoff_delay(policy, attempt, random.Random(seed))
    assert timedelta(0) <= wait <= policy.cap


@given(curves, attempts, st.integers())
def test_equal_jitter_waits_at_least_half_of_what_there_is_without_it(
    policy: Any, attempt: int, seed: int
) -> None:
    kind, base = type(policy), policy.base
    whole = backoff_delay(kind(base, cap=policy.cap, jitter="none"), attempt, Draw(0))
    wait = backoff_delay(kind(base, cap=policy.cap, jitter="equal"), attempt, random.Random(seed))
    assert whole / 2 - timedelta(microseconds=1) <= wait <= whole


@pytest.mark.parametrize("kind", [Linear, Exponential, Polynomial])
@pytest.mark.parametrize("attempt", [1024, 1025, 10**6, 10**9])
def test_even_the_billionth_attempt_waits_no_longer_than_the_cap(kind: Any, attempt: int) -> None:
    wait = backoff_delay(kind(5, jitter="none"), attempt, Draw(0))
    assert wait == timedelta(hours=1)


@given(curves, st.integers(1, 10**9 - 1))
def test_a_later_attempt_never_waits_less_before_jitter(policy: Any, attempt: int) -> None:
    this, following = (backoff_delay(policy, n, Draw(1.0)) for n in (attempt, attempt + 1))
    assert this <= following


@given(st.sampled_from([Constant, Linear, Exponential, Polynomial]), attempts)
def test_a_base_of_zero_never_waits(kind: Any, attempt: int) -> None:
    assert backoff_delay(kind(0), attempt, Draw(1.0)) == timedelta(0)


# The default


def test_the_default_is_five_seconds_doubled_capped_at_an_hour_with_equal_jitter() -> None:
    assert Exponential(5, 2, cap=3600, jitter="equal") == DEFAULT_BACKOFF


def test_the_default_spreads_five_attempts_over_38_to_75_seconds() -> None:
    assert sum(waits(DEFAULT_BACKOFF, 4, share=0.0)) == 37.5
    assert sum(waits(DEFAULT_BACKOFF, 4, share=1.0)) == 75


def test_the_default_reaches_its_hour_at_the_eleventh_attempt() -> None:
    assert waits(DEFAULT_BACKOFF, 12, share=1.0)[9:] == [2560, 3600, 3600]


# Functions


def test_a_function_from_attempt_to_delay_is_a_backoff() -> None:
    assert waits(lambda attempt: attempt * 2.5, 3) == [2.5, 5, 7.5]
    assert waits(lambda attempt: timedelta(minutes=attempt), 2) == [60, 120]


def test_the_answer_of_a_function_is_neither_capped_nor_spread() -> None:
    assert waits(lambda attempt: 86400, 1, share=0.0) == [86400]


@pytest.mark.parametrize("answer", [-1, "5", None, True, math.nan, math.inf, 10**12])
def test_the_answer_of_a_function_has_to_be_a_length_of_time(answer: Any) -> None:
    with pytest.raises(OptionError, match=r"^backoff: "):
        backoff_delay(lambda attempt: answer, 1, random.Random())


def test_a_job_waits_as_the_function_of_its_definition_says(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define(backoff=lambda attempt: 100 * attempt)
    def fragile() -> None:
        raise ConnectionError

    job = fragile.enqueue()
    jobs.drain()
    assert job.refresh().run_at - clock.now == timedelta(seconds=100)
    clock.turn(110)
    jobs.drain()
    assert job.refresh().run_at - clock.now == timedelta(seconds=200)


def test_a_function_given_for_one_job_is_kept_or_refused(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define
    def fragile() -> None:
        raise ConnectionError

    try:
        job = fragile.using(backoff=lambda attempt: 500).enqueue()
    except OptionError:
        return  # "A row cannot keep a function" is a fair answer; another backoff is not.
    jobs.drain()
    assert job.refresh().run_at - clock.now == timedelta(seconds=500)


def test_a_function_that_fails_is_replaced_by_the_default_and_said_so(
    jobs: LiteJobs, clock: TurnedClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(attempt: int) -> float:
        return 1 / 0

    @jobs.define(backoff=broken)
    def fragile() -> None:
        raise ConnectionError

    job = fragile.enqueue()
    jobs.drain()
    assert job.refresh().state == "retrying"
    assert 2.5 <= (job.refresh().run_at - clock.now).total_seconds() <= 6
    assert "the backoff of 'fragile' failed" in caplog.text


# Mistakes


@pytest.mark.parametrize("kind", [Constant, Linear, Exponential, Polynomial])
@pytest.mark.parametrize(
    ("base", "problem"),
    [
        (-1, "is negative"),
        (timedelta(microseconds=-1), "is negative"),
        ("5", "expected seconds or a timedelta"),
        (True, "expected seconds or a timedelta"),
        (None, "expected seconds or a timedelta"),
        (math.nan, "is not a length of time"),
        (math.inf, "is not a length of time"),
        (timedelta(days=36501), "is more than a hundred years"),
    ],
)
def test_a_base_that_is_no_length_of_time_is_refused(kind: Any, base: Any, problem: str) -> None:
    with pytest.raises(OptionError, match=f"^backoff: .*{problem}"):
        kind(base)
    with pytest.raises(OptionError, match=f"^backoff: .*{problem}"):
        kind(1, cap=base)


@pytest.mark.parametrize("kind", [Constant, Linear, Exponential, Polynomial])
def test_an_unknown_jitter_is_refused_in_one_sentence(kind: Any) -> None:
    with pytest.raises(OptionError) as caught:
        kind(5, jitter="half")
    assert "half" in str(caught.value)
    assert "equal" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("factor", [-2, math.nan, math.inf, "2", None])
def test_a_factor_that_makes_no_curve_is_refused(factor: Any) -> None:
    with pytest.raises(OptionError):
        Exponential(5, factor)


@pytest.mark.parametrize("exponent", [math.nan, math.inf, "2", None])
def test_an_exponent_that_makes_no_curve_is_refused(exponent: Any) -> None:
    with pytest.raises(OptionError):
        Polynomial(5, exponent)


# In rows


def test_the_default_is_stored_as_nothing() -> None:
    assert store_backoff(DEFAULT_BACKOFF) is None
    assert store_backoff(Exponential(5)) is None
    assert load_backoff(None, Constant(1)) == DEFAULT_BACKOFF


def test_a_curve_is_stored_as_json_that_a_person_can_read() -> None:
    text = store_backoff(Constant(1.5, cap=60))
    assert json.loads(text or "") == {"kind": "Constant", "base": 1.5, "cap": 60, "jitter": "none"}


@given(curves)
def test_a_curve_is_loaded_as_it_was_stored(policy: Any) -> None:
    assert load_backoff(store_backoff(policy), Constant(1)) == policy


def test_a_function_is_stored_as_a_mark_and_taken_from_the_definition() -> None:
    def own(attempt: int) -> float:
        return 1

    text = store_backoff(own)
    assert text is not None
    assert "own" not in text
    assert load_backoff(text, own) is own


def test_a_job_keeps_the_backoff_that_it_was_enqueued_with(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define(backoff=Constant(10))
    def fragile() -> None:
        raise ConnectionError

    job = fragile.using(backoff=Constant(1000)).enqueue()
    jobs.drain()
    assert job.refresh().run_at - clock.now == timedelta(seconds=1000)


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", '{"kind": "Cubic", "base": 1}', '{"kind": "Constant", "bass": 1}']
)
def test_a_backoff_in_a_row_that_cannot_be_read_does_not_stop_the_queue(
    jobs: LiteJobs, text: str
) -> None:
    @jobs.define
    def fragile() -> None:
        raise ConnectionError

    job, after = fragile.enqueue(), fragile.enqueue()
    write_by_hand(jobs, "UPDATE litejobs_job SET backoff = ? WHERE id = ?", text, job.id)
    assert jobs.drain() == 2
    assert job.refresh().error == "ConnectionError: "
    assert after.refresh().state == "retrying"


# Retention


def test_completed_and_cancelled_jobs_are_kept_a_day_and_dead_letters_thirty() -> None:
    day = timedelta(days=1)
    assert Retention() == Retention(completed=day, cancelled=day, failed=30 * day)


def test_retention_is_given_in_seconds_or_as_a_timedelta_or_for_ever() -> None:
    policy = Retention(completed=60, failed=None)
    assert policy.completed == timedelta(minutes=1)
    assert policy.cancelled == timedelta(days=1)
    assert policy.failed is None


@pytest.mark.parametrize("kept", [-1, "a day", True, math.nan, 10**12])
@pytest.mark.parametrize("outcome", ["completed", "cancelled", "failed"])
def test_a_retention_that_is_no_length_of_time_is_refused(outcome: str, kept: Any) -> None:
    with pytest.raises(OptionError, match=r"^retention: "):
        Retention(**{outcome: kept})


def test_the_default_retention_is_stored_as_nothing() -> None:
    assert store_retention(DEFAULT_RETENTION) is None
    assert store_retention(Retention(completed=timedelta(hours=24))) is None


@given(st.none() | lengths, st.none() | lengths, st.none() | lengths)
def test_retention_is_stored_in_exact_microseconds(
    completed: timedelta | None, cancelled: timedelta | None, failed: timedelta | None
) -> None:
    policy = Retention(completed, cancelled, failed)
    text = store_retention(policy)
    if text is None:
        assert policy == Retention()
    else:
        kept = json.loads(text)
        for outcome, micros in kept.items():
            expected = getattr(policy, outcome)
            assert expected == (None if micros is None else timedelta(microseconds=micros))
        assert kept.keys() == {"completed", "cancelled", "failed"}


def test_a_retention_in_a_row_that_cannot_be_read_does_not_stop_the_queue(jobs: LiteJobs) -> None:
    @jobs.define
    def note() -> None: ...

    job, after = note.enqueue(), note.enqueue()
    write_by_hand(jobs, "UPDATE litejobs_job SET retention = 'no JSON' WHERE id = ?", job.id)
    assert jobs.drain() == 2
    assert after.refresh().state == "completed"


def test_a_finished_job_goes_when_its_own_retention_is_over(
    jobs: LiteJobs, clock: TurnedClock
) -> None:
    @jobs.define(retention=Retention(completed=timedelta(minutes=1)))
    def note() -> None: ...

    short, usual = note.enqueue(), note.using(retention=Retention()).enqueue()
    jobs.drain()
    clock.turn(59)
    assert jobs.store.prune(clock()) == 0
    clock.turn(3)
    assert jobs.store.prune(clock()) == 1
    assert [job.id for job in jobs.find()] == [usual.id]
    assert short.id != usual.id


def test_a_job_whose_retention_is_for_ever_stays(jobs: LiteJobs, clock: TurnedClock) -> None:
    @jobs.define(retention=Retention(completed=None))
    def note() -> None: ...

    job = note.enqueue()
    jobs.drain()
    clock.turn(100 * 365 * 86400)
    assert jobs.store.prune(clock()) == 0
    assert job.refresh().state == "completed"


def test_a_constant_wait_is_as_long_as_it_says() -> None:
    assert waits(Constant(7200)) == [7200] * 5
    assert waits(Constant(7200, cap=60)) == [60] * 5
