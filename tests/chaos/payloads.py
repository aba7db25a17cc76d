"""Hostile payloads: what fuzzers make of the JSON of typed definitions.

Good payloads of some thirty types are taken apart into tokens, and put together with other ones:
wrong types, dates that are none, numbers of five thousand digits, lone surrogates, depths of a
hundred thousand levels. Reading them may only fail with an error of ours; what can be read has to
be written and read back as the same; and a megabyte of anything has to be over in seconds.
"""

from __future__ import annotations

import enum
import mmap
import os
import random
import re
import signal
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import attrs

import litejobs
from litejobs import Codec, CodecError, LitejobsError, PayloadError

from .children import Died, answers
from .ordeal import Ordeal, Run

CHUNK = 20_000
"""Payloads that one child reads."""
TIMEOUT = 300.0
"""Seconds after which a child has hung, on a machine that has other things to do."""
LARGE = 5_000
"""Of so many payloads, one is large."""
LARGE_TIME = 4.0
"""Seconds of CPU that a megabyte may take."""
ERROR_LENGTH = 20_000


# The types.


class Color(enum.Enum):
    RED = "red"
    ONE = 1


class Options(TypedDict):
    name: str
    size: int


class Point(NamedTuple):
    x: int
    y: float = 0.0


@dataclass
class Line:
    start: Point
    end: Point
    label: str | None = None


@attrs.frozen
class Mail:
    to: str
    subject: str
    copies: int = 1
    at: datetime | None = None
    tags: list[str] = attrs.field(factory=list)


@attrs.frozen
class Tree:
    name: str
    children: list[Tree] = attrs.field(factory=list)


@attrs.frozen
class Cat:
    meow: int
    kind: Literal["cat"] = "cat"


@attrs.frozen
class Dog:
    bark: str
    kind: Literal["dog"] = "dog"


T = TypeVar("T")


@attrs.frozen
class Box(Generic[T]):
    content: T


@attrs.frozen
class Login:
    user: str
    password: str = attrs.field(repr=False)
    pin: int = attrs.field(default=1, repr=False, validator=attrs.validators.gt(0))


@attrs.frozen
class Order:
    id: UUID
    total: Decimal
    wait: timedelta
    where: Path
    data: bytes
    colors: dict[str, Color]
    pets: list[Cat | Dog]


ID = "12345678-1234-5678-1234-567812345678"
ORDER = (
    f'{{"id":"{ID}","total":"1.50","wait":90,"where":"/tmp/x","data":"AAE=",'
    '"colors":{"a":"red","b":1},"pets":[{"meow":1,"kind":"cat"},{"bark":"w","kind":"dog"}]}'
)
ZOO: dict[Any, tuple[str, ...]] = {
    str: ('"text"',),
    int: ("5", "-12"),
    float: ("1.5", "2"),
    bool: ("true",),
    None: ("null",),
    Any: ('{"a":[1,2.5,"x",null,{"b":true}]}',),
    datetime: ('"2026-11-22T10:00:00+01:00"', '"2026-11-22T10:00:00.123456"'),
    date: ('"2026-11-22"',),
    time_of_day: ('"10:20:30"',),
    timedelta: ("90", "0.5"),
    Decimal: ('"1.50"', '"-1E+3"'),
    UUID: (f'"{ID}"',),
    bytes: ('"AAE="',),
    Path: ('"/tmp/x"',),
    Color: ('"red"', "1"),
    Literal["a", 1, None]: ('"a"', "1", "null"),
    list[int]: ("[1,2,3]",),
    dict[str, int]: ('{"a":1,"b":2}',),
    dict[int, list[str]]: ('{"1":["a"],"-2":[]}',),
    tuple[int, str]: ('[1,"a"]',),
    tuple[float, ...]: ("[1,2.5]",),
    set[str]: ('["a","b"]',),
    frozenset[int]: ("[1,2]",),
    int | str | None: ("1", '"a"', "null"),
    float | list[bool] | None: ("1.5", "[true]"),
    Options: ('{"name":"a","size":2}',),
    Point: ('{"x":1,"y":2.5}',),
    Line: ('{"start":{"x":1,"y":0.0},"end":{"x":2},"label":"l"}',),
    Mail: ('{"to":"ada","subject":"hi","copies":2,"at":"2026-11-22T10:00:00Z","tags":["a"]}',),
    Tree: ('{"name":"a","children":[{"name":"b","children":[{"name":"c"}]}]}',),
    Cat | Dog: ('{"meow":1,"kind":"cat"}', '{"bark":"w","kind":"dog"}'),
    Box[Box[int]]: ('{"content":{"content":5}}',),
    Login: ('{"user":"ada","password":"hunter2","pin":3}',),
    Order: (ORDER,),
}


