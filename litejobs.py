"""litejobs: a durable job queue in one file, on SQLite.

Drop it into a script or a desktop application, run cron-style work, or develop
without a broker. A complete program:

    from litejobs import LiteJobs

    jobs = LiteJobs("jobs.db")

    @jobs.define(queue="emails", max_attempts=5, timeout=30)
    def send_email(to: str, subject: str, body: str = "") -> None:
        print(f"to {to}: {subject}")

    if __name__ == "__main__":
        send_email.enqueue("user@example.com", subject="Welcome!")
        jobs.work(workers=2, until="empty")

Words. A *definition* is a named, typed piece of work. A *job* is one row: a definition with its
payload. An *attempt* is one execution of a job, a *queue* a named lane of jobs. A *node* is a
running `work()`: one supervisor process with its *workers*, child processes that run jobs. A
*dead letter* is a job that failed for good; a *schedule* enqueues a job at each of its *ticks*.
Programs enqueue, retry and cancel jobs. A node claims, runs and settles them; its *duties* fire
schedules, stage jobs that have become due, rescue those of dead nodes, and prune finished ones.

The states of a job; each change is one transaction:

    scheduled ──▶ pending ──▶ running ──▶ completed
                   ▲  ▲          ├──────▶ failed      (the dead letters)
         blocked ──┘  │          ├──────▶ cancelled
                      └─ retrying ◀┘

A due job is blocked while the limit of running jobs with its key is reached, or while its payload
fits no definition that a node has. A waiting job can be cancelled, or paused until it is released.

Where to add an option of jobs: Choices (or Changeable, if waiting jobs can be given another value),
Options, Job (above `_source`; if running jobs use it, below `stored_meta`, and at the end of
Claimed), and a column in SCHEMA, with a higher SCHEMA_VERSION. A filter: Filters, and FILTERS
unless it compares the column of its name with a text. An event: EventKind, _LEVELS if it is logged,
and where it happens. A duty: DUTIES. A backoff: a class like Linear, in Curve and in __all__.

The file is read from top to bottom, and each section uses only those above it: Errors, Values,
Policies, Schedules, Wire (JSON), Definitions, Execution (one attempt), Tracing, Schema, File,
Jobs in SQL, Caller's connection, Enqueue, Schedules in SQL, Ready, Nodes, Health,
Store (with these, all SQL), Events, Duties, Program, Worker, Supervisor,
LiteJobs (what users hold), Testing, Command line.
"""

# mypy checks this file. A copy beside a program adds nothing to what pyright says of that one:
# pyright: basic, reportArgumentType=false, reportAssignmentType=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportMissingImports=false, reportOperatorIssue=false
# pyright: reportOptionalMemberAccess=false, reportPossiblyUnboundVariable=false
# pyright: reportReturnType=false

from __future__ import annotations

import array
import atexit
import base64
import bisect
import contextlib
import contextvars
import dataclasses
import functools
import gc
import heapq
import importlib
import importlib.util
import inspect
import itertools
import json
import logging
import marshal
import math
import operator
import os
import random
import re
import reprlib
import selectors
import shlex
import signal
import stat
import sys
import threading
import time
import traceback
import types
import typing
import weakref
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import UTC, date, datetime, timedelta, tzinfo
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePath
from types import ModuleType
from typing import (
    Annotated,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    NamedTuple,
    Never,
    NoReturn,
    TypedDict,
    Unpack,
    overload,
)
from uuid import UUID

import apsw
import attrs  # Classes without slots are made in half the time, when this file is imported.
import cattrs
from cattrs import cols, disambiguators, gen
from typing_extensions import TypeVar

if typing.TYPE_CHECKING:
    # Imported where they are needed: a program that only enqueues starts in half the time.
    import argparse
    import socket
    from multiprocessing.connection import Connection

__version__ = "0.1.0"

__all__ = [
    "AroundEnqueue",
    "AroundRun",
    "Bound",
    "BusyError",
    "Cancel",
    "Compacted",
    "Constant",
    "Context",
    "Definition",
    "DefinitionError",
    "DuplicateError",
    "ErrorGroup",
    "Event",
    "Exponential",
    "Fail",
    "Failure",
    "FileError",
    "FileReplacedError",
    "Finding",
    "Interrupted",
    "Job",
    "JobFailedError",
    "JobNotFoundError",
    "Linear",
    "LiteJobs",
    "LitejobsError",
    "Metric",
    "Middleware",
    "Moved",
    "Node",
    "OptionError",
    "OutcomeUnknownError",
    "PayloadError",
    "Polynomial",
    "Pool",
    "Progress",
    "Queue",
    "QueueSettings",
    "RecordJobs",
    "Recorder",
    "ResultError",
    "Retention",
    "Retry",
    "Schedule",
    "ScheduleHandle",
    "ScheduleNotFoundError",
    "Snooze",
    "State",
    "TurnedClock",
    "Unique",
    "WaitTimeoutError",
    "WorkerError",
    "define",
    "main",
    "recording",
]

logger = logging.getLogger("litejobs")


################################################################################
# Errors
#
# The facts are fields; the message is one sentence that names the thing and says what to do. It is
# made printable, as log lines are: no name or value can control a terminal or forge a log line.
################################################################################


def printable(text: str, keep: str = "") -> str:
    """The text with escapes for what may control a terminal: all but printable and *keep*."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def _make_printable(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        shown = (
            arg if isinstance(arg, int | float) else printable(str(arg)) for arg in record.args
        )
        record.args = (*shown,)
    if record.exc_info and not record.exc_text:
        parts = traceback.format_exception(*record.exc_info)
        # Frames begin with a space. A message that kept its line breaks could forge log lines.
        lines = (printable(p.rstrip("\n"), "\n" if p.startswith(" ") else "") for p in parts)
        record.exc_text = "\n".join(lines)
    return True


logger.addFilter(_make_printable)


@typing.dataclass_transform(eq_default=False)
class LitejobsError(Exception):
    """Every error that litejobs raises on its own account."""

    _fields: typing.ClassVar[tuple[str, ...]] = ()
    _sentence: typing.ClassVar = ""
    """The format of the message; `{0}` is the error."""

    def __init_subclass__(cls) -> None:
        cls._fields += (*cls.__annotations__,)  # As attrs does, which takes longer to import.

    def __init__(self, *values: Any, **named: Any) -> None:
        Exception.__init__(self, *values)  # OSError takes two values for an errno and its text.
        vars(self).update(zip(self._fields, values, strict=False), **named)

    def __str__(self) -> str:
        return printable(self._sentence.format(self) or super().__str__())


class DefinitionError(LitejobsError):
    """A definition that cannot be made, found or run."""

    name: str
    problem: str
    _sentence = "definition {0.name!r}: {0.problem}"


class OptionError(LitejobsError, ValueError):
    """An option, or a value for it, that does not exist."""

    option: str
    problem: str
    _sentence = "{0.option}: {0.problem}"


class PayloadError(LitejobsError, ValueError):
    """A payload that does not fit its definition; each problem names its field."""

    name: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return printable(f"the payload of {self.name!r} does not fit: {'; '.join(self.problems)}")


class FileError(LitejobsError):
    """A file that cannot serve as a queue, or no longer can."""

    path: str
    problem: str
    _sentence = "{0.path}: {0.problem}"


class FileReplacedError(FileError):
    """The open file or its WAL was removed, moved or replaced: the last write may be lost."""


class BusyError(FileError):
    """Others held the file's write lock for too long; nothing was written."""


class OutcomeUnknownError(FileError):
    """A commit failed half-way: check whether it is there before you enqueue again."""


class DuplicateError(LitejobsError):
    """A job with the same unique key exists, and must not or cannot be replaced."""

    id: int
    """The job that holds the key."""
    name: str
    _sentence = "{0.name!r} is there already, as job {0.id}, with the same unique key"


class JobNotFoundError(LitejobsError, LookupError):
    """No job has this id: it never existed, was deleted, or was pruned."""

    id: int
    _sentence = "no job has the id {0.id}: it was deleted or pruned, or never existed"


class JobFailedError(LitejobsError):
    """The job whose result was asked for has none: it failed or was cancelled."""

    id: int
    name: str
    state: str
    reason: str
    _sentence = "job {0.id} ({0.name}) is {0.state} and has no result: {0.reason}"


class ResultError(LitejobsError, ValueError):
    """The result of a completed job could not be kept, or no longer fits its annotation."""

    id: int
    name: str
    problem: str
    _sentence = "the result of job {0.id} ({0.name}) {0.problem}"


class WaitTimeoutError(LitejobsError, TimeoutError):
    """The job did not finish within the timeout."""

    id: int
    state: str
    _sentence = "job {0.id} is still {0.state}: wait longer, or see that a node is working"


class ScheduleNotFoundError(LitejobsError, LookupError):
    """No schedule has this name."""

    name: str
    hint: str = ""
    _sentence = "no schedule has the name {0.name!r}{0.hint}"


class WorkerError(LitejobsError):
    """No worker can start, so that no job would ever run; or a node must not start."""

    problem: str
    _sentence = "{0.problem}"


################################################################################
# Values
#
# What the other sections pass to each other: rows, jobs, failures, time. Times are integer
# microseconds since the epoch inside and aware datetimes outside; users may give seconds.
################################################################################

R = TypeVar("R", default=Any)
T = TypeVar("T")

State = Literal[
    "scheduled", "blocked", "paused", "pending", "running", "retrying",
    "completed", "failed", "cancelled",
]  # fmt: skip
STATES: tuple[State, ...] = typing.get_args(State)
WAITING: tuple[State, ...] = ("scheduled", "blocked", "paused", "pending", "retrying")
DELAYED: tuple[State, ...] = ("scheduled", "retrying")
FINISHED: tuple[State, ...] = ("completed", "failed", "cancelled")
COUNTED_STATES: tuple[State, ...] = ("scheduled", "blocked", "paused", "retrying", *FINISHED)
"""Those whose numbers of jobs are stored, not counted by reading rows."""

Clock = Callable[[], int]
Duration = float | timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MAX_DURATION = timedelta(days=36500)
_LAST_MOMENT = (datetime.max.replace(tzinfo=UTC) - EPOCH) // MICROSECOND


def system_clock() -> int:
    """Microseconds since the epoch, now."""
    return time.time_ns() // 1000


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime, exactly."""
    return (moment - EPOCH) // MICROSECOND


def from_micros(micros: int) -> datetime:
    """The moment as an aware datetime in UTC, or the nearest one that Python has."""
    try:
        return EPOCH + micros * MICROSECOND
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if micros > 0 else datetime.min.replace(tzinfo=UTC)


def duration(value: Duration, what: str) -> timedelta:
    """A length of time from zero to a hundred years, given as a timedelta or in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float | timedelta):
        raise OptionError(what, f"expected seconds or a timedelta, got {value!r}")
    try:
        length = value if isinstance(value, timedelta) else timedelta(seconds=value)
    except (OverflowError, ValueError):
        raise OptionError(what, f"{value!r} is not a length of time") from None
    if length < timedelta(0):
        raise OptionError(what, f"{value!r} is negative; a length of time is zero or more")
    if length > MAX_DURATION:
        raise OptionError(what, f"{value!r} is more than a hundred years")
    return length


def aware(value: object, what: str) -> datetime:
    """A datetime, if it has a time zone."""
    if not isinstance(value, datetime):
        raise OptionError(what, f"expected an aware datetime, got {value!r}")
    if value.utcoffset() is None:
        raise OptionError(what, f"{value!r} has no time zone: add one, such as datetime.UTC")
    return value


def at_least_one(value: object, what: str, also: str = "", most: int = 2**31 - 1) -> int:
    """An integer from 1 to *most*; the error says that *also* is allowed."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(what, f"expected 1 or more{also}, got {value!r}")
    if value > most:
        raise OptionError(what, f"expected {most:,} at most{also}, got {value!r}")
    return value


def check_name(value: object, what: str) -> str:
    """A name that is safe to store, show and type: 1 to 200 printable characters."""
    if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable():
        raise OptionError(what, f"expected 1 to 200 printable characters, got {value!r}")
    return value


def _by_word(ours: Mapping[str, str]) -> Mapping[str, str]:
    return {word: own for own, words in ours.items() for word in words.split()}


OPTIONS_ELSEWHERE = _by_word(
    {
        "at": "eta run_at when",
        "backoff": "retry_backoff retry_delay default_retry_delay",
        "concurrency": "limit max_concurrency",
        "delay": "countdown defer_by schedule_in",
        "expires": "ttl expire expiry",
        "max_attempts": "retries retry max_retries max_tries tries attempts",
        "on_failure": "on_error",
        "queue": "queue_name",
        "rate": "rate_limit",
        "retention": "result_ttl failure_ttl",
        "retry_on": "autoretry_for retry_for",
        "state": "status",
        "timeout": "time_limit soft_time_limit job_timeout",
        "timezone": "tz",
        "unique": "lock lock_task queueing_lock unique_for",
        "workers": "processes n_workers max_workers",
    }
)
"""What options are called in other libraries, to ours."""
NAMES_ELSEWHERE = _by_word(
    {
        "f.enqueue(…), or f.using(delay=60).enqueue(…) with an option": "delay send apply_async"
        " send_with_options defer defer_async kiq perform_async perform_later submit push",
        "f.using(delay=60).enqueue(…)": "enqueue_in enqueue_at perform_in perform_at schedule",
        "f.bind(…)": "s si signature subtask message",
        "jobs.enqueue_many(f.bind(each) for each in …)": "map starmap enqueue_many aenqueue_many",
        "jobs.enqueue(f.bind(…))": "enqueue enqueue_call send_task insert",
        "f(…), which only calls the function": "call_local apply fn func",
        "@jobs.define": "task job actor shared_task",
        "@jobs.cron(…) or @jobs.every(…)": "periodic_task scheduled_job add_job periodic",
        "jobs.work(), or jobs.start() in the background": "worker run run_worker run_forever",
        "jobs.queue(name).pause() or .resume()": "pause pause_queue resume",
        "pool.stop(), of what jobs.start() returned": "stop shutdown terminate",
        "jobs.get(id)": "fetch fetch_job get_job AsyncResult",
        "job.result(timeout)": "get return_value",
        "job.state": "status get_status",
        "job.finished": "ready is_finished successful done",
        "job.error, or job.errors with tracebacks": "exc_info traceback",
        "job.payload": "args kwargs arguments",
        "cancel(…)": "revoke abort",
        "delete(…)": "purge flush forget",
        "raise Retry(delay), or Snooze(delay)": "retry reschedule",
        "context.progress(done, total)": "update_state set_progress",
    }
)
"""What attributes are called in other libraries, to what is written here."""


def lead_back(owner: object, name: str) -> Any:
    """The `__getattr__` of public classes: for a name of another library, an error with ours."""
    if ours := NAMES_ELSEWHERE.get(name):
        kind = type(owner).__name__
        raise AttributeError(f"{kind!r} object has no attribute {name!r}: write {ours}")
    return object.__getattribute__(owner, name)  # Raises the usual error.


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or all."""
    import difflib

    known = sorted(known)
    if (ours := OPTIONS_ELSEWHERE.get(word)) in known:
        return f"; did you mean {ours!r}?"
    if near := difflib.get_close_matches(word, known, n=1):
        return f"; did you mean {near[0]!r}?"
    return f"; there is {', '.join(known)}" if known else ""


def check_known(given: Iterable[str], known: Iterable[str], problem: str) -> None:
    """Refuses a word, such as the name of an option, that is not known."""
    for word in given:
        if word not in known:
            raise OptionError(word, f"{problem}{did_you_mean(word, known)}")


def check_one_of(value: T, known: Iterable[Any], what: str) -> T:
    """The value, if it is one of the known ones."""
    if value not in known:
        raise OptionError(what, f"there is no {value!r}{did_you_mean(str(value), known)}")
    return value


_VARYING = r"""(?xi)
    ( (?<!\w)(?:'[^']*'|"[^"]*"|`[^`]*`)(?!\w)                  # A quoted text,
    | (?<![\w/\\])(?:[a-z]:|~|\.{1,2})?(?:[/\\][^\s/\\'",:;()]+)+ )   # a path;
    | \b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b         # a UUID,
    | \b0x[0-9a-f]+\b | \b(?=[a-f]*\d)[0-9a-f]{8,}\b          # hexadecimal digits,
    | \d+(?:[.,:]\d+)*(?:e-?\d+)?                             # a number.
"""


def generalized(error: str) -> str:
    """An error's text with "…" for quoted texts and paths, and "N" for numbers and UUIDs."""
    return re.sub(_VARYING, lambda found: "…" if found[1] else "N", error[:2000])[:500]


def error_group(name: object, error: object) -> str:
    """A short id of the dead letters of a definition with the same generalized error."""
    text = f"{name}\0{generalized(str(error or ''))}"
    return f"{zlib.crc32(text.encode(errors='backslashreplace')):08x}"


def storable(text: str) -> str:
    """Text that SQLite can store: lone surrogates, as in file names, become escapes."""
    return text.encode(errors="backslashreplace").decode()


def described(describe: Callable[[], str], otherwise: str) -> str:
    """What *describe* returns, or *otherwise* if it raises."""
    try:
        return storable(describe())
    except BaseException:  # An exception's own `__str__` may raise anything.
        return otherwise


FORK_HOOKS: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
"""By object, while it is alive: what a forked child calls with it."""


def _run_fork_hooks() -> None:
    for owner, hook in [*FORK_HOOKS.items()]:
        hook(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_run_fork_hooks)


WARN_AFTER = 1.0
"""Seconds of waiting for a job after which it is logged why it does not run."""


def poll_intervals() -> Iterator[float]:
    """Seconds from one poll to the next: short at first, then 20 ms."""
    return itertools.chain((0.0005, 0.001, 0.002, 0.004, 0.008), itertools.repeat(0.02))


def load_json(text: str | bytes) -> Any:
    """The value of a JSON text; a `ValueError` if it is invalid or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def plain_payload(stored: Any, name: str) -> Any:
    """The JSON value of a payload, or its bytes, which only its definition can decode."""
    try:
        return stored if isinstance(stored, bytes) else load_json(stored)
    except (ValueError, TypeError) as error:
        raise PayloadError(name, (f"it is not JSON: {error}",)) from None


class Claimed(NamedTuple):
    """A claimed job: what is needed to run and settle it."""

    id: int
    claim: int
    name: str
    queue: str
    priority: int
    attempt: int
    max_attempts: int | None
    timeout: int | None
    backoff: str | None
    payload: Any
    run_at: int
    enqueued_at: int
    headers: str | None = None
    key: str | None = None
    grace: int | None = None
    tags: str | None = None
    meta: str | None = None


# Rows are checked against the annotations of such converters (see `from_row`).
def as_moment(value: int | datetime) -> datetime:
    """A moment that is given as a datetime or, as in rows, in microseconds."""
    return value if isinstance(value, datetime) else from_micros(value)


def maybe_moment(value: int | datetime | None) -> datetime | None:
    """A moment, if there is one."""
    return None if value is None else as_moment(value)


def as_length(value: int | timedelta | None) -> timedelta | None:
    """A duration that is given as a timedelta or, as in rows, in microseconds."""
    return value * MICROSECOND if isinstance(value, int) else value


def _or_empty(value: str | None) -> str:
    return value or ""


def _or_zero(value: int | None) -> int:
    return value or 0


@attrs.frozen
class Failure:
    """One failed attempt of a job."""

    attempt: int
    kind: str
    """One of exception, timeout, crash, memory (over its limit), and lost (with its node)."""
    type: str
    message: str
    traceback: str
    worker: int
    """The process id of the worker."""
    started_at: datetime = attrs.field(converter=as_moment)
    finished_at: datetime = attrs.field(converter=as_moment)
    exit_code: int | None = None
    """The worker's exit code, if it ended and its node learnt it; negative for a signal."""
    cpu: timedelta | None = attrs.field(default=None, converter=as_length)
    """CPU time of the worker meanwhile, without child processes; `None` for coroutines."""
    memory: int | None = None
    """Peak of the worker in bytes, earlier attempts included; unknown on Windows or if it ended."""
    output: str = attrs.field(default="", converter=_or_empty)
    """The last 4 kB or so that a worker process wrote to `sys.stdout` and `sys.stderr`."""
    omitted: int = attrs.field(default=0, converter=_or_zero)
    """How many before this one were not kept: the first 10 and the last 40 of a job are."""


FIRST_FAILURES, LAST_FAILURES = 10, 40
"""How many failed attempts of a job are kept."""


@attrs.frozen
class Moved:
    """How many jobs a command changed, and how many it matched but had to leave as they were."""

    moved: int
    left: int = 0


@attrs.frozen
class Compacted:
    """Bytes of the file and its WAL, before and after."""

    before: int
    after: int


Level = Literal["error", "warning"]


@attrs.frozen
class Finding:
    """One problem: at level "error" something is broken, at "warning" it needs attention."""

    level: Level
    subject: str = attrs.field(converter=printable)
    """What it is about, such as a queue, a node or the file."""
    problem: str = attrs.field(converter=printable)
    advice: str = attrs.field(converter=printable)


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise OptionError("progress", f"expected a finite number, got {value!r}")
    return value


def _short_note(value: object) -> str:
    if not isinstance(value, str):
        raise OptionError("progress", f"expected a text as the note, got {value!r}")
    return storable(value[:500])[:500]


@attrs.frozen
class Progress:
    """How far a job has come, as its handler last reported; of a note, 500 characters are kept."""

    done: float = attrs.field(converter=_finite)
    total: float | None = attrs.field(default=None, converter=attrs.converters.optional(_finite))
    note: str = attrs.field(default="", converter=_short_note)

    @property
    def share(self) -> float | None:
        """How much of it is done, from 0 to 1; `None` if the total is not known."""
        if self.total is None:
            return None
        return max(0.0, min(self.done / self.total, 1.0)) if self.total > 0 else 1.0

    def __str__(self) -> str:
        share = "" if self.share is None else f" of {self.total:g} ({self.share:.0%})"
        return f"{self.done:g}{share}{self.note and ': '}{self.note}"


def store_progress(progress: Progress) -> str:
    """The JSON that is stored in the row."""
    return json.dumps(attrs.asdict(progress))


def load_column(text: str, what: str, read: Callable[[Any], T]) -> T:
    """What *read* makes of the JSON in a column; an `OptionError` if litejobs did not write it."""
    try:
        return read(load_json(text))
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        problem = f"{reprlib.repr(text)} in a row was not written by litejobs"
        raise OptionError(what, problem) from None


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("expected a text")
    return value


def _or_none(value: str | None) -> str | None:
    return value or None


@attrs.frozen(repr=False, slots=False)
class Job(Generic[R]):
    """A job as it was when it was read. What waits for it or changes it (`wait`, `result`, `await`,
    `cancel` …) reads its fields anew, and returns this object. They cannot be set."""

    # The fields are columns, in the order in which they are read; those of `Claimed` come first.
    # The stored ones are JSON texts.

    id: int
    """Unique in the file, and never used again."""
    _claim: int
    name: str
    """The definition's name."""
    queue: str
    """The queue that the job waits in."""
    priority: int
    """Higher runs first."""
    attempt: int
    """How many attempts were started, the present one included."""
    max_attempts: int | None
    """How many attempts there may be; `None` for any number."""
    timeout: timedelta | None = attrs.field(converter=as_length)
    """How long an attempt may take."""
    _backoff: str | None
    stored_payload: Any = attrs.field(alias="payload")
    """JSON text, or bytes of the definition's own encoding; other programs may insert anything."""
    run_at: datetime = attrs.field(converter=as_moment)
    """When the job became due or will become due."""
    enqueued_at: datetime = attrs.field(converter=as_moment)
    """When the job was enqueued."""
    _headers: str | None = None
    key: str | None = None
    """Of the jobs with the same key, only a limited number run at a time."""
    _grace: int | None = None
    stored_tags: str | None = attrs.field(default=None, alias="tags")
    stored_meta: str | None = attrs.field(default=None, alias="meta")
    state: State = "pending"
    """One of the words of the state diagram."""
    node: str | None = attrs.field(default="", converter=_or_none)
    """The only node that may take the job, by name; `None` for any."""
    started_at: datetime | None = attrs.field(default=None, converter=maybe_moment)
    """When the last attempt began."""
    finished_at: datetime | None = attrs.field(default=None, converter=maybe_moment)
    """When the job completed, failed or was cancelled."""
    expires_at: datetime | None = attrs.field(default=None, converter=maybe_moment)
    """When the job will be cancelled, unless it has started by then."""
    schedule: str | None = None
    """The name of the schedule that enqueued it, if one did."""
    error: str | None = None
    """Why the last attempt failed, or the result of a completed job was not kept, in one line."""
    stored_result: str | None = attrs.field(default=None, alias="result")
    stored_progress: str | None = attrs.field(default=None, alias="progress")
    unfit_at: datetime | None = attrs.field(default=None, converter=maybe_moment)
    """Since when it is blocked because its payload does not fit its definition (see `error`)."""
    _source: LiteJobs = attrs.field(kw_only=True, eq=False)
    duplicate: bool = attrs.field(default=False, kw_only=True)
    """Whether it existed already and holds the unique key of a job that was to be enqueued."""

    @property
    def payload(self) -> Any:
        """The payload as plain JSON values; bytes, if its definition has an encoding of its own."""
        return plain_payload(self.stored_payload, self.name)

    @property
    def headers(self) -> dict[str, str]:
        """What was sent along with the job, for middleware."""
        text = self._headers or "{}"
        return load_column(text, "headers", lambda found: {k: _text(v) for k, v in found.items()})

    @property
    def tags(self) -> tuple[str, ...]:
        """The words that it can be found by."""
        return load_column(self.stored_tags or "[]", "tags", lambda tags: (*map(_text, tags),))

    @property
    def meta(self) -> dict[str, Any]:
        """JSON values by name: given when it was enqueued, or written by `context.meta`."""
        return load_column(self.stored_meta or "{}", "meta", lambda values: {**values})

    @property
    def progress(self) -> Progress | None:
        """What `context.progress` last reported, in this attempt or an earlier one."""
        if self.stored_progress is None:
            return None
        return load_column(self.stored_progress, "progress", lambda fields: Progress(**fields))

    @property
    def errors(self) -> tuple[Failure, ...]:
        """The failed attempts, oldest first, read from the file now (see `Failure.omitted`)."""
        return self._source.errors(self.id)

    @property
    def finished(self) -> bool:
        """Whether the job completed, failed or was cancelled."""
        return self.state in FINISHED

    def refresh(self) -> Job[R]:
        """Reads the job again, as it is now.

        Raises:
            JobNotFoundError: it was deleted or pruned.
        """
        return self._update(self._source.get(self.id))

    def _update(self, now: Job[Any]) -> Job[R]:
        vars(self).update({**vars(now), "duplicate": self.duplicate})
        return self

    def wait(self, timeout: Duration | None = None) -> Job[R]:
        """Waits until the job has completed, failed or been cancelled.

        Raises:
            WaitTimeoutError: *timeout* passed first.
            JobNotFoundError: it was deleted or pruned.
        """
        return self if self.finished else self._source.wait(self, timeout)

    def cancel(self) -> Job[R]:
        """Cancels the job if it waits. If it runs, it is asked to end, and killed after its grace:
        `wait` then says how it ended.

        Raises:
            JobNotFoundError: it was deleted or pruned. (So do those below.)
        """
        self._source.cancel(self.id)
        return self.refresh()

    def retry(self) -> Job[R]:
        """Makes it ready again if it failed or was cancelled; or due now, if it is retried."""
        self._source.retry(self.id)
        return self.refresh()

    def hold(self) -> Job[R]:
        """Pauses the job, if it waits, until it is released."""
        self._source.hold(self.id)
        return self.refresh()

    def release(self) -> Job[R]:
        """Lets the job become ready again when it is due, if it is held."""
        self._source.release(self.id)
        return self.refresh()

    def change(self, **to: Unpack[Changes]) -> Job[R]:
        """Changes options of the job while it waits; the fields of a *payload* replace those of
        that name: `job.change(priority=10, payload={"copies": 2})`.

        Raises:
            OptionError: it is running or finished, or there is no such option.
            PayloadError: the payload would no longer fit.
        """
        if not self._source.change(self.id, to=to).moved:
            state = self.refresh().state
            raise OptionError("id", f"{self.id} is {state}: only waiting jobs can be changed")
        return self.refresh()

    def delete(self) -> Job[R]:
        """Deletes the job and its history, and returns it as it was.

        Raises:
            OptionError: it is running: cancel it first.
        """
        self.refresh()
        if not self._source.delete(self.id).moved:
            raise OptionError("id", f"{self.id} is {self.state}: cancel it before it is deleted")
        return self

    def result(self, timeout: Duration | None = None) -> R:
        """What the handler returned, with its declared type. Waits like `wait`.

        Raises:
            JobFailedError: the job failed or was cancelled.
            ResultError: what it returned could not be kept, or no longer fits its declared type.
            WaitTimeoutError: *timeout* passed first.
        """
        value: R = self._source.result(self.wait(timeout))
        return value

    def why(self) -> str:
        """In one sentence, why the job is not running, or how it ended; read from the file now.

        Raises:
            JobNotFoundError: it was deleted or pruned.
        """
        return self._source.why(self.id)

    def __await__(self) -> Generator[Any, None, Job[R]]:
        """`await job` is `job.wait()` that lets other coroutines run meanwhile."""
        import asyncio  # Late: few programs need it.

        async def wait(job: Job[R]) -> Job[R]:
            intervals, began = poll_intervals(), time.monotonic()
            warn_at = began + WARN_AFTER
            while not job.finished:
                await asyncio.sleep(next(intervals))
                job._update(await job._source.aget(job.id))
                if time.monotonic() >= warn_at:
                    warn_at = await job._source._awarn_of_wait([job], began)
            return job

        return wait(self).__await__()

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return printable(f"<Job {self.id} {self.name} {self.state}>")


JOB_COLUMNS = tuple(str(field.alias) for field in attrs.fields(Job) if not field.kw_only)


################################################################################
# Policies
#
# How long until the next attempt, how long a finished job is kept, whether a job is a duplicate:
# stored with the job, so that it keeps the rules that were in force when it was enqueued.
################################################################################

Jitter = Literal["none", "full", "equal"]
HOUR = timedelta(hours=1)


def _backoff_length(value: Duration) -> timedelta:
    return duration(value, "backoff")


def _jitter(value: Jitter) -> Jitter:
    return check_one_of(value, typing.get_args(Jitter), "jitter")


def _backoff_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise OptionError("backoff", f"expected a finite number from zero, got {value!r}")
    return float(value)


@attrs.frozen
class Constant:
    """Waits *base* before every further attempt."""

    base: timedelta = attrs.field(converter=_backoff_length)
    cap: timedelta = attrs.field(default=MAX_DURATION, converter=_backoff_length, kw_only=True)
    jitter: Jitter = attrs.field(default="none", converter=_jitter, kw_only=True)

    def curve(self, attempt: int) -> float:
        """Seconds after this failed attempt, before cap and jitter."""
        return self.base.total_seconds()


@attrs.frozen
class Linear:
    """Waits *base* × n after attempt n."""

    base: timedelta = attrs.field(converter=_backoff_length)
    cap: timedelta = attrs.field(default=HOUR, converter=_backoff_length, kw_only=True)
    jitter: Jitter = attrs.field(default="none", converter=_jitter, kw_only=True)

    def curve(self, attempt: int) -> float:
        """Seconds after this failed attempt, before cap and jitter."""
        return self.base.total_seconds() * attempt


@attrs.frozen
class Exponential:
    """Waits *base* × *factor*ⁿ⁻¹ after attempt n."""

    base: timedelta = attrs.field(converter=_backoff_length)
    factor: float = attrs.field(default=2.0, converter=_backoff_number)
    cap: timedelta = attrs.field(default=HOUR, converter=_backoff_length, kw_only=True)
    jitter: Jitter = attrs.field(default="equal", converter=_jitter, kw_only=True)

    def curve(self, attempt: int) -> float:
        """Seconds after this failed attempt, before cap and jitter."""
        return self.base.total_seconds() * math.pow(self.factor, attempt - 1)


@attrs.frozen
class Polynomial:
    """Waits *base* × nᵉ after attempt n, where e is the *exponent*."""

    base: timedelta = attrs.field(converter=_backoff_length)
    exponent: float = attrs.field(default=4.0, converter=_backoff_number)
    cap: timedelta = attrs.field(default=HOUR, converter=_backoff_length, kw_only=True)
    jitter: Jitter = attrs.field(default="equal", converter=_jitter, kw_only=True)

    def curve(self, attempt: int) -> float:
        """Seconds after this failed attempt, before cap and jitter."""
        return self.base.total_seconds() * math.pow(attempt, self.exponent)


Curve = Constant | Linear | Exponential | Polynomial
Backoff = Curve | Callable[[int], Duration]
CURVES: Mapping[str, type[Curve]] = {kind.__name__: kind for kind in typing.get_args(Curve)}
DEFAULT_BACKOFF = Exponential(timedelta(seconds=5))
CUSTOM = "custom"


def backoff_delay(policy: Backoff, attempt: int, rng: random.Random) -> timedelta:
    """How long to wait after failed attempt number *attempt*, from 1.

    A curve is capped, then spread: jitter "full" draws from zero to the whole wait, "equal" from
    half of it to the whole. The result of a function is taken as it is. Source: Marc Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    if not isinstance(policy, Curve):
        return duration(policy(attempt), "backoff")
    cap = policy.cap.total_seconds()
    try:
        wait = min(policy.curve(attempt), cap)
    except OverflowError:
        wait = cap if policy.base else 0.0
    shares = {"none": 1.0, "full": rng.random(), "equal": 0.5 + rng.random() / 2}
    return timedelta(seconds=wait * shares[policy.jitter])


def store_backoff(policy: Backoff) -> str | None:
    """The text stored in the row: `None` for the default, CUSTOM for a program's function."""
    if policy == DEFAULT_BACKOFF:
        return None
    return store_curve(policy) if isinstance(policy, Curve) else CUSTOM


def store_curve(policy: Curve) -> str:
    """A curve as JSON."""
    fields = attrs.asdict(policy)
    plain = {k: v.total_seconds() if isinstance(v, timedelta) else v for k, v in fields.items()}
    return json.dumps({"kind": type(policy).__name__, **plain})


def load_backoff(text: str | None, custom: Backoff) -> Backoff:
    """The policy of a row; *custom* is the definition's own."""
    if text is None or text == CUSTOM:
        return DEFAULT_BACKOFF if text is None else custom
    return load_column(text, "backoff", lambda fields: CURVES[fields.pop("kind")](**fields))


def _retained(value: Duration | None) -> timedelta | None:
    return None if value is None else duration(value, "retention")


@attrs.frozen
class Retention:
    """How long finished jobs stay in the file, by how they ended; `None` for ever."""

    completed: timedelta | None = attrs.field(default=timedelta(days=1), converter=_retained)
    cancelled: timedelta | None = attrs.field(default=timedelta(days=1), converter=_retained)
    failed: timedelta | None = attrs.field(default=timedelta(days=30), converter=_retained)


DEFAULT_RETENTION = Retention()


def store_retention(policy: Retention) -> str | None:
    """The text stored in the row, in microseconds; `None` for the default."""
    if policy == DEFAULT_RETENTION:
        return None
    return json.dumps(attrs.asdict(policy), default=lambda time: time // MICROSECOND)


Scope = Literal["queued", "active", "exists"]
OnConflict = Literal["return", "raise", "replace"]
Merge = Callable[[Any, Any], Any]
"""Of the waiting payload and the new one (instances, or dicts of arguments) makes one."""


def _named_fields(value: Iterable[str] | None) -> tuple[str, ...] | None:
    if isinstance(value, str):
        raise OptionError("unique", f"fields takes several names, got the text {value!r}")
    return None if value is None else tuple(value)


def _ttl(value: Duration | None) -> timedelta | None:
    return None if value is None else duration(value, "ttl")


@attrs.frozen
class Unique:
    """At most one job of a definition holds the same key: a second one is not enqueued.

    The key is the whole payload, some *fields* of it, or *key*: a text, or a function of an
    instance (of a function's arguments, by name). It is held until the job starts (*scope*
    "queued"), has finished ("active"), or is deleted ("exists"), and no longer than *ttl* after
    the job was enqueued.

    *on_conflict* says what enqueueing a duplicate does: "return" returns the existing job, with
    `.duplicate` true; "raise" raises a `DuplicateError`; "replace" gives the existing job the new
    payload, options and time (debounce); a function merges the two payloads (batch). The last two
    need the scope "queued", and raise a `DuplicateError` if a started job holds the key.
    """

    fields: tuple[str, ...] | None = attrs.field(default=None, converter=_named_fields)
    scope: Scope = "queued"
    ttl: timedelta | None = attrs.field(default=None, converter=_ttl, kw_only=True)
    on_conflict: OnConflict | Merge = attrs.field(default="return", kw_only=True)
    key: str | Callable[..., Any] | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_one_of(self.scope, typing.get_args(Scope), "scope")
        if not callable(self.on_conflict) and self.on_conflict not in typing.get_args(OnConflict):
            expected = "return, raise, replace or a function that merges two payloads"
            raise OptionError("on_conflict", f"expected {expected}, got {self.on_conflict!r}")
        if self.on_conflict not in ("return", "raise") and self.scope != "queued":
            raise OptionError("on_conflict", "the job may have started: this needs scope='queued'")
        if self.fields is not None and self.key is not None:
            raise OptionError("unique", "fields and key were both given: a key is made one way")


_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(\d*)\s*(s|sec|second|m|min|minute|h|hour|d|day)")


def parse_rate(text: object) -> float:
    """The number per second that a text such as "10/s", "100/min" or "1/10s" means."""
    match = _RATE.fullmatch(text) if isinstance(text, str) and len(text) <= 100 else None
    if match is None or not float(match[1]) or not int(match[2] or 1):
        raise OptionError("rate", f"expected something like '10/s' or '100/min', got {text!r}")
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[3][0]]
    return float(match[1]) / (int(match[2] or 1) * seconds)


################################################################################
# Schedules
#
# When recurring jobs are due: expressions, time zones, and missed ticks; all of it arithmetic on a
# given moment. The package cronsim finds the local times that cron fields name; changes of the
# clock, as to summer time, are handled here (see Cron).
################################################################################

Misfire = Literal["once", "skip", "all"]
Overlap = Literal["allow", "skip", "queue"]
Period = tuple[int, int]
"""Its first and last moment."""

SECOND = 1_000_000
DAY = 86_400 * SECOND
MAX_TICKS = 1_000
"""How many missed ticks fire in one transaction."""
PERIODS_KEPT = 16
"""How many of the periods whose ticks were handled a schedule remembers."""
ALIASES: Mapping[str, str] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
UNITS = {"d": "day", "h": "hour", "m": "minute", "s": "second", "ms": "millisecond"}


@attrs.frozen
class Every:
    """A fixed interval of elapsed time, which changes of the local clock do not affect."""

    interval: timedelta

    def next_after(self, moment: int, anchor: int) -> int:
        """The first tick after *moment*, counted from *anchor*, so that it never drifts."""
        step = self.interval // MICROSECOND
        return anchor + ((moment - anchor) // step + 1) * step

    @property
    def words(self) -> str:
        """Such as "Every 1 hour and 30 minutes"."""
        *parts, last = [
            f"{count:g} {UNITS[unit]}{'s' * (count != 1)}"
            for count, unit in _in_units(self.interval)
        ]
        if not parts:
            return f"Every {last.removeprefix('1 ')}"
        return f"Every {', '.join(parts)} and {last}"


def _in_units(length: timedelta) -> Iterator[tuple[float, str]]:
    for unit, word in UNITS.items():
        size = timedelta(**{f"{word}s": 1})
        count, length = divmod(length, size) if unit != "ms" else (length / size, length)
        if count:
            yield count, unit


@attrs.frozen
class Cron:
    """Five or six cron fields (six: seconds first) in a time zone.

    As in Debian's cron there are two kinds. If seconds, minutes or hours begin with a
    star, the fields are compared with the local time of every moment: a time that the
    clock skips does not occur, and one that it repeats occurs twice. Otherwise the fields
    name times of day, each of which occurs once: the first time if the clock repeats it,
    and right after the gap if the clock skips it.

    cronsim (2.8) is only used for local times: within repeated hours, with six fields, and where
    the clock changes at midnight or by half an hour, it loses or invents ticks.
    """

    fields: str
    zone: tzinfo
    _cronsim: Any
    """The class CronSim."""

    def next_after(self, moment: int, anchor: int = 0) -> int | None:
        """The first tick after *moment*; `None` if there is none in the next 50 years."""
        every_moment = any(field.startswith("*") for field in self.fields.split()[:-3])
        with contextlib.suppress(OverflowError):  # The year 10000.
            return self._next_moment(moment) if every_moment else self._next_time_of_day(moment)
        return None

    def _next_time_of_day(self, moment: int) -> int | None:
        for local in self._local_times(moment, self._offset(moment)):
            # In a gap, fold=0 takes the offset of before the change and fold=1 that of after.
            first, second = (to_micros(local.replace(tzinfo=self.zone, fold=n)) for n in (0, 1))
            tick = first if first <= second else self._clock_change(second, first)
            if tick > moment:  # Not one of a repeated hour that came at its first time.
                return tick
        return None

    def _next_moment(self, moment: int) -> int | None:
        start = moment // SECOND * SECOND + SECOND
        offset = self._offset(start)
        if (local := next(self._local_times(start - SECOND, offset), None)) is None:
            return None
        # Unless the clock changes until then: since 1970 not twice within six days in any zone.
        tick = to_micros(local.replace(tzinfo=UTC)) - offset
        for day in range(start, tick, DAY):
            if self._offset(end := min(day + DAY, tick)) != offset:
                return self._next_moment(self._clock_change(day, end) - SECOND)
        return tick

    def _local_times(self, moment: int, offset: int) -> Iterator[datetime]:
        """The local times after a moment that the fields name."""
        start = from_micros(moment + offset).replace(tzinfo=None)
        times: Iterator[datetime] = self._cronsim(self.fields, start)
        return times

    def _offset(self, moment: int) -> int:
        return (from_micros(moment).astimezone(self.zone).utcoffset() or timedelta()) // MICROSECOND

    def _clock_change(self, before: int, after: int) -> int:
        """The first moment, of whole seconds, at which the clock has changed."""
        seconds, offset = range(before, after, SECOND), self._offset(before)
        index = bisect.bisect_left(seconds, True, key=lambda at: self._offset(at) != offset)
        return before + index * SECOND

    @property
    def words(self) -> str:
        """Such as "At 03:00 on Monday through Friday"."""
        cron = self._cronsim(self.fields, EPOCH.replace(tzinfo=None))
        week = {day % 7 for day in cron.weekdays if isinstance(day, int)}
        if not cron.day_and and (cron.days >= {*range(1, 32)} or len(week) == 7):
            # Either field may match, and one of them names all days: so it is every day.
            cron.parts[3] = cron.parts[5] = "*"
        return str(cron.explain())


def time_zone(name: str) -> tzinfo:
    """The rules of a time zone."""
    if name == "UTC":
        return UTC  # Known even where no time zone data is installed.
    import zoneinfo  # Late: few programs need it.

    with contextlib.suppress(KeyError, ValueError, OSError, TypeError, AttributeError):
        return zoneinfo.ZoneInfo(name)
    if not (known := zoneinfo.available_timezones()):
        raise OptionError("timezone", f"{name!r} needs data on time zones: pip install tzdata")
    import difflib

    words = {word.lower(): zone for zone in sorted(known) for word in (zone.split("/")[-1], zone)}
    near = difflib.get_close_matches(f"{name}".lower(), words, n=1)
    hint = f"did you mean {words[near[0]]!r}?" if near else "names look like 'Europe/Berlin'"
    raise OptionError("timezone", f"there is no time zone {name!r}; {hint}")


# cronsim reads `9-9/2` as `9/2`.
_ONE_VALUE_STEPS = re.compile(r"(?<![\w-])0*(\w+)-0*\1/0*[1-9]\d*(?!\w)", re.A | re.I)
_LENGTH_OF_TIME = re.compile(
    "".join(rf"(?:([0-9.]+)(?:{unit}|{word[:3]}|{word}s?))?" for unit, word in UNITS.items())
)


def parse_length(text: str) -> timedelta:
    """The length of time that a text such as `1h30m` or `10 min` means, or a ValueError."""
    counts = _LENGTH_OF_TIME.fullmatch("".join(text.split()))
    if counts is None or not any(counts.groups()):
        raise ValueError(f"{text!r} is not a length of time such as 30s, 10m, 1h30m or 2d")
    try:
        named = zip(UNITS.values(), counts.groups(), strict=True)
        return timedelta(**{f"{word}s": float(count or 0) for word, count in named})
    except OverflowError as error:
        raise ValueError(f"{text!r} is more than a hundred years") from error


def parse_expression(expression: object, timezone: str = "UTC") -> Cron | Every:
    """Parses cron fields, an alias such as `@daily`, or `@every 30s`."""
    example = "write cron fields such as '0 3 * * MON-FRI', '@daily' or '@every 1h30m'"
    if not isinstance(expression, str) or len(expression) > 200:
        raise OptionError("cron", f"{reprlib.repr(expression)} is not an expression: {example}")
    text = " ".join(expression.split())
    if text.split(" ")[0] == "@every":
        length = timedelta()
        with contextlib.suppress(ValueError):
            length = parse_length(text.removeprefix("@every"))
        if timedelta(milliseconds=100) <= length <= MAX_DURATION:
            return Every(length)
        problem = "expected a length from a tenth of a second to a hundred years"
        raise OptionError("cron", f"{expression!r}: {problem}; {example}")
    if text.startswith("@") and text not in ALIASES:
        hint = did_you_mean(text, [*ALIASES, "@every"])
        raise OptionError("cron", f"there is no {expression!r}{hint}")
    try:
        # Late, and by a statement, which packers such as PyInstaller find.
        import cronsim  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        problem = "expressions are read by the package cronsim: pip install cronsim"
        raise OptionError("cron", f"{problem} (`@every 30s` works without it)") from None
    fields = _ONE_VALUE_STEPS.sub(r"\1", ALIASES.get(text, text))
    cron = Cron(fields, time_zone(timezone), cronsim.CronSim)
    try:
        if next(cronsim.CronSim(fields, EPOCH.replace(tzinfo=None)), None) is None:
            raise cronsim.CronSimError("There is no such day")
    except cronsim.CronSimError as error:
        problem = f"{error}"[:1].lower() + f"{error}"[1:]
        raise OptionError("cron", f"{expression!r}: {problem}; {example}") from None
    return cron


def every_expression(interval: Duration) -> str:
    """The expression of an interval, such as `@every 1h30m`."""
    length = duration(interval, "every")
    if length < timedelta(milliseconds=100):
        raise OptionError("every", f"expected at least a tenth of a second, got {interval!r}")
    return f"@every {''.join(f'{count:g}{unit}' for count, unit in _in_units(length))}"


class Recurring(TypedDict, total=False):
    """How a schedule deals with ticks, whatever its expression."""

    misfire: Misfire
    grace: Duration
    overlap: Overlap
    jitter: Duration
    start: datetime | None
    end: datetime | None


def _flag(value: int) -> bool:
    return value != 0


@attrs.frozen(repr=False, slots=False)
class Schedule:
    """A schedule as it was when it was read: a frozen snapshot of its row."""

    # The fields are the columns, by order and alias. Times are in microseconds.
    name: str = ""
    """Unique in the file."""
    definition: str = ""
    """The name of the definition that it enqueues."""
    stored_payload: Any = attrs.field(default="{}", alias="payload")
    stored_options: str = attrs.field(default="{}", alias="options")
    expression: str = ""
    """As it was written: cron fields, an alias, or `@every 30s`."""
    timezone: str = "UTC"
    """The time zone of the fields."""
    misfire: Misfire = "once"
    """How missed ticks are handled: once, skip or all."""
    grace: int = 60 * SECOND
    overlap: Overlap = "allow"
    """What happens to a tick while the last job has not finished: allow, skip or queue."""
    jitter: int = 0
    start_at: int | None = None
    end_at: int | None = None
    stored_origin: str | None = attrs.field(default=None, alias="origin")
    paused: bool = attrs.field(default=False, converter=_flag)
    """Whether it fires nothing until it is resumed."""
    next_tick: int | None = attrs.field(default=None, alias="next_at")
    last_tick: int | None = attrs.field(default=None, alias="last_at")
    last_job: int | None = None
    """The id of the last job that it has enqueued, which may be pruned by now."""
    covered: str = "[]"

    @property
    def payload(self) -> Any:
        """The payload of its jobs, as `Job.payload`."""
        return plain_payload(self.stored_payload, self.definition)

    @property
    def words(self) -> str:
        """The expression in words, with the zone: "At 03:00 every day (Europe/Berlin)"."""
        words = self.timetable.words
        return f"{words} ({self.timezone})" if isinstance(self.timetable, Cron) else words

    @property
    def programs(self) -> dict[str, str]:
        """The programs that declared it when they last started, each with the module."""
        try:
            return dict(load_json(self.stored_origin or "{}"))
        except (ValueError, TypeError):
            return {"": str(self.stored_origin)}

    @property
    def origin(self) -> str | None:
        """What declares it, such as `/srv/app/main.py:tasks`; `None` if made at run time."""
        return ", ".join(f"{program}:{module}" for program, module in self.programs.items()) or None

    @property
    def state(self) -> Literal["active", "paused", "ended", "unusable"]:
        """Ended: there will be no tick any more. Unusable: this machine cannot fire it."""
        if self.paused:
            return "paused"
        if self.problem is not None:
            return "unusable"
        return "ended" if self.next_tick is None else "active"

    @functools.cached_property
    def problem(self) -> str | None:
        """Why this machine cannot fire it, such as a time zone that is unknown here."""
        try:
            _ = self.timetable, self.periods, self.job_options
        except (OptionError, PayloadError) as error:
            return str(error)
        return None

    @property
    def next_at(self) -> datetime | None:
        """Its next tick; `None` while it is paused and when it has ended."""
        return None if self.paused else maybe_moment(self.next_tick)

    @property
    def last_at(self) -> datetime | None:
        """The last tick for which it has enqueued a job."""
        return maybe_moment(self.last_tick)

    def upcoming(self, n: int = 5) -> list[datetime]:
        """Its next *n* ticks, or as many as there are, in its time zone."""
        zone = time_zone(self.timezone)
        ticks: list[datetime] = []
        at = None if self.paused else self.next_tick
        while at is not None and len(ticks) < n:
            ticks.append(from_micros(at).astimezone(zone))
            at = self.next_after(at, at)
        return ticks

    @functools.cached_property
    def timetable(self) -> Cron | Every:
        """The parsed expression, if no option that decides when it is due is invalid."""
        check_one_of(self.misfire, typing.get_args(Misfire), "misfire")
        check_one_of(self.overlap, typing.get_args(Overlap), "overlap")
        for option in ("grace", "jitter"):
            duration(getattr(self, option) / SECOND, option)
        if self.misfire == "skip" and self.grace < SECOND:
            raise OptionError("grace", "with misfire='skip' give a second: each tick is a bit late")
        if self.start_at is not None and self.end_at is not None and self.end_at < self.start_at:
            start, end = from_micros(self.start_at), from_micros(self.end_at)
            raise OptionError("end", f"{end} is before the start, {start}")
        return parse_expression(self.expression, self.timezone)

    @property
    def periods(self) -> list[Period]:
        """The periods whose ticks have been handled; the one around the present grows."""
        return load_column(self.covered, "covered", _periods)

    @property
    def job_options(self) -> dict[str, Any]:
        """The stored options of its jobs, if its definition and payload are valid."""
        check_name(self.definition, "definition")
        _ = self.payload
        options: dict[str, Any] = load_column(
            self.stored_options,
            "options",
            lambda found: {**found, "queue": found["queue"], "open": frozenset(found["open"])},
        )
        return options

    def next_after(self, moment: int, anchor: int) -> int | None:
        """The first tick after *moment* within its start and end. Intervals are counted from the
        start, or else from *anchor*: the moment when it was made, or any of its ticks."""
        if self.start_at is not None:
            anchor = self.start_at
            moment = max(moment, anchor - 1)
        tick = self.timetable.next_after(moment, anchor)
        last = _LAST_MOMENT if self.end_at is None else min(self.end_at, _LAST_MOMENT)
        return None if tick is None or tick > last else tick

    def planned(self, now: int) -> Schedule:
        """This schedule with its next tick computed anew: the clock may have been set, or the time
        zone data have changed. No tick fires twice, unless PERIODS_KEPT were too few."""
        periods = self.periods
        if ends := [end for start, end in periods if start <= now]:
            after = max(ends)
        elif not periods and self.next_tick is not None and self.next_tick <= now:
            after = self.next_tick - 1
        else:
            # It is new, or the clock was set back to before all periods.
            after, periods = now, [*periods, (now, now)]
        return self._covered(periods, after, self.next_tick or now)

    def due(self, now: int) -> tuple[list[int], Schedule]:
        """The ticks that fire *now*, oldest first, and the schedule once they have fired. A tick
        that is late by more than the grace was missed: "skip" fires none of those, "all" each
        (MAX_TICKS at a time), and "once" one job for all late ticks."""
        plan = self.planned(now)
        if (first := plan.next_tick) is None or first > now:
            return [], plan
        tick: int | None = first
        if now - first > self.grace:
            if self.misfire == "once":
                # The last one, by bisection: in a week, 600,000 ticks may have been missed.
                late = range(first, now)
                tick = first + bisect.bisect(
                    late, now, key=lambda at: self.next_after(at, first) or now + 1
                )
            elif self.misfire == "skip":
                tick = self.next_after(now - self.grace - 1, first)
        ticks: list[int] = []
        while tick is not None and tick <= now and len(ticks) < MAX_TICKS:
            ticks.append(tick)
            tick = self.next_after(tick, first)
        last = now if tick is None or tick > now else ticks[-1]
        start = ticks[0] if ticks else now
        periods = plan.periods
        current = max((p for p in periods if p[0] <= now), key=lambda p: p[1], default=None)
        # Skipped ticks stay outside of all periods: if the clock was ahead, they are still to come.
        if current and start == first:
            periods.remove(current)
            start = current[0]
        return ticks, self._covered([*periods, (start, last)], last, first)

    def _covered(self, periods: Sequence[Period], after: int, anchor: int) -> Schedule:
        """This schedule after these periods; its next tick is in none of them."""
        tick = self.next_after(after, anchor)
        while tick is not None and (
            ends := [end for start, end in periods if start <= tick <= end]
        ):
            tick = self.next_after(max(ends), anchor)
        return attrs.evolve(self, next_at=tick, covered=json.dumps(periods[-PERIODS_KEPT:]))

    def __repr__(self) -> str:
        return printable(f"<Schedule {self.name} {self.expression} {self.state}>")


def _periods(found: Any) -> list[Period]:
    periods = [(int(start), int(end)) for start, end in found]
    if not all(-_LAST_MOMENT < start <= end < _LAST_MOMENT for start, end in periods):
        raise ValueError
    return periods


def make_schedule(
    expression: object, timezone: str = "UTC", /, **how: Unpack[Recurring]
) -> Schedule:
    """A schedule for these times, without a definition yet."""
    check_known(how, Recurring.__annotations__, "no such option")
    columns: dict[str, Any] = {**how}
    for option in how.keys() & {"grace", "jitter"}:
        columns[option] = duration(columns[option], option) // MICROSECOND
    for option in how.keys() & {"start", "end"}:
        value = columns.pop(option)
        columns[f"{option}_at"] = None if value is None else to_micros(aware(value, option))
    text: Any = expression.strip() if isinstance(expression, str) else expression
    schedule = Schedule(expression=text, timezone=timezone, **columns)
    _ = schedule.timetable  # Raises an OptionError if something is invalid.
    return schedule


################################################################################
# Wire
#
# Payloads and results are stored as JSON text. A value is checked against its type when it is
# written and when it is read, and never coerced. A *form* is how the values of one type are written
# and read. Writing puts a `_Mismatch` where a value is not of the type, and reading refuses it; so
# every error has the path of its field. No error shows a value that its class hides.
################################################################################


@attrs.define(eq=False, repr=False, slots=False)
class CodecError(Exception):
    """A value or a text that does not fit its type; *problems* says what is wrong, and where."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.problems)


@attrs.frozen(eq=False, repr=False, slots=False)
class Codec(Generic[T]):
    """JSON text for values of one type, checked both ways. With *omit_defaults*, fields of the
    class *kind* that hold their default are left out."""

    kind: Any
    omit_defaults: bool = attrs.field(default=False, kw_only=True)

    def encode(self, value: T) -> str:
        """The JSON text of *value*."""
        form = self._form
        try:
            raw = form.write(value)
            try:
                if form.plain:
                    return _to_json(raw)
            except TypeError:
                pass  # There is a mismatch: reading names its field.
            form.read(raw)
            return _to_json(raw)
        except Exception as error:
            raise CodecError(_problems(error)) from error

    def decode(self, text: str | bytes) -> T:
        """The value that *text* stands for."""
        if isinstance(text, bytes):
            problem = f"JSON is expected, got {len(text)} bytes: give the definition a decode="
            raise CodecError((problem,))
        try:
            value: T = self._form.read(_from_json(text))
            return value
        except Exception as error:
            raise CodecError(_problems(error)) from error

    @functools.cached_property
    def _form(self) -> _Form:
        form = _form_of(self.kind)
        return _without_defaults(form) if self.omit_defaults else form


json_of_any: Final = Codec[Any](Any)


def unencodable(kind: Any) -> str | None:
    """Why values of the type *kind* cannot be stored as JSON; `None` if they can."""
    try:
        _form_of(kind)
    except Exception as error:
        return str(error) or repr(error)
    return None


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)
_CHUNKS: Callable[[Any, bool], Iterable[str]] = _ENCODER.iterencode
# `iterencode` makes an encoder for each value, in half of its time; this one is not public.
with contextlib.suppress(AttributeError, TypeError):
    _CHUNKS = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
        None, _ENCODER.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
    )
_SCAN: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def _to_json(raw: Any) -> str:
    text = "".join(_CHUNKS(raw, True))
    # A lone surrogate, as in file names, becomes an escape such as \udc80, which JSON reads back.
    return text if text.isascii() else storable(text)


def _from_json(text: str) -> Any:
    # Text written by `_to_json` has no surrounding white space to skip.
    try:
        raw, end = _SCAN(text, 0)
    except StopIteration:
        end = -1
    return raw if end == len(text) else json.loads(text)


MAX_PROBLEMS = 20
PROBLEM_LIMIT = 500
"""How many problems of one value are reported, and how many characters of each."""


def _problems(error: Exception) -> tuple[str, ...]:
    half = PROBLEM_LIMIT // 2
    try:
        problems = cattrs.transform_error(error, format_exception=_problem)[:MAX_PROBLEMS]
    except Exception:  # Nested too deeply for cattrs, or `str(error)` fails.
        return ("not of the type, in a way that cannot be described @ $",)
    return tuple(p if len(p) <= PROBLEM_LIMIT else f"{p[:half]} … {p[-half:]}" for p in problems)


def _problem(error: BaseException, kind: Any) -> str:
    match error:
        case CodecError():
            return str(error)
        case KeyError() if kind is not None:
            return "missing"
        case cattrs.errors.ForbiddenExtraKeysError():
            return f"unknown field {', '.join(sorted(map(short_repr, error.extra_fields)))}"
        case RecursionError():
            return "nested too deeply"
        case json.JSONDecodeError():
            return f"not JSON: {error}"
    # Only the first: validators of attrs add arguments that are not part of the message.
    return ": ".join([type(error).__name__, *map(str, error.args[:1])])[:200]


HIDDEN = "hidden"


@functools.cache
def hides(kind: Any) -> bool:
    """Whether this class, or one that its values may contain, has a field whose `repr` is off."""
    try:
        return any(hidden_fields(typing.get_origin(each) or each) for each in _types_in(kind))
    except (NameError, TypeError):
        return True  # Unknown: better to hide.


def _types_in(kind: Any) -> Iterator[Any]:
    """A type and those that its values may contain, each once."""
    left, seen = [kind], set()
    while left:
        if (kind := _unwrap(left.pop())) in seen:
            continue
        seen.add(kind)
        yield kind
        if typing.get_origin(kind) is not Literal:
            left += [*typing.get_args(kind), *_field_types(kind).values()]


def _field_types(kind: Any) -> dict[str, Any]:
    """The types of the fields of a class, by name."""
    cls = typing.get_origin(kind) or kind
    if typing.is_typeddict(cls) or cols.is_namedtuple(cls) or _is_attrs_or_dataclass(cls):
        return typing.get_type_hints(cls, include_extras=True)
    return {}


def shape_of(kind: Any) -> str:
    """A text about a type and those in it that is another one when other JSON may fit: the fields
    with their types, those that may be left out, and the values of enums."""
    lines = []
    for each in _types_in(kind):
        cls, types = typing.get_origin(each) or each, _field_types(each)
        optional = [*sorted(getattr(cls, "__optional_keys__", ()))]
        if types and not typing.is_typeddict(cls):
            parameters = inspect.signature(cls).parameters.values()
            optional = [each.name for each in parameters if each.default is not each.empty]
        lines.append(f"{types or each} {optional} {getattr(cls, '__members__', '')}")
    # Without modules, since a program may be imported by several names, and without addresses.
    return re.sub(r"[\w<>]+\.| at 0x\w+", "", "\n".join(lines))


def hidden_fields(cls: Any) -> set[str]:
    """The names of the fields that a class leaves out of its `repr`."""
    fields = getattr(cls, "__attrs_attrs__", None) or getattr(cls, "__dataclass_fields__", {})
    values = fields.values() if isinstance(fields, dict) else fields
    return {field.name for field in values if field.repr is not True}


def _is_attrs_or_dataclass(cls: Any) -> bool:
    return attrs.has(cls) or dataclasses.is_dataclass(typing.get_origin(cls) or cls)


def _type_name(kind: Any) -> str:
    if kind is Any:
        return "a JSON value"
    if typing.get_origin(kind) in _UNIONS:
        return " | ".join(map(_type_name, typing.get_args(kind)))
    if isinstance(kind, type) and not typing.get_args(kind):
        return "None" if kind is types.NoneType else kind.__name__
    return repr(kind).replace("typing.", "")


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
short_repr = _SHORT.repr
"""A short `repr`, which never fails."""


def got(kind: Any, value: Any) -> str:
    """How an error shows a wrong value, unless *kind* hides it."""
    return f"something else, which is {HIDDEN}" if hides(kind) else short_repr(value)


# One form for each type.

_Hook = Callable[..., Any]
_Parts = tuple[tuple[type, ...], tuple[type, ...], _Hook, _Hook]
"""What makes a form: its classes, json_classes, dump and parse."""


@attrs.define(eq=False, repr=False, slots=False)
class _Form:
    """How values of the type *kind* are written and read."""

    kind: Any
    classes: tuple[type, ...] = ()
    """The exact classes of its values: a subclass would be read back as its base."""
    json_classes: tuple[type, ...] = (dict,)
    """The classes of its JSON values. A recursive class needs this default."""
    dump: _Hook = lambda value: value
    parse: _Hook = lambda raw: raw
    plain: bool = False
    """Whether every written value is read back unchanged, so that no check is needed."""

    def write(self, value: Any) -> Any:
        try:
            return self.dump(value) if type(value) in self.classes else _Mismatch(value)
        except (ValueError, ArithmeticError, LookupError):
            return _Mismatch(value)

    def read(self, raw: Any, _: Any = None) -> Any:  # cattrs also passes the type.
        try:
            if type(raw) in self.json_classes:
                return self.parse(raw)
        except (ValueError, ArithmeticError, LookupError):
            pass
        except cattrs.errors.ClassValidationError as error:
            others = [e for e in error.group_exceptions()[1] if not isinstance(e, _OWN_ERRORS)]
            if others and hides(self.kind):
                # A validator's or converter's message may contain the hidden value.
                problem = f"{type(others[0]).__name__}, of which the rest is {HIDDEN}"
                raise CodecError((f"{_type_name(self.kind)} refuses it: {problem}",)) from None
            raise
        raise CodecError((f"expected {_type_name(self.kind)}, got {got(self.kind, raw)}",))

    def read_hidden(self, raw: Any, _: Any = None) -> Any:
        """Like `read`, but the error shows nothing of the value."""
        try:
            return self.read(raw)
        except Exception:
            problem = f"expected {_type_name(self.kind)}, got something else, which is {HIDDEN}"
            raise CodecError((problem,)) from None


_OWN_ERRORS = (CodecError, cattrs.errors.ForbiddenExtraKeysError, RecursionError)


@attrs.frozen(repr=False)
class _Mismatch:
    """A value of the wrong type, within a written one."""

    value: Any

    def __repr__(self) -> str:
        return short_repr(self.value)


class _Converter(cattrs.Converter):
    """A cattrs converter, which generates code for classes, with a form for each type. (cattrs
    alone looks up a class by its bases first, and finds `str` for a string enum.)"""

    def __init__(self) -> None:
        super().__init__(forbid_extra_keys=True)
        self.forms: dict[Any, _Form] = {}

    def form(self, kind: Any) -> _Form:
        """The form of *kind*."""
        kind = _unwrap(kind)
        if kind not in self.forms:
            # Stored before it is complete, for recursive classes.
            form = self.forms[kind] = _Form(kind)
            form.classes, form.json_classes, form.dump, form.parse = _parts(kind, self)
        return self.forms[kind]

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> _Hook:
        return self.form(type).read

    def get_unstructure_hook(self, type: Any, cache_result: bool = True) -> _Hook:
        return self.form(type).write


@functools.cache
def _form_of(kind: Any) -> _Form:
    # Each has its own converter, so that a type that fails leaves no incomplete forms.
    return _Converter().form(kind)


_PLAIN: Final = (str, int, bool, None, list[str], list[int], list[bool])


def _without_defaults(form: _Form) -> _Form:
    fields = attrs.fields(form.kind)
    given = [f for f in fields if f.default is not attrs.NOTHING]
    defaults = [(f.alias, _form_of(f.type).write(f.default)) for f in given]

    def dump(value: Any) -> Any:
        raw = form.dump(value)
        for key, default in defaults:
            # Equal is not enough: 1 == True, and 0.0 == -0.0.
            if raw[key] == default and repr(raw[key]) == repr(default):
                del raw[key]
        return raw

    plain = all(f.type in _PLAIN for f in fields)
    return attrs.evolve(form, dump=dump if defaults else form.dump, plain=plain)


def _unwrap(kind: Any) -> Any:
    if isinstance(kind, typing.NewType):
        return _unwrap(kind.__supertype__)
    return _unwrap(kind.__origin__) if typing.get_origin(kind) is typing.Annotated else kind


def _parts(kind: Any, converter: _Converter) -> _Parts:
    origin = typing.get_origin(kind) or kind
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind is Any or {*typing.get_args(kind)} == {Any, types.NoneType}:
        inner = {kind: converter.form(kind).read for kind in (list, dict, float)}
        classes = (str, int, float, bool, types.NoneType, list, dict)
        return classes, classes, _identity, lambda raw: inner.get(type(raw), _identity)(raw)
    if origin in _UNIONS:
        return _union(kind, converter)
    if origin is Literal:
        return _choice(kind, typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choice(kind, tuple(kind))
    if origin in _ARRAYS:
        return _array(kind, origin, converter)
    if origin in (dict, Mapping):
        return _mapping(kind, converter)
    return _object(kind, origin, converter)


def _choice(kind: Any, values: tuple[Any, ...]) -> _Parts:
    # By class, too, since 1 == True.
    raws = {(type(v), v): v.value if isinstance(v, Enum) else v for v in values}
    members = {(type(raw), raw): value for (_, value), raw in raws.items()}
    classes, json_classes = ({cls for cls, _ in pairs} for pairs in (raws, members))
    if len(members) < len(raws) or not json_classes <= {str, int, float, bool, types.NoneType}:
        raise TypeError(f"{_type_name(kind)} has values that JSON does not have or tell apart")
    both = tuple(classes), tuple(json_classes)
    return *both, lambda value: raws[type(value), value], lambda raw: members[type(raw), raw]


def _object(kind: Any, cls: Any, converter: _Converter) -> _Parts:
    for argument in typing.get_args(kind):
        converter.form(argument)  # Now: cattrs cannot make Box[int] while it makes Box[Box[int]].
    if typing.is_typeddict(cls):
        writers = {k: converter.form(hint).write for k, hint in typing.get_type_hints(cls).items()}
        read = cattrs.gen.typeddicts.make_dict_structure_fn(kind, converter)
        # Reading reports missing and unknown keys.
        return (
            (dict,),
            (dict,),
            lambda value: {k: writers.get(k, _Mismatch)(v) for k, v in value.items()},
            lambda raw: read(raw, kind),
        )
    if cols.is_namedtuple(cls):
        dump = cols.namedtuple_dict_unstructure_factory(kind, converter)
        parse = cols.namedtuple_dict_structure_factory(kind, converter, "from_converter", True)
    elif _is_attrs_or_dataclass(cls):
        if attrs.has(cls):
            attrs.resolve_types(cls)  # cattrs would leave the name in `list["Node"]`.
            if any(field.type is None for field in attrs.fields(cls)):
                raise TypeError(f"{_type_name(kind)} has a field without a type")
        hook = gen.override(struct_hook=lambda raw, kind: converter.form(kind).read_hidden(raw))
        hooks: Any = dict.fromkeys(hidden_fields(cls), hook)
        dump = gen.make_dict_unstructure_fn(kind, converter, _cattrs_use_alias=True)
        parse = gen.make_dict_structure_fn(kind, converter, _cattrs_use_alias=True, **hooks)
    else:
        raise TypeError(f"{_type_name(kind)} has no form in JSON")
    return (cls,), (dict,), dump, parse


_ARRAYS: Final[Mapping[Any, tuple[type, ...]]] = {
    list: (list,),
    Sequence: (list, tuple),
    tuple: (tuple,),
    set: (set,),
    frozenset: (frozenset,),
}
"""The classes that each accepts; the first one is what reading makes."""


def _array(kind: Any, origin: Any, converter: _Converter) -> _Parts:
    classes, items = _ARRAYS[origin], typing.get_args(kind)
    fixed = typing.get_origin(kind) is tuple and items[-1:] != (...,)
    forms: Iterable[_Form] = itertools.repeat(converter.form(items[0] if items else Any))
    if fixed:
        forms = [converter.form(item) for item in items]

    def dump(value: Any) -> Any:
        raw = [form.write(item) for item, form in zip(value, forms, strict=fixed)]
        if origin in (set, frozenset):
            # Equal sets give the same text, unless their items cannot be sorted.
            with contextlib.suppress(TypeError):
                raw.sort()
        return raw

    def parse(raw: Any) -> Any:
        pairs = enumerate(zip(raw, forms, strict=fixed))
        return classes[0](_each((i, item, form.read) for i, (item, form) in pairs))

    return classes, (list,), dump, parse


def _mapping(kind: Any, converter: _Converter) -> _Parts:
    key_kind, value_kind = typing.get_args(kind) or (str, Any)
    key, form = converter.form(key_kind), converter.form(value_kind)
    if key.json_classes not in ((str,), (int,)):
        raise TypeError(f"{_type_name(key_kind)} has no form as a key in JSON")
    digits = key.json_classes == (int,)

    def read_item(item: tuple[Any, Any]) -> tuple[Any, Any]:
        raw = item[0]
        if digits and type(raw) is str and re.fullmatch("0|-?[1-9][0-9]*", raw):
            raw = int(raw)  # "007" stays a text, and is refused.
        return key.read(raw), form.read(item[1])

    return (
        (dict,),
        (dict,),
        # Integers become texts when they are written as JSON.
        lambda value: {key.write(k): form.write(v) for k, v in value.items()},
        lambda raw: dict(_each((item[0], item, read_item) for item in raw.items())),
    )


def _each(items: Iterable[tuple[Any, Any, _Hook]]) -> list[Any]:
    """The items of a container, or one error that groups their errors with their places."""
    values, errors = [], []
    for place, raw, read in items:
        try:
            values.append(read(raw))
        except RecursionError:
            raise  # A list that contains itself twice would give 2 ** 1000 errors.
        except Exception as error:
            error.add_note(cattrs.errors.IterableValidationNote("", place, None))
            errors.append(error)
            if len(errors) == MAX_PROBLEMS:
                break  # A million errors would take gigabytes.
    if errors:
        raise cattrs.errors.IterableValidationError("", errors, list)
    return values


_UNIONS: Final = (typing.Union, types.UnionType)


def _union(kind: Any, converter: _Converter) -> _Parts:
    forms = {member: converter.form(member) for member in map(_unwrap, typing.get_args(kind))}
    json_classes = {cls for form in forms.values() for cls in form.json_classes}
    choosers: dict[type, Callable[[Any], Any]] = {}
    for cls in json_classes:
        members = [member for member, form in forms.items() if cls in form.json_classes]
        if cls is int and len(members) > 1:
            members = [member for member in members if member is not float]
        if len(members) == 1:
            choosers[cls] = functools.partial(_identity, members[0])
            continue
        with contextlib.suppress(TypeError):
            if all(map(_is_attrs_or_dataclass, members)):
                choosers[cls] = disambiguators.create_default_dis_func(converter, *members)
                continue
        names = " and ".join(map(_type_name, members))
        raise TypeError(f"in {_type_name(kind)}, JSON does not tell {names} apart")

    def choose(raw: Any) -> _Form:
        return forms[choosers[type(raw)](raw)]

    def dump(value: Any) -> Any:
        for form in forms.values():
            raw = form.write(value)
            # Otherwise it would be read as another member: 5 from a float, as an int.
            if type(raw) is not _Mismatch and choose(raw) is form:
                return raw
        return _Mismatch(value)

    classes = tuple({cls for form in forms.values() for cls in form.classes})
    return classes, tuple(json_classes), dump, lambda raw: choose(raw).read(raw)


# Scalars.


def _identity(value: Any, _: Any = None) -> Any:
    return value


def _parse_float(raw: float) -> float:
    if not math.isfinite(raw) or float(raw) != raw:
        raise ValueError("what no float holds, or JSON does not have")
    return float(raw)


def _parse_datetime(text: str) -> datetime:
    if len(text) <= len("2024-12-31"):
        raise ValueError("a date, which would be read as its midnight")
    return datetime.fromisoformat(text)


def _write_moment(value: datetime | time_of_day) -> str:
    text = value.isoformat()
    back = type(value).fromisoformat(text)
    if back.utcoffset() != value.utcoffset() or (value.tzinfo and not back.tzinfo):
        # The zone of a time without a date, or (Python 3.11) an offset below a second.
        raise ValueError("a zone, which is lost in the text")
    return text


def _exact(kind: type, dump: _Hook, parse: _Hook, *raws: type) -> _Parts:
    """A scalar of which only values that round-trip exactly are written and read: parsers of
    the standard library accept many spellings, and a long timedelta loses its microseconds."""

    def dump_exactly(value: Any) -> Any:
        if parse(raw := dump(value)) != value:
            raise ValueError(value)
        return raw

    def parse_exactly(raw: Any) -> Any:
        value = parse(raw)
        if dump(value) != raw or value != value:  # As NaN is not.
            raise ValueError(raw)
        return value

    return (kind,), raws or (str,), dump_exactly, parse_exactly


_SCALARS: Final[Mapping[Any, _Parts]] = {
    **{kind: ((kind,), (kind,), _identity, _identity) for kind in (str, int, bool, types.NoneType)},
    None: ((types.NoneType,), (types.NoneType,), _identity, _identity),
    float: ((float, int), (float, int), _identity, _parse_float),
    timedelta: _exact(
        timedelta,
        lambda value: value.total_seconds() if value.microseconds else int(value.total_seconds()),
        lambda raw: timedelta(seconds=raw),
        *(int, float),
    ),
    bytes: _exact(bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
    date: _exact(date, date.isoformat, date.fromisoformat),
    datetime: ((datetime,), (str,), _write_moment, _parse_datetime),
    time_of_day: ((time_of_day,), (str,), _write_moment, time_of_day.fromisoformat),
    Decimal: _exact(Decimal, str, Decimal),
    UUID: _exact(UUID, str, UUID),
    **{path: ((type(path()),), (str,), str, path) for path in (Path, PurePath)},
}


################################################################################
# Definitions
#
# A definition gives code a name, types and options. It knows neither the file nor processes. All
# copies that `using` makes share one Body, whose codecs are compiled once.
################################################################################

P = typing.ParamSpec("P")
C = TypeVar("C", default=Any)
S = TypeVar("S", default=object)

PAYLOAD_LIMIT = 4 * 2**20
"""The largest payload or result, in bytes."""

Reason = Literal["timeout", "cancel", "stop", "memory"]
"""Why a job is asked to end."""
REASONS: tuple[Reason, ...] = typing.get_args(Reason)
StopCheck = Callable[[], Reason | None]


class Interrupted(BaseException):
    """Raised by `context.checkpoint()` in a job that has been asked to end. Clean up with `finally`
    or `with`, and do not catch it. (It is not an `Exception`.)"""


Reported = Progress | Callable[[], Progress] | dict[str, Any]
"""What a job reports while it runs: its progress, a function that gives the latest, or its meta."""


@attrs.frozen(eq=False, repr=False)
class Context(Generic[S]):
    """What a running job can know and use. A handler gets it as the parameter that is annotated
    with `Context`; put that first, so that editors know the other parameters."""

    job: Job[Any]
    state: S
    """What the program's state factory returned for this worker."""
    deadline: datetime | None = None
    """When the timeout of this attempt is over; `None` if it has none."""
    _asked: StopCheck = lambda: None
    _report: Callable[[Reported], None] = lambda what: None
    _meta: dict[str, Any] = attrs.field(factory=dict)

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Reports how far the job has come, for `job.progress`. It may be called often: up to ten
        reports a second are passed on, and the last one always is.

        Raises:
            OptionError: the values are not finite numbers, or the note is not a text.
        """
        self._report(Progress(done, total, note))

    @overload
    def track(
        self, items: Iterable[T], total: float | None = None, note: str = ""
    ) -> Iterator[T]: ...
    @overload
    def track(
        self, items: AsyncIterable[T], total: float | None = None, note: str = ""
    ) -> AsyncIterator[T]: ...
    def track(self, items: Any, total: float | None = None, note: str = "") -> Any:
        """Iterates over the items, and reports by `progress` how many turns of the loop are over.
        The total is their `len`, if they have one. An async iterable is for `async for`.

        Raises:
            OptionError: the total is not a finite number, or the note is not a text.
        """
        if total is None and hasattr(items, "__len__"):
            total = len(items)
        done, is_known = 0, True

        def latest() -> Progress:
            nonlocal is_known
            is_known = True  # Before `done` is read, so that the next item is reported in any case.
            return Progress(done, total, note)

        def count() -> None:
            nonlocal done, is_known
            done += 1
            if is_known:  # A report for each item would take longer than many an item.
                is_known = False
                self._report(latest)

        def each() -> Iterator[Any]:
            for item in items:
                yield item
                count()

        async def each_async() -> AsyncIterator[Any]:
            async for item in items:
                yield item
                count()

        self.progress(0, total, note)
        return each_async() if hasattr(items, "__aiter__") else each()

    def meta(self, name: str, value: Any) -> None:
        """Writes a JSON value into `job.meta`, for others to see: as soon, and as often, as
        `progress`. In all, 16,384 characters of JSON fit. Further attempts find it there.

        Raises:
            OptionError: it is not a JSON value, or too large.
        """
        self._meta.update(_check_meta({**self.job.meta, **self._meta, name: value}, "meta"))
        self._report({**self._meta})

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.job.attempt

    @property
    def cancelled(self) -> bool:
        """Whether the job has been asked to end: it was cancelled, its deadline has passed, or
        its node stops. When the grace (by default 5 s) is over, its worker is killed. A coroutine
        is cancelled: at once, or, if its node stops, when most of the grace is over.

        If its node stops, a job whose handler has read `True` here runs again and loses no attempt,
        unless it raises `Fail`, `Retry`, `Snooze` or `Cancel`."""
        return self._asked() is not None

    def checkpoint(self) -> None:
        """Ends the job with the right outcome, if it has been asked to end (see `cancelled`).

        Raises:
            Interrupted: the job has been asked to end. Let it pass.
        """
        if reason := self._asked():
            raise Interrupted(f"the job has been asked to end: {reason}")

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger below "litejobs" whose records carry the job and its name."""
        about = {"job": self.job.id, "definition": self.job.name, "attempt": self.attempt}
        return logging.LoggerAdapter(logging.getLogger(f"litejobs.{self.job.name}"), about)


Errors = type[BaseException] | tuple[type[BaseException], ...]


class Changeable(TypedDict, total=False):
    """The options that can also be changed while a job waits, with their lines of help."""

    queue: Annotated[str, "the queue that it waits in"]
    priority: Annotated[int, "higher runs first"]
    max_attempts: Annotated[int | None, "how many attempts it has at most"]
    timeout: Annotated[Duration | None, "how long an attempt may take, until it is asked to end"]
    grace: Annotated[Duration | None, "and then until it is killed (default: the node's, 5)"]
    """When the node stops, only the node's counts."""
    node: Annotated[str | None, "the only node that may take it"]
    delay: Annotated[Duration, "how long until it is due"]
    at: Annotated[datetime, "when it is due"]
    expires: Annotated[Duration | datetime | None, "when it is not started any more"]
    tags: Annotated[str | Iterable[str], "words to find it by; may be repeated"]
    meta: Annotated[Mapping[str, Any], "JSON values to show with it, as customer=7"]


class Choices(Changeable, total=False):
    """The options that a definition sets and an enqueue may override."""

    backoff: Annotated[Backoff, "how long it waits before it is tried again"]
    retention: Annotated[Retention, "how long it is kept after its end"]
    unique: Annotated[Unique | None, "when a second job like it is not enqueued"]
    key: Annotated[
        str | Callable[..., Any] | None, "a name: of jobs with the same one, only so many run"
    ]
    key_limit: Annotated[int, "how many with its key run at a time (default: 1)"]
    headers: Annotated[Mapping[str, str], "texts that are sent along, for middleware"]
    connection: Annotated[Any, "the one whose transaction it is enqueued in (apsw or sqlite3)"]


class DefinitionChoices(Choices, total=False):
    """The options of a definition: also those that belong to its code, and no job can override."""

    concurrency: Annotated[int | None, "how many of its jobs run at a time, on all nodes together"]
    rate: Annotated[str | None, "how many of them start in some time, evenly: 10/s, 100/min"]
    max_memory: Annotated[int | str | None, "how much its worker may use, in bytes or as 512MB"]
    retry_on: Annotated[
        Errors | Mapping[type[BaseException], Backoff | None] | None,
        "the only exceptions after which it is tried again; each with its backoff, if given",
    ]
    fail_on: Annotated[Errors, "exceptions after which it is not tried again"]
    on_success: Annotated[
        Callable[[Context[Any], Any], Any] | None,
        "called in the worker with what the handler has returned",
    ]
    """Part of the attempt and its timeout; what it raises is logged, and the job is completed."""
    on_failure: Annotated[
        Callable[[Context[Any], BaseException], Any] | None,
        "called in the worker after an exception, when it is not tried again",
    ]
    """Not after a timeout, a crash, too much memory or a lost node. What it raises is logged."""
    on_end: Annotated[
        Callable[[Context[Any], Failure | None], Any] | None,
        "called when a job that was started has ended, in whatever way, with its failure or None",
    ]
    """`context.job` is the job as it ended. It runs within the job's timeout, in any worker of the
    node that settled the job or took it over: once, or never, if that node is killed just then or
    has no worker left. What it raises, or a crash in it, is logged and changes nothing."""
    encode: Annotated[Callable[[Any], bytes] | None, "makes the bytes that are stored for JSON"]
    """Takes an instance, or a function's arguments by name, with its defaults."""
    decode: Annotated[Callable[[bytes], Any] | None, "reads what encode has made"]
    upgrade: Annotated[
        Callable[[dict[str, Any]], Mapping[str, Any]] | None,
        "makes the fields of a stored payload that does not fit those that do",
    ]


_UNSET = type("Unset", (), {"__repr__": lambda unset: "..."})()


def options_in(typed: Any) -> list[inspect.Parameter]:
    """The options in a TypedDict, as the parameters that signatures show."""
    kind, shown = inspect.Parameter.KEYWORD_ONLY, {}
    for option, hint in typed.__annotations__.items():
        shown[option] = re.sub(r"Annotated\[(.*?), (['\"]|FIELDS).*", r"\1", hint.__forward_arg__)
    return [inspect.Parameter(o, kind, default=_UNSET, annotation=shown[o]) for o in shown]


class LazySignature(inspect.Signature):
    """A signature that is made when `help()` or an editor reads it: few programs do."""

    def __init__(self, make: Callable[[], inspect.Signature]) -> None:
        self._make = make

    @functools.cached_property
    def _made(self) -> inspect.Signature:
        return self._make()

    parameters = property(lambda self: self._made.parameters)
    return_annotation = property(lambda self: self._made.return_annotation)

    def replace(self, **changes: Any) -> Any:
        """A copy with other parameters, such as without `self`."""
        return self._made.replace(**changes)


Check = Callable[[Any, str], Any]
"""Of a value and the name of its option, makes the value that is used, or an OptionError."""


def _accept(fits: Callable[[Any], bool], expected: str) -> Check:
    def check(value: Any, what: str) -> Any:
        if not fits(value):
            raise OptionError(what, f"expected {expected}, got {value!r}")
        return value

    return check


def _optional(check: Check) -> Check:
    return lambda value, what: None if value is None else check(value, what)


def _check_timeout(value: Duration, what: str) -> timedelta:
    if not (length := duration(value, what)):
        raise OptionError(what, "expected more than zero, or None for no limit")
    return length


def _check_memory(value: object, what: str) -> int:
    size = value
    pattern = r"(\d{1,15}) ?([kMG]?)(i?)B"
    if isinstance(value, str) and (match := re.fullmatch(pattern, value.strip())):
        size = int(match[1]) * (1024 if match[3] else 1000) ** " kMG".index(match[2] or " ")
    if type(size) is int and size > 0:
        return size
    raise OptionError(what, f'expected bytes, or a text like "512MB", got {size!r}')


def _check_errors(value: Any, what: str) -> Mapping[type[BaseException], Backoff | None]:
    """Exceptions, each with its backoff, if given."""
    errors = [*value] if isinstance(value, tuple | Mapping) else [value]
    for error in errors:
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise OptionError(what, f"expected exceptions, got {error!r}")
    given = value if isinstance(value, Mapping) else {}
    return {each: given.get(each) and _check_backoff(given[each], "backoff") for each in errors}


def _store_length(length: timedelta | None) -> int | None:
    return None if length is None else length // MICROSECOND


_check_attempts = _optional(functools.partial(at_least_one, also=", or None for ever"))
_check_priority = _accept(
    lambda value: isinstance(value, int) and type(value) is not bool and -(2**31) <= value < 2**31,
    "an integer of 32 bits",
)
_check_backoff = _accept(
    lambda value: isinstance(value, Curve) or (callable(value) and not isinstance(value, type)),
    f"{', '.join(CURVES)} or a function from attempt to delay",
)
_check_retention = _accept(lambda value: isinstance(value, Retention), "a Retention")
_check_unique = _accept(lambda value: isinstance(value, Unique), "Unique(…) or None")
_check_headers = _accept(
    lambda value: isinstance(value, Mapping) and {*map(type, [*value, *value.values()])} <= {str},
    "texts by their names",
)
_check_function = _accept(callable, "a function")
MAX_TAGS = 20
META_LIMIT = 16_384
"""Characters of JSON."""


def _check_tags(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise OptionError(what, f"expected words, got {short_repr(value)}")
    tags = {check_name(tag, what) for tag in ([value] if isinstance(value, str) else value)}
    if len(tags) > MAX_TAGS:
        raise OptionError(what, f"{len(tags)} words, more than {MAX_TAGS}")
    return tuple(sorted(tags))


def _check_meta(value: Any, what: str) -> dict[str, Any]:
    """A copy, as JSON gives it."""
    if not isinstance(value, Mapping) or not all(type(name) is str for name in value):
        raise OptionError(what, f"expected JSON values by their names, got {short_repr(value)}")
    try:
        text = _to_json({**value})
        copy: dict[str, Any] = _from_json(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(what, f"expected JSON values: {error}") from None
    if len(text) > META_LIMIT:
        problem = f"{len(text):,} characters of JSON, more than {META_LIMIT:,}: write a file"
        raise OptionError(what, f"{problem}, and keep its path")
    return copy


def _store_json(value: Any) -> str | None:
    return _to_json(value) if value else None


def _option(default: Any, check: Check, store: Callable[[Any], Any] | None = None) -> Any:
    """An option: its default, its check and, if rows have a column for it, what is stored there."""
    check = _optional(check) if default is None else check
    return attrs.field(default=default, metadata={"check": check, "store": store})


@attrs.frozen(slots=False)
class Options:
    """The options of a definition or a job, all checked."""

    queue: str = _option("default", check_name, _identity)
    priority: int = _option(0, _check_priority, _identity)
    max_attempts: int | None = _option(5, _check_attempts, _identity)
    timeout: timedelta | None = _option(None, _check_timeout, _store_length)
    grace: timedelta | None = _option(None, duration)
    node: str | None = _option(None, check_name, lambda name: name or "")
    delay: timedelta = _option(timedelta(0), duration)
    at: datetime | None = _option(None, aware)
    expires: timedelta | datetime | None = _option(
        None,
        lambda value, what: (aware if isinstance(value, datetime) else duration)(value, what),
    )
    tags: tuple[str, ...] = _option((), _check_tags, _store_json)
    meta: Mapping[str, Any] = _option({}, _check_meta, _store_json)
    backoff: Backoff = _option(DEFAULT_BACKOFF, _check_backoff, store_backoff)
    retention: Retention = _option(DEFAULT_RETENTION, _check_retention, store_retention)
    unique: Unique | None = _option(None, _check_unique)
    key: str | Callable[..., Any] | None = _option(
        None, lambda value, what: value if callable(value) else check_name(value, what)
    )
    key_limit: int = _option(1, at_least_one)
    headers: Mapping[str, str] = _option({}, _check_headers)
    connection: Any = _option(None, lambda value, what: value)
    concurrency: int | None = _option(None, functools.partial(at_least_one, also=", or None"))
    rate: str | None = _option(None, lambda value, what: parse_rate(value) and value)
    max_memory: int | None = _option(None, _check_memory)
    retry_on: Mapping[type[BaseException], Backoff | None] | None = _option(None, _check_errors)
    fail_on: Mapping[type[BaseException], Backoff | None] = _option({}, _check_errors)
    on_success: Callable[[Context[Any], Any], Any] | None = _option(None, _check_function)
    on_failure: Callable[[Context[Any], BaseException], Any] | None = _option(None, _check_function)
    on_end: Callable[[Context[Any], Failure | None], Any] | None = _option(None, _check_function)
    encode: Callable[[Any], bytes] | None = _option(None, _check_function)
    decode: Callable[[bytes], Any] | None = _option(None, _check_function)
    upgrade: Callable[[dict[str, Any]], Mapping[str, Any]] | None = _option(None, _check_function)
    given: frozenset[str] = frozenset()
    """Those that were set, by the definition or later: they override the defaults of a queue."""

    def for_definition(self, choices: DefinitionChoices) -> Options:
        """A copy with other options, for a definition."""
        check_known(choices, OPTIONS, "no such option")
        for option, other in ("encode", "decode"), ("decode", "encode"):
            if choices.get(option) is None and choices.get(other) is not None:
                raise OptionError(option, "missing: give encode and decode, or neither")
        made = self._with(choices)
        # Rows store only a grace that was set for one job; nodes know that of the definition.
        return attrs.evolve(made, given=made.given - {"grace"})

    def for_job(self, choices: Choices) -> Options:
        """A copy with other options, for a job."""
        for option in choices:
            if option not in CHOICES and option in ("name", *OPTIONS):
                raise OptionError(option, "belongs to the definition: it cannot be set for one job")
        check_known(choices, CHOICES, "no such option")
        return self._with(choices)

    def _with(self, options: DefinitionChoices | Choices) -> Options:
        values = {option: OPTIONS[option](value, option) for option, value in options.items()}
        if values.get("at") is not None and "delay" in values:
            raise OptionError("at", "given together with delay: a job has one time to run")
        if values.get("at") is not None or "delay" in values:
            values = {"at": None, "delay": timedelta(0), **values}
        return attrs.evolve(self, **values, given=self.given | values.keys())

    def run_at(self, now: int) -> int:
        """When a job that is enqueued *now* becomes due, in microseconds."""
        return now + self.delay // MICROSECOND if self.at is None else to_micros(self.at)

    def expires_at(self, run_at: int) -> int | None:
        """When a job that becomes due at *run_at* is not to be started any more."""
        if isinstance(self.expires, timedelta):
            return run_at + self.expires // MICROSECOND
        return None if self.expires is None else to_micros(self.expires)

    @functools.cached_property
    def open(self) -> frozenset[str]:
        """Those not set for which a queue may have a default."""
        return frozenset({"max_attempts", "timeout", "backoff"} - self.given)

    @functools.cached_property
    def plain(self) -> bool:
        """Whether `columns` are all that is stored of these options."""
        more = self.expires, self.unique, self.key, self.connection
        return more == (None, None, None, None) and not self.headers and self.own_grace is None

    @property
    def own_grace(self) -> int | None:
        """The grace in microseconds, if it was set for one job, not for its definition."""
        return _store_length(self.grace) if "grace" in self.given else None

    @functools.cached_property
    def columns(self) -> Mapping[str, Any]:
        """What is stored with each job, by column."""
        return {name: store(getattr(self, name)) for name, store in STORED.items()}


OPTIONS: Mapping[str, Check] = {
    option.name: option.metadata["check"] for option in attrs.fields(Options) if option.metadata
}
"""How each option is checked."""
STORED: Mapping[str, Callable[[Any], Any]] = {
    option.name: option.metadata["store"]
    for option in attrs.fields(Options)
    if option.metadata.get("store")
}
"""The options that have a column of their name, and what makes the value in it."""
CHOICES = tuple(Choices.__annotations__)
_DEFINITION_ATTRIBUTE = "__litejobs_definition__"
AFTER_START = "after work had started: do it before, or stop the node first"


class Signature(NamedTuple):
    """How the code of a definition is called."""

    payload: Codec[Any]
    result: Codec[Any] | None
    """`None` if the code is annotated to return nothing."""
    call: Callable[[Any, Callable[[], Context[Any]]], Any]
    """Calls the code with a payload object and, if it takes one, a context made on demand."""


def running_module() -> object:
    """The code of the module or notebook's cell that runs: another object each time it does."""
    frame = sys._getframe(1)
    while frame.f_code.co_name != "<module>" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code


@attrs.define(eq=False, repr=False, slots=False)
class Body:
    """The code behind a definition, shared by all its copies."""

    name: str
    code: Callable[..., Any]
    place: str
    options: Options
    """The definition's own, whose backoff may be a function: rows keep only curves."""
    home: Any = None
    """The LiteJobs that it is registered with."""
    loaded_by: object = attrs.field(factory=running_module, init=False)
    _methods: dict[str, types.FunctionType] = attrs.field(factory=dict, init=False)

    @property
    def is_class(self) -> bool:
        """Whether the code is an attrs class with `run()`."""
        return isinstance(self.code, type)

    @property
    def is_async(self) -> bool:
        """Whether its jobs run many at a time, in the event loop of a worker."""
        code: Any = self.code
        return inspect.iscoroutinefunction(code.run if self.is_class else code)

    def replaces(self, old: Body) -> bool:
        """Whether it is the same code, loaded again: by `importlib.reload`, or in a notebook."""
        own, other = ((each.code.__module__, each.code.__qualname__) for each in (self, old))
        return own == other and self.loaded_by is not old.loaded_by

    @functools.cached_property
    def signature(self) -> Signature:
        """Made when first used, so that annotations may name what is defined later."""
        try:
            signature = _signature(self.code)
        except (NameError, TypeError) as error:
            raise DefinitionError(self.name, f"its annotations do not work: {error}") from error
        for codec in (None if self.options.encode else signature.payload, signature.result):
            if codec and (problem := unencodable(codec.kind)):
                raise DefinitionError(self.name, problem)
        made: Signature = vars(self).setdefault("signature", signature)
        return made  # The same one for threads that make it at the same time.

    @property
    def kind(self) -> Any:
        """The class of its payload objects."""
        return self.signature.payload.kind

    @functools.cached_property
    def hidden(self) -> frozenset[str]:
        """What a class hides, as "payload.FIELD" and "result"."""
        try:
            payload, result, _ = self.signature
            fields = attrs.fields(attrs.resolve_types(payload.kind))
        except (DefinitionError, NameError, TypeError):
            return frozenset({"payload", "result"})  # Unknown: better to hide.
        found = {f"payload.{f.alias}" for f in fields if f.repr is not True or hides(f.type)}
        return frozenset(found | {"result"} if result and hides(result.kind) else found)

    @functools.cached_property
    def names(self) -> dict[str, Any]:
        """The name, docstring and so on of the code, for its definitions."""
        names: Sequence[str] = functools.WRAPPER_ASSIGNMENTS
        named = {name: getattr(self.code, name) for name in names if hasattr(self.code, name)}
        return {**named, "__wrapped__": self.code, "__signature__": LazySignature(self._shown)}

    def _shown(self) -> inspect.Signature:
        """The signature of the code, without the context."""
        plain = inspect.signature(self.code)
        names: Any = plain.parameters
        with contextlib.suppress(DefinitionError):
            names = {field.alias for field in attrs.fields(self.kind)}
        return plain.replace(
            parameters=[p for name, p in plain.parameters.items() if name in names]
        )

    def method(self, function: types.FunctionType) -> types.FunctionType:
        """A copy of a method of its definitions, with the parameters of the code."""

        def signature() -> inspect.Signature:
            own, plain = self._shown(), inspect.signature(function)
            given: Any = own.return_annotation
            if not isinstance(given, str):
                given = "Any" if given is own.empty else inspect.formatannotation(given)
            return plain.replace(
                parameters=[plain.parameters["self"], *own.parameters.values()],
                return_annotation=plain.return_annotation.replace("[R]", f"[{given}]"),
            )

        if (own := self._methods.get(function.__name__)) is None:
            own = types.FunctionType(function.__code__, function.__globals__)
            own.__qualname__ = function.__qualname__
            own.__signature__ = LazySignature(signature)  # type: ignore[attr-defined]
            self._methods[function.__name__] = own
        return own

    @functools.cached_property
    def fingerprint(self) -> str:
        """Eight digits for its parameters, then eight for the code of `upgrade` and of `decode`.
        A payload that did not fit is tried again by a definition with another one."""
        try:
            texts = [shape_of(self.kind)]
        except (DefinitionError, NameError, TypeError) as error:
            texts = [str(error)]
        functions = self.options.upgrade, self.options.decode
        texts += [_code_text(getattr(each, "__code__", None)) for each in functions if each]
        return "".join(f"{zlib.crc32(text.encode(errors='replace')):08x}" for text in texts)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The payload object made of arguments."""
        make = self.signature.payload.kind
        try:
            return make(*args, **kwargs)
        except TypeError as error:
            problem = str(error).replace(".__init__()", "()")
            if problem.endswith("given"):  # It counts the object that is made, too.
                most, given = len(attrs.fields(make)), len(args)
                problem = f"{self.name}() takes no more than {most} arguments, {given} were given"
            raise TypeError(problem) from None

    def encode(self, payload: Any) -> str | bytes:
        """JSON for a payload object; bytes, if the definition has an encoding of its own."""
        codec, encode = self.signature.payload, self.options.encode
        made: str | bytes
        if encode is None:
            try:
                made = codec.encode(payload)
            except CodecError as error:
                raise PayloadError(self.name, error.problems) from None
        else:
            try:
                made = encode(payload if self.is_class else fields_of(payload))
            except Exception as error:
                raise self._unfit(f"encode raised {_first_line(error)}") from error
            if type(made) is not bytes:
                raise self._unfit(f"encode gave {got(codec.kind, made)}, which is not bytes")
        if excess := excess_of(made):
            raise self._unfit(f"{excess}; put the data into a file and pass its path")
        return made

    def decode(self, stored: str | bytes) -> Any:
        """The payload object that is stored. JSON from before the definition had an encoding, or
        from the command line, is read, too."""
        codec, decode = self.signature.payload, self.options.decode
        if decode is None or isinstance(stored, str):
            try:
                return codec.decode(stored)
            except CodecError as unfit:
                return self._upgraded(stored, unfit)
        try:
            made = decode(stored)
        except (Exception, SystemExit) as error:
            raise self._unfit(f"decode raised {_first_line(error)}") from error
        if type(made) is not (codec.kind if self.is_class else dict):
            expected = codec.kind.__name__ if self.is_class else "a dict of arguments by name"
            raise self._unfit(f"decode gave {got(codec.kind, made)}, not {expected}")
        try:
            return made if self.is_class else codec.kind(**made)
        except TypeError as error:
            raise self._unfit(f"what decode gave: {error}".replace(".__init__()", "()")) from None

    def _upgraded(self, stored: str | bytes, unfit: CodecError) -> Any:
        """The payload object that `upgrade` makes of a stored payload that does not fit."""
        if self.options.upgrade is None:
            raise PayloadError(self.name, unfit.problems) from None
        try:
            fields = self.options.upgrade(load_json(stored))
            return self.signature.payload.decode(json_of_any.encode(fields))
        except CodecError as error:
            raise self._unfit(f"what upgrade gave: {error}") from None
        except (Exception, SystemExit) as error:
            raise self._unfit(f"upgrade raised {_first_line(error)}") from error

    def _unfit(self, problem: str) -> PayloadError:
        return PayloadError(self.name, (problem,))


def _code_text(code: Any) -> str:
    """A text about what the code of a function does, wherever it stands."""
    if not isinstance(code, types.CodeType):
        return repr(code) if isinstance(code, str | bytes | int | float) else type(code).__name__
    return f"{code.co_code.hex()} {code.co_names} {[*map(_code_text, code.co_consts)]}"


def _first_line(error: BaseException) -> str:
    text = described(lambda: f"{type(error).__name__}: {error}", "an error that cannot be shown")
    return text.partition("\n")[0][:200]  # The whole is in the traceback.


def excess_of(text: str | bytes) -> str | None:
    """How large a payload or result is, if it is too large."""
    if len(text) <= PAYLOAD_LIMIT // 4:
        return None  # A character takes at most four bytes.
    size = len(text.encode()) if isinstance(text, str) else len(text)
    if size <= PAYLOAD_LIMIT:
        return None
    return f"{size / 2**20:.1f} MiB, more than {PAYLOAD_LIMIT // 2**20}"


def fields_of(payload: Any) -> dict[str, Any]:
    """The fields of a payload object by the names of its arguments."""
    return {field.alias: getattr(payload, field.name) for field in attrs.fields(type(payload))}


def _is_context(hint: object) -> bool:
    if typing.get_origin(hint) in _UNIONS:
        return any(map(_is_context, typing.get_args(hint)))
    return hint is Context or typing.get_origin(hint) is Context


def _signature(code: Any) -> Signature:
    """Payloads are of the attrs class with `run`, or of one made of a function's parameters."""
    is_class = isinstance(code, type)
    function: Any = code.run if is_class else code
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = [*inspect.signature(function).parameters.values()][is_class:]
    contexts = {p.name for p in parameters if _is_context(hints.get(p.name))}
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    positional = [p.name for p in parameters if p.name not in keywords]
    fields: dict[str, Any] = {
        p.name: attrs.field(
            default=attrs.NOTHING if p.default is p.empty else p.default,
            type=hints.get(p.name, Any),
            alias=p.name,
            kw_only=p.name in keywords,
        )
        for p in parameters
        if p.name not in contexts
    }
    if is_class and fields:
        raise TypeError(f"run() takes at most a context; {next(iter(fields))!r} should be a field")
    title = code.__name__ if code.__name__.isidentifier() else "handler"
    payload: Any = code if is_class else attrs.make_class(title, fields, slots=True)

    def call(values: Any, context: Callable[[], Context[Any]]) -> Any:
        def argument(name: str) -> Any:
            return context() if name in contexts else getattr(values, name)

        given = [*([values] if is_class else []), *map(argument, positional)]
        return function(*given, **{name: argument(name) for name in keywords})

    def call_plainly(values: Any, context: Callable[[], Context[Any]]) -> Any:
        return code(*[getattr(values, name) for name in positional])

    returned = hints.get("return", Any)
    result = None if returned in (type(None), NoReturn) else Codec[Any](returned)
    plain = not (is_class or contexts or keywords)
    codec = Codec[Any](payload, omit_defaults=not is_class)
    return Signature(codec, result, call_plainly if plain else call)


@attrs.define(eq=False, repr=False, slots=False)
class Bound(Generic[R]):
    """A job that is not enqueued yet: a definition with its payload and options."""

    body: Body
    options: Options
    payload: str | bytes
    """JSON text; or bytes, where the definition has an encoding of its own."""

    @property
    def name(self) -> str:
        """The definition's name."""
        return self.body.name

    def using(self, **choices: Unpack[Choices]) -> Bound[R]:
        """A copy with other options.

        Raises:
            OptionError: an option is unknown, or its value cannot be used.
        """
        return _bound(self.body, self.options.for_job(choices), self.payload)

    def __repr__(self) -> str:
        payload = "" if self.body.hidden else f" {reprlib.repr(self.payload)}"
        return printable(f"<Bound {self.name}{payload}>")


class Method:
    """A method of definitions that `help()` and editors show with each one's own parameters."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __get__(self, definition: AnyDefinition | None, owner: type | None = None) -> Any:
        if definition is None:
            return self._function
        own = types.MethodType(definition.body.method(self._function), definition)
        vars(definition)[self._function.__name__] = own  # Found there from now on.
        return own


def _with_its_parameters(method: T) -> T:
    return typing.cast(T, Method(method))


@attrs.frozen(eq=False, repr=False, slots=False)
class Definition(Generic[P, R, C]):
    """A function with a name, types and options, ready to be enqueued.
    Calling it calls the function: nothing is queued."""

    body: Body
    options: Options
    __name__: typing.ClassVar[str]
    __qualname__: typing.ClassVar[str]
    __wrapped__: typing.ClassVar[Any]

    def __attrs_post_init__(self) -> None:
        vars(self).update(self.body.names)

    def __get__(self, instance: object, owner: type | None = None) -> Definition[P, R, C]:
        """Itself, also as an attribute of a class; as `help()` expects of a function."""
        return self

    @property
    def name(self) -> str:
        """Stable, unique in its registry, and stored in every row."""
        return self.body.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """Calls the function. If it takes a context, it gets one that belongs to no job."""
        result: C = self.body.signature.call(self.body.arguments(args, kwargs), _no_job)
        return result

    def using(self, **choices: Unpack[Choices]) -> Definition[P, R, C]:
        """A copy with other options. (Arguments of `enqueue` are the function's alone.)

        Raises:
            OptionError: an option is unknown, or its value cannot be used.
        """
        return Definition(self.body, self.options.for_job(choices))

    @_with_its_parameters
    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Bound[R]:
        """A job that is not enqueued yet, its payload checked.

        Raises:
            PayloadError: the arguments do not fit the function's parameters.
        """
        try:
            payload = self.body.arguments(args, kwargs)
        except TypeError as error:
            known, problem = attrs.fields_dict(self.body.kind), str(error)
            for option in (OPTIONS_ELSEWHERE.get(word, word) for word in kwargs.keys() - known):
                if option in CHOICES:
                    problem += f"; as an option, write f.using({option}=…).enqueue(…)"
            raise PayloadError(self.name, (problem,)) from None
        return _bound(self.body, self.options, self.body.encode(payload))

    @_with_its_parameters
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Puts a job into the file. When this returns, the job survives `kill -9` and power loss.

        Raises:
            PayloadError: the arguments do not fit the function's parameters.
            FileError: the file cannot be used; its leaves say in which way.
        """
        job: Job[R] = self._home.enqueue(self.bind(*args, **kwargs))
        return job

    @_with_its_parameters
    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """`enqueue` for coroutines: the event loop goes on meanwhile. If its task is cancelled
        meanwhile, the job is enqueued all the same. Raises the same errors."""
        job: Job[R] = await self._home.aenqueue(self.bind(*args, **kwargs))
        return job

    @property
    def _home(self) -> Any:
        if self.body.home is None:
            raise DefinitionError(self.name, "belongs to no queue yet: jobs.register(it) first")
        return self.body.home

    def __repr__(self) -> str:
        return printable(f"<Definition {self.name} at {self.body.place}>")


def _bound(body: Body, options: Options, payload: str | bytes) -> Bound[Any]:
    """A job, if its row can store its options."""
    if options.backoff is not body.options.backoff and not isinstance(options.backoff, Curve):
        raise OptionError("backoff", "a function belongs to the definition: no row can store it")
    return Bound(body, options, payload)


def bind_instance(definition: AnyDefinition, instance: object, choices: Choices) -> Bound[Any]:
    """A job made of an instance of a definition's class, whose attributes may set options."""
    names = ("queue", "priority", "max_attempts", "backoff", "timeout")
    chosen = {name: getattr(instance, name, None) for name in names}
    own: Any = {name: value for name, value in chosen.items() if value is not None}
    key = getattr(instance, "unique_key", None)
    if (key := key() if callable(key) else key) is not None:
        unique = definition.options.unique or Unique()
        own["unique"] = attrs.evolve(unique, fields=None, key=str(key))
    options = definition.options.for_job({**own, **choices})
    return _bound(definition.body, options, definition.body.encode(instance))


def bind_json(definition: AnyDefinition, text: str, choices: Choices) -> Bound[Any]:
    """A job made of a JSON payload, which is checked."""
    options = definition.options.for_job(choices)
    body = definition.body
    return _bound(body, options, body.encode(body.decode(text)))


def unique_key(bound: Bound[Any]) -> str | None:
    """The unique key of a job, if it has one: with a hash, so that it shows no payload."""
    body, unique = bound.body, bound.options.unique
    if unique is None:
        return None
    import hashlib  # Late: it loads OpenSSL, and most programs have no use for it.

    if unique.key is not None:
        content = key_text(bound, unique.key, "unique")
    elif body.options.encode or isinstance(bound.payload, bytes):
        if unique.fields is not None:
            problem = f"{body.name!r} has an encoding of its own: give a key=, not fields="
            raise OptionError("unique", problem)
        content = repr(bound.payload)
    else:
        raw = _from_json(bound.payload)
        if unique.fields is not None:
            known = [field.alias for field in attrs.fields(body.kind)]
            for field in unique.fields:
                if field not in known:
                    problem = f"{body.name!r} has no field {field!r}{did_you_mean(field, known)}"
                    raise OptionError("unique", problem)
            # A field that holds its default may be left out of the text.
            raw = {field: raw[field] for field in unique.fields if field in raw}
        content = json.dumps(raw, sort_keys=True)
    digest = hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=16)
    return f"{body.name}:{digest.hexdigest()}"


def key_text(bound: Bound[Any], key: str | Callable[..., Any], what: str) -> str:
    """The text of a key that is a text or a function of the payload."""
    if isinstance(key, str):
        return key
    try:
        payload = bound.body.decode(bound.payload)
        return str(key(payload) if bound.body.is_class else key(**fields_of(payload)))
    except Exception as error:
        problem = f"the function for it failed on a job of {bound.body.name!r}: {error!r}"
        raise OptionError(what, problem) from error


def merged(bound: Bound[Any], merge: Merge, waiting: str | bytes) -> str | bytes:
    """The payload that *merge* makes of a *waiting* job's and a new one's."""
    body = bound.body
    old, new = map(body.decode, (waiting, bound.payload))
    try:
        if body.is_class:
            return body.encode(merge(old, new))
        return body.encode(body.kind(**merge(fields_of(old), fields_of(new))))
    except (TypeError, PayloadError) as error:
        problems = tuple(f"merged: {each}" for each in getattr(error, "problems", (error,)))
        raise PayloadError(body.name, problems) from error


AnyDefinition = Definition[..., Any, Any]


def definition_of(value: object) -> AnyDefinition | None:
    """The value, if it is a definition; if it is a class, its definition."""
    if isinstance(value, type):
        value = vars(value).get(_DEFINITION_ATTRIBUTE)
    return value if isinstance(value, Definition) else None


def _no_job() -> Context[Any]:
    claimed = Claimed(0, 0, "", "", 0, 1, 1, None, None, "{}", 0, 0)
    job: Job[Any] = Job(*claimed, state="running", started_at=0, source=NOWHERE)
    return Context(job, None)


def _in_no_file(id: int | Job[Any], timeout: Duration | None = None, **given: Any) -> NoReturn:
    raise JobNotFoundError(id.id if isinstance(id, Job) else id)


NOWHERE: Any = types.SimpleNamespace(
    **dict.fromkeys(("get", "aget", "wait", "why", "result", "cancel", "retry"), _in_no_file),
    **dict.fromkeys(("hold", "release", "change", "delete"), _in_no_file),
    errors=lambda id: (),
)
"""The source of jobs that are in no file or cannot be read again."""


@attrs.define(eq=False, repr=False, slots=False)
class Registry:
    """The definitions of one program. None is added while nodes run: they would not know it."""

    by_name: dict[str, AnyDefinition] = attrs.field(factory=dict)
    nodes: list[str] = attrs.field(factory=list)
    """The names of the nodes that run in this process."""

    def add(self, definition: AnyDefinition) -> AnyDefinition | None:
        """Registers a definition; returns the one that it replaces: its code, loaded before."""
        body, taken = definition.body, self.by_name.get(definition.name)
        if taken is definition:
            return None
        if self.nodes:
            raise DefinitionError(body.name, f"defined {AFTER_START}")
        if taken is not None and not body.replaces(taken.body):
            places = f"{taken.body.place} and at {body.place}"
            raise DefinitionError(body.name, f"defined twice, at {places}: give one another name=")
        self.by_name[body.name] = definition
        return taken

    def named(self, name: str) -> AnyDefinition:
        """The definition of this name."""
        if definition := self.by_name.get(name):
            return definition
        problem = f"not defined in this program{did_you_mean(name, self.by_name)}"
        raise DefinitionError(name, problem)

    def of(self, instance: object) -> AnyDefinition:
        """The definition of an instance's class."""
        definition = definition_of(type(instance))
        known = definition and self.by_name.get(definition.name)
        if definition and known and (known is definition or known.body.replaces(definition.body)):
            return definition
        if callable(instance) or isinstance(instance, str):
            problem = "not a job: call enqueue() of its definition, or give an instance"
            raise DefinitionError(getattr(instance, "__name__", str(instance)), problem)
        problem = "no definition: decorate its class with @jobs.define"
        raise DefinitionError(type(instance).__name__, problem)

    def options(self, name: str) -> Options:
        """The options of a definition; the defaults, if there is none of this name."""
        return self.by_name[name].options if name in self.by_name else Options()

    def with_on_end(self) -> frozenset[str]:
        """The names of the definitions that have an `on_end`."""
        return frozenset(own.name for own in self if own.options.on_end is not None)

    def listing(self) -> list[dict[str, Any]]:
        """What nodes store of each definition."""
        rows = []
        for own in self:
            expires = own.options.expires
            length = None if isinstance(expires, datetime) else _store_length(expires)
            about = {"name": own.name, "expires": length, "hidden": own.body.hidden}
            limits = {"concurrency": own.options.concurrency, "rate": own.options.rate}
            rows.append({**own.options.columns, **about, **limits})
        return rows

    def __iter__(self) -> Iterator[AnyDefinition]:
        return iter(self.by_name.values())


_Async = Coroutine[Any, Any, R]
_Defined = TypeVar("_Defined", bound=type | AnyDefinition)


@attrs.frozen(eq=False, repr=False)
class Define:
    """Makes definitions: `@define`, `@define(queue="emails", …)`, or `define(f)`."""

    _add: Callable[[AnyDefinition], None] = lambda definition: None
    _name: str | None = None
    _options: Options = Options()
    _then: Callable[[Any], object] | None = None
    """Called with each definition or class, even if it was defined before."""
    __name__ = "define"

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        hints = typing.get_type_hints(DefinitionChoices, include_extras=True)
        lines = [f"    {o}: {getattr(hint, '__metadata__', ['?'])[0]}" for o, hint in hints.items()]
        about = inspect.cleandoc(type(self).__call__.__doc__ or "")
        return "\n".join((about, "", "Options:", *lines))

    @property
    def __signature__(self) -> inspect.Signature:
        *plain, _ = inspect.signature(type(self).__call__).parameters.values()
        return inspect.Signature(plain[1:] + options_in(DefinitionChoices))

    def __get__(self, instance: object, owner: type | None = None) -> Define:
        return self

    @overload
    def __call__(self, code: _Defined, /) -> _Defined: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(
        self, code: Callable[Concatenate[Context[Any], P], _Async[R]], /
    ) -> Definition[P, R, _Async[R]]: ...
    @overload
    def __call__(
        self, code: Callable[Concatenate[Context[Any], P], R], /
    ) -> Definition[P, R, R]: ...
    @overload
    def __call__(self, code: Callable[P, _Async[R]], /) -> Definition[P, R, _Async[R]]: ...
    @overload
    def __call__(self, code: Callable[P, R], /) -> Definition[P, R, R]: ...
    @overload
    def __call__(
        self, /, *, name: str | None = None, **options: Unpack[DefinitionChoices]
    ) -> Define: ...

    def __call__(self, code: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
        """Gives code a name and options, and registers it.

        A function becomes a `Definition`. An attrs class with `run()` stays what it is, and its
        instances can be enqueued. The same code that is loaded again, in a notebook or by
        `importlib.reload`, replaces its definition.

        Raises:
            DefinitionError: the code cannot be a definition, its name is taken, or a node runs.
            OptionError: an option is unknown, or its value cannot be used.
        """
        if code is None or name is not None or options:
            name = self._name if name is None else name
            changed = self._options.for_definition(typing.cast(DefinitionChoices, options))
            made = attrs.evolve(self, name=name, options=changed)
            return made if code is None else made(code)
        done = code
        if self._then is None or definition_of(code) is None:
            definition: AnyDefinition = Definition(self._body(code), self._options)
            self._add(definition)
            if isinstance(code, type):
                setattr(code, _DEFINITION_ATTRIBUTE, definition)
            else:
                done = definition
        if self._then is not None:
            self._then(done)
        return done

    def _body(self, code: Any) -> Body:
        if isinstance(code, Definition):
            raise DefinitionError(code.name, f"defined already, at {code.body.place}: register it")
        own_name = getattr(code, "__name__", "<lambda>")
        name = check_name(own_name if self._name is None else self._name, "name")
        if name == "<lambda>":
            raise DefinitionError(repr(code), "has no name: write a function, or give name=")
        if problem := _problem_of(code):
            raise DefinitionError(name, problem)
        function: Any = code if inspect.isfunction(code) else code.run
        function = inspect.unwrap(function).__code__
        place = f"{function.co_filename}:{function.co_firstlineno}"
        return Body(name, code, place, self._options)


def _problem_of(code: Any) -> str | None:
    """Why code cannot be a definition."""
    function = getattr(code, "run", None) if isinstance(code, type) else code
    if isinstance(code, type):
        if not attrs.has(code):
            return "not an attrs class: put @attrs.frozen below the @define"
        if not inspect.isfunction(function):
            return "has no run() method, which is what its jobs do"
        if extra := list(inspect.signature(function).parameters)[2:]:
            return f"run() takes at most a context; {extra[0]!r} should be a field"
    elif not inspect.isfunction(code):
        return f"expected a function or an attrs class, got {code!r}"
    else:
        for each in inspect.signature(code).parameters.values():
            if each.name == "self":
                return "a method, whose object cannot be stored: use a function, or a class"
            if each.name.startswith("__"):  # The payload's class could not store it.
                return f"takes {each}: use a name that does not begin with two underscores"
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                return f"takes {each}: use a parameter of type list or dict, which has a name"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "a generator: its body would never run"
    return None


define = Define()
"""Makes definitions that belong to no queue yet: `jobs.register(…)` binds them."""


################################################################################
# Execution
#
# One attempt of one job, from its payload to its report. Nothing here knows SQL or processes.
################################################################################


class Retry(Exception):
    """This attempt failed; try again, after *delay* if it is given (then even past
    the limit of attempts), else after the job's backoff."""

    def __init__(
        self, delay: Duration | None = None, reason: str = "the handler asked for a retry"
    ) -> None:
        super().__init__(delay, reason)
        self.delay = None if delay is None else duration(delay, "delay")

    def __str__(self) -> str:
        return str(self.args[1])


class Snooze(Exception):
    """Not now: run again after *delay*. This costs no attempt."""

    def __init__(self, delay: Duration) -> None:
        super().__init__(delay)
        self.delay = duration(delay, "delay")


class Fail(Exception):
    """The job failed for good: no attempts are left, whatever the limit."""


class Cancel(Exception):
    """The job need not be done any more."""

    def __init__(self, reason: str = "the handler cancelled it") -> None:
        super().__init__(reason)


Outcome = Retry | Snooze | Fail | Cancel
"""What a handler chooses by raising it, instead of returning or failing."""

AroundRun = Callable[[Context[Any], Callable[[], Any]], Any]
AroundEnqueue = Callable[
    [Sequence[Bound[Any]], Callable[[Sequence[Bound[Any]]], Sequence[Job[Any]]]],
    Sequence[Job[Any]],
]
RunLayer = TypeVar("RunLayer", bound=AroundRun)
EnqueueLayer = TypeVar("EnqueueLayer", bound=AroundEnqueue)


@attrs.define(eq=False, repr=False, slots=False)
class Middleware:
    """The functions around every run and every enqueue; the first is the outermost."""

    runs: tuple[AroundRun, ...] = ()
    enqueues: tuple[AroundEnqueue, ...] = ()
    nodes: list[str] = attrs.field(factory=list)
    """The names of the nodes that run in this process: they would not have what is added now."""

    def run(self, layer: RunLayer) -> RunLayer:
        """Puts a function `(context, call_next)` around every run; returns it unchanged.
        `call_next()` runs the inner layers and the handler, and returns the handler's value; what
        the function returns becomes the result. It may raise whatever a handler may, and need not
        call `call_next`. An `async def` has to await `call_next()`, also around sync handlers.

        Raises:
            OptionError: it cannot be called, or a node runs in this program.
        """
        self._check(layer)
        self.runs += (layer,)
        return layer

    def enqueue(self, layer: EnqueueLayer) -> EnqueueLayer:
        """Puts a function `(works, call_next)` around every enqueue; returns it unchanged.
        *works* are the bound jobs of one transaction; `call_next(works)` inserts them, or others
        made of them with `using`, and returns the jobs, for the function to return.

        Raises:
            OptionError: it cannot be called, or is async, or a node runs in this program.
        """
        self._check(layer)
        if _is_async(layer):
            raise OptionError("middleware", f"{layer!r} is async, which enqueue is not")
        self.enqueues += (layer,)
        return layer

    def _check(self, layer: object) -> None:
        if not callable(layer):
            raise OptionError("middleware", f"expected a function, got {layer!r}")
        if self.nodes:
            raise OptionError("middleware", f"{layer!r} was added {AFTER_START}")


def _is_async(layer: Any) -> bool:
    return inspect.iscoroutinefunction(layer) or inspect.iscoroutinefunction(type(layer).__call__)


class Report(NamedTuple):
    """How an attempt ended, in plain values that marshal takes: written by the worker, and settled
    together with the claimed job. The defaults mean: completed, without a result."""

    started_at: int = 0
    """0 if it never began."""
    finished_at: int = 0
    took: int = 0
    """Microseconds of running, by the monotonic clock."""
    state: State = "completed"
    """The new state of the job."""
    delay: int = 0
    """Microseconds until it is due again."""
    counted: bool = True
    """Whether the attempt was used up."""
    result: str | None = None
    kind: str = ""
    """As in `Failure`, "cancelled" or "unfit"; empty if nothing went wrong."""
    type: str = ""
    message: str = ""
    traceback: str = ""
    worker: int = 0
    """The worker's process id, added by its supervisor if there is more to report than times."""
    exit_code: int | None = None
    cpu: int | None = None
    """Microseconds."""
    memory: int | None = None
    output: str = ""

    @property
    def error(self) -> str | None:
        """Type and first line of what went wrong; or why there is no result."""
        first_line = self.message.partition("\n")[0]
        return f"{self.type}: {first_line}" if self.kind else first_line or None


GIVEN_BACK = Report(state="pending", counted=False)
UNFIT = Report(state="blocked", counted=False, kind="unfit")
Settlement = tuple[Claimed, Report]
"""An attempt that has ended. It is settled only while its claim still holds the job."""
Ended = tuple[tuple[Any, ...], tuple[Any, ...] | None]
"""Of a job that has ended: the rest of its row, after what was claimed, and of its last failure."""


def report_of_error(
    error: BaseException, claimed: Claimed, options: Options, rng: random.Random
) -> Report:
    """The report, without times, of an attempt whose handler raised, by the first that applies:
    the handler's `Outcome`, `fail_on`, `retry_on`, the limit and the backoff."""
    backoff = options.backoff
    if isinstance(error, Cancel):
        return Report(state="cancelled")
    if isinstance(error, Snooze):
        return Report(state="scheduled", delay=error.delay // MICROSECOND, counted=False)
    if isinstance(error, Retry):
        if error.delay is not None:
            return Report(state="retrying", delay=error.delay // MICROSECOND)
    elif isinstance(error, (Fail, *options.fail_on)):
        return Report(state="failed")
    elif options.retry_on is not None:
        matching = [kind for kind in options.retry_on if isinstance(error, kind)]
        if not matching:
            return Report(state="failed")
        if (policy := options.retry_on[matching[0]]) is not None:
            backoff, claimed = policy, claimed._replace(backoff=CUSTOM)
    return retry_or_fail(claimed, backoff, rng)


def retry_or_fail(claimed: Claimed, defined: Backoff, rng: random.Random) -> Report:
    """The report, without times, of an attempt that failed: a retry, if attempts are left."""
    if claimed.max_attempts is not None and claimed.attempt >= claimed.max_attempts:
        return Report(state="failed")
    try:
        wait = backoff_delay(load_backoff(claimed.backoff, defined), claimed.attempt, rng)
    except BaseException:  # After a crash, this runs in the supervisor, which has to go on.
        logger.exception("the backoff of %r failed; the default is used", claimed.name)
        wait = backoff_delay(DEFAULT_BACKOFF, claimed.attempt, rng)
    return Report(state="retrying", delay=wait // MICROSECOND)


ReportProgress = Callable[[Claimed, Reported], None]
EXECUTOR: contextvars.ContextVar[Executor] = contextvars.ContextVar("EXECUTOR")
"""What runs the jobs of this thread, one at a time. Not set in a worker's event loop."""


@attrs.define(eq=False, repr=False, slots=False)
class Executor:
    """Runs attempts with the state of one worker."""

    registry: Registry
    state: Any = None
    clock: Clock = system_clock
    source: LiteJobs = NOWHERE
    rng: random.Random = attrs.field(factory=random.Random)
    around: tuple[AroundRun, ...] = ()
    """The middleware of the program."""
    noticed: set[tuple[Any, ...]] = attrs.field(factory=set)
    """The attempts, by id and claim, whose handler has seen that it was asked to end."""
    forked: bool = False
    """Whether this process was forked by a job."""
    running: Claimed | None = None
    """The job that `run` runs, or has run last."""
    _runner: Any = None
    """An asyncio.Runner, made for the first coroutine."""

    def __attrs_post_init__(self) -> None:
        FORK_HOOKS[self] = Executor._set_forked

    def _set_forked(self) -> None:
        self.forked = True

    def run(
        self,
        claimed: Claimed,
        asked: StopCheck = lambda: None,
        progress: ReportProgress = lambda claimed, progress: None,
        ended: Ended | None = None,
    ) -> Report:
        """Runs one attempt, or the `on_end` of an *ended* job, with its own context variables."""
        if ended is None:
            attempt = self._attempt(claimed, asked, progress, self._compose, self._run_blocking)
        else:
            attempt = self._call_on_end(claimed, asked, ended, self._run_blocking)
        try:
            self.running = claimed
            contextvars.copy_context().run(attempt.send, None)
        except StopIteration as ended:
            report: Report = ended.value
            return report
        raise AssertionError("an attempt without an event loop was suspended")

    async def _run_blocking(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._run_coroutine(coroutine)

    async def run_async(
        self,
        claimed: Claimed,
        asked: StopCheck,
        progress: ReportProgress = lambda claimed, progress: None,
        ended: Ended | None = None,
    ) -> Report:
        """The same for a coroutine, in the running event loop."""
        if ended is not None:
            return await self._call_on_end(claimed, asked, ended, _identity)
        return await self._attempt(claimed, asked, progress, compose_async, _identity)

    async def _attempt(
        self,
        claimed: Claimed,
        asked: StopCheck,
        progress: ReportProgress,
        compose: Callable[..., Any],
        wait: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
    ) -> Report:
        """Runs one attempt, and suspends only where *wait* does."""
        started_at, began = self.clock(), time.perf_counter_ns()
        fits = False  # Whether there is a definition, and the payload fits it.

        def make_context() -> Context[Any]:
            def why_asked() -> Reason | None:
                if reason := asked():
                    self.noticed.add(claimed[:2])
                return reason

            now, timeout = started_at, claimed.timeout
            job: Job[Any] = Job(*claimed, state="running", started_at=now, source=self.source)
            deadline = None if timeout is None else from_micros(now + timeout)
            report = functools.partial(progress, claimed)
            return Context(job, self.state, deadline, why_asked, report)

        try:
            definition = self.registry.named(claimed.name)
            body = definition.body
            payload, (_, codec, call) = body.decode(claimed.payload), body.signature
            fits = True
            if self.around:
                context = make_context()
                handler = functools.partial(call, payload, lambda: context)
                value = compose(self.around, context, handler)
            else:
                value = call(payload, make_context)
            if value is not None and inspect.iscoroutine(value):
                value = await wait(value)
            given_back = bool(self.noticed) and self._ended_by_stop(claimed, asked)
            result, lost = (None, "") if given_back else _result(codec, value)
            if self.forked:
                self._exit_fork(claimed)
            took = (time.perf_counter_ns() - began) // 1000
            report = Report(started_at, self.clock(), took, result=result, message=lost)
            if given_back:
                return report._replace(state="pending", counted=False)
            if definition.options.on_success and asked() not in ("timeout", "cancel"):
                await self._call("on_success", claimed, wait, lambda: (make_context(), value))
            return report
        except BaseException as error:
            if self.forked:
                self._exit_fork(claimed, error)
            took = (time.perf_counter_ns() - began) // 1000
            unfit = not fits and issubclass(type(error), LitejobsError)
            report = self._failed(claimed, error, unfit, asked)._replace(
                started_at=0 if unfit else started_at, finished_at=self.clock(), took=took
            )
            hook, raised = self.registry.options(claimed.name).on_failure, error
            # The supervisor decides about jobs that were asked to end, unless the node stops.
            if hook is not None and report.state == "failed" and asked() in (None, "stop"):
                await self._call("on_failure", claimed, wait, lambda: (make_context(), raised))
            return report

    async def _call_on_end(
        self, claimed: Claimed, asked: StopCheck, ended: Ended, wait: Callable[..., Awaitable[Any]]
    ) -> Report:
        began = time.perf_counter_ns()

        def arguments() -> tuple[Context[Any], Failure | None]:
            rest, failure = ended
            job: Job[Any] = Job(*claimed, *rest, source=self.source)
            context = Context(job, self.state, None, asked)
            return context, None if failure is None else Failure(*failure)

        await self._call("on_end", claimed, wait, arguments)
        return GIVEN_BACK._replace(took=(time.perf_counter_ns() - began) // 1000)

    async def _call(
        self,
        hook: str,
        claimed: Claimed,
        wait: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
        arguments: Callable[[], tuple[Any, ...]],
    ) -> None:
        """Calls a function that a definition has for what comes after; logs what it raises."""
        try:
            value = getattr(self.registry.options(claimed.name), hook)(*arguments())
            if inspect.iscoroutine(value):
                await wait(value)
            if self.forked:
                self._exit_fork(claimed)
        except BaseException as error:
            if self.forked:
                self._exit_fork(claimed, error)
            logger.exception("%s failed for job %d (%s)", hook, claimed.id, claimed.name)

    def _failed(
        self, claimed: Claimed, error: BaseException, unfit: bool, asked: StopCheck
    ) -> Report:
        """The report, without times, after an error in the handler, or about an *unfit* payload."""
        options = self.registry.options(claimed.name)
        given_back = self._ended_by_stop(claimed, asked, error)
        if unfit:
            if error.__cause__ is not None:  # Raised by `decode` or `upgrade`.
                text = "the payload of job %d (%s) cannot be read"
                logger.warning(text, claimed.id, claimed.name, exc_info=error.__cause__)
            name, message, _ = describe(error)
            return UNFIT._replace(type=name, message=message)
        try:
            if given_back:
                report = GIVEN_BACK
                if isinstance(error, Exception):  # Neither Interrupted nor a CancelledError.
                    problem = "job %d (%s) is given back; as its node stops, it raised %s: %s"
                    logger.info(problem, claimed.id, claimed.name, *describe(error)[:2])
            else:
                report = report_of_error(error, claimed, options, self.rng)
            kind = "cancelled" if isinstance(error, Cancel) else "exception"
        except BaseException as another:  # isinstance() can run code of the error's class.
            report, error = retry_or_fail(claimed, options.backoff, self.rng), another
            kind = "exception"
        if not report.counted:
            return report
        name, message, trace = describe(error)
        return report._replace(kind=kind, type=name, message=message, traceback=trace)

    def _ended_by_stop(
        self, claimed: Claimed, asked: StopCheck, error: BaseException | None = None
    ) -> bool:
        """Whether its handler ended because it had seen that the node stops."""
        noticed = claimed[:2] in self.noticed
        self.noticed.discard(claimed[:2])
        return noticed and asked() == "stop" and not issubclass(type(error), Outcome)

    def _exit_fork(self, claimed: Claimed, error: BaseException | None = None) -> NoReturn:
        """Ends a process that the job has forked: it would report the outcome a second time."""
        if isinstance(error, SystemExit):
            os._exit(error.code if isinstance(error.code, int) else bool(error.code))
        problem = "a process that job %d (%s) forked left the handler: end it with os._exit()"
        logger.critical(problem, claimed.id, claimed.name, exc_info=error)
        os._exit(1)

    def _compose(
        self, layers: Sequence[AroundRun], context: Context[Any], handler: Callable[[], Any]
    ) -> Any:
        """Runs a handler inside *layers*, the first outermost; the value may be a coroutine."""
        if not layers:
            return handler()
        if _is_async(layers[0]):
            return compose_async(layers, context, handler)

        def call_next() -> Any:
            value = self._compose(layers[1:], context, handler)
            return self._run_coroutine(value) if inspect.iscoroutine(value) else value

        return layers[0](context, call_next)

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._runner is None:
            import asyncio  # Here, since it takes a fifth of a worker's start.

            self._runner = asyncio.Runner()
        run = functools.partial(self._runner.run, context=contextvars.copy_context())
        return _outside_running_loops(run, coroutine)

    def close(self) -> None:
        """Ends the event loop of async handlers, if there was any."""
        if self._runner is not None:
            _outside_running_loops(self._runner.close)


async def compose_async(
    layers: Sequence[AroundRun], context: Context[Any], handler: Callable[[], Any]
) -> Any:
    """`Executor._compose` in a running event loop. A sync layer runs in its own thread, where it
    may wait for the layers inside; context variables reach the thread and those layers."""
    import asyncio

    if not layers:
        value = handler()
        return await value if inspect.isawaitable(value) else value
    inside = functools.partial(compose_async, layers[1:], context, handler)
    if _is_async(layers[0]):
        return await layers[0](context, inside)
    loop = asyncio.get_running_loop()
    futures = []

    def call_next() -> Any:
        futures.append(asyncio.run_coroutine_threadsafe(inside(), loop))
        return futures[-1].result()

    try:
        return await asyncio.to_thread(layers[0], context, call_next)
    finally:
        for future in futures:  # If this task was cancelled; otherwise they are done.
            future.cancel()


def _outside_running_loops(act: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function that runs an event loop: in another thread, if this one runs a loop."""
    from asyncio import _get_running_loop

    if _get_running_loop() is None:
        return act(*arguments)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(act, *arguments).result()


def _result(codec: Codec[Any] | None, value: object) -> tuple[str | None, str]:
    """The JSON text of what a handler returned; or, if no return type is declared, why not."""
    if codec is None:
        return None, ""
    try:
        text = codec.encode(value)
    except CodecError as unfit:
        if codec.kind is not Any:
            raise Fail(f"its result cannot be kept: {unfit}") from None
        try:
            text = codec.encode(_without_tuples(value))
        except Exception:  # As of a list that contains itself.
            problem = storable(" ".join(str(unfit).split())[:PROBLEM_LIMIT])
            advice = "annotate the return type, or return None"
            return None, f"its result was not kept: {problem}; {advice}"
    if excess := excess_of(text):
        if codec.kind is not Any:
            raise Fail(f"its result has {excess}; return a path instead")
        return None, f"its result was not kept: it has {excess}; return a path instead"
    return text, ""


def _without_tuples(value: Any) -> Any:
    if type(value) is list or isinstance(value, tuple):
        return [*map(_without_tuples, value)]
    if type(value) is dict:
        return {key: _without_tuples(each) for key, each in value.items()}
    return value


TEXT_LIMIT, TRACEBACK_LIMIT = 2_000, 16_000
"""Characters: a message is cut at its end, a traceback at its beginning."""


def describe(error: BaseException) -> tuple[str, str, str]:
    """Type, message and traceback of an error, truncated; also if its `__str__` raises."""

    def trace() -> str:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        lines = traceback.format_exception(type(error), error, frames)
        return "".join(lines)[-TRACEBACK_LIMIT:]

    name = described(lambda: type(error).__name__, "(its type cannot be shown)")
    message = described(lambda: str(error)[:TEXT_LIMIT], "(its message cannot be shown)")
    return name, message, described(trace, f"{name}: (its traceback cannot be shown)")


PROGRESS_INTERVAL = 0.1
"""Seconds between two reports of a job's progress."""


@attrs.define(eq=False, repr=False, slots=False)
class ProgressReporter:
    """Forwards progress and meta of one attempt at most ten times a second. Thread-safe."""

    _forward: Callable[[str | None, str | None], None]
    _progress: Progress | Callable[[], Progress] | None = None
    _meta: dict[str, Any] | None = None
    _pending: bool = False
    _quiet_until: float = 0.0
    _timer: threading.Timer | None = None
    _closed: bool = False
    _lock: threading.RLock = attrs.field(factory=threading.RLock)

    def report(self, what: Reported) -> None:
        """Forwards it now or soon."""
        with self._lock:
            if self._closed:
                return  # From a thread that outlived the attempt.
            if isinstance(what, dict):
                self._meta = {**(self._meta or {}), **what}
            else:
                self._progress = what
            self._pending = True
            if self._timer is not None:
                return
            if (wait := self._quiet_until - time.monotonic()) <= 0:
                self._flush()
                return
            self._timer = threading.Timer(wait, self._flush)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        """Forwards what was held back, and ignores later reports."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            self._timer = None
            if self._pending:
                # Both, so that a report may replace one that is not stored yet.
                latest = self._progress() if callable(self._progress) else self._progress
                progress = None if latest is None else store_progress(latest)
                self._forward(progress, _store_json(self._meta))
                self._pending = False
                self._quiet_until = time.monotonic() + PROGRESS_INTERVAL


################################################################################
# Tracing
#
# Two middleware functions that make OpenTelemetry spans (an optional extra). One call of enqueue
# is a producer span, whose context travels in the headers of its jobs; each attempt is a consumer
# span, the root of its own trace, with a link to the producer span.
################################################################################

_OUTCOMES: Mapping[type[BaseException], str] = {
    Retry: "retry",
    Snooze: "snoozed",
    Fail: "failed",
    Cancel: "cancelled",
    BaseException: "error",
}


def trace_enqueue(
    works: Sequence[Bound[Any]], call_next: Callable[[Sequence[Bound[Any]]], Sequence[Job[Any]]]
) -> Sequence[Job[Any]]:
    """Middleware around enqueue: a producer span, whose context goes into the jobs' headers."""
    from opentelemetry import propagate, trace  # type: ignore[import-not-found, unused-ignore]

    attributes = _attributes("send", "enqueue", {work.options.queue for work in works})
    names = {work.name for work in works}
    if len(works) > 1:
        attributes["messaging.batch.message_count"] = len(works)
    with trace.get_tracer("litejobs", __version__).start_as_current_span(
        f"enqueue {names.pop() if len(names) == 1 else 'jobs'}",
        kind=trace.SpanKind.PRODUCER,
        attributes=attributes,
    ) as span:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        jobs = call_next(
            [work.using(headers={**work.options.headers, **carrier}) for work in works]
        )
        if len(jobs) == 1:
            span.set_attribute("messaging.message.id", str(jobs[0].id))
        return jobs


def trace_run(context: Context[Any], call_next: Callable[[], T]) -> T:
    """Middleware around a run: a consumer span, linked to the span that enqueued the job."""
    from opentelemetry import context as otel_context
    from opentelemetry import propagate, trace

    job = context.job
    producer = trace.get_current_span(propagate.extract(job.headers)).get_span_context()
    with trace.get_tracer("litejobs", __version__).start_as_current_span(
        job.name,
        context=otel_context.Context(),
        kind=trace.SpanKind.CONSUMER,
        links=[trace.Link(producer)] if producer.is_valid else [],
        attributes=_attributes("process", "run", {job.queue})
        | {
            "messaging.message.id": str(job.id),
            "litejobs.definition": job.name,
            "litejobs.attempt": job.attempt,
        },
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            value = call_next()
        except BaseException as error:
            outcome = next(word for kind, word in _OUTCOMES.items() if isinstance(error, kind))
            span.set_attribute("litejobs.outcome", outcome)
            if not isinstance(error, Snooze | Cancel):
                span.set_attribute("error.type", type(error).__qualname__)
                span.record_exception(error)
                span.set_status(trace.Status(trace.StatusCode.ERROR, describe(error)[1]))
            raise
        span.set_attribute("litejobs.outcome", "completed")
        return value


def _attributes(kind: str, name: str, queues: set[str]) -> dict[str, Any]:
    """Span attributes by the semantic conventions for messaging."""
    destination = {"messaging.destination.name": next(iter(queues))} if len(queues) == 1 else {}
    operation = {"messaging.operation.type": kind, "messaging.operation.name": name}
    return {"messaging.system": "litejobs", **operation, **destination}


def check_tracing() -> None:
    """Refuses tracing if OpenTelemetry cannot be imported."""
    try:
        importlib.import_module("opentelemetry.trace")
    except ImportError as error:
        problem = f"OpenTelemetry cannot be imported ({error}): pip install litejobs[otel]"
        raise OptionError("trace", problem) from None


################################################################################
# Schema
#
# The tables, indexes and triggers in the file; the sections below say what they hold. Opening a
# file creates or upgrades them, and refuses a file in which something else has one of their names.
################################################################################

_COUNT, _MOMENT = (0, 2**31 - 1), (0, 253_402_300_799_999_999)
_LENGTH = (0, MAX_DURATION // MICROSECOND)
BOUNDS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "litejobs_job": {
        "id": (1, 2**53), "priority": (-(2**31), 2**31 - 1), "run_at": _MOMENT, "attempt": _COUNT,
        "max_attempts": _COUNT, "timeout": _LENGTH, "claim": (0, 2**53), "lost": _COUNT,
        "cancel_at": _MOMENT, "enqueued_at": _MOMENT, "started_at": _MOMENT,
        "finished_at": _MOMENT, "prune_at": _MOMENT, "key_limit": _COUNT,
        "unique_until": _MOMENT, "expires_at": _MOMENT,
    },
    "litejobs_queue": {
        "concurrency": _COUNT, "rate": (5e-324, 1.7e308), "burst": _COUNT, "weight": (0.001, 1000),
        "ageing": _LENGTH, "max_attempts": _COUNT, "timeout": _LENGTH, "tokens": (-1e300, 1.7e308),
        "filled_at": _MOMENT,
    },
}  # fmt: skip
"""The ranges of numbers that other programs may write. Part of the schema; never change them."""


COUNTED = "state <> 'pending' AND state <> 'running'"
KEYED = "key IS NOT NULL AND unfit_at IS NULL AND state IN ('pending', 'running', 'blocked')"
HOLDS = """
    unique_key IS NOT NULL AND (
        unique_scope = 'exists'
        OR state <> 'completed' AND state <> 'failed' AND state <> 'cancelled'
            AND (unique_scope = 'active' OR claim = 0)
    )
"""
"""The terms of partial indexes: jobs that are counted, that wait for or run with a key, that hold
a unique key. A statement that is to use such an index repeats its term."""
_DEFINED = ",\n        ".join(
    f"{option} {'INTEGER' if option in BOUNDS['litejobs_job'] else 'TEXT'}"
    f"{' NOT NULL' if option in ('queue', 'node', 'priority') else ''}"
    for option in STORED
)
_FROM_DEFINITION = ", ".join(
    f"{option} = coalesce(NEW.{option}, known.{option})"
    for option in STORED
    if option not in ("queue", "node", "priority", "max_attempts")
)
COMPLETION = f"""
    SET
        enqueued_at  = coalesce(NEW.enqueued_at, time.now),
        run_at       = coalesce(NEW.run_at, time.now),
        state        = CASE WHEN NEW.state <> 'pending' THEN NEW.state
                            WHEN NEW.run_at > time.now THEN 'scheduled'
                            WHEN NEW.key IS NOT NULL AND coalesce(NEW.key_limit, 1) <= (
                                SELECT count(*) FROM litejobs_job
                                WHERE key = NEW.key AND id <> NEW.id
                                    AND state IN ('pending', 'running')
                            ) THEN 'blocked'
                            ELSE 'pending' END,
        queue        = coalesce(NEW.queue, known.queue, 'default'),
        node         = coalesce(nullif(NEW.node, ''), known.node, ''),
        priority     = coalesce(NEW.priority, known.priority, 0),
        max_attempts = CASE WHEN NEW.max_attempts IS NULL AND known.name IS NOT NULL
                            THEN known.max_attempts ELSE coalesce(NEW.max_attempts, 5) END,
        {_FROM_DEFINITION},
        expires_at   = coalesce(NEW.expires_at, coalesce(NEW.run_at, time.now) + known.expires)
    FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER) AS now) AS time
        LEFT JOIN litejobs_definition AS known ON known.name =
"""
"""Ends an UPDATE that completes a row of which only some columns were given."""
SCHEMA = f"""
    CREATE TABLE litejobs_meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID;

    CREATE TABLE litejobs_job (
        id           INTEGER PRIMARY KEY AUTOINCREMENT,
        name         TEXT    NOT NULL,
        queue        TEXT,                               -- NULL when inserted: as defined
        node         TEXT    NOT NULL DEFAULT '',        -- the only one to run it; '': any
        priority     INTEGER,                            -- higher runs first
        state        TEXT    NOT NULL DEFAULT 'pending' CHECK (
                         -- Compared singly, since IN builds its list anew for each row.
                         state = 'pending' OR state = 'running' OR state = 'completed' OR state IN
                         ('scheduled', 'retrying', 'failed', 'cancelled', 'paused', 'blocked')),
        payload      ANY     NOT NULL DEFAULT '{{}}',      -- JSON text
        run_at       INTEGER,                            -- all times: microseconds, UTC
        attempt      INTEGER NOT NULL DEFAULT 0,
        max_attempts INTEGER,                            -- NULL: for ever
        timeout      INTEGER,                            -- microseconds
        backoff      TEXT,                               -- JSON; NULL: the default
        retention    TEXT,                               -- JSON; NULL: the default
        claim        INTEGER NOT NULL DEFAULT 0,         -- fencing token: rises with each claim
        lost         INTEGER NOT NULL DEFAULT 0,         -- how often its whole node died
        holder       INTEGER,                            -- the node that runs it
        cancel_at    INTEGER,                            -- when a running job was cancelled
        enqueued_at  INTEGER,
        started_at   INTEGER,
        finished_at  INTEGER,
        prune_at     INTEGER,
        result       TEXT,                               -- JSON
        error        TEXT,
        headers      TEXT,                               -- JSON: set by middleware
        key          TEXT,                               -- jobs with one key are limited:
        key_limit    INTEGER,                            -- more than these are blocked
        unique_key   TEXT,
        unique_scope TEXT,                               -- queued, active or exists
        unique_until INTEGER,
        expires_at   INTEGER,                            -- cancelled if not started by then
        progress     TEXT,                               -- JSON: done, total, note
        schedule     TEXT,                               -- the schedule that enqueued it
        grace        INTEGER,                            -- microseconds; NULL: as defined
        tags         TEXT,                               -- JSON: a list of texts
        meta         TEXT,                               -- JSON: an object
        unfit_at     INTEGER,                            -- when its payload did not fit; NULL: it
                                                         -- is blocked by its key, if at all
        refused      TEXT,                               -- fingerprints that it did not fit
        awaited_by   INTEGER                             -- the running job that waits for it
    ) STRICT;

    CREATE INDEX litejobs_ready ON litejobs_job (queue, name, node, priority DESC, run_at)
        WHERE state = 'pending';
    CREATE INDEX litejobs_due ON litejobs_job (state, run_at)
        WHERE state IN ('scheduled', 'retrying');
    CREATE INDEX litejobs_asked ON litejobs_job (holder) WHERE cancel_at IS NOT NULL;
    CREATE INDEX litejobs_counted ON litejobs_job (queue, name, state) WHERE {COUNTED};
    CREATE INDEX litejobs_prune ON litejobs_job (prune_at) WHERE prune_at IS NOT NULL;
    -- A key is held by the state of its job, so that nothing is left to release.
    CREATE UNIQUE INDEX litejobs_unique ON litejobs_job (unique_key) WHERE {HOLDS};
    CREATE INDEX litejobs_key ON litejobs_job (state, key, priority DESC, run_at) WHERE {KEYED};
    CREATE INDEX litejobs_expiry ON litejobs_job (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX litejobs_unfit ON litejobs_job (name, refused) WHERE unfit_at IS NOT NULL;
    CREATE INDEX litejobs_tags ON litejobs_job (tags) WHERE tags IS NOT NULL;
    CREATE INDEX litejobs_held ON litejobs_job (queue, holder) WHERE state = 'running';

    CREATE TABLE litejobs_count (                        -- all jobs but pending and running ones
        state        TEXT NOT NULL,
        queue        TEXT NOT NULL,
        name         TEXT NOT NULL,
        number       INTEGER NOT NULL,
        PRIMARY KEY (state, queue, name)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE litejobs_attempt (                      -- the failed ones
        id           INTEGER PRIMARY KEY,
        job          INTEGER NOT NULL,
        attempt      INTEGER NOT NULL,
        kind         TEXT    NOT NULL,
        type         TEXT    NOT NULL,
        message      TEXT    NOT NULL,
        traceback    TEXT    NOT NULL,
        worker       INTEGER NOT NULL,                   -- a process id
        started_at   INTEGER NOT NULL,
        finished_at  INTEGER NOT NULL,
        exit_code    INTEGER,
        cpu          INTEGER,                            -- microseconds
        memory       INTEGER,                            -- bytes, at the peak
        output       TEXT,                               -- the last lines
        omitted      INTEGER                             -- earlier ones that are not kept
    ) STRICT;
    CREATE INDEX litejobs_attempt_job ON litejobs_attempt (job);

    CREATE TABLE litejobs_definition (                   -- as nodes last stored them
        name         TEXT PRIMARY KEY,
        {_DEFINED},
        expires      INTEGER,
        concurrency  INTEGER,                            -- how many run at a time
        rate         TEXT,                               -- how many may start: 10/min
        tokens       REAL,                               -- how many could start,
        filled_at    INTEGER                             -- at this time
    ) STRICT;

    CREATE TABLE litejobs_node (
        id           INTEGER PRIMARY KEY AUTOINCREMENT,
        name         TEXT    NOT NULL,
        pid          INTEGER NOT NULL,
        port         INTEGER NOT NULL,                   -- a datagram there wakes it
        workers      INTEGER NOT NULL,
        queues       TEXT,                               -- JSON; NULL: all
        started_at   INTEGER NOT NULL,
        names        TEXT,                               -- JSON: fingerprints of definitions
        recall       INTEGER                             -- rises when it is to take jobs back
    ) STRICT;

    CREATE TABLE litejobs_queue (                             -- only of queues with settings
        name         TEXT PRIMARY KEY,
        paused       INTEGER NOT NULL DEFAULT 0,
        concurrency  INTEGER,                                 -- how many run at a time
        rate         REAL,                                    -- how many start in a second
        burst        INTEGER,                                 -- how many at once after idling
        weight       REAL,                                    -- the share among equal priorities
        ageing       INTEGER,                                 -- microseconds to priority + 1
        max_attempts INTEGER,                                 -- defaults; 0: for ever
        timeout      INTEGER,
        backoff      TEXT,
        tokens       REAL,                                    -- how many could start,
        filled_at    INTEGER,                                 -- at this time
        rate_given   TEXT                                     -- the rate as text: 10/min
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE litejobs_schedule (
        name         TEXT PRIMARY KEY,
        definition   TEXT    NOT NULL,
        payload      ANY     NOT NULL,
        options      TEXT    NOT NULL,                        -- JSON: as of a job
        expression   TEXT    NOT NULL,
        timezone     TEXT    NOT NULL,
        misfire      TEXT    NOT NULL,
        grace        INTEGER NOT NULL,
        overlap      TEXT    NOT NULL,
        jitter       INTEGER NOT NULL,
        start_at     INTEGER,
        end_at       INTEGER,
        origin       TEXT,                                    -- the module; NULL: made at run time
        paused       INTEGER NOT NULL DEFAULT 0,
        next_at      INTEGER,                                 -- NULL: never again
        last_at      INTEGER,
        last_job     INTEGER,
        covered      TEXT NOT NULL DEFAULT '[]'               -- JSON: periods that were handled
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX litejobs_tick ON litejobs_schedule (next_at)
        WHERE next_at IS NOT NULL AND NOT paused;

    CREATE TABLE litejobs_metric (
        span         INTEGER NOT NULL,                        -- seconds
        time         INTEGER NOT NULL,                        -- when the span began
        queue        TEXT    NOT NULL,
        name         TEXT    NOT NULL,
        measure      TEXT    NOT NULL,                        -- a state; waiting or running
        bucket       INTEGER NOT NULL,                        -- of a duration; 0 for a state
        number       INTEGER NOT NULL,
        PRIMARY KEY (span, time, queue, name, measure, bucket)
    ) STRICT, WITHOUT ROWID;
"""
SCHEMA_VERSION = 5
"""Rises with every change of the schema; older files then get the columns that they lack."""
FORMER_INDEXES = ("litejobs_shelf",)
"""Those that older files have, and lose."""


def _triggers() -> Iterator[tuple[str, str]]:
    """The name of each trigger and the rest of its statement. They serve other programs: they
    complete an INSERT, count changes, and refuse numbers out of bounds and an UPDATE to NULL.
    (litejobs' own connection fires no triggers, and counts once for a whole transaction.)"""
    added, removed = (
        f"""
            INSERT INTO litejobs_count (state, queue, name, number)
                SELECT {job}.state, {job}.queue, {job}.name, {change} 1
                WHERE {job}.queue IS NOT NULL AND {job}.state NOT IN ('pending', 'running')
                ON CONFLICT DO UPDATE SET number = number {change} 1;
        """
        for job, change in (("NEW", "+"), ("OLD", "-"))
    )
    changed = "AFTER UPDATE OF state, queue, name ON litejobs_job"
    forget = "DELETE FROM litejobs_attempt WHERE job = OLD.id;"
    yield "litejobs_added", f"AFTER INSERT ON litejobs_job BEGIN {added} END"
    yield "litejobs_changed", f"{changed} BEGIN {removed} {added} END"
    yield "litejobs_forget", f"AFTER DELETE ON litejobs_job BEGIN {forget} {removed} END"
    for table, columns in BOUNDS.items():
        cases = "".join(
            f" WHEN NEW.{column} NOT BETWEEN {low} AND {high}"
            f" THEN RAISE(ABORT, 'litejobs: {column} must be from {low} to {high}')"
            for column, (low, high) in columns.items()
        )
        for verb in ("insert", "update"):
            yield f"{table}_{verb}", f"AFTER {verb} ON {table} BEGIN SELECT CASE{cases} END; END"
    needed = "queue", "priority", "run_at", "enqueued_at"
    cases = "".join(
        f" WHEN NEW.{column} IS NULL THEN RAISE(ABORT, 'litejobs: {column} cannot be NULL')"
        for column in needed
    )
    changed = f"AFTER UPDATE OF {', '.join(needed)} ON litejobs_job"
    yield "litejobs_complete", f"{changed} BEGIN SELECT CASE{cases} END; END"
    not_json = "".join(
        f" WHEN {term} THEN RAISE(ABORT, 'litejobs: {column} is not JSON')"
        for column, term in (
            ("payload", "typeof(NEW.payload) <> 'text' OR NOT json_valid(NEW.payload)"),
            ("retention", "NEW.retention IS NOT NULL AND NOT json_valid(NEW.retention)"),
            ("backoff", "NEW.backoff <> 'custom' AND NOT json_valid(NEW.backoff)"),
            ("headers", "NEW.headers IS NOT NULL AND NOT json_valid(NEW.headers)"),
            ("meta", "NEW.meta IS NOT NULL AND NOT json_valid(NEW.meta)"),
            ("tags", "NEW.tags IS NOT NULL AND NOT json_valid(NEW.tags)"),
        )
    )
    not_json += """
        WHEN json_type(NEW.meta) <> 'object'
            THEN RAISE(ABORT, 'litejobs: meta is not a JSON object')
        WHEN json_type(NEW.tags) <> 'array'
            OR EXISTS (SELECT 1 FROM json_each(NEW.tags) WHERE type <> 'text')
            THEN RAISE(ABORT, 'litejobs: tags is not a JSON array of texts')
    """
    low, high = _MOMENT
    yield (
        "litejobs_enqueue",
        f"""AFTER INSERT ON litejobs_job
        WHEN NEW.enqueued_at IS NULL OR NEW.queue IS NULL OR NEW.priority IS NULL
            OR NEW.run_at IS NULL
        BEGIN
            SELECT CASE{not_json} WHEN NEW.run_at NOT BETWEEN {low} AND {high}
                THEN RAISE(ABORT, 'litejobs: run_at is not in microseconds since 1970') END;
            UPDATE litejobs_job {COMPLETION} NEW.name WHERE id = NEW.id;
        END""",
    )


@functools.cache
def _expected_schema() -> Mapping[tuple[str, str], str]:
    """The statements that create our tables, indexes and triggers, by kind and name."""
    made = re.findall(r"(CREATE (?:UNIQUE )?(TABLE|INDEX) (\w+)[\s\S]*?);\n", SCHEMA)
    expected = {(kind.lower(), name): statement for statement, kind, name in made}
    triggers = {("trigger", name): f"CREATE TRIGGER {name} {rest}" for name, rest in _triggers()}
    return expected | triggers


def schema_version(connection: Any, path: str) -> int:
    """The version of the schema, 0 if there is none; refuses one that cannot be used."""
    exists = "SELECT 1 FROM sqlite_schema WHERE name = 'litejobs_meta'"
    if connection.execute(exists).fetchone() is None:
        return 0
    row = connection.execute("SELECT value FROM litejobs_meta WHERE name = 'schema'").fetchone()
    version = row[0] if row and isinstance(row[0], int) else 0
    if version in (1, 2):
        problem = "written by a litejobs from before its first release: start with a new file"
        raise FileError(path, problem)
    if version > SCHEMA_VERSION:
        problem = f"written by a newer litejobs (schema {version}, this one knows {SCHEMA_VERSION})"
        raise FileError(path, f"{problem}: upgrade litejobs")
    return version


def update_schema(connection: Any, path: str) -> None:
    """Creates what an older schema lacks, in the caller's transaction. (One statement at a time:
    the standard sqlite3 commits before it runs a script.)"""
    if schema_version(connection, path) == SCHEMA_VERSION:
        return
    found = dict(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())
    for (kind, name), statement in _expected_schema().items():
        if kind != "table" and found.get(name, statement) != statement:
            connection.execute(f"DROP {kind} {name}")
            del found[name]
        if name not in found:
            connection.execute(statement)
        elif kind == "table":
            there = {row[1] for row in connection.execute(f"PRAGMA table_info({name})").fetchall()}
            columns = re.findall(r"^ {8}([a-z_]+) +([A-Z].*?),? *(?:--.*)?$", statement, re.M)
            for column, rest in columns:
                if column not in there:
                    connection.execute(f"ALTER TABLE {name} ADD COLUMN {column} {rest}")
    for name in FORMER_INDEXES:
        connection.execute(f"DROP INDEX IF EXISTS {name}")
    set_version = "INSERT OR REPLACE INTO litejobs_meta (name, value) VALUES ('schema', ?)"
    connection.execute(set_version, (SCHEMA_VERSION,))


def _check_schema(connection: apsw.Connection, path: str) -> int:
    """The version of the schema. Refuses a file in which something else has one of our names: a
    view could run for ever, and a table without our columns and constraints may hold anything.
    (`doctor` reports what is missing.)"""
    objects = connection.execute("""
        SELECT type, name, sql FROM sqlite_schema
        WHERE name LIKE 'litejobs\\_%' ESCAPE '\\'           -- In lower or upper case.
        ORDER BY name <> 'litejobs_meta'
    """)
    version, outdated = 0, False
    for kind, name, sql in objects:
        expected = _expected_schema().get((kind, name))
        if outdated and kind == "index" and name in FORMER_INDEXES:
            continue
        if expected is None or not (sql == expected or _is_ours(kind, sql, expected, outdated)):
            problem = f"its {str(name)!r} is not as litejobs made it"
            raise FileError(path, f"{problem}: name another file, or restore a backup")
        if name == "litejobs_meta":
            # This refuses a newer schema before anything in it that is not known here.
            version = schema_version(connection, path)
            outdated = version < SCHEMA_VERSION
    return version


def _is_ours(kind: str, found: str, expected: str, outdated: bool) -> bool:
    """Whether a statement, whatever its layout, creates what ours does. The columns may be in any
    order, and users may have added others, unless those compute something."""
    found, expected = (
        re.sub(r"('[^']*')|--.*|/\*[\s\S]*?\*/|\s+", r"\1", sql) for sql in (found, expected)
    )
    if found == expected or kind != "table":
        return found == expected or (kind in ("trigger", "index") and outdated)
    (start, _, rest), (our_start, _, our_rest) = found.partition("("), expected.partition("(")
    (columns, _, end), (our_columns, _, our_end) = rest.rpartition(")"), our_rest.rpartition(")")
    there, ours = {*columns.split(",")}, {*our_columns.split(",")}
    same = (start, end) == (our_start, our_end) and (outdated or ours <= there)
    return same and not re.search(r"[()]", "".join(there - ours))


def _forget_statistics(connection: apsw.Connection) -> None:
    """Deletes what ANALYZE has stored about our tables: SQLite would read all of a queue that was
    empty then. Without statistics it assumes large tables."""
    tables = connection.execute("""
        SELECT name FROM sqlite_schema
        WHERE name IN ('sqlite_stat1', 'sqlite_stat4') AND sql GLOB 'CREATE TABLE *'
    """)
    for (table,) in tables.fetchall():
        ours = f"FROM {table} WHERE tbl GLOB 'litejobs_*'"
        if connection.execute(f"SELECT 1 {ours} LIMIT 1").get:
            connection.execute(f"DELETE {ours}")
            connection.execute("ANALYZE sqlite_schema")  # Only reloads the statistics.


################################################################################
# File
#
# The database file and one connection to it, which the threads of a process use in turn, for a
# transaction each. What was committed is in the file of that name, or an error says so: SQLite
# looks at the paths of the file, its WAL and its shared memory only when it opens them, but people
# and programs move, remove and replace files at any time.
################################################################################

Durability = Literal["full", "fast"]
FileId = tuple[int, int]
"""Device and inode, which distinguish files of the same name; zeros if there is no file."""
MEBIBYTE = 2**20
BUSY_TIMEOUT, CHECK_INTERVAL = 30.0, 0.01
"""Seconds to wait for the write lock; seconds between two checks of the paths when only reading."""
WAL_CHECK_INTERVAL = 1.0
"""Seconds between two checks that the WAL is still the same file; a commit only checks that it
exists. (On Linux, the sync after a `stat` writes the inode, too: 40 µs of 200.)"""
WAL_ROOM = 1_250
"""Pages that the WAL has room for while a node runs: SQLite restarts it after 1,000."""
DISK_RESERVE = 4 * MEBIBYTE
"""Bytes of free disk that producers leave: half for what SQLite keeps in memory until the commit
(its page cache has 2 MB), half for what jobs add to the file when they are settled."""
AMPLE_SPACE, SPACE_CHECK_INTERVAL = 2**30, 0.05
"""With this many bytes more, the disk is not checked again for this many seconds."""
SAFE_SQLITE = (3, 51, 3)
"""The first version without the bug that loses commits by resetting the WAL under a reader."""
REPLACED = "was removed, moved or replaced while it was open, or its WAL was"
HARD_LINKED = "has a second name, a hard link, and each name would have its own WAL: remove one"
MISSING = FileNotFoundError, NotADirectoryError
"""The errors of a path that leads nowhere; with others it could not be checked."""
_OPENING = threading.RLock()
"""Held while this process opens a file. Reentrant: a signal handler may open another one."""
_FILES: weakref.WeakValueDictionary[int, File] = weakref.WeakValueDictionary()
_NODE_PATHS: dict[Path, Path] = {}
"""In a worker: where relative paths lead in the program of its node."""
ReadError = apsw.Error | UnicodeDecodeError
"""What reading from a file may raise; UnicodeDecodeError for text that is not UTF-8. Values that
litejobs does not write raise an apsw.CorruptError."""
_PROBLEMS: Mapping[type[Exception], str] = {
    apsw.NotADBError: "is not an SQLite database: name another file",
    apsw.FullError: "the disk is full: nothing was written; free some space",
    apsw.CantOpenError: "cannot be opened: is it readable, and its folder writable?",
    apsw.NoMemError: "SQLite got no memory for it: let it have more, or do less at once",
    apsw.BusyError: "locked by another process for too long: who holds a transaction open on it?",
}


def _translated(error: ReadError | OSError, path: str | Path) -> FileError:
    """Our error for one of SQLite or the operating system, with advice."""
    match error:
        case apsw.CorruptError() | UnicodeDecodeError():
            problem = f"is damaged ({type(error).__name__}: {error}): see `litejobs doctor …`"
        case OSError():
            problem = f"cannot be used: {error.strerror}"
        case apsw.ReadOnlyError():
            problem = f"cannot be written: {error}"
        case _:
            problem = _PROBLEMS.get(type(error)) or f"{type(error).__name__}: {error}"
    return (BusyError if isinstance(error, apsw.BusyError) else FileError)(str(path), problem)


@contextlib.contextmanager
def _translated_errors(path: str | Path) -> Iterator[None]:
    """Raises errors of SQLite and the operating system as our own."""
    try:
        yield
    except (apsw.Error, UnicodeDecodeError, OSError) as error:
        raise _translated(error, path) from error


def _unknown_outcome(file: File, error: Exception) -> OutcomeUnknownError:
    problem = f"a commit failed ({error}); what it wrote may be there or not"
    return OutcomeUnknownError(str(file.path), problem)


def _code(error: Exception) -> int:
    """SQLite's extended result code in an error of apsw or the standard sqlite3; else 0."""
    code: int = getattr(error, "extendedresult", 0) or getattr(error, "sqlite_errorcode", 0)
    return code


def _stat_id(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _file_id(path: str) -> FileId:
    try:
        return _stat_id(os.stat(path))
    except OSError:
        return 0, 0


@attrs.define(eq=False, repr=False, slots=False, on_setattr=attrs.setters.NO_OP)
class File:
    """The file, and the connection that the threads of a process use in turn."""

    given: Path = attrs.field(converter=Path)
    """The path as the program gave it; `path` does not change with the working directory."""
    durability: Durability = "full"
    create: bool = True
    clock: Clock = system_clock
    path: Path = attrs.field(init=False)
    lock: threading.RLock = attrs.field(factory=threading.RLock)
    """Held by the thread that uses the connection."""
    node_count: int = 0
    """How many nodes run on it here: they cannot go on with another file of this name."""
    may_wait: Callable[[float], bool] = lambda waited: waited < BUSY_TIMEOUT
    """Whether to go on waiting for the write lock, by the seconds waited."""
    version_base: int = 0
    """Added to SQLite's data version; rises with each connection, so that no sum ever recurs."""
    cache: dict[Callable[[Transaction], Any], tuple[int, Any]] = attrs.field(factory=dict)
    """What `Transaction.cached` has read, with the version of the file."""
    read_only: bool = False
    """Whether the system lets this user only read it, as on a read-only medium."""
    warned: bool = False
    """Whether it was logged that it may only be read, or that the standard sqlite3 is too old."""
    _connection: apsw.Connection | None = None
    _abandoned: list[apsw.Connection] = attrs.field(factory=list)
    _pid: int = 0
    _paths: tuple[str, ...] = ("", "", "")
    """The paths of the open file, its WAL and its shared memory."""
    _ids: tuple[FileId, ...] = ((0, 0),) * 3
    """The ids of these three when they were opened."""
    _lost: bool = False
    """Whether the connection was closed because its paths led elsewhere."""
    _checked_at: float = 0.0
    _wal_checked_at: float = 0.0
    _size: int = 0
    """Bytes, when the paths were checked."""
    _ample_until: float = 0.0
    """Until when the disk is not checked again."""
    _socket: socket.socket | None = None
    _close_socket: Callable[[], object] = lambda: None

    def __attrs_post_init__(self) -> None:
        if str(self.given).startswith((":memory:", "file:")):
            problem = f"expected the path of a file, got {str(self.given)!r}"
            raise OptionError("path", f"{problem}: workers share one; for tests use recording()")
        with _translated_errors(self.given):
            self.path = _NODE_PATHS.get(self.given) or self.given.absolute()
        _FILES[id(self)] = self

    def presence_path(self, node: int | str) -> str:
        """The small file next to it whose lock the processes of a node share."""
        return f"{self.path}-node-{node}"

    def transaction(
        self, *, read_only: bool = False, notify: bool = False, enqueues: bool = False
    ) -> Transaction:
        """A transaction, for a `with` statement, that holds the write lock from its start. *notify*
        wakes the nodes after the commit; *enqueues* does so, too, and refuses to commit while the
        disk is nearly full. *read_only* begins none: each statement reads by itself."""
        return Transaction(self, None, True, read_only, notify or enqueues, enqueues)

    def read(self, sql: str, bindings: Any = ()) -> list[Any]:
        """The rows of one query."""
        with self.transaction(read_only=True) as tx:
            rows: list[Any] = tx.execute(sql, bindings).fetchall()
        return rows

    @contextlib.contextmanager
    def second_connection(self) -> Iterator[apsw.Connection]:
        """For long operations that other threads should not wait for."""
        with _translated_errors(self.path):
            with self.lock:
                self.connection()
            with contextlib.closing(self._connect(self.path, "normal")) as connection:
                yield connection

    def notify_nodes(self, ports: Iterable[int] | None = None) -> None:
        """Wakes all nodes, or those that listen at *ports*, by an empty datagram to each."""
        if ports is None:
            with self.transaction(read_only=True) as tx:
                ports = _ports(tx)
        for port in ports:
            with contextlib.suppress(OSError, OverflowError, TypeError):
                if (sender := self._socket) is None:
                    import socket

                    self._socket = sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    sender.setblocking(False)
                    # In case nobody calls close().
                    self._close_socket = weakref.finalize(self, sender.close)
                sender.sendto(b"", ("127.0.0.1", port))

    def connection(self) -> apsw.Connection:
        """The open connection of this process; opened now if need be."""
        if self._connection is not None and self._pid != os.getpid():
            # It belongs to the parent, whose locks would be lost if it were closed here.
            self._abandoned.append(self._connection)
            self._connection = None
        if self.read_only and (self._connection is None or self._ids != self._ids_now()):
            self.close()
            self.read_only = False  # Perhaps it may be written by now.
        if self._connection is not None:
            return self._connection
        if tuple(map(int, apsw.sqlite_lib_version().split(".")[:3])) < SAFE_SQLITE:
            problem = f"SQLite {apsw.sqlite_lib_version()} can lose commits"
            raise LitejobsError(f"{problem}: upgrade apsw to 3.51.3 or later")
        if self.node_count and (self._lost or _file_id(self._paths[0]) != self._ids[0]):
            raise FileReplacedError(str(self.path), f"{REPLACED}: another file is no use")
        _install_audit_hook()
        with _OPENING, _translated_errors(self.path):
            place = _locate(self.path, self.create)
            fill_standard_streams()
            opened = _stat_id(os.stat(place))
            _refuse_file_open_here(place, opened)
            may_go_on = _busy_handler(self.may_wait)
            for tries in itertools.count():
                try:
                    synchronous = "full" if self.durability == "full" else "normal"
                    connection = self._connect(place, synchronous)
                    break
                except apsw.BusyError:  # SQLite switches to WAL without calling the busy handler.
                    if not may_go_on(tries):
                        raise
                except (apsw.CantOpenError, apsw.ReadOnlyError):
                    if self.read_only or all(map(_may_write, (place, place.parent))):
                        raise
                    self.read_only = True
            self._paths = str(place), f"{place}-wal", f"{place}-shm"
            self._ids = self._ids_now()
            if not self.read_only:
                self._ids = opened, *(_stat_id(os.stat(path)) for path in self._paths[1:])
            self.path, self._lost = place, False
            self._pid, self.version_base = os.getpid(), self.version_base + 2**32
            self._checked_at = self._wal_checked_at = 0.0
            self._connection = connection
        return connection

    def _ids_now(self) -> tuple[FileId, ...]:
        """The ids of the three paths; what is read without locks is also known by size and time."""
        ids = [_file_id(path) for path in self._paths]
        with contextlib.suppress(OSError):
            found = os.stat(self._paths[0])
            ids += [] if all(map(any, ids)) else [(found.st_size, found.st_mtime_ns)]
        return tuple(ids)

    def _read_only_uri(self, place: Path) -> str:
        """Where SQLite may only read: it needs the WAL's shared memory for that, which it cannot
        create; without a WAL, nobody is writing, and the file can be read without locks."""
        wal, memory = (_file_id(f"{place}{suffix}") for suffix in ("-wal", "-shm"))
        if any(wal) and any(memory):
            return f"{place.as_uri()}?mode=ro"
        if any(wal) and os.path.getsize(f"{place}-wal"):
            problem = "may only be read, and its WAL cannot be read without writing"
            raise FileError(str(place), f"{problem}: copy both to a folder of your own")
        return f"{place.as_uri()}?immutable=1"

    def _connect(self, place: Path, synchronous: str) -> apsw.Connection:
        """A configured connection. Without *create*, a file without a queue is refused."""
        uri, flags = str(place), apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
        if self.read_only:
            uri = self._read_only_uri(place)
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW
        connection = apsw.Connection(uri, flags=flags)
        try:
            if connection.readonly("main") and not self.read_only:
                raise apsw.ReadOnlyError("by this user")
            connection.transaction_mode = "IMMEDIATE"
            connection.set_busy_handler(_busy_handler(self.may_wait))
            group: Any = error_group
            connection.create_scalar_function("litejobs_error_group", group, 2)
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
            for setting in (
                apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA,
                apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER,
                apsw.SQLITE_DBCONFIG_DQS_DML,
                apsw.SQLITE_DBCONFIG_DQS_DDL,
            ):
                connection.config(setting, 0)
            if not self.read_only:
                _refuse_lost_wal(connection, place)
            version = _check_schema(connection, str(place))
            if version == 0 and (self.read_only or not self.create):
                raise FileError(str(place), "holds no queue: name another file")
            if self.read_only:
                if version < SCHEMA_VERSION:
                    problem = f"may only be read, and has schema {version}, not {SCHEMA_VERSION}"
                    advice = "let a program that may write open it once"
                    raise FileError(str(place), f"{problem}: {advice}")
                return connection
            if connection.pragma("page_count") == 0:
                connection.pragma("auto_vacuum", "incremental")
            if (mode := connection.pragma("journal_mode", "wal")) != "wal":
                problem = f"stays in journal mode {mode!r}: WAL does not work there"
                raise FileError(str(place), problem)
            connection.pragma("synchronous", synchronous)
            connection.pragma("temp_store", "memory")
            # SQLite's own default: with 4,000 pages one commit in hundreds took 20 ms.
            connection.pragma("wal_autocheckpoint", 1000)
            connection.pragma("journal_size_limit", 64 * MEBIBYTE)
            if version < SCHEMA_VERSION:
                connection.execute("BEGIN IMMEDIATE")
                update_schema(connection, str(place))
                connection.execute("COMMIT")
            _forget_statistics(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Closes the connection; the next use opens it again."""
        with self.lock:
            self._close_socket()
            self._socket = None
            connection, self._connection = self._connection, None
            if connection is None or self._pid != os.getpid():
                return
            with contextlib.suppress(apsw.Error, FileError, OSError):
                if not self.read_only and not self._link_count(fully=True):
                    # A checkpoint could overwrite what others have written meanwhile.
                    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
                    self._lost = True
                    with contextlib.suppress(apsw.Error):
                        if not connection.in_transaction:
                            # A writer may have made its check before this happened: the file must
                            # not be opened again, and written at the same offsets, before it ends.
                            connection.execute("BEGIN IMMEDIATE")
                        connection.execute("ROLLBACK")
                    if _file_id(self._paths[0]) != self._ids[0]:
                        _rename_orphaned_wal(self._paths[0], self._ids)
            connection.close()

    def check(self) -> None:
        """Refuses to go on with a file that its path no longer leads to; the next use opens the one
        that is there by then. Writing transactions check this once they hold the write lock,
        read-only ones after CHECK_INTERVAL."""
        links = 1 if self._connection is None or self.read_only else self._link_count()
        if links > 1:
            raise FileError(str(self.path), HARD_LINKED)
        if not links:
            self.close()
            raise FileReplacedError(str(self.path), f"{REPLACED}; nothing was written")

    def _link_count(self, fully: bool = False) -> int:
        """How many names the file has; 0 if a path leads to something else than what is open. The
        id of the WAL is checked if *fully*, or after WAL_CHECK_INTERVAL."""
        now = time.monotonic()
        path, wal, shm = self._paths
        try:
            found, memory = os.stat(path), os.stat(shm)
            fully = fully or now - self._wal_checked_at > WAL_CHECK_INTERVAL
            if fully or not os.access(wal, os.F_OK):
                if _stat_id(os.stat(wal)) != self._ids[1]:
                    return 0
                self._wal_checked_at = now
        except MISSING:
            return 0
        except OSError as error:
            raise _translated(error, self.path) from error
        here = _stat_id(found) == self._ids[0] and _stat_id(memory) == self._ids[2]
        self._size, self._checked_at = found.st_size, now
        return found.st_nlink if here and found.st_size else 0  # SQLite never empties it.

    def changes(self) -> int:
        """A number that changes when others commit, or the file is opened again."""
        with self.transaction(read_only=True) as tx:
            return self.version_base + int(tx.execute("PRAGMA data_version").fetchone()[0])

    # Jobs have to be settled even while the disk is full, since that frees space in the end: so
    # producers are refused while there is still room for settling. That room is reserved through
    # SQLite: any other writing to the file or its WAL could damage them.

    def lacks_space(self, connection: apsw.Connection, reserve: int) -> int | None:
        """How many bytes are free on the disk, if those are too few for what the next checkpoint
        adds to the file, for the WAL, and for the *reserve*; else `None`. To be called in a
        transaction. Quotas and overcommitted file systems are not seen."""
        if (now := time.monotonic()) < self._ample_until:
            return None
        pages, size = (connection.pragma(name) for name in ("page_count", "page_size"))
        needed = max(0, pages * size - self._size) + WAL_ROOM * (size + 24) + reserve
        try:
            if sys.platform == "win32":
                import shutil

                free = shutil.disk_usage(self.path.parent).free
            else:
                disk = os.statvfs(self._paths[0])
                # Some file systems do not say how large they are.
                free = disk.f_bavail * disk.f_frsize if disk.f_blocks else sys.maxsize
            if free >= needed + AMPLE_SPACE:
                self._ample_until = now + SPACE_CHECK_INTERVAL
            if free < needed:
                needed -= min(WAL_ROOM * (size + 24), os.path.getsize(self._paths[1]))
        except OSError:
            return None  # The commit will say what is wrong.
        return free if free < needed else None

    def extend_wal(self) -> None:
        """Enlarges the WAL, so that there is room for settling: SQLite writes pages after the last
        valid frame, and when the transaction is rolled back, the WAL keeps its size."""
        with self.lock, _translated_errors(self.path):
            connection = self.connection()
            size = connection.pragma("page_size")
            if os.stat(self._paths[1]).st_size >= WAL_ROOM * (size + 24):
                return
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)  # To restart it.
            connection.execute("BEGIN IMMEDIATE")
            try:
                self.check()
                connection.execute("CREATE TABLE litejobs_room (content)")
                room = "INSERT INTO litejobs_room VALUES (zeroblob(?))"
                connection.execute(room, (WAL_ROOM * size,))
                connection.cache_flush()
            finally:
                self.roll_back()

    def roll_back(self) -> None:
        """Rolls back the transaction, if there is one; closes the connection if that fails."""
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except apsw.Error:
            with contextlib.suppress(apsw.Error):
                self.close()

    def expect_change(self, changed: object) -> None:
        """Raises if a loop has changed nothing, which a damaged index would make endless."""
        if not changed:
            problem = "is damaged: an index does not lead to the jobs that it should"
            raise FileError(str(self.path), f"{problem}; see `litejobs doctor {self.path}`")


@attrs.define(eq=False, repr=False, slots=False)
class Transaction:
    """Statements that are committed together, or not at all, on the connection of the file or the
    caller's. (As a generator with `contextmanager` it took longer than SQLite does.)"""

    file: File
    connection: Any
    own: bool
    """Whether it is on the file's own connection, which fires no triggers."""
    _read_only: bool = False
    _notify: bool = False
    _enqueues: bool = False
    execute: Callable[..., Any] = attrs.field(init=False)
    now: int = attrs.field(init=False)
    """The time at its beginning."""
    version: int = attrs.field(init=False)
    """Identifies the file's content at the beginning: rises by one with each of our commits, and by
    at least one with those of others."""
    _used: dict[Callable[[Transaction], Any], Any] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if self.connection is not None:
            self.execute, self.now = self.connection.execute, self.file.clock()

    def __enter__(self) -> Transaction:
        file = self.file
        file.lock.acquire()
        try:
            if file.read_only and not self._read_only:
                file.close()  # To try again.
            self.connection = file.connection()
            self.execute = self.connection.execute
            if not self._read_only:
                if file.read_only:
                    problem = "may only be read here: nothing was written; see its permissions"
                    raise FileError(str(file.path), f"{problem} and those of its folder")
                self.execute("BEGIN IMMEDIATE")
                file.check()
                self.version = file.version_base + self.connection.data_version()
            elif time.monotonic() - file._checked_at > CHECK_INTERVAL:
                file.check()
            if file.read_only and not file.warned:
                file.warned = True
                logger.warning("%s may only be read here: nothing can be changed", file.path)
            self.now = file.clock()
        except BaseException as error:
            if not (self._read_only or isinstance(error, apsw.SQLError)):
                # It may have begun all the same. (After an SQLError in a signal handler, the open
                # transaction belongs to the interrupted code.)
                file.roll_back()
            file.lock.release()
            self._raise_translated(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        file = self.file
        ports: Sequence[int] = ()
        try:
            if error is None and not self._read_only:
                ports = self.cached(_ports) if self._notify else ()
                if self._enqueues and (
                    (free := file.lacks_space(self.connection, DISK_RESERVE)) is not None
                ):
                    problem = "the disk is nearly full: nothing was written; free some space"
                    left = f"{free / 1e6:.1f} MB are left, which running jobs need to end"
                    raise FileError(str(file.path), f"{problem} ({left})")
                self._commit()
            elif not self._read_only:
                file.roll_back()
        except BaseException as failed:
            # For Ctrl-C before the commit; after a failed commit there is nothing to undo.
            file.roll_back()
            self._raise_translated(failed)
            raise
        finally:
            file.lock.release()
        self._raise_translated(error)
        file.notify_nodes(ports)

    def cached(self, read: Callable[[Transaction], T]) -> T:
        """The result of *read*, which is called only if others have committed since the last call.
        The transaction must not change what *read* reads."""
        version, value = self.file.cache.get(read, (-1, None))
        if version != self.version:
            value = read(self)
        self._used[read] = value
        found: T = value
        return found

    def _commit(self) -> None:
        """Commits, and only returns if what was committed is in the file of that name."""
        file, wal = self.file, self.file._paths[1]
        try:
            self.execute("COMMIT")
        except apsw.FullError:
            raise  # Nothing was committed: the frame that completes a commit is written last.
        except apsw.Error as error:
            # The frames may be in the WAL although the commit failed.
            with contextlib.suppress(apsw.Error):
                file.close()
            raise _unknown_outcome(file, error) from error
        for read, value in self._used.items():
            file.cache[read] = self.version + 1, value
        try:
            if not os.access(wal, os.F_OK):
                os.stat(wal)
        except MISSING:
            file.close()
            problem = f"{REPLACED}; what the last commit wrote may be lost"
            raise FileReplacedError(str(file.path), problem) from None
        except OSError as error:
            raise _unknown_outcome(file, error) from error

    def _raise_translated(self, error: BaseException | None) -> None:
        file = self.file
        if isinstance(error, apsw.FullError) and (connection := file._connection) is not None:
            # If no reader needs the WAL, the next transaction can overwrite it.
            with file.lock, contextlib.suppress(apsw.Error):
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        if isinstance(error, ReadError):
            try:
                file.check()
            except FileError as reason:  # SQLite did not read pages of the file.
                raise reason from error
            raise _translated(error, file.path) from error


def _ports(tx: Transaction) -> Sequence[int]:
    """Where the nodes listen."""
    return [port for (port,) in tx.execute("SELECT port FROM litejobs_node")]


def _busy_handler(may_wait: Callable[[float], bool]) -> Callable[[int], bool]:
    """A busy handler with short random waits; those of SQLite's grow, so that some starve."""
    since = 0.0

    def wait(tries: int) -> bool:
        nonlocal since
        if tries == 0:
            since = time.monotonic()
        time.sleep(random.uniform(0.0002, 0.002))
        return may_wait(time.monotonic() - since)

    return wait


def _locate(path: Path, create: bool) -> Path:
    """The real path of the file, created if need be and readable only by its user. It is created
    with O_EXCL and never opened here once it exists: closing any descriptor of a file drops all
    POSIX locks that this process has on it."""
    try:
        # For a loop of links, Path.resolve() has an error of its own before Python 3.13.
        place = Path(os.path.realpath(path.parent, strict=True), path.name)
        str(place).encode()  # A ValueError if SQLite takes no such name.
        if create:
            # If the file is missing or empty after that, they belong to an earlier one.
            ids = [_file_id(f"{place}{suffix}") for suffix in ("", "-wal", "-shm")]
            with contextlib.suppress(OSError):
                if not (place.exists() and place.stat().st_size):
                    _rename_orphaned_wal(str(place), ids)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        found = os.lstat(place)
    except NotADirectoryError:
        problem = f"{path.parent} is not a folder"
    except FileNotFoundError:
        folder = f"the folder {path.parent} does not exist: create it"
        problem = "does not exist" if path.parent.is_dir() else folder
    except OSError as error:
        problem = f"cannot be created: {error.strerror}"
    except ValueError as error:
        problem = f"is not a valid file name: {error}"
    else:
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return place
        problem = {
            stat.S_IFREG: HARD_LINKED,
            stat.S_IFLNK: "is a symbolic link: name the file that it leads to",
            stat.S_IFDIR: "is a folder: name a file in it",
        }.get(stat.S_IFMT(found.st_mode), "is not a regular file")
    raise FileError(str(path), problem) from None


def _rename_orphaned_wal(place: str, ids: Sequence[FileId]) -> None:
    """Renames the WAL of a file that is gone, and removes its shared memory, unless others have
    replaced them meanwhile. SQLite would delete that WAL or apply it to the file that has the name
    now, and would share that memory with processes that still have the old file open."""
    _, wal, shm = ids
    if not (any(wal) or any(shm)):
        return
    with contextlib.ExitStack() as unlocking:
        # So that of two processes none renames the new file of the other. For a second at most: a
        # folder may be unreadable, locked by others, or on a file system without such locks.
        with contextlib.suppress(OSError):
            if sys.platform != "win32" and (locked := lock(os.path.dirname(place), True, 1.0)):
                unlocking.enter_context(locked)
        if any(shm) and _file_id(f"{place}-shm") == shm:
            os.unlink(f"{place}-shm")
        if any(wal) and _file_id(f"{place}-wal") == wal:
            aside = f"{place}-wal-{wal[1]}"
            os.rename(f"{place}-wal", aside)
            problem = "%s-wal belongs to a file that no longer exists: it is kept as %s"
            logger.warning(problem, place, aside)


def lock(path: str, exclusive: bool, wait: float = 0.0) -> contextlib.ExitStack | None:
    """Locks a file, for itself or shared, until the return value is closed or the process ends;
    `None` if the locks of others still prevent that after *wait* seconds."""
    give_up = time.monotonic() + wait
    while True:
        busy = contextlib.suppress(BlockingIOError, apsw.BusyError)
        with contextlib.ExitStack() as locked, busy:
            if sys.platform == "win32":
                os.lstat(path)  # An error of SQLite's would not say that it is missing.
                # SQLite's own lock, on an empty file.
                connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
                locked.callback(connection.close)
                connection.pragma("journal_mode", "memory")
                connection.execute("BEGIN EXCLUSIVE" if exclusive else "BEGIN")
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
                return locked.pop_all()
            import fcntl

            # Read-only: a job that writes into every open descriptor must not damage it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            locked.callback(_close, descriptor)
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return locked.pop_all()
        if time.monotonic() >= give_up:
            return None
        time.sleep(0.001)


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # It is closed all the same.
        os.close(descriptor)


def _refuse_lost_wal(connection: apsw.Connection, place: Path) -> None:
    """Refuses a file whose WAL was removed while others have it open: only they have its frames."""
    wal = f"{place}-wal"
    for _ in range(2):  # The WAL may have been emptied between the two statements below.
        try:
            connection.pragma("schema_version")  # SQLite opens the WAL when it first reads.
            frames, _saved = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        except apsw.IOError as error:
            if _code(error) != apsw.SQLITE_IOERR_SHORT_READ:
                raise
            frames = 1  # SQLite tried to read one that is not there.
        if frames <= 0 or os.path.getsize(wal):
            return
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    os.unlink(wal)  # SQLite has just created it; the others have to see that theirs is gone.
    problem = "its WAL was removed while programs had it open, and they still do"
    raise FileReplacedError(str(place), f"{problem}: end them; what was only in the WAL is lost")


def fill_standard_streams() -> None:
    """Opens the null device for those of the descriptors 0 to 2 that are closed: otherwise the next
    file gets such a number, and whatever is printed goes into it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def files_here() -> list[File]:
    """The files of this process; safe while other threads create some."""
    return [file for reference in _FILES.valuerefs() if (file := reference()) is not None]


def use_relative_paths(paths: Mapping[Path, Path]) -> None:
    """Makes relative paths in a worker lead where they do in its node, also those of files that
    the import of the main program has already created."""
    _NODE_PATHS.update(paths)
    for file in files_here():
        if file.given in paths:
            file.close()
            file.path = paths[file.given]


_FORKS = threading.RLock()
"""Held by the thread that forks."""
_HELD_BY_FORK: list[threading.RLock] = []


def _close_before_fork() -> None:
    """Closes the connections, which are opened again when needed: SQLite handles do not survive a
    fork, and a child that only closes one can undo the parent's commits. It also takes the locks:
    the child has no copy of another thread that holds one, and would wait for ever."""
    files = files_here()
    # If Ctrl-C raises here, Python forks all the same; what is held by then is released.
    for held in (_FORKS, *(file.lock for file in files), _OPENING):
        held.acquire()
        _HELD_BY_FORK.append(held)
    for file in files:
        with contextlib.suppress(apsw.Error):
            file.close()


def _release_after_fork() -> None:
    while _HELD_BY_FORK:
        _HELD_BY_FORK.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_close_before_fork,
        after_in_parent=_release_after_fork,
        after_in_child=_release_after_fork,
    )

# Two SQLite libraries in one process, such as apsw's and Python's own, must not have the same file
# open: when one closes it, the system drops the locks of the other, and other processes would
# delete the WAL that it is writing. (On Windows, each handle has its own locks.)


@functools.cache
def _install_audit_hook() -> None:
    if sys.platform != "win32":
        sys.addaudithook(_audit_open)


def _audit_open(event: str, arguments: tuple[Any, ...]) -> None:
    """Keeps sqlite3 and `open` from a file that litejobs has open. (ATTACH has no audit event.)"""
    if event not in ("open", "sqlite3.connect"):
        return
    path = arguments[0]
    if isinstance(path, int) or (event == "open" and arguments[2] & os.O_EXCL):
        return  # It is open already, or new.
    try:
        name = os.fsdecode(path)
        if name.startswith("file:"):  # A URI, as sqlite3 takes it.
            from urllib.parse import unquote, urlsplit

            name = unquote(urlsplit(name).path)
        found = _file_id(name)
    except (TypeError, ValueError):
        return  # Not a path, as they will report.
    if open_in_litejobs(found):
        problem = "litejobs has the file open in this process, and would lose its locks on it"
        advice = "close() it first, use a connection of apsw's or backup(), or work elsewhere"
        raise FileError(os.fsdecode(path), f"{problem}: {advice}")


def _refuse_file_open_here(place: Path, found: FileId) -> None:
    """Refuses a file that something else has open here, if the system lists open descriptors."""
    if sys.platform == "win32" or not os.path.isdir("/dev/fd"):
        return
    give_up = time.monotonic() + 0.5
    while True:
        there = set()
        for number in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):
                there.add(_stat_id(os.fstat(int(number))))
        if found not in there or open_in_litejobs(found) or open_in_apsw(place, if_busy=True):
            return
        # apsw does not list a connection while another thread opens or closes it.
        if time.monotonic() > give_up:
            problem = "something else in this process has the file open, perhaps sqlite3"
            raise FileError(str(place), f"{problem}: close that first, or work elsewhere")
        time.sleep(0.005)


def open_in_litejobs(found: FileId) -> bool:
    """Whether litejobs has that file or its shared memory open in this process."""
    return any(found) and any(
        file._connection is not None and found in file._ids[::2] for file in files_here()
    )


def open_in_apsw(place: Path, if_busy: bool) -> bool:
    """Whether a connection of apsw in this process has that file open; *if_busy* if it cannot be
    known, since another thread is using the connection."""
    for connection in apsw.connections():
        try:
            if (path := connection.filename) and os.path.samefile(path, place):
                return True
        except apsw.ThreadingViolationError:
            if if_busy:
                return True
        except (apsw.ConnectionClosedError, OSError):
            continue
    return False


################################################################################
# Jobs in SQL
#
# Reading, changing and finding jobs, in a transaction. Ready jobs are in one partial index, by
# queue and name. Jobs that are neither pending nor running are in another one, by state, queue and
# name, and their numbers are kept. So every query reads little, however large the file is.
################################################################################

Reports = Mapping[tuple[int, int], Sequence[str | None]]
"""By id and claim, the progress and the meta of running jobs, as JSON."""
BATCH = 5_000
"""Rows that a bulk command changes in one transaction."""
_JOB = ", ".join(JOB_COLUMNS)
_FAILURE = ", ".join(field.name for field in attrs.fields(Failure))
_READY = "CASE WHEN key IS NULL THEN 'pending' ELSE 'blocked' END"
"""The state of a job that is due (a SQL expression)."""
_WAITS = f"CASE WHEN run_at > :now THEN 'scheduled' ELSE {_READY} END"
"""The state of a job that waits until it is due and its key has a slot (a SQL expression)."""
_UNSTARTED = "attempt = 0 AND state IN ('scheduled', 'blocked', 'paused', 'pending', 'retrying')"
"""Which jobs may expire (a SQL term)."""
_KEPT = attrs.asdict(DEFAULT_RETENTION)
_KEPT_BY_DEFAULT = " ".join(
    f"WHEN '{state}' THEN {kept // MICROSECOND}" for state, kept in _KEPT.items()
)
Group = tuple[State, str, str]
"""State, queue and name: what jobs are counted by."""
# Bounded: other programs may have written any number, and a sum that overflows is an error.
_ADD = """
    ON CONFLICT DO UPDATE SET
        number = max(-9007199254740992, min(number, 9007199254740992)) + excluded.number
"""


def _kept_for(state: str) -> str:
    """How long a job that ended in this state is kept (a SQL expression): its own retention,
    up to a hundred years, or else the default."""
    own = f"CAST(max(0, min(retention ->> {state}, {MAX_DURATION // MICROSECOND})) AS INTEGER)"
    by_default = f"CASE {state} {_KEPT_BY_DEFAULT} END"
    return f"CASE WHEN json_valid(retention) THEN {own} ELSE {by_default} END"


_CANCELLED = f"""
    state = 'cancelled', cancel_at = NULL, unfit_at = NULL, finished_at = :now,
    prune_at = :now + {_kept_for("'cancelled'")}
"""


def _expiry(ids: str) -> str:
    """A statement that cancels those of some jobs that were not started; *ids* is SQL."""
    return f"""
        UPDATE litejobs_job SET
            {_CANCELLED}, expires_at = NULL,
            error = 'Expired: not started by '
                || strftime('%F %T UTC', expires_at / 1e6, 'unixepoch')
        WHERE {_UNSTARTED} AND id {ids}
    """


def from_row(kind: Callable[..., T], row: Any, **more: Any) -> T:
    """An object made of a row; a CorruptError if the values do not have the annotated types."""
    if row is None or not all(map(isinstance, row, _column_types(kind))):
        of = "" if row is None else f" of {short_repr(row[0])}"
        raise apsw.CorruptError(f"a row{of} is not a valid {getattr(kind, '__name__', kind)}")
    return kind(*row, **more)


@functools.cache
def _column_types(kind: Any) -> list[Any]:
    hints = typing.get_type_hints(kind.__init__, globals())
    hints.pop("return", None)
    plain = [str if typing.get_origin(hint) is Literal else hint for hint in hints.values()]
    return [object if hint is Any else hint for hint in plain]


def as_integer(value: Any) -> int | None:
    """The value, if it is an integer or NULL; else a CorruptError."""
    if value is not None and type(value) is not int:
        raise apsw.CorruptError(f"expected an integer, found {short_repr(value)}")
    return value


def _column(connection: Any, sql: str, bindings: Any = ()) -> list[int]:
    """The integers that a query for one column returns, without NULLs."""
    rows: Any = connection.execute(sql, bindings)
    return [number for (value,) in rows if (number := as_integer(value)) is not None]


def _one_number(connection: Any, sql: str, bindings: Any = ()) -> int | None:
    """The first integer that a query returns, if any."""
    return next(iter(_column(connection, sql, bindings)), None)


def _carray(ids: Iterable[int]) -> Any:
    # apsw makes no usable array of nothing; no job has the id -1.
    return apsw.carray(array.array("q", ids) or array.array("q", [-1]))


# Changing


def change_jobs(tx: Transaction, ids: Sequence[int], *statements: str, **bindings: Any) -> int:
    """Executes statements on these jobs, updates the counts, and admits others with their keys;
    returns how many the last statement changed. The caller's connection has no carray."""
    if not ids:
        return 0
    if tx.own:
        bindings["ids"] = _carray(ids)
    bindings |= {"now": tx.now, "id": ids[0]}
    before, keys = groups_of(tx, ids)
    for sql in statements:
        tx.execute(sql, bindings)
    changed: int = tx.execute("SELECT changes()").fetchone()[0]
    changes, _ = groups_of(tx, ids)
    changes.subtract(before)
    add_to_counts(tx, changes)
    admit_blocked(tx, keys)
    return changed


def groups_of(tx: Transaction, ids: Sequence[int]) -> tuple[Counter[Group], set[str]]:
    """How many of these jobs are in each group, and their keys."""
    groups: Counter[Group] = Counter()
    keys = set()
    rows = tx.execute(
        """
        SELECT state, queue, name, job.key, count(*)
        FROM json_each(?) AS chosen CROSS JOIN litejobs_job AS job ON job.id = chosen.value
        GROUP BY 1, 2, 3, 4
        """,
        (json.dumps(ids),),
    )
    for state, queue, name, key, number in rows:
        groups[state, queue, name] += number
        keys.add(key)
    return groups, keys - {None}


def add_to_counts(tx: Transaction, changes: Mapping[Group, int]) -> None:
    """Adds to the numbers of jobs in counted states. (On a caller's connection, triggers do.)"""
    rows = [(*group, n) for group, n in changes.items() if n and group[0] in COUNTED_STATES]
    if rows and tx.own:
        tx.connection.executemany(
            f"INSERT INTO litejobs_count (state, queue, name, number) VALUES (?, ?, ?, ?) {_ADD}",
            rows,
        )


def expire_job(tx: Transaction, id: int) -> None:
    """Cancels one job that was not started in time."""
    tx.file.expect_change(change_jobs(tx, [id], _expiry("= :id")))


def cancel_returned(tx: Transaction) -> None:
    """Cancels jobs that were given back or failed before the request to end reached them."""
    returned = "SELECT id FROM litejobs_job WHERE cancel_at IS NOT NULL AND state <> 'running'"
    change_jobs(tx, _column(tx, returned), _set(_CANCELLED))


def _set(values: str, term: str = "TRUE") -> str:
    return f"UPDATE litejobs_job SET {values} WHERE id IN carray(:ids) AND {term}"


# At most key_limit jobs with the same key run at a time. A job with a key is blocked, and in no
# index that a claim reads, until there is a slot, which it then holds until it has run.


def admit_blocked(tx: Transaction, keys: Iterable[str]) -> int:
    """Makes blocked jobs with these keys pending while there are slots; returns how many."""
    admitted = 0
    for key in keys:
        while following := admissible(tx, key):
            id, group = following
            ready = "UPDATE litejobs_job SET state = 'pending' WHERE id = ? AND state = 'blocked'"
            tx.execute(ready, (id,))
            tx.file.expect_change(tx.execute("SELECT changes()").fetchone()[0])
            add_to_counts(tx, {group: -1})
            admitted += 1
    return admitted


def admissible(tx: Transaction, key: str) -> tuple[int, Group] | None:
    """The next blocked job with this key and its group, if there is a slot for it."""
    first = tx.execute(
        f"""
        SELECT id, key_limit, queue, name FROM litejobs_job INDEXED BY litejobs_key
        WHERE {KEYED} AND state = 'blocked' AND key = ?
        ORDER BY priority DESC, run_at, id LIMIT 1
        """,
        (key,),
    ).fetchone()
    if first is None:
        return None
    taken = tx.execute(
        f"""
        SELECT count(*) FROM litejobs_job INDEXED BY litejobs_key
        WHERE {KEYED} AND state IN ('pending', 'running') AND key = ?
        """,
        (key,),
    ).fetchone()
    id, limit, queue, name = first
    return (id, ("blocked", queue, name)) if taken[0] < (as_integer(limit) or 1) else None


# Finding


FIELDS = "such as to=ada or customer.id=12; may be repeated"


class Filters(TypedDict, total=False):
    """What jobs can be found by. Times are aware datetimes: at or after *after*, and earlier
    than *before*. *payload* maps fields, or paths to inner fields (`"customer.id"`), to the
    JSON values that all of them must have: numbers, texts, booleans or None."""

    id: int | Job[Any] | Iterable[int | Job[Any]]
    name: str | AnyDefinition | type
    queue: str
    state: Annotated[State | Sequence[State], "may be repeated"]
    not_name: Annotated[str | AnyDefinition | type | Sequence[str], "may be repeated"]
    not_state: Annotated[State | Sequence[State], "may be repeated"]
    error: Annotated[str, "a text in the last error, in upper or lower case"]
    group: Annotated[str, "a group of dead letters with like errors, as `errors` lists them"]
    node: str
    key: str
    tags: Annotated[str | Iterable[str], "that it has; may be repeated: all of them"]
    schedule: str | AnyDefinition | type
    enqueued_after: Annotated[datetime, "from then on"]
    enqueued_before: datetime
    finished_after: Annotated[datetime, "from then on"]
    finished_before: datetime
    payload: Annotated[Mapping[str, str | int | float | bool | None], FIELDS]


def id_of(job: object, what: str = "id") -> int:
    """The id of a job, given as the job or its id."""
    if isinstance(job, Job):
        return job.id
    if isinstance(job, int) and not isinstance(job, bool):
        return job
    raise OptionError(what, f"expected a job or its id, got {reprlib.repr(job)}")


def _several(check: Check) -> Check:
    def checked(given: Any, what: str) -> tuple[Any, ...]:
        one = isinstance(given, str) or not isinstance(given, Iterable)
        return tuple(check(each, what) for each in ([given] if one else given))

    return checked


def _check_name_of(value: object, what: str) -> str:
    """The name of a definition, given as the name, the definition or its class."""
    name = definition.name if (definition := definition_of(value)) else value
    if not isinstance(name, str):
        raise OptionError(what, f"expected a name or a definition, got {reprlib.repr(value)}")
    return name


def _check_names(value: object, what: str) -> str:
    return json.dumps(_several(_check_name_of)(value, what))


_check_states = _several(lambda state, what: check_one_of(state, STATES, what))


def _check_fields(wanted: object, what: str) -> str:
    """JSON: the path of each field, with the value that it must have."""
    if not isinstance(wanted, Mapping) or not wanted:
        raise OptionError(what, f"expected fields with their values, got {wanted!r}")
    paths = {}
    for field, value in wanted.items():
        if not isinstance(field, str) or "\0" in field:  # SQLite ends a path at a NUL.
            raise OptionError(what, f"expected the name of a field, without NUL, got {field!r}")
        if not (value is None or isinstance(value, str | int | float)):
            problem = f"expected a text, number, boolean or None for {field!r}, got {value!r}"
            raise OptionError(what, problem)
        paths["$" + "".join(f".{json.dumps(name)}" for name in field.split("."))] = value
    try:
        return json.dumps(paths, allow_nan=False)
    except ValueError as error:
        raise OptionError(what, f"expected JSON values: {error}") from None


_check_text = _accept(lambda value: isinstance(value, str), "a text")


def _check_wanted_tags(value: object, what: str) -> str:
    if not (tags := _check_tags(value, what)):
        raise OptionError(what, "expected one tag or more")
    return _to_json(tags)


def _check_moment(value: object, what: str) -> int:
    return to_micros(aware(value, what))


# In JSON, 1 is neither true nor "1", but 1.0: SQLite alone compares them otherwise.
_HAS_FIELDS = """
    CASE WHEN typeof(payload) = 'text' AND json_valid(payload) THEN NOT EXISTS (
        SELECT 1 FROM json_each(:payload) AS wanted
        WHERE json_extract(payload, wanted.key) IS NOT wanted.atom
            OR replace(json_type(payload, wanted.key), 'real', 'integer')
                IS NOT replace(wanted.type, 'real', 'integer')
    ) END
"""
_HAS_TAGS = """
    CASE WHEN json_valid(tags) THEN NOT EXISTS (
        SELECT 1 FROM json_each(:tags) AS wanted
        WHERE wanted.value NOT IN (SELECT value FROM json_each(tags))
    ) END
"""
FILTERS: Mapping[str, tuple[Check, str]] = {
    **{name: (_check_text, f"{name} = :{name}") for name in Filters.__annotations__},
    "id": (_several(id_of), ""),
    "name": (_check_name_of, ""),
    "not_name": (_check_names, "name NOT IN (SELECT value FROM json_each(:not_name))"),
    "state": (_check_states, ""),
    "not_state": (_check_states, ""),
    "error": (_check_text, "instr(lower(error), lower(:error))"),
    "group": (_check_text, "litejobs_error_group(name, error) = :group"),
    "schedule": (_check_name_of, "schedule = :schedule"),
    "tags": (_check_wanted_tags, _HAS_TAGS),
    "enqueued_after": (_check_moment, "enqueued_at >= :enqueued_after"),
    "enqueued_before": (_check_moment, "enqueued_at < :enqueued_before"),
    "finished_after": (_check_moment, "finished_at >= :finished_after"),
    "finished_before": (_check_moment, "finished_at < :finished_before"),
    "payload": (_check_fields, _HAS_FIELDS),
}
"""A check that returns the bound value, and the term that is tested on one job after the other."""


@attrs.frozen
class Match:
    """Which jobs a query or a bulk command is for; `None` means any."""

    ids: tuple[int, ...] | None = None
    name: str | None = None
    queue: str | None = None
    states: tuple[State, ...] | None = None
    others: Mapping[str, Any] = attrs.field(factory=dict)
    """The bound values of filters that have no index."""
    before: int | None = None
    """Only jobs with a lower id: the cursor for the next page."""

    @property
    def where(self) -> str:
        """The term on what is counted. (SQLite uses no partial index for a bound state.)"""
        terms = [f"{key} = :{key}" for key in ("queue", "name") if getattr(self, key) is not None]
        if self.states is not None:
            states = ", ".join(f"'{state}'" for state in self.states)
            terms.append(f"state IN ({states})")
        if "not_name" in self.others:
            terms.append(FILTERS["not_name"][1])
        return " AND ".join(terms) or "TRUE"

    @property
    def uncounted(self) -> list[tuple[State, str]]:
        """The states among these that are not counted, with their indexes."""
        indexes: Any = {"pending": "litejobs_ready", "running": "litejobs_held"}
        return [each for each in indexes.items() if self.states is None or each[0] in self.states]

    @property
    def bindings(self) -> dict[str, Any]:
        """The values that the terms refer to."""
        values = {**self.others, "queue": self.queue, "name": self.name}
        values = {k: storable(v) if isinstance(v, str) else v for k, v in values.items()}
        before = 2**63 - 1 if self.before is None else max(-(2**63), min(self.before, 2**63 - 1))
        return {**values, "ids": json.dumps(self.ids), "before": before}


def matching(filters: Filters) -> Match:
    """The jobs that match all filters."""
    check_known(filters, FILTERS, "no such filter")
    others = {
        name: FILTERS[name][0](value, name) for name, value in filters.items() if value is not None
    }
    indexed = ("id", "name", "queue", "state", "not_state")
    id, name, queue, state, not_state = (others.pop(each, None) for each in indexed)
    if "group" in others and state is None:
        state = ("failed",)
    if "error" in others:
        not_state = (*(not_state or ()), "completed")  # Those have none; there may be millions.
    if not_state is not None:
        of = STATES if state is None else state
        state = tuple(each for each in of if each not in not_state)
    return Match(id, name, queue, state, others)


def chosen(ids: tuple[int | Job[Any], ...], filters: Filters) -> Match:
    """The jobs with these ids that match all filters: never every job."""
    if not ids and not filters:
        raise OptionError("id", "say which jobs: ids, or filters such as state='failed'")
    match = matching(filters)
    match = attrs.evolve(match, ids=(*(match.ids or ()), *map(id_of, ids))) if ids else match
    if match == Match():
        raise OptionError("id", "all that was given is None, which would mean every job")
    return match


def _ids_of(match: Match) -> str:
    """A query for the ids of the newest *limit* jobs that match, in that order; it reads little."""
    where = match.where
    further = " AND ".join(("id < :before", *(FILTERS[name][1] for name in match.others)))
    if match.states == ():
        found = "SELECT 1 AS id WHERE FALSE"
    elif match.ids is not None:
        found = f"""
            SELECT id FROM litejobs_job NOT INDEXED
            WHERE id IN (SELECT value FROM json_each(:ids)) AND {further} AND {where}
        """
    elif "tags" in match.others:
        # Each list of tags costs one look-up, whether it has the wanted ones or not.
        of_list = f"""
            SELECT id FROM litejobs_job INDEXED BY litejobs_tags
            WHERE tags = grp.tags AND {further} AND {where} ORDER BY id DESC
        """
        following = "SELECT min(tags) FROM litejobs_job INDEXED BY litejobs_tags WHERE tags"
        found = f"""
            WITH RECURSIVE lists (tags) AS (
                {following} IS NOT NULL
                UNION ALL
                SELECT ({following} > lists.tags) FROM lists WHERE lists.tags IS NOT NULL
            ), newest AS MATERIALIZED (
                SELECT tags, ({of_list} LIMIT 1) AS id FROM lists AS grp
                WHERE {_HAS_TAGS} ORDER BY id DESC LIMIT :limit
            )
            SELECT job.id FROM newest AS grp CROSS JOIN litejobs_job AS job
            ON job.id IN ({of_list} LIMIT :limit)
        """
    elif where == "TRUE":
        found = f"SELECT id FROM litejobs_job WHERE {further}"
    else:
        of_group = f"""
            SELECT id FROM litejobs_job INDEXED BY litejobs_counted
            WHERE {COUNTED} AND state = grp.state AND queue = grp.queue AND name = grp.name
                AND {further} ORDER BY id DESC
        """
        # Only the groups with the newest jobs matter; the others cost one index lookup each.
        counted = f"""
            WITH newest AS MATERIALIZED (
                SELECT state, queue, name, ({of_group} LIMIT 1) AS id FROM litejobs_count AS grp
                WHERE {where} ORDER BY id DESC LIMIT :limit
            )
            SELECT job.id FROM newest AS grp CROSS JOIN litejobs_job AS job
            ON job.id IN ({of_group} LIMIT :limit) WHERE grp.id IS NOT NULL
        """
        found = f"SELECT id FROM ({counted})"
        for state, index in match.uncounted:
            found += f"""
                UNION ALL SELECT id FROM litejobs_job INDEXED BY {index}
                WHERE state = '{state}' AND {where} AND {further}
            """
    return f"SELECT id FROM ({found}) ORDER BY id DESC LIMIT :limit"


def _counts_of(match: Match) -> str:
    """A query for how many jobs match, by state, queue and name."""
    counted = f"SELECT state, queue, name, number FROM litejobs_count WHERE {match.where}"
    others = (
        f"""
        SELECT state, queue, name, count(*) AS number FROM litejobs_job INDEXED BY {index}
        WHERE state = '{state}' AND {match.where} GROUP BY queue, name
        """
        for state, index in match.uncounted
    )
    return " UNION ALL ".join((counted, *others))


def find_jobs(
    tx: Transaction, match: Match, limit: object, source: LiteJobs = NOWHERE
) -> list[Job[Any]]:
    """The jobs that match, newest first."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 2**31:
        raise OptionError("limit", f"expected a number of jobs, got {limit!r}")
    # CROSS fixes the order of the joins: with statistics SQLite might scan all jobs.
    sql = f"""
        WITH found (job) AS MATERIALIZED ({_ids_of(match)})
        SELECT {_JOB} FROM found CROSS JOIN litejobs_job ON id = job ORDER BY id DESC
    """
    rows = tx.execute(sql, {**match.bindings, "limit": limit})
    return [from_row(Job, row, source=source) for row in rows]


def get_jobs(tx: Transaction, ids: Iterable[int], source: LiteJobs = NOWHERE) -> list[Job[Any]]:
    """Several jobs, in the order of their ids."""
    wanted = {*ids}
    jobs = find_jobs(tx, Match(ids=tuple(wanted)), len(wanted), source)
    if missing := wanted - {job.id for job in jobs}:
        raise JobNotFoundError(min(missing))
    return jobs[::-1]


def count_jobs(tx: Transaction, match: Match) -> int:
    """How many jobs match."""
    return sum(count_by(tx, "state", match).values())


def count_by(tx: Transaction, column: Literal["state", "name"], match: Match) -> dict[str, int]:
    """How many jobs match, by state or by name, in that order."""
    sql = f"SELECT {column}, sum(number) FROM ({_counts_of(match)}) GROUP BY {column}"
    if match.ids is not None or match.others.keys() - {"not_name"}:
        sql = f"""
            WITH found (job) AS MATERIALIZED ({_ids_of(match)})
            SELECT {column}, count(*) FROM found CROSS JOIN litejobs_job ON id = job
            GROUP BY {column}
        """
    counts: dict[str, int] = dict(tx.execute(sql, {**match.bindings, "limit": -1}).fetchall())
    order = STATES if column == "state" else sorted(counts)
    return {value: counts[value] for value in order if counts.get(value)}


def count_by_queue(tx: Transaction) -> dict[str, dict[str, int]]:
    """How many jobs there are, by queue and state."""
    counts: dict[str, dict[str, int]] = {}
    sql = f"""
        SELECT queue, state, sum(number) AS number FROM ({_counts_of(Match())})
        GROUP BY queue, state HAVING sum(number) > 0
    """
    for queue, state, number in tx.execute(sql):
        if (type(queue), type(state), type(number)) != (str, str, int):
            problem = f"the number of jobs in {short_repr(queue)} is {short_repr(number)}"
            raise apsw.CorruptError(problem)
        counts.setdefault(queue, {})[state] = number
    return counts


@attrs.frozen
class ErrorGroup:
    """Dead letters of one definition whose errors differ in numbers, quoted texts or paths only."""

    group: str
    """A short id, which stays the same: `retry(group=…)`."""
    name: str
    """The definition's name."""
    error: str
    """The error, with N for numbers and … for quoted texts and paths."""
    number: int
    """How many of the dead letters that were read."""
    first_at: datetime
    last_at: datetime
    example: int
    """The id of the newest one."""


def group_errors(tx: Transaction, match: Match, limit: int) -> list[ErrorGroup]:
    """The groups of the newest *limit* dead letters that match, the largest first."""
    sql = f"""
        WITH found (job) AS MATERIALIZED ({_ids_of(match)})
        SELECT name, error, id, coalesce(finished_at, enqueued_at)
        FROM found CROSS JOIN litejobs_job ON id = job
    """
    groups: dict[str, ErrorGroup] = {}
    rows: Any = tx.execute(sql, {**match.bindings, "limit": limit})
    for name, error, id, micros in rows:
        group, at = error_group(name, error), from_micros(as_integer(micros) or 0)
        known = groups.get(group)
        if known is None:
            known = ErrorGroup(group, str(name), generalized(str(error or "")), 0, at, at, id)
        first_at, last_at = min(known.first_at, at), max(known.last_at, at)
        groups[group] = attrs.evolve(
            known, number=known.number + 1, first_at=first_at, last_at=last_at
        )
    return sorted(groups.values(), key=lambda group: (-group.number, group.name, group.error))


FOLLOWED = 1_000
"""How many of the newest jobs are looked at again, whatever they do."""
COMMIT_DELAY = 5 * SECOND
"""How late it may be committed that a job ended, for others to follow it."""
_ENDED_SINCE = f"""
    WITH kept (length) AS (
        VALUES {", ".join(f"({kept // MICROSECOND})" for kept in _KEPT.values())}
        UNION SELECT value FROM litejobs_definition, json_each(
            CASE WHEN json_valid(retention) THEN retention ELSE '{{}}' END
        ) WHERE typeof(value) = 'integer'
    )
    SELECT id FROM kept CROSS JOIN litejobs_job INDEXED BY litejobs_prune
    ON prune_at IS NOT NULL AND prune_at > :since + length AND prune_at <= :now + length
    WHERE finished_at > :since
"""
"""The jobs that ended since a moment: there is an index of when they will be pruned, and the
lengths of time in between are few."""


def follow(file: File) -> Iterator[set[int]]:
    """At each step, the ids of the jobs that may have changed since the last one: new and running
    ones, and those with a new failure or end. Each step reads little, however large the file is.
    (Of older jobs that have a retention of their own, the end may be missed.)"""
    with file.transaction(read_only=True) as tx:
        since = tx.now
        job = _one_number(tx, "SELECT max(id) FROM litejobs_job") or 0
        attempt = _one_number(tx, "SELECT max(id) FROM litejobs_attempt") or 0
    version, newest = file.changes(), list[int]()
    while True:
        yield set()
        before, version = version, file.changes()
        if version == before:
            continue
        with file.transaction(read_only=True) as tx:
            new = _column(tx, "SELECT id FROM litejobs_job WHERE id > ? ORDER BY id", (job,))
            failures = "SELECT id, job FROM litejobs_attempt WHERE id > ? ORDER BY id"
            failed: list[Any] = tx.execute(failures, (attempt,)).fetchall()
            running = "SELECT id FROM litejobs_job INDEXED BY litejobs_held WHERE state = 'running'"
            found = {*newest, *new, *(of for _, of in failed), *_column(tx, running)}
            found.update(_column(tx, _ENDED_SINCE, {"since": since, "now": tx.now}))
            since = max(since, tx.now - COMMIT_DELAY)
        newest = [*newest, *new][-FOLLOWED:]
        job, attempt = max([job, *new]), max([attempt, *(row[0] for row in failed)])
        yield found


def oldest_due(tx: Transaction) -> dict[str, datetime]:
    """By queue, since when the first of its jobs has been due, if one waits."""
    found: Any = tx.execute(
        """
        SELECT queue, min(run_at) FROM (
            SELECT queue, run_at FROM litejobs_job INDEXED BY litejobs_ready
                WHERE state = 'pending'
            UNION ALL SELECT * FROM (
                SELECT queue, run_at FROM litejobs_job INDEXED BY litejobs_due
                WHERE state IN ('scheduled', 'retrying') AND run_at <= ?
                ORDER BY run_at LIMIT 10000
            )
        ) GROUP BY queue
        """,
        (tx.now,),
    )
    return {queue: from_micros(as_integer(moment) or 0) for queue, moment in found}


def read_failures(tx: Transaction, term: str, number: int = 0) -> list[tuple[int, int, Failure]]:
    """Row id, job id and failure of the attempts for which a SQL *term* holds, oldest first."""
    sql = f"SELECT id, job, {_FAILURE} FROM litejobs_attempt WHERE {term} ORDER BY id"
    rows = tx.execute(sql, {"number": number})
    return [(number, job, from_row(Failure, row)) for number, job, *row in rows]


# In bulk

DELETION = (
    "DELETE FROM litejobs_attempt WHERE job IN carray(:ids)",
    "DELETE FROM litejobs_job WHERE id IN carray(:ids)",
)
"""Deletes jobs with their history."""
Steps = Mapping[tuple[State, ...], tuple[str, ...]]
"""The statements for jobs in these states."""
VERBS: Mapping[str, Steps] = {
    "cancel": {
        WAITING: (_set(f"{_CANCELLED}, error = 'cancelled'"),),
        ("running",): (_set("cancel_at = :now", "cancel_at IS NULL"),),
    },
    "retry": {
        ("failed", "cancelled"): (
            # Other jobs that held their unique keys past the TTL, or have expired, lose them.
            f"""
            UPDATE litejobs_job INDEXED BY litejobs_unique SET unique_key = NULL
            WHERE {HOLDS} AND (unique_until <= :now OR expires_at <= :now AND {_UNSTARTED})
                AND unique_key IN (SELECT unique_key FROM litejobs_job WHERE id IN carray(:ids))
            """,
            # OR IGNORE: another job may hold the unique key by now.
            f"""
            UPDATE OR IGNORE litejobs_job SET
                state = {_READY}, run_at = :now, attempt = 0, lost = 0,
                finished_at = NULL, prune_at = NULL, error = NULL,
                unique_key = iif(unique_until <= :now, NULL, unique_key)
            WHERE id IN carray(:ids)
            """,
        ),
        ("retrying",): (_set(f"state = {_READY}, run_at = :now"),),
        ("blocked",): (
            _set(
                f"state = {_READY}, run_at = min(run_at, :now), unfit_at = NULL, refused = NULL",
                "unfit_at IS NOT NULL",
            ),
        ),
    },
    "delete": {(*WAITING, *FINISHED): DELETION},
    "hold": {
        tuple(state for state in WAITING if state != "paused"): (
            _set("state = 'paused', unfit_at = NULL"),
        )
    },
    "release": {("paused",): (_set(f"state = {_WAITS}"),)},
}
Rework = Callable[[str, object], str | bytes]
"""Makes a new payload from the definition's name and the old payload."""


def bulk(
    file: File, match: Match, steps: Steps, rework: Rework | None = None, **bindings: Any
) -> Moved:
    """Changes the jobs that match by the statements for their states, a BATCH in a transaction, and
    wakes the nodes. If *rework* raises, the jobs of that transaction stay unchanged."""
    with file.transaction(read_only=True) as tx:
        rows: Any = tx.execute(_ids_of(match), {**match.bindings, "limit": -1})
        ids = array.array("q", (id for (id,) in rows))
    moved = 0
    for start in range(0, len(ids), BATCH):
        page = attrs.evolve(match, ids=tuple(ids[start : start + BATCH]))
        with file.transaction() as tx:
            for states, statements in steps.items():
                both = {*states}.intersection(states if match.states is None else match.states)
                part = attrs.evolve(page, states=tuple(both))
                found = _column(tx, _ids_of(part), {**part.bindings, "limit": -1})
                if rework is not None:
                    sql = "SELECT name, payload, id FROM litejobs_job WHERE id IN carray(?)"
                    rows = tx.execute(sql, (_carray(found),)).fetchall()
                    tx.connection.executemany(
                        "UPDATE litejobs_job SET payload = ? WHERE id = ?",
                        [(rework(name, payload), id) for name, payload, id in rows],
                    )
                moved += change_jobs(tx, found, *statements, **bindings)
    file.notify_nodes()
    return Moved(moved, max(0, len(ids) - moved))


def change_options(
    file: File, match: Match, columns: Mapping[str, Any], rework: Rework | None
) -> Moved:
    """Sets columns of waiting jobs, and gives them the payloads that *rework* makes."""
    sets = [f"{column} = :{column}" for column in columns]
    cases, waits = "", _WAITS.replace("run_at", ":run_at") if "run_at" in columns else _WAITS
    if rework is not None:
        sets += ["unfit_at = NULL", "refused = NULL"]
        cases = f"WHEN unfit_at IS NOT NULL THEN {waits}"
    if "run_at" in columns:
        cases += f"""
            WHEN state IN ('retrying', 'paused') OR unfit_at IS NOT NULL THEN state
            WHEN state = 'blocked' AND key IS NULL THEN state
            WHEN state = 'pending' AND :run_at <= :now THEN state
            WHEN TRUE THEN {waits}"""
    sets.append(f"state = CASE {cases or 'WHEN TRUE THEN state'} ELSE state END")
    return bulk(file, match, {WAITING: (_set(", ".join(sets)),)}, rework, **columns)


################################################################################
# Caller's connection
#
# Enqueuing in a transaction of the application, on its own connection.
################################################################################


@contextlib.contextmanager
def on_callers_connection(connection: Any, file: File) -> Iterator[Transaction]:
    """A transaction nested in that of the caller's connection: all of it happens, or none."""
    try:
        # Rows have to be tuples, and text str, whatever factories the application has set.
        plain: dict[str, Any] = {"row_trace": None, "cursor_factory": apsw.Cursor}
        if standard := _is_standard(connection):
            plain = {"row_factory": None, "text_factory": str}
        with contextlib.ExitStack() as restoring:
            for name, value in plain.items():
                restoring.callback(setattr, connection, name, getattr(connection, name))
                setattr(connection, name, value)
            _check_file(connection, file, standard)
            with _nested_transaction(connection, file, standard):
                update_schema(connection, str(file.path))
                if standard:
                    _warn_of_old_sqlite(connection, file)
                yield Transaction(file, connection, own=False)
    except Exception as error:
        if _code(error) & 0xFF == apsw.SQLITE_BUSY:
            problem = "this connection waits for others as long as its own busy timeout allows"
            advice = "who holds a transaction open on it?"
            if _code(error) == apsw.SQLITE_BUSY_SNAPSHOT:
                problem = "others have committed since this transaction began to read"
                advice = "roll it back and do it again, from BEGIN IMMEDIATE on"
            problem = f"the database is locked; {problem}: {advice}"
            raise BusyError(str(file.path), problem) from error
        if isinstance(error, ReadError):
            raise _translated(error, str(file.path)) from error
        if type(error).__module__ != "sqlite3":
            raise
        raise FileError(str(file.path), f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _nested_transaction(connection: Any, file: File, standard: bool) -> Iterator[None]:
    """A savepoint in the open transaction, or a new one, committed at the end in autocommit mode.
    It takes the write lock first: after others have committed, one that has read cannot write."""
    ours = False
    if connection.in_transaction:
        # sqlite3 with autocommit=False begins transactions ahead of time, without the lock.
        try:
            connection.execute("UPDATE litejobs_meta SET value = value WHERE 0")
        except Exception as error:
            if _code(error) != apsw.SQLITE_ERROR:
                raise  # Only that there is no such table yet is expected.
    else:
        connection.execute("BEGIN IMMEDIATE")
        # Since Python 3.12; -1, the default, means that isolation_level decides as before.
        autocommit = getattr(connection, "autocommit", -1) if standard else True
        ours = connection.isolation_level is None if autocommit == -1 else autocommit is True
    if not ours:
        connection.execute("SAVEPOINT litejobs")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # Otherwise the error has rolled back all of it.
            for undo in ["ROLLBACK"] if ours else ["ROLLBACK TO litejobs", "RELEASE litejobs"]:
                connection.execute(undo)
        raise
    if not ours:
        connection.execute("RELEASE litejobs")
        return
    try:
        connection.execute("COMMIT")
    except Exception as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if _code(error) & 0xFF in (apsw.SQLITE_FULL, apsw.SQLITE_BUSY):
            raise  # Nothing was committed: the end of a commit is written last, under the lock.
        raise _unknown_outcome(file, error) from error


def _is_standard(connection: Any) -> bool:
    """Whether it is a connection of the standard sqlite3 (else of apsw); refuses any other."""
    if isinstance(connection, apsw.Connection):
        return False
    standard: Any = sys.modules.get("sqlite3")
    # While another thread is importing it, the class may be missing: then no connection exists.
    if not isinstance(connection, getattr(standard, "Connection", ())):
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        problem = f"expected a connection of apsw or of the standard sqlite3, got a {kind}"
        raise OptionError("connection", f"{problem} (frameworks keep theirs in an attribute)")
    if standard.sqlite_version_info < (3, 38):
        problem = f"this Python's sqlite3 has SQLite {standard.sqlite_version}, 3.38 is needed"
        raise OptionError("connection", problem)
    return True


def _check_file(connection: Any, file: File, standard: bool) -> None:
    """Refuses a connection to another file than the queue's, and the standard sqlite3 while our
    SQLite has the file open in this process."""
    rows = connection.execute("PRAGMA database_list")
    path = next((row[2] for row in rows if row[1] == "main"), None)
    with _translated_errors(file.path):
        if not (path and os.path.exists(file.path) and os.path.samefile(path, file.path)):
            problem = f"is to {path or 'no file'!r}, the jobs are in {file.path}"
            raise OptionError("connection", problem)
        with _OPENING:
            found = _file_id(str(file.path))
            taken = standard and (open_in_litejobs(found) or open_in_apsw(file.path, if_busy=False))
    if taken:
        problem = "litejobs has the file open in this process, through another SQLite library"
        advice = "close() it and work elsewhere, or give it a connection of apsw's"
        raise OptionError("connection", f"{problem}; that breaks locks: {advice}")


def _warn_of_old_sqlite(connection: Any, file: File) -> None:
    """Logs once that the standard sqlite3 may lose commits, and stores that for `doctor`."""
    version: str = sys.modules["sqlite3"].sqlite_version
    if file.warned or sys.modules["sqlite3"].sqlite_version_info >= SAFE_SQLITE:
        return
    file.warned = True
    advice = "use a connection of apsw's, or a Python with SQLite 3.51.3 or later"
    logger.warning("sqlite3 has SQLite %s here, which may lose commits: %s", version, advice)
    connection.execute(
        "INSERT OR REPLACE INTO litejobs_meta (name, value) VALUES ('old_sqlite', ?)", (version,)
    )


################################################################################
# Enqueue
#
# Inserting new jobs. Threads that enqueue at the same time share a commit.
################################################################################


class NewJob(NamedTuple):
    """A job to insert; or several plain ones that differ only in their payloads."""

    columns: Mapping[str, Any]
    """The values by column, except for the payload; missing ones are NULL."""
    payloads: tuple[str | bytes, ...]
    open: frozenset[str] = frozenset()
    """Options that were not given: the queue's defaults apply to them."""
    on_conflict: OnConflict | Callable[[str | bytes], str | bytes] = "return"
    """A function makes the new payload of the job that holds the unique key from the old one."""

    @property
    def group(self) -> Group:
        """Where it is counted."""
        return self.columns["state"], self.columns["queue"], self.columns["name"]

    def job(self, id: int, payload: str | bytes, source: LiteJobs) -> Job[Any]:
        """The job of a row that was just inserted."""
        values: dict[str, Any] = {
            **self.columns, "id": id, "claim": 0, "attempt": 0, "payload": payload,
        }  # fmt: skip
        if values["run_at"] == values["enqueued_at"]:
            values["run_at"] = values["enqueued_at"] = from_micros(values["run_at"])
        row: Any = map(values.get, JOB_COLUMNS)
        return Job(*row, source=source)


_COMPLETE = f"UPDATE litejobs_job AS NEW {COMPLETION} :name WHERE NEW.id = :id"
"""Does what the trigger does for other programs. Our own connection fires no triggers, since other
programs may have added theirs to the file."""


def new_job(bound: Bound[Any], now: int, payloads: tuple[str | bytes, ...] = ()) -> NewJob:
    """What to insert for a job, or for several that differ from it only in their payloads."""
    options = bound.options
    run_at = options.run_at(now)
    columns = {
        **options.columns,
        "name": bound.body.name,
        "run_at": run_at,
        "enqueued_at": now,
        "state": "scheduled" if run_at > now else "pending",
    }
    job = NewJob(columns, payloads or (bound.payload,), options.open)
    if options.plain:
        return job
    key, unique, unique_text = options.key, options.unique or Unique(), unique_key(bound)
    if key is not None:
        key = check_name(key_text(bound, key, "key"), "key")
    columns |= {
        "state": "blocked" if key is not None and run_at <= now else columns["state"],
        "headers": json.dumps(options.headers) if options.headers else None,
        "key": key,
        "key_limit": None if key is None else options.key_limit,
        "unique_key": unique_text,
        "unique_scope": None if unique_text is None else unique.scope,
        "unique_until": None if unique.ttl is None else now + unique.ttl // MICROSECOND,
        "expires_at": options.expires_at(run_at),
        "grace": options.own_grace,
    }
    rule: Any = unique.on_conflict
    return job._replace(
        on_conflict=functools.partial(merged, bound, rule) if callable(rule) else rule
    )


class Enqueued(Sequence[Job[Any]]):
    """Jobs that were just enqueued, each created when it is accessed: most never are."""

    def __init__(self, ids: range, new: Sequence[NewJob], source: LiteJobs) -> None:
        self._ids, self._new, self._source = ids, new, source

    @functools.cached_property
    def _each(self) -> list[tuple[int, NewJob, str | bytes]]:
        each = ((new, payload) for new in self._new for payload in new.payloads)
        return [(id, new, payload) for id, (new, payload) in zip(self._ids, each, strict=True)]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        id, new, payload = self._each[place]
        return new.job(id, payload, self._source)


Limited = Literal["queue", "definition"]
"""What may have a concurrency and a rate."""


@attrs.frozen
class QueueSettings:
    """The settings of a queue; `None` where it has none."""

    name: str
    paused: bool = False
    concurrency: int | None = None
    rate: str | None = None
    """How many may start in a time, as it was given: "10/min"."""
    burst: int | None = None
    weight: float | None = None
    ageing: timedelta | None = None
    defaults: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    """max_attempts, timeout and backoff, if they are set."""
    per_second: float | None = attrs.field(default=None, eq=False, repr=False)
    """The rate as a number."""
    of: Limited = attrs.field(default="queue", eq=False, repr=False)


_QUEUE_DEFAULTS: Mapping[str, Callable[[Any], Any]] = {
    "max_attempts": lambda number: number or None,  # 0: no limit.
    "timeout": as_length,
    "backoff": lambda text: load_backoff(text, DEFAULT_BACKOFF),
}


def read_settings(tx: Transaction) -> dict[tuple[Limited, str], QueueSettings]:
    """The settings of queues, and the limits of definitions as nodes last stored them. A queue with
    numbers out of bounds counts as paused, since it is not known what its jobs may do."""
    bounds = BOUNDS["litejobs_queue"]
    columns = ("name", "paused", "backoff", "rate_given", *bounds)
    found: dict[tuple[Limited, str], QueueSettings] = {}
    for values in tx.execute(f"SELECT {', '.join(columns)} FROM litejobs_queue ORDER BY name"):
        row = dict(zip(columns, values, strict=True))
        defaults = {name: row[name] for name in _QUEUE_DEFAULTS if row[name] is not None}
        try:
            for column, (low, high) in bounds.items():
                if row[column] is not None and not low <= row[column] <= high:
                    raise ValueError(column)
            rate = None if row["rate"] is None else f"{row['rate']:g}/s"
            with contextlib.suppress(OptionError):  # The number may have been changed by hand.
                if parse_rate(row["rate_given"]) == row["rate"]:
                    rate = row["rate_given"]
            found["queue", row["name"]] = QueueSettings(
                name=row["name"],
                paused=bool(row["paused"]),
                rate=rate,
                ageing=as_length(row["ageing"]),
                defaults={name: _QUEUE_DEFAULTS[name](value) for name, value in defaults.items()},
                per_second=row["rate"],
                **{name: row[name] for name in ("concurrency", "burst", "weight")},
            )
        except TypeError:
            problem = f"the settings of the queue {short_repr(row['name'])} are not numbers"
            raise apsw.CorruptError(problem) from None
        except ValueError:
            found["queue", row["name"]] = QueueSettings(row["name"], paused=True)
    sql = "SELECT name, concurrency, rate FROM litejobs_definition"
    limited = f"{sql} WHERE concurrency IS NOT NULL OR rate IS NOT NULL"
    for name, concurrency, rate in tx.execute(limited):
        try:
            per_second = None if rate is None else parse_rate(rate)
        except OptionError as error:
            raise apsw.CorruptError(f"definition {short_repr(name)}: {error}") from None
        found["definition", name] = QueueSettings(
            name, concurrency=concurrency, rate=rate, per_second=per_second, of="definition"
        )
    return found


def _with_defaults(tx: Transaction, jobs: Sequence[NewJob]) -> Sequence[NewJob]:
    """The jobs, with their queues' defaults for the options that were not given."""
    settings = tx.cached(read_settings) if tx.own else read_settings(tx)
    if not settings:
        return jobs
    changed = []
    for job in jobs:
        queue = settings.get(("queue", job.columns["queue"]), QueueSettings(""))
        given = {
            name: STORED[name](queue.defaults[name]) for name in queue.defaults.keys() & job.open
        }
        changed.append(job._replace(columns={**job.columns, **given}) if given else job)
    return changed


@functools.lru_cache
def _insert(columns: tuple[str, ...], values: str = "VALUES ({} ?)") -> str:
    names, places = "".join(f"{column}, " for column in columns), "?, " * len(columns)
    return f"INSERT INTO litejobs_job ({names} payload) {values.format(places)}"


def insert_all(tx: Transaction, jobs: Sequence[NewJob]) -> tuple[range, Sequence[NewJob]]:
    """Inserts jobs without keys or other rules; returns their ids and the completed jobs."""
    jobs, count = _with_defaults(tx, jobs), 0
    counts: dict[Group, int] = {}
    for job in jobs:
        number = len(job.payloads)
        count += number
        if number == 1:
            tx.execute(_insert((*job.columns,)), (*job.columns.values(), *job.payloads))
        else:
            # In half the time of executemany().
            sql = _insert((*job.columns,), "SELECT {} value FROM carray(?)")
            tx.execute(sql, (*job.columns.values(), apsw.carray(job.payloads)))  # type: ignore[arg-type, unused-ignore]
        if job.columns["state"] != "pending":
            counts[job.group] = counts.get(job.group, 0) + number
    if counts:
        add_to_counts(tx, counts)
    # AUTOINCREMENT under the write lock counts without gaps.
    end = tx.connection.last_insert_rowid() + 1
    return range(end - count, end), jobs


def insert_each(tx: Transaction, jobs: Sequence[NewJob]) -> list[tuple[int, bool]]:
    """Inserts jobs; returns for each the id, and whether it is that of an earlier duplicate."""
    inserted = [_insert_one(tx, job) for job in _with_defaults(tx, jobs)]
    for key in {job.columns["key"] for job in jobs if job.columns.get("key") is not None}:
        # Expired jobs give up their slots, even while no node is running; the jobs that are
        # admitted instead may have expired, too.
        sql = f"""
            SELECT id FROM litejobs_job INDEXED BY litejobs_key
            WHERE {KEYED} AND state = 'pending' AND key = ? AND {_UNSTARTED} AND expires_at <= ?
        """
        while row := tx.execute(sql, (key, tx.now)).fetchone():
            expire_job(tx, row[0])
        admit_blocked(tx, [key])
    return inserted


def insert_and_read(tx: Transaction, jobs: Sequence[NewJob], source: LiteJobs) -> list[Job[Any]]:
    """Inserts jobs like `insert_each`; returns them as they are after all of these inserts."""
    sql = f"SELECT {_JOB} FROM litejobs_job WHERE id = ?"
    return [
        from_row(Job, tx.execute(sql, (id,)).fetchone(), source=source, duplicate=duplicate)
        for id, duplicate in insert_each(tx, jobs)
    ]


def _insert_one(tx: Transaction, job: NewJob) -> tuple[int, bool]:
    """Inserts a job, or applies its rule for duplicates."""
    (payload,) = job.payloads
    if (holder := _unique_key_holder(tx, job.columns.get("unique_key"))) is None:
        tx.execute(_insert((*job.columns,)), (*job.columns.values(), payload))
        new: int = tx.execute("SELECT last_insert_rowid()").fetchone()[0]
        add_to_counts(tx, {job.group: 1})
        return new, False
    id, waiting, fixed = holder
    if job.on_conflict == "raise" or (fixed and job.on_conflict != "return"):
        raise DuplicateError(id, job.columns["name"])
    if callable(job.on_conflict):
        sql = "UPDATE litejobs_job SET payload = ? WHERE id = ?"
        tx.execute(sql, (job.on_conflict(waiting), id))
    elif job.on_conflict == "replace":
        kept = {"name", "enqueued_at", "state", "unique_key", "unique_scope", "schedule"}
        sets = "".join(f"{column} = :{column}, " for column in job.columns if column not in kept)
        state = "state = CASE WHEN state = 'paused' THEN state ELSE :state END"
        sql = f"UPDATE litejobs_job SET {sets} {state}, payload = :payload WHERE id = :id"
        change_jobs(tx, [id], sql, **job.columns, payload=payload)
    return id, True


def _unique_key_holder(tx: Transaction, key: str | None) -> tuple[int, str | bytes, bool] | None:
    """Id and payload of the job that holds a unique key, and whether it has started or ended."""
    if key is None:
        return None
    row = tx.execute(
        f"""
        SELECT id, payload, claim > 0 OR finished_at IS NOT NULL, unique_until,
            CASE WHEN {_UNSTARTED} THEN expires_at END
        FROM litejobs_job INDEXED BY litejobs_unique
        WHERE unique_key = ? AND {HOLDS}
        """,
        (key,),
    ).fetchone()
    if row is None:
        return None
    id, payload, fixed, *moments = row
    until, expires_at = map(as_integer, moments)
    if expires_at is not None and expires_at <= tx.now:
        expire_job(tx, id)
        return _unique_key_holder(tx, key)  # With the scope "exists" it still holds the key.
    if until is not None and until <= tx.now:
        tx.execute("UPDATE litejobs_job SET unique_key = NULL WHERE id = ?", (id,))
        return None
    return id, payload, fixed


def insert_unknown(tx: Transaction, name: str, payload: str, given: Mapping[str, Any]) -> int:
    """Inserts one job of a definition that the program does not have; columns that are not given
    are taken from the definition as nodes stored it."""
    known = [str(known) for (known,) in tx.execute("SELECT name FROM litejobs_definition")]
    if known and name not in known:
        problem = f"no node has had such a definition{did_you_mean(name, known)}"
        raise DefinitionError(name, problem)
    tx.execute(_insert(("name", *given)), (name, *given.values(), payload))
    id: int = tx.connection.last_insert_rowid()
    tx.execute(_COMPLETE, {"name": name, "id": id})
    add_to_counts(tx, groups_of(tx, [id])[0])
    return id


GROUP_COMMIT_WINDOW = 0.0001
"""Seconds that a thread waits for others before it commits for all: less than a sync takes."""
Write = Callable[[Transaction], Any]
"""What one thread does in a transaction shared with other threads."""
PendingWrite = tuple[Write, threading.Lock, list[tuple[Any, Exception | None]]]
"""A write, a lock whose release wakes its thread, and a list for its result or error."""


@attrs.define(eq=False, repr=False, slots=False)
class GroupCommit:
    """Commits what threads write: those that come while one thread commits share the next one."""

    file: File
    _lead: threading.RLock = attrs.field(factory=threading.RLock)
    """Held by the thread that commits for all. Reentrant: a signal handler may enqueue while its
    thread holds it."""
    _waiting: list[PendingWrite] = attrs.field(factory=list)
    _size: int = 1
    """How many writes the last commit was for."""

    def __attrs_post_init__(self) -> None:
        FORK_HOOKS[self] = GroupCommit._reset

    def _reset(self) -> None:
        # The parent commits what waits there.
        self._lead, self._waiting = threading.RLock(), []

    def commit(self, write: Write) -> Any:
        """Commits a write, and wakes the nodes; returns its result."""
        lead = self._lead
        if not self._waiting and self._size < 3 and lead.acquire(blocking=False):
            try:
                with self.file.transaction(enqueues=True) as tx:
                    return write(tx)
            finally:
                self._pass_on(lead)
        pending: PendingWrite = write, threading.Lock(), []
        _, wakeup, outcome = pending
        wakeup.acquire()
        self._waiting.append(pending)
        while not outcome:
            if not lead.acquire(blocking=False):
                wakeup.acquire()
                continue
            try:
                if not outcome:
                    self._commit_waiting()
            finally:
                self._pass_on(lead)
        [(result, error)] = outcome
        if error is not None:
            raise error
        return result

    def _pass_on(self, lead: threading.RLock) -> None:
        """Releases the lead, and wakes a waiting thread to take it."""
        lead.release()
        if self._waiting:
            with contextlib.suppress(IndexError, RuntimeError):  # It may have been taken meanwhile.
                self._waiting[0][1].release()

    def _commit_waiting(self) -> None:
        if self.file.durability == "full" and self._size > 2:
            # Threads whose commit has just ended often enqueue again at once.
            time.sleep(GROUP_COMMIT_WINDOW)
        taken = self._waiting[:]
        del self._waiting[: len(taken)]
        self._size = len(taken)
        batches = [taken]
        try:
            while batches:
                batch = batches.pop()
                try:
                    with self.file.transaction(enqueues=True) as tx:
                        results = [write(tx) for write, *_ in batch]
                    for (*_, outcome), result in zip(batch, results, strict=True):
                        outcome.append((result, None))
                except (BusyError, OutcomeUnknownError, FileReplacedError) as error:
                    for *_, outcome in batch:
                        outcome.append((None, error))
                except Exception as error:
                    if len(batch) > 1:  # Perhaps only one of the writes fails.
                        batches = [[pending] for pending in reversed(batch)]
                    else:
                        batch[0][2].append((None, error))
        finally:
            problem = "interrupted while it committed for other threads; jobs may be there or not"
            for _, wakeup, outcome in taken:
                if not outcome:
                    outcome.append((None, OutcomeUnknownError(str(self.file.path), problem)))
                with contextlib.suppress(RuntimeError):
                    wakeup.release()


################################################################################
# Schedules in SQL
#
# The schedules in the file. Any node may fire a tick, in one transaction with its jobs.
################################################################################

_SCHEDULE = ", ".join(f"{field.alias}" for field in attrs.fields(Schedule))
_ACTIVE = "next_at IS NOT NULL AND NOT paused"
_OF_ITS_JOBS = (*STORED, "headers", "key", "key_limit", "unique_key", "unique_scope", "grace")
"""The columns of its jobs that a schedule stores as they are."""


def options_of(batch: NewJob) -> str:
    """The options of a schedule's jobs; the *batch* is made at time 0: moments are durations."""
    columns = batch.columns
    kept = {name: columns.get(name) for name in _OF_ITS_JOBS}
    durations = {"lasts": columns.get("unique_until"), "expires": columns.get("expires_at")}
    more = {"on_conflict": batch.on_conflict, "open": sorted(batch.open)}
    return json.dumps({**kept, **durations, **more})


def batch_of(schedule: Schedule, run_at: int, now: int) -> NewJob:
    """A job of a schedule, due at *run_at*."""
    options = schedule.job_options
    lasts, expires = options.get("lasts"), options.get("expires")
    rule: Any = options.get("on_conflict")
    if schedule.overlap == "queue" and options.get("key") is None:
        options["key"] = f"schedule:{schedule.name}"  # So that its jobs run one at a time.
    columns = {
        **{name: options.get(name) for name in _OF_ITS_JOBS},
        "name": schedule.definition,
        "run_at": run_at,
        "enqueued_at": now,
        "state": "scheduled" if run_at > now else "blocked" if options.get("key") else "pending",
        "schedule": schedule.name,
        "unique_until": None if lasts is None else now + lasts,
        "expires_at": None if expires is None else run_at + expires,
    }
    return NewJob(columns, (schedule.stored_payload,), options["open"], rule)


@attrs.define(eq=False, repr=False, slots=False)
class Schedules:
    """The schedules in the file: fired by any node, once for each tick."""

    file: File
    _rng: random.Random = attrs.field(factory=random.Random)
    _last_fired_at: int = 0
    """The time of the last firing: if it is earlier now, the clock was set back."""
    _logged_unusable: set[str] = attrs.field(factory=set)
    """The schedules that were logged because this machine cannot fire them."""

    def fire(
        self, now: int, on_fired: Callable[[Schedule, list[int]], None] = lambda schedule, ids: None
    ) -> tuple[int, int | None]:
        """Enqueues the jobs of all schedules that are due by *now*; returns how many, and when the
        next one is due. Each tick fires once, on one node, which calls *on_fired* with its jobs."""
        if now < self._last_fired_at:
            with self.file.transaction() as tx:
                self._plan(tx, now)
        self._last_fired_at = now
        if (next_at := self._next_at(-1)) is None or next_at > now:
            return 0, next_at
        with self.file.transaction(read_only=True) as tx:
            found = read_schedules(tx, f"{_ACTIVE} AND next_at <= :now", now=now)
        fired, more = 0, False
        for schedule in filter(self._usable, found):
            ticks, after = schedule.due(now)
            ids = self._fire(schedule, ticks, after, now)
            if ids is not None:
                on_fired(schedule, ids)
                fired += len(ids)
            more |= after.next_tick is not None and after.next_tick <= now
        return fired, now if more else self._next_at(now)

    def _next_at(self, after: int) -> int | None:
        with self.file.transaction(read_only=True) as tx:
            sql = f"SELECT min(next_at) FROM litejobs_schedule WHERE {_ACTIVE} AND next_at > ?"
            return _one_number(tx, sql, (after,))

    def _usable(self, schedule: Schedule) -> bool:
        """Whether this machine can fire a schedule; if not, another machine may."""
        if schedule.problem is not None and schedule.name not in self._logged_unusable:
            logger.error("schedule %s cannot fire: %s", schedule.name, schedule.problem)
            self._logged_unusable.add(schedule.name)
        return schedule.problem is None

    def _fire(
        self, schedule: Schedule, ticks: Sequence[int], after: Schedule, now: int
    ) -> list[int] | None:
        """Enqueues the jobs of these ticks and stores the schedule as it is *after* them; returns
        their ids, or `None` if another node has done so, or the schedule was changed."""
        with self.file.transaction(enqueues=True) as tx:
            if _find_schedule(tx, schedule.name) != schedule:
                return None
            if schedule.overlap != "allow":
                sql = "SELECT state FROM litejobs_job WHERE id = ?"
                last = tx.execute(sql, (schedule.last_job,)).get
                room = (None, *FINISHED, *(["running"] if schedule.overlap == "queue" else []))
                ticks = ticks[:1] if last in room else []
            ids = []
            for tick in ticks:
                run_at = tick + int(self._rng.random() * (schedule.jitter + 1))
                try:
                    batch = batch_of(schedule, run_at, now)
                    [(id, _)] = insert_each(tx, [batch])
                    ids.append(id)
                    after = attrs.evolve(after, last_at=tick, last_job=id)
                except DuplicateError as error:
                    logger.info("a tick passes: %s", error)
            _write_schedule(tx, after)
        logger.info("schedule %s fired %d jobs", schedule.name, len(ids))
        return ids

    def fire_now(self, name: str) -> int:
        """Enqueues one job of a schedule, whose next tick stays as it is; returns its id."""
        with self.file.transaction(enqueues=True) as tx:
            schedule = get_schedule(tx, name)
            [(id, _)] = insert_each(tx, [batch_of(schedule, tx.now, tx.now)])
            _write_schedule(tx, attrs.evolve(schedule, last_at=tx.now, last_job=id))
        return id

    def _plan(self, tx: Transaction, now: int) -> None:
        """Computes the next tick of each schedule again, from its rule and the clock."""
        for schedule in filter(self._usable, read_schedules(tx, "NOT paused")):
            plan = schedule.planned(now)
            if plan != schedule:
                _write_schedule(tx, plan)
            if plan.next_tick != schedule.next_tick:
                at = [tick and from_micros(tick) for tick in (schedule.next_tick, plan.next_tick)]
                logger.warning("schedule %s: next tick set from %s to %s", schedule.name, *at)

    def declare(self, declared: Sequence[Schedule], program: str) -> None:
        """Stores the schedules that a *program* declares, and removes those that it declared
        before but no longer does, unless another program declares them, too."""
        with self.file.transaction(read_only=True) as tx:
            if not declared and not read_schedules(tx):
                return
        with self.file.transaction() as tx:
            known = {schedule.name: schedule for schedule in read_schedules(tx)}
            for new in declared:
                old = known.pop(new.name, None)
                others = {} if old is None else old.programs
                others.pop("", None)  # From before programs were distinguished.
                ours = others.pop(program, None) is not None
                if old is not None and (
                    old.stored_origin is None
                    or old != attrs.evolve(_with_state(new, old), origin=old.stored_origin)
                ):
                    if not ours:
                        by = f"of {', '.join(others)}" if old.stored_origin else "made at run time"
                        logger.warning("schedule %s, %s, is replaced by ours", new.name, by)
                    others = {}
                programs = {**dict([*others.items()][-7:]), **new.programs}
                _put_schedule(tx, attrs.evolve(new, origin=json.dumps(programs)), old)
            for old in known.values():
                if (programs := old.programs).pop(program, None) is None:
                    continue
                if programs:
                    _write_schedule(tx, attrs.evolve(old, origin=json.dumps(programs)))
                else:
                    tx.execute(_DELETE_SCHEDULE, (old.name,))
                    logger.info("schedule %s has left the code and was removed", old.name)
            self._plan(tx, tx.now)

    def put(self, schedule: Schedule, paused: bool | None = None) -> Schedule:
        """Creates a schedule, or changes the one of this name, which stays paused or not unless
        that is given; returns it as stored."""
        with self.file.transaction(notify=True) as tx:
            stored = _put_schedule(tx, schedule, _find_schedule(tx, schedule.name))
            return stored if paused in (None, stored.paused) else _pause(tx, stored, bool(paused))

    def set_paused(self, name: str | None, paused: bool) -> int:
        """Pauses or resumes a schedule, or all of them; returns how many this changed. Ticks that
        pass while a schedule is paused are skipped."""
        with self.file.transaction(notify=True) as tx:
            found = read_schedules(tx) if name is None else [get_schedule(tx, name)]
            found = [schedule for schedule in found if schedule.paused is not paused]
            for schedule in found:
                _pause(tx, schedule, paused)
        return len(found)

    def remove(self, name: str) -> None:
        """Deletes a schedule; the jobs that it has enqueued stay."""
        with self.file.transaction() as tx:
            tx.execute(_DELETE_SCHEDULE, (get_schedule(tx, name).name,))


def read_schedules(tx: Transaction, term: str = "TRUE", **bindings: Any) -> list[Schedule]:
    """The schedules for which an SQL *term* holds, in the order of their names."""
    sql = f"SELECT {_SCHEDULE} FROM litejobs_schedule WHERE {term} ORDER BY name"
    return [from_row(Schedule, row) for row in tx.execute(sql, bindings)]


def _write_schedule(tx: Transaction, schedule: Schedule) -> None:
    row = attrs.astuple(schedule, recurse=False)
    places = ", ".join("?" * len(row))
    tx.execute(f"INSERT OR REPLACE INTO litejobs_schedule ({_SCHEDULE}) VALUES ({places})", row)


def _pause(tx: Transaction, schedule: Schedule, paused: bool) -> Schedule:
    """Pauses a schedule, or resumes it from its next tick on; returns it as stored."""
    if not paused:
        covered = json.dumps([*schedule.periods, (tx.now, tx.now)])
        schedule = attrs.evolve(schedule, covered=covered).planned(tx.now)
    schedule = attrs.evolve(schedule, paused=paused)
    _write_schedule(tx, schedule)
    return schedule


_DELETE_SCHEDULE = "DELETE FROM litejobs_schedule WHERE name = ?"


def _find_schedule(tx: Transaction, name: str) -> Schedule | None:
    return next(iter(read_schedules(tx, "name = :name", name=name)), None)


def get_schedule(tx: Transaction, name: str) -> Schedule:
    """The schedule of this name."""
    if schedule := _find_schedule(tx, name):
        return schedule
    known = [schedule.name for schedule in read_schedules(tx)]
    raise ScheduleNotFoundError(name, did_you_mean(name, known))


def _put_schedule(tx: Transaction, new: Schedule, known: Schedule | None) -> Schedule:
    """Keeps the next tick if the times are the same: it may have been missed while no node ran."""
    times = operator.attrgetter("expression", "timezone", "start_at", "end_at")
    if known is not None:
        new = _with_state(new, known)
    if known is None or times(new) != times(known):
        new = attrs.evolve(new, next_at=None, covered="[]").planned(tx.now)
    if new != known:
        _write_schedule(tx, new)
    return new


def _with_state(new: Schedule, known: Schedule) -> Schedule:
    return attrs.evolve(
        new, paused=known.paused, next_at=known.next_tick, last_at=known.last_tick,
        last_job=known.last_job, covered=known.covered,
    )  # fmt: skip


################################################################################
# Ready
#
# Which job is next: the lanes that a node subscribes to, read ahead, and limits on them.
################################################################################

BURST_SECONDS = 0.01
"""A queue without a burst may start as many jobs at once as its rate allows in this time."""
LONGEST_WAIT = 366 * 86_400.0
"""Seconds after which a queue is checked again, however small its rate is."""
SLOW_SCAN = 0.001
SCAN_PAUSE = 5
"""After a scan of more than SLOW_SCAN seconds, the next one waits SCAN_PAUSE times as long."""


def count_running(tx: Transaction, settings: QueueSettings) -> int:
    """How many of a queue's or a definition's jobs run, on all nodes."""
    column = "queue" if settings.of == "queue" else "name"
    running = "litejobs_job INDEXED BY litejobs_held WHERE state = 'running'"
    sql = f"SELECT count(*) FROM {running} AND {column} = ?"
    number: int = tx.execute(sql, (settings.name,)).get
    return number


# A clock that was set back gives no tokens, and takes none either.
_TOKENS = "min(:burst, coalesce(tokens + max(0, :now - filled_at) * :rate / 1e6, :burst))"


def count_tokens(
    tx: Transaction, settings: QueueSettings, now: int, spent: int | None = None
) -> float:
    """How many jobs the rate of a queue or a definition allows to start now; takes those off that
    were *spent*. Source: the token bucket of ATM traffic policing (ITU-T I.371), with *rate* tokens
    a second and room for *burst*."""
    if (rate := settings.per_second) is None:
        return math.inf
    burst = settings.burst or max(1.0, rate * BURST_SECONDS)
    bindings = {"name": settings.name, "now": now, "burst": burst, "rate": rate, "spent": spent}
    table = f"litejobs_{settings.of}"
    if spent is not None:
        sql = f"UPDATE {table} SET tokens = {_TOKENS} - :spent, filled_at = :now"
        tx.execute(f"{sql} WHERE name = :name", bindings)
    sql = f"SELECT {_TOKENS} FROM {table} WHERE name = :name"
    tokens: float | None = tx.execute(sql, bindings).get
    return burst if tokens is None else tokens


Lane = tuple[str, str, str]
"""The queue, name and node that ready jobs have in common: a node may run all of them or none."""


@attrs.frozen
class Subscription:
    """Which lanes a node takes jobs from."""

    names: frozenset[str]
    queues: frozenset[str] | None
    node: str
    paused: frozenset[str] = frozenset()
    fingerprints: Mapping[str, str] = attrs.field(factory=dict)
    """Of the definitions, by name."""

    @property
    def bindings(self) -> dict[str, Any]:
        """The values that SQL terms about its jobs refer to; the names with their fingerprints."""
        names = {name: self.fingerprints.get(name, "") for name in sorted(self.names)}
        queues = None if self.queues is None else json.dumps(sorted(self.queues))
        return {"names": json.dumps(names), "queues": queues, "node": self.node}

    def __contains__(self, lane: Lane) -> bool:
        queue, name, node = lane
        here = node in ("", self.node) and queue not in self.paused
        return here and name in self.names and (self.queues is None or queue in self.queues)


Position = tuple[int, int, int]
"""What orders the jobs of a lane: the priority (all bits inverted, which reverses the order and
never overflows), the due time and the id."""
_POSITION = "coalesce(~priority, 0), coalesce(~~run_at, 0), id"
"""Integers, even of columns that are NULL."""

FEW_JOBS = 8
"""With fewer ready jobs than this, each is read as a lane of its own."""
_FIRST_FEW = f"""
    SELECT queue, name, node, {_POSITION} FROM litejobs_job INDEXED BY litejobs_ready
    WHERE state = 'pending' ORDER BY queue, name, node LIMIT {FEW_JOBS}
"""
_LANE_HEADS = f"""
    WITH RECURSIVE head (queue, name, node, urgency, run_at, id) AS (
        SELECT * FROM (
            SELECT queue, name, node, {_POSITION}
            FROM litejobs_job INDEXED BY litejobs_ready WHERE state = 'pending'
            ORDER BY queue, name, node, priority DESC, run_at, id LIMIT 1
        )
        UNION ALL
        SELECT next.queue, next.name, next.node,
            coalesce(~next.priority, 0), coalesce(~~next.run_at, 0), next.id
        FROM head JOIN litejobs_job AS next ON next.id = coalesce(
            (SELECT id FROM litejobs_job INDEXED BY litejobs_ready
             WHERE state = 'pending' AND queue = head.queue AND name = head.name
                AND node > head.node ORDER BY node, priority DESC, run_at, id LIMIT 1),
            (SELECT id FROM litejobs_job INDEXED BY litejobs_ready
             WHERE state = 'pending' AND queue = head.queue AND name > head.name
             ORDER BY name, node, priority DESC, run_at, id LIMIT 1),
            (SELECT id FROM litejobs_job INDEXED BY litejobs_ready
             WHERE state = 'pending' AND queue > head.queue
             ORDER BY queue, name, node, priority DESC, run_at, id LIMIT 1)
        )
        -- Or it would not end in a damaged index, which the plus keeps SQLite from using here.
        WHERE (+next.queue, +next.name, +next.node) > (head.queue, head.name, head.node)
    )
    SELECT * FROM head
"""
"""The first job of each lane, by index lookups. (Comparing row values would read all jobs.)"""
_JOBS_OF_LANE = f"""
    SELECT {_POSITION} FROM litejobs_job INDEXED BY litejobs_ready
    WHERE state = 'pending' AND queue = ? AND name = ? AND node = ?
"""
_IN_ORDER = "ORDER BY priority DESC, run_at, id"


@attrs.define(eq=False, repr=False, slots=False)
class LaneReader:
    """Reads the jobs of one lane, in order, a page at a time."""

    queue: str
    name: str
    node: str
    priority: int | None = None
    """The only priority that it reads, if the jobs of the queue age."""
    taken: int = 0
    """How many jobs were taken that are not claimed yet, and so are still in the lane."""
    ended: bool = False
    """Whether there is nothing more to read."""
    _page: int = 4
    _rows: deque[Position] = attrs.field(factory=deque)

    def take(self, tx: Transaction | None) -> Position | None:
        """Takes the first job; returns the position of the next one, read in a transaction."""
        self.taken += 1
        if tx is not None and not self._rows and not self.ended:
            self._page = min(256, self._page * 2)
            one = "" if self.priority is None else f"AND priority = {self.priority}"
            sql = f"{_JOBS_OF_LANE} {one} {_IN_ORDER} LIMIT ? OFFSET ?"
            lane = self.queue, self.name, self.node
            rows: Any = tx.execute(sql, (*lane, self._page, self.taken)).fetchall()
            self._rows.extend(rows)
            self.ended = len(rows) < self._page
        return self._rows.popleft() if self._rows else None


Rank = tuple[float, ...]


@attrs.define(eq=False, repr=False, slots=False)
class Ready:
    """An iterator over the ready jobs of a subscription, ids with names, the most urgent first.

    It reads ahead, since a scan of a thousand lanes takes longer than running the jobs, and keeps
    what it has read until another process commits; a slow scan is not repeated at once even then.
    So another node may have claimed what it returns, which the claim finds out.
    """

    subscription: Subscription
    settings: Mapping[tuple[Limited, str], QueueSettings] = attrs.field(factory=dict)
    now: int = 0
    taken: list[int] = attrs.field(factory=list)
    """The ids that were returned in this transaction."""
    again_at: int | None = None
    """When the rate of a queue or a definition with ready jobs allows the next one to start."""
    version: int | None = None
    """Of the file, when its lanes were scanned; `None` if they have to be scanned again."""
    _heads: list[tuple[Rank, Position, LaneReader]] = attrs.field(factory=list)
    _postponed: list[tuple[Rank, Position, LaneReader]] = attrs.field(factory=list)
    """Heads that wait for the next transaction: at a limit, or without a free worker."""
    _capacities: dict[tuple[Limited, str], list[float]] = attrs.field(factory=dict)
    """By queue or definition: how many more jobs may run, and how many its rate allows to start."""
    _passes: dict[str, float] = attrs.field(factory=dict)
    """By queue: its share so far (C. Waldspurger and W. Weihl, "Stride Scheduling", MIT, 1995)."""
    _used_readers: set[LaneReader] = attrs.field(factory=set)
    _scan_not_before: float = 0.0
    _tx: Transaction | None = None
    _readable: bool = False
    """Whether the lanes are unchanged since they were scanned, so that more can be read."""

    def refresh(self, tx: Transaction) -> None:
        """Begins a transaction: what was returned in the last one is claimed by now."""
        self._tx, self.now = tx, tx.now
        self.settings = tx.cached(read_settings)
        self.taken, self.again_at, self._readable = [], None, True
        self._capacities.clear()
        for reader in self._used_readers:
            reader.taken = 0
        self._used_readers.clear()
        while self._postponed:
            heapq.heappush(self._heads, self._postponed.pop())
        if self.version == tx.version:
            return
        self.version = None
        began = time.monotonic()
        if self._heads and began < self._scan_not_before:
            self._readable = False
            return
        self.scan(tx)
        self.version = tx.version
        took = time.monotonic() - began
        self._scan_not_before = began + took * SCAN_PAUSE if took > SLOW_SCAN else 0.0

    def scan(self, tx: Transaction) -> bool:
        """Reads the first jobs of all lanes; returns whether there is one."""
        rows: Any = tx.execute(_FIRST_FEW).fetchall()
        few = len(rows) < FEW_JOBS
        if not few:
            rows = tx.execute(_LANE_HEADS).fetchall()
        heads: Iterable[tuple[Position, LaneReader]] = [
            ((urgency, run_at, id), LaneReader(queue, name, node, ended=few))
            for queue, name, node, urgency, run_at, id in rows
            if (queue, name, node) in self.subscription
        ]
        if self.settings:
            # A queue does not save up shares while it is empty.
            queues = {reader.queue for _, reader in heads}
            start = min([self._passes[each] for each in queues & self._passes.keys()], default=0.0)
            self._passes = {each: max(start, self._passes.get(each, start)) for each in queues}
            heads = heads if few else self._by_age(tx, heads)
        self._heads = [(self._rank(place, reader), place, reader) for place, reader in heads]
        self._postponed = []
        heapq.heapify(self._heads)
        return bool(self._heads)

    def peek(self) -> tuple[int, str] | None:
        """The next job, which stays the next one."""
        while self._heads:
            rank, place, reader = self._heads[0]
            if not self.settings:
                return place[2], reader.name
            if not all(map(self._allows, self._settings_of(reader))):
                self._postponed.append(heapq.heappop(self._heads))
            elif (now := self._rank(place, reader)) > rank:
                # Other jobs of its queue were returned meanwhile.
                heapq.heapreplace(self._heads, (now, place, reader))
            else:
                return place[2], reader.name
        return None

    @property
    def has_rate(self) -> bool:
        """Whether a rate applies to the next job, which holds only if the job starts at once."""
        return any(each.per_second for each in self._settings_of(self._heads[0][2]))

    def leave_out(self, names: frozenset[str]) -> None:
        """Leaves the jobs of these definitions where they are until the next transaction."""
        self._postponed += [head for head in self._heads if head[2].name in names]
        self._heads = [head for head in self._heads if head[2].name not in names]
        heapq.heapify(self._heads)

    def spend(self, claimed: Iterable[Claimed]) -> None:
        """Takes the jobs that were claimed off the tokens of their queues and definitions."""
        assert self._tx is not None
        if not self.settings:
            return
        started = Counter[tuple[Limited, str]]()
        for job in claimed:
            started.update([("queue", job.queue), ("definition", job.name)])
        for key in started & self.settings.keys():
            count_tokens(self._tx, self.settings[key], self.now, started[key])

    def __iter__(self) -> Ready:
        return self

    def __next__(self) -> tuple[int, str]:
        if not self._heads or (self.settings and self.peek() is None):
            raise StopIteration
        _, (_, _, id), reader = self._heads[0]
        self.taken.append(id)
        self._used_readers.add(reader)
        if self.settings:
            weight = 1.0
            for each in self._settings_of(reader):
                self._capacities[each.of, each.name] = [left - 1 for left in self._capacity(each)]
                weight = each.weight or weight
            if any(settings.weight for settings in self.settings.values()):
                queue = reader.queue
                self._passes[queue] = self._passes.get(queue, 0.0) + 1 / weight
        if following := reader.take(self._tx if self._readable else None):
            rank = self._rank(following, reader) if self.settings else following
            heapq.heapreplace(self._heads, (rank, following, reader))
        else:
            heapq.heappop(self._heads)
        return id, reader.name

    def _rank(self, place: Position, reader: LaneReader) -> Rank:
        """What a job is ordered by: its priority, raised by its age; then, the share that
        its queue has had; then the time when it became due."""
        if not self.settings:
            return place
        urgency, run_at, id = place
        queue = reader.queue
        if (settings := self.settings.get(("queue", queue))) and settings.ageing:
            urgency -= max(0, self.now - run_at) // (settings.ageing // MICROSECOND)
        return urgency, self._passes.get(queue, 0.0), run_at, id

    def _settings_of(self, reader: LaneReader) -> list[QueueSettings]:
        """The settings of the queue and of the definition of a lane."""
        keys: tuple[tuple[Limited, str], ...] = ("queue", reader.queue), ("definition", reader.name)
        return [self.settings[key] for key in keys if key in self.settings]

    def _capacity(self, settings: QueueSettings) -> list[float]:
        key = settings.of, settings.name
        if (capacity := self._capacities.get(key)) is None:
            assert self._tx is not None
            slots = 0.0 if settings.paused else math.inf
            if slots and settings.concurrency is not None:
                slots = settings.concurrency - count_running(self._tx, settings)
            capacity = [slots, count_tokens(self._tx, settings, self.now)]
            self._capacities[key] = capacity
        return capacity

    def _allows(self, settings: QueueSettings) -> bool:
        """Whether one more job of a queue or a definition may be claimed."""
        slots, tokens = self._capacity(settings)
        if slots >= 1 > tokens:
            # Rounded up, and one more: a moment too early would repeat for ever.
            rate = settings.per_second or math.inf
            at = self.now + math.ceil(min(LONGEST_WAIT, (1 - tokens) / rate) * 1e6) + 1
            self.again_at = min(self.again_at or at, at)
        return min(slots, tokens) >= 1

    def _by_age(
        self, tx: Transaction, heads: Iterable[tuple[Position, LaneReader]]
    ) -> Iterator[tuple[Position, LaneReader]]:
        """The heads of lanes; where jobs age, the first of each priority, which is its oldest."""
        for place, reader in heads:
            settings = self.settings.get(("queue", reader.queue))
            if settings is None or not settings.ageing:
                yield place, reader
                continue
            following: Any = place
            while following is not None:
                priority = ~following[0]
                lane = reader.queue, reader.name, reader.node
                yield following, LaneReader(*lane, priority)
                # The plus: in a damaged index this would not end.
                lower = f"{_JOBS_OF_LANE} AND priority < ? AND +priority < ? {_IN_ORDER} LIMIT 1"
                following = tx.execute(lower, (*lane, priority, priority)).fetchone()


################################################################################
# Nodes
#
# The nodes that are running, and the jobs of nodes that have died. A node is alive while one of
# its processes holds a lock, which the operating system releases when the process ends.
################################################################################

NODE_LOST = "the node ended while it held the job"
LOST_LIMIT = 5
"""How many nodes may die while they hold a job before it is a dead letter."""
MISSING_LIMIT = 30.0
"""Seconds after which a node whose lock file is missing counts as dead: a live one creates it
again in half a second."""
NAME_TIMEOUT = 1.0
"""Seconds for which a node waits until the processes of another one of its name have ended."""


def _names_in(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        names = load_json(text)
        if isinstance(names, list | dict) and {*map(type, names)} <= {str}:
            return tuple(names)
    raise apsw.CorruptError(f"a node does not list names: {short_repr(text)}")


@attrs.frozen
class Node:
    """A running `work()`, as it is listed in the file."""

    id: int
    name: str
    pid: int
    port: int
    workers: int
    queues: tuple[str, ...] | None = attrs.field(converter=_names_in)
    started_at: datetime = attrs.field(converter=from_micros)
    running: int
    """How many jobs it holds."""
    names: tuple[str, ...] | None = attrs.field(converter=_names_in)
    """The definitions that it has; `None` if that is not known."""


_UNLISTED = """
    SELECT ifnull(holder, 0) AS holder, count(*) AS number FROM litejobs_job
    WHERE state = 'running' AND ifnull(holder, 0) NOT IN (SELECT id FROM litejobs_node) GROUP BY 1
"""


@attrs.define(eq=False, repr=False, slots=False)
class Nodes:
    """The nodes that are listed in the file, and the jobs that they hold."""

    file: File
    _locks: dict[int, tuple[FileId, contextlib.ExitStack]] = attrs.field(factory=dict)
    """Of the nodes of this process: the id of the lock file, and the lock on it."""
    _missing: dict[int, tuple[int, int]] = attrs.field(factory=dict)
    """Nodes without a lock file: when that was last seen, and for how many microseconds in all,
    of which at most a second counts between two checks: this process may have been stopped."""

    def join(
        self,
        name: str,
        port: int,
        workers: int,
        subscription: Subscription,
        known: Sequence[Mapping[str, Any]],
    ) -> int:
        """Lists a node, locked before others can see it; returns its id. Stores the options and the
        hidden fields of its *known* definitions, for programs that do not have them."""
        columns = {
            **subscription.bindings, "name": name, "pid": os.getpid(), "port": port,
            "workers": workers,
        }  # fmt: skip
        deadline = time.monotonic() + NAME_TIMEOUT
        node = 0
        while not node:
            try:
                with self.file.transaction() as tx:
                    # With two live nodes of a name, a job for that name would reach either one.
                    namesakes: Any = tx.execute(
                        "SELECT id, pid FROM litejobs_node WHERE name = ?", (name,)
                    ).fetchall()
                    pid = next((pid for id, pid in namesakes if self.is_alive(id)), None)
                    if pid is None:
                        self._remove_stale_locks(tx)
                        tx.execute(
                            "INSERT INTO litejobs_node"
                            " (name, pid, port, workers, names, queues, started_at)"
                            " VALUES (:name, :pid, :port, :workers, :names, :queues, :now)",
                            {**columns, "now": tx.now},
                        )
                        node = tx.connection.last_insert_rowid()
                        _store_definitions(tx, known)
                        self._create_lock(node)
            except BaseException:
                self.release_lock(node)
                raise
            if pid is not None:
                if time.monotonic() > deadline:
                    raise WorkerError(
                        f"a node named {name!r} is at work (process {pid}): "
                        "stop that one first, or give this one another name, or none"
                    )
                time.sleep(0.02)
        self.file.node_count += 1
        return node

    def _remove_stale_locks(self, tx: Transaction) -> None:
        """Removes the lock files of nodes that were killed while they left. No other node can be
        joining now, since this process has the write lock."""
        listed = set(map(self.file.presence_path, _column(tx, "SELECT id FROM litejobs_node")))
        with contextlib.suppress(OSError):
            for path in map(str, self.file.path.parent.iterdir()):
                if path.startswith(self.file.presence_path("")) and path not in listed:
                    with lock_of_dead(path):
                        pass

    def _create_lock(self, node: int) -> None:
        """Creates the lock file and locks it. It has the mode and group of the queue's file, and
        as root its owner, as SQLite does with the WAL: every user of the queue has to be able to
        find out whether this node is alive."""
        path = self.file.presence_path(node)
        with _translated_errors(path):
            found = os.stat(self.file.path)
            made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            with os.fdopen(made, "rb+", 0), contextlib.suppress(OSError):
                if sys.platform != "win32":  # Some other file systems have no modes and groups.
                    mode = found.st_mode & 0o666
                    try:
                        os.fchown(made, found.st_uid if os.geteuid() == 0 else -1, found.st_gid)
                    except OSError:
                        mode &= ~0o060  # It would be for another group.
                    os.fchmod(made, mode)
        self._locks[node] = _file_id(path), lock_shared(path)

    def renew(self, node: int) -> bool:
        """Creates and locks the lock file of a node of this process again if it was removed or
        replaced; returns whether it was. Its other processes still hold the old one."""
        path = self.file.presence_path(node)
        if node not in self._locks or _file_id(path) == self._locks[node][0]:
            return False
        old = self._locks[node]
        with _translated_errors(path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._create_lock(node)
        old[1].close()
        return True

    def release_lock(self, node: int) -> None:
        """Releases the lock of a node of this process."""
        if held := self._locks.pop(node, None):
            held[1].close()

    def hidden(self) -> dict[str, frozenset[str]]:
        """By name of the definition, the fields of its payload that are not to be shown."""
        rows = self.file.read("""
            SELECT substr(name, length('hidden:') + 1), path.value
            FROM litejobs_meta, json_each(litejobs_meta.value) AS path
            WHERE name GLOB 'hidden:*' AND json_valid(litejobs_meta.value)
                AND typeof(path.value) = 'text'
        """)
        return {name: frozenset(path for of, path in rows if of == name) for name, _ in rows}

    def all(self) -> list[Node]:
        """The nodes that are listed, with the number of jobs that each holds."""
        rows = self.file.read("""
            SELECT id, name, pid, port, workers, queues, started_at, (
                SELECT count(*) FROM litejobs_job WHERE state = 'running' AND holder = node.id
            ), names
            FROM litejobs_node AS node ORDER BY id
        """)
        with _translated_errors(self.file.path):
            return [from_row(Node, row) for row in rows]

    def held(self, node: int) -> list[dict[str, Any]]:
        """Id, name and start of the jobs that a node holds, the longest running first."""
        rows = self.file.read(
            """
            SELECT id, name, started_at FROM litejobs_job
            WHERE state = 'running' AND holder = ? ORDER BY started_at, id
            """,
            (node,),
        )
        return [{"id": i, "name": n, "started_at": maybe_moment(at)} for i, n, at in rows]

    def others(self, node: int) -> list[tuple[int, str, int]]:
        """Ids, names and pids of the other nodes, in order, from the next one on."""
        sql = "SELECT id, name, pid FROM litejobs_node WHERE id <> ?1 ORDER BY id < ?1, id"
        return self.file.read(sql, (node,))

    def is_listed(self, node: int) -> bool:
        """Whether a node is listed; if not, another one has found it dead."""
        return bool(self.file.read("SELECT 1 FROM litejobs_node WHERE id = ?", (node,)))

    def check_listed(self, node: int) -> None:
        """Raises an error if a node is not listed: no other node would rescue its jobs."""
        if not self.is_listed(node):
            problem = "this process is not listed any more as one at work: it has to join anew"
            raise FileError(str(self.file.path), problem)

    def unlisted(self) -> list[int]:
        """The ids of nodes that hold jobs but are not listed; 0 for jobs without a holder."""
        return [holder for (holder,) in self.file.read(f"SELECT holder FROM ({_UNLISTED})")]

    def is_alive(self, node: int, if_unknown: bool = False) -> bool:
        """Whether a process of a node is left."""
        try:
            alone = lock_exclusive(self.file.presence_path(node))
        except FileError:
            return if_unknown
        if alone is not None:
            alone.close()
        return alone is None

    def rescue(self, node: int) -> list[tuple[int, str, str, int, int]]:
        """Takes over the jobs of a node if none of its processes is left; returns their ids, names,
        queues and attempts, and whether each is a dead letter, as it is after LOST_LIMIT losses;
        else it is ready again, without losing an attempt. If it is unknown whether the node is
        alive, it keeps its jobs, unless its lock file stays missing."""
        with lock_of_dead(self.file.presence_path(node)) as dead:
            if dead is not None:
                self._missing.pop(node, None)
                return self._take_over(node) if dead else []
            now = self.file.clock()
            seen, lasted = self._missing.get(node, (now, 0))
            lasted += min(max(0, now - seen), SECOND)
            self._missing[node] = now, lasted
            late = lasted >= MISSING_LIMIT * SECOND or not self.is_listed(node)
            return self._take_over(node) if late else []

    def _take_over(self, node: int) -> list[tuple[int, str, str, int, int]]:
        with self.file.transaction() as tx:
            held = """
                SELECT id, name, queue, attempt, lost + 1 >= ? FROM litejobs_job
                WHERE state = 'running' AND ifnull(holder, 0) = ?
            """
            lost: list[Any] = tx.execute(held, (LOST_LIMIT, node)).fetchall()
            change_jobs(
                tx,
                [row[0] for row in lost],
                """
                INSERT INTO litejobs_attempt (
                    job, attempt, kind, type, message, traceback, worker, started_at, finished_at
                )
                SELECT job.id, attempt, 'lost', 'NodeLost', :problem, '', ifnull(node.pid, 0),
                    ifnull(job.started_at, :now), :now
                FROM litejobs_job AS job LEFT JOIN litejobs_node AS node ON node.id = job.holder
                WHERE job.id IN carray(:ids)
                """,
                f"""
                UPDATE litejobs_job SET
                    lost        = min(lost, :limit) + 1,
                    attempt     = max(attempt, 1) - (lost + 1 < :limit),
                    state       = iif(lost + 1 < :limit, 'pending', 'failed'),
                    finished_at = iif(lost + 1 < :limit, NULL, :now),
                    prune_at    = iif(lost + 1 < :limit, NULL, :now + {_kept_for("'failed'")}),
                    error       = 'NodeLost: ' || :problem,
                    expires_at  = NULL,
                    holder      = NULL
                WHERE id IN carray(:ids)
                """,
                limit=LOST_LIMIT,
                problem=NODE_LOST,
            )
            cancel_returned(tx)
            tx.execute("DELETE FROM litejobs_node WHERE id = ?", (node,))
        return lost

    def release_orphans(self, node: int, held: Iterable[tuple[int, int]]) -> None:
        """Makes the jobs of a node ready again that a commit with unknown outcome claimed: all but
        those that are *held*, by id and claim."""
        with self.file.transaction() as tx:
            tx.execute(
                """
                UPDATE litejobs_job SET
                    state = 'pending', attempt = attempt - 1, holder = NULL, started_at = NULL
                WHERE state = 'running' AND holder = ?
                    AND (id, claim) NOT IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))
                """,
                (node, json.dumps([*held])),
            )
            cancel_returned(tx)

    def requests(self, node: int) -> tuple[list[int], int | None]:
        """The ids of cancelled jobs that a node still runs; and the number of the recall, if it
        has to take back the jobs that its workers have not started."""
        sql = "SELECT id FROM litejobs_job WHERE cancel_at IS NOT NULL AND holder = ?"
        recall = "SELECT recall FROM litejobs_node WHERE id = ?"
        with self.file.transaction(read_only=True) as tx:
            return _column(tx, sql, (node,)), _one_number(tx, recall, (node,))

    def confirm_recall(self, node: int, recall: int) -> None:
        """Stores that a node has taken back its jobs, unless there is another recall by now."""
        with self.file.transaction() as tx:
            sql = "UPDATE litejobs_node SET recall = NULL WHERE id = ? AND recall = ?"
            tx.execute(sql, (node, recall))


def _store_definitions(tx: Transaction, known: Sequence[Mapping[str, Any]]) -> None:
    columns = (*STORED, "expires", "concurrency", "rate", "name")
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns)
    tx.connection.executemany(  # The tokens stay: to start again must not let more jobs start.
        f"INSERT INTO litejobs_definition ({', '.join(columns)})"
        f" VALUES ({', '.join(f':{column}' for column in columns)})"
        f" ON CONFLICT (name) DO UPDATE SET {changes}",
        known,
    )
    tx.connection.executemany(
        "INSERT OR REPLACE INTO litejobs_meta (name, value) VALUES (?, ?)",
        [(f"hidden:{own['name']}", json.dumps(sorted(own["hidden"]))) for own in known],
    )


def lock_shared(path: str) -> contextlib.ExitStack:
    """Locks the lock file of a node, in one of its processes."""
    with _translated_errors(path):
        held = lock(path, exclusive=False, wait=BUSY_TIMEOUT)
    if held is None:
        raise BusyError(path, "locked by another process for too long")
    FORK_HOOKS[held] = contextlib.ExitStack.close  # What a job forks does not keep its node alive.
    return held


_log_once = functools.lru_cache(100)(logger.error)


def lock_exclusive(path: str) -> contextlib.ExitStack | None:
    """Locks a node's lock file, unless one of its processes has; a `FileError`: it is unknown."""
    try:
        with _translated_errors(path):
            return lock(path, exclusive=True)
    except FileError as error:
        # A live node creates it again; or it was just rescued.
        if not isinstance(error.__cause__, FileNotFoundError):
            _log_once("whether a node lives cannot be known: %s", str(error))
        raise


@contextlib.contextmanager
def lock_of_dead(path: str) -> Iterator[bool | None]:
    """Whether certainly no process of a node is left; `None` if there is no lock file. If so, none
    can lock the file until the block ends; then it is removed. Several processes that check at
    the same moment may all get `False`, so callers have to check again later."""
    alone, missing = None, False
    try:
        alone = lock_exclusive(path)
    except FileError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
    if alone is None:
        yield None if missing else False
        return
    with alone:
        yield True
    with contextlib.suppress(OSError):
        os.unlink(path)


################################################################################
# Health
#
# Metrics, the reasons why jobs wait, the problems of a queue, and copies of its file.
################################################################################

Span = Literal["minute", "hour", "day"]
SPANS: Mapping[str, int] = {"minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}
"""In microseconds."""
MEASURED: tuple[State, ...] = ("completed", "failed", "retrying", "cancelled")
SAMPLE_SIZE = 8
"""How many jobs of an exchange are measured."""
METRIC_RETENTION = 90 * SPANS["day"]
_METRIC = "span, time, queue, name, measure, bucket, number"


@attrs.frozen
class Metric:
    """What nodes did in a minute, an hour or a day (of UTC). Times are estimated from a sample
    of the jobs, to about 10 %; `None` if there was no job."""

    start: datetime
    completed: int
    failed: int
    retried: int
    cancelled: int
    waiting_median: timedelta | None
    """Waiting is from when a job was due to when its last attempt began."""
    waiting_p95: timedelta | None
    running_median: timedelta | None
    """Running is an attempt, whether it completed or failed."""
    running_p95: timedelta | None


def bucket_of(micros: int) -> int:
    """The histogram bucket of a duration: four to an octave."""
    return int(4 * math.log2(micros)) if micros > 1 else 0


def quantile(numbers: Mapping[int, int], share: float) -> timedelta | None:
    """The duration that this share of all does not exceed, as the middle of its bucket."""
    left = share * sum(numbers.values())
    for bucket in sorted(numbers):
        left -= numbers[bucket]
        if left <= 0:  # No bucket above 240, 36,000 years, was written by litejobs.
            return timedelta(microseconds=round(2 ** (min(bucket + 0.5, 240) / 4)))
    return None


def _histograms(rows: Any) -> defaultdict[Any, defaultdict[str, dict[int, int]]]:
    """By what comes first in a row, then by measure: the numbers by bucket."""
    found: defaultdict[Any, Any] = defaultdict(lambda: defaultdict(dict))
    for key, measure, bucket, number in rows:
        found[key][measure][as_integer(bucket) or 0] = as_integer(number) or 0
    return found


@attrs.define(eq=False, repr=False, slots=False)
class Meter:
    """Counts the jobs that a node has settled, and measures how long they took: in memory, until
    `flush`. A process that is killed loses its last few seconds."""

    file: File
    _rng: random.Random = attrs.field(factory=random.Random)
    _counts: defaultdict[tuple[int, str, str, str, int], int] = attrs.field(
        factory=lambda: defaultdict(int)
    )
    """By minute, queue, name, measure and bucket."""

    def count(self, settlements: Sequence[Settlement], groups: Mapping[Group, int]) -> None:
        """Counts all jobs, and measures a sample of them."""
        counts, now = self._counts, self.file.clock()
        minute = now - now % SPANS["minute"]
        for (state, queue, name), number in groups.items():
            if state in MEASURED:
                counts[minute, queue, name, state, 0] += number
        size = len(settlements)
        step = -(-size // SAMPLE_SIZE) or 1
        for start in range(0, size, step):
            weight = min(step, size - start)
            # At random, since jobs of different kinds may alternate.
            chosen = start + int(self._rng.random() * weight) if weight > 1 else start
            claimed, report = settlements[chosen]
            if not report.started_at or report.state == "cancelled":
                continue
            key = minute, claimed.queue, claimed.name
            finished = report.state in FINISHED
            if finished:
                waited = bucket_of(report.started_at - claimed.run_at)
                counts[*key, "waiting", waited] += weight
            if finished or report.kind:
                ran = bucket_of(report.finished_at - report.started_at)
                counts[*key, "running", ran] += weight

    def flush(self) -> None:
        """Stores the counts."""
        if counts := self._counts:
            with self.file.transaction() as tx:
                tx.connection.executemany(
                    f"INSERT INTO litejobs_metric ({_METRIC}) VALUES (60, ?, ?, ?, ?, ?, ?) {_ADD}",
                    [(*key, number) for key, number in counts.items()],
                )
            self._counts = defaultdict(int)

    def roll_up(self, now: int) -> bool:
        """Adds up one hour of minutes that are older than a day, and deletes hours after
        METRIC_RETENTION; returns whether it did anything."""
        hour, old = SPANS["hour"], now - METRIC_RETENTION
        end = now - now % hour - SPANS["day"]
        minutes = "SELECT min(time) FROM litejobs_metric WHERE span = 60 AND time < ?"
        outdated = "FROM litejobs_metric WHERE span = 3600 AND time < ?"
        with self.file.transaction(read_only=True) as tx:
            first = _one_number(tx, minutes, (end,))
            if first is None and tx.execute(f"SELECT 1 {outdated} LIMIT 1", (old,)).get is None:
                return False
        start = 0 if first is None else max(0, first - first % hour)
        values = {"start": start, "end": start + hour}
        with self.file.transaction() as tx:
            of_that_hour = "FROM litejobs_metric WHERE span = 60 AND time < :end"
            tx.execute(
                f"""
                INSERT INTO litejobs_metric ({_METRIC})
                SELECT 3600, :start, queue, name, measure, bucket, sum(number)
                {of_that_hour} GROUP BY queue, name, measure, bucket {_ADD}
                """,
                values,
            )
            tx.execute(f"DELETE {of_that_hour}", values)
            tx.execute(f"DELETE {outdated}", (old,))
        return True

    def last_hour(self, tx: Transaction) -> dict[str, tuple[int, timedelta | None]]:
        """By queue, how many jobs ended in the last hour, and the median of their waiting."""
        rows = tx.execute(
            """
            SELECT queue, measure, bucket, sum(number) FROM litejobs_metric
            WHERE span = 60 AND time > ? AND measure IN ('completed', 'failed', 'waiting')
            GROUP BY 1, 2, 3
            """,
            (tx.now - SPANS["hour"],),
        )
        return {
            queue: (
                numbers["completed"].get(0, 0) + numbers["failed"].get(0, 0),
                quantile(numbers["waiting"], 0.5),
            )
            for queue, numbers in _histograms(rows).items()
        }

    def read(self, span: Span, queue: str | None, name: str | None, limit: int) -> list[Metric]:
        """The metrics of the last spans, the current one at the end."""
        length = SPANS[span]
        last = self.file.clock() // length * length
        spans = range(last - (limit - 1) * length, last + 1, length)
        values = {
            "length": length, "first": spans[0], "end": last + length,
            "queue": queue and storable(queue), "name": name and storable(name),
        }  # fmt: skip
        with self.file.transaction(read_only=True) as tx:
            rows = tx.execute(
                f"""
                SELECT time - time % :length, measure, bucket, sum(number) FROM litejobs_metric
                WHERE span IN ({"60" if span == "minute" else "60, 3600"})
                    AND time >= :first AND time < :end
                    AND (:queue IS NULL OR queue = :queue) AND (:name IS NULL OR name = :name)
                GROUP BY 1, 2, 3
                """,
                values,
            )
            found = _histograms(rows)
        metrics = []
        for start in spans:
            numbers = found[start]
            counts: Any = [numbers[state].get(0, 0) for state in MEASURED]
            times = [quantile(numbers[m], q) for m in ("waiting", "running") for q in (0.5, 0.95)]
            metrics.append(Metric(from_micros(start), *counts, *times))
        return metrics


def back_up(file: File, place: Path) -> Path:
    """Copies the file while others use it, into a new one that only its user can read; returns
    its absolute path. The copy gets its name when it is complete and on the disk."""

    def refuse_existing() -> None:
        if os.path.lexists(place):
            raise FileError(str(place), "exists already: name a new file for the copy")

    refuse_existing()
    try:
        unfinished = f"{place.name}-unfinished-{random.getrandbits(32):08x}"
        copy = _locate(place.with_name(unfinished), create=True)
    except FileError as error:
        raise FileError(str(place), error.problem) from None
    place = copy.with_name(place.name)
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    try:
        with (
            file.second_connection() as source,
            _translated_errors(place),
            contextlib.closing(apsw.Connection(str(copy), flags=flags)) as target,
        ):
            target.pragma("journal_mode", "off")  # An incomplete copy is deleted.
            target.pragma("synchronous", "full")
            with target.backup("main", source, "main") as pages:
                pages.step()
            # No node works on the copy; without their lock files, they would seem to be missing.
            target.execute("DELETE FROM litejobs_node")
        with _translated_errors(place):
            refuse_existing()
            copy.rename(place)
            if sys.platform != "win32":  # File systems of Windows keep names safe themselves.
                folder = os.open(place.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            copy.unlink()
        raise
    return place


def compact(file: File) -> Compacted:
    """Rewrites the file without gaps, and empties its WAL. Writers wait meanwhile, at most
    BUSY_TIMEOUT; as much free space is needed as the file has."""

    def size() -> int:
        return sum(os.stat(f"{file.path}{end}").st_size for end in ("", "-wal"))

    with file.transaction():
        pass  # Refuses a file that may only be read.
    with file.second_connection() as connection:
        before = size()
        connection.pragma("temp_store", "default")  # The file may not fit into memory.
        connection.execute("VACUUM")
        with contextlib.suppress(apsw.BusyError):  # There is a reader: the next checkpoint does it.
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        return Compacted(before, size())


OVERDUE = 60_000_000
LATE = 3_600_000_000
"""Microseconds that a job may be ready without a warning: if no node is at work, and if one is."""
LARGE_WAL = 128 * MEBIBYTE
_ACTUAL_COUNTS = f"""
    SELECT state, queue, name, count(*) AS number FROM litejobs_job INDEXED BY litejobs_counted
    WHERE {COUNTED} AND queue IS NOT NULL GROUP BY queue, name, state
"""


def _when(moment: datetime | int | None) -> str:
    return f"{as_moment(moment or 0):%Y-%m-%d %H:%M:%S} UTC"


def _quantity(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _quantity_in_sql(noun: str, number: str = "count(*)") -> str:
    return f"{number} || iif({number} = 1, ' {noun}', ' {noun}s')"


def _out_of_bounds(table: str, id: str, *completed: str) -> str:
    """A query for rows that were written without the triggers that check and complete them."""
    bounds = BOUNDS[table].items()
    cases = [f"WHEN {c} NOT BETWEEN {low} AND {high} THEN '{c}'" for c, (low, high) in bounds]
    cases += [f"WHEN {column} IS NULL THEN '{column}'" for column in completed]
    sql = f"SELECT {id}, CASE {' '.join(cases)} END AS wrong FROM {table}"
    return f"SELECT * FROM ({sql}) WHERE wrong IS NOT NULL LIMIT 10"


_WRONG_COUNTS = f"""
    SELECT state, queue, name, sum(kept), sum(number) FROM (
        SELECT state, queue, name, number AS kept, 0 AS number FROM litejobs_count
        UNION ALL SELECT state, queue, name, 0, number FROM ({_ACTUAL_COUNTS})
    ) GROUP BY state, queue, name HAVING sum(kept) <> sum(number)
"""
_UNKNOWN = ":known IS NOT NULL AND {} NOT IN (SELECT value FROM json_each(:known))"
_PENDING = "litejobs_job INDEXED BY litejobs_ready WHERE state = 'pending'"
_PAUSED = "SELECT name FROM litejobs_queue WHERE paused"
_JOB_COUNT, _WAITING_COUNT = _quantity_in_sql("job"), _quantity_in_sql("waiting job", "sum(number)")
PROBLEMS: Sequence[tuple[Level, str, str, str, str]] = (
    (
        "error", "job {0!r}", "its {1} is out of bounds",
        "`litejobs change …` or `litejobs delete …` it",
        _out_of_bounds("litejobs_job", "id", "queue", "priority", "run_at", "enqueued_at"),
    ),
    (
        "error", "queue {0!r}", "its {1} is out of bounds",
        "it is paused: `litejobs queue …` sets it anew", _out_of_bounds("litejobs_queue", "name"),
    ),
    (
        "error", "{0} jobs of {2!r} in queue {1!r}", "counted as {3}, but there are {4}",
        "`litejobs doctor … --repair` counts them anew", _WRONG_COUNTS,
    ),
    (
        "warning", "a program",
        "enqueued through sqlite3 with SQLite {0}, which may lose commits",
        "enqueue there through apsw, or with SQLite 3.51.3; then `litejobs doctor … --repair`",
        "SELECT value FROM litejobs_meta WHERE name = 'old_sqlite'",
    ),
    (
        "warning", "node {0!r}", "died (pid {1}) and is still listed, with {2}",
        "the next node at work takes its jobs over: `litejobs run …`",
        f"""
        SELECT name, pid,
            (SELECT {_JOB_COUNT} FROM litejobs_job WHERE state = 'running' AND holder = node.id)
        FROM litejobs_node AS node WHERE id NOT IN (SELECT value FROM json_each(:live))
        """,
    ),
    (
        "warning", "node {0}", "is not listed, and holds {1}",
        "a node at work takes them over within a minute: `litejobs run …`",
        f"SELECT holder, {_quantity_in_sql('job', 'number')} FROM ({_UNLISTED})",
    ),
    (
        "warning", "definition {0!r}", "{who} has it, for {1}",
        "start a program that defines it, or `litejobs cancel … --name` them",
        f"""
        SELECT name, {_WAITING_COUNT} FROM ({_counts_of(Match(states=WAITING))})
        WHERE {_UNKNOWN.format("name")} GROUP BY name HAVING sum(number) > 0
        """,
    ),
    (
        "warning", "definition {0!r}", "{1} blocked, such as {2}: {3}",
        "run a definition that they fit, such as one with `upgrade=`, or `litejobs change …` them",
        f"""
        SELECT name, {_JOB_COUNT}, min(id), error FROM litejobs_job INDEXED BY litejobs_unfit
        WHERE unfit_at IS NOT NULL AND state = 'blocked' GROUP BY name
        """,
    ),
    (
        "warning", "definition {0!r}", "has not the same parameters in the nodes {1}",
        "each job runs where its payload fits; end the nodes of the older program",
        """
        SELECT known.key, group_concat(node.name, ', ')
        FROM litejobs_node AS node, json_each(node.names) AS known
        WHERE node.id IN (SELECT value FROM json_each(:live))
        GROUP BY known.key HAVING count(DISTINCT substr(known.value, 1, 8)) > 1
        """,
    ),
    (
        "warning", "schedule {0!r}", "{who} has its definition {1!r}",
        "start a program that defines it, or remove the schedule",
        f"""
        SELECT name, definition FROM litejobs_schedule
        WHERE next_at IS NOT NULL AND NOT paused AND {_UNKNOWN.format("definition")}
        """,
    ),
    (
        "warning", "definition {0!r}",
        "{1}, such as {2}, put off until {3} at the latest by a clock that was ahead",
        "give them another time, such as `litejobs change … ID --delay 0`",
        f"""
        SELECT name, {_JOB_COUNT}, min(id), strftime('%F %T UTC', max(run_at) / 1e6, 'unixepoch')
        FROM litejobs_job AS it
        WHERE state IN ('scheduled', 'retrying') AND run_at > :soon AND (
            coalesce(started_at, enqueued_at) > :soon
            OR EXISTS (SELECT 1 FROM litejobs_attempt WHERE job = it.id AND finished_at > :soon)
        ) GROUP BY name
        """,
    ),
    (
        "warning", "node {0!r}", "is not at work, with {1} for it alone",
        "start it, or `litejobs change … --from-node {quoted} --node ''`",
        f"""
        SELECT node, {_JOB_COUNT} FROM {_PENDING}
            AND node <> '' AND node NOT IN (SELECT value FROM json_each(:names)) GROUP BY node
        """,
    ),
    (
        "warning", "queue {0!r}", "is paused, with {1}",
        "when they may run: `litejobs queue … {quoted} --resume`",
        f"""
        SELECT queue, {_quantity_in_sql("waiting job")}
        FROM {_PENDING} AND queue IN ({_PAUSED}) GROUP BY queue
        """,
    ),
    (
        "error", "key {0!r}", "held by no job, with {2} waiting for it, such as {1}",
        "`litejobs doctor … --repair` lets the first one in",
        f"""
        SELECT key, min(id), {_JOB_COUNT} FROM litejobs_job AS blocked
        WHERE key IS NOT NULL AND state = 'blocked' AND unfit_at IS NULL AND NOT EXISTS (
            SELECT 1 FROM litejobs_job
            WHERE key = blocked.key AND key IS NOT NULL AND state IN ('pending', 'running')
        ) GROUP BY key
        """,
    ),
    (
        "warning", "queue {0!r}", "{2} late, the first since {1}{idle}", "{hurry}",
        f"""
        SELECT queue, strftime('%F %T UTC', min(run_at) / 1e6, 'unixepoch'), {_JOB_COUNT}
        FROM {_PENDING} AND run_at < :late AND queue NOT IN ({_PAUSED}) GROUP BY queue
        """,
    ),
    (
        "warning", "definition {0!r}", "{1} late, and it may only {2}",
        "raise its concurrency= or rate=, and start a node with that",
        f"""
        SELECT name, {_JOB_COUNT},
            concat_ws(', and ', 'run ' || concurrency || ' at a time', 'start ' || rate) AS limits
        FROM litejobs_definition JOIN litejobs_job INDEXED BY litejobs_ready USING (name)
        WHERE state = 'pending' AND run_at < :late AND limits <> '' GROUP BY name
        """,
    ),
    (
        "warning", "definition {1!r}", "{2} in queue {0!r}",
        "see `litejobs list … --state failed`, then retry or delete them",
        f"""
        SELECT queue, name, {_quantity_in_sql("dead letter", "number")}
        FROM litejobs_count WHERE state = 'failed' AND number > 0
        """,
    ),
)  # fmt: skip
"""Level, subject, problem, advice, and a query for the problems: its columns go into the texts."""


def find_problems(nodes: Nodes) -> Iterator[Finding]:
    """All problems of a queue, in sentences for the person in charge; none, if all is well."""
    file, live = nodes.file, list[Node]()
    with file.second_connection() as connection:
        if broken := [*_find_damage(connection)]:
            yield from broken  # The rest of the file cannot be trusted.
            return
        for node in nodes.all():
            alone = None
            try:
                alone = lock_exclusive(file.presence_path(node.id))
            except FileError as error:
                yield Finding(
                    "error", f"node {node.name!r}", f"whether it lives cannot be known: {error}",
                    f"unless it does (pid {node.pid}), see to it that there is no such file: a"
                    f" node at work takes its jobs over {MISSING_LIMIT:g} s later",
                )  # fmt: skip
            if alone is None:
                live.append(node)
            else:
                alone.close()
        tx = Transaction(file, connection, own=False)
        yield from _find_problems_in(tx, live)
        for schedule in read_schedules(tx, "NOT paused"):
            right = None if schedule.problem else schedule.planned(tx.now).next_tick
            if schedule.problem:
                yield Finding(
                    "error", f"schedule {schedule.name!r}",
                    f"cannot be fired by this machine: {schedule.problem}",
                    "put that right, or `litejobs remove-schedule …` it",
                )  # fmt: skip
            elif right != schedule.next_tick:
                stored, due = (_when(at) if at else "never" for at in (schedule.next_tick, right))
                yield Finding(
                    "warning", f"schedule {schedule.name!r}",
                    f"its next tick is stored as {stored}, but by its rule is {due}",
                    "the clock or the time zones have changed: a node that starts corrects it",
                )  # fmt: skip
        wal = f"{file.path}-wal"
        size = os.path.getsize(wal) if os.path.exists(wal) else 0  # A file that is only read.
        if size > LARGE_WAL:
            yield Finding(
                "warning", "the WAL", f"has grown to {size // MEBIBYTE} MiB",
                "a program keeps a transaction open: end it, then `litejobs compact …`",
            )  # fmt: skip


def _find_problems_in(tx: Transaction, live: Sequence[Node]) -> Iterator[Finding]:
    """The PROBLEMS that there are, while these nodes are at work."""
    texts = {"who": "no node so far", "idle": ": no node is at work"}
    texts["hurry"] = "start one: `litejobs run …`"
    known = {name for (name,) in tx.execute("SELECT name FROM litejobs_definition")} or None
    if live:
        names = [node.names for node in live]
        known = None if None in names else {name for each in names for name in each or ()}
        advice = "start more workers, or see by `litejobs why …` what the first one waits for"
        texts = {"who": "no node at work", "idle": "", "hurry": advice}
    values = {
        "live": json.dumps([node.id for node in live]),
        "names": json.dumps([node.name for node in live]),
        "known": None if known is None else json.dumps([*known]),
        "soon": tx.now + 60 * SECOND,
        "late": tx.now - (LATE if live else OVERDUE),
    }
    for level, *sentences, sql in PROBLEMS:
        for row in tx.execute(sql, values):
            texts["quoted"] = shlex.quote(str(row[0]))
            yield Finding(level, *(text.format(*row, **texts) for text in sentences))


def _find_damage(connection: apsw.Connection) -> Iterator[Finding]:
    """What is damaged in the file, or missing in its schema."""
    advice = "restore a backup, or save what can be read: sqlite3 FILE .recover"
    try:
        indexes, problems = _integrity(connection)
        for problem in problems:
            yield Finding("error", "the file", problem, advice)
        for index, rows in indexes.items():
            yield Finding(
                "error", f"index {index}",
                f"does not agree with its table{': rows ' if rows else ''}{', '.join(rows[:5])}",
                "`litejobs doctor … --repair` builds it anew; no job is lost by that",
            )  # fmt: skip
        # SQLite's own check refuses deeper nesting than Python's, and ends at a NUL.
        for column in ("payload", "headers", "result", "progress", "retention", "tags", "meta"):
            ids = []
            for id, text in connection.execute(f"""
                SELECT id, {column} FROM litejobs_job
                WHERE typeof({column}) = 'text'
                    AND (NOT json_valid({column}) OR instr({column}, char(0)))
            """):
                try:
                    load_json(text)
                except ValueError:
                    ids.append(str(id))
            if ids:
                yield Finding(
                    "error", f"the {column} of {_quantity(len(ids), 'job')}",
                    f"cannot be read as JSON: {', '.join(ids[:5])}",
                    "restore a backup, or enqueue these jobs anew and `litejobs delete …` them",
                )  # fmt: skip
    except (apsw.CorruptError, apsw.NotADBError) as error:
        yield Finding("error", "the file", f"cannot be read to its end: {error}", advice)
        return
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    for _, name in sorted(_expected_schema()):
        if name not in there:
            yield Finding("error", "the schema", f"{name} is missing", "restore a backup")


def _integrity(connection: apsw.Connection) -> tuple[dict[str, list[str]], list[str]]:
    """Has SQLite check the whole file. Returns the indexes that do not agree with their tables,
    each with the ids of rows that SQLite mentions, and all other problems."""
    indexes, others = defaultdict[str, list[str]](list), []
    for (problem,) in connection.execute("PRAGMA integrity_check(100)"):
        if match := re.match(r"(?:row (\d+) )?.*\bindex (litejobs_\w+)$", problem):
            indexes[match[2]] += filter(None, [match[1]])
        elif problem != "ok":
            others.append(problem)
    return indexes, others


def repair(file: File) -> int:
    """Rebuilds damaged indexes and counts all jobs again; returns how many of both were wrong."""
    with file.second_connection() as connection:
        damaged, _ = _integrity(connection)
    with file.transaction() as tx:
        for index in sorted(damaged):
            tx.execute(f"REINDEX {index}")
        repaired = len(damaged) + len(tx.execute(_WRONG_COUNTS).fetchall())
        tx.execute("DELETE FROM litejobs_meta WHERE name = 'old_sqlite'")
        tx.execute("DELETE FROM litejobs_count")
        tx.execute(f"INSERT INTO litejobs_count (state, queue, name, number) {_ACTUAL_COUNTS}")
    return repaired


def explain(nodes: Nodes, job: Job[Any]) -> tuple[str, bool]:
    """Why a job is not running, or how it ended; and whether more than its turn is needed."""
    live = [node for node in nodes.all() if nodes.is_alive(node.id, if_unknown=True)]
    with nodes.file.transaction(read_only=True) as tx:
        why, stuck = _explanation(tx, live, job)
    return printable(why), stuck


def find_left(file: File, subscription: Subscription) -> dict[str, str]:
    """How many jobs wait although a node has nothing to do now: by the reason, with it."""
    left: Counter[str] = Counter()
    with file.transaction(read_only=True) as tx:
        paused = {name for (_, name), known in read_settings(tx).items() if known.paused}
        first = _one_number(tx, "SELECT min(run_at) FROM litejobs_job WHERE state = 'scheduled'")
        for state, queue, name, number in tx.execute(_counts_of(Match(states=WAITING))):
            if name not in subscription.names:
                why = f"of {name!r}, which this program does not define"
            elif subscription.queues is not None and queue not in subscription.queues:
                why = f"in queue {queue!r}, which the node does not serve"
            elif state == "pending" and queue in paused:
                why = f"in queue {queue!r}, which is paused"
            else:
                why = {"pending": "for other nodes", "paused": "held"}.get(state, state)
            left[why] += number
    due = {"scheduled": f" (the first is due at {_when(first)})"}
    most = (+left).most_common(10)
    return {why: f"{number} {why}{due.get(why, '')}" for why, number in most}


def store_awaited(file: File, id: int, by: int) -> None:
    """Stores that a job is waited for *by* the handler of a running one, for `explain`."""
    with file.transaction() as tx:
        tx.execute("UPDATE litejobs_job SET awaited_by = ? WHERE id = ?", (by, id))


def _explanation(tx: Transaction, live: Sequence[Node], job: Job[Any]) -> tuple[str, bool]:
    due, ended = _when(job.run_at), _when(job.finished_at)
    if job.state == "running":
        sql = "SELECT holder, cancel_at FROM litejobs_job WHERE id = ?"
        holder, cancel_at = tx.execute(sql, (job.id,)).fetchone() or (None, None)
        node = next((node for node in live if node.id == holder), None)
        if node is None:
            return "the node that ran it has died, and the next one at work takes it over", True
        asked = "" if cancel_at is None else ", and was asked to end"
        runs = f"it is running: attempt {job.attempt} on node {node.name!r} (pid {node.pid})"
        return f"{runs} since {_when(job.started_at)}{asked}", False
    if job.state == "pending":
        return _pending_reason(tx, live, job)
    if job.state == "blocked" and job.unfit_at is not None:
        return f"{job.error}; it goes on once a node has a definition that it fits", True
    if job.state == "blocked" and job.key is not None:
        sql = """
            SELECT id FROM litejobs_job
            WHERE key = ? AND key IS NOT NULL AND state IN ('pending', 'running')
            ORDER BY id LIMIT 5
        """
        ids = [id for (id,) in tx.execute(sql, (job.key,))]
        jobs = f"job{'s' * (len(ids) > 1)} {', '.join(map(str, ids))}"
        nobody = "no job: `litejobs doctor … --repair` lets it in"
        waiter = _waiter(tx, live, job)
        among = waiter.get("id") in ids
        by = f"; {waiter['shown']} is one of them" if among else ""
        stuck = among or not ids or not live
        return f"its key {job.key!r} is held by {jobs if ids else nobody}{by}", stuck
    if job.state in DELAYED and to_micros(job.run_at) <= tx.now and not live:
        return f"it has been due since {due}, and no node is at work", True
    # The error of an earlier attempt is not the reason why it was cancelled.
    cancelled = str(job.error).startswith(("Expired: ", "Cancel: ", "Cancelled: "))
    why = {
        "blocked": "it waits for another job",
        "paused": "a person holds it, until it is released",
        "scheduled": f"it is due at {due}",
        "retrying": f"attempt {job.attempt} failed ({job.error}), and the next one is due at {due}",
        "failed": f"it failed at {ended}, after {_quantity(job.attempt, 'attempt')}: {job.error}",
        "cancelled": f"it was cancelled at {ended}{f': {job.error}' if cancelled else ''}",
    }.get(job.state, f"it completed at {ended}{f', and {job.error}' if job.error else ''}")
    return why, job.state in ("paused", *DELAYED)


def _pending_reason(tx: Transaction, live: Sequence[Node], job: Job[Any]) -> tuple[str, bool]:
    waiter = _waiter(tx, live, job)
    settings = read_settings(tx)
    for each in settings.get(("queue", job.queue)), settings.get(("definition", job.name)):
        if each is None:
            continue
        it, limit = f"its {each.of} {each.name!r}", each.concurrency
        if each.paused:
            return f"{it} is paused", True
        if limit is not None and (running := count_running(tx, each)) >= limit:
            among = waiter.get(each.of) == each.name
            by = f"; {waiter['shown']} is one of them" if among else ""
            return f"{it} runs as many jobs at a time as it may: {running} of {limit}{by}", among
        if count_tokens(tx, each, tx.now) < 1:
            return f"{it} starts as many jobs as it may: {each.rate}", False
    here = [node for node in live if job.node in (None, node.name)]
    know = [node for node in here if node.names is None or job.name in node.names]
    serve = [node for node in know if node.queues is None or job.queue in node.queues]
    for nodes, reason in (
        (live, "no node is at work"),
        (here, f"its node {job.node!r} is not at work"),
        (know, f"no node at work has its definition {job.name!r}"),
        (serve, f"no node at work serves its queue {job.queue!r}"),
    ):
        if not nodes:
            return reason, True
    if [node.id for node in serve] == [waiter.get("node")] and serve[0].running >= serve[0].workers:
        share = "one of them" if serve[0].workers > 1 else "the only one"
        busy = f"it is ready, but no worker is free: {waiter['shown']} has {share}"
        return f"{busy} (an `async def` handler that awaits it would leave its worker free)", True
    sql = """
        SELECT count(*) FROM (
            SELECT 1 FROM litejobs_job INDEXED BY litejobs_ready
            WHERE state = 'pending' AND queue = ?
                AND (~priority, run_at, id) < (~?, ?, ?) LIMIT 1000
        )
    """
    position = job.queue, job.priority, to_micros(job.run_at), job.id
    if ahead := tx.execute(sql, position).get:
        return f"it is ready, behind {_quantity(ahead, 'more urgent job')} of its queue", False
    return "it is ready, and next in its queue", False


def _waiter(tx: Transaction, live: Sequence[Node], job: Job[Any]) -> dict[str, Any]:
    """The running job whose handler waits for this one; empty if there is none."""
    sql = """
        SELECT id, name, queue, holder FROM litejobs_job WHERE state = 'running'
            AND id = (SELECT awaited_by FROM litejobs_job WHERE id = ?)
    """
    id, name, queue, node = tx.execute(sql, (job.id,)).fetchone() or (0, "", "", 0)
    shown = f"job {id} ({name}), which waits for it,"
    found = {"id": id, "definition": name, "queue": queue, "node": node, "shown": shown}
    return found if node in {each.id for each in live} else {}


################################################################################
# Store
#
# The file with all its parts, and the life of jobs: settle and claim in one transaction, stage,
# expire, prune. Knows rows, not definitions.
################################################################################

ROW_ERRORS = apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError, apsw.SQLError
"""Errors of SQLite's whose cause may be one row, not the file or the disk."""
RECALL_TIMEOUT = 2.0
"""Seconds that nodes have to take back the jobs that their workers have not started."""
PRUNE_BATCH, SHRINK_BATCH = 1_000, 200
"""Rows that are pruned, and empty pages that are given back, in one transaction."""


class Exchanged(NamedTuple):
    """The result of an exchange."""

    claimed: list[Claimed]
    late: int
    """How many settlements were discarded, because another claim holds the job."""
    again_at: int | None
    """When a rate allows the next job to start, if one waits for that."""
    complete: bool = True
    """Whether all that was ready was considered: a slow scan is not repeated at once."""


@attrs.define(eq=False, repr=False, slots=False)
class Store:
    """The file with all its parts, and the life of the jobs in it."""

    file: File
    clock: Clock = attrs.field(init=False)
    group_commit: GroupCommit = attrs.field(init=False)
    schedules: Schedules = attrs.field(init=False)
    nodes: Nodes = attrs.field(init=False)
    meter: Meter = attrs.field(init=False)
    _ready: Ready | None = None

    def __attrs_post_init__(self) -> None:
        file = self.file
        self.clock, self.group_commit = file.clock, GroupCommit(file)
        self.schedules = Schedules(file)
        self.nodes, self.meter = Nodes(file), Meter(file)

    # Claim and settle

    def exchange(
        self,
        settlements: Sequence[Settlement],
        node: int,
        choose: Callable[[Ready], list[int]],
        subscription: Subscription,
        progress: Mapping[tuple[int, int], Sequence[str | None]] = {},
    ) -> Exchanged:
        """Stores progress, settles jobs, and claims those that *choose* picks from the ready ones,
        in one transaction."""
        ready, self._ready = self._ready, None  # Read again after an error.
        if ready is None or ready.subscription is not subscription:
            ready = Ready(subscription)
        with self.file.transaction() as tx:
            if progress:
                _keep_progress(tx, progress)
            settled, groups, made_ready = _settle(tx, settlements)
            if made_ready:
                ready.version = None
            ready.refresh(tx)
            ids = choose(ready)
            claimed = _claim(tx, ids, node) if ids else []
            ready.spend(claimed)
        self.meter.count(settled, groups)
        ready.version = tx.version + 1 if ready.version and ids == ready.taken else None
        self._ready = ready
        late = len(settlements) - len(settled)
        return Exchanged(claimed, late, ready.again_at, ready.version is not None)

    def settle_each(self, settlements: list[Settlement]) -> None:
        """Settles and removes jobs one at a time; one that cannot be settled fails."""
        while settlements:
            claimed, report = settlements[0]
            try:
                with self.file.transaction() as tx:
                    settled, groups, _ = _settle(tx, settlements[:1])
                self.meter.count(settled, groups)
            except FileError as error:
                if not isinstance(error.__cause__, ROW_ERRORS):
                    raise
                problem = f"could not be settled: {error.__cause__}"
                problem = storable(f"job {claimed.id} was {report.state}, but {problem}")
                logger.error("%s", problem)
                failed = f"""
                    UPDATE litejobs_job SET
                        state = 'failed', holder = NULL, finished_at = :now, error = :error,
                        prune_at = :now + {_kept_for("'failed'")}
                    WHERE id IN carray(:ids) AND claim = :claim AND state = 'running'
                """
                with self.file.transaction() as tx:
                    change_jobs(tx, [claimed.id], failed, claim=claimed.claim, error=problem)
            del settlements[0]

    def keep_progress(self, progress: Reports) -> None:
        """Stores what jobs have reported, by id and claim, unless the claim was lost."""
        with self.file.transaction() as tx:
            _keep_progress(tx, progress)

    # Stage, expire, admit and prune

    def stage(self, now: int) -> tuple[int, int | None]:
        """Makes jobs ready that are due; returns how many, and when the next one is due."""
        later = "FROM litejobs_job WHERE state IN ('scheduled', 'retrying')"
        return self._change_due(
            now,
            f"""
            SELECT min(run_at) FROM (
                SELECT min(run_at) AS run_at {later} AND state = 'scheduled'
                UNION ALL SELECT min(run_at) {later} AND state = 'retrying'
            )
            """,
            f"SELECT id {later} AND run_at <= ?",
            f"""
            UPDATE litejobs_job SET state = {_READY}
            WHERE id IN carray(:ids) AND +state IN ('scheduled', 'retrying')
            """,
        )

    def expire(self, now: int) -> tuple[int, int | None]:
        """Cancels jobs that were not started in time; returns how many, and the next expiry."""
        expiring = "FROM litejobs_job WHERE expires_at IS NOT NULL"
        expired, due = self._change_due(
            now,
            f"SELECT min(expires_at) {expiring}",
            f"SELECT id {expiring} AND expires_at <= ? ORDER BY expires_at",
            # The expiry of jobs that were started in time has no further use.
            f"""
            UPDATE litejobs_job SET expires_at = NULL
            WHERE id IN carray(:ids) AND NOT ({_UNSTARTED})
            """,
            _expiry("IN carray(:ids)"),
        )
        if expired:
            logger.info("cancelled %d jobs that were not started in time", expired)
        return expired, due

    def _change_due(
        self, now: int, next_due: str, find: str, *statements: str
    ) -> tuple[int, int | None]:
        """Changes jobs, in one transaction after another, until *next_due*, a query, has no
        time up to *now*; returns how many were changed, and that time."""
        changed = 0
        while True:
            with self.file.transaction(read_only=True) as tx:
                due = _one_number(tx, next_due)
            if due is None or due > now:
                return changed, due
            with self.file.transaction() as tx:
                ids = _column(tx, f"{find} LIMIT {BATCH}", (now,))
                changed += change_jobs(tx, ids, *statements)
                left = _one_number(tx, next_due)
                next_found = _column(tx, f"{find} LIMIT 1", (now,))
                self.file.expect_change(left is None or left > now or next_found != ids[:1])

    def admit(self) -> int:
        """Admits blocked jobs whose slots were freed unnoticed, as by hand; returns how many."""
        admitted, key = 0, ""
        following = f"""
            SELECT min(key) FROM litejobs_job INDEXED BY litejobs_key
            WHERE {KEYED} AND state = 'blocked' AND key > ?
        """
        while True:
            with self.file.transaction(read_only=True) as tx:
                if (key := tx.execute(following, (key,)).get) is None:
                    return admitted
                free = admissible(tx, key) is not None
            if free:
                with self.file.transaction() as tx:
                    admitted += admit_blocked(tx, [key])

    def release_unfit(self, subscription: Subscription, node: int, most: int) -> int:
        """Makes blocked jobs ready that did not fit other definitions than these; returns how many:
        at *most* so many while another node may take and refuse them once more."""
        with self.file.transaction(read_only=True) as tx:
            unfit = "litejobs_job INDEXED BY litejobs_unfit WHERE unfit_at IS NOT NULL"
            if not tx.execute(f"SELECT 1 FROM {unfit} LIMIT 1").get:
                return 0
            bindings = {**subscription.bindings, "id": node}
            rivals: bool = tx.execute(_RIVALS, bindings).get
            ids = _column(tx, f"{_RELEASABLE} LIMIT {most if rivals else BATCH}", bindings)
        if not ids:
            return 0
        with self.file.transaction() as tx:
            term = "state = 'blocked' AND unfit_at IS NOT NULL"
            return change_jobs(tx, ids, _set(f"state = {_WAITS}, unfit_at = NULL", term))

    def prune(self, now: int) -> int:
        """Deletes one batch of jobs whose retention is over; returns how many."""
        due = """
            SELECT id FROM litejobs_job WHERE prune_at IS NOT NULL AND prune_at <= ?
            ORDER BY prune_at LIMIT ?
        """
        with self.file.transaction(read_only=True) as tx:
            if not _column(tx, due, (now, 1)):
                return 0
        with self.file.transaction() as tx:
            return change_jobs(tx, _column(tx, due, (now, PRUNE_BATCH)), *DELETION)

    def shrink(self) -> int:
        """Gives some empty pages of the file back to the file system; returns how many."""
        with self.file.transaction(read_only=True) as tx:
            free: int = tx.connection.pragma("freelist_count")
        if free:
            with self.file.transaction() as tx:
                tx.execute(f"PRAGMA incremental_vacuum({SHRINK_BATCH})").fetchall()
                free -= tx.connection.pragma("freelist_count")
        return free

    def forget_statistics(self) -> None:
        """Deletes the statistics that an ANALYZE in the application made of our tables."""
        with self.file.transaction(read_only=True) as tx:
            _forget_statistics(tx.connection)

    def read_ended(
        self, claims: Mapping[int, int | None], names: frozenset[str]
    ) -> Iterator[tuple[Claimed, Ended]]:
        """Those of these jobs, by id and claim (`None`: any), and *names* that have ended."""
        ended = f"SELECT {_JOB} FROM litejobs_job WHERE id IN carray(?) AND +state IN {FINISHED}"
        last = f"""
            SELECT {_FAILURE} FROM litejobs_attempt
            WHERE job = ?1 AND (SELECT state FROM litejobs_job WHERE id = ?1) = 'failed'
            ORDER BY id DESC LIMIT 1
        """
        width = len(Claimed._fields)
        with self.file.transaction(read_only=True) as tx:
            for row in tx.execute(ended, (_carray(claims),)).fetchall():
                claimed, rest = Claimed._make(row[:width]), row[width:]
                if claimed.name in names and claims[claimed.id] in (None, claimed.claim):
                    yield claimed, (rest, tx.execute(last, (claimed.id,)).fetchone())

    # Queues and nodes

    def queues(self) -> dict[str, QueueSettings]:
        """The queues that have settings, by name."""
        with self.file.transaction(read_only=True) as tx:
            found = read_settings(tx)
        return {name: settings for (of, name), settings in found.items() if of == "queue"}

    def set_queue(self, name: str, columns: Mapping[str, Any]) -> None:
        """Changes settings of a queue, and wakes the nodes; waits until they have taken back jobs
        that have not started, if those are to wait now."""
        # A new rate starts with a full bucket.
        if "rate" in columns or "burst" in columns:
            columns = {**columns, "tokens": None}
        changes = "".join(f", {column} = :{column}" for column in columns)
        recalls = any(columns.get(setting) for setting in ("paused", "concurrency", "rate"))
        with self.file.transaction(notify=True) as tx:
            tx.execute("INSERT OR IGNORE INTO litejobs_queue (name) VALUES (?)", (name,))
            change = f"UPDATE litejobs_queue SET name = :name{changes} WHERE name = :name"
            tx.execute(change, {"name": name, **columns})
            if recalls:
                recall = "UPDATE litejobs_node SET recall = coalesce(recall, 0) + 1"
                tx.execute(f"{recall} WHERE port > 0")  # A drain has no port, and cannot answer.
        deadline = time.monotonic() + RECALL_TIMEOUT
        for pause in poll_intervals() if recalls else ():
            time.sleep(pause)
            asked = self.file.read("SELECT id, name FROM litejobs_node WHERE recall IS NOT NULL")
            late = [name for id, name in asked if self.nodes.is_alive(id, if_unknown=True)]
            if not late:
                return
            if time.monotonic() >= deadline:
                text = "no answer from node %s: its workers may start the jobs that they have"
                logger.warning(text, ", ".join(late))
                return

    def reset_queue(self, name: str) -> None:
        """Deletes the settings of a queue, and wakes the nodes."""
        with self.file.transaction(notify=True) as tx:
            tx.execute("DELETE FROM litejobs_queue WHERE name = ?", (name,))

    def leave(self, node: int) -> None:
        """Removes a node from the list, and rescues the jobs that it still holds."""
        with contextlib.suppress(FileError):
            self.nodes.renew(node)  # Without a lock file, nobody would know that it has ended.
        self.nodes.release_lock(node)
        try:
            with contextlib.suppress(FileReplacedError):
                self.nodes.rescue(node)
                self.meter.flush()
        finally:
            self.file.node_count -= 1

    def has_work(self, subscription: Subscription) -> bool:
        """Whether a job of the subscription is pending in a queue that is not paused, or running or
        retrying in any queue; or blocked by its payload, which none of its definitions refused."""
        with self.file.transaction(read_only=True) as tx:
            paused = {name for (_, name), known in read_settings(tx).items() if known.paused}
            if Ready(attrs.evolve(subscription, paused=frozenset(paused))).scan(tx):
                return True
            served = f"name IN (SELECT key FROM json_each(:names)) AND {_SERVED}"
            sql = f"""
                SELECT 1 FROM litejobs_job WHERE state = 'running' AND {served}
                UNION ALL
                SELECT 1 FROM litejobs_job
                WHERE state IN ('scheduled', 'retrying') AND state = 'retrying' AND {served}
                UNION ALL {_RELEASABLE}
                LIMIT 1
            """
            return tx.execute(sql, subscription.bindings).get is not None


_SERVED = """
    node IN ('', :node) AND (:queues IS NULL OR queue IN (SELECT value FROM json_each(:queues)))
"""
_RELEASABLE = f"""
    SELECT job.id FROM json_each(:names) AS known
    CROSS JOIN litejobs_job AS job INDEXED BY litejobs_unfit ON job.name = known.key
    WHERE unfit_at IS NOT NULL AND NOT instr(refused, ' ' || known.value || ' ')
        AND state = 'blocked' AND {_SERVED}
"""
"""A query for jobs that no definition of a subscription has refused."""
_RIVALS = """
    SELECT 1 FROM litejobs_node AS node, json_each(node.names) AS theirs
    JOIN json_each(:names) AS known ON known.key = theirs.key AND known.value <> theirs.value
    WHERE node.id <> :id LIMIT 1
"""


def _keep_progress(tx: Transaction, progress: Reports) -> None:
    tx.connection.executemany(
        """
        UPDATE litejobs_job SET progress = coalesce(?, progress), meta = coalesce(?, meta)
        WHERE id = ? AND claim = ? AND state = 'running'
        """,
        [(*texts, *claim) for claim, texts in progress.items()],
    )


def _claim(tx: Transaction, ids: list[int], node: int) -> list[Claimed]:
    rows: list[Any] = tx.execute(
        f"""
        UPDATE litejobs_job SET
            state = 'running', attempt = min(attempt, 2147483647) + 1,
            claim = (claim & 4611686018427387903) + 1,
            holder = ?1, started_at = ?2,
            run_at = coalesce(run_at, ?2) -- Another program may have set it to NULL.
        WHERE id IN carray(?3) AND state = 'pending'
            AND (expires_at IS NULL OR expires_at > ?2 OR attempt > 0)
        RETURNING {", ".join(Claimed._fields)}
        """,
        (node, tx.now, _carray(ids)),
    ).fetchall()
    # RETURNING promises no order; and another node may have claimed what was read ahead.
    by_id = {row[0]: row for row in rows}
    return [Claimed._make(by_id.pop(id)) for id in ids if id in by_id]


def _settle(
    tx: Transaction, settlements: Sequence[Settlement]
) -> tuple[list[Settlement], Mapping[Group, int], bool]:
    """Settles the jobs whose claims still hold; returns these settlements, their number by group,
    and whether some jobs are ready again."""
    settled: list[Settlement] = []
    if not settlements:
        return settled, {}, False
    connection = tx.connection
    _store_failures(tx, [each for each in settlements if each[1].kind])

    def rows() -> Iterator[tuple[Any, ...]]:
        before = connection.total_changes()
        for settlement in settlements:
            claimed, report = settlement
            state, finished_at = report.state, report.finished_at
            yield (
                claimed.id,
                claimed.claim,
                state,
                claimed.attempt if report.counted else claimed.attempt - 1,
                # A job that was not run keeps its position among those that became due.
                finished_at + report.delay if state in DELAYED else claimed.run_at,
                report.started_at or None,
                finished_at if state in FINISHED else None,
                report.result,
                report.error,
            )
            # executemany() has executed the statement with these when it asks for the next ones.
            if (after := connection.total_changes()) > before:
                settled.append(settlement)
                before = after

    connection.executemany(
        f"""
        UPDATE litejobs_job SET
            state = ?3, attempt = ?4, run_at = ?5, started_at = ?6, finished_at = ?7,
            result = ?8, error = ?9, holder = NULL,
            cancel_at = CASE WHEN ?3 = 'completed' THEN NULL ELSE cancel_at END,
            expires_at = CASE WHEN ?6 IS NULL THEN expires_at END,
            prune_at = ?7 + {_kept_for("?3")}
        WHERE id = ?1 AND claim = ?2 AND state = 'running'
        """,
        rows(),
    )
    groups = Counter([(report.state, job.queue, job.name) for job, report in settled])
    add_to_counts(tx, groups)
    states = {state for state, _, _ in groups}
    if states != {"completed"}:
        cancel_returned(tx)
    made_ready = "pending" in states
    blocked = f"SELECT 1 FROM litejobs_job WHERE {KEYED} AND state = 'blocked' LIMIT 1"
    if connection.execute(blocked).get:
        _, keys = groups_of(tx, [claimed.id for claimed, _ in settled])
        made_ready = bool(admit_blocked(tx, keys)) or made_ready
    return settled, groups, made_ready


def _store_failures(tx: Transaction, settlements: list[Settlement]) -> None:
    """Stores failed attempts: of a job that is retried for weeks, the first and the last ones. Of
    a job whose payload does not fit, stores the fingerprint of its definition in this node."""
    for claimed, report in settlements:
        if report.kind == "unfit":
            tx.execute(
                """
                UPDATE litejobs_job SET unfit_at = ?1, refused = (
                    SELECT substr(replace(ifnull(refused, ' '), fingerprint, ' '), -200)
                        || substr(fingerprint, 2)
                    FROM (SELECT ' ' || ifnull((
                        SELECT value FROM litejobs_node AS node, json_each(node.names) AS known
                        WHERE node.id = holder AND known.key = litejobs_job.name
                    ), '') || ' ' AS fingerprint)
                ) WHERE id = ?2 AND claim = ?3 AND state = 'running'
                """,
                (tx.now, claimed.id, claimed.claim),
            )
        if report.kind in ("cancelled", "unfit"):
            continue
        facts = report._asdict() | {"attempt": claimed.attempt, "omitted": None}
        tx.execute(
            f"""
            INSERT INTO litejobs_attempt (job, {_FAILURE})
            SELECT id, :{_FAILURE.replace(", ", ", :")} FROM litejobs_job
            WHERE id = :id AND claim = :claim AND state = 'running'
            """,
            {**facts, "id": claimed.id, "claim": claimed.claim},
        )
        if claimed.claim <= FIRST_FAILURES + LAST_FAILURES:
            continue
        later = "SELECT id FROM litejobs_attempt WHERE job = ? ORDER BY id LIMIT -1 OFFSET ?"
        ids = _column(tx, later, (claimed.id, FIRST_FAILURES))
        if surplus := ids[:-LAST_FAILURES]:
            tx.execute(
                """
                UPDATE litejobs_attempt SET omitted = CAST(coalesce(omitted, 0) + (
                    -- Unlike sum(), total() does not overflow, whatever was written by hand.
                    SELECT total(1 + coalesce(omitted, 0)) FROM litejobs_attempt
                    WHERE id IN carray(?)
                ) AS INTEGER) WHERE id = ?
                """,
                (_carray(surplus), ids[-LAST_FAILURES]),
            )
            gone = "DELETE FROM litejobs_attempt WHERE id IN carray(?)"
            tx.execute(gone, (_carray(surplus),))


################################################################################
# Events
#
# What happens to jobs, nodes, queues and schedules. Callbacks get events in one thread, through
# a queue with a limit, so that one that is slow or fails does no harm. Most events are also
# lines in the log. Events that nobody wants are not created.
################################################################################

EventKind = Literal[
    "enqueued", "started", "completed", "retrying", "failed", "cancelled", "blocked", "timed_out",
    "crashed", "schedule_fired", "queue_paused", "queue_resumed", "node_joined", "node_left",
]  # fmt: skip
EVENT_KINDS: tuple[EventKind, ...] = typing.get_args(EventKind)
_LEVELS: Mapping[EventKind, int] = {
    **dict.fromkeys(("enqueued", "started", "completed"), logging.DEBUG),
    **dict.fromkeys(("retrying", "cancelled", "queue_paused", "queue_resumed"), logging.INFO),
    **dict.fromkeys(("blocked", "timed_out", "crashed", "failed"), logging.WARNING),
}
"""The log level of each kind; nodes and schedules have more detailed log lines of their own."""
QUEUE_LIMIT = 10_000
"""Events that may wait for the callbacks; more are dropped."""
WARNING_INTERVAL = 60.0
"""Seconds between two warnings about dropped events."""
CLOSE_TIMEOUT = 1.0
"""Seconds that callbacks have for the remaining events at the end."""
_THREAD = "litejobs-events"


@attrs.frozen
class Event:
    """Something that has happened. Fields that do not apply to its kind are `None`."""

    kind: EventKind
    at: datetime
    node: str | None = None
    """The name of the node that it comes from."""
    job: int | None = None
    """The job's id."""
    name: str | None = None
    """The definition's name."""
    queue: str | None = None
    attempt: int | None = None
    worker: int | None = None
    """The process id of the worker."""
    took: timedelta | None = None
    """How long the attempt ran."""
    error: str | None = None
    """Type and first line of what went wrong."""
    schedule: str | None = None

    def __str__(self) -> str:
        if self.schedule is not None:
            return f"schedule {self.schedule} fired: job {self.job} ({self.name})"
        what = self.kind.replace("_", " ")
        if self.job is None:
            return f"{what}: {self.queue or self.node}"
        text = f"job {self.job} ({self.name}) {what}"
        if self.attempt is not None:
            text += f", attempt {self.attempt}"
        if self.took is not None:
            text += f", {self.took.total_seconds():.3g} s"
        return text if self.error is None else f"{text}: {self.error}"


Listener = Callable[[Event], Any]
AnyListener = TypeVar("AnyListener", bound=Listener)


def attempt_started(claimed: Claimed, at: int, worker: int, node: str) -> Event:
    """An attempt has started, in the process *worker*."""
    return Event(
        "started", from_micros(at), node, claimed.id, claimed.name, claimed.queue,
        claimed.attempt, worker,
    )  # fmt: skip


ENDED_BY: Mapping[str, EventKind] = {
    "timeout": "timed_out",
    "crash": "crashed",
    "lost": "crashed",
}
"""By the kind of a failure: the event of what ended the attempt from outside."""


def attempt_ended(claimed: Claimed, report: Report, node: str) -> Iterator[Event]:
    """The events of a report: what ended the attempt from outside, and the job's new state."""
    started = attempt_started(claimed, report.finished_at, report.worker, node)
    took = timedelta(microseconds=report.took)
    for kind in (ENDED_BY.get(report.kind), report.state):
        if kind in EVENT_KINDS:
            yield attrs.evolve(started, kind=kind, took=took, error=report.error)


def history(job: Job[Any], failures: Iterable[Failure]) -> Iterator[tuple[Event, Failure | None]]:
    """What has happened to a job, as far as the file keeps it, with the failed attempts."""
    common: Any = {"job": job.id, "name": job.name, "queue": job.queue}
    yield Event("enqueued", job.enqueued_at, **common), None
    last = None
    for failure in failures:
        last = failure
        common |= {"attempt": failure.attempt, "worker": failure.worker}
        yield Event("started", failure.started_at, **common), None
        ended_by = ENDED_BY.get(failure.kind)
        final = job.state == "failed" and failure.finished_at == job.finished_at
        took, error = failure.finished_at - failure.started_at, f"{failure.type}: {failure.message}"
        for kind in (ended_by, "failed" if final else "retrying"):
            if kind is not None:
                facts: Any = {"took": took, "error": error.partition("\n")[0], **common}
                event = Event(kind, failure.finished_at, **facts)
                yield event, None if kind == ended_by else failure
    if job.state == "failed" and last is not None and last.finished_at == job.finished_at:
        return
    common |= {"attempt": job.attempt, "worker": None}
    if job.started_at is not None and (last is None or job.started_at > last.started_at):
        yield Event("started", job.started_at, **common), None
    if job.finished_at is not None and job.state in EVENT_KINDS:
        if job.started_at is not None:
            common |= {"took": job.finished_at - job.started_at}
        if job.state != "completed":
            common |= {"error": job.error}
        yield Event(typing.cast("EventKind", job.state), job.finished_at, **common), None


@attrs.define(eq=False, repr=False, slots=False)
class Events:
    """The callbacks of this process, and the thread that calls them."""

    limit: int = QUEUE_LIMIT
    listened: frozenset[EventKind] = frozenset()
    """The kinds that have a callback."""
    _listeners: tuple[tuple[frozenset[EventKind], Listener, object, object], ...] = ()
    """Of each callback its kinds, itself, its module and name, and what loaded it."""
    _queue: Any = None
    """A SimpleQueue of events, while there is a thread."""
    _lock: threading.RLock = attrs.field(factory=threading.RLock)
    _at_once: int = 0
    """How many drains want the callbacks to be called at once."""
    _dropped: int = 0
    _warned_at: float = -math.inf

    def __attrs_post_init__(self) -> None:
        FORK_HOOKS[self] = Events._reset_in_fork

    def _reset_in_fork(self) -> None:
        """A forked child has neither the thread nor one that held the lock."""
        self._lock, self._queue = threading.RLock(), None

    def listen(self, kinds: Sequence[EventKind], listener: Listener) -> None:
        """Calls *listener* with every event of these kinds, or of all kinds if there are none."""
        for kind in kinds:
            check_one_of(kind, EVENT_KINDS, "event")
        given: Any = listener
        if not callable(given) or _is_async(given):
            raise OptionError("event", f"expected a function, not async, got {listener!r}")
        named = inspect.isfunction(given) and given.__name__ != "<lambda>"
        code = (given.__module__, given.__qualname__) if named else given
        new = frozenset(kinds or EVENT_KINDS), listener, code, running_module()
        # Without the one that it replaces: the same code, loaded before.
        kept = [own for own in self._listeners if own[2] != code or own[3] is new[3]]
        self._listeners = (*kept, new)
        self.listened = frozenset().union(*(kinds for kinds, *_ in self._listeners))

    def wants(self, kind: EventKind) -> bool:
        """Whether this kind has a callback, or is logged as logging is set up now."""
        return kind in self.listened or logger.isEnabledFor(_LEVELS.get(kind, logging.NOTSET))

    def emit(self, event: Event) -> None:
        """Logs an event and passes it on. It never blocks, and never fails."""
        if event.kind in _LEVELS:
            logger.log(_LEVELS[event.kind], "%s", event, extra={"event": event.kind})
        self.dispatch(event)

    def dispatch(self, event: Event) -> None:
        """Has the callbacks called: soon, in their thread, or at once in a drain."""
        if event.kind not in self.listened:
            return
        if self._at_once:
            self._call(event)
            return
        with self._lock:
            if self._queue is None:
                import queue

                self._queue = queue.SimpleQueue()
                threading.Thread(
                    target=self._call_all, args=(self._queue,), name=_THREAD, daemon=True
                ).start()
                atexit.register(self.close)
            if self._queue.qsize() < self.limit:
                self._queue.put(event)
                return
            self._dropped += 1
            if time.monotonic() >= self._warned_at + WARNING_INTERVAL:
                self._warn_of_dropped()

    @contextlib.contextmanager
    def dispatched_at_once(self) -> Iterator[None]:
        """Inside, callbacks are called where events happen; earlier events come first."""
        self.close()
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Waits for the callbacks of all events, at most so many seconds, and ends the thread;
        the next event starts another one."""
        with self._lock:
            queue, self._queue = self._queue, None
            if queue is None:
                return
            done = threading.Event()
            queue.put(done)
        atexit.unregister(self.close)
        if threading.current_thread().name != _THREAD and not done.wait(timeout):
            logger.warning("%d events were not passed on in time", queue.qsize())
        if self._dropped:
            self._warn_of_dropped()

    def _call_all(self, queue: Any) -> None:
        while isinstance(event := queue.get(), Event):
            self._call(event)
        event.set()

    def _call(self, event: Event) -> None:
        for kinds, listener, *_ in self._listeners:
            if event.kind in kinds:
                try:
                    listener(event)
                except (Exception, SystemExit):
                    shown = described(functools.partial(str, listener), type(listener).__name__)
                    logger.exception("the callback %s failed (%s)", shown, event)

    def _warn_of_dropped(self) -> None:
        self._warned_at = time.monotonic()
        logger.warning("%d events were dropped: the callbacks are too slow", self._dropped)
        self._dropped = 0


################################################################################
# Duties
#
# The work of a node besides running jobs: a table of functions, each with the interval at which it
# is called unless it asks for another one. Any number of nodes may do the same duty.
################################################################################

POLL_INTERVAL = 0.5
"""Seconds between two checks for commits that sent no wake-up."""
FIRE_DELAY = 0.05
"""Seconds within which a node that was woken checks whether a schedule has changed."""
EARLY_BY = 0.02
"""Seconds by which a duty may be done early, so that an idle node wakes once for several."""

Duty = Callable[["Duties"], float | None]
"""Returns the seconds after which it is called again, if not after its interval."""


def rescue(duties: Duties) -> None:
    """Takes over the jobs of nodes of which no process is left. A node checks the one that joined
    next after it, and goes on until one is alive: so n nodes need n checks. It also checks one at
    random, since a node that hangs checks none."""
    others = duties.store.nodes.others(duties.node)
    for order in (others, random.sample(others, len(others))):
        for id, name, pid in order:
            if duties.store.nodes.is_alive(id):
                break
            take_over(duties, id, name, pid)


def rescue_from_unlisted(duties: Duties) -> None:
    """Takes over the jobs of nodes that are neither alive nor listed."""
    for id in duties.store.nodes.unlisted():
        take_over(duties, id, str(id), 0)


def take_over(duties: Duties, id: int, node: str, pid: int) -> None:
    """Takes over the jobs of a node, if none of its processes is left."""
    if not (lost := duties.store.nodes.rescue(id)):
        return
    logger.warning("rescued %d jobs of node %s (pid %d)", len(lost), node, pid)
    duties.on_ready()
    now, error = from_micros(duties.store.clock()), f"NodeLost: {NODE_LOST}"
    for job, name, queue, attempt, given_up in lost:
        crashed = Event("crashed", now, node, job, name, queue, attempt, error=error)
        duties.events.dispatch(crashed)
        if given_up:
            duties.ended[job] = None
            duties.events.dispatch(attrs.evolve(crashed, kind="failed"))


def prune(duties: Duties) -> float | None:
    """Deletes finished jobs whose retention is over, then makes the file smaller, in batches, with
    pauses nine times as long."""
    began = time.monotonic()
    more = duties.store.prune(duties.store.clock()) or duties.store.shrink()
    return max(4 * EARLY_BY, 9 * (time.monotonic() - began)) if more else None


DUTIES: Mapping[str, tuple[float, Duty]] = {
    "rescue": (1.0, rescue),
    "rescue_from_unlisted": (60.0, rescue_from_unlisted),
    "fire": (
        60.0,
        lambda duties: duties.do_timed(lambda now: duties.store.schedules.fire(now, duties.fired)),
    ),
    "expire": (60.0, lambda duties: duties.do_timed(duties.store.expire)),
    "stage": (60.0, lambda duties: duties.do_timed(duties.store.stage)),
    "admit": (60.0, lambda duties: duties.do_timed(lambda now: (duties.store.admit(), None))),
    "prune": (60.0, prune),
    "forget_statistics": (60.0, lambda duties: duties.store.forget_statistics()),
    "flush_metrics": (5.0, lambda duties: duties.store.meter.flush()),
    "roll_up_metrics": (
        600.0,
        lambda duties: 1.0 if duties.store.meter.roll_up(duties.store.clock()) else None,
    ),
    "extend_wal": (60.0, lambda duties: duties.store.file.extend_wal()),
}
"""By name: an interval in seconds, and what is done."""


@attrs.define(eq=False, repr=False, slots=False)
class Duties:
    """The duties of one node, and when each is due."""

    store: Store
    node: int
    events: Events = attrs.field(factory=Events)
    name: str = ""
    """The node's."""
    on_ready: Callable[[], None] = lambda: None
    """Called when there may be jobs to claim."""
    table: Mapping[str, tuple[float, Duty]] = DUTIES
    ended: dict[int, int | None] = attrs.field(factory=dict)
    """The jobs that may have ended since `take_ended`, by id and claim (`None`: any)."""
    _due: defaultdict[str, float] = attrs.field(factory=lambda: defaultdict(float))
    """By the monotonic clock."""
    _logged: dict[str, tuple[float, float]] = attrs.field(factory=dict)
    """By what failed: when it may be logged again, and the interval before that."""

    def do(self, *names: str) -> None:
        """Does these now."""
        for name in names:
            self.table[name][1](self)

    def make_due(self, *names: str, within: float = 0.0) -> None:
        """Makes these due *within* so many seconds."""
        by = time.monotonic() + within
        for name in names:
            self._due[name] = min(self._due[name], by)

    @property
    def next_due_at(self) -> float:
        """When the next one is due."""
        return min(self._due[name] for name in self.table)

    def do_due(self) -> None:
        """Does those that are due; after a BusyError, they stay due. Those that they make due wait
        for the next call: a node claims new jobs first."""
        soon = time.monotonic() + EARLY_BY
        for name in [name for name in self.table if self._due[name] <= soon]:
            interval, duty = self.table[name]
            try:
                wanted = duty(self)
            except (BusyError, FileReplacedError):
                raise
            except FileError as error:
                self.log(name, error)
                wanted = 1.0
            self._due[name] = time.monotonic() + (interval if wanted is None else wanted)

    def do_timed(self, act: Callable[[int], tuple[int, int | None]]) -> float | None:
        """Has *act* do what is due; returns the seconds until more is due, at most one, since the
        clock may be set."""
        now = self.store.clock()
        changed, due = act(now)
        if changed:
            self.on_ready()
        return None if due is None else min(1.0, max(0, due - now) / 1e6)

    def take_ended(self, names: frozenset[str]) -> list[tuple[Claimed, Ended]]:
        """The jobs of definitions of these *names* that have ended since the last call."""
        claims, self.ended = self.ended, {}
        try:
            return list(self.store.read_ended(claims, names)) if claims else []
        except FileError as error:
            self.log("calling on_end", error)
            return []

    def fired(self, schedule: Schedule, jobs: list[int]) -> None:
        """Emits that a schedule has enqueued jobs."""
        for job in jobs:
            self.emit("schedule_fired", job=job, name=schedule.definition, schedule=schedule.name)

    def emit(self, kind: EventKind, **fields: Any) -> None:
        """Emits an event of this node, with these fields of `Event`."""
        if self.events.wants(kind):
            self.events.emit(Event(kind, from_micros(self.store.clock()), self.name, **fields))

    def log(self, what: str, error: Exception) -> None:
        """Logs that *what* failed: while it goes on, at intervals that double, up to an hour."""
        now = time.monotonic()
        again_at, interval = self._logged.get(what, (now, 1.0))
        if now > again_at + 2 * interval:
            interval = 1.0  # It has worked in between.
        if now >= again_at:
            self._logged[what] = now + interval, min(2 * interval, 3600.0)
            text = "%s failed, and is tried again; logged next in %.0f s at the earliest: %s"
            logger.error(text, what, interval, error)


################################################################################
# Program
#
# Where workers find the code: they import modules and take definitions from them, by names that
# were looked up before they started. They run no other code from outside.
################################################################################

IMPORTING = contextvars.ContextVar("IMPORTING", default=False)
"""Whether a worker is importing the program, which must not work or enqueue meanwhile."""
IS_FROZEN = hasattr(sys, "frozen")
"""Whether a tool such as PyInstaller packed the program, so that it is `sys.executable`."""
FREEZE_HINT = (
    "call multiprocessing.freeze_support() right after "
    '`if __name__ == "__main__":`, before anything else, or use threads='
)


def load_program(
    places: Mapping[str, tuple[str, str]],
    make_state: Callable[[], Any] | None,
    home: Callable[[], LiteJobs],
    clock: Clock,
    around: tuple[AroundRun, ...],
    paths: Mapping[Path, Path],
    log_level: int | None,
) -> contextlib.AbstractContextManager[Executor]:
    """What runs a program's jobs in a worker process. Imports the modules of its definitions:
    *places* maps each name to the module and the path in it. *home* creates the `LiteJobs` of
    definitions that no import has registered; *paths*: see `use_relative_paths`."""
    registry = Registry()
    use_relative_paths(paths)
    token = IMPORTING.set(True)
    for name, (module, path) in places.items():
        found = _at(importlib.import_module(module), path)
        definition, holder = definition_of(found), getattr(found, "registry", None)
        if definition is None or definition.name != name:
            definition = holder.by_name.get(name) if isinstance(holder, Registry) else None
        if definition is None:
            raise DefinitionError(name, f"not at {module}.{path} when a worker looked there")
        registry.add(definition)
    IMPORTING.reset(token)
    registry.nodes.append("this worker's")
    gc.freeze()  # Loaded code stays: the garbage collector need not look at it.
    source = home()
    source.registry = registry
    for body in {definition.body for definition in registry}:
        body.home = body.home or source
    if log_level is not None:
        log_to_stderr(log_level)  # Unless the program has set up logging itself.
    return executor(registry, make_state, clock, source, around)


@contextlib.contextmanager
def executor(
    registry: Registry,
    make_state: Callable[[], Any] | None,
    clock: Clock,
    source: LiteJobs,
    around: tuple[AroundRun, ...],
) -> Iterator[Executor]:
    """What runs jobs in this process, with a state: a context manager is left at the end."""
    with contextlib.ExitStack() as closing:
        state = None if make_state is None else make_state()
        if isinstance(state, contextlib.AbstractContextManager):
            state = closing.enter_context(state)
        made = Executor(registry, state, clock, source, around=around)
        closing.callback(made.close)
        closing.callback(EXECUTOR.reset, EXECUTOR.set(made))
        yield made


REPEATED_AFTER = 10.0
"""Seconds after which an error that goes on is logged again, with how often it was seen."""


class LogHandler(logging.StreamHandler[Any]):
    """Prints the log of `litejobs run` to stderr: one line for each attempt, when it has ended.
    Errors that are alike are printed once, then counted."""

    def __init__(self) -> None:
        super().__init__()
        self._repeated: dict[str, tuple[float, int, str]] = {}
        """By generalized text: when it was printed, how many have come since, and the last."""

    def filter(self, record: logging.LogRecord) -> Any:
        """Whether the record is printed."""
        event = getattr(record, "event", "")
        if event in ("enqueued", "started"):
            return False
        if record.name == logger.name and (record.levelno > logging.INFO or event == "retrying"):
            text = record.getMessage()
            kind = generalized(text)
            printed_at, more, _ = self._repeated.get(kind, (-math.inf, 0, ""))
            now = time.monotonic()
            if now < printed_at + REPEATED_AFTER:
                self._repeated[kind] = printed_at, more + 1, text
                return False
            if len(self._repeated) > 1000:
                self._print_counts()
            self._repeated[kind] = now, 0, text
            if more:
                record.msg = f"{record.msg} (and {more} more like it)"
        return super().filter(record)

    def _print_counts(self) -> None:
        repeated, self._repeated = self._repeated, {}
        for _, more, text in repeated.values():
            if more:
                logger.warning("%d more like this: %s", more, text)

    def close(self) -> None:
        """Prints how often errors have come since they were printed last."""
        self._print_counts()
        super().close()


def log_to_stderr(level: int) -> None:
    """Sets up logging for `litejobs run`, unless the program has done so."""
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=level, format=form, handlers=[LogHandler()])


def _at(module: ModuleType, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def place_of(definition: AnyDefinition, holder: object) -> tuple[str, str]:
    """The module and the path where a worker finds a definition or the *holder* that has it."""
    body = definition.body
    for name in dict.fromkeys((body.code.__module__, "__main__")):
        module = sys.modules.get(name)
        if module is None or (name == "__main__" and not _importable_main(module)):
            continue
        own = body.code.__qualname__
        for attribute, value in [(own, _at(module, own)), *vars(module).items()]:
            found = definition_of(value)
            if value is holder or (found is not None and found.body is body):
                # In workers, the main program is `__main__`, too; but multiprocessing does not
                # import the `__main__.py` of a package, which therefore needs its whole name.
                spec: Any = getattr(module, "__spec__", None)
                in_package = spec is not None and spec.name.endswith(".__main__")
                return spec.name if in_package else name, attribute
    if "<locals>" in body.code.__qualname__:
        problem = "stands inside a function, where workers cannot find it"
    elif body.code.__module__ == "__main__" and not _importable_main(sys.modules["__main__"]):
        problem = "was typed in, and workers cannot import what is in no file"
    else:
        problem = f"cannot be found by workers: no name in {body.code.__module__} leads to it"
    advice = "move it to the top level of a module, or use threads="
    raise DefinitionError(body.name, f"{problem} ({body.place}): {advice}")


def _importable_main(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or ""
    # A pipe has been read already. Workers of a frozen program start as copies of it.
    return IS_FROZEN or getattr(module, "__spec__", None) is not None or os.path.isfile(file)


def check_frozen() -> None:
    """Refuses workers in a frozen program without `freeze_support`: a child process starts as a
    copy of the program, and only that call makes a worker of it."""
    if not IS_FROZEN:
        return
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    codes: list[Any] = [] if frame is None else [frame.f_code]
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, __name__}:
            with contextlib.suppress(Exception):  # A loader may fail in any way.
                codes.append(module.__spec__.loader.get_code(name))  # type: ignore[union-attr]
    if not any(code and b"freeze_support" in marshal.dumps(code) for code in codes):
        raise WorkerError(f"a frozen program has no workers without freeze_support: {FREEZE_HINT}")


################################################################################
# Worker
#
# A process, or thread, that runs jobs. They arrive through a channel, and the worker reports on a
# board: memory that its supervisor can read at any moment, even after the worker has died.
# So the supervisor knows which job runs without asking, can take back those that have not
# started, and charges a crash to the job that ran. Async jobs run beside, in an event loop.
################################################################################

STOP_SIGNALS: Mapping[int, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
"""The signals that ask a node to end, and what they do by default. Workers ignore them."""
LONGEST_MESSAGE = 2**30
"""Bytes. Whatever claims to be longer is not a message: a job has written into the channel."""


def pack(*message: Any) -> bytes:
    """A message, preceded by its length."""
    packed = marshal.dumps(message)
    return len(packed).to_bytes(4, "big") + packed


def unpack(arrived: bytearray) -> Iterator[tuple[Any, ...]]:
    """Removes the complete messages from what has arrived."""
    while len(arrived) >= 4:
        end = 4 + int.from_bytes(arrived[:4], "big")
        if end > LONGEST_MESSAGE:
            raise ValueError("not a message of litejobs")
        if len(arrived) < end:
            return
        message = marshal.loads(arrived[4:end])
        del arrived[:end]
        yield message


@attrs.define(eq=False, repr=False, slots=False)
class Channel:
    """One end of the connection between a worker and its supervisor. The supervisor's end never
    blocks, since the worker may have been stopped in the middle of a message."""

    socket: socket.socket
    unsent: bytearray = attrs.field(factory=bytearray)
    _received: bytearray = attrs.field(factory=bytearray)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def send(self, *message: Any) -> None:
        """Sends a message; what the socket does not take is kept for `flush`."""
        with self._lock:
            self.unsent += pack(*message)
            self.flush()

    def flush(self) -> None:
        """Sends what was kept. If the other side is gone, `receive` will raise."""
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent.clear()

    def receive(self) -> Iterator[tuple[Any, ...]]:
        """Waits for messages; on the supervisor's end, returns those that have arrived."""
        while True:
            try:
                data = self.socket.recv(2**16)
            except BlockingIOError:
                return
            if not data:
                raise EOFError
            self._received += data
            yield from unpack(self._received)


# The board

OUTBOX = 2**18
"""Bytes for reports that the supervisor has not read; the channel takes what does not fit."""
OUTPUT_LIMIT = 4_096
"""Bytes of a job's output that are stored."""
OUTPUT_KEPT = OUTPUT_LIMIT + 1
"""Bytes that are kept while a job runs: one more shows that the beginning was cut off."""
_REVOKED, _USED, _WRITER, _WRITTEN, _CPU, _NUMBER, _BEGAN, _ASKED = range(8)
"""Indexes of words on the board. The last three words are about the plain job that runs: its
number, when it began, and which job was asked to end. Three such follow for each async place."""


class Board:
    """The memory that a worker and its supervisor share. The worker writes which jobs it runs, its
    reports, and facts about an attempt that it may not survive; the supervisor writes which jobs
    are revoked and which are asked to end."""

    def __init__(self, concurrency: int, context: Any = None, shared: Any = None) -> None:
        """*concurrency* is the number of places for async jobs. With a multiprocessing *context*
        the worker is a process, else a thread; *shared* is the memory and lock, if made already."""
        size = OUTBOX + 8 * (_NUMBER + 3 * (1 + concurrency)) + OUTPUT_KEPT
        if shared is None:
            memory = context.RawArray("B", size) if context else bytearray(size)
            shared = memory, (context or threading).Lock()
        self.concurrency = concurrency
        self._shared, self._lock = shared, shared[1]
        view = memoryview(shared[0]).cast("B")
        # The outbox comes first: a job that writes to every open file overwrites the beginning.
        self._outbox, self._output = view[:OUTBOX], view[-OUTPUT_KEPT:]
        self._words = view[OUTBOX:-OUTPUT_KEPT].cast("q")
        self._taken = bytearray()  # Reports that the supervisor has removed and not read yet.

    def __reduce__(self) -> tuple[Any, ...]:
        return Board, (self.concurrency, None, self._shared)

    # The worker's side

    def start_next(self, report: bytes, number: int) -> int:
        """Stores the *report* of the job that ran, if any, and marks the next one as running, or
        none (0). Returns when that one began; 0 if it was revoked."""
        began = time.monotonic_ns()
        words = self._words
        with self._lock:
            if report:
                start = words[_USED]
                self._outbox[start : start + len(report)] = report
                words[_USED] = start + len(report)  # Last: the process may be killed in between.
            if number < words[_REVOKED]:
                began = number = 0
            words[_BEGAN] = began
            words[_NUMBER] = number
        return began

    def begin(self, number: int, place: int) -> None:
        """Marks an async job as running."""
        self._words[_BEGAN + 3 * place] = time.monotonic_ns()
        self._words[_NUMBER + 3 * place] = number

    def fits(self, report: bytes) -> bool:
        """Whether there is room for a report."""
        return bool(self._words[_USED] + len(report) <= OUTBOX)

    def why_asked(self, number: int, place: int = 0) -> Reason | None:
        """Why this job was asked to end, if it was."""
        asked, why = divmod(self._words[_ASKED + 3 * place], len(REASONS))
        return REASONS[why] if asked == number else None

    def keep_output(self, text: str) -> None:
        """Keeps the end of what the running job writes. It takes no lock, which a signal handler
        could find held: of two writes at once, one may be lost."""
        words = self._words
        if number := words[_NUMBER]:
            before = self._output[: words[_WRITTEN]] if words[_WRITER] == number else b""
            output = end_of(bytes(before), text)
            self._output[: len(output)] = output
            words[_WRITTEN], words[_WRITER] = len(output), number

    def mark_cpu(self, spent: int) -> None:
        """Stores how many nanoseconds of CPU time the worker has spent so far."""
        self._words[_CPU] = spent - time.monotonic_ns()

    # Both sides

    def output_of(self, number: int) -> str:
        """The last lines that a job wrote; empty if another job has written since."""
        own = number and self._words[_WRITER] == number
        return last_lines(bytes(self._output[: self._words[_WRITTEN]])) if own else ""

    def cpu_since(self, began: int, spent: int) -> int:
        """Microseconds of CPU time since a job began, of the nanoseconds *spent* so far. Between
        `mark_cpu` and that job only short ones ran: they count as if they had never waited."""
        return int(max(0, spent - self._words[_CPU] - began) // 1000)

    # The supervisor's side

    @property
    def running(self) -> int:
        """The number of the plain job that runs; 0: none."""
        return int(self._words[_NUMBER])

    def began(self, run: Run) -> int:
        """When a job began, in nanoseconds of the monotonic clock; 0 if it does not run."""
        place = 3 * run.place
        return int(self._words[_BEGAN + place]) if self._words[_NUMBER + place] == run.number else 0

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Keeps the worker from starting or finishing a job meanwhile. False if the worker was
        stopped or died while it held the lock: then waiting longer would not help."""
        locked = self._lock.acquire(timeout=0.05)
        try:
            yield locked
        finally:
            if locked:
                self._lock.release()

    def collect(self, dead: bool = False) -> Iterator[tuple[Any, ...]]:
        """Removes the reports and returns them, as messages like those of the channel."""
        if self._words[_USED]:
            with self.held() as locked:
                if locked or dead:
                    self._taken += self._outbox[: self._words[_USED]]
                    self._words[_USED] = 0
        yield from unpack(self._taken)
        if self._taken:
            raise ValueError("not a report of litejobs")

    def revoke(self, until: int) -> int | None:
        """Revokes all plain jobs with lower numbers that have not started, and removes the reports,
        for the next `collect`; returns the number of the job that runs (0: none), or `None` if the
        lock could not be taken."""
        with self.held() as locked:
            if not locked:
                return None
            words = self._words
            words[_REVOKED] = until
            self._taken += self._outbox[: words[_USED]]
            words[_USED] = 0
            return self.running

    def ask_to_end(self, number: int, place: int, why: Reason) -> bool:
        """Asks a job to end; false if it is a plain one that no longer runs."""
        with self.held() as locked:
            if not place and (not locked or self.running != number):
                return False
            self._words[_ASKED + 3 * place] = number * len(REASONS) + REASONS.index(why)
        return True


def end_of(output: bytes, text: str) -> bytes:
    """The end of an output with *text* added, as long as is kept."""
    return (output + text[-OUTPUT_KEPT:].encode(errors="backslashreplace"))[-OUTPUT_KEPT:]


def last_lines(output: bytes) -> str:
    """The end of an output, from the start of a line if it has one."""
    text = output[-OUTPUT_LIMIT:].decode(errors="ignore")
    return text if len(output) <= OUTPUT_LIMIT else text.partition("\n")[2] or text


def peak_memory(pid: int) -> int | None:
    """The peak memory of a process in bytes; `None` where the system does not say. (`getrusage` on
    Linux starts with the memory of the parent process.)"""
    with contextlib.suppress(OSError):
        if found := re.search(rb"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_bytes()):
            return 1024 * int(found[1])
    if sys.platform in ("linux", "win32") or pid != os.getpid():
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# The life of a worker

MakeExecutor = Callable[[], contextlib.AbstractContextManager[Executor]]
OUTPUT = contextvars.ContextVar[list[bytes] | None]("OUTPUT", default=None)
"""The output of the async job of this context; the board keeps only that of plain jobs."""


def keep_output(stream: Any, board: Board) -> None:
    """Keeps the end of what jobs write to a stream, which stays the same object, since others, such
    as logging handlers, may hold it."""
    write = getattr(stream, "write", None)  # There may be no stream, as in pythonw.exe.

    def write_and_keep(text: str) -> Any:
        count = write(text)  # type: ignore[misc]
        if (own := OUTPUT.get()) is None:
            board.keep_output(text)
        else:
            own[0] = end_of(own[0], text)
        return count

    with contextlib.suppress(AttributeError):  # Some kinds of streams do not allow it.
        stream.write = write_and_keep


@contextlib.contextmanager
def spawning() -> Iterator[None]:
    """Blocks the stop signals here and in a process that is started meanwhile, whose imports Ctrl-C
    would interrupt. Hides from multiprocessing a main program that came through a pipe, which no
    new process can import, but not one whose file is missing: it may be about to be replaced."""
    main = sys.modules["__main__"]
    file = str(getattr(main, "__file__", None) or "")
    hidden = not _importable_main(main) and (file.startswith("<") or os.path.exists(file))
    masks: Any = signal if hasattr(signal, "pthread_sigmask") else None  # Not on Windows.
    before = masks.pthread_sigmask(masks.SIG_BLOCK, STOP_SIGNALS) if masks else ()
    if hidden:
        del main.__file__
    try:
        yield
    finally:
        if hidden:
            main.__file__ = file
        if masks:
            masks.pthread_sigmask(masks.SIG_SETMASK, before)


def work_in_child(
    connection: socket.socket, lifeline: Connection, board: Board, presence: str, make: MakeExecutor
) -> None:
    """The main function of a worker process, which holds the lock *presence* of its node."""
    if hasattr(os, "setpgid"):
        # A group of its own gets no Ctrl-C, and can be killed with what the jobs have started.
        os.setpgid(0, 0)
    for number, default in STOP_SIGNALS.items():
        # systemd signals every process of a service. SIG_IGN would be inherited by children.
        signal.signal(number, lambda number, frame: None)
        if hasattr(os, "register_at_fork"):
            # A process that a job forks can be ended like any other.
            os.register_at_fork(after_in_child=functools.partial(signal.signal, number, default))
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        # The kernel kills the whole group when the lifeline closes. The thread below, which is
        # portable, does not run while a job loops in C; PR_SET_PDEATHSIG would not kill what
        # the job has started.
        import fcntl

        f_setsig = 10  # of <fcntl.h>
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, f_setsig, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | fcntl.FASYNC)

    def end_with_supervisor() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv_bytes()
        kill_group(os.getpid())

    threading.Thread(target=end_with_supervisor, daemon=True).start()
    for stream in {sys.stdout, sys.stderr}:
        keep_output(stream, board)
    with lock_shared(presence):
        work(connection, board, make, time.process_time_ns)


def kill_group(pid: int, alive: bool = True) -> None:
    """Kills a worker with all processes that it started; if it is not *alive*, only those, since
    another process may have its id by now."""
    if hasattr(os, "killpg"):
        for kill in (os.killpg, os.kill) if alive else (os.killpg,):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)  # type: ignore[attr-defined, unused-ignore]
    elif alive:
        os.system(f"taskkill /F /T /PID {pid} >NUL 2>&1")


def work(
    connection: socket.socket, board: Board, make: MakeExecutor, cpu_clock: Callable[[], int]
) -> None:
    """Makes the executor, tells the supervisor, and runs jobs until no more will come."""
    connection.setblocking(True)  # The program may have changed the default for sockets.
    channel = Channel(connection)
    with contextlib.ExitStack() as closing:
        if threading.current_thread() is not threading.main_thread():
            closing.enter_context(connection)
        try:
            executor = closing.enter_context(make())
            runner = JobRunner(channel, board, executor, make_restore(connection), cpu_clock)
            batches: Iterator[Any] = (fields for _, *fields in runner.messages())
            if board.concurrency:
                batches = closing.enter_context(runner.async_loop())
        except BaseException as error:
            channel.send("broken", *describe(error))
            return
        channel.send("ready")
        for batch in batches:
            if not runner.run(*batch):
                break


NOTIFY_AFTER, NOTIFY_AFTER_NS = 64, 8_000_000
"""Reports, and nanoseconds, after which the supervisor is notified in the middle of a batch."""
SHORT_RUN = 500
"""Microseconds. The CPU clock is not read after jobs that took no longer: reading it takes as long
as a very short job."""
RESTORE_AFTER = 5
"""Microseconds. Jobs that took no longer cannot have closed all open files, which takes 35.
(Checking the socket takes 1, restoring what jobs change 2.)"""


@attrs.define(eq=False, repr=False, slots=False)
class JobRunner:
    """Runs a worker's jobs: plain ones one by one, async ones beside, in a thread with a loop."""

    channel: Channel
    board: Board
    executor: Executor
    restore: Callable[[], bool]
    cpu_clock: Callable[[], int]
    _reporters: dict[int, ProgressReporter] = attrs.field(factory=dict)
    """By id of the jobs that have reported progress."""
    _loop: Any = None
    _tasks: dict[int, tuple[Any, Claimed]] = attrs.field(factory=dict)
    """The async jobs, by number."""

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """The messages of the supervisor, until it sends "end" or is gone."""
        with contextlib.suppress(EOFError, OSError):
            for message in self.channel.receive():
                if message == ("end",):
                    return
                yield message

    def run(self, batch: list[tuple[int, tuple[Any, ...]]], ended: Ended | None = None) -> bool:
        """Runs a batch of jobs, or calls the `on_end` of one that has *ended*; false if the worker
        cannot go on after one of them."""
        channel, board, restore, cpu_clock = self.channel, self.board, self.restore, self.cpu_clock
        if not restore():
            return False
        board.mark_cpu(cpu_clock())
        unnotified, notified_at, packed = 0, time.monotonic_ns(), b""
        for number, fields in batch:
            began = board.start_next(packed, number)
            unnotified += bool(packed)
            packed = b""
            if not began:
                continue
            late = unnotified and began - notified_at > NOTIFY_AFTER_NS
            if late or unnotified >= NOTIFY_AFTER:
                channel.send("reports")
                unnotified, notified_at = 0, began
            asked = functools.partial(board.why_asked, number)
            report = self.executor.run(Claimed._make(fields), asked, self.progress, ended)
            if report.took > SHORT_RUN or report.kind:
                if report.kind or asked():  # Then the supervisor may settle it as failed.
                    cpu, memory = board.cpu_since(began, cpu_clock()), peak_memory(os.getpid())
                    output = board.output_of(number)
                    report = report._replace(cpu=cpu, memory=memory, output=output)
                board.mark_cpu(cpu_clock())
            message = "report", number, report[:]
            packed = pack(*message)
            if (self._reporters and self.end_progress(fields[0])) or not board.fits(packed):
                # Through the channel it arrives after the last progress of the job.
                channel.send(*message)
                packed = b""
            if report.took > RESTORE_AFTER and not restore():
                board.start_next(packed, 0)
                return False  # Else the next job would be blamed for what this one has broken.
        board.start_next(packed, 0)
        channel.send("reports")  # Also if all were revoked, so that the worker gets other jobs.
        return True

    def progress(self, claimed: Claimed, what: Reported) -> None:
        """Sends the progress or meta of a job, now or soon; it may be called from any thread."""
        if (reporter := self._reporters.get(claimed.id)) is None:
            send = functools.partial(self.channel.send, "progress", claimed.id, claimed.claim)
            reporter = self._reporters.setdefault(claimed.id, ProgressReporter(send))
        reporter.report(what)

    def end_progress(self, id: int) -> bool:
        """Sends the last progress of a job that has ended; returns whether there was any."""
        if (reporter := self._reporters.pop(id, None)) is None:
            return False
        reporter.close()
        return True

    @contextlib.contextmanager
    def async_loop(self) -> Iterator[Iterator[Any]]:
        """Runs async jobs in a thread and returns the batches of plain ones, which another thread
        reads: a job that blocks the loop does not delay them."""
        import asyncio  # Here, like queue, because few programs need it.
        from queue import SimpleQueue

        batches: SimpleQueue[Any] = SimpleQueue()
        closed = threading.Event()

        def run_loop() -> None:
            while not closed.is_set():
                try:
                    self._loop.run_forever()
                except BaseException:
                    # A KeyboardInterrupt, say, of a handler's own task must not end other jobs.
                    logger.exception("a task of an async handler wanted to end the event loop")

        def read() -> None:
            try:
                for what, *fields in self.messages():
                    if what == "run":
                        batches.put(fields)
                    else:
                        act = self._begin if what == "begin" else self._cancel
                        self._loop.call_soon_threadsafe(act, *fields)
            except BaseException:  # Out of memory, say.
                logger.exception("a worker that cannot run its async jobs ends")
            batches.put(None)

        with asyncio.Runner() as runner:  # At its end it cancels the tasks that still run.
            self._loop = runner.get_loop()
            thread = threading.Thread(target=run_loop, name="litejobs-async", daemon=True)
            thread.start()
            try:
                threading.Thread(target=read, daemon=True).start()
                yield iter(batches.get, None)
            finally:
                closed.set()
                self._loop.call_soon_threadsafe(self._loop.stop)
                thread.join()

    def _begin(
        self, jobs: list[tuple[int, int, tuple[Any, ...]]], ended: Ended | None = None
    ) -> None:
        if not self._tasks:
            with self.board.held():  # So that no plain job begins meanwhile.
                if not self.board.running:
                    self.restore()
        for number, place, fields in jobs:
            claimed = Claimed._make(fields)
            task = self._loop.create_task(self._run(number, place, claimed, ended))
            self._tasks[number] = task, claimed
            task.add_done_callback(functools.partial(self._ended, number))

    def _cancel(self, number: int, within: float) -> None:
        """Cancels the task of a job that was asked to end, *within* seconds from now."""
        if within > 0:
            self._loop.call_later(within, self._cancel, number, 0.0)
        elif number in self._tasks:
            task, claimed = self._tasks[number]
            if task.cancel():
                self.executor.noticed.add(claimed[:2])

    async def _run(self, number: int, place: int, claimed: Claimed, ended: Ended | None) -> Report:
        asked = functools.partial(self.board.why_asked, number, place)
        if asked():
            return GIVEN_BACK
        self.board.begin(number, place)
        OUTPUT.set(written := [b""])
        report = await self.executor.run_async(claimed, asked, self.progress, ended)
        if report.kind or asked():
            memory, output = peak_memory(os.getpid()), last_lines(written[0])
            report = report._replace(memory=memory, output=output)
        return report

    def _ended(self, number: int, task: Any) -> None:
        """Reports a job whose task has ended. The job never began if it had been asked to end
        before, or if another job's handler cancelled all the tasks that it found."""
        report = GIVEN_BACK if task.cancelled() else task.result()
        if not report.finished_at:
            now = self.executor.clock()
            report = report._replace(started_at=now, finished_at=now)
        _, claimed = self._tasks.pop(number)
        self.executor.noticed.discard(claimed[:2])
        self.end_progress(claimed.id)
        self.channel.send("report", number, report[:])


def make_restore(connection: socket.socket) -> Callable[[], bool]:
    """Makes a function that undoes what jobs change in their process: signal handlers and mask,
    timer, umask and current folder; in a thread, nothing. It returns false if that fails, or if a
    job has closed the connection or a standard stream."""
    number = connection.fileno()
    file = None if sys.platform == "win32" else _stat_id(os.fstat(number))
    streams = [each for each in (sys.stdout, sys.stderr) if not getattr(each, "closed", True)]
    # The module signal takes ten times as long, since it converts each number to an enum.
    plain = importlib.import_module("_signal")
    names = ["TERM", "INT", "HUP", "BREAK", "ALRM", "CHLD", "PIPE", "USR1", "USR2"]
    numbers = [getattr(plain, f"SIG{name}", 0) for name in names]
    handlers = [(each, plain.getsignal(each)) for each in numbers if each]
    own_process = threading.current_thread() is threading.main_thread()
    masks = own_process and hasattr(signal, "pthread_sigmask")
    blocked = plain.pthread_sigmask(plain.SIG_BLOCK, ()) if masks else ()
    umask = os.umask(0o077) if own_process else 0
    if hasattr(os, "fchdir"):
        # By descriptor it takes half as long, and works for a folder that was renamed.
        to_folder = functools.partial(os.fchdir, os.open(".", os.O_RDONLY))
    else:
        to_folder = functools.partial(os.chdir, os.getcwd())

    def restore() -> bool:
        try:
            for stream in streams:
                if stream.closed:
                    return False
            if file is not None and _stat_id(os.fstat(number)) != file:
                return False
            if not own_process:
                return True
            os.umask(umask)
            if masks:
                plain.setitimer(plain.ITIMER_REAL, 0)  # Else it might end the next job.
                plain.pthread_sigmask(plain.SIG_SETMASK, blocked)
            for each, handler in handlers:
                if plain.getsignal(each) != handler:
                    plain.signal(each, handler)
            to_folder()
        except BaseException:  # Also what a signal handler of the last job raises.
            return False
        return True

    return restore


################################################################################
# Supervisor
#
# The parent of the workers claims and settles their jobs. Its loop is a list of verbs around one
# blocking wait: spawn, watch, listen, do duties, exchange. Each job in hand is one Run. It never
# runs a handler, never decodes a payload, and never blocks on a worker, which may be stopped.
################################################################################

STARTS_AT_ONCE = max(1, (os.cpu_count() or 1) - 1)
"""How many workers start at the same time: more would only delay each other, and the first job."""
RESTART_PAUSE = 1.0
"""Seconds until the next try after a worker could not start; doubled each time."""
FAILED_STARTS = 3
"""How many starts in a row may fail while no worker is ready; twice as many if one ever was."""
ASYNC_CHECK = 0.01
"""Seconds after which an async job that was handed over is first checked: it has begun by then."""
UNKNOWN_EXIT_CODE = 255
"""The exit code recorded for a process that other code has waited for."""
CHANNEL_ERRORS = EOFError, OSError, ValueError, TypeError, LookupError
"""Raised by reading from a worker that is gone, or whose messages a job has overwritten."""


@attrs.define(eq=False, repr=False, slots=False)
class Run:
    """A job in hand, that is, given to a worker, and all that its supervisor knows about it."""

    number: int
    """Rises with each job that is handed over."""
    claimed: Claimed
    worker: Worker
    expected: float
    """Microseconds that it will take, by estimate."""
    place: int = 0
    """The place of an async job on the board; 0 for a plain one."""
    reason: Reason | None = None
    kill_at: float = math.inf
    grace: float = 0.0
    """Seconds that it was granted after it was asked to end."""
    frozen: float = 0.0
    """Seconds for which the whole node was stopped while it ran: they count towards no timeout."""
    memory_at: float = 0.0
    """When the memory of its worker is checked next."""
    announced: bool = False
    """Whether its "started" event was emitted."""
    slow_after: float = 0.0
    """Seconds of running after which it is logged as slow again."""
    ended: Ended | None = None
    """If the job has ended already, and this only calls its `on_end`: nothing is to be settled."""


@attrs.define(eq=False, repr=False, slots=False)
class Worker:
    """One worker as its supervisor sees it: a process, or a thread, which nothing can kill."""

    process: Any
    pid: int
    channel: Channel
    board: Board
    free: list[int]
    """The free places on the board for async jobs."""
    sources: list[Any]
    """What the selector waits for: its socket, and what becomes readable when a process dies."""
    lifeline: Connection | None = None
    """A pipe that closes when the supervisor dies; `None` for a thread."""
    ready: bool = False
    failure: str = "it died while it started; its error output says why"
    jobs_left: float = math.inf
    """How many more jobs it may be given."""
    exit_by: float = math.inf
    """When it is killed, once it was asked to end because it has run as many jobs as it may."""
    blameless: bool = False
    """Whether its node has killed it: then only jobs that were asked to end are to blame."""
    runs: dict[int, Run] = attrs.field(factory=dict)
    """The jobs that it has in hand, by number, in the order of the hand-overs."""
    plain: int = 0
    """How many of these are plain jobs, which it runs one after another."""
    load: float = 0.0
    """Microseconds that the plain jobs will take, by estimate."""
    check_at: float = math.inf
    """When its async jobs are checked next."""
    progress_at: float = 0.0
    """When it last ended a job, or was given one after it had none."""
    events: int = selectors.EVENT_READ
    """What the selector waits for on its channel."""
    broken: bool = False
    """Whether its channel or board can no longer be read."""
    usage: tuple[int | None, int | None] | None = None
    """What it had used when it ended; see `usage_of`."""

    @property
    def is_process(self) -> bool:
        """Whether it is a process, which can be killed."""
        return self.lifeline is not None

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        if not self.is_process:
            return not self.process.is_alive()
        used = usage_of(self.pid)  # Before the next line, which reaps a process that has ended.
        if self.process.exitcode is not None:
            self.usage = self.usage or used
            return True
        if sys.platform == "win32":
            return False
        # There is never an exit code if other code has waited for the process, as in programs
        # that ignore SIGCHLD or wait for all children.
        try:
            os.kill(self.pid, 0)
        except OSError as error:  # If it exists and is not permitted, another process has its id.
            return isinstance(error, ProcessLookupError)
        return False

    def hand_over(self, runs: list[Run]) -> None:
        """Sends jobs to it, or one that has ended, for its `on_end`."""
        now = time.monotonic()
        if not self.runs:
            self.progress_at = now
        plain, beside = [], []
        for run in runs:
            self.runs[run.number] = run
            if run.place:
                beside.append((run.number, run.place, run.claimed[:]))
            else:
                self.load += run.expected
                plain.append((run.number, run.claimed[:]))
        self.plain += len(plain)
        ended = () if runs[0].ended is None else (runs[0].ended,)
        if plain:
            self.channel.send("run", plain, *ended)
        if beside:
            self.check_at = min(self.check_at, now + ASYNC_CHECK)
            self.channel.send("begin", beside, *ended)

    def take(self, number: int) -> Run | None:
        """Removes a job that it has in hand."""
        if run := self.runs.pop(number, None):
            self.progress_at = time.monotonic()
            if run.place:
                self.free.append(run.place)
            else:
                self.plain -= 1
                self.load = self.load - run.expected if self.plain else 0.0
        return run

    def receive(self, dead: bool) -> list[tuple[Any, ...]]:
        """The messages that have arrived, reports on the board included. If they cannot be read,
        since one of its jobs has overwritten them, say, the worker is killed."""
        messages = []
        self.channel.flush()
        # The board comes second, so that it holds all reports which the channel has announced.
        for arrived in (self.channel.receive(), self.board.collect(dead)):
            try:
                for message in arrived:
                    messages.append(message)
            except CHANNEL_ERRORS:
                self.broken = True
        if self.broken and not self.dead:
            self.kill()
        return messages

    def kill(self) -> None:
        """Kills it with all that it started; a thread goes on."""
        if self.is_process:
            alive = not self.dead
            self.usage = self.usage or usage_of(self.pid)
            kill_group(self.pid, alive)

    def close(self) -> None:
        """Closes the connections to a worker that has ended."""
        self.runs.clear()  # Each of them refers to the worker, and so to its shared memory.
        self.channel.socket.close()
        if self.lifeline is not None:
            self.lifeline.close()
            for source in self.sources[1:]:
                if source != self.process.sentinel:
                    os.close(source)
            if self.process.exitcode is None:
                # Else multiprocessing would keep the process and its files forever.
                self.process._popen.returncode = UNKNOWN_EXIT_CODE
            self.process.close()


def start_worker(make: MakeExecutor, presence: str | None, concurrency: int) -> Worker:
    """Starts a worker with *concurrency* places for async jobs: a process that holds the lock on
    the file *presence*, or a thread if that is `None`."""
    import socket

    free = list(range(1, concurrency + 1))
    with contextlib.ExitStack() as opened:
        ours, theirs = map(opened.enter_context, socket.socketpair())
        ours.setblocking(False)
        if presence is None:
            board = Board(concurrency)
            arguments = theirs, board, make, time.thread_time_ns
            thread = threading.Thread(target=work, args=arguments, daemon=True)
            thread.start()
            opened.pop_all()
            return Worker(thread, os.getpid(), Channel(ours), board, free, [ours])
        from multiprocessing import get_context

        context = get_context("spawn")
        pipe: Sequence[Any] = context.Pipe(duplex=False)
        lifeline, held = map(opened.enter_context, pipe)
        board = Board(concurrency, context)
        handed = theirs, lifeline, board, presence, make
        process = context.Process(target=work_in_child, args=handed, name="litejobs-worker")
        with spawning():
            process.start()
        opened.pop_all()
    theirs.close()
    lifeline.close()
    pid, sources = process.pid or 0, list[Any]([ours])
    try:
        sources.append(os.pidfd_open(pid))  # type: ignore[attr-defined, unused-ignore]
    except (AttributeError, OSError):
        if sys.platform != "win32":
            # A pipe. If a forked process keeps it open, `_check_workers` notices the death.
            sources.append(process.sentinel)
    return Worker(process, pid, Channel(ours), board, free, sources, held)


def usage_of(pid: int) -> tuple[int | None, int | None]:
    """Nanoseconds of CPU time and peak bytes of memory of a process, where there is /proc. Of a
    process that has ended, only the CPU time is known, until it is reaped."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[11:13]
    except OSError:
        return None, None
    return sum(map(int, ticks)) * 10**9 // os.sysconf("SC_CLK_TCK"), peak_memory(pid)  # type: ignore[attr-defined, unused-ignore]


def memory_of(pid: int) -> int:
    """Bytes of memory that a process occupies.

    Raises:
        OptionError: that cannot be known without psutil here.
        OSError: there is no such process.
    """
    if sys.platform == "linux":
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        problem = "cannot be watched here without psutil: pip install 'litejobs[memory]'"
        raise OptionError("max_memory", problem) from None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        raise ProcessLookupError(pid) from None


@attrs.define(eq=False, repr=False, slots=False)
class WorkerPool:
    """The workers of a node."""

    make: MakeExecutor
    threads: bool
    """Whether its workers are threads, instead of processes."""
    size: int
    concurrency: int
    """How many async jobs each may run at a time."""
    jobs_per_worker: float
    """Jobs after which a worker is replaced; if finite, a spare worker is ready then."""
    grace: float
    """Seconds for a worker that was asked to end."""
    workers: list[Worker] = attrs.field(factory=list)
    ever_ready: bool = False
    failed_starts: int = 0
    """Since a worker was last ready."""
    _failure: str = ""
    _start_at: float = 0.0

    def spawn(self, presence: str) -> Iterator[Worker]:
        """Ends workers that have run as many jobs as they may, and starts others that hold the
        lock on the file *presence*. Raises a WorkerError if none can be started."""
        for worker in self.workers:
            if worker.jobs_left <= 0 and not worker.runs:
                if worker.exit_by == math.inf:
                    worker.exit_by = time.monotonic() + self.grace
                    worker.channel.send("end")
                elif time.monotonic() >= worker.exit_by:
                    worker.kill()
        if self.failed_starts >= FAILED_STARTS * (1 + self.ever_ready):
            if not self.workers:
                raise WorkerError(f"no worker can be started: {self._failure}")
            if not any(worker.ready for worker in self.workers):
                return  # Wait until those that are starting are ready or have failed.
        size = self.size + (self.jobs_per_worker < math.inf)
        size += sum(worker.exit_by < math.inf for worker in self.workers)
        starting = sum(not worker.ready for worker in self.workers)
        for _ in range(min(size - len(self.workers), STARTS_AT_ONCE - starting)):
            if time.monotonic() < self._start_at:
                return
            try:
                held = None if self.threads else presence
                worker = start_worker(self.make, held, self.concurrency)
            except OSError as error:
                self.start_failed(str(error))
                return
            worker.jobs_left = self.jobs_per_worker
            self.workers.append(worker)
            yield worker

    def start_failed(self, problem: str) -> None:
        """Logs that a worker could not start, and pauses: the system may have too little memory, or
        source files are being replaced. Workers that fail in the pause were started before it."""
        now = time.monotonic()
        if now >= self._start_at:
            logger.error("a worker cannot be started and will be tried again: %s", problem)
            self._start_at = now + RESTART_PAUSE * 2 ** min(self.failed_starts, 6)
            self.failed_starts += 1
            self._failure = problem

    def replace(self) -> None:
        """Has each process replaced when it has ended its jobs."""
        for worker in self.workers:
            worker.jobs_left = 0 if worker.is_process else worker.jobs_left

    def available(self) -> list[Worker]:
        """The workers that may be given jobs; a spare one only when another ends."""
        ready = [each for each in self.workers if each.ready and (each.jobs_left > 0 or each.runs)]
        return [worker for worker in ready[: self.size] if worker.jobs_left > 0]

    def at_work(self) -> list[Worker]:
        """The workers that were not asked to end, even if they may run no more jobs."""
        return [each for each in self.workers if each.ready and each.exit_by == math.inf]

    def runs(self) -> list[Run]:
        """The jobs that all workers have in hand."""
        return [run for worker in self.workers for run in worker.runs.values()]

    def close_in_fork(self) -> None:
        """Closes the connections in a forked process, above all the lifelines."""
        for worker in self.workers:
            worker.channel.socket.close()
            if worker.lifeline is not None:
                worker.lifeline.close()


# Assign: which worker gets each ready job, by how long those of its definition have been taking.

PREFETCH = 10_000
"""Microseconds of work that a worker should have in hand: enough that it need not wait for the next
exchange, little enough that no job waits behind others while another worker is idle."""
PREFETCH_JOBS = 256
"""How many jobs a worker has in hand at most, however short they are."""
PREFETCH_BEHIND = 100_000
"""Microseconds of work: a worker with one job in hand that has less is given a second one."""
OVERHEAD = 10
"""Microseconds that a worker spends on a job besides running it."""


def assign(
    plan: dict[int, Worker],
    workers: list[Worker],
    ready: Ready,
    durations: Mapping[str, float],
    async_names: frozenset[str],
) -> None:
    """Takes ready jobs while workers have room for them, and enters the worker of each into
    *plan*, by the job's id: for a plain job the worker with the least work, for an async one that
    with the most free places."""
    loads = [load_of(worker) for worker in workers]
    counts = [worker.plain for worker in workers]
    places = [len(worker.free) for worker in workers]
    while workers and (job := ready.peek()):
        id, name = job
        more = estimate(name, durations)
        if is_async := name in async_names:
            which = places.index(max(places))
            fits = places[which] > 0
        else:
            which = loads.index(min(loads))
            fits = has_room(counts[which], loads[which], more)
            if fits and ready.has_rate:  # A job that has a rate has to start now.
                fits = not workers[which].plain and loads[which] <= BURST_SECONDS * 1e6
        if not fits:
            if not async_names:
                return
            ready.leave_out(async_names if is_async else ready.subscription.names - async_names)
            continue
        next(ready)
        plan[id] = worker = workers[which]
        if is_async:
            places[which] -= 1
        else:
            loads[which] += more
            counts[which] += 1
        worker.jobs_left -= 1
        if worker.jobs_left <= 0:
            del workers[which], loads[which], counts[which], places[which]


def estimate(name: str, durations: Mapping[str, float]) -> float:
    """Microseconds that a worker will need for a job. Before the first one of a definition has run,
    it is assumed to be long, so that each worker gets only one."""
    return durations.get(name, PREFETCH_BEHIND) + OVERHEAD


def load_of(worker: Worker) -> float:
    """Microseconds of work that a worker has in hand. A job that has run for longer than expected
    is expected to run for as long again."""
    running = worker.runs.get(worker.board.running)
    began = 0 if running is None else worker.board.began(running)
    return max(worker.load, (time.monotonic_ns() - began) / 1000 if began else 0.0)


def has_room(count: int, load: float, more: float) -> bool:
    """Whether a worker with *count* jobs of *load* microseconds may be given one of *more*: a first
    one, however long; a second one, unless it would wait for long; others if all are short."""
    if count < 2:
        return count == 0 or load < PREFETCH_BEHIND
    return count < PREFETCH_JOBS and load + more <= PREFETCH


# Settle: the worker reports how an attempt ended, unless the job was asked to end or the worker has
# died: then it is decided here.

SETTLE_AT, SETTLE_WITHIN = 128, 0.008
"""Results, and seconds, after which results are settled even if no worker needs a job."""


def not_begun(now: int, cancelled: bool) -> Report:
    """The report of a job that was claimed and never begun."""
    report = GIVEN_BACK._replace(finished_at=now)
    if not cancelled:
        return report
    message = "cancelled before it started"
    return report._replace(state="cancelled", kind="cancelled", type="Cancelled", message=message)


def final_report(
    run: Run, report: Report, registry: Registry, rng: random.Random, crash: str = ""
) -> Report:
    """The report of a job that was asked to end, or whose worker died by a *crash*. The reason to
    end counts more than how it ended, except when the node stops."""
    claimed, options = run.claimed, registry.options(run.claimed.name)
    if report.state == "blocked" and run.reason != "cancel":
        return report
    if run.reason == "cancel":
        return report._replace(
            state="cancelled", counted=True, result=None,
            kind="cancelled", type="Cancelled", message="cancelled while it ran",
        )  # fmt: skip
    if run.reason == "timeout":
        kind, type = "timeout", "JobTimedOut"
        problem = f"it took longer than its timeout of {(claimed.timeout or 0) / 1e6:g} s"
        problem += f", and was granted {run.grace:g} s more to end"
    elif run.reason == "memory" and report.state != "completed":
        kind, type = "memory", "TooMuchMemory"
        problem = f"its worker used more than the {options.max_memory or 0:,} bytes that it may"
    elif crash:
        kind, type, problem = "crash", "WorkerCrashed", crash
    else:
        return report
    failed = retry_or_fail(claimed, options.backoff, rng)
    return report._replace(
        state=failed.state, delay=failed.delay, counted=True, result=None,
        kind=kind, type=type, message=problem,
    )  # fmt: skip


def exit_description(exitcode: int | None) -> str:
    """Says how a worker ended that its node did not kill."""
    if exitcode is None:
        why = "the program ignores SIGCHLD, or waits for children that are not its own"
        return f"its worker ended, and its exit code is not known: {why}"
    if exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"its worker was killed by {signal.Signals(-exitcode).name}"
    return f"its worker ended with exit code {exitcode}"


# The loop

Until = Literal["empty"]
LOCK_SLICE = 0.05
"""Seconds for which a node waits for the write lock before it attends to its workers again."""
MAX_DATAGRAMS = 256
"""How many datagrams are read from the wakeup socket at a time."""
FALSE_WAKES, WAKE_PAUSE = 8, 0.01
"""Datagrams without a commit, and the seconds for which the node pauses at each further one."""
FINAL_LOCK_WAIT = 1.0
"""Seconds for which a node that is to end at once waits for the write lock."""
RETRY_PAUSE = 0.5
"""Seconds until an exchange that failed is tried again."""
SLOW, VERY_SLOW = 0.010, 0.100
"""Seconds that a job may run before those behind it are taken back: SLOW if another worker of the
node is idle, else VERY_SLOW, since other nodes may have room."""
CANCEL_PART = 0.25
"""The part of the grace that is left when a stopping node cancels its async jobs."""
MEMORY_CHECK = 0.1
"""Seconds between checks of the memory of workers that run a job with `max_memory`."""
RETRY_SOON = 0.05
"""Seconds until the next try if a worker held the lock of its board."""
RELEASED, RELEASE_PAUSE = 8, 0.05
"""For each idle worker, how many jobs that other nodes refused are made ready at a time; seconds
until the next ones are."""
FROZEN_AFTER = 1.0
"""Seconds by which the supervisor's loop has to be late for the node to count as stopped, as by
SIGSTOP, `docker pause` or a laptop that sleeps. That time counts towards no timeout."""


@attrs.define(eq=False, repr=False, slots=False)
class Supervisor:
    """A node: it claims jobs for its workers and settles their results."""

    store: Store
    registry: Registry
    pool: WorkerPool
    subscription: Subscription
    until: Until | None
    grace: float
    clock: Clock
    declared: tuple[Sequence[Schedule], str]
    """The schedules that the program declares, and which program it is."""
    events: Events
    joined: threading.Event = attrs.field(factory=threading.Event)
    """Set when the node is listed, or has failed to join."""
    unresponsive_after: float = 5.0
    """Seconds after which a worker that begins none of the jobs it has in hand is replaced."""
    slow_after: float = 60.0
    """Seconds after which a running job is logged as slow; again each time that has doubled."""
    _rng: random.Random = attrs.field(factory=random.Random)
    _wakeup: socket.socket = attrs.field(init=False)
    """Receives the datagrams that wake the node; their content is ignored."""
    _selector: selectors.BaseSelector = attrs.field(factory=selectors.DefaultSelector)
    _async_names: frozenset[str] = attrs.field(init=False)
    _with_on_end: frozenset[str] = attrs.field(init=False)
    _duties: Duties = attrs.field(init=False)
    _node: int = 0
    _numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    _durations: dict[str, float] = attrs.field(factory=dict)
    """Microseconds that jobs of each definition have been taking."""
    _stops: int = 0
    _stop_at: float = math.inf
    """When the grace of a stopping node is over."""
    _claim_due: bool = True
    """Whether there may be ready jobs that the last exchange did not see."""
    _pending: list[Settlement] = attrs.field(factory=list)
    """The attempts that the next exchange settles."""
    _exchange_by: float = math.inf
    """When the next exchange is due: for results, progress, or a job that has a rate."""
    _wanted: frozenset[EventKind] = frozenset()
    """The kinds of events that have listeners, as of this round of the loop."""
    _ended_events: list[Event] = attrs.field(factory=list)
    """The events to emit when all is settled."""
    _ended: deque[tuple[Claimed, Ended]] = attrs.field(factory=deque)
    """The jobs that have ended and whose `on_end` no worker has been given yet."""
    _progress: dict[tuple[int, int], Sequence[str | None]] = attrs.field(factory=dict)
    """Progress that is not in the file yet, by id and claim."""
    _changes: int = 0
    """What `File.changes` returned last."""
    _may_hold_orphans: bool = False
    """Whether the file may have jobs claimed by this node that are not in hand."""
    _quiet_until: float = 0.0
    """When an exchange that failed is tried again."""
    _failing_since: float = math.inf
    _locked_since: float = math.inf
    _give_up_at: float = 0.0
    """When it stops waiting for the write lock while it joins or leaves."""
    _false_wakes: int = 0
    _paused: frozenset[str] | None = None
    """The queues that were paused at the last check; `None` before the first one."""
    _cancelled: frozenset[int] = frozenset()
    """The ids of jobs in hand that were cancelled."""
    _recall: int | None = None
    """The number of the recall whose jobs were taken back and are not settled yet."""
    _watch_at: float = math.inf
    """When something is due with a job in hand."""
    _expected_at: float = 0.0
    """When the loop should go on at the latest."""

    def __attrs_post_init__(self) -> None:
        import socket

        self.store.file.may_wait = self._may_wait
        self._async_names = frozenset(own.name for own in self.registry if own.body.is_async)
        self._with_on_end = self.registry.with_on_end()
        if not self._async_names:
            self.pool.concurrency = 0
        FORK_HOOKS[self.pool] = WorkerPool.close_in_fork
        duties: dict[str, tuple[float, Duty]] = {
            "check_commits": (POLL_INTERVAL, self._check_commits),
            "check_workers": (POLL_INTERVAL, self._check_workers),
            "requests": (math.inf, self._check_requests),
            "release_unfit": (1.0, self._release_unfit),
            **DUTIES,
        }
        self._duties = Duties(
            self.store, 0, self.events, self.subscription.node, self._wake, duties
        )
        self._wakeup = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._wakeup.bind(("127.0.0.1", 0))
        self._wakeup.setblocking(False)
        self.registry.nodes.append(self.subscription.node)

    def run(self) -> None:
        """Works until it is stopped, or until nothing is left to do."""
        try:
            self._run()
        finally:
            self.registry.nodes.remove(self.subscription.node)

    def _run(self) -> None:
        with contextlib.ExitStack() as unjoined:
            for opened in (self._wakeup, self._selector, self.store.file):
                unjoined.callback(opened.close)
            self._give_up_at = time.monotonic() + BUSY_TIMEOUT
            self.store.schedules.declare(*self.declared)
            self._join()
            self._selector.register(self._wakeup, selectors.EVENT_READ)
            what = "threads" if self.pool.threads else "workers"
            logger.info("node %s started with %d %s", self.subscription.node, self.pool.size, what)
            self._duties.emit("node_joined")
            unjoined.pop_all()
        self._give_up_at = math.inf
        self.joined.set()
        try:
            while not self._done():
                self._spawn()
                self._watch()
                self._listen()
                self._call_on_end()  # First, so that they keep up with the jobs.
                self._unless_locked(self._duties.do_due, self._exchange)
                self._call_on_end()
            if not self._stops:
                self._log_left()
        finally:
            self._leave()

    def _log_left(self) -> None:
        """Logs which jobs are left when nothing is left to do; as a warning, unless all of them
        have just to become due."""
        with contextlib.suppress(FileError):
            if left := find_left(self.store.file, self.subscription):
                level = logging.INFO if [*left] == ["scheduled"] else logging.WARNING
                shown = "; ".join(left.values())
                text = "node %s ends with nothing to do now, but jobs are left: %s"
                logger.log(level, text, self.subscription.node, shown)

    def stop(self) -> None:
        """Makes the node claim no more jobs, and end when those that run have ended or the grace
        is over; called again, at once. Safe in signal handlers and other threads."""
        self._stops += 1
        if self._stops > 1 or not self.joined.is_set():
            self._give_up_at = min(self._give_up_at, time.monotonic() + FINAL_LOCK_WAIT)
        with contextlib.suppress(OSError):
            self._wakeup.sendto(b"", self._wakeup.getsockname())

    # The write lock, which other programs may hold for any length of time

    def _may_wait(self, waited: float) -> bool:
        """Whether to go on waiting for the write lock: while there are workers to attend to, only
        for LOCK_SLICE at a time."""
        if self._give_up_at < math.inf:
            return time.monotonic() < self._give_up_at
        return waited < LOCK_SLICE

    def _unless_locked(self, *steps: Callable[[], None]) -> None:
        """Takes steps that need the write lock; if others hold it, they stay due."""
        busy: BusyError | None = None
        for step in steps:
            try:
                step()
            except BusyError as error:
                busy = error
        now = time.monotonic()
        self._locked_since = min(self._locked_since, now) if busy else math.inf
        if now - self._locked_since > BUSY_TIMEOUT:
            logger.error("nothing was claimed or settled for %.0f s: %s", BUSY_TIMEOUT, busy)
            self._locked_since = now

    # Join and leave

    def _join(self) -> None:
        port, known = self._wakeup.getsockname()[1], self.registry.listing()
        self._node = self.store.nodes.join(
            self.subscription.node, port, self.pool.size, self.subscription, known
        )
        self._duties.node = self._node

    def _join_again(self) -> None:
        """Ends all jobs, which may run elsewhere since other nodes took this one for dead."""
        problem = "node %s is not in the list any more: it ends its jobs, and joins anew"
        logger.error(problem, self.subscription.node)
        for worker in self.pool.workers:
            self._take_back(worker)
            if worker.runs:
                worker.blameless = True
                worker.kill()
        self.pool.replace()
        self.store.nodes.release_lock(self._node)
        self._join()
        self.store.file.node_count -= 1
        self._duties.make_due("rescue_from_unlisted")

    def _done(self) -> bool:
        busy = bool(self._pending) or any(worker.runs for worker in self.pool.workers)
        busy = busy or bool(self._ended and (self.pool.at_work() or not self._stops))
        if self._stops:
            # It must end even if threads do not, or results cannot be settled on a full disk.
            rest = 0.0 if self.pool.threads else self.grace + 1.0
            return self._stops > 1 or not busy or time.monotonic() > self._stop_at + rest
        if self.until is None or self._claim_due or busy:
            return False
        try:
            return not self.store.has_work(self.subscription)
        except BusyError:
            return False

    def _leave(self) -> None:
        now = time.monotonic()
        by = min(now, self._stop_at) + self.grace if self._stops else now + BUSY_TIMEOUT
        self._give_up_at = min(self._give_up_at, max(by, now + FINAL_LOCK_WAIT))
        self._stops += 2  # Whatever still runs is given back, also after an error.
        for worker in self.pool.workers:
            self._take_back(worker)
            worker.channel.send("end")
        give_up = time.monotonic() + 2.0
        for worker in list(self.pool.workers):
            if not (worker.runs and worker.ready):
                worker.process.join(max(0.0, give_up - time.monotonic()))
            if worker.is_process or worker.dead:
                self._reap(worker)
        if not self.pool.workers:
            self._close()
            return
        logger.warning("threads left behind, each with a job: %d", len(self.pool.workers))
        threading.Thread(target=self._wait_for_threads, name="litejobs", daemon=True).start()
        self._settle_last()

    def _wait_for_threads(self) -> None:
        """Waits for threads that did not end. Until they do, the node stays listed and holds
        their jobs, so that no other node runs them."""
        try:
            while self.pool.workers:
                self._receive_all(60.0)
                self._give_up_at = time.monotonic() + BUSY_TIMEOUT
                self._settle_last()
            self._close()
        except FileError as error:
            logger.error("the results of threads that were left behind are lost: %s", error)

    def _settle_last(self) -> None:
        pending, progress = self._pending, self._progress
        self._pending, self._progress = [], {}
        try:
            if pending or progress:
                self.store.exchange(
                    pending, self._node, lambda ready: [], self.subscription, progress
                )
        except FileError:
            logger.error("%d results are lost: the next node runs these jobs again", len(pending))
            raise

    def _close(self) -> None:
        with contextlib.ExitStack() as closing:  # Last first; each runs even if the file is gone.
            closing.callback(self.events.close, max(self.grace, CLOSE_TIMEOUT))
            closing.callback(self._duties.emit, "node_left")
            closing.callback(logger.info, "node %s left", self.subscription.node)
            for opened in (self._wakeup, self._selector, self.store.file):
                closing.callback(opened.close)
            closing.callback(self.store.leave, self._node)
            self._settle_last()
            self._emit_ended()
            self._ended.extend(self._duties.take_ended(self._with_on_end))
            for claimed, _ in self._ended:
                problem = "on_end of job %d (%s) is not called: the node has ended"
                logger.warning(problem, claimed.id, claimed.name)

    # Spawn and listen

    def _spawn(self) -> None:
        presence = self.store.file.presence_path(self._node)
        for worker in () if self._stops else self.pool.spawn(presence):
            for source in worker.sources:
                self._selector.register(source, selectors.EVENT_READ, worker)

    def _listen(self) -> None:
        """Waits until a worker or a producer sends something, a worker dies, or something is due.
        Nothing else in the loop blocks."""
        self._wanted = frozenset(filter(self.events.wants, EVENT_KINDS))
        exchange_at = 0.0 if self._may_exchange() else self._exchange_by
        due = [max(exchange_at, self._quiet_until), self._duties.next_due_at, self._watch_at]
        if self._stops and self.pool.threads:
            due.append(self._stop_at + 0.001)
        now = time.monotonic()
        self._expected_at = max(now, min(due))
        self._receive_all(self._expected_at - now)

    def _receive_all(self, seconds: float) -> None:
        for worker in self.pool.workers:
            events = selectors.EVENT_READ
            if worker.channel.unsent:
                events |= selectors.EVENT_WRITE
            if worker.events != events:
                worker.events = events
                self._selector.modify(worker.channel.socket, events, worker)
        until = time.monotonic() + seconds
        # Rounded down, since selectors round up to milliseconds.
        selected = self._selector.select(math.floor(seconds * 1000) / 1000)
        if not selected and seconds:
            time.sleep(max(0.0, until - time.monotonic()))
            selected = self._selector.select(0)
        for key, _ in selected:
            worker = key.data
            if worker is None:
                with contextlib.suppress(OSError):
                    for _ in range(MAX_DATAGRAMS):
                        self._wakeup.recv(16)
                if self._false_wakes >= FALSE_WAKES:  # Limits what a flood of datagrams costs.
                    time.sleep(WAKE_PAUSE)
                self._false_wakes += 1
                self._duties.make_due("check_commits")
            elif worker in self.pool.workers:
                self._receive(worker)
                if (worker.broken or key.fileobj in worker.sources[1:]) and worker.dead:
                    self._reap(worker)

    def _receive(self, worker: Worker, dead: bool = False) -> None:
        for message in worker.receive(dead):
            match message:
                case ("report", number, fields):
                    if (run := worker.take(number)) and run.ended is not None:
                        self._claim_due = True  # There is room again for a ready job.
                    elif run:
                        name, report = run.claimed.name, Report(*fields)
                        expected = self._durations.get(name, report.took)
                        self._durations[name] = expected + 0.2 * (report.took - expected)
                        if report.state != "blocked":
                            self._announce(run, report.started_at)
                        if run.reason is not None:
                            report = final_report(run, report, self.registry, self._rng)
                        self._settle(run, report)
                case ("ready",):
                    worker.ready = self.pool.ever_ready = True
                    self.pool.failed_starts = 0
                    self._claim_due = True
                case ("broken", kind, text, lines) if not self._stops:
                    shown = lines.splitlines()
                    logger.error("a worker could not start:" + "\n%s" * len(shown), *shown)
                    worker.failure = f"{kind}: {text}"
                    if not self.pool.ever_ready:
                        raise WorkerError(f"a worker could not start: {worker.failure}")
                case ("progress", id, claim, *texts):
                    self._progress[id, claim] = texts
                    soon = time.monotonic() + PROGRESS_INTERVAL
                    self._exchange_by = min(self._exchange_by, soon)

    def _reap(self, worker: Worker) -> None:
        """Removes a dead worker: the jobs that it ran have failed, the rest is given back."""
        worker.kill()  # The processes that it has started may still run.
        worker.process.join()
        self._receive(worker, dead=True)
        if self._stops > 1:
            worker.blameless = True
        if not worker.ready and not self._stops:
            self.pool.start_failed(worker.failure)
        for run in worker.runs.values():
            if worker.board.began(run):
                self._settle_crashed(run)
            else:
                self._give_back(run)
        self.pool.workers.remove(worker)
        for source in worker.sources:
            self._selector.unregister(source)
        worker.close()

    def _wake(self) -> None:
        """Makes due what a commit by others may require."""
        self._claim_due = True
        self._duties.make_due("stage", "expire", "requests")
        # Ticks a little later, since this is called for each enqueue.
        self._duties.make_due("fire", within=FIRE_DELAY)

    def _release_unfit(self, duties: Duties) -> float | None:
        """Makes jobs ready whose payloads did not fit the definitions of other nodes: as many as
        idle workers take at once, if such a node might take and refuse them again."""
        idle = sum(not worker.plain for worker in self.pool.available())
        most, began = RELEASED * idle or 1, time.monotonic()
        if self._stops or not self.store.release_unfit(self.subscription, self._node, most):
            return max(1.0, 50 * (time.monotonic() - began))  # There may be a million of them.
        self._wake()
        return RELEASE_PAUSE if idle else None

    # Settle and claim

    def _settle(self, run: Run, report: Report) -> None:
        """Has the next exchange settle an attempt."""
        if report.kind or report.state in self._wanted:
            report = report._replace(worker=run.worker.pid)
            for event in attempt_ended(run.claimed, report, self.subscription.node):
                if event.kind in self._wanted:
                    self._ended_events.append(event)
        if not self._pending:
            self._exchange_by = min(self._exchange_by, time.monotonic() + SETTLE_WITHIN)
        self._pending.append((run.claimed, report))
        if run.claimed.name in self._with_on_end:
            self._duties.ended[run.claimed.id] = run.claimed.claim

    def _call_on_end(self) -> None:
        """Has workers with room call the `on_end` of jobs that have ended, once all is settled."""
        if self._duties.ended and not self._pending:
            self._ended.extend(self._duties.take_ended(self._with_on_end))
        while self._ended and (workers := self.pool.at_work()):
            claimed, ended = self._ended[0]
            expected, place = estimate(claimed.name, self._durations), 0
            if claimed.name in self._async_names:
                worker = max(workers, key=lambda worker: len(worker.free))
                fits = bool(worker.free)
                place = worker.free.pop() if fits else 0
            else:
                worker = min(workers, key=load_of)
                fits = has_room(worker.plain, load_of(worker), expected)
            if not fits:
                return
            self._ended.popleft()
            run = Run(next(self._numbers), claimed, worker, expected, place)
            run.announced, run.ended = True, ended
            worker.hand_over([run])

    def _give_back(self, run: Run) -> None:
        """Makes a job ready again that has not begun, unless it was cancelled."""
        if run.ended is not None:
            self._ended.append((run.claimed, run.ended))
            self._exchange_by = 0.0  # So that the loop goes on, and gives it to another worker.
            return
        self._settle(run, not_begun(self.clock(), run.claimed.id in self._cancelled))

    def _settle_crashed(self, run: Run) -> None:
        """Settles a job whose worker has died: it has failed, like each async job that had begun
        there, since it is unknown which one was to blame. If the node has killed the worker,
        only jobs that were asked to end have failed; the others are given back."""
        worker, now = run.worker, self.clock()
        exit_code = worker.process.exitcode if worker.is_process else 0
        if run.ended is not None:
            why = run.reason or exit_description(exit_code)
            problem = "on_end of job %d (%s) did not end: %s"
            logger.error(problem, run.claimed.id, run.claimed.name, why)
            return
        began = worker.board.began(run)
        took = (time.monotonic_ns() - began) // 1000
        cpu, memory = worker.usage or (None, None)
        report = GIVEN_BACK._replace(
            started_at=now - took, finished_at=now, took=took, memory=memory,
            exit_code=exit_code, output=worker.board.output_of(run.number),
            # The CPU time of async jobs cannot be divided among them.
            cpu=None if cpu is None or run.place else worker.board.cpu_since(began, cpu),
        )  # fmt: skip
        self._announce(run, report.started_at)
        crash = "" if worker.blameless else exit_description(exit_code)
        self._settle(run, final_report(run, report, self.registry, self._rng, crash))

    def _announce(self, run: Run, at: int) -> None:
        """Emits the "started" event of a job, once."""
        if "started" in self._wanted and not run.announced:
            run.announced = True
            pid, node = run.worker.pid, self.subscription.node
            self.events.emit(attempt_started(run.claimed, at, pid, node))

    def _emit_ended(self) -> None:
        ended, self._ended_events = self._ended_events, []
        for event in ended:
            self.events.emit(event)

    def _exchange(self) -> None:
        """Settles all results and claims as many jobs as fit, in one transaction."""
        if not self._may_exchange() or time.monotonic() < self._quiet_until:
            return
        plan: dict[int, Worker] = {}
        workers = [] if self._stops else self.pool.available()
        names, durations = self._async_names, self._durations
        short = False

        def choose(ready: Ready) -> list[int]:
            nonlocal short
            file = self.store.file
            if file.lacks_space(file.connection(), DISK_RESERVE // 2) is not None:
                # The space that is left is for settling the jobs that run.
                short = next(ready, None) is not None
                return []
            assign(plan, workers, ready, durations, names)
            if ready.taken:
                self.store.nodes.check_listed(self._node)
            return ready.taken

        try:
            if self._may_hold_orphans:
                # A job that has ended is held until it is settled.
                held = [run.claimed[:2] for run in self.pool.runs()]
                held += [claimed[:2] for claimed, _ in self._pending]
                self.store.nodes.release_orphans(self._node, held)
                self._may_hold_orphans = False
            done = self.store.exchange(
                self._pending, self._node, choose, self.subscription, self._progress
            )
        except (BusyError, FileReplacedError):
            raise
        except FileError as error:
            self._postpone(error)
            return
        if done.late:
            logger.warning("%d results came too late and were thrown away", done.late)
        if any(report.state in DELAYED for _, report in self._pending):
            self._duties.make_due("stage")
        if self._recall is not None:
            self._duties.make_due("requests")
        self._claim_due, self._pending, self._progress = False, [], {}
        self._exchange_by = math.inf
        if done.again_at is not None:
            self._exchange_by = time.monotonic() + (done.again_at - self.clock()) / 1e6
        runs = defaultdict[Worker, list[Run]](list)
        for claimed in done.claimed:
            worker = plan[claimed.id]
            place = worker.free.pop() if claimed.name in names else 0
            expected = estimate(claimed.name, durations)
            runs[worker].append(Run(next(self._numbers), claimed, worker, expected, place))
        for worker, handed in runs.items():
            worker.hand_over(handed)
        self._emit_ended()
        if not short:
            self._failing_since = math.inf
        else:
            problem = "the disk is nearly full: no further jobs are started; free some space"
            self._postpone(FileError(str(self.store.file.path), problem))

    def _may_exchange(self) -> bool:
        """Whether there is something to settle, or may be something to claim."""
        pending = len(self._pending)
        if time.monotonic() >= self._exchange_by or pending >= SETTLE_AT:
            return True
        if not pending and (self._stops or not self._claim_due):
            return False
        workers = self.pool.available()
        for worker in workers:
            if has_room(worker.plain, load_of(worker), PREFETCH / 2):
                return True
        # While no worker needs a job, waiting lets one transaction settle more results.
        return self._stops > 0 or (not pending and any(worker.free for worker in workers))

    def _postpone(self, error: FileError) -> None:
        """Settles one at a time what could not be settled together: a result that cannot be stored
        must not keep the others, and a small transaction may fit on a full disk. What is left is
        tried again later. With *until*, the error is raised if exchanges have failed for
        BUSY_TIMEOUT and nothing runs."""
        if isinstance(error.__cause__, (*ROW_ERRORS, apsw.FullError)):
            self._progress.clear()
            try:
                self.store.settle_each(self._pending)
            except BusyError:
                raise
            except FileError as again:
                error = again
        now = time.monotonic()
        self._failing_since = min(self._failing_since, now)
        failing = now - self._failing_since
        if self.until is not None and not self.pool.runs() and failing > BUSY_TIMEOUT:
            raise error
        self._duties.log("the exchange", error)
        self._may_hold_orphans = self._may_hold_orphans or isinstance(error, OutcomeUnknownError)
        self._claim_due = True
        self._duties.make_due("stage", "requests")
        self._quiet_until = now + RETRY_PAUSE

    # Watch: jobs that are over their time or memory, that are cancelled, or whose node stops, are
    # asked to end within their grace; then their worker is killed.

    def _watch(self) -> None:
        """Ends jobs that must end, and takes back those that wait behind slow jobs."""
        workers, now = self.pool.workers, time.monotonic()
        if (missed := now - self._expected_at) >= FROZEN_AFTER:
            self._stop_at += missed
            for run in self.pool.runs():
                run.kill_at += missed
                if began := run.worker.board.began(run):
                    run.frozen += now - max(began / 1e9, self._expected_at)
                run.worker.progress_at = now
        if self._stops and self._stop_at == math.inf:
            self._stop_at = now + self.grace
            for worker in workers:
                worker.check_at = 0.0
                self._take_back(worker)
        idle = any(not worker.plain for worker in self.pool.available())
        self._watch_at = math.inf
        for worker in workers:
            running = worker.runs.get(worker.board.running)
            if running is not None:
                self._watch_at = min(self._watch_at, self._watch_run(running, now))
            elif worker.runs:
                self._replace_if_unresponsive(worker, now)
            if now >= worker.check_at:
                beside = [run for run in worker.runs.values() if run.place]
                worker.check_at = min(
                    (self._watch_run(run, now) for run in beside), default=math.inf
                )
            self._watch_at = min(self._watch_at, worker.check_at)
            if worker.plain > (running is not None):
                self._watch_at = min(self._watch_at, now + SLOW)
                slow = SLOW if idle else VERY_SLOW
                if running is not None and now > worker.board.began(running) / 1e9 + slow:
                    self._take_back(worker)

    def _watch_run(self, run: Run, now: float) -> float:
        """Asks a job to end if it must, and kills its worker if it does not; returns when the job
        has to be checked next."""
        claimed, worker, board = run.claimed, run.worker, run.worker.board
        options = self.registry.options(claimed.name)
        began = board.began(run) / 1e9
        took = now - began - run.frozen if began else 0.0
        if began:
            self._announce(run, self.clock() - round(took * 1e6))
            if took >= max(run.slow_after, self.slow_after):
                run.slow_after = 2 * took
                about = claimed.id, claimed.name, took
                logger.warning("job %d (%s) has been running for %.3g s", *about)
        if run.reason is None and (reason := self._reason(run, took, options.max_memory)):
            if not board.ask_to_end(run.number, run.place, reason):
                return now
            run.reason, run.kill_at, within = reason, now, 0.0
            if reason == "stop":
                run.kill_at = self._stop_at
                within = self._stop_at - now - CANCEL_PART * self.grace
            elif reason != "memory":
                run.grace = self.grace if options.grace is None else options.grace.total_seconds()
                if claimed.grace is not None:
                    run.grace = claimed.grace / 1e6
                run.kill_at = now + run.grace
            if run.place:
                worker.channel.send("cancel", run.number, within)
        if now >= run.kill_at:
            # While the worker holds the lock of the board, a plain job is just ending, and a kill
            # might hit the next one.
            with board.held() as locked:
                sure = locked or run.place > 0
                run.kill_at = math.inf if sure else now + RETRY_SOON
                if sure and board.began(run):
                    worker.blameless = True
                    worker.kill()
        if run.reason is not None:
            return run.kill_at
        due = math.inf if claimed.timeout is None else now + claimed.timeout / 1e6 - took
        if options.max_memory:
            due = min(due, now + MEMORY_CHECK)
        if run.place:  # To see that it begins, or is slow.
            due = min(due, now + (1.0 if began else 0.1))
        return due

    def _reason(self, run: Run, took: float, limit: int | None) -> Reason | None:
        """Why a job that has run for *took* seconds has to end, if it does."""
        claimed, worker, now = run.claimed, run.worker, time.monotonic()
        if claimed.id in self._cancelled:
            return "cancel"
        if claimed.timeout is not None and took * 1e6 >= claimed.timeout:
            return "timeout"
        if limit and took and worker.is_process and now >= run.memory_at:
            run.memory_at = now + MEMORY_CHECK
            with contextlib.suppress(OSError):
                if memory_of(worker.pid) > limit:
                    return "memory"
        return "stop" if self._stop_at < math.inf else None

    def _replace_if_unresponsive(self, worker: Worker, now: float) -> None:
        """Kills a worker that begins none of its jobs, which have no timeout before they begin: a
        thread that an earlier job has left there may hold the interpreter lock."""
        if not worker.is_process or now < worker.progress_at + self.unresponsive_after:
            return
        with worker.board.held():  # Else it may begin one before it is dead.
            if worker.blameless or any(map(worker.board.began, worker.runs.values())):
                return
            worker.blameless = True
            worker.kill()
        logger.error("worker %d is replaced: it begins nothing", worker.pid)

    def _take_back(self, worker: Worker) -> bool:
        """Makes a worker's plain jobs that have not started ready again; returns whether that could
        be done now."""
        if (running := worker.board.revoke(next(self._numbers))) is None:
            return False
        self._receive(worker)
        for run in list(worker.runs.values()):
            if not run.place and run.number != running:
                worker.take(run.number)
                self._give_back(run)
        return True

    # The supervisor's own duties

    def _check_commits(self, duties: Duties) -> None:
        """Checks whether others have committed something."""
        if (changes := self.store.file.changes()) == self._changes:
            return
        if not self.store.nodes.is_listed(self._node):
            self._join_again()
        self._changes, self._false_wakes = changes, 0
        self._wake()
        if self.events.wants("queue_paused") or self.events.wants("queue_resumed"):
            paused = frozenset(each.name for each in self.store.queues().values() if each.paused)
            before, self._paused = paused if self._paused is None else self._paused, paused
            for queue in sorted(paused - before):
                self._duties.emit("queue_paused", queue=queue)
            for queue in sorted(before - paused):
                self._duties.emit("queue_resumed", queue=queue)

    def _check_workers(self, duties: Duties) -> None:
        """Checks for workers that died unnoticed, and that the file whose lock they hold exists."""
        for worker in list(self.pool.workers):
            if worker.dead:
                self._reap(worker)
        if self.store.nodes.renew(self._node):
            logger.error(
                "%s was removed, and is made anew: workers are replaced when they have ended"
                " their jobs, so that all hold it", self.store.file.presence_path(self._node),
            )  # fmt: skip
            self.pool.replace()

    def _check_requests(self, duties: Duties) -> float | None:
        """Reads which of the node's jobs were cancelled, for `_watch`, and whether jobs that have
        not begun are recalled, to be claimed anew under other settings of their queue."""
        cancelled, recall = self.store.nodes.requests(self._node)
        self._cancelled, recalled = frozenset(cancelled), recall not in (None, self._recall)
        taken_back = True
        for worker in self.pool.workers:
            if cancelled:
                worker.check_at = self._watch_at = 0.0
            cancelled_here = any(run.claimed.id in self._cancelled for run in worker.runs.values())
            if worker.plain and (recalled or (cancelled_here and worker.board.running)):
                taken_back = self._take_back(worker) and taken_back
        if not taken_back:
            return RETRY_SOON
        if recalled:
            self._recall = recall
        if recall is not None and not self._pending:
            self.store.nodes.confirm_recall(self._node, recall)
            self._recall = None
        return None


################################################################################
# LiteJobs
#
# What a program holds: its definitions, its file, and the methods that enqueue jobs, look at
# them, change them and run them. Everything above is put together here.
################################################################################

PAGE_SIZE = 500
"""Jobs that `iterate` reads at a time."""
MAX_WORKERS = 10_000
"""Workers of a node, and async jobs that a worker may run at a time."""
ASYNC_THREADS = 8
"""Threads in which a `LiteJobs` does what coroutines await: so many of these can share a commit."""


def awaitable(
    method: Callable[Concatenate[LiteJobs, P], R],
) -> Callable[Concatenate[LiteJobs, P], Coroutine[Any, Any, R]]:
    """The method for coroutines, its name with an `a` before it: it runs in another thread."""

    async def run(jobs: LiteJobs, /, *args: P.args, **kwargs: P.kwargs) -> R:
        import asyncio  # Late: few programs need it.

        call = functools.partial(contextvars.copy_context().run, method, jobs, *args, **kwargs)
        started = jobs._threads().submit(call)
        started.cancel = lambda: False  # What is begun is done, even if nobody awaits it any more.
        result: R = await asyncio.wrap_future(started)
        return result

    functools.update_wrapper(run, method)
    name = method.__name__
    run.__name__, run.__qualname__ = f"a{name}", f"LiteJobs.a{name}"
    run.__doc__ = f"""`{name}` for coroutines: the event loop goes on meanwhile, also while others
        hold the file's write lock. If its task is cancelled meanwhile, it is done all the same.

        Raises: like `{name}`.
        """
    return run


@attrs.define(eq=False, repr=False, slots=False)
class LiteJobs:
    """A queue in the file at *path*, which is opened when first used; a relative path starts at the
    current folder at the time. It may be made at import time and used from several threads.

    *state* is a function that makes one object for each worker process or thread, or returns a
    context manager that does. With *durability* "full" an enqueued job survives power loss; with
    "fast", which is faster, only crashes of processes. *clock* returns microseconds since 1970.
    """

    _path: Path = attrs.field(converter=Path)
    state: Callable[[], Any] | None = attrs.field(default=None, kw_only=True)
    durability: Durability = attrs.field(default="full", kw_only=True)
    clock: Clock = attrs.field(default=system_clock, kw_only=True)
    registry: Registry = attrs.field(factory=Registry, init=False)
    define: Define = attrs.field(init=False)
    middleware: Middleware = attrs.field(init=False)
    events: Events = attrs.field(factory=Events, init=False)
    store: Store = attrs.field(init=False)
    _declared: dict[str, tuple[Schedule, object, str, object]] = attrs.field(
        factory=dict, init=False
    )
    target: str | None = attrs.field(default=None, init=False)
    """The file of the program that was named on the command line."""
    _made_in: str | None = attrs.field(default=None, init=False)
    """The file of the module that called `LiteJobs()`."""
    tested: bool = attrs.field(default=False, init=False)
    """Whether `recording` has given it another file and clock."""
    log_level: int | None = attrs.field(default=None, init=False)
    """The level at which workers log to stderr, unless the program sets up logging itself."""
    _async_threads: Any = attrs.field(default=None, init=False)
    """The ThreadPoolExecutor for `awaitable` methods, once one was awaited."""

    def __attrs_post_init__(self) -> None:
        if self.durability not in typing.get_args(Durability):
            raise OptionError("durability", f"expected 'full' or 'fast', got {self.durability!r}")
        if self.state is not None and not callable(self.state):
            raise OptionError("state", "expected a function that makes the state")
        self.define = Define(self.register)
        self.middleware = Middleware(nodes=self.registry.nodes)
        self._made_in = sys._getframe(2).f_globals.get("__file__")
        self.store = Store(File(self._path, self.durability, clock=self.clock))

    @property
    def path(self) -> Path:
        """The absolute path of the file."""
        return self.store.file.path

    def register(self, *definitions: AnyDefinition | type) -> None:
        """Adds definitions and classes that were made with the module's `define`. Their jobs go to
        the file of the `LiteJobs` with which they were registered last.

        Raises:
            DefinitionError: a name is taken, or a node runs in this program.
        """
        for given in definitions:
            if (definition := definition_of(given)) is None:
                raise DefinitionError(repr(given), "no definition: decorate it with @define")
            if (replaced := self.registry.add(definition)) is not None:
                # The schedules that were declared with it are declared anew, or are gone.
                run = replaced.body.loaded_by
                self._declared = {k: v for k, v in self._declared.items() if v[3] is not run}
            definition.body.home = self

    def on(self, *kinds: EventKind) -> Callable[[AnyListener], AnyListener]:
        """Makes a decorator for functions that are called with every event of these kinds, or of
        all: `@jobs.on("failed")`.

        They are called where the event happens, in the node's process or in the one that
        enqueues, in one thread and in order; in `drain`, at once. Errors in them are logged; while
        they are slow, up to 10,000 events wait, and further ones are dropped.

        "timed_out" and "crashed" are about an attempt; "retrying" or "failed" follows.
        "cancelled" is only reported for jobs that a node had claimed.

        Raises:
            OptionError: there is no such kind.
        """
        if kinds and callable(kinds[0]):
            raise OptionError("event", 'write @jobs.on("failed"), or @jobs.on() for all')

        def add(listener: AnyListener) -> AnyListener:
            self.events.listen(kinds, listener)
            return listener

        return add

    def trace(self) -> None:
        """Makes an OpenTelemetry span for every enqueue and for every attempt, linked, with the
        program's own tracer provider. Call it at import time, so that workers do, too.

        Raises:
            OptionError: OpenTelemetry is not installed, or a node runs in this program.
        """
        check_tracing()
        if trace_run not in self.middleware.runs:
            self.middleware.run(trace_run)
            self.middleware.enqueue(trace_enqueue)

    def close(self) -> None:
        """Closes the file; the next use opens it again. Waits for what coroutines have begun."""
        threads, self._async_threads = self._async_threads, None
        if threads is not None:
            threads.shutdown()
        self.events.close()
        self.store.file.close()

    def __repr__(self) -> str:
        return f"LiteJobs({str(self.path)!r})"

    def __enter__(self) -> LiteJobs:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _threads(self) -> Any:
        """The threads in which `awaitable` methods run, made when first used."""
        if self._async_threads is None:
            from concurrent.futures import ThreadPoolExecutor

            self._async_threads = ThreadPoolExecutor(ASYNC_THREADS, "litejobs")
            FORK_HOOKS[self] = LiteJobs._forget_threads
        return self._async_threads

    def _forget_threads(self) -> None:
        self._async_threads = None  # A forked child does not have them.

    # Enqueue

    def enqueue(
        self, work: Bound[R] | object, /, *arguments: Never, **choices: Unpack[Choices]
    ) -> Job[R]:
        """Puts one job into the file: a bound definition, or an instance of a defined
        class. When this returns, the job survives `kill -9` and power loss.

        Raises:
            PayloadError: a value does not fit its annotation.
            OptionError: a choice is unknown or cannot be used.
            FileError: the file cannot be used; its leaves say in which way.
        """
        _refuse_while_importing()
        if arguments:
            self.bind(work)  # Says, of a function, where its arguments go.
            raise TypeError("enqueue() takes one job; for several there is enqueue_many()")
        bound = work if type(work) is Bound and not choices else self.bind(work, **choices)
        if self.middleware.enqueues or not bound.options.plain:
            return self._enqueue_inside(self.middleware.enqueues, [bound])[0]
        insert = functools.partial(insert_all, jobs=[new_job(bound, self.clock())])
        (id,), (new,) = self.store.group_commit.commit(insert)
        job: Job[R] = new.job(id, bound.payload, self)
        if self.events.wants("enqueued"):
            self._emit_enqueued([job])
        return job

    def enqueue_many(self, works: Iterable[Bound[Any] | object]) -> Sequence[Job[Any]]:
        """Puts many jobs into the file in one transaction, all or none; returns them in that order.

        Raises: like `enqueue`; then none is enqueued.
        """
        _refuse_while_importing()
        given = [*works]
        return self._enqueue_inside(self.middleware.enqueues if given else (), given)

    aenqueue = awaitable(enqueue)  # type: ignore[var-annotated]
    aenqueue_many = awaitable(enqueue_many)

    def _enqueue_inside(
        self, layers: Sequence[AroundEnqueue], works: Iterable[Bound[Any] | object]
    ) -> Sequence[Job[Any]]:
        """Enqueues inside these layers of middleware. Each has to return a job for each work."""
        jobs: Any
        bound = [work if type(work) is Bound else self.bind(work) for work in works]
        if layers:
            jobs = layers[0](bound, functools.partial(self._enqueue_inside, layers[1:]))
            if not isinstance(jobs, Sequence) or len(jobs) != len(bound):
                problem = f"{layers[0]!r} has to return what call_next gives, or to raise"
                raise OptionError("middleware", f"{problem}; it gave {reprlib.repr(jobs)}")
            return jobs
        if not bound:
            return []
        alike = itertools.groupby(bound, key=operator.attrgetter("body", "options"))
        groups = [list(jobs) for _, jobs in alike]
        now, commit = self.clock(), self.store.group_commit.commit
        given = [group[0].options.connection for group in groups]
        if any(connection is not given[0] for connection in given):
            raise OptionError("connection", "the jobs of one call go through one connection")
        if all(group[0].options.plain for group in groups):
            new = [
                new_job(group[0], now, tuple([job.payload for job in group])) for group in groups
            ]
            ids, new = commit(functools.partial(insert_all, jobs=new))
            jobs = Enqueued(ids, new, self)
        else:
            new = [new_job(job, now) for job in bound]
            insert = functools.partial(insert_and_read, jobs=new, source=self)
            if given[0] is not None:
                with on_callers_connection(given[0], self.store.file) as tx:
                    # No events, since the caller may commit later, or never.
                    return insert(tx)
            jobs = commit(insert)
        if self.events.wants("enqueued"):
            self._emit_enqueued(jobs)
        return typing.cast("Sequence[Job[Any]]", jobs)

    def _emit_enqueued(self, jobs: Iterable[Job[Any]]) -> None:
        for job in jobs:
            if not job.duplicate:
                self.events.emit(
                    Event("enqueued", job.enqueued_at, job=job.id, name=job.name, queue=job.queue)
                )

    def broadcast(self, work: Bound[R] | object, /, **choices: Unpack[Choices]) -> list[Job[R]]:
        """Enqueues a copy of the job for each node that is at work now, all in one transaction;
        returns the jobs. Each is only taken by its node.

        Raises: like `enqueue`.
        """
        bound = self.bind(work, **choices)
        for node, _, _ in self.store.nodes.others(0):
            self.store.nodes.rescue(node)  # It may have died unnoticed.
        names = sorted({name for _, name, _ in self.store.nodes.others(0)})
        return [*self.enqueue_many(self.bind(bound, node=name) for name in names)]

    def bind(self, work: Bound[R] | object, /, **choices: Unpack[Choices]) -> Bound[R]:
        """A job that is not enqueued yet, from an instance of a defined class or from a bound
        definition, with these choices.

        Raises: like `enqueue`.
        """
        if isinstance(work, Definition):
            raise DefinitionError(
                work.name, "not a job yet: write f.enqueue(…), or jobs.enqueue(f.bind(…))"
            )
        if isinstance(work, Bound):
            return work.using(**choices) if choices else work
        return bind_instance(self.registry.of(work), work, choices)

    # Read

    def get(self, id: int | Job[Any]) -> Job[Any]:
        """One job as it is now. (Here and below, a job may be given instead of its id, and a
        definition or a defined class instead of its name.)

        Raises:
            JobNotFoundError: it was deleted or pruned, or never existed.
        """
        with self.store.file.transaction(read_only=True) as tx:
            return get_jobs(tx, [id_of(id)], self)[0]

    def find(
        self,
        *,
        limit: int = 100,
        before: int | Job[Any] | None = None,
        **filters: Unpack[Filters],
    ) -> list[Job[Any]]:
        """The jobs that match all filters, newest first; for the next page, pass the id of the last
        one as *before*.

        Raises:
            OptionError: a filter is unknown or cannot match anything.
        """
        last = None if before is None else id_of(before, "before")
        match = attrs.evolve(matching(filters), before=last)
        with self.store.file.transaction(read_only=True) as tx:
            return find_jobs(tx, match, limit, self)

    aget = awaitable(get)
    afind = awaitable(find)

    def iterate(self, **filters: Unpack[Filters]) -> Iterator[Job[Any]]:
        """All jobs that match, newest first, read page by page. No transaction stays open, and jobs
        that are enqueued meanwhile are left out.

        Raises: like `find`.
        """

        def pages(match: Match) -> Iterator[Job[Any]]:
            while True:
                with self.store.file.transaction(read_only=True) as tx:
                    page = find_jobs(tx, match, PAGE_SIZE, self)
                yield from page
                if len(page) < PAGE_SIZE:
                    return
                match = attrs.evolve(match, before=page[-1].id)

        return pages(matching(filters))

    def count(self, **filters: Unpack[Filters]) -> int:
        """How many jobs match all filters."""
        with self.store.file.transaction(read_only=True) as tx:
            return count_jobs(tx, matching(filters))

    def stats(self) -> dict[str, dict[str, int]]:
        """How many jobs there are, by queue and then by state."""
        with self.store.file.transaction(read_only=True) as tx:
            return count_by_queue(tx)

    def metrics(
        self,
        span: Span = "minute",
        *,
        queue: str | None = None,
        name: str | AnyDefinition | type | None = None,
        limit: int = 60,
    ) -> list[Metric]:
        """What nodes did in the last *limit* minutes, hours or days, oldest first, including the
        current one and those without jobs.

        Nodes store it every five seconds (a node that is killed loses what it has not stored), and
        `drain` at its end. Minutes are kept for a day, hours and days for 90 days.

        Raises:
            OptionError: there is no such span, or the limit is not from 1 to 10,000.
        """
        check_one_of(span, SPANS, "span")
        at_least_one(limit, "limit", most=10_000)
        filters: Any = {"queue": queue, "name": name}
        match = matching(filters)
        return self.store.meter.read(span, match.queue, match.name, limit)

    def nodes(self) -> list[Node]:
        """The nodes at work on this file."""
        return self.store.nodes.all()

    def errors(self, id: int | Job[Any]) -> tuple[Failure, ...]:
        """The failed attempts of a job, oldest first."""
        with self.store.file.transaction(read_only=True) as tx:
            found = read_failures(tx, "job = :number", id_of(id))
        return tuple(failure for _, _, failure in found)

    def error_groups(self, *, limit: int = 10_000, **filters: Unpack[Filters]) -> list[ErrorGroup]:
        """The newest *limit* dead letters that match all filters, grouped by definition and error,
        the largest group first. `retry(group=…)` retries all of a group, also older ones.

        Raises: like `find`.
        """
        match = attrs.evolve(matching({"state": "failed", **filters}), before=None)
        at_least_one(limit, "limit")
        with self.store.file.transaction(read_only=True) as tx:
            return group_errors(tx, match, limit)

    def wait(self, id: int | Job[Any], timeout: Duration | None = None) -> Job[Any]:
        """Waits until a job has completed, failed or been cancelled.

        Raises:
            WaitTimeoutError: *timeout* passed first.
            JobNotFoundError: it was deleted or pruned, or never existed.
        """
        (job,) = self.as_completed([id], timeout)
        return job

    def as_completed(
        self, jobs: Iterable[int | Job[R]], timeout: Duration | None = None, *, bar: bool = False
    ) -> Iterator[Job[R]]:
        """Yields each job once it has completed, failed or been cancelled; a `Job` that was given
        is refreshed, and is what is yielded. With *bar*, the terminal shows a progress bar.

        Raises:
            WaitTimeoutError: *timeout* passed before all had ended.
            JobNotFoundError: one was deleted or pruned.
        """
        given = {id_of(job): job for job in jobs}
        left, total = {*given}, len(given)
        limit = math.inf if timeout is None else duration(timeout, "timeout").total_seconds()
        began = time.monotonic()
        give_up, warn_at = began + limit, began + WARN_AFTER
        for pause in poll_intervals():
            with self.store.file.transaction(read_only=True) as tx:
                found = get_jobs(tx, left, self)
            if bar and sys.stderr.isatty():
                _print_bar(found, total)
            for job in found:
                if job.finished:
                    left.remove(job.id)
                    own = given[job.id]
                    yield own._update(job) if isinstance(own, Job) else job
            if not left:
                return
            time_left = give_up - time.monotonic()
            if time_left <= 0:
                still = next(job for job in found if not job.finished)
                raise WaitTimeoutError(still.id, still.state)
            if time.monotonic() >= warn_at:
                warn_at = self._warn_of_wait(found, began)
            time.sleep(min(pause, time_left))

    def _warn_of_wait(self, jobs: Iterable[Job[Any]], began: float) -> float:
        """Logs, once, why jobs that are waited for do not run, if that takes more than their turn;
        returns when to check that again."""
        again_at = 2 * time.monotonic() - began
        left = [job for job in jobs if not job.finished]
        if not left:
            return again_at
        # Those that are not due, held or blocked come first.
        job = min(left, key=lambda job: (job.state == "running", job.state == "pending"))
        try:
            executor = EXECUTOR.get(None)
            if executor and executor.running and job.state in ("pending", "blocked"):
                store_awaited(self.store.file, job.id, executor.running.id)
            why, stuck = explain(self.store.nodes, job)
        except LitejobsError:  # The wait goes on, and meets it too if it stays.
            return again_at
        if not stuck:
            return again_at
        others = f" and {_quantity(len(left) - 1, 'other')}" if left[1:] else ""
        logger.warning("waiting for job %d (%s)%s: %s", job.id, job.name, others, why)
        return math.inf

    _awarn_of_wait = awaitable(_warn_of_wait)

    def wait_all(
        self, jobs: Iterable[int | Job[R]], timeout: Duration | None = None, *, bar: bool = False
    ) -> list[Job[R]]:
        """Waits until all of these jobs have ended; returns them in that order.

        Raises: like `as_completed`.
        """
        jobs = list(jobs)
        ended = {job.id: job for job in self.as_completed(jobs, timeout, bar=bar)}
        return [ended[id_of(job)] for job in jobs]

    def result(self, job: int | Job[Any]) -> Any:
        """What the handler of a completed job returned.

        Raises:
            JobFailedError: it did not complete.
            ResultError: the result could not be kept, or does not fit the type that the handler
                declares now.
        """
        if not isinstance(job, Job) or not job.finished:
            job = self.get(job)
        if job.state != "completed":
            raise JobFailedError(job.id, job.name, job.state, job.error or "no reason was given")
        if (text := job.stored_result) is None:
            if job.error is not None:
                raise ResultError(job.id, job.name, job.error.removeprefix("its result "))
            return None
        definition = self.registry.by_name.get(job.name)
        codec = definition.body.signature.result if definition else None
        try:
            return load_json(text) if codec is None else codec.decode(text)
        except (CodecError, ValueError) as error:
            raise ResultError(job.id, job.name, f"does not fit its type: {error}") from error

    def why(self, id: int | Job[Any]) -> str:
        """One sentence that says why a job is not running, or how it ended.

        Raises:
            JobNotFoundError: it was deleted or pruned, or never existed.
        """
        return explain(self.store.nodes, self.get(id))[0]

    # Maintain

    def doctor(self) -> list[Finding]:
        """Finds everything that is wrong with the queue, with advice. Reads the whole file.

        Raises:
            FileError: the file cannot even be opened.
        """
        return [*find_problems(self.store.nodes)]

    def repair(self) -> int:
        """Corrects stored counts of jobs, and admits jobs that wait for a key that no job holds;
        returns how many corrections there were."""
        repaired = repair(self.store.file) + self.store.admit()
        self.store.file.notify_nodes()
        return repaired

    def backup(self, path: str | Path) -> Path:
        """Copies the whole file to *path*, where no file may exist, while jobs run; returns the
        copy's absolute path. It is durable when this returns, and only its owner can read it. Jobs
        that were running are ready again in it.

        Raises:
            FileError: the path exists, or cannot be written.
        """
        return back_up(self.store.file, Path(path))

    def compact(self) -> Compacted:
        """Returns all free space in the file to the system. Other writers wait meanwhile.

        Raises:
            BusyError: others held the file's write lock for too long.
        """
        return compact(self.store.file)

    # Change

    def queue(self, name: str) -> Queue:
        """A queue, whether it exists or not, to pause or resume it and to change its settings.

        Raises:
            OptionError: it is not a valid name.
        """
        return Queue(check_name(name, "queue"), self)

    def queues(self) -> list[QueueSettings]:
        """The queues that have settings, by name."""
        return list(self.store.queues().values())

    def cancel(self, *ids: int | Job[Any], **filters: Unpack[Filters]) -> Moved:
        """Cancels waiting jobs at once, and asks running ones to end; they are killed after
        their grace.

        Raises:
            OptionError: neither ids nor filters are given, or a filter is unknown.
        """
        return bulk(self.store.file, chosen(ids, filters), VERBS["cancel"])

    def retry(self, *ids: int | Job[Any], **filters: Unpack[Filters]) -> Moved:
        """Makes failed and cancelled jobs ready again, with all their attempts (their history is
        kept), and jobs that wait for their backoff due now."""
        return bulk(self.store.file, chosen(ids, filters), VERBS["retry"])

    def delete(self, *ids: int | Job[Any], **filters: Unpack[Filters]) -> Moved:
        """Deletes jobs and their history; running ones are left."""
        return bulk(self.store.file, chosen(ids, filters), VERBS["delete"])

    def change(self, *ids: int | Job[Any], to: Changes, **filters: Unpack[Filters]) -> Moved:
        """Changes options of waiting jobs, checked as in `enqueue`; running and finished jobs stay
        as they are. The fields of a *payload* replace those of that name, and the whole has to fit
        the definition, if this program has it.

        Raises:
            OptionError: neither ids nor filters are given, or there is no such option.
            PayloadError: a job's payload would no longer fit. That job stays as it is, but others
                may have been changed before it.
        """
        check_known(to, Changes.__annotations__, "cannot be changed")
        if not to:
            raise OptionError("to", "say what to change, such as to={'priority': 10}")
        if "at" in to:
            aware(to["at"], "at")
        options: Any = {name: value for name, value in to.items() if name != "payload"}
        columns = columns_of(options, self.clock())
        fields = to.get("payload")
        if fields is not None:
            try:
                json_of_any.encode(dict(fields))
            except (CodecError, TypeError, ValueError) as error:
                problem = f"expected fields with JSON values: {error}"
                raise OptionError("payload", problem) from None

        def rework(name: str, payload: object) -> str | bytes:
            old = _read_json(payload) if isinstance(payload, str) else None
            if not isinstance(old, dict):
                raise PayloadError(name, ("it is not a JSON object, so that no field can change",))
            text = json_of_any.encode({**old, **(fields or {})})
            definition = self.registry.by_name.get(name)
            return text if definition is None else bind_json(definition, text, {}).payload

        match = chosen(ids, filters)
        return change_options(self.store.file, match, columns, None if fields is None else rework)

    def hold(self, *ids: int | Job[Any], **filters: Unpack[Filters]) -> Moved:
        """Pauses waiting jobs until they are released. Jobs that a worker has in hand, begun or
        not, count as running and are left: to hold those, pause their queue meanwhile."""
        return bulk(self.store.file, chosen(ids, filters), VERBS["hold"])

    def release(self, *ids: int | Job[Any], **filters: Unpack[Filters]) -> Moved:
        """Lets held jobs become ready again when they are due."""
        return bulk(self.store.file, chosen(ids, filters), VERBS["release"])

    # Schedules

    @overload
    def cron(self, expression: str, /, **how: Unpack[Declaring]) -> Define: ...
    @overload
    def cron(
        self, expression: str, work: object, /, **how: Unpack[Declaring]
    ) -> ScheduleHandle: ...

    def cron(self, expression: str, work: object = None, /, **how: Unpack[Declaring]) -> Any:
        """Declares that a job is enqueued at each time of *expression*: five cron fields, six with
        seconds first, `@daily` and the like, or `@every 30s`.

        Use it as a decorator of a definition or a function, or pass the *work*: a bound definition,
        one without required parameters, or an instance of a defined class. When a node starts, the
        schedules that its program declares are stored, and those no longer declared are removed.

        *misfire* says what to do about ticks that are late by more than *grace*: "once" (one job
        for all of them), "skip" or "all". With *overlap* "skip" no job is enqueued before the last
        one has finished; with "queue" its jobs run one at a time, and one is enqueued while the
        last one runs, but none while that still waits. *jitter* delays each job at random, by no
        more than that. There is no tick before *start* or after *end*.

        Raises:
            OptionError: a value cannot be used, or the name is taken.
        """
        return self._declare(expression, work, **how)

    @overload
    def every(self, interval: Duration, /, **how: Unpack[Declaring]) -> Define: ...
    @overload
    def every(
        self, interval: Duration, work: object, /, **how: Unpack[Declaring]
    ) -> ScheduleHandle: ...

    def every(self, interval: Duration, work: object = None, /, **how: Unpack[Declaring]) -> Any:
        """Like `cron`, each time that *interval* has passed since *start*, or else since the
        schedule was stored.

        Raises: like `cron`.
        """
        return self._declare(every_expression(interval), work, **how)

    def _declare(
        self,
        expression: str,
        work: object,
        *,
        name: str | None = None,
        timezone: str = "UTC",
        **how: Unpack[Recurring],
    ) -> Define | ScheduleHandle:
        check_known(how, Declaring.__annotations__, "no such option")
        schedule = make_schedule(expression, timezone, **how)
        module = module_name(sys._getframe(2).f_globals.get("__name__", "__main__"))

        def declare(work: object) -> ScheduleHandle:
            owner: Any = work if isinstance(work, Bound) else definition_of(work)
            title = (owner or self.registry.of(work)).name if name is None else name
            check_name(title, "name")
            if self.registry.nodes:
                problem = f"schedule {title!r} declared {AFTER_START}"
                raise OptionError("name", f"{problem}; or use schedule().set()")
            taken, run = self._declared.get(title), running_module()
            if taken and (taken[2] != module or taken[3] is run):
                problem = f"schedule {title!r} declared twice, in {taken[2]} and in {module}"
                raise OptionError("name", f"{problem}: give one another name=")
            self._declared[title] = attrs.evolve(schedule, name=title), work, module, run
            return ScheduleHandle(title, self)

        return attrs.evolve(self.define, then=declare) if work is None else declare(work)

    def _declarations(self) -> tuple[Sequence[Schedule], str]:
        """The schedules that the program declares, and which program it is."""
        program = program_of(self.target, self._made_in)
        schedules = [
            self._with_work(attrs.evolve(schedule, origin=json.dumps({program: module})), work)
            for schedule, work, module, _ in self._declared.values()
        ]
        for schedule in schedules:
            self.registry.named(schedule.definition)
        return schedules, program

    def _with_work(self, schedule: Schedule, work: object) -> Schedule:
        """The schedule with the definition, payload and options of what it enqueues."""
        own = definition_of(work)
        if own is not None and own.options is own.body.options:
            # It may have been loaded again since.
            own = self.registry.by_name.get(own.name, own)
            work = own.body.code() if own.body.is_class else own
        bound = work.bind() if isinstance(work, Definition) else self.bind(work)
        options = bound.options
        merges = options.unique is not None and callable(options.unique.on_conflict)
        fixed = isinstance(options.expires, datetime)
        shared = schedule.overlap == "queue" and options.key is not None and options.key_limit > 1
        for option, refused, problem in (  # What only fits one job, or only this program.
            ("delay", options.delay, "not for a schedule, which says itself when its jobs run"),
            ("at", options.at, "not for a schedule, which says itself when its jobs run"),
            ("expires", fixed, "for a schedule give a length of time, from each tick on"),
            ("unique", merges, "a schedule, which any program may fire, has no merge function"),
            ("connection", options.connection, "a schedule fires in its own transaction"),
            ("key_limit", shared, "with overlap='queue' the jobs run one at a time: leave it at 1"),
        ):
            if refused:
                raise OptionError(option, problem)
        # Made for time 0, so that what is stored are durations, to be added to each tick.
        kept = options_of(new_job(bound, 0))
        return attrs.evolve(schedule, definition=bound.name, payload=bound.payload, options=kept)

    def schedule(self, name: str | AnyDefinition | type) -> ScheduleHandle:
        """The schedule of this name, whether it exists or not, to make, change, pause or fire it
        while nodes run."""
        definition = definition_of(name)
        return ScheduleHandle(check_name(definition.name if definition else name, "name"), self)

    def schedules(self) -> list[Schedule]:
        """All schedules in the file, by name."""
        with self.store.file.transaction(read_only=True) as tx:
            return read_schedules(tx)

    def pause_schedules(self) -> int:
        """Pauses all schedules until they are resumed; returns how many were not paused before."""
        return self.store.schedules.set_paused(None, True)

    def resume_schedules(self) -> int:
        """Resumes all schedules from their next ticks on, without those that were missed; returns
        how many were paused."""
        return self.store.schedules.set_paused(None, False)

    # Work

    def work(self, workers: int | None = None, **options: Unpack[NodeOptions]) -> None:
        """Runs jobs in *workers* processes (default: one for each core) until it is stopped. With
        `until="empty"` it ends when nothing is pending, running or waiting for a retry. Each worker
        also runs up to *concurrency* jobs (default: 100) of `async def` handlers at a time, in one
        event loop, with the same state.

        With *threads*, jobs run in that many threads of this process instead: for graphical
        programs, notebooks, and frozen applications without `multiprocessing.freeze_support()`.
        Definitions may then be anywhere, and each thread has its own state. But a thread cannot be
        killed: a job over its timeout is only asked to end, by `context.cancelled`, and one that
        crashes takes the program with it. A thread that has not ended after the grace is left
        behind; until it ends, its node stays listed, and no other node runs its job.

        A worker is replaced after *jobs_per_worker* jobs, for code that leaks; the next one is
        started before. *queues* limits the node to some queues; *node* names it for jobs that only
        it may take. *grace* (default: 5 s) is how long a job that was asked to end may go on before
        its worker is killed: when the node stops, or at a timeout or a cancellation, unless the job
        or its definition has a `grace`. SIGTERM and Ctrl-C stop the node, a second one at once (in
        the main thread; elsewhere use `start`).

        Raises:
            DefinitionError: there are no definitions, or workers cannot find one.
            WorkerError: the workers cannot start, or a node of that name is at work.
        """
        run_until_stopped(self._supervisor(workers, **options))

    def start(self, workers: int | None = None, **options: Unpack[NodeOptions]) -> Pool:
        """Like `work`, but in the background, for programs that have a main loop: the node is at
        work when this returns, and until `stop()` of what it returns, the end of a `with`
        statement, or the exit of the program.

        In an interactive session, such as a notebook, it first stops the one that was started
        before on this file with the same *queues* and *node*: so a cell can be run again.

        Raises: like `work`.
        """
        place = self.path, repr(options.get("queues")), options.get("node")
        supervisor = self._supervisor(workers, **options)
        for pool in [*_POOLS] if hasattr(sys, "ps1") else ():
            if pool.place == place:
                pool.stop()
        return Pool(supervisor, place)

    def _supervisor(
        self,
        workers: int | None = None,
        *,
        threads: int | None = None,
        concurrency: int = 100,
        jobs_per_worker: int | None = None,
        queues: Iterable[str] | None = None,
        node: str | None = None,
        until: Until | None = None,
        grace: Duration = 5.0,
        **unknown: object,
    ) -> Supervisor:
        _refuse_while_importing()
        check_known(unknown, [*NodeOptions.__annotations__, "workers"], "no such option")
        if until not in (None, "empty"):
            raise OptionError("until", f"expected 'empty' or None, got {until!r}")
        if workers is not None and threads is not None:
            raise OptionError("threads", "given together with workers: jobs run in one or other")
        if jobs_per_worker is not None:
            at_least_one(jobs_per_worker, "jobs_per_worker", most=sys.maxsize)
        fill_standard_streams()
        store = Store(File(self.path, "fast", clock=self.clock))
        try:
            make = self._program() if threads is None else self._executor()
            asked, what = (workers, "workers") if threads is None else (threads, "threads")
            size = at_least_one(
                os.cpu_count() or 1 if asked is None else asked, what, most=MAX_WORKERS
            )
            subscription = self._subscription(queues, node)
            at_least_one(concurrency, "concurrency", most=MAX_WORKERS)
            jobs_each = math.inf if jobs_per_worker is None else jobs_per_worker
            seconds = duration(grace, "grace").total_seconds()
            pool = WorkerPool(make, threads is not None, size, concurrency, jobs_each, seconds)
            others = self.clock, self._declarations(), self.events
            return Supervisor(store, self.registry, pool, subscription, until, seconds, *others)
        except OSError as error:
            raise WorkerError(f"no node can be started: {error}") from error

    def _executor(self) -> MakeExecutor:
        own = self.registry, self.state, self.clock, self, self.middleware.runs
        return functools.partial(executor, *own)

    def _program(self) -> MakeExecutor:
        if self.tested:
            raise LitejobsError("workers would use the program's own file, not the test's: drain()")
        if any(definition.options.max_memory for definition in self.registry):
            memory_of(os.getpid())  # Fails at once if that cannot be known here.
        check_frozen()
        home = functools.partial(_home, self.path, self.durability, self.middleware.enqueues)
        places = {definition.name: place_of(definition, self) for definition in self.registry}
        paths = {file.given: file.path for file in files_here() if not file.given.is_absolute()}
        paths[self.store.file.given] = self.path
        around, level = self.middleware.runs, self.log_level
        program = functools.partial(
            load_program, places, self.state, home, self.clock, around, paths, level
        )
        layers = [("middleware", layer) for layer in (*around, *self.middleware.enqueues)]
        import pickle

        for what, thing in (*layers, ("state or clock", program)):
            try:
                pickle.dumps(thing)
            except Exception as error:
                advice = "use functions at the top level of a module"
                raise OptionError(what, f"workers cannot find it ({error}): {advice}") from None
        return program

    def _subscription(self, queues: Iterable[str] | None, node: str | None) -> Subscription:
        if not self.registry.by_name:
            raise DefinitionError("(none)", "there is nothing to run: use @jobs.define first")
        if isinstance(queues, str):
            raise OptionError("queues", f"expected several names, got the text {queues!r}")
        chosen = None if queues is None else frozenset(check_name(q, "queues") for q in queues)
        import socket

        # Containers may have one host name, and then each has a process 1.
        unique = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        name = unique if node is None else check_name(node, "node")
        fingerprints = {own.name: own.body.fingerprint for own in self.registry}
        names = frozenset(fingerprints)
        return Subscription(names, chosen, name, fingerprints=fingerprints)

    def drain(self, *, queues: Iterable[str] | None = None) -> int:
        """Runs jobs in this process, one after another, until none is due; returns the number of
        attempts. For tests and small scripts: timeouts are not enforced, a crash is a crash of this
        process, and this never returns if a job always makes another one due at once. Before, it
        does the other duties of a node: it takes over jobs of dead processes, and deletes those
        whose retention is over (not in a test)."""
        subscription = self._subscription(queues, None)
        with contextlib.ExitStack() as closing:
            self.registry.nodes.append(subscription.node)
            closing.callback(self.registry.nodes.remove, subscription.node)
            runs = closing.enter_context(self._executor()())
            known = self.registry.listing()
            self.store.schedules.declare(*self._declarations())
            node = self.store.nodes.join(subscription.node, 0, 0, subscription, known)
            closing.callback(self.store.leave, node)
            closing.enter_context(self.events.dispatched_at_once())
            duties = Duties(self.store, node, self.events, subscription.node)
            return run_due(duties, runs, subscription, prunes=not self.tested)


def run_until_stopped(supervisor: Supervisor) -> None:
    """Runs a node; in the main thread, until SIGTERM or Ctrl-C stops it."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            before[number] = signal.signal(number, lambda *_: supervisor.stop())
    try:
        supervisor.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _print_bar(left: Sequence[Job[Any]], total: int) -> None:
    """Prints how many of *total* jobs have ended, and the progress of the rest."""
    ended = total - sum(not job.finished for job in left)
    shares = [job.progress.share or 0.0 for job in left if job.progress and not job.finished]
    share = (ended + sum(shares)) / max(1, total)
    # Of constant width, so that it covers the previous line.
    line = f"\r[{'=' * int(30 * share):30}] {ended:{len(str(total))}}/{total} {share:4.0%}"
    print(line, end="\n" if ended == total else "", file=sys.stderr, flush=True)
    for handler in _handlers_on_stderr():
        (handler.removeFilter if ended == total else handler.addFilter)(_clear_bar)


def _handlers_on_stderr() -> list[logging.Handler]:
    handlers = (*logging.root.handlers, *logger.handlers, logging.lastResort)
    return [each for each in handlers if each and getattr(each, "stream", None) is sys.stderr]


def _clear_bar(record: logging.LogRecord) -> bool:
    """Makes room for a log line where a progress bar is; the next bar is printed below it."""
    print(f"\r{'':60}\r", end="", file=sys.stderr)
    for handler in _handlers_on_stderr():  # Not by removeFilter, since one of them is in a loop.
        handler.filters = [each for each in handler.filters if each is not _clear_bar]
    return True


def run_due(duties: Duties, executor: Executor, subscription: Subscription, prunes: bool) -> int:
    """Runs due jobs in this process, one after another; returns the number of attempts."""
    store, node, events = duties.store, duties.node, duties.events
    # Without a handler, logging would print events that are warnings to stderr.
    emit = events.emit if logger.hasHandlers() else events.dispatch
    ended: Sequence[tuple[Claimed, Report]] = ()
    attempts, interrupted, with_on_end = 0, False, executor.registry.with_on_end()

    def choose(ready: Ready) -> list[int]:
        room = 0 if interrupted or not store.nodes.is_listed(node) else 1
        return [id for id, _ in itertools.islice(ready, room)]

    def keep_progress(*texts: str | None) -> None:
        try:
            store.keep_progress({claimed[:2]: texts})
        except FileError as error:
            logger.error("the progress of job %d could not be kept: %s", claimed.id, error)

    def report_progress(claimed: Claimed, what: Reported) -> None:
        reporter.report(what)

    duties.do("rescue", "admit", "forget_statistics", "roll_up_metrics")
    while prunes and (store.prune(store.clock()) or store.shrink()):
        pass  # One batch per transaction, so that others can write in between.
    while True:
        store.nodes.renew(node)
        if not interrupted:
            # Expire first: with overlap="skip" a tick fires only if the last job has ended.
            duties.do("expire", "fire", "stage")
        done = store.exchange(ended, node, choose, subscription)
        for settled, report in ended:
            if report.kind or events.wants("completed"):
                for event in attempt_ended(settled, report, subscription.node):
                    emit(event)
            if settled.name in with_on_end:
                duties.ended[settled.id] = settled.claim
        for claimed, what in duties.take_ended(with_on_end):
            executor.run(claimed, ended=what)
        if interrupted:
            raise KeyboardInterrupt
        if not done.claimed:
            # Otherwise a retry may be due at once.
            if done.complete and not (ended or store.release_unfit(subscription, node, BATCH)):
                store.nodes.check_listed(node)
                return attempts
            ended = ()
            continue
        (claimed,) = done.claimed
        if events.wants("started"):
            emit(attempt_started(claimed, store.clock(), os.getpid(), subscription.node))
        with contextlib.closing(ProgressReporter(keep_progress)) as reporter:
            report = executor.run(claimed, progress=report_progress)
        ended = [(claimed, report._replace(worker=os.getpid()))]
        attempts += 1
        interrupted = report.type == "KeyboardInterrupt"


class NodeOptions(TypedDict, total=False):
    """How a node works; see `LiteJobs.work`."""

    threads: Annotated[int | None, "threads of this process instead"]
    concurrency: Annotated[int, "async jobs at a time in each (default: 100)"]
    jobs_per_worker: Annotated[int | None, "jobs until a worker is replaced"]
    queues: Annotated[Iterable[str] | None, "only this queue; may be repeated"]
    node: Annotated[str | None, "a name, for jobs that only this node may take"]
    until: Annotated[Until | None, "end when nothing is left to do"]
    grace: Annotated[Duration, "for jobs to end in (default: 5)"]


class QueueChoices(TypedDict, total=False):
    """The settings that a queue may have."""

    concurrency: Annotated[int | None, "how many of its jobs run at a time"]
    rate: Annotated[str | None, "how many start in some time, as 10/s or 100/min"]
    burst: Annotated[int | None, "how many may start at once after a pause"]
    weight: Annotated[float | None, "its share among queues with jobs of the same priority"]
    ageing: Annotated[Duration | None, "in which the priority of a waiting job rises by one"]
    max_attempts: int | None
    timeout: Duration | None
    backoff: Backoff | None


@attrs.frozen
class Queue:
    """A queue, by its name. Its settings are in the file: they apply to all nodes, and changes take
    effect at once."""

    name: str
    _jobs: LiteJobs = attrs.field(eq=False, repr=False)

    def set(self, **choices: Unpack[QueueChoices]) -> QueueSettings:
        """Changes these settings and no others; `None` removes one.

        *concurrency*: how many of its jobs run at a time, on all nodes together. *rate*: how many
        start in some time ("10/s", "100/min"), evenly, or with up to *burst* jobs at once after a
        pause. *weight*: its share among queues with jobs of the same priority (default: 1).
        *ageing*: the interval in which the priority of a waiting job rises by one. *max_attempts*
        (`None`: no limit), *timeout* and *backoff*: for jobs whose definition does not set them.
        *concurrency* and *rate* are in effect when this returns, as after `pause`.

        Raises:
            OptionError: there is no such setting, or its value cannot be used.
        """
        check_known(choices, _SETTING_CHECKS, "no such setting")
        # For jobs the default backoff is stored as NULL; for a queue that is no setting.
        store: dict[str, Any] = {**STORED, "ageing": STORED["timeout"], "backoff": store_curve}
        columns: dict[str, Any] = {}
        for setting, value in typing.cast("dict[str, Any]", choices).items():
            checked = None if value is None else _SETTING_CHECKS[setting](value, setting)
            columns[setting] = checked and store.get(setting, _identity)(checked)
        if columns.get("max_attempts", 0) is None:
            columns["max_attempts"] = 0  # No limit; NULL is no setting.
        if "rate" in choices:
            columns["rate_given"] = choices["rate"]
        self._jobs.store.set_queue(self.name, columns)
        return self.settings

    @property
    def settings(self) -> QueueSettings:
        """Its settings, as they are in the file now."""
        return self._jobs.store.queues().get(self.name) or QueueSettings(self.name)

    def pause(self) -> None:
        """Lets no more of its jobs start, on any node; running ones go on. When this returns, nodes
        have taken back the jobs that their workers had in hand and had not begun. Only jobs of
        `async def` handlers that wait for their event loop, and jobs of a node that does not
        answer within two seconds (the log names it), may still start."""
        self._jobs.store.set_queue(self.name, {"paused": 1})

    def resume(self) -> None:
        """Lets its jobs start again."""
        self._jobs.store.set_queue(self.name, {"paused": 0})

    def reset(self) -> None:
        """Removes all its settings, and resumes it."""
        self._jobs.store.reset_queue(self.name)


_SETTING_CHECKS: Mapping[str, Check] = {
    "concurrency": functools.partial(at_least_one, also=", or None"),
    "rate": lambda value, what: parse_rate(value),
    "burst": functools.partial(at_least_one, also=", or None"),
    "weight": _accept(
        lambda value: type(value) in (int, float) and 0.001 <= value <= 1000,
        "a number from 0.001 to 1000",
    ),
    "ageing": OPTIONS["timeout"],
    "max_attempts": OPTIONS["max_attempts"],
    "timeout": OPTIONS["timeout"],
    "backoff": _accept(lambda value: isinstance(value, Curve), ", ".join(CURVES)),
}


class Declaring(Recurring, total=False):
    """How a program declares a schedule: also its name (default: that of the definition) and the
    time zone of its cron fields."""

    name: str | None
    timezone: str


@attrs.frozen(eq=False, repr=False)
class ScheduleHandle:
    """A schedule, by its name, whether it exists or not. Changes take effect at once, also in
    running nodes.

    Raises:
        ScheduleNotFoundError: it does not exist; from all methods but `set`.
    """

    name: str
    _jobs: LiteJobs

    def get(self) -> Schedule:
        """The schedule as it is now."""
        with self._jobs.store.file.transaction(read_only=True) as tx:
            return get_schedule(tx, self.name)

    def set(
        self,
        expression: str | Duration,
        work: object,
        /,
        *,
        timezone: str = "UTC",
        paused: bool | None = None,
        **how: Unpack[Recurring],
    ) -> Schedule:
        """Makes or changes the schedule; options are those of `cron`, and *expression* may be an
        interval. It stays until it is removed, or a program declares one of this name. With
        *paused* it waits for `resume`, or goes on if that is false; `None`: as it was.

        Raises:
            OptionError: a value cannot be used.
            PayloadError: the work has required parameters without a value.
        """
        _refuse_while_importing()
        text = expression if isinstance(expression, str) else every_expression(expression)
        schedule = attrs.evolve(make_schedule(text, timezone, **how), name=self.name)
        if paused not in (None, True, False):
            raise OptionError("paused", f"expected True, False or None, got {paused!r}")
        return self._jobs.store.schedules.put(self._jobs._with_work(schedule, work), paused)

    def pause(self) -> None:
        """Lets it enqueue no jobs until it is resumed."""
        self._jobs.store.schedules.set_paused(self.name, True)

    def resume(self) -> None:
        """Lets it enqueue jobs again, from the next tick on."""
        self._jobs.store.schedules.set_paused(self.name, False)

    def fire(self) -> Job[Any]:
        """Enqueues one job now, even if it is paused; its next tick does not change."""
        _refuse_while_importing()
        return self._jobs.get(self._jobs.store.schedules.fire_now(self.name))

    def remove(self) -> None:
        """Deletes it. (If a program declares it, the program's next node makes it again.)"""
        self._jobs.store.schedules.remove(self.name)


class Changes(Changeable, total=False):
    """What can be changed of a waiting job; `None` means the same as in `enqueue`. A duration as
    *expires* counts from when the job is due, if that is changed too, else from now."""

    payload: Annotated[Mapping[str, Any], FIELDS]


def _spelled_out(method: Any, typed: str) -> inspect.Signature:
    """The signature of a method with the options that it takes as a TypedDict."""
    del method.__signature__
    made = inspect.signature(method)
    *others, _ = (p for p in made.parameters.values() if p.kind is not p.VAR_POSITIONAL)
    method.__signature__ = made.replace(parameters=others + options_in(globals()[typed]))
    return typing.cast(inspect.Signature, method.__signature__)


_owner: Any
for _owner in (Job, Context, Definition, Bound, LiteJobs, Queue, ScheduleHandle):
    _owner.__getattr__ = lead_back
    for _method in filter(inspect.isfunction, vars(_owner).values()):
        for _hint in map(str, _method.__annotations__.values()):
            if _hint.startswith("Unpack[") and not hasattr(_method, "__wrapped__"):
                _make = functools.partial(_spelled_out, _method, _hint[7:-1])
                _method.__signature__ = LazySignature(_make)  # type: ignore[attr-defined]


def module_name(name: str) -> str:
    """The name of a module; for the main program that of its file, or with -m of its module, so
    that it does not depend on how the program was started."""
    if name not in ("__main__", "__mp_main__"):
        return name
    main = sys.modules.get(name)
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return str(spec.name) if spec else Path(file).stem if file else name


def program_of(target: str | None, made_in: str | None) -> str:
    """What identifies a program among those that use the same file: its main file or package, and
    also the file that calls `LiteJobs()`, if that is elsewhere, as under `gunicorn`."""
    if getattr(sys, "frozen", False):
        return str(Path(sys.executable).resolve())
    main = target or getattr(sys.modules["__main__"], "__file__", None)
    paths = [Path(file).resolve() for file in (main, made_in) if file] or [Path.cwd()]
    places = [p.parent if p.name in ("__main__.py", "__init__.py") else p for p in paths]
    if places[0] in (places[-1], *places[-1].parents):
        del places[1:]
    return "+".join(map(str, places))


def columns_of(choices: Choices, now: int) -> dict[str, Any]:
    """The columns that choices set, and no others."""
    options = Options().for_job(choices)
    columns = {name: value for name, value in options.columns.items() if name in choices}
    if choices.keys() & {"at", "delay"}:
        columns["run_at"] = options.run_at(now)
    if "expires" in choices:
        columns["expires_at"] = options.expires_at(options.run_at(now))
    if "grace" in choices:
        columns["grace"] = options.own_grace
    if "key" in choices:
        columns |= {"key": options.key, "key_limit": options.key_limit}
    return columns


def _read_json(text: object) -> Any:
    """A value of a row, or its text if that is not JSON."""
    if isinstance(text, bytes):
        return {"base64": base64.b64encode(text).decode()}
    try:
        return None if text is None else load_json(str(text))
    except ValueError:
        return str(text)


def _home(path: Path, durability: Durability, enqueues: tuple[AroundEnqueue, ...]) -> LiteJobs:
    """Makes the queue, in a worker, of definitions that no import has registered."""
    jobs = LiteJobs(path, durability=durability)
    jobs.middleware = Middleware(enqueues=enqueues)
    return jobs


def _refuse_while_importing() -> None:
    """Raises an error in a program without the guard that spawned processes need."""
    # If another thread is just importing the module, the attribute may not be there yet.
    process = getattr(sys.modules.get("multiprocessing.process"), "_current_process", None)
    if IMPORTING.get() or getattr(process, "_inheriting", False):
        raise LitejobsError(
            "this ran while a worker imported your program, so every worker would do it again: "
            'put it under if __name__ == "__main__":'
        )
    if IS_FROZEN and any(
        word == "--multiprocessing-fork" or word.startswith("from multiprocessing.")
        for word in sys.argv[1:]
    ):
        raise LitejobsError(f"this copy of the program was started as a worker: {FREEZE_HINT}")


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()
"""The nodes in the background of this process."""


@attrs.define(eq=False, repr=False, slots=False)
class Pool:
    """A node in the background, which `jobs.start(…)` has started. It works until `stop`, the end
    of a `with` statement, or the exit of the program, even if nothing refers to it any more."""

    _supervisor: Supervisor
    place: object = None
    """What no other node in the background of an interactive session has: see `start`."""
    _thread: threading.Thread = attrs.field(init=False)
    _error: BaseException | None = None
    _at_exit: Any = None
    _stopping: bool = False

    def __attrs_post_init__(self) -> None:
        if not self._supervisor.pool.threads or "multiprocessing.util" in sys.modules:
            # At exit it waits for workers, and its own children call nothing of atexit's.
            util = importlib.import_module("multiprocessing.util")
            self._at_exit = util.Finalize(None, self.stop, exitpriority=100)
        self._thread = threading.Thread(target=self._run, name="litejobs", daemon=True)
        self._thread.start()
        atexit.register(self.stop)
        _POOLS.add(self)
        self._supervisor.joined.wait()
        if self._error is not None:
            self.wait()

    def _run(self) -> None:
        try:
            self._supervisor.run()
        except BaseException as error:
            self._error = error
            if self._supervisor.joined.is_set():  # Else `start` raises it.
                logger.exception("the node ended")
        finally:
            self._supervisor.joined.set()
            atexit.unregister(self.stop)
            if self._at_exit is not None:
                self._at_exit.cancel()

    def wait(self, timeout: Duration | None = None) -> bool:
        """Waits until the node has ended by itself; returns whether it has.

        Raises: the error that ended the node, if any.
        """
        self._thread.join(None if timeout is None else duration(timeout, "timeout").total_seconds())
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Stops the node: running jobs may end within the grace, and no others start. Called again,
        it waits for the same, or does nothing. Ctrl-C meanwhile ends the node at once."""
        if self._thread.is_alive():
            if not self._stopping:
                self._stopping = True
                self._supervisor.stop()
            try:
                self._thread.join()
            except BaseException:
                self._supervisor.stop()
                raise

    def __repr__(self) -> str:
        what = "at work" if self._thread.is_alive() else "ended"
        return printable(f"<Pool {self._supervisor.subscription.node} {what}>")

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if error[0] is None:
            self.wait()


################################################################################
# Testing
#
# For the tests of programs that use litejobs: a clock that the test turns, and a private file
# that replaces that of a LiteJobs during a test, to see what is enqueued and to run it in this
# process. pytest finds the fixtures by itself.
################################################################################

NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)
MAX_TURNS = 1_000
"""How often `drain_all` turns the clock before it gives up."""

OnErrors = Literal["raise", "keep"]


def _aware(value: object) -> datetime:
    return aware(value, "clock")


@attrs.define(eq=False)
class TurnedClock:
    """A clock that only moves when it is turned: `LiteJobs(…, clock=TurnedClock())`."""

    now: datetime = attrs.field(default=NEW_YEAR, converter=_aware, alias="start")

    def __call__(self) -> int:
        return to_micros(self.now)

    def turn(self, time: Duration) -> None:
        """Moves on by a number of seconds or a timedelta; back if it is negative."""
        self.now += time if isinstance(time, timedelta) else timedelta(seconds=time)

    def turn_to(self, moment: datetime) -> None:
        """Moves to this aware datetime."""
        self.now = moment


@attrs.define(eq=False, repr=False, slots=False)
class Recorder:
    """What a LiteJobs was asked to do during a test. `enqueued` reads the file, so that it returns
    the jobs of all processes, as they are now."""

    jobs: LiteJobs
    clock: TurnedClock
    failures: list[tuple[Job[Any], Failure]] = attrs.field(factory=list, init=False)
    """Every attempt that failed in `drain`, with its job as it was after that."""
    _store: Store = attrs.field(
        default=attrs.Factory(lambda self: self.jobs.store, takes_self=True), init=False
    )

    def enqueued(
        self, definition: Definition[..., R, Any] | type | str | None = None, /, **fields: object
    ) -> list[Job[R]]:
        """The jobs in the order in which they were enqueued: all, or those of a *definition* (or
        its name) whose payload has these *fields*, including defaults.

        Raises:
            DefinitionError: there is no such definition.
            OptionError: it has no such field.
        """
        self._check()
        jobs = self.jobs.find(limit=2**31 - 1)[::-1]
        if definition is None:
            return jobs
        name = self._named(definition, fields)
        return [
            job
            for job in jobs
            if job.name == name and (not fields or fields.items() <= self._arguments(job).items())
        ]

    def assert_enqueued(
        self,
        definition: Definition[..., R, Any] | type | str,
        /,
        *,
        times: int | None = None,
        **fields: object,
    ) -> list[Job[R]]:
        """Asserts that jobs with these fields were enqueued, as many as *times* or at least one;
        returns them.

        Raises:
            AssertionError: they were not; the message lists all jobs.
        """
        __tracebackhide__ = True
        found = self.enqueued(definition, **fields)
        if len(found) == times or (times is None and found):
            return found
        wanted = "a job" if times is None else f"{times} times a job"
        call = _call(self._named(definition, fields), fields)
        raise AssertionError(f"expected {wanted} {call}, found {len(found)}; {self._summary()}")

    def assert_not_enqueued(
        self, definition: AnyDefinition | type | str, /, **fields: object
    ) -> None:
        """Asserts that no such job was enqueued.

        Raises:
            AssertionError: one was; the message lists all jobs.
        """
        __tracebackhide__ = True
        if found := self.enqueued(definition, **fields):
            call = _call(found[0].name, fields)
            raise AssertionError(f"expected no job {call}, found {len(found)}; {self._summary()}")

    def drain(self, *, errors: OnErrors = "raise") -> int:
        """Runs jobs in this process, one after another, until none is due; returns the number of
        attempts. With *errors* "keep", it does not raise; `failures` has the failed ones.

        Raises:
            AssertionError: an attempt failed; the message has its traceback.
        """
        __tracebackhide__ = True
        self._check()
        if errors not in typing.get_args(OnErrors):
            raise OptionError("errors", f"expected 'raise' or 'keep', got {errors!r}")
        with self.jobs.store.file.transaction(read_only=True) as tx:
            last = max([number for number, _, _ in read_failures(tx, "TRUE")], default=0)
        before = self._unfit()
        attempts = self.jobs.drain()
        with self.jobs.store.file.transaction(read_only=True) as tx:
            failed = read_failures(tx, "id > :number", last)
        new = [(self.jobs.get(id), failure) for _, id, failure in failed]
        self.failures += new
        unfit = self._unfit().items() - before.items()
        if (new or unfit) and errors == "raise":
            lines = [f"{len(new) + len(unfit)} failed"]
            lines += [f"job {id} is blocked: {error}" for id, error in sorted(unfit)]
            for job, failure in new:
                call = f"{_call(job.name, self._arguments(job))}, attempt {failure.attempt}"
                lines.append(f"job {job.id}, {call}:\n{failure.traceback.rstrip()}")
            raise AssertionError("\n\n".join(lines))
        return attempts

    def drain_all(self, *, errors: OnErrors = "raise") -> int:
        """Like `drain`, but also turns the clock to when the next job is due, until none is left.

        Raises:
            AssertionError: an attempt failed, or there are still jobs after 1,000 turns.
        """
        __tracebackhide__ = True
        attempts = 0
        for _ in range(MAX_TURNS):
            attempts += self.drain(errors=errors)
            _, due = self.jobs.store.stage(self.clock())
            if due is None:
                return attempts
            self.clock.turn_to(from_micros(due))
        turns = f"{MAX_TURNS:,} turns of the clock to {self.clock.now}"
        raise AssertionError(f"there is no end to it, after {turns}; {self._summary()}")

    def _unfit(self) -> dict[int, str | None]:
        """Why jobs are blocked whose payload does not fit, by id."""
        blocked = self.jobs.find(state="blocked", limit=2**31 - 1)
        return {job.id: job.error for job in blocked if job.unfit_at is not None}

    def _check(self) -> None:
        if self.jobs.store is not self._store:
            raise LitejobsError("this recorder's test is over: its jobs are gone with their file")

    def _named(self, definition: AnyDefinition | type | str, fields: Iterable[str]) -> str:
        """The name of a definition, after a check that it has these fields."""
        if not isinstance(definition, str):
            if (found := definition_of(definition)) is None:
                raise DefinitionError(repr(definition), "no definition: give one, or its name")
            definition = found.name
        kind: Any = self.jobs.registry.named(definition).body.kind
        known = [field.alias for field in attrs.fields(kind)]
        check_known(fields, known, f"{definition} has no such field")
        return definition

    def _arguments(self, job: Job[Any]) -> dict[str, Any]:
        """The arguments of the handler by name; empty if the payload cannot be read."""
        if definition := self.jobs.registry.by_name.get(job.name):
            with contextlib.suppress(PayloadError):
                return fields_of(definition.body.decode(job.stored_payload))
        return {}

    def _summary(self) -> str:
        lines = []
        for job in self.enqueued():
            due = f" for {job.run_at}" if job.state in ("scheduled", "retrying") else ""
            lines.append(f"\n  {job.id}  {_call(job.name, self._arguments(job))}  {job.state}{due}")
        return f"enqueued were:{''.join(lines)}" if lines else "nothing was enqueued"


RecordJobs = Callable[[LiteJobs], Recorder]
"""The type of the pytest fixture `record_jobs`."""


def _call(name: str, fields: Mapping[str, object]) -> str:
    return f"{name}({', '.join(f'{field}={short_repr(value)}' for field, value in fields.items())})"


@contextlib.contextmanager
def recording(jobs: LiteJobs, clock: TurnedClock | None = None) -> Iterator[Recorder]:
    """Gives *jobs* a private, empty file and a clock that stands still, until the end of the `with`
    statement: what its definitions enqueue meanwhile never reaches the program's own file."""
    import tempfile  # Here, because only tests need it.

    clock = TurnedClock() if clock is None else clock
    replaced = ("durability", "clock", "registry", "middleware", "tested", "store")
    before: list[tuple[Any, str, Any]] = [(jobs, name, getattr(jobs, name)) for name in replaced]
    before += [(definition.body, "home", definition.body.home) for definition in jobs.registry]
    with tempfile.TemporaryDirectory(prefix="litejobs-", ignore_cleanup_errors=True) as folder:
        jobs.durability, jobs.clock, jobs.tested = "fast", clock, True
        # The copies share their content with the originals, but not what runs.
        jobs.registry = attrs.evolve(jobs.registry, nodes=[])
        jobs.middleware = attrs.evolve(jobs.middleware, nodes=jobs.registry.nodes)
        jobs.store = Store(File(Path(folder, "jobs.db"), jobs.durability, clock=clock))
        for definition in jobs.registry:
            definition.body.home = jobs
        try:
            yield Recorder(jobs, clock)
        finally:
            jobs.close()
            for owner, name, value in before:
                setattr(owner, name, value)


@functools.cache
def _pytest_plugin() -> ModuleType:
    import pytest  # type: ignore[import-not-found, unused-ignore]

    @pytest.fixture  # type: ignore[misc, untyped-decorator, unused-ignore]
    def litejobs_clock() -> TurnedClock:
        """The clock of `record_jobs`: it stands still until it is turned."""
        return TurnedClock()

    @pytest.fixture  # type: ignore[misc, untyped-decorator, unused-ignore]
    def record_jobs(litejobs_clock: TurnedClock) -> Iterator[RecordJobs]:
        """record_jobs(jobs) gives a LiteJobs a private file until the test ends, and returns its
        Recorder."""
        with contextlib.ExitStack() as undo:
            # Cached, so that another call for the same LiteJobs returns the same recorder.
            yield functools.cache(lambda jobs: undo.enter_context(recording(jobs, litejobs_clock)))

    plugin = ModuleType("litejobs_pytest", "The fixtures of litejobs.")
    vars(plugin).update(litejobs_clock=litejobs_clock, record_jobs=record_jobs)
    return plugin


if typing.TYPE_CHECKING:
    pytest_plugin: Any
    """What pytest loads when litejobs is installed. Where the file was only copied, a conftest.py
    has to name the fixtures: `record_jobs = pytest_plugin.record_jobs`."""
else:

    def __getattr__(name: str) -> Any:
        # Made on access, so that programs do not import pytest.
        if name == "pytest_plugin":
            return _pytest_plugin()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


################################################################################
# Command line
#
# Commands that need code take a program (`module:attribute` or `file.py:attribute`), the others
# also a file. Exit codes: 0 done; 1 nothing matched, or not all could be done; 2 the command or
# an argument is wrong; 3 the file cannot be used.
################################################################################


class Screen(NamedTuple):
    """How text is shown: on a terminal, times in words and cut to its width; elsewhere, where a
    script may read it, whole and in UTC."""

    width: int | None
    """Of the terminal; `None` elsewhere."""
    local: bool
    """Whether times are in the local zone."""
    console: Any
    """rich's, if there are to be colours."""
    arguments: Sequence[str]


Line = str | Sequence[tuple[str, str]]
"""A line, or its parts with their styles."""
Output = tuple[Any, str | Iterable[Line], int]
"""What a command returns: a value for JSON, the same as text, and the exit code. A command that
goes on returns several."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command `litejobs`; returns its exit code."""
    given: dict[str, Any] = {"to": {}}
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(printable(_look_around(), keep="\n"))
        return 0
    for place, value in vars(_parse(arguments)).items():
        group, _, name = place.rpartition(".")
        fields = name in ("payload", "meta") and isinstance(value, list)
        (given[group] if group else given)[name] = dict(value) if fields else value
    if given.pop("reload", False):
        return _reload(given["target"], arguments)
    return _do(given, arguments)


def _do(given: dict[str, Any], words: Sequence[str]) -> int:
    """Runs the command that *words* name, and says in one line why it cannot be done."""
    verb, to, as_json = given.pop("verb"), given.pop("to"), given.pop("json", False)
    typed_as = given.pop("typed_as", {})
    try:
        color, utc = given.pop("color", "auto"), given.pop("utc", False)
        screen = _screen("never" if as_json else color, utc or as_json, words)
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        run, *_ = _COMMANDS[verb]
        given |= {"screen": screen} if "screen" in inspect.signature(run).parameters else {}
        given |= {"to": to} if verb in ("change", "queue") else {}
        jobs = [_target(given.pop("target"))] if "target" in given else []
        done = run(*jobs, *given.pop("ids", ()), **given)
        code, once = 0, isinstance(done, tuple)
        for value, text, result in [done] if once else done:
            code = max(code, result)
            if as_json:
                indent = 2 if once else None
                # JSON escapes the other control characters below 128.
                text = json.dumps(value, indent=indent, default=_json_value)
                text = text.replace("\x7f", "\\u007f")
            _print(text, screen)
        return code
    except (LitejobsError, OSError) as error:
        if isinstance(error, OSError):
            # If the reader is gone or the disk full, another flush at exit would fail, too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                return 0
        text = str(error)
        if isinstance(error, OptionError):  # As options are typed.
            problem = re.sub(r", or None( for ever| for no limit)?", "", error.problem)
            problem = re.sub("together with (?=delay|workers)", "together with --", problem)
            text = f"{typed_as.get(error.option, error.option)}: {problem}"
        print(f"litejobs: {printable(' '.join(text.split()))}", file=sys.stderr)
        if isinstance(error, FileError | OSError):
            return 3
        return 1 if isinstance(error, JobNotFoundError | ScheduleNotFoundError) else 2
    except KeyboardInterrupt:
        return 130


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command that *words* name."""
    parser = _parser(words)
    parsed, rest = parser.parse_known_args(words)
    if getattr(parsed, "reload", False) and importlib.util.find_spec("watchfiles") is None:
        parser.error("--reload needs the package watchfiles: pip install 'litejobs[reload]'")
    name, add = vars(parsed).pop("several", ("", None))
    if rest and (add is None or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        # More ids or fields after an option, which argparse does not take.
        add.parse_args([*map(str, getattr(parsed, name, ())), *rest], parsed)
    return parsed


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser for the command that is among *words*."""
    import argparse  # Here, because only the command needs it.

    class Parser(argparse.ArgumentParser):
        """Prints errors in one line."""

        def error(self, message: str) -> NoReturn:
            self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")

        def format_help(self) -> str:
            if self.prog != "litejobs":
                return super().format_help()
            lines = ["usage: litejobs COMMAND …", "", "A durable job queue in one file, on SQLite."]
            for title, group in _HELP.items():
                listed = (f"  {verb:17}{command[1]}" for verb, command in group.items())
                lines += ["", f"{title}:", *listed]
            lines += ["", "`litejobs COMMAND --help` shows its options, with examples."]
            return "\n".join([*lines, "`litejobs` alone says what is in the current folder.", ""])

    parser = Parser("litejobs")
    parser.add_argument("--version", action="version", version=f"litejobs {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for verb, (run, about, *given) in _COMMANDS.items():
        command = commands.add_parser(
            verb,
            help=about,
            description=about,
            epilog="\n".join(
                ["examples:", *(f"  litejobs {verb} {e}" for e in given or ["jobs.db"])]
            ),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(verb=verb)
        if verb in words:  # Reading all signatures would take a tenth of a second.
            _add_arguments(command, verb, run)
    return parser


def _add_arguments(command: argparse.ArgumentParser, verb: str, run: Any) -> None:
    """Its arguments are the parameters of the command's function, its options the keyword-only
    ones and the keys of a TypedDict."""
    import argparse

    parameters = [*inspect.signature(run, eval_str=True).parameters.values()]
    on_queue = parameters[0].name in ("self", "jobs")
    if on_queue:
        file = "" if verb in ("run", "service") else "the queue's file, or "
        place = f"{file}a program: app.py, or module:attribute if it has several queues"
        command.add_argument("target", metavar="TARGET" if file else "PROGRAM", help=place)
    if on_queue and verb not in ("run", "service"):
        command.add_argument("--json", action="store_true", help="print JSON")
        about = "exact times in UTC, as where the output is no terminal"
        command.add_argument("--utc", action="store_true", help=about)
        when = ("auto", "always", "never")
        command.add_argument("--color", choices=when, help="auto: on a terminal, with rich")
        command.set_defaults(color="auto")
    if verb == "run":
        about = "start again when a source file changes"
        command.add_argument("--reload", action="store_true", default=argparse.SUPPRESS, help=about)
    exclusive = verb in ("run", "queue", "service")
    flags = command.add_mutually_exclusive_group() if exclusive else command
    typed_as: dict[str, str] = {}
    command.set_defaults(typed_as=typed_as)
    for each in parameters[on_queue:]:
        typed: Any = next(filter(typing.is_typeddict, _kinds(each.annotation)), None)
        group = "to." if each.name == "to" else ""
        options = typed and typing.get_type_hints(typed, include_extras=True)
        for name, hint in (options or {each.name: each.annotation}).items():
            settings = _settings(name, hint, removable=bool(group))
            word = "tag" if name == "tags" else name.replace("_", "-")
            plain = f"{'to-' if group and name in FILTERS else ''}{word}"
            flag = _FLAGS.get(f"{verb} {group}{name}", plain)
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.VAR_POSITIONAL):
                several = each.kind is each.VAR_POSITIONAL or "action" in settings
                optional = several or each.default is not each.empty
                number = "*" if several else "?" if optional else None
                settings |= {"action": None, "metavar": None}
                command.add_argument(name, nargs=number, **settings)
                if several:
                    again = type(command)(command.prog)
                    again.add_argument(name, nargs=number, **settings)
                    command.set_defaults(several=(name, again))
            elif settings:
                where = flags if settings.get("action") == "store_true" else command
                short = ["-f"] if name == "follow" else []
                where.add_argument(*short, f"--{flag}", dest=f"{group}{name}", **settings)
                typed_as.setdefault(name, f"--{flag}")


def _look_around() -> str:
    """The queues and programs in the current folder, and what to type next. No program is run."""
    queues, programs, tries = [], [], []
    for path in sorted(filter(Path.is_file, Path().iterdir())):
        with contextlib.suppress(OSError, LitejobsError):
            with path.open("rb") as file:
                is_database = file.read(16) == b"SQLite format 3\0"
            if is_database:
                counts = Counter[str]()
                for queue in _target(f"{path}").stats().values():
                    counts.update(queue)
                states = [f"{counts[state]} {state}" for state in STATES if counts[state]]
                queues.append(f"  {path}  {', '.join(states) or 'no jobs'}")
                tries.append(f"  litejobs list {path}")
    for path in sorted([*Path().glob("*.py"), *Path().glob("[!.]*/*.py")])[:5000]:
        found = _programs_in(path)
        in_package = (path.parent / "__init__.py").exists()
        place = ".".join(path.with_suffix("").parts) if in_package else f"{path}"
        for name, definitions in found:
            one = f"{place}:{name}" if len(found) > 1 else place
            programs.append(f"  {one}  defines {_some(definitions) or 'nothing'}")
            tries.append(f"  litejobs run {one}")
    lines = ["Queues in this folder:", *queues] if queues else ["There is no queue in this folder."]
    lines += ["Programs:", *programs] if programs else ["There is no program that makes one."]
    tries = [*tries[:6], *([] if programs else ["  litejobs new send_mail"]), "  litejobs --help"]
    return "\n".join([*lines, "Next:", *tries])


def _programs_in(path: Path) -> list[tuple[str, list[str]]]:
    """The names of `LiteJobs` in a source file, which is read, not run, and what it defines."""
    import ast

    try:
        text = path.read_text("utf-8")
        tree = ast.parse(text if "LiteJobs(" in text else "")
    except (OSError, ValueError, SyntaxError, RecursionError):
        return []
    definitions = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and any(re.match(r"(\w+\.)*define\b", ast.unparse(d)) for d in node.decorator_list)
    ]
    return [
        (ast.unparse(node.targets[0]), definitions)
        for node in tree.body
        if isinstance(node, ast.Assign) and re.match(r"(\w+\.)?LiteJobs\(", ast.unparse(node.value))
    ]


_FLAGS = {
    "run queues": "queue",
    "service queues": "queue",
    "change node": "from-node",  # Since --node is the new node.
    "change to.node": "node",
}
"""Options with names of their own. (Those of `change` that are also filters begin with `to-`.)"""


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows."""
    hint = hint.__origin__ if typing.get_origin(hint) is Annotated else hint
    return typing.get_args(hint) if typing.get_origin(hint) in (*_UNIONS, Unpack) else (hint,)


def _read_field(text: str, kinds: Mapping[str, Codec[Any]] = {}) -> tuple[str, Any]:
    """A field and its value: JSON, if that is what its type accepts, else the text itself."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(text)
    try:
        kinds.get(name, json_of_any).decode(value)
        return name, load_json(value)
    except (CodecError, ValueError):
        return name, value


def _read_length(text: str) -> float | timedelta:
    try:
        return float(text)
    except ValueError:
        return parse_length(text)


def _read_moment(text: str, ahead: bool) -> datetime:
    """A moment; a time of the day is the next one if it is to be *ahead*, else the last one, and
    a length of time then means so long ago. Without a zone it is local."""
    now, text = datetime.now(UTC), re.sub(r"(?<![\d:])(\d):", r"0\1:", text)
    with contextlib.suppress(ValueError):
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.astimezone()
    if ":" not in text and not ahead:
        return now - parse_length(text)
    if ":" not in text:
        raise ValueError(text)
    clock = time_of_day.fromisoformat(text)
    today = now.astimezone(clock.tzinfo).date()
    days = [datetime.combine(today + timedelta(n), clock).astimezone() for n in (-1, 0, 1)]
    return min(day for day in days if day > now) if ahead else max(d for d in days if d <= now)


def _read_due(text: str) -> float | timedelta | datetime:
    try:
        return _read_length(text)
    except ValueError:
        return _read_moment(text, True)


_LENGTH_PROBLEM = "{!r} is not a length of time such as 30 (seconds), 10m, 1h30m or 2d"
_TIME_PROBLEM = "{!r} is not a time such as 18:00, '2026-12-24 18:00' (local) or 2026-12-24T18:00Z"
_READERS: Mapping[Any, tuple[str, Callable[[str], Any], str]] = {
    "at": ("TIME", functools.partial(_read_moment, ahead=True), _TIME_PROBLEM),
    "expires": ("LENGTH|TIME", _read_due, f"{_TIME_PROBLEM}, nor a length of time such as 10m"),
    timedelta: ("LENGTH", _read_length, _LENGTH_PROBLEM),
    datetime: (
        "TIME",
        functools.partial(_read_moment, ahead=False),
        f"{_TIME_PROBLEM}, or 1d for a day ago",
    ),
    "max_attempts": (
        "NUMBER|inf",
        lambda text: None if text == "inf" else int(text),
        "{!r} is neither a whole number nor inf",
    ),
    int: ("NUMBER", int, "{!r} is not a whole number"),
    float: ("NUMBER", float, "{!r} is not a number"),
    Mapping: ("FIELD=VALUE", _read_field, "{!r} is not a field and its value, such as to=ada"),
    str: ("", str, ""),
    Iterable: ("", str, ""),
}
"""By name or type: how the help calls a value, how a text is read, the message if it cannot be."""


def _settings(name: str, hint: Any, removable: bool) -> dict[str, Any]:
    """The arguments of `add_argument`; empty if the type cannot be read from a text. If options
    are *removable*, a zero or an empty text means `None`."""
    import argparse

    kinds = _kinds(hint)
    plain = [typing.get_origin(kind) or kind for kind in kinds]
    texts: Any = hint, typing.get_type_hints(Choices, include_extras=True).get(name)
    about = next((text.__metadata__[0] for text in texts if hasattr(text, "__metadata__")), None)
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": about}
    if bool in plain:
        return settings | {"action": "store_true"}
    if {Iterable, Sequence, Mapping}.intersection(plain):
        settings["action"] = "append"
    if Literal in plain:
        return settings | {"choices": typing.get_args(kinds[plain.index(Literal)])}
    if name == "headers" or not (
        known := [reader for kind, reader in _READERS.items() if kind in (name, *plain)]
    ):
        return {}
    metavar, read, problem = known[0]
    none: Sequence[str] = ()
    if removable and type(None) in kinds:
        # A node may have the name 0, and a grace of 0 seconds is not the same as none.
        none = ("",) if name in ("node", "grace") else ("0", "")
        settings["help"] = f"{about}; {none[0] or repr('')} removes it"

    def checked(text: str) -> Any:
        try:
            return None if text in none else read(text)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(problem.format(text)) from None

    return settings | {"type": checked, "metavar": metavar or name.upper()}


def _target(text: str) -> LiteJobs:
    """The queue in a file or, with its `target` set, of a program."""
    place, colon, attribute = text.rpartition(":")
    is_package = os.path.isfile(os.path.join(text, "__init__.py"))
    if not (colon and attribute.isidentifier()) or os.path.exists(text):
        place, attribute = text, ""
        if not text.endswith(".py") and not is_package and os.path.exists(text):
            jobs = LiteJobs(text)
            jobs.store.file.create = False
            return jobs
    name, folder, is_file = place, Path.cwd(), place.endswith(".py")
    if is_file:
        if not os.path.exists(place):
            raise FileError(place, "no such file")
        name, folder = Path(place).stem, Path(place).parent.resolve()
    sys.path.insert(0, str(folder))
    nothing = FileError(text, "no such file; a program is named module:attribute")
    if not (attribute or is_file or all(map(str.isidentifier, name.split(".")))):
        raise nothing
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing in (name, name.partition(".")[0]) and not (attribute or is_file):
            raise nothing from None
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        problem = f"importing it failed at {last.filename}:{last.lineno}: {what}"
        raise OptionError(text, problem) from error
    if is_file and not os.path.samefile(place, module.__file__ or os.devnull):
        raise OptionError(text, f"another module has the name {name!r} already: rename the file")
    found = _queue_in(module, place, attribute)
    found.target = module.__file__
    return found


def _queue_in(module: ModuleType, place: str, attribute: str) -> LiteJobs:
    """The `LiteJobs` that an attribute is or belongs to; without one, the only one there is."""
    there = {name: value for name, value in vars(module).items() if isinstance(value, LiteJobs)}
    found = getattr(module, attribute, None) if attribute else None
    if (definition := definition_of(found)) is not None:
        found = definition.body.home
    elif not attribute and len({*map(id, there.values())}) == 1:
        found = next(iter(there.values()))
    if isinstance(found, LiteJobs):
        return found
    which = " or ".join(f"{place}:{name}" for name in there)
    hint = f": name {which}" if there else ""
    if attribute:
        expected = f"expected a LiteJobs at {attribute!r} in {place}"
        raise OptionError(f"{place}:{attribute}", f"{expected}, found {type(found).__name__}{hint}")
    number = "more than one" if there else "no"
    raise OptionError(place, f"there is {number} LiteJobs at its top level{hint}")


def _reload(target: str, words: Sequence[str]) -> int:
    """Runs a command, and again when a Python file in or below the program's folder changes."""
    from watchfiles import PythonFilter, run_process  # type: ignore[import-not-found, unused-ignore]

    def tell(changes: Iterable[tuple[Any, str]]) -> None:
        path = printable(min(path for _, path in changes))
        print(f"litejobs: starting again: {path} has changed", file=sys.stderr)

    logging.getLogger("watchfiles").setLevel(logging.ERROR)
    place = target if target.endswith(".py") else target.rpartition(":")[0]
    folder = Path(place).parent if os.path.exists(place) else Path.cwd()
    rest = [word for word in words if len(word) < 3 or not "--reload".startswith(word)]
    how: Any = {"args": (rest,), "callback": tell, "watch_filter": PythonFilter()}
    run_process(folder, target=main, **how, sigint_timeout=86_400)  # A node has its own grace.
    return 0


def _run(
    jobs: LiteJobs,
    *,
    workers: Annotated[int | None, "number of processes (default: one per core)"] = None,
    verbose: Annotated[bool, "log each job that ends, and what jobs log as details"] = False,
    quiet: Annotated[bool, "log only errors"] = False,
    **options: Unpack[NodeOptions],
) -> Output:
    if jobs.target is None:
        raise OptionError(str(jobs.path), "a file has no code to run: name module:attribute")
    jobs.log_level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO
    log_to_stderr(jobs.log_level)
    supervisor = jobs._supervisor(workers, **options)
    if logger.isEnabledFor(logging.INFO):
        queues = options.get("queues")
        about = threading.Thread(target=_log_about, args=(jobs, queues), daemon=True)
        about.start()
        about.join(1.0)  # Counting millions of jobs takes longer.
    run_until_stopped(supervisor)
    return None, "", 0


def _log_about(jobs: LiteJobs, queues: Iterable[str] | None) -> None:
    """Logs what a node is about to run."""
    names = sorted(own.name for own in jobs.registry)
    try:
        schedules = sorted({*jobs._declared, *(each.name for each in jobs.schedules())})
        with jobs.store.file.transaction(read_only=True) as tx:
            waiting = count_by(tx, "name", Match(states=WAITING))
    except LitejobsError:
        return  # The node says the same.
    unknown = {name: number for name, number in waiting.items() if name not in names}
    parts = [f"{jobs.path}: definitions {_some(names)}"]
    parts += ["all queues" if queues is None else f"queues {_some([*queues])}"]
    parts += [f"schedules {_some(schedules)}"] if schedules else ["no schedules"]
    if unknown:
        jobs_of = _some([f"{name}: {number}" for name, number in unknown.items()])
        parts += [f"{sum(unknown.values())} waiting without a definition here ({jobs_of})"]
    logger.info("%s", "; ".join(parts))


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _enqueue(
    jobs: LiteJobs,
    name: Annotated[str, "the definition"],
    fields: Annotated[Iterable[str], "such as to=ada copies=3, or one JSON object"] = (),
    **choices: Unpack[Choices],
) -> Output:
    if jobs.target is not None:
        definition = jobs.registry.named(name)
        payload = _payload([*fields], definition.body)
        job = jobs.enqueue(bind_json(definition, payload, choices))
    else:
        payload = _payload([*fields])
        try:
            payload = json_of_any.encode(json_of_any.decode(payload))
        except CodecError as unfit:
            raise PayloadError(name, unfit.problems) from None
        columns = columns_of(choices, jobs.clock())
        with jobs.store.file.transaction(enqueues=True) as tx:
            id = insert_unknown(tx, check_name(name, "name"), payload, columns)
        job = jobs.get(id)
    return _values(jobs, [job])[0], f"{job.id}", 0


def _payload(words: Sequence[str], body: Body | None = None) -> str:
    """The payload, as JSON, that fields or one JSON text give."""
    if len(words) == 1 and not re.match(r"\w+=", words[0]):
        return words[0]
    kinds: dict[str, Codec[Any]] = {}
    if body is not None:
        with contextlib.suppress(NameError):
            fields = attrs.fields(attrs.resolve_types(body.kind))
            kinds = {field.alias: Codec(field.type) for field in fields}
    try:
        given = [_read_field(word, kinds) for word in words]
    except ValueError as error:
        problem = f"expected fields such as to=ada, or one JSON object, got {str(error)!r}"
        raise OptionError("payload", problem) from None
    return json_of_any.encode(dict(given))


def _list(
    jobs: LiteJobs,
    *,
    screen: Screen,
    limit: int = 50,
    before: int | None = None,
    **filters: Unpack[Filters],
) -> Output:
    rows = _values(jobs, jobs.find(limit=limit, before=before, **filters))
    footer = []
    if screen.width and rows and len(rows) == limit:
        # Without an index, counting could take long.
        of = "" if matching(filters).others else f" of {jobs.count(**filters)}"
        given = re.sub(r" --before[ =]\S+", "", shlex.join(screen.arguments))
        footer = [f"{len(rows)}{of}, next page: litejobs {given} --before {rows[-1]['id']}"]
    return rows, itertools.chain(_table(rows, _JOBS, screen), footer), int(not rows)


SHOWN_FAILURES = 5


def _show(
    jobs: LiteJobs,
    id: int,
    *,
    screen: Screen,
    all: Annotated[bool, "all that are kept, not only the last 5"] = False,
) -> Output:
    job = jobs.get(id)
    errors = job.errors
    (values,) = _values(jobs, [job])
    shown = {
        key: value
        for key, value in values.items()
        if not (value is None or (key in ("tags", "meta") and not value))
    }
    if isinstance(job.stored_payload, bytes):
        shown["payload"] = f"<{len(job.stored_payload)} bytes>"
    with contextlib.suppress(OptionError):  # Another program may have written the progress.
        shown |= {"progress": str(job.progress)} if job.progress else {}
    lines: list[Line] = []
    for key, value in shown.items():
        if isinstance(value, datetime) and screen.local:
            value = f"{value.astimezone():%Y-%m-%d %H:%M:%S %Z} ({_in_words(value)})"
        if isinstance(value, timedelta) and screen.width:
            value = _cell(value, screen)
        value = _json_value(value)
        plain = value if isinstance(value, str) else json.dumps(value)
        lines.append([(f"{key + ':':14}", "bold"), (printable(plain), _style(key, plain))])
    first = 0 if all else max(0, len(errors) - SHOWN_FAILURES)
    if more := first + sum(failure.omitted for failure in errors[:first]):
        lines.append(f"\n{more} earlier failed attempts: --all shows those that are kept")
    for failure in errors[first:]:
        if failure.omitted:
            lines.append(f"\n{failure.omitted} failed attempts are not kept")
        when = f"{_cell(failure.started_at, screen)}, worker {failure.worker}"
        lines.append("\n" + printable(f"attempt {failure.attempt}: {failure.kind} ({when})"))
        lines += _details(failure)
    return {**values, "errors": list(map(attrs.asdict, errors))}, lines, 0


def _details(failure: Failure) -> list[str]:
    """Traceback, measurements and output of a failed attempt, indented, so that no line of an
    exception's message looks like one of litejobs."""
    message = failure.traceback.rstrip() or f"{failure.type}: {failure.message}"
    lines = ["    " + message.replace("\n", "\n    ")]
    measured = {
        "exit code": failure.exit_code,
        "CPU time": None if failure.cpu is None else f"{failure.cpu.total_seconds():.3f} s",
        "peak memory": failure.memory and _bytes(failure.memory),
    }
    known = [f"{what}: {value}" for what, value in measured.items() if value is not None]
    lines += [", ".join(known)] if known else []
    if failure.output:
        lines.append("output:\n    " + failure.output.rstrip().replace("\n", "\n    "))
    return lines


POLL = 0.2
"""Seconds between two looks of `logs --follow` and `tail`."""


def _event(event: Event, screen: Screen, failure: Failure | None = None) -> Output:
    value = {k: v for k, v in attrs.asdict(event).items() if v is not None}
    exact = f"{event.at:%Y-%m-%dT%H:%M:%SZ}"
    at = f"{event.at.astimezone():%Y-%m-%d %H:%M:%S}" if screen.local else exact
    lines: list[Line] = [[(f"{at}  ", "dim"), (str(event), _STYLES.get(event.kind, ""))]]
    if failure is not None:
        value["failure"] = attrs.asdict(failure)
        lines += _details(failure)
    return value, lines, 0


def _new_events() -> Callable[[Event], bool]:
    """A function that says whether an event is not yet known. (An attempt seems to start anew when
    it is known when exactly it did; one of the same number after an end is another one.)"""
    seen, ended = dict[Any, datetime](), dict[Any, datetime]()

    def is_new(event: Event) -> bool:
        key, end = (event.job, event.kind, event.attempt), ended.get(event.job, EPOCH)
        if key in seen and not seen[key] <= end < event.at:
            return False
        seen[key] = event.at
        if event.kind not in ("enqueued", "started"):
            ended[event.job] = event.at
        for known in (seen, ended):
            while len(known) > 50 * FOLLOWED:
                del known[next(iter(known))]
        return True

    return is_new


def _logs(
    jobs: LiteJobs,
    id: int,
    *,
    screen: Screen,
    follow: Annotated[bool, "go on until the job has ended"] = False,
) -> Iterator[Output]:
    is_new, shown = _new_events(), ""
    while True:
        job = jobs.get(id)
        for event, failure in history(job, job.errors):
            if failure is not None and failure.omitted:
                some = f"{failure.omitted} failed attempts are not kept"
                yield {"omitted": failure.omitted}, some, 0
            if is_new(event):
                yield _event(event, screen, failure)
        with contextlib.suppress(OptionError):  # Another program may have written the progress.
            if job.progress and job.state != "completed" and str(job.progress) != shown:
                shown = str(job.progress)
                yield {"progress": attrs.asdict(job.progress)}, f"progress: {shown}", 0
        if not follow or job.finished:
            return
        time.sleep(POLL)


def _tail(jobs: LiteJobs, *, screen: Screen, **filters: Unpack[Filters]) -> Iterator[Output]:
    match = matching(filters)
    states, match, start = match.states, attrs.evolve(match, states=None), jobs.clock()
    is_new = _new_events()
    for ids in follow(jobs.store.file):
        wanted = ids if match.ids is None else ids.intersection(match.ids)
        if not ids:
            time.sleep(POLL)
        if not wanted:
            continue
        page = attrs.evolve(match, ids=tuple(wanted))
        with jobs.store.file.transaction(read_only=True) as tx:
            found = find_jobs(tx, page, len(wanted), jobs)
        events = [
            event
            for job in found
            for event, _ in history(job, job.errors if job.error else ())
            if to_micros(event.at) >= start
        ]
        for event in sorted(events, key=lambda event: event.at):
            leads_to = {"enqueued": WAITING, "started": ("running",)}.get(event.kind, (event.kind,))
            if is_new(event) and (states is None or {*leads_to}.intersection(states)):
                yield _event(event, screen)


def _errors(
    jobs: LiteJobs,
    *,
    screen: Screen,
    limit: Annotated[int, "how many of the newest dead letters are read"] = 10_000,
    **filters: Unpack[Filters],
) -> Output:
    groups = jobs.error_groups(limit=limit, **filters)
    rows = _values(jobs, groups, _ERRORS)
    footer = []
    if (read := sum(group.number for group in groups)) == limit:
        footer = [f"These are the newest {read} dead letters: --limit reads more."]
    if screen.width and groups:
        footer += [f"All of a group: litejobs retry … --group {groups[0].group}"]
    return rows, [*_table(rows, _ERRORS, screen), *footer], int(not rows)


class BulkChoices(Filters, total=False):
    """Which jobs a bulk command is for, and whether it asks."""

    yes: Annotated[bool, "do not ask on a terminal whether to touch those that filters choose"]
    dry_run: Annotated[bool, "only say how many it would touch, by state"]


def _bulk(verb: str, jobs: LiteJobs, *ids: int, **choices: Unpack[BulkChoices]) -> Output:
    filters: Any = dict(choices)
    yes, dry_run = filters.pop("yes", False), filters.pop("dry_run", False)
    conditions: Any = {name: value for name, value in filters.items() if name != "to"}
    done = _DONE.get(verb, f"{verb}d")
    if not ids and not conditions:
        raise OptionError("ID", "say which jobs: ids, or filters such as --state failed")
    if not filters.get("to", True):
        raise OptionError(verb, "say what to change, such as --priority 10")
    if dry_run or (conditions and not yes and sys.stdin.isatty() and sys.stderr.isatty()):
        able = {*itertools.chain.from_iterable(VERBS.get(verb, {WAITING: ()}))}
        with jobs.store.file.transaction(read_only=True) as tx:
            counts = count_by(tx, "state", chosen(ids, conditions))
        moves = {state: n for state, n in counts.items() if state in able}
        left = {state: n for state, n in counts.items() if state not in able}
        would = ", ".join(
            f"{sum(part.values())} {what} ({', '.join(f'{n} {s}' for s, n in part.items())})"
            for part, what in ((moves, f"would be {done}"), (left, "left as they are"))
            if part
        )
        if dry_run:
            return {"would": moves, "left": left}, would or f"0 would be {done}", int(not moves)
        if moves:
            print(f"{would}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                return {"moved": 0, "left": sum(counts.values())}, "nothing was changed", 1
    moved = getattr(jobs, verb)(*ids, **filters)
    text = f"{moved.moved} {done}, {moved.left} left as they are"
    missing = len(set(ids)) - moved.moved - moved.left if ids and not conditions else 0
    text += f", {missing} not found" if missing else ""
    return attrs.asdict(moved), text, int(not moved.moved or moved.left > 0 or missing > 0)


_retry, _cancel, _delete, _hold, _release = (
    functools.partial(_bulk, verb) for verb in ("retry", "cancel", "delete", "hold", "release")
)
_DONE = {"retry": "retried", "cancel": "cancelled", "hold": "held"}


def _change(jobs: LiteJobs, *ids: int, to: Changes, **choices: Unpack[BulkChoices]) -> Output:
    given: Any = {**choices, "to": to}
    return _bulk("change", jobs, *ids, **given)


def _why(jobs: LiteJobs, id: int) -> Output:
    why = jobs.why(id)
    return {"id": id, "why": why}, why, 0


def _stats(jobs: LiteJobs, *, screen: Screen) -> Output:
    counts = jobs.stats()
    with jobs.store.file.transaction(read_only=True) as tx:
        oldest, recent = oldest_due(tx), jobs.store.meter.last_hour(tx)
    value: dict[str, dict[str, Any]] = {}
    for queue in sorted(counts):
        ended, wait = recent.get(queue, (None, None))
        value[queue] = {
            **counts[queue],
            "oldest_due": oldest.get(queue),
            "median_wait": wait,
            "per_minute": None if ended is None else round(ended / 60, 2),
        }
    states = [state for state in STATES if any(state in queue for queue in counts.values())]
    rows = [{"queue": queue, **dict.fromkeys(states, 0), **more} for queue, more in value.items()]
    columns = _columns(f"queue {' '.join(states)} oldest_due median_wait per_minute")
    return value, _table(rows, columns, screen), 0


def _queues(jobs: LiteJobs, *, screen: Screen) -> Output:
    with jobs.store.file.transaction(read_only=True) as tx:
        limited = _values(
            jobs, [each for each in read_settings(tx).values() if each.of == "definition"], _LIMITS
        )
    queues = _values(jobs, jobs.queues(), _QUEUES)
    lines = [*_table(queues, _QUEUES, screen)]
    lines += ["", *_table(limited, _LIMITS, screen)] if limited else []
    limits = [{"definition": row["name"], **row} for row in limited]
    for row in limits:
        del row["name"]
    return [*queues, *limits], lines, 0


def _nodes(jobs: LiteJobs, *, screen: Screen) -> Output:
    nodes = jobs.nodes()
    rows, running = _values(jobs, nodes, _NODES), list[dict[str, Any]]()
    for node, row in zip(nodes, rows, strict=True):
        alive = jobs.store.nodes.is_alive(node.id, if_unknown=True)
        row |= {"state": "at work" if alive else "dead", "jobs": jobs.store.nodes.held(node.id)}
        running += [{"node": node.name, **job} for job in row["jobs"]]
    lines = [*_table(rows, _NODES, screen)]
    lines += ["", *_table(running, _HELD, screen)] if running else []
    return rows, lines, int(not rows)


def _schedules(jobs: LiteJobs, *, screen: Screen) -> Output:
    rows = _values(jobs, jobs.schedules(), _SCHEDULES)
    return rows, _table(rows, _SCHEDULES, screen), int(not rows)


def _metrics(
    jobs: LiteJobs,
    *,
    screen: Screen,
    span: Span = "minute",
    limit: int = 24,
    queue: str | None = None,
    name: str | None = None,
) -> Output:
    rows = _values(jobs, jobs.metrics(span, limit=limit, queue=queue, name=name), _METRICS)
    first = next((i for i, row in enumerate(rows) if any([*row.values()][1:])), len(rows) - 1)
    lines = [*_table(rows[first:], _METRICS, screen)]
    if screen.width:
        ended = [row["completed"] + row["failed"] for row in rows]
        bars = "".join("▁▂▃▄▅▆▇█"[number * 7 // (max(ended) or 1)] for number in ended)
        lines += [[("ended  ", ""), (bars, "green"), (f"  at most {max(ended)} in a {span}", "")]]
    return rows, lines, 0


def _queue(
    jobs: LiteJobs,
    name: Annotated[str, "the queue"],
    *,
    screen: Screen,
    pause: Annotated[bool, "let no more of its jobs start"] = False,
    resume: Annotated[bool, "let its jobs start again"] = False,
    reset: Annotated[bool, "remove all its settings"] = False,
    to: QueueChoices,
) -> Output:
    queue = jobs.queue(name)
    if reset:
        queue.reset()
    if to:
        queue.set(**to)
    if pause or resume:
        (queue.pause if pause else queue.resume)()
    rows = _values(jobs, [queue.settings], _QUEUES)
    return rows[0], _table(rows, _QUEUES, screen), 0


def _fire(jobs: LiteJobs, name: str) -> Output:
    job = jobs.schedule(name).fire()
    return _values(jobs, [job])[0], f"{job.id}", 0


def _set_paused(
    verb: str, jobs: LiteJobs, name: Annotated[str | None, "default: all"] = None
) -> Output:
    changed = jobs.store.schedules.set_paused(name, verb == "pause")
    return {f"{verb}d": changed}, f"{changed} {verb}d", int(not changed)


def _remove_schedule(jobs: LiteJobs, name: str) -> Output:
    jobs.schedule(name).remove()
    return {"removed": 1}, "1 removed", 0


def _backup(jobs: LiteJobs, path: Annotated[str, "the copy; must not exist"]) -> Output:
    place = jobs.backup(path)
    size = place.stat().st_size
    text = printable(f"copied to {place}, {_bytes(size)}")
    return {"path": storable(str(place)), "bytes": size}, text, 0


def _compact(jobs: LiteJobs) -> Output:
    done = jobs.compact()
    return attrs.asdict(done), f"{_bytes(done.before)} before, {_bytes(done.after)} now", 0


def _doctor(
    jobs: LiteJobs, *, repair: Annotated[bool, "correct stored counts first"] = False
) -> Output:
    if repair:
        jobs.repair()
    found = jobs.doctor()
    lines = [f"{one.level}: {one.subject}: {one.problem}\n    {one.advice}" for one in found]
    text = "\n".join(lines or ["nothing is wrong"])
    return list(map(attrs.asdict, found)), text, int(bool(found))


def _completion(
    shell: Annotated[Literal["bash", "zsh", "fish", "powershell"], "the shell that reads it"],
) -> Output:
    try:
        import shtab  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        problem = "is made by the package shtab: pip install 'litejobs[cli]'"
        raise OptionError("completion", problem) from None
    parser = _parser([*_COMMANDS])
    commands = next(each.choices for each in parser._actions if isinstance(each.choices, dict))
    for action in itertools.chain(*(command._actions for command in commands.values())):
        if action.dest in ("target", "path"):
            action.complete = shtab.FILE
    return None, shtab.complete(parser, shell).rstrip(), 0


def _service(
    jobs: LiteJobs,
    *,
    screen: Screen,
    systemd: Annotated[bool, "print a systemd unit (default on Linux)"] = False,
    launchd: Annotated[bool, "print a launchd property list (default on macOS)"] = False,
    windows_task: Annotated[bool, "print a task for Windows (default there)"] = False,
    workers: Annotated[int | None, "number of processes (default: one per core)"] = None,
    **options: Unpack[NodeOptions],
) -> Output:
    import getpass

    if jobs.target is None:
        raise OptionError(str(jobs.path), "a file has no code to run: name module:attribute")
    default = {"darwin": _launchd_service, "win32": _windows_task}.get(sys.platform, _systemd_unit)
    makers = (_systemd_unit, _launchd_service, _windows_task)
    make = next(itertools.compress(makers, (systemd, launchd, windows_task)), default)
    main, kind = Path(jobs.target), re.compile("service|--(s.*|l.*|wi.*)")
    name = f"litejobs-{main.parent.name if main.stem == '__init__' else main.stem}"
    kept = ("PATH", "PYTHONPATH", "LANG", "TZ")
    environment = {key: os.environ[key] for key in kept if os.environ.get(key)}
    words = [word for word in screen.arguments if not kind.fullmatch(word)]
    command = [sys.executable, "-m", "litejobs", "run", *words]
    stop = math.ceil(duration(options.get("grace", 5.0), "grace").total_seconds()) + 10
    return None, make(name, getpass.getuser(), command, environment, stop), 0


def _systemd_unit(
    name: str, user: str, command: list[str], environment: Mapping[str, str], stop: int
) -> str:
    def quoted(text: str, dollar: str = "$") -> str:
        for old, new in (("\\", r"\\"), ('"', r"\""), ("%", "%%"), ("$", dollar)):
            text = text.replace(old, new)
        return f'"{text}"' if re.search(r"[^\w@/.,:=+-]", text) else text

    pairs = [f"Environment={quoted(f'{key}={value}')}" for key, value in environment.items()]
    about, folder = " ".join(command[4:]).replace("%", "%%"), os.getcwd().replace("%", "%%")
    start = " ".join(quoted(word, "$$") for word in command)
    return _UNIT.format(name, about, user, folder, "\n".join(pairs), start, stop)


_UNIT = """\
# Save this as {0}.service, then:
#   sudo install -m 644 {0}.service /etc/systemd/system/
#   sudo systemctl daemon-reload && sudo systemctl enable --now {0}
[Unit]
Description=litejobs: {1}
After=network.target

[Service]
User={2}
WorkingDirectory={3}
{4}
ExecStart={5}
Restart=always
RestartSec=5
# Only the node is asked to stop; its jobs have their grace.
KillMode=mixed
TimeoutStopSec={6}

[Install]
WantedBy=multi-user.target"""


def _launchd_service(
    name: str, user: str, command: list[str], environment: Mapping[str, str], stop: int
) -> str:
    import plistlib

    log = os.path.join(os.getcwd(), f"{name}.log")
    place = f"/Library/LaunchDaemons/{name}.plist"
    made = plistlib.dumps(
        {
            "Label": name, "ProgramArguments": command, "WorkingDirectory": os.getcwd(),
            "EnvironmentVariables": {**environment}, "UserName": user, "RunAtLoad": True,
            "KeepAlive": True, "ExitTimeOut": stop, "StandardErrorPath": log,
            "StandardOutPath": log,
        },
        sort_keys=False,
    )  # fmt: skip
    how = (
        f"<!-- Save this as {name}.plist, then:\n  sudo install -m 644 {name}.plist {place}\n"
        f"  sudo launchctl bootstrap system {place}\n-->\n<plist"
    )
    return made.decode().replace("<plist", how, 1).rstrip()


def _windows_task(
    name: str, user: str, command: list[str], environment: Mapping[str, str], stop: int
) -> str:
    import subprocess
    from xml.sax.saxutils import escape

    user = "\\".join(filter(None, (os.environ.get("USERDOMAIN"), user)))
    values = user, command[0], subprocess.list2cmdline(command[1:]), os.getcwd()
    return _TASK.format(name, *(escape(value) for value in values))


_TASK = """\
<?xml version="1.0"?>
<!-- Save this as {0}.xml, then, as an administrator:
  schtasks /Create /TN {0} /XML {0}.xml
  schtasks /Run /TN {0}
Ending the task gives running jobs no grace; the next start runs them again. -->
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers><BootTrigger /></Triggers>
  <Principals>
    <Principal id="Author"><UserId>{1}</UserId><LogonType>S4U</LogonType></Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure><Interval>PT1M</Interval><Count>999</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{2}</Command>
      <Arguments>{3}</Arguments>
      <WorkingDirectory>{4}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>"""


_DEFINITION = '''\
"""Jobs named {name}."""

from litejobs import define


@define{options}
def {function}(subject: str, copies: int = 1) -> str:
    """Put the work here. Give it the parameters that it needs: anything with a type."""
    return f"{{copies}} of {{subject}}"
'''
_TEST = '''\
"""Tests of the jobs named {name}."""

from litejobs import LiteJobs, recording

from {function} import {function}


def test_{function}_does_its_work() -> None:
    assert {function}("a subject") == "1 of a subject"


def test_{function}_does_it_as_a_job() -> None:
    jobs = LiteJobs("jobs.db")
    jobs.register({function})
    with recording(jobs) as recorder:  # In a file of its own.
        {function}.enqueue("a subject", copies=2)
        [job] = recorder.assert_enqueued({function}, copies=2)
        assert recorder.drain() == 1
        assert job.result() == "2 of a subject"
'''
_NEXT = """\
wrote {path} and {test}
Put the work into {function}(). Where your LiteJobs is, add:
    from {function} import {function}
    jobs.register({function})
Try it: {python} -m pytest {test}"""


def _new(
    name: Annotated[str, "such as reports:generate"],
    *,
    queue: Annotated[str | None, "the queue of its jobs"] = None,
    dir: Annotated[str, "the folder to write to (default: this one)"] = ".",
) -> Output:
    import keyword

    if not re.fullmatch(r"[a-z][a-z0-9_]*([:.-][a-z0-9_]+)*", check_name(name, "NAME")):
        problem = f"expected lower-case words joined by : . - or _, got {name!r}"
        raise OptionError("NAME", problem)
    function = re.sub("[:.-]", "_", name)
    if keyword.iskeyword(function) or function in {*sys.stdlib_module_names, __name__}:
        raise OptionError("NAME", f"{function!r} means something else already: add a word")
    chosen = {} if name == function else {"name": name}
    if queue is not None:
        chosen["queue"] = check_name(queue, "--queue")
    # Printable text is written the same way in JSON and in Python.
    given = [f"{k}={json.dumps(value, ensure_ascii=False)}" for k, value in chosen.items()]
    path, test = Path(dir, f"{function}.py"), Path(dir, f"test_{function}.py")
    texts = {
        "name": name, "function": function, "options": f"({', '.join(given)})" if given else "",
        "path": path, "test": test, "python": Path(sys.executable).name,
    }  # fmt: skip
    if not os.path.isdir(dir):
        raise OptionError(str(path), "there is no such folder")
    if there := next(filter(os.path.lexists, (path, test)), None):
        raise OptionError(str(there), "is there already, and stays as it is")
    for place, template in ((path, _DEFINITION), (test, _TEST)):
        with place.open("x", encoding="utf-8") as file:
            file.write(template.format(**texts))
    return None, _NEXT.format(**texts), 0


_JOB_VALUES = [
    *(name for name in JOB_COLUMNS if name not in ("claim", "backoff", "headers", "grace")),
    "took",
]


def _values(
    jobs: LiteJobs, things: Iterable[Any], names: Iterable[str] = _JOB_VALUES
) -> list[dict[str, Any]]:
    """These values of jobs, schedules, queues and so on, without those that the program or, as
    stored, a node says are hidden."""
    all_hidden = jobs.store.nodes.hidden() | {own.name: own.body.hidden for own in jobs.registry}

    computed = ("payload", "progress", "result", "words", "tags", "meta", "took")

    def value(thing: Any, name: str) -> Any:
        if name == "took":
            end = from_micros(jobs.clock()) if thing.state == "running" else thing.finished_at
            return end - thing.started_at if end and thing.started_at else None
        if name == "words":
            return f"({thing.problem})" if thing.problem else thing.timetable.words
        if name not in computed:
            return getattr(thing, name)
        stored = getattr(thing, f"stored_{name}")
        plain = _read_json(stored or {"tags": "[]", "meta": "{}"}.get(name))
        definition = thing.name if isinstance(thing, Job) else thing.definition
        hidden = [path for path in all_hidden.get(definition, ()) if path.startswith(name)]
        if plain is None or not hidden:
            return plain
        if name in hidden or not isinstance(plain, dict) or isinstance(stored, bytes):
            return HIDDEN
        return {key: HIDDEN if f"{name}.{key}" in hidden else plain[key] for key in plain}

    return [
        {name: value(thing, name) for name in names if name in computed or hasattr(thing, name)}
        | {name: set for name, set in getattr(thing, "defaults", {}).items() if name != "backoff"}
        for thing in things
    ]


_Columns = Mapping[str, str]
"""The values that a listing has in JSON, and the headings of those that its table shows: those
that a narrow terminal can do without are the last ones."""


def _columns(text: str) -> _Columns:
    pairs = (column.partition("=") for column in text.split())
    return {
        name: (heading if equals else name).replace("_", " ") for name, equals, heading in pairs
    }


_JOBS = _columns(
    "id name state when took error payload progress queue schedule attempt priority tags"
)
_QUEUES = _columns(
    "name=queue paused=state concurrency rate burst weight ageing max_attempts timeout"
)
_LIMITS = _columns("name=definition concurrency rate")
_NODES = _columns("id= name pid state started_at=since workers running=running_jobs queues")
_HELD = _columns("id=job name node started_at=since")
_ERRORS = _columns("group number name error last_at=last first_at=first example")
_SCHEDULES = _columns(
    "name state expression words=in_words next_at=next last_at=last timezone=zone definition= "
    "last_job= misfire= overlap= origin= problem= payload="
)
_METRICS = _columns(" ".join(field.name for field in attrs.fields(Metric)))
_CELLS: Mapping[str, Callable[[Mapping[str, Any], Screen], object]] = {
    "when": lambda job, _: (
        job["started_at"] if job["state"] == "running" else job["finished_at"] or job["run_at"]
    ),
    "attempt": lambda job, _: f"{job['attempt']}/{job['max_attempts'] or '∞'}",
    "error": lambda job, _: (job["error"] or "")[:80],
    "payload": lambda job, _: json.dumps(job["payload"], ensure_ascii=False)[:80],
    "tags": lambda job, _: " ".join(map(str, job["tags"] or ())),
    "progress": lambda job, screen: _progress(job, screen),
    "paused": lambda queue, _: "paused" if queue["paused"] else "open",
    "max_attempts": lambda queue, _: (
        queue["max_attempts"] or "inf" if "max_attempts" in queue else ""
    ),
    "queues": lambda node, _: "all" if node["queues"] is None else ", ".join(node["queues"]),
    "ageing": lambda queue, _: _json_value(queue["ageing"]),
    "timeout": lambda queue, _: _json_value(queue.get("timeout")),
}
"""How tables show some values."""
_DULL = {"queue": "default", "priority": "0"}
"""A column with nothing but this, or without values, is left out on a terminal."""
_STYLES = {
    "completed": "green", "failed": "red", "running": "cyan", "retrying": "yellow",
    "cancelled": "dim", "blocked": "magenta", "paused": "magenta", "dead": "bold red",
    "unusable": "bold red",
}  # fmt: skip
NARROW = 20
"""Columns that are wider than this are cut before others are left out."""


def _table(rows: Sequence[Mapping[str, Any]], columns: _Columns, screen: Screen) -> Iterator[Line]:
    table = list[tuple[str, list[str]]]()
    for name, heading in columns.items():
        show = _CELLS.get(name, lambda row, _, name=name: row.get(name))
        texts = [printable(_cell(show(row, screen), screen)) for row in rows]
        if heading and not (screen.width and rows and {*texts} <= {"", _DULL.get(name)}):
            table.append((name, [heading, *texts]))
    widths = [max(map(_width, column)) for _, column in table]
    while screen.width and len(widths) > 1 and sum(widths) + 2 * len(widths) - 2 > screen.width:
        widest = max(widths)
        if widest > NARROW:
            widths[widths.index(widest)] -= 1
        else:
            del widths[-1], table[-1]
    for number in range(len(rows) + 1):
        parts = [
            (_fit(column[number], width), "bold" if number == 0 else _style(name, column[number]))
            for (name, column), width in zip(table, widths, strict=True)
        ]
        while parts and not parts[-1][0].strip():
            parts.pop()
        yield [(text + "  ", style) for text, style in parts[:-1]] + [
            (text.rstrip(), style) for text, style in parts[-1:]
        ]


def _style(name: str, text: str) -> str:
    """The colour of a value."""
    if name in ("state", "paused"):
        return _STYLES.get(text, "")
    return {"error": "red", "progress": "cyan"}.get(name, "")


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    import unicodedata

    wide = 0 if text.isascii() else sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide


def _fit(text: str, width: int) -> str:
    """The text, cut or filled up to a width."""
    if _width(text) > width:
        while _width(text) >= width:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _progress(job: Mapping[str, Any], screen: Screen) -> str:
    try:
        progress = Progress(**job["progress"])
    except (TypeError, OptionError):
        return ""  # There is none, or another program has written it.
    if not screen.width or progress.share is None or job["state"] == "completed":
        return "" if job["state"] == "completed" else str(progress)
    full = round(progress.share * 10)
    return f"{'█' * full}{'░' * (10 - full)} {progress.share:.0%} {progress.note}".rstrip()


def _in_words(moment: datetime) -> str:
    """How far a moment is from now; after a week, the date and time in the local zone."""
    away = int((moment - datetime.now(UTC)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if abs(away) >= 7 * 86_400:
            break
        if number := abs(away) // length:
            return f"{number} {unit} ago" if away < 0 else f"in {number} {unit}"
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if away else "now"


def _cell(value: object, screen: Screen) -> str:
    """A value in a table; a duration with three digits."""
    if isinstance(value, datetime):
        return _in_words(value) if screen.local else f"{value:%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, timedelta):
        return "" if value is None else str(value)
    seconds = value.total_seconds()
    for unit, length in (("h", 3_600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 1e-6:.0f} µs"


def _screen(color: str, utc: bool, arguments: Sequence[str]) -> Screen:
    """What stdout is. NO_COLOR is respected."""
    import shutil

    terminal, console = bool(sys.stdout and sys.stdout.isatty()), None
    if color == "always" or (color == "auto" and terminal and not os.environ.get("NO_COLOR")):
        try:
            from rich.console import Console  # type: ignore[import-not-found, unused-ignore]

            console = Console(force_terminal=True if color == "always" else None, highlight=False)
        except ImportError:
            if color == "always":
                problem = "colours need rich: pip install 'litejobs[cli]'"
                raise OptionError("--color", problem) from None
    width = shutil.get_terminal_size().columns if terminal else None
    return Screen(width, terminal and not utc, console, arguments)


def _print(text: str | Iterable[Line], screen: Screen) -> None:
    """Prints what a command returned: text of others cannot control the terminal."""
    if not sys.stdout:
        return  # It was closed.
    for line in filter(None, [text]) if isinstance(text, str) else text:
        parts = [(line, "")] if isinstance(line, str) else line
        parts = [(printable(part, keep="\n\t"), style) for part, style in parts]
        if screen.console is not None:
            from rich.text import Text  # type: ignore[import-not-found, unused-ignore]

            with screen.console.capture() as captured:
                screen.console.print(Text.assemble(*parts), soft_wrap=True, end="")
            plain = captured.get()
        else:
            plain = "".join(part for part, _ in parts)
        print(plain)
    sys.stdout.flush()


def _json_value(value: Any) -> Any:
    """A value for JSON; durations are in seconds."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value.isoformat() if isinstance(value, datetime) else value


def _bytes(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB" if size >= MEBIBYTE else f"{size / 1024:.0f} KiB"


_HELP: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "Run jobs": {
        "run": (
            _run, "run jobs until stopped",
            "app.py", "app:jobs --workers 4 --queue mails", "app.py --verbose",
        ),
        "enqueue": (
            _enqueue, "put a job into the file",
            "app.py send to=ada copies=3", """app.py send '{"to": "ada"}' --delay 10m""",
            "jobs.db send to=ada --at 18:00 --expires 1d",
        ),
        "new": (_new, "write a definition and a test of it", "reports:generate --queue slow"),
        "service": (_service, "print what starts a program with the machine", "app.py --workers 4"),
    },
    "Look at jobs": {
        "list": (
            _list, "list jobs, newest first",
            "jobs.db --state failed --finished-after 1d", "jobs.db --payload to=ada --json",
        ),
        "show": (_show, "show one job with its failed attempts", "jobs.db 12 --all"),
        "why": (_why, "say why a job is not running", "jobs.db 12"),
        "logs": (_logs, "show what has happened to a job, with what it printed", "jobs.db 12 -f"),
        "tail": (_tail, "follow what happens to jobs, until it is interrupted"),
        "errors": (_errors, "group dead letters by definition and error"),
        "stats": (_stats, "count jobs by queue and state"),
        "metrics": (
            _metrics, "what nodes did by minute, hour or day; the last is now",
            "jobs.db --span hour --limit 48",
        ),
    },
    "Change jobs": {
        "retry": (
            _retry, "let failed and cancelled jobs start again",
            "jobs.db 12 13", "jobs.db --group 52b2c61a07", "jobs.db --state failed --dry-run",
        ),
        "cancel": (_cancel, "cancel waiting and running jobs", "jobs.db --queue slow --yes"),
        "delete": (_delete, "delete jobs that are not running", "jobs.db --finished-before 30d"),
        "hold": (_hold, "keep waiting jobs from running", "jobs.db --name send"),
        "release": (_release, "release held jobs", "jobs.db 12"),
        "change": (
            _change, "change options of waiting jobs",
            "jobs.db 12 --priority 10", "jobs.db --queue slow --to-queue fast --at 18:00",
        ),
    },
    "Queues, schedules and nodes": {
        "queues": (_queues, "list the queues that have settings, and the limits of definitions"),
        "queue": (
            _queue, "show, pause, resume and set a queue",
            "jobs.db mails --pause", "jobs.db mails --rate 10/s --concurrency 2",
        ),
        "schedules": (_schedules, "list schedules with their last and next times"),
        "fire": (_fire, "enqueue one job of a schedule now", "jobs.db nightly"),
        "pause-schedule": (functools.partial(_set_paused, "pause"), "pause a schedule, or all"),
        "resume-schedule": (functools.partial(_set_paused, "resume"), "resume a schedule, or all"),
        "remove-schedule": (
            _remove_schedule, "remove a schedule (a program that declares it makes it again)",
            "jobs.db nightly",
        ),
        "nodes": (_nodes, "list the nodes with the jobs that they run"),
    },
    "Look after the file": {
        "doctor": (_doctor, "find what is wrong, with advice"),
        "backup": (_backup, "copy the file while jobs run", "jobs.db /mnt/backup/jobs.db"),
        "compact": (_compact, "return free space in the file to the system"),
        "completion": (
            _completion, "print what completes commands in a shell",
            "bash > ~/.local/share/bash-completion/completions/litejobs",
            "zsh > ~/.zfunc/_litejobs",
            "fish > ~/.config/fish/completions/litejobs.fish", "powershell >> $PROFILE",
        ),
    },
}  # fmt: skip
"""The commands in groups: of each its function, whose parameters are its arguments, its help and
its examples, if more than a file is needed."""
_COMMANDS = {verb: command for group in _HELP.values() for verb, command in group.items()}


if __name__ == "__main__":
    # Imported, since a program registers its definitions with the module `litejobs`, and
    # `python -m litejobs` loads the file as a second module.
    from litejobs import main

    raise SystemExit(main())
