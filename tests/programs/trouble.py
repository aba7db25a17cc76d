"""Jobs that misbehave in every way that we could think of, and some that behave."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from litejobs import Cancel, Constant, Context, Fail, Retry, Snooze, define

if sys.platform != "win32":
    import resource

AT_ONCE = Constant(0)


def note(log: str, line: object) -> None:
    """Appends a line in one write, so that each execution leaves exactly one."""
    place = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        os.write(place, f"{line}\n".encode())
    finally:
        os.close(place)


# Those that behave.


@define
def innocent(log: str, n: int) -> int:
    note(log, n)
    return n


@define
def nap(seconds: float) -> None:
    time.sleep(seconds)


@define
def nap_and_tell(log: str, seconds: float) -> int:
    """Tells the process that it runs in, before it sleeps."""
    note(log, os.getpid())
    time.sleep(seconds)
    return os.getpid()


@define
def large(log: str, n: int) -> str:
    note(log, n)
    return "x" * 60_000


@define
def measure(text: str) -> int:
    return len(text)


@define(max_attempts=1)
def mutter() -> None:
    print("mutter", file=sys.stderr, end="")


@define
def whoami() -> int:
    return os.getpid()


@define
def obey(context: Context, log: str) -> str:
    """Goes on until it is asked to end."""
    note(log, os.getpid())
    while not context.cancelled:
        time.sleep(0.005)
    return "obeyed"


@define
def check(context: Context, log: str) -> None:
    """Goes on, whatever happens, until what it calls finds that it is to end."""
    note(log, os.getpid())
    try:
        while True:
            with contextlib.suppress(Exception):
                _rest_and_check(context)
    finally:
        note(log, "cleaned up")


def _rest_and_check(context: Context) -> None:
    time.sleep(0.005)
    context.checkpoint()


def _note_death(context: Context, error: BaseException) -> None:
    note(context.job.payload["log"], f"dead: {error}")


@define(max_attempts=1, on_failure=_note_death)
def end_as(context: Context, log: str, flag: str, how: str, looks: bool = False) -> None:
    """Waits for a file, then ends as it is told to."""
    note(log, os.getpid())
    while not Path(flag).exists():
        time.sleep(0.005)
    if looks and not context.cancelled:
        raise AssertionError("it is not asked to end")
    if how == "exit":
        os._exit(3)
    error = {"Fail": Fail("bad card"), "Retry": Retry(600), "Snooze": Snooze(600)}
    raise {**error, "Cancel": Cancel(), "ValueError": ValueError("no luck")}[how]


# Those that end their worker.


@define(backoff=AT_ONCE)
def segfault() -> None:
    ctypes.string_at(0)


@define(backoff=AT_ONCE)
def leave_at_once() -> None:
    os._exit(3)


@define(backoff=AT_ONCE)
def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@define(backoff=AT_ONCE)
def close_everything() -> None:
    """As programs do that want to become daemons."""
    os.closerange(3, 1000)


@define(backoff=AT_ONCE)
def nap_or_close(seconds: float) -> None:
    """Is not known for the second before it does it."""
    time.sleep(seconds) if seconds >= 0 else os.closerange(3, 1000)


@define(backoff=AT_ONCE)
def leave_a_child_behind(log: str) -> None:
    """The child has all files of its parent open, as forked children do."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    note(log, child)
    os._exit(3)


# Those that do not end.


@define(backoff=AT_ONCE, timeout=0.5)
def spin_in_c() -> int:
    return sum(range(10**12))


@define(backoff=AT_ONCE, timeout=0.5)
def ignore_signals() -> None:
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except BaseException:
            continue


@define(backoff=AT_ONCE, timeout=0.5)
def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@define(timeout=0.1, grace=0.2)
def stop_soon() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@define(backoff=AT_ONCE, timeout=0.5)
def start_a_sleeper(log: str) -> None:
    """A grandchild of the node, which must not outlive its job."""
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    note(log, sleeper.pid)
    sleeper.wait()


@define
def start_a_sleeper_and_spin(log: str) -> int:
    """No thread of the worker's own gets a turn any more."""
    note(log, subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    return sum(range(10**12))


# Those that fail in Python.


@define(backoff=AT_ONCE)
def call_exit() -> None:
    raise SystemExit("bye")


@define(backoff=AT_ONCE)
def interrupt() -> None:
    raise KeyboardInterrupt


@define(backoff=AT_ONCE)
def recurse() -> None:
    recurse()


@define(backoff=AT_ONCE)
def use_all_memory() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, before[1]))
    try:
        bytearray(2**40)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@define(backoff=AT_ONCE)
def fail_in_bad_text() -> None:
    """As an error with the name of a file does, when the name is no UTF-8."""
    raise FileNotFoundError(os.fsdecode(b"caf\xe9.txt"))


@define(backoff=AT_ONCE)
def fail(log: str = "") -> None:
    if log:
        note(log, "failed")
    raise ValueError("no luck")


@define(backoff=AT_ONCE)
def wait_for(log: str, flag: str) -> None:
    """Waits for a file, then fails."""
    note(log, os.getpid())
    while not Path(flag).exists():
        time.sleep(0.005)
    raise ValueError("no luck")


# Those that use processes themselves.


def square(n: int) -> int:
    return n * n


@define(timeout=15)
def use_a_pool(method: str) -> list[int]:
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(square, [1, 2, 3])


@define(timeout=10)
def end_a_child() -> int:
    """As `terminate` promises, and as pools of processes do it."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=_tell_and_sleep, args=(theirs,))
    child.start()
    ours.recv()
    child.terminate()
    child.join()
    return child.exitcode or 0


def _tell_and_sleep(pipe: multiprocessing.connection.Connection) -> None:
    pipe.send("started")
    time.sleep(60)


@define
def use_a_subprocess() -> str:
    command = [sys.executable, "-c", "print(6 * 7)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@define
def come_out_twice(log: str, how: str) -> int:
    """Forks; both processes go on as if they were alone."""
    child = os.fork()
    if child == 0:
        if how == "raise":
            raise ValueError("in the child")
        if how == "exit":
            sys.exit(7)
        return 0
    note(log, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return child


@define
def leave_a_daemon(log: str) -> int:
    """In a session of its own nobody ends it, and it has all files of the worker open."""
    if os.fork() == 0:
        os.setsid()
        note(log, os.getpid())
        time.sleep(60)
        os._exit(0)
    return os.getpid()


DEFINITIONS = (
    innocent, check, end_as, nap, nap_and_tell, large, measure, whoami, obey, segfault,
    leave_at_once, kill_itself, close_everything, nap_or_close, leave_a_child_behind, spin_in_c,
    ignore_signals, stop_itself, stop_soon, start_a_sleeper, start_a_sleeper_and_spin, call_exit,
    interrupt, recurse, use_all_memory, fail_in_bad_text, fail, wait_for, use_a_pool, end_a_child,
    use_a_subprocess, come_out_twice, leave_a_daemon, mutter,
)  # fmt: skip
