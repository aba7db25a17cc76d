"""Two hundred jobs that misbehave are drawn from here: what each does, and how it has to end.

What `trouble` has is used as it is. Each of these is told where to note the processes that it
leaves behind, so that one can see whether they are gone.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import functools
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import attrs

from litejobs import Bound, Constant, Fail, Snooze, State, define

from . import trouble
from .trouble import note

if sys.platform != "win32":
    import resource

AT_ONCE = Constant(0, jitter="none")
LIMIT = 0.3
"""Seconds that those get which do not end."""
LONG = 120.0
"""Seconds that nobody waits for."""
MIB = 2**20


# Those that end their worker.


@define(backoff=AT_ONCE)
def abort(log: str) -> None:
    os.abort()


@define(backoff=AT_ONCE)
def overflow_the_stack(log: str) -> None:
    """Of C, which has no RecursionError: a callback that calls itself through ctypes."""
    sys.setrecursionlimit(10**9)
    calls: list[Callable[[], None]] = []
    calls.append(ctypes.CFUNCTYPE(None)(lambda: calls[0]()))
    calls[0]()


@define(backoff=AT_ONCE)
def write_to_nowhere(log: str) -> None:
    ctypes.memset(8, 1, 8)


@define(backoff=AT_ONCE, timeout=LIMIT)
def close_all_and_sleep(log: str) -> None:
    """Its pipe is closed, which its supervisor sees; unless what an earlier job has left behind
    holds it open."""
    os.closerange(0, 4096)
    time.sleep(LONG)


@define(backoff=AT_ONCE, timeout=LIMIT)
def garble_all(log: str, words: str) -> None:
    """Writes to everything that it finds open, and goes on."""
    for place in _open_above(2):
        with contextlib.suppress(OSError):
            os.write(place, bytes.fromhex(words))
    time.sleep(LONG)


@define(backoff=AT_ONCE, timeout=LIMIT)
def point_all_elsewhere(log: str) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for place in _open_above(2):
        os.dup2(nowhere, place)
    time.sleep(LONG)


def _open_above(lowest: int) -> list[int]:
    """The descriptors that are open here, but for those of the interpreter itself."""
    return [place for name in os.listdir("/proc/self/fd") if (place := int(name)) > lowest]


# Those that do not end.


@define(backoff=AT_ONCE, timeout=LIMIT)
def pause_in_c(log: str) -> None:
    """Lets others have the interpreter meanwhile."""
    while True:
        ctypes.CDLL(None).pause()


@define(backoff=AT_ONCE, timeout=LIMIT)
def pause_in_c_for_all(log: str) -> None:
    """Keeps the interpreter to itself."""
    while True:
        ctypes.PyDLL(None).pause()


@define(backoff=AT_ONCE, timeout=LIMIT)
def block_signals(log: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
    time.sleep(LONG)


@define(backoff=AT_ONCE, timeout=LIMIT)
def swallow_everything(log: str) -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(LONG)


@define(backoff=AT_ONCE, timeout=LIMIT)
def wait_for_itself(log: str) -> None:
    lock = threading.Lock()
    with lock, lock:
        pass


@define(backoff=AT_ONCE, timeout=LIMIT)
def leave_ten_and_hang(log: str) -> None:
    _fork_ten(log)
    time.sleep(LONG)


# Those that leave processes behind.


@define(backoff=AT_ONCE)
def leave_ten_and_crash(log: str) -> None:
    _fork_ten(log)
    os._exit(4)


@define
def leave_ten_and_return(log: str) -> str:
    """They may stay as long as the worker does."""
    _fork_ten(log)
    return "ten"


def _fork_ten(log: str) -> None:
    """Each of the ten is a child of the one before."""
    if os.fork():
        return
    for _ in range(9):
        if os.fork() == 0:
            continue
        break
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(log, f"ours {os.getpid()}")
    time.sleep(LONG)
    os._exit(0)


@define(backoff=AT_ONCE, timeout=LIMIT)
def leave_a_program_and_hang(log: str) -> None:
    _start_a_program(log)
    time.sleep(LONG)


@define(backoff=AT_ONCE)
def leave_a_program_and_crash(log: str) -> None:
    _start_a_program(log)
    os._exit(4)


def _start_a_program(log: str) -> None:
    """It has none of its parent's files open."""
    command = [sys.executable, "-S", "-c", f"import time; time.sleep({LONG})"]
    note(log, f"ours {subprocess.Popen(command).pid}")