def send(to: str, mails: list[Mail], more: dict[str, Any] | None = None, copies: int = 1) -> None:
    """A definition, as most are: a function."""


SENT = '{"to":"ada","mails":[{"to":"a","subject":"b"}],"more":{"x":[1]},"copies":2}'

# What is put in: each is a token of JSON, or of what only looks like it.

VALUES = (
    *(
        "null",
        "true",
        "false",
        "0",
        "1",
        "-1",
        "-0",
        "-0.0",
        "1.0",
        "0.1",
        "1e5",
        "1E400",
        "1e-400",
    ),
    *("NaN", "Infinity", "-Infinity", "01", "+1", ".5", "1.", "0x1", "1_000", "9" * 30, "9" * 4300),
    *("9223372036854775808", "-9223372036854775809", "9007199254740993", "9" * 5000, "1e999999999"),
    *('""', '"x"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"a\\u0000b"'),
    *(
        '"\ud83d\\ude00"',
        '"\udc80"',
        '"\\x"',
        '"\n"',
        '"\x7f\x85\u202e"',
        '"é"',
        '"e\u0301"',
        "'x'",
    ),
    *(
        "[]",
        "{}",
        "[[]]",
        "[null]",
        "[[[[[[]]]]]]",
        '{"a":1}',
        '{"a":1,"a":2}',
        '{"":0}',
        '{"a":{}}',
    ),
    *(
        '"2026-02-30"',
        '"0000-01-01"',
        '"9999-12-31T23:59:59.999999Z"',
        '"2026-W01-1"',
        '"20261122"',
    ),
    *('"2026-11-22T10:00:00+23:59:59.999999"', '"0001-01-01T00:00:00+23:59"', '"2026-11-22 10:00"'),
    *('"2026-11-22T24:00:00"', '"24:00"', '"10:20:30.5+01:00"', '"10:20:60"', '"T10"', '"10"'),
    *(
        '"NaN"',
        '"sNaN"',
        '"Infinity"',
        '"-0"',
        '"1e1000000"',
        '"1E+1000000"',
        '"1E+999999999999999999"',
    ),
    *(
        '"1E-1000000"',
        '"0E+5"',
        '"\uff11"',
        '"1_0"',
        '" 1"',
        '"00.10"',
        "1e308",
        "1e15",
        "86399999999999",
    ),
    *(
        "1e14",
        "0.0000001",
        "0.000001",
        "1e-7",
        "-86400000000000",
        "1000000000000000.5",
        '"AA"',
        '"A==="',
    ),
    *(
        '"AAE"',
        '"A A="',
        f'"{ID.upper()}"',
        f'"{{{ID}}}"',
        f'"urn:uuid:{ID}"',
        '"/"',
        '"."',
        '"a//b"',
    ),
    *(
        '"../../etc/passwd"',
        '"\\u0000/x"',
        '"red"',
        '"RED"',
        '"Color.RED"',
        '"cat"',
        '"dog"',
        '"kind"',
    ),
    *(
        '{"content":5}',
        '{"meow":1}',
        '{"bark":"x"}',
        '{"x":1,"y":2,"z":3}',
        '"__class__"',
        '"hunter2"',
    ),
)
KEYS = (
    *(
        '"x"',
        '""',
        '"to"',
        '"name"',
        '"kind"',
        '"1"',
        '"01"',
        '"-0"',
        '"1e5"',
        '"__init__"',
        '"self"',
    ),
    *(
        '"\\ud800"',
        '"\\u0000"',
        '"' + "k" * 5000 + '"',
        '"password"',
        '"\uff11"',
        '"9' + "9" * 5000 + '"',
    ),
)
HALVES = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]")
"""The halves of a surrogate pair, which JSON reads as one character."""
MARKS = ("{", "}", "[", "]", ":", ",", "", " ", "\0", "\ufeff", "//", "/**/", "\udc80")
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')


