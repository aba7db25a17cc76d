"""When schedules are due: expressions, time zones, changes of the clock, and missed ticks.

The ticks around changes of the clock are held against an oracle that knows neither cronsim
nor `fold`: it walks through real time, second by second or minute by minute, looks at what the
clock on the wall shows, and matches the fields by hand.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import random
import re
import subprocess
import sys
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from litejobs import (
    Duration,
    Every,
    OptionError,
    Schedule,
    every_expression,
    from_micros,
    make_schedule,
    parse_expression,
    time_zone,
    to_micros,
)

LONG = "LITEJOBS_LONG" in os.environ
"""Whether to take minutes, and go through all zones and sixty years."""
SECOND = 10**6
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)  # A Wednesday.
NOW = to_micros(NOON)


def ticks(rule: Schedule, since: datetime, count: int) -> list[str]:
    """The next ticks, as the clock on the wall shows them."""
    zone, moment = time_zone(rule.timezone), to_micros(since)
    found = []
    for _ in range(count):
        tick = rule.next_after(moment, to_micros(since))
        assert tick is not None
        assert tick > moment
        found.append(from_micros(tick).astimezone(zone).isoformat())
        moment = tick
    return found


def kept(rule: Schedule, **columns: Any) -> Schedule:
    """As it is read from the file."""
    options = '{"queue": "default", "open": []}'
    return attrs.evolve(rule, name="nightly", definition="report", options=options, **columns)


def due(rule: Schedule, next_at: int, now: int) -> tuple[list[int], int | None]:
    """The ticks that fire, and the next one after them."""
    ticks, after = attrs.evolve(rule, next_at=next_at).due(now)
    return ticks, after.next_tick


class TestExpressions:
    @pytest.mark.parametrize(
        ("expression", "first", "second"),
        [
            ("0 3 * * *", "2025-01-02T03:00:00", "2025-01-03T03:00:00"),
            ("*/20 * * * *", "2025-01-01T12:20:00", "2025-01-01T12:40:00"),
            ("15 0 3 * * *", "2025-01-02T03:00:15", "2025-01-03T03:00:15"),
            ("*/10 * * * * *", "2025-01-01T12:00:10", "2025-01-01T12:00:20"),
            ("0 9 * * MON-FRI", "2025-01-02T09:00:00", "2025-01-03T09:00:00"),
            ("0 9 * jan,mar mon", "2025-01-06T09:00:00", "2025-01-13T09:00:00"),
            ("0 0 29 2 *", "2028-02-29T00:00:00", "2032-02-29T00:00:00"),
            ("0 0 L * *", "2025-01-31T00:00:00", "2025-02-28T00:00:00"),
            ("0 0 * * FRI#2", "2025-01-10T00:00:00", "2025-02-14T00:00:00"),
            ("0 0 13 * FRI", "2025-01-03T00:00:00", "2025-01-10T00:00:00"),
            ("@hourly", "2025-01-01T13:00:00", "2025-01-01T14:00:00"),
            ("@daily", "2025-01-02T00:00:00", "2025-01-03T00:00:00"),
            ("@midnight", "2025-01-02T00:00:00", "2025-01-03T00:00:00"),
            ("@weekly", "2025-01-05T00:00:00", "2025-01-12T00:00:00"),
            ("@monthly", "2025-02-01T00:00:00", "2025-03-01T00:00:00"),
            ("@yearly", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
            ("@annually", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
            ("@every 30s", "2025-01-01T12:00:30", "2025-01-01T12:01:00"),
            ("@every 5m", "2025-01-01T12:05:00", "2025-01-01T12:10:00"),
            ("@every 2h", "2025-01-01T14:00:00", "2025-01-01T16:00:00"),
            ("@every 1d", "2025-01-02T12:00:00", "2025-01-03T12:00:00"),
            ("@every 1h30m", "2025-01-01T13:30:00", "2025-01-01T15:00:00"),
            ("  @every  1h 30m ", "2025-01-01T13:30:00", "2025-01-01T15:00:00"),
        ],
    )
    def test_mean_what_they_say(self, expression: str, first: str, second: str) -> None:
        expected = [f"{first}+00:00", f"{second}+00:00"]
        assert ticks(make_schedule(expression), NOON, 2) == expected

    @pytest.mark.parametrize(
        ("expression", "problem"),
        [
            ("", "number of fields"),
            ("* * * *", "number of fields"),
            ("* * * * * * *", "number of fields"),
            ("61 * * * *", "bad minute"),
            ("0 24 * * *", "bad hour"),
            ("0 0 32 * *", "bad day-of-month"),
            ("0 0 * 13 *", "bad month"),
            ("0 0 * * MOO", "bad day-of-week"),
            ("60 0 0 * * *", "bad second"),
            ("0 0 30 2 *", "bad day-of-month"),
            ("*/0 * * * *", "bad minute"),
            ("@daly", "did you mean '@daily'"),
            ("@daily 5", "did you mean '@daily'"),
            ("@every", "expected a length"),
            ("@every 5", "expected a length"),
            ("@every 1s5m", "expected a length"),
            ("@every 1.2.3s", "expected a length"),
            ("@every 0s", "tenth of a second"),
            ("@every 200000d", "hundred years"),
            ("@every " + "9" * 190 + "s", "expected a length"),
            ("9" * 300, "not an expression"),
            (5, "not an expression"),
        ],
    )
    def test_that_mean_nothing_are_refused_with_what_is_wrong(
        self, expression: Any, problem: str
    ) -> None:
        with pytest.raises(OptionError, match=problem) as caught:
            parse_expression(expression)
        assert caught.value.option == "cron"
        assert repr(expression)[:10] in str(caught.value)

    def test_show_an_example_when_they_are_refused(self) -> None:
        with pytest.raises(OptionError, match=r"'0 3 \* \* MON-FRI'"):
            parse_expression("at three")

    @given(st.text(st.sampled_from("0159*/-,#LWMONJAN @everyhms.\u00b2\u0664 "), max_size=30))
    def test_of_any_kind_are_understood_or_refused(self, text: str) -> None:
        try:
            rule = make_schedule(text)
        except OptionError:
            return
        tick = rule.next_after(NOW, NOW)
        assert tick is None or tick > NOW
        assert rule.words

    @given(st.integers(10**5, 3 * 10**15))
    def test_of_intervals_keep_every_microsecond(self, micros: int) -> None:
        interval = timedelta(microseconds=micros)
        assert parse_expression(every_expression(interval)) == Every(interval)

    @pytest.mark.parametrize("interval", [0, 0.05, -1, "5", True, 10**12])
    def test_of_intervals_that_cannot_be_are_refused(self, interval: Any) -> None:
        with pytest.raises(OptionError, match="every"):
            every_expression(interval)

    def test_need_cronsim_only_if_they_have_fields(self) -> None:
        code = """
