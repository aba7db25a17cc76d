"""Jobs that write, compute and occupy memory before they fail."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time

from litejobs import Constant, Context, define

# Before a worker is made of the process, as programs do at the top of their files.
handler = logging.StreamHandler()
handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
logger = logging.getLogger("wordy")
logger.addHandler(handler)
logger.propagate = False

ONCE = 1


class Luckless(Exception):
    """What they raise."""


@define(max_attempts=ONCE)
def say(text: str, end: str = "\n") -> None:
    print(text, end=end)
    raise Luckless


@define(max_attempts=ONCE)
def say_everywhere() -> None:
    print("one", "two", sep=" and ")
    sys.stdout.writelines(["three\n", "four\n"])
    print("five", file=sys.stderr)
    logger.warning("six")
    thread = threading.Thread(target=print, args=("seven",))
    thread.start()
    thread.join()
    with contextlib.redirect_stdout(io.StringIO()):
        print("not on the terminal")
    raise Luckless


@define(max_attempts=ONCE)
def say_in_a_fork() -> None:
    child = multiprocessing.get_context("fork").Process(target=print, args=("from a child",))
    child.start()
    child.join()
    raise Luckless


@define(max_attempts=ONCE)
def say_much(lines: int) -> None:
    for number in range(lines):
        print(f"line {number}")
    raise Luckless


@define
def say_and_end(text: str) -> None:
    print(text)


@define(max_attempts=ONCE)
def fail_in_silence() -> None:
    raise Luckless


@define(max_attempts=2, backoff=Constant(0, jitter="none"))
def say_the_attempt(context: Context) -> None:
    print("attempt", context.attempt)
    raise Luckless


@define(max_attempts=ONCE)
def ask_the_streams() -> None:
    """Raises what a program can see of its streams."""
    out = sys.stdout
    out.buffer.write(b"")
    seen = isinstance(out, io.TextIOWrapper), out.isatty(), out.fileno(), out is sys.__stdout__
    sys.stdout.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]
    try:
        print("caf\xe9")
    except UnicodeEncodeError as error:
        raise Luckless(*seen, out.encoding, error.reason) from None
    finally:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]


@define(max_attempts=ONCE, timeout=0.3)
def log_and_hang() -> None:
    logger.warning("this takes long")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass


@define(max_attempts=ONCE, timeout=0.3)
def log_and_obey(context: Context) -> None:
    logger.warning("this takes long")
    while not context.cancelled:
        pass


@define(max_attempts=ONCE)
def say_and_crash(how: str) -> None:
    print("last words", end="")
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


@define(max_attempts=ONCE)
def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    raise Luckless


@define(max_attempts=ONCE)
def compute_and_crash(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    os._exit(3)


@define
def compute_well(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@define(max_attempts=ONCE)
def wait(seconds: float) -> None:
    time.sleep(seconds)
    raise Luckless


@define(max_attempts=ONCE)
def occupy(size: int) -> None:
    bytes(bytearray(size).replace(b"\0", b"x"))
    raise Luckless


@define(max_attempts=ONCE)
async def say_in_turns(name: str) -> None:
    for number in range(3):
        print(name, number)
        await asyncio.sleep(0.01)
    await asyncio.to_thread(print, name, "aside")
    raise Luckless


DEFINITIONS = (
    say, say_everywhere, say_in_a_fork, say_much, say_and_end, fail_in_silence, say_the_attempt,
    ask_the_streams, log_and_hang, log_and_obey, say_and_crash, compute, compute_and_crash,
    compute_well, wait, occupy, say_in_turns,
)  # fmt: skip