@define(backoff=AT_ONCE)
def leave_one_of_its_own(log: str) -> None:
    """In a session of its own it is out of reach, as programs are that become daemons."""
    if os.fork() == 0:
        os.setsid()
        note(log, f"its own {os.getpid()}")
        time.sleep(LONG)
        os._exit(0)
    os._exit(4)


@define
def come_back_twice(log: str) -> str:
    """The child believes that it is the worker."""
    child = os.fork()
    if child == 0:
        return "child"
    time.sleep(0.05)
    note(log, f"ours {child}")
    return "parent"


@define
async def come_back_twice_aside(log: str) -> str:
    child = os.fork()
    if child == 0:
        return "child"
    await asyncio.sleep(0.05)
    note(log, f"ours {child}")
    return "parent"


@define(backoff=AT_ONCE)
def fail_twice(log: str) -> None:
    child = os.fork()
    if child == 0:
        raise RuntimeError("child")
    time.sleep(0.05)
    note(log, f"ours {child}")
    raise RuntimeError("parent")


# Those that use all the memory.


@define(backoff=AT_ONCE)
def hit_the_limit(log: str) -> None:
    """Bit by bit, so that nothing is left when it fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * MIB, before[1]))
    hoard: list[Any] = []
    try:
        while True:
            hoard.append(bytearray(MIB))
    except MemoryError:
        with contextlib.suppress(MemoryError):
            while True:
                hoard.append(object())
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@define(backoff=AT_ONCE, max_memory=150 * MIB)
def devour(log: str) -> None:
    eaten = b"x" * (200 * MIB)
    time.sleep(LONG)
    del eaten


@define(backoff=AT_ONCE)
def demand_the_impossible(log: str) -> None:
    bytearray(2**60)


# Those whose result cannot be kept, or is strange.


@define
def give(log: str, what: str) -> Any:
    return RESULTS[what]()


@define
def give_another_type(log: str, what: str) -> dict[str, int]:
    return RESULTS[what]()  # type: ignore[no-any-return]


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def _deep() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


class Lying(str):
    """Is no text, whatever it says."""

    def __len__(self) -> int:
        return -5

    def encode(self, *arguments: object, **options: object) -> bytes:
        raise SystemExit("no")


RESULTS: dict[str, Callable[[], Any]] = {
    "an object": object,
    "a number that is none": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "a cycle": _cycle,
    "a set": lambda: {1, 2},
    "a lone surrogate": lambda: "\ud800",
    "5,000 digits": lambda: 10**5_000,
    "100 megabytes": lambda: "x" * (100 * MIB),
    "a deep list": _deep,
    "a function": lambda: _deep,
    "keys that are no text": lambda: {(1, 2): 3},
    "a generator": lambda: (n for n in range(3)),
    "an exception": lambda: ValueError("no"),
    "a class": lambda: Lying,
    "text that lies": lambda: Lying("text"),
    "bytes": lambda: b"\xff",
}


# Those whose error cannot be told.


@define(backoff=AT_ONCE)
def fail_with(log: str, what: str) -> None:
    raise ERRORS[what]()


@define(backoff=AT_ONCE)
async def fail_aside(log: str, what: str) -> None:
    await asyncio.sleep(0)
    raise ERRORS[what]()


class Unpicklable(Exception):
    def __reduce__(self) -> NoReturn:
        raise TypeError("not this one")

    def __init__(self) -> None:
        super().__init__(threading.Lock(), lambda: 0)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __str__


class Deadly(Exception):
    def __str__(self) -> str:
        raise SystemExit("no words")

    __repr__ = __str__


class Interrupting(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class Wordless(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Endless(Exception):
    def __str__(self) -> str:
        return "on and on " * (10 * MIB // 10)


class Untrue(Exception):
    def __str__(self) -> str:
        return Lying("a lie")


class Surrogate(Exception):
    def __str__(self) -> str:
        return "\udcff\ud800 and \0"


class Failing(Exception):
    """Says that it is one of ours, and has nothing of it."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Fail