import sys
sys.modules["cronsim"] = None
from litejobs import OptionError, make_schedule
print(make_schedule("@every 5m").words)
try:
    make_schedule("0 3 * * *")
except OptionError as error:
    print(error)
"""
        command = [sys.executable, "-c", code]
        reported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert reported.startswith("Every 5 minutes\ncron: ")
        assert "pip install cronsim" in reported

    def test_do_not_load_cronsim_or_zones_before_they_are_used(self) -> None:
        code = "import sys, litejobs; print({'cronsim', 'zoneinfo'} & {*sys.modules})"
        command = [sys.executable, "-c", code]
        reported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert reported == "set()\n"


class TestWords:
    @pytest.mark.parametrize(
        ("expression", "words"),
        [
            ("0 3 * * MON-FRI", "At 03:00 on Monday through Friday (Europe/Berlin)"),
            ("@daily", "At 00:00 every day (Europe/Berlin)"),
            ("30 0 3 * * *", "At 03:00:30 every day (Europe/Berlin)"),
            ("@every 30s", "Every 30 seconds"),
            ("@every 1h30m", "Every 1 hour and 30 minutes"),
            ("@every 1d2h1s", "Every 1 day, 2 hours and 1 second"),
            ("@every 60s", "Every minute"),
            ("@every 500ms", "Every 500 milliseconds"),
        ],
    )
    def test_say_when_it_is_due(self, expression: str, words: str) -> None:
        assert make_schedule(expression, "Europe/Berlin").words == words


def drawn_fields(rng: random.Random) -> str:
    """An expression of five fields, with all that a field may say."""

    def field(low: int, high: int, names: str = "", more: tuple[str, ...] = ()) -> str:
        def pick(least: int) -> tuple[int, str]:
            number = rng.randint(least, high)
            named = names and rng.random() < 0.3 and number - low < len(names.split())
            return number, names.split()[number - low] if named else str(number)

        def term() -> str:
            if more and rng.random() < 0.3:
                return rng.choice(more)
            first, text = pick(low)
            number, last = pick(first)
            last = text if number == first else last
            step = rng.choice((1, 2, 2, 3, 5, 10, 15))
            whole = f"{low}-{high}"
            ranges = f"{text}-{last}", f"{text}-{text}", whole
            return rng.choice((
                "*", "*", "*", f"*/{step}", text, text, text, f"{text}/{step}", *ranges,
                *(f"{one}/{step}" for one in ranges),
            ))  # fmt: skip

        return ",".join(term() for _ in range(rng.choice((1, 1, 1, 1, 2, 3))))

    months = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"
    days = "SUN MON TUE WED THU FRI SAT"
    return " ".join((
        field(0, 59), field(0, 23), field(1, 31, more=("L", "LW", "1-31")), field(1, 12, months),
        field(0, 7, days, more=("5L", "FRI#2", "1#1", "0,7", "7L")),
    ))  # fmt: skip


def crontab_values(field: str, low: int, high: int, names: str = "") -> set[int]:
    """What a field means, as crontab(5) has it."""
    numbers = {name: number for number, name in enumerate(names.split(), low)}

    def number(text: str) -> int:
        return numbers[text] if text in numbers else int(text)

    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            found |= {*range(low, high + 1, int(step or 1))}
        elif not re.fullmatch(r"LW?|\dL|\w+#\d", span):
            end = number(last) if dash else high if step else number(first)
            found |= {*range(number(first), end + 1, int(step or 1))}
    return found


class Crontab:
    """The same expression, matched by hand: minute by minute, day by day."""

    def __init__(self, expression: str) -> None:
        minute, hour, self.day, month, self.weekday = expression.split()
        self.minutes, self.hours = crontab_values(minute, 0, 59), crontab_values(hour, 0, 23)
        months = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"
        self.months = crontab_values(month, 1, 12, months)
        self.days = crontab_values(self.day, 1, 31)
        weekdays = crontab_values(self.weekday, 0, 7, "SUN MON TUE WED THU FRI SAT")
        self.weekdays = {number % 7 for number in weekdays}

    def holds(self, date: datetime) -> bool:
        length = calendar.monthrange(date.year, date.month)[1]
        last = datetime(date.year, date.month, length)  # noqa: DTZ001
        working = last - timedelta(days=max(0, last.weekday() - 4))
        terms = self.day.split(",")
        by_day = (
            date.day in self.days
            or ("L" in terms and date.day == length)
            or ("LW" in terms and date.day == working.day)
        )
        today = date.isoweekday() % 7
        by_weekday = today in self.weekdays
        for term in self.weekday.split(","):
            if term in ("5L", "7L"):
                by_weekday |= today == int(term[0]) % 7 and date.day + 7 > length
            if "#" in term:
                name, which = term.split("#")
                by_weekday |= today == (5 if name == "FRI" else 1) and -(-date.day // 7) == int(
                    which
                )
        both = self.day.startswith("*") or self.weekday.startswith("*")
        return date.month in self.months and (all if both else any)((by_day, by_weekday))

    def ticks(self, since: datetime, days: int, most: int) -> list[datetime]:
        found: list[datetime] = []
        for date in (since + timedelta(days=number) for number in range(days)):
            for minute in range(24 * 60) if self.holds(date) else ():
                if minute // 60 in self.hours and minute % 60 in self.minutes:
                    found.append(date + timedelta(minutes=minute))
            if len(found) >= most:
                break
        return found[:most]


class TestExpressionsMadeUpByChance:
    """Held against a matcher that knows neither cronsim nor litejobs."""

    COUNT = 5_000 if LONG else 120

    def expressions(self, seed: int) -> Iterator[tuple[str, Schedule]]:
        rng = random.Random(seed)
        for _ in range(self.COUNT):
            text = drawn_fields(rng)
            with contextlib.suppress(OptionError):  # There is no such day.
                yield text, make_schedule(text)

    def test_fire_when_crontab_5_says(self) -> None:
        start, total = datetime(2025, 1, 1), 0  # noqa: DTZ001
        for text, rule in self.expressions(21):
            at, got = to_micros(start.replace(tzinfo=UTC)) - 1, []
            want = Crontab(text).ticks(start, days=500, most=25)
            for _ in want:
                following = rule.next_after(at, 0)
                assert following is not None
                at = following
                got.append(from_micros(at).replace(tzinfo=None))
            assert got == want, text
            total += len(want)
        assert total > 15 * self.COUNT

    def test_name_days_in_words_unless_they_fire_every_day(self) -> None:
        days = [datetime(2027, 1, 1) + timedelta(days=number) for number in range(440)]  # noqa: DTZ001
        for text, rule in self.expressions(22):
            want = Crontab(text)
            if not all(want.holds(day) for day in days if day.month in want.months):
                assert " on " in rule.words, text

    @pytest.mark.parametrize(
        ("expression", "words"),
        [
            ("0 0 1-31 * 4", "At 00:00 every day"),
            ("0 0 13 * 0-7", "At 00:00 every day"),
            ("0 0 13 * FRI", "At 00:00 on the 13th day of month and on Friday"),
            ("0 0 */2 * 1-5", "At 00:00 on every second day of month if it's on Monday through"
             " Friday"),
            ("0 9-9/2 * * *", "At 09:00 every day"),
            ("0 0 * * MON-MON/2", "At 00:00 on Monday"),
            ("0 0 1 jan,jul *", "At 00:00 on the first day of January and July"),
            ("0 9 L * *", "At 09:00 on the last day of every month"),
            ("*/15 9-17 * * *", "Every 15th minute from 09:00 through 17:59"),
            ("@hourly", "At the start of every hour"),
            ("30 * * * *", "At minute 30 of every hour"),
            ("*/10 * * * * *", "Every 10th second of every minute"),
        ],
    )  # fmt: skip
    def test_say_what_a_person_would(self, expression: str, words: str) -> None:
        assert make_schedule(expression).words == f"{words} (UTC)"

    def test_with_a_step_of_nothing_are_refused(self) -> None:
        with pytest.raises(OptionError, match="bad hour"):
            make_schedule("0 5-5/0 * * *")


class TestZones:
    @pytest.mark.parametrize(
        ("name", "near"),
        [
            ("Europe/Berln", "Europe/Berlin"),
            ("berlin", "Europe/Berlin"),
            ("europe/berlin", "Europe/Berlin"),
            ("America/New York", "America/New_York"),
            ("../../etc/passwd", "Europe/Berlin"),
            ("\0", "Europe/Berlin"),
            ("", "Europe/Berlin"),
        ],
    )
    def test_that_do_not_exist_are_named_and_a_near_one_proposed(
        self, name: str, near: str
    ) -> None:
        with pytest.raises(OptionError) as caught:
            make_schedule("0 3 * * *", name)
        assert caught.value.option == "timezone"
        assert repr(name) in str(caught.value)
        assert repr(near) in str(caught.value)

    def test_that_cannot_be_known_here_are_explained(self) -> None:
        code = """
