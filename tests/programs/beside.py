"""Coroutines that wait, obey, or misbehave, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from litejobs import Constant, Context, Fail, Snooze, define

from .trouble import note

AT_ONCE = Constant(0, jitter="none")


@define
async def rest(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@define
async def rest_and_tell(log: str, seconds: float) -> None:
    note(log, os.getpid())
    await asyncio.sleep(seconds)


@define
async def fetch(context: Context, n: int) -> dict[str, int]:
    await asyncio.sleep(0)
    if n == 1:
        raise KeyError("no such page")
    if n == 2:
        raise Fail("never")
    if n == 3:
        raise SystemExit("bye")
    if n == 4:
        raise Snooze(3600)
    return {"n": n, "attempt": context.attempt}


@define(backoff=AT_ONCE, timeout=0.3)
async def clean_up(log: str, seconds: float) -> str:
    note(log, "began")
    try:
        await asyncio.sleep(seconds)
    finally:
        note(log, "cleaned up")
    return "ended"


@define(backoff=AT_ONCE, timeout=0.3)
async def ignore() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


@define(backoff=AT_ONCE, timeout=0.3)
async def block_the_loop(context: Context) -> bool:
    give_up = time.monotonic() + 20
    while not context.cancelled and time.monotonic() < give_up:
        time.sleep(0.005)
    return context.cancelled


@define
async def watch_itself(context: Context, log: str) -> str:
    note(log, "began")
    while not context.cancelled:
        await asyncio.sleep(0.005)
    note(log, "saw it")
    return "obeyed"


@define
async def swallow(log: str) -> None:
    """Breaks off when its task is cancelled, and returns."""
    note(log, "began")
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


@define(timeout=30)
async def seconds_left(context: Context) -> float:
    assert context.deadline is not None
    return (context.deadline - datetime.now(UTC)).total_seconds()


@define(backoff=AT_ONCE)
async def leave_at_once(log: str, others: int) -> None:
    while len(Path(log).read_text().splitlines() if Path(log).exists() else []) < others:
        await asyncio.sleep(0.005)
    os._exit(3)


@define
async def stop_the_loop() -> None:
    async def end() -> None:
        sys.exit("from a task of its own")

    asyncio.get_running_loop().stop()
    ending = asyncio.create_task(end())
    await asyncio.sleep(0.05)
    assert ending.done()


@define
async def cancel_whoever_comes() -> int:
    """As handlers do that clean up after themselves and take all tasks for their own. Those that
    come have not had a turn yet."""
    while not (others := asyncio.all_tasks() - {asyncio.current_task()}):
        await asyncio.sleep(0)
    for task in others:
        task.cancel()
    return len(others)


@define
async def large(n: int) -> str:
    await asyncio.sleep(0)
    return "x" * n


@define
async def take(text: str) -> int:
    return len(text)


@define
def compute(milliseconds: float) -> int:
    end = time.perf_counter() + milliseconds / 1000
    while time.perf_counter() < end:
        pass
    return os.getpid()


@define
def nap_and_tell(log: str, seconds: float) -> None:
    note(log, os.getpid())
    time.sleep(seconds)


@define(max_memory="200MB", backoff=AT_ONCE, max_attempts=2)
def devour(log: str) -> None:
    note(log, os.getpid())
    eaten = []
    while True:
        eaten.append(bytearray(2**22))
        eaten[-1][::4096] = b"x" * len(eaten[-1][::4096])
        time.sleep(0.001)


@define(max_memory="200MB", backoff=AT_ONCE, max_attempts=1)
async def devour_aside() -> None:
    eaten = []
    while True:
        eaten.append(b"x" * 2**22)
        await asyncio.sleep(0.001)


@define(max_memory="4GiB")
def eat_little(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@define
def whoami() -> int:
    return os.getpid()


def tell_of_failure(context: Context, error: BaseException) -> None:
    note(context.job.payload["log"], f"{context.attempt} {type(error).__name__} {error}")


async def tell_later(context: Context, error: BaseException) -> None:
    await asyncio.sleep(0)
    tell_of_failure(context, error)


def fail_itself(context: Context, error: BaseException) -> None:
    tell_of_failure(context, error)
    raise RuntimeError("the hook is broken, too")


@define(max_attempts=2, backoff=AT_ONCE, on_failure=tell_of_failure)
def give_up(log: str) -> None:
    raise OSError("no disk")


@define(max_attempts=2, backoff=AT_ONCE, on_failure=tell_later)
async def give_up_aside(log: str) -> None:
    raise OSError("no disk")


@define(max_attempts=1, on_failure=fail_itself)
def give_up_badly(log: str) -> None:
    raise OSError("no disk")


@define(max_attempts=1, timeout=0.2, on_failure=tell_of_failure)
async def rest_too_long(log: str) -> None:
    await asyncio.sleep(60)


@define
async def tell_how_far(context: Context, seconds: float) -> str:
    context.progress(1, 2, "half")
    await asyncio.sleep(seconds)
    context.progress(2, 2, "whole")
    return TRAIL.get()


TRAIL = contextvars.ContextVar("TRAIL", default="")


async def leave_a_trail(context: Context, call_next: Callable[[], Awaitable[object]]) -> object:
    """Middleware: what is inside sees what it set, also among many that run at a time."""
    TRAIL.set(f"job {context.job.id}")
    value = await call_next()
    return f"around {value}" if context.job.name == "tell_how_far" else value


@define
async def enqueue_next(left: int) -> int | None:
    return (await enqueue_next.aenqueue(left - 1)).id if left else None


DEFINITIONS = (
    rest, rest_and_tell, fetch, clean_up, ignore, block_the_loop, watch_itself, swallow,
    seconds_left, leave_at_once, stop_the_loop, cancel_whoever_comes, large, take, compute,
    nap_and_tell, devour, devour_aside, eat_little, whoami, give_up, give_up_aside, give_up_badly,
    rest_too_long, tell_how_far, enqueue_next,
)  # fmt: skip