def taken_apart(text: str) -> tuple[str, ...]:
    return tuple(TOKEN.findall(text))


def mutated(dice: random.Random, tokens: Sequence[str]) -> str:
    """The text with one to four tokens changed."""
    made = list(tokens)
    chance = dice.random
    for _ in range(1 if chance() < 0.6 else 1 + int(chance() * 4)):
        place = int(chance() * len(made))
        what = made[place]
        if chance() < 0.05:
            made[place] = MARKS[int(chance() * len(MARKS))]
        elif what in "{}[]:,":
            made[place] = what * 2 if chance() < 0.3 else what if chance() < 0.8 else ""
        elif place + 1 < len(made) and made[place + 1] == ":":
            made[place] = KEYS[int(chance() * len(KEYS))]
        else:
            made[place] = VALUES[int(chance() * len(VALUES))]
    return "".join(made)


def large(dice: random.Random) -> str:
    """Up to a megabyte of one nasty shape."""
    size = dice.choice((1_000, 30_000, 100_000))
    one = dice.choice(VALUES)
    if len(one) > 10:
        size //= len(one)
    shapes = (
        lambda: "[" * size + "]" * size,
        lambda: '{"children":[' * (size // 10),
        lambda: '{"name":"a","children":[' * (size // 30) + "]}" * (size // 30),
        lambda: '{"content":' * (size // 10) + "1" + "}" * (size // 10),
        lambda: "[" + ",".join([one] * size) + "]",
        lambda: "{" + ",".join(f'"k{n}":{one}' for n in range(size)) + "}",
        lambda: "{" + ",".join([f'"k":{one}'] * size) + "}",
        lambda: '{"' + "k" * size * 10 + '":1}',
        lambda: '"' + "x" * size * 10 + '"',
        lambda: '"' + "\\ud800" * size + '"',
        lambda: "9" * size,
        lambda: '"' + "9" * size + '"',
        lambda: '"1E+' + "9" * size + '"',
        lambda: '"0.' + "0" * size + '1"',
        lambda: '"' + "A" * size * 4 + '"',
        lambda: '{"to":"a","subject":"b","tags":[' + ",".join(["5"] * size) + "]}",
        lambda: '{"to":"a","mails":[' + ",".join(["{}"] * size) + "]}",
        lambda: " " * size * 10 + "1",
    )
    return dice.choice(shapes)()


# What is done with each.


@attrs.define(eq=False)
class Fuzzer:
    """Reads payloads of every type, and sees what comes out."""

    dice: random.Random
    counts: Counter[str] = attrs.field(factory=Counter)
    zoo: list[tuple[Codec[Any], tuple[str, ...]]] = attrs.field(init=False)
    definition: Any = attrs.field(init=False)
    worst: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.zoo = [
            (Codec(kind), taken_apart(text)) for kind, texts in ZOO.items() for text in texts
        ]
        self.definition = litejobs.define(send)

    def run(self, count: int) -> str:
        """Reads so many payloads; gives what was wrong, or nothing."""
        chance, size = self.dice.random, len(self.zoo)
        sent = taken_apart(SENT)
        for number in range(count):
            codec, tokens = self.zoo[int(chance() * size)]
            which = chance()
            if number % LARGE == 0:
                wrong = self.large(codec)
            elif which < 0.1:
                wrong = self.bound(mutated(self.dice, sent))
            elif which < 0.12:
                wrong = self.read(codec, mutated(self.dice, tokens).encode(errors="surrogatepass"))
            else:
                wrong = self.read(codec, mutated(self.dice, tokens))
            if wrong:
                return f"{codec.kind}: {wrong}"
        self.counts["payloads"] += count
        return ""

    def large(self, codec: Codec[Any]) -> str:
        text = large(self.dice)
        began = time.process_time()
        wrong = self.read(codec, text) or self.bound(
            f'{{"to":"a","mails":[],"more":{{"x":{text}}}}}'
        )
        took = time.process_time() - began
        self.counts["large"] += 1
        self.worst = max(self.worst, took)
        if took > LARGE_TIME:
            return f"{len(text)} characters took {took:.1f} s: {text[:80]!r}"
        return wrong

    def read(self, codec: Codec[Any], text: str | bytes) -> str:
        try:
            value = codec.decode(text)
        except CodecError as unfit:
            self.counts["refused"] += 1
            if codec.kind is Login and "hunter2" in str(unfit):
                return f"the error about {text[:300]!r} shows what is hidden: {unfit}"
            return self.error_text(str(unfit), text)
        except BaseException as error:
            return f"{text[:300]!r} raised {_short(error)}"
        self.counts["read"] += 1
        try:
            again = codec.encode(value)
            if HALVES.search(again):
                value = codec.decode(again)
                again = codec.encode(value)
            back = codec.decode(again)
            if back == value and type(back) is type(value) and codec.encode(back) == again:
                return ""
        except CodecError as unfit:
            if "nested too deeply" in str(unfit):  # Writing takes more of the stack.
                return ""
            return f"{text[:300]!r} was read, but cannot be written and read: {unfit}"[:1000]
        except RecursionError:
            return ""  # In the comparison.
        except BaseException as error:
            return f"{text[:300]!r} raised on its way back {_short(error)}"
        return f"{text[:300]!r} was read as {value!r:.300}, and came back as {back!r:.300}"

    def bound(self, text: str) -> str:
        """The way from the command line, to a job that is not in the file yet."""
        try:
            bound = litejobs.bind_json(self.definition, text, {})
            litejobs.bind_json(self.definition, str(bound.payload), {})
        except PayloadError as error:
            self.counts["refused"] += 1
            return self.error_text(str(error), text)
        except LitejobsError as error:
            return f"{text[:300]!r} raised {_short(error)}"
        except BaseException as error:
            return f"{text[:300]!r} raised {_short(error)}"
        self.counts["bound"] += 1
        return ""

    def error_text(self, said: str, text: str | bytes) -> str:
        """What is wrong with the words of an error."""
        if len(said) > ERROR_LENGTH:
            return f"{len(said)} characters of error about {text[:300]!r}"
        return ""


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]} {traceback.format_exc()[-600:]}"


# Children, each with some payloads.


@attrs.frozen
class Some:
    """Some payloads, for one child."""

    seed: int
    count: int

    def __call__(self, mark: mmap.mmap) -> tuple[str, Counter[str], float]:
        """Reads them; gives what was wrong, what it did, and how long the slowest took."""
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
        mark[:8] = self.seed.to_bytes(8, "big")
        fuzzer = Fuzzer(random.Random(self.seed))
        wrong = fuzzer.run(self.count)
        return wrong and f"seed {self.seed}: {wrong}", fuzzer.counts, fuzzer.worst


def payloads(run: Run) -> None:
    """Payloads that fuzzers make are refused in our words, or come back as they were."""
    if not hasattr(os, "fork"):
        print("  skipped: it needs fork")
        return
    worst = 0.0
    sizes = [CHUNK] * (run.count // CHUNK) + [run.count % CHUNK] * bool(run.count % CHUNK)
    acts = [Some(run.dice.getrandbits(48), size) for size in sizes]
    at_once = 1 if run.count < 10 * CHUNK else os.cpu_count() or 1
    try:
        for wrong, counts, took in answers(acts, at_once):
            run.counts.update(counts)
            run.expect(not wrong, wrong)
            worst = max(worst, took)
    except Died as died:
        run.violated(f"seed {died.place}: {died}")
    run.counts["ms for the slowest"] = round(worst * 1000)


ORDEALS = (Ordeal(run=payloads, quick=60_000, full=10_000_000, unit="payloads"),)