import zoneinfo, sys
zoneinfo.reset_tzpath([])
sys.modules["tzdata"] = None
from litejobs import OptionError, time_zone
print(time_zone("UTC"))
try:
    time_zone("Europe/Berlin")
except OptionError as error:
    print(error)
"""
        command = [sys.executable, "-c", code]
        reported = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert reported.startswith("UTC\ntimezone: 'Europe/Berlin'")
        assert "pip install tzdata" in reported


class TestChangesOfTheClock:
    """Europe/Berlin: 2025-03-30 at 02:00 to 03:00, and 2025-10-26 at 03:00 back to 02:00."""

    SPRING = datetime(2025, 3, 29, 12, tzinfo=UTC)
    AUTUMN = datetime(2025, 10, 25, 12, tzinfo=UTC)

    def times(self, expression: str, since: datetime, count: int) -> list[str]:
        return [
            tick[8:22] for tick in ticks(make_schedule(expression, "Europe/Berlin"), since, count)
        ]

    def test_a_time_that_does_not_exist_runs_once_right_after_the_gap(self) -> None:
        assert self.times("30 2 * * *", self.SPRING, 3) == [
            "30T03:00:00+02", "31T02:30:00+02", "01T02:30:00+02",
        ]  # fmt: skip

    def test_several_times_that_do_not_exist_are_one_tick(self) -> None:
        assert self.times("0,20,40 2,3 * * *", self.SPRING, 4) == [
            "30T03:00:00+02", "30T03:20:00+02", "30T03:40:00+02", "31T02:00:00+02",
        ]  # fmt: skip

    def test_a_time_that_comes_twice_runs_once(self) -> None:
        assert self.times("30 2 * * *", self.AUTUMN, 2) == ["26T02:30:00+02", "27T02:30:00+01"]

    def test_a_node_that_starts_in_the_repeated_hour_does_not_run_it_again(self) -> None:
        repeated = datetime(2025, 10, 26, 1, 10, tzinfo=UTC)  # 02:10, for the second time.
        assert self.times("30 2 * * *", repeated, 1) == ["27T02:30:00+01"]

    def test_seconds_first_makes_no_difference(self) -> None:
        assert self.times("0 30 2 * * *", self.SPRING, 2) == ["30T03:00:00+02", "31T02:30:00+02"]
        assert self.times("0 30 2 * * *", self.AUTUMN, 2) == ["26T02:30:00+02", "27T02:30:00+01"]

    def test_wildcards_follow_real_time(self) -> None:
        spring = datetime(2025, 3, 30, 0, 15, tzinfo=UTC)
        assert self.times("*/30 * * * *", spring, 3) == [
            "30T01:30:00+01", "30T03:00:00+02", "30T03:30:00+02",
        ]  # fmt: skip
        autumn = datetime(2025, 10, 25, 23, 45, tzinfo=UTC)
        assert self.times("0 * * * *", autumn, 3) == [
            "26T02:00:00+02", "26T02:00:00+01", "26T03:00:00+01",
        ]  # fmt: skip

    def test_intervals_are_of_real_time(self) -> None:
        autumn = datetime(2025, 10, 25, 23, 30, tzinfo=UTC)
        assert ticks(make_schedule("@every 1h", "Europe/Berlin"), autumn, 3) == [
            "2025-10-26T02:30:00+02:00", "2025-10-26T02:30:00+01:00", "2025-10-26T03:30:00+01:00",
        ]  # fmt: skip

    def test_at_midnight_and_by_half_an_hour_are_right_too(self) -> None:
        beirut = make_schedule("0 0 * * *", "Asia/Beirut")  # 2025-03-30 begins at 01:00.
        assert ticks(beirut, datetime(2025, 3, 29, 12, tzinfo=UTC), 2) == [
            "2025-03-30T01:00:00+03:00", "2025-03-31T00:00:00+03:00",
        ]  # fmt: skip
        island = make_schedule("45 1 * * *", "Australia/Lord_Howe")  # 01:30 to 02:00 comes twice.
        assert ticks(island, datetime(2025, 4, 5, 10, tzinfo=UTC), 2) == [
            "2025-04-06T01:45:00+11:00", "2025-04-07T01:45:00+10:30",
        ]  # fmt: skip

    def test_the_shortest_summer_time_of_all_is_not_overlooked(self) -> None:
        week = make_schedule("*/30 23 14 10 *", "America/Boa_Vista")  # 8 to 15 October 2000.
        assert ticks(week, datetime(2000, 9, 20, tzinfo=UTC), 3) == [
            "2000-10-14T23:00:00-03:00", "2000-10-14T23:30:00-03:00", "2000-10-14T23:00:00-04:00",
        ]  # fmt: skip

    def test_a_day_that_was_left_out_is_made_up_for_once(self) -> None:
        samoa = make_schedule("0 9 * * *", "Pacific/Apia")  # There was no 30th of December 2011.
        assert ticks(samoa, datetime(2011, 12, 29, 12, tzinfo=UTC), 3) == [
            "2011-12-29T09:00:00-10:00", "2011-12-31T00:00:00+14:00", "2011-12-31T09:00:00+14:00",
        ]  # fmt: skip


# The oracle


class Field(NamedTuple):
    """One cron field: how it is written, and what it says of the clock on the wall."""

    text: str
    holds: Callable[[datetime], bool]


def numbers(rng: random.Random, low: int, high: int, near: list[int]) -> tuple[str, set[int]]:
    """A field of numbers, as text and as the set that it means; often with one of *near*."""

    def pick() -> int:
        return rng.choice(near) if near and rng.random() < 0.6 else rng.randint(low, high)

    form = rng.randrange(7)
    first, last = sorted((pick(), pick()))
    step = rng.choice([1, 2, 3, 5, 7, 10, 15, 30])
    if form == 0:
        return "*", {*range(low, high + 1)}
    if form == 1:
        return f"*/{step}", {*range(low, high + 1, step)}
    if form == 2:
        return f"{first}-{last}", {*range(first, last + 1)}
    if form == 3:
        return f"{first}-{last}/{step}", {*range(first, last + 1, step)}
    if form == 4:
        chosen = [pick() for _ in range(rng.randint(2, 4))]
        return ",".join(map(str, chosen)), {*chosen}
    return str(first), {first}


def time_field(rng: random.Random, unit: str, high: int, near: list[int]) -> Field:
    text, values = numbers(rng, 0, high, near)
    return Field(text, lambda wall: getattr(wall, unit) in values)


def day_field(rng: random.Random, near: list[int]) -> Field:
    form = rng.randrange(8)
    if form < 5:
        return Field("*", lambda wall: True)
    if form == 5:
        return Field("L", lambda wall: (wall + timedelta(days=1)).day == 1)
    text, values = numbers(rng, 1, 31, near)
    return Field(text, lambda wall: wall.day in values)


def weekday_field(rng: random.Random, near: list[int]) -> Field:
    form = rng.randrange(9)
    day = rng.choice(near) if rng.random() < 0.7 else rng.randint(0, 6)
    name = rng.choice([str(day), ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"][day]])
    if form < 5:
        return Field("*", lambda wall: True)
    if form == 5:
        return Field(name, lambda wall: wall.isoweekday() % 7 == day)
    if form == 6:
        which = rng.randint(1, 5)
        return Field(
            f"{name}#{which}",
            lambda wall: wall.isoweekday() % 7 == day and (wall.day - 1) // 7 + 1 == which,
        )
    if form == 7:
        return Field(
            f"{day}L",
            lambda wall: (
                wall.isoweekday() % 7 == day
                and wall.day + 7 > calendar.monthrange(wall.year, wall.month)[1]
            ),
        )
    return Field("0-6", lambda wall: True)


class Expression(NamedTuple):
    """Cron fields that were made up, and their meaning."""

    fields: tuple[Field, ...]

    @classmethod
    def drawn(cls, rng: random.Random, near: list[datetime], seconds: bool) -> Expression:
        minutes = [wall.minute for wall in near] if seconds else [0, 1, 29, 30, 45, 59]
        hours, days = [wall.hour for wall in near], [wall.day for wall in near]
        weekdays = [wall.isoweekday() % 7 for wall in near]
        second = [time_field(rng, "second", 59, [0])] if seconds else []
        return cls((
            *second,
            time_field(rng, "minute", 59, minutes),
            time_field(rng, "hour", 23, hours),
            day_field(rng, days),
            Field("*", lambda wall: True),
            weekday_field(rng, weekdays),
        ))  # fmt: skip

    @property
    def text(self) -> str:
        return " ".join(field.text for field in self.fields)

    @property
    def by_real_time(self) -> bool:
        return any(field.text.startswith("*") for field in self.fields[:-3])

    def holds(self, wall: datetime) -> bool:
        *times, day, _, weekday = self.fields
        if not all(field.holds(wall) for field in times):
            return False
        if len(times) == 2 and wall.second:
            return False
        both = day.text.startswith("*") or weekday.text.startswith("*")
        return (all if both else any)((day.holds(wall), weekday.holds(wall)))


class Moment(NamedTuple):
    """A moment of real time, what the clock on the wall shows then, which times it has just
    passed over, and whether it has shown this one before."""

    at: int
    wall: datetime
    skipped: list[datetime]
    again: bool


def walk(zone: zoneinfo.ZoneInfo, start: int, end: int, step: int) -> Iterator[Moment]:
    """Through real time. It begins early, to know what the clock has shown before."""
    latest = datetime.min  # noqa: DTZ901
    pace = timedelta(microseconds=step)
    for at in range(start - 3 * HOUR, end, step):
        wall = from_micros(at).astimezone(zone).replace(tzinfo=None, fold=0)
        skipped = []
        if latest > datetime.min:  # noqa: DTZ901
            gap = latest + pace
            while gap < wall:
                skipped.append(gap)
                gap += pace
        if at >= start:
            yield Moment(at, wall, skipped, wall <= latest)
        latest = max(latest, wall)


def expected(expression: Expression, moments: list[Moment]) -> list[int]:
    if expression.by_real_time:
        return [moment.at for moment in moments if expression.holds(moment.wall)]
    return [
        moment.at
        for moment in moments
        if any(map(expression.holds, moment.skipped))
        or (not moment.again and expression.holds(moment.wall))
    ]


def changes(zone: zoneinfo.ZoneInfo, first_year: int, last_year: int) -> Iterator[int]:
    """When the zone changes its clock, found by looking every six hours."""

    def offset(at: int) -> timedelta | None:
        return zone.utcoffset(from_micros(at).astimezone(zone))

    start = to_micros(datetime(first_year, 1, 1, tzinfo=UTC))
    end = to_micros(datetime(last_year + 1, 1, 1, tzinfo=UTC))
    for at in range(start, end, 6 * HOUR):
        if offset(at) != offset(at + 6 * HOUR):
            minutes = range(at, at + 6 * HOUR + 1, MINUTE)
            yield next(m for m in minutes if offset(m) != offset(at))


ZONES = [
    # With summer time in 2025, of every kind that there is.
    ("Europe/Berlin", 2025), ("Europe/London", 2025), ("Europe/Dublin", 2025),
    ("Europe/Lisbon", 2025), ("Europe/Athens", 2025), ("Europe/Kyiv", 2025),
    ("Europe/Chisinau", 2025), ("Atlantic/Azores", 2025), ("America/Nuuk", 2025),
    ("America/Scoresbysund", 2024), ("America/New_York", 2025), ("America/Chicago", 2025),
    ("America/Denver", 2025), ("America/Los_Angeles", 2025), ("America/Anchorage", 2025),
    ("America/Adak", 2025), ("America/Halifax", 2025), ("America/St_Johns", 2025),
    ("America/Havana", 2025), ("America/Santiago", 2025), ("America/Punta_Arenas", 2016),
    ("Pacific/Easter", 2025), ("America/Asuncion", 2023), ("America/Tijuana", 2025),
    ("America/Port-au-Prince", 2025), ("America/Miquelon", 2025), ("Asia/Beirut", 2025),
    ("Asia/Jerusalem", 2025), ("Asia/Gaza", 2025), ("Africa/Cairo", 2025),
    ("Africa/Casablanca", 2025), ("Africa/El_Aaiun", 2026), ("Australia/Sydney", 2025),
    ("Australia/Adelaide", 2025), ("Australia/Lord_Howe", 2025), ("Pacific/Auckland", 2025),
    ("Pacific/Chatham", 2025), ("Pacific/Norfolk", 2025), ("Antarctica/Troll", 2025),
    # What has happened before and may happen again.
    ("Asia/Tehran", 2021), ("Asia/Amman", 2022), ("Asia/Damascus", 2020),
    ("Pacific/Fiji", 2020), ("America/Sao_Paulo", 2018), ("Europe/Istanbul", 2016),
    ("America/Caracas", 2016), ("Asia/Pyongyang", 2015), ("Asia/Kathmandu", 1986),
    ("Europe/Moscow", 2014), ("America/St_Johns", 2010), ("Asia/Dhaka", 2009),
    ("Pacific/Apia", 2011), ("Pacific/Kwajalein", 1993), ("Pacific/Kiritimati", 1994),
    ("America/Lima", 1994), ("Asia/Almaty", 2024),
]  # fmt: skip
"""Zones, with a year in which they changed their clocks."""


class TestTicksAroundEachChangeOfTheClock:
    def hold(self, name: str, change: int, step: int, count: int, rng: random.Random) -> int:
        """Compares all ticks of expressions around a change; says how many there were."""
        zone = zoneinfo.ZoneInfo(name)
        around = 4 * HOUR if step == MINUTE else 4 * MINUTE
        moments = list(walk(zone, change - around, change + around, step))
        near = [moment.wall for moment in moments]
        near += [wall for moment in moments for wall in moment.skipped]
        total = 0
        for _ in range(count):
            expression = Expression.drawn(rng, near, seconds=step == SECOND)
            want = expected(expression, moments)
            try:
                rule = make_schedule(expression.text, name)
            except OptionError:
                assert want == []  # Such as each 15th day, if it is the second Sunday.
                continue
            got, moment = [], rule.next_after(moments[0].at - 1, 0)
            while moment is not None and moment <= moments[-1].at:
                got.append(moment)
                moment = rule.next_after(moment, 0)
            said = f"{expression.text!r} in {name} around {from_micros(change)}"
            assert [*map(from_micros, got)] == [*map(from_micros, want)], said
            self.hold_from_anywhere(rule, want, moments, rng)
            total += len(want)
        return total

    def hold_from_anywhere(
        self, rule: Schedule, want: list[int], moments: list[Moment], rng: random.Random
    ) -> None:
        for _ in range(3):
            since = rng.randint(moments[0].at, moments[-1].at)
            following = next((tick for tick in want if tick > since), None)
            got = rule.next_after(since, 0)
            if following is None:
                assert got is None or got > moments[-1].at
            else:
                assert got == following, (rule, from_micros(since))

    def test_are_those_that_a_walk_through_real_time_finds(self) -> None:
        rng = random.Random(2025)
        seen = total = 0
        for name, year in ZONES:
            for change in changes(zoneinfo.ZoneInfo(name), year, year):
                seen += 1
                total += self.hold(name, change, MINUTE, 5, rng)
        assert seen >= 100
        assert total > 4_000

    def test_are_right_to_the_second(self) -> None:
        rng = random.Random(2026)
        total = 0
        for name, year in rng.sample(ZONES, 6):
            for change in changes(zoneinfo.ZoneInfo(name), year, year):
                total += self.hold(name, change, SECOND, 5, rng)
        assert total > 250

    @pytest.mark.skipif(not LONG, reason="takes minutes: set LITEJOBS_LONG")
    def test_are_right_in_all_zones_of_sixty_years(self) -> None:
        rng = random.Random()
        seen = total = 0
        for name in sorted(zoneinfo.available_timezones() - {"localtime"}):
            for change in changes(zoneinfo.ZoneInfo(name), 1975, 2037):
                if rng.random() < 0.2:
                    seen += 1
                    total += self.hold(name, change, MINUTE, 2, rng)
        print(f"{total} ticks around {seen} changes")
        assert total > 0


class TestIntervals:
    @given(st.integers(10**5, 10**12), st.integers(0, 10**16), st.integers(-(10**12), 10**12))
    def test_never_drift(self, step: int, anchor: int, later: int) -> None:
        every = Every(timedelta(microseconds=step))
        moment = anchor + later
        tick = every.next_after(moment, anchor)
        assert (tick - anchor) % step == 0
        assert tick > moment
        assert tick == anchor or tick - step <= moment

    def test_count_from_their_start_which_is_the_first_tick(self) -> None:
        start = datetime(2025, 1, 1, 13, 0, 7, tzinfo=UTC)
        rule = make_schedule("@every 1h", start=start)
        assert ticks(rule, NOON, 2) == ["2025-01-01T13:00:07+00:00", "2025-01-01T14:00:07+00:00"]
        assert rule.next_after(NOW + DAY, NOW + 5) == to_micros(start) + DAY - HOUR

    def test_of_a_start_long_ago_are_counted_from_it(self) -> None:
        rule = make_schedule("@every 7m", start=datetime(2020, 1, 1, tzinfo=UTC))
        tick = rule.next_after(NOW, NOW)
        assert tick is not None
        assert (tick - to_micros(datetime(2020, 1, 1, tzinfo=UTC))) % (7 * MINUTE) == 0


class TestBounds:
    def test_nothing_is_due_before_the_start_or_after_the_end(self) -> None:
        rule = make_schedule(
            "0 * * * *",
            start=datetime(2025, 1, 1, 15, tzinfo=UTC),
            end=datetime(2025, 1, 1, 16, tzinfo=UTC),
        )
        assert ticks(rule, NOON, 2) == ["2025-01-01T15:00:00+00:00", "2025-01-01T16:00:00+00:00"]
        assert rule.next_after(to_micros(datetime(2025, 1, 1, 16, tzinfo=UTC)), 0) is None

    def test_the_year_10000_does_not_come(self) -> None:
        last = to_micros(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
        for expression in ("* * * * *", "0 3 * * *", "@every 1h"):
            assert make_schedule(expression).next_after(last, last) is None
        assert make_schedule("0 3 * * *", "Pacific/Apia").next_after(last, last) is None

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("misfire", "never"),
            ("overlap", "wait"),
            ("grace", -1),
            ("jitter", "5"),
            ("start", datetime(2025, 1, 1)),  # noqa: DTZ001
            ("end", "tomorrow"),
        ],
    )
    def test_options_that_cannot_be_are_refused(self, option: str, value: Any) -> None:
        with pytest.raises(OptionError) as caught:
            make_schedule("@daily", **{option: value})
        assert caught.value.option == option

    def test_an_end_before_the_start_is_refused(self) -> None:
        with pytest.raises(OptionError, match="before the start"):
            make_schedule("@daily", start=NOON, end=NOON - timedelta(1))

    def test_a_grace_in_which_no_tick_could_be_met_is_refused(self) -> None:
        with pytest.raises(OptionError, match="grace"):
            make_schedule("@daily", misfire="skip", grace=0)


class TestMissedTicks:
    def due(self, late: int, misfire: Any, grace: Duration = 60) -> list[int]:
        """Which of the ticks of every hour fire, in hours from the first, *late* (in seconds)
        after the first of them."""
        rule = make_schedule("0 * * * *", misfire=misfire, grace=grace)
        fired, next_at = due(rule, NOW, NOW + late * SECOND)
        hours = [(tick - NOW) / HOUR for tick in fired]
        assert next_at == NOW + (late * SECOND // HOUR + 1) * HOUR
        return [int(hour) for hour in hours]

    @pytest.mark.parametrize("misfire", ["once", "skip", "all"])
    def test_a_tick_within_the_grace_was_not_missed(self, misfire: str) -> None:
        assert self.due(0, misfire) == [0]
        assert self.due(60, misfire) == [0]

    def test_once_fires_one_job_for_all(self) -> None:
        assert self.due(61, "once") == [0]
        assert self.due(2 * 3600 + 1800, "once") == [2]
        assert self.due(2 * 3600 + 30, "once") == [2]

    def test_skip_fires_none_but_those_within_the_grace(self) -> None:
        assert self.due(61, "skip") == []
        assert self.due(2 * 3600 + 1800, "skip") == []
        assert self.due(2 * 3600 + 30, "skip") == [2]
        assert self.due(2 * 3600 + 30, "skip", grace=3700) == [1, 2]

    def test_all_fires_each(self) -> None:
        assert self.due(61, "all") == [0]
        assert self.due(2 * 3600 + 1800, "all") == [0, 1, 2]

    def test_all_fires_a_thousand_at_a_time(self) -> None:
        rule = make_schedule("* * * * * *", misfire="all")
        now, next_at = NOW + 2_500 * SECOND, NOW
        sizes: list[int] = []
        fired: list[int] = []
        while next_at <= now:
            made, following = due(rule, next_at, now)
            assert following is not None
            sizes.append(len(made))
            fired += made
            next_at = following
        assert sizes == [1000, 1000, 501]
        assert fired == [*range(NOW, now + 1, SECOND)]

    @pytest.mark.parametrize("expression", ["* * * * * *", "@every 1s", "0 3 * * *", "7 7 7 7 7"])
    def test_a_year_of_sleep_takes_no_time(self, expression: str) -> None:
        rule = make_schedule(expression, "Europe/Berlin", grace=0)
        first = rule.next_after(NOW - 370 * DAY, NOW)
        assert first is not None
        [last], next_at = due(rule, first, NOW)
        assert next_at is not None
        assert last <= NOW < next_at
        assert rule.next_after(last, first) == next_at

    @given(
        st.sampled_from(["*/7 * * * *", "30 2 * * *", "0,13 */5 * * *", "@every 13m", "@every 1d"]),
        st.integers(0, 4 * 86400),  # In five days */7 has more ticks than are made up for at once.
        st.sampled_from([0, 60, 3600, 86400]),
        st.sampled_from(["once", "skip", "all"]),
    )
    def test_fire_as_told_one_by_one(
        self, expression: str, late: int, grace: int, misfire: Any
    ) -> None:
        rule = make_schedule(expression, "Europe/Berlin", misfire=misfire, grace=max(1, grace))
        first = rule.next_after(to_micros(TestChangesOfTheClock.SPRING), NOW)
        assert first is not None
        now = first + late * SECOND
        outstanding: list[int] = []
        tick: int | None = first
        while tick is not None and tick <= now:
            outstanding.append(tick)
            tick = rule.next_after(tick, first)
        met = [tick for tick in outstanding if now - tick <= max(1, grace) * SECOND]
        want = {
            "once": outstanding if met == outstanding else outstanding[-1:],
            "skip": met,
            "all": outstanding,
        }[misfire]
        assert due(rule, first, now) == (want, tick)

    def test_the_last_tick_of_all_leaves_no_next_one(self) -> None:
        rule = make_schedule("0 * * * *", end=NOON)
        assert due(rule, NOW, NOW) == ([NOW], None)


class TestSnapshots:
    def test_give_the_next_times_in_their_zone(self) -> None:
        rule = make_schedule("30 2 * * *", "Europe/Berlin")
        next_at = rule.next_after(to_micros(TestChangesOfTheClock.SPRING), NOW)
        upcoming = kept(rule, next_at=next_at).upcoming(2)
        assert [moment.isoformat() for moment in upcoming] == [
            "2025-03-30T03:00:00+02:00", "2025-03-31T02:30:00+02:00",
        ]  # fmt: skip

    def test_give_no_times_after_the_end_or_while_paused(self) -> None:
        rule = make_schedule("0 * * * *", end=NOON + timedelta(hours=1))
        assert len(kept(rule, next_at=NOW).upcoming(5)) == 2
        assert kept(rule, next_at=NOW, paused=1).upcoming(5) == []
        assert kept(rule, next_at=NOW, paused=1).next_at is None

    def test_say_in_which_state_they_are(self) -> None:
        rule = make_schedule("@daily")
        assert kept(rule, next_at=NOW).state == "active"
        assert kept(rule, next_at=NOW, paused=1).state == "paused"
        assert kept(rule).state == "ended"


def test_cronsim_is_what_the_comment_in_the_section_says() -> None:
    """Should it be mended one day, the detour can go."""
    cronsim = pytest.importorskip("cronsim")
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    repeated = datetime(2025, 10, 26, 2, 10, tzinfo=berlin, fold=1)
    assert next(cronsim.CronSim("30 2 * * *", repeated)).astimezone(UTC) < repeated.astimezone(UTC)
    before = datetime(2025, 3, 30, 1, 59, tzinfo=berlin)
    assert next(cronsim.CronSim("0 30 2 * * *", before)).day == 31
    island = zoneinfo.ZoneInfo("Australia/Lord_Howe")
    half = next(cronsim.CronSim("* 3,2 * * *", datetime(2025, 4, 6, 0, tzinfo=island)))
    assert (half.hour, half.minute) == (2, 30)