class Snoozing(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return Snooze


class Classless(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("of no class")


class Nameless(Exception):
    """Its module is a number."""

    __module__ = 5  # type: ignore[assignment]


class Guarded(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("do not touch")


class Rude(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class RudelyNamed(Exception, metaclass=Rude):
    pass


class Own(BaseException):
    """No Exception."""


def _in_a_circle() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = second, first
    return first


def _nested() -> BaseException:
    group: Exception = ValueError("inside")
    for _ in range(10_000):
        group = ExceptionGroup("one more", [group])
    return group


def _caused() -> BaseException:
    error = ValueError("the first")
    for _ in range(10_000):
        following = ValueError("the next")
        following.__cause__ = error
        error = following
    return error


def _noted() -> BaseException:
    error = ValueError("noted")
    error.__notes__ = [object(), "\ud800", Unspeakable()]  # type: ignore[list-item]
    return error


def _of_syntax() -> BaseException:
    return SyntaxError("wrong", ("file", 10**30, -7, object(), 3, "x"))  # type: ignore[arg-type]


ERRORS: dict[str, Callable[[], BaseException]] = {
    "Unpicklable": Unpicklable,
    "Unspeakable": Unspeakable,
    "Deadly": Deadly,
    "Interrupting": Interrupting,
    "Wordless": Wordless,
    "Endless": Endless,
    "Untrue": Untrue,
    "Surrogate": Surrogate,
    "Failing": Failing,
    "Snoozing": Snoozing,
    "Classless": Classless,
    "Nameless": Nameless,
    "Guarded": Guarded,
    "RudelyNamed": RudelyNamed,
    "Own": Own,
    "in a circle": _in_a_circle,
    "nested": _nested,
    "caused": _caused,
    "noted": _noted,
    "of syntax": _of_syntax,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "CancelledError": asyncio.CancelledError,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("all", [SystemExit(1), KeyboardInterrupt()]),
    "MemoryError": MemoryError,
    "SystemExit": lambda: SystemExit(object()),
    "KeyboardInterrupt": KeyboardInterrupt,
}


# Those that leave their worker as it should not be.


@define
def leave_it_in_disorder(log: str) -> str:
    """Nothing of this is in the way of others."""
    os.chdir("/")
    os.umask(0o777)
    gc.disable()
    atexit.register(sys.exit, 7)
    threading.Thread(target=time.sleep, args=(LONG,)).start()
    os.environ.clear()
    sys.argv.clear()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "done"


@define
def close_its_streams(log: str) -> str:
    sys.stdout.close()
    sys.stderr.close()
    for place in 0, 1, 2:
        with contextlib.suppress(OSError):
            os.close(place)
    return "done"


@define
def leave_an_alarm(log: str) -> str:
    """It goes off in whatever runs then."""
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    return "done"


@define
def forbid_depth(log: str) -> str:
    """As low as it goes: whoever comes next has no room to call anything."""
    for limit in range(1, 1_000):
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(limit)
            return "done"
    return "done"


@define
def spoil_json(log: str) -> str:
    json.dumps = json.loads = None  # type: ignore[assignment]
    return "done"


@define
def spoil_time(log: str) -> str:
    time.time = time.sleep = None  # type: ignore[assignment]
    return "done"


@define
def leave_a_hog(log: str) -> str:
    """A thread that lets no other one have the interpreter, once the job has returned."""

    def hog() -> None:
        time.sleep(0.1)
        sum(range(10**12))

    threading.Thread(target=hog, daemon=True).start()
    return "done"


@define
def end_the_node(log: str) -> str:
    """Asks its own supervisor to stop."""
    os.kill(os.getppid(), signal.SIGTERM)
    return "asked"


# Coroutines.


@define(backoff=AT_ONCE, timeout=LIMIT)
async def hang_aside(log: str) -> None:
    await asyncio.sleep(LONG)


@define(backoff=AT_ONCE, timeout=LIMIT)
async def cling_aside(log: str) -> None:
    """Will not be cancelled: its worker has to be killed."""
    while True:
        with contextlib.suppress(BaseException):
            await asyncio.sleep(LONG)


@define(backoff=AT_ONCE, timeout=LIMIT)
async def block_the_loop(log: str) -> None:
    time.sleep(LONG)


# Those that behave.


@define(backoff=Constant(0.02, jitter="none"))
def good(log: str, n: int, seconds: float = 0.0, treason: str = "") -> int:
    """Is quick, and so handed over with many others; until one of them turns out to be bad."""
    time.sleep(seconds)
    if treason:
        TREASONS[treason]()
    for stream in sys.stdout, sys.stderr:
        print(end="", file=stream)
    note(log, n)
    return n


TREASONS: dict[str, Callable[[], object]] = {
    "segfault": lambda: ctypes.string_at(0),
    "leave": lambda: os._exit(5),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(LONG),
}


@define(backoff=Constant(0.02, jitter="none"))
async def good_aside(log: str, n: int, seconds: float = 0.0) -> int:
    await asyncio.sleep(seconds)
    note(log, n)
    return n


# How each has to end.


@attrs.frozen
class Misdeed:
    """What a job does, and how it has to end."""

    what: str
    bind: Callable[[str], Bound[Any]]
    """Makes the job, told of the log."""
    kind: str
    """Of each of its failed attempts; none failed, if this is empty."""
    says: str = ""
    """What is told of each, as a regular expression."""
    once: bool = False
    """Whether it is not tried again."""
    result: object = None
    states: tuple[State, ...] = attrs.field()

    @states.default
    def _one(self) -> tuple[State, ...]:
        return ("failed",) if self.kind else ("completed",)


def _each(
    definition: Any, kind: str, says: str = "", once: bool = False, result: object = None
) -> Misdeed:
    return Misdeed(definition.name, definition.bind, kind, says, once, result)


def _without_log(definition: Any, kind: str, says: str = "") -> Misdeed:
    return Misdeed(definition.name, lambda log: definition.bind(), kind, says)


def _traitor(treason: str, kind: str, says: str) -> Misdeed:
    work = good.using(timeout=LIMIT)
    bind = functools.partial(work.bind, n=-1, treason=treason)
    return Misdeed(f"good until {treason}", bind, kind, says)


def _failures(definition: Any) -> Iterator[Misdeed]:
    """All errors, raised by *definition*."""
    for what in ERRORS:
        says = SAID.get(what, f"^{re.escape(what)}: ")
        if definition is fail_aside and what == "StopIteration":
            says = "^RuntimeError: coroutine raised StopIteration"
        yield Misdeed(
            f"{definition.name} {what}",
            functools.partial(definition.bind, what=what),
            "exception",
            says,
            once=what == "Failing",
        )


SAID = {
    "Unspeakable": r"^Unspeakable: \(its message cannot be shown\)$",
    "Deadly": r"^Deadly: \(its message cannot be shown\)$",
    "Interrupting": r"^Interrupting: \(its message cannot be shown\)$",
    "Wordless": r"^Wordless: \(its message cannot be shown\)$",
    "Endless": "^Endless: (on and on ){200}$",
    "Untrue": r"^Untrue: ",
    "Surrogate": r"^Surrogate: \\udcff\\ud800 and \0$",
    "Snoozing": "^AttributeError: ",
    "Classless": "^RuntimeError: of no class$",
    "Guarded": "^RuntimeError: do not touch$",
    "RudelyNamed": r"^\(its type cannot be shown\): ",
    "in a circle": "^ValueError: first$",
    "nested": "^ExceptionGroup: one more",
    "caused": "^ValueError: the next$",
    "noted": "^ValueError: noted$",
    "of syntax": "^SyntaxError: wrong",
}
"""What is told of those errors that do not simply have their names."""

KEPT = {"a lone surrogate": "\ud800"}
"""Strange results that can be kept."""

LOST = object()
"""The result of a job that completed, and says why it has none."""

GARBAGE = ("41" * 40, "ff" * 40, "00" * 40, "0000000568656c6c6f" * 5, "80049563", "0a" * 4096)
"""What is written into every pipe: text, lengths that are none, none at all, a pickle."""


def _results() -> Iterator[Misdeed]:
    for what in RESULTS:
        bind = functools.partial(give.bind, what=what)
        yield Misdeed(f"give {what}", bind, "", result=KEPT.get(what, LOST))
        bind = functools.partial(give_another_type.bind, what=what)
        says = "^Fail: its result "
        yield Misdeed(f"give {what} as another type", bind, "exception", says, once=True)


def _garblers() -> Iterator[Misdeed]:
    for words in GARBAGE:
        bind = functools.partial(garble_all.bind, words=words)
        # What could still be the beginning of a message is waited for.
        yield Misdeed(f"garble_all {words[:8]}", bind, "crash|timeout", "SIGKILL|timeout")


IN_PYTHON = (
    *_failures(fail_with),
    *_results(),
    _each(demand_the_impossible, "exception", "^MemoryError"),
    _without_log(trouble.call_exit, "exception", "^SystemExit: bye$"),
    _without_log(trouble.interrupt, "exception", "^KeyboardInterrupt"),
    _without_log(trouble.recurse, "exception", "^RecursionError"),
    _without_log(trouble.fail_in_bad_text, "exception", "^FileNotFoundError: caf"),
)
"""Those that need no process of their own."""

HANGING = (
    *(_each(work, "timeout", "timeout of 0.3 s") for work in (
        pause_in_c, pause_in_c_for_all, block_signals, swallow_everything, wait_for_itself,
    )),
    *(_without_log(work, "timeout", "timeout of 0.5 s") for work in (
        trouble.spin_in_c, trouble.ignore_signals, trouble.stop_itself,
    )),
)  # fmt: skip

CRASHING = (
    _without_log(trouble.segfault, "crash", "SIGSEGV"),
    _without_log(trouble.leave_at_once, "crash", "exit code 3"),
    _without_log(trouble.kill_itself, "crash", "SIGKILL"),
    _each(abort, "crash", "SIGABRT"),
    # Later Pythons count these calls, and raise a RecursionError that ctypes ignores.
    *([_each(overflow_the_stack, "crash", "SIGSEGV")] if sys.version_info < (3, 12) else []),
    _each(write_to_nowhere, "crash", "SIGSEGV"),
)

STARTING = (
    _each(leave_a_program_and_crash, "crash", "exit code 4"),
    _each(leave_a_program_and_hang, "timeout", "timeout of 0.3 s"),
)
"""Those that leave programs behind."""

LEAVING = (
    _each(leave_ten_and_crash, "crash", "exit code 4"),
    _each(leave_ten_and_hang, "timeout", "timeout of 0.3 s"),
    _each(leave_ten_and_return, "", result="ten"),
    _each(leave_one_of_its_own, "crash", "exit code 4"),
)
"""Those that leave behind what they have forked."""

RETURNING = (
    _each(come_back_twice, "", result="parent"),
    _each(fail_twice, "exception", "^RuntimeError: parent$"),
)
"""Those of which two return."""

MEDDLING = (
    *_garblers(),
    _each(close_all_and_sleep, "crash|timeout", "SIGKILL|timeout"),
    _each(point_all_elsewhere, "crash|timeout", "SIGKILL|timeout"),
    Misdeed(
        "close_everything",
        lambda log: trouble.close_everything.bind(),
        "crash",
        "SIGKILL",
        # Whether its worker is still there to say that it has returned is a matter of luck.
        states=("completed", "failed"),
    ),
    _each(leave_it_in_disorder, "", result="done"),
    _each(close_its_streams, "", result="done"),
)
"""Those that get at what is their worker's."""

DEVOURING = (
    _without_log(trouble.use_all_memory, "exception", "^MemoryError"),
    _each(hit_the_limit, "exception", "^MemoryError"),
    _each(devour, "memory", "157,286,400 bytes"),
)

TRAITORS = (
    _traitor("segfault", "crash", "SIGSEGV"),
    _traitor("leave", "crash", "exit code 5"),
    _traitor("kill", "crash", "SIGKILL"),
    _traitor("hang", "timeout", "timeout of 0.3 s"),
)
"""Those that cannot be told from the good ones before they run."""

MISDEEDS = (
    TRAITORS, STARTING, MEDDLING, IN_PYTHON, RETURNING, CRASHING, TRAITORS, LEAVING, IN_PYTHON,
    HANGING, DEVOURING,
)  # fmt: skip
"""All that a worker of its own should be able to bear; drawn from each in turn."""

IN_THREADS = (RETURNING, IN_PYTHON)

ASIDE = (
    tuple(_each(work, "timeout", "timeout of 0.3 s") for work in (
        hang_aside, cling_aside, block_the_loop,
    )),
    (*_failures(fail_aside), _each(come_back_twice_aside, "", result="parent")),
)  # fmt: skip
"""Coroutines, which share a worker."""

SPOILERS = tuple(
    _each(work, "", result="done")
    for work in (leave_a_hog, leave_an_alarm, forbid_depth, spoil_json, spoil_time)
)
"""Those that spoil their worker for whoever runs in it next: nobody can give that back."""

ENDING = _each(end_the_node, "", result="asked")

DEFINITIONS = (
    *trouble.DEFINITIONS, abort, overflow_the_stack, write_to_nowhere, close_all_and_sleep,
    garble_all, point_all_elsewhere, pause_in_c, pause_in_c_for_all, block_signals,
    swallow_everything, wait_for_itself, leave_ten_and_hang, leave_ten_and_crash,
    leave_ten_and_return, leave_a_program_and_hang, leave_a_program_and_crash,
    leave_one_of_its_own, come_back_twice, come_back_twice_aside, fail_twice,
    hit_the_limit, devour, demand_the_impossible, give, give_another_type, fail_with, fail_aside,
    leave_it_in_disorder,
    close_its_streams, leave_a_hog, leave_an_alarm, forbid_depth, spoil_json, spoil_time,
    end_the_node, hang_aside, cling_aside, block_the_loop, good, good_aside,
)  # fmt: skip
